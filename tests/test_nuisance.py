"""Models that estimators rest on: marginal weights, rewards, and folds that keep units whole."""

from __future__ import annotations

import numpy as np
import pytest

from steersman.core.batch import Batch
from steersman.core.errors import SupportError
from steersman.core.features import Continuous, Encoder
from steersman.evaluate import Evidence, Paths, Settings, evaluate
from steersman.evaluate.estimators import drl
from steersman.evaluate.evidence import weights
from steersman.evaluate.nuisance import folds_of, reward_model
from steersman.evaluate.trajectories import silent
from steersman.worlds import tabular
from test_estimators import evidence, log


def test_marginal_weights_of_the_behavior_policy_are_its_own_visits():
    """With target = behavior every row stands for itself: weights average to the steps of an episode."""
    world = tabular.garnet(6, 3, horizon=None, stop=0.2, seed=2)
    behavior = tabular.softmax(np.random.default_rng(3).normal(size=world.mean.shape))
    batch = world.sample(2000, behavior, 3)
    found = evaluate(batch, tabular.rows(batch, behavior), Settings(estimators=("drl",)), 0)
    assert found.support.outside < 0.01
    assert found.headline.value == pytest.approx(found.baseline.value, abs=0.05)
    assert (found.lift.high - found.lift.low) < 0.5 * (found.baseline.high - found.baseline.low)


def test_drl_does_not_grow_with_the_horizon_as_products_of_weights_do():
    world = tabular.garnet(8, 3, horizon=60, stop=0.02, seed=5)
    rng = np.random.default_rng(5)
    behavior = tabular.softmax(rng.normal(size=world.mean.shape))
    target = tabular.mixed(tabular.softmax(2 * rng.normal(size=world.mean.shape)), 0.2)
    batch = world.sample(200, behavior, 5, truncate=True)
    found = evaluate(batch, tabular.rows(batch, target), Settings(), 0, horizon=60)
    truth = world.value(target)
    assert found.headline.low <= truth <= found.headline.high
    assert found.headline.high - found.headline.low < 0.25 * truth
    assert silent(Evidence(Paths.of(batch), batch.reward, weights(batch, tabular.rows(batch, target)),
                           batch.reward, batch.reward))  # fmt: skip


def test_drl_needs_contexts_that_are_a_table():
    rng = np.random.default_rng(0)
    n = 600
    batch = Batch(
        encoder=Encoder(context=(Continuous("x", 0.0, 1.0),), actions=("a", "b")),
        context=np.stack([rng.normal(size=n), np.zeros(n)], axis=1).astype(np.float32),
        candidates=np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2)),
        mask=np.ones((n, 2), dtype=bool),
        action=rng.integers(0, 2, n),
        propensity=np.full(n, 0.5),
        reward=rng.normal(size=n),
        metrics=np.zeros((n, 0)),
        discount=np.where(np.arange(n) % 2 == 0, 1.0, 0.0),
        next=np.where(np.arange(n) % 2 == 0, np.arange(1, n + 1), -1),
        unit=np.arange(n) // 2,
    )
    target = np.full((n, 2), 0.5)
    assert evaluate(batch, target, Settings(), 0).headline.estimator == "wdr"
    with pytest.raises(SupportError, match="tables of visits"):
        evaluate(batch, target, Settings(headline="drl"), 0)
    few = np.arange(100)  # all contexts are distinct still: a hundred of them are no table either
    assert evaluate(batch.take(few), target[few], Settings(), 0).headline.estimator == "wdr"
    with pytest.raises(SupportError, match="tables of visits"):
        drl(evidence(log(next=[1, -1, -1], reward=[1, 1, 1]), taken=[0.5] * 3))


def test_no_row_is_judged_by_a_model_that_learned_from_its_unit():
    """One unit's rewards are replaced by 1e9. A model that had seen them would show it in that unit's own q."""
    world = tabular.bandit(6, 4, chi2=1.0, noise=0.3, seed=1)
    batch = world.sample(300, 2)
    target = tabular.rows(batch, world.target)
    fold = folds_of(Paths.of(batch), 5, 0)
    plain = reward_model(batch, batch.reward[:, None], target, fold)
    spoiled = batch.reward.copy()
    mine = fold == 2
    spoiled[mine] = 1e9
    after = reward_model(batch, spoiled[:, None], target, fold)
    assert np.array_equal(plain[0][mine], after[0][mine])
    assert np.array_equal(plain[1][mine], after[1][mine])
    assert not np.array_equal(plain[0][~mine], after[0][~mine])


def test_folds_keep_units_whole():
    batch = log(next=[-1] * 60, reward=[1] * 60, unit=[i // 3 for i in range(60)])
    fold = folds_of(Paths.of(batch), 5, 1)
    assert all(len(set(fold[batch.unit == u])) == 1 for u in range(20))
    assert np.bincount(fold).tolist() == [12] * 5


def test_the_reward_model_learns_products_of_context_and_candidate():
    """reward = x for action a, -x for action b: nothing without products."""
    rng = np.random.default_rng(0)
    n = 400
    x = rng.normal(size=n)
    action = rng.integers(0, 2, n)
    batch = Batch(
        encoder=Encoder(context=(Continuous("x", 0.0, 1.0),), actions=("a", "b")),
        context=np.stack([x, np.zeros(n)], axis=1).astype(np.float32),
        candidates=np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2)),
        mask=np.ones((n, 2), dtype=bool),
        action=action,
        propensity=np.full(n, 0.5),
        reward=np.where(action == 0, x, -x),
        metrics=np.zeros((n, 0)),
        discount=np.zeros(n),
        next=np.full(n, -1),
        unit=np.arange(n),
    )
    target = np.tile([0.9, 0.1], (n, 1))
    q, v = reward_model(batch, batch.reward[:, None], target, np.arange(n) % 2)
    inside = np.abs(x) < 2
    assert np.abs(q[:, 0] - batch.reward)[inside].max() < 0.01
    assert np.abs(v[:, 0] - 0.8 * x)[inside].max() < 0.01
    shared = Batch(**{name: getattr(batch, name) for name in batch.__dataclass_fields__}
                   | {"candidates": np.array(batch.candidates)})  # fmt: skip
    assert np.allclose(reward_model(shared, batch.reward[:, None], target, np.arange(n) % 2), (q, v))
