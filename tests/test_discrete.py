"""Policies over candidates, against what they must come to: frequencies, linear systems, soft and expectile values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from bandit_project import TOML, offers
from steersman import flow, learn
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, DataError
from steersman.core.features import Category, Encoder
from steersman.core.policy import EpsilonGreedy, Policy, Softmax
from steersman.learn import discrete
from steersman.learn.discrete import SAC
from steersman.learn.nets import Minibatch
from steersman.learn.policies import AWAC, BC, CRR, IQL, objective
from steersman.learn.settings import ValueSettings
from steersman.worlds import tabular
from steersman.worlds.rankings import ranking

S, K = 4, 3
TABLE = {
    "hidden": (),
    "batch_size": 128,
    "learning_rate": 0.05,
    "final_learning_rate": 1e-4,
    "polyak": 0.1,
    "steps": 600,
}
"""Linear nets on a category are tables."""


@dataclass(frozen=True)
class World:
    """Steps that always go the same way. [S, K] each: what follows, is paid, ends, takes time, and may be done."""

    successor: np.ndarray
    reward: np.ndarray
    ends: np.ndarray
    gap: np.ndarray
    allowed: np.ndarray

    def sample(self, n: int, seed: int) -> Batch:
        """A walk by uneven odds, that begins anywhere after each end; nobody looks any longer at its last row."""
        rng = np.random.default_rng(seed)
        odds = np.array([0.5, 0.3, 0.2]) * self.allowed
        odds /= odds.sum(axis=1, keepdims=True)
        state, action, here = np.empty(n, dtype=int), np.empty(n, dtype=int), 0
        for row in range(n):
            state[row], action[row] = here, rng.choice(K, p=odds[here])
            over = self.ends[here, action[row]]
            here = int(rng.integers(S)) if over else self.successor[here, action[row]]
        pair, row = (state, action), np.arange(n)
        last = self.ends[pair] | (row == n - 1)
        batch = tabular.batch(
            odds,
            state=state,
            action=action,
            reward=self.reward[pair],
            discount=np.where(self.ends[pair], 0.0, 0.97 ** self.gap[pair]),
            next=np.where(last, -1, row + 1),
            unit=np.concatenate([[0], np.cumsum(last)[:-1]]),
        )
        return dataclasses.replace(batch, mask=self.allowed[state])

    def q(self, value_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """[S, K] the fixed point of reward + discount * value_of(Q)[successor]; the learner's own discount is 0.9."""
        q = np.zeros((S, K))
        for _ in range(200):
            carry = np.where(self.ends, 0.0, 0.9 * 0.97**self.gap)
            q = self.reward + carry * value_of(q)[self.successor]
        return q


def world() -> World:
    """An action is not there in one state, where it would pay most of all."""
    rng = np.random.default_rng(5)
    allowed, reward = np.ones((S, K), dtype=bool), rng.uniform(-1.0, 1.0, (S, K))
    allowed[1, 2], reward[1, 2] = False, 50.0
    ends = np.zeros((S, K), dtype=bool)
    ends[[0, 2, 3], [1, 0, 2]] = True
    return World(rng.integers(S, size=(S, K)), reward, ends, rng.integers(1, 6, (S, K)), allowed)


def taught(batch: Batch, config: ValueSettings, learned_by: discrete.Objective) -> tuple[Policy, discrete.Cast]:
    """The policy, and who learned with it."""
    kept: list[discrete.Cast] = []

    def keep(cast: discrete.Cast, rows: Minibatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        kept[:] = [cast]
        return learned_by.update(cast, rows)

    policy = discrete.learn_policy(batch, config, dataclasses.replace(learned_by, update=keep), seed=0)
    return policy, kept[0]


def tables(cast: discrete.Cast, batch: Batch, name: str) -> np.ndarray:
    """[S, K or 1] what a net says of every state, in units of reward."""
    context = torch.eye(S, batch.context.shape[1])
    with torch.no_grad():
        return cast[name].net(context, torch.eye(K)[None]).double().numpy() * np.abs(batch.reward).max()


# cloning


@pytest.mark.parametrize("kind", ["named", "featured"])
def test_a_clone_has_the_frequencies_of_the_log_among_what_was_offered(kind):
    batch = world().sample(3000, seed=1)
    if kind == "featured":
        encoder = Encoder(context=batch.encoder.context, candidate=(Category("kind", ("a", "b", "c")),))
        context = np.zeros((len(batch), encoder.context_width), dtype=np.float32)
        context[:, :S] = batch.context[:, :S]
        one_hot = np.eye(K, encoder.candidate_width, dtype=np.float32)
        candidates = np.broadcast_to(one_hot, (len(batch), *one_hot.shape))
        batch = dataclasses.replace(batch, encoder=encoder, context=context, candidates=candidates)
    config = BC(hidden=(16,), steps=600, batch_size=256, learning_rate=0.02, final_learning_rate=1e-5)
    found = learn.fit(batch, config, seed=0).propensities(batch)
    state = batch.context[:, :S].argmax(axis=1)
    for s in range(S):
        often = np.bincount(batch.action[state == s], minlength=K) / (state == s).sum()
        assert found[state == s][0] == pytest.approx(often, abs=0.02)
    assert (found[~batch.mask] == 0.0).all()


def test_a_clone_learns_from_rows_whose_rewards_and_ends_nobody_saw():
    batch = world().sample(400, seed=1)
    unseen = dataclasses.replace(batch, reward=np.zeros(400), discount=np.ones(400), next=np.full(400, -1))
    assert learn.fit(unseen, BC(steps=5), seed=0).explorer == Softmax(1.0)


# values


def expectile(values: np.ndarray, often: np.ndarray, share: float) -> float:
    """By Newton's steps on its own definition: weights share above and 1 - share below."""
    found = float(values @ often)
    for _ in range(12):
        weight = often * np.where(values > found, share, 1 - share)
        found = float(weight @ values / weight.sum())
    return found


def frequencies(batch: Batch) -> np.ndarray:
    """[S, K] how often the log takes an action in a state."""
    counts = np.zeros((S, K))
    np.add.at(counts, (batch.context[:, :S].argmax(axis=1), batch.action), 1.0)
    return counts / counts.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("share", [0.5, pytest.param(0.9, marks=pytest.mark.slow)])
def test_implicit_values_are_expectiles_of_what_was_done_and_at_one_half_those_of_sarsa(share):
    there = world()
    batch = there.sample(4000, seed=2)
    config = IQL(**TABLE, expectile=share, discount=0.9)
    _, cast = taught(batch, config, objective(config))
    often = frequencies(batch)
    truth = there.q(lambda q: np.array([expectile(q[s], often[s], share) for s in range(S)]))
    if share == 0.5:
        assert truth == pytest.approx(there.q(lambda q: (often * q).sum(axis=1)), abs=1e-9)
    scale = np.abs(truth[there.allowed]).max()
    found = tables(cast, batch, "critic")
    assert found[there.allowed] == pytest.approx(truth[there.allowed], rel=0.02, abs=0.02 * scale)


@pytest.mark.slow
def test_the_higher_the_expectile_the_closer_to_the_best_that_can_be_done():
    there = world()
    batch = there.sample(4000, seed=2)
    best = there.q(lambda q: np.where(there.allowed, q, -np.inf).max(axis=1))[there.allowed]
    away = []
    for share in (0.5, 0.9, 0.99):
        config = IQL(**TABLE, expectile=share, discount=0.9)
        found = tables(taught(batch, config, objective(config))[1], batch, "critic")[there.allowed]
        away.append(np.abs(found - best).max() / np.abs(best).max())
    assert away[0] > 2 * away[1] > 4 * away[2]
    assert away[2] < 0.05


@pytest.mark.parametrize("entropy", [0.3, pytest.param(0.7, marks=pytest.mark.slow)])
def test_soft_values_are_those_of_soft_value_iteration_and_the_policy_is_as_undecided_as_asked_for(entropy):
    """At the temperature that was learned; with time gaps, ends, and an action that is not always there."""
    there = world()
    batch = there.sample(4000, seed=3)
    config = SAC(**TABLE | {"steps": 3000}, entropy=entropy, discount=0.9)
    learned, cast = taught(batch, config, discrete.soft(config.entropy, config.temperature))
    price = float(cast["temperature"].net.value.detach().exp()) * np.abs(batch.reward).max()

    def soft(q: np.ndarray) -> np.ndarray:
        return price * np.log(np.where(there.allowed, np.exp(q / price), 0.0).sum(axis=1))

    truth = there.q(soft)
    found = tables(cast, batch, "critic")
    scale = np.abs(truth[there.allowed]).max()
    assert found[there.allowed] == pytest.approx(truth[there.allowed], abs=0.02 * scale)
    best = np.where(there.allowed, np.exp((truth - soft(truth)[:, None]) / price), 0.0)
    state = batch.context[:, :S].argmax(axis=1)
    policy = learned.propensities(batch)
    assert policy == pytest.approx(best[state], abs=0.02)
    undecided = -(best * np.log(np.where(best > 0, best, 1.0))).sum(axis=1)[state].mean()
    assert undecided == pytest.approx(entropy * np.log(there.allowed.sum(axis=1))[state].mean(), rel=0.03)


# policies by weight


def bandit() -> Batch:
    """One context, three actions logged 5 to 3 to 2, that pay 0, 0.3 and 1 with a reward that is always the same."""
    action = np.repeat([0, 1, 2], [500, 300, 200])
    return tabular.batch(
        np.array([[0.5, 0.3, 0.2]]),
        state=np.zeros(1000, dtype=int),
        action=action,
        reward=np.array([0.1, 0.4, 1.0])[action],
        discount=np.zeros(1000),
        next=np.full(1000, -1),
        unit=np.arange(1000),
    )


@pytest.mark.parametrize("kind", [IQL, AWAC, CRR])
@pytest.mark.parametrize("temperature", [0.7, pytest.param(2.0, marks=pytest.mark.slow)])
def test_a_weighted_policy_is_the_behavior_times_exponential_advantages(kind, temperature):
    settings = TABLE | {"batch_size": 512, "temperature": temperature, "steps": 500}
    config = kind(**settings, **({"weight": "exp"} if kind is CRR else {}))
    batch = bandit()
    odds, worth = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.4, 1.0])
    spread = np.sqrt(odds @ (worth - odds @ worth) ** 2)
    truth = odds * np.exp(worth / (temperature * spread))
    assert learn.fit(batch, config, seed=0).propensities(batch)[0] == pytest.approx(truth / truth.sum(), abs=0.01)


def test_a_binary_weight_leaves_the_best():
    assert learn.fit(bandit(), CRR(**TABLE | {"steps": 500}), seed=0).propensities(bandit())[0, 2] > 0.95


@pytest.mark.parametrize("kind", [AWAC, CRR])
def test_a_weighted_policy_hopes_for_what_it_would_do_itself(kind):
    """Values of the policy that was learned: Q = reward + discount * sum of its probabilities times Q."""
    there = world()
    batch = there.sample(4000, seed=2)
    config = kind(**TABLE, discount=0.9)
    learned, cast = taught(batch, config, objective(config))
    policy = np.zeros((S, K))
    policy[batch.context[:, :S].argmax(axis=1)] = learned.propensities(batch)
    truth = there.q(lambda q: (policy * q).sum(axis=1))
    scale = np.abs(truth[there.allowed]).max()
    assert tables(cast, batch, "critic")[there.allowed] == pytest.approx(truth[there.allowed], abs=0.02 * scale)
    walk = (frequencies(batch) * truth).sum(axis=1)
    assert ((policy * truth).sum(axis=1) > walk).all()


# what is refused


@pytest.mark.parametrize("config", [SAC(), BC(), IQL(), AWAC(), CRR()], ids=lambda config: type(config).__name__)
def test_ranked_lists_are_refused(config):
    with pytest.raises(DataError, match="ranked lists"):
        learn.fit(ranking("cascade").sample(10, seed=0), config, seed=0)


@pytest.mark.parametrize(
    ("setting", "value"), [("entropy", 0.0), ("entropy", 1.0), ("temperature", 0.0), ("polyak", 0.0)]
)
def test_a_setting_out_of_range_is_refused_by_name(setting, value):
    with pytest.raises(ConfigError, match=f"discrete-sac: {setting} is .*must be") as refused:
        learn.configure("discrete-sac", {setting: value})
    assert refused.value.field == setting


@pytest.mark.parametrize(
    ("lines", "meant"),
    [
        ('learner = "awac"', Softmax(1.0)),
        ('learner = "awac"\nexplorer = { kind = "epsilon", epsilon = 0.2 }', EpsilonGreedy(0.2)),
        ('learner = "dqn"', EpsilonGreedy(0.1)),
    ],
)
def test_a_policy_is_served_as_it_was_learned_unless_the_project_says_otherwise(lines, meant, tmp_path):
    made = offers(tmp_path, TOML.replace("steps = 400", "steps = 100").replace("validation = 0.2", lines), n=200)
    trained = flow.train(made, "offer")
    assert learn.load(Path(trained.directory) / "policy").explorer == meant
    flow.export(made, "offer")
