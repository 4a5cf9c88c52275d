"""The learn room without any one learner: its table, n-step returns, nets and scorer, policies on disk."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.adam import adam

from steersman import learn
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, DataError, NotFoundError
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import EpsilonGreedy, Policy, Softmax, constant_scorer
from steersman.learn import nets
from steersman.learn.dqn import DQN
from steersman.learn.nets import Shape, TorchScorer
from steersman.learn.returns import n_step
from steersman.worlds import tabular

ENCODER = Encoder(context=(Continuous("age", 40.0, 10.0),), actions=("a", "b", "c"))


def scorer(kind: str = "actions", context: int = 2, candidate: int = 3, hidden: tuple[int, ...] = (8,)) -> TorchScorer:
    shape = Shape(kind, context, candidate, hidden)
    return TorchScorer.of(shape, nets.new_net(shape, nets.generator(3)), unit=100.0)


def policy() -> Policy:
    return Policy(ENCODER, scorer(), EpsilonGreedy(0.1))


# the table


def without_torch(code: str) -> str:
    """What a Python that has no torch prints."""
    script = f"import sys\nsys.modules['torch'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_the_room_can_be_entered_without_torch_and_says_what_to_install_when_a_learner_is_asked_for():
    said = without_torch(
        "from steersman import learn\n"
        "print(*learn.LEARNERS)\n"
        "try: learn.configure('dqn', {})\n"
        "except learn.MissingExtra as error: print(error)"
    )
    assert said.splitlines() == [" ".join(learn.LEARNERS), 'torch is not installed (pip install "steersman[learn]")']


def test_importing_the_room_does_not_import_torch():
    script = "import sys, steersman.learn\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_an_unknown_learner_is_refused_with_the_closest_name():
    with pytest.raises(ConfigError, match=r"unknown learner 'dqm' \(did you mean dqn\?\)"):
        learn.configure("dqm", {})


def test_only_the_config_of_a_learner_can_be_fitted():
    batch = tabular.chain(3, horizon=5).sample(4, np.full((3, 2), 0.5), seed=0)
    with pytest.raises(ConfigError, match="EpsilonGreedy is not the config of a learner"):
        learn.fit(batch, EpsilonGreedy(0.1), seed=0)


# returns of n steps


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Episodes of 1 to 6 steps, terminated or not, their rows interleaved as a log may have them."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    n = sum(lengths)
    episode = np.array(draw(st.permutations(np.repeat(np.arange(len(lengths)), lengths).tolist())))
    following = np.full(n, -1)
    for number in range(len(lengths)):
        rows = np.flatnonzero(episode == number)
        following[rows[:-1]] = rows[1:]
    discount = np.array(draw(st.lists(st.sampled_from([1.0, 0.9, 0.5]), min_size=n, max_size=n)))
    ended = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))) & (following < 0)
    return tabular.batch(
        np.full((2, 2), 0.5),
        state=np.zeros(n, dtype=int),
        action=np.zeros(n, dtype=int),
        reward=np.array(draw(st.lists(st.integers(-9, 9), min_size=n, max_size=n)), dtype=float),
        discount=np.where(ended, 0.0, discount),
        next=following,
        unit=episode,
    )


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_return_is_the_rewards_on_the_way_to_the_row_that_takes_over(batch, n, discount):
    """Walked row by row, as one would by hand."""
    want = {}
    for row in range(len(batch)):
        here, total, weight = row, 0.0, 1.0
        for _ in range(n):
            if batch.next[here] < 0 and batch.discount[here] > 0:  # nobody saw what came: the row here takes over
                break
            total += weight * batch.reward[here]
            weight *= discount * batch.discount[here]
            if batch.discount[here] == 0:
                break
            here = batch.next[here]
        if batch.next[row] >= 0 or batch.discount[row] == 0:
            want[row] = (total, weight, here)
    found = n_step(batch, discount, n)
    assert found.row.tolist() == list(want)
    got = zip(found.reward, found.discount, found.until, strict=True)
    assert [pytest.approx(values) for values in want.values()] == list(got)


def test_a_terminated_row_keeps_its_reward_and_a_truncated_one_does_not_end_anything():
    """Two episodes of two steps that pay 1 and then 10; the second one was cut, not over."""
    batch = tabular.batch(
        np.full((1, 2), 0.5),
        state=np.zeros(4, dtype=int),
        action=np.zeros(4, dtype=int),
        reward=np.array([1.0, 10.0, 1.0, 10.0]),
        discount=np.array([1.0, 0.0, 1.0, 1.0]),
        next=np.array([1, -1, 3, -1]),
        unit=np.array([0, 0, 1, 1]),
    )
    found = n_step(batch, 0.5, 5)
    assert found.row.tolist() == [0, 1, 2]
    assert found.reward.tolist() == [6.0, 10.0, 1.0]
    assert found.discount.tolist() == [0.0, 0.0, 0.5]
    assert found.until.tolist()[2] == 3


# nets and their scorer


@pytest.mark.parametrize("hidden", [(), (7,), (64, 64)])
@pytest.mark.parametrize(("context", "candidate"), [(0, 1), (1, 2), (8, 5)])
@pytest.mark.parametrize("kind", ["actions", "features"])
def test_the_exported_graph_gives_the_scorers_own_numbers(kind, context, candidate, hidden):
    """Scores here are around 100, where float32 sums differ by more than the limit of 1e-5."""
    ours = scorer(kind, context, candidate, hidden)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ours.to_onnx(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for n, k in [(0, 2), (1, 1), (1, 4), (256, 1), (256, 9)]:
        rows = rng.normal(size=(n, context)).astype(np.float32)
        candidates = rng.normal(size=(n, k, candidate)).astype(np.float32)
        (exported,) = session.run(None, {"context": rows, "candidates": candidates})
        assert exported.dtype == np.float32
        np.testing.assert_allclose(exported, ours(rows, candidates), rtol=0, atol=1e-5)


def test_exporting_prints_nothing_and_gives_the_same_bytes_again(capfd):
    assert scorer().to_onnx() == scorer().to_onnx()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["actions", "features"])
def test_a_score_depends_on_its_own_row_and_candidate_only(kind):
    """Not on the size of the batch, the part it was scored in, or whether rows share their candidates in memory."""
    ours = scorer(kind)
    rng = np.random.default_rng(0)
    n = nets.PAIRS // 3 + 5  # two parts
    context = rng.normal(size=(n, 2)).astype(np.float32)
    one = rng.normal(size=(1, 3, 3)).astype(np.float32)
    shared = np.broadcast_to(one, (n, 3, 3))
    scores = ours(context, shared)
    assert np.array_equal(scores, ours(context, shared.copy()))
    assert np.array_equal(scores[-1:], ours(context[-1:], one))
    assert np.array_equal(scores[:, ::-1], ours(context, shared[:, ::-1]))


def test_a_named_actions_score_is_the_same_at_every_place_and_an_unknown_action_scores_0():
    ours = scorer("actions")
    context = np.ones((1, 2), dtype=np.float32)
    eye = np.eye(3, dtype=np.float32)
    straight = ours(context, eye[None])
    assert np.array_equal(ours(context, eye[None, [2, 0]]), straight[:, [2, 0]])
    assert ours(context, np.zeros((1, 1, 3), dtype=np.float32)) == 0.0


def test_candidates_that_all_rows_share_are_never_copied_for_every_row():
    """50,000 rows of 50 actions would be 500 MB."""
    n, k = 50_000, 50
    batch = Batch(
        encoder=Encoder(actions=tribe(k)),
        context=np.empty((n, 0), dtype=np.float32),
        candidates=np.broadcast_to(np.eye(k, dtype=np.float32), (n, k, k)),
        mask=np.broadcast_to(True, (n, k)),
        action=np.arange(n) % k,
        propensity=np.full(n, 1 / k),
        reward=np.ones(n),
        metrics=np.empty((n, 0)),
        discount=np.zeros(n),
        next=np.full(n, -1),
        unit=np.arange(n),
    )
    learn.fit(batch.take(np.arange(1)), DQN(steps=1), seed=0)  # what torch imports at its first step is not the rows'
    tracemalloc.start()
    learned = learn.fit(batch, DQN(steps=3), seed=0)
    learned.scorer(batch.context, batch.candidates)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def tribe(count: int) -> tuple[str, ...]:
    return tabular.names("a", count)


def test_rows_can_be_learned_and_scored_from_a_file_that_is_open_for_reading_only(tmp_path):
    batch = tabular.chain(3, horizon=5).sample(20, np.full((3, 2), 0.5), seed=0)
    np.save(tmp_path / "context.npy", batch.context)
    arrays = {name: getattr(batch, name) for name in ("mask", "action", "propensity", "reward", "metrics")}
    mapped = Batch(
        encoder=batch.encoder,
        context=np.load(tmp_path / "context.npy", mmap_mode="r"),
        candidates=batch.candidates,
        discount=batch.discount,
        next=batch.next,
        unit=batch.unit,
        metric_names=batch.metric_names,
        **arrays,
    )
    ours, theirs = (learn.fit(rows, DQN(steps=20), seed=0) for rows in (mapped, batch))
    assert np.array_equal(ours.propensities(mapped), theirs.propensities(batch))


def test_candidates_without_a_column_can_not_be_told_apart_and_are_refused():
    with pytest.raises(DataError, match="name the actions"):
        nets.shape_for(Encoder(context=ENCODER.context), (8,))


def test_candidates_with_features_get_a_net_over_features_even_if_they_are_named_as_well():
    both = Encoder(candidate=(Continuous("price", 1.0, 1.0),), actions=("a", "b"))
    assert nets.shape_for(both, (8,)) == Shape("features", 0, 4, (8,))
    assert nets.shape_for(ENCODER, (8,)) == Shape("actions", 2, 3, (8,))


# policies on disk


def test_a_stored_policy_comes_back_with_the_same_numbers(tmp_path):
    kept = Policy(ENCODER, scorer(), Softmax(2.0, floor=0.1))
    learn.save(kept, tmp_path / "policy")
    back = learn.load(tmp_path / "policy")
    assert (back.encoder, back.explorer) == (kept.encoder, kept.explorer)
    context = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    candidates = np.broadcast_to(np.eye(3, dtype=np.float32), (50, 3, 3))
    assert np.array_equal(back.scorer(context, candidates), kept.scorer(context, candidates))
    assert back.scorer.to_onnx() == kept.scorer.to_onnx()


def test_storing_replaces_what_was_there_leaves_nothing_beside_it_and_gives_the_same_bytes(tmp_path):
    place = tmp_path / "deep" / "policy"
    place.mkdir(parents=True)
    (place / "leftover").touch()
    (place.parent / ".policy.0123456789abcdef.part" / "whole").mkdir(parents=True)  # of a process that was killed
    learn.save(policy(), place)
    first = {path.name: path.read_bytes() for path in place.iterdir()}
    learn.save(policy(), place)
    assert first == {path.name: path.read_bytes() for path in place.iterdir()}
    assert sorted(first) == ["policy.json", "weights.npz"]
    assert list(place.parent.iterdir()) == [place]


def test_a_write_that_fails_leaves_the_policy_that_was_there_and_nothing_beside_it(tmp_path, monkeypatch):
    place = tmp_path / "policy"
    learn.save(policy(), place)
    before = learn.to_onnx(learn.load(place))

    def full(body: bytes) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("msgspec.json.format", full)  # of what is written last
    with pytest.raises(OSError, match="No space left"):
        learn.save(policy(), place)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [place]
    assert learn.to_onnx(learn.load(place)) == before


def test_a_policy_that_no_learner_made_is_neither_stored_nor_exported(tmp_path):
    constant = Policy(ENCODER, constant_scorer, EpsilonGreedy(0.1))
    with pytest.raises(DataError, match="it is constant_scorer, not a net"):
        learn.save(constant, tmp_path / "policy")
    with pytest.raises(DataError, match="it is constant_scorer, not a net"):
        learn.to_onnx(constant)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("gone", ["policy.json", "weights.npz"])
def test_a_file_that_is_not_there_is_named(tmp_path, gone):
    learn.save(policy(), tmp_path / "policy")
    (tmp_path / "policy" / gone).unlink()
    with pytest.raises(NotFoundError, match=gone):
        learn.load(tmp_path / "policy")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_weights_are_never_loaded(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("damaged") / "policy"
    learn.save(policy(), place)
    body = bytearray((place / "weights.npz").read_bytes())
    if data.draw(st.booleans()):
        body = body[: data.draw(st.integers(0, len(body) - 1))]
    else:
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    (place / "weights.npz").write_bytes(body)
    with pytest.raises(DataError, match="SHA-256"):
        learn.load(place)


def stored_with(place: Path, weights: bytes | None = None, **changes: object) -> Path:
    """A stored policy whose parts somebody replaced, with the digest that belongs to them."""
    learn.save(policy(), place)
    table = json.loads((place / "policy.json").read_bytes()) | changes
    if weights is not None:
        (place / "weights.npz").write_bytes(weights)
        table["weights"] = hashlib.sha256(weights).hexdigest()
    (place / "policy.json").write_text(json.dumps(table))
    return place


def archive(tmp_path: Path, **arrays: np.ndarray) -> bytes:
    np.savez(tmp_path / "made.npz", **arrays)
    return (tmp_path / "made.npz").read_bytes()


def test_weights_that_hold_code_or_anything_but_arrays_are_refused(tmp_path):
    bodies = [
        archive(tmp_path, weight=np.array([object()], dtype=object)),
        b"",
        b"PK\x03\x04 not an archive",
        b"\x93NUMPY\x01\x00",
        b"just text",
    ]
    for i, body in enumerate(bodies):
        with pytest.raises(DataError, match="holds no arrays"):
            learn.load(stored_with(tmp_path / str(i), body))


def test_weights_of_another_net_are_refused(tmp_path):
    weights = scorer().weights()
    name = "layers.0.weight"
    wrong = [
        {name: weights[name]},
        weights | {name: weights[name].T},
        weights | {name: weights[name] * np.nan},
        weights | {name: weights[name].astype(int)},
    ]
    for i, arrays in enumerate(wrong):
        with pytest.raises(DataError, match="the weights"):
            learn.load(stored_with(tmp_path / str(i), archive(tmp_path, **arrays)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"net": {"kind": "actions", "context": 2, "candidate": 3, "hidden": [10**12]}}, "width 1000000000000"),
        ({"net": {"kind": "actions", "context": 2, "candidate": 3, "hidden": [65536, 65536]}}, "the weights are"),
        ({"net": {"kind": "actions", "context": 9, "candidate": 3, "hidden": [8]}}, "the net takes 9 and 3"),
        ({"net": {"kind": "actions", "context": -2, "candidate": 3, "hidden": [8]}}, "-2 context"),
        ({"net": {"kind": "other", "context": 2, "candidate": 3, "hidden": [8]}}, "is damaged: Invalid enum value"),
        ({"unit": -1.0}, "the unit of the scores is -1"),
        ({"more": 1}, "is damaged: Object contains unknown field"),
        ({"encoder": {"actions": ["a", "b", "c"]}}, "the encoder makes 0 context"),
    ],
)
def test_a_policy_json_that_we_did_not_write_is_refused(tmp_path, changes, said):
    with pytest.raises(DataError, match=said):
        learn.load(stored_with(tmp_path / "policy", **changes))


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"\xff", b'{"encoder": {}}'])
def test_a_damaged_policy_json_is_refused(tmp_path, body):
    learn.save(policy(), tmp_path / "policy")
    (tmp_path / "policy" / "policy.json").write_bytes(body)
    with pytest.raises(DataError, match="damaged"):
        learn.load(tmp_path / "policy")


# the one training step


@nets.one_thread()
def test_the_training_step_is_adam_and_the_slow_copy_is_its_average():
    """Against torch's own Adam, step by step: its functional form, for the class takes seconds to import."""
    shape = Shape("features", 2, 3, (8, 8))
    student = nets.Student(nets.new_net(shape, nets.generator(0)), nets.cosine(1e-2, 1e-4, 30), polyak=0.1)
    peer = nets.new_net(shape, nets.generator(0))
    weights = [weight.detach() for weight in peer.parameters()]
    mean, square = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    average = [weight.clone() for weight in weights]
    steps = [torch.tensor(0.0) for _ in weights]
    source = torch.Generator().manual_seed(1)
    for done in range(30):
        context, candidates = torch.randn(5, 2, generator=source), torch.randn(5, 4, 3, generator=source)
        student.step(student.net(context, candidates).square().mean())
        loss = peer(context, candidates).square().mean()
        gradient = list(torch.autograd.grad(loss, list(peer.parameters())))
        rate = 1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * done / 30)) / 2
        adam(weights, gradient, mean, square, [], steps, amsgrad=False, beta1=0.9, beta2=0.999, lr=rate,
             weight_decay=0.0, eps=1e-8, maximize=False)  # fmt: skip
        for slow, fast in zip(average, weights, strict=True):
            slow.lerp_(fast, 0.1)
    for ours, theirs in zip(student.net.parameters(), weights, strict=True):
        np.testing.assert_allclose(ours.detach(), theirs, rtol=0, atol=1e-6)
    for ours, theirs in zip(student.slow.parameters(), average, strict=True):
        np.testing.assert_allclose(ours.detach(), theirs, rtol=0, atol=1e-6)


def test_the_learning_rate_falls_from_the_first_to_the_last():
    rate = nets.cosine(1.0, 0.2, 100)
    assert [rate(0), rate(50), rate(100)] == pytest.approx([1.0, 0.6, 0.2])
