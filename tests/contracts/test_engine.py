"""What every engine does, whichever it is. A new engine gets these by its row in ENGINES."""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import spark_here
from steersman import engine as engines
from steersman.core.errors import ConflictError, DataError, NotFoundError
from steersman.engine import ENGINES, Engine, identifier, literal


@pytest.fixture(params=[pytest.param(name, marks=[spark_here.needed] if name == "spark" else []) for name in ENGINES])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    spill = tmp_path / "spill"
    opened = spark_here.opened(spill) if request.param == "spark" else engines.open(request.param, temp_directory=spill)
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


def test_rows_are_numbered_through_the_files_and_taken_by_their_numbers(engine: Engine, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{i}.parquet") for i in range(2)]
    for i, file in enumerate(files):
        engine.copy(f"SELECT x + {5 * i} AS x FROM range(5) AS t(x) ORDER BY x", Path(file))
    if engine.distributed:
        with pytest.raises(DataError, match="distributed"):
            engine.view("numbered", files, row="row")
        with pytest.raises(DataError, match="distributed"):
            engine.take("numbered", {"x": "x"}, np.array([0]))
        return
    engine.view("numbered", files, row="row")
    rows = engine.query("SELECT x, row FROM numbered")
    assert np.array_equal(rows["x"], rows["row"])
    assert engine.take("numbered", {"y": "x * 10"}, np.array([7, 0, 7]))["y"].tolist() == [70, 0, 70]


def test_a_stream_has_all_rows_in_their_order_and_says_what_it_can_not_give(engine: Engine, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{i}.parquet") for i in range(2)]
    for i, file in enumerate(files):
        engine.copy(f"SELECT x + {200_000 * i} AS x FROM range(200000) AS t(x) ORDER BY x", Path(file))
    engine.view("streamed", files)
    found: dict[str, list[object]] = {"x": [], "half": [], "name": []}

    def take(some: dict) -> None:
        found["x"] += some["x"].tolist()
        found["half"] += some["half"].tolist()
        names = some["name"]
        body, bounds = names.utf8.tobytes(), names.bounds.tolist()
        found["name"] += [body[a:b].decode() for a, b in itertools.pairwise(bounds)]

    sql = (
        "SELECT x, x / 2 AS half, CASE WHEN x % 7 = 0 THEN '' ELSE 'é' || CAST(x AS VARCHAR) END AS name FROM streamed"
    )
    if engine.distributed:
        with pytest.raises(DataError, match="many machines"):
            engine.stream(sql, take)
        return
    engine.stream(sql, take)
    assert found["x"] == list(range(400_000))
    assert found["half"] == [x / 2 for x in range(400_000)]
    assert found["name"] == ["" if x % 7 == 0 else f"é{x}" for x in range(400_000)]
    engine.stream("SELECT x FROM streamed WHERE x < 0", take)
    assert len(found["x"]) == 400_000
    with pytest.raises(DataError, match="2 of 3 rows have no y"):
        engine.stream("SELECT CASE WHEN x = 1 THEN x END AS y FROM streamed WHERE x < 3", take)
    with pytest.raises(DataError, match="y has the Arrow format"):
        engine.stream("SELECT [x] AS y FROM streamed", take)
    with pytest.raises(DataError):
        engine.stream("SELECT nothing FROM streamed", take)
    with pytest.raises(DataError):
        engine.stream("SELECT CAST('x' || CAST(x AS VARCHAR) AS BIGINT) AS y FROM streamed", take)
    assert engine.query("SELECT COUNT(*) AS n FROM streamed")["n"].tolist() == [400_000]


def test_a_copy_has_the_order_of_its_statement(engine: Engine, tmp_path: Path) -> None:
    engine.copy("SELECT (x * 7919) % 100003 AS x FROM range(30000) AS t(x)", tmp_path / "mixed.parquet")
    engine.view("mixed", [str(tmp_path / "mixed.parquet")])
    engine.copy("SELECT x AS y FROM mixed ORDER BY mixed.x DESC", tmp_path / "sorted.parquet")
    reader = engines.open("duckdb", threads=1)
    reader.view("sorted", [str(tmp_path / "sorted.parquet")], row="row")
    rows = reader.query("SELECT y FROM sorted ORDER BY row")["y"]
    reader.close()
    assert len(rows) == 30_000
    assert (np.diff(rows) < 0).all()


def test_what_is_kept_stays_what_it_was_and_may_read_what_it_replaces(engine: Engine, tmp_path: Path) -> None:
    engine.copy("SELECT 1 AS x", tmp_path / "1.parquet")
    engine.view("v", [str(tmp_path / "1.parquet")])
    engine.keep("k", "SELECT x + 1 AS x FROM v")
    engine.copy("SELECT 10 AS x", tmp_path / "1.parquet")
    assert engine.query("SELECT x FROM k")["x"].tolist() == [2]
    engine.keep("k", "SELECT x + 1 AS x FROM k UNION ALL SELECT NULL")
    assert engine.query("SELECT x FROM k ORDER BY x")["x"].tolist() == [3, None]
    engine.keep("none", "SELECT x FROM k WHERE x > 100")
    assert engine.query("SELECT x FROM none")["x"].tolist() == []


def test_a_name_is_one_thing_a_view_or_what_was_kept(engine: Engine, tmp_path: Path) -> None:
    engine.copy("SELECT 1 AS x", tmp_path / "1.parquet")
    engine.view("v", [str(tmp_path / "1.parquet")])
    engine.keep("v", "SELECT 2 AS x")
    assert engine.query("SELECT x FROM v")["x"].tolist() == [2]
    engine.view("v", [str(tmp_path / "1.parquet")])
    assert engine.query("SELECT x FROM v")["x"].tolist() == [1]


def test_shards_are_all_rows_each_once_in_the_order_of_the_statement(engine: Engine, tmp_path: Path) -> None:
    engine.copy("SELECT x, x % 4 AS part, (x * 31) % 997 AS k FROM range(997) AS t(x)", tmp_path / "n.parquet")
    engine.view("n", [str(tmp_path / "n.parquet")])
    shards = engine.shards(
        "SELECT x, CASE WHEN part = 3 THEN 1 ELSE part END AS part FROM n ORDER BY n.k", tmp_path / "s", 4, "part"
    )
    assert sorted(tmp_path.joinpath("s").iterdir()) == shards
    reader = engines.open("duckdb", threads=1)
    found = []
    for path in shards:
        reader.view("shard", [str(path)], row="row")
        assert list(reader.query("DESCRIBE shard")["column_name"]) == ["x", "row"]
        found.append(reader.query("SELECT x FROM shard ORDER BY row")["x"].tolist())
    reader.close()
    order = sorted(range(997), key=lambda x: (x * 31) % 997)
    assert found == [[x for x in order if x % 4 == 0], [x for x in order if x % 4 in (1, 3)],
                     [x for x in order if x % 4 == 2], []]  # fmt: skip


@pytest.mark.parametrize("by", ["3", "-1", "CAST(NULL AS INTEGER)", "0.5E0"])
def test_a_row_without_a_shard_is_refused_and_nothing_is_written(engine: Engine, tmp_path: Path, by: str) -> None:
    with pytest.raises(DataError, match="from 0 to 2"):
        engine.shards(f"SELECT 1 AS x, {by} AS by UNION ALL SELECT 2, 0", tmp_path / "s", 3, "by")
    assert not [path for path in tmp_path.iterdir() if path.name != "spill"]


def test_shards_are_written_once_and_there_is_at_least_one(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1"):
        engine.shards("SELECT 0 AS by, 1 AS x", tmp_path / "s", 0, "by")
    engine.shards("SELECT 0 AS by, 1 AS x", tmp_path / "s", 1, "by")
    with pytest.raises(ConflictError):
        engine.shards("SELECT 0 AS by, 1 AS x", tmp_path / "s", 1, "by")


def test_types_are_described_in_one_set_of_names(engine: Engine, tmp_path: Path) -> None:
    types = {
        "a": "BIGINT",
        "b.c": "DOUBLE",
        "d": "VARCHAR",
        "e": "BOOLEAN",
        "f": "VARCHAR[]",
        "g": "UBIGINT",
        "h": "INTEGER",
    }
    columns = ", ".join(f"CAST(NULL AS {kind}) AS {identifier(name)}" for name, kind in types.items())
    described = engine.query(f"DESCRIBE SELECT {columns}")
    assert dict(zip(described["column_name"], described["column_type"], strict=True)) == types
    engine.copy(f"SELECT {columns.replace('NULL AS UBIGINT', '7 AS BIGINT')}", tmp_path / "t.parquet")
    engine.view("t", [str(tmp_path / "t.parquet")])
    described = engine.query("DESCRIBE t")
    assert dict(zip(described["column_name"], described["column_type"], strict=True)) == types | {"g": "BIGINT"}


def test_unsigned_64_bits_keep_all_of_them(engine: Engine) -> None:
    row = engine.query("SELECT CAST(18446744073709551615 AS UBIGINT) AS a, CAST(NULL AS UBIGINT) AS b")
    assert row["a"].tolist() == [2**64 - 1]
    assert row["a"].dtype == np.uint64
    assert row["b"].tolist() == [None]


def test_lists_are_arrays_of_the_same_kinds_as_columns(engine: Engine) -> None:
    row = engine.query(
        "SELECT [CAST(1.0 AS DOUBLE), NULL] AS numbers, ['a', NULL] AS texts, [[1.5E0], NULL] AS nested, "
        "CAST(NULL AS VARCHAR[]) AS none, CAST([] AS DOUBLE[]) AS empty, [1, NULL] AS some, [1, 2] AS all"
    )
    assert row["numbers"][0].dtype == row["empty"][0].dtype == np.float64
    assert np.isnan(row["numbers"][0][1])
    assert row["texts"][0].tolist() == ["a", None]
    assert row["nested"][0][0].tolist() == [1.5]
    assert row["nested"][0][1] is None
    assert row["none"][0] is None
    assert row["empty"][0].tolist() == []
    assert row["some"][0].tolist() == [1, None]
    assert row["all"][0].dtype == np.int64


def test_sums_of_whole_numbers_are_exact_in_128_bits(engine: Engine, tmp_path: Path) -> None:
    values = [(-1) ** i * (2**62 - i * 12345678901) for i in range(40)] + [2**62] * 20
    engine.copy(" UNION ALL ".join(f"SELECT {value} AS x" for value in values), tmp_path / "n.parquet")
    engine.view("n", [str(tmp_path / "n.parquet")])
    found = engine.query("SELECT CAST(SUM(CAST(x AS HUGEINT)) AS DOUBLE) AS total FROM n")["total"]
    assert found.tolist() == [float(sum(values))]


def test_quantiles_are_values_of_nearest_rank(engine: Engine, tmp_path: Path) -> None:
    n, levels = 300, [Decimal(k) / 100 for k in range(101)]
    engine.copy(f"SELECT CAST((x * 37) % {n} AS DOUBLE) AS x FROM range({n}) AS t(x)", tmp_path / "n.parquet")
    engine.view("n", [str(tmp_path / "n.parquet")])
    found = engine.query(f"SELECT quantile_disc(x, [{', '.join(map(str, levels))}]) AS q FROM n")["q"][0]
    assert found.tolist() == [max(math.ceil(level * n), 1) - 1.0 for level in levels]


def test_the_hash_of_a_text_is_a_number_that_python_finds_too(engine: Engine) -> None:
    found = engine.query("SELECT CAST('0x' || substr(md5(u), 1, 15) AS BIGINT) AS h FROM (SELECT 'größe' AS u) AS t")
    assert found["h"].tolist() == [int(hashlib.md5("größe".encode()).hexdigest()[:15], 16)]


def test_the_engine_never_reads_the_variables_of_the_process(engine: Engine) -> None:
    secret = {"a": np.array([1.0])}
    assert sys.getsizeof(secret)
    with pytest.raises(DataError):
        engine.query("SELECT * FROM secret")
