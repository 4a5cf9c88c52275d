"""What a report shows beside its estimates: numbers that a world knows, and a log that lies about its propensities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from steersman.core.features import Continuous, Encoder
from steersman.core.report import OTHERS
from steersman.evaluate.beside import NAMED, Actions, shown
from steersman.evaluate.evidence import weights
from steersman.worlds import tabular

WORLD = tabular.bandit(6, 4, chi2=1.0, noise=0.5, seed=1)


def told(n: int = 4000, seed: int = 0, level: float = 0.95, **changed: object):
    batch = replace(WORLD.sample(n, seed), **changed)
    return batch, shown(batch, tabular.rows(batch, WORLD.target), level)


def test_weights_are_all_in_their_bins_and_their_mean_is_1():
    batch, found = told()
    weight = weights(batch, tabular.rows(batch, WORLD.target))
    spread = found.weights
    assert sum(spread.counts) + spread.zeros == len(batch)
    assert sum(spread.masses) == pytest.approx(1.0)
    assert (spread.edges[0], spread.edges[-1]) == (pytest.approx(weight.min()), pytest.approx(weight.max()))
    np.testing.assert_allclose(np.diff(np.log(spread.edges)), np.log(spread.edges[1] / spread.edges[0]))
    middle = spread.edges[20]
    assert sum(spread.counts[:20]) == pytest.approx(np.sum(weight < middle), abs=1)
    assert sum(spread.masses[20:]) == pytest.approx(weight[weight >= middle].sum() / weight.sum(), abs=1e-3)
    assert spread.largest == weight.max()
    assert spread.largest_share == pytest.approx(weight.max() / weight.sum())
    assert spread.mean.value == pytest.approx(weight.mean())
    assert spread.mean.ess == pytest.approx(weight.sum() ** 2 / (weight @ weight))
    assert spread.mean.low < 1 < spread.mean.high


def test_weights_that_are_all_alike_have_a_picture_and_those_that_are_0_are_counted():
    batch = WORLD.sample(500, 0)
    same = shown(batch, tabular.rows(batch, WORLD.behavior), 0.95).weights
    assert (sum(same.counts), same.zeros) == (500, 0)
    assert same.edges[0] < 1 < same.edges[-1]
    never = np.zeros((6, 4))
    never[:, 2] = 1.0
    only = shown(batch, tabular.rows(batch, never), 0.95).weights
    assert only.zeros == np.sum(batch.action != 2)
    assert sum(only.counts) == np.sum(batch.action == 2)


def test_shares_of_actions_are_those_of_the_world():
    batch, found = told(20_000)
    state = WORLD.starts
    for one in found.shares:
        place = batch.encoder.actions.index(one.action)
        assert one.logged.low < state @ WORLD.behavior[:, place] < one.logged.high
        assert one.target.low < state @ WORLD.target[:, place] < one.target.high
        assert one.logged.value == pytest.approx(np.mean(batch.action == place))
        assert one.previous is None
    assert sum(one.target.value for one in found.shares) == pytest.approx(1.0)
    largest = [max(one.logged.value, one.target.value) for one in found.shares]
    assert largest == sorted(largest, reverse=True)


def test_the_version_before_has_its_shares_beside_the_others():
    batch = WORLD.sample(1000, 0)
    target, before = (tabular.rows(batch, one) for one in (WORLD.target, WORLD.behavior))
    for one in shown(batch, target, 0.95, previous=before).shares:
        place = batch.encoder.actions.index(one.action)
        assert one.previous is not None
        assert one.previous.value == pytest.approx(before[:, place].mean())


def test_a_right_log_is_calibrated_in_95_of_100_groups():
    inside, groups = 0, 0
    for seed in range(60):
        _, found = told(1500, seed)
        inside += sum(one.ratio.low <= 1 <= one.ratio.high for one in found.calibration)
        groups += len(found.calibration)
    assert groups > 400
    assert 0.92 <= inside / groups <= 0.98


def test_a_log_that_states_too_high_a_propensity_is_seen_in_the_group_that_it_is_about():
    """Propensities of action a0 are stated a third too high: candidates come only 3/4 as often as was stated."""
    batch = WORLD.sample(6000, 0)
    wrong = np.where(batch.action == 0, np.minimum(batch.propensity / 0.75, 1.0), batch.propensity)
    _, found = told(6000, propensity=wrong)
    by_action = {one.group: one for one in found.calibration if one.by == "action"}
    assert by_action["a0"].ratio.high < 1
    assert by_action["a0"].ratio.value == pytest.approx(0.75, abs=0.06)
    assert by_action["a0"].seen == pytest.approx(by_action["a0"].stated * by_action["a0"].ratio.value)
    for name in ("a1", "a2", "a3"):
        assert by_action[name].ratio.low < 1 < by_action[name].ratio.high, name


def test_the_propensities_of_an_epsilon_greedy_log_that_forgets_the_best_among_the_explored_are_told_wrong():
    """1 - e and e are logged where 1 - e + e/K and e/K are true."""
    best, epsilon = WORLD.mean.argmax(axis=1), 0.2
    true = np.full((6, 4), epsilon / 4)
    true[np.arange(6), best] += 1 - epsilon
    batch = replace(WORLD, behavior=true).sample(5000, 0)
    stated = np.where(batch.action == best[tabular.states(batch)], 1 - epsilon, epsilon)
    found = shown(replace(batch, propensity=stated), tabular.rows(batch, WORLD.target), 0.95).calibration
    assert sum(not one.ratio.low <= 1 <= one.ratio.high for one in found) > len(found) / 2
    right = shown(batch, tabular.rows(batch, WORLD.target), 0.95).calibration
    assert sum(not one.ratio.low <= 1 <= one.ratio.high for one in right) <= 1


def test_stated_is_what_the_log_says_where_it_says_one_thing():
    even = replace(WORLD, behavior=np.full((6, 4), 0.25))
    batch = even.sample(2000, 0)
    for one in shown(batch, tabular.rows(batch, WORLD.target), 0.95).calibration:
        assert one.stated == pytest.approx(0.25)
        assert one.ratio.value == pytest.approx(one.seen / 0.25)
        assert sum(x.taken for x in shown(batch, tabular.rows(batch, even.behavior), 0.95).calibration) == 2 * 2000


def test_candidates_by_id_whatever_their_place_are_the_same_as_shared_ones():
    batch = WORLD.sample(800, 3)
    target = tabular.rows(batch, WORLD.target)
    shuffled = np.random.default_rng(0).permuted(np.tile(np.arange(4), (800, 1)), axis=1)
    ids = np.array(batch.encoder.actions, dtype=object)[shuffled]
    other = replace(
        batch,
        candidates=np.take_along_axis(np.array(batch.candidates), shuffled[..., None], axis=1),
        action=np.argmax(shuffled == batch.action[:, None], axis=1),
    )
    moved = np.take_along_axis(target, shuffled, axis=1)
    one, two, three = shown(batch, target, 0.9), shown(other, moved, 0.9), shown(other, moved, 0.9, ids=ids)
    assert [x.action for x in one.shares] == [x.action for x in two.shares] == [x.action for x in three.shares]
    for a, b, c in zip(one.shares, two.shares, three.shares, strict=True):
        assert a.target.value == pytest.approx(b.target.value)
        assert a.target.high == pytest.approx(c.target.high)
    for a, b in zip(one.calibration, three.calibration, strict=True):
        assert (a.group, a.candidates, a.taken) == (b.group, b.candidates, b.taken)
        assert a.ratio.low == pytest.approx(b.ratio.low)


def test_of_many_actions_the_largest_are_named_and_the_rest_are_one():
    many = tabular.bandit(3, 80, chi2=1.0, noise=0.5, seed=1)
    batch = many.sample(3000, 0)
    found = shown(batch, tabular.rows(batch, many.target), 0.95)
    assert len(found.shares) == NAMED + 1
    assert found.shares[-1].action == OTHERS
    assert sum(one.logged.value for one in found.shares) == pytest.approx(1.0)
    assert sum(one.taken for one in found.calibration if one.by == "action") == 3000


def test_padding_is_no_action():
    batch = WORLD.sample(300, 0)
    mask = np.ones((300, 4), dtype=bool)
    mask[:150, 3] = batch.action[:150] == 3
    candidates = np.array(batch.candidates) * mask[..., None]
    target = mask / mask.sum(axis=1, keepdims=True)
    ids = np.where(mask, np.array(batch.encoder.actions, dtype=object), "\ufdd0")
    padded = replace(batch, candidates=candidates, mask=mask)
    for found in (shown(padded, target, 0.95), shown(padded, target, 0.95, ids=ids)):
        assert {one.action for one in found.shares} == set(batch.encoder.actions)
        assert {one.group: one.candidates for one in found.calibration if one.by == "action"}["a3"] == mask[:, 3].sum()


def test_candidates_without_names_have_no_shares_but_are_calibrated_by_the_target():
    batch = WORLD.sample(300, 0)
    encoder = Encoder(context=batch.encoder.context, candidate=(Continuous("price", 0.0, 1.0),))
    nameless = replace(batch, encoder=encoder, candidates=np.zeros((300, 4, encoder.candidate_width), np.float32))
    assert Actions.of(nameless) is None
    found = shown(nameless, tabular.rows(batch, WORLD.target), 0.95)
    assert found.shares == ()
    assert {one.by for one in found.calibration} == {"target"}


def test_more_units_than_groups_give_the_same_intervals_nearly(monkeypatch: pytest.MonkeyPatch):
    _, fine = told(8000)
    monkeypatch.setattr("steersman.evaluate.beside.GROUPS", 2000)
    _, coarse = told(8000)
    for one, other in zip(fine.calibration, coarse.calibration, strict=True):
        assert one.ratio.value == pytest.approx(other.ratio.value)
        assert other.ratio.high - other.ratio.low == pytest.approx(one.ratio.high - one.ratio.low, rel=0.15)
