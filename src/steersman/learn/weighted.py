"""Policies over numbers learned from the actions that were taken, each by its weight: steps of `numbers.py`."""

from __future__ import annotations

from steersman.learn import nets
from steersman.learn.advantage import Weigh, leaning
from steersman.learn.nets import NumberRows, Tensor
from steersman.learn.numbers import Learners, Update, lower, teach


def cloning(learners: Learners, rows: NumberRows) -> tuple[Tensor, None]:
    """Against the negative logarithm of the density of the actions taken."""
    return _imitate(learners, rows, rows.reward.new_ones(len(rows.reward))), None


def implicit(share: float, weigh: Weigh) -> Update:
    """Contexts are worth an expectile of what the actions taken there are, and no other action is ever asked about.

    Source: Kostrikov, Nair and Levine 2022, arXiv:2110.06169, eq. 5 to 7.
    """

    def update(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
        taken = lower(learners.critics.slow, rows.context, rows.action)
        base = learners.values.net.passed(rows.context)
        advantage = taken - base.value[0]
        base.teach((advantage * leaning(advantage, share) * (-2.0 / len(taken)))[None])
        learners.values.descend()
        then = learners.values.net.passed(rows.next_context).value[0]
        loss, value = teach(learners.critics, rows, then)
        _imitate(learners, rows, weigh(advantage, learners.actor.share))
        return loss, value

    return update


def weighted(weigh: Weigh, samples: int) -> Update:
    """What follows is worth what the policy would do there; actions weigh by how much better they are than it.

    Args:
        samples: actions of the policy, that an action's advantage is over the mean of.
    Source: Nair, Gupta, Dalal and Levine 2020, arXiv:2006.09359, eq. 13; Wang et al. 2020, arXiv:2006.15134, eq. 2.
    """

    def update(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
        after = learners.draw(learners.actor.net.raw(rows.next_context))
        then = lower(learners.critics.slow, rows.next_context, after.action)
        loss, value = teach(learners.critics, rows, then)
        raw = learners.actor.net.raw(rows.context).repeat(samples, 1)
        context = rows.context.repeat(samples + 1, 1)
        tried = lower(learners.critics.net, context, nets.stacked(rows.action, learners.draw(raw).action))
        taken, own = tried[: len(rows.action)], tried[len(rows.action) :].unflatten(0, (samples, -1))
        _imitate(learners, rows, weigh(taken - own.mean(dim=0), learners.actor.share))
        return loss, value

    return update


def _imitate(learners: Learners, rows: NumberRows, weight: Tensor) -> Tensor:
    """One step of the actor towards the actions taken; its loss."""
    actor = learners.actor.net.passed(rows.context)
    taken = nets.Density(actor.out).at(rows.action)
    actor.teach(taken.outputs(weight / -len(weight)))
    learners.actor.descend()
    return -(weight * taken.log).mean()
