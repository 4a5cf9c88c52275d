"""An open loop: requests leave at a fixed rate, whether or not those before have answers; and what of them is good.

A closed loop asks no faster than it is answered, so it can not overload a server. Here a process of its own sends each
request when it is due, over keep-alive connections in turn, one behind the other, and time counts from when it was due.
"""

import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np

from load import cpu_s, request

DEADLINE_S, WARM_S = 1.0, 1.0
MARK = b"HTTP/1.1 "
STEP = 1.4
CONNECTIONS = 64


class Seen(NamedTuple):
    """What an open loop saw, once it was warm, of the requests that were due in a second.

    Attributes:
        good_per_s: answers 200 within the deadline.
        shed_per_s: answers 503.
        late_per_s: answers 200 behind the deadline, and what was not answered at all.
        p99_ms: of those that were good.
    """

    sent_per_s: float
    good_per_s: float
    shed_per_s: float
    late_per_s: float
    p99_ms: float


class _Client:
    """A connection, what waits to be sent on it, and when its open requests were due."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.out = bytearray()
        self.due: deque[float] = deque()
        self._rest = b""

    def flush(self) -> None:
        """Send what the kernel takes."""
        while self.out:
            try:
                del self.out[: self.sock.send(self.out)]
            except BlockingIOError:
                return

    def statuses(self) -> list[bytes]:
        """Of the answers that came."""
        data = self._rest + self.sock.recv(1 << 18)
        if not data:
            raise SystemExit("the server closed a connection")
        found = []
        at = data.find(MARK)
        while 0 <= at <= len(data) - 12:
            found.append(data[at + 9 : at + 12])
            at = data.find(MARK, at + 12)
        self._rest = data[at:] if at >= 0 else data[-len(MARK) + 1 :]
        return found


def generate(port: int, path: str, bodies: Path, connections: int, rate: float, seconds: float) -> Seen:
    """Send at a rate for some seconds behind the warm-up, and wait for the answers."""
    requests = [request(path, line) for line in bodies.read_bytes().splitlines()]
    clients = [_Client(port) for _ in range(connections)]
    poll = selectors.DefaultSelector()
    for client in clients:
        poll.register(client.sock, selectors.EVENT_READ, client)
    good: list[float] = []
    shed = sent = 0
    start = time.perf_counter()
    warm, end = start + WARM_S, start + WARM_S + seconds
    while (now := time.perf_counter()) < end + DEADLINE_S:
        for i in range(sent, int((min(now, end) - start) * rate)):
            client = clients[i % connections]
            client.out += requests[i % len(requests)]
            client.due.append(start + i / rate)
            sent += 1
        for client in clients:
            client.flush()
        for key, _ in poll.select(0.001):
            for status in key.data.statuses():
                due = key.data.due.popleft()
                took = time.perf_counter() - due
                if due < warm:
                    continue
                if status == b"200" and took <= DEADLINE_S:
                    good.append(took)
                elif status == b"503":
                    shed += 1
                elif status != b"200":
                    raise SystemExit(f"status {status.decode()}")
        if now > end and not any(client.due for client in clients):
            break
    asked = sent - int(WARM_S * rate)
    p99_ms = float(np.quantile(good, 0.99) * 1e3) if good else float("nan")
    late = asked - len(good) - shed
    return Seen(asked / seconds, len(good) / seconds, shed / seconds, late / seconds, p99_ms)


def open_loop(port: int, path: str, bodies: Path, connections: int, rate: float, seconds: float) -> Seen:
    """The same in a process of its own."""
    command = [sys.executable, __file__, str(port), path, str(bodies), str(connections), str(rate), str(seconds)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Seen(**json.loads(out.splitlines()[-1]))


def goodput_at_2x(
    server: tuple[int, int], path: str, bodies: Path, capacity: float, rounds: int, seconds: float
) -> dict[str, float]:
    """Goodput at twice the capacity by the highest goodput, medians of rounds; and the same for its processor time.

    On a machine that is busy the server does not get the time at which it had its highest, hence the second.

    Args:
        server: port and process id.
        capacity: requests/s of a closed loop, where the search for the highest begins.
    """
    port, pid = server
    rows: list[tuple[float, float, Seen]] = []
    for _ in range(rounds):
        peak = peak_cpu = 0.0
        rate = capacity
        while True:
            before = cpu_s(pid)
            seen = open_loop(port, path, bodies, CONNECTIONS, rate, seconds)
            per_cpu = seen.good_per_s / (cpu_s(pid) - before)
            print(f"open loop, {rate:,.0f} requests/s:", ", ".join(f"{k} {v:,.1f}" for k, v in seen._asdict().items()))
            if rate == 2 * peak:
                break
            grew = seen.good_per_s > 1.05 * peak
            if seen.good_per_s > peak:
                peak, peak_cpu = seen.good_per_s, per_cpu
            rate = rate * STEP if grew else 2 * peak
        rows.append((seen.good_per_s / peak, per_cpu / peak_cpu, seen))
    ratios, by_cpu, at_twice = zip(*rows, strict=True)
    return {
        "goodput_at_2x": statistics.median(ratios),
        "goodput_cpu_at_2x": statistics.median(by_cpu),
        "goodput_2x_per_s": statistics.median(seen.good_per_s for seen in at_twice),
        "goodput_2x_p99_ms": statistics.median(seen.p99_ms for seen in at_twice),
        "goodput_2x_shed_per_s": statistics.median(seen.shed_per_s for seen in at_twice),
        "goodput_2x_late_per_s": statistics.median(seen.late_per_s for seen in at_twice),
    }


if __name__ == "__main__":
    port, path, bodies, *numbers = sys.argv[1:]
    connections, rate, seconds = (float(one) for one in numbers)
    print(json.dumps(generate(int(port), path, Path(bodies), int(connections), rate, seconds)._asdict()))
