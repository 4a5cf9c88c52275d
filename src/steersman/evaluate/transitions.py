"""Transitions: what each logged row tells of the steps after it, and what usually follows a context and an action."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import DataError, SupportError
from steersman.core.features import EDGE, LIMIT, BoxCox, Continuous, Probability, Quantile, Transform, placed
from steersman.evaluate.evidence import Paths, whole

Array = np.ndarray

FLOOR = 0.02
"""Least relevance of a column, in units of that of the most relevant one."""

SQUARES = 12
"""Squares and products are regressors as long as no more columns than this move."""

PRIOR_ROWS = 10.0
"""The ridge penalty: what an action does is shrunk towards what all do, as if seen in this many rows more."""

GRADIENTS = 1000
"""Rows of an action at which gradients of squares and products are looked at."""

WIDE = 32
"""Directions in which contexts are compared; more columns than this are projected."""


@dataclass(frozen=True, eq=False)
class Transitions:
    """The rows of a log as one step of somebody else's episode may use them.

    Attributes:
        batch: the log.
        outcomes: [N, M] f64, what is summed.
        horizon: steps after which an episode is over.
        paths: which rows form episodes.
        usable: [N] bool, it is known whether the row ended its episode, and if not, what came next.
        then: [N] i64, row of the next step; the row itself if none was seen.
        closed: [E] bool, the return of the episode is known.
        unit: [N] i64 in [0, units).
        units: U.
        discount: the largest of a usable row that goes on.
        moved: [D] columns with numbers that vary.
        bounds: [2, D] the smallest and the largest number that their encoder gives.
        missing: [D] their missing indicators.
        kept: [F'] all columns that vary.
    """

    batch: Batch
    outcomes: Array
    horizon: int
    paths: Paths
    usable: Array
    then: Array
    closed: Array
    unit: Array
    units: int
    discount: float
    moved: Array
    bounds: Array
    missing: Array
    kept: Array

    @classmethod
    def of(cls, batch: Batch, outcomes: Array, horizon: int) -> Transitions:
        """See `stitched.stitched` for what makes a row usable.

        Raises:
            DataError: an outcome is not finite, no episode is over, or one is longer than the horizon.
            SupportError: no usable row has a next one.
        """
        if outcomes.ndim != 2 or len(outcomes) != len(batch) or not np.isfinite(outcomes).all():
            raise DataError(
                f"outcomes are {list(outcomes.shape)} for {len(batch)} rows, or not finite", field="outcomes"
            )
        over, _ = whole(batch, horizon)
        paths = Paths.of(batch)
        usable = _usable(batch, paths.step(), horizon)
        on = usable & (batch.next >= 0)
        if not on.any():
            raise SupportError(
                f"none of the {len(batch)} rows has a next step: there is nothing to stitch",
                hint="one decision an episode needs no stitching: use dr",
            )
        units, unit = np.unique(batch.unit, return_inverse=True)
        moved, bounds = _moved(batch)
        return cls(
            batch=batch,
            outcomes=outcomes,
            horizon=horizon,
            paths=paths,
            usable=usable,
            then=np.where(batch.next >= 0, batch.next, np.arange(len(batch))),
            closed=over[paths.steps[0]],
            unit=unit,
            units=len(units),
            discount=float(batch.discount[on].max()),
            moved=moved,
            bounds=bounds,
            missing=moved + 1,
            kept=np.flatnonzero(np.ptp(batch.context, axis=0) > 0),
        )

    @property
    def starts(self) -> Array:
        """[E] the rows at which episodes start."""
        return self.paths.steps[0]

    def baseline(self, samples: Array) -> Array:
        """[S, M] mean return of the closed episodes in each sample [S, U] of the units.

        Raises:
            DataError: a sample has none.
        """
        among = samples[:, self.unit[self.starts]] & self.closed  # [S, E]
        counts = among.sum(axis=1, keepdims=True)
        if not counts.all():
            raise DataError(
                f"a random half of the {self.units} units has no episode whose end is known",
                hint="log more episodes to their end",
            )
        rewards = self.paths.factor[:, None] * self.outcomes
        returns = np.column_stack([self.paths.per_episode(column) for column in rewards.T])
        return (among @ returns) / counts

    def least(self, steps: int) -> Array:
        """[M] the least that so many remaining steps may return: at least one outcome is still to come."""
        smallest = self.outcomes.min(axis=0)
        return smallest * np.where(smallest < 0, self._sum(steps), 1.0)

    def most(self, steps: int) -> Array:
        """[M] the most that so many remaining steps may return."""
        largest = self.outcomes.max(axis=0)
        return largest * np.where(largest > 0, self._sum(steps), 1.0)

    def _sum(self, steps: int) -> float:
        return float(np.sum(self.discount ** np.arange(steps)))

    def context(self, rows: Array) -> Array:
        """[R, F] f64."""
        return self.batch.context[rows].astype(np.float64)

    def given(self, rows: Array) -> Array:
        """[R, D] bool, whether each moved number of the rows is there."""
        return self.batch.context[np.ix_(rows, self.missing)] == 0


class Drift:
    """What usually follows a context and an action: closed form, one ridge regression an action.

    Attributes:
        persistence: [D] in [0, 1], how much of its number a moved column keeps.
        surprise: [2, N, D] what a row adds to the kept part of its numbers: beyond the regression m; and with m = 0.
        bonus: [2, N, M] what a row's outcomes are beyond their regression g; and with g = 0.
        points: [N, <= WIDE] f32, the contexts where distances are measured, widest direction first.
    """

    def __init__(self, log: Transitions, rng: np.random.Generator) -> None:
        """Fit on the usable rows; `rng` mixes the columns if they are too many."""
        self._log = log
        self._mean = log.batch.context[:, log.kept].mean(axis=0, dtype=np.float64)
        self._std = log.batch.context[:, log.kept].std(axis=0, dtype=np.float64)
        place = np.searchsorted(log.kept, log.moved)
        self._squared = place if len(place) <= SQUARES else place[:0]
        self._pairs = np.triu_indices(len(self._squared))
        rows = np.flatnonzero(log.usable & (log.batch.next >= 0))
        change, both = self._change(rows)
        self._coefficients, size = self._fit(rows, change, both)
        self._worth = self._fit_worth()
        relevance = np.maximum(size / size.max(), FLOOR) if size.any() else np.ones(len(size))
        self._turn = relevance[:, None] * self._directions(relevance, rng)
        self.points = self.point(log.batch.context)
        self.surprise = np.zeros((2, len(log.batch), len(log.moved)))
        self.surprise[:, rows] = change
        for action in np.unique(log.batch.action[rows]):
            mine = rows[log.batch.action[rows] == action]
            self.surprise[0, mine] -= self.usual(log.context(mine), action)
        self.bonus = np.stack([log.outcomes, log.outcomes])
        for action in np.unique(log.batch.action):
            mine = np.flatnonzero(log.batch.action == action)
            self.bonus[0, mine] -= self.earned(log.context(mine), action)

    def usual(self, context: Array, action: int) -> Array:
        """[M, D] m(s, a): the mean change of the moved columns [M, F], beyond what they keep."""
        return self._regressors(self._standard(context)) @ self._coefficients[action]

    def earned(self, context: Array, action: int) -> Array:
        """[M', M] g(s, a): the mean outcomes of contexts [M', F]."""
        return self._regressors(self._standard(context)) @ self._earnings[action]

    def worth(self, context: Array) -> Array:
        """[M] what is still to come from contexts [M, F], up to what all share: good for putting them in order."""
        return self._regressors(self._standard(context)) @ self._worth

    def point(self, context: Array) -> Array:
        """[M, <= WIDE] f32, where distances of contexts [M, F] are measured."""
        return (self._standard(context) @ self._turn).astype(np.float32)

    def _change(self, rows: Array) -> tuple[Array, Array]:
        """[R, D] next numbers less what is kept of these, and whether both are there. Sets `persistence`."""
        log, then = self._log, self._log.then[rows]
        before, after = log.batch.context[np.ix_(rows, log.moved)], log.batch.context[np.ix_(then, log.moved)]
        both = log.given(rows) & log.given(then)
        count = np.maximum(both.sum(axis=0), 1)
        centred = (before - np.sum(before * both, axis=0, dtype=np.float64) / count) * both
        spread = np.sum(centred**2, axis=0)
        slope = np.sum(centred * after, axis=0) / np.where(spread > 0, spread, 1.0)
        self.persistence = np.clip(slope, 0.0, 1.0)
        return after - self.persistence * before, both

    def _fit(self, rows: Array, change: Array, both: Array) -> tuple[Array, Array]:
        """Coefficients [K, P, D] of the change; and [F'] how much all that follows depends on each kept column."""
        log = self._log
        usual = np.sum(change * both, axis=0) / np.maximum(both.sum(axis=0), 1)
        taken = np.setdiff1d(log.kept, log.moved)
        after = log.batch.context[np.ix_(log.then[rows], taken)]
        coefficients, effect = self._regress(rows, np.column_stack([np.where(both, change, usual), after]))
        ends = np.flatnonzero(log.usable)
        found, added = self._regress(ends, np.column_stack([log.batch.over[ends], log.outcomes[ends]]))
        effect += added
        self._earnings = np.where(np.ptp(log.outcomes[ends], axis=0) > 0, found[:, :, 1:], 0.0)
        return coefficients[:, :, : len(log.moved)], np.sqrt(np.maximum(effect, 0.0))

    def _fit_worth(self) -> Array:
        """[P] coefficients of what the rest of a logged episode returned, of the first outcome, beyond its step's mean.

        Rests that are not whole count as far as they were seen. The sign is such that the largest is positive: the
        order is the same if rewards are costs.
        """
        log = self._log
        rest = log.outcomes[:, 0].copy()
        for rows in reversed(log.paths.steps):
            on = rows[log.batch.next[rows] >= 0]
            rest[on] += log.batch.discount[on] * rest[log.batch.next[on]]
        for rows in log.paths.steps:
            rest[rows] -= rest[rows].mean()
        x = self._regressors(self._standard(log.batch.context))
        found = np.linalg.solve(x.T @ x + PRIOR_ROWS * np.eye(x.shape[1]), x.T @ rest)
        return found * np.sign(found[np.abs(found).argmax()])

    def _regress(self, rows: Array, outputs: Array) -> tuple[Array, Array]:
        """Coefficients [K, P, O] of outputs [R, O], and the mean square effect [F'] of each kept column on them.

        Outputs count in standard deviations. What chance would give is taken off the effects: with many columns it
        would hide those that matter.
        """
        scale = outputs.std(axis=0)
        scale = np.where(scale > 1e-9 * np.abs(outputs).max(axis=0), scale, np.inf)
        x = self._regressors(self._standard(self._log.context(rows)))
        penalty = PRIOR_ROWS * np.eye(x.shape[1])
        common = np.linalg.solve(x.T @ x + penalty, x.T @ outputs)
        rest = outputs - x @ common
        coefficients = np.repeat(common[None], self._log.batch.mask.shape[1], axis=0)
        effect = np.zeros(len(self._log.kept))
        taken = self._log.batch.action[rows]
        for action in np.unique(taken):
            mine = np.flatnonzero(taken == action)
            spread = np.linalg.inv(x[mine].T @ x[mine] + penalty)
            own = spread @ (x[mine].T @ rest[mine])
            noise = float(np.mean(((rest[mine] - x[mine] @ own) / scale) ** 2, axis=0).sum())
            coefficients[action] += own
            effect += len(mine) / len(rows) * self._effect(x[mine], coefficients[action] / scale, spread * noise)
        return coefficients, effect

    def _effect(self, x: Array, coefficients: Array, noise: Array) -> Array:
        """[F'] mean square gradient of the regression along each kept column, less its expected error.

        Args:
            x: [R, P] regressors.
            coefficients: [P, O].
            noise: [P, P], covariance of the coefficients, summed over outputs.
        """
        columns = len(self._log.kept)
        effect = np.sum(coefficients[1 : 1 + columns] ** 2, axis=1) - np.diag(noise)[1 : 1 + columns]
        left, right = self._pairs
        square = x[:: max(1, len(x) // GRADIENTS), 1 + self._squared]
        for j, column in enumerate(self._squared):
            pairs = np.flatnonzero((left == j) | (right == j))
            slope = square[:, right[pairs]] * (left[pairs] == j) + square[:, left[pairs]] * (right[pairs] == j)
            slope = np.column_stack([np.ones(len(square)), slope])  # gradient of the regressors that have the column
            gram = slope.T @ slope / len(slope)
            which = np.concatenate([[1 + column], 1 + columns + pairs])
            own = coefficients[which]
            effect[column] = np.sum(own * (gram @ own)) - np.sum(gram * noise[np.ix_(which, which)])
        return effect

    def _directions(self, relevance: Array, rng: np.random.Generator) -> Array:
        """[F', <= WIDE] from scaled columns to their principal directions, widest first: distances stay.

        With more than WIDE columns the narrow directions are mixed at random into as many as are left, which keeps
        their share of a squared distance within some 35% (two standard deviations: 70%).
        Source: Johnson and Lindenstrauss 1984.
        """
        scaled = self._standard(self._log.batch.context) * relevance
        directions = np.linalg.eigh(scaled.T @ scaled)[1][:, ::-1]
        if len(directions) <= WIDE:
            return directions
        half = WIDE // 2
        mixed = rng.standard_normal((len(directions) - half, WIDE - half)) / math.sqrt(WIDE - half)
        return np.concatenate([directions[:, :half], directions[:, half:] @ mixed], axis=1)

    def _standard(self, context: Array) -> Array:
        """[M, F'] the kept columns of [M, F], in standard deviations."""
        return (context[:, self._log.kept] - self._mean) / self._std

    def _regressors(self, standard: Array) -> Array:
        square = standard[:, self._squared]
        left, right = self._pairs
        return np.concatenate([np.ones((len(standard), 1)), standard, square[:, left] * square[:, right]], axis=1)


def _usable(batch: Batch, step: Array, horizon: int) -> Array:
    """[N] bool, rows that say whether an episode goes on after them, and to where."""
    seen = batch.next >= 0
    still_open = ~seen & ~(batch.over & ~batch.begun)
    cut = np.bincount(step[still_open], minlength=horizon) > 0
    cut &= np.bincount(step[seen], minlength=horizon) == 0
    cut[horizon - 1] = True
    return ~still_open & ~cut[step]


def _moved(batch: Batch) -> tuple[Array, Array]:
    """Columns [D] with numbers that vary where they are not missing, and the range [2, D] that their encoder gives."""
    moved, ranges = [], []
    for found in placed(batch.encoder.context):
        bounds = _RANGE.get(type(found.transform))
        if bounds is None:
            continue
        values = batch.context[batch.context[:, found.missing_at] == 0, found.at]
        if values.size and np.ptp(values) > 0:
            moved.append(found.at)
            ranges.append(bounds)
    return np.array(moved, dtype=np.int64), np.array(ranges).reshape(-1, 2).T


_FARTHEST_LOGIT = math.log((1 - EDGE) / EDGE)
_RANGE: dict[type[Transform], tuple[float, float]] = {
    Continuous: (-LIMIT, LIMIT),
    BoxCox: (-LIMIT, LIMIT),
    Probability: (-_FARTHEST_LOGIT, _FARTHEST_LOGIT),
    Quantile: (0.0, 1.0),
}
