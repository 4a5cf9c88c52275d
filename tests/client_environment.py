"""Unmodified clients of other servers, each with the Python of an environment of its own: what they need clashes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from peers import environment

CLIENTS = {
    "tritonclient": ("tritonclient.grpc", ("tritonclient[http,grpc]==2.73.0",)),
    # The stubs need nothing of TensorFlow but its messages, and not what TensorFlow needs.
    "tensorflow-serving-api": (
        "tensorflow_serving.apis",
        ("numpy", "grpcio", "protobuf", "grpcio-health-checking"),
        ("--no-deps", "tensorflow-cpu==2.21.0", "tensorflow-serving-api==2.21.0"),
    ),
}


def ask(client: str, script: str, *arguments: object) -> dict[str, str]:
    """What the script of a client printed; skips if there is no such client here."""
    module, *installs = CLIENTS[client]
    python = environment(client, module, *installs)
    if python is None:
        pytest.skip(f"{client} can not be installed here; what pip said, and how to do it by hand, is on stderr")
    command = [str(python), str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
