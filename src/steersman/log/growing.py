"""The segment that a pen writes: whole blocks to the disk, past the page cache, over zeros that lie there already.

What a log writes is read once, much later. In the page cache it would cost a fresh page for each 4 KiB and push out
what others read; on a virtual machine, whose host hands out memory one fault at a time, that was more than half of what
a record of 3 kB cost. Readers need not know: the kernel drops a page of its cache when a write goes past it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from steersman.engine.disk import fsync_directory, make_directory
from steersman.log.segment import MAGIC, SUFFIX

EXTENT_BYTES = 1 << 22
"""Zeros are laid down so far ahead: enough that few commits change the size of the file, little enough not to wait."""

BLOCK_BYTES = 1 << 12
BUFFER_BYTES = 1 << 20

_DIRECT = getattr(os, "O_DIRECT", 0)
_fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def pages(length_bytes: int) -> memoryview:
    """Zeros that begin where a page of memory does, as a write past the page cache demands."""
    return memoryview(mmap.mmap(-1, length_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


_ZEROS = pages(1 << 18)


class Growing:
    """One segment file, locked by this process as long as it is open.

    Args:
        folder, name: of the file.
        limit: its size in bytes, at most.
        direct: past the page cache, where the disk can do that.
        memory: BUFFER_BYTES of `pages`, for the blocks on their way to the disk; segments may share it in turn.
    Attributes:
        path: of the file.
        head: offset behind the last accepted record.
    """

    def __init__(self, folder: Path, name: str, limit: int, direct: bool, memory: memoryview) -> None:
        make_directory(folder)
        self.path = folder / f"{name}{SUFFIX}"
        self.head = 0
        self._limit = limit
        self._most = _up(limit, BLOCK_BYTES)
        self._size = 0
        self._tail = b""
        self._memory = memory
        aside = folder / f".{name}.new"
        self._fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            # The lock comes before the name: whoever sees the name sees the lock.
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._direct = direct and bool(_DIRECT) and self._go(_DIRECT)
            self.write([MAGIC])
            self.head = len(MAGIC)
            os.fsync(self._fd)
            aside.rename(self.path)
            fsync_directory(folder)
        except BaseException:
            os.close(self._fd)
            aside.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            raise

    def fits(self, length_bytes: int) -> bool:
        """Whether so many bytes more are within its size."""
        return self.head + length_bytes <= self._limit

    def write(self, frames: Iterable[bytes]) -> None:
        """Put frames at the head, which moves when they are accepted. After an error this is over: seal it."""
        memory, at = self._memory, len(self._tail)
        offset = self.head - at
        memory[:at] = self._tail
        for data in frames:
            begun = 0
            while (room := BUFFER_BYTES - at) <= len(data) - begun:
                memory[at:] = data[begun : begun + room]
                self._place(BUFFER_BYTES, offset)
                offset, at, begun = offset + BUFFER_BYTES, 0, begun + room
            rest = data[begun:] if begun else data
            memory[at : at + len(rest)] = rest
            at += len(rest)
        end = _up(at, BLOCK_BYTES)
        memory[at:end] = bytes(end - at)
        self._place(end, offset)
        self._tail = bytes(memory[at - at % BLOCK_BYTES : at])

    def sync(self) -> None:
        """Make what was written durable."""
        _fdatasync(self._fd)

    def accept(self, length_bytes: int) -> None:
        """Move the head behind what was written."""
        self.head += length_bytes

    def seal(self) -> None:
        """Cut off all behind the head, make the rest durable, close and unlock; nothing is kept of an empty one."""
        try:
            if self.head == len(MAGIC):
                self.path.unlink(missing_ok=True)
                return
            os.ftruncate(self._fd, self.head)
            os.fsync(self._fd)
        finally:
            os.close(self._fd)

    def _place(self, length: int, offset: int) -> None:
        """Write the first bytes of the buffer, and zeros ahead of them if they are the end of the file."""
        end = offset + length
        zeros = 0
        if end > self._size:
            self._size = min(self._most, _up(end, EXTENT_BYTES))
            zeros = self._size - end
        views = [_ZEROS[: zeros - at] for at in range(0, zeros, len(_ZEROS))]
        self._put([self._memory[:length], *views] if length else views, offset)

    def _put(self, views: list[memoryview], offset: int) -> None:
        while views:
            try:
                written = os.pwritev(self._fd, views, offset)
            except OSError as error:
                # The disk wants larger blocks, or a limit cut one in two: through the page cache any length will do.
                if error.errno != errno.EINVAL or not self._direct or not self._go(0):
                    raise
                self._direct = False
                continue
            offset += written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]

    def _go(self, direct: int) -> bool:
        """Change whether writes go past the page cache; whether that could be done."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, direct)
        except OSError:
            return False
        return True


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
