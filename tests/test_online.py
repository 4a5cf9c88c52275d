"""A live policy that evolves: a real server with perturbed copies, its log, and updates that may be killed anywhere."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from product import Client, project, serving
from served import net
from steersman import config, demo, flow, log, timeline
from steersman.cli import main
from steersman.config import Project
from steersman.core.decision import Candidate, uniform_draw
from steersman.core.errors import ConfigError, ConflictError, DataError, GateError, NotFoundError
from steersman.core.features import Continuous, Encoder
from steersman.core.noise import Noise
from steersman.core.policy import EpsilonGreedy
from steersman.core.version import Parents
from steersman.demo import wait_for_version
from steersman.evaluate import guardrails
from steersman.flow import copies, online, perturbing, sampling, telling
from steersman.learn import evolution as es
from steersman.learn.evolution import sums
from steersman.log.segment import segments
from steersman.models import parameters
from steersman.models.graph import Graph
from steersman.models.onnx import compose
from steersman.models.warehouse import Draft, Warehouse

TOML = """\
[serve]
poll_s = 0.02

[problem.side]
reward = "right"
wait_s = 1
actions = { kind = "one", names = ["left", "right"] }

[problem.side.context]
x = "number"
"""
ENCODER = Encoder(context=(Continuous("x", 0.0, 1.0),), actions=("left", "right"))
COPIES = 8


def product(directory: Path, settings: es.Settings, share: float = 0.75, pool: bool = False) -> Project:
    """Version 2 is a net, version 3 the same with its search; 3 is the champion."""
    made = project(directory, TOML)
    draft = Draft(
        name="side", encoder=ENCODER, explorer=EpsilonGreedy(0.1), parents=Parents("", "", ""), seed="s", made_at=1
    )
    Warehouse(made.warehouse_url).publish(draft, compose(ENCODER, net(ENCODER, 4, "Tanh")))
    version = online.init(made, "side", "2", settings, share=share, copies=COPIES, pool=pool)
    assert version.number == 3
    flow.promote(made, "side", "3")
    return made


def play(url: str, count: int, prefix: str, steps: int = 2) -> dict[str, tuple[str, float]]:
    """Units of a few steps each, all but every tenth of them over; unit -> its first decision and its return."""
    client, rng, found = Client(url), np.random.default_rng(len(prefix)), {}
    for number in range(count):
        unit, total, first = f"{prefix}{number}", 0.0, ""
        for step in range(steps):
            x = float(rng.normal())
            status, answer = client.post("/v1/decide/side", {"unit": unit, "context": {"x": x}, "step": step})
            assert status == 200
            first = first or answer["id"]
            right = float((answer["action"] == "right") == (x > 0)) + 1e-3 * number  # no two units have the same
            total += right
            outcome: dict[str, Any] = {"decision": answer["id"], "metrics": {"right": right}}
            if step == steps - 1 and number % 10:
                outcome["ends"] = "terminated"
            assert client.post("/v1/outcome", outcome)[0] == 200
        found[unit] = first, total
    time.sleep(1.05)  # the wait of the last decisions
    return found


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, float]]]:
    made = product(tmp_path_factory.mktemp("evolving"), es.Settings(sigma=0.2))
    with serving(made) as url:
        units = play(url, 120, "u")
    flow.compact(made)
    return made.root, units


def copied(played: tuple[Path, Any], into: Path) -> Project:
    shutil.copytree(played[0], into)
    return config.load(into)


def decisions(made: Project) -> dict[str, tuple[str, int | None]]:
    with flow.logs.opened(made) as tables:
        tables.view("every", log.files(made.log_directory, "side", 0, flow.now_us()).decisions)
        rows = tables.query("SELECT id, unit, noise FROM every")
    return {
        decision: (unit, None if noise is None else int(noise))
        for decision, unit, noise in zip(rows["id"], rows["unit"], rows["noise"], strict=True)
    }


def test_a_share_of_the_units_meets_copies_and_each_has_its_own(played: Any, tmp_path: Path) -> None:
    made = copied(played, tmp_path / "p")
    logged = decisions(made)
    by_unit: dict[str, set[int | None]] = {}
    for unit, noise in logged.values():
        by_unit.setdefault(unit, set()).add(noise)
    assert all(len(noises) == 1 for noises in by_unit.values())  # an episode is never split
    met = [key for noises in by_unit.values() if (key := next(iter(noises))) is not None]
    assert 0.6 < len(met) / len(by_unit) < 0.9  # 0.75, three standard errors of 120
    assert len(set(met)) == len(met)  # nobody's key is another's
    assert sum(key ^ 1 not in met for key in met) == len(met) % 2  # they come in mirrored pairs


def test_episodes_keep_their_keys_over_workers_and_a_restart(tmp_path: Path) -> None:
    """Units with many episodes, whose requests come to two processes, and to the two that are started after them."""
    made = product(tmp_path, es.Settings(sigma=0.2), share=1.0)
    (made.root / config.FILE).write_text(TOML.replace("[serve]", "[serve]\nworkers = 2"))
    episode = dict.fromkeys(range(12), 0)
    answered: dict[str, tuple[int, int]] = {}
    for _ in range(2):
        with serving(made) as url:
            for turn in range(6):
                for unit in episode:
                    request = {"unit": f"u{unit}", "context": {"x": 1.0}}
                    answer = Client(url).post("/v1/decide/side", request)[1]  # whichever process takes it
                    answered[answer["id"]] = unit, episode[unit]
                    if (turn + unit) % 4 == 3:
                        outcome = {"decision": answer["id"], "metrics": {"right": 1.0}, "ends": "terminated"}
                        assert Client(url).post("/v1/outcome", outcome)[0] == 200
                        episode[unit] += 1
    wrote = {path.name.split("-")[1] for path in segments(made.log_directory) if path.stat().st_size > 100}
    assert len(wrote) == 4  # two processes, twice, or nothing was shown
    flow.compact(made)
    logged = decisions(made)
    met = {(answered[decision], key) for decision, (_, key) in logged.items()}
    keys = {key for _, key in met}
    assert len(logged) == 2 * 6 * 12 and None not in keys
    assert len(met) == len({one for one, _ in met}) == len(keys) == len(set(answered.values())) > 12


def test_decisions_of_copies_are_made_again_to_the_bit(played: Any, tmp_path: Path) -> None:
    made = copied(played, tmp_path / "p")
    logged = decisions(made)
    perturbed = [decision for decision, (_, noise) in logged.items() if noise is not None][:40]
    clean = [decision for decision, (_, noise) in logged.items() if noise is None][:10]
    assert all(one.identical for one in flow.replay_all(made, perturbed + clean))


def test_a_copy_scores_as_a_graph_with_its_parameters(played: Any, tmp_path: Path) -> None:
    made = copied(played, tmp_path / "p")
    data = Warehouse(made.warehouse_url).read("side", 3)[1]
    search, _ = perturbing.read(made, "side", 3)
    found = parameters.parameters_of(data)
    assert np.array_equal(found.flat, search.mean) and len(found.flat) == 2 * 4 + 2 * 4 + 4
    rows = ENCODER.raw_context([{"x": x} for x in (-2.0, 0.3, 1.0)])
    candidates, ids = ENCODER.raw_candidates([(Candidate("left"), Candidate("right"))] * 3, 2)
    copies = perturbing.of(made, "side", 3, Graph(data))
    assert copies is not None
    for key in es.ask(search, 4).tolist():
        whole = parameters.opened(data, search.perturbed(np.array([key], dtype=np.uint64))[0].astype(np.float64))
        assert np.array_equal(copies.run(key)(rows, candidates, ids), Graph(whole).scores(rows, candidates, ids))
    with pytest.raises(DataError, match="open to"):
        Graph(compose(ENCODER, net(ENCODER, 4, "Tanh"))).perturbed(search.mean)
    with pytest.raises(DataError, match="no parameters"):
        online.init(made, "side", "1", es.Settings(), share=0.5, copies=4)
    with pytest.raises(ConfigError, match="share"):
        online.init(made, "side", "2", es.Settings(), share=0.0, copies=4)


def test_an_update_is_what_the_clients_saw_told_to_the_search(played: Any, tmp_path: Path) -> None:
    """The log, the build and the join give the same bits as the rewards in the client's hands."""
    made = copied(played, tmp_path / "p")
    search, served = perturbing.read(made, "side", 3)
    logged, copies = decisions(made), {}
    for number, (first, total) in enumerate(played[1].values()):
        key = logged[first][1]
        if key is not None and number % 10:  # every tenth is not over
            copies.setdefault(key, []).append(total)
    keys = np.array(sorted(copies), dtype=np.uint64)
    reward = np.array([np.mean(np.sort(copies[key])) for key in sorted(copies)])
    told = es.Told(search.run, keys, np.zeros(len(keys), dtype=int), reward, {0: search.digest})
    expected, _ = es.tell(search, told)
    found = online.update(made, "side")
    after, then = perturbing.read(made, "side", 4)
    assert (found.version, found.parent, found.episodes) == (4, 3, sum(map(len, copies.values())))
    assert found.open == sum(logged[first][1] is not None for first, _ in list(played[1].values())[::10])
    assert all(np.array_equal(after.arrays[name], array) for name, array in expected.arrays.items())
    assert (then.keys, then.copies, then.share) == (served.keys, COPIES, served.share) and then.seed != served.seed
    assert flow.champion(made, "side") == 4
    graph = Warehouse(made.warehouse_url).read("side", 4)[1]
    assert np.array_equal(parameters.parameters_of(graph).flat, after.mean.astype(np.float32).astype(np.float64))
    assert online.replay(made, "side", 4)
    with pytest.raises(ConflictError, match="es init"):
        online.replay(made, "side", 3)
    with pytest.raises(DataError, match="no decisions in the window"):  # nobody met the new ones yet
        online.update(made, "side")
    assert flow.rollback(made, "side") == 3


@pytest.mark.parametrize("point", ["pending", "published", "beside", "promoted"])
def test_an_update_that_was_killed_ends_the_same(
    played: Any, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = copied(played, tmp_path / "whole"), copied(played, tmp_path / "killed")
    monkeypatch.setattr(online, "now_us", lambda: 2 * 10**15)  # both read the same of the log
    online.update(whole, "side")

    def dying(real: Any) -> Any:
        def die(*args: Any, **kwargs: Any) -> Any:
            real(*args, **kwargs)
            raise KeyboardInterrupt

        return die

    target, name = {
        "pending": (online.places, "write"),
        "published": (Warehouse, "publish"),
        "beside": (online.perturbing, "write"),
        "promoted": (Warehouse, "set_alias"),
    }[point]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, dying(getattr(target, name)))
        with pytest.raises(KeyboardInterrupt):
            online.update(killed, "side")
    if point == "promoted":  # all was done but for the note that it was begun
        assert flow.champion(killed, "side") == 4
    else:
        assert online.update(killed, "side").version == 4
    searches = [(made.root / "es" / "side" / "4" / "search").read_bytes() for made in (whole, killed)]
    assert searches[0] == searches[1]
    graphs = [Warehouse(made.warehouse_url).read("side", 4)[0].digest for made in (whole, killed)]
    assert graphs[0] == graphs[1]
    assert Warehouse(killed.warehouse_url).numbers("side") == (1, 2, 3, 4)


def test_a_step_that_was_rolled_back_is_not_made_again_from_the_same_log(
    played: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = copied(played, tmp_path / "p")
    monkeypatch.setattr(online, "now_us", lambda: 2 * 10**15)  # nobody decided meanwhile
    online.update(made, "side")
    assert flow.rollback(made, "side") == 3
    for _ in range(2):
        with pytest.raises(GateError, match="side@4 is this very step, and it was backed out or rolled back"):
            online.update(made, "side")
    assert flow.champion(made, "side") == 3


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_update_does_not_end_the_rollout_of_another_version(played: Any, tmp_path: Path, share: float) -> None:
    made = copied(played, tmp_path / "p")
    rollout = flow.roll_out(made, "side", "2", share)
    with pytest.raises(ConflictError, match="side@2 has a rollout beside the champion") as caught:
        online.update(made, "side")
    assert "steersman rollout side --end" in caught.value.hint
    assert flow.rollouts(made, "side") == (rollout,) and flow.champion(made, "side") == 3
    flow.back_out(made, "side")
    assert isinstance(online.update(made, "side"), online.Updated)


def test_an_update_is_told_with_its_expected_gain(
    played: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = copied(played, tmp_path / "p")
    found = telling.told(made, "side", 3, perturbing.read(made, "side", 3)[1].at, flow.now_us())
    gain = found.gain
    assert gain is not None and gain.pairs > 30
    assert main(["es", "update", "side", "--project", str(made.root)]) == 0
    told = capsys.readouterr().out
    assert f"champion  side@4, from {len(found.samples.key)} copies" in told
    said = f"expected  {gain.value:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}] reward by {gain.pairs} pairs, flattered"
    assert said in told
    assert main(["es", "replay", "side@4", "--project", str(made.root)]) == 0
    assert "again   identical" in capsys.readouterr().out


def test_a_step_that_the_log_calls_worse_is_not_published(played: Any, tmp_path: Path) -> None:
    made = copied(played, tmp_path / "p")
    search, served = perturbing.read(made, "side", 3)
    found = telling.told(made, "side", 3, served.at, flow.now_us())
    against = es.Settings(es.OpenES(step=es.SGD(rate=0.01)), sigma=0.2, shapes=search.settings.shapes)
    wrong = es.begin(against, search.mean, search.run)  # a momentum with, and one against, what every pair says
    reward = np.array(found.samples.reward)
    even, said = sums.fold(np.array(found.samples.key, dtype=np.uint64), reward - reward.mean())
    noise = sums.rows(Noise(search.run), "normals", even, len(search.mean)).astype(np.float64)
    for way in (1e6, -1e6):  # the last one stays
        wrong = replace(wrong, arrays=wrong.arrays | {"step.velocity": way * np.linalg.pinv(noise) @ said})
        shutil.rmtree(perturbing.place(made, "side", 3))
        perturbing.write(made, "side", 3, wrong, served)
        gain = telling.told(made, "side", 3, served.at, flow.now_us()).gain
        assert gain is not None and gain.value * way > 0
    with pytest.raises(GateError, match="says that the step is worse"):
        online.update(made, "side")
    assert Warehouse(made.warehouse_url).numbers("side") == (1, 2, 3) and flow.champion(made, "side") == 3


def test_a_trend_of_the_day_moves_nothing(played: Any, tmp_path: Path) -> None:
    """Returns are compared within a block: what is added to all of a block is gone."""
    made = copied(played, tmp_path / "p")
    _, served = perturbing.read(made, "side", 3)
    now = flow.now_us()
    built = timeline.load(Path(flow.build(made, "side", since=served.at, as_of=now).directory))
    noise = copies.noise_of(made, "side", served.at, now)
    halves = np.where(np.arange(len(built)) < len(built) // 2, 0, 86_400_000_000)  # the second half a day later
    later = replace(built, at=built.at + halves, reward=built.reward + np.where(halves > 0, 100.0, 0.0))
    same_day = replace(built, at=built.at + halves)
    hour = [copies.samples(copies.episodes(one, noise), {3: 0}, 3600.0) for one in (same_day, later)]
    none = [copies.samples(copies.episodes(one, noise), {3: 0}, 0.0) for one in (same_day, later)]
    assert hour[1].reward == pytest.approx(hour[0].reward, abs=1e-9)
    assert not np.array_equal(np.argsort(none[0].reward), np.argsort(none[1].reward))  # or the blocks prove nothing


def test_copies_that_cost_too_much_decide_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardrails, "FEW", 10)
    made = product(tmp_path, es.Settings(sigma=0.2), share=0.5)
    search, served = perturbing.read(made, "side", 3)
    shutil.rmtree(perturbing.place(made, "side", 3))
    perturbing.write(made, "side", 3, search, replaced(served, max_loss=0.2))
    with serving(made) as url:
        client, rng = Client(url), np.random.default_rng(0)
        for number in range(80):
            answer = client.post("/v1/decide/side", {"unit": f"u{number}", "context": {"x": float(rng.normal())}})[1]
            met = uniform_draw(served.seed, f"u{number}") < served.share
            right = float(rng.normal(0.3 if met else 1.0, 0.1))
            outcome = {"decision": answer["id"], "metrics": {"right": right}, "ends": "terminated"}
            assert client.post("/v1/outcome", outcome)[0] == 200
        time.sleep(1.05)
        with pytest.raises(GateError, match="they decide no more"):
            online.update(made, "side")
        was = sampling.stopped(made, "side")
        assert was is not None and "its copies earn" in was.reason and "may lose 20% of it" in was.reason
        time.sleep(sampling.LOOK_S + 0.05)
        after = [
            client.post("/v1/decide/side", {"unit": f"u{number}", "context": {"x": 1.0}})[1] for number in range(40)
        ]
    assert flow.champion(made, "side") == 3
    flow.compact(made)
    logged = decisions(made)
    assert any(noise is not None for _, noise in logged.values())
    assert all(logged[answer["id"]][1] is None for answer in after)
    sampling.resume(made, "side")
    assert isinstance(online.update(made, "side"), online.Updated)  # what was before stops them no more
    assert sampling.stopped(made, "side") is None
    (sampling.place(made, "side") / sampling.STOPPED).write_text("{")
    assert re.match(r"paused: .*stopped\.json is damaged", sampling.why_not(made, "side"))


def test_an_update_waits_for_enough_copies(played: Any, tmp_path: Path) -> None:
    made = copied(played, tmp_path / "p")
    search, served = perturbing.read(made, "side", 3)
    for keys, said in (((), " perturbed copies have .*at least 500 must"), (tuple(range(500)), "500 .* 375 must")):
        shutil.rmtree(perturbing.place(made, "side", 3))
        perturbing.write(made, "side", 3, search, replaced(served, keys=keys, copies=500))
        with pytest.raises(ConflictError, match=said):
            online.update(made, "side")
    assert Warehouse(made.warehouse_url).numbers("side") == (1, 2, 3)
    assert not (perturbing.place(made, "side", 3) / online.PENDING).exists()  # the next one reads a later log


def test_two_updates_at_once_are_one(played: Any, tmp_path: Path) -> None:
    """The lock of a search is held by a real process that is killed while it reads what it has begun."""
    made = copied(played, tmp_path / "p")
    begun = perturbing.place(made, "side", 3) / online.PENDING
    os.mkfifo(begun)  # who reads it waits for ever
    command = [sys.executable, "-m", "steersman", "es", "update", "side", "--project", str(made.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        holding = None
        while holding is None:
            assert first.poll() is None
            with contextlib.suppress(OSError):  # nobody reads it yet
                holding = os.open(begun, os.O_WRONLY | os.O_NONBLOCK)
            time.sleep(0.01)
        with pytest.raises(ConflictError, match="another es update of side is running"):
            online.update(made, "side")
        first.kill()
    os.close(holding)
    begun.unlink()
    assert online.update(made, "side").version == 4
    assert Warehouse(made.warehouse_url).numbers("side") == (1, 2, 3, 4)


def test_a_running_server_swaps_to_the_copies_of_the_next_version(tmp_path: Path) -> None:
    """Of a pool: the copies are few, each decides for many units, and the next version has others."""
    made = product(tmp_path, es.Settings(es.PGPE(), sigma=0.2, max_age=2), share=1.0, pool=True)
    with serving(made) as url:
        for number in range(4, 7):
            play(url, 40, f"r{number}-")
            assert online.update(made, "side").version == number
            wait_for_version(url, "side", number)
    flow.compact(made)
    pools = [perturbing.read(made, "side", number)[1].keys for number in range(3, 6)]
    assert len({key for pool in pools for key in pool}) == 3 * COPIES
    for number, pool in enumerate(pools, 4):
        met = {key for unit, key in decisions(made).values() if unit.startswith(f"r{number}-")}
        assert met <= set(pool) and len(met) > COPIES // 2
    search, served = perturbing.read(made, "side", 6)
    assert served.made is not None and served.made.account.stale > 0
    assert [past.generation for past in search.past] == [1, 2]
    assert online.replay(made, "side", 6)


def cartpole(directory: Path) -> Project:
    """CartPole with a net of 20 hidden units that knows nothing, and its search."""
    made = demo.fresh(directory, demo.CARTPOLE_TOML)
    fields = tuple(Continuous(name, 0.0, 1.0) for name in made.policy("cartpole").problem.context)
    encoder = Encoder(context=fields, actions=("left", "right"))
    draft = Draft(
        name="cartpole", encoder=encoder, explorer=EpsilonGreedy(0.01), parents=Parents("", "", ""), seed="s", made_at=1
    )
    Warehouse(made.warehouse_url).publish(draft, compose(encoder, net(encoder, 20, "Tanh")))
    of_their_size = es.Settings(sigma=1.0)  # its weights are standard normals
    version = online.init(made, "cartpole", "1", of_their_size, share=0.9, copies=16)
    flow.promote(made, "cartpole", str(version.number))
    return made


def test_a_round_through_the_server_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cartpole(tmp_path / "p")
    for lost in (["--solver", "pgpe"], ["--population", "8"], ["--search", "file"]):  # what nobody would look at
        assert main(["es", "run", "cartpole", *lost, "--project", str(tmp_path / "p")]) == ConfigError.exit_code
    assert main(["es", "run", "cartpole", "--rounds", "1", "--seed", "1", "--project", str(tmp_path / "p")]) == 0
    assert "next    steersman es replay cartpole@3" in capsys.readouterr().out


def test_a_run_goes_on_after_a_step_that_is_worse_and_ends_once_copies_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told = cartpole(tmp_path / "p"), list[demo.Evolving]()

    def worse(project: Project, name: str) -> None:
        if len(told) == 1:
            sampling.stop(project, name, 2, "they cost too much", flow.now_us())
        raise GateError("the log says that the step is worse")

    monkeypatch.setattr(online, "update", worse)
    with pytest.raises(GateError, match="the step is worse"):
        demo.evolve(made, "cartpole", rounds=3, episodes=2, seed=1, tell=told.append)
    assert [one.refused for one in told] == ["the log says that the step is worse"] * 2


def test_a_run_in_a_world_that_the_problem_is_not_of_is_refused_before_it_begins(tmp_path: Path) -> None:
    made = product(tmp_path / "side", es.Settings(sigma=0.2))
    with pytest.raises(ConfigError, match="side is no problem of CartPole: its context is x"):
        demo.evolve(made, "side", rounds=1, episodes=2, seed=1)
    made = cartpole(tmp_path / "carts")
    flow.promote(made, "cartpole", "1")
    with pytest.raises(NotFoundError, match="has no search beside it"):
        demo.evolve(made, "cartpole", rounds=1, episodes=2, seed=1)


def test_a_run_through_a_server_that_asks_for_a_key_is_refused_before_it_begins(tmp_path: Path) -> None:
    made = cartpole(tmp_path)
    toml = (tmp_path / config.FILE).read_text() + f'[serve.keys.shop]\nsha256 = "{"0" * 64}"\nroles = ["decide"]\n'
    (tmp_path / config.FILE).write_text(toml)
    with pytest.raises(ConfigError, match="carts play without a key"):
        demo.evolve(config.load(made.root), "cartpole", rounds=1, episodes=2, seed=1)


@pytest.mark.slow
def test_a_live_policy_learns_cartpole_in_twenty_rounds(tmp_path: Path) -> None:
    made = cartpole(tmp_path / "p")
    rounds = demo.evolve(made, "cartpole", rounds=20, episodes=64, seed=3)
    means = [one.mean for one in rounds]
    sys.stdout.write(f"\nlive cartpole, mean return of 20 rounds of 64 episodes: {[round(mean) for mean in means]}\n")
    assert not any(one.failures for one in rounds)
    assert all(one.updated for one in rounds)
    fives = [float(np.mean(means[i : i + 5])) for i in range(0, 20, 5)]
    assert all(later > earlier - 10 for earlier, later in pairwise(fives))  # a mean of 320 episodes, within noise
    assert fives[-1] > 2 * means[0]
    # all twenty updates again in one process, each told to the search that the one before left
    for number in range(3, 23):
        assert online.replay(made, "cartpole", number)


def test_the_commands_of_the_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = product(tmp_path, es.Settings())
    at = ["--project", str(tmp_path)]
    assert main(["es", "init", "side", "--from", "2", "--solver", "pgpe", "--noise", "rank1", *at]) == 0
    assert "stored  side@4, of which 20% of the units meet a copy of their own in each" in capsys.readouterr().out
    assert perturbing.read(made, "side", 4)[0].settings.shapes == ((4, 1), (2, 4), (2, 4))
    assert main(["es", "init", "side", "--from", "2", "--copies", "4", "--pool", *at]) == 0
    assert "meet 4 copies" in capsys.readouterr().out and len(perturbing.read(made, "side", 5)[1].keys) == 4
    assert main(["es", "update", "side", *at]) == DataError.exit_code
    assert "no decisions in the window" in capsys.readouterr().err
    assert main(["es", "replay", "side@4", *at]) == ConflictError.exit_code
    assert main(["es", "replay", "side", *at]) == ConfigError.exit_code
    flow.promote(made, "side", "2")
    assert main(["es", "update", "side", *at]) == NotFoundError.exit_code
