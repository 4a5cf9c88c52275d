"""Raw: rows before the encoder, as arrays; how they are made from rows of the log and of requests, and taken apart."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from steersman.core.decision import NO_TEXT, Value
from steersman.core.errors import DataError
from steersman.core.features.transforms import (
    Binary,
    BoxCox,
    Category,
    Constant,
    Continuous,
    Enumerated,
    Ids,
    Kind,
    Probability,
    Quantile,
    Transform,
    decimal,
)

NO_ID = -1
"""Key behind the last id of a list."""

NO_LIST = -2
"""First key of a list that is missing, which an empty one is not."""

LONGEST = 256
"""Ids by which a list counts. One list of a hundred thousand would make all rows beside it as long."""

_NONE = np.empty((0, 0), dtype=np.int64)


@dataclass(frozen=True)
class Raw:
    """Rows as three arrays, each in the order of the encoder's fields of its kind; what the ONNX graph takes.

    Attributes:
        numbers: [..., C] f64; NaN is missing.
        texts: [..., T] object (str); NO_TEXT is missing.
        lists: [..., J, L] i64, keys from `id_keys`, as many as the longest list has and at least one: NO_ID behind
            the last, NO_LIST in the first place where the list is missing. Left out: no list fields.
    """

    numbers: np.ndarray
    texts: np.ndarray
    lists: np.ndarray = field(default_factory=lambda: _NONE)

    def __post_init__(self) -> None:
        if self.lists is _NONE:
            object.__setattr__(self, "lists", np.empty((*self.numbers.shape[:-1], 0, 1), dtype=np.int64))

    def take(self, rows: Any) -> Raw:
        """The rows that an index of numpy picks: a slice, places, a mask, or a tuple of them for [N, K, ...]."""
        return Raw(self.numbers[rows], self.texts[rows], self.lists[rows])

    def spread(self, place: np.ndarray) -> Raw:
        """[N, K, ...] from M rows: in order to where `place` is True ([N, K] bool, M True); all else is missing."""
        lists = spread(self.lists, place, NO_ID)
        if not place.all():
            lists[~place, :, 0] = NO_LIST
        return Raw(spread(self.numbers, place, math.nan), spread(self.texts, place, NO_TEXT), lists)

    def broadcast(self, n: int) -> Raw:
        """[n, ...] views of one row, [1, ...]."""
        return Raw(*(np.broadcast_to(a, (n, *a.shape[1:])) for a in (self.numbers, self.texts, self.lists)))


def spread(values: np.ndarray, place: np.ndarray, missing: object) -> np.ndarray:
    """[N, K, ...] from the rows of the places that are True."""
    if place.all():
        return values.reshape(*place.shape, *values.shape[1:])
    out = np.full((*place.shape, *values.shape[1:]), missing, dtype=values.dtype)
    out[place] = values
    return out


def raw_of(transforms: Sequence[Transform], rows: Sequence[Mapping[str, Value]]) -> Raw:
    """[N] rows of the log or of requests to arrays.

    Raises:
        DataError: a field holds something else than its transform reads.
    """
    names = names_of(transforms)
    texts = np.empty((len(rows), len(names["text"])), dtype=object)
    for j, name in enumerate(names["text"]):
        texts[:, j] = [_text(name, row.get(name)) for row in rows]
    numbers = _numbers(names["number"], rows)
    if not names["list"]:
        return Raw(numbers, texts)
    return Raw(
        numbers, texts, stack_lists([list_keys(name, [row.get(name) for row in rows]) for name in names["list"]])
    )


def names_of(transforms: Sequence[Transform]) -> dict[Kind, list[str]]:
    """Kind -> the fields that travel in its array, in order."""
    names: dict[Kind, list[str]] = {"number": [], "text": [], "list": []}
    for transform in transforms:
        names[transform.reads].append(transform.name)
    return names


def columns(raw: Raw, have: tuple[Transform, ...], want: tuple[Transform, ...]) -> Raw:
    """The same rows for another encoder: its fields, in its order.

    Args:
        raw: in the order of the transforms `have`.
        want: transforms of the other encoder; they may be of other types, if they read what is there.
    Raises:
        DataError: it wants a field that is not there, or that is there as another kind.
    """
    there = {kind: {name: i for i, name in enumerate(names)} for kind, names in names_of(have).items()}
    for transform in want:
        if transform.name not in there[transform.reads]:
            raise DataError(
                f"the policy reads the field {transform.name!r} as a {transform.reads}; the rows have no such field",
                hint="build again; if the field is gone from the log, the policy can not be judged on it",
                field=transform.name,
            )
    picked = {kind: [there[kind][name] for name in names] for kind, names in names_of(want).items()}
    return Raw(raw.numbers[..., picked["number"]], raw.texts[..., picked["text"]], raw.lists[..., picked["list"], :])


def random_raw(transforms: Sequence[Transform], shape: tuple[int, ...], random: np.random.Generator) -> Raw:
    """Rows [*shape, ...] of values such as the transforms were fitted on, some of them missing: to try a graph on."""
    drawn: dict[Kind, list[np.ndarray]] = {"number": [], "text": [], "list": []}
    for transform in transforms:
        drawn[transform.reads].append(_drawn(transform, shape, random))
    return Raw(
        np.stack(drawn["number"], axis=-1) if drawn["number"] else np.empty((*shape, 0)),
        np.stack(drawn["text"], axis=-1) if drawn["text"] else np.empty((*shape, 0), dtype=object),
        np.stack(drawn["list"], axis=-2) if drawn["list"] else np.empty((*shape, 0, 1), dtype=np.int64),
    )


def _drawn(transform: Transform, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """[*shape] numbers or texts, or [*shape, 4] keys; about one in ten is missing."""
    known: np.ndarray
    match transform:
        case Category(values=texts):
            return np.array((*texts, NO_TEXT), dtype=object)[random.integers(0, len(texts) + 1, size=shape)]
        case Ids():
            keys = random.integers(0, 2**63 - 1, size=(*shape, 4))
            keys[random.random(keys.shape) < 0.1] = NO_ID
            keys[random.random(shape) < 0.1] = [NO_LIST, NO_ID, NO_ID, NO_ID]
            return keys
        case Binary():
            known = random.integers(0, 2, size=shape).astype(np.float64)
        case Continuous(mean=mean, std=std):
            known = mean + std * random.normal(size=shape)
        case BoxCox(shift=shift, low=low):
            known = low * np.exp(random.exponential(size=shape)) - shift
        case Quantile(boundaries=boundaries):
            known = random.uniform(boundaries[0], boundaries[-1], size=shape)
        case Enumerated(values=numbers):
            known = np.array((*numbers, np.nan))[random.integers(0, len(numbers) + 1, size=shape)]
        case Probability() | Constant():
            known = random.random(shape)
    return np.where(random.random(shape) < 0.1, np.nan, known)


def id_keys(name: str, ids: Iterable[float | str]) -> np.ndarray:
    """Ids of a list field to keys: the first 63 bits of BLAKE2b of the UTF-8 text, so in [0, 2**63).

    A number is its decimal text: 3.0, 3 and "3" are one id. A float64 tells whole numbers up to 2**53 apart: send
    longer ids as texts.

    Args:
        name: of the field, for errors.
        ids: M ids of any lists, one after the other; each different one is hashed once.
    Returns:
        [M] i64.
    Raises:
        DataError: an id is neither a text nor a finite number.
    """
    keys = _Keys(name)
    some = ids.tolist() if isinstance(ids, np.ndarray) else ids
    try:
        return np.fromiter(map(keys.__getitem__, some), dtype=np.int64)
    except TypeError as error:  # a list in a list can not be looked up
        raise DataError(f"field {name} has an id that is neither a text nor a number: {error}", field=name) from None


def pack_lists(keys: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Keys of N lists, one after the other, to one row a list.

    A list longer than LONGEST counts by that many of its ids: those with the smallest keys, a sample that neither their
    order nor the other rows can change.

    Args:
        keys: [M] i64.
        lengths: [N] i64 of the lists; -1: the list is missing.
    Returns:
        [N, L] i64, as in `Raw.lists`; L is at most LONGEST.
    """
    if lengths.max(initial=0) > LONGEST:
        keys, lengths = _sampled(keys, lengths)
    width = max(int(lengths.max(initial=0)), 1)
    packed = np.full((len(lengths), width), NO_ID, dtype=np.int64)
    packed[np.arange(width) < lengths[:, None]] = keys
    packed[lengths < 0, 0] = NO_LIST
    return packed


def _sampled(keys: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every list that is too long its smallest keys."""
    ends = np.cumsum(np.maximum(lengths, 0))
    keep = np.ones(len(keys), dtype=bool)
    for row in np.flatnonzero(lengths > LONGEST):
        start = ends[row] - lengths[row]
        keep[start + np.argsort(keys[start : ends[row]], kind="stable")[LONGEST:]] = False
    return keys[keep], np.minimum(lengths, LONGEST)


def list_keys(name: str, lists: Sequence[Any]) -> np.ndarray:
    """A list field of N rows, each a list of ids or None, to keys: [N, L] i64, as in `Raw.lists`.

    A text alone is a list of one: so a text field with too many values for a one-hot can be hashed.

    Raises:
        DataError: a value is no list, or an id is neither a text nor a finite number.
    """
    if str in set(map(type, lists)):
        lists = [(value,) if isinstance(value, str) else value for value in lists]
    for kind in set(map(type, lists)):
        if kind not in _LISTS:
            wrong = next(value for value in lists if type(value) is kind)
            raise DataError(
                f"field {name} is {wrong!r}, must be a list", hint="the policy learned it as one", field=name
            )
    lengths = np.fromiter((-1 if ids is None else len(ids) for ids in lists), dtype=np.int64, count=len(lists))
    there = (ids.tolist() if isinstance(ids, np.ndarray) else ids for ids in lists if ids is not None)
    return pack_lists(id_keys(name, itertools.chain.from_iterable(there)), lengths)


def stack_lists(fields: Sequence[np.ndarray]) -> np.ndarray:
    """[N, J, L] i64 from J fields, each [N, L of its own] as `list_keys` gives it."""
    width = max(keys.shape[1] for keys in fields)
    stacked = np.full((len(fields[0]), len(fields), width), NO_ID, dtype=np.int64)
    for j, keys in enumerate(fields):
        stacked[:, j, : keys.shape[1]] = keys
    return stacked


_LISTS = (list, tuple, np.ndarray, type(None))


class _Keys(dict[Any, int]):
    """Id -> its key, computed on first sight."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __missing__(self, id: Any) -> int:
        if isinstance(id, str):
            text = id
        elif isinstance(id, (int, float, np.integer, np.floating)) and math.isfinite(id):
            text = decimal(id)
        else:
            raise DataError(f"field {self._name} has the id {id!r}, must be a text or a number", field=self._name)
        try:
            key = self[id] = _key(text)
        except UnicodeEncodeError as error:
            raise DataError(
                f"field {self._name}: an id can not be written as UTF-8: {error}", field=self._name
            ) from None
        return key


@functools.lru_cache(maxsize=65_536)
def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


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
