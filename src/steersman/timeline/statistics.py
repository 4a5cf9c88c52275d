"""Statistics of the fields, computed by the engine: the same to the last bit in whatever order it adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from steersman.engine import identifier
from steersman.timeline import sql
from steersman.timeline.sql import Tables

Relation = Literal["kept", "offered"]

_LARGEST = "1.7976931348623157E308"
_FINE, _COARSE = 2.0**52, 2.0**30


@dataclass(frozen=True)
class Source:
    """Where a field's values are.

    Attributes:
        relation: `kept` for the context, `offered` for the features of candidates.
        shared: all decisions had the same candidates, so those of one decision have the same statistics.
    """

    tables: Tables
    relation: Relation
    shared: bool = False

    def ask(self, select: str, columns: Sequence[str], parameters: Sequence[object] = ()) -> dict[str, list]:
        """The result of a query that reads these columns, as lists."""
        offered = sql.offered(columns, shared=self.shared) if self.relation == "offered" else ""
        found = self.tables.ask(select, parameters, offered=offered)
        return {name: values.tolist() for name, values in found.items()}


class Moments(NamedTuple):
    """Of the values of a number field: how many are finite, their mean and their population standard deviation."""

    n: int
    mean: float
    std: float


class _Range(NamedTuple):
    n: int
    low: float
    high: float

    @property
    def middle(self) -> float:
        return self.low / 2 + self.high / 2  # halves first: the sum of two large numbers is infinite

    @property
    def half(self) -> float:
        return self.high / 2 - self.low / 2


class _Sums(NamedTuple):
    fine: float
    coarse: float
    squares: float


def present(source: Source, columns: Sequence[str]) -> dict[str, int]:
    """How many values of every column are not null."""
    if not columns:
        return {}
    counts = ", ".join(f"COUNT({identifier(column)}) AS n{i}" for i, column in enumerate(columns))
    found = source.ask(f"SELECT {counts} FROM {source.relation}", columns)
    return {column: found[f"n{i}"][0] for i, column in enumerate(columns)}


def texts(source: Source, column: str) -> list[str]:
    """The different texts of a column, sorted."""
    name = identifier(column)
    select = f"SELECT DISTINCT {name} AS value FROM {source.relation} WHERE {name} IS NOT NULL"
    return sorted(source.ask(select, [column])["value"])


def moments(source: Source, columns: Sequence[str]) -> dict[str, Moments]:
    """Count, mean and standard deviation of number columns.

    Floats added in another order give other last bits. So every value is measured from the middle of its range in
    whole parts of half the range, 2^-52 for the mean and 2^-30 for the deviation, and whole numbers are added. The
    deviation is at least half the range / sqrt(values), so a part of 2^-30 stays far below what float32 can show.
    """
    ranges = _ranges(source, columns)
    sums = _sums(source, {column: found for column, found in ranges.items() if found.n and found.half > 0})
    return {
        column: _moments(found, sums[column]) if column in sums else Moments(found.n, found.low, 0.0)
        for column, found in ranges.items()
    }


def _moments(found: _Range, sums: _Sums) -> Moments:
    n = found.n
    mean = found.middle + found.half * (sums.fine / (n * _FINE))
    variance = sums.squares / (n * _COARSE**2) - (sums.coarse / (n * _COARSE)) ** 2
    return Moments(n, mean, found.half * max(variance, 0.0) ** 0.5)


def _ranges(source: Source, columns: Sequence[str]) -> dict[str, _Range]:
    if not columns:
        return {}
    parts = [
        f"COUNT({_finite(column)}) AS n{i}, MIN({_finite(column)}) AS low{i}, MAX({_finite(column)}) AS high{i}"
        for i, column in enumerate(columns)
    ]
    found = source.ask(f"SELECT {', '.join(parts)} FROM {source.relation}", columns)
    # + 0.0 makes a negative zero a zero: which of the two the engine found is chance.
    return {
        column: _Range(found[f"n{i}"][0], found[f"low{i}"][0] + 0.0, found[f"high{i}"][0] + 0.0)
        for i, column in enumerate(columns)
    }


def _sums(source: Source, ranges: Mapping[str, _Range]) -> dict[str, _Sums]:
    if not ranges:
        return {}
    parts, sums = [], []
    parameters: list[float] = []
    for i, (column, found) in enumerate(ranges.items()):
        for name, grain in (("fine", _FINE), ("coarse", _COARSE)):
            parts.append(f"CAST(FLOOR(({_finite(column)} - ?) / ? * {grain:.1f}E0 + 0.5E0) AS BIGINT) AS {name}{i}")
            parameters += [found.middle, found.half]
        for name, whole in (("fine", f"fine{i}"), ("coarse", f"coarse{i}"), ("squares", f"coarse{i} * coarse{i}")):
            sums.append(f"{sql.exact_sum(whole)} AS {name}_sum{i}")
    measured = f"(SELECT {', '.join(parts)} FROM {source.relation}) AS measured"
    totals = source.ask(f"SELECT {', '.join(sums)} FROM {measured}", list(ranges), parameters)
    return {column: _Sums(*(totals[f"{name}_sum{i}"][0] for name in _Sums._fields)) for i, column in enumerate(ranges)}


def _finite(column: str) -> str:
    """SQL of a value, null unless it is finite. NaN is above every number in SQL."""
    value = f"CAST({identifier(column)} AS DOUBLE)"
    return f"CASE WHEN ABS({value}) <= {_LARGEST} THEN {value} END"
