"""Which type each field of the log has: declared by the problem, or identified from the values and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from steersman.core.decision import FieldType, Value

Type = Literal["number", "text", "numbers", "texts", "list"]
"""`list`: only empty lists were seen so far; it becomes `numbers` or `texts`."""

Shape = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of a row's fields and what each holds: a Type, `null`, or `mixed` for a list of numbers and texts."""

MAX_FIELDS = 2000
"""A column each: a product that puts ids into field names must not take the log down."""

MAX_NAME = 200

_KINDS: dict[type, str] = {float: "number", int: "number", str: "text", type(None): "null"}
_FITS: dict[str, tuple[str, ...]] = {
    "number": ("number",),
    "text": ("text",),
    "numbers": ("numbers", "list"),
    "texts": ("texts", "list"),
    "list": ("list",),
}

_SAY = {
    "number": "a number",
    "text": "a text",
    "numbers": "a list of numbers",
    "texts": "a list of texts",
    "list": "an empty list",
}


def shape(row: Mapping[str, Value]) -> Shape:
    """The shape of a row.

    >>> shape({"age": 41.0, "tags": ("a", "b")})
    (('age', 'tags'), ('number', 'texts'))
    """
    return tuple(row), tuple([_KINDS.get(type(value)) or _list_kind(value) for value in row.values()])


def _list_kind(value: Value) -> str:
    if not value:
        return "list"
    kinds = {_KINDS[type(element)] for element in value}  # type: ignore[union-attr]  # the rest has a kind of its own
    return f"{kinds.pop()}s" if len(kinds) == 1 else "mixed"


def resolve(
    known: Mapping[str, Type], declared: Mapping[str, FieldType], seen: Mapping[Shape, int], reserved: str = ""
) -> dict[str, Type]:
    """The type of every field that gets a column: what is known stays, then what is declared, then what most rows say.

    Args:
        known: from the rows before these.
        declared: by the problem; `auto` and names that are not there are identified.
        seen: shape -> number of rows.
        reserved: a name that no field may have.
    """
    kinds: dict[str, Counter[str]] = {}
    for (names, values), count in seen.items():
        for name, kind in zip(names, values, strict=True):
            kinds.setdefault(name, Counter())[kind] += count
    types = dict(known)
    for name, wanted in declared.items():
        if wanted in ("number", "text") and name.casefold() != reserved:
            types.setdefault(name, wanted)
    spelling = {name.casefold(): name for name in (*declared, *types)} | {reserved: ""}
    for name in sorted(kinds, key=lambda name: (-kinds[name].total(), name)):
        if _bad_name(name) or (name not in types and len(types) >= MAX_FIELDS):
            continue
        if spelling.setdefault(name.casefold(), name) == name:
            chosen = _choose(types.get(name), declared.get(name, "auto"), kinds[name])
            if chosen is not None:
                types[name] = chosen
    return types


def _choose(known: Type | None, declared: FieldType, kinds: Counter[str]) -> Type | None:
    if known not in (None, "list"):
        return known
    lists: tuple[Type, ...] = ("numbers", "texts")
    choice: tuple[Type, ...] = lists if known == "list" or declared == "list" else ("number", "text", *lists)
    best = max(choice, key=lambda kind: kinds[kind] + (kinds["list"] if kind in lists else 0))
    if kinds[best]:
        return best
    return "list" if kinds["list"] else known


def refuse(shape: Shape, types: Mapping[str, Type], where: str) -> str:
    """Why a row of this shape can not be stored in columns of these types; empty if it can.

    Args:
        where: `context` or `candidate`.
    """
    for name, kind in zip(*shape, strict=True):
        if kind == "null":
            continue
        if _bad_name(name):
            return f"{where} has a field name of {len(name)} characters, must be 1 to {MAX_NAME} printable ones"
        if kind == "mixed":
            return f"{where}.{name} is a list of numbers and texts, must hold one or the other"
        if name not in types:
            return f"{where}.{name} has no column: {_why_none(name, types, where)}"
        if kind not in _FITS[types[name]]:
            return f"{where}.{name} is {_SAY[kind]}, the log has it as {_SAY[types[name]]}"
    return ""


def _why_none(name: str, types: Mapping[str, Type], where: str) -> str:
    for other in types:
        if other.casefold() == name.casefold():
            return f"{other!r} has one, and names must differ in more than case"
    if len(types) >= MAX_FIELDS:
        return f"there are {len(types)} fields already"
    return f"the name is reserved in a {where}"


def _bad_name(name: str) -> bool:
    return not (0 < len(name) <= MAX_NAME and name.isprintable())
