"""One tree of errors: each class knows its exit code and its HTTP status; each instance its hint."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


class Error(Exception):
    """Whatever Steersman refuses or cannot do: what, where, which number, and what to do about it.

    Args:
        message: what is wrong, where, with the number.
        hint: what to do next, one sentence.
        field: the name of the field that is wrong, if there is one, e.g. `candidates[2].id`.
    """

    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(Error):
    """steersman.toml or a command line says something we do not understand."""

    exit_code = 2
    http_status = 500


class DataError(Error):
    """A row, a request or a file breaks a law of its noun."""

    exit_code = 3
    http_status = 400


class SupportError(DataError):
    """The log cannot answer the question: what the target policy does was never logged."""

    exit_code = 4
    http_status = 422


class GateError(Error):
    """A gate failed, so nothing was released."""

    exit_code = 5
    http_status = 409


class NotFoundError(Error):
    """No such policy, version, decision, build or file."""

    exit_code = 6
    http_status = 404


class ConflictError(Error):
    """It exists already, or somebody else holds it."""

    exit_code = 7
    http_status = 409


class MissingExtra(Error):
    """An optional part of Steersman is not installed."""

    exit_code = 8
    http_status = 501

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"{module} is not installed",
            hint=f'pip install "steersman[{extra}]"',
        )
        self.args = (module, extra)  # what pickle makes it from again


class ParityError(Error):
    """An exported graph does not give the numbers of the policy it was exported from."""

    exit_code = 9
    http_status = 500


class TrainingError(Error):
    """Training diverged or ended without a usable policy."""

    exit_code = 10
    http_status = 500


class TooLargeError(DataError):
    """A request is over a declared limit."""

    http_status = 413


class OverloadedError(Error):
    """The server cannot take this request now."""

    exit_code = 11
    http_status = 503


class DiskError(Error):
    """A file could not be read or written: the disk is full, or it is not ours to use."""

    exit_code = 12
    http_status = 507


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for a word we do not know: the closest known one, or else `otherwise`, or all of them.

    >>> did_you_mean("dicount", ["discount", "reward"])
    'did you mean discount?'
    """
    names = sorted(itertools.islice(known, 1000))
    close = difflib.get_close_matches(word[:200], names, n=1)  # its time grows with the square of the length
    if close:
        return f"did you mean {close[0]}?"
    if otherwise:
        return otherwise
    return f"known: {', '.join(names)}" if names else "none is known here"
