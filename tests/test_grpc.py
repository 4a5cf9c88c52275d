"""gRPC: what unmodified tritonclient and tensorflow-serving-api get, and what bytes of all kinds do."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import client_environment
import described
import plain_models as plain
import product
import triton_client
from served import Client, Running, plane_of
from steersman import log
from steersman.core.errors import ConflictError, Error
from steersman.core.signature import Signature, Tensor
from steersman.serve import kserve_grpc, messages, tfserving_grpc, workers
from steersman.serve.messages import message, parse
from steersman.serve.predicting import Model
from steersman.serve.settings import Settings

PREDICT = "/tensorflow.serving.PredictionService/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
CHECK = "/grpc.health.v1.Health/Check"
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with log.Pen(tmp_path_factory.mktemp("log")) as pen:
        models = plain.shelved(tmp_path_factory.mktemp("models"))
        plane = plane_of(pen)
        plane.swap("shop", 1)
        with workers.holding_grpc(Settings(port=0, grpc_port=0, quiet_s=0.02, max_body_bytes=1 << 16)) as settings:
            made = Running(plane, settings, models=models)
            yield made
            made.stop()


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.server.settings.grpc_port}") as made:
        yield made


def ours() -> str:
    """Our messages, as JSON."""
    files = [messages._POOL.FindFileByName(f"{package}.proto") for package in messages._TABLES]
    every = [one for file in files for one in file.message_types_by_name.values()]
    return json.dumps({one.full_name: described.described(one) for one in every})


def told_by(client: str, script: str, server: Running) -> dict[str, str]:
    assert server.models is not None
    port = server.server.settings.grpc_port
    return client_environment.ask(client, script, "grpc", port, ours(), ",".join(server.models.names))


@pytest.fixture(scope="module")
def told_triton(server: Running) -> dict[str, str]:
    return told_by("tritonclient", "triton_client.py", server)


@pytest.mark.parametrize("check", [check.__name__ for check in triton_client.CHECKS])
def test_tritonclient_over_grpc(told_triton: dict[str, str], check: str) -> None:
    assert told_triton[check] == ""


def test_the_stubs_of_tensorflow_serving(server: Running) -> None:
    told = told_by("tensorflow-serving-api", "serving_client.py", server)
    assert not (failed := "\n".join(filter(None, told.values()))), failed
    assert len(told) == 11


# -- bytes --------------------------------------------------------------------------------------------------------


def call(channel: grpc.Channel, path: str, body: bytes) -> bytes:
    return channel.unary_unary(path)(body, timeout=20)


def code_of(channel: grpc.Channel, path: str, body: bytes) -> tuple[Code, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, path, body)
    return caught.value.code(), caught.value.details()


def question(rows: np.ndarray, model: str = "mlp") -> bytes:
    request = tfserving_grpc.PredictRequest()
    request.model_spec.name = model
    tfserving_grpc.to_proto(rows, str(rows.dtype), request.inputs["x"])
    return request.SerializeToString()


def answer(body: bytes) -> np.ndarray:
    y = parse(tfserving_grpc.PredictResponse, body).outputs["y"]
    return np.array(y.float_val, np.float32).reshape([dim.size for dim in y.tensor_shape.dim])


def test_grpc_and_rest_give_the_same_bits(server: Running, channel: grpc.Channel) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with Client(server.port) as client:
        _, _, rest = client.ask("POST", "/v1/models/mlp:predict", {"instances": x.tolist()})
    found = answer(call(channel, PREDICT, question(x)))
    np.testing.assert_array_equal(found, np.array(rest["predictions"], np.float32))
    w0, w1 = plain.weights(4, 8, 3)
    np.testing.assert_allclose(found, np.maximum(x @ w0, 0) @ w1, rtol=1e-5)


def test_bytes_that_are_no_message_are_invalid_and_methods_that_are_not_there_unimplemented(
    channel: grpc.Channel,
) -> None:
    for path in (PREDICT, INFER, CHECK):
        code, details = code_of(channel, path, b"\xff\xff\xff")
        assert (code, details[:6]) == (Code.INVALID_ARGUMENT, "not a ")
    assert code_of(channel, "/tensorflow.serving.PredictionService/Nothing", b"")[0] == Code.UNIMPLEMENTED
    code, details = code_of(channel, PREDICT, bytes(1 << 17))
    assert (code, "larger" in details) == (Code.RESOURCE_EXHAUSTED, True)


def test_a_watch_without_a_message_is_invalid_and_more_than_may_watch_are_told_so(tmp_path: Path) -> None:
    with (
        log.Pen(tmp_path / "log") as pen,
        workers.holding_grpc(Settings(port=0, grpc_port=0, quiet_s=0.02, max_connections=1)) as settings,
        grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel,
    ):
        running = Running(plane_of(pen), settings, models=plain.models_of({"half": {1: plain.half()}}))
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                next(watch(b"\xff\xff\xff", timeout=20))
            assert caught.value.code() == Code.INVALID_ARGUMENT
        first = watch(b"", timeout=20)
        assert next(first) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(b"", timeout=20))
        assert caught.value.code() == Code.UNAVAILABLE
        first.cancel()
        deadline, told = time.monotonic() + 20, b""
        while not told:  # until the server has noticed
            assert time.monotonic() < deadline
            with contextlib.suppress(grpc.RpcError):
                told = next(watch(b"", timeout=20))
        assert told == b"\x08\x01"
        running.stop()


def test_a_task_is_done_once(channel: grpc.Channel) -> None:
    request = tfserving_grpc.MultiInferenceRequest()
    for _ in range(2):
        request.tasks.add(method_name="tensorflow/serving/regress").model_spec.name = "mlp"
    code, details = code_of(
        channel, "/tensorflow.serving.PredictionService/MultiInference", request.SerializeToString()
    )
    assert (code, details[:9]) == (Code.INVALID_ARGUMENT, "Duplicate")


def test_a_shape_that_no_array_has_is_invalid(channel: grpc.Channel) -> None:
    request = tfserving_grpc.PredictRequest()
    request.model_spec.name = "mlp"
    tfserving_grpc.to_proto(np.ones((1,) * 4, np.float32), "float32", request.inputs["x"])
    for _ in range(66):
        request.inputs["x"].tensor_shape.dim.add(size=1)
    code, details = code_of(channel, PREDICT, request.SerializeToString())
    assert (code, "70 axes" in details) == (Code.INVALID_ARGUMENT, True)


def mutated(whole: bytes, random: np.random.Generator) -> bytes:
    body = bytearray(whole)
    for _ in range(random.integers(1, 4)):
        body[random.integers(len(body))] = random.integers(256)
    return bytes(body[: len(body) - random.integers(0, 3)])


def test_random_bytes_are_refused_or_read_and_nothing_else_happens() -> None:
    inputs = (Tensor("x", "float32", (-1, 2)), Tensor("t", "str", (-1,)))
    signature = Signature(inputs, (Tensor("y", "float32", (-1,)),))
    predict = tfserving_grpc.PredictRequest()
    tfserving_grpc.to_proto(np.ones((2, 2), np.float32), "float32", predict.inputs["x"])
    tfserving_grpc.to_proto(np.array(["a", "\u00fc"], object), "str", predict.inputs["t"])
    infer = kserve_grpc.ModelInferRequest()
    infer.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    infer.inputs.add(name="t", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"a", b"b"])
    examples = message("tensorflow.serving.Input")()
    feature = examples.example_list.examples.add().features.feature
    feature["x"].float_list.value.extend([1, 2])
    feature["t"].bytes_list.value.append(b"a")

    def read(kind: Any, body: bytes) -> None:
        made = parse(kind, body)
        if kind is tfserving_grpc.PredictRequest:
            tfserving_grpc.read_predict(made, signature, 1 << 20)
        elif kind is kserve_grpc.ModelInferRequest:
            kserve_grpc.read_infer(made, signature)
        else:
            tfserving_grpc.read_input(made, signature)

    random = np.random.default_rng(0)
    for whole in (predict, infer, examples):
        body = whole.SerializeToString()
        read(type(whole), body)
        kept = 0
        for _ in range(2000):
            try:
                read(type(whole), mutated(body, random))
                kept += 1
            except Error as error:
                assert error.http_status in (400, 413), error
        assert 0 < kept < 2000


@pytest.mark.parametrize("run_s", [0.0, 1.0])
def test_calls_of_light_and_heavy_models_that_arrive_together_get_their_own_rows(
    server: Running, channel: grpc.Channel, run_s: float
) -> None:
    assert server.models is not None
    serving = server.models.find("mlp")
    serving.run_s = run_s
    runs, before = serving.runs, serving.rows
    rows = np.random.default_rng(1).normal(size=(200, 1, 4)).astype(np.float32)
    ask = channel.unary_unary(PREDICT)
    asked = [ask.future(question(row), timeout=20) for row in rows]
    found = np.concatenate([answer(one.result()) for one in asked])
    w0, w1 = plain.weights(4, 8, 3)
    np.testing.assert_allclose(found, np.maximum(rows[:, 0] @ w0, 0) @ w1, rtol=1e-4, atol=1e-6)
    assert serving.rows - before == 200
    assert serving.runs - runs < 200  # those that come within a few turns, or while a heavy one runs, are one run


def test_what_is_switched_off_is_not_there(tmp_path: Path) -> None:
    with (
        log.Pen(tmp_path / "log") as pen,
        workers.holding_grpc(Settings(port=0, grpc_port=0, open_inference=False)) as settings,
    ):
        running = Running(plane_of(pen), settings, models=plain.models_of({"half": {1: plain.half()}}))
        with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            assert code_of(channel, INFER, b"")[0] == Code.UNIMPLEMENTED
            assert answer(call(channel, PREDICT, question(np.ones(1, np.float32), "half"))) == [2.5]
        running.stop()


def test_a_drain_answers_what_was_asked_and_says_so_to_who_watches(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()
    models = plain.models_of({"half": {1: plain.half()}})
    serving = models.find("half")

    def slow(feeds: Any, run: Any = serving.model.run) -> list[np.ndarray]:
        begun.set()
        assert go.wait(20)
        return run(feeds)

    serving.model = Model(serving.model.signature, slow)
    serving.run_s = 1.0  # a heavy one: it runs on a thread
    with (
        log.Pen(tmp_path / "log") as pen,
        workers.holding_grpc(Settings(port=0, grpc_port=0, quiet_s=0.02)) as settings,
        grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel,
    ):
        running = Running(plane_of(pen), settings, models=models)
        health = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=20)
        assert next(health) == b"\x08\x01"  # SERVING
        asked = channel.unary_unary(PREDICT).future(question(np.ones(1, np.float32), "half"), timeout=20)
        assert begun.wait(20)
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        assert next(health) == b"\x08\x02"  # NOT_SERVING
        go.set()
        assert answer(asked.result()) == [2.5]
        stopping.join(20)
        assert running.drained


def test_a_port_that_is_taken_is_told() -> None:
    with (
        workers.bind(Settings(port=0)) as taken,
        pytest.raises(ConflictError, match="in use"),
    ):
        taken.listen()
        with workers.holding_grpc(Settings(grpc_port=taken.getsockname()[1])):
            pass


@pytest.mark.parametrize("count", [1, 2])
def test_serve_speaks_grpc_in_one_process_and_in_two(tmp_path: Path, count: int) -> None:
    made = product.project(tmp_path, product.TOML.replace("poll_s = 0.02", f"workers = {count}"))
    place = tmp_path / "models" / "half" / "1"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(plain.half())
    with workers.holding_grpc(Settings(grpc_port=0)) as held:  # by SO_REUSEPORT: the server takes it, nobody else does
        port = str(held.grpc_port)
        process, _ = product.start(made, "--grpc-port", port)
    with process:
        for _ in range(4):  # connections go to either worker
            options = (("grpc.use_local_subchannel_pool", 1),)
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                assert answer(call(channel, PREDICT, question(np.ones(1, np.float32), "half"))) == [2.5]
        process.terminate()
        assert process.wait(30) == 0
