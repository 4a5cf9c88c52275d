from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.errors import DataError
from steersman.learn.minibatches import BLOCK, minibatches


def epoch_of(rows: int, size: int, **more: int | None) -> list[np.ndarray]:
    """The minibatches of the numbers 0, 1, ..., rows - 1."""
    return [places for (places,) in minibatches([np.arange(rows)], size, **{"seed": 0, **more})]


@given(
    rows=st.integers(0, 3 * BLOCK + 5),
    size=st.integers(50, 6000),
    beyond=st.none() | st.integers(0, 4 * BLOCK),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_an_epoch_in_full_minibatches(rows, size, beyond, seed):
    parts = epoch_of(rows, size, window=None if beyond is None else size + beyond, seed=seed)
    assert np.sort(np.concatenate([[], *parts])).tolist() == list(range(rows))
    assert [len(part) for part in parts] == [min(size, rows - start) for start in range(0, rows, size)]


@pytest.mark.parametrize("window", [None, 2 * BLOCK])
def test_the_seed_and_the_epoch_decide_the_order(window):
    def order(**more: int) -> list[int]:
        return np.concatenate(epoch_of(5 * BLOCK + 7, 256, window=window, **more)).tolist()

    assert order(seed=3) == order(seed=3)
    orders = [order(seed=3), order(seed=4), order(seed=3, epoch=1), order(seed=4, epoch=1)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_arrays_on_disk_give_the_minibatches_of_arrays_in_memory(tmp_path: Path):
    random = np.random.default_rng(0)
    memory = [random.normal(size=(20_001, 5)).astype(np.float32), random.integers(9, size=20_001)]
    for place, array in enumerate(memory):
        np.save(tmp_path / f"{place}.npy", array)
    mapped = [np.load(tmp_path / f"{place}.npy", mmap_mode="r") for place in range(2)]
    for window in (None, 5000):
        ours = list(minibatches(memory, 512, seed=1, window=window))
        theirs = list(minibatches(mapped, 512, seed=1, window=window))
        assert len(ours) == len(theirs) == 40
        for one, other in zip(ours, theirs, strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("window", [None, 700])
def test_rows_of_several_arrays_stay_together(window):
    n = 3000
    shared = np.broadcast_to(np.array([[7.0, 8.0]]), (n, 2))
    every_other = np.arange(2 * n).reshape(n, 2)[:, 0]  # not contiguous
    for row, double, same in minibatches([np.arange(n), every_other, shared], 64, seed=0, window=window):
        assert (double == 2 * row).all()
        assert same.shape == (len(row), 2)
        assert (same == [7.0, 8.0]).all()
        assert same.strides[0] == 0


@pytest.mark.parametrize("window", [None, 3 * BLOCK])
def test_a_minibatch_is_a_copy(window):
    rows = np.arange(10_000)
    for (some,) in minibatches([rows], 1000, seed=0, window=window):
        some[:] = -1
    assert (rows == np.arange(10_000)).all()


def test_without_a_window_every_place_of_the_epoch_is_as_likely():
    first = [int(epoch_of(4, 1, seed=seed)[0][0]) for seed in range(2000)]
    counts = np.bincount(first, minlength=4)
    assert (np.abs(counts - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_of_many_rows_too_every_place_of_the_epoch_is_as_likely():
    n, epochs = 3 * BLOCK, 400
    orders = np.array([np.concatenate(epoch_of(n, n, seed=1, epoch=epoch)) for epoch in range(epochs)])
    # Uniform and independent: correlations over the places of an epoch, and of a row's places over epochs.
    spread = (n * n - 1) / 12
    centred = orders - (n - 1) / 2
    assert np.abs((centred * (np.arange(n) - (n - 1) / 2)).mean(axis=1) / spread).max() < 5 / np.sqrt(n)
    assert np.abs((centred[:, 1:] * centred[:, :-1]).mean(axis=1) / spread).max() < 5 / np.sqrt(n)
    assert np.abs(centred.mean(axis=0)).max() < 5.5 * np.sqrt(spread / epochs)
    # An eighth of the rows comes in an eighth of the epoch as often as chance has it: hypergeometric.
    early = (orders[:, : n // 8] < n // 8).sum(axis=1)
    assert abs(early.mean() - n / 64) < 5 * np.sqrt(n / 8 * (1 / 8) * (7 / 8) * (7 / 8) / epochs)
    assert 0.8 < early.var() / (n / 8 * (1 / 8) * (7 / 8) * (7 / 8)) < 1.25


def test_rows_that_are_dealt_into_heaps_come_in_every_order_as_often(monkeypatch):
    monkeypatch.setattr("steersman.learn.minibatches.BLOCK", 1)
    monkeypatch.setattr("steersman.learn.minibatches._HEAPS", 2)
    orders = Counter(tuple(np.concatenate(epoch_of(4, 4, seed=seed)).tolist()) for seed in range(12_000))
    assert len(orders) == 24
    assert sum((count - 500) ** 2 / 500 for count in orders.values()) < 49.7  # chi2 of 23, one in a thousand


def test_a_window_mixes_blocks_from_everywhere():
    n, window = 64 * BLOCK, 16 * BLOCK
    means = np.array([part.mean() for part in epoch_of(n, 1024, window=window)])
    # The mean of 16 blocks of 64, drawn without replacement, then of 1,024 of their rows.
    spread = n / np.sqrt(12) * np.sqrt((1 - 16 / 64) / 16 + 1 / 1024)
    assert (np.abs(means - n / 2) < 5 * spread).all()


def test_a_window_bounds_the_memory(tmp_path: Path):
    array = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(400_000, 20))
    array.flush()
    mapped, window = np.load(tmp_path / "x.npy", mmap_mode="r"), 40_000
    tracemalloc.start()
    try:
        count = sum(len(some) for (some,) in minibatches([mapped], 1024, seed=0, window=window))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 400_000
    assert peak < 2 * window * 20 * 4 < mapped.nbytes / 4


@pytest.mark.parametrize(
    ("change", "field"),
    [({"size": 0}, "size"), ({"seed": -1}, "seed"), ({"epoch": -1}, "epoch"), ({"window": 9}, "window")],
)
def test_an_argument_out_of_range_is_refused_at_once(change, field):
    asked = {"size": 10, "seed": 0, **change}
    with pytest.raises(DataError) as error:
        minibatches([np.arange(100)], **asked)
    assert error.value.field == field


@pytest.mark.parametrize("arrays", [[], [np.arange(3), np.arange(4)]])
def test_arrays_of_different_lengths_are_refused(arrays):
    with pytest.raises(DataError, match="one number of rows"):
        minibatches(arrays, 2, seed=0)
