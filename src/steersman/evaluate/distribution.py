"""The distribution of an episode's return under the target: how often it is below a number, quantiles, its worst part.

    F(x) = sum of W 1{G <= x} / sum of W        G: return of a logged episode, W: product of its weights

The weights are over their own sum, so F is monotone and in [0, 1] by itself. Band: Wilson's interval with the effective
number of units that F's own influence gives it, which keeps it in [0, 1] and honest where F is 0 or 1. A quantile's
interval is where that band crosses its probability; one whose band never does is not identified.
Sources: Huang, Leqi, Lipton and Azizzadenesheli 2021, arXiv:2104.08977; Wilson 1927, J. Am. Stat. Assoc. 22; Woodruff
1952, J. Am. Stat. Assoc. 47; Rockafellar and Uryasev 2000, Optimization of conditional value-at-risk, theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.errors import SupportError
from steersman.core.report import Distribution, Estimate, Verdict
from steersman.evaluate.evidence import Evidence, Paths
from steersman.evaluate.intervals import LONE, Terms, estimate, ratio
from steersman.evaluate.quantiles import student_t
from steersman.evaluate.trajectories import last_weight, returns, silent

Array = np.ndarray

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Probabilities whose quantiles are told."""

TAILS = (0.1, 0.25)
"""Shares of the worst episodes whose mean return is told."""

LEAST_TAIL = 10.0
"""Effective number of units that a tail must have for its mean to be told."""

ROUNDING = 1e-12
"""Probabilities that differ by less are the same."""


def distribution(evidence: Evidence, level: float) -> Distribution:
    """Of the target and of the log: `return <= x` at the logged deciles, `return p10` and so on, `return cvar 10%`.

    A metric `return cvar 10%` is the mean return of the worst 10% of the episodes.

    Args:
        level: coverage of the intervals, in (0, 1).
    """
    returned = returns(evidence)
    points = np.unique(np.quantile(returned, np.arange(1, 10) / 10, method="inverted_cdf"))
    name = "snips" if evidence.paths.one_step else "sn-tis"
    units = float(evidence.paths.clusters)
    found, refused = _told(evidence.paths, returned, np.ones(len(returned)), points, level, "logged", units)
    without = "the target takes one number without chance: no logged action is weighed"
    if reason := without if np.isnan(evidence.weight).any() else silent(evidence):
        return Distribution(estimates=found, refused=(*refused, _unknown("return", reason)))
    try:
        most = units / evidence.second_moment
        more, not_told = _told(evidence.paths, returned, last_weight(evidence), points, level, name, most)
    except SupportError as error:
        return Distribution(estimates=found, refused=(*refused, _unknown("return", error.message)))
    return Distribution(estimates=(*more, *found), refused=(*not_told, *refused))


def _told(
    paths: Paths, returned: Array, weight: Array, points: Array, level: float, name: str, most: float
) -> tuple[tuple[Estimate, ...], tuple[Verdict, ...]]:
    curve = Curve.of(paths, returned, weight, level, most)
    found: list[Estimate] = []
    refused: list[Verdict] = []

    def tell(metric: str, value: float, low: float, high: float) -> None:
        found.append(Estimate(estimator=name, metric=metric, value=value, low=low, high=high, level=level,
                              n=paths.clusters, ess=curve.ess))  # fmt: skip

    for x in points:
        tell(f"return <= {x:.6g}", *curve.share(float(x)))
    for probability in QUANTILES:
        metric = f"return p{100 * probability:.0f}"
        ends = curve.quantile(probability)
        if ends is None:
            refused.append(_unknown(metric, f"an effective {curve.ess:.2g} units say nothing of it: {name}"))
        else:
            tell(metric, *ends)
    for share in TAILS:
        metric = f"return cvar {100 * share:.0f}%"
        terms, ess = worst(paths, returned, weight, share, curve)
        if ess < LEAST_TAIL:
            reason = f"an effective {ess:.2g} units are in that tail, fewer than {LEAST_TAIL:g}: {name}"
            refused.append(_unknown(metric, reason))
        else:
            found.append(estimate(terms, estimator=name, metric=metric, level=level))
    return tuple(found), tuple(refused)


@dataclass(frozen=True, eq=False)
class Curve:
    """F at every different return, with its band.

    Attributes:
        at: [D] f64, the returns, ascending.
        value, low, high: [D] f64 in [0, 1], ascending.
        ess: effective number of units.
        blind: probability up to which, from below and from above, no return of the log bounds a quantile.
    """

    at: Array
    value: Array
    low: Array
    high: Array
    ess: float
    blind: float

    @classmethod
    def of(cls, paths: Paths, returned: Array, weight: Array, level: float, most: float) -> Curve:
        """
        Args:
            returned, weight: [E] f64; weights at least 0.
            level: coverage of the band at each point, in (0, 1).
            most: effective number of units to be expected, which a sample without the rare large weights overstates.
        Raises:
            SupportError: one unit has all of the weight.
        """
        order = np.argsort(returned, kind="stable")
        last = np.append(np.flatnonzero(np.diff(returned[order])), len(order) - 1)  # of equal returns
        per_unit = paths.per_cluster(weight)
        total = float(per_unit.sum())
        value = np.minimum(np.cumsum(weight[order])[last] / total, 1.0) if total > 0 else np.zeros(len(last))
        square = _square_error(paths, order, weight, per_unit)[last]
        ess = min(total**2 / float(per_unit @ per_unit), most)
        inner = value * (1.0 - value)
        number = _effective(weight[order], last, inner, square, ess)
        t = student_t(0.5 + level / 2, max(ess - 1.0, 1.0))
        middle = (value + t**2 / (2.0 * number)) / (1.0 + t**2 / number)
        half = t / (1.0 + t**2 / number) * np.sqrt(inner / number + t**2 / (4.0 * number**2))
        low = np.maximum.accumulate(np.clip(middle - half, 0.0, value))
        high = np.minimum.accumulate(np.clip(middle + half, value, 1.0)[::-1])[::-1]
        return cls(returned[order][last], value, low, high, ess, t**2 / (ess + t**2))

    def share(self, x: float) -> tuple[float, float, float]:
        """F(x), and its interval; x is one of the returns, or above the least of them."""
        place = int(np.searchsorted(self.at, x, side="right")) - 1
        return float(self.value[place]), float(self.low[place]), float(self.high[place])

    def quantile(self, probability: float) -> tuple[float, float, float] | None:
        """The least return with F of the probability, and its interval; None: the band never reaches it."""
        if not self.blind < probability < 1.0 - self.blind:
            return None
        places = (int(np.searchsorted(side, probability - ROUNDING)) for side in (self.value, self.high, self.low))
        value, low, high = (float(self.at[place]) for place in places)
        return value, low, high


def worst(paths: Paths, returned: Array, weight: Array, share: float, curve: Curve) -> tuple[Terms, float]:
    """Mean return of the worst `share` of the episodes (CVaR), and the effective number of units that are in it.

    It is the largest over q of the mean of q + min(G - q, 0) / share, and the largest does not move with q: so the
    influence is that of this mean at the quantile.
    """
    place = min(int(np.searchsorted(curve.value, share - ROUNDING)), len(curve.at) - 1)
    q = float(curve.at[place])
    bottom = paths.per_cluster(weight)
    top = paths.per_cluster(weight * (q + np.minimum(returned - q, 0.0) / share))
    value, pull = ratio(top, bottom)
    tail = paths.per_cluster(weight * (returned <= q))
    square = float(tail @ tail)
    return Terms.of(value, pull, bottom), float(tail.sum()) ** 2 / square if square > 0 else 0.0


def _effective(w: Array, last: Array, inner: Array, square: Array, ess: float) -> Array:
    """[D] number of equal draws whose share would have the error of F: F (1 - F) / error^2.

    Where fewer than LEAST_TAIL effective episodes lie on one side, the error of the sample misses what is rare there,
    and no more than the effective number of units is believed.
    """
    below, squares = np.cumsum(w)[last], np.cumsum(w**2)[last]
    above, others = below[-1] - below, squares[-1] - squares
    sides = (below**2 >= LEAST_TAIL * squares) & (others > 0.0) & (above**2 >= LEAST_TAIL * others)
    known = (inner > ROUNDING) & (square > 0.0)  # elsewhere all weight lies on one side
    number = np.divide(inner, square, out=np.full(len(inner), ess), where=known)
    return np.where(sides, number, np.minimum(number, ess))


def _square_error(paths: Paths, order: Array, weight: Array, per_unit: Array) -> Array:
    """[E] squared standard error of F at the return of each episode in `order`: the jackknife's, by units.

    With a unit's weight b, of which a lies at or below x, and B the weight of the others, it is (C - 1) / C times the
    sum of (a - F b)^2 / B^2. The three sums are cumulative: an episode of weight w makes a^2 grow by 2 a w + w^2.
    """
    units, total = len(per_unit), float(per_unit.sum())
    rest = total - per_unit
    if float(rest.min()) <= LONE * total:
        raise SupportError(
            f"the estimate rests on one of the {units} units: the others weigh nothing",
            hint="log with more exploration, or judge a policy closer to the one that logged",
        )
    w, unit = weight[order], paths.cluster[order]
    already = np.zeros(len(w))
    if units < len(w):
        grouped = np.argsort(unit, kind="stable")
        sums = np.cumsum(w[grouped]) - w[grouped]
        first = np.append(True, np.diff(unit[grouped]) != 0)
        already[grouped] = sums - np.maximum.accumulate(np.where(first, sums, -np.inf))
    share = np.cumsum(w) / total
    own = np.cumsum((2.0 * already * w + w**2) / rest[unit] ** 2)
    both = np.cumsum(w * per_unit[unit] / rest[unit] ** 2)
    all_of_it = float(np.sum((per_unit / rest) ** 2))
    return np.maximum((units - 1.0) / units * (own - 2.0 * share * both + share**2 * all_of_it), 0.0)


def _unknown(metric: str, reason: str) -> Verdict:
    hint = "log more units, with more exploration, or judge a policy closer to the one that logged"
    return Verdict(gate=metric, status="not identified", reason=reason, next=hint)
