"""Did the logging policy, the reward or the contexts change between the first half of the window and the second?

Means of columns in both halves, their difference, and a bound below which its size is not, with a known error for all
columns of a kind together: by units, which may have decisions in both halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import Literal

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.errors import SupportError
from steersman.evaluate.cells import by_name
from steersman.evaluate.evidence import Paths
from steersman.evaluate.intervals import Influence, ratio
from steersman.evaluate.quantiles import quantile

Array = np.ndarray

ALARM = 0.001
"""Chance that a bound is above the truth, for all columns of a kind together."""

MAX_COLUMNS = 100
"""Columns of a kind that are looked at: of the context the first, of the actions those taken most often."""

Kind = Literal["policy", "reward", "contexts"]


class Change(Struct, frozen=True, kw_only=True):
    """How far the column that moved most has moved between the halves of the window.

    Attributes:
        kind: `policy`: how often actions were taken, and with which propensity, in shares of 1; `reward`: what models
            of the reward did not foresee, in standard deviations of the reward; `contexts`: columns of the contexts in
            which episodes begin, in standard deviations.
        column: the name.
        before, after: mean of the column in each half, in its own units.
        size: |after - before| in the units of the kind.
        proven: what the size is above with a confidence of 1 - ALARM; at least 0.
    """

    kind: Kind
    column: str
    before: float
    after: float
    size: float
    proven: float


def changes(batch: Batch, paths: Paths, at: Array, surprise: Array) -> tuple[Change, ...]:
    """One Change a kind; none of a kind that has no column, and none at all if a half has fewer than two units.

    Episodes are halved at the median of when they begin. An episode is in one half.

    Args:
        at: [N] i64, when the decision was made; only the order counts.
        surprise: [N] f64, the reward minus what a model expects of the action taken.
    """
    starts = paths.steps[0]
    begun = at[starts]
    late = begun > np.median(begun)
    if not late.any():  # more than half begin at the last instant
        late = begun == begun.max()
    units = [len(np.unique(paths.cluster[late == half])) for half in (False, True)]
    if min(units) < 2:
        return ()
    of_row = late[paths.episode]
    every = paths.cluster[paths.episode]
    scale = float(batch.reward.std())
    rewards = [("reward", surprise, scale)] if scale > 0 else []
    found = (
        _moved("policy", _policy(batch), of_row, every, paths.clusters),
        _moved("reward", iter(rewards), of_row, every, paths.clusters),
        _moved("contexts", _contexts(batch, starts), late, paths.cluster, paths.clusters),
    )
    return tuple(change for change in found if change is not None)


def _policy(batch: Batch) -> Iterator[tuple[str, Array, float]]:
    yield "propensity of the action taken", batch.propensity, 1.0
    names = batch.encoder.actions
    if (named := by_name(batch, np.zeros(batch.mask.shape))) is None:
        return
    taken = np.bincount(named[0], minlength=len(names))
    for action in np.argsort(-taken, kind="stable")[:MAX_COLUMNS]:
        if taken[action]:
            yield f"share of {names[action]}", (named[0] == action).astype(np.float64), 1.0


def _contexts(batch: Batch, starts: Array) -> Iterator[tuple[str, Array, float]]:
    names = batch.encoder.context_columns()
    for column in np.flatnonzero(np.ptp(batch.context, axis=0) > 0)[:MAX_COLUMNS]:
        values = batch.context[starts, column].astype(np.float64)
        if (scale := float(values.std())) > 0:
            yield names[column], values, scale


def _moved(
    kind: Kind, columns: Iterator[tuple[str, Array, float]], late: Array, unit: Array, units: int
) -> Change | None:
    """The column whose change is proven to be the largest: first by a normal bound, then that one by its own."""
    counts = [np.bincount(unit, late == half, minlength=units) for half in (False, True)]
    tried = 0
    best: tuple[float, str, Influence, float, float] | None = None
    for name, values, scale in columns:
        tried += 1
        try:
            means, pulls = zip(
                *(
                    ratio(np.bincount(unit, np.where(late == half, values, 0.0), minlength=units), counts[half])
                    for half in (False, True)
                ),
                strict=True,
            )
        except SupportError:  # one unit has nearly all rows of a half
            return None
        difference = Influence(means[1] - means[0], pulls[1] - pulls[0])
        least = (abs(difference.center) - NormalDist().inv_cdf(1 - ALARM / 200) * difference.error) / scale
        if best is None or least > best[0]:
            best = (least, name, difference, means[0], scale)
    if best is None:
        return None
    _, name, difference, before, scale = best
    toward = -1.0 if difference.center > 0 else 1.0  # the side of its interval that is nearer to no change
    far = abs(quantile(0.5 + toward * (0.5 - ALARM / (2 * tried)), difference.df, difference.skew, difference.n))
    size = abs(difference.center) / scale
    return Change(
        kind=kind,
        column=name,
        before=before,
        after=before + difference.center,
        size=size,
        proven=max(0.0, size - far * difference.error / scale),
    )
