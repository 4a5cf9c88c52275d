"""Perturbed copies of a version beside the version itself: which unit meets which, and their decisions. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from steersman.core.decision import Decision, Problem, uniform_draw
from steersman.core.features import Encoder, Raw
from steersman.core.version import Version
from steersman.serve.asking import Request
from steersman.serve.decide import Encoded, Score, decide, encode, same_bits, score_alone, score_rows

Array = np.ndarray
Crowd = Callable[[Sequence[int], Raw, Raw, Array], Array]
"""Copies in one run: the key of each row [N], then what a graph takes -> scores [N, K]."""


class Own(Protocol):
    """Who keeps the key of every running episode."""

    def keys(self, requests: Sequence[Request], now: int) -> list[int]:
        """The key of the episode that each request belongs to, which may begin with it."""
        ...

    def ended(self, decisions: Iterable[str]) -> None:
        """Episodes are over of which these are the last decisions."""
        ...


@dataclass(frozen=True, eq=False)
class Perturbing:
    """The perturbed copies of a version.

    Attributes:
        seed: of who meets a copy.
        share: of the units that meet one, in [0, 1]; the others meet the version as it is.
        keys: a pool of copies, one of which decides for a unit as long as this version does; or of each episode its
            own.
        run: key -> the graph with the parameters of that copy.
        why_not: why copies may not decide now; empty: they may.
        crowd: many copies at once, each for a row, to the bits that each gives alone; None: they are run one by one.
    """

    seed: str
    share: float
    keys: tuple[int, ...] | Own
    run: Callable[[int], Score]
    why_not: Callable[[], str] = lambda: ""
    crowd: Crowd | None = None

    def met(self, requests: Sequence[Request], now: int) -> list[int | None]:
        """The key of the copy that decides each request; None: the version itself does."""
        if self.why_not():
            return [None] * len(requests)
        draws = [uniform_draw(self.seed, request.unit) for request in requests]
        if isinstance(self.keys, tuple):
            pool = self.keys
            return [pool[int(draw / self.share * len(pool))] if draw < self.share else None for draw in draws]
        own = [request for request, draw in zip(requests, draws, strict=True) if draw < self.share]
        keys = iter(self.keys.keys(own, now) if own else ())
        return [next(keys) if draw < self.share else None for draw in draws]

    def ended(self, decisions: Sequence[str]) -> None:
        """The client said that these were the last decisions of their episodes."""
        if not isinstance(self.keys, tuple):
            self.keys.ended(decisions)


def checked(perturbing: Perturbing, encoder: Encoder, names: Sequence[str], together: bool) -> Perturbing:
    """With its crowd only where a version's rows may be run together, and copies gave random rows the same bits."""
    crowd, keys = perturbing.crowd, range(64)
    if crowd is not None and not (
        together
        and same_bits(
            encoder, names, [perturbing.run(key) for key in keys], lambda some: functools.partial(crowd, keys[some])
        )
    ):
        return replace(perturbing, crowd=None)
    return perturbing


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
    encoded = encode(version.encoder, requests)
    if perturbing is None:
        scores = score_rows(run, encoded, together)
        return decide(problem, version, requests, scores, encoded.mask, now), scores
    keys = perturbing.met(requests, now)
    scores = _scored(perturbing, run, keys, encoded, together)
    return decide(problem, version, requests, scores, encoded.mask, now, keys), scores


def _scored(perturbing: Perturbing, run: Score, keys: Sequence[int | None], encoded: Encoded, together: bool) -> Array:
    """[N, K, ...]: the scores of each row by its own copy, as that copy gives them alone."""
    members: dict[int | None, list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    found: list[tuple[list[int], Array]] = []

    def at_once(rows: list[int], run: Score) -> None:
        some = encoded.take(rows) if len(rows) < len(keys) else encoded
        found.append((rows, run(some.context, some.candidates, some.ids)))

    if together:
        if None in members:
            at_once(members.pop(None), run)
        perturbed = [row for row, key in enumerate(keys) if key is not None]
        if perturbing.crowd and len(members) > 1:
            members.clear()
            at_once(perturbed, functools.partial(perturbing.crowd, [key for key in keys if key is not None]))
        for key in [key for key, rows in members.items() if key is not None and len(rows) > 1]:
            at_once(members.pop(key), perturbing.run(key))
    if members:
        rows = sorted(row for rows in members.values() for row in rows)
        runs = {key: run if key is None else perturbing.run(key) for key in members}
        some = encoded.take(rows) if found else encoded
        found.append((rows, score_alone([runs[keys[row]] for row in rows], some)))
    if len(found) == 1:  # all rows, in their order
        return found[0][1]
    scores = np.zeros((len(keys), *found[0][1].shape[1:]), dtype=np.float32)
    for rows, score in found:
        scores[rows] = score
    return scores
