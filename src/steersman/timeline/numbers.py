"""Many numbers of many decisions: column after column from the log to the disk, in the order of the build."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from steersman.engine import identifier
from steersman.engine.stream import Columns as Streamed
from steersman.timeline import sql
from steersman.timeline.built import digest_of, write_header
from steersman.timeline.fields import Field
from steersman.timeline.sql import Tables

_AT_ONCE_BYTES = 64 << 20
"""Columns are read in groups of about this size."""


class Numbers:
    """Columns on their way to a .npy file: the engine reads a group while one before is ordered and another is written.

    Two buffers and two columns take them all in turn: a gigabyte of memory that is touched for the first time costs
    more than its sorting.
    """

    def __init__(self, tables: Tables, wanted: Sequence[Field], engine_ahead: Executor) -> None:
        """Begin to read, once the executor (of one thread) has done what it was given before."""
        at_once = min(max(_AT_ONCE_BYTES // (8 * tables.seen.rows), 1), len(wanted))
        self._tables, self._ahead = tables, engine_ahead
        self._groups = [wanted[start : start + at_once] for start in range(0, len(wanted), at_once)]
        self._buffers = [np.empty((at_once, tables.seen.rows)) for _ in self._groups[:2]]
        self._width = len(wanted)
        self._reading = [self._read(number) for number in range(len(self._buffers))]

    def write(self, rows: np.ndarray, path: Path) -> bytes:
        """Write the columns at these rows ([N] i64, of the view of decisions), durably; the digest of the array."""
        n = len(rows)
        digest = digest_of((n, self._width), np.dtype("<f8"))
        columns = np.empty((2, n))
        with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as pen, ThreadPoolExecutor(1) as disk:
            write_header(file, (n, self._width), columns.dtype, by_columns=True)
            written, durable = list[Future[None]](), list[Future[None]]()
            for number, group in enumerate(self._groups):
                self._reading.pop(0).result()
                for field, found in zip(group, self._buffers[number % 2], strict=False):
                    if len(written) >= len(columns):
                        written[-len(columns)].result()
                    column = columns[len(written) % len(columns)]
                    if field.column:
                        np.take(found, rows, out=column, mode="clip")
                        column += 0.0  # makes a negative zero a zero: they are one value
                    else:
                        column.fill(np.nan)
                    written.append(pen.submit(_write, file.fileno(), column.data.cast("B")))
                    digest.update(column.data)
                if number + 2 < len(self._groups):
                    self._reading.append(self._read(number + 2))
                if not durable or durable[-1].done():
                    durable.append(disk.submit(os.fdatasync, file.fileno()))  # the disk writes while we go on
            for done in [*written, *durable]:
                done.result()
            os.fdatasync(file.fileno())
        return digest.digest()

    def _read(self, number: int) -> Future[None]:
        return self._ahead.submit(_fill, self._tables, self._groups[number], self._buffers[number % 2])


def _fill(tables: Tables, group: Sequence[Field], buffer: np.ndarray) -> None:
    """Read the columns of a group, all rows of the files in their order; null is NaN."""
    there = {field.column: row for field, row in zip(group, buffer, strict=False) if field.column}
    filled = 0

    def take(some: Streamed) -> None:
        nonlocal filled
        begin = filled
        for column, values in some.items():
            filled = begin + len(values)
            there[column][begin:filled] = values

    if there:
        wanted = (f"{sql.number('decisions', column)} AS {identifier(column)}" for column in there)
        tables.engine.stream(f"SELECT {', '.join(wanted)} FROM decisions", take)


def _write(fd: int, body: memoryview) -> None:
    """All of it: the system may take less at a time."""
    while body:
        body = body[os.write(fd, body) :]
