"""What ids, policies, fields and metrics may be called."""

from __future__ import annotations

import re

from steersman.core.errors import DataError

MAX_ID = 200

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\- ]{0,127}")


def check_id(field: str, value: str) -> None:
    """Raise DataError unless the id has 1 to 200 characters, all of them printable."""
    if 0 < len(value) <= MAX_ID and value.isprintable():
        return
    if value.isprintable():
        raise DataError(f"{field} has {len(value)} characters, must be 1 to {MAX_ID}", field=field)
    raise DataError(f"{field} {value[:MAX_ID]!r} has a character that is not printable", field=field)
