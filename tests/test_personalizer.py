"""Azure Personalizer's calls, v1.0: answered from our policies, and every event is a decision of our log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from served import SHOP, Running, logged, plane_of
from steersman import log
from steersman.core.decision import Problem
from steersman.core.errors import ConfigError
from steersman.serve import personalizer
from steersman.serve.settings import Settings

RANK = "/personalizer/v1.0/rank"
ACTIONS: list[dict[str, Any]] = [
    {"id": "pasta", "features": [{"price": 9.5}, {"stars": 4}]},
    {"id": "soup", "features": [{"price": 4, "stars": 3}]},
    {"id": "juice", "features": []},
    {"id": "salad", "features": [{"price": 7, "stars": 2}]},
]
CONTEXT = [{"age": 30}, {"country": "de"}]
EVENT = {"contextFeatures": CONTEXT, "actions": ACTIONS}


@contextmanager
def running(directory: Path, **settings: Any) -> Iterator[tuple[Running, httpx.Client]]:
    with log.Pen(directory) as pen:
        plane = plane_of(pen)
        plane.swap("shop", 20)  # epsilon 0.2
        made = Running(plane, Settings(port=0, quiet_s=0.02, **settings))
        with httpx.Client(base_url=f"http://127.0.0.1:{made.port}", timeout=20) as http:
            yield made, http
        made.stop()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def http(directory: Path) -> Iterator[httpx.Client]:
    with running(directory) as (_, client):
        yield client


def decision_of(directory: Path, event: str):
    [found] = [one for one in logged(directory)[0] if one.id == event]
    return found


def test_a_rank_is_a_decision_of_the_log_and_its_probabilities_are_the_policys(
    http: httpx.Client, directory: Path
) -> None:
    answer = http.post(RANK, json=EVENT | {"eventId": "e1"})
    assert answer.status_code == 201
    body = answer.json()
    assert set(body) == {"ranking", "eventId", "rewardActionId"}
    chances = {one["id"]: one["probability"] for one in body["ranking"]}
    assert chances.keys() == {"pasta", "soup", "juice", "salad"}
    assert sum(chances.values()) == pytest.approx(1, abs=1e-12)
    assert sorted(chances.values()) == pytest.approx([0.05, 0.05, 0.05, 0.85])  # epsilon 0.2 over 4
    decision = decision_of(directory, "e1")
    assert (decision.action, decision.propensity) == (body["rewardActionId"], chances[body["rewardActionId"]])
    assert decision.context == {"age": 30.0, "country": "de"}
    assert decision.candidates[0].features == {"price": 9.5, "stars": 4.0}
    assert (decision.unit, decision.version, decision.deferred) == ("e1", 20, False)
    ids = [one["id"] for one in body["ranking"]]
    assert ids[0] == body["rewardActionId"]
    rest = [chances[id] for id in ids[1:]]
    assert rest == sorted(rest, reverse=True)


def test_the_same_event_again_is_the_same_answer_and_one_decision(http: httpx.Client, directory: Path) -> None:
    first, again = (http.post(RANK, json=EVENT | {"eventId": "twice"}) for _ in range(2))
    assert first.json() == again.json()
    assert decision_of(directory, "twice")
    other = http.post(RANK, json={"actions": ACTIONS[:2], "eventId": "twice"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "Conflict")


def test_an_event_without_id_gets_one(http: httpx.Client) -> None:
    events = {http.post(RANK, json=EVENT).json()["eventId"] for _ in range(3)}
    assert len(events) == 3 and all(events)


def test_excluded_actions_stay_where_they_were_and_are_never_taken(http: httpx.Client, directory: Path) -> None:
    for i in range(20):
        body = http.post(RANK, json=EVENT | {"excludedActions": ["soup", "salad"], "eventId": f"ex{i}"}).json()
        ranking = body["ranking"]
        assert [(ranking[at]["id"], ranking[at]["probability"]) for at in (1, 3)] == [("soup", 0.0), ("salad", 0.0)]
        assert ranking[0]["id"] == body["rewardActionId"]
        assert ranking[0]["probability"] + ranking[2]["probability"] == pytest.approx(1)
        assert {one.id for one in decision_of(directory, f"ex{i}").candidates} == {"pasta", "juice"}


def test_a_reward_is_an_outcome_and_a_deferred_event_counts_when_it_is_activated(
    http: httpx.Client, directory: Path
) -> None:
    assert http.post(RANK, json=EVENT | {"eventId": "late", "deferActivation": True}).status_code == 201
    activated = http.post("/personalizer/v1.0/events/late/activate")
    assert (activated.status_code, activated.content, "content-length" in activated.headers) == (204, b"", False)
    assert http.post("/personalizer/v1.0/events/late/reward", json={"value": 0.5}).status_code == 204
    assert decision_of(directory, "late").deferred
    told = [one for one in logged(directory)[1] if one.decision == "late"]
    assert [(one.metrics, one.activates) for one in told] == [({}, True), ({"clicks": 0.5}, False)]


def test_apprentice_answers_the_first_action_and_counts_how_often_the_policy_agrees(tmp_path: Path) -> None:
    with running(tmp_path, apprentice=True) as (_, http):
        agreement = 0.0
        for i in range(10):
            actions = [ACTIONS[(i + j) % 4] for j in range(4)]
            body = http.post(RANK, json={**EVENT, "actions": actions, "eventId": f"a{i}"}).json()
            assert body["rewardActionId"] == actions[0]["id"] == body["ranking"][0]["id"]
            agreement += body["ranking"][0]["probability"]
            decision = decision_of(tmp_path, f"a{i}")
            assert (decision.action, decision.propensity, decision.version) == (actions[0]["id"], 1.0, 0)
        counts = http.get("/v1/status").json()["counts"]
        assert counts["apprentice"] == 10
        assert counts["agreement"] == pytest.approx(agreement)
        assert 0.05 * 10 <= agreement <= 0.85 * 10


BAD: dict[str, tuple[str, bytes, int, str]] = {
    "no JSON": (RANK, b"{", 400, "BadArgument"),
    "no actions": (RANK, b"{}", 400, "BadArgument"),
    "empty actions": (RANK, b'{"actions": []}', 400, "BadArgument"),
    "an action twice": (RANK, b'{"actions": [{"id": "a"}, {"id": "a"}]}', 400, "BadArgument"),
    "all excluded": (RANK, b'{"actions": [{"id": "a"}], "excludedActions": ["a"]}', 400, "BadArgument"),
    "an unknown one excluded": (RANK, b'{"actions": [{"id": "a"}], "excludedActions": ["b"]}', 400, "BadArgument"),
    "an unknown field": (RANK, b'{"actions": [{"id": "a"}], "contextFeatures": [{"x": 1}]}', 400, "BadArgument"),
    "a feature twice": (
        RANK,
        b'{"actions": [{"id": "a", "features": [{"price": 1}, {"price": 2}]}]}',
        400,
        "BadArgument",
    ),
    "nested too deep": (
        RANK,
        b'{"actions": [{"id": "a"}], "contextFeatures": [' + b'{"a":' * 50 + b"1" + b"}" * 50 + b"]}",
        400,
        "BadArgument",
    ),
    "a reward without value": ("/personalizer/v1.0/events/e/reward", b"{}", 400, "BadArgument"),
    "a reward in words": ("/personalizer/v1.0/events/e/reward", b'{"value": "1"}', 400, "BadArgument"),
    "an unknown call": ("/personalizer/v1.0/events/e/ignore", b"{}", 404, "ResourceNotFound"),
    "several slots": ("/personalizer/v1.0/multislot", b"{}", 404, "ResourceNotFound"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_its_clients_words_and_not_logged(
    http: httpx.Client, directory: Path, case: str
) -> None:
    path, body, status, code = BAD[case]
    before = len(list(log.read(directory)))
    answer = http.post(path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"]
    assert len(list(log.read(directory))) == before


def test_features_are_named_by_their_path_as_in_an_imported_log() -> None:
    merged = personalizer.merged(
        [{"user": {"age": 3, "_hidden": 1}}, {"tags": ["a", "b"], "new": True, "parts": [{"x": 1}, {"y": 2}]}], "c"
    )
    assert merged == {"user.age": 3, "tags": ["a", "b"], "new": 1.0, "parts.x": 1, "parts.y": 2}


def test_a_reward_of_several_metrics_must_have_one_that_is_called_so() -> None:
    def problem(reward: str) -> Problem:
        return Problem(name="p", actions=SHOP.actions, reward=reward, wait_s=1.0)

    body = b'{"value": 2}'
    assert json.loads(personalizer.read_reward("e", body, problem("2 * clicks")))["metrics"] == {"clicks": 2.0}
    assert json.loads(personalizer.read_reward("e", body, problem("reward - cost")))["metrics"] == {"reward": 2.0}
    with pytest.raises(ConfigError, match="clicks, cost"):
        personalizer.read_reward("e", body, problem("clicks - cost"))


def test_two_policies_and_none_named_is_an_error_that_says_so(tmp_path: Path) -> None:
    with running(tmp_path) as (server, http):
        server.plane.swap("light", 1)
        answer = http.post(RANK, json=EVENT)
        assert (answer.status_code, "personalizer_policy" in answer.json()["error"]["message"]) == (503, True)
    with running(tmp_path, personalizer_policy="shop") as (server, http):
        server.plane.swap("light", 1)
        assert http.post(RANK, json=EVENT).status_code == 201


def test_the_draws_follow_the_probabilities(http: httpx.Client) -> None:
    first = [http.post(RANK, json=EVENT).json()["ranking"][0]["probability"] > 0.5 for _ in range(300)]
    assert abs(np.mean(first) - 0.85) < 4 * np.sqrt(0.85 * 0.15 / 300)
