"""What is left out, what must hold, which actions may occur, and what is added to a reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steersman import engine
from steersman.core import reward
from steersman.core.errors import DataError
from steersman.timeline import assertions, sql
from steersman.timeline.episodes import BY_TIME, NO_END, TERMINATED, Episodes, Rows
from steersman.timeline.episodes import lengths as episode_lengths
from steersman.timeline.filters import apply, leave_out, longest, not_longer, within
from steersman.timeline.settings import Settings
from timeline_log import Row, S, decision, log, outcome, problem


def of_lengths(lengths: Sequence[int], *, open: bool = False) -> tuple[Rows, Episodes]:
    """Episodes of these lengths, each of a unit of its own, a second between decisions."""
    unit = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(unit))
    last = np.append(unit[1:] != unit[:-1], True)
    at = (place - np.repeat(np.cumsum(lengths) - lengths, lengths)) * S
    none = np.zeros(len(unit), np.int64)
    ends = np.where(last & (not open), TERMINATED, NO_END)
    rows = Rows(unit, at, none - 1, none + BY_TIME, ends, np.zeros(len(unit), dtype=bool))
    return rows, Episodes(np.where(last, -1, place + 1), ends, limited=none > 0, begun=none > 0)


def lengths_of(episodes: Episodes) -> list[int]:
    return np.diff(np.flatnonzero(episodes.next < 0), prepend=-1).tolist()


# --- by length


def test_whole_episodes_longer_than_the_quantile_are_left_out_and_counted():
    rows, episodes = of_lengths([3, 50, 2, 4, 3, 2, 60, 3, 1, 2])
    left = leave_out(rows, episodes, Settings(max_length_quantile=0.8))
    assert (left.max_length, left.long_episodes, left.too_long, left.too_late) == (4, 2, 110, 0)
    assert lengths_of(left.episodes) == [3, 2, 4, 3, 2, 3, 1, 2]
    assert (left.episodes.ends[left.episodes.next < 0] == TERMINATED).all()
    assert left.rows.unit.tolist() == np.repeat(range(8), [3, 2, 4, 3, 2, 3, 1, 2]).tolist()
    assert np.unique(rows.unit[left.places]).tolist() == [0, 2, 3, 4, 5, 7, 8, 9]


def test_episodes_of_just_the_limit_stay_however_many_they_are():
    _, episodes = of_lengths([1, 5, 5, 5, 5, 5, 9])
    keep, longer = not_longer(episodes, longest(episode_lengths(episodes), 0.5))
    assert (int(keep.sum()), longer) == (26, 1)


def test_the_filter_stays_on_when_many_episodes_are_outliers():
    """It does not switch itself off where the lengths are not spread as one thought: 40% are left out, and told."""
    rows, episodes = of_lengths([1] * 6 + [100, 200, 300, 400])
    left = leave_out(rows, episodes, Settings(max_length_quantile=0.6))
    assert (left.max_length, left.long_episodes, left.too_long) == (1, 4, 1000)


def test_where_more_than_the_rest_have_the_greatest_length_nothing_is_left_out():
    rows, episodes = of_lengths([2, 2, 2, 1])
    left = leave_out(rows, episodes, Settings(max_length_quantile=0.9))
    assert (left.max_length, left.long_episodes, left.too_long, len(left.places)) == (2, 0, 0, 7)


def test_an_open_episode_counts_by_the_length_that_was_seen():
    closed, still_open = (of_lengths([1, 2, 3, 40], open=open)[1] for open in (False, True))
    assert longest(episode_lengths(closed), 0.75) == longest(episode_lengths(still_open), 0.75) == 3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_at_least_the_share_stays_and_a_shorter_limit_would_keep_too_few(lengths, quantile):
    _, episodes = of_lengths(lengths)
    limit = longest(np.array(lengths), quantile)
    assert limit in lengths
    sorted_lengths = np.sort(lengths)
    count, shorter = np.searchsorted(sorted_lengths, limit, "right"), np.searchsorted(sorted_lengths, limit)
    assert count >= quantile * len(lengths) * (1 - 1e-12)
    assert shorter < quantile * len(lengths) * (1 + 1e-12)
    keep, longer = not_longer(episodes, limit)
    assert longer == len(lengths) - count
    assert keep.sum() == sorted_lengths[:count].sum()


# --- by time


def test_decisions_too_long_after_the_first_of_their_episode_are_left_out():
    rows, episodes = of_lengths([5, 2, 4])
    left = leave_out(rows, episodes, Settings(within_s=2.0))
    assert left.places.tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
    assert (left.too_late, left.too_long, left.max_length) == (3, 0, None)
    assert left.episodes.next.tolist() == [1, 2, -1, 4, -1, 6, 7, -1]


def test_the_last_decision_that_stays_has_a_next_step_that_is_not_seen_and_is_never_terminated():
    rows, episodes = of_lengths([4, 2])
    left = leave_out(rows, episodes, Settings(within_s=1.0))
    assert left.episodes.next.tolist() == [1, -1, 3, -1]
    assert left.episodes.ends.tolist() == [NO_END, NO_END, NO_END, TERMINATED]  # the second one is whole


def test_an_instant_is_within_0_seconds_of_itself():
    rows, episodes = of_lengths([3])
    same = Rows(rows.unit, np.array([7, 7, 8]), rows.step, rows.order, rows.ends, rows.late_ends)
    assert within(same, episodes, 0.0).tolist() == [True, True, False]


def test_what_follows_a_decision_that_is_left_out_is_left_out_though_a_clock_went_back():
    rows, episodes = of_lengths([4, 1])
    back = Rows(rows.unit, np.array([0, 9, 3, 1, 0]) * S, rows.step, rows.order, rows.ends, rows.late_ends)
    assert within(back, episodes, 5.0).tolist() == [True, False, False, False, True]


def test_lengths_are_those_before_the_time_window_and_a_decision_is_counted_once():
    rows, episodes = of_lengths([6, 3, 3, 3])
    left = leave_out(rows, episodes, Settings(max_length_quantile=0.75, within_s=1.0))
    assert (left.max_length, left.long_episodes, left.too_long, left.too_late) == (3, 1, 6, 3)
    assert left.places.tolist() == [6, 7, 9, 10, 12, 13]
    assert left.rows.unit.tolist() == [0, 0, 1, 1, 2, 2]


def test_nothing_asked_leaves_everything():
    rows, episodes = of_lengths([3, 1])
    left = leave_out(rows, episodes, Settings())
    assert (left.rows, left.episodes) == (rows, episodes)
    assert left.places.tolist() == [0, 1, 2, 3]


# --- masks


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 31)), min_size=1, max_size=8))
def test_a_mask_leaves_true_successors_only(drawn):
    lengths = [length for length, _ in drawn]
    rows, episodes = of_lengths(lengths)
    keep = np.array([bool(bits >> i & 1) for length, bits in drawn for i in range(length)])
    if not keep.any():
        with pytest.raises(DataError, match="none of"):
            apply(rows, episodes, keep)
        return
    some, ended = apply(rows, episodes, keep)
    before = np.flatnonzero(keep)
    place_of = {row: place for place, row in enumerate(before.tolist())}
    want = [place_of.get(int(episodes.next[row]), -1) if episodes.next[row] >= 0 else -1 for row in before]
    assert ended.next.tolist() == want
    assert ended.ends.tolist() == episodes.ends[keep].tolist()
    former = np.unique(rows.unit[keep])
    assert former[some.unit].tolist() == rows.unit[keep].tolist()
    assert np.unique(some.unit).tolist() == list(range(len(former)))
    assert some.at.tolist() == rows.at[keep].tolist()


# --- assertions

DECISIONS = [
    decision("d1", "u", 1, action="a", hour=7.0, country="de"),
    decision("d2", "u", 2, action="b", hour=25.0, country="fr"),
    decision("d3", "v", 3, action="a", hour=None, country=None),
    decision("d4", "v", 50, action="c", hour=99.0, country="xx"),  # after the window
]
OUTCOMES = [outcome("o1", "d1", 2, r=1.0), outcome("o2", "d2", 3, r=-4.0), outcome("o3", "d1", 90, r=-9.0)]


def asked(tables: engine.Engine, directory, decisions: Sequence[Row] = DECISIONS, outcomes=OUTCOMES) -> sql.Tables:
    window = sql.window(problem(), 0, 40 * S, 60 * S)
    return sql.tables(tables, log(directory, decisions, outcomes), window)


def refused(found: sql.Tables, *said: str) -> DataError:
    with pytest.raises(DataError) as error:
        assertions.check(found, said)
    return error.value


def test_what_holds_of_every_decision_that_enters_passes_in_silence(tables, tmp_path):
    assertions.check(
        asked(tables, tmp_path),
        [
            "propensity > 0",
            '"context.hour" < 30 OR "context.hour" IS NULL -- d4 has 99, but does not enter',
            'SELECT * FROM decisions WHERE "context.hour" > 30;',
            'select decision from outcomes where "metrics.r" < -5  -- o3 has not happened yet',
            "WITH pairs AS (SELECT decision, COUNT(*) AS n FROM outcomes GROUP BY decision) SELECT * FROM pairs "
            "WHERE n > 1",
            "-- a question for all of them\n(SELECT COUNT(*) FROM decisions) = 3",
            "/* a question */ SELECT 1 AS one FROM decisions WHERE action = 'c'",
            "id IN (SELECT id FROM decisions)",
        ],
    )


def test_nothing_is_asked_where_nothing_is_said(tables, tmp_path):
    assertions.check(asked(tables, tmp_path), ())


def test_a_condition_that_fails_is_shown_with_the_rows_and_null_does_not_hold(tables, tmp_path):
    error = refused(asked(tables, tmp_path), "propensity > 0", '"context.hour" BETWEEN 0 AND 23')
    assert error.field == "assertions[1]"
    first, *shown = error.message.split("\n")
    assert first == "assertions[1] '\"context.hour\" BETWEEN 0 AND 23' does not hold for 2 of 3 decisions:"
    assert [line.split() for line in shown] == [
        ["id", "unit", "at", "context.hour"],
        ["d2", "u", "2000000", "25.0"],
        ["d3", "v", "3000000", "null"],
    ]


def test_a_select_that_gives_rows_is_shown(tables, tmp_path):
    error = refused(asked(tables, tmp_path), 'SELECT id, "metrics.r" AS r FROM outcomes WHERE "metrics.r" < 0')
    first, *shown = error.message.split("\n")
    assert first.endswith("gives 1 row, must give none:")
    assert [line.split() for line in shown] == [["id", "r"], ["o2", "-4.0"]]


def test_at_most_five_rows_are_shown_of_all_that_are_counted_and_long_texts_are_cut(tables, tmp_path):
    rows = [decision(f"d{i:02d}", "u", i / 10, text="word " * 50) for i in range(30)]
    found = asked(tables, tmp_path, rows)
    error = refused(found, "\"context.text\" = ''")
    assert "does not hold for 30 of 30 decisions" in error.message
    lines = error.message.split("\n")[1:]
    assert [line.split()[0] for line in lines] == ["id", "d00", "d01", "d02", "d03", "d04"]
    assert max(len(line) for line in lines) < 80
    assert lines[1].endswith("word wo...")
    many = refused(found, "SELECT id FROM decisions")
    assert "gives 30 rows" in many.message
    assert len(many.message.split("\n")) == 7


def test_lists_are_shown_as_lists(tables, tmp_path):
    error = refused(asked(tables, tmp_path), 'len("candidates.id") = 3')
    assert "['a', 'b']" in error.message


def test_the_first_assertion_that_fails_is_the_one_that_is_told(tables, tmp_path):
    assert refused(asked(tables, tmp_path), "unit = 'u'", "unit = 'v'").field == "assertions[0]"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('"context.hours" > 0', "context.hours"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("propensity >", "yntax"),
        ("MAX(propensity) > 0", "aggregate"),
    ],
)
def test_sql_that_can_not_run_is_told_with_the_engines_words(tables, tmp_path, said, told):
    error = refused(asked(tables, tmp_path), "propensity > 0", said)
    assert error.field == "assertions[1]"
    assert "can not be asked" in error.message
    assert told in error.message


@pytest.mark.parametrize("said", ["propensity", "step + 1", "'yes'", '"context.country"'])
def test_a_condition_that_is_neither_true_nor_false_is_refused(tables, tmp_path, said):
    rows = [row | {"step": i} for i, row in enumerate(DECISIONS[:2])]
    error = refused(asked(tables, tmp_path, rows), said)
    assert "must be true or false" in error.message or "can not be asked" in error.message


@pytest.mark.parametrize("said", ["", "  \n", ";", "-- only a remark", "/* a remark */"])
def test_an_assertion_that_says_nothing_is_refused(tables, tmp_path, said):
    assert "is empty" in refused(asked(tables, tmp_path), said).message


def test_a_condition_that_is_null_everywhere_holds_nowhere(tables, tmp_path):
    assert "for 3 of 3 decisions" in refused(asked(tables, tmp_path), "step > 0").message


def test_without_any_outcome_there_are_none_to_ask(tables, tmp_path):
    found = asked(tables, tmp_path, outcomes=[])
    assertions.check(found, ['SELECT id, decision, "at", ends FROM outcomes'])
    assert "metrics.r" in refused(found, 'SELECT * FROM outcomes WHERE "metrics.r" < 0').message


def test_decisions_and_outcomes_told_twice_are_asked_once(tables, tmp_path):
    found = asked(tables, tmp_path, [*DECISIONS, DECISIONS[0]], [*OUTCOMES, OUTCOMES[0]])
    assertions.check(
        found,
        [
            "SELECT id FROM decisions GROUP BY id HAVING COUNT(*) > 1",
            "SELECT id FROM outcomes GROUP BY id HAVING COUNT(*) > 1",
        ],
    )


# --- expected actions


def test_an_action_that_nobody_expects_stops_the_build_and_is_named_with_its_decision(tables, tmp_path):
    rows = [
        decision(f"d{i}", "u", i, action=action, **{"candidates.id": ["send", "sned", "wait", "x"]})
        for i, action in enumerate(["send", "wait", "sned", "sned", "x"])
    ]
    found = asked(tables, tmp_path, rows)
    with pytest.raises(DataError, match=r"decision d2: action 'sned' is none of the 2 expected ones") as error:
        assertions.check_actions(found, ("send", "wait"))
    assert "3 such decisions, 2 such actions" in error.value.message
    assert (error.value.hint, error.value.field) == ("did you mean send?", "actions")
    assertions.check_actions(found, ("send", "sned", "wait", "x", "never taken"))
    assertions.check_actions(found, ())


def test_only_decisions_that_enter_are_asked_for_their_action(tables, tmp_path):
    assertions.check_actions(asked(tables, tmp_path), ("a", "b"))  # d4 took c, after the window


# --- rewards


def test_the_decision_without_a_reward_is_named():
    metrics = {"r": np.array([1.0, np.nan, np.nan])}
    with pytest.raises(DataError, match=r"^decision d2: reward 'r' is nan with \{'r': nan\}; 2 such rows of 3"):
        reward.compute("r", metrics, np.array(["d1", "d2", "d3"], dtype=object))
    with pytest.raises(DataError, match=r"^row 1: reward 'r'"):
        reward.compute("r", metrics)


def test_names_are_looked_up_only_when_one_is_needed():
    class Never:
        def __getitem__(self, row: int, /) -> str:
            raise AssertionError(f"row {row} was looked up")

    assert reward.compute("2 * r", {"r": np.array([1.0])}, Never()).tolist() == [2.0]


SHAPING = {"send": -0.25, "call": 2.0, "gone": 100.0}


def test_shaping_adds_to_the_reward_of_the_action_that_was_taken():
    ids = np.array([["call", "send", "wait"]], dtype=object)
    action = np.array([1, 2, 0, 1])
    before = np.array([1.0, 1.0, -3.0, 0.0])
    for shared in (ids, np.broadcast_to(ids, (4, 3))):
        assert reward.shaped(before, action, shared, SHAPING).tolist() == [0.75, 1.0, -1.0, -0.25]
    assert before.tolist() == [1.0, 1.0, -3.0, 0.0]
    assert reward.shaped(before, action, ids, {}) is before


@given(st.lists(st.permutations(["send", "call", "wait"]), min_size=1, max_size=9), st.integers(0, 99))
def test_shaping_goes_by_the_id_of_the_action_and_never_by_its_place(candidates, seed):
    ids = np.array(candidates, dtype=object)
    action = np.random.default_rng(seed).integers(0, 3, len(ids))
    shaped = reward.shaped(np.ones(len(ids)), action, ids, SHAPING)
    want = [1 + SHAPING.get(names[place], 0.0) for names, place in zip(candidates, action.tolist(), strict=True)]
    assert shaped.tolist() == want


def test_a_shaped_reward_that_is_not_finite_is_named():
    ids = np.array([["a", "b"]], dtype=object)
    with pytest.raises(DataError, match=r"decision d2: reward 1e\+308 with the shaping 1e\+308 of 'b' is inf; 1 such"):
        reward.shaped(np.array([0.0, 1e308]), np.array([1, 1]), ids, {"b": 1e308}, ["d1", "d2"])
