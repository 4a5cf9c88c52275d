"""Segments on disk: the frame that makes a record whole or not there, and the reader that believes nothing else.

A segment is MAGIC and then records: mark, kind, length, CRC32, body. What follows the last record is zeros
(the place where the writer goes on) or nothing (the writer closed it).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

MAGIC = b"steersman log 1\n"
HEADER = struct.Struct("<3scII")  # mark, kind, length of the body, CRC32
SEEDS = {bytes([kind]): 0xFFFFFFFF ^ kind << 24 for kind in range(256)}
"""Kind and length start the checksum: one call covers the header too. Inverted, or zeros would pass for a record."""

MARK = b"\xff\xfeS"  # no UTF-8 text holds 0xff: nothing in a body can pass for the start of a record
SUFFIX = ".seg"
IMPORTED = "imported"
"""Below it each import has a log of its own: a directory appears at one instant, several segments do not."""

MAX_SEGMENT_BYTES = 1 << 28
"""Readers hold one segment in memory."""

Kind = Literal[b"D", b"O"]
DECISION: Kind = b"D"
OUTCOME: Kind = b"O"
KINDS = (DECISION, OUTCOME)


class Record(Struct, frozen=True):
    """One record of the log.

    Attributes:
        kind: b"D" for a Decision, b"O" for an Outcome.
        body: the noun as JSON.
        segment: name of its file.
        offset: of its header in the file, in bytes.
    """

    kind: bytes
    body: bytes
    segment: str
    offset: int


class Damage(Struct, frozen=True):
    """Bytes of a segment that are no record, with whole records after them.

    Attributes:
        segment: name of the file.
        offset, length_bytes: where they lie.
    """

    segment: str
    offset: int
    length_bytes: int


class Scan(Struct, frozen=True):
    """What stands in a segment from an offset on.

    Attributes:
        kinds, bodies, offsets: [records].
        end: where to go on reading the next time.
        torn: whether something that is no record stands at the end: a write that a crash cut short.
        damage: bytes between records that are no record.
        sealed: nobody writes to the segment any more.
    """

    kinds: list[bytes]
    bodies: list[bytes]
    offsets: list[int]
    end: int
    torn: bool
    damage: list[Damage]
    sealed: bool


def frame(kind: bytes, body: bytes) -> bytes:
    """A record as it stands in a segment.

    >>> len(frame(b"D", b"{}"))
    14
    """
    length = len(body)
    return HEADER.pack(MARK, kind, length, zlib.crc32(body, SEEDS[kind] ^ length)) + body


def segments_directory(directory: Path) -> Path:
    """Where the segments of a log lie."""
    return directory / "segments"


def imports(directory: Path) -> list[Path]:
    """The logs that imports brought into a log and that were not compacted to their ends."""
    return _entries(directory / IMPORTED, "")


def segments(directory: Path) -> list[Path]:
    """The segments of a log and of its imports, oldest first."""
    folders = map(segments_directory, (directory, *imports(directory)))
    return sorted((path for folder in folders for path in _entries(folder, SUFFIX)), key=lambda path: path.name)


def _entries(folder: Path, suffix: str) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.name.endswith(suffix) and not path.name.startswith(".")]
    except FileNotFoundError:
        return []


def read_segment(path: Path, start: int = 0) -> Scan:
    """The records of one segment from an offset on, while its writer may be at work.

    Args:
        start: 0, or the `end` of an earlier scan.
    Raises:
        FileNotFoundError: it was compacted and deleted in the meantime.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sealed = is_sealed(fd)  # before reading: what is sealed now does not change any more
        data = _read(fd)
    finally:
        os.close(fd)
    return scan(data, path.name, start, sealed)


def is_sealed(fd: int) -> bool:
    """Whether nobody writes to the open segment: its writer holds an exclusive lock as long as it lives."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _read(fd: int) -> bytes:
    # Not mapped: a writer that trims its segment would kill whoever reads the map.
    parts = []
    at = 0
    while part := os.pread(fd, 1 << 24, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def scan(data: bytes, name: str, start: int, sealed: bool) -> Scan:
    """The whole records in the bytes of a segment.

    In a live segment the first thing that is no record is the end: it may be half of a write. In a sealed one
    reading goes on at the next whole record, and what was passed over is reported.
    """
    kinds: list[bytes] = []
    bodies: list[bytes] = []
    offsets: list[int] = []
    damage: list[Damage] = []
    at = start or (len(MAGIC) if data.startswith(MAGIC) else 0)
    size, head, crc32 = HEADER.size, HEADER.unpack_from, zlib.crc32
    while at + size <= len(data):
        mark, kind, length, crc = head(data, at)
        end = at + size + length
        if mark != MARK or end > len(data) or crc32(body := data[at + size : end], SEEDS[kind] ^ length) != crc:
            found = _next_record(data, at) if sealed else -1
            if found < 0:
                break
            damage.append(Damage(name, at, found - at))
            at = found
            continue
        kinds.append(kind)
        bodies.append(body)
        offsets.append(at)
        at = end
    torn = sealed and bool(data[at:].strip(b"\0"))
    return Scan(kinds, bodies, offsets, max(at, len(data)) if sealed else at, torn, damage, sealed)


def _next_record(data: bytes, after: int) -> int:
    """Offset of the first whole record behind `after`, or -1."""
    at = after
    while (at := data.find(MARK, at + 1)) >= 0 and at + HEADER.size <= len(data):
        _, kind, length, crc = HEADER.unpack_from(data, at)
        body = data[at + HEADER.size : at + HEADER.size + length]
        if len(body) == length and zlib.crc32(body, SEEDS[kind] ^ length) == crc:
            return at
    return -1


class Reading:
    """The records of a log's segments. Iterate over it; afterwards it knows what it could not read.

    Attributes:
        torn: number of segments that end in half a record.
        damage: bytes passed over between whole records.
    """

    def __init__(self, directory: Path, since: Mapping[str, int]) -> None:
        self._directory = directory
        self._since = since
        self.torn = 0
        self.damage: list[Damage] = []

    def __iter__(self) -> Iterator[Record]:
        self.torn, self.damage = 0, []
        for path in segments(self._directory):
            try:
                found = read_segment(path, self._since.get(path.name, 0))
            except FileNotFoundError:
                continue  # compacted since the listing: its records are in Parquet
            self.torn += found.torn
            self.damage += found.damage
            for kind, body, offset in zip(found.kinds, found.bodies, found.offsets, strict=True):
                yield Record(kind, body, path.name, offset)


def read(directory: Path, since: Mapping[str, int] | None = None) -> Reading:
    """The records in the segments of a log, oldest segment first; live segments up to their last whole record.

    Args:
        directory: of the log.
        since: segment -> offset to start from.
    """
    return Reading(directory, since or {})
