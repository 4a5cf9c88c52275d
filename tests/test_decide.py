"""A request becomes a Decision the same way every time, alone or among others; what is wrong with it is named."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from served import LIGHT, LIGHT_ENCODER, SHOP, SHOP_ENCODER, net, version
from steersman.core.decision import Candidate, Decision, One, Problem, Ranked, decoder, uniform_draw
from steersman.core.errors import ConfigError, DataError, Error
from steersman.core.features import Raw
from steersman.core.policy import EpsilonGreedy, Softmax, Uniform, draw
from steersman.models.graph import Graph
from steersman.models.onnx import compose
from steersman.serve.asking import Request, read_outcomes, reader
from steersman.serve.decide import decide, encode, replay, same_alone, score_rows

read_shop = reader(SHOP)
read_light = reader(LIGHT)
OPEN = Problem(name="open", actions=One(), reward="clicks", wait_s=0.0)


def new_id() -> str:
    return "new"


def good(**changes: object) -> bytes:
    body = {"unit": "u", "context": {"age": 30}, "candidates": [{"id": "a", "features": {"price": 1}}, {"id": "b"}]}
    return json.dumps({**body, **changes}).encode()


def offer(*ids: str, **features: object) -> list[dict]:
    return [{"id": id, "features": features} for id in ids]


BAD = {
    "empty": (b"", ""),
    "not json": (b"{unit", ""),
    "nan": (b'{"unit": "u", "context": {"age": NaN}}', ""),
    "two values": (good() + b" 1", ""),
    "an array": (b"[]", ""),
    "utf-16": ('{"unit": "u"}'.encode("utf-16"), ""),
    "not utf-8": (b'{"unit": "\xff"}', ""),
    "a lone surrogate": (b'{"unit": "\\ud800"}', ""),
    "deep": (b'{"unit": "u", "context": {"age": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}", "context"),
    "no unit": (b'{"candidates": [{"id": "a"}]}', "unit"),
    "unit a number": (good(unit=1), "unit"),
    "unit null": (good(unit=None), "unit"),
    "unit empty": (good(unit=""), "unit"),
    "unit too long": (good(unit="u" * 201), "unit"),
    "unit with a newline": (good(unit="u\nv"), "unit"),
    "id empty": (good(id=""), "id"),
    "id too long": (good(id="i" * 201), "id"),
    "step negative": (good(step=-1), "step"),
    "step a fraction": (good(step=1.5), "step"),
    "step over int64": (good(step=2**63), "step"),
    "unknown field": (good(contxt={}), "contxt"),
    "context a list": (good(context=[1]), "context"),
    "context field unknown": (good(context={"agee": 1}), "context.agee"),
    "context field of the wrong type": (good(context={"age": "30"}), "context.age"),
    "context text as a number": (good(context={"country": 1}), "context.country"),
    "context field true": (good(context={"age": True}), "context"),
    "context field an object": (good(context={"age": {"x": 1}}), "context"),
    "context field name endless": (good(context={"x" * 100_000: 1}), "context"),
    "a number over float64": (b'{"unit": "u", "context": {"age": 1e400}}', "context"),
    "no candidates": (good(candidates=[]), "candidates"),
    "candidates absent": (good(candidates=None), "candidates"),
    "too many candidates": (good(candidates=offer(*map(str, range(1001)))), "candidates"),
    "candidates an object": (good(candidates={"a": {}}), "candidates"),
    "candidate a text": (good(candidates=["a"]), "candidates[0]"),
    "candidate without id": (good(candidates=[{"features": {}}]), "candidates[0].id"),
    "candidate id empty": (good(candidates=offer("a", "")), "candidates[1].id"),
    "candidate id a number": (good(candidates=[{"id": 1}]), "candidates[0].id"),
    "candidate twice": (good(candidates=offer("a", "b", "a")), "candidates[2].id"),
    "candidate field misspelt": (good(candidates=[{"id": "a", "feature": {}}]), "candidates[0].feature"),
    "feature unknown": (good(candidates=offer("a", "b", prize=1)), "candidates[0].features.prize"),
    "feature of the wrong type": (good(candidates=offer("a", price="1")), "candidates[0].features.price"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_request_is_refused_by_the_name_of_its_field(case: str) -> None:
    body, field = BAD[case]
    with pytest.raises(DataError) as caught:
        read_shop(body, new_id)
    assert caught.value.http_status == 400
    assert caught.value.message
    assert caught.value.field.split("[...]")[0] == field


def test_a_misspelt_word_is_told_what_it_may_have_been() -> None:
    for body, meant in (
        (good(contxt={}), "context"),
        (good(context={"agee": 1}), "age"),
        (good(candidates=[{"id": "a", "feature": {}}]), "features"),
    ):
        with pytest.raises(DataError) as caught:
            read_shop(body, new_id)
        assert caught.value.hint == f"did you mean {meant}?"
    with pytest.raises(DataError) as caught:
        read_light(b'{"unit": "u", "candidates": [{"id": "on"}, {"id": "offf"}]}', new_id)
    assert (caught.value.field, caught.value.hint) == ("candidates[1].id", "did you mean off?")


def test_a_good_request_is_read_as_it_was_sent() -> None:
    request = read_shop(good(id="mine", step=3, context={"age": None, "country": "de"}), new_id)
    assert request == Request("mine", "u", {"age": None, "country": "de"}, request.candidates, 3, chosen=True)
    assert [(c.id, c.features) for c in request.candidates] == [("a", {"price": 1.0}), ("b", {})]
    assert read_shop(good(), new_id).id == "new"


def test_named_actions_are_all_offered_in_the_order_of_their_ids_unless_the_request_narrows_them() -> None:
    assert [c.id for c in read_light(b'{"unit": "u"}', new_id).candidates] == ["off", "on"]
    assert [c.id for c in read_light(b'{"unit": "u", "candidates": [{"id": "on"}]}', new_id).candidates] == ["on"]
    with pytest.raises(DataError):
        read_light(b'{"unit": "u", "candidates": []}', new_id)


def test_ranked_lists_are_refused_where_they_can_not_be_served() -> None:
    with pytest.raises(ConfigError, match="kind ranked cannot be served"):
        reader(Problem(name="p", actions=Ranked(2), reward="r", wait_s=0.0))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
keys = st.sampled_from(["unit", "context", "candidates", "id", "step", "features", "age", "price", "country"])
rows = st.dictionaries(keys, values, max_size=3)
bodies = st.dictionaries(keys, values | rows | st.lists(rows, max_size=2), max_size=4)


@settings(max_examples=40, deadline=None)
@given(bodies)
def test_whatever_json_comes_it_is_a_request_or_a_data_error(body: dict) -> None:
    for read in (read_shop, read_light, reader(OPEN)):
        try:
            request = read(json.dumps(body).encode(), new_id)
        except DataError:
            continue
        encode(SHOP_ENCODER if read is read_shop else LIGHT_ENCODER, [request])
        assert request.candidates


# -- outcomes -----------------------------------------------------------------------------------------------------

GOOD_OUTCOME = {"decision": "d", "metrics": {"clicks": 1}}
BAD_OUTCOMES = {
    "empty": (b"", ""),
    "no outcome": (b"[]", ""),
    "too many": (json.dumps([GOOD_OUTCOME] * 1001).encode(), ""),
    "a text": (b'"d"', ""),
    "no decision": ({"metrics": {}}, "decision"),
    "decision empty": ({"decision": ""}, "decision"),
    "metric a text": ({"decision": "d", "metrics": {"clicks": "1"}}, "metrics[...]"),
    "metric null": ({"decision": "d", "metrics": {"clicks": None}}, "metrics[...]"),
    "metric endless": (b'{"decision": "d", "metrics": {"clicks": 1e999}}', "metrics[...]"),
    "ends unknown": ({"decision": "d", "ends": "finished"}, "ends"),
    "at negative": ({"decision": "d", "at": -1}, "at"),
    "at over int64": ({"decision": "d", "at": 2**63}, "at"),
    "reward instead of metrics": ({"decision": "d", "reward": 1}, "reward"),
}


@pytest.mark.parametrize("case", BAD_OUTCOMES)
def test_what_is_wrong_with_an_outcome_is_refused_by_the_name_of_its_field(case: str) -> None:
    body, field = BAD_OUTCOMES[case]
    with pytest.raises(DataError) as caught:
        read_outcomes(body if isinstance(body, bytes) else json.dumps(body).encode(), new_id, lambda: 1)
    assert caught.value.field == field


def test_one_bad_outcome_refuses_its_array_and_is_named_by_its_place() -> None:
    for bad in ({"decision": ""}, {"decision": "d", "ends": "x"}, {}):
        body = json.dumps([GOOD_OUTCOME, GOOD_OUTCOME, bad]).encode()
        with pytest.raises(DataError) as caught:
            read_outcomes(body, new_id, lambda: 1)
        assert caught.value.field.startswith("[2]")


def test_an_outcome_is_given_an_id_and_a_time_if_it_has_none() -> None:
    [bare] = read_outcomes(json.dumps(GOOD_OUTCOME).encode(), new_id, lambda: 7)
    assert (bare.id, bare.at, bare.metrics, bare.ends) == ("new", 7, {"clicks": 1.0}, None)
    own = {**GOOD_OUTCOME, "id": "o", "at": 3, "ends": "terminated"}
    [full] = read_outcomes(b"  [" + json.dumps(own).encode() + b"]", new_id, lambda: 7)
    assert (full.id, full.at, full.ends) == ("o", 3, "terminated")


# -- the draw -----------------------------------------------------------------------------------------------------


def requests_for(counts: list[int]) -> list[Request]:
    return [
        Request(f"d{i}", "u", {}, tuple(Candidate(f"c{k}") for k in range(count))) for i, count in enumerate(counts)
    ]


def mask_of(counts: list[int]) -> np.ndarray:
    return np.arange(max(counts)) < np.array(counts)[:, None]


def test_epsilon_greedy_propensities_are_exact_and_ties_are_split_evenly() -> None:
    """eps = 0.2. One best of 4: 0.8 + 0.05; two best of 4: 0.4 + 0.05; all 3 equal: a third."""
    counts = [4, 4, 3, 1]
    scores = np.array([[0, 3, 1, 2], [5, 1, 5, 0], [2, 2, 2, 9], [1, 9, 9, 9]], dtype=np.float32)
    expected = [[0.05, 0.85, 0.05, 0.05], [0.45, 0.05, 0.45, 0.05], [1 / 3] * 3, [1.0]]
    policy = version(SHOP, SHOP_ENCODER, explorer=EpsilonGreedy(0.2))
    seen: list[set[str]] = [set() for _ in counts]
    for trial in range(200):
        requests = [msgspec.structs.replace(r, id=f"{trial}-{r.id}") for r in requests_for(counts)]
        for row, made in enumerate(decide(SHOP, policy, requests, scores, mask_of(counts), 5)):
            place = int(str(made.action)[1:])
            assert made.propensity == pytest.approx(expected[row][place], abs=1e-15)
            seen[row].add(str(made.action))
    assert [len(actions) for actions in seen] == counts


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=12), min_size=1, max_size=12),
    st.sampled_from([Uniform(), EpsilonGreedy(0.0), EpsilonGreedy(0.3), EpsilonGreedy(1.0), Softmax(0.7, 0.1)]),
)
def test_each_row_is_drawn_as_core_draws_it_alone(rows: list[list[int]], explorer) -> None:
    counts = [len(row) for row in rows]
    scores = np.full((len(rows), max(counts)), np.nan, dtype=np.float32)
    for i, row in enumerate(rows):
        scores[i, : len(row)] = row
    policy = version(SHOP, SHOP_ENCODER, explorer=explorer)
    for i, made in enumerate(decide(SHOP, policy, requests_for(counts), scores, mask_of(counts), 5)):
        [alone] = explorer.probabilities(scores[i : i + 1, : counts[i]], np.ones((1, counts[i]), dtype=bool))
        place = draw(alone, uniform_draw(policy.seed, made.id))
        assert (made.action, made.propensity) == (f"c{place}", alone[place])
        assert (made.at, made.version, made.problem) == (5, 1, "shop")


def test_actions_occur_as_often_as_their_propensities_say() -> None:
    """Chi-square over 8,000 ids; 4 degrees of freedom exceed 23.51 once in 10,000 times."""
    n = 8_000
    scores = np.array([[0.1, 0.5, 0.2, 0.5, -1.0]], dtype=np.float32)
    for explorer in (Uniform(), EpsilonGreedy(0.25), Softmax(0.5)):
        [probabilities] = explorer.probabilities(scores, np.ones((1, 5), dtype=bool))
        requests = requests_for([5] * n)
        policy = version(SHOP, SHOP_ENCODER, explorer=explorer)
        made = decide(SHOP, policy, requests, np.repeat(scores, n, axis=0), np.ones((n, 5), dtype=bool), 5)
        counts = np.bincount([int(str(one.action)[1:]) for one in made], minlength=5)
        assert ((counts - n * probabilities) ** 2 / (n * probabilities)).sum() < 23.51
        taken = np.array([one.propensity for one in made])
        assert np.array_equal(np.unique(taken), np.unique(probabilities))


def test_a_score_that_is_not_finite_is_the_fault_of_the_version() -> None:
    scores = np.array([[0.0, np.nan]], dtype=np.float32)
    with pytest.raises(Error, match="shop/1 can not decide") as caught:
        decide(SHOP, version(SHOP, SHOP_ENCODER), requests_for([2]), scores, mask_of([2]), 5)
    assert caught.value.http_status == 500
    with pytest.raises(Error, match="gave scores"):
        decide(SHOP, version(SHOP, SHOP_ENCODER), requests_for([2]), scores[:, :1], mask_of([2]), 5)


# -- alone or among others ----------------------------------------------------------------------------------------


def random_request(random: np.random.Generator, i: int) -> Request:
    context = {"age": float(random.normal(40, 12)), "country": str(random.choice(["de", "fr", "xx"]))}
    if random.random() < 0.2:
        del context["age"]
    candidates = [
        {"id": f"c{k}", "features": {"price": float(random.normal(10, 5)), "stars": float(random.integers(1, 6))}}
        for k in range(random.integers(1, 13))
    ]
    body = {"unit": f"u{i % 7}", "id": f"d{i}", "context": context, "candidates": candidates}
    return read_shop(json.dumps(body).encode(), new_id)


def decided(policy, graph, requests: list[Request], together: bool) -> list[Decision]:
    encoded = encode(policy.encoder, requests)
    return decide(SHOP, policy, requests, score_rows(graph.scores, encoded, together), encoded.mask, 5)


@pytest.mark.parametrize(
    ("activation", "explorer"),
    [("Relu", EpsilonGreedy(0.1)), ("Relu", Softmax(0.3, 0.05)), ("Elu", Softmax(0.3, 0.05))],
    ids=["relu-epsilon", "relu-softmax", "elu-softmax"],
)
def test_2000_requests_in_batches_of_any_size_are_replayed_alone_bit_for_bit(activation: str, explorer) -> None:
    """A relu net decides a batch in one run. An elu over 7 columns does not: its last bits depend on the batch."""
    random = np.random.default_rng(7)
    policy = version(SHOP, SHOP_ENCODER, explorer=explorer)
    graph = Graph(compose(SHOP_ENCODER, net(SHOP_ENCODER, 7, activation)))
    together = activation == "Relu" and same_alone(SHOP_ENCODER, (), graph.scores)
    requests = [random_request(random, i) for i in range(2000)]
    made: list[Decision] = []
    while len(made) < len(requests):
        made += decided(policy, graph, requests[len(made) : len(made) + random.integers(1, 65)], together)
    as_decision = decoder(Decision)
    for one in made:
        line = as_decision(msgspec.json.encode(one))
        assert replay(line, SHOP, policy, graph.scores) == (one.action, one.propensity)


def test_a_graph_whose_rows_feel_their_neighbours_is_found_out() -> None:
    def own(context: Raw, candidates: Raw, ids: np.ndarray) -> np.ndarray:
        return np.nansum(candidates.numbers, axis=2, dtype=np.float32)

    def by_place(context: Raw, candidates: Raw, ids: np.ndarray) -> np.ndarray:
        scores = own(context, candidates, ids)
        last = np.float32(np.inf) if len(scores) > 16 else np.float32(-np.inf)
        scores[-1:] = np.nextafter(scores[-1:], last) if len(scores) % 3 == 0 else scores[-1:]
        return scores

    def by_padding(context: Raw, candidates: Raw, ids: np.ndarray) -> np.ndarray:
        scores = own(context, candidates, ids)
        return scores - scores.mean(axis=1, keepdims=True)

    assert same_alone(SHOP_ENCODER, (), own)
    assert not same_alone(SHOP_ENCODER, (), by_place)
    assert not same_alone(SHOP_ENCODER, (), by_padding)
    assert same_alone(LIGHT_ENCODER, ("off", "on"), by_padding)  # named actions are never padded


def test_a_decision_is_replayed_by_the_version_that_made_it_and_by_no_other() -> None:
    graph = Graph(compose(SHOP_ENCODER, net(SHOP_ENCODER)))
    policy = version(SHOP, SHOP_ENCODER, 1)
    [made] = decided(policy, graph, [random_request(np.random.default_rng(0), 0)], together=True)
    with pytest.raises(DataError, match="made by shop/1, not by shop/2"):
        replay(made, SHOP, version(SHOP, SHOP_ENCODER, 2), graph.scores)
