"""Bytes that no client sends: every protocol answers or ends the connection, quickly, and goes on."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import plain_models as plain
from served import Client, Running, plane_of
from steersman import log
from steersman.serve.settings import Settings
from test_http import mutated

X = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}]})
NPY = b"\x93NUMPY\x01\x00\x3a\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n"


def request(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


REQUESTS = [
    request("POST", "/v1/models/half:predict", b'{"instances": [1.5, NaN]}'),
    request("POST", "/v1/models/pair:predict", b'{"inputs": {"a": [[1, 2]], "b": [3]}}'),
    request("POST", "/v1/models/str:predict", b'{"instances": [{"b64": "aGk="}]}'),
    request("POST", "/v1/models/half/versions/1:regress", b'{"examples": [{"x": 1}]}'),
    request("GET", "/v1/models/half/labels/old/metadata"),
    request(
        "POST", "/v2/models/half/infer", X.encode() + b"\0\0\0\0", f"Inference-Header-Content-Length: {len(X)}\r\n"
    ),
    request(
        "POST", "/v2/models/str/infer", b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}'
    ),
    request(
        "POST", "/models/half/invoke", NPY + b"\0\0\0\0", "Content-Type: application/x-npy\r\nAccept: text/csv\r\n"
    ),
    request("POST", "/models/half/invoke", b"1\n2\n", "Content-Type: text/csv\r\n"),
    request("POST", "/personalizer/v1.0/rank", b'{"actions": [{"id": "a", "features": [{"price": 1}]}, {"id": "b"}]}'),
    request("POST", "/personalizer/v1.0/events/e/reward", b'{"value": 1}'),
    request("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with log.Pen(tmp_path_factory.mktemp("log")) as pen:
        plane = plane_of(pen)
        plane.swap("shop", 1)
        versions = {"half": {1: plain.half()}, "pair": {1: plain.pair()}, "str": {1: plain.same("str")}}
        made = Running(plane, Settings(port=0, quiet_s=0.02), models=plain.models_of(versions, half={"old": 1}))
        yield made
        made.stop()


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def told(server: Running, data: bytes) -> int:
    """Status of the first answer; 0: the connection was ended, or the request was never whole."""
    with Client(server.port, timeout_s=10) as client:
        began = time.monotonic()
        client.sock.sendall(data)
        client.sock.shutdown(socket.SHUT_WR)
        try:
            line = client._in.readline()
            client._in.read()
        except ConnectionError:
            line = b""
        assert time.monotonic() - began < 5
        return int(line.split()[1]) if line else 0


def fuzz(server: Running, count: int, seed: int) -> Counter[int]:
    random = np.random.default_rng(seed)
    found: Counter[int] = Counter()
    for i in range(count):
        found[told(server, mutated(REQUESTS[i % len(REQUESTS)], random))] += 1
    return found


def test_every_request_is_right_before_it_is_mutated(server: Running) -> None:
    assert [told(server, data) for data in REQUESTS] == [200] * 9 + [201, 204, 200]


def check(server: Running, count: int, seed: int) -> None:
    fuzz(server, 200, seed + 1)
    before = resident_mb()
    found = fuzz(server, count, seed)
    assert found[500] == 0, found
    assert found[200] > count / 100 and found[400] > count / 2, found
    assert resident_mb() - before < 64
    assert told(server, REQUESTS[0]) == 200


def test_mutated_requests_never_break_the_server(server: Running) -> None:
    check(server, 1500, seed=0)


@pytest.mark.slow
def test_twenty_thousand_mutated_requests_never_break_the_server(server: Running) -> None:
    check(server, 20_000, seed=1)
