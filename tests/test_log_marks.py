"""Deferred, estimated, activates: they come back from the compacted log, and cost a column only where they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steersman import log
from steersman.core.decision import Candidate, Decision, Outcome
from steersman.engine import Engine
from steersman.log.pen import fresh_name

DAY = 86_400_000_000
ALWAYS = (0, 1 << 62)
MARKS = {"deferred", "estimated", "activates"}


def decision(id: str, **changes: Any) -> Decision:
    values: dict[str, Any] = {
        "problem": "ctr", "unit": "u", "at": 5, "context": {"x": 1.0}, "action": "a", "propensity": 0.5,
        "candidates": (Candidate("a"), Candidate("b")),
    }  # fmt: skip
    return Decision(id=id, **values | changes)


def compacted(directory: Path, engine: Engine, *nouns: Decision | Outcome) -> log.Files:
    with log.Pen(directory, durability="buffered") as pen:
        for noun in nouns:
            kind = log.DECISION if isinstance(noun, Decision) else log.OUTCOME
            pen.append([(kind, msgspec.json.encode(noun))])
    done = log.compact(directory, {}, engine)
    assert (done.aside, done.segments) == (0, 1)
    return log.files(directory, "ctr", *ALWAYS)


def columns(engine: Engine, paths: list[str]) -> dict[str, str]:
    engine.view("t", paths)
    described = engine.query("DESCRIBE t")
    return dict(zip(described["column_name"], described["column_type"], strict=True))


def test_a_file_has_the_columns_only_if_a_row_needs_them(tmp_path: Path, engine: Engine) -> None:
    files = compacted(
        tmp_path, engine,
        decision("plain"), decision("late", at=DAY, deferred=True), decision("guess", at=2 * DAY, estimated=True),
        Outcome(id="o", decision="plain", at=5), Outcome(id="seen", decision="late", at=DAY, activates=True),
    )  # fmt: skip
    found = [
        {name: kind for name, kind in columns(engine, [path]).items() if name in MARKS}
        for path in (*files.decisions, *files.outcomes)
    ]
    assert found == [{}, {"deferred": "BOOLEAN"}, {"estimated": "BOOLEAN"}, {}, {"activates": "BOOLEAN"}]


def test_the_propensities_of_a_list_and_the_item_of_an_outcome_come_back(tmp_path: Path, engine: Engine) -> None:
    ranked = decision(
        "list", action=("b", "a"), propensity=0.25, propensities=(0.25, 1.0), first_propensities=(0.75, 0.25)
    )
    files = compacted(
        tmp_path, engine, ranked, decision("old", action=("b", "a")), decision("one"),
        Outcome(id="o", decision="list", at=5, item="a", metrics={"clicks": 1.0}),
        Outcome(id="p", decision="list", at=5, metrics={"clicks": 2.0}),
    )  # fmt: skip
    assert log.find(tmp_path, "list", engine) == ranked
    assert log.find(tmp_path, "old", engine).propensities == ()
    engine.view("t", files.outcomes)
    assert engine.query("SELECT item FROM t ORDER BY id")["item"].tolist() == ["a", None]


def test_rows_without_a_mark_are_never_true(tmp_path: Path, engine: Engine) -> None:
    files = compacted(
        tmp_path, engine, decision("a"), decision("b", deferred=True), decision("c", estimated=True, at=DAY),
        Outcome(id="o", decision="a", at=5), Outcome(id="p", decision="b", at=5, activates=True),
    )  # fmt: skip
    engine.view("t", files.decisions)
    rows = engine.query("SELECT id FROM t WHERE deferred IS NOT TRUE ORDER BY id")
    assert rows["id"].tolist() == ["a", "c"]
    assert engine.query("SELECT id FROM t WHERE estimated")["id"].tolist() == ["c"]
    engine.view("t", files.outcomes)
    assert engine.query("SELECT id FROM t WHERE activates")["id"].tolist() == ["p"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 1), st.none() | st.just(1.0)),
        min_size=1,
        max_size=6,
    )
)
def test_every_decision_comes_back_with_its_marks(
    tmp_path: Path, engine: Engine, marks: list[tuple[bool, bool, bool, int, float | None]]
) -> None:
    directory = tmp_path / fresh_name()
    nouns = [
        decision(
            f"d{i}", deferred=deferred, estimated=estimated, at=day * DAY, context={"x": number},
            action=("b", "a") if ranked else "a",
        )
        for i, (deferred, estimated, ranked, day, number) in enumerate(marks)
    ]  # fmt: skip
    with log.Pen(directory, durability="buffered") as pen:
        pen.append([(log.DECISION, msgspec.json.encode(noun)) for noun in nouns])
    for step in ("segment", "Parquet"):
        assert [log.find(directory, noun.id, engine) for noun in nouns] == nouns, step
        log.compact(directory, {}, engine)
