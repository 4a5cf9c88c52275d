"""Estimators of sequences against exact values: root mean squared error over V, on logs of 500 episodes.

Garnet worlds of 20 states and 4 actions, rewards with noise 0.5, every episode as long as the horizon. The behavior is
the target with half (close) or 85% (far) of its decisions made uniform; aliased: the log tells only half of the states
apart, and so does the target. Estimators that the platform would not let speak there, because products of weights
cannot be believed, are asked all the same and marked with *.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np

from steersman.core.errors import SupportError
from steersman.evaluate import ESTIMATORS, Evidence, Paths
from steersman.evaluate.estimators import logged
from steersman.evaluate.evidence import weights
from steersman.evaluate.intervals import Terms
from steersman.evaluate.nuisance import folds_of
from steersman.evaluate.sequences import Sequences
from steersman.evaluate.trajectories import silent
from steersman.worlds import tabular

EPISODES = 500
CLOSE, FAR = 0.5, 0.85
COLUMNS = (
    ("H=5 close", 5, CLOSE, False),
    ("H=25 close", 25, CLOSE, False),
    ("H=100 close", 100, CLOSE, False),
    ("H=100 close, aliased", 100, CLOSE, True),
    ("H=25 far", 25, FAR, False),
    ("H=100 far", 100, FAR, False),
    ("H=100 far, aliased", 100, FAR, True),
)
NAMES = ("tis", "sn-tis", "pdis", "sn-pdis", "dr", "wdr", "magic", "fqe", "smis", "samis", "drl")


def evidence(horizon: int, uniform: float, aliased: bool, seed: int) -> tuple[Evidence, float]:
    """A log with all its models, and the true value of the target."""
    world, behavior, target = tabular.contest(horizon, uniform=uniform, seed=seed % 3)
    if aliased:
        target = np.repeat((target[::2] + target[1::2]) / 2, 2, axis=0)
    batch = world.sample(EPISODES, behavior, seed, truncate=True)
    asked = tabular.rows(batch, target)
    if aliased:
        batch = tabular.halved(batch, target.shape[1])
    paths = Paths.of(batch)
    models = Sequences.of(batch, paths, asked, horizon, seed, None)
    (model,) = models.models(batch.reward[:, None], folds_of(paths, 5, seed))
    made = Evidence(paths, batch.reward, weights(batch, asked), model.q, model.v, model.marginal)
    return made, world.value(target)


def bare(name: str) -> Callable[[Evidence], Terms]:
    """The estimator without its guard."""
    terms = ESTIMATORS[name].terms
    found: Callable[[Evidence], Terms] = getattr(terms, "__wrapped__", terms)
    return found


def column(horizon: int, uniform: float, aliased: bool, logs: int) -> dict[str, tuple[float, float]]:
    """Estimator -> RMSE over V, and the share of logs in which it was silent."""
    off: dict[str, list[float]] = {name: [] for name in (*NAMES, "logged")}
    quiet: dict[str, list[bool]] = {name: [] for name in off}
    for seed in range(logs):
        found, truth = evidence(horizon, uniform, aliased, seed)
        guarded = bool(silent(found))
        for name in NAMES:
            try:
                off[name].append(bare(name)(found).value / truth - 1.0)
            except SupportError:
                continue
            quiet[name].append(guarded and hasattr(ESTIMATORS[name].terms, "__wrapped__"))
        off["logged"].append(logged(found).center / truth - 1.0)
        quiet["logged"].append(False)
    return {
        name: (math.sqrt(float(np.mean(np.square(each)))), float(np.mean(quiet[name]))) if each else (math.nan, 1.0)
        for name, each in off.items()
    }


def main() -> None:
    """Print the table, as Markdown."""
    logs = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    columns = [column(horizon, uniform, aliased, logs) for _, horizon, uniform, aliased in COLUMNS]
    print(f"RMSE/V over {logs} logs of three worlds, {EPISODES} episodes each")
    print("| | " + " | ".join(name for name, *_ in COLUMNS) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for name in (*NAMES, "logged"):
        cells = [f"{each[name][0]:.4f}" + ("*" if each[name][1] > 0.5 else "") for each in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
