"""What the log says of the perturbed copies of a version: the return of each, and what they cost."""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from steersman import log, timeline
from steersman.config import Project
from steersman.core.batch import Batch
from steersman.flow.logs import opened
from steersman.flow.perturbing import Guard

Array = np.ndarray

FEW = 30
"""Whole episodes of the copies, and of the version itself, before what they earn is compared."""


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


def samples(
    built: timeline.Built, noise: dict[str, tuple[int, int | None]], generations: dict[int, int], block_s: float
) -> Samples:
    """The mean return of every perturbed copy, over its whole episodes, each less the mean of its version and block.

    Args:
        noise: decision -> version, and key of the copy that made it.
        generations: of the versions that count.
        block_s: see `init`; 0: nothing is taken away.
    """
    batch = built.batch
    version, key, perturbed = _who(built, noise)
    returns, whole = _returns(batch)
    episodes: list[tuple[int, int, int, float]] = []  # generation, key, block, return
    left, ends = 0, [*batch.starts[1:].tolist(), len(batch)]
    for start, end in zip(batch.starts.tolist(), ends, strict=True):
        rows = slice(start, end)  # the next step is the next row
        if not perturbed[rows].any() or version[start] not in generations:
            continue
        same = perturbed[rows].all() and np.ptp(version[rows]) == 0 and (key[rows] == key[start]).all()
        if not (same and whole[start]):
            left += 1
            continue
        block = int(built.at[start] // (block_s * 1e6)) if block_s else 0
        episodes.append((generations[int(version[start])], int(key[start]), block, float(returns[start])))
    copies: dict[tuple[int, int], list[float]] = {}
    means = _means(episodes) if block_s else {}
    for generation, one, block, value in episodes:
        copies.setdefault((generation, one), []).append(value - means.get((generation, block), 0.0))
    ordered = sorted(copies)
    return Samples(
        generation=tuple(generation for generation, _ in ordered),
        key=tuple(one for _, one in ordered),
        reward=tuple(float(np.mean(np.sort(copies[one]))) for one in ordered),
        episodes=sum(map(len, copies.values())),
        open=left,
    )


def _who(built: timeline.Built, noise: dict[str, tuple[int, int | None]]) -> tuple[Array, Array, Array]:
    """[N] i64 the version of each row, [N] u64 the key of its copy, [N] bool whether a copy made it."""
    who = [noise.get(decision, (0, None)) for decision in built.decision_ids.tolist()]
    version = np.array([one for one, _ in who], dtype=np.int64)
    key = np.array([one or 0 for _, one in who], dtype=np.uint64)
    return version, key, np.array([one is not None for _, one in who], dtype=bool)


def guard(built: timeline.Built, noise: dict[str, tuple[int, int | None]], number: int) -> Guard | None:
    """What the copies of a version earn, less what it earns itself; None: fewer than `FEW` episodes of either."""
    batch = built.batch
    version, _, perturbed = _who(built, noise)
    returns, whole = _returns(batch)
    of_copies: list[float] = []
    of_clean: list[float] = []
    for start, end in zip(batch.starts.tolist(), [*batch.starts[1:].tolist(), len(batch)], strict=True):
        rows = slice(start, end)
        if whole[start] and (version[rows] == number).all() and (perturbed[rows] == perturbed[start]).all():
            (of_copies if perturbed[start] else of_clean).append(float(returns[start]))
    if min(len(of_copies), len(of_clean)) < FEW:
        return None
    difference = float(np.mean(of_copies) - np.mean(of_clean))
    clean = float(np.mean(of_clean))
    wide = 1.96 * math.sqrt(np.var(of_copies, ddof=1) / len(of_copies) + np.var(of_clean, ddof=1) / len(of_clean))
    return Guard(difference, difference - wide, difference + wide, clean, len(of_copies), len(of_clean))


def _means(episodes: list[tuple[int, int, int, float]]) -> dict[tuple[int, int], float]:
    """Generation and block -> mean return of its episodes."""
    found: dict[tuple[int, int], list[float]] = {}
    for generation, _, block, value in episodes:
        found.setdefault((generation, block), []).append(value)
    return {place: float(np.mean(np.sort(values))) for place, values in found.items()}


def _returns(batch: Batch) -> tuple[Array, Array]:
    """[N] f64, the discounted sum of rewards from a row on; [N] bool, whether the whole episode was seen."""
    returns, whole = batch.reward.astype(np.float64).copy(), batch.over & ~batch.begun
    for row in range(len(batch) - 1, -1, -1):  # the next step is the next row
        if batch.next[row] >= 0:
            returns[row] += batch.discount[row] * returns[batch.next[row]]
            whole[row] = whole[batch.next[row]] and not batch.begun[row]
    return returns, whole


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
