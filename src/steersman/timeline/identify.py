"""Which type a field has, from its profile, with the reason and the numbers that decided; and its transform.

Pure: the same profile gives the same answer, and no rule knows how many rows there are once there are enough.

How far numbers are from a normal distribution is told by their `misfit`: 1 - r, where r is the correlation of their
quantiles with those of the normal distribution, without the outermost, which depend on how many rows there are. It
does not change when the numbers are shifted or scaled. For large samples it is 0 for a normal, 0.02 for a uniform, 0.08
for an exponential, 0.16 for a log-normal and 0.27 for a Cauchy distribution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import numpy as np

from steersman.core.errors import DataError
from steersman.core.features import (
    Binary,
    BoxCox,
    Constant,
    Ids,
    Probability,
    Quantile,
    Transform,
    boxcox_of,
    category,
    continuous,
    enumerated,
)
from steersman.core.profile import LEVELS, FeatureType, Profile

ENOUGH = 20
"""Values from which on a type is told from them; fewer are continuous."""

ENOUGH_FOR_SHAPE = 200
"""Values from which on quantiles tell how they are distributed."""

FEW = 20
"""Whole numbers with at most so many different values, of which COMMON cover 98% of the rows, are enumerated..."""

COMMON = 10

EACH = 10
"""...if there are this many rows for every value."""

WIDE = 0.1
"""Numbers in [0, 1] are probabilities if 98% of them spread over at least so much: else the logit would hide them."""

NORMAL = 0.06
"""A misfit up to this is near enough to a normal distribution."""

FAR = 0.15
"""A misfit above this, which no power mends, is too far from it."""

HELPS = 3.0
"""A Box-Cox transform must divide the misfit by this."""

NEAR_ONE = 0.1
"""A power nearer than this to 1 changes nothing."""

SQUEEZED = 0.1
"""If the middle three quarters are narrower than this share of what the deviation promises, few outliers own it."""

BUCKETS = 16, 1024
"""Fewest and most buckets of ids."""

_POWERS = -2.0, 2.0
_BOUNDARIES = 17

_OF_NUMBERS: tuple[FeatureType, ...] = (
    *("binary", "probability", "continuous", "boxcox", "quantile", "enumerated", "constant"),
)
_OF_OTHERS: tuple[FeatureType, ...] = ("category", "ids")
_OF_DIFFERENT: tuple[FeatureType, ...] = ("boxcox", "quantile")


class Identified(NamedTuple):
    """A type, why, and name -> number that was looked at."""

    type: FeatureType
    reason: str
    evidence: Mapping[str, float] = MappingProxyType({})


def identify(profile: Profile) -> Identified:
    """The type that the values of a field have; what `profile` says about its type is not read."""
    if profile.kind == "number":
        return _number(profile)
    said = f"{_count(profile.distinct)} different {'texts' if profile.kind == 'text' else 'ids in lists'}"
    if profile.kind == "list":
        return Identified("ids", f"{said}, {_buckets(profile)} buckets")
    if profile.counts or not profile.distinct:
        return Identified("category", said)
    return Identified("ids", f"{said} are too many for a column each: hashed into {_buckets(profile)} buckets")


def declare(profile: Profile, type: FeatureType) -> Profile:
    """The profile with a type that the configuration names.

    Raises:
        DataError: the values can not have it.
    """
    why_not = _refusals(profile).get(type, "")
    if type == "boxcox" and not why_not and not _fits(profile, *_power(profile)[:2]):
        why_not = f"its values go from {profile.low:g} to {profile.high:g}, and no power can be fitted to them"
    if why_not:
        found = identify(profile)
        raise DataError(
            f"{profile.group}.{profile.name} is declared {type}, but {why_not}",
            hint=f"it would be identified as {found.type}: {found.reason}",
            field=f"{profile.group}.{profile.name}",
        )
    found = identify(profile)
    reason = (
        f"declared; the values say {found.type}: {found.reason}" if found.type != type else f"declared; {found.reason}"
    )
    return msgspec.structs.replace(profile, type=type, declared=True, reason=reason, evidence=dict(found.evidence))


def identified(profile: Profile) -> Profile:
    """The profile with the type that its values have."""
    found = identify(profile)
    return msgspec.structs.replace(
        profile, type=found.type, declared=False, reason=found.reason, evidence=dict(found.evidence)
    )


def transform(profile: Profile) -> Transform:
    """The transform of a field, fitted on its profile.

    Mean and deviation of a continuous field are those of all its values. Those of a Box-Cox transform come from the
    quantiles: the last bits of a power differ from engine to engine, and what is fitted may not.

    Raises:
        DataError: the values can not have its type.
    """
    name = profile.name
    match profile.type:
        case "binary":
            return Binary(name)
        case "probability":
            return Probability(name)
        case "boxcox":
            return _boxcox(profile, *_power(profile)[:2])
        case "quantile":
            return Quantile(name, _boundaries(profile.quantiles))
        case "enumerated":
            return enumerated(name, (float(value) for value, _ in profile.counts))
        case "category":
            return category(name, (str(value) for value, _ in profile.counts))
        case "ids":
            return Ids(name, _buckets(profile))
        case "constant":
            return Constant(name)
        case _:
            return continuous(name, profile.finite, profile.mean, profile.std)


def misfit(values: Sequence[float] | np.ndarray) -> float:
    """1 - r: how far numbers are from a normal distribution, in [0, 1].

    Args:
        values: [LEVELS - 1], quantiles at the levels i / LEVELS without the outermost, ascending.
    Returns:
        1 if they are all equal, or not finite.
    Source: Filliben 1975, The Probability Plot Correlation Coefficient Test for Normality, with quantiles for order
        statistics.
    """
    spread = np.asarray(values, dtype=np.float64) / 2
    spread = spread - spread[len(spread) // 2]
    size = np.abs(spread).max()
    if not (0 < size < math.inf):
        return 1.0
    spread = spread / size
    spread = spread - spread.mean()
    normal = _normal()
    return float(max(1.0 - spread @ normal / math.sqrt((spread @ spread) * (normal @ normal)), 0.0))


@functools.cache
def _normal() -> np.ndarray:
    """[LEVELS - 1] quantiles of the normal distribution; their mean is 0."""
    return np.array([NormalDist().inv_cdf(level / LEVELS) for level in range(1, LEVELS)])


def _number(profile: Profile) -> Identified:
    if profile.finite < ENOUGH:
        return Identified("continuous", f"too few values to tell ({profile.finite})")
    if profile.distinct == 1:
        return Identified("constant", f"all {_count(profile.finite)} values are {profile.low:g}")
    if profile.whole and (profile.low, profile.high) == (0.0, 1.0):
        return Identified("binary", f"all {_count(profile.finite)} values are 0 or 1")
    inner = profile.quantiles[1:-1]
    if profile.low >= 0 and profile.high <= 1 and inner[-1] - inner[0] >= WIDE:
        reason = f"all values are in [0, 1], 98% of them from {inner[0]:.3g} to {inner[-1]:.3g}"
        return Identified("probability", reason, {"spread": inner[-1] - inner[0]})
    common = len(set(inner))
    few = profile.counts and profile.distinct <= min(FEW, profile.finite // EACH)
    if profile.whole and common <= COMMON and few:
        reason = f"{profile.distinct} different whole numbers in {_count(profile.finite)} values"
        return Identified("enumerated", reason, {"common": common})
    return _shape(profile)


def _shape(profile: Profile) -> Identified:
    values = f"{_count(profile.distinct)} different values"
    if profile.finite < ENOUGH_FOR_SHAPE:
        return Identified("continuous", f"{values}, too few to tell how they are distributed ({profile.finite})")
    raw, body = misfit(profile.quantiles[1:-1]), _body(profile)
    evidence = {"misfit": raw, "body": body}
    said = f"{values}, QQ correlation {1 - raw:.3f}"
    if raw <= NORMAL and body >= SQUEEZED:
        return Identified("continuous", f"{said}: near enough to normal", evidence)
    shift, power, after = _power(profile)
    evidence |= {"misfit_boxcox": after, "power": power, "shift": shift}
    helps = after <= min(NORMAL, raw / HELPS) and abs(power - 1) > NEAR_ONE
    if helps and _fits(profile, shift, power):
        return Identified("boxcox", f"{said} raw, {1 - after:.3f} with Box-Cox power {power:g}", evidence)
    if body < SQUEEZED:
        reason = f"{said}, but the middle three quarters spread over {body:.2g} of what the deviation promises"
        return Identified("quantile", f"{reason}: few values own it", evidence)
    if raw > FAR:
        return Identified("quantile", f"{said} raw, {1 - after:.3f} with Box-Cox: far from normal even so", evidence)
    return Identified("continuous", f"{said} raw, {1 - after:.3f} with Box-Cox: not far enough from normal", evidence)


def _body(profile: Profile) -> float:
    """Spread of the middle three quarters, in that of a normal distribution of the same deviation."""
    low, high = LEVELS // 8, LEVELS - LEVELS // 8
    promised = profile.std * float(_normal()[high - 1] - _normal()[low - 1])
    return (profile.quantiles[high] - profile.quantiles[low]) / promised if promised > 0 else 1.0


def _power(profile: Profile) -> tuple[float, float, float]:
    """(shift, power, misfit) of the Box-Cox transform that is nearest to normal.

    The shift is 0 if all values are above it; else, or if that fits better, one that puts the smallest value a
    hundredth of its distance to the median above 0. The power is rounded to hundredths.
    """
    low, median = profile.low, profile.quantiles[LEVELS // 2]
    shifts = [0.0] if low > 0 else []
    if math.isfinite(median - low) and median > low:
        shifts.append((median - low) / 100 - low)
    found = [(shift, *_best_power(profile, shift)) for shift in shifts if low + shift > 0]
    return min(found, key=lambda one: one[2], default=(0.0, 1.0, 1.0))


def _best_power(profile: Profile, shift: float) -> tuple[float, float]:
    moved = np.array(profile.quantiles[1:-1]) + shift
    moved = moved / moved[len(moved) // 2]  # a factor does not change the misfit, and keeps powers from overflowing

    def of(power: float) -> float:
        return misfit(boxcox_of(moved, 0.0, power))

    grid = np.linspace(*_POWERS, 17)
    best = min(range(len(grid)), key=lambda i: of(float(grid[i])))
    left, right = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    power = round(_golden(of, left, right), 2) + 0.0
    return power, of(power)


def _golden(of: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one valley between low and high is smallest, to 0.002."""
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 0.002:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if of(a) <= of(b):
            high = b
        else:
            low = a
    return (low + high) / 2


def _fits(profile: Profile, shift: float, power: float) -> bool:
    """Whether float64 can carry the transform."""
    try:
        _boxcox(profile, shift, power)
    except DataError:
        return False
    return True


def _boxcox(profile: Profile, shift: float, power: float) -> BoxCox:
    """Mean and deviation of the transformed values from their quantiles.

    A quantile stands for the values around it, 1 / LEVELS of all. For the half parts beyond the outermost two stand
    the means of a normal distribution's tails, no farther out than the values go: the smallest and largest value
    themselves would widen the deviation by what one row happens to be.
    """
    transformed = boxcox_of(np.array(profile.quantiles), shift, power)
    inner, normal = transformed[1:-1], _normal()
    with np.errstate(over="ignore", invalid="ignore"):  # BoxCox refuses what is not finite
        slope = inner @ normal / (normal @ normal)
        beyond = slope * NormalDist().pdf(NormalDist().inv_cdf(0.5 / LEVELS)) / (0.5 / LEVELS)
        low = np.clip(inner.mean() - beyond, transformed[0], inner[0])
        high = np.clip(inner.mean() + beyond, inner[-1], transformed[-1])
        values, weights = np.array([low, *inner, high]), np.full(LEVELS + 1, 1 / LEVELS)
        weights[[0, -1]] /= 2
        mean = weights @ values
        std = np.sqrt(weights @ (values - mean) ** 2)
    return BoxCox(profile.name, float(shift), float(power), float(mean), float(std), profile.low + shift)


def _boundaries(quantiles: Sequence[float]) -> tuple[float, ...]:
    """Every eighth quantile, each value once; if most are equal, the different ones among all of them."""
    boundaries = sorted(set(quantiles[:: LEVELS // (_BOUNDARIES - 1)]))
    if len(boundaries) > _BOUNDARIES // 2:
        return tuple(boundaries)
    different = sorted(set(quantiles))
    places = np.unique(np.linspace(0, len(different) - 1, min(len(different), _BOUNDARIES)).round().astype(int))
    return tuple(different[place] for place in places)


def _buckets(profile: Profile) -> int:
    """The power of two from the number of different ids on, within BUCKETS."""
    fewest, most = BUCKETS
    return min(max(1 << max(profile.distinct - 1, 0).bit_length(), fewest), most)


def _refusals(profile: Profile) -> dict[FeatureType, str]:
    """Type -> why the values can not have it; empty or not there: they can."""
    if profile.kind != "number":
        refused = dict.fromkeys(_OF_NUMBERS, f"it holds {profile.kind}s, not numbers")
        if profile.kind == "list":
            refused["category"] = "it holds lists, not texts"
        elif not profile.counts and profile.distinct:
            refused["category"] = f"it has {_count(profile.distinct)} different texts, more than a column each is for"
        return refused
    refused = dict.fromkeys(_OF_OTHERS, "it holds numbers: log them as texts, or declare it enumerated")
    if not profile.finite:
        return refused | dict.fromkeys(_OF_DIFFERENT, "no value is there to fit it on")
    reach = f"its values go from {profile.low:g} to {profile.high:g}"
    if not (profile.whole and profile.low >= 0 and profile.high <= 1):
        inside = " and are not all whole" if profile.low >= 0 and profile.high <= 1 else ""
        refused["binary"] = f"{reach}{inside}: 0 and 1 are binary"
    if not (profile.low >= 0 and profile.high <= 1):
        refused["probability"] = f"{reach}: it must be in [0, 1]"
    if not profile.counts:
        refused["enumerated"] = f"it has {_count(profile.distinct)} different values"
    if profile.distinct > 1:
        refused["constant"] = f"{reach}, {_count(profile.distinct)} different ones"
    else:
        refused |= dict.fromkeys(_OF_DIFFERENT, f"all its values are {profile.low:g}")
    return refused


def _count(n: int) -> str:
    return f"{n:,}"
