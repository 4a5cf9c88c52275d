"""SageMaker's container contract: ping, invocations in every content type, batch transform, multi-model calls."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import plain_models as plain
from product import start
from steersman import config
from steersman.core.errors import DataError
from steersman.models.plain import Plain
from steersman.models.shelf import Shelf
from steersman.serve import sagemaker

JSON, CSV, LINES, NPY, NPZ = (
    "application/json",
    "text/csv",
    "application/jsonlines",
    "application/x-npy",
    "application/x-npz",
)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """`steersman serve` over a directory as SageMaker makes it: models are served when they were loaded."""
    root = tmp_path_factory.mktemp("models")
    for name, data in {"mlp": plain.mlp(4, 3), "pair": plain.pair(), "text": plain.same("str")}.items():
        (root / name / "model").mkdir(parents=True)
        (root / name / "model" / "model.onnx").write_bytes(data)
    (root / "broken").mkdir()
    (root / "broken" / "model.onnx").write_bytes(b"half of it")
    process, url = start(config.only_models(root), "--models", str(root), "--explicit")
    with httpx.Client(base_url=url, timeout=20) as client:
        assert client.get("/models").json() == {"models": []}
        for name in ("mlp", "pair", "text"):
            assert client.post("/models", json={"model_name": name, "url": f"{root}/{name}/model"}).status_code == 200
        yield client
    process.terminate()
    assert process.wait(30) == 0


X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
[W] = plain.weights(4, 3)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


BODIES: dict[str, tuple[str, bytes]] = {
    "instances": (JSON, json.dumps({"instances": X.tolist()}).encode()),
    "rows": ("application/json; charset=utf-8", json.dumps(X.tolist()).encode()),
    "csv": (CSV, "\n".join(",".join(map(str, row)) for row in X.tolist()).encode()),
    "csv of Windows": (CSV, b"\xef\xbb\xbf" + "\r\n".join(",".join(map(str, row)) for row in X.tolist()).encode()),
    "lines": (LINES, b"\n".join(json.dumps(row).encode() for row in X.tolist())),
    "npy": (NPY, npy(X)),
    "npy of doubles, by columns": (NPY, npy(np.asfortranarray(X.astype(np.float64)))),
    "npz": (NPZ, npz(x=X)),
}


def read(answer: httpx.Response) -> np.ndarray:
    match answer.headers["content-type"]:
        case "application/json":
            return np.array(answer.json()["predictions"])
        case "text/csv":
            return np.loadtxt(io.StringIO(answer.text), delimiter=",", ndmin=2)
        case "application/jsonlines":
            return np.array([json.loads(line) for line in answer.text.splitlines()])
        case _:
            return np.load(io.BytesIO(answer.content))


@pytest.mark.parametrize("accept", ["", "*/*", JSON, CSV, LINES, NPY, "application/pickle, text/csv"])
@pytest.mark.parametrize("body", BODIES)
def test_every_content_type_in_and_out_gives_the_same_numbers(http: httpx.Client, body: str, accept: str) -> None:
    kind, data = BODIES[body]
    headers = {"content-type": kind, "accept": accept, "x-amzn-sagemaker-target-model": "mlp"}
    answer = http.post("/invocations", content=data, headers=headers)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(read(answer), X @ W, rtol=1e-4, atol=1e-6)
    if accept in (JSON, CSV, LINES, NPY):
        assert answer.headers["content-type"] == accept


def invoke(http: httpx.Client, model: str, kind: str, data: bytes, accept: str = "") -> tuple[int, Any]:
    headers = {"content-type": kind, "accept": accept}
    answer = http.post(f"/models/{model}/invoke", content=data, headers=headers)
    return answer.status_code, answer.json()


def test_several_inputs_come_by_name_or_as_columns(http: httpx.Client) -> None:
    a, b = np.array([[1, 2], [3, 4]], np.float32), np.array([10, 20], np.int32)
    expected = {"predictions": [{"total": 13.0, "b_again": 10}, {"total": 27.0, "b_again": 20}]}
    assert invoke(http, "pair", NPZ, npz(a=a, b=b)) == (200, expected)
    assert invoke(http, "pair", NPZ, npz(a=a, b=b.astype(np.int64))) == (200, expected)
    columns = json.dumps({"inputs": {"a": a.tolist(), "b": b.tolist()}}).encode()
    assert invoke(http, "pair", JSON, columns) == (200, {"outputs": {"total": [13.0, 27.0], "b_again": [10, 20]}})
    assert invoke(http, "text", CSV, b'"a, b"\nc\n') == (200, {"predictions": ["a, b", "c"]})


BAD: dict[str, tuple[int, str, str, bytes, str]] = {
    "pickle": (415, "mlp", "application/x-pickle", b"x", ""),
    "protobuf": (415, "mlp", "application/x-recordio-protobuf", b"x", ""),
    "accepts images": (406, "mlp", JSON, BODIES["rows"][1], "image/png"),
    "two outputs as csv": (406, "pair", JSON, b'{"instances": [{"a": [1, 2], "b": 1}]}', CSV),
    "ragged csv": (400, "mlp", CSV, b"1,2,3,4\n1,2\n", ""),
    "csv with a header": (400, "mlp", CSV, b"a,b,c,d\n1,2,3,4\n", ""),
    "no csv": (400, "mlp", CSV, b"\n", ""),
    "csv of another width": (400, "mlp", CSV, b"1,2,3\n", ""),
    "no line": (400, "mlp", LINES, b"", ""),
    "a broken line": (400, "mlp", LINES, b"[1,2,3,4]\n[1,2", ""),
    "npy of objects": (400, "mlp", NPY, b"", ""),
    "npy of ints for floats is fine, of text is not": (400, "mlp", NPY, npy(np.array([["a"]])), ""),
    "npy of floats for ints": (400, "pair", NPZ, npz(a=np.zeros((1, 2)), b=np.zeros(1)), ""),
    "npy of ints for texts": (400, "text", NPY, npy(np.array([1])), ""),
    "npy of raw bytes for texts": (400, "text", NPY, npy(np.array([b"123"], "V3")), ""),
    "npy of letters over ASCII as bytes": (400, "text", NPY, npy(np.array([b"\xff"])), ""),
    "npy of letters that are none": (
        400,
        "text",
        NPY,
        npy(np.array(["a"])).replace(b"a\0\0\0", b"\xff\xff\xff\xff"),
        "",
    ),
    "npz without an input": (400, "pair", NPZ, npz(a=np.zeros((1, 2))), ""),
    "npy for two inputs": (400, "pair", NPY, npy(np.zeros((1, 2))), ""),
    "no npz": (400, "mlp", NPZ, b"PK", ""),
    "unknown model": (404, "nothing", JSON, b"[]", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_read_or_written_is_refused(http: httpx.Client, case: str) -> None:
    status, model, kind, data, accept = BAD[case]
    found, body = invoke(http, model, kind, data, accept)
    assert (found, set(body)) == (status, {"error"}), body


def test_models_are_loaded_listed_and_unloaded(http: httpx.Client) -> None:
    names = [one["modelName"] for one in http.get("/models").json()["models"]]
    assert names == ["mlp", "pair", "text"]
    assert http.get("/models/pair").json()["modelUrl"].endswith("/pair")
    assert http.post("/models", json={"model_name": "pair", "url": "x"}).status_code == 409
    assert http.delete("/models/pair").status_code == 200
    assert http.get("/models/pair").status_code == 404
    assert http.delete("/models/pair").status_code == 404
    assert http.post("/models/pair/invoke", json=[]).status_code == 404
    assert http.post("/models", json={"model_name": "pair", "url": "x"}).status_code == 200
    assert http.get("/models/pair").status_code == 200
    for name, status in (("nothing", 404), ("broken", 400), ("../../etc", 400), (7, 400)):
        answer = http.post("/models", json={"model_name": name, "url": "/etc"})
        assert (answer.status_code, set(answer.json())) == (status, {"error"}), name
    http.delete("/models/broken")


def test_ping_and_execution_parameters(http: httpx.Client) -> None:
    assert http.get("/execution-parameters").json() == {
        "MaxConcurrentTransforms": 64,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 1,
    }
    several = http.post("/invocations", json=[[1, 2, 3, 4]])
    assert (several.status_code, "none was named" in several.json()["error"]) == (400, True)


def test_ping_is_empty_and_says_whether_all_is_there(tmp_path: Path) -> None:
    Shelf(str(tmp_path)).publish("model", plain.mlp(4, 3))
    process, url = start(config.only_models(tmp_path), "--models", str(tmp_path))
    answer = httpx.get(f"{url}/ping")
    assert (answer.status_code, answer.content) == (200, b"")
    assert httpx.post(f"{url}/invocations", json=[[1, 2, 3, 4]]).status_code == 200
    process.terminate()
    assert process.wait(30) == 0


def header(text: str) -> bytes:
    line = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        npy(X)[:-1],
        npy(X) + b"x",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (0,)}"),
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999)}"),
        header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1,) * 100}}}") + b"1234",
        header("{'descr': '<U0', 'fortran_order': False, 'shape': (9,)}"),
        header("{'descr': '(2,2)<f4', 'fortran_order': False, 'shape': (1,)}") + bytes(16),
        header("{'descr': '<f4'}"),
        header("__import__('os').system('true')"),
        header("(" * 3000),
    ],
)
def test_an_npy_that_lies_is_refused_without_its_memory(body: bytes) -> None:
    with pytest.raises(DataError):
        sagemaker._npy(body)


def test_an_npz_that_unpacks_to_too_much_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * (sagemaker.UNPACKED_BYTES + 1))
    assert len(file.getvalue()) < 1 << 20
    with pytest.raises(DataError, match="over"):
        sagemaker.read(file.getvalue(), NPZ, "", Plain(plain.mlp(4, 3)).signature)


def test_an_npz_with_broken_bytes_is_refused_whatever_packed_it() -> None:
    signature = Plain(plain.mlp(4, 3)).signature
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("x.npy", npy(X))
        whole = bytearray(file.getvalue())
        for i in range(len(whole)):
            body = whole.copy()
            body[i] ^= 0x55
            with contextlib.suppress(DataError):  # what is not read, as a date, may be anything
                sagemaker.read(bytes(body), NPZ, "", signature)
