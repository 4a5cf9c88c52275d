"""Nets that say what comes next: several of them, each a normal law of numbers and the chance of an end."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from steersman.learn.nets.modules import Tensor, layers_of, start

LOG_SCALES = (-4.0, 2.0)
"""Of the standard deviations, in units of what is predicted: below, every miss is as good as none."""


class Laws(NamedTuple):
    """What M members say of B rows.

    Attributes:
        mean, log_scale: [M, B, O].
        end: [M, B], logits.
    """

    mean: Tensor
    log_scale: Tensor
    end: Tensor


class Lessons(NamedTuple):
    """B rows as tensors, f32.

    Attributes:
        given: [B, I], context and action.
        target: [B, O], in units of their standard deviations.
        known: [B, O], 1 where the target was seen.
        ended: [B], 1 where the episode terminated.
        end_known: [B], 1 where that was seen.
        weight: [M, B], how often the row is in the sample of each member.
    """

    given: Tensor
    target: Tensor
    known: Tensor
    ended: Tensor
    end_known: Tensor
    weight: Tensor


class Ensemble(nn.Module):
    """M nets of the same shape that never meet."""

    def __init__(self, inputs: int, outputs: int, hidden: tuple[int, ...], members: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.nets = nn.ModuleList([layers_of((inputs, *hidden, 2 * outputs + 1)) for _ in range(members)])

    def start(self, generator: torch.Generator) -> None:
        """Draw every weight uniformly within 1 / sqrt(inputs of its layer)."""
        start(self, generator)

    def forward(self, given: Tensor) -> Laws:
        """[B, I] -> their laws."""
        found = torch.stack([net(given) for net in self.nets]).float()
        mean, log_scale = found[:, :, : self.outputs], found[:, :, self.outputs : -1]
        return Laws(mean, log_scale.clamp(*LOG_SCALES), found[:, :, -1])


def unlikeliness(laws: Laws, rows: Lessons) -> Tensor:
    """How unlikely the rows are, mean over what was seen of them and over members: what an ensemble makes small.

    The normal law's misses count by 1 / scale and not by its square, or rows that are predicted well would be all that
    is learned from.
    Source: Seitzer et al. 2022, arXiv:2203.09168, eq. 5 with beta = 1/2; Chua et al. 2018, arXiv:1805.12114, eq. 1.
    """
    away = (rows.target - laws.mean) * (-laws.log_scale).exp()
    each = (0.5 * away.square() + laws.log_scale) * laws.log_scale.detach().exp()
    end = nn.functional.binary_cross_entropy_with_logits(laws.end, rows.ended.expand_as(laws.end), reduction="none")
    return ((each * rows.known).sum(dim=2) * rows.weight).mean() + (end * rows.end_known * rows.weight).mean()
