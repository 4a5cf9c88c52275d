"""Actor-critics over numbers: densities exact through their explorer, and a world whose values and best actions are
known in closed form, with gaps of time, terminals and episodes cut short."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from msgspec import Struct, structs

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.density import LOG_SCALES, REACH, Squashed
from steersman.core.errors import DataError, TrainingError
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import Policy
from steersman.learn import actor_critic, nets
from steersman.learn.actor_critic import DDPG, SAC, TD3, TD3BC
from steersman.learn.nets import Shape, Student
from steersman.learn.numbers import Learners, Variation, learn_numbers

# densities and draws: those of the explorer that serves them

BOX = Numbers(low=(-1.0, 10.0), high=(3.0, 30.0))
RAW = np.array(
    [[0.0, 0.0, 0.0, 0.0], [0.5, -1.0, -1.0, 0.5], [9.0, -3.9, -2.0, 9.0], [-4.0, 4.0, -5.0, 1.0]], dtype=np.float32
)
"""Some beyond the limits, where they count as the limits."""


def in_units(action: np.ndarray) -> np.ndarray:
    low, high = np.array(BOX.low), np.array(BOX.high)
    return (low + (high - low) * (1.0 + action.astype(np.float64)) / 2.0).astype(np.float32)


def test_a_draw_of_the_training_is_the_draw_of_the_explorer():
    uniforms = np.random.default_rng(0).uniform(0.001, 0.999, (500, 3))
    for raw in RAW:
        action, _ = nets.drawn(torch.tensor(raw).expand(500, 4), torch.tensor(uniforms[:, 1:], dtype=torch.float32))
        served = Squashed().draw(raw[None], uniforms[None], BOX)[0]
        np.testing.assert_allclose(in_units(action.numpy()), served, rtol=0, atol=2e-4 * 20)


def test_a_density_of_the_training_is_the_density_of_the_explorer():
    uniforms = torch.tensor(np.random.default_rng(0).uniform(0.001, 0.999, (500, 2)), dtype=torch.float32)
    volume = 4.0 * 20.0 / 2.0**2  # of the bounds, for one unit of volume of [-1, 1]^2
    for raw in RAW:
        rows = torch.tensor(raw).expand(500, 4)
        action, log = nets.drawn(rows, uniforms)
        served = Squashed().density(np.tile(raw, (500, 1)), in_units(action.numpy()), BOX)
        inside = served > 0  # float32 may carry one beyond REACH
        assert inside.mean() > 0.5
        again = nets.log_density(rows, action)
        for found in (log, again):
            np.testing.assert_allclose(found.exp().numpy()[inside] / volume, served[inside], rtol=0.03)
        if np.abs(raw[:2]).max() < 1.1:
            np.testing.assert_allclose(log.exp().numpy() / volume, served, rtol=1e-3)


def test_an_action_on_its_bound_counts_as_one_within_reach():
    rows = torch.tensor([[3.0, 0.0]])
    at, near = (nets.log_density(rows, torch.tensor([[action]])) for action in (1.0, math.tanh(REACH)))
    assert float(at) == pytest.approx(float(near), abs=1e-5)
    assert math.isfinite(float(at))


@pytest.mark.parametrize("raw", [[0.3, -0.5], [2.5, 0.7], [-3.8, 1.5]])
def test_the_gradient_through_a_draw_is_that_of_the_mean(raw):
    """Even strata of uniforms make the mean an integral; its slope by differences is that of the path."""
    uniforms = ((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None]

    def mean(at: torch.Tensor) -> torch.Tensor:
        action, log = nets.drawn(at.expand(20_000, 2), uniforms)
        return (action[:, 0].square() + action[:, 0] + 0.1 * log).mean()

    at = torch.tensor([raw], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mean(at), at)
    for column in range(2):
        step = torch.zeros(1, 2, dtype=torch.float64)
        step[0, column] = 1e-4
        by_difference = float(mean(at.detach() + step) - mean(at.detach() - step)) / 2e-4
        assert float(slope[0, column]) == pytest.approx(by_difference, abs=2e-3)


def test_outputs_beyond_their_limits_are_led_back_and_others_left_alone():
    raw = torch.tensor([[REACH + 1.0, LOG_SCALES[1] + 2.0], [0.0, LOG_SCALES[0] - 1.0]], requires_grad=True)
    found = nets.overshoot(raw, squashed=True)
    assert found.item() == pytest.approx((1.0 + 4.0 + 1.0) / 2)
    found.backward()
    assert raw.grad.tolist() == [[1.0, 2.0], [0.0, -1.0]]
    assert float(nets.overshoot(torch.tensor([[1.5, -1.0]]), squashed=False)) == 0.25


# nets


def test_critics_side_by_side_are_those_nets_alone():
    critics = nets.Critics(3, (8, 5), 2)
    critics.start(nets.generator(0))
    rows = torch.randn(7, 3, generator=nets.generator(1))
    both = critics(rows)
    assert both.shape == (2, 7)
    for which, net in enumerate(critics.nets):
        first, _, second, _, third = net
        value = (first(rows).relu() @ second.weight.T + second.bias).relu() @ third.weight.T + third.bias
        assert torch.allclose(both[which], value[:, 0], atol=1e-6)
    assert torch.allclose(critics.first(rows), both[0], atol=1e-6)
    assert not torch.allclose(both[0], both[1])


def test_a_student_learns_alone_from_a_loss_that_went_through_another():
    critics = nets.Critics(2, (4,), 1)
    critics.start(nets.generator(0))
    teacher, pupil = (Student(net, lambda done: 0.1, 0.5) for net in (critics, nets.Scalar(0.3)))
    before = [parameter.clone() for parameter in critics.parameters()]
    pupil.step(teacher.net(pupil.net.value.expand(3, 2)).sum())
    assert pupil.net.value.item() != pytest.approx(0.3)
    assert all(torch.equal(*pair) for pair in zip(before, critics.parameters(), strict=True))
    assert not any(parameter.grad.any() for parameter in critics.parameters())


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "point", "candidate": 0},
        {"kind": "point", "candidate": 2, "bounds": ((0.0, 1.0),)},
        {"kind": "features", "candidate": 2, "bounds": ((0.0, 1.0),)},
        {"kind": "squashed", "candidate": 0, "bounds": ((1.0, 0.0),)},
        {"kind": "squashed", "candidate": 0, "bounds": ((0.0, math.inf),)},
    ],
)
def test_a_net_of_numbers_has_bounds_and_no_candidates(given):
    with pytest.raises(DataError, match="bounds"):
        Shape(context=1, hidden=(), **given)


# a world in closed form

GAPS = (0.9, 0.4)
"""What a step is discounted by after a short and after a long gap of time; the context tells which."""

DISCOUNT = 0.8
LATER = 0.3
"""The best second action."""

ENCODER = Encoder(
    context=(Continuous("here", 0.0, 1.0), Continuous("later", 0.0, 1.0), Continuous("long", 0.0, 1.0)),
    numbers=Numbers(low=(-10.0,), high=(10.0,)),
)
UNIT = 10.0
"""One unit of u, below, in units of the action."""


def two_steps(n: int, seed: int) -> Batch:
    """Episodes of two decisions. With u in [-1, 1] the action in units of UNIT, the first is rewarded by -(u - x)^2,
    and leads to the context x' = u; the second by 2 x' - (u' - LATER)^2, after which the episode terminates.

    So the second is worth V(x') = 2 x' at best, the first Q = -(u - x)^2 + g 2 u with the discount g, at best
    at u = x + g. Half of the episodes were not seen beyond their second row, whose reward is of no meaning.
    """
    rng = np.random.default_rng(seed)
    x, long, cut = rng.uniform(-0.6, 0.2, n), rng.integers(2, size=n), rng.integers(2, size=n).astype(bool)
    first, second = rng.uniform(-1, 1, n), rng.uniform(-1, 1, n)

    def pairs(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.stack([one, two], axis=1).ravel()

    nothing = np.zeros(n)
    columns = [pairs(x, first), pairs(nothing, nothing + 1), pairs(long, nothing)]
    context = np.stack([columns[0], nothing.repeat(2), columns[1], nothing.repeat(2), columns[2], nothing.repeat(2)], 1)
    row = np.arange(2 * n)
    return Batch(
        encoder=ENCODER,
        context=context.astype(np.float32),
        candidates=np.zeros((2 * n, 0, 0), dtype=np.float32),
        mask=np.zeros((2 * n, 0), dtype=bool),
        action=(UNIT * pairs(first, second)).astype(np.float32)[:, None],
        propensity=np.full(2 * n, 0.05),
        reward=pairs(-((first - x) ** 2), np.where(cut, 4.0, 2 * first - (second - LATER) ** 2)),
        metrics=np.zeros((2 * n, 0)),
        discount=pairs(np.array(GAPS)[long], np.where(cut, 1.0, 0.0)),
        next=np.where(row % 2, -1, row + 1),
        unit=row // 2,
    )


def questions() -> tuple[np.ndarray, np.ndarray]:
    """Contexts of first decisions, and the discount of each."""
    x, long = (part.ravel() for part in np.meshgrid(np.linspace(-0.5, 0.1, 7), [0.0, 1.0]))
    context = np.zeros((len(x), 6), dtype=np.float32)
    context[:, 0], context[:, 4] = x, long
    return context, DISCOUNT * np.array(GAPS)[long.astype(int)]


LQ = {
    "hidden": (48, 48), "steps": 2000, "batch_size": 64, "learning_rate": 3e-3, "final_learning_rate": 1e-5,
    "polyak": 0.02, "discount": DISCOUNT,
}  # fmt: skip


Variations = Callable[[Struct], Variation]


def own_variation(config: Struct) -> Variation:
    return actor_critic.variation_of(config, ENCODER)


def taught(config: Struct, variations: Variations = own_variation) -> tuple[Policy, Learners]:
    """The policy, and the learners behind it."""
    kept: list[Learners] = []

    def keep(learners: Learners, rows: nets.NumberRows) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not kept:
            kept.append(learners)
        return variation.update(learners, rows)

    variation = variations(config)
    policy = learn_numbers(two_steps(1500, 0), config, dataclasses.replace(variation, update=keep), 0)
    return policy, kept[0]


def learned_worth(learners: actor_critic.Learners, context: np.ndarray, u: np.ndarray) -> np.ndarray:
    unit = float(np.abs(two_steps(1500, 0).reward).max())
    rows = nets.beside(torch.tensor(context), torch.tensor(u, dtype=torch.float32)[:, None])
    with torch.no_grad():
        return learners.critics.net.first(rows).numpy().astype(np.float64) * unit


@pytest.mark.parametrize(
    "config",
    [
        TD3(**LQ, noise=0.0),
        pytest.param(DDPG(**LQ), marks=pytest.mark.slow),
        pytest.param(SAC(**LQ, temperature=1e-4, entropy=-50.0), marks=pytest.mark.slow),
    ],
)
def test_values_and_actions_are_those_of_the_closed_form(config):
    """Within 2% of the range of the values, 4; actions within 3% of their bounds on average.

    A target without the gap of time, one that goes on behind a terminal, or one that takes the end of what was seen
    for a terminal is off by 10% and more.
    """
    policy, learners = taught(config)
    context, discount = questions()
    x = context[:, 0].astype(np.float64)
    for u in (-0.8, -0.2, 0.4, 0.9):
        found = learned_worth(learners, context, np.full(len(x), u))
        assert np.abs(found - (-((u - x) ** 2) + discount * 2 * u)).max() < 0.02 * 4.0
    scores = policy.scorer(context, np.zeros((len(x), 0, 0), dtype=np.float32))
    u = np.tanh(scores[:, 0]) if isinstance(config, SAC) else scores[:, 0] / UNIT
    assert np.abs(u - (x + discount)).mean() < 0.06


def test_noise_on_the_next_action_costs_what_its_variance_costs():
    """TD3 judges the second action with noise, which a quadratic loses the variance of: Q falls by g times that."""
    _, learners = taught(TD3(**LQ, noise=0.3, noise_limit=0.5))
    context, discount = questions()
    x = context[:, 0].astype(np.float64)
    z = np.random.default_rng(0).normal(size=200_000)
    variance = float(np.clip(0.3 * z, -0.5, 0.5).var())
    found = learned_worth(learners, context, np.zeros(len(x)))
    assert np.abs(found - (-(x**2) - discount * variance)).max() < 0.02 * 4.0
    assert variance * discount.max() > 0.02 * 2  # so that the claim can fail


@pytest.mark.parametrize("entropy", [-0.5, pytest.param(-1.5, marks=pytest.mark.slow)])
def test_the_temperature_makes_the_density_as_wide_as_asked(entropy):
    policy, learners = taught(SAC(**LQ | {"steps": 1200}, entropy=entropy))
    batch = two_steps(500, 1)
    raw = torch.tensor(policy.scorer(batch.context, batch.candidates))
    _, log = learners.draw(raw)
    assert -float(log.mean()) == pytest.approx(entropy, abs=0.1)


def test_near_the_log_is_between_cloning_and_climbing():
    """With a small alpha the actor does what was done on average, which is nothing; with a large one it climbs."""
    context, discount = questions()
    best = context[:, 0] + discount
    nothing = np.zeros((len(best), 0, 0), dtype=np.float32)
    cautious, bold = (
        taught(TD3BC(**LQ | {"steps": 800}, noise=0.0, alpha=alpha))[0].scorer(context, nothing)[:, 0] / UNIT
        for alpha in (1e-3, 100.0)
    )
    assert np.abs(cautious).mean() < 0.1
    assert np.abs(bold - best).mean() < 0.1
    assert np.abs(best).mean() > 0.2


def test_the_unit_of_the_reward_and_of_the_action_means_nothing():
    batch, quick = two_steps(200, 0), TD3(**LQ | {"steps": 50})
    first = learn.fit(batch, quick, 0)
    other = dataclasses.replace(
        batch,
        encoder=structs.replace(ENCODER, numbers=Numbers(low=(-40.0,), high=(40.0,))),
        action=batch.action * np.float32(4.0),
        reward=batch.reward * 1024.0,
    )
    second = learn.fit(other, quick, 0)
    nothing = np.zeros((len(batch), 0, 0), dtype=np.float32)
    assert np.array_equal(second.scorer(batch.context, nothing), 4 * first.scorer(batch.context, nothing))


def test_a_training_that_diverges_says_so_with_its_numbers():
    """The next row's context is twice this one's, so a linear critic chases 2 * 0.9 of itself; see `test_dqn.py`."""
    batch = two_steps(40, 0)
    row = np.arange(80)
    twice = dataclasses.replace(
        batch,
        context=np.repeat(1.0 + row % 2, 6).reshape(80, 6).astype(np.float32),
        reward=np.ones(80),
        discount=np.ones(80),
    )
    chasing = DDPG(hidden=(), discount=0.9, learning_rate=0.1, polyak=1.0)
    said = r"step \d+00: the loss is .*; the limit is 30, 3 times the largest \|reward\| 1 / \(1 - discount 0.9\)"
    with pytest.raises(TrainingError, match=said):
        learn.fit(twice, chasing, 0)


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (TD3, "noise", -0.1),
        (TD3, "noise_limit", math.inf),
        (TD3, "delay", 0),
        (TD3BC, "alpha", 0.0),
        (SAC, "temperature", 0.0),
        (SAC, "entropy", math.inf),
        (DDPG, "discount", 1.0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(kind, setting, value):
    with pytest.raises(DataError, match=f"{setting} is .*must be") as refused:
        kind(**{setting: value})
    assert refused.value.field == setting
