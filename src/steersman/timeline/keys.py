"""Sorting, grouping and looking up 64-bit keys, several times as fast as sorting the places of them. Pure arrays.

A key and its row are packed into one number, which NumPy sorts as it is: the upper bits are those of the key, as many
as the number of rows leaves. Keys that differ in their other bits only are rare, and put in order afterwards.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray

_AT_ONCE = 1 << 16
"""Rows that are looked at together: they stay in the processor, and need no memory of their own."""


def ordered(keys: Array) -> Array:
    """[N] i64, the rows by their keys, rows of one key ascending.

    Args:
        keys: [N] u64, or i64 of 0 and above.
    """
    return _sorted(keys)[0]


def repeats(keys: Array) -> tuple[Array, Array]:
    """The rows whose key stands more than once, [M] i64 by key and then ascending; and [M] i64, 0, 1, ... a key.

    Args:
        keys: [N] u64.
    """
    packed, bits, _ = _packed(keys)
    rows = (packed[_together(packed, bits)] & np.uint64((1 << bits) - 1)).view(np.int64)
    key = keys[rows]
    by_key = np.lexsort((rows, key))
    rows, key = rows[by_key], key[by_key]
    same = key[1:] == key[:-1]
    twice = np.append(same, False) | np.append(False, same) if len(rows) else np.zeros(0, bool)
    first = np.append(True, ~same)[: len(rows)]
    return rows[twice], np.cumsum(first[twice]) - 1


def grouped(keys: Array, of: Array) -> Array:
    """[N] i64, for each key its place in `of`.

    Args:
        keys: [N] u64, every one of which is in `of`.
        of: [U] u64, each key once, and all of them asked for.
    """
    rows, found = _sorted(keys)
    starts = np.flatnonzero(np.append(True, found[1:] != found[:-1]))
    out = np.empty(len(keys), np.int64)
    out[rows] = np.repeat(ordered(of), np.diff(starts, append=len(keys)))
    return out


class Index:
    """Which row has a key.

    Attributes:
        unique: no key stands twice, so a row is the only one.
    """

    def __init__(self, keys: Array) -> None:
        """Sort the keys ([N] u64)."""
        self._rows, self._keys = _sorted(keys)
        self.unique = not bool((self._keys[1:] == self._keys[:-1]).any())

    def rows(self, keys: Array) -> Array:
        """[M] i64, the row of each key ([M] u64), -1: none has it. Many at once are found faster."""
        by_key, asked = _sorted(keys)  # neighbours lie side by side in memory
        place = np.searchsorted(self._keys, asked)
        np.minimum(place, len(self._keys) - 1, out=place)
        found = np.empty(len(keys), np.int64)
        found[by_key] = np.where(self._keys.take(place) == asked, self._rows.take(place), -1)
        return found


def _sorted(keys: Array) -> tuple[Array, Array]:
    """[N] i64 the rows by their keys, and [N] u64 the keys in that order."""
    keys = keys.view(np.uint64)
    packed, bits, exact = _packed(keys)
    packed &= np.uint64((1 << bits) - 1)
    rows: Array = packed.view(np.int64)
    found = keys.take(rows)
    if not exact and (found[1:] < found[:-1]).any():
        low, span = _range(keys)
        _settle(rows, found, (found - low) << np.uint64(64 - span) >> np.uint64(bits))
    return rows, found


def _packed(keys: Array) -> tuple[Array, int, bool]:
    """[N] u64 sorted, key above row; how many bits the row has; whether all bits of the keys are in it."""
    n = len(keys)
    bits = max(n - 1, 0).bit_length()
    low, span = _range(keys)
    exact = span + bits <= 64
    packed: Array = keys - low
    packed <<= np.uint64(bits if exact else 64 - span)
    if not exact:
        packed &= np.uint64(~((1 << bits) - 1) & (2**64 - 1))
    for start in range(0, n, _AT_ONCE):
        some = packed[start : start + _AT_ONCE]
        some |= np.arange(start, start + len(some), dtype=np.uint64)
    packed.sort()
    return packed, bits, exact


def _range(keys: Array) -> tuple[np.uint64, int]:
    """The least key, and how many bits the largest has above it."""
    if not len(keys):
        return np.uint64(0), 0
    low = keys.min()
    return low, int(keys.max() - low).bit_length()


def _together(packed: Array, bits: int) -> Array:
    """The places whose key, as far as it was packed, is that of a neighbour."""
    found = [np.empty(0, np.int64)]
    for start in range(0, len(packed), _AT_ONCE):
        some = packed[start : start + _AT_ONCE + 1]
        found.append(start + np.flatnonzero((some[1:] ^ some[:-1]) < np.uint64(1 << bits)))
    first = np.concatenate(found)
    return np.union1d(first, first + 1)


def _settle(rows: Array, keys: Array, upper: Array) -> None:
    """Put rows whose keys have the same upper bits in the order of the whole keys, in place.

    Args:
        keys: [N] u64, of the rows as they lie; put in order with them.
        upper: [N] u64 ascending, the upper bits of them.
    """
    wrong = np.unique(upper[1:][keys[1:] < keys[:-1]])
    start, stop = np.searchsorted(upper, wrong), np.searchsorted(upper, wrong, side="right")
    length = stop - start
    places = np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())
    some, key = rows[places], keys[places]
    by_key = np.lexsort((some, key))  # runs lie by their upper bits, so they stay where they are
    rows[places], keys[places] = some[by_key], key[by_key]
