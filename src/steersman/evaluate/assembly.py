"""From Terms to what is reported of them: the same for single decisions, sequences and ranked lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steersman.core.errors import SupportError
from steersman.core.report import Distribution, Estimate, Verdict
from steersman.evaluate.diagnostics import Diagnostics
from steersman.evaluate.estimators import ESTIMATORS, logged
from steersman.evaluate.evaluation import Bets, Evaluation, Floor, Paired, Settings, Support
from steersman.evaluate.evidence import Evidence
from steersman.evaluate.intervals import Influence, Terms
from steersman.evaluate.printed import Printer

Array = np.ndarray

LEAST_UNITS = 10
"""Effective units, or half of all if these are fewer, without which weighed rewards give no number at all."""


@dataclass(frozen=True)
class Told:
    """What an Evaluation says of the values: see there, whose fields these are.

    Attributes:
        terms: estimator -> its terms of the reward.
    """

    terms: dict[str, Terms]
    baseline: Estimate
    headline: Estimate
    lift: Estimate
    lift_floor: Floor
    estimates: tuple[Estimate, ...]
    ratios: tuple[Estimate, ...]
    metrics: tuple[Paired, ...]
    refused: tuple[Verdict, ...]

    def evaluation(
        self,
        absent: Sequence[Verdict],
        *,
        distribution: Distribution,
        support: Support,
        bets: Bets | None,
        diagnostics: Diagnostics | None = None,
    ) -> Evaluation:
        """The whole of it.

        Args:
            absent: metrics that the log does not have.
        """
        return Evaluation(
            baseline=self.baseline,
            headline=self.headline,
            lift=self.lift,
            lift_floor=self.lift_floor,
            estimates=self.estimates,
            ratios=self.ratios,
            metrics=self.metrics,
            distribution=distribution,
            refused=(*self.refused, *absent),
            support=support,
            bets=bets,
            diagnostics=diagnostics,
        )


def told(
    evidence: Sequence[Evidence],
    metrics: Sequence[str],
    names: Sequence[str],
    headline: str,
    settings: Settings,
    seed: int,
) -> Told:
    """Estimates of the reward by every estimator, and of every metric by the headline's.

    Args:
        evidence: of the reward, then one a metric.
        metrics: their names.
        names: of the estimators, the headline among them.
        seed: of the bootstrap.
    Raises:
        SupportError: the headline could not be estimated.
    """
    teller = _Teller(Printer(settings, evidence[0].paths, seed), headline)
    baseline = logged(evidence[0])
    found, refused = _terms(names, headline, evidence[0])
    reward = teller.paired("reward", found[headline], baseline)
    of_metrics = {name: ESTIMATORS[headline].terms(e) for name, e in zip(metrics, evidence[1:], strict=True)}
    logged_metrics = {name: logged(e) for name, e in zip(metrics, evidence[1:], strict=True)}
    printed, untold = teller.printed(found)
    paired, unknown = teller.metrics(of_metrics, logged_metrics)
    ratios, without = teller.ratios(found, baseline, of_metrics, logged_metrics)
    return Told(
        terms=found,
        baseline=reward.baseline,
        headline=reward.value,
        lift=reward.lift,
        lift_floor=Floor.of(found[headline].low.minus_logged(baseline)),
        estimates=(*printed, *(metric.value for metric in paired)),
        ratios=ratios,
        metrics=paired,
        refused=(*refused, *untold, *unknown, *without),
    )


def _terms(names: Sequence[str], headline: str, evidence: Evidence) -> tuple[dict[str, Terms], list[Verdict]]:
    """Terms of every estimator that could, and a verdict on every other."""
    found: dict[str, Terms] = {}
    refused: list[Verdict] = []
    for name in names:
        try:
            found[name] = _believable(ESTIMATORS[name].terms(evidence), name, evidence.weight)
        except SupportError as error:
            if name == headline:
                raise
            refused.append(Verdict(gate=name, status="not identified", reason=error.message, next=error.hint))
    return found, refused


@dataclass(frozen=True, eq=False)
class _Teller:
    """Makes estimates with the interval of the settings; metrics are estimated by the headline."""

    printer: Printer
    headline: str

    def printed(self, found: dict[str, Terms]) -> tuple[list[Estimate], list[Verdict]]:
        """Estimates of the reward, and a verdict on every estimator that has no interval of the kind asked for."""
        made, refused = [], []
        for name, terms in found.items():
            try:
                made.append(self.printer.print(terms, name, "reward"))
            except SupportError as error:
                refused.append(Verdict(gate=name, status="not identified", reason=error.message, next=error.hint))
        return made, refused

    def metrics(
        self, values: dict[str, Terms], logged: dict[str, Influence]
    ) -> tuple[tuple[Paired, ...], list[Verdict]]:
        """Every metric under both policies, and a verdict on those that have no interval of the kind asked for."""
        made, refused = [], []
        for name, terms in values.items():
            try:
                made.append(self.paired(name, terms, logged[name]))
            except SupportError as error:
                gate = f"metric {name}"
                refused.append(Verdict(gate=gate, status="not identified", reason=error.message, next=error.hint))
        return tuple(made), refused

    def ratios(
        self, found: dict[str, Terms], baseline: Influence, metrics: dict[str, Terms], logged: dict[str, Influence]
    ) -> tuple[tuple[Estimate, ...], list[Verdict]]:
        """Every estimate of the reward and the headline's of every metric relative to the log; why not, once a metric.

        Args:
            found: estimator -> its terms of the reward; baseline: the logged value of the reward.
            metrics: metric -> its terms by the headline estimator; logged: its logged value.
        """
        made: list[Estimate] = []
        refused: dict[str, Verdict] = {}
        asked = [("reward", name, terms, baseline) for name, terms in found.items()]
        asked += [(metric, self.headline, terms, logged[metric]) for metric, terms in metrics.items()]
        level = self.printer.settings.level
        for metric, name, terms, value in asked:
            try:
                made.append(self.printer.print(terms.over_logged(value, level), f"{name} / logged", metric))
            except SupportError as error:
                refused[metric] = Verdict(
                    gate=f"ratio of {metric}", status="not identified", reason=error.message, next=error.hint
                )
        return tuple(made), list(refused.values())

    def paired(self, metric: str, value: Terms, logged: Influence) -> Paired:
        """Estimates of a metric under both policies, and of their difference."""
        name, printer = self.headline, self.printer
        episodes = printer.paths.per_cluster(np.ones(printer.paths.episodes))
        baseline = Terms.of(logged.center, logged.pull, episodes, logged.sums)
        lift = value.minus_logged(logged)
        return Paired(
            baseline=printer.print(baseline, "logged", metric),
            value=printer.print(value, name, metric),
            lift=printer.print(lift, f"{name} - logged", metric),
            low=Floor.of(lift.low),
            high=Floor.of(lift.high),
        )


def metrics_of(names: Sequence[str], columns: Sequence[Array], reward: Array) -> tuple[dict[str, Array], list[Verdict]]:
    """Metrics that every row has, and a verdict on each of the others. One that is the reward is not told twice.

    Args:
        columns: one a name, [N] or, of ranked lists, [N, L].
        reward: of the same shape.
    """
    metrics: dict[str, Array] = {}
    absent = []
    for name, column in zip(names, columns, strict=True):
        if name == "reward" and np.array_equal(column, reward):
            continue
        lacking = ~np.isfinite(column)
        missing = int(np.sum(lacking.any(axis=1) if lacking.ndim == 2 else lacking))
        if missing == 0:
            metrics["metrics.reward" if name == "reward" else name] = np.ascontiguousarray(column)
            continue
        reason = f"{missing:,} of {len(column):,} decisions have no {name}: those that do may not be like the others"
        absent.append(
            Verdict(
                gate=f"metric {name}",
                status="not identified",
                reason=reason,
                next=f"give the problem a default_outcome for {name}",
            )
        )
    return metrics, absent


def _believable(terms: Terms, name: str, weight: Array) -> Terms:
    """The same terms.

    Raises:
        SupportError: a number of them is too large for a float, or a handful of units hold all weight: their mean is
            no estimate, its error can not be told from so few, and with a model it may be what no reward can be.
    """
    numbers = (terms.value, terms.low.center, terms.low.error, terms.high.center, terms.high.error, terms.ess)
    if not np.isfinite(numbers).all():
        raise SupportError(
            f"{name} is not finite: the weights of whole episodes leave the range of numbers",
            hint="the policies differ too much for estimators that weigh whole episodes",
        )
    if ESTIMATORS[name].rests_on == "weights" and terms.ess < min(LEAST_UNITS, terms.n / 2):
        raise SupportError(
            f"not identified: {name} rests on an effective {terms.ess:.1f} of {terms.n:,} units, and on weights of up "
            f"to {weight.max():,.0f}; at least {LEAST_UNITS} are needed for a number",
            hint="log with more exploration, or judge a policy closer to the one that logged",
        )
    return terms
