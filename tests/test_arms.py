"""Bandits without a context: indices and posteriors against numbers worked out by hand, propensities, regret."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from simulated import regret
from steersman import learn
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, DataError
from steersman.core.policy import EpsilonGreedy, Policy, Uniform
from steersman.worlds.logit import Logit, logit
from test_bandit import featured


def log(taken: list[int], reward: list[float], propensity: float | list[float] = 0.25) -> Batch:
    """Rows of four named actions, and a context that does not matter."""
    batch = logit(numbers=1, actions=4).sample(len(taken), 0)
    chance = np.broadcast_to(np.asarray(propensity, dtype=float), len(taken)).copy()
    return replace(batch, action=np.array(taken), reward=np.array(reward, dtype=float), propensity=chance)


ROWS = log([0] * 4 + [1] * 2 + [3] * 10, [1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1])


def fit(batch: Batch, learner: str, seed: int = 0, **settings: object) -> Policy:
    return learn.fit(batch, learn.configure(learner, settings), seed)


def scores(policy: Policy, batch: Batch) -> np.ndarray:
    return policy.scorer(batch.context, batch.candidates)


def test_ucb1_has_its_indices_by_hand():
    """Means 3/4, 1/2, 1/5 of 4, 2, 10 rows of 16: sqrt(2 ln 16 / 4) is 1.17741; the action never taken comes first."""
    want = [0.75 + 1.17741, 0.5 + 1.66511, 0.2 + 0.744661]
    found = scores(fit(ROWS, "ucb1"), ROWS)
    assert found[:, [0, 1, 3]] == pytest.approx(np.tile(want, (16, 1)), abs=1e-5)
    assert (found[:, 2] > found[:, [0, 1, 3]].max(axis=1)).all()
    half = scores(fit(ROWS, "ucb1", alpha=0.5), ROWS)[0]
    assert half[0] == pytest.approx(0.75 + 1.17741 / 2, abs=1e-5)


def test_bounds_of_the_reward_stretch_ucb1_as_they_stretch_the_reward():
    stretched = replace(ROWS, reward=10 * ROWS.reward - 2)
    found = scores(fit(stretched, "ucb1", lowest=-2.0, highest=8.0), ROWS)
    assert found == pytest.approx(10 * scores(fit(ROWS, "ucb1"), ROWS) - 2, abs=1e-4)


def test_beta_draws_are_of_one_success_and_failure_more_than_were_seen():
    """Beta(4, 2), Beta(2, 2), Beta(1, 1), Beta(3, 9): mean a / (a + b), variance a b / ((a + b)^2 (a + b + 1))."""
    draws = scores(fit(ROWS, "beta-thompson", draws=60_000), ROWS)[0]
    for found, (a, b) in zip(draws, [(4, 2), (2, 2), (1, 1), (3, 9)], strict=True):
        variance = a * b / ((a + b) ** 2 * (a + b + 1))
        assert found.mean() == pytest.approx(a / (a + b), abs=5 * np.sqrt(variance / 60_000))
        assert found.var() == pytest.approx(variance, rel=0.03)
    prior = scores(fit(ROWS, "beta-thompson", draws=60_000, successes=7.0, failures=3.0), ROWS)[0]
    assert prior[2].mean() == pytest.approx(0.7, abs=0.005)


def test_beta_propensities_are_the_chances_to_be_best_by_integration():
    """P(a is best) is the integral of its density times the others' distribution functions, on a fine grid."""
    shares = np.linspace(0, 1, 200_001)
    middle = (shares[1:] + shares[:-1]) / 2
    density = np.stack([middle ** (a - 1) * (1 - middle) ** (b - 1) for a, b in [(4, 2), (2, 2), (1, 1), (3, 9)]])
    density /= density.sum(axis=1, keepdims=True)
    below = np.cumsum(density, axis=1) - density / 2
    policy = fit(ROWS, "beta-thompson", draws=40_000)
    for there in ([0, 1, 2, 3], [0, 2], [1, 3], [0, 1, 3], [3]):
        mask = np.zeros((len(ROWS), 4), dtype=bool)
        mask[:, there] = True
        offered = replace(ROWS, mask=mask, action=np.full(len(ROWS), there[0]))
        want = np.zeros(4)
        for one in there:
            want[one] = (density[one] * np.prod([below[other] for other in there if other != one], axis=0)).sum()
        assert want.sum() == pytest.approx(1.0, abs=1e-6)
        found = policy.propensities(offered)
        assert found[0] == pytest.approx(want, abs=5 * np.sqrt(0.25 / 40_000))
        assert (found == found[0]).all()
        assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-12)


def test_weighted_rows_count_as_many_as_they_are_worth():
    """Weights 2 and 4 of action 0: mean (2 + 0) / 6, (2 + 4)^2 / (4 + 16) = 1.8 rows; of action 1 two rows of one."""
    batch = log([0, 0, 1, 1], [1, 0, 1, 0], [0.5, 0.25, 0.5, 0.5])
    found = scores(fit(batch, "ucb1", loss="mtr"), batch)[0]
    assert found[0] == pytest.approx(1 / 3 + np.sqrt(2 * np.log(3.8) / 1.8), abs=1e-6)
    assert found[1] == pytest.approx(1 / 2 + np.sqrt(2 * np.log(3.8) / 2.0), abs=1e-6)


def test_weights_undo_a_log_that_chose_by_the_context():
    """The action is worth 0.5 on average, but was taken where it is worth more: only weights see that."""
    random = np.random.default_rng(0)
    good = random.random(40_000) < 0.5
    chance = np.where(good, 0.9, 0.1)
    taken = random.random(len(good)) < chance
    batch = log(taken.astype(int).tolist(), np.where(good & taken, 1.0, 0.0).tolist())
    batch = replace(batch, propensity=np.where(taken, chance, 1 - chance))
    assert scores(fit(batch, "ucb1", loss="mtr", alpha=0.0), batch)[0, 1] == pytest.approx(0.5, abs=0.02)
    assert scores(fit(batch, "ucb1", alpha=0.0), batch)[0, 1] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("loss", ["direct", "mtr"])
@pytest.mark.parametrize("learner", ["ucb1", "beta-thompson"])
def test_windows_added_one_after_the_other_are_one_fit_on_all_their_rows(learner, loss):
    batch = logit(numbers=1, actions=4).sample(900, 3)
    config = learn.configure(learner, {"loss": loss})
    whole, sums = learn.extend(batch, config, 7)
    parts = None
    for window in np.split(np.arange(900), [100, 500]):
        policy, parts = learn.extend(batch.take(window), config, 7, parts)
    assert {name: array.tolist() for name, array in parts.items()} == {
        name: pytest.approx(array, rel=1e-12) for name, array in sums.items()
    }
    assert scores(policy, batch) == pytest.approx(scores(whole, batch), abs=1e-9)


def test_what_such_a_bandit_can_not_learn_from_is_refused():
    with pytest.raises(DataError, match=r"row 2: the reward is 1.5, must be in \[0, 1\] \(1 such rows of 4\)"):
        fit(log([0, 1, 2, 3], [1, 0, 1.5, 0]), "ucb1")
    with pytest.raises(DataError, match="these candidates have features"):
        fit(featured(20), "beta-thompson")
    with pytest.raises(ConfigError, match="lowest is 1, must be below highest, 0"):
        learn.configure("ucb1", {"lowest": 1.0, "highest": 0.0})
    with pytest.raises(ConfigError, match="failures is 0, must be above 0"):
        learn.configure("beta-thompson", {"failures": 0.0})
    with pytest.raises(ConfigError, match="draws is 3, must be an even number"):
        learn.configure("beta-thompson", {"draws": 3})


class Flat(Logit):
    """Means of 0.2 to 0.7 whatever the context."""

    def mean(self, numbers: np.ndarray) -> np.ndarray:
        return np.broadcast_to([0.2, 0.3, 0.4, 0.5, 0.7], (len(numbers), 5))


@functools.cache
def mean_regret(learner: str, explorer: object, alpha: float | None = None) -> float:
    """Of 20,000 decisions, learned from every 200, over two seeds."""
    settings = {} if alpha is None else {"alpha": alpha}
    world = Flat(np.zeros((5, 1)))
    return float(np.mean([regret(world, learner, explorer, rounds=100, size=200, seed=s, **settings) for s in (0, 1)]))


@pytest.mark.parametrize("learner", ["ucb1", "beta-thompson"])
def test_what_explores_where_it_does_not_know_regrets_less_than_what_explores_anywhere(learner):
    assert mean_regret(learner, None) < 0.75 * mean_regret("ucb1", EpsilonGreedy(0.1), 0.0)
    assert mean_regret(learner, None) < 0.15 * mean_regret("ucb1", Uniform(), 0.0)
