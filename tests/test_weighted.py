"""Policies over numbers from the actions that were taken: against what a regression with such weights gives in closed
form, and values against expectiles."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.density import Squashed
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import Policy
from steersman.learn import nets
from steersman.learn.advantage import expectile as expectile_loss
from steersman.learn.advantage import exponential
from steersman.learn.numbers import Trainer
from steersman.learn.policies import AWAC, BC, CRR, IQL, over_numbers
from test_actor_critic import LQ, learned_worth, questions, taught

ENCODER = Encoder(context=(Continuous("x", 0.0, 1.0),), numbers=Numbers(low=(0.0,), high=(4.0,)))
SCALE = 0.5
NETS = {"hidden": (), "steps": 800, "batch_size": 256, "learning_rate": 2e-2, "final_learning_rate": 1e-4}


def scores(context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Centre 0.6 x and scale SCALE of z."""
    return np.stack([0.6 * context[:, 0], np.full(len(context), np.log(SCALE))], axis=1).astype(np.float32)


def log_of(n: int, seed: int) -> Batch:
    """Single decisions of a squashed density; the reward grows with z by 10 a unit."""
    rng = np.random.default_rng(seed)
    context = np.stack([rng.uniform(-1, 1, n), np.zeros(n)], axis=1).astype(np.float32)
    nothing = np.zeros((n, 0, 0), dtype=np.float32)
    uniforms = rng.random((n, 1, 2))
    action = Squashed().draw(scores(context, nothing), uniforms, ENCODER.numbers)[:, 0].astype(np.float32)
    z = np.arctanh(np.clip(action[:, 0].astype(np.float64) / 2.0 - 1.0, -0.999, 0.999))
    return Batch(
        encoder=ENCODER,
        context=context,
        candidates=nothing,
        mask=np.zeros((n, 0), dtype=bool),
        action=action,
        propensity=Squashed().density(scores(context, nothing), action, ENCODER.numbers),
        reward=10.0 * z,
        metrics=np.zeros((n, 0)),
        discount=np.zeros(n),
        next=np.full(n, -1),
        unit=np.arange(n),
    )


def parts(policy: Policy, x: float) -> tuple[float, float]:
    """Centre and scale of z at a context."""
    found = policy.scorer(np.array([[x, 0.0]], dtype=np.float32), np.zeros((1, 0, 0), dtype=np.float32))[0]
    return float(found[0]), float(np.exp(found[1]))


def test_cloning_finds_the_policy_that_logged():
    policy = learn.fit(log_of(5000, 0), BC(**NETS), 0)
    for x in (-0.8, 0.0, 0.8):
        centre, scale = parts(policy, x)
        assert centre == pytest.approx(0.6 * x, abs=0.03)
        assert scale == pytest.approx(SCALE, rel=0.03)


@pytest.mark.parametrize(
    ("kind", "temperature", "samples"),
    [
        (IQL, 1.0, 0),
        (AWAC, 1.0, 1),
        pytest.param(IQL, 2.0, 0, marks=pytest.mark.slow),
        pytest.param(AWAC, 2.0, 4, marks=pytest.mark.slow),
        pytest.param(CRR, 0.7, 4, marks=pytest.mark.slow),
    ],
)
def test_weights_move_the_policy_that_logged_as_far_as_they_say(kind, temperature, samples):
    """A reward that is linear in z makes of a normal law, times exp(A / (temperature * spread)), the same law moved by
    its scale / temperature, if the spread is that of what is better by z. What the advantage is over does not move it,
    but for the chance in it: of `samples` draws of the same law it adds a share 1 / samples to the spread, squared.
    """
    settings = {"temperature": temperature, "largest_weight": 1e4, "polyak": 0.05, "hidden": (32,), "steps": 1000}
    settings |= {"samples": samples} if samples else {}
    settings |= {"weight": "exp"} if kind is CRR else {}
    policy = learn.fit(log_of(5000, 0), kind(**NETS | settings | {"learning_rate": 1e-2, "batch_size": 128}), 0)
    moved = SCALE / temperature / np.sqrt(1 + (1 / samples if samples else 0))
    for x in (-0.6, 0.0, 0.6):
        centre, scale = parts(policy, x)
        assert centre - 0.6 * x == pytest.approx(moved, abs=0.06)
        assert scale == pytest.approx(SCALE, rel=0.2)


def expectile(values: np.ndarray, share: float) -> float:
    """By bisection of its definition."""
    low, high = values.min(), values.max()
    for _ in range(60):
        middle = (low + high) / 2
        above = share * np.maximum(values - middle, 0).mean() - (1 - share) * np.maximum(middle - values, 0).mean()
        low, high = (middle, high) if above > 0 else (low, middle)
    return float(low)


@pytest.mark.parametrize("share", [0.9, pytest.param(0.5, marks=pytest.mark.slow)])
def test_implicit_values_are_expectiles_of_what_was_done(share):
    """The second step's reward is 2 x' - (u - 0.3)^2 with u even on [-1, 1]; see `two_steps`."""
    _, learners = taught(IQL(**LQ, expectile=share), over_numbers)
    context, discount = questions()
    x = context[:, 0].astype(np.float64)
    even = (np.arange(20_000) + 0.5) / 10_000 - 1.0
    second = expectile(-((even - 0.3) ** 2), share)
    for u in (-0.5, 0.5):
        found = learned_worth(learners, context, np.full(len(x), u))
        assert np.abs(found - (-((u - x) ** 2) + discount * (2 * u + second))).max() < 0.02 * 4.0


def test_binary_weights_learn_from_the_better_actions_alone():
    batch = log_of(2000, 0)
    better = dataclasses.replace(batch, reward=-np.abs(batch.action[:, 0].astype(np.float64) - 3.0))
    quick = NETS | {"hidden": (32,), "steps": 600, "learning_rate": 1e-2, "polyak": 0.05}
    policy = learn.fit(better, CRR(**quick), 0)
    cloned = learn.fit(better, BC(**NETS), 0)
    away = [np.abs(one.aims(better).mean()[:, 0] - 3.0).mean() for one in (policy, cloned)]
    assert away[0] < 0.3
    assert away[1] > 0.8


def test_implicit_steps_go_against_the_gradients_of_the_published_losses():
    """Kostrikov et al. 2022, eq. 5 and 7, by autograd through copies of the nets."""
    config = IQL(hidden=(8, 8), expectile=0.8)
    trainer = Trainer(ENCODER, config, over_numbers(config), nets.generator(3))
    learners, generator = trainer.learners, nets.generator(5)
    context, after = (torch.randn(16, 2, generator=generator) for _ in range(2))
    taken, reward = torch.rand(16, 1, generator=generator) * 2 - 1, torch.randn(16, generator=generator)
    actor, values = copy.deepcopy(learners.actor.net), copy.deepcopy(learners.values.net)
    critics = copy.deepcopy(learners.critics.slow)
    trainer.update(nets.NumberRows(context, taken, reward, torch.full((16,), 0.9), after))
    worth, base = critics(nets.beside(context, taken)).amin(dim=0), values(context)[0]
    weight = exponential(config.temperature, config.largest_weight)(worth - base)
    imitation = -(weight * nets.Density(actor.layers(context)).at(taken).log).mean()
    for student, net, loss in (
        (learners.values, values, expectile_loss(base, worth, 0.8)),
        (learners.actor, actor, imitation),
    ):
        want = torch.autograd.grad(loss, list(net.parameters()))
        for found, gradient in zip(student.net.parameters(), want, strict=True):
            torch.testing.assert_close(found.grad, gradient)
