"""What is asked of the engine: who is first, who belongs to whom, in which order, what can be chosen.

Standard SQL as far as it goes, so that another engine can run it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from steersman.core.decision import Problem
from steersman.core.errors import DataError
from steersman.engine import Engine, identifier, literal
from steersman.timeline.built import Files
from steersman.timeline.episodes import NO_END, SECOND, TERMINATED, TRUNCATED

Columns = dict[str, np.ndarray]
Kind = Literal["number", "text", "list of number", "list of text", "list", "other"]

IDS = "candidates.id"
ROW = "row"

UNKNOWN_END, LATE, INSIDE = 3, 4, 8
"""Of `told`: besides NO_END, TRUNCATED and TERMINATED, which are below 3."""

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
_OPTIONAL = {
    "decisions": {"step": "BIGINT", "deferred": "BOOLEAN", "estimated": "BOOLEAN"},
    "outcomes": {"ends": "VARCHAR", "activates": "BOOLEAN"},
}


def _draw(first: int) -> str:
    """SQL of a number in [0, 1) out of eight hexadecimal digits of the MD5 of a unit's name."""
    digits = (f"STRPOS('0123456789abcdef', SUBSTR(MD5(unit), {first + i}, 1)) - 1" for i in range(8))
    return " + ".join(f"({digit}) / {16.0 ** (i + 1):.1f}E0" for i, digit in enumerate(digits))


_UNITS = f"""SELECT unit, ROW_NUMBER() OVER (ORDER BY unit) - 1 AS number, {_draw(1)} AS draw
    FROM kept GROUP BY unit"""
_ANY = "(SELECT * FROM kept LIMIT 1) AS kept"
"""Where all decisions have the same candidates, those of any one are those of all."""


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
    def seen_until(self) -> int:
        """All decisions before this instant have entered or are waited for no more, microseconds UTC."""
        return min(self.until, self.as_of - self.wait + 1)

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
    """Decisions of the window: lines logged, copies too; different ones that wait, that were deferred and never
    activated, that enter."""

    logged: int
    waiting: int
    deferred: int
    entering: int


class Seen(NamedTuple):
    """Rows of a table, how many ids they have, the last `at`, and SQL of the key by which repeated ids are found."""

    rows: int
    ids: int
    last: int
    key: str

    @property
    def repeated(self) -> bool:
        """Whether an id was seen again."""
        return self.ids < self.rows


@dataclass(frozen=True)
class Tables:
    """The decisions and outcomes of a log, and the questions a build asks of them.

    A question is a query over the views `decisions` and `outcomes` and over these relations: `once` (decisions, each
    id once), `heard` (outcomes until as_of, each id once), `kept` (decisions that enter), `offered` (one row a
    candidate of a kept decision); and, once `steps` was called, over the table `units` (number of a unit and its draw).

    Attributes:
        decisions: name -> kind of the columns.
        outcomes: the same; empty: there is no outcome.
        seen: how many decisions and how many outcomes are in the files.
    """

    engine: Engine
    window: Window
    decisions: Mapping[str, Kind]
    outcomes: Mapping[str, Kind]
    seen: tuple[Seen, Seen]

    def sql(self, select: str, *, offered: str = "") -> str:
        """A query over the relations; offered: SQL of the relation of that name, if it is needed."""
        relations = {"once": _once("decisions", self.decisions, self.seen[0])}
        if self.outcomes:
            once = _once("outcomes", self.outcomes, self.seen[1])
            relations["heard"] = f"SELECT * FROM ({once}) AS once_heard WHERE {self.window.happened}"
        relations["kept"] = (
            f"SELECT * FROM once WHERE {self.window.inside} AND {self.window.waited} AND {self._carried}"
        )
        if offered:
            relations["offered"] = offered
        named = ", ".join(f"{name} AS ({body})" for name, body in relations.items())
        return f"WITH {named} {select}"

    def ask(self, select: str, parameters: Sequence[object] = (), *, offered: str = "") -> Columns:
        """The result of a query over the relations."""
        return self.engine.query(self.sql(select, offered=offered), parameters)

    @property
    def _carried(self) -> str:
        """SQL: the decision was carried out, as far as one knows."""
        if "deferred" not in self.decisions:
            return "TRUE"
        activated = "id IN (SELECT decision FROM heard WHERE activates)" if self.outcomes else "FALSE"
        return f"(NOT COALESCE(deferred, FALSE) OR {activated})"

    def census(self) -> Census:
        """How many decisions are in the window."""
        inside, waited = self.window.inside, self.window.waited
        logged = self.engine.query(f"SELECT COUNT(*) AS n FROM decisions WHERE {inside}")
        found = self.ask(f"SELECT COUNT(*) AS n, COUNT(CASE WHEN {waited} THEN 1 END) AS k FROM once WHERE {inside}")
        n, waited_for = int(found["n"][0]), int(found["k"][0])
        entering = waited_for
        if "deferred" in self.decisions:
            entering = int(self.ask("SELECT COUNT(*) AS n FROM kept")["n"][0])
        return Census(int(logged["n"][0]), n - waited_for, waited_for - entering, entering)

    def steps(self, action: str) -> Columns:
        """The kept decisions in any order: row, unit, at, step (-1: none), propensity, action, estimated (bool).

        Args:
            action: SQL of the place of its action among its candidates, -1 if it is not one of them.
        """
        self.engine.keep("units", self.sql(_UNITS))
        estimated = ", CASE WHEN kept.estimated THEN TRUE ELSE FALSE END AS estimated"
        columns = self.ask(
            f"""SELECT kept.{ROW} AS {ROW}, units.number AS unit, kept."at" AS "at",
            COALESCE(CAST(kept.step AS BIGINT), -1) AS step, CAST(kept.propensity AS DOUBLE) AS propensity,
            {action} AS action{estimated if "estimated" in self.decisions else ""}
            FROM kept JOIN units ON kept.unit = units.unit"""
        )
        return {"estimated": np.zeros(len(columns[ROW]), dtype=bool)} | columns

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """[N] object, ids of the decisions at these rows."""
        return self.engine.take("decisions", {"id": "id"}, rows)["id"]

    def parted(self, shards: int) -> tuple[str, str]:
        """SQL of the decisions that enter and of their outcomes, each with the shard of its unit, 0 to shards - 1."""
        # Other digits than those of the draw, by which units are parted into training and test.
        shard = f"CAST(FLOOR(({_draw(9)}) * {shards}) AS INTEGER)"
        units = f"(SELECT unit, {shard} AS shard FROM kept GROUP BY unit)"
        columns = sorted({*_read("decisions", self.decisions), *_OPTIONAL["decisions"]} - {ROW})
        wanted = ", ".join(f"kept.{identifier(column)} AS {identifier(column)}" for column in columns)
        decisions = f"SELECT {wanted}, units.shard AS shard FROM kept JOIN {units} AS units ON kept.unit = units.unit"
        if not self.outcomes:
            return self.sql(decisions), ""
        of_kept = f"""SELECT heard.*, units.shard AS shard FROM heard JOIN kept ON heard.decision = kept.id
            JOIN {units} AS units ON kept.unit = units.unit"""
        return self.sql(decisions), self.sql(of_kept)

    def draws(self) -> np.ndarray:
        """[U] f64 in [0, 1), by the number of the unit: a hash of its name, so that it is the same in every build."""
        found = self.engine.query("SELECT number, draw FROM units")
        draws = np.empty(len(found["number"]))
        draws[found["number"]] = found["draw"]
        return draws

    def fields(self, columns: Mapping[str, Kind], rows: np.ndarray | None) -> Columns:
        """Columns of the decisions at these rows ([N] i64, `row` of steps), in that order; null numbers are NaN.

        Args:
            rows: None: those of all rows of the files, in their order.
        """
        wanted = {}
        for name, kind in columns.items():
            wanted[name] = _number("decisions", name) if kind == "number" else typed("decisions", name, kind)
        return self.engine.take("decisions", wanted, rows)

    def facts(self, metrics: Sequence[str], *, ordered: bool) -> Columns:
        """The outcomes until as_of: row of the kept decision (-1: of none), told, metrics.

        `told` is how it ends the episode, plus LATE if it came after the wait, plus INSIDE if it is stamped within
        the window.

        Args:
            ordered: by `at` of the outcome, then by its id; else in no order, which is cheaper.
        """
        wanted = "".join(f", {_number('heard', column)} AS {identifier(column)}" for column in metrics)
        ends = typed("heard", "ends", "text")
        return self.ask(
            f"""SELECT COALESCE(kept.{ROW}, -1) AS {ROW}, CAST(
                CASE WHEN heard.ends IS NULL THEN {NO_END} WHEN {ends} = 'truncated' THEN {TRUNCATED}
                WHEN {ends} = 'terminated' THEN {TERMINATED} ELSE {UNKNOWN_END} END
                + CASE WHEN heard."at" - kept."at" > {self.window.wait} THEN {LATE} ELSE 0 END
                + CASE WHEN heard."at" >= {self.window.since} AND heard."at" < {self.window.until}
                    THEN {INSIDE} ELSE 0 END AS BIGINT) AS told{wanted}
            FROM heard LEFT JOIN kept ON heard.decision = kept.id
            {'ORDER BY heard."at", heard.id' if ordered else ""}"""
        )

    def dangling(self, strangers: int | None, entering: int) -> int:
        """Outcomes stamped within the window whose decision is not in the files.

        Args:
            strangers: outcomes stamped within the window whose decision does not enter; None: nobody counted.
            entering: decisions that enter.
        """
        if not self.outcomes or strangers == 0:
            return 0
        if strangers is not None and entering == self.seen[0].ids:
            return strangers
        found = self.ask(
            f"""SELECT COUNT(*) AS n FROM heard WHERE {self.window.inside}
            AND NOT EXISTS (SELECT 1 FROM decisions WHERE decisions.id = heard.decision)"""
        )
        return int(found["n"][0])

    def duplicate_outcomes(self) -> int:
        """Further outcomes until as_of with an id that was seen before."""
        seen = self.seen[1]
        if not seen.repeated or seen.last <= self.window.as_of:
            return seen.rows - seen.ids
        count = f"SELECT COUNT(*) - COUNT(DISTINCT id) AS n FROM outcomes WHERE {self.window.happened}"
        return int(self.engine.query(count)["n"][0])

    def same_candidates(self, columns: Sequence[str]) -> tuple[str, ...] | None:
        """Ids of the candidates, ascending, if every kept decision had the same with the same features, in whatever
        order; else None."""
        lists = (IDS, *columns)
        found = self.ask(
            f"""SELECT COUNT(*) AS n FROM (SELECT DISTINCT {_candidate_set(lists)} AS candidates
            FROM (SELECT DISTINCT {_names(lists)} FROM kept) AS sets) AS different"""
        )
        if int(found["n"][0]) != 1:
            return None
        ids = self.ask(f"SELECT {identifier(IDS)} AS ids FROM {_ANY}")["ids"][0]
        return None if ids is None or any(name is None for name in ids) else tuple(sorted(ids))

    def candidates(self, columns: Mapping[str, Kind], *, shared: bool) -> Columns:
        """Candidates by (row, id): row of the decision, id, columns; of all decisions or, where all have the same, of
        one."""
        lists = (IDS, *columns)
        wanted = ", ".join(f"kept.{identifier(column)} AS {identifier(column)}" for column in lists)
        of_row = f"SELECT kept.{ROW} AS {ROW}, {wanted} FROM {_ANY if shared else 'kept'}"
        each = _one_row_a_candidate(f"({of_row}) AS of_row", (ROW,), lists)
        features = "".join(f", {typed('each', name, kind)} AS {identifier(name)}" for name, kind in columns.items())
        return self.ask(
            f"SELECT {ROW}, {identifier(IDS)}{features} FROM ({each}) AS each ORDER BY {ROW}, {identifier(IDS)}"
        )


class Places:
    """Rows of the view of decisions and places in the order of a build, of both of which a decision has one.

    Attributes:
        rows: [N] i64, the row of the decision at each place.
    """

    def __init__(self, tables: Tables, rows: np.ndarray) -> None:
        self.rows = rows
        self._tables = tables
        self._place = np.full(int(rows.max()) + 1, -1, dtype=np.int64)
        self._place[rows] = np.arange(len(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """[M] i64, the place of the decision at each row."""
        return self._place[rows]

    def __getitem__(self, place: int) -> str:
        """Id of the decision at a place, for errors."""
        return str(self._value("id", place))

    def action(self, place: int) -> str:
        """The action that the decision at a place took, for errors."""
        return str(self._value("action", place))

    def _value(self, column: str, place: int) -> object:
        row = int(self.rows[place])
        found = self._tables.engine.query(f"SELECT {column} AS value FROM decisions WHERE {ROW} = ?", [row])
        return found["value"][0]


def action_among(ids: Sequence[str] | None) -> str:
    """SQL of the place of an action among its candidates in the order of their ids; -1: it is none of them.

    Args:
        ids: of the candidates of all decisions, ascending; None: they differ from decision to decision.
    """
    among = f"list_sort(kept.{identifier(IDS)})" if ids is None else f"[{', '.join(map(literal, ids))}]"
    return f"COALESCE(CAST(list_position({among}, kept.action) AS BIGINT), 0) - 1"


def offered(columns: Sequence[str], *, shared: bool) -> str:
    """SQL of the candidates of all kept decisions or, where all have the same, of one; one row a candidate, with the
    `id` of its decision."""
    return _one_row_a_candidate(_ANY if shared else "kept", ("id",), columns)


def tables(engine: Engine, files: Files, window: Window) -> Tables:
    """Register the files and look at their columns.

    Raises:
        DataError: there is no file of decisions, or a column is missing or of the wrong kind.
    """
    if not files.decisions:
        raise DataError("the log has no decisions in the window", hint="is the problem's name right, and the window?")
    if engine.distributed:
        engine.view("decisions", files.decisions)
    else:
        engine.view("decisions", files.decisions, row=ROW)
    decisions = _schema(engine, "decisions")
    outcomes: Mapping[str, Kind] = {}
    if files.outcomes:
        engine.view("outcomes", files.outcomes)
        outcomes = _schema(engine, "outcomes")
    looked_at = {"decisions": decisions} | ({"outcomes": outcomes} if outcomes else {})
    with ThreadPoolExecutor(1 if engine.distributed else 2) as threads:  # one sorts while the engine reads the other
        seen = list(threads.map(lambda name: _look(engine, name, looked_at[name]), looked_at))
    return Tables(engine, window, decisions, outcomes, (seen[0], seen[1] if outcomes else Seen(0, 0, 0, "id")))


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


def _look(engine: Engine, table: str, columns: Iterable[str]) -> Seen:
    """Count the rows and put the first of every id aside that stands twice. Refuses rows without an id, an instant."""
    need = [column for column in ("id", "unit", "decision", "at") if column in _NEED[table]]
    counts = ", ".join(f"COUNT({identifier(column)}) AS {identifier(column)}" for column in need)
    found = engine.query(f'SELECT COUNT(*) AS n, MAX("at") AS last, {counts} FROM {table}')
    n = int(found["n"][0])
    for column in need:
        if int(found[column][0]) < n:
            raise DataError(f"{table}: {n - int(found[column][0])} of {n} rows have no {column}", field=column)
    last = int(found["last"][0]) if n else 0
    key = "id" if engine.distributed else "HASH(id)"
    rows = _again(engine, table, key)
    if not rows:
        return Seen(n, n, last, key)
    _keep_first(engine, table, columns, key)
    return Seen(n, n - rows + int(engine.query(f"SELECT COUNT(*) AS n FROM {table}_first")["n"][0]), last, key)


def _again(engine: Engine, table: str, key: str) -> int:
    """Put the keys aside that stand more than once; how many rows have one of them.

    On one machine the keys are hashes, and sorting them is cheaper than grouping ids. Different ids may share one: of
    the rows that do the first of every id is kept, so that changes nothing.
    """
    if engine.distributed:
        engine.keep(
            f"{table}_again", f"SELECT {key} AS h, COUNT(*) AS n FROM {table} GROUP BY {key} HAVING COUNT(*) > 1"
        )
        return int(engine.query(f"SELECT CAST(COALESCE(SUM(n), 0) AS BIGINT) AS n FROM {table}_again")["n"][0])
    hashes = np.sort(engine.query(f"SELECT {key} AS h FROM {table}")["h"])
    repeats = hashes[1:][hashes[1:] == hashes[:-1]]
    twice = np.unique(repeats)
    if twice.size:
        each = "SELECT UNNEST(CAST(? AS UBIGINT[])) AS h"
        engine.query(f"CREATE OR REPLACE TEMP TABLE {table}_again AS {each}", [twice.tolist()])
    return len(repeats) + len(twice)


def _once(table: str, columns: Iterable[str], seen: Seen) -> str:
    """SQL of a table's rows, each id once."""
    selected = _selected(table, columns)
    if not seen.repeated:
        return f"SELECT {selected} FROM {table}"
    return f"""SELECT {selected} FROM {table} WHERE {seen.key} NOT IN (SELECT h FROM {table}_again)
        UNION ALL SELECT {selected} FROM {table}_first"""


def _keep_first(engine: Engine, table: str, columns: Iterable[str], key: str) -> None:
    """Put aside the first row of every id among those whose key stands more than once.

    The first by `at`, then by all that a build reads, so that it is always the same one. An outcome told again later
    than as_of is not the first, so it changes nothing. These few rows are put aside because every question needs them.
    """
    order = ", ".join(f"{identifier(column)} NULLS FIRST" for column in ["at", *_read(table, columns)] if column != ROW)
    engine.keep(
        f"{table}_first",
        f"""SELECT * FROM (
            SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY {order}) AS telling
            FROM {table} WHERE {key} IN (SELECT h FROM {table}_again)
        ) AS told WHERE telling = 1""",
    )


def _selected(table: str, columns: Iterable[str]) -> str:
    read = _read(table, columns)
    missing = (f"CAST(NULL AS {kind}) AS {column}" for column, kind in _OPTIONAL[table].items() if column not in read)
    return ", ".join([_names(read), *missing])


def _read(table: str, columns: Iterable[str]) -> list[str]:
    """The columns that a build reads."""
    known = _NEED[table].keys() | _OPTIONAL[table].keys() | {ROW}
    prefixes = ("context.", "candidates.", "metrics.")
    return sorted(column for column in columns if column in known or column.startswith(prefixes))


def _names(columns: Iterable[str]) -> str:
    return ", ".join(identifier(column) for column in columns)


def typed(relation: str, column: str, kind: Kind) -> str:
    """SQL of a column as what a build computes with: DOUBLE or VARCHAR; a list as it is."""
    value = f"{relation}.{identifier(column)}"
    return value if kind.startswith("list") else f"CAST({value} AS {'DOUBLE' if kind == 'number' else 'VARCHAR'})"


def _number(relation: str, column: str) -> str:
    """SQL of a number, NaN for null: the engine is faster at it than a mask is."""
    return f"COALESCE({typed(relation, column, 'number')}, CAST('NaN' AS DOUBLE))"


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


def _candidate_set(columns: Sequence[str]) -> str:
    """SQL of a row's candidates with their features, in an order of their own."""
    return f"list_sort(list_zip({_names(columns)}))"


def _one_row_a_candidate(source: str, keys: Sequence[str], lists: Sequence[str]) -> str:
    """SQL of the lists side by side, one row an element; shorter lists are filled with null."""
    unnested = (f"unnest({identifier(column)}) AS {identifier(column)}" for column in lists)
    return f"SELECT {', '.join([*keys, *unnested])} FROM {source}"
