"""Thompson sampling: posteriors against Bayesian linear regression, propensities against sampling for ever, regret."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from simulated import regret
from steersman import learn
from steersman.core.batch import Batch
from steersman.core.decision import Candidate
from steersman.core.errors import ConfigError
from steersman.core.policy import EpsilonGreedy, Policy, SquareCB, Thompson, Uniform
from steersman.learn import bandit
from steersman.learn.sums import Design, gather, regression, ridge_of
from steersman.models import onnx
from steersman.models.graph import Graph
from steersman.worlds.logit import logit
from test_bandit import LOG, columns, featured

SMALL = LOG.take(np.arange(150))


def posterior(phi: np.ndarray, reward: np.ndarray, noise: float, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance by Bishop's eq. 3.50 and 3.51, prior precision ridge / noise^2."""
    precision = ridge / noise**2 * np.eye(phi.shape[1]) + phi.T @ phi / noise**2
    covariance = np.linalg.inv(precision)
    return covariance @ phi.T @ reward / noise**2, covariance


def thompson(batch: Batch, seed: int = 0, **settings: object) -> Policy:
    return learn.fit(batch, learn.configure("thompson", settings), seed)


def test_draws_have_the_mean_and_the_covariance_of_the_posterior():
    """4,000 draws of each action's 4 coefficients: the mean exactly, for draws are mirrored, the covariance nearly."""
    policy = thompson(SMALL, draws=4000, noise=0.5, ridge=2.0)
    weight = policy.scorer.weights()["weight"]  # [1 + F, 1 + A, M]
    phi, mean = columns(SMALL), SMALL.reward.mean()
    for action in range(3):
        mine = SMALL.action == action
        want, covariance = posterior(phi[mine], SMALL.reward[mine] - mean, 0.5, 2.0)
        found = weight[:, 1 + action, :]
        assert found.mean(axis=1) == pytest.approx(want, abs=1e-9)
        deviation = np.sqrt(np.diag(covariance))
        away = np.cov(found) / np.outer(deviation, deviation) - covariance / np.outer(deviation, deviation)
        assert np.abs(away).max() < 5 * np.sqrt(2 / 4000)
    assert (weight[0, 0] == mean).all()
    assert not weight[1:, 0].any()


def test_the_covariance_of_a_joint_model_is_that_of_all_products():
    batch = featured(300)
    noisy = replace(batch, reward=batch.reward + np.random.default_rng(0).normal(size=len(batch)))
    config = bandit.LinearThompson(noise=1.0, draws=2)
    design = Design.of(noisy.encoder)
    *_, (_, sums) = gather(noisy, design, "direct")
    column = np.concatenate([np.ones((len(noisy), 3, 1)), noisy.candidates], axis=2)[np.arange(300), noisy.action]
    phi = (columns(noisy)[:, :, None] * column[:, None, :]).reshape(300, -1)
    want, covariance = posterior(phi, noisy.reward - noisy.reward.mean(), 1.0, 1.0)
    found = regression(sums, "direct", 1.0)
    (root,) = found.roots(1.0)
    assert root @ root.T == pytest.approx(covariance, abs=1e-10)
    draws = bandit.sampled(found, 1.0, config, 3)
    normal = np.random.default_rng(3).normal(size=phi.shape[1])
    assert draws[0, 0] == pytest.approx(want + root @ normal, abs=1e-9)
    assert draws[1, 0] == pytest.approx(want - root @ normal, abs=1e-9)


def test_noise_that_nobody_tells_is_the_likeliest():
    """The evidence of Bishop's eq. 3.86, with its own determinant, is lower on both sides."""
    log = LOG.take(np.arange(600))
    *_, (_, sums) = gather(log, Design.of(log.encoder), "direct")
    found = np.sqrt(regression(sums, "direct", 1.0).likeliest_noise(1.0))
    phi, reward = columns(log), log.reward - log.reward.mean()

    def evidence(noise: float) -> float:
        total = 0.0
        for action in range(3):
            mine = log.action == action
            covariance = noise**2 * (np.eye(mine.sum()) + phi[mine] @ phi[mine].T)
            total -= 0.5 * np.linalg.slogdet(covariance)[1]
            total -= 0.5 * reward[mine] @ np.linalg.solve(covariance, reward[mine])
        return total

    assert evidence(found) > max(evidence(0.98 * found), evidence(1.02 * found))
    assert 0.3 < found < 0.5


@pytest.mark.parametrize("loss", ["direct", "mtr"])
def test_a_ridge_that_nobody_tells_is_the_likeliest(loss):
    """The evidence with its own determinant, the best noise for each, is lower at every ridge a quarter away."""
    log = LOG.take(np.arange(300))
    *_, (_, sums) = gather(log, Design.of(log.encoder), loss)
    found = ridge_of(sums, loss, "auto")
    phi, reward = columns(log), log.reward - log.reward.mean()
    weight = np.ones(300) if loss == "direct" else 1 / log.propensity / np.mean(1 / log.propensity)

    def evidence(ridge: float) -> float:
        determinant = quadratic = 0.0
        for action in range(3):
            mine = log.action == action
            covariance = np.diag(1 / weight[mine]) + phi[mine] @ phi[mine].T / ridge  # in units of noise^2
            determinant += np.linalg.slogdet(covariance)[1]
            quadratic += reward[mine] @ np.linalg.solve(covariance, reward[mine])
        return -0.5 * determinant - 150 * np.log(quadratic / 300)

    assert evidence(found) > max(evidence(found * 1.25), evidence(found / 1.25))
    assert 0.1 < found < 1e4
    policy = learn.fit(log, learn.configure("linear", {"loss": loss, "ridge": "auto"}), 0)
    told = learn.fit(log, learn.configure("linear", {"loss": loss, "ridge": found}), 0)
    assert learn.to_onnx(policy) == learn.to_onnx(told)


def test_propensities_are_those_of_sampling_for_ever():
    """Against 20,000 fresh draws of the same posterior a row: within the chance of 2,000 draws, of masked rows too."""
    few = LOG.take(np.arange(60))
    policy = thompson(few, draws=2000, noise=0.5)
    rows = LOG.take(np.arange(1000, 1040))
    mask = np.ones((40, 3), dtype=bool)
    mask[np.arange(20), np.arange(20) % 3] = False
    allowed = np.where(mask, np.arange(3), 9).min(axis=1)
    masked = replace(rows, mask=mask, action=allowed)
    random, phi = np.random.default_rng(7), columns(rows)
    scores = np.empty((20_000, 40, 3))
    for action in range(3):
        mine = few.action == action
        mean, covariance = posterior(columns(few)[mine], few.reward[mine] - few.reward.mean(), 0.5, 1.0)
        scores[:, :, action] = random.multivariate_normal(mean, covariance, size=20_000) @ phi.T
    best = np.where(mask, scores, -np.inf).argmax(axis=2)
    want = np.stack([(best == action).mean(axis=0) for action in range(3)], axis=1)
    found = policy.propensities(masked)
    assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    assert not found[~mask].any()
    assert np.abs(found - want).max() < 4.5 * np.sqrt(0.25 / 2000 + 0.25 / 20_000)
    assert (want > 0.05).sum(axis=1).min() >= 1
    assert ((want > 0.1) & (want < 0.9)).any(axis=1).mean() > 0.5  # the rows are not decided already


def test_the_graph_gives_the_draws_alone_and_in_batches_with_candidates_missing():
    """Batch 1 and 256, through the encoder, ids and padding as served: every draw within 1e-5."""
    world = logit(numbers=3, actions=3, seed=4)
    policy = thompson(world.sample(500, 0))
    graph = Graph(onnx.compose(policy.encoder, learn.to_onnx(policy)))
    random = np.random.default_rng(2)
    for size in (1, 256):
        numbers = random.normal(size=(size, 3))
        kept = random.integers(1, 4, size=size)
        names = [sorted(random.permutation(world.encoder.actions)[:many].tolist()) for many in kept]
        context = policy.encoder.raw_context([{f"number{i:02d}": row[i] for i in range(3)} for row in numbers.tolist()])
        rows, ids = policy.encoder.raw_candidates([[Candidate(id=name) for name in row] for row in names], kept.max())
        mask = np.arange(kept.max()) < kept[:, None]
        candidates = policy.encoder.encode_candidates(rows, ids)
        given = graph.scores(context, rows, ids)
        wanted = policy.scorer(policy.encoder.encode_context(context), candidates)
        assert given.shape == (size, kept.max(), 128)
        assert np.abs(given - wanted)[mask].max() < 1e-5
        chances = Thompson().probabilities(given, mask)
        assert chances == pytest.approx(Thompson().probabilities(wanted, mask), abs=1e-12)
        for row, name in enumerate(names):  # as each row alone, with nothing padded
            alone = policy.encoder.raw_candidates([[Candidate(id=one) for one in name]], len(name))
            one = graph.scores(context.take(slice(row, row + 1)), *alone)
            found = Thompson().probabilities(one, np.ones((1, len(name)), dtype=bool))[0]
            assert chances[row, : len(name)] == pytest.approx(found, abs=1e-12)
            if row > 20:
                break


def test_more_rows_make_it_sure_and_no_scale_makes_it_greedy():
    few, many = (
        thompson(LOG.take(np.arange(n)), draws=512).propensities(LOG).max(axis=1).mean() for n in (60, len(LOG))
    )
    assert few < many - 0.1
    greedy = thompson(SMALL, scale=0.0)
    want = learn.fit(SMALL, learn.configure("linear", {"loss": "direct"}), 0).propensities(LOG)
    assert greedy.propensities(LOG) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 7}, r"draws is 7, must be an even number in \[2,"),
        ({"noise": 0.0}, "noise is 0, must be above 0"),
        ({"scale": -1.0}, "scale is -1, must be at least 0"),
        ({"ridge": 0.0}, "ridge is 0, must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        learn.configure("thompson", settings)


@functools.cache
def mean_regret(learner: str, explorer: object, **settings: object) -> float:
    """Of 4,000 decisions, learned from every 100, over three seeds."""
    world = logit(numbers=4, actions=5, seed=3)
    runs = [
        regret(world, learner, explorer, rounds=40, size=100, seed=seed, **settings)
        for seed in range(3)
    ]  # fmt: skip
    return float(np.mean(runs))


@pytest.mark.parametrize(
    ("learner", "explorer"),
    [("thompson", None), ("linucb", None), ("linear", SquareCB(400.0))],
    ids=["thompson", "linucb", "squarecb"],
)
def test_what_explores_where_it_does_not_know_regrets_less_than_what_explores_anywhere(learner, explorer):
    found = mean_regret(learner, explorer, loss="direct")
    assert found < 0.75 * mean_regret("linear", EpsilonGreedy(0.1), loss="direct")
    assert found < 0.15 * mean_regret("linear", Uniform(), loss="direct")
