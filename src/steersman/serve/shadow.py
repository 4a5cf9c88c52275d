"""Shadow mode: what a version would have decided, found out and written down after the answer left."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from steersman.core.decision import Decision, Outcome
from steersman.core.errors import DataError, Error
from steersman.core.policy import over_numbers
from steersman.core.version import Version
from steersman.serve.asking import Request
from steersman.serve.background import give_way
from steersman.serve.decide import Array, probabilities_of
from steersman.serve.live import MAX_TEXT
from steersman.serve.versions import Loaded, decisions_of

Done = Callable[[Error | None], None]
Record = Callable[[Sequence[tuple[bytes, bytes]], Done], None]
Offer = tuple[Loaded, Request, Decision]
"""The version in the shadow, the request, and what was decided."""

SAME, AGREEMENT, PROPENSITY = "same", "agreement", "propensity"
"""Metrics of an outcome in the shadow's log: whether the action that was taken was drawn in the shadow too, and its
probability (or density) in the shadow and as it was taken."""

WAITING = 4096
GROUP = 64
_to_json = msgspec.json.Encoder().encode


@dataclass
class _Counts:
    """Since the server began.

    Attributes:
        scored: decisions that the version in the shadow made, too.
        dropped: of which it was not asked, because too many waited.
        failed: that it could not make, or that were not written.
        agreement: sum of the probabilities with which it would have taken the action that was taken; for numbers it
            stays 0.
    """

    scored: int = 0
    dropped: int = 0
    failed: int = 0
    agreement: float = 0.0


class Shadow:
    """Versions that score and never answer, on a thread of low priority; what they decide is a log of its own.

    A shadow decision has the id of the real one, and the version, action and propensity of the version in the shadow,
    so it can be replayed like any other. An outcome tells how it compares with what was done. Nobody waits for it: over
    `waiting` decisions it is not asked.

    Args:
        record: takes (kind, JSON) records, as the plane's.
    """

    def __init__(self, record: Record, waiting: int = WAITING) -> None:
        self.error = ""
        self.counts = _Counts()
        self._record = record
        self._most = waiting
        self._waiting: deque[Offer] = deque()
        self._woken = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def offer(self, offers: Sequence[Offer]) -> None:
        """Take decisions that were made, to make them again later."""
        if not offers:
            return
        with self._woken:
            room = max(0, self._most - len(self._waiting))
            self._waiting.extend(offers[:room])
            self.counts.dropped += len(offers[room:])
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="steersman-shadow", daemon=True)
                self._thread.start()
            self._woken.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Score what waits, as far as the time allows; what comes later is not taken."""
        with self._woken:
            self._closed = True
            self._most = 0
            self._woken.notify()
        if self._thread:
            self._thread.join(timeout_s)

    def status(self) -> dict[str, object]:
        """Counts and the last error, ready for JSON."""
        return {**vars(self.counts), "error": self.error}

    def _run(self) -> None:
        give_way()
        while offers := self._next():
            self._score(offers)

    def _next(self) -> list[Offer]:
        """What waits, of one version; empty: it is over."""
        with self._woken:
            while not self._waiting:
                if self._closed:
                    return []
                self._woken.wait()
            taken = [self._waiting.popleft()]
            while self._waiting and len(taken) < GROUP and self._waiting[0][0] is taken[0][0]:
                taken.append(self._waiting.popleft())
            return taken

    def _score(self, offers: list[Offer]) -> None:
        """Each alone: a request that this version can not read must not take the others with it."""
        records = []
        for loaded, request, was in offers:
            try:
                [decision], [scores] = decisions_of(loaded, [request], was.at)
                agreement = propensity_of(was, loaded.live.version, scores)
            except Exception as error:  # a graph library raises what it likes; it is not the client's matter
                self._failed(error, 1)
                continue
            if isinstance(was.action, str):
                self.counts.agreement += agreement
            metrics = {SAME: float(decision.action == was.action), AGREEMENT: agreement, PROPENSITY: was.propensity}
            told = Outcome(id=was.id, decision=was.id, at=was.at, metrics=metrics)
            records += [(b"D", _to_json(decision)), (b"O", _to_json(told))]
        count = len(records) // 2
        if records:
            try:
                self._record(records, lambda error: self._failed(error, count) if error else None)
            except Exception as error:
                self._failed(error, count)
            else:
                self.counts.scored += count

    def _failed(self, error: Exception, count: int) -> None:
        self.error = f"{type(error).__name__}: {error}"[:MAX_TEXT]
        self.counts.failed += count


def propensity_of(decision: Decision, version: Version, scores: Array) -> float:
    """Probability, or density, with which a version would have taken the action of a decision.

    Args:
        scores: of the version, for the decision's own candidates: [K] f32, draws of them [K, M], or of numbers [S].
    """
    if isinstance(decision.action, str):
        places = [candidate.id for candidate in decision.candidates]
        return probabilities_of(version, scores[: len(places)])[places.index(decision.action)]
    box = version.encoder.numbers
    if box is None:
        raise DataError(f"{version.name}/{version.number} does not decide numbers", field="action")
    return float(over_numbers(version.explorer).density(scores[None], np.array([decision.action]), box)[0])
