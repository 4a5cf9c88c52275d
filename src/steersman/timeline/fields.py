"""Which columns are fields, what kind they are, their profiles and transforms, and their rows as Raw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from steersman.core import features
from steersman.core.decision import NO_TEXT, FieldType
from steersman.core.errors import ConfigError, DataError, did_you_mean
from steersman.core.features import Raw, Transform, list_keys, pack_lists, reads, stack_lists
from steersman.core.profile import FeatureType, Profile
from steersman.timeline import identify, statistics
from steersman.timeline.sql import IDS, Columns, Kind, Tables
from steersman.timeline.statistics import Numbers, Relation, Source, Values

FieldKind = Literal["number", "text", "list of number", "list of text"]
ValueKind = FieldKind | Literal["list", "other"]

_PREFIX: dict[Relation, str] = {"kept": "context.", "offered": "candidates."}
_GROUP: dict[Relation, Literal["context", "candidate"]] = {"kept": "context", "offered": "candidate"}
_ELEMENT: dict[Kind, ValueKind] = {
    "list of number": "number",
    "list of text": "text",
    "list of lists of number": "list of number",
    "list of lists of text": "list of text",
    "list": "list",
}
_VALUE: dict[Kind, ValueKind] = {
    "number": "number",
    "text": "text",
    "list of number": "list of number",
    "list of text": "list of text",
    "list of lists of number": "list",
    "list of lists of text": "list",
    "list": "list",
}
_PROFILE: dict[ValueKind, Literal["number", "text", "list"]] = {
    "number": "number",
    "text": "text",
    "list of number": "list",
    "list of text": "list",
}


@dataclass(frozen=True)
class Field:
    """A field and where its values are.

    Attributes:
        kind: what the log holds.
        column: of the decisions; empty: no decision has a value of it, so it is missing in every row.
        hashed: a text that its transform reads as a list of one id.
    """

    name: str
    kind: FieldKind
    column: str
    hashed: bool = False

    @property
    def reads(self) -> features.Kind:
        """The array of Raw in which it travels."""
        return "list" if self.hashed else _PROFILE[self.kind]


def columns_of(fields: Sequence[Field]) -> dict[str, Kind]:
    """Column -> kind of the fields that have one."""
    return {field.column: field.kind for field in fields if field.column}


def declared(transforms: Sequence[Transform]) -> dict[str, FieldType]:
    """The fields of an encoder, as a problem would declare them."""
    return {transform.name: reads(transform) for transform in transforms}


def candidate_columns(tables: Tables, names: Mapping[str, FieldType]) -> list[str]:
    """Columns of the features of candidates among the declared ones; none declared: all there are."""
    logged = _logged(tables, "offered")
    return [_PREFIX["offered"] + name for name in sorted(names or logged) if name in logged]


def _logged(tables: Tables, relation: Relation) -> dict[str, ValueKind]:
    """Name -> kind of the fields that have a column; of a feature of candidates, the kind of one value."""
    prefix = _PREFIX[relation]
    return {
        column.removeprefix(prefix): (_VALUE if relation == "kept" else _ELEMENT).get(kind, "other")
        for column, kind in tables.decisions.items()
        if column.startswith(prefix) and column != IDS
    }


def pick(source: Source, wanted: Mapping[str, FieldType]) -> tuple[Field, ...]:
    """The fields to build, sorted by name: the declared ones or, where none is, all that have a value.

    Only the decisions that enter are asked: a field that came up later must not widen the rows of before.

    Raises:
        DataError: a field holds a list of lists, or something else than declared, or its kind can not be told.
    """
    prefix, group = _PREFIX[source.relation], _GROUP[source.relation]
    logged = _logged(source.tables, source.relation)
    names = sorted(wanted or logged)
    _, values = statistics.present(source, [prefix + name for name in names if name in logged])
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
    logged = _logged(source.tables, source.relation)
    wanted = declared(transforms)
    for name, kind in wanted.items():
        if kind == "list" and logged.get(name) == "text":
            wanted[name] = "text"
    prefix = _PREFIX[source.relation]
    if all(name in logged and logged[name].startswith(kind) for name, kind in wanted.items()):
        found = tuple(Field(name, _kind(name, wanted[name], logged[name]), prefix + name) for name in sorted(wanted))
    else:
        found = pick(source, wanted)  # where a column has no value, its kind says nothing
    return read_as(found, transforms)


def read_as(fields: Sequence[Field], transforms: Sequence[Transform]) -> tuple[Field, ...]:
    """The fields as these transforms read them, one each: a text with too many values is read as a list of one id."""
    return tuple(
        replace(field, hashed=field.kind == "text" and reads(transform) == "list")
        for field, transform in zip(fields, transforms, strict=True)
    )


def fit(
    source: Source, fields: Sequence[Field], overrides: Mapping[str, FeatureType]
) -> tuple[tuple[Transform, ...], tuple[Profile, ...]]:
    """One transform a field and the profile it comes from, of the decisions that enter.

    Args:
        overrides: field -> its type, instead of the one identified.
    Raises:
        ConfigError: an override names no field.
        DataError: the values of a field can not have the type that an override gives it.
    """
    group = _GROUP[source.relation]
    known = [field.name for field in fields]
    for name in overrides:
        if name not in known:
            raise ConfigError(
                f"build.{group} names {name!r}, which is no field of the {group}",
                hint=did_you_mean(name, known),
                field=f"build.{group}.{name}",
            )
    found = tuple(
        identify.declare(profile, overrides[profile.name])
        if profile.name in overrides
        else identify.identified(profile)
        for profile in profiles(source, fields)
    )
    return tuple(map(identify.transform, found)), found


def profiles(source: Source, fields: Sequence[Field]) -> tuple[Profile, ...]:
    """What the values of every field look like; their types are not identified yet."""
    columns = columns_of(fields)
    rows, there = statistics.present(source, [column for column, kind in columns.items() if kind == "text"])
    numbers = statistics.numbers(source, {column: kind for column, kind in columns.items() if kind != "text"})
    n = {
        column: there[column]
        if kind == "text"
        else numbers[column].finite
        if kind == "number"
        else round(numbers[column].mean * numbers[column].finite)
        for column, kind in columns.items()
    }
    several = {column: kind for column, kind in columns.items() if not _few_known(kind, numbers.get(column))}
    values = statistics.values(source, several, n)
    return tuple(
        _profile(source, field, rows, there.get(field.column, 0), numbers.get(field.column), values.get(field.column))
        for field in fields
    )


def _few_known(kind: Kind, numbers: Numbers | None) -> bool:
    """Whether nothing is left to be asked about the different values: too many numbers, or at most one."""
    return kind == "number" and numbers is not None and not 1 < numbers.distinct <= statistics.MAX_NUMBERS


def _profile(
    source: Source, field: Field, rows: int, there: int, numbers: Numbers | None, values: Values | None
) -> Profile:
    kind = _PROFILE[field.kind]
    found: dict[str, Any] = {"present": there}
    if numbers is not None:
        found = numbers._asdict()
        if kind == "list":
            found |= {"finite": 0, "distinct": 0, "sampled": 0, "whole": False}
        elif numbers.distinct == 1:
            found["counts"] = ((numbers.low, numbers.finite),)
    if values is not None:
        found |= {"distinct": values.distinct, "counts": values.counts}
        if kind != "number" or values.counts:
            found["sampled"] = values.sampled
        if kind == "number" and values.counts:
            found["quantiles"] = statistics.quantiles(values.counts)
    return Profile(
        group=_GROUP[source.relation],
        name=field.name,
        kind=kind,
        rows=rows,
        type="continuous",
        reason="not identified",
        **found,
    )


def raw(fields: Sequence[Field], columns: Columns, n: int) -> Raw:
    """[n] rows as arrays. Takes the columns out of `columns`, so that they are in memory once only.

    Raises:
        DataError: a text has the character that stands for missing, or an element of a list is no id.
    """
    numbers, texts, lists = ([field for field in fields if field.reads == kind] for kind in ("number", "text", "list"))
    # By columns, because they are filled and encoded one after the other.
    result = Raw(
        np.empty((n, len(numbers)), order="F"),
        np.full((n, len(texts)), NO_TEXT, dtype=object, order="F"),
        stack_lists([_lists(field, columns, n) for field in lists]) if lists else np.empty((n, 0, 1), dtype=np.int64),
    )
    for j, field in enumerate(numbers):
        # + 0.0 makes a negative zero a zero: they are one value.
        result.numbers[:, j] = columns.pop(field.column) + 0.0 if field.column else np.nan
    for j, field in enumerate(texts):
        if field.column:
            result.texts[:, j] = _texts(field, columns.pop(field.column))
    return result


def _lists(field: Field, columns: Columns, n: int) -> np.ndarray:
    """[n, L] i64 keys of a list field, or of a text as a list of one."""
    if not field.column:
        return pack_lists(np.empty(0, dtype=np.int64), np.full(n, -1))
    return list_keys(field.name, columns.pop(field.column).tolist())


def _texts(field: Field, column: np.ndarray) -> np.ndarray:
    """[N] object, equal texts being one object, and null as NO_TEXT."""
    shared = {text: text for text in column.tolist()}
    for text in shared:
        if text is not None and NO_TEXT in text:
            raise DataError(f"field {field.name} is {text!r}: U+FDD0 stands for a missing text", field=field.name)
    shared[None] = NO_TEXT
    return np.fromiter(map(shared.__getitem__, column.tolist()), dtype=object, count=len(column))


def _kind(field: str, wanted: FieldType, logged: ValueKind | None) -> FieldKind:
    """Kind of a field; logged: what the log holds of it, None: no value."""
    if logged == "list":
        raise DataError(
            f"{field} is a list of lists",
            hint="declare the fields of the problem and leave this one out",
            field=field,
        )
    held = logged or ("list of text" if wanted == "list" else wanted)
    if held == "auto":
        raise DataError(
            f"{field} is declared auto, but no decision that enters has a value of it",
            hint="declare it as number, text or list",
            field=field,
        )
    if held == "other" or wanted not in ("auto", _PROFILE[held]):
        raise DataError(
            f"{field} is declared {wanted}, but the log holds a {held}",
            hint="declare it as the log holds it, or leave it out",
            field=field,
        )
    return held
