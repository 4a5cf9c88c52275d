"""From a request to a Decision, and from a Decision back to its action: pure, the same bits every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct

from steersman.core.decision import (
    Decision,
    Problem,
    uniform_draw,
    uniform_draws,
)
from steersman.core.errors import DataError, Error
from steersman.core.features import NO_TEXT, Encoder, Raw, random_raw
from steersman.core.policy import over_candidates, over_numbers
from steersman.core.version import Version
from steersman.serve.asking import Request

Array = np.ndarray
Score = Callable[[Raw, Raw, Array], Array]
"""The graph: context [N, ...], candidates [N, K, ...], ids [N, K] -> scores [N, K] f32."""


class Answer(Struct, frozen=True):
    """What the client is told: enough to act, to send the outcome, and to log it a second time."""

    id: str
    action: str | tuple[str | float, ...]
    propensity: float
    version: int
    policy: str


@dataclass(frozen=True)
class Encoded:
    """N requests as the arrays that the graph takes; K is the largest number of candidates among them.

    Attributes:
        context: [N, ...].
        candidates: [N, K, ...]; a row's own candidates stand first.
        ids: [N, K] object (str); NO_TEXT where padded.
        mask: [N, K] bool, True where there is a candidate.
    """

    context: Raw
    candidates: Raw
    ids: Array
    mask: Array

    def take(self, rows: Sequence[int]) -> Encoded:
        """Some of the requests, by their places."""
        return Encoded(self.context.take(rows), self.candidates.take(rows), self.ids[rows], self.mask[rows])


def encode(encoder: Encoder, requests: Sequence[Request]) -> Encoded:
    """Requests to arrays.

    Raises:
        DataError: a field has another type than the policy learned.
    """
    rows = [request.candidates for request in requests]
    counts = np.array([len(row) for row in rows])
    width = int(counts.max())
    candidates, ids = encoder.raw_candidates(rows, width)
    context = encoder.raw_context([request.context for request in requests])
    return Encoded(context, candidates, ids, np.arange(width) < counts[:, None])


def decide(
    problem: Problem,
    version: Version,
    requests: Sequence[Request],
    scores: Array,
    mask: Array,
    now: int,
    noise: Sequence[int | None] | None = None,
) -> list[Decision]:
    """One Decision a request: probabilities by the version's explorer, the draw by the decision's id.

    A decision does not depend on its neighbours: the same row alone gives the same bits, if its scores do.

    Args:
        scores: [N, K] f32, or draws of them [N, K, M].
        mask: [N, K] bool; a row's candidates stand first, padding after them.
        now: microseconds UTC.
        noise: [N], key of the perturbed copy that gave the scores, or None; None: no copy gave any.
    Raises:
        Error: a score is not finite: the version is broken, not the request.
    """
    keys = noise or [None] * len(requests)
    if version.encoder.numbers is not None:
        actions, propensities = _choose_numbers(problem, version, [request.id for request in requests], scores)
        return [
            _decision(problem, version, request, action, propensity, now, key)
            for request, action, propensity, key in zip(requests, actions, propensities, keys, strict=True)
        ]
    if scores.shape[:2] != mask.shape:
        raise Error(f"{version.name}/{version.number} gave scores {scores.shape} for candidates {mask.shape}")
    places, propensities = _choose(version, [request.id for request in requests], scores, mask)
    return [
        _decision(problem, version, request, request.candidates[place].id, propensity, now, key)
        for request, place, propensity, key in zip(requests, places, propensities, keys, strict=True)
    ]


def _decision(
    problem: Problem,
    version: Version,
    request: Request,
    action: str | tuple[float, ...],
    propensity: float,
    now: int,
    noise: int | None,
) -> Decision:
    return Decision(
        id=request.id,
        problem=problem.name,
        unit=request.unit,
        at=now,
        context=request.context,
        candidates=request.candidates,
        action=action,
        propensity=propensity,
        version=version.number,
        step=request.step,
        noise=noise,
        deferred=request.deferred,
    )


def probabilities_of(version: Version, scores: Array) -> list[float]:
    """Probability of each candidate of one request, the bits that its propensity has.

    Args:
        scores: [K] f32 of its own candidates, or draws of them [K, M].
    """
    row = np.ascontiguousarray(scores)[None]
    mask = np.ones(row.shape[:2], dtype=bool)
    return over_candidates(version.explorer).probabilities(row, mask)[0].tolist()


def answer_to(decision: Decision) -> Answer:
    """What the client is told of a decision."""
    return Answer(decision.id, decision.action, decision.propensity, decision.version, decision.problem)


def score_rows(score: Score, encoded: Encoded, together: bool) -> Array:
    """Scores [N, K] f32 of encoded requests, in one run of the graph or, if not `together`, row by row.

    Of a graph that gives draws of them [N, K, M]. Row by row each request is run at its own K, exactly as `replay`
    does.
    """
    if together:
        return score(encoded.context, encoded.candidates, encoded.ids)
    return score_alone([score] * len(encoded.mask), encoded)


def score_alone(runs: Sequence[Score], encoded: Encoded) -> Array:
    """Scores [N, K] f32 of encoded requests, or [N, K, M], each run alone by its own graph."""
    if not encoded.mask.shape[1]:  # numbers: as many scores as the explorer reads
        rows = [slice(i, i + 1) for i in range(len(encoded.mask))]
        return np.concatenate(
            [
                score(encoded.context.take(row), encoded.candidates.take(row), encoded.ids[row])
                for score, row in zip(runs, rows, strict=True)
            ]
        )
    found = [
        score(
            encoded.context.take(slice(i, i + 1)),
            encoded.candidates.take((slice(i, i + 1), slice(count))),
            encoded.ids[i : i + 1, :count],
        )
        for i, (score, count) in enumerate(zip(runs, encoded.mask.sum(axis=1).tolist(), strict=True))
    ]
    scores = np.zeros((*encoded.mask.shape, *found[0].shape[2:]), dtype=np.float32)
    for row, one in zip(scores, found, strict=True):
        row[: one.shape[1]] = one[0]
    return scores


def replay(
    decision: Decision, problem: Problem, version: Version, score: Score
) -> tuple[str | tuple[str | float, ...], float]:
    """The action and propensity that this version gives for a logged decision: those of the log, bit for bit.

    Equal bits of a softmax need the same onnxruntime and numpy on the same type of processor.

    Args:
        version: the one that decided.
        score: its graph.
    Raises:
        DataError: the decision is of another problem or version.
    """
    if (decision.problem, decision.version) != (version.name, version.number):
        raise DataError(
            f"decision {decision.id} was made by {decision.problem}/{decision.version}, "
            f"not by {version.name}/{version.number}",
            hint="replay a decision with the version that made it",
            field="version",
        )
    request = Request(decision.id, decision.unit, decision.context, decision.candidates, decision.step)
    encoded = encode(version.encoder, [request])
    scores = score(encoded.context, encoded.candidates, encoded.ids)
    [again] = decide(problem, version, [request], scores, encoded.mask, decision.at)
    return again.action, again.propensity


def same_alone(encoder: Encoder, names: Sequence[str], score: Score, rows: int = 64) -> bool:
    """Whether the graph gave random rows the same bits in padded batches as alone.

    No means no. Yes means that its sums do not depend on the shape of a batch, which shows in most rows if they
    do; it does not exclude what shows in one row of a thousand: a function like exp, computed by other
    instructions in the last lanes of an array than before them. It warms the graph up as well.

    Args:
        names: ids of the named actions; empty: candidates of any id.
    """
    return same_bits(encoder, names, [score] * rows, lambda _: score)


def same_bits(
    encoder: Encoder, names: Sequence[str], alone: Sequence[Score], together: Callable[[slice], Score]
) -> bool:
    """The same of N random rows, each scored alone by its own and, some of them, by what scores them together."""
    random, rows = np.random.default_rng(0), len(alone)
    counts = np.full(rows, len(names)) if names else random.integers(1, 13, size=rows)
    counts *= encoder.numbers is None
    width = int(counts.max())
    mask = np.arange(width) < counts[:, None]
    ids = np.full((rows, width), NO_TEXT, dtype=object)
    ids[mask] = [f"{i}" for i in range(int(mask.sum()))] if not names else sorted(names) * rows
    context = random_raw(encoder.context, (rows,), random)
    candidates = random_raw(encoder.candidate, (int(mask.sum()),), random).spread(mask)

    scores = score_alone(alone, Encoded(context, candidates, ids, mask))
    there_is = mask.reshape(*mask.shape, *[1] * (scores.ndim - 2))  # of draws too
    for size in (rows, 2, 3, 5, 7, 16):
        for start in range(0, rows, size):
            some = slice(start, start + size)
            found = together(some)(context.take(some), candidates.take(some), ids[some])
            there = found if encoder.numbers else np.where(there_is[some], found, 0.0)
            if there.tobytes() != scores[some].tobytes():
                return False
    return True


def _choose(version: Version, ids: Sequence[str], scores: Array, mask: Array) -> tuple[list[int], list[float]]:
    """Place [N] and propensity [N] of each row's draw."""
    draws = np.array([uniform_draw(version.seed, id) for id in ids])
    counts = mask.sum(axis=1)
    widths = set(counts.tolist())
    if len(widths) == 1:
        place, propensity = _draw(version, scores[:, : counts[0]], mask[:, : counts[0]], draws)
        return place.tolist(), propensity.tolist()
    place, propensity = np.empty(len(ids), dtype=np.int64), np.empty(len(ids))
    for width in widths:
        # Padding would change the order in which a row is summed, and with it the last bit of its probabilities.
        rows = np.flatnonzero(counts == width)
        place[rows], propensity[rows] = _draw(version, scores[rows, :width], mask[rows, :width], draws[rows])
    return place.tolist(), propensity.tolist()


def _choose_numbers(
    problem: Problem, version: Version, ids: Sequence[str], scores: Array
) -> tuple[list[tuple[float, ...]], list[float]]:
    """Action and density of each row's draw."""
    box, which = version.encoder.numbers, f"{version.name}/{version.number}"
    if box is None or box != problem.actions:
        raise Error(f"{which} decides within {box}, the problem has {problem.actions}", hint="train and publish again")
    uniforms = np.array([uniform_draws(version.seed, id, len(box.low) + 1) for id in ids])[:, None]
    try:
        explorer = over_numbers(version.explorer)
        action = explorer.draw(scores, uniforms, box)[:, 0]
        density = explorer.density(scores, action, box)
    except Error as error:
        hint = error.hint or "roll back to a version whose scores are finite"
        raise Error(f"{which} can not decide: {error.message}", hint=hint) from error
    return [tuple(row) for row in action.tolist()], density.tolist()


def _draw(version: Version, scores: Array, mask: Array, draws: Array) -> tuple[Array, Array]:
    """The draw of core.policy.draw for rows without padding."""
    try:
        probabilities = over_candidates(version.explorer).probabilities(np.ascontiguousarray(scores), mask)
    except DataError as error:
        message = f"{version.name}/{version.number} can not decide: {error.message}"
        raise Error(message, hint="roll back to a version whose scores are finite") from error
    rows, width = probabilities.shape
    place = (np.cumsum(probabilities, axis=1) <= draws[:, None]).sum(axis=1)
    if place.max() == width:  # the sum of a row rounds to a hair below 1
        last = width - 1 - np.argmax(probabilities[:, ::-1] > 0, axis=1)
        place = np.minimum(place, last)
    return place, probabilities[np.arange(rows), place]
