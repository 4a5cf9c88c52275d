"""What is asked of the engine: who is first, who belongs to whom, in which order, what can be chosen.

Standard SQL, so that another engine can run it. What must differ between engines stands in the functions after
`columns_of`: reading a schema, putting a result aside, an exact sum, a set of candidates, one row a candidate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from steersman.core.decision import Problem
from steersman.core.errors import DataError
from steersman.engine import Engine, identifier
from steersman.timeline.built import Files
from steersman.timeline.episodes import BY_STEP, BY_TIME, BY_TIME_AND_STEP, NO_END, SECOND, TERMINATED, TRUNCATED

Columns = dict[str, np.ndarray]
Kind = Literal["number", "text", "list of number", "list of text", "list", "other"]

IDS = "candidates.id"
UNKNOWN_END = -1

_NEED: dict[str, dict[str, Kind]] = {
    "decisions": {
        "id": "text",
        "unit": "text",
        "at": "number",
        "action": "text",
        "propensity": "number",
        IDS: "list of text",
    },
    "outcomes": {"id": "text", "decision": "text", "at": "number"},
}
_OPTIONAL = {"decisions": {"step": "BIGINT"}, "outcomes": {"ends": "VARCHAR"}}

_CLOCKS = f"""SELECT unit, ROW_NUMBER() OVER (ORDER BY unit) - 1 AS number,
    CASE WHEN COUNT(step) < COUNT(*) THEN {BY_TIME}
    WHEN COUNT(DISTINCT step) < COUNT(*) THEN {BY_TIME_AND_STEP} ELSE {BY_STEP} END AS clock
    FROM kept GROUP BY unit"""
_CLOCKED = "FROM kept JOIN clocks ON kept.unit = clocks.unit"
_ORDER = f"""ORDER BY clocks.number, CASE WHEN clocks.clock = {BY_STEP} THEN kept.step ELSE kept."at" END,
    kept."at", kept.id"""
_PLACE = f"ROW_NUMBER() OVER ({_ORDER}) - 1 AS place"
_ANY = "kept.id = (SELECT MIN(id) FROM kept)"


@dataclass(frozen=True)
class Window:
    """Which decisions enter: since <= at < until, and at + wait <= as_of. All in microseconds."""

    since: int
    until: int
    as_of: int
    wait: int

    @property
    def inside(self) -> str:
        """SQL: the instant is in the window."""
        return f'"at" >= {self.since} AND "at" < {self.until}'

    @property
    def happened(self) -> str:
        """SQL: the instant is not after as_of."""
        return f'"at" <= {self.as_of}'

    @property
    def waited(self) -> str:
        """SQL: the decision's wait is over."""
        return f'"at" <= {self.as_of - self.wait}'


def window(problem: Problem, since: int, until: int, as_of: int) -> Window:
    """The window of a build.

    Raises:
        DataError: it is empty.
    """
    if since >= until:
        raise DataError(f"the window [{since}, {until}) is empty", hint="until must be later than since")
    return Window(since, until, as_of, min(round(problem.wait_s * SECOND), 2**62))


class Census(NamedTuple):
    """Decisions of the window: lines logged, copies too; different ones that wait; different ones that enter."""

    logged: int
    waiting: int
    entering: int


@dataclass(frozen=True)
class Tables:
    """The decisions and outcomes of a log, and the questions a build asks of them.

    A question is a query over the views `decisions` and `outcomes` and over these relations: `once` (decisions, each
    id once), `kept` (those that enter), `clocks` (number of a unit and what orders it), `heard` (outcomes until as_of,
    each id once), `offered` (one row a candidate of a kept decision).

    Attributes:
        decisions: name -> kind of the columns.
        outcomes: the same; empty: there is no outcome.
        repeated: whether an id was seen again, among the decisions and among the outcomes.
    """

    engine: Engine
    window: Window
    decisions: Mapping[str, Kind]
    outcomes: Mapping[str, Kind]
    repeated: tuple[bool, bool]

    def ask(self, select: str, parameters: Sequence[object] = (), *, offered: str = "") -> Columns:
        """The result of a query over the relations; offered: SQL of the relation of that name, if it is needed."""
        relations = {
            "once": _once("decisions", self.decisions, repeated=self.repeated[0]),
            "kept": f"SELECT * FROM once WHERE {self.window.inside} AND {self.window.waited}",
            "clocks": _CLOCKS,
        }
        if self.outcomes:
            once = _once("outcomes", self.outcomes, repeated=self.repeated[1])
            relations["heard"] = f"SELECT * FROM ({once}) AS once_heard WHERE {self.window.happened}"
        if offered:
            relations["offered"] = offered
        named = ", ".join(f"{name} AS ({body})" for name, body in relations.items())
        return self.engine.query(f"WITH {named} {select}", parameters)

    def census(self) -> Census:
        """How many decisions are in the window."""
        inside, waited = self.window.inside, self.window.waited
        logged = self.engine.query(f"SELECT COUNT(*) AS n FROM decisions WHERE {inside}")
        found = self.ask(f"SELECT COUNT(*) AS n, COUNT(CASE WHEN {waited} THEN 1 END) AS k FROM once WHERE {inside}")
        n, entering = int(found["n"][0]), int(found["k"][0])
        return Census(logged=int(logged["n"][0]), waiting=n - entering, entering=entering)

    def rows(self, columns: Mapping[str, Kind]) -> Columns:
        """The kept decisions in their order: id, unit i64, at, step (-1: none), clock, action, propensity, columns."""
        wanted = ", ".join(
            [
                'kept.id AS id, clocks.number AS unit, kept."at" AS "at", clocks.clock AS clock',
                "COALESCE(CAST(kept.step AS BIGINT), -1) AS step, kept.action AS action",
                "CAST(kept.propensity AS DOUBLE) AS propensity",
                *(f"{typed('kept', column, kind)} AS {identifier(column)}" for column, kind in columns.items()),
            ]
        )
        return self.ask(f"SELECT {wanted} {_CLOCKED} {_ORDER}")

    def facts(self, metrics: Sequence[str], *, ordered: bool) -> Columns:
        """The outcomes of kept decisions: place i64 of the decision, late (0, 1), ends, metrics.

        Args:
            ordered: by `at` of the outcome, then by its id; else in no order, which is cheaper.
        """
        wanted = "".join(f", {typed('heard', column, 'number')} AS {identifier(column)}" for column in metrics)
        ends = typed("heard", "ends", "text")
        return self.ask(
            f"""SELECT placed.place AS place,
            CASE WHEN heard."at" - placed."at" > {self.window.wait} THEN 1 ELSE 0 END AS late,
            CASE WHEN heard.ends IS NULL THEN {NO_END} WHEN {ends} = 'truncated' THEN {TRUNCATED}
            WHEN {ends} = 'terminated' THEN {TERMINATED} ELSE {UNKNOWN_END} END AS ends{wanted}
            FROM heard JOIN (SELECT kept.id AS id, kept."at" AS "at", {_PLACE} {_CLOCKED}) AS placed
            ON heard.decision = placed.id{' ORDER BY heard."at", heard.id' if ordered else ""}"""
        )

    def dangling(self, of_rows: int) -> int:
        """Outcomes stamped within the window whose decision is not in the files.

        Args:
            of_rows: outcomes of kept decisions. If that is all there are, none dangles.
        """
        if not self.outcomes or of_rows == int(self.ask("SELECT COUNT(*) AS n FROM heard")["n"][0]):
            return 0
        found = self.ask(
            f"""SELECT COUNT(*) AS n FROM heard WHERE {self.window.inside}
            AND NOT EXISTS (SELECT 1 FROM decisions WHERE decisions.id = heard.decision)"""
        )
        return int(found["n"][0])

    def duplicate_outcomes(self) -> int:
        """Further outcomes until as_of with an id that was seen before."""
        if not self.repeated[1]:
            return 0
        count = f"SELECT COUNT(*) - COUNT(DISTINCT id) AS n FROM outcomes WHERE {self.window.happened}"
        return int(self.engine.query(count)["n"][0])

    def same_candidates(self, columns: Sequence[str]) -> bool:
        """Whether every kept decision had the same candidates with the same features, in whatever order."""
        lists = (IDS, *columns)
        found = self.ask(
            f"""SELECT COUNT(*) AS n FROM (SELECT DISTINCT {_candidate_set(lists)} AS candidates
            FROM (SELECT DISTINCT {_names(lists)} FROM kept) AS sets) AS different"""
        )
        return int(found["n"][0]) == 1

    def candidates(self, columns: Mapping[str, Kind], *, shared: bool) -> Columns:
        """Candidates by (place, id): place i64, id, columns; of all rows or, where all have the same, as place 0."""
        lists = (IDS, *columns)
        wanted = ", ".join(f"kept.{identifier(column)} AS {identifier(column)}" for column in lists)
        placed = (
            f"SELECT 0 AS place, {wanted} FROM kept WHERE {_ANY}" if shared else f"SELECT {_PLACE}, {wanted} {_CLOCKED}"
        )
        each = _one_row_a_candidate(f"({placed}) AS placed", ("place",), lists)
        features = "".join(f", {typed('each', name, kind)} AS {identifier(name)}" for name, kind in columns.items())
        return self.ask(
            f"SELECT place, {identifier(IDS)}{features} FROM ({each}) AS each ORDER BY place, {identifier(IDS)}"
        )


def offered(columns: Sequence[str], *, shared: bool) -> str:
    """SQL of the candidates of all kept decisions or, where all have the same, of one; one row a candidate."""
    return _one_row_a_candidate(f"kept WHERE {_ANY}" if shared else "kept", (), columns)


def tables(engine: Engine, files: Files, window: Window) -> Tables:
    """Register the files and look at their columns.

    Raises:
        DataError: there is no file of decisions, or a column is missing or of the wrong kind.
    """
    if not files.decisions:
        raise DataError("the log has no decisions in the window", hint="is the problem's name right, and the window?")
    engine.view("decisions", files.decisions)
    decisions = _schema(engine, "decisions")
    outcomes: Mapping[str, Kind] = {}
    if files.outcomes:
        engine.view("outcomes", files.outcomes)
        outcomes = _schema(engine, "outcomes")
    repeated = (_repeats(engine, "decisions"), bool(outcomes) and _repeats(engine, "outcomes"))
    if repeated[0]:
        _keep_first(engine, "decisions", decisions)
    if repeated[1]:
        _keep_first(engine, "outcomes", outcomes)
    return Tables(engine, window, decisions, outcomes, repeated)


def _schema(engine: Engine, table: str) -> Mapping[str, Kind]:
    found = columns_of(engine, table)
    for column, kind in _NEED[table].items():
        if column not in found:
            raise DataError(f"{table} have no column {column!r}", hint=_MISSING.get(column, ""), field=column)
        if found[column] != kind:
            raise DataError(f"{table}: column {column!r} is a {found[column]}, must be a {kind}", field=column)
    return found


_MISSING = {
    "propensity": "log the probability with which every action was taken: without it nothing can be judged",
    "action": "this stage builds problems with one action out of candidates",
    IDS: "log every candidate that could have been taken, the action included",
}


def _repeats(engine: Engine, table: str) -> bool:
    """Whether an id stands twice. Refuses rows without an id, a unit, an instant."""
    need = [column for column in ("id", "unit", "decision", "at") if column in _NEED[table]]
    counts = ", ".join(f"COUNT({identifier(column)}) AS {identifier(column)}" for column in need)
    found = engine.query(f"SELECT COUNT(*) AS n, COUNT(DISTINCT id) AS ids, {counts} FROM {table}")
    n = int(found["n"][0])
    for column in need:
        if int(found[column][0]) < n:
            raise DataError(f"{table}: {n - int(found[column][0])} of {n} rows have no {column}", field=column)
    return int(found["ids"][0]) < n


def _once(table: str, columns: Iterable[str], *, repeated: bool) -> str:
    """SQL of a table's rows, each id once."""
    selected = _selected(table, columns)
    if not repeated:
        return f"SELECT {selected} FROM {table}"
    return f"""SELECT {selected} FROM {table} WHERE id NOT IN (SELECT id FROM {table}_again)
        UNION ALL SELECT {selected} FROM {table}_first"""


def _keep_first(engine: Engine, table: str, columns: Iterable[str]) -> None:
    """Put aside the ids that stand more than once, and of each the first row.

    The first by `at`, then by all that a build reads, so that it is always the same one. An outcome told again later
    than as_of is not the first, so it changes nothing. These few rows are put aside because every question needs them.
    """
    order = ", ".join(f"{identifier(column)} NULLS FIRST" for column in ["at", *_read(table, columns)])
    keep(engine, f"{table}_again", f"SELECT id FROM {table} GROUP BY id HAVING COUNT(*) > 1")
    keep(
        engine,
        f"{table}_first",
        f"""SELECT * FROM (
            SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY {order}) AS telling
            FROM {table} WHERE id IN (SELECT id FROM {table}_again)
        ) AS told WHERE telling = 1""",
    )


def _selected(table: str, columns: Iterable[str]) -> str:
    read = _read(table, columns)
    missing = (f"CAST(NULL AS {kind}) AS {column}" for column, kind in _OPTIONAL[table].items() if column not in read)
    return ", ".join([_names(read), *missing])


def _read(table: str, columns: Iterable[str]) -> list[str]:
    """The columns that a build reads."""
    known = _NEED[table].keys() | _OPTIONAL[table].keys()
    prefixes = ("context.", "candidates.", "metrics.")
    return sorted(column for column in columns if column in known or column.startswith(prefixes))


def _names(columns: Iterable[str]) -> str:
    return ", ".join(identifier(column) for column in columns)


def typed(relation: str, column: str, kind: Kind) -> str:
    """SQL of a column as what a build computes with: DOUBLE or VARCHAR."""
    return f"CAST({relation}.{identifier(column)} AS {'DOUBLE' if kind == 'number' else 'VARCHAR'})"


def columns_of(engine: Engine, view: str) -> dict[str, Kind]:
    """Name -> kind of the columns of a view."""
    described = list(engine.query(f"DESCRIBE {view}").values())
    return {str(name): _kind(str(kind)) for name, kind in zip(described[0], described[1], strict=True)}


_NUMBER = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|LONG|FLOAT|REAL|DOUBLE|BOOLEAN|DECIMAL(\(.*\))?)", re.I)
_TEXT = re.compile(r"(VAR)?CHAR(\(.*\))?|TEXT|STRING|ENUM\(.*\)", re.I)
_LIST = re.compile(r"(.*)\[\d*\]|ARRAY<(.*)>", re.I | re.S)


def _kind(kind: str) -> Kind:
    if _NUMBER.fullmatch(kind):
        return "number"
    if _TEXT.fullmatch(kind):
        return "text"
    if match := _LIST.fullmatch(kind):
        inner = _kind(match[1] or match[2])
        return "list of number" if inner == "number" else "list of text" if inner == "text" else "list"
    return "other"


def keep(engine: Engine, name: str, select: str) -> None:
    """Put the result of a query aside under a name, as long as the engine is open."""
    engine.query(f"CREATE OR REPLACE TEMP TABLE {name} AS {select}")


def exact_sum(whole: str) -> str:
    """SQL of the sum of 64-bit whole numbers as DOUBLE. It must not overflow: here it has 128 bits."""
    return f"CAST(SUM({whole}) AS DOUBLE)"


def _candidate_set(columns: Sequence[str]) -> str:
    """SQL of a row's candidates with their features, in an order of their own."""
    return f"list_sort(list_zip({_names(columns)}))"


def _one_row_a_candidate(source: str, keys: Sequence[str], lists: Sequence[str]) -> str:
    """SQL of the lists side by side, one row an element; shorter lists are filled with null."""
    unnested = (f"unnest({identifier(column)}) AS {identifier(column)}" for column in lists)
    return f"SELECT {', '.join([*keys, *unnested])} FROM {source}"
