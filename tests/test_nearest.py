"""The nearest row against all rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.evaluate.nearest import LEAF, NONE, Nearest, alike


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 3 * LEAF), width=st.integers(1, 8))
def test_the_nearest_row_is_the_nearest_of_all(seed, rows, width):
    rng = np.random.default_rng(seed)
    points = np.round(rng.standard_normal((rows, width)), 1).astype(np.float32)
    member = rng.random((3, rows)) < np.array([1.0, 0.3, 0.0])[:, None]
    names = rng.permutation(rows) + 7
    found = Nearest(names, points, alike(points), member)
    query = rng.standard_normal((40, width)).astype(np.float32)
    sample = rng.integers(0, 3, 40)
    place = {name: i for i, name in enumerate(names)}
    for point, s, row in zip(query, sample, found.find(query, sample, sample, rng), strict=True):
        if not member[s].any():
            assert row == NONE
            continue
        squares = np.where(member[s], ((points - point) ** 2).sum(axis=1), np.inf)
        assert member[s, place[row]]
        assert squares[place[row]] == pytest.approx(squares.min(), abs=1e-4)


def test_equal_contexts_are_drawn_evenly_within_their_sample():
    points = np.zeros((10, 2), dtype=np.float32)
    points[5:] = 1.0
    points[0] = -0.0  # is zero
    member = np.array([[True] * 10, [True, False] * 5])
    found = Nearest(np.arange(10), points, alike(points), member)
    rng = np.random.default_rng(0)
    rows = found.find(np.zeros((30_000, 2), dtype=np.float32), np.repeat([0, 1], 15_000), np.arange(30_000), rng)
    for sample, want in ((rows[:15_000], [0, 1, 2, 3, 4]), (rows[15_000:], [0, 2, 4])):
        names, counts = np.unique(sample, return_counts=True)
        assert names.tolist() == want
        even = 15_000 / len(want)
        assert ((counts - even) ** 2 / even).sum() < 18.5  # chi-square, 4 degrees of freedom, 0.1%
