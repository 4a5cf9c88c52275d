"""Policy gradients: against the exact gradient of a small world, by hand, and the bar on CartPole."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch

from steersman import learn
from steersman.core.errors import DataError, TrainingError
from steersman.core.features import Category, Encoder
from steersman.core.policy import EpsilonGreedy, Policy, Softmax, Uniform, constant_scorer
from steersman.core.simulator import Moved, Seen
from steersman.learn import nets
from steersman.learn.gradient import PPO, REINFORCE, Trainer, advantages, clipped, improve, likelier, policy_loss
from steersman.learn.play import play, returns_of_episodes
from steersman.learn.returns import Returns
from steersman.worlds import simulators, tabular

STEPS, S, K = 3, 2, 3
NEXT = np.array([[0, 1, 1], [1, 0, 0]])
PAYS = np.array([[0.0, 1.0, -0.5], [2.0, -1.0, 9.0]])
ALLOWED = np.array([[True, True, True], [True, True, False]])


class Small:
    """Two states, three actions, one of which is not always there; over after three steps. A Simulator."""

    encoder = Encoder(context=(Category("state", ("0", "1")),), actions=("a", "b", "c"))

    def __init__(self, episodes: int) -> None:
        self._episodes = episodes

    def start(self, seed: int) -> Seen:
        self._state, self._done = np.zeros(self._episodes, dtype=int), 0
        return self._seen()

    def step(self, action: np.ndarray) -> Moved:
        assert ALLOWED[self._state, action].all()
        reward = PAYS[self._state, action]
        self._state, self._done = NEXT[self._state, action], self._done + 1
        over = np.full(self._episodes, self._done == STEPS)
        if over[0]:
            self._state, self._done = np.zeros(self._episodes, dtype=int), 0
        return Moved(reward, np.where(over, 0.0, 1.0), over, self._seen(), self._seen())

    def _seen(self) -> Seen:
        context = np.zeros((self._episodes, self.encoder.context_width), dtype=np.float32)
        context[np.arange(self._episodes), self._state] = 1.0
        table = np.broadcast_to(np.eye(K, dtype=np.float32), (self._episodes, K, K))
        return Seen(context, table, ALLOWED[self._state])


def exact_value(net: nets.Net) -> torch.Tensor:
    """The mean return of the policy whose logits a net gives, by dynamic programming, with its gradient."""
    context = torch.eye(S, Small.encoder.context_width)
    chance = net(context, torch.eye(K)[None]).masked_fill(~torch.from_numpy(ALLOWED), -np.inf).softmax(dim=1)
    value = torch.zeros(S)
    for _ in range(STEPS):
        value = (chance * (torch.from_numpy(PAYS).float() + value[torch.from_numpy(NEXT)])).sum(dim=1)
    return value[0]


def gradient(loss: torch.Tensor, net: nets.Net) -> np.ndarray:
    parts = torch.autograd.grad(loss, list(net.parameters()))
    return np.concatenate([part.numpy().ravel() for part in parts])


@pytest.mark.parametrize("loss_of", [likelier, clipped(0.2)], ids=["reinforce", "ppo"])
@pytest.mark.parametrize("baseline", [0.0, 1.7])
def test_the_gradient_is_that_of_the_value_whatever_the_baseline(loss_of, baseline):
    """Advantages with all that comes after, of 20,000 episodes; PPO before its first step is the same."""
    trainer = Trainer(Small.encoder, REINFORCE(hidden=()), seed=3)
    batch = play(Small(20_000), trainer.policy(), seed=1)
    advantage, row = advantages(batch, np.full(len(batch), baseline), discount=1.0, trace=1.0)
    whole = Returns(row, advantage, np.zeros(len(row)), row)
    rows = nets.gatherer(batch, whole, 1.0)(row)
    before = torch.from_numpy(np.log(batch.propensity).astype(np.float32))
    loss = policy_loss(trainer.actor.net, rows, before, loss_of, entropy=0.0)
    found = -gradient(loss, trainer.actor.net) * STEPS  # a mean over steps, to one over episodes
    truth = gradient(exact_value(trainer.actor.net), trainer.actor.net)
    assert found == pytest.approx(truth, abs=0.05 * float(np.abs(truth).max()))


def test_what_an_advantage_is_by_hand():
    """Three steps, rewards 1, 2, 4, discounts of 0.5 and 0.8 between them, the last one the end; then one cut short."""
    batch = tabular.batch(
        np.full((1, 2), 0.5),
        state=np.zeros(5, dtype=int),
        action=np.zeros(5, dtype=int),
        reward=np.array([1.0, 2.0, 4.0, 3.0, 7.0]),
        discount=np.array([0.5, 0.8, 0.0, 1.0, 1.0]),
        next=np.array([1, 2, -1, 4, -1]),
        unit=np.array([0, 0, 0, 1, 1]),
    )
    value = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    found, row = advantages(batch, value, discount=0.9, trace=0.5)
    last = 4.0 - 30.0
    middle = 2.0 + 0.9 * 0.8 * 30.0 - 20.0 + 0.9 * 0.8 * 0.5 * last
    first = 1.0 + 0.9 * 0.5 * 20.0 - 10.0 + 0.9 * 0.5 * 0.5 * middle
    assert row.tolist() == [0, 1, 2, 3]
    assert found == pytest.approx([first, middle, last, 3.0 + 0.9 * 50.0 - 40.0])


def test_a_clipped_row_has_no_gradient_and_one_that_may_come_back_has():
    before = torch.log(torch.tensor([0.5, 0.5, 0.5, 0.5]))
    taken = torch.log(torch.tensor([0.7, 0.7, 0.3, 0.3])).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    clipped(0.2)(taken, before, advantage).backward()
    assert taken.grad.tolist() == pytest.approx([0.0, 1.4 / 4, -0.6 / 4, 0.0])


@pytest.mark.parametrize("config", [REINFORCE, PPO])
def test_it_finds_the_best_of_a_small_world_and_never_takes_what_is_not_offered(config):
    """The best three steps: 1 by b, then 2 and 2 by a; c, which pays 9 in the second state, is not there."""
    policy = improve(Small(16), config(hidden=(), episodes=800, learning_rate=0.05), seed=0)
    best = dataclasses.replace(policy, explorer=EpsilonGreedy(0.0))
    assert policy.explorer == Softmax(1.0)
    assert returns_of_episodes(play(Small(4), best, seed=0)).tolist() == [5.0] * 4


def test_the_same_seed_gives_the_same_policy_bit_for_bit_and_another_seed_another():
    first, again, other = (learn.to_onnx(improve(Small(4), PPO(hidden=(8,), episodes=12), seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_progress_tells_the_return_of_the_last_episodes_and_ends_at_the_end():
    told: list[tuple[int, int, float]] = []
    improve(Small(8), PPO(episodes=20), 0, lambda done, all, figures: told.append((done, all, figures["return"])))
    assert [one[:2] for one in told] == [(8, 20), (16, 20), (20, 20)]
    assert all(-3 <= one[2] <= 5 for one in told)


def test_what_is_played_is_whole_episodes_with_the_propensities_of_the_policy():
    world = simulators.cartpole(20, steps=15)
    policy = Policy(world.encoder, lambda context, candidates: context[:, [0, 2]] * 5, Softmax(1.0))
    batch = play(world, policy, seed=0)
    assert np.bincount(batch.unit).max() == 15
    assert batch.starts.tolist() == np.flatnonzero(np.diff(batch.unit, prepend=-1)).tolist()
    ended = batch.next < 0
    assert (batch.terminated | batch.limited)[ended].all()
    assert not (batch.terminated | batch.limited)[~ended].any()
    assert (np.bincount(batch.unit)[batch.unit[batch.limited]] == 15).all()
    own = policy.propensities(batch)[np.arange(len(batch)), batch.action]
    assert batch.propensity == pytest.approx(own, rel=1e-12)


def test_candidates_that_all_rows_share_cost_nothing_to_play():
    """64 named actions: their one-hots, a copy a row, would be sixteen times as much as may be allocated."""
    episodes, steps, many = 100, 20, 64

    class Wide(Small):
        encoder = Encoder(context=Small.encoder.context, actions=tuple(f"a{i:02}" for i in range(many)))

        def step(self, action: np.ndarray) -> Moved:
            self._done += 1
            over = np.full(episodes, self._done == steps)
            return Moved(np.ones(episodes), np.where(over, 0.0, 1.0), over, self._seen(), self._seen())

        def _seen(self) -> Seen:
            table = np.broadcast_to(np.eye(many, dtype=np.float32), (episodes, many, many))
            context = np.zeros((episodes, self.encoder.context_width), dtype=np.float32)
            return Seen(context, table, np.ones((episodes, many), dtype=bool))

    world = Wide(episodes)
    policy = Policy(world.encoder, constant_scorer, Uniform())
    tracemalloc.start()
    batch = play(world, policy, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.candidates.shape == (episodes * steps, many, many)
    assert peak < batch.candidates.nbytes / 16


@pytest.mark.parametrize(("setting", "value"), [("episodes", 0), ("trace", 1.5), ("clip", 0.0), ("entropy", -1.0)])
def test_a_setting_out_of_range_is_refused_by_name(setting, value):
    with pytest.raises(DataError, match=f"{setting} is .*must be") as refused:
        PPO(**{setting: value})
    assert refused.value.field == setting


def test_a_training_that_diverges_says_so():
    with pytest.raises(TrainingError, match="not finite"):
        improve(Small(4), REINFORCE(hidden=(8,), episodes=12, learning_rate=1e38), 0)


def balanced(seed: int) -> float:
    """Mean return of 100 episodes, each decision drawn by the policy, after 1,000 that were played to learn."""
    policy = improve(simulators.cartpole(16), PPO(), seed)
    return float(returns_of_episodes(play(simulators.cartpole(100), policy, seed=1000 + seed)).mean())


@pytest.mark.slow
def test_ppo_balances_the_pole_seed_after_seed():
    returns = [balanced(seed) for seed in range(5)]
    assert sum(mean >= 195 for mean in returns) >= 4, returns
