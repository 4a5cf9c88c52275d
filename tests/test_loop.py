"""The loop as a process: nothing acknowledged is lost, swaps lose nothing, every decision can be made again."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from product import Client, Load, project, serving, start
from steersman import cli, demo, flow, log
from steersman.core.decision import Decision, Outcome, decoder


def logged(made) -> tuple[Counter, Counter, dict[str, Decision]]:
    decisions, outcomes, by_id = Counter(), Counter(), {}
    read_decision, read_outcome = decoder(Decision), decoder(Outcome)
    for record in log.read(made.log_directory):
        if record.kind == b"D":
            decision = read_decision(record.body)
            decisions[decision.id] += 1
            by_id[decision.id] = decision
        else:
            outcomes[read_outcome(record.body).id] += 1
    return decisions, outcomes, by_id


def test_every_acknowledged_record_survives_20_kills_exactly_once(tmp_path: Path) -> None:
    made = project(tmp_path)
    acked: dict[str, dict] = {}
    acked_outcomes: list[str] = []
    for kill in range(20):
        process, url = start(made)
        load = Load(url, f"k{kill}")
        load.wait(60 + 7 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        load.stop()
        assert not load.refused
        acked.update(load.decisions)
        acked_outcomes += load.outcomes
    decisions, outcomes, by_id = logged(made)
    assert len(acked) > 500
    assert [(decision, decisions[decision]) for decision in acked if decisions[decision] != 1] == []
    assert [(outcome, outcomes[outcome]) for outcome in acked_outcomes if outcomes[outcome] != 1] == []
    for decision, answer in acked.items():
        line = by_id[decision]
        assert (line.action, line.propensity, line.version) == (
            answer["action"], answer["propensity"], answer["version"],
        )  # fmt: skip


def test_ten_promotes_under_load_fail_no_request_and_each_answer_names_the_version_that_made_it(tmp_path) -> None:
    made = project(tmp_path)
    numbers = [flow.publish_uniform(made, "greeting").number for _ in range(10)]
    flow.promote(made, "greeting", "1")
    with serving(made) as url:
        load = Load(url, "s")
        for number in numbers:
            load.wait(20)
            flow.promote(made, "greeting", str(number))
            demo.wait_for_version(url, "greeting", number)
        load.wait(40)
        load.stop()
    assert not load.refused
    assert load.lost == 0
    _, _, by_id = logged(made)
    assert {answer["version"] for answer in load.decisions.values()} >= set(numbers)
    for decision, answer in load.decisions.items():
        assert by_id[decision].version == answer["version"]


def test_a_drained_server_has_answered_and_logged_every_request_it_accepted(tmp_path: Path) -> None:
    made = project(tmp_path)
    process, url = start(made)
    load = Load(url, "d")
    load.wait(100)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    load.stop()
    decisions, outcomes, _ = logged(made)
    assert set(load.decisions) <= set(decisions)
    assert set(load.outcomes) <= set(outcomes)
    answered = len(load.decisions) + len(load.outcomes)
    assert sum(decisions.values()) + sum(outcomes.values()) == answered


def test_a_thousand_decisions_replay_identically(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = project(tmp_path)
    with serving(made) as url:
        load = Load(url, "r")
        load.wait(2000)
        load.stop()
    ids = list(load.decisions)[:1000]
    assert len(ids) == 1000
    flow.compact(made)
    replayed = flow.replay_all(made, ids)
    assert [(found.action, found.propensity) for found in replayed] == [
        (load.decisions[decision]["action"], load.decisions[decision]["propensity"]) for decision in ids
    ]
    assert all(found.identical for found in replayed)
    assert cli.main(["replay", ids[0], "--project", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True


def test_bad_requests_leave_no_line_in_the_log(tmp_path: Path) -> None:
    made = project(tmp_path)
    bad = [
        ("/v1/decide/greeting", {"context": {"hour": 1}}, 400),
        ("/v1/decide/greeting", {"unit": "u", "context": {"huor": 1}}, 400),
        ("/v1/decide/greeting", {"unit": "u", "context": {"hour": "noon"}}, 400),
        ("/v1/decide/greeting", {"unit": "u", "candidates": [{"id": "helo"}]}, 400),
        ("/v1/decide/nobody", {"unit": "u"}, 404),
        ("/v1/outcome", {"decision": "d", "metrics": {"clicks": "many"}}, 400),
        ("/v1/outcome", {"decision": "d", "ends": "finished"}, 400),
        ("/v1/outcome", {"decision": "d" * 2_000_000}, 413),
    ]
    with serving(made) as url:
        for path, body, expected in bad:
            status, answer = Client(url).post(path, body)
            assert (status, sorted(answer)) == (expected, ["error", "field", "hint"]), (path, answer)
    assert not list(log.read(made.log_directory))


def test_a_log_line_is_the_noun(tmp_path: Path) -> None:
    made = project(tmp_path)
    with serving(made) as url:
        _, answer = Client(url).post("/v1/decide/greeting", {"unit": "u", "context": {"hour": 3}})
    _, _, by_id = logged(made)
    line = by_id[answer["id"]]
    assert line.unit == "u"
    assert line.context == {"hour": 3.0}
    assert {candidate.id for candidate in line.candidates} == {"hello", "hi", "welcome"}
    assert msgspec.json.decode(msgspec.json.encode(line), type=Decision) == line
