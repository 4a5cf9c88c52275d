"""Find one decision in a log, wherever it lies, exactly as it was logged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from steersman.core.decision import Candidate, Decision, Value, decoder
from steersman.core.errors import DataError, NotFoundError
from steersman.engine import Engine
from steersman.log.manifest import Manifest, read_manifest
from steersman.log.segment import DECISION, read

_decode = decoder(Decision)


def find(directory: Path, decision_id: str, engine: Engine) -> Decision:
    """The decision with this id: the noun equal to what was logged. Of an id logged twice, the first.

    Args:
        directory: of the log.
    Raises:
        NotFoundError: no such decision, neither compacted nor in a segment.
    """
    manifest = read_manifest(directory)
    while True:
        found = _in_parquet(directory, manifest, decision_id, engine) or _in_segments(directory, manifest, decision_id)
        if found is not None:
            return found
        # A compaction in between may have moved it from where we had not looked yet to where we had.
        before, manifest = manifest, read_manifest(directory)
        if manifest == before:
            raise NotFoundError(
                f"no decision {decision_id!r} in {directory}", hint="is it the id that decide answered?"
            )


def _in_segments(directory: Path, manifest: Manifest, decision_id: str) -> Decision | None:
    needle = msgspec.json.encode(decision_id)
    for record in read(directory, manifest.segments):
        if record.kind == DECISION and needle in record.body:
            try:
                decision = _decode(record.body)
            except DataError:
                continue  # compaction sets it aside and says why
            if decision.id == decision_id:
                return decision
    return None


def _in_parquet(directory: Path, manifest: Manifest, decision_id: str, engine: Engine) -> Decision | None:
    for problem in manifest.types:
        paths = [str(directory / entry.path) for entry in manifest.files if entry.problem == problem]
        if not paths:
            continue
        engine.view("steersman_find", paths)
        rows = engine.query('SELECT * FROM steersman_find WHERE id = ? ORDER BY "at" LIMIT 1', [decision_id])
        if len(rows["id"]):
            return decision_of(problem, {name: column[0] for name, column in rows.items()})
    return None


def decision_of(problem: str, row: Mapping[str, Any]) -> Decision:
    """The noun from a row of the compacted log.

    Args:
        row: column -> value, as `Engine.query` gives it.
    """
    nulls = _value(row.get("nulls")) or ()
    present = {name: value for name, column in row.items() if (value := _value(column)) is not None}
    context = {name.removeprefix("context."): present[name] for name in present if name.startswith("context.")}
    context |= {name.removeprefix("context."): None for name in nulls if name.startswith("context.")}
    features: list[dict[str, Value]] = [{} for _ in present.get("candidates.id", ())]
    for name, column in present.items():
        if name.startswith("candidates.") and name != "candidates.id":
            for feature, value in zip(features, column, strict=True):
                if value is not None:
                    feature[name.removeprefix("candidates.")] = value
    for name in nulls:
        if name.startswith("candidates."):
            _, place, field = name.split(".", 2)
            features[int(place)][field] = None
    return Decision(
        id=row["id"],
        problem=problem,
        unit=row["unit"],
        at=int(row["at"]),
        context=context,
        candidates=tuple(map(Candidate, present.get("candidates.id", ()), features)),
        action=next(present[name] for name in ("action", "actions", "numbers") if name in present),
        propensity=float(row["propensity"]),
        version=int(row["version"]),
        step=present.get("step"),
        noise=present.get("noise"),
        propensities=present.get("propensities", ()),
        first_propensities=present.get("first_propensities", ()),
        deferred=bool(present.get("deferred")),
        estimated=bool(present.get("estimated")),
    )


def _value(value: Any) -> Any:
    """A value of a column as the noun has it; None for missing."""
    if isinstance(value, np.ndarray):
        return tuple(_value(element) for element in value)
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    if isinstance(value, np.integer):
        return int(value)
    return value
