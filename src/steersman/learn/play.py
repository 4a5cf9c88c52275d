"""Play a simulator by a policy: whole episodes side by side, as a Batch like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from steersman.core.batch import Batch
from steersman.core.density import Aims
from steersman.core.policy import CandidatesExplorer, Policy, over_candidates, over_numbers
from steersman.core.shared import is_shared
from steersman.core.simulator import Simulator

Array = np.ndarray


def play(world: Simulator, policy: Policy, seed: int) -> Batch:
    """One episode in each of the E that run side by side, each a unit of its own.

    An episode that a rule ended keeps the discount of its last row, which is marked as limited.

    Args:
        policy: with a density, where actions are numbers.
        seed: of the world and of the draws.
    """
    source, box, seen = np.random.default_rng(seed), world.encoder.numbers, world.start(seed)
    lane, table = np.arange(len(seen.context)), seen.candidates[0].copy()
    going, steps, shared = np.ones(len(lane), dtype=bool), list[tuple[Array, ...]](), True
    offered: list[Array] = []
    while going.any():
        shared &= is_shared(seen.candidates) and np.array_equal(seen.candidates[0], table)
        scores = policy.scorer(seen.context, seen.candidates)
        if box is None:
            action, propensity = choose(over_candidates(policy.explorer), scores, seen.mask, source)
        else:
            aims = Aims(over_numbers(policy.explorer), scores, box)
            action = aims.draws(source.random((len(aims), 1, len(box.low) + 1)))[:, 0].astype(np.float32)
            propensity = aims.density(action)
        moved = world.step(action)
        facts = (lane, seen.context, seen.mask, action, propensity, moved.reward, moved.discount, moved.over)
        steps.append(tuple(array[going] for array in facts))
        # What all episodes share is never copied: 80 actions by name are 6,400 numbers a row.
        offered.append(seen.candidates[: going.sum()] if is_shared(seen.candidates) else seen.candidates[going])
        going &= ~moved.over
        seen = moved.seen
    columns = [np.concatenate(column) for column in zip(*steps, strict=True)]
    order = np.argsort(columns[0], kind="stable")  # steps were appended in order, so stable keeps them so
    unit, context, mask, action, propensity, reward, discount, over = (array[order] for array in columns)
    return Batch(
        encoder=world.encoder,
        context=context,
        candidates=np.broadcast_to(table, (len(unit), *table.shape)) if shared else np.concatenate(offered)[order],
        mask=mask,
        action=action,
        propensity=propensity,
        reward=reward,
        metrics=np.empty((len(unit), 0)),
        discount=discount,
        next=np.where(over, -1, np.arange(1, len(unit) + 1)),
        unit=unit,
        limited=over & (discount > 0),
    )


def choose(
    explorer: CandidatesExplorer, scores: Array, mask: Array, source: np.random.Generator
) -> tuple[Array, Array]:
    """[E] i64 places drawn by the explorer's own probabilities, and these [E] f64."""
    chance = explorer.probabilities(scores, mask)
    total = np.cumsum(chance, axis=1)
    action = (source.random((len(chance), 1)) * total[:, -1:] >= total).sum(axis=1)
    return action, chance[np.arange(len(chance)), action]


def together(batches: Sequence[Batch]) -> Batch:
    """Batches of one world as one: episodes of the first, then of the second, each unit once."""
    rows = np.cumsum([0, *map(len, batches)])[:-1]
    units = np.cumsum([0, *(int(batch.unit.max()) + 1 for batch in batches)])[:-1]
    table = batches[0].candidates[0]
    shared = all(is_shared(one.candidates) and np.array_equal(one.candidates[0], table) for one in batches)
    names = ("context", "mask", "action", "propensity", "reward", "metrics", "discount", "limited")
    joined: dict[str, Any] = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names}
    n = len(joined["reward"])
    return dataclasses.replace(
        batches[0],
        candidates=np.broadcast_to(table, (n, *table.shape))
        if shared
        else np.concatenate([batch.candidates for batch in batches]),
        next=np.concatenate(
            [np.where(one.next < 0, -1, one.next + row) for one, row in zip(batches, rows, strict=True)]
        ),
        unit=np.concatenate([one.unit + unit for one, unit in zip(batches, units, strict=True)]),
        begun=np.zeros(n, dtype=bool),
        **joined,
    )


def returns_of_episodes(batch: Batch) -> Array:
    """[E] sum of the rewards of every episode, undiscounted."""
    return np.bincount(batch.unit, weights=batch.reward)
