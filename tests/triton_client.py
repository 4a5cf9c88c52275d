"""What an unmodified tritonclient does with our server: run by its own Python, prints a JSON object of what held."""

import json
import sys
import traceback
from types import ModuleType

import numpy as np


def infer(api: ModuleType, client, model: str, arrays: dict, outputs=None, **more):
    kinds = {"float32": "FP32", "float64": "FP64", "object": "BYTES", "bool": "BOOL", "float16": "FP16"}
    inputs = []
    binary = more.pop("binary", None)
    for name, array in arrays.items():
        one = api.InferInput(name, list(array.shape), kinds.get(str(array.dtype), str(array.dtype).upper()))
        one.set_data_from_numpy(array, *([] if binary is None else [binary]))
        inputs.append(one)
    return client.infer(model, inputs, outputs=outputs, **more)


def refused(api: ModuleType, call) -> str:
    try:
        call()
    except Exception as error:
        assert type(error).__name__ == "InferenceServerException", repr(error)
        return str(error)
    raise AssertionError("it was not refused")


def binary_and_json(api, client, http):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = None
    for binary_in in (True, False) if http else (None,):
        for binary_out in (True, False) if http else (None,):
            asked = [api.InferRequestedOutput("y", *([] if binary_out is None else [binary_out]))]
            found = infer(api, client, "mlp", {"x": x}, asked, binary=binary_in).as_numpy("y")
            assert found.shape == (5, 3) and found.dtype == np.float32
            expected = found if expected is None else expected
            np.testing.assert_array_equal(found, expected)


def compressed(api, client, http):
    x = np.ones((300, 4), np.float32)
    expected = infer(api, client, "mlp", {"x": x}).as_numpy("y")
    codings = ("gzip", "deflate") if http else ()
    for coding in codings:
        for binary in (True, False):
            more = {"request_compression_algorithm": coding, "response_compression_algorithm": "gzip"}
            found = infer(api, client, "mlp", {"x": x}, binary=binary, **more).as_numpy("y")
            np.testing.assert_array_equal(found, expected)
    if not http:
        found = infer(api, client, "mlp", {"x": x}, compression_algorithm="gzip").as_numpy("y")
        np.testing.assert_array_equal(found, expected)


def all_outputs(api, client, http):
    arrays = {"a": np.array([[1, 2], [3, 4]], np.float32), "b": np.array([10, 20], np.int32)}
    found = infer(api, client, "pair", arrays, request_id="r7")
    np.testing.assert_array_equal(found.as_numpy("total"), [13.0, 27.0])
    np.testing.assert_array_equal(found.as_numpy("b_again"), [10, 20])
    answer = found.get_response()
    assert (answer["id"] if http else answer.id) == "r7"


def every_type(api, client, http):
    for kind in (
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint32",
        "uint64",
        "bool",
    ):
        x = np.array([0, 1, 1, 0]).astype(kind)
        for binary in (True, False) if http and kind != "float16" else (None,):
            found = infer(api, client, kind, {"x": x}, binary=binary).as_numpy("y")
            assert found.dtype == x.dtype
            np.testing.assert_array_equal(found, x)


def texts(api, client, http):
    x = np.array(["a", "", "\u00fc\u20ac", "x" * 300], dtype=object)
    for binary in (True, False) if http else (None,):
        found = infer(api, client, "str", {"x": x}, binary=binary).as_numpy("y")
        assert [one.decode() for one in found.tolist()] == x.tolist()


def versions(api, client, http):
    x = np.array([1], np.float32)
    for version, expected in (("1", 1.5), ("2", 2.5), ("", 2.5)):
        assert infer(api, client, "half", {"x": x}, model_version=version).as_numpy("y").tolist() == [expected]
    assert "version 9" in refused(api, lambda: infer(api, client, "half", {"x": x}, model_version="9"))
    assert "no model" in refused(api, lambda: infer(api, client, "hlaf", {"x": x}))


def not_finite(api, client, http):
    x = np.array([np.nan, np.inf, -np.inf, 1], np.float64)
    for binary in (True, False) if http else (None,):
        asked = [api.InferRequestedOutput("y", *([] if binary is None else [binary]))]
        np.testing.assert_array_equal(infer(api, client, "float64", {"x": x}, asked, binary=binary).as_numpy("y"), x)


def classes(api, client, http):
    more = {"class_count": 1}
    asked = [api.InferRequestedOutput("y", **more)]
    found = infer(api, client, "names", {"x": np.array([[0.25, 0.75], [1, 0]], np.float32)}, asked)
    assert [[one.decode() for one in row] for row in found.as_numpy("y").tolist()] == [
        ["0.750000:1:yes"],
        ["1.000000:0:no"],
    ]


def bad_requests(api, client, http):
    x = np.zeros((1, 4), np.float32)
    assert "must be float32" in refused(api, lambda: infer(api, client, "mlp", {"x": np.zeros((1, 5), np.float32)}))
    assert "expects FP32" in refused(api, lambda: infer(api, client, "mlp", {"x": x.astype(np.int32)}))
    assert "unexpected inference input" in refused(api, lambda: infer(api, client, "mlp", {"z": x}))
    asked = [api.InferRequestedOutput("z")]
    assert "unexpected inference output" in refused(api, lambda: infer(api, client, "mlp", {"x": x}, asked))
    assert "can not take" in refused(api, lambda: infer(api, client, "gather", {"i": np.array([99])}))


def health_and_metadata(api, client, http):
    assert client.is_server_live() and client.is_server_ready()
    assert (
        client.is_model_ready("mlp") and client.is_model_ready("half", "1") and not client.is_model_ready("half", "9")
    )
    about = client.get_server_metadata(**({} if http else {"as_json": True}))
    assert about["name"] == "steersman" and "binary_tensor_data" in about["extensions"]
    model = client.get_model_metadata("half", **({} if http else {"as_json": True}))
    assert model["versions"] == ["1", "2"] and model["platform"] == "onnx_onnxv1"
    [x] = model["inputs"]
    assert (x["name"], x["datatype"], [int(size) for size in x["shape"]]) == ("x", "FP32", [-1])


def config_and_statistics(api, client, http):
    config = client.get_model_config("mlp", **({} if http else {"as_json": True}))
    [x] = config["input"] if http else config["config"]["input"]
    assert (x["name"], x["data_type"], [int(size) for size in x["dims"]]) == ("x", "TYPE_FP32", [-1, 4])
    infer(api, client, "mlp", {"x": np.zeros((3, 4), np.float32)})
    [stats] = client.get_inference_statistics("mlp", **({} if http else {"as_json": True}))["model_stats"]
    assert (stats["name"], stats["version"]) == ("mlp", "1")
    assert int(stats["inference_count"]) >= int(stats["execution_count"]) + 2 > 2
    every = client.get_inference_statistics(**({} if http else {"as_json": True}))["model_stats"]
    assert len(every) > 10


def repository(api, client, http):
    found = client.get_model_repository_index(**({} if http else {"as_json": True}))
    index = {(one["name"], one["version"]): one["state"] for one in (found if http else found["models"])}
    assert index["half", "2"] == "READY"
    client.unload_model("cube")
    assert not client.is_model_ready("cube")
    assert "no model" in refused(api, lambda: infer(api, client, "cube", {"x": np.zeros((1, 1, 1), np.float32)}))
    client.load_model("cube")
    assert client.is_model_ready("cube")
    assert "did you mean" in refused(api, lambda: client.load_model("cubes"))


def typed_contents(api, client, http):
    """What a client of KServe without raw tensors sends: typed contents, answered by typed contents."""
    if http:
        return
    from tritonclient.grpc import service_pb2 as pb

    values = {
        "float32": "fp32",
        "float64": "fp64",
        "int64": "int64",
        "uint64": "uint64",
        "bool": "bool",
        "str": "bytes",
    }
    values |= dict.fromkeys(("int8", "int16", "int32"), "int") | dict.fromkeys(("uint8", "uint32"), "uint")
    for kind, field in values.items():
        data = [b"a", b""] if kind == "str" else [True, False] if kind == "bool" else [1, 0]
        request = pb.ModelInferRequest(model_name=kind, id="7")
        kinds = {"float32": "FP32", "float64": "FP64", "str": "BYTES"}
        one = request.inputs.add(name="x", datatype=kinds.get(kind, kind.upper()), shape=[2])
        getattr(one.contents, f"{field}_contents").extend(data)
        answer = client._client_stub.ModelInfer(request)
        assert (answer.id, answer.model_name, answer.model_version) == ("7", kind, "1")
        assert not answer.raw_output_contents
        [y] = answer.outputs
        assert (y.name, y.datatype, list(y.shape)) == ("y", one.datatype, [2])
        assert list(getattr(y.contents, f"{field}_contents")) == data, kind


def messages_are_the_official_ones(api, client, http):
    """Name, number and type of every field that our table has, as the stubs have them."""
    if http:
        return
    from tritonclient.grpc import service_pb2 as pb

    import described

    ours = json.loads(sys.argv[3])
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        for one in (method.input_type, method.output_type):
            described.check(one, ours)


CHECKS = (
    binary_and_json,
    compressed,
    all_outputs,
    every_type,
    texts,
    versions,
    not_finite,
    classes,
    bad_requests,
    health_and_metadata,
    config_and_statistics,
    repository,
    typed_contents,
    messages_are_the_official_ones,
)


def main() -> None:
    kind, port = sys.argv[1], sys.argv[2]
    if kind == "http":
        import tritonclient.http as api
    else:
        import tritonclient.grpc as api
    client = api.InferenceServerClient(f"127.0.0.1:{port}")
    found = {}
    for check in CHECKS:
        try:
            check(api, client, kind == "http")
            found[check.__name__] = ""
        except Exception:
            found[check.__name__] = traceback.format_exc()
    client.close()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
