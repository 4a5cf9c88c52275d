"""What a report shows beside its estimates: the spread of weights, calibration of propensities, shares of actions.

All of it is about the decisions as logged, in the contexts of the log, whole episodes or not. Units are clusters.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import SupportError
from steersman.core.report import OTHERS, ActionShare, Calibration, Estimate, Weights
from steersman.core.shared import is_shared, once
from steersman.evaluate.evidence import weights
from steersman.evaluate.intervals import Terms, estimate, ratio

Array = np.ndarray

BINS = 40
"""Of the weights."""

NAMED = 50
"""Actions that a report names; the rest are one share."""

GROUPS = 10_000
"""Clusters of an interval here: units, or where there are more, that many groups of whole units; as good, and fast."""

PROBABILITIES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 1.0)
"""Bounds of the groups of candidates by the target's probability; 0 itself is a group."""


@dataclass(frozen=True, eq=False)
class Actions:
    """Which action stands where among the candidates.

    Attributes:
        names: [A], all different.
        code: [N, K] i64, place in `names`; or [1, K] where all rows have the same candidates. Padding: any.
    """

    names: tuple[str, ...]
    code: Array

    @classmethod
    def of(cls, batch: Batch, ids: Array | None = None) -> Actions | None:
        """The actions of a batch; None: they have no names.

        Args:
            ids: [N, K] object (str), of the candidates; None: the columns of named actions tell, if there are any.
        """
        if ids is not None:
            ids = once(ids)
            names, code = np.unique(ids.astype(str), return_inverse=True)
            return cls(tuple(names.tolist()), code.reshape(ids.shape))
        columns = batch.candidates[:, :, : len(batch.encoder.actions)]  # one a named action, then those of features
        same = is_shared(columns) and bool(batch.mask.all())
        some, there = (columns[:1], batch.mask[:1]) if same else (columns, batch.mask)
        if columns.shape[2] == 0 or not (some.sum(axis=2) == there).all():
            return None
        return cls(batch.encoder.actions, some.argmax(axis=2))

    def largest(self, action: Array, tables: list[Array]) -> Actions:
        """The actions that were taken most or have most in any of some tables, the largest first; all others are one.

        Args:
            action: [N], taken; tables: [N, K] f64 each.
        """
        sums = [np.bincount(self.taken(action), minlength=len(self.names)).astype(np.float64)]
        alone = np.zeros(len(action), dtype=np.int64)
        sums += [self.sums(table, alone)[:, 0] for table in tables]
        most = np.max(sums, axis=0)
        order = np.argsort(-most, kind="stable")
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.minimum(np.arange(len(order)), NAMED)
        names = tuple(self.names[one] for one in order[:NAMED] if most[one] > 0)  # none of it: padding, or no use
        place[order[len(names) :]] = len(names)
        return Actions((*names, OTHERS) if (most > 0).sum() > NAMED else (*names,), place[self.code])

    def taken(self, action: Array) -> Array:
        """[N] i64, place in `names` of the actions taken [N]."""
        found = self.code[0, action] if len(self.code) == 1 else self.code[np.arange(len(action)), action]
        return found.astype(np.int64)

    def sums(self, values: Array, groups: Array) -> Array:
        """[N, K] summed over the candidates of each action and the rows of each group: [A, G]."""
        size = int(groups.max()) + 1
        out = np.zeros((len(self.names) + 1, size))  # the last: what has no name
        for place in range(values.shape[1]):
            if len(self.code) == 1:
                out[self.code[0, place]] += np.bincount(groups, values[:, place], minlength=size)
            else:
                flat = self.code[:, place].astype(np.int64) * size + groups
                out += np.bincount(flat, values[:, place], minlength=out.size).reshape(out.shape)
        return out[: len(self.names)]


def weights_of(batch: Batch, weight: Array, level: float) -> Weights:
    """How the weights [N] f64 of the decisions of a batch are spread.

    Raises:
        SupportError: all weight is with one unit.
    """
    group, size = _groups(batch.unit)
    total = np.bincount(group, weight, minlength=size)
    mean, pull = ratio(total, np.bincount(group, minlength=size).astype(np.float64))
    above = weight[weight > 0]
    low, high = float(above.min()), float(above.max())
    if high < 1.5 * low:  # all alike: a bin around them
        low, high = low / 1.5, high * 1.5
    edges = np.geomspace(low, high, BINS + 1)
    place = np.clip(np.searchsorted(edges, above, side="right") - 1, 0, BINS - 1)
    held = np.bincount(place, above, minlength=BINS)
    of_units = np.bincount(np.unique(batch.unit, return_inverse=True)[1], weight)
    terms = replace(Terms.of(mean, pull, total), n=len(of_units))
    return Weights(
        edges=tuple(edges.tolist()),
        counts=tuple(np.bincount(place, minlength=BINS).tolist()),
        masses=tuple((held / held.sum()).tolist()),
        zeros=len(weight) - len(above),
        mean=estimate(terms, estimator="mean weight", metric="weight", level=level),
        largest=float(above.max()),
        largest_share=float(of_units.max() / of_units.sum()),
    )


def calibration(batch: Batch, target: Array, actions: Actions | None, level: float) -> tuple[Calibration, ...]:
    """Whether candidates are taken as often as the log's propensities say, by action and by the target's probability.

    Of the candidates of any group that is chosen without looking at which one was taken, the sum of 1 / propensity of
    those taken is their number in expectation, however the log decided, if the propensities are right and each of them
    could be taken. Groups of which nothing was taken are left out: that is a question of support.

    Args:
        target: [N, K] f64, probabilities of the target policy.
    Source: Horvitz and Thompson 1952, the sum of 1 / propensity.
    """
    bounds = np.array(PROBABILITIES)
    bins = np.empty(target.shape, dtype=np.int8)
    for place in range(target.shape[1]):  # a column at a time: places as i64 would take as much room as the target
        bins[:, place] = np.minimum(np.searchsorted(bounds, target[:, place], side="left"), len(bounds) - 1)
    said = ("0", *(f"{low:g} to {high:g}" for low, high in itertools.pairwise(PROBABILITIES)))
    by_action = [] if actions is None else _calibrated(batch, "action", actions, level)
    return (*by_action, *_calibrated(batch, "target", Actions(said, bins), level))


def _calibrated(batch: Batch, by: Literal["action", "target"], which: Actions, level: float) -> list[Calibration]:
    group, size = _groups(batch.unit)
    candidates = which.sums(batch.mask, group)  # [A, G]
    code = which.taken(batch.action)
    inverse = np.bincount(code * size + group, 1.0 / batch.propensity, minlength=candidates.size)
    inverse = inverse.reshape(candidates.shape)
    taken = np.bincount(code, minlength=len(which.names))
    found = []
    for one in np.flatnonzero(taken):
        try:
            value, pull = ratio(inverse[one], candidates[one])
        except SupportError:  # only one unit had such candidates: the error can not be told
            continue
        terms = Terms.of(value, pull, inverse[one])
        found.append(
            Calibration(
                by=by,
                group=which.names[one],
                candidates=int(candidates[one].sum()),
                taken=int(taken[one]),
                stated=float(taken[one] / inverse[one].sum()),
                ratio=estimate(terms, estimator="calibration", metric="propensity", level=level),
            )
        )
    return found


def shares(
    batch: Batch, target: Array, previous: Array | None, actions: Actions, level: float
) -> tuple[ActionShare, ...]:
    """What share of the decisions each action got in the log, and would get from the target and the version before.

    Args:
        target, previous: [N, K] f64, probabilities; previous None: there is no version before.
    """
    group, size = _groups(batch.unit)
    decisions = np.bincount(group, minlength=size).astype(np.float64)
    place = actions.taken(batch.action) * size + group
    logged = np.bincount(place, minlength=len(actions.names) * size).reshape(-1, size).astype(np.float64)
    planned = actions.sums(target, group)
    before = None if previous is None else actions.sums(previous, group)

    def share(values: Array, whose: str) -> Estimate:
        value, pull = ratio(values, decisions)
        return estimate(Terms.of(value, pull, decisions), estimator=whose, metric="share", level=level)

    return tuple(
        ActionShare(
            action=name,
            logged=share(logged[i], "logged"),
            target=share(planned[i], "target"),
            previous=None if before is None else share(before[i], "previous"),
        )
        for i, name in enumerate(actions.names)
    )


@dataclass(frozen=True)
class Shown:
    """See Report, whose fields these are."""

    weights: Weights
    calibration: tuple[Calibration, ...]
    shares: tuple[ActionShare, ...]


def shown(
    batch: Batch, target: Array, level: float, *, previous: Array | None = None, ids: Array | None = None
) -> Shown:
    """All of it.

    Args:
        target, previous: [N, K] f64, probabilities of the policy that is judged, and of the version before.
        ids: see `Actions.of`.
    Raises:
        DataError, SupportError: see `evidence.weights`.
    """
    actions = Actions.of(batch, ids)
    if actions is not None:
        actions = actions.largest(batch.action, [target, *([] if previous is None else [previous])])
    return Shown(
        weights=weights_of(batch, weights(batch, target), level),
        calibration=calibration(batch, target, actions, level),
        shares=() if actions is None else shares(batch, target, previous, actions, level),
    )


def _groups(unit: Array) -> tuple[Array, int]:
    """[N] group of each row in [0, G), and G: whole units."""
    units, number = np.unique(unit, return_inverse=True)
    size = min(len(units), GROUPS)
    return number % size, size
