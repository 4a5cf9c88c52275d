"""One client over HTTP/1.1: bytes in, requests out, answers in the order of the requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, cast

import httptools
from msgspec import Struct

from steersman.core.errors import Error, OverloadedError, TooLargeError
from steersman.serve.coding import CODINGS, MOST_BYTES, accepts_gzip, gzipped, inflated
from steersman.serve.metrics import Metrics, Which
from steersman.serve.plane import error_body
from steersman.serve.settings import Settings

PIPELINED = 64
LINGER_S = 2.0
LINGER_BYTES = 16 << 20
JSON = b"application/json"
KEPT = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"authorization",
        b"content-type",
        b"inference-header-content-length",
        b"ocp-apim-subscription-key",
        b"x-amzn-sagemaker-target-model",
        b"x-api-key",
    )
)
"""Headers that some protocol reads."""


class Asked(Struct, frozen=True):
    """A whole request.

    Attributes:
        target: path and query as they came.
        headers: those of KEPT, by their lower-case names.
    """

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes


class Owner(Protocol):
    """What connections share: the server."""

    settings: Settings
    connections: set[Connection]
    waiting: int
    draining: bool
    clock: float
    metrics: Metrics

    def handle(self, asked: Asked, slot: Slot) -> None:
        """Answer a request by the slot, now or later."""
        ...

    def response(self, slot: Slot, close: bool) -> bytes:
        """The bytes of an answer."""
        ...

    def settled(self) -> None:
        """A request has its answer."""
        ...

    def count(self, error: Error) -> None:
        """A request was refused."""
        ...

    def aside(self, work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        """Do what may block on a thread; `done` is called on the loop's."""
        ...

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        ...


class HttpError(Error):
    """What only HTTP can get wrong; its status has no class in the tree."""

    def __init__(self, status: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.http_status = status


class Slot:
    """The place of an answer among those of its connection; its `answer` is the plane's Reply.

    Attributes:
        kind: content type of the answer.
        more: further header lines of it, each behind a line's end.
        about, began: the model that was asked, and when, in seconds of a clock of its own; for the metrics.
        asked: the request, if there is an access log.
        gzip_from: bytes from which on an answer is compressed; 0: none is.
    """

    __slots__ = (
        "_connection", "about", "allow", "asked", "bare", "began", "body", "close", "gzip_from", "kind", "more",
        "status", "version",
    )  # fmt: skip

    def __init__(self, connection: Connection, version: str, close: bool, bare: bool) -> None:
        self._connection = connection
        self.version = version
        self.close = close
        self.bare = bare
        self.allow = ""
        self.kind = JSON
        self.about: Which | None = None
        self.began = 0.0
        self.asked: Asked | None = None
        self.more = b""
        self.gzip_from = 0
        self.status = 0
        self.body = b""

    def answer(self, status: int, body: bytes) -> None:
        if self.gzip_from and self.gzip_from <= len(body) <= MOST_BYTES:
            body = gzipped(body)
            self.more += b"\r\ncontent-encoding: gzip\r\nvary: accept-encoding"
        self.status = status
        self.body = body
        self._connection.answered()

    def refuse(self, error: Error) -> None:
        self.answer(error.http_status, error_body(error))


class Connection(asyncio.Protocol):
    """One client: bytes in, slots in the order of its requests, bytes out."""

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._settings = server.settings
        self._parser = httptools.HttpRequestParser(self)
        self._slots: deque[Slot] = deque()
        self._since = server.clock
        self._receiving = False  # a request has begun and is not complete
        self._in_body = False
        self._done = False  # no further request is read
        self._unread = False  # the last request is not read to its end
        self._lingering = False  # the last answer is out; what still comes in is dropped
        self._write_paused = False
        self._read_paused = False
        self._dropped_bytes = 0
        self._start_message()

    def _start_message(self) -> None:
        self._version = ""
        self._url = b""
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self._body_bytes = 0
        self._parts: list[bytes] = []
        self._expects = b""
        self._owes_continue = False
        self._coding = b""
        self._headers: dict[bytes, bytes] = {}

    # -- transport ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        connections = self._server.connections
        connections.add(self)
        if len(connections) > 2 * self._settings.max_connections:
            self._transport.abort()
        elif len(connections) > self._settings.max_connections:
            self._refuse(OverloadedError(f"{self._settings.max_connections} connections are open already"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._done = True
        self._server.lost(self)

    def pause_writing(self) -> None:
        self._write_paused = True
        self._since = self._server.clock
        self._regulate()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._since = self._server.clock
        self._regulate()

    def eof_received(self) -> bool:
        """The client sends no more; whatever it asked for is still answered."""
        if not self._slots or self._lingering:
            return False
        self._done = True
        self._unread = self._receiving = False
        self._slots[-1].close = True
        return True

    def data_received(self, data: bytes) -> None:
        if self._done:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES:
                self._transport.abort()
            return
        limit = self._settings.max_head_bytes
        if len(data) <= limit:
            self._feed(data)
            return
        for start in range(0, len(data), limit):  # so that an endless header is seen before it is all in memory
            if not self._feed(data[start : start + limit]):
                return

    def _feed(self, data: bytes) -> bool:
        """Whether to go on."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserUpgrade:
            return False  # refused when its head was complete
        except httptools.HttpParserError as error:
            if not self._done:
                hint = "speak HTTP/1.1 as in RFC 9112"
                self._refuse(HttpError(HTTPStatus.BAD_REQUEST, f"not HTTP: {error}", hint=hint))
            return False
        if self._receiving and not self._done:
            # The bytes before the head may be another request's, hence twice the limit. What brings nothing of the
            # body, as an endless trailer, is head.
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > 2 * self._settings.max_head_bytes:
                self._refuse_head()
        return not self._done

    # -- parser ------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._done:
            return
        self._start_message()
        self._receiving = True
        self._in_body = False
        self._since = self._server.clock

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head_bytes += len(url)
        if self._head_bytes > self._settings.max_head_bytes and not self._done:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._settings.max_head_bytes:
            if not self._done:
                self._refuse_head()
            return
        if self._in_body:
            return  # a trailer
        name = name.lower()
        if name in KEPT:
            self._headers[name] = value
            return
        match name:
            case b"content-length":
                # The parser let only digits pass, and refused a second one and all over 64 bits, but for zeros before.
                self._body_bytes = int(value.strip().lstrip(b"0") or b"0")
            case b"expect":
                self._expects = value.lower()
            case b"content-encoding":
                coding = value.strip().lower()
                self._coding = b"" if coding == b"identity" else coding

    def on_headers_complete(self) -> None:
        if self._done:
            return
        self._in_body = True
        self._version = version = self._parser.get_http_version()
        declared, self._body_bytes = self._body_bytes, 0
        if version not in ("1.1", "1.0"):
            self._refuse(HttpError(HTTPStatus.BAD_REQUEST, f"HTTP/{version} is not spoken here", hint="HTTP/1.1 is"))
        elif self._parser.should_upgrade():
            hint = "ask without Upgrade and CONNECT"
            self._refuse(HttpError(HTTPStatus.BAD_REQUEST, "the protocol can not be changed", hint=hint))
        elif declared > self._settings.max_body_bytes:
            self._refuse_body(declared)
        elif self._coding and self._coding not in CODINGS:
            coding = self._coding.decode("latin-1")[:64]
            hint = "send it as it is, or gzip"
            self._refuse(HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-encoding {coding!r}", hint=hint))
        elif self._expects:
            self._on_expect(version)

    def _on_expect(self, version: str) -> None:
        if self._expects != b"100-continue":
            self._refuse(HttpError(HTTPStatus.EXPECTATION_FAILED, "only 100-continue can be expected"))
        elif version == "1.1":
            self._owes_continue = True
            self._continue_if_due()

    def on_body(self, part: bytes) -> None:
        if self._done:
            return
        self._unparsed_bytes = 0
        self._body_bytes += len(part)
        if self._body_bytes > self._settings.max_body_bytes:
            self._parts.clear()
            self._refuse_body(self._body_bytes)
        else:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        if self._done:
            return
        self._receiving = self._in_body = self._owes_continue = False
        close = not self._parser.should_keep_alive()
        method = self._parser.get_method()
        slot = Slot(self, self._version, close, method == b"HEAD")
        self._slots.append(slot)
        self._done = close
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        if self._coding and body:
            try:
                body = inflated(body, self._settings.max_body_bytes)
            except Error as error:
                self._server.waiting += 1
                self._server.count(error)
                slot.refuse(error)
                return
        if accepted := self._headers.get(b"accept-encoding"):
            slot.gzip_from = self._settings.gzip_bytes if accepts_gzip(accepted) else 0
        self._server.handle(Asked(method, self._url, self._headers, body), slot)
        if len(self._slots) > PIPELINED:
            self._regulate()

    # -- answers -----------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """A slot got its answer: write what is now due, and end the connection if that was the last of it."""
        self._server.settled()
        if not self._slots or not self._slots[0].status or self._transport.is_closing():
            return
        out = []
        close = False
        while self._slots and self._slots[0].status and not close:
            slot = self._slots.popleft()
            last = not self._slots and not self._receiving
            close = slot.close or (self._server.draining and last)
            out.append(self._server.response(slot, close))
        self._since = self._server.clock
        self._transport.write(b"".join(out) if len(out) > 1 else out[0])
        if close:
            self._end()
        else:
            self._continue_if_due()
            if self._read_paused:
                self._regulate()

    def _continue_if_due(self) -> None:
        if self._owes_continue and not self._slots:
            self._owes_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_head(self) -> None:
        limit = self._settings.max_head_bytes
        error = HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head is over {limit} bytes")
        self._refuse(error)

    def _refuse_body(self, size: int) -> None:
        limit = self._settings.max_body_bytes
        hint = "send fewer candidates, or outcomes in several bodies"
        self._refuse(TooLargeError(f"the body has {size} bytes or more, over {limit}", hint=hint))

    def _refuse(self, error: Error) -> None:
        """Answer a request that is not read to its end; the connection ends with it."""
        self._done = self._unread = True
        slot = Slot(self, "1.1", close=True, bare=False)
        self._slots.append(slot)
        self._server.waiting += 1
        self._server.count(error)
        slot.refuse(error)

    def _end(self) -> None:
        self._done = True
        if self._unread and self._transport.can_write_eof():
            # To close on bytes that were not read would reset the connection, and the answer could be lost.
            self._lingering = True
            self._transport.write_eof()
        else:
            self._transport.close()

    def _regulate(self) -> None:
        pause = self._write_paused or len(self._slots) > PIPELINED
        if pause == self._read_paused or self._transport.is_closing():
            return
        self._read_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection, with whatever was not answered."""
        self._transport.abort()

    def quiet_from_now(self) -> None:
        """Count the quiet time of an idle connection from now on: the clock before was a coarse one."""
        if not self._receiving:
            self._since = self._server.clock

    def check(self, now: float, idle_s: float) -> None:
        """End the connection if it took too long."""
        age = now - self._since
        if (self._write_paused or self._transport.is_closing()) and age > self._settings.request_s:
            self._transport.abort()
        elif self._lingering:
            if age > LINGER_S:
                self._transport.abort()
        elif self._receiving and not self._done and not self._read_paused:
            if age > self._settings.request_s:
                limit = self._settings.request_s
                self._refuse(HttpError(HTTPStatus.REQUEST_TIMEOUT, f"the request took over {limit:g} s"))
        elif not self._slots and age > idle_s:
            self._transport.close()
