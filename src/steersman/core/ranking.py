"""Lists: a distribution over ranked lists, made slot by slot of scores by an explorer."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from steersman.core.errors import SupportError

Array = np.ndarray

MAX_CELLS = 500_000_000
"""Probabilities that `marginals` computes at most: about half a minute."""

_BLOCK_CELLS = 4_000_000


class Chooser(Protocol):
    """What an explorer does: see `steersman.core.policy`."""

    def probabilities(self, scores: Array, mask: Array) -> Array:
        """[N, K] scores, [N, K] bool -> [N, K] f64."""
        ...


@dataclass(frozen=True, eq=False)
class Proportional:
    """The chooser of Plackett and Luce: what remains keeps its proportions. Its scores are probabilities.

    Source: Luce 1959; Plackett 1975, The analysis of permutations.
    """

    def probabilities(self, scores: Array, mask: Array) -> Array:
        """[N, K] f64; zeros where nothing that remains has a probability."""
        left = np.where(mask, scores, 0.0)
        total = left.sum(axis=1, keepdims=True)
        return np.divide(left, total, out=np.zeros_like(left), where=total > 0)


@dataclass(frozen=True, eq=False)
class Lists:
    """The lists that a policy may show at N decisions, with their probabilities.

    Each slot is filled from the first on: the explorer is asked again, with the candidates that no slot above took. Of
    a softmax without a floor these are the lists of Plackett and Luce; an epsilon-greedy list has the best that
    remains in each slot, mostly. A list ends where its slots or the candidates do.

    Attributes:
        chooser: the explorer.
        scores: [N, K].
        mask: [N, K] bool, True where there is a candidate.
        slots: L, at least 1.
    """

    chooser: Chooser
    scores: Array
    mask: Array
    slots: int

    def __len__(self) -> int:
        return len(self.mask)

    def take(self, rows: Array) -> Lists:
        """Those of some decisions."""
        return Lists(self.chooser, self.scores[rows], self.mask[rows], self.slots)

    def conditionals(self, lists: Array) -> Array:
        """[N, L, K] f64: probability of every candidate to stand in a slot, given the items of a list above it.

        Args:
            lists: [N, L] i64, places of different candidates, -1 behind the last item; there it is 0.
        """
        left, rows = self.mask.copy(), np.arange(len(self))
        found = np.zeros((len(self), self.slots, self.mask.shape[1]))
        for slot, item in enumerate(lists.T):
            there = item >= 0
            found[there, slot] = self._next(rows[there], left[there])
            left[rows[there], item[there]] = False
        return found

    def propensities(self, lists: Array) -> Array:
        """[N, L] f64: probability of each item of a list given those above it; 1 behind the last item.

        Their product is the probability of the list, if it is as long as it can be.
        """
        taken = np.take_along_axis(self.conditionals(lists), np.maximum(lists, 0)[:, :, None], axis=2)[:, :, 0]
        return np.where(lists >= 0, taken, 1.0)

    def draw(self, uniforms: Array) -> tuple[Array, Array]:
        """The list that belongs to each decision's random numbers, and the propensities of its items.

        Args:
            uniforms: [N, L] f64 in [0, 1): slot by slot the first candidate whose cumulative probability exceeds it.
        Returns:
            lists [N, L] i64, -1 behind the last item, and [N, L] f64, see `propensities`.
        """
        left, rows = self.mask.copy(), np.arange(len(self))
        lists, propensity = np.full(uniforms.shape, -1, dtype=np.int64), np.ones(uniforms.shape)
        for slot in range(self.slots):
            there = rows[left.any(axis=1)]
            chances = self._next(there, left[there])
            place = (np.cumsum(chances, axis=1) <= uniforms[there, slot, None]).sum(axis=1)
            last = chances.shape[1] - 1 - np.argmax(chances[:, ::-1] > 0, axis=1)
            place = np.minimum(place, last)  # the sum of a row may round to a hair below 1
            lists[there, slot] = place
            propensity[there, slot] = chances[np.arange(len(there)), place]
            left[there, place] = False
        return lists, propensity

    def marginals(self) -> Array:
        """[N, L, K] f64: probability of every candidate to stand in a slot, whatever stands above. Exact.

        A sum over the sets of items that may stand above, in whatever order: the candidates that remain are all that an
        explorer looks at. Equal rows are computed once.

        Raises:
            SupportError: there are too many such sets.
        """
        columns = np.concatenate([np.where(self.mask, self.scores, 0).astype(np.float64), self.mask], axis=1)
        _, first, place = np.unique(columns, axis=0, return_index=True, return_inverse=True)
        different = self.take(first)
        n, k = different.mask.shape
        sets = sum(math.comb(k, size) for size in range(self.slots))
        if n * sets * k > MAX_CELLS:
            raise SupportError(
                f"{k} candidates in {self.slots} slots: there are {sets:,} sets of items that may stand above, at "
                f"{n:,} decisions: too many to add up",
                hint="judge with an estimator that asks for the items of the logged list only, e.g. cascade-dr",
            )
        size = max(_BLOCK_CELLS // (k * math.comb(k, min(self.slots - 1, k // 2))), 1)
        blocks = [different.take(np.arange(start, min(start + size, n)))._marginals() for start in range(0, n, size)]
        return np.concatenate(blocks)[place.ravel()]

    def _marginals(self) -> Array:
        n, k = self.mask.shape
        found = np.zeros((n, self.slots, k))
        above: dict[tuple[int, ...], Array] = {(): np.ones(n)}  # set of items above -> its probability
        for slot in range(self.slots):
            following: dict[tuple[int, ...], Array] = {}
            for taken in itertools.combinations(range(k), slot):
                chance = above.get(taken)
                if chance is None:
                    continue
                left = self.mask.copy()
                left[:, taken] = False
                share = np.zeros((n, k))
                live = np.flatnonzero((chance > 0) & left.any(axis=1))
                share[live] = chance[live, None] * self._next(live, left[live])
                found[:, slot] += share
                for item in np.flatnonzero(share.any(axis=0)).tolist() if slot + 1 < self.slots else ():
                    more = tuple(sorted((*taken, item)))
                    following[more] = following.get(more, 0.0) + share[:, item]
            above = following
        return found

    def _next(self, rows: Array, left: Array) -> Array:
        """[n, K] probabilities of a slot at some decisions, of the candidates that are left."""
        if not len(rows):
            return np.zeros(left.shape)
        return self.chooser.probabilities(self.scores[rows], left)
