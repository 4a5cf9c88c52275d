"""Ranked lists from a log to a report, through the verbs."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

import product
from steersman import cli, flow, log, timeline
from steersman.config import Project
from steersman.core.decision import Candidate, Decision, Outcome
from steersman.core.policy import Policy, Softmax
from steersman.worlds import tabular
from steersman.worlds.rankings import ranking

TOML = """
[problem.page]
actions = { kind = "ranked", slots = 3, names = ["a0", "a1", "a2", "a3", "a4", "a5"] }
reward = "clicks"
wait_s = 0
context = { state = "text" }
default_outcome = { clicks = 0 }

[problem.page.evaluate]
reward_range = [0, 3]
"""
S = 1_000_000
WORLD = ranking("cascade", far=0.5)
STATES, ITEMS = WORLD.appeal.shape
N = 3000


def written(directory: Path, *, joint: bool = False, toml: str = TOML) -> Project:
    """A project with a log of the world's behavior policy, by our own pen; joint: only the chance of whole lists."""
    made = product.project(directory, toml)
    state, lists, propensity, clicks = WORLD.draw(N, 1)
    first = tabular.softmax(WORLD.behavior)[state]
    names = tabular.names("a", ITEMS)
    candidates = tuple(Candidate(id) for id in names)
    lines = []
    for i in range(N):
        slots = {"propensities": tuple(propensity[i].tolist()), "first_propensities": tuple(first[i].tolist())}
        decision = Decision(
            id=f"d{i}", problem="page", unit=f"u{i}", at=i * S, context={"state": f"s{state[i]}"},
            candidates=candidates, action=tuple(names[place] for place in lists[i]),
            propensity=float(propensity[i].prod()), **({} if joint else slots),
        )  # fmt: skip
        lines.append((log.DECISION, msgspec.json.encode(decision)))
        for slot in np.flatnonzero(clicks[i]):
            id, item = f"o{i}-{slot}", names[lists[i, slot]]
            outcome = Outcome(id=id, decision=f"d{i}", at=i * S, metrics={"clicks": 1.0}, item=item)
            lines.append((log.OUTCOME, msgspec.json.encode(outcome)))
    with log.Pen(made.log_directory) as pen:
        pen.append(lines)
        pen.flush()
    return made


def run(capsys: pytest.CaptureFixture[str], made: Project, *arguments: str) -> tuple[int, dict, str]:
    code = cli.main([*arguments, "--project", str(made.root), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_a_log_of_lists_is_built_and_the_uniform_version_judged(tmp_path, capsys):
    made = written(tmp_path)
    code, built, _ = run(capsys, made, "build", "page")
    assert (code, built["decisions"], built["counts"]["off_list"]) == (0, N, 0)
    batch = timeline.load(Path(built["directory"])).batch
    assert batch.slots.reward.sum() == WORLD.draw(N, 1)[3].sum()
    code, report, _ = run(capsys, made, "evaluate", "page@1", "--report", str(tmp_path / "page.html"))
    assert code == 0
    true = WORLD.value(np.zeros((STATES, ITEMS)))
    assert report["headline"]["estimator"] == "list-dr"
    assert report["headline"]["low"] <= true <= report["headline"]["high"]
    assert report["decisions"] == N
    assert {one["estimator"] for one in report["estimates"]} >= {"cascade-dr", "rips", "iips", "pi", "dm"}
    assert report["weights"]["mean"]["low"] <= 1 <= report["weights"]["mean"]["high"]
    assert report["shares"] == report["calibration"] == []
    page = (tmp_path / "page.html").read_text()
    assert "list-dr" in page
    assert "Does the log say enough about it?" in page
    assert "What would it do?" not in page


def test_a_build_of_lists_says_what_can_be_done_with_it(tmp_path, capsys):
    made = written(tmp_path)
    stray = Outcome(id="o", decision="d0", at=0, metrics={"clicks": 1.0}, item="gone")
    with log.Pen(made.log_directory) as pen:
        pen.append([(log.OUTCOME, msgspec.json.encode(stray))])
        pen.flush()
    assert cli.main(["build", "page", "--project", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 outcomes about items that their list did not have" in said
    assert "steersman train page" in said


def test_a_policy_that_scores_candidates_is_judged_by_the_lists_it_shows(tmp_path):
    made = written(tmp_path)
    encoder = timeline.load(Path(flow.build(made, "page").directory)).encoder
    places = [encoder.context_columns().index(f"state={name}") for name in tabular.names("s", STATES)]

    def scorer(context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return WORLD.target[context[:, places].argmax(axis=1)]

    report = flow.judge_policy(made, "page", Policy(encoder, scorer, Softmax(1.0)), "0" * 64)
    assert report.headline.low <= WORLD.value(WORLD.target) <= report.headline.high
    assert report.lift.low > 0
    assert report.passed


MAPPING = """
id = "id"
at = "t"
unit = "who"
action = "items"
propensities = "chances"
first_propensities = "first"
context = { state = "state" }
metrics = { clicks = "clicked" }
"""


def test_a_table_of_lists_is_mapped_to_the_same_batch(tmp_path):
    own = flow.build(written(tmp_path / "own"), "page")
    state, lists, propensity, clicks = WORLD.draw(N, 1)
    first, names = tabular.softmax(WORLD.behavior)[state], np.array(tabular.names("a", ITEMS))
    rows = [
        {
            "id": f"d{i}", "who": f"u{i}", "t": i * S, "state": f"s{state[i]}", "items": names[lists[i]].tolist(),
            "chances": propensity[i].tolist(), "first": first[i].tolist(), "clicked": clicks[i].tolist(),
        }
        for i in range(N)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mapping.toml").write_text(MAPPING)
    made = product.project(tmp_path / "mapped", TOML)
    done = flow.import_log(made, "page", flow.read_source(tmp_path / "rows.jsonl", tmp_path / "mapping.toml"), 0.0)
    assert (done.decisions, done.outcomes, done.rejected) == (N, 3 * N, 0)
    again = flow.build(made, "page")
    assert again.digest == own.digest


def test_fields_of_lists_say_what_they_explain_of_the_reward(tmp_path, capsys):
    made = written(tmp_path)
    flow.build(made, "page")
    code, told, _ = run(capsys, made, "features", "page", "--report", str(tmp_path / "fields.html"))
    assert code == 0
    found = {one["name"]: one["alone"] for one in told["importances"]["fields"]}
    assert set(found) == {"state", "action"}
    assert found["action"]["low"] > 0.02


def test_a_log_with_the_chance_of_whole_lists_only_says_what_is_missing(tmp_path, capsys):
    code, said, _ = run(capsys, written(tmp_path, joint=True), "build", "page")
    assert code == 3
    assert f"only that of the whole list ({N} such rows of {N})" in said["error"]
    assert "propensities" in said["hint"]


LEARN = """
[problem.page.learn]
learner = "plackett-luce"
settings = { hidden = [], steps = 60, learning_rate = 0.02, largest_weight = 20 }
"""


def test_a_policy_over_lists_is_trained_judged_and_published(tmp_path):
    made = written(tmp_path, toml=TOML + LEARN)
    batch = timeline.load(Path(flow.build(made, "page").directory)).batch
    flow.train(made, "page")
    report = flow.judge(made, "page")
    assert report.lift.value > 0
    assert report.headline.estimator == "list-dr"
    flow.export(made, "page")
    version = flow.publish(made, "page", force=True)
    assert (version.number, version.explorer) == (2, Softmax(1.0))
    again = flow.judge(made, "page", "2")
    assert again.headline.value == pytest.approx(report.headline.value, abs=1e-6)
    assert len(batch) == N
