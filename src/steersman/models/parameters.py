"""The parameters of a composed graph as one flat row: taken out, put back, and open to be fed from outside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steersman.core.errors import DataError
from steersman.models.building import onnx
from steersman.models.onnx import SCORER

Array = np.ndarray


@dataclass(frozen=True)
class Parameters:
    """Real tensors of a scorer, by name.

    Attributes:
        names, shapes: of the tensors.
        flat: [d] f64, the numbers of one after the other.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    flat: Array


def parameters_of(data: bytes) -> Parameters:
    """The parameters of a composed graph: all tensors of real numbers in its scorer that have a dimension.

    Raises:
        DataError: it has none, as the graph of the uniform policy.
    """
    tensors = sorted(_parameters(onnx.load_model_from_string(data)), key=lambda tensor: tensor.name)
    if not tensors:
        raise DataError("the version has no parameters", hint="train a policy with a net, and publish it")
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
    return Parameters(
        names=tuple(tensor.name for tensor in tensors),
        shapes=tuple(array.shape for array in arrays),
        flat=np.concatenate([array.reshape(-1) for array in arrays]).astype(np.float64),
    )


def opened(data: bytes, flat: Array) -> bytes:
    """The graph with these parameters, which may also be fed from outside; alone it scores as it is.

    Args:
        flat: [d], as `parameters_of` orders them.
    Raises:
        DataError: there are not so many parameters.
    """
    model = onnx.load_model_from_string(data)
    tensors = sorted(_parameters(model), key=lambda tensor: tensor.name)
    sizes = [math.prod(tensor.dims) for tensor in tensors]
    if flat.shape != (sum(sizes),):
        raise DataError(f"parameters of the shape {flat.shape} for a graph with {sum(sizes)}", field="flat")
    inputs = {value.name for value in model.graph.input}
    for tensor, part in zip(tensors, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        name, shape = tensor.name, tuple(tensor.dims)
        tensor.CopyFrom(onnx.numpy_helper.from_array(part.reshape(shape).astype(kind), name))
        if name not in inputs:
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, shape))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def crowd_of(data: bytes) -> bytes:
    """The graph in which every row has parameters of its own: inputs [N, ...], and no parameters inside.

    Empty where that can not be told: a parameter is something else than the right factor of a matrix product, or a
    summand or factor, element by element, of what has a row for each of N.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    graph, tensors = model.graph, {tensor.name: tensor for tensor in _parameters(model)}
    known = [*graph.value_info, *graph.input, *graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in known}
    constants = {tensor.name for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    axes: dict[str, str] = {}  # of constants that name axes
    for node in graph.node:
        own = [place for place, name in enumerate(node.input) if name in tensors]
        if not own:
            nodes.append(node)
            continue
        other = node.input[1 - own[0]] if len(node.input) == 2 else ""
        made = _by_row(node, own, tensors[node.input[own[0]]], ranks.get(other, 0), axes)
        if len(own) > 1 or other in constants or not made:
            return b""
        nodes += made
    kept = [tensor for tensor in graph.initializer if tensor.name not in tensors]
    kept += [
        onnx.numpy_helper.from_array(np.array([int(axis) for axis in text.split()]), name)
        for text, name in axes.items()
    ]
    given = [
        onnx.helper.make_tensor_value_info(name, tensor.data_type, ["N", *tensor.dims])
        for name, tensor in tensors.items()
    ]
    inputs = [value for value in graph.input if value.name not in tensors] + given
    crowd = onnx.helper.make_graph(nodes, "crowd", inputs, list(graph.output), initializer=kept)
    made_model = onnx.helper.make_model(crowd, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        onnx.checker.check_model(made_model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return b""
    return made_model.SerializeToString(deterministic=True)


def _by_row(
    node: onnx.NodeProto, own: list[int], tensor: onnx.TensorProto, rank: int, axes: dict[str, str]
) -> list[onnx.NodeProto]:
    """The nodes for one with a parameter [N, ...] and an operand of a rank; none: there are none."""
    result, name = node.output[0], tensor.name

    def constant(of: range) -> str:
        return axes.setdefault(" ".join(map(str, of)), f"{SCORER}crowd_axes_{len(axes)}")

    def op(kind: str, value: str, of: range, to: str) -> onnx.NodeProto:
        return onnx.helper.make_node(kind, [value, constant(of)], [to])

    if node.op_type == "MatMul" and own == [1] and len(tensor.dims) == 2 and rank == 2:  # [N, 1, F] by [N, F, H]
        row, product = f"{result}/row", f"{result}/product"
        return [
            op("Unsqueeze", node.input[0], range(1, 2), row),
            onnx.helper.make_node("MatMul", [row, name], [product]),
            op("Squeeze", product, range(1, 2), result),
        ]
    spare = rank - 1 - len(tensor.dims)  # axes between that of N and those of the parameter
    if node.op_type == "MatMul":
        fits = own == [1] and len(tensor.dims) == 2
    else:
        fits = node.op_type in ("Add", "Sub", "Mul", "Div")
    if not fits or spare < 0:
        return []
    given = f"{result}/given" if spare else name
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.input[own[0]] = given
    return [*([op("Unsqueeze", name, range(1, 1 + spare), given)] if spare else []), changed]


def _parameters(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.name.startswith(SCORER)
        and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
        and len(tensor.dims)
    ]
