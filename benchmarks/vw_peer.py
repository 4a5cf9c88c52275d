"""Vowpal Wabbit's command line driver: logs as the text that it reads, what it learns of them, and what that takes.

It runs in an environment of its own. A decision is `--cb_explore_adf`'s: a line of the context, a line a candidate,
the taken one with cost (minus the reward) and propensity; `-q UA` gives it all products of context and candidate.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peers import environment

Array = np.ndarray

VERSION = "vowpalwabbit==9.11.9"
ADF = ("--cb_explore_adf", "-q", "UA", "--quiet")


def python() -> Path | None:
    """The Python that has it; None, and a message: it can not be had."""
    return environment("vw-venv", "vowpalwabbit", (VERSION,))


@dataclass(frozen=True)
class Took:
    """Seconds of one run: of the wall clock, and of the process's own CPU, its threads added up."""

    wall_s: float
    cpu_s: float


def write(
    path: Path, numbers: Array, actions: int, action: Array | None = None, cost: Array | None = None,
    propensity: Array | None = None,
) -> None:  # fmt: skip
    """A log as text; without actions it can only be asked for predictions.

    Args:
        numbers: [N, F] of the context.
        actions: K, named.
        action, cost, propensity: [N].
    """
    candidates = [f"|A a{k}\n" for k in range(actions)]
    with path.open("w") as file:
        for row in range(len(numbers)):
            file.write("shared |U ")
            file.write(" ".join(f"{i}:{value:.5g}" for i, value in enumerate(numbers[row].tolist()) if value))
            file.write("\n")
            if action is None or cost is None or propensity is None:
                file.writelines(candidates)
            else:
                taken = int(action[row])
                file.writelines(candidates[:taken])
                file.write(f"0:{cost[row]:.6g}:{propensity[row]:.6g} {candidates[taken]}")
                file.writelines(candidates[taken + 1 :])
            file.write("\n")


def run(python: Path, arguments: Sequence[str]) -> Took:
    """One run of the driver."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [str(python), "-m", "vowpalwabbit", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"vowpalwabbit {' '.join(arguments)} ended with {process.returncode}: {said.decode()[-500:]}")
    return Took(time.perf_counter() - begun, usage.ru_utime + usage.ru_stime)


def greedy(python: Path, model: Path, asked: Path) -> Array:
    """[N] the candidate that a model finds best, for a log without actions."""
    out = asked.with_suffix(".predictions")
    run(python, ("-t", "-i", str(model), "-d", str(asked), "-p", str(out), "--quiet"))
    lines = [line for line in out.read_text().splitlines() if line]
    return np.array([int(line.partition(":")[0]) for line in lines])
