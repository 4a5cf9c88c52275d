"""Numbers as actions from a log to a report, through the verbs."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

import product
from dosing_project import LATER, TOML, WORLD, S, imported
from steersman import flow, log, timeline
from steersman.config import Project
from steersman.core.decision import Decision, Numbers, Problem, uniform_draws
from steersman.core.density import Gaussian, NumbersExplorer, Point, UniformBox
from steersman.core.errors import DataError, Error
from steersman.core.features import Encoder
from steersman.core.policy import Policy
from steersman.core.version import Parents, Version
from steersman.models.graph import Graph
from steersman.models.warehouse import Warehouse
from steersman.serve import asking, decide


def served(made: Project, count: int) -> list[Decision]:
    """Decisions of the champion, durable in the log."""
    version, data = Warehouse(made.warehouse_url).read("dose", 1)
    problem, graph = made.policy("dose").problem, Graph(data)
    read = asking.reader(problem)
    together = decide.same_alone(version.encoder, (), graph.scores) and graph.rowwise
    assert together
    ids = iter(range(count))
    bodies = [json.dumps({"unit": f"u{i}", "context": {"x": i / count}}).encode() for i in range(count)]
    requests = [read(body, lambda: f"d{next(ids)}") for body in bodies]
    encoded = decide.encode(version.encoder, requests)
    scores = decide.score_rows(graph.scores, encoded, together)
    made_now = decide.decide(problem, version, requests, scores, encoded.mask, 7 * S)
    with log.Pen(made.log_directory) as pen:
        pen.append([(log.DECISION, msgspec.json.encode(decision)) for decision in made_now])
        pen.flush()
    return made_now


def test_the_uniform_policy_of_a_problem_of_numbers_decides_and_is_replayed_bit_for_bit(tmp_path):
    made = product.project(tmp_path, TOML)
    assert flow.publish_uniform(made, "dose").explorer == UniformBox()
    decisions = served(made, 200)
    actions = np.array([decision.action for decision in decisions])
    assert actions.shape == (200, 1)
    assert -1 <= actions.min() < -0.9 < 2.9 < actions.max() <= 3
    assert {decision.propensity for decision in decisions} == {0.25}
    again = flow.replay_all(made, [decision.id for decision in decisions[:5]])
    assert all(one.identical for one in again)


def test_a_request_for_numbers_has_no_candidates(tmp_path):
    read = asking.reader(product.project(tmp_path, TOML).policy("dose").problem)
    with pytest.raises(DataError, match="there are no candidates"):
        read(b'{"unit": "u", "candidates": [{"id": "a"}]}', lambda: "d")


@pytest.mark.parametrize("explorer", [Gaussian(0.2, 0.1), Point()], ids=str)
def test_a_log_of_numbers_is_built_and_a_policy_judged_on_it(tmp_path, explorer):
    made = imported(tmp_path)
    built = flow.build(made, "dose", until=LATER, as_of=LATER)
    assert built.decisions == 1500
    target = WORLD.policy(explorer, 0.5, 0.2)
    encoder = timeline.load(Path(built.directory)).encoder
    column = encoder.context_columns().index("x")
    transform = encoder.context[0]

    def scorer(context: np.ndarray, none: np.ndarray) -> np.ndarray:
        x = context[:, column].astype(np.float64) * transform.std + transform.mean
        return target.scorer(x[:, None].astype(np.float32), none)

    report = flow.judge_policy(made, "dose", Policy(encoder, scorer, explorer), "0" * 64)
    assert report.headline.estimator == ("dr" if target.explorer != Point() else "kernel-dr")
    assert report.headline.low <= WORLD.value(target) <= report.headline.high
    assert report.decisions == 1500
    assert report.passed


def version(explorer: NumbersExplorer, box: Numbers = WORLD.box) -> Version:
    return Version(
        name="dose", number=3, digest="d", graph="model.onnx", encoder=Encoder(numbers=box), explorer=explorer,
        seed="s", parents=Parents("", "", ""), made_at=0,
    )  # fmt: skip


def decided(by: Version, scores: np.ndarray, ids: list[str]) -> list[Decision]:
    problem = Problem(name="dose", actions=WORLD.box, reward="gain", wait_s=0)
    requests = [asking.Request(id, "u", {}, ()) for id in ids]
    return decide.decide(problem, by, requests, scores, np.ones((len(ids), 0), dtype=bool), 7)


def test_a_decision_is_a_draw_of_its_id_and_its_propensity_the_density():
    by, ids = version(Gaussian(0.1, 0.05)), [f"d{i}" for i in range(50)]
    scores = np.linspace(-1, 3, 50, dtype=np.float32)[:, None]
    together = decided(by, scores, ids)
    alone = [decided(by, scores[i : i + 1], ids[i : i + 1])[0] for i in range(50)]
    assert together == alone
    uniforms = np.array([uniform_draws("s", id, 2) for id in ids])[:, None]
    want = by.explorer.draw(scores, uniforms, WORLD.box)[:, 0]
    assert [list(one.action) for one in together] == want.tolist()
    assert [one.propensity for one in together] == by.explorer.density(scores, want, WORLD.box).tolist()
    assert msgspec.json.decode(msgspec.json.encode(together[0]), type=Decision) == together[0]


def test_a_version_without_a_density_or_with_other_bounds_can_not_decide():
    scores = np.zeros((1, 1), dtype=np.float32)
    with pytest.raises(Error, match="dose/3 can not decide: a policy without chance has no density"):
        decided(version(Point()), scores, ["d"])
    with pytest.raises(Error, match="dose/3 decides within"):
        decided(version(Gaussian(0.1), Numbers(low=(0.0,), high=(1.0,))), scores, ["d"])
    with pytest.raises(Error, match="dose/3 can not decide: row 0: a score is not finite"):
        decided(version(Gaussian(0.1)), scores * np.nan, ["d"])
