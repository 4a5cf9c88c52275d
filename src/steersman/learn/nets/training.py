"""Rows to tensors, and the one training step."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from steersman.core.batch import Batch
from steersman.core.errors import TrainingError
from steersman.core.policy import Policy
from steersman.learn import Look, Progress
from steersman.learn.nets.kinds import NETS
from steersman.learn.nets.modules import Net, Tensor
from steersman.learn.nets.shape import Shape
from steersman.learn.returns import Returns

Array = np.ndarray
no_grad = torch.no_grad
linspace = torch.linspace

REPORT = 100
"""Steps from one report of progress, and one look at whether training diverges, to the next."""


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


def gatherer(batch: Batch, returns: Returns, unit: float) -> Callable[[Array], Minibatch]:
    """A function from places in `returns` [B] to their Minibatch. It copies those rows and no others.

    Args:
        unit: rewards are divided by it.
    """
    reward = (returns.reward / unit).astype(np.float32)
    discount = returns.discount.astype(np.float32)
    shared = batch.candidates[:1].copy() if is_shared(batch.candidates) else None

    def gather(places: Array) -> Minibatch:
        row, until = returns.row.take(places), returns.until.take(places)
        action = _rows(batch.action, row)
        taken = batch.candidates[row, action] if shared is None else shared[0].take(action, axis=0)
        arrays = (
            _rows(batch.context, row),
            taken[:, None],
            reward.take(places),
            discount.take(places),
            _rows(batch.context, until),
            _rows(batch.candidates, until) if shared is None else shared,
            _rows(batch.mask, until),
            _rows(batch.action, until),
            _rows(batch.candidates, row) if shared is None else shared,
            _rows(batch.mask, row),
            action,
        )
        return Minibatch(*map(torch.from_numpy, arrays))

    return gather


def _rows(array: Array, rows: Array) -> Array:
    """Copies of some rows: `take` is five times as fast as indexing, but copies the whole of a view before."""
    return array.take(rows, axis=0) if array.flags.c_contiguous else array[rows]


def is_shared(candidates: Array) -> bool:
    """Whether all rows are one row in memory."""
    return candidates.strides[0] == 0


def pick(candidates: Tensor, place: Tensor) -> Tensor:
    """One candidate a row.

    Args:
        candidates: [B, K, A], or [1, K, A] that all rows share.
        place: [B] i64.
    Returns:
        [B, 1, A].
    """
    if len(candidates) == 1:
        return candidates[0, place][:, None]
    return candidates[torch.arange(len(place)), place][:, None]


# training


def generator(seed: int) -> torch.Generator:
    """The source of every random number of one training: nobody else draws from it, so the seed decides."""
    return torch.Generator().manual_seed(seed)


def new_net(shape: Shape, source: torch.Generator) -> Net:
    """A net with freshly drawn weights, f32."""
    net = NETS[shape.kind](shape)
    net.start(source)
    return net


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


class Student:
    """A net that learns by Adam, and its slow copy.

    All weights lie in one vector, which the layers see parts of: a step is then a handful of operations, however
    many layers there are.

    Attributes:
        net: learns with every step.
        slow: its exponential average, for targets that must not run away with what is learned.
    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """

    MEAN, SQUARE, TINY = 0.9, 0.999, 1e-8

    def __init__(self, net: Net, rate: Callable[[int], float], polyak: float) -> None:
        """Flatten the net, and copy it.

        Args:
            rate: learning rate, a function of the steps done.
            polyak: share of the net that its slow copy takes over at every step, in (0, 1].
        """
        self.net = net
        self.slow = copy.deepcopy(net)
        self._rate = rate
        self._polyak = polyak
        self._done = 0
        self._weights, self._gradient = _flatten(self.net)
        self._slow, _ = _flatten(self.slow)
        self.slow.requires_grad_(False)
        self._mean = torch.zeros_like(self._weights)
        self._square = torch.zeros_like(self._weights)

    def step(self, loss: Tensor) -> None:
        """The one training step: against the gradient of the loss, then the slow copy follows."""
        self._gradient.zero_()
        loss.backward()
        rate = self._rate(self._done)
        self._done += 1
        with no_grad():
            self._mean.lerp_(self._gradient, 1.0 - self.MEAN)
            self._square.mul_(self.SQUARE).addcmul_(self._gradient, self._gradient, value=1.0 - self.SQUARE)
            spread = (self._square / (1.0 - self.SQUARE**self._done)).sqrt_().add_(self.TINY)
            self._weights.addcdiv_(self._mean, spread, value=-rate / (1.0 - self.MEAN**self._done))
            self._slow.lerp_(self._weights, self._polyak)


def _flatten(net: Net) -> tuple[Tensor, Tensor]:
    """Move the weights of a net into one vector and their gradients into another; its layers keep views of both."""
    parameters = list(net.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    weights = torch.cat([parameter.detach().flatten() for parameter in parameters])
    gradient = torch.zeros_like(weights)
    for parameter, weight, slope in zip(parameters, weights.split(sizes), gradient.split(sizes), strict=True):
        parameter.data, parameter.grad = weight.view_as(parameter), slope.view_as(parameter)
    return weights, gradient


def minibatches(rows: int, size: int, steps: int, source: torch.Generator) -> Iterator[Array]:
    """`steps` times `size` places in [0, rows), drawn with replacement."""
    for start in range(0, steps, REPORT):
        yield from torch.randint(rows, (min(REPORT, steps - start), size), generator=source).numpy()


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

    def __call__(self, done: int, loss: Tensor, value: Tensor) -> dict[str, float]:
        """Figures of a step: `loss`; `q` and `q_largest`, mean and largest |value| of the rows, in units of reward.

        Raises:
            TrainingError: the loss is not finite, or a value is beyond the limit.
        """
        found, largest = float(loss) * self.unit**2, float(value.abs().max()) * self.unit
        if not math.isfinite(found) or not largest <= self.limit:
            raise TrainingError(
                f"step {done}: the loss is {found:.4g} and the largest |value| {largest:.4g}; "
                f"the limit is {self.limit:.4g}, {self.reason}",
                hint="training diverges: lower learning_rate, polyak or discount",
            )
        return {"loss": found, "q": float(value.mean()) * self.unit, "q_largest": largest}


def train(
    update: Callable[[Array], tuple[Tensor, Tensor]],
    draws: Iterator[Array],
    steps: int,
    watch: Watch,
    progress: Progress | None,
) -> None:
    """The loop around the steps: draws, updates, looks, reports.

    Args:
        update: places of a minibatch [B] -> its loss and its values [B]; it makes the step.
        draws: places of one minibatch after the other, `steps` of them.
        progress: told every REPORT steps and at the end: loss, q, steps/s.
    Raises:
        TrainingError: the training diverges.
    """
    begun = time.perf_counter()
    with one_thread():
        for done, places in enumerate(draws, start=1):
            loss, value = update(places)
            if done % REPORT == 0 or done == steps:
                figures = watch(done, loss.detach(), value.detach())
                if progress is not None:
                    progress(done, steps, figures | {"steps/s": done / (time.perf_counter() - begun)})


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
