"""Where tables live: the Engine protocol, the table of engines, and how to open one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from steersman.core.errors import ConfigError, DataError, did_you_mean
from steersman.engine.stream import Columns as Streamed

ENGINES: dict[str, str] = {"duckdb": "steersman.engine.duckdb:DuckDB", "spark": "steersman.engine.spark:Spark"}
"""Name -> module:class, loaded on use. An engine is one file here and one row."""

_SPARK_MASTER = re.compile(r"spark://.+|local(-cluster)?(\[.*\])?|yarn|k8s://.+")

CODEC = "snappy"
"""How Parquet is compressed: what most tools write unasked, and read in half the time of zstd; see docs/engine.md."""


class Engine(Protocol):
    """Tables out of Parquet files and SQL over them. Threads may share one that is not distributed; they take turns.

    SQL is that of DuckDB, whichever engine answers it; one that speaks another renders it. docs/engine.md says what
    gives the same bits everywhere. Rows have an order only where a statement gives them one.

    Attributes:
        name: of the engine, as in ENGINES.
        distributed: its rows have no numbers, so `view` takes no `row`, and `take` and `stream` are refused.
    """

    name: str
    distributed: bool

    def view(self, name: str, files: Sequence[str], *, row: str = "") -> None:
        """Name the union of Parquet files, columns matched by name (absent: null); it replaces a view of that name.

        Args:
            row: name of a further column, the number of the row: 0, 1, ... through the files one after the other.
                Only an engine on one machine can tell.
        Raises:
            DataError: there are no files, or one of them is not Parquet.
            NotFoundError: a file is not there.
        """
        ...

    def query(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        """Rows of one SQL statement, as columns.

        Args:
            sql: one statement, with a ? for every parameter. DESCRIBE of a view or of a statement gives column_name
                and column_type, in DuckDB's names for types.
        Returns:
            column -> [rows]. Integers are i64 (u64 if they are unsigned 64 bit), other numbers f64 with NaN for
            null, booleans bool, texts object (str or None), lists object (an array of these or None). An integer
            or boolean column with a null in it is object (int, bool or None): no number stands for "unknown".
        Raises:
            DataError: the statement is wrong, or gives a type that is not one of these, e.g. a timestamp.
        """
        ...

    def take(self, view: str, columns: Mapping[str, str], rows: np.ndarray | None) -> dict[str, np.ndarray]:
        """Columns of a view at some of its rows. Only an engine on one machine can tell which row is which.

        Args:
            columns: name -> SQL over the view's columns.
            rows: [N] i64, as the view's `row` counts them, in any order; None: all, in their order.
        Returns:
            column -> [N], as `query` does.
        """
        ...

    def stream(self, sql: str, each: Callable[[Streamed], None]) -> None:
        """Read the rows of one SQL statement, some at a time, in the order of their files unless it gives another.

        All of them are never in memory, and nothing is copied. Only an engine on one machine has an order.

        Args:
            sql: its columns are numbers of 64 bits, FLOAT, UTINYINT or texts, none of them null.
            each: called with column -> [rows]. It copies what it keeps, and asks this engine nothing meanwhile.
        Raises:
            DataError: the statement is wrong, or a column is null somewhere or of another type.
        """
        ...

    def keep(self, name: str, sql: str) -> None:
        """Put the rows of one SQL statement aside under a name, as long as the engine is open; they may spill.

        What has the name already is replaced, and the statement may read it.

        Raises:
            DataError: the statement is wrong.
        """
        ...

    def copy(self, sql: str, path: Path) -> int:
        """Write the rows of one SQL statement to one Parquet file, whole or not at all, durable on return.

        Returns:
            the number of rows.
        Raises:
            DataError: the statement is wrong.
        """
        ...

    def shards(self, sql: str, directory: Path, n: int, by: str) -> list[Path]:
        """Write the rows of one SQL statement to n Parquet files in a directory that appears whole or not at all.

        Args:
            sql: its ORDER BY holds within every shard.
            n: at least 1.
            by: column of the statement with the number of a row's shard, 0 to n - 1. The files do not have it.
        Returns:
            [n] the files by the number of their shard. One without rows is a file without rows.
        Raises:
            ConflictError: the directory is there already.
            DataError: the statement is wrong, or a row has no shard.
        """
        ...

    def close(self) -> None:
        """Let go of memory and temporary files. Views are gone afterwards."""
        ...


def open(
    url: str = "duckdb", *, memory_limit: str = "", threads: int = 0, temp_directory: Path | None = None
) -> Engine:
    """An engine.

    Args:
        url: `duckdb`; `spark`, which is on this machine; or the URL of a Spark master, e.g. `spark://host:7077`.
        memory_limit: e.g. `2GB`; more than that spills to disk. Empty: the engine's default. Of Spark it is the heap
            of the driver and of each executor, and no more than about half of it is for data.
        threads: 0: as many as there are cores. Of a Spark cluster: cores in all.
        temp_directory: where it spills to; None: the engine's default. All workers of a Spark cluster must share it.
    Raises:
        ConfigError: no such engine, a setting that it does not understand, or no Java for it.
        ConflictError: this process runs a Spark with other settings.
        MissingExtra: pyspark is not installed.

    >>> open("duckdb").query("select 1 + 1 as two")
    {'two': array([2])}
    """
    engine_name = "spark" if _SPARK_MASTER.fullmatch(url) else url
    if engine_name not in ENGINES:
        raise ConfigError(f"engine {url!r} is unknown", hint=did_you_mean(url, ENGINES), field="engine")
    module, _, name = ENGINES[engine_name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(url, memory_limit, threads, temp_directory)
    return engine


def shard_paths(directory: Path, n: int) -> list[Path]:
    """[n] where the shards of `Engine.shards` lie.

    Raises:
        DataError: n is not at least 1.
    """
    if n < 1:
        raise DataError(f"{n} shards, must be at least 1", field="n")
    return [directory / f"{number:05d}.parquet" for number in range(n)]


def identifier(name: str) -> str:
    """A name as SQL reads it: in double quotes, so that no name can be anything else.

    >>> identifier('we"ird; drop')
    '"we""ird; drop"'
    """
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL reads it: in single quotes.

    >>> literal("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"
