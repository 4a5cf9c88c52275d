"""Every estimator of sequences over hundreds of logs: what it prints as 95% covers 92 to 98.5% of the true values, and
standard errors are within a tenth of Monte Carlo's."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from steersman.core.report import Estimate
from steersman.evaluate import ESTIMATORS, Settings, Terms, evaluate
from steersman.evaluate.printed import Printer
from steersman.worlds import tabular

ROWS = [name for name, row in ESTIMATORS.items() if row.sequence and name != "stitched"]
"""`stitched` is for contexts with numbers, and its interval counts the worst where nothing is logged."""


OWN_ERROR = [name for name in ROWS if name != "magic"]
"""MAGIC prints the interval of `wdr`."""


def covered(horizon: int, noise: float, episodes: int, logs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Share of the logs in which each interval holds the exact value; and mean standard error by that of Monte Carlo.

    Half of the logs are truncated, not ended.
    """
    world = tabular.garnet(6, 3, horizon=horizon, stop=0.1, seed=3)
    scores = np.random.default_rng(1).normal(size=world.mean.shape)
    behavior = tabular.softmax(scores)
    target = tabular.softmax(scores + noise * np.random.default_rng(2).normal(size=scores.shape))
    truth, printing = world.value(target), Printer.print
    draws: list[dict[str, tuple[bool, float, float]]] = []

    def seen(printer: Printer, terms: Terms, estimator: str, metric: str) -> Estimate:
        e = printing(printer, terms, estimator, metric)
        if metric == "reward" and estimator in ROWS:
            draws[-1][estimator] = e.low <= truth <= e.high, e.value, terms.low.error
        return e

    with mock.patch.object(Printer, "print", seen):
        for seed in range(logs):
            draws.append({})
            batch = world.sample(episodes, behavior, seed, truncate=bool(seed % 2))
            evaluate(batch, tabular.rows(batch, target), Settings(folds=3), seed, horizon=horizon)
    columns = {name: np.array([one[name] for one in draws]).T for name in ROWS}  # KeyError: somebody was silent
    ratios = {name: float(columns[name][2].mean() / columns[name][1].std(ddof=1)) for name in OWN_ERROR}
    return {name: float(inside.mean()) for name, (inside, _, _) in columns.items()}, ratios


def test_intervals_of_all_estimators_of_sequences_cover():
    found, _ = covered(10, 0.5, 150, 60)
    assert min(found.values()) >= 0.88, found


@pytest.mark.slow
@pytest.mark.parametrize(("horizon", "noise", "episodes"), [(10, 0.5, 150), (10, 0.8, 300), (5, 1.2, 400)])
def test_intervals_of_all_estimators_of_sequences_cover_over_five_hundred_logs(horizon, noise, episodes):
    found, ratios = covered(horizon, noise, episodes, 500)
    print(f"horizon {horizon}, noise {noise}: {found}, errors {ratios}")  # noqa: T201
    assert all(0.92 <= share <= 0.985 for share in found.values()), found
    assert all(0.9 <= ratio <= 1.1 for ratio in ratios.values()), ratios


@pytest.mark.slow
def test_visits_cover_over_a_hundred_steps():
    world, behavior, target = tabular.contest(100, uniform=0.5)
    truth, names = world.value(target), ("smis", "samis", "drl", "fqe")
    inside: dict[str, list[bool]] = {name: [] for name in names}
    for seed in range(500):
        batch = world.sample(300, behavior, seed, truncate=True)
        settings = Settings(estimators=names, folds=3)
        found = evaluate(batch, tabular.rows(batch, target), settings, seed, horizon=100)
        for e in found.estimates:
            if e.metric == "reward":
                inside[e.estimator].append(e.low <= truth <= e.high)
    shares = {name: float(np.mean(each)) for name, each in inside.items()}
    print(shares)  # noqa: T201
    assert all(0.92 <= share <= 0.985 for share in shares.values()), shares
