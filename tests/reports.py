"""Reports for tests, of a world whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from steersman.core.report import Learned, Report
from steersman.evaluate import Gates, Settings, evaluate, judge, shown
from steersman.worlds import tabular


def world_report(by: float = 0.0, n: int = 2000, actions: int = 4, **changed: object) -> Report:
    """A report on n decisions of a world with three metrics, its rewards shifted by a number."""
    world = tabular.bandit(6, actions, chi2=1.0, noise=0.5, seed=1)
    world = replace(world, mean=world.mean + by)
    batch = world.sample(n, 0)
    metrics = np.stack([batch.reward, -3.0 - batch.reward, np.abs(batch.reward)], axis=1)
    batch = replace(batch, metrics=metrics, metric_names=("reward", "complaints", "<b>size</b>"))
    target, before = tabular.rows(batch, world.target), tabular.rows(batch, tabular.mixed(world.target, 0.5))
    found = evaluate(batch, target, Settings(estimators=("ips", "snips", "dr")), 0)
    told = shown(batch, target, 0.95, previous=before)
    learning = tuple(
        Learned(
            step=step,
            figures={"loss": 1.0 / step, "q": step / 1000, "steps/s": 900.0},
            values=(msgspec.structs.replace(found.headline, ess=10.0),) if step % 500 == 0 else (),
        )
        for step in range(100, 2001, 100)
    )
    report = Report(
        problem="shop",
        policy="ab12" * 16,
        baseline=found.baseline,
        headline=found.headline,
        lift=found.lift,
        estimates=found.estimates,
        ratios=found.ratios,
        baselines=tuple(one.baseline for one in found.metrics),
        lifts=tuple(one.lift for one in found.metrics),
        verdicts=judge(found, Gates()),
        refused=found.refused,
        weights=told.weights,
        calibration=told.calibration,
        shares=told.shares,
        previous="shop@3",
        learning=learning,
        data="cd34" * 16,
        since=1_700_000_000_000_000,
        until=1_700_086_400_000_000,
        decisions=n,
        seed=0,
    )
    return msgspec.structs.replace(report, **changed)
