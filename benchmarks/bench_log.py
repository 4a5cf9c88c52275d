"""The log: acknowledged records a second against one fsync a record, CPU a record, and compaction.

The last line is one JSON object. Rates are medians of interleaved rounds on the disk of this checkout.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from peers import device
from steersman import engine as engines
from steersman import log
from steersman.core.decision import Candidate, Decision, Outcome
from steersman.core.errors import Error

WRITERS = 32
ROUNDS = 5
SECONDS = 1.0
BULK = 100_000
EVENTS = 200_000
BODY = b"x" * 300


def group_commit(directory: Path) -> tuple[float, float]:
    """Acknowledged records a second with WRITERS that wait for each of theirs; CPU us a record, all threads."""

    async def run() -> int:
        loop = asyncio.get_running_loop()
        end = time.perf_counter() + SECONDS
        count = 0

        async def writer() -> None:
            nonlocal count
            while time.perf_counter() < end:
                acknowledged: asyncio.Future[None] = loop.create_future()

                def done(error: Error | None, future: asyncio.Future[None] = acknowledged) -> None:
                    loop.call_soon_threadsafe(settle, future, error)

                pen.append([(log.DECISION, BODY)], done)
                await acknowledged
                count += 1

        await asyncio.gather(*(writer() for _ in range(WRITERS)))
        return count

    with log.Pen(directory) as pen:
        return rate(lambda: asyncio.run(run()))


def settle(future: asyncio.Future[None], error: Error | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def fsync_each(directory: Path) -> tuple[float, float]:
    """The plain way: each of WRITERS writes its line to the end of the file and syncs it before it goes on."""

    async def run() -> int:
        end = time.perf_counter() + SECONDS
        count = 0

        async def writer() -> None:
            nonlocal count
            while time.perf_counter() < end:
                os.write(fd, BODY + b"\n")
                os.fdatasync(fd)
                count += 1
                await asyncio.sleep(0)

        await asyncio.gather(*(writer() for _ in range(WRITERS)))
        return count

    fd = os.open(directory / "plain", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return rate(lambda: asyncio.run(run()))
    finally:
        os.close(fd)


def rate(run: Callable[[], int]) -> tuple[float, float]:
    """Records a second, and CPU us a record."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = run()
    return count / (time.perf_counter() - wall), (time.process_time() - cpu) / count * 1e6


def bulk(directory: Path) -> int:
    """Append BULK records, one a call, as fast as one thread can."""
    with log.Pen(directory, durability="buffered") as pen:
        for _ in range(BULK):
            pen.append([(log.DECISION, BODY)])
        pen.flush()
    return BULK


def fill(directory: Path) -> None:
    """EVENTS decisions with 4 number fields and as many outcomes."""
    draw = random.Random(0)
    encode = msgspec.json.Encoder().encode
    pair = (Candidate("left"), Candidate("right"))
    start = 1_700_000_000_000_000
    with log.Pen(directory, durability="buffered") as pen:
        for i in range(EVENTS):
            decision = Decision(
                id=f"d-{i:08d}", problem="cartpole", unit=f"u-{i // 20}", at=start + i * 1000, action="left",
                context={name: draw.random() for name in ("x", "speed", "angle", "spin")}, candidates=pair,
                propensity=0.5, version=1, step=i % 20,
            )  # fmt: skip
            outcome = Outcome(id=f"o-{i:08d}", decision=decision.id, at=decision.at + 500, metrics={"reward": 1.0})
            pen.append([(log.DECISION, encode(decision)), (log.OUTCOME, encode(outcome))])


def compaction(directory: Path) -> dict[str, float]:
    """Events a second from segments to Parquet, read back from the segments, and joined from Parquet to arrays."""
    fill(directory)
    engine = engines.open("duckdb")
    read, _ = rate(lambda: sum(1 for _ in log.read(directory)))
    compacted, cpu = rate(lambda: count(log.compact(directory, {}, engine)))
    found = log.files(directory, "cartpole", 0, 1 << 62)
    engine.view("decisions", found.decisions)
    engine.view("outcomes", found.outcomes)
    join = 'SELECT d.*, o."metrics.reward" FROM decisions d JOIN outcomes o ON o.decision = d.id ORDER BY unit, step'
    joined, _ = rate(lambda: 2 * len(engine.query(join)["id"]))
    stored = sum(path.stat().st_size for path in directory.rglob("*.parquet"))
    engine.close()
    return {
        "compaction_events_s": round(compacted), "compaction_cpu_us_per_event": round(cpu, 2),
        "read_events_s": round(read), "join_events_s": round(joined),
        "parquet_bytes_per_event": round(stored / EVENTS / 2, 1),
    }  # fmt: skip


def count(done: log.Compacted) -> int:
    return done.decisions + done.outcomes


def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".bench-") as folder:
        root = Path(folder)
        commits, plains, bulks = [], [], []
        for _ in range(ROUNDS):
            plains.append(fsync_each(root))
            commits.append(group_commit(root / "commit"))
            bulks.append(rate(lambda: bulk(root / "bulk")))
        figures: dict[str, float] = {
            "commit_acked_records_s": round(statistics.median(one for one, _ in commits)),
            "fsync_each_acked_records_s": round(statistics.median(one for one, _ in plains)),
            "commit_cpu_us_per_record": round(statistics.median(cpu for _, cpu in commits), 2),
            "append_cpu_us_per_record": round(statistics.median(cpu for _, cpu in bulks), 2),
            "writers": WRITERS,
        }
        figures |= compaction(root / "events")
    ratio = figures["commit_acked_records_s"] / figures["fsync_each_acked_records_s"]
    result = {"bench": "log", "ratios": {"commit_vs_fsync_each": round(ratio, 2)}, "figures": figures}
    print(json.dumps(result | {"device": device()}))


if __name__ == "__main__":
    main()
