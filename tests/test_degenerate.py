"""Logs that can not answer: one unit, no variance, no overlap, holes. Errors or `not identified`, never a number."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steersman.core.batch import Batch
from steersman.core.errors import DataError, Error, SupportError
from steersman.core.report import Estimate
from steersman.evaluate import ESTIMATORS, Evaluation, Gates, Settings, evaluate, judge
from steersman.evaluate.printed import INTERVALS
from steersman.worlds import tabular

WORLD = tabular.bandit(3, 3, chi2=1.0, noise=0.5, seed=1)
ONE_STEP = [name for name, row in ESTIMATORS.items() if row.one_step]
DECLARED = {"reward_range": (-10.0, 10.0), "max_weight": 1e6}
GATES = Gates(max_fall={"reward": 1.0}, bound="anytime")


def numbers(found: Evaluation) -> list[Estimate]:
    paired = [e for m in found.metrics for e in (m.baseline, m.value, m.lift)]
    return [found.baseline, found.headline, found.lift, *found.estimates, *found.ratios, *paired]


def asked(batch: Batch, target: np.ndarray, **changes) -> Evaluation | None:
    """None: refused, by an error that says what. Else every number is one, and every verdict has a word."""
    try:
        found = evaluate(batch, target, Settings(**changes), 0, at=np.arange(len(batch)))
    except Error as error:
        assert error.message
        assert error.hint or isinstance(error, DataError)
        return None
    for one in numbers(found):
        assert all(map(math.isfinite, (one.value, one.low, one.high, one.ess)))
        assert one.low <= one.value <= one.high
    for verdict in judge(found, GATES):
        assert verdict.reason
        assert all(value is None or math.isfinite(value) for value in (verdict.value, verdict.limit)), verdict
        assert bool(verdict.next) == (verdict.status != "pass"), verdict
    return found


@st.composite
def small_logs(draw: st.DrawFn) -> tuple[Batch, np.ndarray]:
    """1 to 12 decisions of up to 4 units, rewards often all the same, targets often where nothing was logged."""
    n = draw(st.integers(1, 12))
    batch = WORLD.sample(n, draw(st.integers(0, 1000)))
    unit = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    reward = np.array(draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, -1.0]), min_size=n, max_size=n)))
    propensity = np.array(draw(st.lists(st.sampled_from([1.0, 0.5, 1e-4]), min_size=n, max_size=n)))
    rows = draw(
        st.lists(st.sampled_from([(1, 0, 0), (0.5, 0.5, 0), (0, 0, 1), (0.2, 0.3, 0.5)]), min_size=n, max_size=n)
    )
    changed = {"unit": unit, "reward": reward, "metrics": reward[:, None], "propensity": propensity}
    return dataclasses.replace(batch, **changed), np.array(rows, dtype=np.float64)


@pytest.mark.parametrize("interval", INTERVALS)
@given(small_logs())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_small_log_gives_errors_or_numbers_inside_their_intervals(interval, log):
    batch, target = log
    asked(batch, target, interval=interval, **(DECLARED if interval == "bernstein" else {}))


@pytest.mark.parametrize("headline", [name for name in ONE_STEP if ESTIMATORS[name].judge])
@given(small_logs())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_headline_of_a_small_log_is_an_error_or_a_number(headline, log):
    asked(*log, headline=headline, estimators=(headline,))


@given(st.integers(1, 6), st.integers(0, 100), st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_few_sequences_give_errors_or_numbers(episodes, seed, still):
    world = tabular.garnet(3, 2, horizon=4, stop=0.3, seed=1)
    behavior = tabular.softmax(np.random.default_rng(seed).normal(size=world.mean.shape))
    batch = world.sample(episodes, behavior, seed)
    if still:
        batch = dataclasses.replace(batch, reward=np.zeros(len(batch)), metrics=np.zeros((len(batch), 1)))
    greedy = np.eye(2)[np.zeros(3, dtype=int)]
    try:
        evaluate(batch, tabular.rows(batch, greedy), Settings(), 0, horizon=4)
    except Error:
        return
    asked(batch, tabular.rows(batch, greedy))


def test_one_unit_is_an_error_whatever_is_asked():
    batch = dataclasses.replace(WORLD.sample(500, 0), unit=np.zeros(500, dtype=np.int64))
    with pytest.raises(DataError, match="1 unit"):
        evaluate(batch, tabular.rows(batch, WORLD.target), Settings(), 0)


def test_one_episode_is_an_error():
    world = tabular.garnet(3, 2, horizon=4, stop=0.0, seed=1)
    batch = world.sample(1, tabular.softmax(world.mean), 0)
    with pytest.raises(DataError, match="1 unit"):
        evaluate(batch, tabular.rows(batch, tabular.softmax(world.mean)), Settings(), 0, horizon=4)


@pytest.mark.parametrize("field", ["reward", "propensity"])
def test_a_hole_in_what_was_logged_is_an_error_with_its_row(field):
    batch = WORLD.sample(50, 0)
    holes = getattr(batch, field).copy()
    holes[7] = np.nan
    with pytest.raises(DataError, match="row 7"):
        dataclasses.replace(batch, **{field: holes})


@pytest.mark.parametrize("bad", [np.nan, -0.1])
def test_a_target_with_a_hole_is_an_error_with_its_row(bad):
    batch = WORLD.sample(50, 0)
    target = tabular.rows(batch, WORLD.target).copy()
    target[3, 1] = bad
    with pytest.raises(DataError, match="row 3"):
        evaluate(batch, target, Settings(), 0)


def test_a_target_that_takes_nothing_of_the_log_is_not_answered():
    batch = WORLD.sample(50, 0)
    never = np.full((50, 3), 0.5)
    never[np.arange(50), batch.action] = 0.0
    with pytest.raises(SupportError, match="none of the 50 logged actions"):
        evaluate(batch, never, Settings(), 0)


def test_rewards_without_variance_pass_no_gate():
    batch = WORLD.sample(3000, 0)
    still = dataclasses.replace(batch, reward=np.ones(3000), metrics=np.ones((3000, 1)))
    for headline in ("dr", "snips"):
        found = asked(still, tabular.rows(still, WORLD.target), headline=headline)
        assert found is not None
        verdict = judge(found, Gates())[0]
        assert (verdict.gate, verdict.status) == ("lower bound", "fail")
