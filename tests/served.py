"""A small policy for tests of serve: a real graph, a real log; as a program, its server in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from steersman import log
from steersman.core.decision import Decision, One, Outcome, Problem, decoder
from steersman.core.features import Category, Continuous, Encoder
from steersman.core.policy import EpsilonGreedy, Explorer
from steersman.core.version import Parents, Version
from steersman.models.graph import Graph
from steersman.models.onnx import compose
from steersman.serve import workers
from steersman.serve.board import Seat
from steersman.serve.http import Server
from steersman.serve.plane import Live, Plane, time_ordered_id
from steersman.serve.predicting import Models
from steersman.serve.settings import Settings

SHOP = Problem(
    name="shop",
    actions=One(),
    reward="clicks",
    wait_s=60.0,
    context={"age": "number", "country": "text"},
    candidate={"price": "number", "stars": "number"},
)
SHOP_ENCODER = Encoder(
    context=(Continuous("age", 40.0, 12.0), Category("country", ("de", "fr"))),
    candidate=(Continuous("price", 10.0, 5.0), Continuous("stars", 3.0, 1.0)),
)
LIGHT = Problem(name="light", actions=One(("off", "on")), reward="saved", wait_s=60.0, context={"lux": "number"})
LIGHT_ENCODER = Encoder(context=(Continuous("lux", 100.0, 50.0),), actions=("off", "on"))


def net(encoder: Encoder, hidden: int = 16, activation: str = "Relu", seed: int = 0) -> bytes:
    """A scorer with one hidden layer over context and candidate, as ONNX."""
    random = np.random.default_rng(seed)
    shapes = {"wc": (encoder.context_width, hidden), "wa": (encoder.candidate_width, hidden), "w2": (hidden, 1)}
    constants = [numpy_helper.from_array(random.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    constants += [numpy_helper.from_array(np.array([i]), n) for n, i in (("one", 1), ("last", -1))]
    nodes = [
        helper.make_node("MatMul", ["context", "wc"], ["c"]),
        helper.make_node("Unsqueeze", ["c", "one"], ["c3"]),
        helper.make_node("MatMul", ["candidates", "wa"], ["a"]),
        helper.make_node("Add", ["c3", "a"], ["ca"]),
        helper.make_node(activation, ["ca"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["o"]),
        helper.make_node("Squeeze", ["o", "last"], ["scores"]),
    ]
    inputs = [
        helper.make_tensor_value_info("context", TensorProto.FLOAT, ["N", encoder.context_width]),
        helper.make_tensor_value_info("candidates", TensorProto.FLOAT, ["N", "K", encoder.candidate_width]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "K"])]
    model = helper.make_model(
        helper.make_graph(nodes, "net", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    return model.SerializeToString()


def version(problem: Problem, encoder: Encoder, number: int = 1, explorer: Explorer | None = None) -> Version:
    """A version of the problem's policy; its epsilon tells its number: 0.01 a number, unless an explorer is given."""
    return Version(
        name=problem.name,
        number=number,
        digest=f"digest {number}",
        graph="model.onnx",
        encoder=encoder,
        explorer=explorer or EpsilonGreedy(number / 100),
        seed=f"seed {number}",
        parents=Parents("", "", ""),
        made_at=0,
    )


def load(name: str, number: int) -> Live:
    """Any version of the two policies; those above 90 do not load."""
    if number > 90:
        raise OSError(f"{name}/{number} is not there")
    problem, encoder = {"shop": (SHOP, SHOP_ENCODER), "light": (LIGHT, LIGHT_ENCODER)}[name]
    graph = Graph(compose(encoder, net(encoder, seed=number)))
    return Live(version(problem, encoder, number), problem, graph.scores)


def now() -> int:
    return time.time_ns() // 1000


def plane_of(pen: log.Pen, **options: Any) -> Plane:
    """A plane over a real log."""
    new_id: Callable[[], str] = lambda: time_ordered_id(now(), os.urandom(8))  # noqa: E731
    return Plane(load, pen.append, now=now, new_id=new_id, durability="commit", **options)


def logged(directory: Path) -> tuple[list[Decision], list[Outcome]]:
    """What is in the log."""
    decisions, outcomes = [], []
    as_decision, as_outcome = decoder(Decision), decoder(Outcome)
    for record in log.read(directory):
        if record.kind == log.DECISION:
            decisions.append(as_decision(record.body))
        else:
            outcomes.append(as_outcome(record.body))
    return decisions, outcomes


class Client:
    """One keep-alive connection that speaks HTTP/1.1 in bytes, so that nothing is repaired on the way."""

    def __init__(self, port: int, timeout_s: float = 20.0) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._in = self.sock.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._in.close()
        self.sock.close()

    def send(self, method: str, path: str, body: bytes = b"", headers: str = "") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self.sock.sendall(head.encode() + body)

    def receive(self, bare: bool = False) -> tuple[int, dict[str, str], dict]:
        """Status, headers, JSON; `bare`: of a HEAD, which has no body. ConnectionError: there is no answer."""
        line = self._in.readline()
        if not line:
            raise ConnectionError("closed")
        headers = {}
        while (header := self._in.readline().rstrip()) != b"":
            name, _, value = header.decode().partition(": ")
            headers[name.lower()] = value
        body = b"" if bare else self._in.read(int(headers.get("content-length", 0)))
        return int(line.split()[1]), headers, json.loads(body) if body else {}

    def ask(self, method: str, path: str, body: object = b"", headers: str = "") -> tuple[int, dict[str, str], dict]:
        self.send(method, path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)
        return self.receive(bare=method == "HEAD")

    def closed(self) -> bool:
        """Wait until the server ends the connection; True if nothing more came."""
        try:
            return self._in.read() == b""
        except ConnectionResetError:
            return True


class Running:
    """A server in a thread of this process, without signals."""

    def __init__(
        self,
        plane: Plane,
        settings: Settings,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = workers.new_loop,
        models: Models | None = None,
    ) -> None:
        self.plane = plane
        self.models = models
        self.loop = new_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(settings,), daemon=True)
        self._thread.start()
        assert self._up.wait(20)

    def _run(self, settings: Settings) -> None:
        self.loop.run_until_complete(self._main(settings))
        self.loop.close()

    async def _main(self, settings: Settings) -> None:
        with workers.bind(settings) as sock:
            self.server = Server(self.plane, settings, self.loop, self.models)
            self.port = sock.getsockname()[1]
            await self.server.listen(sock)
            spoken = await workers.listen_grpc(self.server) if settings.grpc_port is not None else None
            self._stop = asyncio.Event()
            self._up.set()
            await self._stop.wait()
            self.drained = all(await asyncio.gather(self.server.drain(), *([spoken.drain()] if spoken else [])))

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


# -- as a program -------------------------------------------------------------------------------------------------


def wanted_in(file: Path) -> dict[str, int]:
    return json.loads(file.read_text())


def want(directory: Path, **numbers: int) -> None:
    """Say which versions the server in this directory shall serve."""
    aside = directory / "wanted.new"
    aside.write_text(json.dumps(numbers))
    aside.replace(directory / "wanted.json")


@contextmanager
def process(directory: Path, **settings: float) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The server over this directory in a process; killed at the end, if it has not ended by itself."""
    command = [sys.executable, __file__, str(directory), json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            yield running, int(running.stdout.readline())
        finally:
            if running.poll() is None:
                running.kill()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("settings", type=json.loads)
    asked = parser.parse_args()
    settings = Settings(**{"port": 0, "poll_s": 0.05, **asked.settings})

    def ready(port: int) -> None:
        print(port, flush=True)  # noqa: T201

    def work(seat: Seat | None, sock: socket.socket | None, on_ready: Callable[[int], None]) -> int:
        with log.Pen(asked.directory / "log") as pen:
            return workers.run(
                plane_of(pen),
                settings,
                wanted=lambda: wanted_in(asked.directory / "wanted.json"),
                on_ready=on_ready,
                on_drained=pen.flush,
                sock=sock,
                seat=seat,
            )

    return work(None, None, ready) if settings.workers == 1 else workers.supervise(settings, work, ready)


class Clients:
    """Threads that each ask one question after the other until they are told to stop or the server is gone."""

    def __init__(self, port: int, threads: int, question: Callable[[int, int], bytes], path: str) -> None:
        self.answers: list[tuple[dict, int, int]] = []
        self.failures: list[object] = []
        self.sent: list[int] = [0] * threads
        self._stop = threading.Event()
        self._enough = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, args=(i, port, question, path), daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int, port: int, question: Callable[[int, int], bytes], path: str) -> None:
        while not self._stop.is_set():
            try:
                client = Client(port)
            except OSError:
                return
            with client:
                if not self._talk(client, index, question, path):
                    return

    def _talk(self, client: Client, index: int, question: Callable[[int, int], bytes], path: str) -> bool:
        """Whether another connection makes sense."""
        while not self._stop.is_set():
            self.sent[index] += 1
            began = time.monotonic_ns()
            try:
                client.send("POST", path, question(index, self.sent[index]))
                status, headers, answer = client.receive()
            except OSError as error:
                self.failures.append(error)
                return False
            with self._enough:
                if status == 200:
                    self.answers.append((answer, began, time.monotonic_ns()))
                else:
                    self.failures.append((status, answer))
                self._enough.notify_all()
            if headers.get("connection") == "close":
                return True
        return False

    def wait_for(self, count: int) -> None:
        """Until there are this many answers, or a failure."""
        with self._enough:
            assert self._enough.wait_for(lambda: len(self.answers) >= count or self.failures, timeout=60)

    def stop(self) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive()


if __name__ == "__main__":
    sys.exit(main())
