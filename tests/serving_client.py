"""What the official stubs of tensorflow-serving-api do with our server: run by their own Python, prints what held."""

import importlib.util
import json
import sys
import traceback
import types
from pathlib import Path

import grpc
import numpy as np

import described

# The stubs import the messages of TensorFlow; `import tensorflow` itself would load a gigabyte for nothing.
spec = importlib.util.find_spec("tensorflow")
tensorflow = types.ModuleType("tensorflow")
tensorflow.__path__ = [str(Path(spec.origin).parent)]
sys.modules["tensorflow"] = tensorflow

from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from tensorflow.core.example import example_pb2  # noqa: E402
from tensorflow.core.framework import tensor_pb2, types_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

FIELDS = {
    "float32": ("DT_FLOAT", "float_val"),
    "float64": ("DT_DOUBLE", "double_val"),
    "float16": ("DT_HALF", "half_val"),
    **{kind: (f"DT_{kind.upper()}", "int_val") for kind in ("int8", "int16", "int32", "uint8")},
    **{kind: (f"DT_{kind.upper()}", f"{kind}_val") for kind in ("int64", "uint32", "uint64", "bool")},
    "str": ("DT_STRING", "string_val"),
}


class Api:
    def __init__(self, channel):
        self.predict = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)


def tensor(array, kind: str, content: bool = False) -> tensor_pb2.TensorProto:
    name, field = FIELDS[kind]
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DataType.Value(name))
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if content:
        proto.tensor_content = array.tobytes()
    else:
        flat = array.view(np.uint16) if kind == "float16" else array
        getattr(proto, field).extend(flat.ravel().tolist())
    return proto


def array_of(proto, kind: str):
    flat = list(getattr(proto, FIELDS[kind][1]))
    array = np.array(flat, np.uint16).view(np.float16) if kind == "float16" else np.array(flat)
    return array.reshape([dim.size for dim in proto.tensor_shape.dim])


def asked(name: str, version: int | None = None, label: str = "", signature: str = "", **inputs):
    request = predict_pb2.PredictRequest()
    fill(request.model_spec, name, version, label, signature)
    for one, proto in inputs.items():
        request.inputs[one].CopyFrom(proto)
    return request


def fill(spec, name: str, version: int | None = None, label: str = "", signature: str = ""):
    spec.name, spec.signature_name = name, signature
    if version is not None:
        spec.version.value = version
    if label:
        spec.version_label = label


def refused(code: str, call) -> str:
    try:
        call()
    except grpc.RpcError as error:
        assert error.code().name == code, (error.code(), error.details())
        return error.details()
    raise AssertionError("it was not refused")


X = np.array([1.0, 2.0], np.float32)


def predict_every_type(api):
    for kind in FIELDS:
        x = np.array([b"a", b""], object) if kind == "str" else np.array([1, 0]).astype(kind)
        for content in (False, True) if kind != "str" else (False,):
            answer = api.predict.Predict(asked(kind, x=tensor(x, kind, content)))
            assert answer.outputs["y"].dtype == types_pb2.DataType.Value(FIELDS[kind][0])
            assert not answer.outputs["y"].tensor_content
            np.testing.assert_array_equal(array_of(answer.outputs["y"], kind), x)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("str", 1)
    assert answer.model_spec.signature_name == "serving_default"


def the_last_value_is_repeated(api):
    short = tensor(X, "float32")
    short.tensor_shape.dim[0].size = 4
    found = api.predict.Predict(asked("float32", x=short)).outputs["y"]
    assert list(found.float_val) == [1, 2, 2, 2]
    del short.float_val[:]
    assert list(api.predict.Predict(asked("float32", x=short)).outputs["y"].float_val) == [0] * 4
    short.tensor_shape.dim[0].size = 1 << 40
    assert "over" in refused("RESOURCE_EXHAUSTED", lambda: api.predict.Predict(asked("float32", x=short)))


def versions_labels_and_filters(api):
    x = tensor(X, "float32")
    for more, first in (
        ({}, 2.5),
        ({"version": 1}, 1.5),
        ({"label": "old"}, 1.5),
        ({"signature": "serving_default"}, 2.5),
    ):
        assert api.predict.Predict(asked("half", x=x, **more)).outputs["y"].float_val[0] == first
    pair = {"a": tensor(np.ones((2, 2), np.float32), "float32"), "b": tensor(np.array([1, 2], np.int32), "int32")}
    request = asked("pair", **pair)
    assert set(api.predict.Predict(request).outputs) == {"total", "b_again"}
    request.output_filter.append("total")
    assert list(api.predict.Predict(request).outputs) == ["total"]
    assert list(api.predict.Predict(request).outputs["total"].float_val) == [3, 4]
    request.output_filter.append("more")
    assert "set {b_again,total}" in refused("INVALID_ARGUMENT", lambda: api.predict.Predict(request))


def predict_refusals(api):
    x, predict = tensor(X, "float32"), api.predict.Predict
    assert refused("NOT_FOUND", lambda: predict(asked("hlaf", x=x))) == "Servable not found for request: Latest(hlaf)"
    told = refused("NOT_FOUND", lambda: predict(asked("half", version=9, x=x)))
    assert told == "Servable not found for request: Specific(half, 9)"
    told = refused("INVALID_ARGUMENT", lambda: predict(asked("half", label="new", x=x)))
    assert told == "Unrecognized servable version label: new"
    told = refused("INVALID_ARGUMENT", lambda: predict(asked("half", signature="other", x=x)))
    assert told == 'Serving signature name: "other" not found in signature def'
    assert refused("INVALID_ARGUMENT", lambda: predict(asked("", x=x))) == "ModelSpec has no name specified."
    assert "must be x" in refused("INVALID_ARGUMENT", lambda: predict(asked("half")))
    assert "none of the model's" in refused("INVALID_ARGUMENT", lambda: predict(asked("half", z=x)))
    assert "expected type" in refused(
        "INVALID_ARGUMENT", lambda: predict(asked("half", x=tensor(X.astype(float), "float64")))
    )
    many = tensor(X, "float32")
    many.float_val.append(3)
    assert "3 values" in refused("INVALID_ARGUMENT", lambda: predict(asked("half", x=many)))
    cut = tensor(X, "float32", content=True)
    cut.tensor_content = cut.tensor_content[:-1]
    assert "7 bytes" in refused("INVALID_ARGUMENT", lambda: predict(asked("half", x=cut)))
    wide = tensor(np.array([300], np.int32), "int32")
    wide.dtype = types_pb2.DT_INT8
    assert "300 is no int8" in refused("INVALID_ARGUMENT", lambda: predict(asked("int8", x=wide)))
    far = tensor(np.array([99]), "int64")
    assert "can not take" in refused("INVALID_ARGUMENT", lambda: predict(asked("gather", i=far)))


def example(**features) -> example_pb2.Example:
    made = example_pb2.Example()
    for name, values in features.items():
        made.features.feature[name].float_list.value.extend(values)
    return made


def classify_and_regress(api):
    request = classification_pb2.ClassificationRequest()
    fill(request.model_spec, "names")
    request.input.example_list.examples.extend([example(x=[0.25, 0.75]), example(x=[1, 0])])
    answer = api.predict.Classify(request)
    found = [[(one.label, one.score) for one in row.classes] for row in answer.result.classifications]
    assert found == [[("no", 0.25), ("yes", 0.75)], [("no", 1), ("yes", 0)]]
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("names", 2)
    regress = regression_pb2.RegressionRequest()
    fill(regress.model_spec, "half")
    regress.input.example_list_with_context.examples.extend([example(x=[4]), example()])
    regress.input.example_list_with_context.context.CopyFrom(example(x=[2]))
    assert [one.value for one in api.predict.Regress(regress).result.regressions] == [4, 3]
    assert "Input is empty" in refused(
        "INVALID_ARGUMENT", lambda: api.predict.Regress(regression_pb2.RegressionRequest(model_spec=regress.model_spec))
    )
    regress.input.example_list.examples.extend([example(z=[4])])
    assert "no input of the model" in refused("INVALID_ARGUMENT", lambda: api.predict.Regress(regress))


def multi_inference(api):
    request = inference_pb2.MultiInferenceRequest()
    for method in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        fill(task.model_spec, "half")
    request.input.example_list.examples.append(example(x=[4]))
    first, second = api.predict.MultiInference(request).results
    assert [one.score for one in first.classification_result.classifications[0].classes] == [4]
    assert [one.value for one in second.regression_result.regressions] == [4]
    assert second.model_spec.version.value == 2
    request.tasks[1].method_name = "tensorflow/serving/predict"
    assert "Unsupported" in refused("UNIMPLEMENTED", lambda: api.predict.MultiInference(request))
    request.tasks[1].model_spec.name = "names"
    assert "same model" in refused("INVALID_ARGUMENT", lambda: api.predict.MultiInference(request))


def metadata(api):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    fill(request.model_spec, "pair")
    answer = api.predict.GetModelMetadata(request)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("pair", 1)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(found)
    definition = found.signature_def["serving_default"]
    assert definition.method_name == "tensorflow/serving/predict"
    a = definition.inputs["a"]
    assert (a.dtype, [dim.size for dim in a.tensor_shape.dim]) == (types_pb2.DT_FLOAT, [-1, 2])
    assert definition.outputs["b_again"].dtype == types_pb2.DT_INT32
    request.metadata_field[0] = "else"
    assert "else is not supported" in refused("INVALID_ARGUMENT", lambda: api.predict.GetModelMetadata(request))


def status(api):
    request = get_model_status_pb2.GetModelStatusRequest()
    fill(request.model_spec, "half")
    found = api.models.GetModelStatus(request).model_version_status
    assert [(one.version, one.state, one.status.error_code) for one in found] == [(2, 30, 0), (1, 30, 0)]
    request.model_spec.version.value = 1
    assert [one.version for one in api.models.GetModelStatus(request).model_version_status] == [1]
    request.model_spec.version.value = 7
    told = refused("NOT_FOUND", lambda: api.models.GetModelStatus(request))
    assert told == "Could not find version 7 of model half"


def reload(api):
    def config(*names):
        request = model_management_pb2.ReloadConfigRequest()
        for name in names:
            request.config.model_config_list.config.add(name=name, base_path="/models", model_platform="tensorflow")
        return api.models.HandleReloadConfigRequest(request)

    def served(name):
        request = get_model_status_pb2.GetModelStatusRequest()
        fill(request.model_spec, name)
        try:
            return [one.state for one in api.models.GetModelStatus(request).model_version_status]
        except grpc.RpcError as error:
            return error.code().name

    every = sys.argv[4].split(",")
    assert config(*every[1:]).status.error_code == 0
    assert served(every[0]) == "NOT_FOUND" and served(every[1]) == [30]
    assert "did you mean" in refused("NOT_FOUND", lambda: config(every[0], "hlaf"))
    assert served(every[0]) == "NOT_FOUND" and served(every[1]) == [30]
    assert "multiple times" in refused("INVALID_ARGUMENT", lambda: config("half", "half"))
    config(*every)
    assert [served(one)[0] for one in every] == [30] * len(every)


def health(api):
    for service in ("", "tensorflow.serving.PredictionService", "inference.GRPCInferenceService"):
        assert api.health.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
    refused("NOT_FOUND", lambda: api.health.Check(health_pb2.HealthCheckRequest(service="other")))
    for service, expected in (("", 1), ("other", 3)):
        watched = api.health.Watch(health_pb2.HealthCheckRequest(service=service))
        assert next(watched).status == expected
        watched.cancel()


def messages_are_the_official_ones(api):
    ours = json.loads(sys.argv[3])
    services = (prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"],)
    services += (model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],)
    services += (health_pb2.DESCRIPTOR.services_by_name["Health"],)
    compared = [get_model_metadata_pb2.SignatureDefMap.DESCRIPTOR]
    for service in services:
        for method in service.methods:
            compared += [method.input_type, method.output_type]
    assert sum(one.full_name in ours for one in compared) >= 19
    for one in compared:
        described.check(one, ours)


CHECKS = (
    predict_every_type,
    the_last_value_is_repeated,
    versions_labels_and_filters,
    predict_refusals,
    classify_and_regress,
    multi_inference,
    metadata,
    status,
    reload,
    health,
    messages_are_the_official_ones,
)


def main() -> None:
    found = {}
    with grpc.insecure_channel(f"127.0.0.1:{sys.argv[2]}") as channel:
        api = Api(channel)
        for check in CHECKS:
            try:
                check(api)
                found[check.__name__] = ""
            except Exception:
                found[check.__name__] = traceback.format_exc()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
