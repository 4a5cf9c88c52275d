"""Learners against d3rlpy and torchrl: gradient steps a second on the same transitions with the same nets; sampling.

100,000 transitions of 16 numbers, 4 named actions or 4 numbers as actions, nets of 256 and 256, minibatches of 256, one
thread. Each peer runs in an environment of its own, which is made in .cache on the first run; without a registry it is
left out and the rest is measured. Times are CPU seconds a step, sampling included. In every round each side makes some
steps, a quarter of a second or so, right after the others: what else the machine does meanwhile slows all of them. The
ratio is the median of those of the rounds. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import learn_bandits
from peers import Peer, device, environment
from steersman import learn
from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.features import Continuous, Encoder
from steersman.learn import nets
from steersman.learn.returns import n_step

Array = np.ndarray

ROWS, LENGTH, COLUMNS, ACTIONS, SIZE, HIDDEN = 100_000, 100, 16, 4, 256, (256, 256)
RATE, DISCOUNT = 1e-4, 0.99
ROUNDS, THEIRS, BARE = 15, 30, 100
PEERS = {
    "d3rlpy": ("torch==2.13.0", "d3rlpy==2.8.1"),
    "torchrl": ("torch==2.13.0", "torchrl==0.14.1", "tensordict==0.14.3"),
}
"""Peer -> what is installed for it; its script is named after it."""

VALUES = {
    "hidden": HIDDEN,
    "steps": (1 + ROUNDS) * nets.REPORT,
    "batch_size": SIZE,
    "learning_rate": RATE,
    "n_step": 1,
}
SAME: dict[str, tuple[str, dict[str, object]]] = {
    "dqn": ("dqn", {"target": "max"}),
    "double-dqn": ("dqn", {"target": "double"}),
    "cql": ("cql", {"target": "double", "penalty": 1.0}),
    "ddpg": ("ddpg", {}),
    "td3-bc": ("td3-bc", {}),
    "sac": ("sac", {}),
    "iql": ("iql", {}),
}
"""Their learner -> ours, and settings that make it the same work."""

DISCRETE = ("dqn", "double-dqn", "cql")
"""Those of them that learn over named actions."""


def transitions(seed: int = 0) -> dict[str, Array]:
    """What both sides learn from: noise, for nothing here depends on what is learned."""
    rng = np.random.default_rng(seed)
    return {
        "context": rng.normal(size=(ROWS, COLUMNS)).astype(np.float32),
        "action": rng.integers(0, ACTIONS, ROWS),
        "numbers": rng.uniform(-1.0, 1.0, size=(ROWS, ACTIONS)).astype(np.float32),
        "reward": rng.normal(size=ROWS).astype(np.float32),
        "terminal": (np.arange(ROWS) % LENGTH == LENGTH - 1).astype(np.float32),
    }


def batch_of(data: dict[str, Array], *, discrete: bool) -> Batch:
    """The transitions as a Batch. Each of its numbers is two columns, the second one says whether it is missing."""
    over = data["terminal"] > 0
    box = Numbers(low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS)
    fields = tuple(Continuous(f"number{i}", 0.0, 1.0) for i in range(COLUMNS // 2))
    names = tuple("abcd")
    k = ACTIONS if discrete else 0
    return Batch(
        encoder=Encoder(context=fields, actions=names) if discrete else Encoder(context=fields, numbers=box),
        context=data["context"],
        candidates=np.broadcast_to(np.eye(k, dtype=np.float32), (ROWS, k, k)),
        mask=np.broadcast_to(np.ones(k, dtype=bool), (ROWS, k)),
        action=data["action"] if discrete else data["numbers"],
        propensity=np.full(ROWS, 1.0 / ACTIONS if discrete else 2.0**-ACTIONS),
        reward=data["reward"].astype(np.float64),
        metrics=np.empty((ROWS, 0)),
        discount=np.where(over, 0.0, 1.0),
        next=np.where(over, -1, np.arange(1, ROWS + 1)),
        unit=np.arange(ROWS) // LENGTH,
    )


Side = Callable[[], float]
"""Does some of its work: CPU seconds a step."""

Rounds = list[list[float]]
"""Of each round the CPU seconds a step of every side."""


def rounds_of(batch: Batch, learner: str, settings: dict[str, object], others: list[Side]) -> Rounds:
    """CPU seconds a step of a learner and of the others, of each round after a first one that only warms up.

    The learner makes one training, of which every report is the end of a round: the others then make theirs.
    """
    found: Rounds = []
    begun = time.process_time()

    def reported(done: int, steps: int, figures: dict[str, float]) -> None:
        nonlocal begun
        found.append([(time.process_time() - begun) / nets.REPORT, *(other() for other in others)])
        begun = time.process_time()

    learn.fit(batch, learn.configure(learner, settings), 0, reported)
    return found[1:]


def bare_loop(data: dict[str, Array]) -> Side:
    """DQN written by hand, which does nothing else: no masks, no candidates, no reports, no checks."""
    source = torch.Generator().manual_seed(0)
    rows = np.flatnonzero(data["terminal"][:-1] == 0)
    now = torch.from_numpy(np.concatenate([data["context"], np.roll(data["context"], -1, axis=0)], axis=1)[rows])
    action, reward = torch.from_numpy(data["action"][rows]), torch.from_numpy(data["reward"][rows])
    go_on = torch.full((len(rows),), DISCOUNT)
    widths = (COLUMNS, *HIDDEN, ACTIONS)
    torch.manual_seed(0)
    net, slow = (
        nn.Sequential(
            nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]), nn.ReLU(),
            nn.Linear(widths[2], widths[3]),
        )
        for _ in range(2)
    )  # fmt: skip
    slow.load_state_dict(net.state_dict())
    weights: list[torch.Tensor] = list(net.parameters())
    followers: list[torch.Tensor] = list(slow.parameters())
    adam = torch.optim.Adam(weights, lr=RATE, fused=True)

    def side() -> float:
        begun = time.process_time()
        for _ in range(BARE):
            place = torch.randint(len(rows), (SIZE,), generator=source)
            both = now[place]
            value = net(both[:, :COLUMNS]).gather(1, action[place][:, None])[:, 0]
            with torch.no_grad():
                target = reward[place] + go_on[place] * slow(both[:, COLUMNS:]).amax(dim=1)
            adam.zero_grad(set_to_none=True)
            nn.functional.mse_loss(value, target).backward()
            adam.step()
            with torch.no_grad():
                torch._foreach_lerp_(followers, weights, 0.005)
        return (time.process_time() - begun) / BARE

    return side


def sampling_s(batch: Batch) -> float:
    """CPU seconds of drawing and gathering one minibatch."""
    returns = n_step(batch, DISCOUNT, 1)
    gather, draws, times = nets.gatherer(batch, returns, 1.0), nets.Draws(batch.unit[returns.row], SIZE), 2000
    begun = time.process_time()
    for done in range(0, times, nets.REPORT):
        for places, _ in draws.block(0, done, nets.REPORT):
            gather(places)
    return (time.process_time() - begun) / times


def cpu_s(peer: Peer, do: str, told: dict[str, Any]) -> float:
    """What a peer says of some of its steps."""
    found: float = peer.ask(do, **told)["cpu_s"]
    return found


def measure(peers: dict[str, Peer], path: Path) -> dict[str, Rounds]:
    """What is measured -> its rounds: ours, those of the peers that are there, and of DQN, last, the bare loop's."""
    data = transitions()
    np.savez(path, allow_pickle=False, **data)
    batches = {discrete: batch_of(data, discrete=discrete) for discrete in (True, False)}

    def theirs(do: str, **more: str) -> list[Side]:
        told = {"times": THEIRS, "path": str(path), "batch_size": SIZE, **more}
        return [partial(cpu_s, peer, do, told) for peer in peers.values()]

    torch.set_num_threads(1)
    found: dict[str, Rounds] = {}
    for name, (learner, settings) in SAME.items():
        others = theirs("steps", learner=name) + ([bare_loop(data)] if name == "dqn" else [])
        found[name] = rounds_of(batches[name in DISCRETE], learner, VALUES | settings, others)
        print(f"{name}: {ROUNDS} rounds", file=sys.stderr)
    sides = [lambda: sampling_s(batches[True]), *theirs("sample")]
    found["sampling"] = [[side() for side in sides] for _ in range(1 + ROUNDS)][1:]
    return found


def compared(found: dict[str, Rounds], peers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Ratios and figures of what was measured.

    Args:
        peers: that were there, in their order.
    """
    figures = {f"{name}_ms": 1000 * statistics.median(one[0] for one in rounds) for name, rounds in found.items()}
    figures["bare_loop_ms"] = 1000 * statistics.median(one[-1] for one in found["dqn"])
    ratios = {"dqn_vs_bare_loop": statistics.median(one[-1] / one[0] for one in found["dqn"])}
    for at, peer in enumerate(peers, start=1):
        for name, rounds in found.items():
            low, faster, high = statistics.quantiles((one[at] / one[0] for one in rounds), n=4)
            figures |= {f"{name}_vs_{peer}": faster, f"{name}_vs_{peer}_low": low, f"{name}_vs_{peer}_high": high}
            figures[f"{name}_ms_{peer}"] = 1000 * statistics.median(one[at] for one in rounds)
        steps = [figures[f"{name}_vs_{peer}"] for name in SAME]
        ratios |= {
            f"dqn_steps_vs_{peer}": figures[f"dqn_vs_{peer}"],
            f"steps_vs_{peer}_median": statistics.median(steps),
            f"steps_vs_{peer}_min": min(steps),
            f"sampling_vs_{peer}": figures[f"sampling_vs_{peer}"],
        }
    return {"ratios": rounded(ratios), "figures": rounded(figures)}


def rounded(found: dict[str, float]) -> dict[str, float]:
    """To four digits."""
    return {name: float(f"{number:.4g}") for name, number in found.items()}


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    pythons = {name: environment(f"{name}-venv", name, installs) for name, installs in PEERS.items()}
    peers = {name: Peer(python, f"{name}_peer.py") for name, python in pythons.items() if python is not None}
    with tempfile.TemporaryDirectory(prefix="bench-learn-") as folder:
        found = compared(measure(peers, Path(folder) / "transitions.npz"), list(peers))
        for kind, numbers in learn_bandits.measure(Path(folder)).items():
            found[kind] |= rounded(numbers)
    for peer in peers.values():
        peer.end()
    print(json.dumps({"bench": "learn", **found, "device": device()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
