"""The world of slates keeps its laws, and SlateQ looks further in it than the next slate."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.policy import EpsilonGreedy
from steersman.learn.slateq import SlateQ
from steersman.worlds.slates import slates

WORLD = slates()


@functools.cache
def log() -> Batch:
    return WORLD.sample(300, WORLD.uniform(), 0)


def test_people_choose_by_a_logit_of_their_interests():
    batch = log()
    topic = np.take_along_axis(batch.candidates[:, :, : WORLD.topics].argmax(axis=2), batch.action, axis=1)
    odds = np.exp(np.take_along_axis(batch.context[:, ::2], topic, axis=1).astype(np.float64))
    chance = odds / (1.0 + odds.sum(axis=1, keepdims=True))
    chosen = batch.slots.reward > 0
    assert (chosen.sum(axis=1) <= 1).all()
    error = float(np.sqrt((chance * (1.0 - chance)).sum()))
    assert chosen.sum() == pytest.approx(chance.sum(), abs=4 * error)
    high = odds > np.median(odds)  # and not only on the whole
    assert chosen[high].sum() == pytest.approx(chance[high].sum(), abs=4 * error)


def test_without_a_bonus_a_session_is_its_budget():
    """What is watched and what nothing took add up to it, whatever was shown."""
    plain = dataclasses.replace(WORLD, bonus=0.0)
    for policy in (plain.uniform(), plain.good()):
        batch = plain.sample(50, policy, 1)
        used = np.bincount(batch.unit, weights=np.where(batch.reward > 0, batch.reward, plain.idle))
        assert ((used >= plain.budget) & (used < plain.budget + plain.idle)).all()


def test_a_good_document_gives_back_what_it_says():
    same = dataclasses.replace(WORLD, quality=np.full(20, 2.0), spread=0.0, idle=0.0)
    batch = same.sample(50, same.uniform(), 1)
    watched = np.bincount(batch.unit, weights=batch.reward)
    assert watched == pytest.approx(same.budget / (1.0 - 2.0 * same.bonus), abs=same.length)


def test_interests_move_as_they_are_served_and_stay_in_their_bounds():
    batch = log()
    assert np.abs(batch.context).max() <= 1.0
    went = np.flatnonzero(batch.next >= 0)
    moved = (batch.context[batch.next[went]] != batch.context[went]).sum(axis=1)
    assert (moved <= 1).all()
    assert (moved == (batch.reward[went] > 0)).mean() > 0.99
    step = np.abs(batch.context[batch.next[went]] - batch.context[went]).max()
    assert 0.05 < step <= WORLD.drift / 4 + 1e-6  # (1 - |i|) |i| is 1/4 at most


def ahead(config: SlateQ, seed: int) -> tuple[float, float, float]:
    """Minutes of a learned policy, of the best short-sighted one and of one that knows what is good."""
    policy = learn.fit(log(), config, seed)
    assert policy.explorer == EpsilonGreedy(0.0)
    return tuple(WORLD.value(one, 300, 5)[0] for one in (policy, WORLD.interesting(), WORLD.good()))


def test_it_learns_from_slates_drawn_evenly_to_keep_people_longer():
    found, myopic, good = ahead(SlateQ((), 600, 128, 0.02, discount=0.97, polyak=0.05), 0)
    assert found > myopic + 0.5 * (good - myopic)
    assert found > 154.0  # which ReAgent's reaches in RecSim; uniform slates pass that here


@pytest.mark.slow
def test_nets_keep_people_longer_with_at_least_four_seeds_of_five():
    config = SlateQ((32,), 500, 128, 5e-3, discount=0.97, polyak=0.05)
    passed = [found > myopic + 0.45 * (good - myopic) for found, myopic, good in (ahead(config, s) for s in range(5))]
    assert sum(passed) >= 4
