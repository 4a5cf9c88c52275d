"""Estimate, Verdict, Report: the claim, the answer, the file."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from steersman.core.errors import DataError

Status = Literal["pass", "fail", "not identified"]


class Estimate(Struct, frozen=True, kw_only=True):
    """A number with its interval: no number leaves without one.

    Attributes:
        estimator: name of the estimator, e.g. `dr`.
        metric: what is estimated: `reward` or a metric of the problem.
        value: in units of the metric, per episode (per decision if an episode is one decision).
        low, high: the interval.
        level: its nominal coverage, e.g. 0.95.
        n: number of clusters (units) that it rests on.
        ess: effective sample size, in clusters, in [0, n].
    """

    estimator: str
    metric: str = "reward"
    value: float
    low: float
    high: float
    level: float
    n: int
    ess: float

    def __post_init__(self) -> None:
        where = f"estimate {self.estimator} of {self.metric}"
        if not all(map(math.isfinite, (self.value, self.low, self.high, self.ess))):
            raise DataError(f"{where} is {self.value} [{self.low}, {self.high}], ess {self.ess}: not finite")
        if not self.low <= self.value <= self.high:
            raise DataError(f"{where} {self.value:g} is outside its interval [{self.low:g}, {self.high:g}]")
        if not 0 < self.level < 1:
            raise DataError(f"{where}: level is {self.level:g}, must be in (0, 1)", field="level")
        if self.n < 1 or not 0 <= self.ess <= self.n * (1 + 1e-9):
            raise DataError(f"{where}: n is {self.n}, ess {self.ess:g}; must be 0 <= ess <= n")


class Verdict(Struct, frozen=True, kw_only=True):
    """The answer to one question.

    Attributes:
        gate: the question, e.g. `lower bound`.
        status: `not identified`: the log can not answer it.
        reason: with the number and the limit, in words.
        value, limit: the two numbers compared, where there are two.
        next: what to do, if it did not pass.
    """

    gate: str
    status: Status
    reason: str
    value: float | None = None
    limit: float | None = None
    next: str = ""


class Report(Struct, frozen=True, kw_only=True):
    """What is claimed of a policy, on which data, and enough to repeat it.

    Attributes:
        problem: name.
        policy: digest of the policy judged.
        baseline: the behavior policy's own value on the same log.
        headline: the estimate that the gates judge.
        lift: headline - baseline, paired on the same units.
        estimates: all estimates of the policy, the headline among them.
        verdicts: one a gate; the policy passes if all do.
        refused: estimators and metrics that could not be estimated, and why.
        data: digest of the Batch.
        since, until: the window [since, until) of decisions, microseconds UTC.
        decisions: how many.
        estimated: how many decisions of the build have a propensity that nobody logged, only an estimate of it: the
            intervals know nothing of its error.
        seed: of every random number in the evaluation.
    """

    problem: str
    policy: str
    baseline: Estimate
    headline: Estimate
    lift: Estimate
    estimates: tuple[Estimate, ...]
    verdicts: tuple[Verdict, ...]
    refused: tuple[Verdict, ...] = ()
    data: str
    since: int
    until: int
    decisions: int
    estimated: int = 0
    seed: int

    def __post_init__(self) -> None:
        where = f"report of {self.problem}"
        if self.headline not in self.estimates:
            name = self.headline.estimator
            raise DataError(f"{where}: the headline {name} is not one of its estimates", field="headline")
        if self.since >= self.until:
            raise DataError(f"{where}: the window [{self.since}, {self.until}) is empty", field="until")
        if self.decisions < 1:
            raise DataError(f"{where}: it rests on {self.decisions} decisions", field="decisions")

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return bool(self.verdicts) and all(verdict.status == "pass" for verdict in self.verdicts)
