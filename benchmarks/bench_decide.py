"""Durable decides per second, against FastAPI + onnxruntime that predicts, written the usual way, and logs nothing.

The same net (128-128 over 16 context numbers and 10 candidates of 16), the same machine, 32 keep-alive connections,
rounds in turn, medians. Ours is asked with named fields and ids, draws with an exact propensity and answers when the
decision is on the disk. The peer is asked with bare arrays and answers scores.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from load import Load, ask, load, server
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


# -- the measurements ---------------------------------------------------------------------------------------------


def started(kind: str, folder: Path) -> tuple[str, ...]:
    """The command of a server."""
    return sys.executable, __file__, "--serve", kind, "--folder", str(folder)


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


@contextmanager
def on_disk() -> Iterator[Path]:
    """A folder on the disk of the repository: /tmp may be memory."""
    cache = Path(__file__).parent.parent / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="bench-decide-") as folder:
        yield Path(folder)


def measure(folder: Path, rounds: int, seconds: float, connections: int) -> dict[str, Any]:
    """The JSON line of this benchmark."""
    write_bodies(folder)
    routes = {"ours": "/v1/decide/bench", "peer": "/predict"}
    seen: dict[str, list[Load]] = {"ours": [], "peer": []}
    with server(*started("ours", folder)) as ours, server(*started("peer", folder)) as peer:
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
    figures["idle_decide_p50_ms"] = round(idle.p50_ms, 3)
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
    asked = parser.parse_args()
    if asked.serve:
        return serve_ours(asked.folder) if asked.serve == "ours" else serve_peer(asked.folder)
    with on_disk() as folder:
        print(json.dumps(measure(folder, asked.rounds, asked.seconds, asked.connections)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
