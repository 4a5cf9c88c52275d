"""What lies beside a version that is perturbed, in es/NAME/NUMBER/: its search, and which units meet which copy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from steersman.config import Project
from steersman.core.errors import DataError, NotFoundError
from steersman.core.features import Raw
from steersman.engine.disk import appearing, beside
from steersman.flow import places, sampling
from steersman.learn import evolution as es
from steersman.models.graph import Copy, Crowd, Graph
from steersman.serve import perturbed as serve
from steersman.serve.decide import Score
from steersman.serve.episodes import Episodes
from steersman.serve.perturbed import Perturbing
from steersman.timeline.episodes import microseconds

SEARCH, SERVED = "search", "served.json"
EPISODES, CROWD = "episodes", "crowd.onnx"
CACHE_BYTES = 1 << 26
"""Of the copies that a server keeps; those that were met least lately are made again from their keys."""

COPY_BYTES = 1 << 11
"""Of a copy beside its parameters."""

CROWD_NUMBERS, FEWEST_ROWS = 1 << 20, 16
"""Parameters of all copies in one run of their graph; where they are of fewer copies than these, each is run alone."""


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


class Served(Struct, frozen=True, kw_only=True):
    """Who meets which perturbed copy of a version.

    Attributes:
        share: of the units, in (0, 1].
        seed: of who meets which.
        keys: of a pool of copies, drawn afresh for this version; none: each episode has its own.
        copies: of which each episode has its own: so many must have a whole one before an update.
        at: when it was made, microseconds UTC.
        block_s, max_loss, keep, canary, tolerance: see `flow.online.init`.
        digest: of the search.
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
    canary: float = 0.0
    tolerance: float = 0.05
    digest: str = ""
    made: Made | None = None


def place(project: Project, name: str, number: int) -> Path:
    """The directory of a version."""
    return sampling.place(project, name) / str(number)


def write(project: Project, name: str, number: int, search: es.Search, served: Served, crowd: bytes = b"") -> None:
    """Put search and copies beside a version: all appear at once, or nothing does.

    Args:
        crowd: see `models.parameters.crowd_of`.
    """
    with appearing(place(project, name, number)) as aside:
        es.save(search, aside / SEARCH)
        places.write(aside / SERVED, msgspec.structs.replace(served, digest=search.digest))
        if crowd:
            (aside / CROWD).write_bytes(crowd)


def read(project: Project, name: str, number: int) -> tuple[es.Search, Served]:
    """Search and copies of a version.

    Raises:
        NotFoundError: it is not perturbed.
        DataError: a file is damaged, or the search is not the one that was put there.
    """
    served, search = served_of(project, name, number), es.load(place(project, name, number) / SEARCH)
    if served.digest and search.digest != served.digest:
        raise DataError(
            f"the search beside {name}@{number} perturbs {search.digest[:12]}, its copies were of {served.digest[:12]}",
            hint="restore it, or go back to the version before",
        )
    return search, served


def served_of(project: Project, name: str, number: int) -> Served:
    """The copies of a version, without its search; raises as `read`."""
    served = places.read(place(project, name, number) / SERVED, Served)
    if served is None:
        raise NotFoundError(
            f"{name}@{number} has no search beside it", hint=f"steersman es init {name} makes a version that has"
        )
    return served


def begun(project: Project, name: str, number: int) -> int:
    """When the first version was made from which updates led to a version, microseconds UTC; of those still stored."""
    served = served_of(project, name, number)
    while served.made is not None and place(project, name, served.made.parent).exists():
        served = served_of(project, name, served.made.parent)
    return served.at


def updated(project: Project, name: str) -> list[int]:
    """Numbers of the versions that updates made and that still have a search beside them, ascending."""
    parent = place(project, name, 0).parent
    numbers = sorted(int(one.name) for one in parent.iterdir() if one.name.isdecimal()) if parent.exists() else []
    return [number for number in numbers if served_of(project, name, number).made is not None]


def remove(project: Project, name: str, number: int) -> None:
    """Remove what lies beside a version: it is gone at once, or there."""
    at = place(project, name, number)
    with beside(at) as aside:
        at.rename(aside / at.name)


def rest(project: Project, name: str, number: int) -> None:
    """Remove what is known of running episodes of all versions before one."""
    for one in place(project, name, number).parent.glob(f"*/{EPISODES}"):
        if one.parent.name.isdecimal() and int(one.parent.name) < number:
            one.unlink(missing_ok=True)


def of(project: Project, name: str, number: int, graph: Graph) -> Perturbing | None:
    """The perturbed copies of a version for the server; None: it has none. A copy is made when it is first met."""
    if not place(project, name, number).exists():
        return None
    search, served = read(project, name, number)
    kept = len(served.keys) or max(1, CACHE_BYTES // (COPY_BYTES + 4 * len(search.mean)))

    @functools.lru_cache(maxsize=kept)
    def run(key: int) -> Copy:
        return copy_of(search, graph, key)

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
    crowd = _crowd(place(project, name, number) / CROWD, run, len(search.mean))
    return Perturbing(served.seed, served.share, keys, run, sampling.looking(project, name), crowd)


def _crowd(path: Path, run: Callable[[int], Copy], size: int) -> serve.Crowd | None:
    """The copies of keys in one run of their graph, so many rows at a time that their parameters are few."""
    rows = CROWD_NUMBERS // size
    if rows < FEWEST_ROWS or not path.exists():
        return None
    crowd = Crowd(path.read_bytes())

    def scores(keys: Sequence[int], context: Raw, candidates: Raw, ids: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(keys), rows):
            some = slice(start, start + rows)
            parameters = np.stack([run(key).row for key in keys[some]])
            found.append(crowd.scores(parameters, context.take(some), candidates.take(some), ids[some]))
        return found[0] if len(found) == 1 else np.concatenate(found)

    return scores


def copies(project: Project, name: str, number: int, graph: Graph) -> Callable[[int], Score]:
    """Key -> the perturbed copy of a version that it stands for; raises as `read`."""
    search, _ = read(project, name, number)
    return functools.partial(copy_of, search, graph)


def copy_of(search: es.Search, graph: Graph, key: int) -> Copy:
    """The graph with the parameters that a key stands for."""
    return graph.perturbed(search.perturbed(np.array([key], dtype=np.uint64))[0].astype(np.float64))
