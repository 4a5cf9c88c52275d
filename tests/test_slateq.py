"""SlateQ against slates found by looking at all of them, and against a world solved by value iteration."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.core.policy import Uniform
from steersman.core.ranking import Lists
from steersman.core.slots import Slots
from steersman.learn import nets
from steersman.learn.nets import slates
from steersman.learn.slateq import SlateQ, chosen_slots
from steersman.worlds import tabular
from steersman.worlds.rankings import ranking


def value_of(worth, nothing, appeal, items) -> float:
    """What a slate is worth, in the plainest way."""
    chance = np.exp(np.append(appeal[items], 0.0))
    return float(chance @ np.append(worth[items], nothing) / chance.sum())


@pytest.mark.parametrize("slots", [1, 2, 3, 9])
def test_the_best_slate_is_the_best_of_all(slots):
    rng = np.random.default_rng(slots)
    n, k = 200, 7
    worth, nothing, appeal = rng.normal(size=(n, k)), rng.normal(size=n), 3.0 * rng.normal(size=(n, k))
    real = np.arange(k) < rng.integers(1, k + 1, size=(n, 1))
    tensors = [torch.from_numpy(array) for array in (np.where(real, worth, 50.0), nothing, appeal, real)]
    found = nets.best_slate(*tensors, slots)
    items = nets.slate_of(found.scores, tensors[3], slots)
    value = nets.slate_value(*tensors, items).numpy()
    for row in range(n):
        size = min(slots, int(real[row].sum()))
        slates = [list(one) for one in itertools.combinations(range(int(real[row].sum())), size)]
        best = max(value_of(worth[row], nothing[row], appeal[row], one) for one in slates)
        own = items[row][items[row] >= 0].tolist()
        assert len(own) == size
        assert value_of(worth[row], nothing[row], appeal[row], own) == pytest.approx(best, abs=1e-12)
        assert found.value[row] == value[row] == pytest.approx(best, abs=1e-12)
    there = torch.gather(found.scores, 1, items.clamp(min=0))
    added = torch.where(items >= 0, there, 0.0).sum(dim=1).numpy()
    none = 1.0 / (1.0 + np.array([np.exp(a[i[i >= 0]]).sum() for a, i in zip(appeal, items.numpy(), strict=True)]))
    assert added == pytest.approx(none * (value - nothing), abs=1e-9)  # what nothing loses


@pytest.mark.parametrize(("candidates", "slots", "spread"), [(100, 10, 1.0), (1000, 5, 4.0), (300, 100, 8.0)])
def test_a_few_rounds_are_enough(candidates, slots, spread, monkeypatch):
    rng = np.random.default_rng(candidates)
    arrays = rng.normal(size=(300, candidates)), rng.normal(size=300), spread * rng.normal(size=(300, candidates))
    tensors = [*map(torch.from_numpy, arrays), torch.ones(300, candidates, dtype=torch.bool)]
    few = nets.best_slate(*tensors, slots)
    monkeypatch.setattr(slates, "ROUNDS", 60)
    assert few.value.numpy() == pytest.approx(nets.best_slate(*tensors, slots).value.numpy(), abs=1e-12)


# a world that can be solved

S, K, L = 3, 4, 2
DISCOUNT = 0.9
SLATES = np.array(list(itertools.permutations(range(K), L)))


@dataclass(frozen=True)
class World:
    """People in S states; a choice, or none (the last column), pays, moves, ends and takes time. Nothing is noise
    but the choice."""

    appeal: np.ndarray
    reward: np.ndarray
    successor: np.ndarray
    ends: np.ndarray
    gap: np.ndarray

    def chances(self, items: np.ndarray) -> np.ndarray:
        """[S, P, L + 1] of what is chosen from lists [P, L], nothing last."""
        odds = np.exp(self.appeal[:, items])
        odds = np.concatenate([odds, np.ones((*odds.shape[:2], 1))], axis=2)
        return odds / odds.sum(axis=2, keepdims=True)

    def worth(self, value: np.ndarray) -> np.ndarray:
        """[S, K + 1] of what was chosen, if the states after it have a value [S]."""
        carry = np.where(self.ends, 0.0, DISCOUNT * 0.95**self.gap)
        return self.reward + carry * value[self.successor]

    def of_lists(self, worth: np.ndarray) -> np.ndarray:
        """[S, P], values of all lists."""
        none = np.full((len(SLATES), 1), K)
        return (self.chances(SLATES) * worth[:, np.concatenate([SLATES, none], axis=1)]).sum(axis=2)

    def solved(self, target: str) -> np.ndarray:
        """[S, P], values of all lists, if the best are shown from then on, or all alike (sarsa)."""
        value = np.zeros(S)
        for _ in range(500):
            lists = self.of_lists(self.worth(value))
            value = lists.mean(axis=1) if target == "sarsa" else lists.max(axis=1)
        return lists

    def sample(self, n: int, seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        which, uniform = rng.integers(len(SLATES), size=n), rng.random(n)
        chances, state, taken, here = self.chances(SLATES).cumsum(axis=2), np.empty(n, int), np.empty(n, int), 0
        over = np.empty(n, dtype=bool)
        for row in range(n):
            state[row], taken[row] = here, int((chances[here, which[row]] <= uniform[row]).sum())
            what = K if taken[row] == L else SLATES[which[row], taken[row]]
            over[row] = self.ends[here, what]
            here = int(rng.integers(S)) if over[row] else self.successor[here, what]
        items = SLATES[which]
        what = np.append(items, np.full((n, 1), K), axis=1)[np.arange(n), taken]
        last = over | (np.arange(n) == n - 1)
        clicks = (taken[:, None] == np.arange(L)).astype(np.float64)
        reward = np.zeros((n, L))
        reward[np.arange(n), np.minimum(taken, L - 1)] = self.reward[state, what]  # of nothing at the last, as of lists
        slots = Slots(np.tile([1.0 / K, 1.0 / (K - 1)], (n, 1)), reward, clicks[:, :, None])
        plain = tabular.batch(
            np.full((S, K), 1.0 / K), state=state, action=items[:, 0], reward=reward.sum(axis=1),
            discount=np.where(over, 0.0, 0.95 ** self.gap[state, what]),
            next=np.where(last, -1, np.arange(n) + 1), unit=np.concatenate([[0], np.cumsum(last)[:-1]]),
        )  # fmt: skip
        return dataclasses.replace(
            plain, action=items, propensity=slots.propensity.prod(axis=1), slots=slots,
            metrics=clicks.sum(axis=1, keepdims=True), metric_names=("clicks",),
        )  # fmt: skip


def world() -> World:
    """What pays at once leads to a state where little does."""
    rng = np.random.default_rng(2)
    shape = (S, K + 1)
    return World(
        appeal=rng.normal(size=(S, K)),
        reward=rng.uniform(-1.0, 2.0, shape),
        successor=rng.integers(S, size=shape),
        ends=rng.random(shape) < 0.15,
        gap=rng.integers(1, 5, shape),
    )


@pytest.mark.parametrize("target", ["double", "max", "sarsa"])
def test_values_of_all_lists_are_those_of_the_solved_world(target):
    true, batch = world().solved(target), world().sample(12_000, 0)
    config = SlateQ((), 900, 256, 0.05, 1e-4, discount=DISCOUNT, polyak=0.05, choice="clicks", target=target)
    policy = learn.fit(batch, config, 0)
    net, unit = policy.scorer._net, policy.scorer.unit
    context, candidates = torch.eye(S, S + 2).double(), torch.eye(K).double()[None]
    parts = [net.worth(context, candidates), net.worth.of_none(context), net.appeal(context, candidates)]
    for place, items in enumerate(torch.from_numpy(SLATES)):
        found = nets.slate_value(*parts, torch.ones(1, K, dtype=torch.bool), items.expand(S, L)) * unit
        assert found.numpy() == pytest.approx(true[:, place], abs=0.03 * np.ptp(true))
    if target == "sarsa":
        return
    first = np.array([(batch.context[:, s] == 1).argmax() for s in range(S)])  # a row of every state
    rows = batch.take(np.sort(first))
    items, _ = policy.lists(rows).draw(np.zeros((S, L)))
    for state, own in zip(rows.context[:, :S].argmax(axis=1), items, strict=True):
        shown = true[state][(np.sort(SLATES, axis=1) == np.sort(own)).all(axis=1)]
        assert shown[0] == pytest.approx(true[state].max(), abs=0.01 * np.ptp(true))


def test_what_is_best_at_once_and_what_is_best_in_the_long_run_differ_in_this_world():
    """Else the test above would not notice a learner that looks no further than the reward."""
    lists = world().solved("max")
    myopic = world().of_lists(world().reward)
    regret = lists.max(axis=1) - lists[np.arange(S), myopic.argmax(axis=1)]
    assert regret.max() > 0.03 * np.ptp(lists)
    assert np.ptp(lists - world().solved("sarsa")) > 0.1 * np.ptp(lists)


# what is refused


def test_lists_of_which_several_items_were_chosen_are_refused():
    batch = ranking("independent").sample(500, 0)
    with pytest.raises(DataError, match=r"the reward is not 0 at \d items of one list .* people who choose one item"):
        learn.fit(batch, SlateQ(steps=1), 0)
    with pytest.raises(DataError, match="there is no metric 'click'"):
        learn.fit(batch, SlateQ(steps=1, choice="click"), 0)
    with pytest.raises(DataError, match="ranked lists; the actions of this batch are single candidates"):
        learn.fit(tabular.world_a().sample(50, 0), SlateQ(steps=1), 0)


def test_the_choice_is_read_from_its_metric_and_of_the_rows_asked_for():
    batch = world().sample(300, 0)
    found = chosen_slots(batch, batch.slots, "clicks", np.arange(300))
    clicks = batch.slots.metrics[:, :, 0]
    assert (found == np.where(clicks.any(axis=1), clicks.argmax(axis=1), L)).all()
    assert (found == L).any()
    unheard = dataclasses.replace(batch.slots, metrics=np.where(clicks[:, :, None] > 0, 1.0, np.nan))
    assert (chosen_slots(batch, unheard, "clicks", np.arange(300)) == found).all()
    twice = dataclasses.replace(batch.slots, metrics=np.ones_like(batch.slots.metrics))
    with pytest.raises(DataError, match="300 such rows of 300"):
        chosen_slots(batch, twice, "clicks", np.arange(300))


def test_shorter_lists_have_less_to_choose_from():
    """One candidate: its list has one item, and the net's value is that of the one or nothing."""
    rng = np.random.default_rng(0)
    mask = np.array([[True, False, False], [True, True, True]])
    items, _ = Lists(Uniform(), np.zeros((2, 3)), mask, 2).draw(rng.random((2, 2)))
    worth, nothing, appeal = rng.normal(size=(2, 3)), rng.normal(size=2), rng.normal(size=(2, 3))
    tensors = [torch.from_numpy(array) for array in (worth, nothing, appeal, mask, items)]
    own = value_of(worth[0], nothing[0], appeal[0], [0])
    assert nets.slate_value(*tensors)[0] == pytest.approx(own, abs=1e-12)
