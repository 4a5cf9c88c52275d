"""The outcomes of a log on one machine: read once, each id once, each with the decision that it is of.

Ids are told apart and joined by hashes of 64 bits. What that finds is then proven: ids of one hash are compared, byte
by byte. Where two different ids share a hash, which a log of this world hardly has, the engine goes by the texts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from steersman.core.errors import DataError
from steersman.engine import identifier
from steersman.engine.stream import Columns as Streamed
from steersman.engine.stream import Texts
from steersman.timeline import keys, once, sql
from steersman.timeline.columns import ITEM, LISTS, ROW, Columns
from steersman.timeline.episodes import NO_END, TERMINATED, TRUNCATED
from steersman.timeline.sql import INSIDE, LATE, UNKNOWN_END, Tables
from steersman.timeline.texts import Pen, alike

_AT_ONCE = 1 << 20
"""Outcomes that look for their decisions together."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The N decisions that enter, in any order.

    Attributes:
        rows: [N] i64, of the view of decisions.
        at: [N] i64, microseconds UTC.
        index: of the hashes of their ids.
        ids: of all rows of the view.
    """

    rows: np.ndarray
    at: np.ndarray
    index: keys.Index
    ids: Texts

    @classmethod
    def of(cls, tables: Tables, steps: Columns, ids: Texts) -> Asked:
        """Of the steps of the decisions."""
        rows, every = steps[ROW], tables.seen.hashes
        all_in_order = len(rows) == len(every.keys) and bool((rows[1:] > rows[:-1]).all())
        return cls(rows, steps["at"], every if all_in_order else keys.Index(every.keys[rows]), ids)


class Heard(NamedTuple):
    """What `read` finds, once it is told apart.

    Attributes:
        columns: row of the decision (-1: of none that enters, or told again), told, metrics, of ranked lists `slot`;
            of every outcome.
        duplicates: further outcomes until as_of with an id that was seen before.
        dangling: outcomes stamped within the window whose decision is not in the files.
    """

    columns: Columns
    duplicates: int
    dangling: int


def read(tables: Tables, metrics: Sequence[str], asked: Asked, *, ordered: bool, slots: int = 0) -> Callable[[], Heard]:
    """Read the outcomes. What is returned tells them apart, and hardly needs the engine, which may go on meanwhile.

    `told` is how one ends the episode, plus LATE if it came after the wait, plus INSIDE if it is stamped within the
    window.

    Args:
        metrics: columns of the outcomes.
        ordered: by `at` of the outcome, then by its id; else in no order, which is cheaper.
        slots: of ranked lists; `slot` is then that of the item which the outcome is about, from 0; `slots` if it is
            about the list as a whole, -1 if the list has no such item.
    Raises:
        DataError: an outcome has no id, no decision or no instant.
    """
    n = int(tables.engine.query("SELECT COUNT(*) AS n FROM outcomes")["n"][0])
    found = _Reader(tables, metrics, asked, n)
    try:
        tables.engine.stream(_select(tables, metrics), found.take)
    except DataError as error:
        once.refuse_nulls(tables.engine, "outcomes", error.field)
        raise
    found.match()
    return functools.partial(_told_apart, tables, asked, found, ordered=ordered, slots=slots)


def _told_apart(tables: Tables, asked: Asked, found: _Reader, *, ordered: bool, slots: int) -> Heard:
    n = len(found.key)
    if not found.proven:
        found.tell(_joined_by_text(tables, asked, n))
    if slots:
        found.slot = _slots(tables, n, slots)
    unheard = found.at > tables.window.as_of
    further = _further(tables, found)
    dropped = int((~unheard[further]).sum())
    found.leave_out(further)
    found.leave_out(np.flatnonzero(unheard))
    strangers = np.flatnonzero((found.row < 0) & ((found.told & INSIDE) > 0))
    columns: Columns = {ROW: found.row, "told": found.told, **found.metrics}
    if found.slot is not None:
        columns["slot"] = found.slot
    if ordered:
        turn = _by_turn(tables, found)
        columns = {name: column[turn] for name, column in columns.items()}
    return Heard(columns, dropped, _dangling(tables, asked, strangers, found.of[strangers]))


def _select(tables: Tables, metrics: Sequence[str]) -> str:
    ends = sql.typed("outcomes", "ends", "text")
    told = f"""CASE WHEN outcomes.ends IS NULL THEN {NO_END} WHEN {ends} = 'truncated' THEN {TRUNCATED}
        WHEN {ends} = 'terminated' THEN {TERMINATED} ELSE {UNKNOWN_END} END"""
    wanted = "".join(f", {sql.number('outcomes', column)} AS {identifier(column)}" for column in metrics)
    key, of = once.KEY.format("id"), once.KEY.format("decision")
    return f"""SELECT {key} AS key, {of} AS "of", decision, CAST("at" AS BIGINT) AS "at",
        CAST({told if "ends" in tables.outcomes else NO_END} AS UTINYINT) AS told{wanted} FROM outcomes"""


class _Reader:
    """Outcomes as columns, in the order of their files.

    Attributes:
        key, of: [n] u64, hashes of the outcome's id and of its decision's.
        at: [n] i64, microseconds UTC.
        told: [n] u8, see `read`.
        row: [n] i64, of its decision, -1: of none that enters.
        metrics: name -> [n] f64.
        slot: [n] i64, see `read`; None: not asked for.
        proven: whether outcome and decision have the same id wherever they have the same hash.
    """

    def __init__(self, tables: Tables, metrics: Sequence[str], asked: Asked, n: int) -> None:
        self._window, self._asked = tables.window, asked
        self.key, self.of = np.empty(n, np.uint64), np.empty(n, np.uint64)
        self.at, self.told, self.row = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.int64)
        self.metrics = {name: np.empty(n) for name in metrics}
        self.slot: np.ndarray | None = None
        self.proven = asked.index.unique
        self._filled = self._matched = 0
        self._decisions = Pen()

    def take(self, some: Streamed) -> None:
        """Some outcomes."""
        decisions = some["decision"]
        self._decisions.write(decisions)
        rows = slice(self._filled, self._filled + len(decisions))
        self._filled = rows.stop
        for name in ("key", "of", "at", "told"):
            getattr(self, name)[rows] = some[name]
        for name, column in self.metrics.items():
            column[rows] = some[name]
        if self._filled - self._matched >= _AT_ONCE:
            self.match()

    def match(self) -> None:
        """Find the decisions of the outcomes since the last time."""
        some = slice(self._matched, self._filled)
        self._matched = self._filled
        decisions, self._decisions = self._decisions.texts(), Pen()
        if not self.proven or some.start == some.stop:
            return
        place = self._asked.index.rows(self.of[some])
        self._tell(some, place)
        self.proven = alike(decisions, self._asked.ids, self.row[some])

    def tell(self, place: np.ndarray) -> None:
        """Of all outcomes, given the place of the decision of each among those asked about ([n] i64, -1: none)."""
        self.told &= UNKNOWN_END
        self._tell(slice(None), place)

    def _tell(self, some: slice, place: np.ndarray) -> None:
        known, at = place >= 0, self.at[some]
        self.row[some] = np.where(known, self._asked.rows.take(place), -1)
        late = known & (at - self._asked.at.take(place) > self._window.wait)
        inside = (at >= self._window.since) & (at < self._window.until)
        self.told[some] += late.view(np.uint8) * np.uint8(LATE) + inside.view(np.uint8) * np.uint8(INSIDE)

    def leave_out(self, rows: np.ndarray) -> None:
        """These outcomes count for nothing."""
        self.row[rows] = -1
        self.told[rows] = 0


def _joined_by_text(tables: Tables, asked: Asked, n: int) -> np.ndarray:
    """[n] i64, for each outcome the place of its decision among those asked about, -1: it is of none."""
    joined = tables.read(
        f"""SELECT outcomes.{ROW} AS outcome, kept.{ROW} AS decision
        FROM outcomes JOIN kept ON outcomes.decision = kept.id""",
        n, {"outcome": np.int64, "decision": np.int64},
    )  # fmt: skip
    place_of = np.full(int(asked.rows.max()) + 1, -1)
    place_of[asked.rows] = np.arange(len(asked.rows))
    place = np.full(n, -1)
    place[joined["outcome"]] = place_of[joined["decision"]]
    return place


def _slots(tables: Tables, n: int, slots: int) -> np.ndarray:
    """[n] i64, for each outcome the slot of its item in the list of its decision; see `read`."""
    slot = np.full(n, slots)
    if ITEM not in tables.outcomes:
        return slot
    found = tables.read(
        f"""SELECT outcomes.{ROW} AS outcome,
        COALESCE(CAST(list_position(kept.{LISTS}, outcomes.{ITEM}) AS BIGINT), 0) - 1 AS slot
        FROM outcomes JOIN kept ON outcomes.decision = kept.id WHERE outcomes.{ITEM} IS NOT NULL""",
        n, {"outcome": np.int64, "slot": np.int64},
    )  # fmt: skip
    slot[found["outcome"]] = found["slot"]
    return slot


def _further(tables: Tables, found: _Reader) -> np.ndarray:
    """[M] i64, the outcomes whose id stands at another one that is the first: the first by `at`.

    Of several of one instant which one does not matter if they say the same; else the engine goes by all they say.
    """
    rows, key = keys.Index(found.key).repeats()
    if not rows.size:
        return rows
    first = _firsts(tables, found, rows, key)
    if first is None:
        first = tables.first_tellings("outcomes")
    return np.setdiff1d(rows, first, assume_unique=True)


def _firsts(tables: Tables, found: _Reader, rows: np.ndarray, key: np.ndarray) -> np.ndarray | None:
    """The first outcome of each key, None: it depends on more than is known here.

    Args:
        rows, key: [M] i64, of `keys.Index.repeats`.
    """
    at = found.at[rows]
    rows = rows[np.lexsort((rows, at, key))]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    first = np.repeat(rows[starts], np.diff(starts, append=len(rows)))
    if not _one_id(tables, rows, first):
        return None
    again = found.at[rows] == found.at[first]
    rows, first = rows[again], first[again]
    said: list[np.ndarray] = [
        found.of,
        found.row,
        found.told,
        *(column.view(np.int64) for column in found.metrics.values()),
    ]
    if found.slot is not None:
        said.append(found.slot)
    if "activates" in tables.outcomes or not all(np.array_equal(column[rows], column[first]) for column in said):
        return None
    return np.unique(first)


def _one_id(tables: Tables, rows: np.ndarray, first: np.ndarray) -> bool:
    """Whether each of these outcomes has the id of the other beside it."""
    ids, seen = Pen(), list[np.ndarray]()

    def take(some: Streamed) -> None:
        ids.write(some["id"])
        seen.append(some[ROW].copy())

    once.mark(tables.engine, "outcomes_marked", rows)
    tables.engine.stream(f"SELECT {ROW}, id FROM outcomes WHERE {ROW} IN (SELECT h FROM outcomes_marked)", take)
    at = np.concatenate(seen)
    place = np.empty(int(at.max()) + 1, np.int64)
    place[at] = np.arange(len(at))
    of_first = np.empty(len(at), np.int64)
    of_first[place[rows]] = place[first]
    texts = ids.texts()
    return alike(texts, texts, of_first)


def _by_turn(tables: Tables, found: _Reader) -> np.ndarray:
    """[n] i64, the outcomes by `at`, then by their ids as far as it matters: where they are of one decision."""
    low = found.at.min(initial=0)
    turn = keys.ordered(found.at - low)
    of = found.row[turn]
    by_decision = np.argsort(of, kind="stable")
    at = found.at[turn][by_decision]
    same = (of[by_decision][1:] == of[by_decision][:-1]) & (at[1:] == at[:-1]) & (of[by_decision][1:] >= 0)
    if not same.any():
        return turn
    where = by_decision[np.append(same, False) | np.append(False, same)]
    rows = turn[where]
    once.mark(tables.engine, "outcomes_marked", rows)
    told = tables.engine.query(f"SELECT {ROW}, id FROM outcomes WHERE {ROW} IN (SELECT h FROM outcomes_marked)")
    id_of = dict(zip(told[ROW].tolist(), told["id"].tolist(), strict=True))
    order = sorted(range(len(rows)), key=lambda i: (found.row[rows[i]], found.at[rows[i]], id_of[int(rows[i])]))
    # They change places among themselves only, each with others of its decision and instant.
    turn[where] = rows[order]
    return turn


def _dangling(tables: Tables, asked: Asked, strangers: np.ndarray, of: np.ndarray) -> int:
    """How many of these outcomes are of a decision that is not in the files at all.

    Args:
        of: hashes of the ids of their decisions.
    """
    every = tables.seen.hashes.keys
    enters = np.zeros(len(every), bool)
    enters[asked.rows] = True
    others = every[~enters]  # an outcome of one that enters is no stranger
    elsewhere = tables.earlier or "activates" in tables.outcomes  # one that activates may be about a unit
    maybe = strangers if elsewhere else strangers[np.isin(of, others)]
    if not maybe.size:
        return len(strangers)
    once.mark(tables.engine, "outcomes_marked", maybe)
    told = f"SELECT decision FROM outcomes WHERE {ROW} IN (SELECT h FROM outcomes_marked)"
    known = tables.engine.query(
        f"SELECT COUNT(*) AS n FROM ({told}) AS told WHERE decision IN (SELECT id FROM {tables.known} AS known)"
    )
    return len(strangers) - int(known["n"][0])
