"""Guardrails of a live policy: a real server, a metric that copies harm, and sampling that stops by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from product import Client, serving, start
from steersman import config, flow
from steersman.cli import main
from steersman.config import Project
from steersman.core.decision import uniform_draw
from steersman.core.errors import ConfigError, ConflictError, DataError, GateError
from steersman.engine.disk import alone
from steersman.evaluate.guardrails import Guardrail
from steersman.flow import guarding, perturbing, sampling
from steersman.learn import evolution as es
from test_online import TOML, decisions, product

RAIL = """
[problem.side.guardrails.complaints]
range = [0, 1]
"""


def guarded(directory: Path, limits: str) -> Project:
    """Half of the units of version 3 meet copies; complaints are looked at every fifth of a second."""
    made = product(directory, es.Settings(sigma=0.2), share=0.5)
    text = TOML.replace("poll_s = 0.02", "poll_s = 0.02\nwatch_s = 0.2") + RAIL + limits
    (directory / config.FILE).write_text(text)
    return config.load(made.root)


class Crowd:
    """Units that come once, and complain with a chance that depends on whether they met a copy."""

    def __init__(self, made: Project, url: str) -> None:
        self._served = perturbing.served_of(made, "side", 3)
        self._client = Client(url)
        self._rng = np.random.default_rng(0)
        self.count = 0

    def come(self, units: int, of_copies: float, of_others: float) -> list[str]:
        """Ids of their decisions."""
        found = []
        for _ in range(units):
            unit = f"u{self.count}"
            self.count += 1
            meets = uniform_draw(self._served.seed, unit) < self._served.share
            status, answer = self._client.post("/v1/decide/side", {"unit": unit, "context": {"x": 1.0}})
            assert status == 200
            complains = float(self._rng.random() < (of_copies if meets else of_others))
            metrics = {"right": float(self._rng.random()), "complaints": complains}
            outcome = {"decision": answer["id"], "metrics": metrics, "ends": "terminated"}
            assert self._client.post("/v1/outcome", outcome)[0] == 200
            found.append(answer["id"])
        return found

    def sampling(self) -> dict[str, Any]:
        """What the server says of its copies."""
        return self._client.get("/v1/status")["policies"]["side"]["sampling"]


def until(true: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_harmful_metric_stops_the_copies_by_itself_until_somebody_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = guarded(tmp_path, "rise = 0.2\nhighest = 0.9\n")
    at = ["--project", str(tmp_path)]
    with serving(made) as url:
        crowd = Crowd(made, url)
        until(lambda: crowd.sampling()["active"], "nobody looks at the guardrails")
        fine = crowd.come(120, of_copies=0.2, of_others=0.2)
        looked = sampling.last(made, "side")
        until(lambda: (now := sampling.last(made, "side")) and now.copies > 40 and now != looked, "no look at them")
        assert crowd.sampling() == {"share": 0.5, "active": True, "why_not": ""}
        while crowd.sampling()["active"]:
            crowd.come(20, of_copies=0.9, of_others=0.2)
            time.sleep(0.1)
            assert crowd.count < 2000, sampling.last(made, "side")
        why = crowd.sampling()["why_not"]
        assert why.startswith("stopped: complaints of the copies of side@3") and "a rise of surely more than" in why
        after = crowd.come(60, of_copies=0.9, of_others=0.2)
        assert main(["status", *at]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "side: perturbed copies stopped: complaints of" in shown and "steersman es resume side" in shown
        assert main(["es", "update", "side", *at]) == GateError.exit_code
        assert "its copies were stopped" in capsys.readouterr().err
        assert main(["es", "resume", "side", *at]) == 0
        assert "copies of side decide again" in capsys.readouterr().out
        until(lambda: crowd.sampling()["active"], "the server does not sample again")
        looked = sampling.last(made, "side")
        again = crowd.come(60, of_copies=0.2, of_others=0.2)
        until(lambda: (now := sampling.last(made, "side")) and now != looked and now.copies > 10, "no look after it")
        assert crowd.sampling()["active"]  # what was before breaks nothing any more
    flow.compact(made)
    logged = decisions(made)
    assert sum(logged[one][1] is not None for one in fine) > 40
    assert all(logged[one][1] is None for one in after)
    assert sum(logged[one][1] is not None for one in again) > 15
    with pytest.raises(ConflictError, match="no guardrail stopped"):
        sampling.resume(made, "side")


def test_copies_pause_while_nobody_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = guarded(tmp_path, "highest = 0.5\n")
    assert "nobody has looked" in sampling.why_not(made, "side")
    assert main(["es", "watch", "--once", "--project", str(tmp_path)]) == 0
    assert "side@3 0 units of copies" in " ".join(capsys.readouterr().out.split())
    looked = sampling.last(made, "side")
    assert looked is not None and sampling.why_not(made, "side") == ""
    sampling.watched(made, "side", replace(looked, until=flow.now_us() - 5_000_000))
    assert "is 5 s too old" in sampling.why_not(made, "side")
    sampling.watched(made, "side", replace(looked, failed="no disk"))
    assert "can not be looked at: no disk" in sampling.why_not(made, "side")
    flow.promote(made, "side", "2")  # without copies there is nothing to look at
    assert guarding.look(made, "side", 1.0) is None


def test_a_watch_goes_on_whatever_fails_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = guarded(tmp_path, "highest = 0.5\n")
    fresh = (TOML + RAIL)[TOML.index("[problem.side]") :].replace("side", "fresh") + "highest = 0.5\n"
    (tmp_path / config.FILE).write_text((tmp_path / config.FILE).read_text() + fresh)  # it has no champion yet
    made, looks, rounds = config.load(tmp_path), list[tuple[str, float]](), iter((False, False, True))

    def look(project: Project, name: str, every_s: float) -> sampling.Watched | None:
        looks.append((name, every_s))
        if len(looks) == 1:
            raise OSError("the disk is away")
        time.sleep(0.1)
        return looked(project, name, every_s)

    looked, told = guarding.look, list[str]()
    monkeypatch.setattr(guarding, "look", look)
    guarding.watch(made, ["fresh", "side"], 1.0, lambda _: next(rounds), lambda name, found: told.append(name))
    assert [name for name, _ in looks] == ["fresh", "side"] * 3
    assert told == ["side"] * 3
    assert looks[0][1] == 1.0 and looks[-1][1] > 1.2  # a round with two slow looks takes longer
    with pytest.raises(OSError, match="is away"):
        looks.clear()
        guarding.watch(made, ["side"], 1.0, lambda _: True)


def test_what_fails_beside_a_look_is_told_and_the_look_counts(tmp_path: Path) -> None:
    made, told = guarded(tmp_path, "highest = 0.5\n"), list[str]()

    def fails(name: str) -> None:
        raise DataError("es/side/4/served.json is damaged")

    with pytest.raises(DataError, match="is damaged"):
        guarding.watch(made, ["side"], 1.0, lambda _: True, lambda name, found: told.append(name), fails)
    assert told == ["side"] and sampling.why_not(made, "side") == ""

    def judged(name: str) -> None:
        raise ConflictError("another judgement is running")

    guarding.watch(made, ["side"], 1.0, lambda _: True, also=judged)  # somebody does it


def test_a_unit_counts_once_in_however_many_versions_it_met_copies() -> None:
    """A tenth of the units complain, always: at that limit at most 1 in 20 runs may ever stop. Each comes ten times."""
    rng, rails = np.random.default_rng(0), {"complaints": Guardrail(range=(0.0, 1.0), highest=0.1)}

    def ever() -> bool:
        complains = rng.random(60) < 0.1
        version = np.repeat(np.arange(1, 11), 60)
        rows = guarding.Rows(
            version, np.ones(600, dtype=bool), np.tile(np.arange(60), 10), {"complaints": 1.0 * np.tile(complains, 10)}
        )
        looks = (guarding.Rows(*(some[:n] for some in rows[:3]), {"complaints": rows.metrics["complaints"][:n]})
                 for n in range(60, 601, 60))  # fmt: skip
        return any(guarding.harm(look, rails, "side", int(look.version[-1])) for look in looks)

    assert sum(ever() for _ in range(60)) <= 6  # 3 of 60 at the most, and two standard errors


def test_who_asks_for_one_look_is_told_that_another_one_looks(tmp_path: Path, capsys) -> None:
    made = guarded(tmp_path, "highest = 0.5\n")
    with alone(sampling.place(made, "side") / "watch.lock", "watch"):
        assert main(["es", "watch", "--once", "--project", str(tmp_path)]) == ConflictError.exit_code
    assert "another watch of side is running" in capsys.readouterr().err


def test_who_watches_ends_with_the_server_however_that_ends(tmp_path: Path) -> None:
    made = guarded(tmp_path, "highest = 0.5\n")
    process, url = start(made)
    crowd = Crowd(made, url)
    until(lambda: crowd.sampling()["active"], "nobody looks at the guardrails")
    process.send_signal(signal.SIGKILL)
    process.wait()

    def watchers() -> list[str]:
        lines = [(one / "cmdline") for one in Path("/proc").iterdir() if one.name.isdecimal()]
        return [one.parent.name for one in lines if os.fsencode(str(tmp_path)) in _read(one)]

    until(lambda: not watchers(), "the watch goes on")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("limits", "field"),
    [("lowst = 0.1", "lowst"), ("highest = 2.0", "highest"), ("", "highest"), ("rise = true", "rise")],
)
def test_a_guardrail_that_can_not_be_is_refused_by_its_place_in_the_file(
    tmp_path: Path, limits: str, field: str
) -> None:
    (tmp_path / config.FILE).write_text(TOML + RAIL + limits + "\n")
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path)
    assert caught.value.field == f"problem.side.guardrails.complaints.{field}"
