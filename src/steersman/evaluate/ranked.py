"""Estimators of ranked lists, beside those of sequences: a list is an episode, a slot is a step of it.

Then W_l, the product of the weights down to slot l, and the estimators of `trajectories.py` are what is known of lists:

    sips         W_L on all rewards; right however people read
    list-dr      doubly robust with the list as the action; right however people read
    rips         W_l on the reward of slot l; right if nothing below an item matters to it (cascade)
    cascade-dr   doubly robust from slot to slot; right if nothing below an item matters to it
    iips         how often an item stands in a slot; right if nothing but item and slot matters to a reward
    pi           right if the reward of a list is a sum of what each item is worth in its slot

Each `sn-` form divides by the sum of its weights. Of `iips` and `pi` the log can not tell how wrong they are where
people read otherwise, and no gate may rest on them.
"""

from __future__ import annotations

import numpy as np

from steersman.core.errors import SupportError
from steersman.evaluate.evidence import Evidence, Listed
from steersman.evaluate.intervals import Terms, ratio
from steersman.evaluate.one_step import mean
from steersman.evaluate.trajectories import last_weight, returns, speaking

Array = np.ndarray


@speaking
def list_dr(evidence: Evidence) -> Terms:
    """Doubly robust over the whole list: mean of v_1 + W_L (R - M), M what the model says of the list.

    M = sum of q_l - v_{l+1}, the model's reward of every slot, has exactly the mean v_1 under the target; so this is
    unbiased however people read, though the model reads from the top.
    Source: Dudik et al. 2011, arXiv:1103.4601, eq. 3, with the list as the action.
    """
    weight = last_weight(evidence)
    return mean(evidence, _expected(evidence) + weight * _surprise(evidence), weight)


@speaking
def sn_list_dr(evidence: Evidence) -> Terms:
    """Self-normalised `list-dr`: mean of v_1, plus sum of W_L (R - M) / sum of W_L.

    Source: Thomas and Brunskill 2016, arXiv:1604.00923, eq. 8, for one step.
    """
    paths, weight = evidence.paths, last_weight(evidence)
    parts = (
        (paths.per_cluster(_expected(evidence)), paths.per_cluster(np.ones(paths.episodes))),
        (paths.per_cluster(weight * _surprise(evidence)), paths.per_cluster(weight)),
    )
    return _of_ratios(parts, parts[1][1])


def _expected(evidence: Evidence) -> Array:
    """[E] v_1."""
    return evidence.v[evidence.paths.steps[0]]


def _surprise(evidence: Evidence) -> Array:
    """[E] R - M."""
    previous, following = evidence.paths.previous, np.zeros(len(evidence.v))
    below = np.flatnonzero(previous >= 0)
    following[previous[below]] = evidence.v[below]
    return evidence.paths.per_episode(evidence.reward - evidence.q + following)


def iips(evidence: Evidence) -> Terms:
    """Independent IPS: mean of sum of u_l r_l, u_l = target / behavior of the item in slot l whatever stands above.

    Source: Li et al. 2018, arXiv:1804.10488, item-position click model.
    """
    standing = _standing(evidence)
    paths = evidence.paths
    return mean(evidence, paths.per_episode(standing * evidence.reward), paths.per_episode(standing))


def sn_iips(evidence: Evidence) -> Terms:
    """Self-normalised `iips`, slot by slot: a shorter list counts with the weight 1 where it has no item."""
    standing, paths = _standing(evidence), evidence.paths
    parts = []
    for rows in paths.steps:
        weight, top = np.ones(paths.episodes), np.zeros(paths.episodes)
        weight[paths.episode[rows]] = standing[rows]
        top[paths.episode[rows]] = (standing * evidence.reward)[rows]
        parts.append((paths.per_cluster(top), paths.per_cluster(weight)))
    return _of_ratios(tuple(parts), paths.per_cluster(paths.per_episode(standing)))


def pseudo_inverse(evidence: Evidence) -> Terms:
    """Pseudo-inverse: mean of (q' G+ 1_list) R, q the mean indicator of (slot, item) under the target, G the second
    moments of that indicator under the behavior policy.

    Source: Swaminathan et al. 2017, arXiv:1605.04812, eq. 4.
    """
    weight = _additive(evidence)
    return mean(evidence, weight * returns(evidence), weight)


def sn_pseudo_inverse(evidence: Evidence) -> Terms:
    """Self-normalised `pi`. Its weights may be negative.

    Source: Swaminathan et al. 2017, arXiv:1605.04812, section 3.
    """
    paths, weight = evidence.paths, _additive(evidence)
    bottom = paths.per_cluster(weight)
    return _of_ratios(((paths.per_cluster(weight * returns(evidence)), bottom),), bottom)


def _of_ratios(parts: tuple[tuple[Array, Array], ...], weight: Array) -> Terms:
    """A sum of ratios of sums over units: their influences add up."""
    value, pull = 0.0, np.zeros(len(weight))
    for top, bottom in parts:
        more, moved = ratio(top, bottom)
        value, pull = value + more, pull + moved
    return Terms.of(value, pull, weight, parts)


def _standing(evidence: Evidence) -> Array:
    listed = evidence.lists
    return _told(listed.standing if listed else None, listed)


def _additive(evidence: Evidence) -> Array:
    listed = evidence.lists
    return _told(listed.additive if listed else None, listed)


def _told(weights: Array | None, listed: Listed | None) -> Array:
    if weights is None:
        raise SupportError(
            listed.absent if listed else "the actions are no ranked lists",
            hint="log first_propensities, of a policy whose lists keep the proportions of what remains, e.g. a softmax",
        )
    return weights
