"""A world of slates: people with a budget of time watch one document of each slate, or none, and their taste moves.

Our own world, of the structure that Ie et al. 2019 (arXiv:1905.12767, section 6.1) call interest evolution. Documents
have one of 20 topics and are all as long; seven topics in ten are bad. What people like to choose and what is good are
two things: good documents give back a part of the time that they take, bad ones take more. A policy sees interests and
topics, and neither budget nor quality. A session ends when its budget is used up; its value is the time watched.

Measured over 4,000 sessions each (standard errors below 0.5): slates drawn evenly 168 minutes, those most likely to be
chosen from 172 (see `interesting`), those of the best topics, whatever people like, 292 (see `good`). So 154, the bar
of ReAgent's SlateQ in RecSim, says little here: that world has the same parts and other numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.features import Category, Continuous, Encoder
from steersman.core.policy import EpsilonGreedy, Policy, Uniform, over_candidates
from steersman.core.ranking import Lists
from steersman.core.slots import Slots
from steersman.worlds.tabular import names

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Slates:
    """The world.

    Attributes:
        quality: [T] f64 in [-3, 3], mean quality of the documents of each topic.
        spread: standard deviation of the quality of documents of one topic.
        budget: minutes of a session.
        length: of a document, minutes.
        bonus: share of a document's length that it gives back for each unit of its quality.
        idle: minutes that a slate takes of which nothing is chosen.
        drift: how far an interest moves at most when it is served.
        offered: K, documents to choose a slate from, drawn anew each time.
        slots: L.
    """

    quality: Array
    spread: float = 0.1
    budget: float = 200.0
    length: float = 4.0
    bonus: float = 0.9 / 3.4
    idle: float = 0.5
    drift: float = 0.3
    offered: int = 10
    slots: int = 3

    @property
    def topics(self) -> int:
        """T."""
        return len(self.quality)

    @property
    def encoder(self) -> Encoder:
        """An interest a topic, in [-1, 1]; documents by their topic."""
        topics = names("t", self.topics)
        return Encoder(
            context=tuple(Continuous(f"interest_{topic}", 0.0, 1.0) for topic in topics),
            candidate=(Category("topic", topics),),
        )

    def context(self, interest: Array) -> Array:
        """[N, 2 T] f32 columns of interests [N, T]: each with a missing indicator that is 0."""
        columns = np.zeros((len(interest), 2 * self.topics), dtype=np.float32)
        columns[:, ::2] = interest
        return columns

    def candidates(self, topic: Array) -> Array:
        """[N, K, T + 2] f32 columns of the topics [N, K] of documents."""
        return np.eye(self.topics, self.topics + 2, dtype=np.float32)[topic]

    def uniform(self) -> Policy:
        """Slates drawn evenly."""
        return Policy(self.encoder, lambda context, candidates: candidates[:, :, 0], Uniform())

    def interesting(self) -> Policy:
        """The slate of which something is chosen most likely, so that most is watched at once: the best of the
        short-sighted."""

        def scorer(context: Array, candidates: Array) -> Array:
            return (candidates[:, :, : self.topics] * context[:, None, ::2]).sum(axis=2)

        return Policy(self.encoder, scorer, EpsilonGreedy(0.0))

    def good(self) -> Policy:
        """The documents of the best topics, whatever people like; it knows the world."""

        def scorer(context: Array, candidates: Array) -> Array:
            return candidates[:, :, : self.topics] @ self.quality.astype(np.float32)

        return Policy(self.encoder, scorer, EpsilonGreedy(0.0))

    def value(self, policy: Policy, sessions: int, seed: int) -> tuple[float, float]:
        """Mean minutes watched in a session of a policy, and its standard error."""
        batch = self.sample(sessions, policy, seed)
        watched = np.bincount(batch.unit, weights=batch.reward)
        return float(watched.mean()), float(watched.std(ddof=1) / np.sqrt(sessions))

    def sample(self, sessions: int, policy: Policy, seed: int) -> Batch:
        """Whole sessions of as many people, each a unit of its own; every slate is a decision."""
        rng = np.random.default_rng(seed)
        interest = rng.uniform(-1.0, 1.0, (sessions, self.topics))
        left, who, turns = np.full(sessions, self.budget), np.arange(sessions), []
        while len(who):
            turn = self._turn(interest[who], left[who], policy, rng)
            interest[who], left[who] = turn.pop("interest"), turn.pop("left")
            turns.append(turn | {"unit": who})
            who = who[left[who] > 0]
        rows = {name: np.concatenate([turn[name] for turn in turns]) for name in turns[0]}
        order = np.argsort(rows["unit"], kind="stable")
        return self._batch({name: array[order] for name, array in rows.items()})

    def _turn(self, interest: Array, left: Array, policy: Policy, rng: np.random.Generator) -> dict[str, Array]:
        """One slate for each of n people: what was shown and watched, and how they are after that."""
        n, row = len(interest), np.arange(len(interest))
        topic = rng.integers(self.topics, size=(n, self.offered))
        quality = self.quality[topic] + self.spread * rng.normal(size=topic.shape)
        context, candidates = self.context(interest), self.candidates(topic)
        offered = np.ones(topic.shape, dtype=bool)
        items, propensity = self._lists(policy, context, candidates, offered).draw(rng.random((n, self.slots)))
        odds = np.exp(np.take_along_axis(np.take_along_axis(interest, topic, axis=1), items, axis=1))
        chances = np.cumsum(odds, axis=1) / (1.0 + odds.sum(axis=1, keepdims=True))  # what is left is for nothing
        slot = (chances <= rng.random((n, 1))).sum(axis=1)  # L: nothing
        chosen = slot < self.slots
        place = items[row, np.minimum(slot, self.slots - 1)]
        watched = np.where(chosen, np.minimum(self.length, left), 0.0)
        used = np.where(chosen, self.length * (1.0 - self.bonus * quality[row, place]), self.idle)
        own = interest[row, topic[row, place]]
        up = rng.random(n) < (1.0 + own) / 2.0
        moved = own + np.where(up, 1.0, -1.0) * self.drift * (1.0 - np.abs(own)) * np.abs(own)
        after = interest.copy()
        after[row, topic[row, place]] = np.where(chosen, moved, own)
        reward = np.where(slot[:, None] == np.arange(self.slots), watched[:, None], 0.0)
        return {
            "context": context, "candidates": candidates, "items": items, "propensity": propensity, "reward": reward,
            "interest": after, "left": left - used,
        }  # fmt: skip

    def _lists(self, policy: Policy, context: Array, candidates: Array, offered: Array) -> Lists:
        return Lists(over_candidates(policy.explorer), policy.scorer(context, candidates), offered, self.slots)

    def _batch(self, rows: dict[str, Array]) -> Batch:
        n, unit = len(rows["unit"]), rows["unit"]
        last = np.append(unit[1:] != unit[:-1], True)
        return Batch(
            encoder=self.encoder,
            context=rows["context"],
            candidates=rows["candidates"],
            mask=np.ones((n, self.offered), dtype=bool),
            action=rows["items"],
            propensity=rows["propensity"].prod(axis=1),
            reward=rows["reward"].sum(axis=1),
            metrics=rows["reward"].sum(axis=1, keepdims=True),
            discount=np.where(last, 0.0, 1.0),
            next=np.where(last, -1, np.arange(n) + 1),
            unit=unit,
            metric_names=("watched",),
            slots=Slots(rows["propensity"], rows["reward"], rows["reward"][:, :, None].copy()),
        )


def slates(topics: int = 20) -> Slates:
    """A world whose topics are bad in seven cases of ten: qualities evenly from -3 to 0, and from 0 to 3."""
    bad = round(0.7 * topics)
    return Slates(np.concatenate([np.linspace(-3.0, 0.0, bad), np.linspace(0.0, 3.0, topics - bad)]))
