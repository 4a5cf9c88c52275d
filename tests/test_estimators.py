"""Estimators against numbers worked out by hand, exact values of small worlds, and the traps others fell into."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, DataError, SupportError
from steersman.core.features import Encoder
from steersman.evaluate import ESTIMATORS, Evidence, Paths, Settings, evaluate
from steersman.evaluate.estimators import direct, ips, logged, snips
from steersman.evaluate.evidence import weights, whole
from steersman.evaluate.trajectories import dr, pdis, sn_pdis, sn_tis, tis, wdr
from steersman.worlds import tabular


def log(
    *,
    next: list[int],
    reward: list[float],
    propensity: list[float] | None = None,
    discount: list[float] | None = None,
    unit: list[int] | None = None,
    metrics: np.ndarray | None = None,
    names: tuple[str, ...] = (),
) -> Batch:
    """A log of two named actions, the first one taken; without contexts. Rows without a next step are terminated."""
    n = len(next)
    ends = np.array(next) < 0
    return Batch(
        encoder=Encoder(actions=("a", "b")),
        context=np.zeros((n, 0), dtype=np.float32),
        candidates=np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2)),
        mask=np.ones((n, 2), dtype=bool),
        action=np.zeros(n, dtype=np.int64),
        propensity=np.array(propensity or [0.5] * n),
        reward=np.array(reward, dtype=np.float64),
        metrics=np.zeros((n, 0)) if metrics is None else metrics,
        discount=np.where(ends, 0.0, 1.0) if discount is None else np.array(discount, dtype=np.float64),
        next=np.array(next, dtype=np.int64),
        unit=_units(next) if unit is None else np.array(unit, dtype=np.int64),
        metric_names=names,
    )


def _units(next: list[int]) -> np.ndarray:
    unit = np.arange(len(next))
    for row, following in enumerate(next):
        if following >= 0:
            unit[following] = unit[row]
    return unit


def evidence(batch: Batch, taken: list[float], q: list[float] | None = None, v: list[float] | None = None) -> Evidence:
    """`taken`: the target's probability of the action taken."""
    target = np.array([[p, 1.0 - p] for p in taken])
    none = np.zeros(len(batch))
    return Evidence(
        Paths.of(batch),
        batch.reward,
        weights(batch, target),
        none if q is None else np.array(q, dtype=np.float64),
        none if v is None else np.array(v, dtype=np.float64),
    )


def mixed_lengths(lengths: list[int], rng: np.random.Generator) -> Batch:
    """Episodes of the given lengths, rewards at random, propensities from 0.2 to 1."""
    following, start = [], 0
    for length in lengths:
        following += [*range(start + 1, start + length), -1]
        start += length
    n = len(following)
    return log(next=following, reward=list(rng.normal(1.0, 1.0, n)), propensity=list(rng.uniform(0.2, 1.0, n)))


# by hand


def test_one_step_estimators_by_hand():
    """w = 2, 0.5, 1; w r = 2, 0, 1."""
    found = evidence(
        log(next=[-1, -1, -1], reward=[1, 0, 1], propensity=[0.25, 0.5, 0.5]),
        taken=[0.5, 0.25, 0.5],
        q=[0.5, 0.5, 1.0],
        v=[0.4, 0.6, 0.8],
    )
    assert logged(found).center == pytest.approx(2 / 3)
    assert ips(found).value == pytest.approx(1.0)
    assert snips(found).value == pytest.approx(3.0 / 3.5)
    assert direct(found).value == pytest.approx(0.6)
    assert dr(found).value == pytest.approx(((0.4 + 2 * 0.5) + (0.6 - 0.5 * 0.5) + 0.8) / 3)


def test_the_error_of_ips_is_that_of_a_mean_and_of_snips_that_of_a_ratio():
    found = evidence(log(next=[-1] * 4, reward=[1, 0, 2, 5], propensity=[0.25, 0.5, 0.5, 1.0]), taken=[0.5] * 4)
    products = np.array([2.0, 0.0, 2.0, 2.5])
    assert ips(found).low.error == pytest.approx(products.std(ddof=1) / 2)
    w = np.array([2.0, 1.0, 1.0, 0.5])
    r = np.array([1.0, 0.0, 2.0, 5.0])
    left_out = [(np.delete(w, i) @ np.delete(r, i)) / np.delete(w, i).sum() for i in range(4)]
    whole_value = (w @ r) / w.sum()
    jackknife = np.sqrt(3 / 4 * np.sum((np.array(left_out) - whole_value) ** 2))
    assert snips(found).low.error == pytest.approx(jackknife)


def test_sequence_estimators_by_hand():
    """Two episodes: w = (2, 0.5) and (1); discount 0.5 between the two steps of the first."""
    found = evidence(
        log(next=[1, -1, -1], reward=[1, 4, 3], propensity=[0.25, 1.0, 0.5], discount=[0.5, 0, 0]),
        taken=[0.5, 0.5, 0.5],
        q=[1.0, 2.0, 1.0],
        v=[1.5, 1.0, 2.0],
    )
    assert logged(found).center == pytest.approx((1 + 0.5 * 4 + 3) / 2)
    assert pdis(found).value == pytest.approx((2 * 1 + 0.5 * 1 * 4 + 3) / 2)
    first = 1.5 + 2 * (1 - 1) + 0.5 * (2 * 1.0 + 1 * (4 - 2))
    second = 2.0 + (3 - 1)
    assert dr(found).value == pytest.approx((first + second) / 2)
    # step 0: weights (2, 1) of sum 3; step 1: (1, 1), the second episode over but still weighing
    step_0 = (1.5 + 2.0) / 2 + (2 * (1 - 1) + 1 * (3 - 1)) / 3
    step_1 = 0.5 * (2 * 1.0 / 3 + 1 * (4 - 2) / 2)
    assert wdr(found).value == pytest.approx(step_0 + step_1)
    # whole episodes: weights (1, 1), returns (1 + 0.5 * 4, 3)
    assert tis(found).value == pytest.approx((3 + 3) / 2)
    assert sn_tis(found).value == pytest.approx((3 + 3) / 2)
    assert sn_pdis(found).value == pytest.approx((2 * 1 + 1 * 3) / 3 + 0.5 * 4 / 2)


def test_value_is_per_episode_when_a_unit_has_several():
    batch = log(next=[-1, -1, -1], reward=[1, 1, 4], unit=[7, 7, 3])
    found = logged(evidence(batch, taken=[0.5] * 3))
    assert found.center == pytest.approx(2.0)
    assert len(found.pull) == 2


def test_two_discounts_multiply_along_an_episode():
    batch = log(next=[1, 2, -1, -1], reward=[1, 1, 1, 0], discount=[0.5, 0.25, 0, 0])
    assert logged(evidence(batch, taken=[0.5] * 4)).center == pytest.approx((1 + 0.5 + 0.125) / 2)


# identities on episodes of 1 to 40 steps


lengths = st.lists(st.integers(1, 40), min_size=5, max_size=30)


@given(lengths=lengths, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_of_the_behavior_policy_products_of_weights_give_the_logged_mean(lengths, seed):
    batch = mixed_lengths(lengths, np.random.default_rng(seed))
    found = evidence(batch, taken=list(batch.propensity))
    for estimator in (tis, sn_tis, pdis, sn_pdis, dr, wdr):
        assert estimator(found).value == pytest.approx(logged(found).center, rel=1e-9, abs=1e-9)


@given(lengths=lengths, seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1.0, 1e6]))
@settings(max_examples=40, deadline=None)
def test_of_the_behavior_policy_a_model_adds_its_own_surprise_and_nothing_else(lengths, seed, size):
    """With target = behavior, DR - logged is exactly the mean of sum (v_t - q_t), which has mean 0 for any model."""
    rng = np.random.default_rng(seed)
    batch = mixed_lengths(lengths, rng)
    q, v = size * rng.normal(size=len(batch)), size * rng.normal(size=len(batch))
    found = evidence(batch, taken=list(batch.propensity), q=list(q), v=list(v))
    extra = np.sum(v - q) / len(lengths)
    for estimator in (dr, wdr):
        assert estimator(found).value == pytest.approx(logged(found).center + extra, rel=1e-9, abs=1e-9 * size)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_of_the_behavior_policy_any_model_gives_the_logged_mean_within_three_errors(size):
    """40 logs of unequal episodes, a random action value for every row and candidate: no z over 4, none on average."""
    z = {"dr": [], "wdr": []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        world = tabular.garnet(6, 3, horizon=40, stop=0.1, seed=seed)
        behavior = tabular.softmax(rng.normal(size=world.mean.shape))
        batch = world.sample(200, behavior, seed)
        target = tabular.rows(batch, behavior)
        q = size * rng.normal(size=target.shape) * (1 + batch.step[:, None])
        rows = np.arange(len(batch))
        found = Evidence(Paths.of(batch), batch.reward, weights(batch, target), q[rows, batch.action],
                         np.sum(target * q, axis=1))  # fmt: skip
        for name, scores in z.items():
            lift = ESTIMATORS[name].terms(found).minus_logged(logged(found))
            scores.append(lift.value / lift.low.error)
    for name, scores in z.items():
        assert np.abs(scores).max() < 4, name
        assert abs(np.mean(scores)) * np.sqrt(40) < 3, name
        assert 0.7 < np.std(scores) < 1.3, name


def test_episodes_that_are_over_keep_their_weight():
    """Geometric lengths, reward 1 a step, a target close to the log: the mean length, not that of the longest."""
    rng = np.random.default_rng(0)
    batch = mixed_lengths([int(x) for x in np.minimum(rng.geometric(0.2, 2000), 40)], rng)
    n = len(batch)
    ones = Evidence(
        Paths.of(batch), np.ones(n), np.where(rng.random(n) < 0.5, 0.9, 1.1), np.zeros(n), np.zeros(n)
    )  # weights that tell nothing
    mean = n / 2000
    for estimator in (wdr, sn_pdis, sn_tis):
        found = estimator(ones)
        assert abs(found.value - mean) < 4 * found.low.error < 0.6


def test_a_normalised_mean_of_ones_is_one_however_many_they_are():
    """A mean over a sum instead would be 1 / n."""
    rng = np.random.default_rng(2)
    batch = mixed_lengths([1, 2] * 500, rng)
    found = evidence(batch, taken=list(np.clip(batch.propensity * rng.uniform(0.8, 1.2, len(batch)), 0, 1)))
    first = (batch.step == 0).astype(np.float64)  # a return of 1 an episode
    ones = Evidence(found.paths, first, found.weight, found.q, found.v)
    for estimator in (sn_tis, sn_pdis):
        assert estimator(ones).value == pytest.approx(1.0, abs=1e-12)
        assert estimator(ones).low.error < 1e-12


def test_weighted_dr_knows_the_error_of_its_denominators():
    """Rewards all 5: a self-normalised estimate has no error at all. Freezing the denominators would show one."""
    rng = np.random.default_rng(1)
    batch = mixed_lengths([3] * 50, rng)
    found = evidence(batch, taken=list(np.clip(batch.propensity * rng.uniform(0.5, 1.5, len(batch)), 0, 1)))
    fives = Evidence(found.paths, np.full(len(batch), 5.0), found.weight, found.q, found.v)
    assert wdr(fives).value == pytest.approx(15.0)
    assert wdr(fives).low.error < 1e-12
    assert pdis(fives).low.error > 0.1


@given(shift=st.floats(-100, 100), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_constant_added_to_the_reward_moves_snips_by_it_and_leaves_its_error(shift, seed):
    rng = np.random.default_rng(seed)
    batch = log(next=[-1] * 30, reward=list(rng.normal(size=30)), propensity=list(rng.uniform(0.1, 1, 30)))
    found = evidence(batch, taken=list(rng.uniform(0.01, 1, 30)))
    moved = Evidence(found.paths, found.reward + shift, found.weight, found.q, found.v)
    assert snips(moved).value == pytest.approx(snips(found).value + shift, abs=1e-9)
    assert snips(moved).low.error == pytest.approx(snips(found).low.error, abs=1e-9)


def test_dr_with_the_true_model_beats_importance_weights():
    world = tabular.garnet(6, 3, horizon=10, stop=0.05, seed=4)
    rng = np.random.default_rng(4)
    behavior = tabular.softmax(rng.normal(size=world.mean.shape))
    target = tabular.mixed(behavior, 0.2)
    batch = world.sample(500, behavior, 4)
    probabilities, q = tabular.rows(batch, target), tabular.rows(batch, world.q(target))
    rows = np.arange(len(batch))
    found = Evidence(Paths.of(batch), batch.reward, weights(batch, probabilities), q[rows, batch.action],
                     np.sum(probabilities * q, axis=1))  # fmt: skip
    assert dr(found).low.error < 0.8 * pdis(found).low.error
    assert dr(found).value == pytest.approx(world.value(target), abs=4 * dr(found).low.error)


# open episodes


def open_log() -> tuple[Batch, np.ndarray]:
    """Three episodes that end, and one of two steps whose end nobody saw, in a unit of its own."""
    batch = log(
        next=[1, -1, -1, 4, -1, -1],
        reward=[1, 1, 3, 100, 100, 2],
        discount=[1, 0, 0, 1, 1, 0],
    )
    return batch, np.full((6, 2), 0.5)


def test_an_open_episode_is_left_out_and_counted_never_taken_as_over():
    batch, target = open_log()
    found = evaluate(batch, target, Settings(estimators=("pdis",), headline="pdis"), 0)
    assert found.support.open_episodes == 1
    assert found.support.episodes == 3
    assert found.baseline.value == pytest.approx((2 + 3 + 2) / 3)
    assert found.headline.value == pytest.approx((2 + 3 + 2) / 3)


def test_an_episode_cut_by_the_horizon_is_whole():
    batch, _ = open_log()
    rows, still_open = whole(batch, 2)
    assert rows.all()
    assert still_open == 0
    _, still_open = whole(batch, 3)
    assert still_open == 1


def test_an_episode_that_a_limit_of_time_ended_is_whole():
    batch, target = open_log()
    limited = replace(batch, limited=np.arange(6) == 4)
    assert whole(limited, None)[1] == 0
    assert evaluate(limited, target, Settings(estimators=("pdis",), headline="pdis"), 0).baseline.value == 207 / 4


def test_an_episode_whose_beginning_is_not_there_is_not_whole_however_it_ends():
    batch, target = open_log()
    begun = replace(batch, begun=np.arange(6) == 2)
    rows, missing = whole(begun, None)
    assert rows.tolist() == [True, True, False, False, False, True]
    assert missing == 2
    assert evaluate(begun, target, Settings(estimators=("pdis",), headline="pdis"), 0).baseline.value == 2.0


def test_for_what_was_returned_it_does_not_matter_whether_the_world_or_a_limit_of_time_ended_an_episode():
    world = tabular.garnet(6, 3, horizon=40, stop=0.2, seed=4)
    behavior = tabular.softmax(np.random.default_rng(4).normal(size=world.mean.shape))
    batch = world.sample(300, behavior, 4)
    batch = batch.take(np.flatnonzero(whole(batch, None)[0]))
    ended = np.where(batch.terminated, batch.discount.max(), batch.discount)
    limited = replace(batch, discount=ended, limited=batch.terminated)
    assert limited.over.sum() == batch.over.sum() > 100 and not limited.terminated.any()
    target = tabular.rows(batch, tabular.mixed(behavior, 0.2))
    one, other = (evaluate(each, target, Settings(), 0) for each in (batch, limited))
    assert [e.value for e in one.estimates] == [e.value for e in other.estimates]


def test_an_episode_longer_than_the_horizon_is_refused():
    batch = log(next=[1, 2, -1], reward=[1, 1, 1])
    with pytest.raises(DataError, match=r"row 2 is step 2 .* horizon is 2"):
        whole(batch, 2)


def test_a_log_of_open_episodes_only_is_refused():
    batch = log(next=[1, -1, 3, -1], reward=[1, 1, 1, 1], discount=[1, 1, 1, 1])
    with pytest.raises(DataError, match="none of the 2 episodes is there from its start to its end"):
        evaluate(batch, np.full((4, 2), 0.5), Settings(), 0)


def test_single_decisions_that_were_not_said_to_end_are_single_decisions():
    batch = log(next=[-1, -1], reward=[1, 3], discount=[1, 1])
    found = evaluate(batch, np.full((2, 2), 0.5), Settings(estimators=("ips",), headline="ips"), 0)
    assert found.baseline.value == pytest.approx(2.0)


@pytest.mark.parametrize("truncate", [False, True])
def test_values_do_not_depend_on_whether_the_horizon_is_logged_as_an_end(truncate):
    """Rows that the horizon ends, terminated or truncated, must not teach that contexts end there."""
    world = tabular.garnet(6, 3, horizon=6, stop=0.02, seed=1)
    behavior = tabular.softmax(np.random.default_rng(1).normal(size=world.mean.shape))
    target = tabular.mixed(behavior, 0.4)
    batch = world.sample(1500, behavior, 5, truncate=truncate)
    found = evaluate(batch, tabular.rows(batch, target), Settings(), 0, horizon=6)
    assert found.headline.estimator == "drl"
    error = (found.headline.high - found.headline.low) / 4
    assert found.headline.value == pytest.approx(world.value(target), abs=3.5 * error)
    fitted = next(e for e in found.estimates if e.estimator == "fqe")
    assert fitted.value == pytest.approx(world.value(target), abs=4 * error)


# refusals


def test_a_target_that_is_no_policy_is_refused():
    batch = log(next=[-1, -1], reward=[1, 3])
    for bad, message in (
        (np.full((2, 2), np.nan), "not finite"),
        (np.array([[1.5, -0.5], [0.5, 0.5]]), "row 0: .* negative"),
        (np.array([[0.5, 0.5], [0.9, 0.9]]), "row 1: .* sum to 1"),
        (np.full((2, 3), 1 / 3), "must be"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate(batch, bad, Settings(), 0)


def test_probability_on_padding_is_refused():
    batch = log(next=[-1, -1], reward=[1, 3])
    batch = Batch(**{name: getattr(batch, name) for name in batch.__dataclass_fields__}
                  | {"mask": np.array([[True, False], [True, True]])})  # fmt: skip
    with pytest.raises(DataError, match=r"row 0: .* padding"):
        evaluate(batch, np.full((2, 2), 0.5), Settings(), 0)


def test_an_estimate_that_rests_on_one_unit_is_refused():
    batch = log(next=[-1] * 5, reward=[1, 2, 3, 4, 5])
    with pytest.raises(SupportError, match="one of the 5 units"):
        snips(evidence(batch, taken=[1.0, 0, 0, 0, 0]))


def test_products_of_weights_that_cannot_speak_are_refused_with_the_reason_and_the_others_answer():
    """Over 40 steps a few of 300 episodes would be all of the sum; the ess of the sample does not show it."""
    world = tabular.garnet(8, 4, horizon=40, stop=0.1, seed=3)
    scores = np.random.default_rng(1).normal(size=world.mean.shape)
    behavior = tabular.softmax(scores)
    target = tabular.softmax(scores + np.random.default_rng(2).normal(size=scores.shape))
    batch = world.sample(300, behavior, 0)
    found = evaluate(batch, tabular.rows(batch, target), Settings(), 0, horizon=40)
    products = {"tis", "sn-tis", "pdis", "sn-pdis", "dr", "wdr", "magic"}
    assert {verdict.gate for verdict in found.refused} == products
    assert all("effective" in verdict.reason and verdict.status == "not identified" for verdict in found.refused)
    assert [e.estimator for e in found.estimates] == ["fqe", "smis", "samis", "drl"]
    with pytest.raises(SupportError, match="effective"):
        evaluate(batch, tabular.rows(batch, target), Settings(headline="wdr"), 0, horizon=40)


def test_weights_that_overflow_are_refused():
    batch = log(next=[*range(1, 400), -1, -1], reward=[1.0] * 401, propensity=[0.001] * 401)
    with pytest.raises(SupportError, match="overflows"):
        pdis(evidence(batch, taken=[0.9] * 401))


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(ConfigError, match="did you mean snips"):
        Settings(estimators=("snps",))
    with pytest.raises(ConfigError, match="dm can not be the headline"):
        Settings(headline="dm")
    with pytest.raises(ConfigError, match="level"):
        Settings(level=1.0)
    with pytest.raises(ConfigError, match="folds"):
        Settings(folds=1)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"fold": 3}, Settings)


# metrics


def test_every_metric_is_estimated_as_if_it_were_the_reward():
    world = tabular.bandit(6, 4, chi2=1.0, noise=0.3, seed=1)
    batch = world.sample(500, 1)
    cost = np.random.default_rng(0).random(500)
    arrays = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    two = Batch(**arrays | {"metrics": np.column_stack([batch.reward, cost]), "metric_names": ("clicks", "cost")})
    alone = Batch(**arrays | {"reward": cost, "metrics": np.zeros((500, 0)), "metric_names": ()})
    target = tabular.rows(batch, world.target)
    found, single = evaluate(two, target, Settings(), 0), evaluate(alone, target, Settings(), 0)
    clicks, costs = found.metrics
    assert clicks.value.value == found.headline.value
    assert clicks.lift.low == found.lift.low
    assert costs.value.metric == "cost"
    for ours, theirs in ((costs.value, single.headline), (costs.lift, single.lift), (costs.baseline, single.baseline)):
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), rel=1e-6)


def test_a_metric_that_did_not_always_arrive_is_not_estimated_and_says_why():
    holes = np.array([[1.0], [np.nan], [1.0]])
    batch = log(next=[-1] * 3, reward=[1, 2, 3], metrics=holes, names=("dwell",))
    found = evaluate(batch, np.full((3, 2), 0.5), Settings(estimators=("ips",), headline="ips"), 0)
    assert found.metrics == ()
    assert {v.status for v in found.refused} == {"not identified"}
    reasons = {v.gate: v.reason for v in found.refused}
    assert set(reasons) == {"metric dwell", "ratio of reward"}  # of 3 units it may be 0
    assert "1 of 3 decisions" in reasons["metric dwell"]
