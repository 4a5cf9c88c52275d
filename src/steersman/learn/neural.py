"""Neural-linear Thompson sampling: a net learns the reward; its last layer is replaced by a Bayesian regression."""

from __future__ import annotations

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.core.policy import Policy, Thompson
from steersman.learn import HERE, Look, Progress, Run, nets
from steersman.learn.bandit import require_draws, require_positive, require_ridge, sampled
from steersman.learn.nets import Array, Net, Shape, Student, Tensor
from steersman.learn.returns import alone
from steersman.learn.settings import Settings, require, require_candidates, unit_of, watch_of
from steersman.learn.sums import Design, Regression, Ridge, parts


class NeuralThompson(Settings, frozen=True, forbid_unknown_fields=True):
    """A net of the reward, and the posterior of a linear regression on its last hidden layer.

    Each named action has coefficients of its own; candidates with features share them. `hidden` must not be empty.

    Attributes:
        draws: M, of the posterior, an even number; see `bandit.LinearThompson`, as for
        noise: deviation of the reward around the model; None: the likeliest; and
        scale: times the posterior's deviations.
        ridge: the noise's variance over the prior's of a coefficient, above 0; `auto`: the likeliest.
    Raises:
        DataError: a number is out of range.
    Source: Riquelme, Tucker and Snoek 2018, arXiv:1802.09127, section 4, `NeuralLinear`; noise and ridge are the
        likeliest here, where they have priors there.
    """

    draws: int = 128
    noise: float | None = None
    scale: float = 1.0
    ridge: Ridge = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require("hidden", self.hidden, bool(self.hidden), "at least one layer: without any use the learner thompson")
        require_draws(self.draws)
        require_ridge(self.ridge)
        require("scale", self.scale, 0 <= self.scale < np.inf, "at least 0")
        if self.noise is not None:
            require_positive("noise", self.noise)


def fit(
    batch: Batch,
    config: NeuralThompson,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn the net by gradients, then the posterior in closed form; see `LinearThompson` about its draws.

    Each row counts as a decision of its own: what comes after it in its episode is not looked at.

    Raises:
        DataError: actions are no single candidates, or candidates have no columns.
        TrainingError: the training diverges.
    """
    require_candidates(batch, type(config).__name__)
    unit = unit_of(batch, run)
    rows = run.within(batch)
    shape = nets.shape_for(batch.encoder, config.hidden)
    device = nets.device_of(run)
    source = nets.generator(seed)
    rate = nets.cosine(config.learning_rate, config.final_learning_rate, config.steps)
    student = Student(nets.new_net(shape, source, device), rate, 1.0)
    gather = nets.gatherer(batch, alone(rows, batch.reward[rows]), unit, device)

    def update(places: Array) -> tuple[Tensor, Tensor]:
        some = gather(places)
        value = student.net(some.context, some.taken)[:, 0]
        loss = nets.squared(value, some.reward)
        student.step(loss)
        return loss, value

    def now() -> Policy:
        return _sampled(batch, rows, student.net, shape, config, seed)

    state, draws = nets.State(source, reward=student), nets.Draws(batch.unit[rows], config.batch_size)
    nets.train(update, state, draws, config.steps, watch_of(unit, 0.0), nets.looking(progress, look, now), run)
    return now()


def _sampled(batch: Batch, rows: Array, net: Net, shape: Shape, config: NeuralThompson, seed: int) -> Policy:
    """The policy whose last layer is drawn from its posterior, the layers below as they are now."""
    found, mean = last_layer(batch, rows, net), float(batch.reward[rows].mean())
    ridge = found.likeliest_ridge() if config.ridge == "auto" else config.ridge
    draws = sampled(found, ridge, config, seed)  # [M, B, 1 + H]
    if shape.kind == "actions":
        table = Design(own=True, rows=draws.shape[2], columns=1 + shape.candidate).table(draws, mean)
    else:
        table = draws[:, 0].copy()
        table[:, 0] += mean
    made, weights = nets.drawn_head(net, shape, np.moveaxis(table, 0, -1).copy())
    return Policy(batch.encoder, nets.TorchScorer(made, weights, 1.0), Thompson())


def last_layer(batch: Batch, rows: Array, net: Net) -> Regression:
    """The regression of the reward, without its mean, on [1, last hidden layer] of the candidates that were taken."""
    hidden, named = nets.last_hidden(net), not batch.encoder.candidate
    blocks, reward = batch.encoder.candidate_width if named else 1, batch.reward[rows] - batch.reward[rows].mean()
    gram = target = None
    for part in parts(len(rows)):
        some = rows[part]
        taken = batch.candidates[some, batch.action[some]]
        phi = hidden(batch.context[some], taken)
        block = taken.argmax(axis=1) if named else np.zeros(len(some), dtype=np.int64)
        if gram is None or target is None:
            gram, target = np.zeros((blocks, phi.shape[1], phi.shape[1])), np.zeros((blocks, phi.shape[1]))
        for one in range(blocks):
            mine = phi[block == one]
            gram[one] += mine.T @ mine
            target[one] += reward[part][block == one] @ mine
    if gram is None or target is None:
        raise DataError("there is no row to learn from")
    return Regression(gram, target, float(reward @ reward), float(len(rows)))
