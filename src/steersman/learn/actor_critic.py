"""Actor-critics over numbers: what an action is worth, and an actor that climbs it: each a step of `numbers.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from steersman.core.batch import Batch
from steersman.core.density import NumbersExplorer
from steersman.core.errors import DataError
from steersman.core.features import Encoder
from steersman.core.policy import Policy
from steersman.learn import Look, Progress, nets
from steersman.learn.nets import NumberRows, Tensor
from steersman.learn.numbers import DENSITIES, POINTS, Learners, Update, Variation, learn_numbers, lower, lowest, teach
from steersman.learn.run import HERE, Run
from steersman.learn.settings import Settings, ValueSettings, require


class DDPG(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """Deterministic policy gradient: the actor climbs what one critic thinks of its actions.

    Source: Lillicrap et al. 2016, arXiv:1509.02971.
    """

    EXPLORERS: ClassVar[tuple[NumbersExplorer, ...]] = POINTS


class TD3(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """DDPG with the lower of two critics, noise on the actions that targets come from, and an actor that waits.

    Attributes:
        noise, noise_limit: standard deviation of that noise and what it is cut to, in half widths of the bounds, at
            least 0.
        delay: steps of the critics for one of the actor, at least 1.
    Source: Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477, algorithm 1. Slow copies follow at every step of
    their nets.
    """

    EXPLORERS: ClassVar[tuple[NumbersExplorer, ...]] = POINTS

    noise: float = 0.2
    noise_limit: float = 0.5
    delay: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require("noise", self.noise, 0 <= self.noise < math.inf, "at least 0")
        require("noise_limit", self.noise_limit, 0 <= self.noise_limit < math.inf, "at least 0")
        require("delay", self.delay, self.delay >= 1, "at least 1")


class TD3BC(TD3, frozen=True, forbid_unknown_fields=True):
    """TD3 whose actor also stays near the actions that were taken.

    Attributes:
        alpha: of the critic against nearness, above 0: the larger, the further from the log it may go. The critic
            counts in units of its own mean |value|.
    Source: Fujimoto and Gu 2021, arXiv:2106.06860, eq. 3 to 5.
    """

    alpha: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("alpha", self.alpha, 0 < self.alpha < math.inf, "above 0")


class SAC(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """Soft actor-critic: a density that is worth much and stays wide, with a temperature that learns how wide.

    Attributes:
        temperature: what a unit of entropy is worth at first, in units of the largest |reward|, above 0.
        entropy: that the temperature steers for, of the density over bounds that are 2 wide; None: -D.
    Source: Haarnoja et al. 2018, arXiv:1812.05905, algorithm 1.
    """

    EXPLORERS: ClassVar[tuple[NumbersExplorer, ...]] = DENSITIES

    temperature: float = 0.1
    entropy: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("temperature", self.temperature, 0 < self.temperature < math.inf, "above 0")
        require("entropy", self.entropy, self.entropy is None or math.isfinite(self.entropy), "finite")


def fit(
    batch: Batch,
    config: ValueSettings,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn with the update that belongs to the config."""
    return learn_numbers(batch, config, variation_of(config, batch.encoder), seed, progress, look, run)


def variation_of(config: Settings, encoder: Encoder) -> Variation:
    """The variation of a config."""
    numbers = encoder.numbers
    match config:
        case TD3BC():
            return Variation(delayed(config, near_the_log(config.alpha)), squashed=False, delay=config.delay)
        case TD3():
            return Variation(delayed(config, worth), squashed=False, delay=config.delay)
        case DDPG():
            return Variation(deterministic, squashed=False, critics=1)
        case SAC():
            size = 0 if numbers is None else len(numbers.low)
            entropy = -float(size) if config.entropy is None else config.entropy
            return Variation(soft(entropy), squashed=True, temperature=config.temperature)
    raise DataError(f"{type(config).__name__} does not learn over numbers", field="learner")


# points


def deterministic(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
    """One critic, one actor, no noise. Source: Lillicrap et al. 2016, arXiv:1509.02971, algorithm 1."""
    action = nets.point(learners.actor.slow.raw(rows.next_context))
    then = learners.critics.slow.first(nets.beside(rows.next_context, action)).value[0]
    loss, value = teach(learners.critics, rows, then)
    _climb(learners, rows, worth)
    return loss, value


Aim = Callable[[Tensor, Tensor, NumberRows, float], tuple[Tensor, Tensor | None]]
"""(worth of the actor's actions [B], these actions [B, D], rows, share of the minibatch that these are) -> gradients of
the actor's loss by both; None: 0."""


def worth(value: Tensor, action: Tensor, rows: NumberRows, share: float) -> tuple[Tensor, None]:
    """Of minus the mean of what the critic thinks. Source: Silver et al. 2014, eq. 9."""
    return value.new_full(value.shape, -1.0 / len(value)), None


def near_the_log(alpha: float) -> Aim:
    """Of minus the mean of what the critic thinks, in units of its mean |value|, and of how far the action is from the
    one that was taken: the mean square over rows and numbers.

    Source: Fujimoto and Gu 2021, arXiv:2106.06860, eq. 3 and 5.
    """

    def gradients(value: Tensor, action: Tensor, rows: NumberRows, share: float) -> tuple[Tensor, Tensor]:
        scale = nets.mean(value.abs(), share).clamp(min=1e-8)
        by_value = (-alpha / len(value) / scale).expand_as(value)
        return by_value, (action - rows.action) * (2.0 / action.numel())

    return gradients


def delayed(config: TD3, aim: Aim) -> Update:
    """The lower of two slow critics at a slow action with noise; the actor takes every `delay`-th step.

    Source: Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477, algorithm 1.
    """

    def update(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
        action = nets.point(learners.actor.slow.raw(rows.next_context))
        action = nets.jitter(action, config.noise, config.noise_limit, learners.noise)
        then = lower(learners.critics.slow, rows.next_context, action)
        loss, value = teach(learners.critics, rows, then)
        if learners.critics.done % config.delay == 0:
            _climb(learners, rows, aim)
        return loss, value

    return update


def _climb(learners: Learners, rows: NumberRows, aim: Aim) -> None:
    """One step of an actor of points."""
    actor = learners.actor.net.passed(rows.context)
    action = nets.point(actor.out)
    critic = learners.critics.net.first(nets.beside(rows.context, action))
    by_value, by_action = aim(critic.value[0], action, rows, learners.actor.share)
    through = critic.inputs(by_value[None])[:, rows.context.shape[1] :]
    actor.teach(nets.led_back(actor.out, action, through if by_action is None else through + by_action))
    learners.actor.descend()


# densities


def soft(entropy: float) -> Update:
    """Values with the worth of what entropy is to come; the temperature falls while the density is wider than asked.

    Args:
        entropy: asked for.
    Source: Haarnoja et al. 2018, arXiv:1812.05905, eq. 3, 7 and 18. The temperature's own loss is taken to its
    logarithm, as is usual.
    """

    def update(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
        temperature = learners.log_temperature.net.value.exp()
        after = learners.draw(learners.actor.net.raw(rows.next_context))
        then = lower(learners.critics.slow, rows.next_context, after.action) - temperature * after.log
        loss, value = teach(learners.critics, rows, then)
        actor = learners.actor.net.passed(rows.context)
        drawn = learners.draw(actor.out)
        own = learners.critics.net.passed(nets.beside(rows.context, drawn.action))
        by_action = own.inputs(lowest(own.value, -1.0 / len(drawn.log)))[:, rows.context.shape[1] :]
        actor.teach(drawn.outputs(by_action, (temperature / len(drawn.log)).expand_as(drawn.log)))
        learners.actor.descend()
        learners.log_temperature.net.teach(-(drawn.log.mean() + entropy))
        learners.log_temperature.descend()
        return loss, value

    return update
