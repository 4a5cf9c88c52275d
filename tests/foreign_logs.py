"""Importing another system's log, for the tests of its formats."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from steersman import log
from steersman.core.decision import Decision, One, Outcome, Problem
from steersman.engine import Engine


def problem(**changes: Any) -> Problem:
    values: dict[str, Any] = {"name": "pole", "actions": One(names=("left", "right")), "reward": "reward", "wait_s": 0}
    return Problem(**values | changes)


def run(pen: log.Pen, engine: Engine, source: log.Source, what: Problem, **changes: Any) -> log.Imported:
    return log.import_log(pen, engine, source, what, rejects=pen.directory.with_name("rejects.jsonl"), **changes)


def nouns(pen: log.Pen) -> list[Any]:
    return [
        msgspec.json.decode(record.body, type=Decision if record.kind == log.DECISION else Outcome)
        for record in log.read(pen.directory)
    ]


def rejected(pen: log.Pen) -> dict[int, str]:
    lines = pen.directory.with_name("rejects.jsonl").read_text().splitlines()
    return {row["line"]: row["reason"] for row in map(json.loads, lines)}
