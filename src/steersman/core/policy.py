"""Policy = Encoder + Scorer + Explorer. Propensities are its only output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.density import Aims, Gaussian, NumbersExplorer, Point, Squashed, UniformBox
from steersman.core.errors import DataError
from steersman.core.features import Encoder
from steersman.core.ranking import Lists

Array = np.ndarray

PAIRS = 2**18
"""Pairs of row and candidate whose propensities are computed together: of draws of scores each pair has a hundred."""


class Scorer(Protocol):
    """What a net gives: a score for every candidate; for numbers where the action shall be."""

    def __call__(self, context: Array, candidates: Array) -> Array:
        """[N, F] f32, [N, K, A] f32 -> [N, K] f32. Scores of padding are never read.

        Where a score is known only as a distribution: [N, K, M] f32, M draws of it. One draw is made for all
        candidates of all rows together, so that what is shared between candidates is shared within a draw.
        For numbers there are no candidates: [N, F], [N, 0, 0] -> [N, S] f32, what the explorer reads: the centre
        [N, D] in units of the action, or what else it says (`core/density.py`).
        """
        ...


class Uniform(Struct, frozen=True, forbid_unknown_fields=True, tag="uniform", tag_field="kind"):
    """Every candidate with the same probability, whatever its score."""

    def probabilities(self, scores: Array, mask: Array) -> Array:
        """[N, K] f64: 1/K for each of the K candidates of a row, 0 for padding."""
        check_candidates(mask)
        return mask / mask.sum(axis=1, keepdims=True)


class EpsilonGreedy(Struct, frozen=True, forbid_unknown_fields=True, tag="epsilon", tag_field="kind"):
    """The best candidate mostly, any candidate with the share epsilon. Ties for best are split evenly.

    Attributes:
        epsilon: share of decisions that explore, in [0, 1]; the best gets 1 - epsilon + epsilon / K.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise DataError(f"epsilon is {self.epsilon:g}, must be in [0, 1]", field="epsilon")

    def probabilities(self, scores: Array, mask: Array) -> Array:
        """[N, K] f64."""
        valid = np.where(mask, mean_scores(scores, mask), -np.inf)
        best = valid == valid.max(axis=1, keepdims=True)
        explore = mask / mask.sum(axis=1, keepdims=True)
        exploit = best / best.sum(axis=1, keepdims=True)
        return (1.0 - self.epsilon) * exploit + self.epsilon * explore


class Softmax(Struct, frozen=True, forbid_unknown_fields=True, tag="softmax", tag_field="kind"):
    """Probabilities proportional to exp(score / temperature), with a floor.

    Attributes:
        temperature: in units of score, above 0.
        floor: share of decisions spread evenly, in [0, 1], so that every candidate stays logged.
    """

    temperature: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and np.isfinite(self.temperature)):
            raise DataError(f"temperature is {self.temperature:g}, must be above 0", field="temperature")
        if not 0 <= self.floor <= 1:
            raise DataError(f"floor is {self.floor:g}, must be in [0, 1]", field="floor")

    def probabilities(self, scores: Array, mask: Array) -> Array:
        """[N, K] f64."""
        valid = np.where(mask, mean_scores(scores, mask).astype(np.float64), -np.inf)
        with np.errstate(over="ignore"):  # far below the best: exp(-inf) is the 0 it should be
            power = np.exp((valid - valid.max(axis=1, keepdims=True)) / self.temperature)
        exploit = power / np.cumsum(power, axis=1)[:, -1:]  # in order: padding can not change the bits
        explore = mask / mask.sum(axis=1, keepdims=True)
        return (1.0 - self.floor) * exploit + self.floor * explore


class SquareCB(Struct, frozen=True, forbid_unknown_fields=True, tag="squarecb", tag_field="kind"):
    """Inverse gap weighting: a candidate is explored the less, the further its score is below the best.

    One of K candidates whose score is d below the best has the probability 1 / (K + gamma d); the best has what is
    left. Ties for best split it evenly.

    Attributes:
        gamma: per unit of score, at least 0: 0 is uniform, and the larger it is the greedier. A regret bound wants it
            to grow as the root of the decisions that were learned from.
    Source: Abe and Long 1999; Foster and Rakhlin 2020, arXiv:2002.04926, algorithm 1.
    """

    gamma: float

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < np.inf:
            raise DataError(f"gamma is {self.gamma:g}, must be at least 0", field="gamma")

    def probabilities(self, scores: Array, mask: Array) -> Array:
        """[N, K] f64."""
        valid = np.where(mask, mean_scores(scores, mask).astype(np.float64), -np.inf)
        gap = np.where(mask, valid.max(axis=1, keepdims=True) - valid, 0.0)
        best = mask & (gap == 0)
        size = mask.sum(axis=1, keepdims=True)
        others = np.where(mask & ~best, 1.0 / (size + self.gamma * gap), 0.0)
        left = 1.0 - np.cumsum(others, axis=1)[:, -1:]  # in order: padding can not change the bits
        # Never less than an even share, and rounding of the sum must not make it so.
        return np.where(best, np.maximum(left / best.sum(axis=1, keepdims=True), 1.0 / size), others)


class Thompson(Struct, frozen=True, forbid_unknown_fields=True, tag="thompson", tag_field="kind"):
    """Thompson sampling from M draws of the scores: the best candidate of one of them, each as likely as another.

    The probability of a candidate is the share of the draws in which it is the best of those there are; ties split a
    draw evenly. So the policy is a mixture of M greedy ones, and its propensities are exact for whatever candidates
    are offered. It is as near to sampling from the distribution itself as M draws are to that: a probability p is off
    by sqrt(p (1 - p) / M). Scores [N, K] without draws are one draw, and the policy is then greedy.

    Attributes:
        floor: share of decisions spread evenly, in [0, 1]: a candidate that is best in no draw has the probability 0
            without it, and what was never logged is never judged.
    Source: Thompson 1933; Chapelle and Li 2011, algorithm 1.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise DataError(f"floor is {self.floor:g}, must be in [0, 1]", field="floor")

    def probabilities(self, scores: Array, mask: Array) -> Array:
        """[N, K] f64."""
        check_scores(scores, mask)
        draws = scores if scores.ndim == 3 else scores[:, :, None]
        valid = np.where(mask[:, :, None], draws, -np.inf)
        best = valid == valid.max(axis=1, keepdims=True)  # [N, K, M]
        ties = best.sum(axis=1, keepdims=True)
        won = best.sum(axis=2) if (ties == 1).all() else (best / ties).sum(axis=2)
        explore = mask / mask.sum(axis=1, keepdims=True)
        return (1.0 - self.floor) * (won / draws.shape[2]) + self.floor * explore


CandidatesExplorer = Uniform | EpsilonGreedy | Softmax | SquareCB | Thompson
Explorer = CandidatesExplorer | UniformBox | Gaussian | Squashed | Point


@dataclass(frozen=True)
class Policy:
    """What is trained, judged, stored and served. It is not the learner."""

    encoder: Encoder
    scorer: Scorer
    explorer: Explorer

    def propensities(self, batch: Batch) -> Array:
        """[N, K] f64: probability of each candidate; every row sums to 1, padding is 0.

        Raises:
            DataError: the batch was made by another encoder, its actions are numbers, or a score is not finite.
        """
        explorer = over_candidates(self.explorer)
        found = np.empty(batch.mask.shape)
        size = max(PAIRS // max(batch.mask.shape[1], 1), 1)
        for start in range(0, len(batch), size):
            rows = slice(start, start + size)
            try:
                found[rows] = explorer.probabilities(self._scores(batch, rows), batch.mask[rows])
            except DataError as error:
                where = f"rows from {start} on: " if start else ""
                raise DataError(f"{where}{error.message}", hint=error.hint, field=error.field) from None
        return found

    def lists(self, batch: Batch) -> Lists:
        """The ranked lists that the policy may show, with their probabilities.

        Raises:
            DataError: as `propensities`, or the actions of the batch are no ranked lists.
        """
        if batch.slots is None:
            raise DataError("the actions of the batch are no ranked lists", field="actions")
        return Lists(over_candidates(self.explorer), self._scores(batch), batch.mask, batch.action.shape[1])

    def aims(self, batch: Batch) -> Aims:
        """What the policy would do on every row, where actions are numbers.

        Raises:
            DataError: as `propensities`, or the actions are no numbers.
        """
        if self.encoder.numbers is None:
            raise DataError("the encoder has no bounds: the policy does not decide over numbers", field="actions")
        return Aims(over_numbers(self.explorer), self._scores(batch), self.encoder.numbers)

    def target(self, batch: Batch) -> Array | Aims | Lists:
        """What it would do on every row: `aims` of numbers, `lists` of ranked lists, `propensities` of candidates."""
        if batch.ranked:
            return self.lists(batch)
        return self.aims(batch) if batch.numbers else self.propensities(batch)

    def _scores(self, batch: Batch, rows: slice = slice(None)) -> Array:
        if batch.encoder.digest != self.encoder.digest:
            raise DataError(
                "the batch was made by another encoder than the policy's",
                hint="build the batch with the encoder of the policy",
            )
        return self.scorer(batch.context[rows], batch.candidates[rows])


def over_candidates(explorer: Explorer) -> CandidatesExplorer:
    """The same; raises DataError if it is one for numbers."""
    if isinstance(explorer, NumbersExplorer):
        raise _other_kind(explorer, "numbers", "candidates")
    return explorer


def over_numbers(explorer: Explorer) -> NumbersExplorer:
    """The same; raises DataError if it is one for candidates."""
    if not isinstance(explorer, NumbersExplorer):
        raise _other_kind(explorer, "candidates", "numbers")
    return explorer


def _other_kind(explorer: Explorer, kind: str, asked: str) -> DataError:
    return DataError(
        f"a policy with {type(explorer).__name__} decides over {kind}, and the actions are {asked}",
        hint=f"use an explorer for {asked}",
        field="explorer",
    )


def constant_scorer(context: Array, candidates: Array) -> Array:
    """The score 0 for everything: the scorer of the uniform policy."""
    return np.zeros(candidates.shape[:2], dtype=np.float32)


def draw(probabilities: Array, uniform: float) -> int:
    """The candidate that a uniform random number picks: the first whose cumulative probability exceeds it.

    Args:
        probabilities: [K] f64, summing to 1.
        uniform: in [0, 1).

    >>> draw(np.array([0.5, 0.0, 0.5]), 0.5)
    2
    """
    place = int(np.searchsorted(np.cumsum(probabilities), uniform, side="right"))
    return min(place, int(np.flatnonzero(probabilities)[-1]))  # the sum may round to a hair below 1


def check_candidates(mask: Array) -> None:
    """Raise DataError if a row has no candidate."""
    empty = np.flatnonzero(~mask.any(axis=1))
    if empty.size:
        raise DataError(f"row {empty[0]}: no candidates", hint="send at least one", field="candidates")


def mean_scores(scores: Array, mask: Array) -> Array:
    """[N, K], checked: the scores, or what their draws [N, K, M] are on average, f64.

    Raises:
        DataError: as `check_scores`.
    """
    check_scores(scores, mask)
    if scores.ndim == 2:
        return scores
    with np.errstate(invalid="ignore"):  # in padding
        return scores.mean(axis=2, dtype=np.float64)


def check_scores(scores: Array, mask: Array) -> None:
    """Raise DataError if a row has no candidate or a candidate's score, or a draw of it, is not finite."""
    if scores.shape[:2] != mask.shape or scores.ndim not in (2, 3) or not scores.shape[-1]:
        raise DataError(f"scores are {list(scores.shape)} for candidates {list(mask.shape)}")
    check_candidates(mask)
    finite = np.isfinite(scores) if scores.ndim == 2 else np.isfinite(scores).all(axis=2)
    rows = np.flatnonzero((mask & ~finite).any(axis=1))
    if rows.size:
        raise DataError(f"row {rows[0]}: a score is not finite ({rows.size} such rows of {len(scores)})")
