"""The Open Inference Protocol v2: what an unmodified tritonclient gets, and what the bytes say."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import client_environment
import plain_models as plain
import triton_client
from served import Client, Running, plane_of
from steersman import log
from steersman.core.errors import DataError
from steersman.core.signature import Signature, Tensor
from steersman.models.plain import Plain
from steersman.serve import kserve
from steersman.serve.settings import Settings


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with log.Pen(tmp_path_factory.mktemp("log")) as pen:
        models = plain.shelved(tmp_path_factory.mktemp("models"))
        plane = plane_of(pen)
        plane.swap("shop", 1)
        made = Running(plane, Settings(port=0, quiet_s=0.02), models=models)
        yield made
        made.stop()


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server.port) as made:
        yield made


@pytest.fixture(scope="module")
def told(server: Running) -> dict[str, str]:
    return client_environment.ask("tritonclient", "triton_client.py", "http", server.port)


@pytest.mark.parametrize("check", [check.__name__ for check in triton_client.CHECKS])
def test_tritonclient_over_http(told: dict[str, str], check: str) -> None:
    assert told[check] == ""


# -- bytes --------------------------------------------------------------------------------------------------------

X = {"name": "x", "shape": [2], "datatype": "FP32"}


def infer(client: Client, model: str, *inputs: dict, **more: Any) -> tuple[int, dict]:
    status, _, body = client.ask("POST", f"/v2/models/{model}/infer", {"inputs": inputs, **more})
    return status, body


def test_data_may_be_nested_or_flat_and_the_id_comes_back(client: Client) -> None:
    x = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
    flat = infer(client, "mlp", {**x, "data": [1, 2, 3, 4]}, id="a")
    nested = infer(client, "mlp", {**x, "data": [[1, 2, 3, 4]]}, id="a")
    assert flat == nested
    assert (flat[0], flat[1]["id"], flat[1]["model_name"], flat[1]["model_version"]) == (200, "a", "mlp", "1")
    [y] = flat[1]["outputs"]
    assert (y["name"], y["datatype"], y["shape"]) == ("y", "FP32", [1, 3])
    w0, w1 = plain.weights(4, 8, 3)
    np.testing.assert_allclose(y["data"], (np.maximum(np.array([1, 2, 3, 4]) @ w0, 0) @ w1), rtol=1e-5)


def test_a_raw_body_is_the_one_input_and_one_row(client: Client) -> None:
    raw = np.array([1, 2, 3, 4], np.float32).tobytes()
    headers = "Inference-Header-Content-Length: 0\r\nContent-Type: application/octet-stream\r\n"
    client.send("POST", "/v2/models/mlp/infer", raw, headers)
    line = client._in.readline()
    assert b" 200 " in line
    fields = {}
    while (header := client._in.readline().rstrip()) != b"":
        name, _, value = header.decode().partition(": ")
        fields[name] = value
    body = client._in.read(int(fields["content-length"]))
    length = int(fields["inference-header-content-length"])
    assert fields["content-type"] == "application/octet-stream"
    [y] = json.loads(body[:length])["outputs"]
    assert y["parameters"] == {"binary_data_size": 12}
    expected = infer(client, "mlp", {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]})
    np.testing.assert_array_equal(np.frombuffer(body[length:], np.float32), expected[1]["outputs"][0]["data"])


BAD = {
    "no JSON": (b"x", "JSON"),
    "no object": (b"[]", "no list of inputs"),
    "no inputs": (b"{}", "no list of inputs"),
    "inputs that are none": (b'{"inputs": 1}', "no list of inputs"),
    "an input that is none": (b'{"inputs": [1]}', "no list of inputs"),
    "an input without a shape": (b'{"inputs": [{"name": "x", "datatype": "FP32", "data": []}]}', "shape"),
    "no data": ({"inputs": [X]}, "no data"),
    "too few values": ({"inputs": [{**X, "data": [1]}]}, "1 values, its shape [2] says 2"),
    "a text": ({"inputs": [{**X, "data": ["1", "2"]}]}, "not of expected type: float"),
    "ragged": ({"inputs": [{**X, "data": [[1], [2, 3]]}]}, "unexpected size"),
    "twice": ({"inputs": [{**X, "data": [1, 2]}, {**X, "data": [1, 2]}]}, "twice"),
    "another input": ({"inputs": [{**X, "name": "z", "data": [1, 2]}]}, "unexpected inference input"),
    "none of the inputs": ({"inputs": []}, "must be x"),
    "another type": ({"inputs": [{**X, "datatype": "INT64", "data": [1, 2]}]}, "the model expects FP32"),
    "a type that is none": ({"inputs": [{**X, "datatype": "FLOAT", "data": [1, 2]}]}, "the model expects FP32"),
    "a negative shape": ({"inputs": [{**X, "shape": [-2], "data": [1, 2]}]}, "negative"),
    "an output twice": ({"inputs": [{**X, "data": [1, 2]}], "outputs": [{"name": "y"}] * 2}, "twice"),
    "over 64 axes": ({"inputs": [{**X, "shape": [1] * 70, "data": [1]}]}, "70 axes"),
    "over 64 lists": ({"inputs": [{**X, "shape": [1], "data": json.loads("[" * 70 + "1" + "]" * 70)}]}, "70 axes"),
    "a size that no memory has": ({"inputs": [{**X, "shape": [0, 2**62, 2**62], "data": []}]}, "3 axes"),
    "sizes of thousands of digits": (
        {"inputs": [{**X, "shape": [10**4000] * 2, "data": [1]}]},
        "<= 9223372036854775807",
    ),
    "the largest sizes": ({"inputs": [{**X, "shape": [2**63 - 1] * 64, "data": [1]}]}, "1 values"),
    "half of a letter": (b'{"id": "\\ud800", "inputs": []}', "surrogate"),
    "half of a letter in a type": ({"inputs": [{**X, "datatype": "\ud800", "data": [1, 2]}]}, "surrogate"),
    "shared memory": ({"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
    "binary without a tail": ({"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}, "0 values"),
    "a binary size in words": ({"inputs": [{**X, "parameters": {"binary_data_size": "8"}}]}, "whole number"),
    "1e39": ({"inputs": [{**X, "data": [1, 1e39]}]}, "not of expected type"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_a_400_with_its_reason(client: Client, case: str) -> None:
    body, reason = BAD[case]
    status, _, answer = client.ask("POST", "/v2/models/half/infer", body)
    assert (status, set(answer)) == (400, {"error"})
    assert reason in answer["error"]


def test_the_product_of_very_many_sizes_is_never_made() -> None:
    signature = Plain(plain.half()).signature
    sizes = [2**62] * 40_000  # of a body of 1 MB; their product takes many seconds
    body = json.dumps({"inputs": [{**X, "shape": sizes, "data": [1]}]}).encode()
    began = time.process_time()
    with pytest.raises(DataError, match="40000 axes"):
        kserve.read_infer(body, None, signature)
    assert time.process_time() - began < 2


def test_paths_that_are_not_there(client: Client) -> None:
    for method, path, status in (
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/half/versions/9", 404),
        ("GET", "/v2/models/half/versions/one", 400),
        ("GET", "/v2/models/half/infer", 405),
        ("POST", "/v2/models/half", 405),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/..%2F..%2Fetc", 404),
        ("POST", "/v2/repository/models/..%2F..%2Fetc/load", 400),
    ):
        found, _, body = client.ask(method, path)
        assert (found, set(body)) == (status, {"error"}), path


def test_header_lengths_that_lie_are_refused(client: Client) -> None:
    body = json.dumps({"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}).encode()
    for length, tail, reason in (
        (len(body) + 100, b"", "the body has"),
        ("x", b"", "number of bytes"),
        ("9" * 5000, b"", "number of bytes"),
        (len(body), b"1234567", "no whole float32"),
        (len(body), b"12345678more", "4 bytes are left"),
    ):
        headers = f"Inference-Header-Content-Length: {length}\r\n"
        status, _, answer = client.ask("POST", "/v2/models/half/infer", body + tail, headers)
        assert (status, reason in answer["error"]) == (400, True), answer
    headers = f"Inference-Header-Content-Length: {len(body)}\r\n"
    x = np.array([1, 2], np.float32).tobytes()
    status, _, answer = client.ask("POST", "/v2/models/half/infer", body + x, headers)
    assert (status, answer["outputs"][0]["data"]) == (200, [2.5, 3.0])


@pytest.mark.parametrize("raw", [b"\x05\0\0\0abc", b"\x01\0\0", b"\x01\0\0\0\xff", struct.pack("<I", 2**32 - 1)])
def test_texts_that_are_cut_off_or_no_utf8_are_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match="input x"):
        kserve.from_raw(raw, "str", "x")


def test_random_bytes_are_refused_or_read_and_nothing_else_happens() -> None:
    signature = Signature((Tensor("x", "float32", (-1,)), Tensor("t", "str", (-1,))), (Tensor("y", "float32", (-1,)),))
    inputs = [
        {**X, "data": [1, 2]},
        {"name": "t", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}},
    ]
    text = json.dumps({"inputs": inputs, "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
    whole = text + b"\x01\0\0\0a"
    assert kserve.read_infer(whole, len(text), signature).feeds["t"].tolist() == ["a"]
    random = np.random.default_rng(0)
    read = 0
    for _ in range(3000):
        body = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            body[random.integers(len(body))] = random.integers(256)
        length = len(text) + int(random.integers(-2, 3)) if random.random() < 0.3 else len(text)
        try:
            kserve.read_infer(bytes(body), length, signature)
            read += 1
        except DataError:
            pass
    assert 0 < read < 3000
