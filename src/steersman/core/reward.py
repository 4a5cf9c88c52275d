"""The reward expression: arithmetic over metrics, parsed once, evaluated on arrays. It is data, never code."""

from __future__ import annotations

import ast
import functools
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from steersman.core.errors import DataError, did_you_mean
from steersman.core.shared import is_shared

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "abs": (1, np.abs),
    "log": (1, np.log),
    "exp": (1, np.exp),
    "sqrt": (1, np.sqrt),
    "where": (3, lambda test, yes, no: _known(np.isnan(test), np.where(test != 0, yes, no))),
}
MAX_CHARACTERS = 2000
MAX_DEPTH = 200
"""Operations within operations: what Python's own recursion limit leaves room for, wherever we are called from."""

_HINT = "use numbers, metric names, + - * / **, comparisons, " + ", ".join(_FUNCTIONS)


@functools.cache
def _parse(expression: str) -> ast.expr:
    if len(expression) > MAX_CHARACTERS:
        raise DataError(
            f"reward has {len(expression)} characters, must be at most {MAX_CHARACTERS}", hint=_HINT, field="reward"
        )
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"reward {expression!r} is not an expression: {error}", hint=_HINT, field="reward") from None
    if _depth(tree) > MAX_DEPTH:
        raise DataError(
            f"reward {expression[:40]!r}... has more than {MAX_DEPTH} operations within each other",
            hint="sum up in the product, and log the sum as a metric",
            field="reward",
        )
    _check(tree, expression)
    return tree


def _depth(tree: ast.expr) -> int:
    depth = 0
    level: list[ast.AST] = [tree]
    while level:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    return depth


def _check(node: ast.expr, expression: str) -> None:
    match node:
        case ast.Constant(value=int() | float() as value) if (
            not isinstance(value, bool) and abs(value) <= sys.float_info.max
        ):
            return
        case ast.Name():
            return
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            parts = [left, right]
        case ast.UnaryOp(ast.USub() | ast.UAdd(), operand):
            parts = [operand]
        case ast.Compare(left, [op], [right]) if type(op) in _BINARY:
            parts = [left, right]
        case ast.Call(ast.Name(name), args, []) if name in _FUNCTIONS and len(args) == _FUNCTIONS[name][0]:
            parts = args
        case _:
            raise DataError(f"reward {expression!r}: {ast.unparse(node)!r} is not allowed", hint=_HINT, field="reward")
    for part in parts:
        _check(part, expression)


@functools.cache
def metrics_of(expression: str) -> tuple[str, ...]:
    """Names of the metrics in a reward expression, sorted.

    Raises:
        DataError: the expression is empty, is not arithmetic, or names no metric.

    >>> metrics_of("clicks - 0.1 * max(complaints, 0)")
    ('clicks', 'complaints')
    """
    tree = _parse(expression)
    calls = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in calls}
    if not names:
        raise DataError(
            f"reward {expression!r} names no metric: it would be the same whatever is done",
            hint='for example reward = "clicks"',
            field="reward",
        )
    return tuple(sorted(names))


class Names(Protocol):
    """Ids of decisions by row: an array, a list, or whatever looks one up when it is needed."""

    def __getitem__(self, row: int, /) -> str: ...


def compute(expression: str, metrics: Mapping[str, np.ndarray], names: Names | None = None) -> np.ndarray:
    """Reward of every row.

    Args:
        expression: see `metrics_of`.
        metrics: name -> [N] f64.
        names: [N] ids of the decisions, for the error; None: it counts rows.
    Returns:
        [N] f64, in units of reward.
    Raises:
        DataError: a metric is absent, or the reward of a row is not finite; it names the first such decision.

    >>> compute("clicks - cost", {"clicks": np.array([1.0, 0.0]), "cost": np.array([0.25, 0.5])})
    array([ 0.75, -0.5 ])
    """
    for name in metrics_of(expression):
        if name not in metrics:
            raise DataError(f"reward needs the metric {name!r}", hint=did_you_mean(name, metrics), field="reward")
    n = len(next(iter(metrics.values())))
    with np.errstate(all="ignore"):
        result = np.asarray(_value(_parse(expression), metrics), dtype=np.float64)
    rewards = np.ascontiguousarray(np.broadcast_to(result, (n,)))
    bad = np.flatnonzero(~np.isfinite(rewards))
    if bad.size:
        row = int(bad[0])
        values = {name: float(metrics[name][row]) for name in metrics_of(expression)}
        raise DataError(
            f"{_who(row, names)}: reward {expression!r} is {rewards[row]} with {values}; {bad.size} such rows of {n}",
            hint="give the problem a default_outcome for decisions without one, or guard the division",
            field="reward",
        )
    return rewards


def shaped(
    rewards: np.ndarray, action: np.ndarray, ids: np.ndarray, shaping: Mapping[str, float], names: Names | None = None
) -> np.ndarray:
    """Rewards with what the problem adds for the action that was taken.

    Args:
        rewards: [N] f64, see `compute`.
        action: [N] i64, place of the action taken among the candidates.
        ids: [N, K] object, ids of the candidates; a broadcast view, or [1, K], where all rows have the same.
        shaping: id of an action -> what is added, finite; an action that is not named gets nothing.
        names: see `compute`.
    Returns:
        [N] f64; `rewards` itself if nothing is added.
    Raises:
        DataError: a sum is not finite; it names the first such decision.

    >>> ids = np.array([["send", "wait"]], dtype=object)
    >>> shaped(np.array([1.0, 1.0]), np.array([0, 1]), ids, {"send": -0.25})
    array([0.75, 1.  ])
    """
    if not shaping:
        return rewards
    if len(ids) == 1 or is_shared(ids):
        bonus = np.array([shaping.get(name, 0.0) for name in ids[0]])[action]
    else:
        taken = ids[np.arange(len(ids)), action].tolist()
        bonus = np.fromiter((shaping.get(name, 0.0) for name in taken), np.float64, count=len(taken))
    with np.errstate(over="ignore"):
        result = rewards + bonus
    bad = np.flatnonzero(~np.isfinite(result))
    if bad.size:
        row = int(bad[0])
        name = ids[row if len(ids) > 1 else 0, action[row]]
        raise DataError(
            f"{_who(row, names)}: reward {rewards[row]:g} with the shaping {bonus[row]:g} of {name!r} is "
            f"{result[row]:g}; {bad.size} such rows of {len(result)}",
            field=f"shaping.{name}",
        )
    return result


def _who(row: int, names: Names | None) -> str:
    return f"row {row}" if names is None else f"decision {names[row]}"


def _value(node: ast.expr, metrics: Mapping[str, np.ndarray]) -> Any:
    match node:
        case ast.Constant(value):
            return np.float64(value)  # type: ignore[arg-type]  # numpy's arithmetic: 1/0 is inf, never an exception
        case ast.Name(name):
            return metrics[name]
        case ast.BinOp(left, op, right):
            return _BINARY[type(op)](_value(left, metrics), _value(right, metrics))
        case ast.UnaryOp(op, operand):
            value = _value(operand, metrics)
            return -value if isinstance(op, ast.USub) else value
        case ast.Compare(left, [op], [right]):
            a, b = _value(left, metrics), _value(right, metrics)
            return _known(np.isnan(a) | np.isnan(b), _BINARY[type(op)](a, b))
        case ast.Call(ast.Name(name), args, _):
            return _FUNCTIONS[name][1](*(_value(arg, metrics) for arg in args))
    raise AssertionError(f"unchecked node {node!r}")


def _known(unknown: Any, result: Any) -> Any:
    """The result, but NaN where it rests on something unknown: no comparison with an unknown is false."""
    return np.where(unknown, np.nan, result)
