"""Policy to graph: the encoder and the scorer as one ONNX model; parity; the scorer back out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import DataError, ParityError
from steersman.core.features import Encoder, Kind, Raw, Transform, reads
from steersman.core.policy import Scorer
from steersman.models.building import onnx
from steersman.models.encoding import ENCODER, Part, encode
from steersman.models.graph import (
    CANDIDATE_IDS,
    CANDIDATE_INPUTS,
    CHUNK,
    CONTEXT_INPUTS,
    ENCODED_CANDIDATES,
    ENCODED_CONTEXT,
    ROWWISE,
    SCORES,
    EncodedScorer,
    Graph,
)

__all__ = ["PARITY", "Graph", "check_parity", "compose", "encoded_scorer"]

Array = np.ndarray

PARITY = 1e-5
"""The largest difference between the scores of a policy and of its graph, in units of score."""

_EXACT = frozenset(
    """
    Abs Add And Cast Clip Concat Constant ConstantOfShape Div Equal Expand Flatten Gather Gemm Greater
    Identity IsNaN LabelEncoder LeakyRelu Less MatMul Max Min Mul Neg Not OneHot Or Relu Reshape Shape
    Slice Squeeze Sub Transpose Unsqueeze Where
""".split()
)
"""Matrix products, and what IEEE 754 rounds the same way in every lane of a processor; exp and its kind are not."""

OLDEST_OPSET = 15
_DTYPES: dict[Kind, str] = {"number": "DOUBLE", "text": "STRING", "list": "INT64"}
SCORER = "scorer/"


def compose(encoder: Encoder, scorer: bytes | None) -> bytes:
    """The graph that is stored and served: raw rows in, scores out, the encoder inside.

    Inputs, each absent if it has no columns, except `candidate_ids`, which tells N and K: `context_numbers`
    [N, C] f64 (NaN: missing), `context_texts` [N, T] string (NO_TEXT: missing), `context_lists` [N, J, L] i64 (keys
    as in `Raw.lists`), `candidate_numbers` [N, K, C'], `candidate_texts` [N, K, T'], `candidate_lists`
    [N, K, J', L'], `candidate_ids` [N, K] string. Output: `scores` [N, K] f32, or draws of them [N, K, M]. The tensors
    between encoder and scorer are `encoded_context` [N, F] and `encoded_candidates` [N, K, A], both f32.
    Same arguments, same bytes.

    Args:
        encoder: becomes part of the graph.
        scorer: ONNX with the inputs `context` [N, F] f32 and `candidates` [N, K, A] f32 (either may be absent)
            and one output [N, K] or [N, K, M] f32, for numbers [N, S]; its opset is the opset of the result. None: the
            score 0 for everything.
    Raises:
        DataError: the scorer is not such a model, or a text of the encoder can not be written as UTF-8.
    """
    model = _zero() if scorer is None else _load(scorer)
    _check_scorer(model, encoder)
    used = {value.name for value in _inputs(model.graph)}
    part = Part(_opset(model))
    between = []
    if "context" in used:
        encode(part, encoder.context, CONTEXT_INPUTS, ENCODED_CONTEXT, None)
        between.append(_float(ENCODED_CONTEXT, ["N", encoder.context_width]))
    if "candidates" in used:
        encode(part, encoder.candidate, CANDIDATE_INPUTS, ENCODED_CANDIDATES, encoder.actions)
        between.append(_float(ENCODED_CANDIDATES, ["N", "K", encoder.candidate_width]))
    draws = [size.dim_value for size in model.graph.output[0].type.tensor_type.shape.dim[2:]]
    names = {"context": ENCODED_CONTEXT, "candidates": ENCODED_CANDIDATES, model.graph.output[0].name: SCORES}
    _rename(model.graph, names)
    graph = onnx.helper.make_graph(
        nodes=[*part.nodes, *model.graph.node],
        name="policy",
        inputs=_graph_inputs(encoder),
        outputs=[_float(SCORES, ["N", "K" if encoder.numbers is None else "S", *draws])],
        initializer=[*part.constants, *model.graph.initializer],
        sparse_initializer=list(model.graph.sparse_initializer),
        value_info=between,
    )
    return _finish(graph, model)


def encoded_scorer(data: bytes) -> EncodedScorer:
    """The part of a composed graph behind its encoder: judges a stored version on a Batch.

    Raises:
        DataError: the bytes are not a graph that `compose` made.
    """
    model = _load(data)
    between = [value for value in model.graph.value_info if value.name in (ENCODED_CONTEXT, ENCODED_CANDIDATES)]
    if not between or [value.name for value in model.graph.output] != [SCORES]:
        raise DataError(
            f"the graph has no tensor {ENCODED_CONTEXT} or {ENCODED_CANDIDATES} that leads to {SCORES}",
            hint="only a composed graph has a scorer to take out",
        )
    graph = onnx.helper.make_graph(
        nodes=[node for node in model.graph.node if not node.name.startswith(ENCODER)],
        name="scorer",
        inputs=between,
        outputs=list(model.graph.output),
        initializer=[tensor for tensor in model.graph.initializer if not tensor.name.startswith(ENCODER)],
        sparse_initializer=list(model.graph.sparse_initializer),
    )
    return EncodedScorer(_finish(graph, model))


class Rows(Protocol):
    """N rows before the encoder, as `Encoder.raw_context` and `Encoder.raw_candidates` give them."""

    @property
    def context(self) -> Raw: ...

    @property
    def candidates(self) -> Raw: ...

    @property
    def ids(self) -> Array: ...


def check_parity(graph: Graph, scorer: Scorer, rows: Rows, batch: Batch, limit: float = PARITY) -> float:
    """The largest |difference| between the graph on raw rows and the scorer on the same rows encoded.

    Every score of the batch is compared, padding left out.

    Args:
        rows: what the batch was encoded from, row by row.
        limit: for the largest difference, in units of score. float32 holds 7 digits, so scores in the hundreds
            may miss 1e-5 by rounding alone: measure the reward in larger units then.
    Returns:
        in units of score.
    Raises:
        ParityError: the difference is above the limit, or not finite.
        DataError: the rows are not as many as the batch has.
    """
    arrays = [getattr(raw, name) for raw in (rows.context, rows.candidates) for name in ("numbers", "texts", "lists")]
    arrays.append(rows.ids)
    if any(len(array) != len(batch) for array in arrays):
        raise DataError(f"{', '.join(str(len(array)) for array in arrays)} raw rows for a batch of {len(batch)}")
    worst, scale, message = 0.0, 0.0, ""
    for start in range(0, len(batch), CHUNK):
        part = slice(start, start + CHUNK)
        exported = graph.scores(rows.context.take(part), rows.candidates.take(part), rows.ids[part])
        trained = scorer(batch.context[part], batch.candidates[part])
        mask = np.ones(trained.shape, dtype=bool) if batch.numbers else batch.mask[part]
        with np.errstate(invalid="ignore"):
            difference = np.abs(exported.astype(np.float64) - trained)
        difference[~mask] = 0.0
        difference[np.isnan(difference)] = np.inf
        scale = max(scale, float(np.abs(trained[mask]).max()))
        at = np.unravel_index(difference.argmax(), difference.shape)
        if difference[at] > worst:
            worst = float(difference[at])
            pair = f"the graph scores {exported[at]:.9g}, the policy {trained[at]:.9g}"
            message = f"row {start + at[0]}, {'score' if batch.numbers else 'candidate'} {at[1]}: {pair}"
    if not worst <= limit:
        rounding = worst <= 1e-6 * scale
        raise ParityError(
            f"{message}; they differ by {worst:.3g}, the limit is {limit:.3g}",
            hint=f"scores up to {scale:.3g} round by that much: measure the reward in larger units"
            if rounding
            else "do not serve this graph: the export changed what the policy computes",
        )
    return worst


def _graph_inputs(encoder: Encoder) -> list[onnx.ValueInfoProto]:
    inputs = []
    groups: tuple[tuple[tuple[Transform, ...], list[str | int], tuple[str, ...], str], ...] = (
        (encoder.context, ["N"], CONTEXT_INPUTS, "L"),
        (encoder.candidate, ["N", "K"], CANDIDATE_INPUTS, "M"),
    )
    for transforms, rows, names, longest in groups:
        counts = Counter(map(reads, transforms))
        for name, kind in zip(names, _DTYPES, strict=True):
            if counts[kind]:
                last = [counts[kind], longest] if kind == "list" else [counts[kind]]
                dtype = onnx.TensorProto.DataType.Value(_DTYPES[kind])
                inputs.append(onnx.helper.make_tensor_value_info(name, dtype, [*rows, *last]))
    return [*inputs, onnx.helper.make_tensor_value_info(CANDIDATE_IDS, onnx.TensorProto.STRING, ["N", "K"])]


def _zero() -> onnx.ModelProto:
    """The scorer of a policy that learned nothing: reads of the candidates only how many they are."""
    nodes = [
        onnx.helper.make_node("Shape", ["candidates"], ["shape"], start=0, end=2),
        onnx.helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "zero", [_float("candidates", ["N", "K", "A"])], [_float("zeros", ["N", "K"])]
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def _load(data: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own errors have no common class
        raise DataError(f"{len(data)} bytes are not an ONNX model: {error}") from None


def _float(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs of a graph without those that an old exporter lists for its weights."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _check_scorer(model: onnx.ModelProto, encoder: Encoder) -> None:
    opset = _opset(model)
    if opset < OLDEST_OPSET:
        raise DataError(f"the scorer has opset {opset}, must be {OLDEST_OPSET} or newer", hint="export it again")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise DataError("the scorer keeps weights outside of its file", hint="export it as one file")
    widths = {"context": [encoder.context_width], "candidates": [-1, encoder.candidate_width]}
    inputs = _inputs(model.graph)
    if not inputs:
        raise DataError("the scorer has no input, must have context or candidates")
    for value in inputs:
        if value.name not in widths:
            raise DataError(f"the scorer has the input {value.name!r}, must be context or candidates")
        _check_tensor(value, [-1, *widths[value.name]])
    if len(model.graph.output) != 1:
        raise DataError(f"the scorer has {len(model.graph.output)} outputs, must be one: the scores")
    draws = len(model.graph.output[0].type.tensor_type.shape.dim) == 3
    _check_tensor(model.graph.output[0], [-1, -1, -1] if draws else [-1, -1])


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _check_tensor(value: onnx.ValueInfoProto, want: list[int]) -> None:
    """Raise DataError unless it is float32 of that shape; -1 and unnamed sizes are any."""
    tensor = value.type.tensor_type
    sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    fits = all(-1 in (have, size) or have == size for have, size in zip(sizes, want, strict=False))
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(sizes) != len(want) or not fits:
        kind = onnx.helper.tensor_dtype_to_string(tensor.elem_type)
        raise DataError(f"the scorer's {value.name} is {kind}{sizes}, must be TensorProto.FLOAT{want} (-1: any)")


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give every tensor and node of the scorer a name that no tensor of the encoder has."""

    def rename(name: str) -> str:
        return names.get(name, SCORER + name) if name else name

    for inner in _graphs(graph):
        for node in inner.node:
            node.name = rename(node.name)
            node.input[:] = map(rename, node.input)
            node.output[:] = map(rename, node.output)
            node.ClearField("doc_string")
            node.ClearField("metadata_props")  # exporters write stack traces into it, with paths of their machine
        for value in (*inner.input, *inner.output, *inner.initializer):
            value.name = rename(value.name)
        for sparse in inner.sparse_initializer:
            sparse.values.name = rename(sparse.values.name)
        inner.ClearField("value_info")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _finish(graph: onnx.GraphProto, scorer: onnx.ModelProto) -> bytes:
    """A checked model with the opsets and functions of the scorer."""
    opsets = {entry.domain: entry.version for entry in scorer.opset_import}
    opsets.setdefault("ai.onnx.ml", 3)
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())],
        ir_version=max(scorer.ir_version, 8),
        functions=list(scorer.functions),
        producer_name="steersman",
    )
    operations = {node.op_type for node in graph.node if not node.name.startswith(ENCODER)}  # Part keeps its own exact
    onnx.helper.set_model_props(model, {ROWWISE: "yes" if operations <= _EXACT and not scorer.functions else "no"})
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DataError(f"encoder and scorer do not make a valid graph: {error}") from None
    return model.SerializeToString(deterministic=True)
