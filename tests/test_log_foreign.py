"""Foreign tables of every kind: maps in Parquet, queries, Minari datasets; and what a source may not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foreign_logs import nouns, problem, rejected, run
from steersman import log
from steersman.core.decision import Candidate, Decision, One, Outcome
from steersman.core.errors import ConfigError, DataError
from steersman.engine import Engine
from steersman.log import horizon

MIDNIGHT = 1_546_300_800_000_000  # 2019-01-01 00:00:00 UTC
SECOND = 1_000_000


# Horizon's table in Parquet, as Spark writes it

FEATURES = pa.map_(pa.int64(), pa.float64())
TYPES = {
    "ds": pa.string(), "mdp_id": pa.string(), "sequence_number": pa.int64(), "state_features": FEATURES,
    "action": pa.string(), "action_probability": pa.float64(), "reward": pa.float64(),
    "possible_actions": pa.list_(pa.string()), "metrics": pa.map_(pa.string(), pa.float64()),
    "state_id_list_features": pa.map_(pa.int64(), pa.list_(pa.int64())),
}  # fmt: skip


def step(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "ds": "2019-01-01", "mdp_id": "e1", "sequence_number": 3, "state_features": {0: 0.1, 12: -2.5e-7},
        "action": "left", "action_probability": 0.25, "reward": 1.5, "possible_actions": ["left", "right"],
        "metrics": {"speed": 4.0}, "state_id_list_features": {7: [4, 5]},
    }  # fmt: skip
    return values | changes


def parquet(path: Path, *steps: dict[str, Any], **types: pa.DataType) -> Path:
    kinds = TYPES | types
    names = [name for name in kinds if name in steps[0]]
    arrays = []
    for name in names:
        values = [one[name] for one in steps]
        if pa.types.is_map(kinds[name]):
            values = [None if value is None else list(value.items()) for value in values]
        elif pa.types.is_list(kinds[name]) and pa.types.is_map(kinds[name].value_type):
            values = [[list(one.items()) for one in value] for value in values]
        arrays.append(pa.array(values, kinds[name]))
    pq.write_table(pa.table(arrays, names=names), path)
    return path


def as_lines(path: Path, *steps: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in steps))
    return path


STEPS = [
    step(),
    step(sequence_number=4, possible_actions=[], reward=7.0, metrics=None),
    step(mdp_id="é", state_features={}, state_id_list_features=None, action="right", action_probability=1.0),
]


def test_maps_in_parquet_say_what_json_lines_say(tmp_path: Path, engine: Engine) -> None:
    found = []
    sources = (parquet(tmp_path / "steps.parquet", *STEPS), as_lines(tmp_path / "steps.json", *STEPS))
    for source in sources:
        with log.Pen(tmp_path / f"log-{source.name}", durability="buffered") as pen:
            run(pen, engine, log.Source(path=source, form="horizon"), problem())
            found.append(nouns(pen))
    assert found[0] == found[1]  # the ids too
    first, outcome, last, end, *_ = found[0]
    assert first == Decision(
        id=first.id, problem="pole", unit="e1", at=MIDNIGHT + 3 * SECOND, step=3,
        context={"f0": 0.1, "f12": -2.5e-7, "f7": ("4", "5")}, candidates=(Candidate("left"), Candidate("right")),
        action="left", propensity=0.25,
    )  # fmt: skip
    assert outcome.metrics == {"reward": 1.5, "speed": 4.0}
    assert (last.candidates, end.ends, end.metrics) == (first.candidates, "terminated", {"reward": 7.0})


def test_actions_that_are_maps_are_named_by_their_features(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    small, large = {1: 1.0, 2: 0.5}, {1: 9.0}
    one = step(action=small, possible_actions=[large, small])
    source = parquet(tmp_path / "steps.parquet", one, action=FEATURES, possible_actions=pa.list_(FEATURES))
    run(pen, engine, log.Source(path=source, form="horizon"), problem(actions=One()))
    decision, _ = nouns(pen)
    assert [candidate.features for candidate in decision.candidates] == [{"f1": 9.0}, {"f1": 1.0, "f2": 0.5}]
    assert decision.action == decision.candidates[1].id


@pytest.mark.parametrize("name", ["propensity", "mdp_ids"])
def test_a_column_under_another_name_is_refused_with_the_table(
    tmp_path: Path, pen: log.Pen, engine: Engine, name: str
) -> None:
    known = {"propensity": "action_probability", "mdp_ids": "mdp_id"}[name]
    table = pq.read_table(parquet(tmp_path / "steps.parquet", step()))
    source = tmp_path / "renamed.parquet"
    pq.write_table(table.rename_columns([name if column == known else column for column in table.column_names]), source)
    with pytest.raises(DataError, match=f"no column {known}") as error:
        run(pen, engine, log.Source(path=source, form="horizon"), problem())
    assert name in error.value.hint
    assert nouns(pen) == []


def test_rows_of_parquet_are_refused_by_their_number(
    tmp_path: Path, pen: log.Pen, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "CHUNK", 3)
    steps = [step(sequence_number=number) for number in range(8)]
    steps[1]["action_probability"] = None
    steps[3]["action_probability"] = float("nan")
    steps[4]["state_features"] = {0: float("inf")}
    steps[7]["action"] = "up"
    source = log.Source(path=parquet(tmp_path / "steps.parquet", *steps), form="horizon")
    counts = run(pen, engine, source, problem(), max_reject_share=0.5)
    assert (counts.rows, counts.decisions, counts.rejected) == (8, 4, 4)
    found = rejected(pen)
    assert list(found) == [2, 4, 5, 8]
    assert "action_probability is missing" in found[2]
    assert "action_probability is missing" in found[4]
    assert "context.f0 is inf" in found[5]
    assert "'up'" in found[8]


def test_a_feature_that_is_nan_is_missing(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    one = step(state_features={0: float("nan"), 1: 2.0}, metrics={"speed": float("nan")}, state_id_list_features=None)
    run(pen, engine, log.Source(path=parquet(tmp_path / "steps.parquet", one), form="horizon"), problem())
    decision, outcome = nouns(pen)
    assert (decision.context, outcome.metrics) == ({"f1": 2.0}, {"reward": 1.5})


def test_partitions_of_the_table_are_read_by_a_query(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    for day in ("2019-01-01", "2019-01-02"):
        folder = tmp_path / f"ds={day}"
        folder.mkdir()
        part = {name: value for name, value in step(sequence_number=1).items() if name != "ds"}
        parquet(folder / "part-0.parquet", part)
    sql = f"SELECT * FROM read_parquet('{tmp_path}/ds=*/*.parquet', hive_partitioning = true)"
    run(pen, engine, log.Source(sql=sql, form="horizon"), problem())
    days = sorted(one.at for one in nouns(pen) if isinstance(one, Decision))
    assert days == [MIDNIGHT + SECOND, MIDNIGHT + 86_401 * SECOND]


def test_a_table_without_propensities_is_estimated_if_somebody_says_so(
    tmp_path: Path, pen: log.Pen, engine: Engine
) -> None:
    steps = [step(mdp_id=f"e{i}", action="left" if i % 3 else "right") for i in range(600)]
    for one in steps:
        del one["action_probability"]
    source = log.Source(path=parquet(tmp_path / "steps.parquet", *steps), form="horizon", propensities="estimate")
    counts = run(pen, engine, source, problem())
    assert counts.behavior is not None
    assert (counts.behavior.method, counts.behavior.decisions) == ("frequencies", 600)
    for one in nouns(pen)[::2]:
        assert one.estimated
        assert one.propensity == pytest.approx({"left": 2 / 3, "right": 1 / 3}[one.action], abs=0.04)


# queries

TABLE = "key,t,arm,p,x\nk1,5,left,0.5,1\nk2,6,right,0.25,2\nk3,7,left,0.5,3\n"
HOW = {"id": "key", "at": "t", "action": "arm", "propensity": "p", "context": {"x": "x"}, "metrics": {"reward": "gain"}}


def test_a_query_joins_files_and_is_mapped_like_a_table(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    (tmp_path / "shown.csv").write_text(TABLE)
    (tmp_path / "gains.jsonl").write_text('{"key": "k1", "gain": 2}\n{"key": "k3", "gain": 4.5}\n')
    sql = (
        f"SELECT s.*, g.gain FROM '{tmp_path}/shown.csv' s LEFT JOIN read_json('{tmp_path}/gains.jsonl') g USING (key)"
    )
    counts = run(pen, engine, log.Source(sql=sql, mapping=msgspec.convert(HOW, log.Mapping)), problem())
    assert (counts.rows, counts.decisions, counts.outcomes) == (3, 3, 2)
    found = {one.id: one for one in nouns(pen) if isinstance(one, Decision)}
    assert {key: (one.action, one.context["x"]) for key, one in found.items()} == {
        "k1": ("left", 1.0), "k2": ("right", 2.0), "k3": ("left", 3.0)
    }  # fmt: skip
    gains = {one.decision: one.metrics["reward"] for one in nouns(pen) if isinstance(one, Outcome)}
    assert gains == {"k1": 2.0, "k3": 4.5}


def test_a_query_calls_the_file_beside_it_source(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    path = tmp_path / "shown.csv"
    path.write_text(TABLE + "k4,8\n")
    sql = "SELECT *, 2 * x AS gain FROM source WHERE arm = 'left'"
    source = log.Source(path=path, sql=sql, mapping=msgspec.convert(HOW, log.Mapping))
    counts = run(pen, engine, source, problem(), max_reject_share=0.5)
    assert (counts.rows, counts.decisions, counts.rejected) == (3, 2, 1)
    assert "a line of shown.csv that is no row: 2 cells" in rejected(pen)[5]
    assert {one.decision: one.metrics["reward"] for one in nouns(pen)[1::2]} == {"k1": 2.0, "k3": 6.0}


def test_a_row_of_a_query_is_refused_by_its_number(pen: log.Pen, engine: Engine) -> None:
    sql = (
        "SELECT * FROM (VALUES ('a', 1, 'left', 0.5, 1, 1.0), ('b', 2, 'left', 0, 1, 1)) AS r(key, t, arm, p, x, gain)"
    )
    source = log.Source(sql=sql, mapping=msgspec.convert(HOW, log.Mapping))
    assert run(pen, engine, source, problem(), max_reject_share=0.5).decisions == 1
    assert "propensity is 0" in rejected(pen)[2]


def test_the_rows_of_a_query_have_no_order_so_they_need_ids(pen: log.Pen, engine: Engine) -> None:
    nameless = msgspec.convert(HOW | {"id": ""}, log.Mapping)
    with pytest.raises(DataError, match="the rows of a query have no order") as error:
        run(pen, engine, log.Source(sql="SELECT 1 AS t, 'left' AS arm, 0.5 AS p", mapping=nameless), problem())
    assert error.value.field == "id"


@pytest.mark.parametrize("sql", ["SELECT", "DROP TABLE x", "SELECT 1; SELECT 2", "SELECT * FROM 'nothing.csv'"])
def test_a_query_that_gives_no_rows_imports_nothing(pen: log.Pen, engine: Engine, sql: str) -> None:
    with pytest.raises(Exception, match=r".") as error:
        run(pen, engine, log.Source(sql=sql, mapping=msgspec.convert(HOW, log.Mapping)), problem())
    assert type(error.value).__name__ in ("DataError", "NotFoundError")
    assert nouns(pen) == []


# what a source may not be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "nothing to import"),
        ({"path": Path("x.csv"), "form": "horizn"}, "no format 'horizn'"),
        ({"path": Path("x.csv"), "form": "horizon", "mapping": HOW}, "takes no mapping"),
        ({"sql": "SELECT 1"}, "nothing says where the fields stand"),
        ({"sql": "SELECT 1", "form": "dsjson"}, "nothing says where the fields stand"),
        ({"path": Path("x.jsonl"), "propensities": "estimate"}, "every row of our own log has its propensity"),
        ({"path": Path("x.json"), "form": "dsjson", "propensities": "uniform"}, "every row of the format dsjson"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_read(
    pen: log.Pen, engine: Engine, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        mapping = changes.pop("mapping", None) and msgspec.convert(HOW, log.Mapping)
        run(pen, engine, log.Source(**changes, mapping=mapping), problem())
