"""Which columns are fields, what kind they are, the transforms fitted on them, and their rows as Raw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steersman.core.decision import NO_TEXT, FieldType
from steersman.core.errors import DataError
from steersman.core.features import Continuous, Raw, Transform, category, continuous
from steersman.timeline import statistics
from steersman.timeline.sql import IDS, Columns, Kind, Tables
from steersman.timeline.statistics import Relation, Source

_PREFIX = {"kept": "context.", "offered": "candidates."}
_GROUP = {"kept": "context", "offered": "candidate"}
_ELEMENT: dict[Kind, Kind] = {"list of number": "number", "list of text": "text", "list": "list"}


@dataclass(frozen=True)
class Field:
    """A field and where its values are.

    Attributes:
        column: of the decisions; empty: no decision has a value of it, so it is missing in every row.
    """

    name: str
    kind: Literal["number", "text"]
    column: str


def columns_of(fields: Sequence[Field]) -> dict[str, Kind]:
    """Column -> kind of the fields that have one."""
    return {field.column: field.kind for field in fields if field.column}


def declared(transforms: Sequence[Transform]) -> dict[str, FieldType]:
    """The fields of an encoder, as a problem would declare them."""
    return {t.name: "number" if isinstance(t, Continuous) else "text" for t in transforms}


def candidate_columns(tables: Tables, names: Mapping[str, FieldType]) -> list[str]:
    """Columns of the features of candidates among the declared ones; none declared: all there are."""
    logged = _logged(tables, "offered")
    return [_PREFIX["offered"] + name for name in sorted(names or logged) if name in logged]


def _logged(tables: Tables, relation: Relation) -> dict[str, Kind]:
    """Name -> kind of the fields that have a column; of a feature of candidates, the kind of one value."""
    prefix = _PREFIX[relation]
    return {
        column.removeprefix(prefix): kind if relation == "kept" else _ELEMENT.get(kind, "other")
        for column, kind in tables.decisions.items()
        if column.startswith(prefix) and column != IDS
    }


def pick(source: Source, wanted: Mapping[str, FieldType]) -> tuple[Field, ...]:
    """The fields to build, sorted by name: the declared ones or, where none is, all that have a value.

    Only the decisions that enter are asked: a field that came up later must not widen the rows of before.

    Raises:
        DataError: a field is a list, holds something else than declared, or its kind can not be told.
    """
    prefix, group = _PREFIX[source.relation], _GROUP[source.relation]
    logged = _logged(source.tables, source.relation)
    names = sorted(wanted or logged)
    values = statistics.present(source, [prefix + name for name in names if name in logged])
    fields = []
    for name in names:
        there = values.get(prefix + name, 0) > 0
        if there or name in wanted:
            kind = _kind(f"{group}.{name}", wanted.get(name, "auto"), logged[name] if there else None)
            fields.append(Field(name, kind, prefix + name if there else ""))
    return tuple(fields)


def pick_for(source: Source, transforms: Sequence[Transform]) -> tuple[Field, ...]:
    """The fields of an encoder that is fitted already.

    Raises:
        DataError: the log holds something else than the encoder was fitted on.
    """
    if not transforms:
        return ()
    return pick(source, declared(transforms))


def fit(source: Source, fields: Sequence[Field]) -> tuple[Transform, ...]:
    """One transform a field, from the values of the decisions that enter.

    Raises:
        DataError: a text field has too many different values.
    """
    moments = statistics.moments(source, [f.column for f in fields if f.kind == "number" and f.column])
    unseen = statistics.Moments(0, 0.0, 1.0)
    return tuple(
        continuous(field.name, *moments.get(field.column, unseen))
        if field.kind == "number"
        else category(field.name, statistics.texts(source, field.column) if field.column else ())
        for field in fields
    )


def raw(fields: Sequence[Field], columns: Columns, n: int) -> Raw:
    """[n] rows as arrays. Takes the columns out of `columns`, so that they are in memory once only.

    Raises:
        DataError: a text has the character that stands for missing.
    """
    numbers = [field for field in fields if field.kind == "number"]
    texts = [field for field in fields if field.kind == "text"]
    # By columns, because they are filled and encoded one after the other.
    result = Raw(np.empty((n, len(numbers)), order="F"), np.full((n, len(texts)), NO_TEXT, dtype=object, order="F"))
    for j, field in enumerate(numbers):
        # + 0.0 makes a negative zero a zero: they are one value.
        result.numbers[:, j] = columns.pop(field.column) + 0.0 if field.column else np.nan
    for j, field in enumerate(texts):
        if field.column:
            result.texts[:, j] = _texts(field, columns.pop(field.column))
    return result


def _texts(field: Field, column: np.ndarray) -> np.ndarray:
    """[N] object, equal texts being one object, and null as NO_TEXT."""
    shared = {text: text for text in column.tolist()}
    for text in shared:
        if text is not None and NO_TEXT in text:
            raise DataError(f"field {field.name} is {text!r}: U+FDD0 stands for a missing text", field=field.name)
    shared[None] = NO_TEXT
    return np.fromiter(map(shared.__getitem__, column.tolist()), dtype=object, count=len(column))


def _kind(field: str, wanted: FieldType, logged: Kind | None) -> Literal["number", "text"]:
    """Kind of a field; logged: what the log holds, None: no value."""
    if wanted == "list" or (logged is not None and logged.startswith("list")):
        raise DataError(
            f"{field} is a list: lists can not be encoded yet",
            hint="declare the fields of the problem and leave this one out",
            field=field,
        )
    held = logged or wanted
    if held == "auto":
        raise DataError(
            f"{field} is declared auto, but no decision that enters has a value of it",
            hint="declare it as number or text",
            field=field,
        )
    if held not in ("number", "text") or wanted not in ("auto", held):
        raise DataError(
            f"{field} is declared {wanted}, but the log holds a {held}",
            hint="declare it as the log holds it, or leave it out",
            field=field,
        )
    return held
