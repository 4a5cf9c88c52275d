"""Bandits through the verbs: served, made again, and added to window by window without counting a decision twice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from bandit_project import DAY, TOML, S, write
from product import project
from steersman import cli, config, flow, learn, timeline
from steersman.core.decision import Candidate
from steersman.core.errors import ConfigError, ConflictError, NotFoundError
from steersman.core.policy import Thompson
from steersman.flow.judging import encoded_by
from steersman.models import onnx
from steersman.models.graph import Graph
from steersman.models.warehouse import Warehouse
from steersman.serve import asking, decide

LEARNER = "validation = 0.2\nsettings = { steps = 400, hidden = [16], learning_rate = 0.01, batch_size = 128 }"
LINEAR = TOML.replace(LEARNER, 'learner = "linear"\nvalidation = 0.1')
EXPLORER = 'explorer = { kind = "thompson", floor = 0.05 }'
SAMPLED = LINEAR.replace('"linear"', '"thompson"\n' + EXPLORER)


def window(made: config.Project, first: int, last: int) -> flow.Built:
    """A build of the days [first, last)."""
    return flow.build(made, "offer", since=first * DAY * S, until=last * DAY * S, as_of=last * DAY * S)


def weights(candidate: flow.Candidate) -> np.ndarray:
    with np.load(Path(candidate.directory) / "policy" / "weights.npz") as archive:
        return archive["weight"]


@pytest.fixture
def three_days(tmp_path: Path) -> config.Project:
    made = project(tmp_path, LINEAR)
    for day in (1, 2, 3):
        write(made, day, 300 * day)
    return made


def test_windows_added_one_after_the_other_are_one_fit_on_all_their_decisions(three_days):
    made = three_days
    window(made, 1, 2)
    first = flow.train(made, "offer")
    encoder = learn.load(Path(first.directory) / "policy").encoder
    for day in (2, 3):
        window(made, day, day + 1)
        added = flow.train(made, "offer", add=True)
    _, difference = flow.export(made, "offer")
    assert difference < 1e-5
    assert flow.judge(made, "offer").since == 3 * DAY * S

    whole = timeline.load(Path(window(made, 1, 4).directory))
    batch, _ = encoded_by(encoder, whole)
    rows, _, _ = timeline.parts(whole.unit, whole.draws, 0.1, 0.3)
    once = learn.fit(batch.take(rows), learn.configure("linear", {}), 0)
    assert weights(added) == pytest.approx(once.scorer.weights()["weight"], rel=0, abs=1e-9)
    assert np.abs(weights(added) - weights(first)).max() > 1e-3
    assert added.directory != first.directory
    assert added.data != first.data


def test_a_decision_never_counts_twice(three_days):
    made = three_days
    window(made, 1, 3)
    flow.train(made, "offer")
    for first, last in [(1, 3), (2, 4), (1, 2), (0, 4)]:
        window(made, first, last)
        with pytest.raises(ConflictError, match="its decisions would count twice") as refused:
            flow.train(made, "offer", add=True)
        assert "steersman build offer --since 1970-01-04T00:00:00" in refused.value.hint
    window(made, 3, 4)
    flow.train(made, "offer", add=True)
    with pytest.raises(ConflictError, match="count twice"):
        flow.train(made, "offer", add=True)


def test_decisions_that_still_wait_are_left_to_the_next_window(tmp_path):
    """The wait is an hour, the build two hours after noon: the window is over with the last decision that is in."""
    made = project(tmp_path, LINEAR.replace("wait_s = 0", "wait_s = 100"))
    write(made, 1, 300)  # a decision a second
    now = (DAY + 250) * S
    built = flow.build(made, "offer", until=(DAY + 300) * S, as_of=now)
    assert (built.decisions, built.counts.waiting) == (151, 149)
    flow.train(made, "offer")
    flow.build(made, "offer", since=(DAY + 150) * S, as_of=2 * DAY * S)
    with pytest.raises(ConflictError, match="count twice"):
        flow.train(made, "offer", add=True)
    rest = flow.build(made, "offer", since=(DAY + 150) * S + 1, as_of=2 * DAY * S)
    assert rest.decisions == 149
    flow.train(made, "offer", add=True)


def test_decisions_of_a_clock_that_is_ahead_are_left_out_and_counted(tmp_path, capsys):
    made = project(tmp_path, LINEAR)
    write(made, 1, 60)
    assert flow.build(made, "offer").ahead == 0
    write(made, 40_000, 50)  # in 2079
    assert cli.main(["build", "offer", "--project", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "batch 60 decisions" in said and "ahead 50 decisions are stamped later than now" in said


def test_what_can_not_be_added_to_is_refused(three_days, tmp_path):
    made = three_days
    window(made, 1, 2)
    flow.train(made, "offer")
    window(made, 2, 3)
    (made.root / config.FILE).write_text(LINEAR.replace('"linear"', '"linear"\nsettings = { ridge = 2.0 }'))
    with pytest.raises(ConflictError, match="made with other settings"):
        flow.train(config.load(made.root), "offer", add=True)
    (made.root / config.FILE).write_text(TOML.replace("steps = 400", "steps = 5"))
    net = config.load(made.root)
    flow.train(net, "offer")
    with pytest.raises(NotFoundError, match="of dqn, kept no sums to add to"):
        flow.train(net, "offer", add=True)


def test_the_console_adds(three_days, capsys):
    made = three_days
    window(made, 1, 2)
    flow.train(made, "offer")
    window(made, 2, 3)
    assert cli.main(["train", "offer", "--add", "--project", str(made.root)]) == 0
    assert "trained linear" in capsys.readouterr().out


def test_damaged_sums_are_refused(three_days):
    made = three_days
    window(made, 1, 2)
    path = Path(flow.train(made, "offer").directory) / "sums.npz"
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    window(made, 2, 3)
    with pytest.raises(learn.DataError, match="its SHA-256 differs"):
        flow.train(made, "offer", add=True)


def test_thompson_is_served_with_exact_propensities_and_made_again_bit_for_bit(tmp_path):
    """Requests with all names and with some: the propensity is the share of draws, and a replay gives it again."""
    made = project(tmp_path, SAMPLED)
    write(made, 1, 400)
    window(made, 1, 2)
    flow.train(made, "offer")
    flow.export(made, "offer")
    number = flow.publish(made, "offer", force=True).number
    version, body = Warehouse(made.warehouse_url).read("offer", number)
    graph, problem = Graph(body), made.policy("offer").problem
    policy = learn.load(Path(flow.latest_candidate(made, "offer").directory) / "policy")
    assert policy.explorer == version.explorer == Thompson(floor=0.05)
    random = np.random.default_rng(0)
    offered = [("early", "late", "never"), ("early", "late"), ("never",), ("late", "never")]
    requests = [
        asking.Request(
            f"r{i}", f"u{i}", {"hour": float(random.integers(24))},
            tuple(Candidate(id=name) for name in offered[i % 4]), None,
        )
        for i in range(60)
    ]  # fmt: skip
    encoded = decide.encode(version.encoder, requests)
    together = graph.rowwise and decide.same_alone(version.encoder, version.encoder.actions, graph.scores)
    scores = decide.score_rows(graph.scores, encoded, together)
    assert scores.shape == (60, 3, 128)
    decisions = decide.decide(problem, version, requests, scores, encoded.mask, 0)
    context, candidates = (
        policy.encoder.encode_context(encoded.context),
        policy.encoder.encode_candidates(encoded.candidates, encoded.ids),
    )
    chances = policy.explorer.probabilities(policy.scorer(context, candidates), encoded.mask)
    shares = (chances - 0.05 / encoded.mask.sum(axis=1, keepdims=True)) / 0.95 * 128
    assert shares[encoded.mask] == pytest.approx(shares[encoded.mask].round(), abs=1e-9)
    for row, (request, decision) in enumerate(zip(requests, decisions, strict=True)):
        place = [candidate.id for candidate in request.candidates].index(decision.action)
        assert decision.propensity == pytest.approx(chances[row, place], abs=1e-12)
        assert decide.replay(decision, problem, version, graph.scores) == (decision.action, decision.propensity)
    assert len({decision.propensity for decision in decisions}) > 3
    stored = onnx.encoded_scorer(body)
    assert np.abs(stored(context, candidates) - policy.scorer(context, candidates))[encoded.mask].max() < 1e-5


def test_an_explorer_that_samples_needs_a_learner_that_draws(tmp_path):
    made = project(tmp_path, LINEAR.replace('"linear"', '"linear"\n' + EXPLORER))
    write(made, 1, 50)
    window(made, 1, 2)
    with pytest.raises(ConfigError, match="the explorer thompson has nothing to sample: linear learns no posterior"):
        flow.train(made, "offer")


def test_kept_windows_say_what_was_learned_from(three_days):
    made = three_days
    window(made, 1, 2)
    flow.train(made, "offer")
    window(made, 2, 3)
    kept = msgspec.json.decode((Path(flow.train(made, "offer", add=True).directory) / "kept.json").read_bytes())
    assert [(one["since"], one["until"]) for one in kept["windows"]] == [
        (DAY * S, 2 * DAY * S), (2 * DAY * S, 3 * DAY * S),
    ]  # fmt: skip
    assert 150 < kept["windows"][0]["rows"] < 240 < kept["windows"][1]["rows"] < 420


def test_a_posterior_is_sampled_unless_the_project_names_another_explorer(tmp_path):
    made = project(tmp_path, LINEAR.replace('"linear"', '"beta-thompson"\nsettings = { lowest = -1.0 }'))
    write(made, 1, 60)
    window(made, 1, 2)
    flow.train(made, "offer")
    assert learn.load(Path(flow.latest_candidate(made, "offer").directory) / "policy").explorer == Thompson()
