"""The Q family: learn what each candidate is worth in the long run, take the best. One trainer, losses as values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.core.policy import EpsilonGreedy, Policy
from steersman.learn import Look, Progress, nets
from steersman.learn.nets import Array, Minibatch, Net, Student, Tensor
from steersman.learn.returns import Returns, n_step

SLACK = 3.0
"""How far beyond the largest possible value a learned one may be before that is called divergence."""

Loss = Callable[[Net, Net, Minibatch], tuple[Tensor, Tensor]]
"""(the net, its slow copy, rows) -> loss, and the values [B] of the candidates taken."""

Target = Callable[[Net, Net, Minibatch], Tensor]
"""(the net, its slow copy, rows) -> [B], what the candidates taken turned out to be worth."""


class DQN(Struct, frozen=True, forbid_unknown_fields=True):
    """Double DQN with returns of n steps.

    Attributes:
        hidden: width of each hidden layer of the net; empty: a linear net.
        discount: of one step, in [0, 1), times the problem's own. Below 1 the learner looks less far than the
            problem: a shorter horizon, a little bias, much less variance.
        n_step: steps of reward before the net's own value takes over, at least 1. More carry rewards faster and
            lean more towards what the behavior policy did.
        steps: training steps.
        batch_size: rows a step.
        learning_rate: of Adam at the first step; from there along a cosine
        final_learning_rate: to this one at the last.
        polyak: share of the net that its slow copy, the one that targets come from, takes over at each step.
    Raises:
        DataError: a number is out of range.
    """

    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.99
    n_step: int = 5
    steps: int = 4000
    batch_size: int = 256
    learning_rate: float = 1e-3
    final_learning_rate: float = 2e-5
    polyak: float = 0.005

    def __post_init__(self) -> None:
        for name in ("n_step", "steps", "batch_size"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        fits = all(1 <= width <= nets.WIDEST for width in self.hidden)
        _require("hidden", self.hidden, fits, f"widths in [1, {nets.WIDEST}]")
        _require("discount", self.discount, 0 <= self.discount < 1, "in [0, 1)")
        _require("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0")
        final = self.final_learning_rate
        _require("final_learning_rate", final, 0 <= final <= self.learning_rate, "in [0, learning_rate]")
        _require("polyak", self.polyak, 0 < self.polyak <= 1, "in (0, 1]")


def fit(batch: Batch, config: DQN, seed: int, progress: Progress | None = None, look: Look | None = None) -> Policy:
    """Learn with double DQN.

    Source: van Hasselt, Guez, Silver 2016, arXiv:1509.06461; Mnih et al. 2015.
    """
    return learn_q(batch, config, one_value(double_q), seed, progress, look)


def learn_q(
    batch: Batch, config: DQN, loss_of: Loss, seed: int, progress: Progress | None, look: Look | None = None
) -> Policy:
    """The trainer of the family.

    Rewards are divided by the largest |reward|, so that no setting depends on their unit; scores are given back
    in units of reward. Same batch, config and seed: same policy, bit for bit, on the same kind of CPU.

    Args:
        loss_of: the variation.
    Returns:
        a policy that takes the best candidate; whoever serves it gives it its explorer.
    Raises:
        DataError: actions are numbers, candidates have no columns, or no row teaches anything.
        TrainingError: the training diverges.
    """
    unit = _unit(batch)
    returns = _returns(batch, config)
    shape = nets.shape_for(batch.encoder, config.hidden)
    source = nets.generator(seed)
    rate = nets.cosine(config.learning_rate, config.final_learning_rate, config.steps)
    student = Student(nets.new_net(shape, source), rate, config.polyak)
    gather = nets.gatherer(batch, returns, unit)

    def update(places: Array) -> tuple[Tensor, Tensor]:
        loss, value = loss_of(student.net, student.slow, gather(places))
        student.step(loss)
        return loss, value

    def now() -> Policy:
        return Policy(batch.encoder, nets.TorchScorer.of(shape, student.net, unit), EpsilonGreedy(0.0))

    draws = nets.minibatches(len(returns.row), config.batch_size, config.steps, source)
    nets.train(update, draws, config.steps, _watch(batch, config, unit), nets.looking(progress, look, now))
    return now()


def one_value(target_of: Target) -> Loss:
    """The loss of a net that gives one value a candidate: the squared difference from a target."""

    def loss(net: Net, slow: Net, rows: Minibatch) -> tuple[Tensor, Tensor]:
        value = net(rows.context, rows.taken)[:, 0]
        with nets.no_grad():
            target = target_of(net, slow, rows)
        return nets.squared(value, target), value

    return loss


def double_q(net: Net, slow: Net, rows: Minibatch) -> Tensor:
    """[B] the return, then the value of the next row's best candidate: the net says which, its slow copy how good.

    One net for both would pick the candidate that it overrates most. Padding of the next row is never picked.

    Source: van Hasselt, Guez, Silver 2016, arXiv:1509.06461, eq. 4.
    """
    scores = net(rows.next_context, rows.next_candidates).masked_fill(~rows.next_mask, -math.inf)  # [B, K]
    best = nets.pick(rows.next_candidates, scores.argmax(dim=1))
    return rows.reward + rows.discount * slow(rows.next_context, best)[:, 0]


def _unit(batch: Batch) -> float:
    """The largest |reward|."""
    if batch.numbers:
        raise DataError("DQN learns over candidates; the actions of this batch are numbers")
    unit = float(np.abs(batch.reward).max())
    if unit == 0:
        raise DataError(
            f"the reward of all {len(batch)} rows is 0: there is nothing to learn",
            hint="did the outcomes carry the metrics that the reward is made of?",
        )
    if not 1e-30 < unit < 1e30:
        raise DataError(
            f"the largest |reward| is {unit:g}: scores would not fit into float32", hint="change the unit of the reward"
        )
    return unit


def _returns(batch: Batch, config: DQN) -> Returns:
    returns = n_step(batch, config.discount, config.n_step)
    if not len(returns.row):
        raise DataError(
            f"none of the {len(batch)} rows was terminated or has a next row: what came after them is unknown",
            hint='say in the outcome how an episode ended (ends = "terminated"), or log more than one step of it',
        )
    return returns


def _watch(batch: Batch, config: DQN, unit: float) -> nets.Watch:
    discount = config.discount * float(batch.discount.max())
    reason = f"{SLACK:g} times the largest |reward| {unit:g} / (1 - discount {discount:g})"
    return nets.Watch(unit, SLACK * unit / (1.0 - discount), reason)


def _require(name: str, value: object, holds: bool, law: str) -> None:
    if not holds:
        raise DataError(f"{name} is {value}, must be {law}", field=name)
