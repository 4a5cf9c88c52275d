"""Policies learned from the actions that were taken, each by its weight: settings, for numbers and for candidates."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from steersman.core.batch import Batch
from steersman.core.density import NumbersExplorer
from steersman.core.errors import DataError
from steersman.core.policy import Policy
from steersman.learn import HERE, Look, Progress, Run, discrete, numbers, weighted
from steersman.learn.advantage import binary, exponential
from steersman.learn.settings import Settings, ValueSettings, require


class BC(Settings, frozen=True, forbid_unknown_fields=True):
    """Behavior cloning: the most likely policy to have logged the actions, whatever came of them."""

    EXPLORERS: ClassVar[tuple[NumbersExplorer, ...]] = numbers.DENSITIES


class IQL(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """Implicit Q learning: never asks what an action is worth that was not logged.

    Attributes:
        expectile: of what the logged actions are worth that counts as the value of a context, in (0, 1): 0.5 is the
            mean of what was done, towards 1 it is the best of it.
        temperature: of the weights exp(advantage / temperature) of the actions, in standard deviations of the
            advantages, above 0.
        largest_weight: of an action, at least 1.
    Source: Kostrikov, Nair and Levine 2022, arXiv:2110.06169.
    """

    EXPLORERS: ClassVar[tuple[NumbersExplorer, ...]] = numbers.DENSITIES

    expectile: float = 0.8
    temperature: float = 0.5
    largest_weight: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("expectile", self.expectile, 0 < self.expectile < 1, "in (0, 1)")
        _check_weights(self.temperature, self.largest_weight)


class AWAC(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """Advantage-weighted actor-critic: the actions taken, by how much better they are than what it would do.

    Attributes:
        temperature, largest_weight: see `IQL`.
        samples: actions of the policy that what it would do is the mean over, at least 1; over candidates it is exact.
    Source: Nair, Gupta, Dalal and Levine 2020, arXiv:2006.09359.
    """

    EXPLORERS: ClassVar[tuple[NumbersExplorer, ...]] = numbers.DENSITIES

    temperature: float = 0.5
    largest_weight: float = 20.0
    samples: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require("samples", self.samples, self.samples >= 1, "at least 1")
        _check_weights(self.temperature, self.largest_weight)


class CRR(AWAC, frozen=True, forbid_unknown_fields=True):
    """Critic-regularised regression: the actions taken that are better than what it would do.

    Attributes:
        weight: `binary`: those actions alike, no others; `exp`: exp(advantage / temperature), see `IQL`.
    Source: Wang et al. 2020, arXiv:2006.15134.
    """

    weight: Literal["binary", "exp"] = "binary"


PolicyConfig = BC | IQL | AWAC | CRR


def fit(
    batch: Batch,
    config: PolicyConfig,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn by the trainer of the kind of action.

    Raises:
        DataError: there is none for it, or the batch teaches nothing.
        TrainingError: the training diverges.
    """
    if batch.numbers:
        return numbers.learn_numbers(batch, config, over_numbers(config), seed, progress, look, run)
    if batch.ranked:
        raise DataError(f"{type(config).__name__} does not learn over ranked lists", field="learner")
    return discrete.learn_policy(batch, config, objective(config), seed, progress, look, run)


def objective(config: PolicyConfig) -> discrete.Objective:
    """How a policy over candidates is learned by a config."""
    match config:
        case IQL():
            return discrete.implicit(config.expectile, exponential(config.temperature, config.largest_weight))
        case CRR() if config.weight == "binary":
            return discrete.weighted(binary)
        case AWAC():
            return discrete.weighted(exponential(config.temperature, config.largest_weight))
    return discrete.cloning


def over_numbers(config: PolicyConfig) -> numbers.Variation:
    """How a policy over numbers is learned by a config."""
    match config:
        case IQL():
            weigh = exponential(config.temperature, config.largest_weight)
            return numbers.Variation(weighted.implicit(config.expectile, weigh), squashed=True, values=True)
        case CRR() if config.weight == "binary":
            return numbers.Variation(weighted.weighted(binary, config.samples), squashed=True)
        case AWAC():
            weigh = exponential(config.temperature, config.largest_weight)
            return numbers.Variation(weighted.weighted(weigh, config.samples), squashed=True)
    return numbers.Variation(weighted.cloning, squashed=True, critics=0)


def _check_weights(temperature: float, largest_weight: float) -> None:
    require("temperature", temperature, 0 < temperature < math.inf, "above 0")
    require("largest_weight", largest_weight, 1 <= largest_weight < math.inf, "at least 1")
