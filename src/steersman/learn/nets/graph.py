"""Nodes of an ONNX graph, as the nets add them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from steersman.learn.nets.shape import Shape


class Graph:
    """Nodes and constants of an ONNX graph, named by their count."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def both(self, kind: str, *inputs: str, **attributes: Any) -> tuple[str, str]:
        """Add a node with two outputs; their names."""
        name = f"{kind}_{len(self.nodes)}"
        outputs = f"{name}_0", f"{name}_1"
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=name, **attributes))
        return outputs

    def real(self, candidates: str) -> str:
        """Add what tells candidates from padding, whose columns are all 0; the name of the [N, K] bool result."""
        largest = self.op("ReduceMax", self.op("Abs", candidates), self.constant([2]), keepdims=0)
        return self.op("Cast", largest, to=TensorProto.BOOL)

    def constant(self, value: Any) -> str:
        """Add a constant: i64 from whole numbers, f64 from others; its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value), name))
        return name

    def part(self, tensor: str, axis: int, start: int, end: int) -> str:
        """Add a slice [start, end) of an axis; the name of its output."""
        return self.op("Slice", tensor, *map(self.constant, ([start], [end], [axis])))

    def mean_of_atoms(self, shape: Shape, atoms: str) -> str:
        """Add the nodes of `mean_of_atoms`; the name of the [N, K] result."""
        last = self.constant([2])
        if shape.atoms == 1:
            return self.op("Squeeze", atoms, last)
        if shape.support is None:
            return self.op("ReduceMean", atoms, last, keepdims=0)
        returns = self.constant(np.linspace(*shape.support, shape.atoms))
        return self.op("ReduceSum", self.op("Mul", self.op("Softmax", atoms, axis=2), returns), last, keepdims=0)

    def linear(self, tensor: str, layer: nn.Linear) -> str:
        """Add a linear layer over the last axis; the name of its output."""
        product = self.op("MatMul", tensor, self.constant(layer.weight.numpy().T))
        return product if layer.bias is None else self.op("Add", product, self.constant(layer.bias.numpy()))

    def layers(self, tensor: str, layers: nn.Sequential) -> str:
        """Add linear layers and ReLUs; the name of the last output."""
        for layer in layers:
            tensor = self.linear(tensor, layer) if isinstance(layer, nn.Linear) else self.op("Relu", tensor)
        return tensor
