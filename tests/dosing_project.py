"""A project with a log of actions that are numbers for tests, of a world whose values are known."""

from __future__ import annotations

import json
from pathlib import Path

import product
from steersman import flow
from steersman.config import Project
from steersman.core.density import Gaussian
from steersman.worlds.dosing import Dosing

TOML = """
[problem.dose]
actions = { kind = "numbers", low = [-1.0], high = [3.0] }
reward = "gain"
wait_s = 0
context = { x = "number" }
"""
S = 1_000_000
WORLD = Dosing()
LATER = 10_000 * S


def imported(directory: Path, n: int = 1500, **outcome: str) -> Project:
    """A project with a log of the world's behavior policy; `outcome` is what its outcomes say besides."""
    made = product.project(directory, TOML)
    batch = WORLD.sample(n, WORLD.policy(Gaussian(0.3, 0.2)), 1)
    lines = []
    for i in range(n):
        at = {"id": f"d{i}", "problem": "dose", "unit": f"u{i}", "at": i * S}
        action = {"action": batch.action[i].astype(float).tolist(), "propensity": float(batch.propensity[i])}
        lines.append(at | {"context": {"x": float(batch.context[i, 0])}} | action)
        metrics = {"metrics": {"gain": float(batch.reward[i])}}
        lines.append({"id": f"o{i}", "decision": f"d{i}", "at": i * S} | metrics | outcome)
    source = directory / "log.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    flow.import_log(made, "dose", flow.read_source(source), 0.0)
    return made
