"""The trainer of actions that are numbers: an actor, and what it learns beside. What a step does is passed as a value.

Inside the training an action is D numbers in [-1, 1], its bounds, and rewards are divided by the largest |reward|, so
that no setting depends on a unit. How much the value of the next row counts is the batch's own discount, so a longer
wait for it counts as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steersman.core.batch import Batch
from steersman.core.density import Gaussian, NumbersExplorer, Point, Squashed, UniformBox
from steersman.core.errors import DataError
from steersman.core.features import Encoder
from steersman.core.policy import Policy
from steersman.learn import Look, Progress, nets
from steersman.learn.nets import Array, NumberRows, Student, Tensor
from steersman.learn.run import HERE, Run
from steersman.learn.settings import SLACK, Settings, ValueSettings, lessons_of

POINTS: tuple[NumbersExplorer, ...] = (Gaussian(0.1, 0.05), Point(), UniformBox())
DENSITIES: tuple[NumbersExplorer, ...] = (Squashed(0.05), UniformBox())
"""Explorers that can read the scores of an actor of points, and of one of densities. The first serves them, unless the
project names another."""

HASTE = 5.0
"""How much faster than the nets the temperature learns: it has one number, and trainings here are short."""


@dataclass(frozen=True)
class Learners:
    """What a training changes, and nothing else: all of it is in students, by name, and in random numbers.

    Attributes:
        students: `actor`, of points or of densities; `critics` of contexts and actions; `values` of contexts alone;
            `log_temperature`, what a unit of entropy is worth. Only those that the variation uses are there.
        noise: what the steps draw.
        device: where the nets are.
    """

    students: Mapping[str, Student[Any]]
    noise: nets.Noise
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

    def draw(self, raw: Tensor) -> nets.Drawn:
        """An action of each of the densities that outputs [B, 2 D] of the actor are."""
        uniforms = self.noise.uniform(len(raw), raw.shape[1] // 2).to(self.device)
        return nets.Density(raw).draw(uniforms)


Update = Callable[[Learners, NumberRows], tuple[Tensor, Tensor | None]]
"""(learners, rows) -> loss, and the values [B] of the actions taken, if it learns any. It makes the steps."""


@dataclass(frozen=True)
class Variation:
    """What tells one member of the family from another.

    Attributes:
        update: one training step.
        squashed: the actor's outputs are a density; else a point.
        critics: how many.
        delay: steps of the critics for one of the actor.
        values: whether contexts alone have a value.
        temperature: that is learned, at first; None: none is.
    """

    update: Update
    squashed: bool
    critics: int = 2
    delay: int = 1
    values: bool = False
    temperature: float | None = None

    def slack(self, encoder: Encoder) -> int:
        """How far values may be beyond returns: a soft one has the worth of entropy, let in as one reward a number."""
        return 1 if self.temperature is None or encoder.numbers is None else 1 + len(encoder.numbers.low)


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
        rates = {
            "actor": lambda done: rate(done * variation.delay),
            "log_temperature": lambda done: HASTE * rate(done),
        }
        polyak = config.polyak if isinstance(config, ValueSettings) else 1.0
        device, students = nets.device_of(run), {}
        for name, net in made.items():
            net.start(source)
            students[name] = Student(net.to(device), rates.get(name, rate), polyak)
        self.state = nets.State(source, **students)
        self.learners = Learners(students, self.state.noise, device)

    def update(self, rows: NumberRows) -> tuple[Tensor, Tensor | None]:
        """One training step: its loss, and the values of the actions taken, if any."""
        with nets.no_grad():
            return self.variation.update(self.learners, rows)

    def scores(self, context: Array) -> Array:
        """[E, F] f32 -> [E, S] f32, of the actor as it is now: to act with, in between."""
        with nets.no_grad():
            found: Array = self.learners.actor.net(nets.from_numpy(context).to(self.learners.device)).cpu().numpy()
        return found

    def policy(self) -> Policy:
        """As it is now: the point or the density of the actor."""
        scorer = nets.TorchScorer.of(self._shape, self.learners.actor.net, 1.0)
        return Policy(self.encoder, scorer, Squashed() if self.variation.squashed else Point())


def learn_numbers(
    batch: Batch,
    config: Settings,
    variation: Variation,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """The trainer of the family.

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
    returns, unit, watch = lessons_of(batch, config, run, SLACK * variation.slack(batch.encoder))
    trainer = Trainer(batch.encoder, config, variation, nets.generator(seed), run)
    gather = nets.number_gatherer(batch, returns, unit, batch.encoder.numbers, trainer.learners.device)

    def update(places: Array) -> tuple[Tensor, Tensor | None]:
        return trainer.update(gather(places))

    draws = nets.Draws(batch.unit[returns.row], config.batch_size)
    now = nets.looking(progress, look, trainer.policy)
    nets.train(update, trainer.state, draws, config.steps, watch, now, run)
    return trainer.policy()


# the step of the critics


def teach(critics: Student[nets.Critics], rows: NumberRows, then: Tensor) -> tuple[Tensor, Tensor]:
    """One step towards reward + discount * then: the loss, and the values of the first critic [B].

    Args:
        then: [B] what is worth the next row, without a gradient.
    """
    seen = critics.net.passed(nets.beside(rows.context, rows.action))
    away = seen.value - (rows.reward + rows.discount * then)  # [C, B]
    seen.teach(away * (2.0 / len(then)))
    critics.descend()
    return away.square().mean(), seen.value[0]


def lower(critics: nets.Critics, context: Tensor, action: Tensor) -> Tensor:
    """[B] what the most modest of the critics thinks."""
    return critics.passed(nets.beside(context, action)).value.amin(dim=0)


def lowest(value: Tensor, by_lowest: float) -> Tensor:
    """[C, B] gradient by values, from that by the lowest in each column."""
    return value.new_zeros(value.shape).scatter_(0, value.argmin(dim=0, keepdim=True), by_lowest)
