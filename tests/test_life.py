"""The life of a version in a real server: policies of versions, what is broken, warm-up, memory that comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import plain_models as plain
from product import TOML, Client, project, serving, start
from steersman import flow
from steersman.config import Project
from steersman.core.errors import DataError
from steersman.models.plain import Plain
from steersman.models.shelf import Shelf
from steersman.models.stores import MOST_WARM_UP
from steersman.serve import predicting, warmup
from steersman.serve.predicting import Model, Models, Wanted
from test_plane import Answers, Turns, plane_with, scorer_of
from test_plane import ask as ask_open
from test_predicting import Loop, ask

POLICIES = """
[models]
url = "models"
[model.newest]
[model.two]
latest = 2
labels = { stable = 2, next = 3, gone = 1 }
[model.every]
latest = 0
[model.fixed]
numbers = [1, 3]
"""


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def put(made: Project, name: str, number: int, data: bytes) -> Path:
    """Write a model as a careless tool does: in place, without a rename."""
    folder = made.root / "models" / name / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    return folder / "model.onnx"


def states(client: Client, name: str) -> dict[str, str]:
    return {one["version"]: one["state"] for one in client.get(f"/v1/models/{name}")["model_version_status"]}


def predicted(client: Client, path: str) -> float | int:
    """What half of 0 gives, which tells the version; or the status of the error."""
    status, body = client.post(f"/v1/models/{path}:predict", {"instances": [0.0]})
    return body["predictions"][0] if status == 200 else status


def test_each_model_is_served_by_the_versions_that_its_policy_names(tmp_path: Path) -> None:
    made = project(tmp_path, TOML + POLICIES)
    for name in ("newest", "two", "every", "fixed"):
        for number in (1, 2, 3):
            put(made, name, number, plain.half(number))
    with serving(made) as url:
        client = Client(url)
        served = {name: sorted(states(client, name)) for name in ("newest", "two", "every", "fixed")}
        assert served == {"newest": ["3"], "two": ["2", "3"], "every": ["1", "2", "3"], "fixed": ["1", "3"]}
        assert [predicted(client, name) for name in ("newest", "two", "every", "fixed")] == [3.0] * 4
        assert predicted(client, "fixed/versions/1") == 1.0
        assert [predicted(client, f"two/labels/{label}") for label in ("stable", "next")] == [2.0, 3.0]
        for path in ("two/versions/1", "two/labels/gone", "fixed/versions/2"):  # a label of what is not served
            assert predicted(client, path) == 404
        for name in ("newest", "two", "every", "fixed"):
            put(made, name, 4, plain.half(4))
        until(lambda: [predicted(client, name) for name in ("newest", "two", "every")] == [4.0] * 3)
        assert sorted(states(client, "two")) == ["3", "4"]
        assert sorted(states(client, "every")) == ["1", "2", "3", "4"]
        assert predicted(client, "fixed") == 3.0
        assert predicted(client, "two/labels/stable") == 404
        (made.root / "models" / "every" / "4" / "model.onnx").unlink()
        until(lambda: predicted(client, "every") == 3.0)


def test_no_beginning_of_a_file_is_ever_served_and_the_whole_file_is(tmp_path: Path) -> None:
    made = project(tmp_path, TOML)
    whole = plain.mlp(1, 64, 1)
    put(made, "m", 1, plain.mlp(1, 2, 1))
    with serving(made) as url:
        client = Client(url)
        before = client.post("/v1/models/m:predict", {"instances": [[2.0]]})
        assert before[0] == 200
        for number, end in enumerate((0, 1, len(whole) // 3, len(whole) - 1), start=2):
            put(made, "m", number, whole[:end])
            until(lambda number=number: states(client, "m").get(str(number)) == "END")  # type: ignore[misc]
            assert client.post("/v1/models/m:predict", {"instances": [[2.0]]}) == before
            assert states(client, "m")["1"] == "AVAILABLE"
            error = client.get("/v1/status")["models"]["m"][str(number)]["error"]
            assert f"{end} bytes are not an ONNX model" in error
        put(made, "m", 5, whole)  # the copy has come to its end
        until(lambda: states(client, "m") == {"5": "AVAILABLE"})
        again = client.post("/v1/models/m:predict", {"instances": [[2.0]]})
        assert again[1]["predictions"][0] == pytest.approx(Plain(whole).run({"x": np.float32([[2.0]])})[0][0].tolist())


def test_no_beginning_of_a_model_loads_but_the_one_that_lacks_only_its_properties() -> None:
    whole = plain.mlp(2, 3, classes='["a", "b", "c"]')
    loads = []
    for end in range(len(whole)):
        try:
            Plain(whole[:end])
        except DataError:
            continue
        loads.append(end)
    assert [whole[end:] for end in loads] == [b'r\x1a\n\x07classes\x12\x0f["a", "b", "c"]']  # field 14


def test_a_damaged_version_of_a_policy_never_decides(tmp_path: Path) -> None:
    made = project(tmp_path)
    flow.publish_uniform(made, "greeting")
    flow.promote(made, "greeting", "1")
    model = tmp_path / "warehouse" / "greeting" / "2" / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-7])
    with serving(made) as url:
        client = Client(url)
        flow.promote(made, "greeting", "2")
        until(lambda: client.get("/v1/status")["policies"]["greeting"]["error"])
        found = client.get("/v1/status")["policies"]["greeting"]
        assert (found["version"], found["wanted"], found["error"]["version"]) == (1, 2, 2)
        assert "is damaged" in found["error"]["error"]
        assert client.post("/v1/decide/greeting", {"unit": "u"})[1]["version"] == 1
        model.write_bytes(whole)
        until(lambda: client.post("/v1/decide/greeting", {"unit": "u"})[1]["version"] == 2)


def test_swaps_under_load_fail_nothing_and_answers_are_never_of_a_version_before(tmp_path: Path) -> None:
    made = project(tmp_path, TOML)
    put(made, "m", 1, plain.half(1))
    seen: list[list[float]] = [[] for _ in range(4)]
    done = threading.Event()

    def run(mine: list[float], url: str) -> None:
        client = Client(url)
        while not done.is_set():
            mine.append(predicted(client, "m"))

    with serving(made) as url:
        threads = [threading.Thread(target=run, args=(mine, url), daemon=True) for mine in seen]
        for thread in threads:
            thread.start()
        for number in range(2, 8):
            Shelf(str(tmp_path / "models")).publish("m", plain.half(number))
            until(lambda number=number: all(mine and mine[-1] == number for mine in seen))  # type: ignore[misc]
        done.set()
        for thread in threads:
            thread.join(20)
    for mine in seen:
        assert mine == sorted(mine)
        assert set(mine) <= set(range(1, 8))


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_what_loads_has_a_low_priority_and_what_answers_has_not(tmp_path: Path) -> None:
    made = project(tmp_path)
    process, _ = start(made)
    try:
        nice = {}
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            nice[int(task.name)] = (name, int(rest.split()[16]))
    finally:
        process.terminate()
        process.wait(30)
    assert nice[process.pid][1] == os.nice(0)
    assert 19 in {one for _, one in nice.values()}


# -- warm-up ------------------------------------------------------------------------------------------------------


def test_a_file_of_requests_is_answered_before_a_version_serves(tmp_path: Path) -> None:
    made = project(tmp_path, TOML)
    put(made, "table", 1, plain.gather())
    (tmp_path / "models" / "table" / "warmup.jsonl").write_text('{"instances": [0, 4]}\n\n{"inputs": [3]}\n')
    decides = tmp_path / "warehouse" / "greeting" / "warmup.jsonl"
    decides.write_text('{"unit": "u", "context": {"hour": 3}}\n')
    short = plain.model(
        [("Gather", ["table", "i"], ["y"], {})],
        {"i": ("int64", ["N"])},
        {"y": ("float32", ["N"])},
        {"table": np.arange(4, dtype=np.float32)},
    )
    with serving(made) as url:
        client = Client(url)
        assert client.post("/v1/models/table:predict", {"instances": [4]})[0] == 200
        put(made, "table", 2, short)  # it has no row 4
        until(lambda: states(client, "table").get("2") == "END")
        assert "indices element out of data bounds" in client.get("/v1/status")["models"]["table"]["2"]["error"]
        assert client.post("/v1/models/table:predict", {"instances": [4]})[0] == 200
        put(made, "table", 3, plain.gather())
        until(lambda: states(client, "table") == {"3": "AVAILABLE"})
        decides.write_text('{"unit": "u", "context": {"hour": "three"}}\n')
        flow.publish_uniform(made, "greeting")
        until(lambda: client.get("/v1/status")["policies"]["greeting"]["error"])
        found = client.get("/v1/status")["policies"]["greeting"]
        assert (found["version"], found["error"]["field"]) == (1, "context.hour")
    (tmp_path / "models" / "table" / "warmup.jsonl").write_text('{"instances": [0]}\n' * (MOST_WARM_UP + 5))
    assert len(Shelf(str(tmp_path / "models")).warm_up("table")) == MOST_WARM_UP


def test_the_next_version_is_tried_on_what_the_last_one_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "HEAVY_S", 1e9)  # none may run aside, however busy the machine is
    ran: list[list[float]] = []
    half = Plain(plain.half())
    number = 1
    refuses: set[float] = set()

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        ran.append(feeds["x"].tolist())
        if refuses & set(ran[-1]):
            raise DataError("not for me")
        return half.run(feeds)

    models = Models(lambda *_: Model(half.signature, run), lambda: {"m": Wanted((number,))})
    models.follow()
    loop = Loop(models)
    for i in range(warmup.EVERY * (warmup.RECORDED + 10)):
        ask(models, "m", {"x": np.float32([i])})
        loop.turn()
    ran.clear()
    number = 2
    models.follow()
    kept = [[float(warmup.EVERY * i)] for i in range(10, warmup.RECORDED + 10)]
    assert ran[: warmup.RECORDED] == kept  # bounded, the last ones, before anything made up
    assert models.find("m").number == 2
    number, refuses = 3, {kept[0][0]}
    models.follow()
    assert models.find("m").number == 3  # one odd request keeps nobody back
    number, refuses = 4, {one[0] for one in kept}
    models.follow()
    assert models.find("m").number == 3
    assert "refuses all 32 requests" in str(models.states("m")[0].error)


def test_what_is_large_is_not_kept_and_a_view_keeps_no_body() -> None:
    recorded: warmup.Recorded = warmup.deque(maxlen=3)
    body = np.zeros(1 << 20, dtype=np.float32)
    warmup.record(recorded, {"x": body})
    warmup.record(recorded, {"x": np.array(["x" * 70_000], dtype=object)})
    assert not recorded
    warmup.record(recorded, {"x": body[:10]})
    assert recorded[0]["x"].base is None


def test_a_policy_that_refuses_all_that_the_last_one_answered_does_not_decide(turns: Turns) -> None:
    load = scorer_of([])
    plane = plane_with(load, lambda records, done: done(None), turns)
    plane.follow(lambda: {"open": 1})
    answers = Answers()
    for i in range(100):
        plane.decide("open", ask_open(unit=f"u{i}"), answers.reply)
        turns.end()
    bodies = plane._versions._recorded["open"]
    assert list(bodies) == [ask_open(unit=f"u{i}") for i in range(36, 100)]
    plane.decide("open", ask_open(unit="u", context={"note": "x" * 20_000}), answers.reply)
    turns.end()
    assert bodies[-1] == ask_open(unit="u99")
    plane.follow(lambda: {"open": 2})
    assert plane.status()["policies"]["open"]["version"] == 2
    bodies.clear()
    bodies.append(ask_open("a", candidates=[{"id": "a", "features": {"price": "text"}}]))
    plane.follow(lambda: {"open": 3})
    found = plane.status()["policies"]["open"]
    assert (found["version"], found["error"]["version"]) == (2, 3)
    assert "refuses all of the last 1 requests" in found["error"]["error"]
    bodies.append(ask_open())
    plane.follow(lambda: {"open": 3}, at_once=True)
    assert plane.status()["policies"]["open"]["version"] == 3


@pytest.fixture
def turns() -> Turns:
    return Turns()


# -- memory -------------------------------------------------------------------------------------------------------

CYCLES = """
import json, sys
sys.path.insert(0, {tests!r})
import plain_models as plain
from steersman.models.plain import Plain
from steersman.serve.predicting import Model, Models, Wanted

data = [plain.mlp(32, size, size, 16) for size in (1000, 1500)]
number, found = 0, []
def load(name, at):
    made = Plain(bytes(data[at % 2]))
    return Model(made.signature, made.run)
models = Models(load, lambda: {{"m": Wanted((number,))}} if number else {{}})
for cycle in range({cycles}):
    number = cycle + 1
    models.follow()
    assert models.find("m").number == number
    number = 0
    models.follow()
    assert not models.names
    found.append(int(open("/proc/self/statm").read().split()[1]))
print(json.dumps(found))
"""


def grown(cycles: int) -> float:
    """How much larger a process is after so many loads and unloads than after ten."""
    code = CYCLES.format(tests=str(Path(__file__).parent), cycles=cycles)
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    pages = json.loads(out)
    return max(pages[10:]) / pages[9]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_large_models_comes_back_after_200_loads() -> None:
    assert grown(200) < 1.1
