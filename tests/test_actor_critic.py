"""Actor-critics over numbers: densities exact through their explorer, and a world whose values and best actions are
known in closed form, with gaps of time, terminals and episodes cut short."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

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
from steersman.learn.numbers import Learners, Trainer, Variation, learn_numbers

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
        density = nets.Density(torch.tensor(raw).expand(500, 4))
        drawn = density.draw(torch.tensor(uniforms[:, 1:], dtype=torch.float32))
        served = Squashed().draw(raw[None], uniforms[None], BOX)[0]
        np.testing.assert_allclose(in_units(drawn.action.numpy()), served, rtol=0, atol=2e-4 * 20)


def test_a_density_of_the_training_is_the_density_of_the_explorer():
    uniforms = torch.tensor(np.random.default_rng(0).uniform(0.001, 0.999, (500, 2)), dtype=torch.float32)
    volume = 4.0 * 20.0 / 2.0**2  # of the bounds, for one unit of volume of [-1, 1]^2
    for raw in RAW:
        density = nets.Density(torch.tensor(raw).expand(500, 4))
        drawn = density.draw(uniforms)
        served = Squashed().density(np.tile(raw, (500, 1)), in_units(drawn.action.numpy()), BOX)
        inside = served > 0  # float32 may carry one beyond REACH
        assert inside.mean() > 0.5
        for found in (drawn.log, density.at(drawn.action).log):
            np.testing.assert_allclose(found.exp().numpy()[inside] / volume, served[inside], rtol=0.03)
        if np.abs(raw[:2]).max() < 1.1:
            np.testing.assert_allclose(drawn.log.exp().numpy() / volume, served, rtol=1e-3)


def test_an_action_on_its_bound_counts_as_one_within_reach():
    density = nets.Density(torch.tensor([[3.0, 0.0]]))
    at, near = (density.at(torch.tensor([[action]])).log for action in (1.0, math.tanh(REACH)))
    assert float(at) == pytest.approx(float(near), abs=1e-5)
    assert math.isfinite(float(at))


@pytest.mark.parametrize("raw", [[0.3, -0.5], [2.5, 0.7], [-3.8, 1.5]])
def test_the_gradient_through_a_draw_is_that_of_the_mean(raw):
    """Even strata of uniforms make the mean an integral; its slope by differences is that of the path."""
    uniforms = ((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None]

    def drawn(at: torch.Tensor) -> nets.Drawn:
        return nets.Density(at.expand(20_000, 2)).draw(uniforms)

    def mean(at: torch.Tensor) -> torch.Tensor:
        found = drawn(at)
        return (found.action[:, 0].square() + found.action[:, 0] + 0.1 * found.log).mean()

    at = torch.tensor([raw], dtype=torch.float64)
    found = drawn(at)
    slope = found.outputs(2.0 * found.action + 1.0, torch.full_like(found.log, 0.1)).mean(dim=0, keepdim=True)
    for column in range(2):
        step = torch.zeros(1, 2, dtype=torch.float64)
        step[0, column] = 1e-4
        by_difference = float(mean(at + step) - mean(at - step)) / 2e-4
        assert float(slope[0, column]) == pytest.approx(by_difference, abs=2e-3)


@pytest.mark.parametrize("uniform", [1e-5, 0.2, 0.7, 1.0 - 1e-5])
def test_gradients_by_the_outputs_of_a_density_are_those_of_autograd(uniform):
    """Where outputs are beyond their limits, they are those of the squared distance, summed over them."""
    raw = torch.tensor(RAW, dtype=torch.float64, requires_grad=True)
    by_action = torch.tensor([[0.3, -2.0], [1.0, 0.5], [-1.0, 1.0], [0.2, 0.0]], dtype=torch.float64)
    by_log = torch.tensor([0.7, -0.4, 0.1, 2.0], dtype=torch.float64)
    cut = torch.cat((raw[:, :2].clamp(-REACH, REACH), raw[:, 2:].clamp(*LOG_SCALES)), dim=1).detach()
    beyond = (raw - cut).square().sum(dim=1).mean()
    density = nets.Density(raw)
    drawn, taken = density.draw(torch.full((4, 2), uniform, dtype=torch.float64)), density.at(by_action.clamp(-1, 1))
    for loss, found in (
        ((drawn.action * by_action).sum() + drawn.log @ by_log, drawn.outputs(by_action, by_log)),
        (taken.log @ by_log, taken.outputs(by_log)),
    ):
        (want,) = torch.autograd.grad(loss + beyond, raw, retain_graph=True)
        torch.testing.assert_close(found.detach(), want, rtol=1e-6, atol=1e-8)


def test_points_beyond_their_limits_are_led_back_and_others_left_alone():
    raw = torch.tensor([[1.5, -1.0], [0.25, -3.0]])
    by_action = torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    assert nets.led_back(raw, nets.point(raw), by_action).tolist() == [[0.5, 6.0], [7.0, -2.0]]


def test_aims_are_the_gradients_of_their_losses():
    """Fujimoto and Gu 2021, eq. 5: -alpha Q / mean |Q| + the mean square of the distance; the scale is a constant."""
    generator = nets.generator(0)
    value = torch.randn(6, generator=generator, requires_grad=True)
    action, taken = torch.randn(6, 2, generator=generator, requires_grad=True), torch.randn(6, 2, generator=generator)
    rows = nets.NumberRows(taken, taken, value, value, taken)
    scale = value.detach().abs().mean()
    loss = -2.5 * value.mean() / scale + (action - taken).square().mean()
    for found, want in zip(
        actor_critic.near_the_log(2.5)(value, action, rows, 1.0),
        torch.autograd.grad(loss, (value, action)),
        strict=True,
    ):
        torch.testing.assert_close(found, want)
    by_value, by_action = actor_critic.worth(value, action, rows, 1.0)
    assert by_action is None
    torch.testing.assert_close(by_value, torch.autograd.grad(-value.mean(), value)[0])


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
    with torch.no_grad():
        assert torch.allclose(critics.first(rows).value, both[:1], atol=1e-6)
        assert torch.allclose(critics.passed(rows).value, both, atol=1e-6)
    assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize("hidden", [(), (5,), (8, 5)])
def test_gradients_that_come_back_by_hand_are_those_of_autograd(hidden):
    critics = nets.Critics(3, hidden, 2)
    critics.start(nets.generator(0))
    Student(critics, lambda done: 0.1, 0.5)
    rows = torch.randn(7, 3, generator=nets.generator(1), requires_grad=True)
    by_value = torch.randn(2, 7, generator=nets.generator(2))
    by_rows, *by_weights = torch.autograd.grad((critics(rows) * by_value).sum(), [rows, *critics.parameters()])
    with torch.no_grad():
        passed = critics.passed(rows)
        for parameter in critics.parameters():
            parameter.grad.fill_(9.0)  # of a step before
        torch.testing.assert_close(passed.inputs(by_value), by_rows)
        assert all(bool((parameter.grad == 9.0).all()) for parameter in critics.parameters())
        passed.teach(by_value)
    for parameter, want in zip(critics.parameters(), by_weights, strict=True):
        torch.testing.assert_close(parameter.grad, want)


def test_products_in_bf16_give_gradients_that_are_nearly_those_of_f32():
    critics = nets.Critics(3, (64, 64), 2)
    critics.start(nets.generator(0))
    Student(critics, lambda done: 0.1, 0.5)
    rows, by_value = (torch.randn(*size, generator=nets.generator(1)) for size in ((128, 3), (2, 128)))
    found: list[torch.Tensor] = []
    for halved in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=halved, cache_enabled=False):
            passed = critics.passed(rows)
            passed.teach(by_value)
            gradient = torch.cat([parameter.grad.ravel() for parameter in critics.parameters()])
            found.append(torch.cat([passed.value.ravel(), passed.inputs(by_value).ravel(), gradient]))
    assert found[1].dtype == torch.float32
    error = float((found[1] - found[0]).norm() / found[0].norm())
    assert 1e-5 < error < 0.02


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
        return learners.critics.net.first(rows).value[0].numpy().astype(np.float64) * unit


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
    log = learners.draw(raw).log
    assert -float(log.mean()) == pytest.approx(entropy, abs=0.1)


@pytest.mark.parametrize("config", [DDPG(hidden=(8, 8)), TD3BC(hidden=(8,), alpha=0.7, delay=1), SAC(hidden=(8, 8))])
def test_actors_step_against_the_gradient_of_their_published_loss(config):
    """After the step of the critics, by autograd through copies of all nets."""
    source = nets.generator(3)
    trainer = Trainer(ENCODER, config, own_variation(config), source)
    learners, generator = trainer.learners, nets.generator(5)
    context, after = (torch.randn(16, 6, generator=generator) for _ in range(2))
    taken, reward = torch.rand(16, 1, generator=generator) * 2 - 1, torch.randn(16, generator=generator)
    rows = nets.NumberRows(context, taken, reward, torch.full((16,), 0.9), after)
    actor, state = copy.deepcopy(learners.actor.net), source.get_state()
    trainer.update(rows)
    raw = actor.layers(context)
    if isinstance(config, SAC):
        source.set_state(state)
        nets.rand(16, 1, generator=source)  # for the next rows
        drawn = nets.Density(raw).draw(nets.rand(16, 1, generator=source))
        worth = learners.critics.net(nets.beside(context, drawn.action)).amin(dim=0)
        loss = (config.temperature * drawn.log - worth).mean()
    else:
        action = nets.point(raw)
        worth = learners.critics.net(nets.beside(context, action))[0]
        loss = -worth.mean()
        if isinstance(config, TD3BC):
            loss = config.alpha * loss / worth.detach().abs().mean() + (action - taken).square().mean()
    for found, want in zip(learners.actor.net.parameters(), actor.parameters(), strict=True):
        torch.testing.assert_close(found.grad, torch.autograd.grad(loss, want, retain_graph=True)[0])


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


def test_an_actor_that_waits_ends_at_the_final_rate_too():
    config = TD3(**LQ | {"steps": 60, "final_learning_rate": 0.0}, delay=3)
    trainer, generator = Trainer(ENCODER, config, own_variation(config), nets.generator(0)), nets.generator(1)
    weights = [trainer.learners.actor.arrays()["weights"]]
    for _ in range(config.steps):
        context, after = (torch.randn(16, 6, generator=generator) for _ in range(2))
        taken, reward = torch.rand(16, 1, generator=generator) * 2 - 1, torch.randn(16, generator=generator)
        trainer.update(nets.NumberRows(context, taken, reward, torch.full((16,), 0.9), after))
        weights.append(trainer.learners.actor.arrays()["weights"])
    moved = [float(np.abs(after - before).max()) / config.learning_rate for before, after in pairwise(weights)]
    assert [move > 0 for move in moved] == [False, False, True] * 20
    assert moved[2] > 0.3 and moved[-1] < 0.02


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
