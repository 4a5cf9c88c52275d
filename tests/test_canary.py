"""The canary of an update: a real server, a rollout, and a log that promotes it, backs it out or lets it wait."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from product import Client, serving
from steersman import config, flow
from steersman.cli import main
from steersman.config import Project
from steersman.core.errors import ConflictError, GateError
from steersman.evaluate.guardrails import FEW, beside
from steersman.flow import canary, online, perturbing, telling
from steersman.learn import evolution as es
from steersman.models.warehouse import Warehouse
from test_guarding import until
from test_online import play, product

RAIL = "\n[problem.side.guardrails.complaints]\nrange = [0, 1]\nrise = 0.3\n"


def with_canary(directory: Path, guarded: bool = False) -> Project:
    """Version 3 is the champion, and its updates decide for half of the units first."""
    made = product(directory, es.Settings(sigma=0.2), share=0.5)
    if guarded:
        file = directory / config.FILE
        file.write_text(file.read_text().replace("poll_s = 0.02", "poll_s = 0.02\nwatch_s = 0.2") + RAIL)
        made = config.load(directory)
    version = online.init(
        made, "side", "2", es.Settings(sigma=0.2), share=0.5, copies=8, pool=True, canary=0.5, tolerance=0.2
    )
    flow.promote(made, "side", str(version.number))
    return made


def come(url: str, prefix: str, units: int, worth: dict[int, float], complain: dict[int, float]) -> dict[int, int]:
    """Units that come once, and earn what the version that they meet is worth; version -> how many met it."""
    client, rng, met = Client(url), np.random.default_rng(0), dict[int, int]()
    for number in range(units):
        status, answer = client.post("/v1/decide/side", {"unit": f"{prefix}{number}", "context": {"x": 1.0}})
        assert status == 200
        version = answer["version"]
        metrics = {"right": rng.normal(worth.get(version, 1.0), 0.1), "complaints": complain.get(version, 0.0)}
        outcome = {"decision": answer["id"], "metrics": metrics, "ends": "terminated"}
        assert client.post("/v1/outcome", outcome)[0] == 200
        met[version] = met.get(version, 0) + 1
    time.sleep(1.1)  # the wait of the last decisions
    return met


def who_decides(client: Client) -> set[int]:
    """Versions that answer twenty units."""
    asked = [client.post("/v1/decide/side", {"unit": f"w{number}", "context": {"x": 1.0}}) for number in range(20)]
    return {answer["version"] for _, answer in asked}


def follows(url: str, candidate: int | None) -> None:
    deadline = time.monotonic() + 20
    while True:
        rollout = Client(url).get("/v1/status")["policies"]["side"]["rollout"]
        if (rollout["candidate"] if rollout and rollout["loaded"] else None) == candidate:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("worth", "complains", "verdict"),
    [
        (1.0, 0.0, "promoted"),
        pytest.param(0.7, 0.0, "backed out", marks=pytest.mark.slow),
        (1.5, 1.0, "backed out"),
    ],
)
def test_the_log_of_a_canary_says_what_becomes_of_it(
    worth: float, complains: float, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = with_canary(tmp_path, guarded=complains > 0)
    at = ["--project", str(tmp_path)]
    with serving(made) as url:
        client = Client(url)
        until(lambda: client.get("/v1/status")["policies"]["side"]["sampling"]["active"], "nobody looks")
        play(url, 60, "u")
        assert main(["es", "update", "side", *at]) == 0
        assert "canary    50% of the units meet side@5, from" in capsys.readouterr().out
        assert flow.champion(made, "side") == 4
        follows(url, 5)
        assert main(["es", "update", "side", *at]) == 0
        assert "waiting  side@5: no unit has decided yet" in capsys.readouterr().out
        met = come(url, "v", 200, {5: worth}, {5: complains})
        assert met.keys() == {4, 5} and min(met.values()) > (15 if complains else 60)
        if complains:  # who watches the guardrails asks the log about the canary, too
            follows(url, None)
        else:
            code = main(["es", "update", "side", *at])
            assert f"{verdict}  side@5: it surely earns" in capsys.readouterr().out
            assert code == (0 if verdict == "promoted" else GateError.exit_code)
            follows(url, None)
        assert flow.champion(made, "side") == (5 if verdict == "promoted" else 4)
        until(lambda: who_decides(client) == {5 if verdict == "promoted" else 4}, "the other one still decides")
    assert Warehouse(made.warehouse_url).rollouts("side")[-1].state == ("done" if verdict == "promoted" else verdict)


def test_a_step_whose_canary_was_backed_out_is_not_tried_again(tmp_path: Path, monkeypatch: Any) -> None:
    made = with_canary(tmp_path)
    with serving(made) as url:
        play(url, 60, "u")
    now = flow.now_us()
    monkeypatch.setattr(online, "now_us", lambda: now)  # the log says the same the next time
    first = online.update(made, "side")
    assert isinstance(first, online.Updated) and (first.version, first.canary) == (5, 0.5)
    flow.back_out(made, "side")
    assert canary.running(made, "side") is None
    with pytest.raises(GateError, match="it was backed out"):
        online.update(made, "side")
    assert Warehouse(made.warehouse_url).numbers("side") == (1, 2, 3, 4, 5)
    assert perturbing.served_of(made, "side", 5).tolerance == 0.2


def test_what_somebody_did_while_a_canary_was_judged_stays_so(tmp_path: Path, monkeypatch: Any) -> None:
    made = with_canary(tmp_path)
    with serving(made) as url:
        play(url, 60, "u")
    told = telling.told

    def moved(*given: Any) -> telling.Moved:
        flow.promote(made, "side", "2")
        return told(*given)

    monkeypatch.setattr(telling, "told", moved)
    online.update(made, "side")
    assert Warehouse(made.warehouse_url).rollouts("side") == ()  # of a champion that is not there any more
    monkeypatch.undo()
    flow.promote(made, "side", "4")
    Warehouse(made.warehouse_url).roll_out("side", 5, 0.5, flow.now_us())

    def judged(*given: Any) -> canary.Judged:
        flow.back_out(made, "side")
        return canary.Judged("side", 5, 4, "promoted", 0.1, 0.0, 0.2, 50, 50, "it is better")

    monkeypatch.setattr(canary, "_judged", judged)
    with pytest.raises(ConflictError, match="changed while it was judged"):
        canary.ask(made, "side")
    assert flow.champion(made, "side") == 4


def test_bounds_beside_hold_in_all_looks() -> None:
    rng = np.random.default_rng(1)

    def missed() -> bool:
        some, others = rng.exponential(1.0, 600), rng.exponential(1.0, 600)
        looks = np.unique(np.geomspace(FEW, 600, 20).astype(int))
        return any(not found[1] <= 0 <= found[2] for n in looks if (found := beside(some[:n], others[:n], 0.95)))

    assert sum(missed() for _ in range(200)) <= 16  # 5%, and two standard errors
    assert beside(np.zeros(FEW - 1), np.ones(FEW), 0.95) is None
