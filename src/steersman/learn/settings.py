"""What learners with nets share: settings, the unit that rewards are divided by, what counts as divergence."""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.core.slots import Slots
from steersman.learn import HERE, Run, nets
from steersman.learn.returns import Returns, alone, n_step

SLACK = 3.0
"""How far beyond the largest possible value a learned one may be before that is called divergence."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What every learner by gradients asks.

    Attributes:
        hidden: width of each hidden layer of a net; empty: a linear net.
        steps: training steps.
        batch_size: rows a step.
        learning_rate: of Adam at the first step; from there along a cosine
        final_learning_rate: to this one at the last.
    Raises:
        DataError: a number is out of range.
    """

    hidden: tuple[int, ...] = (64, 64)
    steps: int = 4000
    batch_size: int = 256
    learning_rate: float = 1e-3
    final_learning_rate: float = 2e-5

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        fits = all(1 <= width <= nets.WIDEST for width in self.hidden)
        require("hidden", self.hidden, fits, f"widths in [1, {nets.WIDEST}]")
        require("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0")
        final = self.final_learning_rate
        require("final_learning_rate", final, 0 <= final <= self.learning_rate, "in [0, learning_rate]")


class ValueSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """What every learner asks that learns what comes later too.

    Attributes:
        discount: of one step, in [0, 1), times the problem's own. Below 1 the learner looks less far than the
            problem: a shorter horizon, a little bias, much less variance.
        n_step: steps of reward before the net's own value takes over, at least 1. More carry rewards faster and
            lean more towards what the behavior policy did.
        polyak: share of the net that its slow copy, the one that targets come from, takes over at each step.
    """

    discount: float = 0.99
    n_step: int = 1
    polyak: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        require("n_step", self.n_step, self.n_step >= 1, "at least 1")
        require("discount", self.discount, 0 <= self.discount < 1, "in [0, 1)")
        require("polyak", self.polyak, 0 < self.polyak <= 1, "in (0, 1]")


def require(name: str, value: object, holds: bool, law: str) -> None:
    """Raise DataError, naming the setting, unless it holds."""
    if not holds:
        raise DataError(f"{name} is {value}, must be {law}", field=name)


def unit_of(batch: Batch, run: Run = HERE) -> float:
    """The largest |reward| that is learned from: what rewards are divided by, so that no setting depends on their unit.

    Raises:
        DataError: all rewards are 0, or they are too large or small for float32.
    """
    return largest_of(run.of(batch.reward))


def largest_of(reward: nets.Array) -> float:
    """The largest |reward|; see `unit_of`."""
    unit = float(np.abs(reward).max())
    if unit == 0:
        raise DataError(
            f"the reward of all {len(reward)} rows is 0: there is nothing to learn",
            hint="did the outcomes carry the metrics that the reward is made of, and come within wait_s?",
        )
    if not 1e-30 < unit < 1e30:
        raise DataError(
            f"the largest |reward| is {unit:g}: scores would not fit into float32", hint="change the unit of the reward"
        )
    return unit


def require_candidates(batch: Batch, who: str) -> None:
    """Raise DataError, naming who learns, unless the actions of the batch are single candidates."""
    if batch.numbers or batch.ranked:
        kind = "numbers" if batch.numbers else "ranked lists"
        raise DataError(f"{who} learns over single candidates; the actions of this batch are {kind}", field="learner")


def slots_of(batch: Batch, who: str) -> Slots:
    """The slots of a batch of ranked lists.

    Args:
        who: learns, for the error.
    Raises:
        DataError: the actions are something else.
    """
    if batch.slots is None:
        kind = "numbers" if batch.numbers else "single candidates"
        raise DataError(f"{who} learns over ranked lists; the actions of this batch are {kind}", field="learner")
    return batch.slots


def returns_of(batch: Batch, config: ValueSettings, run: Run = HERE) -> Returns:
    """What the rows teach.

    Raises:
        DataError: none teaches anything.
    """
    return known_returns(batch, config.discount, config.n_step, run)


def known_returns(batch: Batch, discount: float, steps: int, run: Run = HERE) -> Returns:
    """The same, of so many steps."""
    returns = n_step(batch, discount, steps, run.rows)
    if not len(returns.row):
        raise DataError(
            f"none of the {len(run.of(batch.next))} rows was terminated or has a next row: what came after them is "
            "unknown",
            hint='say in the outcome how an episode ended (ends = "terminated"), or log more than one step of it',
        )
    return returns


def lessons_of(
    batch: Batch, config: Settings, run: Run = HERE, slack: float = SLACK
) -> tuple[Returns, float, nets.Watch]:
    """What the rows teach, the unit of the rewards, and what tells divergence.

    Who learns no values reads what was done in every row and nothing else: its returns are 0.

    Args:
        slack: see `watch_of`.
    Raises:
        DataError: values are learned, and all rewards are 0, too large or small, or no row teaches anything.
    """
    if not isinstance(config, ValueSettings):
        row = run.within(batch)
        return alone(row, np.zeros(len(row))), 1.0, nets.Watch(1.0, math.inf, "")
    unit, discount = unit_of(batch, run), config.discount * float(run.of(batch.discount).max())
    return returns_of(batch, config, run), unit, watch_of(unit, discount, slack)


def watch_of(unit: float, discount: float, slack: float = SLACK) -> nets.Watch:
    """What tells divergence: no value is beyond the largest |reward| / (1 - discount).

    Args:
        unit: the largest |reward|.
        discount: of a step, in [0, 1).
        slack: how far beyond it a value may be.
    """
    reason = f"{slack:g} times the largest |reward| {unit:g} / (1 - discount {discount:g})"
    return nets.Watch(unit, slack * unit / (1.0 - discount), reason)
