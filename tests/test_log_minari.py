"""Minari datasets: every step becomes what was played, no propensity is made up, no environment is made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

from foreign_logs import nouns, problem, rejected, run
from product import project as made_project
from steersman import cli, flow, log
from steersman.core.decision import Candidate, Decision, Numbers, One, Outcome, Problem
from steersman.core.errors import DataError, MissingExtra
from steersman.engine import Engine

SECOND = 1_000_000


@pytest.fixture(scope="module")
def minari(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package, with its datasets in a directory of the test's own."""
    root = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        try:
            import PIL  # noqa: F401
        except ImportError:  # it asks for images of what it does not name among its requirements; there are none here
            patch.setitem(sys.modules, "PIL", stand_in := ModuleType("PIL"))
            stand_in.Image = None  # type: ignore[attr-defined]
        import minari

        yield minari


EPISODES = 25


@pytest.fixture(scope="module")
def cartpole(minari: Any) -> tuple[Path, list[Any]]:
    """A dataset of uniform actions on the real CartPole, written by Minari, and what was put in."""
    import gymnasium

    env = gymnasium.make("CartPole-v1", max_episode_steps=30)
    draw = np.random.default_rng(0)
    buffers = [played(minari, env, episode, draw) for episode in range(EPISODES)]
    return written(minari, "cartpole/random-v0", buffers, env=env), buffers


def played(minari: Any, env: Any, episode: int, draw: np.random.Generator) -> Any:
    seen, _ = env.reset(seed=episode)
    observations, steps, over = [seen], [], False
    while not over:
        action = int(draw.integers(2))
        seen, reward, terminated, truncated, _ = env.step(action)
        observations.append(seen)
        steps.append((action, reward, terminated, truncated))
        over = terminated or truncated
    actions, rewards, ends, cuts = zip(*steps, strict=True)
    return buffer(minari, episode, np.stack(observations), np.array(actions), list(rewards), list(ends), list(cuts))


def buffer(minari: Any, episode: int, observations: Any, actions: Any, rewards: Any, ends: Any, cuts: Any) -> Any:
    return minari.data_collector.EpisodeBuffer(
        id=episode, observations=observations, actions=actions, rewards=rewards, terminations=ends, truncations=cuts
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def written(minari: Any, name: str, buffers: list[Any], **spaces: Any) -> Path:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a published dataset should also say
        made = minari.create_dataset_from_buffers(name, buffer=buffers, algorithm_name="test", **spaces)
    return Path(made.storage.data_path).parent


def named(*names: str) -> Problem:
    return problem(actions=One(names=names or ("0", "1")))


def uniform(path: Path) -> log.Source:
    return log.Source(path=path, form="minari", propensities="uniform")


def test_a_minari_dataset_becomes_what_was_played(
    pen: log.Pen, engine: Engine, cartpole: tuple[Path, list[Any]]
) -> None:
    path, buffers = cartpole
    total = sum(len(one.rewards) for one in buffers)
    counts = run(pen, engine, uniform(path), named())
    assert (counts.rows, counts.decisions, counts.outcomes, counts.rejected) == (total, total, total, 0)
    found = nouns(pen)
    row = 0
    for one in buffers:
        for number, action in enumerate(one.actions):
            decision, outcome = found[2 * row : 2 * row + 2]
            row += 1
            seen = [float(value) for value in one.observations[number]]
            assert decision == Decision(
                id=decision.id, problem="pole", unit=f"cartpole/random-v0/{one.id}", at=row * SECOND, step=number,
                context=dict(zip(("obs.0", "obs.1", "obs.2", "obs.3"), seen, strict=True)),
                candidates=(Candidate("0"), Candidate("1")), action=str(action), propensity=0.5,
            )  # fmt: skip
            ends = "terminated" if one.terminations[number] else "truncated" if one.truncations[number] else None
            assert outcome == Outcome(
                id=outcome.id, decision=decision.id, at=decision.at, metrics={"reward": 1.0}, ends=ends
            )
    assert {one.ends for one in found[1::2]} == {None, "terminated", "truncated"}


def test_a_minari_dataset_has_no_propensities_and_none_is_made_up(
    pen: log.Pen, engine: Engine, cartpole: tuple[Path, list[Any]]
) -> None:
    path, _ = cartpole
    with pytest.raises(DataError, match=r"propensity is missing.*--propensity uniform.*--propensity estimate"):
        run(pen, engine, log.Source(path=path, form="minari"), named())
    assert nouns(pen) == []


def test_a_dataset_of_random_actions_is_estimated_by_their_frequencies(
    pen: log.Pen, engine: Engine, cartpole: tuple[Path, list[Any]]
) -> None:
    path, buffers = cartpole
    counts = run(pen, engine, log.Source(path=path, form="minari", propensities="estimate"), named())
    assert counts.behavior is not None
    assert counts.behavior.method == "frequencies"
    decisions = nouns(pen)[::2]
    assert all(one.estimated for one in decisions)
    taken = np.concatenate([one.actions for one in buffers])
    worst = max(abs(one.propensity - (taken == int(one.action)).mean()) for one in decisions)
    assert worst < 0.05  # frequencies of four fifths of 500 decisions: a standard error of 0.025


def test_the_same_dataset_twice_has_the_same_ids(
    tmp_path: Path, engine: Engine, cartpole: tuple[Path, list[Any]]
) -> None:
    found = []
    for place in ("a", "b"):
        with log.Pen(tmp_path / place, durability="buffered") as pen:
            run(pen, engine, uniform(cartpole[0] / "data"), named())  # its inner directory is the same dataset
            found.append({noun.id for noun in nouns(pen)})
    assert found[0] == found[1]


def test_observations_of_every_kind_become_named_fields(minari: Any, pen: log.Pen, engine: Engine) -> None:
    from gymnasium import spaces

    seen = spaces.Dict(
        {
            "place": spaces.Box(-1, 1, (2, 1)), "level": spaces.Box(0, np.inf, ()), "room": spaces.Discrete(9),
            "doors": spaces.MultiBinary(2), "dice": spaces.MultiDiscrete([6, 6]),
            "hand": spaces.Dict({"left": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 9, (1,))))}),
        }
    )  # fmt: skip
    values = {
        "place": np.array([[[0.5], [-0.5]]] * 2, dtype=np.float32), "level": np.array([np.nan, 1.0], dtype=np.float32),
        "room": np.array([7, 8]), "doors": np.array([[1, 0]] * 2, dtype=np.int8), "dice": np.array([[2, 5]] * 2),
        "hand": {"left": (np.array([2, 0]), np.array([[0.25], [0.0]], dtype=np.float32))},
    }  # fmt: skip
    path = written(
        minari, "kinds-v0", [buffer(minari, 0, values, np.array([5]), [1.0], [True], [False])],
        observation_space=seen, action_space=spaces.Discrete(2, start=4),
    )  # fmt: skip
    source = log.Source(path=path, form="minari", propensities="uniform")
    with pytest.raises(
        DataError, match="can not be learned from 1 units, at least 20"
    ):  # what is declared is put to the test
        run(pen, engine, source, problem(actions=One()))
    job = log.foreign.Job(engine, source, problem(actions=One(), context={}), pen.directory)
    (judged,) = log.importing.FORMS["minari"](job)
    decision = msgspec.json.decode(judged.records[0][1], type=Decision)
    assert decision.context == {
        "place.0.0": 0.5, "place.1.0": -0.5, "room": "7", "doors.0": 1.0, "doors.1": 0.0, "dice.0": "2", "dice.1": "5",
        "hand.left.0": "2", "hand.left.1.0": 0.25,
    }  # fmt: skip
    assert ([one.id for one in decision.candidates], decision.action) == (["4", "5"], "5")


def test_actions_that_are_numbers_are_refused_with_the_dataset(minari: Any, pen: log.Pen, engine: Engine) -> None:
    from gymnasium import spaces

    path = written(
        minari, "numbers-v0", [buffer(minari, 0, np.zeros((2, 1)), np.zeros((1, 1)), [1.0], [True], [False])],
        observation_space=spaces.Box(0, 1, (1,), dtype=np.float64),
        action_space=spaces.Box(0, 1, (1,), dtype=np.float64),
    )  # fmt: skip
    with pytest.raises(DataError, match="the actions are Box, the problem chooses one") as error:
        run(pen, engine, uniform(path), named())
    assert '"numbers"' in error.value.hint
    with pytest.raises(DataError, match=r"has the bounds \[0.0\] to \[2.0\], the dataset has \[0.0\] to \[1.0\]"):
        run(pen, engine, uniform(path), problem(actions=Numbers(low=(0.0,), high=(2.0,))))


PUSHES = Numbers(low=(-0.1, 0.0), high=(0.1, 2.0))


def pushed(minari: Any, name: str, draw: Callable[[np.random.Generator, np.ndarray], np.ndarray]) -> Any:
    """A dataset of a Box with the bounds of PUSHES, whose actions are drawn for an observation, and what was put in."""
    from gymnasium import spaces

    space = spaces.Box(np.float32(PUSHES.low), np.float32(PUSHES.high))
    rng = np.random.default_rng(1)
    buffers = []
    for episode in range(60):
        seen = rng.uniform(-1, 1, (11, 1))
        actions = np.stack([draw(rng, one) for one in seen[:10]]).astype(np.float32)
        actions = actions.clip(space.low, space.high)
        buffers.append(buffer(minari, episode, seen, actions, [1.0] * 10, [False] * 9 + [True], [False] * 10))
    return written(
        minari, name, buffers, observation_space=spaces.Box(-1, 1, (1,), dtype=np.float64), action_space=space
    ), buffers


def even(rng: np.random.Generator, seen: np.ndarray) -> np.ndarray:
    return rng.uniform(PUSHES.low, PUSHES.high)


def test_numbers_of_a_uniform_policy_have_the_density_of_their_bounds(
    minari: Any, pen: log.Pen, engine: Engine
) -> None:
    path, buffers = pushed(minari, "pushes/random-v0", even)
    counts = run(pen, engine, uniform(path), problem(actions=PUSHES))
    assert (counts.decisions, counts.behavior.method, counts.behavior.decisions) == (600, "uniform", 600)
    assert counts.behavior.loss_uniform == pytest.approx(np.log(10))
    decisions = nouns(pen)[::2]
    assert {one.propensity for one in decisions} == {1 / (0.2 * 2.0)}
    assert not any(one.estimated or one.candidates for one in decisions)
    assert np.array_equal([one.action for one in decisions], np.concatenate([one.actions for one in buffers]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, seen: rng.normal([0.0, 1.0], [0.05, 0.5]),
        lambda rng, seen: np.array([rng.uniform(-0.1, 0.1), 1.0 + seen[0] * rng.uniform(0, 1)]),  # each alone is even
    ],
    ids=["centred", "of the context"],
)
def test_numbers_that_were_not_uniform_are_refused(minari: Any, pen: log.Pen, engine: Engine, draw: Any) -> None:
    path, _ = pushed(minari, f"pushes/other{id(draw)}-v0", draw)
    with pytest.raises(DataError, match="not taken uniformly"):
        run(pen, engine, uniform(path), problem(actions=PUSHES))
    assert nouns(pen) == []


def test_the_density_of_numbers_is_neither_made_up_nor_estimated(minari: Any, pen: log.Pen, engine: Engine) -> None:
    path, _ = pushed(minari, "pushes/unknown-v0", even)
    for propensities, says in (("estimate", "not estimated from a log"), ("logged", "propensity is missing")):
        with pytest.raises(DataError, match=says) as error:
            run(pen, engine, log.Source(path=path, form="minari", propensities=propensities), problem(actions=PUSHES))
        assert "--propensity uniform" in str(error.value)
        assert "--propensity estimate" not in str(error.value)


def test_a_step_that_breaks_a_law_is_refused_by_its_number(
    tmp_path: Path, pen: log.Pen, engine: Engine, cartpole: tuple[Path, list[Any]]
) -> None:
    path, buffers = cartpole
    broken = tmp_path / "dataset"
    broken.mkdir()
    for name in ("metadata.json", "main_data.hdf5"):
        (broken / name).write_bytes((path / "data" / name).read_bytes())
    with h5py.File(broken / "main_data.hdf5", "r+") as file:
        file["episode_0/rewards"][2] = np.nan
        file["episode_1/observations"][0, 1] = np.inf
        file["episode_1/actions"][1] = 7
    first = len(buffers[0].rewards)
    counts = run(pen, engine, uniform(broken), named(), max_reject_share=0.1)
    assert counts.rejected == 3
    found = rejected(pen)
    assert "metric reward is nan" in found[3]
    assert "context.obs.1 is inf" in found[first + 1]
    assert "action '7'" in found[first + 2]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "no Minari dataset"),
        ("{", "metadata.json"),
        ({"observation_space": None}, "written by Minari 0.5"),  # never by making the environment that it names
        ({"data_format": "arrow"}, "only hdf5 is read"),
        ({"observation_space": '{"type": "Graph"}'}, "is a Graph"),
        ({"observation_space": '{"type": "Box", "shape": [210, 160, 3]}'}, "100800 numbers"),
        ({"total_episodes": EPISODES + 1}, f"episode {EPISODES}"),
    ],
)
def test_what_is_no_dataset_is_refused(
    tmp_path: Path, pen: log.Pen, engine: Engine, cartpole: tuple[Path, list[Any]], metadata: Any, said: str
) -> None:
    data = cartpole[0] / "data"
    broken = tmp_path / "dataset"
    broken.mkdir()
    (broken / "main_data.hdf5").write_bytes((data / "main_data.hdf5").read_bytes())
    if isinstance(metadata, str):
        (broken / "metadata.json").write_text(metadata)
    elif metadata is not None:
        changed = json.loads((data / "metadata.json").read_text()) | metadata
        (broken / "metadata.json").write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
    with pytest.raises(DataError, match=said):
        run(pen, engine, uniform(broken), named())
    assert nouns(pen) == []


def test_the_names_of_the_problem_must_be_those_of_the_dataset(
    pen: log.Pen, engine: Engine, cartpole: tuple[Path, list[Any]]
) -> None:
    with pytest.raises(DataError, match="has the actions left, right, the dataset has 0, 1"):
        run(pen, engine, uniform(cartpole[0]), problem())


def test_without_h5py_the_error_names_the_extra(
    pen: log.Pen, engine: Engine, cartpole: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"steersman\[import\]"):
        run(pen, engine, uniform(cartpole[0]), named())


TOML = """\
[problem.pole]
reward = "reward"
wait_s = 0
actions = { kind = "one", names = ["0", "1"] }
"""


def test_the_command_imports_a_dataset_that_then_builds(
    tmp_path: Path, cartpole: tuple[Path, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, buffers = cartpole
    made = made_project(tmp_path / "product", TOML)
    command = ["log", "--project", str(made.root), "import", str(path), "--name", "pole", "--format", "minari"]
    assert cli.main(command) == DataError.exit_code
    assert "--propensity estimate" in capsys.readouterr().err
    for _ in range(2):  # twice counts once
        assert cli.main([*command, "--propensity", "uniform"]) == 0
        assert "declared uniform, which the log does not refute" in capsys.readouterr().out
    built = flow.build(made, "pole")
    ended = sum(one.terminations[-1] for one in buffers)
    assert (built.decisions, built.counts.episodes, built.counts.terminated) == (
        sum(len(one.rewards) for one in buffers), EPISODES, ended
    )  # fmt: skip
