"""The filter of discrete BCQ: what was hardly logged is never taken, never hoped for, and the graph knows it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, DataError
from steersman.core.features import Category, Encoder
from steersman.learn import nets
from steersman.learn.dqn import C51, CQL, DQN
from steersman.learn.nets import NEVER, TorchScorer, shape_for

QUICK = {
    "hidden": [32],
    "steps": 600,
    "batch_size": 64,
    "learning_rate": 5e-3,
    "n_step": 1,
    "discount": 0.9,
    "polyak": 0.05,
}
NAMED = Encoder(context=(Category("state", ("0", "1")),), actions=("a", "b", "c"))
FEATURED = Encoder(context=NAMED.context, candidate=(Category("kind", ("a", "b", "c")),))


def costs(encoder: Encoder) -> Batch:
    """Two steps that cost something: `a` 1, `b` 0.5 at the second step, but it is logged once in twenty; `c` never."""
    n = 2000
    row = np.arange(n)
    state, action = row % 2, (row // 2 % 20 == 0).astype(np.int64)
    context = np.zeros((n, encoder.context_width), dtype=np.float32)
    context[row, state] = 1.0
    width = encoder.candidate_width
    candidates = np.broadcast_to(np.eye(3, width, dtype=np.float32), (n, 3, width))
    return Batch(
        encoder=encoder,
        context=context,
        candidates=candidates,
        mask=np.ones((n, 3), dtype=bool),
        action=action,
        propensity=np.where(action == 0, 0.95, 0.05),
        reward=np.where(action == 0, -1.0, -0.5),
        metrics=np.empty((n, 0)),
        discount=np.where(state == 0, 1.0, 0.0),
        next=np.where(state == 0, row + 1, -1),
        unit=row // 2,
    )


each_kind = pytest.mark.parametrize("encoder", [NAMED, FEATURED], ids=["named", "featured"])


@each_kind
def test_what_was_hardly_logged_is_neither_taken_nor_hoped_for(encoder):
    batch = costs(encoder)
    taken = {}
    for threshold in (0.0, 0.01, 0.3):
        policy = learn.fit(batch, learn.configure("dqn", QUICK | {"behavior_threshold": threshold}), seed=0)
        taken[threshold] = policy.propensities(batch)[0].argmax()
        scores = policy.scorer(batch.context[:2], batch.candidates[:2])
        if threshold == 0.3:
            assert scores[:, 0] == pytest.approx([-1.9, -1.0], rel=0.02)
            assert (scores[:, 1:] == np.float32(NEVER)).all()
        elif threshold == 0.01:
            assert scores[0, :2] == pytest.approx([-1.0 - 0.9 * 0.5, -0.5 - 0.9 * 0.5], rel=0.02)
    assert (taken[0.01], taken[0.3]) == (1, 0)
    if encoder is NAMED:
        assert taken[0.0] == 2  # what never cost anything looks free


@pytest.mark.parametrize("config", [CQL, C51])
def test_every_loss_of_the_family_can_be_filtered(config):
    quick = config(hidden=(8,), steps=300, batch_size=64, learning_rate=1e-2, behavior_threshold=0.3)
    policy, batch = learn.fit(costs(NAMED), quick, seed=0), costs(NAMED)
    assert (policy.propensities(batch)[:, 1:] == 0.0).all()


@each_kind
def test_the_graph_holds_back_what_the_policy_does_whatever_padding_and_neighbours(encoder):
    """Nets with weights drawn large, so that every candidate is sometimes held back; then rows are padded."""
    rng, n, k = np.random.default_rng(0), 256, 5
    shape = shape_for(encoder, (16,), threshold=0.3)
    net = nets.new_net(shape, nets.generator(3))
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(4.0)
    scorer = TorchScorer.of(shape, net, unit=7.0)
    context = rng.normal(size=(n, encoder.context_width)).astype(np.float32)
    candidates = np.eye(3, encoder.candidate_width, dtype=np.float32)[rng.integers(3, size=(n, k))]
    real = np.arange(k) < rng.integers(1, k + 1, size=(n, 1))
    candidates *= real[:, :, None]
    scores = scorer(context, candidates)
    graph = onnxruntime.InferenceSession(scorer.to_onnx(), providers=["CPUExecutionProvider"])
    (exported,) = graph.run(None, {"context": context, "candidates": candidates})
    np.testing.assert_allclose(exported, scores, rtol=0, atol=1e-5)
    held = scores == np.float32(NEVER * 7.0)
    assert held[~real].all()
    assert 0.1 < held[real].mean() < 0.9
    for i in range(n):
        alone = candidates[i : i + 1, real[i]]
        (one,) = graph.run(None, {"context": context[i : i + 1], "candidates": alone})
        np.testing.assert_allclose(one[0], scores[i, real[i]], rtol=0, atol=1e-5)
        chance = torch.from_numpy(context[i : i + 1]), torch.from_numpy(alone)
        with torch.no_grad():
            chance = net.behavior(*chance)[0].softmax(0)
        assert ((chance < 0.3 * chance.max()).numpy() == held[i, real[i]]).all()


def test_a_filtered_policy_is_stored_and_read(tmp_path):
    batch = costs(FEATURED)
    policy = learn.fit(batch, learn.configure("dqn", QUICK | {"behavior_threshold": 0.3, "steps": 20}), seed=0)
    learn.save(policy, tmp_path / "policy")
    assert learn.to_onnx(learn.load(tmp_path / "policy")) == learn.to_onnx(policy)


def test_candidates_that_look_like_padding_are_refused():
    batch = costs(FEATURED)
    candidates = batch.candidates.copy()
    candidates[7, 2] = 0.0
    alike = dataclasses.replace(batch, candidates=candidates)
    with pytest.raises(DataError, match="row 7: all columns of a candidate are 0") as refused:
        learn.fit(alike, DQN(steps=1, behavior_threshold=0.1), seed=0)
    assert refused.value.field == "behavior_threshold"
    padded = dataclasses.replace(alike, mask=candidates.any(axis=2))
    learn.fit(padded, DQN(steps=1, behavior_threshold=0.1), seed=0)


def test_a_threshold_is_a_share():
    with pytest.raises(ConfigError, match=r"behavior_threshold is 1.1, must be in \[0, 1\]"):
        learn.configure("dqn", {"behavior_threshold": 1.1})
    with pytest.raises(DataError, match=r"the threshold of a net of kind actions is 0\.1, must be 0"):
        nets.Shape("actions", 1, 1, (), threshold=0.1)
    with pytest.raises(DataError, match=r"kind filtered-actions is 0, must be in \(0, 1\]"):
        nets.Shape("filtered-actions", 1, 1, ())
