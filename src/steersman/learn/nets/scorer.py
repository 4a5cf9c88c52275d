"""The scorer of a policy: a net that computes in float64 and exports itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

from steersman.core.errors import DataError, TrainingError
from steersman.core.policy import Policy
from steersman.core.shared import is_shared
from steersman.learn.nets.graph import Graph
from steersman.learn.nets.kinds import NETS
from steersman.learn.nets.modules import Net, Tensor
from steersman.learn.nets.shape import Shape
from steersman.learn.nets.training import no_grad, one_thread

Array = np.ndarray

PAIRS = 2**16
"""Pairs of row and candidate that are scored at once: bounds the memory of scoring."""


class TorchScorer:
    """A net as the scorer of a policy. It computes in float64, and so does the graph that it exports.

    Two float32 matrix products that add in a different order differ by 2e-5 on scores around 100, more than a
    graph may differ from its policy; in float64 scores come out the same whoever adds, and in batches of any size.
    For nets of this size it costs next to nothing.
    """

    def __init__(self, shape: Shape, weights: Mapping[str, Array], unit: float) -> None:
        """Build the net and give it its weights.

        Args:
            weights: name -> array, as `weights()` gives them.
            unit: of reward: scores are the net's outputs times this.
        Raises:
            DataError: the weights are not those of such a net, or the unit is not above 0.
        """
        if not 0 < unit < math.inf:
            raise DataError(f"the unit of the scores is {unit:g}, must be above 0", field="unit")
        self.shape = shape
        self.unit = unit
        with torch.device("meta"):  # no memory yet: a damaged shape must not ask for all of it
            self._net = NETS[shape.kind](shape)
        _check_weights(weights, {name: tuple(want.shape) for name, want in self._net.state_dict().items()})
        state = {name: torch.from_numpy(array.astype(np.float64)) for name, array in weights.items()}
        self._net.load_state_dict(state, assign=True)
        self._net.requires_grad_(False)

    @classmethod
    def of(cls, shape: Shape, net: Net, unit: float) -> TorchScorer:
        """The scorer of a net that has learned.

        Raises:
            TrainingError: a weight is not finite.
        """
        weights = {name: tensor.cpu().numpy() for name, tensor in net.state_dict().items()}
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise TrainingError("a weight of the net is not finite", hint="training diverges: lower learning_rate")
        return cls(shape, weights, unit)

    def weights(self) -> dict[str, Array]:
        """Name -> array f64."""
        return {name: tensor.numpy() for name, tensor in self._net.state_dict().items()}

    def __call__(self, context: Array, candidates: Array) -> Array:
        """[N, F] f32, [N, K, A] f32 -> [N, K] f32, in units of reward; in parts, so that N may be large.

        Of a net of draws [N, K, M]. For numbers [N, F], [N, 0, 0] -> [N, S] f32.
        """
        n, k = candidates.shape[:2]
        draws = (self.shape.draws,) if self.shape.draws else ()
        scores = np.empty((n, self.shape.scores or k, *draws), dtype=np.float32)
        shared = _float64(candidates[:1]) if n and is_shared(candidates) else None
        rows = max(1, PAIRS // max(k * max(self.shape.draws, 1), 1))
        with no_grad(), one_thread():
            for start in range(0, n, rows):
                part = slice(start, start + rows)
                given = _float64(candidates[part]) if shared is None else shared
                scores[part] = self._net(_float64(context[part]), given).numpy() * self.unit
        return scores

    def atoms(self, context: Array, candidates: Array) -> Array:
        """[N, F] f32, [N, K, A] f32 -> [N, K, Z] f32: the distribution of each candidate's return; see Shape.

        Quantiles in units of reward, in no order; or probabilities of returns evenly spaced over the support.
        """
        with no_grad(), one_thread():
            found = self._net.atoms(_float64(context), _float64(candidates))
        return (found * self.unit if self.shape.support is None else found.softmax(dim=2)).numpy().astype(np.float32)

    def to_onnx(self) -> bytes:
        """ONNX with the inputs `context` [N, F] f32 and `candidates` [N, K, A] f32 and the output `scores` [N, K] f32.

        Of a net of draws `scores` are [N, K, M]. For numbers from `context` alone to `scores` [N, S]. The same weights
        give the same bytes.
        """
        sizes: dict[str, list[Any]] = {"context": ["N", self.shape.context]}
        if not self.shape.bounds:
            sizes["candidates"] = ["N", "K", self.shape.candidate]
        sizes["scores"] = ["N", self.shape.scores or "K", *([self.shape.draws] if self.shape.draws else [])]
        graph = Graph()
        inside = {name: graph.op("Cast", name, to=TensorProto.DOUBLE) for name in sizes if name != "scores"}
        value = self._net.export(graph, inside["context"], inside.get("candidates", ""))
        scaled = graph.op("Mul", value, graph.constant(self.unit))
        graph.nodes.append(helper.make_node("Cast", [scaled], ["scores"], to=TensorProto.FLOAT))
        *inputs, output = (helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items())
        made = helper.make_graph(graph.nodes, "scorer", inputs, [output], initializer=graph.constants)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return model.SerializeToString(deterministic=True)


def scorer_of(policy: Policy) -> TorchScorer:
    """The scorer of a policy that a learner made.

    Raises:
        DataError: no learner made it.
    """
    if not isinstance(policy.scorer, TorchScorer):
        kind = getattr(policy.scorer, "__name__", type(policy.scorer).__name__)
        raise DataError(f"no learner made the scorer of this policy: it is {kind}, not a net of ours")
    return policy.scorer


def _float64(array: Array) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))


def _check_weights(weights: Mapping[str, Array], want: dict[str, tuple[int, ...]]) -> None:
    have = {name: array.shape for name, array in weights.items()}
    if have != want:
        raise DataError(f"the weights are {have}, the net needs {want}")
    for name, array in weights.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise DataError(f"the weights {name} are {array.dtype}, must be finite floats")
