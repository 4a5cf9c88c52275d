"""Several outcomes for one metric of a decision: each rule against plain Python and the statistics module."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steersman import config, engine, timeline
from steersman.core.decision import Problem, Rule
from steersman.core.errors import ConfigError, DataError
from steersman.timeline import Built
from timeline_log import FAR, Files, Row, decision, log, outcome, problem, shuffled_log

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RULES: dict[Rule, Callable[[Sequence[float]], float]] = {
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "sum": math.fsum,
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
}
WAIT_S = 10.0
rules = pytest.mark.parametrize("rule", RULES)


def build(tables: engine.Engine, files: Files, at: Problem) -> Built:
    return timeline.build(tables, at, files, since=0, until=FAR, as_of=FAR)


def one_metric(tables: engine.Engine, directory: Path, rule: Rule, outcomes: Sequence[Row]) -> float:
    """The metric r of the decision d, at second 0, which waits 10 s."""
    built = build(tables, log(directory, [decision("d")], outcomes), problem(combine={"r": rule}))
    return float(built.batch.reward[0])


def test_every_rule_is_tested():
    assert set(RULES) == set(get_args(Rule))


# --- against plain Python

# Quarters, whose sums are exact, so that all bits must be equal.
quarters = st.integers(-40, 40).map(lambda whole: whole / 4)


@st.composite
def told(draw) -> list[Row]:
    """Outcomes of d0 to d3: at one instant, in time, late, of nobody, with one metric or both or none."""
    return [
        outcome(
            f"o{number}",
            draw(st.sampled_from(["d0", "d0", "d0", "d1", "d2", "d3", "nobody"])),
            draw(st.integers(0, 14)),
            r=draw(st.none() | quarters),
            c=draw(st.none() | quarters),
        )
        for number in draw(st.permutations(range(100, 120)))[: draw(st.integers(1, 20))]
    ]


def plain(rule: Rule, metric: str, of: str, outcomes: Sequence[Row], default: float) -> float:
    in_time = [row for row in outcomes if row["decision"] == of and row["at"] <= WAIT_S * 1_000_000]
    in_order = sorted(in_time, key=lambda row: (row["at"], row["id"]))
    values = [row[f"metrics.{metric}"] for row in in_order if row[f"metrics.{metric}"] is not None]
    return RULES[rule](values) if values else default


@FEW
@given(told(), st.sampled_from(list(itertools.pairwise([*RULES, "first"]))), st.integers(0, 10**9))
def test_each_metric_combines_by_its_own_rule_as_in_plain_python(tables, tmp_path, outcomes, pair, seed):
    r, c = pair
    decisions = [decision(f"d{i}", f"u{i}") for i in range(4)]
    at = problem(combine={"r": r, "c": c}, default_outcome={"r": -0.125})
    batch = build(tables, shuffled_log(tmp_path, decisions, outcomes, seed), at).batch
    came = dict(zip(batch.metric_names, batch.metrics.T, strict=True))
    ids = [row["id"] for row in decisions]
    np.testing.assert_array_equal(came["r"], [plain(r, "r", one, outcomes, -0.125) for one in ids])
    expected = [plain(c, "c", one, outcomes, math.nan) for one in ids]
    np.testing.assert_array_equal(came.get("c", np.full(4, np.nan)), expected)


@rules
@settings(FEW, max_examples=5)
@given(told())
def test_every_rule_as_in_plain_python(tables, tmp_path, rule, outcomes):
    decisions = [decision(f"d{i}", f"u{i}") for i in range(4)]
    built = build(tables, log(tmp_path, decisions, outcomes), problem(combine={"r": rule}))
    assert built.batch.reward.tolist() == [plain(rule, "r", f"d{i}", outcomes, 0.0) for i in range(4)]


# --- by hand


@pytest.mark.parametrize(
    ("rule", "value"),
    [("first", -3.0), ("last", -5.0), ("sum", -11.0), ("mean", -2.75), ("median", -2.5), ("min", -5.0), ("max", -1.0)],
)
def test_negative_outcomes_give_a_negative_value_by_every_rule(tables, tmp_path, rule, value):
    outcomes = [outcome("o2", "d", 4, r=-2.0), outcome("o1", "d", 5, r=-1.0)]
    outcomes += [outcome("o4", "d", 6, r=-5.0), outcome("o3", "d", 3, r=-3.0)]
    assert one_metric(tables, tmp_path, rule, outcomes) == value


def test_the_maximum_of_negative_outcomes_is_not_the_default(tables, tmp_path):
    assert one_metric(tables, tmp_path, "max", [outcome("o1", "d", 1, r=-7.0)]) == -7.0
    assert one_metric(tables, tmp_path, "max", [outcome("o1", "d", 1, r=-7.0), outcome("o2", "d", 1, r=-4.0)]) == -4.0


@rules
def test_late_outcomes_never_count(tables, tmp_path, rule):
    in_time = [outcome("o1", "d", 1, r=2.0), outcome("o2", "d", 10, r=4.0)]
    late = [outcome("o0", "d", 10.000001, r=-100.0), outcome("o9", "d", 11, r=100.0), outcome("o5", "d", 99, r=3.0)]
    assert one_metric(tables, tmp_path / "a", rule, in_time + late) == RULES[rule]([2.0, 4.0])
    assert one_metric(tables, tmp_path / "b", rule, late) == 0.0  # the default


@rules
def test_the_default_stands_in_only_where_nothing_came_and_never_combines(tables, tmp_path, rule):
    decisions = [decision("d1", "u1"), decision("d2", "u2"), decision("d3", "u3")]
    outcomes = [outcome("o1", "d1", 1, r=2.0), outcome("o2", "d1", 2, r=None, c=1.0), outcome("o3", "d2", 3, c=1.0)]
    at = problem(combine={"r": rule, "c": rule}, default_outcome={"r": 50.0})
    batch = build(tables, log(tmp_path, decisions, outcomes), at).batch
    np.testing.assert_array_equal(batch.metrics, [[1.0, 2.0], [1.0, 50.0], [np.nan, 50.0]])


def test_first_and_last_go_by_instant_then_id_and_skip_outcomes_without_the_metric(tables, tmp_path):
    outcomes = [
        outcome("o9", "d", 2, r=1.0),
        outcome("o10", "d", 2, r=2.0),  # before o9: ids are texts
        outcome("o1", "d", 7, r=3.0),
        outcome("o2", "d", 7, r=4.0),
        outcome("o3", "d", 1, r=None),
        outcome("o4", "d", 9, c=1.0),
    ]
    assert one_metric(tables, tmp_path / "first", "first", outcomes) == 2.0
    assert one_metric(tables, tmp_path / "last", "last", outcomes) == 4.0


def test_an_outcome_told_twice_counts_once(tables, tmp_path):
    outcomes = [outcome("o1", "d", 1, r=1.0), outcome("o2", "d", 2, r=4.0), outcome("o2", "d", 3, r=9.0)]
    assert one_metric(tables, tmp_path / "mean", "mean", outcomes) == 2.5
    assert one_metric(tables, tmp_path / "last", "last", outcomes) == 4.0


def test_a_metric_without_a_rule_is_the_sum(tables, tmp_path):
    files = log(tmp_path, [decision("d")], [outcome("o1", "d", 1, r=1.0, c=1.0), outcome("o2", "d", 2, r=2.0, c=3.0)])
    batches = [build(tables, files, problem(combine=rules)).batch for rules in ({}, {"r": "sum"}, {"c": "max"})]
    assert [batch.metrics.tolist() for batch in batches] == [[[4.0, 3.0]], [[4.0, 3.0]], [[3.0, 3.0]]]
    assert batches[0].digest == batches[1].digest


def test_the_median_of_huge_values_is_finite(tables, tmp_path):
    outcomes = [outcome("o1", "d", 1, r=1.5e308), outcome("o2", "d", 2, r=1.7e308)]
    assert one_metric(tables, tmp_path, "median", outcomes) == 1.6e308


# --- the same bits in any order


@rules
def test_the_digest_is_the_same_in_whatever_order_the_log_lies(tables, tmp_path, rule):
    rng = np.random.default_rng(5)
    decisions = [decision(f"d{i}", f"u{i % 5}", i) for i in range(30)]
    nasty = [0.0, -0.0, 0.1, 0.2, 0.3, -1e9, 1e-9, 1e16, -1e16]
    outcomes = [
        outcome(f"o{i}", f"d{rng.integers(30)}", int(rng.integers(32)), r=nasty[rng.integers(len(nasty))])
        for i in range(150)
    ]
    at = problem(combine={"r": rule}, wait_s=20.0)
    built = build(tables, log(tmp_path / "a", decisions, outcomes), at)
    assert built.counts.outcomes > 2 * len(decisions)
    for seed in range(4):
        again = build(tables, shuffled_log(tmp_path / f"{seed}", decisions, outcomes, seed), at)
        assert again.batch.digest == built.batch.digest
        assert again.batch.metrics.tobytes() == built.batch.metrics.tobytes()


@pytest.mark.parametrize("rule", ["min", "max", "median"])
def test_zeros_of_both_signs_give_one_zero_in_whatever_order(tables, tmp_path, rule):
    for name, values in (("a", (0.0, -0.0)), ("b", (-0.0, 0.0))):
        outcomes = [outcome(f"o{i}", "d", 1, r=value) for i, value in enumerate(values)]
        assert math.copysign(1, one_metric(tables, tmp_path / name, rule, outcomes)) == 1


# --- steersman.toml


def project(directory: Path, combine: str) -> config.Project:
    text = config.template("p").replace('# combine = { clicks = "max" }', f"combine = {combine}")
    (directory / config.FILE).write_text(text, encoding="utf-8")
    return config.load(directory)


def test_the_rules_are_read_from_the_project(tmp_path):
    read = project(tmp_path, '{ clicks = "max", "dwell time" = "median" }').policy("p").problem
    assert read.combine == {"clicks": "max", "dwell time": "median"}


@pytest.mark.parametrize(
    ("combine", "field", "hint"),
    [
        ('{ clicks = "maxx" }', "problem.p.combine.clicks", "did you mean max?"),
        ('{ clicks = "sum", dwell = "Mean" }', "problem.p.combine.dwell", "did you mean mean?"),
        ('{ clicks = "best" }', "problem.p.combine.clicks", "median"),
        ("{ clicks = 3 }", "problem.p.combine.clicks", "median"),
        ('{ "9" = "max" }', "problem.p.combine.9", ""),
    ],
)
def test_an_unknown_rule_or_a_bad_metric_is_named(tmp_path, combine, field, hint):
    with pytest.raises(ConfigError) as error:
        project(tmp_path, combine)
    assert error.value.field == field
    assert hint in error.value.hint
    assert field in error.value.message or "'9'" in error.value.message


def test_a_problem_made_in_python_refuses_an_unknown_rule_too():
    with pytest.raises(DataError, match=r"combine\.r is 'maxx'") as error:
        problem(combine={"r": "maxx"})
    assert (error.value.field, error.value.hint) == ("combine.r", "did you mean max?")
