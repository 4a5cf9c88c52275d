"""Nets that give M draws of every score: linear ones, on top of a net's last hidden layer, and of arms."""

from __future__ import annotations

import copy
from collections.abc import Callable

import msgspec
import numpy as np
import torch
from torch import nn

from steersman.learn.nets.graph import Graph
from steersman.learn.nets.modules import ActionNet, FeatureNet, Net, Tensor
from steersman.learn.nets.shape import Kind, Shape

Array = np.ndarray


class Draws(Net):
    """[1, context]' W [1, candidate] with M draws of W."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 + shape.context, 1 + shape.candidate, shape.draws))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        per_column = context @ self.weight[1:].flatten(1) + self.weight[0].flatten()
        per_column = per_column.unflatten(1, self.weight.shape[1:])  # [B, 1 + A, M]
        return per_column[:, :1] + candidates @ per_column[:, 1:]

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        weight = self.weight.numpy()
        product = graph.op("MatMul", context, graph.constant(weight[1:].reshape(len(weight) - 1, -1)))
        flat = graph.op("Add", product, graph.constant(weight[0].ravel()))
        per_column = graph.op("Reshape", flat, graph.constant([-1, *weight.shape[1:]]))
        first, rest = graph.part(per_column, 1, 0, 1), graph.part(per_column, 1, 1, weight.shape[1])
        return graph.op("Add", graph.op("MatMul", candidates, rest), first)


class ActionDraws(Net):
    """`Draws` over the last hidden layer of an `ActionNet`, in the place of the context."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = _without_last(ActionNet(_plain(shape, "actions")).layers)
        self.head = Draws(msgspec.structs.replace(shape, kind="draws", context=shape.hidden[-1], hidden=()))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        return self.head(self.layers(context), candidates)

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        return self.head.export(graph, graph.layers(context, self.layers), candidates)


class FeatureDraws(Net):
    """[1, h] w with M draws of w, h the last hidden layer of a `FeatureNet`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        net = FeatureNet(_plain(shape, "features"))
        self.context, self.candidate, self.layers = net.context, net.candidate, _without_last(net.layers)
        self.weight = nn.Parameter(torch.empty(1 + shape.hidden[-1], shape.draws))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        hidden = self.layers(self.context(context)[:, None, :] + self.candidate(candidates))  # [B, K, H]
        return hidden @ self.weight[1:] + self.weight[0]

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        row = graph.op("Unsqueeze", graph.linear(context, self.context), graph.constant([1]))
        first = graph.op("Add", row, graph.linear(candidates, self.candidate))
        product = graph.op("MatMul", graph.layers(first, self.layers), graph.constant(self.weight.numpy()[1:]))
        return graph.op("Add", product, graph.constant(self.weight.numpy()[0]))


class Arms(Net):
    """A number, or M draws of one, for each named action, whatever the context."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.empty(shape.candidate, max(shape.draws, 1)))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        scores = (candidates @ self.weight).expand(len(context), -1, -1)
        return scores if self.shape.draws else scores[:, :, 0]

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        scores = graph.op("MatMul", candidates, graph.constant(self.weight.numpy()))
        return scores if self.shape.draws else graph.op("Squeeze", scores, graph.constant([2]))


def last_hidden(net: Net) -> Callable[[Array, Array], Array]:
    """A function [N, F], [N, A] of rows and a candidate each -> [N, 1 + H] f64: a 1, and the last hidden layer.

    Of an `ActionNet` the candidate means nothing. The net may learn on: the function keeps what it is now.
    """
    still = copy.deepcopy(net).to("cpu", torch.float64)
    assert isinstance(still, ActionNet | FeatureNet)
    body = _without_last(still.layers)

    def hidden(context: Array, candidates: Array) -> Array:
        with torch.no_grad():
            rows = torch.from_numpy(context.astype(np.float64))
            if isinstance(still, FeatureNet):
                rows = still.context(rows) + still.candidate(torch.from_numpy(candidates.astype(np.float64)))
            found = body(rows).numpy()
        return np.concatenate([np.ones((len(found), 1)), found], axis=1)

    return hidden


def drawn_head(net: Net, shape: Shape, draws: Array) -> tuple[Shape, dict[str, Array]]:
    """Shape and weights of the net whose last layer has draws in the place of its weights.

    Args:
        draws: [1 + H, 1 + A, M] as in `Draws` on an `ActionNet`, [1 + H, M] on a `FeatureNet`.
    """
    assert isinstance(net, ActionNet | FeatureNet)
    last = f"layers.{len(net.layers) - 1}."
    weights = {name: one.cpu().numpy() for name, one in net.state_dict().items() if not name.startswith(last)}
    named = shape.kind == "actions"
    made = msgspec.structs.replace(shape, kind="action-draws" if named else "feature-draws", draws=draws.shape[-1])
    return made, weights | {"head.weight" if named else "weight": draws}


def _without_last(layers: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*list(layers)[:-1])


def _plain(shape: Shape, kind: Kind) -> Shape:
    return msgspec.structs.replace(shape, kind=kind, draws=0)
