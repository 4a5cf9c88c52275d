"""Records of a segment, decoded as their nouns, checked against the columns, and parted by problem and day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import msgspec
from msgspec import Struct

from steersman.core.decision import Decision, Outcome, Problem, decoder
from steersman.core.errors import DataError
from steersman.log import fields
from steersman.log.manifest import DAY_S, Manifest, Types
from steersman.log.segment import DECISION, OUTCOME, Scan

DAY_US = DAY_S * 1_000_000
"""The year 10000: no later day has a name of ten characters."""

_decode_decision = decoder(Decision)
_decode_outcome = decoder(Outcome)
_encode = msgspec.json.Encoder().encode


class Aside(Struct, frozen=True):
    """A record that was set aside, one line of a file in `aside/`."""

    segment: str
    offset: int
    kind: str
    reason: str
    body: str


class Part(Struct, frozen=True):
    """Rows of one problem and day, in the order of the log.

    Attributes:
        problem: of decisions; empty for outcomes.
        day: since 1970.
        bodies: [rows], a JSON object each.
        first, last: smallest and largest `at`, microseconds UTC.
        extras: names of the columns in `tables.EXTRAS` or `tables.OUTCOME_EXTRAS` that a row needs.
    """

    problem: str
    day: int
    bodies: list[bytes]
    first: int
    last: int
    extras: frozenset[str]


class _Group:
    """Rows of one problem, day and shape: they fit the columns together or not at all."""

    __slots__ = ("at", "bodies", "candidates", "context", "day", "extras", "index", "nulls", "problem", "reason")

    def __init__(self, problem: str, day: int, context: fields.Shape, candidates: frozenset[fields.Shape]) -> None:
        self.problem = problem
        self.day = day
        self.context = context
        self.candidates = candidates
        self.nulls = any("null" in kinds for _, kinds in (context, *candidates))
        self.extras: set[str] = set()
        self.index: list[int] = []
        self.at: list[int] = []
        self.bodies: list[bytes] = []
        self.reason = ""


_NO_FEATURES: frozenset[fields.Shape] = frozenset()


class Rows:
    """The records of a scan, decoded and checked.

    Attributes:
        aside: records that are no Decision and no Outcome or, after `settle`, fit no column.
    """

    def __init__(self, segment: str, found: Scan) -> None:
        self.aside: list[Aside] = []
        self._segment = segment
        self._found = found
        self._decisions: dict[object, _Group] = {}
        self._outcomes: dict[object, _Group] = {}
        decision, outcome = self._decision, self._outcome
        for i, (kind, body) in enumerate(zip(found.kinds, found.bodies, strict=True)):
            try:
                if kind == DECISION:
                    decision(i, _decode_decision(body))
                elif kind == OUTCOME:
                    outcome(i, _decode_outcome(body))
                else:
                    raise DataError(f"record kind {kind!r} is unknown")
            except DataError as error:
                self._put_aside(i, f"{error.field}: {error}" if error.field else str(error))

    def _put_aside(self, i: int, reason: str) -> None:
        kind, body = self._found.kinds[i].decode("latin-1"), self._found.bodies[i].decode(errors="backslashreplace")
        self.aside.append(Aside(self._segment, self._found.offsets[i], kind, reason, body))

    def _decision(self, i: int, decision: Decision) -> None:
        rows = [candidate.features for candidate in decision.candidates if candidate.features]
        candidates = frozenset(map(fields.shape, rows)) if rows else _NO_FEATURES
        key = (decision.problem, decision.at // DAY_US, fields.shape(decision.context), candidates)
        group = self._decisions.get(key)
        if group is None:
            group = self._decisions[key] = _Group(*key)
        plain = not group.nulls and type(decision.action) is str
        group.bodies.append(_encode(decision) if plain else _special(decision, group.extras))
        if decision.deferred:
            group.extras.add("deferred")
        if decision.estimated:
            group.extras.add("estimated")
        if decision.propensities:
            group.extras.add("propensities")
        if decision.first_propensities:
            group.extras.add("first_propensities")
        group.index.append(i)
        group.at.append(decision.at)

    def _outcome(self, i: int, outcome: Outcome) -> None:
        key = (outcome.at // DAY_US, *outcome.metrics)
        group = self._outcomes.get(key)
        if group is None:
            names = tuple(outcome.metrics)
            shape = (names, ("number",) * len(names))
            group = self._outcomes[key] = _Group("", outcome.at // DAY_US, shape, _NO_FEATURES)
        group.bodies.append(_encode(outcome))
        if outcome.activates:
            group.extras.add("activates")
        if outcome.item is not None:
            group.extras.add("item")
        group.index.append(i)
        group.at.append(outcome.at)

    def settle(self, manifest: Manifest, problems: Mapping[str, Problem]) -> Manifest:
        """Give every field its type and set the rows aside that do not fit; the manifest with these types."""
        types = dict(manifest.types)
        for problem in sorted({group.problem for group in self._decisions.values()}):
            groups = [group for group in self._decisions.values() if group.problem == problem]
            types[problem] = _resolve(types.get(problem, Types()), problems.get(problem), groups)
            for group in groups:
                reasons = [fields.refuse(group.context, types[problem].context, "context")]
                reasons += [fields.refuse(row, types[problem].candidate, "candidate") for row in group.candidates]
                group.reason = max(reasons)
        outcomes = self._outcomes.values()
        known: dict[str, fields.Type] = dict.fromkeys(manifest.metrics, "number")
        metrics = fields.resolve(known, {}, _count((group.context, len(group.index)) for group in outcomes))
        for group in outcomes:
            group.reason = fields.refuse(group.context, metrics, "metrics")
        for group in (*self._decisions.values(), *outcomes):
            if group.reason:
                for i in group.index:
                    self._put_aside(i, group.reason)
        return msgspec.structs.replace(manifest, types=types, metrics=tuple(metrics))

    def decisions(self) -> list[Part]:
        """The decisions that fit, after `settle`."""
        return _parts(self._decisions.values())

    def outcomes(self) -> list[Part]:
        """The outcomes that fit, after `settle`."""
        return _parts(self._outcomes.values())


def _parts(groups: Iterable[_Group]) -> list[Part]:
    places: dict[tuple[str, int], list[_Group]] = {}
    for group in groups:
        if not group.reason:
            places.setdefault((group.problem, group.day), []).append(group)
    return [_merge(*place, group) for place, group in places.items()]


def _merge(problem: str, day: int, groups: Sequence[_Group]) -> Part:
    bodies = groups[0].bodies
    if len(groups) > 1:
        indexed = dict(chain.from_iterable(zip(group.index, group.bodies, strict=True) for group in groups))
        bodies = [indexed[i] for i in sorted(indexed)]
    return Part(
        problem,
        day,
        bodies,
        min(min(group.at) for group in groups),
        max(max(group.at) for group in groups),
        frozenset().union(*(group.extras for group in groups)),
    )


def _count(shapes: Iterable[tuple[fields.Shape, int]]) -> Counter[fields.Shape]:
    seen: Counter[fields.Shape] = Counter()
    for shape, count in shapes:
        seen[shape] += count
    return seen


def _resolve(known: Types, problem: Problem | None, groups: Sequence[_Group]) -> Types:
    context = _count((group.context, len(group.index)) for group in groups)
    candidate = _count((row, len(group.index)) for group in groups for row in group.candidates)
    return Types(
        fields.resolve(known.context, problem.context if problem else {}, context),
        fields.resolve(known.candidate, problem.candidate if problem else {}, candidate, reserved="id"),
    )


def _special(decision: Decision, extras: set[str]) -> bytes:
    """A decision whose row needs columns of its own: several actions, or fields that are null on purpose."""
    row = msgspec.to_builtins(decision)
    nulls = [f"context.{name}" for name, value in decision.context.items() if value is None]
    for i, candidate in enumerate(decision.candidates):
        nulls += [f"candidates.{i}.{name}" for name, value in candidate.features.items() if value is None]
    if nulls:
        row["nulls"] = nulls
        extras.add("nulls")
    if isinstance(decision.action, tuple):
        name = "actions" if isinstance(decision.action[0], str) else "numbers"
        row[name] = row.pop("action")
        extras.add(name)
    return _encode(row)
