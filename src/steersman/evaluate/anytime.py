"""Bounds that hold however often one looks: confidence sequences, asymptotic and not, for the mean of terms.

A 95% interval that is asked for every day, until it says what one hopes for, is wrong far more often than 5% of the
time. A confidence sequence is an interval for every number of terms n; with probability `level` the mean is inside
all of them at once. `asymptotic` needs a variance and many terms; with 500 to 20,000 its lower side is 1.7 to 2.1
times as far out as the normal one. `bernstein_floor` and `betting_floor` hold at every n, whatever the largest term,
and are wider still.

Every bound is a function of the set of the terms, not of their order: the rows of a log need not lie in the order of
time, as long as a look has the terms of the look before it, and new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from steersman.core.errors import DataError
from steersman.evaluate.intervals import Spread
from steersman.evaluate.quantiles import quantile

Array = np.ndarray
Sides = Literal[1, 2]

TUNED = 4000.0
"""n*, the number of terms at which the asymptotic sequence is tightest if nobody says otherwise. The choice is mild:
from a quarter to ten times as many terms its bound is at most a tenth wider than the tightest, at a tenth of them a
third."""

SURE = 6.0
"""Standard errors of a normal tail of 1e-9."""

BETS = 0.5 ** np.arange(1, 25)
"""[J] f64, the share of its money that each purse bets on every term. By halves, so that the best share is within a
factor of root 2 of one of them, down to where ten million terms can not tell a mean from 0."""

PURSES = 1.0 / (np.arange(1, 25) * np.arange(2, 26))
"""[J] f64, the money in each purse at first. Together they hold less than 1."""


def rho(level: float, tuned: float = TUNED, sides: Sides = 2) -> float:
    """Width of the normal mixture that makes the asymptotic sequence tightest at `tuned` terms.

    rho^2 = u / tuned, with the u that makes (1 + 1/u) (log(1 + u) - 2 log a) least: u = log(1 + u) - 2 log a.
    a = 1 - level for two sides; for one side a = 2 (1 - level), which is close to its best.

    Args:
        level: in (0, 1); for one side above 0.5.
        tuned: n*, above 0.
    Raises:
        DataError: one of them is out of range.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, arXiv:2103.06476, on how to choose rho.
    """
    alpha = (1.0 - level) * (3 - sides)
    if not 0 < alpha < 1:
        raise DataError(f"level is {level:g}, must be in ({0.5 * (2 - sides):g}, 1)", field="level")
    if not tuned > 0:
        raise DataError(f"tuned is {tuned:g}, must be above 0", field="tuned")
    u = away = -2.0 * math.log(alpha)
    for _ in range(200):  # a contraction: its slope is 1 / (1 + u)
        u = math.log1p(u) + away
    return math.sqrt(u / tuned)


def errors_wide(n: ArrayLike, level: float, tuned: float = TUNED, sides: Sides = 2) -> Array:
    """How many standard errors from the mean of n terms the bound of the asymptotic sequence is.

    With s = n rho^2: two sides sqrt((1 + 1/s) log((s + 1) / a^2)), one side sqrt(2 (1 + 1/s) log(1 + sqrt(s + 1) /
    (2 a))), a = 1 - level. A normal interval has 1.96 and 1.64 at 95%, for a single look.

    Args:
        n: how many terms, at least 1; any shape, or a number.
        level: in (0, 1); for one side above 0.5.
        tuned: see `rho`.
    Source: arXiv:2103.06476, the Gaussian mixture sequence and its one-sided form.

    >>> [round(float(errors_wide(n, 0.95, sides=1)), 2) for n in (500, 4000, 20000)]
    [3.44, 2.78, 2.9]
    """
    s = np.asarray(n, dtype=np.float64) * rho(level, tuned, sides) ** 2
    alpha = 1.0 - level
    if sides == 2:
        return np.sqrt((1.0 + 1.0 / s) * (np.log1p(s) - 2.0 * math.log(alpha)))
    return np.sqrt(2.0 * (1.0 + 1.0 / s) * np.log1p(np.sqrt(s + 1.0) / (2.0 * alpha)))


def errors_out(
    side: Spread, n: float, sign: Literal[-1, 1], level: float, tuned: float = TUNED, sides: Sides = 1
) -> float:
    """The same for one side of an estimate that knows its degrees of freedom and its skewness, with its sign.

    A single look at the chance of the normal tail beyond `errors_wide`, by `quantiles.quantile`: the asymptotic
    sequence where the terms are many, wider where a few heavy ones make up the variance. Beyond SURE errors, which
    only few terms have, it grows in proportion: that far out tails are no more than a formula.

    Args:
        side: its `n` may be other than the clusters', if the error comes from half-samples.
        n: clusters that the estimate rests on; their errors shrink as those of a mean of n terms.
        sign: -1 for the lower side, 1 for the upper.
        level: for all looks at this side together, in (0.5, 1); with two sides for all at both, in (0, 1).
        tuned: see `rho`.
    """
    wide = float(errors_wide(n, level, tuned, sides))
    far = min(wide, SURE)
    return quantile(NormalDist().cdf(sign * far), side.df, side.skew, side.n) * wide / far


def asymptotic(terms: Array, level: float, tuned: float = TUNED) -> tuple[Array, Array]:
    """Two-sided asymptotic confidence sequence for the mean of terms, at every number of them.

    Args:
        terms: [..., N] f64, in the order in which they came; one sequence for each of the leading places.
        level: in (0, 1), for all N intervals at once.
        tuned: see `rho`.
    Returns:
        low, high: [..., N] f64. One term alone has no variance: -inf, inf.
    """
    mean, error, n = _running(terms)
    half = errors_wide(n, level, tuned) * error
    return mean - half, mean + half


def asymptotic_floor(terms: Array, level: float, tuned: float = TUNED) -> Array:
    """The one-sided sequence: [..., N] lower bounds, all of them below the mean at once; see `asymptotic`."""
    mean, error, n = _running(terms)
    return mean - errors_wide(n, level, tuned, sides=1) * error


def lift_terms(reward: Array, weight: Array, low: float, high: float) -> Array:
    """Terms at least -1 whose mean is the lift over the behavior policy, in units of the reward's range.

    x = (w - 1) (r - low) / (high - low). The mean of w is 1 in expectation, so `low` drops out; w has no limit.

    Args:
        reward, weight: [N] f64; the reward in [low, high], the weight target / propensity.
    Raises:
        DataError: the range is empty, or a reward is outside it.
    Source: Karampatziakis, Mineiro and Ramdas 2021, arXiv:2102.09540.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"the range of the reward is [{low:g}, {high:g}], must have two different ends", field="range")
    outside = np.flatnonzero(~((reward >= low) & (reward <= high)))
    if outside.size:
        raise DataError(
            f"row {outside[0]}: the reward is {reward[outside[0]]:g}, outside the declared range [{low:g}, {high:g}] "
            f"({outside.size} such rows of {len(reward)})",
            hint="declare the range that the reward can have, not the one it had",
            field="range",
        )
    return (weight - 1.0) * ((reward - low) / (high - low))


def bernstein_floor(n: float, total: float, square: float, level: float) -> float:
    """Lower bound of the running mean, at any number of looks and whatever the largest term: empirical Bernstein.

    For x >= -1 and a bet b in [0, 1): exp(b x - psi(b) x^2) <= 1 + b x, with psi(b) = -log(1 - b) - b. So with S = sum
    of x and Q = sum of x^2 the money sum_j p_j exp(b_j (S - n m) - psi(b_j) Q) has an expectation below 1 at every n
    for the true m, and ever reaches 1 / (1 - level) with probability at most 1 - level (Ville). The bound is the
    largest m at which it has. m is the mean of the expectations that the terms had, given all that came before: the
    world may drift, and decisions of one unit need not be independent.

    Args:
        n: how many terms.
        total, square: S and Q, of terms that are at least -1 (see `lift_terms`).
        level: in (0, 1).
    Source: Fan, Grama and Liu 2015, arXiv:1311.6273, for the inequality; Waudby-Smith, Wu, Ramdas, Karampatziakis and
        Mineiro 2022, arXiv:2210.10768, for weights without a limit. Here constant bets are mixed, not predicted.
    """
    price = (-np.log1p(-BETS) - BETS) * square
    return _largest(lambda m: BETS * (total - n * m) - price, total / n, level)


def betting_floor(terms: Array, level: float) -> float:
    """Lower bound of a mean that does not drift, at any number of looks and whatever the largest term: betting.

    With X = 1 + x >= 0 and M = 1 + m the money sum_j p_j prod(1 - b_j + b_j X / M) is that of fair bets on the mean
    m, so it reaches 1 / (1 - level) with probability at most 1 - level (Ville). The bound is the largest m at which it
    has. Tighter than `bernstein_floor`, but about a constant mean: where expectations drift it bounds the largest.

    Args:
        terms: [N] f64, each at least -1 (see `lift_terms`).
        level: in (0, 1).
    Raises:
        DataError: no terms, or one is below -1 or not finite.
    Source: Waudby-Smith and Ramdas 2023, arXiv:2010.09686; arXiv:2210.10768.
    """
    bad = np.flatnonzero(~(np.isfinite(terms) & (terms >= -1.0)))
    if bad.size or not len(terms):
        what = f"term {bad[0]} is {terms[bad[0]]:g}, must be at least -1" if bad.size else "there are no terms"
        raise DataError(what, hint="lift_terms makes such terms", field="terms")
    gain = 1.0 + terms
    bets = BETS[BETS * math.sqrt(len(terms)) > 0.01]  # smaller ones win nothing in so few terms; their money stays
    money = np.zeros(len(BETS))

    def won(m: float) -> Array:
        for j, bet in enumerate(bets):
            money[j] = float(np.log1p(bet * (gain / (1.0 + m) - 1.0)).sum())
        return money

    return _largest(won, float(terms.mean()), level)


def _running(terms: Array) -> tuple[Array, Array, Array]:
    """Running mean, standard error of it, and n = 1 ... N."""
    n = np.arange(1, terms.shape[-1] + 1, dtype=np.float64)
    first = terms[..., :1]  # sums of squares lose their digits far from 0
    away = terms - first
    mean = np.cumsum(away, axis=-1) / n
    square = np.maximum(np.cumsum(away**2, axis=-1) - n * mean**2, 0.0)
    error = np.sqrt(square / np.maximum(n * (n - 1.0), 1.0))
    error[..., 0] = math.inf
    return mean + first, error, n


def _largest(won: Callable[[float], Array], mean: float, level: float) -> float:
    """The largest m in [-1, mean] at which all purses together hold 1 / (1 - level), by bisection; -1 if none is.

    Args:
        won: m -> [J], logarithm of what each purse has made of its money; falls in m, at most 0 at the mean.
    """
    goal = -math.log(1.0 - level)
    low, high = -1.0, mean
    if high <= low:
        return low
    for _ in range(50):
        middle = 0.5 * (low + high)
        reached = float(np.logaddexp.reduce(np.log(PURSES) + won(middle))) >= goal
        low, high = (middle, high) if reached else (low, middle)
    return low
