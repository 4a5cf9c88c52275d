"""The intervals that are printed: by the delta method, Student's t, a bootstrap, empirical Bernstein, a sequence.

Each is for one estimate at one level, two-sided. What holds for which estimates stands in `INTERVALS`; elsewhere it is
refused with the reason, for an interval that does not cover is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from steersman.core.errors import DataError, SupportError
from steersman.core.report import Estimate
from steersman.evaluate.anytime import errors_out
from steersman.evaluate.evaluation import Settings
from steersman.evaluate.evidence import Paths
from steersman.evaluate.intervals import Influence, Spread, Terms, bernstein, bootstrap, delta, estimate
from steersman.evaluate.quantiles import student_t

Array = np.ndarray

MODELLED = ("dr", "mrdr")
"""Estimators of single decisions whose terms are v + w (r - q), v and q within the range of the reward."""


@dataclass(frozen=True, eq=False)
class Printer:
    """Makes estimates with the interval that was asked for.

    Attributes:
        settings: which interval, its level, and what is declared of rewards and weights.
        paths: units are the clusters.
        seed: of the bootstrap.
    """

    settings: Settings
    paths: Paths
    seed: int

    def print(self, terms: Terms, estimator: str, metric: str) -> Estimate:
        """The noun. A mean reward of single decisions is cut to the range that is declared of the reward: a few large
        weights can take value and interval out of it, where the truth can not be.

        Args:
            estimator: its name, `logged`, or `NAME - logged` and `NAME / logged`.
        Raises:
            SupportError: there is no such interval of this estimate.
        """
        interval = INTERVALS[self.settings.interval]
        low, high = interval(terms, estimator, metric, self)
        found = estimate(
            terms,
            estimator=estimator,
            metric=metric,
            level=self.settings.level,
            interval=(low, high),
            at_least=self.settings.interval in BOUNDS,
        )
        mean_reward = metric == "reward" and self.paths.one_step and " " not in estimator
        if not (mean_reward and self.settings.reward_range):
            return found
        least, most = self.settings.reward_range
        cut = {end: min(max(getattr(found, end), least), most) for end in ("low", "value", "high")}
        return msgspec.structs.replace(found, **cut)


def _delta(terms: Terms, estimator: str, metric: str, printer: Printer) -> tuple[float, float]:
    """By influence terms, with degrees of freedom of their variance and their skewness: see `quantiles.quantile`."""
    return delta(terms, printer.settings.level)


def _t(terms: Terms, estimator: str, metric: str, printer: Printer) -> tuple[float, float]:
    """Student's t of all units: the textbook's, and too narrow where a few units make up the variance."""
    away = student_t(0.5 + printer.settings.level / 2, terms.low.n - 1)
    return terms.low.center - away * terms.low.error, terms.high.center + away * terms.high.error


def _sequence(terms: Terms, estimator: str, metric: str, printer: Printer) -> tuple[float, float]:
    """Holds however often one looks, once the units are many: see `anytime.errors_out`."""
    level = printer.settings.level

    def end(side: Spread, sign: int) -> float:
        return side.center + errors_out(side, terms.n, 1 if sign > 0 else -1, level, sides=2) * side.error

    return end(terms.low, -1), end(terms.high, 1)


def _bootstrap(terms: Terms, estimator: str, metric: str, printer: Printer) -> tuple[float, float]:
    """BCa over units, for what is a sum of ratios of sums over units."""
    side = terms.low
    if not (isinstance(side, Influence) and side.sums):
        raise _refused("bootstrap", estimator, "it is no ratio of sums over units")
    bottoms = [bottom for _, bottom in side.sums]
    if all(np.array_equal(bottom, bottoms[0]) for bottom in bottoms):  # as one where most units may be equal
        columns = np.stack([np.sum([top for top, _ in side.sums], axis=0), bottoms[0]])
    else:
        columns = np.stack([column for pair in side.sums for column in pair])
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite is refused there
        return bootstrap(
            columns, lambda sums: (sums[::2] / sums[1::2]).sum(axis=0), printer.settings.level, printer.seed
        )


def _bernstein(terms: Terms, estimator: str, metric: str, printer: Printer) -> tuple[float, float]:
    """At every number of units, for a mean over units whose terms have a declared range."""
    side, paths = terms.low, printer.paths
    if metric != "reward":
        raise _refused("bernstein", f"{estimator} of {metric}", "only the range of the reward is declared")
    if not paths.one_step or paths.episodes != paths.clusters:
        raise _refused("bernstein", estimator, "it is for one decision a unit")
    span = _span(estimator, printer.settings)
    if span is None or not (isinstance(side, Influence) and side.sums):
        raise _refused("bernstein", estimator, "its terms have no known range, or are no mean")
    return bernstein(np.sum([top for top, _ in side.sums], axis=0), *span, printer.settings.level)


def _span(estimator: str, settings: Settings) -> tuple[float, float] | None:
    """What the terms of single decisions are within: rewards in [low, high], weights in [0, max_weight].

    They are linear in the weight and in the reward, so they are largest and smallest at the ends of both. Of
    v + w (r - q) - r too: at a weight of 0 it is v - r, at the largest w it is v - w q + (w - 1) r.
    """
    low, high = settings.reward_range
    most = max(settings.max_weight, 1.0)
    ends = np.array([low, high])
    if estimator == "logged":
        return low, high
    if estimator in ("ips", "ips - logged"):
        away = np.outer([0.0, most], ends) - (ends if estimator.endswith("logged") else 0.0)
        return float(away.min()), float(away.max())
    size = most * (high - low)
    if estimator in MODELLED:
        return low - size, high + size
    if estimator.removesuffix(" - logged") in MODELLED:
        return -size, size
    return None


def _refused(interval: str, estimator: str, why: str) -> SupportError:
    return SupportError(f"{estimator} has no {interval} interval: {why}", hint='use interval = "delta"')


Interval = Callable[[Terms, str, str, Printer], tuple[float, float]]

INTERVALS: dict[str, Interval] = {
    "delta": _delta,
    "t": _t,
    "bootstrap": _bootstrap,
    "bernstein": _bernstein,
    "sequence": _sequence,
}
"""Name -> two-sided interval.

`delta`, `t` and `sequence` are for every estimator; `bootstrap` for sums of ratios of sums over units: not for ips-cv,
wdr, stitched, and no ratio to the logged policy; `bernstein` for ips, dr, mrdr and their lift, of the reward, one
decision a unit. An estimator that prints the interval of another (dm, what is tuned) has what that one has.
"""

BOUNDS = ("bernstein", "sequence")
"""Intervals that cover at least as often as they say, not just as often."""


def check_weights(weight: Array, settings: Settings) -> None:
    """Raise DataError if a weight is above the largest that is declared."""
    if settings.max_weight <= 0:
        return
    above = np.flatnonzero(weight > settings.max_weight * (1 + 1e-9))
    if above.size:
        raise DataError(
            f"row {above[0]}: the weight target / propensity is {weight[above[0]]:g}, above the declared max_weight "
            f"{settings.max_weight:g} ({above.size} such rows of {len(weight)})",
            hint="declare the weight that can be, 1 / the smallest propensity that the log's policy gives",
            field="max_weight",
        )
