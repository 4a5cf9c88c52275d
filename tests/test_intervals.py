"""Intervals: quantiles against closed forms, errors against brute force, coverage on worlds with known values."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.errors import DataError, SupportError
from steersman.evaluate import Evidence, Paths, Settings, Terms, evaluate
from steersman.evaluate.estimators import ips, logged, snips
from steersman.evaluate.evidence import weights
from steersman.evaluate.intervals import Halves, Influence, bernstein, bootstrap, bound, estimate, ratio
from steersman.evaluate.quantiles import quantile, student_t
from steersman.evaluate.trajectories import dr, wdr
from steersman.worlds import tabular

WORLD_A = tabular.world_a()


def test_student_t_has_its_closed_forms():
    for p in (0.55, 0.8, 0.95, 0.975, 0.995, 0.9999):
        assert student_t(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
        assert student_t(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p))), rel=1e-9)
        root = math.sqrt(4 * p * (1 - p))
        q = math.cos(math.acos(root) / 3) / root
        assert student_t(p, 4) == pytest.approx(2 * math.sqrt(q - 1), rel=1e-9)


@pytest.mark.parametrize(
    ("p", "df", "printed"),
    [(0.975, 5, 2.571), (0.95, 10, 1.812), (0.975, 30, 2.042), (0.975, 120, 1.980), (0.995, 60, 2.660)],
)
def test_student_t_is_that_of_the_printed_tables(p, df, printed):
    assert student_t(p, df) == pytest.approx(printed, abs=5e-4)


@given(p=st.floats(0.001, 0.999), df=st.floats(1, 1e7))
@settings(max_examples=50, deadline=None)
def test_student_t_is_odd_and_wider_than_normal(p, df):
    assert student_t(p, df) == pytest.approx(-student_t(1 - p, df), rel=1e-7, abs=1e-9)
    assert abs(student_t(p, df)) >= abs(NormalDist().inv_cdf(p)) * (1 - 1e-6)


def test_student_t_of_many_is_normal():
    assert student_t(0.975, 999_999) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-5)
    assert student_t(0.975, 1_000_001) == pytest.approx(student_t(0.975, 999_999), abs=1e-5)


def test_no_degree_of_freedom_is_refused():
    with pytest.raises(DataError, match="one unit"):
        student_t(0.975, 0)


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 10)), min_size=3, max_size=30))
@settings(max_examples=30, deadline=None)
def test_the_pull_on_a_ratio_is_what_leaving_the_cluster_out_takes_away(rows):
    top, bottom = np.array(rows).T
    value, pull = ratio(top, bottom)
    for c in range(len(top)):
        without = np.delete(top, c).sum() / np.delete(bottom, c).sum()
        assert pull[c] == pytest.approx((len(top) - 1) * (value - without), rel=1e-6, abs=1e-6)


def test_a_ratio_with_one_cluster_below_is_refused():
    for bottom in ([0.0, 1.0, 0.0], [1e-12, 1.0, 0.0], [0.0, 0.0, 0.0]):
        with pytest.raises(SupportError, match="one of the 3 units"):
            ratio(np.ones(3), np.array(bottom))


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=40))
@settings(max_examples=30, deadline=None)
def test_the_error_of_a_mean_is_the_textbook_one(values):
    array = np.array(values)
    value, pull = ratio(array, np.ones(len(array)))
    side = Influence(value, pull)
    assert side.error == pytest.approx(array.std(ddof=1) / math.sqrt(len(array)), rel=1e-6, abs=1e-9)


def test_degrees_of_freedom_are_those_of_the_variance():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=20_000)
    assert Influence(0.0, normal).df == pytest.approx(19_999, rel=0.1)
    rare = np.zeros(10_000)
    rare[:3] = 1.0  # three clusters are all of the variance
    assert Influence(0.0, rare).df == pytest.approx(6, rel=0.01)
    assert Influence(0.0, np.array([1.0, -1.0])).df == 1.0


@given(p=st.floats(0.51, 0.999), df=st.floats(1, 1000), skew=st.floats(0.01, 2))
@settings(max_examples=60, deadline=None)
def test_skew_widens_the_side_of_the_long_tail_and_no_side_is_below_t_of_the_terms(p, df, skew):
    n = math.ceil(df) + 1
    up, down = quantile(p, df, skew, n), -quantile(1 - p, df, skew, n)
    assert up >= student_t(p, df) * (1 - 1e-9)
    assert down >= student_t(p, n - 1) * (1 - 1e-9)
    assert down <= max(student_t(p, df), student_t(p, n - 1)) * (1 + 1e-9)
    assert up == pytest.approx(-quantile(1 - p, df, -skew, n), rel=1e-6, abs=1e-6)


def test_skewed_terms_get_the_side_of_their_long_tail_widened():
    """Normal intervals miss a lognormal mean above 4 times as often as they should; these half as often as that."""
    rng = np.random.default_rng(0)
    above, normal_above, both = 0, 0, 0
    truth = math.exp(0.5)
    for _ in range(2000):
        sample = rng.lognormal(size=60)
        side = Influence(float(sample.mean()), sample - sample.mean())
        above += truth > bound(side, 0.975)
        normal_above += truth > side.center + 1.96 * side.error
        both += bound(side, 0.025) <= truth <= bound(side, 0.975)
    assert normal_above / 2000 > 0.09
    assert above / 2000 < 0.06
    assert 0.94 <= both / 2000 <= 0.98


def halves_of(seed: int, halves: int, bias: float = 0.0, apart: float = 0.0, chance: float = 0.0) -> Halves:
    """Means of random halves of 4,000 draws, and what else may move them; `chance` is that of either kind."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=4000)
    moved = np.array([rng.permutation(x)[:2000].mean() - x.mean() for _ in range(halves)])
    kinds = moved[:, None] + bias + apart * np.array([0.5, -0.5]) + chance * rng.normal(size=(halves, 2))
    whole = chance * rng.normal(size=2).mean() / math.sqrt(2)
    return Halves(float(x.mean() + whole), kinds - whole, moved, 4000.0)


ERROR = 1 / math.sqrt(4000)


def test_halves_have_the_error_of_the_whole():
    """Half-samples of 4,000 draws: their spread is the standard error; twins differ by nothing."""
    side = halves_of(0, 400)
    assert side.error == pytest.approx(ERROR, rel=0.12)
    lift = side.minus_logged(Influence(side.center, np.zeros(4000)))
    assert (lift.center, lift.error) == (0, 0)


@pytest.mark.parametrize(("what", "size"), [("bias", 1.0), ("apart", 0.5)])
def test_a_move_of_all_halves_and_a_difference_of_the_kinds_are_errors(what, size):
    found = [halves_of(seed, 10, **{what: 4 * ERROR}).error ** 2 for seed in range(300)]
    assert np.mean(found) == pytest.approx(ERROR**2 + (4 * size * ERROR) ** 2, rel=0.1)


def test_what_is_drawn_by_chance_counts_as_it_does_in_the_whole():
    """The whole draws twice as much of each kind, so it has half of a half's variance, that of two kinds together."""
    found = [halves_of(seed, 10, chance=3 * ERROR).error ** 2 for seed in range(300)]
    assert 1 < np.mean(found) / (ERROR**2 * (1 + 9 / 4)) < 1.6  # more, for a bias that chance made is never negative


def test_halves_of_few_clusters_have_few_degrees_of_freedom():
    side = halves_of(0, 10)
    assert side.df == 9
    assert replace(side, ess=3.5).df == 2.5
    assert replace(side, ess=1.0).df == 1


def test_the_interval_of_a_lift_is_paired():
    """Two policies that differ in a tenth of the rows: the error of the difference is far below that of either."""
    rng = np.random.default_rng(0)
    reward = rng.normal(5.0, 2.0, 1000)
    weight = np.where(np.arange(1000) < 100, rng.choice([0.0, 2.0], 1000), 1.0)
    value, pull = ratio(weight * reward, weight)
    terms, base = Terms.of(value, pull, weight), Influence(*ratio(reward, np.ones(1000)))
    lift = terms.minus_logged(base)
    assert lift.value == pytest.approx(terms.value - base.center)
    assert lift.low.error < 0.4 * base.error


def test_ess_counts_clusters():
    even = Terms.of(0.0, np.array([1.0, -1.0, 0.0, 0.0]), np.ones(4))
    assert (even.n, even.ess, even.largest_share) == (4, 4.0, 0.25)
    one = Terms.of(0.0, np.array([1.0, -1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0]))
    assert (one.ess, one.largest_share) == (1.0, 1.0)
    none = Terms.of(0.0, np.zeros(4), np.zeros(4))
    assert (none.ess, none.largest_share) == (0.0, 1.0)


def test_an_estimate_says_its_value_inside_its_interval():
    trusting = Terms(2.0, Influence(0.0, np.array([1.0, -1.0])), Influence(0.0, np.array([1.0, -1.0])), 2, 2.0, 0.5)
    found = estimate(trusting, estimator="dm", metric="reward", level=0.9)
    assert found.low < 0 < found.high
    assert found.high >= found.value == 2.0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.floats(0.5, 0.99))
@settings(max_examples=30, deadline=None)
def test_empirical_bernstein_is_its_formula_and_moves_and_scales_with_the_terms(values, level):
    terms = np.array(values)
    low, high = bernstein(terms, 0.0, 1.0, level)
    assert (low + high) / 2 == pytest.approx(terms.mean())
    n, away = len(values), math.log(2 / ((1 - level) / 2))
    half = math.sqrt(2 * terms.var(ddof=1) * away / n) + 7 * away / (3 * (n - 1))
    assert high - low == pytest.approx(2 * half)
    moved = bernstein(3.0 + 2.0 * terms, 3.0, 5.0, level)
    assert moved == pytest.approx((3.0 + 2.0 * low, 3.0 + 2.0 * high))


def test_empirical_bernstein_covers_what_no_normal_interval_does():
    """A term that is 1 once in 100: of 50 such the normal interval misses the mean more often than it covers it."""
    rng = np.random.default_rng(0)
    draws = (rng.random((400, 50)) < 0.01).astype(np.float64)
    covered = [low <= 0.01 <= high for low, high in (bernstein(x, 0.0, 1.0, 0.95) for x in draws)]
    normal = np.abs(draws.mean(axis=1) - 0.01) <= 1.96 * draws.std(axis=1) / math.sqrt(50)
    assert np.mean(covered) >= 0.95
    assert normal.mean() < 0.6


def test_empirical_bernstein_refuses_terms_outside_their_range_and_one_alone():
    with pytest.raises(DataError, match=r"term 1 is 1\.1"):
        bernstein(np.array([0.0, 1.1]), 0.0, 1.0, 0.95)
    with pytest.raises(DataError, match="1 units have no interval"):
        bernstein(np.array([0.5]), 0.0, 1.0, 0.95)


def share(sums: np.ndarray) -> np.ndarray:
    return sums[0] / sums[1]


def test_a_bootstrap_of_many_even_clusters_is_the_delta_method():
    rng = np.random.default_rng(0)
    top, bottom = rng.normal(1.0, 1.0, 3000), rng.uniform(0.5, 1.5, 3000)
    value, pull = ratio(top, bottom)
    side = Influence(value, pull)
    low, high = bootstrap(np.stack([top, bottom]), share, 0.95, seed=0)
    assert low == pytest.approx(bound(side, 0.025), abs=0.1 * side.error)
    assert high == pytest.approx(bound(side, 0.975), abs=0.1 * side.error)


def test_a_bootstrap_moves_and_scales_with_the_terms_and_repeats():
    rng = np.random.default_rng(1)
    top, ones = rng.lognormal(size=200), np.ones(200)
    low, high = bootstrap(np.stack([top, ones]), share, 0.9, seed=3)
    assert low < top.mean() < high
    again = bootstrap(np.stack([top, ones]), share, 0.9, seed=3)
    moved = bootstrap(np.stack([5.0 + 2.0 * top, ones]), share, 0.9, seed=3)
    assert again == (low, high)
    assert moved == pytest.approx((5.0 + 2.0 * low, 5.0 + 2.0 * high))
    more = np.stack([rng.lognormal(size=3200), np.ones(3200)])
    assert np.ptp(bootstrap(more, share, 0.9, seed=3)) < 0.5 * (high - low)


def test_a_bootstrap_of_rare_rewards_has_the_law_of_one_that_draws_every_cluster():
    """40 of 4,000 clusters have a reward: drawn as counts; a jitter of 1e-12 makes all differ, and each is drawn."""
    rng = np.random.default_rng(2)
    top = np.zeros(4000)
    top[:40] = rng.lognormal(size=40)
    jitter = 1e-12 * rng.random(4000)
    counted = bootstrap(np.stack([top, np.ones(4000)]), share, 0.95, seed=0, draws=4000)
    drawn = bootstrap(np.stack([top + jitter, np.ones(4000)]), share, 0.95, seed=1, draws=4000)
    error = top.std() / math.sqrt(4000)
    assert counted == pytest.approx(drawn, abs=0.15 * error)


def test_a_bootstrap_is_the_published_one():
    """Efron and Tibshirani 1993, table 14.2: the variance of 26 spatial tests, BCa at 90%: (115.8, 259.6)."""
    tests = "48 36 20 29 42 42 20 42 22 41 45 14 6 0 33 28 34 4 32 24 47 41 24 26 30 41"
    a = np.array(tests.split(), dtype=np.float64)
    columns = np.stack([a * a, a, np.ones(26)])
    found = bootstrap(columns, lambda sums: sums[0] / sums[2] - (sums[1] / sums[2]) ** 2, 0.9, seed=0, draws=10_000)
    assert found == pytest.approx((115.8, 259.6), rel=0.02)


def test_a_bootstrap_of_skewed_clusters_misses_the_long_tail_less_often():
    rng = np.random.default_rng(0)
    truth, above, normal = math.exp(0.5), 0, 0
    for seed in range(300):
        top = rng.lognormal(size=40)
        above += bootstrap(np.stack([top, np.ones(40)]), share, 0.95, seed, draws=500)[1] < truth
        normal += top.mean() + 1.96 * top.std(ddof=1) / math.sqrt(40) < truth
    assert above < 0.8 * normal


def test_a_bootstrap_that_rests_on_one_cluster_is_refused():
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(SupportError, match="rests on few"):
        bootstrap(np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), share, 0.95, seed=0)


# coverage


def coverage(names: list[str], draws, truth: float) -> dict[str, float]:
    inside = dict.fromkeys(names, 0)
    total = 0
    for evaluation in draws:
        total += 1
        for found in (evaluation.baseline, *evaluation.estimates):
            if found.estimator in inside and found.metric == "reward":
                inside[found.estimator] += found.low <= truth <= found.high
    return {name: count / total for name, count in inside.items()}


def bandit_draws(world: tabular.Bandit, n: int, replications: int, **changes: object):
    for seed in range(replications):
        batch = world.sample(n, seed)
        yield evaluate(batch, tabular.rows(batch, world.target), Settings(**changes), seed)


def test_intervals_of_single_decisions_cover():
    world = tabular.bandit(6, 4, chi2=2.0, noise=0.5, seed=7)
    found = coverage(["dm", "ips", "snips", "dr"], bandit_draws(world, 300, 200), world.value(world.target))
    assert all(0.92 <= share <= 0.99 for share in found.values()), found


def test_intervals_of_sequences_cover():
    world = tabular.garnet(6, 3, horizon=10, stop=0.1, seed=3)
    scores = np.random.default_rng(1).normal(size=world.mean.shape)
    behavior = tabular.softmax(scores)
    target = tabular.softmax(scores + 0.5 * np.random.default_rng(2).normal(size=scores.shape))
    draws = []
    for seed in range(200):
        batch = world.sample(150, behavior, seed, truncate=bool(seed % 2))
        draws.append(evaluate(batch, tabular.rows(batch, target), Settings(folds=3), seed, horizon=10))
    found = coverage(["pdis", "dr", "wdr", "fqe", "drl"], draws, world.value(target))
    assert all(0.92 <= share <= 0.99 for share in found.values()), found
    lift = world.value(target) - world.value(behavior)
    assert 0.92 <= np.mean([e.lift.low <= lift <= e.lift.high for e in draws]) <= 0.99


def test_units_with_many_episodes_cover_as_units():
    """20 units whose rewards share a level of their own: intervals by rows would cover a third of the time."""
    inside, rows_inside = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(20), 15)
        reward = rng.normal(size=20)[unit] + 0.3 * rng.normal(size=300)
        batch = WORLD_A.sample(300, seed)
        batch = replace(batch, unit=unit, reward=reward)
        found = Evidence(Paths.of(batch), reward, np.ones(300), np.zeros(300), np.zeros(300))
        side = logged(found)
        inside += bound(side, 0.025) <= 0.0 <= bound(side, 0.975)
        rows_inside += abs(reward.mean()) <= 1.96 * reward.std() / math.sqrt(300)
    assert rows_inside / 200 < 0.5
    assert inside / 200 >= 0.92


def test_the_interval_of_snips_knows_its_denominator():
    """World B: rewards around 5.5. IPS's interval over the mean weight would be some seven times as wide."""
    world = tabular.world_b()
    batch = world.sample(2000, 0)
    target = tabular.rows(batch, world.target)
    none = np.zeros(2000)
    found = Evidence(Paths.of(batch), batch.reward, weights(batch, target), none, none)
    assert snips(found).low.error < 0.2 * ips(found).low.error
    assert dr(found).low.error == pytest.approx(ips(found).low.error)
    assert wdr(found).low.error == pytest.approx(snips(found).low.error)


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [20, 60])
def test_drl_covers_over_long_horizons(horizon):
    world = tabular.garnet(12, 3, horizon=horizon, stop=0.02, seed=5)
    rng = np.random.default_rng(5)
    behavior = tabular.softmax(rng.normal(size=world.mean.shape))
    target = tabular.mixed(tabular.softmax(2 * rng.normal(size=world.mean.shape)), 0.2)
    draws = []
    for seed in range(500):
        batch = world.sample(300, behavior, seed, truncate=bool(seed % 2))
        settings = Settings(estimators=("drl", "fqe"))
        draws.append(evaluate(batch, tabular.rows(batch, target), settings, seed, horizon=horizon))
    found = coverage(["drl", "fqe"], draws, world.value(target))
    assert all(0.92 <= share <= 0.985 for share in found.values()), found
