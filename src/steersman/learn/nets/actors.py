"""Nets of actions that are numbers: actors, and critics that learn side by side."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import nn

from steersman.learn.nets.graph import Graph
from steersman.learn.nets.modules import Net, Tensor, layers_of
from steersman.learn.nets.shape import Shape

Array = np.ndarray


class Actor(Net):
    """Scores of an explorer of numbers: `point`: D centres; `squashed`: D centres of z, then D logarithms of scales.

    What it scores outside of the limits the explorer takes for the limit itself.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = len(shape.bounds) * (1 if shape.kind == "point" else 2)
        self.layers = layers_of((shape.context, *shape.hidden, width))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        """[B, F] -> [B, S]; there are no candidates."""
        raw: Tensor = self.layers(context)
        if self.shape.kind == "squashed":
            return raw
        middle, half = (torch.tensor(part, dtype=raw.dtype, device=raw.device) for part in self._affine())
        return middle + half * raw

    def raw(self, context: Tensor) -> Tensor:
        """[B, F] -> [B, S] outputs, centres of a point in units of the training."""
        raw: Tensor = self.layers(context)
        return raw.float()

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        raw = graph.layers(context, self.layers)
        if self.shape.kind == "squashed":
            return raw
        middle, half = map(graph.constant, self._affine())
        return graph.op("Add", middle, graph.op("Mul", half, raw))

    def _affine(self) -> tuple[Array, Array]:
        low, high = np.array(self.shape.bounds).T
        return (low + high) / 2, (high - low) / 2


class Critics(nn.Module):
    """C nets of the same shape that never meet, in one product a layer: what a context and an action are worth."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], count: int) -> None:
        super().__init__()
        self.count = count
        widths = (inputs, *hidden, 1)
        pairs = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList([torch.empty(count, before, after) for before, after in pairs])
        self.biases = nn.ParameterList([torch.empty(count, 1, after) for _, after in pairs])

    def start(self, generator: torch.Generator) -> None:
        """Draw every weight uniformly within 1 / sqrt(inputs of its layer)."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1.0 / math.sqrt(max(weight.shape[1], 1))
            for parameter in (weight, bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, I] -> [C, B]."""
        value = rows.expand(self.count, *rows.shape)
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            value = torch.baddbmm(bias, value if place == 0 else value.relu_(), weight)
        return value[:, :, 0].float()

    def first(self, rows: Tensor) -> Tensor:
        """[B, I] -> [B], of the first net alone."""
        value = rows
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            value = torch.addmm(bias[0], value if place == 0 else value.relu_(), weight[0])
        return value[:, 0].float()


class Scalar(nn.Module):
    """One number that is learned."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def start(self, generator: torch.Generator) -> None:
        """Nothing is drawn."""


def beside(context: Tensor, action: Tensor) -> Tensor:
    """[B, F], [B, D] -> [B, F + D]: what critics read."""
    return torch.cat((context, action), dim=1)
