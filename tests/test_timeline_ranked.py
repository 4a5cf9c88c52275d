"""Ranked lists through the timeline: every number by hand; the same bits from shards and, where it runs, from Spark."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import numpy as np
import pytest

import spark_here
from steersman import engine as engines
from steersman import timeline
from steersman.core.decision import Problem, Ranked
from steersman.core.errors import DataError
from timeline_log import FAR, Row, S, decision, log, outcome, problem, shuffled_log


def lists(**changes) -> Problem:
    plain = {
        "actions": Ranked(2, names=("a", "b", "c"), weights=(1.0, 0.5)),
        "reward": "r",
        "default_outcome": {"r": 0},
    }
    return problem(**{**plain, **changes})


def listed(id: str, *items: str, chances: list[float] | None = None, first: list[float] | None = None, **more) -> Row:
    chances = chances or [1 / 3, 1 / 2][: len(items)]
    row = decision(id, f"u{id}", propensity=float(np.prod(chances)), **more)
    return row | {
        "action": None, "actions": list(items), "propensities": chances, "candidates.id": ["c", "a", "b"],
        "first_propensities": first or [1 / 3] * 3,
    }  # fmt: skip


def about(id: str, of: str, item: str | None, at_s: float = 1, **metrics) -> Row:
    return outcome(id, of, at_s, **metrics) | {"item": item}


DECISIONS = [
    listed("1", "b", "a"),
    listed("2", "c", "b", at_s=1, chances=[0.5, 0.8], first=[0.5, 0.1, 0.4]),
    listed("3", "a", at_s=2, chances=[0.25], first=[0.5, 0.25, 0.25]),
]
OUTCOMES = [
    about("o1", "1", "a", r=1.0),
    about("o2", "1", "a", at_s=2, r=2.0),
    about("o3", "1", "b", r=4.0),
    about("o4", "2", "a", r=100.0),  # an item that the list did not have
    about("o5", "2", None, r=10.0),
    about("o6", "2", "b", at_s=60, r=100.0),  # too late
    about("o7", "3", "a", r=-1.0),
]


def build(tmp_path: Path, *, decisions=DECISIONS, outcomes=OUTCOMES, of: Problem | None = None) -> timeline.Built:
    engine = engines.open("duckdb", threads=1)
    try:
        return timeline.build(engine, of or lists(), log(tmp_path, decisions, outcomes), since=0, until=FAR, as_of=FAR)
    finally:
        engine.close()


def test_places_propensities_and_rewards_stand_slot_by_slot(tmp_path):
    built = build(tmp_path)
    batch = built.batch
    assert built.raw.ids[0].tolist() == ["a", "b", "c"]
    assert batch.action.tolist() == [[1, 0], [2, 1], [0, -1]]
    assert batch.slots.propensity == pytest.approx(np.array([[1 / 3, 1 / 2], [0.5, 0.8], [0.25, 1.0]]))
    assert batch.propensity == pytest.approx([1 / 6, 0.4, 0.25])
    # slot weights 1 and 0.5; the ten of list 2 are about the whole of it and stand, unweighted, at its last item
    assert batch.slots.reward.tolist() == [[4.0, 1.5], [0.0, 10.0], [-1.0, 0.0]]
    assert batch.reward.tolist() == [5.5, 10.0, -1.0]
    assert batch.slots.metrics[:, :, 0].tolist() == [[4.0, 3.0], [0.0, 10.0], [-1.0, 0.0]]
    assert batch.metrics[:, 0].tolist() == [7.0, 10.0, -1.0]
    # logged in the order c, a, b
    assert batch.slots.first.tolist() == [[1 / 3] * 3, [0.1, 0.4, 0.5], [0.25, 0.25, 0.5]]
    assert (built.counts.off_list, built.counts.late, built.counts.outcomes) == (1, 1, 6)


def test_what_a_rule_and_a_shaping_do_they_do_for_every_item(tmp_path):
    of = lists(combine={"r": "max"}, shaping={"a": 0.5}, default_outcome={"r": 2.0})
    batch = build(tmp_path, of=of).batch
    assert batch.slots.reward.tolist() == [[4.0, 0.5 * 2.5], [2.0, 0.5 * 2.0 + 10.0], [-0.5, 0.0]]


def test_the_order_of_rows_and_of_candidates_changes_no_bit(tmp_path):
    shuffled = [{**row, "candidates.id": ["a", "b", "c"], "first_propensities": [row["first_propensities"][i]
                 for i in (1, 2, 0)]} for row in reversed(DECISIONS)]  # fmt: skip
    one = build(tmp_path / "one")
    assert build(tmp_path / "two", decisions=shuffled, outcomes=OUTCOMES[::-1]).digest == one.digest
    other = [{**DECISIONS[0], "propensities": [1 / 2, 1 / 3]}, *DECISIONS[1:]]
    assert build(tmp_path / "three", decisions=other).digest != one.digest


def test_a_build_on_disk_and_one_in_parts_are_the_same(tmp_path):
    built = build(tmp_path)
    timeline.save(built, tmp_path / "built")
    again = timeline.load(tmp_path / "built")
    assert (again.digest, again.batch.digest) == (built.digest, built.batch.digest)
    engine = engines.open("duckdb", threads=1)
    (tmp_path / "parts").mkdir()
    parts = timeline.build_shards(
        engine, lists(), log(tmp_path / "log", DECISIONS, OUTCOMES), since=0, until=FAR, as_of=FAR,
        settings=timeline.Settings(shards=2), into=tmp_path / "parts",
    )  # fmt: skip
    engine.close()
    timeline.save(parts, tmp_path / "in-parts")
    batch = timeline.load(tmp_path / "in-parts").batch
    order = np.argsort(batch.reward)
    for name, array in built.batch.slots.arrays.items():
        assert np.array_equal(batch.slots.arrays[name][order], array[np.argsort(built.batch.reward)]), name


def test_without_probabilities_of_the_first_slot_there_are_none(tmp_path):
    bare = [{name: value for name, value in row.items() if name != "first_propensities"} for row in DECISIONS]
    assert build(tmp_path / "a", decisions=bare).batch.slots.first is None
    some = [{**DECISIONS[0], "first_propensities": None}, *DECISIONS[1:]]
    assert build(tmp_path / "b", decisions=some).batch.slots.first is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"propensities": None}, r"decision 1: .* only that of the whole list \(1 such rows of 3\)"),
        ({"propensities": [0.5]}, "decision 1: .* only that of the whole list"),
        ({"propensities": [0.5, 1.5]}, "decision 1: a propensity of an item is not in"),
        ({"propensities": [0.5, 0.5]}, "multiply to 0.25"),
        ({"actions": ["b", "d"]}, "decision 1: an item of its list is not among"),
        ({"actions": ["b", "a", "c"]}, "decision 1: its list is longer than the 2 slots"),
        ({"actions": None}, "decision 1: its action is no ranked list"),
    ],
)
def test_a_list_that_breaks_a_law_is_refused(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        build(tmp_path, decisions=[{**DECISIONS[0], **changed}, *DECISIONS[1:]])


def test_a_log_of_single_actions_is_no_log_of_lists(tmp_path):
    with pytest.raises(DataError, match="no decision of the log has a ranked list"):
        build(tmp_path, decisions=[decision("1")], outcomes=())


def test_a_metric_that_never_came_has_no_reward(tmp_path):
    with pytest.raises(DataError, match="needs the metric 'clicks'"):
        build(tmp_path, of=lists(reward="clicks", default_outcome={}))


def test_an_outcome_about_the_list_counts_for_the_reward_only_with_a_metric_of_it(tmp_path):
    told = [about("o1", "1", None, dwell=7.0), about("o2", "2", None, r=1.0)]
    batch = build(tmp_path, of=lists(reward="r + 1"), outcomes=told).batch
    assert batch.slots.reward.tolist() == [[1.0, 0.5], [1.0, 0.5 + 2.0], [1.0, 0.0]]
    dwell = batch.slots.metrics[:, :, batch.metric_names.index("dwell")]
    assert np.array_equal(dwell, [[np.nan, 7.0], [np.nan, np.nan], [np.nan, 0.0]], equal_nan=True)


def test_an_outcome_told_twice_with_another_item_is_the_same_one_in_any_order(tmp_path):
    told = [about("o", "1", "b", r=1.0), about("o", "1", "a", r=1.0)]
    one = build(tmp_path / "one", outcomes=told)
    assert one.batch.slots.reward[0].tolist() == [0.0, 0.5]  # of one instant the first by all that is read: a
    assert build(tmp_path / "two", outcomes=told[::-1]).digest == one.digest


def test_expected_actions_are_the_items_of_the_lists(tmp_path):
    engine = engines.open("duckdb", threads=1)
    files = log(tmp_path, DECISIONS, OUTCOMES)
    window = {"since": 0, "until": FAR, "as_of": FAR}
    timeline.build(engine, lists(), files, **window, settings=timeline.Settings(actions=("a", "b", "c")))
    with pytest.raises(DataError, match="decision 2: action 'c' is none of the 2 expected ones"):
        timeline.build(engine, lists(), files, **window, settings=timeline.Settings(actions=("a", "b")))
    engine.close()


MANY = problem(
    actions=Ranked(3, weights="dcg"), reward="r - 0.1 * q", default_outcome={"r": 0.25, "q": 1.0},
    combine={"r": "max", "q": "median"}, candidate={"f": "number"},
)  # fmt: skip


def many(seed: int = 1) -> tuple[list[Row], list[Row]]:
    """Lists of other candidates each time, some shorter than the slots; outcomes of all kinds."""
    rng = random.Random(seed)
    made, came = [], []
    for i in range(50):
        ids = rng.sample("abcdef", rng.randint(1, 5))
        items = rng.sample(ids, min(3, len(ids)))
        chances = [rng.uniform(0.1, 1.0) for _ in items]
        row = decision(
            f"d{i}", f"u{rng.randrange(20)}", i, features={id: {"f": rng.random()} for id in ids},
            propensity=float(np.prod(chances)),
        )  # fmt: skip
        made.append(row | {"action": None, "actions": items, "propensities": chances})
        for j in range(rng.randrange(6)):
            item = rng.choice([*"abcdef", None, *items])
            of = {name: float(rng.randrange(9)) if rng.random() < 0.8 else None for name in ("r", "q")}
            came.append(about(f"o{i}-{j}", f"d{i}", item, at_s=i + rng.choice([1, 9, 10, 11]), **of))
    return made, came


def slot_rewards(row: Row, outcomes: list[Row]) -> list[float]:
    """What MANY says of one list, by the words of its definition."""
    mine = [one for one in outcomes if one["decision"] == row["id"] and one["at"] <= row["at"] + 10 * S]

    def told(item: str | None, name: str) -> list[float]:
        return [one[f"metrics.{name}"] for one in mine if one["item"] == item and one[f"metrics.{name}"] is not None]

    def value(item: str | None) -> float:
        r, q = told(item, "r"), told(item, "q")
        return (max(r) if r else 0.25) - 0.1 * (statistics.median(q) if q else 1.0)

    found = [value(item) / np.log2(2 + slot) for slot, item in enumerate(row["actions"])]
    if told(None, "r") or told(None, "q"):
        found[-1] += value(None)
    return found + [0.0] * (3 - len(found))


def test_the_rewards_of_many_lists_are_those_of_the_definition(tmp_path):
    made, came = many()
    built = build(tmp_path, decisions=made, outcomes=came, of=MANY)
    of = {row["id"]: row for row in made}
    want = [slot_rewards(of[id], came) for id in built.decision_ids]
    assert built.batch.slots.reward == pytest.approx(np.array(want), abs=1e-12)
    assert built.batch.reward == pytest.approx(np.sum(want, axis=1), abs=1e-12)
    for row, id in enumerate(built.decision_ids):
        items = [built.raw.ids[row, place] for place in built.action[row] if place >= 0]
        assert items == of[id]["actions"]
    listed = {(id, item) for id in of for item in of[id]["actions"]}
    in_time = [one for one in came if one["at"] <= of[one["decision"]]["at"] + 10 * S]
    strange = [one for one in in_time if one["item"] and (one["decision"], one["item"]) not in listed]
    assert len(strange) == built.counts.off_list > 5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_the_log_changes_nothing(tmp_path, seed):
    made, came = many()
    one = build(tmp_path / "one", decisions=made, outcomes=came, of=MANY)
    engine = engines.open("duckdb")
    again = timeline.build(
        engine, MANY, shuffled_log(tmp_path / "two", made, came, seed), since=0, until=FAR, as_of=FAR
    )
    engine.close()
    assert (again.digest, again.batch.digest, again.counts) == (one.digest, one.batch.digest, one.counts)


@spark_here.needed
def test_spark_builds_the_same_parts_as_duckdb(tmp_path):
    files, settings = log(tmp_path / "log", *many()), timeline.Settings(shards=3)
    digests, engine_of = [], {"duckdb": lambda: engines.open("duckdb"), "spark": lambda: spark_here.opened(tmp_path)}
    for name, opened in engine_of.items():
        engine = opened()
        (tmp_path / name).mkdir()
        parts = timeline.build_shards(
            engine, MANY, files, since=0, until=FAR, as_of=FAR, settings=settings, into=tmp_path / name
        )
        engine.close()
        digests.append([part.digest for part in parts])
    assert digests[0] == digests[1]
    assert sum(map(len, parts)) == 50
