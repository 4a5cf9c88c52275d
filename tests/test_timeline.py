"""The join, the order and the episodes, against a log worked out by hand and against plain Python."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steersman import timeline
from steersman.core.decision import Problem
from steersman.core.errors import DataError
from steersman.timeline import Built
from timeline_log import FAR, Files, Row, S, decision, log, outcome, problem, shuffled_log

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def build(
    tables, files: Files, at: Problem | None = None, since=0, until=FAR, as_of=FAR, encoder=None, **more: Any
) -> Built:
    return timeline.build(
        tables, at or problem(), files, since=since, until=until, as_of=as_of, encoder=encoder, **more
    )


def by_id(built: Built, values: np.ndarray) -> dict[str, float]:
    return dict(zip(built.decision_ids.tolist(), values.tolist(), strict=True))


def successors(built: Built) -> dict[str, str | None]:
    ids = built.decision_ids
    return {ids[row]: None if after < 0 else ids[after] for row, after in enumerate(built.batch.next)}


# --- by hand


def test_a_log_worked_out_by_hand(tables, tmp_path):
    decisions = [
        decision("u2-1", "u2", 7, action="b", propensity=0.25),
        decision("u1-1", "u1", 1),
        decision("u1-3", "u1", 5, action="b"),
        decision("u1-2", "u1", 3),
        decision("u1-4", "u1", 6),
        decision("u3-1", "u3", 95),
    ]
    outcomes = [
        outcome("o1", "u1-1", 2, r=1.0),
        outcome("o2", "u1-1", 4, r=0.5, c=3.0),
        outcome("o3", "u1-2", 3.5, "terminated", r=2.0),
        outcome("o4", "u1-3", 15.5, r=9.0),
        outcome("o5", "u2-1", 17, "truncated", r=4.0),
        outcome("o6", "nobody", 8, r=7.0),
    ]
    built = build(
        tables, log(tmp_path, decisions, outcomes), problem(discount=0.9), since=0, until=96 * S, as_of=100 * S
    )
    assert built.decision_ids.tolist() == ["u1-1", "u1-2", "u1-3", "u1-4", "u2-1"]
    batch = built.batch
    assert batch.metric_names == ("c", "r")
    np.testing.assert_array_equal(batch.reward, [1.5, 2.0, 0.0, 0.0, 4.0])
    np.testing.assert_array_equal(batch.metrics[:, 0], [3.0, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(batch.next, [1, -1, 3, -1, -1])
    np.testing.assert_array_equal(batch.discount, [0.9, 0.0, 0.9, 0.9, 0.9])
    np.testing.assert_array_equal(batch.unit, [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(batch.action, [0, 0, 1, 0, 1])
    np.testing.assert_array_equal(batch.propensity, [0.5, 0.5, 0.5, 0.5, 0.25])
    assert built.counts == timeline.Counts(
        decisions=5,
        waiting=1,
        duplicates=0,
        outcomes=4,
        late=1,
        late_ends=0,
        dangling=1,
        duplicate_outcomes=0,
        without_outcome=2,
        units=2,
        episodes=3,
        terminated=1,
        truncated=1,
        open=1,
    )
    assert (built.since, built.until) == (0, 96 * S)


# --- against plain Python

seconds = st.integers(0, 20)


@st.composite
def logs(draw) -> tuple[list[Row], list[Row]]:
    """A few units with ties, copies, gaps and restarts of steps; outcomes early, late, twice, of nobody."""
    decisions = []
    for i in range(draw(st.integers(1, 10))):
        row = decision(
            f"d{draw(st.permutations(range(3)))[0]}{i}",
            draw(st.sampled_from(["u", "v"])),
            draw(seconds),
            action=draw(st.sampled_from("ab")),
            propensity=draw(st.sampled_from([0.1, 1.0])),
            x=draw(st.sampled_from([0.0, 1.5, None])),
        )
        row["step"] = draw(st.sampled_from([None, i, i, i % 3, 20 - i]))
        decisions.append(row)
    for row in draw(st.lists(st.sampled_from(decisions), max_size=3)):
        decisions.append(row | {"at": row["at"] + draw(seconds) * S, "context.x": 7.0})
    ids = [row["id"] for row in decisions] + ["nobody"]
    outcomes = [
        outcome(
            f"o{draw(st.integers(0, 12))}",
            draw(st.sampled_from(ids)),
            draw(st.integers(0, 40)),
            draw(st.sampled_from([None, None, "terminated", "truncated"])),
            r=draw(st.sampled_from([None, 0.1, 0.2, 0.3, -1e9, 1e-9])),
            c=draw(st.sampled_from([None, 1.0])),
        )
        for _ in range(draw(st.integers(0, 14)))
    ]
    return decisions, outcomes


def first(rows: list[Row]) -> list[Row]:
    """Each id once: the first by `at`, then by content, null first."""
    seen: dict[str, Row] = {}
    columns = sorted({column for row in rows for column in row})

    def key(row: Row) -> tuple:
        return row["at"], *((row.get(c) is not None, row.get(c) if row.get(c) is not None else 0) for c in columns)

    for row in sorted(rows, key=key):
        seen.setdefault(row["id"], row)
    return list(seen.values())


def in_order(rows: list[Row]) -> list[tuple[Row, bool]]:
    """The rows of one unit in their order, and whether each starts a new count of steps."""
    steps = [row["step"] for row in rows]
    if None not in steps and len(set(steps)) == len(steps):
        return [(row, False) for row in sorted(rows, key=lambda row: row["step"])]
    rows = sorted(rows, key=lambda row: (row["at"], row["id"]))
    if None in steps:
        return [(row, False) for row in rows]
    pairs = itertools.pairwise(rows)
    grows = [b["step"] > a["step"] and b["at"] > a["at"] for a, b in pairs]
    return [(row, not grew) for row, grew in zip(rows, [True, *grows], strict=True)]


def plain(at: Problem, decisions: list[Row], outcomes: list[Row], since: int, until: int, as_of: int) -> list[Row]:
    """What a build has to give, row by row, in plain Python."""
    wait = round(at.wait_s * S)
    kept = [d for d in first(decisions) if since <= d["at"] < until and d["at"] + wait <= as_of]
    heard = first([o for o in outcomes if o["at"] <= as_of])
    result = []
    for number, unit in enumerate(sorted({d["unit"] for d in kept})):
        ordered = in_order([d for d in kept if d["unit"] == unit])
        unit_rows: list[Row] = []
        length = 0
        for d, restarts in ordered:
            own = [o for o in heard if o["decision"] == d["id"]]
            timely = [o for o in own if o["at"] <= d["at"] + wait]
            ends = {o["ends"] for o in timely}
            end = "terminated" if "terminated" in ends else "truncated" if "truncated" in ends else None
            late_end = end is None and any(o["ends"] for o in own)
            metrics = {}
            for name in ("c", "r"):
                values = [o[f"metrics.{name}"] for o in timely if o[f"metrics.{name}"] is not None]
                metrics[name] = sum(sorted(values)) if values else at.default_outcome.get(name, math.nan)
            if restarts:
                length = 0
            length += 1
            if unit_rows and length > 1:
                unit_rows[-1]["next"] = d["id"]
            closed = end or ("truncated" if late_end or length == at.horizon else None)
            unit_rows.append(
                {"id": d["id"], "unit": number, "next": None, "end": closed, "late_end": late_end} | metrics
            )
            if closed:
                length = 0
        result += unit_rows
    return result


@FEW
@given(logs(), st.sampled_from([None, 1, 2, 3]), st.integers(0, 10), st.integers(11, 45))
def test_a_build_gives_what_plain_python_gives(tables, tmp_path, rows, horizon, since, as_of):
    decisions, outcomes = rows
    at = problem(horizon=horizon, discount=0.5)
    window = (since * S, 18 * S, as_of * S)
    want = plain(at, decisions, outcomes, *window)
    files = log(tmp_path, decisions, outcomes)
    if not want:
        with pytest.raises(DataError, match="no decision enters"):
            build(tables, files, at, *window)
        return
    built = build(tables, files, at, *window, settings=timeline.Settings(lead_s=0))  # the window alone, as above
    batch = built.batch
    assert built.decision_ids.tolist() == [row["id"] for row in want]
    assert successors(built) == {row["id"]: row["next"] for row in want}
    assert batch.unit.tolist() == [row["unit"] for row in want]
    assert batch.reward.tolist() == [row["r"] for row in want]
    assert batch.discount.tolist() == [0.0 if row["end"] == "terminated" else 0.5 for row in want]
    if "c" in batch.metric_names:
        np.testing.assert_array_equal(batch.metrics[:, batch.metric_names.index("c")], [row["c"] for row in want])
    else:
        assert all(math.isnan(row["c"]) for row in want)
    counts = built.counts
    logged = sum(window[0] <= row["at"] < window[1] for row in decisions)
    assert counts.decisions + counts.waiting + counts.duplicates == logged
    assert counts.terminated == sum(row["end"] == "terminated" for row in want)
    assert counts.truncated == sum(row["end"] == "truncated" for row in want)
    assert counts.episodes == counts.terminated + counts.truncated + counts.open == len(batch.starts)
    assert counts.late_ends == sum(row["late_end"] for row in want)


@FEW
@given(logs(), st.integers(0, 10**9))
def test_the_order_of_rows_columns_and_files_does_not_matter(tables, tmp_path, rows, seed):
    decisions, outcomes = rows
    one = build(tables, log(tmp_path / "one", decisions, outcomes))
    other = build(tables, shuffled_log(tmp_path / str(seed), decisions, outcomes, seed))
    assert other.batch.digest == one.batch.digest
    assert other.decision_ids.tolist() == one.decision_ids.tolist()
    assert other.counts == one.counts


def test_sums_and_statistics_have_the_same_bits_in_any_order(tables, tmp_path):
    rng = np.random.default_rng(7)
    decisions = [decision(f"d{i:03d}", f"u{i % 9}", i, x=float(rng.lognormal(0, 9)), t=f"t{i % 5}") for i in range(200)]
    outcomes = [
        outcome(f"o{i}", f"d{i % 20:03d}", i % 20, r=float(rng.normal() * 10.0 ** (i % 17))) for i in range(400)
    ]
    digests = {build(tables, shuffled_log(tmp_path / str(i), decisions, outcomes, i)).batch.digest for i in range(5)}
    assert len(digests) == 1


# --- no peeking


def test_no_row_knows_what_came_after_its_wait(tables, tmp_path):
    decisions = [decision(f"d{i}", "u", i, x=float(i)) for i in range(5)]
    outcomes = [outcome(f"o{i}", f"d{i}", i + 10, r=float(i)) for i in range(5)]
    later = [
        *(outcome(f"late{i}", f"d{i}", i + 10.000001, r=100.0, surprise=1.0) for i in range(5)),
        outcome("o1", "d1", 12, r=50.0),
        outcome("next year", "d2", 10**6, "terminated", r=50.0),
    ]
    waiting = [decision("d9", "u", 11, x=1e6, new=3.0, text="z"), decision("d1", "u", 12, x=9.0)]
    now = 20 * S
    before = build(tables, log(tmp_path / "a", decisions, outcomes), as_of=now)
    after = build(tables, log(tmp_path / "b", decisions + waiting, outcomes + later), as_of=now)
    assert after.batch.digest == before.batch.digest
    assert after.batch.encoder == before.batch.encoder
    assert (after.counts.late, after.counts.waiting, after.counts.duplicates) == (5, 1, 1)


def test_earlier_rows_stay_when_the_log_grows(tables, tmp_path):
    decisions = [decision(f"d{i}", f"u{i % 3}", i, x=float(i * i % 7)) for i in range(30)]
    outcomes = [outcome(f"o{i}", f"d{i}", i + 1, "terminated" if i % 7 == 0 else None, r=float(i)) for i in range(30)]
    files = log(tmp_path, decisions, outcomes)
    early = build(tables, files, as_of=25 * S)
    late = build(tables, files, as_of=50 * S, encoder=early.batch.encoder)
    place = by_id(late, np.arange(len(late.batch)))
    rows = [place[id] for id in early.decision_ids]
    for name in ("context", "candidates", "action", "propensity", "reward", "metrics"):
        np.testing.assert_array_equal(getattr(late.batch, name)[rows], getattr(early.batch, name))
    seen = {id: after for id, after in successors(early).items() if after}
    assert seen.items() <= successors(late).items()


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_a_late_end_closes_the_episode_as_truncated_and_changes_nothing_else(tables, tmp_path, ends):
    decisions = [decision("d1", "u", 1, x=1.0), decision("d2", "u", 2, x=2.0), decision("d3", "u", 3, x=4.0)]
    outcomes = [outcome("o1", "d1", 1, r=1.0)]
    without = build(tables, log(tmp_path / "a", decisions, outcomes))
    late = [*outcomes, outcome("o2", "d2", 12.5, ends, r=9.0)]
    closed = build(tables, log(tmp_path / "b", decisions, late))
    assert successors(without) == {"d1": "d2", "d2": "d3", "d3": None}
    assert successors(closed) == {"d1": "d2", "d2": None, "d3": None}
    assert closed.batch.discount.tolist() == [1.0, 1.0, 1.0]
    for name in ("context", "candidates", "action", "propensity", "reward", "metrics"):
        assert getattr(closed.batch, name).tobytes() == getattr(without.batch, name).tobytes()
    assert (closed.counts.late_ends, closed.counts.truncated, closed.counts.open) == (1, 1, 1)
    unknown = build(tables, log(tmp_path / "b", decisions, late), as_of=round(12.4 * S), until=2 * S)
    assert unknown.counts.late == 0  # it had not happened yet


# --- outcomes


def test_an_outcome_may_come_before_its_decision_and_exactly_at_the_end_of_the_wait(tables, tmp_path):
    outcomes = [outcome("o1", "d1", 3, r=1.0), outcome("o2", "d1", 15, r=2.0), outcome("o3", "d1", 15.000001, r=4.0)]
    built = build(tables, log(tmp_path, [decision("d1", at_s=5)], outcomes))
    assert built.batch.reward.tolist() == [3.0]
    assert (built.counts.outcomes, built.counts.late) == (2, 1)


def test_the_same_outcome_twice_counts_once_and_the_first_counts(tables, tmp_path):
    outcomes = [outcome("o1", "d1", 2, r=5.0), outcome("o1", "d1", 1, r=1.0), outcome("o1", "d1", 1, r=1.0)]
    built = build(tables, log(tmp_path, [decision("d1")], outcomes))
    assert built.batch.reward.tolist() == [1.0]
    assert (built.counts.outcomes, built.counts.duplicate_outcomes) == (1, 2)


def test_terminated_wins_over_truncated(tables, tmp_path):
    outcomes = [outcome("o1", "d1", 1, "terminated"), outcome("o2", "d1", 2, "truncated", r=1.0)]
    built = build(tables, log(tmp_path, [decision("d1")], outcomes))
    assert built.batch.terminated.tolist() == [True]
    assert (built.counts.terminated, built.counts.truncated) == (1, 0)


def test_dangling_are_outcomes_in_the_window_without_any_decision_in_the_files(tables, tmp_path):
    decisions = [decision("early", at_s=1), decision("d", at_s=20), decision("waits", at_s=95)]
    outcomes = [
        outcome("o1", "early", 25, r=1.0),
        outcome("o2", "waits", 30, r=1.0),
        outcome("o3", "nobody", 30, r=1.0),
    ]
    outcomes += [outcome("o4", "nobody", 5, r=1.0), outcome("o5", "d", 21, r=1.0), outcome("o6", "nobody", 101, r=1.0)]
    built = build(tables, log(tmp_path, decisions, outcomes), since=10 * S, until=200 * S, as_of=100 * S)
    assert (built.counts.dangling, built.counts.outcomes, built.counts.waiting) == (1, 1, 1)


def test_metrics_add_up_and_what_did_not_come_is_the_default_or_nan(tables, tmp_path):
    decisions = [decision("d1", "u", 1), decision("d2", "u", 2)]
    outcomes = [
        outcome("o1", "d1", 1, r=1.0, c=None),
        outcome("o2", "d1", 2, r=2.0, c=4.0),
        outcome("o3", "d9", 1, z=1.0),
    ]
    built = build(tables, log(tmp_path, decisions, outcomes), problem(default_outcome={"r": -1.0, "extra": 5.0}))
    assert built.batch.metric_names == ("c", "extra", "r")  # z is of nobody
    np.testing.assert_array_equal(built.batch.metrics, [[4.0, 5.0, 3.0], [np.nan, 5.0, -1.0]])
    assert built.batch.reward.tolist() == [3.0, -1.0]


def test_a_row_without_a_reward_is_named(tables, tmp_path):
    files = log(
        tmp_path, [decision(f"d{i}", at_s=i) for i in range(9)], [outcome(f"o{i}", f"d{i}", i, r=1.0) for i in range(6)]
    )
    with pytest.raises(DataError, match=r"decision d6: .* 3 such rows of 9") as error:
        build(tables, files, problem(default_outcome={}))
    assert "default_outcome" in error.value.hint
    assert error.value.field == "reward"


def test_a_metric_that_nobody_logged_is_named(tables, tmp_path):
    files = log(tmp_path, [decision("d1")], [outcome("o1", "d1", clicks=1.0)])
    with pytest.raises(DataError, match="needs the metric 'click'") as error:
        build(tables, files, problem(reward="click", default_outcome={}))
    assert "did you mean clicks?" in error.value.hint


def test_an_end_of_an_unknown_kind_is_refused(tables, tmp_path):
    files = log(tmp_path, [decision("d1")], [outcome("o1", "d1", 0, "done", r=1.0)])
    with pytest.raises(DataError, match=r"decision d1: .* neither terminated nor truncated"):
        build(tables, files)


# --- order and episodes


def test_steps_order_where_every_decision_has_one(tables, tmp_path):
    decisions = [decision("c", "u", 1, step=2), decision("a", "u", 2, step=0), decision("b", "u", 3, step=1)]
    decisions += [decision("z", "v", 1, step=9), decision("y", "v", 1), decision("x", "v", 0, step=10)]
    built = build(tables, log(tmp_path, decisions))
    assert built.decision_ids.tolist() == ["a", "b", "c", "x", "y", "z"]


def test_a_log_without_steps_is_ordered_by_time_then_id(tables, tmp_path):
    rows = [decision("b", at_s=1), decision("a", at_s=1), decision("c", at_s=0)]
    for row in rows:
        del row["step"]
    assert build(tables, log(tmp_path, rows)).decision_ids.tolist() == ["c", "a", "b"]


def test_episodes_that_count_their_steps_anew_are_not_mixed(tables, tmp_path):
    decisions = [decision(f"e{e}s{s}", "u", 10 * e + s, step=s) for e in range(3) for s in range(4 - e)]
    outcomes = [outcome("end", "e0s3", 3, "terminated", r=1.0)]  # the second episode has no end, and none is needed
    built = build(tables, log(tmp_path, decisions, outcomes))
    assert successors(built) == {
        **{"e0s0": "e0s1", "e0s1": "e0s2", "e0s2": "e0s3", "e0s3": None},
        **{"e1s0": "e1s1", "e1s1": "e1s2", "e1s2": None, "e2s0": "e2s1", "e2s1": None},
    }
    assert (built.counts.terminated, built.counts.truncated, built.counts.open) == (1, 0, 2)


def test_the_horizon_cuts_an_episode_and_the_next_starts_its_count(tables, tmp_path):
    decisions = [decision(f"d{i}", "u", i) for i in range(8)]
    outcomes = [outcome("o", "d3", 3, "terminated", r=1.0), outcome("p", "d6", 6, "terminated", r=1.0)]
    built = build(tables, log(tmp_path, decisions, outcomes), problem(horizon=3))
    assert built.batch.next.tolist() == [1, 2, -1, -1, 5, 6, -1, -1]
    assert built.batch.discount.tolist() == [1, 1, 1, 0, 1, 1, 0, 1]
    assert (built.counts.terminated, built.counts.truncated, built.counts.open) == (2, 1, 1)


def games(lengths: list[int]) -> tuple[list[Row], list[Row]]:
    """Whole games: one unit a game, its last step terminated, and a reward of 1 + its number at every step."""
    decisions, outcomes = [], []
    for game, length in enumerate(lengths):
        for step in range(length):
            id = f"g{game}-{step}"
            decisions.append(decision(id, f"g{game}", 100 * game + step, step=step))
            ends = "terminated" if step == length - 1 else None
            outcomes.append(outcome(f"o{id}", id, 100 * game + step + 0.5, ends, r=1.0 + step))
    return decisions, outcomes


def check_games(built: Built, lengths: list[int]) -> None:
    batch = built.batch
    want = {f"g{g}-{s}": f"g{g}-{s + 1}" if s + 1 < n else None for g, n in enumerate(lengths) for s in range(n)}
    assert successors(built) == want  # 100% true successors, no self-loop
    seen = batch.next >= 0
    assert (batch.next[seen] == np.flatnonzero(seen) + 1).all()
    assert sorted(np.bincount(batch.episode)) == sorted(lengths)
    assert by_id(built, batch.terminated) == {id: after is None for id, after in want.items()}
    assert by_id(built, batch.reward) == {id: 1.0 + int(id.split("-")[1]) for id in want}


def test_episodes_of_unequal_length_keep_their_terminal_step_and_its_reward(tables, tmp_path):
    lengths = list(range(1, 41))
    built = build(tables, shuffled_log(tmp_path, *games(lengths), seed=1))
    check_games(built, lengths)
    assert built.counts.terminated == len(lengths) == built.counts.episodes == built.counts.units


def test_a_log_sampled_with_replacement_has_no_self_loops(tables, tmp_path):
    """ReAgent's quick start sampled its log with replacement: 36.6% self-loops, 40.3% true successors."""
    lengths = [1, 2, 5, 30]
    decisions, outcomes = games(lengths)
    rng = np.random.default_rng(3)
    again = [decisions[i] for i in rng.integers(len(decisions), size=len(decisions))]
    twice = [outcomes[i] for i in rng.integers(len(outcomes), size=len(outcomes))]
    built = build(tables, shuffled_log(tmp_path, decisions + again, outcomes + twice, seed=4))
    check_games(built, lengths)
    assert built.counts.duplicates == built.counts.duplicate_outcomes == len(decisions)


# --- discount


def test_the_discount_per_unit_of_time_is_a_power_of_the_gap(tables, tmp_path):
    decisions = [decision("a", "u", 0), decision("b", "u", 30), decision("c", "u", 150), decision("d", "u", 10**9)]
    built = build(tables, log(tmp_path, decisions), problem(discount=0.5, discount_unit_s=60.0))
    assert built.batch.discount[:2] == pytest.approx([0.5**0.5, 0.5**2])
    assert 0 < built.batch.discount[2] < 1e-300  # worth next to nothing, but not terminated
    assert built.batch.discount[3] == 0.5
    assert not built.batch.terminated.any()


def test_a_clock_that_went_back_between_steps_is_no_gap(tables, tmp_path):
    decisions = [decision("a", "u", 5, step=0), decision("b", "u", 3, step=1)]
    built = build(tables, log(tmp_path, decisions), problem(discount=0.5, discount_unit_s=1.0))
    assert built.batch.discount.tolist() == [1.0, 0.5]
