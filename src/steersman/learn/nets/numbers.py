"""Actions that are numbers inside a training: rows as tensors, and noise on actions.

Inside the training every number lies in [-1, 1], its bounds; outside, scores are what explorers of `core/density.py`
read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.learn.nets.modules import Tensor
from steersman.learn.nets.random import Noise
from steersman.learn.nets.training import CPU, rows_of, tensors
from steersman.learn.returns import Returns

Array = np.ndarray


class NumberRows(NamedTuple):
    """B rows of a batch of numbers as tensors, f32.

    Attributes:
        context: [B, F].
        action: [B, D], the action that was taken, in [-1, 1].
        reward: [B], the return, in the units of the training.
        discount: [B], of the value at the next row; 0: the episode is over before it.
        next_context: [B, F].
    """

    context: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_context: Tensor


def number_gatherer(
    batch: Batch, returns: Returns, unit: float, box: Numbers, device: torch.device
) -> Callable[[Array], NumberRows]:
    """A function from places in `returns` [B] to their rows. It copies those rows and no others.

    Args:
        unit: rewards are divided by it.
        box: bounds of the action.
        device: where the tensors go.
    """
    reward = (returns.reward / unit).astype(np.float32)
    discount = returns.discount.astype(np.float32)
    to_training = scaling(box)

    def gather(places: Array) -> NumberRows:
        row, until = returns.row.take(places), returns.until.take(places)
        context, action = rows_of(batch.context, row), to_training(rows_of(batch.action, row))
        return number_rows(
            context, action, reward.take(places), discount.take(places), rows_of(batch.context, until), device=device
        )

    return gather


def number_rows(*arrays: Array, device: torch.device = CPU) -> NumberRows:
    """Arrays as tensors, f32, in the order of NumberRows."""
    return NumberRows(*tensors((array.astype(np.float32, copy=False) for array in arrays), device))


def scaling(box: Numbers) -> Callable[[Array], Array]:
    """A function from actions [B, D] f32 within the bounds to [B, D] f32 in [-1, 1]."""
    low, high = np.array(box.low), np.array(box.high)
    middle, half = ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)
    return lambda action: np.clip((action - middle) / half, np.float32(-1), np.float32(1))


def jitter(action: Tensor, scale: float, limit: float, source: Noise) -> Tensor:
    """The actions with normal noise, each cut to `limit` and then to the bounds."""
    noise = source.normal(*action.shape).to(action.device).mul_(scale).clamp_(-limit, limit)
    return (action + noise).clamp_(-1.0, 1.0)
