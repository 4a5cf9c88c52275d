"""Rows to tensors, and the one training step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from steersman.core.batch import Batch
from steersman.core.errors import TrainingError
from steersman.core.policy import Policy
from steersman.core.shared import is_shared
from steersman.learn import Look, Progress
from steersman.learn.nets import processes
from steersman.learn.nets.kinds import NETS
from steersman.learn.nets.modules import Net, Tensor
from steersman.learn.nets.random import Draws
from steersman.learn.nets.shape import Shape
from steersman.learn.nets.student import State
from steersman.learn.returns import Returns
from steersman.learn.run import HERE, Run

Array = np.ndarray
no_grad = torch.no_grad
linspace = torch.linspace
from_numpy = torch.from_numpy

REPORT = 100
"""Steps from one report of progress, and one look at whether training diverges, to the next. Minibatches are drawn, and
random numbers begun anew, for so many steps: a training can go on from there."""

CPU = torch.device("cpu")


# rows to tensors


class Minibatch(NamedTuple):
    """B rows as tensors; `next` is the row at which the return stops.

    Attributes:
        context: [B, F] f32.
        taken: [B, 1, A] f32, the candidate that was taken.
        reward: [B] f32, the return, in the units of the training.
        discount: [B] f32, of the value at the next row; 0: the episode is over before it.
        next_context: [B, F] f32.
        next_candidates: [B, K, A] f32, or [1, K, A] if all rows share them.
        next_mask: [B, K] bool.
        next_taken: [B] i64, place of the candidate that was taken at the next row.
        candidates: [B, K, A] f32, or [1, K, A], of the row itself.
        mask: [B, K] bool, of the row itself.
        action: [B] i64, place of the candidate that was taken at the row itself.
    """

    context: Tensor
    taken: Tensor
    reward: Tensor
    discount: Tensor
    next_context: Tensor
    next_candidates: Tensor
    next_mask: Tensor
    next_taken: Tensor
    candidates: Tensor
    mask: Tensor
    action: Tensor


def gatherer(batch: Batch, returns: Returns, unit: float, device: torch.device = CPU) -> Callable[[Array], Minibatch]:
    """A function from places in `returns` [B] to their Minibatch. It copies those rows and no others, so that a batch
    may be mapped from a disk and larger than the memory.

    Args:
        unit: rewards are divided by it.
        device: where the tensors go.
    """
    reward = (returns.reward / unit).astype(np.float32)
    discount = returns.discount.astype(np.float32)
    shared = batch.candidates[:1].copy() if is_shared(batch.candidates) else None

    def gather(places: Array) -> Minibatch:
        row, until = returns.row.take(places), returns.until.take(places)
        action = rows_of(batch.action, row)
        taken = batch.candidates[row, action] if shared is None else shared[0].take(action, axis=0)
        arrays = (
            rows_of(batch.context, row),
            taken[:, None],
            reward.take(places),
            discount.take(places),
            rows_of(batch.context, until),
            rows_of(batch.candidates, until) if shared is None else shared,
            rows_of(batch.mask, until),
            rows_of(batch.action, until),
            rows_of(batch.candidates, row) if shared is None else shared,
            rows_of(batch.mask, row),
            action,
        )
        return Minibatch(*tensors(arrays, device))

    return gather


def rows_of(array: Array, rows: Array) -> Array:
    """Copies of some rows: `take` is five times as fast as indexing, but copies the whole of a view before."""
    if array.flags.c_contiguous:
        return np.asarray(array).take(rows, axis=0)
    return array[:1].repeat(len(rows), axis=0) if is_shared(array) else np.asarray(array[rows])


def tensors(arrays: Iterable[Array], device: torch.device) -> Iterator[Tensor]:
    """The arrays on a device; on a CPU they stay where they are, and nobody is asked to move them."""
    made = map(torch.from_numpy, arrays)
    return made if device.type == "cpu" else (tensor.to(device) for tensor in made)


# training


def new_net(shape: Shape, source: torch.Generator, device: torch.device = CPU) -> Net:
    """A net with freshly drawn weights, f32: the same ones on every device."""
    net = NETS[shape.kind](shape)
    net.start(source)
    return net.to(device)


def cosine(first: float, last: float, steps: int) -> Callable[[int], float]:
    """A learning rate that falls from `first` to `last` along half a cosine: a function of the steps done.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """
    return lambda done: last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * done / steps))


def squared(value: Tensor, target: Tensor) -> Tensor:
    """Mean squared error: the only one of the usual losses whose best answer is the mean.

    Huber's loss answers a value between mean and median: where one session in ten ends at random, it learns a
    value ten times too high.
    """
    return nn.functional.mse_loss(value, target)


def cross_entropy(logits: Tensor, place: Tensor) -> Tensor:
    """Mean of minus the logarithm of the probability of one place a row: [B, K] logits, -inf: never; [B] i64."""
    return nn.functional.cross_entropy(logits, place)


@dataclass(frozen=True)
class Watch:
    """Looks at values while they are learned.

    Attributes:
        unit: of reward, that a learned value of 1 stands for.
        limit: largest |value| that is not a divergence, in units of reward.
        reason: what the limit comes from, for the error.
    """

    unit: float
    limit: float
    reason: str

    def __call__(self, done: int, loss: Tensor, value: Tensor | None, share: float = 1.0) -> dict[str, float]:
        """Figures of a step: `loss`; `q` and `q_largest`, mean and largest |value| of the rows, in units of reward.

        The latter two are left out where no value is learned.

        Args:
            share: of the minibatch, that these rows are: all processes get the figures of all rows.
        Raises:
            TrainingError: the loss is not finite, or a value is beyond the limit.
        """
        seen = torch.zeros_like(loss)[None] if value is None else value
        means = processes.added(torch.stack([loss.float(), seen.float().mean()]) * share)
        largest = float(processes.largest(seen.float().abs().max())) * self.unit
        found = float(means[0]) * self.unit**2
        if not math.isfinite(found) or not largest <= self.limit:
            raise TrainingError(
                f"step {done}: the loss is {found:.4g} and the largest |value| {largest:.4g}; "
                f"the limit is {self.limit:.4g}, {self.reason}",
                hint="training diverges: lower learning_rate, polyak or discount",
            )
        if value is None:
            return {"loss": found}
        return {"loss": found, "q": float(means[1]) * self.unit, "q_largest": largest}


def train(
    update: Callable[[Array], tuple[Tensor, Tensor | None]],
    state: State,
    draws: Draws,
    steps: int,
    watch: Watch,
    progress: Progress | None,
    run: Run = HERE,
) -> None:
    """The loop around the steps: draws, updates, looks, reports; the state is kept, so that it can go on from there.

    Args:
        update: places of a minibatch [B] -> its loss and its values [B], None if it learns none; it makes the step.
        state: all that the steps change.
        progress: told every REPORT steps and at the end: loss, q, steps/s.
        run: where it goes on from, and who keeps it: with the same seed a training that was interrupted gives the same
            bits as one that was not.
    Raises:
        TrainingError: the training diverges.
        DataError: the state to go on from is not of such a training.
    """
    first = 0 if run.start is None else state.load(run.start)
    begun = time.perf_counter()
    kept, precision = first, _precision(run)
    with one_thread():
        for start in range(first, steps, REPORT):
            state.begin(start)
            done = min(start + REPORT, steps)
            for places, part in draws.block(state.seed, start, done - start):
                state.split(part)
                with precision:
                    loss, value = update(places)
            figures = watch(done, loss.detach(), None if value is None else value.detach(), part.share)
            if progress is not None:
                progress(done, steps, figures | {"steps/s": (done - first) / (time.perf_counter() - begun)})
            if run.keep is not None and done < steps and done - kept >= run.every:
                run.keep(done, state.arrays(done))
                kept = done


def _precision(run: Run) -> AbstractContextManager[object]:
    """No cache of cast weights: an update may step one net and then look at it."""
    if run.precision == "f32":
        return nullcontext()
    return torch.autocast(processes.device_of(run).type, torch.bfloat16, cache_enabled=False)


def looking(progress: Progress | None, look: Look | None, now: Callable[[], Policy]) -> Progress | None:
    """Both as one.

    Args:
        now: gives the policy as it is.
    """
    if look is None:
        return progress

    def both(done: int, steps: int, figures: dict[str, float]) -> None:
        if progress is not None:
            progress(done, steps, figures)
        look(done, steps, figures, now)

    return both


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread meanwhile: nets this small lose more by waiting for a second one than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
