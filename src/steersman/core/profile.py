"""Profile: what the values of a field look like; enough to choose its transform, to draw it and to see it drift."""

from __future__ import annotations

from typing import Literal

import numpy as np
from msgspec import Struct

from steersman.core.errors import DataError

FeatureType = Literal[
    "binary",
    "probability",
    "continuous",
    "boxcox",
    "quantile",
    "enumerated",
    "category",
    "ids",
    "constant",
]
"""How a field becomes columns; each is a transform of `steersman.core.features`, with the type as its tag."""

LEVELS = 128
"""Parts into which the quantiles of a profile cut the finite values."""


class Profile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Statistics of one field over the decisions (or the candidates) that entered a build, and its type with the why.

    Attributes:
        group: whether it is a field of the context or of the candidates.
        name: of the field.
        kind: what the log holds.
        rows: decisions, or candidates offered to them; of shared candidates those of one decision.
        present: rows with a value: not null, not NaN.
        finite: rows with a finite number (numbers only).
        sampled: values that `distinct` and `quantiles` come from; fewer than there are if these are many.
        distinct: different finite numbers, texts or elements of lists.
        whole: every finite number is an integer.
        low, high, mean, std: of the finite numbers; of lists, of their lengths.
        quantiles: [LEVELS + 1] finite numbers at the levels i / LEVELS (the smallest value with at least that share
            at or below it), from `low` to `high`; of lists, of their lengths; empty: no value, or texts.
        counts: value -> rows, of at most 1,000 different texts or at most 100 different numbers, most frequent
            first; of lists, the elements. Empty if there are more.
        type: of the transform.
        declared: the type stands in the configuration; else it was identified from these numbers.
        reason: why this type, with the numbers that decided.
        evidence: name -> number that the identification looked at, e.g. `misfit`, `misfit_boxcox`, `power`.
    """

    group: Literal["context", "candidate"]
    name: str
    kind: Literal["number", "text", "list"]
    rows: int
    present: int
    finite: int = 0
    sampled: int = 0
    distinct: int = 0
    whole: bool = False
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    quantiles: tuple[float, ...] = ()
    counts: tuple[tuple[str | float, int], ...] = ()
    type: FeatureType
    declared: bool = False
    reason: str
    evidence: dict[str, float] = {}

    def __post_init__(self) -> None:
        if self.quantiles and len(self.quantiles) != LEVELS + 1:
            raise DataError(f"field {self.name}: {len(self.quantiles)} quantiles, must be {LEVELS + 1} or none")

    @property
    def missing_share(self) -> float:
        """Share of the rows without a value, in [0, 1]."""
        return 1.0 - self.present / self.rows if self.rows else 1.0


SMALLEST = 1e-4
"""A smaller share of rows counts as this one in `psi`, so that a value that was never seen before is no infinity."""


def psi(before: Profile, after: Profile) -> float | None:
    """Population stability index: how far the values of a field have moved; 0: not at all.

    Sum over bins of (a - b) * ln(a / b), a and b the shares of rows in a bin after and before. The bins are the deciles
    of the numbers before or, where every value was counted, the values; rows without a value are a bin of their own.
    Of lists the elements are taken or, where they are too many, the lengths.

    Returns:
        None: it can not be told, because texts are too many to be counted.
    Raises:
        DataError: they are not of one kind.
    Source: Siddiqi 2006, Credit Risk Scorecards, ch. 8; by custom 0.1 is a shift worth a look, 0.25 a large one.
    """
    _check_kinds(before, after)
    if _known_by_value(before, after):
        shares = _value_shares(before, after)
    elif before.kind == "text":
        return None
    else:
        edges = np.array([before.quantiles[round(LEVELS * part / 10)] for part in range(1, 10)])
        edges = np.unique(edges) if before.quantiles else np.empty(0)
        shares = (_bins(before, edges), _bins(after, edges))
    b, a = (
        np.maximum(np.append(share * (1 - of.missing_share), of.missing_share), SMALLEST)
        for share, of in zip(shares, (before, after), strict=True)
    )
    return float(((a - b) * np.log(a / b)).sum())


def ks(before: Profile, after: Profile) -> float | None:
    """Two-sample Kolmogorov-Smirnov distance: the largest difference of the two distribution functions, in [0, 1].

    Of the finite numbers or, of lists, of their lengths. It comes from quantiles, so it may be off by 1 / LEVELS for
    each of the two; of numbers that were counted one by one it is exact. No p-value is claimed: with many rows the
    smallest shift would be significant.

    Returns:
        None: texts have no order, or one of the two has no value.
    Raises:
        DataError: they are not of one kind.
    Source: Smirnov 1939; Press et al. 2007, Numerical Recipes, 14.3.3.
    """
    _check_kinds(before, after)
    if before.kind == "text" or not (before.quantiles and after.quantiles):
        return None
    points = np.array(sorted({*before.quantiles, *after.quantiles}))
    return float(np.abs(_cdf(before, points) - _cdf(after, points)).max())


def _check_kinds(before: Profile, after: Profile) -> None:
    if before.kind != after.kind:
        raise DataError(
            f"field {before.name} was a {before.kind}, field {after.name} is a {after.kind}: they can not be compared",
            field=before.name,
        )


def _known_by_value(*profiles: Profile) -> bool:
    return all(profile.counts or not profile.distinct for profile in profiles)


def _value_shares(before: Profile, after: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Shares of every value that one of the two has."""
    counts = dict(before.counts), dict(after.counts)
    both = [*counts[0], *(value for value in counts[1] if value not in counts[0])]
    rows = [np.array([count.get(value, 0) for value in both], dtype=np.float64) for count in counts]
    return rows[0] / max(rows[0].sum(), 1.0), rows[1] / max(rows[1].sum(), 1.0)


def _bins(profile: Profile, edges: np.ndarray) -> np.ndarray:
    """[edges + 1] shares of the values at or below the first edge, ..., above the last."""
    if not profile.quantiles:
        return np.zeros(len(edges) + 1)
    return np.diff(_cdf(profile, edges), prepend=0.0, append=1.0)


def _cdf(profile: Profile, points: np.ndarray) -> np.ndarray:
    """Share of the values at or below each point: exact where they were counted, else between the quantiles."""
    if profile.counts and profile.kind == "number":
        pairs = sorted((float(value), rows) for value, rows in profile.counts)
        reached = np.cumsum([0, *(rows for _, rows in pairs)])
        return reached[np.searchsorted([value for value, _ in pairs], points, side="right")] / reached[-1]
    quantiles = np.array(profile.quantiles)
    level = np.searchsorted(quantiles, points, side="right") - 1
    low, high = quantiles[np.clip(level, 0, LEVELS)], quantiles[np.clip(level + 1, 0, LEVELS)]
    gap = high / 2 - low / 2
    part = np.divide(points / 2 - low / 2, gap, out=np.zeros(len(points)), where=gap > 0)
    return np.where(level < 0, 0.0, np.minimum(level + part, LEVELS) / LEVELS)
