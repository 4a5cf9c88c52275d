"""Estimators of ranked lists against the exact value: the mean over every list there is, not over draws."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, DataError, SupportError
from steersman.core.policy import EpsilonGreedy, Policy
from steersman.core.ranking import Lists, Proportional
from steersman.core.slots import Slots
from steersman.evaluate import ESTIMATORS, Evaluation, Gates, Settings, evaluate, judge, lists, ranked
from steersman.evaluate.evidence import Evidence
from steersman.evaluate.lists import ListLog, additive_weights, behavior_lists
from steersman.worlds.rankings import Ranking, ranking

READINGS = ("independent", "cascade", "standard")
RIGHT = {
    "independent": {*(name for name, row in ESTIMATORS.items() if row.ranked and name != "dm")},
    "cascade": {"sips", "sn-sips", "list-dr", "sn-list-dr", "rips", "sn-rips", "cascade-dr", "sn-cascade-dr"},
    "standard": {"sips", "sn-sips", "list-dr", "sn-list-dr"},
}
"""Estimators that are right for each way of reading."""


def small(reading: str, **more) -> Ranking:
    return ranking(reading, **{"states": 1, "items": 5, "slots": 3, "seed": 3, "far": 0.7, "pull": 1.5, **more})


def enumerated(world: Ranking, evenly: bool = True, times: int = 1) -> tuple[Batch, np.ndarray]:
    """Every list of the one state, with the mean clicks as its reward; how likely the log takes each [P]."""
    every = np.tile(world.every_list, (times, 1))
    state = np.zeros(len(every), dtype=np.int64)
    behavior = np.zeros_like(world.behavior) if evenly else world.behavior
    propensity = world.lists(behavior, state).propensities(every)
    clicks = world.clicks(state, every)
    plain = world.sample(len(every), 0)
    first = np.exp(behavior) / np.exp(behavior).sum()
    slots = Slots(propensity, clicks, clicks[:, :, None], np.repeat(first, len(every), axis=0))
    joint = propensity.prod(axis=1)
    batch = replace(plain, action=every, propensity=joint, reward=clicks.sum(axis=1), metric_names=("c",),
                    metrics=clicks.sum(axis=1, keepdims=True), slots=slots)  # fmt: skip
    return batch, joint


def of(name: str, evaluation: Evaluation):
    return next(e for e in evaluation.estimates if e.estimator == name and e.metric == "reward")


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("evenly", [True, False])
def test_a_world_says_what_its_lists_are_worth(reading, evenly):
    world = small(reading)
    batch, joint = enumerated(world, evenly)
    assert joint.sum() == pytest.approx(1.0, abs=1e-12)
    scores = np.zeros_like(world.behavior) if evenly else world.behavior
    assert world.value(scores) == pytest.approx(float(joint @ batch.reward), abs=1e-12)
    drawn = world.sample(40_000, 1)
    error = drawn.reward.std() / 200
    assert drawn.reward.mean() == pytest.approx(world.value(world.behavior), abs=4 * error)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", ["sips", "rips", "iips", "pi"])
def test_the_mean_over_all_lists_is_the_value_where_the_assumption_holds_and_only_there(reading, name):
    world = small(reading)
    batch, _ = enumerated(world, times=20)
    policy = world.policy(world.target)
    found = evaluate(batch, policy.lists(batch), Settings(estimators=(name,), folds=2), 0)
    away = abs(of(name, found).value - world.value(world.target))
    assert away < 1e-10 if name in RIGHT[reading] else away > 0.005


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", ["list-dr", "cascade-dr"])
@pytest.mark.parametrize("evenly", [True, False])
def test_a_wrong_model_changes_no_expectation(reading, name, evenly):
    world = small(reading)
    batch, joint = enumerated(world, evenly)
    log = ListLog.of(batch, world.policy(world.target).lists(batch))
    rng, n = np.random.default_rng(5), len(batch)
    tables: dict[tuple[int, ...], np.ndarray] = {}
    q, v = np.zeros((n, 3)), np.zeros((n, 3))
    for row, items in enumerate(batch.action):
        for slot, item in enumerate(items):
            table = tables.setdefault(tuple(items[:slot].tolist()), rng.normal(size=5))
            q[row, slot] = table[item]
            v[row, slot] = table @ log.chances[row, slot]
    flat = Evidence(log.paths, batch.slots.reward.ravel(), log.weight.ravel(), q.ravel(), v.ravel())
    if name == "list-dr":
        whole = ranked.last_weight(flat) * ranked._surprise(flat) + ranked._expected(flat)
    else:
        whole = flat.paths.per_episode(flat.before * flat.v + flat.cumulative * (flat.reward - flat.q))
    away = abs(float(joint @ whole) - world.value(world.target))
    assert away < 1e-10 if name in RIGHT[reading] else away > 0.005


@pytest.mark.parametrize("evenly", [True, False])
@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_pseudo_inverse_weights_carry_any_additive_reward_from_the_log_to_the_target(slots, evenly):
    world = small("independent", slots=slots)
    batch, joint = enumerated(world, evenly)
    target = world.policy(world.target).lists(batch)
    weight = additive_weights(batch.action, behavior_lists(batch, batch.slots), target.marginals())
    chance = target.propensities(batch.action).prod(axis=1)
    worth = np.random.default_rng(1).normal(size=(slots, 5))
    reward = worth[np.arange(slots), batch.action].sum(axis=1)
    assert float(joint @ (weight * reward)) == pytest.approx(float(chance @ reward), abs=1e-9)
    assert float(joint @ weight) == pytest.approx(1.0, abs=1e-9)


def test_pseudo_inverse_of_the_logging_policy_weighs_every_list_alike():
    batch, _ = enumerated(small("independent"), evenly=False)
    behavior = behavior_lists(batch, batch.slots)
    assert additive_weights(batch.action, behavior, behavior.marginals()) == pytest.approx(1.0, abs=1e-9)


def test_weights_of_rows_with_other_candidates_and_policies_are_each_rows_own():
    rng = np.random.default_rng(2)
    mask = np.array([[True] * 4, [True, True, True, False], [True, True, False, False]])[[0, 1, 2, 1, 0]]
    first = np.where(mask, rng.random(mask.shape), 0.0)
    first /= first.sum(axis=1, keepdims=True)
    behavior = Lists(Proportional(), first, mask, 3)
    action, _ = behavior.draw(rng.random((5, 3)))
    scores = rng.random(mask.shape) * mask
    wanted = Lists(Proportional(), scores, mask, 3).marginals()
    together = additive_weights(action, behavior, wanted)
    alone = [additive_weights(action[i : i + 1], behavior.take(np.array([i])), wanted[i : i + 1])[0] for i in range(5)]
    assert together == pytest.approx(alone, abs=1e-9)


def test_uniform_logging_is_seen_by_the_propensities_of_its_items_alone():
    batch, _ = enumerated(small("independent"), times=20)
    bare = replace(batch, slots=replace(batch.slots, first=None))
    assert behavior_lists(bare, bare.slots).scores == pytest.approx(0.2)
    target = small("independent").policy(small("independent").target).lists(batch)
    assert of("pi", evaluate(bare, target, Settings(), 0)) == of("pi", evaluate(batch, target, Settings(), 0))


def test_what_the_log_can_not_tell_is_refused_with_the_reason():
    world = small("independent")
    batch = world.sample(1000, 0)
    target = world.policy(world.target).lists(batch)
    untold = replace(batch, slots=replace(batch.slots, first=None))
    found = {one.gate: one.reason for one in evaluate(untold, target, Settings(), 0).refused}
    assert found.keys() == {"iips", "sn-iips", "pi", "sn-pi"}
    assert "does not tell how likely" in found["pi"]
    drawn = world.sample(1000, 0)
    greedy = Policy(world.encoder, world.policy(world.behavior).scorer, EpsilonGreedy(0.5)).lists(drawn)
    action, chance = greedy.draw(np.random.default_rng(0).random((1000, 3)))
    first = greedy.conditionals(action)[:, 0]
    clicks = drawn.slots.reward
    other = replace(drawn, action=action, propensity=chance.prod(axis=1), slots=Slots(chance, clicks,
                    clicks[:, :, None], first))  # fmt: skip
    target = world.policy(world.behavior).lists(other)
    found = {one.gate: one.reason for one in evaluate(other, target, Settings(), 0).refused}
    assert "did not keep the proportions" in found["iips"]


def test_a_target_that_shows_what_was_never_shown_there_has_no_pseudo_inverse():
    mask = np.ones((1, 3), dtype=bool)
    behavior = Lists(Proportional(), np.array([[0.5, 0.5, 0.0]]), mask, 1)
    wanted = Lists(Proportional(), np.array([[0.4, 0.4, 0.2]]), mask, 1).marginals()
    with pytest.raises(SupportError, match="never shows it"):
        additive_weights(np.array([[0]]), behavior, wanted)


def test_a_log_of_lists_and_a_target_of_single_actions_do_not_meet():
    world = small("independent")
    batch = world.sample(50, 0)
    with pytest.raises(DataError, match="judge them by the lists"):
        evaluate(batch, np.full((50, 5), 0.2), Settings(), 0)
    with pytest.raises(DataError, match="fills 2 slots"):
        target = world.policy(world.target).lists(batch)
        evaluate(batch, replace(target, slots=2), Settings(), 0)
    following = replace(batch, next=np.where(np.arange(50) % 2, -1, np.arange(50) + 1),
                        discount=np.where(np.arange(50) % 2, 0.0, 1.0), unit=np.arange(50) // 2)  # fmt: skip
    with pytest.raises(DataError, match="sequences of ranked lists"):
        evaluate(following, world.policy(world.target).lists(following), Settings(), 0)


def test_shorter_lists_count_with_what_they_have():
    """Of two candidates in three slots there are two lists; the third slot never has an item."""
    n = 400
    world = small("independent", items=2, slots=2)
    batch = world.sample(n, 0)
    wide = np.full((n, 1), -1)
    slots = batch.slots
    longer = Slots(
        np.concatenate([slots.propensity, np.ones((n, 1))], axis=1),
        np.concatenate([slots.reward, np.zeros((n, 1))], axis=1),
        np.concatenate([slots.metrics, np.zeros((n, 1, 1))], axis=1),
        slots.first,
    )
    three = replace(batch, action=np.concatenate([batch.action, wide], axis=1), slots=longer)
    policy = world.policy(world.target)
    one = evaluate(batch, policy.lists(batch), Settings(), 0)
    other = evaluate(three, policy.lists(three), Settings(), 0)
    for a, b in zip(one.estimates, other.estimates, strict=True):
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-9)


def test_equal_columns_of_units_are_one_cluster():
    world = small("cascade")
    batch = world.sample(600, 0)
    grouped = replace(batch, unit=np.arange(600) // 3)
    found = evaluate(grouped, world.policy(world.target).lists(grouped), Settings(), 0)
    assert {one.n for one in found.estimates} == {200}


def test_many_candidates_are_refused_where_lists_are_added_up_and_judged_where_not(monkeypatch):
    world = small("independent", states=4)
    batch = world.sample(500, 0)
    monkeypatch.setattr(lists, "MAX_CELLS", 1000)
    found = evaluate(batch, world.policy(world.target).lists(batch), Settings(), 0)
    assert {one.gate for one in found.refused} == {"pi", "sn-pi"}
    assert all("too many to add up" in one.reason for one in found.refused)


def test_the_headline_is_right_however_people_read_and_no_gate_may_rest_on_what_is_not():
    """A cascade where a good item draws clicks from those below it: judged slot by slot, the worse policy wins."""
    for name in ("iips", "sn-iips", "pi", "sn-pi", "dm"):
        with pytest.raises(ConfigError, match="can not be the headline"):
            Settings(headline=name)
    world = trap()
    truth, logged = world.value(world.target), world.value(world.behavior)
    assert truth < logged - 0.05
    batch = world.sample(20_000, 0)
    found = evaluate(batch, world.policy(world.target).lists(batch), Settings(), 0)
    assert of("iips", found).low > logged  # it would be promoted
    assert found.headline.estimator == "list-dr"
    assert found.headline.low <= truth <= found.headline.high
    assert found.lift.high < 0
    verdict = judge(found, Gates())[0]
    assert (verdict.gate, verdict.status) == ("lower bound", "fail")


def trap() -> Ranking:
    """Item 0 is liked most and takes all clicks from what stands below it; the target puts it first."""
    appeal = np.array([[0.5, 0.2, 0.2, 0.2]])
    pull = np.zeros((4, 4))
    pull[1:, 0] = -4.0
    score = np.array([[2.5, 0.0, 0.0, 0.0]])
    world = small("cascade", items=4)
    return replace(world, appeal=appeal, slot=np.array([0.0, 0.3, 0.6]), pull=pull, behavior=-0.5 * score, target=score)


@functools.cache
def replications(reading: str, n: int, times: int) -> dict[str, np.ndarray]:
    """Estimator -> value, low, high of each log; `lift` too."""
    world = ranking(reading)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(times):
        batch = world.sample(n, seed)
        evaluation = evaluate(batch, world.policy(world.target).lists(batch), Settings(), seed)
        for one in evaluation.estimates:
            if one.metric == "reward":
                found.setdefault(one.estimator, []).append((one.value, one.low, one.high))
        found.setdefault("lift", []).append((evaluation.lift.value, evaluation.lift.low, evaluation.lift.high))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # whoever comes first makes the logs of all
@pytest.mark.parametrize(
    ("reading", "name"), [(reading, name) for reading in READINGS for name in sorted({*RIGHT[reading], "lift"})]
)
def test_nominal_95_covers_where_the_assumption_holds(reading, name):
    world = ranking(reading)
    truth = world.value(world.target)
    if name == "lift":
        truth -= world.value(world.behavior)
    value, low, high = replications(reading, 2000, 500)[name].T
    assert 0.92 <= np.mean((low <= truth) & (truth <= high)) <= 0.985
    assert np.mean(high - low) / (2 * 1.96) == pytest.approx(value.std(ddof=1), rel=0.1)
    assert value.mean() == pytest.approx(truth, abs=4 * value.std(ddof=1) / np.sqrt(len(value)))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # whoever comes first makes the logs of all
@pytest.mark.parametrize("reading", READINGS)
def test_the_doubly_robust_list_beats_its_weights_alone(reading):
    found = replications(reading, 2000, 500)
    spread = {name: values[:, 0].std(ddof=1) for name, values in found.items()}
    assert spread["list-dr"] < 0.75 * spread["sips"]
    if reading != "standard":  # its model reads from the top
        assert spread["list-dr"] < spread["sn-sips"]
    assert spread["cascade-dr"] < spread["list-dr"]
    assert spread["cascade-dr"] < spread["rips"]
