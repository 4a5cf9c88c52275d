"""Which models a log of sequences gets: tables for few distinct contexts, else random features, stitched episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.density import Aims
from steersman.core.policy import Policy, over_candidates
from steersman.core.shared import all_alike
from steersman.evaluate.cells import Cells, cells, known_rows
from steersman.evaluate.estimators import ESTIMATORS
from steersman.evaluate.evidence import Model, Paths, Stitch
from steersman.evaluate.stitched import LEAST_UNITS, Behave, stitched
from steersman.evaluate.tables import tables_model
from steersman.evaluate.waves import features_of, waves_model

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Sequences:
    """A log of sequences under a target policy, and what can be modelled of it.

    Attributes:
        batch, paths: whole episodes only.
        target: [N, K] f64, or what the target would do, where actions are numbers.
        horizon: H, steps that the values are about.
        cut: H if the product declares it, None if H is the longest episode of the log.
        seed: of all random numbers.
        table: the log on a table, if its contexts are few.
        policy: of the target, to be asked at contexts that were not logged; None: not at hand.
    """

    batch: Batch
    paths: Paths
    target: Array | Aims
    horizon: int
    cut: int | None
    seed: int
    table: Cells | None
    policy: Policy | None

    @classmethod
    def of(
        cls, batch: Batch, paths: Paths, target: Array | Aims, horizon: int | None, seed: int, policy: Policy | None
    ) -> Sequences:
        """Looks once whether the contexts are few."""
        table = None if isinstance(target, Aims) else cells(batch, target)
        return cls(batch, paths, target, horizon or len(paths.steps), horizon, seed, table, policy)

    @property
    def stitchable(self) -> bool:
        """Whether episodes can be stitched: contexts are no table, candidates always the same, the policy at hand."""
        batch = self.batch
        enough = self.paths.clusters >= LEAST_UNITS
        one = all_alike(batch.candidates) and bool(batch.mask.all()) and not batch.numbers
        return self.table is None and self.policy is not None and one and enough

    @property
    def fitting(self) -> tuple[str, ...]:
        """Names of the estimators that can be asked here."""
        absent = {"stitched"} if not self.stitchable else set()
        absent |= {"drl", "smis", "samis"} if self.table is None else set()
        return tuple(name for name, row in ESTIMATORS.items() if row.sequence and name not in absent)

    @property
    def headline(self) -> str:
        """The estimator that errs least here: see the facts in each one's docstring."""
        if self.table is not None:
            return "drl"
        return "stitched" if self.stitchable else "wdr"

    def models(self, outcomes: Array, fold: Array) -> list[Model]:
        """Action values, and marginal weights on a table, one Model a column of `outcomes` [N, M]."""
        known = known_rows(self.paths, self.cut)
        if self.table is not None:
            return tables_model(self.table, self.batch, self.paths, outcomes, known, self.horizon, fold)
        features = features_of(self.batch, self.target, self.seed)
        return waves_model(self.batch, self.paths, outcomes, features, known, self.horizon, fold)

    def stitches(self, outcomes: Array) -> tuple[Stitch, ...]:
        """Stitched episodes, one Stitch a column of `outcomes`; none unless `stitchable`.

        Raises:
            SupportError, DataError: see `stitched.stitched`.
        """
        if self.policy is None:
            return ()
        behave = _behave(self.policy, self.batch.candidates[:1])
        return stitched(self.batch, behave, outcomes, horizon=self.horizon, seed=self.seed)


def _behave(policy: Policy, candidates: Array) -> Behave:
    """[M, F] contexts -> [M, K] probabilities of the policy for the same candidates [1, K, A] everywhere."""

    def behave(contexts: Array) -> Array:
        shape = (len(contexts), *candidates.shape[1:])
        scores = policy.scorer(contexts, np.broadcast_to(candidates, shape))
        return over_candidates(policy.explorer).probabilities(scores, np.ones(shape[:2], dtype=bool))

    return behave
