"""Confidence sequences: closed forms, laws of intervals, and coverage at all looks at once on terms of known mean."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.errors import DataError
from steersman.evaluate.anytime import (
    asymptotic,
    asymptotic_floor,
    bernstein_floor,
    betting_floor,
    errors_out,
    errors_wide,
    lift_terms,
    rho,
)
from steersman.evaluate.intervals import Influence

NORMAL = NormalDist()
LOOKS = np.arange(500, 20_001, 500) - 1


def bernstein(terms: np.ndarray, level: float) -> float:
    return bernstein_floor(len(terms), float(terms.sum()), float(terms @ terms), level)


FLOORS = pytest.mark.parametrize("floor", [bernstein, betting_floor], ids=["bernstein", "betting"])


def weighted(reps: int, n: int, lift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of 0 or 1 and weights of two actions: 0.1 of the log has weight 6, so chi2 is 2.8; the lift as given."""
    rng = np.random.default_rng(seed)
    rare = rng.random((reps, n)) < 0.1
    weight = np.where(rare, 6.0, 4.0 / 9.0)
    chance = np.where(rare, 0.4 + 2.0 * lift, 0.4)  # lift = 0.1 * 5 * (0.4 + 2 lift) - 0.9 * 5/9 * 0.4
    return (rng.random((reps, n)) < chance).astype(np.float64), weight


# the asymptotic sequence


@pytest.mark.parametrize(("n", "ratio"), [(500, 2.1), (4000, 1.69), (20_000, 1.76)])
def test_the_one_sided_sequence_is_as_wide_as_published(n, ratio):
    assert errors_wide(n, 0.95, 4000, sides=1) / NORMAL.inv_cdf(0.95) == pytest.approx(ratio, abs=0.015)


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_no_mixture_is_tighter_at_the_number_that_it_is_tuned_for(sides, level):
    best = min(float(errors_wide(1000, level, tuned, sides)) for tuned in np.geomspace(10, 100_000, 300))
    assert errors_wide(1000, level, 1000, sides) == pytest.approx(best, rel=2e-3)
    assert rho(level, 4000, sides) == pytest.approx(rho(level, 1000, sides) / 2)


@given(times=st.floats(0.25, 10), level=st.floats(0.9, 0.999), tuned=st.floats(10, 1e6))
@settings(max_examples=60, deadline=None)
def test_a_sequence_is_wider_than_a_single_look_and_two_sides_than_one(times, level, tuned):
    n = times * tuned
    one, two = errors_wide(n, level, tuned, sides=1), errors_wide(n, level, tuned, sides=2)
    assert one > NORMAL.inv_cdf(level)
    assert two > NORMAL.inv_cdf(0.5 + level / 2)
    assert two > one
    assert errors_wide(2 * n, level, tuned, sides=1) / math.sqrt(2) < one


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=40), st.floats(-1e3, 1e3), st.floats(0.1, 100))
@settings(max_examples=40, deadline=None)
def test_the_sequence_moves_and_scales_with_the_terms(values, shift, scale):
    terms = np.array(values)
    low, high = asymptotic(terms, 0.95)
    moved_low, moved_high = asymptotic(shift + scale * terms, 0.95)
    assert moved_low[1:] == pytest.approx(shift + scale * low[1:], rel=1e-6, abs=1e-4)
    assert moved_high[1:] == pytest.approx(shift + scale * high[1:], rel=1e-6, abs=1e-4)
    mirrored_low, mirrored_high = asymptotic(-terms, 0.95)
    assert mirrored_low[1:] == pytest.approx(-high[1:], abs=1e-6)
    assert mirrored_high[1:] == pytest.approx(-low[1:], abs=1e-6)


def test_the_sequence_holds_the_mean_in_its_middle_and_shrinks_with_the_terms():
    terms = np.random.default_rng(0).normal(3.0, 2.0, size=(2, 20_000))
    low, high = asymptotic(terms, 0.95)
    floor = asymptotic_floor(terms, 0.95)
    assert low.shape == high.shape == floor.shape == terms.shape
    assert (low[:, 0] == -math.inf).all()
    assert (high[:, 0] == math.inf).all()
    mean = np.cumsum(terms, axis=1) / np.arange(1, 20_001)
    assert (low[:, 1:] + high[:, 1:]) / 2 == pytest.approx(mean[:, 1:])
    assert (low[:, 1:] < floor[:, 1:]).all()
    assert (floor[:, 1:] < mean[:, 1:]).all()
    wide = (high - low)[:, LOOKS]
    assert (np.diff(wide, axis=1) < 0).all()
    error = terms[0, :5000].std(ddof=1) / math.sqrt(5000)
    assert floor[0, 4999] == pytest.approx(mean[0, 4999] - float(errors_wide(5000, 0.95, sides=1)) * error)


def test_a_side_with_many_even_terms_gets_the_errors_of_the_sequence():
    pull = np.random.default_rng(0).normal(size=200_000)
    side = Influence(0.0, pull)
    for sign in (-1, 1):
        wide = float(errors_wide(200_000, 0.95, sides=1))
        assert errors_out(side, 200_000, sign, 0.95) == pytest.approx(sign * wide, rel=2e-3)


def test_a_side_with_few_heavy_terms_gets_more_and_every_number_is_finite():
    heavy = np.zeros(1000)
    heavy[:4] = 1.0, 1.0, -1.0, -1.0
    side = Influence(0.0, heavy)
    assert -errors_out(side, 1000, -1, 0.95) > 1.4 * float(errors_wide(1000, 0.95, sides=1))
    for n in (2, 3, 10, 50, 100):
        few = Influence(0.0, np.linspace(-1.0, 1.0, n))
        found = [errors_out(few, n, sign, 0.95) for sign in (-1, 1)]
        assert np.isfinite(found).all()
        assert -found[0] >= errors_wide(n, 0.95, sides=1) * (1 - 1e-9)
        assert found[1] == pytest.approx(-found[0], rel=1e-3)


def test_levels_and_tunings_that_are_none_are_refused():
    for level, sides in ((0.5, 1), (0.2, 1), (1.0, 1), (0.0, 2), (1.0, 2)):
        with pytest.raises(DataError, match="level"):
            rho(level, 4000, sides)
    for tuned in (0.0, -1.0, math.nan):
        with pytest.raises(DataError, match="tuned"):
            rho(0.95, tuned)


# sequences that hold at every n


def test_the_terms_of_a_lift_have_its_mean_are_at_least_minus_1_and_know_no_unit():
    reward, weight = (array[0] for array in weighted(1, 200_000, 0.05, 0))
    terms = lift_terms(reward, weight, 0.0, 1.0)
    assert terms.mean() == pytest.approx(0.05, abs=4 * terms.std() / math.sqrt(200_000))
    assert terms.min() >= -1
    assert lift_terms(7.0 + 3.0 * reward, weight, 7.0, 10.0) == pytest.approx(terms)


def test_rewards_outside_the_declared_range_are_refused():
    with pytest.raises(DataError, match=r"row 1: the reward is 1\.5, .* \(2 such rows of 3\)"):
        lift_terms(np.array([0.0, 1.5, math.nan]), np.ones(3), 0.0, 1.0)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf)):
        with pytest.raises(DataError, match="range"):
            lift_terms(np.zeros(3), np.ones(3), low, high)


@FLOORS
def test_a_hard_floor_is_below_the_mean_above_minus_1_and_rises_with_the_terms(floor):
    reward, weight = (array[0] for array in weighted(1, 50_000, 0.1, 1))
    terms = lift_terms(reward, weight, 0.0, 1.0)
    found = [floor(terms[:n], 0.95) for n in (10, 100, 1000, 10_000, 50_000)]
    assert found == sorted(found)
    assert all(-1 <= low < terms[:n].mean() for low, n in zip(found, (10, 100, 1000, 10_000, 50_000), strict=True))
    assert found[-1] > 0.06
    assert floor(terms, 0.99) < floor(terms, 0.95) < floor(terms, 0.8)
    assert floor(np.full(5, -1.0), 0.95) == pytest.approx(-1.0)


@FLOORS
def test_a_hard_floor_does_not_ask_in_which_order_the_terms_came(floor):
    terms = lift_terms(*(array[0] for array in weighted(1, 500, 0.1, 2)), 0.0, 1.0)
    assert floor(terms[::-1].copy(), 0.95) == pytest.approx(floor(terms, 0.95))


@FLOORS
def test_a_hard_floor_is_wider_than_the_asymptotic_one(floor):
    terms = lift_terms(*(array[0] for array in weighted(1, 5000, 0.1, 3)), 0.0, 1.0)
    assert floor(terms, 0.95) < asymptotic_floor(terms, 0.95)[-1]


@given(st.lists(st.floats(-1, 50), min_size=1, max_size=30), st.floats(0.6, 0.99))
@settings(max_examples=30, deadline=None)
def test_the_money_of_fair_bets_at_the_bernstein_floor_is_the_goal(values, level):
    """From the definition, summed bet by bet over the terms."""
    terms = np.array(values)
    low = bernstein(terms, level)
    if low <= -1 + 1e-9:
        return
    money = 0.0
    for j in range(1, 25):
        bet = 0.5**j
        price = -math.log(1 - bet) - bet
        money += math.exp(sum(bet * (x - low) - price * x * x for x in values)) / (j * (j + 1))
    assert money == pytest.approx(1 / (1 - level), rel=1e-5)


@given(x=st.floats(-1, 1e6), bet=st.floats(0, 0.999))
@settings(max_examples=200, deadline=None)
def test_the_inequality_that_the_bernstein_floor_stands_on(x, bet):
    price = -math.log1p(-bet) - bet
    assert math.exp(bet * x - price * x * x) <= (1 + bet * x) * (1 + 1e-9) + 1e-12


def test_terms_that_can_not_be_bet_on_are_refused():
    for terms in (np.array([]), np.array([0.0, -1.1]), np.array([math.nan])):
        with pytest.raises(DataError, match="term"):
            betting_floor(terms, 0.95)


# coverage at all looks at once


def test_terms_of_mean_0_are_rarely_promoted_by_any_of_40_looks():
    """150 logs: the asymptotic floor at most 5%; a normal bound, asked as often, more than twice that."""
    reward, weight = weighted(150, 20_000, 0.0, 5)
    terms = (weight - 1.0) * (reward - 0.4)  # with the right model of the reward
    promoted = (asymptotic_floor(terms, 0.95)[:, LOOKS] > 0).any(axis=1).mean()
    n = np.arange(1, 20_001)
    error = terms.std() / np.sqrt(n)
    normal = ((np.cumsum(terms, axis=1) / n - 1.645 * error)[:, LOOKS] > 0).any(axis=1).mean()
    assert promoted <= 0.05
    assert normal > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("drift", [False, True])
def test_sequences_cover_at_40_looks_at_once(drift):
    """400 logs of 20,000 terms: two sides and each floor miss the mean at any of 40 looks in at most 5% of them.

    With drift the lift is -0.05 in the first half and as much above 0 in the second: the mean so far is what the
    asymptotic and the Bernstein sequence are about.
    """
    half = -0.05 if drift else 0.0
    first, second = weighted(400, 10_000, half, 11), weighted(400, 10_000, -half, 12)
    reward, weight = (np.concatenate(pair, axis=1) for pair in zip(first, second, strict=True))
    truth = np.cumsum(np.repeat([half, -half], 10_000)) / np.arange(1, 20_001)
    raw = lift_terms(reward, weight, 0.0, 1.0)
    low, high = asymptotic(raw, 0.95)
    floor = asymptotic_floor(raw, 0.95)
    missed = {
        "two sides": ((low > truth) | (high < truth))[:, LOOKS].any(axis=1).mean(),
        "one side": (floor > truth)[:, LOOKS].any(axis=1).mean(),
        "bernstein": np.mean([any(bernstein(x[: k + 1], 0.95) > truth[k] for k in LOOKS) for x in raw]),
    }
    if not drift:
        missed["betting"] = np.mean([any(betting_floor(x[: k + 1], 0.95) > 0 for k in LOOKS[::10]) for x in raw[:100]])
    assert all(share <= 0.05 for share in missed.values()), missed
