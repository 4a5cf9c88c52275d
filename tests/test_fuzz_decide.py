"""JSON and protobuf that no client sends: decide, outcome and gRPC answer quickly, whatever comes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import plain_models as plain
from served import Client, Running, logged, plane_of
from steersman import log
from steersman.serve import workers
from steersman.serve.messages import message
from steersman.serve.settings import Settings
from test_fuzz_protocols import resident_mb
from test_grpc import mutated

LONGEST_S = 1.0
WORDS = [
    "",
    "a",
    "unit",
    "id",
    "price",
    "age",
    "country",
    "features",
    "decision",
    "metrics",
    "é\u0000\U0001f600",
    "x" * 999,
]
NUMBERS = [0, -1, 1.5, 1e308, -1e-320, 2**63, 2**64, -(2**63), 10**400, 1e999, float("nan"), float("-inf")]
SHOP = {
    "unit": "u",
    "context": {"age": 31.5, "country": "de"},
    "candidates": [{"id": "a", "features": {"price": 9.99, "stars": 4}}, {"id": "b", "features": {}}],
    "id": None,
    "step": 3,
    "deferred": False,
}
OUTCOME = {"decision": "d", "metrics": {"clicks": 1.0}, "ends": "terminated", "id": None, "at": 5, "activates": True}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Running]:
    with log.Pen(directory, durability="buffered") as pen:
        plane = plane_of(pen)
        for name in ("shop", "light"):
            plane.swap(name, 1)
        models = plain.models_of({"half": {1: plain.half()}, "pair": {1: plain.pair()}})
        with workers.holding_grpc(Settings(port=0, grpc_port=0, quiet_s=0.02, max_body_bytes=1 << 16)) as settings:
            made = Running(plane, settings, models=models)
            yield made
            made.stop()


def anything(random: np.random.Generator, depth: int = 0) -> Any:
    """A value of JSON of any kind."""
    kind = random.integers(7 if depth < 4 else 5)
    if kind < 2:
        return WORDS[random.integers(len(WORDS))]
    if kind == 2:
        return NUMBERS[random.integers(len(NUMBERS))]
    if kind < 5:
        return [None, True, False][random.integers(3)]
    some = [anything(random, depth + 1) for _ in range(random.integers(4))]
    return some if kind == 5 else {WORDS[random.integers(len(WORDS))]: one for one in some}


def distorted(value: Any, random: np.random.Generator, rate: float = 0.12) -> Any:
    """A document with some of its values replaced, left out, named otherwise, or said a hundred times."""
    if random.random() < rate:
        return anything(random)
    if isinstance(value, dict):
        found = {}
        for name, one in value.items():
            if random.random() < rate:
                name = WORDS[random.integers(len(WORDS))]
            if random.random() >= rate / 2:
                found[name] = distorted(one, random, rate)
        return found
    if isinstance(value, list):
        many = value * 100 if random.random() < rate / 4 else value
        return [distorted(one, random, rate) for one in many]
    return value


def body(document: Any, random: np.random.Generator) -> bytes:
    """JSON of a document, or what looks like it: deep, cut, not UTF-8."""
    text = json.dumps(document).encode()
    way = random.random()
    if way < 0.02:
        return b"[" * 60_000
    if way < 0.04:
        return b'{"context":' * 5000 + b"1" + b"}" * 5000
    if way < 0.08:
        return text[: random.integers(len(text) + 1)]
    if way < 0.12:
        return mutated(text, random) if text else text
    return text


def fuzz(count: int, seed: int, one: Callable[[int, np.random.Generator], object]) -> Counter[object]:
    random = np.random.default_rng(seed)
    found: Counter[object] = Counter()
    for i in range(count):
        began = time.process_time(), time.monotonic()
        found[one(i, random)] += 1
        # Others may have the processor: only what this process, client and server, worked itself counts against it.
        assert time.process_time() - began[0] < LONGEST_S and time.monotonic() - began[1] < 20 * LONGEST_S
    return found


def fuzz_json(server: Running, count: int, seed: int) -> Counter[object]:
    documents = (("/v1/decide/shop", SHOP), ("/v1/outcome", OUTCOME), ("/v1/outcome", [OUTCOME, OUTCOME]),
                 ("/v1/decide/light", {"unit": "u", "context": {"lux": 3}}))  # fmt: skip
    with Client(server.port) as client:

        def one(i: int, random: np.random.Generator) -> int:
            path, document = documents[i % len(documents)]
            status, headers, answer = client.ask("POST", path, body(distorted(document, random), random))
            assert headers.get("connection") != "close"
            assert status == 200 or (400 <= status < 500 and set(answer) == {"error", "hint", "field"}), answer
            return status

        return fuzz(count, seed, one)


def fuzz_grpc(server: Running, count: int, seed: int) -> Counter[object]:
    metadata = message("inference.ModelMetadataRequest")(name="half").SerializeToString()
    infer = message("inference.ModelInferRequest")(
        model_name="half",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [2]}],
        raw_input_contents=[np.float32([1, 2]).tobytes()],
    ).SerializeToString()
    status = message("tensorflow.serving.GetModelStatusRequest")(model_spec={"name": "half"}).SerializeToString()
    calls = (
        ("/inference.GRPCInferenceService/ModelInfer", infer),
        ("/inference.GRPCInferenceService/ModelMetadata", metadata),
        ("/tensorflow.serving.ModelService/GetModelStatus", status),
        ("/tensorflow.serving.PredictionService/Predict", status),
        ("/tensorflow.serving.PredictionService/Classify", infer),
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.server.settings.grpc_port}") as channel:
        ways = [(channel.unary_unary(path), whole) for path, whole in calls]

        def one(i: int, random: np.random.Generator) -> str:
            call, whole = ways[i % len(ways)]
            way = random.random()  # a tenth is noise, a third is as it should be
            sent = (
                random.bytes(random.integers(1, 200)) if way < 0.1 else mutated(whole, random) if way < 0.75 else whole
            )
            try:
                call(sent, timeout=20)
            except grpc.RpcError as error:
                assert error.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (sent, error)  # type: ignore[attr-defined]
                return str(error.code())  # type: ignore[attr-defined]
            return "OK"

        return fuzz(count, seed, one)


def check(server: Running, directory: Path, count: int, seed: int) -> None:
    fuzz_json(server, 100, seed + 1)
    fuzz_grpc(server, 100, seed + 1)
    before = resident_mb()
    found = fuzz_json(server, count, seed)
    assert found[200] > count / 20 and found[400] > count / 4, found
    found = fuzz_grpc(server, count, seed)
    assert found["OK"] > count / 20 and found["StatusCode.INVALID_ARGUMENT"] > count / 20, found
    assert resident_mb() - before < 64
    with Client(server.port) as client:
        assert client.ask("POST", "/v1/decide/shop", json.dumps({**SHOP, "id": f"last{seed}"}).encode())[0] == 200
    decisions, _ = logged(directory)  # every line is a noun that its laws let pass
    assert f"last{seed}" in {decision.id for decision in decisions}


def test_hundreds_of_distorted_requests_are_answered_quickly(server: Running, directory: Path) -> None:
    check(server, directory, 400, seed=0)


@pytest.mark.slow
def test_twenty_thousand_distorted_requests_are_answered_quickly(server: Running, directory: Path) -> None:
    check(server, directory, 10_000, seed=2)
