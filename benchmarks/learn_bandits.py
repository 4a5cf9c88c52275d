"""Bandits against Vowpal Wabbit: rows a second from Parquet to a policy, growth with rows, and errors on classes.

The log: 200,000 decisions of `worlds/logit.py`, 20 numbers, 10 actions. Ours: the Parquet file is read by the engine,
encoded and learned from by `linear`; theirs: the driver reads the same log as text and learns by `--cb_explore_adf`.
Both without their start: Python and its imports here, a run on one decision there. Rounds alternate; ratios are of
medians. Vowpal Wabbit lives in an environment of its own, which is made in .cache on the first run; without a registry
it is left out. The last line is one JSON object. With --conversions only the classification data are looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

import conversions
import vw_peer
from peers import device
from steersman import engine, learn
from steersman.core.batch import Batch
from steersman.core.features import Raw
from steersman.core.policy import Policy
from steersman.worlds.logit import Logit, logit

Array = np.ndarray

ROWS, TIMES = 200_000, 10
ROUNDS = 5
GROWTH_ROUNDS = 3
FRESH = 50_000
SEEDS = 5
FIELDS = tuple(f"number{i:02d}" for i in range(20))
COLUMNS = (*FIELDS, "action", "propensity", "reward")


def write(world: Logit, path: Path, rows: int, seed: int) -> None:
    """A log as Parquet: numbers, the action's place, its propensity and the reward; each 200,000 rows of a seed."""
    connection = duckdb.connect()
    for part in range(rows // ROWS):
        batch = world.sample(ROWS, seed + part)
        table = dict(zip(FIELDS, batch.context[:, ::2].T.astype(np.float64), strict=True))
        table |= {"action": batch.action, "propensity": batch.propensity, "reward": batch.reward}
        connection.register("given", table)
        connection.execute("CREATE TABLE log AS FROM given" if part == 0 else "INSERT INTO log FROM given")
    connection.execute(f"COPY log TO '{path}' (FORMAT parquet)")
    connection.close()


def learned(world: Logit, path: Path, rows: int, loss: str) -> tuple[Policy, vw_peer.Took]:
    """The policy, and the seconds from the file to it."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    encoder, k = world.encoder, len(world.slopes)
    context, action = np.empty((rows, encoder.context_width), dtype=np.float32), np.empty(rows, dtype=np.int64)
    propensity, reward, done = np.empty(rows), np.empty(rows), 0

    def keep(some: dict[str, Any]) -> None:
        nonlocal done
        here = slice(done, done + len(some["action"]))
        numbers = np.stack([some[name] for name in FIELDS], axis=1)
        nothing = np.empty((len(numbers), 0), dtype=object), np.empty((len(numbers), 0, 0), dtype=np.int64)
        context[here] = encoder.encode_context(Raw(numbers, *nothing))
        action[here], propensity[here], reward[here] = some["action"], some["propensity"], some["reward"]
        done = here.stop

    tables = engine.open(threads=1)
    tables.view("log", [str(path)])
    tables.stream(f"SELECT {', '.join(COLUMNS)} FROM log", keep)
    tables.close()
    batch = Batch(
        encoder=encoder, context=context, candidates=np.broadcast_to(np.eye(k, dtype=np.float32), (rows, k, k)),
        mask=np.broadcast_to(np.bool_(True), (rows, k)), action=action, propensity=propensity, reward=reward,
        metrics=np.empty((rows, 0)), discount=np.zeros(rows), next=np.full(rows, -1), unit=np.arange(rows),
    )  # fmt: skip
    policy = learn.fit(batch, learn.configure("linear", {"loss": loss}), 0)
    return policy, vw_peer.Took(time.perf_counter() - begun, time.process_time() - begun_cpu)


def value(world: Logit, best: Array, numbers: Array) -> float:
    """Mean reward of taking these."""
    return float(world.mean(numbers)[np.arange(len(best)), best].mean())


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Ratios and figures; without Vowpal Wabbit those that need none."""
    world, python = logit(), vw_peer.python()
    log, large = folder / "log.parquet", folder / "large.parquet"
    write(world, log, ROWS, 1)
    own: dict[str, list[vw_peer.Took]] = {loss: [] for loss in ("mtr", "ips", "dr")}
    theirs: dict[str, list[vw_peer.Took]] = {loss: [] for loss in own}
    start: list[vw_peer.Took] = []
    if python is not None:
        text, one, model = folder / "log.txt", folder / "one.txt", folder / "model"
        batch = world.sample(ROWS, 1)
        for path, n in ((text, ROWS), (one, 1)):
            some = (batch.action[:n], -batch.reward[:n], batch.propensity[:n])
            vw_peer.write(path, batch.context[:n, ::2], 10, *some)
    learned(world, log, ROWS, "mtr")  # what is loaded on first use is no work
    for turn in range(ROUNDS):
        for loss, took in own.items():
            took.append(learned(world, log, ROWS, loss)[1])
            if python is not None and (turn == 0 or loss == "mtr"):
                theirs[loss].append(vw_peer.run(python, (*vw_peer.ADF, "--cb_type", loss, "-d", str(text))))
        if python is not None:
            start.append(vw_peer.run(python, (*vw_peer.ADF, "-d", str(one))))
    fresh = np.random.default_rng(5).normal(size=(FRESH, 20))
    figures = {f"rows_per_cpu_s_{loss}": ROWS / middle(took).cpu_s for loss, took in own.items()}
    ratios = {"growth_10x_rows": growth(world, log, large)}
    for loss in own:
        policy, _ = learned(world, log, ROWS, loss)
        candidates = np.broadcast_to(np.eye(10, dtype=np.float32), (FRESH, 10, 10))
        figures[f"value_{loss}"] = value(world, policy.scorer(world.columns(fresh), candidates).argmax(axis=1), fresh)
    if python is not None:
        idle, theirs_mtr, mine = middle(start), middle(theirs["mtr"]), middle(own["mtr"])
        ratios["bandit_rows_vs_vw"] = (theirs_mtr.cpu_s - idle.cpu_s) / mine.cpu_s
        figures |= {
            "rows_vs_vw_wall": (theirs_mtr.wall_s - idle.wall_s) / mine.wall_s,
            "rows_per_cpu_s_vw": ROWS / (theirs_mtr.cpu_s - idle.cpu_s),
            "start_cpu_s_vw": idle.cpu_s,
        }
        figures |= {f"cpu_s_{loss}_vw": took[0].cpu_s for loss, took in theirs.items()}
        vw_peer.run(python, (*vw_peer.ADF, "--cb_type", "mtr", "-d", str(text), "-f", str(model)))
        vw_peer.write(folder / "asked.txt", fresh, 10)
        figures["value_mtr_vw"] = value(world, vw_peer.greedy(python, model, folder / "asked.txt"), fresh)
    return {"ratios": ratios, "figures": figures}


def middle(took: list[vw_peer.Took]) -> vw_peer.Took:
    """The medians."""
    return vw_peer.Took(statistics.median(one.wall_s for one in took), statistics.median(one.cpu_s for one in took))


def growth(world: Logit, small: Path, large: Path) -> float:
    """CPU seconds from ten times the rows over those from the rows, medians of some rounds each."""
    write(world, large, TIMES * ROWS, 1)
    sizes = {small: ROWS, large: TIMES * ROWS}
    took = [[learned(world, path, rows, "mtr")[1] for path, rows in sizes.items()] for _ in range(GROWTH_ROUNDS)]
    large.unlink()
    short, long = map(list, zip(*took, strict=True))
    return middle(long).cpu_s / middle(short).cpu_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversions", action="store_true", help="only the errors on classification data")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="splits of each classification data set")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if asked.conversions:
        python = vw_peer.python()
        errors = {name: conversions.errors(name, python, asked.seeds) for name in conversions.DATA}
        found: dict[str, Any] = {"errors": errors}
    else:
        with tempfile.TemporaryDirectory(prefix="bench-bandits-") as folder:
            measured = measure(Path(folder))
        found = {kind: {name: float(f"{n:.4g}") for name, n in one.items()} for kind, one in measured.items()}
    print(json.dumps({"bench": "learn_bandits", **found, "device": device()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
