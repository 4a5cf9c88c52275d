"""Gates: each says yes, no, or that the log can not tell; with its number, its limit, and what to do next."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from steersman.core.errors import DataError
from steersman.evaluate import Evaluation, Gates, Settings, evaluate, judge
from steersman.evaluate.gates import lower_bound, more_decisions
from steersman.worlds import tabular

WORLD = tabular.bandit(6, 4, chi2=1.0, noise=0.5, seed=1)


def evaluation(n: int = 2000, seed: int = 0, target: np.ndarray | None = None, **changes: object) -> Evaluation:
    batch = WORLD.sample(n, seed)
    table = WORLD.target if target is None else target
    return evaluate(batch, tabular.rows(batch, table), Settings(**changes), seed)


def verdict(found: Evaluation, gate: str, gates: Gates | None = None):
    return next(v for v in judge(found, gates or Gates()) if v.gate == gate)


def test_a_better_policy_with_enough_decisions_passes_every_gate():
    found = evaluation(4000)
    verdicts = judge(found, Gates())
    assert [v.gate for v in verdicts] == ["lower bound", "mean weight", "ess", "largest weight"]
    assert {v.status for v in verdicts} == {"pass"}
    assert all(v.next == "" for v in verdicts)


def test_the_lower_bound_is_of_the_paired_lift_and_one_sided():
    found = evaluation()
    two_sided = found.lift.low
    assert two_sided < lower_bound(found, 0.95) < found.lift.value
    assert lower_bound(found, 0.975) == pytest.approx(two_sided)
    assert verdict(found, "lower bound").value == lower_bound(found, 0.95)


def test_a_target_equal_to_the_behavior_never_passes_on_rounding():
    for name in ("ips", "snips", "dr"):
        found = evaluation(target=WORLD.behavior, estimators=(name,), headline=name)
        answer = verdict(found, "lower bound")
        assert answer.status == "fail", name


def test_a_worse_policy_fails_and_is_not_told_to_log_more():
    worse = tabular.softmax(-3 * WORLD.mean)
    found = evaluation(target=worse)
    answer = verdict(found, "lower bound")
    assert answer.status == "fail"
    assert more_decisions(found, Gates()) is None
    assert "train another policy" in answer.next


def test_a_promising_policy_fails_with_about_how_many_more_decisions_settle_it():
    """The advice, followed, gives a bound at the margin: half the way there it does not."""
    slightly = 0.9 * WORLD.behavior + 0.1 * WORLD.target
    found = next(
        e for e in (evaluation(300, seed, slightly) for seed in range(50))
        if e.lift.value > 0 and 300 < (more_decisions(e, Gates()) or 0) < 20_000
    )  # fmt: skip
    answer = verdict(found, "lower bound")
    assert answer.status == "fail"
    assert re.fullmatch(r"about [\d,]+ more decisions would settle it", answer.next)
    needed = 300 + more_decisions(found, Gates())
    half_width = found.lift.value - lower_bound(found, 0.95)
    assert half_width * np.sqrt(300 / needed) == pytest.approx(found.lift.value, rel=0.02)


def test_a_margin_raises_the_bar():
    found = evaluation(4000)
    bound = lower_bound(found, 0.95)
    assert verdict(found, "lower bound", Gates(margin=bound - 0.001)).status == "pass"
    assert verdict(found, "lower bound", Gates(margin=bound + 0.001)).status == "fail"


def test_few_effective_units_are_not_identified():
    found = evaluation(150)
    answer = verdict(found, "ess")
    assert answer.status == "not identified"
    assert answer.value == found.headline.ess < answer.limit == 200
    assert "more decisions" in answer.next


def test_one_unit_with_most_of_the_weight_is_not_identified():
    batch = WORLD.sample(300, 0)
    arrays = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    propensity = batch.propensity.copy()
    propensity[5] = 1e-4
    batch = type(batch)(**arrays | {"propensity": propensity})
    found = evaluate(batch, tabular.rows(batch, WORLD.target), Settings(), 0)
    answer = verdict(found, "largest weight")
    assert answer.status == "not identified"
    assert answer.value > 0.5


def test_propensities_that_are_too_small_fail_the_mean_weight():
    batch = WORLD.sample(2000, 0)
    arrays = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    batch = type(batch)(**arrays | {"propensity": batch.propensity / 2})
    found = evaluate(batch, tabular.rows(batch, WORLD.target), Settings(), 0)
    answer = verdict(found, "mean weight")
    assert answer.status == "fail"
    assert answer.value == pytest.approx(2.0, abs=0.3)
    assert "propensities" in answer.next


def test_a_target_that_was_half_never_logged_fails_the_mean_weight():
    """The behavior never takes the last action; the target takes it half the time."""
    behavior = WORLD.behavior.copy()
    behavior[:, -1] = 1e-300
    behavior /= behavior.sum(axis=1, keepdims=True)
    batch = replace(WORLD, behavior=behavior).sample(2000, 0)
    target = behavior / 2
    target[:, -1] += 0.5
    found = evaluate(batch, tabular.rows(batch, target), Settings(), 0)
    answer = verdict(found, "mean weight")
    assert answer.status == "fail"
    assert answer.value == pytest.approx(0.5, abs=0.1)
    assert "never or hardly logged" in answer.next


def test_the_mean_weight_of_the_behavior_policy_is_1_exactly():
    answer = verdict(evaluation(target=WORLD.behavior), "mean weight")
    assert answer.status == "pass"
    assert answer.value == pytest.approx(1.0)


def sequences(open_share: float) -> Evaluation:
    world = tabular.garnet(6, 3, horizon=None, stop=0.3, seed=1)
    behavior = tabular.softmax(np.random.default_rng(1).normal(size=world.mean.shape))
    batch = world.sample(400, behavior, 0)
    ends = np.flatnonzero(batch.terminated)
    discount = batch.discount.copy()
    discount[ends[: int(open_share * len(ends))]] = 1.0
    arrays = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    batch = type(batch)(**arrays | {"discount": discount})
    return evaluate(batch, tabular.rows(batch, behavior), Settings(), 0)


def test_many_open_episodes_are_not_identified():
    few, many = sequences(0.02), sequences(0.2)
    assert verdict(few, "open episodes").status == "pass"
    answer = verdict(many, "open episodes")
    assert answer.status == "not identified"
    assert answer.value == pytest.approx(0.2)
    assert "80 of 400" in answer.reason


def test_where_visits_are_weighed_the_gates_ask_where_the_target_goes():
    assert [v.gate for v in judge(sequences(0.0), Gates())] == [
        "lower bound",
        "mean weight",
        "ess",
        "outside",
        "open episodes",
    ]


def test_where_steps_are_matched_the_bound_itself_counts_what_was_never_logged():
    found = sequences(0.0)
    found = msgspec.structs.replace(found, headline=msgspec.structs.replace(found.headline, estimator="stitched"))
    assert [v.gate for v in judge(found, Gates())] == ["lower bound", "mean weight", "ess", "open episodes"]


def test_a_bound_held_down_by_what_was_never_logged_asks_for_exploration():
    """The estimate is above the baseline; counted at its worst where the log never was, it is not."""
    found = sequences(0.0)
    floor = msgspec.structs.replace(found.lift_floor, center=-1.0)
    lift = msgspec.structs.replace(found.lift, value=0.5, low=-2.0, high=1.0)
    answer = verdict(msgspec.structs.replace(found, lift=lift, lift_floor=floor), "lower bound")
    assert answer.status == "fail"
    assert "log with more exploration" in answer.next


def test_a_target_that_goes_where_the_log_never_was_is_not_identified():
    world = tabular.garnet(6, 3, horizon=None, stop=0.3, seed=1)
    behavior = tabular.softmax(np.random.default_rng(1).normal(size=world.mean.shape))
    behavior[:, 2] = 1e-300
    behavior /= behavior.sum(axis=1, keepdims=True)
    batch = world.sample(400, behavior, 0)
    found = evaluate(batch, tabular.rows(batch, tabular.mixed(behavior, 0.9)), Settings(), 0)
    answer = verdict(found, "outside")
    assert answer.status == "not identified"
    assert 0.2 < answer.value < 0.4  # it takes action 2 in 30% of its steps


def test_every_verdict_has_numbers_and_every_no_a_next_step():
    found = [evaluation(150), evaluation(target=tabular.softmax(-3 * WORLD.mean)), sequences(0.2)]
    verdicts = [v for e in found for v in judge(e, Gates())]
    assert all(v.value is not None and v.limit is not None and v.reason for v in verdicts)
    assert all(bool(v.next) == (v.status != "pass") for v in verdicts)


def test_gates_refuse_limits_that_are_none():
    for bad in ({"level": 0.4}, {"margin": float("nan")}, {"min_ess": -1.0}, {"max_open_share": 1.5}):
        with pytest.raises(DataError, match=next(iter(bad))):
            Gates(**bad)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"margins": 0.1}, Gates)


def test_at_the_null_few_policies_are_promoted():
    """Targets whose true lift is 0: at most 9% of 200 one-sided 5% bounds are above 0."""
    world = tabular.bandit(6, 4, chi2=1.0, noise=0.5, seed=1)
    flat = type(world)(world.starts, np.full_like(world.mean, 0.5), world.behavior, world.target, world.noise)
    passed = 0
    for seed in range(200):
        batch = flat.sample(400, seed)
        found = evaluate(batch, tabular.rows(batch, flat.target), Settings(estimators=("dr",)), seed)
        passed += verdict(found, "lower bound").status == "pass"
    assert passed / 200 <= 0.09
