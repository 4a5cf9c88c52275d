"""Perturbed copies of a version beside the version itself: which unit meets which, and their decisions. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from steersman.core.decision import Decision, Problem, uniform_draw
from steersman.core.version import Version
from steersman.serve.decide import Request, Score, decide, encode, score_rows

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Perturbing:
    """The perturbed copies of a version.

    Attributes:
        seed: of who meets which copy.
        share: of the units that meet one, in [0, 1]; the others meet the version as it is.
        keys: of the copies.
        run: key -> the graph with the parameters of that copy.
        active: whether copies may decide now.
    """

    seed: str
    share: float
    keys: tuple[int, ...]
    run: Callable[[int], Score]
    active: Callable[[], bool] = lambda: True

    def key(self, unit: str) -> int | None:
        """The copy that decides for a unit as long as this version does; None: the version itself."""
        if not self.active():
            return None
        draw = uniform_draw(self.seed, unit)
        return self.keys[int(draw / self.share * len(self.keys))] if draw < self.share else None


def decide_by_copies(
    perturbing: Perturbing | None,
    run: Score,
    problem: Problem,
    version: Version,
    requests: Sequence[Request],
    now: int,
    *,
    together: bool,
) -> tuple[list[Decision], Iterable[Array]]:
    """One Decision a request, each by the copy that its unit meets, with the key of that copy as its noise.

    Args:
        perturbing: None: the version decides for all.
        run: the graph of the version itself.
        together: see `score_rows`.
    Returns:
        the decisions, and the scores of each request: [K, ...], padding after its own candidates.
    """

    def made(run: Score, requests: Sequence[Request]) -> tuple[list[Decision], Iterable[Array]]:
        encoded = encode(version.encoder, requests)
        scores = score_rows(run, encoded, together)
        return decide(problem, version, requests, scores, encoded.mask, now), scores

    if perturbing is None:
        return made(run, requests)
    members: dict[int | None, list[int]] = {}
    for row, request in enumerate(requests):
        members.setdefault(perturbing.key(request.unit), []).append(row)
    found: dict[int, tuple[Decision, Array]] = {}
    for key, rows in members.items():
        decisions, scores = made(run if key is None else perturbing.run(key), [requests[row] for row in rows])
        for row, decision, score in zip(rows, decisions, scores, strict=True):
            found[row] = (decision if key is None else msgspec.structs.replace(decision, noise=key)), score
    ordered = [found[row] for row in range(len(requests))]
    return [decision for decision, _ in ordered], [score for _, score in ordered]
