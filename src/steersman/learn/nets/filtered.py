"""A net that scores what another, a clone of the behavior policy, finds likely; the rest is worth next to nothing."""

from __future__ import annotations

import math

from steersman.learn.nets.graph import Graph
from steersman.learn.nets.modules import ActionNet, FeatureNet, Net, Returns, Tensor, kept
from steersman.learn.nets.shape import Kind, Shape

NEVER = -1e8
"""Score of a candidate that the filter holds back: below every value that a training which did not diverge gives, and
within float32 in every unit of reward."""


class Filtered(Net):
    """The values of one net, and NEVER where a clone of the behavior policy finds a candidate too unlikely.

    A candidate passes if its probability under the clone is at least `threshold` times that of the most likely one of
    its row. A candidate whose columns are all 0 is padding, or one that no log had: it never passes and is never the
    most likely.

    Source: Fujimoto, Conti, Ghavamzadeh and Pineau 2019, arXiv:1910.01708, eq. 8.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.threshold = shape.threshold
        self.value = _plain(shape)
        self.behavior = _plain(behavior_shape(shape))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        real = (candidates != 0).any(dim=2)
        passes = likely(self.behavior(context, candidates), real, self.threshold)
        return self.value(context, candidates).masked_fill(~passes, NEVER)

    def atoms(self, context: Tensor, candidates: Tensor) -> Tensor:
        return self.value.atoms(context, candidates)

    def mean_of(self, atoms: Tensor) -> Tensor:
        return self.value.mean_of(atoms)

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        real = graph.real(candidates)
        lowest = graph.constant(-math.inf)
        logits = graph.op("Where", real, self.behavior.export(graph, context, candidates), lowest)
        best = graph.op("ReduceMax", logits, graph.constant([1]), keepdims=1)
        bound = graph.op("Add", best, graph.constant(math.log(self.threshold)))
        passes = graph.op("And", real, graph.op("GreaterOrEqual", logits, bound))
        return graph.op("Where", passes, self.value.export(graph, context, candidates), graph.constant(NEVER))


def likely(logits: Tensor, real: Tensor, threshold: float) -> Tensor:
    """[B, K] bool: probability at least `threshold` times the largest of the row, among real candidates.

    Args:
        logits: [B, K], logarithms of probabilities, up to a constant a row.
        real: [B, K] bool, False for padding; [1, K] if all rows share it.
        threshold: in (0, 1].
    """
    logits = kept(logits, real)
    return real & (logits >= logits.max(dim=1, keepdim=True).values + math.log(threshold))


def behavior_shape(shape: Shape) -> Shape:
    """Of the clone in a filtered net: the same layers, one number a candidate."""
    kind: Kind = "actions" if shape.kind.endswith("actions") else "features"
    return Shape(kind, shape.context, shape.candidate, shape.hidden)


def _plain(shape: Shape) -> Returns:
    """The net of a filtered kind without its filter."""
    return ActionNet(shape) if shape.kind.endswith("actions") else FeatureNet(shape)
