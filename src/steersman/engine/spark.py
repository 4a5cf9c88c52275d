"""Spark, for logs that need many machines: the same statements, rendered when they are asked."""

from __future__ import annotations

import functools
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steersman.core.errors import ConfigError, ConflictError, DataError, Error, MissingExtra, NotFoundError
from steersman.engine import CODEC, identifier, shard_paths
from steersman.engine.disk import appearing, make_directory, replacing
from steersman.engine.stream import Columns as Streamed

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from py4j.protocol import Py4JError
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkException
    from pyspark.find_spark_home import _find_spark_home
    from pyspark.java_gateway import launch_gateway
    from pyspark.logger import PySparkLogger
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql import functions as F
    from pyspark.sql import types as T
    from sqlglot import exp

    from steersman.engine import arrow, dialect, java
except ModuleNotFoundError as error:
    raise MissingExtra(error.name or "pyspark", "spark") from None

PySparkLogger.getLogger("SQLQueryContextLogger").disabled = True  # it prints what is raised anyway
_LEAST_MIB = 512
_LOOPBACK = "127.0.0.1"
_LOG = """rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d %p %c: %m%n%ex
"""


class Spark:
    """See `steersman.engine.Engine`.

    A process runs one Spark. Engines that are open at the same time share it, each with its own views; it ends with
    the last of them, and so does its Java process. Rows have no order unless a statement gives them one.
    """

    name = "spark"
    distributed = True

    def __init__(
        self, url: str = "spark", memory_limit: str = "", threads: int = 0, temp_directory: Path | None = None
    ) -> None:
        settings = _settings(url, memory_limit, threads)
        if temp_directory is not None:
            make_directory(temp_directory)
        self._session = _PROCESS.join(settings, temp_directory)
        self._directory = tempfile.TemporaryDirectory(prefix="steersman-kept-", dir=temp_directory)
        self._open = True
        self._kept: dict[str, Path] = {}

    def view(self, name: str, files: Sequence[str], *, row: str = "") -> None:
        """See `Engine.view`."""
        if not files:
            raise DataError(f"view {name}: there are no files", hint="a view takes its columns from its files")
        if row:
            raise _without_rows(name)
        for file in files:
            _check_file(file)
        with _told(f"view {name}"):
            frames = self._read([_escaped(file) for file in files])
            united = functools.reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), frames)
            united.createOrReplaceTempView(_quoted(name))

    def query(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        """See `Engine.query`."""
        statement = dialect.read(sql)
        if len(parameters) != statement.parameters:
            raise DataError(
                f"{statement.parameters} parameters are asked, {len(parameters)} given in {dialect.short(sql)}"
            )
        with _told(dialect.short(sql)):
            frame = self._session.sql(statement.text(), args=_arguments(parameters))
            return _described(frame) if statement.described else _columns(frame)

    def take(self, view: str, columns: Mapping[str, str], rows: np.ndarray | None) -> dict[str, np.ndarray]:
        """See `Engine.take`: refused."""
        raise _without_rows(view)

    def stream(self, sql: str, each: Callable[[Streamed], None]) -> None:
        """See `Engine.stream`: refused."""
        raise _without_rows(dialect.short(sql))

    def keep(self, name: str, sql: str) -> None:
        """See `Engine.keep`. It is Parquet in the directory for temporary files, so nothing is computed twice."""
        directory = Path(tempfile.mkdtemp(prefix="kept-", dir=self._directory.name))
        with _told(dialect.short(sql)):
            frame = self._session.sql(dialect.read(sql).text())
            frame.write.mode("overwrite").parquet(str(directory))
            kept = self._session.read.schema(frame.schema).parquet(str(directory))
            kept.createOrReplaceTempView(_quoted(name))
        if name in self._kept:
            shutil.rmtree(self._kept[name])
        self._kept[name] = directory

    def copy(self, sql: str, path: Path) -> int:
        """See `Engine.copy`."""
        tree = dialect.read(sql).tree
        with replacing(path) as aside:
            written = aside.with_name(f"{aside.name}.d")
            try:
                with _told(dialect.short(sql)):
                    self._session.sql(_sorted_within(tree, "REPARTITION(1)")).write.parquet(str(written))
                parts = sorted(written.glob("part-*"))
                if len(parts) != 1:
                    raise _not_shared(written)
                parts[0].rename(aside)
                rows = int(pq.read_metadata(aside).num_rows)
            finally:
                shutil.rmtree(written, ignore_errors=True)
        return rows

    def shards(self, sql: str, directory: Path, n: int, by: str) -> list[Path]:
        """See `Engine.shards`."""
        paths = shard_paths(directory, n)
        tree = dialect.read(sql).tree
        column = exp.column(by, quoted=True)
        hint = f"REPARTITION({n}, {column.sql('spark')})"
        with appearing(directory) as aside:
            written = aside / "written"
            with _told(dialect.short(sql)):
                frame = self._session.sql(_sorted_within(tree, hint, first=column))
                frame.write.partitionBy(by).parquet(str(written))
            found = {part.name.rpartition("=")[2]: part for part in written.iterdir() if part.is_dir()}
            if wrong := sorted(value for value in found if value not in map(str, range(n))):
                raise DataError(f"{by} is {wrong[0]}, must be a whole number from 0 to {n - 1}", field=by)
            for number, path in enumerate(shard_paths(aside, n)):
                parts = sorted(found[str(number)].glob("part-*")) if str(number) in found else []
                if len(parts) > 1:
                    raise DataError(f"shard {number} has {len(parts)} files", hint="this is a defect")
                if parts:
                    parts[0].rename(path)
                else:
                    pq.write_table(frame.drop(F.col(_quoted(by))).limit(0).toArrow(), path)
            shutil.rmtree(written)
        return paths

    def close(self) -> None:
        """See `Engine.close`."""
        if self._open:
            self._open = False
            self._directory.cleanup()
            _PROCESS.leave()

    def _read(self, paths: Sequence[str]) -> list[DataFrame]:
        """Files whose columns agree in type, in as few frames as that takes; their union finds the common types."""
        reader = self._session.read.option("recursiveFileLookup", True)  # else names of folders become columns
        try:
            return [reader.option("mergeSchema", len(paths) > 1).parquet(*paths)]
        except (Py4JError, PySparkException) as error:
            if "CANNOT_MERGE_SCHEMAS" not in str(error):
                raise
        alike: dict[str, list[str]] = {}
        for path in paths:
            alike.setdefault(reader.parquet(path).schema.simpleString(), []).append(path)
        return [reader.option("mergeSchema", False).parquet(*group) for group in alike.values()]


class _Settings(NamedTuple):
    """What engines of one process must agree on. memory_mib, cores: 0 if they are Spark's to choose."""

    master: str
    memory_mib: int
    cores: int


class _Process:
    """The one Spark of this process, as long as an engine uses it."""

    def __init__(self) -> None:
        self._settings = _Settings("", 0, 0)
        self._session: SparkSession | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._users = 0

    def join(self, settings: _Settings, temp_directory: Path | None) -> SparkSession:
        """A session with its own views, of a Spark that is started if there is none.

        Args:
            temp_directory: of the Spark, if it is started.
        Raises:
            ConflictError: there is one with other settings, or one that is not ours.
            ConfigError: there is no Java.
        """
        if self._session is None:
            if SparkContext._active_spark_context is not None:
                raise ConflictError("this process runs a Spark of its own", hint="stop it first")
            self._directory = tempfile.TemporaryDirectory(prefix="steersman-spark-", dir=temp_directory)
            try:
                self._session, self._settings = _started(settings, Path(self._directory.name)), settings
            except BaseException:
                self._directory.cleanup()
                raise
        elif settings != self._settings:
            raise ConflictError(
                f"this process runs a Spark with {self._settings}, not {settings}", hint="close that engine first"
            )
        self._users += 1
        return self._session.newSession()

    def leave(self) -> None:
        """End Spark and its Java process if nobody uses it any more."""
        self._users -= 1
        if self._users or self._session is None or self._directory is None:
            return
        session, self._session = self._session, None
        session.stop()
        _end_java()
        self._directory.cleanup()


_PROCESS = _Process()


def _started(settings: _Settings, directory: Path) -> SparkSession:
    conf = SparkConf(loadDefaults=False).setAll(list(_configuration(settings, directory).items()))
    variables = {"JAVA_HOME": str(java.java_home(os.environ, directory)), "SPARK_HOME": _find_spark_home()}
    if _on_this_machine(settings.master):
        variables["SPARK_LOCAL_IP"] = _LOOPBACK
    if settings.master.startswith("local-cluster"):
        variables["SPARK_HOME"] = str(_spark_home(directory))
    said = directory / "spark.log"
    (directory / "log4j2.properties").write_text(_LOG)
    try:
        with said.open("wb") as log, java.environment(variables):
            gateway = launch_gateway(conf, {"stdout": log, "stderr": log})
        return SparkSession(SparkContext(conf=conf, gateway=gateway))
    except (PySparkException, Py4JError) as error:
        _end_java()
        last = said.read_text(errors="replace").strip().splitlines()[-3:]
        raise Error(
            f"Spark did not start at {settings.master}: {_first_line(error)} {' | '.join(last)}".strip(),
            hint="is the master's URL right, and the memory enough?",
        ) from None


def _end_java() -> None:
    """The next Spark starts a Java process with settings of its own."""
    gateway = SparkContext._gateway
    SparkContext._gateway = SparkContext._jvm = None
    if gateway is not None:
        java.end(gateway)


def _configuration(settings: _Settings, directory: Path) -> dict[str, str]:
    values = {
        "spark.master": settings.master,
        "spark.app.name": "steersman",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(directory),
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={directory / 'log4j2.properties'}",
        "spark.driver.maxResultSize": "0",  # what is asked for is wanted; the memory is the limit
        "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(directory / "warehouse"),
        "spark.sql.parquet.compression.codec": CODEC,
    }
    if _on_this_machine(settings.master):
        values |= {"spark.driver.bindAddress": _LOOPBACK, "spark.driver.host": _LOOPBACK}
        values["spark.sql.shuffle.partitions"] = str(4 * (os.cpu_count() or 1))
    if settings.memory_mib:
        values["spark.driver.memory"] = f"{settings.memory_mib}m"
        values["spark.executor.memory"] = f"{settings.memory_mib}m"
    if match := _LOCAL_CLUSTER.fullmatch(settings.master):
        values["spark.executor.memory"] = f"{match[1]}m"  # more than a worker has would wait for ever
    if settings.cores:
        values["spark.cores.max"] = str(settings.cores)
    return values


_LOCAL_CLUSTER = re.compile(r"local-cluster\[\s*\d+\s*,\s*\d+\s*,\s*(\d+)\s*\]")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?", re.I)


def _settings(url: str, memory_limit: str, threads: int) -> _Settings:
    memory = _mebibytes(memory_limit) if memory_limit else 0
    if url == "spark":
        return _Settings(f"local[{threads or '*'}]", memory, 0)
    if threads and not url.startswith("spark://"):
        raise ConfigError(
            f"threads is {threads}, but {url} says itself how many", hint="leave one out", field="engine.threads"
        )
    return _Settings(url, memory, threads)


def _mebibytes(memory_limit: str) -> int:
    match = _MEMORY.fullmatch(memory_limit.strip())
    if not match:
        raise ConfigError(f"memory_limit is {memory_limit!r}", hint="write it like 4GB", field="engine.memory_limit")
    kilo = 1024 if match[3] else 1000
    mebibytes = math.floor(float(match[1]) * kilo ** ("KMGT".index(match[2].upper()) + 1) / 2**20)
    if mebibytes < _LEAST_MIB:
        raise ConfigError(
            f"memory_limit is {memory_limit}, Spark needs at least {_LEAST_MIB}MiB", field="engine.memory_limit"
        )
    return mebibytes


def _on_this_machine(master: str) -> bool:
    return master.startswith("local") or re.match(r"spark://(localhost|127\.0\.0\.1):", master) is not None


def _spark_home(directory: Path) -> Path:
    """A home of Spark whose workers may write to it: those of local-cluster write beside its programs."""
    home = directory / "home"
    home.mkdir()
    for part in Path(_find_spark_home()).iterdir():
        (home / part.name).symlink_to(part)
    return home


def _check_file(file: str) -> None:
    if "://" in file:
        return
    if not Path(file).is_file():
        raise NotFoundError(f"{file} is not there", field="files")
    if Path(file).name.startswith(("_", ".")):
        raise DataError(f"{file}: Spark does not see files whose names begin with _ or .", hint="give it another name")


def _escaped(path: str) -> str:
    """A path in which the letters of patterns mean themselves."""
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", path)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _sorted_within(tree: exp.Query, hint: str, first: exp.Expr | None = None) -> str:
    """SQL of the rows spread as the hint says, each part in the order of the statement."""
    order, cut = tree.args.get("order"), tree.args.get("limit") or tree.args.get("offset")
    if first is not None and order and cut:
        raise DataError("ORDER BY beside LIMIT does not say how a shard is sorted", hint="put the LIMIT in a subquery")
    if cut and first is None:
        return dialect.spark_text(tree)  # it is in one part already
    if order:
        tree.set("order", None)
    if not isinstance(tree, exp.Select) or cut:
        tree = exp.select("*").from_(exp.Subquery(this=tree, alias=exp.TableAlias(this=exp.to_identifier("rows"))))
    keys = [exp.Ordered(this=first, nulls_first=True)] if first is not None else []
    keys += order.expressions if order else []
    tree.set("hint", exp.Hint(expressions=[exp.Var(this=hint)]))
    if keys:
        tree.set("sort", exp.Sort(expressions=keys))
    return dialect.spark_text(tree)


def _arguments(parameters: Sequence[object]) -> dict[str, Any]:
    return {f"p{number}": _argument(value) for number, value in enumerate(parameters)}


def _argument(value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return Decimal(value)
    return value


def _columns(frame: DataFrame) -> dict[str, np.ndarray]:
    names = frame.columns
    if len(set(names)) < len(names):
        raise DataError(f"columns {names} do not differ in name", hint="name them apart with AS")
    kinds = [_collected(field.dataType) for field in frame.schema.fields]
    if any(kind != field.dataType for kind, field in zip(kinds, frame.schema.fields, strict=True)):
        numbered = frame.toDF(*(f"c{i}" for i in range(len(names))))
        frame = numbered.select(*(F.col(f"c{i}").cast(kind) for i, kind in enumerate(kinds)))
    table = frame.toArrow()
    return {name: arrow.column(name, table.column(i)) for i, name in enumerate(names)}


def _collected(kind: T.DataType) -> T.DataType:
    """A decimal is a double, but for the one that is an unsigned number."""
    if isinstance(kind, T.ArrayType):
        return T.ArrayType(_collected(kind.elementType), kind.containsNull)
    return T.DoubleType() if isinstance(kind, T.DecimalType) and kind != T.DecimalType(*dialect.UNSIGNED) else kind


def _described(frame: DataFrame) -> dict[str, np.ndarray]:
    types = [_type_name(field.dataType) for field in frame.schema.fields]
    return {"column_name": np.array(frame.columns, dtype=object), "column_type": np.array(types, dtype=object)}


_TYPE_NAMES: dict[type[T.DataType], str] = {
    T.ByteType: "TINYINT",
    T.ShortType: "SMALLINT",
    T.IntegerType: "INTEGER",
    T.LongType: "BIGINT",
    T.FloatType: "FLOAT",
    T.DoubleType: "DOUBLE",
    T.StringType: "VARCHAR",
    T.BooleanType: "BOOLEAN",
    T.BinaryType: "BLOB",
    T.DateType: "DATE",
    T.TimestampNTZType: "TIMESTAMP",
    T.TimestampType: "TIMESTAMP WITH TIME ZONE",
    T.NullType: '"NULL"',
}


def _type_name(kind: T.DataType) -> str:
    """As DuckDB names a type."""
    if isinstance(kind, T.ArrayType):
        return f"{_type_name(kind.elementType)}[]"
    if isinstance(kind, T.MapType):
        return f"MAP({_type_name(kind.keyType)}, {_type_name(kind.valueType)})"
    if isinstance(kind, T.StructType):
        return f"STRUCT({', '.join(f'{identifier(f.name)} {_type_name(f.dataType)}' for f in kind.fields)})"
    if isinstance(kind, T.DecimalType):
        whole = {dialect.UNSIGNED: "UBIGINT", (38, 0): "HUGEINT"}
        return whole.get((kind.precision, kind.scale), f"DECIMAL({kind.precision},{kind.scale})")
    return _TYPE_NAMES.get(type(kind), kind.simpleString().upper())


@contextmanager
def _told(about: str) -> Iterator[None]:
    """What Spark says is wrong, in one line."""
    try:
        yield
    except (PySparkException, Py4JError, pa.ArrowException) as error:
        message = _first_line(error)
        if "OutOfMemoryError" in str(error):
            raise Error(
                f"the engine is out of memory: {message}", hint="raise engine.memory_limit, or use more machines"
            ) from None
        raise DataError(f"{message} in {about}", hint="is the SQL right?") from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if not line.startswith("An error occurred while calling")]
    return lines[0].removeprefix(": ") if lines else type(error).__name__


def _without_rows(view: str) -> DataError:
    return DataError(f"{view}: rows have no numbers in many files on many machines", hint="Engine.distributed says so")


def _not_shared(directory: Path) -> Error:
    return Error(f"what Spark wrote to {directory} is not seen here", hint="all workers must share that directory")
