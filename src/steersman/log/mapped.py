"""Rows of a foreign table to Decisions and Outcomes, by a declared mapping."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import numpy as np

from steersman.core.decision import Candidate, Decision, FieldType, Numbers, One, Outcome, Problem, Ranked, Value
from steersman.core.errors import DataError, did_you_mean
from steersman.engine import Engine, identifier
from steersman.log import vectors
from steersman.log.foreign import ESTIMATE, Job, Judged, Mapping, Propensities, settle
from steersman.log.segment import DECISION, OUTCOME
from steersman.log.sources import VIEW, Table, open_query, open_table

CHUNK = 20_000
ROW = "steersman row"
MAPPED = "steersman_mapped"
ENDS = ("terminated", "truncated")

_ROLES = {
    "auto": "a number, a text or a list",
    "text": "a text",
    "number": "a number",
    "integer": "an integer",
    "flag": "true or false, or 0 or 1",
    "list": "a list",
    "time": "a time",
    "vector": "a list of numbers, or a number",
    "candidates": "a list of ids, or of structs with an id",
    "ids": "a list of ids",
    "numbers": "a list of numbers",
    "slots": "a number, or a list of numbers, one an item",
}
_ACTION_ROLES = {One: "text", Ranked: "ids", Numbers: "vector"}
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_NUMBERS = (*_INTEGERS, "UBIGINT", "HUGEINT", "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN")
_TEXTS = ("VARCHAR", "ENUM", "UUID")
_TIMES = ("TIMESTAMP", "DATE")

_encode = msgspec.json.Encoder().encode


def mapped_rows(job: Job, mapping: Mapping) -> Iterator[Judged]:
    """Judge every row of a foreign table.

    Raises:
        DataError: the source is no table, or the mapping names what it does not have; said at the first row.
    """
    engine, source, problem, scratch = job.engine, job.source, job.problem, job.scratch
    box = vectors.box_of(problem, source.propensities)
    _check_mapping(mapping, problem, source.propensities, box)
    texts = _text_columns(mapping, problem)
    if source.sql:
        table = open_query(engine, source.sql, source.path, scratch, texts)
    else:
        table = open_table(engine, job.path, scratch, texts)
    _check_id(mapping, table)
    select = _select(engine, table, mapping, problem)
    columns = [f"({sql}) AS {identifier(name)}" for name, sql in select.items()]
    engine.copy(
        f"SELECT row_number() OVER () - 1 AS {identifier(ROW)}, {', '.join(columns)} FROM {VIEW}",
        scratch / "mapped.parquet",
    )
    engine.view(MAPPED, [str(scratch / "mapped.parquet")])
    yield from (Judged(bad.line, (), bad.reason, bad.row) for bad in table.bad)
    nouns = _Nouns(mapping, problem, source.name, source.propensities)
    for line, row in _rows(engine, table):
        try:
            yield Judged(line, nouns(line, row))
        except DataError as error:
            reason = f"{error.field}: {error}" if error.field else str(error)
            yield Judged(line, (), reason, row)


def _check_id(mapping: Mapping, table: Table) -> None:
    if not table.ordered and not mapping.id:
        raise DataError(
            "the mapping has no id, and the rows of a query have no order: imported again they would count again",
            hint="map id to what tells one row from all others, e.g. an expression over its columns",
            field="id",
        )


def _check_mapping(mapping: Mapping, problem: Problem, propensities: Propensities, box: Numbers | None) -> None:
    unlogged = (
        "map the probability with which the action was taken (--propensity uniform: one of K candidates, each "
        f"as likely); {ESTIMATE}"
    )
    if isinstance(problem.actions, Ranked):
        _check_lists(mapping, propensities)
    elif mapping.propensities or mapping.first_propensities:
        raise DataError(f"problem {problem.name} has no ranked lists, and their items no propensities",
                        hint="map propensity", field="propensities")  # fmt: skip
    elif not mapping.propensity and propensities == "logged":
        raise DataError(
            "the mapping has no propensity: without it nothing can be estimated from this log",
            hint=vectors.NO_ESTIMATE if box else unlogged,
            field="propensity",
        )
    _check_actions(mapping, problem)

    for group, known in (("context", problem.context), ("metrics", {})):
        names = list(getattr(mapping, group))
        if len({name.casefold() for name in names}) < len(names):
            raise DataError(f"two of the mapped {group} differ only in case: {', '.join(names)}", field=group)
        for name in names:
            if known and name not in known:
                raise DataError(
                    f"problem {problem.name} has no {group} field {name!r}",
                    hint=did_you_mean(name, known),
                    field=f"{group}.{name}",
                )


def _check_lists(mapping: Mapping, propensities: Propensities) -> None:
    if propensities != "logged":
        raise DataError(
            "the propensities of ranked lists can not be estimated, nor declared to be uniform",
            hint="map propensities; of a uniform policy that of an item is 1 / the number of candidates that remain",
            field="propensity",
        )
    if not mapping.propensities:
        raise DataError(
            "the mapping has no propensities: without them nothing can be estimated from a log of ranked lists",
            hint="map a list of numbers, the probability of each item given the items above it",
            field="propensities",
        )


def _check_actions(mapping: Mapping, problem: Problem) -> None:
    actions = problem.actions
    if isinstance(actions, Numbers):
        if mapping.candidates:
            raise DataError(
                f"the actions of {problem.name} are numbers: there are no candidates to map",
                hint="leave candidates out of the mapping",
                field="candidates",
            )
    elif not mapping.candidates and not actions.names:
        raise DataError(
            f"the mapping has no candidates and problem {problem.name} no named actions",
            hint="give actions.names in the problem, or map candidates to a list of ids",
            field="candidates",
        )


def _text_columns(mapping: Mapping, problem: Problem) -> set[str]:
    texts = {mapping.id, mapping.unit, mapping.ends}
    texts |= {mapping.action} if isinstance(problem.actions, One) else set()
    return texts | {sql for name, sql in mapping.context.items() if problem.context.get(name) == "text"}


def _select(engine: Engine, table: Table, mapping: Mapping, problem: Problem) -> dict[str, str]:
    """Column of the mapped table -> SQL, with the casts that its place asks for."""
    place, ranked = partial(_place, engine, table), isinstance(problem.actions, Ranked)
    select = {"at": place("at", mapping.at, "time")}
    for name, role in (
        ("action", _ACTION_ROLES[type(problem.actions)]),
        ("propensity", "number"),
        ("propensities", "numbers"),
        ("first_propensities", "numbers"),
        ("id", "text"),
        ("unit", "text"),
        ("step", "integer"),
        ("version", "integer"),
        ("candidates", "candidates"),
        ("ends", "text"),
        ("deferred", "flag"),
        ("activates", "flag"),
        ("outcome_at", "time"),
    ):
        if sql := getattr(mapping, name):
            select[name] = place(name, sql, role)
    for name, sql in mapping.context.items():
        select[f"context.{name}"] = place(f"context.{name}", sql, problem.context.get(name, "auto"))
    for name, sql in mapping.metrics.items():
        select[f"metrics.{name}"] = place(f"metrics.{name}", sql, "slots" if ranked else "number")
    return select


def _place(engine: Engine, table: Table, field: str, text: str, role: str) -> str:
    """A column or expression, cast to what a place in the noun needs.

    Texts where a number is due stay texts here: the row that does not read as a number is refused, not the table.
    """
    sql = identifier(text) if text in table.types else text
    try:
        kind = str(engine.query(f"DESCRIBE SELECT ({sql}\n) AS value FROM {VIEW}")["column_type"][0])
    except DataError as error:
        hint = did_you_mean(text, table.types) if text.isidentifier() else "a column or a SQL expression over columns"
        raise DataError(f"mapping of {field}: {error.message}", hint=hint, field=field) from None
    cast = _cast(sql, kind, _one_of(role, kind))
    if cast is None:
        raise DataError(
            f"mapping of {field}: {text!r} is {kind}, must be {_ROLES[role]}",
            hint="cast it in the mapping, e.g. CAST(x AS DOUBLE); a time is an integer of microseconds or a TIMESTAMP",
            field=field,
        )
    return cast


def _one_of(role: str, kind: str) -> str:
    """The role that a place of several takes for a column of this kind; empty: it takes none."""
    is_list = kind.endswith("[]")
    match role:
        case "auto":
            one = "number" if kind.startswith(_NUMBERS) else "text"
            return "list" if is_list else "" if kind == "JSON" else one
        case "vector" | "slots":
            return "numbers" if is_list else "number"
    return role


def _cast(sql: str, kind: str, role: str) -> str | None:
    is_list = kind.endswith("[]")
    number, text = not is_list and kind.startswith(_NUMBERS), not is_list and kind.startswith(_TEXTS)
    match role:
        case "text" | "flag" if number or text:
            return f"CAST({sql} AS VARCHAR)"
        case "number" if number:
            return f"CAST({sql} AS DOUBLE)"
        case "integer" if kind in _INTEGERS:
            return f"CAST({sql} AS BIGINT)"
        case "number" | "integer" if text:
            return f"CAST({sql} AS VARCHAR)"
        case "time" if kind in _INTEGERS:
            return f"CAST({sql} AS BIGINT)"
        case "time" if kind.startswith(_TIMES):
            return f"epoch_us(CAST({sql} AS TIMESTAMPTZ))"
        case "time" if text:
            return f"epoch_us(TRY_CAST({sql} AS TIMESTAMPTZ))"
        case "candidates" if is_list and kind.startswith("STRUCT"):
            return sql
        case "candidates" | "ids" if is_list and not kind.startswith("STRUCT"):
            return f"CAST({sql} AS VARCHAR[])"
        case "list" | "numbers" if is_list and kind[:-2].startswith(_NUMBERS):
            return f"CAST({sql} AS DOUBLE[])"
        case "list" if is_list and kind[:-2].startswith(_TEXTS):
            return f"CAST({sql} AS VARCHAR[])"
    return None


def _rows(engine: Engine, table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """The mapped rows with their lines, a chunk in memory at a time."""
    total = int(engine.query(f"SELECT count(*) AS n FROM {MAPPED}")["n"][0])
    row = identifier(ROW)
    for start in range(0, total, CHUNK):
        columns = engine.query(
            f"SELECT * FROM {MAPPED} WHERE {row} >= ? AND {row} < ? ORDER BY {row}", [start, start + CHUNK]
        )
        lists = {name: column.tolist() for name, column in columns.items()}
        numbers = lists.pop(ROW)
        for number, values in zip(numbers, zip(*lists.values(), strict=True), strict=True):
            line = number + 1 if table.lines is None else table.lines[number]
            yield line, dict(zip(lists, values, strict=True))


class _Nouns:
    """The records of a row."""

    def __init__(self, mapping: Mapping, problem: Problem, source: str, propensities: Propensities) -> None:
        self._problem = problem
        self._box = problem.actions if isinstance(problem.actions, Numbers) else None
        self._source = source
        self._propensities = propensities
        self._ranked = isinstance(problem.actions, Ranked)
        self._context = [(f"context.{name}", name, problem.context.get(name, "auto")) for name in mapping.context]
        self._metrics = [(f"metrics.{name}", name) for name in mapping.metrics]
        names = () if mapping.candidates else getattr(problem.actions, "names", ())
        self._named = tuple(Candidate(name) for name in names)

    def __call__(self, line: int, row: dict[str, Any]) -> tuple[tuple[bytes, bytes], ...]:
        """Raises DataError if the row breaks a law."""
        at = _required(row, "at")
        action = _required(row, "action")
        items = _items(action) if self._ranked else ()
        if self._box is not None:
            vectors.check(action := vectors.read(action), self._box)
        action = items or action
        own = hashlib.blake2b(f"{self._source}\0{line}\0{at}\0{action}".encode(), digest_size=12).hexdigest()
        decision_id = _required(row, "id") if "id" in row else own
        chances = _numbers(row, "propensities")
        if self._ranked and (not chances or any(map(math.isnan, chances))):
            raise DataError("propensities are missing, and nothing may stand in for them", field="propensities")
        logged = _number(row, "propensity") if "propensity" in row else math.prod(chances) if chances else None
        hint = "" if self._box is None else vectors.NO_ESTIMATE
        propensity, estimated = settle(logged, self._propensities, "propensity", hint)
        decision = Decision(
            id=decision_id,
            problem=self._problem.name,
            unit=_required(row, "unit") if "unit" in row else decision_id,
            at=at,
            context=self._fields(row),
            candidates=self._candidates(row),
            action=action,
            propensity=propensity,
            propensities=chances,
            first_propensities=_numbers(row, "first_propensities"),
            version=_integer(row, "version") or 0,
            step=_integer(row, "step"),
            deferred=_flag(row, "deferred"),
            estimated=estimated,
        )
        outcome = self._outcome(row, decision)
        outcomes = (*([] if outcome is None else [outcome]), *self._of_items(row, decision, items))
        return ((DECISION, _encode(decision)), *((OUTCOME, _encode(one)) for one in outcomes))

    def _candidates(self, row: dict[str, Any]) -> tuple[Candidate, ...]:
        return self._named if self._named or self._box else _candidates(row["candidates"])

    def _fields(self, row: dict[str, Any]) -> dict[str, Value]:
        context: dict[str, Value] = {}
        for column, name, kind in self._context:
            value = _field(row, column, kind)
            if value is not None:
                context[name] = value
        return context

    def _outcome(self, row: dict[str, Any], decision: Decision) -> Outcome | None:
        single = [(column, name) for column, name in self._metrics if not isinstance(row[column], np.ndarray)]
        metrics = {name: number for column, name in single if (number := _number(row, column)) == number}
        ends = row.get("ends") or None
        if ends not in (None, *ENDS):
            raise DataError(f"ends is {ends!r}, must be {' or '.join(ENDS)}", field="ends")
        activates = _flag(row, "activates")
        if not metrics and ends is None and not activates:
            return None
        at = _required(row, "outcome_at") if "outcome_at" in row else decision.at
        outcome_id = hashlib.blake2b(f"outcome\0{decision.id}".encode(), digest_size=12).hexdigest()
        return Outcome(id=outcome_id, decision=decision.id, at=at, metrics=metrics, ends=ends, activates=activates)

    def _of_items(self, row: dict[str, Any], decision: Decision, items: tuple[str, ...]) -> Iterator[Outcome]:
        """Those of the items of a ranked list."""
        told: list[dict[str, float]] = [{} for _ in items]
        for column, name in self._metrics:
            values = row[column].tolist() if isinstance(row[column], np.ndarray) else []
            if values and len(values) != len(items):
                raise DataError(f"{column} has {len(values)} numbers for {len(items)} items", field=column)
            for slot, value in enumerate(values):
                if not math.isnan(value):
                    told[slot][name] = value
        at = _required(row, "outcome_at") if any(told) and "outcome_at" in row else decision.at
        for slot, (item, metrics) in enumerate(zip(items, told, strict=True)):
            if metrics:
                id = hashlib.blake2b(f"outcome\0{decision.id}\0{slot}".encode(), digest_size=12).hexdigest()
                yield Outcome(id=id, decision=decision.id, at=at, metrics=metrics, item=item)


def _items(values: np.ndarray) -> tuple[str, ...]:
    """The ids of a ranked list."""
    items = tuple(values.tolist())
    if not items or None in items:
        raise DataError("action is an empty list, or an id is missing in it", field="action")
    return items


def _numbers(row: dict[str, Any], name: str) -> tuple[float, ...]:
    """Empty where they are missing."""
    return () if row.get(name) is None else tuple(row[name].tolist())


def _required(row: dict[str, Any], name: str) -> Any:
    value = row[name]
    if value is None:
        raise DataError(f"{name} is missing or can not be read", field=name)
    return value


def _number(row: dict[str, Any], name: str) -> float:
    """NaN where it is missing."""
    value = row[name]
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise DataError(f"{name} is {value!r}, must be a number", field=name) from None
        if math.isnan(value):
            raise DataError(f"{name} is not a number", field=name)
    return math.nan if value is None else value


_FLAGS = {"true": True, "1": True, "false": False, "0": False, "": False}


def _flag(row: dict[str, Any], name: str) -> bool:
    """False where it is missing."""
    said = str(row.get(name) or "").strip().lower()
    if said not in _FLAGS:
        raise DataError(f"{name} is {row[name]!r}, must be true or false, or 1 or 0", field=name)
    return _FLAGS[said]


def _integer(row: dict[str, Any], name: str) -> int | None:
    value = row.get(name)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            raise DataError(f"{name} is {value!r}, must be an integer", field=name) from None
    return value


def _field(row: dict[str, Any], name: str, kind: FieldType) -> Value:
    value = row[name]
    if kind == "number" or isinstance(value, float):
        number = _number(row, name)
        if math.isinf(number):
            raise DataError(f"{name} is {number}", hint="a field is a finite number or missing", field=name)
        return None if math.isnan(number) else number
    return _list(value, name) if isinstance(value, np.ndarray) else value


def _list(values: np.ndarray, name: str) -> tuple[float | str, ...]:
    elements = tuple(values.tolist())
    if any(element is None or (isinstance(element, float) and not math.isfinite(element)) for element in elements):
        raise DataError(f"{name} has a missing or infinite element", field=name)
    return elements


def _candidates(values: np.ndarray | None) -> tuple[Candidate, ...]:
    """Candidates from ids, or from structs of an id and features."""
    candidates = []
    for i, value in enumerate(() if values is None else values.tolist()):
        row = value if isinstance(value, dict) else {"id": value}
        if row.get("id") is None:
            raise DataError(f"candidates[{i}] has no id", field="candidates")
        features: dict[str, Value] = {}
        for name, given in row.items():
            feature = None if name == "id" else _feature(f"candidates[{i}].{name}", given)
            if feature is not None:
                features[name] = feature
        candidates.append(Candidate(str(row["id"]), features))
    return tuple(candidates)


def _feature(name: str, value: Any) -> Value:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | np.ndarray):
        return _list(np.asarray(value, dtype=object), name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{name} is {value!r}, must be a number, a text or a list", field="candidates") from None
    if math.isinf(number):
        raise DataError(f"{name} is {number}", field="candidates")
    return None if math.isnan(number) else number
