"""What lies beside a version that is perturbed, in es/NAME/NUMBER/: its search, and which units meet which copy."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from steersman.config import Project
from steersman.core.decision import Decision
from steersman.core.errors import DataError, NotFoundError
from steersman.engine.disk import appearing
from steersman.flow import places
from steersman.learn import evolution as es
from steersman.models.graph import Graph
from steersman.serve.decide import Score
from steersman.serve.episodes import Episodes
from steersman.serve.perturbed import Perturbing
from steersman.timeline.episodes import microseconds

SEARCH, SERVED, STOPPED, EPISODES = "search", "served.json", "stopped.json", "episodes"
CACHE_BYTES = 1 << 26
"""Of the copies that a server keeps; those that were met least lately are made again from their keys."""

COPY_BYTES = 1 << 11
"""Of a copy beside its parameters."""

LOOK_S = 0.5
"""Seconds after which a server looks again whether copies may still decide."""


class Made(Struct, frozen=True, kw_only=True):
    """What an update was made from: enough to make it again.

    Attributes:
        parent: number of the version whose search was told.
        since, as_of: of the build, microseconds UTC.
        build: digest of it.
        episodes, copies: whole episodes of perturbed copies, and copies that had one.
        account: what the search made of them.
        gain: what they say of the step.
    """

    parent: int
    since: int
    as_of: int
    build: str
    episodes: int
    copies: int
    account: es.Account
    gain: es.Gain | None


class Guard(Struct, frozen=True):
    """What units that met a copy earned, less what those earned that met the version itself, over whole episodes.

    Attributes:
        difference: of the mean returns; low, high: 95%, by the normal approximation.
        clean: mean return of the version itself.
        perturbed_n, clean_n: episodes.
    """

    difference: float
    low: float
    high: float
    clean: float
    perturbed_n: int
    clean_n: int


class Served(Struct, frozen=True, kw_only=True):
    """Who meets which perturbed copy of a version.

    Attributes:
        share: of the units, in (0, 1].
        seed: of who meets which.
        keys: of a pool of copies, drawn afresh for this version; none: each episode has its own.
        copies: of which each episode has its own: so many must have a whole one before an update.
        at: when it was made, microseconds UTC.
        block_s, max_loss, keep: see `flow.online.init`.
        made: None: by `es init`.
    """

    share: float
    seed: str
    keys: tuple[int, ...]
    at: int
    copies: int = 0
    block_s: float = 0.0
    max_loss: float | None = None
    keep: int = 0
    made: Made | None = None


def place(project: Project, name: str, number: int) -> Path:
    """The directory of a version."""
    return project.root / "es" / name / str(number)


def write(project: Project, name: str, number: int, search: es.Search, served: Served) -> None:
    """Put search and copies beside a version: both appear at once, or nothing does."""
    with appearing(place(project, name, number)) as aside:
        es.save(search, aside / SEARCH)
        places.write(aside / SERVED, served)


def read(project: Project, name: str, number: int) -> tuple[es.Search, Served]:
    """Search and copies of a version.

    Raises:
        NotFoundError: it is not perturbed.
        DataError: a file is damaged.
    """
    at = place(project, name, number)
    if not at.exists():
        raise NotFoundError(
            f"{name}@{number} has no search beside it", hint=f"steersman es init {name} makes a version that has"
        )
    try:
        served = msgspec.json.decode((at / SERVED).read_bytes(), type=Served)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{at / SERVED} is damaged: {error}") from None
    return es.load(at / SEARCH), served


def updated(project: Project, name: str) -> list[int]:
    """Numbers of the versions that updates made and that still have a search beside them, ascending."""
    parent = place(project, name, 0).parent
    numbers = sorted(int(one.name) for one in parent.iterdir() if one.name.isdecimal()) if parent.exists() else []
    return [number for number in numbers if read(project, name, number)[1].made is not None]


def remove(project: Project, name: str, number: int) -> None:
    """Remove what lies beside a version: it is gone at once, or there."""
    at = place(project, name, number)
    aside = at.with_name(f".{number}.removed")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed here
    at.rename(aside)
    shutil.rmtree(aside)


def of(project: Project, name: str, number: int, graph: Graph) -> Perturbing | None:
    """The perturbed copies of a version for the server; None: it has none. A copy is made when it is first met."""
    if not place(project, name, number).exists():
        return None
    search, served = read(project, name, number)
    kept = len(served.keys) or max(1, CACHE_BYTES // (COPY_BYTES + 4 * len(search.mean)))

    @functools.lru_cache(maxsize=kept)
    def run(key: int) -> Score:
        return _copy(search, graph, key)

    run(0)  # a graph that can not be perturbed must not go live
    keys: tuple[int, ...] | Episodes = served.keys
    if not keys:
        problem = project.policy(name).problem
        keys = Episodes(
            place(project, name, number) / EPISODES,
            mirrored=search.settings.solver.mirrored,
            horizon=problem.horizon,
            horizon_us=None if problem.horizon_s is None else max(microseconds(problem.horizon_s), 1),
        )
    return Perturbing(served.seed, served.share, keys, run, _until(place(project, name, number) / STOPPED))


def stop(project: Project, name: str, number: int, guard: Guard) -> None:
    """No copy of a version decides any more, in any server, from the next look on."""
    places.write(place(project, name, number) / STOPPED, guard)


def _until(stopped: Path) -> Callable[[], bool]:
    """Whether a file is not there yet: looked for at most every `LOOK_S`, and once it is there for good."""
    looked, active = time.monotonic(), not stopped.exists()

    def look() -> bool:
        nonlocal looked, active
        if active and time.monotonic() - looked > LOOK_S:
            looked, active = time.monotonic(), not stopped.exists()
        return active

    return look


def scores(project: Project, decision: Decision, graph: Graph) -> Score:
    """The perturbed copy that made a logged decision."""
    assert decision.noise is not None
    search, _ = read(project, decision.problem, decision.version)
    return _copy(search, graph, decision.noise)


def _copy(search: es.Search, graph: Graph, key: int) -> Callable[..., np.ndarray]:
    return graph.perturbed(search.perturbed(np.array([key], dtype=np.uint64))[0].astype(np.float64))
