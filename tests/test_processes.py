"""Two real processes learn what one learns: noise and moments are those of the whole minibatch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.density import UniformBox
from steersman.learn import nets
from steersman.learn.nets.random import Draws, Noise, Part
from steersman.worlds import tabular
from steersman.worlds.dosing import Dosing

NETS = {"hidden": [16, 16], "steps": 50, "batch_size": 48, "learning_rate": 3e-3}
OVER = {"numbers": ("ddpg", "td3", "td3-bc", "sac", "iql", "awac", "crr", "crr exp", "bc"),
        "candidates": ("discrete-sac", "iql", "awac", "crr", "crr exp"),
        "rare": ("sac", "iql")}  # fmt: skip
"""Kind of log -> learners; what follows a learner is the weight of `crr`."""

CASES = [(kind, name) for kind, names in OVER.items() for name in names]


def log(kind: str) -> Batch:
    """Of units in turn; `rare`: all but three of them are of the first process, so most minibatches have no row of the
    other."""
    if kind == "candidates":
        return tabular.garnet(4, 3, seed=0).sample(300, np.full((4, 3), 1.0 / 3.0), 0)
    world = Dosing(box=Numbers(low=(-1.0, 10.0), high=(3.0, 30.0)), lean=(0.3, -0.2), width=0.4, noise=0.1)
    made, row = world.sample(600, world.policy(UniformBox()), 0), np.arange(600)
    unit = row // 2 if kind == "numbers" else np.where(row < 6, row // 2 * 2 + 1, row // 2 * 2)
    return replace(made, unit=unit, discount=np.where(row % 2, 0.0, 0.5), next=np.where(row % 2, -1, row + 1))


def learned(kind: str, name: str) -> tuple[dict[str, np.ndarray], list[float]]:
    """Weights, and the losses on the way."""
    learner, _, weight = name.partition(" ")
    settings, losses = NETS | ({"weight": weight} if weight else {}), []
    config = learn.configure(learner, settings)
    policy = learn.fit(log(kind), config, 3, lambda done, steps, figures: losses.append(figures["loss"]))
    return policy.scorer.weights(), losses


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first of two processes has written what they learned together."""
    found = tmp_path_factory.mktemp("both")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(found)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_two_processes_learn_what_one_learns(kind: str, name: str, both: Path) -> None:
    weights, losses = learned(kind, name)
    with np.load(both / f"{kind} {name}.npz") as theirs:
        for part, array in weights.items():
            assert theirs[part] == pytest.approx(array, abs=1e-5)
        assert theirs["losses"] == pytest.approx(losses, rel=1e-4, abs=1e-6)
        assert any(not np.array_equal(theirs[part], array) for part, array in weights.items())  # two did it


def test_noise_of_the_parts_of_a_minibatch_is_that_of_the_whole() -> None:
    """Rows may come some times over, as actions do that several are drawn of."""
    rows, size, times = torch.tensor([0, 3, 4]), 6, 2
    for draw in ("uniform", "normal"):
        whole = getattr(Noise(nets.generator(1)), draw)(times * size, 3)
        some = Noise(nets.generator(1))
        some.part = Part(0.5, size, rows)
        found = getattr(some, draw)(times * len(rows), 3)
        assert torch.equal(found, torch.cat([whole[:size][rows], whole[size:][rows]]))
        assert torch.equal(getattr(some, draw)(3, 2), getattr(_after(draw, times * size, 3), draw)(size, 2)[rows])


def _after(draw: str, *shape: int) -> Noise:
    noise = Noise(nets.generator(1))
    getattr(noise, draw)(*shape)
    return noise


def test_the_parts_of_a_minibatch_are_the_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = [Draws(np.arange(50), 8).block(5, 0, 20)]
    whole = [places for places, _ in draws[0]]
    seen = [np.full(8, -1) for _ in whole]
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        for step, (places, part) in enumerate(Draws(np.arange(50), 8).block(5, 0, 20)):
            assert part.rows is not None
            if part.share:
                assert part.share == len(places) / 8
                seen[step][part.rows.numpy()] = places
    assert np.array_equal(seen, whole)


if __name__ == "__main__":
    with learn.together(learn.HERE) as group:
        for of, who in CASES:
            found, losses = learned(of, who)
            if group.first:
                np.savez(Path(sys.argv[1]) / f"{of} {who}.npz", losses=losses, **found)
