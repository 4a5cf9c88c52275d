"""Live versions and micro-batches: what stands between bytes on a socket and a durable Decision."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from steersman.core.decision import MAX_ID, Decision, Problem
from steersman.core.errors import ConflictError, Error, NotFoundError, OverloadedError, did_you_mean
from steersman.core.version import Version
from steersman.serve.asking import Request, read_outcomes
from steersman.serve.decide import Array, answer_to, probabilities_of
from steersman.serve.live import MAX_TEXT, Counts, Limits, Live, error_parts
from steersman.serve.shadow import Shadow
from steersman.serve.versions import Loaded, Route, Versions, Wanted, decisions_of

DECISION = b"D"
OUTCOME = b"O"
WRITE_BYTES = 1 << 22

Reply = Callable[[int, bytes], None]
"""Takes an HTTP status and a JSON body. Called once, on the loop's thread."""

Form = Callable[[Decision, list[float]], "bytes | Next"]
"""A decision and the probability of each of its candidates to the answer, for who wants more than ours; or to what has
to be decided next, before there is one. It may be asked twice."""

Done = Callable[[Error | None], None]
Record = Callable[[Sequence[tuple[bytes, bytes]], Done], None]
Soon = Callable[..., object]
_to_json = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Remembered:
    """A decision under an id that the client chose: its answer, or who else waits for it."""

    key: tuple[str, str]
    digest: bytes
    answer: bytes = b""
    waiting: list[Reply] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Next:
    """A further decide request that belongs to one that was just decided: all are written down together, or none is."""

    body: bytes
    form: Form


@dataclass(slots=True)
class _Asking:
    """A request; `before`: records of those that led to it."""

    request: Request
    body: bytes
    reply: Reply
    remembered: _Remembered | None
    shadow: Loaded | None
    form: Form | None = None
    apprentice: bool = False
    before: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class _Written:
    """An answer and the records that it waits for: decisions, or outcomes, some of which end episodes."""

    reply: Reply
    answer: bytes
    records: list[tuple[bytes, bytes]]
    remembered: _Remembered | None = None
    ended: tuple[str, ...] = ()


class Plane:
    """Answers decide and outcome requests; an answer leaves when its record is where `record` promised.

    All requests that arrive in one turn of the event loop are decided, and written down, together. Only `swap`
    and `follow` may be called from another thread than the loop's.

    Args:
        load: (name, number) -> Live; may block; whatever it raises leaves the old version serving.
        record: takes (kind, JSON) records and says on any thread when all are durable, or that none is.
        now: microseconds UTC.
        new_id: an id that is unique for ever.
        durability: what `record` promises, for the status.
        shadow: what versions in the shadow do; None: they do nothing.
    """

    def __init__(
        self,
        load: Callable[[str, int], Live],
        record: Record,
        *,
        now: Callable[[], int],
        new_id: Callable[[], str],
        durability: str = "unknown",
        limits: Limits | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self.counts = Counts()
        self._record = record
        self._now = now
        self._new_id = new_id
        self._durability = durability
        self._limits = limits or Limits()
        self._began = now()
        self.log_error = ""
        self._shadow = shadow
        self._versions = Versions(load, now=now, counts=self.counts, candidates=self._limits.candidates)
        self._asked: dict[Loaded, list[_Asking]] = {}
        self._written: list[_Written] = []
        self._turning = False
        self._remembered: OrderedDict[tuple[str, str], _Remembered] = OrderedDict()

    def attach(self, call_soon: Soon, call_soon_threadsafe: Soon) -> None:
        """Tell the plane its event loop; the first turn may begin."""
        self._soon = call_soon
        self._soon_threadsafe = call_soon_threadsafe

    # -- versions ----------------------------------------------------------------------------------------------

    def swap(self, name: str, number: int) -> None:
        """Load a version, warm it up, then let it decide all. Requests that began on the old one end on it.

        Raises:
            Error: what `load` raised, or the version cannot be served; the old one goes on.
        """
        self._versions.swap(name, number)

    def follow(self, wanted: Callable[[], Wanted], at_once: bool = False) -> None:
        """Let the wanted versions of every policy decide. What fails is in `status`, and tried again ever later.

        Args:
            wanted: policy -> the version that decides, or the rollout that says which one does; a policy that is no
                longer wanted keeps serving.
            at_once: try now what failed before.
        """
        self._versions.follow(wanted, at_once)

    def recorded(self) -> dict[str, list[bytes]]:
        """Of every policy some of the last bodies that were answered."""
        return self._versions.recorded()

    def recall(self, bodies: Mapping[str, Iterable[bytes]]) -> None:
        """Warm up with bodies that were answered before this plane began; before it loads anything."""
        self._versions.recall(bodies)

    @property
    def ready(self) -> bool:
        """Whether every wanted policy has a version that decides."""
        return self._versions.ready

    @property
    def unused(self) -> bool:
        """Whether no policy was ever wanted or served here."""
        return not self._versions.names

    def status(self) -> dict[str, Any]:
        """Versions, loading errors, the log and counts, ready for JSON."""
        return {
            "ready": self.ready,
            "since": self._began,
            "error": error_parts(self._versions.lost) if self._versions.lost else None,
            "policies": self._versions.status(),
            "shadow": self._shadow.status() if self._shadow else None,
            "log": {"durability": self._durability, "error": self.log_error},
            "counts": vars(self.counts),
        }

    # -- requests ----------------------------------------------------------------------------------------------

    def decide(
        self,
        name: str,
        body: bytes,
        reply: Reply,
        *,
        form: Form | None = None,
        apprentice: bool = False,
        event: tuple[str, bytes] | None = None,
    ) -> None:
        """Answer a decide request, at the earliest when this turn of the loop ends.

        Args:
            form: makes another answer than ours; for actions that are candidates.
            apprentice: take the first candidate, with certainty, and count how the policy agrees. The decision is
                the product's own: its version is 0.
            event: id and body of the client's request, if it stands for several decisions.
        """
        route = self._versions.routes.get(name)
        if route is None:
            self._refuse(reply, self._no_policy(name))
            return
        try:
            request = route.champion.read(body, self._new_id)
        except Error as error:
            self._refuse(reply, error)
            return
        remembered = None
        if request.chosen:
            id, whole = event or (request.id, body)
            remembered = self._recall((name, id), whole, reply)
            if remembered is None:
                return
        self._ask(route, _Asking(request, body, reply, remembered, route.shadow, form, apprentice))

    def _ask(self, route: Route, asking: _Asking) -> None:
        self._asked.setdefault(route.of(asking.request.unit), []).append(asking)
        self._turn()

    def _go_on(self, name: str, asking: _Asking, record: bytes, further: Next) -> None:
        """Ask for the next decision of a request that is not answered by one, in the next turn."""
        route = self._versions.routes[name]  # what once decides is followed by another, never by nothing
        try:
            request = route.champion.read(further.body, self._new_id)
        except Error as error:
            self._forget(asking.remembered, error)
            self._refuse(asking.reply, error)
            return
        before = (*asking.before, (DECISION, record))
        shadow, form = route.shadow, further.form
        self._ask(route, replace(asking, request=request, body=further.body, shadow=shadow, form=form, before=before))

    def outcome(self, body: bytes, reply: Reply) -> None:
        """Write down an outcome, or an array of them: all or none."""
        try:
            outcomes = read_outcomes(body, self._new_id, self._now, self._limits.outcomes)
        except Error as error:
            self._refuse(reply, error)
            return
        answer = _to_json({"accepted": len(outcomes), "ids": [outcome.id for outcome in outcomes]})
        ended = tuple(outcome.decision for outcome in outcomes if outcome.ends)
        records = [(OUTCOME, _to_json(outcome)) for outcome in outcomes]
        self._written.append(_Written(reply, answer, records, ended=ended))
        self._turn()

    @property
    def problems(self) -> dict[str, Problem]:
        """Problem of every policy that decides."""
        return {name: route.champion.live.problem for name, route in self._versions.routes.items()}

    def new_id(self) -> str:
        """An id that is unique for ever."""
        return self._new_id()

    def _no_policy(self, name: str) -> Error:
        if name in self._versions.names:
            return OverloadedError(f"policy {name} has no version that decides yet", hint="see /v1/status for why")
        known = sorted(self._versions.routes)
        return NotFoundError(f"no policy {name[:MAX_ID]!r} is served", hint=did_you_mean(name[:MAX_ID], known))

    def _recall(self, key: tuple[str, str], body: bytes, reply: Reply) -> _Remembered | None:
        """A new place in the memory; or None: the id was used before, and the reply is taken care of."""
        digest = hashlib.blake2b(body, digest_size=16).digest()
        seen = self._remembered.get(key)
        if seen is None:
            self._remembered[key] = new = _Remembered(key, digest)
            if len(self._remembered) > self._limits.remembered:
                self._remembered.popitem(last=False)
            return new
        if seen.digest != digest:
            hint = "an id belongs to one request for ever; leave it out and one is made"
            self._refuse(reply, ConflictError(f"id {key[1]!r} belongs to another request", hint=hint, field="id"))
        elif seen.answer:
            reply(200, seen.answer)
        else:
            seen.waiting.append(reply)
        return None

    def _turn(self) -> None:
        if not self._turning:
            self._turning = True
            self._soon(self._end_turn)

    def _end_turn(self) -> None:
        """Decide and write down whatever this turn of the loop brought."""
        self._turning = False
        asked, self._asked = self._asked, {}
        written, self._written = self._written, []
        for serving, askings in asked.items():
            for group in _groups(askings, self._limits):
                written += self._decided(serving, group)
        size = start = 0
        for i, one in enumerate(written, 1):
            size += sum(len(body) for _, body in one.records)
            if size > WRITE_BYTES or i == len(written):
                self._write(written[start:i])
                size, start = 0, i

    def _decided(self, serving: Loaded, group: list[_Asking]) -> Iterator[_Written]:
        """Decide a group in one run of the graph; whoever cannot be decided is told so, alone."""
        try:
            self.counts.batches += 1
            requests = [asking.request for asking in group]
            decisions, scores = decisions_of(serving, requests, self._now(), serving.live.perturbing)
            made = [
                _formed(serving.live.version, asking, decision, row, self.counts)
                for asking, decision, row in zip(group, decisions, scores, strict=True)
            ]
        except Exception as error:  # a graph library raises what it likes; every request must get an answer
            if len(group) > 1:
                half = len(group) // 2
                yield from self._decided(serving, group[:half])
                yield from self._decided(serving, group[half:])
                return
            self._forget(group[0].remembered, error)
            self._refuse(group[0].reply, error)
            return
        self._versions.remember(serving, group[0].body)
        if self._shadow:
            pairs = zip(group, decisions, strict=True)
            self._shadow.offer([(one.shadow, one.request, was) for one, was in pairs if one.shadow])
        for asking, (record, answer) in zip(group, made, strict=True):
            if isinstance(answer, Next):
                self._go_on(serving.live.version.name, asking, record, answer)
            else:
                yield _Written(asking.reply, answer, [*asking.before, (DECISION, record)], asking.remembered)

    def _write(self, written: list[_Written]) -> None:
        def done(error: Error | None) -> None:
            # After the time to drain is over the loop is closed, and nobody is left to tell.
            with contextlib.suppress(RuntimeError):
                self._soon_threadsafe(self._settle, written, error)

        try:
            self._record([record for one in written for record in one.records], done)
        except Exception as error:  # whatever happens to the log, nobody may wait for ever
            self._settle(written, error)

    def _settle(self, written: list[_Written], error: Exception | None) -> None:
        """The records are durable, or they are not: tell everybody."""
        if error is not None:
            self.log_error = str(error)[:MAX_TEXT]
            hint = "send it again; with an id of your own it counts once"
            for one in written:
                failure = OverloadedError(f"not written to the log: {error}", hint=hint)
                self._forget(one.remembered, failure)
                self._refuse(one.reply, failure)
            return
        self.log_error = ""
        for one in written:
            if one.records[0][0] == DECISION:
                self.counts.decisions += len(one.records)
            else:
                self.counts.outcomes += len(one.records)
            if one.ended:
                self._versions.ended(one.ended)
            one.reply(200, one.answer)
            if one.remembered:
                one.remembered.answer = one.answer
                for reply in one.remembered.waiting:
                    reply(200, one.answer)

    def _forget(self, remembered: _Remembered | None, error: Exception) -> None:
        if remembered:
            if self._remembered.get(remembered.key) is remembered:
                del self._remembered[remembered.key]
            for reply in remembered.waiting:
                self._refuse(reply, error)

    def _refuse(self, reply: Reply, error: Exception) -> None:
        if not isinstance(error, Error):
            error = Error(f"{type(error).__name__}: {error}", hint="this is a defect of the version or the server")
        if error.http_status < 500:
            self.counts.refused += 1
        else:
            self.counts.failed += 1
        reply(error.http_status, error_body(error))


def error_body(error: Error) -> bytes:
    """What a client is told of an error: JSON with `error`, `hint` and `field`, always all three."""
    return _to_json(error_parts(error))


def time_ordered_id(now: int, entropy: bytes) -> str:
    """An id that sorts by time: 14 hex digits of microseconds UTC, then the entropy in hex.

    >>> time_ordered_id(1700000000000000, b"12345678")
    '060a24181e40003132333435363738'
    """
    return f"{now:014x}{entropy.hex()}"


def _formed(
    version: Version, asking: _Asking, decision: Decision, scores: Array, counts: Counts
) -> tuple[bytes, bytes | Next]:
    if asking.form is None:
        return _to_json(decision), _to_json(answer_to(decision))
    probabilities = probabilities_of(version, scores[: len(decision.candidates)])
    if asking.apprentice:
        counts.apprentice += 1
        counts.agreement += probabilities[0]
        first = decision.candidates[0].id
        decision = msgspec.structs.replace(decision, action=first, propensity=1.0, version=0, noise=None)
    return _to_json(decision), asking.form(decision, probabilities)


def _groups(askings: list[_Asking], limits: Limits) -> Iterator[list[_Asking]]:
    """Cut into runs of the graph; padding at most doubles the cells of a run."""
    askings.sort(key=lambda asking: len(asking.request.candidates))
    start = 0
    for i, asking in enumerate(askings):
        width = len(asking.request.candidates)
        rows = i - start
        narrowest = len(askings[start].request.candidates)
        if rows and (rows == limits.rows or (rows + 1) * width > limits.cells or width > 2 * narrowest):
            yield askings[start:i]
            start = i
    yield askings[start:]
