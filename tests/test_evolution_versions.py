"""Versions that evolution makes: from nothing, of low rank, so many of them, and back to an earlier one under load."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from product import TOML as greeting
from product import Client, Load, project, serving
from steersman import flow
from steersman.cli import main
from steersman.core.errors import ConfigError, ConflictError, NotFoundError
from steersman.core.features import Continuous
from steersman.flow import online, perturbing
from steersman.learn import evolution as es
from steersman.models import parameters
from steersman.models.graph import Graph
from steersman.models.warehouse import Warehouse
from test_online import TOML, copied, decisions, play, played, product  # noqa: F401  (played is a fixture)

TWO = TOML.replace('x = "number"', 'x = "number"\ny = "number"')


def test_a_net_that_nobody_trained_is_perturbed_and_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = project(tmp_path, TOML)
    at = ["--project", str(tmp_path)]
    assert main(["es", "init", "side", "--hidden", "6", "5", "--share", "1", "--pool", "--copies", "8", *at]) == 0
    assert "stored  side@2, of which 100% of the units meet 8 copies" in capsys.readouterr().out
    version, graph = Warehouse(made.warehouse_url).read("side", 2)
    assert version.encoder.context == (Continuous("x", 0.0, 1.0),)
    found = parameters.parameters_of(graph)
    assert sorted(map(sorted, found.shapes)) == [[2], [2, 5], [2, 6], [5], [5, 6], [6]]
    assert all(np.ptp(part) > 0 for part in _split(found.flat, found.shapes))
    flow.promote(made, "side", "2")
    with serving(made) as url:
        play(url, 60, "u")
    assert online.update(made, "side").version == 3
    assert online.replay(made, "side", 3)
    assert main(["es", "init", "side", "--hidden", *at]) == 0  # a linear one, with the encoder of the build
    version, graph = Warehouse(made.warehouse_url).read("side", 4)
    assert sorted(parameters.parameters_of(graph).shapes) == [(2,), (2, 2)]
    assert version.encoder.context != (Continuous("x", 0.0, 1.0),)
    assert main(["es", "init", "side", "--hidden", "0", *at]) == ConfigError.exit_code


def test_a_text_needs_a_build_before_a_net_can_read_it(tmp_path: Path) -> None:
    made = project(tmp_path, TOML.replace('x = "number"', 'x = "text"'))
    with pytest.raises(ConfigError, match=r"the field x \(text\)"):
        online.init(made, "side", "", es.Settings(), share=0.5, copies=4, hidden=(4,))
    assert Warehouse(made.warehouse_url).numbers("side") == (1,)


def test_noise_of_rank_one_is_served_and_moves_each_matrix_by_few_ranks(tmp_path: Path) -> None:
    made = project(tmp_path, TWO)
    at = ["--project", str(tmp_path)]
    solver = ["--solver", "pgpe", "--noise", "rank1", "--sigma", "0.1"]
    assert (
        main(["es", "init", "side", "--hidden", "32", "32", "--share", "1", "--pool", "--copies", "4", *solver, *at])
        == 0
    )
    flow.promote(made, "side", "2")
    search, served = perturbing.read(made, "side", 2)
    whole = perturbing.of(made, "side", 2, Graph(Warehouse(made.warehouse_url).read("side", 2)[1]))
    assert whole is not None
    for key in served.keys:
        away = search.perturbed(np.array([key], dtype=np.uint64))[0] - search.mean
        for shape, part in zip(search.settings.shapes, _split(away, search.settings.shapes), strict=True):
            assert np.abs(part) == pytest.approx(0.1, abs=1e-6)
            assert len(shape) == 1 or np.linalg.matrix_rank(part.reshape(shape), tol=1e-3) == 1
    with serving(made) as url:
        client, rng = Client(url), np.random.default_rng(1)
        for number in range(40):
            context = {"x": float(rng.normal()), "y": float(rng.normal())}
            answer = client.post("/v1/decide/side", {"unit": f"u{number}", "context": context})[1]
            outcome = {"decision": answer["id"], "metrics": {"right": float(rng.normal())}, "ends": "terminated"}
            assert client.post("/v1/outcome", outcome)[0] == 200
        time.sleep(1.05)
    flow.compact(made)
    logged = decisions(made)
    assert {noise for _, noise in logged.values()} == set(served.keys)
    assert all(one.identical for one in flow.replay_all(made, list(logged)[:10]))
    assert online.update(made, "side").version == 3 and online.replay(made, "side", 3)
    step = perturbing.read(made, "side", 3)[0].mean - search.mean
    square = [part for shape, part in zip(search.settings.shapes, _split(step, search.settings.shapes), strict=True)
              if shape == (32, 32)]  # fmt: skip
    assert np.linalg.matrix_rank(square[0].reshape(32, 32), tol=1e-6) in (1, 2)  # of two pairs


def _split(flat: np.ndarray, shapes: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])


def test_a_step_of_nothing_is_said_and_not_published(played: tuple[Path, object], tmp_path: Path) -> None:  # noqa: F811
    """A step that the float32 of a graph can not hold."""
    for solver in (es.ARS(rate=1e-12), es.PGPE(step=es.ClipUp(rate=1e-12))):
        made = copied(played, tmp_path / solver.__struct_config__.tag)
        search, served = perturbing.read(made, "side", 3)
        still = es.begin(es.Settings(solver, sigma=0.2, noise="normals"), search.mean, search.run)
        shutil.rmtree(perturbing.place(made, "side", 3))
        perturbing.write(made, "side", 3, still, served)
        with pytest.raises(ConflictError, match="move no parameter"):
            online.update(made, "side")
        assert Warehouse(made.warehouse_url).numbers("side") == (1, 2, 3) and flow.champion(made, "side") == 3


def test_so_many_versions_are_kept(tmp_path: Path) -> None:
    made = product(tmp_path, es.Settings(es.PGPE(), sigma=0.2), share=1.0)
    search, served = perturbing.read(made, "side", 3)
    shutil.rmtree(perturbing.place(made, "side", 3))
    perturbing.write(made, "side", 3, search, replaced(served, keep=2))
    warehouse = Warehouse(made.warehouse_url)
    with serving(made) as url:
        for number in range(4, 7):
            play(url, 30, f"r{number}-")
            online.update(made, "side")
            _wait_for(url, number)
    assert warehouse.numbers("side") == (1, 2, 3, 5, 6)  # 1 to 3 are of no update
    assert {one.name for one in (tmp_path / "es" / "side").iterdir() if one.is_dir()} == {"3", "5", "6"}
    assert flow.rollback(made, "side") == 5
    with pytest.raises(ConflictError, match="pointed at"):
        warehouse.remove("side", 5)
    with pytest.raises(ConfigError, match="keep"):
        online.init(made, "side", "2", es.Settings(), share=0.5, copies=4, keep=1)
    gone = [decision for decision, (unit, _) in decisions(made).items() if unit.startswith("r5-")]  # by 4
    with pytest.raises(NotFoundError, match="no version 4"):
        flow.replay(made, gone[0])


def _wait_for(url: str, number: int) -> None:
    deadline = time.monotonic() + 20
    while Client(url).get("/v1/status")["policies"]["side"]["version"] != number:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_under_load_a_rollback_answers_within_a_second_and_no_request_fails(tmp_path: Path) -> None:
    """With the default settings, from the command to the first answer of the version before, beside eight clients."""
    made = project(tmp_path, greeting.replace("poll_s = 0.02\n", ""))
    before = flow.champion(made, "greeting")
    after = flow.publish_uniform(made, "greeting").number
    took = []
    with serving(made) as url:
        client, load = Client(url), Load(url, "u")
        for _ in range(3):
            flow.promote(made, "greeting", str(after))
            _decides(client, after)
            load.wait(50)
            began = time.monotonic()
            assert main(["rollback", "greeting", "--project", str(tmp_path)]) == 0
            _decides(client, before)
            took.append(time.monotonic() - began)
            load.wait(50)
        load.stop()
    assert not load.refused and not load.lost
    assert {answer["version"] for answer in load.decisions.values()} == {before, after}
    assert statistics.median(took) < 1.0, took


def _decides(client: Client, number: int) -> None:
    """Ask until this version answers."""
    deadline = time.monotonic() + 20
    while client.post("/v1/decide/greeting", {"unit": "me"})[1]["version"] != number:
        assert time.monotonic() < deadline
