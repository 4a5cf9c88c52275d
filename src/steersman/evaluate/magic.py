"""MAGIC: the mixture of the model's word and the log's that errs least by the log's own estimate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from steersman.core.errors import SupportError
from steersman.evaluate.evidence import Evidence
from steersman.evaluate.intervals import Terms, estimate
from steersman.evaluate.trajectories import backed_up, normalised, speaking

Array = np.ndarray

STEPS = 25
"""At most so many j-step returns are mixed, beside the first and the last: neighbours hardly differ."""

SURE = 0.9
"""Level of the interval that a j-step return must leave before it counts as biased."""


@speaking
def magic(evidence: Evidence) -> Terms:
    """Model and guided importance sampling combined: x' g over the j-step returns g of `backed_up`.

    x on the simplex minimises x' (S + b b') x: S the covariance of the returns over units, b_j how far g_j lies outside
    the 90% interval of `wdr`, the only one of them without the model's bias.

    The mixture is chosen by the same log, and a model inside the interval keeps its bias: its own interval would be too
    narrow. So the interval is that of `wdr`, widened to contain the value, and no gate may rest on it.
    Source: Thomas and Brunskill 2016, arXiv:1604.00923, section 7; the bias is an outer product.
    """
    last = normalised(evidence)
    values, pulls = returns(evidence)
    return replace(last, value=float(mixture(values, pulls, last) @ values))


def returns(evidence: Evidence) -> tuple[Array, Array]:
    """g [J] and [J, C] the influence of each unit: the model's word, some of the steps between, and `wdr`."""
    chosen = np.unique(np.linspace(0, len(evidence.paths.steps), STEPS + 2).astype(np.int64))
    found = [(value, pull) for j, (value, pull, _) in enumerate(backed_up(evidence)) if j in set(chosen.tolist())]
    return np.array([value for value, _ in found]), np.stack([pull for _, pull in found])


def mixture(values: Array, pulls: Array, last: Terms) -> Array:
    """[J] weights of the j-step returns, at least 0, of sum 1."""
    units = pulls.shape[1]
    covariance = pulls @ pulls.T / (units * (units - 1.0))
    sure = estimate(last, estimator="wdr", metric="reward", level=SURE)
    bias = values - np.clip(values, sure.low, sure.high)
    return least_square(covariance + np.outer(bias, bias))


def least_square(matrix: Array) -> Array:
    """The x >= 0 of sum 1 with the least x' A x, for A symmetric and positive semidefinite [J, J].

    It is the point nearest to the origin in the hull of the columns of a root of A, found exactly by Wolfe's active
    sets. It is the optimum because no corner lies nearer along it: min_j (A x)_j >= x' A x, up to rounding.

    Raises:
        SupportError: A is not finite.
    Source: Wolfe 1976, Finding the nearest point in a polytope, Math. Programming 11.

    >>> least_square(np.diag([1.0, 3.0])).tolist()
    [0.75, 0.25]
    """
    if not np.isfinite(matrix).all():
        raise SupportError(
            "the errors of the j-step returns leave the range of numbers",
            hint="the policies differ too much for estimators that weigh whole episodes",
        )
    size = len(matrix)
    scale = float(np.trace(matrix)) / size
    if scale <= 0.0:
        return np.eye(size)[-1]  # no return has any error: the last one has no model's bias either
    matrix = matrix / scale
    active = [int(np.argmin(np.diag(matrix)))]
    x = np.zeros(size)
    x[active] = 1.0
    for _ in range(100 * size):
        slope = matrix @ x
        entering = int(np.argmin(slope))
        if entering in active or slope[entering] >= float(x @ slope) - 1e-12:
            break
        active.append(entering)
        x = _affine(matrix, x, active)
    return x


def _affine(matrix: Array, x: Array, active: list[int]) -> Array:
    """Wolfe's minor cycle: the least square on the span of the active corners, dropping those that it would leave."""
    while True:
        best = _on_span(matrix[np.ix_(active, active)])
        if best.min() > 1e-12:
            break
        here = x[active]
        falling = best <= 1e-12
        reach = float(np.min(here[falling] / np.maximum(here[falling] - best[falling], 1e-300)))
        here = here + min(reach, 1.0) * (best - here)
        keep = here > 1e-12
        keep &= ~(falling & (here == here[falling].min()))
        x = np.zeros_like(x)
        active[:] = [j for j, kept in zip(active, keep, strict=True) if kept]
        x[active] = here[keep] / here[keep].sum()
    x = np.zeros_like(x)
    x[active] = best
    return x


def _on_span(matrix: Array) -> Array:
    """The y of sum 1, of any sign, with the least y' A y. A ridge of rounding makes it one of many where A is flat."""
    size = len(matrix)
    solved = np.linalg.solve(matrix + 1e-13 * np.eye(size), np.ones(size))
    return solved / solved.sum()
