"""Does the model agree with the log's own weights? The alarm for contexts that do not tell what matters of the past."""

from __future__ import annotations

import math

import numpy as np

from steersman.core.errors import SupportError
from steersman.evaluate.estimators import direct
from steersman.evaluate.evidence import Evidence
from steersman.evaluate.intervals import Influence, ratio
from steersman.evaluate.trajectories import silent, wdr
from steersman.evaluate.visits import drl

Array = np.ndarray

MATTERS = 0.25
"""This share of the other's own error is added. Where the model is right both have the same influence, what is left of
the difference is of second order, and its first-order error says nothing of it."""


def disagreement(evidence: Evidence) -> float | None:
    """|fqe - wdr| in standard errors of the difference, on the same units; above 2 the model is likely to be wrong.

    Where products of weights are silent, `drl` stands for `wdr`: its weights rest on the propensities. What a table
    gets wrong by chance is in the error. Of another model it is not, so the error is a little too small there.

    Returns:
        None: there is no model of sequences here, or nothing that it could be compared with.
    """
    if evidence.paths.one_step or not evidence.v.any():
        return None
    try:
        other = (drl if silent(evidence) else wdr)(evidence)
        value = direct(evidence).value
    except SupportError:
        return None
    if not isinstance(other.low, Influence):
        return None
    paths = evidence.paths
    worth = evidence.v * (paths.previous < 0) if evidence.marginal is None else evidence.marginal.by_pair.worth
    top, bottom = paths.per_cluster(paths.per_episode(worth)), paths.per_cluster(np.ones(paths.episodes))
    paired = Influence(value, ratio(top, bottom)[1] - other.low.pull).error
    error = math.hypot(paired, MATTERS * other.low.error)
    return abs(value - other.value) / error if error > 0 else None
