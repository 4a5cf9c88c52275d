"""Transforms: how one field becomes columns; what each means, which parameters it has, and how those are fitted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
from msgspec import Struct

from steersman.core.decision import NO_TEXT
from steersman.core.errors import DataError

V = TypeVar("V", float, str)
Kind = Literal["number", "text", "list"]
"""What a transform reads of a row."""

LIMIT = 10.0
"""A standardised number is clipped to this many standard deviations: one broken sensor must not own the net."""

EDGE = 1e-5
"""A probability is clamped to [EDGE, 1 - EDGE], so its logit lies within +-11.513."""

NO_POWER = 1e-6
"""A Box-Cox power nearer to 0 than this is 0, the logarithm: the difference is below the rounding of a power."""

FINEST = 1e-9
"""The smallest std of transformed values, relative to their size: below it f64 would show its rounding."""

MAX_BUCKETS = 65_536


class _Transform(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """What reads the field `name`."""

    name: str


class _Number(_Transform, frozen=True):
    """A number to two columns: a value, 0 where it is missing (NaN), and the missing indicator."""

    reads: ClassVar[Kind] = "number"

    @property
    def width(self) -> int:
        return 2

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.name, f"{self.name} missing")


class Binary(_Number, frozen=True, tag="binary"):
    """A number: 1 if it is not 0, else 0; and its missing indicator. Two columns."""


class Probability(_Number, frozen=True, tag="probability"):
    """A number in [0, 1]: log(p / (1 - p)), p clamped to [EDGE, 1 - EDGE]; and its missing indicator. Two columns."""


class Continuous(_Number, frozen=True, tag="continuous"):
    """A number: standardised, clipped to +-LIMIT, and its missing indicator. Two columns.

    Attributes:
        mean, std: of the values seen when fitting; std is above 0 (1 for a constant).
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise DataError(f"field {self.name}: mean {self.mean:g}, std {self.std:g}; std must be above 0")


class BoxCox(_Number, frozen=True, tag="boxcox"):
    """A skewed number: its Box-Cox transform, standardised and clipped; and its missing indicator. Two columns.

    With y = max(x + shift, low): (y ** power - 1) / power, or log(y) if |power| < NO_POWER; then minus `mean`, by
    `std`, clipped to +-LIMIT.

    A value below all that were seen is taken for the smallest seen: `low`. A floor that is a number of its own, such
    as 1e-6, makes values just below the smallest seen fall to -LIMIT, because a logarithm is steepest there.

    Attributes:
        shift: what is added to a value.
        power: Box and Cox's lambda.
        mean, std: of the transformed values seen when fitting; std is above 0.
        low: the smallest x + shift seen when fitting; above 0.
    Source: Box and Cox 1964, An Analysis of Transformations, eq. 2.
    """

    shift: float
    power: float
    mean: float
    std: float
    low: float

    def __post_init__(self) -> None:
        numbers = (self.shift, self.power, self.mean, self.std, self.low, *self.folded)
        if not (all(map(math.isfinite, numbers)) and self.std > 0 and self.low > 0):
            raise DataError(
                f"field {self.name}: shift {self.shift:g}, power {self.power:g}, mean {self.mean:g}, "
                f"std {self.std:g}, low {self.low:g}; all must be finite, std and low above 0"
            )
        offset, scale = self.folded
        if abs(scale) < FINEST * abs(offset) or scale == 0:
            raise DataError(
                f"field {self.name}: std {self.std:g} is too small beside the transformed values (power "
                f"{self.power:g}, mean {self.mean:g}): rounding would show",
                hint="take it as continuous",
            )

    @property
    def logarithmic(self) -> bool:
        """The power is 0."""
        return abs(self.power) < NO_POWER

    @property
    def folded(self) -> tuple[float, float]:
        """(offset, scale) with which y ** power, or log(y), is standardised in one step: (that - offset) / scale.

        So nothing is lost where y ** power is tiny beside 1.
        """
        if self.logarithmic:
            return self.mean, self.std
        return 1.0 + self.power * self.mean, self.power * self.std


class Quantile(_Number, frozen=True, tag="quantile"):
    """A number of any distribution: where it stands between the boundaries; and its missing indicator. Two columns.

    0 at the first boundary and below, 1 at the last and above, i / (count - 1) at boundary i, linear in between:
    with the boundaries 0, 80, 100 the value 80 becomes 0.5.

    A value that covers several quantiles (an atom, such as 0 in half of the rows) is one boundary: it becomes one
    number, and the values beside it keep their equal shares of [0, 1].

    Attributes:
        boundaries: at least two, ascending.
    """

    boundaries: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.boundaries) < 2 or not _ascending(self.boundaries):
            raise DataError(
                f"field {self.name}: {len(self.boundaries)} boundaries, must be at least two, ascending, no repeats"
            )
        if not math.isfinite(self.boundaries[-1] - self.boundaries[0]):
            raise DataError(f"field {self.name}: boundaries must be finite, and so must be their range")


class Constant(_Transform, frozen=True, tag="constant"):
    """A number that never differed: its missing indicator. One column."""

    reads: ClassVar[Kind] = "number"

    @property
    def width(self) -> int:
        return 1

    @property
    def labels(self) -> tuple[str, ...]:
        return (f"{self.name} missing",)


class Enumerated(_Transform, frozen=True, tag="enumerated"):
    """A number with few values: one column per value seen, then one for unseen values, then one for missing.

    Attributes:
        values: the numbers seen when fitting, ascending.
    """

    reads: ClassVar[Kind] = "number"
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not _ascending(self.values):
            raise DataError(f"field {self.name}: values must be finite, sorted and different")

    @property
    def width(self) -> int:
        return len(self.values) + 2

    @property
    def labels(self) -> tuple[str, ...]:
        seen = (f"{self.name}={decimal(value)}" for value in self.values)
        return (*seen, f"{self.name} unseen", f"{self.name} missing")


class Category(_Transform, frozen=True, tag="category"):
    """A text: one column per value seen when fitting, then one for unseen values, then one for missing.

    Attributes:
        values: the texts seen when fitting, sorted.
    """

    reads: ClassVar[Kind] = "text"
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if list(self.values) != sorted(set(self.values)):
            raise DataError(f"field {self.name}: values must be sorted and different")
        if any(NO_TEXT in value for value in self.values):
            raise DataError(f"field {self.name}: a value has U+FDD0, which stands for a missing text")

    @property
    def width(self) -> int:
        return len(self.values) + 2

    @property
    def labels(self) -> tuple[str, ...]:
        seen = (f"{self.name}={value}" for value in self.values)
        return (*seen, f"{self.name} unseen", f"{self.name} missing")


class Ids(_Transform, frozen=True, tag="ids"):
    """A list of ids: column b is the share of them that fall into bucket b; then the missing indicator (null).

    Because the shares sum to 1, the first linear layer of a net over these columns is a hashed embedding table with
    mean pooling: row b of its weights is the embedding of bucket b. An empty list is all zeros and not missing. Ids
    fall into buckets by a hash (`id_keys`), so an id that was never seen has a place too; two ids may share one. A text
    alone is a list of one. Of a list longer than 256 the ids with the smallest hashes stand for all.

    Attributes:
        buckets: 1 to MAX_BUCKETS.
    """

    reads: ClassVar[Kind] = "list"
    buckets: int

    def __post_init__(self) -> None:
        if not 1 <= self.buckets <= MAX_BUCKETS:
            raise DataError(f"field {self.name}: {self.buckets} buckets, must be 1 to {MAX_BUCKETS}")

    @property
    def width(self) -> int:
        return self.buckets + 1

    @property
    def labels(self) -> tuple[str, ...]:
        return (*(f"{self.name} bucket {b}" for b in range(self.buckets)), f"{self.name} missing")


Transform = Binary | Probability | Continuous | BoxCox | Quantile | Enumerated | Category | Ids | Constant


def reads(transform: Transform) -> Kind:
    """What the transform takes of a row: it decides the array of Raw in which its field travels."""
    return transform.reads


T_co = TypeVar("T_co", bound=Transform, covariant=True)


@dataclass(frozen=True)
class Placed(Generic[T_co]):
    """A transform among those of its group.

    Attributes:
        column: of its field in the array of its kind.
        at: its first column in the output; the missing indicator is its last.
    """

    transform: T_co
    column: int
    at: int

    @property
    def missing_at(self) -> int:
        return self.at + self.transform.width - 1


def placed(transforms: Sequence[Transform], start: int = 0) -> tuple[Placed[Transform], ...]:
    """Where each transform reads and writes; the columns before `start` belong to something else."""
    column: dict[Kind, int] = {"number": 0, "text": 0, "list": 0}
    found = []
    for transform in transforms:
        found.append(Placed(transform, column[transform.reads], start))
        column[transform.reads] += 1
        start += transform.width
    return tuple(found)


def continuous(name: str, count: int, mean: float, std: float) -> Continuous:
    """The transform of a number field from its statistics.

    Args:
        count: of finite values. 0: the field was never seen, and stays missing.
        mean, std: over the finite values; a std that is rounding error of the mean (f64) is a constant.
    """
    if count == 0:
        return Continuous(name, 0.0, 1.0)
    smallest = abs(mean) * 1e-12
    return Continuous(name, float(mean), 1.0 if std <= smallest else float(std))


def boxcox_of(values: np.ndarray, shift: float, power: float, low: float | None = None) -> np.ndarray:
    """The Box-Cox transform of values, not standardised: what `BoxCox` fits its mean and std on, and then gives.

    Args:
        values: [...] f64; NaN stays NaN.
        low: values + shift are raised to it. None: nothing is raised, these are the values to fit on.
    Returns:
        [...] f64.
    Raises:
        DataError: `low`, or without it the smallest of values + shift, is not above 0.

    >>> boxcox_of(np.array([1.0, 3.0]), shift=0.0, power=2.0)
    array([0., 4.])
    """
    values = np.asarray(values, dtype=np.float64)
    smallest = float(np.min(values, initial=np.inf, where=~np.isnan(values))) + shift if low is None else low
    if not smallest > 0:
        raise DataError(f"the smallest value plus shift is {smallest:g}, must be above 0", hint="take a larger shift")
    with np.errstate(over="ignore"):
        raised = np.maximum(values + shift, smallest)
        return np.log(raised) if abs(power) < NO_POWER else (raised**power - 1.0) / power


def boxcox(name: str, values: np.ndarray, shift: float, power: float) -> BoxCox:
    """The Box-Cox transform of a number field, fitted to its values.

    Args:
        values: [N] the values seen, or a sample with the smallest among it; only the finite ones count.
    Raises:
        DataError: a value plus shift is not above 0, or the transformed values are all but equal.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    transformed = boxcox_of(finite, shift, power)
    if not transformed.size:
        raise DataError(f"field {name} has no finite value to fit a Box-Cox transform on", field=name)
    low = float(finite.min()) + shift
    return BoxCox(name, float(shift), float(power), float(transformed.mean()), float(transformed.std()), low)


def quantile(name: str, quantiles: Iterable[float]) -> Quantile:
    """The transform of a number field from quantiles at equal steps; repeats, which an atom causes, count once.

    Raises:
        DataError: fewer than two of them differ: the field is a constant.
    """
    return Quantile(name, _different(quantiles))


def enumerated(name: str, values: Iterable[float], limit: int = 1000) -> Enumerated:
    """The transform of a number field from the values seen; NaN, which is missing, and infinities are none.

    Raises:
        DataError: more than `limit` values: a one-hot of them would not learn.
    """
    seen = _different(value for value in values if math.isfinite(value))
    return Enumerated(name, _few(name, seen, "numbers", limit))


def category(name: str, values: Iterable[str], limit: int = 1000) -> Category:
    """The transform of a text field from the values seen.

    Raises:
        DataError: more than `limit` values: a one-hot of them would not learn.
    """
    return Category(name, _few(name, tuple(sorted(set(values))), "texts", limit))


def decimal(number: float | np.integer | np.floating) -> str:
    """A number as people write it: a whole one without a point."""
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def _few(name: str, seen: tuple[V, ...], what: str, limit: int) -> tuple[V, ...]:
    if len(seen) <= limit:
        return seen
    raise DataError(
        f"field {name} has {len(seen)} different {what}, more than {limit}",
        hint="group rare values, or leave the field out",
        field=name,
    )


def _different(numbers: Iterable[float]) -> tuple[float, ...]:
    """Sorted; + 0.0 makes a negative zero a zero: they are one value."""
    return tuple(sorted({float(number) + 0.0 for number in numbers}))


def _ascending(numbers: tuple[float, ...]) -> bool:
    finite = all(map(math.isfinite, numbers))
    return finite and all(a < b for a, b in itertools.pairwise(numbers))
