"""`engine.url` in steersman.toml is all a user changes: the same log gives the same build."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import pytest

import product
import spark_here
from steersman import flow, timeline
from steersman.config import Project
from timeline_log import S

LATER = 10_000 * S


def imported(directory: Path, engine: str) -> Project:
    """A project with a log of ours: 60 units of a few steps, metrics that come once, twice, late or never."""
    made = product.project(directory, engine + product.TOML)
    rng = random.Random(7)
    lines = []
    for i in range(300):
        context = {"hour": float(rng.randrange(24)), "device": rng.choice(["phone", "desk"])}
        ids = ("hello", "hi", "welcome")
        decision = {"id": f"d{i}", "problem": "greeting", "unit": f"u{rng.randrange(60)}", "at": i * S}
        action = rng.choice(ids)
        lines.append(
            decision
            | {"context": context, "candidates": [{"id": id} for id in ids], "action": action, "propensity": 1 / 3}
        )
        for j in range(rng.choice([1, 1, 2])):
            clicks = {"clicks": float(rng.random() < 0.5)}
            lines.append({"id": f"o{i}-{j}", "decision": f"d{i}", "at": i * S, "metrics": clicks})
    source = directory / "log.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    flow.import_log(made, "greeting", flow.read_source(source, None, form="", sql="", propensities="logged"), 0.0)
    return made


@spark_here.needed
@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_engine_in_the_configuration_changes_no_number(tmp_path, shards):
    spark_here.opened(tmp_path / "spark").close()
    parts = f"\n[problem.greeting.build]\nshards = {shards}\n"
    builds = {}
    for url in ("duckdb", spark_here.URL):
        made = imported(tmp_path / url.replace("[", "").replace("]", ""), f'[engine]\nurl = "{url}"\n')
        (made.root / "steersman.toml").write_text(f'[engine]\nurl = "{url}"\n' + product.TOML + parts)
        made = flow.config.load(made.root)
        builds[url] = flow.build(made, "greeting", until=LATER, as_of=LATER)
    here, there = builds.values()
    assert there.digest == here.digest
    assert msgspec.structs.asdict(there.counts) == msgspec.structs.asdict(here.counts)
    assert timeline.load(Path(there.directory)).batch.digest == timeline.load(Path(here.directory)).batch.digest
    assert len(timeline.parts_of(Path(there.directory))) == shards
