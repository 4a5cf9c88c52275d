"""Returns of n steps: rewards summed along the episode until a later row takes over. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Returns:
    """What M rows of a batch teach: reward + discount * value at the row `until`.

    Attributes:
        row: [M] i64, rows of the batch, ascending.
        reward: [M] f64, discounted sum of the rewards from the row up to, without, the row `until`.
        discount: [M] f64 in [0, 1], of the value at the row `until`; 0: the episode terminated before.
        until: [M] i64, where the sum stops; the terminated row itself where the discount is 0.
    """

    row: Array
    reward: Array
    discount: Array
    until: Array


def n_step(batch: Batch, discount: float, n: int, rows: Array | None = None) -> Returns:
    """Returns of at most n steps, inside the episode, not corrected for the behavior policy.

    A terminated row keeps its reward and nothing follows. Where the episode was not seen to its end (truncated, or
    still going on) the last row seen takes over with its own reward left out, however few steps that is; that last
    row itself teaches nothing, because what followed it is unknown, and is left out.

    Without correction for what the behavior policy did on the way, more steps carry rewards faster and lean more
    towards the value of the behavior policy; 1 step does not lean at all.

    Args:
        discount: of one step, in [0, 1], times the batch's own discount of that step.
        n: steps, at least 1.
        rows: [R] i64, the rows to learn from, ascending, whole units, so that no return leaves them; None: all.
    Source: Sutton and Barto 2018, eq. 7.1.
    """
    here = np.arange(len(batch))  # where each row's sum has come to
    going = np.ones(len(batch), dtype=bool)
    reward = np.zeros(len(batch))
    weight = np.ones(len(batch))  # discount of what comes at `here`
    for _ in range(n):
        going &= batch.terminated[here] | (batch.next[here] >= 0)
        reward[going] += weight[going] * batch.reward[here[going]]
        weight[going] *= discount * batch.discount[here[going]]
        going &= ~batch.terminated[here]
        if not going.any():
            break
        here[going] = batch.next[here[going]]
    teaches = batch.terminated | (batch.next >= 0)
    row = np.flatnonzero(teaches) if rows is None else rows[teaches[rows]]
    return Returns(row=row, reward=reward[row], discount=weight[row], until=here[row])


def alone(row: Array, reward: Array) -> Returns:
    """What rows [M] teach that are decisions of their own: a reward [M] each, and nothing follows."""
    return Returns(row, reward, np.zeros(len(row)), row)
