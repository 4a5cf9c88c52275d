"""Estimators of single decisions: numbers by hand, closed forms, tuning rules, learned weights, coverage."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, SupportError
from steersman.core.features import Continuous, Encoder
from steersman.evaluate import ESTIMATORS, Evidence, Paths, Settings, evaluate
from steersman.evaluate import one_step as room
from steersman.evaluate.estimators import logged
from steersman.evaluate.evidence import Model, weights
from steersman.evaluate.intervals import estimate
from steersman.evaluate.nuisance import folds_of, learned_weights, reward_model, robust_model
from steersman.evaluate.trajectories import dr
from steersman.evaluate.tuning import (
    CLIP,
    OPTIMISTIC,
    SUB_GAUSSIAN,
    SWITCH,
    bias_bound,
    clip,
    optimistic,
    slope,
    sub_gaussian,
    switch,
)
from steersman.worlds import tabular

SHRINKAGES = {"clip": CLIP, "switch": SWITCH, "optimistic": OPTIMISTIC, "sub-gaussian": SUB_GAUSSIAN}
TUNED = (room.clipped_ips, room.sub_gaussian_ips, room.switch_dr, room.dros, room.sub_gaussian_dr)


def evidence(
    reward: list[float],
    weight: list[float],
    q: list[float] | None = None,
    v: list[float] | None = None,
    unit: list[int] | None = None,
) -> Evidence:
    """Single decisions, each a unit of its own unless told."""
    n = len(reward)
    none = np.full(n, -1, dtype=np.int64)
    units, cluster = np.unique(np.arange(n) if unit is None else np.array(unit), return_inverse=True)
    paths = Paths((np.arange(n),), np.arange(n), np.ones(n), cluster, len(units), none)
    model = [np.zeros(n) if column is None else np.array(column, dtype=np.float64) for column in (q, v)]
    return Evidence(paths, np.array(reward, dtype=np.float64), np.array(weight, dtype=np.float64), *model)


def random_evidence(seed: int, n: int = 40) -> Evidence:
    rng = np.random.default_rng(seed)
    columns = rng.normal(1.0, 1.0, n), rng.lognormal(0.0, 1.0, n), rng.normal(1.0, 1.0, n), rng.normal(1.0, 1.0, n)
    return evidence(*(list(column) for column in columns))


def single(seed: int, n: int = 400) -> tuple[Batch, np.ndarray]:
    world = tabular.bandit(6, 4, chi2=1.0, noise=0.3, seed=1)
    batch = world.sample(n, seed)
    return batch, tabular.rows(batch, world.target)


# by hand


def test_shrunk_weights_by_hand():
    w = np.array([0.0, 0.5, 2.0, 8.0])
    assert clip(w, 2.0).tolist() == [0.0, 0.5, 2.0, 2.0]
    assert switch(w, 2.0).tolist() == [0.0, 0.5, 2.0, 0.0]
    assert optimistic(w, 4.0) == pytest.approx([0.0, 2 / 4.25, 1.0, 32 / 68])
    assert sub_gaussian(w, 0.5) == pytest.approx([0.0, 2 / 3, 4 / 3, 16 / 9])


def test_values_of_given_strengths_by_hand():
    """w = 0.5, 2, 8; surprises 1, -1, 0.5; v = 0.4, 0.6, 0.8."""
    found = evidence([1.5, 0.0, 1.0], [0.5, 2.0, 8.0], q=[0.5, 1.0, 0.5], v=[0.4, 0.6, 0.8])
    told = {
        "dr": (found.weight, [0.9, -1.4, 4.8]),
        "clipped": (clip(found.weight, 4.0), [0.9, -1.4, 2.8]),
        "switch": (switch(found.weight, 4.0), [0.9, -1.4, 0.8]),
        "dros": (optimistic(found.weight, 4.0), [0.4 + 2 / 4.25, -0.4, 0.8 + 16 / 68]),
        "sub-gaussian": (sub_gaussian(found.weight, 0.5), [0.4 + 2 / 3, 0.6 - 4 / 3, 0.8 + 8 / 9]),
    }
    for name, (shrunk, rows) in told.items():
        assert room.corrected(found, shrunk) == pytest.approx(rows), name


def test_self_normalised_dr_by_hand():
    found = evidence([1.0, 0.0, 1.0], [2.0, 0.5, 1.0], q=[0.5, 0.5, 1.0], v=[0.4, 0.6, 0.8])
    assert room.sndr(found).value == pytest.approx(0.6 + (2 * 0.5 - 0.5 * 0.5) / 3.5)


def test_replay_is_the_mean_of_the_rows_that_match():
    """Four candidates, each with probability 1/4; the target takes the logged one in rows 0 and 2."""
    found = replace(evidence([1.0, 9.0, 4.0], [4.0, 0.0, 4.0]), propensity=np.full(3, 0.25))
    assert room.replay(found).value == pytest.approx(2.5)
    assert room.replay(found).ess == pytest.approx(2.0)


def test_replay_of_a_log_that_is_not_uniform_is_refused_and_not_asked_for_by_itself():
    batch, target = single(1)
    found = evaluate(batch, target, Settings(estimators=("replay", "snips")), 0)
    assert [verdict.gate for verdict in found.refused] == ["replay"]
    assert "uniformly" in found.refused[0].reason
    with pytest.raises(SupportError, match="uniformly"):
        evaluate(batch, target, Settings(headline="replay"), 0)
    everything = evaluate(batch, target, Settings(), 0)
    assert everything.refused == ()
    asked = {e.estimator for e in everything.estimates}
    assert asked == {name for name, row in ESTIMATORS.items() if row.one_step and row.actions != "kernel"} - {
        "replay",
        "mips",
    }


# jackknife


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_control_variate_is_a_regression_and_its_influence_what_leaving_a_unit_out_takes_away(seed):
    found = random_evidence(seed, 12)
    w, r = found.weight, found.reward

    def intercept(keep: np.ndarray) -> float:
        return float(np.polyfit(w[keep] - 1.0, (w * r)[keep], 1)[1])

    everyone = np.arange(12)
    terms = room.control_variate_ips(found)
    assert terms.value == pytest.approx(intercept(everyone), abs=1e-9)
    left_out = [intercept(np.delete(everyone, i)) for i in everyone]
    assert terms.low.pull == pytest.approx(11 * (terms.value - np.array(left_out)), abs=1e-7)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_influence_on_sndr_is_what_leaving_a_unit_out_takes_away_the_denominator_too(seed):
    found = random_evidence(seed, 12)
    w, surprise = found.weight, found.reward - found.q

    def value(keep: np.ndarray) -> float:
        return float(found.v[keep].mean() + (w * surprise)[keep].sum() / w[keep].sum())

    everyone = np.arange(12)
    terms = room.sndr(found)
    left_out = [value(np.delete(everyone, i)) for i in everyone]
    assert terms.value == pytest.approx(value(everyone))
    assert terms.low.pull == pytest.approx(11 * (terms.value - np.array(left_out)), abs=1e-8)


@given(shift=st.floats(-50, 50), seed=st.integers(0, 1000), units=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_constant_added_to_the_reward_is_added_to_the_value_and_leaves_the_error(shift, seed, units):
    found = random_evidence(seed)
    if units:
        cluster = np.random.default_rng(seed).integers(0, 12, 40)
        cluster[:12] = np.arange(12)
        found = replace(found, paths=replace(found.paths, cluster=cluster, clusters=12))
    moved = replace(found, reward=found.reward + shift)
    for estimator in (room.control_variate_ips, room.sndr):
        one, two = estimator(found), estimator(moved)
        assert two.value == pytest.approx(one.value + shift, abs=1e-7)
        assert two.low.error == pytest.approx(one.low.error, abs=1e-7)


def test_a_constant_reward_has_no_error_where_the_weights_are_accounted_for():
    found = replace(random_evidence(0), reward=np.full(40, 5.0))
    none = np.zeros(40)
    for estimator in (room.control_variate_ips, room.snips, room.sndr):
        terms = estimator(replace(found, q=none, v=none))
        assert terms.value == pytest.approx(5.0)
        assert terms.low.error < 1e-12
    assert room.ips(found).low.error > 0.1


def test_a_control_variate_that_at_most_one_unit_moves_is_refused():
    for weight in ([3.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]):
        with pytest.raises(SupportError, match="one of the 4 units"):
            room.control_variate_ips(evidence([1.0, 2.0, 3.0, 4.0], weight))


def test_weights_that_are_1_but_for_rounding_are_1():
    found = evidence([1.0, 2.0, 3.0, 6.0], [1.0 + 3e-8] * 4)
    assert room.control_variate_ips(found).value == pytest.approx(3.0)
    assert room.control_variate_ips(found).low.error == pytest.approx(room.ips(found).low.error)


# limits


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_no_shrinkage_is_dr_and_ips_and_all_of_it_is_the_model_alone(seed):
    found = random_evidence(seed)
    for shrink, none in ((clip, math.inf), (switch, math.inf), (optimistic, math.inf), (sub_gaussian, 0.0)):
        shrunk = shrink(found.weight, none)
        assert room.corrected(found, shrunk).mean() == pytest.approx(dr(found).value, abs=1e-12)
        bare = replace(found, q=np.zeros(40), v=np.zeros(40))
        assert room.corrected(bare, shrunk).mean() == pytest.approx(room.ips(found).value, abs=1e-12)
    for shrink, all_of_it in ((clip, 0.0), (switch, 0.0), (optimistic, 0.0)):
        rows = room.corrected(found, shrink(found.weight, all_of_it))
        assert rows.mean() == pytest.approx(found.v.mean(), abs=1e-12)
    assert sub_gaussian(found.weight, 1.0) == pytest.approx(np.ones(40))


@pytest.mark.parametrize("name", SHRINKAGES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_stronger_shrinkage_moves_every_weight_further(name, seed):
    shrinkage, weight = SHRINKAGES[name], random_evidence(seed).weight
    moved = [np.abs(weight - shrinkage.shrink(weight, float(s))) for s in shrinkage.strengths(weight)]
    assert not moved[0].any()
    assert all((more >= less - 1e-12).all() for less, more in itertools.pairwise(moved))


def test_sub_gaussian_weights_have_a_limit():
    assert sub_gaussian(np.array([1e9, 1e300]), 0.01) == pytest.approx([100.0, 100.0])


def test_of_the_behavior_policy_the_value_is_the_logged_mean():
    found = replace(random_evidence(3), weight=np.ones(40), q=np.zeros(40), v=np.zeros(40))
    found = replace(found, propensity=np.full(40, 0.2), learned=np.ones(40), embedded=np.ones(40))
    estimators = (
        *(room.ips, room.snips, room.sndr, room.control_variate_ips, room.replay, room.balanced_ips, room.mips),
        *(room.clipped_ips, room.sub_gaussian_ips, room.switch_dr, room.sub_gaussian_dr),
    )
    for estimator in estimators:
        terms = estimator(found)
        assert terms.value == pytest.approx(found.reward.mean()), estimator.__name__
        assert terms.minus_logged(logged(found)).low.error < 1e-12, estimator.__name__


# tuning


def test_slope_takes_the_shortest_interval_that_agrees_with_all_longer_ones():
    """Half widths 0.2, 0.15, 0.02. Second: 0.3 <= 0.15 + 1.45 * 0.2 = 0.44. Third: 0.5 > 0.02 + 0.29 = 0.31."""
    values, halves = np.array([1.0, 0.7, 0.5]), np.array([0.2, 0.15, 0.02])
    assert slope(values, halves) == 1
    order = [2, 0, 1]
    assert slope(values[order], halves[order]) == 2  # by width, not by place
    assert slope(np.array([1.0, 0.9, 0.8]), halves) == 2  # all agree
    assert slope(np.array([1.0, 0.5, 1.0]), halves) == 0  # the second does not: nothing after it counts
    assert slope(np.array([1.0]), np.array([0.3])) == 0


def test_the_bound_on_a_bias_by_hand():
    """mean of (w - shrunk) surprise = 1/2; mean w^2 = 2.5; largest 2; n = 2; log(2 / 0.05) = 3.689."""
    found = bias_bound(np.array([2.0, 1.0]), np.array([1.0, 1.0]), np.array([1.0, -3.0]), 3.0)
    log = math.log(40)
    assert found == pytest.approx(0.5 + 3.0 * (math.sqrt(2 * 2.5 * log / 2) + 2 * 2 * log / 6))


def test_the_least_error_is_found_among_the_strengths():
    """By hand: of every strength, the variance of the mean and the square of the mean that shrinking took away."""
    found = random_evidence(7)
    for shrinkage in SHRINKAGES.values():
        strengths = shrinkage.strengths(found.weight)
        errors = []
        for strength in strengths:
            rows = found.v + shrinkage.shrink(found.weight, float(strength)) * (found.reward - found.q)
            errors.append(rows.var(ddof=1) / 40 + (dr(found).value - rows.mean()) ** 2)
        assert room.by_error(found, shrinkage) == strengths[int(np.argmin(errors))]


def test_one_unit_of_huge_weight_is_shrunk():
    """One weight of 1,000 whose reward is like the others': nearly all variance, and little to lose."""
    rng = np.random.default_rng(0)
    found = evidence(list(rng.normal(0.0, 1.0, 200)), [1000.0, *rng.uniform(0.5, 1.5, 199)])
    for shrinkage in SHRINKAGES.values():
        strength = room.by_slope(found, shrinkage)
        assert shrinkage.shrink(found.weight, strength).max() < 500.0


def test_the_bound_on_the_bias_rarely_allows_any():
    found = random_evidence(1)
    for shrinkage in SHRINKAGES.values():
        shrunk = shrinkage.shrink(found.weight, room.by_bound(found, shrinkage))
        assert np.abs(shrunk - found.weight).mean() < 0.05


@pytest.mark.parametrize("rule", [room.by_error, room.by_bound, room.by_slope])
@given(scale=st.sampled_from([-1000.0, -0.25, 0.125, 8.0]), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_strength_does_not_depend_on_the_unit_of_the_reward(rule, scale, seed):
    found = random_evidence(seed)
    other = replace(found, reward=scale * found.reward, q=scale * found.q, v=scale * found.v)
    for shrinkage in SHRINKAGES.values():
        assert rule(other, shrinkage) == rule(found, shrinkage)


def test_rows_copied_within_their_unit_change_no_strength():
    found = random_evidence(5)
    twice = evidence(
        *(list(np.tile(c, 2)) for c in (found.reward, found.weight, found.q, found.v)), unit=[*range(40), *range(40)]
    )
    for shrinkage in SHRINKAGES.values():
        for rule in (room.by_error, room.by_slope):
            assert rule(twice, shrinkage) == rule(found, shrinkage)


@pytest.mark.parametrize("estimator", TUNED)
def test_a_tuned_value_prints_the_interval_without_shrinkage_widened_to_contain_it(estimator):
    found = random_evidence(9, 400)
    plain = room.ips(found) if estimator in (room.clipped_ips, room.sub_gaussian_ips) else dr(found)
    ours, theirs = (estimate(t, estimator="x", metric="y", level=0.95) for t in (estimator(found), plain))
    assert ours.low == pytest.approx(min(theirs.low, ours.value))
    assert ours.high == pytest.approx(max(theirs.high, ours.value))
    assert ours.ess == theirs.ess
    far = replace(estimator(found), value=theirs.high + 1.0)
    assert estimate(far, estimator="x", metric="y", level=0.95).high == theirs.high + 1.0


def test_a_tuned_estimator_can_not_be_the_headline():
    for name in ("cips", "sg-ips", "balanced-ips", "mips", "switch-dr", "dros", "sg-dr"):
        with pytest.raises(ConfigError, match=f"{name} can not be the headline"):
            Settings(headline=name)


def test_weights_that_must_be_learned_and_were_not_are_refused():
    found = random_evidence(0)
    for estimator in (room.balanced_ips, room.mips, room.mrdr, room.replay):
        with pytest.raises(SupportError):
            estimator(found)


# models


def test_the_robust_model_weighs_errors_as_its_variance_does():
    """One action, no context: the model is a mean of the other folds, weighted by target (1 - p) / p^2."""
    n = 12
    rng = np.random.default_rng(0)
    batch = Batch(
        encoder=Encoder(actions=("a", "b")),
        context=np.zeros((n, 0), dtype=np.float32),
        candidates=np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2)),
        mask=np.ones((n, 2), dtype=bool),
        action=np.zeros(n, dtype=np.int64),
        propensity=rng.uniform(0.2, 0.9, n),
        reward=rng.normal(size=n),
        metrics=np.zeros((n, 0)),
        discount=np.zeros(n),
        next=np.full(n, -1, dtype=np.int64),
        unit=np.arange(n),
    )
    taken = rng.uniform(0.1, 0.9, n)
    target = np.stack([taken, 1.0 - taken], axis=1)
    fold = np.arange(n) % 3
    found = robust_model(batch, batch.reward[:, None], target, weights(batch, target), fold)
    assert found is not None
    p = batch.propensity
    counts = taken * (1.0 - p) / p**2
    for g in range(3):
        others = fold != g
        assert found[0][fold == g, 0] == pytest.approx(np.average(batch.reward[others], weights=counts[others]))
    certain = replace(batch, propensity=np.ones(n))
    assert robust_model(certain, batch.reward[:, None], target, weights(certain, target), fold) is None


def test_weighted_errors_leave_a_model_that_is_right_as_it_is_and_unit_weights_the_plain_one():
    batch, target = single(2)
    fold = folds_of(Paths.of(batch), 5, 0)
    plain = reward_model(batch, batch.reward[:, None], target, fold)
    ones = reward_model(batch, batch.reward[:, None], target, fold, np.full(len(batch), 7.0))
    assert np.allclose(plain, ones)
    state = tabular.states(batch).astype(np.float64)
    exact = (2.0 * state + batch.action)[:, None]
    q, _ = reward_model(batch, exact, target, fold, np.random.default_rng(0).uniform(0.1, 3.0, len(batch)))
    assert np.abs(q - exact).max() < 0.02


def test_no_row_is_judged_by_a_robust_model_that_learned_from_its_unit():
    batch, target = single(2)
    fold = folds_of(Paths.of(batch), 5, 0)
    weight = weights(batch, target)
    spoiled = batch.reward.copy()
    spoiled[fold == 2] = 1e9
    plain, after = (robust_model(batch, r[:, None], target, weight, fold) for r in (batch.reward, spoiled))
    assert np.array_equal(plain[0][fold == 2], after[0][fold == 2])
    assert not np.array_equal(plain[0][fold != 2], after[0][fold != 2])


def test_mrdr_is_dr_with_its_own_model():
    found = random_evidence(4)
    rng = np.random.default_rng(4)
    q, v = rng.normal(size=40), rng.normal(size=40)
    ours, theirs = room.mrdr(replace(found, robust=Model(q, v))), dr(replace(found, q=q, v=v))
    assert ours.value == theirs.value
    assert np.array_equal(ours.low.pull, theirs.low.pull)


def test_mrdr_of_a_log_without_chance_is_refused_and_the_others_answer():
    batch, _ = single(3)
    certain = replace(batch, propensity=np.ones(len(batch)))
    target = np.full(certain.mask.shape, 0.25)
    found = evaluate(certain, target, Settings(estimators=("mrdr", "dr")), 0)
    assert [verdict.gate for verdict in found.refused] == ["mrdr"]
    assert [e.estimator for e in found.estimates if e.metric == "reward"] == ["dr"]


def test_every_metric_is_estimated_by_mrdr_as_if_it_were_the_reward():
    batch, target = single(1, 500)
    cost = np.random.default_rng(0).random(500)
    two = replace(batch, metrics=np.column_stack([batch.reward, cost]), metric_names=("reward", "cost"))
    alone = replace(batch, reward=cost, metrics=np.zeros((500, 0)), metric_names=())
    asked = Settings(estimators=("mrdr",), headline="mrdr")
    [cost_of_two], single_run = evaluate(two, target, asked, 0).metrics, evaluate(alone, target, asked, 0)
    assert cost_of_two.value.value == pytest.approx(single_run.headline.value, rel=1e-6)
    assert cost_of_two.lift.low == pytest.approx(single_run.lift.low, rel=1e-6)


def test_learned_weights_are_the_true_ones_where_the_log_is_large_and_look_at_no_propensity():
    world = tabular.bandit(3, 3, chi2=0.5, noise=0.3, seed=3)
    batch = world.sample(20_000, 0)
    target = tabular.rows(batch, world.target)
    fold = folds_of(Paths.of(batch), 5, 0)
    found = learned_weights(batch, target, fold)
    assert found.mean() == pytest.approx(1.0, abs=0.02)
    assert np.sqrt(np.mean((found - weights(batch, target)) ** 2)) < 0.05
    wrong = replace(batch, propensity=np.full(len(batch), 0.5))
    assert np.array_equal(learned_weights(wrong, target, fold), found)


def test_learned_weights_do_not_explode_where_the_target_goes_where_the_log_hardly_was():
    world = tabular.world_a()
    for seed in range(3):
        batch = world.sample(500, seed)
        found = learned_weights(batch, tabular.rows(batch, world.target), folds_of(Paths.of(batch), 5, seed))
        assert found.max() < 200.0
        assert found.mean() == pytest.approx(1.0, abs=0.5)


def featured(world: tabular.Bandit, n: int, seed: int) -> Batch:
    """Candidates carry a price; the first half of them one price, the second half another."""
    plain = world.sample(n, seed)
    actions = world.mean.shape[1]
    price = (np.arange(actions) >= actions // 2).astype(np.float32)
    columns = np.stack([price, np.zeros(actions, dtype=np.float32)], axis=1)
    own = np.concatenate([np.eye(actions, dtype=np.float32), columns], axis=1)
    encoder = Encoder(
        context=plain.encoder.context, candidate=(Continuous("price", 0.0, 1.0),), actions=plain.encoder.actions
    )
    return replace(plain, encoder=encoder, candidates=np.broadcast_to(own, (n, *own.shape)))


def test_marginal_weights_are_the_mean_weights_of_candidates_with_the_same_features():
    world = tabular.bandit(3, 4, chi2=0.5, noise=0.3, seed=3)
    batch = featured(world, 20_000, 0)
    target = tabular.rows(batch, world.target)
    found = learned_weights(batch, target, folds_of(Paths.of(batch), 5, 0), features=True)
    state, dear = tabular.states(batch), batch.action >= 2
    halves = [
        (world.target[:, half].sum(axis=1) / world.behavior[:, half].sum(axis=1))[state]
        for half in (slice(0, 2), slice(2, 4))
    ]
    assert found is not None
    assert np.abs(found - np.where(dear, halves[1], halves[0])).max() < 0.1
    assert learned_weights(*single(0), np.arange(400) % 5, features=True) is None


def test_mips_errs_less_than_ips_where_actions_are_many_and_features_tell_their_reward():
    world = tabular.bandit(4, 20, chi2=6.0, noise=0.2, seed=5)
    dear = np.arange(20) >= 10
    world = replace(world, mean=np.where(dear, 0.8, 0.2) * np.ones((4, 1)))
    truth = world.value(world.target)
    errors = []
    for seed in range(30):
        batch = featured(world, 500, seed)
        found = evaluate(batch, tabular.rows(batch, world.target), Settings(estimators=("ips", "mips"),
                         headline="ips"), seed)  # fmt: skip
        errors.append([e.value - truth for e in found.estimates if e.metric == "reward"])
    ips_error, mips_error = np.sqrt(np.mean(np.square(errors), axis=0))
    assert mips_error < 0.5 * ips_error


# coverage


def coverage(world: tabular.Bandit, n: int, logs: int) -> dict[str, float]:
    """Of every estimator: how often its interval holds the truth."""
    truth = world.value(world.target)
    inside: dict[str, list[bool]] = {}
    for seed in range(logs):
        batch = world.sample(n, seed)
        for found in evaluate(batch, tabular.rows(batch, world.target), Settings(), seed).estimates:
            if found.metric == "reward":
                inside.setdefault(found.estimator, []).append(found.low <= truth <= found.high)
    return {name: float(np.mean(hits)) for name, hits in inside.items()}


def test_intervals_cover():
    held = coverage(tabular.bandit(6, 4, chi2=2.0, noise=0.5, seed=7), 300, 150)
    assert len(held) == 13
    assert all(0.92 <= share <= 0.995 for share in held.values()), held
