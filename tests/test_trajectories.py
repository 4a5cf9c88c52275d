"""Every estimator of sequences over hundreds of logs: what it prints as 95% covers 92 to 98.5% of the true values."""

from __future__ import annotations

import numpy as np
import pytest

from steersman.evaluate import ESTIMATORS, Settings, evaluate
from steersman.worlds import tabular

ROWS = [name for name, row in ESTIMATORS.items() if row.sequence and name != "stitched"]
"""`stitched` is for contexts with numbers, and its interval counts the worst where nothing is logged."""


def covered(horizon: int, noise: float, episodes: int, logs: int) -> dict[str, float]:
    """Share of the logs in which each interval holds the exact value; half of the logs are truncated, not ended."""
    world = tabular.garnet(6, 3, horizon=horizon, stop=0.1, seed=3)
    scores = np.random.default_rng(1).normal(size=world.mean.shape)
    behavior = tabular.softmax(scores)
    target = tabular.softmax(scores + noise * np.random.default_rng(2).normal(size=scores.shape))
    truth = world.value(target)
    inside: dict[str, list[bool]] = {name: [] for name in ROWS}
    for seed in range(logs):
        batch = world.sample(episodes, behavior, seed, truncate=bool(seed % 2))
        found = evaluate(batch, tabular.rows(batch, target), Settings(folds=3), seed, horizon=horizon)
        for e in found.estimates:
            if e.metric == "reward":
                inside[e.estimator].append(e.low <= truth <= e.high)
    assert all(len(each) == logs for each in inside.values())  # nobody was silent
    return {name: float(np.mean(each)) for name, each in inside.items()}


def test_intervals_of_all_estimators_of_sequences_cover():
    found = covered(10, 0.5, 150, 60)
    assert min(found.values()) >= 0.88, found


@pytest.mark.slow
@pytest.mark.parametrize(("horizon", "noise", "episodes"), [(10, 0.5, 150), (10, 0.8, 300), (5, 1.2, 400)])
def test_intervals_of_all_estimators_of_sequences_cover_over_five_hundred_logs(horizon, noise, episodes):
    found = covered(horizon, noise, episodes, 500)
    print(f"horizon {horizon}, noise {noise}: {found}")  # noqa: T201
    assert all(0.92 <= share <= 0.985 for share in found.values()), found


@pytest.mark.slow
def test_visits_cover_over_a_hundred_steps():
    world, behavior, target = tabular.contest(100, uniform=0.5)
    truth, names = world.value(target), ("smis", "samis", "drl", "fqe")
    inside: dict[str, list[bool]] = {name: [] for name in names}
    for seed in range(200):
        batch = world.sample(300, behavior, seed, truncate=True)
        settings = Settings(estimators=names, folds=3)
        found = evaluate(batch, tabular.rows(batch, target), settings, seed, horizon=100)
        for e in found.estimates:
            if e.metric == "reward":
                inside[e.estimator].append(e.low <= truth <= e.high)
    shares = {name: float(np.mean(each)) for name, each in inside.items()}
    print(shares)  # noqa: T201
    assert all(0.92 <= share <= 0.99 for share in shares.values()), shares  # 200 logs: 0.985 and an error of 0.009
