"""The numbers of an encoder, in numpy: a table with one function a type, run over blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from steersman.core.decision import NO_TEXT
from steersman.core.features.raw import NO_LIST, Raw
from steersman.core.features.transforms import (
    EDGE,
    LIMIT,
    Binary,
    BoxCox,
    Category,
    Constant,
    Continuous,
    Enumerated,
    Ids,
    Placed,
    Probability,
    Quantile,
    Transform,
    placed,
)

Array = np.ndarray
Places = slice | Array
Step = Callable[[Raw, Array], None]
"""Takes a block of rows and the same rows of the output; writes some columns of it."""

_NUMBERS = 32_768
"""Numbers in a block of rows of many fields: they, and what is computed from them, fit into the cache of a core."""

_CELLS = 1_048_576
"""Columns times rows in a block of one field that becomes many columns."""


def encode(transforms: Sequence[Transform], raw: Raw, out: Array) -> None:
    """Write every column of the transforms into `out`, [..., W] f32, W being the sum of their widths."""
    groups: dict[type, list[Placed[Any]]] = {}
    for field in placed(transforms):
        groups.setdefault(type(field.transform), []).append(field)
    candidates = max(int(np.prod(out.shape[1:-1])), 1)
    with np.errstate(over="ignore", invalid="ignore"):  # what is far out is clipped, NaN replaced
        for kind, fields in groups.items():
            if kind in _FIELDS:
                for field in fields:
                    rows = min(_CELLS // field.transform.width // candidates, 4096)
                    _run(_FIELDS[kind](field), raw, out, max(rows, 1))
            else:
                _run(_together(kind, fields), raw, out, max(_NUMBERS // len(fields) // candidates, 64))


def encode_ids(actions: Sequence[str], ids: Array, out: Array) -> None:
    """Write the one-hot of the named actions into `out`, [N, K, len(actions)] f32; all zeros for any other id."""
    columns = _Columns(actions).of(ids)
    named = np.nonzero(columns < len(actions))
    out[...] = 0.0
    out[(*named, columns[named])] = 1.0


def _run(step: Step, raw: Raw, out: Array, rows: int) -> None:
    """In blocks of that many rows."""
    for start in range(0, len(out), rows):
        part = slice(start, start + rows)
        step(raw.take(part), out[part])


# ---- a number to a number


def _together(kind: type, fields: Sequence[Placed[Any]]) -> Step:
    """Values and missing indicators of C fields of one type."""
    columns = _places([field.column for field in fields])
    values = _places([field.at for field in fields])
    indicators = _places([field.missing_at for field in fields])
    if kind is Constant:
        return partial(_missing, columns, indicators)
    value = _VALUES[kind]([field.transform for field in fields])

    def step(rows: Raw, out: Array) -> None:
        numbers = rows.numbers[..., columns]
        missing = np.isnan(numbers)
        known = value(numbers)
        np.copyto(known, 0.0, where=missing)
        out[..., values] = known
        out[..., indicators] = missing

    return step


def _missing(columns: Places, indicators: Places, rows: Raw, out: Array) -> None:
    out[..., indicators] = np.isnan(rows.numbers[..., columns])


def _binary(transforms: Sequence[Binary]) -> Callable[[Array], Array]:
    return lambda numbers: (numbers != 0).astype(np.float64)


def _probability(transforms: Sequence[Probability]) -> Callable[[Array], Array]:
    def value(numbers: Array) -> Array:
        share = np.clip(numbers, EDGE, 1 - EDGE)
        return np.log(share / (1 - share))

    return value


def _continuous(transforms: Sequence[Continuous]) -> Callable[[Array], Array]:
    mean = np.array([transform.mean for transform in transforms])
    std = np.array([transform.std for transform in transforms])
    return lambda numbers: _standardised(numbers - mean, std)  # f64: a timestamp must not lose its seconds


def _standardised(difference: Array, scale: Array | float) -> Array:
    """In place: by the scale, and clipped."""
    difference /= scale
    return np.clip(difference, -LIMIT, LIMIT, out=difference)


def _boxcox(transforms: Sequence[BoxCox]) -> Callable[[Array], Array]:
    shift = np.array([transform.shift for transform in transforms])
    low = np.array([transform.low for transform in transforms])
    offset, scale = np.array([transform.folded for transform in transforms]).T

    def value(numbers: Array) -> Array:
        raised = np.maximum(numbers + shift, low)
        for j, transform in enumerate(transforms):
            one = raised[..., j]
            raised[..., j] = np.log(one) if transform.logarithmic else one**transform.power
        return _standardised(raised - offset, scale)

    return value


def _quantile(transforms: Sequence[Quantile]) -> Callable[[Array], Array]:
    every = [np.array(transform.boundaries) for transform in transforms]

    def value(numbers: Array) -> Array:
        shares = np.empty(numbers.shape)
        for j, boundaries in enumerate(every):
            one = numbers[..., j]
            below = np.searchsorted(boundaries[1:-1], one, side="right")
            within = (one - boundaries[below]) / np.diff(boundaries)[below]
            shares[..., j] = (within + below) / (len(boundaries) - 1)
        return np.clip(shares, 0.0, 1.0, out=shares)

    return value


_VALUES: dict[type, Callable[[Any], Callable[[Array], Array]]] = {
    Binary: _binary,
    Probability: _probability,
    Continuous: _continuous,
    BoxCox: _boxcox,
    Quantile: _quantile,
}
"""Type -> transforms of C fields -> what makes a new [..., C] f64 of numbers, [..., C] f64; anything for NaN."""


# ---- a field to many columns


def _enumerated(field: Placed[Enumerated]) -> Step:
    values = np.append(field.transform.values, np.nan)  # so that a number above all has something to differ from
    unseen, missing = len(values) - 1, len(values)

    def step(rows: Raw, out: Array) -> None:
        numbers = rows.numbers[..., field.column]
        place = np.searchsorted(values[:-1], numbers)
        place[values[place] != numbers] = unseen
        place[np.isnan(numbers)] = missing
        _mark(out, field, place)

    return step


def _category(field: Placed[Category]) -> Step:
    columns = _Columns(field.transform.values)
    columns[NO_TEXT] = field.transform.width - 1

    def step(rows: Raw, out: Array) -> None:
        _mark(out, field, columns.of(rows.texts[..., field.column]))

    return step


class _Columns(dict[str, int]):
    """Text -> its column; any other text -> the column behind them."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__((text, i) for i, text in enumerate(texts))
        self._other = len(texts)

    def __missing__(self, text: str) -> int:
        return self._other

    def of(self, texts: Array) -> Array:
        """[...] object to [...] i64."""
        flat = map(self.__getitem__, texts.ravel().tolist())
        return np.fromiter(flat, dtype=np.int64, count=texts.size).reshape(texts.shape)


def _ids(field: Placed[Ids]) -> Step:
    buckets = field.transform.buckets

    def step(rows: Raw, out: Array) -> None:
        keys = rows.lists[..., field.column, :]
        flat = keys.reshape(keys[..., 0].size, keys.shape[-1])
        row, place = np.nonzero(flat >= 0)
        bucket = row * buckets + flat[row, place] % buckets
        counts = np.bincount(bucket, minlength=len(flat) * buckets).reshape(*keys.shape[:-1], buckets)
        length = np.bincount(row, minlength=len(flat)).reshape(*keys.shape[:-1], 1)
        # f32 by f32, as in the graph: whole numbers, so only the quotient is rounded.
        out[..., field.at : field.missing_at] = counts.astype(np.float32) / np.maximum(length, 1).astype(np.float32)
        out[..., field.missing_at] = keys[..., 0] == NO_LIST

    return step


_FIELDS: dict[type, Callable[[Any], Step]] = {Enumerated: _enumerated, Category: _category, Ids: _ids}


def _mark(out: Array, field: Placed[Any], place: Array) -> None:
    """One-hot: 1 at the place of every row, 0 elsewhere."""
    columns = out[..., field.at : field.missing_at + 1]
    columns[...] = 0.0
    np.put_along_axis(columns, place[..., None], 1.0, axis=-1)


def _places(columns: Sequence[int]) -> Places:
    """A slice where the columns lie evenly: numpy reads and writes it faster."""
    steps = set(np.diff(columns).tolist()) or {1}
    return slice(columns[0], columns[-1] + 1, steps.pop()) if len(steps) == 1 else np.array(columns)
