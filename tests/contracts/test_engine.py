"""What every engine does, whichever it is. A new engine gets these by its row in ENGINES."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from steersman import engine as engines
from steersman.core.errors import DataError, NotFoundError
from steersman.engine import ENGINES, Engine, identifier, literal

# Spark needs a Java machine of its own; it joins when its row does.


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    opened = engines.open(request.param, threads=1, temp_directory=tmp_path / "spill")
    yield opened
    opened.close()


def test_it_is_named_as_in_the_table(engine: Engine) -> None:
    assert engine.name in ENGINES


def test_columns_have_the_promised_types(engine: Engine) -> None:
    row = engine.query(
        "SELECT CAST(1 AS INTEGER) AS small, CAST(9007199254740993 AS BIGINT) AS big, CAST(1.5 AS DOUBLE) AS number, "
        "'a' AS text, 1 = 1 AS truth"
    )
    assert [row[name].dtype for name in ("small", "big", "number", "text", "truth")] == [
        np.int64, np.int64, np.float64, object, np.bool_,
    ]  # fmt: skip
    assert row["big"][0] == 2**53 + 1
    assert row["text"][0] == "a"


def test_null_is_nan_for_numbers_and_none_for_all_that_has_no_nan(engine: Engine) -> None:
    row = engine.query(
        "SELECT CAST(NULL AS DOUBLE) AS number, CAST(NULL AS BIGINT) AS integer, CAST(NULL AS VARCHAR) AS text, "
        "CAST(NULL AS BOOLEAN) AS truth"
    )
    assert row["number"].dtype == np.float64
    assert np.isnan(row["number"][0])
    assert [row[name][0] for name in ("integer", "text", "truth")] == [None, None, None]


def test_an_integer_beside_a_null_keeps_all_its_digits(engine: Engine) -> None:
    rows = engine.query("SELECT CAST(9007199254740993 AS BIGINT) AS a UNION ALL SELECT NULL ORDER BY a")
    assert rows["a"].tolist() == [2**53 + 1, None]


def test_parameters_are_values_never_sql(engine: Engine) -> None:
    rows = engine.query("SELECT ? AS a, ? AS b", ["'; DROP TABLE x; --", 7])
    assert rows["a"][0] == "'; DROP TABLE x; --"
    assert rows["b"].tolist() == [7]


def test_what_was_copied_is_read_back(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a" / "rows.parquet"
    assert engine.copy("SELECT 1 AS x, 'one' AS y UNION ALL SELECT 2, NULL", path) == 2
    engine.view("rows", [str(path)])
    rows = engine.query("SELECT * FROM rows ORDER BY x")
    assert rows["x"].tolist() == [1, 2]
    assert rows["y"].tolist() == ["one", None]


def test_a_view_unites_files_by_the_names_of_their_columns(engine: Engine, tmp_path: Path) -> None:
    engine.copy("SELECT 1 AS x, CAST(1.5 AS DOUBLE) AS a", tmp_path / "1.parquet")
    engine.copy("SELECT 'b' AS b, 2 AS x", tmp_path / "2.parquet")
    engine.view("united", [str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")])
    rows = engine.query("SELECT x, a, b FROM united ORDER BY x")
    assert rows["x"].tolist() == [1, 2]
    assert rows["a"][0] == 1.5
    assert np.isnan(rows["a"][1])
    assert rows["b"].tolist() == [None, "b"]


def test_a_view_has_the_columns_of_its_files_and_no_others(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "problem=ctr" / "date=2026-01-01" / "1.parquet"
    engine.copy("SELECT 1 AS x", path)
    engine.view("partitioned", [str(path)])
    assert list(engine.query("SELECT * FROM partitioned")) == ["x"]


def test_a_view_of_the_same_name_is_replaced(engine: Engine, tmp_path: Path) -> None:
    for number in (1, 2):
        engine.copy(f"SELECT {number} AS x", tmp_path / f"{number}.parquet")
        engine.view("v", [str(tmp_path / f"{number}.parquet")])
    assert engine.query("SELECT x FROM v")["x"].tolist() == [2]


def test_no_name_is_too_odd_for_a_column_a_view_or_a_path(engine: Engine, tmp_path: Path) -> None:
    odd = "we\"ird; DROP TABLE x; -- ' [*] ? größe"
    path = tmp_path / "it's [odd]*?" / 'q"uote.parquet'
    engine.copy(f"SELECT 1 AS {identifier(odd)}, {literal(odd)} AS text", path)
    engine.view(odd, [str(path)])
    rows = engine.query(f"SELECT * FROM {identifier(odd)}")
    assert rows[odd].tolist() == [1]
    assert rows["text"].tolist() == [odd]


def test_a_copy_that_fails_leaves_the_old_file_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    engine.copy("SELECT 1 AS x", path)
    with pytest.raises(DataError):
        engine.copy("SELECT CAST(x AS INTEGER) AS x FROM (SELECT 'no number' AS x)", path)
    engine.view("v", [str(path)])
    assert engine.query("SELECT x FROM v")["x"].tolist() == [1]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["rows.parquet"]


def test_one_statement_at_a_time(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        engine.query("SELECT 1; SELECT 2")
    with pytest.raises(DataError):
        engine.copy("SELECT 1) TO 'elsewhere'; SELECT (2", tmp_path / "x.parquet")


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nothing FROM nowhere", "SELECT CAST('a' AS INTEGER)", ""])
def test_wrong_sql_is_a_data_error(engine: Engine, sql: str) -> None:
    with pytest.raises(DataError):
        engine.query(sql)


def test_a_time_is_refused_with_a_hint_rather_than_given_in_a_unit_nobody_named(engine: Engine) -> None:
    with pytest.raises(DataError, match="epoch_us"):
        engine.query("SELECT TIMESTAMP '2026-01-01 00:00:00' AS t")


def test_a_file_that_is_not_there_and_a_file_that_is_not_parquet(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        engine.view("v", [str(tmp_path / "nothing.parquet")])
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError):
        engine.view("v", [str(tmp_path / "text.parquet")])
    with pytest.raises(DataError, match="no files"):
        engine.view("v", [])


def test_the_order_of_a_file_is_the_order_of_its_rows(engine: Engine, tmp_path: Path) -> None:
    engine.copy("SELECT CAST(x AS BIGINT) AS x FROM unnest(range(200000)) AS t(x)", tmp_path / "n.parquet")
    engine.view("n", [str(tmp_path / "n.parquet")])
    rows = engine.query("SELECT x, row_number() OVER () - 1 AS i FROM n")
    assert np.array_equal(rows["x"], rows["i"])


def test_the_engine_never_reads_the_variables_of_the_process(engine: Engine) -> None:
    secret = {"a": np.array([1.0])}
    assert sys.getsizeof(secret)
    with pytest.raises(DataError):
        engine.query("SELECT * FROM secret")
