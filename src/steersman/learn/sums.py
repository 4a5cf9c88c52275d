"""Sums over rows, all that a linear bandit has to know of them. They add up: the sums of two windows are those of both.

phi is [1, context] x [1, candidate], all products (joint); or named actions have coefficients each of their own over
[1, context] (disjoint). Sums are named arrays f64:

    rows, origin, reward      rows; what rewards come without, the same in sums that are added; sum of these rewards
    taken.gram, .target       [B, P, P] sum of phi phi', [B, P] sum of phi r, over the candidates that were taken
    taken.square, .weight     sum of r^2, and of 1
    weighted.*                the same, every row weighted by 1 / propensity
    every.gram                [B, P, P] sum of phi phi' over all candidates that were offered
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import DataError, TrainingError
from steersman.core.features import Encoder
from steersman.core.shared import is_shared

Array = np.ndarray
Sums = Mapping[str, Array]

ROWS = 16_384
"""Rows looked at together."""

PRODUCTS = 2**23
"""Numbers of a matrix of products of columns that are looked at together: 64 MB."""

WIDEST = 4096
"""Most products of columns: their matrix of moments has the square of it."""

RIDGES = np.geomspace(1e-2, 1e6, 81)
"""What `likeliest_ridge` chooses from: steps of a quarter, closer than an optimum is told by any log."""

Ridge = float | Literal["auto"]
"""A penalty on the squared coefficients, in rows, or: the one under which the rewards are likeliest."""

LossName = Literal["mtr", "direct", "ips", "dr"]
Coefficients = Literal["auto", "disjoint", "joint"]

PARTS: dict[LossName, tuple[str, ...]] = {
    "direct": ("taken",),
    "mtr": ("weighted",),
    "ips": ("weighted", "every"),
    "dr": ("taken", "weighted", "every"),
}
"""Loss -> the sums that it is made of."""


@dataclass(frozen=True)
class Design:
    """What phi is.

    Attributes:
        own: disjoint: each of the named actions has coefficients of its own.
        rows, columns: 1 + columns of the context, 1 + columns of the candidates.
    """

    own: bool
    rows: int
    columns: int

    @classmethod
    def of(cls, encoder: Encoder, coefficients: Coefficients = "auto") -> Design:
        """Disjoint where candidates are named actions and nothing else, if nothing else is asked for.

        Raises:
            DataError: candidates have no columns, columns are too many, or disjoint ones are asked for and
                candidates are not named actions alone.
        """
        rows, columns = 1 + encoder.context_width, 1 + encoder.candidate_width
        named = bool(encoder.actions) and not encoder.candidate
        if columns == 1:
            raise DataError(
                "without a candidate's column one candidate can not be told from another",
                hint="name the actions of the problem, or give the candidates features",
            )
        if coefficients == "disjoint" and not named:
            raise DataError(
                "disjoint coefficients are of named actions without features, and these candidates are not",
                hint='coefficients = "joint" shares them between candidates by their features',
                field="coefficients",
            )
        made = cls(named and coefficients != "joint", rows, columns)
        if made.size > WIDEST:
            raise DataError(
                f"{rows} columns of the context times {columns} of the candidates are {rows * columns:,} products, "
                f"must be at most {WIDEST:,}",
                hint="use the learner dqn, whose net takes any number, or leave fields out",
            )
        return made

    @property
    def size(self) -> int:
        """P, length of phi."""
        return self.rows if self.own else self.rows * self.columns

    @property
    def blocks(self) -> int:
        """B, models with coefficients of their own."""
        return self.columns - 1 if self.own else 1

    def table(self, coefficients: Array, mean: float) -> Array:
        """[..., B, P] -> [..., 1 + F, 1 + A]: as the nets have them, with the mean reward back in the intercept."""
        beyond = coefficients.shape[:-2]
        if self.own:
            table = np.zeros((*beyond, self.rows, self.columns))
            table[..., 1:] = np.swapaxes(coefficients, -1, -2)
        else:
            table = coefficients.reshape(*beyond, self.rows, self.columns).copy()
        table[..., 0, 0] += mean
        return table


@dataclass(frozen=True, eq=False)
class Regression:
    """A ridge regression by its moments; blocks where named actions have coefficients of their own, else one.

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

    def likeliest_noise(self, ridge: float) -> float:
        """Variance of the targets around the model under which they are likeliest, if coefficients are normal.

        (sum t^2 - theta' sum phi t) / rows, with theta the coefficients, whose prior variance is the noise's over the
        ridge: unlike `variance` it does not go to 0 where there are as many coefficients as rows.
        Source: Bishop 2006, Pattern Recognition and Machine Learning, section 3.5.1, eq. 3.86 at its maximum.
        """
        explained = float((self.solve(ridge) * self.target).sum())
        return max(self.square - explained, 0.0) / self.weight

    def likeliest_ridge(self) -> float:
        """The ridge under which the targets are likeliest, of RIDGES, the noise being the likeliest of each.

        Source: Bishop 2006, eq. 3.86 and section 3.5.1: -2 log p = rows log noise^2 + sum log(1 + s / ridge) + a
        constant, s the eigenvalues of the gram.
        """
        values, vectors = np.linalg.eigh(self.gram)  # [B, P], [B, P, P]
        values = np.maximum(values, 0.0)[:, :, None]
        along = np.einsum("bpq,bp->bq", vectors, self.target)[:, :, None] ** 2
        explained = (along / (values + RIDGES)).sum(axis=(0, 1))
        noise = np.maximum(self.square - explained, 1e-12 * self.square) / self.weight
        unlikely = self.weight * np.log(np.maximum(noise, np.finfo(float).tiny))
        return float(RIDGES[np.argmin(unlikely + np.log1p(values / RIDGES).sum(axis=(0, 1)))])

    def _penalised(self, ridge: float) -> Array:
        return self.gram + ridge * np.eye(self.gram.shape[1])


def gather(batch: Batch, design: Design, loss: LossName, before: Sums | None = None) -> Iterator[tuple[int, Sums]]:
    """Rows done, and the sums over them and all before, part by part.

    Args:
        before: sums of other rows, which are left as they are; None: there are none.
    """
    sums = _empty(batch, design, loss) if before is None else {name: array.copy() for name, array in before.items()}
    for part in parts(len(batch)):
        context = np.ones((part.stop - part.start, design.rows))
        context[:, 1:] = batch.context[part]
        reward = batch.reward[part] - sums["origin"]
        sums["rows"] += len(reward)
        sums["reward"] += reward.sum()
        weights = {"taken": np.ones(len(reward)), "weighted": 1.0 / batch.propensity[part]}
        for name in set(PARTS[loss]) & set(weights):
            sums[f"{name}.square"] += weights[name] @ reward**2
            sums[f"{name}.weight"] += weights[name].sum()
        add = _add_own if design.own else _add_joint
        add(sums, batch, part, context, {name: (weight, weight * reward) for name, weight in weights.items()})
        yield part.stop, sums


def parts(n: int) -> Iterator[slice]:
    """Slices of n rows, at least two."""
    size = min(ROWS, -(-n // 2))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def mean_of(sums: Sums) -> float:
    """Mean reward of all rows."""
    return float(sums["origin"] + sums["reward"] / sums["rows"])


def regression(sums: Sums, loss: LossName, ridge: float) -> Regression:
    """What a loss regresses, rewards without their mean.

    `direct`: the reward of the candidate that was taken. `mtr`: the same, weighted by 1 / propensity, as if every
    candidate had been taken as often as the others; a row counts as one on average. `ips`: for every candidate the
    reward over the propensity if it was taken, else 0. `dr`: for every candidate what the direct model says, and for
    the taken one its surprise over the propensity. Of the last two only the coefficients mean something.

    All of them are sums of phi phi' and phi r over the taken or all candidates: with theta of the direct model, the
    targets of `dr` add up to every.gram theta + sum phi (r - phi' theta) / propensity.
    Source: Bietti, Agarwal and Langford 2021, arXiv:1802.04064, section 3.2.
    """
    weighted = _centred(sums, "weighted") if "weighted.gram" in sums else None
    if loss == "direct" or weighted is None:
        return _centred(sums, "taken")
    if loss == "mtr":
        scale = float(sums["rows"]) / weighted.weight
        return Regression(
            scale * weighted.gram, scale * weighted.target, scale * weighted.square, scale * weighted.weight
        )
    every, target = sums["every.gram"], weighted.target
    if loss == "dr":
        model = _centred(sums, "taken").solve(ridge)[:, :, None]  # [B, P, 1]
        target = target + ((every - weighted.gram) @ model)[:, :, 0]
    return Regression(every, target, weighted.square, weighted.weight)


def ridge_of(sums: Sums, loss: LossName, asked: Ridge) -> float:
    """What is asked for; of `auto` the one under which the rewards of the taken candidates are likeliest.

    They count by 1 / propensity, as in `mtr`, unless the loss is `direct`.
    """
    if asked != "auto":
        return asked
    return regression(sums, "direct" if loss == "direct" else "mtr", 1.0).likeliest_ridge()


def squared_error(sums: Sums, loss: LossName, coefficients: Array) -> float:
    """What the coefficients leave of the rewards of the taken candidates, mean square.

    Weighted by 1 / propensity, an estimate of the error over all candidates, unless the loss is `direct`.
    """
    return _centred(sums, "taken" if loss == "direct" else "weighted").variance(coefficients)


def _empty(batch: Batch, design: Design, loss: LossName) -> dict[str, Array]:
    sums = {"rows": np.zeros(()), "origin": np.array(batch.reward.mean()), "reward": np.zeros(())}
    for name in PARTS[loss]:
        sums[f"{name}.gram"] = np.zeros((design.blocks, design.size, design.size))
        if name != "every":
            sums[f"{name}.target"] = np.zeros((design.blocks, design.size))
            sums |= {f"{name}.square": np.zeros(()), f"{name}.weight": np.zeros(())}
    return sums


def _centred(sums: Sums, name: str) -> Regression:
    """Of rewards without their mean: phi begins with 1, so the gram's first column is what a constant reward adds."""
    gram, target = sums[f"{name}.gram"], sums[f"{name}.target"]
    square, weight = float(sums[f"{name}.square"]), float(sums[f"{name}.weight"])
    shift = float(sums["reward"] / sums["rows"])
    square += shift * (shift * weight - 2.0 * float(target[:, 0].sum()))
    return Regression(gram, target - shift * gram[:, :, 0], square, weight)


Weights = Mapping[str, tuple[Array, Array]]
"""Name of the sums -> [n] weights of the rows, and these times the rewards."""


def _add_own(sums: Sums, batch: Batch, part: slice, context: Array, weights: Weights) -> None:
    """Rows are put in the order of their actions; those of one are then a slice."""
    candidates, mask = batch.candidates[part], batch.mask[part]
    shared = is_shared(candidates)
    name = candidates[0].argmax(axis=1) if shared else candidates.argmax(axis=2)  # [K] or [n, K]
    action = batch.action[part]
    taken = name[action] if shared else name[np.arange(len(action)), action]
    order = np.argsort(taken, kind="stable")
    ends = np.searchsorted(taken[order], np.arange(candidates.shape[2] + 1)).tolist()
    sorted_context = context[order]
    for kind in (kind for kind in weights if f"{kind}.gram" in sums):
        weight, product = (array[order] for array in weights[kind])
        scaled = sorted_context if kind == "taken" else sorted_context * np.sqrt(weight)[:, None]
        for block, rows in enumerate(map(slice, ends[:-1], ends[1:])):
            sums[f"{kind}.gram"][block] += scaled[rows].T @ scaled[rows]
            sums[f"{kind}.target"][block] += product[rows] @ sorted_context[rows]
    if "every.gram" not in sums:
        return
    if shared and mask.all():
        sums["every.gram"][name] += context.T @ context
        return
    row, place = np.nonzero(mask)
    offered = name[place] if shared else name[row, place]
    for block in range(candidates.shape[2]):
        mine = context[row[offered == block]]
        sums["every.gram"][block] += mine.T @ mine


def _add_joint(sums: Sums, batch: Batch, part: slice, context: Array, weights: Weights) -> None:
    """phi phi' is [1, x] [1, x]' times [1, c] [1, c]', both symmetric: products of two halves add up to all of them."""
    x, c = np.triu_indices(context.shape[1]), np.triu_indices(1 + batch.candidates.shape[2])
    kinds = [kind for kind in ("taken", "weighted", "every") if f"{kind}.gram" in sums]
    halves = np.zeros((len(kinds), len(x[0]), len(c[0])))
    size = max(PRODUCTS // len(x[0]), 32)
    for start in range(0, len(context), size):
        here = slice(start, start + size)
        rows = slice(part.start + start, min(part.start + start + size, part.stop))
        some = context[here]
        column = _with_one(batch.candidates[rows][np.arange(len(some)), batch.action[rows]])  # [n, C]
        squares = column[:, c[0]] * column[:, c[1]]
        pairs = some[:, x[0]] * some[:, x[1]]
        for half, kind in zip(halves, kinds, strict=True):
            if kind == "every":
                half += pairs.T @ _offered(batch, rows)[:, c[0], c[1]]
                continue
            weight, product = (array[here] for array in weights[kind])
            half += pairs.T @ (squares * weight[:, None])
            sums[f"{kind}.target"][0] += (some.T @ (column * product[:, None])).ravel()
    for half, kind in zip(halves, kinds, strict=True):
        sums[f"{kind}.gram"][0] += _unfolded(half, x, c)


def _with_one(candidates: Array) -> Array:
    """[..., A] f32 -> [..., 1 + A] f64, a 1 in front."""
    columns = np.ones((*candidates.shape[:-1], 1 + candidates.shape[-1]))
    columns[..., 1:] = candidates
    return columns


def _offered(batch: Batch, rows: slice) -> Array:
    """[n, C, C], sum of [1, c] [1, c]' over the candidates of a row."""
    candidates, mask = batch.candidates[rows], batch.mask[rows]
    if is_shared(candidates) and mask.all():
        columns = _with_one(candidates[0])
        return np.broadcast_to(columns.T @ columns, (len(mask), *[columns.shape[1]] * 2))
    columns = np.where(mask[:, :, None], _with_one(candidates), 0.0)
    return columns.transpose(0, 2, 1) @ columns


def _unfolded(half: Array, x: tuple[Array, ...], c: tuple[Array, ...]) -> Array:
    """[P, P] from the products [R (R + 1) / 2, C (C + 1) / 2] of the upper halves of both factors."""
    rows, columns = int(x[0][-1]) + 1, int(c[0][-1]) + 1
    wide = np.empty((rows, rows, half.shape[1]))
    wide[x[0], x[1]] = wide[x[1], x[0]] = half
    full = np.empty((rows, rows, columns, columns))
    full[:, :, c[0], c[1]] = full[:, :, c[1], c[0]] = wide
    return full.transpose(0, 2, 1, 3).reshape(rows * columns, rows * columns)
