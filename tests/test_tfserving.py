"""TensorFlow Serving's REST API, case by case, over real sockets: what is asked, what comes back, which error."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import plain_models as plain
from served import Client, Running, plane_of
from steersman import log
from steersman.serve.settings import Settings


class Case(NamedTuple):
    """`answer` is the whole body, or, of an error, a part of its text."""

    method: str
    path: str
    body: Any
    status: int
    answer: Any


def get(path: str, status: int, answer: Any) -> Case:
    return Case("GET", path, b"", status, answer)


def predict(model: str, body: Any, answer: Any, status: int = 200) -> Case:
    return Case("POST", f"/v1/models/{model}:predict", body, status, answer)


def refused(model: str, body: Any, answer: str, status: int = 400) -> Case:
    return predict(model, body, answer, status)


def b64(text: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(text).decode()}


BIG = 2**31
HALF = [{"version": "2", "state": "AVAILABLE"}, {"version": "1", "state": "AVAILABLE"}]
OK = {"status": {"error_code": "OK", "error_message": ""}}
NAN, INF = math.nan, math.inf
SERVED = "Servable not found for request: "
CASES = {
    # row form
    "rows of scalars": predict("half", {"instances": [1.0, 2.0, 5.0]}, {"predictions": [2.5, 3.0, 4.5]}),
    "whole numbers are floats": predict("half", {"instances": [1, 2]}, {"predictions": [2.5, 3.0]}),
    "one row": predict("half", {"instances": [4]}, {"predictions": [4.0]}),
    "objects of a single input": predict("half", {"instances": [{"x": 1}, {"x": 2}]}, {"predictions": [2.5, 3.0]}),
    "several inputs and outputs": predict(
        "pair",
        {"instances": [{"a": [1, 2], "b": 3}, {"a": [0.5, 0], "b": -1}]},
        {"predictions": [{"total": 6.0, "b_again": 3}, {"total": -0.5, "b_again": -1}]},
    ),
    "the default signature by name": predict(
        "half", {"signature_name": "serving_default", "instances": [0]}, {"predictions": [2.0]}
    ),
    "an empty name of a signature": predict("half", {"signature_name": "", "instances": [0]}, {"predictions": [2.0]}),
    "what follows the object is not read": predict("half", b'{"instances": [1]} and more', {"predictions": [2.5]}),
    "space before the object": predict("half", b' \n\t{"instances": [1]}', {"predictions": [2.5]}),
    "unknown keys": predict("half", {"instances": [1], "colour": "red"}, {"predictions": [2.5]}),
    "a version": predict("half/versions/1", {"instances": [1]}, {"predictions": [1.5]}),
    "the highest version is the default": predict("half/versions/2", {"instances": [1]}, {"predictions": [2.5]}),
    "a label": predict("half/labels/old", {"instances": [1]}, {"predictions": [1.5]}),
    "a quoted label": predict("half/labels/ol%64", {"instances": [1]}, {"predictions": [1.5]}),
    "a quoted name": predict("h%61lf", {"instances": [1]}, {"predictions": [2.5]}),
    "a name with a slash in it": predict("a%2Fb", {"instances": [1]}, {"predictions": [1]}),
    "letters of any case": Case("POST", "/V1/Models/half:PREDICT", {"instances": [1]}, 200, {"predictions": [2.5]}),
    "a query is not the path": predict("half:predict?x=1", {"instances": [1]}, {"predictions": [2.5]})._replace(
        path="/v1/models/half:predict?x=1"
    ),
    # columnar form
    "columns of one input": predict("half", {"inputs": [1, 2]}, {"outputs": [2.5, 3.0]}),
    "columns by name": predict("half", {"inputs": {"x": [1, 2]}}, {"outputs": [2.5, 3.0]}),
    "columns of several": predict(
        "pair", {"inputs": {"a": [[1, 2]], "b": [3]}}, {"outputs": {"total": [6.0], "b_again": [3]}}
    ),
    "a column too many is not read": predict("half", {"inputs": {"x": [1], "z": [[1], 2]}}, {"outputs": [2.5]}),
    "a matrix": predict("matrix", {"inputs": [[1, 2], [3, 4]]}, {"outputs": [[1.0, 2.0], [3.0, 4.0]]}),
    "a scalar": predict("scalar", {"inputs": 7}, {"outputs": 7}),
    # numbers that are not finite
    "NaN and infinities in": predict("float64", b'{"instances": [NaN, Infinity, -Infinity]}', [NAN, INF, -INF]),
    "NaN and infinities out": predict("log", {"instances": [-1, 0, 1]}, [NAN, -INF, 0.0]),
    "infinity in a row of its own": predict("log", b'{"instances": [Infinity]}', [INF]),
    # types
    "int32": predict("int32", {"instances": [1, -BIG, BIG - 1]}, {"predictions": [1, -BIG, BIG - 1]}),
    "int64": predict("int64", {"instances": [2**63 - 1, -(2**63)]}, {"predictions": [2**63 - 1, -(2**63)]}),
    "uint64": predict("uint64", {"instances": [2**64 - 1]}, {"predictions": [2**64 - 1]}),
    "uint32": predict("uint32", {"instances": [2**32 - 1]}, {"predictions": [2**32 - 1]}),
    "uint8": predict("uint8", {"instances": [0, 255]}, {"predictions": [0, 255]}),
    "int8": predict("int8", {"instances": [-128, 127]}, {"predictions": [-128, 127]}),
    "int16": predict("int16", {"instances": [-32768]}, {"predictions": [-32768]}),
    "double": predict("float64", {"instances": [0.1, 1e300]}, {"predictions": [0.1, 1e300]}),
    "bool": predict("bool", {"instances": [True, False]}, {"predictions": [True, False]}),
    "text": predict("str", {"instances": ["a", "\u00fc\u20ac"]}, {"predictions": ["a", "\u00fc\u20ac"]}),
    "text in base64": predict("str", {"instances": [b64(b"hi"), "ho"]}, {"predictions": ["hi", "ho"]}),
    "text in base64 by name": predict("str", {"instances": [{"x": b64(b"hi")}]}, {"predictions": ["hi"]}),
    "text in base64 in columns": predict("str", {"inputs": [b64(b"hi")]}, {"outputs": ["hi"]}),
    "an output whose name ends in _bytes": predict("blob", {"instances": ["hi"]}, {"predictions": [b64(b"hi")]}),
    "floats keep their bits": predict("float32", {"instances": [0.1]}, {"predictions": [float(np.float32(0.1))]}),
    # errors of the body
    "an empty body": refused("half", b"", "JSON Parse error: The document is empty"),
    "spaces only": refused("half", b"  \n", "JSON Parse error: The document is empty"),
    "no JSON": refused("half", b"instances=1", "JSON Parse error: "),
    "half of the JSON": refused("half", b'{"instances": [1', "at offset: "),
    "not UTF-8": refused("half", b'{"instances": ["\xff"]}', "JSON Parse error: "),
    "too deep": refused("half", b'{"instances": ' + b"[" * 100_000, "JSON Parse error: nested too deep"),
    "a context that stands for gigabytes": Case(
        "POST",
        "/v1/models/half:regress",
        {"context": {"x": [0] * 100_000}, "examples": [{}] * 100_000},
        413,
        "a context of 200007 bytes for 100000 examples",
    ),
    "over 64 axes": refused("half", b'{"instances": ' + b"[" * 70 + b"1" + b"]" * 70 + b"}", "70 axes"),
    "half of a letter": refused("half", b'{"signature_name": "\\ud800", "instances": [1]}', "surrogate pair"),
    "a letter of two halves": predict("str", b'{"instances": ["\\ud83d\\ude00"]}', {"predictions": ["\U0001f600"]}),
    "a version of 5000 digits": get("/v1/models/half/versions/" + "9" * 5000, 400, "Failed to convert version: 999"),
    "a number over double": refused("half", b'{"instances": [1e999]}', "Number too big"),
    "a whole number of 5000 digits": refused("int64", b'{"instances": [' + b"9" * 5000 + b"]}", "JSON Parse error: "),
    "no object": refused("half", [1, 2], "JSON Value: [1,2] Is not object"),
    "neither key": refused("half", {}, "Missing 'inputs' or 'instances' key"),
    "both keys": refused("half", {"inputs": [1], "instances": [1]}, "expecting only one of 'inputs' or 'instances'"),
    "no rows": refused("half", {"instances": []}, "non-empty"),
    "rows that are no list": refused("half", {"instances": 1}, "'instances' value to be an array/list"),
    "a signature that is not there": refused(
        "half", {"signature_name": "x", "instances": [1]}, 'Serving signature name: "x" not found in signature def'
    ),
    "a signature that is no text": refused("half", {"signature_name": 1, "instances": [1]}, "must be a string"),
    # errors of shape
    "a list among values": refused("half", {"instances": [1, [2]]}, "Expecting shape [] but got: [1]"),
    "values of other sizes": refused("matrix", {"instances": [[1, 2], [3]]}, "Expecting tensor size: 2 but got: 1"),
    "values of other shapes": refused(
        "cube", {"instances": [[[1, 2]], [[1], [2]]]}, "Expecting shape [1,2] but got: [2,1]"
    ),
    "ragged": refused(
        "cube",
        {"inputs": [[[1, 2, 3], [1, 2]]]},
        "Encountered list at unexpected size: 2 at level: 2 expected size: 3",
    ),
    "a list where a value belongs": refused(
        "matrix", {"inputs": [[1, [2]]]}, "Encountered list at unexpected level: 2"
    ),
    "a value where a list belongs": refused("matrix", {"inputs": [[1], 2]}, "found at incorrect level: 2"),
    "a width that the model has not": refused("mlp", {"instances": [[1, 2, 3]]}, "must be float32[-1,4]"),
    "a rank that the model has not": refused("mlp", {"instances": [1, 2]}, "must be float32[-1,4]"),
    "columns of other lengths": refused("pair", {"inputs": {"a": [[1, 2]], "b": [1, 2]}}, "rows"),
    # errors of names
    "an object and a value": refused("half", {"instances": [{"x": 1}, 2]}, "Expecting object but got list/value"),
    "a value and an object": refused("half", {"instances": [1, {"x": 2}]}, "Expecting value/list"),
    "a key too few": refused("pair", {"instances": [{"a": [1, 2]}]}, "keys must be equal to: a,b"),
    "a key too many": refused("pair", {"instances": [{"a": [1, 2], "b": 1, "c": 1}]}, "keys must be equal to: a,b"),
    "a plain list for two inputs": refused("pair", {"instances": [[1, 2]]}, "a,b"),
    "a column is missing": refused("pair", {"inputs": {"a": [[1, 2]]}}, "Missing named input: b in 'inputs' object."),
    "a bare column for two inputs": refused("pair", {"inputs": [[1, 2]]}, "a,b"),
    # errors of type
    "1.0 is no int32": refused(
        "int32", b'{"instances": [1.0]}', "JSON Value: 1.0 Type: Number is not of expected type: int32"
    ),
    "2^31 is no int32": refused("int32", {"instances": [BIG]}, "is not of expected type: int32"),
    "-1 is no uint8": refused("uint8", {"instances": [-1]}, "is not of expected type: uint8"),
    "2^63 is no int64": refused("int64", {"instances": [2**63]}, "is not of expected type: int64"),
    "a text is no float": refused("half", {"instances": ["1"]}, 'JSON Value: "1" Type: String'),
    "true is no float": refused("half", {"instances": [True]}, "is not of expected type: float"),
    "null is no float": refused("half", {"instances": [None]}, "Type: Null is not of expected type: float"),
    "1e39 is no float32": refused("half", {"instances": [1e39]}, "is not of expected type: float"),
    "1 is no bool": refused("bool", {"instances": [1]}, "is not of expected type: bool"),
    "1 is no text": refused("str", {"instances": [1]}, "is not of expected type: string"),
    "an object is no float": refused("half", {"inputs": [{"y": 1}]}, "Type: Object is not of expected type: float"),
    "bad base64": refused("str", {"instances": [{"b64": "%"}]}, "base64"),
    "bytes that are no UTF-8": refused("str", {"instances": [b64(b"\xff")]}, "base64"),
    "half floats are not in JSON": refused("float16", {"instances": [1]}, "not implemented", 501),
    "a long value is cut": refused("int32", {"instances": ["x" * 5000]}, 'JSON Value: "' + "x" * 255 + " Type"),
    # errors of the graph
    "the graph refuses a value": refused("gather", {"instances": [99]}, "the graph can not take"),
    "outputs without rows": refused("uneven", {"instances": [1, 2]}, "inconsistent batch size"),
    "outputs without rows in columns": predict(
        "uneven", {"inputs": [1, 2]}, {"outputs": {"y": [1.0, 2.0], "z": [3.0]}}
    ),
    # errors of the path
    "unknown model": refused("hafl", {"instances": [1]}, SERVED + "Latest(hafl)", 404),
    "unknown version": refused("half/versions/7", {"instances": [1]}, SERVED + "Specific(half, 7)", 404),
    "unknown label": refused("half/labels/new", {"instances": [1]}, "Unrecognized servable version label: new"),
    "a version that does not load": refused("broken", {"instances": [1]}, SERVED + "Latest(broken)", 404),
    "a version over int64": refused(f"half/versions/{2**63}", {"instances": [1]}, "Failed to convert version: "),
    "a version in words": refused("half/versions/one", {"instances": [1]}, "Malformed request: POST /v1/models/half"),
    "an unknown verb": Case(
        "POST", "/v1/models/half:explain", {}, 400, "Malformed request: POST /v1/models/half:explain"
    ),
    "GET of predict": get("/v1/models/half:predict", 400, "Malformed request: GET /v1/models/half:predict"),
    "POST of metadata": Case("POST", "/v1/models/half/metadata", {}, 400, "Malformed request: POST"),
    "PUT": Case("PUT", "/v1/models/half:predict", {}, 400, "Malformed request: PUT"),
    "a path that climbs": refused("..%2F..%2Fetc", {"instances": [1]}, SERVED, 404),
    "no model": get("/v1/models", 400, "Missing model name in request."),
    # status and metadata
    "status": get("/v1/models/half", 200, {"model_version_status": [{**one, **OK} for one in HALF]}),
    "status of a version": get("/v1/models/half/versions/1", 200, {"model_version_status": [{**HALF[1], **OK}]}),
    "status of a label is of all": get(
        "/v1/models/half/labels/old", 200, {"model_version_status": [{**x, **OK} for x in HALF]}
    ),
    "status of an unknown version": get("/v1/models/half/versions/7", 404, "Could not find version 7 of model half"),
    "status of an unknown model": get("/v1/models/no", 404, "Could not find any versions of model no"),
    "metadata": get(
        "/v1/models/pair/metadata",
        200,
        {
            "model_spec": {"name": "pair", "signature_name": "", "version": "1"},
            "metadata": {
                "signature_def": {
                    "signature_def": {
                        "serving_default": {
                            "inputs": {
                                "a": {
                                    "dtype": "DT_FLOAT",
                                    "tensor_shape": {
                                        "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
                                        "unknown_rank": False,
                                    },
                                    "name": "a:0",
                                },
                                "b": {
                                    "dtype": "DT_INT32",
                                    "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                                    "name": "b:0",
                                },
                            },
                            "outputs": {
                                "total": {
                                    "dtype": "DT_FLOAT",
                                    "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                                    "name": "total:0",
                                },
                                "b_again": {
                                    "dtype": "DT_INT32",
                                    "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                                    "name": "b_again:0",
                                },
                            },
                            "method_name": "tensorflow/serving/predict",
                        }
                    }
                }
            },
        },
    ),
    "metadata of an unknown version": get("/v1/models/half/versions/9/metadata", 404, SERVED + "Specific(half, 9)"),
    # classify and regress
    "regress": Case(
        "POST", "/v1/models/half:regress", {"examples": [{"x": 1}, {"x": [2.5]}]}, 200, {"results": [2.5, 3.25]}
    ),
    "regress with a context": Case(
        "POST",
        "/v1/models/two:regress",
        {"context": {"b": 10}, "examples": [{"a": 1}, {"a": 2, "b": 1}]},
        200,
        {"results": [11.0, 3.0]},
    ),
    "classify": Case(
        "POST",
        "/v1/models/names:classify",
        {"examples": [{"x": [0.25, 0.75]}]},
        200,
        {"results": [[["no", 0.25], ["yes", 0.75]]]},
    ),
    "classify without names": Case(
        "POST",
        "/v1/models/matrix:classify",
        {"examples": [{"x": [0.5, 0.25]}]},
        200,
        {"results": [[["0", 0.5], ["1", 0.25]]]},
    ),
    "no examples": Case("POST", "/v1/models/half:regress", {"examples": []}, 400, "non-empty"),
    "an example that is none": Case("POST", "/v1/models/half:regress", {"examples": [1]}, 400, "example"),
    "a feature of two kinds": Case(
        "POST", "/v1/models/matrix:classify", {"examples": [{"x": [1, 0.5]}]}, 400, "Unexpected element type in feature"
    ),
    "a feature that is null": Case("POST", "/v1/models/half:regress", {"examples": [{"x": None}]}, 400, "Unexpected"),
    "a feature in a list of lists": Case(
        "POST", "/v1/models/half:regress", {"examples": [{"x": [[1]]}]}, 400, "Unexpected"
    ),
    "a feature is missing": Case("POST", "/v1/models/half:regress", {"examples": [{}]}, 400, "x is required"),
    "a feature too many": Case(
        "POST", "/v1/models/half:regress", {"examples": [{"x": 1, "z": 1}]}, 400, "z is no input"
    ),
    "regress by version": Case(
        "POST", "/v1/models/half/versions/1:regress", {"examples": [{"x": 1}]}, 200, {"results": [1.5]}
    ),
    "classify by label": Case(
        "POST", "/v1/models/half/labels/old:classify", {"examples": [{"x": 1}]}, 200, {"results": [[["0", 1.5]]]}
    ),
    "a feature that is true": Case(
        "POST", "/v1/models/half:regress", {"examples": [{"x": True}]}, 200, {"results": [2.5]}
    ),
    "features of a model of whole numbers": Case(
        "POST", "/v1/models/whole:regress", {"examples": [{"x": 3}, {"x": False}]}, 200, {"results": [3.0, 0.0]}
    ),
    "a feature that is 1.5 for a model of whole numbers": Case(
        "POST", "/v1/models/whole:regress", {"examples": [{"x": 1.5}]}, 400, "is not of expected type: int64"
    ),
    "a feature that is a text": Case(
        "POST", "/v1/models/half:regress", {"examples": [{"x": "1"}]}, 400, "is not of expected type: float"
    ),
    "a context that is none": Case(
        "POST", "/v1/models/half:regress", {"context": 1, "examples": [{"x": 1}]}, 400, "context"
    ),
    "regress with a signature that is not there": Case(
        "POST",
        "/v1/models/half:regress",
        {"signature_name": "x", "examples": [{"x": 1}]},
        400,
        'Serving signature name: "x"',
    ),
    "regress of an unknown model": Case(
        "POST", "/v1/models/no:regress", {"examples": [{"x": 1}]}, 404, SERVED + "Latest(no)"
    ),
    "classify with an empty body": Case("POST", "/v1/models/names:classify", b"", 400, "The document is empty"),
    # more of the path
    "a version with zeros before it": predict("half/versions/01", {"instances": [1]}, {"predictions": [1.5]}),
    "a version and a label": refused("half/versions/1/labels/old", {"instances": [1]}, "Malformed request: POST"),
    "a slash at the end": get("/v1/models/half/", 400, "Malformed request: GET /v1/models/half/"),
    "POST without a verb": Case("POST", "/v1/models/half", {}, 400, "Malformed request: POST /v1/models/half"),
    "DELETE": Case("DELETE", "/v1/models/half", b"", 400, "Malformed request: DELETE /v1/models/half"),
    "a name with a colon": refused("ha:lf", {"instances": [1]}, "Malformed request: POST"),
    "status of an unknown label is of all": get(
        "/v1/models/half/labels/new", 200, {"model_version_status": [{**x, **OK} for x in HALF]}
    ),
    "metadata of an unknown label": get("/v1/models/half/labels/new/metadata", 400, "version label: new"),
    "metadata of an unknown model": get("/v1/models/no/metadata", 404, SERVED + "Latest(no)"),
    # more of the types
    "whole numbers are doubles": predict("float64", {"instances": [2, -7]}, {"predictions": [2.0, -7.0]}),
    "2^24 + 1 as a float": predict("float32", {"instances": [2**24 + 1]}, {"predictions": [2.0**24]}),
    "an empty text": predict("str", {"instances": ["", b64(b"")]}, {"predictions": ["", ""]}),
    "2^15 is no int16": refused("int16", {"instances": [2**15]}, "is not of expected type: int16"),
    "128 is no int8": refused("int8", {"instances": [128]}, "is not of expected type: int8"),
    "256 is no uint8": refused("uint8", {"instances": [256]}, "is not of expected type: uint8"),
    "2^32 is no uint32": refused("uint32", {"instances": [2**32]}, "is not of expected type: uint32"),
    "2^64 is no uint64": refused("uint64", {"instances": [2**64]}, "is not of expected type: uint64"),
    "-1 is no uint64": refused("uint64", {"instances": [-1]}, "is not of expected type: uint64"),
    "NaN is no int32": refused("int32", b'{"instances": [NaN]}', "is not of expected type: int32"),
    "true is no int32": refused("int32", {"instances": [True]}, "is not of expected type: int32"),
    "base64 that is no text": refused("str", {"instances": [{"b64": 1}]}, "keys must be equal to: x"),
    "null is no column": refused("half", {"inputs": None}, "Type: Null is not of expected type: float"),
    "null is no list of rows": refused("half", {"instances": None}, "'instances' value to be an array/list"),
    "half floats are not in columns": refused("float16", {"inputs": [1]}, "not implemented", 501),
    "columns that are ragged by name": refused(
        "matrix", {"inputs": {"x": [[1, 2], [3]]}}, "Encountered list at unexpected size: 1"
    ),
    "several values for one": Case("POST", "/v1/models/half:regress", {"examples": [{"x": [1, 2]}]}, 400, "2 values"),
    "regress of a matrix": Case("POST", "/v1/models/matrix:regress", {"examples": [{"x": [1, 2]}]}, 400, "one a row"),
}


def versions() -> dict[str, dict[int, bytes]]:
    uneven = plain.model(
        [("Identity", ["x"], ["y"], {}), ("ReduceSum", ["x"], ["z"], {"keepdims": 1})],
        {"x": ("float32", ["N"])},
        {"y": ("float32", ["N"]), "z": ("float32", ["M"])},
    )
    two = plain.model(
        [("Add", ["a", "b"], ["y"], {})],
        {"a": ("float32", ["N"]), "b": ("float32", ["N"])},
        {"y": ("float32", ["N"])},
    )
    whole = plain.model([("Cast", ["x"], ["y"], {"to": 1})], {"x": ("int64", ["N"])}, {"y": ("float32", ["N"])})
    blob = plain.model([("Identity", ["x"], ["y_bytes"], {})], {"x": ("str", ["N"])}, {"y_bytes": ("str", ["N"])})
    names = plain.model(
        [("Identity", ["x"], ["y"], {})],
        {"x": ("float32", ["N", 2])},
        {"y": ("float32", ["N", 2])},
        classes='["no", "yes"]',
    )
    alone = {
        **{kind: plain.same(kind) for kind in plain.TYPES},
        "matrix": plain.same("float32", ["N", "M"]),
        "cube": plain.same("float32", ["N", "M", "K"]),
        "scalar": plain.same("int32", []),
        "a/b": plain.same("int32"),
        "pair": plain.pair(),
        "mlp": plain.mlp(4, 3),
        "log": plain.log(),
        "gather": plain.gather(),
        "uneven": uneven,
        "two": two,
        "whole": whole,
        "blob": blob,
        "names": names,
        "broken": b"not ONNX",
    }
    return {"half": {1: plain.half(1.0), 2: plain.half()}, **{name: {1: data} for name, data in alone.items()}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with log.Pen(tmp_path_factory.mktemp("log")) as pen:
        models = plain.models_of(versions(), half={"old": 1})
        server = Running(plane_of(pen), Settings(port=0, quiet_s=0.02), models=models)
        with Client(server.port) as made:
            yield made
        server.stop()


def test_there_are_as_many_cases_as_was_promised() -> None:
    assert len(CASES) >= 160  # the goal is 80


@pytest.mark.parametrize("name", CASES)
def test_a_case(client: Client, name: str) -> None:
    case = CASES[name]
    status, headers, body = client.ask(case.method, case.path, case.body)
    assert (status, headers["content-type"]) == (case.status, "application/json"), body
    if status != 200:
        assert set(body) == {"error"}
        assert case.answer in body["error"]
    elif isinstance(case.answer, list):  # NaN is not equal to itself
        np.testing.assert_array_equal(body["predictions"], case.answer)
    else:
        assert body == case.answer


def test_the_content_type_of_a_request_is_not_asked_for(client: Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
        body = json.dumps({"instances": [1]}).encode()
        status, headers, answer = client.ask("POST", "/v1/models/half:predict", body, f"Content-Type: {kind}\r\n")
        assert (status, headers["content-type"], answer) == (200, "application/json", {"predictions": [2.5]})


def test_the_quick_reader_and_the_careful_one_read_the_same() -> None:
    from steersman.models.plain import Plain
    from steersman.serve import tfserving

    read = 0
    for name, there in versions().items():
        if name == "broken":
            continue
        signature = Plain(there[max(there)]).signature
        quick = tfserving._quick_reader(signature)
        for case in CASES.values():
            if quick is None or f"/{name}:predict" not in case.path or case.method != "POST":
                continue
            body = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
            found = quick(body)
            if found is None:
                continue
            read += 1
            expected = tfserving.read_predict(body, signature)
            assert found.row_form == expected.row_form
            for key, array in expected.feeds.items():
                assert array.dtype == found.feeds[key].dtype
                np.testing.assert_array_equal(array, found.feeds[key])
    assert read > 10


def test_status_tells_why_a_version_does_not_serve(client: Client) -> None:
    _, _, body = client.ask("GET", "/v1/models/broken")
    [version] = body["model_version_status"]
    assert version["state"] == "END"
    assert version["status"]["error_code"] == "INVALID_ARGUMENT"
    assert "not an ONNX model" in version["status"]["error_message"]
    status, _, body = client.ask("GET", "/v1/status")
    assert status == 200
    assert "not an ONNX model" in body["models"]["broken"]["1"]["error"]
    assert client.ask("GET", "/v1/ready")[0] == 503
