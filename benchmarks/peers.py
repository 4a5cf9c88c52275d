"""What benchmarks share: peers, each in an environment and a process of its own; and the machine, in words."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

CACHE = Path(__file__).parent.parent / ".cache"


class Peer:
    """A process that answers commands: a line of JSON each way."""

    def __init__(self, python: Path, script: str) -> None:
        """`script` is a file beside this one."""
        self.script = script
        self.process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name(script))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command of the script."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.script} ended at {do} {arguments}; run it by hand to see why")
        return json.loads(line)

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def environment(name: str, module: str, *installs: tuple[str, ...]) -> Path | None:
    """The Python of a peer's environment, which is made in .cache if it is not there; None: it can not be had.

    Args:
        name: of the folder.
        module: what must be importable afterwards.
        installs: arguments of one `pip install` after the other.
    """
    folder = CACHE / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if stamp.exists():
        return python
    print(f"making the environment of {module} in {folder}", file=sys.stderr)
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    steps = (
        (sys.executable, "-m", "venv", "--clear", str(folder)),
        *((*pip, *install) for install in installs),
        (str(python), "-W", "ignore", "-c", f"import {module}"),
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            by_hand = ", then ".join(f"pip install {' '.join(install)}" for install in installs)
            print(
                f"{module} is left out: {' '.join(step[1:])} ended with {done.returncode}: {last}\n"
                f"It needs a package registry and a Python that it supports. By hand: a venv in {folder}, in it "
                f"{by_hand}, then touch {stamp}",
                file=sys.stderr,
            )
            return None
    stamp.touch()
    return python


def device() -> str:
    """The machine, in words."""
    model = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), model)
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
