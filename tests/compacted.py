"""Logs that are written, compacted and looked at, for the tests of compaction."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from steersman import log
from steersman.core.decision import Candidate, Decision, One, Outcome, Problem
from steersman.engine import Engine

DAY = 86_400_000_000
T0 = 1_700_006_400_000_000  # 2023-11-15 00:00:00 UTC
ALWAYS = (0, 1 << 62)


def decision(id: str = "d1", **changes: Any) -> Decision:
    values: dict[str, Any] = {
        "problem": "ctr", "unit": "u1", "at": T0, "context": {"age": 41.0, "country": "nl"},
        "candidates": (Candidate("a", {"price": 1.5}), Candidate("b", {"price": None})), "action": "a",
        "propensity": 0.25, "version": 3, "step": 7,
    }  # fmt: skip
    return Decision(id=id, **values | changes)


def outcome(id: str = "o1", **changes: Any) -> Outcome:
    return Outcome(id=id, **{"decision": "d1", "at": T0 + 5, "metrics": {"clicks": 1.0}} | changes)


def problem(**changes: Any) -> Problem:
    values: dict[str, Any] = {"name": "ctr", "actions": One(names=("a", "b")), "reward": "clicks", "wait_s": 60.0}
    return Problem(**values | changes)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power losses are not among the crashes here, so nothing needs to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


Noun = Decision | Outcome | bytes


def write(directory: Path, *nouns: Noun) -> None:
    with log.Pen(directory, durability="buffered") as pen:
        pen.append([record(noun) for noun in nouns])


def import_at_once(directory: Path, *nouns: Noun) -> None:
    """The same through the pen of imports, in small segments."""
    with log.at_once(directory, segment_bytes=4096) as pen:
        for noun in nouns:
            pen.append([record(noun)])


def record(noun: Noun) -> tuple[bytes, bytes]:
    if isinstance(noun, bytes):
        return log.DECISION, noun
    return log.DECISION if isinstance(noun, Decision) else log.OUTCOME, msgspec.json.encode(noun)


def rows(directory: Path, engine: Engine, kind: str = "decisions", name: str = "ctr") -> list[dict[str, Any]]:
    """Rows of the files that the log lists, NaN and arrays as None and lists."""
    paths = getattr(log.files(directory, name, *ALWAYS), kind)
    if not paths:
        return []
    engine.view("t", paths)
    columns = engine.query("SELECT * FROM t")
    return [
        {key: plain(value) for key, value in zip(columns, values, strict=True)}
        for values in zip(*columns.values(), strict=True)
    ]


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [plain(element) for element in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value
