"""Policies over candidates learned from logs: a clone, and actor-critics. One trainer, objectives as values.

A policy is a net of logits, its scores: a softmax of temperature 1 serves exactly what was learned, over whatever
candidates a row has. Expectations over candidates are sums, so nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steersman.core.batch import Batch
from steersman.core.policy import Policy, Softmax
from steersman.learn import HERE, Look, Progress, Run, nets
from steersman.learn.advantage import Weigh, expectile
from steersman.learn.cloning import log_chances, surprise
from steersman.learn.nets import Array, Minibatch, Net, Student, Tensor, no_grad
from steersman.learn.settings import SLACK, Settings, ValueSettings, lessons_of, require, require_candidates

Cast = Mapping[str, Student[Any]]
"""Who learns, by name: `actor` always, and what else the objective needs."""

Update = Callable[[Cast, Minibatch], tuple[Tensor, Tensor | None]]
"""One step of all that learn -> a loss to report, and the values [B] of the candidates taken, if any are learned."""


@dataclass(frozen=True)
class Objective:
    """How a policy is learned.

    Attributes:
        update: one step.
        needs: who learns beside the actor: name -> from the shape of the actor a net without weights.
    """

    update: Update
    needs: Mapping[str, Callable[[nets.Shape], Any]]


class SAC(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """Discrete soft actor-critic: the best policy that stays undecided to a degree, whatever the rewards are.

    Attributes:
        entropy: of the policy, on average, as a share of that of the uniform one, in (0, 1): the temperature that gives
            it is learned.
        temperature: where it starts, in units of the largest |reward|, above 0.
        n_step: see `ValueSettings`; the entropy of the steps between is left out, so above 1 values are lower.
    Source: Haarnoja et al. 2018, arXiv:1812.05905; Christodoulou 2019, arXiv:1910.07207.
    """

    entropy: float = 0.2
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require("entropy", self.entropy, 0 < self.entropy < 1, "in (0, 1)")
        require("temperature", self.temperature, 0 < self.temperature < math.inf, "above 0")


def fit(
    batch: Batch,
    config: SAC,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn by discrete SAC; see `learn_policy`."""
    return learn_policy(batch, config, soft(config.entropy, config.temperature), seed, progress, look, run)


def learn_policy(
    batch: Batch,
    config: Settings,
    objective: Objective,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """The trainer. Same batch, config and seed: same policy, bit for bit, on the same kind of CPU.

    Rewards are divided by the largest |reward|, so that no setting depends on their unit.

    Returns:
        a policy whose scores are logarithms of probabilities, up to a constant a row, with the explorer that serves
        them as they are, `Softmax(1.0)`. Any other makes another policy of them.
    Raises:
        DataError: actions are no single candidates, candidates have no columns, or no row teaches anything.
        TrainingError: the training diverges.
    """
    require_candidates(batch, type(config).__name__)
    undecided = math.log(batch.mask.shape[1]) if isinstance(config, SAC) else 0.0  # is worth something to it
    returns, unit, watch = lessons_of(batch, config, run, SLACK * (1.0 + undecided))
    shape, source, device = nets.shape_for(batch.encoder, config.hidden), nets.generator(seed), nets.device_of(run)
    rate = nets.cosine(config.learning_rate, config.final_learning_rate, config.steps)
    polyak = config.polyak if isinstance(config, ValueSettings) else 1.0
    cast: dict[str, Student[Any]] = {"actor": Student(nets.new_net(shape, source, device), rate, polyak)}
    for name, make in objective.needs.items():
        net = make(shape)
        net.start(source)
        cast[name] = Student(net.to(device), rate, polyak)
    gather = nets.gatherer(batch, returns, unit, device)

    def update(places: Array) -> tuple[Tensor, Tensor | None]:
        return objective.update(cast, gather(places))

    def now() -> Policy:
        return Policy(batch.encoder, nets.TorchScorer.of(shape, cast["actor"].net, 1.0), Softmax(1.0))

    state, draws = nets.State(source, **cast), nets.Draws(batch.unit[returns.row], config.batch_size)
    nets.train(update, state, draws, config.steps, watch, nets.looking(progress, look, now), run)
    return now()


# objectives


def _clone(cast: Cast, rows: Minibatch) -> tuple[Tensor, None]:
    loss = surprise(cast["actor"].net, rows).mean()
    cast["actor"].step(loss)
    return loss, None


cloning = Objective(_clone, {})
"""The most likely policy to have logged the actions, whatever came of them: its probabilities are the frequencies."""


def weighted(weigh: Weigh) -> Objective:
    """The candidates taken, each by what it is worth more than what the policy does there on average.

    Values are those of the policy itself: what comes next counts by its probabilities, summed over the candidates.

    Args:
        weigh: advantages to weights; exponential: AWAC, and CRR with `exp`; binary: CRR.
    Source: Nair et al. 2020, arXiv:2006.09359, eq. 8 and 13; Wang et al. 2020, arXiv:2006.15134, eq. 1 to 4.
    """

    def update(cast: Cast, rows: Minibatch) -> tuple[Tensor, Tensor]:
        actor, critic = cast["actor"], cast["critic"]
        with no_grad():
            chance = _next_log_chances(actor.net, rows).exp()
            then = critic.slow(rows.next_context, rows.next_candidates)
            ahead = _expected(chance, then)
        loss, value = _fit_critic(critic, rows, rows.reward + rows.discount * ahead)
        log = _log_chances(actor.net, rows)
        with no_grad():
            worth = critic.net(rows.context, rows.candidates)  # [B, K]
            advantage = _at(worth, rows.action) - _expected(log.exp(), worth)
        actor.step(-(weigh(advantage, actor.share) * _at(log, rows.action)).mean())
        return loss, value

    return Objective(update, {"critic": nets.Twins})


def implicit(share: float, weigh: Weigh) -> Objective:
    """As `weighted`, and no candidate is asked about that was not taken: a context is worth an expectile of those.

    Args:
        share: of the expectile, in (0, 1).
        weigh: advantages to weights.
    Source: Kostrikov, Nair and Levine 2022, arXiv:2110.06169, eq. 5 to 7.
    """

    def update(cast: Cast, rows: Minibatch) -> tuple[Tensor, Tensor]:
        actor, critic, context = cast["actor"], cast["critic"], cast["value"]
        with no_grad():
            worth = critic.slow(rows.context, rows.taken)[:, 0]
            ahead = context.net(rows.next_context)[0]
        own = context.net(rows.context)[0]
        context.step(expectile(own, worth, share))
        loss, value = _fit_critic(critic, rows, rows.reward + rows.discount * ahead)
        weight = weigh(worth - own.detach(), actor.share)
        actor.step((weight * surprise(actor.net, rows)).mean())
        return loss, value

    return Objective(
        update, {"critic": nets.Twins, "value": lambda shape: nets.Critics(shape.context, shape.hidden, 1)}
    )


def soft(entropy: float, start: float) -> Objective:
    """Rewards, and a price for certainty that is learned so that the policy stays undecided to a degree.

    Args:
        entropy: that the policy shall have on average, as a share of that of the uniform one, in (0, 1).
        start: of the price, which is in units of the training.
    Source: Christodoulou 2019, arXiv:1910.07207, eq. 10 to 12; Haarnoja et al. 2018, arXiv:1812.05905, eq. 18.
    """

    def update(cast: Cast, rows: Minibatch) -> tuple[Tensor, Tensor]:
        actor, critic, number = cast["actor"], cast["critic"], cast["temperature"]
        price = number.net.value.detach().exp()
        with no_grad():
            log = _next_log_chances(actor.net, rows)
            then = critic.slow(rows.next_context, rows.next_candidates)
            ahead = _expected(log.exp(), then - price * log)
        loss, value = _fit_critic(critic, rows, rows.reward + rows.discount * ahead)
        log = _log_chances(actor.net, rows)
        with no_grad():
            worth = critic.net(rows.context, rows.candidates)
        actor.step(-_expected(log.exp(), worth - price * log).mean())
        undecided = -_expected(log.exp(), log).detach()
        aim = entropy * rows.mask.sum(dim=1).log()
        number.step((number.net.value * (undecided - aim)).mean())
        return loss, value

    return Objective(update, {"critic": nets.Twins, "temperature": lambda shape: nets.Scalar(math.log(start))})


def _fit_critic(critic: Student, rows: Minibatch, target: Tensor) -> tuple[Tensor, Tensor]:
    """One step of both twins towards the targets [B] -> their mean loss, and the first one's values [B]."""
    values = critic.net.atoms(rows.context, rows.taken)[:, 0]  # [B, 2]
    loss = nets.squared(values, target[:, None].expand_as(values))
    critic.step(loss)
    return loss.detach(), values[:, 0].detach()


def _log_chances(net: Net, rows: Minibatch) -> Tensor:
    return log_chances(net, rows.context, rows.candidates, rows.mask)


def _next_log_chances(net: Net, rows: Minibatch) -> Tensor:
    return log_chances(net, rows.next_context, rows.next_candidates, rows.next_mask)


def _expected(chance: Tensor, worth: Tensor) -> Tensor:
    """[B] sum over candidates [B, K] of chance times worth; where there is no chance the worth may be infinite."""
    return (chance * worth.masked_fill(chance == 0, 0.0)).sum(dim=1)


def _at(values: Tensor, place: Tensor) -> Tensor:
    """[B] of [B, K], at a place a row."""
    return values.gather(1, place[:, None])[:, 0]
