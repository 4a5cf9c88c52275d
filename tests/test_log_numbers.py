"""Tables whose actions are numbers: a list, or a column that is one number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pytest

from foreign_logs import nouns, problem, rejected, run
from steersman import log
from steersman.core.decision import Decision, Numbers
from steersman.core.errors import DataError
from steersman.engine import Engine

BOX = Numbers(low=(-1.0, 0.0), high=(3.0, 0.1))
ONE = Numbers(low=(-1.0,), high=(3.0,))


def mapping(**changes: Any) -> log.Mapping:
    values: dict[str, Any] = {
        "at": "at", "id": "id", "action": "dose", "propensity": "density", "context": {"x": "x"},
        "metrics": {"reward": "gain"},
    }  # fmt: skip
    return msgspec.convert(values | changes, log.Mapping)


def table(n: int = 30, numbers: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "at": i, "id": f"d{i}", "x": float(rng.random()), "density": float(rng.uniform(0.1, 9)), "gain": float(i),
            "dose": [float(rng.uniform(-1, 3)), float(rng.uniform(0, 0.1))][:numbers],
        }
        for i in range(n)
    ]  # fmt: skip


def put(directory: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    lines = directory / "rows.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    path = directory / f"rows.{kind}"
    if kind == "csv":
        header = ",".join(rows[0])
        cells = (
            [f'"{json.dumps(cell)}"' if isinstance(cell, list) else str(cell) for cell in r.values()] for r in rows
        )
        path.write_text("\n".join([header, *map(",".join, cells)]))
    elif kind == "parquet":
        duckdb.sql(f"COPY (SELECT * FROM read_json('{lines}')) TO '{path}' (FORMAT parquet)")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_list_of_numbers_is_the_action_and_its_density_the_propensity(
    tmp_path: Path, pen: log.Pen, engine: Engine, kind: str
) -> None:
    rows = table()
    counts = run(
        pen, engine, log.Source(path=put(tmp_path, rows, kind), mapping=mapping()), problem(actions=BOX)
    )  # fmt: skip
    assert (counts.decisions, counts.outcomes, counts.rejected) == (30, 30, 0)
    for row, decision, outcome in zip(rows, *[iter(nouns(pen))] * 2, strict=True):
        assert decision == Decision(
            id=row["id"], problem="pole", unit=row["id"], at=row["at"], context={"x": row["x"]}, candidates=(),
            action=tuple(row["dose"]), propensity=row["density"],
        )  # fmt: skip
        assert outcome.metrics == {"reward": row["gain"]}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_that_is_a_number_is_an_action_of_one(tmp_path: Path, pen: log.Pen, engine: Engine, kind: str) -> None:
    rows = [row | {"dose": row["dose"][0]} for row in table(numbers=1)]
    run(pen, engine, log.Source(path=put(tmp_path, rows, kind), mapping=mapping()), problem(actions=ONE))
    assert [one.action for one in nouns(pen)[::2]] == [(row["dose"],) for row in rows]


def test_several_columns_are_one_action_by_an_expression(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    rows = [row | {"dose": row["dose"][0], "rate": row["dose"][1]} for row in table()]
    source = log.Source(path=put(tmp_path, rows, "csv"), mapping=mapping(action="[dose, rate]"))
    run(pen, engine, source, problem(actions=BOX))
    assert [one.action for one in nouns(pen)[::2]] == [(row["dose"], row["rate"]) for row in rows]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_row_whose_action_is_not_of_the_problem_is_refused_by_its_line(
    tmp_path: Path, pen: log.Pen, engine: Engine, kind: str
) -> None:
    rows = table(10)
    rows[1]["dose"] = [0.0]
    rows[3]["dose"] = [0.0, 0.2]
    rows[5]["density"] = 0.0
    rows[7]["dose"] = [0.0, float("nan")] if kind == "csv" else [0.0, None]
    source = log.Source(path=put(tmp_path, rows, kind), mapping=mapping())
    assert run(pen, engine, source, problem(actions=BOX), max_reject_share=0.5).rejected == 4
    found = list(rejected(pen).values())
    assert "action has 1 numbers, must have 2" in found[0]
    assert "[0.0, 0.2], must be within [-1.0, 0.0] and [3.0, 0.1]" in found[1]
    assert "propensity is 0" in found[2]
    assert "action" in found[3]
    assert len(nouns(pen)) == 12


def test_a_text_that_is_no_number_is_refused_with_its_row(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    rows = [row | {"dose": row["dose"][0]} for row in table(10)]
    rows[4]["dose"] = "much"
    source = log.Source(path=put(tmp_path, rows, "csv"), mapping=mapping())
    run(pen, engine, source, problem(actions=ONE), max_reject_share=0.5)
    assert "action is 'much', must be a number or a list of numbers" in next(iter(rejected(pen).values()))


def test_what_numbers_can_not_have_is_refused_with_the_table(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    path, what = put(tmp_path, table(), "jsonl"), problem(actions=BOX)
    for changes, says in (
        ({"candidates": "dose"}, "there are no candidates to map"),
        ({"propensity": ""}, "the mapping has no propensity"),
        ({"action": "['a', 'b']"}, "must be a list of numbers, or a number"),
    ):
        with pytest.raises(DataError, match=says) as error:
            run(pen, engine, log.Source(path=path, mapping=mapping(**changes)), what)
        assert "--propensity estimate" not in error.value.hint
    with pytest.raises(DataError, match="not estimated from a log"):
        run(pen, engine, log.Source(path=path, mapping=mapping(propensity=""), propensities="estimate"), what)


def test_a_declared_uniform_density_of_a_table_is_put_to_the_test(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    path = put(tmp_path, table(500), "jsonl")
    source = log.Source(path=path, mapping=mapping(propensity=""), propensities="uniform")
    run(pen, engine, source, problem(actions=BOX))
    assert {one.propensity for one in nouns(pen)[::2]} == {1 / (4 * 0.1)}
    wider = Numbers(low=(-1.0, 0.0), high=(3.0, 1.0))  # of which the log has a tenth
    with pytest.raises(DataError, match="not taken uniformly"):
        run(pen, engine, source, problem(actions=wider))


def test_lines_of_our_own_log_are_held_to_the_bounds(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    shared = {"problem": "pole", "unit": "u", "at": 0}
    taken: list[Any] = [[0.5], [0.2], [3.5], [0.0, 0.1], "1", ["1"]]
    lines = [shared | {"id": f"d{i}", "action": action, "propensity": 0.5} for i, action in enumerate(taken)]
    for line in lines[4:]:
        line["candidates"] = [{"id": "1"}, {"id": "2"}]
    source = log.Source(path=put(tmp_path, lines, "jsonl"))
    counts = run(pen, engine, source, problem(actions=ONE), max_reject_share=0.9)
    assert (counts.decisions, counts.rejected) == (2, 4)
    found = rejected(pen)
    assert "must be within [-1.0] and [3.0]" in found[3]
    assert "2 numbers, must have 1" in found[4]
    assert "must be a list of numbers" in found[5]
    assert "must be a list of numbers" in found[6]
