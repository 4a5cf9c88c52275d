"""The examples run as they stand: each file is written, each command ends with 0."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.md")), ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands(example: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(example.read_text())
    assert blocks
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    where = {"cwd": tmp_path, "env": {**os.environ, "PATH": path}}
    for language, file, text in blocks:
        if file:
            (tmp_path / file).write_text(text)
            continue
        assert language == "sh"
        for command in text.splitlines():
            done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True, **where)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
