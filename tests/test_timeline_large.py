"""A million decisions and their outcomes against a join in plain Python, and the speed of it."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from pathlib import Path

import duckdb
import numpy as np
import pytest

from steersman import engine, timeline
from timeline_log import FAR, Files, problem

WAIT_S = 600


def write_log(directory: Path, n: int) -> Files:
    """n decisions of units that take turns, 1.2 outcomes each, some of them late, told twice or of nobody."""
    decisions, outcomes = str(directory / "decisions.parquet"), str(directory / "outcomes.parquet")
    at = f"k * 5000 + CASE hash(i * 11) % 20 WHEN 0 THEN {WAIT_S + 100} WHEN 1 THEN {WAIT_S} ELSE 1 END * 1000000"
    writer = duckdb.connect()
    writer.execute(f"""COPY (
        SELECT printf('d%x', hash(i)) AS id, printf('u%d', i % {n // 20}) AS unit, i * 5000 AS "at",
            CAST(NULL AS BIGINT) AS step, CASE hash(i * 3) % 2 WHEN 0 THEN 'a' ELSE 'b' END AS action,
            0.5 AS propensity, 1 AS version, ['a', 'b'] AS "candidates.id", CAST(i AS DOUBLE) AS "context.x"
        FROM range({n}) AS t(i)) TO '{decisions}'""")
    writer.execute(f"""COPY (
        SELECT printf('o%d', i % {n * 12 // 10 - n // 100}) AS id, {at} AS "at",
            CASE WHEN hash(i) % 1000 = 0 THEN 'nobody' ELSE printf('d%x', hash(k)) END AS decision,
            CASE WHEN k >= {n - n // 20} AND i < {n} THEN 'terminated' END AS ends,
            CAST(hash(i * 13) % 1000 AS DOUBLE) AS "metrics.r"
        FROM (SELECT i, CASE WHEN i < {n} THEN i ELSE CAST(hash(i) % {n} AS BIGINT) END AS k
              FROM range({n * 12 // 10}) AS t(i))) TO '{outcomes}'""")
    writer.close()
    return Files([decisions], [outcomes])


def joined_by_hand(files: Files) -> tuple[dict[str, float], dict[str, str | None], set[str]]:
    """Reward, next decision and whether it terminated, by id of the decision."""
    reader = duckdb.connect()
    decisions = reader.execute(f"SELECT id, unit, \"at\" FROM '{files.decisions[0]}'").fetchall()
    outcomes = reader.execute(
        f'SELECT id, decision, "at", ends, "metrics.r" FROM \'{files.outcomes[0]}\' ORDER BY "at", decision'
    ).fetchall()
    reader.close()
    when = {id: at for id, _, at in decisions}
    reward, ends, told = dict.fromkeys(when, 0.0), set(), set()
    late_ends = set()
    for id, of, at, end, metric in outcomes:
        if id in told:
            continue
        told.add(id)
        if of not in when:
            continue
        if at - when[of] <= WAIT_S * 1_000_000:
            reward[of] += metric
            ends |= {of} if end else set()
        else:
            late_ends |= {of} if end else set()
    after: dict[str, str | None] = dict.fromkeys(when, None)
    units = defaultdict(list)
    for id, unit, at in decisions:
        units[unit].append((at, id))
    closed = ends | late_ends
    for steps in units.values():
        steps.sort()
        for (_, one), (_, other) in itertools.pairwise(steps):
            if one not in closed:
                after[one] = other
    return reward, after, ends


@pytest.mark.slow
def test_a_million_decisions_are_joined_as_in_plain_python_and_fast(tmp_path):
    n = 1_000_000
    files = write_log(tmp_path, n)
    tables = engine.open("duckdb")
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        built = timeline.build(tables, problem(wait_s=WAIT_S), files, since=0, until=FAR, as_of=FAR)
        seconds.append(time.perf_counter() - began)
    tables.close()
    reward, after, ends = joined_by_hand(files)
    ids = built.decision_ids.tolist()
    assert len(ids) == len(reward) == n
    assert dict(zip(ids, built.reward.tolist(), strict=True)) == reward
    following = [None if row < 0 else ids[row] for row in built.next.tolist()]
    assert dict(zip(ids, following, strict=True)) == after
    assert {ids[row] for row in np.flatnonzero(built.discount == 0)} == ends
    events = n + n * 12 // 10
    print(f"{events / min(seconds):,.0f} events/s, best of three: {min(seconds):.1f} s")  # noqa: T201
    assert events / min(seconds) > 200_000
