"""MAGIC and the alarm of a wrong model: j-step returns by hand, the optimum by its conditions and by brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from steersman.core.errors import DataError, SupportError
from steersman.evaluate import ESTIMATORS, Evaluation, Evidence, Paths, Settings, evaluate
from steersman.evaluate.evidence import weights
from steersman.evaluate.intervals import Terms
from steersman.evaluate.magic import least_square, magic, mixture
from steersman.evaluate.trajectories import backed_up, wdr
from steersman.worlds import tabular


def sampled(seed: int, *, episodes: int = 200, horizon: int = 8) -> tuple[Evidence, tabular.Mdp, np.ndarray]:
    """A log of a garnet with the true action values as the model."""
    world = tabular.garnet(6, 3, horizon=horizon, stop=0.1, seed=3)
    scores = np.random.default_rng(1).normal(size=world.mean.shape)
    behavior = tabular.softmax(scores)
    target = tabular.softmax(scores + 0.5 * np.random.default_rng(2).normal(size=scores.shape))
    batch = world.sample(episodes, behavior, seed)
    probabilities, q = tabular.rows(batch, target), tabular.rows(batch, world.q(target))
    rows = np.arange(len(batch))
    found = Evidence(Paths.of(batch), batch.reward, weights(batch, probabilities), q[rows, batch.action],
                     np.sum(probabilities * q, axis=1))  # fmt: skip
    return found, world, target


# j-step returns


def test_j_step_returns_begin_with_the_model_and_end_with_wdr():
    found, _, _ = sampled(0)
    values = [value for value, _, _ in backed_up(found)]
    assert len(values) == len(found.paths.steps) + 1
    assert values[0] == pytest.approx(found.v[found.paths.steps[0]].mean())
    assert values[-1] == wdr(found).value


def test_the_second_j_step_return_by_hand():
    """One step of weighted rewards, over the sum of all weights, and the model's value of what follows."""
    found, _, _ = sampled(0)
    first, second = found.paths.steps[:2]
    w = found.weight[first]
    following = np.zeros(len(w))
    following[found.paths.episode[second]] = found.v[second]
    want = found.v[first].mean() + w @ (found.reward[first] - found.q[first] + following) / w.sum()
    assert list(backed_up(found))[1][0] == pytest.approx(want)


def test_where_every_weight_is_one_a_j_step_return_is_rewards_then_the_model():
    found, _, _ = sampled(0)
    found = replace(found, weight=np.ones(len(found.weight)), q=found.v)
    paths = found.paths
    for j, (value, _, _) in enumerate(backed_up(found)):
        rewards = sum(float(found.reward[rows].sum()) for rows in paths.steps[:j])
        rest = float(found.v[paths.steps[j]].sum()) if j < len(paths.steps) else 0.0
        assert value == pytest.approx((rewards + rest) / paths.episodes)


# the mixture


@pytest.mark.parametrize("seed", range(40))
def test_the_optimum_holds_by_its_own_conditions(seed):
    """On the simplex x is optimal for x' A x exactly if no corner has a smaller slope: min (A x) >= x' A x."""
    rng = np.random.default_rng(seed)
    size, rank = int(rng.integers(1, 28)), int(rng.integers(1, 28))
    root = rng.normal(size=(rank, size)) * 10.0 ** rng.uniform(-4, 4, size=(rank, 1))
    bias = np.where(rng.random(size) < 0.5, rng.normal(size=size) * 10, 0.0)
    matrix = root.T @ root + np.outer(bias, bias)
    x = least_square(matrix)
    assert x.min() >= 0
    assert x.sum() == pytest.approx(1.0, abs=1e-12)
    assert x @ matrix @ x - (matrix @ x).min() <= 1e-10 * np.trace(matrix)


def test_the_optimum_is_that_of_a_fine_grid():
    rng = np.random.default_rng(5)
    root = rng.normal(size=(3, 3))
    matrix = root @ root.T
    grid = np.array([(a, b, 1 - a - b) for a, b in itertools.product(np.linspace(0, 1, 101), repeat=2) if a + b <= 1])
    x = least_square(matrix)
    least = np.einsum("gi,ij,gj->g", grid, matrix, grid)
    assert x @ matrix @ x <= least.min() + 1e-12
    assert np.abs(x - grid[least.argmin()]).max() < 0.02


def test_biases_of_two_signs_cancel_in_a_mixture_as_only_their_outer_product_tells():
    """Two returns off by +1 and -1, without any other error, and the unbiased one with a large one: half and half."""
    units = 50
    noise = np.random.default_rng(0).normal(size=units) * 100.0
    pulls = np.stack([np.full(units, 1e-6), np.full(units, 1e-6), noise - noise.mean()])
    last = Terms.of(0.0, pulls[2] * 1e-3, np.ones(units))  # its interval is narrow: both are outside, as far
    assert mixture(np.array([1.0, -1.0, 0.0]), pulls, last) == pytest.approx([0.5, 0.5, 0.0], abs=1e-3)


def test_covariances_are_those_of_means_over_units():
    """Two unbiased returns of independent units with variances 1 and 4: weights 0.8 and 0.2."""
    rng = np.random.default_rng(1)
    pulls = np.stack([rng.normal(size=200_000), 2.0 * rng.normal(size=200_000)])
    last = Terms.of(0.0, 100.0 * pulls[1], np.ones(200_000))
    assert mixture(np.zeros(2), pulls, last) == pytest.approx([0.8, 0.2], abs=0.01)


def test_returns_without_any_error_leave_the_last_one():
    assert least_square(np.zeros((3, 3))).tolist() == [0.0, 0.0, 1.0]
    with pytest.raises(SupportError, match="range of numbers"):
        least_square(np.array([[np.inf]]))


# the estimate


def test_of_a_true_model_it_errs_less_than_wdr_and_prints_the_interval_of_wdr():
    ours, theirs = [], []
    for seed in range(20):
        found, world, target = sampled(seed)
        truth = world.value(target)
        mixed, plain = magic(found), wdr(found)
        assert (mixed.low, mixed.high) == (plain.low, plain.high) or mixed.low.center == plain.low.center
        ours.append((mixed.value - truth) ** 2)
        theirs.append((plain.value - truth) ** 2)
    assert np.mean(ours) < np.mean(theirs)


def test_of_a_wrong_model_it_returns_to_the_log():
    """A model that is 3 off everywhere: the direct method is 3 off, the mixture within the error of wdr."""
    for seed in range(5):
        found, world, target = sampled(seed, episodes=1000)
        wrong = replace(found, q=found.q + 3.0, v=found.v + 3.0)
        mixed = magic(wrong)
        assert abs(wrong.v[wrong.paths.steps[0]].mean() - world.value(target)) > 2.5
        assert abs(mixed.value - world.value(target)) < 4 * mixed.low.error < 1.0


def test_one_trajectory_is_an_error_with_a_reason():
    found, _, _ = sampled(0, episodes=1)
    with pytest.raises(SupportError, match="one of the 1 units"):
        magic(found)
    world = tabular.garnet(6, 3, horizon=8, stop=0.1, seed=3)
    batch = world.sample(1, tabular.softmax(world.mean), 0)
    with pytest.raises(DataError, match="1 unit"):
        evaluate(batch, np.full((len(batch), 3), 1 / 3), Settings(estimators=("magic",)), 0, horizon=8)


def test_no_gate_may_rest_on_it():
    assert not ESTIMATORS["magic"].judge


# the alarm


def judged(seed: int, *, horizon: int, halved: bool) -> Evaluation:
    world, behavior, target = tabular.contest(horizon, uniform=0.5)
    if halved:
        target = np.repeat((target[::2] + target[1::2]) / 2, 2, axis=0)
    batch = world.sample(300, behavior, seed, truncate=True)
    asked = tabular.rows(batch, target)
    seen = tabular.halved(batch, target.shape[1]) if halved else batch
    return evaluate(seen, asked, Settings(estimators=("fqe", "wdr"), folds=3), seed, horizon=horizon)


@pytest.mark.parametrize(("horizon", "beside"), [(3, "wdr"), (50, "drl")])
def test_a_model_that_takes_two_states_for_one_is_told_and_a_right_one_is_not(horizon, beside):
    """Over 50 steps products of weights are silent, and what marginal weights say stands in for them."""
    right = [judged(seed, horizon=horizon, halved=False) for seed in range(12)]
    wrong = [judged(seed, horizon=horizon, halved=True) for seed in range(12)]
    assert ("wdr" in {verdict.gate for verdict in right[0].refused}) == (beside == "drl")
    assert np.mean([found.support.disagreement > 2 for found in right]) <= 1 / 6
    assert np.mean([found.support.disagreement > 2 for found in wrong]) >= 2 / 3


def test_without_a_model_there_is_nothing_to_disagree_with():
    world = tabular.garnet(6, 3, horizon=8, stop=0.1, seed=3)
    behavior = tabular.softmax(world.mean)
    batch = world.sample(100, behavior, 0)
    settings = Settings(estimators=("pdis",), headline="pdis")
    assert evaluate(batch, tabular.rows(batch, behavior), settings, 0, horizon=8).support.disagreement is None


@pytest.mark.slow
def test_a_right_model_alarms_about_one_time_in_twenty():
    world = tabular.garnet(8, 3, horizon=20, stop=0.15, seed=2)
    rng = np.random.default_rng(0)
    behavior = tabular.softmax(rng.normal(size=world.mean.shape))
    target = tabular.mixed(tabular.softmax(np.log(behavior) + 0.4 * rng.normal(size=world.mean.shape)), 0.1)
    alarms = 0
    for seed in range(500):
        batch = world.sample(250, behavior, seed)
        settings = Settings(estimators=("fqe", "wdr"), folds=3)
        alarms += evaluate(batch, tabular.rows(batch, target), settings, seed, horizon=20).support.disagreement > 2
    print(f"alarms of a right model: {alarms / 500:.3f}")  # noqa: T201
    assert alarms / 500 <= 0.07
