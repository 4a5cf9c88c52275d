"""TensorFlow Serving's REST API: bytes to arrays and arrays to bytes. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType

from steersman.core.errors import DataError, Error, NotFoundError, TooLargeError
from steersman.core.signature import FREE, TEXT, Signature, Tensor
from steersman.serve import values
from steersman.serve.judging import classes_of, values_of
from steersman.serve.metrics import code_of
from steersman.serve.values import ROUTES, is_bytes, jsonable, kind_of, shape_of, shown

Array = np.ndarray
PREFIX = "/v1/models"
SIGNATURE = "serving_default"
METHOD = "tensorflow/serving/predict"
REPEATED_BYTES = 16 << 20
"""As JSON, what a context may stand for in all examples together."""

_VERSION = r"(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_CALL = re.compile(rf"{PREFIX}/([^/:]+){_VERSION}:(classify|regress|predict)", re.IGNORECASE)
_LOOK = re.compile(rf"{PREFIX}(?:/([^/:]+))?{_VERSION}(?:/(metadata))?", re.IGNORECASE)
_DTYPES = {
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "float16": "DT_HALF",
    TEXT: "DT_STRING",
    "bool": "DT_BOOL",
}
_to_json = msgspec.json.Encoder().encode


class Call(Struct, frozen=True):
    """What a path asks for.

    Attributes:
        verb: `predict`, `classify`, `regress`, `status` or `metadata`.
        number, label: the version; at most one of them.
    """

    verb: str
    name: str
    number: int | None = None
    label: str | None = None


class Question(Struct, frozen=True):
    """A body, read: the arrays, and what the answer must look like."""

    feeds: dict[str, Array]
    row_form: bool = True


Reader = Callable[[bytes], Question]


@functools.lru_cache(ROUTES)
def route(method: str, path: str) -> Call:
    """What a request line asks for; the path is still quoted.

    Raises:
        DataError: nothing that there is.
    """
    found = (_CALL if method == "POST" else _LOOK).fullmatch(path) if method in ("POST", "GET") else None
    if not found:
        raise DataError(f"Malformed request: {method} {path[:200]}")
    name, number, label, verb = found.groups()
    if name is None:
        raise DataError("Missing model name in request.")
    if number is not None and (len(number) > 19 or int(number) >= 2**63):
        raise DataError(f"Failed to convert version: {number[:80]}")
    verb = verb.lower() if verb else "status"
    return Call(verb, unquote(name), int(number) if number else None, unquote(label) if label else None)


def not_served(call: Call, label_known: bool) -> Error:
    """No version answers: what TensorFlow Serving says then."""
    if call.label is not None and not label_known:
        return DataError(f"Unrecognized servable version label: {call.label}")
    which = f"Latest({call.name})" if call.number is None else f"Specific({call.name}, {call.number})"
    return NotFoundError(f"Servable not found for request: {which}")


def error_body(error: Error) -> bytes:
    """An error as its clients expect it."""
    return _to_json({"error": f"{error.message[:2000]}"})


# -- predict --------------------------------------------------------------------------------------------------------


def reader(signature: Signature) -> Reader:
    """A function from the body of a predict request to its arrays.

    What is regular, rows of floats or texts, is read by a decoder made for the signature; whatever that does not
    take, and every error, by `read_predict`.
    """
    quick = _quick_reader(signature)
    if quick is None:
        return lambda body: read_predict(body, signature)

    def read(body: bytes) -> Question:
        return quick(body) or read_predict(body, signature)

    return read


def read_predict(body: bytes, signature: Signature) -> Question:
    """The arrays of a predict request, in row or columnar form.

    Raises:
        DataError: the body is not what the signature takes.
    """
    return read_document(values.parse(body), signature)


def from_instances(instances: list[Any], signature: Signature) -> Question:
    """The arrays of the rows of a predict request.

    Raises:
        DataError: they are not what the signature takes.
    """
    return Question(_rows(instances, signature))


def read_document(document: Any, signature: Signature) -> Question:
    """The same as `read_predict`, of a body that was parsed."""
    document = _checked_object(document)
    _check_signature(document)
    if "instances" in document and "inputs" in document:
        raise DataError("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in document:
        return Question(_rows(document["instances"], signature), row_form=True)
    if "inputs" in document:
        return Question(_columns(document["inputs"], signature), row_form=False)
    raise DataError("Missing 'inputs' or 'instances' key")


def write_predict(question: Question, outputs: Sequence[Array], signature: Signature) -> bytes:
    """The answer to a predict request.

    Raises:
        DataError: the row form was asked for, and the outputs do not have as many rows.
    """
    columns = [
        jsonable(array, tensor.name.endswith("_bytes"))
        for array, tensor in zip(outputs, signature.outputs, strict=True)
    ]
    named: Any
    if question.row_form:
        _check_rows(outputs, signature)
        if len(columns) == 1:
            named = columns[0]
        else:
            names = [tensor.name for tensor in signature.outputs]
            named = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        body = {"predictions": named}
    else:
        names = [tensor.name for tensor in signature.outputs]
        body = {"outputs": columns[0] if len(columns) == 1 else dict(zip(names, columns, strict=True))}
    return values.encode(body)


def _check_rows(outputs: Sequence[Array], signature: Signature) -> None:
    size = None
    for array, tensor in zip(outputs, signature.outputs, strict=True):
        if array.ndim == 0:
            raise DataError(f"Tensor name: {tensor.name} has no shape information")
        if size is not None and len(array) != size:
            raise DataError(f"Tensor name: {tensor.name} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)


def _checked_object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise DataError(f"JSON Value: {shown(document)} Is not object")
    return document


def _check_signature(document: Mapping[str, Any]) -> None:
    name = document.get("signature_name", SIGNATURE)
    if not isinstance(name, str):
        raise DataError("'signature_name' key must be a string value.")
    check_signature(name)


def check_signature(name: str) -> None:
    """Raises DataError for another signature than the one there is."""
    if name not in ("", SIGNATURE):
        raise DataError(f'Serving signature name: "{name[:128]}" not found in signature def')


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_bytes(value)


def _rows(instances: Any, signature: Signature) -> dict[str, Array]:
    if not isinstance(instances, list):
        raise DataError(f"Expecting 'instances' value to be an array/list, not {kind_of(instances)}")
    if not instances:
        raise DataError("'instances' must be a non-empty array/list")
    if not _is_named(instances[0]):
        [tensor, *more] = signature.inputs
        if more:
            names = ",".join(sorted(one.name for one in signature.inputs))
            raise DataError(f"instances is a plain list, but expecting list of objects as multiple inputs: {names}")
        if any(_is_named(one) for one in instances):
            raise DataError("Expecting value/list, not object, in every element of 'instances'")
        return {tensor.name: _stacked(instances, tensor)}
    wanted = {tensor.name for tensor in signature.inputs}
    for one in instances:
        if not _is_named(one):
            raise DataError(f"Expecting object but got list/value: {shown(one)}")
        if one.keys() != wanted:
            expected = ",".join(sorted(wanted))
            raise DataError(
                f"Failed to process element: {shown(one)} of 'instances'. keys must be equal to: {expected}"
            )
    return {tensor.name: _stacked([one[tensor.name] for one in instances], tensor) for tensor in signature.inputs}


def _stacked(rows: list[Any], tensor: Tensor) -> Array:
    """Rows of one shape as one array."""
    first = shape_of(rows[0])
    for row in rows:
        shape = shape_of(row)
        sizes = int(np.prod(first)), int(np.prod(shape))
        if sizes[0] != sizes[1]:
            raise DataError(f"Expecting tensor size: {sizes[0]} but got: {sizes[1]}")
        if shape != first:
            raise DataError(f"Expecting shape {_bracketed(first)} but got: {_bracketed(shape)}")
    return values.array(rows, tensor)


def _bracketed(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _columns(inputs: Any, signature: Signature) -> dict[str, Array]:
    if not _is_named(inputs):
        [tensor, *more] = signature.inputs
        if more:
            names = ",".join(sorted(one.name for one in signature.inputs))
            raise DataError(f"inputs is a plain value/list, but expecting an object as multiple inputs: {names}")
        return {tensor.name: values.array(inputs, tensor)}
    for tensor in signature.inputs:
        if tensor.name not in inputs:
            raise DataError(f"Missing named input: {tensor.name} in 'inputs' object.")
    return {tensor.name: values.array(inputs[tensor.name], tensor) for tensor in signature.inputs}


def _quick_reader(signature: Signature) -> Callable[[bytes], Question | None] | None:
    """Reads rows of floats or texts, one tensor or several by name; gives None for all else."""
    most = float(np.finfo(np.float32).max)
    kinds: dict[str, Any] = {
        "float32": Annotated[float, msgspec.Meta(ge=-most, le=most)],
        "float64": float,
        TEXT: str,
    }
    if not all(tensor.shape and tensor.dtype in kinds for tensor in signature.inputs):
        return None
    row_kinds: list[Any] = []
    for tensor in signature.inputs:
        kind: Any = kinds[tensor.dtype]
        for _ in tensor.shape[1:] if tensor.shape else ():
            kind = list[kind]
        row_kinds.append(kind)
    names = [tensor.name for tensor in signature.inputs]
    fields: list[tuple[str, Any]] = [(f"f{i}", kind) for i, kind in enumerate(row_kinds)]
    rename = {f"f{i}": name for i, name in enumerate(names)}
    by_name = msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True)
    row = row_kinds[0] if len(names) == 1 else by_name
    filled = Annotated[list[row], msgspec.Meta(min_length=1)]  # type: ignore[valid-type]
    later: list[tuple[str, Any, Any]] = [
        ("inputs", msgspec.Raw | UnsetType, UNSET),
        ("signature_name", str, SIGNATURE),
    ]
    body_kind: Any = msgspec.defstruct("Body", [("instances", filled), *later])
    decode = msgspec.json.Decoder(body_kind).decode
    dtypes = [tensor.numpy for tensor in signature.inputs]
    ranks = [len(tensor.shape or ()) for tensor in signature.inputs]

    def read(body: bytes) -> Question | None:
        try:
            document = decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if document.inputs is not UNSET or document.signature_name not in (SIGNATURE, ""):
            return None
        rows = document.instances
        columns = [rows] if len(names) == 1 else [[getattr(row, field) for row in rows] for field, _ in fields]
        try:
            feeds = {n: np.array(c, dtype=t) for n, c, t in zip(names, columns, dtypes, strict=True)}
        except (ValueError, OverflowError):
            return None  # ragged
        for name, rank in zip(names, ranks, strict=True):
            if feeds[name].ndim != rank:
                return None
        return Question(feeds)

    return read


# -- classify and regress -------------------------------------------------------------------------------------------


def read_examples(body: bytes, signature: Signature) -> Question:
    """The arrays of a classify or regress request: each input takes the feature of its name, of the example or,
    where that has none, of the context.

    Raises:
        DataError: the body is not what the signature takes.
    """
    document = _checked_object(values.parse(body))
    _check_signature(document)
    examples, context = document.get("examples"), document.get("context", {})
    if not isinstance(examples, list) or not examples:
        raise DataError("'examples' must be a non-empty array/list")
    _check_example(context, "context")
    for example in examples:
        _check_example(example, "example")
    return Question(features_to_feeds(with_context(context, examples), signature))


def with_context(context: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Examples, each with the features of the context that it has not itself.

    Raises:
        TooLargeError: a small body would stand for too much.
    """
    if not context:
        return list(examples)
    size = len(values.write(context))
    if size * len(examples) > REPEATED_BYTES:
        raise TooLargeError(
            f"a context of {size} bytes for {len(examples)} examples is over {REPEATED_BYTES} bytes",
            hint="send fewer examples in one request",
        )
    return [{**context, **example} for example in examples]


def features_to_feeds(examples: Sequence[Mapping[str, Any]], signature: Signature) -> dict[str, Array]:
    """Arrays of examples; a feature is a value or a list of values.

    Raises:
        DataError: a feature is missing, unknown, or of another type or length.
    """
    names = {tensor.name for tensor in signature.inputs}
    for example in examples:
        for name in example:
            if name not in names:
                raise DataError(f"feature {name[:128]} is no input of the model: {', '.join(sorted(names))}")
    feeds = {}
    for tensor in signature.inputs:
        rank = len(tensor.shape or (FREE, FREE))
        if rank not in (1, 2):
            raise DataError(f"input {tensor.name} has {rank} axes; an example can tell a value or a list of values")
        rows = []
        for i, example in enumerate(examples):
            if tensor.name not in example:
                raise DataError(f"example {i}: feature {tensor.name} is required but could not be found")
            value = example[tensor.name]
            value = value if isinstance(value, list) else [value]
            if tensor.dtype != "bool":  # in an example true is a whole number
                value = [int(one) if isinstance(one, bool) else one for one in value]
            if rank == 1 and len(value) != 1:
                raise DataError(f"example {i}: feature {tensor.name} has {len(value)} values, must be 1")
            rows.append(value[0] if rank == 1 else value)
        feeds[tensor.name] = _stacked(rows, tensor)
    return feeds


def _check_example(example: Any, where: str) -> None:
    """Each feature must be numbers of one kind, or texts: what tensorflow.Example can hold."""
    if not isinstance(example, dict):
        raise DataError(f"{where} is {kind_of(example)}, must be an object of features")
    for name, value in example.items():
        kinds = {_feature_kind(one) for one in (value if isinstance(value, list) else [value])}
        if None in kinds or len(kinds) > 1:
            raise DataError(f"Unexpected element type in feature {name[:128]}: {shown(value)}")


def _feature_kind(value: Any) -> str | None:
    if isinstance(value, bool | int):
        return "int64"
    if isinstance(value, float):
        return "float"
    return "bytes" if isinstance(value, str) or is_bytes(value) else None


def write_results(results: Sequence[Any]) -> bytes:
    """The answer to a classify or regress request."""
    return values.write({"results": results})


def write(verb: str, question: Question, outputs: Sequence[Array], signature: Signature) -> bytes:
    """The answer to a request of a verb.

    Raises:
        DataError: the outputs are not what the verb answers with.
    """
    if verb == "predict":
        return write_predict(question, outputs, signature)
    return write_results((classes_of if verb == "classify" else values_of)(outputs, signature))


# -- status and metadata --------------------------------------------------------------------------------------------


def code(error: Error) -> str:
    """The name of the code that gRPC, and its clients, have for an error."""
    return code_of(error.http_status)


def status(name: str, states: Sequence[Any], number: int | None = None) -> dict[str, Any]:
    """Status of the versions of a model: all, or the one that was asked for.

    Args:
        states: with `number`, `state` and `error`.
    Raises:
        NotFoundError: there is none.
    """
    if not states:
        raise NotFoundError(f"Could not find any versions of model {name}")
    some = [state for state in states if number in (None, state.number)]
    if not some:
        raise NotFoundError(f"Could not find version {number} of model {name}")
    return {
        "model_version_status": [
            {
                "version": str(state.number),
                "state": state.state.upper(),
                "status": {
                    "error_code": code(state.error) if state.error else "OK",
                    "error_message": str(state.error)[:2000] if state.error else "",
                },
            }
            for state in some
        ]
    }


def metadata(name: str, number: int, signature: Signature) -> dict[str, Any]:
    """What a version takes and gives."""
    definition = {
        "inputs": {tensor.name: _info(tensor) for tensor in signature.inputs},
        "outputs": {tensor.name: _info(tensor) for tensor in signature.outputs},
        "method_name": METHOD,
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(number)},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: definition}}},
    }


def type_name(dtype: str) -> str:
    """TensorFlow's name of the type of a tensor."""
    return _DTYPES.get(dtype, f"DT_{dtype.upper()}")


def _info(tensor: Tensor) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in tensor.shape or ()]
    return {
        "dtype": type_name(tensor.dtype),
        "tensor_shape": {"dim": dims, "unknown_rank": tensor.shape is None},
        "name": f"{tensor.name}:0",
    }
