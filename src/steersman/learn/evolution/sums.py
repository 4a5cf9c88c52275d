"""Weighted sums of noise, made again from the keys: memory for a few vectors of parameters, not for a population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from steersman.core.errors import ConfigError
from steersman.core.noise import Noise

Array = np.ndarray
Shapes = tuple[tuple[int, ...], ...]
Kind = Literal["signs", "normals", "rank1"]
"""Of noise: -1 or 1 each; standard normals; for matrices outer products of signs, for vectors signs."""

BLOCK = 2**17
"""Coordinates that are summed at once: what they need stays in the cache."""

_TOGETHER = 8
"""Keys whose bits are summed by one look into a table."""

_SWAPS = ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))


def fold(keys: Array, weights: Array) -> tuple[list[int], Array]:
    """The pairs that keys are of, ascending, and the sum of the signed weights of each: [P] even keys, [P] f64."""
    even, place = np.unique(keys & np.uint64(2**64 - 2), return_inverse=True)
    signed = np.where(keys & np.uint64(1), -weights, weights)
    return even.tolist(), np.bincount(place, signed, minlength=len(even))


def weighted(noise: Noise, kind: Kind, keys: Array, weights: Array, size: int, shapes: Shapes = ()) -> Array:
    """[size] f64, the sum over keys of weight times noise; the same bits in whatever order the keys come.

    Args:
        keys: [N] u64.
        weights: [N] f64.
        shapes: of the tensors that the parameters are, in their order; needed for noise of rank 1.
    """
    even, summed = fold(keys, weights)
    if kind == "rank1":
        return _of_rank_1(noise, even, summed, size, shapes)
    block = _block_of_signs if kind == "signs" else _block_of_normals
    total = np.zeros(size)
    for start in range(0, size, BLOCK):
        block(noise, even, summed, start, total[start : start + BLOCK])
    return total


def squared(noise: Noise, keys: Array, weights: Array, size: int) -> Array:
    """[size] f64, the sum over keys of weight times the squares of normal noise."""
    even, place = np.unique(keys & np.uint64(2**64 - 2), return_inverse=True)
    summed = np.bincount(place, weights, minlength=len(even))
    total = np.zeros(size)
    for start in range(0, size, BLOCK):
        part = total[start : start + BLOCK]
        for key, weight in zip(even.tolist(), summed.tolist(), strict=True):
            drawn = noise.normals(key, len(part), start)
            part += weight * np.square(drawn, dtype=np.float64)
    return total


def dots(noise: Noise, keys: Array, linear: Array, square: Array) -> Array:
    """[N] f64: of each key the sum over coordinates of linear * noise + square * noise**2, for normal noise."""
    found = np.zeros(len(keys))
    for start in range(0, len(linear), BLOCK):
        ahead, curved = linear[start : start + BLOCK], square[start : start + BLOCK]
        for row, key in enumerate(keys.tolist()):
            drawn = noise.normals(key, len(ahead), start).astype(np.float64)
            found[row] += float(np.sum(drawn * (ahead + curved * drawn)))
    return found


def projected(noise: Noise, kind: Kind, keys: Array, direction: Array, shapes: Shapes = ()) -> Array:
    """[N] f64: of each key the dot product of its noise and a direction [d]."""
    if kind == "normals":
        return dots(noise, keys, direction, np.zeros_like(direction))
    found = np.zeros(len(keys))
    if kind == "rank1":
        parts = np.split(direction, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
        for row, key in enumerate(keys.tolist()):
            for shape, part, factors in zip(shapes, parts, noise.factors(key, shapes), strict=True):
                left = factors[0].astype(np.float64)
                found[row] += float(
                    np.sum(left * part if len(shape) == 1 else left * (part.reshape(shape) @ factors[1]))
                )
        return found
    for start in range(0, len(direction), BLOCK):
        ahead = direction[start : start + BLOCK]
        for row, key in enumerate(keys.tolist()):
            found[row] += float(np.sum(noise.signs(key, len(ahead), start) * ahead))
    return found


def rows(noise: Noise, kind: Kind, keys: Sequence[int], size: int, shapes: Shapes = ()) -> Array:
    """[N, size] f32, the noise of each key: for populations of small nets."""
    if kind == "rank1":
        return np.stack([_outer(noise, key, size, shapes) for key in keys])
    draw = noise.signs if kind == "signs" else noise.normals
    return np.stack([draw(key, size) for key in keys])


def check_shapes(shapes: Shapes, size: int) -> None:
    """Raise ConfigError unless the tensors are matrices and vectors of `size` numbers in all."""
    total = sum(int(np.prod(shape)) for shape in shapes)
    if total != size or any(len(shape) not in (1, 2) for shape in shapes):
        raise ConfigError(
            f"noise of rank 1 for {size} parameters in the shapes {list(shapes)}, which hold {total}",
            hint="name the shape of every tensor, matrices and vectors, in the order of the parameters",
            field="shapes",
        )


def _outer(noise: Noise, key: int, size: int, shapes: Shapes) -> Array:
    flat = np.empty(size, dtype=np.float32)
    start = 0
    for parts in noise.factors(key, shapes):
        made = np.outer(*parts).reshape(-1) if len(parts) == 2 else parts[0]
        flat[start : start + len(made)] = made
        start += len(made)
    return flat


def _of_rank_1(noise: Noise, even: list[int], weights: Array, size: int, shapes: Shapes) -> Array:
    total = np.zeros(size, dtype=np.float32)
    for first in range(0, len(even), 64):
        keys, scale = even[first : first + 64], weights[first : first + 64].astype(np.float32)
        drawn = zip(
            *(noise.factors(key, shapes) for key in keys), strict=True
        )  # tensor by tensor, [(a, b)] of the keys
        start = 0
        for shape, factors in zip(shapes, drawn, strict=True):
            left = scale[:, None] * np.stack([parts[0] for parts in factors])  # [P, m]
            width = int(np.prod(shape))
            if len(shape) == 2:
                made = (left.T @ np.stack([parts[1] for parts in factors])).reshape(-1)
            else:
                made = left.sum(axis=0)
            total[start : start + width] += made
            start += width
    return total.astype(np.float64)


def _block_of_normals(noise: Noise, even: list[int], weights: Array, start: int, total: Array) -> None:
    for key, weight in zip(even, weights.tolist(), strict=True):
        total += weight * noise.normals(key, len(total), start).astype(np.float64)


def _block_of_signs(noise: Noise, even: list[int], weights: Array, start: int, total: Array) -> None:
    """Eight keys at a time: their bits at a coordinate are one byte, and a table has the sum for each byte."""
    count = -(-len(total) // 8)
    for first in range(0, len(even), _TOGETHER):
        octets = np.zeros((count, _TOGETHER), dtype=np.uint8)
        for column, key in enumerate(even[first : first + _TOGETHER]):
            octets[:, column] = noise.octets(key, count, start // 8)
        summed = _sums_of_bytes(weights[first : first + _TOGETHER])
        total += summed[_transposed(octets).reshape(-1)[: len(total)]]


def _sums_of_bytes(weights: Array) -> Array:
    """[256] f64: for every byte the sum of the weights, those of its cleared bits taken away."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")[:, : len(weights)]
    return np.sum((2.0 * bits - 1.0) * weights, axis=1)


def _transposed(octets: Array) -> Array:
    """[n, 8] u8 -> [n, 8] u8: bit i of byte j becomes bit j of byte i (Warren, Hacker's Delight, 7-3)."""
    x = octets.view("<u8").astype(np.uint64)
    for shift, mask in _SWAPS:
        swap = (x ^ (x >> np.uint64(shift))) & np.uint64(mask)
        x ^= swap ^ (swap << np.uint64(shift))
    return x.astype("<u8", copy=False).view(np.uint8)
