"""The pen: one thread that writes what many threads append, one fsync for all that came in meanwhile."""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal

from msgspec import Struct

from steersman.core.errors import (
    ConfigError,
    ConflictError,
    DataError,
    DiskError,
    Error,
    OverloadedError,
    TooLargeError,
)
from steersman.log.growing import BUFFER_BYTES, Growing, pages
from steersman.log.segment import HEADER, KINDS, MAGIC, MAX_SEGMENT_BYTES, frame, segments_directory

Durability = Literal["commit", "buffered"]
Done = Callable[[Error | None], None]

MIN_SEGMENT_BYTES = 1 << 12
BATCH_BYTES = 1 << 22
MAX_PENDING_BYTES = 1 << 28


class _Entry(Struct, frozen=True):
    frames: bytes
    done: Done | None
    sync: bool = False


def fresh_name() -> str:
    """A name for a segment: sorts by time, and no other process or start has it."""
    return f"{time.time_ns() // 1000:016d}-{os.getpid()}-{secrets.token_hex(4)}"


class Pen:
    """Appends records to segments of its own. Make it after a fork, close it at the end.

    Args:
        directory: of the log. Several pens may share it.
        durability: `commit`: a record is done once it is on the disk; `buffered`: once the operating system has
            it, so that it survives the end of the process but not of the machine.
        segment_bytes: size at which a new segment is begun; 4 KiB to 256 MiB.
        name: of the next segment, never the same twice.
    Raises:
        ConfigError: durability or segment_bytes is not one of these.
        Error: the directory can not be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        durability: Durability = "commit",
        segment_bytes: int = 1 << 26,
        name: Callable[[], str] = fresh_name,
    ) -> None:
        if durability not in ("commit", "buffered"):
            raise ConfigError(f"durability is {durability!r}, must be commit or buffered", field="log.durability")
        if not MIN_SEGMENT_BYTES <= segment_bytes <= MAX_SEGMENT_BYTES:
            raise ConfigError(
                f"segment_bytes is {segment_bytes}, must be {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES}",
                field="log.segment_bytes",
            )
        self.directory = directory
        self._commit = durability == "commit"
        self._segment_bytes = segment_bytes
        self._name = name
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._held: _Entry | None = None
        self._lock = threading.Lock()
        self._pending_bytes = 0
        self._closed = False
        self._failure: Error | None = None
        self._memory = pages(BUFFER_BYTES)
        self._segment: Growing | None = None
        try:
            self._segment = self._begin()
        except OSError as cause:
            raise _error(cause, f"the log in {directory} can not be written") from cause
        self._thread = threading.Thread(target=self._run, name="steersman-pen", daemon=True)
        self._thread.start()

    def __enter__(self) -> Pen:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def max_body_bytes(self) -> int:
        """Length of the longest record that fits a segment."""
        return self._segment_bytes - len(MAGIC) - HEADER.size

    def append(self, records: Sequence[tuple[bytes, bytes]], done: Done | None = None) -> None:
        """Hand over records; any thread may, and it never waits for the disk.

        Args:
            records: (kind, JSON of the noun). They are in the log together, or none of them counts as logged.
            done: called once, from the pen's thread: with None when all of them are durable, with the error
                when they are not in the log. It must be quick. Without it, flush and close raise the error.
        Raises:
            DataError: a kind is unknown.
            TooLargeError: the records do not fit a segment.
            OverloadedError: 256 MiB wait to be written already.
            ConflictError: the pen is closed.
        """
        for kind, _ in records:
            if kind not in KINDS:
                raise DataError(f"record kind is {kind!r}, must be one of {KINDS}", field="kind")
        frames = b"".join([frame(kind, body) for kind, body in records])
        if len(frames) > self._segment_bytes - len(MAGIC):
            raise TooLargeError(
                f"{len(records)} records of {len(frames)} bytes do not fit a segment of {self._segment_bytes} bytes",
                hint="append fewer at a time, or raise log.segment_bytes",
            )
        self._put(_Entry(frames, done))

    def flush(self) -> None:
        """Wait until all that was appended is on the disk, whatever the durability. Not from a `done`.

        Raises:
            Error: some of it is not, or a `done` raised.
        """
        finished = threading.Event()
        errors: list[Error | None] = []

        def done(error: Error | None) -> None:
            errors.append(error)
            finished.set()

        self._put(_Entry(b"", done, sync=True))
        finished.wait()
        self._raise(errors[0])

    def close(self) -> None:
        """Write what is pending, trim the last segment, and let go of it. A second close does nothing.

        Raises:
            Error: see flush.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._raise(None)

    def _raise(self, error: Error | None) -> None:
        with self._lock:
            failure, self._failure = self._failure or error, None
        if failure is not None:
            raise failure

    def _put(self, entry: _Entry) -> None:
        with self._lock:
            if self._closed:
                raise ConflictError("the pen is closed")
            if entry.frames and self._pending_bytes > MAX_PENDING_BYTES:
                raise OverloadedError(
                    f"{self._pending_bytes} bytes of log wait for the disk", hint="is the disk slow or stuck?"
                )
            self._pending_bytes += len(entry.frames)
            self._queue.put(entry)

    # What follows runs in the pen's thread.

    def _run(self) -> None:
        while batch := self._take():
            error = self._write(batch)
            with self._lock:
                self._pending_bytes -= sum(len(entry.frames) for entry in batch)
            for entry in batch:
                self._report(entry, error)
        if self._segment is not None:
            try:
                self._segment.seal()
            except OSError as cause:
                self._fail(_error(cause, f"log segment {self._segment.path.name} could not be closed"))

    def _take(self) -> list[_Entry]:
        """All that came in while the last batch was written, as far as it fits one write; empty at the end."""
        limit = min(BATCH_BYTES, self._segment_bytes - len(MAGIC))
        batch: list[_Entry] = []
        size = 0
        entry = self._held or self._queue.get()
        self._held = None
        while entry is not None:
            size += len(entry.frames)
            if batch and size > limit:
                self._held = entry
                break
            batch.append(entry)
            try:
                entry = self._queue.get_nowait()
            except Empty:
                break
        if entry is None and batch:
            self._queue.put(None)  # it was the end: found again when this batch is written
        return batch

    def _write(self, batch: list[_Entry]) -> Error | None:
        frames = [entry.frames for entry in batch if entry.frames]
        length = sum(map(len, frames))
        try:
            segment = self._room_for(length)
            if frames:
                segment.write(frames)
            if self._commit or any(entry.sync for entry in batch):
                segment.sync()
        except Exception as cause:  # whoever waits must hear of it, whatever it is
            return self._abandon(cause)
        segment.accept(length)
        return None

    def _room_for(self, length_bytes: int) -> Growing:
        """The segment if it has room, else it is closed and the next one begun."""
        if self._segment is not None and self._segment.fits(length_bytes):
            return self._segment
        full, self._segment = self._segment, None
        if full is not None:
            full.seal()
        self._segment = self._begin()
        return self._segment

    def _begin(self) -> Growing:
        return Growing(
            segments_directory(self.directory),
            self._name(),
            self._segment_bytes,
            direct=self._commit,
            memory=self._memory,
        )

    def _abandon(self, cause: Exception) -> Error:
        """Cut the failed write off its segment and leave the segment: after a failed fsync nothing in it is sure."""
        segment, self._segment = self._segment, None
        what = f"the log in {self.directory} could not be written"
        if segment is not None:
            try:
                segment.seal()
            except OSError:
                what += f" and {segment.path.name} not be cut at {segment.head}: some of these records may be read"
        return _error(cause, what)

    def _report(self, entry: _Entry, error: Error | None) -> None:
        if entry.done is None:
            if error is not None:
                self._fail(error)
            return
        try:
            entry.done(error)
        except Exception as fault:  # one bad callback must not silence the others
            self._fail(Error(f"a done callback of the log raised {fault!r}"))

    def _fail(self, error: Error) -> None:
        with self._lock:
            self._failure = self._failure or error


def _error(cause: Exception, what: str) -> Error:
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskError(f"{what}: {cause.strerror}", hint="free space on the log's disk")
    if isinstance(cause, OSError):
        return DiskError(f"{what}: {cause.strerror or cause}", hint="look at the disk that holds the log")
    return Error(f"{what}: {cause}", hint="look at the disk that holds the log")
