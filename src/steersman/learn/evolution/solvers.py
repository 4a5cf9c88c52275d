"""Searches along gradients of rewards: OpenAI's, PGPE, SNES and ARS. Arrays and evidence in, arrays out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from msgspec import Struct

from steersman.core.errors import ConfigError, DataError
from steersman.learn.evolution import ranks
from steersman.learn.evolution.evidence import Evidence
from steersman.learn.evolution.steps import Adam, ClipUp, Rule
from steersman.learn.evolution.sums import Kind

Array = np.ndarray
Arrays = dict[str, Array]
"""Name -> array: `mean` [d] f64, `sigma` [1] or [d] f64, and whatever else a solver keeps."""


class Solver(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """What every solver has."""

    kinds: ClassVar[tuple[Kind, ...]] = ("normals", "signs", "rank1")
    """The noise it can search with, its own choice first."""
    mirrored: ClassVar[bool] = True
    """It is asked for mirrored pairs."""
    reuses: ClassVar[bool] = True
    """It can use samples of older versions."""

    def begin(self, mean: Array, sigma: float) -> Arrays:
        """The arrays before the first batch."""
        raise NotImplementedError

    def spread(self, arrays: Arrays) -> Callable[[Array], Array]:
        """A function [N, d] noise -> [N, d] f64, what is added to the mean; each row for itself."""
        return functools.partial(np.multiply, arrays["sigma"])

    def tell(self, arrays: Arrays, evidence: Evidence) -> Arrays:
        """The arrays after a batch in which some reward differs from another."""
        raise NotImplementedError


class OpenES(Solver, frozen=True, tag="openai"):
    """Salimans et al. 2017, arXiv:1703.03864: sigma stays as it is, ranks make the gradient, a rule makes the step.

    gradient = mean(rank * noise) / sigma - weight_decay * mean of the search

    Attributes:
        step: SGD, Adam or ClipUp.
        weight_decay: at least 0.
    """

    step: Rule = Adam(rate=0.05)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay is {self.weight_decay:g}, must be at least 0", field="weight_decay")

    def begin(self, mean: Array, sigma: float) -> Arrays:
        return {"mean": mean, "sigma": np.full(1, sigma)} | _kept(self.step.begin(len(mean)))

    def gradient(self, arrays: Arrays, evidence: Evidence) -> Array:
        """[d] f64: of the expected rank of a perturbed policy, by its parameters."""
        shares = evidence.share(ranks.centered(evidence.reward, evidence.stratum))
        return evidence.first(shares) / arrays["sigma"]

    def tell(self, arrays: Arrays, evidence: Evidence) -> Arrays:
        gradient = self.gradient(arrays, evidence) - self.weight_decay * arrays["mean"]
        return arrays | _stepped(self.step, arrays, gradient)


class PGPE(Solver, frozen=True, tag="pgpe"):
    """Sehnke et al. 2010, with symmetric samples and ClipUp: a sigma for each parameter, which learns too.

    mean of the search: rule(sum of share * sigma * noise)
    sigma: + sigma_rate * sum of share * sigma * (noise**2 - 1), by at most `max_change` of itself

    Attributes:
        step: the rule of the mean.
        sigma_rate: at least 0; 0: sigma stays as it is, which noise other than normal asks for.
        max_change: in [0, 1).
    """

    step: Rule = ClipUp(rate=0.15)
    sigma_rate: float = 0.1
    max_change: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_rate < math.inf:
            raise ConfigError(f"sigma_rate is {self.sigma_rate:g}, must be at least 0", field="sigma_rate")
        if not 0 <= self.max_change < 1:
            raise ConfigError(f"max_change is {self.max_change:g}, must be in [0, 1)", field="max_change")

    def begin(self, mean: Array, sigma: float) -> Arrays:
        size = len(mean) if self.sigma_rate > 0 else 1
        return {"mean": mean, "sigma": np.full(size, sigma)} | _kept(self.step.begin(len(mean)))

    def tell(self, arrays: Arrays, evidence: Evidence) -> Arrays:
        sigma = arrays["sigma"]
        shares = evidence.share(ranks.centered(evidence.reward, evidence.stratum))
        after = arrays | _stepped(self.step, arrays, sigma * evidence.first(shares))
        if self.sigma_rate == 0:
            return after
        change = self.sigma_rate * (evidence.second(shares) - shares.sum())  # in units of sigma
        return after | {"sigma": sigma * (1 + np.clip(change, -self.max_change, self.max_change))}


class SNES(Solver, frozen=True, tag="snes"):
    """Separable natural evolution strategies, Schaul et al. 2011: the default, for up to some thousand parameters.

    mean of the search + rate * sigma * sum of utility * noise
    sigma * exp(sigma_rate / 2 * sum of utility * (noise**2 - 1))

    Attributes:
        rate: of the mean, above 0.
        sigma_rate: None: (3 + log d) / (5 sqrt d), as in the paper.
    """

    kinds = ("normals",)

    rate: float = 1.0
    sigma_rate: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ConfigError(f"rate is {self.rate:g}, must be above 0", field="rate")
        if self.sigma_rate is not None and not 0 <= self.sigma_rate < math.inf:
            raise ConfigError(f"sigma_rate is {self.sigma_rate:g}, must be at least 0", field="sigma_rate")

    def begin(self, mean: Array, sigma: float) -> Arrays:
        return {"mean": mean, "sigma": np.full(len(mean), sigma)}

    def tell(self, arrays: Arrays, evidence: Evidence) -> Arrays:
        size = evidence.size
        rate = (3 + math.log(size)) / (5 * math.sqrt(size)) if self.sigma_rate is None else self.sigma_rate
        shares = evidence.share(ranks.logarithmic(evidence.reward, evidence.stratum))
        mean = arrays["mean"] + self.rate * arrays["sigma"] * evidence.first(shares)
        natural = evidence.second(shares) - shares.sum()
        return arrays | {"mean": mean, "sigma": arrays["sigma"] * np.exp(0.5 * rate * natural)}


class ARS(Solver, frozen=True, tag="ars"):
    """Augmented random search, V1-t of Mania et al. 2018, arXiv:1803.07055: rewards themselves, of the best directions.

    mean of the search + rate / (b * deviation of their rewards) * sum over the b best pairs of (r+ - r-) * noise

    Not by ranks, so one reward that is far off moves it far; in blocks of time the mean of the block is taken away.

    Attributes:
        rate: above 0.
        top: share of the pairs that count, those with the largest reward, in (0, 1].
    """

    kinds = ("signs", "normals", "rank1")
    reuses = False

    rate: float = 0.05
    top: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ConfigError(f"rate is {self.rate:g}, must be above 0", field="rate")
        if not 0 < self.top <= 1:
            raise ConfigError(f"top is {self.top:g}, must be in (0, 1]", field="top")

    def begin(self, mean: Array, sigma: float) -> Arrays:
        return {"mean": mean, "sigma": np.full(1, sigma)}

    def tell(self, arrays: Arrays, evidence: Evidence) -> Arrays:
        reward = evidence.reward.copy()
        for stratum in np.unique(evidence.stratum):
            reward[evidence.stratum == stratum] -= reward[evidence.stratum == stratum].mean()
        even = evidence.keys & np.uint64(2**64 - 2)
        pair, place, counts = np.unique(even, return_inverse=True, return_counts=True)
        whole = np.flatnonzero(counts == 2)
        if not len(whole):
            raise DataError("no mirrored pair is whole", hint="ARS needs the rewards of both keys of a pair")
        best = np.full(len(pair), -math.inf)
        np.maximum.at(best, place, reward)
        order = whole[np.argsort(-best[whole], kind="stable")]
        chosen = np.isin(place, order[: max(1, round(self.top * len(order)))])
        deviation = float(reward[chosen].std())
        if deviation == 0:
            return arrays
        shares = np.where(chosen, reward / deviation, 0.0) / (chosen.sum() / 2)
        return arrays | {"mean": arrays["mean"] + self.rate * evidence.first(shares)}


def _kept(memory: Arrays) -> Arrays:
    return {f"step.{name}": array for name, array in memory.items()}


def _stepped(step: Rule, arrays: Arrays, gradient: Array) -> Arrays:
    """The mean after a step, and what the rule remembers."""
    memory = {name.removeprefix("step."): array for name, array in arrays.items() if name.startswith("step.")}
    memory, change = step.step(memory, gradient)
    return _kept(memory) | {"mean": arrays["mean"] + change}
