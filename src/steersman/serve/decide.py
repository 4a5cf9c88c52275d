"""From a request to a Decision, and from a Decision back to its action: pure, the same bits every time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from steersman.core.decision import (
    MAX_ID,
    Candidate,
    Decision,
    Ends,
    FieldType,
    Numbers,
    One,
    Outcome,
    Problem,
    Value,
    candidate_ids,
    check_fields,
    check_id,
    decoder,
    uniform_draw,
    uniform_draws,
)
from steersman.core.errors import ConfigError, DataError, Error, did_you_mean
from steersman.core.features import NO_TEXT, Encoder, Raw, random_raw
from steersman.core.policy import over_candidates, over_numbers
from steersman.core.version import Version

Array = np.ndarray
Score = Callable[[Raw, Raw, Array], Array]
"""The graph: context [N, ...], candidates [N, K, ...], ids [N, K] -> scores [N, K] f32."""

Instant = Annotated[int, Meta(ge=0, le=2**63 - 1)]
MAX_CANDIDATES = 1000
MAX_OUTCOMES = 1000
T = TypeVar("T")


class _Offered(Candidate, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A candidate on the wire: a misspelt `features` is refused, not dropped."""


class _DecideBody(Struct, frozen=True, forbid_unknown_fields=True):
    unit: str
    context: dict[str, Value] = {}
    candidates: tuple[_Offered, ...] | None = None
    id: str | None = None
    step: Instant | None = None
    deferred: bool = False


class _OutcomeBody(Struct, frozen=True, forbid_unknown_fields=True):
    decision: str
    metrics: dict[str, float] = {}
    ends: Ends | None = None
    id: str | None = None
    at: Instant | None = None
    activates: bool = False


class Request(Struct, frozen=True):
    """A decide request that was checked: what is left to fail is not the client's doing.

    Attributes:
        id: of the decision to be; the client's own, or a new one.
        unit, context, step: as in Decision.
        candidates: at least one; all named actions in sorted order if the client sent none.
        chosen: the id is the client's own.
        deferred: as in Decision.
    """

    id: str
    unit: str
    context: dict[str, Value]
    candidates: tuple[Candidate, ...]
    step: int | None = None
    chosen: bool = False
    deferred: bool = False


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


def reader(problem: Problem, max_candidates: int = MAX_CANDIDATES) -> Callable[[bytes, Callable[[], str]], Request]:
    """A function from a body (JSON bytes) and a source of new ids to a checked Request.

    That function raises DataError for whatever does not fit the problem.

    Raises:
        ConfigError: the problem's actions are neither one out of named or given candidates nor numbers.
    """
    if not isinstance(problem.actions, One | Numbers):
        kind = type(problem.actions).__name__.lower()
        raise ConfigError(
            f"{problem.name}: actions of kind {kind} cannot be served",
            hint="serve kind one or numbers",
            field="actions.kind",
        )
    decode = decoder(_DecideBody)
    decode_numbers = msgspec.json.Decoder(_body_of_numbers(problem)).decode
    names = frozenset(() if isinstance(problem.actions, Numbers) else problem.actions.names)
    everything = tuple(_Offered(name) for name in sorted(names))
    vector = isinstance(problem.actions, Numbers)
    fits_context = _checker(problem.context)
    fits_candidate = _checker(problem.candidate)

    def read(body: bytes, new_id: Callable[[], str]) -> Request:
        try:
            wire, typed = decode_numbers(body), True
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            wire, typed = _explained(decode, body, _DECIDE_FIELDS), False  # for an error that names the field
        check_id("unit", wire.unit)
        if wire.id is not None:
            check_id("id", wire.id)
        if not fits_context(wire.context, typed):
            _check_fields(wire.context, problem.context, "context")
        if vector and wire.candidates is not None:
            raise DataError(
                "the actions are numbers: there are no candidates", hint="leave them out", field="candidates"
            )
        if vector or (wire.candidates is None and names):
            candidates = everything
        else:
            candidates = wire.candidates or ()
            _check_candidates(candidates, names, max_candidates)
            for i, candidate in enumerate(candidates):
                if not fits_candidate(candidate.features, typed):
                    _check_fields(candidate.features, problem.candidate, f"candidates[{i}].features")
        chosen = wire.id is not None
        return Request(wire.id or new_id(), wire.unit, wire.context, candidates, wire.step, chosen, wire.deferred)

    return read


def read_outcomes(
    body: bytes, new_id: Callable[[], str], now: Callable[[], int], limit: int = MAX_OUTCOMES
) -> list[Outcome]:
    """The outcomes in a body that holds one object or an array of them; absent ids and times are filled.

    Raises:
        DataError: an outcome breaks a law of its noun; `field` starts with its place in the array.
    """
    many = body[:64].lstrip()[:1] == b"["
    decode = _decode_outcomes if many else lambda body: [_decode_outcome(body)]
    wires = _explained(decode, body, _OUTCOME_FIELDS)
    if not 0 < len(wires) <= limit:
        raise DataError(f"{len(wires)} outcomes in one body, must be 1 to {limit}", hint="send them in several bodies")
    outcomes = []
    for i, wire in enumerate(wires):
        try:
            outcomes.append(
                Outcome(
                    id=wire.id if wire.id is not None else new_id(),
                    decision=wire.decision,
                    at=wire.at if wire.at is not None else now(),
                    metrics=wire.metrics,
                    ends=wire.ends,
                    activates=wire.activates,
                )
            )
        except DataError as error:
            if not many:
                raise
            raise DataError(f"[{i}]: {error.message}", hint=error.hint, field=f"[{i}].{error.field}") from None
    return outcomes


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


def _check_candidates(candidates: tuple[Candidate, ...], names: frozenset[str], limit: int) -> None:
    if not 0 < len(candidates) <= limit:
        raise DataError(
            f"{len(candidates)} candidates, must be 1 to {limit}",
            hint="send the candidates to choose from" if not candidates else "narrow them down first",
            field="candidates",
        )
    ids = candidate_ids(candidates)
    if not names or ids <= names:
        return
    for i, candidate in enumerate(candidates):
        if candidate.id not in names:
            raise DataError(
                f"candidates[{i}].id {candidate.id!r} is not an action of this problem",
                hint=did_you_mean(candidate.id, names),
                field=f"candidates[{i}].id",
            )


def _numbers_only(fields: Mapping[str, FieldType]) -> bool:
    return set(fields.values()) == {"number"}


def _body_of_numbers(problem: Problem) -> type[Any]:
    """_DecideBody, but where all declared fields are numbers the decoder lets only numbers and null pass."""
    numbers = dict[str, float | None]
    context = numbers if _numbers_only(problem.context) else dict[str, Value]
    features = numbers if _numbers_only(problem.candidate) else dict[str, Value]
    offered = msgspec.defstruct("Offered", [("features", features, {})], bases=(_Offered,), frozen=True)
    kinds: list[tuple[str, Any, Any]] = [("context", context, {}), ("candidates", tuple[offered, ...] | None, None)]  # type: ignore[valid-type]
    return msgspec.defstruct("Body", kinds, bases=(_DecideBody,), frozen=True)


def _checker(fields: Mapping[str, FieldType]) -> Callable[[Mapping[str, Value], bool], bool]:
    """A quick answer to whether a row fits the fields; False: look closer."""
    names = fields.keys()
    numbers_only = _numbers_only(fields)
    if not fields:
        return lambda row, typed: True
    return lambda row, typed: typed and numbers_only and row.keys() <= names


def _check_fields(row: Mapping[str, Value], fields: Mapping[str, FieldType], where: str) -> None:
    for name in row:
        if len(name) > MAX_ID:  # a hint is a search over the letters of the name
            raise DataError(f"{where} has a field with a name of {len(name)} characters", field=where)
    check_fields(row, fields, where)


_decode_outcome = decoder(_OutcomeBody)
_decode_outcomes = decoder(list[_OutcomeBody])
_NAMED = re.compile(r"(unknown|missing required) field `(.{0,200})`")
_DECIDE_FIELDS = {"": _DecideBody.__struct_fields__, "candidates": _Offered.__struct_fields__}
_OUTCOME_FIELDS = {"": _OutcomeBody.__struct_fields__}


def _explained(decode: Callable[[bytes], T], body: bytes, known: Mapping[str, Iterable[str]]) -> T:
    """Decode; an error tells the field that it names, and what may have been meant."""
    try:
        return decode(body)
    except DataError as error:
        field = error.field.removeprefix("$")
        named = _NAMED.search(error.message)
        if not named:
            raise DataError(error.message, hint=error.hint, field=field) from None
        group = field.removesuffix(named[2]).partition("[")[0]
        hint = did_you_mean(named[2], known.get(group, ())) if named[1] == "unknown" else f"send {named[2]}"
        raise DataError(error.message, hint=hint, field=field) from None
