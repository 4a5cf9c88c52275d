"""Evolution in CartPole: our carts are Gymnasium's, the batched net is the net, and a run goes on where it ended."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from steersman.cli import main
from steersman.core.errors import ConfigError, DataError
from steersman.flow import evolving
from steersman.learn import evolution as es
from steersman.learn.evolution import stored
from steersman.learn.evolution.population import Net
from steersman.worlds import poles

CARTPOLE, NET = evolving.WORLDS["cartpole"], evolving.net(evolving.WORLDS["cartpole"])
EVOKIT = es.Settings(es.OpenES(step=es.Adam(rate=0.05)), sigma=0.5)
"""What EvoKit's demo is configured with, and a population of 10."""


def net(row: np.ndarray) -> torch.nn.Module:
    first, second = torch.nn.Linear(4, 20), torch.nn.Linear(20, 2)
    tensors = (first.weight, first.bias, second.weight, second.bias)
    parts = np.split(row, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(torch.from_numpy(part.reshape(tensor.shape)))
    return torch.nn.Sequential(first, torch.nn.Tanh(), second)


def in_gymnasium(row: np.ndarray, start: np.ndarray) -> float:
    env, policy = gymnasium.make("CartPole-v1"), net(row)
    env.reset(seed=0)
    env.unwrapped.state = tuple(start)
    seen, total = start.astype(np.float32), 0.0
    while True:
        with torch.no_grad():
            action = int(policy(torch.from_numpy(np.asarray(seen, dtype=np.float32))).argmax())
        seen, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if terminated or truncated:
            return total


def test_carts_move_and_fall_as_in_gymnasium() -> None:
    rng = np.random.default_rng(0)
    begin = poles.starts(64, rng)
    assert np.abs(begin).max() <= 0.05 and begin.std() == pytest.approx(0.05 / np.sqrt(3), rel=0.1)
    envs = [gymnasium.make("CartPole-v1").unwrapped for _ in begin]
    for env, start in zip(envs, begin, strict=True):
        env.reset(seed=0)
        env.state = tuple(start)
    state, falls = begin.T, 0
    for _ in range(40):
        right = rng.random(len(envs)) < 0.5
        state, fell = poles.step(state, right)
        for lane, env in enumerate(envs):
            _, _, terminated, _, _ = env.step(int(right[lane]))
            assert np.array(env.state) == pytest.approx(state[:, lane], abs=1e-12)
            assert terminated == fell[lane]
        falls += int(fell.sum())
        keep = np.flatnonzero(~fell)
        state, envs = state[:, keep], [envs[lane] for lane in keep]
    assert falls > 20


def test_a_population_answers_as_its_nets_do() -> None:
    of, rng = Net((3, 5, 4, 2)), np.random.default_rng(0)
    assert of.size == 5 * 3 + 5 + 4 * 5 + 4 + 2 * 4 + 2
    rows, inputs = rng.normal(size=(6, of.size)).astype(np.float32), rng.normal(size=(6, 7, 3)).astype(np.float32)
    found = of.members(rows)(inputs)
    for member, row in enumerate(rows):
        hidden, at = inputs[member].astype(np.float64), 0
        for n, m in ((3, 5), (5, 4), (4, 2)):
            weights, bias = row[at : at + m * n].reshape(m, n), row[at + m * n : at + m * n + m]
            hidden = hidden @ weights.T + bias
            hidden = np.tanh(hidden) if m != 2 else hidden
            at += m * n + m
        assert found[member] == pytest.approx(hidden, abs=1e-5)
    some = np.array([True, False, True, False, False, True])
    assert of.members(rows).only(some)(inputs[some]) == pytest.approx(found[some], abs=1e-6)
    with pytest.raises(DataError, match="shape"):
        of.members(rows[:, 1:])


def test_episodes_are_those_of_gymnasium() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(24, NET.size)).astype(np.float32)
    begin = poles.starts(24, rng)
    returns = CARTPOLE.play(NET.members(rows), begin)
    assert returns.tolist() == [in_gymnasium(row, start) for row, start in zip(rows, begin, strict=True)]
    assert len(np.unique(returns)) > 5


def test_cartpole_is_solved_and_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    settings, made = es.Settings(), []
    whole = evolving.evolve(CARTPOLE, settings, seed=0, path=tmp_path / "whole", tell=made.append)
    assert whole.solved and whole.evaluations <= 16 * 40
    assert [one.evaluations for one in made] == [16 * (i + 1) for i in range(whole.batches)]
    for _ in range(whole.batches):  # a process that ends after every batch
        evolving.evolve(CARTPOLE, settings, seed=0, batches=1, path=tmp_path / "parts")
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    best = stored.load(tmp_path / "whole").mean.astype(np.float32)
    starts = poles.starts(5, np.random.default_rng(99))
    assert np.mean([in_gymnasium(best, start) for start in starts]) > 400
    with pytest.raises(ConfigError, match="other settings"):
        evolving.evolve(CARTPOLE, EVOKIT, path=tmp_path / "whole")


def test_a_pair_that_meets_the_same_chance_differs_by_less(tmp_path: Path) -> None:
    """Common random numbers: where the noise is small, a start helps or harms both of a pair."""
    spread: dict[evolving.Common, list[float]] = {}
    for batches in (6, 9, 12):
        evolving.evolve(CARTPOLE, es.Settings(), seed=0, batches=batches, path=tmp_path / f"{batches}")
        learned = stored.load(tmp_path / f"{batches}")
        search = es.begin(es.Settings(sigma=0.01), learned.mean, learned.run)
        rows = search.perturbed(es.ask(search, 32, np.random.default_rng(1).bytes))
        common: evolving.Common
        for common in ("none", "pair", "generation"):
            rng = np.random.default_rng(2)
            returns = np.stack(
                [CARTPOLE.play(NET.members(rows), evolving.starts(CARTPOLE, common, 32, rng)) for _ in range(40)]
            )
            spread.setdefault(common, []).append(float(np.var(returns[:, ::2] - returns[:, 1::2], axis=0).mean()))
    for common in ("pair", "generation"):
        assert all(less < 0.75 * own for less, own in zip(spread[common], spread["none"], strict=True))


def test_who_begins_alike_is_an_option_and_a_seed_repeats_it(tmp_path: Path) -> None:
    own, pairs, all_ = (
        evolving.starts(CARTPOLE, name, 6, np.random.default_rng(0)) for name in ("none", "pair", "generation")
    )
    assert np.array_equal(pairs[::2], pairs[1::2]) and len(np.unique(pairs, axis=0)) == 3
    assert len(np.unique(own, axis=0)) == 6 and len(np.unique(all_, axis=0)) == 1
    bodies = []
    for name in ("pair", "pair", "generation", "none"):
        path = tmp_path / f"{len(bodies)}"
        evolving.evolve(CARTPOLE, es.Settings(), seed=4, batches=2, common=name, path=path)
        bodies.append(path.read_bytes())
    assert bodies[0] == bodies[1] and len(set(bodies)) == 3
    with pytest.raises(ConfigError, match="no mirrored pairs"):
        evolving.evolve(CARTPOLE, es.Settings(es.CMA()), batches=1, common="pair")


def test_a_run_without_a_seed_draws_everything_afresh(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        evolving.evolve(CARTPOLE, es.Settings(), batches=1, path=tmp_path / name)
        runs.append(stored.load(tmp_path / name))
    assert runs[0].run != runs[1].run and not np.array_equal(runs[0].mean, runs[1].mean)


def test_es_run_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["es", "run", "--seed", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["solved"] and found["clean"] >= 475
    assert main(["es", "run", "--rounds", "1", "--solver", "pgpe", "--noise", "rank1", "--rate", "0.2"]) == 0
    assert "not solved: without noise" in capsys.readouterr().out
    assert main(["es", "run", "--rounds", "1", "--common", "generation"]) == 0
    assert main(["es", "run", "--rounds", "1", "--common", "pair", "--solver", "cma"]) == 2
    assert main(["es", "run", "--rounds", "0"]) == 2
    assert main(["es", "run", "--rounds", "1", "--episodes", "8"]) == 2  # of a run through a server
    assert main(["es", "run", "--population", "-2"]) == 2
    assert main(["es", "run", "--solver", "cma", "--rate", "1"]) == 2
    assert main(["es", "run", "--solver", "snes", "--step", "adam"]) == 2


def evaluations(settings: es.Settings, population: int, batches: int) -> list[float]:
    found = [
        evolving.evolve(CARTPOLE, settings, population=population, batches=batches, seed=seed) for seed in range(10)
    ]
    return sorted(one.evaluations if one.solved else float("inf") for one in found)


@pytest.mark.slow
def test_the_default_solves_cartpole_in_320_evaluations() -> None:
    found = evaluations(es.Settings(), evolving.POPULATION, 100)
    sys.stdout.write(f"\ncartpole, default: evaluations of 10 seeds {found}\n")
    assert found[8] < float("inf")
    assert statistics.median(found) <= 320


@pytest.mark.slow
def test_evokits_settings_solve_cartpole_on_every_seed() -> None:
    found = evaluations(EVOKIT, 10, 300)
    sys.stdout.write(f"\ncartpole, EvoKit's settings: evaluations of 10 seeds {found}\n")
    assert found[9] < float("inf")
    assert statistics.median(found) <= 1350


def reusing(max_age: int, seed: int) -> float:
    """Fresh evaluations until CartPole is solved, where each batch has the samples of so many versions before, too."""
    solver = es.PGPE(step=es.ClipUp(rate=0.15), sigma_rate=0.0)
    settings, rng = es.Settings(solver, sigma=0.3, max_age=max_age), np.random.default_rng([seed, 7])
    search, past, digests = es.begin(settings, np.zeros(NET.size), rng.bytes(16)), [], {}
    for batch in range(200):
        keys = es.ask(search, 16, rng.bytes)
        clean = np.broadcast_to(search.mean.astype(np.float32), (20, NET.size))
        members = NET.members(np.concatenate([search.perturbed(keys), clean]))
        returns = CARTPOLE.play(members, poles.starts(36, rng))
        if returns[16:].mean() >= poles.SOLVED:
            return 16.0 * batch
        digests[search.generation] = search.digest
        past = [*past, (keys, np.full(16, search.generation), returns[:16])][-1 - max_age :]
        told = es.Told(search.run, *(np.concatenate(parts) for parts in zip(*past, strict=True)), digests)
        search, _ = es.tell(search, told)
    return float("inf")


@pytest.mark.slow
def test_samples_of_four_versions_before_need_no_more_evaluations() -> None:
    fresh, mixed = (sorted(reusing(max_age, seed) for seed in range(10)) for max_age in (0, 4))
    sys.stdout.write(f"\ncartpole, ClipUp: fresh samples {fresh}, with those of four versions before {mixed}\n")
    assert statistics.median(mixed) <= statistics.median(fresh)
    assert mixed[-1] < float("inf")
