"""The verbs that judge: estimate a policy's value from the log alone, ask the gates, and draw what came out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np

from steersman import evaluate, learn, timeline
from steersman.config import Project
from steersman.core.batch import Batch
from steersman.core.density import Aims
from steersman.core.errors import DataError
from steersman.core.features import Encoder, columns
from steersman.core.policy import Policy
from steersman.core.ranking import Lists
from steersman.core.report import Report, Verdict
from steersman.core.shared import is_shared
from steersman.core.version import Version
from steersman.flow import places, watching
from steersman.flow.drift import since_version
from steersman.flow.places import latest_candidate
from steersman.models import onnx
from steersman.models.warehouse import CHAMPION, Warehouse

MOST_IDS = 5_000_000
"""Candidates up to which actions without a declared name are told apart by their ids, for their shares in a report."""


def judge(project: Project, name: str, version: str | None = None, *, seed: int = 0) -> Report:
    """Estimate a policy's value and the baseline's from the log alone, and ask the gates.

    Args:
        version: number or alias of a stored version; None: the last candidate. A policy that has learned is judged on
            the test units, which no training of this project sees; one that learned nothing on every row of the build.
    """
    if version is not None:
        stored, policy = stored_policy(project, name, version)
        return judge_policy(project, name, policy, stored.digest, seed=seed, learned=bool(stored.parents.data))
    candidate = latest_candidate(project, name)
    place = Path(candidate.directory)
    built = timeline.load(Path(candidate.build))
    rows = test_rows(project, name, built)
    report, _ = report_on(project, name, learn.load(place / "policy"), candidate.policy, built, rows, seed)
    report = msgspec.structs.replace(report, learning=watching.read(place))
    places.write(place / "report.json", report)
    return report


def judge_policy(
    project: Project, name: str, policy: Policy, digest: str, *, seed: int = 0, learned: bool = False
) -> Report:
    """The same for any policy, on the last build; the report lies beside the build.

    Args:
        learned: from this log: only the test units are looked at. Else every row is.
    """
    directory = places.latest(project, "builds", name, hint=f"steersman build {name}")
    built = timeline.load(directory)
    rows = test_rows(project, name, built) if learned else np.arange(len(built.batch))
    report, _ = report_on(project, name, policy, digest, built, rows, seed)
    places.write(directory.parent / f"report-{digest[:12]}.json", report)
    return report


def test_rows(project: Project, name: str, built: timeline.Built) -> np.ndarray:
    """Rows of the test units: a unit is in that part by its name, in every build."""
    shares = project.policy(name).learn
    return timeline.parts(built.unit, built.draws, shares.validation, shares.holdout)[2]


def draw(project: Project, name: str, version: str | None, report: Report, into: Path | None = None) -> Path:
    """Write a report as one HTML page with pictures.

    Args:
        version: as for `judge`.
        into: the file; None: beside report.json.
    Raises:
        MissingExtra: the `console` extra is not installed.
    """
    from steersman.flow.report_page import page

    if version is None:
        place, which = Path(latest_candidate(project, name).directory) / "report.html", f"{name}, the last candidate"
    else:
        builds = places.latest(project, "builds", name, hint=f"steersman build {name}").parent
        place, which = builds / f"report-{report.policy[:12]}.html", f"{name}@{version}"
    places.write_bytes(into or place, page(report, which).encode())
    return into or place


def report_on(
    project: Project, name: str, policy: Policy, digest: str, built: timeline.Built, rows: np.ndarray, seed: int
) -> tuple[Report, evaluate.Terms]:
    """A report on a policy from some rows of a build, not written down, and the terms of its headline."""
    settings = project.policy(name)
    batch, policy = _together(built, policy)
    batch = batch.take(rows)
    target = policy.target(batch)
    found, terms = evaluate.evaluated(
        batch, target, settings.evaluate, seed, settings.problem.horizon, policy, np.asarray(built.at[rows])
    )
    before, probabilities, unknown = _previous(project, name, digest, built, rows)
    shown, spread = None, None
    if isinstance(target, Lists):
        weight = target.propensities(batch.action).prod(axis=1) / batch.propensity
        spread = evaluate.weights_of(batch, weight, settings.evaluate.level)
    elif not isinstance(target, Aims):
        ids = None if batch.encoder.actions or batch.mask.size > MOST_IDS else built.raw.ids[rows]
        shown = evaluate.shown(batch, target, settings.evaluate.level, previous=probabilities, ids=ids)
        spread = shown.weights
    since = None if before is None else since_version(project, before, built.profiles, shown.shares if shown else None)
    report = Report(
        problem=name,
        policy=digest,
        baseline=found.baseline,
        headline=found.headline,
        lift=found.lift,
        estimates=found.estimates,
        ratios=found.ratios,
        baselines=tuple(metric.baseline for metric in found.metrics),
        lifts=tuple(metric.lift for metric in found.metrics),
        verdicts=evaluate.judge(found, settings.gates, since),
        distribution=found.distribution,
        refused=(*found.refused, *unknown),
        horizon=found.support.horizon,
        weights=spread,
        calibration=shown.calibration if shown else (),
        shares=shown.shares if shown else (),
        previous="" if probabilities is None or before is None else f"{name}@{before.number}",
        data=batch.digest,
        since=built.since,
        until=built.until,
        decisions=len(batch),
        estimated=built.counts.estimated,
        seed=seed,
    )
    return report, terms


def _previous(
    project: Project, name: str, digest: str, built: timeline.Built, rows: np.ndarray
) -> tuple[Version | None, np.ndarray | None, tuple[Verdict, ...]]:
    """The version that decides now, and what it would do in the same rows [N, K], or why that is not known.

    None: there is no such version, or it is the policy that is judged.
    """
    warehouse = Warehouse(project.warehouse_url)
    number = warehouse.aliases(name).get(CHAMPION, 0)
    if not number:
        return None, None, ()
    stored, policy = stored_policy(project, name, str(number))
    if stored.digest == digest:
        return None, None, ()
    if built.batch.numbers or built.batch.ranked:  # no candidates that one could have a share of
        return stored, None, ()
    try:
        batch, policy = _together(built, policy)
        return stored, policy.propensities(batch.take(rows)), ()
    except DataError as error:
        why = f"{name}@{number} can not be asked about these decisions: {error.message}"
        return stored, None, (Verdict(gate="shares of the version before", status="not identified", reason=why),)


def _together(built: timeline.Built, policy: Policy) -> tuple[Batch, Policy]:
    """The batch and the policy with one encoder, whoever made the batch.

    The policy's own, from the raw rows; but a policy that reads nothing of the context is asked with the columns of
    the build, for the models of the evaluation need them.

    Raises:
        DataError: the policy reads a field that the rows do not have.
    """
    batch, encoder = built.batch, policy.encoder
    if encoder.digest == batch.encoder.digest:
        return batch, policy
    same = all(getattr(encoder, what) == getattr(batch.encoder, what) for what in ("candidate", "actions", "numbers"))
    if not encoder.context and same:
        blind = policy.scorer
        return batch, Policy(batch.encoder, lambda context, some: blind(context[:, :0], some), policy.explorer)
    return encoded_by(encoder, built)[0], policy


def encoded_by(encoder: Encoder, built: timeline.Built) -> tuple[Batch, timeline.RawRows]:
    """The batch of a build as another encoder gives it, and the raw rows with the columns that this encoder reads.

    Raises:
        DataError: the encoder reads a field that the rows do not have.
    """
    batch, raw = built.batch, built.raw
    if encoder.digest == batch.encoder.digest:
        return batch, raw
    rows = timeline.RawRows(
        columns(raw.context, batch.encoder.context, encoder.context),
        columns(raw.candidates, batch.encoder.candidate, encoder.candidate),
        raw.ids,
    )
    one = slice(0, 1) if is_shared(raw.ids) else slice(None)  # all rows have the same candidates
    candidates = encoder.encode_candidates(rows.candidates.take(one), rows.ids[one])
    candidates = np.broadcast_to(candidates, (len(batch), *candidates.shape[1:]))
    context = encoder.encode_context(rows.context)
    return dataclasses.replace(batch, encoder=encoder, context=context, candidates=candidates), rows


def stored_policy(project: Project, name: str, version: str) -> tuple[Version, Policy]:
    """A version of the warehouse, and the policy that its graph is."""
    warehouse = Warehouse(project.warehouse_url)
    stored, graph = warehouse.read(name, warehouse.resolve(name, version))
    return stored, Policy(stored.encoder, onnx.encoded_scorer(graph), stored.explorer)
