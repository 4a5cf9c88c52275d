"""Actions that are numbers, from the log's lists to the Batch, on both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import spark_here
from steersman import engine, timeline
from steersman.core.decision import Numbers
from steersman.core.errors import DataError
from steersman.core.features import Encoder
from timeline_log import FAR, Files, decision, log, outcome, problem, shuffled_log

BOX = Numbers(low=(-1.0, 0.0), high=(1.0, 0.1))
DOSES = problem(actions=BOX)


def a(id: str, numbers: list[float], at_s: float = 0, density: float = 7.5, **more: object) -> dict[str, object]:
    return decision(id, at_s=at_s, action=None, propensity=density, x=at_s, **more) | {
        "candidates.id": [],
        "numbers": numbers,
    }


def rows(n: int = 40) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    rng = np.random.default_rng(n)
    made = [
        a(f"d{i}", [float(rng.uniform(-1, 1)), 0.1 * float(rng.random())], i, density=1.0 + i, unit=f"u{i % 7}")
        for i in range(n)
    ]
    return made, [outcome(f"o{i}", f"d{i}", i + 1, r=float(i)) for i in range(0, n, 2)]


def build(files: Files, with_engine: str = "duckdb", **changes: object) -> timeline.Built:
    tables = engine.open(with_engine)
    try:
        return timeline.build(tables, changes.pop("of", DOSES), files, since=0, until=FAR, as_of=FAR, **changes)
    finally:
        tables.close()


def test_actions_stand_in_the_batch_as_float32_within_their_bounds(tmp_path):
    files = log(tmp_path, [a("d0", [1.0, 0.1]), a("d1", [-0.25, 0.05], 5, density=0.5)], [outcome("o", "d0", 1, r=2.0)])
    batch = build(files).batch
    assert batch.numbers
    assert batch.action.tolist() == np.float32([[1.0, 0.1], [-0.25, 0.05]]).tolist()
    assert batch.propensity.tolist() == [7.5, 0.5]
    assert batch.reward.tolist() == [2.0, 0.0]
    assert batch.encoder.numbers == BOX
    assert batch.mask.shape == (2, 0)
    assert batch.candidates.shape == (2, 0, 0)


def test_the_order_of_the_log_changes_nothing(tmp_path):
    made, came = rows()
    first = build(log(tmp_path / "a", made, came))
    again = build(shuffled_log(tmp_path / "b", made, came, seed=3))
    assert first.digest == again.digest
    assert first.batch.digest == again.batch.digest


def test_a_build_on_disk_is_the_build_in_memory(tmp_path):
    files = log(tmp_path / "log", *rows())
    (tmp_path / "scratch").mkdir()
    timeline.save(build(files, into=tmp_path / "scratch"), tmp_path / "build")
    assert timeline.load(tmp_path / "build").batch.digest == build(files).batch.digest


@pytest.mark.parametrize(
    ("numbers", "density", "says"),
    [
        ([1.5, 0.0], 1.0, r"decision bad: action \[1.5, 0.0\] is outside the bounds \[-1.0, 0.0\] to \[1.0, 0.1\]"),
        ([0.5], 1.0, "decision bad: action is not 2 numbers"),
        ([0.5, 0.0, 0.0], 1.0, "decision bad: action is not 2 numbers"),
        ([0.5, 0.0], 0.0, "decision bad: propensity is 0, must be a density above 0"),
    ],
)
def test_an_action_that_is_not_of_the_problem_is_refused_by_its_id(tmp_path, numbers, density, says):
    files = log(tmp_path, [a("good", [0.0, 0.0]), a("bad", numbers, 5, density=density)])
    with pytest.raises(DataError, match=says):
        build(files)


def test_a_log_of_candidates_is_no_log_of_numbers(tmp_path):
    with pytest.raises(DataError, match="no decision of the log has numbers as its action"):
        build(log(tmp_path, [decision("d")]))


def test_an_encoder_of_other_bounds_is_refused(tmp_path):
    files = log(tmp_path, rows()[0])
    other = Encoder(numbers=Numbers(low=(0.0, 0.0), high=(1.0, 1.0)))
    with pytest.raises(DataError, match="has the bounds"):
        build(files, encoder=other)
    assert build(files, encoder=build(files).encoder).batch.digest == build(files).batch.digest


def told(built: timeline.Built) -> list[tuple[float, ...]]:
    """Action, density and reward of every decision, sorted."""
    batch = built.batch
    return sorted(zip(*batch.action.T.tolist(), batch.propensity.tolist(), batch.reward.tolist(), strict=True))


def in_parts(files: Files, with_engine: engine.Engine, into: Path, shards: int) -> list[timeline.Built]:
    into.mkdir()
    settings = timeline.Settings(shards=shards)
    return timeline.build_shards(with_engine, DOSES, files, since=0, until=FAR, as_of=FAR, settings=settings, into=into)


def test_parts_hold_the_decisions_of_the_whole(tmp_path):
    files = log(tmp_path / "log", *rows())
    tables = engine.open("duckdb")
    parts = in_parts(files, tables, tmp_path / "parts", 3)
    tables.close()
    whole = build(files)
    assert min(map(len, parts)) > 0
    assert {part.batch.encoder.digest for part in parts} == {whole.batch.encoder.digest}
    assert sorted(row for part in parts for row in told(part)) == told(whole)
    timeline.save(parts, tmp_path / "build")
    assert told(timeline.load(tmp_path / "build")) == told(whole)


@spark_here.needed
def test_spark_builds_the_same_parts_as_duckdb(tmp_path):
    files = log(tmp_path / "log", *rows())
    own = engine.open("duckdb")
    parts = in_parts(files, own, tmp_path / "d", 2)
    own.close()
    spark = spark_here.opened(tmp_path / "spill")
    again = in_parts(files, spark, tmp_path / "s", 2)
    spark.close()
    assert [part.digest for part in parts] == [part.digest for part in again]
    assert sum(map(len, parts)) == 40
    timeline.save(parts, tmp_path / "build")
    assert timeline.load(tmp_path / "build").batch.action.shape == (40, 2)
