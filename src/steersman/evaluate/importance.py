"""How much of the variance of the logged reward each field explains: alone, and on top of all others.

A field explains what a ridge regression on its encoded columns explains on units that it never saw (cross-fitted). To
first order that is also what it explains on the units that it learned from; what separates the two is about the number
of columns in rows, and the truth lies between. So an interval reaches from the lower end of the one to the upper end of
the other, and that of a field that says nothing reaches down to 0. What is explained is linear in the columns, and it
is association: nobody varied the context at random.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.errors import DataError
from steersman.core.report import Estimate
from steersman.evaluate.intervals import Influence, Terms, bound, estimate, ratio
from steersman.evaluate.nuisance import PENALTIES

Array = np.ndarray
Columns = Callable[[Array], Array]
"""Takes [B] rows, ascending; gives their encoded columns, [B, P] f32."""

MAX_ROWS = 100_000
"""More rows than this tell no more that anybody would see: whole units are drawn."""

MAX_COLUMNS = 1_000
"""More columns than this, and there is no model of all together: its Gram matrix is their square."""

MAX_GROUPS = 1_000
"""Clusters of an interval: units, or where there are more, that many groups of whole units."""

FOLDS = 5

_CELLS = 8_000_000
"""Numbers in a block of rows: 64 MiB of f64."""


@dataclass(frozen=True)
class Block:
    """The columns [start, stop) of a field."""

    group: Literal["context", "candidate", "action"]
    name: str
    start: int
    stop: int


class Importance(Struct, frozen=True, kw_only=True):
    """What a field says about the logged reward.

    Attributes:
        group: `action`: which of the named actions was taken.
        alone: share of the variance that its columns explain without the others, in [0, 1].
        on_top: share that is lost when the others have to do without it, in [0, 1]; None: no model of all together.
    """

    group: Literal["context", "candidate", "action"]
    name: str
    alone: Estimate
    on_top: Estimate | None


class Importances(Struct, frozen=True, kw_only=True):
    """What all fields say about the logged reward.

    Attributes:
        together: share of the variance that all columns together explain, in [0, 1]; None: they are too many.
        fields: in the order of the blocks.
        rows, units: that it rests on.
        columns: that vary, of all fields.
    """

    together: Estimate | None
    fields: tuple[Importance, ...]
    rows: int
    units: int
    columns: int


def sample(unit: Array, most: int, seed: int) -> Array:
    """Rows of randomly drawn whole units, ascending: all if there are at most `most`, else as many units as fit in.

    Args:
        unit: [N] i64.
    """
    if len(unit) <= most:
        return np.arange(len(unit))
    _, place, sizes = np.unique(unit, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    fits = max(int(np.searchsorted(np.cumsum(sizes[order]), most, side="right")), 2)  # one unit has no interval
    drawn = np.zeros(len(sizes), dtype=bool)
    drawn[order[:fits]] = True
    return np.flatnonzero(drawn[place])


def importance(
    columns: Columns, blocks: Sequence[Block], reward: Array, unit: Array, *, level: float = 0.95, seed: int = 0
) -> Importances:
    """Share of the variance of the reward that each block of columns explains on units that its model never saw.

    Ridge regression, columns standardised, the intercept free, the penalty by generalised cross-validation, 5 folds of
    whole units. One Gram matrix a fold and block: the rows are read three times, in blocks, and never held together.

    Args:
        columns: of any of the N rows; of a candidate's features those of the action taken.
        reward: [N] f64, finite.
        unit: [N] i64: the cluster of every interval.
        level: of the intervals, in (0, 1).
        seed: of the folds.
    Returns:
        shares in [0, 1]: what falls outside, by chance or because a model judged worse than the mean, is cut.
    Raises:
        DataError: there is one unit only, or the reward never differs.
        SupportError: the variance of the reward is that of one unit.
    Source: Williamson, Gilbert, Carone and Simon 2021, Nonparametric variable importance assessment (loss of R^2,
        cross-fitted); Bayle et al. 2020, Cross-validation confidence intervals for test error, arXiv:2007.12671.
    """
    units = len(np.unique(unit))
    if units < 2:
        raise DataError(f"the log has {units} unit: the error of a share can not be told", hint="log more units")
    if not np.ptp(reward) > 0:
        raise DataError(f"the reward is {reward[0]:g} in all {len(reward):,} rows: there is nothing to explain")
    data = _Data.of(columns, reward, unit, seed)
    models = data.models(blocks)
    losses = _losses(data, models, _fits(data, models))
    explained = [_share(losses, 0, 1 + j, level, "r2 alone") for j in range(len(blocks))]
    lost: list[Estimate | None] = [None] * len(blocks)
    together = None
    whole = 1 + len(blocks)
    if len(models) > whole:
        together = _share(losses, 0, whole, level, "r2 together")
        lost = [_share(losses, whole + 1 + j, whole, level, "r2 on top") for j in range(len(blocks))]
    found = tuple(
        Importance(group=block.group, name=block.name, alone=alone, on_top=on_top)
        for block, alone, on_top in zip(blocks, explained, lost, strict=True)
    )
    return Importances(together=together, fields=found, rows=len(reward), units=units, columns=len(data.varying))


@dataclass(frozen=True, eq=False)
class _Model:
    """Some of the varying columns.

    Attributes:
        columns: [p] their places.
        without: places in `columns`, one array a further model that has to do without these.
    """

    columns: Array
    without: tuple[Array, ...] = ()

    @property
    def outputs(self) -> int:
        return 1 + len(self.without)


@dataclass(frozen=True, eq=False)
class _Data:
    """The rows, read in blocks.

    Attributes:
        columns: see `importance`.
        varying: [V] places of the columns that differ between rows.
        mean, scale: [V] of these.
        reward: [N] f64, its mean 0.
        group: [N] i64, of whole units; the fold of a row is group % folds.
    """

    columns: Columns
    varying: Array
    mean: Array
    scale: Array
    reward: Array
    group: Array
    groups: int
    folds: int

    @classmethod
    def of(cls, columns: Columns, reward: Array, unit: Array, seed: int) -> _Data:
        names, place = np.unique(unit, return_inverse=True)
        groups = min(len(names), MAX_GROUPS)
        group = (np.random.default_rng(seed).permutation(len(names)) % groups)[place]
        width = columns(np.arange(1)).shape[1]
        low, high = np.full(width, np.inf), np.full(width, -np.inf)
        total, square = np.zeros(width), np.zeros(width)
        for rows in _chunks(np.arange(len(reward)), width):
            x = columns(rows).astype(np.float64)
            low, high = np.minimum(low, x.min(axis=0)), np.maximum(high, x.max(axis=0))
            total += x.sum(axis=0)
            square += np.einsum("np,np->p", x, x)
        varying = np.flatnonzero(high > low)
        mean = total[varying] / len(reward)
        scale = np.sqrt(np.maximum(square[varying] / len(reward) - mean**2, 1e-300))
        return cls(
            columns, varying, mean, scale, reward - reward.mean(), group, groups, folds=min(FOLDS, groups)
        )  # fmt: skip

    def models(self, blocks: Sequence[Block]) -> list[_Model]:
        """One without any column, whose loss is the variance; one a block; and one of all, unless it is too wide."""
        places = [np.flatnonzero((self.varying >= block.start) & (self.varying < block.stop)) for block in blocks]
        models = [_Model(np.empty(0, dtype=np.int64)), *map(_Model, places)]
        if len(self.varying) <= MAX_COLUMNS:
            models.append(_Model(np.arange(len(self.varying)), tuple(places)))
        return models

    def read(self, fold: int) -> Iterator[tuple[Array, Array]]:
        """Rows of a fold, [B], and their varying columns, standardised, [B, V] f64; in blocks."""
        for rows in _chunks(np.flatnonzero(self.group % self.folds == fold), len(self.varying)):
            yield rows, (self.columns(rows)[:, self.varying] - self.mean) / self.scale


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over rows; x are the columns of a model, y the reward."""

    n: float
    x: Array
    y: float
    xx: Array
    xy: Array
    yy: float

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    @classmethod
    def of(cls, x: Array, y: Array) -> _Moments:
        return cls(len(y), x.sum(axis=0), float(y.sum()), x.T @ x, x.T @ y, float(y @ y))


def _fits(data: _Data, models: Sequence[_Model]) -> list[list[Array]]:
    """One a model: coefficients [1 + p, outputs], the intercept first; learned on all folds but one, and on all, the
    last by least squares: a penalty would pull its share below the true one."""
    by_fold: list[list[_Moments]] = []
    for fold in range(data.folds):
        blocks = ((x, data.reward[rows]) for rows, x in data.read(fold))
        found = [[_Moments.of(x if model.without else x[:, model.columns], y) for model in models] for x, y in blocks]
        by_fold.append([functools.reduce(operator.add, parts) for parts in zip(*found, strict=True)])
    fits = []
    for model, parts in zip(models, zip(*by_fold, strict=True), strict=True):
        others = [[part for g, part in enumerate(parts) if g != fold] for fold in range(data.folds)]
        unseen = [_ridge(functools.reduce(operator.add, some), model.without, PENALTIES) for some in others]
        fits.append([*unseen, _ridge(functools.reduce(operator.add, parts), model.without, PENALTIES[:1])])
    return fits


def _ridge(moments: _Moments, without: Sequence[Array], penalties: Array) -> Array:
    """[1 + p, outputs] coefficients, the intercept first; of the penalties the best by generalised cross-validation.

    A model without some columns has the same penalty. It is the solution under the constraint that their coefficients
    are 0, which costs no further decomposition: b - M[:, j] inv(M[j, j]) b[j], M the inverse of the penalised Gram
    matrix (Hastie, Tibshirani and Friedman 2009, ex. 3.1, for several columns at once).
    """
    n = moments.n
    mean, mean_y = moments.x / n, moments.y / n
    values, vectors = np.linalg.eigh(moments.xx / n - np.outer(mean, mean))
    values = np.maximum(values, 0.0)
    part = vectors.T @ (moments.xy / n - mean * mean_y)
    shrunk = values + penalties[:, None] * max(float(values.mean()) if values.size else 0.0, 1e-300)  # [L, p]
    freedom = 1.0 + (values / shrunk).sum(axis=1)
    variance = max(moments.yy / n - mean_y**2, 0.0)
    left = np.maximum(variance - ((2.0 * shrunk - values) / shrunk**2 * part**2).sum(axis=1), 0.0)
    best = shrunk[(left / np.maximum(1.0 - freedom / n, 1e-3) ** 2).argmin()]
    slope = vectors @ (part / best)
    slopes = [slope]
    if without:
        inverse = (vectors / best) @ vectors.T
        for j in without:
            slopes.append(slope - inverse[:, j] @ np.linalg.solve(inverse[np.ix_(j, j)], slope[j]))
            slopes[-1][j] = 0.0  # but for rounding it is
    table = np.stack(slopes, axis=1)
    return np.concatenate([mean_y - mean[None] @ table, table])


@dataclass(frozen=True, eq=False)
class _Losses:
    """Sums of squared errors of every output in every group, [G, O]; by models that did not, and that did see it."""

    unseen: Array
    seen: Array


def _losses(data: _Data, models: Sequence[_Model], fits: Sequence[Sequence[Array]]) -> _Losses:
    outputs = sum(model.outputs for model in models)
    unseen, seen = np.zeros((data.groups, outputs)), np.zeros((data.groups, outputs))
    for fold in range(data.folds):
        for rows, x in data.read(fold):
            order = np.argsort(data.group[rows], kind="stable")
            group, starts = np.unique(data.group[rows][order], return_index=True)
            x, y = x[order], data.reward[rows][order]
            at = 0
            for model, fit in zip(models, fits, strict=True):
                own = x if model.without else x[:, model.columns]
                to = slice(at, at + model.outputs)
                for losses, coefficients in ((unseen, fit[fold]), (seen, fit[-1])):
                    error = y[:, None] - coefficients[0] - own @ coefficients[1:]
                    losses[group, to] += np.add.reduceat(error**2, starts, axis=0)
                at += model.outputs
    return _Losses(unseen, seen)


def _share(losses: _Losses, worse: int, better: int, level: float, name: str) -> Estimate:
    """By how much the better output lowers the loss of the worse one, in units of the variance, cut to [0, 1]."""
    value, pull = _lowered(losses.unseen, worse, better)
    sides = Influence(value, pull), Influence(*_lowered(losses.seen, worse, better))
    low = min(sides, key=lambda side: bound(side, 0.5 - level / 2))
    high = max(sides, key=lambda side: bound(side, 0.5 + level / 2))
    variance = losses.unseen[:, 0]
    ess = min(float(variance.sum()) ** 2 / float(variance @ variance), len(pull))
    found = estimate(Terms(value, low, high, len(pull), ess, None), estimator=name, metric="reward", level=level)
    cut = {end: min(max(getattr(found, end), 0.0), 1.0) for end in ("value", "low", "high")}
    return msgspec.structs.replace(found, **cut)


def _lowered(losses: Array, worse: int, better: int) -> tuple[float, Array]:
    return ratio(losses[:, worse] - losses[:, better], losses[:, 0])


def _chunks(rows: Array, width: int) -> Iterator[Array]:
    size = max(_CELLS // max(width, 1), 256)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
