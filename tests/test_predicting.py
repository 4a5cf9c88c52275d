"""Live models: what one turn brought is one run, a bad row fails alone, versions swap without a gap."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_models as plain
from served import Client as Raw
from served import Running, plane_of
from steersman import log
from steersman.core.errors import DataError, Error, NotFoundError, OverloadedError
from steersman.core.signature import Signature, Tensor
from steersman.models.plain import Plain
from steersman.serve import predicting
from steersman.serve.predicting import Limits, Model, Models, Wanted
from steersman.serve.settings import Settings


class Loop:
    """Turns of a loop by hand."""

    def __init__(self, models: Models) -> None:
        self._due: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._arrived = threading.Event()
        models.attach(self._soon, self._soon)

    def _soon(self, call: Callable[..., object], *arguments: Any) -> None:
        self._due.append((call, arguments))
        self._arrived.set()

    def turn(self) -> None:
        due, self._due = self._due, []
        self._arrived.clear()
        for call, arguments in due:
            call(*arguments)

    def wait(self) -> None:
        assert self._arrived.wait(20)


def only(name: str, data: bytes, limits: Limits | None = None) -> tuple[Models, Loop]:
    models = Models(
        lambda *_: Model(Plain(data).signature, Plain(data).run),
        lambda: {name: Wanted((1,))},
        limits=limits,
    )
    models.follow()
    return models, Loop(models)


def ask(models: Models, name: str, feeds: dict[str, np.ndarray]) -> list[Any]:
    found: list[Any] = []
    models.predict(models.find(name), feeds, found.append)
    return found


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, dtype=np.float32)}


# -- micro-batches ------------------------------------------------------------------------------------------------


def test_what_one_turn_brought_is_one_run_and_everyone_gets_his_rows() -> None:
    models, loop = only("mlp", plain.mlp(4, 8, 3))
    random = np.random.default_rng(0)
    sent = [random.normal(size=(count, 4)).astype(np.float32) for count in (1, 3, 2, 1)]
    found = [ask(models, "mlp", {"x": x}) for x in sent]
    loop.turn()
    w0, w1 = plain.weights(4, 8, 3)
    for x, [[y]] in zip(sent, found, strict=True):
        np.testing.assert_allclose(y, np.maximum(x @ w0, 0) @ w1, atol=1e-6)
    serving = models.find("mlp")
    assert (serving.together, serving.runs, serving.rows) == (True, 1, 7)


def test_a_row_that_the_graph_refuses_fails_alone() -> None:
    models, loop = only("table", plain.gather())
    found = [ask(models, "table", {"i": np.array([i])}) for i in (0, 1, 99, 3, -77, 2)]
    loop.turn()
    assert [one[0] if isinstance(one[0], Error) else one[0][0].tolist() for one in found if one] == [
        [0.0],
        [1.0],
        found[2][0],
        [3.0],
        found[4][0],
        [2.0],
    ]
    for bad in (found[2][0], found[4][0]):
        assert isinstance(bad, DataError)


def test_what_does_not_fit_is_refused_before_it_is_put_to_others() -> None:
    models, _ = only("mlp", plain.mlp(4, 3))
    for feeds in (
        {},
        {"z": np.zeros((1, 4), np.float32)},
        {"x": np.zeros((1, 4))},
        {"x": np.zeros((1, 5), np.float32)},
        {"x": np.zeros(4, np.float32)},
        {"x": np.zeros((1, 4), np.float32), "z": np.zeros(1)},
    ):
        with pytest.raises(DataError):
            ask(models, "mlp", feeds)


def test_rows_that_depend_on_each_other_are_never_put_together() -> None:
    models, loop = only("mean", plain.mean())
    assert not models.find("mean").together
    found = [ask(models, "mean", rows(*values)) for values in ((1, 3), (10, 30))]
    loop.turn()
    assert [one[0][0].tolist() for one in found] == [[-1.0, 1.0], [-10.0, 10.0]]


def test_a_fixed_first_axis_is_no_rows() -> None:
    models, loop = only("fixed", plain.same("float32", [2, 2]))
    assert not models.find("fixed").together
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    found = [ask(models, "fixed", {"x": x * i}) for i in (1, 2)]
    loop.turn()
    np.testing.assert_array_equal(found[1][0][0], x * 2)


def test_shapes_behind_the_rows_and_the_limit_of_rows_cut_into_runs() -> None:
    models, loop = only("matrix", plain.same("float32", ["N", "M"]), Limits(rows=4))
    for shape in ((1, 2), (1, 3), (1, 2), (3, 2), (2, 2), (9, 3)):
        ask(models, "matrix", {"x": np.zeros(shape, np.float32)})
    loop.turn()
    assert (
        models.find("matrix").runs == 5
    )  # of width 2: 1+1, 3, 2 -> (1,1), (3), (2): 1+1+3 is over 4; of width 3: 1, 9


@pytest.fixture
def slow() -> Iterator[tuple[Models, Loop, threading.Event, list[int]]]:
    """A model whose runs wait for a sign; the sizes of its runs."""
    half = Plain(plain.half())
    go, sizes = threading.Event(), []
    go.set()

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        sizes.append(len(feeds["x"]))
        assert go.wait(20)
        return half.run(feeds)

    models = Models(
        lambda *_: Model(half.signature, run), lambda: {"slow": Wanted((1,))}, limits=Limits(rows=8, waiting=10)
    )
    models.follow()
    sizes.clear()
    models.find("slow").run_s = 1.0
    yield models, Loop(models), go, sizes
    go.set()


def test_a_heavy_model_runs_aside_and_what_comes_meanwhile_is_its_next_run(slow) -> None:
    models, loop, go, sizes = slow
    go.clear()
    first = ask(models, "slow", rows(0))
    loop.turn()  # returns although the run has not
    later = []
    for i in range(1, 6):
        later.append(ask(models, "slow", rows(i)))
        loop.turn()
    assert first == [] and not any(later)
    go.set()
    while not all(later):
        loop.wait()
        loop.turn()
    assert [float(found[0][0][0]) for found in (first, *later)] == [2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    assert sizes == [1, 5]


def test_more_than_may_wait_is_refused_at_once(slow) -> None:
    models, loop, go, _ = slow
    go.clear()
    ask(models, "slow", rows(0))
    loop.turn()
    found = [ask(models, "slow", rows(i)) for i in range(12)]
    loop.turn()
    assert [type(one[0]) for one in found if one] == [OverloadedError] * 2
    go.set()
    while not all(found):
        loop.wait()
        loop.turn()


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def slowed(how: Callable[[float], None]) -> tuple[Models, Loop]:
    models, loop = only("mlp", plain.mlp(4, 3))
    serving = models.find("mlp")
    assert 0 < serving.run_s < predicting.HEAVY_S * 20
    serving.run_s = 0.0
    fast = serving.model.run
    object.__setattr__(serving.model, "run", lambda feeds: (how(0.02), fast(feeds))[1])
    return models, loop


def test_a_run_that_waits_for_a_processor_does_not_make_its_model_heavy() -> None:
    models, loop = slowed(time.sleep)
    for _ in range(2):
        found = ask(models, "mlp", {"x": np.zeros((1, 4), np.float32)})
        loop.turn()
        assert len(found) == 1


def test_a_model_becomes_heavy_by_what_its_runs_take() -> None:
    models, loop = slowed(spin)
    assert len(models.at_once(models.find("mlp"), {"x": np.zeros((1, 4), np.float32)}) or ()) == 1
    assert models.at_once(models.find("mlp"), {"x": np.zeros((1, 4), np.float32)}) is None
    models.find("mlp").run_s = 0.0
    for _ in range(2):
        found = ask(models, "mlp", {"x": np.zeros((1, 4), np.float32)})
        loop.turn()
    assert found == []  # the second run is on the thread
    loop.wait()
    loop.turn()
    assert len(found) == 1


# -- versions -----------------------------------------------------------------------------------------------------


class Store:
    """Versions that tests put and take; 13 does not load."""

    def __init__(self) -> None:
        self.wanted: dict[str, Wanted] = {}
        self.loads: list[tuple[str, int]] = []
        self.away = False
        self.models = Models(self._load, self._wanted, turn_on=self._turn)

    def _wanted(self) -> dict[str, Wanted]:
        if self.away:
            raise OSError("the store is away")
        return dict(self.wanted)

    def _load(self, name: str, number: int) -> Model:
        self.loads.append((name, number))
        if number == 13:
            raise RuntimeError("half-written")
        made = Plain(plain.half(number))
        return Model(made.signature, made.run)

    def _turn(self, name: str, on: bool) -> None:
        if on:
            self.wanted[name] = Wanted((1,))
        else:
            del self.wanted[name]

    def want(self, name: str, *numbers: int, **more: Any) -> None:
        self.wanted[name] = Wanted(numbers, **more)
        self.models.follow()

    def serves(self, name: str) -> list[int]:
        return [state.number for state in self.models.states(name) if state.state == "available"]


def test_the_highest_serves_by_default_unless_another_is_named() -> None:
    store = Store()
    store.want("m", 1, 2, 3, labels={"stable": 2})
    assert store.models.find("m").number == 3
    assert store.models.find("m", number=1).number == 1
    assert store.models.find("m", label="stable").number == 2
    store.want("m", 1, 2, 3, default=2)
    assert store.models.find("m").number == 2
    for wrong in ({"number": 9}, {"label": "x"}):
        with pytest.raises(NotFoundError):
            store.models.find("m", **wrong)


def test_the_old_version_goes_only_when_the_new_one_serves() -> None:
    store = Store()
    store.want("m", 1)
    store.want("m", 13)
    assert store.serves("m") == [1]
    assert store.models.ready
    [failed, _] = store.models.states("m")
    assert (failed.state, str(failed.error)) == ("end", "RuntimeError: half-written")
    store.want("m", 14)
    assert [(state.number, state.state) for state in store.models.states("m")] == [(14, "available")]


def test_a_request_that_began_on_the_old_version_ends_on_it() -> None:
    store = Store()
    loop = Loop(store.models)
    store.want("m", 1)
    before = ask(store.models, "m", rows(0))
    store.want("m", 2)
    after = ask(store.models, "m", rows(0))
    loop.turn()
    assert (float(before[0][0][0]), float(after[0][0][0])) == (1.0, 2.0)


def test_what_failed_is_tried_again_ever_later_and_at_once_when_told() -> None:
    store = Store()
    store.want("m", 13)
    assert not store.models.ready
    for _ in range(20):
        store.models.follow()
    assert store.loads.count(("m", 13)) == 4  # after 2, 4 and 8 polls more
    store.models.follow(at_once=True)
    assert store.loads.count(("m", 13)) == 5


def test_a_store_that_is_away_changes_nothing_and_one_that_lacks_a_model_ends_it() -> None:
    store = Store()
    store.want("m", 1)
    store.away = True
    store.models.follow()
    assert store.serves("m") == [1]
    assert "the store is away" in str(store.models.lost)
    assert store.models.ready
    store.away = False
    store.wanted.clear()
    store.models.follow()
    assert store.models.names == ()
    assert store.models.lost is None


def test_who_never_learned_which_models_are_wanted_is_not_ready_and_says_why(tmp_path: Path) -> None:
    store = Store()
    store.away = True
    store.models.follow()
    with log.Pen(tmp_path) as pen:
        plane = plane_of(pen)
        plane.swap("shop", 1)
        server = Running(plane, Settings(port=0, quiet_s=0.02), models=store.models)
        with Raw(server.port) as client:
            assert client.ask("GET", "/v1/ready")[0] == 503
            status = client.ask("GET", "/v1/status")[2]
            assert (status["ready"], "the store is away" in status["error"]["error"]) == (False, True)
            store.away = False
            store.models.follow()
            assert client.ask("GET", "/v1/ready")[0] == 200
            assert client.ask("GET", "/v1/status")[2]["error"] is None
        server.stop()


def test_models_are_switched_off_and_on() -> None:
    store = Store()
    store.want("m", 1)
    store.models.switch("m", on=False)
    assert store.models.names == ()
    store.models.switch("m", on=True)
    assert store.serves("m") == [1]
    fixed = Models(store._load, store._wanted)
    with pytest.raises(NotFoundError, match="can not load"):
        fixed.switch("m", on=False)


def test_loading_and_unloading_gives_the_memory_back(tmp_path: Path) -> None:
    store = Store()
    for number in range(1, 60):
        store.want("m", number + 20)
    import gc
    import weakref

    last = weakref.ref(store.models.find("m"))
    store.want("m", 100)
    gc.collect()
    assert last() is None
    assert store.serves("m") == [100]


def test_two_hundred_loads_and_unloads_take_no_more_memory_than_a_few() -> None:
    data = plain.mlp(256, 512, 64)
    wanted: dict[str, Wanted] = {}

    def load(name: str, number: int) -> Model:
        made = Plain(data)
        return Model(made.signature, made.run)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    models = Models(load, lambda: dict(wanted))
    before = 0
    for cycle in range(200):
        wanted["m"] = Wanted((1,))
        models.follow()
        assert models.find("m").together
        wanted.clear()
        models.follow()
        before = resident() if cycle == 10 else before
    assert resident() <= 1.1 * before


# -- signatures ---------------------------------------------------------------------------------------------------


def test_a_signature_is_read_from_the_graph() -> None:
    assert Plain(plain.pair()).signature == Signature(
        (Tensor("a", "float32", (-1, 2)), Tensor("b", "int32", (-1,))),
        (Tensor("total", "float32", (-1,)), Tensor("b_again", "int32", (-1,))),
    )
    assert Plain(plain.mlp(2, 2, classes='["a", "b"]')).signature.classes == ("a", "b")
    with pytest.raises(DataError, match="classes"):
        Plain(plain.mlp(2, 2, classes="a,b"))
    with pytest.raises(DataError, match="can run"):
        Plain(b"nothing")
