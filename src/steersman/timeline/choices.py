"""What could be chosen: candidates in the order of their ids, padded, encoded; where the action is among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steersman.core.decision import NO_TEXT
from steersman.core.errors import DataError
from steersman.core.features import Encoder, Raw
from steersman.timeline import fields
from steersman.timeline.fields import Field
from steersman.timeline.sql import IDS, Columns, Tables


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

    def encoded(self, encoder: Encoder) -> np.ndarray:
        """[N, K, A] f32; padding is zeros."""
        shared = self.ids.strides[0] == 0
        rows = slice(0, 1) if shared else slice(None)
        mask = self.mask[rows]
        raw = Raw(self.raw.numbers[rows], self.raw.texts[rows])
        encoded = encoder.encode_candidates(raw, self.ids[rows])
        encoded[~mask] = 0.0
        return np.broadcast_to(encoded, (len(self.ids), *encoded.shape[1:])) if shared else encoded


def gather(tables: Tables, features: Sequence[Field], decisions: np.ndarray, *, shared: bool) -> Choices:
    """The candidates of the decisions ([N] object, their ids) in their order.

    Args:
        shared: all decisions have the same candidates.
    Raises:
        DataError: a candidate has no id, or two of a decision share one.
    """
    columns = tables.candidates(fields.columns_of(features), shared=shared)
    n, place, ids = len(decisions), columns.pop("place"), columns.pop(IDS)
    again = (ids[1:] == ids[:-1]) & (place[1:] == place[:-1])
    _refuse(np.append(False, again), decisions[place], ids, "candidate {!r} stands twice")
    no_id = np.fromiter((name is None for name in ids.tolist()), dtype=bool, count=len(ids))
    _refuse(no_id, decisions[place], ids, "a candidate has no id, or a feature has more values than candidates")
    one = _padded(features, columns, place, ids, 1 if shared else n)
    if not shared:
        return one
    return Choices(
        np.broadcast_to(one.ids, (n, *one.ids.shape[1:])),
        Raw(
            np.broadcast_to(one.raw.numbers, (n, *one.raw.numbers.shape[1:])),
            np.broadcast_to(one.raw.texts, (n, *one.raw.texts.shape[1:])),
        ),
        np.broadcast_to(one.mask, (n, *one.mask.shape[1:])),
    )


def _padded(features: Sequence[Field], columns: Columns, place: np.ndarray, ids: np.ndarray, n: int) -> Choices:
    """[n, K] from one row a candidate, in the order of (place, id)."""
    counts = np.bincount(place, minlength=n)
    width = max(int(counts.max(initial=0)), 1)
    first = np.cumsum(counts) - counts
    where = place, np.arange(len(place)) - first[place]
    flat = fields.raw(features, columns, len(place))
    numbers = np.full((n, width, flat.numbers.shape[1]), np.nan)
    numbers[where] = flat.numbers
    texts = np.full((n, width, flat.texts.shape[1]), NO_TEXT, dtype=object)
    texts[where] = flat.texts
    padded = np.full((n, width), NO_TEXT, dtype=object)
    padded[where] = ids
    return Choices(padded, Raw(numbers, texts), np.arange(width) < counts[:, None])


def check_names(choices: Choices, names: Sequence[str], decisions: np.ndarray) -> None:
    """Raise DataError if a candidate is not one of the named actions; no names: any may be."""
    if not names:
        return
    ids = choices.ids[:1] if choices.ids.strides[0] == 0 else choices.ids
    unknown = set(ids.ravel().tolist()) - {*names, NO_TEXT}
    if unknown:
        name = min(unknown)
        row = int(np.flatnonzero((ids == name).any(axis=1))[0])
        raise DataError(
            f"decision {decisions[row]}: candidate {name!r} is none of the problem's {len(names)} named actions",
            hint="add it to actions.names, or leave the names out if candidates come and go",
            field="candidates",
        )


def places(choices: Choices, actions: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """[N] i64, where each action ([N] object, ids) is among its candidates.

    Raises:
        DataError: one is not among them.
    """
    if choices.ids.strides[0] == 0:
        place_of = defaultdict(lambda: -1, {name: place for place, name in enumerate(choices.ids[0].tolist())})
        found = np.fromiter(map(place_of.__getitem__, actions.tolist()), np.int64, count=len(actions))
    else:
        same = (choices.ids == actions[:, None]) & choices.mask
        found = np.where(same.any(axis=1), same.argmax(axis=1), -1)
    _refuse(
        found < 0,
        decisions,
        actions,
        "action {!r} is not among its candidates",
        hint="log every candidate that could have been taken, the action included",
    )
    return found


def _refuse(bad: np.ndarray, decisions: np.ndarray, values: np.ndarray, message: str, hint: str = "") -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        text = message.format(values[rows[0]])
        raise DataError(
            f"decision {decisions[rows[0]]}: {text} ({rows.size} such rows of {len(bad)})",
            hint=hint,
            field="candidates",
        )
