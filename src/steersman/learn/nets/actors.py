"""Nets of actions that are numbers: actors, and critics that learn side by side."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from steersman.learn.nets.graph import Graph
from steersman.learn.nets.modules import Net, Tensor, layers_of, start
from steersman.learn.nets.passes import Layers, Pass, Passes
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

    def forward(self, context: Tensor, candidates: Tensor | None = None) -> Tensor:
        """[B, F] -> [B, S]; there are no candidates."""
        raw: Tensor = self.layers(context)
        if self.shape.kind == "squashed":
            return raw
        middle, half = (torch.tensor(part, dtype=raw.dtype, device=raw.device) for part in self._affine())
        return middle + half * raw

    def passed(self, context: Tensor) -> Pass:
        """[B, F] -> [B, S] outputs, centres of a point in units of the training."""
        return Pass(self.layers, context)

    def raw(self, context: Tensor) -> Tensor:
        """The same, and no way back."""
        return self.passed(context).out

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
    """C nets of the same shape that never meet: what a context and an action are worth.

    Layer by layer in one product of all nets (`bmm`) they were measured 10% slower than one after the other.
    """

    def __init__(self, inputs: int, hidden: tuple[int, ...], count: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList([layers_of((inputs, *hidden, 1)) for _ in range(count)])
        self._layers = [net for net in self.nets if isinstance(net, Layers)]

    def start(self, generator: torch.Generator) -> None:
        """Draw every weight uniformly within 1 / sqrt(inputs of its layer)."""
        start(self, generator)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, I] -> [C, B]."""
        return torch.stack([net(rows)[:, 0] for net in self.nets]).float()

    def passed(self, rows: Tensor) -> Passes:
        """[B, I] through all of them."""
        return Passes(self._layers, rows)

    def first(self, rows: Tensor) -> Passes:
        """[B, I] through the first of them alone."""
        return Passes(self._layers[:1], rows)


class Scalar(nn.Module):
    """One number that is learned."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def start(self, generator: torch.Generator) -> None:
        """Nothing is drawn."""

    def teach(self, gradient: Tensor) -> None:
        """Set its gradient, one number."""
        assert self.value.grad is not None
        self.value.grad.fill_(gradient)


def beside(context: Tensor, action: Tensor) -> Tensor:
    """[B, F], [B, D] -> [B, F + D]: what critics read."""
    return torch.cat((context, action), dim=1)


def stacked(first: Tensor, second: Tensor) -> Tensor:
    """[B, D], [C, D] -> [B + C, D]."""
    return torch.cat((first, second), dim=0)
