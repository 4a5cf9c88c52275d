"""Signature: the named tensors that a model takes and gives, and whether its first axis is rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from steersman.core.errors import DataError

Array = np.ndarray

TEXT = "str"
DTYPES = (
    "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()
)  # numpy's names; texts beside them
_NUMPY = {TEXT: np.dtype(object), **{name: np.dtype(name) for name in DTYPES}}
FREE = -1
"""The size of an axis that may have any."""


class Tensor(Struct, frozen=True):
    """One input or output of a model.

    Attributes:
        name: as the model calls it.
        dtype: numpy's name, or `str`: then arrays are of objects, each a str.
        shape: size of each axis, FREE for one that may have any; None: the model does not say even how many.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None

    def __post_init__(self) -> None:
        if self.dtype not in (*DTYPES, TEXT):
            raise DataError(f"tensor {self.name!r} is of {self.dtype}, must be one of {', '.join(DTYPES)} or {TEXT}")

    @property
    def numpy(self) -> np.dtype:
        """The type of arrays of it."""
        return _NUMPY[self.dtype]

    def fits(self, array: Array) -> bool:
        """Whether an array has this type and shape."""
        if array.dtype != self.numpy:
            return False
        if self.shape is None:
            return True
        if len(array.shape) != len(self.shape):
            return False
        return all(size in (FREE, given) for size, given in zip(self.shape, array.shape, strict=True))


class Signature(Struct, frozen=True):
    """What a model takes and gives.

    Attributes:
        classes: names of the classes that the last axis of its scores stands for, if the model says so.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    classes: tuple[str, ...] = ()

    @property
    def rows(self) -> bool:
        """Whether the first axis of every input and output is free: it may count rows."""
        return all(tensor.shape and tensor.shape[0] == FREE for tensor in (*self.inputs, *self.outputs))

    def check(self, feeds: Mapping[str, Array]) -> int:
        """Length of the first axis of the feeds; 1 if the model has no rows. See `checker`."""
        return checker(self)(feeds)


def checker(signature: Signature) -> Callable[[Mapping[str, Array]], int]:
    """A function from feeds, an array for every input and for nothing else, to their number of rows.

    It gives 1 if the model has no rows. It raises DataError if a feed is missing, unknown, of another type or shape,
    or if they do not have as many rows.
    """
    count = len(signature.inputs)
    by_rows = signature.rows
    wanted = [(tensor, tensor.name, tensor.numpy, (tensor.shape or ())[1:]) for tensor in signature.inputs]

    def check(feeds: Mapping[str, Array]) -> int:
        if len(feeds) != count:
            _refuse_names(feeds, signature.inputs)
        rows = -1
        for tensor, name, dtype, row in wanted:
            array = feeds.get(name)
            if array is None:
                _refuse_names(feeds, signature.inputs)
            elif array.dtype != dtype or not (
                (by_rows and array.ndim > 0 and array.shape[1:] == row) or tensor.fits(array)
            ):
                given = _described(array.dtype, array.shape)
                raise DataError(
                    f"input {name} is {given}, must be {_described(dtype, tensor.shape)}",
                    hint="-1 stands for any size",
                    field=name,
                )
            elif by_rows:
                if rows not in (-1, len(array)):
                    raise DataError(f"input {name} has {len(array)} rows, the inputs before it {rows}", field=name)
                rows = len(array)
        return rows if rows >= 0 else 1

    return check


def _described(dtype: np.dtype, shape: Sequence[int] | None) -> str:
    name = "text" if dtype.kind == "O" else dtype.name
    return name if shape is None else f"{name}[{','.join(map(str, shape))}]"


def _refuse_names(feeds: Mapping[str, Array], inputs: Sequence[Tensor]) -> None:
    names = [tensor.name for tensor in inputs]
    given = ", ".join(sorted(feeds)) or "nothing"
    raise DataError(f"the inputs are {given[:200]}, must be {', '.join(names)}", hint="send each input once")
