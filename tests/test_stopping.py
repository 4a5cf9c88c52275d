"""Ctrl-C and SIGTERM: the exit code of a killed process, a line that says how to go on, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bandit_project import TOML, offers
from product import project
from steersman import __main__, engine, log
from steersman.cli.stopping import Stop, stoppable
from steersman.flow.checkpoint import CHECKPOINT

LONG = TOML.replace("validation = 0.2", "checkpoint_steps = 50").replace("= 400", "= 1000000")

SLOW_TO_TIDY = """
import time
from steersman.cli.stopping import stoppable
with stoppable():
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("tidies up", flush=True)
        time.sleep(60)
"""


def stopped(number: signal.Signals, arguments: list[str], begun: Callable[[], object]) -> tuple[int, str, str]:
    """Run a command, send it a signal once it has begun; its exit code, stdout and stderr."""
    command = [sys.executable, "-m", "steersman", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not begun():
            assert process.poll() is None, "it ended before it was seen to begin"
            time.sleep(0.002)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "code", "option"),
    [(signal.SIGINT, 130, ()), pytest.param(signal.SIGTERM, 143, ("--json",), marks=pytest.mark.slow)],
    ids=["ctrl-c", "term"],
)
def test_a_training_that_is_stopped_keeps_its_checkpoint_and_says_so(tmp_path: Path, number, code, option) -> None:
    made = offers(tmp_path, LONG, n=200)
    arguments = ["train", "offer", "--project", str(tmp_path), "--device", "cpu", *option]
    got, out, err = stopped(number, arguments, lambda: list(tmp_path.glob(f"candidates/offer/*/{CHECKPOINT}")))
    told = [
        f"stopped by {number.name}",
        "from its last checkpoint, if there is one, the same command with --resume goes on",
    ]
    if option:
        assert (got, err, json.loads(out)) == (code, "", {"error": told[0], "hint": told[1], "field": ""})
    else:
        assert (got, out, err) == (code, "", f"error  {told[0]}\nhint   {told[1]}\n")
    [checkpoint] = made.root.glob("candidates/offer/*/*")
    assert checkpoint.name == CHECKPOINT
    assert not list(tmp_path.rglob("*.part"))


def test_an_import_that_is_stopped_has_imported_nothing(tmp_path: Path) -> None:
    made = project(tmp_path / "shop")
    source, mapping = tmp_path / "own.csv", tmp_path / "mapping.toml"
    rows = [f"2026-01-01 00:00:{number % 60:02d},u{number},hi,0.5" for number in range(60_000)]
    source.write_text("\n".join(["sent,user,greeting,chance", *rows]))
    mapping.write_text('at = "sent"\nunit = "\\"user\\""\naction = "greeting"\npropensity = "chance"\n')
    arguments = ["log", "import", str(source), "--name", "greeting", "--mapping", str(mapping)]
    arguments += ["--project", str(made.root), "--json"]
    begun = lambda: list((made.log_directory / "imported").rglob("*.seg"))  # noqa: E731
    got, out, err = stopped(signal.SIGTERM, arguments, begun)
    hint = "run it again: it is imported whole or not at all, and counts once"
    assert (got, json.loads(out), err) == (143, {"error": "stopped by SIGTERM", "hint": hint, "field": ""}, "")
    assert not list(log.read(made.log_directory))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_query_that_is_interrupted_is_a_stop_at_once_and_not_an_error_of_the_database(threads: int) -> None:
    """Asked by itself DuckDB heard no signal until the query ended, on two threads once in twelve times."""
    opened = engine.open("duckdb", threads=threads)
    for _ in range(5):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Stop) as stop, stoppable():
            opened.query("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b")
        assert stop.value.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert opened.query("SELECT 1 AS one")["one"].tolist() == [1]
    opened.close()


def test_the_second_signal_does_not_wait() -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW_TO_TIDY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in ("begun\n", "tidies up\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_while_the_commands_are_loaded(monkeypatch, capsys) -> None:
    class Pressed:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "steersman.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "steersman.cli")
    monkeypatch.setattr(sys, "meta_path", [Pressed(), *sys.meta_path])
    assert __main__.main() == 130
    assert capsys.readouterr() == ("", "stopped before it began\n")
