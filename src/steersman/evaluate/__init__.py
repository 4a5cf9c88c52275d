"""POLICY -> REPORT: what a log says about a policy that did not write it. Pure functions on arrays, numpy only.

`evaluate` gives every estimator the same Evidence (columns), each gives back Terms (a value, and what each unit
contributes to its error), and one path turns Terms into interval, paired lift and effective sample size. `judge` asks
the gates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from steersman.core.batch import Batch
from steersman.core.density import Aims
from steersman.core.errors import ConfigError, DataError
from steersman.core.policy import Policy
from steersman.core.ranking import Lists
from steersman.evaluate.assembly import metrics_of, told
from steersman.evaluate.beside import Shown, shown, weights_of
from steersman.evaluate.diagnostics import diagnose
from steersman.evaluate.disagreement import disagreement
from steersman.evaluate.distribution import distribution
from steersman.evaluate.doses import Columns, dose_model, meant
from steersman.evaluate.estimators import ESTIMATORS
from steersman.evaluate.evaluation import Bets, Evaluation, Settings, Support
from steersman.evaluate.evidence import Evidence, Model, Paths, weights, whole
from steersman.evaluate.gates import Gates, judge
from steersman.evaluate.guardrails import Guardrail
from steersman.evaluate.intervals import Influence, Terms, difference, ratio
from steersman.evaluate.lists import evaluate_lists
from steersman.evaluate.nuisance import folds_of, learned_weights, reward_model, robust_model
from steersman.evaluate.one_step import uniform
from steersman.evaluate.previous import Moved, Previous
from steersman.evaluate.printed import check_weights
from steersman.evaluate.sequences import Sequences
from steersman.evaluate.smoothed import SMOOTHED, support_weight
from steersman.evaluate.trajectories import silent

__all__ = [
    "ESTIMATORS",
    "Evaluation",
    "Evidence",
    "Gates",
    "Guardrail",
    "Moved",
    "Paths",
    "Previous",
    "Settings",
    "Shown",
    "Terms",
    "difference",
    "evaluate",
    "evaluated",
    "judge",
    "shown",
    "weights_of",
]

Array = np.ndarray


def evaluate(
    batch: Batch,
    target: Array | Aims | Lists,
    settings: Settings,
    seed: int,
    horizon: int | None = None,
    policy: Policy | None = None,
    at: Array | None = None,
) -> Evaluation:
    """Value of a target policy and its lift over the behavior policy, from the behavior policy's log alone.

    One decision an episode: values are mean reward per decision. Sequences: mean discounted return per episode. Units
    are the clusters of every interval. Every model is cross-fitted: it never judges a unit that it learned from.

    An episode whose end nobody saw (its last row neither terminated nor at the horizon) has no known return. It is
    left out of every number, the baseline's too, and counted in `support.open_episodes`; the gate `open episodes`
    says when they are too many, for the episodes that the end of a window cuts are longer than the others.

    Args:
        target: [N, K] f64, probabilities of the target policy for every candidate of every row; padding 0. Where
            actions are numbers: what the target would do. Of ranked lists: those that it may show.
        seed: of folds, random features and stitched episodes.
        horizon: steps after which an episode is over by the rules of the product. None for sequences: the values are
            about as many steps as the longest episode in the log.
        policy: the target itself, for estimators that ask it at contexts that were not logged (`stitched`).
        at: [N] i64, when each decision was made, to tell what changed within the window; None: nobody knows.
    Raises:
        DataError: the target is no policy, there is one unit only, or no episode is over.
        SupportError: the target takes none of the logged actions, or the headline can not be estimated.
        ConfigError: an estimator is not for this kind of log.
    """
    return evaluated(batch, target, settings, seed, horizon, policy, at)[0]


def evaluated(
    batch: Batch,
    target: Array | Aims | Lists,
    settings: Settings,
    seed: int,
    horizon: int | None = None,
    policy: Policy | None = None,
    at: Array | None = None,
) -> tuple[Evaluation, Terms]:
    """The same, and the headline's terms of the reward, to set two policies on the same rows against each other."""
    if isinstance(target, Lists):
        return evaluate_lists(batch, target, settings, seed)
    weight = weights(batch, target)
    check_weights(weight, settings)
    kept, still_open = whole(batch, horizon)
    logged_weights = (Paths.of(batch), weight)
    if still_open:
        rows = np.flatnonzero(kept)
        batch, at = batch.take(rows), None if at is None else at[rows]
        target = target.take(rows) if isinstance(target, Aims) else target[rows]
        weight = weights(batch, target)  # refuses once more: what is left may hold none of the target's actions
    paths = Paths.of(batch)
    if paths.clusters < 2:
        raise DataError(
            f"the log has {paths.clusters} unit with whole episodes: the error of its mean can not be told",
            hint="log more units; all decisions of one unit are one cluster",
        )
    sequences = None if paths.one_step else Sequences.of(batch, paths, target, horizon, seed, policy)
    names, headline = _names(settings, sequences, batch, target)
    metrics, absent = metrics_of(batch.metric_names, list(batch.metrics.T), batch.reward)
    case = _Case(batch, target, weight, paths, settings, seed, sequences, names, headline)
    evidence = case.evidence([batch.reward, *metrics.values()])
    found = told(evidence, tuple(metrics), names, headline, settings, seed)
    weighed = sequences is None and (not isinstance(target, Aims) or target.dense)
    evaluation = found.evaluation(
        absent,
        distribution=distribution(evidence[0], settings.level),
        support=_support(case, evidence[0], found.terms, logged_weights, still_open),
        bets=Bets.of(batch.reward, weight, settings.reward_range) if weighed else None,
        diagnostics=None
        if isinstance(target, Aims)
        else diagnose(batch, target, evidence[0], at, folds=settings.folds, seed=seed),
    )
    return evaluation, found.terms[headline]


@dataclass(frozen=True, eq=False)
class _Case:
    """One policy on one log: whole episodes only."""

    batch: Batch
    target: Array | Aims
    weight: Array
    paths: Paths
    settings: Settings
    seed: int
    sequences: Sequences | None
    names: tuple[str, ...]
    headline: str

    def evidence(self, outcomes: list[Array]) -> list[Evidence]:
        """One Evidence an outcome. Equal outcomes (a reward that is a metric) share it; models only if asked for."""
        place = {column.tobytes(): i for i, column in reversed(list(enumerate(outcomes)))}
        different = [column for i, column in enumerate(outcomes) if place[column.tobytes()] == i]
        made = dict(zip((c.tobytes() for c in different), self._evidence(np.stack(different, axis=1)), strict=True))
        return [made[column.tobytes()] for column in outcomes]

    def _evidence(self, outcomes: Array) -> list[Evidence]:
        none = np.zeros(len(self.batch))
        made = [Evidence(self.paths, column, self.weight, none, none) for column in outcomes.T]
        fold = folds_of(self.paths, self.settings.folds, self.seed)
        modelled = any(ESTIMATORS[name].model for name in self.names)
        if self.sequences is None:
            return self._one_step(made, outcomes, fold[self.paths.episode], modelled)
        if modelled and (self.sequences.table is not None or not silent(made[0])):
            models = self.sequences.models(outcomes, fold)
            made = [replace(e, q=m.q, v=m.v, marginal=m.marginal) for e, m in zip(made, models, strict=True)]
        if "stitched" in self.names and self.sequences.stitchable:
            stitches = self.sequences.stitches(outcomes)
            made = [replace(e, stitch=s) for e, s in zip(made, stitches, strict=True)]
        return made

    def _one_step(self, made: list[Evidence], outcomes: Array, fold: Array, modelled: bool) -> list[Evidence]:
        """The same with the models that somebody asks for."""
        batch, names, target = self.batch, self.names, self.target
        if isinstance(target, Aims):
            return self._numbers(made, outcomes, fold, target)
        if modelled:
            q, v = reward_model(batch, outcomes, target, fold)
            made = [replace(e, q=q[:, m], v=v[:, m]) for m, e in enumerate(made)]
        if "mrdr" in names and (robust := robust_model(batch, outcomes, target, self.weight, fold)):
            q, v = robust
            made = [replace(e, robust=Model(q[:, m], v[:, m])) for m, e in enumerate(made)]
        learned = learned_weights(batch, target, fold) if "balanced-ips" in names else None
        embedded = learned_weights(batch, target, fold, features=True) if "mips" in names else None
        return [replace(e, propensity=batch.propensity, learned=learned, embedded=embedded) for e in made]

    def _numbers(self, made: list[Evidence], outcomes: Array, fold: Array, aims: Aims) -> list[Evidence]:
        """The same where actions are numbers."""
        columns = Columns.of(self.batch, aims.box)
        kernels = any(ESTIMATORS[name].actions == "kernel" for name in self.names)
        found = meant(self.batch, aims, columns, self.seed, kernels=kernels)
        q, v = dose_model(self.batch, outcomes, columns, found.basis, fold)
        return [replace(e, q=q[:, m], v=v[:, m], kernels=found.kernels) for m, e in enumerate(made)]


def _names(
    settings: Settings, sequences: Sequences | None, batch: Batch, target: Array | Aims
) -> tuple[tuple[str, ...], str]:
    """Estimators to ask, in the order of the table, and the headline among them."""
    known = [name for name, row in ESTIMATORS.items() if (row.one_step if sequences is None else row.sequence)]
    known = [name for name in known if ESTIMATORS[name].actions in _actions(target)]
    preferred = "dr" if "dr" in known else "kernel-dr"
    headline = settings.headline or (preferred if sequences is None else sequences.headline)
    for name in (*settings.estimators, headline):
        if name not in known:
            kind = "single decisions" if sequences is None else "sequences"
            of = _OF[_actions(target)]
            use = f"use {', '.join(known)}" if known else "give the policy an explorer with a density"
            raise ConfigError(f"{name} is not for a log of {kind}{of}", hint=use, field="estimators")
    fitting = _fitting(known, batch) if sequences is None else sequences.fitting
    asked = {*(settings.estimators or fitting), headline}
    return tuple(name for name in known if name in asked), headline


_OF = {
    ("candidates", "any"): "",
    ("any", "kernel"): " of numbers",
    ("kernel",): " of numbers for a target without chance",
}


def _actions(target: Array | Aims) -> tuple[str, ...]:
    """Which kinds of estimators can be asked of a target; see `Estimator.actions`."""
    if not isinstance(target, Aims):
        return ("candidates", "any")
    return ("any", "kernel") if target.dense else ("kernel",)


def _fitting(known: list[str], batch: Batch) -> tuple[str, ...]:
    """Names of the estimators of single decisions that can be asked here."""
    absent = set() if uniform(batch.propensity) else {"replay"}
    if batch.encoder.candidate_width == len(batch.encoder.actions):
        absent.add("mips")
    return tuple(name for name in known if name not in absent)


def _support(
    case: _Case, evidence: Evidence, found: dict[str, Terms], logged_weights: tuple[Paths, Array], still_open: int
) -> Support:
    """The mean weight is over all rows, those of open episodes too: to leave these out would be to choose rows."""
    paths, weight = logged_weights
    if case.headline in SMOOTHED:
        weight = support_weight(evidence, case.headline)
    bottom = paths.per_cluster(paths.per_episode(np.ones(len(weight))))
    mean, pull = ratio(paths.per_cluster(paths.per_episode(weight)), bottom)
    outside = None
    if ESTIMATORS[case.headline].rests_on == "visits" and evidence.marginal is not None:
        outside = evidence.marginal.outside
    if case.headline == "stitched" and evidence.stitch is not None:
        outside = evidence.stitch.outside
    return Support(
        decisions=len(case.batch),
        episodes=case.paths.episodes,
        units=case.paths.clusters,
        open_episodes=still_open,
        horizon=1 if case.sequences is None else case.sequences.horizon,
        mean_weight=mean,
        mean_weight_error=Influence(mean, pull).error,
        largest_weight=float(weight.max()),
        largest_share=found[case.headline].largest_share,
        outside=outside,
        disagreement=disagreement(evidence),
    )
