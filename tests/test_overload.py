"""More than can be served: turns stay short, what waited too long is refused, and the server is as before after it."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_models as plain
from served import Client, Running, plane_of
from steersman import log
from steersman.serve.connection import PIPELINED, Connection
from steersman.serve.settings import Settings

PREDICT = "/v1/models/half:predict"
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@contextmanager
def running(tmp_path: Path, **settings: Any) -> Iterator[Running]:
    with log.Pen(tmp_path) as pen:
        models = plain.models_of({"half": {1: plain.half()}})
        made = Running(plane_of(pen), Settings(**{"port": 0, "quiet_s": 0.02, **settings}), models=models)
        try:
            yield made
        finally:
            made.stop()


def asked(count: int) -> bytes:
    """Requests, one behind the other; the answer to number i is i / 2 + 2."""
    bodies = [json.dumps({"instances": [float(i)]}).encode() for i in range(count)]
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n".encode()
    return b"".join(head % len(body) + body for body in bodies)


def answers(client: Client, count: int) -> list[int]:
    """Statuses; every answer that is one must be that to the question in its place."""
    statuses = []
    for i in range(count):
        status, headers, body = client.receive()
        statuses.append(status)
        if status == 200:
            assert body == {"predictions": [i / 2 + 2]}
        else:
            assert (status, headers["retry-after"], "waited" in body["error"]) == (503, "1", True)
    return statuses


def send(client: Client, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=client.sock.sendall, args=(data,))
    thread.start()
    return thread


def test_who_sends_much_at_once_gets_every_answer_in_order(tmp_path: Path) -> None:
    with running(tmp_path, stale_s=60) as server, Client(server.port) as client:
        sending = send(client, asked(5000))
        assert answers(client, 5000) == [200] * 5000
        sending.join()
        assert server.server.held_bytes == 0


def test_however_the_bytes_are_cut_every_request_has_its_answer(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with running(tmp_path, stale_s=60) as server:
        for _ in range(20):
            data, expected = b"", []
            for i in range(300):
                body = json.dumps({"instances": [float(i)]}).encode() + b" " * int(random.integers(3))
                kind = random.integers(6)
                if kind == 0:  # the head of another request, in a body
                    body = asked(1) + b"\r\n\r\n"
                if kind == 1:
                    data += b"GET /v1/live HTTP/1.1\r\nHost: x\r\n\r\n"
                elif kind == 2:
                    head = f"POST {PREDICT} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
                    data += head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
                else:
                    more = b"X-Number: %d\r\n" % i if kind == 3 else b""  # never the same head twice
                    data += f"POST {PREDICT} HTTP/1.1\r\n".encode() + more
                    data += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                expected.append(None if kind == 0 else {"live": True} if kind == 1 else {"predictions": [i / 2 + 2]})
            with Client(server.port) as client:
                cuts = np.sort(random.integers(len(data), size=int(random.integers(1, 60)))).tolist()
                for start, end in itertools.pairwise([0, *cuts, len(data)]):
                    client.sock.sendall(data[start:end])
                for one in expected:
                    status, _, body_ = client.receive()
                    assert (status, body_ if one else None) == (200 if one else 400, one)


def test_who_sends_much_at_once_does_not_keep_others_waiting(tmp_path: Path) -> None:
    with running(tmp_path, stale_s=60) as server, Client(server.port) as greedy, Client(server.port) as other:
        assert server.models is not None
        serving = server.models.find("half")
        many = 20_000
        sending = send(greedy, asked(many))
        taken = []
        for _ in range(5):
            before = serving.rows
            assert other.ask("POST", PREDICT, {"instances": [1.0]})[0] == 200
            taken.append(serving.rows - before)
        assert serving.rows < many
        assert min(taken) <= 4 * PIPELINED  # of the greedy one, while the other waited
        assert answers(greedy, many) == [200] * many
        sending.join()


def test_what_waited_too_long_is_refused_but_for_the_last_and_the_server_recovers(tmp_path: Path) -> None:
    with running(tmp_path, stale_s=1e-9) as server, Client(server.port) as client:
        for _ in range(3):  # once the heads are known they are refused many at a time
            sending = send(client, asked(2000))
            statuses = answers(client, 2000)
            sending.join()
            assert statuses.count(503) > 500
            assert (statuses[0], statuses[-1]) == (200, 200)
        assert server.plane.counts.failed > 1500
        assert [client.ask("POST", PREDICT, {"instances": [0.0]})[0] for _ in range(20)] == [200] * 20
        assert (server.server.waiting, server.server.held_bytes) == (0, 0)


def test_a_head_that_waited_too_long_is_refused_without_a_body(tmp_path: Path) -> None:
    asks, end = b"HEAD /v1/live HTTP/1.1\r\nHost: x\r\n\r\n", b'{"live":true}'
    with running(tmp_path, stale_s=1e-9) as server, Client(server.port) as client:
        for _ in range(3):
            sending = send(client, asks * 1000 + asks.replace(b"HEAD", b"GET"))
            found = b""
            while not found.endswith(end):
                found += client.sock.recv(1 << 16)
            sending.join()
            assert found.count(b"HTTP/1.1 503") > 500
            assert found.count(b"{") == 1


def test_who_asks_one_at_a_time_is_never_refused_for_being_late(tmp_path: Path) -> None:
    with running(tmp_path, stale_s=1e-9) as server:
        clients = [Client(server.port) for _ in range(40)]
        for _ in range(5):
            for client in clients:
                client.send("POST", PREDICT, b'{"instances": [0.0]}')
            assert [client.receive()[0] for client in clients] == [200] * 40
        for client in clients:
            client.close()


def test_whoever_ends_its_side_behind_many_requests_gets_the_answers_first(tmp_path: Path) -> None:
    with running(tmp_path, stale_s=60) as server, Client(server.port) as client:
        client.sock.sendall(asked(1000))
        client.sock.shutdown(socket.SHUT_WR)
        assert answers(client, 1000) == [200] * 1000
        assert client.closed()


def test_who_has_something_waiting_is_not_read_from_while_all_hold_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[bool] = []

    def received(connection: Connection, data: bytes) -> None:
        came.append(bool(connection._held))
        take(connection, data)

    take = Connection.data_received
    monkeypatch.setattr(Connection, "data_received", received)
    monkeypatch.setattr("steersman.serve.connection.ALL_HELD_BYTES", 0)
    with running(tmp_path, stale_s=60) as server, Client(server.port) as client:
        sending = send(client, asked(20_000))
        assert answers(client, 20_000) == [200] * 20_000
        sending.join()
    assert len(came) > 5 and not any(came)


def test_a_client_that_leaves_takes_what_it_sent_along(tmp_path: Path) -> None:
    with running(tmp_path, stale_s=60) as server:
        with Client(server.port) as client:
            client.sock.sendall(asked(3000))
        with Client(server.port) as other:
            while other.ask("GET", "/v1/status")[2]["server"]["connections"] > 1:
                pass
            assert server.server.held_bytes == 0
            assert other.ask("POST", PREDICT, {"instances": [0.0]})[0] == 200


@pytest.mark.slow
def test_twice_the_capacity_keeps_four_fifths_of_the_goodput(tmp_path: Path) -> None:
    models = tmp_path / "models" / "half" / "1"
    models.mkdir(parents=True)
    (models / "model.onnx").write_bytes(plain.half())
    bodies = tmp_path / "bodies"
    bodies.write_bytes(b'{"instances": [1.0, 2.0, 3.0]}')
    command = [
        sys.executable,
        "-m",
        "steersman",
        "serve",
        "--models",
        str(tmp_path / "models"),
        "--port",
        "0",
        "--json",
    ]
    script = "import json, sys, overload; from pathlib import Path; "
    script += "server = int(sys.argv[1]), int(sys.argv[2]); "
    script += "print(json.dumps(overload.goodput_at_2x(server, sys.argv[3], Path(sys.argv[4]), 5000, 5, 2)))"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            port = json.loads(server.stdout.readline())["url"].rpartition(":")[2]
            told = subprocess.run(
                [sys.executable, "-c", script, port, str(server.pid), PREDICT, str(bodies)],
                cwd=BENCHMARKS,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        finally:
            server.terminate()
    found = json.loads(told.splitlines()[-1])
    assert found["goodput_at_2x"] >= 0.8, told
    assert found["goodput_2x_shed_per_s"] > 0
