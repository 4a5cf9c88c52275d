"""Templates of predict calls: whatever they read is what protobuf reads, and they are few."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import plain_models as plain
from steersman.core.errors import Error
from steersman.core.signature import Signature, Tensor
from steersman.serve import templates, tfserving_grpc
from steersman.serve.fronts import Fronts
from steersman.serve.grpc import GrpcServer
from steersman.serve.messages import parse, varint
from steersman.serve.metrics import Metrics
from steersman.serve.settings import Settings
from steersman.serve.templates import EVERY, Template, Templates

MOST = 1 << 16
RANDOM = np.random.default_rng(0)


def request(array: np.ndarray, content: bool, name: str = "x", **spec: Any) -> Any:
    made = tfserving_grpc.PredictRequest()
    made.model_spec.name = spec.get("model", "mlp")
    if "version" in spec:
        made.model_spec.version.value = spec["version"]
    if "label" in spec:
        made.model_spec.version_label = spec["label"]
    made.output_filter.extend(spec.get("wanted", ()))
    tfserving_grpc.to_proto(array, str(array.dtype), made.inputs[name])
    if content:
        proto = made.inputs[name]
        for field in ("float_val", "double_val", "int_val", "int64_val"):
            proto.ClearField(field)
        proto.tensor_content = array.tobytes()
    return made


def signature(dtype: str) -> Signature:
    return Signature((Tensor("x", dtype, None),), (Tensor("y", "float32", None),))


def by_protobuf(body: bytes, sig: Signature) -> tuple[Any, ...]:
    found = parse(tfserving_grpc.PredictRequest, body)
    feeds = tfserving_grpc.read_predict(found, sig, MOST)
    told = [(name, array.dtype.name, array.shape, array.tobytes()) for name, array in feeds.items()]
    return tfserving_grpc.call_of("predict", found.model_spec), tuple(found.output_filter), told


def by_template(known: Template, body: bytes) -> tuple[Any, ...]:
    feeds = known.feeds(body)
    told = [(name, array.dtype.name, array.shape, array.tobytes()) for name, array in feeds.items()]
    return known.call, known.wanted, told


def learned(body: bytes, sig: Signature) -> Templates:
    made = Templates()
    found = parse(tfserving_grpc.PredictRequest, body)
    for _ in range(EVERY):
        made.learn(body, found, sig, tfserving_grpc.read_predict(found, sig, MOST))
    return made


def floats(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


CLIENT = b"\x32\x04\xff\xfe\x00\x01"  # client_id, which this server does not read
GOOD = {
    "content": (request(floats(2, 5), True), "float32", b""),
    "packed": (request(floats(3, 4), False), "float32", b""),
    "double": (request(RANDOM.normal(size=(2, 3)), False), "float64", b""),
    "whole": (request(RANDOM.integers(-9, 9, size=(2, 3)), True), "int64", b""),
    "bytes": (request(np.arange(-8, 8, dtype=np.int8), True), "int8", b""),
    "scalar": (request(floats(), True), "float32", b""),
    "version": (request(floats(1, 8), True, version=7, wanted=("y",)), "float32", b""),
    "label": (request(floats(1, 8), False, label="old", wanted=("y", "z")), "float32", CLIENT),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_a_template_reads_is_what_protobuf_reads(case: str) -> None:
    made, dtype, more = GOOD[case]
    body, sig = made.SerializeToString() + more, signature(dtype)
    known = learned(body, sig)
    template = known.find(body)
    assert template is not None
    start, end = len(template.head), len(body) - len(template.tail)
    fits = 0
    for i in range(600):
        other = bytearray(body)
        for _ in range(RANDOM.integers(1, 4)):
            place = RANDOM.integers(start, end) if i % 3 else RANDOM.integers(len(body))
            other[place] = RANDOM.integers(256)
        text = bytes(other[: len(other) - (RANDOM.integers(3) if i % 5 == 0 else 0)])
        if (found := known.find(text)) is None:
            assert len(text) < len(body) or text[:start] != body[:start] or text[end:] != body[end:]
            continue
        fits += 1
        if dtype != "float32" or np.isfinite(np.frombuffer(text[start:end], np.float32)).all():
            assert by_template(found, text) == by_protobuf(text, sig)
    assert fits > 200


def test_wherever_a_byte_of_a_template_is_another_protobuf_is_asked() -> None:
    body = GOOD["version"][0].SerializeToString()
    known = learned(body, signature("float32"))
    template = known.find(body)
    assert template is not None
    numbers = range(len(template.head), len(body) - len(template.tail))
    for place in range(len(body)):
        for flip in (1, 128, 255):
            other = bytes([*body[:place], body[place] ^ flip, *body[place + 1 :]])
            assert (known.find(other) is not None) == (place in numbers)
    assert known.find(body[:-1]) is None
    assert known.find(body + b"\x00") is None


def entry(proto: bytes, name: bytes = b"x") -> bytes:
    inside = b"\x0a" + varint(len(name)) + name + b"\x12" + varint(len(proto)) + proto
    return b"\x12" + varint(len(inside)) + inside


def bad() -> dict[str, tuple[bytes, str]]:
    made = request(floats(1, 8), True)
    array = np.frombuffer(made.inputs["x"].tensor_content, np.float32)
    content, proto, spec = array.tobytes(), made.inputs["x"].SerializeToString(), b"\x0a\x05\x0a\x03mlp"
    client = b"\x32" + varint(len(content)) + content
    few, small = request(floats(1, 3), True).inputs["x"], request(np.arange(4, dtype=np.int8), False).inputs["x"]
    few.ClearField("tensor_content")
    few.float_val.append(1.5)  # one value for three: the last is repeated
    return {
        "the same bytes first where nobody reads them": (client + spec + entry(proto), "float32"),
        "an earlier map entry of the same name": (spec + entry(proto) + entry(proto), "float32"),
        "an earlier content of the same tensor": (spec + entry(b"\x22\x20" + content + proto), "float32"),
        "repeated values": (spec + entry(few.SerializeToString()), "float32"),
        "digits that look like numbers": (spec + entry(small.SerializeToString()), "int8"),
        "values in two packed pieces": (
            spec + entry(proto[: proto.index(b"\x22")] + (b"\x2a\x10" + content[:16]) + (b"\x2a\x10" + content[16:])),
            "float32",
        ),
        "much around": (b"\x32" + varint(600) + bytes(600) + spec + entry(proto), "float32"),
        "nothing": (request(floats(0, 3), True).SerializeToString(), "float32"),
        "fewer bytes than four": (request(np.arange(3, dtype=np.int8), True).SerializeToString(), "int8"),
        "booleans": (request(np.ones(8, np.uint8), True).SerializeToString().replace(b"\x08\x04", b"\x08\x0a"), "bool"),
    }


@pytest.mark.parametrize("case", bad())
def test_what_is_not_sure_has_no_template(case: str) -> None:
    body, dtype = bad()[case]
    assert learned(body, signature(dtype)).find(body) is None


def test_templates_are_few_whatever_comes() -> None:
    made, sig = Templates(), signature("float32")
    for i in range(4 * templates.LENGTHS):
        for model in ("aa", "ab", "ac"):
            found = request(np.ones(1 + i, np.float32), True, model=f"{model}{i}")
            body = found.SerializeToString()
            for _ in range(EVERY):
                made.learn(body, found, sig, tfserving_grpc.read_predict(found, sig, MOST))
    kept = [one for some in made._known.values() for one in some]
    assert len(made._known) <= templates.LENGTHS
    assert 0 < len(kept) <= templates.LENGTHS * templates.ALIKE
    assert max(len(one.head) + len(one.tail) for one in kept) <= templates.AROUND_BYTES
    many = [request(np.ones(3, np.float32), True, model=f"m{i:03}") for i in range(40)]
    for found in many * EVERY:
        body = found.SerializeToString()
        made.learn(body, found, sig, tfserving_grpc.read_predict(found, sig, MOST))
    assert max(map(len, made._known.values())) <= templates.ALIKE


# -- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [(), ("b",), ("c", "a")])
@pytest.mark.parametrize("shape", [(), (0, 3), (1, 40), (7, 2, 3)])
def test_an_answer_is_the_message_that_protobuf_makes(wanted: tuple[str, ...], shape: tuple[int, ...]) -> None:
    kinds = {"a": "float32", "b": "float64", "c": "float32"}
    sig = Signature((), tuple(Tensor(name, kind, None) for name, kind in kinds.items()))
    for strange in (np.nan, -np.inf, 0.0):
        outputs = [RANDOM.normal(size=shape).astype(kind) for kind in kinds.values()]
        for output in outputs:
            output.ravel()[:1] = strange
        expected = tfserving_grpc.PredictResponse()
        expected.model_spec.name, expected.model_spec.signature_name = "m", "serving_default"
        expected.model_spec.version.value = 300
        for (name, kind), output in zip(kinds.items(), outputs, strict=True):
            if not wanted or name in wanted:
                tfserving_grpc.to_proto(output, kind, expected.outputs[name])
        found = parse(tfserving_grpc.PredictResponse, tfserving_grpc.write_predict(wanted, "m", 300, outputs, sig))
        assert str(found) == str(expected)  # as text, for a NaN is not itself
    with pytest.raises(Error, match="not found"):
        tfserving_grpc.write_predict(("a", "d"), "m", 300, outputs, sig)


def test_a_known_call_is_answered_by_the_version_that_serves_now() -> None:
    versions = {"half": {1: plain.half(1.0)}}
    models = plain.models_of(versions)
    settings = Settings(port=0, grpc_port=0)
    server = GrpcServer(Fronts(models, settings, None, lambda: True), settings, lambda error: None, Metrics())  # type: ignore[arg-type]
    body = request(np.array([4.0, 6.0], np.float32), True, model="half").SerializeToString()

    async def told(times: int) -> set[tuple[int, float, float]]:
        loop = asyncio.get_running_loop()
        models.attach(loop.call_soon, loop.call_soon_threadsafe)
        found = [parse(tfserving_grpc.PredictResponse, await server._predict(body)) for _ in range(times)]
        return {(one.model_spec.version.value, *one.outputs["y"].float_val) for one in found}

    assert asyncio.run(told(3 * EVERY)) == {(1, 3.0, 4.0)}
    assert server._templates.find(body) is not None
    versions["half"][2] = plain.half(2.0)
    models.follow()
    assert asyncio.run(told(3 * EVERY)) == {(2, 4.0, 5.0)}
    known = server._templates.find(body)
    assert known is not None
    assert known.signature is models.find("half").model.signature
    versions["half"] = {3: plain.pair()}
    models.follow()
    with pytest.raises(Error, match="none of the model's"):
        asyncio.run(told(1))
