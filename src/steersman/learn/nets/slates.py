"""A net that scores candidates so that the best slate, for people who choose one item of it or none, is on top."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import torch

from steersman.learn.nets.graph import Graph
from steersman.learn.nets.modules import ActionNet, FeatureNet, Net, Tensor, kept, layers_of, of_items
from steersman.learn.nets.shape import Kind, Shape

ROUNDS = 16
"""Of the search for the best slate, at most: each finds a better one or the best; see `best_slate`. Ten candidates need
4, and a thousand whose weights are between e^-12 and e^12 need 12."""


class Best(NamedTuple):
    """The best slates.

    Attributes:
        scores: [B, K], what each candidate adds to the best slate of the row, or would add: its largest are the slate.
        value: [B], what the slate is worth.
    """

    scores: Tensor
    value: Tensor


class Worth(Net):
    """What each candidate is worth once it is chosen, and what it is worth that none is."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.items = _plain(shape)
        self.nothing = layers_of((shape.context, *shape.hidden, 1))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        return self.items(context, candidates)

    def of_none(self, context: Tensor) -> Tensor:
        """[B, F] -> [B]."""
        value: Tensor = self.nothing(context)
        return value[:, 0]


class Slate(Net):
    """A choice model, and what choices are worth; the scores are those of `best_slate`.

    A candidate whose columns are all 0 is padding, or one that no log had: it is never chosen.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.slots = shape.slots
        self.worth, self.appeal = Worth(shape), _plain(shape)

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        real = (candidates != 0).any(dim=2)
        worth, nothing = self.worth(context, candidates), self.worth.of_none(context)
        return best_slate(worth, nothing, self.appeal(context, candidates), real, self.slots).scores

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        real = graph.real(candidates)
        worth = self.worth.items.export(graph, context, candidates)
        nothing = graph.layers(context, self.worth.nothing)  # [N, 1]
        lowest, last = graph.constant(-math.inf), graph.constant([1])
        appeal = graph.op("Where", real, self.appeal.export(graph, context, candidates), lowest)
        top = graph.op("Max", graph.op("ReduceMax", appeal, last, keepdims=1), graph.constant(0.0))
        weight, none = graph.op("Exp", graph.op("Sub", appeal, top)), graph.op("Exp", graph.op("Neg", top))
        size = graph.op("Min", graph.op("Shape", candidates, start=1, end=2), graph.constant([self.slots]))
        earned, idle = graph.op("Mul", weight, worth), graph.op("Mul", none, nothing)
        price = nothing
        for _ in range(ROUNDS):
            gain = graph.op("Mul", weight, graph.op("Sub", worth, price))
            picked = graph.both("TopK", graph.op("Where", real, gain, lowest), size, axis=1)[1]
            sums = [
                graph.op("ReduceSum", graph.op("GatherElements", part, picked, axis=1), last, keepdims=1)
                for part in (weight, earned)
            ]
            mass = graph.op("Add", none, sums[0])
            price = graph.op("Div", graph.op("Add", idle, sums[1]), mass)
        return graph.op("Div", graph.op("Mul", weight, graph.op("Sub", worth, price)), mass)


def best_slate(worth: Tensor, nothing: Tensor, appeal: Tensor, real: Tensor, slots: int) -> Best:
    """The slate with the largest mean worth of what is chosen from it, by a multinomial logit.

    With weights w = exp(appeal), and 1 for nothing, a slate S is worth (nothing + sum of w q over S) / (1 + sum of w
    over S). It is at least p if and only if the sum of w (q - p) over S is at least p - nothing: so the best slate for
    a price p is the largest w (q - p), and what that slate is worth is the next price. Prices only rise, and where one
    does not rise the slate is the best of all: Newton's method on a convex function made of lines, which needs a few
    rounds. The linear program of SlateQ, solved exactly.

    Args:
        worth: [B, K] of each candidate once it is chosen.
        nothing: [B] of nothing chosen.
        appeal: [B, K] logits of the choice; nothing has 0.
        real: [B, K] bool, or [1, K] if all rows share it.
        slots: L, of the slate; where candidates are fewer it is all of them.
    Source: Ie et al. 2019, arXiv:1905.12767, section 4.3; Dinkelbach 1967, On nonlinear fractional programming.
    """
    weight, none = _weights(appeal, real)
    price, size = nothing[:, None], min(slots, worth.shape[1])
    for _ in range(ROUNDS):
        before, gain = price, kept(weight * (worth - price), real)
        picked = gain.topk(size, dim=1).indices
        mass = none + weight.gather(1, picked).sum(dim=1, keepdim=True)
        earned = (weight * worth).gather(1, picked).sum(dim=1, keepdim=True)
        price = (none * nothing[:, None] + earned) / mass
        if torch.equal(price, before):
            break
    return Best(weight * (worth - price) / mass, price[:, 0])


def slate_value(worth: Tensor, nothing: Tensor, appeal: Tensor, real: Tensor, items: Tensor) -> Tensor:
    """[B], the mean worth of what is chosen from the slates of some items [B, L], -1 behind the last; else as above.

    Source: Ie et al. 2019, arXiv:1905.12767, eq. 6 (decomposed Q), with the null item.
    """
    weight, none = _weights(appeal, real)
    mass = none + of_items(weight, items).sum(dim=1, keepdim=True)
    return ((none * nothing[:, None] + of_items(weight * worth, items).sum(dim=1, keepdim=True)) / mass)[:, 0]


def slate_of(scores: Tensor, real: Tensor, slots: int) -> Tensor:
    """[B, L] i64, places of the largest scores [B, K]; -1 where candidates are fewer."""
    top = kept(scores, real).topk(min(slots, scores.shape[1]), dim=1)
    return torch.where(top.values > -math.inf, top.indices, -1)


def and_none(values: Tensor, none: Tensor) -> Tensor:
    """[B, L + 1] of values [B, L] and, last, that of nothing [B]."""
    return torch.cat((values, none[:, None]), dim=1)


def slate_shape(shape: Shape, slots: int) -> Shape:
    """Of slates of the candidates that a plain net is for."""
    kind: Kind = "slate-actions" if shape.kind == "actions" else "slate-features"
    return msgspec.structs.replace(shape, kind=kind, slots=slots)


def _weights(appeal: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """[B, K] exp(appeal) and [B, 1] that of nothing, both times what makes the largest 1; of padding 0."""
    appeal = kept(appeal, real)
    top = appeal.amax(dim=1, keepdim=True).clamp(min=0.0)
    return (appeal - top).exp(), (-top).exp()


def _plain(shape: Shape) -> Net:
    named = shape.kind.endswith("actions")
    plain = Shape("actions" if named else "features", shape.context, shape.candidate, shape.hidden)
    return ActionNet(plain) if named else FeatureNet(plain)
