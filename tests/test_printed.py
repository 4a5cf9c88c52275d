"""The intervals that can be asked for: which estimates have them, against formulas, and whether they cover."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from steersman.core.errors import ConfigError, DataError, SupportError
from steersman.evaluate import Evaluation, Evidence, Paths, Settings, evaluate
from steersman.evaluate.anytime import errors_wide
from steersman.evaluate.estimators import ips, logged
from steersman.evaluate.evidence import weights
from steersman.evaluate.intervals import bernstein
from steersman.evaluate.printed import INTERVALS, Printer
from steersman.evaluate.quantiles import student_t
from steersman.worlds import tabular

WORLD = dataclasses.replace(tabular.bandit(6, 4, chi2=1.0, noise=0.5, seed=1), noise=None)
MOST = float((WORLD.target / WORLD.behavior).max())
DECLARED = {"reward_range": (0.0, 1.0), "max_weight": MOST}


def judged(interval: str, n: int = 1500, seed: int = 0, world: tabular.Bandit = WORLD, **changes) -> Evaluation:
    batch = world.sample(n, seed)
    settings = Settings(interval=interval, **(DECLARED if interval == "bernstein" else {}) | changes)
    return evaluate(batch, tabular.rows(batch, world.target), settings, seed)


def half_width(found) -> float:
    return (found.high - found.low) / 2


def test_every_interval_is_of_the_same_estimate_and_delta_is_what_is_printed_unasked():
    found = {name: judged(name) for name in INTERVALS}
    for one in found.values():
        assert one.headline.value == found["delta"].headline.value
        assert one.lift.value == found["delta"].lift.value
    batch = WORLD.sample(1500, 0)
    assert evaluate(batch, tabular.rows(batch, WORLD.target), Settings(), 0) == found["delta"]


def test_intervals_have_the_widths_of_their_formulas():
    """1,500 units: t and the bootstrap as delta; two-sided sequence over t by its formula; Bernstein far wider."""
    found = {name: judged(name) for name in INTERVALS}
    t = half_width(found["t"].lift)
    assert t == pytest.approx(student_t(0.975, 1499) * found["t"].lift_floor.error)
    assert half_width(found["delta"].lift) == pytest.approx(t, rel=0.05)
    assert half_width(found["bootstrap"].lift) == pytest.approx(t, rel=0.1)
    wide = float(errors_wide(1500, 0.95)) * found["t"].lift_floor.error
    assert half_width(found["sequence"].lift) == pytest.approx(wide, rel=0.05)
    assert half_width(found["bernstein"].lift) > 2 * wide
    said = {name: one.headline.at_least for name, one in found.items()}
    assert said == {name: name in ("bernstein", "sequence") for name in found}


def test_a_bernstein_interval_of_ips_is_that_of_weighted_rewards_within_their_declared_range():
    found = judged("bernstein", headline="ips")
    batch = WORLD.sample(1500, 0)
    weight = weights(batch, tabular.rows(batch, WORLD.target))
    low, high = bernstein(weight * batch.reward, 0.0, MOST, 0.95)
    assert (found.headline.low, found.headline.high) == pytest.approx((low, high))
    low, high = bernstein((weight - 1.0) * batch.reward, -1.0, MOST - 1.0, 0.95)
    assert (found.lift.low, found.lift.high) == pytest.approx((low, high))
    low, high = bernstein(batch.reward, 0.0, 1.0, 0.95)
    assert (found.baseline.low, found.baseline.high) == pytest.approx((low, high))


def test_what_has_no_such_interval_says_why_and_is_not_printed():
    found = judged("bernstein")
    assert {e.estimator for e in found.estimates} == {"ips", "dr", "mrdr"}
    why = {v.gate: v.reason for v in found.refused}
    assert "no known range" in why["snips"]
    found = judged("bootstrap")
    assert "ips-cv" not in {e.estimator for e in found.estimates}
    assert "no ratio of sums" in next(v for v in found.refused if v.gate == "ips-cv").reason
    with pytest.raises(SupportError, match="snips has no bernstein interval"):
        judged("bernstein", headline="snips")


def test_a_bernstein_interval_is_for_one_decision_a_unit_and_declared_ranges():
    batch = WORLD.sample(300, 0)
    target = tabular.rows(batch, WORLD.target)
    settings = Settings(interval="bernstein", **DECLARED)
    with pytest.raises(SupportError, match="one decision a unit"):
        evaluate(dataclasses.replace(batch, unit=np.arange(300) // 2), target, settings, 0)
    with pytest.raises(ConfigError, match="how large rewards and weights"):
        Settings(interval="bernstein", reward_range=(0.0, 1.0))
    with pytest.raises(DataError, match="above the declared max_weight"):
        evaluate(batch, target, Settings(interval="bernstein", reward_range=(0.0, 1.0), max_weight=MOST / 2), 0)
    with pytest.raises(DataError, match=r"outside of|outside the declared range"):
        evaluate(batch, target, Settings(interval="bernstein", reward_range=(0.0, 0.5), max_weight=MOST), 0)


def test_metrics_without_a_declared_range_have_no_bernstein_interval_and_say_so():
    batch = WORLD.sample(400, 0)
    batch = dataclasses.replace(batch, metrics=7.0 * batch.metrics, metric_names=("revenue",))
    found = evaluate(batch, tabular.rows(batch, WORLD.target), Settings(interval="bernstein", **DECLARED), 0)
    assert found.metrics == ()
    assert "only the range of the reward" in next(v for v in found.refused if v.gate == "metric revenue").reason


def test_sequences_have_all_but_bernstein_where_their_terms_are_sums():
    world = tabular.garnet(6, 3, horizon=6, stop=0.1, seed=3)
    behavior = tabular.softmax(np.random.default_rng(1).normal(size=world.mean.shape))
    batch = world.sample(150, behavior, 0)
    target = tabular.rows(batch, tabular.mixed(behavior, 0.3))
    for name in ("t", "sequence", "bootstrap"):
        found = evaluate(batch, target, Settings(interval=name), 0, horizon=6)
        assert found.headline.low < found.headline.value < found.headline.high
    told = {e.estimator for e in found.estimates}
    assert "drl" in told
    assert "wdr" not in told
    with pytest.raises(SupportError, match="one decision a unit"):
        evaluate(batch, target, Settings(interval="bernstein", reward_range=(-99.0, 99.0), max_weight=99.0), 0, 6)


COVERS = {
    "t": (0.92, 0.985),
    "bootstrap": (0.92, 0.985),
    "sequence": (0.95, 1.0),
    "bernstein": (0.95, 1.0),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("interval", COVERS)
def test_intervals_cover_as_they_say(interval):
    """500 logs of 600 decisions whose values are known: of the headline, the lift and every other that has one."""
    names = ("ips", "dr") if interval == "bernstein" else ("ips", "snips", "dr", "sndr")
    value, lift = WORLD.value(WORLD.target), WORLD.value(WORLD.target) - WORLD.value(WORLD.behavior)
    inside = dict.fromkeys((*names, "lift"), 0)
    for seed in range(500):
        found = judged(interval, n=600, seed=seed, estimators=names)
        for one in found.estimates:
            if one.metric == "reward":
                inside[one.estimator] += one.low <= value <= one.high
        inside["lift"] += found.lift.low <= lift <= found.lift.high
    low, high = COVERS[interval]
    shares = {name: count / 500 for name, count in inside.items()}
    assert all(low <= share <= high for share in shares.values()), shares


@pytest.mark.slow
def test_a_sequence_covers_at_all_of_40_looks_at_once():
    """400 logs that grow from 250 to 10,000 decisions: the lift of ips is in every interval of at least 95% of them."""
    lift = WORLD.value(WORLD.target) - WORLD.value(WORLD.behavior)
    left = 0
    for seed in range(400):
        batch = WORLD.sample(10_000, seed)
        weight, none = weights(batch, tabular.rows(batch, WORLD.target)), np.zeros(10_000)
        for n in range(250, 10_001, 250):
            one = np.arange(n)
            paths = Paths((one,), one, np.ones(n), one, n, np.full(n, -1))
            evidence = Evidence(paths, batch.reward[:n], weight[:n], none[:n], none[:n])
            terms = ips(evidence).minus_logged(logged(evidence))
            found = Printer(Settings(interval="sequence"), paths, seed).print(terms, "ips - logged", "reward")
            if not found.low <= lift <= found.high:
                left += 1
                break
    assert left / 400 <= 0.05
