"""The columns of the compacted log, and the SQL from rows of JSON to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from steersman.engine import identifier, literal
from steersman.log.fields import Type
from steersman.log.manifest import Types

EXTRAS = {
    "actions": "VARCHAR[]",
    "numbers": "DOUBLE[]",
    "propensities": "DOUBLE[]",
    "first_propensities": "DOUBLE[]",
    "nulls": "VARCHAR[]",
    "deferred": "BOOLEAN",
    "estimated": "BOOLEAN",
}
"""Columns that a file of decisions has only if a row of it needs them; null is the default of the noun.

`nulls` names fields that were logged as null.
"""

OUTCOME_EXTRAS = {"activates": "BOOLEAN", "item": "VARCHAR"}
"""The same of a file of outcomes."""

_SQL: dict[Type, str] = {
    "number": "DOUBLE",
    "text": "VARCHAR",
    "numbers": "DOUBLE[]",
    "texts": "VARCHAR[]",
    "list": "BOOLEAN[]",  # of empty lists: united with any other list, that one's type wins
}
_DECISION = {
    "id": "VARCHAR",
    "unit": "VARCHAR",
    "at": "BIGINT",
    "step": "BIGINT",
    "action": "VARCHAR",
    "propensity": "DOUBLE",
    "version": "BIGINT",
    "noise": "UBIGINT",
}
_OUTCOME = {"id": "VARCHAR", "decision": "VARCHAR", "at": "BIGINT", "ends": "VARCHAR"}


def decisions_sql(rows: Path, types: Types, extras: Collection[str], longest_bytes: int) -> str:
    """SQL from a file of decisions, a JSON object a line, to the columns of the log.

    Args:
        rows: the file.
        types: of the fields; a row holds nothing else.
        extras: names in EXTRAS that a row has.
        longest_bytes: length of the longest row.
    """
    columns = dict(_DECISION) | {name: EXTRAS[name] for name in EXTRAS if name in extras}
    select = [identifier(name) for name in columns if name != "version"] + ["coalesce(version, 0) AS version"]
    if types.context:
        columns["context"] = _struct(types.context)
        select += [f"{_part('context', name)} AS {identifier(f'context.{name}')}" for name in types.context]
    candidate = "id VARCHAR"
    if types.candidate:
        candidate += f", features {_struct(types.candidate)}"
    columns["candidates"] = f"STRUCT({candidate})[]"
    select.append(f"[c.id for c in candidates] AS {identifier('candidates.id')}")
    for name in types.candidate:
        select.append(f"[{_part('c.features', name)} for c in candidates] AS {identifier(f'candidates.{name}')}")
    return _select(select, rows, columns, longest_bytes)


def outcomes_sql(rows: Path, metrics: Sequence[str], extras: Collection[str], longest_bytes: int) -> str:
    """SQL from a file of outcomes, a JSON object a line, to the columns of the log.

    Args:
        rows, longest_bytes: see `decisions_sql`.
        metrics: names of the metrics that have a column.
        extras: names in OUTCOME_EXTRAS that a row has.
    """
    columns = dict(_OUTCOME) | {name: OUTCOME_EXTRAS[name] for name in OUTCOME_EXTRAS if name in extras}
    select = [identifier(name) for name in columns]
    if metrics:
        columns["metrics"] = _struct(dict.fromkeys(metrics, "number"))
        select += [f"{_part('metrics', name)} AS {identifier(f'metrics.{name}')}" for name in metrics]
    return _select(select, rows, columns, longest_bytes)


def _select(select: Sequence[str], rows: Path, columns: Mapping[str, str], longest_bytes: int) -> str:
    typed = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in columns.items())
    # Buffers are twice as large as the largest object may be; small ones let every core have its share.
    return (
        f"SELECT {', '.join(select)} FROM read_json({literal(str(rows))}, format = 'newline_delimited', "
        f"maximum_object_size = {max(1 << 21, 2 * longest_bytes)}, columns = {{{typed}}})"
    )


def _struct(types: Mapping[str, Type]) -> str:
    return f"STRUCT({', '.join(f'{identifier(name)} {_SQL[kind]}' for name, kind in types.items())})"


def _part(struct: str, name: str) -> str:
    return f"struct_extract({struct}, {literal(name)})"
