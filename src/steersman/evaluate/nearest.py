"""The nearest logged row, exactly: a k-d tree whose leaves are matrix products. For stitched episodes."""

from __future__ import annotations

import numpy as np

Array = np.ndarray

NONE = -1
"""Instead of a row: there is none."""

LEAF = 1024
"""Most places in a leaf. Smaller leaves look at fewer places, in more calls of numpy."""

TIGHT = 6
"""Directions in which leaves have sides. A bound of the distance in some directions is a bound."""

UNREACHABLE = np.float32(1e12)
"""Added to the squared distance of a place that is not in the query's sample."""


class Nearest:
    """The row nearest to a point, in one of several samples of the rows.

    Equal contexts are one place, and each of its rows in the sample is as likely as the others, and drawn evenly by the
    points of a crowd that meet there: with few contexts, rows are drawn from the empirical law of what follows. A leaf
    whose box is farther off than the best so far is not looked into. Squared distance less that of the query is one
    matrix product a leaf, and the samples are columns of it.
    """

    def __init__(self, rows: Array, points: Array, same: Array, member: Array) -> None:
        """Build the tree.

        Args:
            rows: [R] i64, at least one; what `find` gives. Equal contexts are drawn evenly along this order.
            points: [R, D] f32, the widest directions first.
            same: [R] i64, equal where the points are meant to be equal.
            member: [S, R] bool, whether a row is in a sample.
        """
        order = np.argsort(same, kind="stable")
        first = np.flatnonzero(np.diff(same[order], prepend=same[order[0]] - 1))
        inside = member[:, order]
        before = np.zeros((len(member), len(rows) + 1), dtype=np.int64)
        inside.cumsum(axis=1, out=before[:, 1:])
        ends = np.append(first[1:], len(rows))
        base = np.concatenate([[0], before[:-1, -1].cumsum()])[:, None]
        self._rows = np.concatenate([rows[order[mine]] for mine in inside])  # sample by sample, place by place
        self._start = base + before[:, first]  # [S, G] where the rows of a place begin
        self._count = before[:, ends] - before[:, first]  # [S, G] and how many they are
        self._has = self._count.sum(axis=1) > 0  # [S]
        places = points[order[first]]  # [G, D]
        self._leaves = _leaves(places)
        sides = [places[leaf, :TIGHT] for leaf in self._leaves]
        self._low = np.stack([side.min(axis=0) for side in sides], axis=1)  # [TIGHT, L]
        self._high = np.stack([side.max(axis=0) for side in sides], axis=1)
        square = np.einsum("gd,gd->g", places, places)[:, None]
        absent = np.where(self._count.T > 0, np.float32(0.0), UNREACHABLE)
        factors = np.concatenate([-2.0 * places, square, absent], axis=1, dtype=np.float32)  # [G, D + 1 + S]
        self._factors = [np.ascontiguousarray(factors[leaf].T) for leaf in self._leaves]

    def find(self, points: Array, sample: Array, crowd: Array, rng: np.random.Generator) -> Array:
        """[M] i64, the nearest row of the sample [M] to each point [M, D] f32; NONE if the sample has no row.

        Those of a crowd [M], numbers from 0, are in the same sample, and draw evenly where they meet.
        """
        m, d = points.shape
        every = np.arange(m)
        query = np.zeros((m, d + 1 + len(self._has)), dtype=np.float32)
        query[:, :d] = points
        query[:, d] = 1.0
        query[every, d + 1 + sample] = 1.0
        bound = self._bounds(points) - np.einsum("md,md->m", points, points)[:, None]  # of the product
        best, place = np.full(m, np.inf, dtype=np.float32), np.zeros(m, dtype=np.int64)
        home = bound.argmin(axis=1)
        self._look(query, home, every, best, place)
        bound[every, home] = np.inf
        which, leaf = np.nonzero(bound < best[:, None])
        self._look(query, leaf, which, best, place)
        row = np.full(m, NONE)
        found = np.flatnonzero(self._has[sample])
        sample, place = sample[found], place[found]
        chance = (_even(crowd[found] * self._count.shape[1] + place, rng) * self._count[sample, place]).astype(np.int64)
        row[found] = self._rows[self._start[sample, place] + chance]
        return row

    def _bounds(self, points: Array) -> Array:
        """[M, L] squared distance from each point to the box of each leaf."""
        bound = np.zeros((len(points), len(self._leaves)), dtype=np.float32)
        below, above = np.empty_like(bound), np.empty_like(bound)
        for low, high, at in zip(self._low, self._high, points.T[:TIGHT, :, None], strict=True):
            np.subtract(low, at, out=below)
            np.subtract(at, high, out=above)
            np.maximum(below, above, out=below)
            np.maximum(below, 0.0, out=below)
            below *= below
            bound += below
        return bound

    def _look(self, query: Array, leaf: Array, which: Array, best: Array, place: Array) -> None:
        """Look for the queries `which` in the leaves `leaf`, and keep what is better than the best so far."""
        order = np.argsort(leaf, kind="stable")
        which = which[order]
        at = np.searchsorted(leaf[order], np.arange(len(self._leaves) + 1))
        for number in np.flatnonzero(np.diff(at)):
            mine = which[at[number] : at[number + 1]]
            distance = query[mine] @ self._factors[number]
            nearest = distance.argmin(axis=1)
            found = distance[np.arange(len(mine)), nearest]
            better = found < best[mine]
            best[mine[better]] = found[better]
            place[mine[better]] = self._leaves[number][nearest[better]]


def alike(context: Array) -> Array:
    """[R] i64, the same number for equal rows of [R, F] f32."""
    plain = np.ascontiguousarray(context + np.float32(0.0))  # + 0: there are two zeros
    if plain.shape[1] == 0:
        return np.zeros(len(plain), dtype=np.int64)
    return np.unique(plain.view(np.dtype((np.void, plain.itemsize * plain.shape[1])))[:, 0], return_inverse=True)[1]


def _even(group: Array, rng: np.random.Generator) -> Array:
    """[M] in [0, 1), uniform each, and evenly apart from the others of their group [M]."""
    _, which, count = np.unique(group, return_inverse=True, return_counts=True)
    order = np.argsort(which, kind="stable")
    rank = np.empty(len(group))
    rank[order] = np.arange(len(group)) - (count.cumsum() - count)[which[order]]
    return (rank / count[which] + rng.random(len(count))[which]) % 1.0


def _leaves(places: Array) -> list[Array]:
    """Numbers of the places [G, D] in groups of at most LEAF, split at the median of their widest direction."""
    leaves, split = [], [np.arange(len(places))]
    while split:
        group = split.pop()
        if len(group) <= LEAF:
            leaves.append(group)
            continue
        mine = places[group]
        half = len(group) // 2
        order = np.argpartition(mine[:, np.ptp(mine, axis=0).argmax()], half)
        split += [group[order[:half]], group[order[half:]]]
    return leaves
