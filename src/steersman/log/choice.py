"""A conditional logit: which of its candidates a row takes, from its context and from what they are.

    utility(x, a) = z(a)' Theta (1, x)

x is the context and z(a) the id and the features of a candidate, both as numbers. With named actions alone z is a
one-hot, and this is the multinomial logistic model.

Source: McFadden 1974, Conditional logit analysis of qualitative choice behavior.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from steersman.core.decision import Value
from steersman.log.lbfgs import minimise

Array = np.ndarray

INTERCEPT_RIDGE = 1.0
"""Weight of the squared intercepts of the ids against the summed log-likelihood: a standard normal prior on each."""

LIMIT = 10.0
"""A standardised number is clipped to this many standard deviations."""

RARE = 10
"""What fewer rows have gets no parameter of its own."""

MAX_TOKENS = 50
MAX_IDS = 200
MAX_WORK = 100_000_000
"""Multiplications of one pass over the rows: more rows than that are not fitted on."""


class Row(NamedTuple):
    """A decision as the model sees it.

    Attributes:
        unit: whose it is.
        hash: of the unit, 64 bits.
        context: field -> value.
        ids: of the candidates.
        features: [K] of the candidates; empty if none has any.
        taken: place of the action among the candidates.
    """

    unit: str
    hash: int
    context: Mapping[str, Value]
    ids: tuple[str, ...]
    features: tuple[Mapping[str, Value], ...]
    taken: int


@dataclass(frozen=True)
class _Field:
    """Columns of one field: its number, whether it is missing, and its texts."""

    name: str
    mean: float
    std: float
    missing: bool
    tokens: dict[str, int]

    @property
    def width(self) -> int:
        return (self.std > 0) + self.missing + len(self.tokens)


@dataclass(frozen=True)
class Coded:
    """Rows as arrays.

    Attributes:
        context: [N, F]; the first column is 1.
        ids: [N, K] place of the candidate's id among those of the model; their number if it has none.
        features: [N, K, A]; A may be 0.
        mask: [N, K] there is a candidate.
        taken: [N].
    """

    context: Array
    ids: Array
    features: Array
    mask: Array
    taken: Array

    def rows(self, index: Array) -> Coded:
        """Some of the rows."""
        return Coded(*(getattr(self, name)[index] for name in ("context", "ids", "features", "mask", "taken")))


class Coder:
    """Rows to arrays; what it needs to know it takes from rows, and never from what they took."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._context = _fields([row.context for row in rows])
        self._candidate = _fields([features for row in rows for features in row.features])
        offered = Counter(name for row in rows for name in row.ids)
        frequent = [name for name, count in offered.most_common(MAX_IDS) if count >= RARE]
        self._ids = {name: place for place, name in enumerate(sorted(frequent))}

    @property
    def shape(self) -> tuple[int, int]:
        """Of the parameters: [ids + candidate columns, context columns]."""
        return len(self._ids) + _width(self._candidate), 1 + _width(self._context)

    @property
    def ids(self) -> int:
        """Number of ids that have parameters of their own."""
        return len(self._ids)

    def code(self, rows: Sequence[Row]) -> Coded:
        """Rows to arrays."""
        widest = max(len(row.ids) for row in rows)
        counts = np.array([len(row.ids) for row in rows])
        mask = np.arange(widest) < counts[:, None]
        ids = np.full(mask.shape, self.ids, dtype=np.int64)
        ids[mask] = [self._ids.get(name, self.ids) for row in rows for name in row.ids]
        features = np.zeros((*mask.shape, _width(self._candidate)))
        if features.shape[2]:
            given = [one for row in rows for one in row.features or ({},) * len(row.ids)]
            features[mask] = _encode(self._candidate, given)
        context = np.hstack([np.ones((len(rows), 1)), _encode(self._context, [row.context for row in rows])])
        return Coded(context, ids, features, mask, np.array([row.taken for row in rows]))


def fit(coded: Coded, ids: int, ridge: float, start: Array | None = None) -> Array:
    """[ids + A, F] the parameters: the smallest penalised log loss.

    Args:
        ids: number of ids that have parameters.
        ridge: weight of the squared parameters against the summed log-likelihood. The intercepts of the ids have one
            of their own: without end, the model becomes the frequencies of the ids.
        start: [ids + A, F], e.g. what another ridge gave.
    """
    shape = (ids + coded.features.shape[2], coded.context.shape[1])
    everyone = np.arange(len(coded.taken))
    penalty = np.full(shape, ridge)
    penalty[:ids, 0] = INTERCEPT_RIDGE
    penalty = penalty.ravel() / len(everyone)

    def loss(flat: Array) -> tuple[float, Array]:
        theta = flat.reshape(shape)
        chances = probabilities(theta, coded)
        taken = chances[everyone, coded.taken]
        value = -float(np.log(np.maximum(taken, 1e-300)).mean()) + 0.5 * float(penalty @ flat**2)
        chances[everyone, coded.taken] -= 1.0
        chances /= len(everyone)
        by_id = np.zeros((len(everyone), ids + 1))
        np.put_along_axis(by_id, coded.ids, chances, axis=1)  # ids differ within a row, but for those without a place
        by_feature = np.einsum("nk,nka->na", chances, coded.features)
        slope = np.hstack([by_id[:, :ids], by_feature]).T @ coded.context
        return value, slope.ravel() + penalty * flat

    return minimise(loss, (np.zeros(shape) if start is None else start).ravel()).reshape(shape)


def probabilities(theta: Array, coded: Coded) -> Array:
    """[N, K] with which the model takes each candidate; 0 where there is none."""
    ids = len(theta) - coded.features.shape[2]
    weights = coded.context @ theta.T  # [N, ids + A]
    by_id = np.hstack([weights[:, :ids], np.zeros((len(weights), 1))])
    utility = np.take_along_axis(by_id, coded.ids, axis=1)
    utility += np.einsum("nka,na->nk", coded.features, weights[:, ids:])
    utility = np.where(coded.mask, utility, -np.inf)
    chances = np.exp(utility - utility.max(axis=1, keepdims=True))
    return chances / chances.sum(axis=1, keepdims=True)


def affordable(coder: Coder, rows: Sequence[Row]) -> int:
    """Rows that one pass of fitting can be over."""
    parameters, columns = coder.shape
    widest = max(len(row.ids) for row in rows)
    return max(1, MAX_WORK // (parameters * columns + widest * (1 + parameters - coder.ids)))


def _fields(rows: Sequence[Mapping[str, Value]]) -> list[_Field]:
    return [_field(name, rows) for name in sorted({name for row in rows for name in row})]


def _field(name: str, rows: Sequence[Mapping[str, Value]]) -> _Field:
    values = [row.get(name) for row in rows]
    numbers = np.array([value for value in values if isinstance(value, float | int)], dtype=np.float64)
    absent = sum(value is None for value in values)
    tokens = Counter(token for value in values for token in _tokens(value))
    frequent = [token for token, count in tokens.most_common(MAX_TOKENS) if count >= RARE]
    mean = float(numbers.mean()) if len(numbers) else 0.0
    std = float(numbers.std()) if len(numbers) else 0.0
    if std <= 1e-12 * abs(mean):
        std = 0.0
    enough = RARE <= absent <= len(rows) - RARE
    return _Field(name, mean, std, enough, {token: place for place, token in enumerate(sorted(frequent))})


def _tokens(value: Value) -> tuple[str, ...]:
    """A text, or the different elements of a list."""
    if isinstance(value, str):
        return (value,)
    return tuple(sorted(set(map(str, value)))) if isinstance(value, tuple | list) else ()


def _width(fields: Sequence[_Field]) -> int:
    return sum(field.width for field in fields)


def _encode(fields: Sequence[_Field], rows: Sequence[Mapping[str, Value]]) -> Array:
    """[N, width]; a number that is missing is the mean."""
    out = np.zeros((len(rows), _width(fields)))
    at = 0
    for field in fields:
        values = [row.get(field.name) for row in rows]
        if field.std > 0:
            numbers = [value if isinstance(value, float | int) else field.mean for value in values]
            out[:, at] = np.clip((np.array(numbers) - field.mean) / field.std, -LIMIT, LIMIT)
            at += 1
        if field.missing:
            out[:, at] = [value is None for value in values]
            at += 1
        for i, value in enumerate(values):
            for token in _tokens(value):
                if token in field.tokens:
                    out[i, at + field.tokens[token]] = 1.0
        at += len(field.tokens)
    return out
