"""What came of the decisions: metrics combined by their rules, ends, and the reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steersman.core import reward
from steersman.core.decision import Problem, Ranked, Rule
from steersman.core.errors import DataError, did_you_mean
from steersman.timeline import heard
from steersman.timeline.episodes import NO_END, TERMINATED, TRUNCATED
from steersman.timeline.heard import Asked, Heard
from steersman.timeline.sql import LATE, ROW, UNKNOWN_END, Places, Tables

_PREFIX = "metrics."


@dataclass(frozen=True, eq=False)
class ItemFacts:
    """Outcomes that came in time of ranked lists.

    Attributes:
        row: [O] i64, place of the decision.
        slot: [O] i64, of the item; as many as there are slots: the list as a whole.
        columns: metric -> [O] f64, NaN: not told.
    """

    row: np.ndarray
    slot: np.ndarray
    columns: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Facts:
    """What came of N decisions.

    Attributes:
        names: [M] metrics that came in time or have a default, sorted.
        metrics: [N, M] f64, NaN where one did not come and has no default.
        ends: [N] i8, NO_END, TRUNCATED or TERMINATED: what came in time.
        late_ends: [N] bool, an `ends` came too late and none in time.
        outcomes, late: how many outcomes came in time, and after it.
        duplicates, dangling: how many outcomes have an id that was seen before, and are of no decision at all.
        without: [N] bool, no outcome came in time.
        items: of ranked lists, which have no metrics here; None: the actions are something else.
        off_list: outcomes in time about an item that the list did not have.
    """

    names: tuple[str, ...]
    metrics: np.ndarray
    ends: np.ndarray
    late_ends: np.ndarray
    outcomes: int
    late: int
    duplicates: int
    dangling: int
    without: np.ndarray
    items: ItemFacts | None = None
    off_list: int = 0


def ask(tables: Tables, problem: Problem, asked: Asked) -> Callable[[], Heard]:
    """Read the outcomes as the log has them; what is returned gives each its decision.

    Raises:
        DataError: a metric is not a number, or an outcome has no id, no decision or no instant.
    """
    logged = sorted(column for column in tables.outcomes if column.startswith(_PREFIX))
    for column in logged:
        if tables.outcomes[column] != "number":
            raise DataError(f"{column} is a {tables.outcomes[column]}, must be a number", field=column)
    if not tables.outcomes:
        return _nothing
    slots = problem.actions.slots if isinstance(problem.actions, Ranked) else 0
    return heard.read(tables, logged, asked, ordered=_need_order(problem, logged), slots=slots)


def ask_ends(tables: Tables, asked: Asked) -> Callable[[], Heard]:
    """The same without the metrics: only what says where episodes end."""
    return heard.read(tables, [], asked, ordered=False) if tables.outcomes else _nothing


def _nothing() -> Heard:
    return Heard({ROW: np.zeros(0, np.int64), "told": np.zeros(0, np.uint8)}, 0, 0)


def gather(heard: Heard, problem: Problem, decisions: Places) -> Facts:
    """The outcomes of the decisions in their places, combined by the rules of the problem.

    Args:
        heard: what `ask` returned gave; its columns are used up.
    Raises:
        DataError: an outcome ends an episode in a way we do not know.
    """
    n, found = len(decisions), heard.columns
    told, known = found.pop("told").view(np.int8), found[ROW] >= 0
    row = decisions.of(found.pop(ROW))
    late, ends = (told & LATE) > 0, told & UNKNOWN_END
    bad = np.flatnonzero(known & (ends == UNKNOWN_END))
    if bad.size:
        raise DataError(
            f"decision {decisions[row[bad[0]]]}: an outcome ends it neither terminated nor truncated "
            f"({bad.size} such rows)",
            field="ends",
        )
    in_time = known & ~late
    slot = found.pop("slot", np.zeros(0, np.int64))
    columns = {name.removeprefix(_PREFIX): found.pop(name)[in_time] for name in list(found)}
    of_row = _strongest(row, ends * in_time, n)
    late_ends = (_strongest(row, ends * (known & late), n) > 0) & (of_row == NO_END)
    row = row[in_time]
    names: tuple[str, ...] = ()
    metrics, items, off_list = np.empty((n, 0)), None, 0
    if isinstance(problem.actions, Ranked):
        items, off_list = _of_items(row, slot[in_time] if slot.size else slot, columns)
    else:
        names, metrics = _metrics(row, columns, n, problem)
    without = np.ones(n, dtype=bool)
    without[row] = False
    return Facts(
        names,
        metrics,
        of_row,
        late_ends,
        len(row),
        int((known & late).sum()),
        heard.duplicates,
        heard.dangling,
        without,
        items,
        off_list,
    )


def _of_items(row: np.ndarray, slot: np.ndarray, columns: Mapping[str, np.ndarray]) -> tuple[ItemFacts, int]:
    """The facts about lists and their items, and how many were about other items."""
    there = slot >= 0
    of = {name: column[there] for name, column in columns.items()}
    return ItemFacts(row[there] if there.size else row[:0], slot[there], of), int((~there).sum())


def _need_order(problem: Problem, columns: Sequence[str]) -> bool:
    """Whether a metric that was logged goes by the order of its outcomes."""
    return any(problem.combine.get(column.removeprefix(_PREFIX)) in ("first", "last") for column in columns)


def _strongest(row: np.ndarray, ends: np.ndarray, n: int) -> np.ndarray:
    """[n] i8, how the outcomes end a row: terminated wins over truncated."""
    result = np.zeros(n, dtype=np.int8)
    for end in (TRUNCATED, TERMINATED):
        result[row[ends == end]] = end
    return result


def _metrics(
    row: np.ndarray, columns: Mapping[str, np.ndarray], n: int, problem: Problem
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names [M] and values [n, M] of the metrics; a column without any value is none."""
    came = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    names = tuple(sorted(came.keys() | problem.default_outcome.keys()))
    metrics = np.empty((n, len(names)))
    for j, name in enumerate(names):
        rule = problem.combine.get(name, "sum")
        value = combined(rule, row, came[name], n) if name in came else np.full(n, np.nan)
        metrics[:, j] = np.where(np.isnan(value), problem.default_outcome.get(name, np.nan), value)
    return names, metrics


def combined(rule: Rule, row: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """[n] f64, one value out of each row's values, NaN where there is none.

    The bits do not depend on the order of the values, except that `first` and `last` go by it.

    Args:
        row, values: [L] i64 and f64; NaN: no value.

    >>> combined("max", np.array([0, 2, 2]), np.array([1.0, -2.0, -3.0]), 3)
    array([ 1., nan, -2.])
    """
    if rule == "sum":
        return add_up(row, values, n)
    there = ~np.isnan(values)
    row, values = row[there], values[there]
    count = np.bincount(row, minlength=n)
    some = count > 0
    result = np.full(n, np.nan)
    if rule == "mean":
        result[some] = add_up(row, values, n)[some] / count[some]
        return result
    by_turn = rule in ("first", "last")
    values = values[np.argsort(row, kind="stable") if by_turn else np.lexsort((values, row))]
    low, high = _picked(rule, count[some])
    start = (np.cumsum(count) - count)[some]
    one, other = values[start + low], values[start + high]
    # Halves, because a sum of two may overflow; + 0.0, because of 0.0 and -0.0 whichever came would be the smaller.
    result[some] = np.where(one == other, one, 0.5 * one + 0.5 * other) + 0.0
    return result


def _picked(rule: Rule, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the two values of a row whose mean is its value, among `count` values in order; mostly the same."""
    first, last = np.zeros_like(count), count - 1
    if rule == "median":
        return last // 2, count // 2
    place = first if rule in ("first", "min") else last
    return place, place


def add_up(row: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """[n] f64, the sum of each row's values, NaN where there is none; the same bits in whatever order they come.

    Two floats have one sum; of three or more the sum depends on the order, so they are added from the smallest on.

    >>> add_up(np.array([0, 2, 2]), np.array([1.0, 2.0, np.nan]), 3)
    array([ 1., nan,  2.])
    """
    there = ~np.isnan(values)
    if not there.all():
        row, values = row[there], values[there]
    count = np.bincount(row, minlength=n)
    if count.max(initial=0) > 2:
        many = np.flatnonzero(count[row] > 2)
        by_size = many[np.lexsort((values[many], row[many]))]
        row, values = row.copy(), values.copy()
        row[many], values[many] = row[by_size], values[by_size]
    total = np.bincount(row, weights=values, minlength=n)
    total[count == 0] = np.nan
    return total


def rewards(problem: Problem, facts: Facts, decisions: Places) -> np.ndarray:
    """[N] f64, the problem's reward of every decision.

    Raises:
        DataError: a metric never came, or a row has no finite reward; it names the decision.
    """
    columns = {name: facts.metrics[:, j] for j, name in enumerate(facts.names)}
    for name in problem.metrics:
        if name not in columns:
            raise DataError(
                f"reward {problem.reward!r} needs the metric {name!r}, which no outcome in time has",
                hint=f"{did_you_mean(name, columns)}; or give {name} a default_outcome",
                field="reward",
            )
    return reward.compute(problem.reward, columns, names=decisions)
