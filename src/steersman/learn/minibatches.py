"""Shuffled minibatches of rows: every row once an epoch, from memory or from arrays mapped from disk.

The order is decided by the number of rows, the size, the window, the seed and the epoch, and by nothing else: arrays
in memory and the same arrays on disk give the same minibatches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from steersman.core.errors import DataError
from steersman.core.shared import is_shared

Array = np.ndarray

BLOCK = 4096
"""Rows that lie side by side and are read together where a window is given: a disk reads runs, not single rows."""


_HEAPS = 256


def minibatches(
    arrays: Sequence[Array], size: int, *, seed: int, epoch: int = 0, window: int | None = None
) -> Iterator[tuple[Array, ...]]:
    """One epoch: rows of the arrays in random order, `size` at a time; the last minibatch has what is left.

    Without a window every order of the rows is as likely as any other, and rows are gathered where they lie: for
    arrays in memory. With one, blocks of BLOCK rows are drawn in random order and read whole until `window` rows are
    in memory, and these are shuffled: for arrays on disk, whose rows may lie sorted. Rows of one block then come in
    the same part of the epoch, so a window should hold many blocks.

    Args:
        arrays: each [N, ...]. They may be mapped from a file, or broadcast.
        size: rows of a minibatch, at least 1.
        epoch: which epoch of this seed, 0 or more.
        window: rows that are read into memory and shuffled together, at least `size`; None: all lie in memory.
    Returns:
        copies [size, ...] of those rows in the order of `arrays`; of a broadcast array a broadcast view.
    Raises:
        DataError: an argument is out of range, or the arrays have different numbers of rows.

    >>> rows, = zip(*minibatches([np.arange(5)], 2, seed=0))
    >>> [len(some) for some in rows], sorted(np.concatenate(rows).tolist())
    ([2, 2, 1], [0, 1, 2, 3, 4])
    """
    n = _rows(arrays)
    _require("size", size, size >= 1, "at least 1")
    _require("seed", seed, seed >= 0, "0 or more")
    _require("epoch", epoch, epoch >= 0, "0 or more")
    draws = np.random.default_rng((seed, epoch))
    if window is None:
        return _in_place(arrays, size, _shuffled(n, draws))
    _require("window", window, window >= size, f"at least the {size} rows of a minibatch")
    return _windowed(arrays, size, window, draws)


def _shuffled(n: int, draws: np.random.Generator) -> Array:
    """[n] i64, 0 to n - 1 in an order that is as likely as any other.

    Many are dealt into heaps, each into any heap with the same chance, and every heap is shuffled: it fits into the
    processor, where all of them do not, and that takes half the time.
    """
    if n <= BLOCK:
        return draws.permutation(n)
    heap = draws.integers(0, _HEAPS, n, dtype=np.uint8)
    order = np.argsort(heap, kind="stable")
    start = 0
    for stop in np.cumsum(np.bincount(heap, minlength=_HEAPS)).tolist():
        order[start:stop] = order[start:stop].take(draws.permutation(stop - start))
        start = stop
    return order


def _in_place(arrays: Sequence[Array], size: int, order: Array) -> Iterator[tuple[Array, ...]]:
    for start in range(0, len(order), size):
        places = order[start : start + size]
        yield tuple(_take(array, places) for array in arrays)


def _windowed(
    arrays: Sequence[Array], size: int, window: int, draws: np.random.Generator
) -> Iterator[tuple[Array, ...]]:
    """Rows that fill no minibatch stay in memory and are shuffled again with those of the next blocks."""
    n, run = len(arrays[0]), min(BLOCK, window)
    blocks, together = draws.permutation(-(-n // run)), window // run
    buffers = [_buffer(array, min(window + size, n)) for array in arrays]
    kept = 0
    for first in range(0, len(blocks), together):
        filled = kept
        for block in blocks[first : first + together]:
            start, stop = block * run, min((block + 1) * run, n)
            for array, buffer in zip(arrays, buffers, strict=True):
                if not is_shared(array):
                    buffer[filled : filled + stop - start] = array[start:stop]
            filled += stop - start
        order = draws.permutation(filled)
        kept = filled % size if first + together < len(blocks) else 0
        yield from _in_place(buffers, size, order[: filled - kept])
        for array, buffer in zip(arrays, buffers, strict=True):
            if not is_shared(array):
                buffer[:kept] = buffer[order[filled - kept :]]


def _buffer(array: Array, rows: int) -> Array:
    """Room for rows of an array; a broadcast array needs none."""
    return array if is_shared(array) else np.empty((rows, *array.shape[1:]), array.dtype)


def _take(array: Array, places: Array) -> Array:
    """Copies of rows: `take` is several times as fast as indexing, but copies the whole of a view before."""
    if is_shared(array):
        return np.broadcast_to(array[:1], (len(places), *array.shape[1:]))
    return np.asarray(array).take(places, axis=0) if array.flags.c_contiguous else array[places]


def _rows(arrays: Sequence[Array]) -> int:
    lengths = sorted({len(array) for array in arrays})
    if len(lengths) != 1:
        raise DataError(f"minibatches need arrays of one number of rows; there are {lengths or 'none'}")
    return lengths[0]


def _require(name: str, value: int, holds: bool, law: str) -> None:
    if not holds:
        raise DataError(f"{name} is {value}, must be {law}", field=name)
