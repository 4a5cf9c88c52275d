"""The tree of errors: codes, statuses, hints."""

import copy
import pickle

import pytest

from steersman.core import errors
from steersman.core.errors import DataError, Error, MissingExtra, SupportError, TooLargeError, did_you_mean

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Error)]


def make(kind: type[Error]) -> Error:
    return kind("torch", "learn") if kind is MissingExtra else kind("what", hint="do this", field="where")


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_a_code_a_status_and_a_docstring(kind):
    assert 1 <= kind.exit_code <= 125  # above: taken by shells
    assert 400 <= kind.http_status < 600
    assert kind.__doc__


def test_exit_codes_tell_errors_apart():
    codes = {kind: kind.exit_code for kind in ALL if kind is not TooLargeError}
    assert len(set(codes.values())) == len(codes)
    assert TooLargeError.exit_code == DataError.exit_code


def test_what_the_client_did_wrong_is_a_4xx():
    assert {kind.http_status for kind in (DataError, SupportError, TooLargeError)} == {400, 422, 413}


def test_the_hint_is_part_of_the_text():
    assert str(DataError("row 3: bad", hint="log less")) == "row 3: bad (log less)"
    assert str(DataError("row 3: bad")) == "row 3: bad"


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "process"])
def test_an_error_crosses_to_another_process_whole(kind, again):
    error = make(kind)
    assert vars(again(error)) == vars(error)
    assert str(again(error)) == str(error)


def test_a_missing_extra_names_the_exact_command():
    assert MissingExtra("torch", "learn").hint == 'pip install "steersman[learn]"'


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("dicount", ["reward", "discount"], "did you mean discount?"),
        ("zzz", ["b", "a"], "known: a, b"),
        ("zzz", [], "none is known here"),
        ("", ["a"], "known: a"),
    ],
)
def test_a_word_we_do_not_know_gets_the_nearest_or_all_that_we_know(word, known, hint):
    assert did_you_mean(word, known) == hint
    assert did_you_mean(word, iter(known)) == hint
