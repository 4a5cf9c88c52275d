"""Statistics of the fields, computed by the engine: the same to the last bit in whatever order it adds.

What is cheap is asked of all rows: how many values there are, their range, mean and deviation. Quantiles and the number
of different values need all values side by side, so of a field with more than SAMPLE values they are asked of a sample:
the decisions whose id has a hash below a threshold, the same ones in every engine and in whatever order rows lie. Where
few values are different, each is counted, over all rows.

The columns of a chunk are turned into rows (column, value) without the nulls, so that what a sparse field costs is what
it has.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

from steersman.core.profile import LEVELS
from steersman.engine import identifier, literal
from steersman.timeline import sql
from steersman.timeline.sql import Kind, Tables

Relation = Literal["kept", "offered"]

SAMPLE = 50_000
"""Values of a field from which on quantiles come from a sample; it has more than half of these."""

MAX_NUMBERS, MAX_TEXTS = 100, 1000
"""So many different values are counted one by one."""

_COLUMNS = 64
"""In one question, which the engine plans and runs at once."""

_VALUES = 4_000_000
"""In the samples of one question, some 60 bytes each."""

_LARGEST = "1.7976931348623157E308"
_INFINITE = "CAST('Infinity' AS DOUBLE)"
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

    def ask(self, select: str, columns: Sequence[str]) -> dict[str, list]:
        """The result of a query that reads these columns and, of a decision, the `id`; as lists."""
        offered = sql.offered(columns, shared=self.shared) if self.relation == "offered" else ""
        found = self.tables.ask(select, offered=offered)
        return {name: values.tolist() for name, values in found.items()}


class Numbers(NamedTuple):
    """Of the values of a number column, or of the lengths of a list column.

    Attributes:
        present: values that are not null and not NaN.
        finite: finite ones; all that follows is about these.
        mean, std: std is that of the population.
        sampled: values that `distinct` and `quantiles` come from.
        quantiles: [LEVELS + 1] at the levels i / LEVELS, from low to high; empty: no value.
    """

    present: int
    finite: int
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    whole: bool = False
    sampled: int = 0
    distinct: int = 0
    quantiles: tuple[float, ...] = ()


class Values(NamedTuple):
    """Different values of a column.

    Attributes:
        distinct: how many; among the `sampled` ones if they were not counted one by one.
        counts: value -> rows, most frequent first; empty: too many.
    """

    distinct: int
    sampled: int
    counts: tuple[tuple[str | float, int], ...] = ()


class _Range(NamedTuple):
    present: int
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
    fine: int
    coarse: int
    squares: int


def present(source: Source, columns: Sequence[str]) -> tuple[int, dict[str, int]]:
    """How many rows there are, and how many values of every column are not null."""
    counted: dict[str, int] = {}
    rows = int(source.ask(f"SELECT COUNT(*) AS n FROM {source.relation}", [sql.IDS])["n"][0])
    for some in _by_count(columns):
        counts = ", ".join(f"COUNT({identifier(column)}) AS n{i}" for i, column in enumerate(some))
        found = source.ask(f"SELECT {counts} FROM {source.relation}", some)
        counted |= {column: found[f"n{i}"][0] for i, column in enumerate(some)}
    return rows, counted


def numbers(source: Source, columns: Mapping[str, Kind]) -> dict[str, Numbers]:
    """Statistics of number columns and of the lengths of list columns.

    Floats added in another order give other last bits. So every value is measured from the middle of its range in
    whole parts of half the range, 2^-52 for the mean and 2^-30 for the deviation, and whole numbers are added. The
    deviation is at least half the range / sqrt(values), so a part of 2^-30 stays far below what float32 can show.
    """
    ranges: dict[str, _Range] = {}
    for some in _by_count(tuple(columns)):
        ranges |= _ranges(source, {column: columns[column] for column in some})
    found = {column: _constant(range_) for column, range_ in ranges.items() if not range_.half > 0}
    varying = {column: range_.n for column, range_ in ranges.items() if column not in found}
    for threshold, some in _by_sample(source, varying):
        found |= _spread(source, {column: columns[column] for column in some}, ranges, threshold)
    return {column: found[column] for column in columns}


def values(source: Source, columns: Mapping[str, Kind], n: Mapping[str, int]) -> dict[str, Values]:
    """Different values of columns: texts, numbers, or elements of lists.

    Args:
        n: column -> how many values or elements it has.
    """
    found: dict[str, Values] = {}
    for kind in sorted(set(columns.values())):
        of_kind = {column: n[column] for column in columns if columns[column] == kind}
        limit = MAX_TEXTS if "text" in kind else MAX_NUMBERS
        for threshold, some in _by_sample(source, of_kind):
            found |= _different(source, some, kind, threshold)
        few = [column for column in of_kind if found[column].distinct <= limit]
        for column, counts in _counted(source, few, kind).items():
            kept = counts if len(counts) <= limit else ()
            found[column] = Values(len(counts), sum(rows for _, rows in counts), kept)
    return found


def quantiles(counts: Sequence[tuple[str | float, int]]) -> tuple[float, ...]:
    """[LEVELS + 1] quantiles of numbers that were counted one by one, as in `Numbers`."""
    pairs = sorted((float(value), rows) for value, rows in counts)
    reached = list(accumulate(rows for _, rows in pairs))
    return tuple(
        pairs[bisect_left(reached, -(-level * reached[-1] // LEVELS))][0] if level else pairs[0][0]
        for level in range(LEVELS + 1)
    )


def _constant(found: _Range) -> Numbers:
    level = (found.low,) * (LEVELS + 1) if found.n else ()
    distinct = 1 if found.n else 0
    whole = bool(found.n) and found.low == found.low // 1
    return Numbers(found.present, found.n, found.low, found.high, found.low, 0.0, whole, found.n, distinct, level)


def _ranges(source: Source, columns: Mapping[str, Kind]) -> dict[str, _Range]:
    parts = []
    for i, (column, kind) in enumerate(columns.items()):
        value, finite = _number(column, kind), _finite(_number(column, kind))
        parts.append(f"COUNT({value}) AS known{i}, COUNT({finite}) AS n{i}, MIN({finite}) AS low{i}")
        parts.append(f"MAX({finite}) AS high{i}")
    found = source.ask(f"SELECT {', '.join(parts)} FROM {source.relation}", list(columns))
    odd = {column: kind for i, (column, kind) in enumerate(columns.items()) if found[f"known{i}"] != found[f"n{i}"]}
    known = _not_nan(source, odd)
    ranges = {}
    for i, column in enumerate(columns):
        n = found[f"n{i}"][0]
        # + 0.0 makes a negative zero a zero: which of the two the engine found is chance.
        low, high = (found[f"low{i}"][0] + 0.0, found[f"high{i}"][0] + 0.0) if n else (0.0, 0.0)
        ranges[column] = _Range(known.get(column, n), n, low, high)
    return ranges


def _not_nan(source: Source, columns: Mapping[str, Kind]) -> dict[str, int]:
    """How many values are neither null nor NaN, which is above every number in SQL."""
    if not columns:
        return {}
    counts = ", ".join(
        f"COUNT(CASE WHEN {_number(column, kind)} <= {_INFINITE} THEN 1 END) AS n{i}"
        for i, (column, kind) in enumerate(columns.items())
    )
    found = source.ask(f"SELECT {counts} FROM {source.relation}", list(columns))
    return {column: found[f"n{i}"][0] for i, column in enumerate(columns)}


def _spread(
    source: Source, columns: Mapping[str, Kind], ranges: Mapping[str, _Range], threshold: str
) -> dict[str, Numbers]:
    """Sums over all values; quantiles and different values over the sample."""
    tall = _tall(source, [_number(column, kind) for column, kind in columns.items()], threshold)
    of = (f"('f{i}', {ranges[column].middle:.17E}, {ranges[column].half:.17E})" for i, column in enumerate(columns))
    parts = {"fine": _FINE, "coarse": _COARSE}
    measured = ", ".join(
        f"CAST(FLOOR((tall.value - ranges.middle) / ranges.half * {grain:.1f}E0 + 0.5E0) AS BIGINT) AS {name}"
        for name, grain in parts.items()
    )
    drawn = "CASE WHEN tall.drawn THEN tall.value END" if threshold else "tall.value"
    levels = ", ".join(f"{level / LEVELS:.7f}" for level in range(LEVELS + 1))
    found = source.ask(
        f"""SELECT field, {_exact_sum("fine")} AS fine, CAST(SUM(coarse) AS VARCHAR) AS coarse,
        {_exact_sum("coarse * coarse")} AS squares, MAX(part) AS part, QUANTILE_DISC(drawn, [{levels}]) AS quantiles,
        COUNT(drawn) AS sampled, COUNT(DISTINCT drawn) AS different
        FROM (SELECT tall.field AS field, {measured}, {drawn} AS drawn,
            CASE WHEN tall.value <> FLOOR(tall.value) THEN 1 ELSE 0 END AS part
            FROM (SELECT field, value + 0.0E0 AS value{", drawn" if threshold else ""} FROM ({tall}) AS every
                WHERE ABS(value) <= {_LARGEST}) AS tall
            JOIN (VALUES {", ".join(of)}) AS ranges(field, middle, half) ON tall.field = ranges.field) AS measured
        GROUP BY field""",
        list(columns),
    )
    at = {field: row for row, field in enumerate(found["field"])}
    return {
        column: _numbers(ranges[column], {name: values[at[f"f{i}"]] for name, values in found.items()})
        for i, column in enumerate(columns)
    }


def _numbers(of: _Range, row: Mapping[str, object]) -> Numbers:
    sums = _Sums(*(int(str(row[name])) for name in _Sums._fields))
    mean = of.middle + of.half * (sums.fine / (of.n * _FINE))
    variance = sums.squares / (of.n * _COARSE**2) - (sums.coarse / (of.n * _COARSE)) ** 2
    inner = [] if row["quantiles"] is None else list(row["quantiles"])[1:-1]  # type: ignore[call-overload]
    return Numbers(
        present=of.present,
        finite=of.n,
        low=of.low,
        high=of.high,
        mean=mean,
        std=of.half * max(variance, 0.0) ** 0.5,
        whole=row["part"] == 0,
        sampled=int(row["sampled"]),  # type: ignore[call-overload]
        distinct=int(row["different"]),  # type: ignore[call-overload]
        quantiles=(of.low, *map(float, inner), of.high) if inner else (),
    )


def _different(source: Source, columns: Sequence[str], kind: Kind, threshold: str) -> dict[str, Values]:
    each = _each(source, columns, kind, threshold)
    where = "WHERE drawn" if threshold else ""
    found = source.ask(
        f"SELECT field, COUNT(value) AS n, COUNT(DISTINCT value) AS different FROM ({each}) AS each {where} "
        "GROUP BY field",
        columns,
    )
    at = {field: row for row, field in enumerate(found["field"])}
    return {
        column: Values(found["different"][at[f"f{i}"]], found["n"][at[f"f{i}"]]) if f"f{i}" in at else Values(0, 0)
        for i, column in enumerate(columns)
    }


def _counted(source: Source, columns: Sequence[str], kind: Kind) -> dict[str, tuple[tuple[str | float, int], ...]]:
    """Every value with its rows, most frequent first."""
    counted: dict[str, tuple[tuple[str | float, int], ...]] = {}
    for some in _by_count(columns):
        found = source.ask(
            f"SELECT field, value, COUNT(*) AS n FROM ({_each(source, some, kind, '')}) AS each GROUP BY field, value",
            some,
        )
        pairs: dict[str, list[tuple[str | float, int]]] = {f"f{i}": [] for i in range(len(some))}
        for field, value, n in zip(found["field"], found["value"], found["n"], strict=True):
            pairs[field].append((value, n))
        for i, column in enumerate(some):
            counted[column] = tuple(sorted(pairs[f"f{i}"], key=lambda pair: (-pair[1], pair[0])))
    return counted


def _each(source: Source, columns: Sequence[str], kind: Kind, threshold: str) -> str:
    """SQL of (field, value) of texts, of finite numbers, or of elements of lists, without nulls."""
    drawn = ", drawn" if threshold else ""
    if kind == "text":
        return _tall(source, [f"CAST({identifier(column)} AS VARCHAR)" for column in columns], threshold)
    if kind == "number":
        every = _tall(source, [_number(column, kind) for column in columns], threshold)
    else:
        lists = _tall(source, [identifier(column) for column in columns], threshold)
        every = f"SELECT field, UNNEST(value) AS value{drawn} FROM ({lists}) AS lists"
        if kind == "list of text":
            return (
                f"SELECT field, CAST(value AS VARCHAR) AS value{drawn} FROM ({every}) AS every WHERE value IS NOT NULL"
            )
    value = "CAST(value AS DOUBLE)"
    return f"SELECT field, {value} + 0.0E0 AS value{drawn} FROM ({every}) AS every WHERE ABS({value}) <= {_LARGEST}"


def _tall(source: Source, expressions: Sequence[str], threshold: str) -> str:
    """SQL of (field, value) without nulls, fields named f0, f1, ...; with a threshold, and whether the row is drawn."""
    names = [f"f{i}" for i in range(len(expressions))]
    wide = [f"{expression} AS {name}" for expression, name in zip(expressions, names, strict=True)]
    drawn = ", drawn" if threshold else ""
    if threshold:
        wide.append(f"MD5(id) < {literal(threshold)} AS drawn")
    return (
        f"SELECT field, value{drawn} FROM (SELECT {', '.join(wide)} FROM {source.relation}) AS wide "
        f"UNPIVOT (value FOR field IN ({', '.join(names)}))"
    )


def _number(column: str, kind: Kind) -> str:
    """SQL of a number, or of the length of a list."""
    if kind == "number":
        return f"CAST({identifier(column)} AS DOUBLE)"
    return f"CAST(ARRAY_LENGTH({identifier(column)}) AS DOUBLE)"


def _exact_sum(whole: str) -> str:
    """SQL of the sum of 64-bit whole numbers, as text: a number of 128 bits is what engines have no common type for."""
    return f"CAST(SUM(CAST({whole} AS HUGEINT)) AS VARCHAR)"


def _finite(value: str) -> str:
    """SQL of a value, null unless it is finite."""
    return f"CASE WHEN ABS({value}) <= {_LARGEST} THEN {value} END"


def _by_count(columns: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(columns), _COLUMNS):
        yield columns[start : start + _COLUMNS]


def _by_sample(source: Source, n: Mapping[str, int]) -> Iterator[tuple[str, list[str]]]:
    """Columns that are sampled alike, a few at a time, with the threshold that the hash of an id must be below.

    A hash of 128 bits is below 2 ** (128 - halvings) in a row of 2 ** halvings; empty: all rows.

    Args:
        n: column -> its values.
    """
    alike: dict[int, list[str]] = {}
    for column, count in n.items():
        halvings = 0 if source.shared else (max(count - 1, 0) // SAMPLE).bit_length()
        alike.setdefault(halvings, []).append(column)
    for halvings, columns in sorted(alike.items()):
        threshold = f"{1 << 32 - halvings:08x}" if halvings else ""
        some: list[str] = []
        total = 0
        for column in columns:
            if some and (len(some) == _COLUMNS or total + (n[column] >> halvings) > _VALUES):
                yield threshold, some
                some, total = [], 0
            some.append(column)
            total += n[column] >> halvings
        yield threshold, some
