"""Rows in order to episodes: where they end, what comes next, what it is worth. Pure arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.decision import Problem
from steersman.core.errors import DataError

SECOND = 1_000_000
"""Microseconds."""

NO_END, TRUNCATED, TERMINATED = 0, 1, 2
"""How an episode ends, the stronger the larger."""

BY_TIME, BY_TIME_AND_STEP, BY_STEP = 0, 1, 2
"""What orders a unit: see the order inside a unit in `steersman.timeline`."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Decisions in their order, as columns.

    Attributes:
        unit: [N] i64, 0, 1, ... without gaps, ascending.
        at: [N] i64, microseconds UTC.
        step: [N] i64; -1: not counted.
        order: [N] i64, BY_TIME, BY_TIME_AND_STEP or BY_STEP; the same for all rows of a unit.
        ends: [N] i64, NO_END, TRUNCATED or TERMINATED: what came in time.
        late_ends: [N] bool, an `ends` came, but late.
    """

    unit: np.ndarray
    at: np.ndarray
    step: np.ndarray
    order: np.ndarray
    ends: np.ndarray
    late_ends: np.ndarray


@dataclass(frozen=True, eq=False)
class Episodes:
    """Where episodes end.

    Attributes:
        next: [N] i64, the following row, or -1 on the last row of an episode.
        ends: [N] i64, TRUNCATED or TERMINATED on the last row of an episode that is over, else NO_END.
    """

    next: np.ndarray
    ends: np.ndarray


def cut(rows: Rows, horizon: int | None) -> Episodes:
    """Episodes of ordered rows.

    Args:
        horizon: steps after which an episode is over, counted from its first row; None: no limit.
    """
    place = np.arange(len(rows.unit))
    ends = np.where((rows.ends == NO_END) & rows.late_ends, TRUNCATED, rows.ends)
    starts = np.ones(len(place), dtype=bool)
    starts[1:] = (np.diff(rows.unit) != 0) | (ends[:-1] != NO_END) | _restarts(rows)
    if horizon is not None:
        step = place - np.maximum.accumulate(np.where(starts, place, 0))
        starts |= step % horizon == 0
        ends = np.where((ends == NO_END) & (step % horizon == horizon - 1), TRUNCATED, ends)
    last = np.append(starts[1:], True)
    return Episodes(next=np.where(last, -1, place + 1), ends=ends)


def _restarts(rows: Rows) -> np.ndarray:
    """[N - 1] bool, whether the row after this one counts its steps anew."""
    grows = (np.diff(rows.step) > 0) & (np.diff(rows.at) > 0)
    return (rows.order[1:] == BY_TIME_AND_STEP) & ~grows


def discounts(problem: Problem, episodes: Episodes, at: np.ndarray) -> np.ndarray:
    """[N] f64, what the value of the next step is worth now; 0 where the episode terminated.

    Per step it is the problem's discount. Per unit of time it is that discount to the power of the gap in units; a
    row whose next step was not seen has no gap and keeps the problem's discount. Where `step` orders and a clock went
    back, the gap is 0. A gap so long that the power underflows is worth the smallest number above 0, because 0 means
    terminated.
    """
    discount = np.full(len(at), problem.discount)
    if problem.discount_unit_s is not None:
        seen = np.flatnonzero(episodes.next >= 0)
        gap_s = np.maximum(at[episodes.next[seen]] - at[seen], 0) / SECOND
        power = problem.discount ** (gap_s / problem.discount_unit_s)
        discount[seen] = np.maximum(power, np.finfo(np.float64).tiny)
    discount[episodes.ends == TERMINATED] = 0.0
    return discount


def split(batch: Batch, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to judge on. Units stay whole; the same Batch is always split the same way.

    Args:
        holdout: share of the units to judge on, in (0, 1); at least one unit, and at least one is left.
    Returns:
        two arrays of rows, ascending.
    Raises:
        DataError: there is only one unit.
    """
    units = np.unique(batch.unit)
    if len(units) < 2:
        raise DataError(
            "the batch has one unit: it can not be split into units to learn from and units to judge on",
            hint="log more than one unit: a unit is a user, a session, a game",
        )
    held = np.clip(round(holdout * len(units)), 1, len(units) - 1)
    judged = np.isin(batch.unit, units[np.argsort(_mixed(units), kind="stable")[:held]])
    return np.flatnonzero(~judged), np.flatnonzero(judged)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """[N] u64 that look random and are a function of the numbers alone. Source: the finaliser of SplitMix64."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
