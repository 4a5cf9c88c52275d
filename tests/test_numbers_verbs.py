"""Numbers as actions through the verbs of a user: init, serve over HTTP, replay, compare, train, and the pages."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dosing_project import LATER, WORLD, S, imported
from product import Client, serving
from steersman import cli, config, flow, learn, timeline
from steersman.config import LearnConfig, Project
from steersman.core.density import Aims, Gaussian, NumbersExplorer, Point, Squashed, UniformBox
from steersman.core.errors import ConfigError, DataError
from steersman.core.policy import Policy
from steersman.core.version import Parents
from steersman.evaluate import Gates
from steersman.flow import comparing, judging, watching
from steersman.models import onnx
from steersman.models.warehouse import Draft, Warehouse

GATES = Gates(min_ess=50, max_action_drift=0.1, max_psi=0.2)


@pytest.fixture(scope="module")
def dose(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a build of 1,500 decisions; version 2 and 3 aim at the share 0.5 + 0.2 x of the bounds."""
    made = imported(tmp_path_factory.mktemp("dose"))
    flow.build(made, "dose", until=LATER, as_of=LATER)
    for explorer in (Gaussian(0.2, 0.1), Point()):
        published(made, explorer)
    policy = msgspec.structs.replace(made.policy("dose"), gates=GATES)
    return msgspec.structs.replace(made, policies={"dose": policy})


def published(made: Project, explorer: NumbersExplorer) -> None:
    encoder = timeline.load(Path(flow.places.latest(made, "builds", "dose", hint=""))).encoder
    place, of_x = encoder.context_columns().index("x"), encoder.context[0]
    slope = np.zeros((encoder.context_width, 1), dtype=np.float32)
    slope[place] = 4 * 0.2 * of_x.std  # the bounds are 4 wide, and x is standardised
    constants = {"slope": slope, "centre": np.array([1 + 4 * 0.2 * of_x.mean], dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["context", "slope"], ["moved"]),
        helper.make_node("Add", ["moved", "centre"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "aim",
        [helper.make_tensor_value_info("context", TensorProto.FLOAT, ["N", encoder.context_width])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    draft = Draft(
        name="dose", encoder=encoder, explorer=explorer, parents=Parents("", "", ""), seed="s", made_at=0,
    )  # fmt: skip
    Warehouse(made.warehouse_url).publish(draft, onnx.compose(encoder, model.SerializeToString()))


def judged(made: Project, version: str) -> flow.Report:
    return flow.judge(made, "dose", version=version)


# ---- init and serve


def test_init_offers_numbers_and_the_server_decides_them_as_its_example_says(tmp_path: Path, capsys) -> None:
    assert cli.main(["init", str(tmp_path), "--name", "heat", "--low", "-1", "0", "--high", "3", "0.1"]) == 0
    made = config.load(tmp_path)
    text = (tmp_path / config.FILE).read_text().replace('"clicks"', '"-cost"')
    (tmp_path / config.FILE).write_text(text.replace("clicks", "cost"))
    made = config.load(tmp_path)
    example = json.loads(flow.example_request(made, "heat"))
    assert set(example) == {"unit", "context"}
    assert set(example["context"]) == {"hour", "device"}
    answers = []
    with serving(made) as url:
        client = Client(url)
        for number in range(40):
            code, answer = client.post("/v1/decide/heat", example | {"unit": f"u{number}"})
            assert code == 200
            answers.append(answer)
            outcome = {"decision": answer["id"], "metrics": {"cost": answer["action"][0]}}
            assert client.post("/v1/outcome", outcome)[0] == 200
        code, refused = client.post("/v1/decide/heat", example | {"candidates": [{"id": "a"}]})
        assert (code, refused["field"]) == (400, "candidates")
    actions = np.array([answer["action"] for answer in answers])
    assert actions.shape == (40, 2)
    assert (actions >= [-1, 0]).all()
    assert (actions <= [3, 0.1]).all()
    assert actions.std(axis=0) == pytest.approx([4 / np.sqrt(12), 0.1 / np.sqrt(12)], rel=0.3)
    assert {answer["propensity"] for answer in answers} == {1 / (4 * 0.1)}
    capsys.readouterr()
    again = [flow.replay(made, answer["id"]) for answer in answers[:3]]
    assert all(one.identical for one in again)
    assert cli.main(["replay", answers[0]["id"], "--project", str(tmp_path)]) == 0
    assert "identical" in capsys.readouterr().out
    batch = timeline.load(Path(flow.build(made, "heat", as_of=int((time.time() + 700) * S)).directory)).batch
    assert len(batch) == 40
    assert batch.reward == pytest.approx(-batch.action[:, 0].astype(np.float64), rel=1e-6)


def test_bounds_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    assert cli.main(["init", str(tmp_path / "new"), "--low", "0", "1", "--high", "1"]) == DataError.exit_code
    assert "2 bounds and actions.high 1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_training_numbers_is_refused_with_the_reason(dose: Project, capsys) -> None:
    assert cli.main(["train", "dose", "--project", str(dose.root)]) == DataError.exit_code
    assert "the actions of this batch are numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("learner", "explorer"), [("td3", Gaussian(0.1, 0.2)), ("sac", None), ("planned", Gaussian(0.1, 0.2))]
)
def test_numbers_are_trained_exported_judged_published_served_and_replayed(
    tmp_path: Path, learner: str, explorer: NumbersExplorer | None
) -> None:
    made = imported(tmp_path, 600, ends="terminated")
    settings = {"steps": 400, "hidden": [16], "batch_size": 64, "learning_rate": 5e-3}
    policy = msgspec.structs.replace(made.policy("dose"), learn=LearnConfig(learner, explorer, settings=settings))
    made = msgspec.structs.replace(made, policies={"dose": policy})
    flow.build(made, "dose", until=LATER, as_of=LATER)
    trained = flow.train(made, "dose")
    _, difference = flow.export(made, "dose")
    assert difference <= 1e-5
    learned = learn.load(Path(trained.directory) / "policy")
    report = flow.judge(made, "dose")
    assert report.headline.low <= WORLD.value(learned) <= report.headline.high
    assert WORLD.value(learned) > WORLD.value(WORLD.policy(UniformBox())) + 0.05
    number = flow.publish(made, "dose", force=True).number
    flow.promote(made, "dose", str(number))
    with serving(made) as url:
        request = {"unit": "a", "context": {"x": 0.5}}
        answers = [Client(url).post("/v1/decide/dose", request | {"unit": f"u{i}"})[1] for i in range(20)]
    action = np.array([answer["action"] for answer in answers], dtype=np.float32)
    raw = learned.encoder.raw_context([{"x": 0.5}] * 20)
    context = learned.encoder.encode_context(raw)
    assert learned.explorer == (explorer or Squashed(0.05))  # what reads a density, if nobody names another
    aims = Aims(learned.explorer, learned.scorer(context, np.zeros((20, 0, 0), dtype=np.float32)), WORLD.box)
    assert [answer["propensity"] for answer in answers] == pytest.approx(aims.density(action).tolist(), rel=1e-4)
    assert all(flow.replay(made, answer["id"]).identical for answer in answers[:3])


def test_an_explorer_that_can_not_read_what_is_learned_is_refused_before_the_training(dose: Project, capsys) -> None:
    policy = msgspec.structs.replace(dose.policy("dose"), learn=LearnConfig("sac", Gaussian(0.1)))
    made = msgspec.structs.replace(dose, policies={"dose": policy})
    with pytest.raises(ConfigError, match="the explorer gaussian can not read what SAC learns") as refused:
        flow.train(made, "dose")
    assert refused.value.hint == "use an explorer of kind squashed or box"


# ---- versions, beside each other and beside the champion


def test_versions_of_numbers_are_compared_on_the_same_rows_and_the_difference_covers_the_truth(dose: Project) -> None:
    found = comparing.compare(dose, "dose", ["1", "2"])
    aimed, even = (WORLD.value(WORLD.policy(which, 0.5, 0.2)) for which in (Gaussian(0.2, 0.1), UniformBox()))
    difference = found.versions[1].difference
    assert found.refused == ()
    assert difference.low <= aimed - even <= difference.high
    assert difference.low > 0


def test_a_headline_of_another_kind_is_not_paired_but_said(dose: Project, capsys) -> None:
    page = dose.root / "compare.html"
    where = ["--report", str(page), "--project", str(dose.root)]
    assert cli.main(["compare", "dose@1", "dose@2", "dose@3", *where]) == 0
    assert "its headline is kernel-dr, that of the first is dr" in capsys.readouterr().out
    text = page.read_text()
    for side in comparing.compare(dose, "dose", ["1", "3"]).versions:
        assert f"{side.report.headline.value:.4g}" in text


def test_drift_of_the_actions_from_the_champion_is_not_identified_and_not_passed_over(dose: Project) -> None:
    found = {verdict.gate: verdict for verdict in judged(dose, "2").verdicts}
    assert found["action drift"].status == "not identified"
    assert "dose@1 can not be compared with: its actions are not one candidate" in found["action drift"].reason
    assert found["feature drift, psi"].status == "pass"  # the champion learned nothing


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_a_report_of_numbers_has_a_page_with_its_figures(dose: Project, version: str, tmp_path: Path) -> None:
    report = judged(dose, version)
    text = flow.draw(dose, "dose", version, report, tmp_path / "report.html").read_text()
    assert "<svg" in text
    assert f"{report.headline.value:.4g}" in text
    for estimate in report.estimates:
        assert estimate.estimator in text


# ---- while it is trained


@pytest.mark.parametrize(("version", "asked"), [("2", {"dr", "ips", "snips"}), ("3", {"kernel-dr", "kernel-snips"})])
def test_a_policy_of_numbers_is_estimated_while_it_is_trained(dose: Project, version: str, asked: set[str]) -> None:
    batch = timeline.load(Path(flow.places.latest(dose, "builds", "dose", hint=""))).batch
    stored = judging.stored_policy(dose, "dose", version)[1]
    settings = dose.policy("dose")
    learn = msgspec.structs.replace(settings.learn, explorer=stored.explorer)
    look = watching.Watching(batch, msgspec.structs.replace(settings, learn=learn), seed=0)
    look(100, 100, {"loss": 1.0}, lambda: stored)
    assert look.learned[0].refused == ""
    assert {one.estimator for one in look.learned[0].values} == asked
    truth = WORLD.value(WORLD.policy(stored.explorer, 0.5, 0.2))
    headline = look.learned[0].values[0]
    assert headline.low <= truth <= headline.high


def test_an_explorer_of_candidates_is_told_while_it_is_trained(dose: Project) -> None:
    batch = timeline.load(Path(flow.places.latest(dose, "builds", "dose", hint=""))).batch
    look = watching.Watching(batch, dose.policy("dose"), seed=0)
    look(100, 100, {"loss": 1.0}, lambda: Policy(batch.encoder, WORLD.policy(Point()).scorer, Point()))
    assert look.learned[0].values == ()
    assert "decides over candidates, and the actions are numbers" in look.learned[0].refused
