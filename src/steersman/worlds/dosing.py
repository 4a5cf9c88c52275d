"""A product that sets numbers within bounds, once a unit, with a value that quadrature knows to ten digits.

Contexts x are even on [-1, 1]. Action i lies at the share u_i of the width of its bounds and is best at
c_i(x) = 0.5 + lean_i x; the mean reward is base + 0.3 x + the product over i of exp(-(u_i - c_i(x))^2 / (2 width^2)),
its noise is normal. It is no polynomial, so a model of it is always a little wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.density import Aims, NumbersExplorer, Point, shares
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import Policy, over_numbers

Array = np.ndarray

NODES = 64
ONE = Numbers(low=(-1.0,), high=(3.0,))


@dataclass(frozen=True)
class Dosing:
    """The world.

    Attributes:
        box: bounds of the action.
        lean: [D] how much the best share moves with the context; 0.5 reaches the bounds.
        width: of the peak, in shares.
        noise: standard deviation of a reward.
        base: constant added to every reward.
    """

    box: Numbers = ONE
    lean: tuple[float, ...] = (0.4,)
    width: float = 0.25
    noise: float = 0.5
    base: float = 0.0

    @property
    def encoder(self) -> Encoder:
        """Of the context `x`."""
        return Encoder(context=(Continuous("x", 0.0, 1.0),), numbers=self.box)

    def mean(self, x: Array, action: Array) -> Array:
        """[N], [N, D] -> [N] mean reward."""
        away = shares(action, self.box) - (0.5 + x[:, None] * np.array(self.lean))
        return self.base + 0.3 * x + np.exp(-0.5 * (away**2).sum(axis=1) / self.width**2)

    def policy(self, explorer: NumbersExplorer, share: float = 0.5, lean: float = 0.0) -> Policy:
        """A policy that aims at the share `share + lean x` of every bound."""
        low, high = np.array(self.box.low), np.array(self.box.high)

        def scorer(context: Array, candidates: Array) -> Array:
            where = share + lean * context[:, :1].astype(np.float64)
            return (low + (high - low) * where).astype(np.float32)

        return Policy(self.encoder, scorer, explorer)

    def sample(self, n: int, behavior: Policy, seed: int) -> Batch:
        """A log of n decisions, one a unit."""
        rng = np.random.default_rng(seed)
        x = rng.uniform(-1.0, 1.0, n)
        context = np.stack([x, np.zeros(n)], axis=1).astype(np.float32)
        aims = _aims(behavior, context, self.box)
        action = aims.draws(rng.random((n, 1, len(self.box.low) + 1)))[:, 0]
        reward = self.mean(context[:, 0].astype(np.float64), action) + self.noise * rng.normal(size=n)
        return Batch(
            encoder=self.encoder,
            context=context,
            candidates=np.zeros((n, 0, 0), dtype=np.float32),
            mask=np.zeros((n, 0), dtype=bool),
            action=action.astype(np.float32),
            propensity=aims.density(action),
            reward=reward,
            metrics=np.zeros((n, 0)),
            discount=np.zeros(n),
            next=np.full(n, -1),
            unit=np.arange(n),
        )

    def value(self, policy: Policy) -> float:
        """Mean reward of a policy: Gauss and Legendre over context and action."""
        node, weight = np.polynomial.legendre.leggauss(NODES)
        context = np.stack([node, np.zeros(NODES)], axis=1).astype(np.float32)
        aims = _aims(policy, context, self.box)
        x = context[:, 0].astype(np.float64)
        if isinstance(aims.explorer, Point):
            return float(weight @ self.mean(x, aims.mean())) / 2.0
        low, high = np.array(self.box.low), np.array(self.box.high)
        total = 0.0
        fine, each = _composite()
        for places in np.ndindex(*[len(fine)] * len(low)):
            action = np.tile(low + (high - low) * fine[list(places)], (NODES, 1))
            mass = math.prod(each[list(places)].tolist()) * float((high - low).prod())
            total += mass * float(weight @ (aims.density(action) * self.mean(x, action))) / 2.0
        return total


def _aims(policy: Policy, context: Array, box: Numbers) -> Aims:
    nothing = np.zeros((len(context), 0, 0), dtype=np.float32)
    return Aims(over_numbers(policy.explorer), policy.scorer(context, nothing), box)


def _composite() -> tuple[Array, Array]:
    """Nodes in [0, 1] and weights: 8 pieces of 12 nodes."""
    node, weight = np.polynomial.legendre.leggauss(12)
    starts = np.arange(8) / 8.0
    return ((starts[:, None] + (node + 1.0) / 16.0).ravel(), np.tile(weight / 16.0, 8))
