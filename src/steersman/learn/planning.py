"""What to do now, by looking ahead with a model of the world: any function that says what follows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from steersman.core.decision import Numbers
from steersman.core.errors import DataError
from steersman.learn.settings import require

Array = np.ndarray

Step = Callable[[Array, Array], tuple[Array, Array, Array]]
"""(contexts [N, F], actions [N, D] or candidates' columns [N, A]) -> next contexts [N, F], rewards [N], what the value
of the next step counts [N] in [0, 1]: `Dynamics.step`, or the world itself."""

MAX_PATHS = 2_000_000
"""Sequences of candidates that `best_candidates` looks at in one go."""


def plan_numbers(  # noqa: PLR0913  (all but four by keyword)
    step: Step,
    context: Array,
    bounds: Numbers,
    seed: int,
    *,
    horizon: int,
    discount: float = 1.0,
    population: int = 200,
    elites: int = 20,
    rounds: int = 10,
) -> Array:
    """[N, D] the first of the best `horizon` actions found by the cross-entropy method.

    Sequences are drawn from a normal law, cut to the bounds, and followed; the law moves to the mean and the standard
    deviation of the best of them.

    Args:
        context: [N, F].
        bounds: of the actions.
        discount: of one step, in (0, 1], times what `step` says.
        population, elites: sequences that are drawn in a round, and the best of them that are kept, at least 2.
    Raises:
        DataError: a number is out of range.
    Source: Rubinstein and Kroese 2004, The cross-entropy method, algorithm 4.1; Chua et al. 2018, arXiv:1805.12114,
    algorithm 1.
    """
    _check(horizon, discount)
    require("elites", elites, 2 <= elites <= population, "in [2, population]")
    require("rounds", rounds, rounds >= 1, "at least 1")
    rng = np.random.default_rng(seed)
    low, high = np.array(bounds.low), np.array(bounds.high)
    n, shape = len(context), (len(context), population, horizon, len(low))
    mean = np.broadcast_to((low + high) / 2.0, (n, 1, horizon, len(low)))
    scale = np.broadcast_to((high - low) / 2.0, mean.shape)
    repeated = np.repeat(context, population, axis=0)
    for _ in range(rounds):
        actions = np.clip(mean + scale * rng.normal(size=shape), low, high)
        total = _follow(step, repeated, actions.reshape(n * population, horizon, -1), discount).reshape(n, population)
        best = np.argsort(-total, axis=1)[:, :elites]
        kept = np.take_along_axis(actions, best[:, :, None, None], axis=1)
        mean, scale = kept.mean(axis=1, keepdims=True), kept.std(axis=1, keepdims=True)
    found: Array = mean[:, 0, 0]
    return found


def best_candidates(
    step: Step, context: Array, candidates: Array, mask: Array | None = None, *, horizon: int, discount: float = 1.0
) -> tuple[Array, Array]:
    """The first of the best sequence of candidates, found by looking at all of them.

    Args:
        context: [N, F].
        candidates: [K, A], or [N, K, A] of each context, the same at every step.
        mask: [N, K] bool, which of them there are, at every step; None: all.
        discount: as in `plan_numbers`.
    Returns:
        [N] i64 places, and [N, K] what the best sequence is worth that begins with each; -inf where there is none.
    Raises:
        DataError: there are too many sequences.
    """
    _check(horizon, discount)
    n, k = len(context), candidates.shape[-2]
    if n * k**horizon > MAX_PATHS:
        raise DataError(
            f"{k} candidates in {horizon} steps from {n} contexts: {n * k**horizon:,} sequences are too many",
            hint="look less far, or plan for fewer contexts at once",
            field="horizon",
        )
    here, weight, total = context, np.ones(n), np.zeros(n)
    there = np.ones((n, k), dtype=bool) if mask is None else mask
    of = np.where(there[:, :, None], candidates, 0.0)  # what stands in padding leads nowhere
    for _ in range(horizon):
        times = np.repeat(np.arange(len(here)), k)
        origin = np.arange(len(here)) // (len(here) // n) if n else np.arange(0)
        here, reward, carry = step(here[times], of[origin].reshape(len(times), -1))
        total, weight = total[times] + weight[times] * reward, weight[times] * discount * carry
        total[~there[origin].ravel()] = -np.inf
    worth = total.reshape(n, k, -1).max(axis=2)
    return worth.argmax(axis=1), worth


def _follow(step: Step, context: Array, actions: Array, discount: float) -> Array:
    """[N] discounted rewards of sequences of actions [N, H, D]."""
    weight, total = np.ones(len(context)), np.zeros(len(context))
    for action in actions.transpose(1, 0, 2):
        context, reward, carry = step(context, action)
        total, weight = total + weight * reward, weight * discount * carry
    return total


def _check(horizon: int, discount: float) -> None:
    require("horizon", horizon, horizon >= 1, "at least 1")
    require("discount", discount, 0 < discount <= 1, "in (0, 1]")
