"""Environments of Gymnasium's registry as a World: an episode has an environment and a seed of its own.

A vector entry point has one seed for all its environments, so there an episode would depend on those beside it; and a
vector environment goes on asking for those that are over. Here the nets are asked all at once, environments in turn.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from steersman.core.errors import ConfigError, Error, MissingExtra, did_you_mean
from steersman.worlds.episodes import Members

Array = np.ndarray

WHERE = "gymnasium.pprint_registry() lists them; PACKAGE:ID is one that a package registers"


@dataclass(frozen=True)
class Choice:
    """The action of the highest output, the first of equal ones.

    Attributes:
        outputs: actions.
        first: the number of the first of them.
    """

    outputs: int
    first: int

    def __call__(self, scores: Array) -> Array:
        """[P, outputs] f32 -> [P] i64."""
        return self.first + scores.argmax(axis=1)


@dataclass(frozen=True, eq=False)
class Within:
    """Numbers within bounds: an output of 0 is their middle, and tanh leads to either bound.

    Attributes:
        low, high: of the shape and the type of an action, finite.
    """

    low: Array
    high: Array

    @property
    def outputs(self) -> int:
        """Numbers of an action."""
        return self.low.size

    def __call__(self, scores: Array) -> Array:
        """[P, outputs] f32 -> [P, ...], of the shape and the type of an action."""
        low, high = self.low.astype(np.float64), self.high.astype(np.float64)
        share = (1 + np.tanh(scores.astype(np.float64).reshape(-1, *low.shape))) / 2
        return np.clip((low + share * (high - low)).astype(self.low.dtype), self.low, self.high)


@dataclass(frozen=True)
class Registered:
    """An environment that Gymnasium makes by its id, a World. Observations are used as they are.

    Attributes:
        name: its id, or module:id, where the import of the module registers it.
        inputs: numbers of an observation.
        acts: how outputs become actions.
        solved: its `reward_threshold`, if it has one.
    """

    name: str
    inputs: int
    acts: Choice | Within
    solved: float | None

    @property
    def outputs(self) -> int:
        """Of a net."""
        return self.acts.outputs

    def starts(self, count: int, rng: np.random.Generator) -> Array:
        """[count] i64: the seeds that episodes are reset with."""
        return rng.integers(2**31, size=count)

    def play(self, members: Members, starts: Array) -> Array:
        """See `World`. Environments are made afresh, so that nothing goes from one episode to another.

        Raises:
            Error: one of them raised whatever it did.
        """
        gymnasium = library()
        with contextlib.ExitStack() as made:
            worlds = []
            for _ in starts:
                worlds.append(gymnasium.make(self.name, disable_env_checker=True))
                made.callback(worlds[-1].close)
            return self._play(worlds, members, starts)

    def _play(self, worlds: list[Any], members: Members, starts: Array) -> Array:
        returns, rows = np.zeros(len(worlds)), np.arange(len(worlds))
        seen, step = np.zeros((len(worlds), self.inputs), dtype=np.float32), 0
        for row, seed in enumerate(starts.tolist()):
            with self._told_of(step, seed):
                seen[row], _ = worlds[row].reset(seed=seed)
        while len(rows):
            step += 1
            actions, over = self.acts(members(seen[:, None, :])[:, 0]), np.zeros(len(rows), dtype=bool)
            for place, row in enumerate(rows.tolist()):
                with self._told_of(step, starts[row]):
                    seen[place], reward, ended, cut, _ = worlds[row].step(actions[place])
                    returns[row] += float(reward)
                    over[place] = ended or cut
            if over.any():  # what is over is asked no more
                rows, seen, members = rows[~over], seen[~over], members.only(~over)
        return returns

    @contextlib.contextmanager
    def _told_of(self, step: int, seed: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # an environment's own code: what went wrong there is said in any way
            raise Error(
                f"{self.name} failed in step {step} of the episode of seed {seed}: {type(error).__name__}: {error}",
                hint="the environment itself, or a wrapper of it: reset it with this seed to see it again",
            ) from error


def library() -> Any:
    """Gymnasium.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("gymnasium")
    except ModuleNotFoundError:
        raise MissingExtra("gymnasium", "learn") from None


def registered(name: str, known: tuple[str, ...] = ()) -> Registered:
    """An environment of Gymnasium's registry.

    Args:
        name: its id; or module:id, where the import of the module registers it.
        known: what else might have been meant.
    Raises:
        ConfigError: there is none, it can not be made here, its episodes have no limit, or its spaces are no numbers.
        MissingExtra: Gymnasium is not installed.
    """
    gymnasium = library()
    module, _, short = name.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        spec = gymnasium.registry.get(short)
        if spec is None:
            hint = did_you_mean(short, (*known, *gymnasium.registry), WHERE)
            raise _refused(f"Gymnasium knows no environment {short!r}", hint)
        world = gymnasium.make(name, disable_env_checker=True)
    except ConfigError:
        raise
    except Exception as error:  # an environment's own code: what it needs and has not is said in any way
        raise _refused(
            f"{name} can not be made: {error}", "install or register what is missing, on every machine that plays it"
        ) from error
    world.close()
    inputs, acts = _inputs(gymnasium, name, world.observation_space), _acts(gymnasium, name, world.action_space)
    if spec.max_episode_steps is None:
        hint = "register it with max_episode_steps"
        raise _refused(f"{name} has no limit of steps, so an episode may never end", hint)
    return Registered(name, inputs, acts, None if spec.reward_threshold is None else float(spec.reward_threshold))


def _inputs(gymnasium: Any, name: str, space: Any) -> int:
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        hint = "a net needs a row of numbers: register it with the wrapper gymnasium.wrappers.FlattenObservation"
        raise _refused(f"observations of {name} are {space}", hint)
    return int(space.shape[0])


def _acts(gymnasium: Any, name: str, space: Any) -> Choice | Within:
    if isinstance(space, gymnasium.spaces.Discrete):
        return Choice(int(space.n), int(space.start))
    if not isinstance(space, gymnasium.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise _refused(f"actions of {name} are {space}", "one of a few (Discrete), or numbers within bounds (Box)")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        hint = "register it with actions in a Box of finite bounds"
        raise _refused(f"actions of {name} have no bounds: {space}", hint)
    return Within(space.low, space.high)


def _refused(message: str, hint: str) -> ConfigError:
    return ConfigError(message, hint=hint, field="world")
