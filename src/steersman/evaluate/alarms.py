"""Verdicts on the log itself: support, propensities, what changed within the window, models that disagree."""

from __future__ import annotations

import msgspec

from steersman.core.report import Status, Verdict
from steersman.evaluate.change import ALARM, Change
from steersman.evaluate.evaluation import Support
from steersman.evaluate.propensities import Propensities
from steersman.evaluate.unlogged import Unlogged


def limited(gate: str, passed: bool, status: Status, reason: str, numbers: tuple[float, float], then: str) -> Verdict:
    """`pass`, or the status with what to do.

    Args:
        numbers: value and limit.
    """
    value, limit = numbers
    verdict = Verdict(gate=gate, status="pass", reason=reason, value=value, limit=limit)
    return verdict if passed else msgspec.structs.replace(verdict, status=status, next=then)


def support(found: Unlogged, weights: Support, limit: float) -> Verdict:
    """Whether the log did what the target does."""
    where = f", comparing contexts by {found.where}" if found.where else ""
    what = f" ({', '.join(found.kinds)})" if found.kinds else ""
    return limited(
        "support",
        found.share <= limit,
        "not identified",
        f"a share of {found.share:.3g} of the target's decisions takes actions that the log never took{where}{what}; "
        f"by the mean weight it is {1.0 - weights.mean_weight:.2g} +- {weights.mean_weight_error:.2g} (standard "
        f"error); at most {limit:g} is allowed",
        (found.share, limit),
        "let the log explore these actions there, or judge a policy that does not take them",
    )


def propensities(found: Propensities, limit: float) -> Verdict:
    """Whether the logged propensities can be those with which the log decided."""
    most = f", most of all {found.worst}" if found.worst and found.chance < limit else ""
    return limited(
        "propensities",
        found.chance >= limit,
        "fail",
        f"actions came {found.ratio:.4g} times as often as the propensities say, by what a model of the log's actions "
        f"foresaw{most}; were the propensities right, so much against them had a chance of at most {found.chance:.2g}; "
        f"it must be at least {limit:g}",
        (found.chance, limit),
        "the propensities are not those with which the log decided: check what writes them",
    )


_WORDS = {
    "policy": ("policy drift", "", "the lift is over a mixture of policies: evaluate a window with one policy only"),
    "reward": (
        "reward drift",
        " standard deviations of the reward",
        "the same action is worth something else now: evaluate a shorter, later window",
    ),
    "contexts": (
        "context drift",
        " standard deviations",
        "the contexts are others than at first: evaluate a shorter, later window",
    ),
}


def drift(found: Change, limit: float) -> Verdict:
    """Whether something changed within the window by more than the limit, beyond doubt."""
    gate, unit, then = _WORDS[found.kind]
    column = "the reward beyond what its model foresaw" if found.kind == "reward" else found.column
    return limited(
        gate,
        found.proven <= limit,
        "fail",
        f"{column} was {found.before:.4g} in the first half of the window and {found.after:.4g} in the second: "
        f"{found.size:.3g}{unit}, at least {found.proven:.3g} with confidence {1 - ALARM:g}; "
        f"at most {limit:g} is allowed",
        (found.proven, limit),
        then,
    )


def disagreement(errors: float, limit: float) -> Verdict:
    """Whether the model of the action values agrees with what does not rest on it."""
    return limited(
        "disagreement",
        errors <= limit,
        "fail",
        f"fitted Q evaluation and the log's own weights are {errors:.3g} standard errors apart; "
        f"at most {limit:g} are allowed: the context does not tell all that matters, or the model is wrong",
        (errors, limit),
        "log what the outcome depends on as context, or make wdr the headline",
    )
