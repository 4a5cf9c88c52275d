"""Contextual bandits: what a candidate is worth at once, by regressions in closed form. A loss is what they regress.

phi is [1, context] x [1, candidate], all products; with named actions and nothing else each action has coefficients of
its own over [1, context]. Every regression is a ridge, so one pass over the rows that sums phi phi' and phi t is all
the training there is: rows may be more than memory holds.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.errors import DataError, TrainingError
from steersman.core.policy import EpsilonGreedy, Policy
from steersman.learn import HERE, Look, Progress, Run, nets

Array = np.ndarray

ROWS = 16_384
"""Rows looked at together."""

WIDEST = 4096
"""Most products of columns: their matrix of moments has the square of it."""

LossName = Literal["mtr", "direct", "ips", "dr"]


class Linear(Struct, frozen=True, forbid_unknown_fields=True):
    """A linear model of the reward; the candidate with the largest is taken.

    Attributes:
        loss: `mtr`: importance-weighted regression on the taken candidates; `direct`: the same without weights, best
            where the model is right; `ips`, `dr`: regression, over all candidates, of what the log says of each:
            inverse propensity scores, or these around a direct model.
        ridge: penalty on the squared coefficients, in rows, above 0.
    Raises:
        DataError: the ridge is not above 0.
    """

    loss: LossName = "mtr"
    ridge: float = 1.0

    def __post_init__(self) -> None:
        _check_ridge(self.ridge)


class LinUCB(Struct, frozen=True, forbid_unknown_fields=True):
    """A linear model of the reward, with a bonus for what is not known yet.

    Attributes:
        alpha: standard errors of a candidate's mean reward that are added to it, at least 0.
        loss: see `Linear`; the errors are those of a regression on the taken candidates.
        ridge: see `Linear`.
    Raises:
        DataError: a number is out of range.
    """

    alpha: float = 1.0
    loss: Literal["mtr", "direct"] = "direct"
    ridge: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise DataError(f"alpha is {self.alpha:g}, must be at least 0", field="alpha")
        _check_ridge(self.ridge)


Pairs = tuple[Array, Array, Array, Array]
"""[M] row, [M] place of the candidate, [M] weight, [M] target: what a regression is made of."""

Loss = Callable[[Batch, slice, Array], Pairs]
"""(batch, rows of it, rewards of these rows less their mean) -> Pairs, rows counted from the start of the slice."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over pairs of a regression; blocks where named actions have coefficients of their own, else one.

    Attributes:
        gram: [B, P, P] f64, sum of weight phi phi'.
        target: [B, P] f64, sum of weight phi t.
        square, weight: sums of weight t^2, and of the weights.
    """

    gram: Array
    target: Array
    square: float
    weight: float

    def solve(self, ridge: float) -> Array:
        """[B, P], the coefficients."""
        coefficients: Array = np.linalg.solve(self._penalised(ridge), self.target[:, :, None])[:, :, 0]
        if not np.isfinite(coefficients).all():
            raise TrainingError("the coefficients are not finite", hint="give the ridge a larger value")
        return coefficients

    def roots(self, ridge: float) -> Array:
        """[B, P, P], R with R R' = (gram + ridge)^-1."""
        lower = np.linalg.cholesky(self._penalised(ridge))
        return np.linalg.inv(lower).transpose(0, 2, 1).copy()

    def variance(self, coefficients: Array) -> float:
        """Mean weighted square of what the coefficients leave of the targets."""
        fitted = np.einsum("bp,bpq,bq->", coefficients, self.gram, coefficients)
        left = self.square - 2.0 * float((coefficients * self.target).sum()) + float(fitted)
        return max(left, 0.0) / self.weight

    def _penalised(self, ridge: float) -> Array:
        return self.gram + ridge * np.eye(self.gram.shape[1])


def fit(
    batch: Batch,
    config: Linear | LinUCB,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn a linear bandit; the closed form has no random numbers, so the seed changes nothing.

    Each row counts as a decision of its own: what comes after it in its episode is not looked at.

    Sources: Bietti, Agarwal and Langford 2021, arXiv:1802.04064, section 3.2, for the losses; Li, Chu, Langford and
    Schapire 2010, arXiv:1003.0146, algorithms 1 and 2, for the bonus.
    Raises:
        DataError: actions are no single candidates, candidates have no columns, or the columns are too many.
        ConfigError: the run asks for what a closed form has no use for.
    """
    batch = run.plain(batch, "linear bandits")
    if batch.numbers or batch.ranked:
        kind = "numbers" if batch.numbers else "ranked lists"
        raise DataError(f"bandits learn over single candidates; the actions of this batch are {kind}")
    mean = float(batch.reward.mean())
    begun = time.perf_counter()
    for done, sums in _sums(batch, _loss(batch, config, mean), mean):
        if progress is not None or look is not None:
            tell = nets.looking(progress, look, functools.partial(_policy, batch, config, sums, mean))
            left = sums.variance(sums.solve(config.ridge))
            if tell is not None:
                tell(done, len(batch), {"loss": left, "steps/s": done / (time.perf_counter() - begun)})
    return _policy(batch, config, sums, mean)


def _policy(batch: Batch, config: Linear | LinUCB, sums: Moments, mean: float) -> Policy:
    """What the sums of some rows say."""
    coefficients = sums.solve(config.ridge)
    weight = _table(batch, coefficients, mean)
    widths = (batch.encoder.context_width, batch.encoder.candidate_width, ())
    if isinstance(config, Linear):
        scorer = nets.TorchScorer(nets.Shape("bilinear", *widths), {"weight": weight}, 1.0)
        return Policy(batch.encoder, scorer, EpsilonGreedy(0.0))
    root = config.alpha * math.sqrt(sums.variance(coefficients)) * sums.roots(config.ridge)
    shape = nets.Shape("own-optimist", *widths) if _own(batch) else nets.Shape("optimist", *widths)
    weights = {"mean.weight": weight, "root": root if _own(batch) else root[0]}
    return Policy(batch.encoder, nets.TorchScorer(shape, weights, 1.0), EpsilonGreedy(0.0))


# losses


def direct(batch: Batch, rows: slice, reward: Array) -> Pairs:
    """The reward of the candidate that was taken."""
    return np.arange(len(reward)), batch.action[rows], np.ones(len(reward)), reward


def mtr(batch: Batch, rows: slice, reward: Array) -> Pairs:
    """The same, weighted by 1 / propensity: as if every candidate had been taken as often as the others."""
    return np.arange(len(reward)), batch.action[rows], 1.0 / batch.propensity[rows], reward


def ips(batch: Batch, rows: slice, reward: Array) -> Pairs:
    """For every candidate: the reward over the propensity if it was taken, else 0."""
    row, place = np.nonzero(batch.mask[rows])
    taken = place == batch.action[rows][row]
    return row, place, np.ones(len(row)), np.where(taken, (reward / batch.propensity[rows])[row], 0.0)


def doubly_robust(model: nets.TorchScorer, mean: float) -> Loss:
    """For every candidate: what a direct model says, and for the taken one its surprise over the propensity.

    Args:
        model: of the reward.
        mean: the mean reward, which rewards come without and the model with.
    """

    def dr(batch: Batch, rows: slice, reward: Array) -> Pairs:
        row, place = np.nonzero(batch.mask[rows])
        scores = model(batch.context[rows], batch.candidates[rows]).astype(np.float64) - mean  # [n, K]
        here = np.arange(len(reward))
        surprise = (reward - scores[here, batch.action[rows]]) / batch.propensity[rows]
        taken = place == batch.action[rows][row]
        return row, place, np.ones(len(row)), scores[row, place] + np.where(taken, surprise[row], 0.0)

    return dr


def _loss(batch: Batch, config: Linear | LinUCB, mean: float) -> Loss:
    if config.loss == "dr":
        model = fit(batch, Linear("direct", config.ridge), 0).scorer
        return doubly_robust(nets.scorer_of(Policy(batch.encoder, model, EpsilonGreedy(0.0))), mean)
    return {"direct": direct, "mtr": mtr, "ips": ips}[config.loss]


# sums


def _own(batch: Batch) -> bool:
    """Whether candidates are named actions and nothing else: each has coefficients of its own."""
    return bool(batch.encoder.actions) and not batch.encoder.candidate


def _sums(batch: Batch, loss: Loss, mean: float) -> Iterator[tuple[int, Moments]]:
    """Rows done, and the sums over them, part by part."""
    own = _own(batch)
    rows, columns = 1 + batch.encoder.context_width, 1 + batch.encoder.candidate_width
    if columns == 1:
        raise DataError(
            "without a candidate's column one candidate can not be told from another",
            hint="name the actions of the problem, or give the candidates features",
        )
    size, blocks = (rows, columns - 1) if own else (rows * columns, 1)
    if size > WIDEST:
        raise DataError(
            f"{rows} columns of the context times {columns} of the candidates are {size:,} products, must be at most "
            f"{WIDEST:,}",
            hint="use the learner dqn, whose net takes any number, or leave fields out",
        )
    gram, target, square, weight = np.zeros((blocks, size, size)), np.zeros((blocks, size)), 0.0, 0.0
    for part in _parts(len(batch)):
        row, place, weights, targets = loss(batch, part, batch.reward[part] - mean)
        square, weight = square + float(weights @ targets**2), weight + float(weights.sum())
        for block, phi, mine in _features(batch, part, row, place, own):
            scaled = phi * weights[mine, None]
            gram[block] += scaled.T @ phi
            target[block] += scaled.T @ targets[mine]
        scale = part.stop / weight if loss is mtr else 1.0  # a weighted row counts as one row on average
        yield part.stop, Moments(scale * gram, scale * target, scale * square, scale * weight)


def _parts(n: int) -> Iterator[slice]:
    size = min(ROWS, -(-n // 2))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _features(
    batch: Batch, part: slice, row: Array, place: Array, own: bool
) -> Iterator[tuple[int, Array, Array | slice]]:
    """(block, [m, P] phi of its pairs, which of the pairs they are)."""
    context = np.ones((part.stop - part.start, 1 + batch.encoder.context_width))
    context[:, 1:] = batch.context[part]
    candidates = batch.candidates[part]
    if own:
        name = candidates[row, place].argmax(axis=1)
        for block in range(batch.encoder.candidate_width):
            mine = np.flatnonzero(name == block)
            yield block, context[row[mine]], mine
        return
    most = max(1, ROWS * 64 // (context.shape[1] * (1 + batch.encoder.candidate_width)))
    for start in range(0, len(row), most):
        some = slice(start, start + most)
        column = np.ones((len(row[some]), 1 + batch.encoder.candidate_width))
        column[:, 1:] = candidates[row[some], place[some]]
        phi = (context[row[some], :, None] * column[:, None, :]).reshape(len(column), -1)
        yield 0, phi, some


def _table(batch: Batch, coefficients: Array, mean: float) -> Array:
    """[1 + F, 1 + A], the coefficients as the net has them, with the mean reward back in the intercept."""
    rows, columns = 1 + batch.encoder.context_width, 1 + batch.encoder.candidate_width
    if _own(batch):
        table = np.concatenate([np.zeros((rows, 1)), coefficients.T], axis=1)
    else:
        table = coefficients[0].reshape(rows, columns).copy()
    table[0, 0] += mean
    return table


def _check_ridge(ridge: float) -> None:
    if not 0 < ridge < math.inf:
        raise DataError(f"ridge is {ridge:g}, must be above 0", field="ridge")
