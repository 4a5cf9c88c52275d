"""What the log says of the time before a window: where the episodes that reach into it began."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.timeline.columns import Columns
from steersman.timeline.sql import NUMBERED, Tables


@dataclass(frozen=True, eq=False)
class Before:
    """M decisions before the window of units that have one in it, by unit, at and id.

    Attributes:
        unit: [M] i64, number of the unit in the build.
        at: [M] i64, microseconds UTC.
        step: [M] i64; -1: not counted.
        ended: [M] bool, an outcome says that its episode ended.
        ids: [M] object.
    """

    unit: np.ndarray
    at: np.ndarray
    step: np.ndarray
    ended: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.unit)


def led(tables: Tables) -> str:
    """SQL of (id, unit, at, step) of the decisions before the window of units that have one in it, each id once; empty:
    there are none."""
    if not tables.earlier:
        return ""
    return f"""SELECT id, unit, "at", step FROM (
            SELECT id, unit, "at", step, ROW_NUMBER() OVER (PARTITION BY id ORDER BY "at", unit, step) AS telling
            FROM ({tables.earlier}) AS earlier WHERE {tables.window.before} AND {tables.carried}
        ) AS told WHERE telling = 1 AND unit IN (SELECT unit FROM kept) AND id NOT IN (SELECT id FROM kept)"""


def gather(tables: Tables) -> Before:
    """What is before the window."""
    found: Columns = dict.fromkeys(("unit", "at", "step", "ended", "ids"), np.zeros(0, np.int64))
    if tables.earlier:
        ended = "led.id IN (SELECT decision FROM heard WHERE ends IS NOT NULL)" if tables.outcomes else "FALSE"
        select = f"""SELECT units.number AS unit, led."at" AS "at", COALESCE(CAST(led.step AS BIGINT), -1) AS step,
            {ended} AS ended, led.id AS ids FROM led JOIN ({NUMBERED}) AS units ON led.unit = units.unit
            ORDER BY units.number, led."at", led.id"""
        found = tables.engine.query(tables.sql(select, led=led(tables)))
    return Before(**found)
