"""Weights of a model that lie in files beside it: which they are, read without the library that makes models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from steersman.core.errors import DataError

_GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _ENTRY, _FUNCTION = range(7)
_MODEL = -1
_INTO: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
"""Message -> field -> message, of onnx.proto; what is not here can hold no tensor that is run."""

_LOCATION = b"location"
_MOST_DEEP = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def locations(model: bytes) -> tuple[str, ...]:
    """The files, relative to the model's folder, that hold its weights; none, if these are inside it.

    Raises:
        DataError: a file is not below the model's folder, or holds what is no weight of the main graph, or the bytes
            are not a model.
    """
    if _LOCATION not in model:  # most have none, and some have a hundred thousand texts
        return ()
    try:
        return tuple(dict.fromkeys(_places(memoryview(model), _MODEL, ())))
    except EOFError as error:
        raise DataError(f"{len(model)} bytes are not an ONNX model that can run: {error}") from None


def _places(message: memoryview, kind: int, path: tuple[int, ...]) -> Iterator[str]:
    if len(path) > _MOST_DEEP:
        raise DataError(f"graphs are nested over {_MOST_DEEP} deep")
    for field, value in _fields(message):
        into = _INTO[kind].get(field)
        if into == _ENTRY:
            entry = dict(_fields(value))
            if bytes(entry.get(1, b"")) == _LOCATION:
                yield _checked(bytes(entry.get(2, b"")), (*path, kind))
        elif into is not None:
            yield from _places(value, into, (*path, kind))


def _checked(location: bytes, path: tuple[int, ...]) -> str:
    text = location.decode(errors="replace")
    if path != (_MODEL, _GRAPH, _TENSOR):
        raise DataError(f"{text[:200]!r} holds values of an inner graph", hint="store these inside the model")
    place = PurePosixPath(text)
    if not place.parts or place.is_absolute() or ".." in place.parts or not text.isprintable() or "\\" in text:
        raise DataError(f"its weights are in {text[:200]!r}, which is not below its folder", hint="move them beside it")
    return str(place)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of the fields of a protobuf message that have a length; the others are skipped."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _BYTES:
            size, at = _varint(message, at)
            if at + size > end:
                raise EOFError("it ends before its end")
            yield tag >> 3, message[at : at + size]
            at += size
        elif wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise EOFError(f"a field of wire type {wire}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise EOFError("it ends within a number")
