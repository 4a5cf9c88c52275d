"""Models of rewards and of weights, of single decisions: closed-form ridge, cross-fitted, candidates asked at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from steersman.core.batch import Batch
from steersman.core.shared import is_shared, once
from steersman.evaluate.evidence import Paths

Array = np.ndarray

MAX_COLUMNS = 1000
"""More columns than this, and the products of context and candidate are left out: the Gram matrix is their square."""

CHUNK = 8192
"""Rows at a time: [CHUNK, MAX_COLUMNS] doubles are 64 MiB."""

PENALTIES = np.logspace(-8, 2, 21)
"""Ridge penalties tried, in units of the mean variance of a column."""


class Chosen(Protocol):
    """N rows in each of which one of K candidates was taken: a Batch, or a slot of its ranked lists."""

    @property
    def context(self) -> Array:
        """[N, F] f32."""
        ...

    @property
    def candidates(self) -> Array:
        """[N, K, A] f32; may be a broadcast view."""
        ...

    @property
    def action(self) -> Array:
        """[N] i64, place of what was taken."""
        ...


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
    def of(cls, batch: Chosen, first: int = 0) -> _Columns:
        """Of the candidates only the columns from `first` on."""
        context = np.flatnonzero(np.ptp(batch.context, axis=0) > 0)
        candidates = once(batch.candidates)
        flat = candidates.reshape(-1, candidates.shape[2])
        candidate = np.flatnonzero(np.ptp(flat, axis=0) > 0)
        candidate = candidate[candidate >= first]
        return cls(context, candidate, (1 + len(context)) * (1 + len(candidate)) <= MAX_COLUMNS)

    def contexts(self, batch: Chosen, rows: Array) -> Array:
        """[B, 1 + F'] f64, the ones first."""
        return _with_ones(batch.context[rows][:, self.context])

    def candidates(self, batch: Chosen, rows: Array) -> Array:
        """[B, K, 1 + A'] f64, the ones first; [1, K, 1 + A'] if all rows share them."""
        rows = rows[:1] if is_shared(batch.candidates) else rows
        return _with_ones(batch.candidates[rows][:, :, self.candidate])

    def taken(self, batch: Chosen, rows: Array) -> Array:
        """[B, P] f64, the columns of the actions taken; the first is 1."""
        return self._product(self.contexts(batch, rows), batch.candidates[rows, batch.action[rows]][:, self.candidate])

    def expected(self, batch: Chosen, rows: Array, target: Array) -> Array:
        """[B, P] f64, the mean of the columns over the target's actions."""
        context, candidates = self.contexts(batch, rows), self.candidates(batch, rows)[:, :, 1:]
        if len(candidates) == 1:
            return self._product(context, target[rows] @ candidates[0])
        return self._product(context, np.einsum("nk,nka->na", target[rows], candidates))

    def _product(self, context: Array, candidate: Array) -> Array:
        candidate = _with_ones(candidate)
        if not self.products:
            return np.concatenate([context, candidate[:, 1:]], axis=1)
        return (candidate[:, :, None] * context[:, None, :]).reshape(len(context), -1)

    def all(self, batch: Chosen, rows: Array, coefficients: Array) -> Array:
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


def reward_model(
    batch: Batch, outcomes: Array, target: Array, fold: Array, importance: Array | None = None
) -> tuple[Array, Array]:
    """Mean outcome of the action taken, and over the target's actions, by models that never saw the row's unit.

    Ridge regression on the columns (1, context) x (1, candidate), standardised, the intercept free, the penalty by
    generalised cross-validation (Golub, Heath and Wahba 1979). All of it closed form: one Gram matrix a fold, and the
    training sets are sums of the others. A mean outside the range of the logged outcomes is cut to it.

    Args:
        outcomes: [N, M] f64: rewards, metrics; finite.
        target: [N, K] f64.
        fold: [N] i64, all rows of a unit in one fold, at least two folds.
        importance: [N] f64, at least 0: how much each row's error counts; None: all the same.
    Returns:
        q [N, M] and v [N, M], f64.
    """
    columns = _Columns.of(batch)
    folds = int(fold.max()) + 1
    if importance is not None:
        importance = importance * (importance.sum() / (importance @ importance))  # they sum to their effective number
    moments = [Moments.of(batch, outcomes, columns, np.flatnonzero(fold == g), importance) for g in range(folds)]
    q, v = np.empty(outcomes.shape), np.empty(outcomes.shape)
    for g in range(folds):
        others = np.flatnonzero(fold != g)
        low, high = outcomes[others].min(axis=0), outcomes[others].max(axis=0)
        coefficients = ridge(Moments.total([m for i, m in enumerate(moments) if i != g]))
        for rows in _chunks(np.flatnonzero(fold == g)):
            for m in range(outcomes.shape[1]):
                every = np.clip(columns.all(batch, rows, coefficients[:, m]), low[m], high[m])  # [B, K]
                q[rows, m] = every[np.arange(len(rows)), batch.action[rows]]
                v[rows, m] = np.einsum("nk,nk->n", target[rows], every)
    return q, v


@dataclass(frozen=True, eq=False)
class _Slot:
    """A slot of ranked lists as Chosen: what stands above it is a part of the context."""

    context: Array
    candidates: Array
    action: Array


def slot_models(batch: Batch, outcomes: Array, chances: Array, fold: Array) -> tuple[Array, Array]:
    """Mean of what a list brings from each slot on, of the item taken and over the target's items, by models that never
    saw the row's unit.

    From the last slot upwards: the outcome of the slot, plus what the model of the next slot says of the target given
    what stands above it, by the ridge regression of `reward_model`; the columns of the items above, added up, are
    further columns of the context. The whole chain of models is learned anew without each fold.

    Args:
        outcomes: [N, L, M] f64, 0 behind the last item.
        chances: [N, L, K] f64, the target's probabilities in each slot, given the logged items above.
        fold: [N] i64, see `reward_model`.
    Returns:
        q, v: [N, L, M] f64; 0 behind the last item.
    Source: Kiyohara et al. 2022, arXiv:2202.01562, section 4 (the recursive model of Cascade-DR).
    """
    views = _slots_of(batch)
    columns = [_Columns.of(view) for view in views]
    q, v = np.zeros(outcomes.shape), np.zeros(outcomes.shape)
    for g in range(int(fold.max()) + 1):
        later = np.zeros((len(batch), outcomes.shape[2]))
        for slot in reversed(range(len(views))):
            view, there = views[slot], batch.action[:, slot] >= 0
            said = np.where(there[:, None], outcomes[:, slot] + later, 0.0)
            others = np.flatnonzero(there & (fold != g))
            if not len(others):
                continue
            coefficients = ridge(Moments.of(view, said, columns[slot], others))
            low, high = said[others].min(axis=0), said[others].max(axis=0)
            later = np.zeros_like(later)
            for rows in _chunks(np.flatnonzero(there)):
                own = rows[fold[rows] == g]
                for m in range(outcomes.shape[2]):
                    every = np.clip(columns[slot].all(view, rows, coefficients[:, m]), low[m], high[m])  # [B, K]
                    later[rows, m] = np.einsum("nk,nk->n", chances[rows, slot], every)
                    q[own, slot, m] = every[fold[rows] == g, batch.action[own, slot]]
                    v[own, slot, m] = later[own, m]
    return q, v


def _slots_of(batch: Batch) -> list[_Slot]:
    rows = np.arange(len(batch))
    above = np.zeros((len(batch), batch.candidates.shape[2]), dtype=np.float32)
    found = []
    for item in batch.action.T:
        context = np.concatenate([batch.context, above], axis=1)
        found.append(_Slot(context, batch.candidates, np.maximum(item, 0)))
        above = above + batch.candidates[rows, np.maximum(item, 0)] * (item >= 0)[:, None]
    return found


def robust_model(
    batch: Batch, outcomes: Array, target: Array, weight: Array, fold: Array
) -> tuple[Array, Array] | None:
    """The reward model that makes the variance of `dr` small: errors count target (1 - propensity) / propensity^2.

    Args:
        weight: [N] f64, target / propensity of the action taken.
    Returns:
        as `reward_model`; None if no row of some training set counts.
    Source: Farajtabar, Chow and Ghavamzadeh 2018, arXiv:1802.03493.
    """
    importance = weight * (1.0 - batch.propensity) / batch.propensity
    counted = np.bincount(fold, importance)
    if float((counted.sum() - counted).min()) <= 1e-9 * float(counted.sum()):
        return None
    return reward_model(batch, outcomes, target, fold, importance)


def learned_weights(batch: Batch, target: Array, fold: Array, *, features: bool = False) -> Array | None:
    """[N] f64, target / behavior of the actions taken, learned from what the log took and what the target would take.

    The least-squares form of a classifier that tells the two apart: w minimises mean of w^2 / 2 over the log minus the
    mean of w over the target's actions, linear in the columns of `reward_model`, cross-fitted; so the columns have the
    same mean in the weighted log as under the target. The penalty is the one with the least such loss on the folds
    that were left out. Neither propensities nor rewards are looked at.

    Args:
        target: [N, K] f64.
        fold: [N] i64, see `reward_model`.
        features: of a candidate only its features are looked at, not which one it is: then it is the ratio of how
            often target and log take candidates with such features, the mean of their weights.
    Returns:
        None where candidates have no features, if only these are looked at.
    Source: Kanamori, Hido and Sugiyama 2009, A least-squares approach to direct importance estimation.
    """
    columns, folds = _Columns.of(batch, len(batch.encoder.actions) if features else 0), int(fold.max()) + 1
    if features and not len(columns.candidate):
        return None
    moments = []
    for g in range(folds):
        rows = np.flatnonzero(fold == g)
        taken = Moments.of(batch, np.zeros((len(batch), 1)), columns, rows)
        mass = sum((columns.expected(batch, chunk, target).sum(axis=0) for chunk in _chunks(rows)), np.zeros(1))
        moments.append(Moments(taken.xx, mass[:, None], taken.yy))
    paths = [_path(Moments.total([m for i, m in enumerate(moments) if i != g])) for g in range(folds)]
    loss = sum(_density_loss(path, left_out) for path, left_out in zip(paths, moments, strict=True))
    best, found = int(np.argmin(loss)), np.empty(len(batch))
    for g, path in enumerate(paths):
        for rows in _chunks(np.flatnonzero(fold == g)):
            found[rows] = columns.taken(batch, rows) @ path[best]
    return np.maximum(found, 0.0)


def _density_loss(path: Array, moments: Moments) -> Array:
    """[L], sum of w^2 / 2 over the rows of the moments minus the sum of w over the target's actions there."""
    square = np.einsum("lp,lp->l", path @ moments.xx, path)
    return square / 2 - path @ moments.xy[:, 0]


@dataclass(frozen=True, eq=False)
class Moments:
    """Weighted sums over rows of x x', x y', y^2; the first column of x is 1, so the sums of x and y are among them."""

    xx: Array
    xy: Array
    yy: Array

    @classmethod
    def of(
        cls, batch: Chosen, outcomes: Array, columns: _Columns, rows: Array, importance: Array | None = None
    ) -> Moments:
        xx: Array | float = 0.0
        xy: Array | float = 0.0
        yy = np.zeros(outcomes.shape[1])
        for chunk in _chunks(rows):
            x, y = columns.taken(batch, chunk), outcomes[chunk]
            if importance is not None:
                root = np.sqrt(importance[chunk])[:, None]
                x, y = x * root, y * root  # x' x of one array is half the work of a product of two
            xx = xx + x.T @ x
            xy = xy + x.T @ y
            yy += np.sum(y**2, axis=0)
        return cls(np.asarray(xx), np.asarray(xy), yy)

    @classmethod
    def total(cls, parts: list[Moments]) -> Moments:
        return cls(sum(p.xx for p in parts), sum(p.xy for p in parts), sum(p.yy for p in parts))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Ridge regressions with every penalty, in the eigenbasis of the columns' covariance.

    Attributes:
        mean, mean_y: [P - 1] of the columns, [M] of the outcomes.
        vectors, values: of the covariance.
        part: [P - 1, M] covariance with the outcomes, in that basis.
        shrunk: [L, P - 1] values plus each penalty.
    """

    mean: Array
    mean_y: Array
    vectors: Array
    values: Array
    part: Array
    shrunk: Array

    @classmethod
    def of(cls, moments: Moments) -> _Spectrum:
        n = moments.xx[0, 0]
        mean, mean_y = moments.xx[0, 1:] / n, moments.xy[0] / n
        values, vectors = np.linalg.eigh(moments.xx[1:, 1:] / n - np.outer(mean, mean))
        values = np.maximum(values, 0.0)
        part = vectors.T @ (moments.xy[1:] / n - np.outer(mean, mean_y))
        unit = (float(values.mean()) if values.size else 0.0) or 1.0  # columns that do not vary have no size
        shrunk = values + PENALTIES[:, None] * unit
        return cls(mean, mean_y, vectors, values, part, shrunk)

    def with_intercept(self, slope: Array) -> Array:
        """[P - 1, M] -> [P, M], intercept first."""
        return np.concatenate([(self.mean_y - self.mean @ slope)[None], slope])


def ridge(moments: Moments) -> Array:
    """[P, M] coefficients in the columns' own units, intercept first; the penalty by generalised cross-validation."""
    n, found = moments.xx[0, 0], _Spectrum.of(moments)
    variance = np.maximum(moments.yy / n - found.mean_y**2, 0.0)
    freedom = 1.0 + (found.values / found.shrunk).sum(axis=1)  # [L]
    fit = np.einsum("lp,pm->lm", (2.0 * found.shrunk - found.values) / found.shrunk**2, found.part**2)
    loss = np.maximum(variance - fit, 0.0) / np.maximum(1.0 - freedom / n, 1e-3)[:, None] ** 2  # [L, M]
    best = found.shrunk[loss.argmin(axis=0)]  # [M, P - 1]
    return found.with_intercept(found.vectors @ (found.part / best.T))


def _path(moments: Moments) -> Array:
    """[L, P] coefficients of the first outcome with every penalty, intercept first."""
    found = _Spectrum.of(moments)
    return found.with_intercept(found.vectors @ (found.part[:, :1] / found.shrunk.T)).T


def _with_ones(array: Array) -> Array:
    wide = np.empty((*array.shape[:-1], 1 + array.shape[-1]))
    wide[..., 0] = 1.0
    wide[..., 1:] = array
    return wide


def _chunks(rows: Array) -> Iterator[Array]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]
