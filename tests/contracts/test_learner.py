"""What every learner of the table keeps to. A new learner: a row in LEARNERS and quick settings here."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np
import onnxruntime
import pytest
import torch
from msgspec import Struct

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import EpsilonGreedy, Policy, Softmax, Thompson, Uniform
from steersman.core.ranking import Lists
from steersman.core.slots import Slots

QUICK_POLICY = {"hidden": [16], "steps": 150, "batch_size": 128, "learning_rate": 2e-2, "polyak": 0.05}
QUICK = {
    "dqn": {"hidden": [32], "steps": 500, "batch_size": 64, "learning_rate": 5e-3},
    "cql": {"hidden": [32], "steps": 500, "batch_size": 64, "learning_rate": 5e-3, "dueling": True, "penalty": 0.1},
    "c51": {"hidden": [32], "steps": 500, "batch_size": 64, "learning_rate": 5e-3, "lowest": -8.0, "highest": 8.0},
    "qr-dqn": {"hidden": [32], "steps": 500, "batch_size": 64, "learning_rate": 5e-3, "atoms": 11, "dueling": True},
    "discrete-sac": QUICK_POLICY | {"entropy": 0.05},
    "iql": QUICK_POLICY,
    "awac": QUICK_POLICY,
    "crr": QUICK_POLICY,
    "bc": {"hidden": [16], "steps": 150},
    "planned": {
        "hidden": [32],
        "steps": 250,
        "batch_size": 64,
        "learning_rate": 1e-2,
        "members": 2,
        "plans": 300,
        "horizon": 2,
    },
    "slate-q": {"hidden": [16], "steps": 150, "batch_size": 64, "learning_rate": 2e-2, "polyak": 0.05},
    "plackett-luce": {"hidden": [16], "steps": 150, "batch_size": 128, "learning_rate": 2e-2, "credit": "cascade"},
    "linear": {},
    "linucb": {"alpha": 0.1},
    "thompson": {},
    "neural-thompson": {"hidden": [32], "steps": 500, "batch_size": 64, "learning_rate": 5e-3},
    "ucb1": {"lowest": -5.0},
    "beta-thompson": {"lowest": -5.0},
}
"""Settings that learn the worlds below within a second."""

IMITATES = {"bc"}
"""Learners that do as the log did, whatever came of it."""

CLOSED_FORM = {"linear", "linucb", "thompson", "ucb1", "beta-thompson"}
"""Learners that go through the rows once, without steps that anything could go on from."""

SAMPLED = {"thompson", "beta-thompson"}
"""Those of them whose posterior is sampled: another seed gives another policy."""

BLIND = {"ucb1", "beta-thompson"}
"""Learners of named actions without a context: what a candidate's features or the context say is not for them."""

WRITTEN_OUT = {"dqn", "cql", "c51", "qr-dqn"}
"""Learners whose gradients are written out, so that autograd does not see to their types."""

LISTS = {"slate-q", "plackett-luce"}
"""Learners of ranked lists."""

N, K = 1200, 4


def named() -> Batch:
    """Named actions: a wish x, and an action each for -1, 0 and 1; the closer it comes, the better."""
    rng = np.random.default_rng(0)
    wish, action = rng.normal(size=N), rng.integers(3, size=N)
    return batch(
        Encoder(context=(Continuous("wish", 0.0, 1.0),), actions=("less", "more", "same")),
        wish,
        candidates=np.broadcast_to(np.eye(3, dtype=np.float32), (N, 3, 3)),
        mask=np.ones((N, 3), dtype=bool),
        action=action,
        reward=1.0 - np.abs(wish - np.array([-1.0, 1.0, 0.0])[action]),
    )


def featured() -> Batch:
    """One to four candidates with a feature; the more of it the better for some wishes, the worse for others."""
    rng = np.random.default_rng(0)
    wish, size = rng.normal(size=N), rng.normal(size=(N, K)).astype(np.float32)
    mask = np.arange(K) < rng.integers(1, K + 1, size=(N, 1))
    action = (rng.random(N) * mask.sum(axis=1)).astype(np.int64)
    return batch(
        Encoder(context=(Continuous("wish", 0.0, 1.0),), candidate=(Continuous("size", 0.0, 1.0),)),
        wish,
        candidates=np.stack([size * mask, np.zeros((N, K), dtype=np.float32)], axis=2),
        mask=mask,
        action=action,
        reward=wish * size[np.arange(N), action],
    )


def plain() -> Batch:
    """Named actions, one of them better than the others whatever the wish."""
    rows = named()
    noise = np.random.default_rng(1).random(N)
    return dataclasses.replace(rows, reward=0.5 * (rows.action == 1) + 0.5 * noise)


def pages() -> Batch:
    """Lists of two named actions; people choose what stands first twice as often as what stands below, or nothing."""
    return listed(named())


def featured_pages() -> Batch:
    """The same of one to four candidates with a feature: of one alone the list is shorter."""
    return listed(featured())


def listed(rows: Batch) -> Batch:
    """Lists drawn evenly, in the place of single actions; what is chosen of them pays what it would pay alone."""
    rng = np.random.default_rng(2)
    items, propensity = Lists(Uniform(), np.zeros(rows.mask.shape), rows.mask, 2).draw(rng.random((N, 2)))
    chosen = rng.choice(3, size=N, p=[0.5, 0.25, 0.25])[:, None] == np.arange(2)
    alone = np.where(rows.mask, worth(rows), 0.0)
    paid = np.take_along_axis(alone, np.maximum(items, 0), axis=1) * chosen * (items >= 0)
    slots = Slots(propensity, paid.astype(np.float64), np.empty((N, 2, 0)))
    return dataclasses.replace(
        rows, action=items, propensity=propensity.prod(axis=1), reward=slots.reward.sum(axis=1), slots=slots
    )


def paying(rows: Batch, reward: np.ndarray) -> Batch:
    """The same with other rewards [N], of ranked lists at their first items."""
    if rows.slots is None:
        return dataclasses.replace(rows, reward=reward)
    first = np.zeros_like(rows.slots.reward)
    first[:, 0] = reward
    return dataclasses.replace(rows, reward=reward, slots=dataclasses.replace(rows.slots, reward=first))


def batch(
    encoder: Encoder,
    wish: np.ndarray,
    *,
    candidates: np.ndarray,
    mask: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
) -> Batch:
    """Episodes of two steps whose second wish has nothing to do with what was done at the first."""
    row = np.arange(N)
    return Batch(
        encoder=encoder,
        context=np.stack([wish, np.zeros(N)], axis=1).astype(np.float32),
        candidates=candidates,
        mask=mask,
        action=action,
        propensity=1.0 / mask.sum(axis=1),
        reward=reward,
        metrics=np.empty((N, 0)),
        discount=np.where(row % 2, 0.0, 0.5),
        next=np.where(row % 2, -1, row + 1),
        unit=row // 2,
    )


def worth(rows: Batch) -> np.ndarray:
    """[N, K] true reward of every candidate."""
    if rows is world("plain"):
        return np.broadcast_to([0.25, 0.75, 0.25], rows.mask.shape)
    if rows.encoder.actions:
        return 1.0 - np.abs(rows.context[:, :1] - np.array([-1.0, 1.0, 0.0]))
    return rows.context[:, :1] * rows.candidates[:, :, 0]


WORLDS = {
    "named": named,
    "featured": featured,
    "plain": plain,
    "pages": pages,
    "featured pages": featured_pages,
}


@functools.cache
def world(name: str) -> Batch:
    return WORLDS[name]()


@functools.cache
def learned(name: str, where: str) -> Policy:
    return fit(name, world(where))


FEW = 120
"""Steps that are enough where nothing is asked of what was learned: random numbers begin anew after 100."""


def briefly(name: str) -> Struct:
    steps = {"steps": min(FEW, QUICK[name]["steps"])} if "steps" in QUICK[name] else {}
    return learn.configure(name, QUICK[name] | steps)


@functools.cache
def begun(name: str, where: str) -> bytes:
    """The graph of what few steps learn."""
    return learn.to_onnx(learn.fit(world(where), briefly(name), 0))


@dataclasses.dataclass
class Watched:
    """The same few steps, with all that somebody may see of them."""

    told: list[tuple[int, int, dict[str, float]]]
    seen: list[tuple[int, int, bytes]]
    kept: dict[int, Mapping[str, np.ndarray]]
    graph: bytes
    shared: list[tuple[bytes, bytes, int]]


@functools.cache
def watched(name: str, where: str) -> Watched:
    def shared() -> tuple[bytes, bytes, int]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), torch.get_num_threads()

    torch.set_num_threads(2)
    found, before = Watched([], [], {}, b"", []), shared()
    policy = learn.fit(
        world(where), briefly(name), 0,
        lambda *report: found.told.append(report),
        lambda done, steps, figures, now: found.seen.append((done, steps, learn.to_onnx(now()))),
        learn.Run(keep=lambda done, state: found.kept.update({done: state}), every=100),
    )  # fmt: skip
    found.shared = [before, shared()]
    found.graph = learn.to_onnx(policy)
    return found


def homes(name: str) -> tuple[str, ...]:
    """The worlds that the learner learns in: first with named actions, then, if it sees them, with features."""
    if name in BLIND:
        return ("plain",)
    return ("pages", "featured pages") if name in LISTS else ("named", "featured")


def home(name: str) -> str:
    """The first of them."""
    return homes(name)[0]


def fit(name: str, rows: Batch) -> Policy:
    return learn.fit(rows, learn.configure(name, QUICK[name]), 0)


each_learner = pytest.mark.parametrize("name", QUICK)
each_learner_with_features = pytest.mark.parametrize("name", [name for name in QUICK if name not in BLIND])
PAIRS = [(name, where) for name in QUICK for where in homes(name)]
each_learner_and_world = pytest.mark.parametrize(("name", "where"), PAIRS)


def test_every_learner_is_under_contract():
    """Those for numbers alone are under that of `test_number_learner.py`."""
    alone = {"ddpg", "td3", "td3-bc", "sac"}
    assert set(QUICK) == set(learn.LEARNERS) - alone


@pytest.mark.parametrize(("name", "where"), [pair for pair in PAIRS if pair[0] not in IMITATES])
def test_it_learns_which_candidate_is_better(name, where):
    """At least nine tenths of the way from choosing at random to the best choice everywhere."""
    rows = world(where)
    reward = np.where(rows.mask, worth(rows), 0.0)
    policy = learned(name, where)
    if isinstance(policy.explorer, Softmax):  # the candidate that it finds likeliest
        policy = dataclasses.replace(policy, explorer=EpsilonGreedy(0.0))
    value = (policy.propensities(rows) * reward).sum(axis=1).mean()
    random = (reward.sum(axis=1) / rows.mask.sum(axis=1)).mean()
    best = np.where(rows.mask, reward, -np.inf).max(axis=1).mean()
    assert (value - random) / (best - random) > 0.9


@each_learner_and_world
def test_a_policy_that_is_learned_as_probabilities_or_as_draws_is_served_as_it_is_unless_somebody_says_otherwise(
    name, where
):
    assert learned(name, where).explorer == learn.EXPLORERS.get(name, EpsilonGreedy(0.0))


@each_learner
def test_a_training_that_goes_on_from_what_was_kept_of_it_gives_the_same_bits(name):
    """A learner whose steps change anything that is not in its State does not keep this."""
    whole = watched(name, home(name))
    kept = {done: state for done, state in whole.kept.items() if done < whole.told[-1][1]}
    assert bool(kept) == (name not in CLOSED_FORM)
    for state in list(kept.values())[-1:]:
        again = learn.fit(world(home(name)), briefly(name), 0, run=learn.Run(start=state))
        assert learn.to_onnx(again) == whole.graph


@each_learner
def test_rows_that_are_not_learned_from_change_nothing(name):
    rows = world(homes(name)[-1])
    some = np.flatnonzero(rows.unit % 3 > 0)
    others = np.flatnonzero(rows.unit % 3 == 0)
    context, reward = rows.context.copy(), rows.reward.copy()
    context[others], reward[others] = -context[others], 50.0
    strange = paying(dataclasses.replace(rows, context=context), reward)
    rows = paying(rows, rows.reward)
    config = learn.configure(name, {**QUICK[name], **({} if name in CLOSED_FORM else {"steps": 120})})
    made = [learn.fit(batch, config, 0, run=learn.Run(rows=some)) for batch in (rows, strange)]
    assert learn.to_onnx(made[0]) == learn.to_onnx(made[1])


@each_learner_and_world
def test_the_same_seed_gives_the_same_policy_bit_for_bit_and_another_seed_another(name, where):
    assert watched(name, where).graph == begun(name, where)
    another = learn.to_onnx(learn.fit(world(where), briefly(name), 1))
    assert (another == begun(name, where)) == (name in CLOSED_FORM - SAMPLED)


@pytest.mark.parametrize(("name", "where"), [pair for pair in PAIRS if pair[0] in WRITTEN_OUT])
def test_in_bf16_it_learns_nearly_the_same(name, where):
    rows, config = world(where), learn.configure(name, {**QUICK[name], "steps": 30})
    exact, rough = (
        learn.fit(rows, config, 0, run=learn.Run(precision=precision)).scorer(rows.context, rows.candidates)
        for precision in ("f32", "bf16")
    )
    off = np.abs(rough - exact)[rows.mask].mean() / exact[rows.mask].std()
    assert 0.0 < off < 0.05


@each_learner_and_world
def test_it_leaves_no_trace_in_what_everybody_shares(name, where):
    before, after = watched(name, where).shared
    assert before == after


@each_learner_and_world
def test_the_exported_graph_equals_the_policy(name, where):
    policy, rows = learned(name, where), world(where)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(learn.to_onnx(policy), options, providers=["CPUExecutionProvider"])
    for part, places in [(slice(0, 1), [0]), (slice(0, 256), [2, 0]), (slice(0, N), slice(None))]:
        context, candidates = rows.context[part], np.ascontiguousarray(rows.candidates[part][:, places])
        (exported,) = session.run(None, {"context": context, "candidates": candidates})
        np.testing.assert_allclose(exported, policy.scorer(context, candidates), rtol=0, atol=1e-5)


@each_learner_and_world
def test_a_stored_policy_decides_as_before(name, where, tmp_path):
    policy, rows = learned(name, where), world(where)
    learn.save(policy, tmp_path / "policy")
    assert np.array_equal(learn.load(tmp_path / "policy").propensities(rows), policy.propensities(rows))


@each_learner_and_world
@pytest.mark.parametrize("explorer", [None, EpsilonGreedy(0.2), Softmax(0.5, floor=0.1), Thompson(0.1)])
def test_propensities_sum_to_1_and_padding_has_none(name, where, explorer):
    rows = world(where)
    policy = learned(name, where)
    propensities = (dataclasses.replace(policy, explorer=explorer) if explorer else policy).propensities(rows)
    assert propensities.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    assert not propensities[~rows.mask].any()


@each_learner_and_world
def test_the_place_of_a_candidate_in_its_row_means_nothing(name, where):
    policy, rows = learned(name, where), world(where)
    turned = dataclasses.replace(
        rows,
        candidates=rows.candidates[:, ::-1],
        mask=rows.mask[:, ::-1],
        action=np.where(rows.action < 0, -1, rows.mask.shape[1] - 1 - rows.action),
    )
    found, there = policy.propensities(turned), policy.propensities(rows)[:, ::-1]
    assert found == pytest.approx(there, rel=1e-12, abs=0)  # a softmax adds up in the order of the candidates


@each_learner_with_features
def test_what_stands_in_padding_never_reaches_the_policy(name):
    rows = world(homes(name)[1])
    candidates = np.where(rows.mask[:, :, None], rows.candidates, np.float32(1e6))
    garbage = dataclasses.replace(rows, candidates=candidates)
    assert learn.to_onnx(learn.fit(garbage, briefly(name), 0)) == begun(name, homes(name)[1])


@each_learner
def test_progress_comes_in_order_and_ends_at_the_end(name):
    told = watched(name, home(name)).told
    done = [report[0] for report in told]
    assert len(done) >= 2
    assert done == sorted(set(done))
    assert {report[1] for report in told} == {done[-1]}
    assert all({"loss", "steps/s"} <= set(report[2]) for report in told)
    assert all(math.isfinite(figure) for report in told for figure in report[2].values())


@each_learner
def test_whoever_looks_sees_the_policy_as_it_is_and_changes_nothing(name):
    seen = watched(name, home(name)).seen
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
    assert seen[-1][0] == seen[-1][1]
    assert seen[-1][2] == watched(name, home(name)).graph == begun(name, home(name))


@each_learner
def test_a_setting_that_does_not_exist_or_has_the_wrong_type_is_refused(name):
    setting = learn.configure(name, {}).__struct_fields__[0]
    with pytest.raises(ConfigError, match=rf"unknown setting {setting}x \(did you mean {setting}\?\)"):
        learn.configure(name, {setting + "x": 1})
    with pytest.raises(ConfigError, match=name):
        learn.configure(name, {setting: "many"})
