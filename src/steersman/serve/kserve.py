"""The Open Inference Protocol v2 over REST, with Triton's binary tensors: bytes to arrays and back. Pure."""

from __future__ import annotations

import contextlib
import functools
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType

from steersman.core.errors import DataError, Error
from steersman.core.signature import DTYPES, FREE, TEXT, Signature, Tensor
from steersman.serve import values
from steersman.serve.values import ROUTES

Array = np.ndarray
PREFIX = "/v2"
BINARY = b"application/octet-stream"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
PLATFORM = "onnx_onnxv1"
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready|stats|config))?")
_SWITCH = re.compile(r"/v2/repository/models/([^/]+)/(load|unload)")
_PLAIN = {
    ("GET", "/v2"): "server",
    ("GET", "/v2/health/live"): "live",
    ("GET", "/v2/health/ready"): "server ready",
    ("GET", "/v2/models/stats"): "all stats",
    ("POST", "/v2/repository/index"): "index",
}
DATATYPES = {
    "bool": "BOOL",
    TEXT: "BYTES",
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}
_NATIVE = sys.byteorder == "little"
_LITTLE = {dtype: np.dtype(dtype).newbyteorder("<") for dtype in DTYPES}
_to_json = msgspec.json.Encoder().encode
_MOST = float(np.finfo(np.float32).max)
_floats = {
    "float32": msgspec.json.Decoder(list[Annotated[float, msgspec.Meta(ge=-_MOST, le=_MOST)]]).decode,
    "float64": msgspec.json.Decoder(list[float]).decode,
}


class Call(Struct, frozen=True):
    """What a path asks for; `verb` is a word of _PLAIN, or `infer`, `metadata`, `ready`, `stats`, `config`, `load`,
    `unload`."""

    verb: str
    name: str = ""
    number: int | None = None


class Input(Struct):
    """An input as it is described; `data` if that is JSON."""

    name: str
    shape: list[Annotated[int, msgspec.Meta(le=2**63 - 1)]]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Raw | UnsetType = UNSET


class Output(Struct):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class _Body(Struct):
    inputs: list[Input]
    outputs: list[Output] = []
    id: str = ""
    parameters: dict[str, Any] = {}


class Wanted(Struct, frozen=True):
    """An output of the answer: its place among those of the model, binary or JSON, and for how many classes."""

    place: int
    binary: bool = False
    classes: int = 0


class Question(Struct, frozen=True):
    """An infer request, read."""

    feeds: dict[str, Array]
    outputs: tuple[Wanted, ...]
    id: str = ""


_decode = msgspec.json.Decoder(_Body).decode


@functools.lru_cache(ROUTES)
def route(method: str, path: str) -> Call | None:
    """What a request line asks for; the path is still quoted. None: nothing that there is."""
    path = path.rstrip("/")
    plain = _PLAIN.get((method, path))
    if plain:
        return Call(plain)
    if method == "POST" and (switch := _SWITCH.fullmatch(path)):
        return Call(switch[2], unquote(switch[1]))
    found = _MODEL.fullmatch(path)
    if not found or method != ("POST" if found[3] == "infer" else "GET"):
        return None
    name, version, verb = found.groups()
    return Call(verb or "metadata", unquote(name), number_of(version or ""))


def number_of(version: str) -> int | None:
    """The number of a version that was asked for; None: of the default one, as its name is empty.

    Raises:
        DataError: it is not a number.
    """
    if version and not re.fullmatch(r"[0-9]{1,18}", version):
        raise DataError(f"version {version[:80]!r} is not a number")
    return int(version) if version else None


def error_body(error: Error) -> bytes:
    """An error as its clients expect it."""
    return _to_json({"error": str(error)[:2000]})


# -- infer ----------------------------------------------------------------------------------------------------------


def read_infer(body: bytes, json_bytes: int | None, signature: Signature) -> Question:
    """The arrays of an infer request.

    Args:
        json_bytes: the header Inference-Header-Content-Length; None: it was not sent, all is JSON; 0: nothing is,
            the body is the one input.
    Raises:
        DataError: the body is not what the signature takes.
    """
    if json_bytes == 0:
        [tensor, *more] = signature.inputs
        if more:
            raise DataError(f"a raw body is one input, the model takes {len(signature.inputs)}")
        everything = tuple(Wanted(place, binary=True) for place in range(len(signature.outputs)))
        return Question({tensor.name: _raw_row(body, tensor)}, everything)
    if json_bytes is not None and not 0 <= json_bytes <= len(body):
        raise DataError(f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes")
    document = _document(body if json_bytes is None else body[:json_bytes])
    tail = memoryview(b"") if json_bytes is None else memoryview(body)[json_bytes:]
    feeds: dict[str, Array] = {}
    for one in document.inputs:
        size = _binary_size(one)
        raw = None if size is None else tail[:size]
        tail = tail[size or 0 :]
        add_input(feeds, one, signature, functools.partial(_flat, one, raw))
    if len(tail):
        raise DataError(f"{len(tail)} bytes are left behind the last input")
    return Question(feeds, wanted_outputs(document.outputs, document.parameters, signature), document.id)


def add_input(feeds: dict[str, Array], one: Input, signature: Signature, flat: Callable[[Tensor], Array]) -> None:
    """Add an input to the feeds, in its shape.

    Args:
        flat: gives its values on one axis, of the type of a tensor.
    Raises:
        DataError: it is not what the signature takes.
    """
    tensor = next((tensor for tensor in signature.inputs if tensor.name == one.name), None)
    if tensor is None:
        known = ", ".join(tensor.name for tensor in signature.inputs)
        raise DataError(f"unexpected inference input {one.name[:128]!r}", hint=f"known: {known}")
    if one.name in feeds:
        raise DataError(f"input {one.name} is there twice")
    for parameter in ("shared_memory_region", "shared_memory_byte_size"):
        if parameter in one.parameters:
            raise DataError(f"input {one.name}: shared memory is not spoken here", hint="send the bytes")
    expected = DATATYPES[tensor.dtype]
    if one.datatype != expected:
        raise DataError(f"input {one.name} is of {one.datatype[:20]}, the model expects {expected}")
    if any(size < 0 for size in one.shape):
        raise DataError(f"input {one.name} has a negative size in its shape")
    count = values.count_of(one.shape, one.name)
    array = flat(tensor)
    if array.size != count:
        raise DataError(f"input {one.name} has {array.size} values, its shape {one.shape} says {count}")
    feeds[one.name] = values.shaped(array, one.shape, one.name)


def write_infer(
    name: str, number: int, question: Question, outputs: Sequence[Array], signature: Signature
) -> tuple[bytes, int | None]:
    """The answer, and how much of it is JSON; None: all.

    Raises:
        DataError: classes of an output were asked for that has none.
    """
    described, tails = [], []
    for wanted, array, datatype in answered(question, outputs, signature):
        one: dict[str, Any] = {
            "name": signature.outputs[wanted.place].name,
            "datatype": datatype,
            "shape": list(array.shape),
        }
        if wanted.binary:
            tails.append(to_raw(array))
            one["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            one["data"] = array.reshape(-1).tolist()
        described.append(one)
    answer: dict[str, Any] = {"model_name": name, "model_version": str(number), "outputs": described}
    if question.id:
        answer["id"] = question.id
    text = values.encode(answer)
    return (text + b"".join(tails), len(text)) if tails else (text, None)


def answered(question: Question, outputs: Sequence[Array], signature: Signature) -> Iterator[tuple[Wanted, Array, str]]:
    """What was asked for, and the datatype of each.

    Raises:
        DataError: classes of an output were asked for that has none.
    """
    for wanted in question.outputs:
        if wanted.classes:
            yield wanted, _classified(outputs[wanted.place], wanted.classes, signature), "BYTES"
        else:
            yield wanted, outputs[wanted.place], DATATYPES[signature.outputs[wanted.place].dtype]


def _document(text: bytes) -> _Body:
    try:
        return _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    document = values.parse(text)  # what has a NaN, and for errors that tell the place
    try:
        for one in document["inputs"]:
            if "data" in one:
                one["data"] = Raw(values.write(one["data"]))
    except (TypeError, KeyError):
        raise DataError(
            "the request has no list of inputs", hint="send inputs: [{name, shape, datatype, data}]"
        ) from None
    try:
        return msgspec.convert(document, _Body)
    except (msgspec.ValidationError, RecursionError) as error:
        raise DataError(f"not an inference request: {error}") from None


def _binary_size(one: Input) -> int | None:
    size = one.parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise DataError(f"input {one.name}: binary_data_size is {str(size)[:40]}, must be a whole number of bytes")
    return size


def _flat(one: Input, raw: memoryview | None, tensor: Tensor) -> Array:
    if raw is not None:
        if one.data is not UNSET:
            raise DataError(f"input {one.name} has both data and binary data")
        return from_raw(raw, tensor.dtype, one.name)
    if isinstance(one.data, UnsetType):
        raise DataError(f"input {one.name} has no data")
    return _from_json(one.data, tensor)


def _from_json(data: Raw, tensor: Tensor) -> Array:
    decode = _floats.get(tensor.dtype)
    if decode is not None:
        with contextlib.suppress(msgspec.MsgspecError):  # nested, not finite, or wrong
            return np.array(decode(data), dtype=tensor.numpy)
    return values.array(values.parse(bytes(data)), tensor)


def from_raw(raw: memoryview | bytes, dtype: str, name: str) -> Array:
    """An array of one axis from its bytes: little endian; of texts, each has its length before it in 4 bytes.

    Raises:
        DataError: the bytes are not whole values.
    """
    if dtype == TEXT:
        return _texts(bytes(raw), name)
    kind = _LITTLE[dtype]
    if len(raw) % kind.itemsize:
        raise DataError(f"input {name} has {len(raw)} bytes, which are no whole {kind.name}")
    if dtype == "bool":
        return np.frombuffer(raw, dtype=np.uint8) != 0
    array = np.frombuffer(raw, dtype=kind)
    return array if array.flags.aligned else array.copy()


def _texts(raw: bytes, name: str) -> Array:
    found = []
    at = 0
    try:
        while at < len(raw):
            (size,) = struct.unpack_from("<I", raw, at)
            at += 4 + size
            if at > len(raw):
                raise DataError(f"input {name}: a text of {size} bytes ends behind the data")
            found.append(raw[at - size : at].decode())
    except struct.error:
        raise DataError(f"input {name}: the length of a text is cut off") from None
    except UnicodeDecodeError as error:
        raise DataError(f"input {name}: a text is not UTF-8: {error}") from None
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array


def to_raw(array: Array) -> bytes:
    """The bytes that `from_raw` reads."""
    if array.dtype != object:
        return array.tobytes() if _NATIVE else array.astype(array.dtype.newbyteorder("<")).tobytes()
    encoded = [text.encode() for text in array.reshape(-1).tolist()]
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)


def _raw_row(body: bytes, tensor: Tensor) -> Array:
    """One row: the first axis is 1, and one other may be free."""
    array = from_raw(body, tensor.dtype, tensor.name)
    shape = list(tensor.shape or ())
    if shape and shape[0] == FREE:
        shape[0] = 1
    try:
        return array.reshape(shape)
    except ValueError:
        raise DataError(f"{array.size} values do not fill {tensor.name} of shape {shape}") from None


def wanted_outputs(
    outputs: Sequence[Output], parameters: Mapping[str, Any], signature: Signature
) -> tuple[Wanted, ...]:
    """The outputs that a request asks for: all if it names none.

    Args:
        parameters: of the request.
    Raises:
        DataError: there is no such output.
    """
    default = parameters.get("binary_data_output") is True
    if not outputs:
        return tuple(Wanted(place, default) for place in range(len(signature.outputs)))
    places = {tensor.name: place for place, tensor in enumerate(signature.outputs)}
    if len({one.name for one in outputs}) < len(outputs):
        raise DataError("an output is asked for twice", hint="ask for each once")
    found = []
    for one in outputs:
        if one.name not in places:
            raise DataError(f"unexpected inference output {one.name[:128]!r}", hint=f"known: {', '.join(places)}")
        if "shared_memory_region" in one.parameters:
            raise DataError(f"output {one.name}: shared memory is not spoken here")
        classes = one.parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise DataError(f"output {one.name}: classification is {str(classes)[:40]}, must be a number of classes")
        found.append(Wanted(places[one.name], one.parameters.get("binary_data", default) is True, classes))
    return tuple(found)


def _classified(array: Array, count: int, signature: Signature) -> Array:
    """The highest values of each row, each as a text `value:place` or `value:place:label`."""
    if array.ndim == 0 or array.dtype.kind not in "fiu":
        raise DataError("only numbers in rows have classes")
    rows = array.reshape(1, -1) if array.ndim == 1 else array.reshape(-1, array.shape[-1])
    count = min(count, rows.shape[1])
    labels = signature.classes if len(signature.classes) == rows.shape[1] else ()
    found = np.empty((len(rows), count), dtype=object)
    for i, row in enumerate(rows):
        for j, place in enumerate(np.argsort(-row, kind="stable")[:count].tolist()):
            found[i, j] = f"{row[place]:f}:{place}" + (f":{labels[place]}" if labels else "")
    return found.reshape((count,) if array.ndim == 1 else (*array.shape[:-1], count))


# -- metadata -------------------------------------------------------------------------------------------------------


def metadata(name: str, numbers: Sequence[int], signature: Signature) -> dict[str, Any]:
    """What a model takes and gives."""

    def described(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
        return [
            {"name": tensor.name, "datatype": DATATYPES[tensor.dtype], "shape": list(tensor.shape or ())}
            for tensor in tensors
        ]

    return {
        "name": name,
        "versions": [str(number) for number in numbers],
        "platform": PLATFORM,
        "inputs": described(signature.inputs),
        "outputs": described(signature.outputs),
    }


def config(name: str, signature: Signature) -> dict[str, Any]:
    """What Triton's clients want to know of a model."""

    def described(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
        types = {"BYTES": "STRING"}
        return [
            {
                "name": tensor.name,
                "data_type": f"TYPE_{types.get(DATATYPES[tensor.dtype], DATATYPES[tensor.dtype])}",
                "dims": list(tensor.shape or ()),
            }
            for tensor in tensors
        ]

    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 0,  # the first axis stands in dims
        "input": described(signature.inputs),
        "output": described(signature.outputs),
    }


def stats(served: Sequence[Any]) -> dict[str, Any]:
    """Counts of versions; each has name, number, rows and runs."""
    return {
        "model_stats": [
            {"name": one.name, "version": str(one.number), "inference_count": one.rows, "execution_count": one.runs}
            for one in served
        ]
    }


def index(states: Mapping[str, Sequence[Any]], only_ready: bool) -> list[dict[str, str]]:
    """Every version of every model, and whether it serves."""
    words = {"available": "READY", "loading": "LOADING", "unloading": "UNLOADING"}
    return [
        {
            "name": name,
            "version": str(state.number),
            "state": words.get(state.state, "UNAVAILABLE"),
            "reason": str(state.error)[:500] if state.error else "",
        }
        for name, some in states.items()
        for state in some
        if not only_ready or state.state == "available"
    ]


def wants_ready(body: bytes) -> bool:
    """Whether a request for the index asks for models that serve alone.

    Raises:
        DataError: the body is no such request.
    """
    document = values.parse(body) if body.strip() else {}
    ready = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(ready, bool):
        raise DataError("not an object in which `ready` is true or false", hint='send {"ready": true}, or nothing')
    return ready
