"""Explorers by their numbers, the draw, and Policy."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core import policy as policies
from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.density import Gaussian, Point, UniformBox
from steersman.core.errors import DataError
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import EpsilonGreedy, Policy, Softmax, SquareCB, Thompson, Uniform, constant_scorer, draw
from steersman.worlds import tabular
from steersman.worlds.logit import logit

LAST_BELOW_ONE = 1.0 - 2.0**-53


@pytest.mark.parametrize("count", [1, 2, 3, 7, 80])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.25, 1.0])
def test_epsilon_greedy_gives_one_minus_eps_plus_eps_over_k_to_the_best_and_eps_over_k_to_the_rest(count, epsilon):
    scores = np.arange(count, dtype=np.float32)[None]
    found = EpsilonGreedy(epsilon).probabilities(scores, np.ones((1, count), dtype=bool))[0]
    eps, k = Fraction(epsilon), count
    assert found[-1] == pytest.approx(float(1 - eps + eps / k), abs=1e-15)
    assert found[:-1] == pytest.approx([float(eps / k)] * (count - 1), abs=1e-17)


def test_epsilon_greedy_splits_ties_evenly():
    scores = np.array([[2, 2, 1, 2], [0, 0, 0, 0]], dtype=np.float32)
    mask = np.array([[True, True, True, True], [True, True, False, False]])
    found = EpsilonGreedy(0.3).probabilities(scores, mask)
    each = 0.7 / 3 + 0.3 / 4
    assert found[0] == pytest.approx([each, each, 0.075, each], abs=1e-15)
    assert found[1] == pytest.approx([0.5, 0.5, 0, 0], abs=1e-15)


def test_uniform_gives_one_over_k():
    mask = np.array([[True, True, True], [True, False, True], [False, True, False]])
    found = Uniform().probabilities(np.full((3, 3), np.nan, dtype=np.float32), mask)
    assert found.tolist() == [[1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5], [0, 1, 0]]


@settings(max_examples=100)
@given(
    row=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=8),
    temperature=st.floats(0.05, 20),
    floor=st.floats(0, 1),
)
def test_softmax_is_exp_of_score_over_temperature_above_a_floor(row, temperature, floor):
    powers = [math.exp((score - max(row)) / temperature) for score in row]
    want = [(1 - floor) * power / math.fsum(powers) + floor / len(row) for power in powers]
    scores = np.array([row], dtype=np.float32)
    found = Softmax(temperature, floor).probabilities(scores, np.ones(scores.shape, dtype=bool))[0]
    assert found == pytest.approx(want, abs=1e-12)


def test_softmax_with_a_tiny_temperature_is_greedy_without_a_warning(recwarn):
    scores = np.array([[1e30, -1e30, 0.0]], dtype=np.float32)
    found = Softmax(1e-300).probabilities(scores, np.ones((1, 3), dtype=bool))
    assert found.tolist() == [[1, 0, 0]]
    assert not recwarn.list


@pytest.mark.parametrize("epsilon", [-0.01, 1.01, math.nan, math.inf])
def test_an_epsilon_outside_0_1_is_refused(epsilon):
    with pytest.raises(DataError, match=r"must be in \[0, 1\]") as refused:
        EpsilonGreedy(epsilon)
    assert refused.value.field == "epsilon"


@pytest.mark.parametrize(
    ("temperature", "floor", "field"),
    [(0, 0, "temperature"), (-1, 0, "temperature"), (math.nan, 0, "temperature"), (math.inf, 0, "temperature"),
     (1, -0.1, "floor"), (1, 1.1, "floor"), (1, math.nan, "floor")],
)  # fmt: skip
def test_a_softmax_setting_out_of_range_is_refused(temperature, floor, field):
    with pytest.raises(DataError) as refused:
        Softmax(temperature, floor)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("probabilities", "uniform", "place"),
    [
        ([1.0], 0.0, 0),
        ([1.0], LAST_BELOW_ONE, 0),
        ([0.5, 0.5], 0.5, 1),
        ([0.5, 0.5], 0.5 - 2**-53, 0),
        ([0.0, 1.0], 0.0, 1),
        ([0.0, 0.0, 1.0, 0.0], 0.0, 2),
        ([0.5, 0.0, 0.5], 0.5, 2),
        ([0.5, 0.5, 0.0, 0.0], LAST_BELOW_ONE, 1),
        ([1.0 - 1e-16], LAST_BELOW_ONE, 0),
        ([0.5, 0.5 - 1e-16, 0.0], LAST_BELOW_ONE, 1),
        ([0.1] * 10, LAST_BELOW_ONE, 9),
        ([0.1] * 10 + [0.0] * 5, LAST_BELOW_ONE, 9),
    ],
)
def test_a_draw_takes_the_first_whose_cumulative_probability_exceeds_the_number(probabilities, uniform, place):
    assert draw(np.array(probabilities), uniform) == place


@settings(max_examples=200)
@given(
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda row: sum(row) > 1e-6),
    uniform=st.floats(0, LAST_BELOW_ONE),
)
def test_a_draw_never_takes_what_has_probability_0(weights, uniform):
    probabilities = np.array(weights) / sum(weights)
    assert probabilities[draw(probabilities, uniform)] > 0


def test_draws_on_a_grid_come_as_often_as_their_probabilities_say():
    probabilities = np.array([0.125, 0.0, 0.5, 0.375])
    places = [draw(probabilities, i / 1000) for i in range(1000)]
    assert np.bincount(places, minlength=4).tolist() == [125, 0, 500, 375]


def test_the_propensities_of_a_policy_are_what_its_explorer_makes_of_its_scores():
    world = tabular.world_a()
    batch = world.sample(50, seed=1)
    table = np.log(world.target)

    def scorer(context, candidates):
        return table[context.argmax(axis=1)].astype(np.float32)

    found = Policy(world.encoder, scorer, Softmax(1.0)).propensities(batch)
    assert found == pytest.approx(tabular.rows(batch, world.target), rel=1e-5)


def test_a_batch_of_another_encoder_is_refused():
    batch = tabular.world_a().sample(5, seed=1)
    policy = Policy(Encoder(actions=("left", "right")), constant_scorer, Uniform())
    with pytest.raises(DataError, match="another encoder") as refused:
        policy.propensities(batch)
    assert refused.value.hint


def test_the_constant_scorer_makes_every_explorer_uniform():
    batch = tabular.world_a().sample(5, seed=1)
    for explorer in (Uniform(), EpsilonGreedy(0.0), Softmax(1.0)):
        found = Policy(batch.encoder, constant_scorer, explorer).propensities(batch)
        assert found == pytest.approx(np.full((5, 10), 0.1), abs=1e-15)


def test_scores_that_would_only_fit_by_broadcasting_are_refused():
    batch = tabular.world_a().sample(5, seed=1)
    policy = Policy(batch.encoder, lambda context, candidates: np.zeros((5, 1), dtype=np.float32), EpsilonGreedy(0.1))
    with pytest.raises(DataError, match=r"\[5, 1\].*\[5, 10\]"):
        policy.propensities(batch)


BOX = Numbers(low=(-2.0, 0.0), high=(3.0, 1.0))


def numbers_batch(encoder: Encoder) -> Batch:
    n = 4
    return Batch(
        encoder=encoder,
        context=np.arange(2 * n, dtype=np.float32).reshape(n, 2) / 8,
        candidates=np.zeros((n, 0, 0), dtype=np.float32),
        mask=np.zeros((n, 0), dtype=bool),
        action=np.array([[-2, 0], [0, 0.5], [1, 0.25], [3, 1]], dtype=np.float32),
        propensity=np.full(n, 0.2),
        reward=np.zeros(n),
        metrics=np.zeros((n, 0)),
        discount=np.zeros(n),
        next=np.full(n, -1),
        unit=np.arange(n),
    )


def test_a_policy_of_numbers_gives_densities_draws_and_means_of_its_scorer():
    encoder = Encoder(context=(Continuous("x", 0.0, 1.0),), numbers=BOX)
    batch = numbers_batch(encoder)
    explorer = Gaussian(0.1, floor=0.05)
    policy = Policy(encoder, lambda context, candidates: context * 2, explorer)
    uniforms = np.random.default_rng(0).random((4, 3, 3))
    aims = policy.aims(batch)
    assert aims.dense
    assert np.array_equal(aims.density(batch.action), explorer.density(batch.context * 2, batch.action, BOX))
    assert np.array_equal(aims.draws(uniforms), explorer.draw(batch.context * 2, uniforms, BOX))
    assert np.array_equal(aims.mean(), explorer.mean(batch.context * 2, BOX))
    assert np.array_equal(aims.take([1, 3]).mean(), aims.mean()[[1, 3]])
    assert not Policy(encoder, policy.scorer, Point()).aims(batch).dense
    even = Policy(encoder, constant_scorer, UniformBox()).aims(batch)
    assert even.density(batch.action) == pytest.approx(np.full(4, 0.2), rel=1e-15)


def test_a_policy_says_for_which_actions_it_is():
    encoder = Encoder(context=(Continuous("x", 0.0, 1.0),), numbers=BOX)
    batch = numbers_batch(encoder)
    with pytest.raises(DataError, match="Gaussian decides over numbers, and the actions are candidates"):
        Policy(encoder, constant_scorer, Gaussian(0.1)).propensities(batch)
    with pytest.raises(DataError, match="Softmax decides over candidates, and the actions are numbers"):
        Policy(encoder, constant_scorer, Softmax(1.0)).aims(batch)
    with pytest.raises(DataError, match="another encoder"):
        Policy(Encoder(numbers=BOX), constant_scorer, UniformBox()).aims(batch)


def test_squarecb_weighs_by_the_inverse_of_the_gap_and_gives_the_best_what_is_left():
    scores, mask = np.array([[1.0, 0.5, -1.0, 9.9]], dtype=np.float32), np.array([[True, True, True, False]])
    found = SquareCB(4.0).probabilities(scores, mask)[0]
    assert found == pytest.approx([1 - 1 / 5 - 1 / 11, 1 / 5, 1 / 11, 0.0], abs=1e-15)
    even = SquareCB(0.0).probabilities(np.array([[0, 0, 0, 0, 1.0]], dtype=np.float32), np.ones((1, 5), dtype=bool))
    assert even[0, 4] >= even[0, 0]  # 1 - 4 * 0.2 is a hair below 0.2
    with pytest.raises(DataError, match="gamma is -1, must be at least 0"):
        SquareCB(-1.0)


def test_propensities_in_parts_are_those_of_all_rows_and_an_error_says_in_which_part(monkeypatch):
    """Two rows of three candidates a part; the fifth row's score is not finite."""
    batch = logit(numbers=1, actions=3).sample(7, 0)
    scores = np.random.default_rng(0).normal(size=(7, 3, 4)).astype(np.float32)
    scores_of = {row.tobytes(): score for row, score in zip(batch.context, scores, strict=True)}

    def scorer(context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return np.stack([scores_of[row.tobytes()] for row in context])

    made = Policy(batch.encoder, scorer, Thompson(0.1))
    whole = made.propensities(batch)
    monkeypatch.setattr(policies, "PAIRS", 6)
    assert np.array_equal(made.propensities(batch), whole)
    scores[4, 1, 2] = np.nan
    with pytest.raises(DataError, match="rows from 4 on: row 0: a score is not finite"):
        made.propensities(batch)
