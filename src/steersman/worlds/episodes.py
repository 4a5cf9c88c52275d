"""World: where a population of nets plays an episode each, and what of it is chance."""

from __future__ import annotations

from typing import Protocol

import numpy as np

Array = np.ndarray


class Members(Protocol):
    """The nets of a population, asked all at once."""

    def __call__(self, inputs: Array, /) -> Array:
        """[P, B, inputs] f32 -> [P, B, outputs] f32: B answers of each."""
        ...

    def only(self, rows: Array, /) -> Members:
        """Some of them: [P] bool or their places."""
        ...


class World(Protocol):
    """Where episodes are played, one by each net. It can be pickled, and plays the same wherever it is.

    Attributes:
        inputs, outputs: of a net: numbers of an observation, and what an action is made of.
        solved: the mean return that counts as solved; None: nobody says.
    """

    @property
    def inputs(self) -> int: ...

    @property
    def outputs(self) -> int: ...

    @property
    def solved(self) -> float | None: ...

    def starts(self, count: int, rng: np.random.Generator) -> Array:
        """[count, ...]: how episodes begin. All chance of an episode is in its row."""
        ...

    def play(self, members: Members, starts: Array) -> Array:
        """[P] f64: the return of an episode of each net, that does not depend on the rows beside it.

        Args:
            members: P nets.
            starts: [P, ...], of `starts`.
        """
        ...
