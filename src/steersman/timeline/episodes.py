"""Rows in order to episodes: where they end, what comes next, what it is worth. Pure arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from steersman.core.decision import Problem
from steersman.core.errors import DataError

SECOND = 1_000_000
"""Microseconds."""

NO_END, TRUNCATED, TERMINATED = 0, 1, 2
"""How an episode ends, the stronger the larger."""

BY_TIME, BY_TIME_AND_STEP, BY_STEP = 0, 1, 2
"""What orders a unit: see the order inside a unit in `steersman.timeline`."""


def microseconds(seconds: float) -> int:
    """Seconds as whole microseconds, however many.

    >>> microseconds(1.5), microseconds(float("inf")) == 2**62
    (1500000, True)
    """
    return round(min(seconds * SECOND, 2.0**62))


@dataclass(frozen=True, eq=False)
class Rows:
    """Decisions in their order, as columns.

    Attributes:
        unit: [N] i64, 0, 1, ... without gaps, ascending.
        at: [N] i64, microseconds UTC.
        step: [N] i64; -1: not counted.
        order: [N] i8, BY_TIME, BY_TIME_AND_STEP or BY_STEP; the same for all rows of a unit.
        ends: [N] i8, NO_END, TRUNCATED or TERMINATED: what came in time.
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
        ends: [N] i8, TRUNCATED or TERMINATED on the last row of an episode that is over, else NO_END.
        limited: [N] bool, a limit in steps or in time ended the episode here: it is complete, and did not terminate.
        begun: [N] bool, the row's episode began with rows that are not decisions of the window.
    """

    next: np.ndarray
    ends: np.ndarray
    limited: np.ndarray
    begun: np.ndarray


def cut(rows: Rows, horizon: int | None, horizon_s: float | None = None, seen_until: int | None = None) -> Episodes:
    """Episodes of ordered rows.

    An episode ends at an `ends`, where its unit counts its steps anew, or by rule: after `horizon` steps, and before
    the first decision that lies `horizon_s` or more after the episode's first. What is over by rule is truncated and
    complete; of a limit of time only if nobody said that it ended before. The last episode of a unit reaches its time
    limit without a decision to show it: it is over by rule if the limit lies at or before `seen_until`, for then a
    decision that belongs to it would be among the rows. Until then it is open. An episode whose unit counted anew
    before its limit stays open: why it ended was not said.

    Where `step` orders and a clock goes back, the clock stands still until it is caught up.

    Args:
        horizon: steps after which an episode is over, counted from its first row; None: no limit.
        horizon_s: seconds from the first row of an episode, above 0; None: no limit.
        seen_until: microseconds UTC: all decisions before it are rows. It is min(until, as_of - wait + 1) of the
            build's window; None: not known, and no episode is taken for complete before a later row shows it.
    """
    place = np.arange(len(rows.unit))
    ends = np.where((rows.ends == NO_END) & rows.late_ends, TRUNCATED, rows.ends)
    other_unit = rows.unit[1:] != rows.unit[:-1]
    begins = np.append(True, other_unit | (ends[:-1] != NO_END) | _restarts(rows))[: len(place)]
    starts = begins
    if horizon_s is not None:
        clock = _forward(rows.at, begins)
        starts = _limited(begins, clock, horizon, _limit(horizon_s))
    elif horizon is not None:
        starts = (place - _first(begins)) % horizon == 0
    last = np.append(starts[1:], True)[: len(place)]
    over = np.zeros(len(place), dtype=bool)
    if horizon is not None:
        over |= place - _first(starts) == horizon - 1
    if horizon_s is not None:
        unseen = np.iinfo(np.int64).min // 2 if seen_until is None else seen_until
        after = np.append(np.where(other_unit, unseen, clock[1:]), unseen)[: len(place)]
        over |= (after - clock[_first(starts)] >= _limit(horizon_s)) & (ends == NO_END)
    over &= last & (ends != TERMINATED)
    ends = np.where(over, TRUNCATED, ends)
    return Episodes(np.where(last, -1, place + 1), ends, limited=over, begun=np.zeros(len(place), dtype=bool))


def lengths(episodes: Episodes) -> np.ndarray:
    """[E] i64, rows of every episode."""
    return np.diff(np.flatnonzero(episodes.next < 0), prepend=-1)


def of_window(episodes: Episodes, before: np.ndarray) -> tuple[np.ndarray, Episodes]:
    """The rows of episodes that have a row in the window ([N] bool), and all episodes told whether they began before.

    Args:
        before: [N] bool, the row is before the window.
    """
    each = lengths(episodes)
    first = np.cumsum(each) - each
    inside = np.add.reduceat(~before, first) > 0
    return np.repeat(inside, each), replace(episodes, begun=np.repeat(before[first], each))


def _limit(horizon_s: float) -> int:
    """Microseconds; at least 1, because decisions of one instant are 0 apart."""
    return max(microseconds(horizon_s), 1)


def _first(starts: np.ndarray) -> np.ndarray:
    """[N] i64, the row where the row's episode starts."""
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))


def _forward(at: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """[N] i64, `at` where the clock stands still instead of going back; it begins anew where `begins`."""
    back = np.flatnonzero((np.diff(at) < 0) & ~begins[1:]) + 1
    if not back.size:
        return at
    clock = at.copy()
    first = np.flatnonzero(begins)
    stop = np.append(first[1:], len(at))
    for run in np.unique(np.searchsorted(first, back, side="right") - 1):
        np.maximum.accumulate(at[first[run] : stop[run]], out=clock[first[run] : stop[run]])
    return clock


def _limited(begins: np.ndarray, clock: np.ndarray, horizon: int | None, limit: int) -> np.ndarray:
    """[N] bool, where episodes start with a limit in time, and one in steps if there is one.

    For every row the row that would start the next episode if this one started one; then, from the rows that start
    one whatever the limits, 1, 2, 4, 8... such leaps at once, until they lead nowhere new.
    """
    leap = _first_beyond(begins, clock, limit)
    if horizon is not None:
        np.minimum(leap, np.arange(len(begins)) + horizon, out=leap)
    leap = np.append(np.minimum(leap, len(begins)), len(begins))
    starts = np.append(begins, True)
    count = 0
    while count < (count := int(starts.sum())):
        starts[leap[starts]] = True
        leap = leap[leap]
    return starts[:-1]


def _first_beyond(begins: np.ndarray, clock: np.ndarray, limit: int) -> np.ndarray:
    """[N] i64, the first later row of the same run that is `limit` or more away, else the row where the next begins."""
    bounds = np.append(np.flatnonzero(begins), len(begins))
    found = np.repeat(bounds[1:], np.diff(bounds))
    row = np.flatnonzero(clock[found - 1] - clock >= limit)
    low, high, at = row + 1, found[row] - 1, clock[row]
    while np.any(low < high):
        middle = (low + high) // 2
        beyond = clock[middle] - at >= limit
        high = np.where(beyond, middle, high)
        low = np.where(beyond, low, middle + 1)
    found[row] = low
    return found


def _restarts(rows: Rows) -> np.ndarray:
    """[N - 1] bool, whether the row after this one counts its steps anew."""
    if not (rows.order == BY_TIME_AND_STEP).any():
        return np.zeros(max(len(rows.order) - 1, 0), dtype=bool)
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


def parts(
    unit: np.ndarray, draws: np.ndarray, validation: float, test: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on, to validate on and to test on. Units stay whole.

    A unit is in the test if its draw is below `test`, in the validation if it is below `test + validation`, else in
    the training: that depends on the unit's name and the shares alone, so a unit stays where it was in every later
    build. Only if nobody drew a part that has a share, the unit whose draw is nearest to that part moves there, out
    of a part with more than one: first for the test, then the validation, then the training.

    Args:
        unit: [N] i64, 0, 1, ... without gaps, whose row it is.
        draws: [U] f64 in [0, 1), a hash of the unit's name.
        validation, test: shares of the units, each at least 0, below 1 together.
    Returns:
        train, validation, test: rows, ascending; each row in exactly one of them. Empty where the share is 0.
    Raises:
        DataError: the shares are not shares, or there are fewer units than parts.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise DataError(
            f"the shares of validation and test are {validation:g} and {test:g}: each must be at least 0, and together "
            "below 1",
            field="validation" if not validation >= 0 else "test",
        )
    line = np.array([0.0, test, test + validation, 1.0])  # test, validation, training
    wanted = np.flatnonzero(np.array([test > 0, validation > 0, True]))
    if len(draws) < len(wanted):
        raise DataError(
            f"there are {len(draws)} units for {len(wanted)} parts: a unit is never in two",
            hint="log more units: a unit is a user, a session, a game; or set the share of a part to 0",
        )
    part = np.searchsorted(line[1:3], draws, side="right")
    for empty in wanted:
        counts = np.bincount(part, minlength=3)
        if not counts[empty]:
            away = np.maximum(line[empty] - draws, draws - line[empty + 1])
            away[counts[part] < 2] = np.inf
            part[np.argmin(away)] = empty
    of_row = part[unit]
    return np.flatnonzero(of_row == 2), np.flatnonzero(of_row == 1), np.flatnonzero(of_row == 0)
