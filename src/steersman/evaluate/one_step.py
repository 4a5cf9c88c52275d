"""Estimators of single decisions, beside `dm` and `dr`. Notation as in `estimators.py`.

Tuned, shrunk and learned weights have a bias that the log can not tell: intervals of their own cover 4 to 58% of the
time where 95% is promised. So `clipped_ips`, `sub_gaussian_ips`, `balanced_ips` and `mips` print the interval of `ips`,
and `switch_dr`, `dros` and `sub_gaussian_dr` that of `dr`: that of the same estimator with the weights as they are,
widened to contain the value. No gate may rest on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from steersman.core.errors import SupportError
from steersman.evaluate.evidence import Evidence
from steersman.evaluate.intervals import LONE, Influence, Terms, ratio
from steersman.evaluate.quantiles import student_t
from steersman.evaluate.tuning import (
    CLIP,
    DELTA,
    OPTIMISTIC,
    SUB_GAUSSIAN,
    SWITCH,
    Shrinkage,
    bias_bound,
    slope,
)

Array = np.ndarray

SAME = 1e-6
"""Weights this close to 1 are 1, propensities this close in proportion are the same: they may have been float32."""

Rule = Callable[[Evidence, Shrinkage], float]
"""Chooses the strength of a shrinkage."""


def corrected(evidence: Evidence, shrunk: Array) -> Array:
    """[N] v + shrunk (r - q): what each row says, with weights of any kind. Without a model: shrunk r."""
    return evidence.v + shrunk * (evidence.reward - evidence.q)


def mean(evidence: Evidence, per_episode: Array, weight: Array) -> Terms:
    """Mean over episodes as a ratio of sums over units: a unit with several episodes is one cluster."""
    paths = evidence.paths
    top, bottom = paths.per_cluster(per_episode), paths.per_cluster(np.ones(paths.episodes))
    return Terms.of(*ratio(top, bottom), paths.per_cluster(weight), ((top, bottom),))


def ips(evidence: Evidence) -> Terms:
    """Inverse propensity scoring: mean of w r.

    Unbiased wherever every action of the target was sometimes logged; its variance grows with the weights, and with
    any constant added to the reward.
    Source: Horvitz and Thompson 1952; Dudik et al. 2011, arXiv:1103.4601, eq. 2.
    """
    return mean(evidence, evidence.weight * evidence.reward, evidence.weight)


def snips(evidence: Evidence) -> Terms:
    """Self-normalised IPS: sum of w r / sum of w. A constant added to the reward is added to the value.

    Source: Swaminathan and Joachims 2015, the self-normalized estimator, eq. 9.
    """
    return _normalised(evidence, evidence.weight)


def control_variate_ips(evidence: Evidence) -> Terms:
    """IPS minus b times (mean weight - 1), whose expectation is 0; b = cov(w r, w) / var(w), over units.

    The regression of w r on w - 1, read where w - 1 is 0. A constant reward is returned exactly; a constant added to
    the reward is added to the value. Where all weights are 1 there is nothing to account for: the logged mean.

    The interval is the jackknife's, in closed form: leaving a unit out moves intercept and b, as leaving a row out of
    a regression does. With b held fixed it would be too narrow where a few units have most of var(w).

    Raises:
        SupportError: the weights differ in one unit only, or in none and are not 1.
    Source: Owen, Monte Carlo theory, methods and examples, ch. 8.9; Miller 1974, The jackknife, for regressions.
    """
    paths = evidence.paths
    if float(np.abs(evidence.weight - 1.0).max()) <= SAME:
        return ips(evidence)
    top, weight = paths.per_cluster(evidence.weight * evidence.reward), paths.per_cluster(evidence.weight)
    size = paths.per_cluster(np.ones(paths.episodes))
    excess = weight - size
    columns, asked = (
        np.stack([size, excess]),
        np.stack([np.ones(paths.clusters), excess]),
    )  # residuals sum to 0 with asked
    gram = asked @ columns.T
    alone = float(np.linalg.det(gram)) <= LONE * float(excess @ excess) * float(size.sum())
    inverse = np.zeros((2, 2)) if alone else np.linalg.inv(gram)
    lever = np.einsum("ic,ij,jc->c", columns, inverse, asked)
    if alone or 1.0 - float(lever.max()) <= LONE:
        raise SupportError(
            f"the weights differ in one of the {paths.clusters} units at most: the rest says nothing about them",
            hint="log with more exploration, or judge a policy closer to the one that logged",
        )
    fitted = inverse @ (asked @ top)  # value, b
    left = (top - fitted @ columns) / (1.0 - lever)
    return Terms.of(float(fitted[0]), (paths.clusters - 1) * (inverse[0] @ asked) * left, weight)


def replay(evidence: Evidence) -> Terms:
    """Replay: mean reward of the rows where the target would have taken the logged action. For uniform logging.

    A row counts with the target's probability of the logged action, 0 or 1 for a target without chance: no draws.

    Raises:
        SupportError: the actions were not logged uniformly; matched rows would then come too often from some contexts.
    Source: Li, Chu, Langford and Wang 2011, arXiv:1003.5956, the policy evaluator.
    """
    propensity = evidence.propensity
    if propensity is None or not uniform(propensity):
        raise SupportError(
            "the actions were not logged uniformly: rows that match the target are not like the others",
            hint="use snips, which is replay for propensities that differ",
        )
    return _normalised(evidence, evidence.weight * propensity)


def uniform(propensity: Array) -> bool:
    """Whether all logged actions had the same probability."""
    return float(np.ptp(propensity)) <= SAME * float(propensity.max())


def sndr(evidence: Evidence) -> Terms:
    """Self-normalised doubly robust: mean of v, plus sum of w (r - q) / sum of w.

    The influence is that of a sum of two ratios, the random denominator included.
    Source: Thomas and Brunskill 2016, arXiv:1604.00923, eq. 8, for one step.
    """
    paths = evidence.paths
    weight = paths.per_cluster(evidence.weight)
    sums = (
        (paths.per_cluster(evidence.v), paths.per_cluster(np.ones(paths.episodes))),
        (paths.per_cluster(evidence.weight * (evidence.reward - evidence.q)), weight),
    )
    (model, pull), (rest, more) = (ratio(*pair) for pair in sums)
    return Terms.of(model + rest, pull + more, weight, sums)


def mrdr(evidence: Evidence) -> Terms:
    """More robust doubly robust: `dr` with the model that was fitted to make its variance small.

    Source: Farajtabar, Chow and Ghavamzadeh 2018, arXiv:1802.03493.
    """
    if evidence.robust is None:
        raise SupportError(
            "every logged action had probability 1: there is no variance that a model could make small",
            hint="use dr",
        )
    return plain_dr(replace(evidence, q=evidence.robust.q, v=evidence.robust.v))


def fixed(strength: float) -> Rule:
    """The rule that always takes this strength: `dros(evidence, fixed(10.0))` tunes nothing."""
    return lambda evidence, shrinkage: strength


def by_error(evidence: Evidence, shrinkage: Shrinkage) -> float:
    """The strength with the least variance + (estimated bias)^2; the variance by units. The rule of every row here.

    With 2,000 decisions of world A (`worlds/tabular.py`) the root mean squared error of every row is within 10% of no
    shrinkage; `by_slope` nearly doubles it, and `by_bound` hardly ever shrinks. With 200 decisions whose expected ess
    is 4 it is about two thirds of no shrinkage for `dros` and `sub_gaussian_dr`, three quarters for `clipped_ips`.
    Source: Su, Dimakopoulou, Krishnamurthy and Dudik 2020, arXiv:1907.09623, with the bias as estimated.
    """
    return _least_error(evidence, shrinkage, lambda shrunk: _seen_bias(evidence, shrunk))


def by_bound(evidence: Evidence, shrinkage: Shrinkage) -> float:
    """The strength with the least variance + (bound on the bias)^2; the variance by units."""
    surprise = evidence.reward - evidence.q
    size = float(np.abs(surprise).max())
    return _least_error(evidence, shrinkage, lambda shrunk: bias_bound(evidence.weight, shrunk, surprise, size))


def by_slope(evidence: Evidence, shrinkage: Shrinkage) -> float:
    """The strength that SLOPE++ takes; its intervals by units. See `tuning.slope`."""
    strengths, mean_of = shrinkage.strengths(evidence.weight), _means(evidence)
    far = student_t(1.0 - DELTA, evidence.paths.clusters - 1)
    tried = np.array([mean_of(shrinkage.shrink(evidence.weight, float(s))) for s in strengths])
    return float(strengths[slope(tried[:, 0], far * tried[:, 1])])


def _least_error(evidence: Evidence, shrinkage: Shrinkage, bias: Callable[[Array], float]) -> float:
    strengths, mean_of, errors = shrinkage.strengths(evidence.weight), _means(evidence), []
    for strength in strengths:
        shrunk = shrinkage.shrink(evidence.weight, float(strength))
        errors.append(mean_of(shrunk)[1] ** 2 + bias(shrunk) ** 2)
    return float(strengths[int(np.argmin(errors))])


def _seen_bias(evidence: Evidence, shrunk: Array) -> float:
    return float((evidence.weight - shrunk) @ (evidence.reward - evidence.q)) / len(shrunk)


def _means(evidence: Evidence) -> Callable[[Array], tuple[float, float]]:
    """Of weights [N]: the mean of what they make of the rows, and its standard error.

    They are those of `mean`, whose denominator is the same for all weights, so that it is looked at once.
    """
    paths = evidence.paths
    size = paths.per_cluster(np.ones(paths.episodes))
    total = float(size.sum())
    lever = (paths.clusters - 1) / (total - size)

    def mean_of(shrunk: Array) -> tuple[float, float]:
        top = paths.per_cluster(corrected(evidence, shrunk))
        value = float(top.sum()) / total
        return value, Influence(value, lever * (top - value * size)).error

    return mean_of


def clipped_ips(evidence: Evidence, rule: Rule = by_error) -> Terms:
    """Mean of min(w, limit) r, with a tuned limit."""
    return _shrunk(bare(evidence), CLIP, rule)


def sub_gaussian_ips(evidence: Evidence, rule: Rule = by_error) -> Terms:
    """Mean of w / (1 - l + l w) r, with a tuned l."""
    return _shrunk(bare(evidence), SUB_GAUSSIAN, rule)


def switch_dr(evidence: Evidence, rule: Rule = by_error) -> Terms:
    """Doubly robust where the weight is at most a tuned limit, the model alone above it."""
    return _shrunk(evidence, SWITCH, rule)


def dros(evidence: Evidence, rule: Rule = by_error) -> Terms:
    """Doubly robust with optimistic shrinkage: weights l w / (w^2 + l), with a tuned l."""
    return _shrunk(evidence, OPTIMISTIC, rule)


def sub_gaussian_dr(evidence: Evidence, rule: Rule = by_error) -> Terms:
    """Doubly robust with weights w / (1 - l + l w), with a tuned l."""
    return _shrunk(evidence, SUB_GAUSSIAN, rule)


def balanced_ips(evidence: Evidence) -> Terms:
    """Balanced IPS: sum of w r / sum of w with weights that were learned without propensities; see `learned_weights`.

    Source: Sondhi, Arbour and Dimmery 2020, arXiv:1906.03694, balanced off-policy evaluation.
    """
    weight = evidence.learned
    if weight is None or not weight.any():
        raise SupportError("no weights could be learned from this log", hint="use snips")
    return replace(ips(evidence), value=float(weight @ evidence.reward) / float(weight.sum()))


def mips(evidence: Evidence) -> Terms:
    """Marginalised IPS: mean of w(x, e) r, w(x, e) the mean weight of candidates with the same features e.

    Right if the features tell all by which an action matters; far less variance than `ips` where actions are many.
    Source: Saito and Joachims 2022, arXiv:2202.06317, section 3.
    """
    if evidence.embedded is None:
        raise SupportError(
            "the candidates have no features that differ", hint="log features of the candidates, or use ips"
        )
    value = float(evidence.embedded @ evidence.reward) / evidence.paths.episodes
    return replace(ips(evidence), value=value)


def _shrunk(evidence: Evidence, shrinkage: Shrinkage, rule: Rule) -> Terms:
    """The value with shrunk weights; the interval with the weights as they are."""
    plain = plain_dr(evidence)  # refuses a log that has no error, before anybody tunes on it
    shrunk = shrinkage.shrink(evidence.weight, rule(evidence, shrinkage))
    return replace(plain, value=float(corrected(evidence, shrunk).sum()) / evidence.paths.episodes)


def plain_dr(evidence: Evidence) -> Terms:
    """`dr` of one step; `ips` without a model."""
    return mean(evidence, corrected(evidence, evidence.weight), evidence.weight)


def bare(evidence: Evidence) -> Evidence:
    """The same without a model."""
    none = np.zeros(len(evidence.reward))
    return replace(evidence, q=none, v=none)


def _normalised(evidence: Evidence, weight: Array) -> Terms:
    paths = evidence.paths
    top, bottom = paths.per_cluster(weight * evidence.reward), paths.per_cluster(weight)
    return Terms.of(*ratio(top, bottom), bottom, ((top, bottom),))
