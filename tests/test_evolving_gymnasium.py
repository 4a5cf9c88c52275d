"""Evolution in Gymnasium's environments: their returns, bounds and chance, and what is refused."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from steersman.cli import main
from steersman.core.errors import ConfigError, MissingExtra
from steersman.flow import evolving
from steersman.learn import evolution as es
from steersman.learn.evolution import stored
from steersman.worlds.registered import registered

PACKAGE = '''
import gymnasium
import numpy as np
from gymnasium import spaces


class Aim(gymnasium.Env):
    """Actions that are as near as may be to what is seen, for as many steps as its seed says, five at most."""

    def __init__(self, action_space=None, observation_space=None):
        numbers = spaces.Box(np.float32([[-2, -1]]), np.float32([[2, 3]]))
        self.action_space = action_space or numbers
        self.observation_space = observation_space or spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 6))
        return self._see(), {}

    def step(self, action):
        assert self.left > 0, "it is over"
        assert self.action_space.contains(action), action
        self.left -= 1
        reward = -np.square(self.seen - action).mean() if isinstance(self.action_space, spaces.Box) else action
        return self._see(), float(reward), self.left == 0, False, {}

    def _see(self):
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen


class Broken(Aim):
    """It breaks in the third step, of whatever episode lasts so long."""

    def step(self, action):
        self.done = getattr(self, "done", 0) + 1
        if self.done == 3:
            raise RuntimeError("the joint 4 is at nan")
        return super().step(action)


SPACES = {
    "Aim-v0": {},
    "Counted-v0": {"action_space": spaces.Discrete(3, start=5)},
    "Unbounded-v0": {"action_space": spaces.Box(-np.inf, np.inf, (2,))},
    "Whole-v0": {"action_space": spaces.Box(0, 9, (2,), np.int64)},
    "Several-v0": {"action_space": spaces.MultiDiscrete([2, 3])},
    "Picture-v0": {"observation_space": spaces.Box(0, 255, (8, 8, 3), np.uint8)},
    "Named-v0": {"observation_space": spaces.Dict({"speed": spaces.Box(-1, 1, (1,))})},
}
for name, given in SPACES.items():
    goal = -0.5 if name == "Aim-v0" else None
    gymnasium.register(name, lambda given=given: Aim(**given), max_episode_steps=9, reward_threshold=goal)
gymnasium.register("Endless-v0", Aim)
gymnasium.register("Broken-v0", Broken, max_episode_steps=9)
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package that registers environments when it is imported."""
    folder, known = tmp_path_factory.mktemp("package"), set(gymnasium.registry)
    (folder / "aiming.py").write_text(PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "aiming"
    for name in set(gymnasium.registry) - known:
        del gymnasium.registry[name]


def test_our_cartpole_is_gymnasiums() -> None:
    """The same nets from the same starts, which are what Gymnasium's environment draws from a seed."""
    ours, theirs, rng = evolving.find("cartpole"), evolving.find("CartPole-v1"), np.random.default_rng(3)
    net = evolving.net(ours)
    assert (theirs.inputs, theirs.outputs, theirs.solved) == (ours.inputs, ours.outputs, ours.solved)
    members, seeds = net.members(rng.normal(size=(24, net.size)).astype(np.float32)), theirs.starts(24, rng)
    world, begun = gymnasium.make("CartPole-v1"), []
    for seed in seeds.tolist():
        world.reset(seed=seed)
        begun.append(world.unwrapped.state)
    returns = theirs.play(members, seeds)
    assert returns.tolist() == ours.play(members, np.array(begun)).tolist()
    assert len(np.unique(returns)) > 5


@pytest.mark.parametrize("name", ["Acrobot-v1", "MountainCarContinuous-v0", "Pendulum-v1"])
def test_an_episode_is_the_one_that_gymnasium_plays_from_its_seed(name: str) -> None:
    world, rng = evolving.find(name), np.random.default_rng(0)
    net = evolving.net(world, (5,))
    rows, seeds = rng.normal(size=(3, net.size)).astype(np.float32), world.starts(3, rng)
    returns = world.play(net.members(rows), seeds)
    for row, seed, found in zip(rows, seeds.tolist(), returns, strict=True):
        env, total, over = gymnasium.make(name), 0.0, False
        (seen, _), space = env.reset(seed=seed), env.action_space
        while not over:
            scores = net.members(row[None])(seen.astype(np.float32)[None, None])[0, 0].astype(np.float64)
            if isinstance(space, gymnasium.spaces.Discrete):
                action = int(scores.argmax())
            else:  # the logistic function of twice a number is half of 1 and its tanh
                action = (space.low + (space.high - space.low) / (1 + np.exp(-2 * scores))).astype(np.float32)
            seen, reward, ended, cut, _ = env.step(action)
            total, over = total + float(reward), ended or cut
        assert found == pytest.approx(total, rel=1e-5)


def test_actions_reach_their_bounds_and_have_the_shape_of_the_space(package: str) -> None:
    """A net without weights says its last bias, whatever it sees; each action is checked by the environment."""
    world = registered(f"{package}:Aim-v0")
    assert (world.inputs, world.outputs, world.solved) == (2, 2, -0.5)
    for bias, action in (((0, 0), (0, 1)), ((99, 99), (2, 3)), ((-99, -99), (-2, -1)), ((0.5, -99), (0.924234, -1))):
        assert world.acts(np.array([bias], dtype=np.float32)) == pytest.approx(np.array([[action]]), abs=1e-6)
    rows = np.zeros((40, 6), dtype=np.float32)
    rows[:, -2:] = np.linspace(-30, 30, 80).reshape(40, 2)
    seeds = world.starts(40, np.random.default_rng(0))
    returns = world.play(evolving.net(world, ()).members(rows), seeds)
    assert (returns < 0).all()


def test_each_plays_one_episode_of_its_own_length_and_is_asked_no_more_when_it_is_over(package: str) -> None:
    world = registered(f"{package}:Counted-v0")
    assert (world.outputs, world.solved) == (3, None)
    seeds, rows = world.starts(30, np.random.default_rng(0)), np.zeros((30, 9), dtype=np.float32)
    rows[np.arange(30), 6 + np.arange(30) % 3] = 1.0
    lengths = np.array([gymnasium.utils.seeding.np_random(seed)[0].integers(1, 6) for seed in seeds.tolist()])
    returns = world.play(evolving.net(world, ()).members(rows), seeds)
    assert returns.tolist() == (lengths * (5 + np.arange(30) % 3)).tolist()
    assert set(lengths) == {1, 2, 3, 4, 5}


def test_a_world_of_a_package_is_solved_and_a_run_goes_on_where_it_ended(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["es", "run", "--world", f"{package}:Aim-v0", "--seed", "0", "--hidden", "6"]
    assert main([*run, "--search", str(tmp_path / "whole"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["solved"] and found["clean"] >= -0.5 and found["batches"] > 3
    for _ in range(found["batches"]):
        assert main([*run, "--search", str(tmp_path / "parts"), "--rounds", "1"]) == 0
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert stored.load(tmp_path / "whole").mean.size == 2 * 6 + 6 + 6 * 2 + 2
    capsys.readouterr()
    assert main([*run, "--search", str(tmp_path / "whole"), "--hidden", "7"]) == 2
    assert "other settings" in capsys.readouterr().err
    world = evolving.find(f"{package}:Counted-v0")
    evolving.evolve(world, es.Settings(), batches=1, path=tmp_path / "counted")
    with pytest.raises(ConfigError, match="123 parameters, the net of this world has 142"):
        evolving.evolve(evolving.find("cartpole"), es.Settings(), path=tmp_path / "counted")


def test_without_a_threshold_all_rounds_are_played(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["es", "run", "--world", f"{package}:Counted-v0", "--seed", "0", "--rounds", "12"]) == 0
    out = capsys.readouterr().out
    assert f"{12 * evolving.POPULATION}" in out.splitlines()[-2]
    assert "not solved" in out and "no return counts as solved here" in out


@pytest.mark.parametrize("name", ["Acrobot-v1", "MountainCarContinuous-v0", "Pendulum-v1"])
def test_a_seed_repeats_a_run_and_pairs_begin_alike_by_option(name: str, tmp_path: Path) -> None:
    bodies, world = [], evolving.find(name)
    for seed, common in ((4, "pair"), (4, "pair"), (5, "none")):
        path = tmp_path / f"{len(bodies)}"
        evolving.evolve(world, es.Settings(sigma=2.0), population=4, batches=1, common=common, seed=seed, path=path)
        bodies.append(path.read_bytes())
    assert bodies[0] == bodies[1] and bodies[2] != bodies[0]
    begun = evolving.starts(world, "pair", 6, np.random.default_rng(0))
    assert np.array_equal(begun[::2], begun[1::2]) and len(np.unique(begun)) == 3


@pytest.mark.parametrize(
    "name, text, hint",
    [
        ("acrobot", "Gymnasium knows no environment 'acrobot'", "did you mean Acrobot-v1?"),
        ("cartpol", "no environment 'cartpol'", "did you mean cartpole?"),
        ("Nothing-like-it", "no environment 'Nothing-like-it'", "pprint_registry"),
        ("no_such_package:Aim-v0", "No module named 'no_such_package'", "install"),
        ("aiming:Aimed-v0", "no environment 'Aimed-v0'", "did you mean Aim-v0?"),
        ("aiming:Unbounded-v0", "have no bounds", "finite bounds"),
        ("aiming:Whole-v0", "actions of aiming:Whole-v0 are Box", "numbers within bounds"),
        ("aiming:Several-v0", "MultiDiscrete", "one of a few"),
        ("aiming:Picture-v0", "observations of aiming:Picture-v0", "FlattenObservation"),
        ("aiming:Named-v0", "Dict", "FlattenObservation"),
        ("aiming:Endless-v0", "no limit of steps", "max_episode_steps"),
        ("FrozenLake-v1", "Discrete", "FlattenObservation"),
    ],
)
def test_what_can_not_be_played_is_refused_with_what_to_do(
    name: str, text: str, hint: str, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["es", "run", "--world", name, "--rounds", "1"]) == 2
    error = capsys.readouterr().err
    assert text in error and hint in error


def test_an_environment_that_breaks_in_an_episode_is_named_with_its_seed(
    package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["es", "run", "--world", f"{package}:Broken-v0", "--rounds", "1", "--seed", "1"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    found = re.search(
        r"Broken-v0 failed in step 3 of the episode of seed (\d+): RuntimeError: the joint 4 is at nan", said
    )
    assert found
    assert gymnasium.make("Broken-v0").reset(seed=int(found[1]))[0].shape == (2,)


def test_what_goes_wrong_in_the_nets_is_not_said_of_the_environment() -> None:
    class Broken:
        def __call__(self, inputs: np.ndarray, /) -> np.ndarray:
            raise ValueError("no weights")

        def only(self, rows: np.ndarray, /) -> Broken:
            return self

    world = evolving.find("Acrobot-v1")
    with pytest.raises(ValueError, match="no weights"):
        world.play(Broken(), world.starts(2, np.random.default_rng(0)))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ConfigError, match=r"Hopper-v5 can not be made: MuJoCo is not installed, run .pip install"):
        evolving.find("Hopper-v5")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtra, match="gymnasium"):
        evolving.find("Acrobot-v1")
    assert evolving.evolve(evolving.find("cartpole"), es.Settings(), batches=1).batches == 1


def test_a_live_policy_is_of_the_world_of_its_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["es", "run", "cartpole", "--world", "Acrobot-v1"]) == 2
    assert "--world is of a run without a server" in capsys.readouterr().err
    assert main(["es", "run", "cartpole", "--hidden", "8"]) == 2


@pytest.mark.slow
def test_acrobot_is_solved() -> None:
    world = evolving.find("Acrobot-v1")
    found = [evolving.evolve(world, es.Settings(), seed=seed, batches=60) for seed in range(5)]
    sys.stdout.write(f"\nAcrobot-v1, default: {[(one.evaluations, one.clean) for one in found]}\n")
    assert all(one.solved for one in found)
    assert statistics.median(one.evaluations for one in found) <= 240
