"""Gates: questions asked of an Evaluation, each answered with the number, the limit, the reason and what to do next."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from steersman.core.errors import DataError, did_you_mean
from steersman.core.report import Verdict
from steersman.evaluate import alarms
from steersman.evaluate.alarms import limited
from steersman.evaluate.anytime import TUNED, bernstein_floor, errors_out
from steersman.evaluate.estimators import ESTIMATORS
from steersman.evaluate.evaluation import Bets, Evaluation, Floor
from steersman.evaluate.previous import Previous, action_drift, feature_drift
from steersman.evaluate.quantiles import quantile

Sign = Literal[-1, 1]
"""The lower side of an interval, or the upper."""

ROUNDING = 1e-9
"""A lift below this share of the values compared is rounding: two equal policies must not pass by it."""


class Gates(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of the gates. A policy passes if every verdict is `pass`.

    Attributes:
        margin: the lower bound of the lift must be above it, in units of reward.
        level: of that one-sided lower bound, in (0.5, 1).
        bound: `anytime`: it holds however often one looks, once the units are many; `fixed`: for one look that was
            planned before the log, and then some 0.6 times as wide; `hard`: it holds at every number of decisions,
            however often one looks and however large the weights, by the weighted rewards alone, and is wider: for
            single decisions whose `reward_range` is declared. A log that is judged again has the old decisions and
            new ones.
        tuned: number of units at which `anytime` is tightest, above 0. From a quarter to ten times as many units it
            is at most a tenth wider than the tightest.
        max_fall: metric -> how much lower than under the logged policy it may be, at least 0, in its units. Judged by
            the bound of its paired difference at the same level, `anytime` also where the reward's is `hard`.
        max_rise: the same for metrics of which less is better, e.g. complaints. All limits must hold together, so
            each may be judged at the level itself.
        min_ess: least effective number of units, where rewards are weighed (ips, snips, dr, sndr, mrdr,
            ips-cv, replay, tis, sn-tis, pdis, sn-pdis, wdr).
        min_ess_share: least effective share of the units there, in [0, 1].
        max_weight_share: largest share of one unit in all weight there, in (0, 1].
        min_visited: least effective number of units, where logged steps are visited (smis, samis, drl, stitched).
        max_outside: largest share of the target's steps that go where the log never was (smis, samis, drl), in [0, 1].
        weight_errors: the mean weight must be within this many standard errors of 1.
        max_open_share: largest share of episodes whose end nobody saw, in [0, 1].
        max_unlogged: largest share of the target's decisions on actions that the log never took in comparable
            contexts, in [0, 1]; asked where rewards are weighed.
        min_calibration: the chance of so much against the propensities, were they right, must not be below this;
            in [0, 1]. A right log fails with at most this chance.
        max_disagreement: of `fqe` and `wdr`, in standard errors of the difference; asked where the headline rests
            on the context telling all that matters (smis, samis, drl, stitched).
        max_reward_drift: how far the reward that models do not foresee may move between the halves of the window, in
            its standard deviations.
        max_context_drift: the same for every column of the contexts, in theirs. Two halves are at most 2 apart, so 2
            asks nothing: contexts have trends, and estimates remain right.
        max_policy_drift: the same for the propensities and for how often each action was taken, in [0, 1]. 1 asks
            nothing: estimates remain right where policies follow each other, but the lift is over their mixture.
        max_action_drift: largest share of the decisions that would go to other actions than with the version that
            decides now, in [0, 1]. None: not asked.
        max_psi, max_ks: how far each field may move from the data of that version to that of the policy: population
            stability index (by custom 0.1 is worth a look, 0.25 is large), and Kolmogorov-Smirnov distance in [0, 1].
            What chance explains does not fail. None: not asked.
    """

    margin: float = 0.0
    level: float = 0.95
    bound: Literal["anytime", "fixed", "hard"] = "anytime"
    tuned: float = TUNED
    max_fall: dict[str, float] = {}
    max_rise: dict[str, float] = {}
    min_ess: float = 200.0
    min_ess_share: float = 0.01
    max_weight_share: float = 0.1
    min_visited: float = 10.0
    max_outside: float = 0.15
    weight_errors: float = 3.0
    max_open_share: float = 0.05
    max_unlogged: float = 0.05
    min_calibration: float = 0.001
    max_disagreement: float = 2.0
    max_reward_drift: float = 0.5
    max_context_drift: float = 2.0
    max_policy_drift: float = 1.0
    max_action_drift: float | None = None
    max_psi: float | None = None
    max_ks: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.margin):
            raise DataError(f"margin is {self.margin}, must be a number", field="margin")
        if not 0.5 < self.level < 1:
            raise DataError(f"level is {self.level:g}, must be in (0.5, 1)", field="level")
        if not 0 < self.tuned < math.inf:
            raise DataError(f"tuned is {self.tuned:g}, must be above 0", field="tuned")
        for field, limits in (("max_fall", self.max_fall), ("max_rise", self.max_rise)):
            for metric, limit in limits.items():
                if not 0 <= limit < math.inf:
                    raise DataError(f"{field} of {metric} is {limit:g}, must be at least 0", field=f"{field}.{metric}")
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise DataError(f"{name} is {value:g}, must be in [{low:g}, {high:g}]", field=name)


_LIMITS = (
    ("min_ess", 0.0, math.inf),
    ("min_ess_share", 0.0, 1.0),
    ("max_weight_share", 0.0, 1.0),
    ("min_visited", 0.0, math.inf),
    ("max_outside", 0.0, 1.0),
    ("weight_errors", 0.0, math.inf),
    ("max_open_share", 0.0, 1.0),
    ("max_unlogged", 0.0, 1.0),
    ("min_calibration", 0.0, 1.0),
    ("max_disagreement", 0.0, math.inf),
    ("max_reward_drift", 0.0, math.inf),
    ("max_context_drift", 0.0, math.inf),
    ("max_policy_drift", 0.0, 1.0),
    ("max_action_drift", 0.0, 1.0),
    ("max_psi", 0.0, math.inf),
    ("max_ks", 0.0, 1.0),
)


def judge(evaluation: Evaluation, gates: Gates, previous: Previous | None = None) -> tuple[Verdict, ...]:
    """One verdict a gate.

    `lower bound`: of the paired lift, value of the target minus value of the behavior policy on the same log.
    `fall of METRIC`, `rise of METRIC`, for every metric with a limit: how much worse might it be?
    `mean weight`: are the propensities those of the log, and was what the target does logged?
    `ess`: how many units speak?
    `largest weight`, where rewards are weighed: does one unit speak for all?
    `outside`, where visits are weighed: does the target go where the log never was? The interval of `stitched`
    counts the worst there, so it need not be asked.
    `open episodes`, for sequences: how many have no known end?
    `disagreement`, where the headline needs it: does the model agree with what does not rest on it?
    `support`, where rewards are weighed: does the target do what was never logged?
    `propensities`: can they be those with which the log decided?
    `policy drift`, `reward drift`, `context drift`, where times are known: what changed within the window?
    `action drift`, `feature drift`, where they have limits: what is other than with the version that decides now?

    Args:
        previous: that version; None: there is none, or it is the policy that is judged.
    """
    rests_on = ESTIMATORS[evaluation.headline.estimator].rests_on
    verdicts = [_lower_bound(evaluation, gates)]
    verdicts += [_guardrail(evaluation, gates, metric, -1) for metric in gates.max_fall]
    verdicts += [_guardrail(evaluation, gates, metric, 1) for metric in gates.max_rise]
    verdicts.append(_mean_weight(evaluation, gates))
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
    if rests_on != "weights" and evaluation.support.disagreement is not None:
        verdicts.append(alarms.disagreement(evaluation.support.disagreement, gates.max_disagreement))
    verdicts += _of_the_log(evaluation, gates)
    if previous is not None and gates.max_action_drift is not None:
        verdicts.append(action_drift(previous, gates.max_action_drift))
    if previous is not None:
        verdicts += feature_drift(previous, gates.max_psi, gates.max_ks)
    return tuple(verdicts)


def _of_the_log(evaluation: Evaluation, gates: Gates) -> list[Verdict]:
    """Verdicts on the log itself."""
    found = evaluation.diagnostics
    if found is None:
        return []
    verdicts = []
    if ESTIMATORS[evaluation.headline.estimator].rests_on == "weights":
        verdicts.append(alarms.support(found.unlogged, evaluation.support, gates.max_unlogged))
    verdicts.append(alarms.propensities(found.propensities, gates.min_calibration))
    limits = {
        "policy": gates.max_policy_drift,
        "reward": gates.max_reward_drift,
        "contexts": gates.max_context_drift,
    }
    return verdicts + [alarms.drift(change, limits[change.kind]) for change in found.changes]


def lower_bound(evaluation: Evaluation, gates: Gates) -> float | None:
    """One-sided lower bound of the lift, of the kind and at the level of the gates; None: the log has no `hard` one."""
    bound = _bound_of_lift(evaluation, gates)
    return None if bound is None else bound(1.0)


def more_decisions(evaluation: Evaluation, gates: Gates) -> int | None:
    """About how many more decisions of the same log would lift the lower bound above the margin; None: none would.

    Estimates are taken to stay where they are, and errors to fall with the root of the decisions.
    """
    bound = _bound_of_lift(evaluation, gates)
    if bound is None or _center(evaluation, gates) - gates.margin <= ROUNDING * _scale(evaluation):
        return None
    return _more(evaluation.support.decisions, lambda times: bound(times) - gates.margin)


def _bound_of_lift(evaluation: Evaluation, gates: Gates) -> Callable[[float], float] | None:
    """The lower bound of the lift if the log were so many times as long."""
    if gates.bound != "hard":
        return _bound(evaluation.lift_floor, -1, evaluation.lift.value, evaluation, gates)
    bets = evaluation.bets
    return None if bets is None else lambda times: _hard(bets, gates.level, times)


def _hard(bets: Bets, level: float, times: float) -> float:
    return bets.unit * bernstein_floor(times * bets.n, times * bets.total, times * bets.square, level)


def _bound(side: Floor, sign: Sign, value: float, evaluation: Evaluation, gates: Gates) -> Callable[[float], float]:
    """The bound on one side of a value, by its error, if the log were so many times as long."""
    units = evaluation.lift.n
    center = min(side.center, value) if sign < 0 else max(side.center, value)

    def bound(times: float) -> float:
        if gates.bound == "fixed":
            errors = quantile(0.5 + sign * (gates.level - 0.5), side.df, side.skew, side.n)
        else:
            errors = errors_out(side, units * times, sign, gates.level, gates.tuned)
        return center + errors * side.error / math.sqrt(times)

    return bound


def _more(decisions: int, above: Callable[[float], float]) -> int | None:
    """About how many more decisions until a bound is above its limit; None: not in a trillion times as many.

    Args:
        above: how far above its limit the bound is if the log were so many times as long.
    """
    enough = next((2.0**k for k in range(41) if above(2.0**k) > 0), None)
    if enough is None:
        return None
    too_few = enough / 2.0
    for _ in range(40):
        middle = 0.5 * (too_few + enough)
        too_few, enough = (too_few, middle) if above(middle) > 0 else (middle, enough)
    return max(1, math.ceil(decisions * (enough - 1.0)))


def _lower_bound(evaluation: Evaluation, gates: Gates) -> Verdict:
    bound = lower_bound(evaluation, gates)
    if bound is None:
        return _no_hard_bound(evaluation, gates)
    passed = bound - gates.margin > ROUNDING * _scale(evaluation)
    unit = evaluation.headline.estimator
    reason = (
        f"lift of {unit} over the logged policy is {evaluation.lift.value:.4g}, at least {bound:.4g} "
        f"with confidence {gates.level:g} {_looks(gates.bound)}; it must be above {gates.margin:g}"
    )
    if gates.bound == "anytime" and evaluation.lift_floor.n != evaluation.lift.n:
        reason += (
            f" (its error, from {evaluation.lift_floor.n} random halves of the units, is widened as that of a mean of "
            f"{evaluation.lift.n:,} units)"
        )
    return Verdict(
        gate="lower bound",
        status="pass" if passed else "fail",
        reason=reason,
        value=bound,
        limit=gates.margin,
        next="" if passed else _next_of_bound(evaluation, gates),
    )


def _no_hard_bound(evaluation: Evaluation, gates: Gates) -> Verdict:
    if evaluation.support.horizon > 1:
        reason, then = "a hard bound is for single decisions, and these are sequences", 'use bound = "anytime"'
    else:
        reason = "a hard bound needs the lowest and the highest reward that a decision can have"
        then = "declare reward_range beside the estimators"
    return Verdict(gate="lower bound", status="not identified", reason=reason, limit=gates.margin, next=then)


def _looks(bound: str) -> str:
    """What a confidence is about, in words."""
    if bound == "fixed":
        return "for one look that was planned"
    whatever = " and however large the weights are" if bound == "hard" else ""
    return f"however often one looks{whatever}"


def _next_of_bound(evaluation: Evaluation, gates: Gates) -> str:
    more = more_decisions(evaluation, gates)
    if more is None and evaluation.lift.value - gates.margin > ROUNDING * _scale(evaluation):
        if gates.bound == "hard":
            return "the weighted rewards alone are not above the margin: log more decisions, or use another bound"
        return "the target goes where the log never was, and could fare badly there: log with more exploration"
    if more is None:
        below = "the logged policy" if gates.margin == 0 else "the logged policy and the margin"
        return f"the estimate is not above {below}: more of the same log will not settle it; train another policy"
    return f"about {_rounded(more):,} more decisions would settle it"


def _center(evaluation: Evaluation, gates: Gates) -> float:
    """Where the lower bound of the lift is measured from."""
    bets = evaluation.bets
    if gates.bound == "hard" and bets is not None:
        return bets.unit * bets.total / bets.n
    return min(evaluation.lift_floor.center, evaluation.lift.value)


def _guardrail(evaluation: Evaluation, gates: Gates, metric: str, sign: Sign) -> Verdict:
    """Whether a metric stays within its limit: of its fall (-1) or of its rise (1)."""
    word = "fall" if sign < 0 else "rise"
    limit = sign * (gates.max_fall if sign < 0 else gates.max_rise)[metric]
    paired = next((m for m in evaluation.metrics if m.value.metric == metric), None)
    if paired is None:
        return _no_guardrail(evaluation, f"{word} of {metric}", metric, limit)
    bound = _bound(paired.low if sign < 0 else paired.high, sign, paired.lift.value, evaluation, gates)
    worst = bound(1.0)
    slack = ROUNDING * max(abs(paired.value.value), abs(paired.baseline.value))
    within = sign * (limit - worst) >= -slack
    reason = (
        f"{metric} changes by {paired.lift.value:.4g}, at worst by {worst:.4g} with confidence {gates.level:g} "
        f"{_looks('fixed' if gates.bound == 'fixed' else 'anytime')}; it may {word} by at most {abs(limit):g}"
    )
    return Verdict(
        gate=f"{word} of {metric}",
        status="pass" if within else "fail",
        reason=reason,
        value=worst,
        limit=limit,
        next="" if within else _next_of_guardrail(evaluation, bound, sign, limit),
    )


def _next_of_guardrail(evaluation: Evaluation, bound: Callable[[float], float], sign: Sign, limit: float) -> str:
    more = _more(evaluation.support.decisions, lambda times: sign * (limit - bound(times)))
    if more is None:
        return "the estimate is not within the limit: more of the same log will not settle it; train another policy"
    return f"about {_rounded(more):,} more decisions would settle it"


def _no_guardrail(evaluation: Evaluation, gate: str, metric: str, limit: float) -> Verdict:
    """Why a metric with a limit has no bound."""
    why = next((v for v in evaluation.refused if v.gate == f"metric {metric}"), None)
    known = [m.value.metric for m in evaluation.metrics]
    return Verdict(
        gate=gate,
        status="not identified",
        reason=why.reason if why else f"no metric {metric!r} was estimated from this log",
        limit=limit,
        next=why.next if why else did_you_mean(metric, known),
    )


def _ess(evaluation: Evaluation, limit: float) -> Verdict:
    ess, n = evaluation.headline.ess, evaluation.headline.n
    more = (
        "" if ess <= 0 else f"about {_rounded(evaluation.support.decisions * (limit / ess - 1.0)):,} more decisions, "
    )
    return limited(
        "ess",
        ess >= limit,
        "not identified",
        f"the estimate rests on an effective {ess:,.1f} of {n:,} units; at least {limit:,.0f} are needed",
        (ess, limit),
        f"{more}more exploration in the log, or a policy closer to the one that logged",
    )


def _largest_weight(share: float, gates: Gates) -> Verdict:
    return limited(
        "largest weight",
        share <= gates.max_weight_share,
        "not identified",
        f"the heaviest unit holds a share of {share:.3g} of all weight; at most {gates.max_weight_share:g} is allowed",
        (share, gates.max_weight_share),
        "log with more exploration where the target differs from the log",
    )


def _outside(share: float, gates: Gates) -> Verdict:
    return limited(
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
        hint = (
            "the target does what was never or hardly logged, or the propensities are too large: log with more "
            "exploration, and check what writes the propensities"
        )
    else:
        hint = "the propensities are not those with which the log decided: check what writes them"
    return limited(
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
    return limited(
        "open episodes",
        share <= gates.max_open_share,
        "not identified",
        f"{support.open_episodes:,} of {total:,} episodes have no known end and are left out, a share of {share:.3g}; "
        f"at most {gates.max_open_share:g} is allowed, for those left out are not like the others",
        (share, gates.max_open_share),
        "end the window where episodes are over, log how they end, or declare the horizon",
    )


def _scale(evaluation: Evaluation) -> float:
    return max(abs(evaluation.headline.value), abs(evaluation.baseline.value))


def _rounded(number: float) -> int:
    """Two significant digits, upwards: it is an "about"."""
    digits = max(0, math.floor(math.log10(max(number, 1.0))) - 1)
    return math.ceil(number / 10**digits) * 10**digits
