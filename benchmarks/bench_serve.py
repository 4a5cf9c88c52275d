"""Requests per second, against FastAPI + onnxruntime written the usual way, and against other model servers.

One net (32-128-128-16) for all, one worker each, 32 keep-alive connections, the load generator on the same machine,
rounds in turn, medians. Every answer of every server is checked against onnxruntime first. The other servers live in
environments of their own (benchmarks/peers.py) and are left out, with a message, where they can not be had. Then what
an open loop at twice the capacity leaves of the goodput (overload.py), what loading costs those who are served
meanwhile (swap.py), and decides that are durable before the answer (bench_decide.py).
"""

import argparse
import functools
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import onnx
import onnxruntime
import psutil
import uvloop
from onnx import TensorProto, helper, numpy_helper

import bench_decide
from load import Load, ask, grpc_requests, load, request, server
from overload import goodput_at_2x
from peers import device, environment
from steersman.serve import tfserving_grpc, workers
from steersman.serve.settings import Settings
from swap import swap_p99_vs_steady

SIZES, BODIES = (32, 128, 128, 16), 256
MANY = 16
GRPC = ("ours grpc", "grpcio")
BINARY = {"ours binary": 1, "ours binary 16 rows": MANY}
"""Name -> rows of a request."""

PEERS = {
    "litserve": ("litserve", "litserve==0.2.19", "onnxruntime"),
    "mlserver": ("mlserver", "mlserver==1.7.1", "onnxruntime", "uvloop==0.21.0"),
    "bentoml": ("bentoml", "bentoml==1.4.39", "onnxruntime"),
}
"""Name -> the module, and what pip installs. MLServer dies on a newer uvloop."""

PREDICT = "/tensorflow.serving.PredictionService/Predict"
INFER = "/v2/models/mlp/infer"
PATHS = {
    "ours": "/v1/models/mlp:predict",
    "ours 16 rows": "/v1/models/mlp:predict",
    "ours infer": INFER,
    "ours binary": INFER,
    "ours binary 16 rows": INFER,
    "ours grpc": PREDICT,
    "grpcio": PREDICT,
    "fastapi": "/predict",
    "litserve": "/predict",
    "mlserver": INFER,
    "bentoml": "/predict",
}


def net() -> bytes:
    """The net as ONNX."""
    random = np.random.default_rng(0)
    constants, nodes, at = [], [], "x"
    for i, (wide, high) in enumerate(itertools.pairwise(SIZES)):
        weight = (random.normal(size=(wide, high)) / np.sqrt(wide)).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"w{i}"))
        last = i == len(SIZES) - 2
        nodes.append(helper.make_node("MatMul", [at, f"w{i}"], ["y" if last else f"m{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"h{i}"]))
        at = f"h{i}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", SIZES[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", SIZES[-1]])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(BODIES, SIZES[0])).round(5).astype(np.float32)


def in_requests(count: int) -> np.ndarray:
    """The rows, so many in each request."""
    return rows().reshape(-1, count, SIZES[0])


def as_lists(block: np.ndarray) -> list[list[float]]:
    return [[round(float(x), 5) for x in row] for row in block]


def as_infer(block: np.ndarray, binary: bool) -> dict[str, Any]:
    one: dict[str, Any] = {"name": "x", "shape": list(block.shape), "datatype": "FP32"}
    one |= (
        {"parameters": {"binary_data_size": block.nbytes}}
        if binary
        else {"data": [x for row in as_lists(block) for x in row]}
    )
    return {"inputs": [one], **({"outputs": [{"name": "y", "parameters": {"binary_data": True}}]} if binary else {})}


def as_binary(block: np.ndarray) -> tuple[bytes, int]:
    """A body with its numbers behind the JSON, and how much of it is that."""
    text = json.dumps(as_infer(block, binary=True)).encode()
    return text + block.tobytes(), len(text)


def as_predict(row: np.ndarray) -> bytes:
    """A PredictRequest with its values in tensor_content, as TensorFlow's clients make it."""
    made = tfserving_grpc.PredictRequest()
    made.model_spec.name = "mlp"
    tensor = made.inputs["x"]
    tensor.dtype = 1
    for size in (1, len(row)):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = row.tobytes()
    return made.SerializeToString()


def write_bodies(folder: Path) -> None:
    """The same questions in the words of each server."""
    one, many = ([json.dumps({"instances": as_lists(block)}) for block in in_requests(count)] for count in (1, MANY))
    infers = [json.dumps(as_infer(block, binary=False)) for block in in_requests(1)]
    lines = {**dict.fromkeys(("ours", "fastapi", "litserve", "bentoml"), one), "ours 16 rows": many}
    for name, bodies in {**lines, **dict.fromkeys(("mlserver", "ours infer"), infers)}.items():
        (folder / name).write_text("\n".join(bodies))
    for name, count in BINARY.items():
        requests = []
        for block in in_requests(count):
            body, json_bytes = as_binary(block)
            more = f"Inference-Header-Content-Length: {json_bytes}\r\n"
            requests.append(request(INFER, body, "application/octet-stream", more))
        (folder / f"{name}.requests").write_bytes(msgspec.msgpack.encode(requests))
    calls = grpc_requests(PREDICT, [as_predict(row) for row in rows()])
    for name in GRPC:
        (folder / f"{name}.grpc").write_bytes(msgspec.msgpack.encode(calls))


def bodies_of(folder: Path, name: str) -> Path:
    kinds = {**dict.fromkeys(BINARY, ".requests"), **dict.fromkeys(GRPC, ".grpc")}
    return folder / f"{name}{kinds.get(name, '')}"


# -- the servers --------------------------------------------------------------------------------------------------


def serve_fastapi(folder: Path) -> int:
    """The norm: an async endpoint, a pydantic model, one session on one core."""
    import fastapi
    import pydantic
    import uvicorn

    class Question(pydantic.BaseModel):
        instances: list[list[float]]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # kinder to it than the default, which spins on every core
    session = onnxruntime.InferenceSession(str(folder / "mlp.onnx"), options, providers=["CPUExecutionProvider"])
    app = fastapi.FastAPI()

    @app.post("/predict")
    async def predict(question: Question) -> dict[str, list[list[float]]]:
        [y] = session.run(None, {"x": np.array(question.instances, dtype=np.float32)})
        return {"predictions": y.tolist()}

    sock = workers.bind(Settings(port=0))
    sock.listen(1024)  # who asks before uvicorn is up waits
    print(sock.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[sock])
    return 0


def serve_grpcio(folder: Path) -> int:
    """The norm of gRPC: grpcio.aio with the messages' own (de)serializers, one session on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "mlp.onnx"), options, providers=["CPUExecutionProvider"])
    request_kind, response_kind = tfserving_grpc.PredictRequest, tfserving_grpc.PredictResponse

    async def predict(asked: Any, _: grpc.aio.ServicerContext) -> Any:
        tensor = asked.inputs["x"]
        shape = [dim.size for dim in tensor.tensor_shape.dim]
        [y] = session.run(None, {"x": np.frombuffer(tensor.tensor_content, np.float32).reshape(shape)})
        response = response_kind()
        response.model_spec.name = asked.model_spec.name
        output = response.outputs["y"]
        output.dtype = 1
        for size in y.shape:
            output.tensor_shape.dim.add(size=size)
        output.float_val.extend(y.ravel().tolist())
        return response

    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            predict, request_deserializer=request_kind.FromString, response_serializer=response_kind.SerializeToString
        )
        service, method = PREDICT[1:].split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await server.wait_for_termination()

    uvloop.run(main())
    return 0


@contextmanager
def ours(folder: Path) -> Iterator[tuple[int, int, int]]:
    """`steersman serve` over a directory of models: its port, that of gRPC, and its process id."""
    command = [sys.executable, "-m", "steersman", "serve", "--models", str(folder / "models"), "--port", "0", "--json"]
    command += ["--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            port, grpc_port = (int(said[name].rpartition(":")[2]) for name in ("url", "grpc"))
            yield port, grpc_port, process.pid
        finally:
            process.terminate()
            if process.wait(30):
                raise SystemExit(f"our server ended with {process.returncode}")


@contextmanager
def peer(name: str, python: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """Another model server, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(__file__).with_name("serve_peers.py")
    command = [str(python), str(script), name, str(folder), str(port)]
    question = (folder / name).read_bytes().splitlines()[0]
    with (folder / f"{name}.log").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder)
        try:
            for _ in range(120):
                try:
                    ask(port, PATHS[name], question)
                    break
                except OSError:
                    if process.poll() is not None:
                        raise unanswered(name, folder) from None
                    time.sleep(0.5)
            else:
                raise unanswered(name, folder)
            yield port, process.pid
        finally:
            tree = [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
            for one in tree:
                one.terminate()
            process.wait(30)


def unanswered(name: str, folder: Path) -> SystemExit:
    return SystemExit(f"{name} does not answer: {(folder / f'{name}.log').read_text()[-2000:]}")


# -- the measurements ---------------------------------------------------------------------------------------------


def predictions(name: str, port: int, line: bytes) -> np.ndarray:
    answer = ask(port, PATHS[name], line)
    return np.array(answer["outputs"][0]["data"] if PATHS[name] == INFER else answer["predictions"])


def check(name: str, port: int, folder: Path) -> None:
    """Every answer must be onnxruntime's."""
    session = onnxruntime.InferenceSession(str(folder / "mlp.onnx"), providers=["CPUExecutionProvider"])
    [expected] = session.run(None, {"x": rows()})
    if name in GRPC:
        found = [predict_grpc(port, row) for row in rows()]
    elif name in BINARY:
        found = [infer_binary(port, block) for block in in_requests(BINARY[name])]
    else:
        found = [predictions(name, port, line) for line in (folder / name).read_bytes().splitlines()]
    np.testing.assert_allclose(np.concatenate([one.ravel() for one in found]), expected.ravel(), atol=1e-6)


def predict_grpc(port: int, row: np.ndarray) -> np.ndarray:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = channel.unary_unary(PREDICT)(as_predict(row), timeout=10)
    return np.array(tfserving_grpc.PredictResponse.FromString(answer).outputs["y"].float_val)


def infer_binary(port: int, block: np.ndarray) -> np.ndarray:
    body, json_bytes = as_binary(block)
    headers = {"Inference-Header-Content-Length": str(json_bytes), "Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{INFER}", body, headers)) as answer:
        length = int(answer.headers["Inference-Header-Content-Length"])
        return np.frombuffer(answer.read()[length:], dtype=np.float32)


def measure(folder: Path, rounds: int, seconds: float, connections: int, peers: dict[str, Path]) -> dict[str, Any]:
    """The JSON line of this benchmark."""
    write_bodies(folder)
    (folder / "mlp.onnx").write_bytes(net())
    (folder / "models" / "mlp" / "1").mkdir(parents=True)
    (folder / "models" / "mlp" / "1" / "model.onnx").write_bytes(net())
    seen: dict[str, list[Load]] = {}
    with ExitStack() as stack:
        began = time.perf_counter()
        port, grpc_port, pid = stack.enter_context(ours(folder))
        ready_s = time.perf_counter() - began
        figures: dict[str, float] = {"ready_s": ready_s, "rss_mb": psutil.Process(pid).memory_info().rss / 1e6}
        running = dict.fromkeys(
            ("ours", "ours infer", "ours binary", "ours 16 rows", "ours binary 16 rows"), (port, pid)
        )
        running["ours grpc"] = grpc_port, pid
        for name in ("fastapi", "grpcio"):
            command = (sys.executable, __file__, "--serve", name, "--folder", str(folder))
            running[name] = stack.enter_context(server(*command))
        for name, python in peers.items():
            running[name] = stack.enter_context(peer(name, python, folder))
        for name, (port, _) in running.items():
            check(name, port, folder)
        for round_ in range(-1, rounds):  # the first round warms up
            for name, process in running.items():
                result = load(process, PATHS[name], bodies_of(folder, name), connections, seconds if round_ >= 0 else 1)
                print(f"round {round_ + 1} {name}:", ", ".join(f"{k} {v:,.2f}" for k, v in result._asdict().items()))
                if round_ >= 0:
                    seen.setdefault(name, []).append(result)
        mine = running["ours"]
        busy = functools.partial(load, mine, PATHS["ours"], folder / "ours", connections, seconds)
        figures |= goodput_at_2x(mine, PATHS["ours"], folder / "ours", seen["ours"][0].per_s, rounds, seconds)
        figures["swap_p99_vs_steady"], figures["swaps"] = swap_p99_vs_steady(folder / "models", mine[0], busy, rounds)
    with bench_decide.on_disk() as place:
        decide = bench_decide.measure(place, rounds, seconds, connections)
    return report(seen, figures, list(peers), decide)


def report(
    seen: dict[str, list[Load]], figures: dict[str, float], peers: list[str], decide: dict[str, Any]
) -> dict[str, Any]:
    """Ratios of medians.

    Args:
        decide: the JSON line of bench_decide.
    """

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(result, field) for result in seen[name])

    ratios = {
        "predict_vs_fastapi": median("ours", "per_s") / median("fastapi", "per_s"),
        "p99_vs_fastapi": median("ours", "p99_ms") / median("fastapi", "p99_ms"),
        "binary_vs_json": median("ours binary", "per_s") / median("ours", "per_s"),
        "binary_vs_json_cpu": median("ours", "cpu_us") / median("ours binary", "cpu_us"),
        "binary_vs_infer_json": median("ours binary", "per_s") / median("ours infer", "per_s"),
        "binary_vs_json_16_rows": median("ours binary 16 rows", "per_s") / median("ours 16 rows", "per_s"),
        "grpc_vs_grpcio": median("ours grpc", "per_s") / median("grpcio", "per_s"),
        "grpc_cpu_vs_grpcio": median("ours grpc", "cpu_us") / median("grpcio", "cpu_us"),
        "cpu_vs_fastapi": median("ours", "cpu_us") / median("fastapi", "cpu_us"),
        **{name: figures.pop(name) for name in ("goodput_at_2x", "goodput_cpu_at_2x")},
        **decide["ratios"],
    }
    if peers:
        ratios["predict_vs_best_peer"] = median("ours", "per_s") / max(median(name, "per_s") for name in peers)
    for name in seen:
        for field in Load._fields[: 3 if name in peers else -1]:  # a peer's work is done by processes of its own
            figures[f"{name.replace(' ', '_')}_{field}"] = median(name, field)
    for name in ("idle_decide_p50_ms", "log_cpu_us_per_record"):
        figures[name] = decide["figures"][name]
    figures |= {f"decide_{name}": decide["figures"][name] for name in ("ours_per_s", "ours_p99_ms", "peer_per_s")}
    return {
        "bench": "serve",
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "figures": {name: round(value, 3) for name, value in figures.items()},
        "device": device(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--serve", choices=("fastapi", "grpcio"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        return serve_fastapi(asked.folder) if asked.serve == "fastapi" else serve_grpcio(asked.folder)
    found = {name: environment(name, PEERS[name][0], PEERS[name][1:]) for name in asked.peers}
    peers = {name: python for name, python in found.items() if python}
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
        print(json.dumps(measure(Path(folder), asked.rounds, asked.seconds, asked.connections, peers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
