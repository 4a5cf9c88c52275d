"""A log of decisions and outcomes as Parquet files, for the tests of the timeline."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from steersman import engine
from steersman.core.decision import One, Problem

S = 1_000_000
"""A second in microseconds."""

FAR = 10**12 * S
"""After everything."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Files:
    decisions: list[str]
    outcomes: list[str]


def problem(**changes: Any) -> Problem:
    plain: Row = {"name": "p", "actions": One(names=("a", "b")), "reward": "r", "wait_s": 10.0}
    return Problem(**{**plain, "default_outcome": {"r": 0.0}, **changes})


def decision(
    id: str, unit: str = "u", at_s: float = 0, *, features: Mapping[str, Row] | None = None, **more: Any
) -> Row:
    """A row of decisions; context fields as `x=1.0`; features: candidate id -> its features."""
    row: Row = {"id": id, "unit": unit, "at": round(at_s * S), "step": None, "action": "a", "propensity": 0.5}
    row |= {"version": 1, "noise": None, "candidates.id": list(features or ("a", "b"))}
    for name in sorted({name for feature in (features or {}).values() for name in feature}):
        row[f"candidates.{name}"] = [feature.get(name) for feature in (features or {}).values()]
    for name, value in more.items():
        row[name if name in row or "." in name else f"context.{name}"] = value
    return row


def outcome(id: str, of: str, at_s: float = 0, ends: str | None = None, **metrics: float | None) -> Row:
    """A row of outcomes; metrics as `r=1.0`."""
    row: Row = {"id": id, "decision": of, "at": round(at_s * S), "ends": ends}
    return row | {f"metrics.{name}": value for name, value in metrics.items()}


_TYPES = {"at": "BIGINT", "step": "BIGINT", "version": "BIGINT", "noise": "UBIGINT", "propensity": "DOUBLE"}


def _type(column: str, values: Iterable[Any]) -> str:
    if column in _TYPES:
        return _TYPES[column]
    value = next((value for value in values if value is not None), None)
    if isinstance(value, (list, tuple)):
        if any(isinstance(one, (list, tuple)) for one in value):
            return f"{_type('', [element for one in values for element in one or ()])}[]"
        return "DOUBLE[]" if any(isinstance(one, (int, float)) for one in value) else "VARCHAR[]"
    number = isinstance(value, (int, float)) or (value is None and column.startswith(("metrics.", "context.")))
    return "DOUBLE" if number else "VARCHAR"


def types(rows: Sequence[Row]) -> dict[str, str]:
    """Column -> SQL type, in the order in which the rows name them."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _type(name, (row.get(name) for row in rows)) for name in names}


@functools.cache
def _writer() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def parquet(path: Path, rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> str:
    """Rows to a Parquet file; columns: with these types and in this order, else what the rows have."""
    columns = columns or types(rows)
    defined = ", ".join(f"{engine.identifier(name)} {kind}" for name, kind in columns.items())
    _writer().execute(f"CREATE OR REPLACE TEMP TABLE t ({defined})")
    for start in range(0, len(rows), 100):
        some = rows[start : start + 100]
        marks = f"({', '.join('?' for _ in columns)})"
        values = [row.get(name) for row in some for name in columns]
        _writer().execute(f"INSERT INTO t VALUES {', '.join([marks] * len(some))}", values)
    _writer().execute(f"COPY t TO '{path}' (FORMAT parquet)")
    return str(path)


def log(directory: Path, decisions: Sequence[Row], outcomes: Sequence[Row] = ()) -> Files:
    """One file of each; no file of outcomes if there are none."""
    directory.mkdir(parents=True, exist_ok=True)
    told = [parquet(directory / "outcomes.parquet", outcomes)] if outcomes else []
    return Files([parquet(directory / "decisions.parquet", decisions)], told)


def shuffled_log(directory: Path, decisions: Sequence[Row], outcomes: Sequence[Row], seed: int) -> Files:
    """The same rows in another order, with other columns first, split into other files."""
    rng = random.Random(seed)
    files = Files([], [])
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows, paths in (("d", decisions, files.decisions), ("o", outcomes, files.outcomes)):
        mixed = rng.sample(list(rows), len(rows))
        columns = dict(sorted(types(rows).items(), key=lambda _: rng.random()))
        parts = rng.randint(1, 3)
        for part in range(parts):
            if mixed[part::parts]:
                paths.append(parquet(directory / f"{name}{part}.parquet", mixed[part::parts], columns))
    return files
