"""Columns of Parquet files as one matrix, or as shuffled minibatches: for a training loop outside the learners.

The learners draw from a build and use neither. By PyArrow, which asks half the processor time of DuckDB's for this. Row
groups are read side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steersman.core.errors import DataError, MissingExtra, NotFoundError

Array = np.ndarray

BLOCK = 8192
"""Rows that are decoded at a time: they stay in the processor until all their columns are in their places."""


def matrix(files: Sequence[str | Path], columns: Sequence[str], *, threads: int = 2) -> Array:
    """[N, F] f32, columns of numbers of all files one after the other, in their order; NaN for null.

    Args:
        files: Parquet, at least one.
        columns: [F], at least one; integers, floats or booleans.
        threads: that read side by side.
    Raises:
        NotFoundError: a file is not there.
        DataError: there are no files or columns, a file is not Parquet, or a column is not there or no number.
        MissingExtra: PyArrow is not installed.
    """
    read = _Read.of(files, columns)
    starts = np.concatenate([[0], np.cumsum(read.rows)]).astype(int)
    out = np.empty((int(starts[-1]), len(columns)), np.float32)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for done in [pool.submit(read.into, out[start:], turn) for turn, start in enumerate(starts[:-1])]:
            done.result()
    return out


def streamed(
    files: Sequence[str | Path],
    columns: Sequence[str],
    size: int,
    *,
    seed: int,
    window: int = 2**20,
    threads: int = 3,
) -> Iterator[Array]:
    """One epoch of `matrix` in random order without ever holding it: minibatches while the next rows are read.

    Row groups come in random order, and the rows of as many as fill a window are shuffled together. Rows that fill no
    minibatch stay for the next window. Two windows are in memory.

    Args:
        size: rows of a minibatch, at least 1; the last has what is left.
        seed: decides the order, with the files; 0 or more.
        window: rows that are shuffled together, at least: whole row groups.
        threads: that read; one more than there are processors keeps these busy while another waits.
    Returns:
        copies [size, F] f32.
    Raises:
        as `matrix`; DataError: size or window is below 1, or the seed below 0.
    """
    for name, value, least in (("size", size, 1), ("window", window, 1), ("seed", seed, 0)):
        if value < least:
            raise DataError(f"{name} is {value}, must be at least {least}", field=name)
    read = _Read.of(files, columns)
    draws = np.random.default_rng(seed)
    windows: list[list[int]] = [[]]
    for group in draws.permutation(len(read.rows)).tolist():
        if sum(read.rows[one] for one in windows[-1]) >= window:
            windows.append([])
        windows[-1].append(group)
    return _shuffled(read, windows, size, draws, threads)


def _shuffled(
    read: _Read, windows: list[list[int]], size: int, draws: np.random.Generator, threads: int
) -> Iterator[Array]:
    """The minibatches of one window after the other; the next one is read meanwhile."""
    most = max(sum(read.rows[group] for group in window) for window in windows)
    buffers = [np.empty((size + most, len(read.columns)), np.float32) for _ in windows[:2]]
    with ThreadPoolExecutor(max(threads, 1)) as pool:

        def begin(turn: int) -> tuple[list[Future[None]], int]:
            """Read a window behind the room for what is kept of the one before."""
            started, at = [], size
            for group in windows[turn]:
                started.append(pool.submit(read.into, buffers[turn % 2][at:], group))
                at += read.rows[group]
            return started, at

        coming, kept = begin(0), np.empty((0, len(read.columns)), np.float32)
        for turn in range(len(windows)):
            started, end = coming
            for done in started:
                done.result()
            buffer, last = buffers[turn % 2], turn + 1 == len(windows)
            if not last:
                coming = begin(turn + 1)
            start = size - len(kept)
            buffer[start:size] = kept
            order = start + draws.permutation(end - start)
            whole = len(order) if last else len(order) // size * size
            for at in range(0, whole, size):
                yield buffer.take(order[at : min(at + size, whole)], axis=0)
            kept = buffer.take(order[whole:], axis=0)


@dataclass(frozen=True)
class _Read:
    """Row groups of files, all of whose columns are numbers.

    Attributes:
        groups: file and row group of it.
        rows: of each.
    """

    columns: list[str]
    groups: list[tuple[str | Path, int]]
    rows: list[int]

    @classmethod
    def of(cls, files: Sequence[str | Path], columns: Sequence[str]) -> _Read:
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingExtra("pyarrow", "learn") from None
        if not files or not columns:
            raise DataError(f"no {'columns' if files else 'files'} to read", hint="name at least one")
        groups, rows = [], []
        for path in files:
            with _open(pq, path, columns) as file:
                groups += [(path, group) for group in range(file.num_row_groups)]
                rows += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return cls(list(columns), groups, rows)

    def into(self, out: Array, turn: int) -> None:
        """The first rows of `out` [M, F] become those of a group."""
        import pyarrow.parquet as pq

        path, group = self.groups[turn]
        start = 0
        with pq.ParquetFile(path) as file, np.errstate(over="ignore"):  # beyond float32 is infinite
            # A reader for each group, for it is not for several threads.
            for some in file.iter_batches(BLOCK, row_groups=[group], columns=self.columns, use_threads=False):
                stop = start + some.num_rows
                for j, name in enumerate(self.columns):
                    out[start:stop, j] = some.column(name).to_numpy(zero_copy_only=False)
                start = stop


def _open(pq: Any, path: str | Path, columns: Sequence[str]) -> Any:
    """The file, if all columns are there and are numbers."""
    import pyarrow as pa

    if not Path(path).exists():
        raise NotFoundError(f"{path}: no such file")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not Parquet: {error}") from None
    kinds = {field.name: field.type for field in file.schema_arrow}
    for name in columns:
        if name not in kinds:
            raise DataError(f"{path}: no column {name}", hint=f"it has {', '.join(sorted(kinds))}", field=name)
        kind = kinds[name]
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise DataError(f"{path}: column {name} is {kind}, which is no number", field=name)
    return file
