"""TensorFlow Serving's gRPC API: messages to arrays and arrays to messages. Pure; what they mean is in tfserving."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict

from steersman.core.errors import DataError, TooLargeError
from steersman.core.signature import TEXT, Signature, Tensor
from steersman.serve import tfserving
from steersman.serve.judging import classes_of, values_of
from steersman.serve.messages import message, number_in, numbers, tag_of, varint
from steersman.serve.tfserving import Call
from steersman.serve.values import UnimplementedError, count_of, shaped

Array = np.ndarray
PREDICTION = "tensorflow.serving.PredictionService"
MODEL = "tensorflow.serving.ModelService"
SHAPES = 256
"""Of answers of which the bytes around the numbers are kept."""
ANY = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
METHODS = {"tensorflow/serving/classify": "classify", "tensorflow/serving/regress": "regress"}
_VALUES = {
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), "int_val"),
    "float32": "float_val",
    "float64": "double_val",
    "float16": "half_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
    TEXT: "string_val",
}
_CONTENT = {dtype: np.dtype(dtype).newbyteorder("<") for dtype in _VALUES if dtype not in (TEXT, "bool")}
_CONTENT["bool"] = np.dtype(np.uint8)
_PACKED = {dtype: tag_of(f"tensorflow.TensorProto.{_VALUES[dtype]}") for dtype in ("float32", "float64")}
_OUTPUTS = tag_of("tensorflow.serving.PredictResponse.outputs")
_NUMBERS = {dtype: number_in("tensorflow.DataType", tfserving.type_name(dtype)) for dtype in _VALUES}


def _serving(name: str) -> Any:
    return message(f"tensorflow.serving.{name}")


PredictRequest, PredictResponse = _serving("PredictRequest"), _serving("PredictResponse")
ClassificationRequest, ClassificationResponse = _serving("ClassificationRequest"), _serving("ClassificationResponse")
RegressionRequest, RegressionResponse = _serving("RegressionRequest"), _serving("RegressionResponse")
MultiInferenceRequest, MultiInferenceResponse = _serving("MultiInferenceRequest"), _serving("MultiInferenceResponse")
GetModelMetadataRequest = _serving("GetModelMetadataRequest")
GetModelMetadataResponse = _serving("GetModelMetadataResponse")
GetModelStatusRequest, GetModelStatusResponse = _serving("GetModelStatusRequest"), _serving("GetModelStatusResponse")
_TensorProto = message("tensorflow.TensorProto")
ReloadConfigRequest, ReloadConfigResponse = _serving("ReloadConfigRequest"), _serving("ReloadConfigResponse")
_SignatureDefMap = _serving("SignatureDefMap")


def call_of(verb: str, spec: Any) -> Call:
    """What a ModelSpec asks for.

    Raises:
        DataError: it has no name, or another signature than the one there is.
    """
    if not spec.name:
        raise DataError("ModelSpec has no name specified.")
    tfserving.check_signature(spec.signature_name)
    choice = spec.WhichOneof("version_choice")
    number = spec.version.value if choice == "version" else None
    return Call(verb, spec.name, number, spec.version_label if choice == "version_label" else None)


def _fill_spec(spec: Any, name: str, number: int) -> None:
    spec.name = name
    spec.version.value = number
    spec.signature_name = tfserving.SIGNATURE


# -- predict --------------------------------------------------------------------------------------------------------


def read_predict(request: Any, signature: Signature, most_bytes: int) -> dict[str, Array]:
    """The arrays of a PredictRequest.

    Args:
        most_bytes: of an array; a few values may stand for many.
    Raises:
        DataError: they are not what the signature takes.
    """
    tensors = {tensor.name: tensor for tensor in signature.inputs}
    feeds = {}
    for name, proto in request.inputs.items():
        if name not in tensors:
            raise DataError(f"input {name[:128]!r} is none of the model's: {', '.join(tensors)}")
        feeds[name] = from_proto(proto, tensors[name], most_bytes)
    return feeds


def write_predict(
    wanted: Sequence[str], name: str, number: int, outputs: Sequence[Array], signature: Signature
) -> bytes:
    """The PredictResponse, in bytes.

    Args:
        wanted: names of outputs; none: all.
    Raises:
        DataError: an output was asked for that there is not.
    """
    if wanted:
        _check_filter(wanted, signature)
    pairs = zip(signature.outputs, outputs, strict=True)
    found = [(tensor, array) for tensor, array in pairs if not wanted or tensor.name in wanted]
    if _PACKED.keys() >= {tensor.dtype for tensor, _ in found}:
        heads = _heads(name, number, tuple([(tensor.name, tensor.dtype, array.shape) for tensor, array in found]))
        parts = [heads[-1]]
        for head, (tensor, array) in zip(heads, found, strict=False):
            parts += head, _bytes(array, tensor.dtype)
        return b"".join(parts)
    response = PredictResponse()
    _fill_spec(response.model_spec, name, number)
    for tensor, array in found:
        to_proto(array, tensor.dtype, response.outputs[tensor.name])
    return response.SerializeToString()


@functools.lru_cache(SHAPES)
def _heads(name: str, number: int, outputs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> tuple[bytes, ...]:
    """What stands before the numbers of each output of a PredictResponse, and the rest of it.

    Packed floats are their bytes, little endian, so that these lie between as they are.
    """
    heads = []
    for output, dtype, shape in outputs:
        size = math.prod(shape) * _CONTENT[dtype].itemsize
        proto = _TensorProto(dtype=_NUMBERS[dtype])
        for axis in shape:
            proto.tensor_shape.dim.add(size=axis)
        value = proto.SerializeToString() + _PACKED[dtype] + varint(size)
        key = output.encode()
        entry = b"\x0a" + varint(len(key)) + key + b"\x12" + varint(len(value) + size) + value
        heads.append(_OUTPUTS + varint(len(entry) + size) + entry)
    response = PredictResponse()
    _fill_spec(response.model_spec, name, number)
    return *heads, response.SerializeToString()


def _check_filter(wanted: Sequence[str], signature: Signature) -> None:
    names = {tensor.name for tensor in signature.outputs}
    unknown = set(wanted) - names
    if unknown:
        raise DataError(
            f"output tensor alias not found in signature: {min(unknown)[:128]} Outputs expected to be in the set "
            f"{{{','.join(sorted(names))}}}."
        )


def from_proto(proto: Any, tensor: Tensor, most_bytes: int) -> Array:
    """An array of a tensor's type from a TensorProto, whose values stand in their field or in tensor_content.

    Fewer values than elements: the last is repeated; none: all are 0, or empty. So says TensorFlow.

    Args:
        most_bytes: that repeated values may take.
    Raises:
        DataError: it is of another type, or its values do not fill its shape.
    """
    if proto.dtype != _NUMBERS[tensor.dtype]:
        raise DataError(f"input {tensor.name}: expected type {tfserving.type_name(tensor.dtype)}, got {proto.dtype}")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or (shape and min(shape) < 0):
        raise DataError(f"input {tensor.name} has no shape that values can fill")
    count = count_of(shape, tensor.name)
    content = proto.tensor_content
    if content:
        kind = _CONTENT.get(tensor.dtype)
        if kind is None or len(content) != count * kind.itemsize:
            raise DataError(f"input {tensor.name} of shape {shape} can not be {len(content)} bytes of content")
        array = np.frombuffer(content, kind)
        return shaped(array != 0 if tensor.dtype == "bool" else array, shape, tensor.name)
    given = _given(getattr(proto, _VALUES[tensor.dtype]), tensor)
    if len(given) > count:
        raise DataError(f"input {tensor.name} has {len(given)} values, its shape {shape} says {count}")
    if len(given) < count:
        if count * tensor.numpy.itemsize > most_bytes:
            raise TooLargeError(f"input {tensor.name} of shape {shape} is over {most_bytes} bytes")
        last = given[-1:] if len(given) else _given([b""] if tensor.dtype == TEXT else [0], tensor)
        given = np.concatenate([given, np.repeat(last, count - len(given))])
    return shaped(given, shape, tensor.name)


def _given(values: Any, tensor: Tensor) -> Array:
    if tensor.dtype == TEXT:
        array = np.empty(len(values), object)
        array[:] = [_text(value, tensor.name) for value in values]
        return array
    if tensor.dtype == "float16":  # the bits of each, as a number
        return numbers(values, "uint16", tensor.name).view(np.float16)
    return numbers(values, tensor.dtype, tensor.name)


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"input {name}: a text is not UTF-8: {error}") from None


def to_proto(array: Array, dtype: str, proto: Any) -> None:
    """Fill a TensorProto with an array, each value in the field of its type.

    Packed floats are their bytes, little endian; so they are copied and not told one by one.
    """
    proto.dtype = _NUMBERS[dtype]
    add = proto.tensor_shape.dim.add
    for size in array.shape:
        add(size=size)
    if dtype in _PACKED:
        data = _bytes(array, dtype)
        proto.MergeFromString(_PACKED[dtype] + varint(len(data)) + data)
        return
    found = (array.view(np.uint16) if dtype == "float16" else array).ravel().tolist()
    getattr(proto, _VALUES[dtype]).extend([text.encode() for text in found] if dtype == TEXT else found)


def _bytes(array: Array, dtype: str) -> bytes:
    return array.astype(_CONTENT[dtype], copy=False).tobytes()


# -- classify and regress -------------------------------------------------------------------------------------------


def read_input(input_: Any, signature: Signature) -> dict[str, Array]:
    """The arrays of the examples of a request.

    Raises:
        DataError: there is none, or they are not what the signature takes.
    """
    kind = input_.WhichOneof("kind")
    if kind is None or not getattr(input_, kind).examples:
        raise DataError("Input is empty.")
    found = getattr(input_, kind)
    context = _features(found.context) if kind == "example_list_with_context" else {}
    examples = tfserving.with_context(context, [_features(example) for example in found.examples])
    return tfserving.features_to_feeds(examples, signature)


def _features(example: Any) -> Mapping[str, list[Any]]:
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        found[name] = [_text(value, name) for value in values] if kind == "bytes_list" else values
    return found


def fill_result(verb: str, response: Any, served: tuple[str, int], outputs: Sequence[Array], sig: Signature) -> Any:
    """Fill the answer of a verb, or that to one task of several, which is returned.

    Args:
        served: name and number of the version that answers.
    Raises:
        DataError: the outputs are not what the verb answers with.
    """
    _fill_spec(response.model_spec, *served)
    one_of_several = "result" not in response.DESCRIPTOR.fields_by_name
    if verb == "classify":
        result = response.classification_result if one_of_several else response.result
        for row in classes_of(outputs, sig):
            classes = result.classifications.add().classes
            for label, score in row:
                classes.add(label=label, score=score)
    else:
        result = response.regression_result if one_of_several else response.result
        for value in values_of(outputs, sig):
            result.regressions.add(value=value)
    return response


def calls_of(request: Any) -> list[Call]:
    """What every task of a MultiInferenceRequest asks for.

    Raises:
        DataError: there is none, they are of several models, or two are the same.
        UnimplementedError: a task is neither to classify nor to regress.
    """
    if not request.tasks:
        raise DataError("Inference request has no tasks.")
    if len({task.model_spec.name for task in request.tasks}) > 1:
        raise DataError("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
    for task in request.tasks:
        if task.method_name not in METHODS:
            raise UnimplementedError(f"Unsupported signature method_name: {task.method_name[:128]}")
    calls = [call_of(METHODS[task.method_name], task.model_spec) for task in request.tasks]
    if len(set(calls)) < len(calls):
        raise DataError(f"Duplicate evaluation of signature: {tfserving.SIGNATURE}")
    return calls


# -- status, metadata, what is served -------------------------------------------------------------------------------


def metadata_call(request: Any) -> Call:
    """What a GetModelMetadataRequest asks for.

    Raises:
        DataError: another field than signature_def, or none.
    """
    call = call_of("metadata", request.model_spec)
    if not request.metadata_field:
        raise DataError("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise DataError(f"Metadata field {field[:128]} is not supported")
    return call


def write_metadata(name: str, number: int, signature: Signature) -> bytes:
    """The GetModelMetadataResponse, in bytes."""
    about = tfserving.metadata(name, number, signature)
    response = GetModelMetadataResponse()
    response.model_spec.name = name
    response.model_spec.version.value = number
    any_ = response.metadata["signature_def"]
    any_.type_url = ANY
    any_.value = ParseDict(about["metadata"]["signature_def"], _SignatureDefMap()).SerializeToString()
    return response.SerializeToString()


def write_status(name: str, states: Sequence[Any], number: int | None) -> bytes:
    """The GetModelStatusResponse, in bytes.

    Raises:
        NotFoundError: there is no such version.
    """
    return ParseDict(tfserving.status(name, states, number), GetModelStatusResponse()).SerializeToString()


def names_of(request: Any) -> list[str]:
    """The models that a ReloadConfigRequest wants served, and no others.

    Raises:
        DataError: it is no list of models, or one is there twice.
        UnimplementedError: it has a version policy or labels.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise DataError("the config is no model_config_list")
    names = [one.name for one in request.config.model_config_list.config]
    for one in request.config.model_config_list.config:
        if one.HasField("model_version_policy") or one.version_labels:
            raise UnimplementedError(
                f"model {one.name[:128]}: version policies and labels are declared under [model.NAME] in steersman.toml"
            )
    if len(set(names)) < len(names):
        raise DataError(
            f"Illegal to list model {Counter(names).most_common(1)[0][0][:128]} multiple times in config list"
        )
    return names
