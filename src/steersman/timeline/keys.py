"""Sorting and looking up 64-bit keys, several times as fast as sorting the places of them. Pure arrays.

To be sorted, a key and its row are packed into one number, which NumPy sorts as it is: the upper bits are those of the
key, as many as the number of rows leaves. Keys that differ in their other bits only are rare, and put in order
afterwards. To be found again, keys need no order: a table of rows is read and written four times as fast.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray

_AT_ONCE = 1 << 15
"""Rows that are looked at together: they stay in the processor, and need no memory of their own."""

_FEW = 1024
"""So many keys are sorted."""

_BITS = 64


def ordered(keys: Array) -> Array:
    """[N] i64, the rows by their keys, rows of one key ascending.

    Args:
        keys: [N] u64, or i64 of 0 and above.
    """
    rows = _placed(keys)
    return _sorted(keys)[0] if rows is None else rows


def _placed(keys: Array) -> Array | None:
    """[N] i64, the rows by their keys if these are all different and so dense that each has a place; else None."""
    n = len(keys)
    low, high = (int(keys.min()), int(keys.max())) if n else (0, 0)
    if not 0 <= high - low < min(4 * n, 2**31):
        return None
    there = np.full(high - low + 1, -1, np.int32)
    for start in range(0, n, _AT_ONCE):
        some = keys[start : start + _AT_ONCE] - keys.dtype.type(low)
        there[some.astype(np.int64)] = np.arange(start, start + len(some), dtype=np.int32)
    rows = there[there >= 0]
    return rows.astype(np.int64) if len(rows) == n else None


class Index:
    """Which row has a key: the upper bits of a key name a place in a table, and the row is there.

    Of keys that name one place the last has it. The others look for one in a further, smaller table by their next bits,
    and the few that are left in the end are sorted: hashes are spread, but nothing here goes wrong where they are not.

    Attributes:
        keys: [N] u64.
        unique: no key stands twice, so a row is the only one.
    """

    def __init__(self, keys: Array) -> None:
        """Put the rows of the keys ([N] u64) in their places."""
        self.keys, self._tables = keys, list[_Table]()
        rows: Array | None = None
        again, used = list[Array](), 0
        while (n := len(keys) if rows is None else len(rows)) > _FEW:
            table = _Table(n, used)
            if used + table.bits > _BITS:
                break
            lost, owner = table.put(keys, rows)
            self._tables.append(table)
            equal = keys.take(lost) == keys.take(owner)
            again.append(lost[equal])
            rows, used = lost[~equal], used + table.bits
        rows = np.arange(len(keys)) if rows is None else rows
        self._few = rows.take(ordered(keys.take(rows)))
        self._few_keys = keys.take(self._few)
        again.append(self._few[1:][self._few_keys[1:] == self._few_keys[:-1]])
        self._again = np.concatenate(again)
        self.unique = not self._again.size

    def rows(self, keys: Array) -> Array:
        """[M] i64, the row of each key ([M] u64), -1: none has it."""
        found = np.empty(len(keys), np.int64)
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            found[start : start + len(some)] = self._rows(some)
        return found

    def _rows(self, keys: Array) -> Array:
        """The same, of a few keys."""
        found, key = np.full(len(keys), -1), keys
        asked: slice | Array = slice(None)
        for table in self._tables:
            row = table.rows.take(table.places(key))
            right = self.keys.take(row) == key
            found[asked] = np.where(right, row, -1)
            asked = np.flatnonzero(found < 0)
            key = keys[asked]
        if len(self._few):
            place = np.searchsorted(self._few_keys, key)
            np.minimum(place, len(self._few) - 1, out=place)
            found[asked] = np.where(self._few_keys.take(place) == key, self._few.take(place), -1)
        return found

    def repeats(self) -> tuple[Array, Array]:
        """The rows whose key stands more than once, [M] i64 by key and then ascending; and [M] i64, 0, 1, ... a key."""
        again = self.keys.take(self._again)
        rows = np.union1d(self._again, self.rows(again))
        key = self.keys.take(rows)
        by_key = np.argsort(key, kind="stable")
        rows, key = rows[by_key], key[by_key]
        return rows, np.cumsum(np.append(False, key[1:] != key[:-1])[: len(rows)])


class _Table:
    """Places of rows by bits of their keys.

    Attributes:
        bits: that name a place, after those that are used already.
        rows: [2 ** bits], the row at each place, 0 where there is none: whoever looks there compares the keys.
    """

    def __init__(self, n: int, used: int) -> None:
        self.bits = n.bit_length() + 1  # between two and four places a row
        self._used, self._rest = np.uint64(used), np.uint64(64 - self.bits)

    def places(self, keys: Array) -> Array:
        """[M] i64."""
        return (keys << self._used >> self._rest).view(np.int64)

    def put(self, keys: Array, rows: Array | None) -> tuple[Array, Array]:
        """Of these rows (None: all) those whose place another one has taken, and the rows that have it."""
        n = len(keys) if rows is None else len(rows)
        self.rows: Array = np.zeros(1 << self.bits, np.int32 if len(keys) < 2**31 else np.int64)
        blocks = [slice(start, min(start + _AT_ONCE, n)) for start in range(0, n, _AT_ONCE)]
        for some in blocks:
            row = np.arange(some.start, some.stop, dtype=self.rows.dtype) if rows is None else rows[some]
            self.rows[self.places(keys[some] if rows is None else keys.take(row))] = row
        lost, owner = list[Array](), list[Array]()
        for some in blocks:
            row = np.arange(some.start, some.stop) if rows is None else rows[some]
            there = self.rows.take(self.places(keys[some] if rows is None else keys.take(row)))
            other = np.flatnonzero(there != row)
            lost.append(row[other])
            owner.append(there[other])
        return np.concatenate(lost), np.concatenate(owner)


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
