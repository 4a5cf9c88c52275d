"""Compaction: every record in Parquet once, whoever writes beside it, and files that are listed where they belong."""

from __future__ import annotations

import fcntl
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from compacted import (
    ALWAYS,
    DAY,
    T0,
    decision,
    import_at_once,
    no_wait_for_the_disk,  # noqa: F401  (a fixture of every test)
    outcome,
    record,
    rows,
    write,
)
from steersman import log
from steersman.core.errors import ConflictError, DataError
from steersman.engine import Engine
from steersman.log.segment import MAGIC, frame, segments, segments_directory


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


def test_what_was_imported_is_read_found_and_compacted_once(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision("before"))
    nouns = [decision(f"d{i}", context={"text": "x" * 1000}) for i in range(10)]
    import_at_once(tmp_path, *nouns)
    import_at_once(tmp_path, outcome("o1"))
    write(tmp_path, decision("after"))
    assert len(segments(tmp_path)) > 5
    names = ["before", *(noun.id for noun in nouns), "o1", "after"]
    assert [msgspec.json.decode(record.body)["id"] for record in log.read(tmp_path)] == names  # oldest segment first
    assert log.find(tmp_path, "d7", engine) == nouns[7]
    done = log.compact(tmp_path, {}, engine)
    assert (done.decisions, done.outcomes, done.swept) == (12, 1, 0)
    assert log.find(tmp_path, "d7", engine) == nouns[7]
    assert segments(tmp_path) == []
    assert list((tmp_path / "imported").iterdir()) == []
    assert log.compact(tmp_path, {}, engine) == log.Compacted()


def test_a_compaction_removes_what_a_killed_import_left_and_leaves_a_living_one_alone(
    tmp_path: Path, engine: Engine
) -> None:
    dead = tmp_path / "imported" / ".x.0123456789abcdef.part" / "segments"
    with log.at_once(tmp_path) as pen:
        pen.append([record(decision("alive"))])
        pen.flush()
        dead.mkdir(parents=True)
        (dead / "1.seg").write_bytes(MAGIC + frame(*record(decision("dead"))))
        assert log.compact(tmp_path, {}, engine) == log.Compacted(swept=1)
    assert log.compact(tmp_path, {}, engine).decisions == 1
    assert [row["id"] for row in rows(tmp_path, engine)] == ["alive"]


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


def test_a_file_that_no_manifest_names_is_never_listed(tmp_path: Path, engine: Engine) -> None:
    write(tmp_path, decision())
    log.compact(tmp_path, {}, engine)
    (path,) = log.files(tmp_path, "ctr", *ALWAYS).decisions
    orphan = Path(path).with_name("0000000000000001-1-00000000-16-99.parquet")
    shutil.copy(path, orphan)
    notes = Path(path).with_name("notes.txt")
    notes.write_text("not ours")
    half, beside = (
        folder / f".{name}.0123456789abcdef.part"
        for folder, name in ((tmp_path, "manifest.json"), (orphan.parent, "x"))
    )
    for folder in (half, beside):
        folder.mkdir()
        (folder / orphan.name).write_text("{")
    unborn = segments_directory(tmp_path) / ".1-1-0.new"
    unborn.write_bytes(MAGIC)
    assert len(rows(tmp_path, engine)) == 1
    assert log.compact(tmp_path, {}, engine).swept == 4
    assert [path for path in (orphan, half, beside, unborn, notes) if path.exists()] == [notes]


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
