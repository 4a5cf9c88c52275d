"""Do actions occur as often as the logged propensities say? A test that needs no propensity but that of the taken.

Let m(a | x) be any probabilities, made without looking at the decision. If the propensities p are right, m / p of the
action taken has a mean of at most 1, whatever m is and whatever else the log's policy looked at: the sum over actions
of p * m / p. So a gambler who stakes a share b of his money on every decision, and gets 1 - b + b m / p back, wins
nothing in the long run, and multiplies his money by 1,000 with a chance of at most 1 / 1,000 (Markov's inequality):
a test of known error at every number of decisions, however heavy the tail of 1 / p is. He wins if m is closer to how
the log really decided than p is; then the mean of m / p is 1 plus the chi-square distance of the two.

It tells propensities that are too small somewhere. Where they are too large the mean is below 1, as it is where the
log's policy never takes what m takes: the two can not be told apart from a log, and the gate `mean weight` asks both.
Source: Vovk and Wang 2021, arXiv:1912.06116, on such e-values and their averages; Waudby-Smith and Ramdas 2023,
arXiv:2010.09686, on betting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.shared import is_shared
from steersman.evaluate.anytime import BETS, PURSES
from steersman.evaluate.cells import by_name

Array = np.ndarray

CHUNK = 8192
"""Rows at a time."""

MAX_COLUMNS = 200
"""Columns of the context that the model of the actions looks at."""

RIDGE = 1e-3
"""Penalty of that model, in units of the mean variance of a column."""


class Propensities(Struct, frozen=True, kw_only=True):
    """Whether the propensities can be those with which the log decided.

    Attributes:
        ratio: mean of m / p, of the model m that has the largest; at most 1 up to chance if the propensities are right.
        chance: of so much money or more, if they are right: at most this.
        worst: the named action that came too often for its propensities by the most standard errors; empty: none has.
    """

    ratio: float
    chance: float
    worst: str


@dataclass(frozen=True, eq=False)
class _Modelled:
    """m / p of the actions taken, by one model.

    Attributes:
        ratio: [N].
        expected: [B], sum over rows of m(a | x).
        square: [B], sum over rows of the square of (m / p where a was taken, else 0) - m(a | x). Were the propensities
            right, no row would foretell another's, so this is the variance of their sum.
    """

    ratio: Array
    expected: Array
    square: Array


def propensities(batch: Batch, fold: Array) -> Propensities:
    """Tests the propensities against uniform choice, the frequencies of the actions, and a linear model of them.

    Args:
        fold: [N] i64, the fold of each row, all rows of a unit in one. No model sees the fold that it is asked about.
    """
    uniform = 1.0 / (batch.mask.sum(axis=1) * batch.propensity)
    named = by_name(batch, np.zeros(batch.mask.shape))
    if named is None:
        return Propensities(ratio=float(uniform.mean()), chance=_chance([uniform], fold), worst="")
    action, offered = named[0], _offered(batch)
    moved = np.flatnonzero(np.ptp(batch.context, axis=0) > 0)[:MAX_COLUMNS]
    frequencies = _modelled(batch, moved[:0], action, offered, fold)
    linear = _modelled(batch, moved, action, offered, fold)
    ratios = [uniform, frequencies.ratio, linear.ratio]
    return Propensities(
        ratio=max(float(ratio.mean()) for ratio in ratios),
        chance=_chance(ratios, fold),
        worst=_worst(batch.encoder.actions, action, linear),
    )


def _worst(names: tuple[str, ...], action: Array, found: _Modelled) -> str:
    excess = np.bincount(action, found.ratio, minlength=len(names)) - found.expected
    errors = np.divide(excess, np.sqrt(found.square), out=np.zeros(len(names)), where=found.square > 0)
    return names[int(errors.argmax())] if float(errors.max()) > 0 else ""


def _offered(batch: Batch) -> Array:
    """[N, B] or [1, B] bool, which names were offered."""
    if is_shared(batch.candidates) and bool(batch.mask.all()):
        return np.any(batch.candidates[:1] != 0, axis=1)
    return np.any(batch.candidates != 0, axis=1)


def _modelled(batch: Batch, columns: Array, action: Array, offered: Array, fold: Array) -> _Modelled:
    """By a ridge regression of which action is taken on columns of the context; without columns by the frequencies.

    What it says is cut at 0, and scaled to sum to 1 over the actions that were offered.
    """
    names, width, folds = offered.shape[1], 1 + len(columns), int(fold.max()) + 1
    xx, xy = np.zeros((folds, width, width)), np.zeros((folds, width, names))
    for g, rows, x in _chunks(batch.context, columns, fold):
        xx[g] += x.T @ x
        np.add.at(xy[g].T, action[rows], x)
    ratio, expected, square = np.empty(len(action)), np.zeros(names), np.zeros(names)
    slopes = [_ridge(xx.sum(axis=0) - xx[g], xy.sum(axis=0) - xy[g]) for g in range(folds)]
    for g, rows, x in _chunks(batch.context, columns, fold):
        m = np.maximum(x @ slopes[g], 0.0)
        m *= offered if len(offered) == 1 else offered[rows]
        total = m.sum(axis=1, keepdims=True)
        m /= np.where(total > 0, total, 1.0)
        taken = m[np.arange(len(rows)), action[rows]]
        ratio[rows] = taken / batch.propensity[rows]
        expected += m.sum(axis=0)
        square += np.einsum("nb,nb->b", m, m)
        square += np.bincount(action[rows], (ratio[rows] - taken) ** 2 - taken**2, minlength=names)
    return _Modelled(ratio, expected, np.maximum(square, 0.0))


def _ridge(xx: Array, xy: Array) -> Array:
    """[P, B] coefficients; the intercept, which comes first, is free."""
    penalty = np.full(len(xx), RIDGE * float(np.trace(xx[1:, 1:])) / max(len(xx) - 1, 1) or 1.0)
    penalty[0] = 0.0
    if not xx[0, 0] > 0:  # no other fold has a row
        return np.zeros_like(xy)
    return np.linalg.solve(xx + np.diag(penalty), xy)


def _chunks(context: Array, columns: Array, fold: Array) -> Iterator[tuple[int, Array, Array]]:
    """Rows of one fold after the other, with their columns [B, 1 + F'] f64 around their mean, ones first."""
    mean = context[:, columns].mean(axis=0, dtype=np.float64)
    for g in range(int(fold.max()) + 1):
        of_fold = np.flatnonzero(fold == g)
        for start in range(0, len(of_fold), CHUNK):
            rows = of_fold[start : start + CHUNK]
            x = np.ones((len(rows), 1 + len(columns)))
            x[:, 1:] = context[np.ix_(rows, columns)] - mean
            yield g, rows, x


def _chance(ratios: list[Array], fold: Array) -> float:
    """At most this chance of winning so much or more if every ratio has a mean of at most 1 given what came before.

    A mean of fair gamblers is one: over folds, whose models have not seen them, over models, and over the shares that
    are staked.
    """
    folds = int(fold.max()) + 1
    logs = []
    for ratio in ratios:
        for g in range(folds):
            excess = ratio[fold == g] - 1.0
            money = [float(np.log1p(bet * excess).sum()) for bet in BETS if bet * math.sqrt(len(excess)) > 0.01]
            logs.extend(np.log(PURSES[: len(money)]) + np.array(money))
    won = float(np.logaddexp.reduce(np.array(logs))) - math.log(len(ratios) * folds)
    return math.exp(-max(won, 0.0))
