"""What else a log says about itself and about how well it can speak for a target: one look, asked by the gates."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.evaluate.change import Change, changes
from steersman.evaluate.evidence import Evidence
from steersman.evaluate.nuisance import folds_of, reward_model
from steersman.evaluate.propensities import Propensities, propensities
from steersman.evaluate.unlogged import Unlogged, never_logged

Array = np.ndarray


class Diagnostics(Struct, frozen=True, kw_only=True):
    """What a log says about itself under a target policy.

    Attributes:
        unlogged: how much of what the target does was never logged.
        propensities: whether those of the log can be right.
        changes: how far policy, reward and contexts moved within the window; empty: nobody knows when decisions were
            made, or a half of the window has fewer than two units.
    """

    unlogged: Unlogged
    propensities: Propensities
    changes: tuple[Change, ...]


def diagnose(
    batch: Batch, target: Array, evidence: Evidence, at: Array | None, *, folds: int, seed: int
) -> Diagnostics:
    """All of it.

    Args:
        batch: whole episodes only.
        target: [N, K] f64.
        evidence: of the reward.
        at: [N] i64, when decisions were made; None: nobody knows.
        folds, seed: of the cross-fitting.
    """
    paths = evidence.paths
    fold = folds_of(paths, folds, seed)[paths.episode]
    return Diagnostics(
        unlogged=never_logged(batch, target),
        propensities=propensities(batch, fold),
        changes=() if at is None else changes(batch, paths, at, _surprise(batch, target, evidence, fold)),
    )


def _surprise(batch: Batch, target: Array, evidence: Evidence, fold: Array) -> Array:
    """[N] the reward minus what a model expects of it: of the decision itself, also where episodes are sequences."""
    if evidence.paths.one_step and evidence.q.any():
        return np.asarray(evidence.reward - evidence.q)
    q, _ = reward_model(batch, batch.reward[:, None], target, fold)
    return np.asarray(batch.reward - q[:, 0])
