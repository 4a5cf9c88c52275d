"""A disk that refuses: an error that says so, an exit code of its own, and nothing half-written."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import product
from steersman import flow, timeline
from steersman.config import Project
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


def test_what_a_killed_build_left_is_swept_and_what_a_living_one_makes_is_not(made):
    place = made.root / "builds" / "greeting"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = place / f".making-{ended.pid}-x", place / ".making-1-x"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
        (folder / "large.npy").write_bytes(b"x")
    flow.build(made, "greeting", as_of=N * S)
    assert not dead.exists()
    assert alive.exists()


def test_an_import_that_does_not_fit_says_so_and_can_be_run_again(made, tmp_path):
    some = tmp_path / "some.jsonl"
    some.write_text("".join((tmp_path / "log.jsonl").read_text().splitlines(keepends=True)[:200]))
    words = ("log", "import", str(some), "--name", "greeting", "--json")
    done = steersman(*words, project=made, largest_file=1 << 20)  # a segment begins with more than that
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (12, "")
    assert told["error"].endswith("can not be written: File too large")
    assert told["hint"].endswith("run it again: what is in the log already counts once")
    assert not list((made.log_directory / "segments").glob("*"))
    done = steersman(*words, project=made, largest_file=resource.RLIM_INFINITY)
    assert (done.returncode, json.loads(done.stdout)["decisions"]) == (0, 100)
