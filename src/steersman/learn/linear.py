"""Nets that are linear in context x candidate: closed forms train them, the same scorer serves and exports them."""

from __future__ import annotations

import torch
from torch import nn

from steersman.learn.nets import Graph, Net, Shape, Tensor


class Bilinear(Net):
    """[1, context]' W [1, candidate]: for named actions a row of coefficients each, else all products of both."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 + shape.context, 1 + shape.candidate))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        per_column = context @ self.weight[1:] + self.weight[0]  # [B, 1 + A]
        return per_column[:, :1] + (per_column[:, None, 1:] * candidates).sum(dim=2)

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        weight = self.weight.numpy()
        product = graph.op("MatMul", context, graph.constant(weight[1:]))
        per_column = graph.op("Unsqueeze", graph.op("Add", product, graph.constant(weight[0])), graph.constant([2]))
        first, rest = graph.part(per_column, 1, 0, 1), graph.part(per_column, 1, 1, weight.shape[1])
        own = graph.op("MatMul", candidates, rest)  # [N, K, 1]
        return graph.op("Squeeze", graph.op("Add", own, first), graph.constant([2]))


class Optimist(Net):
    """A `Bilinear`, plus the length of phi' R: what is not known yet counts in favour of a candidate.

    phi is [1, context] x [1, candidate], all products. Where named actions have coefficients each of their own, R is
    one block an action, and a candidate's one-hot picks its own.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.mean = Bilinear(shape)
        rows, columns = 1 + shape.context, 1 + shape.candidate
        own = (shape.candidate, rows, rows) if shape.kind == "own-optimist" else (rows * columns, rows * columns)
        self.root = nn.Parameter(torch.empty(own))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        ones = torch.ones(len(context), 1, dtype=context.dtype)
        row = torch.cat([ones, context], dim=1)  # [B, 1 + F]
        if self.root.ndim == 3:
            square = torch.einsum("bf,afg->bag", row, self.root).square().sum(dim=2)  # [B, A]
            unknown = (square[:, None] * candidates).sum(dim=2)
        else:
            shape = (len(candidates), candidates.shape[1], 1)
            column = torch.cat([torch.ones(shape, dtype=candidates.dtype), candidates], dim=2)  # [B, K, 1 + A]
            phi = (row[:, None, :, None] * column[:, :, None, :]).flatten(2)  # [B, K, P]
            unknown = (phi @ self.root).square().sum(dim=2)
        return self.mean(context, candidates) + unknown.sqrt()

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        row = graph.op("Pad", context, graph.constant([0, 1, 0, 0]), graph.constant(1.0))  # [N, 1 + F]
        root = self.root.numpy()
        if root.ndim == 3:
            each = graph.op("MatMul", graph.op("Unsqueeze", row, graph.constant([1, 2])), graph.constant(root))
            square = graph.op("ReduceSumSquare", each, graph.constant([2, 3]), keepdims=0)  # [N, A]
            unknown = graph.op("MatMul", candidates, graph.op("Unsqueeze", square, graph.constant([2])))
            unknown = graph.op("Squeeze", unknown, graph.constant([2]))
        else:
            column = graph.op("Pad", candidates, graph.constant([0, 0, 1, 0, 0, 0]), graph.constant(1.0))
            pairs = graph.op(
                "Mul",
                graph.op("Unsqueeze", row, graph.constant([1, 3])),
                graph.op("Unsqueeze", column, graph.constant([2])),
            )  # [N, K, 1 + F, 1 + A]
            phi = graph.op("Reshape", pairs, graph.constant([0, 0, len(root)]))
            product = graph.op("MatMul", phi, graph.constant(root))
            unknown = graph.op("ReduceSumSquare", product, graph.constant([2]), keepdims=0)
        return graph.op("Add", self.mean.export(graph, context, candidates), graph.op("Sqrt", unknown))
