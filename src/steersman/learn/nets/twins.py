"""Twin critics of candidates: they help a training and are never served."""

from __future__ import annotations

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
