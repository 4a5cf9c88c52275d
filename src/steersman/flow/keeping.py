"""What candidates of a closed form keep for later rows: their sums, and of which windows, so that none counts twice.

A window is [since, until) of the decisions of a build; windows that do not overlap have no decision in common, for a
decision is made once. Decisions whose wait was not over belong to no build yet: a window ends before the first of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from msgspec import Struct

from steersman import learn, timeline
from steersman.core.errors import ConflictError, NotFoundError
from steersman.core.features import Encoder
from steersman.flow import places

KEPT, SUMS = "kept.json", "sums.npz"


class Window(Struct, frozen=True):
    """One build that was summed up.

    Attributes:
        data: digest of its Batch.
        since, until: [since, until) of its decisions, microseconds UTC.
        rows: that were learned from.
    """

    data: str
    since: int
    until: int
    rows: int


class Kept(Struct, frozen=True):
    """What kept.json of a candidate holds.

    Attributes:
        windows: that the sums are of, in the order they were added.
        config: digest of the problem and the learner's settings.
        encoder: of the sums: later rows are encoded by it too.
    """

    windows: tuple[Window, ...]
    config: str
    encoder: Encoder


def window(built: timeline.Built, data: str, rows: int) -> Window:
    """The window of a build."""
    until = int(np.max(built.at)) + 1 if built.counts.waiting else built.until
    return Window(data, built.since, until, rows)


def read(candidate: places.Candidate, config: str, built: timeline.Built) -> tuple[Kept, learn.Sums]:
    """What a candidate kept, if rows of a build can be added to it.

    Args:
        config: digest of the problem and the learner's settings.
    Raises:
        NotFoundError: it kept nothing.
        ConflictError: it was made with other settings, or saw decisions of the build's window already.
        DataError: its file is damaged.
    """
    place = Path(candidate.directory)
    kept = places.read(place / KEPT, Kept)
    if kept is None:
        raise NotFoundError(
            f"{candidate.problem}: the last candidate, of {candidate.learner}, kept no sums to add to",
            hint="train once without --add: linear, linucb, thompson, ucb1 and beta-thompson keep theirs",
        )
    if kept.config != config:
        raise ConflictError(
            f"{candidate.problem}: the sums of {place.name} were made with other settings",
            hint="train without --add, on a build of all that is to be learned from",
        )
    new = window(built, "", 0)
    for old in kept.windows:
        if new.since < old.until and old.since < new.until:
            raise ConflictError(
                f"{candidate.problem}: the build's window [{new.since}, {new.until}) overlaps [{old.since}, "
                f"{old.until}), which {place.name} has learned from: its decisions would count twice",
                hint=f"steersman build {candidate.problem} --since {_instant(max(o.until for o in kept.windows))}",
            )
    return kept, learn.load_sums(place / SUMS)


def write(place: Path, kept: Kept, sums: learn.Sums) -> None:
    """Leave the sums of a candidate for the next."""
    learn.save_sums(sums, place / SUMS)
    places.write(place / KEPT, kept)


def _instant(at: int) -> str:
    """As --since takes it."""
    return str(np.datetime64(at, "us")) + "Z"
