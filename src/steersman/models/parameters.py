"""The parameters of a composed graph as one flat row: taken out, put back, and open to be fed from outside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from steersman.core.errors import DataError
from steersman.models.onnx import SCORER

Array = np.ndarray

_REAL = (TensorProto.FLOAT, TensorProto.DOUBLE)


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
    arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
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
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        name, shape = tensor.name, tuple(tensor.dims)
        tensor.CopyFrom(numpy_helper.from_array(part.reshape(shape).astype(kind), name))
        if name not in inputs:
            model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, shape))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _parameters(model: onnx.ModelProto) -> list[TensorProto]:
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.name.startswith(SCORER) and tensor.data_type in _REAL and len(tensor.dims)
    ]
