"""What could be chosen: candidates in the order of their ids, padded, encoded; where the action is among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steersman.core.decision import NO_TEXT
from steersman.core.errors import DataError
from steersman.core.features import Raw
from steersman.core.shared import is_shared, once
from steersman.timeline import fields
from steersman.timeline.fields import Field
from steersman.timeline.sql import IDS, ROW, Columns, Places, Tables


@dataclass(frozen=True, eq=False)
class Choices:
    """Candidates of N decisions; where all have the same, broadcast views of one row.

    Attributes:
        ids: [N, K] object, ascending; NO_TEXT where padded.
        raw: their features as logged, [N, K, ...].
        mask: [N, K] bool.
    """

    ids: np.ndarray
    raw: Raw
    mask: np.ndarray


def gather(tables: Tables, features: Sequence[Field], decisions: Places, *, same: bool) -> Choices:
    """The candidates of the decisions in their places.

    Args:
        same: all decisions have the same candidates.
    Raises:
        DataError: a candidate has no id, or two of a decision share one.
    """
    columns = tables.candidates(fields.columns_of(features), shared=same)
    n, rows = len(decisions), columns.pop(ROW)
    place = np.zeros(len(rows), dtype=np.int64) if same else decisions.of(rows)
    by_place = np.argsort(place, kind="stable")
    columns = {name: column[by_place] for name, column in columns.items()}
    place, ids = place[by_place], columns.pop(IDS)
    again = (ids[1:] == ids[:-1]) & (place[1:] == place[:-1])
    _refuse(np.append(False, again), place, decisions, ids, "candidate {!r} stands twice")
    no_id = np.fromiter((name is None for name in ids.tolist()), dtype=bool, count=len(ids))
    _refuse(no_id, place, decisions, ids, "a candidate has no id, or a feature has more values than candidates")
    one = _padded(features, columns, place, ids, 1 if same else n)
    if not same:
        return one
    return Choices(_repeated(one.ids, n), one.raw.broadcast(n), _repeated(one.mask, n))


def _repeated(one: np.ndarray, n: int) -> np.ndarray:
    return np.broadcast_to(one, (n, *one.shape[1:]))


def taken(choices: Choices, places: np.ndarray) -> Choices:
    """Those of the decisions at these places; what all share stays shared."""
    if is_shared(choices.ids):
        n = len(places)
        return Choices(
            _repeated(choices.ids[:1], n), choices.raw.take(slice(0, 1)).broadcast(n), _repeated(choices.mask[:1], n)
        )
    return Choices(choices.ids[places], choices.raw.take(places), choices.mask[places])


def _padded(features: Sequence[Field], columns: Columns, place: np.ndarray, ids: np.ndarray, n: int) -> Choices:
    """[n, K] from one row a candidate, in the order of (place, id)."""
    counts = np.bincount(place, minlength=n)
    width = max(int(counts.max(initial=0)), 1)
    there = np.arange(width) < counts[:, None]
    padded = np.full((n, width), NO_TEXT, dtype=object)
    padded[there] = ids
    return Choices(padded, fields.raw(features, columns, len(place)).spread(there), there)


def check_names(choices: Choices, names: Sequence[str], decisions: Places) -> None:
    """Raise DataError if a candidate is not one of the named actions; no names: any may be."""
    if not names:
        return
    ids = once(choices.ids)
    unknown = set(ids.ravel().tolist()) - {*names, NO_TEXT}
    if unknown:
        name = min(unknown)
        row = int(np.flatnonzero((ids == name).any(axis=1))[0])
        raise DataError(
            f"decision {decisions[row]}: candidate {name!r} is none of the problem's {len(names)} named actions",
            hint="add it to actions.names, or leave the names out if candidates come and go",
            field="candidates",
        )


def _refuse(bad: np.ndarray, place: np.ndarray, decisions: Places, ids: np.ndarray, message: str) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        text = message.format(ids[rows[0]])
        raise DataError(
            f"decision {decisions[place[rows[0]]]}: {text} ({rows.size} such rows of {len(bad)})", field="candidates"
        )
