"""Models of rewards over actions that are numbers: closed-form ridge, cross-fitted, and their mean over the target.

Columns: polynomials of the action (Legendre's, of where in the bounds it is), each times 1 and every column of the
context; and the squares of the context by themselves. The model is linear in them, so its mean over what a target would
do is that of the columns, over draws. Each row has a lattice of draws with a random shift of its own: so the mean over
draws has the right expectation row by row, and estimators that add and subtract the model stay unbiased.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.density import Aims, shares
from steersman.evaluate.kernels import Kernels, bandwidths, kernel_weights
from steersman.evaluate.nuisance import CHUNK, MAX_COLUMNS, Moments, ridge

Array = np.ndarray

DEGREE = 4
"""Highest degree of a polynomial of the action."""

DRAWS = 32
"""Draws of a target with chance a row."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of the model.

    Attributes:
        context: columns of the context that vary, as places in the batch's array.
        powers: [P] exponents, one a number of the action; not all 0.
        products: whether they are multiplied with the context.
        box: bounds of the action.
    """

    context: Array
    powers: tuple[tuple[int, ...], ...]
    products: bool
    box: Numbers

    @classmethod
    def of(cls, batch: Batch, box: Numbers) -> Columns:
        """The highest degree whose columns are not too many; then without products."""
        context = np.flatnonzero(np.ptp(batch.context, axis=0) > 0)
        for products in (True, False):
            for degree in range(DEGREE, 1 - products, -1):
                powers = _powers(len(box.low), degree)
                wide = len(powers) * (1 + len(context)) if products else len(powers)
                if 1 + 2 * len(context) + wide <= MAX_COLUMNS:
                    return cls(context, powers, products, box)
        return cls(context, _powers(len(box.low), 1), False, box)

    def basis(self, action: Array) -> Array:
        """[..., D] actions -> [..., P] polynomials."""
        place = 2.0 * shares(action, self.box) - 1.0
        each = np.stack(_legendre(place, max(map(max, self.powers))), axis=-1)  # [..., D, DEGREE + 1]
        columns = [_product([each[..., d, power] for d, power in enumerate(of)]) for of in self.powers]
        return np.stack(columns, axis=-1)

    def joined(self, batch: Batch, rows: Array, basis: Array) -> Array:
        """[B, C] f64, the columns of rows with a basis [B, P]; the first is 1."""
        context = batch.context[rows][:, self.context].astype(np.float64)
        parts = [np.ones((len(rows), 1)), context, context**2, basis]
        if self.products:
            parts.append((basis[:, :, None] * context[:, None, :]).reshape(len(rows), -1))
        return np.concatenate(parts, axis=1)

    def taken(self, batch: Batch, rows: Array) -> Array:
        """[B, C] f64, of the actions that were taken."""
        return self.joined(batch, rows, self.basis(batch.action[rows]))


@dataclass(frozen=True, eq=False)
class Meant:
    """What a target would do, looked at once.

    Attributes:
        basis: [N, P] f64, mean over its draws of the polynomials of `Columns`.
        kernels: weights of the logged actions near them; None: nobody asked.
    """

    basis: Array
    kernels: Kernels | None


def drawn(aims: Aims, seed: int) -> Iterator[tuple[slice, Array]]:
    """Draws of a target a chunk of rows at a time: which rows, and [B, M, D]; one each of a target without chance."""
    draws, numbers = DRAWS if aims.dense else 1, len(aims.box.low) + 1
    lattice = _lattice(draws, numbers)
    rng = np.random.default_rng([seed, 2])
    step = max(CHUNK // draws, 1)
    for start in range(0, len(aims), step):
        rows = slice(start, start + step)
        some = aims.take(rows)
        yield rows, some.draws((lattice + rng.random((len(some), 1, numbers))) % 1.0)


def meant(batch: Batch, aims: Aims, columns: Columns, seed: int, *, kernels: bool) -> Meant:
    """Draws of the target on every row: means of the columns, and kernel weights if asked for."""
    each = bandwidths()
    basis = np.empty((len(batch), len(columns.powers)))
    weights = np.empty((len(each) if kernels else 0, len(batch)))
    for rows, draws in drawn(aims, seed):
        basis[rows] = columns.basis(draws).mean(axis=1)
        if kernels:
            weights[:, rows] = kernel_weights(batch.action[rows], batch.propensity[rows], draws, aims.box, each)
    return Meant(basis, Kernels(each, weights) if kernels else None)


def dose_model(batch: Batch, outcomes: Array, columns: Columns, basis: Array, fold: Array) -> tuple[Array, Array]:
    """Mean outcome of the action taken, and over what the target would do, by models that never saw the row's unit.

    Args:
        outcomes: [N, M] f64: rewards, metrics; finite.
        basis: [N, P] f64, see `Meant`.
        fold: [N] i64, all rows of a unit in one fold, at least two folds.
    Returns:
        q [N, M] and v [N, M], f64.
    """
    folds = int(fold.max()) + 1
    moments = [_moments(batch, outcomes, columns, np.flatnonzero(fold == g)) for g in range(folds)]
    q, v = np.empty(outcomes.shape), np.empty(outcomes.shape)
    for g in range(folds):
        coefficients = ridge(Moments.total([m for i, m in enumerate(moments) if i != g]))
        rows = np.flatnonzero(fold == g)
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            q[some] = columns.taken(batch, some) @ coefficients
            v[some] = columns.joined(batch, some, basis[some]) @ coefficients
    return q, v


def _moments(batch: Batch, outcomes: Array, columns: Columns, rows: Array) -> Moments:
    xx: Array | float = 0.0
    xy: Array | float = 0.0
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        x = columns.taken(batch, some)
        xx = xx + x.T @ x
        xy = xy + x.T @ outcomes[some]
    return Moments(np.asarray(xx), np.asarray(xy), np.sum(outcomes[rows] ** 2, axis=0))


def _powers(numbers: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """Exponents of total degree up to `degree`, at most two of them not 0."""
    found: list[tuple[int, ...]] = []
    for i, j in itertools.combinations_with_replacement(range(numbers), 2):
        for a, b in itertools.product(range(degree + 1), repeat=2):
            if (b == 0 if i == j else a > 0 < b) and 0 < a + b <= degree:
                found.append(tuple(a if k == i else b if k == j else 0 for k in range(numbers)))
    return tuple(sorted(found, key=lambda powers: (sum(powers), powers)))


def _legendre(x: Array, degree: int) -> list[Array]:
    """Legendre polynomials of degree 0, 1, ... by their recursion."""
    found = [np.ones_like(x), x]
    for k in range(1, degree):
        found.append(((2 * k + 1) * x * found[k] - k * found[k - 1]) / (k + 1))
    return found[: degree + 1]


def _product(columns: list[Array]) -> Array:
    """The product of several columns."""
    product = columns[0]
    for column in columns[1:]:
        product = product * column
    return product


def _lattice(points: int, dimensions: int) -> Array:
    """[1, points, dimensions] in [0, 1): multiples of the roots of x^(d+1) = x + 1, evenly spread in all of them.

    Source: Roberts 2018, The unreasonable effectiveness of quasirandom sequences (the sequence R_d).
    """
    golden = 2.0
    for _ in range(60):
        golden = (1.0 + golden) ** (1.0 / (dimensions + 1))
    steps = np.array([math.pow(1.0 / golden, k + 1) for k in range(dimensions)])
    return (np.arange(points)[:, None] * steps % 1.0)[None]
