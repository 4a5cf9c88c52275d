"""A world of ranked lists with an exactly known value: like a shop's page of L items, of which each may be clicked.

How people read the page decides which estimator is right. `independent`: a click tells of its item and slot only.
`cascade`: it also depends on the items above. `standard`: on the items above and below.
Source: Kiyohara et al. 2022, arXiv:2202.01562, section 2 and appendix (the three assumptions, and clicks whose chance
is shifted by each pair of items in a list).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steersman.core.batch import Batch
from steersman.core.features import Encoder
from steersman.core.policy import Policy, Softmax
from steersman.core.ranking import Lists
from steersman.core.slots import Slots
from steersman.worlds import tabular

Array = np.ndarray
Reading = Literal["independent", "cascade", "standard"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """S states, K items, L slots; both policies are softmax lists, drawn without replacement.

    Attributes:
        starts: [S] f64, how often a state comes; sums to 1.
        appeal: [S, K] f64, log-odds of a click on an item that stands alone in the first slot.
        slot: [L] f64, added to the log-odds in each slot.
        pull: [K, K] f64, added to the log-odds of the first item by the second one, where it is read before.
        reading: how people read.
        behavior, target: [S, K] f64, scores of the policy that logs, and of one to judge.
    """

    starts: Array
    appeal: Array
    slot: Array
    pull: Array
    reading: Reading
    behavior: Array
    target: Array

    @property
    def slots(self) -> int:
        """L."""
        return len(self.slot)

    @property
    def encoder(self) -> Encoder:
        """The state as a category, the items by name."""
        return tabular.encoder(*self.appeal.shape)

    def clicks(self, state: Array, lists: Array) -> Array:
        """[N, L] f64: probability of a click on each item of a list.

        Args:
            state: [N] i64.
            lists: [N, L] i64.
        """
        odds = self.appeal[state[:, None], lists] + self.slot
        pair = self.pull[lists[:, :, None], lists[:, None, :]]  # [N, of slot, by slot]
        seen = {
            "independent": np.zeros((self.slots, self.slots)),
            "cascade": np.tri(self.slots, k=-1),
            "standard": 1.0 - np.eye(self.slots),
        }[self.reading]
        return 1.0 / (1.0 + np.exp(-(odds + (pair * seen).sum(axis=2))))

    @functools.cached_property
    def every_list(self) -> Array:
        """[P, L] i64, all lists there are."""
        return np.array(list(itertools.permutations(range(self.appeal.shape[1]), self.slots)))

    def value(self, scores: Array) -> float:
        """Exact mean clicks of a list of a policy with these scores, over all lists.

        Args:
            scores: [S, K].
        """
        total = 0.0
        for state, share in enumerate(self.starts):
            n = len(self.every_list)
            states = np.full(n, state)
            chance = self.lists(scores, states).propensities(self.every_list).prod(axis=1)
            total += share * float(chance @ self.clicks(states, self.every_list).sum(axis=1))
        return total

    def lists(self, scores: Array, state: Array) -> Lists:
        """The lists of a policy with these scores [S, K] in the states [N]."""
        return Lists(Softmax(1.0), scores[state], np.ones((len(state), scores.shape[1]), dtype=bool), self.slots)

    def policy(self, scores: Array) -> Policy:
        """A policy with these scores [S, K]."""

        def scorer(context: Array, candidates: Array) -> Array:
            return scores[context[:, : len(scores)].argmax(axis=1)]

        return Policy(self.encoder, scorer, Softmax(1.0))

    def draw(self, n: int, seed: int) -> tuple[Array, Array, Array, Array]:
        """What n visitors saw and did: state [N], lists [N, L], propensities of their items [N, L], clicks [N, L]."""
        rng = np.random.default_rng(seed)
        state = tabular.pick(np.broadcast_to(self.starts, (n, len(self.starts))), rng)
        lists, propensity = self.lists(self.behavior, state).draw(rng.random((n, self.slots)))
        clicks = rng.random((n, self.slots)) < self.clicks(state, lists)
        return state, lists, propensity, clicks.astype(np.float64)

    def sample(self, n: int, seed: int) -> Batch:
        """n lists of the behavior policy, each the terminated episode of a unit of its own."""
        state, lists, propensity, clicks = self.draw(n, seed)
        states, items = self.appeal.shape
        context = np.zeros((n, states + 2), dtype=np.float32)  # + unseen, missing
        context[np.arange(n), state] = 1.0
        first = tabular.softmax(self.behavior)[state]
        return Batch(
            encoder=self.encoder,
            context=context,
            candidates=np.broadcast_to(np.eye(items, dtype=np.float32), (n, items, items)),
            mask=np.ones((n, items), dtype=bool),
            action=lists,
            propensity=propensity.prod(axis=1),
            reward=clicks.sum(axis=1),
            metrics=clicks.sum(axis=1, keepdims=True),
            discount=np.zeros(n),
            next=np.full(n, -1, dtype=np.int64),
            unit=np.arange(n, dtype=np.int64),
            metric_names=("clicks",),
            slots=Slots(propensity, clicks, clicks[:, :, None].copy(), first),
        )


def ranking(
    reading: Reading,
    *,
    states: int = 5,
    items: int = 6,
    slots: int = 3,
    far: float = 1.0,
    pull: float = 1.0,
    seed: int = 0,
) -> Ranking:
    """A random world of this reading; the three of one seed differ in nothing else.

    Args:
        far: how much more the target goes by the true appeal of items than the policy that logs.
        pull: standard deviation of what an item adds to the log-odds of another.
    """
    rng = np.random.default_rng(seed)
    appeal = rng.normal(-1.0, 1.0, (states, items))
    behavior = 0.5 * rng.normal(0.0, 1.0, (states, items))
    return Ranking(
        starts=rng.dirichlet(np.full(states, 5.0)),
        appeal=appeal,
        slot=-0.5 * np.arange(slots),
        pull=pull * rng.normal(0.0, 1.0, (items, items)),
        reading=reading,
        behavior=behavior,
        target=behavior + far * (appeal + 1.0),
    )
