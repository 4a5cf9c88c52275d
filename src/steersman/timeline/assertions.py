"""What a user says must hold of the data: asked before anything is built, and shown where it does not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from steersman.core.errors import DataError, did_you_mean
from steersman.engine import identifier
from steersman.timeline.columns import LISTS
from steersman.timeline.sql import Columns, Tables

SHOWN = 5
"""Rows in a message."""

_WIDTH = 40
_LEADING = re.compile(r"(\s|--[^\n]*(\n|$)|/\*.*?\*/)+", re.S)
_NO_OUTCOMES = """SELECT CAST(NULL AS VARCHAR(1)) AS id, CAST(NULL AS VARCHAR(1)) AS decision,
    CAST(NULL AS BIGINT) AS "at", CAST(NULL AS VARCHAR(1)) AS ends WHERE 1 = 0"""


def check(tables: Tables, assertions: Sequence[str]) -> None:
    """Raise DataError unless every assertion holds; it shows what does not.

    A condition, e.g. `"context.hour" BETWEEN 0 AND 23`, must be true of every decision that enters: what is null does
    not hold. A statement that begins with SELECT or WITH must give no row. Both may name `decisions`, those that
    enter, each once, and `outcomes`, those heard until the instant of the build, each once, with the columns of the
    log.

    Args:
        assertions: SQL of the engine, in the order in which they are asked.
    Raises:
        DataError: one does not hold, or can not be asked; its field is `assertions[i]`.
    """
    for number, text in enumerate(assertions):
        said = text.strip().rstrip(";").rstrip()
        begin = said[leading.end() :] if (leading := _LEADING.match(said)) else said
        asked = _Asked(tables, said, f"assertions[{number}]")
        if re.match(r"(select|with)\b", begin, re.I):
            asked.must_be_empty()
        elif begin:
            asked.must_hold()
        else:
            raise DataError(f"assertions[{number}] is empty", hint="leave it out", field=f"assertions[{number}]")


def check_actions(tables: Tables, expected: Sequence[str]) -> None:
    """Raise DataError if a decision that enters took another action; it names the decision and the action.

    Args:
        expected: ids of the actions, or of the items of lists, that may occur; empty: any.
    """
    if not expected:
        return
    marks = ", ".join("?" for _ in expected)
    taken = "kept"
    if LISTS in tables.decisions:  # every item
        taken = f"(SELECT id, unnest({LISTS}) AS action FROM kept) AS taken"
    unexpected = f"FROM {taken} WHERE action IS NULL OR action NOT IN ({marks})"
    found = tables.ask(f"SELECT COUNT(*) AS n, COUNT(DISTINCT action) AS k {unexpected}", expected)
    n = int(found["n"][0])
    if not n:
        return
    first = tables.ask(f"SELECT id, action {unexpected} ORDER BY id LIMIT 1", expected)
    action, others = first["action"][0], int(found["k"][0])
    raise DataError(
        f"decision {first['id'][0]}: action {action!r} is none of the {len(expected)} expected ones "
        f"({n} such decisions, {others} such action{'s' if others != 1 else ''})",
        hint=did_you_mean(str(action), expected),
        field="actions",
    )


class _Asked:
    """One assertion."""

    def __init__(self, tables: Tables, said: str, field: str) -> None:
        self._tables, self._said, self._field = tables, said, field

    def must_hold(self) -> None:
        condition = f"({self._said}\n)"  # a new line, so that a comment at the end ends
        first = self._ask(f"SELECT {condition} AS holds FROM decisions WHERE {condition} IS NOT NULL LIMIT 1")["holds"]
        if len(first) and first.dtype != np.bool_:
            raise DataError(
                f"{self._name()} is {first[0]!r}, must be true or false",
                hint="write a comparison, e.g. x > 0",
                field=self._field,
            )
        found = self._ask(f"SELECT COUNT(*) AS n, COUNT(CASE WHEN {condition} IS TRUE THEN 1 END) AS k FROM decisions")
        n, fail = int(found["n"][0]), int(found["n"][0]) - int(found["k"][0])
        if fail:
            named = [name for name in self._tables.decisions if name in self._said and name not in ("id", "unit", "at")]
            columns = ", ".join(identifier(name) for name in ("id", "unit", "at", *sorted(named)))
            rows = f"SELECT {columns} FROM decisions WHERE {condition} IS NOT TRUE ORDER BY id LIMIT {SHOWN}"
            self._refuse(f"does not hold for {fail} of {n} decisions", rows)

    def must_be_empty(self) -> None:
        found = f"({self._said}\n) AS found"
        n = int(self._ask(f"SELECT COUNT(*) AS n FROM {found}")["n"][0])
        if n:
            self._refuse(f"gives {n} row{'s' if n > 1 else ''}, must give none", f"SELECT * FROM {found} LIMIT {SHOWN}")

    def _refuse(self, what: str, rows: str) -> None:
        raise DataError(
            f"{self._name()} {what}:\n{_shown(self._ask(rows))}",
            hint="mend the log or narrow the window; if the data are right, change the assertion",
            field=self._field,
        )

    def _ask(self, select: str) -> Columns:
        """The result of a query in which `decisions` and `outcomes` are what the user means by them."""
        heard = "SELECT * FROM heard" if self._tables.outcomes else _NO_OUTCOMES
        meant = f"WITH decisions AS (SELECT * FROM kept), outcomes AS ({heard})"
        try:
            return self._tables.ask(f"SELECT * FROM ({meant} {select}) AS asked")
        except DataError as error:
            raise DataError(
                f"{self._name()} can not be asked: {error.message}",
                hint='columns are those of the log, in double quotes, e.g. "context.hour"',
                field=self._field,
            ) from None

    def _name(self) -> str:
        return f"{self._field} {' '.join(self._said.split())!r}"


def _shown(columns: Columns) -> str:
    """A text table of a few rows."""
    table = [list(columns), *([_cell(value) for value in row] for row in zip(*columns.values(), strict=True))]
    widths = [max(len(row[j]) for row in table) for j in range(len(columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    nothing = value is None or (isinstance(value, float) and np.isnan(value))
    text = "null" if nothing else " ".join(str(value).split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."
