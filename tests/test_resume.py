"""A training that is interrupted goes on as if it had not been; several processes learn what one would."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.learn.dqn import DQN
from steersman.learn.nets import scorer_of
from steersman.learn.run import Run
from steersman.worlds import tabular

QUICK = DQN(hidden=(16,), steps=450, batch_size=32)


def walks(rows: int = 400, length: int = 8, seed: int = 0) -> Batch:
    """Random walks on a ring of four states; a step from the last one pays 1."""
    rng = np.random.default_rng(seed)
    row = np.arange(rows)
    last = row % length == length - 1
    state = rng.integers(4, size=rows)
    return tabular.batch(
        np.full((4, 2), 0.5),
        state=state,
        action=rng.integers(2, size=rows),
        reward=(state == 3).astype(float),
        discount=np.where(last, 0.0, 1.0),
        next=np.where(last, -1, row + 1),
        unit=row // length,
    )


def weights_of(batch: Batch, config: DQN = QUICK, run: Run = learn.HERE) -> dict[str, np.ndarray]:
    return scorer_of(learn.fit(batch, config, 7, run=run)).weights()


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one | other)


@pytest.mark.parametrize("at", [100, 200, 400])
def test_from_any_state_that_was_kept_a_training_comes_to_the_same_bits(at):
    kept = {}
    whole = weights_of(walks(), run=Run(keep=lambda done, state: kept.update({done: state}), every=100))
    assert sorted(kept) == [100, 200, 300, 400]
    assert same(weights_of(walks(), run=Run(start=kept[at])), whole)
    assert not same(weights_of(walks(), run=Run(start=kept[at] | {"q.slow": kept[100]["q.weights"]})), whole)


def test_a_state_of_another_net_is_refused():
    kept = {}
    weights_of(walks(), run=Run(keep=lambda done, state: kept.update({done: state}), every=400))
    with pytest.raises(DataError, match=r"weights is \(146,\), the net has \(74,\)"):
        weights_of(walks(), DQN(hidden=(8,), steps=450), run=Run(start=kept[400]))


def test_rows_that_are_not_learned_from_change_nothing():
    """Neither their contexts nor their rewards, which are the largest; a batch without them gives the same bits."""
    batch = walks()
    rows = np.flatnonzero(batch.unit % 3 > 0)
    others = batch.unit % 3 == 0
    strange = tabular.batch(
        np.full((4, 2), 0.5),
        state=np.where(others, 0, batch.context[:, :4].argmax(axis=1)),
        action=batch.action,
        reward=np.where(others, 50.0, batch.reward),
        discount=batch.discount,
        next=batch.next,
        unit=batch.unit,
    )
    assert same(weights_of(strange, run=Run(rows=rows)), weights_of(batch, run=Run(rows=rows)))
    assert same(weights_of(batch, run=Run(rows=rows)), weights_of(batch.take(rows)))
