"""What actions are weighed by when a policy is learned from those that were taken: functions of their advantages.

An advantage is what an action is worth more than what the policy would do there, in units of the training.
"""

from __future__ import annotations

from collections.abc import Callable

from steersman.learn import nets
from steersman.learn.nets import Tensor

Weigh = Callable[[Tensor, float], Tensor]
"""(advantages of the actions taken [B], share of the minibatch that they are, if several processes have it) -> their
weights [B], at least 0, without a gradient."""

TINY = 1e-6
"""Advantages that spread less than this, in units of the training, count as equal."""


def expectile(value: Tensor, target: Tensor, share: float) -> Tensor:
    """The loss whose best answer is the expectile of the targets: their mean at 0.5, towards their maximum at 1.

    mean(|share - 1(u < 0)| u^2) with u = target - value.

    Args:
        value, target: [B].
        share: in (0, 1).
    Source: Kostrikov, Nair and Levine 2022, arXiv:2110.06169, eq. 5.
    """
    above = target - value
    return (leaning(above.detach(), share) * above.square()).mean()


def leaning(above: Tensor, share: float) -> Tensor:
    """|share - 1(above < 0)|: what `expectile` weighs squares by."""
    return (share - (above < 0).to(above.dtype)).abs()


def exponential(temperature: float, largest: float) -> Weigh:
    """exp(A / (temperature * spread)), at most `largest`; the spread is the standard deviation within the minibatch.

    So the temperature has no unit and means the same whatever the rewards are. Advantages that do not spread all
    weigh the same.

    Args:
        temperature: in standard deviations of the advantages, above 0: small ones imitate the best actions only, large
            ones imitate all.
        largest: weight, at least 1.
    Source: Peng et al. 2019, arXiv:1910.00177, eq. 10; Nair et al. 2020, arXiv:2006.09359, eq. 13.
    """

    def weigh(advantage: Tensor, share: float = 1.0) -> Tensor:
        given = advantage.detach()
        spread = nets.spread(given, share)
        power = given / (temperature * spread.clamp(min=TINY)) * (spread > TINY)
        return power.exp().clamp(max=largest)

    return weigh


def binary(advantage: Tensor, share: float = 1.0) -> Tensor:
    """1 where the action is better than what the policy would do, else 0.

    Source: Wang et al. 2020, arXiv:2006.15134, eq. 3.
    """
    return (advantage.detach() > 0).to(advantage.dtype)
