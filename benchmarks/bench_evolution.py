"""Evolution strategies against EvoTorch and pycma: telling a batch, whole populations of small nets, CartPole.

tell: a population of 256 in mirrored pairs; ours makes the noise again from the keys, theirs has the population in
memory, which is what asking cost. Theirs is only the ranks and the gradient, ours the whole update. CartPole: the same
populations, those of a search from its first update until it is solved, an episode for each policy. Copies: what the
server does between the bytes of a request and those of its answer, 256 requests a turn, each by the version itself, or
each by a copy of its own. CPU seconds, one thread, the fastest of interleaved rounds. EvoTorch and pycma run in an
environment of their own, which is made in .cache on the first run; without a registry they are left out. The last line
is one JSON object.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from peers import Peer, device, environment
from steersman import demo
from steersman.core.decision import Problem
from steersman.flow import evolving, online, perturbing
from steersman.learn import evolution as es
from steersman.learn.evolution.population import Net
from steersman.learn.evolution.sums import Kind, Shapes
from steersman.models.graph import Graph
from steersman.models.warehouse import Warehouse
from steersman.serve import plane
from steersman.serve.perturbed import Perturbing

Array = np.ndarray

EVOTORCH = ("torch==2.13.0", "evotorch==0.6.1", "cma==4.5.0", "cmaes==0.13.1", "gymnasium==1.4.0")
POPULATION = 256
CARTPOLE = evolving.WORLDS["cartpole"]
SIZES = {"1e3": (1000, 20), "1e5": (100_000, 5), "1e6": (1_000_000, 2)}
"""Name -> parameters, rounds of ours and steps of theirs in a round."""

ROUNDS = 3


def cpu_s(work: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times


def batch(size: int, noise: Kind, shapes: Shapes = ()) -> tuple[es.Search, es.Told]:
    """A search, and rewards of a population."""
    settings = es.Settings(es.OpenES(), noise=noise, shapes=shapes)
    search = es.begin(settings, np.zeros(size))
    keys = es.ask(search, POPULATION)
    reward = np.random.default_rng(0).normal(size=POPULATION)
    return search, es.Told(search.run, keys, np.zeros(POPULATION, dtype=int), reward, {0: search.digest})


def population_s() -> tuple[float, float]:
    """CPU seconds of an answer of 256 nets 4-20-2 at once, and one by one."""
    net, rng = Net((4, 20, 2)), np.random.default_rng(0)
    members = net.members(rng.normal(size=(POPULATION, net.size)).astype(np.float32))
    inputs = rng.normal(size=(POPULATION, 1, 4)).astype(np.float32)
    alone = [[(weights[i], bias[i, 0]) for weights, bias in members.layers] for i in range(POPULATION)]

    def one_by_one() -> None:
        for row, ((first, bias), (second, last)) in zip(inputs[:, 0], alone, strict=True):
            np.tanh(row @ first + bias) @ second + last

    return cpu_s(lambda: members(inputs), 300), cpu_s(one_by_one, 30)


def searched(path: Path) -> None:
    """Write a population of every generation of a search in CartPole, from the first update until it is solved."""
    file, rows = path.with_suffix(".search"), []
    while evolving.evolve(CARTPOLE, es.Settings(), seed=1, batches=1, path=file).evaluations:
        search = es.load(file)
        rows.append(search.perturbed(es.ask(search, evolving.POPULATION)))
    np.save(path, np.concatenate(rows))


def cartpole_s(path: Path) -> tuple[float, int]:
    """CPU seconds of an episode for each row of a file, in populations as they were; and steps in all."""
    rows, rng, steps, net = np.load(path), np.random.default_rng(0), 0, evolving.net(CARTPOLE)
    begun = time.process_time()
    for start in range(0, len(rows), evolving.POPULATION):
        population = rows[start : start + evolving.POPULATION]
        steps += int(CARTPOLE.play(net.members(population), CARTPOLE.starts(len(population), rng)).sum())
    return time.process_time() - begun, steps


def turns(folder: Path) -> dict[str, Callable[[], None]]:
    """A turn of 256 answers of a net with 20 hidden units: by the version itself, and each by a copy of its own."""
    project = demo.fresh(folder / "served", demo.CARTPOLE_TOML)
    made = online.init(project, demo.CARTPOLE, "", es.Settings(), share=1.0, copies=POPULATION, hidden=(20,))
    version, data = Warehouse(project.warehouse_url).read(demo.CARTPOLE, made.number)
    graph, problem = Graph(data), project.policy(demo.CARTPOLE).problem
    rng = np.random.default_rng(0)
    bodies = [[_body(f"u{unit}", step, problem, rng) for unit in range(POPULATION)] for step in range(1, 9)]

    def answered(status: int, body: bytes) -> None:
        if status != 200:
            raise RuntimeError(body.decode())

    def served(copies: Perturbing | None) -> Callable[[], None]:
        ids, soon = itertools.count(), list[Callable[[], object]]()
        live = plane.Live(version, problem, graph.scores, graph.rowwise, copies)
        serving = plane.Plane(
            lambda *_: live,
            lambda _, done: done(None),
            now=lambda: time.time_ns() // 1000,
            new_id=lambda: f"{next(ids)}",
        )
        serving.attach(soon.append, lambda call, *given: call(*given))
        serving.swap(demo.CARTPOLE, made.number)

        again = itertools.cycle(bodies)

        def turn() -> None:
            for body in next(again):
                serving.decide(demo.CARTPOLE, body, answered)
            soon.pop()()

        return turn

    return {"one": served(None), "copies": served(perturbing.of(project, demo.CARTPOLE, made.number, graph))}


def _body(unit: str, step: int, problem: Problem, rng: np.random.Generator) -> bytes:
    context = dict(zip(problem.context, rng.normal(size=len(problem.context)).tolist(), strict=True))
    return json.dumps({"unit": unit, "step": step, "context": context}).encode()


def measure(peer: Peer | None, folder: Path) -> dict[str, dict[str, float]]:
    """Ratios and figures."""
    own: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    searched(folder / "rows.npy")
    served = turns(folder)
    for turn in range(ROUNDS):
        for name, answer in served.items():
            own.setdefault(f"answer_{name}", []).append(cpu_s(answer, 20) / POPULATION)
        for name, (size, times) in SIZES.items():
            search, told = batch(size, "signs")
            own.setdefault(f"tell_{name}", []).append(cpu_s(partial(es.tell, search, told), times))
            if size >= 100_000:
                side = round(size**0.5)
                shapes = ((side, size // side), (size - side * (size // side),))
                search, told = batch(size, "rank1", shapes if shapes[1][0] else shapes[:1])
                own.setdefault(f"tell_{name}_rank1", []).append(cpu_s(partial(es.tell, search, told), times))
            if peer is not None and (size < 1_000_000 or turn == 0):  # 1 GB and ten seconds
                found = peer.ask("ask-tell", size=size, population=POPULATION, times=times)
                theirs.setdefault(f"tell_{name}", []).append(found["tell_s"])
                theirs.setdefault(f"ask_and_tell_{name}", []).append(found["step_s"])
        if peer is not None:
            found = peer.ask("pycma", size=1000, population=POPULATION, times=5)
            theirs.setdefault("pycma_tell_1e3", []).append(found["tell_s"])
        for name, seconds in zip(("population", "loop"), population_s(), strict=True):
            own.setdefault(name, []).append(seconds)
        spent, steps = cartpole_s(folder / "rows.npy")
        own.setdefault("cartpole_step", []).append(spent / steps)
        if peer is not None:
            found = peer.ask("cartpole", path=str(folder / "rows.npy"), population=evolving.POPULATION)
            theirs.setdefault("cartpole_step", []).append(found["cpu_s"] / found["steps"])
        print(f"round {turn + 1} of {ROUNDS}", file=sys.stderr)
    rows = len(np.load(folder / "rows.npy"))
    mine = {name: min(each) for name, each in own.items()}
    figures = {f"{name}_ms": 1000 * mine[name] for name in mine if name.startswith("tell")}
    figures |= {
        "population_us": 1e6 * mine["population"],
        "answer_of_one_us": 1e6 * mine["answer_one"],
        "answer_of_copies_us": 1e6 * mine["answer_copies"],
        "cartpole_evals_per_s": rows / (mine["cartpole_step"] * steps),
        "cartpole_steps_per_s": 1 / mine["cartpole_step"],
        "tell_peak_mb_1e6": peak_mb(1_000_000),
        "evals_to_solve_median": statistics.median(
            evolving.evolve(CARTPOLE, es.Settings(), seed=seed).evaluations for seed in range(10)
        ),
    }
    ratios = {
        "population_vs_loop": mine["loop"] / mine["population"],
        "copies_vs_one": mine["answer_one"] / mine["answer_copies"],
    }
    if peer is not None:
        other = {name: min(each) for name, each in theirs.items()}
        ratios |= {f"tell_{name}_vs_evotorch": other[f"tell_{name}"] / mine[f"tell_{name}"] for name in SIZES}
        ratios |= {
            "tell_1e6_rank1_vs_evotorch": other["tell_1e6"] / mine["tell_1e6_rank1"],
            "tell_1e3_vs_pycma": other["pycma_tell_1e3"] / mine["tell_1e3"],
            "cartpole_evals_per_s_vs_evotorch": other["cartpole_step"] / mine["cartpole_step"],
        }
        figures |= {f"{name}_ms_evotorch": 1000 * seconds for name, seconds in other.items() if "pycma" not in name}
    return {"ratios": rounded(ratios), "figures": rounded(figures)}


def peak_mb(size: int) -> float:
    """Memory that telling a batch takes at most, beside the search before and the one after."""
    search, told = batch(size, "signs")
    tracemalloc.start()
    es.tell(search, told)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 2**20


def rounded(found: dict[str, float]) -> dict[str, float]:
    """To four digits."""
    return {name: float(f"{number:.4g}") for name, number in found.items()}


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    python = environment("evotorch-peer", "evotorch", EVOTORCH)
    peer = None if python is None else Peer(python, "evotorch_peer.py")
    with tempfile.TemporaryDirectory(prefix="bench-evolution-") as folder:
        found = measure(peer, Path(folder))
    if peer is not None:
        peer.end()
    print(json.dumps({"bench": "evolution", **found, "device": device()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
