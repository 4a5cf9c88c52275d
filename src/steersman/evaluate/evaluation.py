"""Settings and Evaluation: what is asked of a log, and what it answers."""

from __future__ import annotations

from msgspec import Struct

from steersman.core.errors import ConfigError, did_you_mean
from steersman.core.report import Estimate, Verdict
from steersman.evaluate.estimators import ESTIMATORS


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a policy is judged.

    Attributes:
        estimators: names from ESTIMATORS; empty: all that fit the log.
        headline: the one that the gates judge; empty: `dr` for one decision an episode; for sequences `drl` where the
            contexts are few, else `stitched` if the policy is at hand, else `wdr`.
        level: coverage of the intervals, in (0, 1).
        folds: of the cross-fitting, at least 2.
    """

    estimators: tuple[str, ...] = ()
    headline: str = ""
    level: float = 0.95
    folds: int = 5

    def __post_init__(self) -> None:
        for field in (*self.estimators, *((self.headline,) if self.headline else ())):
            if field not in ESTIMATORS:
                raise ConfigError(f"no estimator {field!r}", hint=did_you_mean(field, ESTIMATORS), field="estimators")
        if self.headline and not ESTIMATORS[self.headline].judge:
            raise ConfigError(
                f"{self.headline} can not be the headline: a model does not know its own error",
                hint=f"headlines: {', '.join(name for name, row in ESTIMATORS.items() if row.judge)}",
                field="headline",
            )
        if not 0 < self.level < 1:
            raise ConfigError(f"level is {self.level:g}, must be in (0, 1)", field="level")
        if self.folds < 2:
            raise ConfigError(f"folds is {self.folds}, must be at least 2", field="folds")


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


class Floor(Struct, frozen=True):
    """The lower side of an interval: see `intervals.Side`."""

    center: float
    error: float
    df: float
    skew: float
    n: int


class Paired(Struct, frozen=True, kw_only=True):
    """A metric under both policies, on the same log.

    Attributes:
        baseline: of the behavior policy.
        value: of the target, by the headline estimator.
        lift: value - baseline.
    """

    baseline: Estimate
    value: Estimate
    lift: Estimate


class Evaluation(Struct, frozen=True, kw_only=True):
    """What a log says about a target policy.

    Attributes:
        baseline: value of the behavior policy.
        headline: value of the target, by the headline estimator.
        lift: headline - baseline, paired: the same units, one interval.
        lift_floor: what the lower side of the lift's interval is made of, for bounds at other levels.
        estimates: of the target's reward, by every estimator that could, the headline among them; then of its
            metrics, by the headline estimator.
        metrics: baseline, value and lift of every metric that could be estimated.
        refused: an estimator or a metric that could not, and why.
        support: how far the log can speak for the target.
    """

    baseline: Estimate
    headline: Estimate
    lift: Estimate
    lift_floor: Floor
    estimates: tuple[Estimate, ...]
    metrics: tuple[Paired, ...]
    refused: tuple[Verdict, ...]
    support: Support
