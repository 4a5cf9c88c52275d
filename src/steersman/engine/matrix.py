"""Columns of Parquet files as one matrix: what learns from numbers without a build reads them by.

By PyArrow, which asks half the processor time of DuckDB's for this. Row groups are read side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from steersman.core.errors import DataError, MissingExtra, NotFoundError

Array = np.ndarray

BLOCK = 4096
"""Rows that stay in the processor until all their columns are in their places."""


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
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("pyarrow", "learn") from None
    if not files or not columns:
        raise DataError(f"no {'columns' if files else 'files'} to read", hint="name at least one")
    opened = [_open(pq, path, columns) for path in files]
    groups = [(place, group) for place, file in enumerate(opened) for group in range(file.num_row_groups)]
    rows = [opened[place].metadata.row_group(group).num_rows for place, group in groups]
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(int)
    out = np.empty((int(starts[-1]), len(columns)), np.float32)

    def fill(turn: int) -> None:
        place, group = groups[turn]
        with pq.ParquetFile(files[place]) as file:  # one for each: a reader is not for several threads
            table = file.read_row_group(group, columns=list(columns), use_threads=False)
        found = [table.column(name).to_numpy() for name in columns]
        part = out[starts[turn] : starts[turn + 1]]
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            for start in range(0, len(part), BLOCK):
                for j, column in enumerate(found):
                    part[start : start + BLOCK, j] = column[start : start + BLOCK]

    try:
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            list(pool.map(fill, range(len(groups))))
    finally:
        for file in opened:
            file.close()
    return out


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
