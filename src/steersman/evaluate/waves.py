"""Action values of sequences over contexts that are no table: finite-horizon fitted Q evaluation on random features.

Q_h(context, action) = x' theta_h with x = (1, z, cos(W z + b)): standardised columns and random Fourier features, one
block of coefficients a named action. theta_h is the ridge regression of reward + discount * V_{h-1}(next) on x over the
rows of that action; V_h = sum_a target(a) Q_h(., a), cut to what the logged rewards allow over h steps.

It serves as the model inside `dr`, `wdr` and `fqe`, where it may be wrong without harm to unbiasedness. It does not
serve `drl`: on continuous contexts the marginal weights of a linear sieve blow up over a long horizon, and the estimate
with them, so none are made here.
Sources: Rahimi and Recht 2007; Le, Voloshin and Yue 2019, arXiv:1903.08738.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.density import Aims, shares
from steersman.evaluate.cells import by_name
from steersman.evaluate.doses import drawn
from steersman.evaluate.evidence import Model, Paths

Array = np.ndarray

WAVES = 100
"""Random Fourier features beside the columns themselves."""

RIDGE = 1e-5
"""Penalty, in units of the mean diagonal of the Gram matrix."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the action taken, and those that the target's mixture weighs.

    Named actions have a block of coefficients each over features of the context. Other candidates share one block
    over features of context and candidate together, and are mixed before: what is linear may be averaged first.

    Attributes:
        taken: [N, P] f32; block: [N] i64, its block in [0, B).
        mixed: [N, P] f32; mix: [N, B] f64: V = sum over blocks of mix * (mixed @ theta).
    """

    taken: Array
    block: Array
    mixed: Array
    mix: Array


@dataclass(frozen=True, eq=False)
class _Waves:
    """x of standardised columns z [N, D]: (1, z, cos)."""

    mean: Array
    scale: Array
    turn: Array
    shift: Array

    @classmethod
    def of(cls, columns: Array, rng: np.random.Generator) -> _Waves:
        """Wave lengths around half the median distance between rows."""
        std = columns.std(axis=0)
        scale = np.where(std > 0, 1.0 / np.where(std > 0, std, 1.0), 0.0)
        some = (columns[rng.integers(0, len(columns), (2, 2000))] - columns.mean(axis=0)) * scale
        median = float(np.median(np.linalg.norm(some[0] - some[1], axis=1)))
        turn = rng.standard_normal((columns.shape[1], WAVES)) / max(0.5 * median, 1e-6)
        return cls(columns.mean(axis=0), scale, turn, rng.uniform(0.0, 2 * np.pi, WAVES))

    def __call__(self, columns: Array) -> Array:
        z = (columns - self.mean) * self.scale
        parts = [np.ones((len(z), 1)), z, np.cos(z @ self.turn + self.shift)]
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")


def features_of(batch: Batch, target: Array | Aims, seed: int) -> Features:
    """Features of every row of a log."""
    rng = np.random.default_rng([seed, 1])
    if isinstance(target, Aims):
        return _features_of_numbers(batch, target, seed, rng)
    named = by_name(batch, target)
    context = batch.context[:, np.ptp(batch.context, axis=0) > 0].astype(np.float64)
    if named is not None:
        x = _Waves.of(context, rng)(context)
        return Features(x, named[0], x, named[1])
    rows = np.arange(len(batch))
    taken = np.concatenate([context, batch.candidates[rows, batch.action]], axis=1)
    waves = _Waves.of(taken, rng)
    mixed = np.zeros((len(batch), 1 + taken.shape[1] + WAVES), dtype=np.float32)
    for k in np.flatnonzero(target.any(axis=0)):
        mixed += target[:, k, None].astype(np.float32) * waves(
            np.concatenate([context, batch.candidates[:, k]], axis=1)
        )
    return Features(waves(taken), np.zeros(len(batch), dtype=np.int64), mixed, np.ones((len(batch), 1)))


def _features_of_numbers(batch: Batch, aims: Aims, seed: int, rng: np.random.Generator) -> Features:
    """One block over context and action together; mixed over draws of the target."""
    context = batch.context[:, np.ptp(batch.context, axis=0) > 0].astype(np.float64)
    taken = np.concatenate([context, shares(batch.action, aims.box)], axis=1)
    waves = _Waves.of(taken, rng)
    mixed = np.empty((len(batch), 1 + taken.shape[1] + WAVES), dtype=np.float32)
    for rows, draws in drawn(aims, seed):
        each = draws.shape[1]
        wide = np.concatenate(
            [np.repeat(context[rows], each, axis=0), shares(draws, aims.box).reshape(-1, draws.shape[2])], axis=1
        )
        mixed[rows] = waves(wide).reshape(-1, each, mixed.shape[1]).mean(axis=1)
    return Features(waves(taken), np.zeros(len(batch), dtype=np.int64), mixed, np.ones((len(batch), 1)))


def waves_model(
    batch: Batch, paths: Paths, outcomes: Array, features: Features, known: Array, horizon: int, fold: Array
) -> list[Model]:
    """Action values of every row by models that never saw its unit; one Model a column of `outcomes` [N, M].

    Args:
        paths: of whole episodes only.
        known: [N] bool, see `cells.known_rows`.
        horizon: H, at least the longest episode.
        fold: [E] i64.
    """
    regressions = _Regressions.of(features, known, fold[paths.episode])
    return [_fitted(batch, paths, column, horizon, features, known, regressions) for column in outcomes.T]


@dataclass(frozen=True, eq=False)
class _Regressions:
    """Ridge regressions of each fold's training rows: coefficients = inverse @ sum over rows of x y.

    Attributes:
        fold: [N].
        rows: one array of rows a block; taken: their features.
        last, known: [folds][B] inverses [P, P]: over all rows (only the reward counts), and over the known rows.
    """

    fold: Array
    rows: list[Array]
    taken: list[Array]
    last: list[list[Array]]
    known: list[list[Array]]

    @classmethod
    def of(cls, features: Features, known: Array, fold: Array) -> _Regressions:
        folds = int(fold.max()) + 1
        rows = [np.flatnonzero(features.block == b) for b in range(features.mix.shape[1])]
        taken = [features.taken[r] for r in rows]
        last = _inverses(rows, taken, np.ones(len(fold), dtype=bool), fold, folds)
        sure = last if known.all() else _inverses(rows, taken, known, fold, folds)
        return cls(fold, rows, taken, last, sure)

    def fit(self, goal: Array, use: Array, inverses: list[list[Array]]) -> Array:
        """[P, folds, B] coefficients; goal [N, folds], one a model; rows with use 0 do not teach."""
        folds = goal.shape[1]
        theta = np.empty((self.taken[0].shape[1], folds, len(self.rows)))
        for b, (rows, x) in enumerate(zip(self.rows, self.taken, strict=True)):
            others = (self.fold[rows, None] != np.arange(folds)) & use[rows, None]
            sums = (x.T @ (goal[rows] * others).astype(np.float32)).astype(np.float64)
            for g in range(folds):
                theta[:, g, b] = inverses[g][b] @ sums[:, g]
        return theta


def _inverses(rows: list[Array], taken: list[Array], use: Array, fold: Array, folds: int) -> list[list[Array]]:
    grams = [[_gram(x[(fold[r] == g) & use[r]]) for g in range(folds)] for r, x in zip(rows, taken, strict=True)]
    result: list[list[Array]] = []
    for g in range(folds):
        result.append([])
        for block in grams:
            gram = np.sum([part for other, part in enumerate(block) if other != g], axis=0)
            size = len(gram)
            penalty = RIDGE * float(np.trace(gram)) / size or 1.0  # nothing to learn from: coefficients 0
            values, vectors = np.linalg.eigh(gram)
            result[-1].append((vectors / (np.maximum(values, 0.0) + penalty)) @ vectors.T)
    return result


def _gram(x: Array) -> Array:
    exact = x.astype(np.float64)  # its inverse needs every digit; the products with it do not
    return exact.T @ exact


def _fitted(
    batch: Batch, paths: Paths, reward: Array, horizon: int, features: Features, known: Array, fits: _Regressions
) -> Model:
    n, folds = len(batch), int(fits.fold.max()) + 1
    moving = np.flatnonzero((batch.next >= 0) & known)
    ahead, ahead_mix = features.mixed[batch.next[moving]], features.mix[batch.next[moving]]
    goal = np.repeat(reward[:, None], folds, axis=1)
    everything = np.ones(n, dtype=bool)
    q, v = np.zeros(n), np.zeros(n)
    reach = 0.0
    for h in range(1, horizon + 1):
        theta = fits.fit(goal, everything if h == 1 else known, fits.last if h == 1 else fits.known)
        reach = 1.0 + float(batch.discount.max()) * reach
        low, high = min(reward.min() * reach, reward.min()), max(reward.max() * reach, reward.max())
        if horizon - h < len(paths.steps):
            for g in range(folds):
                rows = paths.steps[horizon - h]
                rows = rows[fits.fold[rows] == g]
                taken = (features.taken[rows] @ theta[:, g])[np.arange(len(rows)), features.block[rows]]
                q[rows] = np.clip(taken, low, high)
                v[rows] = np.clip(np.sum(features.mix[rows] * (features.mixed[rows] @ theta[:, g]), axis=1), low, high)
        value = (ahead @ theta.reshape(len(theta), -1).astype(np.float32)).reshape(len(moving), folds, -1)
        value = np.clip(np.einsum("fgb,fb->fg", value, ahead_mix), low, high)
        goal = np.repeat(reward[:, None], folds, axis=1)
        goal[moving] += batch.discount[moving, None] * value
    return Model(q, v)
