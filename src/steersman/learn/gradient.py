"""Policy gradients over candidates, for simulators: play, learn from what was just played, play again.

They need episodes of the policy itself, so they can not learn from a log, and are no rows of the table of learners.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.features import Encoder
from steersman.core.policy import Policy, Softmax
from steersman.core.simulator import Simulator
from steersman.learn import Progress, nets
from steersman.learn.cloning import log_chances
from steersman.learn.nets import Array, Minibatch, Student, Tensor, no_grad
from steersman.learn.play import play, returns_of_episodes
from steersman.learn.returns import alone
from steersman.learn.settings import require

LAST = 100
"""Episodes that the `return` of a report is the mean of."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logarithms of the probabilities of the candidates taken, now and when they were played, and their advantages, each
[B] -> what falls as good candidates become likelier."""


class REINFORCE(Struct, frozen=True, forbid_unknown_fields=True):
    """The plain policy gradient, with the value of the context as its baseline.

    Attributes:
        hidden: width of each hidden layer of both nets, the policy's and the baseline's.
        discount: of one step, in [0, 1], times the problem's own.
        trace: share of a later step's surprise that an advantage counts, a step, in [0, 1]: 1: all that came after.
        episodes: to play in all, at least 1; the last round is played to its end.
        epochs: how often the rows of a round are gone through, at least 1.
        batch_size: rows a training step, at least 1; the plain gradient is right for its first step on a round alone.
        learning_rate: of Adam at first, above 0; it falls to 0 along a line.
        entropy: what a unit of the policy's entropy is worth, in standard deviations of the advantages, at least 0.
    Source: Williams 1992; Schulman et al. 2016, arXiv:1506.02438, eq. 16, for `trace`.
    """

    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.99
    trace: float = 1.0
    episodes: int = 1000
    epochs: int = 1
    batch_size: int = 65_536
    learning_rate: float = 1e-2
    entropy: float = 0.01

    def __post_init__(self) -> None:
        for name in ("episodes", "epochs", "batch_size"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("discount", "trace"):
            require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "in [0, 1]")
        law = f"widths in [1, {nets.WIDEST}]"
        require("hidden", self.hidden, all(1 <= width <= nets.WIDEST for width in self.hidden), law)
        require("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0")
        require("entropy", self.entropy, 0 <= self.entropy < math.inf, "at least 0")


class PPO(REINFORCE, frozen=True, forbid_unknown_fields=True):
    """Proximal policy optimisation: the same rows several times, as long as the policy stays near what played them.

    Attributes:
        clip: how far a probability may move from the one that was played, as a share of it, above 0.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7 and algorithm 1.
    """

    trace: float = 0.95
    epochs: int = 8
    batch_size: int = 256
    learning_rate: float = 3e-3
    clip: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require("clip", self.clip, 0 < self.clip < math.inf, "above 0")


def improve(world: Simulator, config: REINFORCE, seed: int, progress: Progress | None = None) -> Policy:
    """Play and learn, round by round.

    Args:
        world: the episodes that run side by side in it are one round.
        progress: told (episodes played, episodes in all, figures: `return`, the mean of the last LAST episodes) every
            round.
    Returns:
        a policy whose scores are logarithms of probabilities, with the explorer that serves them as they are; for the
        candidate that it finds likeliest give it `EpsilonGreedy(0.0)`.
    Raises:
        DataError: the candidates have no columns.
        TrainingError: the training diverges.
    """
    trainer = Trainer(world.encoder, config, seed)
    starts, found, played = np.random.default_rng(seed), list[float](), 0
    with nets.one_thread():
        while played < config.episodes:
            batch = play(world, trainer.policy(), int(starts.integers(2**62)))
            trainer.learn(batch, played / config.episodes)
            done = returns_of_episodes(batch)
            played, found = played + len(done), [*found, *done][-LAST:]
            if progress is not None:
                progress(min(played, config.episodes), config.episodes, {"return": float(np.mean(found))})
    return trainer.policy()


class Trainer:
    """A policy and the value of a context, that learn from episodes that the policy has just played."""

    def __init__(self, encoder: Encoder, config: REINFORCE, seed: int) -> None:
        """Draw all weights."""
        self.encoder, self.config = encoder, config
        self._source = nets.generator(seed)
        self._shape = nets.shape_for(encoder, config.hidden)
        self._rate = config.learning_rate
        self.actor = Student(nets.new_net(self._shape, self._source), self._rate_now, 1.0)
        value = nets.Critics(encoder.context_width, config.hidden, 1)
        value.start(self._source)
        self.value = Student(value, self._rate_now, 1.0)
        self._unit = 0.0

    def policy(self) -> Policy:
        """As it is now."""
        return Policy(self.encoder, nets.TorchScorer.of(self._shape, self.actor.net, 1.0), Softmax(1.0))

    def learn(self, batch: Batch, share_done: float) -> None:
        """Go through the rows of a round.

        Args:
            batch: whole episodes, played by this policy as it is: its propensities are the policy's own.
            share_done: of the training, in [0, 1).
        """
        config = self.config
        self._rate = config.learning_rate * (1.0 - share_done)
        self._unit = self._unit or float(np.abs(batch.reward).max()) or 1.0
        lesson = self.lesson(batch)
        loss_of = clipped(config.clip) if isinstance(config, PPO) else likelier
        for _ in range(config.epochs):
            order = nets.shuffled(len(lesson.row), self._source)
            for start in range(0, len(order), config.batch_size):
                self._step(lesson, order[start : start + config.batch_size], loss_of)

    def lesson(self, batch: Batch) -> Lesson:
        """What the rows of a batch teach."""
        with no_grad():
            value = self.value.net(nets.from_numpy(batch.context))[0].double().numpy() * self._unit
        advantage, row = advantages(batch, value, self.config.discount, self.config.trace)
        target = ((advantage + value[row]) / self._unit).astype(np.float32)
        spread = float(advantage.std()) or 1.0
        scaled = alone(row, (advantage - advantage.mean()) / spread)
        before = np.log(batch.propensity[row]).astype(np.float32)
        return Lesson(row, nets.gatherer(batch, scaled, 1.0), nets.from_numpy(before), nets.from_numpy(target))

    def _step(self, lesson: Lesson, places: Array, loss_of: Loss) -> None:
        rows, some = lesson.gather(places), nets.from_numpy(places)
        self.actor.step(policy_loss(self.actor.net, rows, lesson.before[some], loss_of, self.config.entropy))
        self.value.step(nets.squared(self.value.net(rows.context)[0], lesson.target[some]))

    def _rate_now(self, done: int) -> float:
        return self._rate


@dataclass(frozen=True, eq=False)
class Lesson:
    """What M rows of a batch teach.

    Attributes:
        row: [M] i64, of the batch.
        gather: places in `row` -> rows whose `reward` is the advantage, in standard deviations from its mean.
        before: [M] logarithm of the probability of the candidate taken, when it was played.
        target: [M] of the value of the context, in units of the training.
    """

    row: Array
    gather: Callable[[Array], Minibatch]
    before: Tensor
    target: Tensor


def advantages(batch: Batch, value: Array, discount: float, trace: float) -> tuple[Array, Array]:
    """How much better each step went than its context is worth: [M] f64, and the rows [M] of which it is known.

    The last row of an episode that was cut is left out: what came after it was not seen; its value stands for it.

    Args:
        value: [N] f64, what the context of each row is worth.
        discount: of one step, times the batch's own.
        trace: in [0, 1].
    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    known = batch.terminated | (batch.next >= 0)
    follows = batch.next >= 0
    ahead = np.where(follows, value[batch.next], 0.0)
    ahead[batch.terminated] = 0.0
    surprise = np.where(known, batch.reward + discount * batch.discount * ahead - value, 0.0)
    advantage = surprise.copy()
    for row in np.flatnonzero(follows & ~batch.terminated)[::-1]:  # next is always a later row
        advantage[row] += discount * batch.discount[row] * trace * advantage[batch.next[row]]
    row = np.flatnonzero(known)
    return advantage[row], row


def policy_loss(net: nets.Net, rows: Minibatch, before: Tensor, loss_of: Loss, entropy: float) -> Tensor:
    """The loss of a policy on rows whose `reward` is their advantage, less what its entropy is worth."""
    log = log_chances(net, rows.context, rows.candidates, rows.mask)
    taken = log.gather(1, rows.action[:, None])[:, 0]
    undecided = -(log.exp() * log.masked_fill(~rows.mask, 0.0)).sum(dim=1)
    return loss_of(taken, before, rows.reward) - entropy * undecided.mean()


def likelier(taken: Tensor, before: Tensor, advantage: Tensor) -> Tensor:
    """-mean(A log p). Source: Williams 1992."""
    return -(taken * advantage).mean()


def clipped(clip: float) -> Loss:
    """-mean(min(r A, clip(r) A)), r being the probability now over that when it was played.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """

    def loss(taken: Tensor, before: Tensor, advantage: Tensor) -> Tensor:
        ratio = (taken - before).exp()
        return -(ratio * advantage).minimum(ratio.clamp(1.0 - clip, 1.0 + clip) * advantage).mean()

    return loss
