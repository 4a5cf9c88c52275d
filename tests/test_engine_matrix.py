"""Parquet files as one matrix of numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steersman import engine
from steersman.core.errors import DataError, NotFoundError
from steersman.engine.matrix import matrix, streamed


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of 150,000 rows, more than one row group each."""
    place = tmp_path_factory.mktemp("matrix")
    tables = engine.open("duckdb", threads=2)
    for i in range(3):
        first = i * 150_000
        numbers = "CASE WHEN x % 7 <> 0 THEN x / 3 END AS third, CAST(x AS INTEGER) AS whole, x % 2 = 0 AS even"
        more = "CASE WHEN x % 5 <> 0 THEN x END AS some, 1e300 AS huge, 'text' AS name"
        tables.copy(f"SELECT {numbers}, {more} FROM range({first}, {first + 150_000}) AS t(x)", place / f"{i}.parquet")
    tables.close()
    return [place / f"{i}.parquet" for i in range(3)]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_matrix_has_the_columns_of_all_files_in_their_order(files, threads):
    x = np.arange(450_000)
    columns = {
        "whole": x,
        "third": np.where(x % 7 == 0, np.nan, x / 3),
        "even": x % 2 == 0,
        "some": np.where(x % 5 == 0, np.nan, x),
        "huge": np.full(len(x), np.inf),
    }
    found = matrix(files, list(columns), threads=threads)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack(list(columns.values()), axis=1).astype(np.float32))
    assert matrix(files[1:], ["whole"])[:, 0].tolist() == list(range(150_000, 450_000))


def test_what_is_no_matrix_is_refused_by_name(files, tmp_path):
    for columns, what in ([], "no columns"), (["whole", "nothing"], "no column nothing"), (["name"], "name is string"):
        with pytest.raises(DataError, match=what):
            matrix(files, columns)
    with pytest.raises(DataError, match="no files"):
        matrix([], ["whole"])
    with pytest.raises(NotFoundError, match=r"none\.parquet"):
        matrix([*files, tmp_path / "none.parquet"], ["whole"])
    (tmp_path / "text.parquet").write_text("not Parquet")
    with pytest.raises(DataError, match=r"text\.parquet is not Parquet"):
        matrix([tmp_path / "text.parquet"], ["whole"])


@pytest.mark.parametrize("window", [1, 200_000, 10_000_000])
def test_an_epoch_has_every_row_once_whole_and_in_an_order_of_its_seed(files, window):
    columns = ["whole", "third"]
    first, again, other = (list(streamed(files, columns, 1000, seed=seed, window=window)) for seed in (0, 0, 1))
    assert [len(some) for some in first] == [1000] * 450
    rows = np.concatenate(first)
    assert sorted(rows[:, 0].tolist()) == list(range(450_000))
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], matrix(files, columns))
    np.testing.assert_array_equal(rows, np.concatenate(again))  # NaN is NaN here
    assert not np.array_equal(first[0], other[0])


def test_what_is_shuffled_together_is_a_window_and_all_places_in_it_are_as_likely(files):
    rows = np.concatenate(list(streamed(files, ["whole"], 1000, seed=3, window=10_000_000)))[:, 0]
    place = np.arange(len(rows))
    assert abs(np.corrcoef(rows, place)[0, 1]) < 0.01
    assert abs(np.corrcoef(rows[1:], rows[:-1])[0, 1]) < 0.01


def test_the_last_minibatch_has_what_is_left(files):
    assert [len(some) for some in streamed(files, ["whole"], 400_000, seed=0, window=1)] == [400_000, 50_000]
    for wrong, least in (({"size": 0}, 1), ({"window": 0}, 1), ({"seed": -1}, 0)):
        with pytest.raises(DataError, match=f"must be at least {least}"):
            streamed(files, ["whole"], **{"size": 10, "seed": 0, **wrong})
