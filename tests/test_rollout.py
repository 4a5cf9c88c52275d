"""Who gets which version: sticky shares, the shadow, and a rollout from its first unit to its end."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from product import Client as Caller
from product import Load, project, serving
from served import SHOP, SHOP_ENCODER, load, logged, net, now, plane_of, version
from steersman import cli, demo, flow, log
from steersman.core.errors import ConflictError, DataError, NotFoundError
from steersman.core.policy import EpsilonGreedy
from steersman.core.version import Rollout
from steersman.flow import serving as serving_of
from steersman.models.graph import Graph
from steersman.models.onnx import compose
from steersman.models.warehouse import CHAMPION, Warehouse
from steersman.serve.decide import replay
from steersman.serve.live import Counts
from steersman.serve.plane import Live, Plane, time_ordered_id
from steersman.serve.shadow import Shadow
from steersman.serve.versions import Versions, decisions_of
from test_plane import Answers, Turns


def two(share: float = 0.3, state: str = "canary", candidate: int = 2) -> Rollout:
    return Rollout(problem="shop", baseline=1, candidate=candidate, share=share, state=state, since=0)  # type: ignore[arg-type]


def ask(unit: str, **more: object) -> bytes:
    candidates = [{"id": f"c{k}", "features": {"price": float(k), "stars": 3.0}} for k in range(3)]
    return json.dumps(
        {"unit": unit, "context": {"age": 30, "country": "de"}, "candidates": candidates, **more}
    ).encode()


# -- the draw -----------------------------------------------------------------------------------------------------


def test_the_share_of_units_is_what_was_asked_for() -> None:
    units = [f"u{i}" for i in range(20000)]
    for share in (0.01, 0.3, 0.9):
        taken = sum(two(share).takes(unit) for unit in units)
        assert abs(taken - 20000 * share) < 4 * np.sqrt(20000 * share * (1 - share))
    assert not any(two(0.0, "shadow").takes(unit) for unit in units)
    assert all(two(1.0, "done").takes(unit) for unit in units)


def test_a_share_that_grows_keeps_its_units_and_another_version_draws_anew() -> None:
    units = [f"u{i}" for i in range(20000)]
    small, large = ({unit for unit in units if two(share).takes(unit)} for share in (0.1, 0.4))
    assert small < large
    other = {unit for unit in units if two(0.4, candidate=3).takes(unit)}
    assert abs(len(large & other) - 20000 * 0.16) < 4 * np.sqrt(20000 * 0.16 * 0.84)


def test_the_draw_is_the_same_for_ever() -> None:
    """Pinned: with another hash every unit of a running rollout would change its version."""
    assert "".join("01"[two(0.5).takes(f"u{i}")] for i in range(32)) == PINNED


PINNED = "00001100100010010001001101111100"


# -- the plane ----------------------------------------------------------------------------------------------------


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def pen(tmp_path: Path) -> Iterator[log.Pen]:
    with log.Pen(tmp_path / "log") as pen:
        yield pen


def decided(plane: Plane, turns: Turns, units: list[str]) -> dict[str, dict]:
    """Unit -> its answer."""
    found: dict[str, dict] = {}
    for unit in units:
        plane.decide("shop", ask(unit), lambda status, body, unit=unit: found.__setitem__(unit, json.loads(body)))
    turns.end()
    return found


def replays(directory: Path, read: Callable[[str, int], Live] = load) -> int:
    """How many decisions of a log there are; each of them comes out again as it is written."""
    decisions, _ = logged(directory)
    lives = {number: read("shop", number) for number in {decision.version for decision in decisions}}
    for decision in decisions:
        live = lives[decision.version]
        again = replay(decision, live.problem, live.version, live.run)
        assert again == (decision.action, decision.propensity)
    return len(decisions)


def test_each_unit_is_answered_by_its_version_with_the_propensity_of_that_version(
    pen: log.Pen, turns: Turns, tmp_path: Path
) -> None:
    plane = turns.attach(plane_of(pen))
    rollout = two(0.3, candidate=30)  # epsilon 0.01 and 0.3: propensities tell who answered
    plane.follow(lambda: {"shop": rollout})
    units = [f"u{i}" for i in range(300)]
    answers = decided(plane, turns, units)
    for unit in units:
        number = 30 if rollout.takes(unit) else 1
        epsilon = number / 100
        assert answers[unit]["version"] == number
        assert answers[unit]["propensity"] in (pytest.approx(1 - epsilon + epsilon / 3), pytest.approx(epsilon / 3))
    assert {answer["version"] for answer in answers.values()} == {1, 30}
    again = decided(plane, turns, units)
    assert all(again[unit]["version"] == answers[unit]["version"] for unit in units)
    assert replays(tmp_path / "log") == 600


def test_a_candidate_that_does_not_load_gets_no_traffic_and_status_says_why(pen: log.Pen, turns: Turns) -> None:
    plane = turns.attach(plane_of(pen))
    plane.follow(lambda: {"shop": two(0.9, candidate=99)})
    assert plane.ready
    assert {answer["version"] for answer in decided(plane, turns, ["a", "b", "c", "d"]).values()} == {1}
    status = plane.status()["policies"]["shop"]
    assert (status["version"], status["error"], status["rollout"]["loaded"]) == (1, None, False)
    assert "shop/99 is not there" in status["rollout"]["error"]["error"]
    plane.follow(lambda: {"shop": two(0.9)})
    status = plane.status()["policies"]["shop"]
    assert (status["rollout"]["loaded"], status["rollout"]["error"]) == (True, None)


def test_a_champion_that_does_not_load_leaves_the_rollout_as_it_was(pen: log.Pen, turns: Turns) -> None:
    plane = turns.attach(plane_of(pen))
    plane.follow(lambda: {"shop": two(0.5)})
    plane.follow(lambda: {"shop": 99})
    versions = {answer["version"] for answer in decided(plane, turns, [f"u{i}" for i in range(30)]).values()}
    assert versions == {1, 2}


def test_a_share_that_moves_and_a_promotion_load_nothing_again(pen: log.Pen, turns: Turns) -> None:
    loads: list[int] = []

    def counted(name: str, number: int) -> Live:
        loads.append(number)
        return load(name, number)

    plane = turns.attach(Plane(counted, pen.append, now=now, new_id=lambda: time_ordered_id(now(), b"12345678")))
    for wanted in (1, two(0.1), two(0.5, "ramp"), two(0.0, "shadow"), two(1.0, "done"), 2, 2):
        plane.follow(lambda wanted=wanted: {"shop": wanted})  # type: ignore[misc]
    assert loads == [1, 2]
    assert plane.counts.swaps == 2
    assert {answer["version"] for answer in decided(plane, turns, ["a", "b"]).values()} == {2}
    plane.follow(lambda: {"shop": msgspec.structs.replace(two(0.0, "shadow"), state="backed out")})
    assert loads == [1, 2, 1]  # what nobody wanted was let go


def test_an_id_of_the_client_is_answered_once_whoever_answers_it(pen: log.Pen, turns: Turns) -> None:
    plane = turns.attach(plane_of(pen))
    plane.follow(lambda: {"shop": two(0.5)})
    answers = Answers()
    plane.decide("shop", ask("u", id="mine"), answers.reply)
    turns.end()
    plane.follow(lambda: {"shop": 2})
    plane.decide("shop", ask("u", id="mine"), answers.reply)
    assert answers[0] == answers[1]


# -- the shadow ---------------------------------------------------------------------------------------------------


@pytest.fixture
def dark(tmp_path: Path) -> Iterator[Shadow]:
    with log.Pen(tmp_path / "shadow") as pen:
        made = Shadow(pen.append)
        close = made.close
        made.close = lambda: (close(), pen.flush())  # type: ignore[method-assign,assignment,return-value]
        yield made


def test_the_shadow_decides_all_and_answers_nobody(pen: log.Pen, dark: Shadow, turns: Turns, tmp_path: Path) -> None:
    plane = turns.attach(plane_of(pen, shadow=dark))
    plane.follow(lambda: {"shop": two(0.0, "shadow", candidate=30)})
    for start in range(0, 200, 50):
        answers = decided(plane, turns, [f"u{i}" for i in range(start, start + 50)])
        assert {answer["version"] for answer in answers.values()} == {1}
    dark.close()
    real, shadow = (logged(tmp_path / place)[0] for place in ("log", "shadow"))
    assert [decision.version for decision in real] == [1] * 200
    by_id = {decision.id: decision for decision in shadow}
    assert by_id.keys() == {decision.id for decision in real}
    for decision in real:
        other = by_id[decision.id]
        assert other.version == 30
        kept = ("id", "problem", "unit", "at", "context", "candidates", "step")
        assert all(getattr(other, field) == getattr(decision, field) for field in kept)
    assert replays(tmp_path / "log") == replays(tmp_path / "shadow") == 200
    live = load("shop", 30)
    expected = 0.0
    for decision in real:  # the challenger's greedy action has 0.8, the others 0.1
        encoded = live.version.encoder
        context = encoded.raw_context([decision.context])
        candidates, ids = encoded.raw_candidates([decision.candidates], 3)
        best = int(np.argmax(live.run(context, candidates, ids)[0]))
        expected += 0.8 if decision.candidates[best].id == decision.action else 0.1
    status = plane.status()["shadow"]
    assert status == {"scored": 200, "dropped": 0, "failed": 0, "agreement": pytest.approx(expected), "error": ""}


def test_a_challenger_that_breaks_in_the_shadow_breaks_nothing(
    pen: log.Pen, dark: Shadow, turns: Turns, tmp_path: Path
) -> None:
    broken = False

    def fragile(name: str, number: int) -> Live:
        graph = Graph(compose(SHOP_ENCODER, net(SHOP_ENCODER, seed=number)))

        def run(context, candidates, ids) -> np.ndarray:
            if broken and number == 2:
                raise RuntimeError("out of luck")
            return graph.scores(context, candidates, ids)

        return Live(version(SHOP, SHOP_ENCODER, number, EpsilonGreedy(0.1)), SHOP, run)

    counter = iter(range(1000))
    plane = Plane(fragile, pen.append, now=now, new_id=lambda: f"d{next(counter)}", shadow=dark)
    turns.attach(plane)
    plane.follow(lambda: {"shop": two(0.0, "shadow")})
    broken = True
    assert {answer["version"] for answer in decided(plane, turns, ["a", "b", "c"]).values()} == {1}
    dark.close()
    status = plane.status()["shadow"]
    assert (status["failed"], status["scored"]) == (3, 0)
    assert "out of luck" in status["error"]
    assert logged(tmp_path / "shadow") == ([], [])


def test_what_is_too_much_for_the_shadow_is_dropped_and_counted(pen: log.Pen, turns: Turns) -> None:
    dark = Shadow(lambda records, done: done(None), waiting=0)
    plane = turns.attach(plane_of(pen, shadow=dark))
    plane.follow(lambda: {"shop": two(0.0, "shadow")})
    decided(plane, turns, ["a", "b"])
    dark.close()
    assert dark.status()["dropped"] == 2
    assert dark.status()["scored"] == 0


# -- the warehouse and the verbs ----------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Warehouse:
    made = project(tmp_path)
    for _ in range(2):
        flow.publish_uniform(made, "greeting")
    flow.promote(made, "greeting", "1")
    return Warehouse(made.warehouse_url)


def states(house: Warehouse) -> list[tuple[int, int, float, str]]:
    return [(one.baseline, one.candidate, one.share, one.state) for one in house.rollouts("greeting")]


def test_a_rollout_goes_from_the_shadow_to_its_end_and_every_state_is_kept(house: Warehouse) -> None:
    assert house.deployed("greeting") == 1
    assert house.rollouts("greeting") == ()
    for share in (0.0, 0.1, 0.5):
        assert house.deployed("greeting") != house.roll_out("greeting", 2, share, at=5)
    house.set_alias("greeting", "challenger", 3, at=6)  # no champion: the rollout goes on
    assert house.deployed("greeting") == house.rollouts("greeting")[-1]
    house.set_alias("greeting", CHAMPION, 2, at=7)
    begun = [(1, 2, 0.0, "shadow"), (1, 2, 0.1, "canary"), (1, 2, 0.5, "ramp"), (1, 2, 1.0, "done")]
    assert states(house) == begun
    assert house.deployed("greeting") == 2
    house.roll_out("greeting", 3, 0.2, at=8)
    house.rollback("greeting", CHAMPION, at=9)
    house.set_alias("greeting", CHAMPION, 2, at=10)  # a rollout that was ended does not begin again by itself
    assert states(house) == [*begun, (2, 3, 0.2, "canary"), (2, 3, 0.0, "backed out")]
    assert house.deployed("greeting") == 2


def test_another_candidate_ends_the_rollout_before(house: Warehouse) -> None:
    house.roll_out("greeting", 2, 0.1, at=5)
    house.roll_out("greeting", 3, 0.1, at=6)
    assert states(house) == [(1, 2, 0.1, "canary"), (1, 2, 0.0, "backed out"), (1, 3, 0.1, "canary")]
    house.back_out("greeting", at=7)
    assert house.deployed("greeting") == 1


def test_a_rollout_that_makes_no_sense_is_refused_and_changes_nothing(house: Warehouse) -> None:
    for candidate, share in ((1, 0.1), (2, 1.0), (2, -0.1), (2, float("nan"))):
        with pytest.raises(DataError):
            house.roll_out("greeting", candidate, share, at=5)
    with pytest.raises(NotFoundError, match="no version 9"):
        house.roll_out("greeting", 9, 0.1, at=5)
    with pytest.raises(ConflictError, match="no rollout"):
        house.back_out("greeting", at=5)
    assert states(house) == []


def test_a_server_follows_a_rollout_and_every_decision_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = project(tmp_path)
    flow.publish_uniform(made, "greeting")
    flow.promote(made, "greeting", "1")

    def steer(*options: str) -> tuple[int, dict]:
        capsys.readouterr()
        code = cli.main([*options, "--project", str(tmp_path), "--json"])
        return code, json.loads(capsys.readouterr().out)

    def wait(url: str, **expected: object) -> None:
        deadline = time.monotonic() + 20
        while not expected.items() <= (_rollout_of(url) or {}).items():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    assert steer("rollout", "greeting")[0] != 0
    with serving(made) as url:
        assert steer("rollout", "greeting@2", "--shadow")[1]["state"] == "shadow"
        wait(url, state="shadow", loaded=True)
        client = Caller(url)
        for i in range(40):
            assert client.post("/v1/decide/greeting", {"unit": f"u{i}"})[1]["version"] == 1
        assert steer("rollout", "greeting", "--share", "0.5")[1]["state"] == "canary"
        wait(url, state="canary", loaded=True)
        rollout = flow.rollouts(made, "greeting")[-1]
        load = Load(url, "s")
        load.wait(300)
        assert steer("rollout", "greeting", "--share", "0.8")[1]["state"] == "ramp"
        load.wait(100)
        assert steer("promote", "greeting@2")[0] == 0
        demo.wait_for_version(url, "greeting", 2)
        load.wait(100)
        load.stop()
        for i in range(20):
            answer = client.post("/v1/decide/greeting", {"unit": f"u{i}"})[1]
            assert answer["version"] == 2
    assert not load.refused
    assert steer("rollout", "greeting")[1]["state"] == "done"
    shadow, _ = logged(tmp_path / "log-shadow")
    assert [decision.version for decision in shadow] == [2] * 40
    decisions, _ = logged(tmp_path / "log")
    assert {decision.version for decision in decisions} == {1, 2}
    first = {d.unit: d.version for d in decisions if d.unit in {f"s-{i}-0" for i in range(8)}}
    assert all(number == (2 if rollout.takes(unit) else 1) for unit, number in first.items())
    assert all(found.identical for found in flow.replay_all(made, [decision.id for decision in decisions[::20]]))


def test_what_waits_for_the_shadow_is_scored_and_written_before_the_server_ends(tmp_path: Path) -> None:
    made = project(tmp_path)
    live = load("shop", 2)
    slow = dataclasses.replace(live, run=lambda *rows: (time.sleep(0.005), live.run(*rows))[1])
    versions = Versions(lambda name, number: slow, now=now, counts=Counts(), candidates=10)
    versions.swap("shop", 2)
    loaded = versions.routes["shop"].champion
    with serving_of._shadow(made) as dark:
        for i in range(20):
            request = loaded.read(ask(f"u{i}"), lambda i=i: f"d{i}")  # type: ignore[misc]
            [decision], _ = decisions_of(loaded, [request], 0)
            dark.offer([(loaded, request, decision)])
        dark.offer([(loaded, request, decision)] * 30)
    shadow, _ = logged(tmp_path / "log-shadow")
    assert [decision.id for decision in shadow] == [*(f"d{i}" for i in range(20)), *["d19"] * 30]


def _rollout_of(url: str) -> dict | None:
    return Caller(url).get("/v1/status")["policies"]["greeting"]["rollout"]
