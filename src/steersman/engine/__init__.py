"""Where tables live: the Engine protocol, the table of engines, and how to open one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from steersman.core.errors import ConfigError, did_you_mean

ENGINES: dict[str, str] = {"duckdb": "steersman.engine.duckdb:DuckDB"}
"""URL -> module:class, loaded on use. An engine is one file here and one row."""


class Engine(Protocol):
    """Tables out of Parquet files and SQL over them. One thread at a time.

    Attributes:
        name: of the engine, as in its URL.
    """

    name: str

    def view(self, name: str, files: Sequence[str]) -> None:
        """Name the union of Parquet files, columns matched by name (absent: null); it replaces a view of that name.

        Raises:
            DataError: there are no files, or one of them is not Parquet.
            NotFoundError: a file is not there.
        """
        ...

    def query(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        """Rows of one SQL statement, as columns.

        Args:
            sql: one statement, with a ? for every parameter.
        Returns:
            column -> [rows]. Integers are i64 (u64 if they are unsigned 64 bit), other numbers f64 with NaN for
            null, booleans bool, texts object (str or None), lists object (an array of these or None). An integer
            or boolean column with a null in it is object (int, bool or None): no number stands for "unknown".
        Raises:
            DataError: the statement is wrong, or gives a type that is not one of these, e.g. a timestamp.
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

    def close(self) -> None:
        """Let go of memory and temporary files. Views are gone afterwards."""
        ...


def open(
    url: str = "duckdb", *, memory_limit: str = "", threads: int = 0, temp_directory: Path | None = None
) -> Engine:
    """An engine.

    Args:
        url: name of the engine.
        memory_limit: e.g. `2GB`; more than that spills to disk. Empty: the engine's default.
        threads: 0: as many as there are cores.
        temp_directory: where it spills to; None: the engine's default.
    Raises:
        ConfigError: no such engine, or a setting that it does not understand.

    >>> open("duckdb").query("select 1 + 1 as two")
    {'two': array([2])}
    """
    if url not in ENGINES:
        raise ConfigError(f"engine {url!r} is unknown", hint=did_you_mean(url, ENGINES), field="engine")
    module, _, name = ENGINES[url].partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(memory_limit, threads, temp_directory)
    return engine


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
