"""Kernel weights: what the log says of an action that is numbers, from the actions logged near it.

A target without chance has no density, so no logged action is exactly what it would do. A kernel counts the logged
actions near it, within a bandwidth h, each by how often it was logged:

    w = product over numbers of k_h(a - t) / propensity,    t what the target would do, a what was logged

Within h of a bound a plain kernel loses mass and leans inwards. Here it is the linear boundary kernel of what remains:
its mass is 1 and its first moment 0 for every t, so that the mean weight is 1 wherever propensities are right, and the
bias is of order h^2 everywhere. Weights may be negative near a bound.

Source: Kallus and Zhou 2018, arXiv:1802.06037, section 3; Jones 1993, Simple boundary correction for kernel density
estimation, equation 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.decision import Numbers
from steersman.core.density import shares, volume

Array = np.ndarray

HALVINGS = 14
"""Bandwidths go from the whole width of the bounds down by factors of the root of 2, so many times."""

NARROWER = 2
"""Steps down to half the bandwidth."""


@dataclass(frozen=True, eq=False)
class Kernels:
    """Weights at several bandwidths.

    Attributes:
        bandwidths: [G] f64 falling, in shares of the width of the bounds.
        weights: [G, N] f64, kernel over propensity.
    """

    bandwidths: Array
    weights: Array

    @property
    def choices(self) -> int:
        """How many of the bandwidths have one half as wide beside them."""
        return len(self.bandwidths) - NARROWER

    def corrected(self, place: int) -> Array:
        """[N] f64, (4 w of half the bandwidth - w) / 3: what is of order h^2 in their bias cancels.

        Source: Schucany and Sommers 1977, Improvement of kernel type density estimators.
        """
        return (4.0 * self.weights[place + NARROWER] - self.weights[place]) / 3.0


def bandwidths() -> Array:
    """[G] f64, falling from 1."""
    return 2.0 ** (-0.5 * np.arange(HALVINGS + 1))


def kernel_weights(action: Array, propensity: Array, draws: Array, box: Numbers, each: Array) -> Array:
    """[G, N] f64: weight of every logged action at every bandwidth. Of a target with chance the mean over its draws.

    Args:
        action: [N, D] as logged.
        propensity: [N] densities of these.
        draws: [N, M, D] of the target; one of them is enough for a target without chance.
        each: [G] bandwidths, in shares of the width.
    """
    logged, meant = shares(action, box)[:, None], shares(draws, box)  # [N, 1, D], [N, M, D]
    scale = volume(box) * propensity
    found = np.empty((len(each), len(logged)))
    for g, h in enumerate(each.tolist()):
        near = _boundary_kernel((logged - meant) / h, -meant / h, (1.0 - meant) / h) / h
        found[g] = near.prod(axis=2).mean(axis=1) / scale
    return found


def _boundary_kernel(z: Array, low: Array, high: Array) -> Array:
    """Epanechnikov's kernel on [max(low, -1), min(high, 1)], times the line that makes its mass 1 and its mean 0.

    Args:
        z, low, high: [...] in bandwidths; low <= 0 <= high.
    """
    found = 0.75 * np.maximum(1.0 - z * z, 0.0)
    cut = (found > 0.0) & ((low > -1.0) | (high < 1.0))  # elsewhere the line is 1
    z, low, high = z[cut], np.maximum(low[cut], -1.0), np.minimum(high[cut], 1.0)
    a0, a1, a2 = (above - below for above, below in zip(_moments(high), _moments(low), strict=True))
    found[cut] *= (a2 - a1 * z) / (a0 * a2 - a1 * a1)
    return found


def _moments(z: Array) -> tuple[Array, Array, Array]:
    """Integrals of z^j 0.75 (1 - z^2) up to z, for j = 0, 1, 2. By products: a power costs ten times as much."""
    square = z * z
    return (
        0.75 * z * (1.0 - square / 3.0),
        0.75 * square * (1.0 / 2.0 - square / 4.0),
        0.75 * z * square * (1.0 / 3.0 - square / 5.0),
    )
