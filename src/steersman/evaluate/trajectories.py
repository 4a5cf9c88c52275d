"""Estimators of sequences by products of weights along episodes. Notation as in `estimators.py`.

An episode that is over keeps the weight it ended with in every normaliser: it is in an absorbing state where reward and
model are 0 and the policies agree. Dropping it instead would hand its share to the episodes that live longer, and
return their length for the mean length.

Products of weights are heavy-tailed, and a sample without the rare large ones looks well behaved. So each of these
speaks only where enough units are to be expected effective: see `silent`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from steersman.core.errors import SupportError
from steersman.evaluate.evidence import Evidence
from steersman.evaluate.intervals import Terms, ratio
from steersman.evaluate.one_step import mean

Array = np.ndarray

LEAST_ESS = 20
"""Below this expected effective number of units, products of weights are not believed: on worlds with known values
their 95% intervals cover 72 to 96%; above it 92 to 98%."""

MILD = 4.0
"""Products of weights with an expected square up to this are believed however few the units are."""


def silent(evidence: Evidence) -> str:
    """Why products of weights over steps are not believed here; empty if they are."""
    if evidence.paths.one_step:
        return ""
    units, moment = evidence.paths.clusters, evidence.second_moment
    if units / moment >= LEAST_ESS or moment <= MILD:
        return ""
    return (
        f"weights over up to {len(evidence.paths.steps)} steps leave an effective {units / moment:.2g} of {units:,} "
        f"units to be expected, fewer than {LEAST_ESS}: the interval would be too narrow"
    )


def speaking(estimator: Callable[[Evidence], Terms]) -> Callable[[Evidence], Terms]:
    """The estimator, silent where `silent` says so; its ess is the expected one, which the sample overstates.

    The bare function stays at hand as `__wrapped__`, to measure how far off it is where it should not be asked.
    """

    @functools.wraps(estimator)
    def guarded(evidence: Evidence) -> Terms:
        terms = estimator(evidence)
        if reason := silent(evidence):
            raise SupportError(reason, hint="the policies differ too much for estimators that weigh whole episodes")
        return replace(terms, ess=min(terms.ess, evidence.paths.clusters / evidence.second_moment))

    return guarded


@speaking
def tis(evidence: Evidence) -> Terms:
    """Trajectory importance sampling: mean of W_T sum f_t r_t, W_T the weight of the whole episode.

    Source: Precup, Sutton and Singh 2000, Eligibility traces for off-policy policy evaluation, section 2.
    """
    weight = last_weight(evidence)
    return mean(evidence, weight * returns(evidence), weight)


@speaking
def sn_tis(evidence: Evidence) -> Terms:
    """Self-normalised `tis`, by the sum of the weights over ALL episodes.

    Source: Precup, Sutton and Singh 2000, section 2, weighted importance sampling.
    """
    paths, weight = evidence.paths, last_weight(evidence)
    top, bottom = paths.per_cluster(weight * returns(evidence)), paths.per_cluster(weight)
    return Terms.of(*ratio(top, bottom), bottom, ((top, bottom),))


@speaking
def pdis(evidence: Evidence) -> Terms:
    """Per-decision importance sampling: mean of sum f_t W_t r_t. Unbiased; the variance is exponential in steps.

    Source: Precup, Sutton and Singh 2000, section 3.
    """
    paths = evidence.paths
    weighted = paths.per_episode(paths.factor * evidence.cumulative * evidence.reward)
    return mean(evidence, weighted, last_weight(evidence))


@speaking
def sn_pdis(evidence: Evidence) -> Terms:
    """Weighted per-decision importance sampling (CWPDIS): as `pdis`, each W_t over its mean over ALL episodes.

    Source: Thomas 2015, Safe reinforcement learning, section 3.8.
    """
    none = np.zeros(len(evidence.reward))
    return normalised(replace(evidence, q=none, v=none))


@speaking
def dr(evidence: Evidence) -> Terms:
    """Doubly robust, of one step or many: mean of sum f_t [W_{t-1} v_t + W_t (r_t - q_t)].

    Unbiased whatever the model is; the better the model, the smaller the variance. `q_t` is the value with the steps
    that remain at t.
    Source: Dudik et al. 2011, arXiv:1103.4601, eq. 3; Jiang and Li 2016, arXiv:1511.03722, eq. 10.
    """
    surprise = evidence.cumulative * (evidence.reward - evidence.q)
    rows = evidence.paths.factor * (evidence.before * evidence.v + surprise)
    return mean(evidence, evidence.paths.per_episode(rows), last_weight(evidence))


@speaking
def wdr(evidence: Evidence) -> Terms:
    """Weighted doubly robust: as `dr`, each W_t over its mean over ALL episodes.

    Each step is a ratio of two means; influences add up.
    Source: Thomas and Brunskill 2016, arXiv:1604.00923, eq. 8 and appendix B.
    """
    return normalised(evidence)


def normalised(evidence: Evidence) -> Terms:
    """`wdr` whether or not products of weights can be believed."""
    for value, pull, weight in backed_up(evidence):
        last = value, pull, weight
    value, pull, weight = last
    return Terms.of(value, pull, evidence.paths.per_cluster(weight))


def backed_up(evidence: Evidence) -> Iterator[tuple[float, Array, Array]]:
    """The j-step weighted doubly robust returns: the log's word for j steps, the model's for what follows.

    g_0 = mean of v_0; g_{j+1} = g_j + weighted mean of f_j (r_j - q_j) by W_j + that of f_{j+1} v_{j+1} by W_j. The
    first is the direct method, the last `wdr`.

    Yields:
        g_j; [C] influence of each unit on it; [E] weights W_{j-1}, up to a factor.
    Raises:
        SupportError: no episode has any weight left.
    """
    paths = evidence.paths
    weight = np.ones(paths.episodes)

    def part(rows: Array, amount: Array) -> tuple[float, Array]:
        top = np.zeros(paths.episodes)
        top[paths.episode[rows]] = paths.factor[rows] * weight[paths.episode[rows]] * amount
        return ratio(paths.per_cluster(top), paths.per_cluster(weight))

    value, pull = part(paths.steps[0], evidence.v[paths.steps[0]])
    yield value, pull, weight
    for rows, following in zip(paths.steps, [*paths.steps[1:], paths.steps[0][:0]], strict=True):
        weight = weight.copy()
        weight[paths.episode[rows]] *= evidence.weight[rows]
        if not weight.any():
            raise SupportError(
                "no episode has any weight left: the target leaves every logged episode",
                hint="log with more exploration, or judge a policy closer to the one that logged",
            )
        weight /= weight.max()  # only ratios matter, and products of many weights leave the range of floats
        for step, amount in ((rows, (evidence.reward - evidence.q)[rows]), (following, evidence.v[following])):
            if step.size:
                more, moved = part(step, amount)
                value, pull = value + more, pull + moved
        yield value, pull, weight


def returns(evidence: Evidence) -> Array:
    """[E], sum of f_t r_t of each episode."""
    return evidence.paths.per_episode(evidence.paths.factor * evidence.reward)


def last_weight(evidence: Evidence) -> Array:
    """[E], the weight with which each episode ended."""
    weight = np.empty(evidence.paths.episodes)
    for rows in evidence.paths.steps:
        weight[evidence.paths.episode[rows]] = evidence.cumulative[rows]
    return weight
