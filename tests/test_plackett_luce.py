"""The policy gradient over ranked lists against the exact gradient and value: sums over every list there is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, DataError
from steersman.core.policy import Policy, Softmax
from steersman.core.ranking import Lists
from steersman.core.slots import Slots
from steersman.learn import nets
from steersman.learn.plackett_luce import PlackettLuce, gains, weights
from steersman.learn.returns import Returns
from steersman.worlds import tabular
from steersman.worlds.rankings import Ranking, ranking


def enumerated(world: Ranking) -> tuple[Batch, np.ndarray]:
    """Every list of the one state of a world, with the mean clicks as its rewards; how likely each is [P]."""
    every = world.every_list
    state = np.zeros(len(every), dtype=np.int64)
    propensity = world.lists(world.behavior, state).propensities(every)
    clicks = world.clicks(state, every)
    batch = dataclasses.replace(
        world.sample(len(every), 0),
        action=every,
        propensity=propensity.prod(axis=1),
        reward=clicks.sum(axis=1),
        metric_names=(),
        metrics=np.empty((len(every), 0)),
        slots=Slots(propensity, clicks, np.empty((*every.shape, 0))),
    )
    return batch, batch.propensity


def small(reading: str = "cascade", **more) -> Ranking:
    return ranking(reading, **{"states": 1, "items": 4, "slots": 3, "seed": 3, "pull": 1.5, **more})


def best_of(world: Ranking) -> float:
    """Value of the best list in every state."""
    every = world.every_list
    values = [world.clicks(np.full(len(every), s), every).sum(axis=1).max() for s in range(len(world.starts))]
    return float(world.starts @ values)


def value_of(world: Ranking, policy: Policy) -> float:
    """Exact value of a policy as it is served."""
    assert policy.explorer == Softmax(1.0)
    states, items = world.appeal.shape
    context, candidates = np.eye(states, states + 2, dtype=np.float32), np.eye(items, dtype=np.float32)
    return world.value(policy.scorer(context, np.broadcast_to(candidates, (states, items, items))).astype(np.float64))


def test_lists_of_a_net_are_those_that_a_softmax_serves():
    rng = np.random.default_rng(0)
    mask = np.arange(5) < rng.integers(1, 6, size=(40, 1))
    mask = rng.permuted(mask, axis=1)
    scores = 3.0 * rng.normal(size=mask.shape)
    served = Lists(Softmax(1.0), scores, mask, 3)
    items, propensity = served.draw(rng.random((40, 3)))
    assert (items == -1).any()
    given = torch.from_numpy(np.where(mask, scores, 1e9)).requires_grad_()
    found = nets.list_log_chances(given, torch.from_numpy(mask), torch.from_numpy(items))
    assert found.exp().detach().numpy() == pytest.approx(propensity, abs=1e-12)
    found.sum().backward()
    assert torch.isfinite(given.grad).all()
    assert not given.grad.numpy()[~mask].any()


@pytest.mark.parametrize("usual", [0.0, 7.0])
@pytest.mark.parametrize(
    ("reading", "credit", "right"),
    [
        ("standard", "list", True),
        ("cascade", "list", True),
        ("cascade", "cascade", True),
        ("standard", "cascade", False),
    ],
)
def test_the_mean_gradient_over_all_lists_is_that_of_the_value(reading, credit, right, usual):
    world = small(reading)
    batch, often = enumerated(world)
    scores = torch.from_numpy(np.random.default_rng(1).normal(size=4)).requires_grad_()
    odds = scores.exp()[torch.from_numpy(batch.action)]  # [P, 3]
    left = scores.exp().sum() - torch.cat([torch.zeros(len(odds), 1), odds.cumsum(dim=1)[:, :-1]], dim=1)
    value = (odds / left).prod(dim=1) @ torch.from_numpy(batch.reward)
    (true,) = torch.autograd.grad(value, scores)

    rows = rows_of(batch)
    log = nets.list_log_chances(scores.expand(len(batch), 4), rows.mask, rows.items)
    weight = weights(log, torch.from_numpy(batch.slots.propensity), 1e9)
    columns = 1 if credit == "list" else 3
    gain = gains(weight, rows, torch.full((len(batch), columns), usual, dtype=torch.float64), credit)
    (found,) = torch.autograd.grad(torch.from_numpy(often) @ (gain * log).sum(dim=1), scores)
    away = (found - true).abs().max() / true.abs().max()
    assert away < 1e-6 if right else away > 0.05


def rows_of(batch: Batch) -> nets.ListRows:
    """The whole batch; rewards in f64, as it has them."""
    row = np.arange(len(batch))
    alone = Returns(row, batch.reward, np.zeros(len(row)), row)
    rows = nets.list_gatherer(batch, batch.slots, alone, 1.0)(row)
    return rows._replace(reward=torch.from_numpy(batch.reward), slot_reward=torch.from_numpy(batch.slots.reward))


def test_no_list_counts_more_than_it_may():
    log, propensity = torch.tensor([[0.0, 0.0], [-1.0, -2.0]]), torch.tensor([[0.5, 0.1], [0.5, 0.1]])
    found = weights(log, propensity, 3.0)
    assert found.numpy() == pytest.approx(np.array([[2.0, 3.0], [2 * np.exp(-1), min(20 * np.exp(-3), 3)]]))


@pytest.mark.parametrize("credit", ["list", "cascade"])
def test_it_finds_the_best_list(credit):
    world = dataclasses.replace(small(), behavior=np.zeros((1, 4)))
    batch, _ = enumerated(world)
    config = PlackettLuce((), 300, 128, 0.1, 0.0, credit=credit, largest_weight=1e6)
    found, best, uniform = value_of(world, learn.fit(batch, config, 0)), best_of(world), world.value(world.behavior)
    assert (found - uniform) / (best - uniform) > 0.97


@pytest.mark.parametrize("shift", [-2.0, 2.0])
@pytest.mark.parametrize(("reading", "credit"), [("standard", "list"), ("cascade", "cascade")])
def test_it_is_far_better_than_what_logged_wherever_the_rewards_lie(reading, credit, shift):
    """Half of the way to the best lists; without a baseline rewards above 0 would clone what logged."""
    world = ranking(reading)
    batch = world.sample(6000, 1)
    slots = dataclasses.replace(batch.slots, reward=batch.slots.reward + shift)
    batch = dataclasses.replace(batch, reward=slots.reward.sum(axis=1), slots=slots)
    config = PlackettLuce((), 400, 256, 0.05, 1e-3, credit=credit)
    found, logged = value_of(world, learn.fit(batch, config, 0)), world.value(world.behavior)
    assert (found - logged) / (best_of(world) - logged) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("reading", "credit"), [("standard", "list"), ("cascade", "list"), ("cascade", "cascade")])
def test_with_a_net_and_20_000_lists_it_comes_near_the_best(reading, credit):
    world = ranking(reading)
    batch = world.sample(20_000, 0)
    logged = world.value(world.behavior)
    found = value_of(world, learn.fit(batch, PlackettLuce(credit=credit), 0))
    assert (found - logged) / (best_of(world) - logged) > 0.65


def test_single_actions_and_settings_out_of_range_are_refused():
    single = tabular.world_a().sample(50, 0)
    with pytest.raises(DataError, match="ranked lists; the actions of this batch are single candidates"):
        learn.fit(single, PlackettLuce(steps=1), 0)
    with pytest.raises(ConfigError, match=r"largest_weight is 0\.5, must be at least 1"):
        learn.configure("plackett-luce", {"largest_weight": 0.5})
