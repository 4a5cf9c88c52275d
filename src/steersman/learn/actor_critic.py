"""Actor-critics over numbers: what an action is worth, and an actor that follows. One trainer, updates as values.

Inside the training an action is D numbers in [-1, 1], its bounds, and rewards are divided by the largest |reward|, so
that no setting depends on a unit. How much the value of the next row counts is the batch's own discount, so a longer
wait for it counts as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from steersman.core.batch import Batch
from steersman.core.density import Point, Squashed
from steersman.core.errors import DataError
from steersman.core.features import Encoder
from steersman.core.policy import Policy
from steersman.learn import Look, Progress, nets
from steersman.learn.nets import Array, NumberRows, Student, Tensor
from steersman.learn.run import HERE, Run
from steersman.learn.settings import SLACK, Settings, ValueSettings, require, returns_of, unit_of, watch_of

POINTS, DENSITIES = ("gaussian", "point", "box"), ("squashed", "box")
"""Kinds of explorers that can read the scores of an actor of points, and of one of densities."""

HASTE = 5.0
"""How much faster than the nets the temperature learns: it has one number, and trainings here are short."""


class DDPG(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """Deterministic policy gradient: the actor climbs what one critic thinks of its actions.

    Source: Lillicrap et al. 2016, arXiv:1509.02971.
    """

    EXPLORERS: ClassVar[tuple[str, ...]] = POINTS


class TD3(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """DDPG with the lower of two critics, noise on the actions that targets come from, and an actor that waits.

    Attributes:
        noise, noise_limit: standard deviation of that noise and what it is cut to, in half widths of the bounds, at
            least 0.
        delay: steps of the critics for one of the actor, at least 1.
    Source: Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477, algorithm 1. Slow copies follow at every step.
    """

    EXPLORERS: ClassVar[tuple[str, ...]] = POINTS

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

    EXPLORERS: ClassVar[tuple[str, ...]] = DENSITIES

    temperature: float = 0.1
    entropy: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("temperature", self.temperature, 0 < self.temperature < math.inf, "above 0")
        require("entropy", self.entropy, self.entropy is None or math.isfinite(self.entropy), "finite")


@dataclass(frozen=True)
class Learners:
    """What a training changes, and nothing else: all of it is in students, by name, and in random numbers.

    Attributes:
        students: `actor`, of points or of densities; `critics` of contexts and actions; `values` of contexts alone;
            `log_temperature`, what a unit of entropy is worth. Only those that the variation uses are there.
        source: of random numbers.
        device: where the nets are.
    """

    students: Mapping[str, Student[Any]]
    source: nets.Generator
    device: Any

    @property
    def actor(self) -> Student[nets.Actor]:
        """Of points or of densities."""
        return self.students["actor"]

    @property
    def critics(self) -> Student[nets.Critics]:
        """Of contexts and actions."""
        return self.students["critics"]

    @property
    def values(self) -> Student[nets.Critics]:
        """Of contexts alone."""
        return self.students["values"]

    @property
    def log_temperature(self) -> Student[nets.Scalar]:
        """What a unit of entropy is worth."""
        return self.students["log_temperature"]

    def draw(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [B, D] of the densities that outputs [B, 2 D] of the actor are, and the logarithms of theirs [B]."""
        uniforms = nets.rand(len(raw), raw.shape[1] // 2, generator=self.source).to(self.device)
        return nets.drawn(raw, uniforms)


Update = Callable[[Learners, NumberRows], tuple[Tensor, Tensor | None]]
"""(learners, rows) -> loss, and the values [B] of the actions taken, if it learns any. It makes the steps."""


@dataclass(frozen=True)
class Variation:
    """What tells one member of the family from another.

    Attributes:
        update: one training step.
        squashed: the actor's outputs are a density; else a point.
        critics: how many.
        values: whether contexts alone have a value.
        temperature: that is learned, at first; None: none is.
    """

    update: Update
    squashed: bool
    critics: int = 2
    values: bool = False
    temperature: float | None = None


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
            return Variation(delayed(config, near_the_log(config.alpha)), squashed=False)
        case TD3():
            return Variation(delayed(config, worth), squashed=False)
        case DDPG():
            return Variation(deterministic, squashed=False, critics=1)
        case SAC():
            size = 0 if numbers is None else len(numbers.low)
            entropy = -float(size) if config.entropy is None else config.entropy
            return Variation(soft(entropy), squashed=True, temperature=config.temperature)
    raise DataError(f"{type(config).__name__} does not learn over numbers", field="learner")


class Trainer:
    """Learners, and the policy that they are.

    Rewards come divided by `unit`. Same encoder, config, seed and rows: same policy, bit for bit, on the same kind of
    CPU.
    """

    def __init__(
        self, encoder: Encoder, config: Settings, variation: Variation, source: nets.Generator, run: Run = HERE
    ) -> None:
        """Draw all weights.

        Raises:
            DataError: the actions of the encoder are no numbers.
        """
        self.encoder, self.variation = encoder, variation
        self._shape = nets.actor_shape(encoder, "squashed" if variation.squashed else "point", config.hidden)
        columns, size = encoder.context_width, len(self._shape.bounds)
        made: dict[str, nets.Actor | nets.Critics | nets.Scalar] = {"actor": nets.Actor(self._shape)}
        if variation.critics:
            made["critics"] = nets.Critics(columns + size, config.hidden, variation.critics)
        if variation.values:
            made["values"] = nets.Critics(columns, config.hidden, 1)
        if variation.temperature is not None:
            made["log_temperature"] = nets.Scalar(math.log(variation.temperature))
        rate = nets.cosine(config.learning_rate, config.final_learning_rate, config.steps)
        rates = {"log_temperature": lambda done: HASTE * rate(done)}
        polyak = config.polyak if isinstance(config, ValueSettings) else 1.0
        device, students = nets.device_of(run), {}
        for name, net in made.items():
            net.start(source)
            students[name] = Student(net.to(device), rates.get(name, rate), polyak)
        self.learners = Learners(students, source, device)
        self.state = nets.State(source, **students)

    def update(self, rows: NumberRows) -> tuple[Tensor, Tensor | None]:
        """One training step: its loss, and the values of the actions taken, if any."""
        return self.variation.update(self.learners, rows)

    def policy(self) -> Policy:
        """As it is now: the point or the density of the actor."""
        scorer = nets.TorchScorer.of(self._shape, self.learners.actor.net, 1.0)
        return Policy(self.encoder, scorer, Squashed() if self.variation.squashed else Point())


def learn_numbers(
    batch: Batch,
    config: ValueSettings,
    variation: Variation,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """The trainer of the family.

    Of several processes each draws noise and uniforms of its own, and takes its own rows' mean |value| for that of the
    minibatch.

    Returns:
        a policy that does what the actor says, a point or a density; whoever serves it gives it its explorer:
        `gaussian` around a point, `squashed` for a density.
    Raises:
        DataError: actions are no numbers, or no row teaches anything.
        TrainingError: the training diverges.
    """
    if batch.encoder.numbers is None:
        kind = "ranked lists" if batch.ranked else "candidates"
        raise DataError(f"{type(config).__name__} sets numbers; the actions of this batch are {kind}", field="learner")
    unit, returns = unit_of(batch, run), returns_of(batch, config, run)
    trainer = Trainer(batch.encoder, config, variation, nets.generator(seed), run)
    gather = nets.number_gatherer(batch, returns, unit, batch.encoder.numbers, trainer.learners.device)

    def update(places: Array) -> tuple[Tensor, Tensor | None]:
        return trainer.update(gather(places))

    draws = nets.Draws(batch.unit[returns.row], config.batch_size)
    watch = watch_for(config, batch.encoder, unit, float(run.of(batch.discount).max()))
    now = nets.looking(progress, look, trainer.policy)
    nets.train(update, trainer.state, draws, config.steps, watch, now, run)
    return trainer.policy()


def watch_for(config: ValueSettings, encoder: Encoder, unit: float, discount: float) -> nets.Watch:
    """What tells divergence; a soft value has the worth of the entropy in it, let in as one reward a number."""
    size = len(encoder.numbers.low) if isinstance(config, SAC) and encoder.numbers else 0
    return watch_of(unit, config.discount * discount, SLACK * (1 + size))


# the step of the critics


def teach(critics: Student[nets.Critics], rows: NumberRows, then: Tensor) -> tuple[Tensor, Tensor]:
    """One step towards reward + discount * then: the loss, and the values of the first critic [B].

    Args:
        then: [B] what is worth the next row, without a gradient.
    """
    target = rows.reward + rows.discount * then
    value = critics.net(nets.beside(rows.context, rows.action))  # [C, B]
    loss = nets.squared(value, target.expand_as(value))
    critics.step(loss * len(value))
    return loss, value[0]


def lower(critics: nets.Critics, context: Tensor, action: Tensor) -> Tensor:
    """[B] what the most modest of the critics thinks."""
    return critics(nets.beside(context, action)).amin(dim=0)


# points


def deterministic(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
    """One critic, one actor, no noise. Source: Lillicrap et al. 2016, arXiv:1509.02971, algorithm 1."""
    with nets.no_grad():
        action = nets.point(learners.actor.slow.raw(rows.next_context))
        then = learners.critics.slow.first(nets.beside(rows.next_context, action))
    loss, value = teach(learners.critics, rows, then)
    _climb(learners, rows, worth)
    return loss, value


Aim = Callable[[Tensor, Tensor, NumberRows], Tensor]
"""(worth of the actor's actions [B], these actions [B, D], rows) -> loss of the actor."""


def worth(value: Tensor, action: Tensor, rows: NumberRows) -> Tensor:
    """Nothing but what the critic thinks. Source: Silver et al. 2014, eq. 9."""
    return -value.mean()


def near_the_log(alpha: float) -> Aim:
    """What the critic thinks, in units of its mean |value|, and how far the action is from the one that was taken.

    Source: Fujimoto and Gu 2021, arXiv:2106.06860, eq. 3 and 5; the distance is the mean over the numbers, as there.
    """

    def loss(value: Tensor, action: Tensor, rows: NumberRows) -> Tensor:
        scale = value.detach().abs().mean().clamp(min=1e-8)
        return -alpha * value.mean() / scale + nets.squared(action, rows.action)

    return loss


def delayed(config: TD3, aim: Aim) -> Update:
    """The lower of two slow critics at a slow action with noise; the actor takes every `delay`-th step.

    Source: Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477, algorithm 1.
    """

    def update(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
        with nets.no_grad():
            action = nets.point(learners.actor.slow.raw(rows.next_context))
            action = nets.jitter(action, config.noise, config.noise_limit, learners.source)
            then = lower(learners.critics.slow, rows.next_context, action)
        loss, value = teach(learners.critics, rows, then)
        if learners.critics.done % config.delay == 0:
            _climb(learners, rows, aim)
        return loss, value

    return update


def _climb(learners: Learners, rows: NumberRows, aim: Aim) -> None:
    """One step of an actor of points."""
    raw = learners.actor.net.raw(rows.context)
    action = nets.point(raw)
    value = learners.critics.net.first(nets.beside(rows.context, action))
    learners.actor.step(aim(value, action, rows) + nets.overshoot(raw, squashed=False))


# densities


def soft(entropy: float) -> Update:
    """Values with the worth of what entropy is to come; the temperature falls while the density is wider than asked.

    Args:
        entropy: asked for.
    Source: Haarnoja et al. 2018, arXiv:1812.05905, eq. 3, 7 and 18. The temperature's own loss is taken to its
    logarithm, as is usual.
    """

    def update(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
        temperature = learners.log_temperature.net.value.detach().exp()
        with nets.no_grad():
            action, log = learners.draw(learners.actor.net.raw(rows.next_context))
            then = lower(learners.critics.slow, rows.next_context, action) - temperature * log
        loss, value = teach(learners.critics, rows, then)
        raw = learners.actor.net.raw(rows.context)
        action, log = learners.draw(raw)
        own = lower(learners.critics.net, rows.context, action)
        learners.actor.step((temperature * log - own).mean() + nets.overshoot(raw, squashed=True))
        learners.log_temperature.step(-learners.log_temperature.net.value * (log.detach().mean() + entropy))
        return loss, value

    return update
