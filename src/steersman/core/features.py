"""Encoder: the one function from rows to float32, fitted once, used by training, in the graph, and in serving."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.decision import NO_TEXT, Candidate, Value
from steersman.core.errors import DataError

LIMIT = 10.0
"""A standardised number is clipped to this many standard deviations: one broken sensor must not own the net."""


class Continuous(Struct, frozen=True, forbid_unknown_fields=True, tag="continuous", tag_field="type"):
    """A number: standardised, clipped, and its missing indicator. Two columns.

    Attributes:
        name: of the field.
        mean, std: of the values seen when fitting; std is above 0 (1 for a constant).
    """

    name: str
    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise DataError(f"field {self.name}: mean {self.mean:g}, std {self.std:g}; std must be above 0")

    @property
    def width(self) -> int:
        return 2


class Category(Struct, frozen=True, forbid_unknown_fields=True, tag="category", tag_field="type"):
    """A text: one column per value seen when fitting, then one for unseen values, then one for missing.

    Attributes:
        name: of the field.
        values: the texts seen when fitting, sorted.
    """

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if list(self.values) != sorted(set(self.values)):
            raise DataError(f"field {self.name}: values must be sorted and different")
        if any(NO_TEXT in value for value in self.values):
            raise DataError(f"field {self.name}: a value has U+FDD0, which stands for a missing text")

    @property
    def width(self) -> int:
        return len(self.values) + 2


Transform = Continuous | Category


@dataclass(frozen=True)
class Raw:
    """Rows as two arrays, in the order of the encoder's fields; what the ONNX graph takes.

    Attributes:
        numbers: [..., C] f64; NaN is missing.
        texts: [..., T] object (str); NO_TEXT is missing.
    """

    numbers: np.ndarray
    texts: np.ndarray


class Encoder(Struct, frozen=True, forbid_unknown_fields=True):
    """Rows to float32, for the context and for the candidates. Frozen: same digest, same numbers.

    Attributes:
        context: one transform a context field, sorted by name, so the order in the log can not matter.
        candidate: one transform a candidate feature, sorted by name.
        actions: ids of the named actions, sorted; they become a one-hot in front of the candidate's features.
            Empty: a candidate is known by its features only.
    """

    context: tuple[Transform, ...] = ()
    candidate: tuple[Transform, ...] = ()
    actions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for group in (self.context, self.candidate):
            names = [transform.name for transform in group]
            if names != sorted(set(names)):
                raise DataError(f"encoder fields must be sorted and different: {', '.join(names)}")
        if list(self.actions) != sorted(set(self.actions)):
            raise DataError(f"encoder actions must be sorted and different: {', '.join(self.actions)}")

    @property
    def context_width(self) -> int:
        """F, the number of context columns."""
        return sum(transform.width for transform in self.context)

    @property
    def candidate_width(self) -> int:
        """A, the number of candidate columns."""
        return len(self.actions) + sum(transform.width for transform in self.candidate)

    @property
    def digest(self) -> str:
        """SHA-256 over all that decides the numbers; a mean of 1 and a mean of 1.0 are the same."""
        read_again = msgspec.convert(msgspec.to_builtins(self), Encoder)
        return hashlib.sha256(msgspec.json.encode((LIMIT, read_again), order="sorted")).hexdigest()

    def context_columns(self) -> tuple[str, ...]:
        """[F] a name for every context column, for reports."""
        return _column_names(self.context)

    def candidate_columns(self) -> tuple[str, ...]:
        """[A] a name for every candidate column, for reports."""
        return tuple(f"action={name}" for name in self.actions) + _column_names(self.candidate)

    def raw_context(self, rows: Sequence[Mapping[str, Value]]) -> Raw:
        """[N] rows of the log or of requests to arrays. Fields the encoder does not know are left out."""
        return _raw(self.context, rows)

    def raw_candidates(self, rows: Sequence[Sequence[Candidate]], width: int) -> tuple[Raw, np.ndarray]:
        """Candidates of N rows, padded to `width`.

        Returns:
            their features as [N, K, ...] and their ids as [N, K] object (NO_TEXT where padded).
        """
        for i, candidates in enumerate(rows):
            if len(candidates) > width:
                raise DataError(f"row {i}: {len(candidates)} candidates do not fit into {width} places")
        place = np.arange(width) < np.array([len(candidates) for candidates in rows])[:, None]
        flat = [candidate for candidates in rows for candidate in candidates]
        raw = _raw(self.candidate, [candidate.features for candidate in flat])
        ids = np.array([candidate.id for candidate in flat], dtype=object)
        texts = _spread(raw.texts, place, NO_TEXT)
        return Raw(_spread(raw.numbers, place, math.nan), texts), _spread(ids, place, NO_TEXT)

    def encode_context(self, raw: Raw) -> np.ndarray:
        """[N, F] f32 from `raw_context`."""
        return _encode(self.context, raw, self.context_width)

    def encode_candidates(self, raw: Raw, ids: np.ndarray) -> np.ndarray:
        """[N, K, A] f32 from `raw_candidates`; an id the encoder does not know is all zeros."""
        onehot = (ids[..., None] == np.array(self.actions, dtype=object)).astype(np.float32)
        features = _encode(self.candidate, raw, self.candidate_width - len(self.actions))
        return np.concatenate([onehot, features], axis=-1) if self.candidate else onehot


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


def category(name: str, values: Iterable[str], limit: int = 1000) -> Category:
    """The transform of a text field from the values seen.

    Raises:
        DataError: more than `limit` values: a one-hot of them would not learn.
    """
    seen = tuple(sorted(set(values)))
    if len(seen) > limit:
        raise DataError(
            f"field {name} has {len(seen)} different texts, more than {limit}",
            hint="group rare values, or leave the field out",
            field=name,
        )
    return Category(name, seen)


def columns(raw: Raw, have: tuple[Transform, ...], want: tuple[Transform, ...]) -> Raw:
    """The same rows for another encoder: its fields, in its order.

    Args:
        raw: in the order of the transforms `have`.
        want: transforms of the other encoder.
    Raises:
        DataError: it wants a field that is not there, or that is there with another type.
    """
    numbers = [t.name for t in have if isinstance(t, Continuous)]
    texts = [t.name for t in have if isinstance(t, Category)]
    picked: dict[type, list[int]] = {Continuous: [], Category: []}
    for transform in want:
        names = numbers if isinstance(transform, Continuous) else texts
        if transform.name not in names:
            raise DataError(
                f"the policy reads the field {transform.name!r} as {type(transform).__name__}, and the rows have "
                f"no such field",
                hint="build again; if the field is gone from the log, the policy can not be judged on it",
                field=transform.name,
            )
        picked[type(transform)].append(names.index(transform.name))
    return Raw(raw.numbers[..., picked[Continuous]], raw.texts[..., picked[Category]])


def _raw(transforms: tuple[Transform, ...], rows: Sequence[Mapping[str, Value]]) -> Raw:
    numbers = [t.name for t in transforms if isinstance(t, Continuous)]
    texts = [t.name for t in transforms if isinstance(t, Category)]
    text = np.empty((len(rows), len(texts)), dtype=object)
    for j, name in enumerate(texts):
        text[:, j] = [_text(name, row.get(name)) for row in rows]
    return Raw(_numbers(numbers, rows), text)


def _numbers(names: Sequence[str], rows: Sequence[Mapping[str, Value]]) -> np.ndarray:
    """[N, C] f64, NaN where a field is missing."""
    if len(names) < 2:
        numbers = [_number(name, row.get(name)) for row in rows for name in names]
        return np.array(numbers, dtype=np.float64).reshape(len(rows), len(names))
    values: list[Any] = []
    pick = itemgetter(*names)
    for row in rows:
        try:
            values += pick(row)
        except KeyError:
            values += map(row.get, names)
    try:
        flat = array("d", values)  # unlike numpy it takes no text for a number
    except TypeError:
        known = [math.nan if value is None else value for value in values]
        if set(map(type, known)) != {float}:
            known = [_number(name, value) for name, value in zip(itertools.cycle(names), values, strict=False)]
        flat = array("d", known)
    return np.array(flat).reshape(len(rows), len(names))


def _spread(values: np.ndarray, place: np.ndarray, missing: object) -> np.ndarray:
    """[N, K, ...] from the rows of the places that are True."""
    if place.all():
        return values.reshape(*place.shape, *values.shape[1:])
    out = np.full((*place.shape, *values.shape[1:]), missing, dtype=values.dtype)
    out[place] = values
    return out


def _number(name: str, value: Value) -> float:
    if value is None:
        return math.nan
    if isinstance(value, (int, float)):
        return value
    raise DataError(f"field {name} is {value!r}, must be a number", hint="the policy learned it as one", field=name)


def _text(name: str, value: Value) -> str:
    if value is None:
        return NO_TEXT
    if isinstance(value, str):
        if NO_TEXT not in value:
            return value
        raise DataError(f"field {name} is {value!r}: U+FDD0 stands for a missing text", field=name)
    raise DataError(f"field {name} is {value!r}, must be a text", hint="the policy learned it as one", field=name)


def _encode(transforms: tuple[Transform, ...], raw: Raw, width: int) -> np.ndarray:
    out = np.zeros((*raw.numbers.shape[:-1], width), dtype=np.float32)
    at = number = text = 0
    for transform in transforms:
        if isinstance(transform, Continuous):
            value = raw.numbers[..., number]
            missing = np.isnan(value)
            # f64 until the last step: a timestamp minus its mean must not lose its seconds.
            with np.errstate(over="ignore"):  # infinity is clipped like any number far out
                scaled = (value - transform.mean) / transform.std
            out[..., at] = np.where(missing, 0.0, np.clip(scaled, -LIMIT, LIMIT))
            out[..., at + 1] = missing
            number += 1
        else:
            _one_hot(out[..., at : at + transform.width], transform, raw.texts[..., text])
            text += 1
        at += transform.width
    return out


def _one_hot(out: np.ndarray, transform: Category, texts: np.ndarray) -> None:
    index = _positions(transform)
    unseen = len(transform.values)
    columns = np.array([index.get(value, unseen) for value in texts.ravel()], dtype=np.int64)
    flat = np.zeros((columns.size, transform.width), dtype=np.float32)
    flat[np.arange(columns.size), columns] = 1.0
    out[...] = flat.reshape(out.shape)


@functools.lru_cache(maxsize=4096)
def _positions(transform: Category) -> dict[str, int]:
    places = {value: i for i, value in enumerate(transform.values)}
    places[NO_TEXT] = len(transform.values) + 1
    return places


def _column_names(transforms: tuple[Transform, ...]) -> tuple[str, ...]:
    names: list[str] = []
    for transform in transforms:
        if isinstance(transform, Continuous):
            names += [transform.name, f"{transform.name} missing"]
        else:
            names += [f"{transform.name}={value}" for value in transform.values]
            names += [f"{transform.name} unseen", f"{transform.name} missing"]
    return tuple(names)
