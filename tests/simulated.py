"""A bandit that decides, learns from what it saw, and decides again: its regret in a world with known means."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.policy import Explorer
from steersman.worlds.logit import Logit
from steersman.worlds.tabular import pick


def regret(
    world: Logit, learner: str, explorer: Explorer | None, *, rounds: int, size: int, seed: int, **settings: object
) -> float:
    """Mean regret of a decision over rounds of so many decisions, learned from once a round, the first at random.

    explorer: None: the learner's own.
    """
    config = learn.configure(learner, settings)
    extend = importlib.import_module(type(config).__module__).extend
    random = np.random.default_rng(seed)
    policy, sums, lost = None, None, 0.0
    for number in range(rounds):
        batch, mean = offered(world, size, random)
        chances = np.full(mean.shape, 1 / mean.shape[1]) if policy is None else policy.propensities(batch)
        batch, missed = decided(batch, mean, chances, random)
        lost += missed
        if learner != "uniform":
            policy, sums = extend(batch, config, seed * 1000 + number, sums)
            policy = policy if explorer is None else replace(policy, explorer=explorer)
    return lost / (rounds * size)


def offered(world: Logit, size: int, random: np.random.Generator) -> tuple[Batch, np.ndarray]:
    """Rows whose actions mean nothing yet, and the true mean [N, K] of each."""
    numbers = random.normal(size=(size, world.slopes.shape[1]))
    k = len(world.slopes)
    batch = Batch(
        encoder=world.encoder, context=world.columns(numbers),
        candidates=np.broadcast_to(np.eye(k, dtype=np.float32), (size, k, k)),
        mask=np.broadcast_to(np.ones(k, dtype=bool), (size, k)), action=np.zeros(size, dtype=np.int64),
        propensity=np.ones(size), reward=np.zeros(size), metrics=np.empty((size, 0)), discount=np.zeros(size),
        next=np.full(size, -1), unit=np.arange(size),
    )  # fmt: skip
    return batch, world.mean(numbers)


def decided(batch: Batch, mean: np.ndarray, chances: np.ndarray, random: np.random.Generator) -> tuple[Batch, float]:
    """The rows with actions and rewards, and what was missed by them."""
    row, action = np.arange(len(batch)), pick(chances, random)
    won = mean[row, action]
    reward = (random.random(len(batch)) < won).astype(float)
    made = replace(batch, action=action, propensity=chances[row, action], reward=reward)
    return made, float((mean.max(axis=1) - won).sum())
