"""Steps of EvoTorch and of cmaes that ours must repeat, in evolution_golden.json. Made by

    python tests/evolution_golden.py

with evotorch 0.6.1 and cmaes 0.13.1 in an environment of their own, which benchmarks/peers.py makes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from steersman.core.noise import Noise
from steersman.learn import evolution as es

FILE = Path(__file__).with_suffix(".json")
RUN = bytes(range(16))
SHAPES = ((3, 4), (3,), (2, 3), (2,))
SIZE = 23
PAIRS, BATCHES = 4, 3
EVOTORCH = ("torch==2.13.0", "evotorch==0.6.1", "cma==4.5.0", "cmaes==0.13.1", "gymnasium==1.4.0")


def keys(batch: int) -> np.ndarray:
    return np.arange(2 * PAIRS, dtype=np.uint64) + np.uint64(2 * PAIRS * batch)


def start() -> np.ndarray:
    return np.linspace(-1.0, 1.0, SIZE)


def reward(samples: np.ndarray) -> np.ndarray:
    """A bowl that is not round, without ties."""
    return -np.sum(np.linspace(1.0, 9.0, samples.shape[1]) * (samples - 0.3) ** 2, axis=1)


def noise(batch: int) -> np.ndarray:
    return np.stack([Noise(RUN).normals(int(key), SIZE) for key in keys(batch)]).astype(np.float64)


def gradients() -> list[list[float]]:
    """Large ones, so that the speed is clipped, then small ones."""
    return [(noise(batch)[0] * scale).tolist() for batch, scale in enumerate((1.0, 100.0, 1e-3, 1.0, 1.0))]


def told(search: es.Search, which: np.ndarray, values: np.ndarray) -> es.Told:
    generation = np.full(len(which), search.generation)
    return es.Told(search.run, which, generation, values, {search.generation: search.digest})


def cma_batches(solver: Any) -> list[dict[str, Any]]:
    """Three batches as our search draws them: what the other one is told, too."""
    search, found = es.begin(es.Settings(solver, sigma=0.5), start(), RUN), []
    for batch in range(BATCHES):
        drawn = noise(batch)
        samples = search.mean + search.settings.solver.spread(search.arrays)(drawn)
        found.append({"samples": samples.tolist(), "reward": reward(samples).tolist()})
        search, _ = es.tell(search, told(search, keys(batch), reward(samples)))
    return found


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from peers import Peer, environment

    python = environment("evotorch-peer", "evotorch", EVOTORCH)
    if python is None:
        raise SystemExit("no golden steps without EvoTorch")
    peer = Peer(python, "evotorch_peer.py")
    sigma = np.linspace(0.2, 0.6, SIZE)
    samples = start() + sigma * noise(0)
    batch = {"mean": start().tolist(), "sigma": sigma.tolist(), "samples": samples.tolist()}
    batch["reward"] = reward(samples).tolist()
    golden = {
        "clipup": peer.ask("clipup", gradients=gradients(), rate=0.15)["steps"],
        "snes": peer.ask("snes", **batch, sigma_rate=(3 + np.log(SIZE)) / (5 * np.sqrt(SIZE))),
        "pgpe": peer.ask("pgpe", **batch),
        "cma": peer.ask("cma", mean=start().tolist(), sigma=0.5, batches=cma_batches(es.CMA()))["batches"],
        "sep-cma": peer.ask("sep-cma", mean=start().tolist(), sigma=0.5, batches=cma_batches(es.SepCMA()))["batches"],
    }
    for name in ("cma", "sep-cma"):
        for found in golden[name][:-1]:
            del found["covariance"]
    peer.end()
    FILE.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
