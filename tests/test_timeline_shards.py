"""A build in parts is the build in one part, unit for unit."""

from __future__ import annotations

import random

import numpy as np
import pytest

import spark_here
from steersman import engine, timeline
from steersman.core.errors import DataError
from steersman.timeline import Built, Settings
from steersman.timeline.shards import joined
from timeline_log import FAR, Row, decision, log, outcome, problem, shuffled_log

ENGINES = ("duckdb", pytest.param("spark", marks=spark_here.needed))


@pytest.fixture(scope="module", params=ENGINES)
def tables(request, tmp_path_factory):
    spark = request.param == "spark"
    opened = spark_here.opened(tmp_path_factory.mktemp("spark")) if spark else engine.open("duckdb")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def one():
    opened = engine.open("duckdb", threads=1)
    yield opened
    opened.close()


def rows(built: Built) -> dict[str, tuple]:
    """Decision id -> all that the Batch says of it, without row numbers."""
    batch, ids = built.batch, built.decision_ids
    return {
        ids[i]: (
            batch.context[i].tolist(),
            batch.candidates[i].tolist(),
            batch.mask[i].tolist(),
            int(batch.action[i]),
            batch.propensity[i],
            batch.reward[i],
            [None if np.isnan(x) else x for x in batch.metrics[i]],
            batch.discount[i],
            None if batch.next[i] < 0 else ids[batch.next[i]],
            built.draws[batch.unit[i]],
        )
        for i in range(len(batch))
    }


def mixed_log(seed: int) -> tuple[list[Row], list[Row]]:
    """Units with and without steps, copies, outcomes in time, late, twice and of nobody, missing fields."""
    rng = random.Random(seed)
    decisions, outcomes = [], []
    for i in range(120):
        unit, step = f"u{rng.randrange(25)}", i if rng.random() < 0.8 else None
        features = {"a": {"p": rng.random()}, "b": {"p": None if i % 7 == 0 else 1.0}}
        fields = {"x": None if rng.random() < 0.1 else rng.gauss(0, 1), "t": rng.choice(["é", "b", None])}
        one = decision(f"d{i}", unit, i, step=step, action=rng.choice("ab"), features=features, **fields)
        decisions += [one, dict(one)] if rng.random() < 0.1 else [one]
        for j in range(rng.choice([0, 1, 1, 2])):
            ends = rng.choice([None, None, None, "terminated", "truncated"])
            told = outcome(f"o{i}-{j}", f"d{i}", i + rng.choice([0.5, 5, 50]), ends, r=rng.random(), c=1.0)
            outcomes += [told, dict(told)] if rng.random() < 0.1 else [told]
    outcomes.append(outcome("lost", "nobody", 3, r=1.0))
    return decisions, outcomes


WINDOW = {"since": 0, "until": FAR, "as_of": FAR}


def test_parts_hold_the_rows_of_the_whole(tables, one, tmp_path):
    for seed in range(1 if tables.distributed else 4):
        files = shuffled_log(tmp_path / str(seed), *mixed_log(seed), seed=seed)
        whole = timeline.build(one, problem(), files, **WINDOW)
        into = tmp_path / f"into{seed}"
        into.mkdir()
        parts = timeline.build_shards(tables, problem(), files, **WINDOW, settings=Settings(shards=3), into=into)
        assert rows(joined(parts)) == rows(whole)
        assert timeline.add_up([part.counts for part in parts]) == whole.counts
        assert [part.encoder for part in parts] == [whole.encoder] * len(parts)


def test_a_unit_is_in_one_part_and_parts_are_read_alone_and_together(one, tmp_path):
    decisions = [decision(f"d{i}", f"u{i % 20}", i, x=float(i)) for i in range(200)]
    files = log(tmp_path, decisions, [outcome(f"o{i}", f"d{i}", i + 1, r=1.0) for i in range(200)])
    into = tmp_path / "into"
    into.mkdir()
    parts = timeline.build_shards(one, problem(), files, **WINDOW, settings=Settings(shards=4), into=into)
    whole = rows(joined(parts))
    timeline.save(parts, tmp_path / "build")
    read = [timeline.load(path) for path in timeline.parts_of(tmp_path / "build")]
    units = [{id.split("d")[1] for id in part.decision_ids} for part in read]
    owners = [{int(number) % 20 for number in unit} for unit in units]
    assert sum(map(len, owners)) == 20 == len(set().union(*owners))
    assert rows(timeline.load(tmp_path / "build")) == whole
    assert timeline.profiles_of(tmp_path / "build") == parts[0].profiles != ()


def test_every_part_has_units_to_train_on_and_units_to_judge_on(one, tmp_path):
    decisions = [decision(f"d{i}", f"u{i}", i) for i in range(400)]
    into = tmp_path / "into"
    into.mkdir()
    shards = timeline.build_shards(
        one, problem(), log(tmp_path, decisions), **WINDOW, settings=Settings(shards=4), into=into
    )
    for part in shards:
        train, _, test = timeline.parts(part.unit, part.draws, 0.0, 0.3)
        assert 0.15 < len(test) / (len(train) + len(test)) < 0.45


def test_a_quantile_of_all_lengths_is_not_known_in_a_part(tables, tmp_path):
    settings = Settings(shards=2, max_length_quantile=0.9)
    with pytest.raises(DataError, match="lengths of all episodes"):
        timeline.build_shards(
            tables, problem(), log(tmp_path, [decision("d")]), **WINDOW, settings=settings, into=tmp_path
        )
