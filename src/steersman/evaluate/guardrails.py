"""Guardrails: limits of metrics that perturbed traffic must keep, by bounds that hold however often one looks."""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from steersman.core.errors import DataError
from steersman.evaluate.anytime import Sides, betting_floor, errors_wide

Array = np.ndarray

FEW = 30
"""Units of either kind, before returns are compared: their bound needs a variance."""

TUNED = 200.0
"""Units at which the bound on returns is tightest: copies that cost too much shall be stopped early."""


class Guardrail(Struct, frozen=True, forbid_unknown_fields=True):
    """What the mean of a metric may be where perturbed copies decide. Any of the limits may be left out, not all.

    Attributes:
        range: lowest and highest value that the metric of a decision can have.
        highest, lowest: of the mean.
        rise, fall: how much above, or below, the mean where the version itself decides, at least 0.
        level: in (0.5, 1); a limit that is kept is called broken with a chance of at most 1 - level, in all looks.
    """

    range: tuple[float, float]
    highest: float | None = None
    lowest: float | None = None
    rise: float | None = None
    fall: float | None = None
    level: float = 0.95

    def __post_init__(self) -> None:
        low, high = self.range
        if not -math.inf < low < high < math.inf:
            raise DataError(f"range is {list(self.range)}, must be [lowest, highest]", field="range")
        if not 0.5 < self.level < 1:
            raise DataError(f"level is {self.level:g}, must be in (0.5, 1)", field="level")
        if not self.limits:
            raise DataError("a guardrail without a limit", hint="highest, lowest, rise or fall", field="highest")
        for name, value in self.limits.items():
            inside = low <= value <= high if name in ("highest", "lowest") else 0 <= value < high - low
            if not inside:
                law = f"[{low:g}, {high:g}]" if name in ("highest", "lowest") else f"[0, {high - low:g})"
                raise DataError(f"{name} is {value:g}, must be in {law}", field=name)

    @property
    def limits(self) -> dict[str, float]:
        """Name -> value, of those that are set."""
        found = {name: getattr(self, name) for name in ("highest", "lowest", "rise", "fall")}
        return {name: value for name, value in found.items() if value is not None}


def broken(rail: Guardrail, copies: Array, clean: Array, level: float) -> str:
    """Why a guardrail is broken; empty: nothing says so for sure.

    A limit of the mean is tested by bets against it, with no assumption but the range: where every unit is expected to
    keep the limit, given those before it, the money of the bets reaches 1 / (1 - level) with a chance of at most 1 -
    level, however often one looks. A rise or a fall compares such bounds of both means.

    Args:
        copies, clean: [U] f64, the mean of the metric over the decisions of each unit that met a copy, or the version
            itself. A value outside the declared range breaks the guardrail: nothing is known of its mean any more.
        level: that all its limits hold at together, in (0.5, 1).
    Source: `anytime.betting_floor`.
    """
    low, high = rail.range
    both = np.concatenate([copies, clean])
    outside = both[~((both >= low) & (both <= high))]
    if outside.size:
        return f"{outside[0]:.6g} is outside the declared range [{low:g}, {high:g}]"
    each = 1 - (1 - level) / len(rail.limits)
    for name, limit in rail.limits.items():
        beside = name in ("rise", "fall")
        if not len(copies) or (beside and not len(clean)):
            continue
        up = 1.0 if name in ("highest", "rise") else -1.0  # a lower limit is an upper one of what is turned around
        ends = (low, high) if up > 0 else (-high, -low)
        mean = float(copies.mean())
        if not beside:
            least = up * _floor(up * copies, ends, each, up * limit)
            if up * least > up * limit:
                return f"{mean:.4g} by {len(copies):,} units, surely beyond {least:.4g}; {name} is {limit:g}"
        elif up * (mean - clean.mean()) > limit:
            half = 1 - (1 - each) / 2
            least = _floor(up * copies, ends, half) + _floor(-up * clean, (-ends[1], -ends[0]), half)
            if least > limit:
                return (
                    f"{mean:.4g} by {len(copies):,} units and {clean.mean():.4g} by {len(clean):,} of the version "
                    f"itself, a {name} of surely more than {least:.4g}; it may be {limit:g}"
                )
    return ""


def costly(copies: Array, clean: Array, max_loss: float, level: float) -> tuple[float, float] | None:
    """Mean return of the copies less that of the version itself, and its upper bound, if they surely cost too much.

    Args:
        copies, clean: [U] f64, the mean return of the whole episodes of each unit.
        max_loss: share of the version's own mean return that may be lost, in (0, 1).
        level: of the bound, in (0.5, 1).
    Returns:
        None: not so, or there are fewer than `FEW` units of either.
    """
    found = beside(copies, clean, level, sides=1)
    if found is None or found[2] >= -max_loss * abs(float(clean.mean())):
        return None
    return found[0], found[2]


def beside(some: Array, others: Array, level: float, sides: Sides = 2) -> tuple[float, float, float] | None:
    """Mean of some units less that of others, with bounds that hold however often one looks.

    The asymptotic sequence for differences of two arms, which is right where units are many.

    Args:
        some, others: [U] f64, a value a unit.
        level: of both bounds together; of each, with one side.
    Returns:
        difference, low, high; None: there are fewer than `FEW` units of either.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, arXiv:2103.06476.
    """
    if min(len(some), len(others)) < FEW:
        return None
    difference = float(some.mean() - others.mean())
    error = math.sqrt(some.var(ddof=1) / len(some) + others.var(ddof=1) / len(others))
    half = float(errors_wide(len(some) + len(others), level, TUNED, sides)) * error
    return difference, difference - half, difference + half


def _floor(values: Array, ends: tuple[float, float], level: float, above: float = -math.inf) -> float:
    """Lower bound of the mean of values within `ends`; where their mean is not above `above` it is not looked for."""
    low, span = ends[0], ends[1] - ends[0]
    if values.mean() <= above:
        return low
    return low + span * (1.0 + betting_floor((values - low) / span - 1.0, level))
