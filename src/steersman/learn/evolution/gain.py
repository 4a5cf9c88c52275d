"""What a batch says of a step before it is taken: the gain of the reward along it, with an interval."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from steersman.core.errors import DataError
from steersman.core.noise import Noise
from steersman.learn.evolution import sums
from steersman.learn.evolution.search import Search, Told

Array = np.ndarray

RESAMPLES = 2000


class Gain(Struct, frozen=True):
    """The gain of the mean reward by a step, were the reward a straight line along it.

    It is made of the samples that the step was made of, so it flatters the step: what it calls worse is worse.

    Attributes:
        value: in units of reward; low, high: 95%, by a bootstrap over mirrored pairs.
        pairs: that it is made of; a key without its mirror is one, too.
    """

    value: float
    low: float
    high: float
    pairs: int


def gain(search: Search, after: Search, told: Told) -> Gain:
    """The gain by going from one search to the next, by the samples of the first.

    The mean over samples of (reward - mean of the block) * <noise, step / sigma> is the slope of the mean reward
    along the step: E[reward * noise] = sigma * gradient, for normals by Stein's lemma, for signs to the second order.

    Raises:
        DataError: the search has no sigma for each parameter (CMA and SepCMA), or a sample has no finite reward.
    """
    if "sigma" not in search.arrays:
        raise DataError(f"{type(search.settings.solver).__name__} has no sigma to measure a step by")
    rows = np.flatnonzero((told.generation == search.generation) & np.isfinite(told.reward))
    rows = rows[np.unique(told.keys[rows], return_index=True)[1]]  # a record that came twice counts once
    if not len(rows):
        raise DataError("no sample is of this search")
    keys, reward = told.keys[rows], told.reward[rows].astype(np.float64)
    block = np.zeros(len(rows), dtype=np.int64) if told.block is None else told.block[rows]
    _, place = np.unique(block, return_inverse=True)
    reward = reward - (np.bincount(place, reward) / np.bincount(place))[place]
    step = (after.mean - search.mean) / search.arrays["sigma"]
    along = sums.projected(Noise(search.run), search.settings.kind, keys, step, search.settings.shapes)
    _, pair = np.unique(keys >> np.uint64(1), return_inverse=True)
    slope = np.bincount(pair, reward * along) * (pair.max() + 1) / len(rows)  # [P], their mean is that over samples
    rng = np.random.Generator(np.random.Philox(key=0))
    weights = rng.multinomial(len(slope), np.full(len(slope), 1 / len(slope)), size=RESAMPLES)  # [B, P]
    low, high = np.quantile(weights @ slope / len(slope), [0.025, 0.975])
    return Gain(float(slope.mean()), float(low), float(high), len(slope))
