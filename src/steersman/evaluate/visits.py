"""Estimators of sequences by visits: how often the target would be where the log was, never how likely a whole past.

Their error does not grow exponentially with the steps. They assume that the context tells all that matters of the past,
at every step alike, and need contexts that are few (`tables.py`). On contexts with numbers the marginal weights of a
linear sieve blow up over a long horizon, so there they are refused.
"""

from __future__ import annotations

import numpy as np

from steersman.core.errors import SupportError
from steersman.evaluate.evidence import Evidence, Marginal, Visits
from steersman.evaluate.intervals import Terms, ratio
from steersman.evaluate.one_step import mean

Array = np.ndarray


def drl(evidence: Evidence) -> Terms:
    """Double reinforcement learning: mean of v_0 plus the weighted surprises of all rows, by visits not by products.

    V = mean of v_0 + mean over episodes of sum over rows of the row's correction (see `Marginal`). Right where the
    action values or the weights are; nearly so where a context is several states that the log does not tell apart.
    Source: Kallus and Uehara 2020, arXiv:1908.08526, eq. 7.
    """
    paths, marginal = evidence.paths, _marginal(evidence)
    episodes = paths.per_episode(marginal.correction)
    episodes += evidence.v[paths.steps[0]]
    return mean(evidence, episodes, paths.per_episode(marginal.weight))


def smis(evidence: Evidence) -> Terms:
    """State-marginalised importance sampling: sum of u w r / sum of u w, times the steps that the target makes.

    u: visits of the target to the row's context over the log's; w = target / propensity.
    Source: Xie, Ma and Wang 2019, arXiv:1906.03393, eq. 9, with pooled steps and weights over their own sum.
    """
    return _visited(evidence, _marginal(evidence).by_state)


def samis(evidence: Evidence) -> Terms:
    """The same by (context, action): no propensity is asked, so behavior must be the same wherever the context is.

    Source: Yin and Wang 2020, arXiv:2001.10742, eq. 4, with pooled steps.
    """
    return _visited(evidence, _marginal(evidence).by_pair)


def _visited(evidence: Evidence, visits: Visits) -> Terms:
    """The weighted mean reward of a step, times the steps.

    The weights are estimates, and no small part of the error: the interval is by what episodes say of the value with
    that error included, which is the influence of the tables.
    """
    paths = evidence.paths
    total = float(visits.weight.sum())
    if not total > 0:
        raise SupportError(
            "the target never goes where the log was",
            hint="log with more exploration, or judge a policy closer to the one that logged",
        )
    value = visits.steps * float(visits.weight @ evidence.reward) / total
    episodes = paths.per_cluster(np.ones(paths.episodes))
    _, pull = ratio(paths.per_cluster(paths.per_episode(visits.worth)), episodes)
    return Terms.of(value, pull, paths.per_cluster(paths.per_episode(visits.weight)))


def _marginal(evidence: Evidence) -> Marginal:
    if evidence.marginal is None:
        raise SupportError(
            "the contexts are too many for tables of visits, or the actions have no names",
            hint="use stitched or wdr",
        )
    return evidence.marginal
