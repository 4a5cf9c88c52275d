"""Durable decides per second, against FastAPI + onnxruntime that predicts, written the usual way, and logs nothing.

The same net (128-128 over 16 context numbers and 10 candidates of 16), the same machine, 32 keep-alive connections,
rounds in turn, medians. Ours is asked with named fields and ids, draws with an exact propensity and answers when the
decision is on the disk. The peer is asked with bare arrays and answers scores.
"""

import argparse
import asyncio
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import uvloop
from onnx import TensorProto, helper, numpy_helper

from peers import device
from steersman.core.decision import Decision, One, Problem
from steersman.core.features import Encoder, continuous
from steersman.core.policy import EpsilonGreedy
from steersman.core.version import Parents, Version
from steersman.log import Pen, read
from steersman.models import onnx as graphs
from steersman.serve import workers
from steersman.serve.plane import Live, Plane, time_ordered_id
from steersman.serve.settings import Settings

FIELDS, CANDIDATES, HIDDEN, BODIES = 16, 10, 128, 256
CONTEXT = tuple(f"c{i:02d}" for i in range(FIELDS))
FEATURES = tuple(f"f{i:02d}" for i in range(FIELDS))
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


# -- the net, for both --------------------------------------------------------------------------------------------


def weights() -> dict[str, np.ndarray]:
    """Of a net over encoded columns: value and missing indicator of every field."""
    random = np.random.default_rng(0)
    shapes = {"wc": (2 * FIELDS, HIDDEN), "wa": (2 * FIELDS, HIDDEN), "b0": (HIDDEN,)}
    shapes |= {"w1": (HIDDEN, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, 1)}
    return {name: (random.normal(size=s) / np.sqrt(s[0])).astype(np.float32) for name, s in shapes.items()}


def net(arrays: dict[str, np.ndarray]) -> bytes:
    """context [N, F], candidates [N, K, A] -> scores [N, K], as ONNX."""
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    constants.append(numpy_helper.from_array(np.array([1]), "one"))
    constants.append(numpy_helper.from_array(np.array([-1]), "last"))
    steps = [
        ("MatMul", ["context", "wc"], "c"),
        ("Unsqueeze", ["c", "one"], "c3"),
        ("MatMul", ["candidates", "wa"], "a"),
        ("Add", ["c3", "a"], "ca"),
        ("Add", ["ca", "b0"], "g0"),
        ("Relu", ["g0"], "h0"),
        ("MatMul", ["h0", "w1"], "m1"),
        ("Add", ["m1", "b1"], "g1"),
        ("Relu", ["g1"], "h1"),
        ("MatMul", ["h1", "w2"], "o"),
        ("Squeeze", ["o", "last"], "scores"),
    ]
    width = len(arrays["wc"])
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output]) for op, inputs, output in steps],
        "net",
        [
            helper.make_tensor_value_info("context", TensorProto.FLOAT, ["N", width]),
            helper.make_tensor_value_info("candidates", TensorProto.FLOAT, ["N", "K", width]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "K"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_bodies(folder: Path) -> None:
    """The same questions twice: one JSON body a line, named for us, bare for the peer."""
    random = np.random.default_rng(1)
    with (folder / "ours").open("w") as ours, (folder / "peer").open("w") as peer:
        for i in range(BODIES):
            context = [round(x, 5) for x in random.normal(size=FIELDS).tolist()]
            rows = [[round(x, 5) for x in row] for row in random.normal(size=(CANDIDATES, FIELDS)).tolist()]
            candidates = [
                {"id": f"item-{k}", "features": dict(zip(FEATURES, r, strict=True))} for k, r in enumerate(rows)
            ]
            body = {"unit": f"u{i}", "context": dict(zip(CONTEXT, context, strict=True)), "candidates": candidates}
            for file, data in ((ours, body), (peer, {"context": context, "candidates": rows})):
                file.write(json.dumps(data, separators=(",", ":")) + "\n")


# -- the servers --------------------------------------------------------------------------------------------------


def serve_ours(folder: Path) -> int:
    """Our server: commit durability on the disk that holds the folder."""
    encoder = Encoder(
        context=tuple(continuous(name, 2, 0.0, 1.0) for name in CONTEXT),
        candidate=tuple(continuous(name, 2, 0.0, 1.0) for name in FEATURES),
    )
    problem = Problem(
        name="bench",
        actions=One(),
        reward="clicks",
        wait_s=60.0,
        context=dict.fromkeys(CONTEXT, "number"),
        candidate=dict.fromkeys(FEATURES, "number"),
    )
    version = Version(
        name="bench",
        number=1,
        digest="bench",
        graph="model.onnx",
        encoder=encoder,
        explorer=EpsilonGreedy(0.1),
        seed="bench",
        parents=Parents("", "", ""),
        made_at=0,
    )
    graph = graphs.Graph(graphs.compose(encoder, net(weights())))

    def now() -> int:
        return time.time_ns() // 1000

    with Pen(folder / "log", durability="commit") as pen:
        plane = Plane(
            lambda name, number: Live(version, problem, graph.scores, rowwise=True),
            pen.append,
            now=now,
            new_id=lambda: time_ordered_id(now(), os.urandom(8)),
        )
        plane.swap("bench", 1)
        return workers.run(plane, Settings(port=0), on_ready=lambda port: print(port, flush=True), on_drained=pen.flush)


def serve_peer(folder: Path) -> int:
    """The peer: an async endpoint, a pydantic model, one session on one core, no logging at all."""
    import fastapi
    import onnxruntime
    import pydantic
    import uvicorn

    class Question(pydantic.BaseModel):
        context: list[float]
        candidates: list[list[float]]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # kinder to it than the default, which spins on every core
    values = {name: w[::2] if name in ("wc", "wa") else w for name, w in weights().items()}
    session = onnxruntime.InferenceSession(net(values), options, providers=["CPUExecutionProvider"])
    app = fastapi.FastAPI()

    @app.post("/predict")
    async def predict(question: Question) -> dict[str, list[float]]:
        context = np.array([question.context], dtype=np.float32)
        candidates = np.array([question.candidates], dtype=np.float32)
        [scores] = session.run(None, {"context": context, "candidates": candidates})
        return {"scores": scores[0].tolist()}

    sock = workers.bind(Settings(port=0))
    sock.listen(1024)  # who asks before uvicorn is up waits
    print(sock.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[sock])
    return 0


@contextmanager
def server(kind: str, folder: Path) -> Iterator[tuple[int, int]]:
    """A server in a process of its own; gives its port and process id, ends it with SIGTERM."""
    command = [sys.executable, __file__, "--serve", kind, "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()
            if process.wait(30) not in (0, -15):
                raise SystemExit(f"the {kind} server ended with {process.returncode}")


# -- the load -----------------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """Processor time of a process and all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(server: tuple[int, int], path: str, bodies: Path, connections: int, seconds: float) -> Load:
    """A closed loop of keep-alive connections, by wrk if it is here, else by our own generator."""
    port, pid = server
    before = cpu_s(pid)
    wrk = shutil.which("wrk")
    if not wrk:
        command = [sys.executable, __file__, "--load", str(port), path, str(bodies), str(connections), str(seconds)]
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


def generate(port: int, path: str, bodies: str, connections: int, seconds: float) -> None:
    """Our own generator; prints what the script of wrk prints."""
    requests = []
    for line in Path(bodies).read_bytes().splitlines():
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(line)}"
        requests.append(head.encode() + b"\r\n\r\n" + line)
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


# -- the measurements ---------------------------------------------------------------------------------------------


def ask(port: int, path: str, line: bytes) -> Any:
    """One request, its answer."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", line, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def check_same_net(ours: int, peer: int, folder: Path) -> None:
    """Both must know the same best candidate: ours gives it 1 - 0.1 + 0.1 / 10, the others 0.1 / 10."""
    pairs = zip((folder / "ours").read_bytes().splitlines(), (folder / "peer").read_bytes().splitlines(), strict=True)
    for named, bare in pairs:
        answer = ask(ours, "/v1/decide/bench", named)
        best = f"item-{int(np.argmax(ask(peer, '/predict', bare)['scores']))}"
        expected = 0.91 if answer["action"] == best else 0.01
        if abs(answer["propensity"] - expected) > 1e-12:
            raise SystemExit(f"{answer} but the peer's best is {best}")


def log_cost_us(folder: Path, line: bytes, records: int = 20_000, together: int = 32) -> float:
    """CPU of this process per record written with commit durability, in us."""
    more = {"id": "x" * 30, "problem": "bench", "at": 1, "action": "item-0", "propensity": 0.5, "version": 1}
    body = msgspec.json.encode(msgspec.convert({**msgspec.json.decode(line), **more}, Decision))
    with Pen(folder / "cost", durability="commit") as pen:
        start = time.process_time()
        for _ in range(records // together):
            pen.append([(b"D", body)] * together)
        pen.flush()
        return (time.process_time() - start) / records * 1e6


def measure(folder: Path, rounds: int, seconds: float, connections: int) -> dict[str, Any]:
    """The JSON line of this benchmark."""
    write_bodies(folder)
    routes = {"ours": "/v1/decide/bench", "peer": "/predict"}
    seen: dict[str, list[Load]] = {"ours": [], "peer": []}
    with server("ours", folder) as ours, server("peer", folder) as peer:
        check_same_net(ours[0], peer[0], folder)
        acknowledged = BODIES
        for round_ in range(-1, rounds):  # the first round warms up
            for kind, process in (("ours", ours), ("peer", peer)):
                result = load(process, routes[kind], folder / kind, connections, seconds if round_ >= 0 else 1)
                print(f"round {round_ + 1} {kind}:", ", ".join(f"{k} {v:,.2f}" for k, v in result._asdict().items()))
                acknowledged += result.requests if kind == "ours" else 0
                if round_ >= 0:
                    seen[kind].append(result)
        idle = load(ours, routes["ours"], folder / "ours", 1, 2)
    logged = sum(1 for _ in read(folder / "log"))
    if logged < acknowledged + idle.requests:
        raise SystemExit(f"{acknowledged + idle.requests} decisions were acknowledged, {logged} are in the log")
    figures = {
        f"{kind}_{name}": round(statistics.median(getattr(result, name) for result in results), 3)
        for kind, results in seen.items()
        for name in Load._fields[:-1]
    }
    figures["ours_idle_p50_ms"] = round(idle.p50_ms, 3)
    figures["log_cpu_us_per_record"] = round(log_cost_us(folder, (folder / "ours").read_bytes().splitlines()[0]), 2)
    return {
        "bench": "decide",
        "ratios": {"decide_durable_vs_fastapi_predict": round(figures["ours_per_s"] / figures["peer_per_s"], 3)},
        "figures": {**figures, "connections": connections, "rounds": rounds, "wrk": bool(shutil.which("wrk"))},
        "device": device(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        return serve_ours(asked.folder) if asked.serve == "ours" else serve_peer(asked.folder)
    if asked.load:
        port, path, bodies, connections, seconds = asked.load
        generate(int(port), path, bodies, int(connections), float(seconds))
        return 0
    cache = Path(__file__).parent.parent / ".cache"  # on the disk of the repository: /tmp may be memory
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="bench-decide-") as folder:
        print(json.dumps(measure(Path(folder), asked.rounds, asked.seconds, asked.connections)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
