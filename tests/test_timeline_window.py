"""Which decisions enter a build, and which logs are refused."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from steersman import timeline
from steersman.core.decision import Numbers, Ranked
from steersman.core.errors import DataError
from steersman.timeline import once, sql
from test_timeline import build, games
from timeline_log import Files, S, decision, log, outcome, parquet, problem, shuffled_log

# --- what enters


def test_the_window_holds_its_first_instant_and_not_its_last(tables, tmp_path):
    files = log(tmp_path, [decision(f"d{i}", at_s=i) for i in range(6)])
    assert build(tables, files, since=2 * S, until=4 * S).decision_ids.tolist() == ["d2", "d3"]


def test_a_decision_enters_when_its_wait_is_over(tables, tmp_path):
    files = log(tmp_path, [decision("d1", at_s=1), decision("d2", at_s=1.000001)])
    built = build(tables, files, as_of=11 * S)
    assert built.decision_ids.tolist() == ["d1"]
    assert built.counts.waiting == 1


def test_a_decision_told_again_in_the_window_belongs_to_where_it_was_first(tables, tmp_path):
    files = log(tmp_path, [decision("d1", at_s=1), decision("d1", at_s=11), decision("d2", at_s=12)])
    built = build(tables, files, since=10 * S)
    assert built.decision_ids.tolist() == ["d2"]
    assert built.counts.duplicates == 1


def test_of_copies_that_differ_at_one_instant_the_same_one_is_kept(tables, tmp_path):
    copies = [decision("d1", at_s=1, x=x, t=t, action=a) for x in (None, 1.0, 2.0) for t in ("m", None) for a in "ba"]
    rows = [*copies, decision("d2", at_s=2, x=0.5, t="m")]
    digests = {build(tables, shuffled_log(tmp_path / str(i), rows, [], i)).batch.digest for i in range(6)}
    assert len(digests) == 1


def test_an_empty_window_says_who_waits(tables, tmp_path):
    files = log(tmp_path, [decision("d1", at_s=1)])
    with pytest.raises(DataError, match=r"no decision enters: of 1 logged .* 1 still wait") as error:
        build(tables, files, as_of=5 * S)
    assert "wait_s" in error.value.hint
    with pytest.raises(DataError, match="window"):
        build(tables, files, since=5, until=5)
    with pytest.raises(DataError, match="no decisions"):
        build(tables, Files([], []))


def test_a_wait_longer_than_time_itself_lets_nothing_enter(tables, tmp_path):
    with pytest.raises(DataError, match="still wait"):
        build(tables, log(tmp_path, [decision("d1", at_s=1)]), problem(wait_s=1e300))


# --- what is refused


@pytest.mark.parametrize("propensity", [0.0, -0.5, 1.5, None, math.nan, math.inf])
def test_a_propensity_that_is_no_probability_is_refused(tables, tmp_path, propensity):
    rows = [
        decision("d1"),
        decision("d2", at_s=1, propensity=propensity),
        decision("d3", at_s=2, propensity=propensity),
    ]
    with pytest.raises(DataError, match=r"decision d2: propensity .*2 such rows of 3"):
        build(tables, log(tmp_path, rows))


def test_a_log_without_propensities_is_refused_never_filled_with_one(tables, tmp_path):
    """Horizon renamed the column once and took 1 for every propensity from then on, silently."""
    rows = [
        {name: value for name, value in decision("d1").items() if name != "propensity"} | {"action_probability": 0.5}
    ]
    with pytest.raises(DataError, match="no column 'propensity'") as error:
        build(tables, log(tmp_path, rows))
    assert error.value.hint


def test_one_file_without_propensities_is_refused_too(tables, tmp_path):
    bare = {name: value for name, value in decision("d2").items() if name != "propensity"}
    files = Files([parquet(tmp_path / "a.parquet", [decision("d1")]), parquet(tmp_path / "b.parquet", [bare])], [])
    with pytest.raises(DataError, match="decision d2: propensity"):
        build(tables, files)


@pytest.mark.parametrize("column", ["id", "unit", "at"])
def test_a_row_without_its_key_is_refused(tables, tmp_path, column):
    with pytest.raises(DataError, match=f"1 of 2 rows have no {column}"):
        build(tables, log(tmp_path, [decision("d1"), decision("d2", at_s=1) | {column: None}]))


def test_a_column_of_the_wrong_kind_is_refused(tables, tmp_path):
    with pytest.raises(DataError, match="'action' is a number, must be a text"):
        build(tables, log(tmp_path, [decision("d1") | {"action": 1.0}]))


@pytest.mark.parametrize("actions", [Ranked(slots=2, names=("a", "b")), Numbers(low=(0.0,), high=(1.0,))])
def test_a_log_of_single_actions_is_none_of_another_kind(tables, tmp_path, actions):
    with pytest.raises(DataError, match=r"no decision of the log has (a ranked list|numbers) as its action"):
        build(tables, log(tmp_path, [decision("d1")]), problem(actions=actions))


@pytest.mark.parametrize("key", ["LENGTH({})::UBIGINT", "(HASH({}) % 3)::UBIGINT"])
def test_ids_that_share_a_key_stay_different(tables, tmp_path, monkeypatch, key):
    """Ids and units are told apart by hashes of their names. Here different names share one, and nothing changes."""
    rng = np.random.default_rng(3)
    decisions = [decision(f"d{i}" * (1 + i % 3), f"u{i % 7}", float(rng.integers(20)), x=float(i)) for i in range(60)]
    outcomes = [
        outcome(
            f"o{i % 90}",
            f"nobody{i}" if i % 9 == 0 else decisions[int(rng.integers(60))]["id"],
            float(rng.integers(30)),
            "terminated" if i % 11 == 0 else None,
            r=float(rng.normal()),
        )
        for i in range(120)
    ]
    files = log(tmp_path, [*decisions, *decisions[::6]], outcomes)
    window = {"since": 1 * S, "until": 9 * S, "as_of": 25 * S}
    want = build(tables, files, **window)
    monkeypatch.setattr(once, "KEY", key)
    monkeypatch.setattr(sql, "KEY", key)
    found = build(tables, files, **window)
    assert found.digest == want.digest
    assert found.counts == want.counts
    assert found.counts.duplicates > 0
    assert found.counts.duplicate_outcomes > 0
    assert found.counts.dangling > 0
    assert found.decision_ids.tolist() == want.decision_ids.tolist()


# --- parts


def test_a_part_is_whole_units_and_a_unit_stays_in_its_part_when_the_log_grows(tables, tmp_path):
    decisions, outcomes = games([3] * 40)
    few = build(tables, log(tmp_path / "few", decisions[:60], outcomes))
    many = build(tables, log(tmp_path / "many", decisions, outcomes))
    of_few, of_many = (timeline.parts(built.unit, built.draws, 0.2, 0.3) for built in (few, many))
    for built, rows in ((few, of_few), (many, of_many)):
        assert sorted(np.concatenate(rows)) == list(range(len(built)))
    for before, after in zip(of_few, of_many, strict=True):
        assert {few.decision_ids[row] for row in before} <= {many.decision_ids[row] for row in after}
    assert not set(many.unit[of_many[0]]) & set(many.unit[of_many[2]])


def test_the_draw_of_a_unit_is_a_hash_of_its_name(tables, tmp_path):
    built = build(tables, log(tmp_path, [decision("d1", unit="Ünit 7")]))
    digits = hashlib.md5("Ünit 7".encode()).hexdigest()[:8]
    assert built.draws.tolist() == [int(digits, 16) / 16**8]
