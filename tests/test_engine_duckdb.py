"""Opening engines, DuckDB's own settings, and what makes a file last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from steersman import engine as engines
from steersman.core.errors import ConfigError, DataError, Error
from steersman.engine import disk, identifier, literal


def test_an_unknown_engine_is_a_config_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean duckdb"):
        engines.open("duckbd")


def test_a_setting_that_the_engine_does_not_understand_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        engines.open("duckdb", memory_limit="lots")


def test_settings_reach_the_engine(tmp_path: Path) -> None:
    engine = engines.open("duckdb", memory_limit="300MB", threads=1, temp_directory=tmp_path)
    settings = engine.query(
        "SELECT current_setting('threads') AS threads, current_setting('temp_directory') AS temp, "
        "current_setting('TimeZone') AS zone, current_setting('autoinstall_known_extensions') AS installs"
    )
    assert settings["threads"][0] == 1
    assert settings["temp"][0] == str(tmp_path)
    assert settings["zone"][0] == "UTC"
    assert not settings["installs"][0]


def test_more_than_the_memory_limit_spills_to_the_temp_directory(tmp_path: Path) -> None:
    engine = engines.open("duckdb", memory_limit="40MB", threads=1, temp_directory=tmp_path / "spill")
    rows = engine.copy(
        "SELECT x, hash(x) AS h, x::VARCHAR AS t FROM range(800000) r(x) ORDER BY h", tmp_path / "o.parquet"
    )
    assert rows == 800_000


def test_out_of_memory_is_an_error_with_the_setting_to_raise() -> None:
    engine = engines.open("duckdb", memory_limit="20MB", threads=1)
    engine.query("SET max_temp_directory_size = '0MB'")
    with pytest.raises(Error, match="memory_limit"):
        engine.query("SELECT list(x::VARCHAR) AS l FROM range(5000000) r(x)")


def test_lists_are_arrays_of_the_same_kinds_as_columns() -> None:
    row = engines.open().query(
        "SELECT [1.0::DOUBLE, NULL] AS numbers, ['a', NULL] AS texts, [[1.0::DOUBLE], NULL] AS nested, "
        "NULL::VARCHAR[] AS none, []::DOUBLE[] AS empty"
    )
    assert row["numbers"][0].dtype == np.float64
    assert np.isnan(row["numbers"][0][1])
    assert row["texts"][0].tolist() == ["a", None]
    assert row["nested"][0][0].tolist() == [1.0]
    assert row["nested"][0][1] is None
    assert row["none"][0] is None
    assert row["empty"][0].tolist() == []


def test_unsigned_64_bits_and_sums_keep_their_values() -> None:
    row = engines.open().query("SELECT 18446744073709551615::UBIGINT AS key, sum(x) AS total FROM range(5) r(x)")
    assert row["key"][0] == 2**64 - 1
    assert row["total"].tolist() == [10.0]
    assert row["total"].dtype == np.float64


def test_an_error_names_the_statement_in_one_line() -> None:
    with pytest.raises(DataError) as caught:
        engines.open().query("SELECT nothing\nFROM nowhere")
    assert "SELECT nothing FROM nowhere" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_quoting() -> None:
    assert identifier('a"b') == '"a""b"'
    assert literal("a'b") == "'a''b'"


def test_replacing_shows_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with disk.replacing(path) as aside:
        aside.write_text("first")
        assert not path.exists()
    with disk.replacing(path) as aside:
        aside.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"


def test_replacing_keeps_the_old_file_if_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), disk.replacing(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_making_a_directory_twice_is_making_it_once(tmp_path: Path) -> None:
    disk.make_directory(tmp_path / "a" / "b" / "c")
    disk.make_directory(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_threads_that_share_an_engine_take_turns() -> None:
    engine = engines.open("duckdb", threads=1)
    sql = "SELECT SUM(i) AS s FROM range(?) AS t(i)"
    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(lambda n: int(engine.query(sql, [n])["s"][0]), range(1, 200)))
    assert sums == [n * (n - 1) // 2 for n in range(1, 200)]
    engine.close()
