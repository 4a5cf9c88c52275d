"""Nets that help a training and are never served: twin critics, the value of a context, one learned number."""

from __future__ import annotations

import math

import torch
from torch import nn

from steersman.learn.nets.modules import ActionNet, FeatureNet, Net, Tensor
from steersman.learn.nets.shape import Shape


class Twins(Net):
    """Two nets that learn the same from different starts; the smaller of both is less often too large."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        make = ActionNet if shape.kind == "actions" else FeatureNet
        self.nets = nn.ModuleList([make(shape), make(shape)])

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        """[B, K], the smaller one. Source: Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477, eq. 10."""
        return self.atoms(context, candidates).amin(dim=2)

    def atoms(self, context: Tensor, candidates: Tensor) -> Tensor:
        """[B, K, 2], both."""
        return torch.stack([net(context, candidates) for net in self.nets], dim=2)


class ContextNet(Net):
    """One number for a context, whatever the candidates."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.value = ActionNet(Shape("actions", shape.context, 1, shape.hidden))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        """[B, 1]; the candidates are not looked at."""
        return self.value(context, torch.ones(1, 1, 1, dtype=context.dtype, device=context.device))


class Number(Net):
    """A number above 0 that is learned, by its logarithm."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        """[], its logarithm; nothing else is looked at."""
        return self.log
