"""The reward model of one-step estimators: closed-form ridge, cross-fitted, asked once for all candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.evaluate.evidence import Paths

Array = np.ndarray

MAX_COLUMNS = 1000
"""More columns than this, and the products of context and candidate are left out: the Gram matrix is their square."""

CHUNK = 8192
"""Rows at a time: [CHUNK, MAX_COLUMNS] doubles are 64 MiB."""

PENALTIES = np.logspace(-8, 2, 21)
"""Ridge penalties tried, in units of the mean variance of a column."""


@dataclass(frozen=True, eq=False)
class _Columns:
    """Columns of the reward model: (1, context) x (1, candidate), or without the products if these are too many.

    Attributes:
        context, candidate: columns that vary, as places in the batch's arrays.
        products: whether columns are multiplied.
    """

    context: Array
    candidate: Array
    products: bool

    @classmethod
    def of(cls, batch: Batch) -> _Columns:
        context = np.flatnonzero(np.ptp(batch.context, axis=0) > 0)
        candidates = batch.candidates[:1] if batch.candidates.strides[0] == 0 else batch.candidates
        flat = candidates.reshape(-1, candidates.shape[2])
        candidate = np.flatnonzero(np.ptp(flat, axis=0) > 0)
        return cls(context, candidate, (1 + len(context)) * (1 + len(candidate)) <= MAX_COLUMNS)

    def contexts(self, batch: Batch, rows: Array) -> Array:
        """[B, 1 + F'] f64, the ones first."""
        return _with_ones(batch.context[rows][:, self.context])

    def candidates(self, batch: Batch, rows: Array) -> Array:
        """[B, K, 1 + A'] f64, the ones first; [1, K, 1 + A'] if all rows share them."""
        rows = rows[:1] if batch.candidates.strides[0] == 0 else rows
        return _with_ones(batch.candidates[rows][:, :, self.candidate])

    def taken(self, batch: Batch, rows: Array) -> Array:
        """[B, P] f64, the columns of the actions taken; the first is 1."""
        context = self.contexts(batch, rows)
        candidate = _with_ones(batch.candidates[rows, batch.action[rows]][:, self.candidate])
        if not self.products:
            return np.concatenate([context, candidate[:, 1:]], axis=1)
        return (candidate[:, :, None] * context[:, None, :]).reshape(len(rows), -1)

    def all(self, batch: Batch, rows: Array, coefficients: Array) -> Array:
        """[B, K] f64, the model asked for every candidate at once: z' Theta c, without the product columns."""
        context, candidates = self.contexts(batch, rows), self.candidates(batch, rows)
        wide = 1 + len(self.context)
        if self.products:
            theta = coefficients.reshape(-1, wide)  # [1 + A', 1 + F']
            half = context @ theta.T  # [B, 1 + A']
            if len(candidates) == 1:
                return half @ candidates[0].T
            return np.matmul(candidates, half[:, :, None])[:, :, 0]
        return (context @ coefficients[:wide])[:, None] + candidates[:, :, 1:] @ coefficients[wide:]


def folds_of(paths: Paths, folds: int, seed: int) -> Array:
    """[E] i64, the fold of each episode: whole units, in folds of equal numbers of units, by a seeded permutation."""
    order = np.random.default_rng(seed).permutation(paths.clusters)
    return (order % min(folds, paths.clusters))[paths.cluster]


def reward_model(batch: Batch, outcomes: Array, target: Array, fold: Array) -> tuple[Array, Array]:
    """Mean outcome of the action taken, and over the target's actions, by models that never saw the row's unit.

    Ridge regression on the columns (1, context) x (1, candidate), standardised, the intercept free, the penalty by
    generalised cross-validation (Golub, Heath and Wahba 1979). All of it closed form: one Gram matrix a fold, and the
    training sets are sums of the others. A mean outside the range of the logged outcomes is cut to it.

    Args:
        outcomes: [N, M] f64: rewards, metrics; finite.
        target: [N, K] f64.
        fold: [N] i64, all rows of a unit in one fold, at least two folds.
    Returns:
        q [N, M] and v [N, M], f64.
    """
    columns = _Columns.of(batch)
    folds = int(fold.max()) + 1
    moments = [_Moments.of(batch, outcomes, columns, np.flatnonzero(fold == g)) for g in range(folds)]
    q, v = np.empty(outcomes.shape), np.empty(outcomes.shape)
    for g in range(folds):
        others = np.flatnonzero(fold != g)
        low, high = outcomes[others].min(axis=0), outcomes[others].max(axis=0)
        coefficients = _ridge(_Moments.total([m for i, m in enumerate(moments) if i != g]))
        for rows in _chunks(np.flatnonzero(fold == g)):
            for m in range(outcomes.shape[1]):
                every = np.clip(columns.all(batch, rows, coefficients[:, m]), low[m], high[m])  # [B, K]
                q[rows, m] = every[np.arange(len(rows)), batch.action[rows]]
                v[rows, m] = np.einsum("nk,nk->n", target[rows], every)
    return q, v


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over rows of x x', x y', y^2; the first column of x is 1, so the sums of x and y are among them."""

    xx: Array
    xy: Array
    yy: Array

    @classmethod
    def of(cls, batch: Batch, outcomes: Array, columns: _Columns, rows: Array) -> _Moments:
        xx: Array | float = 0.0
        xy: Array | float = 0.0
        for chunk in _chunks(rows):
            x = columns.taken(batch, chunk)
            xx = xx + x.T @ x
            xy = xy + x.T @ outcomes[chunk]
        return cls(np.asarray(xx), np.asarray(xy), np.sum(outcomes[rows] ** 2, axis=0))

    @classmethod
    def total(cls, parts: list[_Moments]) -> _Moments:
        return cls(sum(p.xx for p in parts), sum(p.xy for p in parts), sum(p.yy for p in parts))  # type: ignore[arg-type]


def _ridge(moments: _Moments) -> Array:
    """[P, M] coefficients in the columns' own units, intercept first; the penalty by generalised cross-validation."""
    n = moments.xx[0, 0]
    mean, mean_y = moments.xx[0, 1:] / n, moments.xy[0] / n
    cov = moments.xx[1:, 1:] / n - np.outer(mean, mean)
    cov_y = moments.xy[1:] / n - np.outer(mean, mean_y)
    variance = np.maximum(moments.yy / n - mean_y**2, 0.0)
    values, vectors = np.linalg.eigh(cov)
    values = np.maximum(values, 0.0)  # [P - 1]
    part = vectors.T @ cov_y  # [P - 1, M]
    shrunk = values + PENALTIES[:, None] * max(float(values.mean()) if values.size else 0.0, 1e-300)  # [L, P - 1]
    freedom = 1.0 + (values / shrunk).sum(axis=1)  # [L]
    fit = np.einsum("lp,pm->lm", (2.0 * shrunk - values) / shrunk**2, part**2)
    loss = np.maximum(variance - fit, 0.0) / np.maximum(1.0 - freedom / n, 1e-3)[:, None] ** 2  # [L, M]
    best = shrunk[loss.argmin(axis=0)]  # [M, P - 1]
    slope = vectors @ (part / best.T)
    return np.concatenate([(mean_y - mean @ slope)[None], slope])


def _with_ones(array: Array) -> Array:
    wide = np.empty((*array.shape[:-1], 1 + array.shape[-1]))
    wide[..., 0] = 1.0
    wide[..., 1:] = array
    return wide


def _chunks(rows: Array) -> Iterator[Array]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]
