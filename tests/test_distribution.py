"""The distribution of returns: by hand, against leaving units out, and against what the target returns when it acts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.report import Distribution, Estimate
from steersman.evaluate import Evidence, Paths, Settings, evaluate
from steersman.evaluate.distribution import QUANTILES, TAILS, Curve, distribution, worst
from steersman.evaluate.evidence import weights
from steersman.worlds import tabular


def single(unit: list[int]) -> Paths:
    """Paths of single decisions of the given units."""
    n = len(unit)
    units, cluster = np.unique(unit, return_inverse=True)
    return Paths((np.arange(n),), np.arange(n), np.ones(n), cluster, len(units), np.full(n, -1))


def curve(returned: list[float], weight: list[float], unit: list[int] | None = None) -> Curve:
    paths = single(list(range(len(returned))) if unit is None else unit)
    return Curve.of(paths, np.array(returned), np.array(weight), 0.95, paths.clusters)


def test_shares_and_quantiles_by_hand():
    """Weights 1, 2, 1 of 4 in all: F is 0.25 at -1, 0.75 at 0, 1 at 2."""
    found = curve([2.0, 0.0, -1.0], [1.0, 2.0, 1.0])
    assert found.at.tolist() == [-1.0, 0.0, 2.0]
    assert found.value.tolist() == [0.25, 0.75, 1.0]
    assert found.share(-1.0)[0] == 0.25
    assert found.share(1.9)[0] == 0.75


def test_the_worst_part_is_the_mean_of_the_lowest_returns():
    """The worst half of 0, 1, 2, 3 with weights 1, 1, 2, 4: by weight 0, 1, and half of the weight of 4 from 2."""
    returned, weight = np.array([3.0, 2.0, 1.0, 0.0]), np.array([4.0, 2.0, 1.0, 1.0])
    paths = single([0, 1, 2, 3])
    terms, ess = worst(paths, returned, weight, 0.5, curve(list(returned), list(weight)))
    assert terms.value == pytest.approx((0.0 * 1 + 1.0 * 1 + 2.0 * 2) / 4)
    assert ess == pytest.approx((1 + 1 + 2) ** 2 / (1 + 1 + 4))
    terms, _ = worst(paths, returned, np.ones(4), 0.25, curve(list(returned), [1.0] * 4))
    assert terms.value == pytest.approx(0.0)


@given(
    rows=st.lists(st.tuples(st.integers(-5, 5), st.floats(0.01, 100.0), st.integers(0, 9)), min_size=12, max_size=60)
)
@settings(max_examples=60, deadline=None)
def test_the_curve_is_a_distribution_and_its_band_one_too(rows):
    returned, weight, unit = (list(column) for column in zip(*rows, strict=True))
    if len(set(unit)) < 3:
        return
    found = curve([float(x) for x in returned], weight, unit)
    for side in (found.low, found.value, found.high):
        assert (np.diff(side) >= 0).all()
        assert side.min() >= 0
        assert side.max() <= 1
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()
    assert found.value[-1] == pytest.approx(1.0)


def test_the_error_of_a_share_is_what_leaving_units_out_tells():
    """300 episodes of 40 units: the effective number of Wilson's interval comes from the jackknife over units."""
    rng = np.random.default_rng(0)
    unit, returned, weight = rng.integers(0, 40, 300), rng.normal(size=300), rng.exponential(size=300)
    found = curve(list(returned), list(weight), list(unit))
    below = returned <= 0.1
    share, low, high = found.share(0.1)
    left = [weight[keep] @ below[keep] / weight[keep].sum() for keep in (unit != u for u in range(40))]
    error = math.sqrt(39 / 40 * np.sum((np.array(left) - share) ** 2))
    assert share == pytest.approx(weight @ below / weight.sum())
    t = 2.02  # of some 35 effective units
    number = share * (1 - share) / error**2
    half = t / (1 + t**2 / number) * math.sqrt(share * (1 - share) / number + t**2 / (4 * number**2))
    assert high - low == pytest.approx(2 * half, rel=0.02)


def test_a_few_units_say_nothing_of_the_far_quantiles():
    """Of 20 returns the largest is no bound for p95: it lies below it one time in three."""
    found = curve([float(x) for x in range(20)], [1.0] * 20)
    assert found.quantile(0.5) is not None
    assert found.quantile(0.95) is None
    assert found.quantile(0.05) is None
    assert curve([float(x) for x in range(200)], [1.0] * 200).quantile(0.95) is not None


def test_of_equal_returns_everything_is_that_return():
    found = curve([3.0] * 100, [1.0] * 100)
    assert found.quantile(0.5) == (3.0, 3.0, 3.0)
    terms, _ = worst(single(list(range(100))), np.full(100, 3.0), np.ones(100), 0.1, found)
    assert (terms.value, terms.low.error) == (3.0, 0.0)


# as part of an evaluation


WORLD = tabular.garnet(6, 3, horizon=10, stop=0.1, seed=3)
SCORES = np.random.default_rng(1).normal(size=WORLD.mean.shape)
BEHAVIOR = tabular.softmax(SCORES)


def target(noise: float) -> np.ndarray:
    return tabular.softmax(SCORES + noise * np.random.default_rng(2).normal(size=SCORES.shape))


def of(found: Distribution, estimator: str) -> dict[str, Estimate]:
    return {e.metric: e for e in found.estimates if e.estimator == estimator}


def test_of_the_behavior_policy_it_is_the_logged_distribution():
    batch = WORLD.sample(400, BEHAVIOR, 0)
    found = evaluate(batch, tabular.rows(batch, BEHAVIOR), Settings(), 0, horizon=10).distribution
    ours, logged = of(found, "sn-tis"), of(found, "logged")
    assert ours.keys() == logged.keys()
    for metric, estimate in ours.items():
        assert estimate.value == pytest.approx(logged[metric].value, abs=1e-9), metric
    returned = np.bincount(batch.episode, batch.reward)
    assert logged["return p50"].value == pytest.approx(np.quantile(returned, 0.5, method="inverted_cdf"))
    assert logged["return cvar 25%"].value == pytest.approx(np.sort(returned)[:100].mean())


def test_single_decisions_have_one_too():
    world = tabular.bandit(6, 4, chi2=1.0, noise=0.3, seed=1)
    batch = world.sample(2000, 0)
    found = evaluate(batch, tabular.rows(batch, world.target), Settings(), 0).distribution
    median = of(found, "snips")["return p50"]
    again = world.sample(100_000, 1)
    again_weight = weights(again, tabular.rows(again, world.target))
    order = np.argsort(again.reward)
    truth = again.reward[order][np.searchsorted(np.cumsum(again_weight[order]), again_weight.sum() / 2)]
    assert median.low <= truth <= median.high


def test_where_products_of_weights_are_silent_only_the_log_is_told():
    world, behavior, far = tabular.contest(40, uniform=0.85)
    batch = world.sample(200, behavior, 0, truncate=True)
    found = evaluate(batch, tabular.rows(batch, far), Settings(), 0, horizon=40).distribution
    assert {e.estimator for e in found.estimates} == {"logged"}
    assert [(verdict.gate, verdict.status) for verdict in found.refused] == [("return", "not identified")]
    assert "effective" in found.refused[0].reason


def truths(policy: np.ndarray) -> np.ndarray:
    """Sorted returns of 200,000 episodes of the policy itself."""
    batch = WORLD.sample(200_000, policy, 99)
    return np.sort(np.bincount(batch.episode, batch.reward))


def true_value(metric: str, returned: np.ndarray) -> float:
    if "<=" in metric:
        return float(np.searchsorted(returned, float(metric.rsplit(maxsplit=1)[-1]), side="right")) / len(returned)
    if "cvar" in metric:
        return float(returned[: int(len(returned) * float(metric.rsplit(maxsplit=1)[-1][:-1]) / 100)].mean())
    return float(np.quantile(returned, float(metric.split("p")[1]) / 100))


def covered(noise: float, episodes: int, logs: int) -> dict[str, float]:
    """Share of intervals that hold what the target returns when it acts; the shares at deciles are one row."""
    asked, returned = target(noise), truths(target(noise))
    inside: dict[str, list[bool]] = {}
    for seed in range(logs):
        batch = WORLD.sample(episodes, BEHAVIOR, seed)
        none = np.zeros(len(batch))
        evidence = Evidence(Paths.of(batch), batch.reward, weights(batch, tabular.rows(batch, asked)), none, none)
        for metric, e in of(distribution(evidence, 0.95), "sn-tis").items():
            row = metric.split("<=")[0]
            inside.setdefault(row, []).append(e.low <= true_value(metric, returned) <= e.high)
    assert len(inside) == len(QUANTILES) + len(TAILS) + 1
    return {metric: float(np.mean(each)) for metric, each in inside.items()}


def test_intervals_of_the_distribution_cover():
    found = covered(0.5, 150, 100)
    assert min(found.values()) >= 0.9, found


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "episodes"), [(0.5, 150), (0.8, 300)])
def test_intervals_of_the_distribution_cover_over_five_hundred_logs(noise, episodes):
    found = covered(noise, episodes, 500)
    print(f"noise {noise}: {found}")  # noqa: T201
    assert all(0.92 <= share <= 0.985 for share in found.values()), found
