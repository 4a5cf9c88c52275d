"""What a build gives: a Batch, the rows it was made from, and the count of all that did not enter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.features import Raw


class Files(Protocol):
    """The Parquet files of a log."""

    @property
    def decisions(self) -> Sequence[str]:
        """Of one problem. They may hold decisions outside the window."""

    @property
    def outcomes(self) -> Sequence[str]:
        """They may hold outcomes of other problems and other windows."""


class Counts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What entered a build and what did not.

    Every decision logged in the window is in exactly one of `decisions`, `waiting`, `duplicates`; every episode in
    exactly one of `terminated`, `truncated`, `open`.

    Attributes:
        decisions: rows of the Batch.
        waiting: decisions of the window whose wait is not over.
        duplicates: further decisions of the window with an id that was seen before.
        outcomes: that count: of a row, in time.
        late: outcomes of a row that came after its wait, and are not used.
        late_ends: rows whose episode was closed by an `ends` that came late.
        dangling: outcomes stamped within the window whose decision is not in the files. The log of outcomes is one
            for all problems and does not stop at a window, so the outcomes of other problems and of decisions before
            the files are in this number: it means something for a log of one problem, read from its beginning.
        duplicate_outcomes: further outcomes with an id that was seen before, among all that were read.
        without_outcome: rows without any outcome in time.
        units, episodes: in the Batch.
        terminated: episodes the world ended.
        truncated: episodes somebody ended: `truncated`, the horizon, or an `ends` that came late.
        open: episodes whose last row has a next step that was not seen.
    """

    decisions: int
    waiting: int
    duplicates: int
    outcomes: int
    late: int
    late_ends: int
    dangling: int
    duplicate_outcomes: int
    without_outcome: int
    units: int
    episodes: int
    terminated: int
    truncated: int
    open: int


@dataclass(frozen=True, eq=False)
class RawRows:
    """The rows of a Batch before the encoder, in the same order: an exported graph must give the same from these.

    Attributes:
        context: numbers [N, C] f64, texts [N, T] object.
        candidates: numbers [N, K, C'] f64, texts [N, K, T'] object; broadcast views where all rows have the same.
        ids: [N, K] object, ids of the candidates, ascending in a row; NO_TEXT where padded.
    """

    context: Raw
    candidates: Raw
    ids: np.ndarray


@dataclass(frozen=True, eq=False)
class Built:
    """A Batch and what it was made from.

    Attributes:
        decision_ids: [N] object, id of every row.
        since, until: the window of decisions, microseconds UTC.
    """

    batch: Batch
    raw: RawRows
    decision_ids: np.ndarray
    counts: Counts
    since: int
    until: int
