"""What the log says of the perturbed copies of a version: the return of each, and what they cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from msgspec import Struct

from steersman import log, timeline
from steersman.config import Project
from steersman.evaluate.evidence import Paths
from steersman.flow.logs import opened


class Samples(Struct, frozen=True):
    """What the log says of perturbed copies.

    Attributes:
        generation, key, reward: of a copy, the mean return of its whole episodes.
        episodes: whole ones.
        open: episodes of copies that are not over, or that two copies decided in: they count for nothing.
    """

    generation: tuple[int, ...]
    key: tuple[int, ...]
    reward: tuple[float, ...]
    episodes: int
    open: int


class Episode(NamedTuple):
    """Who decided an episode, and what it earned.

    Attributes:
        version, key: of its first decision; the key of the copy, None: the version itself.
        perturbed: a copy decided in it.
        whole: one policy decided all of it, and all of it was seen.
        at: of its first decision, microseconds UTC.
        unit: whose it is.
        value: its discounted return.
    """

    version: int
    key: int | None
    perturbed: bool
    whole: bool
    at: int
    unit: int
    value: float


def episodes(built: timeline.Built, noise: dict[str, tuple[int, int | None]]) -> list[Episode]:
    """The episodes of a build.

    Args:
        noise: decision -> version, and key of the copy that made it.
    """
    batch = built.batch
    paths = Paths.of(batch)
    returns = paths.per_episode(paths.factor * batch.reward).tolist()
    who = [noise.get(decision, (0, None)) for decision in built.decision_ids.tolist()]
    found, ends = [], [*batch.starts[1:].tolist(), len(batch)]
    for start, end, value in zip(batch.starts.tolist(), ends, returns, strict=True):
        met = set(who[start:end])  # the next step is the next row
        whole = len(met) == 1 and bool(batch.over[end - 1] and not batch.begun[start])
        perturbed = any(key is not None for _, key in met)
        version, key = who[start]
        found.append(Episode(version, key, perturbed, whole, int(built.at[start]), int(built.unit[start]), value))
    return found


def samples(played: list[Episode], generations: dict[int, int], block_s: float) -> Samples:
    """The mean return of every perturbed copy, over its whole episodes, each less the mean of its version and block.

    Args:
        generations: of the versions that count.
        block_s: see `init`; 0: nothing is taken away.
    """
    mine = [one for one in played if one.perturbed and one.version in generations]
    whole: list[tuple[int, int, int, float]] = []  # generation, key, block, return
    for one in mine:
        if one.whole and one.key is not None:
            block = int(one.at // (block_s * 1e6)) if block_s else 0
            whole.append((generations[one.version], one.key, block, one.value))
    copies: dict[tuple[int, int], list[float]] = {}
    means = _means(whole) if block_s else {}
    for generation, key, block, value in whole:
        copies.setdefault((generation, key), []).append(value - means.get((generation, block), 0.0))
    ordered = sorted(copies)
    return Samples(
        generation=tuple(generation for generation, _ in ordered),
        key=tuple(key for _, key in ordered),
        reward=tuple(float(np.mean(np.sort(copies[copy]))) for copy in ordered),
        episodes=len(whole),
        open=len(mine) - len(whole),
    )


def _means(whole: list[tuple[int, int, int, float]]) -> dict[tuple[int, int], float]:
    """Generation and block -> mean return of its episodes."""
    found: dict[tuple[int, int], list[float]] = {}
    for generation, _, block, value in whole:
        found.setdefault((generation, block), []).append(value)
    return {place: float(np.mean(np.sort(values))) for place, values in found.items()}


def noise_of(project: Project, name: str, since: int, as_of: int) -> dict[str, tuple[int, int | None]]:
    """Decision -> version, and key of the copy that made it, in a window."""
    files = log.files(project.log_directory, name, since, as_of).decisions
    if not files:
        return {}
    with opened(project) as tables:
        tables.view("es_decisions", files)
        columns = tables.query('SELECT id, version, noise FROM es_decisions ORDER BY "at" DESC, id')
    rows = zip(columns["id"].tolist(), columns["version"].tolist(), columns["noise"].tolist(), strict=True)
    return {decision: (int(version), None if key is None else int(key)) for decision, version, key in rows}
