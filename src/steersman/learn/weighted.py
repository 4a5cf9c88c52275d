"""Policies over numbers learned from the actions that were taken, each by its weight: steps of `numbers.py`."""

from __future__ import annotations

from steersman.learn import nets
from steersman.learn.advantage import Weigh, expectile
from steersman.learn.nets import NumberRows, Tensor
from steersman.learn.numbers import Learners, Update, lower, teach


def cloning(learners: Learners, rows: NumberRows) -> tuple[Tensor, None]:
    """Against the negative logarithm of the density of the actions taken."""
    return _imitate(learners, rows, None), None


def implicit(share: float, weigh: Weigh) -> Update:
    """Contexts are worth an expectile of what the actions taken there are, and no other action is ever asked about.

    Source: Kostrikov, Nair and Levine 2022, arXiv:2110.06169, eq. 5 to 7.
    """

    def update(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
        with nets.no_grad():
            taken = lower(learners.critics.slow, rows.context, rows.action)
        base = learners.values.net(rows.context)[0]
        learners.values.step(expectile(base, taken, share))
        with nets.no_grad():
            then = learners.values.net(rows.next_context)[0]
        loss, value = teach(learners.critics, rows, then)
        _imitate(learners, rows, weigh(taken - base.detach()))
        return loss, value

    return update


def weighted(weigh: Weigh, samples: int) -> Update:
    """What follows is worth what the policy would do there; actions weigh by how much better they are than it.

    Args:
        samples: actions of the policy, that an action's advantage is over the mean of.
    Source: Nair, Gupta, Dalal and Levine 2020, arXiv:2006.09359, eq. 13; Wang et al. 2020, arXiv:2006.15134, eq. 2.
    """

    def update(learners: Learners, rows: NumberRows) -> tuple[Tensor, Tensor]:
        with nets.no_grad():
            action, _ = learners.draw(learners.actor.net.raw(rows.next_context))
            then = lower(learners.critics.slow, rows.next_context, action)
        loss, value = teach(learners.critics, rows, then)
        with nets.no_grad():
            raw = learners.actor.net.raw(rows.context).repeat(samples, 1)
            context = rows.context.repeat(samples + 1, 1)
            tried = lower(learners.critics.net, context, nets.stacked(rows.action, learners.draw(raw)[0]))
            taken, own = tried[: len(rows.action)], tried[len(rows.action) :].unflatten(0, (samples, -1))
        _imitate(learners, rows, weigh(taken - own.mean(dim=0)))
        return loss, value

    return update


def _imitate(learners: Learners, rows: NumberRows, weight: Tensor | None) -> Tensor:
    """One step of the actor towards the actions taken; its loss."""
    raw = learners.actor.net.raw(rows.context)
    log = nets.log_density(raw, rows.action)
    loss = -(log if weight is None else weight * log).mean()
    learners.actor.step(loss + nets.overshoot(raw, squashed=True))
    return loss
