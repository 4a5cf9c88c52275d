"""Ratios to the logged policy: 1 is parity, above 1 is better, for costs too; and no ratio to what may be 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from steersman.core.errors import SupportError
from steersman.evaluate import Settings, evaluate
from steersman.evaluate.intervals import Halves, Influence, Terms, relative
from steersman.worlds import tabular

SETTINGS = Settings(estimators=("ips", "snips"), headline="snips")
WORLD = tabular.world_a(0)


def ratios(world: tabular.Bandit, n: int, seed: int) -> dict[str, object]:
    batch = world.sample(n, seed)
    found = evaluate(batch, tabular.rows(batch, world.target), SETTINGS, seed)
    return {one.estimator: one for one in found.ratios}


def shifted(by: float) -> tabular.Bandit:
    return replace(WORLD, mean=WORLD.mean + by)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("by", [pytest.param(0.0, marks=SLOW), pytest.param(5.0, marks=SLOW), -5.0])
def test_ratios_of_gains_and_of_costs_cover_the_true_ratio(by: float):
    """200 logs of 1,000 decisions; the mean reward is about 0.5, 5.5 and -4.5."""
    world = shifted(by)
    logged, value = world.value(world.behavior), world.value(world.target)
    truth = 1 + (value - logged) / abs(logged)
    assert truth > 1
    inside = {"ips / logged": 0, "snips / logged": 0}
    for seed in range(200):
        found = ratios(world, 1000, seed)
        for name in inside:
            inside[name] += found[name].low <= truth <= found[name].high
    assert 0.92 <= inside["snips / logged"] / 200 <= 0.985
    assert 0.92 <= inside["ips / logged"] / 200 <= 0.985


def test_the_interval_is_that_of_the_delta_method_with_both_sides_on_the_same_units():
    batch = WORLD.sample(3000, 1)
    target = tabular.rows(batch, WORLD.target)
    top, bottom = target[np.arange(3000), batch.action] / batch.propensity * batch.reward, batch.reward
    value = top.mean() / bottom.mean()
    delta = ((top - value * bottom) / bottom.mean()).std(ddof=1) / np.sqrt(3000)
    side = Influence(top.mean(), top - top.mean()).over_logged(Influence(bottom.mean(), bottom - bottom.mean()))
    assert side.error == pytest.approx(delta, rel=1e-3)
    frozen = top.std(ddof=1) / bottom.mean() / np.sqrt(3000)
    assert side.error != pytest.approx(frozen, rel=0.01)
    [ips] = [one for one in evaluate(batch, target, SETTINGS, 0).ratios if one.estimator == "ips / logged"]
    assert ips.value == pytest.approx(value)
    assert ips.high - ips.low == pytest.approx(2 * 1.96 * delta, rel=0.1)  # a little wider: few weights, and skewed


def test_a_policy_that_is_the_log_is_at_parity_without_any_error():
    for by in (0.0, -5.0):
        batch = shifted(by).sample(500, 0)
        for one in evaluate(batch, tabular.rows(batch, WORLD.behavior), SETTINGS, 0).ratios:
            assert (one.value, one.low, one.high) == (pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0))


def test_a_reward_that_may_well_be_0_has_no_ratio_and_says_why():
    """A mean reward near 0 made Horizon's ratio 0 wherever it was below 1e-6, so for every cost."""
    around = shifted(-WORLD.value(WORLD.behavior))
    batch = around.sample(2000, 0)
    found = evaluate(batch, tabular.rows(batch, around.target), SETTINGS, 0)
    assert found.ratios == ()
    [why] = [one for one in found.refused if one.gate == "ratio of reward"]
    assert why.status == "not identified"
    assert "0 is among what it may be" in why.reason
    assert "lift" in why.next


def test_a_cost_is_never_0_and_better_is_above_1():
    found = ratios(shifted(-5.0), 2000, 0)
    logged, value = (shifted(-5.0).value(one) for one in (WORLD.behavior, WORLD.target))
    assert value > logged
    for one in found.values():
        assert one.value == pytest.approx(2 - value / logged, abs=0.03)


def test_metrics_have_ratios_of_their_own():
    batch = WORLD.sample(1000, 0)
    batch = replace(batch, metrics=np.stack([batch.reward, -3 - batch.reward], axis=1), metric_names=("a", "cost"))
    found = evaluate(batch, tabular.rows(batch, WORLD.target), SETTINGS, 0)
    by_metric = {one.metric: one for one in found.ratios if one.estimator == "snips / logged"}
    assert by_metric["a"].value == pytest.approx(by_metric["reward"].value)
    assert by_metric["cost"].value < 1  # more of the reward is a higher cost


def test_halves_move_numerator_and_denominator_together():
    logged = Influence(10.0, np.array([1.0, -1.0, 2.0, -2.0]))
    moved = np.array([0.5, -0.5, 1.0])
    side = Halves(12.0, np.column_stack([moved, moved]), moved * 10 / 12, 50.0)
    assert side.over_logged(logged).moved == pytest.approx(np.zeros((3, 2)))
    assert side.over_logged(logged).center == pytest.approx(1.2)


def test_a_logged_value_that_one_unit_decides_has_no_ratio():
    pull = np.zeros(40)
    pull[0] = 39.0  # left out, 1.0 - 39 / 39 is 0
    value = Influence(2.0, np.zeros(40))
    terms = Terms(2.0, value, value, 40, 10.0, None)
    with pytest.raises(SupportError, match=r"nothing is a multiple of 0|rests on few of its units"):
        terms.over_logged(Influence(1.0, pull), 0.95)


def test_relative_is_the_quotient_of_gains_and_mirrors_it_for_costs():
    assert float(relative(3.0, 2.0)) == 1.5
    assert float(relative(-1.0, -2.0)) == 1.5
    assert float(relative(-3.0, 2.0)) == -1.5
    assert float(relative(1.0, -2.0)) == 2.5
