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
        at_least: the interval is a bound: it covers in `level` of the cases or more, for it counts the worst that was
            logged where the log tells nothing, or holds at every number of decisions. Others cover in `level` of them.
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
    at_least: bool = False

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


class Weights(Struct, frozen=True, kw_only=True):
    """How the weights target / propensity of the decisions are spread.

    Attributes:
        edges: [B + 1] ascending and above 0: bins of the weights above 0, as wide as each other in the logarithm.
        counts: [B] decisions in each bin.
        masses: [B] share of all weight that they hold, in [0, 1]; sums to 1.
        zeros: decisions whose weight is 0: the target would never have done that.
        mean: weight of a decision; 1 if the propensities are right and all that the target does was sometimes logged.
        largest: the largest weight of a decision.
        largest_share: share of the heaviest unit in all weight of the decisions, in [0, 1].
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    masses: tuple[float, ...]
    zeros: int
    mean: Estimate
    largest: float
    largest_share: float


class Calibration(Struct, frozen=True, kw_only=True):
    """Whether some candidates were taken as often as the propensities in the log say.

    Attributes:
        by: what the candidates have in common: the `action`, or the `target`'s probability of it.
        group: which action, or from which to which probability.
        candidates: how often one of them could have been taken.
        taken: how often one was, at least 1.
        stated: the propensity that the log states of them: harmonic mean over those taken, in (0, 1].
        ratio: taken / candidates over `stated`, which is the sum of 1 / propensity of those taken over candidates. 1 if
            the propensities are right and each candidate was sometimes taken; below 1 too if some never were.
    """

    by: Literal["action", "target"]
    group: str
    candidates: int
    taken: int
    stated: float
    ratio: Estimate

    @property
    def seen(self) -> float:
        """Share of the candidates that was taken."""
        return self.taken / self.candidates


class ActionShare(Struct, frozen=True, kw_only=True):
    """How much of the decisions an action gets in the contexts of the log.

    Attributes:
        action: its name; `OTHERS`: all that are too many to be named.
        logged: share of the decisions that took it.
        target: share that the policy judged would give it.
        previous: share that the version before it would; None: there is none.
    """

    action: str
    logged: Estimate
    target: Estimate
    previous: Estimate | None = None


OTHERS = ""
"""Stands for the actions that a report does not name: an action always has a name."""


class Learned(Struct, frozen=True, kw_only=True):
    """Where a training stood.

    Attributes:
        step: training steps done.
        figures: name -> what the learner tells of the step, e.g. `loss`, `q`.
        values: estimates of the policy as it was then, on the validation units, that training does not learn from; the
            one to look at first.
        refused: why there is none where one was asked for.
        score: what nets are picked by: the first value; if it says how much the log leaves open, with the worst there.
        picked: this is the policy that was kept, and that the rest of the report is about.
    """

    step: int
    figures: dict[str, float]
    values: tuple[Estimate, ...] = ()
    refused: str = ""
    score: float | None = None
    picked: bool = False


class Distribution(Struct, frozen=True, kw_only=True):
    """How the returns of episodes are spread, under the policy and in the log (estimator `logged`).

    Attributes:
        estimates: metrics `return <= 12.5` (share of the episodes), `return p10` (quantile), `return cvar 10%` (mean
            of the worst tenth); each with its interval.
        refused: what could not be estimated, and why.
    """

    estimates: tuple[Estimate, ...]
    refused: tuple[Verdict, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """What is claimed of a policy, on which data, and enough to repeat and to draw it.

    Attributes:
        problem: name.
        policy: digest of the policy judged.
        baseline: the behavior policy's own value on the same log.
        headline: the estimate that the gates judge.
        lift: headline - baseline, paired on the same units.
        estimates: all estimates of the policy, the headline among them.
        verdicts: one a gate; the policy passes if all do.
        ratios: of estimates, relative to what was logged: 1 + (value - logged) / |logged|, paired. 1 is parity, 1.25
            a quarter better, whether the metric is a gain or a cost below 0.
        baselines: of each metric, the behavior policy's own value.
        lifts: of each metric, paired as `lift`.
        distribution: of the returns of episodes; None: nobody asked.
        refused: estimators, metrics and ratios that could not be estimated, and why.
        horizon: steps that the values are about; 1: one decision an episode.
        weights: how the weights are spread; None: the estimators have no weights.
        calibration: of the propensities in the log.
        shares: of the actions, the largest first.
        previous: which version `shares` has beside the log and the target; empty: none.
        learning: how the policy was trained; empty: nobody watched.
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
    ratios: tuple[Estimate, ...] = ()
    baselines: tuple[Estimate, ...] = ()
    lifts: tuple[Estimate, ...] = ()
    distribution: Distribution | None = None
    refused: tuple[Verdict, ...] = ()
    horizon: int = 1
    weights: Weights | None = None
    calibration: tuple[Calibration, ...] = ()
    shares: tuple[ActionShare, ...] = ()
    previous: str = ""
    learning: tuple[Learned, ...] = ()
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
