"""The random numbers that belong to a decision."""

from __future__ import annotations

import functools
import hashlib

from steersman.core.errors import DataError


def check_seed(seed: str) -> None:
    """Raise DataError unless the seed fits into the key of the hash: a longer one would be cut."""
    length = len(seed.encode())
    if length > hashlib.blake2b.MAX_KEY_SIZE:
        raise DataError(f"the seed has {length} bytes, must be at most 64 bytes", field="seed")


def uniform_draw(seed: str, decision_id: str) -> float:
    """The random number in [0, 1) that belongs to a decision: the same on every machine, for ever.

    53 bits of BLAKE2b keyed with the seed of the version: a counter-based generator whose counter is the
    decision's id, so that a replay needs no generator state.

    >>> uniform_draw("s", "d1") == uniform_draw("s", "d1") != uniform_draw("s", "d2")
    True
    """
    draw = _keyed(seed).copy()
    draw.update(decision_id.encode())
    return (int.from_bytes(draw.digest(), "little") >> 11) * 2.0**-53


@functools.lru_cache(maxsize=256)
def _keyed(seed: str) -> hashlib.blake2b:
    """Only to be copied: the block of the key takes longer than all else."""
    check_seed(seed)
    return hashlib.blake2b(key=seed.encode(), digest_size=8)


def uniform_draws(seed: str, decision_id: str, count: int) -> tuple[float, ...]:
    """`count` random numbers in [0, 1) that belong to a decision, for actions that take several.

    Eight a block of BLAKE2b, which is salted with its number: the first ones are the same whatever the count.

    >>> uniform_draws("s", "d1", 9)[:3] == uniform_draws("s", "d1", 3)
    True
    """
    check_seed(seed)
    draws: list[float] = []
    for block in range(-(-count // 8)):
        salt = block.to_bytes(8, "little")
        digest = hashlib.blake2b(decision_id.encode(), key=seed.encode(), salt=salt, digest_size=64).digest()
        draws += [(int.from_bytes(digest[i : i + 8], "little") >> 11) * 2.0**-53 for i in range(0, 64, 8)]
    return tuple(draws[:count])
