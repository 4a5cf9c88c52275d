"""The Open Inference Protocol v2 over gRPC: messages to arrays and back. Pure; what they mean is in kserve."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict

from steersman.core.errors import DataError
from steersman.core.signature import TEXT, Signature, Tensor
from steersman.serve import kserve
from steersman.serve.kserve import Call, Question
from steersman.serve.messages import message, numbers

Array = np.ndarray
SERVICE = "inference.GRPCInferenceService"
_CONTENTS = {
    **dict.fromkeys(("int8", "int16", "int32"), "int_contents"),
    **dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents"),
    "int64": "int64_contents",
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    "bool": "bool_contents",
    TEXT: "bytes_contents",
}
ABOUT = {
    "ServerLive": "live",
    "ServerReady": "server ready",
    "ModelReady": "ready",
    "ServerMetadata": "server",
    "ModelMetadata": "metadata",
    "ModelConfig": "config",
    "ModelStatistics": "stats",
    "RepositoryIndex": "index",
}
"""Method of the service -> verb of `kserve.Call`; each takes METHODRequest and gives METHODResponse."""


def kind(name: str) -> Any:
    """The class of a message of the protocol."""
    return message(f"inference.{name}")


ModelInferRequest, ModelInferResponse = kind("ModelInferRequest"), kind("ModelInferResponse")


def call_of(method: str, request: Any) -> Call:
    """What a request of a method of ABOUT asks for.

    Raises:
        DataError: the version is not a number.
    """
    verb = ABOUT[method]
    name = getattr(request, "name", "")
    number = kserve.number_of(getattr(request, "version", ""))
    return Call("all stats" if verb == "stats" and not name else verb, name, number)


def write_about(method: str, told: Any) -> bytes:
    """The answer to a method of ABOUT, in bytes, from what REST says as JSON."""
    if method in ("RepositoryIndex", "ModelConfig"):
        told = {"models" if method == "RepositoryIndex" else "config": told}
    return ParseDict(told, kind(f"{method}Response")(), ignore_unknown_fields=True).SerializeToString()


def read_infer(request: Any, signature: Signature) -> Question:
    """The arrays of a ModelInferRequest; its answer is raw bytes if they were.

    Raises:
        DataError: they are not what the signature takes.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise DataError(f"raw_input_contents has {len(raw)} tensors, the request {len(request.inputs)} inputs")
    feeds: dict[str, Array] = {}
    for i, one in enumerate(request.inputs):
        if raw and one.HasField("contents"):
            raise DataError(f"input {one.name[:128]} has contents beside raw_input_contents")
        described = kserve.Input(one.name, list(one.shape), one.datatype, _parameters(one.parameters))
        flat = functools.partial(_flat, one.contents, raw[i] if raw else None)
        kserve.add_input(feeds, described, signature, flat)
    outputs = [kserve.Output(one.name, _parameters(one.parameters)) for one in request.outputs]
    parameters = _parameters(request.parameters) | {"binary_data_output": bool(raw)}
    return Question(feeds, kserve.wanted_outputs(outputs, parameters, signature), request.id)


def write_infer(name: str, number: int, question: Question, outputs: Sequence[Array], signature: Signature) -> bytes:
    """The ModelInferResponse, in bytes.

    Raises:
        DataError: classes of an output were asked for that has none.
    """
    response = ModelInferResponse(model_name=name, model_version=str(number), id=question.id)
    answered = list(kserve.answered(question, outputs, signature))
    # Half floats have no contents, and if one tensor is raw then all are.
    raw = any(wanted.binary or array.dtype == np.float16 for wanted, array, _ in answered)
    for wanted, array, datatype in answered:
        tensor = signature.outputs[wanted.place]
        one = response.outputs.add(name=tensor.name, datatype=datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(kserve.to_raw(array))
            continue
        dtype = TEXT if array.dtype == object else tensor.dtype
        found = array.reshape(-1).tolist()
        getattr(one.contents, _CONTENTS[dtype]).extend([text.encode() for text in found] if dtype == TEXT else found)
    return response.SerializeToString()


def _flat(contents: Any, raw: bytes | None, tensor: Tensor) -> Array:
    if raw is not None:
        return kserve.from_raw(raw, tensor.dtype, tensor.name)
    if tensor.dtype not in _CONTENTS:
        raise DataError(f"input {tensor.name}: half floats travel in raw_input_contents only")
    values = getattr(contents, _CONTENTS[tensor.dtype])
    for field, _ in contents.ListFields():
        if field.name != _CONTENTS[tensor.dtype]:
            raise DataError(f"input {tensor.name} has {field.name}, must have {_CONTENTS[tensor.dtype]}")
    if tensor.dtype != TEXT:
        return numbers(values, tensor.dtype, tensor.name)
    try:
        array = np.empty(len(values), object)
        array[:] = [value.decode() for value in values]
        return array
    except UnicodeDecodeError as error:
        raise DataError(f"input {tensor.name}: {error}") from None


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, one in parameters.items():
        choice = one.WhichOneof("parameter_choice")
        found[name] = getattr(one, choice) if choice else None
    return found
