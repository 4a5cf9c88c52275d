"""What is seen of a training: figures and estimates, in TensorBoard's files and beside the candidate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bandit_project import TOML, offers
from steersman import cli, config, flow, timeline
from steersman.core.errors import GateError, MissingExtra
from steersman.core.report import Learned, Report
from steersman.flow import watching
from steersman.models.warehouse import Warehouse


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> config.Project:
    made = offers(tmp_path_factory.mktemp("shop"))
    flow.train(made, "offer")  # tests may run in any order, in several processes
    return made


def events(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, number), as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_training_writes_what_it_sees_and_the_official_reader_reads_it_back(shop: config.Project, capsys) -> None:
    runs = shop.root / "runs"
    where = ["--project", str(shop.root)]
    assert run(capsys, "train", "offer", "--tensorboard", str(runs), *where)[0] == 0
    candidate = flow.latest_candidate(shop, "offer")
    [directory] = runs.iterdir()
    assert directory.name == f"offer-{Path(candidate.directory).name}"
    found = events(directory)
    assert {"train/loss", "train/q", "train/q_largest", "train/steps_per_s"} <= set(found)
    for estimator in ("ips", "snips", "dr"):
        for end in ("", "/low", "/high"):
            assert f"CPE/reward/{estimator}{end}" in found
    assert {"CPE/clicks/dr", "CPE/complaints/dr"} <= set(found)
    learning = msgspec.json.decode((Path(candidate.directory) / "learning.json").read_bytes(), type=list[Learned])
    assert [step for step, _ in found["train/loss"]] == [one.step for one in learning] == [100, 200, 300, 400]
    for one in learning:  # the files hold float32
        assert dict(found["train/loss"])[one.step] == pytest.approx(one.figures["loss"], rel=1e-6)
        headline = one.values[0]
        assert headline.estimator == "dr"
        assert dict(found["CPE/reward/dr"])[one.step] == pytest.approx(headline.value, rel=1e-6)
        assert dict(found["CPE/reward/dr/low"])[one.step] == pytest.approx(headline.low, rel=1e-6)


def test_the_estimates_are_of_the_validation_units_and_of_the_policy_that_would_be_served(shop) -> None:
    candidate = flow.train(shop, "offer", seed=3)
    learning = watching.read(Path(candidate.directory))
    built = timeline.load(Path(candidate.build))
    _, held, test = timeline.parts(built.unit, built.draws, 0.2, 0.3)
    assert not set(held) & set(test)
    last = learning[-1].values[0]
    assert last.n == len(np.unique(built.unit[held]))
    # 0.9 of the decisions take what is right, the rest any of three: 0.2 + 0.5 * (0.9 + 0.1 / 3) - 0.06
    assert last.low < 0.2 + 0.5 * (0.9 + 0.1 / 3) - 0.06 < last.high
    assert learning[0].step < learning[-1].step


def test_the_learning_is_in_the_report_and_on_its_page(shop: config.Project, capsys) -> None:
    candidate = flow.train(shop, "offer")
    where = ["--project", str(shop.root)]
    page = shop.root / "page.html"
    code, out, _ = run(capsys, "evaluate", "offer", "--report", str(page), *where)
    assert code == 0
    assert str(page) in out
    report = msgspec.json.decode((Path(candidate.directory) / "report.json").read_bytes(), type=Report)
    assert report.learning == watching.read(Path(candidate.directory))
    assert [one.action for one in report.shares] and report.previous == "offer@1"
    assert "How was it trained?" in page.read_text()
    [kept] = [one for one in report.learning if one.picked]
    assert f"This policy is that of step {kept.step}, the best by dr" in page.read_text()
    assert f"kept at step {kept.step}" in page.read_text()
    code, out, _ = run(capsys, "evaluate", "offer", "--report", "--json", *where)
    assert msgspec.convert(json.loads(out), Report) == report
    assert (Path(candidate.directory) / "report.html").read_text() == page.read_text()


def test_a_version_is_stored_with_the_page_of_its_report(shop: config.Project, capsys) -> None:
    flow.train(shop, "offer")
    flow.judge(shop, "offer")
    flow.export(shop, "offer")
    version = flow.publish(shop, "offer")
    stored = Path(shop.warehouse_url) / "offer" / str(version.number)
    assert sorted(path.name for path in stored.iterdir()) == [
        "model.onnx",
        "report.html",
        "report.json",
        "version.json",
    ]
    assert "<svg" in (stored / "report.html").read_text()
    where = ["--project", str(shop.root)]
    code, out, _ = run(capsys, "evaluate", f"offer@{version.number}", "--report", *where)
    assert code == 0
    path = Path(out.split("wrote")[1].split()[0])
    assert path.parent == shop.root / "builds" / "offer"
    assert f"offer@{version.number}" in path.read_text()


def test_a_version_whose_gates_fail_or_that_nobody_judged_is_published_by_force_alone_and_says_so(shop) -> None:
    offer = shop.policies["offer"]
    barred = msgspec.structs.replace(offer, gates=msgspec.structs.replace(offer.gates, margin=9.0))
    strict = msgspec.structs.replace(shop, policies={"offer": barred})
    warehouse = Warehouse(shop.warehouse_url)
    flow.train(shop, "offer", seed=5)
    flow.export(shop, "offer")
    before = warehouse.numbers("offer")
    with pytest.raises(GateError, match="nobody judged it"):
        flow.publish(shop, "offer")
    flow.judge(strict, "offer")
    with pytest.raises(GateError, match="lower bound") as refused:
        flow.publish(shop, "offer")
    assert "--force" in refused.value.hint
    assert warehouse.numbers("offer") == before
    number = flow.publish(shop, "offer", force=True).number
    stored, _ = warehouse.read("offer", number)
    assert stored.forced
    assert {v.gate for v in stored.report.verdicts if v.status == "fail"} == {"lower bound"}
    flow.judge(shop, "offer")
    assert not flow.publish(shop, "offer", force=True).forced  # nothing had to be forced


def test_looking_changes_nothing_of_what_is_learned(shop: config.Project, tmp_path: Path) -> None:
    quiet = flow.train(shop, "offer", seed=1)
    watched = flow.train(shop, "offer", seed=1, tensorboard=tmp_path)
    assert quiet.policy == watched.policy


def test_without_validation_units_there_are_figures_and_no_estimates_and_it_is_said(tmp_path: Path, capsys) -> None:
    offers(tmp_path, TOML.replace("validation = 0.2\n", ""), n=200)
    where = ["--project", str(tmp_path)]
    code, out, _ = run(capsys, "train", "offer", "--tensorboard", str(tmp_path / "runs"), *where)
    assert code == 0
    assert "no CPE" in out
    assert "[problem.offer.learn] validation" in out
    [directory] = (tmp_path / "runs").iterdir()
    assert {tag.split("/")[0] for tag in events(directory)} == {"train"}


def test_an_estimate_that_can_not_be_made_is_told_and_training_goes_on(shop: config.Project) -> None:
    built = timeline.load(Path(flow.latest_candidate(shop, "offer").build))
    one_unit = watching.validation(built.batch, np.array([0]))
    look = watching.Watching(one_unit, shop.policy("offer"), seed=0)
    policy = flow.judging.stored_policy(shop, "offer", "1")[1]
    look(100, 100, {"loss": 1.0}, lambda: policy)
    assert look.learned[0].values == ()
    assert look.learned[0].refused


def test_a_long_training_is_estimated_ten_times_and_at_its_end(shop: config.Project) -> None:
    built = timeline.load(Path(flow.latest_candidate(shop, "offer").build))
    look = watching.Watching(None, shop.policy("offer"), seed=0)
    asked = []

    def now():
        asked.append(len(look.learned))
        raise AssertionError

    look(100, 100, {}, now)
    assert not asked  # nobody pays for a policy that is not estimated
    look = watching.Watching(watching.validation(built.batch, np.arange(300)), shop.policy("offer"), seed=0)
    policy = flow.latest_candidate(shop, "offer")
    made = flow.learn.load(Path(policy.directory) / "policy")
    for step in range(100, 4050, 100):
        look(min(step, 4000), 4000, {"loss": 1.0}, lambda: made)
    assert [one.step for one in look.learned if one.values] == list(range(400, 4001, 400))


def test_of_many_validation_rows_whole_units_are_looked_at(shop: config.Project, monkeypatch) -> None:
    batch = timeline.load(Path(flow.latest_candidate(shop, "offer").build)).batch
    monkeypatch.setattr(watching, "MOST_ROWS", 100)
    few = watching.validation(batch, np.arange(700))
    assert few is not None
    assert 90 <= len(few) <= 100
    assert watching.validation(batch, np.arange(0)) is None


def test_without_the_extra_training_does_not_begin(shop: config.Project, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtra) as error:
        flow.train(shop, "offer", seed=9, tensorboard=tmp_path)
    assert 'pip install "steersman[tensorboard]"' in error.value.hint


def test_watching_needs_no_tensorboard() -> None:
    script = "import sys; sys.modules['tensorboardX'] = None; import steersman.flow"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
