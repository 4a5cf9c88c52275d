"""The key of the running episode of each unit: a table that the processes of a server share, and that outlives them."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from steersman.core.errors import DataError
from steersman.serve.asking import Request

CAPACITY = 1 << 16
"""Episodes that run at a time; of more, those that have waited longest for a decision lose their key."""

WAYS = 8
"""Places in which an entry may stand: the oldest of them makes room."""

MAGIC = int.from_bytes(b"episode1", "little")
TAG, AT, KEY, LAST, BEGUN, STEPS = range(0, 6 * WAYS, WAYS)
"""Words of 64 bits in a set, each for its `WAYS` places; an entry stands for a unit or for a last decision.

    TAG: of whose it is, 64 bits of a hash. AT: instant of the last decision, 0: the place is free.
    KEY: of the perturbation; of a decision the tag of its unit. LAST: tag of the last decision.
    BEGUN: instant of the first one. STEPS: how many there were.
"""

_UNIT, _DECISION = (hashlib.blake2b(kind, digest_size=8) for kind in (b"unit", b"decision"))  # only to be copied
_SET = 6 * WAYS
_row = struct.Struct(f"={WAYS}Q").unpack_from
_MAGIC_AT, _SETS_AT, _MIRROR_AT, _THERE_AT, _HEADER = range(5)


class Episodes:
    """Keys of running episodes. A new one is of the system's entropy, so no start and no process repeats another's.

    An episode ends where the timeline ends it: with the outcome that says so about its last decision, where its unit
    counts its steps from 0 anew, and at the problem's limits. Where that is not known yet the key stays, so an episode
    is never split; two that could not be told apart share a key.

    The table is a file of fixed size in memory, and the lock is the kernel's. Nothing is fsynced: a torn or lost entry
    costs one running episode its key, as the log will show, since every decision has its own key in it. For one thread.

    Args:
        path: of the file; made if it is not there.
        mirrored: the next episode that begins has the mirror of the last one's perturbation.
        horizon, horizon_us: of the problem, in steps and microseconds.
        capacity: see `CAPACITY`; of a file that is there its own counts.
        entropy: gives so many random bytes.
    Raises:
        DataError: the file is damaged.
        OSError: there is no room for it.
    """

    def __init__(
        self,
        path: Path,
        *,
        mirrored: bool,
        horizon: int | None = None,
        horizon_us: int | None = None,
        capacity: int = CAPACITY,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._mirrored, self._horizon, self._horizon_us, self._entropy = mirrored, horizon, horizon_us, entropy
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        weakref.finalize(self, os.close, self._file)
        with self._alone():
            head = array("Q", os.pread(self._file, 8 * _HEADER, 0).ljust(8 * _HEADER, b"\0"))
            if not any(head):  # new, or of a process that ended before it was whole
                head[_MAGIC_AT], head[_SETS_AT] = MAGIC, -(-4 * capacity // WAYS)  # two entries each: half full
                self._make(head)
            self._sets = head[_SETS_AT]
            size = 8 * (_HEADER + self._sets * _SET)
            if head[_MAGIC_AT] != MAGIC or os.fstat(self._file).st_size != size:
                raise DataError(f"{path} is damaged", hint="remove it: the episodes that run now get another key")
            self._file_in_memory = mmap.mmap(self._file, size)
            self._words = memoryview(self._file_in_memory).cast("Q")

    def keys(self, requests: Sequence[Request], now: int) -> list[int]:
        """The key of the episode that each request belongs to, which may begin with it; in the order they came.

        Args:
            now: microseconds UTC, the `at` of the decisions.
        """
        with self._alone():
            return [self._key(request, max(now, 1)) for request in requests]

    def ended(self, decisions: Iterable[str]) -> None:
        """The episodes are over of which these are the last decisions; one that went on since then goes on."""
        with self._alone():
            for decision in decisions:
                mine = _tag(decision, _DECISION)
                pointer, there = self._find(mine)
                if not there:
                    continue
                place, there = self._find(self._words[pointer + KEY])
                if there and self._words[place + LAST] == mine:
                    self._free(place)
                self._free(pointer)

    def _make(self, head: array[int]) -> None:
        """Write the zeros too: a disk that is full must say so now, and not when the memory of a hole is written to."""
        with os.fdopen(self._file, "r+b", buffering=0, closefd=False) as file:
            file.truncate(0)
            rest = memoryview(bytes(8 * (_HEADER + head[_SETS_AT] * _SET)))
            while rest:
                rest = rest[file.write(rest) :]
            file.seek(0)
            file.write(head.tobytes())

    def _key(self, request: Request, now: int) -> int:
        words = self._words
        unit, mine = _tag(request.unit, _UNIT), _tag(request.id, _DECISION)
        place, runs = self._find(unit)
        if runs and words[place + LAST] == mine:  # asked again
            return words[place + KEY]
        if runs:
            pointer, there = self._find(words[place + LAST])
            if there:
                self._free(pointer)
        if runs and not self._over(place, request.step, now):
            words[place + STEPS] += 1
        else:
            words[place + TAG], words[place + KEY] = unit, self._fresh()
            words[place + BEGUN], words[place + STEPS] = now, 1
        words[place + AT], words[place + LAST] = now, mine
        key = words[place + KEY]
        pointer, _ = self._find(mine)
        words[pointer + TAG], words[pointer + AT], words[pointer + KEY] = mine, now, unit
        return key

    def _over(self, place: int, step: int | None, now: int) -> bool:
        return (
            step == 0
            or (self._horizon is not None and self._words[place + STEPS] >= self._horizon)
            or (self._horizon_us is not None and now - self._words[place + BEGUN] >= self._horizon_us)
        )

    def _fresh(self) -> int:
        if self._words[_THERE_AT]:
            self._words[_THERE_AT] = 0
            return self._words[_MIRROR_AT]
        key = int.from_bytes(self._entropy(8), "little")
        if self._mirrored:
            self._words[_MIRROR_AT], self._words[_THERE_AT] = key ^ 1, 1
        return key

    def _find(self, tag: int) -> tuple[int, bool]:
        """Where an entry stands, and whether it does; if not, where it may: in a free place, or else the oldest's."""
        start = _HEADER + tag % self._sets * _SET
        tags = _row(self._file_in_memory, 8 * start)
        if tag in tags:
            return start + tags.index(tag), True
        ats = _row(self._file_in_memory, 8 * (start + AT))
        return start + ats.index(min(ats)), False

    def _free(self, place: int) -> None:
        self._words[place + TAG] = self._words[place + AT] = 0

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _tag(text: str, kind: hashlib.blake2b) -> int:
    """64 bits of a hash, never 0."""
    made = kind.copy()
    made.update(text.encode())
    return int.from_bytes(made.digest(), "little") or 1
