"""The commands: the answer for people and as JSON, and an exit code for each class of error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from product import Client, project, serving
from steersman import cli, log
from steersman.core.errors import DiskError


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    assert cli.main(["init", str(tmp_path), "--name", "timing"]) == 0
    return tmp_path


def test_init_writes_a_file_that_runs_and_never_writes_over_one(shop: Path, capsys) -> None:
    before = (shop / "steersman.toml").read_text()
    code, _, err = run(capsys, "init", str(shop))
    assert (code, "is there already" in err) == (7, True)
    assert (shop / "steersman.toml").read_text() == before
    code, out, _ = run(capsys, "status", "--project", str(shop), "--json")
    [row] = json.loads(out)["policies"]
    assert (code, row["versions"], row["aliases"]) == (0, [1], {"champion": 1})
    assert "champion 1" in run(capsys, "status", "--project", str(shop))[1]


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a]\n[log"])
def test_a_name_that_is_none_is_refused_before_anything_is_written(tmp_path: Path, capsys, name) -> None:
    code, _, err = run(capsys, "init", str(tmp_path / "new"), "--name", name)
    assert (code, "must match" in err) == (2, True)
    assert not (tmp_path / "new").exists()


def test_init_can_be_run_again_where_version_1_could_not_be_stored(tmp_path: Path, capsys) -> None:
    (tmp_path / "warehouse").write_text("in the way")
    assert run(capsys, "init", str(tmp_path))[0] != 0
    assert [path.name for path in tmp_path.iterdir()] == ["warehouse"]
    (tmp_path / "warehouse").unlink()
    assert run(capsys, "init", str(tmp_path))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["build", "timing"], 3, "window"),
        (["build", "timin"], 6, "did you mean timing?"),
        (["train", "timing"], 6, "steersman build timing"),
        (["evaluate", "timing"], 6, "steersman train timing"),
        (["evaluate", "timing@7"], 6, "version"),
        (["export", "timing"], 6, "steersman train timing"),
        (["publish", "timing"], 6, "steersman train timing"),
        (["promote", "timing"], 6, "steersman publish timing"),
        (["rollout", "timing", "--share", "0.1"], 6, "steersman publish timing"),
        (["promote", "timing@9"], 6, "version"),
        (["rollback", "timing"], 7, "version"),
        (["replay", "nothing"], 6, "decide"),
        (["log", "import", "absent.csv", "--name", "timing"], 3, ""),
    ],
)
def test_what_can_not_be_done_says_why_and_what_next(shop: Path, capsys, arguments, code, hint) -> None:
    got, out, err = run(capsys, *arguments, "--project", str(shop))
    assert (got, out) == (code, "")
    assert hint in err
    got, out, _ = run(capsys, *arguments, "--project", str(shop), "--json")
    assert got == code
    assert sorted(json.loads(out)) == ["error", "field", "hint"]


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("reward =", "rewrad =", "did you mean reward?"),
        ('learner = "dqn"', 'lerner = "dqn"', "did you mean learner?"),
        ("wait_s = 600", "wait_s = -1", "wait_s is -1"),
        ("wait_s = 600", 'wait_s = "600"', "problem.timing.wait_s: Expected `float`, got `str`"),
        ("wait_s = 600", "wait_s = 600\nwait_s = 500", "(at line 36, column 13)"),
        ("[engine]", "[engin]", "did you mean engine?"),
        ("[engine]", "[log]", "(at line 28, column 5)"),
        ('# keep = "best"', 'keep = "bst"', "did you mean best?"),
        ('kind = "epsilon", epsilon', 'kind = "epslon", epsilon', "did you mean epsilon?"),
        ('kind = "epsilon", epsilon', 'kind = "epsilon", epsilo', "did you mean epsilon?"),
        ('hour = "number"', 'hour = "nmber"', "did you mean number?"),
        ('kind = "epsilon", epsilon = 0.1', 'kind = "epsilon", epsilon = 1.1', ""),
        ('kind = "one"', 'kind = "won"', "did you mean one?"),
        ('{ kind = "one", names = ["now", "tonight"] }', '{ kind = ["one"] }', "did you mean one?"),
        ("[problem.timing]", "[problem.timing", ""),
        ("[problem.timing]", "[problem]\nother = 3\n[problem.timing]", "problem.other is 3, must be a table"),
        ('# url = "warehouse" ', "url = 3 #", "warehouse.url"),
        ('# url = "models" ', 'url = ["models"] #', "models.url"),
        ("wait_s = 600", f"wait_s = {'[' * 2000}", "recursion"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(shop: Path, capsys, old, new, hint) -> None:
    path = shop / "steersman.toml"
    path.write_text(path.read_text().replace(old, new))
    code, out, err = run(capsys, "status", "--project", str(shop))
    assert (code, out) == (2, "")
    assert hint in err


@pytest.mark.parametrize(
    ("body", "code", "line", "hint"),
    [
        (b"", 2, "declares no problem", "add a table [problem.NAME]"),
        (b"# caf\xe9\n[log]\n", 2, "byte 5 is not UTF-8", "save it as UTF-8"),
        ("[log]".encode("utf-16"), 2, "byte 0 is not UTF-8", "save it as UTF-8"),
        (None, 12, "Is a directory", "a file that we may read"),
    ],
)
def test_a_file_that_is_no_settings_is_told(shop: Path, capsys, body, code, line, hint) -> None:
    path = shop / "steersman.toml"
    path.unlink()
    path.mkdir() if body is None else path.write_bytes(body)
    got, out, err = run(capsys, "status", "--project", str(shop))
    assert (got, out) == (code, "")
    assert (line in err.splitlines()[0], hint in err.splitlines()[1]) == (True, True), err


def test_settings_that_begin_with_a_mark_are_read(shop: Path, capsys) -> None:
    path = shop / "steersman.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert run(capsys, "status", "--project", str(shop))[0] == 0


def test_the_log_is_compacted_and_counted_once(tmp_path: Path, capsys) -> None:
    made = project(tmp_path)
    with serving(made) as url:
        for number in range(5):
            assert Client(url).post("/v1/decide/greeting", {"unit": f"u{number}"})[0] == 200
    code, out, _ = run(capsys, "log", "compact", "--project", str(tmp_path))
    assert code == 0
    assert "5 decisions and 0 outcomes" in out
    code, out, _ = run(capsys, "log", "--json", "--project", str(tmp_path), "compact")
    assert (code, json.loads(out)["decisions"]) == (0, 0)
    assert not list(log.read(made.log_directory))


def test_the_schema_of_every_noun_is_printed(capsys) -> None:
    code, out, _ = run(capsys, "log", "schema")
    assert code == 0
    assert {"Problem", "Decision", "Outcome"} <= set(json.loads(out))


def test_a_date_that_is_none_is_refused_with_an_example(capsys) -> None:
    code, _, err = run(capsys, "build", "timing", "--since", "yesterday")
    assert code == 2
    assert "2026-11-01T12:00:00Z" in err


def test_a_command_line_that_is_wrong_is_told_as_json_too(capsys) -> None:
    code, out, err = run(capsys, "train", "timing", "--sed", "1", "--json")
    assert (code, err) == (2, "")
    assert json.loads(out) == {"error": "unrecognized arguments: --sed 1", "hint": "steersman --help", "field": ""}
    code, out, err = run(capsys, "evaluate")
    assert (code, out) == (2, "")
    assert "steersman evaluate --help" in err


@pytest.mark.parametrize("name", ["\\[/x]", "[/x]", "[red]x", ":x:"])
def test_any_name_is_told_as_it_is(tmp_path: Path, capsys, name) -> None:
    assert run(capsys, "status", "--project", str(tmp_path / name))[2].startswith(f"error  {tmp_path / name}/steersman")


@pytest.mark.parametrize("name", ["[bold]x", "[/x]", "\\[x]"])
def test_a_path_is_printed_as_it_is_where_all_went_well(tmp_path: Path, capsys, name) -> None:
    directory = tmp_path / name
    code, out, _ = run(capsys, "init", str(directory))
    assert (code, out.splitlines()[0]) == (0, f"wrote  {directory}/steersman.toml")
    assert out.splitlines()[2] == f"next   steersman serve --project {directory}"


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_output_that_nobody_reads_on_ends_as_a_pipe_does(shop: Path, option) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as closed:
        assert _status(shop, *option, stdout=closed) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_output_on_a_full_disk_is_an_error_like_any_other(shop: Path, option) -> None:
    with Path("/dev/full").open("w") as full:
        code, err = _status(shop, *option, stdout=full)
    assert (code, err.splitlines()[0]) == (DiskError.exit_code, "error  No space left on device")


def test_the_exit_code_tells_where_nothing_else_can(shop: Path) -> None:
    command = [sys.executable, "-m", "steersman", "train", "nope", "--project", str(shop)]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == 6


def _status(shop: Path, *option: str, stdout: IO[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "steersman", "status", "--project", str(shop), *option]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr
