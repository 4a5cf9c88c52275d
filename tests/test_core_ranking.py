"""Lists against the enumeration of every list there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core import ranking
from steersman.core.errors import SupportError
from steersman.core.policy import EpsilonGreedy, Softmax, Uniform
from steersman.core.ranking import Lists, Proportional

CHOOSERS = [Uniform(), EpsilonGreedy(0.0), EpsilonGreedy(0.3), Softmax(0.7), Softmax(0.7, floor=0.2), Proportional()]
every_chooser = pytest.mark.parametrize("chooser", CHOOSERS, ids=str)
SCORES = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25], [0.6, 0.4, 0.0, 0.0]])
MASK = np.array([[True] * 4, [True] * 4, [True, True, False, False]])


def every_list(mask: np.ndarray, slots: int) -> list[tuple[int, ...]]:
    there = np.flatnonzero(mask).tolist()
    return list(itertools.permutations(there, min(slots, len(there))))


def padded(items: tuple[int, ...], slots: int) -> list[int]:
    return [*items, *[-1] * (slots - len(items))]


def by_hand(chooser, scores: np.ndarray, mask: np.ndarray, items: tuple[int, ...]) -> float:
    """Probability of a list, the explorer asked once a slot."""
    left, chance = mask.copy(), 1.0
    for item in items:
        chance *= chooser.probabilities(scores[None], left[None])[0, item]
        left[item] = False
    return chance


@every_chooser
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_all_lists_together_have_the_probability_1_and_their_marginals_are_sums(chooser, slots):
    marginal = Lists(chooser, SCORES, MASK, slots).marginals()
    for row in range(3):
        sums, total = np.zeros((slots, 4)), 0.0
        for items in every_list(MASK[row], slots):
            chance = by_hand(chooser, SCORES[row], MASK[row], items)
            one = Lists(chooser, SCORES[row : row + 1], MASK[row : row + 1], slots)
            told = one.propensities(np.array([padded(items, slots)]))
            assert told.prod() == pytest.approx(chance, abs=1e-15)
            total += chance
            sums[np.arange(len(items)), items] += chance
        assert total == pytest.approx(1.0, abs=1e-12)
        assert marginal[row] == pytest.approx(sums, abs=1e-14)


def test_the_lists_of_a_softmax_are_those_of_plackett_and_luce():
    lists = np.array([[2, 0, 3], [1, 3, 0], [1, 0, -1]])
    power = np.where(MASK, np.exp(SCORES / 0.7), 0.0)
    told = Lists(Softmax(0.7), SCORES, MASK, 3).propensities(lists)
    for row, items in enumerate(lists):
        left = power[row].sum()
        for slot, item in enumerate(items[items >= 0]):
            assert told[row, slot] == pytest.approx(power[row, item] / left, abs=1e-12)
            left -= power[row, item]
    share = power / power.sum(axis=1, keepdims=True)
    assert Lists(Proportional(), share, MASK, 3).propensities(lists) == pytest.approx(told, abs=1e-12)


def test_a_greedy_list_is_sorted_by_score():
    lists, propensity = Lists(EpsilonGreedy(0.0), SCORES[:1], MASK[:1], 4).draw(np.array([[0.9, 0.1, 0.5, 0.3]]))
    assert lists.tolist() == [[1, 3, 2, 0]]
    assert propensity.tolist() == [[1.0] * 4]


@every_chooser
def test_drawn_lists_come_as_often_as_they_are_likely(chooser):
    n, slots = 40_000, 2
    scores, mask = np.tile(SCORES[:1], (n, 1)), np.tile(MASK[:1], (n, 1))
    lists, propensity = Lists(chooser, scores, mask, slots).draw(np.random.default_rng(1).random((n, slots)))
    assert propensity == pytest.approx(Lists(chooser, scores, mask, slots).propensities(lists), abs=0)
    for items in every_list(MASK[0], slots):
        chance = by_hand(chooser, SCORES[0], MASK[0], items)
        often = float((lists == items).all(axis=1).mean())
        assert often == pytest.approx(chance, abs=5 * np.sqrt(chance * (1 - chance) / n) + 1e-12)


@settings(max_examples=50)
@given(
    scores=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=5),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3),
)
def test_a_draw_is_a_list_of_different_candidates_as_long_as_it_can_be(scores, draws):
    wide = np.zeros((1, 6), dtype=np.float32)
    wide[0, : len(scores)] = scores
    mask = np.arange(6)[None] < len(scores)
    for chooser in CHOOSERS[:-1]:
        lists, propensity = Lists(chooser, wide, mask, 3).draw(np.array([draws]))
        items = lists[0, : min(3, len(scores))]
        assert len(set(items.tolist())) == len(items) and (items >= 0).all() and (items < len(scores)).all()
        assert (lists[0, len(items) :] == -1).all()
        assert ((propensity > 0) & (propensity <= 1)).all()
        again, _ = Lists(chooser, wide, mask, 3).draw(np.array([draws]))
        assert np.array_equal(again, lists)


def test_too_many_sets_to_add_up_are_refused(monkeypatch):
    monkeypatch.setattr(ranking, "MAX_CELLS", 2 * 4 * 5 - 1)
    with pytest.raises(SupportError, match="5 sets"):
        Lists(Uniform(), SCORES[:2], MASK[:2], 2).marginals()
    monkeypatch.setattr(ranking, "MAX_CELLS", 2 * 4 * 5)
    assert Lists(Uniform(), SCORES[:2], MASK[:2], 2).marginals() == pytest.approx(0.25)


def test_equal_decisions_are_computed_once_and_blocks_change_nothing(monkeypatch):
    rows = np.random.default_rng(0).integers(0, 3, 50)
    whole = Lists(Softmax(1.0), SCORES[rows], MASK[rows], 3).marginals()
    assert whole == pytest.approx(Lists(Softmax(1.0), SCORES, MASK, 3).marginals()[rows], abs=0)
    monkeypatch.setattr(ranking, "_BLOCK_CELLS", 1)
    assert np.array_equal(Lists(Softmax(1.0), SCORES[rows], MASK[rows], 3).marginals(), whole)
