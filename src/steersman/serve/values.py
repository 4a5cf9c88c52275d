"""Arrays from JSON values and back, by the rules of TensorFlow Serving: the model tells the type, never JSON."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from steersman.core.errors import DataError, Error
from steersman.core.signature import TEXT, Tensor

Array = np.ndarray
B64 = "b64"
SHOWN = 256
AXES = 64
"""That an array can have."""

ROUTES = 256
"""Paths of which a protocol keeps what they ask for: most requests ask for few, and a head is at most some kB."""

NAMES = {"float32": "float", "float64": "double", "float16": "half", TEXT: "string"}
_to_json = msgspec.json.Encoder().encode


class UnimplementedError(Error):
    """A protocol has it, this server has not."""

    http_status = 501


def parse(body: bytes) -> Any:
    """The first JSON value of a body; NaN and Infinity are numbers, and what follows the value is not read.

    Raises:
        DataError: there is no JSON, a number that float64 has not, or a text that UTF-8 has not.
    """
    try:
        text = body.decode().lstrip(" \t\r\n")
        if not text:
            raise DataError("JSON Parse error: The document is empty")
        value = _DECODER.raw_decode(text)[0]
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise DataError(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"JSON Parse error: Invalid encoding in string at offset: {error.start}") from None
    except UnicodeEncodeError:
        raise DataError("JSON Parse error: The surrogate pair in string is invalid.") from None
    except RecursionError:
        raise DataError("JSON Parse error: nested too deep") from None
    except ValueError as error:  # a whole number with thousands of digits
        raise DataError(f"JSON Parse error: {error}") from None


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise DataError(f"JSON Parse error: Number too big to be stored in double: {text[:40]}")
    return value


_DECODER = json.JSONDecoder(parse_float=_float)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def write(value: Any) -> bytes:
    """A JSON value as bytes; numbers that are not finite are written as the bare words NaN, Infinity, -Infinity."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


def is_bytes(value: Any) -> bool:
    """Whether a JSON value stands for bytes: {"b64": "..."}."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(B64), str)


def array(value: Any, tensor: Tensor) -> Array:
    """A JSON value, or lists of them, as an array of a tensor's type.

    Raises:
        DataError: lists are ragged, or a value is not of the type.
        UnimplementedError: the type can not be told in JSON.
    """
    if tensor.dtype == "float16":
        raise UnimplementedError(f"Conversion of JSON Value to type: {NAMES[tensor.dtype]} is not implemented")
    shape = shape_of(value)
    flat: list[Any] = []
    _fill(value, shape, 0, _LEAVES[tensor.dtype], flat)
    made = np.empty(len(flat), dtype=tensor.numpy)
    made[:] = flat
    return shaped(made, shape, tensor.name)


def count_of(shape: Sequence[int], name: str) -> int:
    """How many values an input of a shape has.

    Raises:
        DataError: no array has so many axes; the product of thousands of sizes would take seconds.
    """
    if len(shape) > AXES:
        raise DataError(f"input {name[:128]} can not have a shape of {len(shape)} axes")
    return math.prod(shape)


def shaped(array: Array, shape: Sequence[int], name: str) -> Array:
    """The values of an input in their shape.

    Raises:
        DataError: no array has it: it has too many axes, or a size beside a 0 that no memory has.
    """
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise DataError(f"input {name[:128]} can not have a shape of {len(shape)} axes: {error}") from None


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape that the first element at each depth tells."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _fill(value: Any, shape: tuple[int, ...], level: int, leaf: Callable[[Any], Any], flat: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise DataError(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        flat.append(leaf(value))
        return
    if level >= len(shape):
        raise DataError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise DataError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for one in value:
        _fill(one, shape, level + 1, leaf, flat)


def shown(value: Any) -> str:
    """The beginning of a value as JSON."""
    return write(value).decode(errors="replace")[:SHOWN]


def kind_of(value: Any) -> str:
    """What JSON calls the type of a value."""
    kinds = {dict: "Object", list: "Array", str: "String", type(None): "Null", bool: str(value)}
    return kinds.get(type(value), "Number")


def _mismatch(value: Any, dtype: str) -> DataError:
    expected = NAMES.get(dtype, dtype)
    return DataError(f"JSON Value: {shown(value)} Type: {kind_of(value)} is not of expected type: {expected}")


def _as_float(dtype: str) -> Callable[[Any], Any]:
    largest = float(np.finfo(dtype).max)

    def leaf(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _mismatch(value, dtype)
        if abs(value) > largest and not (isinstance(value, float) and math.isinf(value)):
            raise _mismatch(value, dtype)
        return value

    return leaf


def _as_int(dtype: str) -> Callable[[Any], Any]:
    bounds = np.iinfo(dtype)
    least, most = int(bounds.min), int(bounds.max)

    def leaf(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _mismatch(value, dtype)
        return value

    return leaf


def _as_bool(value: Any) -> Any:
    if not isinstance(value, bool):
        raise _mismatch(value, "bool")
    return value


def _as_text(value: Any) -> Any:
    if is_bytes(value):
        return text_of(value[B64])
    if not isinstance(value, str):
        raise _mismatch(value, TEXT)
    return value


def text_of(b64: str) -> str:
    """The text whose UTF-8 is given in base64.

    Raises:
        DataError: it is not base64, or not UTF-8: texts of an ONNX model are.
    """
    try:
        return base64.b64decode(b64, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"Unable to base64 decode {b64[:40]!r} to UTF-8: {error}") from None


_LEAVES: dict[str, Callable[[Any], Any]] = {
    **{dtype: _as_float(dtype) for dtype in ("float32", "float64")},
    **{dtype: _as_int(dtype) for dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    "bool": _as_bool,
    TEXT: _as_text,
}


def jsonable(array: Array, as_bytes: bool = False) -> Any:
    """An array as nested lists; texts as {"b64": ...} if asked."""
    values = array.tolist()
    return _encoded(values) if as_bytes and array.dtype == object else values


def _encoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_encoded(one) for one in value]
    return {B64: base64.b64encode(value.encode()).decode()}


def encode(value: Any) -> bytes:
    """JSON bytes of a value without null."""
    quick = _to_json(value)
    # It has no word for numbers that are not finite. A text that says null only takes the long way for nothing.
    return write(value) if b"null" in quick else quick
