"""A log of ranked lists under a target policy: weights, models and what is known of the behavior policy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from steersman.core.batch import Batch
from steersman.core.decision import ROUNDING
from steersman.core.errors import ConfigError, DataError, SupportError
from steersman.core.ranking import Lists, Proportional
from steersman.core.slots import Slots
from steersman.evaluate.assembly import metrics_of, told
from steersman.evaluate.distribution import distribution
from steersman.evaluate.estimators import ESTIMATORS
from steersman.evaluate.evaluation import Bets, Evaluation, Settings, Support
from steersman.evaluate.evidence import Evidence, Listed, Paths
from steersman.evaluate.intervals import Influence, Terms, ratio
from steersman.evaluate.nuisance import folds_of, slot_models
from steersman.evaluate.printed import check_weights

Array = np.ndarray

HEADLINE = "list-dr"

MAX_CELLS = 200_000_000
"""Numbers that the second moments of lists are added up from, at most."""

_BLOCK_CELLS = 4_000_000
_FLAT = 1e-9
"""Of the largest eigenvalue: smaller ones are 0."""


def evaluate_lists(batch: Batch, target: Lists, settings: Settings, seed: int) -> tuple[Evaluation, Terms]:
    """Value and lift of a target policy that shows ranked lists, per list; and the headline's terms of the reward.

    Raises:
        DataError: the target's lists are others than the log's, or there is one unit only.
        SupportError: the target shows none of the logged lists, or the headline can not be estimated.
        ConfigError: an estimator is not for ranked lists.
    """
    names, headline = _names(settings)
    log = ListLog.of(batch, target)
    check_weights(log.weight.prod(axis=1), settings)
    units = log.whole.clusters
    if units < 2:
        raise DataError(
            f"the log has {units} unit: the error of its mean can not be told",
            hint="log more units; all decisions of one unit are one cluster",
        )
    slots = log.slots
    metrics, absent = metrics_of(batch.metric_names, list(np.moveaxis(slots.metrics, 2, 0)), slots.reward)
    evidence = log.evidence([slots.reward, *metrics.values()], names, settings.folds, seed)
    found = told(evidence, tuple(metrics), names, headline, settings, seed)
    evaluation = found.evaluation(
        absent,
        distribution=distribution(evidence[0], settings.level),
        support=_support(log, found.terms[headline].largest_share),
        bets=Bets.of(batch.reward, log.weight.prod(axis=1), settings.reward_range),
    )
    return evaluation, found.terms[headline]


@dataclass(frozen=True, eq=False)
class ListLog:
    """N logged lists under a target policy.

    Attributes:
        target: the lists of the target.
        chances: [N, L, K] f64, the target's probabilities in each slot, given the logged items above.
        weight: [N, L] f64, target / propensity of each item given those above; 1 behind the last item.
        paths: a list as an episode, a slot as a step: R rows, one an item.
        whole: a list as one step.
    """

    batch: Batch
    slots: Slots
    target: Lists
    chances: Array
    weight: Array
    paths: Paths
    whole: Paths

    @classmethod
    def of(cls, batch: Batch, target: Lists) -> ListLog:
        """Asks the target once a slot."""
        slots, action = batch.slots, batch.action
        if slots is None or not isinstance(target, Lists):
            raise DataError("a log of ranked lists is judged by the lists of a target", field="target")
        if target.slots != action.shape[1] or not np.array_equal(target.mask, batch.mask):
            raise DataError(
                f"the target fills {target.slots} slots at {len(target):,} decisions, the log {action.shape[1]} at "
                f"{len(batch):,}, or the candidates are others",
                field="target",
            )
        whole = Paths.of(batch)
        if not whole.one_step:
            raise DataError(
                "the log has sequences of ranked lists: only lists that are episodes of their own can be judged",
                hint="give the problem horizon = 1 if what one list does hardly changes the next",
                field="horizon",
            )
        chances = target.conditionals(action)
        taken = np.take_along_axis(chances, np.maximum(action, 0)[:, :, None], axis=2)[:, :, 0]
        weight = np.where(action >= 0, taken / slots.propensity, 1.0)
        if not weight.all(axis=1).any():
            raise SupportError(
                f"the target policy shows none of the {len(batch):,} logged lists",
                hint="log with more exploration, or judge a policy closer to the one that logged",
            )
        return cls(batch, slots, target, chances, weight, _paths(action, whole), whole)

    @property
    def there(self) -> Array:
        """[N, L] bool, where a list has an item; the R rows of `paths` in its order."""
        return self.batch.action >= 0

    def evidence(self, outcomes: Sequence[Array], names: Sequence[str], folds: int, seed: int) -> list[Evidence]:
        """One Evidence an outcome [N, L], with what the named estimators need."""
        there, none = self.there, np.zeros(int(self.there.sum()))
        listed = self.listed(names)
        made = [Evidence(self.paths, one[there], self.weight[there], none, none, lists=listed) for one in outcomes]
        if any(ESTIMATORS[name].model for name in names):
            fold = folds_of(self.whole, folds, seed)
            q, v = slot_models(self.batch, np.stack(outcomes, axis=2), self.chances, fold)
            made = [replace(e, q=q[there][:, m], v=v[there][:, m]) for m, e in enumerate(made)]
        return made

    def listed(self, names: Sequence[str]) -> Listed:
        """Weights that ask how often an item stands in a slot, if an estimator needs them and the log tells."""
        standing = additive = None
        if not {"iips", "sn-iips", "pi", "sn-pi"} & set(names):
            return Listed(None, None, "")
        try:
            behavior = behavior_lists(self.batch, self.slots)
            wanted = self.target.marginals()
            if {"iips", "sn-iips"} & set(names):
                there = np.nonzero(self.there)
                at = (*there, self.batch.action[there])
                standing = wanted[at] / behavior.marginals()[at]
            if {"pi", "sn-pi"} & set(names):
                additive = additive_weights(self.batch.action, behavior, wanted)
        except SupportError as error:
            return Listed(standing, additive, error.message)
        return Listed(standing, additive, "")


def behavior_lists(batch: Batch, slots: Slots) -> Lists:
    """The lists of the policy that logged: of Plackett and Luce by `first`; or all alike, if every item was.

    Raises:
        SupportError: the log does not tell, or its propensities are not those of such lists.
    """
    count = batch.mask.sum(axis=1)
    left = np.maximum(count[:, None] - np.arange(batch.action.shape[1]), 1)
    there = batch.action >= 0
    first = batch.mask / count[:, None] if _alike(slots.propensity, 1.0 / left, there) else slots.first
    if first is None:
        raise SupportError("the log does not tell how likely each candidate was to stand in the first slot")
    lists = Lists(Proportional(), first, batch.mask, batch.action.shape[1])
    if not _alike(slots.propensity, lists.propensities(batch.action), there):
        raise SupportError(
            "how often an item stood in a slot can not be told: the policy that logged did not keep the proportions of "
            "what remains (Plackett and Luce)"
        )
    return lists


def _alike(logged: Array, told: Array, there: Array) -> bool:
    return bool((np.abs(logged - told) <= 10 * ROUNDING * logged)[there].all())


def additive_weights(action: Array, behavior: Lists, wanted: Array) -> Array:
    """[N] f64, q' G+ 1_list of `pi`; equal decisions are computed once.

    Args:
        action: [N, L] i64, the logged lists.
        behavior: of Plackett and Luce.
        wanted: [N, L, K] f64, marginals of the target.
    Raises:
        SupportError: there are too many lists to add up, or the target shows an item in a slot where it never stood.
    """
    first, mask = behavior.scores, behavior.mask
    n, slots, k = wanted.shape
    asked = np.unique(first, axis=0, return_index=True, return_inverse=True)
    at, place = asked[1], asked[2].ravel()
    alike = bool(np.allclose(first, mask / mask.sum(axis=1, keepdims=True), rtol=1e-9))
    lists = 1 if alike else math.perm(k, min(slots, k))
    size = slots * k
    if len(at) * max(lists * slots**2, size**2) > MAX_CELLS:
        raise SupportError(
            f"{k} candidates in {slots} slots: there are {lists:,} lists at {len(at):,} decisions, too many to add up"
        )
    block = max(_BLOCK_CELLS // size**2, 1)
    weight = np.empty(n)
    for start in range(0, len(at), block):
        some = at[start : start + block]
        moments = _alike_moments(mask[some], slots) if alike else _moments(behavior.take(some))
        rows = np.flatnonzero((place >= start) & (place < start + block))
        weight[rows] = _solved(moments, place[rows] - start, wanted[rows].reshape(len(rows), size), action[rows], k)
    return weight


def _alike_moments(mask: Array, slots: int) -> Array:
    """[n, L K, L K] of lists that are all alike: 1 / C for the same slot, 1 / (C (C - 1)) for different ones."""
    n, k = mask.shape
    count = mask.sum(axis=1)[:, None, None].astype(np.float64)
    pair = mask[:, :, None] & mask[:, None, :] & ~np.eye(k, dtype=bool)
    same = np.where(mask[:, :, None] & np.eye(k, dtype=bool), 1.0 / count, 0.0)
    different = np.where(pair, 1.0 / (count * np.maximum(count - 1.0, 1.0)), 0.0)
    found = np.zeros((n, slots, k, slots, k))
    for one, other in itertools.product(range(slots), repeat=2):
        reached = mask.sum(axis=1)[:, None, None] > max(one, other)
        found[:, one, :, other] = np.where(reached, same if one == other else different, 0.0)
    return found.reshape(n, slots * k, slots * k)


def _moments(behavior: Lists) -> Array:
    """[n, L K, L K] second moments of the indicator of (slot, item), over every list."""
    n, k = behavior.mask.shape
    slots = behavior.slots
    found = np.zeros((n, slots * k, slots * k))

    def add(items: tuple[int, ...], chance: Array, left: Array) -> None:
        ended = ~left.any(axis=1) if len(items) < slots else np.ones(n, dtype=bool)
        if ended.any():
            at = np.array([slot * k + item for slot, item in enumerate(items)], dtype=np.int64)
            found[:, at[:, None], at[None]] += np.where(ended, chance, 0.0)[:, None, None]
        if len(items) == slots or ended.all():
            return
        chances = behavior.chooser.probabilities(behavior.scores, left)
        for item in np.flatnonzero((left & (chances > 0)).any(axis=0)).tolist():
            still = left.copy()
            still[:, item] = False
            add((*items, item), np.where(left[:, item], chance * chances[:, item], 0.0), still)

    add((), np.ones(n), behavior.mask)
    return found


def _solved(moments: Array, place: Array, wanted: Array, action: Array, k: int) -> Array:
    """[B] f64: wanted' moments+ 1_list."""
    values, vectors = np.linalg.eigh(moments)
    kept = values > _FLAT * values[:, -1:]
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=kept)
    weight = np.empty(len(place))
    for one in range(len(moments)):
        rows = np.flatnonzero(place == one)
        part = wanted[rows] @ vectors[one]
        if np.abs((part * ~kept[one]) @ vectors[one].T).max(initial=0.0) > ROUNDING:
            raise SupportError("the target shows an item in a slot where the policy that logged never shows it")
        solved = (part * inverse[one]) @ vectors[one].T  # [B, L K]
        at = np.arange(action.shape[1]) * k + action[rows]
        there = action[rows] >= 0
        weight[rows] = np.where(there, np.take_along_axis(solved, np.where(there, at, 0), axis=1), 0.0).sum(axis=1)
    return weight


def _paths(action: Array, whole: Paths) -> Paths:
    """Lists as episodes, one row an item, in the order of (list, slot)."""
    episode, slot = np.nonzero(action >= 0)
    steps = tuple(np.flatnonzero(slot == step) for step in range(int(slot.max()) + 1))
    previous = np.where(slot > 0, np.arange(len(slot)) - 1, -1)
    return Paths(steps, episode, np.ones(len(slot)), whole.cluster, whole.clusters, previous)


def _names(settings: Settings) -> tuple[tuple[str, ...], str]:
    known = [name for name, row in ESTIMATORS.items() if row.ranked]
    headline = settings.headline or HEADLINE
    for name in (*settings.estimators, headline):
        if name not in known:
            raise ConfigError(
                f"{name} is not for a log of ranked lists", hint=f"use {', '.join(known)}", field="estimators"
            )
    asked = {*(settings.estimators or known), headline}
    return tuple(name for name in known if name in asked), headline


def _support(log: ListLog, largest_share: float | None) -> Support:
    """Weights are those of whole lists."""
    weight, whole = log.weight.prod(axis=1), log.whole
    mean, pull = ratio(whole.per_cluster(weight), whole.per_cluster(np.ones(len(weight))))
    return Support(
        decisions=len(weight),
        episodes=len(weight),
        units=whole.clusters,
        open_episodes=0,
        horizon=1,
        mean_weight=mean,
        mean_weight_error=Influence(mean, pull).error,
        largest_weight=float(weight.max()),
        largest_share=largest_share,
    )
