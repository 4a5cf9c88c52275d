"""A policy over ranked lists learned from logged ones: the gradient of its value, by inverse propensities.

The policy is a net of scores; served by a softmax of temperature 1, slot by slot, its lists are those of Plackett and
Luce, and exactly the ones that were learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from steersman.core.batch import Batch
from steersman.core.policy import Policy, Softmax
from steersman.learn import HERE, Look, Progress, Run, nets
from steersman.learn.nets import Array, ListRows, Student, Tensor
from steersman.learn.returns import alone
from steersman.learn.settings import Settings, require, slots_of, unit_of

WATCH = nets.Watch(1.0, math.inf, "")
"""Nothing here can diverge as values do: a loss that is not finite is refused, no more."""


class PlackettLuce(Settings, frozen=True, forbid_unknown_fields=True):
    """The reward of the list alone, what comes after it does not count.

    Attributes:
        credit: `list`: the reward of a list is owed to all its items, and weighed by how much likelier the whole list
            is now: right however people read. `cascade`: the reward of an item is owed to itself and to those above
            it, and weighed by how much likelier these are now: far less noise, and right where what stands below an
            item does not matter to it.
        largest_weight: how much likelier than in the log a list may count, at least 1. Small ones have less noise, and
            a policy that stays nearer to the one that logged; with `cascade` they cost more than they save.
    """

    credit: Literal["list", "cascade"] = "list"
    largest_weight: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("largest_weight", self.largest_weight, self.largest_weight >= 1, "at least 1")


def fit(
    batch: Batch,
    config: PlackettLuce,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn. Same batch, config and seed: same policy, bit for bit, on the same kind of CPU.

    Returns:
        a policy whose scores are the log-odds of candidates for the first slot, up to a constant a row, with the
        explorer that serves them as they are, `Softmax(1.0)`. Any other makes another policy of them.
    Raises:
        DataError: the actions are no ranked lists, candidates have no columns, or all rewards are 0.
        TrainingError: the training diverges.
    """
    slots = slots_of(batch, "plackett-luce")
    unit = unit_of(batch, run)
    shape, source, device = nets.shape_for(batch.encoder, config.hidden), nets.generator(seed), nets.device_of(run)
    rate = nets.cosine(config.learning_rate, config.final_learning_rate, config.steps)
    owed = 1 if config.credit == "list" else batch.action.shape[1]
    baseline = nets.Critics(batch.encoder.context_width, config.hidden, owed)
    actor = Student(nets.new_net(shape, source, device), rate, 1.0)
    baseline.start(source)
    cast: dict[str, Student[Any]] = {"actor": actor, "baseline": Student(baseline.to(device), rate, 1.0)}
    row = run.within(batch)
    gather = nets.list_gatherer(batch, slots, alone(row, batch.reward[row]), unit, None, device)

    def now() -> Policy:
        return Policy(batch.encoder, nets.TorchScorer.of(shape, actor.net, 1.0), Softmax(1.0))

    def step(places: Array) -> tuple[Tensor, None]:
        return update(cast, gather(places), config), None

    state, draws = nets.State(source, **cast), nets.Draws(batch.unit[row], config.batch_size)
    nets.train(step, state, draws, config.steps, WATCH, nets.looking(progress, look, now), run)
    return now()


def update(cast: Mapping[str, Student[Any]], rows: ListRows, config: PlackettLuce) -> Tensor:
    """One step of the actor and one of what its rewards are compared with: minus what lists gain on that, on average.

    That is the mean reward of the policy itself, weighed as the lists are: without it whatever was logged would be made
    likelier where rewards are above 0, be it good or bad.
    Source: Swaminathan and Joachims 2015, The self-normalized estimator for counterfactual learning, section 4.
    """
    actor, baseline = cast["actor"], cast["baseline"]
    scores = actor.net(rows.context, rows.candidates)
    log = nets.list_log_chances(scores, rows.mask, rows.items)  # [B, L]
    weight = weights(log, rows.propensity, config.largest_weight)
    usual = baseline.net(rows.context).T  # [B, 1 or L]
    gain = gains(weight, rows, usual.detach(), config.credit)
    actor.step(-(gain * log).sum(dim=1).mean())
    whole = config.credit == "list"
    share, reward = (weight[:, -1:], rows.reward[:, None]) if whole else (weight, rows.slot_reward)
    baseline.step((share * (usual - reward).square()).sum(dim=1).mean())
    return -gain[:, 0].mean()


def weights(log: Tensor, propensity: Tensor, largest: float) -> Tensor:
    """[B, L], how much likelier than in the log a list is down to each slot, at most `largest`; without a gradient.

    Args:
        log: [B, L], logarithms of probabilities of the items, each given those above it.
        propensity: [B, L], of the same.
    Source: Ionides 2008, Truncated importance sampling; for the gradients of policies over lists Chen et al. 2019,
    arXiv:1812.02353, section 4.4.
    """
    return (log.detach() - propensity.log()).cumsum(dim=1).exp().clamp(max=largest)


def gains(weight: Tensor, rows: ListRows, usual: Tensor, credit: str) -> Tensor:
    """[B, L], what log-probabilities of the items are multiplied by.

    Without a limit of the weights the mean gradient of the sum of these products is that of the policy's value,
    whatever is usual: probabilities sum to 1, so those of what may stand down to a slot do not change together.

    Args:
        weight: [B, L], see `weights`.
        usual: [B, 1 or L] the reward to compare with, of the list, or of each slot.
        credit: see `PlackettLuce`.
    Source: Williams 1992, REINFORCE; Swaminathan and Joachims 2015, arXiv:1502.02362, eq. 2; for lists Oosterhuis 2021,
    arXiv:2105.00855, eq. 9 (rewards from a slot on).
    """
    if credit == "list":
        return (weight[:, -1:] * (rows.reward[:, None] - usual)).expand_as(weight)
    return (weight * (rows.slot_reward - usual)).flip(1).cumsum(dim=1).flip(1)
