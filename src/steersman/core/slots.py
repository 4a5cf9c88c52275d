"""Slots: what a Batch of ranked lists knows of each item of a list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.decision import ROUNDING
from steersman.core.errors import DataError

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Slots:
    """N ranked lists of up to L items, slot by slot from the first. Behind the last item of a shorter list stand a
    propensity of 1, a reward of 0 and metrics of 0.

    Attributes:
        propensity: [N, L] f64, of the item given the items above it under the behavior policy, in (0, 1]; the product
            of a row is the propensity of its list.
        reward: [N, L] f64, of the item, times what its slot counts; what is known of the list as a whole stands at its
            last item, for that one has all others above it.
        metrics: [N, L, M] f64, the same for each metric of the Batch, without weights; NaN where it did not arrive.
        first: [N, K] f64, probability of each candidate to stand in the first slot under the behavior policy, sums to
            1, padding 0; None: some row was logged without.
    """

    propensity: Array
    reward: Array
    metrics: Array
    first: Array | None = None

    @property
    def arrays(self) -> dict[str, Array]:
        """All arrays by name."""
        found = {"propensity": self.propensity, "reward": self.reward, "metrics": self.metrics}
        return found if self.first is None else {**found, "first": self.first}

    def take(self, rows: Array | slice) -> Slots:
        """Those of some rows."""
        return Slots(**{name: array[rows] for name, array in self.arrays.items()})

    def check(self, action: Array, mask: Array, propensity: Array, reward: Array, metrics: int) -> None:
        """Raise DataError unless these are slots of the lists of a batch.

        Args:
            action: [N, L] i64.
            mask: [N, K] bool.
            propensity, reward: [N] f64, of whole lists.
            metrics: M.
        """
        n, slots = action.shape
        self._check_shapes(n, slots, mask.shape[1], metrics)
        there = action >= 0
        _refuse((action < -1) | (action >= mask.shape[1]), "the place {} is not among the candidates", action)
        _refuse(~there[:, :1], "the list is empty")
        _refuse(there[:, 1:] & ~there[:, :-1], "an item stands behind the end of its list")
        row = np.arange(n)[:, None]
        _refuse(there & ~mask[row, action], "item {} is padding, not a candidate", action)
        ordered = np.sort(action, axis=1)
        _refuse((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0), "an item stands twice in its list")
        _refuse(~((self.propensity > 0) & (self.propensity <= 1)), "the propensity of an item is {:g}, must be in "
                "(0, 1]", self.propensity)  # fmt: skip
        behind = ~there & ((self.propensity != 1) | (self.reward != 0) | (self.metrics != 0).any(axis=2))
        _refuse(behind, "something is known of a slot behind the end of the list")
        joint = np.prod(self.propensity, axis=1)
        _refuse(np.abs(joint - propensity) > slots * ROUNDING * propensity, "the propensities of the items multiply "
                "to {:g}, which is not the propensity of the list", joint)  # fmt: skip
        _refuse(~np.isfinite(self.reward), "the reward of an item is {:g}", self.reward)
        size = np.abs(self.reward).sum(axis=1) + np.abs(reward)
        _refuse(np.abs(self.reward.sum(axis=1) - reward) > ROUNDING * size, "the reward is {:g}, which is not the sum "
                "over its slots", reward)  # fmt: skip
        _refuse(np.isinf(self.metrics).any(axis=2), "a metric of an item is infinite")
        if self.first is not None:
            self._check_first(self.first, action, mask)

    def _check_shapes(self, n: int, slots: int, candidates: int, metrics: int) -> None:
        want = {
            "propensity": (n, slots),
            "reward": (n, slots),
            "metrics": (n, slots, metrics),
            "first": (n, candidates),
        }
        for name, array in self.arrays.items():
            if array.dtype != np.float64 or array.shape != want[name]:
                raise DataError(f"slots.{name} is {array.dtype}{list(array.shape)}, must be float64{list(want[name])}")

    def _check_first(self, first: Array, action: Array, mask: Array) -> None:
        rows, close = np.arange(len(first)), first.shape[1] * ROUNDING
        _refuse(~((first >= 0) & (first <= 1)), "a probability of the first slot is {:g}", first)
        _refuse((first > 0) & ~mask, "padding has a probability of the first slot")
        total, taken = first.sum(axis=1), first[rows, action[:, 0]]
        _refuse(np.abs(total - 1.0) > close, "the probabilities of the first slot sum to {:g}", total)
        wrong = np.abs(taken - self.propensity[:, 0]) > close * self.propensity[:, 0]
        _refuse(wrong, "the first item has the probability {:g} among the candidates and another in its list", taken)


def _refuse(bad: Array, message: str, values: Array | None = None) -> None:
    rows = np.flatnonzero(bad.any(axis=1) if bad.ndim == 2 else bad)
    if rows.size:
        value = "" if values is None else values[bad][0]
        text = message.format(value) if "{" in message else message
        raise DataError(f"row {rows[0]}: {text} ({rows.size} such rows of {len(bad)})")
