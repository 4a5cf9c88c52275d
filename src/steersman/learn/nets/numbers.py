"""Actions that are numbers inside a training: rows as tensors, points, and the density that an actor stands for.

Inside the training every number lies in [-1, 1], its bounds; outside, scores are what explorers of `core/density.py`
read. An actor's outputs are cut to their limits, not squashed: beyond a limit the gradient of what is learned is 0, and
`overshoot` leads back to where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.density import LOG_SCALES, REACH
from steersman.learn.nets.modules import Tensor
from steersman.learn.nets.training import rows_of
from steersman.learn.returns import Returns

Array = np.ndarray

LEAST = 1e-6
"""Of the mass at either end of a density no draw comes from, and so none that float32 could not tell from the end."""


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


def number_rows(*arrays: Array, device: torch.device | str = "cpu") -> NumberRows:
    """Arrays as tensors, f32, in the order of NumberRows."""
    return NumberRows(*(torch.from_numpy(array.astype(np.float32, copy=False)).to(device) for array in arrays))


def scaling(box: Numbers) -> Callable[[Array], Array]:
    """A function from actions [B, D] f32 within the bounds to [B, D] f32 in [-1, 1]."""
    low, high = np.array(box.low), np.array(box.high)
    middle, half = ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)
    return lambda action: np.clip((action - middle) / half, np.float32(-1), np.float32(1))


# points


def point(raw: Tensor) -> Tensor:
    """The action [B, D] that an actor of points means."""
    return raw.clamp(-1.0, 1.0)


def jitter(action: Tensor, scale: float, limit: float, source: torch.Generator) -> Tensor:
    """The actions with normal noise, each cut to `limit` and then to the bounds."""
    noise = torch.randn(action.shape, generator=source).to(action.device).mul_(scale).clamp_(-limit, limit)
    return (action + noise).clamp_(-1.0, 1.0)


# densities: the same that `core.density.Squashed` serves


def overshoot(raw: Tensor, squashed: bool) -> Tensor:
    """How far outputs [B, S] are beyond their limits, squared: mean over rows of the sum."""
    cut = torch.cat(_cut(raw), dim=1) if squashed else point(raw)
    return (raw - cut.detach()).square().sum(dim=1).mean()


def drawn(raw: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Actions of the density, differentiable, and the logarithms of their densities.

    Args:
        raw: [B, 2 D], outputs of the actor.
        uniforms: [B, D] in [0, 1).
    Returns:
        [B, D] in [-1, 1]; [B], per unit of volume of [-1, 1]^D.
    """
    centre, log_scale = _cut(raw)
    scale = log_scale.exp()
    below, mass = _ends(centre, scale)
    standard = torch.special.ndtri((below + uniforms * mass).clamp(LEAST, 1.0 - LEAST))
    z = (centre + scale * standard).clamp(-REACH, REACH)
    return z.tanh(), _log_density(z, standard, log_scale, mass)


def log_density(raw: Tensor, action: Tensor) -> Tensor:
    """[B], of actions [B, D] in [-1, 1]. One nearer to its bound than REACH allows counts as one there."""
    centre, log_scale = _cut(raw)
    reach = math.tanh(REACH)
    z = action.clamp(-reach, reach).atanh()
    scale = log_scale.exp()
    return _log_density(z, (z - centre) / scale, log_scale, _ends(centre, scale)[1])


def _cut(raw: Tensor) -> tuple[Tensor, Tensor]:
    centre, log_scale = raw.chunk(2, dim=1)
    return centre.clamp(-REACH, REACH), log_scale.clamp(*LOG_SCALES)


def _ends(centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mass of the normal law below -REACH, and within REACH."""
    below = torch.special.ndtr((-REACH - centre) / scale)
    return below, torch.special.ndtr((REACH - centre) / scale) - below


def _log_density(z: Tensor, standard: Tensor, log_scale: Tensor, mass: Tensor) -> Tensor:
    squash = 2.0 * (math.log(2.0) - z - nn.functional.softplus(-2.0 * z))  # log(1 - tanh(z)^2)
    each = -0.5 * standard.square() - log_scale - mass.log() - squash
    return each.sum(dim=1) - 0.5 * math.log(2.0 * math.pi) * z.shape[1]
