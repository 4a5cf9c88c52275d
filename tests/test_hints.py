"""What hints, docs and help tell people to type is a command, with options that it has."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from steersman import cli

ROOT = Path(__file__).parents[1]
TEXTS = [
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
TOLD = re.compile(r"(?<![\w./:-])steersman ((?:[a-z]+ )?[a-z]+)\b(?:(?!steersman|, | or )[^`\"'\n#;|()])*")


def commands(parser: argparse.ArgumentParser, *words: str) -> dict[str, argparse.ArgumentParser]:
    """Every command by its words."""
    found = {" ".join(words): parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                found |= commands(child, *words, word)
    return found


COMMANDS = commands(cli.parser())
LEAVES = [name for name, parser in COMMANDS.items() if name and not parser._subparsers]


def wrong(text: str) -> list[str]:
    """Commands with an option that they do not have; words that follow the name in a sentence are no command."""
    found = []
    for match in TOLD.finditer(text):
        words = match[1].split()
        name = next((some for some in (" ".join(words), words[0]) if some in COMMANDS), None)
        told = re.findall(r"(?<!\S)--[a-z-]+", match[0])
        if name is None:
            found += [match[0]] * bool(told)
        else:
            found += [match[0] for option in told if option not in COMMANDS[name]._option_string_actions]
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_told_exist(path: Path) -> None:
    assert wrong(path.read_text()) == []


def test_a_wrong_option_would_be_seen() -> None:
    assert wrong("hint: steersman train offer --resum goes on") == ["steersman train offer --resum goes on"]
    assert wrong("steersman trian offer --resume") == ["steersman trian offer --resume"]
    assert wrong("steersman train offer --resume, steersman es run --world cartpole") == []


def test_the_docs_tell_every_command() -> None:
    docs = "\n".join(path.read_text() for path in TEXTS if path.suffix == ".md")
    assert [name for name in LEAVES if f"steersman {name}" not in docs] == []


NEED_NO_PROJECT = ("demo", "init", "key", "log schema", "es run")


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in NEED_NO_PROJECT])
def test_every_command_tells_an_error_as_one_json_object(name: str, tmp_path: Path, capsys) -> None:
    given = {"--trials": "1", "--name": "offer", "names": "offer", "name": "offer@1", "decision": "d1"}
    needed = [action for action in COMMANDS[name]._actions if action.required]
    words = [part for one in needed for part in (*one.option_strings, given[(*one.option_strings, one.dest)[0]])]
    assert cli.main([*name.split(), *words, "--project", str(tmp_path), "--json"]) == 2
    out, err = capsys.readouterr()
    assert (err, json.loads(out)["error"]) == ("", f"{tmp_path}/steersman.toml is not there")
