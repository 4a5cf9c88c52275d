"""Shrunk weights, and how much to shrink: SLOPE++, and a bound on the mean squared error.

A shrunk weight is smaller than w = target / propensity where w is large: less variance, for a bias that the log can
not tell. So what is tuned here never makes an interval: see `one_step.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

STRENGTHS = 10
"""Strengths tried of every shrinkage, besides none at all."""

DELTA = 0.1
"""SLOPE++ takes one-sided Student intervals at 1 - DELTA."""

BIAS_DELTA = 0.05
"""The bound on a bias holds with probability 1 - BIAS_DELTA."""


def clip(weight: Array, limit: float) -> Array:
    """[N] min(w, limit). An infinite limit is none.

    Source: Ionides 2008, truncated importance sampling; Swaminathan and Joachims 2015.
    """
    return np.minimum(weight, limit)


def switch(weight: Array, limit: float) -> Array:
    """[N] w where it is at most the limit, else 0: there the model answers alone.

    Source: Wang, Agarwal and Dudik 2017, arXiv:1612.01205, the SWITCH estimator.
    """
    return np.where(weight <= limit, weight, 0.0)


def optimistic(weight: Array, penalty: float) -> Array:
    """[N] penalty w / (w^2 + penalty): 0 for a penalty of 0 (the model alone), w for an infinite one.

    Source: Su, Dimakopoulou, Krishnamurthy and Dudik 2020, arXiv:1907.09623, optimistic shrinkage.
    """
    if penalty == 0.0:
        return np.zeros_like(weight)
    return weight if math.isinf(penalty) else penalty * weight / (weight**2 + penalty)


def sub_gaussian(weight: Array, mix: float) -> Array:
    """[N] w / (1 - mix + mix w): at most 1 / mix; w for a mix of 0, 1 for a mix of 1 where w > 0.

    Source: Metelli, Russo and Restelli 2021, Subgaussian and differentiable importance sampling, for s = -1.
    """
    if mix == 0.0:
        return weight
    return np.divide(weight, 1.0 - mix + mix * weight, out=np.zeros_like(weight), where=weight > 0)


@dataclass(frozen=True)
class Shrinkage:
    """A way to shrink weights.

    Attributes:
        shrink: (weights [N], strength) -> [N].
        strengths: weights [N] -> [S] strengths to try, none at all first, then ever stronger.
    """

    shrink: Callable[[Array, float], Array]
    strengths: Callable[[Array], Array]


def _limits(weight: Array) -> Array:
    top = max(float(weight.max()), 1.0)
    return np.concatenate([[np.inf], np.geomspace(top, 1.0, STRENGTHS + 1)[1:]])


def _penalties(weight: Array) -> Array:
    top = max(float(weight.max()), 1.0) ** 2
    return np.concatenate([[np.inf], np.geomspace(10.0 * top, 1.0, STRENGTHS)])


def _mixes(weight: Array) -> Array:
    top = max(float(weight.max()), 2.0)
    return np.concatenate([[0.0], np.geomspace(0.1 / top, 1.0, STRENGTHS)])


CLIP = Shrinkage(clip, _limits)
SWITCH = Shrinkage(switch, _limits)
OPTIMISTIC = Shrinkage(optimistic, _penalties)
SUB_GAUSSIAN = Shrinkage(sub_gaussian, _mixes)


def slope(values: Array, half_widths: Array) -> int:
    """SLOPE++: the place of the candidate with the shortest interval that still agrees with all that are less biased.

    Candidates by falling half width, which stands for rising bias; the last before the first that is further than
    half_i + (sqrt 6 - 1) half_j from a candidate j before it.

    Args:
        values, half_widths: [S] f64, estimates and how far their intervals reach.
    Returns:
        a place in [0, S).
    Source: Su, Srinath and Krishnamurthy 2020, arXiv:2002.07729; Tucker and Lee 2021, improved estimator selection.

    >>> slope(np.array([1.0, 0.9, 0.2]), np.array([0.3, 0.2, 0.1]))
    1
    """
    order = np.argsort(-half_widths, kind="stable")
    for i in range(1, len(order)):
        before, here = order[:i], order[i]
        reach = half_widths[here] + (math.sqrt(6.0) - 1.0) * half_widths[before]
        if (np.abs(values[before] - values[here]) > reach).any():
            return int(order[i - 1])
    return int(order[-1])


def bias_bound(weight: Array, shrunk: Array, surprise: Array, size: float) -> float:
    """What the bias of shrunk weights is below, with probability 1 - BIAS_DELTA, by Bernstein's inequality.

    |mean of (w - shrunk) surprise| + size (sqrt(2 mean(w^2) log(2/d) / n) + 2 max(w) log(2/d) / (3 n))

    Args:
        weight, shrunk: [N] f64.
        surprise: [N] f64, reward minus the model of it; the reward where there is no model.
        size: bound on a surprise, in units of reward; 1 for rewards and models in [0, 1].
    Source: Su, Dimakopoulou, Krishnamurthy and Dudik 2020, arXiv:1907.09623, model selection.
    """
    n, log = len(weight), math.log(2.0 / BIAS_DELTA)
    seen = abs(float((weight - shrunk) @ surprise)) / n
    square, largest = float(weight @ weight) / n, float(weight.max())
    return seen + size * (math.sqrt(2.0 * square * log / n) + 2.0 * largest * log / (3.0 * n))
