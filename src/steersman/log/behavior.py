"""Propensities that nobody logged: estimated by a model of the behavior policy, or declared and put to the test.

The model is a conditional logit (`choice`), cross-fitted: the units are parted in FOLDS, and the propensity of a
decision comes from the model that was fitted on the other folds. Beside it stand the frequencies with which the
actions were taken, cross-fitted too. How strongly the model is held to them (its ridge) and whether it is used at all
goes by the log loss of what neither has seen: the model, if the interval of what it gains is above 0; else the
frequencies, since what the model says beyond them would be noise. Nothing is imported if there are too few units to
tell.

No propensity is 0: of n decisions that it was fitted on, a model gives a share 1 / (n + 1) of its probability to the
frequencies, and to each frequency one further decision is counted, spread evenly over its candidates.

An estimate knows only what the context says: a policy that looked at something that was not logged, or in a way that
is far from a logit, has other propensities, and no number here shows it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.decision import Decision, Numbers, decoder
from steersman.core.density import volume
from steersman.core.errors import DataError
from steersman.log import choice, vectors
from steersman.log.choice import Row
from steersman.log.foreign import Propensities
from steersman.log.segment import DECISION

Array = np.ndarray
Records = Iterator[tuple[bytes, bytes]]

FOLDS = 5
RIDGES = (1000.0, 100.0, 10.0, 1.0)
"""From all but the frequencies to a standard normal prior; the next is tried while it predicts better."""

LEVEL = 0.95
REFUTED = 0.999
"""Level at which a declared uniform policy counts as refuted."""

MAX_ROWS = 50_000
CHUNK = 2_000
FEWEST_UNITS = 4 * FOLDS

_encode = msgspec.json.Encoder().encode
_decode = decoder(Decision)


class Behavior(Struct, frozen=True):
    """Where the propensities come from that the source did not have. Losses are cross-fitted, in nats a decision.

    Of actions that are numbers each number is a decision of its own, among the parts of its bounds (`vectors`).

    Attributes:
        method: `logistic` or `frequencies` (estimates, and marked as such), or `uniform` (declared).
        decisions: that got their propensity so.
        fitted_on, units: decisions, and their units, that the model was fitted and judged on.
        loss_logistic, loss_frequencies, loss_uniform: mean of -log(probability of the action that was taken).
        gain, low, high: loss_frequencies - loss_logistic with its interval at `level`, by units. The ridge was chosen
            among RIDGES by the same loss, which flatters the gain a little.
        ridge: of the model.
        smallest: propensity; for numbers the density.
    """

    method: Literal["logistic", "frequencies", "uniform"]
    decisions: int
    fitted_on: int
    units: int
    loss_logistic: float
    loss_frequencies: float
    loss_uniform: float
    gain: float
    low: float
    high: float
    level: float
    ridge: float
    smallest: float


def settle_all(
    records: Callable[[], Records],
    propensities: Propensities,
    box: Numbers | None,
    append: Callable[[Iterable[tuple[bytes, bytes]]], None],
) -> Behavior | None:
    """Give every decision that is marked as estimated its propensity, and hand all records on in their order.

    Args:
        records: the records from the first one on, as often as it is called.
        propensities: `estimate` or `uniform`.
        box: bounds of actions that are numbers, `uniform` only; None: they are candidates.
        append: takes the records; it is called once, after all that can go wrong with the estimate.
    Returns:
        what was done; None if no propensity was missing.
    Raises:
        DataError: too few units, or the policy was not uniform.
    """
    rows, waiting = _sample(records(), box)
    if not waiting:
        append(records())
        return None
    _check_units(rows)
    fitted = _fit(rows)
    method = _method(fitted, propensities)
    settled = _Settled(fitted, method, box)
    append(settled.records(records()))
    return Behavior(
        method=method,
        decisions=settled.decisions,
        fitted_on=len(fitted.rows),
        units=fitted.units,
        loss_logistic=float(-fitted.logistic.mean()),
        loss_frequencies=float(-fitted.frequencies.mean()),
        loss_uniform=float(-fitted.uniform.mean()),
        **dict(zip(("gain", "low", "high"), fitted.gain(fitted.logistic, fitted.frequencies, LEVEL), strict=True)),
        level=LEVEL,
        ridge=fitted.ridge,
        smallest=settled.smallest,
    )


def _sample(records: Records, box: Numbers | None) -> tuple[list[Row], int]:
    """Decisions that wait for their propensity, and how many do: all, or those of some of the units if they are many.

    Of many units so many stay that a pass is affordable; which ones goes by their hash alone.
    """
    rows: list[Row] = []
    waiting = 0
    limit = 1 << 64
    names: dict[tuple[str, ...], tuple[str, ...]] = {}
    for kind, body in records:
        if kind == DECISION and (decision := _decode(body)).estimated:
            some = [_row(decision, names)] if box is None else _rows_of_numbers(decision, box)
            waiting += 1
            if some[0].hash < limit:
                rows += some
            if len(rows) > MAX_ROWS:
                limit //= 2
                rows = [row for row in rows if row.hash < limit]
    if rows:
        affordable = choice.affordable(choice.Coder(rows), rows)
        rows = sorted(rows, key=lambda row: row.hash)[:affordable] if len(rows) > affordable else rows
    return rows, waiting


def _check_units(rows: Sequence[Row]) -> None:
    units = len({row.unit for row in rows})
    if units < FEWEST_UNITS:
        raise DataError(
            f"the behavior policy can not be learned from {units} units, at least {FEWEST_UNITS} are needed",
            hint="a model is judged on units that it has not seen; a unit of a very large log counts if it is small",
            field="propensity",
        )


def _row(decision: Decision, names: dict[tuple[str, ...], tuple[str, ...]]) -> Row:
    """Args: names: ids of candidates -> the same, so that equal ones are kept once."""
    ids = tuple(candidate.id for candidate in decision.candidates)
    ids = names.setdefault(ids, ids)
    features = tuple(candidate.features for candidate in decision.candidates)
    return Row(
        unit=decision.unit,
        hash=_hash(decision.unit),
        context=decision.context,
        ids=ids,
        features=features if any(features) else (),
        taken=ids.index(str(decision.action)),
    )


def _rows_of_numbers(decision: Decision, box: Numbers) -> list[Row]:
    """A row a number of the action: in which part of its bounds it lies."""
    shared = (decision.unit, _hash(decision.unit), decision.context)
    action = tuple(map(float, decision.action))
    return [
        Row(*shared, tuple(f"{number}.{part}" for part in range(vectors.PARTS)), (), taken)
        for number, taken in enumerate(vectors.parts(action, box))
    ]


def _hash(unit: str) -> int:
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest())


def _folds(rows: Sequence[Row]) -> Array:
    """[N]: of the low bits of the hash; the sample goes by the high ones."""
    return np.array([row.hash % FOLDS for row in rows])


class _Frequencies:
    """How often a candidate was taken when it was offered, in all folds but one."""

    def __init__(self, rows: Sequence[Row], fold: Array) -> None:
        self._offered = [Counter[str]() for _ in range(FOLDS)]
        self._taken = [Counter[str]() for _ in range(FOLDS)]
        for row, own in zip(rows, fold.tolist(), strict=True):
            for other in range(FOLDS):
                if other != own:
                    self._offered[other].update(row.ids)
                    self._taken[other][row.ids[row.taken]] += 1

    def taken(self, rows: Sequence[Row], fold: Array) -> Array:
        """[N] probability of the action that was taken; above 0."""
        out = np.empty(len(rows))
        for i, (row, own) in enumerate(zip(rows, fold.tolist(), strict=True)):
            offered, taken = self._offered[own], self._taken[own]
            share = 1.0 / len(row.ids)
            rates = [(taken[name] + share) / (offered[name] + 1.0) for name in row.ids]
            out[i] = rates[row.taken] / sum(rates)
        return out


@dataclass(frozen=True)
class _Fitted:
    """The models of all folds, held by one ridge, and what they say of the rows that they have not seen.

    Attributes:
        rows: that it was fitted on.
        thetas: [FOLDS] parameters; the model of a fold has not seen its rows.
        trust: [FOLDS] share of the model's probability that goes to the frequencies.
        ridge: of the model.
        logistic, frequencies, uniform: [N] log of the probability of the action that was taken.
        unit: [N] number of the unit.
    """

    rows: list[Row]
    coder: choice.Coder
    counts: _Frequencies
    thetas: list[Array]
    trust: Array
    ridge: float
    logistic: Array
    frequencies: Array
    uniform: Array
    unit: Array

    @property
    def units(self) -> int:
        """Number of units in the rows."""
        return int(self.unit.max()) + 1

    def chances(self, rows: Sequence[Row]) -> tuple[Array, Array]:
        """[N], [N]: of the action that was taken, by the model and by the frequencies."""
        return _chances(self.coder, self.counts, self.thetas, self.trust, rows)

    def gain(self, better: Array, worse: Array, level: float) -> tuple[float, float, float]:
        """Mean of better - worse, with its interval by units.

        Source: the quantile of Student's t by the expansion in Abramowitz and Stegun 1964, 26.7.5.
        """
        gain = better - worse
        mean = float(gain.mean())
        of_unit = np.bincount(self.unit, weights=gain - mean)
        df = len(of_unit) - 1
        error = math.sqrt(float(of_unit @ of_unit) * len(of_unit) / df) / len(gain)
        z = NormalDist().inv_cdf((1 + level) / 2)
        t = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        return mean, mean - t * error, mean + t * error


def _fit(rows: list[Row]) -> _Fitted:
    coder = choice.Coder(rows)
    places: dict[str, int] = {}
    unit = np.array([places.setdefault(row.unit, len(places)) for row in rows])
    fold = _folds(rows)
    counts = _Frequencies(rows, fold)
    coded = coder.code(rows)
    others = [np.flatnonzero(fold != own) for own in range(FOLDS)]
    trust = np.array([1.0 / (len(index) + 1.0) for index in others])
    uniform = np.log([1.0 / len(row.ids) for row in rows])

    def held(ridge: float, starts: Sequence[Array | None]) -> _Fitted:
        pairs = zip(others, starts, strict=True)
        thetas = [choice.fit(coded.rows(index), coder.ids, ridge, start) for index, start in pairs]
        logistic, frequencies = map(np.log, _chances(coder, counts, thetas, trust, rows))
        return _Fitted(rows, coder, counts, thetas, trust, ridge, logistic, frequencies, uniform, unit)

    best = held(RIDGES[0], [None] * FOLDS)
    for ridge in RIDGES[1:]:
        looser = held(ridge, best.thetas)
        if looser.logistic.mean() <= best.logistic.mean():
            break
        best = looser
    return best


def _chances(
    coder: choice.Coder, counts: _Frequencies, thetas: list[Array], trust: Array, rows: Sequence[Row]
) -> tuple[Array, Array]:
    fold = _folds(rows)
    frequencies = counts.taken(rows, fold)
    coded = coder.code(rows)
    logistic = np.empty(len(rows))
    for own, theta in enumerate(thetas):
        index = np.flatnonzero(fold == own)
        if len(index):
            some = coded.rows(index)
            logistic[index] = choice.probabilities(theta, some)[np.arange(len(index)), some.taken]
    return np.minimum((1 - trust[fold]) * logistic + trust[fold] * frequencies, 1.0), frequencies


def _method(fitted: _Fitted, propensities: Propensities) -> Literal["logistic", "frequencies", "uniform"]:
    """Which one is used.

    Raises:
        DataError: uniform was declared, and is not what happened.
    """
    if propensities == "uniform":
        for found in (fitted.frequencies, fitted.logistic):
            gain, low, high = fitted.gain(found, fitted.uniform, REFUTED)
            if low > 0:
                raise DataError(
                    f"the actions were not taken uniformly: what was learned of the policy predicts them better by "
                    f"{gain:.3g} [{low:.3g}, {high:.3g}] nats a decision",
                    hint="--propensity estimate, or find the logged probabilities",
                    field="propensity",
                )
        return "uniform"
    _, low, _ = fitted.gain(fitted.logistic, fitted.frequencies, LEVEL)
    return "logistic" if low > 0 else "frequencies"


class _Settled:
    """The records with their propensities; afterwards it knows how many it gave and the smallest."""

    def __init__(self, fitted: _Fitted, method: str, box: Numbers | None) -> None:
        self._fitted = fitted
        self._method = method
        self._box = box
        self.decisions = 0
        self.smallest = math.inf

    def records(self, records: Records) -> Records:
        """The same records, a chunk in memory at a time."""
        waiting: list[tuple[bytes, bytes | Decision]] = []
        for kind, body in records:
            decision = _decode(body) if kind == DECISION else None
            waiting.append((kind, decision if decision is not None and decision.estimated else body))
            if len(waiting) >= CHUNK:
                yield from self._settle(waiting)
                waiting = []
        yield from self._settle(waiting)

    def _settle(self, waiting: Sequence[tuple[bytes, bytes | Decision]]) -> Records:
        decisions = [body for _, body in waiting if isinstance(body, Decision)]
        chances = iter(self._propensities(decisions) if decisions else ())
        for kind, body in waiting:
            if isinstance(body, bytes):
                yield kind, body
                continue
            propensity = next(chances)
            self.decisions += 1
            self.smallest = min(self.smallest, propensity)
            estimated = self._method != "uniform"
            yield kind, _encode(msgspec.structs.replace(body, propensity=propensity, estimated=estimated))

    def _propensities(self, decisions: Sequence[Decision]) -> list[float]:
        if self._box is not None:
            return [1.0 / volume(self._box)] * len(decisions)
        rows = [_row(decision, {}) for decision in decisions]
        if self._method == "uniform":
            return [1.0 / len(row.ids) for row in rows]
        logistic, frequencies = self._fitted.chances(rows)
        return (logistic if self._method == "logistic" else frequencies).tolist()
