"""Compaction: every value in a column of its type, set aside where it has none, and found again field for field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compacted import (
    ALWAYS,
    T0,
    decision,
    no_wait_for_the_disk,  # noqa: F401  (a fixture of every test)
    outcome,
    problem,
    rows,
    write,
)
from steersman import log
from steersman.core.decision import Candidate, Decision
from steersman.core.errors import NotFoundError
from steersman.engine import Engine, identifier
from steersman.log import fields
from steersman.log.pen import fresh_name


def test_the_types_of_the_columns_are_those_of_the_layout(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision(context={"n": 1.0, "t": "x", "ns": (1.0,), "ts": ("x",)}), outcome())
    log.compact(tmp_path, {}, engine)
    found = log.files(tmp_path, "ctr", *ALWAYS)
    types = {}
    for path in (*found.decisions, *found.outcomes):
        engine.view("t", [path])
        described = engine.query("DESCRIBE t")
        types |= dict(zip(described["column_name"], described["column_type"], strict=True))
    assert types == {
        "id": "VARCHAR", "unit": "VARCHAR", "at": "BIGINT", "step": "BIGINT", "action": "VARCHAR",
        "propensity": "DOUBLE", "version": "BIGINT", "noise": "UBIGINT", "context.n": "DOUBLE", "context.t": "VARCHAR",
        "context.ns": "DOUBLE[]", "context.ts": "VARCHAR[]", "candidates.id": "VARCHAR[]",
        "candidates.price": "DOUBLE[]", "nulls": "VARCHAR[]", "decision": "VARCHAR", "ends": "VARCHAR",
        "metrics.clicks": "DOUBLE",
    }  # fmt: skip


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=8)
value = st.one_of(
    st.none(), finite, text, st.lists(finite, max_size=3).map(tuple), st.lists(text, max_size=3).map(tuple)
)
ids = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
names = st.text(st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"]), min_size=1, max_size=6)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    shape = st.dictionaries(names, value, max_size=4)
    listed = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    candidates = tuple(Candidate(id, draw(shape)) for id in listed)
    return Decision(
        id=draw(ids), problem="ctr", unit=draw(ids), at=draw(st.integers(0, 2**50)), context=draw(shape),
        candidates=candidates, action=draw(st.sampled_from(listed)),
        propensity=draw(st.floats(0, 1, exclude_min=True)), version=draw(st.integers(0, 2**63 - 1)),
        step=draw(st.none() | st.integers(0, 2**63 - 1)), noise=draw(st.none() | st.integers(0, 2**64 - 1)),
    )  # fmt: skip


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(decisions())
@example(
    decision(context={"x": 5e-324, "y": -0.0, "z": 1.7976931348623157e308, "empty": (), "nul": "\x00", "none": None})
)
@example(decision(context={"we\"ird'; DROP TABLE t; --": 1.0, "candidates.id": "x", "größe": "ü", "a.b.c": (1.0,)}))
@example(decision(candidates=(Candidate("a", {"0.x": None, "x": ("y",)}), Candidate("b")), context={}))
def test_a_decision_is_found_equal_to_what_was_logged(tmp_path: Path, engine: Engine, logged: Decision) -> None:
    directory = tmp_path / fresh_name()
    write(directory, logged)
    before = log.find(directory, logged.id, engine)
    done = log.compact(directory, {}, engine)
    if done.aside:
        # Only what has no column is set aside: names that differ in case, a feature named id, a field of two types.
        assert any(word in done.reasons[0] for word in ("differ in more than case", "reserved", "the log has it as"))
        return
    after = log.find(directory, logged.id, engine)
    assert before == after == logged
    assert msgspec.json.encode(after, order="sorted") == msgspec.json.encode(logged, order="sorted")
    shutil.rmtree(directory)


def test_what_is_not_in_the_log_is_not_found(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(NotFoundError):
        log.find(tmp_path, "d1", engine)
    write(tmp_path, decision("d1"), outcome("d9"))
    log.compact(tmp_path, {}, engine)
    write(tmp_path, decision("d2"))
    for missing in ("d", "d9", "d1 ", "' OR 1=1 --"):
        with pytest.raises(NotFoundError):
            log.find(tmp_path, missing, engine)
    assert log.find(tmp_path, "d1", engine).id == "d1"
    assert log.find(tmp_path, "d2", engine).id == "d2"


def test_of_an_id_logged_twice_the_first_is_found(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision(at=T0 + 1, unit="later"), decision(at=T0, unit="first"))
    log.compact(tmp_path, {}, engine)
    assert log.find(tmp_path, "d1", engine).unit == "first"


def test_a_bad_record_is_set_aside_with_its_reason_and_the_others_go_on(tmp_path: Path, engine: Engine) -> None:
    body = msgspec.to_builtins(decision())
    bad = [
        body | {"propensity": 0.0}, body | {"action": "z"}, body | {"problem": "../../etc"}, body | {"noise": -1},
        body | {"at": 1 << 62}, body | {"step": 1 << 63}, body | {"context": {"age": [1, "x"]}},
    ]  # fmt: skip
    write(tmp_path, decision(), *(json.dumps(one).encode() for one in bad), b"no json", b"\xff\xff", decision("d2"))
    done = log.compact(tmp_path, {}, engine)
    assert (done.decisions, done.aside) == (2, len(bad) + 2)
    assert "propensity: decision d1: propensity is 0" in done.reasons[0]
    lines = [json.loads(line) for path in (tmp_path / "aside").iterdir() for line in path.read_text().splitlines()]
    reasons = " | ".join(line["reason"] for line in lines)
    for word in (
        "not among",
        "'../../etc'",
        "noise is -1",
        "at is 4611686018427387904",
        "step is 9223372036854775808",
        "one or the other",
        "not valid JSON",
    ):
        assert word in reasons
    assert all(line["segment"].endswith(".seg") and line["offset"] > 0 for line in lines)
    assert not (tmp_path.parent / "etc").exists()


def test_a_field_of_two_types_has_the_type_of_most_and_the_rest_is_set_aside(tmp_path: Path, engine: Engine) -> None:
    write(
        tmp_path,
        decision("text", context={"age": "41"}),
        *(decision(f"n{i}", context={"age": float(i)}) for i in range(3)),
    )
    done = log.compact(tmp_path, {}, engine)
    assert done.reasons == ("context.age is a text, the log has it as a number",)
    assert [row["context.age"] for row in rows(tmp_path, engine)] == [0.0, 1.0, 2.0]


def test_a_declared_type_wins_over_the_values(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision("n", context={"age": 1.0, "new": 1.0}), decision("t", context={"age": "41"}))
    declared = problem(context={"age": "text", "never": "number"})
    done = log.compact(tmp_path, {"ctr": declared}, engine)
    assert done.reasons == ("context.age is a number, the log has it as a text",)
    (row,) = rows(tmp_path, engine)
    assert (row["id"], row["context.age"], row["context.never"]) == ("t", "41", None)


def test_the_type_of_a_field_stays_what_it_was(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision("d1", context={"age": 1.0}))
    log.compact(tmp_path, {}, engine)
    write(tmp_path, *(decision(f"t{i}", context={"age": "x"}) for i in range(5)), decision("d2", context={"age": 2.0}))
    assert log.compact(tmp_path, {}, engine).aside == 5
    assert [row["context.age"] for row in rows(tmp_path, engine)] == [1.0, 2.0]


@pytest.mark.parametrize("full", [(1.5, 2.5), ("a", "b")])
def test_empty_lists_take_the_type_that_comes_later(tmp_path: Path, engine: Engine, full: tuple[Any, ...]) -> None:
    write(tmp_path, decision("d1", context={"tags": ()}))
    log.compact(tmp_path, {}, engine)
    assert log.find(tmp_path, "d1", engine).context == {"tags": ()}
    write(tmp_path, decision("d2", context={"tags": full}))
    write(tmp_path, decision("d3", context={"tags": ()}))
    assert log.compact(tmp_path, {}, engine).aside == 0
    for id, tags in (("d1", ()), ("d2", full), ("d3", ())):
        assert log.find(tmp_path, id, engine).context == {"tags": tags}


def test_a_field_that_comes_later_is_missing_before(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision("d1", context={}, candidates=(Candidate("a"), Candidate("b"))))
    log.compact(tmp_path, {}, engine)
    write(tmp_path, decision("d2", context={"age": 1.0}))
    log.compact(tmp_path, {}, engine)
    assert [row["context.age"] for row in rows(tmp_path, engine)] == [None, 1.0]
    assert log.find(tmp_path, "d1", engine).context == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"context": {"Age": 1.0, "age": 2.0}},
        {"candidates": (Candidate("a", {"id": 7.0}), Candidate("b"))},
        {"candidates": (Candidate("a", {"ID": 7.0}), Candidate("b"))},
        {"context": {"": 1.0}},
        {"context": {"x" * 300: 1.0}},
        {"context": {"a\nb": 1.0}},
    ],
)
def test_a_name_that_would_share_or_break_a_column_is_set_aside(
    tmp_path: Path, engine: Engine, changes: dict[str, Any]
) -> None:
    write(tmp_path, decision("odd", **changes), decision("even"))
    done = log.compact(tmp_path, {}, engine)
    assert (done.decisions, done.aside) == (1, 1)
    assert [row["id"] for row in rows(tmp_path, engine)] == ["even"]


def test_metrics_whose_names_differ_only_in_case_do_not_share_a_column(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, outcome("o1"), outcome("o2"), outcome("o3", metrics={"Clicks": 5.0}))
    assert log.compact(tmp_path, {}, engine).aside == 1
    assert [row["metrics.clicks"] for row in rows(tmp_path, engine, "outcomes")] == [1.0, 1.0]


def test_field_names_out_of_control_do_not_become_columns_without_end(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "MAX_FIELDS", 20)
    write(tmp_path, *(decision(f"d{i}", context={f"f{i}": 1.0}) for i in range(30)))
    done = log.compact(tmp_path, {}, engine)
    assert (done.decisions, done.aside) == (20, 10)
    assert "20 fields already" in done.reasons[0]


def test_several_actions_and_numbers_have_columns_of_their_own(tmp_path: Path, engine: Engine) -> None:
    ranked = decision("ranked", action=("b", "a"))
    numbers = decision("numbers", action=(0.5, -1.5), candidates=(), propensity=2.5)
    write(tmp_path, ranked, numbers, decision("one"))
    assert log.compact(tmp_path, {}, engine).aside == 0
    found = {row["id"]: (row["action"], row["actions"], row["numbers"]) for row in rows(tmp_path, engine)}
    assert found == {
        "ranked": (None, ["b", "a"], None), "numbers": (None, None, [0.5, -1.5]), "one": ("a", None, None),
    }  # fmt: skip
    assert log.find(tmp_path, "ranked", engine) == ranked
    assert log.find(tmp_path, "numbers", engine) == numbers


def test_json_that_is_not_as_we_write_it_means_the_same(tmp_path: Path, engine: Engine) -> None:
    body = msgspec.to_builtins(decision(context={"age": 1.0}))
    pretty = json.dumps(body | {"unknown": {"x": 1}}, indent=1).replace('"age": 1.0', '"age": 5, "age": 1')
    write(tmp_path, pretty.encode())
    assert log.compact(tmp_path, {}, engine).decisions == 1
    assert log.find(tmp_path, "d1", engine) == decision(context={"age": 1.0})


def test_rows_of_different_shapes_keep_the_order_of_the_log(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, *(decision(f"d{i}", context={f"f{i % 3}": 1.0}) for i in range(30)))
    log.compact(tmp_path, {}, engine)
    assert [row["id"] for row in rows(tmp_path, engine)] == [f"d{i}" for i in range(30)]


def test_columns_may_be_selected_by_their_quoted_names(tmp_path: Path, engine: Engine) -> None:
    odd = 'a"b, c'
    write(tmp_path, decision(context={odd: 2.0}))
    log.compact(tmp_path, {}, engine)
    engine.view("t", log.files(tmp_path, "ctr", *ALWAYS).decisions)
    assert engine.query(f"SELECT {identifier(f'context.{odd}')} AS x FROM t")["x"].tolist() == [2.0]
