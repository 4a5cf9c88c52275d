"""Servers in processes of their own, and a closed loop of keep-alive connections against them."""

import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

WRK_SCRIPT = """
local bodies, i = {}, 0
function init(args)
  local headers = {["Content-Type"] = "application/json"}
  for line in io.lines(args[1]) do bodies[#bodies + 1] = wrk.format("POST", args[2], headers, line) end
end
function request() i = i % #bodies + 1; return bodies[i] end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests":%d,"us":%d,"p50":%d,"p99":%d,"errors":%d}\\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Load(NamedTuple):
    """What a load generator saw, and the processor time that the server used for it."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    requests: int


@contextmanager
def server(*command: str) -> Iterator[tuple[int, int]]:
    """A server in a process of its own, which prints its port; gives port and process id, ends it with SIGTERM."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()
            if process.wait(30) not in (0, -15):
                raise SystemExit(f"{' '.join(command[1:])} ended with {process.returncode}")


def cpu_s(pid: int) -> float:
    """Processor time of a process and all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(server: tuple[int, int], path: str, bodies: Path, connections: int, seconds: float) -> Load:
    """A closed loop of keep-alive connections, by wrk if it is here, else by our own generator.

    Args:
        bodies: a JSON body a line; or, for our own generator only, as msgpack, *.requests that are whole, or
            *.grpc from `grpc_requests`.
    """
    port, pid = server
    before = cpu_s(pid)
    wrk = shutil.which("wrk")
    if not wrk or bodies.suffix:
        command = [sys.executable, __file__, str(port), path, str(bodies), str(connections), str(seconds)]
    else:
        script = bodies.with_name("wrk.lua")
        script.write_text(WRK_SCRIPT)
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), f"http://127.0.0.1:{port}"]
        command += ["--", str(bodies), path]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seen = json.loads(out.splitlines()[-1])
    if seen["errors"]:
        raise SystemExit(f"{path}: {seen['errors']} of {seen['requests']} requests failed")
    per_s = seen["requests"] / seen["us"] * 1e6
    cpu_us = (cpu_s(pid) - before) / seen["requests"] * 1e6
    return Load(per_s, seen["p50"] / 1e3, seen["p99"] / 1e3, cpu_us, seen["requests"])


class Client:
    """One connection of our own generator: the next request leaves when the answer is complete."""

    def __init__(self, sock: socket.socket, requests: Sequence[bytes], first: int, latencies: list[float]) -> None:
        self._sock = sock
        self._requests = requests
        self._next = first
        self._latencies = latencies
        self._answer = b""
        self._length = b""  # the name of the header, in the letters that this server uses
        self.send()

    def send(self) -> None:
        """Ask the next question."""
        self._sent = time.perf_counter()
        self._next += 1
        self._sock.sendall(self._requests[self._next % len(self._requests)])

    def receive(self, data: bytes) -> None:
        """Take what came; ask on if that was all of an answer."""
        if self._answer:
            data = self._answer + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            if not self._length:
                at = data[:end].lower().index(b"content-length: ")
                self._length = data[at : at + 16]
            at = data.index(self._length, 0, end) + 16
            if len(data) >= end + 4 + int(data[at : data.index(b"\r\n", at)]):
                if not data.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(data.decode())
                self._latencies.append(time.perf_counter() - self._sent)
                self._answer = b""
                self.send()
                return
        self._answer = data


class GrpcClient:
    """One gRPC connection of our own generator: HTTP/2 frames, written by hand, one call at a time.

    grpcio's own client takes as much processor time for a call as its server, and would be what is measured.
    """

    def __init__(self, sock: socket.socket, requests: Sequence[bytes], first: int, latencies: list[float]) -> None:
        self._sock = sock
        self._requests = requests
        self._next = first
        self._latencies = latencies
        self._stream = -1
        self._in = b""
        self._data_bytes = 0
        settings = struct.pack(">HIHI", 1, 0, 4, 2**31 - 1)  # no table of headers; a window that never closes
        window = _frame(8, 0, 0, struct.pack(">I", 2**30))
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, settings) + window)
        self.send()

    def send(self) -> None:
        """Make the next call."""
        self._sent = time.perf_counter()
        self._next += 1
        self._stream += 2
        self._data_bytes = 0
        head, body = self._requests[0], self._requests[1 + self._next % (len(self._requests) - 1)]
        self._sock.sendall(_frame(1, 4, self._stream, head) + _frame(0, 1, self._stream, body))

    def receive(self, data: bytes) -> None:
        """Take what came; call on if that was all of an answer."""
        self._in += data
        while len(self._in) >= 9 and len(self._in) >= 9 + (size := int.from_bytes(self._in[:3])):
            kind, flags, payload = self._in[3], self._in[4], self._in[9 : 9 + size]
            self._in = self._in[9 + size :]
            if kind == 0:
                self._data_bytes += size
            elif kind in (3, 7):
                raise SystemExit(f"the server ends the stream: {payload!r}")
            elif kind in (4, 6) and not flags & 1:  # settings and pings want an answer
                self._sock.sendall(_frame(kind, 1, 0, payload if kind == 6 else b""))
            if kind in (0, 1) and flags & 1:
                if not self._data_bytes:  # only trailers: an error
                    raise SystemExit(f"refused: {payload!r}")
                self._latencies.append(time.perf_counter() - self._sent)
                self.send()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def grpc_requests(path: str, messages: Sequence[bytes]) -> list[bytes]:
    """What GrpcClient sends: the block of headers, then the body of each call."""
    block = b"\x83\x86"  # POST, http
    for name, value in (
        (b"\x04", path),
        (b"\x01", "x"),
        (b"\x0f\x10", "application/grpc"),
        (b"\x00\x02te", "trailers"),
    ):
        block += name + bytes([len(value)]) + value.encode()
    return [block, *(struct.pack(">BI", 0, len(message)) + message for message in messages)]


def request(path: str, body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    """A whole request."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def generate(port: int, path: str, bodies: Path, connections: int, seconds: float) -> None:
    """Our own generator; prints what the script of wrk prints."""
    kind = GrpcClient if bodies.suffix == ".grpc" else Client
    if bodies.suffix:
        requests = msgspec.msgpack.decode(bodies.read_bytes(), type=list[bytes])
    else:
        requests = [request(path, line) for line in bodies.read_bytes().splitlines()]
    latencies: list[float] = []
    poll, clients = select.epoll(), {}
    start = time.perf_counter()
    for i in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(sock, select.EPOLLIN)
        clients[sock.fileno()] = sock, kind(sock, requests, i * len(requests) // connections, latencies)
    while (elapsed := time.perf_counter() - start) < seconds:
        for number, _ in poll.poll(0.1):
            sock, client = clients[number]
            data = sock.recv(1 << 16)
            if not data:
                raise SystemExit("the server closed a connection")
            client.receive(data)
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1e6
    print(json.dumps({"requests": len(latencies), "us": elapsed * 1e6, "p50": p50, "p99": p99, "errors": 0}))


def ask(port: int, path: str, line: bytes) -> Any:
    """One request, its answer."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", line, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


if __name__ == "__main__":
    port, path, bodies, connections, seconds = sys.argv[1:]
    generate(int(port), path, Path(bodies), int(connections), float(seconds))
