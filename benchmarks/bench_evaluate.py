"""Evaluation against Open Bandit Pipeline: the same definitions, the same logs, the same work; and memory.

The pipeline runs in an environment of its own, which is made in .cache on the first run; without a registry it is
left out and the rest is measured. Times are CPU seconds, of interleaved rounds, from arrays in memory to printed
numbers. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from peers import CACHE, Peer, device, environment
from steersman.core.batch import Batch
from steersman.core.errors import SupportError
from steersman.core.features import Category, Encoder
from steersman.core.features.transforms import continuous
from steersman.evaluate import ESTIMATORS, Evidence, Paths, Settings, Terms, evaluate, one_step
from steersman.evaluate.evidence import weights
from steersman.evaluate.intervals import bootstrap, estimate
from steersman.worlds import open_bandit, tabular

Array = np.ndarray

OBP = "obp==0.5.7"
NEEDS = (
    "numpy==1.26.4", "scipy==1.13.1", "pandas==2.3.3", "scikit-learn==1.3.2", "torch==2.13.0", "PyYAML==6.0.4",
    "tqdm==4.70.1", "matplotlib==3.10.9", "seaborn==0.13.2",
)  # fmt: skip
"""What obp imports, in the newest versions with which it runs: it asks for older ones, and says so of Python 3.11."""

ROUNDS = 2
SAME = 1e-12
DRAWS = 2000
STRENGTHS, MIXES = (0.5, 1.0, 10.0, 100.0, float("inf")), (0.0, 0.01, 0.1, 1.0)
TEN = {
    "dm": "dm", "ips": "ipw", "snips": "snipw", "dr": "dr", "sndr": "sndr", "cips": "ipw-tuned",
    "switch-dr": "switch-dr", "dros": "dr-os", "sg-ips": "sg-ipw", "sg-dr": "sg-dr",
}  # fmt: skip
"""Our name -> theirs."""

DIGITS, SYNTHETIC, EMBEDDED = 30, 20, 10
LARGE, ITEMS = 1_000_000, 80


# -- the real data -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Log:
    """A log of the Open Bandit data and what both sides are given: rows and actions in the order of our Batch.

    Attributes:
        position: [N] i64, which of three places the row is about.
        table: [3, K] f64, the target by position.
        q: [N, K, 3] f64, the pipeline's model of the click rate.
    """

    name: str
    arrays: Batch
    position: Array
    table: Array
    q: Array


def logs(pipeline: Peer, archive: Path, folder: Path) -> Iterator[tuple[Log, float]]:
    """The six logs, each with the CPU seconds that the pipeline's own model took."""
    for campaign in open_bandit.ITEMS:
        names = open_bandit.items(campaign)  # type: ignore[arg-type]
        order = np.array([int(item) for item in names])
        for behavior in ("random", "bts"):
            name, columns, target, model = f"{behavior}/{campaign}", *(
                str(folder / f"{kind}.npz") for kind in ("columns", "target", "model")
            )  # fmt: skip
            table = np.full((3, len(order)), 1.0 / len(order))
            if behavior == "random":
                table = open_bandit.action_probabilities(*open_bandit.prior(archive, campaign))  # type: ignore[arg-type]
            np.savez(target, table=table)
            pipeline.ask("load", name=name, behavior=behavior, campaign=campaign, out=columns)
            took = pipeline.ask("model", name=name, table=target, out=model)["cpu_s"]
            ours = open_bandit.campaign(archive, behavior, campaign)  # type: ignore[arg-type]
            with np.load(columns) as theirs, np.load(model) as answers:
                yield read(name, ours, dict(theirs), table[:, order], answers["q"][:, order]), took


def read(name: str, log: open_bandit.Campaign, theirs: dict[str, Array], table: Array, q: Array) -> Log:
    """Our reading of a log, which must be theirs; what they tell in their order of the rows, in ours."""
    mine = np.argsort(theirs["order"])
    item, position = log.item.astype(int), log.context["position"].astype(int) - 1
    for ours, key in ((item, "action"), (position, "position"), (log.click, "reward"), (log.propensity, "pscore")):
        if not np.allclose(ours, theirs[key][mine], rtol=1e-12, atol=0.0):  # pandas reads some decimals an ulp off
            raise SystemExit(f"{name}: the two readers disagree about {key}")
    arrays = replace(open_bandit.batch(log), propensity=theirs["pscore"][mine])  # so that ties are ties for both
    return Log(name, arrays, position, table, q[mine])


def evidence(log: Log) -> Evidence:
    """What the estimators look at, from the arrays (checked as every Batch is) and the pipeline's model."""
    made, target = replace(log.arrays), log.table[log.position]
    rows = np.arange(len(made))
    q = log.q[rows, :, log.position]
    v = np.einsum("nk,nk->n", target, q)
    return Evidence(Paths.of(made), made.reward, weights(made, target), q[rows, made.action], v)


def terms(log: Log) -> dict[str, Terms]:
    found = evidence(log)
    return {name: ESTIMATORS[name].terms(found) for name in TEN}


def points(log: Log) -> str:
    return "\n".join(f"{name} {found.value:.6f}" for name, found in terms(log).items())


def intervals(log: Log) -> str:
    """Values too: they come from the same terms."""
    found = [estimate(t, estimator=name, metric="reward", level=0.95) for name, t in terms(log).items()]
    return "\n".join(f"{e.estimator} {e.value:.6f} [{e.low:.6f}, {e.high:.6f}]" for e in found)


def whole(log: Log) -> str:
    """What a user gets of ten estimators: our own model, cross-fitted, values, intervals, lift and support."""
    found = evaluate(replace(log.arrays), log.table[log.position], Settings(estimators=tuple(TEN)), 0)
    return "\n".join(f"{e.estimator} {e.value:.6f} [{e.low:.6f}, {e.high:.6f}]" for e in found.estimates)


def identified(log: Log) -> bool:
    """Whether we give numbers at all: not where two effective rows of 10,000 hold all weight (bts/women)."""
    try:
        whole(log)
    except SupportError:
        return False
    return True


def bootstraps(log: Log) -> str:
    """BCa intervals of the four estimators that are means or ratios."""
    found = evidence(log)
    one, product = np.ones(len(log.arrays)), found.weight * found.reward
    surprise = found.weight * (found.reward - found.q)
    ends = [
        bootstrap(np.stack([product, one]), quotient, 0.95, 0, DRAWS),
        bootstrap(np.stack([product, found.weight]), quotient, 0.95, 0, DRAWS),
        bootstrap(np.stack([found.v + surprise, one]), quotient, 0.95, 0, DRAWS),
        bootstrap(np.stack([found.v, one, surprise, found.weight]), lambda s: s[0] / s[1] + s[2] / s[3], 0.95, 0,
                  DRAWS),
    ]  # fmt: skip
    return "\n".join(f"[{low:.6f}, {high:.6f}]" for low, high in ends)


def quotient(sums: Array) -> Array:
    return sums[0] / sums[1]


def definitions(log: Log) -> dict[str, float]:
    """Values by definitions that both have, under the pipeline's names."""
    found = evidence(log)
    values = {TEN[name]: ESTIMATORS[name].terms(found).value for name in ("dm", "ips", "snips", "dr", "sndr")}
    limited = {"ipw": one_step.clipped_ips, "switch-dr": one_step.switch_dr, "dr-os": one_step.dros}
    mixed = {"sg-ipw": one_step.sub_gaussian_ips, "sg-dr": one_step.sub_gaussian_dr}
    for strengths, estimators in ((STRENGTHS, limited), (MIXES, mixed)):
        for strength in strengths:
            for name, estimator in estimators.items():
                values[f"{name} {strength:g}"] = estimator(found, one_step.fixed(strength)).value
    return values


def cpu(work: Callable[[], object], times: int = 1) -> float:
    """Median CPU seconds."""
    taken = []
    for _ in range(times):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def against(pipeline: Peer, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and figures of the real data: six logs, ROUNDS times each."""
    named = os.environ.get(open_bandit.VARIABLE, "")
    archive = open_bandit.fetch(CACHE, os.environ if Path(named).is_file() else {})  # it is downloaded if need be
    away = 0.0
    taken: dict[str, list[float]] = {}
    for log, model in logs(pipeline, archive, folder):
        theirs = pipeline.ask("definitions", name=log.name, strengths=STRENGTHS, mixes=MIXES)["values"]
        ours = definitions(log)
        away = max(away, *(abs(ours[name] - value) for name, value in theirs.items()))
        works: dict[str, Callable[[Log], str]] = {"points": points, "intervals": intervals}
        if identified(log):
            works["whole"] = whole
        for _ in range(ROUNDS):
            peer = {
                "points": pipeline.ask("points", name=log.name)["cpu_s"],
                "intervals": pipeline.ask("intervals", name=log.name, draws=DRAWS)["cpu_s"],
            }
            peer["whole"] = peer["points"] + peer["intervals"] + model
            for kind, work in works.items():
                own = cpu(lambda work=work, log=log: work(log), 5)  # type: ignore[misc]
                taken.setdefault(f"{kind}_s", []).append(own)
                taken.setdefault(f"obp_{kind}_s", []).append(peer[kind])
                taken.setdefault(f"{kind}_speed_vs_obp", []).append(peer[kind] / own)
            taken.setdefault("bootstrap_of_4_s", []).append(cpu(lambda log=log: bootstraps(log)))  # type: ignore[misc]
    if not away <= SAME:
        raise SystemExit(f"the same definitions give values that differ by {away:.2g}, more than {SAME:g}")
    middle = {name: statistics.median(values) for name, values in taken.items()}
    ratios = {name: round(value, 1) for name, value in middle.items() if name.endswith("obp")}
    seconds = {name: round(value, 4) for name, value in middle.items() if name.endswith("_s")}
    return ratios, {"same_definition_max_abs_diff": away} | seconds


# -- their protocols -----------------------------------------------------------------------------------------------


def protocol(pipeline: Peer, do: str, runs: int, names: dict[str, str], folder: Path) -> dict[str, float]:
    """Mean relative errors over the runs of a protocol, ours and theirs on the same logs.

    Args:
        names: our estimators -> what they call theirs.
    """
    ours: dict[str, list[float]] = {name: [] for name in names}
    theirs: dict[str, list[float]] = {name: [] for name in names}
    out = str(folder / f"{do}.npz")
    for run in range(runs):
        errors = pipeline.ask(do, run=run, out=out)["errors"]
        with np.load(out) as columns:
            made, target, truth = numbers_batch(dict(columns)), columns["target"], float(columns["truth"])
        found = evaluate(made, target, Settings(estimators=tuple(names)), run)
        for value in found.estimates:
            if value.estimator in names:
                ours[value.estimator].append(abs(value.value / truth - 1.0))
        for name, other in names.items():
            theirs[name].append(abs(errors[other]))
    told = {f"{do}_{key(name)}_error": round(statistics.mean(values), 5) for name, values in ours.items()}
    return told | {
        f"{do}_{key(name)}_error_obp": round(statistics.mean(values), 5) for name, values in theirs.items()
    }  # fmt: skip


def key(name: str) -> str:
    return name.replace("-", "_")


def numbers_batch(columns: dict[str, Array]) -> Batch:
    """A log whose context is numbers, encoded as the product encodes them."""
    numbers, (n, k) = columns["context"], columns["target"].shape
    names = tabular.names("x", numbers.shape[1])
    fields = [
        continuous(name, n, float(column.mean()), float(column.std()))
        for name, column in zip(names, numbers.T, strict=True)
    ]
    encoder = Encoder(context=tuple(fields), actions=tabular.names("a", k))
    raw = encoder.raw_context([dict(zip(names, row, strict=True)) for row in numbers.tolist()])
    return Batch(
        encoder=encoder,
        context=encoder.encode_context(raw),
        candidates=np.broadcast_to(np.eye(k, dtype=np.float32), (n, k, k)),
        mask=np.ones((n, k), dtype=bool),
        action=columns["action"].astype(np.int64),
        propensity=columns["pscore"].astype(np.float64),
        reward=columns["reward"].astype(np.float64),
        metrics=np.zeros((n, 0)),
        discount=np.zeros(n),
        next=np.full(n, -1, dtype=np.int64),
        unit=np.arange(n),
    )


def embedded(pipeline: Peer, folder: Path) -> dict[str, float]:
    """Root mean squared relative error of MIPS: 50 actions of five kinds, and the kind tells the reward."""
    kinds = np.arange(50) % 5
    plain = tabular.bandit(4, 50, chi2=8.0, noise=0.3, seed=1)
    world = tabular.Bandit(plain.starts, np.tile(0.2 * kinds, (4, 1)), plain.behavior, plain.target, 0.3)
    truth, path = world.value(world.target), str(folder / "embedded.npz")
    errors: dict[str, list[float]] = {"mips": [], "ips": [], "obp": []}
    for run in range(EMBEDDED):
        log = world.sample(1000, run)
        made = with_kind(log, kinds)
        found = evaluate(
            made, tabular.rows(log, world.target), Settings(estimators=("ips", "mips"), headline="ips"), run
        )
        for value in found.estimates:
            if value.metric == "reward":
                errors[value.estimator].append(value.value / truth - 1.0)
        np.savez(
            path, context=log.context, action=log.action, reward=log.reward, embed=kinds[log.action][:, None],
            behavior=tabular.rows(log, world.behavior), target=tabular.rows(log, world.target),
        )  # fmt: skip
        errors["obp"].append(pipeline.ask("embedded", log=path)["value"] / truth - 1.0)
    rmse = {name: round(float(np.sqrt(np.mean(np.square(found)))), 5) for name, found in errors.items()}
    return {"mips_error": rmse["mips"], "mips_error_obp": rmse["obp"], "mips_error_of_ips": rmse["ips"]}


def with_kind(log: Batch, kinds: Array) -> Batch:
    """The same log with a feature of the candidates: their kind."""
    n, k = log.mask.shape
    own = np.zeros((k, k + 7), dtype=np.float32)  # 5 kinds, unseen, missing
    own[:, :k] = np.eye(k)
    own[np.arange(k), k + kinds] = 1.0
    encoder = Encoder(
        context=log.encoder.context, candidate=(Category("kind", tuple("01234")),), actions=log.encoder.actions
    )
    return replace(log, encoder=encoder, candidates=np.broadcast_to(own, (n, *own.shape)))


# -- memory --------------------------------------------------------------------------------------------------------


def large() -> dict[str, float]:
    """A million rows of 80 candidates through every estimator that fits; peak memory of this process in MB."""
    world, rng = tabular.bandit(20, ITEMS, chi2=5.0, noise=None, seed=0), np.random.default_rng(0)
    state, action = rng.integers(0, 20, LARGE), np.empty(LARGE, dtype=np.int64)
    for s in range(20):  # not all rows at once: their probabilities are as large as the target
        rows = np.flatnonzero(state == s)
        action[rows] = rng.choice(ITEMS, len(rows), p=world.behavior[s])
    log = tabular.batch(
        world.behavior,
        state=state,
        action=action,
        reward=(rng.random(LARGE) < world.mean[state, action]).astype(np.float64),
        discount=np.zeros(LARGE),
        next=np.full(LARGE, -1, dtype=np.int64),
        unit=np.arange(LARGE),
    )
    target = world.target[state]
    start = time.process_time()
    found = evaluate(log, target, Settings(), 0)
    return {
        "cpu_s": round(time.process_time() - start, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "estimators": sum(value.metric == "reward" for value in found.estimates),
    }


def alone() -> dict[str, float]:
    """`large` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--large"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure(python: Path | None, folder: Path) -> dict[str, Any]:
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    if python is not None:
        pipeline = Peer(python, "obp_peer.py")
        ratios, figures = against(pipeline, folder)
        names = {"dm": "dm", "ips": "ipw", "snips": "snipw", "dr": "dr", "sndr": "sndr"}
        figures |= protocol(pipeline, "digits", DIGITS, names, folder)
        names |= {"mrdr": "mrdr", "balanced-ips": "b-ipw"}
        figures |= protocol(pipeline, "synthetic", SYNTHETIC, names, folder)
        figures |= embedded(pipeline, folder)
        pipeline.end()
    found = alone()
    figures |= {"peak_mb_1m_x_80": found["peak_mb"], "cpu_s_1m_x_80": found["cpu_s"]}
    return {"bench": "evaluate", "ratios": ratios, "figures": figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="only the memory of a million rows, in this process")
    asked = parser.parse_args()
    if asked.large:
        print(json.dumps(large()))
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    python = environment("obp-venv", "obp", NEEDS, ("--no-deps", "--ignore-requires-python", OBP))
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as folder:
        print(json.dumps(measure(python, Path(folder)) | {"device": device()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
