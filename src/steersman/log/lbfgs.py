"""Minimise a smooth convex function of many variables: L-BFGS with a backtracking line search."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

Array = np.ndarray

SHRINK = 0.5
SUFFICIENT = 1e-4
"""Share of the decrease that the slope promises which a step must bring (Armijo)."""


def minimise(
    function: Callable[[Array], tuple[float, Array]],
    start: Array,
    *,
    iterations: int = 300,
    tolerance: float = 1e-6,
    memory: int = 10,
) -> Array:
    """Where a smooth convex function is smallest.

    Args:
        function: x [P] -> value, gradient [P].
        start: [P].
        iterations: at most so many; a function of few thousand variables needs some dozens.
        tolerance: it is done when no entry of the gradient is above.
        memory: steps from which the curvature is taken.
    Returns:
        [P]: the best point found.
    Source: Nocedal and Wright 2006, Numerical Optimization, algorithms 7.4 and 3.1.

    >>> minimise(lambda x: (float(((x - 3) ** 2).sum()), 2 * (x - 3)), np.zeros(2)).round(6).tolist()
    [3.0, 3.0]
    """
    point = start.astype(np.float64)
    value, gradient = function(point)
    history: deque[tuple[Array, Array]] = deque(maxlen=memory)
    for _ in range(iterations):
        if np.abs(gradient).max(initial=0.0) <= tolerance:
            break
        direction = -_inverse_hessian_times(gradient, history)
        slope = float(gradient @ direction)
        if slope >= 0:  # rounding: only the plain gradient is sure to lead down
            history.clear()
            direction, slope = -gradient, -float(gradient @ gradient)
        length = 1.0 if history else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        moved = point + length * direction
        new_value, new_gradient = function(moved)
        while new_value > value + SUFFICIENT * length * slope and length > 1e-12:
            length *= SHRINK
            moved = point + length * direction
            new_value, new_gradient = function(moved)
        if new_value >= value:
            break
        step, change = moved - point, new_gradient - gradient
        if float(step @ change) > 1e-12 * float(change @ change):
            history.append((step, change))
        point, value, gradient = moved, new_value, new_gradient
    return point


def _inverse_hessian_times(gradient: Array, history: deque[tuple[Array, Array]]) -> Array:
    """[P], by the two-loop recursion over the last steps and changes of the gradient."""
    direction = gradient.copy()
    shares = []
    for step, change in reversed(history):
        share = float(step @ direction) / float(step @ change)
        direction -= share * change
        shares.append(share)
    if history:
        step, change = history[-1]
        direction *= float(step @ change) / float(change @ change)
    for (step, change), share in zip(history, reversed(shares), strict=True):
        direction += (share - float(change @ direction) / float(step @ change)) * step
    return direction
