"""Settings and Evaluation: what is asked of a log, and what it answers."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from msgspec import Struct

from steersman.core.errors import ConfigError, did_you_mean
from steersman.core.report import Distribution, Estimate, Verdict
from steersman.evaluate.anytime import lift_terms
from steersman.evaluate.diagnostics import Diagnostics
from steersman.evaluate.estimators import ESTIMATORS
from steersman.evaluate.intervals import Spread


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a policy is judged.

    Attributes:
        estimators: names from ESTIMATORS; empty: all that fit the log.
        headline: the one that the gates judge; empty: `dr` for one decision an episode; for sequences `drl` where the
            contexts are few, else `stitched` if the policy is at hand, else `wdr`.
        level: coverage of the intervals, in (0, 1).
        folds: of the cross-fitting, at least 2.
        interval: how the printed intervals are made. `delta`: by the terms of the units, for one look. `t`: Student's,
            of all units. `bootstrap`: BCa over units. `bernstein`: at every number of units, for one look; it needs
            `reward_range` and `max_weight`. `sequence`: however often one looks. See `printed.INTERVALS`.
        reward_range: the lowest and the highest reward that a decision can have, declared by whoever knows the
            product; a reward outside it is an error. Empty: not declared. The gate with `bound = "hard"` needs it.
        max_weight: the largest target / propensity that can be: 1 / the smallest propensity that the log's policy
            gives; a larger one is an error. 0: not declared.
    """

    estimators: tuple[str, ...] = ()
    headline: str = ""
    level: float = 0.95
    folds: int = 5
    interval: Literal["delta", "t", "bootstrap", "bernstein", "sequence"] = "delta"
    reward_range: tuple[float, ...] = ()
    max_weight: float = 0.0

    def __post_init__(self) -> None:
        for field in (*self.estimators, *((self.headline,) if self.headline else ())):
            if field not in ESTIMATORS:
                raise ConfigError(f"no estimator {field!r}", hint=did_you_mean(field, ESTIMATORS), field="estimators")
        if self.headline and not ESTIMATORS[self.headline].judge:
            raise ConfigError(
                f"{self.headline} can not be the headline: the log can not tell its bias",
                hint=f"headlines: {', '.join(name for name, row in ESTIMATORS.items() if row.judge)}",
                field="headline",
            )
        if not 0 < self.level < 1:
            raise ConfigError(f"level is {self.level:g}, must be in (0, 1)", field="level")
        if self.folds < 2:
            raise ConfigError(f"folds is {self.folds}, must be at least 2", field="folds")
        if self.reward_range and not (
            len(self.reward_range) == 2
            and all(map(math.isfinite, self.reward_range))
            and self.reward_range[0] < self.reward_range[1]
        ):
            raise ConfigError(
                f"reward_range is {list(self.reward_range)}, must be [lowest, highest]", field="reward_range"
            )
        if not 0 <= self.max_weight < math.inf:
            raise ConfigError(f"max_weight is {self.max_weight:g}, must be a number from 0 on", field="max_weight")
        if self.interval == "bernstein" and not (self.reward_range and self.max_weight):
            raise ConfigError(
                "the interval bernstein needs to know how large rewards and weights can be",
                hint="declare reward_range and max_weight",
                field="interval",
            )


class Support(Struct, frozen=True, kw_only=True):
    """How far the log can speak for the target.

    Attributes:
        decisions, episodes, units: that were used.
        open_episodes: left out, because nobody saw how they end.
        horizon: steps that the values of sequences are about; 1 for one decision an episode.
        mean_weight, mean_weight_error: mean over decisions of target / propensity, which is 1 if propensities are
            right and everything the target does was sometimes logged; its standard error, clustered by unit.
        largest_weight: the largest target / propensity of a decision.
        largest_share: share of the heaviest unit in all weight of the headline, in [0, 1]; None: it has no weights.
        outside: share of the target's steps that go where the log never was; None: the headline can not tell.
        disagreement: |fqe - wdr| in standard errors of the difference, `drl` in the place of `wdr` where products of
            weights are silent; None: there is nothing to compare.
    """

    decisions: int
    episodes: int
    units: int
    open_episodes: int
    horizon: int
    mean_weight: float
    mean_weight_error: float
    largest_weight: float
    largest_share: float | None
    outside: float | None = None
    disagreement: float | None = None


class Floor(Struct, frozen=True):
    """One side of an interval in numbers: see `intervals.Spread`."""

    center: float
    error: float
    df: float
    skew: float
    n: int

    @classmethod
    def of(cls, side: Spread) -> Floor:
        """The numbers of a side."""
        return cls(side.center, side.error, side.df, side.skew, side.n)


class Bets(Struct, frozen=True):
    """What the non-asymptotic bound of the lift is made of: sums over decisions of `anytime.lift_terms`.

    Attributes:
        n: decisions.
        total, square: sum of the terms, and of their squares.
        unit: what a term of 1 is worth: the range of the reward.
    """

    n: int
    total: float
    square: float
    unit: float

    @classmethod
    def of(cls, reward: np.ndarray, weight: np.ndarray, reward_range: tuple[float, ...]) -> Bets | None:
        """The sums of a log of single decisions; None: no range is declared.

        Args:
            reward, weight: [N] f64, the weight target / propensity of the action taken.
            reward_range: of Settings.
        Raises:
            DataError: a reward is outside the range.
        """
        if not reward_range:
            return None
        low, high = reward_range
        terms = lift_terms(reward, weight, low, high)
        return cls(len(terms), float(terms.sum()), float(terms @ terms), high - low)


class Paired(Struct, frozen=True, kw_only=True):
    """A metric under both policies, on the same log.

    Attributes:
        baseline: of the behavior policy.
        value: of the target, by the headline estimator.
        lift: value - baseline.
        low, high: what the sides of the lift's interval are made of, for bounds at other levels.
    """

    baseline: Estimate
    value: Estimate
    lift: Estimate
    low: Floor
    high: Floor


class Evaluation(Struct, frozen=True, kw_only=True):
    """What a log says about a target policy.

    Attributes:
        baseline: value of the behavior policy.
        headline: value of the target, by the headline estimator.
        lift: headline - baseline, paired: the same units, one interval.
        lift_floor: what the lower side of the lift's interval is made of, for bounds at other levels.
        estimates: of the target's reward, by every estimator that could, the headline among them; then of its
            metrics, by the headline estimator.
        ratios: of the reward by every estimator, then of the metrics, relative to what was logged: see
            `intervals.relative`.
        metrics: baseline, value and lift of every metric that could be estimated.
        distribution: of the returns of episodes.
        refused: an estimator, a metric or a ratio that could not, and why.
        support: how far the log can speak for the target.
        bets: for a bound of the lift at every n; None: the log is of sequences, or no range of the reward is declared.
        diagnostics: what else the log says about itself; None: nobody looked.
    """

    baseline: Estimate
    headline: Estimate
    lift: Estimate
    lift_floor: Floor
    estimates: tuple[Estimate, ...]
    ratios: tuple[Estimate, ...]
    metrics: tuple[Paired, ...]
    distribution: Distribution
    refused: tuple[Verdict, ...]
    support: Support
    bets: Bets | None = None
    diagnostics: Diagnostics | None = None
