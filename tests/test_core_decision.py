"""Problem, Candidate, Decision, Outcome: what is refused and why, the wire, the schemas, the draw."""

import hashlib
import json
import math
import statistics
import time
from typing import get_args

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.decision import (
    END_OF_TIME,
    Candidate,
    Decision,
    Numbers,
    One,
    Outcome,
    Problem,
    Ranked,
    Rule,
    candidate_ids,
    check_fields,
    check_id,
    decoder,
    json_schemas,
    uniform_draw,
)
from steersman.core.errors import DataError

DECISION = {
    "id": "d1",
    "problem": "shop",
    "unit": "u1",
    "at": 1_700_000_000_000_000,
    "context": {"hour": 13.5, "device": "phone", "tags": ["a", 2]},
    "candidates": [{"id": "now", "features": {"price": 2.5}}, {"id": "later"}],
    "action": "now",
    "propensity": 0.25,
    "version": 3,
    "step": 0,
}
OUTCOME = {"id": "o1", "decision": "d1", "at": 5, "metrics": {"clicks": 1}, "ends": "terminated"}
PROBLEM = {
    "name": "shop",
    "actions": {"kind": "one", "names": ["now", "later"]},
    "reward": "clicks - 0.1 * complaints",
    "wait_s": 600,
}

decode_decision = decoder(Decision)
decode_outcome = decoder(Outcome)
decode_problem = decoder(Problem)


def body(noun: dict, **changed: object) -> bytes:
    return json.dumps({**noun, **changed}).encode()


def refusal(decode, text: bytes) -> DataError:
    with pytest.raises(DataError) as refused:
        decode(text)
    return refused.value


ids = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "), min_size=1, max_size=200
).filter(str.isprintable)
fields = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\- ]{0,20}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0"), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | finite | texts | st.lists(finite | texts, max_size=4).map(tuple)
rows = st.dictionaries(fields, values, max_size=4)
instants = st.integers(0, END_OF_TIME - 1)
counts = st.integers(0, 2**63 - 1)


@st.composite
def decisions(draw):
    candidates = draw(
        st.lists(st.builds(Candidate, id=ids, features=rows), min_size=1, max_size=4, unique_by=lambda c: c.id)
    )
    names = [candidate.id for candidate in candidates]
    numbers = st.lists(finite, min_size=1, max_size=3).map(tuple)
    ranked = st.permutations(names).map(tuple)
    action = draw(st.sampled_from(names) | ranked | numbers)
    return Decision(
        id=draw(ids),
        problem="shop",
        unit=draw(ids),
        at=draw(instants),
        context=draw(rows),
        candidates=tuple(candidates),
        action=action,
        propensity=draw(st.floats(0, 1, exclude_min=True)),
        version=draw(counts),
        step=draw(st.none() | counts),
        noise=draw(st.none() | st.integers(0, 2**64 - 1)),
    )


outcomes = st.builds(
    Outcome,
    id=ids,
    decision=ids,
    at=instants,
    metrics=st.dictionaries(fields, finite, max_size=4),
    ends=st.sampled_from([None, "terminated", "truncated"]),
)
bounds = st.lists(st.tuples(st.floats(-1e6, 0), st.floats(1, 1e6)), min_size=1, max_size=3)
actions = (
    st.lists(ids, min_size=2, max_size=4, unique=True).map(lambda names: One(tuple(names)))
    | st.just(One())
    | st.integers(1, 5).map(Ranked)
    | bounds.map(lambda pairs: Numbers(*zip(*pairs, strict=True)))
)
field_types = st.lists(fields, max_size=3, unique_by=str.casefold).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(["auto", "number", "text", "list"]) for name in names})
)
problems = st.builds(
    Problem,
    name=st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,63}", fullmatch=True),
    actions=actions,
    reward=st.sampled_from(["clicks", "a - 0.1 * b"]),
    wait_s=st.floats(0, 1e9),
    context=field_types,
    candidate=field_types.filter(lambda declared: "id" not in map(str.casefold, declared)),
    discount=st.floats(0, 1, exclude_min=True),
    discount_unit_s=st.none() | st.floats(1e-3, 1e9),
    horizon=st.none() | st.integers(1, 10**9),
    default_outcome=st.dictionaries(st.sampled_from(["clicks", "a"]), finite),
    combine=st.dictionaries(st.sampled_from(["clicks", "a"]), st.sampled_from(get_args(Rule))),
)


@settings(max_examples=150, deadline=None)
@given(noun=decisions() | outcomes | problems)
def test_what_is_written_is_what_is_read(noun):
    assert decoder(type(noun))(msgspec.json.encode(noun)) == noun


@settings(max_examples=100, deadline=None)
@given(noun=decisions() | outcomes | problems)
def test_the_schema_holds_for_what_is_written(noun):
    schema = json_schemas()[type(noun).__name__]
    jsonschema.Draft202012Validator(schema).validate(json.loads(msgspec.json.encode(noun)))


def test_the_schemas_are_schemas_with_a_name_for_every_wire_noun():
    schemas = json_schemas()
    assert set(schemas) == {"Problem", "Decision", "Outcome"}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("Decision", {**DECISION, "propensity": "high"}),
        ("Decision", {key: value for key, value in DECISION.items() if key != "propensity"}),
        ("Decision", {**DECISION, "context": {"hour": {"nested": 1}}}),
        ("Outcome", {**OUTCOME, "ends": "stopped"}),
        ("Outcome", {**OUTCOME, "metrics": {"clicks": "one"}}),
        ("Problem", {**PROBLEM, "dicount": 1}),
        ("Problem", {**PROBLEM, "actions": {"kind": "two"}}),
        ("Problem", {**PROBLEM, "combine": {"clicks": "maximum"}}),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(name, noun):
    assert not jsonschema.Draft202012Validator(json_schemas()[name]).is_valid(noun)
    reader = {"Decision": decode_decision, "Outcome": decode_outcome, "Problem": decode_problem}[name]
    refusal(reader, json.dumps(noun).encode())


def test_readers_of_the_log_tolerate_unknown_fields():
    assert decode_decision(body(DECISION, later="x")) == decode_decision(body(DECISION))
    assert decode_outcome(body(OUTCOME, later={"a": [1]})) == decode_outcome(body(OUTCOME))
    more = [{"id": "now", "colour": "red"}, {"id": "later"}]
    assert decode_decision(body(DECISION, candidates=more)).candidates == (Candidate("now"), Candidate("later"))


@pytest.mark.parametrize("kind", ["one", "ranked", "numbers"])
def test_a_problem_refuses_unknown_fields(kind):
    assert "dicount" in refusal(decode_problem, body(PROBLEM, dicount=0.9)).message
    table = {"one": {}, "ranked": {"slots": 2}, "numbers": {"low": [0], "high": [1]}}[kind]
    assert "nmaes" in refusal(decode_problem, body(PROBLEM, actions={"kind": kind, **table, "nmaes": []})).message


def test_defaults_are_not_written():
    written = json.loads(msgspec.json.encode(decode_outcome(body(OUTCOME, ends=None, metrics={}))))
    assert written == {"id": "o1", "decision": "d1", "at": 5}


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"id": ""}, "id"),
        ({"id": "x" * 201}, "id"),
        ({"id": "a\nb"}, "id"),
        ({"id": 1}, "id"),
        ({"unit": ""}, "unit"),
        ({"unit": "\x00"}, "unit"),
        ({"problem": ""}, "problem"),
        ({"problem": "../../etc"}, "problem"),
        ({"problem": "a/b"}, "problem"),
        ({"at": -1}, "at"),
        ({"at": END_OF_TIME}, "at"),
        ({"at": 1.5}, "at"),
        ({"at": "now"}, "at"),
        ({"propensity": 0}, "propensity"),
        ({"propensity": -0.1}, "propensity"),
        ({"propensity": 1.0000001}, "propensity"),
        ({"propensity": 2}, "propensity"),
        ({"propensity": None}, "propensity"),
        ({"propensity": True}, "propensity"),
        ({"step": -1}, "step"),
        ({"step": 2**63}, "step"),
        ({"version": -1}, "version"),
        ({"version": 2**63}, "version"),
        ({"noise": -1}, "noise"),
        ({"noise": 2**64}, "noise"),
        ({"action": "never"}, "action"),
        ({"action": ""}, "action"),
        ({"action": []}, "action"),
        ({"action": ["now", "never"]}, "action"),
        ({"action": ["now", "now"]}, "action"),
        ({"action": ["now", 1.5]}, "action"),
        ({"action": 3}, "action"),
        ({"candidates": []}, "action"),
        ({"candidates": [{"id": "now"}, {"id": "now"}]}, "candidates[1].id"),
        ({"candidates": [{"id": "now"}, {"id": ""}]}, "candidates[1].id"),
        ({"candidates": [{"id": "now"}, {"id": "a\tb"}]}, "candidates[1].id"),
        ({"candidates": [{"id": "now"}, {}]}, "candidates[1].id"),
        ({"candidates": "now"}, "candidates"),
        ({"context": {"hour": True}}, "context[...]"),
        ({"context": {"hour": {"a": 1}}}, "context[...]"),
        ({"context": {"hour": [None]}}, "context[...][0]"),
        ({"context": {"device": "a\ufdd0b"}}, "context.device"),
        ({"context": {"tags": ["a\ufdd0"]}}, "context.tags"),
        ({"context": []}, "context"),
        ({"candidates": [{"id": "now", "features": {"name": "\ufdd0"}}]}, "candidates[0].features.name"),
    ],
)
def test_a_decision_that_breaks_a_law_is_refused_with_its_field(changed, field):
    assert refusal(decode_decision, body(DECISION, **changed)).field == field


@pytest.mark.parametrize("field", ["id", "problem", "unit", "at", "action", "propensity"])
def test_a_decision_without_a_field_it_needs_is_refused_with_that_field(field):
    noun = {key: value for key, value in DECISION.items() if key != field}
    refused = refusal(decode_decision, json.dumps(noun).encode())
    assert field in refused.message
    assert refused.field == field


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["context", "list", "features"])
def test_a_number_that_json_can_not_hold_is_refused_not_changed(broken, where):
    context = {"context": {"hour": broken}, "list": {"hour": (1.0, broken)}, "features": {}}[where]
    features = {"price": broken} if where == "features" else {}
    with pytest.raises(DataError, match=r"nan|inf") as refused:
        Decision(id="1", problem="p", unit="u", at=0, context=context, candidates=(Candidate("a", features),),
                 action="a", propensity=1.0)  # fmt: skip
    assert refused.value.field == ("candidates[0].features.price" if where == "features" else "context.hour")


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_number_taken_that_is_not_finite_is_refused(broken):
    with pytest.raises(DataError) as refused:
        Decision(id="1", problem="p", unit="u", at=0, action=(0.5, broken), propensity=1.0)
    assert refused.value.field == "action"


def test_a_refusal_of_a_decision_names_the_decision():
    assert "decision d1" in refusal(decode_decision, body(DECISION, propensity=0)).message
    assert "decision d1" in refusal(decode_decision, body(DECISION, action="never")).message


def test_a_density_may_be_above_1_and_needs_no_candidates():
    found = decode_decision(body(DECISION, action=[0.5, 2], candidates=[], propensity=7.5))
    assert found.action == (0.5, 2.0)
    refusal(decode_decision, body(DECISION, action=["now", "later"], propensity=7.5))


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"id": ""}, "id"),
        ({"decision": "x" * 201}, "decision"),
        ({"at": -1}, "at"),
        ({"at": END_OF_TIME}, "at"),
        ({"metrics": {"clicks": None}}, "metrics[...]"),
        ({"metrics": {"clicks": True}}, "metrics[...]"),
        ({"metrics": {"": 1}}, "metrics."),
        ({"metrics": {"a\nb": 1}}, "metrics.a\nb"),
        ({"metrics": {"x" * 129: 1}}, f"metrics.{'x' * 129}"),
        ({"ends": "stopped"}, "ends"),
        ({"ends": "stopped - at noon"}, "ends"),
    ],
)
def test_an_outcome_that_breaks_a_law_is_refused_with_its_field(changed, field):
    assert refusal(decode_outcome, body(OUTCOME, **changed)).field == field


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_refused(broken):
    with pytest.raises(DataError) as refused:
        Outcome(id="o", decision="d", at=0, metrics={"clicks": broken})
    assert refused.value.field == "metrics.clicks"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "1st"}, "name"),
        ({"name": "shop\n"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"reward": ""}, "reward"),
        ({"reward": "1"}, "reward"),
        ({"reward": "clicks."}, "reward"),
        ({"wait_s": -1}, "wait_s"),
        ({"discount": 0}, "discount"),
        ({"discount": 1.01}, "discount"),
        ({"discount_unit_s": 0}, "discount_unit_s"),
        ({"horizon": 0}, "horizon"),
        ({"horizon": 1.5}, "horizon"),
        ({"combine": {"9": "max"}}, "combine.9"),
        ({"context": {"a\nb": "number"}}, "context.a\nb"),
        ({"context": {"a": "numbr"}}, "context[...]"),
        ({"candidate": {"": "text"}}, "candidate."),
        ({"context": {"age": "number", "Age": "number"}}, "context.Age"),
        ({"candidate": {"ID": "text"}}, "candidate"),
        ({"actions": {"kind": "one", "names": ["a", "a"]}}, "actions.names"),
        ({"actions": {"kind": "one", "names": ["a"]}}, "actions.names"),
        ({"actions": {"kind": "one", "names": ["a", ""]}}, "actions.names[1]"),
        ({"actions": {"kind": "one", "names": ["a", "b\n"]}}, "actions.names[1]"),
        ({"actions": {"kind": "ranked", "slots": 0}}, "actions.slots"),
        ({"actions": {"kind": "ranked", "slots": 3, "names": ["a", "b"]}}, "actions.slots"),
        ({"actions": {"kind": "ranked", "slots": 1, "names": ["a", "a"]}}, "actions.names"),
        ({"actions": {"kind": "numbers", "low": [], "high": []}}, "actions"),
        ({"actions": {"kind": "numbers", "low": [0, 1], "high": [1]}}, "actions"),
        ({"actions": {"kind": "numbers", "low": [0, 1], "high": [1, 1]}}, "actions.low[1]"),
        ({"actions": {"kind": "two"}}, "actions.kind"),
        ({"actions": {}}, "actions.kind"),
    ],
)
def test_a_problem_that_breaks_a_law_is_refused_with_its_field(changed, field):
    assert refusal(decode_problem, body(PROBLEM, **changed)).field == field


@pytest.mark.parametrize("field", ["name", "actions", "reward", "wait_s"])
def test_a_problem_has_no_default_for_what_only_the_product_knows(field):
    noun = {key: value for key, value in PROBLEM.items() if key != field}
    assert refusal(decode_problem, json.dumps(noun).encode()).field == field


def test_the_metrics_of_a_problem_are_those_of_its_reward():
    assert decode_problem(body(PROBLEM)).metrics == ("clicks", "complaints")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        body(DECISION) + b"x",
        b"\xff\xfe",
        b'{"id": "\xff"}',
        b'{"id": NaN}',
        b'{"id": "\\ud800"}',
        b'{"a":' * 100_000,
        "{}".encode("utf-16"),
    ],
)
def test_what_is_not_json_is_a_data_error(text):
    assert "JSON" in refusal(decode_decision, text).message


@pytest.mark.parametrize("text", [b"[]", b"1", b'"x"', b"null"])
def test_json_that_is_no_object_is_a_data_error(text):
    assert "object" in refusal(decode_decision, text).message


def test_a_number_too_large_for_float64_is_refused():
    text = body(DECISION).replace(b"0.25", b"1e999")
    assert refusal(decode_decision, text).field == "propensity"


@given(text=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_make_a_reader_fail_in_another_way(text):
    for decode in (decode_decision, decode_outcome, decode_problem):
        refusal(decode, text)


def test_a_row_must_fit_the_declared_fields():
    declared = {"hour": "number", "device": "text", "tags": "list", "any": "auto"}
    check_fields({"hour": 1.0, "device": "x", "tags": ("a",), "any": "y"}, declared, "context")
    check_fields({"hour": None}, declared, "context")
    check_fields({"whatever": 1.0}, {}, "context")
    for row, field in (({"hour": "1"}, "hour"), ({"device": 1.0}, "device"), ({"tags": "a"}, "tags")):
        with pytest.raises(DataError) as refused:
            check_fields(row, declared, "context")
        assert refused.value.field == f"context.{field}"
    with pytest.raises(DataError) as refused:
        check_fields({"huor": 1.0}, declared, "context")
    assert refused.value.hint == "did you mean hour?"


def test_candidate_ids_are_a_set():
    assert candidate_ids((Candidate("a"), Candidate("b"))) == {"a", "b"}


@pytest.mark.parametrize("good", ["a", "x" * 200, "ünïcode", "日本", "a b", "../..", "👍"])
def test_an_id_is_any_printable_text(good):
    check_id("id", good)


@pytest.mark.parametrize(
    ("bad", "reason"), [("", "0 characters"), ("x" * 201, "201 characters"), ("a\nb", "not printable"), ("\x7f", "not")]
)
def test_an_id_is_refused_with_the_reason(bad, reason):
    with pytest.raises(DataError, match=reason):
        check_id("id", bad)


def test_decoding_and_checking_one_decision_takes_microseconds():
    text = json.dumps(
        {**DECISION, "context": {"a": 1.5, "b": 2, "c": -3.25, "d": 4}, "candidates": [{"id": "now"}, {"id": "later"}]}
    ).encode()
    took = []
    for _ in range(50):
        begun = time.perf_counter()
        for _ in range(100):
            decode_decision(text)
        took.append((time.perf_counter() - begun) / 100)
    assert statistics.median(took) < 50e-6


@pytest.mark.parametrize(
    ("seed", "decision", "golden"),
    [
        ("", "", 0.7058483037031942),
        ("s", "d1", 0.8426639790656616),
        ("0123456789abcdef", "8f14e45f", 0.06746659069043681),
        ("ß", "日本", 0.6975580700097158),
    ],
)
def test_the_draw_of_a_decision_is_fixed_for_ever(seed, decision, golden):
    digest = hashlib.blake2b(decision.encode(), key=seed.encode(), digest_size=8).digest()
    assert uniform_draw(seed, decision) == (int.from_bytes(digest, "little") >> 11) / 2**53
    assert uniform_draw(seed, decision) == golden


def test_draws_are_uniform():
    """Kolmogorov-Smirnov and chi-square at p = 0.001, on ids that do not change: it holds or it does not."""
    n = 100_000
    draws = np.sort([uniform_draw("seed", f"decision-{i}") for i in range(n)])
    assert draws[0] >= 0
    assert draws[-1] < 1
    ranks = np.arange(n + 1) / n
    distance = max((ranks[1:] - draws).max(), (draws - ranks[:-1]).max())
    assert distance * math.sqrt(n) < 1.949
    counts = np.bincount((draws * 256).astype(int), minlength=256)
    assert ((counts - n / 256) ** 2 / (n / 256)).sum() < 330.52  # the 0.999 quantile of chi-square with 255


def test_draws_of_neighbouring_ids_and_seeds_do_not_depend_on_each_other():
    """Correlations of 20,000 pairs have a standard error of 0.0071."""
    draws = np.array([[uniform_draw(seed, f"{i}") for i in range(20_000)] for seed in ("1", "2")])
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 0.0284
    assert abs(np.corrcoef(draws[0, :-1], draws[0, 1:])[0, 1]) < 0.0284


def test_seeds_that_are_longer_than_the_key_of_the_hash_are_refused_not_cut():
    with pytest.raises(DataError, match="64 bytes") as refused:
        uniform_draw("x" * 65, "d")
    assert refused.value.field == "seed"


LIST = {**DECISION, "candidates": [{"id": "a"}, {"id": "b"}, {"id": "c"}], "action": ["b", "a"], "propensity": 0.25,
        "propensities": [0.5, 0.5], "first_propensities": [0.3, 0.5, 0.2]}  # fmt: skip


def test_a_list_logs_the_propensity_of_every_item_and_of_every_candidate_for_the_first_slot():
    assert decode_decision(body(LIST)).propensities == (0.5, 0.5)
    rounded = [float(np.float32(1 / 3)), float(np.float32(1 / 7))]
    assert decode_decision(body(LIST, propensities=rounded, propensity=1 / 21, first_propensities=[])).propensity < 0.05
    old = {name: value for name, value in LIST.items() if not name.endswith("propensities")}
    assert decode_decision(body(old)).propensities == ()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"propensities": [0.5, 0.4]}, "propensities"),
        ({"propensities": [0.25]}, "propensities"),
        ({"propensities": [0.0, 0.5]}, "propensities[0]"),
        ({"propensities": [0.5, 1.5]}, "propensities[1]"),
        ({"first_propensities": [0.5, 0.5]}, "first_propensities"),
        ({"first_propensities": [0.5, 0.3, 0.2]}, "first_propensities"),
        ({"first_propensities": [0.5, 0.5, 0.2]}, "first_propensities"),
        ({"action": "b"}, "propensities"),
    ],
)
def test_propensities_of_slots_that_do_not_fit_the_list_are_refused(changed, field):
    assert refusal(decode_decision, body(LIST, **changed)).field == field


def test_what_a_slot_counts_is_declared():
    assert Ranked(2).slot_weights == (1.0, 1.0)
    assert Ranked(2, weights=(1.0, 0.25)).slot_weights == (1.0, 0.25)
    assert Ranked(3, weights="dcg").slot_weights == pytest.approx((1.0, 0.63092975, 0.5))
    for weights in ((1.0,), (1.0, -1.0), (1.0, float("nan"))):
        with pytest.raises(DataError, match=r"actions\.weights"):
            Ranked(2, weights=weights)
