"""Compaction and the merging of its files: whatever crashes, every record is there once."""

from __future__ import annotations

import os
import random
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from compacted import (
    ALWAYS,
    DAY,
    T0,
    decision,
    import_at_once,
    no_wait_for_the_disk,  # noqa: F401  (a fixture of every test)
    outcome,
    rows,
    write,
)
from steersman import log
from steersman.engine import Engine
from steersman.log.manifest import read_manifest
from steersman.log.merge import FEWEST, GRACE_S


class Crash(BaseException):
    """Not an Exception: nothing may catch it and tidy up as if the process were still there."""


STEPS = ("fsync", "replace", "unlink", "mkdir", "rmdir")


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
    import_at_once(origin, decision("d3"), b"bad")
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
            some = (decision(f"d{kill}-{part}-{i}", at=T0 + part * DAY) for i in range(200))
            (import_at_once if part % 2 else write)(tmp_path, *some)
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
    assert not list((directory / "imported").glob("*"))
    assert not [path for path in directory.rglob("*") if path.name.endswith(".part")]
