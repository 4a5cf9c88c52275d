"""What a batch says of the search as it is now: samples of older versions are seen from the present mean and sigma."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.noise import Noise
from steersman.learn.evolution import sums
from steersman.learn.evolution.sums import Kind, Shapes

Array = np.ndarray


@dataclass(frozen=True)
class Sight:
    """How noise of a version looks from the present one: shift + scale * noise, in units of the present sigma.

    Attributes:
        shift, scale: [d] f64, or [1]; of the present version 0 and 1.
        fresh: it is the present version.
    """

    shift: Array
    scale: Array
    fresh: bool


@dataclass(frozen=True)
class Evidence:
    """Rewards of perturbations, ordered by version and key, so that the order of a log can not matter.

    Attributes:
        noise, kind, shapes: what the keys stand for.
        size: d, the number of parameters.
        keys: [N] u64.
        reward: [N] f64, finite.
        stratum: [N] i64: a version and a block of time.
        weight: [N] f64 in [0, 1], 1 for samples of the present version.
        sight: [N] i64, place in `sights`.
        sights: of the versions.
    """

    noise: Noise
    kind: Kind
    shapes: Shapes
    size: int
    keys: Array
    reward: Array
    stratum: Array
    weight: Array
    sight: Array
    sights: tuple[Sight, ...]

    def share(self, value: Array) -> Array:
        """[N] f64: what every sample adds to a mean: its value times its weight over the sum of weights.

        Within a stratum the shares of values with mean 0 sum to 0, also where the weights differ.
        """
        value = value.copy()
        for stratum in np.unique(self.stratum[self.weight != 1.0]):
            rows = self.stratum == stratum
            if np.any(self.weight[rows] > 0):
                value[rows] -= np.average(value[rows], weights=self.weight[rows])
        return value * self.weight / self.weight.sum()

    def first(self, shares: Array) -> Array:
        """[d] f64: the sum of share times noise, in units of the present sigma from the present mean."""
        total = np.zeros(self.size)
        for place, sight in enumerate(self.sights):
            rows = self.sight == place
            if not rows.any():
                continue
            found = sums.weighted(self.noise, self.kind, self.keys[rows], shares[rows], self.size, self.shapes)
            total += found if sight.fresh else sight.shift * shares[rows].sum() + sight.scale * found
        return total

    def second(self, shares: Array) -> Array:
        """[d] f64: the sum of share times squared noise, seen likewise; for normal noise."""
        total = np.zeros(self.size)
        for place, sight in enumerate(self.sights):
            rows = self.sight == place
            if not rows.any():
                continue
            keys, mine = self.keys[rows], shares[rows]
            squares = sums.squared(self.noise, keys, mine, self.size)
            if sight.fresh:
                total += squares
            else:
                linear = sums.weighted(self.noise, self.kind, keys, mine, self.size)
                total += sight.shift**2 * mine.sum() + 2 * sight.shift * sight.scale * linear + sight.scale**2 * squares
        return total

    def rows(self) -> Array:
        """[N, d] f32, the noise itself: for searches over few parameters."""
        return sums.rows(self.noise, self.kind, self.keys.tolist(), self.size, self.shapes)


def importance(noise: Noise, keys: Array, sight: Sight, size: int) -> Array:
    """[N] f64 in [0, 1]: density of samples now over that when they were drawn, at most 1, for normal noise.

    Source: truncated importance sampling, Ionides 2008.
    """
    shift, scale = (np.broadcast_to(x, (size,)) for x in (sight.shift, sight.scale))
    seen = sums.dots(noise, keys, 2 * shift * scale, scale**2 - 1.0)  # sum of the squares now less those then
    ratio = -0.5 * (seen + np.sum(shift**2)) + np.sum(np.log(scale))
    return np.exp(np.minimum(0.0, ratio))
