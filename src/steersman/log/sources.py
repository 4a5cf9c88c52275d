"""Foreign tables (CSV, JSON lines, Parquet) as one table of the engine, each bad line reported, none dropped."""

from __future__ import annotations

import csv
import gzip
from array import array
from collections.abc import Collection
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from steersman.core.errors import DataError, did_you_mean
from steersman.engine import Engine, literal

VIEW = "steersman_source"
GIVEN = "source"
"""What a query calls the file that stands beside it."""

DELIMITERS = ",;\t|"
_TEMPORAL = ("DATE", "TIME", "UUID")


class Bad(Struct, frozen=True):
    """A line that is no row.

    Attributes:
        line: in the source, from 1.
        reason: in words.
        row: what stands there.
    """

    line: int
    reason: str
    row: Any


class Table(Struct, frozen=True):
    """A source as the view VIEW of the engine.

    Attributes:
        types: column -> SQL type.
        lines: [rows] the line of each row in the source, from 1; None: row i is line i + 1.
        bad: lines that are no row.
        ordered: the same source gives its rows in the same order every time.
    """

    types: dict[str, str]
    lines: array[int] | None
    bad: list[Bad]
    ordered: bool = True


def is_lines(source: Path) -> bool:
    """Whether the source holds a JSON object a line."""
    return _suffix(source) in (".jsonl", ".ndjson")


def open_table(engine: Engine, source: Path, scratch: Path, texts: Collection[str]) -> Table:
    """Make the source the view VIEW of the engine.

    Args:
        scratch: an empty directory for as long as the view is used.
        texts: columns to be read as texts even if they look like numbers or dates: `007` is not 7.
    Raises:
        DataError: it is not a table, or of no known kind.
    """
    suffix = _suffix(source)
    if suffix == ".parquet":
        engine.view(VIEW, [str(source)])
        return Table(_types(engine, f"SELECT * FROM {VIEW}"), None, [])
    if suffix == ".csv":
        staged = scratch / "rows.csv"
        lines, bad = _stage_csv(source, staged)
        sql = _csv_sql(engine, staged, texts)
    elif is_lines(source):
        staged = scratch / "rows.ndjson"
        lines, bad = _stage_json(source, staged)
        sql = _json_sql(engine, staged, texts)
    else:
        raise DataError(
            f"{source.name}: {did_you_mean(suffix, ['.csv', '.csv.gz', '.jsonl', '.jsonl.gz', '.ndjson', '.parquet'])}",
            hint="the ending says what a source is",
        )
    engine.copy(sql, scratch / "source.parquet")
    engine.view(VIEW, [str(scratch / "source.parquet")])
    return Table(_types(engine, f"SELECT * FROM {VIEW}"), lines, bad)


def open_query(engine: Engine, sql: str, source: Path | None, scratch: Path, texts: Collection[str]) -> Table:
    """Make the rows of a query the view VIEW of the engine.

    Args:
        sql: one statement that gives rows. It may name files, or `source`.
        source: a table that it calls `source`; None: there is none.
        scratch, texts: see `open_table`; the texts are columns of `source`.
    Raises:
        DataError: the query is wrong.
    """
    bad: list[Bad] = []
    if source is not None:
        given = open_table(engine, source, scratch, texts)
        bad = [Bad(line.line, f"a line of {source.name} that is no row: {line.reason}", line.row) for line in given.bad]
        file = source if _suffix(source) == ".parquet" else scratch / "source.parquet"
        engine.view(GIVEN, [str(file)])
    engine.copy(sql, scratch / "query.parquet")
    engine.view(VIEW, [str(scratch / "query.parquet")])
    return Table(_types(engine, f"SELECT * FROM {VIEW}"), None, bad, ordered=False)


def open_bytes(source: Path) -> IO[bytes]:
    """The bytes of a source, decompressed if its name ends in .gz."""
    if source.suffix == ".gz":
        return gzip.open(source, "rb")  # type: ignore[return-value]  # a GzipFile reads as any file does
    return source.open("rb")


def _suffix(source: Path) -> str:
    return Path(source.stem).suffix if source.suffix == ".gz" else source.suffix


def _types(engine: Engine, sql: str) -> dict[str, str]:
    columns = engine.query(f"DESCRIBE {sql}")
    return dict(zip(columns["column_name"], columns["column_type"], strict=True))


def _stage_csv(source: Path, staged: Path) -> tuple[array[int], list[Bad]]:
    """Write the good rows of a CSV in the one dialect that needs no guessing."""
    lines: array[int] = array("q")
    bad: list[Bad] = []
    text = TextIOWrapper(open_bytes(source), encoding="utf-8-sig", errors="surrogateescape", newline="")
    with text as file, staged.open("w", encoding="utf-8", newline="") as out:
        first = file.readline()
        delimiter = max(DELIMITERS, key=first.count)
        header = next(csv.reader([first], delimiter=delimiter), [])
        if not header or len({name.casefold() for name in header}) < len(header):
            raise DataError(f"{source.name}: the first line must name the columns, each once: {first[:200]!r}")
        writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(header)
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        while True:
            line = rows.line_num + 2
            try:
                row = next(rows)
                if not row:
                    continue
                if len(row) != len(header):
                    bad.append(Bad(line, f"{len(row)} cells, the header has {len(header)}", row))
                    continue
                writer.writerow(row)
                lines.append(line)
            except StopIteration:
                return lines, bad
            except (csv.Error, UnicodeEncodeError) as error:
                bad.append(Bad(line, str(error).replace("'utf-8' codec can't encode", "not UTF-8:"), None))


def _csv_sql(engine: Engine, staged: Path, texts: Collection[str]) -> str:
    options = (
        f"SELECT * FROM read_csv([{literal(str(staged))}], header = true, delim = ',', quote = '\"', escape = '\"', "
        "sample_size = -1, max_line_size = 67108864"
    )
    columns = _types(engine, f"{options})")
    forced = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in columns if name in texts)
    return f"{options}, types = {{{forced}}})" if forced else f"{options})"


def _stage_json(source: Path, staged: Path) -> tuple[array[int], list[Bad]]:
    lines: array[int] = array("q")
    bad: list[Bad] = []
    decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    with open_bytes(source) as file, staged.open("wb") as out:
        for number, line in enumerate(file, 1):
            row = line.strip()
            if not row:
                continue
            try:
                decode(row)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                bad.append(Bad(number, f"not a JSON object: {error}", row.decode(errors="backslashreplace")))
                continue
            out.write(row + b"\n")
            lines.append(number)
    return lines, bad


def _json_sql(engine: Engine, staged: Path, texts: Collection[str]) -> str:
    options = f"SELECT * FROM read_json([{literal(str(staged))}], format = 'newline_delimited'"
    columns = _types(engine, f"{options}, sample_size = -1)")
    # A text that looks like a date stays as it was written; a mapping that wants a time casts it.
    typed = {name: "VARCHAR" if name in texts or kind.startswith(_TEMPORAL) else kind for name, kind in columns.items()}
    pairs = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in typed.items())
    return f"{options}, columns = {{{pairs}}})"
