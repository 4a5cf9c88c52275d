"""Evidence: what an estimator may look at, as columns. Which rows form episodes, and which episodes are whole."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from steersman.core.batch import Batch
from steersman.core.density import Aims
from steersman.core.errors import DataError, SupportError
from steersman.evaluate.kernels import Kernels

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Paths:
    """How the N rows of a batch form E episodes of C units. A log of one-step decisions has E = N.

    Attributes:
        steps: one array a step: the rows at step t, ascending by episode. `steps[0]` are the starts.
        episode: [N] i64, the row's episode, in [0, E).
        factor: [N] f64, product of the discounts of the earlier rows of the episode: what the row's reward counts.
        cluster: [E] i64, the unit of the episode, in [0, C). Units are what intervals count.
        clusters: C.
        previous: [N] i64, the row before; -1 at a start.
    """

    steps: tuple[Array, ...]
    episode: Array
    factor: Array
    cluster: Array
    clusters: int
    previous: Array

    @classmethod
    def of(cls, batch: Batch) -> Paths:
        """The paths through a batch, in one pass over its steps."""
        n = len(batch)
        previous = np.full(n, -1, dtype=np.int64)
        seen = np.flatnonzero(batch.next >= 0)
        previous[batch.next[seen]] = seen
        starts = np.flatnonzero(previous < 0)
        episode = np.empty(n, dtype=np.int64)
        episode[starts] = np.arange(len(starts))
        factor = np.ones(n)
        steps = [starts]
        while (rows := _following(batch, steps[-1])).size:
            episode[rows] = episode[previous[rows]]
            factor[rows] = factor[previous[rows]] * batch.discount[previous[rows]]
            steps.append(rows)
        units, cluster = np.unique(batch.unit[starts], return_inverse=True)
        return cls(tuple(steps), episode, factor, cluster, len(units), previous)

    @property
    def one_step(self) -> bool:
        """Whether every episode is one decision."""
        return len(self.steps) == 1

    @property
    def episodes(self) -> int:
        """E."""
        return len(self.cluster)

    def step(self) -> Array:
        """[N] i64, the row's place in its episode, from 0."""
        step = np.empty(len(self.episode), dtype=np.int64)
        for t, rows in enumerate(self.steps):
            step[rows] = t
        return step

    def per_episode(self, values: Array) -> Array:
        """[N] -> [E], summed over the rows of each episode."""
        if self._rows_are_episodes:
            return np.array(values, dtype=np.float64)
        return np.bincount(self.episode, values, minlength=self.episodes)

    def per_cluster(self, values: Array) -> Array:
        """[E] -> [C], summed over the episodes of each unit."""
        if self._episodes_are_units:
            return np.array(values, dtype=np.float64)
        return np.bincount(self.cluster, values, minlength=self.clusters)

    @functools.cached_property
    def _rows_are_episodes(self) -> bool:
        """Whether episode i is row i and nothing else."""
        return self.episodes == len(self.episode) and np.array_equal(self.episode, np.arange(self.episodes))

    @functools.cached_property
    def _episodes_are_units(self) -> bool:
        """Whether unit i is episode i and nothing else."""
        return self.clusters == self.episodes and np.array_equal(self.cluster, np.arange(self.clusters))


@dataclass(frozen=True, eq=False)
class Visits:
    """How often the target would be where the log was, by a marginal of its visits. Cross-fitted.

    Attributes:
        weight: [N] f64, visits per episode of the row's place by the target, discounted, over the log's.
        worth: [N] f64, whose sum over an episode is what the episode says of the value, the error of the weights
            included: the model's value at the start, and the weighted surprise of every row.
        steps: visits of the target per episode, discounted, in all.
    """

    weight: Array
    worth: Array
    steps: float


@dataclass(frozen=True, eq=False)
class Marginal:
    """How often the target would visit what the log visited, cross-fitted. Made where contexts are finite.

    Attributes:
        weight: [N] f64, visits per episode of the row's (context, action) by the target, discounted, over the log's.
        correction: [N] f64, the weighted surprise (reward + discount * next value - action value) of the row, summed
            over the steps at which the target would be there.
        outside: share of the target's visits that go where the log never was.
        by_state, by_pair: the visits by context, and by (context, action).
    """

    weight: Array
    correction: Array
    outside: float
    by_state: Visits
    by_pair: Visits


@dataclass(frozen=True, eq=False)
class Stitch:
    """What episodes stitched together from logged steps return, and what random halves of the units say of it.

    Attributes:
        value: mean return, in reward per episode.
        worst, best: the same, with the worst and the best that may follow for whoever leaves what the log knows.
        worst_moved, best_moved: [B, 2] f64, `worst` and `best` of each half, of particles that move as rows of their
            kind usually do and of those that move as the row did, minus the whole's.
        logged: mean return of the logged episodes whose end is known.
        logged_moved: [B] f64, the same of each half minus the whole's.
        ess: effective number of units that lent steps, in [0, C]: (sum of uses)^2 / sum of uses^2.
        outside: share of steps outside what the log knows, in [0, 1]. Above 0.15 the log can hardly tell.
        left: share of episodes that were ever outside, in [0, 1].
        distance: mean distance of a step from its match, in standard deviations of the most relevant column.
    """

    value: float
    worst: float
    best: float
    worst_moved: Array
    best_moved: Array
    logged: float
    logged_moved: Array
    ess: float
    outside: float
    left: float
    distance: float


@dataclass(frozen=True, eq=False)
class Model:
    """Per row, from a model that never saw the row's unit: see Evidence."""

    q: Array
    v: Array
    marginal: Marginal | None = None


@dataclass(frozen=True, eq=False)
class Listed:
    """Weights of ranked lists that ask how often an item stands in a slot, whatever stands above.

    Attributes:
        standing: [R] f64, target / behavior of the item in its slot, for `iips`.
        additive: [E] f64, weights of `pi`.
        absent: why one of them is None.
    """

    standing: Array | None
    additive: Array | None
    absent: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """What estimators look at: only columns of length N, so that a million rows of many candidates fit.

    Attributes:
        paths: which rows form episodes.
        reward: [N] f64, what is judged: the reward, or a metric.
        weight: [N] f64, target / propensity of the action taken.
        q: [N] f64, model of the action taken: mean reward (one step), or value of the action with the steps
            that remain (sequences). Cross-fitted: never learned from the row's own unit. Zeros: no model.
        v: [N] f64, the same model, mean over the target's actions: sum over a of target(a) * q(a).
        marginal: for `drl`; None if it can not be made of this log.
        stitch: for `stitched`; None if it can not be made of this log.
        propensity: [N] f64, of the action taken under the behavior policy, for `replay`; None: not told.
        robust: q and v for `mrdr`; None if they can not be made of this log.
        learned: [N] f64, weights without propensities, for `balanced-ips`; None: not asked for.
        embedded: [N] f64, weights of the candidate's features, for `mips`; None if candidates have none.
        kernels: of actions that are numbers, weights of those near what the target would do; None: nobody asked.
        lists: of ranked lists, whose slots are the rows; None: the log is of something else.
    """

    paths: Paths
    reward: Array
    weight: Array
    q: Array
    v: Array
    marginal: Marginal | None = None
    stitch: Stitch | None = None
    propensity: Array | None = None
    robust: Model | None = None
    learned: Array | None = None
    embedded: Array | None = None
    kernels: Kernels | None = None
    lists: Listed | None = None

    @functools.cached_property
    def cumulative(self) -> Array:
        """[N] f64, product of the weights of the episode up to and including the row.

        Raises:
            SupportError: the product overflows.
        """
        product = self.weight.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for rows in self.paths.steps[1:]:
                product[rows] *= product[self.paths.previous[rows]]
        if not np.isfinite(product).all():
            raise SupportError(
                f"the product of weights overflows within {len(self.paths.steps)} steps",
                hint="the policies differ too much for estimators that weigh whole episodes; use drl",
            )
        return product

    @functools.cached_property
    def second_moment(self) -> float:
        """Expected square of an episode's whole product of weights, from the weights of single decisions.

        m = mean of w^2 over decisions, and the mean over episodes of m^steps. The products in the sample can not tell:
        where they are heavy-tailed the large ones are mostly absent, and a sample without them looks well behaved.
        1 where the policies agree, and for single decisions, whose weights are all in the sample; infinite if it
        overflows.
        """
        if self.paths.one_step:
            return 1.0
        square = float(np.mean(self.weight**2))
        steps = self.paths.per_episode(np.ones(len(self.weight)))
        with np.errstate(over="ignore"):
            return float(np.mean(np.maximum(square, 1.0) ** steps))

    @functools.cached_property
    def before(self) -> Array:
        """[N] f64, product of the weights of the episode before the row; 1 at a start."""
        return np.where(self.paths.previous < 0, 1.0, self.cumulative[self.paths.previous])


def weights(batch: Batch, target: Array | Aims) -> Array:
    """[N] f64, target / propensity of the actions taken; NaN if the target has no density.

    Args:
        target: [N, K] f64, probabilities of the target policy; every row sums to 1, padding is 0. For numbers: what
            the target would do.
    Raises:
        DataError: the target is not a probability of every candidate of every row.
        SupportError: the target takes none of the logged actions.
    """
    if batch.ranked:
        raise DataError("the actions are ranked lists: judge them by the lists of a target", field="actions")
    if batch.numbers or isinstance(target, Aims):
        return _density_ratio(batch, target)
    if target.shape != batch.mask.shape:
        raise DataError(f"target is {list(target.shape)}, must be {list(batch.mask.shape)}", field="target")
    total = target.sum(axis=1)
    sound = target.min() >= 0 and (np.abs(total - 1.0) <= 1e-6).all()  # neither is true of what is not finite
    if not sound or not batch.mask.all():
        _refuse(~np.isfinite(target).all(axis=1), "a probability of the target is not finite")
        _refuse((target < 0).any(axis=1), "a probability of the target is negative")
        _refuse(((target > 0) & ~batch.mask).any(axis=1), "the target gives a probability to padding")
        _refuse(np.abs(total - 1.0) > 1e-6, "the probabilities of the target do not sum to 1")
    taken = target[np.arange(len(batch)), batch.action]
    if not taken.any():
        raise SupportError(
            f"the target policy takes none of the {len(batch)} logged actions",
            hint="log with more exploration, or judge a policy closer to the one that logged",
        )
    return taken / batch.propensity


def _density_ratio(batch: Batch, target: Array | Aims) -> Array:
    if not (batch.numbers and isinstance(target, Aims)):
        raise DataError("the target and the log have other kinds of actions: numbers and candidates", field="target")
    if len(target) != len(batch):
        raise DataError(f"target has {len(target)} rows, must have {len(batch)}", field="target")
    if not target.dense:
        return np.full(len(batch), np.nan)  # whoever asks for it gets no number
    density = target.density(batch.action)
    if not density.any():
        raise SupportError(
            f"the target policy takes none of the {len(batch)} logged actions",
            hint="log with more exploration, or judge a policy closer to the one that logged",
        )
    return density / batch.propensity


def whole(batch: Batch, horizon: int | None) -> tuple[Array, int]:
    """Which rows belong to episodes whose return is known.

    An episode is whole if the batch has its first row, and its last row is terminated, or the last of a limit in steps
    or time. Any other has a step that nobody saw: its return is unknown, and no estimator here may treat it as over.

    Args:
        horizon: steps after which an episode is over by the rules of the product; None: no limit.
    Returns:
        [N] bool, and how many episodes are not whole.
    Raises:
        DataError: an episode is longer than the horizon, or no episode is whole.
    """
    paths = Paths.of(batch)
    if paths.one_step:  # one decision an episode: there is no next step to miss
        return np.ones(len(batch), dtype=bool), 0
    step = paths.step()
    if horizon is not None and len(paths.steps) > horizon:
        row = int(paths.steps[horizon][0])
        raise DataError(
            f"row {row} is step {horizon} of its episode (from 0), but the horizon is {horizon} steps",
            hint="end the episodes when they reach the horizon, or declare the horizon they really have",
            field="horizon",
        )
    last = batch.next < 0
    over = batch.over if horizon is None else batch.over | (step == horizon - 1)
    closed = np.zeros(paths.episodes, dtype=bool)
    closed[paths.episode[last & over & ~batch.begun]] = True
    if not closed.any():
        raise DataError(
            f"none of the {paths.episodes} episodes is there from its start to its end: their returns are not known",
            hint="log how episodes end, or give the problem a horizon; a longer window holds more of them whole",
            field="horizon",
        )
    return closed[paths.episode], int(paths.episodes - closed.sum())


def _following(batch: Batch, rows: Array) -> Array:
    following = batch.next[rows]
    return following[following >= 0]


def _refuse(bad: ArrayLike, message: str) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        raise DataError(f"row {rows[0]}: {message} ({rows.size} such rows of {np.size(bad)})", field="target")
