"""What is imported and how: Source, Mapping; and what became of one of its rows: Judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from steersman.core.decision import Problem
from steersman.core.errors import DataError
from steersman.engine import Engine

Propensities = Literal["logged", "estimate", "uniform"]
"""Where the propensity of a row without one comes from.

`logged`: from nowhere, the row is refused. `estimate`: from a model of the behavior policy, and the decision says so
for ever. `uniform`: whoever imports declares that every candidate was as likely as the others; of actions that are
numbers, that their density was the same everywhere within the bounds.
"""


ESTIMATE = "if nobody knows it: --propensity estimate"


class Mapping(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the fields of a Decision and its Outcome stand in a foreign table: a column each, or a SQL expression.

    Attributes:
        at: when it was decided: microseconds since 1970 as an integer, or a SQL date or timestamp (UTC if it
            names no zone).
        action: id of the candidate taken; a list of ids for ranked lists; for numbers a list of them, or one number.
        propensity: probability with which it was taken, in (0, 1]; for numbers its density, above 0. There is no
            default; of a ranked list it is the product of its `propensities`.
        id: of the decision; empty: derived from the source's name, the line, `at` and the action, so that the
            same file imported twice counts once. The rows of a query have no order of their own: they need it.
        unit: whose episode it is; empty: each decision is a unit of its own.
        step: place in the unit's episode.
        version: number of the policy version that decided.
        candidates: list of ids, or of structs with an id and features; empty: the problem's named actions. For
            numbers there are none.
        context: field -> column or expression.
        metrics: metric -> column or expression; a row with no metric and no `ends` has no outcome. Of a ranked list
            it may be a list of numbers, one an item: each becomes an outcome of its own, null: not told.
        ends: `terminated` or `truncated` on the last decision of an episode.
        deferred: whether the decision was only offered: it counts once something activates it.
        activates: whether the row's outcome says that a deferred decision was carried out.
        outcome_at: when the outcome happened; empty: `at`.
        propensities: of ranked lists: a list of numbers, the probability of each item given the items above it.
        first_propensities: of ranked lists: a list of numbers, the probability of each candidate to stand in the first
            slot; empty: not told.
    """

    at: str
    action: str
    propensity: str = ""
    id: str = ""
    unit: str = ""
    step: str = ""
    version: str = ""
    candidates: str = ""
    context: dict[str, str] = {}
    metrics: dict[str, str] = {}
    ends: str = ""
    deferred: str = ""
    activates: str = ""
    outcome_at: str = ""
    propensities: str = ""
    first_propensities: str = ""


class Source(Struct, frozen=True, kw_only=True):
    """What is imported.

    Attributes:
        path: a file, or the directory of a Minari dataset; None: the query names its files.
        form: name of a format that needs no mapping; empty: see `mapping`.
        mapping: where the fields stand in a table. Neither this nor a format: our own log as JSON lines.
        sql: a query whose rows are the table; what `path` holds is `source` in it.
        propensities: where those that are missing come from.
    """

    path: Path | None = None
    form: str = ""
    mapping: Mapping | None = None
    sql: str = ""
    propensities: Propensities = "logged"

    @property
    def name(self) -> str:
        """Of the file, for people."""
        return "query" if self.path is None else self.path.name


@dataclass(frozen=True)
class Job:
    """What a format needs to judge the rows of a source.

    Attributes:
        scratch: an empty directory for as long as the rows are read.
    """

    engine: Engine
    source: Source
    problem: Problem
    scratch: Path

    @property
    def path(self) -> Path:
        """The file or directory of the source.

        Raises:
            DataError: it has none.
        """
        if self.source.path is None:
            raise DataError("there is no file to import", hint="name one", field="source")
        return self.source.path


class Judged(Struct, frozen=True):
    """One row of a source: the records it became, or why it did not.

    Attributes:
        line: in the source, from 1.
        records: (kind, JSON of the noun); empty if it was refused.
        reason: empty if it was not.
        row: what stood there.
    """

    line: int
    records: tuple[tuple[bytes, bytes], ...] = ()
    reason: str = ""
    row: Any = None


def settle(logged: float | None, propensities: Propensities, field: str, hint: str = "") -> tuple[float, bool]:
    """Propensity of a row, and whether it is still to come.

    What is still to come stands as 1 in the records of a Judged row, marked as estimated; nothing reaches the log
    before `behavior` has put its own number there.

    Args:
        logged: None or NaN if the row has none.
        field, hint: of the error.
    Raises:
        DataError: it is missing, and nobody said where it comes from.
    """
    if logged is not None and not math.isnan(logged):
        return logged, False
    if propensities == "logged":
        raise DataError(
            f"{field} is missing, and a default would be wrong without notice",
            hint=hint or ESTIMATE,
            field=field,
        )
    return 1.0, True
