"""What every protocol must do, whatever its bytes look like: a row of the table brings its tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from product import Client, project, serving
from steersman import flow, log
from steersman.config import Project
from steersman.core.decision import Decision, Outcome, decoder


@dataclass(frozen=True)
class Answered:
    """What a protocol's answer says, in our words."""

    status: int
    id: str = ""
    action: str = ""
    propensity: float = 0.0
    version: int = 0


@dataclass(frozen=True)
class Protocol:
    """How a client of the protocol asks and tells; `bad` asks in ways that must be refused."""

    ask: Callable[[str], Answered]
    tell: Callable[[str, str, float], int]
    bad: Callable[[str], list[int]]


def _ask(url: str) -> Answered:
    status, answer = Client(url).post("/v1/decide/greeting", {"unit": "u", "context": {"hour": 9, "device": "phone"}})
    if status != 200:
        return Answered(status)
    return Answered(status, answer["id"], answer["action"], answer["propensity"], answer["version"])


def _tell(url: str, decision: str, clicks: float) -> int:
    return Client(url).post("/v1/outcome", {"decision": decision, "metrics": {"clicks": clicks}})[0]


def _bad(url: str) -> list[int]:
    client = Client(url)
    return [
        client.post("/v1/decide/greeting", {})[0],
        client.post("/v1/decide/greeting", {"unit": "u", "context": {"hour": "nine"}})[0],
        client.post("/v1/decide/greeting", {"unit": "u", "candidates": []})[0],
        client.post("/v1/decide/nobody", {"unit": "u"})[0],
        client.post("/v1/outcome", {"metrics": {"clicks": 1}})[0],
    ]


PROTOCOLS = {"decide": Protocol(_ask, _tell, _bad)}


@pytest.fixture(scope="module", params=PROTOCOLS)
def served(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Protocol, Project, str]]:
    made = project(tmp_path_factory.mktemp(request.param))
    with serving(made) as url:
        yield PROTOCOLS[request.param], made, url


def records(made: Project) -> tuple[dict[str, Decision], list[Outcome]]:
    found = list(log.read(made.log_directory))
    decisions = [decoder(Decision)(record.body) for record in found if record.kind == log.DECISION]
    outcomes = [decoder(Outcome)(record.body) for record in found if record.kind == log.OUTCOME]
    return {decision.id: decision for decision in decisions}, outcomes


def test_an_answer_is_in_the_log_when_it_arrives_and_says_what_the_log_says(served) -> None:
    protocol, made, url = served
    for _ in range(20):
        answer = protocol.ask(url)
        assert answer.status == 200
        line = records(made)[0][answer.id]
        assert (line.action, line.propensity, line.version) == (answer.action, answer.propensity, answer.version)
        assert line.propensity == 1 / 3  # version 1 decides at random among three


def test_an_answer_can_be_made_again(served) -> None:
    protocol, made, url = served
    assert flow.replay(made, protocol.ask(url).id).identical


def test_an_outcome_is_in_the_log_when_it_was_accepted(served) -> None:
    protocol, made, url = served
    decision = protocol.ask(url).id
    assert protocol.tell(url, decision, 1.0) == 200
    assert [o.metrics for o in records(made)[1] if o.decision == decision] == [{"clicks": 1.0}]


def test_what_is_refused_is_the_clients_mistake_and_leaves_no_line(served) -> None:
    protocol, made, url = served
    before = len(list(log.read(Path(made.log_directory))))
    statuses = protocol.bad(url)
    assert all(400 <= status < 500 for status in statuses), statuses
    assert len(list(log.read(Path(made.log_directory)))) == before
