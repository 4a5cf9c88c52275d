"""Models of the world against worlds with known laws, and planning against closed forms."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.errors import DataError
from steersman.core.features import Continuous, Encoder
from steersman.learn import Run
from steersman.learn.dynamics import Dynamics, Model, fit_dynamics, importance
from steersman.learn.planned import Planned, fit
from steersman.learn.planning import best_candidates, plan_numbers
from steersman.worlds import simulators, tabular
from steersman.worlds.rankings import ranking

BOX = Numbers(low=(-2.0, 0.0), high=(2.0, 10.0))
TURN = np.array([[0.9, 0.3, 0.0], [-0.2, 0.8, 0.0], [0.0, 0.0, 0.5]])
PUSH = np.array([[0.5, 0.0], [0.1, 0.1], [0.0, 0.0]])
NOISE = np.array([0.1, 0.2, 0.3])
GAP = 0.8
CONFIG = Model((), 800, 256, 0.02, 1e-4, members=5)


@functools.cache
def log(n: int = 4000) -> Batch:
    """Linear with normal noise; `c` moves on its own and matters to nothing. Long episodes; one in two ends by chance
    0.2 where b is above 0."""
    rng, here = np.random.default_rng(0), np.zeros(3)
    state, action = np.empty((n, 3)), np.empty((n, 2))
    ends, reward = np.empty(n, dtype=bool), np.empty(n)
    for row in range(n):
        state[row], action[row] = here, rng.uniform(BOX.low, BOX.high)
        reward[row] = 2.0 * here[0] - 0.3 * action[row, 1] + 0.1 * rng.normal()
        ends[row] = here[1] > 0 and rng.random() < 0.2
        here = rng.normal(size=3) if ends[row] else TURN @ here + PUSH @ action[row] + NOISE * rng.normal(size=3)
    columns = np.zeros((n, 6), dtype=np.float32)
    columns[:, ::2] = state
    row, last = np.arange(n), np.append(ends[:-1], True)
    return Batch(
        encoder=Encoder(context=tuple(Continuous(name, 0.0, 1.0) for name in "abc"), numbers=BOX),
        context=columns, candidates=np.empty((n, 0, 0), np.float32), mask=np.empty((n, 0), bool),
        action=action.astype(np.float32), propensity=np.full(n, 1.0 / 40.0), reward=reward, metrics=np.empty((n, 0)),
        discount=np.where(ends, 0.0, GAP), next=np.where(last, -1, row + 1),
        unit=np.concatenate([[0], np.cumsum(last)[:-1]]),
    )  # fmt: skip


@functools.cache
def model() -> Dynamics:
    return fit_dynamics(log(), CONFIG, 0)


def test_it_predicts_a_linear_world_and_its_noise():
    batch, rng = log(), np.random.default_rng(1)
    rows = rng.choice(len(batch), 500, replace=False)
    found = model().predict(batch.context[rows], batch.action[rows])
    state, action = batch.context[rows, ::2].astype(float), batch.action[rows].astype(float)
    spread = (batch.context[1:] - batch.context[:-1])[:, ::2].std(axis=0)
    away = np.abs(found.context[:, ::2] - (state @ TURN.T + action @ PUSH.T))
    assert (away.mean(axis=0) < 0.03 * spread).all()
    assert not found.context[:, 1::2].any()
    assert np.abs(found.reward - (2.0 * state[:, 0] - 0.3 * action[:, 1])).mean() < 0.03 * batch.reward.std()
    assert found.noise[:, [0, 2, 4]].mean(axis=0) == pytest.approx(NOISE, rel=0.1)
    assert found.noise[:, 6].mean() == pytest.approx(0.1, rel=0.25)
    assert found.discount == pytest.approx(GAP, abs=1e-6)
    above, below = found.ends[state[:, 1] > 0.5].mean(), found.ends[state[:, 1] < -1.0].mean()
    assert above > 0.15
    assert below < 0.06  # a linear net can not know the edge


def test_members_disagree_more_the_further_a_row_is_from_the_log():
    batch = log()
    action = batch.action[:300]
    near = model().predict(batch.context[:300], action).disagreement.mean()
    far = [model().predict(times * batch.context[:300], action).disagreement.mean() for times in (3.0, 9.0)]
    assert near < far[0] < far[1]
    assert far[1] > 3.0 * near


def test_a_field_that_matters_to_nothing_is_last():
    batch = log()
    found = importance(model(), batch.context[:2000], batch.action[:2000], 0)
    assert [one.field for one in found][-1] == "c"
    by = {one.field: one for one in found}
    assert by["c"].ahead < 0.05
    assert max(by["a"].ahead, by["b"].ahead) > 0.3
    assert by["a"].reward > 10 * max(by["b"].reward, by["c"].reward)


def test_the_same_seed_gives_the_same_model_resumed_or_not_and_other_rows_change_nothing():
    batch, config = log(), Model((8,), 300, 64, 0.01, 0.0, members=2)
    some = np.flatnonzero(batch.unit % 2 == 0)
    strange = dataclasses.replace(batch, reward=np.where(batch.unit % 2 == 0, batch.reward, 99.0))
    told: dict = {}
    keep = Run(rows=some, keep=lambda done, state: told.update({done: state}), every=100)

    def said(rows: Batch, seed: int, run: Run) -> np.ndarray:
        return fit_dynamics(rows, config, seed, run=run).predict(batch.context[:50], batch.action[:50]).reward

    first = said(batch, 0, keep)
    assert (said(strange, 0, Run(rows=some)) == first).all()
    assert (said(batch, 0, Run(rows=some, start=told[200])) == first).all()
    assert (said(batch, 1, Run(rows=some)) != first).any()


def test_each_member_learns_from_a_sample_of_its_own():
    """Of two units whose rewards differ one member in four sees but one: with one net they would all say the mean."""
    batch = log().take(np.arange(1000))
    halves = dataclasses.replace(
        batch, unit=np.arange(1000) // 500, next=np.full(1000, -1), discount=np.ones(1000),
        reward=(np.arange(1000) < 500) * 1.0,
    )  # fmt: skip
    found = fit_dynamics(halves, Model((), 400, 256, 0.02, 1e-4, members=8), 0)
    laws = found.ensemble(torch.from_numpy(found.given(batch.context, batch.action)))
    each = laws.mean[:, :, -1].mean(dim=1).detach().numpy() * found.spread[-2] + found.offset[-2]
    assert {round(float(one) * 2) / 2 for one in each} == {0.0, 0.5, 1.0}


def test_rows_whose_next_step_was_not_seen_teach_their_reward_and_no_end():
    batch = log().take(np.arange(500))
    unseen = dataclasses.replace(batch, next=np.full(500, -1), discount=np.ones(500))
    found = fit_dynamics(unseen, CONFIG, 0).predict(batch.context, batch.action)
    assert (found.context == batch.context).all()
    assert np.abs(found.reward - batch.reward).mean() < 0.1 * batch.reward.std()


def test_a_table_of_states_and_actions_is_learned_and_solved():
    """A ring: `a1` goes on, `a0` stays; being in the last state pays."""
    n, states = 3000, 4
    rng = np.random.default_rng(0)
    state, action = np.zeros(n, dtype=int), rng.integers(2, size=n)
    for row in range(1, n):
        state[row] = (state[row - 1] + action[row - 1]) % states
    batch = tabular.batch(
        np.full((states, 2), 0.5), state=state, action=action, reward=(state == states - 1) * 1.0 - 0.1 * action,
        discount=np.ones(n), next=np.append(np.arange(1, n), -1), unit=np.zeros(n, dtype=np.int64),
    )  # fmt: skip
    found = fit_dynamics(batch, Model((32,), 600, 128, 0.01, 0.0, members=2), 0)
    eye = np.eye(states, states + 2, dtype=np.float32)

    def true(context: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, ...]:
        here, move = context[:, :states].argmax(axis=1), taken.argmax(axis=1)
        return eye[(here + move) % states], (here == states - 1) - 0.1 * move, np.ones(len(here))

    candidates = np.eye(2, dtype=np.float32)
    place, worth = best_candidates(found.step, eye, candidates, horizon=5, discount=0.9)
    known, value = best_candidates(true, eye, candidates, horizon=5, discount=0.9)
    assert (place == known).all()
    assert known.tolist() == [1, 1, 1, 0]
    assert worth == pytest.approx(value, abs=0.05 * np.ptp(value))


def test_looking_at_all_sequences_is_looking_at_all_sequences():
    rng = np.random.default_rng(3)
    table, reward = rng.integers(4, size=(4, 3)), rng.normal(size=(4, 3))
    carry = rng.uniform(0.3, 1.0, size=(4, 3))

    def step(context: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, ...]:
        pair = context[:, 0].astype(int), taken.argmax(axis=1)
        return table[pair][:, None], reward[pair], carry[pair]

    _, worth = best_candidates(step, np.arange(4)[:, None], np.eye(3), horizon=3, discount=0.7)
    for state, first in itertools.product(range(4), range(3)):
        best = -np.inf
        for rest in itertools.product(range(3), repeat=2):
            here, weight, total = state, 1.0, 0.0
            for action in (first, *rest):
                total += weight * reward[here, action]
                weight *= 0.7 * carry[here, action]
                here = table[here, action]
            best = max(best, total)
        assert worth[state, first] == pytest.approx(best, abs=1e-12)
    with pytest.raises(DataError, match="sequences are too many"):
        best_candidates(step, np.arange(4)[:, None], np.eye(3), horizon=30)


def test_the_cross_entropy_method_finds_the_linear_quadratic_regulator():
    """Against Riccati's recursion over the same horizon, within 2% of the largest action."""
    a, b = np.array([[1.0, 0.4], [0.0, 0.9]]), np.array([[0.0, 0.2], [0.5, 0.0]])
    q, r, horizon, discount = np.diag([1.0, 0.3]), np.diag([0.2, 0.4]), 6, 0.95

    def step(context: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, ...]:
        cost = ((context @ q) * context).sum(axis=1) + ((action @ r) * action).sum(axis=1)
        return context @ a.T + action @ b.T, -cost, np.ones(len(context))

    ahead = np.zeros((2, 2))
    for _ in range(horizon):
        gain = np.linalg.solve(r + discount * b.T @ ahead @ b, discount * b.T @ ahead @ a)
        ahead = q + discount * a.T @ ahead @ (a - b @ gain)
    context = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 2))
    best = -context @ gain.T
    box = Numbers(low=(-3.0, -3.0), high=(3.0, 3.0))
    found = plan_numbers(
        step, context, box, 0, horizon=horizon, discount=discount, population=400, elites=40, rounds=25
    )
    assert np.abs(found - best).max() < 0.02 * np.abs(best).max()


def test_plans_stay_within_their_bounds_and_go_to_the_better_one():
    def step(context: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, ...]:
        return context, action[:, 0] - action[:, 1], np.ones(len(context))

    found = plan_numbers(step, np.zeros((3, 1)), BOX, 0, horizon=2, rounds=20)
    assert found == pytest.approx(np.tile([2.0, 0.0], (3, 1)), abs=1e-2)
    with pytest.raises(DataError, match="horizon is 0, must be at least 1"):
        plan_numbers(step, np.zeros((3, 1)), BOX, 0, horizon=0)
    with pytest.raises(DataError, match="elites is 1, must be"):
        plan_numbers(step, np.zeros((3, 1)), BOX, 0, horizon=1, elites=1)


def test_ranked_lists_and_a_log_in_which_nothing_changes_are_refused():
    with pytest.raises(DataError, match="not for ranked lists"):
        fit_dynamics(ranking("cascade").sample(50, 0), CONFIG, 0)
    flat = log().take(np.arange(10))
    still = dataclasses.replace(flat, context=np.zeros_like(flat.context), reward=np.ones(10))
    with pytest.raises(DataError, match="nothing to predict"):
        fit_dynamics(still, CONFIG, 0)


def upright(decisions: int, seed: int) -> Batch:
    """CartPole, 20 at once, pushed left or right at random."""
    world, rng = simulators.cartpole(20), np.random.default_rng(seed)
    seen, rows = world.start(seed), []
    for _ in range(decisions // 20):
        action = rng.integers(2, size=20)
        moved = world.step(action)
        rows.append((seen.context.copy(), action, moved.reward, moved.discount, moved.over))
        seen = moved.seen
    context, action, reward, discount, over = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    over[:, -1] = True  # nobody looks any longer
    n = action.size
    last = over.ravel()
    return Batch(
        encoder=world.encoder, context=context.reshape(n, -1), mask=np.ones((n, 2), dtype=bool),
        candidates=np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2)), action=action.ravel(),
        propensity=np.full(n, 0.5), reward=reward.ravel(), metrics=np.empty((n, 0)), discount=discount.ravel(),
        next=np.where(last, -1, np.arange(n) + 1), unit=np.concatenate([[0], np.cumsum(last)[:-1]]),
    )  # fmt: skip


def balanced(act: Callable[[np.ndarray], np.ndarray], seed: int, episodes: int) -> float:
    """Mean return of episodes of CartPole that end after 200 steps."""
    world, total, going = simulators.cartpole(episodes), np.zeros(episodes), np.ones(episodes, dtype=bool)
    seen = world.start(seed)
    while going.any():
        moved = world.step(act(seen.context))
        total += moved.reward * going
        going &= ~moved.over
        seen = moved.seen
    return float(total.mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_plans_in_a_model_of_random_decisions_balance_the_pole(seed):
    """200 is the most; ReAgent's planner has to reach 100, in one episode, from 200,000 decisions."""
    found = fit_dynamics(upright(10_000, seed), Model((64, 64), 1500, 256, 3e-3, 1e-5, members=3), seed)
    candidates = np.eye(2, dtype=np.float32)
    assert balanced(lambda seen: best_candidates(found.step, seen, candidates, horizon=10)[0], 100 + seed, 5) >= 150


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_net_that_learned_such_plans_balances_it_too(seed):
    """ReAgent's bar for its planner; evenly random decisions hold it for 24 steps."""
    config = Planned((64, 64), 1500, 256, 3e-3, 1e-5, members=3, plans=3000, horizon=10, discount=1.0)
    scorer = fit(upright(10_000, seed), config, seed).scorer
    candidates = np.broadcast_to(np.eye(2, dtype=np.float32), (20, 2, 2))
    assert balanced(lambda seen: scorer(seen, candidates).argmax(axis=1), 100 + seed, 20) >= 100
