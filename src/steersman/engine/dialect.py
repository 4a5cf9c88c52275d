"""DuckDB's SQL rendered as Spark's by SQLGlot, and the few things that it leaves to the reader."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

import sqlglot
from sqlglot import ErrorLevel, TokenType, exp
from sqlglot.errors import SqlglotError

from steersman.core.errors import DataError

UNSIGNED = (20, 0)
"""Precision and scale of the decimal that an unsigned 64 bit number is in Spark, as its Parquet reader has it."""

_INTEGRAL = "integral"
_WHOLE = frozenset({"BIGINT", "INT", "SMALLINT", "TINYINT", "DECIMAL"})
_TEXTS = frozenset({"VARCHAR", "TEXT", "CHAR", "NVARCHAR"})
_TYPES = {"INT128": "DECIMAL(38, 0)", "UBIGINT": "DECIMAL(20, 0)", "UINT": "BIGINT", "USMALLINT": "INT"}
_TYPES |= {"UTINYINT": "SMALLINT", "DECIMAL": "DECIMAL(18, 3)"}


class Statement(NamedTuple):
    """One statement.

    Attributes:
        tree: in Spark's terms; its parameters are :p0, :p1, ...
        parameters: how many.
        described: it asks for the columns of the query, not for its rows.
    """

    tree: exp.Query
    parameters: int
    described: bool

    def text(self) -> str:
        """SQL of Spark."""
        return spark_text(self.tree)


def read(sql: str) -> Statement:
    """Read one statement of DuckDB's dialect: a query, or DESCRIBE of one.

    Raises:
        DataError: it is not one, or it says what Spark computes otherwise.
    """
    try:
        numbered, parameters = _numbered(sql)
        trees = sqlglot.parse(numbered, read="duckdb")
    except (SqlglotError, RecursionError) as error:
        raise DataError(f"{first_line(error)} in {short(sql)}", hint="is the SQL right?") from None
    tree = trees[0] if trees else None
    if len(trees) != 1 or tree is None:
        raise DataError(f"{sum(t is not None for t in trees)} SQL statements, must be one: {short(sql)}")
    described = isinstance(tree, exp.Describe)
    if isinstance(tree, exp.Describe):
        tree = exp.select("*").from_(tree.this) if isinstance(tree.this, exp.Table) else tree.this
    if not isinstance(tree, exp.Query):
        raise DataError(f"{short(sql)} is not a query", hint="an engine answers SELECT, WITH and DESCRIBE")
    try:
        return Statement(_in_spark(tree), parameters, described)
    except DataError as error:
        raise DataError(f"{error.message} in {short(sql)}", hint=error.hint) from None


def spark_text(tree: exp.Expr) -> str:
    """SQL of Spark of a tree.

    Raises:
        DataError: SQLGlot knows that Spark has no such thing.
    """
    try:
        return tree.sql("spark", unsupported_level=ErrorLevel.RAISE)
    except SqlglotError as error:
        raise DataError(f"{first_line(error)} in {short(tree.sql('duckdb'))}", hint="Spark has no such thing") from None


def first_line(error: BaseException) -> str:
    """What an error says in its first line, without colors."""
    return str(error).split("\n", 1)[0].replace("\x1b[4m", "").replace("\x1b[0m", "")


def short(sql: str) -> str:
    """A statement in one line of at most about 200 letters."""
    line = " ".join(sql.split())
    return line if len(line) <= 200 else f"{line[:200]}..."


def _numbered(sql: str) -> tuple[str, int]:
    """Each ? gets a name, for a rule may write its operand twice and SQLGlot swap two; and how many there are."""
    marks = [token for token in sqlglot.tokenize(sql, read="duckdb") if token.token_type is TokenType.PLACEHOLDER]
    for number, mark in reversed(list(enumerate(marks))):
        sql = f"{sql[: mark.start]}$p{number}{sql[mark.end + 1 :]}"
    return sql, len(marks)


def _in_spark(tree: exp.Query) -> exp.Query:
    """The tree after the rules; inner nodes first, so that a rule finds its operands in Spark's terms."""
    for node in reversed(list(tree.walk(bfs=False))):
        rule = _FUNCTIONS.get(node.name.lower()) if isinstance(node, exp.Anonymous) else _RULES.get(type(node))
        if rule is not None:
            new = rule(node)
            if new is not node:
                node.replace(new)
    return tree


def _call(name: str, *arguments: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=[argument.copy() for argument in arguments])


def _cast(value: exp.Expr, to: str) -> exp.Expr:
    return exp.Cast(this=value.copy(), to=exp.DataType.build(to, dialect="spark"))


def _spark(sql: str, **operands: exp.Expr) -> exp.Expr:
    """An expression of Spark in which every :letter is an operand."""
    tree: exp.Expr = sqlglot.parse_one(sql, read="spark")
    for mark in list(tree.find_all(exp.Placeholder)):
        operand = operands[mark.name].copy()
        mark.replace(operand if isinstance(operand, (exp.Column, exp.Literal, exp.Func)) else exp.Paren(this=operand))
    return tree


def _type(node: exp.DataType) -> exp.Expr:
    kind = str(node.this.value)
    if kind in _TEXTS:
        return exp.DataType.build("STRING", dialect="spark")  # a length means nothing to DuckDB
    if kind in _TYPES and not node.expressions:
        return exp.DataType.build(_TYPES[kind], dialect="spark")
    return node


_ROUNDED = """CASE WHEN TYPEOF(:x) IN ('double', 'float') THEN {cast}(RINT(CAST(:x AS DOUBLE)) AS {to})
    WHEN TYPEOF(:x) = 'string' OR TYPEOF(:x) LIKE 'decimal%'
    THEN {cast}(ROUND({cast}(:x AS DECIMAL(38, 18))) AS {to}) ELSE {cast}(:x AS {to}) END"""


def _to_type(node: exp.Cast) -> exp.Expr:
    """A fraction becomes the nearest whole number: of two, the even one; of a decimal or a text the farther from zero.

    Spark would cut it off. Which it is is known when the statement is planned, so nothing of this is asked of a row.
    '0x' || text is a number in DuckDB.
    """
    value, to = node.this, node.to
    kind = str(to.this.value)
    if (kind == "DECIMAL" and to.sql("spark") not in (_TYPES["INT128"], _TYPES["UBIGINT"])) or kind not in _WHOLE:
        return node
    if isinstance(value, exp.DPipe) and value.this == exp.Literal.string("0x"):
        node.set("this", _spark("CONV(:x, 16, 10)", x=value.expression))
        return node
    if isinstance(value, (exp.Null, exp.Count)) or value.is_int or value.meta.get(_INTEGRAL):
        return node
    cast = "TRY_CAST" if isinstance(node, exp.TryCast) else "CAST"
    return exp.Paren(this=_spark(_ROUNDED.format(cast=cast, to=to.sql("spark")), x=value))


def _as_bigint(node: exp.Expr) -> exp.Expr:
    """It has 32 bits in Spark, 64 in DuckDB."""
    return _cast(node, "BIGINT")


def _window(node: exp.Window) -> exp.Expr:
    counts = (exp.RowNumber, exp.Rank, exp.DenseRank, exp.Ntile)
    return _as_bigint(node) if isinstance(node.this, counts) else node


def _divide(node: exp.Div) -> exp.Expr:
    """Always of doubles: Spark would divide decimals as decimals. By zero it is an error there."""
    dividend, divisor = _cast(node.this, "DOUBLE"), _cast(node.expression, "DOUBLE")
    return exp.Div(this=dividend, expression=divisor, typed=False, safe=False)


_FLOOR = "CASE WHEN :x <> 0 AND ABS(:x) < 4503599627370496E0 THEN CAST(FLOOR(:x) AS DOUBLE) ELSE :x END"


def _floor(node: exp.Floor) -> exp.Expr:
    """A double; Spark's is a whole number of 64 bits, which infinity, NaN and -0.0 are not."""
    if node.args.get("decimals") is not None:
        return node
    return _integral(_spark(_FLOOR, x=_cast(node.this, "DOUBLE")))


def _ceil(node: exp.Ceil) -> exp.Expr:
    if node.args.get("decimals") is not None:
        return node
    return _integral(exp.Neg(this=_floor(exp.Floor(this=_spark("-:x", x=node.this)))))


def _integral(value: exp.Expr) -> exp.Expr:
    whole = exp.Paren(this=value)
    whole.meta[_INTEGRAL] = True
    return whole


def _quantiles(node: exp.PercentileDisc) -> exp.Expr:
    """Exact and of nearest rank; SQLGlot would make it approximate.

    Spark multiplies the level, a double, by the number of values and rounds up. The largest double that is not above
    the level as it is written never comes out above a whole number that it should be.
    """
    levels = node.expression
    for level in list(levels.find_all(exp.Literal)):
        if not _DECIMAL.fullmatch(level.name):
            raise DataError(f"quantile_disc at {level.name}", hint="write levels as decimals: DuckDB is not exact else")
        level.replace(exp.Literal.number(f"{_not_above(level.name)!r}E0"))
    if levels.find(exp.Placeholder, exp.Column):
        raise DataError("a level of quantile_disc that is not written out", hint="write it as a number")
    order = exp.Order(expressions=[exp.Ordered(this=node.this.copy(), nulls_first=True)])
    return exp.WithinGroup(this=_call("PERCENTILE_DISC", node.expression), expression=order)


_DECIMAL = re.compile(r"\d+(\.\d+)?")


def _not_above(level: str) -> float:
    nearest = float(level)
    return math.nextafter(nearest, 0.0) if Decimal(nearest) > Decimal(level) else nearest


def _extreme(node: exp.ArgMin | exp.ArgMax) -> exp.Expr:
    """A row without a value is not considered; Spark would give null."""
    by = _spark("CASE WHEN :x IS NOT NULL THEN :y END", x=node.this, y=node.expression)
    node.set("expression", by)
    return node


def _contains(node: exp.ArrayContains) -> exp.Expr:
    """Two-valued: Spark would give null if there is a null in the list."""
    test = "CASE WHEN :x IS NOT NULL AND :y IS NOT NULL THEN COALESCE(ARRAY_CONTAINS(:x, :y), FALSE) END"
    return exp.Paren(this=_spark(test, x=node.this, y=node.expression))


_POSITION = """CASE WHEN :y IS NULL THEN NULLIF(ARRAY_POSITION(TRANSFORM(:x, _each -> _each IS NULL), TRUE), 0)
    ELSE NULLIF(ARRAY_POSITION(:x, :y), 0) END"""


def _position(node: exp.Anonymous) -> exp.Expr:
    """Null if it is not in the list; null is found where it stands."""
    values, value = node.expressions
    return exp.Paren(this=_spark(_POSITION, x=values, y=value))


def _element(node: exp.Bracket) -> exp.Expr:
    """Counted from 1, null outside of the list."""
    index = node.expressions[0]
    if len(node.expressions) != 1 or isinstance(index, exp.Slice):
        raise DataError("a slice of a list", hint="Spark's are others: use list_filter")
    if index.is_int:
        index = exp.Literal.number(int(index.to_py()) + 1)  # SQLGlot counts from 0 inside
    return _call("TRY_ELEMENT_AT", node.this, index)


def _zip(node: exp.Anonymous) -> exp.Expr:
    return _zipped(node.expressions)


def _zipped(lists: list[exp.Expr]) -> exp.Expr:
    """Lists side by side, shorter ones filled with null; a null is an empty list."""
    return _call("ARRAYS_ZIP", *(_spark("COALESCE(:x, ARRAY())", x=each) for each in lists))


def _select(node: exp.Select) -> exp.Expr:
    """unnest(a) AS a, unnest(b) AS b: one generator, because Spark takes only one."""
    unnested = [isinstance(each.unalias(), exp.Explode) for each in node.expressions]
    if any(each.find(exp.Explode) for each, at_top in zip(node.expressions, unnested, strict=True) if not at_top):
        raise DataError("unnest inside of an expression", hint="unnest in a subquery, compute outside")
    if not any(unnested):
        return node
    first, count = unnested.index(True), sum(unnested)
    together = node.expressions[first : first + count]
    if not all(unnested[first : first + count]) or not all(each.alias for each in together):
        raise DataError("unnest columns that do not stand together, each with a name", hint="reorder them")
    generator = _call("INLINE", _zipped([each.unalias().this for each in together]))
    names = [each.args["alias"].copy() for each in together]
    columns = list(node.expressions)
    columns[first : first + count] = [exp.Aliases(this=generator, expressions=names)]
    node.set("expressions", columns)
    return node


def _series(node: exp.GenerateSeries) -> exp.Expr:
    """Of 64-bit numbers; Spark's would run backwards where DuckDB's is empty."""
    if node.args.get("step") is not None:
        raise DataError("a series with a step", hint="multiply instead")
    start, end = _cast(node.args["start"], "BIGINT"), _cast(node.args["end"], "BIGINT")
    if not node.args.get("is_end_exclusive"):
        end = exp.Add(this=end, expression=exp.Literal.number(1))
    if isinstance(node.parent, exp.Table):
        return _call("RANGE", start, end)
    ascending = "CASE WHEN :x < :y THEN SEQUENCE(:x, :y - 1) ELSE ARRAY() END"
    return exp.Paren(this=_spark(ascending, x=start, y=end))


def _finite(node: exp.Anonymous) -> exp.Expr:
    return exp.Paren(this=_spark("ABS(:x) < CAST('Infinity' AS DOUBLE)", x=node.expressions[0]))


def _nan(node: exp.IsNan) -> exp.Expr:
    """Null of null."""
    return exp.Paren(this=_spark("CASE WHEN :x IS NOT NULL THEN :x = CAST('NaN' AS DOUBLE) END", x=node.this))


def _infinite(node: exp.IsInf) -> exp.Expr:
    return exp.Paren(this=_spark("ABS(:x) = CAST('Infinity' AS DOUBLE)", x=node.this))


def _epoch_us(node: exp.Anonymous) -> exp.Expr:
    return _spark("UNIX_MICROS(CAST(:x AS TIMESTAMP))", x=node.expressions[0])


def _distinct(node: exp.Distinct) -> exp.Expr:
    if node.args.get("on") is not None:
        raise DataError("DISTINCT ON", hint="its order would be lost: use QUALIFY ROW_NUMBER() OVER (...) = 1")
    return node


def _refused(what: str, hint: str) -> Callable[[exp.Expr], exp.Expr]:
    def refuse(node: exp.Expr) -> exp.Expr:
        raise DataError(f"{what} is not the same on Spark", hint=hint)

    return refuse


_ANY_ORDER = "say which row: arg_min, arg_max, or ROW_NUMBER() and a condition"
_RULES: dict[type, Callable] = {
    exp.DataType: _type,
    exp.Cast: _to_type,
    exp.TryCast: _to_type,
    exp.Window: _window,
    exp.Length: _as_bigint,
    exp.ArraySize: _as_bigint,
    exp.StrPosition: _as_bigint,
    exp.Div: _divide,
    exp.Floor: _floor,
    exp.Ceil: _ceil,
    exp.PercentileDisc: _quantiles,
    exp.ArgMin: _extreme,
    exp.ArgMax: _extreme,
    exp.ArrayContains: _contains,
    exp.Bracket: _element,
    exp.Select: _select,
    exp.GenerateSeries: _series,
    exp.IsInf: _infinite,
    exp.IsNan: _nan,
    exp.Round: _refused("round(...)", "FLOOR(x + 0.5) is the same everywhere"),
    exp.Distinct: _distinct,
    exp.ArrayAgg: _refused("list(...)", "Spark's leaves out nulls and has no order"),
    exp.First: _refused("first(...)", _ANY_ORDER),
    exp.Last: _refused("last(...)", _ANY_ORDER),
    exp.Median: _refused("median(...)", "quantile_disc(x, 0.5) is exact"),
    exp.PercentileCont: _refused("quantile_cont(...)", "quantile_disc(x, level) is exact"),
}
_FUNCTIONS: dict[str, Callable] = {
    "list_position": _position,
    "array_position": _position,
    "list_zip": _zip,
    "array_zip": _zip,
    "isfinite": _finite,
    "epoch_us": _epoch_us,
    "hash": _refused("hash(...)", "md5 is the same everywhere"),
}
