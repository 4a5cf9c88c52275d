"""How much of what the target does the log never did, in comparable contexts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.evaluate.cells import by_name

Array = np.ndarray

EXPECTED = 20.0
"""Decisions that the target would make of a kind before its absence from the log is more than chance: of an action
whose weight would be 5 it is absent by chance once in 50 groups, of one whose weight would be 2 never."""

GROUP_SHARE = 0.05
"""Smaller groups of contexts are not looked at: absences in them would be chance."""

MAX_COLUMNS = 64
"""Columns of the context, and of the candidates, that are looked at."""

LOOKED = 65_536
"""Rows at which the target is asked, evenly through the log; what the log took is counted in all rows."""


ROUNDING = 1e-12
"""Shares that differ by less are the same."""


class Unlogged(Struct, frozen=True, kw_only=True):
    """What the target does and the log never did.

    Attributes:
        share: of the target's decisions that take an action which no decision of the log took in comparable contexts,
            in [0, 1]. Contexts are compared as a whole and by each of their columns, cut at its quartiles; of all
            ways to compare, the largest share.
        where: the column of that comparison; empty: in no context at all.
        kinds: the kinds of action it consists of, the largest first; at most five.
    """

    share: float
    where: str
    kinds: tuple[str, ...]


def never_logged(batch: Batch, target: Array) -> Unlogged:
    """The share of the target's mass on actions that were never logged.

    Where candidates have names an action is its name. Else it is told by each column of its features, cut at the
    quartiles, over all contexts.

    Args:
        target: [N, K] f64, probabilities of the target; padding 0.
    """
    named = by_name(batch, target)
    if named is None:
        return _by_features(batch, target)
    action, policy = named
    worst = Unlogged(share=0.0, where="", kinds=())
    for name, group in [("", np.zeros(len(batch), dtype=np.int64)), *_groups(batch)]:
        found = _worst(name, _tables(group, action, policy), batch.encoder.actions, len(batch))
        worst = found if found.share > worst.share + ROUNDING else worst
    return worst


def _groups(batch: Batch) -> Iterator[tuple[str, Array]]:
    """Columns of the context with the group of every row [N] i64."""
    names = batch.encoder.context_columns()
    varies = np.flatnonzero(np.ptp(batch.context, axis=0) > 0)[:MAX_COLUMNS]
    for column in varies:
        yield names[column], _binned(batch.context[:, column])


def _binned(values: Array) -> Array:
    """[N] i64: which quarter of the values; of few different values, which."""
    edges = np.unique(np.quantile(values[:: max(1, len(values) // 5000)], (0.25, 0.5, 0.75)))
    edges = edges[(edges > values.min()) & (edges <= values.max())]
    if not edges.size:  # one value makes up more than three quarters
        edges = np.array([np.nextafter(np.median(values), np.inf, dtype=values.dtype)])
    return np.searchsorted(edges, values, side="right")


def _tables(group: Array, action: Array, policy: Array) -> tuple[Array, Array, Array]:
    """Rows [G], times each action was taken [G, B], and expected times that the target would take it [G, B]."""
    groups, names = int(group.max()) + 1, policy.shape[1]
    taken = np.bincount(group * names + action, minlength=groups * names).reshape(groups, names)
    step = -(-len(group) // LOOKED)
    one = group[::step, None] == np.arange(groups)
    return np.bincount(group, minlength=groups), taken, step * (one.T.astype(np.float64) @ policy[::step])


def _worst(where: str, tables: tuple[Array, Array, Array], names: tuple[str, ...], n: int) -> Unlogged:
    rows, taken, expected = tables
    missed = np.where((taken == 0) & (expected >= EXPECTED), expected, 0.0)
    missed[rows < GROUP_SHARE * n] = 0.0
    mass = missed.sum(axis=0)
    largest = [names[a] for a in np.argsort(-mass, kind="stable")[:5] if mass[a] > 0]
    return Unlogged(share=float(mass.sum()) / n, where=where, kinds=tuple(largest))


def _by_features(batch: Batch, target: Array) -> Unlogged:
    """The same where an action is what its features say."""
    worst = Unlogged(share=0.0, where="", kinds=())
    n, rows = len(batch), np.arange(len(batch))
    step = -(-n // LOOKED)
    offered, asked = batch.candidates[::step], target[::step]
    for column, name in enumerate(batch.encoder.candidate_columns()[:MAX_COLUMNS]):
        values = np.ascontiguousarray(offered[:, :, column])
        edges = np.unique(np.quantile(values[batch.mask[::step]], (0.25, 0.5, 0.75)))
        bins = len(edges) + 1
        of_taken = np.searchsorted(edges, batch.candidates[rows, batch.action, column], side="right")
        of_asked = np.searchsorted(edges, values.ravel(), side="right")
        taken = np.bincount(of_taken, minlength=bins)
        expected = step * np.bincount(of_asked, asked.ravel(), minlength=bins)
        share = float(expected[(taken == 0) & (expected >= EXPECTED)].sum()) / n
        if share > worst.share + ROUNDING:
            worst = Unlogged(share=share, where="", kinds=(f"candidates of a {name} that was never taken",))
    return worst
