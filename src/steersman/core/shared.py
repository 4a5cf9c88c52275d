"""Arrays of which all rows are one row in memory: what all decisions share is neither copied nor looked at twice."""

from __future__ import annotations

import numpy as np

Array = np.ndarray

ROWS = 65_536
"""Rows that are compared at once: bounds the memory of it."""


def is_shared(array: Array) -> bool:
    """Whether all rows are one row in memory.

    >>> is_shared(np.broadcast_to(np.eye(2), (5, 2, 2))), is_shared(np.ones((5, 2, 2)))
    (True, False)
    """
    return array.strides[0] == 0


def all_alike(array: Array) -> bool:
    """Whether all rows hold the same, be it as one row in memory or as copies."""
    parts = (array[start : start + ROWS] for start in range(0, len(array), ROWS))
    return is_shared(array) or all(bool((part == array[:1]).all()) for part in parts)


def once(array: Array) -> Array:
    """[1, ...] the row that all rows are; or else the array as it is."""
    return array[:1] if is_shared(array) else array
