"""Passes through linear layers: rows on their way in, and gradients on their way back, written out.

Autograd finds the same gradients. But in nets this small its search for the way costs as much as a product of matrices,
and it adds every gradient to the one before, which here is written over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Tensor = torch.Tensor

_above = torch.ops.aten.threshold_backward.grad_input


class Layers(nn.Sequential):
    """Linear layers with ReLU between them, which can be passed by hand.

    Attributes:
        pairs: weight [O, I] and bias [O] of each layer.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.pairs = [(layer.weight, layer.bias) for layer in layers if isinstance(layer, nn.Linear)]

    def forward(self, rows: Tensor) -> Tensor:
        """[B, I] -> [B, O]. Where autograd is off nobody asks again what a layer made, so its ReLU writes over it."""
        if torch.is_grad_enabled():
            return super().forward(rows)
        for place, layer in enumerate(self):
            rows = rows.relu_() if place and isinstance(layer, nn.ReLU) else layer(rows)
        return rows


class Pass:
    """Rows that have gone through layers, whose weights must stay as they are until a gradient has come back.

    Autograd must be off meanwhile.

    Attributes:
        out: [B, O] f32, what the last layer made of them.
    """

    def __init__(self, layers: Layers, rows: Tensor) -> None:
        """Go through.

        Args:
            rows: [B, I].
        """
        self._pairs = layers.pairs
        self._given = [rows]  # to each layer
        for weight, bias in self._pairs[:-1]:
            self._given.append(nn.functional.linear(self._given[-1], weight, bias).relu_())
        self.out = nn.functional.linear(self._given[-1], *self._pairs[-1]).float()

    def teach(self, gradient: Tensor) -> Tensor:
        """Set the gradient of every weight, in the place of what was there.

        Args:
            gradient: [B, O], of a loss by `out`.
        Returns:
            [B, H], the same by what the first layer made of the rows.
        """
        for place in reversed(range(len(self._pairs))):
            teach_layer(*self._pairs[place], self._given[place], gradient)
            if place:
                gradient = self.below(gradient, place)
        return gradient

    def inputs(self, gradient: Tensor) -> Tensor:
        """[B, I] gradient of a loss by the rows, from that by `out` [B, O]; no weight learns from it."""
        for place in reversed(range(1, len(self._pairs))):
            gradient = self.below(gradient, place)
        return (gradient @ self._pairs[0][0]).float()

    def below(self, gradient: Tensor, place: int = 0) -> Tensor:
        """The gradient before the ReLU that a layer was given the rows by, from that by what it made of them."""
        below = gradient @ self._pairs[place][0]
        return _above(below, self._given[place], 0.0, grad_input=below)


class Passes:
    """Rows that have gone through nets of one output each, side by side.

    Attributes:
        value: [C, B].
    """

    def __init__(self, nets: Sequence[Layers], rows: Tensor) -> None:
        """Go through all of them."""
        self._each = [Pass(net, rows) for net in nets]
        self.value = torch.cat([one.out for one in self._each], dim=1).t()

    def teach(self, gradient: Tensor) -> None:
        """Set the gradient of every weight, from that of a loss by the values [C, B]."""
        for one, own in zip(self._each, gradient, strict=True):
            one.teach(own[:, None])

    def inputs(self, gradient: Tensor) -> Tensor:
        """[B, I] gradient by the rows, from that of a loss by the values [C, B]; no weight learns from it."""
        first, *others = (one.inputs(own[:, None]) for one, own in zip(self._each, gradient, strict=True))
        for other in others:
            first += other
        return first


def teach_layer(weight: Tensor, bias: Tensor | None, given: Tensor, gradient: Tensor) -> None:
    """Set the gradient of a linear layer, in the place of what was there.

    Args:
        weight, bias: of the layer.
        given: [B, I] rows.
        gradient: [B, O], of a loss by what it made of them.
    """
    _product(gradient.t(), given, weight.grad)
    if bias is not None:
        torch.sum(gradient, 0, dtype=bias.dtype, out=bias.grad)


def _product(first: Tensor, second: Tensor, into: Tensor | None) -> None:
    """The product of two matrices; under bf16 it comes in that, and is float32 again where it is written."""
    assert into is not None, "a Student gives its net room for gradients"
    if first.dtype == second.dtype == into.dtype:
        torch.mm(first, second, out=into)
    else:
        into.copy_(first @ second)
