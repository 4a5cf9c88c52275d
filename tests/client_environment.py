"""Unmodified clients of other servers, each with the Python of an environment of its own: what they need clashes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from peers import environment

CLIENTS = {"tritonclient": ("tritonclient.grpc", "tritonclient[http,grpc]==2.73.0")}


def ask(client: str, script: str, *arguments: object) -> dict[str, str]:
    """What the script of a client printed; skips if there is no such client here."""
    module, package = CLIENTS[client]
    python = environment(client, module, (package,))
    if python is None:
        pytest.skip(f"{package} can not be installed here")
    command = [str(python), str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
