"""The default engine: DuckDB in this process, in memory, spilling to disk, never reaching for a network."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np

from steersman.core.errors import ConfigError, DataError, DiskError, Error, NotFoundError
from steersman.engine import CODEC, identifier, literal, shard_paths
from steersman.engine.disk import appearing, replacing
from steersman.engine.stream import Columns as Streamed
from steersman.engine.stream import StreamError, batches

T = TypeVar("T")
_SHARDED = "steersman_sharded"
_PAST = {"write": "written", "read": "read", "open": "opened"}


class DuckDB:
    """See `steersman.engine.Engine`."""

    name = "duckdb"
    distributed = False

    def __init__(
        self, url: str = name, memory_limit: str = "", threads: int = 0, temp_directory: Path | None = None
    ) -> None:
        settings: dict[str, Any] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,  # a name in SQL must never be a variable of this process
            "preserve_insertion_order": True,
        }
        if memory_limit:
            settings["memory_limit"] = memory_limit
        if threads:
            settings["threads"] = threads
        if temp_directory is not None:
            settings["temp_directory"] = str(temp_directory)
        try:
            self._connection = duckdb.connect(":memory:", config=settings)
        except duckdb.Error as error:
            raise ConfigError(f"the engine refuses its settings: {_first_line(error)}", field="engine") from None
        self._one_at_a_time = threading.Lock()
        self._beside = ThreadPoolExecutor(1)
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute("SET enable_progress_bar = false")  # standard output is for answers
        self._connection.execute("SET streaming_buffer_size = '16MB'")  # goes on reading while NumPy works

    def view(self, name: str, files: Sequence[str], *, row: str = "") -> None:
        """See `Engine.view`."""
        if not files:
            raise DataError(f"view {name}: there are no files", hint="a view takes its columns from its files")
        paths = ", ".join(literal(_no_glob(file)) for file in files)
        columns = f"*, {self._row(paths)} AS {identifier(row)}" if row else "*"
        self._run(f"DROP TABLE IF EXISTS temp.main.{identifier(name)}")
        # Hive partitioning would add the folder's name as a column that the files do not have.
        self._run(
            f"CREATE OR REPLACE VIEW {identifier(name)} AS SELECT {columns} FROM "
            f"read_parquet([{paths}], union_by_name = true, hive_partitioning = false)"
        )

    def _row(self, paths: str) -> str:
        """SQL of the number of a row in the files one after the other."""
        counts = self._run(f"SELECT num_rows FROM parquet_file_metadata([{paths}])")["num_rows"]
        if len(counts) == 1:
            return "file_row_number"
        before = ", ".join(map(str, np.cumsum([0, *counts[:-1]]).tolist()))
        return f"CAST([{before}][CAST(file_index AS BIGINT) + 1] + file_row_number AS BIGINT)"

    def take(self, view: str, columns: Mapping[str, str], rows: np.ndarray | None) -> dict[str, np.ndarray]:
        """See `Engine.take`."""
        wanted = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in columns.items())
        found = self._run(f"SELECT {wanted} FROM {identifier(view)}") if columns else {}
        if rows is None:
            return {name: _column(name, found.pop(name)) for name in list(found)}
        return {name: _column(name, found.pop(name)[rows]) for name in list(found)}

    def stream(self, sql: str, each: Callable[[Streamed], None]) -> None:
        """See `Engine.stream`."""
        with self._one_at_a_time, _told(sql):
            rows = self._connection.sql(sql)
            if rows is None:
                raise DataError(f"{_short(sql)} is not a query", hint="a stream is what a SELECT gives")
            for some in batches(rows.__arrow_c_stream__()):
                each(some)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        """See `Engine.query`."""
        return {name: _column(name, values) for name, values in self._run(sql, parameters).items()}

    def keep(self, name: str, sql: str) -> None:
        """See `Engine.keep`."""
        self._run(f"CREATE OR REPLACE TEMP TABLE {identifier(name)} AS {sql}")
        self._run(f"DROP VIEW IF EXISTS memory.main.{identifier(name)}")

    def copy(self, sql: str, path: Path) -> int:
        """See `Engine.copy`."""
        with replacing(path) as aside:
            result = self._run(f"COPY ({sql}\n) TO {literal(str(aside))} (FORMAT parquet, COMPRESSION {CODEC})")
        return int(result["Count"][0])

    def shards(self, sql: str, directory: Path, n: int, by: str) -> list[Path]:
        """See `Engine.shards`."""
        paths, column = shard_paths(directory, n), identifier(by)
        self.keep(_SHARDED, sql)
        try:
            right = f"{column} >= 0 AND {column} < {n} AND {column} = FLOOR({column})"
            wrong = f"SELECT {column} AS n FROM {_SHARDED} WHERE ({right}) IS NOT TRUE LIMIT 1"
            if len(found := self.query(wrong)["n"]):
                raise DataError(f"{by} is {found[0]}, must be a whole number from 0 to {n - 1}", field=by)
            with appearing(directory) as aside:
                for number, path in enumerate(shard_paths(aside, n)):
                    self.copy(f"SELECT * EXCLUDE ({column}) FROM {_SHARDED} WHERE {column} = {number}", path)
        finally:
            self._run(f"DROP TABLE IF EXISTS {_SHARDED}")
        return paths

    def close(self) -> None:
        """See `Engine.close`."""
        self._beside.shutdown()
        self._connection.close()

    def _run(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        with self._one_at_a_time, _told(sql):
            statements = self._connection.extract_statements(sql)
            if len(statements) != 1:
                raise DataError(f"{len(statements)} SQL statements, must be one: {_short(sql)}")
            return self._heard(lambda: self._connection.execute(statements[0], list(parameters)).fetchnumpy())

    def _heard(self, call: Callable[[], T]) -> T:
        """What a call gives that may take long: on a thread of its own, so that a signal ends it at once.

        DuckDB looks for signals between its own pieces of work, and where it has several threads it may forget to.
        """
        done = self._beside.submit(call)
        try:
            return done.result()
        except BaseException:
            if not done.done():
                self._connection.interrupt()
                wait([done])  # nothing else is asked before it has ended
            raise


@contextmanager
def _told(sql: str) -> Iterator[None]:
    """What DuckDB says of a statement as an error of ours."""
    try:
        yield
    except (duckdb.Error, StreamError) as error:
        message = _first_line(error)
        if isinstance(error, duckdb.OutOfMemoryException) or message.startswith("Out of Memory"):
            raise Error(
                f"the engine is out of memory: {message}",
                hint="raise engine.memory_limit, or give it a temp_directory with more space",
            ) from None
        if isinstance(error, duckdb.IOException) or message.startswith("IO Error"):
            if "No files found" in message or "No such file" in message:
                raise NotFoundError(message) from None
            raise _refused_by_the_disk(message) from None
        raise DataError(f"{message} in {_short(sql)}", hint="is the SQL right?") from None


def _refused_by_the_disk(message: str) -> DiskError:
    """Of all that DuckDB says the file and the kernel's word; the former is a path that we gave it, or its own."""
    found = re.search(r'(\w+) file \\?"([^"\\]+)\\?": ([^"\\}(]+)', message)
    told = f"{found[2]} can not be {_PAST.get(found[1], 'used')}: {found[3].strip()}" if found else message
    return DiskError(told, hint="is the disk full, or not ours? engine.temp_directory may be elsewhere")


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _short(sql: str) -> str:
    line = " ".join(sql.split())
    return line if len(line) <= 200 else f"{line[:200]}..."


def _no_glob(path: str) -> str:
    """A path in which [, * and ? mean themselves."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in path)


def _column(name: str, values: np.ndarray) -> np.ndarray:
    """One column as `Engine.query` promises it, from what DuckDB gives: masked where there is a null."""
    kind = values.dtype.kind
    if kind in "mM":
        raise DataError(f"column {name} is a time ({values.dtype})", hint="select epoch_us(...) of it", field=name)
    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    plain = np.asarray(np.ma.getdata(values))
    if kind in "iu" and plain.dtype != np.uint64:
        plain = plain.astype(np.int64, copy=False)
    elif kind == "f":
        plain = plain.astype(np.float64, copy=False)
    elif kind == "O":
        plain = _objects(name, plain, mask)
    if mask is None or not mask.any():
        return plain
    if kind == "f":
        return np.where(mask, np.nan, plain)
    out = plain.astype(object)
    out[mask] = None
    return out


def _objects(name: str, values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Texts stay; the elements of lists get the same treatment as columns."""
    sample = next((v for i, v in enumerate(values) if v is not None and not (mask is not None and mask[i])), None)
    if not isinstance(sample, np.ndarray):
        return values
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        out[i] = None if value is None or (mask is not None and mask[i]) else _column(name, value)
    return out
