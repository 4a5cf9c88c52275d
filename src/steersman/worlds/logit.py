"""A bandit over numbers whose rewards are 0 or 1 with a logit linear in the context: what linear learners are for.

With 20 numbers and 10 actions: uniform value 0.305, best 0.730, and a softmax that logs at about 0.505.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.features import Continuous, Encoder
from steersman.worlds.tabular import pick, softmax

Array = np.ndarray

INTERCEPT, SLOPE, GREED = -1.148, 1.56, 1.0


@dataclass(frozen=True, eq=False)
class Logit:
    """The world: `slopes` [K, F] f64 of the logits."""

    slopes: Array

    @property
    def encoder(self) -> Encoder:
        """Standard normal numbers, the actions by name."""
        k, f = self.slopes.shape
        fields = tuple(Continuous(f"number{i:02d}", 0.0, 1.0) for i in range(f))
        return Encoder(context=fields, actions=tuple(f"action{i:02d}" for i in range(k)))

    def mean(self, numbers: Array) -> Array:
        """[N, K] f64, probability of a reward. numbers: [N, F]."""
        return 1.0 / (1.0 + np.exp(-INTERCEPT - SLOPE * numbers @ self.slopes.T))

    def behavior(self, numbers: Array) -> Array:
        """[N, K] f64, probabilities of the policy that logs. numbers: [N, F]."""
        return softmax(GREED * numbers @ self.slopes.T)

    def columns(self, numbers: Array) -> Array:
        """[N, 2 F] f32, the numbers as the encoder gives them: each with a missing indicator that is 0."""
        columns = np.zeros((len(numbers), 2 * numbers.shape[1]), dtype=np.float32)
        columns[:, ::2] = numbers
        return columns

    def sample(self, n: int, seed: int) -> Batch:
        """n decisions of the behavior policy, each the terminated episode of a unit of its own."""
        rng = np.random.default_rng(seed)
        numbers = rng.normal(size=(n, self.slopes.shape[1]))
        behavior = self.behavior(numbers)
        action = pick(behavior, rng)
        row, k = np.arange(n), len(self.slopes)
        return Batch(
            encoder=self.encoder,
            context=self.columns(numbers),
            candidates=np.broadcast_to(np.eye(k, dtype=np.float32), (n, k, k)),
            mask=np.broadcast_to(np.ones(k, dtype=bool), (n, k)),
            action=action,
            propensity=behavior[row, action],
            reward=(rng.random(n) < self.mean(numbers)[row, action]).astype(np.float64),
            metrics=np.empty((n, 0)),
            discount=np.zeros(n),
            next=np.full(n, -1),
            unit=row,
        )


def logit(numbers: int = 20, actions: int = 10, seed: int = 0) -> Logit:
    """A world with random slopes."""
    return Logit(np.random.default_rng(seed).normal(size=(actions, numbers)) / np.sqrt(numbers))
