"""Simulator: a world that answers at once, so that a learner can act in it. What learn is handed and worlds are."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from steersman.core.features import Encoder

Array = np.ndarray


class Seen(NamedTuple):
    """What is to be decided in E episodes that run side by side.

    Attributes:
        context: [E, F] f32.
        candidates: [E, K, A] f32, may be a broadcast view; K = A = 0 where actions are numbers.
        mask: [E, K] bool, True where there is a candidate.
    """

    context: Array
    candidates: Array
    mask: Array


class Moved(NamedTuple):
    """What came of one decision in each of E episodes.

    Attributes:
        reward: [E] f64.
        discount: [E] f64 in [0, 1], of the value of what was reached; 0: the world ended the episode.
        over: [E] bool, the episode is over, by the world or by a rule; where a rule ended it the discount is not 0.
        reached: what the decisions led to, in the same episodes.
        seen: what is to be decided next: the same, or the start of another episode where one is over.
    """

    reward: Array
    discount: Array
    over: Array
    reached: Seen
    seen: Seen


class Simulator(Protocol):
    """E episodes side by side, each followed by another one when it is over."""

    @property
    def encoder(self) -> Encoder:
        """What made the columns."""
        ...

    def start(self, seed: int) -> Seen:
        """Begin anew; the seed decides about all chance that follows."""
        ...

    def step(self, action: Array) -> Moved:
        """Carry out one action an episode: [E] i64 places among the candidates, or [E, D] f32 within the bounds."""
        ...
