"""Log to training data: join, timeline and write, against the same in PySpark and in Polars; then shuffled minibatches.

The log: 10 million decisions of 20 numbers in episodes of 10 to 30 steps that run side by side over five days, and 1.2
outcomes each, some late, some told twice, some of no decision. Every measurement is a process of its own on two
cores, the disk at rest before it; the three take turns. Peers are timed from a warm session until their file is
handed to the system, ours until its build is on the disk. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import duckdb
import msgspec
import numpy as np
import psutil

import timeline_peers as peers
from peers import device
from steersman import engine as engines
from steersman import timeline
from steersman.core.decision import One, Problem
from steersman.core.features import Encoder
from steersman.engine.matrix import matrix, streamed
from steersman.learn.minibatches import minibatches

CORES = 2
S = 1_000_000
DAY, DAYS = 86_400 * S, 5
START = 19_700 * DAY  # 2023-12-09
FAR = START + 1000 * DAY
WAIT_S = 600.0
LATE = 700 * S
LONGEST = 30
CHECKED = 100_000
BATCH = 1024
WINDOW = 1 << 18
PROBLEM = Problem(
    name="bench", actions=One(names=("a", "b")), reward="r", wait_s=WAIT_S, default_outcome={"r": 0.0},
    context=dict.fromkeys((name.removeprefix("context.") for name in peers.FEATURES), "number"),
)  # fmt: skip

LIMIT = "2GB"
"""The engine's memory limit of one build of the large log."""


@dataclass(frozen=True)
class Log:
    """The Parquet files of a log."""

    decisions: list[str]
    outcomes: list[str]


# -- the log ------------------------------------------------------------------------------------------------------


def generate(rows: int, directory: Path) -> None:
    """Decisions and 1.2 outcomes each, one file of each a day, by time; the same for the same number of rows.

    Args:
        rows: a multiple of 40: units come in pairs of 40 decisions together.
    """

    def write(table: str, sql: str, day: int) -> None:
        path = directory / table / f"{day}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = engines.open("duckdb", threads=1)
        engine.copy(sql, path)
        engine.close()

    with ThreadPoolExecutor(CORES) as pool:  # the numbers that a query counts up come from one thread
        started = [pool.submit(write, "decisions", decisions_sql(rows, day), day) for day in range(DAYS)]
        started += [pool.submit(write, "outcomes", outcomes_sql(rows, day), day) for day in range(DAYS)]
        for done in started:
            done.result()


def log_of(directory: Path) -> Log:
    found = {name: sorted(map(str, (directory / name).glob("*.parquet"))) for name in ("decisions", "outcomes")}
    return Log(**found)


def noise(salt: int, of: str = "i") -> str:
    """SQL of 64 bits that look random but follow from an integer column."""
    return f"hash({of} * 64 + {salt})"


def hex_id(moment: str, salt: int) -> str:
    """SQL of a time-ordered id, as the server makes them: 30 hex digits."""
    return f"printf('%014x%016x', {moment}, {noise(salt)})"


def slots_sql(rows: int, first: int, stop: int) -> str:
    """The decisions of slots [first, stop): i, unit, step, length, moment. A step of all units, then the next one."""
    units = rows // 20
    a_day = units * LONGEST // DAYS
    gap = DAY // a_day
    return f"""SELECT *,
            {START} + i // {a_day} * {DAY} + i % {a_day} * {gap} + CAST({noise(40)} % {gap} AS BIGINT) AS moment
        FROM (SELECT i, i % {units} AS unit, i // {units} AS step, 10 + hash(i % {units} // 2) % 21 AS half,
            CASE WHEN i % 2 = 0 THEN half ELSE 40 - half END AS length FROM range({first}, {stop}) t(i)) AS slots
        WHERE step < length"""


def decisions_sql(rows: int, day: int) -> str:
    """Numbers are normal, each field with a scale of its own; 2% are missing and one field in four has cents."""
    a_day = rows // 20 * LONGEST // DAYS
    features = []
    for k, name in enumerate(peers.FEATURES):
        low, high = f"(1 + h{k} % 4294967296) / 4294967297.0", f"(h{k} // 4294967296) / 4294967296.0"
        number = f"{k - 8} + {0.1 * 1.4**k:.6f} * sqrt(-2 * ln({low})) * cos(6.283185307179586 * {high})"
        value = f"round({number}, 2)" if k % 4 == 3 else number
        features.append(f'CASE WHEN {noise(20 + k)} % 50 <> 0 THEN CAST({value} AS DOUBLE) END AS "{name}"')
    hashes = ", ".join(f"{noise(k)} AS h{k}" for k in range(len(peers.FEATURES)))
    return f"""SELECT {hex_id("moment", 41)} AS id, printf('u%09d', unit) AS unit, CAST(moment AS BIGINT) AS "at",
        CAST(step AS BIGINT) AS step, CASE WHEN {noise(42)} % 10 < 7 THEN 'a' ELSE 'b' END AS action,
        CAST(CASE WHEN {noise(42)} % 10 < 7 THEN 0.7 ELSE 0.3 END AS DOUBLE) AS propensity,
        CAST(1 AS BIGINT) AS version, CAST(NULL AS UBIGINT) AS noise, ['a', 'b'] AS "candidates.id",
        {", ".join(features)}
        FROM (SELECT *, {hashes} FROM ({slots_sql(rows, day * a_day, (day + 1) * a_day)}) AS s) AS hashed"""


def outcomes_sql(rows: int, day: int) -> str:
    """By the day of the outcome. telling 0: of 96%; 1: a further one of 21%; 2: the first again; 3: of no decision."""
    a_day = rows // 20 * LONGEST // DAYS
    before = LATE // (DAY // a_day) + 1
    first, begin = max(0, day * a_day - before), START + day * DAY
    end = begin + DAY if day < DAYS - 1 else FAR
    asked = slots_sql(rows, first, (day + 1) * a_day)
    delay = (
        f"CASE WHEN {noise(43, 'j')} % 20 = 0 THEN {LATE} ELSE {S} + CAST({noise(44, 'j')} % {60 * S} AS BIGINT) END"
    )
    ends = f"CASE WHEN {noise(45)} % 10 < 8 THEN 'terminated' WHEN {noise(45)} % 10 = 8 THEN 'truncated' END"
    return f"""SELECT printf('%014x%016x', told, {noise(46, "j")}) AS id,
        CASE WHEN telling = 3 THEN {hex_id("moment", 47)} ELSE {hex_id("moment", 41)} END AS decision,
        CAST(told AS BIGINT) AS "at", CASE WHEN step = length - 1 AND j % 4 = 0 THEN {ends} END AS ends,
        CAST({noise(48, "j")} % 100000 / 100000.0 AS DOUBLE) AS "metrics.r"
        FROM (SELECT *, moment + {delay} AS told FROM (
            SELECT *, i * 4 + CASE WHEN telling = 2 THEN 0 ELSE telling END AS j
            FROM ({asked}) AS asked CROSS JOIN range(4) u(telling)
            WHERE CASE WHEN telling IN (0, 2) THEN {noise(49)} % 100 < 96 ELSE true END
            AND CASE telling WHEN 0 THEN true WHEN 1 THEN {noise(50)} % 100 < 21
                WHEN 2 THEN {noise(51)} % 100 < 2 ELSE {noise(52)} % 100 < 1 END
        ) AS tellings) AS timed WHERE told >= {begin} AND told < {end}"""


# -- ours ---------------------------------------------------------------------------------------------------------


def steersman(log: Log, out: Path, encoder: Path | None, memory_limit: str = "") -> Callable[[], None]:
    """The build, fitted where no encoder is given, and written; beyond the limit the engine spills to disk."""
    fitted = msgspec.json.decode(encoder.read_bytes(), type=Encoder) if encoder else None

    def run() -> None:
        engine = engines.open("duckdb", threads=CORES, memory_limit=memory_limit)
        with tempfile.TemporaryDirectory(dir=out.parent) as into:  # what is large is moved from here, not copied
            built = timeline.build(
                engine, PROBLEM, log, since=START, until=FAR, as_of=FAR, encoder=fitted, into=Path(into)
            )
            timeline.save(built, out)
        engine.close()

    return run


class Rows(NamedTuple):
    """What an engine made of the decisions, in the order of their ids: what all must agree on."""

    ids: list[str]
    reward: np.ndarray
    terminal: np.ndarray
    next_action: list[str]
    next_context: np.ndarray


def rows_of_ours(directory: Path) -> Rows:
    built = timeline.load(directory)
    batch, names = built.batch, built.raw.ids[0]
    order = np.argsort(built.decision_ids)
    after = batch.next[order]
    context = built.raw.context.numbers[after]
    context[after < 0] = np.nan
    action = np.where(after < 0, "", names[batch.action[after]])
    return Rows(
        built.decision_ids[order].tolist(), batch.reward[order], batch.terminated[order], action.tolist(), context
    )


def rows_of_peer(out: Path) -> Rows:
    source = str(out / "*.parquet" if out.is_dir() else out)
    features = [f'COALESCE("next.{name}", CAST(\'NaN\' AS DOUBLE)) AS "{name}"' for name in peers.FEATURES]
    sql = f"""SELECT id, reward, terminal, COALESCE("next.action", '') AS action, {", ".join(features)}
        FROM read_parquet('{source}') ORDER BY id"""
    with duckdb.connect() as connection:
        found = connection.execute(sql).fetchnumpy()
    context = np.stack([found[name] for name in peers.FEATURES], axis=1)
    return Rows(found["id"].tolist(), found["reward"], found["terminal"], found["action"].tolist(), context)


def check_same(ours: Rows, theirs: Rows, peer: str) -> None:
    """Stops where a peer's rows are not ours: the times of different work can not be compared."""
    same = {
        "ids": ours.ids == theirs.ids,
        "rewards": np.allclose(ours.reward, theirs.reward, rtol=0, atol=1e-9),
        "terminal rows": np.array_equal(ours.terminal, theirs.terminal),
        "next actions": ours.next_action == theirs.next_action,
        "next contexts": np.array_equal(ours.next_context, theirs.next_context, equal_nan=True),
    }
    if wrong := [name for name, holds in same.items() if not holds]:
        raise SystemExit(f"{peer} and ours differ in: {', '.join(wrong)}")


# -- minibatches --------------------------------------------------------------------------------------------------


def epoch_s(context: np.ndarray, window: int | None) -> float:
    """Seconds of one shuffled epoch of torch tensors."""
    import torch

    begun, rows = time.perf_counter(), 0
    for (some,) in minibatches([context], BATCH, seed=0, window=window):
        rows += len(torch.from_numpy(some))
    if rows != len(context):
        raise SystemExit(f"{rows} rows came of {len(context)}")
    return time.perf_counter() - begun


def from_parquet(log: Log) -> dict[str, float]:
    """Parquet to minibatches as they are read, an epoch; and, all rows in memory, the median of three epochs."""
    import torch

    begun, rows = time.perf_counter(), 0
    for some in streamed(log.decisions, peers.FEATURES, BATCH, seed=0, threads=CORES + 1):
        rows += len(torch.from_numpy(some))
    with_read = rows / (time.perf_counter() - begun)
    begun = time.perf_counter()
    context = matrix(log.decisions, peers.FEATURES, threads=CORES)
    read = time.perf_counter() - begun
    if rows != len(context):
        raise SystemExit(f"{rows} rows came of {len(context)}")
    epochs = [epoch_s(context, None) for _ in range(3)]
    return {"read_s": read, "rows_s": rows / statistics.median(epochs), "rows_s_with_read": with_read}


def from_build(directory: Path) -> dict[str, float]:
    """The encoded context of a build, mapped: an epoch from a cold disk, then the median of three."""
    path = directory / "encoded_context.npy"
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    context = np.load(path, mmap_mode="r", allow_pickle=False)
    cold = epoch_s(context, WINDOW)
    warm = statistics.median(epoch_s(context, WINDOW) for _ in range(3))
    return {"rows_s": len(context) / warm, "rows_s_cold": len(context) / cold}


# -- measurements -------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What a process took: wall seconds of the work, CPU seconds and peaks of the process with its children.

    Attributes:
        others: cores that other processes of this machine kept busy meanwhile: above 0.2 the wall says little.
    """

    wall: float
    cpu: float
    peak_mb: float
    private_mb: float
    others: float
    told: dict[str, float]


def measured(kind: str, log: Path, out: Path, encoder: Path | None = None) -> Run:
    """A piece of work in a process of its own, the disk at rest before it."""
    os.sync()
    command = [sys.executable, __file__, "--work", kind, "--log", str(log), "--out", str(out)]
    command += ["--encoder", str(encoder)] if encoder else []
    begun, busy = time.perf_counter(), busy_s()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        seen: dict[int, float] = {}
        peak = private = 0
        while process.poll() is None:
            sizes = list(watched(process.pid, seen))
            peak = max(peak, sum(resident for resident, _ in sizes))
            private = max(private, sum(resident - shared for resident, shared in sizes))
            time.sleep(0.05)
        said = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{kind} ended with {process.returncode}")
    cpu = sum(seen.values())
    others = max(0.0, (busy_s() - busy - cpu) / (time.perf_counter() - begun))
    told = json.loads(said.splitlines()[-1])
    run = Run(told.pop("wall"), cpu, peak / 1e6, private / 1e6, others, told)
    print(
        f"{kind}: {run.wall:.1f} s wall, {cpu:.1f} s CPU, {run.peak_mb:,.0f} MB at most, others {others:.1f} cores",
        told or "",
        flush=True,
    )
    return run


def busy_s() -> float:
    """CPU seconds of all processes since the machine started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def watched(root: int, seen: dict[int, float]) -> Iterator[tuple[int, int]]:
    """Resident and shared bytes of a process and its children; their CPU seconds go into `seen`."""
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            memory, cpu = process.memory_info(), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seen[process.pid] = cpu.user + cpu.system
        yield memory.rss, memory.shared


def work(kind: str, log: Log, out: Path, encoder: Path | None) -> dict[str, float]:
    """What a measured process does, by its name."""
    if kind == "parquet":
        return {"wall": 0.0, **from_parquet(log)}
    if kind == "mapped":
        return {"wall": 0.0, **from_build(out)}
    if kind == "encode":
        begun = time.perf_counter()
        rows = len(timeline.load(out).batch)  # makes encoded_context.npy, once
        wall = time.perf_counter() - begun
        return {"wall": wall, "rows_s": rows / wall}
    if kind in peers.PEERS:
        run = peers.PEERS[kind](log.decisions, log.outcomes, out, round(WAIT_S * S))
    elif kind == "limited":
        run = steersman(log, out, None, LIMIT)
    else:
        run = steersman(log, out, encoder if kind == "ours" else None)
    begun = time.perf_counter()
    run()
    wall = time.perf_counter() - begun
    if kind == "fit" and encoder:
        encoder.write_bytes(msgspec.json.encode(timeline.encoder_of(out)))
    return {"wall": wall}


def check(folder: Path, engines: list[str]) -> None:
    """All engines make the same of a small log."""
    log, encoder = folder / "log", folder / "encoder.json"
    generate(CHECKED, log)
    measured("fit", log, folder / "fit", encoder)
    measured("ours", log, folder / "ours", encoder)
    ours = rows_of_ours(folder / "ours")
    for peer in engines:
        measured(peer, log, folder / peer)
        check_same(ours, rows_of_peer(folder / peer), peer)
    shutil.rmtree(folder)
    print(f"checked: {len(ours.ids):,} rows are the same for ours and {', '.join(engines)}", flush=True)


def compare(rows: int, folder: Path, rounds: dict[str, int]) -> dict[str, list[Run]]:
    """The engines in turn over a log of so many decisions; the log and the last build stay in the folder."""
    log, encoder = folder / "log", folder / "encoder.json"
    begun = time.perf_counter()
    generate(rows, log)
    print(f"{rows:,} decisions in {time.perf_counter() - begun:.0f} s", flush=True)
    runs: dict[str, list[Run]] = {"fit": [measured("fit", log, folder / "fit", encoder)]}
    shutil.rmtree(folder / "fit")
    for turn in range(max(rounds.values())):
        for kind in (kind for kind, times in rounds.items() if turn < times):
            out = folder / kind
            remove(out)
            runs.setdefault(kind, []).append(measured(kind, log, out, encoder))
            if kind != "ours":
                remove(out)
    return runs


def told(runs: list[Run], name: str) -> float:
    """The median of what some processes measured themselves."""
    return statistics.median(run.told[name] for run in runs)


def remove(out: Path) -> None:
    """A file or a folder, if it is there."""
    if out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink(missing_ok=True)


def measure(folder: Path, rows: int, *, spark: bool) -> dict[str, object]:
    """The JSON line of this benchmark."""
    check(folder / "check", ["polars", *(["spark"] if spark else [])])
    once = {"spark": 1} if spark else {}
    small = compare(rows // 10, folder / "small", {"ours": 3, "polars": 3, **once})
    shutil.rmtree(folder / "small")
    large = compare(rows, folder / "large", {"ours": 2, "polars": 2, **once})
    limited = measured("limited", folder / "large" / "log", folder / "large" / "limited")
    if timeline.encoder_of(folder / "large" / "limited") != timeline.encoder_of(folder / "large" / "ours"):
        raise SystemExit(f"under a memory limit of {LIMIT} the types of fields came out otherwise")
    shutil.rmtree(folder / "large" / "limited")
    memory = [measured("parquet", folder / "large" / "log", folder) for _ in range(3)]
    encode = measured("encode", folder / "large" / "log", folder / "large" / "ours")
    mapped = measured("mapped", folder / "large" / "log", folder / "large" / "ours")
    wall = {
        f"{kind}_{size}": middle(runs, "wall")
        for size, by in (("1m", small), ("10m", large))
        for kind, runs in by.items()
    }
    ratios = {
        f"timeline_10m_vs_{kind}": wall[f"{kind}_10m"] / wall["ours_10m"]
        for kind in ("spark", "polars")
        if kind in large
    }
    ratios["growth_1m_to_10m"] = wall["ours_10m"] / wall["ours_1m"]
    figures = {
        "rows": rows,
        "others_cores": round(max(run.others for by in (small, large) for runs in by.values() for run in runs), 2),
        "minibatch_rows_per_s": round(told(memory, "rows_s")),
        "minibatch_rows_per_s_with_read": round(told(memory, "rows_s_with_read")),
        "minibatch_read_s": round(told(memory, "read_s"), 2),
        "minibatch_mapped_rows_per_s": round(mapped.told["rows_s"]),
        "minibatch_mapped_cold_rows_per_s": round(mapped.told["rows_s_cold"]),
        "minibatch_mapped_private_mb": round(mapped.private_mb),
        "limited_10m_s": round(limited.wall, 2),
        "limited_10m_peak_mb": round(limited.peak_mb),
        "peak_mb_10m": round(middle(large["ours"], "peak_mb")),
        "rows_per_s_10m": round(rows / wall["ours_10m"]),
        "load_and_encode_s_10m": round(encode.wall, 2),
        "fit_s_10m": round(wall["fit_10m"], 2),
        **{f"{name}_s": round(seconds, 2) for name, seconds in wall.items() if not name.startswith("fit")},
        **{f"{kind}_10m_cpu_s": round(middle(runs, "cpu"), 1) for kind, runs in large.items()},
        **{f"{kind}_10m_peak_mb": round(middle(runs, "peak_mb")) for kind, runs in large.items()},
    }
    return {
        "bench": "timeline",
        "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "figures": figures,
    }


def middle(runs: list[Run], figure: str) -> float:
    return statistics.median(getattr(run, figure) for run in runs)


def machine() -> str:
    """Of how many cores, and the memory."""
    return f"{CORES} of {device()}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=10_000_000, help="decisions of the large log; the small has a tenth"
    )
    parser.add_argument("--skip-spark", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--encoder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        print(json.dumps(work(asked.work, log_of(asked.log), asked.out, asked.encoder)))
        return 0
    if asked.rows < 4000 or asked.rows % 400:
        parser.error(f"--rows is {asked.rows}, must be a multiple of 400, at least 4000")
    os.environ |= {"POLARS_MAX_THREADS": str(CORES)}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    cache = Path(__file__).parent.parent / ".cache"  # on the disk of the repository: /tmp may be memory
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="bench-timeline-") as folder:
        result = measure(Path(folder), asked.rows, spark=not asked.skip_spark)
        print(json.dumps(result | {"device": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
