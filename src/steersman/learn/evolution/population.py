"""Small nets whose parameters are one flat row: a whole population answers in one batched product per layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from steersman.core.errors import DataError

Array = np.ndarray


@dataclass(frozen=True)
class Net:
    """Layers of tanh and a linear one. Its row of parameters has weights [out, in] and biases [out], layer by layer.

    Attributes:
        widths: inputs, hidden layers, outputs; e.g. (4, 20, 2).
    """

    widths: tuple[int, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of its tensors, in the order of the row."""
        return tuple(shape for n, m in pairwise(self.widths) for shape in ((m, n), (m,)))

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return sum(math.prod(shape) for shape in self.shapes)

    def members(self, parameters: Array) -> Members:
        """The nets of a population.

        Args:
            parameters: [P, d] f32.
        Raises:
            DataError: d is not the size of the net.
        """
        if parameters.ndim != 2 or parameters.shape[1] != self.size:
            raise DataError(
                f"parameters of the shape {parameters.shape} for a net with {self.size}", field="parameters"
            )
        layers, start = [], 0
        for n, m in pairwise(self.widths):
            weights = parameters[:, start : start + m * n].reshape(-1, m, n).transpose(0, 2, 1)
            bias = parameters[:, None, start + m * n : start + m * (n + 1)]
            layers.append((np.ascontiguousarray(weights), np.ascontiguousarray(bias)))
            start += m * (n + 1)
        return Members(tuple(layers))


@dataclass(frozen=True)
class Members:
    """A population: for each layer the weights [P, in, out] and biases [P, 1, out]."""

    layers: tuple[tuple[Array, Array], ...]

    def __call__(self, inputs: Array) -> Array:
        """[P, B, in] f32 -> [P, B, out] f32: B inputs of each member."""
        hidden = inputs
        for place, (weights, bias) in enumerate(self.layers):
            hidden = hidden @ weights
            hidden += bias
            if place < len(self.layers) - 1:
                np.tanh(hidden, out=hidden)
        return hidden

    def only(self, rows: Array) -> Members:
        """Some of the members: [P] bool or their places."""
        return Members(tuple((weights[rows], bias[rows]) for weights, bias in self.layers))
