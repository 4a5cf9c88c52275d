"""Gates: questions asked of an Evaluation, each answered with the number, the limit, the reason and what to do next."""

from __future__ import annotations

import math

import msgspec
from msgspec import Struct

from steersman.core.errors import DataError
from steersman.core.report import Status, Verdict
from steersman.evaluate.estimators import ESTIMATORS
from steersman.evaluate.evaluation import Evaluation
from steersman.evaluate.intervals import quantile

ROUNDING = 1e-9
"""A lift below this share of the values compared is rounding: two equal policies must not pass by it."""


class Gates(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of the gates. A policy passes if every verdict is `pass`.

    Attributes:
        margin: the lower bound of the lift must be above it, in units of reward.
        level: of that one-sided lower bound, in (0.5, 1).
        min_ess: least effective number of units, where rewards are weighed (ips, snips, dr, pdis, wdr).
        min_ess_share: least effective share of the units there, in [0, 1].
        max_weight_share: largest share of one unit in all weight there, in (0, 1].
        min_visited: least effective number of units, where logged steps are visited (drl, stitched).
        max_outside: largest share of the target's steps that go where the log never was (drl), in [0, 1].
        weight_errors: the mean weight must be within this many standard errors of 1.
        max_open_share: largest share of episodes whose end nobody saw, in [0, 1].
    """

    margin: float = 0.0
    level: float = 0.95
    min_ess: float = 200.0
    min_ess_share: float = 0.01
    max_weight_share: float = 0.1
    min_visited: float = 10.0
    max_outside: float = 0.15
    weight_errors: float = 3.0
    max_open_share: float = 0.05

    def __post_init__(self) -> None:
        if not math.isfinite(self.margin):
            raise DataError(f"margin is {self.margin}, must be a number", field="margin")
        if not 0.5 < self.level < 1:
            raise DataError(f"level is {self.level:g}, must be in (0.5, 1)", field="level")
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(f"{name} is {value:g}, must be in [{low:g}, {high:g}]", field=name)


_LIMITS = (
    ("min_ess", 0.0, math.inf),
    ("min_ess_share", 0.0, 1.0),
    ("max_weight_share", 0.0, 1.0),
    ("min_visited", 0.0, math.inf),
    ("max_outside", 0.0, 1.0),
    ("weight_errors", 0.0, math.inf),
    ("max_open_share", 0.0, 1.0),
)


def judge(evaluation: Evaluation, gates: Gates) -> tuple[Verdict, ...]:
    """One verdict a gate.

    `lower bound`: of the paired lift, value of the target minus value of the behavior policy on the same log.
    `mean weight`: are the propensities those of the log, and was what the target does logged?
    `ess`: how many units speak?
    `largest weight`, where rewards are weighed: does one unit speak for all?
    `outside`, where visits are weighed: does the target go where the log never was? The interval of `stitched`
    counts the worst there, so it need not be asked.
    `open episodes`, for sequences: how many have no known end?
    """
    rests_on = ESTIMATORS[evaluation.headline.estimator].rests_on
    verdicts = [_lower_bound(evaluation, gates), _mean_weight(evaluation, gates)]
    if rests_on == "weights":
        least = max(gates.min_ess, gates.min_ess_share * evaluation.headline.n)
        verdicts.append(_ess(evaluation, least))
    else:
        verdicts.append(_ess(evaluation, gates.min_visited))
    if rests_on == "weights" and evaluation.support.largest_share is not None:
        verdicts.append(_largest_weight(evaluation.support.largest_share, gates))
    if rests_on == "visits" and evaluation.support.outside is not None:
        verdicts.append(_outside(evaluation.support.outside, gates))
    if evaluation.support.horizon > 1:
        verdicts.append(_open_episodes(evaluation, gates))
    return tuple(verdicts)


def lower_bound(evaluation: Evaluation, level: float) -> float:
    """One-sided lower bound of the lift at a level, for one look at the log that was planned before it."""
    floor = evaluation.lift_floor
    return min(floor.center, evaluation.lift.value) + quantile(1.0 - level, floor.df, floor.skew, floor.n) * floor.error


def more_decisions(evaluation: Evaluation, gates: Gates) -> int | None:
    """About how many more decisions of the same log would lift the lower bound above the margin; None: none would.

    The standard error falls with the root of the decisions; the point estimate is taken to stay where it is.
    """
    above = evaluation.lift_floor.center - gates.margin
    if above <= ROUNDING * _scale(evaluation):
        return None
    half = evaluation.lift_floor.center - lower_bound(evaluation, gates.level)
    return max(1, math.ceil(evaluation.support.decisions * ((half / above) ** 2 - 1.0)))


def _lower_bound(evaluation: Evaluation, gates: Gates) -> Verdict:
    bound = lower_bound(evaluation, gates.level)
    passed = bound - gates.margin > ROUNDING * _scale(evaluation)
    unit = evaluation.headline.estimator
    reason = (
        f"lift of {unit} over the logged policy is {evaluation.lift.value:.4g}, at least {bound:.4g} "
        f"with confidence {gates.level:g}; it must be above {gates.margin:g}"
    )
    return Verdict(
        gate="lower bound",
        status="pass" if passed else "fail",
        reason=reason,
        value=bound,
        limit=gates.margin,
        next="" if passed else _next_of_bound(evaluation, gates),
    )


def _next_of_bound(evaluation: Evaluation, gates: Gates) -> str:
    more = more_decisions(evaluation, gates)
    if more is None and evaluation.lift.value - gates.margin > ROUNDING * _scale(evaluation):
        return "the target goes where the log never was, and could fare badly there: log with more exploration"
    if more is None:
        below = "the logged policy" if gates.margin == 0 else "the logged policy and the margin"
        return f"the estimate is not above {below}: more of the same log will not settle it; train another policy"
    return f"about {_rounded(more):,} more decisions would settle it"


def _ess(evaluation: Evaluation, limit: float) -> Verdict:
    ess, n = evaluation.headline.ess, evaluation.headline.n
    more = (
        "" if ess <= 0 else f"about {_rounded(evaluation.support.decisions * (limit / ess - 1.0)):,} more decisions, "
    )
    return _limit(
        "ess",
        ess >= limit,
        "not identified",
        f"the estimate rests on an effective {ess:,.1f} of {n:,} units; at least {limit:,.0f} are needed",
        (ess, limit),
        f"{more}more exploration in the log, or a policy closer to the one that logged",
    )


def _largest_weight(share: float, gates: Gates) -> Verdict:
    return _limit(
        "largest weight",
        share <= gates.max_weight_share,
        "not identified",
        f"the heaviest unit holds a share of {share:.3g} of all weight; at most {gates.max_weight_share:g} is allowed",
        (share, gates.max_weight_share),
        "log with more exploration where the target differs from the log",
    )


def _outside(share: float, gates: Gates) -> Verdict:
    return _limit(
        "outside",
        share <= gates.max_outside,
        "not identified",
        f"a share of {share:.3g} of the target's steps goes where the log never was; "
        f"at most {gates.max_outside:g} is allowed",
        (share, gates.max_outside),
        "log with more exploration, or judge a policy closer to the one that logged",
    )


def _mean_weight(evaluation: Evaluation, gates: Gates) -> Verdict:
    support = evaluation.support
    away = abs(support.mean_weight - 1.0)
    limit = gates.weight_errors * support.mean_weight_error + ROUNDING
    if support.mean_weight < 1.0:
        hint = "the target does what was never or hardly logged: log with more exploration"
    else:
        hint = "the propensities are not those with which the log decided: check what writes them"
    return _limit(
        "mean weight",
        away <= limit,
        "fail",
        f"the mean weight is {support.mean_weight:.4g} +- {support.mean_weight_error:.2g} (standard error); "
        f"it must be 1 within {gates.weight_errors:g} of these",
        (support.mean_weight, 1.0),
        hint,
    )


def _open_episodes(evaluation: Evaluation, gates: Gates) -> Verdict:
    support = evaluation.support
    total = support.episodes + support.open_episodes
    share = support.open_episodes / total
    return _limit(
        "open episodes",
        share <= gates.max_open_share,
        "not identified",
        f"{support.open_episodes:,} of {total:,} episodes have no known end and are left out, a share of {share:.3g}; "
        f"at most {gates.max_open_share:g} is allowed, for those left out are not like the others",
        (share, gates.max_open_share),
        "end the window where episodes are over, log how they end, or declare the horizon",
    )


def _limit(gate: str, passed: bool, status: Status, reason: str, numbers: tuple[float, float], then: str) -> Verdict:
    value, limit = numbers
    verdict = Verdict(gate=gate, status="pass", reason=reason, value=value, limit=limit)
    return verdict if passed else msgspec.structs.replace(verdict, status=status, next=then)


def _scale(evaluation: Evaluation) -> float:
    return max(abs(evaluation.headline.value), abs(evaluation.baseline.value))


def _rounded(number: float) -> int:
    """Two significant digits, upwards: it is an "about"."""
    digits = max(0, math.floor(math.log10(max(number, 1.0))) - 1)
    return math.ceil(number / 10**digits) * 10**digits
