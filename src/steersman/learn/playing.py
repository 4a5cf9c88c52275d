"""Which loop a learner plays a simulator by: rounds of episodes, policy gradients, or a step a decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from steersman.core.errors import ConfigError
from steersman.core.policy import Policy
from steersman.core.simulator import Simulator
from steersman.learn import Progress, converted, gradient, online, rounds
from steersman.learn.actor_critic import DDPG, SAC, TD3, TD3BC
from steersman.learn.dqn import DQN
from steersman.learn.gradient import REINFORCE
from steersman.learn.online import Online
from steersman.learn.rounds import Rounds


class NoTurns(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a learner that has all it needs in its own settings."""


def improve(
    world: Simulator, config: Struct, turns: Mapping[str, Any], seed: int, progress: Progress | None = None
) -> Policy:
    """See `learn.improve`."""
    who, numbers = type(config).__name__, world.encoder.numbers is not None
    if isinstance(config, DDPG | TD3 | SAC) and not isinstance(config, TD3BC):
        _acts_on(numbers, f"{who} learns over numbers, and the world has candidates", "use dqn or ppo")
        return online.learn_online(world, config, converted(turns, Online, f"turns of {who}"), seed, progress)
    if isinstance(config, DQN | REINFORCE):
        _acts_on(not numbers, f"{who} learns over candidates, and the actions of the world are numbers", "use sac")
        if isinstance(config, DQN):
            return rounds.improve(world, config, converted(turns, Rounds, f"turns of {who}"), seed, progress)
        converted(turns, NoTurns, f"turns of {who}")
        return gradient.improve(world, config, seed, progress)
    raise ConfigError(
        f"{who} learns from logs, not while it plays",
        hint="use dqn, cql, c51, qr-dqn, ppo or reinforce; for numbers ddpg, td3 or sac",
        field="learner",
    )


def _acts_on(fits: bool, message: str, hint: str) -> None:
    if not fits:
        raise ConfigError(message, hint=hint, field="learner")
