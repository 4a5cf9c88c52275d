"""From the bytes of a decide or an outcome call to what was asked, checked: pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from steersman.core.decision import (
    MAX_ID,
    Candidate,
    Ends,
    FieldType,
    Numbers,
    One,
    Outcome,
    Problem,
    Value,
    candidate_ids,
    check_fields,
    check_id,
    decoder,
)
from steersman.core.errors import ConfigError, DataError, did_you_mean

Instant = Annotated[int, Meta(ge=0, le=2**63 - 1)]
MAX_CANDIDATES = 1000
MAX_OUTCOMES = 1000
T = TypeVar("T")


class _Offered(Candidate, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A candidate on the wire: a misspelt `features` is refused, not dropped."""


class _DecideBody(Struct, frozen=True, forbid_unknown_fields=True):
    unit: str
    context: dict[str, Value] = {}
    candidates: tuple[_Offered, ...] | None = None
    id: str | None = None
    step: Instant | None = None
    deferred: bool = False


class _OutcomeBody(Struct, frozen=True, forbid_unknown_fields=True):
    decision: str
    metrics: dict[str, float] = {}
    ends: Ends | None = None
    id: str | None = None
    at: Instant | None = None
    activates: bool = False


class Request(Struct, frozen=True):
    """A decide request that was checked: what is left to fail is not the client's doing.

    Attributes:
        id: of the decision to be; the client's own, or a new one.
        unit, context, step: as in Decision.
        candidates: at least one; all named actions in sorted order if the client sent none.
        chosen: the id is the client's own.
        deferred: as in Decision.
    """

    id: str
    unit: str
    context: dict[str, Value]
    candidates: tuple[Candidate, ...]
    step: int | None = None
    chosen: bool = False
    deferred: bool = False


def reader(problem: Problem, max_candidates: int = MAX_CANDIDATES) -> Callable[[bytes, Callable[[], str]], Request]:
    """A function from a body (JSON bytes) and a source of new ids to a checked Request.

    That function raises DataError for whatever does not fit the problem.

    Raises:
        ConfigError: the problem's actions are neither one out of named or given candidates nor numbers.
    """
    if not isinstance(problem.actions, One | Numbers):
        kind = type(problem.actions).__name__.lower()
        raise ConfigError(
            f"{problem.name}: actions of kind {kind} cannot be served",
            hint="serve kind one or numbers",
            field="actions.kind",
        )
    decode = decoder(_DecideBody)
    decode_numbers = msgspec.json.Decoder(_body_of_numbers(problem)).decode
    names = frozenset(() if isinstance(problem.actions, Numbers) else problem.actions.names)
    everything = tuple(_Offered(name) for name in sorted(names))
    vector = isinstance(problem.actions, Numbers)
    fits_context = _checker(problem.context)
    fits_candidate = _checker(problem.candidate)

    def read(body: bytes, new_id: Callable[[], str]) -> Request:
        try:
            wire, typed = decode_numbers(body), True
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            wire, typed = _explained(decode, body, _DECIDE_FIELDS), False  # for an error that names the field
        check_id("unit", wire.unit)
        if wire.id is not None:
            check_id("id", wire.id)
        if not fits_context(wire.context, typed):
            _check_fields(wire.context, problem.context, "context")
        if vector and wire.candidates is not None:
            raise DataError(
                "the actions are numbers: there are no candidates", hint="leave them out", field="candidates"
            )
        if vector or (wire.candidates is None and names):
            candidates = everything
        else:
            candidates = wire.candidates or ()
            _check_candidates(candidates, names, max_candidates)
            for i, candidate in enumerate(candidates):
                if not fits_candidate(candidate.features, typed):
                    _check_fields(candidate.features, problem.candidate, f"candidates[{i}].features")
        chosen = wire.id is not None
        return Request(wire.id or new_id(), wire.unit, wire.context, candidates, wire.step, chosen, wire.deferred)

    return read


def read_outcomes(
    body: bytes, new_id: Callable[[], str], now: Callable[[], int], limit: int = MAX_OUTCOMES
) -> list[Outcome]:
    """The outcomes in a body that holds one object or an array of them; absent ids and times are filled.

    Raises:
        DataError: an outcome breaks a law of its noun; `field` starts with its place in the array.
    """
    many = body[:64].lstrip()[:1] == b"["
    decode = _decode_outcomes if many else lambda body: [_decode_outcome(body)]
    wires = _explained(decode, body, _OUTCOME_FIELDS)
    if not 0 < len(wires) <= limit:
        raise DataError(f"{len(wires)} outcomes in one body, must be 1 to {limit}", hint="send them in several bodies")
    outcomes = []
    for i, wire in enumerate(wires):
        try:
            outcomes.append(
                Outcome(
                    id=wire.id if wire.id is not None else new_id(),
                    decision=wire.decision,
                    at=wire.at if wire.at is not None else now(),
                    metrics=wire.metrics,
                    ends=wire.ends,
                    activates=wire.activates,
                )
            )
        except DataError as error:
            if not many:
                raise
            raise DataError(f"[{i}]: {error.message}", hint=error.hint, field=f"[{i}].{error.field}") from None
    return outcomes


def _check_candidates(candidates: tuple[Candidate, ...], names: frozenset[str], limit: int) -> None:
    if not 0 < len(candidates) <= limit:
        raise DataError(
            f"{len(candidates)} candidates, must be 1 to {limit}",
            hint="send the candidates to choose from" if not candidates else "narrow them down first",
            field="candidates",
        )
    ids = candidate_ids(candidates)
    if not names or ids <= names:
        return
    for i, candidate in enumerate(candidates):
        if candidate.id not in names:
            raise DataError(
                f"candidates[{i}].id {candidate.id!r} is not an action of this problem",
                hint=did_you_mean(candidate.id, names),
                field=f"candidates[{i}].id",
            )


def _numbers_only(fields: Mapping[str, FieldType]) -> bool:
    return set(fields.values()) == {"number"}


def _body_of_numbers(problem: Problem) -> type[Any]:
    """_DecideBody, but where all declared fields are numbers the decoder lets only numbers and null pass."""
    numbers = dict[str, float | None]
    context = numbers if _numbers_only(problem.context) else dict[str, Value]
    features = numbers if _numbers_only(problem.candidate) else dict[str, Value]
    offered = msgspec.defstruct("Offered", [("features", features, {})], bases=(_Offered,), frozen=True)
    kinds: list[tuple[str, Any, Any]] = [("context", context, {}), ("candidates", tuple[offered, ...] | None, None)]  # type: ignore[valid-type]
    return msgspec.defstruct("Body", kinds, bases=(_DecideBody,), frozen=True)


def _checker(fields: Mapping[str, FieldType]) -> Callable[[Mapping[str, Value], bool], bool]:
    """A quick answer to whether a row fits the fields; False: look closer."""
    names = fields.keys()
    numbers_only = _numbers_only(fields)
    if not fields:
        return lambda row, typed: True
    return lambda row, typed: typed and numbers_only and row.keys() <= names


def _check_fields(row: Mapping[str, Value], fields: Mapping[str, FieldType], where: str) -> None:
    for name in row:
        if len(name) > MAX_ID:  # a hint is a search over the letters of the name
            raise DataError(f"{where} has a field with a name of {len(name)} characters", field=where)
    check_fields(row, fields, where)


_decode_outcome = decoder(_OutcomeBody)
_decode_outcomes = decoder(list[_OutcomeBody])
_NAMED = re.compile(r"(unknown|missing required) field `(.{0,200})`")
_DECIDE_FIELDS = {"": _DecideBody.__struct_fields__, "candidates": _Offered.__struct_fields__}
_OUTCOME_FIELDS = {"": _OutcomeBody.__struct_fields__}


def _explained(decode: Callable[[bytes], T], body: bytes, known: Mapping[str, Iterable[str]]) -> T:
    """Decode; an error tells the field that it names, and what may have been meant."""
    try:
        return decode(body)
    except DataError as error:
        field = error.field.removeprefix("$")
        named = _NAMED.search(error.message)
        if not named:
            raise DataError(error.message, hint=error.hint, field=field) from None
        group = field.removesuffix(named[2]).partition("[")[0]
        hint = did_you_mean(named[2], known.get(group, ())) if named[1] == "unknown" else f"send {named[2]}"
        raise DataError(error.message, hint=hint, field=field) from None
