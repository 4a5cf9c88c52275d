"""A build in parts is the build in one part, unit for unit."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

import spark_here
from steersman import engine, timeline
from steersman.timeline import Built, Settings, statistics
from steersman.timeline.shards import joined
from timeline_log import FAR, Files, Row, S, decision, log, outcome, parquet, problem, shuffled_log, types

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
            bool(batch.limited[i]),
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
        features = {"a": {"p": rng.random(), "l": rng.sample("xyz", 2)}, "b": {"p": None if i % 7 == 0 else 1.0}}
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


def test_parts_hold_the_rows_of_the_whole(tables, one, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLE", 40)  # so that types are told from a sample, the same on every engine
    for seed in range(1 if tables.distributed else 4):
        files = shuffled_log(tmp_path / str(seed), *mixed_log(seed), seed=seed)
        whole = timeline.build(one, problem(), files, **WINDOW)
        into = tmp_path / f"into{seed}"
        into.mkdir()
        parts = timeline.build_shards(tables, problem(), files, **WINDOW, settings=Settings(shards=3), into=into)
        assert rows(joined(parts)) == rows(whole)
        assert timeline.add_up([part.counts for part in parts]) == whole.counts
        assert [part.encoder for part in parts] == [whole.encoder] * len(parts)
        assert parts[0].profiles == whole.profiles
        assert 0 < next(field.sampled for field in whole.profiles if field.name == "x") <= 60


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


@pytest.mark.parametrize("seed", [0, 1])
def test_a_quantile_is_of_the_lengths_of_all_parts(one, tmp_path, seed):
    rng = random.Random(seed)
    decisions, outcomes = mixed_log(seed)
    decisions += [decision(f"long{u}-{i}", f"long{u}", 1000 + i) for u in range(9) for i in range(rng.randint(20, 90))]
    outcomes += [outcome(f"end{u}", f"long{u}-9", 1010, "terminated", r=1.0) for u in range(3)]
    files = shuffled_log(tmp_path / "log", decisions, outcomes, seed)
    for quantile in (0.4, 0.9):
        settings = Settings(shards=3, max_length_quantile=quantile)
        whole = timeline.build(one, problem(), files, **WINDOW, settings=settings)
        into = tmp_path / f"into{quantile}"
        into.mkdir()
        parts = timeline.build_shards(one, problem(), files, **WINDOW, settings=settings, into=into)
        assert rows(joined(parts)) == rows(whole)
        assert timeline.add_up([part.counts for part in parts]) == whole.counts
        assert whole.counts.long_episodes > 0


def test_a_part_that_is_left_out_as_a_whole_is_counted(one, tmp_path):
    decisions = [decision(f"d{u}-{i}", f"u{u}", i) for u in range(6, 12) for i in range(9 if u == 7 else 2)]
    outcomes = [outcome(f"o{u}-{i}", f"d{u}-{i}", i + 1, r=1.0) for u in (7, 8) for i in range(2)]
    files, settings = log(tmp_path, decisions, outcomes), Settings(shards=20, max_length_quantile=0.8)
    whole = timeline.build(one, problem(), files, **WINDOW, settings=settings)
    (tmp_path / "into").mkdir()
    parts = timeline.build_shards(one, problem(), files, **WINDOW, settings=settings, into=tmp_path / "into")
    assert timeline.add_up([part.counts for part in parts]) == whole.counts
    assert (whole.counts.too_long, whole.counts.long_episodes, whole.counts.outcomes) == (9, 1, 4)
    assert len(parts) < 6


# --- windows that open in the middle of episodes


def days_log(seed: int) -> tuple[list[Row], list[Row]]:
    """Units that decide at odd times through two windows of 100 s, some with steps, some with ends."""
    rng = random.Random(seed)
    decisions, outcomes = [], []
    for u in range(30):
        at, step = rng.uniform(0, 60), 0
        counted = rng.random() < 0.5
        while at < 200:
            id = f"d{u}-{len(decisions)}"
            decisions.append(decision(id, f"u{u}", at, step=step if counted else None, x=rng.gauss(0, 1)))
            ends = rng.choice([None, None, None, None, "terminated", "truncated"])
            outcomes.append(outcome(f"o{id}", id, at + rng.choice([1, 5, 50]), ends, r=rng.random()))
            step = 0 if ends else step + 1
            at += rng.choice([0.5, 3, 8, 30])
    return decisions, outcomes


@pytest.mark.parametrize(("horizon", "horizon_s", "within_s"), [(5, None, None), (4, 15.0, 9.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_window_that_opens_in_the_middle_of_episodes_cuts_them_where_the_whole_log_does(
    tables, one, tmp_path, seed, horizon, horizon_s, within_s
):
    if tables.distributed and (seed or not within_s):
        return
    decisions, outcomes = days_log(seed)
    asked = problem(horizon=horizon, horizon_s=horizon_s)
    late = [row for row in decisions if row["at"] >= 100 * S]
    inside = log(tmp_path / "inside", late, outcomes)
    before = log(tmp_path / "before", [row for row in decisions if row["at"] < 100 * S]).decisions
    both = log(tmp_path / "both", decisions, outcomes)
    settings = Settings(within_s=within_s, lead_s=100.0)
    window = WINDOW | {"since": 100 * S}
    whole = timeline.build(one, asked, both, **WINDOW, settings=settings)
    want = {id: row for id, row in rows(whole).items() if id in {one["id"] for one in late}}
    encoder = whole.encoder
    apart = timeline.build(one, asked, inside, **window, settings=settings, encoder=encoder, before=before)
    together = timeline.build(one, asked, both, **window, settings=settings, encoder=encoder)
    (tmp_path / "into").mkdir()
    settings = msgspec.structs.replace(settings, shards=3)
    parts = timeline.build_shards(
        tables, asked, inside, **window, settings=settings, encoder=encoder, into=tmp_path / "into", before=before
    )
    assert rows(apart) == rows(together) == rows(joined(parts)) == want
    assert apart.digest == together.digest
    assert apart.counts == together.counts == timeline.add_up([part.counts for part in parts])
    start = dict(zip(whole.decision_ids, whole.batch.starts[whole.batch.episode], strict=True))
    begun = {id for id in want if whole.decision_ids[start[id]] not in want}
    assert {apart.decision_ids[row] for row in np.flatnonzero(apart.batch.begun)} == begun
    assert apart.counts.begun == len({start[id] for id in begun}) > 0
    limited = {whole.decision_ids[row] for row in np.flatnonzero(whole.batch.limited)}
    assert {apart.decision_ids[row] for row in np.flatnonzero(apart.batch.limited)} == limited & set(want)
    blind = timeline.build(one, asked, inside, **window, settings=settings, encoder=encoder)
    assert rows(blind) != want and blind.counts.begun == 0


def test_who_only_decided_before_the_window_and_what_ended_before_it_does_not_matter(one, tmp_path):
    decisions = [decision("a1", "a", 1), decision("b1", "b", 2), decision("b2", "b", 11), decision("c1", "c", 12)]
    outcomes = [outcome("o", "b1", 3, "terminated", r=1.0), outcome("p", "a1", 12, r=1.0)]
    files = log(tmp_path, decisions, outcomes)
    built = timeline.build(one, problem(wait_s=20.0), files, since=10 * S, until=FAR, as_of=FAR)
    assert (built.counts.begun, built.counts.decisions, built.counts.dangling) == (0, 2, 0)
    unended = timeline.build(one, problem(), log(tmp_path / "u", decisions), since=10 * S, until=FAR, as_of=FAR)
    assert unended.counts.begun == 1
    assert unended.decision_ids[unended.batch.begun].tolist() == ["b2"]


def test_a_deferred_decision_before_the_window_begins_nothing_unless_it_was_activated(one, tmp_path):
    decisions = [decision("d1", "u", 1) | {"deferred": True}, decision("d2", "u", 11)]
    for activated in (False, True):
        told = [outcome("o", "d1", 2, r=0.0) | {"activates": activated}]
        columns = [types(rows) | {name: "BOOLEAN"} for rows, name in ((decisions, "deferred"), (told, "activates"))]
        files = Files(
            [parquet(tmp_path / "decisions.parquet", decisions, columns[0])],
            [parquet(tmp_path / "outcomes.parquet", told, columns[1])],
        )
        assert timeline.build(one, problem(), files, since=10 * S, until=FAR, as_of=FAR).counts.begun == activated


def test_an_outcome_may_activate_all_decisions_of_a_unit(tables, one, tmp_path):
    units = ["u", "v", "w", "u/*"]
    decisions = [decision(f"{u}{i}", u, i) | {"deferred": u != "w"} for u in units for i in (1, 2)]
    told = [outcome("o", "u/*", 3, r=0.0), outcome("p", "v1", 3, r=2.0), outcome("q", "x/*", 3, r=0.0)]
    told = [row | {"activates": True} for row in told] + [outcome("l", "w1", 3, r=1.0) | {"activates": False}]
    columns = [types(rows) | {name: "BOOLEAN"} for rows, name in ((decisions, "deferred"), (told, "activates"))]
    files = Files(
        [parquet(tmp_path / "decisions.parquet", decisions, columns[0])],
        [parquet(tmp_path / "outcomes.parquet", told, columns[1])],
    )
    whole = timeline.build(one, problem(), files, **WINDOW)
    assert sorted(whole.decision_ids) == ["u1", "u2", "v1", "w1", "w2"]
    assert (whole.counts.deferred, whole.counts.dangling) == (3, 1)  # nobody has the unit x
    (tmp_path / "into").mkdir()
    parts = timeline.build_shards(
        tables, problem(), files, **WINDOW, settings=Settings(shards=2), into=tmp_path / "into"
    )
    assert rows(joined(parts)) == rows(whole)
    assert timeline.add_up([part.counts for part in parts]) == whole.counts


def test_where_a_quantile_leaves_episodes_out_those_before_the_window_count_and_their_decisions_do_not(one, tmp_path):
    decisions = [decision(f"d{u}-{i}", f"u{u}", i) for u in range(10) for i in range(30 if u == 3 else 12)]
    decisions += [decision(f"e{i}", "gone", i) for i in range(9)]
    settings = Settings(max_length_quantile=0.9)
    built = timeline.build(
        one, problem(), log(tmp_path, decisions), since=10 * S, until=FAR, as_of=FAR, settings=settings
    )
    assert (built.counts.max_length, built.counts.long_episodes, built.counts.too_long) == (12, 1, 20)
    assert (built.counts.decisions, built.counts.begun) == (18, 9)
