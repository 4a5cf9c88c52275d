"""What might have been written in steersman.toml where msgspec refuses what was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct, inspect

from steersman.core.errors import did_you_mean


def hint(kind: type[Struct], message: str, path: str) -> str:
    """A hint for a refused value or key; empty if nothing is known of it.

    Args:
        kind: what the table should have been.
        message: of msgspec, without its path.
        path: of msgspec, e.g. `$.explorer.kind`.

    >>> from steersman.config.sections import LearnConfig
    >>> hint(LearnConfig, "Invalid enum value 'bst'", "$.keep")
    'did you mean best?'
    """
    word = re.search(r"['`](.*)['`]$", message)
    if word is None or message.startswith(("Expected", "Object missing")):
        return ""
    steps = re.findall(r"\.(\w+)|\[(.+?)\]", path)
    if message.startswith("Object contains unknown field"):
        return did_you_mean(word[1], _keys(_at(inspect.type_info(kind), steps)))
    if message.startswith("Invalid enum value"):
        return did_you_mean(word[1], _values(_at(inspect.type_info(kind), steps)))
    if message.startswith("Invalid value"):  # of the key that says which Struct it is
        return did_you_mean(word[1], _tags(_at(inspect.type_info(kind), steps[:-1])))
    return ""


def _parts(found: inspect.Type) -> Iterator[inspect.Type]:
    yield from found.types if isinstance(found, inspect.UnionType) else (found,)


def _at(found: inspect.Type, steps: list[tuple[str, str]]) -> list[inspect.Type]:
    """All that may stand there."""
    now = list(_parts(found))
    for name, _ in steps:
        after = list[inspect.Type]()
        for one in now:
            if name and isinstance(one, inspect.StructType):
                after += [part for field in one.fields if field.encode_name == name for part in _parts(field.type)]
            elif isinstance(one, inspect.DictType):
                after += _parts(one.value_type)
            elif isinstance(one, inspect.VarTupleType | inspect.ListType):
                after += _parts(one.item_type)
        now = after
    return now


def _keys(there: list[inspect.Type]) -> set[str]:
    return {field.encode_name for one in there if isinstance(one, inspect.StructType) for field in one.fields}


def _values(there: list[inspect.Type]) -> set[Any]:
    return {str(value) for one in there if isinstance(one, inspect.LiteralType) for value in one.values}


def _tags(there: list[inspect.Type]) -> set[str]:
    return {str(one.tag) for one in there if isinstance(one, inspect.StructType) and one.tag is not None}
