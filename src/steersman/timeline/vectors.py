"""Actions that are numbers: from the lists of the log to [N, D], within their bounds."""

from __future__ import annotations

import numpy as np

from steersman.core.decision import Numbers
from steersman.core.density import within
from steersman.core.errors import DataError
from steersman.core.features import Raw
from steersman.timeline.choices import Choices
from steersman.timeline.columns import NUMBERS, Columns
from steersman.timeline.sql import Places, Tables


def select(tables: Tables, box: Numbers) -> dict[str, str]:
    """Column -> SQL of each number of an action; NaN where the action is not so many numbers.

    Raises:
        DataError: no action of the log is numbers.
    """
    if tables.decisions.get(NUMBERS) != "list of number":
        raise DataError(
            "no decision of the log has numbers as its action",
            hint="log the action as a list of numbers, e.g. [0.5, 2.0]",
            field="action",
        )
    many = len(box.low)
    return {
        _name(i): f"COALESCE(CASE WHEN LEN(kept.{NUMBERS}) = {many} THEN kept.{NUMBERS}[{i + 1}] END, "
        "CAST('NaN' AS DOUBLE))"
        for i in range(many)
    }


def gather(steps: Columns, box: Numbers, decisions: Places) -> np.ndarray:
    """[N, D] f32, the actions; their columns are taken out of `steps`.

    Raises:
        DataError: an action is not as many numbers as there are bounds, or outside them.
    """
    action = np.stack([steps.pop(_name(i)) for i in range(len(box.low))], axis=1)
    bad = np.flatnonzero(~within(action, box))
    if bad.size:
        first = action[bad[0]]
        what = f"is not {len(box.low)} numbers" if np.isnan(first).any() else f"{first.tolist()} is outside the bounds"
        raise DataError(
            f"decision {decisions[bad[0]]}: action {what} {list(box.low)} to {list(box.high)} "
            f"({bad.size} such rows of {len(action)})",
            hint="declare the bounds that the product really has, or leave such decisions out of the log",
            field="action",
        )
    return action.astype(np.float32)


def no_choices(rows: int) -> Choices:
    """Of N decisions without candidates."""
    nothing = Raw(np.empty((rows, 0, 0)), np.empty((rows, 0, 0), dtype=object))
    return Choices(np.empty((rows, 0), dtype=object), nothing, np.empty((rows, 0), dtype=bool))


def _name(place: int) -> str:
    return f"action.{place}"
