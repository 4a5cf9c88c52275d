"""Many texts as their bytes: written down as they come, compared with others, read again as texts."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from steersman.engine.stream import Texts
from steersman.timeline.built import write_header

Array = np.ndarray

_AT_ONCE = 1 << 14
"""Texts that are compared together: they stay in the processor."""


class Pen:
    """Writes texts down: into memory, or their bytes into a .npy file."""

    def __init__(self, path: Path | None = None) -> None:
        """Begin; path: of the file."""
        self._bounds, self._size = [np.zeros(1, np.int64)], 0
        self._path, self._held = path, list[Array]()
        self._file: BinaryIO | None = None
        if path is not None:
            self._file = path.open("wb")
            write_header(self._file, (0,), np.dtype(np.uint8))

    def write(self, texts: Texts) -> None:
        """Append texts."""
        self._bounds.append(texts.bounds[1:] + np.int64(self._size))
        self._size += len(texts.utf8)
        if self._file is None:
            self._held.append(texts.utf8.copy())
        else:
            self._file.write(texts.utf8.data)

    def texts(self) -> Texts:
        """What was written, once; a file is closed and mapped."""
        bounds = np.concatenate(self._bounds)
        self._bounds.clear()
        if self._file is None or self._path is None:
            return Texts(bounds, np.concatenate([np.empty(0, np.uint8), *self._held]))
        self._file.seek(0)
        write_header(self._file, (int(bounds[-1]),), np.dtype(np.uint8))  # as long as the one before, by NumPy's law
        self._file.close()
        return Texts(bounds, np.load(self._path, mmap_mode="r"))


def alike(texts: Texts, others: Texts, rows: Array) -> bool:
    """Whether each text is the one of the others at its row.

    Args:
        rows: [N] i64, of the others, as many as there are texts; -1: is compared with none.
    """
    blocks = range(0, len(rows), _AT_ONCE)
    return all(_alike(texts, others, rows[start : start + _AT_ONCE], start) for start in blocks)


def _alike(texts: Texts, others: Texts, rows: Array, first: int) -> bool:
    """The same, of the texts from the first on."""
    asked = np.flatnonzero(rows >= 0)
    rows = rows.take(asked)
    asked += first
    mine, theirs = texts.bounds.take(asked), others.bounds.take(rows)
    length = texts.bounds.take(asked + 1) - mine
    if not np.array_equal(length, others.bounds.take(rows + 1) - theirs):
        return False
    if not length.size or (length == length[0]).all():
        return not length.any() or _same(texts.utf8, mine, others.utf8, theirs, int(length[0]))
    for size in np.unique(length[length > 0]).tolist():
        some = length == size
        if not _same(texts.utf8, mine[some], others.utf8, theirs[some], size):
            return False
    return True


def picked(texts: Texts, rows: Array) -> list[str]:
    """The texts at these rows ([N] i64)."""
    begin, end = texts.bounds[rows].tolist(), texts.bounds[rows + 1].tolist()
    return [texts.utf8[start:stop].tobytes().decode() for start, stop in zip(begin, end, strict=True)]


def _same(utf8: Array, starts: Array, other: Array, other_starts: Array, size: int) -> bool:
    mine, theirs = _pieces(utf8, size)[starts], _pieces(other, size)[other_starts]
    return np.array_equal(mine.view(np.uint8), theirs.view(np.uint8))


def _pieces(utf8: Array, size: int) -> Array:
    """[bytes - size + 1] of `size` bytes, the ones from each byte on: copied at once, wherever they begin."""
    return np.ndarray((len(utf8) - size + 1,), dtype=f"V{size}", buffer=utf8.data, strides=(1,))
