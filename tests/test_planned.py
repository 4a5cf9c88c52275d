"""Policies cloned from plans, against worlds whose best policy is known and logs that leave much unseen."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.errors import ConfigError, DataError
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import Policy
from steersman.learn.planned import MOST, Planned, fit
from steersman.learn.planning import best_candidates
from steersman.worlds.rankings import ranking

A, B = np.array([[1.0, 0.4], [0.0, 0.9]]), np.array([[0.0, 0.2], [0.5, 0.0]])
Q, R = np.diag([1.0, 0.3]), np.diag([0.2, 0.4])
BOX = Numbers(low=(-2.0, -2.0), high=(2.0, 2.0))
HORIZON, DISCOUNT, LENGTH = 4, 0.95, 8
CONFIG = Planned(
    (64, 64), 1500, 256, 3e-3, 2e-5, members=3, plans=1000, horizon=HORIZON, discount=DISCOUNT, caution=0.1,
    population=60, elites=8, rounds=8,
)  # fmt: skip


def cost(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    return ((state @ Q) * state).sum(axis=1) + ((action @ R) * action).sum(axis=1)


def batch_of(state: np.ndarray, action: np.ndarray, reward: np.ndarray, box: Numbers) -> Batch:
    """Episodes [E, T, ...] that somebody stopped looking at."""
    episodes, length = reward.shape
    n, row = episodes * length, np.arange(episodes * length)
    columns = np.zeros((n, 2 * state.shape[2]), dtype=np.float32)
    columns[:, ::2] = state.reshape(n, -1)
    low, high = np.array(box.low), np.array(box.high)
    return Batch(
        encoder=Encoder(context=tuple(Continuous(name, 0.0, 1.0) for name in "ab"[: state.shape[2]]), numbers=box),
        context=columns, candidates=np.empty((n, 0, 0), np.float32), mask=np.empty((n, 0), bool),
        action=action.reshape(n, -1).astype(np.float32), propensity=np.full(n, 1.0 / (high - low).prod()),
        reward=reward.ravel(), metrics=np.empty((n, 0)), discount=np.ones(n),
        next=np.where(row % length == length - 1, -1, row + 1), unit=row // length,
    )  # fmt: skip


def log(episodes: int, seed: int) -> Batch:
    """Of a linear world with quadratic costs, that somebody acted evenly in."""
    rng = np.random.default_rng(seed)
    here, rows = rng.uniform(-1.0, 1.0, (episodes, 2)), []
    for _ in range(LENGTH):
        action = rng.uniform(-2.0, 2.0, (episodes, 2))
        rows.append((here, action, -cost(here, action)))
        here = here @ A.T + action @ B.T
    return batch_of(*(np.stack(column, axis=1) for column in zip(*rows, strict=True)), BOX)


@functools.cache
def gain() -> np.ndarray:
    """Of the best first action of HORIZON, by Riccati's recursion: minus it times the state."""
    ahead = np.zeros((2, 2))
    for _ in range(HORIZON):
        found = np.linalg.solve(R + DISCOUNT * B.T @ ahead @ B, DISCOUNT * B.T @ ahead @ A)
        ahead = Q + DISCOUNT * A.T @ ahead @ (A - B @ found)
    return found


def acting(policy: Policy, state: np.ndarray) -> np.ndarray:
    columns = np.zeros((len(state), 4), dtype=np.float32)
    columns[:, ::2] = state
    return np.clip(policy.scorer(columns, np.empty((len(state), 0, 0), np.float32)).astype(np.float64), -2.0, 2.0)


def test_it_does_what_plans_in_the_true_world_do() -> None:
    """From 300 episodes of even actions; the return of 20 steps, in shares of the way from these to the best plan."""
    policy = fit(log(300, 0), CONFIG, 0)
    start = np.random.default_rng(9).uniform(-1.0, 1.0, (300, 2))
    best = np.clip(-start @ gain().T, -2.0, 2.0)
    assert np.abs(acting(policy, start) - best).mean() < 0.1 * np.abs(best).max()
    rng = np.random.default_rng(8)
    value = [
        returned(start, act)
        for act in (
            lambda state: rng.uniform(-2.0, 2.0, state.shape),
            lambda state: np.clip(-state @ gain().T, -2.0, 2.0),
            lambda state: acting(policy, state),
        )
    ]
    behavior, plan, clone = value
    assert (clone - behavior) / (plan - behavior) > 0.97
    assert behavior < 2.0 * plan < 0.0  # so that it is worth something


def returned(state: np.ndarray, act) -> float:
    total = 0.0
    for _ in range(20):
        action = act(state)
        total -= float(cost(state, action).mean())
        state = state @ A.T + action @ B.T
    return total


def test_caution_keeps_plans_to_what_the_log_knows() -> None:
    """Rewards rise with the action, which the log has only the lower half of; beyond that nobody knows."""
    rng = np.random.default_rng(0)
    state, action = rng.normal(size=(400, 3, 1)), rng.uniform(-1.0, 0.0, (400, 3, 1))
    reward = np.sin(2.0 * action[:, :, 0] + 0.5) + 0.3 * state[:, :, 0]
    batch = batch_of(state, action, reward, Numbers(low=(-1.0,), high=(1.0,)))
    config = {"hidden": (32, 32), "steps": 300, "learning_rate": 5e-3, "members": 5, "plans": 200, "horizon": 1}
    policies = [fit(batch, Planned(**config, caution=caution), 0) for caution in (0.0, 10.0, 40.0)]
    bold, wary, careful = (one.scorer(batch.context, batch.candidates).clip(-1.0, 1.0).mean() for one in policies)
    assert bold > 0.9
    assert 0.3 < wary < 0.7
    assert -0.3 < careful < 0.2  # the best that is known


def test_only_the_candidates_of_the_row_are_planned_with() -> None:
    rng = np.random.default_rng(3)
    candidates, mask = rng.normal(size=(5, 3, 2)), rng.random((5, 3)) < 0.6
    mask[:, 0] = True
    candidates[~mask] = np.nan

    def step(context: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, ...]:
        after = np.sin(3.0 * context + taken[:, :1])
        return after, context[:, 0] * taken[:, 1] + taken[:, 0], np.full(len(context), 0.8)

    start = rng.normal(size=(5, 1))
    place, worth = best_candidates(step, start, candidates, mask, horizon=3, discount=0.7)
    for row in range(5):
        found = dict.fromkeys(range(3), -np.inf)
        for path in itertools.product(np.flatnonzero(mask[row]), repeat=3):
            here, weight, total = start[row : row + 1], 1.0, 0.0
            for one in path:
                here, reward, carry = step(here, candidates[row, one][None])
                total, weight = total + weight * reward[0], weight * 0.7 * carry[0]
            found[path[0]] = max(found[path[0]], total)
        assert worth[row].tolist() == pytest.approx(list(found.values()))
        assert place[row] == max(found, key=found.__getitem__)


def test_what_it_can_not_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="does not learn over ranked lists"):
        fit(ranking("cascade").sample(50, 0), CONFIG, 0)
    long = Planned(plans=400, horizon=1000, population=100, elites=10, rounds=10)
    with pytest.raises(DataError, match=f"400,000,000 steps of the model; at most {MOST:,}") as refused:
        fit(log(50, 0), long, 0)
    assert refused.value.field == "horizon"
    with pytest.raises(DataError, match="caution is -1"):
        Planned(caution=-1.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="in one process; this training has 2"):
        fit(log(50, 0), CONFIG, 0)
