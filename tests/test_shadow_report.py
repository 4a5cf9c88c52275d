"""What a version in the shadow would have done, told from its log: the truth is asked of both graphs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from dosing_project import TOML as DOSING
from product import Client, project, serving
from served import SHOP_ENCODER, load, logged, plane_of
from steersman import cli, flow, log
from steersman.core.errors import NotFoundError
from steersman.core.policy import EpsilonGreedy
from steersman.core.version import Rollout
from steersman.flow.places import shadow_log
from steersman.flow.shadowing import report_on
from steersman.serve.shadow import Shadow
from test_plane import Turns
from test_rollout import decided


def hidden(candidate: int, since: int = 0) -> Rollout:
    """A version in the shadow of one that explores much: its epsilon is 0.6."""
    return Rollout(problem="shop", baseline=60, candidate=candidate, share=0.0, state="shadow", since=since)


def chance(number: int, decision) -> float:
    """Probability that a version takes the action of a decision."""
    live = load("shop", number)
    context = SHOP_ENCODER.raw_context([decision.context])
    candidates, ids = SHOP_ENCODER.raw_candidates([decision.candidates], 3)
    scores = live.run(context, candidates, ids)
    chances = EpsilonGreedy(number / 100).probabilities(scores, np.ones((1, 3), bool))[0]
    return float(chances[[one.id for one in decision.candidates].index(decision.action)])


def test_the_report_is_what_both_graphs_say_unit_by_unit(tmp_path: Path) -> None:
    made = project(tmp_path)
    turns = Turns()
    with log.Pen(made.log_directory) as pen, log.Pen(shadow_log(made)) as dark:
        shadow = Shadow(dark.append)
        plane = turns.attach(plane_of(pen, shadow=shadow))
        for candidate, units in ((20, 30), (30, 90)):
            plane.follow(lambda candidate=candidate: {"shop": hidden(candidate)})  # type: ignore[misc]
            for turn in range(3):
                decided(plane, turns, [f"u{candidate}-{i}" for i in range(units // (turn + 1))])
        shadow.close()
    done = [one for one in logged(made.log_directory)[0] if one.unit.startswith("u30-")]
    others = {one.id: one for one in logged(shadow_log(made))[0]}
    agreement = np.array([chance(30, one) for one in done])
    propensity = np.array([one.propensity for one in done])
    assert propensity == pytest.approx([chance(60, one) for one in done])
    assert len(set(agreement)) == 2  # the greedy action and the others

    report = report_on(made, hidden(30))
    assert (report.decisions, report.units, report.refused) == (90 + 45 + 30, 90, "")
    assert report.last == max(one.at for one in done)
    assert report.same.value == pytest.approx(np.mean([others[one.id].action == one.action for one in done]))
    assert report.agreement.value == pytest.approx(agreement.mean())
    assert report.propensity.value == pytest.approx(propensity.mean())
    assert report.difference.value == pytest.approx((agreement - propensity).mean())
    for one in (report.same, report.agreement, report.difference):
        assert one.low < one.value < one.high and one.n == 90
    # The error by leaving out whole units, from the definition.
    units = np.array([one.unit for one in done])
    without = np.array([agreement[units != unit].mean() for unit in sorted(set(units))])
    error = np.sqrt(89 / 90 * ((without - without.mean()) ** 2).sum())
    assert (report.agreement.high - report.agreement.low) / (2 * error) == pytest.approx(1.98, abs=0.15)

    later = hidden(30, since=report.last)
    assert 0 < report_on(made, later).decisions < report.decisions
    assert report_on(made, hidden(7)).refused.startswith("0 units")


def test_status_and_report_tell_of_a_shadow_and_of_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = project(tmp_path)
    flow.publish_uniform(made, "greeting")
    flow.promote(made, "greeting", "1")

    def steer(*options: str) -> str:
        capsys.readouterr()
        assert cli.main([*options, "--project", str(tmp_path)]) == 0
        return capsys.readouterr().out

    def row() -> dict:
        return json.loads(steer("status", "--json"))["policies"][0]

    assert (row()["rollout"], row()["shadow"]) == (None, None)
    with pytest.raises(NotFoundError, match="in the shadow"):
        flow.shadow_report(made, "greeting")
    steer("rollout", "greeting@2", "--shadow")
    assert row()["shadow"]["decisions"] == 0
    with serving(made) as url:
        client = Client(url)
        while (client.get("/v1/status")["policies"]["greeting"]["rollout"] or {}).get("state") != "shadow":
            time.sleep(0.02)
        for i in range(60):
            client.post("/v1/decide/greeting", {"unit": f"u{i % 20}"})
        until = time.monotonic() + 20
        while row()["shadow"]["decisions"] < 60:  # of a live server
            assert time.monotonic() < until
            time.sleep(0.05)
    found = row()
    assert found["rollout"]["candidate"] == 2 and found["rollout"]["share"] == 0
    shadow = found["shadow"]
    assert (shadow["decisions"], shadow["units"]) == (60, 20)
    assert shadow["agreement"]["value"] == pytest.approx(1 / 3)  # both are uniform over three
    assert shadow["difference"]["value"] == pytest.approx(0)
    assert "rollout greeting@2 beside 1   shadow: it decided 60 too, agreement 0.333" in steer("status")
    report = steer("rollout", "greeting", "--report")
    assert "greeting@2 beside greeting@1: 60 decisions of 20 units" in report
    assert json.loads(steer("rollout", "greeting", "--report", "--json")) == shadow
    steer("rollout", "greeting", "--share", "0.25")
    assert "canary: it gets 0.25 of the units" in steer("status")
    assert row()["shadow"] is None
    assert json.loads(steer("rollout", "greeting", "--report", "--json")) == shadow  # what it did there stays
    steer("promote", "greeting@2")
    assert row()["rollout"] is None


def test_of_numbers_agreement_is_a_density(tmp_path: Path) -> None:
    made = project(tmp_path, DOSING)
    [name] = made.policies
    flow.publish_uniform(made, name)
    flow.promote(made, name, "1")
    flow.roll_out(made, name, "2")
    with serving(made) as url:
        client = Client(url)
        while (client.get("/v1/status")["policies"][name]["rollout"] or {}).get("state") != "shadow":
            time.sleep(0.02)
        for i in range(10):
            status, answer = client.post(
                f"/v1/decide/{name}", json.loads(flow.example_request(made, name)) | {"unit": f"u{i}"}
            )
            assert status == 200
    report = flow.shadow_report(made, name)
    assert report.decisions == 10
    assert report.agreement.value == pytest.approx(answer["propensity"])  # both are uniform over the box
    assert report.difference.value == pytest.approx(0) and report.same.value == 0
