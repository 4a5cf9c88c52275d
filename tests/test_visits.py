"""Estimators by visits: long horizons, contexts that are several states, gaps of time, grids; by exact values."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from steersman.core.errors import SupportError
from steersman.evaluate import Evaluation, Evidence, Paths, Settings, evaluate
from steersman.evaluate.evidence import weights
from steersman.evaluate.trajectories import silent
from steersman.evaluate.visits import drl, samis, smis
from steersman.worlds import tabular

VISITING = ("drl", "smis", "samis")
HORIZON = 100
EPISODES = 500


def value(evaluation: Evaluation, name: str) -> float:
    return next(e.value for e in evaluation.estimates if e.estimator == name and e.metric == "reward")


def of_the_halves(target: np.ndarray) -> np.ndarray:
    """The mean policy of the states 2 i and 2 i + 1: what somebody decides who can not tell them apart."""
    return np.repeat((target[::2] + target[1::2]) / 2, 2, axis=0)


def errors(logs: int, names: tuple[str, ...], *, halved: bool, uniform: float = 0.5) -> dict[str, float]:
    """Root mean squared error over V of each estimator, over logs of three worlds."""
    off: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(logs):
        world, behavior, target = tabular.contest(HORIZON, uniform=uniform, seed=seed % 3)
        target = of_the_halves(target) if halved else target
        batch = world.sample(EPISODES, behavior, seed, truncate=True)
        asked = tabular.rows(batch, target)
        seen = tabular.halved(batch, target.shape[1]) if halved else batch
        found = evaluate(seen, asked, Settings(estimators=names, folds=3), seed, horizon=HORIZON)
        for name in names:
            off[name].append(value(found, name) / world.value(target) - 1.0)
    return {name: math.sqrt(np.mean(np.square(each))) for name, each in off.items()}


def test_a_hundred_steps_are_no_harder_than_ten_by_visits():
    found = errors(6, (*VISITING, "fqe"), halved=False)
    assert max(found.values()) <= 0.006, found


def test_where_a_context_is_two_states_the_weights_repair_the_model():
    """The behavior knew the states, the log does not. By (context, action) nothing is repaired: as wrong as a model."""
    found = errors(6, (*VISITING, "fqe"), halved=True)
    assert found["drl"] <= 0.015, found
    assert found["smis"] <= 0.015, found
    assert found["fqe"] > 3 * found["drl"], found
    assert found["samis"] > 3 * found["drl"], found


@pytest.mark.slow
@pytest.mark.parametrize(("halved", "limit"), [(False, 0.006), (True, 0.015)])
def test_a_hundred_steps_over_sixty_logs(halved, limit):
    found = errors(60, ("drl", "smis"), halved=halved)
    print(f"halved {halved}: {found}")  # noqa: T201  (the figures of a slow run are its point)
    assert max(found.values()) <= limit, found


def test_each_decision_has_its_own_discount_and_time_gaps_differ_by_action():
    """Action a takes 1 + a units of time, at 0.9 a unit: the exact value is that of a discount by action."""
    world = tabular.garnet(6, 3, horizon=30, stop=0.05, seed=8)
    rng = np.random.default_rng(8)
    behavior = tabular.softmax(rng.normal(size=world.mean.shape))
    target = tabular.mixed(tabular.softmax(2 * rng.normal(size=world.mean.shape)), 0.3)
    gap = 0.9 ** (1.0 + np.arange(3))
    batch = world.sample(4000, behavior, 8, truncate=True)
    batch = replace(batch, discount=np.where(batch.discount > 0, gap[batch.action], 0.0))
    truth = replace(world, discount=gap).value(target)
    assert abs(truth / world.value(target) - 1) > 0.3  # discounts matter
    found = evaluate(batch, tabular.rows(batch, target), Settings(estimators=(*VISITING, "fqe")), 0, horizon=30)
    for name in (*VISITING, "fqe"):
        error = (found.headline.high - found.headline.low) / 3.9
        assert value(found, name) == pytest.approx(truth, abs=4 * error), name
    assert error < 0.02 * truth


def test_of_the_behavior_policy_visits_give_the_logged_mean_within_three_errors_of_the_difference():
    """Fifteen logs of unequal episodes. The paired difference is far smaller than the error of either value."""
    z: dict[str, list[float]] = {name: [] for name in VISITING}
    for seed in range(15):
        world = tabular.garnet(6, 3, horizon=40, stop=0.1, seed=seed)
        behavior = tabular.softmax(np.random.default_rng(seed).normal(size=world.mean.shape))
        batch = world.sample(200, behavior, seed)
        for name in VISITING:
            settings = Settings(estimators=(name,), headline=name)
            found = evaluate(batch, tabular.rows(batch, behavior), settings, seed, horizon=40)
            z[name].append(found.lift.value / max((found.lift.high - found.lift.low) / 3.9, 1e-12))
    for name, each in z.items():
        assert np.abs(each).max() < 4, (name, each)
        assert abs(np.mean(each)) * math.sqrt(15) < 3, (name, np.mean(each))


def test_where_the_target_goes_and_the_log_never_went_is_told():
    """Action 2 was never logged; the target takes it a third of the time."""
    world = tabular.garnet(6, 3, horizon=20, stop=0.05, seed=8)
    behavior = np.tile([0.5, 0.5, 0.0], (6, 1))
    batch = world.sample(500, behavior, 0)
    target = np.full((len(batch), 3), 1 / 3)
    for name in VISITING:
        found = evaluate(batch, target, Settings(estimators=(name,), headline=name), 0, horizon=20)
        assert found.support.outside == pytest.approx(1 / 3, abs=0.01)


def test_contexts_that_are_no_table_are_refused_with_the_reason():
    world, behavior, _ = tabular.contest(5, uniform=0.5)
    batch = world.sample(50, behavior, 0)
    none = np.zeros(len(batch))
    bare = Evidence(Paths.of(batch), batch.reward, weights(batch, tabular.rows(batch, behavior)), none, none)
    for estimator in (drl, smis, samis):
        with pytest.raises(SupportError, match="too many for tables of visits"):
            estimator(bare)


# the grid: mixtures of the best policy and uniform decisions, models learned from 10,000 episodes


def best_of(world: tabular.Mdp) -> np.ndarray:
    policy = np.full(world.mean.shape, 1 / 4)
    for _ in range(8):
        policy = np.eye(4)[world.q(policy)[0].argmax(axis=1)]
    return policy


GRID = tabular.gridworld()
BEST = best_of(GRID)


def on_the_grid(logging: float, judged: float, episodes: int, seed: int = 0) -> tuple[dict[str, float], float, float]:
    """Estimates; the true value of the judged mixture, and of the one that logged."""
    behavior, target = tabular.mixed(BEST, logging), tabular.mixed(BEST, judged)
    batch = GRID.sample(episodes, behavior, seed, truncate=True)
    found = evaluate(batch, tabular.rows(batch, target), Settings(folds=3), seed, horizon=GRID.horizon)
    each = {e.estimator: e.value for e in found.estimates if e.metric == "reward"}
    return each, GRID.value(target), GRID.value(behavior)


def test_the_value_of_the_grid_is_the_mean_return_of_its_episodes():
    policy = tabular.mixed(BEST, 0.3)
    batch = GRID.sample(20_000, policy, 0)
    returns = np.bincount(batch.episode, weights=GRID.discount**batch.step * batch.reward)
    assert returns.mean() == pytest.approx(GRID.value(policy), abs=4 * returns.std() / math.sqrt(20_000))
    assert set(np.bincount(batch.episode, weights=batch.reward)) == {0.0, 1.0}  # the goal pays once and ends it


@pytest.mark.parametrize(
    ("logging", "judged", "limit"), [(0.5, 0.5, 0.05), (0.75, 0.25, 0.05), (0.25, 0.75, 0.05), (0.05, 0.05, 0.05)]
)
def test_mixtures_on_the_grid(logging, judged, limit):
    found, truth, _ = on_the_grid(logging, judged, 3000)
    assert set(VISITING) | {"fqe"} <= set(found)
    for name, estimate in found.items():
        assert estimate == pytest.approx(truth, rel=limit), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logging", "judged", "limit"),
    [(1.0, 0.05, 0.15), (0.75, 0.25, 0.05), (0.5, 0.5, 0.05), (0.25, 0.75, 0.05), (0.05, 1.0, 0.15)],
)
def test_ten_thousand_episodes_on_the_grid(logging, judged, limit):
    """As a ratio to the logged policy, which is parity at 1: of the headline and of the model alone, on five logs."""
    for seed in range(5):
        found, truth, logged = on_the_grid(logging, judged, 10_000, seed)
        off = {name: (found[name] - truth) / logged for name in ("drl", "fqe")}
        print(f"{logging} -> {judged}, V {truth:.4f}, logged {logged:.4f}: {off}")  # noqa: T201
        assert max(map(abs, off.values())) <= limit, off
        if seed == 0:  # of the larger of the two values: every estimator that spoke
            every = {name: (estimate - truth) / max(truth, logged) for name, estimate in found.items()}
            assert max(map(abs, every.values())) <= limit, every


@pytest.mark.slow
def test_ten_policies_on_the_grid_are_ranked():
    shares = np.linspace(0.05, 0.95, 10)
    found = [on_the_grid(0.5, float(share), 10_000, seed) for seed, share in enumerate(shares)]
    truth = np.array([each[1] for each in found])
    for name in (*VISITING, "fqe"):
        estimates = np.array([each[0][name] for each in found])
        ranks = [np.argsort(np.argsort(column)) for column in (estimates, truth)]
        spearman = float(np.corrcoef(*ranks)[0, 1])
        print(f"{name}: Spearman {spearman:.3f}")  # noqa: T201
        assert spearman >= 0.9


def test_products_of_weights_are_silent_on_the_same_hundred_steps():
    world, behavior, target = tabular.contest(HORIZON, uniform=0.5)
    batch = world.sample(EPISODES, behavior, 0, truncate=True)
    none = np.zeros(len(batch))
    assert silent(Evidence(Paths.of(batch), batch.reward, weights(batch, tabular.rows(batch, target)), none, none))
