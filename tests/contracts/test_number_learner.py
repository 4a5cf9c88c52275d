"""What every learner of numbers keeps to. A new one: a row in LEARNERS, EXPLORERS on its config, settings here."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np
import onnxruntime
import pytest
import torch
from msgspec import Struct, structs

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.density import Gaussian, NumbersExplorer, Point, Squashed, UniformBox
from steersman.core.errors import ConfigError, DataError
from steersman.core.policy import EpsilonGreedy, Policy, Softmax
from steersman.worlds import tabular
from steersman.worlds.dosing import Dosing

NETS = {"hidden": [32], "steps": 500, "batch_size": 64, "learning_rate": 5e-3, "polyak": 0.05}
QUICK: dict[str, dict[str, object]] = {
    "ddpg": NETS,
    "td3": NETS,
    "td3-bc": NETS | {"alpha": 10.0},
    "sac": NETS | {"entropy": -3.0},
    "iql": NETS | {"temperature": 0.3},
    "awac": NETS | {"temperature": 0.3},
    "crr": NETS,
    "bc": {name: value for name, value in NETS.items() if name != "polyak"},
    "planned": {
        "hidden": [32],
        "steps": 250,
        "batch_size": 64,
        "learning_rate": 1e-2,
        "members": 2,
        "plans": 200,
        "horizon": 2,
        "population": 60,
        "elites": 6,
        "rounds": 5,
    },
}
"""Settings that learn the world below within a second or two."""

IMITATES = {"bc"}
"""Learners that do as the log did, whatever came of it."""

WORLD = Dosing(box=Numbers(low=(-1.0, 10.0), high=(3.0, 30.0)), lean=(0.3, -0.2), width=0.4, noise=0.1)
BEHAVIOR = WORLD.policy(UniformBox())
N = 1200


@functools.cache
def rows() -> Batch:
    """Episodes of two decisions that have nothing to do with each other but that they follow."""
    made, row = WORLD.sample(N, BEHAVIOR, 0), np.arange(N)
    return dataclasses.replace(
        made,
        discount=np.where(row % 2, 0.0, 0.5),
        next=np.where(row % 2, -1, row + 1),
        unit=row // 2,
    )


@functools.cache
def learned(name: str) -> Policy:
    return learn.fit(rows(), configured(name), 0)


FEW = 120
"""Steps that are enough where nothing is asked of what was learned: random numbers begin anew after 100."""


def configured(name: str) -> Struct:
    return learn.configure(name, QUICK[name])


each_learner = pytest.mark.parametrize("name", QUICK)


def test_every_learner_of_numbers_is_under_contract():
    assert set(QUICK) == {name for name in learn.LEARNERS if hasattr(type(learn.configure(name, {})), "EXPLORERS")}


def readable(name: str, explorer: NumbersExplorer) -> bool:
    try:
        learn.check_explorer(configured(name), rows().encoder, explorer)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("name", IMITATES)
def test_who_imitates_gives_the_actions_that_were_taken_the_density_that_they_had(name):
    """Almost: a squashed normal law is not quite even."""
    batch = rows()
    explored = dataclasses.replace(learned(name), explorer=Squashed(0.01))  # else what is nearest to a bound has none
    density = explored.aims(batch).density(batch.action)
    assert np.log(density).mean() == pytest.approx(np.log(batch.propensity).mean(), abs=0.15)


@pytest.mark.parametrize("name", [name for name in QUICK if name not in IMITATES])
def test_it_learns_what_is_better(name):
    """At least nine tenths of the way from the behavior to the best that could be done."""
    floor, best = WORLD.value(BEHAVIOR), 1.0
    batch = rows()
    action = learned(name).aims(batch).mean()  # what is learned, without what is explored
    value = float(WORLD.mean(batch.context[:, 0].astype(np.float64), action).mean())
    assert (value - floor) / (best - floor) > 0.9


@each_learner
def test_the_same_seed_gives_the_same_policy_whoever_looks_and_leaves_no_trace(name):
    def shared() -> tuple[bytes, bytes, int]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), torch.get_num_threads()

    torch.set_num_threads(2)
    before = shared()
    told: list[tuple[int, int, dict[str, float]]] = []
    seen: list[tuple[int, bytes]] = []
    kept: dict[int, Mapping[str, np.ndarray]] = {}
    config = structs.replace(configured(name), steps=FEW)
    first = learn.to_onnx(learn.fit(rows(), config, 0))
    again = learn.fit(
        rows(), config, 0,
        lambda *report: told.append(report),
        lambda done, steps, figures, now: seen.append((done, learn.to_onnx(now()))),
        learn.Run(keep=lambda done, state: kept.update({done: state}), every=100),
    )  # fmt: skip
    assert shared() == before
    assert learn.to_onnx(again) == first == seen[-1][1]
    assert seen[0][1] != seen[-1][1]
    done = [report[0] for report in told]
    assert done == [one for one, _ in seen] == sorted(set(done))
    assert {report[1] for report in told} == {done[-1]}
    assert all({"loss", "steps/s"} <= set(report[2]) for report in told)
    assert all(math.isfinite(figure) for report in told for figure in report[2].values())
    assert min(kept) == 100
    last = max(done for done in kept if done < told[-1][1])
    going_on = learn.fit(rows(), config, 0, run=learn.Run(start=kept[last]))
    assert learn.to_onnx(going_on) == learn.to_onnx(again)  # nothing that steps change is outside of the State


@each_learner
def test_rows_that_are_not_learned_from_change_nothing(name):
    batch = rows()
    some, others = np.flatnonzero(batch.unit % 3 > 0), batch.unit % 3 == 0
    strange = dataclasses.replace(
        batch,
        context=np.where(others[:, None], -batch.context, batch.context),
        reward=np.where(others, 50.0, batch.reward),
    )
    short = learn.configure(name, QUICK[name] | {"steps": 20})
    made = [learn.to_onnx(learn.fit(given, short, 0, run=learn.Run(rows=some))) for given in (batch, strange)]
    assert made[0] == made[1]


@each_learner
def test_another_seed_gives_another_policy(name):
    short = learn.configure(name, QUICK[name] | {"steps": 3})
    first, second = (learn.to_onnx(learn.fit(rows(), short, seed)) for seed in (0, 1))
    assert first != second


@each_learner
def test_the_exported_graph_equals_the_policy(name):
    policy, batch = learned(name), rows()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(learn.to_onnx(policy), options, providers=["CPUExecutionProvider"])
    for part in (slice(0, 1), slice(0, 256), slice(0, N)):
        (exported,) = session.run(None, {"context": batch.context[part]})
        trained = policy.scorer(batch.context[part], batch.candidates[part])
        assert exported.shape == trained.shape == (len(batch.context[part]), trained.shape[1])
        np.testing.assert_allclose(exported, trained, rtol=0, atol=1e-5)


@each_learner
def test_a_stored_policy_decides_as_before(name, tmp_path):
    policy, batch = learned(name), rows()
    learn.save(policy, tmp_path / "policy")
    again = learn.load(tmp_path / "policy")
    uniforms = np.random.default_rng(0).random((N, 1, 3))
    assert np.array_equal(again.aims(batch).draws(uniforms), policy.aims(batch).draws(uniforms))


@each_learner
@pytest.mark.parametrize("explorer", [Gaussian(0.1, 0.05), Squashed(0.05), Point(), UniformBox()])
def test_an_explorer_that_is_let_in_can_read_it_and_has_a_density_that_integrates_to_1(name, explorer):
    batch = rows().take(np.arange(3))
    aims = dataclasses.replace(learned(name), explorer=explorer).aims(batch)
    if not readable(name, explorer):
        with pytest.raises(DataError, match="scores are"):
            aims.mean()
        return
    share = (np.arange(200) + 0.5) / 200
    grid = np.stack(np.meshgrid(share, share), axis=2).reshape(-1, 2)
    low, high = np.array(WORLD.box.low), np.array(WORLD.box.high)
    aims.mean()
    for row in range(3 * aims.dense):
        each = aims.take(np.full(len(grid), row)).density((low + (high - low) * grid).astype(np.float32))
        assert each.mean() * (high - low).prod() == pytest.approx(1.0, abs=2e-3)


@each_learner
def test_an_explorer_of_candidates_is_refused_before_anything_is_learned(name):
    for explorer in (EpsilonGreedy(0.1), Softmax(1.0)):
        with pytest.raises(ConfigError, match="can not read what") as refused:
            learn.check_explorer(configured(name), rows().encoder, explorer)
        assert refused.value.field == "explorer"


@pytest.mark.parametrize("name", [name for name in QUICK if name not in IMITATES])
def test_a_batch_that_teaches_nothing_is_refused(name):
    config, batch = configured(name), rows()
    unseen = dataclasses.replace(batch, discount=np.full(N, 0.5), next=np.full(N, -1))
    with pytest.raises(DataError, match="none of the 1200 rows was terminated or has a next row"):
        learn.fit(unseen, config, 0)
    with pytest.raises(DataError, match="reward of all 1200 rows is 0"):
        learn.fit(dataclasses.replace(batch, reward=np.zeros(N)), config, 0)


@each_learner
def test_a_setting_that_does_not_exist_or_has_the_wrong_type_is_refused(name):
    setting = learn.configure(name, {}).__struct_fields__[0]
    with pytest.raises(ConfigError, match=rf"unknown setting {setting}x \(did you mean {setting}\?\)"):
        learn.configure(name, {setting + "x": 1})
    with pytest.raises(ConfigError, match=name):
        learn.configure(name, {setting: "many"})


@pytest.mark.parametrize("name", ["ddpg", "td3", "td3-bc", "sac"])
def test_candidates_are_refused_by_those_for_numbers_alone(name):
    chosen = tabular.chain(3, horizon=5).sample(4, np.full((3, 2), 0.5), seed=0)
    with pytest.raises(DataError, match="sets numbers; the actions of this batch are candidates"):
        learn.fit(chosen, learn.configure(name, {}), 0)
