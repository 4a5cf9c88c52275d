"""What a version in the shadow would have done: told from the shadow's log, beside what was done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import msgspec
import numpy as np
from msgspec import Struct

from steersman import log
from steersman.config import Project
from steersman.core.decision import Decision, Outcome, decoder
from steersman.core.errors import NotFoundError, SupportError
from steersman.core.report import Estimate
from steersman.core.version import Rollout
from steersman.evaluate.intervals import Terms, estimate, ratio
from steersman.flow.places import shadow_log
from steersman.models.warehouse import Warehouse
from steersman.serve.shadow import AGREEMENT, PROPENSITY, SAME

LEVEL = 0.95
DIFFERENCE = "difference"
_decision, _outcome = decoder(Decision), decoder(Outcome)


class ShadowReport(Struct, frozen=True, kw_only=True):
    """A version in the shadow beside the champion that answered.

    Attributes:
        baseline, candidate: version numbers.
        since, last: microseconds UTC: when it came into the shadow, and of its last decision; 0: there is none.
        decisions, units: that it decided, too.
        same: share of the decisions in which it drew the action that was taken.
        agreement: its probability of the action that was taken, or density where actions are numbers: the mean.
        propensity: the same of the champion.
        difference: agreement - propensity, decision by decision. Of an unchanged policy it is 0.
        refused: why the four are not there.
    """

    problem: str
    baseline: int
    candidate: int
    since: int
    last: int = 0
    decisions: int = 0
    units: int = 0
    same: Estimate | None = None
    agreement: Estimate | None = None
    propensity: Estimate | None = None
    difference: Estimate | None = None
    refused: str = ""


def shadow_report(project: Project, name: str) -> ShadowReport:
    """What the version that is or was last in the shadow did there, from the log; live servers' last whole records too.

    Raises:
        NotFoundError: none was.
    """
    project.policy(name)
    states = Warehouse(project.warehouse_url).rollouts(name)
    found = next((one for one in reversed(states) if one.state == "shadow"), None)
    if found is None:
        hint = f"steersman rollout {name}@VERSION --shadow"
        raise NotFoundError(f"{name} never had a version in the shadow", hint=hint)
    return report_on(project, found)


def report_on(project: Project, rollout: Rollout) -> ShadowReport:
    """What a version did since it came into the shadow."""
    sums: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    last = 0
    for decision, told in _told(project, rollout):
        agreement, propensity = told.metrics[AGREEMENT], told.metrics[PROPENSITY]
        sums[decision.unit] += (1.0, told.metrics[SAME], agreement, propensity)
        last = max(last, decision.at)
    table = np.array(list(sums.values())).reshape(-1, 4)
    report = ShadowReport(
        problem=rollout.problem,
        baseline=rollout.baseline,
        candidate=rollout.candidate,
        since=rollout.since,
        last=last,
        decisions=int(table[:, 0].sum()),
        units=len(table),
    )
    n, same, by_candidate, by_baseline = table.T
    columns = {SAME: same, AGREEMENT: by_candidate, PROPENSITY: by_baseline, DIFFERENCE: by_candidate - by_baseline}
    try:
        means = {metric: _mean(column, n, metric) for metric, column in columns.items()}
    except SupportError:
        why = f"{len(table)} units were decided for: no interval can be told of so few"
        return msgspec.structs.replace(report, refused=why)
    return msgspec.structs.replace(report, **means)


def _mean(top: np.ndarray, n: np.ndarray, metric: str) -> Estimate:
    value, pull = ratio(top, n)
    return estimate(Terms.of(value, pull, n), estimator="shadow", metric=metric, level=LEVEL)


def _told(project: Project, rollout: Rollout) -> Iterator[tuple[Decision, Outcome]]:
    """Decisions of the version since it is in the shadow, each once, with what was told of it."""
    mine: dict[str, Decision | None] = {}
    if not shadow_log(project).exists():
        return
    for record in log.read(shadow_log(project)):
        if record.kind == log.DECISION:
            decision = _decision(record.body)
            asked = (decision.problem, decision.version) == (rollout.problem, rollout.candidate)
            if asked and decision.at >= rollout.since:
                mine.setdefault(decision.id, decision)
            continue
        told = _outcome(record.body)
        found = mine.get(told.decision)
        if found is not None and AGREEMENT in told.metrics:
            mine[told.decision] = None  # once
            yield found, told
