"""What is asked of the engine: who is first, who belongs to whom, in which order, what can be chosen.

Standard SQL as far as it goes, so that another engine can run it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from steersman.core.decision import Problem
from steersman.core.errors import DataError
from steersman.engine import Engine, identifier, literal
from steersman.engine.stream import Columns as Streamed
from steersman.timeline import keys, once
from steersman.timeline.built import Files
from steersman.timeline.columns import IDS, OPTIONAL, ROW, Columns, Kind, columns_of, names, read, schema
from steersman.timeline.episodes import microseconds
from steersman.timeline.once import KEY, Seen, Window, look
from steersman.timeline.texts import Pen

ALL_OF_UNIT = "CONCAT(unit, '/*')"
"""SQL of the decision that an outcome names which activates all decisions of a unit."""

UNKNOWN_END, LATE, INSIDE = 3, 4, 8
"""Of `told`: besides NO_END, TRUNCATED and TERMINATED, which are below 3."""


def _draw(first: int) -> str:
    """SQL of a number in [0, 1) out of eight hexadecimal digits of the MD5 of a unit's name."""
    digits = (f"STRPOS('0123456789abcdef', SUBSTR(MD5(unit), {first + i}, 1)) - 1" for i in range(8))
    return " + ".join(f"({digit}) / {16.0 ** (i + 1):.1f}E0" for i, digit in enumerate(digits))


_UNITS = f"SELECT unit, {_draw(1)} AS draw FROM kept GROUP BY unit"
NUMBERED = f"SELECT unit, ROW_NUMBER() OVER (ORDER BY unit) - 1 AS number FROM ({_UNITS}) AS named"
_ANY = "(SELECT * FROM kept LIMIT 1) AS kept"
"""Where all decisions have the same candidates, those of any one are those of all."""


class Census(NamedTuple):
    """Decisions of the window: lines logged, copies too; different ones that wait, that were deferred and never
    activated, that enter."""

    logged: int
    waiting: int
    deferred: int
    entering: int


class Units(NamedTuple):
    """The U units of the decisions that enter, by name: hashes [U] u64 of their names, and draws [U] f64."""

    keys: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True)
class Tables:
    """The decisions and outcomes of a log, and the questions a build asks of them.

    A question is a query over the views `decisions` and `outcomes` and over these relations: `once` (decisions, each
    id once), `heard` (outcomes until as_of, each id once), `kept` (decisions that enter), `offered` (one row a
    candidate of a kept decision).

    Attributes:
        decisions: name -> kind of the columns.
        outcomes: the same; empty: there is no outcome.
        seen: how many decisions are in the files.
        earlier: SQL of all decisions that may be before the window; empty: there is none.
    """

    engine: Engine
    window: Window
    decisions: Mapping[str, Kind]
    outcomes: Mapping[str, Kind]
    seen: Seen
    earlier: str = ""

    @functools.cached_property
    def told(self) -> Seen:
        """How many outcomes are in the files; only then `heard` can be asked for."""
        nothing = Seen(0, 0, keys.Index(np.empty(0, np.uint64)))
        return look(self.engine, "outcomes", self.outcomes) if self.outcomes else nothing

    def sql(self, select: str, *, offered: str = "", led: str = "") -> str:
        """A query over the relations; offered, led: SQL of the relations of these names, if they are needed."""
        relations = {"once": once.sql("decisions", self.decisions, self.engine, self.seen)}
        if self.outcomes and ("deferred" in self.decisions or "heard" in select + led):
            told = once.sql("outcomes", self.outcomes, self.engine, self.told)
            relations["heard"] = f"SELECT * FROM ({told}) AS once_heard WHERE {self.window.happened}"
        relations["kept"] = (
            f"SELECT * FROM once WHERE {self.window.inside} AND {self.window.waited} AND {self._carried}"
        )
        if offered:
            relations["offered"] = offered
        if led:
            relations["led"] = led
        named = ", ".join(f"{name} AS ({body})" for name, body in relations.items())
        return f"WITH {named} {select}"

    def ask(self, select: str, parameters: Sequence[object] = (), *, offered: str = "") -> Columns:
        """The result of a query over the relations."""
        return self.engine.query(self.sql(select, offered=offered), parameters)

    def read(self, select: str, n: int, columns: Mapping[str, type]) -> Columns:
        """The result of a query over the relations, on one machine.

        Args:
            n: rows that it has at most.
            columns: their names and types, as the query gives them.
        """
        found: Columns = {name: np.empty(n, dtype) for name, dtype in columns.items()}
        filled = 0

        def take(some: Streamed) -> None:
            nonlocal filled
            begin = filled
            for name, column in found.items():
                filled = begin + len(some[name])
                column[begin:filled] = some[name]

        self.engine.stream(self.sql(select), take)
        return {name: column[:filled] for name, column in found.items()}

    @property
    def _carried(self) -> str:
        """SQL: the decision was carried out, as far as one knows."""
        return self.carried if "deferred" in self.decisions else "TRUE"

    @property
    def carried(self) -> str:
        """SQL: a decision, of a relation that has the column `deferred`, was carried out, as far as one knows."""
        if not self.outcomes:
            return "(NOT COALESCE(deferred, FALSE))"
        activated = "(SELECT decision FROM heard WHERE activates)"
        return f"(NOT COALESCE(deferred, FALSE) OR id IN {activated} OR {ALL_OF_UNIT} IN {activated})"

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

    def steps(self, action: Mapping[str, str], kind: type = np.int64) -> Columns:
        """The kept decisions in any order: row, unit (u64, hash of its name), at, step (-1: none), propensity,
        estimated (bool), action.

        Args:
            action: column -> SQL of what tells the action; kind: of its numbers.
        """
        wanted = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in action.items())
        estimated = "CASE WHEN kept.estimated THEN 1 ELSE 0 END" if "estimated" in self.decisions else "0"
        columns = self.read(
            f"""SELECT kept.{ROW} AS {ROW}, {KEY.format("kept.unit")} AS unit, CAST(kept."at" AS BIGINT) AS "at",
            COALESCE(CAST(kept.step AS BIGINT), -1) AS step, {number("kept", "propensity")} AS propensity,
            {wanted}, CAST({estimated} AS UTINYINT) AS estimated FROM kept""",
            self.seen.rows,
            {ROW: np.int64, "unit": np.uint64, "at": np.int64, "step": np.int64, "propensity": np.float64}
            | dict.fromkeys(action, kind)
            | {"estimated": np.uint8},
        )
        return columns | {"estimated": columns["estimated"].view(bool)}

    def units(self) -> Units:
        """The units of the kept decisions."""
        found = self.read(
            f"SELECT {KEY.format('unit')} AS key, draw FROM ({_UNITS}) AS units ORDER BY unit",
            self.seen.rows,
            {"key": np.uint64, "draw": np.float64},
        )
        return Units(found["key"], found["draw"])

    def numbers(self, units: Units, steps: Columns) -> np.ndarray:
        """[N] i64, the number of the unit of each kept decision, as `steps` has them, among the units by name."""
        if (names := keys.Index(units.keys)).unique:
            return names.rows(steps["unit"])
        found = self.ask(
            f"SELECT kept.{ROW} AS {ROW}, units.number AS number FROM kept JOIN ({NUMBERED}) AS units "
            f"ON kept.unit = units.unit ORDER BY kept.{ROW}"
        )
        return found["number"][np.searchsorted(found[ROW], steps[ROW])]

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """[N] object, ids of the decisions at these rows."""
        return self.engine.take("decisions", {"id": "id"}, rows)["id"]

    def parted(self, shards: int, led: str = "") -> tuple[str, str, str]:
        """SQL of the decisions that enter, of the outcomes, and of the decisions before the window, each with the shard
        of its unit, 0 to shards - 1; empty: there are none.

        Args:
            led: SQL of the decisions before the window; empty: there are none.
        """
        # Other digits than those of the draw, by which units are parted into training and test.
        shard = f"CAST(FLOOR(({_draw(9)}) * {shards}) AS INTEGER)"
        units = f"(SELECT unit, {shard} AS shard FROM kept GROUP BY unit)"
        columns = sorted({*read("decisions", self.decisions), *OPTIONAL["decisions"]} - {ROW})
        # What is kept was carried out: an outcome that says so of all decisions of a unit is in no part.
        own = {"deferred": "FALSE"}
        wanted = ", ".join(f"{own.get(one, f'kept.{identifier(one)}')} AS {identifier(one)}" for one in columns)
        decisions = f"SELECT {wanted}, units.shard AS shard FROM kept JOIN {units} AS units ON kept.unit = units.unit"
        columns = sorted({*read("outcomes", self.outcomes), *OPTIONAL["outcomes"]} - {ROW})
        wanted = ", ".join(f"heard.{identifier(column)} AS {identifier(column)}" for column in columns)
        of_kept, of_led = (
            f"""SELECT {wanted}, units.shard AS shard FROM heard JOIN {whose} ON heard.decision = {whose}.id
            JOIN {units} AS units ON {whose}.unit = units.unit"""
            for whose in ("kept", "led")
        )
        before = f"SELECT led.*, units.shard AS shard FROM led JOIN {units} AS units ON led.unit = units.unit"
        outcomes = f"{of_kept} UNION ALL {of_led} WHERE heard.ends IS NOT NULL" if led else of_kept
        return (
            self.sql(decisions),
            self.sql(outcomes, led=led) if self.outcomes else "",
            self.sql(before, led=led) if led else "",
        )

    def fields(self, columns: Mapping[str, Kind], rows: np.ndarray | None) -> Columns:
        """Columns of the decisions at these rows ([N] i64, `row` of steps), in that order; null numbers are NaN.

        Args:
            rows: None: those of all rows of the files, in their order.
        """
        wanted = {}
        for name, kind in columns.items():
            wanted[name] = number("decisions", name) if kind == "number" else typed("decisions", name, kind)
        return self.engine.take("decisions", wanted, rows)

    @property
    def known(self) -> str:
        """SQL of a table with the ids of all decisions that the files have, and what stands for all of a unit."""
        places = ["decisions", *([f"({self.earlier}) AS earlier"] if self.earlier else [])]
        ids = ["id", *([ALL_OF_UNIT] if "activates" in self.outcomes else [])]
        return f"({' UNION ALL '.join(f'SELECT {id} AS id FROM {place}' for place in places for id in ids)})"

    def dangling(self) -> int:
        """Outcomes stamped within the window whose decision is not in the files."""
        if not self.outcomes:
            return 0
        found = self.ask(
            f"""SELECT COUNT(*) AS n FROM heard WHERE {self.window.inside}
            AND NOT EXISTS (SELECT 1 FROM {self.known} AS known WHERE known.id = heard.decision)"""
        )
        return int(found["n"][0])

    def duplicate_outcomes(self) -> int:
        """Further outcomes until as_of with an id that was seen before."""
        if not self.told.repeated:
            return 0
        count = f"SELECT COUNT(*) - COUNT(DISTINCT id) AS n FROM outcomes WHERE {self.window.happened}"
        return int(self.engine.query(count)["n"][0])

    def first_tellings(self, table: str) -> np.ndarray:
        """[M] i64, among the rows of a table whose ids are told more than once those that are the first."""
        return self.engine.query(f"SELECT {ROW} FROM {table}_first")[ROW] if self.told.repeated else np.empty(0, int)

    def same_candidates(self, columns: Sequence[str]) -> tuple[str, ...] | None:
        """Ids of the candidates, ascending, if every kept decision had the same with the same features, in whatever
        order; else None."""
        lists = (IDS, *columns)
        ids = self.ask(f"SELECT {identifier(IDS)} AS ids FROM {_ANY}")["ids"][0]
        one = None if ids is None or any(name is None for name in ids) else tuple(sorted(ids))
        if one and not columns and not self.engine.distributed:  # mostly in one order too, which is soon seen
            other = f"{identifier(IDS)} IS DISTINCT FROM [{', '.join(map(literal, ids))}]"
            if not int(self.ask(f"SELECT COUNT(*) AS n FROM kept WHERE {other}")["n"][0]):
                return one
        found = self.ask(
            f"""SELECT COUNT(*) AS n FROM (SELECT DISTINCT {_candidate_set(lists)} AS candidates
            FROM (SELECT DISTINCT {names(lists)} FROM kept) AS sets) AS different"""
        )
        return one if int(found["n"][0]) == 1 else None

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


def action_among(ids: Sequence[str] | None) -> dict[str, str]:
    """`action` -> SQL of its place among its candidates in the order of their ids; -1: it is none of them.

    Args:
        ids: of the candidates of all decisions, ascending; None: they differ from decision to decision.
    """
    return {"action": place_among(ids, "kept.action")}


def place_among(ids: Sequence[str] | None, action: str) -> str:
    """SQL of the place of an action (SQL of an id) among the candidates; see `action_among`."""
    among = f"list_sort(kept.{identifier(IDS)})" if ids is None else f"[{', '.join(map(literal, ids))}]"
    return f"COALESCE(CAST(list_position({among}, {action}) AS BIGINT), 0) - 1"


def offered(columns: Sequence[str], *, shared: bool) -> str:
    """SQL of the candidates of all kept decisions or, where all have the same, of one; one row a candidate, with the
    `id` of its decision."""
    return _one_row_a_candidate(_ANY if shared else "kept", ("id",), columns)


def window(problem: Problem, since: int, until: int, as_of: int, lead_s: float = 0.0) -> Window:
    """The window of a build.

    Args:
        lead_s: seconds before it in which the beginnings of its episodes are looked for.
    Raises:
        DataError: it is empty.
    """
    if since >= until:
        raise DataError(
            f"the window [{since}, {until}), microseconds UTC, is empty", hint="until must be later than since"
        )
    return Window(since, until, as_of, microseconds(problem.wait_s), microseconds(lead_s))


def tables(engine: Engine, files: Files, window: Window, pen: Pen | None = None, before: Sequence[str] = ()) -> Tables:
    """Register the files and look at their columns.

    Args:
        pen: on one machine, to write the id of every decision with that is in the window, and nothing of others.
        before: further files of decisions, none of them in the window.
    Raises:
        DataError: there is no file of decisions, or a column is missing or of the wrong kind.
    """
    if not files.decisions:
        raise DataError(
            "the log has no decisions in the window",
            hint="is the problem's name right, and the window? steersman serve and steersman log import write the log",
        )
    row = "" if engine.distributed else ROW
    engine.view("decisions", files.decisions, row=row)
    decisions = schema(engine, "decisions")
    outcomes: Mapping[str, Kind] = {}
    if files.outcomes:
        engine.view("outcomes", files.outcomes, row=row)
        outcomes = schema(engine, "outcomes")
    seen = look(engine, "decisions", decisions, pen, window)
    earlier = _earlier(engine, window, decisions, before) if window.lead else ""
    return Tables(engine, window, decisions, outcomes, seen, earlier)


def _earlier(engine: Engine, window: Window, columns: Iterable[str], before: Sequence[str]) -> str:
    """SQL of the decisions that may be before the window, with the few columns that say where episodes begin."""
    places: dict[str, Iterable[str]] = {}
    if int(engine.query(f"SELECT COUNT(*) AS n FROM decisions WHERE {window.before}")["n"][0]):
        places["decisions"] = columns
    if before:
        engine.view("before", before)
        places["before"] = columns_of(engine, "before")
    wanted = {"id": "VARCHAR", "unit": "VARCHAR", "at": "BIGINT"} | OPTIONAL["decisions"]
    selects = []
    for view, there in places.items():
        each = (
            identifier(name) if name in there else f"CAST(NULL AS {kind}) AS {identifier(name)}"
            for name, kind in wanted.items()
        )
        selects.append(f"SELECT {', '.join(each)} FROM {view}")
    return " UNION ALL ".join(selects)


def typed(relation: str, column: str, kind: Kind) -> str:
    """SQL of a column as what a build computes with: DOUBLE or VARCHAR; a list as it is."""
    value = f"{relation}.{identifier(column)}"
    return value if kind.startswith("list") else f"CAST({value} AS {'DOUBLE' if kind == 'number' else 'VARCHAR'})"


def number(relation: str, column: str) -> str:
    """SQL of a number, NaN for null: the engine is faster at it than a mask is."""
    return f"COALESCE({typed(relation, column, 'number')}, CAST('NaN' AS DOUBLE))"


def _candidate_set(columns: Sequence[str]) -> str:
    """SQL of a row's candidates with their features, in an order of their own."""
    return f"list_sort(list_zip({names(columns)}))"


def _one_row_a_candidate(source: str, keys: Sequence[str], lists: Sequence[str]) -> str:
    """SQL of the lists side by side, one row an element; shorter lists are filled with null."""
    unnested = (f"unnest({identifier(column)}) AS {identifier(column)}" for column in lists)
    return f"SELECT {', '.join([*keys, *unnested])} FROM {source}"
