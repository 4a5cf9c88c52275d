"""The plane: what arrives in a turn is decided together, fails alone, and is acknowledged once durable."""

from __future__ import annotations

import json
import queue
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from served import load, logged, net, plane_of, version
from steersman import log
from steersman.core.decision import One, Problem
from steersman.core.errors import Error, NotFoundError, OverloadedError
from steersman.core.features import Continuous, Encoder
from steersman.models.graph import Graph
from steersman.models.onnx import compose
from steersman.serve.plane import Limits, Live, Plane

OPEN = Problem(name="open", actions=One(), reward="clicks", wait_s=0.0)
OPEN_ENCODER = Encoder(context=(Continuous("age", 40.0, 12.0),), candidate=(Continuous("price", 10.0, 5.0),))


class Turns:
    """An event loop whose turns the test ends; what other threads send arrives in a queue."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], object]] = deque()
        self.from_threads: queue.Queue[tuple] = queue.Queue()

    def attach(self, plane: Plane) -> Plane:
        plane.attach(self.soon.append, lambda *call: self.from_threads.put(call))
        return plane

    def end(self) -> None:
        """End the turn, and wait for the log to say what became of its records."""
        ended = len(self.soon)
        while self.soon:
            self.soon.popleft()()
        if ended:
            function, *arguments = self.from_threads.get(timeout=20)
            function(*arguments)


class Answers(list):
    """Collects replies as (status, JSON)."""

    def reply(self, status: int, body: bytes) -> None:
        self.append((status, json.loads(body)))


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def plane(tmp_path: Path, turns: Turns) -> Iterator[Plane]:
    with log.Pen(tmp_path) as pen:
        made = turns.attach(plane_of(pen))
        made.swap("shop", 1)
        made.swap("light", 1)
        yield made


def ask(name: str = "a", **more: object) -> bytes:
    body = {"unit": "u", "candidates": [{"id": name, "features": {"price": 1}}, {"id": "z"}], **more}
    return json.dumps(body).encode()


def scorer_of(seen: list[tuple[int, ...]], rowwise: bool = True) -> Callable[[str, int], Live]:
    """A load whose graph notes the shapes it is run on, from the first request on."""
    graph = Graph(compose(OPEN_ENCODER, net(OPEN_ENCODER)))

    def run(context, candidates, ids) -> np.ndarray:
        seen.append(ids.shape)
        return graph.scores(context, candidates, ids)

    return lambda name, number: Live(version(OPEN, OPEN_ENCODER, number), OPEN, run, rowwise)


def plane_with(load: Callable[[str, int], Live], record, turns: Turns, **options) -> Plane:
    counter = iter(range(10**6))
    plane = Plane(load, record, now=lambda: 5, new_id=lambda: f"id{next(counter)}", **options)
    return turns.attach(plane)


def test_an_answer_names_its_version_and_is_what_the_log_says(plane: Plane, turns: Turns, tmp_path: Path) -> None:
    plane.swap("shop", 2)
    answers = Answers()
    for i in range(20):
        plane.decide("shop", ask(unit=f"u{i}"), answers.reply)
        plane.decide("light", b'{"unit": "u"}', answers.reply)
    assert answers == []
    turns.end()
    assert [status for status, _ in answers] == [200] * 40
    decisions = {decision.id: decision for decision in logged(tmp_path)[0]}
    assert len(decisions) == 40
    for _, answer in answers:
        line = decisions[answer["id"]]
        assert answer == {
            "id": line.id,
            "action": line.action,
            "propensity": line.propensity,
            "version": line.version,
            "policy": line.problem,
        }
        assert line.version == {"shop": 2, "light": 1}[line.problem]
    assert plane.counts.decisions == 40


def test_nobody_is_told_before_the_record_is_durable(turns: Turns) -> None:
    held: list = []
    plane = plane_with(scorer_of([]), lambda records, done: held.append((records, done)), turns)
    plane.swap("open", 1)
    answers = Answers()
    plane.decide("open", ask(), answers.reply)
    turns.soon.popleft()()
    [(records, done)] = held
    assert [kind for kind, _ in records] == [b"D"]
    assert answers == []
    done(None)
    assert answers == []  # the log's thread only sends word
    function, *arguments = turns.from_threads.get(timeout=5)
    function(*arguments)
    assert [status for status, _ in answers] == [200]


def test_what_arrives_in_one_turn_is_one_run_and_one_write(turns: Turns) -> None:
    shapes: list[tuple[int, ...]] = []
    written: list[list] = []
    plane = plane_with(scorer_of(shapes), lambda records, done: (written.append(records), done(None)), turns)
    plane.swap("open", 1)
    shapes.clear()
    answers = Answers()
    for _ in range(32):
        plane.decide("open", ask(), answers.reply)
    plane.outcome(b'{"decision": "d"}', answers.reply)
    turns.end()
    assert shapes == [(32, 2)]
    assert [len(records) for records in written] == [33]
    assert len(answers) == 33


def test_a_graph_that_is_not_known_to_be_rowwise_is_run_row_by_row(turns: Turns) -> None:
    shapes: list[tuple[int, ...]] = []
    plane = plane_with(scorer_of(shapes, rowwise=False), lambda records, done: done(None), turns)
    plane.swap("open", 1)
    shapes.clear()
    for _ in range(5):
        plane.decide("open", ask(), Answers().reply)
    turns.end()
    assert shapes == [(1, 2)] * 5
    assert plane.status()["policies"]["open"]["together"] is False


def test_a_run_holds_no_more_rows_and_padding_than_it_may(turns: Turns) -> None:
    shapes: list[tuple[int, ...]] = []
    limits = Limits(rows=8, cells=100)
    plane = plane_with(scorer_of(shapes), lambda records, done: done(None), turns, limits=limits)
    plane.swap("open", 1)
    shapes.clear()
    random = np.random.default_rng(0)
    counts = [int(k) for k in random.integers(1, 60, size=100)]
    answers = Answers()
    for count in counts:
        candidates = [{"id": f"c{k}"} for k in range(count)]
        plane.decide("open", ask(candidates=candidates), answers.reply)
    turns.end()
    assert [status for status, _ in answers] == [200] * 100
    assert all(rows <= 8 and (rows == 1 or rows * width <= 100) for rows, width in shapes)
    assert sum(rows * width for rows, width in shapes) <= 2 * sum(counts)
    assert sum(rows for rows, _ in shapes) == 100


def test_a_request_that_the_policy_can_not_read_fails_alone(turns: Turns) -> None:
    """The problem declares no fields, so only the encoder knows that a price is a number."""
    plane = plane_with(scorer_of([]), lambda records, done: done(None), turns)
    plane.swap("open", 1)
    answers: dict[int, tuple[int, dict]] = {}
    for i in range(33):
        price = "cheap" if i in (0, 17) else 3.0
        body = ask(candidates=[{"id": "a", "features": {"price": price}}])
        plane.decide("open", body, lambda status, body, i=i: answers.__setitem__(i, (status, json.loads(body))))
    turns.end()
    assert {i: status for i, (status, _) in answers.items()} == {i: 400 if i in (0, 17) else 200 for i in range(33)}
    assert answers[17][1]["field"] == "price"


def test_a_broken_version_is_a_5xx_and_leaves_no_line(turns: Turns) -> None:
    def broken(name: str, number: int) -> Live:
        return Live(version(OPEN, OPEN_ENCODER), OPEN, lambda c, k, ids: np.full(ids.shape, np.nan, np.float32), True)

    written: list = []
    plane = plane_with(broken, lambda records, done: written.append(records), turns)
    plane.swap("open", 1)
    answers = Answers()
    plane.decide("open", ask(), answers.reply)
    turns.soon.popleft()()
    [(status, body)] = answers
    assert (status, set(body)) == (500, {"error", "hint", "field"})
    assert written == []


# -- the log fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["at once", "later"])
def test_when_the_log_fails_there_is_a_503_and_no_acknowledgement(turns: Turns, way: str) -> None:
    failing = True

    def record(records, done) -> None:
        if not failing:
            done(None)
        elif way == "at once":
            raise OverloadedError("256 MiB wait")
        else:
            done(Error("the disk is gone"))

    plane = plane_with(scorer_of([]), record, turns)
    plane.swap("open", 1)
    answers = Answers()
    plane.decide("open", ask(id="mine"), answers.reply)
    plane.outcome(b'{"decision": "d"}', answers.reply)
    turns.soon.popleft()()
    if way == "later":
        function, *arguments = turns.from_threads.get(timeout=5)
        function(*arguments)
    assert [status for status, _ in answers] == [503, 503]
    assert all(set(body) == {"error", "hint", "field"} and body["hint"] for _, body in answers)
    assert plane.status()["log"]["error"]
    assert (plane.counts.decisions, plane.counts.outcomes, plane.counts.failed) == (0, 0, 2)
    failing = False
    plane.decide("open", ask(id="mine"), answers.reply)
    turns.end()
    assert answers[-1][0] == 200
    assert plane.status()["log"]["error"] == ""


# -- ids of the client --------------------------------------------------------------------------------------------


def test_a_retry_under_the_same_id_gets_the_same_answer_and_one_line(plane, turns: Turns, tmp_path: Path) -> None:
    answers = Answers()
    for _ in range(3):  # two of them while the first is not durable yet
        plane.decide("shop", ask(id="mine"), answers.reply)
    turns.end()
    plane.swap("shop", 2)
    plane.decide("shop", ask(id="mine"), answers.reply)
    assert [status for status, _ in answers] == [200] * 4
    assert all(body == answers[0][1] for _, body in answers)
    assert [decision.id for decision in logged(tmp_path)[0]] == ["mine"]
    plane.decide("shop", ask(id="mine", unit="other"), answers.reply)
    assert answers[-1][0] == 409
    assert answers[-1][1]["field"] == "id"


def test_only_so_many_ids_are_remembered_and_nobody_is_forgotten_who_waits(turns: Turns) -> None:
    plane = plane_with(scorer_of([]), lambda records, done: done(None), turns, limits=Limits(remembered=2))
    plane.swap("open", 1)
    answers = Answers()
    plane.decide("open", ask(id="a"), answers.reply)
    plane.decide("open", ask(id="a"), answers.reply)
    for other in "bcd":
        plane.decide("open", ask(id=other), answers.reply)
    turns.end()
    assert sorted(body["id"] for _, body in answers) == ["a", "a", "b", "c", "d"]


# -- outcomes -----------------------------------------------------------------------------------------------------


def test_outcomes_are_all_logged_or_none(plane: Plane, turns: Turns, tmp_path: Path) -> None:
    answers = Answers()
    good = {"decision": "not seen yet", "metrics": {"clicks": 1.0}, "ends": "terminated"}
    plane.outcome(json.dumps(good).encode(), answers.reply)
    plane.outcome(json.dumps([{**good, "id": f"o{i}"} for i in range(5)]).encode(), answers.reply)
    plane.outcome(json.dumps([good, {**good, "ends": "over"}]).encode(), answers.reply)
    turns.end()
    assert sorted(status for status, _ in answers) == [200, 200, 400]
    assert answers[0][1]["field"] == "[1].ends"
    _, outcomes = logged(tmp_path)
    assert len(outcomes) == 6 == plane.counts.outcomes
    assert {"o0", "o1", "o2", "o3", "o4"} < {outcome.id for outcome in outcomes}
    assert answers[-1][1] == {"accepted": 5, "ids": ["o0", "o1", "o2", "o3", "o4"]}


# -- versions -----------------------------------------------------------------------------------------------------


def test_requests_that_began_on_the_old_version_end_on_it(plane: Plane, turns: Turns) -> None:
    answers = Answers()
    plane.decide("shop", ask(), answers.reply)
    plane.swap("shop", 2)
    plane.decide("shop", ask(), answers.reply)
    turns.end()
    assert sorted(body["version"] for _, body in answers) == [1, 2]


def test_a_load_that_fails_leaves_the_old_version_and_says_why(plane: Plane, turns: Turns) -> None:
    plane.follow(lambda: {"shop": 99, "light": 2})
    status = plane.status()["policies"]
    assert (status["shop"]["version"], status["shop"]["wanted"]) == (1, 99)
    assert "shop/99 is not there" in status["shop"]["error"]["error"]
    assert (status["light"]["version"], status["light"]["error"]) == (2, None)
    answers = Answers()
    plane.decide("shop", ask(), answers.reply)
    turns.end()
    assert answers[0][1]["version"] == 1
    assert plane.ready
    plane.follow(lambda: {"shop": 3})
    assert plane.status()["policies"]["shop"]["error"] is None


def test_what_fails_is_tried_again_ever_later_and_at_once_when_asked(turns: Turns) -> None:
    tries: list[int] = []

    def failing(name: str, number: int) -> Live:
        tries.append(number)
        raise NotFoundError("gone")

    plane = plane_with(failing, lambda records, done: done(None), turns)
    for _ in range(20):
        plane.follow(lambda: {"open": 1})
    assert len(tries) == 4  # looks 1, 4, 9 and 18: pauses of 2, 4 and 8
    plane.follow(lambda: {"open": 1}, at_once=True)
    assert len(tries) == 5
    plane.follow(lambda: {"open": 2})
    assert tries[-1] == 2
    assert not plane.ready
    answers = Answers()
    plane.decide("open", ask(), answers.reply)
    assert answers[0][0] == 503


def test_a_store_that_is_away_does_not_stop_what_serves(plane: Plane) -> None:
    def away() -> dict[str, int]:
        raise OSError("no route to host")

    plane.follow(away)
    assert "no route to host" in plane.status()["error"]["error"]
    assert plane.ready
    plane.follow(lambda: {})
    assert plane.status()["error"] is None


def test_a_version_of_another_policy_is_not_swapped_in(turns: Turns) -> None:
    def other(name: str, number: int) -> Live:
        return load("shop", number)

    plane = plane_with(other, lambda records, done: done(None), turns)
    with pytest.raises(Error, match="asked for light/1, loaded shop/1"):
        plane.swap("light", 1)
    assert not plane.ready


def test_an_unknown_policy_is_told_which_one_may_be_meant(plane: Plane) -> None:
    answers = Answers()
    plane.decide("shpo", ask(), answers.reply)
    assert answers[0][0] == 404
    assert answers[0][1]["hint"] == "did you mean shop?"
