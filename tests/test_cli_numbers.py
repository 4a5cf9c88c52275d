"""Numbers on a command line: whatever the command, one that is out of range is told before anything is done."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from steersman import cli
from steersman.cli import numbers


def commands(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that can be run: its words, and the parser of its options."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not actions:
        yield words, parser
    for action in actions:
        for word, child in action.choices.items():
            yield from commands(child, *words, word)


COMMANDS = list(commands(cli.parser()))

NUMBERS = [
    pytest.param(words, parser, action, id=" ".join([*words, action.option_strings[0]]))
    for words, parser in COMMANDS
    for action in parser._actions
    if action.type is not None and getattr(action.type, "__module__", "") in (numbers.__name__, "builtins")
]


def given(words: tuple[str, ...], parser: argparse.ArgumentParser, option: str, text: str) -> list[str]:
    """The shortest command line with that option."""
    needed = [
        word
        for action in parser._actions
        if action.dest != "help" and action.required and option not in action.option_strings
        for word in (*action.option_strings[:1], str(next(iter(action.choices or ["1"]))))
    ]
    return [*words, *needed, option, text]


def test_no_option_takes_any_number_there_is() -> None:
    bare = [
        action.option_strings for _, parser in COMMANDS for action in parser._actions if action.type in (int, float)
    ]
    assert not bare
    seeds = {words[0] for words, parser in COMMANDS if "--seed" in parser.format_help()}
    assert seeds == {"demo", "train", "simulate", "tune", "evaluate", "compare", "es"}


@pytest.mark.parametrize(("words", "parser", "action"), NUMBERS)
@pytest.mark.parametrize("text", ["nan", "many", "", "1e400", "9_"])
def test_what_is_no_number_in_range_is_told_with_the_option(words, parser, action, text, capsys) -> None:
    option = action.option_strings[0]
    assert cli.main(given(words, parser, option, text)) == 2
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0].startswith(f"error  argument {option}: {text!r} is no ")) == ("", True), err
    assert err.splitlines()[1] == f"hint   steersman {' '.join(words)} --help"


@pytest.mark.parametrize(("words", "parser", "action"), [one for one in NUMBERS if "--seed" in one.id])
def test_every_seed_is_what_numpy_and_torch_take(words, parser, action, tmp_path: Path, capsys) -> None:
    for text in ("-1", "1e3", "0.5", "9223372036854775808", "99999999999999999999"):
        assert cli.main(given(words, parser, "--seed", text)) == 2
        assert f"{text!r} is no whole number from 0 to 9223372036854775807" in capsys.readouterr().err
    for text in ("0", "9223372036854775807"):
        assert cli.parser().parse_args(given(words, parser, "--seed", text)).seed == int(text)


def test_numbers_below_0_may_be_written_in_any_form(tmp_path: Path, capsys) -> None:
    written = ["-1e3", "-1E-3", "-.5", "-5."]
    found = cli.parser().parse_args(["init", "--low", *written, "--high", *written])
    assert found.low == found.high == [-1000.0, -0.001, -0.5, -5.0]
    assert cli.main(["init", str(tmp_path), "--low", "-1e3", "--high", "-1e2"]) == 0
    assert "low = [-1000.0], high = [-100.0]" in (tmp_path / "steersman.toml").read_text()


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (numbers.count, ["1", "30000"], ["0", "-5", "1.0"]),
        (numbers.port, ["0", "65535"], ["-1", "65536", "99999"]),
        (numbers.share, ["0", "0.5", "1"], ["-0.1", "1.5", "inf"]),
        (numbers.real(0), ["0", "1e6"], ["-1", "inf"]),
        (numbers.finite, ["-1e300", "0"], ["inf", "-inf", "1e400"]),
    ],
)
def test_ranges_hold_their_ends(type_, good, bad) -> None:
    assert [float(type_(text)) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is no "):
            type_(text)
