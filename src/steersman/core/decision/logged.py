"""Candidate, Decision, Outcome: the lines of the log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from steersman.core.decision.names import FIELD, MAX_ID, NAME, check_id
from steersman.core.decision.problem import FieldType
from steersman.core.errors import DataError, did_you_mean

Value = float | str | tuple[float | str, ...] | None
"""What a field may hold: a number, a text, a list of these, or null for "not known"."""

Ends = Literal["terminated", "truncated"]

END_OF_TIME = 253_402_300_800_000_000  # microseconds to the year 10000: dates have four digits

ROUNDING = 1e-6
"""Of a probability that was written twice: it may have been a 32-bit float in between."""

NO_TEXT = "\ufdd0"
"""How a missing text travels in an array of strings: a character that Unicode keeps for such use, refused in texts.

Not NUL: numpy takes a trailing NUL for the end of a text, so `np.full(2, "\\0", dtype=object)` holds empty texts.
"""


class Candidate(Struct, frozen=True, omit_defaults=True):
    """Something that could be done: named by its id, never by its position."""

    id: str
    features: dict[str, Value] = {}


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was decided, out of what, knowing what, and with which probability. One log line.

    Attributes:
        id: unique for ever; the draw that chose the action is a function of it.
        problem: name of the Problem. One log serves many problems, so each line says which.
        unit: whose episode this is a step of: a user, a session, a game.
        at: microseconds since 1970, UTC.
        context: what was known when deciding.
        candidates: what could have been done, the action among them.
        action: id of the candidate taken; a tuple of ids for a ranked list, of numbers for numbers.
        propensity: probability (density for numbers) with which the deciding policy takes this action.
            Above 0; at most 1 unless the action is numbers.
        version: number of the version that decided; 0: a policy that Steersman did not serve.
        step: place in the unit's episode, if the product counts; else `at` orders.
        noise: key of the perturbation (evolution strategies).
        propensities: of a ranked list: probability of each slot's item given the items above it. Their product is
            the propensity. Empty: not told.
        first_propensities: of a ranked list: probability of each candidate, in their order, to stand in the first slot;
            they sum to 1. Empty: not told.
        deferred: it may never have been carried out: it counts only if an outcome says `activates`.
        estimated: nobody logged the propensity; it is an estimate, and every report on it says so.
    """

    id: str
    problem: str
    unit: str
    at: int
    context: dict[str, Value] = {}
    candidates: tuple[Candidate, ...] = ()
    action: str | tuple[str | float, ...]
    propensity: float
    version: int = 0
    step: int | None = None
    noise: int | None = None
    propensities: tuple[float, ...] = ()
    first_propensities: tuple[float, ...] = ()
    deferred: bool = False
    estimated: bool = False

    def __post_init__(self) -> None:
        check_id("id", self.id)
        check_id("unit", self.unit)
        if not NAME.fullmatch(self.problem):
            raise DataError(f"decision {self.id}: problem {self.problem!r} must match {NAME.pattern}", field="problem")
        if not 0 <= self.at < END_OF_TIME:
            raise DataError(f"decision {self.id}: at is {self.at}", hint="microseconds since 1970, UTC", field="at")
        if not self.propensity > 0 or not math.isfinite(self.propensity):
            raise DataError(
                f"decision {self.id}: propensity is {self.propensity:g}, must be in (0, 1]",
                hint="log the probability with which the action was taken, not its logarithm",
                field="propensity",
            )
        if self.step is not None and not 0 <= self.step < 2**63:
            raise DataError(f"decision {self.id}: step is {self.step}, must be in [0, 2^63)", field="step")
        if not 0 <= self.version < 2**63:
            raise DataError(f"decision {self.id}: version is {self.version}, must be in [0, 2^63)", field="version")
        if self.noise is not None and not 0 <= self.noise < 2**64:
            raise DataError(f"decision {self.id}: noise is {self.noise}, must be in [0, 2^64)", field="noise")
        self._check_action()
        if self.propensities or self.first_propensities:
            self._check_slots()
        _check_row(self.context, "context")
        for i, candidate in enumerate(self.candidates):
            if candidate.features:
                _check_row(candidate.features, f"candidates[{i}].features")

    def _check_action(self) -> None:
        taken: tuple[Any, ...] = (self.action,) if isinstance(self.action, str) else self.action
        if not taken:
            raise DataError(f"decision {self.id}: action is empty", field="action")
        if all(isinstance(number, float) for number in taken):  # a density may be above 1, there are no candidates
            if not all(map(math.isfinite, taken)):
                raise DataError(f"decision {self.id}: action is {taken}, must be finite", field="action")
            return
        if self.propensity > 1:
            raise DataError(
                f"decision {self.id}: propensity is {self.propensity:g}, must be in (0, 1]",
                hint="a probability is at most 1; only numbers as actions have densities",
                field="propensity",
            )
        if len(set(taken)) != len(taken):
            raise DataError(f"decision {self.id}: an action stands twice in {taken}", field="action")
        ids = candidate_ids(self.candidates)
        for action in taken:
            if action not in ids:
                raise DataError(
                    f"decision {self.id}: action {action!r} is not among its {len(ids)} candidates",
                    hint="log every candidate that could have been taken, the action included",
                    field="action",
                )

    def _check_slots(self) -> None:
        where, action, slots = f"decision {self.id}", self.action, self.propensities
        if not isinstance(action, tuple) or not isinstance(action[0], str):
            raise DataError(f"{where}: its action is no ranked list: it has no slots", field="propensities")
        if slots:
            if len(slots) != len(action):
                raise DataError(
                    f"{where}: {len(slots)} propensities for a list of {len(action)} items", field="propensities"
                )
            for i, propensity in enumerate(slots):
                if not 0 < propensity <= 1:
                    raise DataError(
                        f"{where}: propensities[{i}] is {propensity:g}, must be in (0, 1]", field=f"propensities[{i}]"
                    )
            if abs(math.prod(slots) / self.propensity - 1.0) > len(slots) * ROUNDING:
                raise DataError(
                    f"{where}: the product of its propensities is {math.prod(slots):g}, its propensity "
                    f"{self.propensity:g}",
                    hint="propensities: of each item given those above; propensity: of the whole list, their product",
                    field="propensities",
                )
        first = self.first_propensities
        if not first:
            return
        if len(first) != len(self.candidates) or not all(0 <= chance <= 1 for chance in first):
            raise DataError(
                f"{where}: first_propensities must be {len(self.candidates)} numbers in [0, 1], one a candidate",
                field="first_propensities",
            )
        taken = first[next(i for i, one in enumerate(self.candidates) if one.id == action[0])]
        if abs(sum(first) - 1.0) > len(first) * ROUNDING or (
            slots and abs(taken / slots[0] - 1.0) > len(first) * ROUNDING
        ):
            raise DataError(
                f"{where}: first_propensities sum to {sum(first):g} and give {taken:g} to its first item",
                hint="they sum to 1, and that of the first item is propensities[0]",
                field="first_propensities",
            )


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a decision: facts, not rewards. It may come before its decision, late, twice, or never.

    Attributes:
        id: unique for ever; the same id twice counts once.
        decision: id of the decision; `UNIT/*` of an outcome that activates all decisions of a unit.
        at: microseconds since 1970, UTC: when it happened.
        metrics: name -> finite number.
        item: id of the item of a ranked list that the metrics are about; None: about the list as a whole. Read for
            ranked lists only.
        ends: the decision was the last of its episode, because the world ended it (`terminated`)
            or because somebody stopped looking (`truncated`).
        activates: the decision was deferred, and has been carried out.
    """

    id: str
    decision: str
    at: int
    metrics: dict[str, float] = {}
    item: str | None = None
    ends: Ends | None = None
    activates: bool = False

    def __post_init__(self) -> None:
        check_id("id", self.id)
        check_id("decision", self.decision)
        if self.item is not None:
            check_id("item", self.item)
        if not 0 <= self.at < END_OF_TIME:
            raise DataError(f"outcome {self.id}: at is {self.at}", hint="microseconds since 1970, UTC", field="at")
        for name, number in self.metrics.items():
            if not FIELD.fullmatch(name):
                raise DataError(
                    f"outcome {self.id}: metric {name!r} must match {FIELD.pattern}", field=f"metrics.{name}"
                )
            if not math.isfinite(number):
                raise DataError(f"outcome {self.id}: metric {name} is {number}", field=f"metrics.{name}")


def candidate_ids(candidates: tuple[Candidate, ...]) -> set[str]:
    """The ids of the candidates.

    Raises:
        DataError: two candidates share an id, or an id is not valid.
    """
    listed = [candidate.id for candidate in candidates]
    ids = set(listed)
    longest = max(map(len, listed), default=0)
    if len(ids) == len(listed) and all(listed) and longest <= MAX_ID and "".join(listed).isprintable():
        return ids
    if len(ids) != len(candidates):
        seen: set[str] = set()
        for i, candidate in enumerate(candidates):
            if candidate.id in seen:
                raise DataError(
                    f"candidates[{i}].id {candidate.id!r} stands twice",
                    hint="a candidate is named by its id: give each its own",
                    field=f"candidates[{i}].id",
                )
            seen.add(candidate.id)
    for i, candidate in enumerate(candidates):
        check_id(f"candidates[{i}].id", candidate.id)
    return ids


def _check_row(row: Mapping[str, Value], where: str) -> None:
    """Raise DataError if a value would not come back from the log as it went in."""
    for name, value in row.items():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str):
                if NO_TEXT in part:
                    raise DataError(
                        f"{where}.{name} has U+FDD0, which stands for a missing text", field=f"{where}.{name}"
                    )
            elif part is not None and not math.isfinite(part):
                raise DataError(
                    f"{where}.{name} is {part}, must be finite",
                    hint="send null for a number that is not known",
                    field=f"{where}.{name}",
                )


def check_fields(row: Mapping[str, Value], fields: Mapping[str, FieldType], where: str) -> None:
    """Raise DataError unless the row fits the declared fields. No fields declared: anything fits.

    Args:
        row: name -> value; a declared field may be absent or null (missing).
        fields: name -> type.
        where: prefix of the field in the error, e.g. `context`.
    """
    if not fields:
        return
    for name, value in row.items():
        kind = fields.get(name)
        if kind is None:
            raise DataError(f"{where} has no field {name!r}", hint=did_you_mean(name, fields), field=f"{where}.{name}")
        if value is None or kind == "auto":
            continue
        if not isinstance(value, _PYTHON[kind]):
            raise DataError(
                f"{where}.{name} is {value!r}, must be a {kind}",
                hint=f"the problem declares {name} as {kind}",
                field=f"{where}.{name}",
            )


_PYTHON: dict[str, tuple[type, ...]] = {"number": (float, int), "text": (str,), "list": (tuple, list)}
