"""Which logs of sequences are on a table: few distinct contexts, actions with names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.shared import is_shared
from steersman.evaluate.evidence import Paths

Array = np.ndarray

MAX_CELLS = 256
"""More distinct contexts than this are not a table."""

ROWS_PER_CELL = 10
"""Nor are contexts that come less often than this on average: few rows of a continuous context are all distinct."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The rows of a log on S cells and B named actions. A cell is a distinct context, and the target's chances there.

    Attributes:
        cell, action: [N] i64; the action by its name, wherever it stands among the candidates.
        policy: [S, B] f64, the target's probabilities in a cell.
        weight: [N] f64, target / propensity of the action taken.
    """

    cell: Array
    action: Array
    policy: Array
    weight: Array


def cells(batch: Batch, target: Array) -> Cells | None:
    """The log on a table; None: its actions have no names, or its contexts hardly ever come again."""
    named = by_name(batch, target)
    if named is None:
        return None
    action, policy = named
    key = np.concatenate([batch.context, np.round(policy, 6).astype(np.float32)], axis=1)
    if len(_distinct(key[:: max(1, len(key) // 5000)])[0]) > MAX_CELLS:
        return None
    first, cell = _distinct(key)
    few = len(first) <= min(MAX_CELLS, len(key) / ROWS_PER_CELL)
    weight = policy[np.arange(len(key)), action] / batch.propensity
    return Cells(cell, action, policy[first], weight) if few else None


def by_name(batch: Batch, target: Array) -> tuple[Array, Array] | None:
    """Place of the action taken among the named actions [N], and the target's probability of each name [N, B].

    None if candidates have features beside their name, or names that the encoder does not know.
    """
    names = len(batch.encoder.actions)
    if names == 0 or batch.encoder.candidate_width != names:
        return None
    if is_shared(batch.candidates) and np.array_equal(batch.candidates[0], np.eye(names)):
        return batch.action, target
    if not (batch.candidates.sum(axis=2) == batch.mask).all():
        return None
    policy = np.einsum("nk,nka->na", target, batch.candidates)
    return batch.candidates[np.arange(len(batch)), batch.action].argmax(axis=1), policy


def known_rows(paths: Paths, cut: int | None) -> Array:
    """[N] bool: the log tells what follows the row, and tells it whatever followed.

    At the last step before a declared horizon every episode is over, terminated or not, so a row there does not tell
    whether it would have gone on. To take only those that say they terminated would be to choose rows by outcome. So
    the whole step is left out; its rewards are not.

    Args:
        cut: the declared horizon in steps; None: no rule ends the episodes.
    """
    known = np.ones(len(paths.episode), dtype=bool)
    if len(paths.steps) == cut:
        known[paths.steps[-1]] = False
    return known


def _distinct(key: Array) -> tuple[Array, Array]:
    """First row of each distinct row, and the number of its distinct row for every row."""
    solid = np.ascontiguousarray(key + 0.0)  # -0.0 and 0.0 are one number
    packed = solid.view(np.dtype((np.void, solid.dtype.itemsize * solid.shape[1])))[:, 0]
    _, first, number = np.unique(packed, return_index=True, return_inverse=True)
    return first, number
