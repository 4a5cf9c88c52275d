"""The Q family in a simulator: play some episodes, remember all, learn, play again."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.policy import EpsilonGreedy, Policy, Uniform, constant_scorer
from steersman.core.simulator import Simulator
from steersman.learn import Progress, nets
from steersman.learn.cloning import check_told_apart
from steersman.learn.dqn import DQN, Trainer, variation_of
from steersman.learn.play import play, returns_of_episodes, together
from steersman.learn.settings import require, returns_of, unit_of, watch_of


class Rounds(Struct, frozen=True, forbid_unknown_fields=True):
    """How playing and learning take turns.

    Attributes:
        random: decisions by a uniform policy before anything is learned, at least 1; episodes are played to their end.
        rounds: of learning, at least 1; between two of them every episode of the simulator is played once. Each makes
            an even part of the training steps.
        epsilon: share of the decisions that explore, in [0, 1].
        first_epsilon: the same in the first round that is played by what was learned, in [epsilon, 1]; None: epsilon.
        falling: share of the rounds in which the one becomes the other, evenly, in (0, 1].
    """

    random: int = 10_000
    rounds: int = 15
    epsilon: float = 0.1
    first_epsilon: float | None = None
    falling: float = 0.5

    def __post_init__(self) -> None:
        for name in ("random", "rounds"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        EpsilonGreedy(self.epsilon)
        first = self.first_epsilon
        require("first_epsilon", first, first is None or self.epsilon <= first <= 1, "in [epsilon, 1]")
        require("falling", self.falling, 0 < self.falling <= 1, "in (0, 1]")

    def exploring(self, turn: int) -> float:
        """Share of the decisions that explore in round `turn`, from 1.

        >>> rounds = Rounds(rounds=9, epsilon=0.1, first_epsilon=0.5, falling=0.5)
        >>> [round(rounds.exploring(turn), 3) for turn in (1, 3, 5, 8)]
        [0.5, 0.3, 0.1, 0.1]
        """
        if self.first_epsilon is None:
            return self.epsilon
        done = min(1.0, (turn - 1) / max(1.0, self.falling * (self.rounds - 1)))
        return self.first_epsilon + done * (self.epsilon - self.first_epsilon)


def improve(world: Simulator, config: DQN, rounds: Rounds, seed: int, progress: Progress | None = None) -> Policy:
    """Play and learn by turns, from all that was played so far.

    Same world, config and seed: same policy, bit for bit, on the same kind of CPU.

    Args:
        config: of `dqn`, `cql`, `c51` or `qr-dqn`; its steps are those of all rounds together.
        progress: told (steps done, steps in all, figures, `return` of the last episodes among them) every round.
    Returns:
        a policy that takes the best candidate.
    Raises:
        DataError: the candidates have no columns, the random decisions were all paid 0, or a candidate looks like
            padding and there is a `behavior_threshold`.
        TrainingError: the training diverges.
    """
    draws = np.random.default_rng(seed)

    def played(policy: Policy) -> Batch:
        return play(world, policy, int(draws.integers(2**62)))

    uniform = Policy(world.encoder, constant_scorer, Uniform())
    seen = [played(uniform)]
    while sum(map(len, seen)) < rounds.random:
        seen.append(played(uniform))
    memory = together(seen)
    if config.behavior_threshold:
        check_told_apart(memory)
    unit = unit_of(memory)
    trainer = Trainer(world.encoder, config, variation_of(memory, config), unit, seed)
    watch = watch_of(unit, config.discount * float(memory.discount.max()))
    ends = np.linspace(0, config.steps, rounds.rounds + 1).astype(int).tolist()
    with nets.one_thread():
        for turn, (start, end) in enumerate(itertools.pairwise(ends)):
            if turn:
                explored = dataclasses.replace(trainer.policy(), explorer=EpsilonGreedy(rounds.exploring(turn)))
                seen = [played(explored)]
                memory = together([memory, *seen])
            returns = returns_of(memory, config)
            gather = nets.gatherer(memory, returns, unit)
            for places, _ in nets.Draws(memory.unit[returns.row], config.batch_size).block(seed, start, end - start):
                loss, value = trainer.update(gather(places))
            if start < end:
                figures = watch(end, loss.detach(), value.detach())
                if progress is not None:
                    progress(end, config.steps, figures | {"return": float(returns_of_episodes(seen[-1]).mean())})
    return trainer.policy()
