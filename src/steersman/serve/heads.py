"""Heads of requests that llhttp has read, by their bytes: one that comes again is compared and not parsed."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import httptools

END = b"\r\n\r\n"
HEADS, HEAD_BYTES = 256, 1024
"""That are kept, the oldest goes first, and of so many bytes each."""

EVERY = 8
"""One head of so many that are not known is learned: some clients put another number into each."""

_NEVER = frozenset((b"content-encoding", b"expect", b"transfer-encoding", b"upgrade"))
"""Headers after which more is to be done than to count the bytes of the body."""


class Head(NamedTuple):
    """What a head says, and how many bytes of body follow it."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body_bytes: int


class Heads:
    """Those of one server, which differ in nothing from what its parser says of the same bytes.

    Args:
        kept: names of the headers that somebody reads.
        most_head, most_body: limits of a request, in bytes.
    """

    def __init__(self, kept: Collection[bytes], most_head: int, most_body: int) -> None:
        self._kept = kept
        self._most_head = min(most_head, HEAD_BYTES)
        self._most_body = most_body
        self._known: dict[bytes, Head] = {}
        self._strange = 0
        self.get = self._known.get

    def learn(self, text: bytes) -> None:
        """Remember bytes that a message may begin with, now and then, if they are the whole head of a plain request."""
        self._strange += 1
        if self._strange % EVERY or len(text) > self._most_head:
            return
        head = read(text, self._kept)
        if head is not None and head.body_bytes <= self._most_body:
            if len(self._known) >= HEADS:
                del self._known[next(iter(self._known))]
            self._known[text] = head


class _Probe:
    """What a parser tells of one head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.begun = self.complete = self.over = 0

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.complete += 1

    def on_message_complete(self) -> None:
        self.over += 1


def read(text: bytes, kept: Collection[bytes]) -> Head | None:
    """The head that bytes are, to the last; None: they are none, or one of a request that is not plain.

    Plain is a request in HTTP/1.1 that keeps its connection, whose body has a length, and whose answer has a body.
    """
    probe = _Probe()
    parser = httptools.HttpRequestParser(probe)
    try:
        parser.feed_data(text[:-1])
        early = probe.complete
        parser.feed_data(text[-1:])
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    length = probe.headers.get(b"content-length", b"0")
    if early or (probe.begun, probe.complete) != (1, 1) or _NEVER & probe.headers.keys() or not length.isdigit():
        return None
    body_bytes = int(length) if len(length) < 19 else 1 << 62
    method = parser.get_method()
    plain = parser.get_http_version() == "1.1" and parser.should_keep_alive() and method != b"HEAD"
    if not plain or probe.over != (body_bytes == 0):
        return None
    headers = {name: value for name, value in probe.headers.items() if name in kept}
    return Head(method, probe.url, headers, body_bytes)
