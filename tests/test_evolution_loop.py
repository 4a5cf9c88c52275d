"""The loop of evolution in three processes that share files, and in one that shares nothing: the same bits."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from product import project, serving
from served import net
from steersman import config, flow, log
from steersman.core.decision import Candidate
from steersman.core.policy import EpsilonGreedy
from steersman.core.version import Parents
from steersman.demo import wait_for_version
from steersman.flow import online, perturbing
from steersman.learn import evolution as es
from steersman.models import parameters
from steersman.models.graph import Graph
from steersman.models.onnx import compose
from steersman.models.warehouse import Draft, Warehouse
from test_online import ENCODER, TOML

UNITS, STEPS, COPIES = 24, 4, 16
CLIENT = """
import http.client, json, random, sys, time
host, generation, units, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
connection = http.client.HTTPConnection(host, timeout=30)
def post(path, body):
    connection.request("POST", path, json.dumps(body))
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return json.loads(answer.read())
worlds = {f"{generation}-{unit}": random.Random(f"{generation}-{unit}") for unit in range(units)}
for step in range(steps):  # all units at a time
    for unit, world in worlds.items():
        x, now = world.gauss(0, 1), time.time_ns() // 1000
        answer = post("/v1/decide/side", {"unit": unit, "context": {"x": x}, "step": step})
        earned = x if answer["action"] == "right" else 0.25
        outcome = {"decision": answer["id"], "at": now, "metrics": {"right": earned}}
        post("/v1/outcome", outcome | ({"ends": "terminated"} if step == steps - 1 else {}))
"""


def return_of(scores: Any, unit: str) -> float:
    """What the client earns with a policy that takes the action of the highest score."""
    world, total = random.Random(unit), 0.0
    candidates, ids = ENCODER.raw_candidates([(Candidate("left"), Candidate("right"))], 2)
    for _ in range(STEPS):
        x = world.gauss(0, 1)
        left, right = scores(ENCODER.raw_context([{"x": x}]), candidates, ids)[0]
        total += x if right > left else 0.25
    return total


def in_three_processes(made: config.Project, generations: int) -> None:
    """Every generation: a server that goes on, a client that plays and ends, an update that ends."""
    with serving(made) as url:
        for generation in range(generations):
            wait_for_version(url, "side", 3 + generation)
            host = url.removeprefix("http://")
            numbers = (str(number) for number in (generation, UNITS, STEPS))
            subprocess.run([sys.executable, "-c", CLIENT, host, *numbers], check=True)
            update = [sys.executable, "-m", "steersman", "es", "update", "side", "--project", str(made.root)]
            subprocess.run(update, check=True, stdout=subprocess.DEVNULL)


def keys_of(made: config.Project) -> dict[str, int]:
    """Unit -> the one key that the log has of it."""
    flow.compact(made)
    with flow.logs.opened(made) as tables:
        tables.view("every", log.files(made.log_directory, "side", 0, flow.now_us()).decisions)
        rows = tables.query("SELECT DISTINCT unit, noise FROM every")
    found = dict(zip(rows["unit"].tolist(), (int(key) for key in rows["noise"]), strict=True))
    assert len(found) == len(rows["unit"])
    return found


def check(directory: Path, settings: es.Settings, generations: int) -> None:
    made = project(directory, TOML.replace("wait_s = 1", "wait_s = 0"))
    draft = Draft(
        name="side", encoder=ENCODER, explorer=EpsilonGreedy(0.0), parents=Parents("", "", ""), seed="s", made_at=1
    )
    warehouse = Warehouse(made.warehouse_url)
    warehouse.publish(draft, compose(ENCODER, net(ENCODER, 4, "Tanh")))
    online.init(made, "side", "2", settings, share=1.0, copies=COPIES)
    flow.promote(made, "side", "3")
    search, _ = perturbing.read(made, "side", 3)
    in_three_processes(made, generations)
    keys, graph, moved = keys_of(made), Graph(warehouse.read("side", 3)[1]), set()
    assert len(set(keys.values())) == generations * UNITS
    for generation in range(generations):  # nothing is written and read: what is learned stays in memory
        mine = [f"{generation}-{unit}" for unit in range(UNITS)]
        asked = np.array([keys[unit] for unit in mine], dtype=np.uint64)
        rows = search.perturbed(asked).astype(np.float64)
        reward = np.array([return_of(graph.perturbed(row), unit) for row, unit in zip(rows, mine, strict=True)])
        told = es.Told(search.run, asked, np.full(UNITS, generation), reward, {generation: search.digest})
        search, account = es.tell(search, told)
        assert account.used == UNITS
        stored, _ = perturbing.read(made, "side", 4 + generation)
        assert stored.arrays.keys() == search.arrays.keys()
        assert all(np.array_equal(stored.arrays[name], array) for name, array in search.arrays.items())
        assert (stored.digest, stored.generation) == (search.digest, generation + 1)
        served = parameters.parameters_of(warehouse.read("side", 4 + generation)[1]).flat
        assert np.array_equal(served, search.mean.astype(np.float32).astype(np.float64))
        moved.add(search.digest)
    assert len(moved) == generations
    tables = {int(path.parent.name) for path in made.root.glob("es/side/*/episodes")}
    assert tables <= {2 + generations, 3 + generations}  # of versions before those nobody decides any more


def test_three_generations_in_three_processes_are_those_of_one(tmp_path: Path) -> None:
    check(tmp_path, es.Settings(es.OpenES(step=es.Adam(rate=0.05)), sigma=0.5), 3)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [es.PGPE(), es.OpenES(step=es.Adam(rate=0.05)), es.SNES()])
def test_twenty_generations_in_three_processes_are_those_of_one(tmp_path: Path, solver: Any) -> None:
    check(tmp_path, es.Settings(solver, sigma=0.5), 20)
