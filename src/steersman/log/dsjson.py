"""Vowpal Wabbit's dsjson, which Azure Personalizer exported: one decision with its joined reward a line.

    EventId, Timestamp               id (and unit: every event is a unit of its own) and time of the decision
    c                                the context; `_multi` in it: one object a candidate
    a, p                             all candidates, numbered from 1, the one taken first, and their probabilities
    _label_cost                      the outcome: metric `reward` = -cost, at the time of the decision
    _label_probability               checked against p of the candidate taken

Fields are named by their path, `namespace.feature`, and hold numbers, texts, booleans as 1 and 0, or a list of texts
or numbers. As in Vowpal Wabbit names that begin with `_` are not features, `_text` apart.

The id of a candidate is its `_tag`, `id`, `Id`, `ID` or the `id` in its `i`, whichever comes first; a candidate with
none of them is named by a digest of its features.

An event whose action was deferred (`DeferredAction`, older `_deferred`, or `_skipLearn`) is a deferred decision. Its
outcome activates it if one of its observations `o` does (`ActionTaken` true, older `DeferredAction` false); a reward
alone does not. The timeline leaves out what was never activated.

A reward that found no event when the log was written (dangling: `RewardValue`) is an outcome of the decision with its
EventId, at its EnqueuedTimeUtc, whether that decision is in this log, in another one or in none. With `ActionTaken`
it is an activation.

Refused with their reason: events with several slots, and what breaks a law of the format.

Events that were dropped at random before logging (`pdrop`): a decision here has no weight, so all lines of a source
must have the pdrop of its first event. Then every event stands for equally many, and means stay unbiased.

Source: https://github.com/VowpalWabbit/vowpal_wabbit/wiki/DSJSON; the writer of these lines is in
https://github.com/VowpalWabbit/reinforcement_learning (external_parser/log_converter.cc, event_processors).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from steersman.core.decision import Candidate, Decision, Outcome, Problem, Value, decoder
from steersman.core.errors import DataError
from steersman.log.foreign import Job, Judged
from steersman.log.lines import (
    Records,
    add_field,
    check_noun,
    digest,
    featured,
    judged_lines,
    named_actions,
    outcome_of,
    records_of,
)
from steersman.log.segment import OUTCOME

TOLERANCE = 1e-6
"""Of a probability that was written twice: the format has them as 32-bit floats."""

_IDS = ("id", "Id", "ID")
_encode = msgspec.json.Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Event(Struct, frozen=True, kw_only=True):
    """One line; what is not named here is not read."""

    event: str | None = msgspec.field(name="EventId", default=None)
    timestamp: str | None = msgspec.field(name="Timestamp", default=None)
    cost: float | None = msgspec.field(name="_label_cost", default=None)
    probability: float | None = msgspec.field(name="_label_probability", default=None)
    action: int | None = msgspec.field(name="_label_Action", default=None)
    index: int | None = msgspec.field(name="_labelIndex", default=None)
    actions: tuple[int, ...] | None = msgspec.field(name="a", default=None)
    probabilities: tuple[float, ...] | None = msgspec.field(name="p", default=None)
    context: dict[str, Any] | None = msgspec.field(name="c", default=None)
    observations: tuple[Any, ...] | None = msgspec.field(name="o", default=None)
    pdrop: float = 0.0
    deferred_action: bool = msgspec.field(name="DeferredAction", default=False)
    deferred_before: bool = msgspec.field(name="_deferred", default=False)
    skipped: bool = msgspec.field(name="_skipLearn", default=False)
    reward_value: Raw | UnsetType = msgspec.field(name="RewardValue", default=UNSET)
    outcomes: Raw | UnsetType = msgspec.field(name="_outcomes", default=UNSET)

    @property
    def deferred(self) -> bool:
        """Nobody knew yet whether the action would be seen."""
        return self.deferred_action or self.deferred_before or self.skipped

    @property
    def activated(self) -> bool:
        """And then somebody said that it was."""
        seen = [one for one in self.observations or () if isinstance(one, dict)]
        return any(one.get("ActionTaken") is True or one.get("DeferredAction") is False for one in seen)


class _Dangling(Struct, frozen=True, kw_only=True):
    """A reward or an activation that found no event."""

    event: str = msgspec.field(name="EventId")
    enqueued: str = msgspec.field(name="EnqueuedTimeUtc")
    value: float | None = msgspec.field(name="RewardValue", default=None)
    taken: bool = msgspec.field(name="ActionTaken", default=False)


_decode = decoder(_Event)
_decode_dangling = decoder(_Dangling)


def dsjson_rows(job: Job) -> Iterator[Judged]:
    """Judge every line of a dsjson log.

    Args:
        job: its path holds dsjson, also with .gz.
    Raises:
        DataError: the problem does not choose one action; said at the first row.
    """
    yield from judged_lines(job.path, _Events(job.problem))


class _Events:
    """The records of a line; it remembers the first pdrop."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._names = named_actions(problem, "dsjson")
        self._pdrop: float | None = None

    def __call__(self, row: bytes) -> Records:
        """Raises DataError if the line breaks a law."""
        event = _decode(row)
        if event.reward_value is not UNSET:
            return _dangling(_decode_dangling(row))
        if event.outcomes is not UNSET or "_slots" in (event.context or {}):
            raise DataError("an event with several slots, only one action can be chosen here", field="_outcomes")
        self._check_pdrop(event.pdrop)
        order, propensity = _taken(event)
        context = _required(event.context, "c")
        multi = _objects(context.get("_multi"))
        if len(multi) != len(order):
            raise DataError(f"c._multi has {len(multi)} candidates and a {len(order)}", field="a")
        candidates = tuple(_candidate(features, i) for i, features in enumerate(multi))
        decision = Decision(
            id=_required(event.event, "EventId"),
            problem=self._problem.name,
            unit=_required(event.event, "EventId"),
            at=_instant(_required(event.timestamp, "Timestamp"), "Timestamp"),
            context=_flat(context),
            candidates=candidates,
            action=candidates[order[0] - 1].id,
            propensity=propensity,
            deferred=event.deferred,
        )
        check_noun(decision, self._problem, self._names)
        reward = 0.0 - _required(event.cost, "_label_cost")  # -0.0 of a cost of 0 would be another text in the log
        activates = event.deferred and event.activated
        return records_of(decision, outcome_of(decision, {"reward": reward}, activates=activates))

    def _check_pdrop(self, pdrop: float) -> None:
        if not 0 <= pdrop < 1:
            raise DataError(f"pdrop is {pdrop:g}, must be in [0, 1)", field="pdrop")
        first = pdrop if self._pdrop is None else self._pdrop
        if pdrop != first:
            raise DataError(
                f"pdrop is {pdrop:g}, that of the first event is {first:g}: they stand for different numbers of events",
                hint="a decision has no weight here: estimate from one period of equal pdrop",
                field="pdrop",
            )
        self._pdrop = first


def _required(value: Any, name: str) -> Any:
    if value is None:
        raise DataError(f"{name} is missing", field=name)
    return value


def _dangling(found: _Dangling) -> Records:
    """The outcome; an activation has no value of its own, and some writers put a 0 there."""
    has_value = found.value is not None and (found.value != 0 or not found.taken)
    if not has_value and not found.taken:
        raise DataError("a reward without a value that is no activation either", field="RewardValue")
    outcome = Outcome(
        id=digest("dsjson", found),
        decision=found.event,
        at=_instant(found.enqueued, "EnqueuedTimeUtc"),
        metrics={"reward": found.value} if has_value and found.value is not None else {},
        activates=found.taken,
    )
    return ((OUTCOME, _encode(outcome)),)


def _taken(event: _Event) -> tuple[tuple[int, ...], float]:
    """The candidates, numbered from 1, the one taken first, and its probability."""
    order, probabilities = _required(event.actions, "a"), _required(event.probabilities, "p")
    if not order or sorted(order) != list(range(1, len(order) + 1)):
        raise DataError(f"a is {list(order)[:10]}, must hold 1 to {len(order)} once each", field="a")
    if len(probabilities) != len(order):
        raise DataError(f"p has {len(probabilities)} probabilities and a {len(order)} candidates", field="p")
    for name, label in (("_label_Action", event.action), ("_labelIndex", event.index)):
        taken = order[0] - (name == "_labelIndex")  # the one counts from 1, the other from 0
        if label is not None and label != taken:
            raise DataError(f"{name} is {label}, but a says that {taken} was taken", field=name)
    logged = _required(event.probability, "_label_probability")
    propensity = probabilities[0]
    # some writers multiply it with the probability that the event was not dropped
    if min(abs(propensity - logged), abs(propensity * (1 - event.pdrop) - logged)) > TOLERANCE:
        raise DataError(
            f"_label_probability is {logged:g}, but p of the candidate taken is {propensity:g}",
            field="_label_probability",
        )
    return order, propensity


def _instant(text: str, field: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"{field} is {text!r}, no time", hint="e.g. 2021-07-29T10:00:00Z", field=field) from None
    gap = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return (gap.days * 86_400 + gap.seconds) * 1_000_000 + gap.microseconds


def _objects(multi: Any) -> list[dict[str, Any]]:
    if not isinstance(multi, list) or not all(isinstance(features, dict) for features in multi):
        raise DataError("c._multi must be a list with one object a candidate", field="c._multi")
    return multi


def _candidate(features: dict[str, Any], number: int) -> Candidate:
    row = _flat(features, f"c._multi[{number}]")
    inner = features.get("i")
    named = [features.get("_tag"), *map(features.get, _IDS)]
    if isinstance(inner, dict):
        named += map(inner.get, _IDS)
    own = next((str(name) for name in named if isinstance(name, str | int) and name != ""), None)
    if own is None:
        return featured(row)
    for path in (*_IDS, *(f"i.{name}" for name in _IDS)):
        value = row.get(path)
        if value == own or (isinstance(value, float) and value.is_integer() and str(int(value)) == own):
            del row[path]  # the id once more
    return Candidate(own, row)


def _flat(given: dict[str, Any], where: str = "c") -> dict[str, Value]:
    row: dict[str, Value] = {}
    _flatten(row, "", given, where)
    return row


def _flatten(row: dict[str, Value], path: str, given: dict[str, Any], where: str) -> None:
    for key, value in given.items():
        if key.startswith("_") and key != "_text":
            continue
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            if len(name) > 200:
                raise DataError(f"{where} is nested too deeply", field=where)
            for part in value:
                _flatten(row, name, part, where)
        elif value is not None:
            add_field(row, name, _value(value, f"{where}.{name}"))


def _value(value: Any, where: str) -> Value:
    if isinstance(value, list):
        if len({isinstance(part, str) for part in value}) > 1 or not all(_is_plain(part) for part in value):
            raise DataError(f"{where} must be a list of texts or of numbers", field=where)
        return tuple(part if isinstance(part, str) else _number(part, where) for part in value)
    return value if isinstance(value, str) else _number(value, where)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _number(value: float, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise DataError(f"{where} has a number beyond the range of a float", field=where) from None
