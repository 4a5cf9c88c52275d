"""Nets: scores of candidates, as torch modules that add their own nodes to a graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from steersman.learn.nets.graph import Graph
from steersman.learn.nets.passes import Layers, Pass, teach_layer
from steersman.learn.nets.shape import Shape

Tensor = torch.Tensor


class Linear(nn.Linear):
    """A layer that is born without weights: torch would draw them from the generator that everybody shares."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are; `start` draws them."""


@dataclass(frozen=True, eq=False)
class Passed:
    """Candidates that have gone through a net, whose weights must stay as they are until a gradient has come back.

    Attributes:
        atoms: [B, K, Z] f32, see `Net.atoms`.
        teach: sets the gradient of every weight, in the place of what was there, from that of a loss by the atoms.
    """

    atoms: Tensor
    teach: Callable[[Tensor], None]


class Net(nn.Module):
    """Scores of candidates. Born without weights: `start` draws them, `load_state_dict` brings them."""

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        """[B, F], [B, K, A] -> [B, K]. Candidates that all rows share come once, as [1, K, A]."""
        raise NotImplementedError

    def atoms(self, context: Tensor, candidates: Tensor) -> Tensor:
        """The same, -> [B, K, Z]: what the distribution of each candidate's return is made of; see Shape.

        Of a net that knows no distribution the score alone.
        """
        return self(context, candidates)[:, :, None]

    def mean_of(self, atoms: Tensor) -> Tensor:
        """[B, K, Z] from `atoms` -> [B, K], the scores."""
        return atoms[:, :, 0]

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        """Add the nodes of `forward` to a graph, on the tensors of those names; the name of the [N, K] result."""
        raise NotImplementedError

    def start(self, generator: torch.Generator) -> None:
        """Draw every weight uniformly within 1 / sqrt(inputs of its layer)."""
        start(self, generator)


class Returns(Net):
    """A net of the returns of candidates, of their means or of their distributions, which can be passed by hand."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def mean_of(self, atoms: Tensor) -> Tensor:
        return mean_of_atoms(self.shape, atoms)

    def passed(self, context: Tensor, candidates: Tensor) -> Passed:
        """As `atoms`, with a way back in the place of autograd, which must be off meanwhile."""
        raise NotImplementedError


class ActionNet(Returns):
    """One output for each named action; a candidate's one-hot picks its own, so actions are known by name."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        outputs = (shape.candidate + shape.dueling) * shape.atoms
        self.layers = layers_of((shape.context, *shape.hidden, outputs))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        if self.shape.atoms > 1:
            return self.mean_of(self.atoms(context, candidates))
        value = self._duel(self.layers(context))  # [B, A]
        if len(candidates) == 1:
            return nn.functional.linear(value, candidates[0])
        return (value[:, None, :] * candidates).sum(dim=2)

    def atoms(self, context: Tensor, candidates: Tensor) -> Tensor:
        if self.shape.atoms == 1:
            return self(context, candidates)[:, :, None]
        return candidates @ self._duel(self.layers(context).unflatten(1, (-1, self.shape.atoms)))

    def passed(self, context: Tensor, candidates: Tensor) -> Passed:
        way = Pass(self.layers, context)
        each = self._duel(way.out.unflatten(1, (-1, self.shape.atoms)))  # [B, A, Z]

        def back(gradient: Tensor) -> None:
            by_action = candidates.transpose(1, 2) @ gradient  # [B, A, Z]
            if self.shape.dueling:
                by_value = by_action.sum(dim=1, keepdim=True)
                by_action = torch.cat((by_action - by_value / by_action.shape[1], by_value), dim=1)
            way.teach(by_action.flatten(1))

        return Passed((candidates @ each).float(), back)

    def _duel(self, outputs: Tensor) -> Tensor:
        """[B, A + 1, ...] advantages and, last, the value -> [B, A, ...] values of actions."""
        if not self.shape.dueling:
            return outputs
        advantage = outputs[:, :-1]
        return outputs[:, -1:] + advantage - advantage.mean(dim=1, keepdim=True)

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        shape = self.shape
        size = graph.constant([0, shape.candidate + shape.dueling, shape.atoms])
        value = graph.op("Reshape", graph.layers(context, self.layers), size)  # [N, A, Z]
        if shape.dueling:
            advantage, mean = graph.part(value, 1, 0, shape.candidate), graph.constant([1])
            centered = graph.op("Sub", advantage, graph.op("ReduceMean", advantage, mean, keepdims=1))
            value = graph.op("Add", centered, graph.part(value, 1, shape.candidate, shape.candidate + 1))
        return graph.mean_of_atoms(shape, graph.op("MatMul", candidates, value))


class FeatureNet(Returns):
    """One net over context and candidate together; its first layer is split, so that a context is multiplied once."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        widths = (*shape.hidden, shape.atoms)
        self.context = Linear(shape.context, widths[0])
        self.candidate = Linear(shape.candidate, widths[0], bias=False)
        self.layers = Layers(nn.ReLU(), *layers_of(widths)) if shape.hidden else Layers()
        self.value = layers_of((shape.context, *widths)) if shape.dueling else None

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        return self.mean_of(self.atoms(context, candidates))

    def atoms(self, context: Tensor, candidates: Tensor) -> Tensor:
        first = self.context(context)[:, None, :] + self.candidate(candidates)  # [B, K, H]
        own = self.layers(first)
        return own if self.value is None else own + self.value(context)[:, None, :]

    def passed(self, context: Tensor, candidates: Tensor) -> Passed:
        first = self.context(context)[:, None, :] + self.candidate(candidates)  # [B, K, H]
        pairs = first.flatten(0, 1)
        way = Pass(self.layers, pairs.relu_()) if self.shape.hidden else None
        atoms = (first if way is None else way.out.unflatten(0, first.shape[:2])).float()
        alone = None if self.value is None else Pass(self.value, context)

        def back(gradient: Tensor) -> None:
            by_pair = gradient.flatten(0, 1)
            by_first = (by_pair if way is None else way.below(way.teach(by_pair))).unflatten(0, first.shape[:2])
            teach_layer(self.context.weight, self.context.bias, context, by_first.sum(dim=1))
            if len(candidates) == 1:
                teach_layer(self.candidate.weight, None, candidates[0], by_first.sum(dim=0))
            else:
                teach_layer(self.candidate.weight, None, candidates.flatten(0, 1), by_first.flatten(0, 1))
            if alone is not None:
                alone.teach(gradient.sum(dim=1))

        return Passed(atoms if alone is None else atoms + alone.out[:, None, :], back)

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        row = graph.op("Unsqueeze", graph.linear(context, self.context), graph.constant([1]))  # [N, 1, H]
        own = graph.layers(graph.op("Add", row, graph.linear(candidates, self.candidate)), self.layers)
        if self.value is not None:
            own = graph.op("Add", own, graph.op("Unsqueeze", graph.layers(context, self.value), graph.constant([1])))
        return graph.mean_of_atoms(self.shape, own)


def pick(candidates: Tensor, place: Tensor) -> Tensor:
    """One candidate a row.

    Args:
        candidates: [B, K, A], or [1, K, A] that all rows share.
        place: [B] i64.
    Returns:
        [B, 1, A].
    """
    if len(candidates) == 1:
        return candidates[0, place][:, None]
    return candidates.gather(1, place[:, None, None].expand(-1, 1, candidates.shape[2]))


def kept(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores [B, K] where the mask [B, K], or [1, K] of all rows, says so, else -inf."""
    return torch.where(mask, scores, -math.inf)


def of_items(values: Tensor, items: Tensor) -> Tensor:
    """[B, L] of values [B, K], at the places [B, L] of the items of lists; behind the last item it is 0."""
    return values.gather(1, items.clamp(min=0)) * (items >= 0)


def mean_of_atoms(shape: Shape, atoms: Tensor) -> Tensor:
    """[B, K, Z] -> [B, K], the mean returns."""
    if shape.atoms == 1:
        return atoms[:, :, 0]
    if shape.support is None:
        return atoms.mean(dim=2)
    returns = torch.linspace(*shape.support, shape.atoms, dtype=atoms.dtype, device=atoms.device)
    return (atoms.softmax(dim=2) * returns).sum(dim=2)


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
        ones = context.new_ones(len(context), 1)
        row = torch.cat([ones, context], dim=1)  # [B, 1 + F]
        if self.root.ndim == 3:
            square = torch.einsum("bf,afg->bag", row, self.root).square().sum(dim=2)  # [B, A]
            unknown = (square[:, None] * candidates).sum(dim=2)
        else:
            shape = (len(candidates), candidates.shape[1], 1)
            column = torch.cat([candidates.new_ones(shape), candidates], dim=2)  # [B, K, 1 + A]
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


def start(net: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight of every layer uniformly within 1 / sqrt(inputs of the layer)."""
    for layer in net.modules():
        if isinstance(layer, Linear):
            bound = 1.0 / math.sqrt(max(layer.in_features, 1))
            for weight in layer.parameters(recurse=False):
                nn.init.uniform_(weight, -bound, bound, generator=generator)


def layers_of(widths: tuple[int, ...]) -> Layers:
    """Linear layers of those widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [Linear(inputs, outputs), nn.ReLU()]
    return Layers(*layers[:-1])
