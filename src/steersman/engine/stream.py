"""Arrow's C stream read where it lies: columns as NumPy arrays over the engine's memory, texts as their bytes.

Source: arrow.apache.org/docs/format/CDataInterface.html and CStreamInterface.html. Nothing else is needed to read it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from steersman.core.errors import DataError

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Texts:
    """N texts, one after the other.

    Attributes:
        bounds: [N + 1] whole numbers, where each begins and, at last, where the last one ends.
        utf8: [bytes] u8.
    """

    bounds: Array
    utf8: Array

    def __len__(self) -> int:
        return len(self.bounds) - 1


Columns = dict[str, Any]
"""Column -> [rows], an array of numbers, or Texts."""


class StreamError(Exception):
    """What the engine says while it is read."""


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


class _Stream(ctypes.Structure):
    pass


_Release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # a call of such a function lets other threads run
_Give = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(_Schema))),
    ("dictionary", ctypes.c_void_p),
    ("release", _Release),
    ("private_data", ctypes.c_void_p),
]
_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
    ("dictionary", ctypes.c_void_p),
    ("release", _Release),
    ("private_data", ctypes.c_void_p),
]
_Stream._fields_ = [
    ("get_schema", _Give),
    ("get_next", _Give),
    ("get_last_error", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)),
    ("release", _Release),
    ("private_data", ctypes.c_void_p),
]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

_NUMBERS: dict[str, type[np.generic]] = {
    "l": np.int64,
    "L": np.uint64,
    "i": np.int32,
    "C": np.uint8,
    "g": np.float64,
    "f": np.float32,
}
_TEXT = "u"


def batches(capsule: object) -> Iterator[Columns]:
    """The rows of a stream, some at a time: column -> [rows]. They are gone when the next ones are asked for.

    Args:
        capsule: of an object's `__arrow_c_stream__()`.
    Raises:
        DataError: a column has a null, or is neither a number nor a text.
        StreamError: the engine fails.
    """
    stream = _Stream.from_address(_pointer(capsule, b"arrow_array_stream"))
    columns = _columns(stream)
    while True:
        some = _Array()
        _check(stream, stream.get_next(ctypes.addressof(stream), ctypes.addressof(some)))
        if not some.release:
            return
        try:
            yield {
                name: _values(name, kind, some.children[i].contents, int(some.length), int(some.offset))
                for i, (name, kind) in enumerate(columns)
            }
        finally:
            some.release(ctypes.addressof(some))


def _columns(stream: _Stream) -> list[tuple[str, str]]:
    """Name and format of the columns."""
    schema = _Schema()
    _check(stream, stream.get_schema(ctypes.addressof(stream), ctypes.addressof(schema)))
    try:
        each = (schema.children[i].contents for i in range(schema.n_children))
        return [(one.name.decode(), one.format.decode()) for one in each]
    finally:
        schema.release(ctypes.addressof(schema))


def _check(stream: _Stream, failed: int) -> None:
    if failed:
        said = stream.get_last_error(ctypes.addressof(stream))
        raise StreamError(said.decode() if said else f"error {failed}")


def _values(name: str, kind: str, column: _Array, n: int, before: int) -> Array | Texts:
    start = before + int(column.offset)
    if column.null_count and column.buffers[0]:
        bits = np.unpackbits(_buffer(column, 0, np.uint8, 0, (start + n + 7) // 8), bitorder="little")
        if nulls := n - int(bits[start : start + n].sum()):
            raise DataError(f"{nulls} of {n} rows have no {name}", field=name)
    if kind == _TEXT:
        bounds = _buffer(column, 1, np.int32, start, n + 1) if n else np.zeros(1, np.int32)
        first, stop = int(bounds[0]), int(bounds[-1])
        return Texts(bounds - first if first else bounds, _buffer(column, 2, np.uint8, first, stop - first))
    if kind not in _NUMBERS:
        raise DataError(f"column {name} has the Arrow format {kind!r}, must be a number or a text", field=name)
    return _buffer(column, 1, _NUMBERS[kind], start, n)


def _buffer(column: _Array, number: int, dtype: type[np.generic], start: int, n: int) -> Array:
    """[n] elements of a buffer from `start` on."""
    if not n:
        return np.empty(0, dtype)
    size = np.dtype(dtype).itemsize
    memory = (ctypes.c_char * (n * size)).from_address(column.buffers[number] + start * size)
    return np.frombuffer(memoryview(memory), dtype)
