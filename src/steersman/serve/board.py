"""Memory that the workers of a server share, in which each leaves its counts, so that any of them can tell of all."""

from __future__ import annotations

import struct
import zlib

HALF = 8 << 20
"""Bytes for one state of a worker; memory that nobody writes to is none."""

_HEAD = struct.Struct("<QII")


class Board:
    """Made before the workers are, who inherit it; it goes with the last of them.

    Args:
        workers: that there are at a time.
    """

    def __init__(self, workers: int) -> None:
        import mmap  # one worker alone never needs it, and is to stay small

        self._memory = mmap.mmap(-1, workers * 2 * HALF)
        self.workers = workers

    def seat(self, index: int) -> Seat:
        """The place of a worker."""
        return Seat(self, index)

    def last(self, index: int) -> tuple[int, bytes]:
        """The last whole state of a worker, and which it is; 0 and empty: it left none."""
        return max(self._half(index, half) for half in (0, 1))

    def write(self, index: int, turn: int, body: bytes) -> None:
        """Leave a state beside the last one: who is killed meanwhile leaves that."""
        start = self._start(index, turn % 2)
        head = turn.to_bytes(8, "little") + body
        self._memory[start + _HEAD.size : start + _HEAD.size + len(body)] = body
        self._memory[start : start + _HEAD.size] = _HEAD.pack(turn, len(body), zlib.crc32(head))

    def _half(self, index: int, half: int) -> tuple[int, bytes]:
        start = self._start(index, half)
        turn, size, checksum = _HEAD.unpack_from(self._memory, start)
        body = self._memory[start + _HEAD.size : start + _HEAD.size + min(size, HALF)]
        whole = zlib.crc32(turn.to_bytes(8, "little") + body) == checksum
        return (turn, body) if turn and whole else (0, b"")

    def _start(self, index: int, half: int) -> int:
        return (2 * index + half) * HALF


class Seat:
    """The place of one worker; one that is started again goes on where the last one of its place was."""

    def __init__(self, board: Board, index: int) -> None:
        self._board = board
        self.index = index
        self._turn, self.before = board.last(index)

    def leave(self, body: bytes) -> None:
        """Leave a state; one that is too large is not left."""
        if len(body) + _HEAD.size <= HALF:
            self._turn += 1
            self._board.write(self.index, self._turn, body)

    def others(self) -> list[bytes]:
        """The last state of each other worker that left one."""
        found = [self._board.last(index)[1] for index in range(self._board.workers) if index != self.index]
        return [body for body in found if body]
