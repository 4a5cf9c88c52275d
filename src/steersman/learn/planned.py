"""A policy cloned from plans: a model of the world learns from the log, plans are made in it, a net learns them.

A plan is made anew at each decision, which no graph does; a net that says what a plan would begin with can be served.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from steersman.core.batch import Batch
from steersman.core.density import NumbersExplorer, Point
from steersman.core.errors import ConfigError, DataError
from steersman.core.policy import EpsilonGreedy, Policy
from steersman.learn import HERE, Look, Progress, Run, nets
from steersman.learn.dynamics import Dynamics, Model, begun
from steersman.learn.nets import Array, Student, Tensor
from steersman.learn.numbers import POINTS
from steersman.learn.planning import MAX_PATHS, Step, best_candidates, plan_numbers
from steersman.learn.run import world
from steersman.learn.settings import known_returns, require, unit_of

MOST = 40_000_000
"""Steps of the model that plans may take: some minutes on one core."""

ROUND = 200_000
"""Sequences that are followed at once."""


class Planned(Model, frozen=True, forbid_unknown_fields=True):
    """How a model is learned, plans are made in it, and a net learns them.

    `steps` are of the model, and as many again of the net; both have the `hidden` layers.

    Attributes:
        members: of the model's ensemble, at least 1; the disagreement of one alone is 0.
        plans: contexts of the log that a plan is made at, drawn evenly, at least 1.
        horizon: steps that a plan looks ahead, at least 1; what comes after them counts nothing.
        discount: of one step, in (0, 1], times the problem's own.
        caution: what a step costs where the members disagree by one standard deviation of what they predict, in
            standard deviations of the reward, at least 0. At 0 plans go where the model is wrong in their favour.
        population, elites, rounds: of the search over numbers, see `planning.plan_numbers`; over candidates all
            sequences are looked at, of those of the row, as if they were there at every step.
    Source: Yu et al. 2020, arXiv:2005.13239, eq. 5, with the ensemble's disagreement as the penalty.
    """

    EXPLORERS: ClassVar[tuple[NumbersExplorer, ...]] = POINTS

    plans: int = 2000
    horizon: int = 4
    discount: float = 0.99
    caution: float = 1.0
    population: int = 100
    elites: int = 10
    rounds: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("plans", "horizon", "rounds"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        require("discount", self.discount, 0 < self.discount <= 1, "in (0, 1]")
        require("caution", self.caution, 0 <= self.caution < math.inf, "at least 0")
        require("elites", self.elites, 2 <= self.elites <= self.population, "in [2, population]")


def careful(model: Dynamics, caution: float) -> Step:
    """What follows, as a model says, with a price on what it is not sure of; see `Planned`."""
    price = caution * (float(model.spread[-2]) or 1.0)

    def step(context: Array, action: Array) -> tuple[Array, Array, Array]:
        found = model.predict(context, action)
        return found.context, found.reward - price * found.disagreement, found.discount * (1.0 - found.ends)

    return step


def fit(
    batch: Batch,
    config: Planned,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn the model, plan, learn the plans. Same batch, config and seed: same policy, on the same kind of CPU.

    Until the model has learned, the policy that a look sees is that of a net that knows nothing.

    Returns:
        over numbers the point that a plan begins with; over candidates a score each: what the best sequence is worth
        that begins with it, more than the mean of those of the row.
    Raises:
        ConfigError: there are several processes.
        DataError: the actions are ranked lists, no row teaches anything, or the plans would take too long.
        TrainingError: the training diverges.
    """
    if world() > 1:
        raise ConfigError(f"plans are made in one process; this training has {world()}", field="learner")
    if batch.ranked:
        raise DataError("Planned does not learn over ranked lists", field="learner")
    unit = unit_of(batch, run)
    known_returns(batch, config.discount, 1, run)
    rows, source, device = run.within(batch), nets.generator(seed), nets.device_of(run)
    _check_length(batch, config, min(config.plans, len(rows)))
    model, ensemble, teach = begun(batch, config, source, run)
    kind = _numbers(batch, config) if batch.numbers else _candidates(batch, config, unit)
    actor: Student[Any] = Student(
        nets.new_net(kind.shape, source, device),
        nets.cosine(config.learning_rate, config.final_learning_rate, config.steps), 1.0,
    )  # fmt: skip
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(config.plans, len(rows)), replace=False))
    targets: list[Array] = []

    def update(places: Array) -> tuple[Tensor, None]:
        if ensemble.done < config.steps:
            return teach(places)
        if not targets:  # also where a training goes on behind this: the model is what it was
            still = replace(model, ensemble=copy.deepcopy(ensemble.net).cpu())
            targets.append(kind.plan(careful(still, config.caution), chosen, seed))
        some = places * len(chosen) // len(rows)
        loss = kind.miss(actor.net, chosen[some], targets[0][some], device)
        actor.step(loss)
        return loss.detach(), None

    def now() -> Policy:
        return Policy(batch.encoder, nets.TorchScorer.of(kind.shape, actor.net, kind.unit), kind.explorer)

    state, draws = nets.State(source, model=ensemble, actor=actor), nets.Draws(batch.unit[rows], config.batch_size)
    watch = nets.Watch(1.0, math.inf, "")
    nets.train(update, state, draws, 2 * config.steps, watch, nets.looking(progress, look, now), run)
    return now()


@dataclass(frozen=True)
class _Kind:
    """What numbers and candidates do in ways of their own.

    Attributes:
        shape: of the net.
        unit: of its scores.
        explorer: of the policy, that takes what it learned.
        plan: (what follows, rows of the batch [M], seed) -> what the net shall say at each [M, ...] f32.
        miss: (net, rows of the batch [B], what it shall say, device) -> how far it is from that.
    """

    shape: nets.Shape
    unit: float
    explorer: Any
    plan: Callable[[Step, Array, int], Array]
    miss: Callable[[Any, Array, Array, Any], Tensor]


def _numbers(batch: Batch, config: Planned) -> _Kind:
    box = batch.encoder.numbers
    assert box is not None

    def plan(step: Step, chosen: Array, seed: int) -> Array:
        found, size = [], max(1, ROUND // config.population)
        for start in range(0, len(chosen), size):
            found.append(
                plan_numbers(
                    step, batch.context[chosen[start : start + size]], box, seed + start,
                    horizon=config.horizon, discount=config.discount, population=config.population,
                    elites=config.elites, rounds=config.rounds,
                )
            )  # fmt: skip
        return nets.scaling(box)(np.concatenate(found).astype(np.float32))

    def miss(net: nets.Actor, rows: Array, target: Array, device: Any) -> Tensor:
        context, wanted = (nets.from_numpy(array).to(device) for array in (batch.context[rows], target))
        return nets.squared(net.layers(context), wanted)

    return _Kind(nets.actor_shape(batch.encoder, "point", config.hidden), 1.0, Point(), plan, miss)


def _candidates(batch: Batch, config: Planned, unit: float) -> _Kind:
    def plan(step: Step, chosen: Array, seed: int) -> Array:
        found, size = [], max(1, ROUND // batch.mask.shape[1] ** config.horizon)
        for start in range(0, len(chosen), size):
            rows = chosen[start : start + size]
            _, worth = best_candidates(
                step, batch.context[rows], batch.candidates[rows], batch.mask[rows],
                horizon=config.horizon, discount=config.discount,
            )  # fmt: skip
            there = np.where(batch.mask[rows], worth, 0.0)
            found.append(there - there.sum(axis=1, keepdims=True) / batch.mask[rows].sum(axis=1, keepdims=True))
        return (np.concatenate(found) / unit).astype(np.float32)

    def miss(net: Any, rows: Array, target: Array, device: Any) -> Tensor:
        arrays = (batch.context[rows], batch.candidates[rows], batch.mask[rows].astype(np.float32), target)
        context, candidates, there, wanted = (nets.from_numpy(array).to(device) for array in arrays)
        return ((net(context, candidates) - wanted).square() * there).sum() / there.sum()

    return _Kind(nets.shape_for(batch.encoder, config.hidden), unit, EpsilonGreedy(0.0), plan, miss)


def _check_length(batch: Batch, config: Planned, plans: int) -> None:
    """Raise DataError if plans would take more steps of the model than MOST."""
    each = batch.mask.shape[1] ** config.horizon
    if batch.numbers:
        each = config.population * config.rounds * config.horizon
    if plans * each > MOST or each > MAX_PATHS:
        raise DataError(
            f"{plans:,} plans {config.horizon} steps ahead take {plans * each:,} steps of the model; at most {MOST:,} "
            f"are taken, and {MAX_PATHS:,} a plan",
            hint="look less far (horizon), or plan at fewer contexts (plans)",
            field="horizon",
        )
