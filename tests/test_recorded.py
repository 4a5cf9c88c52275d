"""Requests that are recorded for warm-ups and kept over a restart: what they hold back, and what they do not."""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

import plain_models as plain
from product import TOML, Client, project, serving
from steersman import flow
from steersman.core.errors import DataError
from steersman.flow.recorded import Recorded
from steersman.models.plain import Plain
from steersman.models.shelf import Shelf
from steersman.serve import warmup
from steersman.serve.predicting import Model, Models, Wanted
from test_declared import until
from test_life import Answers, ask_open, plane_with, scorer_of, turns  # noqa: F401

KEEPING = TOML.replace("poll_s = 0.02", "poll_s = 0.02\nkeep_requests = true")


def short(rows: int) -> bytes:
    """Rows of a table by number, of a table that has so many."""
    table = {"table": np.arange(rows, dtype=np.float32)}
    nodes = [("Gather", ["table", "i"], ["y"], {})]
    return plain.model(nodes, {"i": ("int64", ["N"])}, {"y": ("float32", ["N"])}, table)


def state(client: Client, number: str) -> dict:
    return client.get("/v1/status")["models"]["table"].get(number, {})


def test_after_a_restart_a_version_is_tried_on_what_the_server_before_answered(tmp_path: Path) -> None:
    made = project(tmp_path, KEEPING)
    shelf = Shelf(str(tmp_path / "models"))
    shelf.publish("table", plain.gather())  # 5 rows
    with serving(made) as url:
        client = Client(url)
        for i in range(2 * warmup.EVERY):
            assert client.post("/v1/models/table:predict", {"instances": [4]})[0] == 200
            assert client.post("/v1/decide/greeting", {"unit": f"u{i}", "context": {"hour": i}})[0] == 200
    kept = {path.name: path for path in (tmp_path / "recorded").iterdir()}
    assert kept.keys() == {"greeting.decide", "table.predict"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept.values())
    bodies = msgspec.msgpack.decode(kept["greeting.decide"].read_bytes())
    assert [msgspec.json.decode(body)["unit"] for body in bodies] == [f"u{i}" for i in range(2 * warmup.EVERY)]
    with serving(made) as url:
        client = Client(url)
        shelf.publish("table", short(4))  # it has no row 4
        until(lambda: state(client, "2").get("state") == "end")
        assert "refuses all 2 requests" in state(client, "2")["error"]
        assert client.post("/v1/models/table:predict", {"instances": [4]})[0] == 200
        shelf.publish("table", short(6))
        until(lambda: state(client, "3").get("state") == "available")
    assert len(msgspec.msgpack.decode(kept["table.predict"].read_bytes())) >= 2


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path: Path) -> None:
    made = project(tmp_path)
    with serving(made) as url:
        assert Client(url).post("/v1/decide/greeting", {"unit": "u"})[0] == 200
    assert not (tmp_path / "recorded").exists()


def test_what_changed_over_a_restart_keeps_nothing_back(tmp_path: Path) -> None:
    made = project(tmp_path, KEEPING)
    with serving(made) as url:
        assert Client(url).post("/v1/decide/greeting", {"unit": "u", "context": {"hour": 3}})[0] == 200
    (tmp_path / "steersman.toml").write_text(KEEPING.replace('hour = "number"\n', ""))
    changed = flow.config.load(tmp_path)
    with serving(changed) as url:  # it would not be ready
        client = Client(url)
        assert client.post("/v1/decide/greeting", {"unit": "u", "context": {"hour": 3}})[0] == 400
        flow.publish_uniform(changed, "greeting")
        until(lambda: client.get("/v1/status")["policies"]["greeting"]["version"] == 2)


def test_of_a_policys_first_version_only_what_it_answers_is_kept(turns) -> None:  # noqa: F811
    plane = plane_with(scorer_of([]), lambda records, done: done(None), turns)
    bad = ask_open("a", candidates=[{"id": "a", "features": {"price": "text"}}])
    plane.recall({"open": [bad, ask_open(unit="u1"), b"{", ask_open(unit="u2")]})
    plane.follow(lambda: {"open": 1})
    assert plane.status()["policies"]["open"]["version"] == 1
    assert plane.recorded() == {"open": [ask_open(unit="u1"), ask_open(unit="u2")]}


@pytest.mark.parametrize("kind", plain.TYPES)
def test_arrays_of_every_type_come_back_as_they_were(tmp_path: Path, kind: str) -> None:
    made = project(tmp_path)
    model = Plain(plain.same(kind))
    values = ["", "a\0", "\u00fc"] if kind == "str" else [0, 1, 1]
    array = np.array(values, dtype=object if kind == "str" else kind)
    models = Models(lambda *_: Model(model.signature, model.run), lambda: {"m": Wanted((1,))})
    warmup.record(models.recorded.of("m"), {"x": array})
    plane = plane_with(scorer_of([]), lambda records, done: done(None), turns_of_none())
    Recorded(made, plane, models).keep()
    again = Models(lambda *_: Model(model.signature, model.run), lambda: {"m": Wanted((1,))})
    Recorded(made, plane, again).recall()
    [found] = again.recorded.of("m")
    assert found["x"].dtype == array.dtype and found["x"].tolist() == array.tolist()
    again.follow()
    assert again.find("m").number == 1 and len(again.recorded.of("m")) == 1


def turns_of_none():
    """A loop that nobody turns."""
    from test_plane import Turns

    return Turns()


def test_damaged_files_cost_the_warm_up_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = project(tmp_path)
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "greeting.decide").write_bytes(b"\xc1")
    wrong = [{"x": ["<f4", [3], b"1234", []]}, {"x": ["O", [1], b"12345678", []]}, {"x": ["nonsense", [1], b"", []]}]
    fine = {"x": ["<f4", [1], np.float32([2]).tobytes(), []]}
    (tmp_path / "recorded" / "m.predict").write_bytes(msgspec.msgpack.encode([*wrong, fine]))
    plane = plane_with(scorer_of([]), lambda records, done: done(None), turns_of_none())
    models = plain.models_of({})
    Recorded(made, plane, models).recall()
    assert plane.recorded() == {}
    assert [one["x"].tolist() for one in models.recorded.of("m")] == [[2.0]]
    assert "greeting.decide" in capsys.readouterr().err
    (tmp_path / "recorded" / "m.predict").unlink()
    (tmp_path / "recorded" / "m.predict").mkdir()
    Recorded(made, plane, models).keep()
    assert "m.predict" in capsys.readouterr().err


def test_a_model_that_refuses_all_that_was_kept_still_serves_first() -> None:
    half = Plain(plain.half())
    ran: list[float] = []

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        ran.append(float(feeds["x"][0]))
        if feeds["x"][0] == 7:
            raise DataError("not for me")
        return half.run(feeds)

    models = Models(lambda *_: Model(half.signature, run), lambda: {"m": Wanted((1,))})
    kept = models.recorded.of("m")
    kept.extend([{"x": np.float32([7])}, {"y": np.float32([1])}, {"x": np.float32([7, 1])}])
    models.follow()
    assert models.find("m").number == 1
    assert (ran[:2], kept) == ([7.0, 7.0], deque(maxlen=warmup.RECORDED))
