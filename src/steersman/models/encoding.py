"""The encoder as nodes of a graph: what `core.features` computes in numpy, one group of nodes a type of transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steersman.core.errors import DataError
from steersman.core.features import (
    EDGE,
    LIMIT,
    NO_LIST,
    NO_TEXT,
    Binary,
    BoxCox,
    Continuous,
    Enumerated,
    Placed,
    Probability,
    Quantile,
    Transform,
    placed,
)
from steersman.models.building import onnx
from steersman.models.graph import CANDIDATE_IDS

ENCODER = "encoder/"
OLDEST_OPSET_OF_LISTS = 16


class Part:
    """Nodes and constants of the encoder, named by their count so that the same encoder gives the same bytes.

    What the nodes give for a row never depends on the rows beside it, in no bit: they are operations that IEEE 754
    rounds the same way in every lane of a processor, sums of whole numbers, moves, and logarithms and powers that
    onnxruntime computes one by one.

    Args:
        opset: of the graph.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{ENCODER}{len(self.nodes)}_{kind}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: type) -> str:
        name = f"{ENCODER}constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def pick(self, tensor: str, columns: Sequence[int], of: int) -> str:
        """Columns of the last axis, which has `of`."""
        if list(columns) == list(range(of)):
            return tensor
        return self.op("Gather", tensor, self.constant(columns, np.int64), axis=-1)

    def to_f32(self, tensor: str) -> str:
        return self.op("Cast", tensor, to=onnx.TensorProto.FLOAT)


class _Group:
    """Tensors of one group of fields, in any order, and where in the output their columns belong."""

    def __init__(self, part: Part, dimensions: int) -> None:
        self.part = part
        self.dimensions = dimensions
        self.pieces: list[str] = []
        self.places: list[int] = []
        self._shapes: dict[int, str] = {}

    def add(self, piece: str, places: Sequence[int]) -> None:
        self.pieces.append(piece)
        self.places += places

    def shape(self, last: int) -> str:
        """[N, last] or [N, K, last], as a tensor."""
        if last not in self._shapes:
            rows = self.part.op("Shape", CANDIDATE_IDS, start=0, end=self.dimensions)
            self._shapes[last] = self.part.op("Concat", rows, self.part.constant([last], np.int64), axis=0)
        return self._shapes[last]

    def reshape(self, tensor: str, last: int) -> str:
        """To [..., last]."""
        return self.part.op("Reshape", tensor, self.shape(last), allowzero=1)

    def sum(self, tensor: str, count: int) -> str:
        """[..., count, any] over the last axis; reshaped because onnxruntime does not reduce an array without rows."""
        return self.reshape(self.part.op("ReduceSum", tensor, self.part.constant([-1], np.int64)), count)

    def logarithm(self, tensor: str, count: int) -> str:
        """Of every number, [..., count]. Log itself gives other bits at the end of an array than before it."""
        last = self.part.constant([-1], np.int64)
        alone = self.part.op("Unsqueeze", tensor, last)
        if self.part.opset < 18:
            return self.reshape(self.part.op("ReduceLogSum", alone, axes=[-1]), count)
        return self.reshape(self.part.op("ReduceLogSum", alone, last), count)


def encode(
    part: Part, transforms: tuple[Transform, ...], inputs: Sequence[str], output: str, actions: Sequence[str] | None
) -> None:
    """Add one group of fields.

    Args:
        inputs: names of the numbers, texts and lists.
        output: name of the encoded tensor.
        actions: of the candidates, whose one-hot stands in front; None: this is the context.
    Raises:
        DataError: a text can not be written as UTF-8, or the opset is too old.
    """
    group = _Group(part, dimensions=1 if actions is None else 2)
    if actions:
        index = {name: i for i, name in enumerate(actions)}
        columns = _looked_up(part, CANDIDATE_IDS, index, default=len(actions))  # no such column: all zeros
        depth, values = part.constant(len(actions), np.int64), part.constant([0, 1], np.float32)
        group.add(part.op("OneHot", columns, depth, values, axis=-1), range(len(actions)))
    fields = placed(transforms, start=len(actions or ()))
    numbers, texts, lists = inputs
    _numbers(group, numbers, [field for field in fields if field.transform.reads == "number"])
    _categories(group, texts, [field for field in fields if field.transform.reads == "text"])
    _ids(group, lists, [field for field in fields if field.transform.reads == "list"])
    _join(group)
    part.nodes[-1].output[0] = output


def _join(group: _Group) -> None:
    """The pieces in the order of the fields."""
    part = group.part
    if not group.pieces:
        part.op("ConstantOfShape", group.shape(0))
    elif len(group.pieces) > 1 or group.places != sorted(group.places):
        joined = part.op("Concat", *group.pieces, axis=-1)
        if group.places != sorted(group.places):
            part.op("Gather", joined, part.constant(np.argsort(group.places), np.int64), axis=-1)


# ---- numbers


def _numbers(group: _Group, numbers: str, fields: Sequence[Placed[Any]]) -> None:
    """[..., C] f64 to all columns of the C fields that read numbers."""
    if not fields:
        return
    part = group.part
    is_missing = part.op("IsNaN", numbers)
    missing = part.to_f32(is_missing)
    group.add(missing, [field.missing_at for field in fields])
    values, known = [], []
    for belongs, value in _VALUES:
        some = [field for field in fields if belongs(field.transform)]
        if some:
            own = part.pick(numbers, [field.column for field in some], len(fields))
            values.append(value(group, own, [field.transform for field in some]))
            known += some
    if known:
        joined = part.op("Concat", *values, axis=-1) if len(values) > 1 else values[0]
        unknown = part.pick(is_missing, [field.column for field in known], len(fields))
        filled = part.op("Where", unknown, part.constant(0.0, np.float64), joined)
        group.add(part.to_f32(filled), [field.at for field in known])
    some = [field for field in fields if isinstance(field.transform, Enumerated)]
    if some:
        columns = [field.column for field in some]
        _enumerated(group, part.pick(numbers, columns, len(fields)), part.pick(missing, columns, len(fields)), some)


def _binary(group: _Group, numbers: str, transforms: Sequence[Binary]) -> str:
    part = group.part
    none, some = part.constant(0.0, np.float64), part.constant(1.0, np.float64)
    return part.op("Where", part.op("Equal", numbers, none), none, some)


def _probability(group: _Group, numbers: str, transforms: Sequence[Probability]) -> str:
    part = group.part
    share = part.op("Clip", numbers, part.constant(EDGE, np.float64), part.constant(1 - EDGE, np.float64))
    rest = part.op("Sub", part.constant(1.0, np.float64), share)
    return group.logarithm(part.op("Div", share, rest), len(transforms))


def _continuous(group: _Group, numbers: str, transforms: Sequence[Continuous]) -> str:
    return _standardised(group.part, numbers, [(transform.mean, transform.std) for transform in transforms])


def _standardised(part: Part, numbers: str, offsets_and_scales: Sequence[tuple[float, float]]) -> str:
    offset, scale = np.array(offsets_and_scales).T
    difference = part.op("Sub", numbers, part.constant(offset, np.float64))
    scaled = part.op("Div", difference, part.constant(scale, np.float64))
    return part.op("Clip", scaled, part.constant(-LIMIT, np.float64), part.constant(LIMIT, np.float64))


def _power(group: _Group, numbers: str, transforms: Sequence[BoxCox]) -> str:
    part = group.part
    powers = part.constant([transform.power for transform in transforms], np.float64)
    power = part.op("Pow", _raised(part, numbers, transforms), powers)
    return _standardised(part, power, [transform.folded for transform in transforms])


def _logarithm(group: _Group, numbers: str, transforms: Sequence[BoxCox]) -> str:
    logarithm = group.logarithm(_raised(group.part, numbers, transforms), len(transforms))
    return _standardised(group.part, logarithm, [transform.folded for transform in transforms])


def _raised(part: Part, numbers: str, transforms: Sequence[BoxCox]) -> str:
    shifted = part.op("Add", numbers, part.constant([transform.shift for transform in transforms], np.float64))
    return part.op("Max", shifted, part.constant([transform.low for transform in transforms], np.float64))


def _quantile(group: _Group, numbers: str, transforms: Sequence[Quantile]) -> str:
    """Which segment a number is in takes two comparisons of about sqrt(segments): with blocks of segments, in a block.

    Comparing with every boundary at once would take rows * fields * boundaries of memory.
    """
    every = [np.array(transform.boundaries) for transform in transforms]
    counts = np.array([len(boundaries) - 1 for boundaries in every])
    size = max(math.ceil(math.sqrt(counts.max())), 2)
    blocks = max(math.ceil(counts.max() / size), 2)
    segments = np.full((len(every), blocks, size, 2), np.nan)  # start and length; NaN is never reached
    for table, boundaries in zip(segments.reshape(len(every), -1, 2), every, strict=True):
        table[: len(boundaries) - 1] = np.stack([boundaries[:-1], np.diff(boundaries)], axis=-1)
    starts, lengths = segments[..., 0], segments[..., 1]

    part = group.part
    alone = part.op("Unsqueeze", numbers, part.constant([-1], np.int64))
    passed = part.op("GreaterOrEqual", alone, part.constant(starts[:, 1:, 0], np.float64))
    block = group.sum(part.op("Cast", passed, to=onnx.TensorProto.INT64), len(every))
    row = part.op("Add", block, part.constant(np.arange(len(every)) * blocks, np.int64))
    inner = part.op("Gather", part.constant(starts[:, :, 1:].reshape(-1, size - 1), np.float64), row, axis=0)
    passed = part.op("GreaterOrEqual", alone, inner)
    step = group.sum(part.op("Cast", passed, to=onnx.TensorProto.INT64), len(every))
    segment = part.op("Add", part.op("Mul", row, part.constant(size, np.int64)), step)
    start, length, below = (
        part.op("Gather", part.constant(table.ravel(), np.float64), segment)
        for table in (starts, lengths, np.tile(np.arange(float(blocks * size)), len(every)))
    )
    within = part.op("Div", part.op("Sub", numbers, start), length)
    share = part.op("Div", part.op("Add", within, below), part.constant(counts, np.float64))
    return part.op("Clip", share, part.constant(0.0, np.float64), part.constant(1.0, np.float64))


_VALUES: tuple[tuple[Callable[[Transform], bool], Callable[[_Group, str, Any], str]], ...] = (
    (lambda transform: isinstance(transform, Binary), _binary),
    (lambda transform: isinstance(transform, Probability), _probability),
    (lambda transform: isinstance(transform, Continuous), _continuous),
    (lambda transform: isinstance(transform, BoxCox) and not transform.logarithmic, _power),
    (lambda transform: isinstance(transform, BoxCox) and transform.logarithmic, _logarithm),
    (lambda transform: isinstance(transform, Quantile), _quantile),
)
"""Which transforms make one number of a number, and how: [..., C] f64 to [..., C] f64, anything for NaN."""


def _enumerated(group: _Group, numbers: str, missing: str, fields: Sequence[Placed[Enumerated]]) -> None:
    """[..., C] f64 and its missing indicators, f32, to the one-hots and the indicators of the unseen."""
    part = group.part
    every = [field.transform.values for field in fields]
    most = max(*map(len, every), 1)
    values = np.full((len(fields), most), np.nan)  # NaN is equal to nothing
    for row, some in zip(values, every, strict=True):
        row[: len(some)] = some
    alone = part.op("Unsqueeze", numbers, part.constant([-1], np.int64))
    same = part.to_f32(part.op("Equal", alone, part.constant(values, np.float64)))
    unseen = part.op("Sub", part.op("Sub", part.constant(1.0, np.float32), group.sum(same, len(fields))), missing)
    group.add(unseen, [field.missing_at - 1 for field in fields])
    there = np.flatnonzero(~np.isnan(values)).tolist()
    if there:
        flat = group.reshape(same, values.size)
        places = [field.at + i for field, some in zip(fields, every, strict=True) for i in range(len(some))]
        group.add(part.pick(flat, there, values.size), places)


# ---- texts and lists


def _categories(group: _Group, texts: str, fields: Sequence[Placed[Any]]) -> None:
    """[..., T] string to the one-hots of T categories: a text to its number, field and number to a column."""
    if not fields:
        return
    part = group.part
    starts = np.cumsum([0, *(field.transform.width for field in fields)])
    texts_of = [text for field in fields for text in (*field.transform.values, NO_TEXT)]
    number_of = {text: i for i, text in enumerate(dict.fromkeys(texts_of))}
    row = len(number_of) + 1
    column_of = {}
    for i, (field, start) in enumerate(zip(fields, starts.tolist(), strict=False)):
        for j, text in enumerate((*field.transform.values, NO_TEXT)):
            column_of[i * row + number_of[text]] = start + j + (text == NO_TEXT)
    number = _looked_up(part, texts, number_of, default=len(number_of))
    field_and_number = part.op("Add", number, part.constant(np.arange(len(fields)) * row, np.int64))
    column = _looked_up(part, field_and_number, column_of, default=-1)
    unseen = part.constant(starts[1:] - 2, np.int64)
    column = part.op("Where", part.op("Less", column, part.constant(0, np.int64)), unseen, column)
    one = onnx.numpy_helper.from_array(np.ones(1, dtype=np.float32))
    ones = part.op("ConstantOfShape", part.op("Shape", column), value=one)
    columns = [at for field in fields for at in range(field.at, field.missing_at + 1)]
    group.add(_scattered(group, column, ones, int(starts[-1])), columns)


def _ids(group: _Group, lists: str, fields: Sequence[Placed[Any]]) -> None:
    """[..., J, L] i64 of J fields of ids to the shares of the buckets and the missing indicators."""
    if not fields:
        return
    part = group.part
    if part.opset < OLDEST_OPSET_OF_LISTS:
        raise DataError(
            f"the scorer has opset {part.opset}; with id lists it must be {OLDEST_OPSET_OF_LISTS} or newer",
            hint="export it again",
        )
    buckets = np.array([field.transform.buckets for field in fields])
    starts = np.cumsum([0, *buckets])
    weight = part.to_f32(part.op("GreaterOrEqual", lists, part.constant(0, np.int64)))
    bucket = part.op("Mod", lists, part.constant(buckets[:, None], np.int64))  # of what is no id too, with weight 0
    column = part.op("Add", bucket, part.constant(starts[:-1, None], np.int64))
    places = part.op("Mul", part.op("Shape", lists, start=-1), part.constant([len(fields)], np.int64))
    rows = part.op("Shape", CANDIDATE_IDS, start=0, end=group.dimensions)
    shape = part.op("Concat", rows, places, axis=0)
    column, flat = (part.op("Reshape", tensor, shape, allowzero=1) for tensor in (column, weight))
    count = _scattered(group, column, flat, int(starts[-1]), reduction="add")
    length = part.op("Max", group.sum(weight, len(fields)), part.constant(1.0, np.float32))
    lengths = part.op("Gather", length, part.constant(np.repeat(np.arange(len(fields)), buckets), np.int64), axis=-1)
    group.add(
        part.op("Div", count, lengths), [field.at + b for field in fields for b in range(field.transform.buckets)]
    )
    first = part.op("Gather", lists, part.constant(0, np.int64), axis=-1)
    missing = part.op("Equal", first, part.constant(NO_LIST, np.int64))
    group.add(part.to_f32(missing), [field.missing_at for field in fields])


def _scattered(group: _Group, column: str, value: str, width: int, **attributes: Any) -> str:
    """[..., width] f32: zeros, and the values at their columns."""
    zeros = group.part.op("ConstantOfShape", group.shape(width))
    return group.part.op("ScatterElements", zeros, column, value, axis=-1, **attributes)


def _looked_up(part: Part, tensor: str, index: Mapping[str, int] | Mapping[int, int], default: int) -> str:
    """The number of every text, or of every number, i64."""
    keys: dict[str, list[Any]] = {"keys_strings": [], "keys_int64s": []}
    for key in index:
        if isinstance(key, int):
            keys["keys_int64s"].append(key)
            continue
        try:
            keys["keys_strings"].append(key.encode())
        except UnicodeEncodeError as error:
            raise DataError(f"a text of the encoder can not be written as UTF-8: {error}") from None
    given = {name: some for name, some in keys.items() if some}
    values = list(index.values())
    return part.op("LabelEncoder", tensor, domain="ai.onnx.ml", values_int64s=values, default_int64=default, **given)
