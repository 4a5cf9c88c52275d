"""The composed graph: the encoder inside it is core.features, the scorer inside it is the scorer."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from steersman.core.batch import Batch
from steersman.core.decision import Candidate
from steersman.core.errors import DataError, ParityError
from steersman.core.features import NO_TEXT, Category, Continuous, Encoder, Raw
from steersman.core.policy import constant_scorer
from steersman.models.graph import CHUNK, Graph, open_session
from steersman.models.onnx import check_parity, compose, encoded_scorer

FLOAT = TensorProto.FLOAT
CARTPOLE = Encoder(context=tuple(Continuous(name, 0.1, 1.3) for name in "abcd"), actions=("left", "right"))


@dataclasses.dataclass(frozen=True)
class Rows:
    context: Raw
    candidates: Raw
    ids: np.ndarray


def rows_of(encoder, contexts, candidates) -> Rows:
    raw, ids = encoder.raw_candidates(candidates, max(map(len, candidates), default=0))
    return Rows(encoder.raw_context(contexts), raw, ids)


def weights(f: int, a: int, seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Of a net with one hidden layer of 8: score = scale * (relu(context @ u + candidates @ v + b) @ w)."""
    rng = np.random.default_rng(seed)
    shapes = {"u": (f, 8), "v": (a, 8), "b": (8,), "w": (8, 1)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {"w": tensors["w"] * np.float32(scale)}


def in_numpy(net, context, candidates) -> np.ndarray:
    net = {name: tensor.astype(np.float64) for name, tensor in net.items()}
    hidden = np.maximum((context @ net["u"])[:, None, :] + candidates @ net["v"] + net["b"], 0)
    return (hidden @ net["w"])[..., 0]


def model(nodes, tensors, f, a, output="scores", **opsets) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("context", FLOAT, ["N", f]),
            helper.make_tensor_value_info("candidates", FLOAT, ["N", "K", a]),
        ],
        [helper.make_tensor_value_info(output, FLOAT, ["N", "K"])],
        [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
    )
    versions = [helper.make_opsetid(name.replace("_", "."), version) for name, version in opsets.items()]
    default = [] if "ai_onnx" in opsets else [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=[*default, *versions], ir_version=10)


def net_model(net, rename=lambda name: name, **opsets) -> onnx.ModelProto:
    """The net of `weights` as ONNX; `rename` names its inner tensors."""
    r = rename
    axes = {"one": np.array([1]), "two": np.array([2])}
    nodes = [
        helper.make_node("MatMul", ["context", r("u")], [r("cu")], name="n0"),
        helper.make_node("Unsqueeze", [r("cu"), r("one")], [r("cx")], name="n1"),
        helper.make_node("MatMul", ["candidates", r("v")], [r("cv")]),
        helper.make_node("Add", [r("cx"), r("cv")], [r("s")]),
        helper.make_node("Add", [r("s"), r("b")], [r("t")]),
        helper.make_node("Relu", [r("t")], [r("h")]),
        helper.make_node("MatMul", [r("h"), r("w")], [r("m")]),
        helper.make_node("Squeeze", [r("m"), r("two")], ["scores"]),
    ]
    tensors = {r(name): tensor for name, tensor in (net | axes).items()}
    return model(nodes, tensors, net["u"].shape[0], net["v"].shape[0], **opsets)


def net_bytes(encoder: Encoder, seed: int = 0, scale: float = 1.0) -> bytes:
    net = weights(encoder.context_width, encoder.candidate_width, seed, scale)
    return net_model(net).SerializeToString()


def encoded_in_graph(data: bytes, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """What passes from encoder to scorer inside a composed graph."""
    composed = onnx.load_model_from_string(data)
    composed.graph.output.extend(composed.graph.value_info)
    session = open_session(composed.SerializeToString())
    feed = {
        "context_numbers": rows.context.numbers,
        "context_texts": rows.context.texts,
        "candidate_numbers": rows.candidates.numbers,
        "candidate_texts": rows.candidates.texts,
        "candidate_ids": rows.ids,
    }
    names = {node.name for node in session.get_inputs()}
    wanted = ["encoded_context", "encoded_candidates"]
    return tuple(session.run(wanted, {name: array for name, array in feed.items() if name in names}))


def batch_of(encoder: Encoder, rows: Rows) -> Batch:
    mask = rows.ids != NO_TEXT
    n = len(mask)
    return Batch(
        encoder=encoder,
        context=encoder.encode_context(rows.context),
        candidates=encoder.encode_candidates(rows.candidates, rows.ids),
        mask=mask,
        action=np.zeros(n, dtype=np.int64),
        propensity=np.ones(n),
        reward=np.zeros(n),
        metrics=np.zeros((n, 0)),
        discount=np.zeros(n),
        next=np.full(n, -1),
        unit=np.arange(n),
    )


def cartpole_rows(n: int, seed: int = 0) -> Rows:
    numbers = np.random.default_rng(seed).normal(size=(n, 4))
    ids = np.array([["left", "right"]] * n, dtype=object).reshape(n, 2)
    return Rows(Raw(numbers, np.empty((n, 0), object)), Raw(np.empty((n, 2, 0)), np.empty((n, 2, 0), object)), ids)


# ---- the encoder inside the graph

text = st.text(st.characters(codec="utf-8", exclude_characters=NO_TEXT), max_size=4)
finite = st.floats(-1e9, 1e9)
number = st.one_of(st.none(), st.floats(), st.sampled_from([math.inf, -math.inf, math.nan, 0.1, 1.7e9 + 1, 1e308]))


@st.composite
def fields(draw, prefix):
    transforms = []
    for i in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            transforms.append(Continuous(f"{prefix}{i}", draw(finite), draw(st.floats(1e-6, 1e6))))
        else:
            transforms.append(Category(f"{prefix}{i}", tuple(sorted(draw(st.sets(text, max_size=4))))))
    return tuple(transforms)


def row_of(draw, transforms):
    known = [value for t in transforms if isinstance(t, Category) for value in t.values]
    texts = st.one_of(st.none(), text, st.sampled_from(["", "é", "日本", "🎯", *known]))
    values = {t.name: draw(number if isinstance(t, Continuous) else texts) for t in transforms}
    return {name: value for name, value in values.items() if value is not None or draw(st.booleans())}


@st.composite
def encoders_with_rows(draw):
    actions = tuple(sorted(draw(st.sets(st.sampled_from(["left", "right", "", "é", "日本", "a b"]), max_size=4))))
    encoder = Encoder(context=draw(fields("c")), candidate=draw(fields("f")), actions=actions)
    n = draw(st.integers(1, 4))
    ids = st.lists(st.sampled_from([*actions, "unknown", "ü"]), min_size=1, max_size=3, unique=True)
    candidates = [[Candidate(name, row_of(draw, encoder.candidate)) for name in draw(ids)] for _ in range(n)]
    return encoder, rows_of(encoder, [row_of(draw, encoder.context) for _ in range(n)], candidates)


@given(encoders_with_rows())
@settings(max_examples=60, deadline=None)
def test_the_encoder_in_the_graph_gives_the_numbers_of_core_features_bit_for_bit(case):
    encoder, rows = case
    context, candidates = encoded_in_graph(compose(encoder, net_bytes(encoder)), rows)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(context, encoder.encode_context(rows.context))
        np.testing.assert_array_equal(candidates, encoder.encode_candidates(rows.candidates, rows.ids))
    assert context.dtype == candidates.dtype == np.float32


def test_the_encoder_in_the_graph_gives_the_numbers_worked_out_by_hand():
    encoder = Encoder(
        context=(Category("device", ("", "phone")), Continuous("speed", 1.0, 2.0)), actions=("left", "right")
    )
    contexts = [{"device": "phone", "speed": 4.0}, {"device": "", "speed": 1e9}, {"device": "tv"}, {}]
    rows = rows_of(encoder, contexts, [[Candidate("right")], [Candidate("left")], [Candidate("up")], [Candidate("")]])
    context, candidates = encoded_in_graph(compose(encoder, net_bytes(encoder)), rows)
    #        device=  device=phone  unseen  missing  speed  speed missing
    hand = [[0, 1, 0, 0, 1.5, 0], [1, 0, 0, 0, 10, 0], [0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 1]]
    assert context.tolist() == hand
    assert candidates[:, 0].tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]


def test_a_timestamp_keeps_its_seconds():
    encoder = Encoder(context=(Continuous("at", 1.7e9, 1.0),), actions=("left", "right"))
    rows = rows_of(encoder, [{"at": 1.7e9 + 3}], [[Candidate("left")]])
    assert encoded_in_graph(compose(encoder, net_bytes(encoder)), rows)[0][0, 0] == 3.0


# ---- the whole graph

ENCODERS = {
    "cartpole": CARTPOLE,
    "nothing at all": Encoder(),
    "actions only": Encoder(actions=("left", "right")),
    "texts only": Encoder(context=(Category("c", ("x",)),), candidate=(Category("f", ("y",)),)),
    "numbers only": Encoder(context=(Continuous("c", 0, 1),), candidate=(Continuous("f", 0, 1),)),
    "candidates only": Encoder(candidate=(Continuous("f", 0, 1), Category("g", ())), actions=("left", "right")),
}
CONTEXTS = [{"c": None}, {}, {}]
CANDIDATES = [[Candidate("left"), Candidate("up", {"f": None})], [Candidate("right")], [Candidate("x")]]


@pytest.mark.parametrize("name", ENCODERS)
def test_the_graph_scores_like_the_net_in_numpy(name):
    encoder = ENCODERS[name]
    net = weights(encoder.context_width, encoder.candidate_width)
    rows = rows_of(encoder, CONTEXTS, CANDIDATES)
    graph = Graph(compose(encoder, net_model(net).SerializeToString()))
    want = in_numpy(net, encoder.encode_context(rows.context), encoder.encode_candidates(rows.candidates, rows.ids))
    np.testing.assert_allclose(graph.scores(rows.context, rows.candidates, rows.ids), want, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_without_a_scorer_every_candidate_scores_zero(name):
    encoder = ENCODERS[name]
    rows = rows_of(encoder, CONTEXTS, CANDIDATES)
    data = compose(encoder, None)
    scores = Graph(data).scores(rows.context, rows.candidates, rows.ids)
    assert scores.dtype == np.float32 and scores.tolist() == [[0, 0], [0, 0], [0, 0]]
    encoded = np.zeros((3, 5, encoder.candidate_width), np.float32)
    assert encoded_scorer(data)(np.zeros((3, encoder.context_width), np.float32), encoded).shape == (3, 5)


@pytest.mark.parametrize("name", ENCODERS)
def test_inputs_are_those_with_columns_and_always_the_ids(name):
    encoder = ENCODERS[name]
    session = open_session(compose(encoder, None))
    have = {node.name: (node.type, node.shape) for node in session.get_inputs()}
    want = {"candidate_ids": ("tensor(string)", ["N", "K"])}
    for group, transforms, rows in (("context", encoder.context, ["N"]), ("candidate", encoder.candidate, ["N", "K"])):
        numbers = [t for t in transforms if isinstance(t, Continuous)]
        if numbers:
            want[f"{group}_numbers"] = ("tensor(double)", [*rows, len(numbers)])
        if len(numbers) < len(transforms):
            want[f"{group}_texts"] = ("tensor(string)", [*rows, len(transforms) - len(numbers)])
    assert have == want
    assert [(node.name, node.type, node.shape) for node in session.get_outputs()] == [
        ("scores", "tensor(float)", ["N", "K"])
    ]


def test_padding_does_not_change_the_scores_beside_it():
    encoder = ENCODERS["candidates only"]
    graph = Graph(compose(encoder, net_bytes(encoder)))
    lone, padded = rows_of(encoder, [{}], CANDIDATES[1:2]), rows_of(encoder, [{}, {}], CANDIDATES[1::-1])
    alone = graph.scores(lone.context, lone.candidates, lone.ids)
    together = graph.scores(padded.context, padded.candidates, padded.ids)
    assert alone[0, 0] == pytest.approx(together[0, 0], abs=1e-6)


def test_no_rows_give_no_scores():
    rows = cartpole_rows(0)
    scores = Graph(compose(CARTPOLE, net_bytes(CARTPOLE))).scores(rows.context, rows.candidates, rows.ids)
    assert scores.shape == (0, 2)


def test_strided_rows_are_read_in_their_own_order():
    rows = cartpole_rows(6)
    graph = Graph(compose(CARTPOLE, net_bytes(CARTPOLE)))
    whole = graph.scores(rows.context, rows.candidates, rows.ids)
    context = Raw(rows.context.numbers[::-2], rows.context.texts[::-2])
    turned = Raw(rows.candidates.numbers[::-2], rows.candidates.texts[::-2])
    np.testing.assert_array_equal(graph.scores(context, turned, rows.ids[::-2, ::-1]), whole[::-2, ::-1])
    columns = Raw(np.asfortranarray(rows.context.numbers), rows.context.texts)
    shared = np.broadcast_to(rows.ids[:1], rows.ids.shape)
    np.testing.assert_array_equal(graph.scores(columns, rows.candidates, shared), whole)


def test_the_same_arguments_give_the_same_bytes_in_another_process():
    here = compose(CARTPOLE, None)
    code = (
        "import sys; from steersman.core.features import Continuous, Encoder;"
        "from steersman.models.onnx import compose;"
        "e = Encoder(tuple(Continuous(n, 0.1, 1.3) for n in 'abcd'), (), ('left', 'right'));"
        "sys.stdout.buffer.write(compose(e, None))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment).stdout
    assert here == there
    assert compose(CARTPOLE, net_bytes(CARTPOLE)) == compose(CARTPOLE, net_bytes(CARTPOLE))


@pytest.mark.parametrize("prefix", ["encoder/", "encoded_", "candidate_", "scorer/", "candidate_ids", "encoder/0_"])
def test_names_inside_the_scorer_never_clash(prefix):
    net = weights(8, 2)
    taken = {"u": "encoded_context", "v": "encoded_candidates", "cu": "candidate_ids", "cx": "context_numbers"}

    def rename(name):
        return taken.get(name, prefix + name)

    rows = cartpole_rows(5)
    plain, clashing = (
        Graph(compose(CARTPOLE, m.SerializeToString())) for m in (net_model(net), net_model(net, rename))
    )
    np.testing.assert_array_equal(
        plain.scores(rows.context, rows.candidates, rows.ids), clashing.scores(rows.context, rows.candidates, rows.ids)
    )


def test_a_scorer_with_graphs_inside_its_nodes_is_renamed_all_through():
    """If: then candidates @ v + b, else their negative; both read tensors of the graph around them."""
    net = {"v": np.array([[1.0], [2.0]], np.float32), "b": np.array([0.5], np.float32)}
    branches = {}
    for name, last in (("then_branch", "Identity"), ("else_branch", "Neg")):
        nodes = [
            helper.make_node("MatMul", ["candidates", "v"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["p"]),
            helper.make_node("Squeeze", ["p", "axis"], ["q"]),
            helper.make_node(last, ["q"], ["out_" + name]),
        ]
        axis = [numpy_helper.from_array(np.array([2]), "axis")]
        output = helper.make_tensor_value_info("out_" + name, FLOAT, None)
        branches[name] = helper.make_graph(nodes, name, [], [output], axis)
    nodes = [
        helper.make_node("ReduceMax", ["context"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "b0"], ["positive"]),
        helper.make_node("If", ["positive"], ["scores"], **branches),
    ]
    data = model(nodes, net | {"b0": np.array(0.0, np.float32)}, 8, 2).SerializeToString()
    composed = compose(CARTPOLE, data)
    rows = cartpole_rows(1)
    high, low = (Raw(np.full((1, 4), value), rows.context.texts) for value in (1.0, -1.0))
    assert Graph(composed).scores(high, rows.candidates, rows.ids).tolist() == [[1.5, 2.5]]
    assert Graph(composed).scores(low, rows.candidates, rows.ids).tolist() == [[-1.5, -2.5]]
    candidates = np.eye(2, dtype=np.float32)[None]
    assert encoded_scorer(composed)(np.full((1, 8), -1, np.float32), candidates).tolist() == [[-1.5, -2.5]]


@pytest.mark.parametrize("opset", [15, 17, 18, 20, 22])
@pytest.mark.parametrize("ml", [0, 3, 5])
def test_the_graph_has_the_opsets_of_its_scorer(opset, ml):
    opsets = {"ai_onnx": opset} | ({"ai_onnx_ml": ml} if ml else {})
    net = weights(8, 2)
    scorer = net_model(net, **opsets)
    composed = compose(CARTPOLE, scorer.SerializeToString())
    versions = {entry.domain: entry.version for entry in onnx.load_model_from_string(composed).opset_import}
    assert versions["ai.onnx"] == opset and versions["ai.onnx.ml"] == (ml or 3)
    rows = cartpole_rows(3)
    want = in_numpy(net, CARTPOLE.encode_context(rows.context), CARTPOLE.encode_candidates(rows.candidates, rows.ids))
    np.testing.assert_allclose(Graph(composed).scores(rows.context, rows.candidates, rows.ids), want, atol=1e-5)


def test_what_an_exporter_notes_about_its_machine_stays_out_of_the_graph():
    scorer = net_model(weights(8, 2))
    for node in scorer.graph.node:
        node.doc_string = "/home/somebody/train.py"
        node.metadata_props.add(key="stack_trace", value="/home/somebody/train.py, line 3")
    assert b"somebody" not in compose(CARTPOLE, scorer.SerializeToString())


# ---- what is refused


def changed(change) -> bytes:
    scorer = net_model(weights(8, 2))
    change(scorer)
    return scorer.SerializeToString()


def external(scorer):
    scorer.graph.initializer[0].data_location = TensorProto.EXTERNAL
    scorer.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


REFUSED = {
    "not an ONNX model": b"no model",
    "opset 14": changed(lambda m: setattr(m.opset_import[0], "version", 14)),
    "outside of its file": changed(external),
    "no input": changed(lambda m: m.graph.ClearField("input")),
    "has the input 'state'": changed(lambda m: setattr(m.graph.input[0], "name", "state")),
    "must be TensorProto.FLOAT": changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 11)),
    "has 2 outputs": changed(lambda m: m.graph.output.extend([*m.graph.output])),
    r"context is TensorProto.FLOAT\[-1, 7\], must be TensorProto.FLOAT\[-1, 8\]": net_model(
        weights(7, 2)
    ).SerializeToString(),
    r"candidates is TensorProto.FLOAT\[-1, -1, 3\]": net_model(weights(8, 3)).SerializeToString(),
    "not make a valid graph": changed(lambda m: setattr(m.graph.node[0], "op_type", "NoSuchOperator")),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_scorer_that_does_not_fit_is_refused(message):
    with pytest.raises(DataError, match=message):
        compose(CARTPOLE, REFUSED[message])


def test_a_text_that_is_not_unicode_is_refused_by_name():
    with pytest.raises(DataError, match="UTF-8"):
        compose(Encoder(actions=("left", "\ud800")), None)
    encoder = ENCODERS["texts only"]
    rows = rows_of(encoder, [{"c": "\ud800"}], [[Candidate("a")]])
    with pytest.raises(DataError, match="UTF-8"):
        Graph(compose(encoder, None)).scores(rows.context, rows.candidates, rows.ids)


def test_rows_of_another_encoder_are_refused_with_their_shapes():
    graph, rows = Graph(compose(CARTPOLE, net_bytes(CARTPOLE))), cartpole_rows(2)
    with pytest.raises(DataError, match=r"context_numbers float64\[2, 3\]"):
        graph.scores(Raw(rows.context.numbers[:, :3], rows.context.texts), rows.candidates, rows.ids)


def test_texts_as_numpy_strings_are_refused_because_they_lose_what_a_text_ends_with():
    encoder = ENCODERS["texts only"]
    rows = rows_of(encoder, [{}], [[Candidate("a")]])
    stripped = Raw(rows.context.numbers, rows.context.texts.astype("U"))
    with pytest.raises(DataError, match="must be object"):
        Graph(compose(encoder, None)).scores(stripped, rows.candidates, rows.ids)


@pytest.mark.parametrize("data", [b"", b"no model", net_bytes(CARTPOLE), compose(CARTPOLE, None)[:-9]])
def test_only_a_composed_graph_can_be_served(data):
    with pytest.raises(DataError):
        Graph(data)


def test_only_a_composed_graph_has_a_scorer_to_take_out():
    with pytest.raises(DataError, match="encoded_context"):
        encoded_scorer(net_bytes(CARTPOLE))


def test_serving_does_not_load_what_builds_graphs():
    code = "import steersman.models.graph, sys; print({'onnx', 'torch', 'google.protobuf'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "set()\n"


# ---- the scorer taken out, and parity


def test_the_scorer_taken_out_of_a_graph_is_the_scorer_that_went_in():
    net = weights(8, 2)
    n = CHUNK + 3
    context = np.random.default_rng(1).normal(size=(n, 8)).astype(np.float32)
    shared = np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2))
    scorer = encoded_scorer(compose(CARTPOLE, net_model(net).SerializeToString()))
    np.testing.assert_allclose(scorer(context, shared), in_numpy(net, context, shared), atol=1e-5)
    with pytest.raises(DataError, match="float64"):
        scorer(context.astype(np.float64), shared)


def test_parity_of_a_graph_with_its_own_scorer_holds():
    rows = cartpole_rows(CHUNK + 10)
    data = compose(CARTPOLE, net_bytes(CARTPOLE))
    assert check_parity(Graph(data), encoded_scorer(data), rows, batch_of(CARTPOLE, rows)) <= 1e-6


@pytest.mark.parametrize("row", [0, CHUNK + 3])
def test_parity_names_the_row_and_both_numbers_of_the_worst_score(row):
    rows = cartpole_rows(CHUNK + 10)
    graph = Graph(compose(CARTPOLE, None))

    def scorer(context, candidates):
        scores = constant_scorer(context, candidates)
        return np.where((context == batch.context[row]).all(axis=1, keepdims=True), np.float32([[0, 0.25]]), scores)

    batch = batch_of(CARTPOLE, rows)
    with pytest.raises(ParityError, match=rf"row {row}, candidate 1: the graph scores 0, the policy 0.25; .* 0.25"):
        check_parity(graph, scorer, rows, batch)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 2e-5])
def test_parity_refuses_what_is_not_finite_and_what_is_just_over_the_limit(wrong):
    rows = cartpole_rows(4)
    batch, graph = batch_of(CARTPOLE, rows), Graph(compose(CARTPOLE, None))
    with pytest.raises(ParityError):
        check_parity(graph, lambda c, a: constant_scorer(c, a) + np.float32(wrong), rows, batch)
    assert check_parity(graph, lambda c, a: constant_scorer(c, a) + np.float32(9e-6), rows, batch) < 1e-5


def test_the_limit_does_not_grow_with_the_scores_and_the_hint_tells_rounding_from_a_wrong_export():
    rows = cartpole_rows(4)
    batch = batch_of(CARTPOLE, rows)
    data = compose(CARTPOLE, net_bytes(CARTPOLE, scale=1000.0))
    scores = encoded_scorer(data)(batch.context, batch.candidates)
    neighbour = np.nextafter(scores, np.float32(np.inf))
    assert np.abs(scores).max() > 100
    with pytest.raises(ParityError) as rounding:
        check_parity(Graph(data), lambda c, a: neighbour, rows, batch)
    assert "larger units" in rounding.value.hint
    with pytest.raises(ParityError) as wrong:
        check_parity(Graph(data), lambda c, a: scores * np.float32(1.0001), rows, batch)
    assert "do not serve" in wrong.value.hint


def test_parity_does_not_read_padding():
    encoder = Encoder(actions=("left", "right"))
    rows = rows_of(encoder, [{}, {}], [[Candidate("left"), Candidate("right")], [Candidate("left")]])
    batch = batch_of(encoder, rows)

    def scorer(context, candidates):
        return np.array([[0, 0], [0, np.nan]], dtype=np.float32)

    assert check_parity(Graph(compose(encoder, None)), scorer, rows, batch) == 0.0


def test_parity_needs_as_many_raw_rows_as_the_batch_has():
    batch, rows = batch_of(CARTPOLE, cartpole_rows(3)), cartpole_rows(2)
    with pytest.raises(DataError, match="for a batch of 3"):
        check_parity(Graph(compose(CARTPOLE, None)), constant_scorer, rows, batch)
