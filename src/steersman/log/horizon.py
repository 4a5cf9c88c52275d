"""Horizon's table of logged steps, before its timeline, as JSON lines: one step of an episode a line.

    mdp_id, sequence_number          unit and step
    ds                               the day (UTC) of the step
    state_features                   id -> number; a name that can be no field's gets an `f` in front: `12` is `f12`
    state_id_list_features           id -> ids, as lists of texts (optional)
    action, possible_actions         names, or maps of features: then a digest of the features is the id
    action_probability               the propensity; without it, or with 0, the line is refused
    reward, metrics                  metrics of the outcome; the reward is the metric `reward`

When it happened: `sequence_number` counts or is a clock. Below 10^9 it counts, and a count is taken for a second:
`at` is midnight of `ds` plus that many seconds, so that a discount with `discount_unit_s = 1` is Horizon's discount
to the power of the difference in sequence numbers. From 10^9 on it is taken for the clock, in seconds, milliseconds
or microseconds since 1970, if that falls on the day `ds`; else the line is refused.

What ends an episode: the table has no such column, and where a log was cut looks like where an episode ended. Only a
line that says "nothing is possible" with an empty `possible_actions` is taken as terminated, itself and not the line
before it; its candidates are the problem's named actions, since one of them was taken. All others stay open.

Ids are digests of what a line says: the same line twice, in one file or two, counts once. Two lines that share
mdp_id and sequence_number and say different things stay two decisions: neither is dropped, and the timeline sees a
step that repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from steersman.core.decision import FIELD, Candidate, Decision, Problem, Value, decoder
from steersman.core.errors import DataError
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
from steersman.log.mapped import Judged

CLOCK = 10**9
SECOND = 1_000_000
DAY = 86_400 * SECOND

Features = dict[str, float | None]


class _Step(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line; columns that are not named here are not read."""

    mdp_id: str | int
    sequence_number: int
    ds: str
    state_features: Features
    state_id_list_features: dict[str, tuple[str | int, ...]] | None = None
    state_id_score_list_features: dict[str, Any] | None = None
    state_sequence_features: dict[str, Any] | None = None
    action: str | Features | None = None
    action_probability: float | None = None
    reward: float | None = None
    possible_actions: tuple[str | Features, ...] | None = None
    metrics: Features | None = None


_decode = decoder(_Step)


def horizon_rows(source: Path, problem: Problem) -> Iterator[Judged]:
    """Judge every line of Horizon's table.

    Args:
        source: JSON lines, also with .gz.
    Raises:
        DataError: the problem does not choose one action; said at the first row.
    """
    names = named_actions(problem, "Horizon's table")
    yield from judged_lines(source, partial(_records, problem=problem, names=names))


def _records(row: bytes, *, problem: Problem, names: tuple[str, ...]) -> Records:
    step = _decode(row)
    if step.action is None or step.action in ("", {}):
        raise DataError("no action was taken: a state alone is no decision", field="action")
    if step.action_probability is None:
        raise DataError(
            "action_probability is missing, and a default would be wrong without notice",
            hint="older tables call it propensity: rename it",
            field="action_probability",
        )
    at = _instant(step.ds, step.sequence_number)
    taken = _candidate(step.action, names)
    decision = Decision(
        id=digest("horizon", problem.name, step),
        problem=problem.name,
        unit=str(step.mdp_id),
        at=at,
        context=_context(step),
        candidates=_candidates(step, names),
        action=taken.id,
        propensity=step.action_probability,
        step=step.sequence_number,
    )
    check_noun(decision, problem, names)
    return records_of(decision, outcome_of(decision, _metrics(step), terminated=step.possible_actions == ()))


def _instant(ds: str, number: int) -> int:
    try:
        day = date.fromisoformat(ds)
    except ValueError:
        raise DataError(
            f"ds is {ds!r}, no date: when the step happened is not known",
            hint="write the day as 2019-01-31",
            field="ds",
        ) from None
    midnight = round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND
    if number < CLOCK:
        return midnight + number * SECOND
    for unit in (SECOND, 1000, 1):
        if midnight <= number * unit < midnight + DAY:
            return number * unit
    raise DataError(
        f"sequence_number {number} is too large for a count and, as a clock, is not on the day {ds}",
        hint="number the steps of an episode from 0, or give ds the day of the clock in UTC",
        field="sequence_number",
    )


def _context(step: _Step) -> dict[str, Value]:
    for name in ("state_id_score_list_features", "state_sequence_features"):
        if getattr(step, name):
            raise DataError(f"{name} has features that no field can hold", hint="drop the column", field=name)
    context = _features(step.state_features)
    for name, ids in (step.state_id_list_features or {}).items():
        add_field(context, _field(name), tuple(map(str, ids)))
    return context


def _features(given: Mapping[str, float | None]) -> dict[str, Value]:
    row: dict[str, Value] = {}
    for name, value in given.items():
        if value is not None:
            add_field(row, _field(name), value)
    return row


def _field(name: str) -> str:
    """The name of a field.

    >>> _field("12"), _field("age")
    ('f12', 'age')
    """
    if FIELD.fullmatch(name):
        return name
    if FIELD.fullmatch(f"f{name}"):
        return f"f{name}"
    raise DataError(f"feature {name!r} can name no field, also not with an f in front", field=name)


def _candidate(action: str | Features, names: tuple[str, ...]) -> Candidate:
    if isinstance(action, str):
        return Candidate(action)
    if names:
        raise DataError(
            f"the action is a map of features, and the problem has {len(names)} named actions",
            hint="leave actions.names out of the problem: candidates with features need none",
            field="action",
        )
    return featured(_features(action))


def _candidates(step: _Step, names: tuple[str, ...]) -> tuple[Candidate, ...]:
    if step.possible_actions:
        kinds = {type(action) for action in (step.action, *step.possible_actions)}
        if len(kinds) > 1:
            raise DataError("action and possible_actions mix names and maps of features", field="possible_actions")
        return tuple(_candidate(action, names) for action in step.possible_actions)
    if not names:
        raise DataError(
            "no possible_actions and no named actions: what else could have been done is not known",
            hint="give actions.names in the problem, or log possible_actions",
            field="possible_actions",
        )
    return tuple(map(Candidate, names))


def _metrics(step: _Step) -> dict[str, float]:
    metrics = {name: number for name, number in (step.metrics or {}).items() if number is not None}
    if step.reward is None:
        if not metrics:
            raise DataError("neither reward nor metrics: what came of the action is missing", field="reward")
        return metrics
    if metrics.setdefault("reward", step.reward) != step.reward:
        raise DataError(
            f"reward is {step.reward:g} and metrics.reward is {metrics['reward']:g}",
            hint="they have one name here: drop or rename one of them",
            field="metrics.reward",
        )
    return metrics
