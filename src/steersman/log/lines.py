"""Lines of JSON to records, judged one at a time as they are read: what all such formats share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from steersman.core.decision import Candidate, Decision, Ends, One, Outcome, Problem, Value, check_fields
from steersman.core.errors import DataError, did_you_mean
from steersman.log.fields import MAX_NAME
from steersman.log.foreign import Judged
from steersman.log.segment import DECISION, OUTCOME
from steersman.log.sources import open_bytes

Records = tuple[tuple[bytes, bytes], ...]

_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode


def judged_lines(source: Path, records: Callable[[bytes], Records]) -> Iterator[Judged]:
    """Judge every line that is not empty.

    Args:
        source: a file of lines, compressed if its name ends in .gz.
        records: the records of a line, or DataError.
    """
    with open_bytes(source) as file:
        for number, line in enumerate(file, 1):
            row = line.strip()
            if not row:
                continue
            try:
                yield Judged(number, records(row))
            except DataError as error:
                reason = f"{error.field}: {error}" if error.field else str(error)
                yield Judged(number, (), reason, row.decode(errors="backslashreplace"))


def digest(*parts: Any) -> str:
    """An id of what has none: the same parts give the same 24 characters, whatever the order of their keys."""
    return hashlib.blake2b(_encode_sorted(parts), digest_size=12).hexdigest()


def named_actions(problem: Problem, form: str) -> tuple[str, ...]:
    """The names of the problem's actions, maybe none.

    Raises:
        DataError: the problem does not choose one action.
    """
    if not isinstance(problem.actions, One):
        raise DataError(
            f"problem {problem.name} does not choose one action, each line of {form} does",
            hint="import it as JSON lines of Decisions and Outcomes",
            field="actions",
        )
    return problem.actions.names


def add_field(row: dict[str, Value], name: str, value: Value) -> None:
    """Put a field into a row.

    Raises:
        DataError: the log could not store it: two names differ in nothing but case, or it is too long.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise DataError(
            f"a field name of {len(name)} characters, must be 1 to {MAX_NAME} printable ones: {name[:40]!r}"
        )
    if name in row:
        raise DataError(f"field {name!r} stands twice", field=name)
    row[name] = value


def check_noun(decision: Decision, problem: Problem, names: Collection[str]) -> Decision:
    """The decision, if the problem knows its fields and candidates.

    Args:
        names: of the actions; none: any candidate may be.
    Raises:
        DataError: it does not.
    """
    _check_row(decision.context, problem.context, "context")
    for i, candidate in enumerate(decision.candidates):
        if names and candidate.id not in names:
            raise DataError(
                f"candidate {candidate.id!r} is none of the {len(names)} named actions of {problem.name}",
                hint=did_you_mean(candidate.id, names),
                field=f"candidates[{i}].id",
            )
        where = f"candidates[{i}].features"
        _check_row(candidate.features, problem.candidate, where)
        if any(name.casefold() == "id" for name in candidate.features):
            raise DataError("a candidate has a feature named id beside its id", field=where)
    return decision


def _check_row(row: Mapping[str, Value], declared: Mapping[str, Any], where: str) -> None:
    check_fields(row, declared, where)
    if len({name.casefold() for name in row}) < len(row):
        raise DataError(f"two fields of {where} differ only in case: {', '.join(row)[:200]}", field=where)


def featured(features: dict[str, Value]) -> Candidate:
    """A candidate that has features and no name: its id is their digest.

    >>> featured({"a": 1.0, "b": 2.0}).id == featured({"b": 2.0, "a": 1.0}).id
    True
    """
    return Candidate(digest(features), features)


def outcome_of(
    decision: Decision, metrics: dict[str, float], *, ends: Ends | None = None, activates: bool = False
) -> Outcome:
    """The outcome that stands in the same line as its decision, at the same instant."""
    return Outcome(
        id=digest("outcome", decision.id),
        decision=decision.id,
        at=decision.at,
        metrics=metrics,
        ends=ends,
        activates=activates,
    )


def records_of(decision: Decision, outcome: Outcome) -> Records:
    """Both as the log wants them."""
    return (DECISION, _encode(decision)), (OUTCOME, _encode(outcome))
