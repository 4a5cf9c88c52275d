"""Kernel estimators of single decisions whose action is numbers: for targets without chance, and for any.

Value: the bandwidth that SLOPE++ takes, at most half of the bounds' width, with weights whose bias of order h^2 is
cancelled (`Kernels.corrected`).

Interval: that of the same estimator three steps narrower (a factor of 2.8), widened to contain the value. There the
bias is small against the error, which the bandwidth of the value does not promise: with it 95% covers 58 to 97% of logs
of `worlds/dosing.py`, three steps narrower 92 to 98%. It assumes that the mean reward is smooth on the scale of the
narrower bandwidth; a log can not tell of a peak between its actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from steersman.core.errors import SupportError
from steersman.evaluate.evidence import Evidence
from steersman.evaluate.intervals import Terms
from steersman.evaluate.kernels import Kernels
from steersman.evaluate.one_step import bare, ips, plain_dr, snips
from steersman.evaluate.quantiles import student_t
from steersman.evaluate.tuning import DELTA, slope

Array = np.ndarray

LEAST_NEAR = 30.0
"""Bandwidths are tried down to this effective number of units near the target."""

WIDEST = 2
"""Place of the widest bandwidth of a value: half of the bounds' width."""

NARROWER = 3
"""Steps from the bandwidth of the value down to that of its interval."""


def kernel_ips(evidence: Evidence) -> Terms:
    """Mean of w r with kernel weights.

    Source: Kallus and Zhou 2018, arXiv:1802.06037, equation 2.
    """
    return _smoothed(bare(evidence), ips)


def kernel_snips(evidence: Evidence) -> Terms:
    """Sum of w r / sum of w with kernel weights.

    Source: Kallus and Zhou 2018, arXiv:1802.06037, section 3.2.
    """
    return _smoothed(evidence, snips)


def kernel_dr(evidence: Evidence) -> Terms:
    """Mean of v + w (r - q) with kernel weights: the model where the target goes, corrected by the rows nearby.

    Source: Kallus and Zhou 2018, arXiv:1802.06037, section 4.1; Kennedy, Ma, McHugh and Small 2017, arXiv:1507.00747.
    """
    return _smoothed(evidence, plain_dr)


SMOOTHED: dict[str, Callable[[Evidence], Terms]] = {
    "kernel-ips": ips,
    "kernel-snips": snips,
    "kernel-dr": plain_dr,
}
"""Name -> what it is with the weights of one bandwidth."""


def support_weight(evidence: Evidence, name: str) -> Array:
    """[N] f64, the weights that the interval of a kernel estimator rests on."""
    evidence = bare(evidence) if name == "kernel-ips" else evidence
    kernels = _kernels(evidence)
    return kernels.corrected(_places(evidence, kernels, SMOOTHED[name])[1])


def _smoothed(evidence: Evidence, estimator: Callable[[Evidence], Terms]) -> Terms:
    kernels = _kernels(evidence)
    wide, narrow = _places(evidence, kernels, estimator)
    value = estimator(replace(evidence, weight=kernels.corrected(wide))).value
    return replace(estimator(replace(evidence, weight=kernels.corrected(narrow))), value=value)


def _places(evidence: Evidence, kernels: Kernels, estimator: Callable[[Evidence], Terms]) -> tuple[int, int]:
    """Which bandwidths the value and its interval have: none whose interval would rest on too few units."""
    tried: list[Terms] = []
    for place in range(kernels.choices - NARROWER):
        terms = _asked(evidence, kernels.weights[place], estimator)
        narrow = _asked(evidence, kernels.corrected(place + NARROWER), estimator)
        if terms is None or (narrow is None and place >= WIDEST):
            break
        tried.append(terms)
    if len(tried) <= WIDEST:
        raise SupportError(
            f"fewer than {LEAST_NEAR:g} of {evidence.paths.clusters:,} units acted near what the target would do",
            hint="log more decisions, or with more exploration",
        )
    far = student_t(1.0 - DELTA, evidence.paths.clusters - 1)
    place = slope(np.array([t.value for t in tried]), np.array([far * t.low.error for t in tried]))
    wide = max(place, WIDEST)
    return wide, wide + NARROWER


def _asked(evidence: Evidence, weight: Array, estimator: Callable[[Evidence], Terms]) -> Terms | None:
    """Terms with these weights; None: they rest on too few units."""
    if not weight.any():
        return None
    try:
        terms = estimator(replace(evidence, weight=weight))
    except SupportError:  # of one unit alone
        return None
    return terms if terms.ess >= LEAST_NEAR else None


def _kernels(evidence: Evidence) -> Kernels:
    if evidence.kernels is None:
        raise SupportError("the actions are no numbers: there is nothing near an action", hint="use ips, snips or dr")
    return evidence.kernels
