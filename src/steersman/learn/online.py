"""Learning while acting in a simulator: what was seen goes into a replay, and every decision is followed by steps.

`experience` and `Replay` know no learner; `learn_online` is the loop of the actor-critics over numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from msgspec import Struct, structs

from steersman.core.density import Gaussian, Squashed, UniformBox
from steersman.core.errors import DataError
from steersman.core.policy import Policy
from steersman.core.simulator import Seen, Simulator
from steersman.learn import Progress, nets
from steersman.learn.actor_critic import variation_of
from steersman.learn.nets import Array
from steersman.learn.numbers import Trainer
from steersman.learn.settings import SLACK, ValueSettings, largest_of, require, watch_of

Rows = Mapping[str, Array]
"""Name -> array, one row a decision: see `experience`."""

Decide = Callable[[Seen], Array]
"""What is to be decided in E episodes -> an action each, see `Simulator.step`."""


class Online(Struct, frozen=True, forbid_unknown_fields=True):
    """How a learner acts and learns by turns.

    Attributes:
        decisions: in all, at least 1.
        random: first of them, made evenly over the bounds before anything is learned, at least 1, fewer than all.
        steps: training steps for each decision after these, at least 1.
        memory: decisions that are remembered, at least 1; beyond that the oldest are forgotten.
        scale: of the normal noise that an actor of points explores with, in shares of the width of the bounds.
    """

    decisions: int = 20_000
    random: int = 1000
    steps: int = 1
    memory: int = 1_000_000
    scale: float = 0.05

    def __post_init__(self) -> None:
        for name in ("decisions", "random", "steps", "memory"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        require("random", self.random, self.random < self.decisions, f"below decisions, {self.decisions}")
        Gaussian(self.scale)


class Replay:
    """Decisions that are remembered, in memory: the last ones, as many as there is room for."""

    def __init__(self, room: int) -> None:
        self._room, self._arrays, self._seen = room, dict[str, Array](), 0

    def __len__(self) -> int:
        return min(self._seen, self._room)

    def add(self, rows: Rows) -> int:
        """Remember them: how many they are. All calls give the same names, shapes and types of a row."""
        count = len(next(iter(rows.values())))
        if count > self._room:
            raise DataError(f"{count} decisions at once do not fit into a memory of {self._room}", field="memory")
        places = np.arange(self._seen, self._seen + count) % self._room
        for name, array in rows.items():
            if name not in self._arrays:
                self._arrays[name] = np.zeros((self._room, *array.shape[1:]), dtype=array.dtype)
            self._arrays[name][places] = array
        self._seen += count
        return count

    def take(self, places: Array) -> dict[str, Array]:
        """Copies of the decisions at places in [0, len), in no order of time."""
        return {name: array.take(places, axis=0) for name, array in self._arrays.items()}

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name][: len(self)]


def experience(world: Simulator, seed: int, decide: Decide) -> Iterator[Rows]:
    """Act for ever: E decisions at a time.

    Returns:
        of each time context [E, F], candidates [E, K, A], mask [E, K], action, reward [E], discount [E], over [E], and
        what was reached: next_context, next_candidates, next_mask. Where an episode is over, what was reached is its
        last state and not the start of the next one.
    """
    seen = world.start(seed)
    while True:
        action = decide(seen)
        moved = world.step(action)
        now = dict(zip(Seen._fields, seen, strict=True))
        after = {f"next_{name}": array for name, array in zip(Seen._fields, moved.reached, strict=True)}
        facts = {"action": action, "reward": moved.reward, "discount": moved.discount, "over": moved.over}
        yield {**now, **facts, **after}
        seen = moved.seen


def learn_online(
    world: Simulator,
    config: ValueSettings,
    online: Online,
    seed: int,
    progress: Progress | None = None,
) -> Policy:
    """An actor-critic over numbers that learns from what it does itself.

    Rewards are divided by the largest |reward| of the random decisions. `steps` of the config is not read: there are
    as many as the decisions ask for. Same world, config and seed: same policy, bit for bit, on the same kind of CPU.

    Args:
        config: of `ddpg`, `td3` or `sac`; with returns of 1 step.
        progress: see `learn.fit`; told every hundred steps.
    Raises:
        DataError: the world's actions are no numbers, or its rewards were all 0.
        TrainingError: the training diverges.
    """
    box = world.encoder.numbers
    if box is None:
        raise DataError("the actions of the world are no numbers", field="learner")
    require("n_step", config.n_step, config.n_step == 1, "1 where decisions are remembered one by one")
    config = structs.replace(config, steps=(online.decisions - online.random) * online.steps)
    variation = variation_of(config, world.encoder)
    source = nets.generator(seed)
    trainer = Trainer(world.encoder, config, variation, source)
    replay, to_training = Replay(min(online.memory, online.decisions)), nets.scaling(box)
    explorer = Squashed() if variation.squashed else Gaussian(online.scale)
    acted = done = 0

    def decide(seen: Seen) -> Array:
        uniforms = nets.rand(len(seen.context), 1, 1 + len(box.low), generator=source).numpy().astype(np.float64)
        which = UniformBox() if acted < online.random else explorer
        return which.draw(trainer.scores(seen.context), uniforms, box)[:, 0].astype(np.float32)

    with nets.one_thread():
        stream = experience(world, seed, decide)
        while acted < online.random:
            acted += replay.add(next(stream))
        unit = largest_of(replay["reward"])
        discount = config.discount * float(replay["discount"].max())
        watch = watch_of(unit, discount, SLACK * variation.slack(world.encoder))
        begun = time.perf_counter()
        while done < config.steps:
            new = replay.add(next(stream))
            acted += new
            for _ in range(min(new * online.steps, config.steps - done)):
                places = nets.places(len(replay), config.batch_size, source)
                taken = replay.take(places)
                loss, value = trainer.update(
                    nets.number_rows(
                        taken["context"],
                        to_training(taken["action"]),
                        taken["reward"] / unit,
                        taken["discount"] * config.discount,
                        taken["next_context"],
                    )
                )
                done += 1
                if done % nets.REPORT == 0 or done == config.steps:
                    figures = watch(done, loss.detach(), None if value is None else value.detach())
                    if progress is not None:
                        progress(done, config.steps, figures | {"steps/s": done / (time.perf_counter() - begun)})
    return trainer.policy()
