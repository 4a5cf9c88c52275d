"""Neural-linear Thompson sampling: its posterior against plain formulas, and what no line tells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError
from steersman.core.policy import Policy
from steersman.worlds.logit import logit
from test_bandit import featured
from test_thompson import posterior

QUICK = {"hidden": [16, 8], "steps": 100, "batch_size": 64, "learning_rate": 1e-2}


def fit(batch: Batch, **settings: object) -> Policy:
    return learn.fit(batch, learn.configure("neural-thompson", QUICK | settings), 0)


def relu(rows: np.ndarray, weights: dict[str, np.ndarray], layer: int) -> np.ndarray:
    return np.maximum(rows @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"], 0.0)


def assert_is(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """[P, M] draws in mirrored pairs: their mean exactly, their covariance within chance, in standard errors."""
    assert draws.mean(axis=1) == pytest.approx(mean, abs=1e-7)
    deviation = np.sqrt(np.diag(covariance))
    away = (np.cov(draws) - covariance) / np.outer(deviation, deviation)
    assert np.abs(away).max() < 6 * np.sqrt(2 / draws.shape[1])


def test_named_actions_have_the_posterior_of_their_own_rows_on_the_last_hidden_layer():
    batch = logit(numbers=3, actions=3, seed=4).sample(600, 1)
    weights = fit(batch, draws=4000, noise=0.5, ridge=2.0).scorer.weights()
    hidden = relu(relu(batch.context.astype(float), weights, 0), weights, 2)
    phi, reward = np.concatenate([np.ones((600, 1)), hidden], axis=1), batch.reward - batch.reward.mean()
    for action in range(3):
        mine = batch.action == action
        assert_is(weights["head.weight"][:, 1 + action], *posterior(phi[mine], reward[mine], 0.5, 2.0))
    assert weights["head.weight"][0, 0] == pytest.approx(batch.reward.mean(), abs=1e-12)
    assert not weights["head.weight"][1:, 0].any()


def test_candidates_with_features_share_the_posterior_of_all_rows():
    batch = featured(500)
    weights = fit(batch, draws=4000, noise=0.5, ridge=2.0).scorer.weights()
    taken = batch.candidates[np.arange(500), batch.action].astype(float)
    first = batch.context @ weights["context.weight"].T + weights["context.bias"]
    first = first + taken @ weights["candidate.weight"].T
    phi = np.concatenate([np.ones((500, 1)), relu(np.maximum(first, 0.0), weights, 1)], axis=1)
    mean, covariance = posterior(phi, batch.reward - batch.reward.mean(), 0.5, 2.0)
    mean[0] += batch.reward.mean()
    assert_is(weights["weight"], mean, covariance)


def test_it_learns_what_no_line_tells():
    """Action 1 is right where two numbers have the same sign: a line is right half of the time."""
    random = np.random.default_rng(0)
    world = logit(numbers=2, actions=2)
    numbers, action = random.normal(size=(3000, 2)), random.integers(2, size=3000)
    right = (numbers.prod(axis=1) > 0).astype(int)
    batch = replace(
        world.sample(3000, 0), context=world.columns(numbers), action=action, propensity=np.full(3000, 0.5),
        reward=(action == right).astype(float),
    )  # fmt: skip
    settings = {"hidden": [32], "steps": 600, "batch_size": 128, "learning_rate": 5e-3}
    chosen = fit(batch, **settings).propensities(batch)[np.arange(3000), right].mean()
    assert chosen > 0.9
    line = learn.fit(batch, learn.configure("thompson", {}), 0)
    assert line.propensities(batch)[np.arange(3000), right].mean() < 0.6


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"hidden is \(\), must be at least one layer"):
        learn.configure("neural-thompson", {"hidden": []})
    with pytest.raises(ConfigError, match="ridge is -1, must be above 0"):
        learn.configure("neural-thompson", {"ridge": -1.0})
    with pytest.raises(ConfigError, match="draws is 1, must be an even number"):
        learn.configure("neural-thompson", {"draws": 1})
