"""Model-free Monte Carlo: the target's episodes, stitched from logged transitions. For contexts with numbers.

A particle starts where some episode started, draws an action from the target, finds the logged row of that action with
the nearest context, earns as that row did, and moves as it moved; until it is over. The mean return of particles
estimates the value of the target.

    next number  = p s + m(s, a) + (s'_i - p s_i - m(s_i, a))       i: the row matched to (s, a), s'_i: its next context
    next text    = that of s'_i, and so is every missing indicator: a context of both stays one
    reward       = g(s, a) + r_i - g(s_i, a), within what was logged

Particles are spread evenly, not each by its own chance: their starts over what starts are worth, their draws of an
action over the particles that are worth about as much, and those that meet one context of several rows over these rows.
Each still has the right law, and their mean errs less than that of as many on their own.

p in [0, 1] is the persistence of the column (1: it moves by the row's difference; 0: it is drawn anew); m and g are
ridge regressions for half of the particles and 0 for the others: where these disagree, matches are too far, and the
interval says so. Far is measured in standard deviations, each column scaled by how much what follows depends on it.

Sources: Fonteneau, Murphy, Wehenkel and Ernst 2010, "Model-free Monte Carlo-like policy evaluation" (AISTATS), and
2013, "Batch mode reinforcement learning based on the synthesis of artificial trajectories" (Annals of OR 208). For the
even draws L'Ecuyer, Lecot and Tuffin 2008, "A randomized quasi-Monte Carlo simulation method for Markov chains"
(Operations Research 56).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import DataError, SupportError
from steersman.core.shared import all_alike
from steersman.evaluate.evidence import Stitch
from steersman.evaluate.nearest import NONE, Nearest, alike
from steersman.evaluate.transitions import Drift, Transitions

Array = np.ndarray
Behave = Callable[[Array], Array]

HALVES = 10
"""B, random halves of the units that the interval rests on."""

PARTICLES = 100
"""On a half of the units, of each kind."""

LEAST_UNITS = 10
"""Fewer units than this have no half worth the name."""

MARGIN = 0.1
"""Share of a number's logged range by which a particle may leave it and still be supported."""

HELD_OUT = 4000
"""Logged rows that say how far a match may be."""

SAME = 1e-3
"""Distances below this are rounding."""


def stitched(
    batch: Batch, behave: Behave, outcomes: Array, *, horizon: int, seed: int, particles: int = PARTICLES
) -> tuple[Stitch, ...]:
    """Value of a target policy by model-free Monte Carlo: one Stitch a column of `outcomes`, by the same particles.

    What a row is good for:
    - A row after which its episode is over, terminated or at a limit of time, gives its reward and ends the particle.
    - A row at the last step of the horizon was cut off there, terminated or not, so its end tells nothing. All rows of
      that step give rewards only, to particles at their last step. So do those of any other step where episodes are
      open and none goes on.
    - An open row elsewhere (not terminated, next not seen) does likewise. As it would have been seen to terminate, the
      chance of termination comes out too large: on average by a factor of 1 + open rows / usable rows.

    Outside the support is a particle with a number beyond its logged range (and MARGIN), a match farther off than any
    held-out logged row is from half of the log, or an action that was never logged. The last ends the particle, and
    `value` counts the worst for what it misses. The worst that may follow is the smallest logged reward: at every
    remaining step if that is negative, else once, for then an early end is worse. The best is the largest likewise.
    Both are discounted by the largest discount.

    The context must tell all that matters of the past. Time grows with particles, steps, and less than linearly with
    rows: 1.4 s of CPU for 30,000 rows of 4 numbers and 200 steps, 20 s if they have 300 columns.

    Args:
        behave: [M, F] f32 encoded contexts -> [M, K] probabilities of the target for the batch's candidates.
        horizon: steps after which an episode is over, at least 2 and at least the longest logged one.
        seed: of halves, particles and ties.
        outcomes: [N, M] f64, what is summed: the reward, metrics; finite.
        particles: of each kind on a half of the units, at least 2; on all units there are twice as many.
    Raises:
        SupportError: the actions are numbers or no fixed set of candidates, or no row has a next one.
        DataError: fewer than LEAST_UNITS units; no episode is over, in the log or in a half; an episode is longer than
            the horizon; `behave` gives no probabilities; an outcome is not finite.
    """
    _check(batch, horizon, particles)
    rng = np.random.default_rng(seed)
    log = Transitions.of(batch, outcomes, horizon)
    if log.units < LEAST_UNITS:
        raise DataError(
            f"the log has {log.units} units, stitched episodes need at least {LEAST_UNITS}",
            hint="log more units: the interval rests on halves of them",
        )
    samples = _samples(log.units, rng)
    baseline = log.baseline(samples)
    walk = _Walk(log, samples, behave, particles, rng)
    walk.run()
    return tuple(_told(walk, baseline[:, m], m) for m in range(outcomes.shape[1]))


def _told(walk: _Walk, logged: Array, column: int) -> Stitch:
    value, worst, best = (returns[:, :, column] for returns in walk.means())  # each [1 + B, 2]
    return Stitch(
        value=float(value[0].mean()),
        worst=float(worst[0].mean()),
        best=float(best[0].mean()),
        worst_moved=worst[1:] - worst[0].mean(),
        best_moved=best[1:] - best[0].mean(),
        logged=float(logged[0]),
        logged_moved=logged[1:] - logged[0],
        ess=walk.ess,
        outside=walk.out_steps / walk.steps,
        left=float(walk.left[walk.full].mean()),
        distance=walk.distance / max(float(walk.used.sum()), 1.0),
    )


def _samples(units: int, rng: np.random.Generator) -> Array:
    """[1 + B, U] bool: all units, then random halves of them."""
    samples = np.zeros((1 + HALVES, units), dtype=bool)
    samples[0] = True
    for half in samples[1:]:
        half[rng.permutation(units)[: units // 2]] = True
    return samples


def _spaced(size: int) -> Array:
    """[size] van der Corput's sequence, the bits of 0, 1, 2, ... mirrored at the point: any stretch of it is even."""
    bits = np.arange(size)[:, None] >> np.arange(size.bit_length()) & 1
    return bits @ 0.5 ** np.arange(1, size.bit_length() + 1)


class _Walk:
    """All particles of all samples, a step at a time: a group of each kind, with m and g and without, on each sample.

    Groups of halves have P particles, those of all units 2 P.

    Attributes:
        log: what they walk on.
        full: [P'] bool, particles on all units.
        left: [P'] bool, those that were ever outside the support.
        steps, out_steps: made by the full ones, and outside the support.
        used: [U] how often rows of a unit were matched by the full ones.
        distance: of these matches, summed.
    """

    def __init__(
        self, log: Transitions, samples: Array, behave: Behave, particles: int, rng: np.random.Generator
    ) -> None:
        self.log, self._behave, self._rng = log, behave, rng
        self._drift = Drift(log, rng)
        member = samples[:, log.unit]
        rows = np.flatnonzero(log.usable)
        self._going = self._places(rows, member[:, rows])
        self._ending = self._places(np.arange(len(log.batch)), member)
        self._low, self._high = self._box(member)
        self._range = log.outcomes.min(axis=0), log.outcomes.max(axis=0)
        self._reach = self._held_out(rows[~member[1, rows]])
        groups = np.arange(1 + HALVES).repeat(2)
        sizes = np.where(groups == 0, 2 * particles, particles)
        self._sample = groups.repeat(sizes)
        self._group = np.arange(len(groups)).repeat(sizes)
        self._spaced = _spaced(2 * particles)
        self._plain = (np.arange(len(groups)) % 2).repeat(sizes)  # 1: m = g = 0
        starts = [log.starts[samples[group, log.unit[log.starts]]] for group in groups]
        self._start = np.concatenate([self._spread(mine, size) for mine, size in zip(starts, sizes, strict=True)])
        size = len(self._start)
        self._factor = np.ones(size)
        self._returned, self._worst, self._best = (np.zeros((size, log.outcomes.shape[1])) for _ in range(3))
        self.full = self._sample == 0
        self.left = np.zeros(size, dtype=bool)
        self.used = np.zeros(log.units)
        self.steps = self.out_steps = 0
        self.distance = 0.0

    def run(self) -> None:
        """Walk until every particle is over."""
        ids, context = np.arange(len(self._start)), self.log.context(self._start)
        for left in range(self.log.horizon, 0, -1):
            ids, context = self._step(left, ids, context)
            if ids.size == 0:
                return

    def means(self) -> tuple[Array, Array, Array]:
        """[1 + B, 2, M] mean returns of each sample and kind: as matched; with the worst, the best, when outside."""
        left = self.left[:, None]
        each = self._returned, np.where(left, self._worst, self._returned), np.where(left, self._best, self._returned)
        first = np.flatnonzero(np.diff(self._group, prepend=-1))
        size = np.bincount(self._group)[:, None]
        shape = 1 + HALVES, 2, self._returned.shape[1]
        value, worst, best = ((np.add.reduceat(returns, first) / size).reshape(shape) for returns in each)
        return value, worst, best

    @property
    def ess(self) -> float:
        """Effective number of the units whose rows were matched."""
        return float(self.used.sum() ** 2 / (self.used @ self.used)) if self.used.any() else 0.0

    def _step(self, left: int, ids: Array, context: Array) -> tuple[Array, Array]:
        """One step of particles `ids`, with `left` to go, this one included. Gives those that go on, and where to."""
        log, sample, points = self.log, self._sample[ids], self._drift.point(context)
        action = self._draw(context, self._even(ids, self._drift.worth(context)))
        row, distance = self._match(points, action, self._group[ids], self._going if left > 1 else self._ending)
        out = (distance > self._reach[action]) | self._outside(context, sample)
        self._leave(ids[out], left)
        self._count(ids, row, distance, out)
        stuck = row == NONE
        self._returned[ids[stuck]] += self._factor[ids[stuck], None] * log.least(left)
        ids, context, action, row = ids[~stuck], context[~stuck], action[~stuck], row[~stuck]
        self._returned[ids] += self._factor[ids, None] * self._earn(context, action, row, self._plain[ids])
        self._factor[ids] *= log.batch.discount[row]
        on = ~log.batch.over[row] & (left > 1)
        ids = ids[on]
        return ids, self._move(context[on], action[on], row[on], self._plain[ids])

    def _spread(self, starts: Array, particles: int) -> Array:
        """[P] of the starts [E], evenly over what they are worth; each as often as the others, or one time more."""
        order = starts[np.argsort(self._drift.worth(self.log.context(starts)), kind="stable")]
        at = ((np.arange(particles) + self._rng.random()) * (len(order) / particles)).astype(np.int64)
        return order[np.minimum(at, len(order) - 1)]  # min: rounding only

    def _even(self, ids: Array, worth: Array) -> Array:
        """[M] in [0, 1), uniform each; in a group, those of particles with neighbouring worth [M] are far apart."""
        order = np.lexsort((worth, self._group[ids]))
        group = self._group[ids[order]]
        first = np.searchsorted(group, np.arange(2 * (1 + HALVES)))
        even = np.empty(len(ids))
        even[order] = self._spaced[np.arange(len(ids)) - first[group]] + self._rng.random(len(first))[group]
        return even % 1.0

    def _draw(self, context: Array, even: Array) -> Array:
        """[M] actions of the target."""
        chance = np.asarray(self._behave(context.astype(np.float32)), dtype=np.float64)
        want = (len(context), self.log.batch.mask.shape[1])
        if chance.shape != want:
            raise DataError(f"the target gives {list(chance.shape)}, must be {list(want)}", field="target")
        bad = np.flatnonzero(~((chance >= 0).all(axis=1) & (np.abs(chance.sum(axis=1) - 1.0) <= 1e-6)))
        if bad.size:
            raise DataError(f"the target gives {chance[bad[0]]}, no probabilities", field="target")
        total = chance.cumsum(axis=1)
        return (even[:, None] * total[:, -1:] >= total).sum(axis=1)

    def _match(self, points: Array, action: Array, group: Array, places: dict[int, Nearest]) -> tuple[Array, Array]:
        """[M] the matched rows, NONE without any; and how far they are, infinitely without any."""
        row = np.full(len(points), NONE)
        for each in np.unique(action):
            mine = np.flatnonzero(action == each)
            if (near := places.get(int(each))) is not None:
                row[mine] = near.find(points[mine], group[mine] // 2, group[mine], self._rng)
        apart = np.linalg.norm(points - self._drift.points[row], axis=1)
        return row, np.where(row == NONE, np.inf, apart)

    def _earn(self, context: Array, action: Array, row: Array, plain: Array) -> Array:
        """[M, M'] the outcomes of a step, within what was logged."""
        found = self._drift.bonus[plain, row]
        for each in np.unique(action):
            mine = np.flatnonzero((action == each) & (plain == 0))
            found[mine] += self._drift.earned(context[mine], int(each))
        return np.clip(found, *self._range)

    def _move(self, context: Array, action: Array, row: Array, plain: Array) -> Array:
        """[M, F] the next contexts."""
        log, then = self.log, self.log.then[row]
        number = self._drift.persistence * context[:, log.moved] + self._drift.surprise[plain, row]
        for each in np.unique(action):
            mine = np.flatnonzero((action == each) & (plain == 0))
            number[mine] += self._drift.usual(context[mine], int(each))
        there = (context[:, log.missing] == 0) & log.given(row) & log.given(then)
        after = log.context(then)
        after[:, log.moved] = np.where(there, np.clip(number, *log.bounds), after[:, log.moved])
        return after

    def _leave(self, ids: Array, left: int) -> None:
        """Those that are outside for the first time keep the worst and the best that may follow."""
        first = ids[~self.left[ids]]
        self._worst[first] = self._returned[first] + self._factor[first, None] * self.log.least(left)
        self._best[first] = self._returned[first] + self._factor[first, None] * self.log.most(left)
        self.left[first] = True

    def _count(self, ids: Array, row: Array, distance: Array, out: Array) -> None:
        full = self.full[ids]
        self.steps += int(full.sum())
        self.out_steps += int(out[full].sum())
        matched = full & (row != NONE)
        np.add.at(self.used, self.log.unit[row[matched]], 1.0)
        self.distance += float(distance[matched].sum())

    def _outside(self, context: Array, sample: Array) -> Array:
        """[M] bool: a number that is there is beyond its logged range."""
        number = context[:, self.log.moved]
        beyond = (number < self._low[sample]) | (number > self._high[sample])
        return np.any(beyond & (context[:, self.log.missing] == 0), axis=1)

    def _box(self, member: Array) -> tuple[Array, Array]:
        """[S, D] the range of each moved number over the rows of each sample [S, N], with its margin."""
        every = np.arange(len(self.log.batch))
        number, there = self.log.batch.context[:, self.log.moved], self.log.given(every)
        low = np.stack([np.where(there[mine], number[mine], np.inf).min(axis=0, initial=np.inf) for mine in member])
        high = np.stack([np.where(there[mine], number[mine], -np.inf).max(axis=0, initial=-np.inf) for mine in member])
        margin = MARGIN * np.maximum(high - low, 0.0)
        return low - margin, high + margin

    def _places(self, rows: Array, member: Array) -> dict[int, Nearest]:
        """Where to look for each logged action among the rows [R], with their membership [S, R]."""
        rest = np.where(self.log.batch.over[rows], 0.0, self._drift.worth(self.log.context(self.log.then[rows])))
        order = np.argsort(self.log.outcomes[rows, 0] + rest, kind="stable")  # evenly over what rows bring
        rows, member = rows[order], member[:, order]
        action, same = self.log.batch.action[rows], alike(self.log.batch.context[rows])
        found = {}
        for each in np.unique(action):
            mine = np.flatnonzero(action == each)
            found[int(each)] = Nearest(rows[mine], self._drift.points[rows[mine]], same[mine], member[:, mine])
        return found

    def _held_out(self, rows: Array) -> Array:
        """[K] how far off a match may be: the farthest of the rows, none of them in the first half, from that half."""
        rows = rows[:: max(1, len(rows) // HELD_OUT)]
        action = self.log.batch.action[rows]
        row, distance = self._match(
            self._drift.points[rows], action, np.full(len(rows), 2), self._going
        )  # on the first half
        farthest = np.full(self.log.batch.mask.shape[1], -1.0)
        np.maximum.at(farthest, action[row != NONE], distance[row != NONE])
        return np.where(farthest < 0, farthest.max(initial=0.0), farthest) + SAME


def _check(batch: Batch, horizon: int, particles: int) -> None:
    if batch.numbers:
        raise SupportError("the actions are numbers; episodes are stitched from named actions only")
    if not (all_alike(batch.candidates) and batch.mask.all()):
        raise SupportError(
            "the candidates differ from row to row: what an action does can not be looked up in other rows",
            hint="stitched episodes are for named actions that can always be taken",
        )
    if horizon < 2:
        raise DataError(f"horizon is {horizon}, must be at least 2 steps", field="horizon")
    if particles < 2:
        raise DataError(f"particles is {particles}, must be at least 2", field="particles")
