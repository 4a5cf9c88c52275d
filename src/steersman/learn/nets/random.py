"""Where the random numbers of a training come from: of the minibatches, and of what learners draw in their steps."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from steersman.core.errors import DataError
from steersman.learn.run import rank, world

Array = np.ndarray
Tensor = torch.Tensor
Generator = torch.Generator
rand = torch.rand


def generator(seed: int) -> torch.Generator:
    """The source of every random number of one training: nobody else draws from it, so the seed decides."""
    return torch.Generator().manual_seed(seed)


def places(rows: int, size: int, source: torch.Generator) -> Array:
    """[size] places in [0, rows), drawn with replacement."""
    return torch.randint(rows, (size,), generator=source).numpy()


def seed_of(seed: int, done: int, what: str) -> int:
    """Seeds of different streams that have nothing to do with each other."""
    return int.from_bytes(hashlib.sha256(f"{seed} {done} {what}".encode()).digest()[:7])


def shuffled(rows: int, source: torch.Generator) -> Array:
    """[rows] places in [0, rows), each once, in random order."""
    return torch.randperm(rows, generator=source).numpy()


@dataclass(frozen=True, eq=False)
class Part:
    """Which part of a minibatch a process has.

    Attributes:
        share: of its rows.
        size: rows of the minibatch; 0: as many as the process has.
        rows: [B] i64, which of them the process has; None: all.
    """

    share: float = 1.0
    size: int = 0
    rows: Tensor | None = None


WHOLE = Part()


class Noise:
    """Random numbers of steps: every process draws those of the whole minibatch, the same ones, and keeps its rows'.

    So what is learned does not depend on how many processes there are, but for rounding.

    Attributes:
        source: of them.
        part: of the minibatch, that this process has; `train` says it.
    """

    def __init__(self, source: torch.Generator) -> None:
        """Of a minibatch that is not split."""
        self.source, self.part = source, WHOLE

    def uniform(self, rows: int, columns: int) -> Tensor:
        """[rows, columns] in [0, 1). The rows are the process's own, once or some times over."""
        return self._own(torch.rand, rows, columns)

    def normal(self, rows: int, columns: int) -> Tensor:
        """The same, of the standard normal law."""
        return self._own(torch.randn, rows, columns)

    def _own(self, draw: Callable[..., Tensor], rows: int, columns: int) -> Tensor:
        own = self.part.rows
        if own is None:
            return draw(rows, columns, generator=self.source)
        return draw(rows // len(own), self.part.size, columns, generator=self.source)[:, own].flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Draws:
    """Places of minibatches, drawn with replacement; every process draws the same ones and keeps those of its units.

    So what is learned does not depend on how many processes there are, but for rounding.

    Attributes:
        unit: [M] i64, whose row each place is.
        size: places of a minibatch.
    """

    unit: Array
    size: int

    def block(self, seed: int, done: int, steps: int) -> Iterator[tuple[Array, Part]]:
        """The next `steps` minibatches after `done` steps: places, and which part of the minibatch they are."""
        source = generator(seed_of(seed, done, "places"))
        drawn = torch.randint(len(self.unit), (steps, self.size), generator=source).numpy()
        if world() == 1:
            yield from ((places, WHOLE) for places in drawn)
            return
        for places in drawn:
            rows = np.flatnonzero(self._own[places])
            if len(rows):
                yield places[rows], Part(len(rows) / self.size, self.size, torch.from_numpy(rows))
            else:  # one for nothing: it must make as many steps as the others
                yield self._any, Part(0.0, self.size, torch.zeros(1, dtype=torch.int64))

    @functools.cached_property
    def _own(self) -> Array:
        """[M] bool: the units of a process."""
        return self.unit % world() == rank()

    @functools.cached_property
    def _any(self) -> Array:
        """[1] a place of this process."""
        own = np.flatnonzero(self._own)[:1]
        if not len(own):
            raise DataError(f"process {rank()} of {world()} has no unit to learn from", hint="use fewer processes")
        return own
