"""Classification data as bandits: error no worse than that of Vowpal Wabbit's best, learned from the same examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "benchmarks" / "learn_bandits.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_data_set_is_learned_worse_than_by_the_best_of_twelve_runs_of_vowpal_wabbit():
    """mtr, ips and dr, one pass and twenty, our columns and plain ones; ours is one learner with the same settings."""
    pytest.importorskip("sklearn")
    pytest.importorskip("river")
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, BENCH, "--conversions"], capture_output=True, text=True, check=False, env=path
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])["errors"]
    assert len(errors) == 7
    if not any(who.startswith("vw/") for who in errors["iris"]):
        pytest.skip("Vowpal Wabbit can not be had: " + done.stderr.strip())
    for name, each in errors.items():
        best = min(error for who, error in each.items() if who.startswith("vw/"))
        assert each["ours/neural"] <= best, (name, each)
