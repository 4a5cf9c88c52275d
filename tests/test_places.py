"""What one verb leaves for the next: found, not there, or damaged, and told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steersman.core.errors import DataError, NotFoundError
from steersman.flow import places, watching


@pytest.mark.parametrize("body", [b"", b'{"problem": "half', b"[1]", b'{"problem": "\xff"}'])
@pytest.mark.parametrize(
    "file, reading", [("candidate.json", places.read_candidate), (watching.LEARNING, watching.read)]
)
def test_a_damaged_file_is_named(file: str, reading: Callable[[Path], Any], body: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(body)
    with pytest.raises(DataError, match=rf"{file} is damaged") as caught:
        reading(tmp_path)
    assert "restore it" in caught.value.hint


def test_a_file_that_is_not_there_is_not_damaged(tmp_path: Path) -> None:
    assert places.read(tmp_path / "report.json", int) is None
    assert watching.read(tmp_path) == ()
    with pytest.raises(NotFoundError, match="holds no candidate"):
        places.read_candidate(tmp_path)
    places.write_bytes(tmp_path / "n.json", b"7")
    assert places.read(tmp_path / "n.json", int) == 7
