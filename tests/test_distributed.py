"""Evaluations on a real Ray cluster of two machines, each a process on this one: the same bits as without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from steersman.cli import main
from steersman.core.errors import MissingExtra, NotFoundError
from steersman.flow import distributed, evolving
from steersman.learn import evolution as es


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The head of a cluster of two machines with a core each; all its processes are ended at the end."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "steersman[ray]"')
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        lines = iter(held.stdout.readline, b"")
        found = next((line.decode().split()[1] for line in lines if line.startswith(b"ADDRESS")), None)
        assert found, "no cluster"
        yield found
        held.communicate()
    assert held.returncode == 0


@pytest.mark.parametrize(
    "world, rounds", [("cartpole", 6), pytest.param("Acrobot-v1", 1, marks=pytest.mark.slow), ("Pendulum-v1", 2)]
)
def test_a_search_on_two_machines_is_that_of_one_process_to_the_bit(
    address: str, world: str, rounds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["es", "run", "--world", world, "--seed", "3", "--rounds", str(rounds), "--common", "pair"]
    assert main([*run, "--search", str(tmp_path / "alone"), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main([*run, "--search", str(tmp_path / "spread"), "--ray", address]) == 0
    assert "ray     2 cores, evaluated on 2 machines" in capsys.readouterr().out
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "spread").read_bytes()
    assert alone["evaluations"] == rounds * evolving.POPULATION
    assert main(["es", "run", "cartpole", "--ray", address]) == 2  # a live policy is evaluated by its product


def test_where_no_cluster_is_it_says_so() -> None:
    pytest.importorskip("ray", reason='Ray is not installed: pip install "steersman[ray]"')
    for nowhere in ("nonsense", "127.0.0.1:1", "127.0.0.1:99999"):
        with pytest.raises(NotFoundError, match=f"no Ray cluster at {nowhere}"), distributed.cluster(nowhere):
            pass


def test_without_ray_it_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"steersman\[ray\]|ray"), distributed.cluster("local"):
        pass


@pytest.mark.parametrize("name", ["cartpole", "CartPole-v1", "MountainCarContinuous-v0", "Pendulum-v1"])
def test_a_return_does_not_depend_on_the_rows_beside_it(name: str) -> None:
    """What makes any cut of a batch give the same bits."""
    rng, world, total, perturbed = np.random.default_rng(0), evolving.find(name), 11, 8
    game = evolving.Game(world, evolving.net(world))
    search = es.begin(es.Settings(), rng.normal(size=game.net.size), bytes(16))
    keys, begun = es.ask(search, perturbed, rng.bytes), world.starts(total, rng)
    whole = evolving.evaluate(game, search, keys, begun)
    for cuts in ([1], [3, 4, 7], [8], [9], range(1, total)):
        parts = np.split(np.arange(total), cuts)
        found = [evolving.evaluate(game, search, keys[part[part < perturbed]], begun[part]) for part in parts]
        assert np.array_equal(np.concatenate(found), whole)
    assert len(np.unique(whole)) > 5


def hold() -> None:
    """Two machines, until standard input ends."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as logs:  # sockets need a short name
        os.environ |= {"RAY_TMPDIR": logs, "RAY_USAGE_STATS_ENABLED": "0"}
        from ray.cluster_utils import Cluster

        size = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=size)
        try:
            made.add_node(num_cpus=1, object_store_memory=80 << 20)
            made.wait_for_nodes()
            print("ADDRESS", made.address, flush=True)  # noqa: T201
            sys.stdin.buffer.read()
        finally:
            made.shutdown()


if __name__ == "__main__":
    hold()
