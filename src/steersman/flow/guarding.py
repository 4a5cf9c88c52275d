"""Guardrails of a live policy: looked at again and again by the log, and what breaks one stops its perturbed copies."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from steersman import timeline
from steersman.config import Project
from steersman.core.errors import ConflictError, Error
from steersman.engine.disk import alone
from steersman.evaluate.guardrails import Guardrail, broken, costly
from steersman.flow import building, copies, perturbing, places, sampling
from steersman.flow.logs import compact
from steersman.models.warehouse import CHAMPION, Warehouse

Array = np.ndarray

LEVEL = 0.95
"""Of the bound on what copies cost."""

PATIENCE = 3.0
"""Copies decide no longer than so many times what a look and the time between two looks take, without another look."""


PART = 2**40
"""Between the units of two parts of a build, each of which counts from 0."""


class Rows(NamedTuple):
    """The decisions of a window: [N] version, whether a copy decided, unit; metric -> [N] f64, NaN: not known."""

    version: Array
    perturbed: Array
    unit: Array
    metrics: dict[str, Array]


class Units(NamedTuple):
    """The mean of something over each unit, of those that met a copy and of those that met a version itself.

    A unit that met both is among both.
    """

    copies: Array
    clean: Array


def look(project: Project, name: str, every_s: float) -> sampling.Watched | None:
    """Look at the guardrails of a policy once, stop its copies if one is broken, and write down that it was looked at.

    Args:
        every_s: until the next look.
    Returns:
        None: it has no champion, or one without copies.
    """
    began, now = time.monotonic(), places.now_us()
    number = Warehouse(project.warehouse_url).aliases(name).get(CHAMPION)
    if number is None or not perturbing.place(project, name, number).exists():
        return None
    seen, failed = (0, 0), ""
    try:
        reason, seen = _look(project, name, number, now)
        if reason:
            sampling.stop(project, name, number, reason, now)
    except ConflictError as error:  # somebody else compacts the log
        failed = error.message
        before = sampling.last(project, name)
        if before and not before.failed and now < before.until:
            return before
    except (Error, OSError) as error:
        failed = str(error)
    patience = PATIENCE * (every_s + time.monotonic() - began)
    found = sampling.Watched(number, now, places.now_us() + int(patience * 1e6), *seen, failed)
    sampling.watched(project, name, found)
    return found


def watch(
    project: Project,
    names: Sequence[str],
    every_s: float,
    wait: Callable[[float], bool],
    tell: Callable[[str, sampling.Watched], None] = lambda name, found: None,
    also: Callable[[str], object] = lambda name: None,
) -> None:
    """Look again and again, whatever fails meanwhile. Of several processes that watch a policy one looks at a time.

    Args:
        wait: waits so many seconds; True: it is time to end.
        tell: called after each look.
        also: done to a policy after each look, by the one that looked.
    Raises:
        ConflictError: another process looked in the last round.
        Error, OSError: nothing could be looked at, or written down, or done besides, in the last round.
    """
    done, round_s = False, 0.0
    while not done:
        began, failed = time.monotonic(), list[Exception]()
        for name in names:
            found = None
            try:
                with alone(sampling.place(project, name) / "watch.lock", f"watch of {name}"):
                    found = look(project, name, every_s + round_s)
                    with contextlib.suppress(ConflictError):  # somebody else does it
                        also(name)
            except (Error, OSError) as error:  # without a look copies pause, and the next round tries again
                failed.append(error)
            if found is not None:
                tell(name, found)
        round_s = time.monotonic() - began
        done = wait(every_s)
    if failed:
        raise failed[0]


def cost(played: list[copies.Episode], number: int, max_loss: float | None) -> str:
    """Why the copies of a version cost too much, by its whole episodes; empty: nothing says so for sure."""
    mine = [one for one in played if one.whole and one.version == number]
    if max_loss is None or not mine:
        return ""
    value, unit = np.array([one.value for one in mine]), np.array([one.unit for one in mine])
    of = units_of(value, unit, np.array([one.perturbed for one in mine]))
    found = costly(*of, max_loss, LEVEL)
    if found is None:
        return ""
    difference, high = found
    return (
        f"its copies earn {difference:+.3g} beside its own {of.clean.mean():.3g}, surely less than {high:+.3g}, "
        f"and may lose {max_loss:.0%} of it"
    )


def _look(project: Project, name: str, number: int, now: int) -> tuple[str, tuple[int, int]]:
    """What is broken, and how many units of copies and of the version itself were looked at."""
    policy = project.policy(name)
    begun = max(perturbing.begun(project, name, number), sampling.resumed_at(project, name))
    if not settled(project, name, begun, now):
        return "", (0, 0)
    who = copies.noise_of(project, name, begun, now)
    with building.joined(project, name, since=begun, until=now, as_of=now) as parts:
        rows = rows_of(parts, who, tuple(policy.guardrails))
        played = played_of(parts, who)
    every = units_of(np.zeros(len(rows.unit)), rows.unit, rows.perturbed)
    seen = len(every.copies), len(every.clean)
    if why := harm(rows, policy.guardrails, name, number):
        return why, seen
    loss = cost(played, number, perturbing.served_of(project, name, number).max_loss)
    return (f"{name}@{number}: {loss}" if loss else ""), seen


def harm(rows: Rows, rails: Mapping[str, Guardrail], name: str, number: int) -> str:
    """Why a guardrail is broken by the copies of a version, or by all since sampling began; empty: none surely is."""
    present, sampled = rows.version == number, np.isin(rows.version, rows.version[rows.perturbed])
    for metric, rail in rails.items():
        for some, where in ((present, "in this version"), (sampled, "since it began")):
            of = units_of(rows.metrics[metric][some], rows.unit[some], rows.perturbed[some])
            if why := broken(rail, *of, 1 - (1 - rail.level) / 2):  # half of the chance for either of the two
                return f"{metric} of the copies of {name}@{number} {where}: {why}"
    return ""


def rows_of(parts: list[timeline.Built], who: dict[str, tuple[int, int | None]], metrics: Sequence[str]) -> Rows:
    """The rows of a build.

    Args:
        who: decision -> version, and key of the copy that made it.
    """
    made = [who.get(decision, (0, None)) for part in parts for decision in part.decision_ids.tolist()]
    return Rows(
        version=np.array([version for version, _ in made], dtype=np.int64),
        perturbed=np.array([key is not None for _, key in made]),
        unit=np.concatenate([part.unit + place * PART for place, part in enumerate(parts)]),
        metrics={name: np.concatenate([_metric(part, name) for part in parts]) for name in metrics},
    )


def played_of(parts: list[timeline.Built], who: dict[str, tuple[int, int | None]]) -> list[copies.Episode]:
    """The episodes of a build."""
    return [
        one._replace(unit=one.unit + place * PART)
        for place, part in enumerate(parts)
        for one in copies.episodes(part, who)
    ]


def settled(project: Project, name: str, since: int, now: int) -> bool:
    """Whether the wait of some decision since an instant is over."""
    compact(project)
    return building.logged(project, name, since, now - int(project.policy(name).problem.wait_s * 1e6)) > 0


def _metric(part: timeline.Built, metric: str) -> Array:
    """[N] f64, NaN where it is not known."""
    names = part.metric_names
    return part.metrics[:, names.index(metric)] if metric in names else np.full(len(part), np.nan)


def units_of(value: Array, unit: Array, copies: Array) -> Units:
    """Means of the values of each unit, where `copies` [N] bool holds and where not; a value that is NaN is none.

    A unit counts once, in whatever versions it decided: what it is like it is in all of them.
    """
    found = []
    for arm in (copies, ~copies):
        rows = np.flatnonzero(arm & ~np.isnan(value))
        _, place = np.unique(unit[rows], return_inverse=True)
        found.append(np.bincount(place, value[rows]) / np.bincount(place) if len(rows) else np.empty(0))
    return Units(*found)
