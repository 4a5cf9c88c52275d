"""What a key stands for: noise as a pure function of (run, key), read from any place. No table of noise, no stream.

Word w of a key is word w mod 4 of Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
at the counter (1 + w // 4, key with its lowest bit cleared, 0, 0), under the 128 bits of the run as its key. The lowest
bit of a key is its sign: the keys 2n and 2n + 1 are a mirrored pair. NumPy promises the words of Philox and not its
normals, so what is made of the words is written here, in integers and tables that are equal on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from steersman.core.errors import DataError

Array = np.ndarray

RUN_BYTES = 16
NORMAL_BITS = 16
"""Bits of a word that one normal is made of."""

GRID = 2**12
"""Normals are whole multiples of 1 / GRID: no library of logarithms can give another one."""

_WORD = 64
_SIGNS = (2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") - 1).astype(
    np.float32
)


class Noise:
    """The noise of one run. It holds a generator that every call sets anew, so that threads need one each.

    >>> noise = Noise(bytes(16))
    >>> noise.signs(6, 5)
    array([ 1.,  1., -1., -1.,  1.], dtype=float32)
    >>> np.array_equal(noise.normals(6, 3, offset=1000), -noise.normals(7, 2000)[1000:1003])
    True
    """

    def __init__(self, run: bytes) -> None:
        """`run`: 16 bytes, drawn once for a run.

        Raises:
            DataError: they are not 16 bytes.
        """
        if len(run) != RUN_BYTES:
            raise DataError(f"a run is {len(run)} bytes, must be {RUN_BYTES}", field="run")
        self.run = run
        self._philox = np.random.Philox(key=int.from_bytes(run, "little"))
        self._state = self._philox.state  # with nothing drawn: a call has only its counter to set

    def words(self, key: int, count: int, first: int = 0) -> Array:
        """[count] u64: words `first` and on of the pair that a key is of; the sign is not in them.

        Raises:
            DataError: the key is not in [0, 2**64).
        """
        if not 0 <= key < 2**_WORD:
            raise DataError(f"the key {key} is not in [0, 2**64)", field="key")
        self._state["state"]["counter"][:2] = first // 4, key & ~1
        self._philox.state = self._state
        found: Array = self._philox.random_raw(first % 4 + count)[first % 4 :]
        return found

    def octets(self, key: int, count: int, first: int = 0) -> Array:
        """[count] u8: bytes `first` and on of the words, the lowest of each word first."""
        start, end = first // 8, -(-(first + count) // 8)
        found = self.words(key, end - start, start).astype("<u8", copy=False).view(np.uint8)
        return found[first % 8 : first % 8 + count]

    def signs(self, key: int, size: int, offset: int = 0) -> Array:
        """[size] f32 of -1 and 1, coordinates `offset` and on: a bit each, 1 for a set one; an odd key turns them."""
        found = _SIGNS[self.octets(key, -(-(offset % 8 + size) // 8), offset // 8)].reshape(-1)
        found = found[offset % 8 : offset % 8 + size]
        return -found if key & 1 else found

    def normals(self, key: int, size: int, offset: int = 0) -> Array:
        """[size] f32, standard normal and never beyond 4.5, coordinates `offset` and on; an odd key turns them.

        16 bits choose one of as many equally likely quantiles, so their variance is 1 within 1e-4.
        """
        found = quantiles()[self.octets(key, 2 * size, 2 * offset).view("<u2")]
        return -found if key & 1 else found

    def factors(self, key: int, shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[Array, ...]]:
        """Noise of rank 1: for each shape [m, n] signs [m] and [n], whose outer product it is; for [m] signs [m].

        The entries of the outer product are signs too, any two of them uncorrelated. An odd key turns the first one.

        Raises:
            DataError: a shape has neither 1 nor 2 sizes.
        """
        offset = 0
        for shape in shapes:
            if len(shape) not in (1, 2):
                raise DataError(f"noise of rank 1 for the shape {shape}", hint="give matrices and vectors only")
            even = key & ~1
            parts = [self.signs(key, shape[0], offset)]
            if len(shape) == 2:
                parts.append(self.signs(even, shape[1], offset + shape[0]))
            offset += sum(shape)
            yield tuple(parts)


def pairs(entropy: bytes) -> Array:
    """[2 P] u64: the keys of mirrored pairs, one pair for every 8 bytes; draw them afresh, never from a seed of a run.

    >>> pairs(bytes(range(16)))
    array([ 506097522914230528,  506097522914230529, 1084818905618843912,
           1084818905618843913], dtype=uint64)
    """
    if not entropy or len(entropy) % 8:
        raise DataError(f"{len(entropy)} bytes for keys, must be 8 for each pair", field="entropy")
    even = np.frombuffer(entropy, dtype="<u8").astype(np.uint64) & np.uint64(2**_WORD - 2)
    return np.stack([even, even | np.uint64(1)], axis=1).reshape(-1)


@functools.cache
def quantiles() -> Array:
    """[2**16] f32: the middles of equally likely parts of the standard normal, rounded to multiples of 1 / GRID."""
    half = 2 ** (NORMAL_BITS - 1)
    inverse = NormalDist().inv_cdf
    upper = np.array([round(GRID * inverse((half + i + 0.5) / (2 * half))) for i in range(half)])
    table = (np.concatenate([-upper[::-1], upper]) / GRID).astype(np.float32)
    table.flags.writeable = False
    return table
