"""The verb simulate: what it learns is what it plays, what it plays is what the build holds, and all verbs go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import product
from steersman import flow, learn, timeline
from steersman.cli import main
from steersman.core.errors import ConfigError, NotFoundError
from steersman.flow.judging import stored_policy
from steersman.learn.play import play, returns_of_episodes
from steersman.worlds.simulators import WORLDS

HEAD = """\
[problem.game]
reward = "reward"
wait_s = 0
"""
CARTPOLE = (
    HEAD
    + """\
horizon = 200
actions = { kind = "one", names = ["left", "right"] }
context = { cart_position = "number", cart_velocity = "number", pole_angle = "number", pole_velocity = "number" }
"""
)
OFFERS = (
    HEAD
    + """\
horizon = 200
actions = { kind = "one", names = ["a", "b", "c", "d"] }
context = { asked = "number" }
"""
)
PENDULUM = (
    HEAD
    + """\
horizon = 200
actions = { kind = "numbers", low = [-2.0], high = [2.0] }
context = { cosine = "number", sine = "number", speed = "number" }
"""
)
DQN = """\
[problem.game.learn]
settings = { steps = 1200 }
[problem.game.simulate]
world = "cartpole"
judged = 20
settings = { random = 3000, rounds = 6 }
"""


def by_the_policy(built: timeline.Built) -> np.ndarray:
    """[N] bool, rows that the policy decided and not chance."""
    return np.array([decision.startswith("0-") for decision in built.decision_ids])


def run(directory: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main([*words, "--project", str(directory), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_pole_is_learned_in_a_simulator_exported_published_and_stored_as_what_was_played(tmp_path, capsys):
    made = product.project(tmp_path, CARTPOLE + DQN)
    found = run(tmp_path, capsys, "simulate", "game")
    assert found["value"]["low"] > 100 > found["random"]["high"]
    assert found["value"]["n"] == found["random"]["n"] == 20
    built = timeline.load(Path(found["candidate"]["build"]))
    assert built.counts.episodes == built.counts.units == 40
    assert not made.log_directory.exists()
    assert not (tmp_path / "rejects").exists()
    batch, ours = built.batch, by_the_policy(built)
    means = [float(batch.reward[which].sum()) / 20 for which in (ours, ~ours)]
    assert means == pytest.approx([found["value"]["value"], found["random"]["value"]])
    assert run(tmp_path, capsys, "export", "game")["max_abs_difference"] < 1e-5
    run(tmp_path, capsys, "publish", "game", "--force")
    _, policy = stored_policy(made, "game", "challenger")
    assert batch.encoder.digest != policy.encoder.digest  # the build fits its own, the graph brings the world's
    assert returns_of_episodes(play(WORLDS["cartpole"].make(20), policy, 7)).mean() > 100


def test_the_same_seed_gives_the_same_candidate_and_another_another(tmp_path):
    made = product.project(tmp_path, CARTPOLE + DQN.replace("1200", "30").replace("3000", "50"))
    first, again, other = (flow.simulate(made, "game", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.candidate.policy != other.candidate.policy
    assert first.candidate.data != other.candidate.data
    assert flow.latest_candidate(made, "game") == other.candidate


def test_policy_gradients_learn_a_game_of_offers_and_the_build_has_what_was_offered(tmp_path):
    settings = "[problem.game.learn]\nlearner = 'ppo'\nsettings = { episodes = 30 }\n"
    made = product.project(tmp_path, OFFERS + settings + "[problem.game.simulate]\njudged = 4\nepisodes = 3\n")
    told = []
    found = flow.simulate(made, "game", "offers", progress=lambda done, total, figures: told.append((done, total)))
    assert found.value.low > found.random.high
    assert found.random.value == pytest.approx(100, abs=12)  # 4 sums of 200 coins have a mean error of 3.5
    assert told[-1] == (30, 30)
    batch = timeline.load(Path(found.candidate.build)).batch
    assert (batch.mask.sum(axis=1) == 2).all()
    assert batch.terminated.sum() == 8
    flow.export(made, "game")


def test_a_density_of_torques_is_learned_and_logged_with_its_density(tmp_path):
    learner = "[problem.game.learn]\nlearner = 'td3'\nsettings = { batch_size = 32, hidden = [8] }\n"
    turns = "[problem.game.simulate]\njudged = 3\nepisodes = 1\nsettings = { decisions = 350, random = 300 }\n"
    made = product.project(tmp_path, PENDULUM + learner + turns)
    found = flow.simulate(made, "game", "pendulum")
    built = timeline.load(Path(found.candidate.build))
    assert built.counts.truncated == 6
    ours = by_the_policy(built)
    policy = learn.load(Path(found.candidate.directory) / "policy")
    batch, _ = flow.encoded_by(policy.encoder, built)
    assert policy.target(batch).density(batch.action)[ours] == pytest.approx(batch.propensity[ours], rel=1e-4)
    assert batch.propensity[~ours] == pytest.approx(1 / 4)
    assert flow.export(made, "game")[1] < 1e-5


@pytest.mark.parametrize(
    ("toml", "world", "words"),
    [
        (CARTPOLE, "cartpol", "unknown world 'cartpol'.*cartpole"),
        (CARTPOLE, "", "unknown world ''.*one of cartpole"),
        (CARTPOLE, "acrobot", 'actions is another one.*"left", "none", "right"'),
        (PENDULUM.replace("-2.0", "-3.0"), "pendulum", r"actions is another one.*low = \[-2.0\]"),
        (
            CARTPOLE.replace('reward = "reward"', 'reward = "clicks"'),
            "cartpole",
            'reward is another.*reward = "reward"',
        ),
        (CARTPOLE.replace("200", "100"), "cartpole", "horizon is another one.*horizon = 200"),
        (CARTPOLE.replace("cart_pos", "pos"), "cartpole", "context is another one.*cart_position"),
        (CARTPOLE.replace("horizon =", "discount = 0.9\nhorizon ="), "cartpole", "discount is another one"),
        (PENDULUM, "pendulum", "DQN learns over candidates.*use sac"),
        (CARTPOLE + "[problem.game.learn]\nlearner = 'sac'", "cartpole", "SAC learns over numbers.*use dqn or ppo"),
        (CARTPOLE + "[problem.game.learn]\nlearner = 'bc'", "cartpole", "BC learns from logs, not while it plays"),
        (PENDULUM + "[problem.game.learn]\nlearner = 'td3-bc'", "pendulum", "TD3BC learns from logs"),
        (CARTPOLE + "[problem.game.learn]\nlearner = 'pro'", "cartpole", "unknown learner 'pro'.*ppo"),
        (CARTPOLE + "[problem.game.simulate.settings]\nround = 3", "cartpole", "turns of DQN: unknown setting round"),
        (CARTPOLE + "[problem.game.simulate.settings]\nrounds = 0", "cartpole", "turns of DQN: rounds is 0"),
    ],
)
def test_what_can_not_be_played_is_refused_by_name(tmp_path, toml, world, words):
    made = product.project(tmp_path, toml)
    with pytest.raises(ConfigError, match=words):
        flow.simulate(made, "game", world)
    with pytest.raises(NotFoundError):
        flow.latest_candidate(made, "game")


def test_a_learner_that_plays_alone_is_not_trained_on_a_log(tmp_path):
    with pytest.raises(ConfigError, match=r"ppo learns from its own decisions.*steersman simulate"):
        flow.train(product.project(tmp_path, CARTPOLE + "[problem.game.learn]\nlearner = 'ppo'"), "game")
