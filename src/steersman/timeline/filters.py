"""What is left out before training: episodes by their length, decisions by their time; and how much that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.errors import DataError
from steersman.timeline.episodes import Episodes, Rows, lengths, microseconds
from steersman.timeline.settings import Settings


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The rows of the window that the filters leave, and what they left out. Each decision is counted once.

    Attributes:
        places: [N] i64, ascending: which of the window's rows they are.
        rows, episodes: the rows that stay, see `apply`.
        max_length: decisions of the longest episode that may stay; None: any.
        long_episodes: episodes left out as a whole because they are longer.
        too_long: their decisions.
        too_late: decisions left out because they lie too long after the first of their episode.
    """

    places: np.ndarray
    rows: Rows
    episodes: Episodes
    max_length: int | None
    long_episodes: int
    too_long: int
    too_late: int


def leave_out(
    rows: Rows,
    episodes: Episodes,
    settings: Settings,
    before: np.ndarray | None = None,
    max_length: int | None = None,
) -> LeftOut:
    """Leave out what the settings say: first whole episodes by their length, then decisions by their time.

    Lengths are those of the whole episodes, so `within_s` never makes an episode short enough to stay. Something is
    always left.

    Args:
        settings: its `max_length_quantile` and `within_s`.
        before: [N] bool, rows before the window: episodes are as long, and begin, as these say; then they are left
            out. Every episode has a row in the window. None: no row is.
        max_length: of the episodes that stay, instead of that quantile.
    """
    before = np.zeros(len(rows.at), dtype=bool) if before is None else before
    places, logged = np.cumsum(~before) - 1, int((~before).sum())
    long_episodes, stay = 0, logged
    if settings.max_length_quantile is not None and max_length is None:
        max_length = longest(lengths(episodes), settings.max_length_quantile)
    if max_length is not None:
        keep, long_episodes = not_longer(episodes, max_length)
        rows, episodes, places, before = *apply(rows, episodes, keep), places[keep], before[keep]
        stay = int((~before).sum())
    if settings.within_s is not None:
        keep = within(rows, episodes, settings.within_s)
        rows, episodes, places, before = *apply(rows, episodes, keep), places[keep], before[keep]
    rows, episodes = apply(rows, episodes, ~before)
    places = places[~before]
    return LeftOut(
        places=places,
        rows=rows,
        episodes=episodes,
        max_length=max_length,
        long_episodes=long_episodes,
        too_long=logged - stay,
        too_late=stay - len(places),
    )


def longest(lengths: np.ndarray, quantile: float) -> int:
    """The length of the longest episode that stays: a quantile of the lengths of all episodes, in decisions.

    It is a length that occurs: the smallest one that at least this share of the episodes does not exceed. So never
    more than the rest is left out, and an episode of just that length stays, however many there are: where more than
    the rest have the greatest length, nothing is left out.

    An open episode counts by the length that was seen. It can only grow, so one that is too long already will not
    become short; one that stays may be left out of a later build. Where no episode is ever said to end, all are open,
    and there is no other length to go by.

    Args:
        lengths: [E] i64, in decisions.
        quantile: in (0, 1).
    """
    return int(np.quantile(lengths, quantile, method="inverted_cdf"))


def not_longer(episodes: Episodes, length: int) -> tuple[np.ndarray, int]:
    """[N] bool, the decisions of the episodes of at most this length; and how many episodes are longer."""
    each = lengths(episodes)
    return np.repeat(each <= length, each), int((each > length).sum())


def within(rows: Rows, episodes: Episodes, within_s: float) -> np.ndarray:
    """[N] bool, the decisions at most `within_s` seconds after the first of their episode.

    What follows a decision that is left out is left out too, even if a clock went back. So the beginning of every
    episode stays, at least its first decision, and where the rest is left out the last one that stays has a next
    step that is not seen.

    Args:
        within_s: seconds, at least 0.
    """
    each = lengths(episodes)
    first = np.cumsum(each) - each
    late = rows.at - np.repeat(rows.at[first], each) > microseconds(within_s)
    count = np.cumsum(late)
    return count == np.repeat(count[first], each)  # the first decision of an episode is never late itself


def apply(rows: Rows, episodes: Episodes, keep: np.ndarray) -> tuple[Rows, Episodes]:
    """The rows of a mask, with `next` and `unit` counted anew.

    A row whose next row is left out has a next step that was not seen: next -1, and no end. Units that have no row
    left are gone; `np.unique(rows.unit[keep])` are the former numbers of those that stay.

    Args:
        keep: [N] bool.
    Raises:
        DataError: no row is left.
    """
    if not keep.any():
        raise DataError(f"the filters leave none of {len(keep)} decisions", hint="see max_length_quantile and within_s")
    if keep.all():
        return rows, episodes
    place = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)  # the last one for next -1
    columns = {name: getattr(rows, name)[keep] for name in ("unit", "at", "step", "order", "ends", "late_ends")}
    columns["unit"] = np.cumsum(np.diff(columns["unit"], prepend=columns["unit"][:1]) != 0)
    return Rows(**columns), Episodes(
        next=place[episodes.next[keep]],
        ends=episodes.ends[keep],
        limited=episodes.limited[keep],
        begun=episodes.begun[keep],
    )
