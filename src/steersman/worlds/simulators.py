"""Simulators to learn in, by name, episodes side by side: CartPole, Acrobot, a game that offers few of its actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from steersman.core.features import Category, Continuous, Encoder
from steersman.core.simulator import Moved, Seen, Simulator
from steersman.worlds import pendulum
from steersman.worlds.registered import library

Array = np.ndarray

CARTPOLE = {"cart_position": 1.0, "cart_velocity": 1.0, "pole_angle": 0.1, "pole_velocity": 1.0}
ACROBOT = {
    "first_cosine": 0.7,
    "first_sine": 0.7,
    "second_cosine": 0.7,
    "second_sine": 0.7,
    "speed_first": 2.0,
    "speed_second": 4.0,
}
"""What each number of an observation is divided by, in its own order."""


class Gym:
    """E environments of gymnasium with numbers for observations and a few actions, a Simulator.

    Args:
        name: of the environment.
        scale: name of each number of an observation -> what it is divided by.
        actions: names.
        steps: after which a rule ends an episode.
        episodes: E.
        featured: actions are candidates with a feature, their name, instead of named actions.
    Raises:
        MissingExtra: gymnasium is not installed.
    """

    def __init__(
        self, name: str, scale: dict[str, float], actions: Sequence[str], *, steps: int, episodes: int, featured: bool
    ) -> None:
        gymnasium = library()
        self._worlds = [
            gymnasium.make(name, max_episode_steps=steps, disable_env_checker=True) for _ in range(episodes)
        ]
        context = tuple(Continuous(field, 0.0, size) for field, size in scale.items())
        one = (Category("kind", tuple(actions)),)
        self._encoder = Encoder(context, one) if featured else Encoder(context, actions=tuple(actions))
        self._scale = np.array(list(scale.values()))
        table = np.eye(len(actions), self._encoder.candidate_width, dtype=np.float32)
        self._candidates = np.broadcast_to(table, (episodes, *table.shape))
        self._now = np.empty((episodes, len(scale)))

    @property
    def encoder(self) -> Encoder:
        """Of the numbers of an observation and the actions."""
        return self._encoder

    def start(self, seed: int) -> Seen:
        """Begin every episode anew."""
        for i, world in enumerate(self._worlds):
            one = int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
            self._now[i], _ = world.reset(seed=one)
        return self._seen()

    def step(self, action: Array) -> Moved:
        """Take an action in every episode."""
        reward, discount = np.empty(len(action)), np.ones(len(action))
        over = np.zeros(len(action), dtype=bool)
        for i, world in enumerate(self._worlds):
            self._now[i], reward[i], ended, cut, _ = world.step(int(action[i]))
            discount[i], over[i] = not ended, ended or cut
        reached = self._seen()
        for i in np.flatnonzero(over).tolist():
            self._now[i], _ = self._worlds[i].reset()
        return Moved(reward, discount, over, reached, self._seen() if over.any() else reached)

    def _seen(self) -> Seen:
        context = np.zeros((len(self._now), 2 * self._now.shape[1]), dtype=np.float32)  # every other: is it missing?
        context[:, ::2] = self._now / self._scale
        return Seen(context, self._candidates, np.ones(self._candidates.shape[:2], dtype=bool))


def cartpole(episodes: int, *, steps: int = 200, featured: bool = False) -> Gym:
    """1 for every step that began upright."""
    return Gym("CartPole-v1", CARTPOLE, ("left", "right"), steps=steps, episodes=episodes, featured=featured)


def acrobot(episodes: int) -> Gym:
    """-1 for every step until the tip is above the bar, at most 500."""
    return Gym("Acrobot-v1", ACROBOT, ("left", "none", "right"), steps=500, episodes=episodes, featured=False)


class Offered:
    """A game of 200 steps in which two of four actions are offered at a time, a Simulator.

    An action pays 1 if it is the one of both that the context asks for, the first or the last, else 0; who takes one
    that is not offered is told so by an error. The best return is 200, that of chance 100.
    """

    STEPS, ACTIONS = 200, ("a", "b", "c", "d")

    def __init__(self, episodes: int) -> None:
        self._episodes, self._table = episodes, np.eye(len(self.ACTIONS), dtype=np.float32)
        self._encoder = Encoder((Continuous("asked", 0.0, 1.0),), actions=self.ACTIONS)

    @property
    def encoder(self) -> Encoder:
        """Of what is asked for, -1 the first and 1 the last, and the actions."""
        return self._encoder

    def start(self, seed: int) -> Seen:
        """Begin every episode anew."""
        self._rng, self._done = np.random.default_rng(seed), 0
        return self._next()

    def step(self, action: Array) -> Moved:
        """Take an action in every episode; raises ValueError if one is not offered."""
        row = np.arange(self._episodes)
        if not self._mask[row, action].all():
            raise ValueError("an action was taken that is not offered")
        last = len(self.ACTIONS) - 1 - self._mask[:, ::-1].argmax(axis=1)
        best = np.where(self._asked > 0, last, self._mask.argmax(axis=1))
        self._done += 1
        over = np.full(self._episodes, self._done % self.STEPS == 0)
        seen = self._next()
        return Moved((action == best).astype(np.float64), np.where(over, 0.0, 1.0), over, seen, seen)

    def _next(self) -> Seen:
        places = self._rng.random((self._episodes, len(self.ACTIONS))).argsort(axis=1)
        self._mask, self._asked = places < 2, self._rng.choice([-1.0, 1.0], size=self._episodes)
        context = np.stack([self._asked, np.zeros(self._episodes)], axis=1).astype(np.float32)
        return Seen(context, np.broadcast_to(self._table, (self._episodes, *self._table.shape)), self._mask)


class World(NamedTuple):
    """A simulator that has a name.

    Attributes:
        make: episodes side by side -> it.
        steps: after which a rule ends an episode.
    """

    make: Callable[[int], Simulator]
    steps: int


WORLDS: dict[str, World] = {
    "cartpole": World(cartpole, 200),
    "acrobot": World(acrobot, 500),
    "pendulum": World(pendulum.Pendulum, pendulum.STEPS),
    "offers": World(Offered, Offered.STEPS),
}
