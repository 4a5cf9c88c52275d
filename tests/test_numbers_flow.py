"""Numbers as actions from a log to a report, through the verbs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import product
from steersman import flow, timeline
from steersman.config import Project
from steersman.core.density import Gaussian, Point
from steersman.core.policy import Policy
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


def imported(directory: Path, n: int = 1500) -> Project:
    """A project with a log of the world's behavior policy."""
    made = product.project(directory, TOML)
    batch = WORLD.sample(n, WORLD.policy(Gaussian(0.3, 0.2)), 1)
    lines = []
    for i in range(n):
        at = {"id": f"d{i}", "problem": "dose", "unit": f"u{i}", "at": i * S}
        action = {"action": batch.action[i].astype(float).tolist(), "propensity": float(batch.propensity[i])}
        lines.append(at | {"context": {"x": float(batch.context[i, 0])}} | action)
        lines.append({"id": f"o{i}", "decision": f"d{i}", "at": i * S, "metrics": {"gain": float(batch.reward[i])}})
    source = directory / "log.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    flow.import_log(made, "dose", flow.read_source(source), 0.0)
    return made


@pytest.mark.parametrize("explorer", [Gaussian(0.2, 0.1), Point()], ids=str)
def test_a_log_of_numbers_is_built_and_a_policy_judged_on_it(tmp_path, explorer):
    made = imported(tmp_path)
    built = flow.build(made, "dose", until=LATER, as_of=LATER)
    assert built.decisions == 1500
    target = WORLD.policy(explorer, 0.5, 0.2)
    encoder = timeline.load(Path(built.directory)).encoder
    column = encoder.context_columns().index("x")
    transform = encoder.context[0]

    def scorer(context: np.ndarray, none: np.ndarray) -> np.ndarray:
        x = context[:, column].astype(np.float64) * transform.std + transform.mean
        return target.scorer(x[:, None].astype(np.float32), none)

    report = flow.judge_policy(made, "dose", Policy(encoder, scorer, explorer), "0" * 64)
    assert report.headline.estimator == ("dr" if target.explorer != Point() else "kernel-dr")
    assert report.headline.low <= WORLD.value(target) <= report.headline.high
    assert report.decisions == 1500
    assert report.passed
