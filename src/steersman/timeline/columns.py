"""The columns of a log: which ones a build needs, which it reads if they are there, and what kind they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from steersman.core.errors import DataError
from steersman.engine import Engine, identifier

Columns = dict[str, np.ndarray]
Kind = Literal[
    "number",
    "text",
    "list of number",
    "list of text",
    "list of lists of number",
    "list of lists of text",
    "list",
    "other",
]
"""`list` is of anything else."""

IDS = "candidates.id"
ROW = "row"
NUMBERS = "numbers"
"""Column of a log whose actions are numbers; their `action` is null."""
LISTS, CHANCES, FIRST, ITEM = "actions", "propensities", "first_propensities", "item"
"""Columns of a log of ranked lists, the last one of its outcomes; their `action` is null."""

NEED: dict[str, dict[str, Kind]] = {
    "decisions": {
        "id": "text",
        "unit": "text",
        "at": "number",
        "action": "text",
        "propensity": "number",
        IDS: "list of text",
    },
    "outcomes": {"id": "text", "decision": "text", "at": "number"},
}
OPTIONAL = {
    "decisions": {"step": "BIGINT", "deferred": "BOOLEAN", "estimated": "BOOLEAN"},
    "outcomes": {"ends": "VARCHAR", "activates": "BOOLEAN"},
}


def schema(engine: Engine, table: str) -> Mapping[str, Kind]:
    found = columns_of(engine, table)
    for column, kind in NEED[table].items():
        if column not in found:
            raise DataError(f"{table} have no column {column!r}", hint=_MISSING.get(column, ""), field=column)
        if found[column] != kind:
            raise DataError(f"{table}: column {column!r} is a {found[column]}, must be a {kind}", field=column)
    return found


_MISSING = {
    "propensity": "log the probability with which every action was taken: without it nothing can be judged",
    "action": "this stage builds problems with one action out of candidates",
    IDS: "log every candidate that could have been taken, the action included",
}


def selected(table: str, columns: Iterable[str]) -> str:
    there = read(table, columns)
    missing = (f"CAST(NULL AS {kind}) AS {column}" for column, kind in OPTIONAL[table].items() if column not in there)
    return ", ".join([names(there), *missing])


def read(table: str, columns: Iterable[str]) -> list[str]:
    """The columns that a build reads."""
    known = NEED[table].keys() | OPTIONAL[table].keys() | {ROW, NUMBERS, LISTS, CHANCES, FIRST, ITEM}
    prefixes = ("context.", "candidates.", "metrics.")
    return sorted(column for column in columns if column in known or column.startswith(prefixes))


def names(columns: Iterable[str]) -> str:
    return ", ".join(identifier(column) for column in columns)


def columns_of(engine: Engine, view: str) -> dict[str, Kind]:
    """Name -> kind of the columns of a view."""
    described = list(engine.query(f"DESCRIBE {view}").values())
    return {str(name): _kind(str(kind)) for name, kind in zip(described[0], described[1], strict=True)}


_LISTS: dict[Kind, Kind] = {
    "number": "list of number",
    "text": "list of text",
    "list of number": "list of lists of number",
    "list of text": "list of lists of text",
}
_NUMBER = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|LONG|FLOAT|REAL|DOUBLE|BOOLEAN|DECIMAL(\(.*\))?)", re.I)
_TEXT = re.compile(r"(VAR)?CHAR(\(.*\))?|TEXT|STRING|ENUM\(.*\)", re.I)
_LIST = re.compile(r"(.*)\[\d*\]|ARRAY<(.*)>", re.I | re.S)


def _kind(kind: str) -> Kind:
    if _NUMBER.fullmatch(kind):
        return "number"
    if _TEXT.fullmatch(kind):
        return "text"
    if match := _LIST.fullmatch(kind):
        return _LISTS.get(_kind(match[1] or match[2]), "list")
    return "other"
