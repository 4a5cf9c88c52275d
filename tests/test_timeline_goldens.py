"""What a timeline has to give, by hand: each case is a trap that a timeline in use has fallen into.

Every case runs on every engine, through the public build.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spark_here
from steersman import engine, timeline
from steersman.core.decision import Problem
from steersman.core.errors import DataError
from steersman.learn.returns import n_step
from steersman.timeline import Built
from steersman.timeline.settings import Settings
from timeline_log import FAR, Files, Row, S, decision, log, outcome, problem, shuffled_log

ENGINES = ("duckdb", pytest.param("spark", marks=(pytest.mark.slow, spark_here.needed)))


@pytest.fixture(scope="module", params=ENGINES)
def tables(request, tmp_path_factory) -> Iterator[engine.Engine]:
    spark = request.param == "spark"
    opened = spark_here.opened(tmp_path_factory.mktemp("spark")) if spark else engine.open("duckdb", threads=1)
    yield opened
    opened.close()


def built_by(tables: engine.Engine, at: Problem, files: Files, scratch: Path, **more: Any) -> Built:
    """What flow does: an engine of many machines builds in parts, here in one."""
    if not tables.distributed:
        return timeline.build(tables, at, files, **more)
    settings = more.pop("settings", Settings())
    (part,) = timeline.build_shards(tables, at, files, settings=settings, into=scratch, **more)
    return part


@pytest.fixture
def build(tables, tmp_path):
    """A build of a few decisions and outcomes; more: of the problem, settings, and since, until, as_of in seconds."""
    folders = itertools.count()

    def made(decisions: list[Row], outcomes: list[Row] = (), **more: Any) -> Built:
        window = {
            name: round(more.pop(name, at) * S) for name, at in (("since", 0), ("until", 10**12), ("as_of", 10**12))
        }
        folder = tmp_path / str(next(folders))
        files = log(folder, decisions, outcomes)
        settings = more.pop("settings", Settings())
        return built_by(tables, problem(**more), files, scratch(folder), settings=settings, **window)

    return made


def scratch(folder: Path) -> Path:
    made = folder / "scratch"
    made.mkdir()
    return made


def follows(built: Built) -> dict[str, str | None]:
    """Decision -> the one that follows it in its episode."""
    ids = built.decision_ids.tolist()
    return {ids[row]: ids[after] if after >= 0 else None for row, after in enumerate(built.batch.next.tolist())}


def of(built: Built, id: str) -> int:
    return built.decision_ids.tolist().index(id)


FOUR = [1, 11, 12, 13]
"""Seconds, and sequence numbers, of four steps of one episode."""

PAID = [1.0, 0.2, 0.9, 0.4]
"""Their rewards."""


def four(last: str | None = "terminated") -> tuple[list[Row], list[Row]]:
    decisions = [decision(f"d{i}", "game", at, step=at) for i, at in enumerate(FOUR)]
    outcomes = [
        outcome(f"o{i}", f"d{i}", at, last if i == 3 else None, r=paid)
        for i, (at, paid) in enumerate(zip(FOUR, PAID, strict=True))
    ]
    return decisions, outcomes


# --- the last action of an episode


@pytest.mark.parametrize("last", ["terminated", "truncated", None])
def test_the_last_action_of_an_episode_keeps_its_row_and_its_reward(build, last):
    batch = build(*four(last)).batch
    assert batch.reward.tolist() == PAID
    assert batch.next.tolist() == [1, 2, 3, -1]


def test_terminated_truncated_and_open_are_three_things(build):
    decisions = [decision(f"{unit}{i}", unit, i) for unit in "abc" for i in range(2)]
    ends = [outcome("o1", "a1", 1, "terminated", r=1.0), outcome("o2", "b1", 1, "truncated", r=1.0)]
    built = build(decisions, ends, discount=0.9)
    assert built.batch.terminated.tolist() == [False, True, False, False, False, False]
    assert built.batch.discount.tolist() == [0.9, 0.0, 0.9, 0.9, 0.9, 0.9]
    assert built.batch.next.tolist() == [1, -1, 3, -1, 5, -1]
    assert (built.counts.terminated, built.counts.truncated, built.counts.open) == (1, 1, 1)


def test_an_episode_of_one_step_is_an_episode(build):
    built = build([decision("only")], [outcome("o", "only", 0, "terminated", r=3.0)])
    assert (built.batch.reward.tolist(), built.batch.next.tolist()) == ([3.0], [-1])
    assert built.batch.terminated.tolist() == [True]


def test_nothing_to_choose_from_afterwards_does_not_make_the_step_before_the_last(build):
    """The end is said by an outcome. A last step with one candidate left, or other ones, shifts it by nothing."""
    decisions = [
        decision("d1", "u", 1, features={"a": {"size": 1.0}, "b": {"size": 2.0}}),
        decision("d2", "u", 2, features={"a": {"size": 1.0}, "b": {"size": 2.0}}),
        decision("d3", "u", 3, features={"a": {"size": 9.0}}),
    ]
    built = build(decisions, [outcome("o", "d3", 3, "terminated", r=1.0)])
    assert built.batch.terminated.tolist() == [False, False, True]
    assert built.batch.mask.sum(axis=1).tolist() == [2, 2, 1]


# --- what follows what


def test_every_next_row_is_the_true_successor_and_none_is_the_row_itself(build):
    lengths = [1, 2, 7, 3, 1, 12]
    decisions = [decision(f"e{e}s{s}", f"e{e}", 50 * e + s) for e, n in enumerate(lengths) for s in range(n)]
    built = build(decisions[::-1])
    want = {f"e{e}s{s}": f"e{e}s{s + 1}" if s + 1 < n else None for e, n in enumerate(lengths) for s in range(n)}
    assert follows(built) == want
    assert (built.batch.next != np.arange(len(built.batch))).all()


def test_a_log_told_several_times_has_no_step_to_itself_and_loses_no_row(build):
    decisions, outcomes = four()
    built = build(decisions * 3, outcomes * 2)
    assert follows(built) == {"d0": "d1", "d1": "d2", "d2": "d3", "d3": None}
    assert built.batch.reward.tolist() == PAID
    assert (built.counts.duplicates, built.counts.duplicate_outcomes) == (8, 4)


def test_of_duplicates_that_differ_the_same_one_wins_in_whatever_order_they_lie(tables, tmp_path):
    copies = [decision("d", at_s=at, x=x, action=action) for at in (1, 2) for x in (5.0, 3.0) for action in "ba"]
    rows = [*copies, decision("e", at_s=3, x=1.0)]
    built = [
        built_by(
            tables,
            problem(),
            shuffled_log(tmp_path / str(seed), rows, [], seed),
            scratch(tmp_path / str(seed)),
            since=0,
            until=FAR,
            as_of=FAR,
        )
        for seed in range(5)
    ]
    assert len({one.batch.digest for one in built}) == 1
    first = built[0]
    assert first.raw.context.numbers[:, 0].tolist() == [3.0, 1.0]  # the earliest, then the smallest
    assert first.raw.ids[0, first.batch.action[0]] == "a"


def test_the_same_step_logged_under_two_ids_is_two_decisions_and_neither_follows_itself(build):
    decisions = [decision("d1", "u", 1, step=0), decision("d1 again", "u", 1, step=0), decision("d2", "u", 2, step=1)]
    built = build(decisions)
    assert follows(built) == {"d1": None, "d1 again": "d2", "d2": None}


def test_episodes_of_different_units_never_touch(build):
    built = build([decision("a1", "a", 1), decision("b1", "b", 2), decision("a2", "a", 3), decision("b2", "b", 4)])
    assert follows(built) == {"a1": "a2", "a2": None, "b1": "b2", "b2": None}


# --- what orders


def test_sequence_numbers_may_have_gaps_and_may_be_timestamps(build):
    stamps = [1_700_000_000_000_123, 1_700_000_000_000_007, 1_700_000_500_000_000, 9_007_199_254_740_993]
    decisions = [decision(f"d{i}", "u", 5, step=stamp) for i, stamp in enumerate(stamps)]
    decisions.append(decision("d4", "u", 5, step=9_007_199_254_740_992))  # one less; the same as a float
    built = build(decisions)
    assert built.decision_ids.tolist() == ["d1", "d0", "d2", "d4", "d3"]
    assert follows(built) == {"d1": "d0", "d0": "d2", "d2": "d4", "d4": "d3", "d3": None}
    assert built.batch.step.tolist() == [0, 1, 2, 3, 4]  # places are counted, never taken from the number


def test_the_order_of_sequence_numbers_is_that_of_numbers_and_not_of_texts(build):
    assert build([decision(f"d{step}", "u", 1, step=step) for step in (10, 9, 100)]).decision_ids.tolist() == [
        "d9",
        "d10",
        "d100",
    ]


# --- the gap of time and the discount


def test_the_discount_is_a_power_of_the_gap_in_units_of_time(build):
    discount = build(*four(), discount=0.9, discount_unit_s=2.0).batch.discount
    assert discount.tolist() == pytest.approx([0.9**5, 0.9**0.5, 0.9**0.5, 0.0], rel=1e-15)


def test_the_last_row_has_no_gap_so_it_keeps_the_discount_unless_it_terminated(build):
    for last, want in (("terminated", 0.0), ("truncated", 0.9), (None, 0.9)):
        assert build(*four(last), discount=0.9, discount_unit_s=2.0).batch.discount[-1] == want


def test_two_decisions_of_one_instant_are_no_time_apart(build):
    built = build([decision("a", at_s=1), decision("b", at_s=1)], discount=0.5, discount_unit_s=1.0)
    assert built.batch.discount.tolist() == [1.0, 0.5]


def test_a_discount_per_step_does_not_look_at_the_clock(build):
    assert build(*four(), discount=0.9).batch.discount.tolist() == [0.9, 0.9, 0.9, 0.0]


# --- returns of several steps


def test_returns_of_three_steps_hold_the_rewards_on_the_way_and_no_row_is_lost(build):
    returns = n_step(build(*four()).batch, 0.5, 3)
    assert returns.row.tolist() == [0, 1, 2, 3]
    assert returns.reward.tolist() == pytest.approx(
        [1.0 + 0.5 * 0.2 + 0.25 * 0.9, 0.2 + 0.5 * 0.9 + 0.25 * 0.4, 0.9 + 0.5 * 0.4, 0.4], rel=1e-15
    )
    assert returns.until[0] == 3
    assert returns.discount.tolist() == [0.125, 0.0, 0.0, 0.0]


def test_the_gaps_of_several_steps_add_up_in_the_discount(build):
    """From second 1 to 11, 12 and 13 it is 10, 11 and 12 s."""
    batch = build(*four(), discount=0.9, discount_unit_s=1.0).batch
    for steps, gap in ((1, 10), (2, 11), (3, 12)):
        returns = n_step(batch, 1.0, steps)
        assert returns.discount[0] == pytest.approx(0.9**gap, rel=1e-14)
        assert returns.until[0] == steps
    want = 1.0 + 0.9**10 * 0.2 + 0.9**11 * 0.9
    assert n_step(batch, 1.0, 3).reward[0] == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize("last", ["truncated", None])
def test_near_an_end_that_nobody_saw_returns_are_shorter_and_the_last_row_takes_over(build, last):
    returns = n_step(build(*four(last)).batch, 0.5, 3)
    assert returns.row.tolist() == [0, 1, 2]  # what the last row is worth beyond its reward is not known
    assert returns.until.tolist() == [3, 3, 3]
    assert returns.reward.tolist() == pytest.approx([1.0 + 0.1 + 0.225, 0.2 + 0.45, 0.9], rel=1e-15)
    assert returns.discount.tolist() == [0.125, 0.25, 0.5]


def test_what_terminated_is_worth_its_rewards_alone(build):
    returns = n_step(build(*four()).batch, 0.5, 9)
    assert (returns.discount == 0).all()
    assert returns.reward[0] == pytest.approx(1.0 + 0.1 + 0.225 + 0.05, rel=1e-15)


def test_returns_of_one_step_are_rewards_and_discounts(build):
    batch = build(*four(), discount=0.9).batch
    returns = n_step(batch, 1.0, 1)
    assert (returns.reward.tolist(), returns.discount.tolist()) == (PAID, [0.9, 0.9, 0.9, 0.0])
    assert returns.until.tolist() == [1, 2, 3, 3]


def test_the_end_of_one_episode_takes_no_reward_from_the_next_of_the_unit(build):
    decisions = [decision(f"d{i}", "u", i) for i in range(4)]
    outcomes = [outcome(f"o{i}", f"d{i}", i, "terminated" if i == 1 else None, r=10.0**i) for i in range(4)]
    returns = n_step(build(decisions, outcomes).batch, 1.0, 4)
    assert dict(zip(returns.row.tolist(), returns.reward.tolist(), strict=True)) == {0: 11.0, 1: 10.0, 2: 100.0}


# --- what could be chosen


def test_what_can_be_chosen_next_are_the_candidates_of_the_next_row(build):
    decisions = [
        decision("d1", "u", 1, action="p", features={"p": {"size": 1.0}, "q": {"size": 2.0}}),
        decision("d2", "u", 2, action="r", features={"r": {"size": 3.0}}),
        decision("d3", "u", 3, action="q", features={"s": {"size": 5.0}, "q": {"size": 4.0}, "p": {"size": 1.0}}),
    ]
    named = {"actions": type(problem().actions)(), "default_outcome": {"r": 0.0}}
    built = build(decisions, [outcome("o", "d3", 3, "terminated", r=1.0)], **named)
    offered = [
        [name for name, there in zip(*row, strict=True) if there]
        for row in zip(built.raw.ids, built.batch.mask, strict=True)
    ]
    assert offered == [["p", "q"], ["r"], ["p", "q", "s"]]
    after = built.batch.next[of(built, "d1")]
    assert offered[after] == ["r"]
    taken = [offered[row][place] for row, place in enumerate(built.batch.action.tolist())]
    assert taken == ["p", "r", "q"]


def test_an_action_that_was_no_candidate_is_refused_and_never_taken_for_an_end(build):
    with pytest.raises(DataError, match="decision d2: action 'zzz' is not among its candidates"):
        build([decision("d1"), decision("d2", at_s=1, action="zzz")])


# --- outcomes and rewards


def test_the_maximum_of_negative_outcomes_is_negative(build):
    outcomes = [outcome(f"o{i}", "d", i, r=value) for i, value in enumerate((-3.0, -1.5, -2.0))]
    assert build([decision("d")], outcomes, combine={"r": "max"}).batch.reward.tolist() == [-1.5]


def test_a_decision_nobody_answered_stays_and_takes_the_default(build):
    decisions = [decision("d1", at_s=1), decision("d2", at_s=2), decision("d3", at_s=3)]
    built = build(decisions, [outcome("o", "d2", 2, r=5.0)], default_outcome={"r": -1.0})
    assert built.batch.reward.tolist() == [-1.0, 5.0, -1.0]
    assert built.counts.without_outcome == 2


def test_a_reward_that_can_not_be_computed_is_refused_and_never_0(build):
    decisions, outcomes = four()
    with pytest.raises(DataError, match="decision d3"):
        build(decisions, outcomes[:3], default_outcome={})


def test_a_reward_can_be_another_one_without_another_log(build):
    decisions = [decision("d1", "u", 1), decision("d2", "u", 2)]
    outcomes = [
        outcome("o1", "d1", 1, clicks=2.0, cost=1.0),
        outcome("o2", "d2", 2, "terminated", clicks=1.0, cost=8.0),
    ]
    default = {"clicks": 0.0, "cost": 0.0}
    one = build(decisions, outcomes, reward="clicks", default_outcome=default)
    other = build(decisions, outcomes, reward="clicks - 0.5 * max(cost, 2)", default_outcome=default)
    assert (one.batch.reward.tolist(), other.batch.reward.tolist()) == ([2.0, 1.0], [1.0, -3.0])
    assert one.batch.metric_names == ("clicks", "cost")
    assert one.batch.metrics.tolist() == other.batch.metrics.tolist() == [[2.0, 1.0], [1.0, 8.0]]
    returns = n_step(other.batch, 1.0, 2)  # and the returns of several steps are of that reward
    assert returns.reward.tolist() == [-2.0, -3.0]


def test_every_metric_has_a_column_of_its_own(build):
    decisions, outcomes = four()
    outcomes = [row | {"metrics.c": 10.0 * i} for i, row in enumerate(outcomes)]
    batch = build(decisions, outcomes).batch
    assert batch.metric_names == ("c", "r")
    assert batch.metrics.tolist() == [[10.0 * i, paid] for i, paid in enumerate(PAID)]


# --- propensities


def test_a_propensity_under_another_name_is_refused_and_never_1(build):
    rows = [decision("d1")]
    rows[0]["action_probability"] = rows[0].pop("propensity")
    with pytest.raises(DataError, match="propensity") as error:
        build(rows)
    assert error.value.field == "propensity"


@pytest.mark.parametrize("propensity", [None, 0.0, 1.5, math.nan])
def test_a_propensity_that_is_missing_or_no_probability_is_named(build, propensity):
    with pytest.raises(DataError, match="propensity"):
        build([decision("d1"), decision("d2", at_s=1, propensity=propensity)])


def test_propensities_stand_beside_their_own_decisions(build):
    built = build([decision(f"d{i}", "u", 9 - i, propensity=(i + 1) / 10) for i in range(5)])
    assert built.decision_ids.tolist() == ["d4", "d3", "d2", "d1", "d0"]
    assert built.batch.propensity.tolist() == [0.5, 0.4, 0.3, 0.2, 0.1]


# --- the limits of a window


def test_a_window_cuts_and_does_not_terminate(build):
    decisions = [decision(f"d{i}", "u", 10 * i) for i in range(6)]
    ends = [outcome("o", "d5", 50, "terminated", r=1.0)]
    built = build(decisions, ends, since=10, until=40)
    assert follows(built) == {"d1": "d2", "d2": "d3", "d3": None}
    assert not built.batch.terminated.any()
    assert built.counts.open == 1
    assert build(decisions, ends, as_of=45).decision_ids.tolist() == ["d0", "d1", "d2", "d3"]


def test_the_horizon_cuts_without_losing_a_reward(build):
    decisions = [decision(f"d{i}", "u", i) for i in range(5)]
    built = build(decisions, [outcome(f"o{i}", f"d{i}", i, r=float(i)) for i in range(5)], horizon=2)
    assert follows(built) == {"d0": "d1", "d1": None, "d2": "d3", "d3": None, "d4": None}
    assert built.batch.reward.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert (built.counts.truncated, built.counts.open) == (2, 1)


def test_a_time_limit_cuts_before_the_first_decision_beyond_it(build):
    decisions = [decision(f"d{i}", "u", at) for i, at in enumerate((0, 40, 59, 60, 130))]
    built = build(decisions, horizon_s=60.0, as_of=191)  # with a wait of 10 s all before 181 were seen
    assert follows(built) == {"d0": "d1", "d1": "d2", "d2": None, "d3": None, "d4": None}
    assert (built.counts.truncated, built.counts.open) == (2, 1)
    assert (built.batch.discount == 1).all()
    closed = build(decisions, horizon_s=60.0, as_of=200)
    assert (closed.counts.truncated, closed.counts.open) == (3, 0)
    assert np.flatnonzero(built.batch.limited).tolist() == [2, 3]
    assert np.flatnonzero(closed.batch.limited).tolist() == [2, 3, 4]  # by then it is known to be complete


# --- what is left out on demand


def test_outliers_in_length_go_as_whole_episodes_and_are_counted(build):
    lengths = [2, 3, 2, 30, 3, 1, 2, 3, 1, 2]
    decisions = [decision(f"e{e}s{s}", f"e{e}", 50 * e + s) for e, n in enumerate(lengths) for s in range(n)]
    ends = [outcome(f"o{e}", f"e{e}s{n - 1}", 50 * e + n, "terminated", r=1.0) for e, n in enumerate(lengths)]
    built = build(decisions, ends, settings=Settings(max_length_quantile=0.9))
    assert not any(id.startswith("e3") for id in built.decision_ids)
    assert np.bincount(built.batch.episode).tolist() == [2, 3, 2, 3, 1, 2, 3, 1, 2]
    assert (built.counts.decisions, built.counts.too_long, built.counts.terminated) == (19, 30, 9)
    assert build(decisions, ends).counts.decisions == 49


def test_decisions_long_after_the_start_of_their_episode_go_and_what_stays_is_not_terminated(build):
    built = build(*four(), settings=Settings(within_s=11.0), discount=0.9, discount_unit_s=1.0)
    assert follows(built) == {"d0": "d1", "d1": "d2", "d2": None}
    assert built.batch.discount.tolist() == pytest.approx([0.9**10, 0.9, 0.9], rel=1e-15)
    assert (built.counts.too_late, built.counts.terminated, built.counts.open) == (1, 0, 1)


def test_what_a_user_says_must_hold_stops_the_build_and_is_shown(build):
    decisions, outcomes = four()
    rows = [row | {"context.hour": 10.0 + i} for i, row in enumerate(decisions)]
    build(rows, outcomes, settings=Settings(assertions=('"context.hour" < 24', "SELECT id FROM outcomes WHERE 1 = 0")))
    with pytest.raises(DataError, match=r"does not hold for 1 of 4 decisions") as error:
        build(rows, outcomes, settings=Settings(assertions=('"context.hour" < 13',)))
    assert "d3" in error.value.message


def test_an_action_that_nobody_expects_stops_the_build(build):
    decisions = [decision("d1"), decision("d2", at_s=1, action="b")]
    with pytest.raises(DataError, match="decision d2: action 'b'"):
        build(decisions, settings=Settings(actions=("a",)))
    assert len(build(decisions, settings=Settings(actions=("a", "b"))).batch) == 2


def test_the_reward_is_shaped_by_the_action_that_was_taken(build):
    decisions = [decision("d1", at_s=1, action="b"), decision("d2", at_s=2, action="a")]
    built = build(decisions, [outcome("o", "d1", 1, r=1.0)], shaping={"b": -0.25})
    assert built.batch.reward.tolist() == [0.75, 0.0]


# --- columns


def test_fields_keep_their_values_whatever_the_order_of_columns_and_types(tables, tmp_path):
    """Numbers, flags and shares in one row, and the columns in another order in every file."""
    rows = [decision(f"d{i}", "u", i, zeta=float(i), alpha=0.5 - i, flag=float(i % 2), mid=i / 4) for i in range(4)]
    for seed in range(3):
        files = shuffled_log(tmp_path / str(seed), rows, [], seed)
        into = scratch(tmp_path / str(seed))
        built = built_by(tables, problem(), files, into, since=0, until=FAR, as_of=FAR)
        names = [field.name for field in built.batch.encoder.context]
        numbers = dict(zip(sorted(names), built.raw.context.numbers.T.tolist(), strict=True))
        assert numbers["zeta"] == [0.0, 1.0, 2.0, 3.0]
        assert numbers["alpha"] == [0.5, -0.5, -1.5, -2.5]
        assert numbers["flag"] == [0.0, 1.0, 0.0, 1.0]
        assert numbers["mid"] == [0.0, 0.25, 0.5, 0.75]
