"""A disk that refuses: an error that says so, an exit code of its own, and nothing half-written."""

from __future__ import annotations

import itertools
import json
import linecache
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import product
from steersman import flow, timeline
from steersman.config import Project
from steersman.engine import disk
from timeline_log import S

N = 20_000


@pytest.fixture
def made(tmp_path: Path) -> Project:
    """A project with a log of N decisions, as Parquet."""
    lines = []
    for i in range(N):
        names = [{"id": id} for id in ("hello", "hi", "welcome")]
        decision = {"id": f"d{i}", "problem": "greeting", "unit": f"u{i % 500}", "at": i * S, "action": "hi"}
        lines.append(decision | {"context": {"hour": i % 24 + 0.5}, "candidates": names, "propensity": 1 / 3})
        lines.append({"id": f"o{i}", "decision": f"d{i}", "at": i * S, "metrics": {"clicks": float(i % 2)}})
    source = tmp_path / "log.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    project = product.project(tmp_path / "shop")
    flow.import_log(project, "greeting", flow.read_source(source, None, form="", sql="", propensities="logged"))
    flow.compact(project)
    return project


def steersman(*words: str, project: Project, largest_file: int) -> subprocess.CompletedProcess[str]:
    """A command that may write files of so many bytes and no larger: the way a user's process can be refused."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = [sys.executable, "-m", "steersman", *words, "--project", str(project.root)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)


def builds(project: Project) -> list[str]:
    return sorted(path.name for path in (project.root / "builds" / "greeting").glob("*"))


def test_a_build_that_does_not_fit_leaves_nothing_and_says_why(made):
    done = steersman("build", "greeting", project=made, largest_file=N * 4)
    assert done.returncode == 12, done.stderr
    assert "error" in done.stderr
    assert "Traceback" not in done.stderr
    assert builds(made) == []


def test_columns_that_can_not_be_encoded_are_an_error_and_are_made_again_later(made):
    built = flow.build(made, "greeting", as_of=N * S)
    directory = Path(built.directory)
    done = steersman("train", "greeting", project=made, largest_file=N * 9)  # [N, 2] f64 fits, [N, 5] f32 does not
    assert done.returncode == 12, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(directory.glob("*encoded_context*"))
    assert len(timeline.load(directory).batch) == N


def test_encoded_columns_that_were_damaged_are_made_again(made):
    built = flow.build(made, "greeting", as_of=N * S)
    first = np.array(timeline.load(Path(built.directory)).batch.context)
    path = Path(built.directory) / "encoded_context.npy"
    body = bytearray(path.read_bytes())
    body[-3] ^= 0x40
    path.write_bytes(body)
    np.testing.assert_array_equal(timeline.load(Path(built.directory)).batch.context, first)


def test_what_a_killed_build_left_is_swept_by_the_next_one(made):
    place = made.root / "builds" / "greeting"
    command = [sys.executable, "-m", "steersman", "build", "greeting", "--project", str(made.root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as building:
        while not (left := [path for path in place.rglob("*.npy") if ".part" in str(path)]):
            assert building.poll() is None, "it ended before it was seen to begin"
            time.sleep(0.001)
        building.kill()
    assert building.returncode == -signal.SIGKILL
    assert left
    assert any(path.name.endswith(".part") for path in place.iterdir())
    built = flow.build(made, "greeting", as_of=N * S)
    assert sorted(path.name for path in place.iterdir()) == sorted(["LATEST", Path(built.directory).name])


WRITING = """
import pathlib, sys, time
from steersman.engine import disk
kind, path = sys.argv[1], pathlib.Path(sys.argv[2])
with getattr(disk, kind)(path) as aside:
    (aside if kind == "replacing" else aside / "half").write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["replacing", "appearing", "beside"])
def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path, kind: str) -> None:
    def writer(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITING, kind, str(tmp_path / name)]
        begun = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert begun.stdout is not None
        assert begun.stdout.readline() == "begun\n"
        return begun

    def there() -> list[str]:
        return sorted(path.name.strip(".").split(".")[0] for path in tmp_path.iterdir())

    with writer("dead") as dead, writer("alive") as alive:
        dead.kill()
        dead.wait()
        assert there() == ["alive", "dead"]
        with disk.replacing(tmp_path / "other") as aside:
            assert there() == ["alive", "other"]
            aside.write_text("whole")
        assert there() == ["alive", "other"]
        assert [path.read_text() for path in tmp_path.rglob("half" if kind != "replacing" else "alive")] == ["half"]
        alive.kill()
        alive.wait()
        assert disk.sweep(tmp_path) == 1
    assert there() == ["other"]


def test_what_is_not_ours_is_not_swept(tmp_path: Path) -> None:
    names = (".x.part", "x.0123456789abcdef.part", ".x.0123456789abcdef.part.old", ".x.0123456789ABCDEF.part")
    for name in names:
        (tmp_path / name).mkdir()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    (tmp_path / ".link.0123456789abcdef.part").symlink_to(elsewhere)
    (tmp_path / ".file.0123456789abcdef.part").write_text("")
    before = set(tmp_path.rglob("*"))
    assert disk.sweep(tmp_path) == 0
    assert set(tmp_path.rglob("*")) == before


def test_an_import_that_does_not_fit_says_so_and_can_be_run_again(made, tmp_path):
    some = tmp_path / "some.jsonl"
    some.write_text("".join((tmp_path / "log.jsonl").read_text().splitlines(keepends=True)[:200]))
    words = ("log", "import", str(some), "--name", "greeting", "--json")
    done = steersman(*words, project=made, largest_file=1 << 20)  # a segment begins with more than that
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (12, "")
    assert told["error"].endswith("can not be written: File too large")
    assert told["hint"].endswith("run it again: it is imported whole or not at all, and counts once")
    assert not list((made.log_directory / "imported").glob("*"))
    done = steersman(*words, project=made, largest_file=resource.RLIM_INFINITY)
    assert (done.returncode, json.loads(done.stdout)["decisions"]) == (0, 100)


def test_a_signal_at_any_line_leaves_nothing_beside(tmp_path: Path) -> None:
    """KeyboardInterrupt is raised at the first, the second, ... line of disk.py that runs, until none is reached."""
    for wanted in itertools.count(1):
        left = itertools.count(1)

        def trace(frame: FrameType, event: str, argument: object, left: Any = left, wanted: int = wanted) -> Any:
            if frame.f_code.co_filename != disk.__file__:
                return None
            line = linecache.getline(disk.__file__, frame.f_lineno).strip()
            if event == "line" and line != "try:" and next(left) == wanted:  # no signal is heard at a try
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with disk.replacing(tmp_path / "a") as path:
                path.write_bytes(b"whole")
            done = True
        except KeyboardInterrupt:
            done = False
        finally:
            sys.settrace(before)
        assert [one.name for one in tmp_path.iterdir()] in ([], ["a"])
        if done:
            break
    assert wanted > 30
