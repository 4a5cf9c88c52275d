"""Live versions and micro-batches: what stands between bytes on a socket and a durable Decision."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from steersman.core.decision import MAX_ID, Decision, Problem
from steersman.core.errors import ConfigError, ConflictError, Error, NotFoundError, OverloadedError, did_you_mean
from steersman.core.version import Version
from steersman.serve.decide import (
    Array,
    Request,
    answer_to,
    probabilities_of,
    read_outcomes,
    reader,
    same_alone,
)
from steersman.serve.live import Counts, Limits, Live
from steersman.serve.perturbed import decide_by_copies

DECISION = b"D"
OUTCOME = b"O"
MAX_TEXT = 500
WRITE_BYTES = 1 << 22

Reply = Callable[[int, bytes], None]
"""Takes an HTTP status and a JSON body. Called once, on the loop's thread."""

Form = Callable[[Decision, list[float]], bytes]
"""A decision and the probability of each of its candidates to the answer, for who wants more than ours."""

Done = Callable[[Error | None], None]
Record = Callable[[Sequence[tuple[bytes, bytes]], Done], None]
Soon = Callable[..., object]
_to_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, eq=False)
class _Serving:
    """A Live, and what was found out when it was loaded; `together`: a micro-batch is one run of its graph."""

    live: Live
    read: Callable[[bytes, Callable[[], str]], Request]
    together: bool
    since: int


@dataclass
class _Failure:
    """A load that failed, and how many polls to wait before it is tried again."""

    number: int
    error: Error
    tries: int = 1
    wait: int = 1


@dataclass(slots=True)
class _Remembered:
    """A decision under an id that the client chose: its answer, or who else waits for it."""

    key: tuple[str, str]
    digest: bytes
    answer: bytes = b""
    waiting: list[Reply] = field(default_factory=list)


@dataclass(slots=True)
class _Asking:
    request: Request
    reply: Reply
    remembered: _Remembered | None
    form: Form | None = None
    apprentice: bool = False


@dataclass(slots=True)
class _Written:
    """An answer and the records that it waits for: one decision, or outcomes."""

    reply: Reply
    answer: bytes
    records: list[tuple[bytes, bytes]]
    remembered: _Remembered | None = None


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
    ) -> None:
        self.counts = Counts()
        self._load = load
        self._record = record
        self._now = now
        self._new_id = new_id
        self._durability = durability
        self._limits = limits or Limits()
        self._began = now()
        self.log_error = ""
        self._serving: dict[str, _Serving] = {}
        self._wanted: dict[str, int] = {}
        self._lost: Error | None = None
        self._failures: dict[str, _Failure] = {}
        self._swapping = threading.Lock()
        self._asked: dict[_Serving, list[_Asking]] = {}
        self._written: list[_Written] = []
        self._turning = False
        self._remembered: OrderedDict[tuple[str, str], _Remembered] = OrderedDict()

    def attach(self, call_soon: Soon, call_soon_threadsafe: Soon) -> None:
        """Tell the plane its event loop; the first turn may begin."""
        self._soon = call_soon
        self._soon_threadsafe = call_soon_threadsafe

    # -- versions ----------------------------------------------------------------------------------------------

    def swap(self, name: str, number: int) -> None:
        """Load a version, warm it up, then let it decide. Requests that began on the old one end on it.

        Raises:
            Error: what `load` raised, or the version cannot be served; the old one goes on.
        """
        with self._swapping:
            try:
                self._serving = {**self._serving, name: self._prepared(name, number)}
            except Error:
                raise
            except Exception as error:  # a graph library raises what it likes; none of it may stop the old version
                raise Error(f"{name}/{number} did not load: {type(error).__name__}: {error}") from error
            self._failures.pop(name, None)
            self.counts.swaps += 1

    def follow(self, wanted: Callable[[], Mapping[str, int]], at_once: bool = False) -> None:
        """Swap to the wanted version of every policy. What fails is in `status`, and tried again ever later.

        Args:
            wanted: gives policy -> version number; a policy that is no longer wanted keeps serving.
            at_once: try now what failed before.
        """
        try:
            numbers = wanted()
        except Exception as error:  # a store that is away for a while raises what it likes; we serve on
            self._lost = Error(f"which versions are wanted is not known: {type(error).__name__}: {error}")
            return
        self._lost = None
        self._wanted = {**self._wanted, **numbers}
        for name, number in numbers.items():
            serving = self._serving.get(name)
            failure = self._failures.get(name)
            if serving and serving.live.version.number == number:
                self._failures.pop(name, None)
            elif failure and failure.number == number and failure.wait > 0 and not at_once:
                failure.wait -= 1
            else:
                self._try(name, number, failure)

    def _try(self, name: str, number: int, failure: _Failure | None) -> None:
        try:
            self.swap(name, number)
        except Error as error:
            tries = failure.tries + 1 if failure and failure.number == number else 1
            self._failures[name] = _Failure(number, error, tries, wait=min(60, 2 ** min(tries, 6)))

    @property
    def ready(self) -> bool:
        """Whether every wanted policy has a version that decides."""
        return bool(self._serving) and self._wanted.keys() <= self._serving.keys()

    @property
    def unused(self) -> bool:
        """Whether no policy was ever wanted or served here."""
        return not self._serving and not self._wanted

    def status(self) -> dict[str, object]:
        """Versions, loading errors, the log and counts, ready for JSON."""
        return {
            "ready": self.ready,
            "since": self._began,
            "error": error_parts(self._lost) if self._lost else None,
            "policies": {name: self._policy_status(name) for name in sorted({*self._serving, *self._wanted})},
            "log": {"durability": self._durability, "error": self.log_error},
            "counts": vars(self.counts),
        }

    def _policy_status(self, name: str) -> dict[str, object]:
        serving = self._serving.get(name)
        failure = self._failures.get(name)
        version = serving.live.version if serving else None
        return {
            "version": version.number if version else None,
            "digest": version.digest if version else None,
            "since": serving.since if serving else None,
            "together": serving.together if serving else None,
            "wanted": self._wanted.get(name, version.number if version else None),
            "error": {"version": failure.number, "tries": failure.tries, **error_parts(failure.error)}
            if failure
            else None,
        }

    def _prepared(self, name: str, number: int) -> _Serving:
        live = self._load(name, number)
        version, problem = live.version, live.problem
        if (version.name, version.number, problem.name) != (name, number, name):
            raise ConfigError(
                f"asked for {name}/{number}, loaded {version.name}/{version.number} of problem {problem.name}",
                hint="a policy has the name of its problem",
            )
        read = reader(problem, self._limits.candidates)
        names = version.encoder.actions or getattr(problem.actions, "names", ())
        together = same_alone(version.encoder, names, live.run) and live.rowwise
        return _Serving(live, read, together, self._now())

    # -- requests ----------------------------------------------------------------------------------------------

    def decide(
        self, name: str, body: bytes, reply: Reply, *, form: Form | None = None, apprentice: bool = False
    ) -> None:
        """Answer a decide request, at the earliest when this turn of the loop ends.

        Args:
            form: makes another answer than ours; for actions that are candidates.
            apprentice: take the first candidate, with certainty, and count how the policy agrees. The decision is
                the product's own: its version is 0.
        """
        serving = self._serving.get(name)
        if serving is None:
            self._refuse(reply, self._no_policy(name))
            return
        try:
            request = serving.read(body, self._new_id)
        except Error as error:
            self._refuse(reply, error)
            return
        remembered = None
        if request.chosen:
            remembered = self._recall((name, request.id), body, reply)
            if remembered is None:
                return
        self._asked.setdefault(serving, []).append(_Asking(request, reply, remembered, form, apprentice))
        self._turn()

    def outcome(self, body: bytes, reply: Reply) -> None:
        """Write down an outcome, or an array of them: all or none."""
        try:
            outcomes = read_outcomes(body, self._new_id, self._now, self._limits.outcomes)
        except Error as error:
            self._refuse(reply, error)
            return
        answer = _to_json({"accepted": len(outcomes), "ids": [outcome.id for outcome in outcomes]})
        self._written.append(_Written(reply, answer, [(OUTCOME, _to_json(outcome)) for outcome in outcomes]))
        self._turn()

    @property
    def problems(self) -> dict[str, Problem]:
        """Problem of every policy that decides."""
        return {name: serving.live.problem for name, serving in self._serving.items()}

    def new_id(self) -> str:
        """An id that is unique for ever."""
        return self._new_id()

    def _no_policy(self, name: str) -> Error:
        if name in self._wanted:
            return OverloadedError(f"policy {name} has no version that decides yet", hint="see /v1/status for why")
        known = sorted(self._serving)
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

    def _decided(self, serving: _Serving, group: list[_Asking]) -> Iterator[_Written]:
        """Decide a group in one run of the graph; whoever cannot be decided is told so, alone."""
        try:
            self.counts.batches += 1
            made = _decide_group(serving, group, self._now(), self.counts)
        except Exception as error:  # a graph library raises what it likes; every request must get an answer
            if len(group) > 1:
                half = len(group) // 2
                yield from self._decided(serving, group[:half])
                yield from self._decided(serving, group[half:])
                return
            self._forget(group[0].remembered, error)
            self._refuse(group[0].reply, error)
            return
        for asking, (record, answer) in zip(group, made, strict=True):
            yield _Written(asking.reply, answer, [(DECISION, record)], asking.remembered)

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
                self.counts.decisions += 1
            else:
                self.counts.outcomes += len(one.records)
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


def error_parts(error: Error) -> dict[str, str]:
    """Message, hint and field, none of them longer than a screen: they may quote the request."""
    return {"error": error.message[:MAX_TEXT], "hint": error.hint[:MAX_TEXT], "field": error.field[:MAX_TEXT]}


def time_ordered_id(now: int, entropy: bytes) -> str:
    """An id that sorts by time: 14 hex digits of microseconds UTC, then the entropy in hex.

    >>> time_ordered_id(1700000000000000, b"12345678")
    '060a24181e40003132333435363738'
    """
    return f"{now:014x}{entropy.hex()}"


def _decide_group(serving: _Serving, group: list[_Asking], now: int, counts: Counts) -> list[tuple[bytes, bytes]]:
    """The record and the answer of each, as JSON."""
    live = serving.live
    requests = [asking.request for asking in group]
    decisions, scores = decide_by_copies(
        live.perturbing, live.run, live.problem, live.version, requests, now, together=serving.together
    )
    return [
        _formed(live.version, asking, decision, row, counts)
        if asking.form
        else (_to_json(decision), _to_json(answer_to(decision)))
        for asking, decision, row in zip(group, decisions, scores, strict=True)
    ]


def _formed(
    version: Version, asking: _Asking, decision: Decision, scores: Array, counts: Counts
) -> tuple[bytes, bytes]:
    assert asking.form is not None
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
