"""Where episodes end, by step and by time; and which units train, validate and test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.errors import DataError
from steersman.timeline.episodes import (
    BY_STEP,
    BY_TIME,
    BY_TIME_AND_STEP,
    NO_END,
    TERMINATED,
    TRUNCATED,
    Rows,
    cut,
    discounts,
    microseconds,
    parts,
)
from timeline_log import S, problem


def rows_of(
    at_s: Sequence[float],
    unit: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    step: Sequence[int] | None = None,
    order: int | Sequence[int] = BY_TIME,
    late_ends: Sequence[bool] | None = None,
) -> Rows:
    n = len(at_s)
    return Rows(
        unit=np.array(unit or [0] * n, dtype=np.int64),
        at=np.array([round(second * S) for second in at_s], dtype=np.int64),
        step=np.array(step or [-1] * n, dtype=np.int64),
        order=np.full(n, order, dtype=np.int64) if isinstance(order, int) else np.array(order, dtype=np.int64),
        ends=np.array(ends or [NO_END] * n, dtype=np.int64),
        late_ends=np.array(late_ends or [False] * n),
    )


# --- limits by hand


def test_a_decision_at_the_time_limit_begins_another_episode_and_the_one_before_is_truncated():
    episodes = cut(rows_of([0, 4, 9.999999, 10, 19, 20.5]), None, 10.0)
    assert episodes.next.tolist() == [1, 2, -1, 4, -1, -1]
    assert episodes.ends.tolist() == [NO_END, NO_END, TRUNCATED, NO_END, TRUNCATED, NO_END]


def test_the_limit_counts_from_the_first_decision_of_the_episode_and_not_from_a_calendar():
    gap = cut(rows_of([0, 95, 104, 106]), None, 10.0)  # 95 begins one, so 104 belongs to it and 106 does not
    assert gap.next.tolist() == [-1, 2, -1, -1]


def test_an_end_begins_the_clock_anew():
    episodes = cut(rows_of([0, 8, 12, 17, 19], ends=[0, TERMINATED, 0, 0, 0]), None, 10.0)
    assert episodes.next.tolist() == [1, -1, 3, 4, -1]
    assert episodes.ends.tolist() == [NO_END, TERMINATED, NO_END, NO_END, NO_END]


def test_whichever_limit_comes_first_ends_the_episode_and_both_begin_anew():
    episodes = cut(rows_of([0, 1, 2, 3, 50, 53, 61, 62, 63, 64]), 3, 10.0)
    assert episodes.next.tolist() == [1, 2, -1, -1, 5, -1, 7, 8, -1, -1]
    assert np.flatnonzero(episodes.ends == TRUNCATED).tolist() == [2, 3, 5, 8]


def test_decisions_of_one_instant_are_of_one_episode_however_short_its_limit():
    assert cut(rows_of([5, 5, 5, 6]), None, 1e-9).next.tolist() == [1, 2, -1, -1]


def test_a_limit_longer_than_time_itself_limits_nothing():
    assert cut(rows_of([0, 10**9]), None, 1e300).next.tolist() == [1, -1]
    assert microseconds(float("inf")) == 2**62


def test_a_clock_that_goes_back_stands_still_until_it_is_caught_up():
    rows = rows_of([0, 9, 3, 8, 10, 4, 19, 21], step=list(range(8)), order=BY_STEP)
    assert cut(rows, None, 10.0).next.tolist() == [1, 2, 3, -1, 5, 6, -1, -1]


def test_the_last_episode_is_open_until_nothing_more_of_it_can_come():
    rows = rows_of([0, 4, 100, 103], unit=[0, 0, 1, 1])

    def ends(seen_until: int | None) -> list[int]:
        return cut(rows, None, 10.0, seen_until).ends[[1, 3]].tolist()

    assert ends(None) == [NO_END, NO_END]
    assert ends(10 * S - 1) == [NO_END, NO_END]
    assert ends(10 * S) == [TRUNCATED, NO_END]
    assert ends(110 * S) == [TRUNCATED, TRUNCATED]
    assert cut(rows, None, None, 110 * S).ends.tolist() == [NO_END] * 4  # there is no limit that could be over


def test_a_unit_that_counts_anew_before_the_limit_leaves_its_episode_open_and_after_it_truncated():
    rows = rows_of([0, 4, 6, 7, 30], step=[0, 1, 0, 1, 0], order=BY_TIME_AND_STEP)
    episodes = cut(rows, None, 10.0, 31 * S)
    assert episodes.next.tolist() == [1, -1, 3, -1, -1]
    assert episodes.ends.tolist() == [NO_END, NO_END, NO_END, TRUNCATED, NO_END]


def test_rows_that_are_none_have_no_episodes():
    empty = Rows(*(np.zeros(0, np.int64) for _ in range(5)), np.zeros(0, bool))
    for limits in ((None, None), (3, None), (None, 3.0), (3, 3.0)):
        assert len(cut(empty, *limits).next) == 0


def test_what_a_limit_ended_is_complete_and_what_somebody_ended_or_nobody_saw_is_not():
    episodes = cut(rows_of([0, 1, 2, 20, 23, 24, 50, 51], ends=[0, 0, 0, 0, TRUNCATED, 0, 0, TERMINATED]), 3, 10.0)
    assert np.flatnonzero(episodes.next < 0).tolist() == [2, 4, 5, 7]
    assert episodes.limited.tolist() == [False, False, True, False, False, True, False, False]
    seen = cut(rows_of([0, 4]), None, 10.0, 10 * S)
    assert seen.limited.tolist() == [False, True]
    assert not cut(rows_of([0, 4]), None, 10.0, 10 * S - 1).limited.any()
    at_last = cut(rows_of([0, 1, 2], ends=[0, 0, TRUNCATED]), 3)  # said of its last step: it is complete all the same
    assert at_last.limited.tolist() == [False, False, True]


# --- limits against plain Python


@st.composite
def ordered(draw: st.DrawFn) -> Rows:
    """Units that are ordered by time, by step with clocks that go back, and by steps that count anew."""
    columns: list[tuple[int, ...]] = []
    for unit in range(draw(st.integers(1, 3))):
        order = draw(st.sampled_from([BY_TIME, BY_STEP, BY_TIME_AND_STEP]))
        at = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12))
        if order != BY_STEP:
            at = sorted(at)
        for i, second in enumerate(at):
            step = {BY_TIME: -1, BY_STEP: i, BY_TIME_AND_STEP: i % draw(st.integers(1, 5))}[order]
            end = draw(st.sampled_from([NO_END] * 6 + [TRUNCATED, TERMINATED]))
            columns.append((unit, second * S, step, order, end, draw(st.integers(0, 9)) == 0))
    *numbers, late = (list(column) for column in zip(*columns, strict=True))
    return Rows(*(np.array(column, dtype=np.int64) for column in numbers), np.array(late, dtype=bool))


def plain(rows: Rows, horizon: int | None, horizon_s: float | None, seen_until: int) -> tuple[list[int], list[int]]:
    """Row by row: next and ends."""
    n = len(rows.unit)
    follows, ends = [-1] * n, [0] * n
    start = clock = began = 0
    for i in range(n):
        again = i == 0 or rows.unit[i] != rows.unit[i - 1]
        if not again and rows.order[i] == BY_TIME_AND_STEP:
            again = not (rows.step[i] > rows.step[i - 1] and rows.at[i] > rows.at[i - 1])
        begins = bool(again or ends[i - 1] in (3, TERMINATED))
        clock = int(rows.at[i]) if begins else max(clock, int(rows.at[i]))
        too_many = horizon is not None and i - start == horizon
        too_late = horizon_s is not None and clock - began >= horizon_s * S
        if i and rows.unit[i] == rows.unit[i - 1] and (too_many or too_late) and ends[i - 1] == NO_END:
            ends[i - 1] = TRUNCATED
        if begins or too_many or too_late:
            start, began = i, clock
        else:
            follows[i - 1] = i
        if rows.ends[i] == TERMINATED:
            ends[i] = TERMINATED
        elif rows.ends[i] == TRUNCATED or rows.late_ends[i]:
            ends[i] = 3  # was said, so the next row begins whatever the limits
        last_of_unit = i == n - 1 or rows.unit[i + 1] != rows.unit[i]
        full = horizon is not None and i - start == horizon - 1
        past = horizon_s is not None and last_of_unit and seen_until - began >= horizon_s * S
        if ends[i] == NO_END and (full or past):
            ends[i] = TRUNCATED
    return follows, [TRUNCATED if end == 3 else end for end in ends]


@settings(max_examples=300)
@given(ordered(), st.sampled_from([None, 1, 2, 3, 5]), st.sampled_from([None, 0.5, 1.0, 4.0, 7.0]), st.integers(-1, 40))
def test_episodes_are_those_of_a_walk_from_row_to_row(rows, horizon, horizon_s, seen):
    episodes = cut(rows, horizon, horizon_s, seen * S)
    assert (episodes.next.tolist(), episodes.ends.tolist()) == plain(rows, horizon, horizon_s, seen * S)
    assert not (episodes.limited & ((episodes.next >= 0) | (episodes.ends != TRUNCATED))).any()
    by_rule = (rows.ends == NO_END) & ~rows.late_ends & (episodes.ends == TRUNCATED)
    assert episodes.limited[by_rule].all()


@given(ordered(), st.integers(1, 5))
def test_a_time_limit_that_nobody_reaches_changes_nothing(rows, horizon):
    without, limited = cut(rows, horizon), cut(rows, horizon, 1000.0, 0)
    assert limited.next.tolist() == without.next.tolist()
    assert limited.ends.tolist() == without.ends.tolist()


@given(ordered(), st.sampled_from([None, 2]), st.sampled_from([1.0, 4.0]))
def test_no_episode_is_longer_than_its_limits_where_clocks_run_forward(rows, horizon, horizon_s):
    rows = Rows(rows.unit, np.sort(rows.at), rows.step, np.full(len(rows.at), BY_TIME), rows.ends, rows.late_ends)
    episodes = cut(rows, horizon, horizon_s)
    last = np.flatnonzero(episodes.next < 0)
    first = np.append(0, last[:-1] + 1)
    assert (rows.at[last] - rows.at[first] < horizon_s * S).all()
    assert horizon is None or (last - first < horizon).all()


# --- discounts at an end by rule


def test_a_row_that_a_time_limit_ends_keeps_its_discount_because_something_came_after_it():
    rows = rows_of([0, 6, 30], ends=[0, 0, TERMINATED])
    for unit_s, want in ((None, [0.5, 0.5, 0.0]), (3.0, [0.25, 0.5, 0.0])):
        at = problem(discount=0.5, discount_unit_s=unit_s)
        assert discounts(at, cut(rows, None, 10.0), rows.at).tolist() == want


# --- parts


def draw_of(name: str) -> float:
    return int(hashlib.md5(name.encode()).hexdigest()[:13], 16) / 16.0**13


def draws_of(names: Sequence[str]) -> np.ndarray:
    return np.array([draw_of(name) for name in names])


names = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), unique=True, min_size=3, max_size=60)
shares = st.tuples(st.sampled_from([0.0, 0.05, 0.2, 0.4]), st.sampled_from([0.0, 0.1, 0.3, 0.5]))


def part_of(units: Sequence[str], validation: float, test: float) -> dict[str, str]:
    """Unit -> its part, with a row each."""
    found = parts(np.arange(len(units)), draws_of(units), validation, test)
    assert all((np.diff(rows) > 0).all() for rows in found)
    return {
        units[row]: name
        for name, rows in zip(("train", "validation", "test"), found, strict=True)
        for row in rows.tolist()
    }


def test_a_unit_is_in_the_part_that_its_draw_falls_into():
    draws = np.array([0.0, 0.1, 0.25, 0.3749, 0.375, 0.999])  # test [0, 0.25), validation [0.25, 0.375)
    unit = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    train, validation, test = parts(unit, draws, validation=0.125, test=0.25)
    assert test.tolist() == [0, 1, 2]
    assert validation.tolist() == [3, 4, 5, 6]
    assert train.tolist() == [7, 8, 9]


@given(names, shares, st.randoms(use_true_random=False))
def test_the_parts_never_overlap_hold_every_row_and_whole_units(units, shared, rng):
    unit = np.sort([rng.randrange(len(units)) for _ in range(200)] + list(range(len(units))))
    found = parts(unit, draws_of(units), *shared)
    assert np.sort(np.concatenate(found)).tolist() == list(range(len(unit)))
    assert sum(len(set(unit[rows])) for rows in found) == len(units)
    wanted = (True, shared[0] > 0, shared[1] > 0)
    assert [len(rows) > 0 for rows in found] == list(wanted)


@given(names, shares)
def test_a_unit_stays_in_its_part_when_others_come_unless_a_part_would_be_empty(units, shared):
    few = units[: len(units) // 2]
    if len(few) < 3:
        return
    before, after = part_of(few, *shared), part_of(units, *shared)
    by_draw = {name: _by_draw(draw_of(name), *shared) for name in units}
    wanted = {"train", *(["validation"] if shared[0] else []), *(["test"] if shared[1] else [])}
    if wanted <= {by_draw[name] for name in few}:
        assert all(after[name] == before[name] for name in few)
    if wanted <= set(by_draw.values()):
        assert after == by_draw


def _by_draw(draw: float, validation: float, test: float) -> str:
    return "test" if draw < test else "validation" if draw < test + validation else "train"


@given(names, shares)
def test_the_order_of_units_does_not_matter(units, shared):
    assert part_of(units, *shared) == part_of(units[::-1], *shared)


def test_nobody_leaves_the_test_when_the_validation_grows():
    units = [f"user {i}" for i in range(500)]
    one, other = part_of(units, 0.1, 0.2), part_of(units, 0.3, 0.2)
    assert {u for u, part in one.items() if part == "test"} == {u for u, part in other.items() if part == "test"}
    assert {u for u, part in one.items() if part == "validation"} < {
        u for u, part in other.items() if part == "validation"
    }


def test_the_nearest_unit_fills_a_part_that_nobody_drew():
    draws = np.array([0.9, 0.35, 0.5, 0.6])
    train, validation, test = parts(np.arange(4), draws, validation=0.1, test=0.2)
    assert (train.tolist(), validation.tolist(), test.tolist()) == ([0, 3], [2], [1])
    crowded = parts(np.arange(3), np.array([0.01, 0.02, 0.03]), validation=0.1, test=0.2)
    assert [rows.tolist() for rows in crowded] == [[1], [2], [0]]


def test_shares_are_those_of_many_units():
    units = [f"u{i}" for i in range(20_000)]
    found = parts(np.arange(len(units)), draws_of(units), validation=0.1, test=0.2)
    expected = np.array([0.7, 0.1, 0.2])
    # 5 standard deviations of a binomial share
    limit = 5 * np.sqrt(expected * (1 - expected) / len(units))
    assert (np.abs(np.array([len(rows) for rows in found]) / len(units) - expected) < limit).all()


def test_fewer_units_than_parts_are_refused_and_a_share_of_0_is_no_part():
    unit, draws = np.array([0, 0, 1]), np.array([0.5, 0.6])
    with pytest.raises(DataError, match="2 units for 3 parts") as error:
        parts(unit, draws, validation=0.1, test=0.1)
    assert "more units" in error.value.hint
    assert [rows.tolist() for rows in parts(unit, draws, validation=0.0, test=0.1)] == [[2], [], [0, 1]]
    assert [rows.tolist() for rows in parts(unit, draws, validation=0.0, test=0.0)] == [[0, 1, 2], [], []]


@pytest.mark.parametrize("shared", [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (0.9, 0.2), (float("nan"), 0.1)])
def test_shares_that_leave_nothing_to_train_on_are_refused(shared):
    with pytest.raises(DataError, match="together below 1"):
        parts(np.arange(5), np.linspace(0, 0.9, 5), *shared)
