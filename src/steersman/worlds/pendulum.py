"""A pendulum that a weak motor swings up: Gymnasium's Pendulum-v1 for many episodes at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from steersman.core.decision import Numbers
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import Policy, over_numbers
from steersman.core.simulator import Moved, Seen

Array = np.ndarray

STEPS = 200
"""After so many a rule ends the episode; the world never does."""

MOTOR = 2.0
"""Largest torque."""

FASTEST = 8.0
"""Largest angular speed."""

SECONDS = 0.05
"""A step."""

TORQUE = Numbers(low=(-MOTOR,), high=(MOTOR,))
ENCODER = Encoder(
    context=(Continuous("cosine", 0.0, 1.0), Continuous("sine", 0.0, 1.0), Continuous("speed", 0.0, 3.0)),
    numbers=TORQUE,
)

Decide = Callable[[Array], Array]
"""Contexts [E, F] f32 -> actions [E, 1]."""


class Pendulum:
    """E pendulums, a Simulator. The reward of a step is -(angle^2 + 0.1 speed^2 + 0.001 torque^2), of the angle from
    upright in [-pi, pi) before the step.

    Source: Gymnasium's Pendulum-v1: length 1 m, mass 1 kg, gravity 10 m/s^2.
    """

    def __init__(self, episodes: int = 1) -> None:
        self._episodes = episodes

    @property
    def encoder(self) -> Encoder:
        """Of cosine and sine of the angle, and the angular speed."""
        return ENCODER

    def start(self, seed: int) -> Seen:
        """Angles even on the circle, speeds even on [-1, 1]."""
        self._rng = np.random.default_rng(seed)
        self._angle, self._speed = np.empty(self._episodes), np.empty(self._episodes)
        self._step = np.zeros(self._episodes, dtype=np.int64)
        self._begin(np.ones(self._episodes, dtype=bool))
        return self._seen()

    def step(self, action: Array) -> Moved:
        """Turn the motors: [E, 1] torques."""
        torque = np.clip(action[:, 0].astype(np.float64), -MOTOR, MOTOR)
        angle = (self._angle + np.pi) % (2 * np.pi) - np.pi
        reward = -(angle**2 + 0.1 * self._speed**2 + 0.001 * torque**2)
        speed = self._speed + (15.0 * np.sin(self._angle) + 3.0 * torque) * SECONDS
        self._speed = np.clip(speed, -FASTEST, FASTEST)
        self._angle = self._angle + self._speed * SECONDS
        self._step += 1
        over, reached = self._step == STEPS, self._seen()
        if over.any():
            self._begin(over)
        seen = self._seen() if over.any() else reached
        return Moved(reward, np.ones(self._episodes), over, reached, seen)

    def _begin(self, which: Array) -> None:
        drawn = self._rng.uniform(-1.0, 1.0, (int(which.sum()), 2))
        self._angle[which], self._speed[which] = np.pi * drawn[:, 0], drawn[:, 1]
        self._step[which] = 0

    def _seen(self) -> Seen:
        context = np.zeros((self._episodes, 6), dtype=np.float32)
        context[:, 0], context[:, 2] = np.cos(self._angle), np.sin(self._angle)
        context[:, 4] = self._speed / 3.0
        return Seen(
            context, np.zeros((self._episodes, 0, 0), dtype=np.float32), np.zeros((self._episodes, 0), dtype=bool)
        )


def value(decide: Decide, episodes: int, seed: int) -> float:
    """Mean return of an episode, undiscounted, by playing it."""
    world = Pendulum(episodes)
    seen, total = world.start(seed), 0.0
    for _ in range(STEPS):
        moved = world.step(decide(seen.context))
        total, seen = total + float(moved.reward.mean()), moved.seen
    return total


def mean_of(policy: Policy) -> Decide:
    """What a policy does on average."""
    explorer = over_numbers(policy.explorer)
    return lambda context: explorer.mean(policy.scorer(context, np.zeros((len(context), 0, 0), np.float32)), TORQUE)
