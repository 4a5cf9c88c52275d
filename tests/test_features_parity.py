"""One encoder, two executions: every transform in numpy and in the graph, and the same bits whoever stands beside."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from steersman.core.decision import Candidate, One, Problem
from steersman.core.errors import DataError
from steersman.core.features import (
    NO_TEXT,
    Binary,
    BoxCox,
    Category,
    Constant,
    Continuous,
    Encoder,
    Enumerated,
    Ids,
    Probability,
    Quantile,
    Raw,
    Transform,
    boxcox,
    placed,
    random_raw,
)
from steersman.core.policy import Softmax
from steersman.core.version import Parents, Version
from steersman.models.graph import CANDIDATE_INPUTS, CHUNK, CONTEXT_INPUTS, Graph, open_session
from steersman.models.onnx import compose
from steersman.serve import asking, decide

SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 5e-324, -5e-324, 1e308, -1e308, 1e-5, 1 - 1e-5, 0.5, 2.0**53)
"""Numbers at which a transform may turn."""


def linear(encoder: Encoder, opset: int = 20, ml: int = 3) -> bytes:
    """A scorer that reads every column: a sum of both groups with random weights."""
    random = np.random.default_rng(0)
    widths = {"context": encoder.context_width, "candidates": encoder.candidate_width}
    tensors = {f"{name}_w": random.normal(size=(width, 1)).astype(np.float32) for name, width in widths.items()}
    tensors["last"] = np.array([2])
    tensors["middle"] = np.array([1])
    nodes = [
        helper.make_node("MatMul", ["context", "context_w"], ["a"]),
        helper.make_node("Unsqueeze", ["a", "middle"], ["b"]),
        helper.make_node("MatMul", ["candidates", "candidates_w"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Squeeze", ["d", "last"], ["scores"]),
    ]
    inputs = [
        helper.make_tensor_value_info("context", TensorProto.FLOAT, ["N", widths["context"]]),
        helper.make_tensor_value_info("candidates", TensorProto.FLOAT, ["N", "K", widths["candidates"]]),
    ]
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "K"])
    constants = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    graph = helper.make_graph(nodes, "linear", inputs, [output], constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ml)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


class Encoding:
    """What passes from encoder to scorer inside a composed graph."""

    def __init__(self, encoder: Encoder, opset: int = 20, ml: int = 3) -> None:
        model = onnx.load_model_from_string(compose(encoder, linear(encoder, opset, ml)))
        self.nodes = [node.op_type for node in model.graph.node]
        model.graph.output.extend(model.graph.value_info)
        rounded = [node.output[0] for node in model.graph.node if node.op_type in ("Log", "ReduceLogSum", "Exp", "Pow")]
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in rounded)
        self._wanted = ["encoded_context", "encoded_candidates", *rounded]
        self._session = open_session(model.SerializeToString())
        self._inputs = {node.name for node in self._session.get_inputs()}

    def of(self, context: Raw, candidates: Raw, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        encoded, of_candidates, *_ = self.all_of(context, candidates, ids)
        return encoded, of_candidates

    def all_of(self, context: Raw, candidates: Raw, ids: np.ndarray) -> list[np.ndarray]:
        """That, and the f64 logarithms and powers on the way: a float32 would hide that their last bit differs."""
        feed = {"candidate_ids": ids}
        for names, raw in ((CONTEXT_INPUTS, context), (CANDIDATE_INPUTS, candidates)):
            feed |= dict(zip(names, (raw.numbers, raw.texts, raw.lists), strict=True))
        given = {name: array for name, array in feed.items() if name in self._inputs}
        return self._session.run(self._wanted, given)


def every_type(random: np.random.Generator) -> tuple[Transform, ...]:
    """Twice each type, in an order of names that is none of types."""
    seen = random.lognormal(0.0, 1.0, 1_000)
    made = [
        Binary,
        Probability,
        lambda name: Continuous(name, 1.7e9, 0.5),
        lambda name: Continuous(name, -0.3, 1e-6),
        lambda name: boxcox(name, seen, 0.25, 0.4),
        lambda name: boxcox(name, seen, 0.0, 0.0),
        lambda name: boxcox(name, seen, 1e-3, -1.7),
        lambda name: Quantile(name, tuple(np.sort(random.normal(size=130)).tolist())),
        lambda name: Quantile(name, (-1e300, 0.0, 5e-324, 1.0, 1e300)),
        lambda name: Quantile(name, (0.0, 1.0)),
        lambda name: Enumerated(name, (-2.0, 0.0, 0.1, 1.0, 2.0**53)),
        lambda name: Enumerated(name, ()),
        lambda name: Category(name, ("", "pc", "é", "日本")),
        lambda name: Category(name, ("pc", "🎯")),
        lambda name: Ids(name, 5),
        lambda name: Ids(name, 1),
        Constant,
        Constant,
    ]
    return tuple(made[i](f"f{place:02}") for place, i in enumerate(random.permutation(len(made))))


def hard_raw(transforms: tuple[Transform, ...], shape: tuple[int, ...], random: np.random.Generator) -> Raw:
    """Rows as they were seen, a part of them replaced by what no fit has seen: special numbers, boundaries and
    their neighbours, texts of other fields."""
    raw = random_raw(transforms, shape, random)
    edges = [value for t in transforms for name in ("boundaries", "values") for value in getattr(t, name, ())]
    edges = [edge for edge in edges if isinstance(edge, float)] + [
        t.low - t.shift for t in transforms if hasattr(t, "low")
    ]
    near = np.concatenate([np.nextafter(edges, -np.inf), edges, np.nextafter(edges, np.inf), SPECIAL])
    odd = random.random(raw.numbers.shape) < 0.3
    raw.numbers[odd] = random.choice(near, size=int(odd.sum()))
    odd = random.random(raw.texts.shape) < 0.3
    raw.texts[odd] = np.array(["", "PC", "🎯", "日本", "pc\x00"], dtype=object)[random.integers(0, 5, int(odd.sum()))]
    return raw


def largest_difference(encoder: Encoder, encoding: Encoding, context: Raw, candidates: Raw, ids: np.ndarray) -> float:
    found = encoding.of(context, candidates, ids)
    want = encoder.encode_context(context), encoder.encode_candidates(candidates, ids)
    for one, other in zip(found, want, strict=True):
        assert one.dtype == other.dtype == np.float32 and one.shape == other.shape
    return max(float(np.abs(one - other).max(initial=0.0)) for one, other in zip(found, want, strict=True))


@pytest.fixture(scope="module")
def every() -> tuple[Encoder, Encoding]:
    random = np.random.default_rng(7)
    encoder = Encoder(every_type(random), every_type(random), ("left", "right"))
    return encoder, Encoding(encoder)


def test_numpy_and_graph_agree_on_a_million_rows_of_every_type(every):
    """Contexts and candidates; about a third of the values are none that a fit has seen."""
    encoder, encoding = every
    random = np.random.default_rng(1)
    worst, rows = 0.0, 0
    while rows < 1_000_000:
        context = hard_raw(encoder.context, (CHUNK,), random)
        candidates = hard_raw(encoder.candidate, (CHUNK, 3), random)
        ids = np.array(["left", "right", "up"], dtype=object)[random.integers(0, 3, size=(CHUNK, 3))]
        worst = max(worst, largest_difference(encoder, encoding, context, candidates, ids))
        rows += CHUNK + ids.size
    assert worst <= 1e-5


# ---- encoders of any fields in any order

text = st.text(st.characters(codec="utf-8", exclude_characters=NO_TEXT), max_size=4)
numbers = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, -1.0, 0.1, 1e300, 5e-324]))
ascending = st.lists(numbers.map(lambda x: x + 0.0), unique=True, max_size=40).map(sorted).map(tuple)


@st.composite
def boxcoxes(draw, name):
    seen = np.array(draw(st.lists(st.floats(0.01, 1e3), min_size=2, max_size=9, unique=True)))
    try:
        return boxcox(name, seen, draw(st.sampled_from([0.0, 1e-3, 5.0])), draw(st.just(0.0) | st.floats(-2, 2)))
    except DataError:  # all but equal: such a field is no Box-Cox
        return Continuous(name, 0.0, 1.0)


def transform_of(name: str) -> st.SearchStrategy[Transform]:
    named = st.just(name)
    return st.one_of(
        *(st.builds(kind, named) for kind in (Binary, Probability, Constant)),
        st.builds(Continuous, named, st.floats(-1e9, 1e9), st.floats(1e-6, 1e6)),
        boxcoxes(name),
        st.builds(Quantile, named, ascending.filter(lambda some: len(some) > 1)),
        st.builds(Enumerated, named, ascending),
        st.builds(Category, named, st.sets(text, max_size=4).map(sorted).map(tuple)),
        st.builds(Ids, named, st.integers(1, 70)),
    )


@st.composite
def fields(draw):
    return tuple(draw(transform_of(f"f{i}")) for i in range(draw(st.integers(0, 6))))


@st.composite
def rows_of(draw, transforms):
    """A row as a request brings it: fields may be absent, null, and such as no fit has seen."""
    ids = st.lists(st.one_of(text, st.integers(-(2**53), 2**53), st.sampled_from(["3", 3.0, 3, 2.5])), max_size=5)
    kinds = {
        "number": st.one_of(st.floats(), st.sampled_from(SPECIAL), numbers),
        "text": st.one_of(text, st.sampled_from([v for t in transforms for v in getattr(t, "values", ())] or [""])),
        "list": ids.map(tuple),
    }
    row = {}
    for transform in transforms:
        value = kinds[transform.reads]
        if transform.reads == "text":
            value = value.filter(lambda some: isinstance(some, str))
        row[transform.name] = draw(st.none() | value)
    return {name: value for name, value in row.items() if value is not None or draw(st.booleans())}


@st.composite
def cases(draw):
    actions = tuple(sorted(draw(st.sets(st.sampled_from(["left", "right", "", "日本"]), max_size=3))))
    encoder = Encoder(draw(fields()), draw(fields()), actions)
    n = draw(st.integers(1, 3))
    names = st.lists(st.sampled_from([*actions, "unknown"]), min_size=1, max_size=3, unique=True)
    candidates = [[Candidate(name, draw(rows_of(encoder.candidate))) for name in draw(names)] for _ in range(n)]
    raw, ids = encoder.raw_candidates(candidates, max(map(len, candidates)))
    return encoder, encoder.raw_context([draw(rows_of(encoder.context)) for _ in range(n)]), raw, ids


@given(cases())
@settings(max_examples=40, deadline=None)
def test_numpy_and_graph_agree_on_any_fields_in_any_order(case):
    encoder, *rows = case
    if encoder.candidate_width:
        assert largest_difference(encoder, Encoding(encoder), *rows) <= 1e-5


def test_what_is_no_logarithm_or_power_is_equal_to_the_last_bit(every):
    encoder, encoding = every
    random = np.random.default_rng(2)
    context, candidates = (
        hard_raw(some, shape, random) for some, shape in ((encoder.context, (500,)), (encoder.candidate, (500, 2)))
    )
    ids = np.full((500, 2), "left", dtype=object)
    want = encoder.encode_context(context), encoder.encode_candidates(candidates, ids)
    of_candidates = placed(encoder.candidate, start=len(encoder.actions))
    for found, wanted, some in zip(
        encoding.of(context, candidates, ids), want, (placed(encoder.context), of_candidates), strict=True
    ):
        rounded = [field.at for field in some if isinstance(field.transform, Probability | BoxCox)]
        assert len(rounded) == 4
        np.testing.assert_array_equal(np.delete(found, rounded, axis=-1), np.delete(wanted, rounded, axis=-1))


# ---- the graph


@pytest.mark.parametrize(
    "made",
    [
        Binary,
        Probability,
        lambda name: Continuous(name, 1.0, 2.0),
        lambda name: BoxCox(name, 1.0, 0.5, 0.0, 1.0, 0.1),
        lambda name: BoxCox(name, 1.0, 0.0, 0.0, 1.0, 0.1),
        lambda name: Quantile(name, (0.0, 1.0, float(name[1:]) + 2.0)),
        lambda name: Enumerated(name, (0.0, 1.0)),
        lambda name: Category(name, ("a", name)),
        lambda name: Ids(name, 4),
        Constant,
    ],
)
def test_a_thousand_fields_of_a_type_take_no_more_nodes_than_two(made):
    two, many = (tuple(made(f"f{i:03}") for i in range(count)) for count in (2, 1000))
    random = np.random.default_rng(0)
    rows = random_raw(many, (3,), random), random_raw(two, (3, 2), random), np.full((3, 2), "x", dtype=object)
    encoder = Encoder(many, two)
    encoding = Encoding(encoder)
    assert encoding.nodes == Encoding(Encoder(two, two)).nodes
    assert largest_difference(encoder, encoding, *rows) <= 1e-5


@pytest.mark.parametrize(("opset", "ml"), [(16, 3), (17, 2), (18, 4), (20, 3), (22, 5)])
def test_every_type_runs_in_the_opset_of_the_scorer(every, opset, ml):
    encoder, _ = every
    random = np.random.default_rng(3)
    rows = hard_raw(encoder.context, (50,), random), hard_raw(encoder.candidate, (50, 2), random)
    ids = np.full((50, 2), "right", dtype=object)
    assert largest_difference(encoder, Encoding(encoder, opset, ml), *rows, ids) <= 1e-5


def test_opset_15_has_all_but_lists(every):
    encoder, _ = every
    with pytest.raises(DataError, match="opset 15; with id lists it must be 16"):
        compose(encoder, linear(encoder, opset=15))
    without = Encoder(
        *(tuple(t for t in group if not isinstance(t, Ids)) for group in (encoder.context, encoder.candidate))
    )
    random = np.random.default_rng(4)
    rows = hard_raw(without.context, (50,), random), hard_raw(without.candidate, (50, 2), random)
    assert largest_difference(without, Encoding(without, 15), *rows, np.full((50, 2), "a", dtype=object)) <= 1e-5


@pytest.mark.parametrize(("n", "k"), [(0, 2), (0, 0), (2, 0), (1, 1)])
def test_no_rows_or_no_candidates_give_no_columns(every, n, k):
    encoder, encoding = every
    random = np.random.default_rng(5)
    rows = random_raw(encoder.context, (n,), random), random_raw(encoder.candidate, (n, k), random)
    assert largest_difference(encoder, encoding, *rows, np.full((n, k), "left", dtype=object)) <= 1e-5


def test_lists_are_inputs_of_their_own_and_only_where_there_are_any(every):
    encoder, _ = every
    inputs = {node.name: (node.type, node.shape) for node in open_session(compose(encoder, None)).get_inputs()}
    assert inputs["context_lists"] == ("tensor(int64)", ["N", 2, "L"])
    assert inputs["candidate_lists"] == ("tensor(int64)", ["N", "K", 2, "M"])
    assert len(inputs) == 7
    assert "context_lists" not in Graph(compose(Encoder((Binary("a"),), actions=("x",)), None)).inputs


# ---- a decision is the same alone and among others


@pytest.mark.parametrize("kind", [Probability, BoxCox, Quantile, Ids, Category, Enumerated, Continuous])
def test_a_row_is_encoded_to_the_same_bits_alone_and_among_others(every, kind):
    """A plain Log gives other bits in the last rows of an array: the graph must not use it."""
    encoder = Encoder(
        tuple(t for t in every[0].context if isinstance(t, kind)),
        tuple(t for t in every[0].candidate if isinstance(t, kind)),
        ("left", "right"),
    )
    encoding, random = Encoding(encoder), np.random.default_rng(6)
    context, candidates = (
        random_raw(encoder.context, (2_000,), random),
        random_raw(encoder.candidate, (2_000, 3), random),
    )
    ids = np.full((2_000, 3), "left", dtype=object)
    whole = encoding.all_of(context, candidates, ids)
    assert len(whole) == 2 + {Probability: 2, BoxCox: 4}.get(kind, 0)
    for size in (1, 3, 7, 13):
        for start in range(0, 2_000, size):
            some = slice(start, start + size)
            parts = encoding.all_of(context.take(some), candidates.take(some), ids[some])
            assert [part.tobytes() for part in parts] == [array[some].tobytes() for array in whole]


def test_a_plain_logarithm_would_not_be_the_same_alone_and_among_others():
    """Why the test above is there: if this fails, onnxruntime has changed, and Log may be used."""
    nodes = [helper.make_node("Log", ["x"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["N"]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "log", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    session = open_session(model.SerializeToString())
    x = np.random.default_rng(0).uniform(1e-5, 1e5, size=3_000)
    whole = session.run(None, {"x": x})[0]
    assert any(session.run(None, {"x": x[i : i + 1]})[0][0] != whole[i] for i in range(len(x)))


PROBLEM = Problem(
    name="shop",
    actions=One(),
    reward="clicks",
    wait_s=0.0,
    context={"age": "number", "device": "text", "seen": "list", "spent": "number"},
    candidate={"ctr": "number", "tags": "list"},
)
SHOP = Encoder(
    context=(
        Quantile("age", (18.0, 30.0, 45.0, 90.0)),
        Category("device", ("pc", "phone")),
        Ids("seen", 16),
        boxcox("spent", np.array([0.0, 1.0, 5.0, 20.0, 300.0]), 0.5, 0.0),
    ),
    candidate=(Probability("ctr"), Ids("tags", 8)),
)


def test_requests_with_lists_are_decided_and_replayed_bit_for_bit():
    graph = Graph(compose(SHOP, linear(SHOP)))
    assert graph.rowwise
    assert decide.same_alone(SHOP, (), graph.scores)
    version = Version(
        name="shop",
        number=1,
        digest="0" * 64,
        graph="model.onnx",
        encoder=SHOP,
        explorer=Softmax(1.0, 0.1),
        seed="0" * 32,
        parents=Parents("", "", ""),
        made_at=0,
    )
    read = asking.reader(PROBLEM)
    bodies = [
        b'{"unit": "u", "context": {"age": 33.5, "device": "tv", "seen": ["a", 3, "3", 2.5], "spent": -7},'
        b' "candidates": [{"id": "p", "features": {"ctr": 0.02, "tags": []}}, {"id": "q"}]}',
        b'{"unit": "u", "context": {"seen": null}, "candidates": [{"id": "p", "features": {"tags": ["x", "y", "z"]}}]}',
        b'{"unit": "u", "context": {"seen": [], "spent": 12}, "candidates": [{"id": "p"}, {"id": "q"}, {"id": "r"}]}',
    ]
    requests = [read(body, lambda i=i: f"d{i}") for i, body in enumerate(bodies)]
    encoded = decide.encode(SHOP, requests)
    scores = decide.score_rows(graph.scores, encoded, together=True)
    alone = decide.score_rows(graph.scores, encoded, together=False)
    np.testing.assert_array_equal(np.where(encoded.mask, scores, 0), np.where(encoded.mask, alone, 0))
    decided = decide.decide(PROBLEM, version, requests, scores, encoded.mask, now=1)
    for decision in decided:
        assert decide.replay(decision, PROBLEM, version, graph.scores) == (decision.action, decision.propensity)
