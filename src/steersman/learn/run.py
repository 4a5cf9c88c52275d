"""Run: how a training runs, and what it goes on from. No torch: flow makes it, learners read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import ConfigError

Array = np.ndarray

Keep = Callable[[int, Mapping[str, Array]], None]
"""(steps done, all that changes from step to step: name -> array) -> None: puts it where it outlives the process."""


@dataclass(frozen=True, eq=False)
class Run:
    """How a training runs. What is learned depends on the rows, and on the rest by no more than rounding.

    Attributes:
        rows: [R] i64, rows of the batch to learn from, ascending, whole units; None: all. The others are never read.
        device: `auto`: a CUDA device if there is one.
        precision: of the products inside nets; weights and their averages are float32 always.
        start: the state to go on from, as `keep` was told it; empty: begin.
        keep: told the state now and then, so that a training that is killed can go on from it; None: nobody is.
        every: steps between two of these; rounded up to the next report.
    """

    rows: Array | None = None
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    precision: Literal["f32", "bf16"] = "f32"
    start: Mapping[str, Array] | None = None
    keep: Keep | None = None
    every: int = 1000

    def within(self, batch: Batch) -> Array:
        """[R] i64, the rows of a batch that are learned from."""
        return np.arange(len(batch)) if self.rows is None else self.rows

    def of(self, array: Array) -> Array:
        """The rows of an array [N, ...] that are learned from: a copy, if they are not all."""
        return array if self.rows is None else array[self.rows]

    def plain(self, batch: Batch, who: str) -> Batch:
        """The rows to learn from, for a learner that goes through them once, on the CPU, in one process.

        Args:
            who: it is, for the error.
        Raises:
            ConfigError: a device, a precision or processes are asked for that it has no use for.
        """
        asked = {"device cuda": self.device == "cuda", "precision bf16": self.precision == "bf16"}
        asked[f"{world()} processes"] = world() > 1
        for what, wanted in asked.items():
            if wanted:
                raise ConfigError(f"{who} run on the CPU, in one process, in float64; {what} is no use to them")
        return batch if self.rows is None else batch.take(self.rows)


HERE = Run()
"""All rows, on the CPU, in float32; nothing is kept."""


def rank() -> int:
    """Which of the processes that train together this one is, from 0: as torchrun says."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together: as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))
