"""Heads that are known by their bytes: exactly those whose every byte llhttp has read as one plain request's."""

from __future__ import annotations

import numpy as np
import pytest

from steersman.serve import heads
from steersman.serve.exchange import KEPT
from steersman.serve.heads import EVERY, HEADS, Head, Heads, read

GOOD = (
    b"POST /v1/decide/shop?a=1 HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: text/x\r\nX-Api-Key: k\r\nContent-Length: 12\r\n\r\n"
)


def test_a_plain_head_says_method_target_headers_and_the_length_of_its_body() -> None:
    kept = {b"content-type": b"text/x", b"x-api-key": b"k"}
    assert read(GOOD, KEPT) == Head(b"POST", b"/v1/decide/shop?a=1", kept, 12)
    assert read(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", KEPT) == Head(b"GET", b"/", {}, 0)
    assert read(GOOD.replace(b"Host: x", b"Connection: keep-alive"), KEPT) == read(GOOD, KEPT)
    assert read(b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", KEPT) == Head(b"GET", b"/", {}, 0)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\r\n\r\n",
        GOOD[:-1],
        GOOD + b"x",
        GOOD + GOOD,
        b"GET / HTTP/1.1\r\n\r\n" + GOOD,
        GOOD.replace(b"1.1", b"1.0"),
        GOOD.replace(b"Host: x", b"Connection: close"),
        GOOD.replace(b"Host: x", b"Transfer-Encoding: chunked"),
        GOOD.replace(b"Content-Length: 12", b"Transfer-Encoding: chunked"),
        GOOD.replace(b"Host: x", b"Content-Encoding: gzip"),
        GOOD.replace(b"Host: x", b"Expect: 100-continue"),
        GOOD.replace(b"Host: x", b"Upgrade: websocket"),
        GOOD.replace(b"Host: x", b"Content-Length: 12"),
        GOOD.replace(b"12", b"+12"),
        GOOD.replace(b"12", b"99999999999999999999"),
        GOOD.replace(b"POST", b"CONNECT"),
        b"HEAD /v1/live HTTP/1.1\r\nHost: x\r\n\r\n",
        GOOD.replace(b"Host:", b"Ho st:"),
        b"abc\r\n\r\n",
    ],
)
def test_what_is_no_plain_head_or_more_than_one_is_not_known(text: bytes) -> None:
    head = read(text, KEPT)
    assert head is None or head.body_bytes > 1 << 60  # longer than any limit
    made = Heads(KEPT, 1 << 14, 1 << 20)
    for _ in range(2 * EVERY):
        made.learn(text)
    assert made.get(text) is None


def test_heads_that_are_mutated_are_known_only_as_what_they_say() -> None:
    random = np.random.default_rng(0)
    known = 0
    for _ in range(3000):
        text = bytearray(GOOD)
        for _ in range(random.integers(1, 3)):
            text[random.integers(len(text))] = random.integers(256)
        head = read(bytes(text), KEPT)
        if head is None:
            continue
        known += 1
        method, target, rest = bytes(text).split(b" ", 2)
        assert (head.method, head.target) == (method, target)
        lines = [line.partition(b":") for line in rest.split(b"\r\n")[1:-2]]
        names = [name.lower() for name, _, _ in lines]
        assert head.headers == {
            name: value.strip(b" \t") for name, (_, _, value) in zip(names, lines, strict=True) if name in KEPT
        }
        lengths = [int(value) for name, (_, _, value) in zip(names, lines, strict=True) if name == b"content-length"]
        assert head.body_bytes == sum(lengths)
    assert known > 300


def test_heads_are_few_small_and_within_the_limits_of_a_request() -> None:
    made = Heads(KEPT, 200, 1000)
    for i in range(4 * HEADS):
        text = GOOD.replace(b"Host: x", b"Host: %d" % i)
        for _ in range(EVERY):
            made.learn(text)
        assert made.get(text) == read(text, KEPT)
    assert len(made._known) == HEADS
    for text in (GOOD.replace(b"12", b"1001"), GOOD.replace(b"Host: x", b"Host: " + b"x" * 200)):
        for _ in range(EVERY):
            made.learn(text)
        assert made.get(text) is None
    assert heads.HEAD_BYTES <= 1024
