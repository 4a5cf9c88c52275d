"""A model of the world from a log: what comes next, how sure that is, and which fields it depends on.

An ensemble learns, each member from a bootstrap sample of the units and from a start of its own: where the log says
much they agree, and where it says nothing they do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.core.features import Encoder
from steersman.learn import HERE, Progress, Run, nets
from steersman.learn.nets import Array, Student, Tensor
from steersman.learn.nets.dynamics import Ensemble, Lessons, unlikeliness
from steersman.learn.settings import Settings, require

CHUNK = 16_384
"""Rows that are predicted together."""


class Model(Settings, frozen=True, forbid_unknown_fields=True):
    """How a model of the world is learned.

    Attributes:
        members: of the ensemble, at least 1.
    """

    members: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("members", self.members, self.members >= 1, "at least 1")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of N contexts and actions.

    Attributes:
        context: [N, F] f32, the next one, if there is one, on average; columns of a category come as numbers.
        reward: [N] f32.
        discount: [N] f32, of the value of the next step, if there is one.
        ends: [N] f32, chance that there is none.
        noise: [N, F + 1] f32, standard deviation of the next context's columns and, last, of the reward.
        disagreement: [N] f32, root mean square over all that is predicted of the standard deviation between members, in
            standard deviations of it in the log.
    """

    context: Array
    reward: Array
    discount: Array
    ends: Array
    noise: Array
    disagreement: Array


@dataclass(frozen=True, eq=False)
class Dynamics:
    """A model of the world: `predict` for everything it says, `step` for planners.

    Attributes:
        encoder: of the log.
        middle, scale: [F] of the contexts in the log; a scale of 0: the column never changed, and is not looked at.
        offset, spread: [F + 2] mean and standard deviation of what is predicted: the changes of the context's columns,
            the reward, the discount; where it is 0 the mean is predicted.
        ensemble: learned.
    """

    encoder: Encoder
    middle: Array
    scale: Array
    offset: Array
    spread: Array
    ensemble: Ensemble

    def predict(self, context: Array, action: Array) -> Prediction:
        """What comes next.

        Args:
            context: [N, F], as a Batch has them.
            action: [N, D] numbers, in their own units; or [N, A], the columns of the candidates taken.
        """
        parts = [self._predict(context[i : i + CHUNK], action[i : i + CHUNK]) for i in range(0, len(context), CHUNK)]
        return Prediction(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def step(self, context: Array, action: Array) -> tuple[Array, Array, Array]:
        """The next contexts [N, F], rewards [N], and what the value of the next step counts [N], ends included."""
        found = self.predict(context, action)
        return found.context, found.reward, found.discount * (1.0 - found.ends)

    def given(self, context: Array, action: Array) -> Array:
        """[N, F + A] f32, what the nets read."""
        seen = np.divide(context - self.middle, self.scale, out=np.zeros_like(context), where=self.scale > 0)
        box = self.encoder.numbers
        own = action.astype(np.float32) if box is None else nets.scaling(box)(action.astype(np.float32))
        return np.concatenate([seen, own], axis=1).astype(np.float32)

    def _predict(self, context: Array, action: Array) -> tuple[Array, ...]:
        context = np.asarray(context, dtype=np.float32)
        with nets.no_grad(), nets.one_thread():
            laws = self.ensemble(nets.from_numpy(self.given(context, action)))
        mean, scale = laws.mean.numpy(), laws.log_scale.exp().numpy()
        moves = self.spread > 0
        between = mean.std(axis=0)  # [N, O]
        value = np.broadcast_to(self.offset, (len(context), len(self.offset))).copy()
        value[:, moves] += mean.mean(axis=0) * self.spread[moves]
        noise = np.zeros_like(value)
        noise[:, moves] = np.sqrt(np.square(scale).mean(axis=0)) * self.spread[moves]
        ends = 1.0 / (1.0 + np.exp(-laws.end.numpy()))
        discount = np.clip(value[:, -1], 0.0, 1.0)
        away = np.sqrt(np.square(between).mean(axis=1))
        return context + value[:, :-2], value[:, -2], discount, ends.mean(axis=0), noise[:, :-1], away


def fit_dynamics(batch: Batch, config: Model, seed: int, progress: Progress | None = None, run: Run = HERE) -> Dynamics:
    """Learn a model. Same batch, config and seed: same model, bit for bit, on the same kind of CPU.

    Rows whose next step was not seen teach their reward alone.

    Raises:
        DataError: the actions are ranked lists, or nothing that could be predicted changes.
        TrainingError: the training diverges.
    """
    source = nets.generator(seed)
    model, student, update = begun(batch, config, source, run)
    state, draws = nets.State(source, model=student), nets.Draws(batch.unit[run.within(batch)], config.batch_size)
    nets.train(update, state, draws, config.steps, nets.Watch(1.0, math.inf, ""), progress, run)
    student.net.cpu()
    return model


def begun(
    batch: Batch, config: Model, source: nets.Generator, run: Run = HERE
) -> tuple[Dynamics, Student[Ensemble], Callable[[Array], tuple[Tensor, None]]]:
    """A model that has learned nothing yet: itself, who learns, and one step of that, on places in the run's rows [B].

    Raises:
        DataError: as `fit_dynamics`.
    """
    if batch.ranked:
        raise DataError("a model of the world is not for ranked lists yet", field="actions")
    rows = run.within(batch)
    context, seen = batch.context[rows], batch.next[rows] >= 0
    target = np.zeros((len(rows), context.shape[1] + 2), dtype=np.float32)
    target[seen, :-2] = batch.context[batch.next[rows][seen]] - context[seen]
    target[:, -2], target[seen, -1] = batch.reward[rows], batch.discount[rows][seen]
    known = np.repeat(seen[:, None], target.shape[1], axis=1)
    known[:, -2] = True
    offset, spread = _moments(target, known)
    if not (spread > 0).any():
        raise DataError("neither the rewards nor the contexts of the log ever change: there is nothing to predict")
    middle, scale = _moments(context, np.ones_like(context, dtype=bool))
    moves, device = spread > 0, nets.device_of(run)
    own = batch.action if batch.numbers else None
    width = context.shape[1] + (batch.candidates.shape[2] if own is None else own.shape[1])
    ensemble = Ensemble(width, int(moves.sum()), config.hidden, config.members)
    ensemble.start(source)
    student = Student(
        ensemble.to(device), nets.cosine(config.learning_rate, config.final_learning_rate, config.steps), 1.0
    )
    model = Dynamics(batch.encoder, middle, scale, offset, spread, student.net)
    standard = ((target - offset) / np.where(moves, spread, 1.0))[:, moves]
    ended, over = batch.terminated[rows], batch.over[rows] | seen
    who, unit = np.unique(batch.unit[rows], return_inverse=True)
    evenly, rng = np.full(len(who), 1.0 / len(who)), np.random.default_rng(source.initial_seed())
    weight = rng.multinomial(len(who), evenly, config.members).astype(np.float32)
    taken = batch.candidates[rows, batch.action[rows]] if own is None else own[rows]

    def update(places: Array) -> tuple[Tensor, None]:
        arrays = (
            model.given(context[places], taken[places]), standard[places], known[places][:, moves], ended[places],
            over[places], weight[:, unit[places]],
        )  # fmt: skip
        lessons = Lessons(*(nets.from_numpy(array.astype(np.float32)).to(device) for array in arrays))
        loss = unlikeliness(student.net(lessons.given), lessons)
        student.step(loss)
        return loss, None

    return model, student, update


class Importance(Struct, frozen=True):
    """What a model's predictions owe to a field.

    Attributes:
        field: of the context.
        reward: root mean square change of the predicted reward when the field's values are dealt out anew among the
            rows, in standard deviations of the reward in the log.
        ahead: the same of what the other fields are next, mean over their columns.
    """

    field: str
    reward: float
    ahead: float


def importance(model: Dynamics, context: Array, action: Array, seed: int) -> tuple[Importance, ...]:
    """How much each field matters to what is predicted, the one that matters most to both together first.

    Where two fields say the same, each takes from the other.

    Args:
        context, action: rows of the log, see `Dynamics.predict`; some thousands are enough.
        seed: of the dealing.
    Source: Breiman 2001, Random forests, section 10; of a model of the world Gauci et al. 2018, arXiv:1811.00260.
    """
    rng, spread = np.random.default_rng(seed), np.where(model.spread > 0, model.spread, np.inf)
    plain, start, found = model.predict(context, action), 0, []
    for transform in model.encoder.context:
        columns = slice(start, start + transform.width)
        dealt = context.copy()
        dealt[:, columns] = context[rng.permutation(len(context)), columns]
        there = model.predict(dealt, action)
        change = (there.context - dealt) - (plain.context - context)
        other = np.ones(context.shape[1], dtype=bool)
        other[columns] = False
        moved = np.sqrt(np.square(change / spread[:-2]).mean(axis=0))[other & (model.spread[:-2] > 0)]
        reward = np.sqrt(np.square((there.reward - plain.reward) / spread[-2]).mean())
        found.append(Importance(transform.name, float(reward), float(moved.mean()) if moved.size else 0.0))
        start += transform.width
    return tuple(sorted(found, key=lambda one: -(one.reward + one.ahead)))


def _moments(values: Array, known: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column over what is known, f32; a spread that is rounding alone is 0."""
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0.0).sum(axis=0, dtype=np.float64) / count
    spread = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / count)
    spread[spread <= 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 0.0
    return mean.astype(np.float32), spread.astype(np.float32)
