"""The public API on one screen, and nothing that is named there is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import steersman


@pytest.mark.parametrize("name", [*steersman.__all__, *steersman._VERBS])
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(steersman, name).__doc__


def test_the_nouns_alone_load_neither_database_nor_graph_runtime_nor_server() -> None:
    script = "import sys, steersman; print(*{'duckdb', 'onnx', 'onnxruntime', 'torch', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = steersman.nothing
