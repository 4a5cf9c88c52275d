"""Searches against closed forms, against torch, EvoTorch and cmaes, and against what may come back from a log."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import evolution_golden as golden
from steersman.core.errors import ConfigError, DataError, Error, NotFoundError
from steersman.core.noise import Noise, pairs
from steersman.learn import evolution as es
from steersman.learn.evolution import ranks, stored, sums
from steersman.learn.evolution.evidence import Sight, importance

RUN = golden.RUN
GOLDEN = json.loads(golden.FILE.read_text())
SOLVERS = [
    (es.OpenES(step=es.Adam(rate=0.05)), "normals", 400),
    (es.OpenES(step=es.SGD(rate=0.02)), "signs", 400),
    (es.PGPE(), "normals", 400),
    (es.PGPE(sigma_rate=0.0), "signs", 400),
    (es.PGPE(sigma_rate=0.0), "rank1", 400),
    (es.SNES(), "normals", 400),
    (es.SepCMA(), "normals", 400),
    (es.CMA(), "normals", 400),
    (es.ARS(), "signs", 400),
]
IDS = [f"{solver.__struct_config__.tag}-{kind}" for solver, kind, _ in SOLVERS]


def seeded(seed: int = 0) -> Any:
    return np.random.default_rng(seed).bytes


def told(search: es.Search, keys: np.ndarray, reward: np.ndarray, block: np.ndarray | None = None) -> es.Told:
    return replace(golden.told(search, keys, reward), block=block)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


# steps of others


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (es.Adam(rate=0.05), lambda ps: torch.optim.Adam(ps, lr=0.05, maximize=True)),
        (es.SGD(rate=0.05, momentum=0.9), lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, maximize=True)),
    ],
)
def test_four_tensors_step_as_in_torch(rule: Any, make: Any) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in golden.SHAPES]
    theirs, memory, ours = make(parameters), rule.begin(golden.SIZE), np.zeros(golden.SIZE)
    for gradient in map(np.array, golden.gradients()):
        at = 0
        for parameter in parameters:
            parameter.grad = torch.from_numpy(gradient[at : at + parameter.numel()].reshape(parameter.shape))
            at += parameter.numel()
        theirs.step()
        memory, change = rule.step(memory, gradient)
        ours = ours + change
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).numpy()
        assert ours == pytest.approx(flat, abs=1e-9)


def test_clipup_steps_as_in_evotorch() -> None:
    rule = es.ClipUp(rate=0.15)
    memory = rule.begin(golden.SIZE)
    for gradient, step in zip(golden.gradients(), GOLDEN["clipup"], strict=True):
        memory, change = rule.step(memory, np.array(gradient))
        assert change == pytest.approx(np.array(step), abs=1e-9)


@pytest.mark.parametrize("rule", [es.SGD(), es.Adam(), es.ClipUp()])
def test_no_gradient_is_no_step(rule: Any) -> None:
    memory, change = rule.step(rule.begin(3), np.zeros(3))
    assert np.array_equal(change, np.zeros(3))
    assert all(np.isfinite(array).all() for array in memory.values())


def test_clipup_keeps_its_limits_whatever_the_gradient() -> None:
    rule = es.ClipUp(rate=0.1, max_speed=0.15)
    memory = rule.begin(3)
    for gradient in (np.array([1e200, 0, 0]), np.array([1e-200, 1e-200, 0]), np.array([0, 0, 1.0])):
        memory, change = rule.step(memory, gradient)
        assert 0 < np.linalg.norm(change) <= 0.15 * (1 + 1e-12)


def batch_0() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sigma = np.linspace(0.2, 0.6, golden.SIZE)
    return golden.keys(0), sigma, golden.reward(golden.start() + sigma * golden.noise(0))


def test_snes_steps_as_in_evotorch() -> None:
    keys, sigma, reward = batch_0()
    search = es.begin(es.Settings(es.SNES()), golden.start(), RUN)
    search = replace(search, arrays=search.arrays | {"sigma": sigma})
    after, _ = es.tell(search, told(search, keys, reward))
    assert after.mean == pytest.approx(np.array(GOLDEN["snes"]["mean"]), abs=1e-9)
    assert after.arrays["sigma"] == pytest.approx(np.array(GOLDEN["snes"]["sigma"]), abs=1e-9)


def test_pgpe_has_the_gradients_of_evotorch() -> None:
    keys, sigma, reward = batch_0()
    search = es.begin(es.Settings(es.PGPE(step=es.SGD(rate=1.0), sigma_rate=1e-3)), golden.start(), RUN)
    search = replace(search, arrays=search.arrays | {"sigma": sigma})
    after, _ = es.tell(search, told(search, keys, reward))
    pairs_ = golden.PAIRS  # they add over pairs and halve, we take the mean over samples
    assert (after.mean - search.mean) * pairs_ == pytest.approx(np.array(GOLDEN["pgpe"]["mean"]), abs=1e-9)
    change = (after.arrays["sigma"] - sigma) * pairs_ * 1e3
    assert change == pytest.approx(np.array(GOLDEN["pgpe"]["sigma"]), abs=1e-9)


@pytest.mark.parametrize("solver", [es.CMA(), es.SepCMA()])
def test_cma_goes_where_cmaes_goes(solver: Any) -> None:
    name = solver.__struct_config__.tag
    search = es.begin(es.Settings(solver, sigma=0.5), golden.start(), RUN)
    for batch, then in enumerate(GOLDEN[name]):
        samples = search.mean + solver.spread(search.arrays)(golden.noise(batch))
        search, _ = es.tell(search, told(search, golden.keys(batch), golden.reward(samples)))
        assert search.mean == pytest.approx(np.array(then["mean"]), abs=1e-9)
        assert float(search.arrays["scale"][0]) == pytest.approx(then["scale"], abs=1e-9)
    variance = "covariance" if name == "cma" else "variance"
    assert search.arrays[variance] == pytest.approx(np.array(GOLDEN[name][-1]["covariance"]), abs=1e-9)


# sums of noise


@pytest.mark.parametrize("kind", ["signs", "normals", "rank1"])
@pytest.mark.parametrize("shapes", [((3, 5), (3,), (2, 3), (2,)), ((1, 1),), ((301, 33), (7,))])
def test_sums_are_those_of_the_noise(kind: Any, shapes: Any) -> None:
    size = sum(math.prod(shape) for shape in shapes)
    keys, noise = pairs(seeded()(8 * 11))[:-3], Noise(RUN)  # not all pairs are whole
    weights = np.random.default_rng(1).normal(size=len(keys))
    rows = sums.rows(noise, kind, keys.tolist(), size, shapes).astype(np.float64)
    found = sums.weighted(noise, kind, keys, weights, size, shapes)
    assert found == pytest.approx(weights @ rows, abs=1e-5 if kind == "rank1" else 1e-12)
    order = np.random.default_rng(2).permutation(len(keys))
    assert np.array_equal(sums.weighted(noise, kind, keys[order], weights[order], size, shapes), found)
    if kind == "rank1":
        first = rows[0][: math.prod(shapes[0])].reshape(shapes[0])
        assert np.linalg.matrix_rank(first) == 1 and set(np.abs(rows).reshape(-1)) == {1.0}
    if kind == "normals":
        assert sums.squared(noise, keys, weights, size) == pytest.approx(weights @ rows**2, abs=1e-12)
        linear, square = np.random.default_rng(3).normal(size=(2, size))
        expected = rows @ linear + rows**2 @ square
        assert sums.dots(noise, keys, linear, square) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["signs", "normals"])
def test_sums_cross_blocks(kind: Any) -> None:
    size, keys, weights = sums.BLOCK + 13, np.array([4, 9, 2**63], dtype=np.uint64), np.array([1.0, -2.0, 0.5])
    found = sums.weighted(Noise(RUN), kind, keys, weights, size)
    rows = sums.rows(Noise(RUN), kind, keys.tolist(), size).astype(np.float64)
    assert found == pytest.approx(weights @ rows, abs=1e-12)


def test_telling_from_keys_holds_a_few_vectors_and_no_population() -> None:
    size, population = 100_000, 256
    search = es.begin(es.Settings(es.OpenES(), noise="signs"), np.zeros(size), RUN)
    batch = told(search, es.ask(search, population, seeded()), np.arange(population, dtype=float))
    es.tell(search, batch)
    tracemalloc.start()
    es.tell(search, batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 8 * size  # the population alone would be 256 vectors of half the width


# ranks

rewards = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30).map(np.array)


@given(rewards)
def test_equal_rewards_are_worth_the_same_and_all_of_them_nothing(reward: np.ndarray) -> None:
    for rank in (ranks.centered, ranks.logarithmic):
        found = rank(reward, np.zeros(len(reward), dtype=int))
        assert abs(found.sum()) < 1e-9
        by_reward = np.argsort(reward, kind="stable")
        for a, b in pairwise(by_reward):
            assert (found[a] == found[b]) if reward[a] == reward[b] else (found[a] <= found[b])
        if np.ptp(reward) == 0:
            assert np.array_equal(found, np.zeros(len(reward)))


def test_strata_are_ranked_apart() -> None:
    reward, stratum = np.array([1.0, 2.0, 3.0, 101.0, 103.0, 102.0]), np.array([0, 0, 0, 1, 1, 1])
    assert ranks.centered(reward, stratum).tolist() == [-0.5, 0.0, 0.5, -0.5, 0.5, 0.0]


# what rewards say


@pytest.fixture(scope="module")
def linear() -> Any:
    """A linear function of 1,000 parameters, and 20,000 mirrored pairs of it."""
    size = 1000
    slope = np.random.default_rng(5).normal(size=size)
    settings = es.Settings(es.OpenES(step=es.SGD(rate=1.0, momentum=0.0)), noise="signs", sigma=0.02)
    search = es.begin(settings, np.zeros(size), RUN)
    keys = es.ask(search, 40_000, seeded(6))
    noise = Noise(RUN)
    even = np.array([noise.signs(key, size).astype(np.float64) @ slope for key in keys[::2].tolist()])
    reward = 0.02 * np.stack([even, -even], axis=1).reshape(-1)
    return search, slope, keys, reward


def moved(search: es.Search, keys: np.ndarray, reward: np.ndarray, block: np.ndarray | None = None) -> np.ndarray:
    return es.tell(search, told(search, keys, reward, block))[0].mean - search.mean


def test_the_gradient_of_a_linear_function_is_as_exact_as_theory_says(linear: Any) -> None:
    search, slope, keys, reward = linear
    assert 0.970 <= cosine(moved(search, keys, reward), slope) <= 0.982  # sqrt(20,000 / 21,000) = .976


def test_a_monotone_transform_of_rewards_changes_no_bit(linear: Any) -> None:
    search, _, keys, reward = linear
    plain = moved(search, keys[:4000], reward[:4000])
    assert np.array_equal(plain, moved(search, keys[:4000], np.exp(3 * reward[:4000]) - 7))
    assert not np.array_equal(plain, moved(search, keys[:4000], np.abs(reward[:4000])))


def test_five_in_a_hundred_absurd_rewards_do_little(linear: Any) -> None:
    search, _, keys, reward = linear
    absurd = np.where(np.random.default_rng(7).random(len(reward)) < 0.05, 1e6, reward)
    assert cosine(moved(search, keys, absurd), moved(search, keys, reward)) >= 0.93


def test_a_trend_of_the_day_is_ranked_away(linear: Any) -> None:
    search, slope, keys, reward = linear
    time = np.random.default_rng(8).permutation(np.linspace(0, 1, len(reward)))
    trend = reward + 6 * reward.std() * np.sin(2 * np.pi * time) * math.sqrt(2)
    blocks = np.floor(time * 96).astype(np.int64)
    clean = cosine(moved(search, keys, reward), slope)
    assert cosine(moved(search, keys, trend, blocks), slope) >= 0.95 * clean
    assert cosine(moved(search, keys, trend), slope) < 0.8 * clean  # or the blocks would prove nothing


def test_openai_es_is_its_formula() -> None:
    settings = es.Settings(es.OpenES(step=es.SGD(rate=0.5, momentum=0.0), weight_decay=0.1), sigma=0.2)
    search = es.begin(settings, golden.start(), RUN)
    keys = golden.keys(0)
    reward = np.array([3.0, 1.0, 3.0, 2.0, 7.0, 1.0, 0.0, 9.0])
    rank = (np.array([4.5, 1.5, 4.5, 3.0, 6.0, 1.5, 0.0, 7.0]) / 7) - 0.5
    gradient = np.mean(rank[:, None] * golden.noise(0), axis=0) / 0.2 - 0.1 * golden.start()
    assert moved(search, keys, reward) == pytest.approx(0.5 * gradient, abs=1e-12)


def test_ars_takes_the_best_directions_by_their_rewards() -> None:
    search = es.begin(es.Settings(es.ARS(rate=0.1, top=0.5), noise="normals"), golden.start(), RUN)
    keys, noise = golden.keys(0), golden.noise(0)
    reward = np.array([3.0, 1.0, 0.5, 2.0, 7.0, 1.0, 0.0, 5.0])
    chosen = [0, 1, 2, 3, 4, 5, 6, 7][4:]  # the pairs with 7 and with 5
    step = sum((reward[i] - reward[i + 1]) * noise[i] for i in (4, 6))
    expected = 0.1 / (2 * reward[chosen].std()) * step
    assert moved(search, keys, reward) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(DataError, match="no mirrored pair"):
        es.tell(search, told(search, keys[::2], reward[::2]))


@pytest.mark.parametrize(("solver", "kind", "batches"), SOLVERS, ids=IDS)
def test_every_solver_climbs(solver: Any, kind: Any, batches: int) -> None:
    shapes = ((4, 3), (3,))
    search = es.begin(es.Settings(solver, noise=kind, sigma=0.1, shapes=shapes), np.full(15, 2.0), RUN)
    entropy = seeded(3)
    first = golden.reward(search.mean[None])[0]
    for _ in range(batches):
        keys = es.ask(search, 16, entropy)
        search, _ = es.tell(search, told(search, keys, golden.reward(search.perturbed(keys))))
    assert golden.reward(search.mean[None])[0] > 0.02 * first


# what a batch says of a step


@pytest.mark.parametrize("kind", ["normals", "signs", "rank1"])
def test_the_gain_of_a_step_is_its_dot_product_with_the_gradient(kind: Any) -> None:
    shapes = ((2, 3), (4,))
    slope, step = np.random.default_rng(1).normal(size=(2, 10))
    search = es.begin(es.Settings(es.OpenES(), noise=kind, sigma=0.2, shapes=shapes), np.zeros(10), RUN)
    keys = es.ask(search, 20_000, seeded(2))
    noise = sums.rows(Noise(RUN), kind, keys.tolist(), 10, shapes).astype(np.float64)
    assert sums.projected(Noise(RUN), kind, keys[:9], step, shapes) == pytest.approx(noise[:9] @ step, abs=1e-9)
    reward = 5 + 0.2 * noise @ slope + np.random.default_rng(3).normal(size=len(keys))
    after = replace(search, arrays=search.arrays | {"mean": 0.1 * step})
    found = es.gain(search, after, told(search, keys, reward))
    true = 0.1 * float(slope @ step)
    assert found.pairs == 10_000 and found.low < true < found.high
    assert found.high - found.low < 0.2 * abs(true) + 0.1
    back = replace(search, arrays=search.arrays | {"mean": -0.1 * step})
    some = told(search, keys[:400], reward[:400])
    assert es.gain(search, back, some).value == pytest.approx(-es.gain(search, after, some).value)


def test_the_interval_of_a_gain_covers_at_its_level() -> None:
    settings, slope = es.Settings(es.OpenES(), sigma=0.2), np.linspace(-1, 1, 6)
    search = es.begin(settings, np.zeros(6), RUN)
    after = replace(search, arrays=search.arrays | {"mean": 0.1 * np.ones(6) + 0.05 * slope})
    true, rng, covered = float(slope @ after.mean), np.random.default_rng(0), 0
    for _ in range(200):
        keys = es.ask(search, 64, rng.bytes)
        noise = sums.rows(Noise(RUN), "normals", keys.tolist(), 6).astype(np.float64)
        found = es.gain(search, after, told(search, keys, 0.2 * noise @ slope + 0.1 * rng.normal(size=64)))
        covered += found.low <= true <= found.high
    assert 174 <= covered <= 199  # 95%, and what a bootstrap over 32 pairs may miss


# samples of older versions


def test_old_samples_weigh_as_their_densities_say() -> None:
    keys, size = pairs(seeded()(8 * 8)), 12
    rng = np.random.default_rng(0)
    shift, scale = 0.2 * rng.normal(size=size), np.exp(0.1 * rng.normal(size=size))
    noise = sums.rows(Noise(RUN), "normals", keys.tolist(), size).astype(np.float64)
    seen = shift + scale * noise
    ratio = np.exp(-0.5 * np.sum(seen**2 - noise**2, axis=1)) * np.prod(scale)
    found = importance(Noise(RUN), keys, Sight(shift, scale, False), size)
    assert found == pytest.approx(np.minimum(1.0, ratio), rel=1e-9)
    assert 0 < np.sum(found < 1) < len(found)


@pytest.mark.parametrize("kind", ["normals", "signs"])
def test_old_samples_count_from_where_they_were(kind: Any) -> None:
    """The update is the explicit one over all samples, as seen from the present mean and sigma."""
    solver = es.OpenES(step=es.SGD(rate=1.0, momentum=0.0))
    search = es.begin(es.Settings(solver, noise=kind, sigma=0.3, max_age=2), golden.start()[:8], RUN)
    entropy, reward = seeded(4), np.random.default_rng(4).normal(size=(2, 8))
    old = es.ask(search, 8, entropy)
    now, _ = es.tell(search, told(search, es.ask(search, 8, entropy), 1e-2 * reward[0]))
    fresh = es.ask(now, 8, entropy)
    digests = {0: search.digest, 1: now.digest}
    both = es.Told(RUN, np.concatenate([old, fresh]), np.repeat([0, 1], 8), reward.reshape(-1), digests)
    after, account = es.tell(now, both)
    noise = sums.rows(Noise(RUN), kind, both.keys.tolist(), 8).astype(np.float64)
    weight, seen = np.ones(16), noise.copy()
    if kind == "normals":
        seen[:8] += (search.mean - now.mean) / 0.3
        weight[:8] = np.minimum(1, np.exp(-0.5 * np.sum(seen[:8] ** 2 - noise[:8] ** 2, axis=1)))
    else:
        weight[:8] = 0.5
    value = ranks.centered(both.reward, both.generation)
    value[:8] -= np.average(value[:8], weights=weight[:8])
    gradient = (value * weight) @ seen / weight.sum() / 0.3
    assert after.mean - now.mean == pytest.approx(gradient, abs=1e-12)
    assert (account.used, account.stale, account.old) == (16, 8, 0)
    assert account.ess == pytest.approx(weight.sum() ** 2 / np.sum(weight**2))


def test_samples_beyond_the_limit_are_counted_and_dropped() -> None:
    search = es.begin(es.Settings(es.PGPE(), max_age=1), np.zeros(5), RUN)
    entropy = seeded()
    first, digests = es.ask(search, 4, entropy), {}
    for _ in range(2):
        digests[search.generation] = search.digest
        search, _ = es.tell(search, told(search, es.ask(search, 4, entropy), np.arange(4.0)))
    digests[2] = search.digest
    fresh = es.ask(search, 4, entropy)
    alone, _ = es.tell(search, told(search, fresh, np.arange(4.0)))
    mixed = es.Told(
        RUN,
        np.concatenate([first, fresh]),
        np.repeat([0, 2], 4),
        np.concatenate([9 * np.arange(4.0), np.arange(4.0)]),
        digests,
    )
    after, account = es.tell(search, mixed)
    assert (account.used, account.old) == (4, 4)
    assert np.array_equal(after.mean, alone.mean)
    with pytest.raises(DataError, match="none can be used"):
        es.tell(search, es.Told(RUN, first, np.zeros(4, dtype=int), np.arange(4.0), digests))


# what a log may bring


@pytest.fixture
def small() -> Any:
    search = es.begin(es.Settings(), np.zeros(6), RUN)
    return search, es.ask(search, 8, seeded()), np.arange(8.0)


def test_a_batch_without_a_difference_changes_nothing(small: Any) -> None:
    search, keys, _ = small
    after, account = es.tell(search, told(search, keys, np.full(8, 3.0)))
    assert after is search and not account.moved


def test_pairs_that_earned_the_same_twice_move_nothing() -> None:
    """The rewards differ, and what ARS makes of the pairs that count is 0."""
    search = es.begin(es.Settings(es.ARS(top=0.5)), np.zeros(6), RUN)
    keys = es.ask(search, 8, seeded())
    after, account = es.tell(search, told(search, keys, np.array([7.0, 7.0, 5.0, 5.0, 0.0, 1.0, 2.0, 0.0])))
    assert after is search and not account.moved


def test_a_reward_that_is_no_number_is_refused_and_counted(small: Any) -> None:
    search, keys, reward = small
    odd = reward.copy()
    odd[2], odd[5] = math.nan, math.inf
    after, account = es.tell(search, told(search, keys, odd))
    left = [0, 1, 3, 4, 6, 7]
    assert account.refused == 2 and account.used == 6
    assert np.array_equal(after.mean, es.tell(search, told(search, keys[left], reward[left]))[0].mean)
    with pytest.raises(DataError, match="8 have no finite reward"):
        es.tell(search, told(search, keys, np.full(8, math.nan)))


def test_the_same_log_in_another_order_and_read_twice_changes_no_bit(small: Any) -> None:
    search, keys, reward = small
    plain, _ = es.tell(search, told(search, keys, reward))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 2))
    again, account = es.tell(search, told(search, keys[order], reward[order]))
    assert account.repeated == 8
    assert all(np.array_equal(plain.arrays[name], array) for name, array in again.arrays.items())


def test_what_is_not_of_this_search_is_refused(small: Any) -> None:
    search, keys, reward = small
    batch = told(search, keys, reward)
    with pytest.raises(DataError, match="is of the run"):
        es.tell(search, replace(batch, run=bytes(16)))
    with pytest.raises(DataError, match="perturbed the parameters"):
        es.tell(search, replace(batch, digests={0: "0" * 64}))
    with pytest.raises(DataError, match="perturbed the parameters"):
        es.tell(search, replace(batch, digests={}))
    with pytest.raises(DataError, match="this search is at 0"):
        es.tell(search, replace(batch, generation=batch.generation + 1))
    with pytest.raises(DataError, match="two rewards"):  # a sign that was swapped makes two of one key
        es.tell(search, replace(batch, keys=np.where(np.arange(8) == 3, keys ^ np.uint64(1), keys)))
    with pytest.raises(DataError, match="shape"):
        es.tell(search, replace(batch, reward=reward[:3]))


def test_settings_that_can_not_be_are_refused() -> None:
    for wrong in (
        lambda: es.Settings(es.SNES(), noise="signs"),
        lambda: es.Settings(es.PGPE(), noise="signs"),
        lambda: es.Settings(es.CMA(), max_age=1),
        lambda: es.Settings(sigma=0.0),
        lambda: es.Adam(rate=0.0),
        lambda: es.SGD(momentum=1.0),
        lambda: es.begin(es.Settings(es.OpenES(), noise="rank1", shapes=((2, 3),)), np.zeros(7)),
        lambda: es.ask(es.begin(es.Settings(), np.zeros(2)), 3),
        lambda: es.ask(es.begin(es.Settings(), np.zeros(2)), -2),
        lambda: es.ask(es.begin(es.Settings(es.CMA()), np.zeros(2)), 0),
    ):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(DataError):
        es.begin(es.Settings(), np.array([1.0, math.nan]))


def test_the_axes_of_a_covariance_are_found_once_for_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    search = es.begin(es.Settings(es.CMA()), np.zeros(30), RUN)
    keys = es.ask(search, 12)
    search, _ = es.tell(search, told(search, keys, np.arange(12.0)))
    asked, eigh = list[int](), np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: asked.append(len(matrix)) or eigh(matrix))
    alone = np.concatenate([search.perturbed(keys[place : place + 1]) for place in range(12)])
    assert asked == [30]
    assert np.array_equal(alone, search.perturbed(keys)) and not np.array_equal(alone[0], search.mean)


def test_cma_asks_for_samples_that_say_something_of_a_spread() -> None:
    search = es.begin(es.Settings(es.CMA()), np.zeros(2), RUN)
    keys = es.ask(search, 4, seeded())
    with pytest.raises(DataError, match="3 samples for CMA, must be at least 4"):
        es.tell(search, told(search, keys[:3], np.arange(3.0)))
    assert es.tell(search, told(search, keys, np.arange(4.0)))[1].moved


# on disk


@pytest.mark.parametrize(("solver", "kind", "_batches"), SOLVERS, ids=IDS)
def test_saving_and_loading_at_every_generation_changes_nothing(
    solver: Any, kind: Any, _batches: int, tmp_path: Path
) -> None:
    settings = es.Settings(solver, noise=kind, shapes=((2, 3), (4,)), max_age=2 if solver.reuses else 0)
    stays = goes = es.begin(settings, np.zeros(10), RUN)
    entropy, drawn = seeded(9), np.random.default_rng(9)
    for _ in range(5):
        keys, reward = es.ask(stays, 8, entropy), drawn.normal(size=8)
        stays, _ = es.tell(stays, told(stays, keys, reward))
        stored.save(goes, tmp_path / "search")
        goes, _ = es.tell(stored.load(tmp_path / "search"), told(goes, keys, reward))
        assert goes.arrays.keys() == stays.arrays.keys()
        assert all(np.array_equal(stays.arrays[name], array) for name, array in goes.arrays.items())
        assert (goes.digest, goes.generation) == (stays.digest, stays.generation)
        assert [past.digest for past in goes.past] == [past.digest for past in stays.past]


def test_a_damaged_search_is_not_read(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "search"
    with pytest.raises(NotFoundError):
        stored.load(path)
    stored.save(small[0], path)
    whole = path.read_bytes()
    for body in (whole[:-1], whole[:40] + b"x" + whole[41:], b""):
        path.write_bytes(body)
        with pytest.raises(Error):
            stored.load(path)
    stored.save(small[0], path)
    assert path.read_bytes() == whole
