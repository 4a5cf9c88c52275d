"""Infer requests whose JSON is known: byte for byte what is read and written without that knowledge."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from steersman.core.errors import Error
from steersman.core.signature import Signature, Tensor
from steersman.serve import binary, kserve
from steersman.serve.binary import Infer

Array = np.ndarray
SIGNATURE = Signature(
    (
        Tensor("a", "float32", (-1, 3)),
        Tensor("b", "int64", (-1,)),
        Tensor("t", "str", (-1,)),
        Tensor("o", "bool", (-1,)),
    ),
    (Tensor("y", "float32", (-1, 2)), Tensor("z", "float64", (-1,)), Tensor("s", "str", (-1,))),
    classes=("no", "yes"),
)
RANDOM = np.random.default_rng(0)


def asked(feeds: dict[str, Array], json_of: tuple[str, ...] = (), **more: Any) -> tuple[bytes, int]:
    """A body and how much of it is JSON; the numbers of those in `json_of` stand in that."""
    inputs, tail = [], b""
    for name, array in feeds.items():
        kind = kserve.DATATYPES["str" if array.dtype == object else array.dtype.name]
        one: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": kind}
        if name in json_of:
            one["data"] = array.ravel().tolist()
        else:
            raw = kserve.to_raw(array)
            one["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        inputs.append(one)
    text = json.dumps({"inputs": inputs, **more}).encode()
    return text + tail, len(text)


def told(question: kserve.Question) -> list[Any]:
    feeds = [(name, array.dtype, array.shape, array.tolist()) for name, array in question.feeds.items()]
    return [feeds, question.outputs, question.id]


def outputs(rows: int) -> list[Array]:
    texts = np.empty(rows, object)
    texts[:] = ["x" * int(size) for size in RANDOM.integers(0, 5, rows)]
    return [RANDOM.normal(size=(rows, 2)).astype(np.float32), RANDOM.normal(size=rows), texts]


def numbers(rows: int) -> dict[str, Array]:
    return {
        "a": RANDOM.normal(size=(rows, 3)).astype(np.float32),
        "b": RANDOM.integers(-(2**60), 2**60, size=rows),
    }


RAW = {"name": "y", "parameters": {"binary_data": True}}
CASES: dict[str, dict[str, Any]] = {
    "numbers in JSON": {},
    "all binary": {"parameters": {"binary_data_output": True}},
    "one binary": {"outputs": [RAW], "id": "7"},
    "binary and JSON": {"outputs": [RAW, {"name": "z"}]},
    "another order": {"outputs": [{"name": "z", "parameters": {"binary_data": True}}, RAW]},
    "classes": {"outputs": [{"name": "y", "parameters": {"classification": 1, "binary_data": True}}]},
    "texts": {"outputs": [{"name": "s", "parameters": {"binary_data": True}}]},
}


@pytest.mark.parametrize("case", CASES)
def test_a_known_request_is_read_and_answered_byte_for_byte_as_a_new_one(case: str) -> None:
    infer = Infer("m", 3, SIGNATURE)
    knew = 0
    for i in range(40):
        rows = 1 + i % 3
        body, json_bytes = asked(numbers(rows), **CASES[case])
        question, known = infer.read(body, json_bytes)
        expected = kserve.read_infer(body, json_bytes, SIGNATURE)
        assert told(question) == told(expected)
        assert all(array.flags.aligned for array in question.feeds.values())
        given = outputs(rows + i % 2)
        knew += known is not None and bool(known.answers)
        assert infer.write(question, known, given) == kserve.write_infer("m", 3, expected, given, SIGNATURE)
    sizes_that_shapes_tell = case in ("one binary", "another order")
    assert knew == (37 if sizes_that_shapes_tell else 0)


@pytest.mark.parametrize("json_of", [("a",), ("b",), ("a", "b")])
def test_numbers_that_stand_in_the_json_are_never_known(json_of: tuple[str, ...]) -> None:
    infer = Infer("m", 3, SIGNATURE)
    for _ in range(2):
        body, json_bytes = asked(numbers(2), json_of)
        question, known = infer.read(body, json_bytes)
        assert known is None
        assert told(question) == told(kserve.read_infer(body, json_bytes, SIGNATURE))


def test_texts_and_booleans_are_never_known() -> None:
    for feeds in ({"t": np.array(["a", "bc"], object)}, {"o": np.array([True, False])}):
        body, json_bytes = asked(feeds)
        assert Infer("m", 3, SIGNATURE).read(body, json_bytes)[1] is None


def test_a_body_that_is_changed_is_read_or_refused_as_ever() -> None:
    infer = Infer("m", 3, SIGNATURE)
    whole, json_bytes = asked(numbers(2), outputs=[RAW])
    infer.read(whole, json_bytes)
    kinds = [0, 0]
    for i in range(3000):
        other = bytearray(whole)
        for _ in range(RANDOM.integers(1, 3)):
            other[RANDOM.integers(json_bytes if i % 2 else 0, len(other))] = RANDOM.integers(256)
        body = bytes(other[: len(other) - (RANDOM.integers(5) if i % 3 == 0 else 0)])
        length = json_bytes + (int(RANDOM.integers(-2, 3)) if i % 8 == 0 else 0)
        try:
            expected: Any = told(kserve.read_infer(body, length, SIGNATURE))
        except Error as error:
            expected = str(error)
        try:
            found: Any = told(infer.read(body, length)[0])
        except Error as error:
            found = str(error)
        kinds[isinstance(found, str)] += 1
        assert repr(found) == repr(expected)  # as text, for a NaN is not itself
    assert min(kinds) > 300


def test_a_length_behind_the_end_is_refused_though_the_json_is_known() -> None:
    infer = Infer("m", 3, SIGNATURE)
    body, json_bytes = asked({"b": np.zeros(0, np.int64)})
    assert infer.read(body, json_bytes)[1] is not None
    with pytest.raises(Error, match="the body has"):
        infer.read(body, json_bytes + 1)


def test_what_is_kept_is_bounded() -> None:
    infer = Infer("m", 3, SIGNATURE)
    for i in range(3 * binary.HEADS):
        body, json_bytes = asked(numbers(1), outputs=[RAW], id=str(i))
        question, known = infer.read(body, json_bytes)
        assert known is not None
        for rows in range(2 * binary.SHAPES):
            infer.write(question, known, outputs(rows))
        assert len(known.answers) == binary.SHAPES
    assert len(infer._known) == binary.HEADS
    body, json_bytes = asked(numbers(1), id="x" * binary.HEAD_BYTES)
    assert infer.read(body, json_bytes)[1] is None
