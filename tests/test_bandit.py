"""Linear bandits: coefficients against plain least squares, the bonus against its formula, and a bar on a large log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, DataError
from steersman.core.features import Continuous, Encoder
from steersman.learn import bandit
from steersman.worlds.logit import logit

WORLD = logit(numbers=3, actions=3, seed=4)
LOG = WORLD.sample(4000, 1)
LOSSES = ("direct", "mtr", "ips", "dr")


def scores(batch: Batch, learner: str, **settings: object) -> np.ndarray:
    return learn.fit(batch, learn.configure(learner, settings), 0).scorer(batch.context, batch.candidates)


def columns(batch: Batch) -> np.ndarray:
    """[N, 1 + F], the intercept first."""
    return np.concatenate([np.ones((len(batch), 1)), batch.context], axis=1).astype(np.float64)


def ridge(phi: np.ndarray, target: np.ndarray, weight: np.ndarray, penalty: float) -> np.ndarray:
    """Least squares on the square roots of the weights, the penalty as rows of its own: no normal equations."""
    root = np.sqrt(weight)[:, None]
    rows = np.concatenate([root * phi, np.sqrt(penalty) * np.eye(phi.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([root[:, 0] * target, np.zeros(phi.shape[1])]), rcond=None)[0]


@pytest.mark.parametrize("loss", ["direct", "mtr"])
def test_each_named_action_has_the_ridge_of_its_own_rows(loss):
    weight = np.ones(len(LOG)) if loss == "direct" else (1 / LOG.propensity) / np.mean(1 / LOG.propensity)
    phi, mean = columns(LOG), LOG.reward.mean()
    want = np.empty((len(LOG), 3))
    for action in range(3):
        mine = LOG.action == action
        want[:, action] = mean + phi @ ridge(phi[mine], LOG.reward[mine] - mean, weight[mine], 2.0)
    assert scores(LOG, "linear", loss=loss, ridge=2.0) == pytest.approx(want, abs=1e-6)


def test_a_wrong_model_is_best_where_the_target_policy_goes_with_weights_and_where_the_log_went_without():
    """Reward x^2 of one action, seen mostly at small x: the weighted fit is the least squares of all x alike."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, 200_000)
    chance = np.where(x < 0.5, 0.9, 0.1)
    action = (rng.random(len(x)) < chance).astype(np.int64)
    world = logit(numbers=1, actions=2)
    batch = replace(
        world.sample(len(x), 0), context=world.columns(x[:, None]), action=action,
        propensity=np.where(action == 1, chance, 1 - chance), reward=np.where(action == 1, x**2, 0.0),
    )  # fmt: skip
    of_all = x - 1 / 6  # least squares of x^2 by 1 and x, x uniform in [0, 1]
    assert scores(batch, "linear", loss="mtr")[:, 1] == pytest.approx(of_all, abs=0.01)
    assert np.abs(scores(batch, "linear", loss="direct")[:, 1] - of_all).max() > 0.05


def featured(n: int = 3000) -> Batch:
    """Up to 3 candidates with two features, the reward linear in all products, no noise."""
    rng = np.random.default_rng(2)
    mask = np.arange(3) < rng.integers(1, 4, size=(n, 1))
    candidates = rng.normal(size=(n, 3, 2)).astype(np.float32) * mask[:, :, None]
    candidates = np.stack([candidates, np.zeros_like(candidates)], axis=3).reshape(n, 3, 4)
    wish = np.stack([rng.normal(size=n), np.zeros(n)], axis=1).astype(np.float32)
    encoder = Encoder(
        context=(Continuous("wish", 0.0, 1.0),), candidate=(Continuous("a", 0.0, 1.0), Continuous("b", 0.0, 1.0))
    )
    action = (rng.random(n) * mask.sum(axis=1)).astype(np.int64)
    batch = Batch(
        encoder=encoder, context=wish, candidates=candidates, mask=mask, action=action,
        propensity=1.0 / mask.sum(axis=1), reward=np.zeros(n), metrics=np.empty((n, 0)),
        discount=np.zeros(n), next=np.full(n, -1), unit=np.arange(n),
    )  # fmt: skip
    return replace(batch, reward=truth(batch)[np.arange(n), action])


def truth(batch: Batch) -> np.ndarray:
    """[N, K]."""
    wish, a, b = batch.context[:, :1].astype(float), batch.candidates[:, :, 0], batch.candidates[:, :, 2]
    return 5.0 + 2.0 * wish - a + 0.5 * b + wish * (3.0 * a - 2.0 * b)


@pytest.mark.parametrize("loss", ["direct", "mtr", "dr"])
def test_candidates_with_features_are_worth_all_products_of_both(loss):
    batch = featured()
    found = scores(batch, "linear", loss=loss, ridge=1e-6)
    assert found[batch.mask] == pytest.approx(truth(batch)[batch.mask], abs=1e-4)


def pairs(batch: Batch, disjoint: bool) -> np.ndarray:
    """[N, K, B P] every phi written out, blocks of other actions 0."""
    phi = columns(batch)[:, None, :, None]
    if disjoint:
        return (phi * batch.candidates[:, :, None, :]).transpose(0, 1, 3, 2).reshape(*batch.mask.shape, -1)
    column = np.concatenate([np.ones((*batch.mask.shape, 1)), batch.candidates], axis=2)
    return (phi * column[:, :, None, :]).reshape(*batch.mask.shape, -1)


def subsets(n: int = 500) -> Batch:
    """Named actions, some rows with one of them missing, in another order in every row."""
    random = np.random.default_rng(5)
    order = np.argsort(random.random((n, 3)), axis=1)
    mask = np.ones((n, 3), dtype=bool)
    mask[: n // 2, 2] = False
    action = (random.random(n) * mask.sum(axis=1)).astype(np.int64)
    propensity = random.uniform(0.2, 0.9, size=n)
    return replace(LOG.take(np.arange(n)), candidates=np.eye(3, dtype=np.float32)[order], mask=mask, action=action,
                   propensity=propensity)  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("coefficients", ["disjoint", "joint"])
@pytest.mark.parametrize("offered", ["all", "some", "features"])
def test_every_loss_is_the_least_squares_of_its_targets(loss, coefficients, offered):
    """Over pairs of row and candidate, all written out: whatever candidates there are, whoever shares coefficients."""
    batch = {"all": LOG.take(np.arange(500)), "some": subsets(), "features": featured(500)}[offered]
    if offered == "features" and coefficients == "disjoint":
        with pytest.raises(DataError, match="disjoint coefficients are of named actions without features"):
            scores(batch, "linear", loss=loss, coefficients=coefficients)
        return
    batch = replace(batch, propensity=np.linspace(0.2, 0.9, 500))
    phi, row, mean = pairs(batch, coefficients == "disjoint"), np.arange(500), batch.reward.mean()
    taken, reward, weight = phi[row, batch.action], batch.reward - mean, 1 / batch.propensity
    direct = ridge(taken, reward, np.ones(500), 2.0)
    model = phi @ direct if loss == "dr" else np.zeros(batch.mask.shape)
    target = model.copy()
    target[row, batch.action] += (reward - model[row, batch.action]) * weight
    wanted = {
        "direct": lambda: direct,
        "mtr": lambda: ridge(taken, reward, weight / weight.mean(), 2.0),
        "ips": lambda: ridge(phi[batch.mask], target[batch.mask], np.ones(batch.mask.sum()), 2.0),
        "dr": lambda: ridge(phi[batch.mask], target[batch.mask], np.ones(batch.mask.sum()), 2.0),
    }[loss]()
    found = scores(batch, "linear", loss=loss, ridge=2.0, coefficients=coefficients)
    assert found[batch.mask] == pytest.approx((mean + phi @ wanted)[batch.mask], abs=2e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("batch", [LOG, featured(), subsets()], ids=["named", "features", "subsets"])
def test_sums_of_windows_are_the_sums_of_all_their_rows(batch, loss):
    """Three windows one after the other, with other means each, against one fit on all: coefficients within 1e-9."""
    n = len(batch)
    batch = replace(batch, reward=batch.reward + np.where(np.arange(n) < n // 3, 5.0, 0.0))
    config = bandit.Linear(loss=loss)
    whole = bandit.extend(batch, config, 0, None)[0].scorer.weights()["weight"]
    sums = None
    for window in np.split(np.arange(n), [n // 3, n // 2]):
        policy, sums = bandit.extend(batch.take(window), config, 0, sums)
    assert int(sums["rows"]) == n
    assert policy.scorer.weights()["weight"] == pytest.approx(whole, rel=0, abs=1e-9)


def test_the_bonus_is_alpha_standard_errors_of_what_is_not_known():
    """For named actions by each one's own rows, for features by all rows: alpha s sqrt(phi' (G + ridge)^-1 phi)."""
    phi, mean, bonus = columns(LOG), LOG.reward.mean(), np.empty((len(LOG), 3))
    left = 0.0
    for action in range(3):
        mine = LOG.action == action
        gram = phi[mine].T @ phi[mine] + np.eye(phi.shape[1])
        bonus[:, action] = np.sqrt(np.sum(phi @ np.linalg.inv(gram) * phi, axis=1))
        fitted = phi[mine] @ ridge(phi[mine], LOG.reward[mine] - mean, np.ones(mine.sum()), 1.0)
        left += float(np.sum((LOG.reward[mine] - mean - fitted) ** 2))
    want = scores(LOG, "linear", loss="direct") + 1.5 * np.sqrt(left / len(LOG)) * bonus
    assert scores(LOG, "linucb", alpha=1.5) == pytest.approx(want, abs=1e-6)

    batch = featured()
    noisy = replace(batch, reward=batch.reward + np.random.default_rng(0).normal(size=len(batch)))
    row = np.arange(len(batch))
    column = np.concatenate([np.ones((len(batch), 3, 1)), batch.candidates], axis=2)
    pairs = (columns(noisy)[:, None, :, None] * column[:, :, None, :]).reshape(len(batch), 3, -1)
    taken = pairs[row, noisy.action]
    gram = taken.T @ taken + np.eye(pairs.shape[2])
    plain = scores(noisy, "linear", loss="direct")
    error = np.sqrt(np.mean((noisy.reward - plain[row, noisy.action]) ** 2))
    want = plain + error * np.sqrt(np.einsum("nkp,pq,nkq->nk", pairs, np.linalg.inv(gram), pairs))
    assert scores(noisy, "linucb") == pytest.approx(want, abs=1e-4)


def test_an_action_that_was_never_logged_is_worth_the_mean_to_the_one_and_a_try_to_the_other():
    rows = np.flatnonzero(LOG.action != 2)
    batch = LOG.take(rows)
    assert scores(batch, "linear")[:, 2] == pytest.approx(batch.reward.mean(), abs=1e-6)
    tried = scores(batch, "linucb")
    assert (tried[:, 2] > tried[:, :2].max(axis=1)).mean() > 0.5


def test_a_constant_added_to_the_reward_is_added_to_the_scores():
    for loss in LOSSES:
        shifted = scores(replace(LOG, reward=LOG.reward + 100.0), "linear", loss=loss)
        assert shifted == pytest.approx(scores(LOG, "linear", loss=loss) + 100.0, abs=1e-4)


def test_too_many_products_numbers_and_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="ridge is 0, must be above 0"):
        learn.configure("linear", {"ridge": 0.0})
    with pytest.raises(ConfigError, match="alpha is -1, must be at least 0"):
        learn.configure("linucb", {"alpha": -1.0})
    with pytest.raises(ConfigError, match="linucb"):
        learn.configure("linucb", {"loss": "ips"})
    batch = featured(10)
    fields = tuple(Continuous(f"f{i:03d}", 0.0, 1.0) for i in range(500))
    wide = Encoder(context=fields, candidate=batch.encoder.candidate)
    big = replace(batch, encoder=wide, context=np.zeros((10, 1000), dtype=np.float32))
    with pytest.raises(DataError, match="1001 columns of the context times 5 of the candidates are 5,005 products"):
        learn.fit(big, learn.configure("linear", {}), 0)


def test_every_loss_reaches_the_bar_on_200_000_decisions():
    """20 numbers, 10 actions, best 0.730: at least 0.725; the log itself has 0.50, uniform 0.305."""
    world = logit()
    batch = world.sample(200_000, 1)
    numbers = np.random.default_rng(5).normal(size=(50_000, 20))
    mean = world.mean(numbers)
    candidates = np.broadcast_to(np.eye(10, dtype=np.float32), (len(mean), 10, 10))
    for loss in LOSSES:
        policy = learn.fit(batch, learn.configure("linear", {"loss": loss}), 0)
        best = policy.scorer(world.columns(numbers), candidates).argmax(axis=1)
        assert mean[np.arange(len(mean)), best].mean() >= 0.725, loss
