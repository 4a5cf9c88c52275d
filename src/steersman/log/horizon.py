"""Horizon's table of logged steps, before its timeline: one step of an episode a row.

It is read from JSON lines, from Parquet with real map columns, or from a query that gives such rows; the same step
has the same ids in all of them.

    mdp_id, sequence_number          unit and step
    ds                               the day (UTC) of the step
    state_features                   id -> number; a name that can be no field's gets an `f` in front: `12` is `f12`
    state_id_list_features           id -> ids, as lists of texts (optional)
    action, possible_actions         names, or maps of features: then a digest of the features is the id
    action_probability               the propensity; 0 is refused, and so is a row without it if nobody said
                                     where it comes from: it never defaults to 1
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
step that repeats. A number that is NaN is a missing one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from steersman.core.decision import FIELD, Candidate, Decision, Ends, Problem, Value, decoder
from steersman.core.errors import DataError, did_you_mean
from steersman.engine import Engine, identifier
from steersman.log.foreign import ESTIMATE, Job, Judged, Propensities, settle
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
from steersman.log.sources import VIEW, Table, open_query, open_table

LINES = "steersman_lines"
CHUNK = 20_000
PROPENSITY_HINT = "older tables call it propensity: rename it"
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


def horizon_rows(job: Job) -> Iterator[Judged]:
    """Judge every row of Horizon's table.

    Args:
        job: its path holds JSON lines, also with .gz, or is a .parquet file; or its query gives the rows.
    Raises:
        DataError: the problem does not choose one action, or the table lacks a column that it needs; said at the
            first row.
    """
    names = named_actions(job.problem, "Horizon's table")
    records = partial(_records, problem=job.problem, names=names, propensities=job.source.propensities)
    if job.source.sql:
        table = open_query(job.engine, job.source.sql, job.source.path, job.scratch, ())
    elif job.path.suffix == ".parquet":
        table = open_table(job.engine, job.path, job.scratch, ())
    else:
        yield from judged_lines(job.path, lambda line: records(_decode(line)))
        return
    yield from (Judged(bad.line, (), bad.reason, bad.row) for bad in table.bad)
    yield from _judged_table(job, table, records)


def _judged_table(job: Job, table: Table, records: Callable[[_Step], Records]) -> Iterator[Judged]:
    known = [field.name for field in msgspec.structs.fields(_Step)]
    _check_columns(table.types, job.source.propensities)
    columns = ", ".join(f"{identifier(name)} := {identifier(name)}" for name in known if name in table.types)
    scratch = job.scratch / "lines.parquet"
    line = f"CAST(to_json(struct_pack({columns})) AS VARCHAR)"
    job.engine.copy(f"SELECT row_number() OVER () AS number, {line} AS line FROM {VIEW}", scratch)
    job.engine.view(LINES, [str(scratch)])
    for number, text in enumerate(_texts(job.engine), 1):
        try:
            # Not msgspec's own reader: a table may hold NaN and infinity, which the json of Python reads.
            yield Judged(number, records(_convert(json.loads(text))))
        except DataError as error:
            yield Judged(number, (), f"{error.field}: {error}" if error.field else str(error), text)


def _check_columns(columns: Collection[str], propensities: Propensities) -> None:
    needed = ["mdp_id", "sequence_number", "ds", "state_features", "action"]
    needed += ["action_probability"] if propensities == "logged" else []
    for name in needed:
        if name not in columns:
            raise DataError(
                f"the table has no column {name}",
                hint=PROPENSITY_HINT if name == "action_probability" else did_you_mean(name, columns),
                field=name,
            )


def _texts(engine: Engine) -> Iterator[str]:
    """The lines of the view LINES, a chunk in memory at a time."""
    total = int(engine.query(f"SELECT count(*) AS n FROM {LINES}")["n"][0])
    for start in range(1, total + 1, CHUNK):
        between = f"number BETWEEN {start} AND {start + CHUNK - 1}"
        yield from engine.query(f"SELECT line FROM {LINES} WHERE {between} ORDER BY number")["line"]


def _convert(row: Any) -> _Step:
    try:
        return msgspec.convert(row, _Step)
    except msgspec.ValidationError as error:
        raise DataError(str(error)) from None


def _records(step: _Step, *, problem: Problem, names: tuple[str, ...], propensities: Propensities) -> Records:
    if step.action is None or step.action in ("", {}):
        raise DataError("no action was taken: a state alone is no decision", field="action")
    propensity, estimated = settle(
        step.action_probability, propensities, "action_probability", f"{PROPENSITY_HINT}; {ESTIMATE}"
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
        propensity=propensity,
        step=step.sequence_number,
        estimated=estimated,
    )
    check_noun(decision, problem, names)
    ends: Ends | None = "terminated" if step.possible_actions == () else None
    return records_of(decision, outcome_of(decision, _metrics(step), ends=ends))


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
        if value is not None and not math.isnan(value):
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
    given = (step.metrics or {}).items()
    metrics = {name: number for name, number in given if number is not None and not math.isnan(number)}
    if step.reward is None or math.isnan(step.reward):
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
