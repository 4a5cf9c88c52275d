"""Small ONNX models with signatures of every kind, and a server over them in a thread of this process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from steersman.core.errors import NotFoundError
from steersman.models.plain import Plain
from steersman.models.shelf import Shelf
from steersman.serve.predicting import Model, Models, Wanted

TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
    "str": TensorProto.STRING,
}
Io = Mapping[str, tuple[str, list[int | str]]]
"""Name -> numpy's type, shape."""


def model(
    nodes: list[tuple[str, list[str], list[str], dict]],
    inputs: Io,
    outputs: Io,
    constants: Mapping[str, np.ndarray] | None = None,
    classes: str = "",
) -> bytes:
    """An ONNX model of these nodes: (operator, inputs, outputs, attributes)."""
    graph = helper.make_graph(
        [helper.make_node(op, taken, given, **attributes) for op, taken, given, attributes in nodes],
        "plain",
        [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    if classes:
        helper.set_model_props(made, {"classes": classes})
    return made.SerializeToString()


def half(plus: float = 2.0) -> bytes:
    """y = x / 2 + plus, of [N]: the model of TensorFlow Serving's tutorials."""
    constants = {"a": np.float32(0.5).reshape(()), "b": np.float32(plus).reshape(())}
    nodes = [("Mul", ["x", "a"], ["h"], {}), ("Add", ["h", "b"], ["y"], {})]
    return model(nodes, {"x": ("float32", ["N"])}, {"y": ("float32", ["N"])}, constants)


def same(kind: str, shape: list[int | str] | None = None) -> bytes:
    """Gives what it takes."""
    shape = ["N"] if shape is None else shape
    return model([("Identity", ["x"], ["y"], {})], {"x": (kind, shape)}, {"y": (kind, shape)})


def pair() -> bytes:
    """Two named inputs, two named outputs: total = sum of a's row + b, and b itself."""
    nodes = [
        ("ReduceSum", ["a", "last"], ["s"], {"keepdims": 0}),
        ("Cast", ["b"], ["f"], {"to": TensorProto.FLOAT}),
        ("Add", ["s", "f"], ["total"], {}),
        ("Identity", ["b"], ["b_again"], {}),
    ]
    inputs: Io = {"a": ("float32", ["N", 2]), "b": ("int32", ["N"])}
    return model(nodes, inputs, {"total": ("float32", ["N"]), "b_again": ("int32", ["N"])}, {"last": np.array([-1])})


def weights(*sizes: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    shapes = itertools.pairwise(sizes)
    return [(random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32) for shape in shapes]


def mlp(*sizes: int, softmax: bool = False, classes: str = "") -> bytes:
    """ReLU between matrix products, of [N, first] to [N, last]."""
    arrays = weights(*sizes)
    nodes: list[tuple[str, list[str], list[str], dict]] = []
    at = "x"
    for i in range(len(arrays)):
        last = i == len(arrays) - 1
        nodes.append(("MatMul", [at, f"w{i}"], [f"m{i}"], {}))
        op = ("Softmax" if softmax else "Identity") if last else "Relu"
        at = "y" if last else f"h{i}"
        nodes.append((op, [f"m{i}"], [at], {}))
    constants = {f"w{i}": array for i, array in enumerate(arrays)}
    return model(nodes, {"x": ("float32", ["N", sizes[0]])}, {"y": ("float32", ["N", sizes[-1]])}, constants, classes)


def gather() -> bytes:
    """Rows of a table by number: a number that is not there is an error of the run."""
    nodes = [("Gather", ["table", "i"], ["y"], {})]
    return model(nodes, {"i": ("int64", ["N"])}, {"y": ("float32", ["N"])}, {"table": np.arange(5, dtype=np.float32)})


def mean() -> bytes:
    """x minus its mean over the rows: rows that depend on each other."""
    nodes = [("ReduceMean", ["x"], ["m"], {"axes": [0]}), ("Sub", ["x", "m"], ["y"], {})]
    return model(nodes, {"x": ("float32", ["N"])}, {"y": ("float32", ["N"])})


def log() -> bytes:
    """Logarithms: NaN of -1, -Infinity of 0."""
    return model([("Log", ["x"], ["y"], {})], {"x": ("float32", ["N"])}, {"y": ("float32", ["N"])})


def models_of(versions: Mapping[str, Mapping[int, bytes]], **labels: Mapping[str, int]) -> Models:
    """Live models of these bytes; they have been loaded."""

    def load(name: str, number: int) -> Model:
        if number not in versions.get(name, {}):
            raise NotFoundError(f"{name}/{number} is not there")
        plain = Plain(versions[name][number])
        return Model(plain.signature, plain.run)

    def wanted() -> dict[str, Wanted]:
        return {name: Wanted(tuple(there), labels=labels.get(name, {})) for name, there in versions.items()}

    made = Models(load, wanted)
    made.follow()
    return made


def shelved(root: Path) -> Models:
    """A shelf with models of all types, and those who follow it."""
    shelf = Shelf(str(root))
    for kind in TYPES:
        shelf.publish(kind, same(kind))
    for name, data in {
        "mlp": mlp(4, 8, 3),
        "pair": pair(),
        "cube": same("float32", ["N", "M", "K"]),
        "gather": gather(),
        "names": mlp(2, 2, classes='["no", "yes"]'),
    }.items():
        shelf.publish(name, data)
    two = model(
        [("Identity", ["x"], ["y"], {})],
        {"x": ("float32", ["N", 2])},
        {"y": ("float32", ["N", 2])},
        classes='["no", "yes"]',
    )
    shelf.publish("names", two)
    shelf.publish("half", half(1.0))
    shelf.publish("half", half())
    return following(shelf)


def following(shelf: Shelf) -> Models:
    """Those who follow a shelf; they have looked once."""

    def load(name: str, number: int) -> Model:
        made = shelf.load(name, number)
        return Model(made.signature, made.run)

    def wanted() -> dict[str, Wanted]:
        on = shelf.switched()
        labels = {"half": {"old": 1}}
        names = [name for name in shelf.names() if on.get(name, True)]
        return {name: Wanted(shelf.numbers(name), labels=labels.get(name, {})) for name in names}

    models = Models(load, wanted, turn_on=shelf.switch)
    models.follow()
    return models
