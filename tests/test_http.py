"""HTTP over real sockets: bad input is a 4xx and no line of the log, answers keep their order, nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from served import Client, Running, logged, plane_of
from steersman import log
from steersman.core.errors import ConfigError, ConflictError, Error
from steersman.serve import workers
from steersman.serve.settings import Settings

SHOP = {"unit": "u", "candidates": [{"id": "a", "features": {"price": 1}}, {"id": "b"}]}
BODY = json.dumps(SHOP).encode()
DECIDE = "/v1/decide/shop"
KEYS = {"error", "hint", "field"}


@contextmanager
def running(directory: Path, new_loop=workers.new_loop, record=None, **settings: Any) -> Iterator[Running]:
    with log.Pen(directory) as pen:
        plane = plane_of(pen)
        if record:
            plane._record = record
        plane.swap("shop", 1)
        plane.swap("light", 1)
        made = Running(plane, Settings(**{"port": 0, "quiet_s": 0.02, **settings}), new_loop)
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Running]:
    with running(directory, max_body_bytes=20_000) as made:
        yield made


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server.port) as made:
        yield made


# -- what a client may rely on ------------------------------------------------------------------------------------


def test_a_decision_over_http_is_in_the_log_with_the_same_propensity(server: Running, directory: Path) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as http:
        answer = http.post(DECIDE, json=SHOP)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        made = answer.json()
        assert set(made) == {"id", "action", "propensity", "version", "policy"}
        outcome = http.post("/v1/outcome", json={"decision": made["id"], "metrics": {"clicks": 1}})
        assert outcome.status_code == 200
    decisions, outcomes = logged(directory)
    [line] = [decision for decision in decisions if decision.id == made["id"]]
    assert (line.action, line.propensity, line.version) == (made["action"], made["propensity"], made["version"])
    assert [one.id for one in outcomes if one.decision == made["id"]] == outcome.json()["ids"]


def test_status_says_what_serves_and_how_much(client: Client) -> None:
    before = client.ask("GET", "/v1/status")[2]["counts"]
    client.ask("POST", DECIDE, SHOP)
    client.ask("POST", DECIDE, b"{")
    status, _, body = client.ask("GET", "/v1/status")
    assert status == 200
    assert body["policies"]["shop"] == {**body["policies"]["shop"], "version": 1, "digest": "digest 1", "error": None}
    assert body["log"] == {"durability": "commit", "error": ""}
    assert body["counts"]["decisions"] == before["decisions"] + 1
    assert body["counts"]["refused"] == before["refused"] + 1
    assert client.ask("GET", "/v1/live")[0] == 200
    assert client.ask("GET", "/v1/ready")[0] == 200


def test_pipelined_answers_come_in_the_order_of_their_requests(client: Client) -> None:
    """A bad request is refused at once and a status needs no disk: both must wait for the decisions before them."""
    asked = []
    for i in range(200):
        kind = i % 4
        asked.append((i, kind))
        if kind in (0, 1):
            client.send("POST", DECIDE, json.dumps({**SHOP, "id": f"pipe{i}"}).encode())
        elif kind == 2:
            client.send("POST", DECIDE, json.dumps({**SHOP, f"bad{i}": 1}).encode())
        else:
            client.send("GET", f"/v1/nothing{i}")
    for i, kind in asked:
        status, _, body = client.receive()
        if kind in (0, 1):
            assert (status, body["id"]) == (200, f"pipe{i}")
        elif kind == 2:
            assert (status, body["field"]) == (400, f"bad{i}")
        else:
            assert status == 404
            assert f"/v1/nothing{i}" in body["error"]


def test_a_request_may_arrive_byte_by_byte_and_in_chunks(client: Client) -> None:
    for byte in b"POST /v1/decide/shop HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n":
        client.sock.sendall(bytes([byte]))
    for byte in BODY:
        client.sock.sendall(b"1\r\n" + bytes([byte]) + b"\r\n")
    client.sock.sendall(b"0\r\nTrailer: x\r\n\r\n")
    assert client.receive()[0] == 200
    assert client.ask("POST", DECIDE, SHOP)[0] == 200


def test_who_expects_a_100_continue_gets_it_after_the_answers_before(client: Client) -> None:
    client.send("POST", DECIDE, json.dumps({**SHOP, "id": "before"}).encode())
    head = f"POST {DECIDE} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(BODY)}\r\n\r\n"
    client.sock.sendall(head.encode())
    assert client.receive()[2]["id"] == "before"
    assert client.receive()[0] == 100
    client.sock.sendall(BODY)
    assert client.receive()[0] == 200


def test_an_old_client_is_answered_and_closed_unless_it_asks_to_be_kept(server: Running) -> None:
    with Client(server.port) as client:
        client.sock.sendall(b"GET /v1/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        status, headers, _ = client.receive()
        assert (status, headers["connection"]) == (200, "keep-alive")
        client.sock.sendall(b"GET /v1/live HTTP/1.0\r\n\r\n")
        status, headers, _ = client.receive()
        assert (status, headers["connection"]) == (200, "close")
        assert client.closed()


def test_a_client_that_ends_its_side_still_gets_what_it_asked_for(server: Running) -> None:
    with Client(server.port) as client:
        client.send("POST", DECIDE, BODY)
        client.send("POST", DECIDE, BODY)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.receive()[0] == 200
        assert client.receive()[0] == 200
        assert client.closed()


@pytest.mark.parametrize("url", ["http://anywhere:1/v1/decide/shop", "/v1/decide/shop?x=%41", "/v1/decide/sh%6fp"])
def test_a_target_may_be_a_whole_url_have_a_query_or_be_quoted(client: Client, url: str) -> None:
    assert client.ask("POST", url, SHOP)[0] == 200


# -- bad input ----------------------------------------------------------------------------------------------------


def request(method: str = "POST", path: str = DECIDE, body: bytes = BODY, headers: str = "", length: object = None):
    length = len(body) if length is None else length
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n".encode() + body


def body_of(**changes: object) -> bytes:
    return request(body=json.dumps({**SHOP, **changes}).encode())


CHUNKED = f"POST {DECIDE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
DEEP = b'{"unit": "u", "context": ' + b'{"a":' * 3000 + b"1" + b"}" * 3001
BAD = {
    # the request itself: the connection goes on
    "unknown path": (404, request(path="/v1/decides/shop")),
    "root": (404, request(path="/")),
    "asterisk": (404, request(method="OPTIONS", path="*", body=b"")),
    "no policy": (404, request(path="/v1/decide/")),
    "unknown policy": (404, request(path="/v1/decide/shpo")),
    "policy with a slash": (404, request(path="/v1/decide/shop/1")),
    "endless policy": (404, request(path="/v1/decide/" + "x" * 5000)),
    "get of decide": (405, request(method="GET", body=b"")),
    "put of decide": (405, request(method="PUT")),
    "delete of outcome": (405, request(method="DELETE", path="/v1/outcome")),
    "post of status": (405, request(path="/v1/status")),
    "empty body": (400, request(body=b"")),
    "not json": (400, request(body=b"unit=u")),
    "half of the json": (400, request(body=BODY[: len(BODY) // 2])),
    "deep json": (400, request(body=DEEP)),
    "not utf-8": (400, request(body=b'{"unit": "\xff\xfe"}')),
    "nan": (400, request(body=b'{"unit": NaN}')),
    "a number over float64": (400, request(body=b'{"unit": "u", "context": {"age": 1e999}}')),
    "no unit": (400, request(body=b"{}")),
    "unit of the wrong type": (400, body_of(unit=[])),
    "unknown field": (400, body_of(units=1)),
    "unknown context field": (400, body_of(context={"ages": 1})),
    "text for a number": (400, body_of(context={"age": "old"})),
    "no candidates": (400, body_of(candidates=[])),
    "candidate twice": (400, body_of(candidates=[{"id": "a"}, {"id": "a"}])),
    "1001 candidates": (400, body_of(candidates=[{"id": f"{i}"} for i in range(1001)])),
    "unknown action": (400, request(path="/v1/decide/light", body=b'{"unit": "u", "candidates": [{"id": "dim"}]}')),
    "outcome without decision": (400, request(path="/v1/outcome", body=b"{}")),
    "outcomes, one of them bad": (400, request(path="/v1/outcome", body=b'[{"decision": "d"}, {"decision": 1}]')),
    "no outcomes": (400, request(path="/v1/outcome", body=b"[]")),
    # HTTP itself: the connection ends with the answer
    "body over the limit": (413, request(body=b" " * 20_001)),
    "declared body over the limit": (413, request(body=b"", length=10**12)),
    "chunked body over the limit": (413, CHUNKED + b"4000\r\n" + b" " * 0x4000 + b"\r\n" + b"4000\r\n" + b" " * 0x4000),
    "compressed by nobody knows what": (415, request(headers="Content-Encoding: br\r\n")),
    "other expectation": (417, request(headers="Expect: 200-ok\r\n")),
    "header over the limit": (431, request(headers="X: " + "x" * 17_000 + "\r\n")),
    "many headers": (431, request(headers="".join(f"X-{i}: {i}\r\n" for i in range(3000)))),
    "target over the limit": (431, request(path="/" + "x" * 17_000)),
    "header without end": (431, b"GET /v1/live HTTP/1.1\r\nX: " + b"x" * 200_000),
    "not http": (400, b"\x16\x03\x01\x02\x00\x01\x00"),
    "unknown method": (400, b"FETCH / HTTP/1.1\r\n\r\n"),
    "another version": (400, b"GET /v1/live HTTP/3.0\r\n\r\n"),
    "http/0.9": (400, b"GET /v1/live\r\n\r\n"),
    "http/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "upgrade": (400, b"GET /v1/live HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
    "upgrade of a post": (400, request(headers="Connection: Upgrade\r\nUpgrade: h2c\r\n")),
    "connect": (400, b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "length and chunks": (400, request(headers="Transfer-Encoding: chunked\r\n")),
    "two lengths": (400, request(headers="Content-Length: 3\r\n")),
    "negative length": (400, request(length=-1)),
    "length in words": (400, request(length="many")),
    "endless length": (400, request(length="9" * 40)),
    "zeros before a length over the limit": (413, request(length="0" * 5000 + "9" * 15)),
    "trailer without end": (
        431,
        b"POST /v1/decide/shop HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 200_000,
    ),
    "folded header": (400, b"GET /v1/live HTTP/1.1\r\nHost: x\r\n y\r\n\r\n"),
    "space before the colon": (400, b"GET /v1/live HTTP/1.1\r\nHost : x\r\n\r\n"),
    "bare line feeds": (400, b"GET /v1/live HTTP/1.1\nHost: x\n\n"),
    "chunk size in words": (400, CHUNKED + b"many\r\n"),
    "control character": (400, b"GET /v1/\x00live HTTP/1.1\r\nHost: x\r\n\r\n"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_4xx_with_its_reason_and_never_a_line_of_the_log(
    server: Running, directory: Path, case: str
) -> None:
    status, data = BAD[case]
    before = len(list(log.read(directory)))
    refused = server.plane.counts.refused
    with Client(server.port) as client:
        client.sock.sendall(data)
        got, headers, body = client.receive()
        assert (got, set(body)) == (status, KEYS)
        assert body["error"]
        assert len(json.dumps(body)) < 2000
        if headers.get("connection") == "close":
            client.sock.shutdown(socket.SHUT_WR)
            assert client.closed()
        else:
            assert client.ask("GET", "/v1/live")[0] == 200
    assert server.plane.counts.refused == refused + 1
    assert len(list(log.read(directory))) == before


def test_who_uses_the_wrong_method_is_told_the_right_one(client: Client) -> None:
    for method, path, allowed in (
        ("GET", DECIDE, "POST"),
        ("PATCH", "/v1/outcome", "POST"),
        ("POST", "/v1/live", "GET"),
    ):
        status, headers, _ = client.ask(method, path)
        assert (status, headers["allow"]) == (405, allowed)
    status, headers, _ = client.ask("HEAD", "/v1/live")
    assert (status, headers["allow"]) == (405, "GET")
    assert client.ask("GET", "/v1/live")[0] == 200  # no body of the HEAD's answer is in the way


def test_a_body_over_the_limit_is_refused_before_it_is_all_sent(server: Running) -> None:
    with Client(server.port) as client:
        client.sock.sendall(CHUNKED)
        sent = 0
        with pytest.raises(OSError):  # reset or broken, as the system likes
            while sent < 1 << 30:
                client.sock.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
                sent += 0x1000
    with Client(server.port) as client:
        client.sock.sendall(CHUNKED + (b"1000\r\n" + b" " * 0x1000 + b"\r\n") * 8)
        assert client.receive()[0] == 413
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to three bytes changed, some cut, some doubled."""
    out = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(out)))
        kind = random.random()
        if kind < 0.6:
            out[at] = random.integers(256) if random.random() < 0.5 else random.choice(list(b'0123456789{}[]",:.eE-'))
        elif kind < 0.8 and len(out) > 20:
            del out[at : at + int(random.integers(1, 9))]
        else:
            out[at:at] = out[at : at + int(random.integers(1, 30))]
    return bytes(out)


def test_thousands_of_broken_requests_break_nothing(server: Running, directory: Path) -> None:
    """Half of them are broken in their JSON only, half anywhere; each gets a 200 or a 4xx, if it is complete."""
    random = np.random.default_rng(0)
    good = [
        (DECIDE, json.dumps({**SHOP, "unit": "u" * 100}).encode()),
        ("/v1/decide/light", b'{"unit": "%b", "context": {"lux": 3.25}, "step": 345}' % (b"u" * 60)),
        ("/v1/outcome", b'[{"decision": "decision of another day", "metrics": {"clicks": 1}, "ends": "truncated"}]'),
    ]
    statuses: Counter[int] = Counter()
    for i in range(2400):
        path, body = good[i % 3]
        if i % 2:
            data = request(path=path, body=mutated(body, random))
        else:
            chunked = CHUNKED.replace(DECIDE.encode(), path.encode()) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            data = mutated(chunked if i % 4 else request(path=path, body=body), random)
        with Client(server.port) as client:
            client.sock.sendall(data)
            client.sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while True:
                    status, _, answer = client.receive()
                    statuses[status] += 1
                    assert status == 200 or (400 <= status < 500 and set(answer) == KEYS), (status, data)
    assert statuses[200] > 100
    assert statuses[400] > 1000
    with Client(server.port) as client:
        assert client.ask("POST", DECIDE, SHOP)[0] == 200
    assert {decision.problem for decision in logged(directory)[0]} == {"shop", "light"}


# -- too slow, too much -------------------------------------------------------------------------------------------


def test_slow_and_idle_clients_are_not_waited_for(tmp_path: Path) -> None:
    with running(tmp_path, idle_s=0.2, request_s=0.3) as server:
        with Client(server.port) as silent, Client(server.port) as slow, Client(server.port) as half:
            slow.sock.sendall(b"GET /v1/live HTTP/1.1\r\nX: ")
            half.sock.sendall(request(length=1000))
            assert silent.closed()
            for client in (slow, half):
                status, headers, body = client.receive()
                assert (status, headers["connection"], set(body)) == (408, "close", KEYS)
        with Client(server.port) as dripping, pytest.raises(OSError):  # reset or broken, as the system likes
            while True:
                dripping.sock.sendall(b"\r\n")  # blank lines before a request are no request


def test_a_client_that_never_reads_is_dropped(tmp_path: Path) -> None:
    with running(tmp_path, request_s=0.3) as server:
        with Client(server.port) as deaf:
            deaf.sock.settimeout(20)
            with pytest.raises(OSError):  # reset or broken, as the system likes
                while True:
                    deaf.sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        with Client(server.port) as client:
            assert client.ask("GET", "/v1/live")[0] == 200


def test_more_connections_than_allowed_are_told_so(tmp_path: Path) -> None:
    with running(tmp_path, max_connections=1) as server, Client(server.port) as first:
        assert first.ask("GET", "/v1/live")[0] == 200
        with Client(server.port) as second:
            status, headers, body = second.receive()
            assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
            assert set(body) == KEYS
        assert first.ask("GET", "/v1/live")[0] == 200


def test_more_waiting_requests_than_allowed_are_refused_at_once(tmp_path: Path) -> None:
    held: list = []
    with running(tmp_path, record=lambda *write: held.append(write), max_waiting=3) as server:
        waiting, other = Client(server.port), Client(server.port)
        with waiting, other:
            for _ in range(3):
                waiting.send("POST", DECIDE, BODY)
            while sum(len(records) for records, _ in held) < 3:
                pass
            status, headers, body = other.ask("POST", DECIDE, SHOP)
            assert (status, headers["retry-after"], set(body)) == (503, "1", KEYS)
            for _, done in held:
                done(None)
            assert [waiting.receive()[0] for _ in range(3)] == [200] * 3
            assert other.ask("GET", "/v1/live")[0] == 200


def test_when_the_log_fails_the_client_gets_a_503_and_may_try_again(tmp_path: Path) -> None:
    with running(tmp_path, record=lambda records, done: done(Error("the disk is gone"))) as server:
        client = Client(server.port)
        with client:
            status, headers, body = client.ask("POST", DECIDE, SHOP)
            assert (status, headers["retry-after"], set(body)) == (503, "1", KEYS)
            assert "the disk is gone" in body["error"]
            assert client.ask("GET", "/v1/status")[2]["log"]["error"] == "the disk is gone"
    assert list(log.read(tmp_path)) == []


def test_an_answer_for_a_client_that_left_is_dropped(tmp_path: Path) -> None:
    held: list = []
    with running(tmp_path, record=lambda records, done: held.append(done)) as server:
        with Client(server.port) as gone:
            gone.send("POST", DECIDE, BODY)
            while not held:
                with Client(server.port) as client:
                    client.ask("GET", "/v1/live")
            reset_on_close = struct.pack("ii", 1, 0)
            gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
        with Client(server.port) as client:
            while client.ask("GET", "/v1/status")[2]["server"]["connections"] > 1:
                pass
            held[0](None)
            while client.ask("GET", "/v1/status")[2]["server"]["waiting"] > 0:
                pass
            assert client.ask("GET", "/v1/live")[0] == 200


def test_plain_asyncio_serves_where_uvloop_is_missing(tmp_path: Path) -> None:
    with running(tmp_path, new_loop=asyncio.new_event_loop) as server, Client(server.port) as client:
        for _ in range(20):
            client.send("POST", DECIDE, BODY)
        assert [client.receive()[0] for _ in range(20)] == [200] * 20
        client.sock.sendall(b"nonsense\r\n\r\n")
        assert client.receive()[0] == 400
    assert len(logged(tmp_path)[0]) == 20


def test_settings_that_make_no_sense_are_refused() -> None:
    for name, value in (
        ("port", 70000),
        ("workers", 0),
        ("idle_s", 0),
        ("drain_s", float("nan")),
        ("max_body_bytes", -1),
    ):
        with pytest.raises(ConfigError) as caught:
            Settings(**{name: value})
        assert caught.value.field == name


def test_a_port_that_is_taken_is_a_conflict() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConflictError):
        workers.bind(Settings(port=taken.getsockname()[1]))
