"""Each id once: which rows of a table say again what another one said, and SQL of the table without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from steersman.core.errors import DataError
from steersman.engine import Engine, identifier
from steersman.engine.stream import Columns as Streamed
from steersman.timeline import keys
from steersman.timeline.columns import NEED, ROW, read, selected
from steersman.timeline.texts import Pen

KEY = "HASH({})"
"""SQL of 64 bits that tell most texts apart, on one machine."""


@dataclass(frozen=True)
class Window:
    """Which decisions enter: since <= at < until, and at + wait <= as_of. All in microseconds.

    Attributes:
        lead: how long before `since` the beginnings of its episodes are looked for.
    """

    since: int
    until: int
    as_of: int
    wait: int
    lead: int = 0

    @property
    def inside(self) -> str:
        """SQL: the instant is in the window."""
        return f'"at" >= {self.since} AND "at" < {self.until}'

    @property
    def before(self) -> str:
        """SQL: the instant is so near before the window that an episode of the window may have begun there."""
        return f'"at" >= {self.since - self.lead} AND "at" < {self.since}'

    @property
    def happened(self) -> str:
        """SQL: the instant is not after as_of."""
        return f'"at" <= {self.as_of}'

    @property
    def seen_until(self) -> int:
        """All decisions before this instant have entered or are waited for no more, microseconds UTC."""
        return min(self.until, self.as_of - self.wait + 1)

    @property
    def waited(self) -> str:
        """SQL: the decision's wait is over."""
        return f'"at" <= {self.as_of - self.wait}'


class Seen(NamedTuple):
    """Rows of a table and how many ids they have; hashes: of their ids, on one machine; else none."""

    rows: int
    ids: int
    hashes: keys.Index

    @property
    def repeated(self) -> bool:
        """Whether an id was seen again."""
        return self.ids < self.rows


def look(
    engine: Engine, table: str, columns: Iterable[str], pen: Pen | None = None, window: Window | None = None
) -> Seen:
    """Count the rows and put the first of every id aside that stands twice. Refuses rows without an id, an instant."""
    n = refuse_nulls(engine, table)
    if engine.distributed:
        again = f"SELECT id AS h, COUNT(*) AS n FROM {table} GROUP BY id HAVING COUNT(*) > 1"
        engine.keep(f"{table}_again", again)
        rows = int(engine.query(f"SELECT CAST(COALESCE(SUM(n), 0) AS BIGINT) AS n FROM {table}_again")["n"][0])
        index = keys.Index(np.empty(0, np.uint64))
    else:
        index = keys.Index(_keys(engine, table, n, pen, window))
        twice, _ = index.repeats()
        rows = len(twice)
        if rows:
            mark(engine, f"{table}_again", twice)
    if not rows:
        return Seen(n, n, index)
    _keep_first(engine, table, columns)
    return Seen(n, n - rows + int(engine.query(f"SELECT COUNT(*) AS n FROM {table}_first")["n"][0]), index)


def refuse_nulls(engine: Engine, table: str, column: str | None = None) -> int:
    """How many rows a table has; column: only this one is looked at.

    Raises:
        DataError: some have no id, no unit, no decision or no instant.
    """
    need = [name for name in ("id", "unit", "decision", "at") if name in NEED[table] and column in (None, name)]
    counts = "".join(f", COUNT({identifier(name)}) AS {identifier(name)}" for name in need)
    found = engine.query(f"SELECT COUNT(*) AS n{counts} FROM {table}")
    n = int(found["n"][0])
    for name in need:
        if int(found[name][0]) < n:
            raise DataError(f"{table}: {n - int(found[name][0])} of {n} rows have no {name}", field=name)
    return n


def _keys(engine: Engine, table: str, n: int, pen: Pen | None, window: Window | None) -> np.ndarray:
    """[n] u64, hashes of the ids. Different ids may share one: the engine then tells their rows apart by the ids."""
    found, filled = np.empty(n, np.uint64), 0
    ids = f", CASE WHEN {window.inside} AND {window.waited} THEN id ELSE '' END AS id" if pen and window else ""

    def take(some: Streamed) -> None:
        nonlocal filled
        found[filled : filled + len(some["key"])] = some["key"]
        filled += len(some["key"])
        if pen is not None:
            pen.write(some["id"])

    engine.stream(f"SELECT {KEY.format('id')} AS key{ids} FROM {table}", take)
    return found


def sql(table: str, columns: Iterable[str], engine: Engine, seen: Seen) -> str:
    """SQL of a table's rows, each id once."""
    wanted = selected(table, columns)
    if not seen.repeated:
        return f"SELECT {wanted} FROM {table}"
    key = "id" if engine.distributed else ROW
    return f"""SELECT {wanted} FROM {table} WHERE {key} NOT IN (SELECT h FROM {table}_again)
        UNION ALL SELECT {wanted} FROM {table}_first"""


def _keep_first(engine: Engine, table: str, columns: Iterable[str]) -> None:
    """Put aside the first row of every id among those that stand in TABLE_again.

    The first by `at`, then by all that a build reads, so that it is always the same one. An outcome told again later
    than as_of is not the first, so it changes nothing. These few rows are put aside because every question needs them.
    """
    key = "id" if engine.distributed else ROW
    order = ", ".join(f"{identifier(column)} NULLS FIRST" for column in ["at", *read(table, columns)] if column != ROW)
    engine.keep(
        f"{table}_first",
        f"""SELECT * FROM (
            SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY {order}) AS telling
            FROM {table} WHERE {key} IN (SELECT h FROM {table}_again)
        ) AS told WHERE telling = 1""",
    )


def mark(engine: Engine, name: str, rows: np.ndarray) -> None:
    """Put rows ([M] i64) aside as a table (h BIGINT), on one machine."""
    each = "SELECT UNNEST(CAST(? AS BIGINT[])) AS h"
    engine.query(f"CREATE OR REPLACE TEMP TABLE {name} AS {each}", [rows.tolist()])
