"""gzip of requests and answers: what is in a body counts, however small it was made."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
import zlib
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import plain_models as plain
from served import Client, Running, plane_of
from steersman import log
from steersman.core.errors import DataError, TooLargeError
from steersman.serve.coding import MOST_MEMBERS, gzipped, inflated
from steersman.serve.settings import Settings
from test_fuzz_protocols import resident_mb

PREDICT = "/v1/models/half:predict"
ROWS = {"instances": list(range(20_000))}
BODY = json.dumps({"instances": [1, 2, 5]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with log.Pen(tmp_path_factory.mktemp("log")) as pen:
        plane = plane_of(pen)
        plane.swap("shop", 1)
        made = Running(plane, Settings(port=0, quiet_s=0.02), models=plain.models_of({"half": {1: plain.half()}}))
        yield made
        made.stop()


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as client:
        yield client


CODED = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "GZip": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "identity": BODY,
}


@pytest.mark.parametrize("coding", CODED)
def test_a_compressed_request_is_the_request(http: httpx.Client, coding: str) -> None:
    answer = http.post(PREDICT, content=CODED[coding], headers={"content-encoding": coding})
    assert (answer.status_code, answer.json()) == (200, {"predictions": [2.5, 3.0, 4.5]})


def test_a_body_of_several_members_is_all_of_them(http: httpx.Client) -> None:
    body = gzip.compress(BODY[:7]) + gzip.compress(b"") + gzip.compress(BODY[7:])
    answer = http.post(PREDICT, content=body, headers={"content-encoding": "gzip"})
    assert answer.json() == {"predictions": [2.5, 3.0, 4.5]}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (BODY, 400, "not compressed"),
        (gzip.compress(BODY)[:-9], 400, "before its end"),
        (gzip.compress(BODY) + b"{}", 400, "not compressed"),
        (gzip.compress(BODY)[:-8] + b"\0" * 8, 400, "not compressed"),  # the checksum
        (gzip.compress(b"") * (MOST_MEMBERS + 1), 413, "members"),
        (gzip.compress(b" " * ((1 << 20) + 1)), 413, "over 1048576 bytes"),
        (gzip.compress(b"{", 9) + gzip.compress(b" " * (1 << 20)), 413, "over 1048576 bytes"),
        (b"", 400, "empty"),
    ],
)
def test_what_is_not_compressed_or_too_large_is_refused_and_the_connection_goes_on(
    server: Running, body: bytes, status: int, told: str
) -> None:
    with Client(server.port) as client:
        found, _, answer = client.ask("POST", PREDICT, body, "Content-Encoding: gzip\r\n")
        assert (found, told in answer["error"]) == (status, True), answer
        assert client.ask("POST", PREDICT, BODY)[0] == 200


def test_a_bomb_costs_neither_time_nor_memory(http: httpx.Client) -> None:
    bomb = gzip.compress(bytes(100 << 20), 9)  # a thousandth of it
    assert len(bomb) < 200_000
    http.post(PREDICT, content=bomb, headers={"content-encoding": "gzip"})
    before, began = resident_mb(), time.monotonic()
    for _ in range(20):
        assert http.post(PREDICT, content=bomb, headers={"content-encoding": "gzip"}).status_code == 413
    assert time.monotonic() - began < 5
    assert resident_mb() - before < 64


def test_large_answers_are_compressed_for_who_accepts_it_and_for_nobody_else(server: Running) -> None:
    body = json.dumps(ROWS).encode()
    with Client(server.port) as client:
        client.send("POST", PREDICT, body)
        plain_answer = raw(client)
        assert b"content-encoding" not in plain_answer[0]
        client.send("POST", PREDICT, body, "Accept-Encoding: br, gzip;q=0.5\r\n")
        head, coded = raw(client)
        assert b"\r\ncontent-encoding: gzip\r\n" in head and b"\r\nvary: accept-encoding\r\n" in head
        assert len(coded) < len(plain_answer[1]) / 3
        assert gzip.decompress(coded) == plain_answer[1]
        for accepts in ("gzip;q=0", "br", "identity"):
            client.send("POST", PREDICT, body, f"Accept-Encoding: {accepts}\r\n")
            assert raw(client)[1] == plain_answer[1]
        client.send("POST", PREDICT, BODY, "Accept-Encoding: gzip\r\n")
        assert b"content-encoding" not in raw(client)[0]  # a small one is not worth it


def raw(client: Client) -> tuple[bytes, bytes]:
    """Head and body of an answer, as they came."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client._in.readline()
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head.lower(), client._in.read(size)


def test_pipelined_answers_are_each_as_it_was_asked_for(server: Running) -> None:
    body = json.dumps(ROWS).encode()
    with Client(server.port) as client:
        for i in range(6):
            client.send("POST", PREDICT, body, "Accept-Encoding: gzip\r\n" if i % 2 else "")
        found = [raw(client) for _ in range(6)]
    assert [b"content-encoding: gzip" in head for head, _ in found] == [False, True] * 3
    assert len({gzip.decompress(one) if i % 2 else one for i, (_, one) in enumerate(found)}) == 1


@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_the_limit_is_exact(body: bytes, limit: int) -> None:
    for coded in (gzipped(body), zlib.compress(body), gzip.compress(body[:9]) + gzip.compress(body[9:])):
        if len(body) > limit:
            with pytest.raises(TooLargeError):
                inflated(coded, limit)
        else:
            assert inflated(coded, limit) == body


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for bad in (body, gzipped(body)[: len(body)], gzipped(b"x" * 100)[:20] + body):
        with contextlib.suppress(DataError):
            inflated(bad, 1000)
