"""Compaction: every record in Parquet once, whatever crashes, and found again field for field."""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from steersman import log
from steersman.core.decision import Candidate, Decision, One, Outcome, Problem
from steersman.core.errors import ConflictError, DataError, NotFoundError
from steersman.engine import Engine, identifier
from steersman.log import fields
from steersman.log.manifest import read_manifest
from steersman.log.merge import FEWEST, GRACE_S
from steersman.log.pen import fresh_name
from steersman.log.segment import MAGIC, frame, segments, segments_directory

DAY = 86_400_000_000
T0 = 1_700_006_400_000_000  # 2023-11-15 00:00:00 UTC
ALWAYS = (0, 1 << 62)


def decision(id: str = "d1", **changes: Any) -> Decision:
    values: dict[str, Any] = {
        "problem": "ctr", "unit": "u1", "at": T0, "context": {"age": 41.0, "country": "nl"},
        "candidates": (Candidate("a", {"price": 1.5}), Candidate("b", {"price": None})), "action": "a",
        "propensity": 0.25, "version": 3, "step": 7,
    }  # fmt: skip
    return Decision(id=id, **values | changes)


def outcome(id: str = "o1", **changes: Any) -> Outcome:
    return Outcome(id=id, **{"decision": "d1", "at": T0 + 5, "metrics": {"clicks": 1.0}} | changes)


def problem(**changes: Any) -> Problem:
    values: dict[str, Any] = {"name": "ctr", "actions": One(names=("a", "b")), "reward": "clicks", "wait_s": 60.0}
    return Problem(**values | changes)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power losses are not among the crashes here, so nothing needs to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


Noun = Decision | Outcome | bytes


def write(directory: Path, *nouns: Noun) -> None:
    with log.Pen(directory, durability="buffered") as pen:
        pen.append([record(noun) for noun in nouns])


def record(noun: Noun) -> tuple[bytes, bytes]:
    if isinstance(noun, bytes):
        return log.DECISION, noun
    return log.DECISION if isinstance(noun, Decision) else log.OUTCOME, msgspec.json.encode(noun)


def rows(directory: Path, engine: Engine, kind: str = "decisions", name: str = "ctr") -> list[dict[str, Any]]:
    """Rows of the files that the log lists, NaN and arrays as None and lists."""
    paths = getattr(log.files(directory, name, *ALWAYS), kind)
    if not paths:
        return []
    engine.view("t", paths)
    columns = engine.query("SELECT * FROM t")
    return [
        {key: plain(value) for key, value in zip(columns, values, strict=True)}
        for values in zip(*columns.values(), strict=True)
    ]


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [plain(element) for element in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def test_the_columns_are_those_of_the_layout(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision(noise=2**64 - 1), outcome(ends="terminated"), outcome("o2", metrics={"cost": 0.5}))
    done = log.compact(tmp_path, {}, engine)
    assert (done.decisions, done.outcomes, done.files, done.segments, done.aside) == (1, 2, 2, 1, 0)
    assert rows(tmp_path, engine) == [
        {
            "id": "d1", "unit": "u1", "at": T0, "step": 7, "action": "a", "propensity": 0.25, "version": 3,
            "noise": 2**64 - 1, "nulls": ["candidates.1.price"], "context.age": 41.0, "context.country": "nl",
            "candidates.id": ["a", "b"], "candidates.price": [1.5, None],
        }
    ]  # fmt: skip
    assert rows(tmp_path, engine, "outcomes") == [
        {"id": "o1", "decision": "d1", "at": T0 + 5, "ends": "terminated", "metrics.clicks": 1.0, "metrics.cost": None},
        {"id": "o2", "decision": "d1", "at": T0 + 5, "ends": None, "metrics.clicks": None, "metrics.cost": 0.5},
    ]


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


def test_files_lie_by_problem_and_day_in_utc(tmp_path: Path, engine: Engine) -> None:
    write(
        tmp_path, decision("a", at=T0 - 1), decision("b"), decision("c", problem="other"), outcome(at=T0 + DAY)
    )  # fmt: skip
    log.compact(tmp_path, {}, engine)
    places = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet"))
    assert places == [
        "parquet/decisions/problem=ctr/date=2023-11-14",
        "parquet/decisions/problem=ctr/date=2023-11-15",
        "parquet/decisions/problem=other/date=2023-11-15",
        "parquet/outcomes/date=2023-11-16",
    ]


def test_files_of_a_window_hold_its_decisions_and_their_outcomes(tmp_path: Path, engine: Engine) -> None:
    for day in range(5):
        write(tmp_path, decision(f"d{day}", at=T0 + day * DAY), outcome(f"o{day}", at=T0 + day * DAY + 1))
    log.compact(tmp_path, {}, engine)
    every = log.files(tmp_path, "ctr", *ALWAYS)
    assert (len(every.decisions), len(every.outcomes)) == (5, 5)
    window = (T0 + DAY, T0 + 2 * DAY)
    assert log.files(tmp_path, "ctr", *window, wait_s=86_400).decisions == every.decisions[1:2]
    assert log.files(tmp_path, "ctr", *window, wait_s=86_400).outcomes == every.outcomes[:3]
    assert log.files(tmp_path, "ctr", *window, wait_s=0, early_s=0).outcomes == every.outcomes[1:2]
    assert log.files(tmp_path, "ctr", T0 + DAY + 1, T0 + 2 * DAY).decisions == []
    assert log.files(tmp_path, "nobody", *ALWAYS).decisions == []


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


def test_a_second_compaction_reads_only_what_is_new(tmp_path: Path, engine: Engine) -> None:
    with log.Pen(tmp_path) as pen:
        pen.append([record(decision("d1"))])
        pen.flush()
        assert log.compact(tmp_path, {}, engine).decisions == 1
        assert log.compact(tmp_path, {}, engine) == log.Compacted()
        pen.append([record(decision("d2")), record(outcome())])
        pen.flush()
        done = log.compact(tmp_path, {}, engine)
        assert (done.decisions, done.outcomes, done.segments) == (1, 1, 0)
    assert log.compact(tmp_path, {}, engine) == log.Compacted(segments=1)
    assert segments(tmp_path) == []
    assert [row["id"] for row in rows(tmp_path, engine)] == ["d1", "d2"]


def test_a_live_segment_is_never_removed_and_a_dead_writers_is(tmp_path: Path, engine: Engine) -> None:
    pen = log.Pen(tmp_path)
    pen.append([record(decision())])
    pen.flush()
    log.compact(tmp_path, {}, engine)
    assert len(segments(tmp_path)) == 1
    pen.append([record(decision("d2"))])
    pen.close()
    assert log.compact(tmp_path, {}, engine).segments == 1
    assert [row["id"] for row in rows(tmp_path, engine)] == ["d1", "d2"]


def test_the_torn_tail_of_a_killed_writer_is_counted_once_and_never_fatal(tmp_path: Path, engine: Engine) -> None:
    folder = segments_directory(tmp_path)
    folder.mkdir(parents=True)
    whole = frame(*record(decision()))
    (folder / "1.seg").write_bytes(MAGIC + whole + whole[:-4] + bytes(4096))
    done = log.compact(tmp_path, {}, engine)
    assert (done.decisions, done.torn, done.segments) == (1, 1, 1)
    assert log.compact(tmp_path, {}, engine) == log.Compacted()


def test_a_damaged_segment_is_read_around_reported_and_kept(tmp_path: Path, engine: Engine) -> None:
    folder = segments_directory(tmp_path)
    folder.mkdir(parents=True)
    one, two = frame(*record(decision("d1"))), frame(*record(decision("d2")))
    (folder / "1.seg").write_bytes(MAGIC + one[:-1] + b"?" + two)
    done = log.compact(tmp_path, {}, engine)
    assert [(one.segment, one.offset) for one in done.damage] == [("1.seg", len(MAGIC))]
    assert [row["id"] for row in rows(tmp_path, engine)] == ["d2"]
    assert [path.name for path in folder.iterdir()] == ["1.seg.damaged"]


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


def test_only_one_compaction_at_a_time(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision())
    inside, go = threading.Event(), threading.Event()
    failures: list[Exception] = []

    class Slow(Forwarding):
        def copy(self, sql: str, path: Path) -> int:
            inside.set()
            assert go.wait(60)
            return super().copy(sql, path)

    def first() -> None:
        try:
            log.compact(tmp_path, {}, Slow(engine))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    with pytest.raises(ConflictError):
        log.compact(tmp_path, {}, engine)
    go.set()
    thread.join()
    assert failures == []
    assert log.compact(tmp_path, {}, engine) == log.Compacted()
    assert len(rows(tmp_path, engine)) == 1


class Forwarding:
    """An engine around an engine, to interfere with."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.engine = engine

    def view(self, name: str, files: Sequence[str]) -> None:
        self.engine.view(name, files)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        return self.engine.query(sql, parameters)

    def copy(self, sql: str, path: Path) -> int:
        return self.engine.copy(sql, path)

    def close(self) -> None:
        self.engine.close()


class Crash(BaseException):
    """Not an Exception: nothing may catch it and tidy up as if the process were still there."""


STEPS = ("fsync", "replace", "unlink", "mkdir")


def crashing(monkeypatch: pytest.MonkeyPatch, countdown: int) -> Callable[[], int]:
    """From here on step number `countdown` of all that change the disk for good raises, and so do all later ones."""
    left = [countdown]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return real(*args, **kwargs)

        return call

    for step in STEPS:
        monkeypatch.setattr(os, step, wrap(getattr(os, step)))
    return lambda: left[0]


def test_a_crash_at_any_step_of_a_compaction_loses_and_doubles_nothing(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = tmp_path / "origin"
    write(origin, decision("d1"), decision("d2", at=T0 + DAY), outcome("o1"))
    write(origin, decision("d3"), b"bad")
    crashes = 0
    for countdown in range(1000):
        directory = tmp_path / str(countdown)
        shutil.copytree(origin, directory)
        with monkeypatch.context() as patch:
            left = crashing(patch, countdown)
            try:
                log.compact(directory, {}, engine)
                assert left() >= 0
            except Crash:
                crashes += 1
        check_all_there(directory, engine)
        if left() >= 0:
            break
        # The pen goes on before the next compaction, as a server that was started again would.
        write(directory, decision("later"))
        log.compact(directory, {}, engine)
        found = sorted(row["id"] for row in rows(directory, engine))
        assert found == ["d1", "d2", "d3", "later"], countdown
        assert [row["id"] for row in rows(directory, engine, "outcomes")] == ["o1"]
        lines = [line for path in (directory / "aside").iterdir() for line in path.read_text().splitlines()]
        assert len(lines) == 1
        assert log.compact(directory, {}, engine) == log.Compacted()
        assert_no_remains(directory)
        shutil.rmtree(directory)
    assert crashes > 30


KILLED = """
import pathlib, sys
from steersman import engine, log
duckdb = engine.open("duckdb", threads=1)
print("ready", flush=True)
for directory in sys.stdin:
    log.compact(pathlib.Path(directory.strip()), {}, duckdb)
    print("done", flush=True)
"""


@pytest.mark.slow
def test_a_compaction_that_is_really_killed_loses_and_doubles_nothing(tmp_path: Path, engine: Engine) -> None:
    moments = random.Random(3)
    for kill in range(20):
        for part in range(5):
            write(tmp_path, *(decision(f"d{kill}-{part}-{i}", at=T0 + part * DAY) for i in range(200)))
        with subprocess.Popen(
            [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            process.stdin.write(f"{tmp_path}\n")
            process.stdin.flush()
            select.select([process.stdout], [], [], moments.uniform(0, 0.15))
            process.kill()
    log.compact(tmp_path, {}, engine)
    found = sorted(row["id"] for row in rows(tmp_path, engine))
    assert found == sorted(f"d{kill}-{part}-{i}" for kill in range(20) for part in range(5) for i in range(200))
    assert_no_remains(tmp_path)


# --- merging


def some_days(directory: Path, engine: Engine, times: int = FEWEST) -> list[str]:
    """So many compactions of two days of two problems, with columns that come and go; the ids."""
    ids = []
    for i in range(times):
        ids += [f"a{i}", f"b{i}", f"c{i}"]
        more = {"context": {"tags": () if i == 0 else ("x",), "late": float(i)}} if i % 2 == 0 else {}
        write(
            directory,
            decision(f"a{i}", noise=2**64 - 1 - i, deferred=i == 3, **more),
            decision(f"b{i}", at=T0 + DAY + i),
            decision(f"c{i}", problem="other"),
            outcome(f"o{i}", decision=f"a{i}", metrics={"clicks": float(i)} if i else {"cost": 1.0}),
        )
        log.compact(directory, {}, engine, lambda: 1e9)
    return ids


def known(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without their nulls, by id."""
    stripped = ({name: value for name, value in row.items() if value is not None} for row in found)
    return sorted(stripped, key=lambda row: row["id"])


def test_small_files_become_one_that_says_the_same_and_stay_for_a_day(tmp_path: Path, engine: Engine) -> None:
    some_days(tmp_path, engine, FEWEST - 1)
    apart = [len(log.files(tmp_path, name, *ALWAYS).decisions) for name in ("ctr", "other")]
    assert apart == [2 * (FEWEST - 1), FEWEST - 1]
    kept = [known(rows(tmp_path, engine, *which)) for which in (("decisions",), ("outcomes",), ("decisions", "other"))]
    old = log.files(tmp_path, "ctr", *ALWAYS)
    write(tmp_path, decision("z"), decision("y", at=T0 + DAY), decision("x", problem="other"), outcome("w"))
    assert log.compact(tmp_path, {}, engine, lambda: 1e9).merged == 4 * FEWEST
    files = log.files(tmp_path, "ctr", *ALWAYS)
    assert (len(files.decisions), len(files.outcomes)) == (2, 1)
    now = [known(rows(tmp_path, engine, *which)) for which in (("decisions",), ("outcomes",), ("decisions", "other"))]
    new = ({"z", "y"}, {"w"}, {"x"})
    assert [[row for row in some if row["id"] not in added] for some, added in zip(now, new, strict=True)] == kept
    assert [{row["id"] for row in some} & added for some, added in zip(now, new, strict=True)] == list(new)
    day = log.files(tmp_path, "ctr", T0 + DAY, T0 + 2 * DAY).decisions
    assert len(day) == 1
    assert day != files.decisions[:1]
    assert log.find(tmp_path, "a3", engine).deferred
    assert log.find(tmp_path, "a0", engine).noise == 2**64 - 1
    assert all(Path(path).exists() for path in old.decisions)
    assert log.compact(tmp_path, {}, engine, lambda: 1e9 + GRACE_S - 1) == log.Compacted()
    assert all(Path(path).exists() for path in old.decisions)
    assert log.compact(tmp_path, {}, engine, lambda: 1e9 + GRACE_S) == log.Compacted()
    assert not any(Path(path).exists() for path in (*old.decisions, *old.outcomes))
    assert read_manifest(tmp_path).retired == ()
    assert_no_remains_of(tmp_path, ("ctr", "other"))


def test_a_large_file_is_left_alone(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steersman.log.merge.SMALL_BYTES", 1)
    ids = some_days(tmp_path, engine, FEWEST + 1)
    assert len(log.files(tmp_path, "other", *ALWAYS).decisions) == FEWEST + 1
    assert len(ids) == 3 * len(log.files(tmp_path, "other", *ALWAYS).decisions)


def test_a_crash_at_any_step_of_a_merge_loses_and_doubles_nothing(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steersman.log.merge.FEWEST", 3)
    origin = tmp_path / "origin"
    ids = some_days(origin, engine, 2)
    write(origin, decision("a2"), decision("b2", at=T0 + DAY), decision("c2", problem="other"))
    crashes = 0
    for countdown in range(1000):
        directory = tmp_path / str(countdown)
        shutil.copytree(origin, directory)
        with monkeypatch.context() as patch:
            left = crashing(patch, countdown)
            try:
                log.compact(directory, {}, engine, lambda: 1e9 + 2 * GRACE_S)
            except Crash:
                crashes += 1
        for id in (*ids, "a2", "b2", "c2"):
            assert log.find(directory, id, engine).id == id, countdown
        # A day later another one goes on, and removes what was merged.
        log.compact(directory, {}, engine, lambda: 1e9 + 4 * GRACE_S)
        log.compact(directory, {}, engine, lambda: 1e9 + 6 * GRACE_S)
        for name, letters in (("ctr", "ab"), ("other", "c")):
            found = sorted(row["id"] for row in rows(directory, engine, name=name))
            assert found == sorted(f"{letter}{i}" for letter in letters for i in range(3)), countdown
        assert len(log.files(directory, "ctr", *ALWAYS).decisions) == 2
        assert_no_remains_of(directory, ("ctr", "other"))
        shutil.rmtree(directory)
        if left() >= 0:
            break
    assert crashes > 20


def assert_no_remains_of(directory: Path, problems: Sequence[str]) -> None:
    listed = [log.files(directory, name, *ALWAYS) for name in problems]
    parquet = {str(path) for path in directory.rglob("*.parquet*")}
    assert parquet == {path for files in listed for path in (*files.decisions, *files.outcomes)}


def check_all_there(directory: Path, engine: Engine) -> None:
    """Even before the next compaction every record is found, and the listed files hold none twice."""
    ids = [row["id"] for row in rows(directory, engine)]
    assert len(ids) == len(set(ids))
    for id in ("d1", "d3"):
        assert log.find(directory, id, engine).id == id


def assert_no_remains(directory: Path) -> None:
    listed = log.files(directory, "ctr", *ALWAYS)
    files = {str(path) for path in directory.rglob("*") if path.is_file()}
    aside = {str(path) for path in (directory / "aside").glob("*.jsonl")}
    assert files == {
        *listed.decisions, *listed.outcomes, *aside, str(directory / "manifest.json"), str(directory / "compact.lock"),
        *(str(directory / one.path) for one in read_manifest(directory).retired),
    }  # fmt: skip


def test_a_file_that_no_manifest_names_is_never_listed(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision())
    log.compact(tmp_path, {}, engine)
    (path,) = log.files(tmp_path, "ctr", *ALWAYS).decisions
    orphan = Path(path).with_name("0000000000000001-1-00000000-16-99.parquet")
    shutil.copy(path, orphan)
    notes = Path(path).with_name("notes.txt")
    notes.write_text("not ours")
    half = tmp_path / ".manifest.json.1.part"
    half.write_text("{")
    unborn = segments_directory(tmp_path) / ".1-1-0.new"
    unborn.write_bytes(MAGIC)
    assert len(rows(tmp_path, engine)) == 1
    assert log.compact(tmp_path, {}, engine).swept == 3
    assert [path for path in (orphan, half, unborn, notes) if path.exists()] == [notes]


def test_a_segment_that_a_pen_is_about_to_name_is_left_alone(tmp_path: Path, engine: Engine) -> None:
    folder = segments_directory(tmp_path)
    folder.mkdir(parents=True)
    empty, locked = folder / ".1-1-0.new", folder / ".2-1-0.new"
    empty.touch()
    with locked.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(MAGIC)
        file.flush()
        assert log.compact(tmp_path, {}, engine) == log.Compacted()
    assert empty.exists()
    assert locked.exists()


def test_a_manifest_that_is_not_ours_is_an_error_and_nothing_is_overwritten(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision())
    (tmp_path / "manifest.json").write_text("{broken")
    with pytest.raises(DataError, match="manifest"):
        log.compact(tmp_path, {}, engine)
    assert len(segments(tmp_path)) == 1


def test_pens_that_come_and_go_without_a_word_do_not_disturb_a_compaction(tmp_path: Path, engine: Engine) -> None:
    over = threading.Event()

    def come_and_go() -> None:
        for _ in range(40):
            log.Pen(tmp_path, segment_bytes=4096).close()
        over.set()

    write(tmp_path, decision())
    thread = threading.Thread(target=come_and_go)
    thread.start()
    done = log.compact(tmp_path, {}, engine)
    while not over.is_set():
        assert log.compact(tmp_path, {}, engine).decisions == 0
        assert log.find(tmp_path, "d1", engine) == decision()
    thread.join()
    assert done.decisions == 1
    assert segments(tmp_path) == []


def test_compaction_and_find_beside_a_writer_lose_and_double_nothing(tmp_path: Path, engine: Engine) -> None:
    total = 600
    written = threading.Event()

    def write_all() -> None:
        with log.Pen(tmp_path, durability="buffered", segment_bytes=1 << 14) as pen:
            for i in range(total):
                pen.append([record(decision(f"d{i}"))])
                if i % 20 == 0:
                    pen.flush()
        written.set()

    thread = threading.Thread(target=write_all)
    thread.start()
    compacted = 0
    while not written.is_set():
        compacted += log.compact(tmp_path, {}, engine).decisions
    thread.join()
    compacted += log.compact(tmp_path, {}, engine).decisions
    assert compacted == total
    found = [row["id"] for row in rows(tmp_path, engine)]
    assert sorted(found) == sorted(f"d{i}" for i in range(total))
    assert segments(tmp_path) == []


def test_columns_may_be_selected_by_their_quoted_names(tmp_path: Path, engine: Engine) -> None:
    odd = 'a"b, c'
    write(tmp_path, decision(context={odd: 2.0}))
    log.compact(tmp_path, {}, engine)
    engine.view("t", log.files(tmp_path, "ctr", *ALWAYS).decisions)
    assert engine.query(f"SELECT {identifier(f'context.{odd}')} AS x FROM t")["x"].tolist() == [2.0]
