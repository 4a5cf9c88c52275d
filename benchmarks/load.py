"""Servers in processes of their own, and a closed loop of keep-alive connections against them."""

import asyncio
import functools
import json
import os
import shutil
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
import uvloop

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
        bodies: a JSON body a line; or, as *.requests, whole requests as msgpack, for our own generator only.
    """
    port, pid = server
    before = cpu_s(pid)
    wrk = shutil.which("wrk")
    if not wrk or bodies.suffix == ".requests":
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


class Client(asyncio.Protocol):
    """One connection of our own generator: the next request leaves when the answer is complete."""

    def __init__(self, requests: Sequence[bytes], first: int, latencies: list[float]) -> None:
        self._requests = requests
        self._next = first
        self._latencies = latencies
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._next += 1
        self._transport.write(self._requests[self._next % len(self._requests)])  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length):
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(self._answer.decode())
            self._latencies.append(time.perf_counter() - self._sent)
            self._answer = b""
            self._send()


def request(path: str, body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    """A whole request."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def generate(port: int, path: str, bodies: Path, connections: int, seconds: float) -> None:
    """Our own generator; prints what the script of wrk prints."""
    if bodies.suffix == ".requests":
        requests = msgspec.msgpack.decode(bodies.read_bytes(), type=list[bytes])
    else:
        requests = [request(path, line) for line in bodies.read_bytes().splitlines()]
    latencies: list[float] = []

    async def drive() -> float:
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        for i in range(connections):
            client = Client(requests, i * len(requests) // connections, latencies)
            await loop.create_connection(functools.partial(lambda same: same, client), "127.0.0.1", port)
        await asyncio.sleep(seconds)
        return time.perf_counter() - start

    elapsed = uvloop.run(drive())
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
