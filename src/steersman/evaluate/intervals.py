"""From influence terms to numbers: one path for value, interval, lift and effective sample size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Protocol

import numpy as np

from steersman.core.errors import DataError, SupportError
from steersman.core.report import Estimate
from steersman.evaluate.quantiles import quantile

Array = np.ndarray

CHUNK = 1_000_000
"""Cells at a time of the bootstrap's [draws, C]."""

LONE = 1e-9
"""If the other clusters hold less than this share of a denominator, the number rests on one cluster."""


class Spread(Protocol):
    """Where one side of an interval is measured from, and the error there."""

    @property
    def center(self) -> float:
        """In units of the value."""
        ...

    @property
    def error(self) -> float:
        """Standard error of the center."""
        ...

    @property
    def df(self) -> float:
        """Degrees of freedom of that error, at least 1."""
        ...

    @property
    def skew(self) -> float:
        """Skewness of the center's own error."""
        ...

    @property
    def n(self) -> int:
        """Terms that the error is made of."""
        ...


class Side(Spread, Protocol):
    """One side of an interval that knows how the behavior policy's value moves with it."""

    def minus_logged(self, logged: Influence) -> Side:
        """Of the lift: the paired difference to the behavior policy's value on the same clusters."""
        ...

    def over_logged(self, logged: Influence) -> Side:
        """Of the ratio to the behavior policy's value on the same clusters, see `relative`."""
        ...


@dataclass(frozen=True, eq=False)
class Influence:
    """A side by influence terms: how far each cluster (unit) pulls the center.

    Attributes:
        center: see Side.
        pull: [C] f64, C - 1 times what leaving the cluster out would take away: the leave-one-out (jackknife) form of
            the influence function. Variance of the center = sum(pull**2) / (C * (C - 1)).
        sums: numerators and denominators [C]; the center is the sum of their ratios of sums. Empty: it is no such sum.
    """

    center: float
    pull: Array
    sums: tuple[tuple[Array, Array], ...] = ()

    @property
    def error(self) -> float:
        """Standard error of the center, by clusters."""
        c = len(self.pull)
        return math.sqrt(float(self.pull @ self.pull) / (c * (c - 1)))

    @property
    def df(self) -> float:
        """Degrees of freedom of the variance: 2 C / (kurtosis - 1), at most C - 1.

        Of C normal terms it has C - 1. Where a few clusters with large weights make up the variance it rests on these
        few, is mostly too small, and t must be that of a few clusters. Source: Satterthwaite 1946.
        """
        c, square = len(self.pull), self.pull**2
        total = float(square.sum())
        kurtosis = c * float(square @ square) / total**2 if total > 0 else 1.0
        return min(c - 1.0, 2.0 * c / max(kurtosis - 1.0, 2.0 / c))

    @property
    def skew(self) -> float:
        """Skewness of the mean of the terms: theirs over the root of C."""
        spread = self.pull - self.pull.mean()
        variance = float(np.mean(spread**2))
        return float(np.mean(spread**3)) / (variance**1.5 * math.sqrt(len(spread))) if variance > 0 else 0.0

    @property
    def n(self) -> int:
        """C."""
        return len(self.pull)

    def minus_logged(self, logged: Influence) -> Influence:
        """Of the lift."""
        sums = (*self.sums, *((-top, bottom) for top, bottom in logged.sums)) if self.sums and logged.sums else ()
        return Influence(self.center - logged.center, self.pull - logged.pull, sums)

    def over_logged(self, logged: Influence) -> Influence:
        """Of the ratio: what leaving each cluster out does to both of its sides at once."""
        rest = len(self.pull) - 1
        without = relative(self.center - self.pull / rest, logged.center - logged.pull / rest)
        whole = float(relative(self.center, logged.center))
        return Influence(whole, rest * (whole - without))


@dataclass(frozen=True, eq=False)
class Halves:
    """A side by half-samples, for estimators that have no influence terms and draw by chance, in two kinds.

    A random half of the clusters moves a mean by as much as the whole would move were it drawn again:
    var(half - whole) = 2 s^2/C - s^2/C. Two more differences count, as far as chance would not have given them: the
    mean move, for halves see less, and the whole may be as far from what all the world would say; and the mean
    difference between the kinds, of which either may be right. How the kinds differ from half to half tells what is
    drawn by chance in a half; the whole draws twice as much, so it has half of that variance, or less.

    Attributes:
        center: see Side; the mean of both kinds.
        moved: [B, 2] f64, center of each half, of each kind, minus the whole's.
        logged_moved: [B] f64, value of the behavior policy in the same halves minus the whole's.
        ess: effective number of clusters in [0, C]. What few clusters say, halves of these tell no better.
    Source: McCarthy 1969; Politis, Romano and Wolf 1999, Subsampling, ch. 2.
    """

    center: float
    moved: Array
    logged_moved: Array
    ess: float

    @property
    def error(self) -> float:
        """Standard error of the center, by half-samples."""
        mean, apart = self.moved.mean(axis=1), self.moved[:, 0] - self.moved[:, 1]
        spread, chance = float(mean.var(ddof=1)), float(apart.var(ddof=1)) / 4
        bias = float(mean.mean()) ** 2 - chance / 2 - spread / self.n
        kinds = float(apart.mean()) ** 2 / 4 - chance / self.n
        return math.sqrt(max(spread - chance / 2, spread / 2) + max(bias, 0.0) + max(kinds, 0.0))

    @property
    def df(self) -> float:
        """B - 1, or less where fewer clusters speak."""
        return max(min(self.n, self.ess) - 1.0, 1.0)

    @property
    def skew(self) -> float:
        """0: so few halves can not tell."""
        return 0.0

    @property
    def n(self) -> int:
        """B."""
        return len(self.moved)

    def minus_logged(self, logged: Influence) -> Halves:
        """Of the lift."""
        moved = self.moved - self.logged_moved[:, None]
        return replace(self, center=self.center - logged.center, moved=moved, logged_moved=np.zeros(self.n))

    def over_logged(self, logged: Influence) -> Halves:
        """Of the ratio."""
        whole = float(relative(self.center, logged.center))
        moved = relative(self.center + self.moved, (logged.center + self.logged_moved)[:, None]) - whole
        return replace(self, center=whole, moved=moved, logged_moved=np.zeros(self.n))


@dataclass(frozen=True, eq=False)
class Terms:
    """What an estimator gives back: a number and what is known of its error.

    Attributes:
        value: the estimate.
        low, high: the two sides of its interval. Both have the value as their center, unless the estimator can not
            know its own error (a model), or the log leaves a part of the value open.
        n: C, clusters.
        ess: effective number of clusters, in [0, C].
        largest_share: share of the heaviest cluster in all weight, in [0, 1]; None: no weights.
    """

    value: float
    low: Side
    high: Side
    n: int
    ess: float
    largest_share: float | None

    @classmethod
    def of(cls, value: float, pull: Array, weight: Array, sums: tuple[tuple[Array, Array], ...] = ()) -> Terms:
        """The usual case: both sides by influence terms around the value; ess = (sum w)^2 / sum w^2.

        Args:
            pull: [C], see Influence.
            weight: [C], what each cluster counts; only ratios matter.
            sums: see Influence.
        """
        side = Influence(value, pull, sums)
        square, size = float(weight @ weight), np.abs(weight)
        ess = float(weight.sum()) ** 2 / square if square > 0 else 0.0
        share = float(size.max() / size.sum()) if square > 0 else 1.0
        return cls(value, side, side, len(pull), min(ess, float(len(pull))), share)  # min: rounding only

    def minus_logged(self, logged: Influence) -> Terms:
        """The lift: the paired difference to the behavior policy's value on the same clusters."""
        low, high = self.low.minus_logged(logged), self.high.minus_logged(logged)
        return replace(self, value=self.value - logged.center, low=low, high=high)

    def over_logged(self, logged: Influence, level: float) -> Terms:
        """The value relative to the behavior policy's on the same clusters: 1 is parity, above it is better.

        Args:
            level: of the interval of the logged value that must not contain 0, in (0, 1).
        Raises:
            SupportError: it does: the logged value could as well be 0, and nothing is a multiple of that.
        """
        low, high = (bound(logged, 0.5 + sign * level / 2) for sign in (-1, 1))
        if not (low > 0 or high < 0):
            raise SupportError(
                f"the logged value is {logged.center:.4g} [{low:.4g}, {high:.4g}]: 0 is among what it may be, and "
                "nothing is a multiple of 0",
                hint="read the lift, which is a difference",
            )
        sides = self.low.over_logged(logged), self.high.over_logged(logged)
        if not all(math.isfinite(number) for side in sides for number in (side.center, side.error)):
            raise SupportError(
                f"the logged value {logged.center:.4g} rests on few of its units: it could be 0 without them",
                hint="read the lift, which is a difference",
            )
        return replace(self, value=float(relative(self.value, logged.center)), low=sides[0], high=sides[1])


def difference(one: Terms, other: Terms, *, estimator: str, level: float) -> Estimate:
    """The paired difference one - other of two policies that the same estimator judged on the same units.

    Where the log leaves a part of a value open, the low side is that of the one at its worst and the other at its best.

    Raises:
        DataError: the two do not rest on the same number of units, or not on terms of the same kind.
    """
    sides = _minus(one.low, other.high), _minus(one.high, other.low)
    terms = replace(one, value=one.value - other.value, low=sides[0], high=sides[1], ess=min(one.ess, other.ess))
    return estimate(terms, estimator=estimator, metric="reward", level=level)


def _minus(one: Side, other: Side) -> Side:
    if isinstance(one, Influence) and isinstance(other, Influence) and one.n == other.n:
        return Influence(one.center - other.center, one.pull - other.pull)
    if isinstance(one, Halves) and isinstance(other, Halves) and one.n == other.n:
        ess = min(one.ess, other.ess)
        return Halves(one.center - other.center, one.moved - other.moved, np.zeros(one.n), ess)
    raise DataError(
        f"{type(one).__name__} of {one.n} and {type(other).__name__} of {other.n} terms can not be set against each "
        "other: judge both by the same estimator on the same rows"
    )


def relative(value: Array | float, logged: Array | float) -> Array:
    """1 + (value - logged) / |logged|: value / logged where that is above 0; where rewards are costs, below 0, it still
    is above 1 for what is better. Infinite or NaN where `logged` is 0.

    >>> float(relative(120.0, 100.0)), float(relative(-80.0, -100.0))
    (1.2, 1.2)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 + (np.asarray(value) - logged) / np.abs(logged)


def ratio(top: Array, bottom: Array) -> tuple[float, Array]:
    """sum(top) / sum(bottom), and the influence of each cluster on it, the denominator's error included.

    Leaving cluster c out changes the ratio R by (top_c - R * bottom_c) / (sum(bottom) - bottom_c), so its influence is
    C - 1 times that. To first order this is the delta method; where one cluster carries much of the denominator
    it is wider, as it must be. Freezing the denominator instead gives the interval of the unnormalised
    sum divided by a constant.

    Args:
        top, bottom: [C] f64; bottom at least 0.
    Returns:
        the ratio, and [C] f64.
    Raises:
        SupportError: one cluster holds all of the denominator.
    Source: Efron and Stein 1981, the jackknife estimate of variance; Owen, Monte Carlo theory, ch. 9.

    >>> value, influence = ratio(np.array([1.0, 2.0, 3.0]), np.ones(3))
    >>> value, influence.tolist()
    (2.0, [-1.0, 0.0, 1.0])
    """
    total = float(bottom.sum())
    rest = total - bottom
    if not total > 0 or float(rest.min()) <= LONE * total:
        raise SupportError(
            f"the estimate rests on one of the {len(bottom)} units: the others weigh nothing",
            hint="log with more exploration, or judge a policy closer to the one that logged",
        )
    value = float(top.sum()) / total
    return value, (len(top) - 1) * (top - value * bottom) / rest


def estimate(
    terms: Terms,
    *,
    estimator: str,
    metric: str,
    level: float,
    interval: tuple[float, float] | None = None,
    at_least: bool = False,
) -> Estimate:
    """The noun: value, two-sided interval at `level` in (0, 1), number of clusters and ess.

    Args:
        interval: low and high; None: by `delta`. It is widened to contain the value.
        at_least: the interval is a bound. One by half-samples is where the log leaves a part of the value open.
    """
    low, high = delta(terms, level) if interval is None else interval
    return Estimate(
        estimator=estimator,
        metric=metric,
        value=terms.value,
        low=min(terms.value, low),
        high=max(terms.value, high),
        level=level,
        n=terms.n,
        ess=terms.ess,
        at_least=at_least or _open(terms),
    )


def _open(terms: Terms) -> bool:
    one, other = terms.low, terms.high
    if not (isinstance(one, Halves) and isinstance(other, Halves)):
        return False
    return one.center < other.center or not np.array_equal(one.moved, other.moved)


def delta(terms: Terms, level: float) -> tuple[float, float]:
    """Low and high at `level` in (0, 1), each by its side's `quantile`."""
    return bound(terms.low, 0.5 - level / 2), bound(terms.high, 0.5 + level / 2)


def bound(side: Side, probability: float) -> float:
    """What the true value is below with the given probability: a lower bound for one under 0.5, an upper for others."""
    return side.center + quantile(probability, side.df, side.skew, side.n) * side.error


def bernstein(terms: Array, low: float, high: float, level: float) -> tuple[float, float]:
    """Interval for the mean of terms of a known range, at every n, for one look: empirical Bernstein.

    mean -+ (sqrt(2 v log(2/d) / n) + 7 (high - low) log(2/d) / (3 (n - 1))), v the sample variance and d = (1 - level)
    / 2 a side. It assumes nothing of the terms but their range, which for weighted rewards is that of the largest
    weight: there it is some 6 to 11 times as wide as the normal interval.

    Args:
        terms: [N] f64 in [low, high], N at least 2, independent: one a unit.
        level: coverage of the two sides together, in (0, 1).
    Raises:
        DataError: there are not two terms, or one is outside the range.
    Source: Maurer and Pontil 2009, arXiv:0907.3740, theorem 4.
    """
    n = len(terms)
    if n < 2:
        raise DataError(f"{n} units have no interval: their error can not be told", hint="log more units")
    outside = np.flatnonzero(~((terms >= low) & (terms <= high)))
    if outside.size:
        raise DataError(f"term {outside[0]} is {terms[outside[0]]:g}, outside of [{low:g}, {high:g}]", field="terms")
    away = math.log(4.0 / (1.0 - level))
    half = math.sqrt(2.0 * float(terms.var(ddof=1)) * away / n) + 7.0 * (high - low) * away / (3.0 * (n - 1))
    mean = float(terms.mean())
    return mean - half, mean + half


def bootstrap(
    columns: Array, statistic: Callable[[Array], Array], level: float, seed: int, draws: int = 2000
) -> tuple[float, float]:
    """Bias-corrected and accelerated (BCa) bootstrap interval of a function of sums over clusters.

    Clusters are drawn again with replacement; the quantiles of the draws are shifted by
    z_0 + (z_0 + z) / (1 - a (z_0 + z)), z_0 from the share of draws below the value, a = sum(pull^3) / (6
    sum(pull^2)^1.5). Where most clusters are equal, as those
    without any reward are in a sum of weighted rewards, they are drawn as one multinomial count: the same law, faster.

    Args:
        columns: [M, C] f64, what is summed over C clusters.
        statistic: sums [M, B] -> [B], e.g. `lambda sums: sums[0] / sums[1]`.
        level: coverage, in (0, 1).
        draws: B.
    Raises:
        SupportError: the statistic is not finite in a draw, or without one of the clusters.
    Source: Efron 1987, Better bootstrap confidence intervals, J. Am. Stat. Assoc. 82, section 3.
    """
    total, clusters = columns.sum(axis=1), columns.shape[1]
    value = float(statistic(total[:, None])[0])
    pull = value - statistic(total[:, None] - columns)
    found = statistic(_drawn_again(columns, draws, np.random.default_rng(seed)))
    if not (np.isfinite(found).all() and np.isfinite(pull).all()):
        raise SupportError(
            f"the estimate rests on few of the {clusters} units: drawn again without them it is not defined",
            hint="log with more exploration, or judge a policy closer to the one that logged",
        )
    square = float(pull @ pull)
    bend = float(np.sum(pull**3)) / (6.0 * square**1.5) if square > 0 else 0.0
    below = (float(np.sum(found < value)) + 0.5 * float(np.sum(found == value)) + 0.5) / (draws + 1)
    normal = NormalDist()
    shift = normal.inv_cdf(below)
    ends = []
    for probability in (0.5 - level / 2, 0.5 + level / 2):
        z = shift + normal.inv_cdf(probability)
        ends.append(normal.cdf(shift + z / max(1.0 - bend * z, LONE)))
    low, high = np.quantile(found, ends)
    return float(low), float(high)


def _drawn_again(columns: Array, draws: int, rng: np.random.Generator) -> Array:
    """[M, B] f64, sums over as many clusters, drawn with replacement."""
    different, counts = np.unique(columns, axis=1, return_counts=True)
    clusters, kinds = columns.shape[1], len(counts)
    few = 8 * kinds < clusters  # a count takes as long as some eight draws
    step = max(1, CHUNK // (kinds if few else clusters))
    sums = np.empty((len(columns), draws))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        if few:
            sums[:, start : start + size] = different @ rng.multinomial(clusters, counts / clusters, size).T
        else:
            which = rng.integers(clusters, size=(size, clusters))
            for row, column in zip(sums, columns, strict=True):
                row[start : start + size] = column[which].sum(axis=1)
    return sums
