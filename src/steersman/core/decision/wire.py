"""The nouns as JSON: a decoder whose errors name the field, and their schemas."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from steersman.core.decision.logged import Decision, Outcome
from steersman.core.decision.problem import Problem
from steersman.core.errors import DataError

T = TypeVar("T")


def decoder(kind: type[T]) -> Callable[[bytes | bytearray | memoryview], T]:
    """A function from JSON bytes to the noun, every violation raised as DataError with the field's path."""
    decode = msgspec.json.Decoder(kind).decode

    def decode_noun(body: bytes | bytearray | memoryview) -> T:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            raise _refusal(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"not valid JSON: {error}", hint="send one JSON object, encoded as UTF-8") from None

    return decode_noun


_PLACED = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)
_NAMED = re.compile(r"(?:missing required|unknown) field `(.*)`", re.DOTALL)


def _refusal(text: str) -> DataError:
    """The error with the path of its field; a field that is missing or unknown is the last part of the path."""
    placed = _PLACED.fullmatch(text)
    message, path = placed.groups() if placed else (text, "")
    named = _NAMED.search(message)
    field = f"{path}.{named[1]}" if named else path
    return DataError(message, field=field.removeprefix("."))


def json_schemas() -> dict[str, Any]:
    """JSON Schema (2020-12) of every noun that crosses the wire or the log, by name."""
    _, components = msgspec.json.schema_components([Problem, Decision, Outcome], ref_template="#/$defs/{name}")
    return {
        name: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$ref": f"#/$defs/{name}",
            "$defs": components,
        }
        for name in ("Problem", "Decision", "Outcome")
    }
