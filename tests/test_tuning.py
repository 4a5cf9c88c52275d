"""Settings of a learner that do best on the validation units, from a study that goes on as if never interrupted."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bandit_project import TOML, offers
from steersman import cli, config, flow, timeline
from steersman.core.errors import ConfigError, MissingExtra, TrainingError
from steersman.flow import tuning

SPACE = """\

[problem.offer.tune.settings]
learning_rate = { low = 3e-5, high = 0.03, log = true }
hidden = { choices = [[16], [4, 4]] }
n_step = { low = 1, high = 8 }
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> config.Project:
    return offers(tmp_path_factory.mktemp("shop"), TOML.replace("steps = 400", "steps = 100") + SPACE)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler looks at what did well after two trials at random."""
    monkeypatch.setattr(tuning, "RANDOM_TRIALS", 2)


def tried_in(path: str) -> list[tuning.Tried]:
    return [msgspec.json.decode(line, type=tuning.Tried) for line in Path(path).read_bytes().splitlines()]


def test_a_study_tries_the_present_first_and_goes_on_as_if_never_interrupted(shop):
    whole = tuning.tune(shop, "offer", 6, seed=1)
    tried = tried_in(whole.study)
    # of steersman.toml, and defaults
    assert tried[0].settings == {"learning_rate": 0.01, "hidden": [16], "n_step": 5}
    assert whole.present == tried[0]
    assert len(tried) == 6 == whole.trials
    assert whole.best.score == max(one.score for one in tried if one.score is not None)
    assert all(
        3e-5 <= one.settings["learning_rate"] <= 0.03 and one.settings["hidden"] in ([16], [4, 4]) for one in tried
    )
    assert len({str(one.settings) for one in tried}) == 6
    path = Path(whole.study)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # killed while it wrote the fourth
    assert len(tried_in(tuning.tune(shop, "offer", 5, seed=1).study)) == 5
    assert path.read_bytes().splitlines(keepends=True) == lines[:5]
    again = tuning.tune(shop, "offer", 6, seed=1)
    assert again == whole
    assert tuning.tune(shop, "offer", 2, seed=1) == whole  # it has them: nothing is done again
    assert path.read_bytes().splitlines(keepends=True) == lines


def test_a_trial_is_judged_as_train_judges_what_it_keeps(shop):
    """So what the settings of steersman.toml scored is what their training scores."""
    found = tuning.tune(shop, "offer", 1)
    picked = flow.trained(shop, "offer", flow.Asked()).picked
    assert picked is not None and found.present is not None
    assert (found.present.score, found.present.step, found.present.estimate) == (
        picked.score, picked.step, picked.values[0]
    )  # fmt: skip
    built = timeline.load(Path(flow.latest_candidate(shop, "offer").build))
    held = timeline.parts(built.unit, built.draws, 0.2, 0.3)[1]
    assert found.present.estimate is not None
    assert found.present.estimate.n == len(np.unique(built.unit[held]))


def test_probabilities_are_judged_as_they_were_learned_where_no_explorer_is_named(tmp_path):
    toml = TOML.replace("steps = 400", "steps = 100").replace(
        "[problem.offer.learn]", '[problem.offer.learn]\nlearner = "awac"'
    )
    space = "\n[problem.offer.tune.settings]\nlearning_rate = { low = 3e-5, high = 0.03 }\n"
    made = offers(tmp_path, toml + space)
    found = tuning.tune(made, "offer", 1).present
    picked = flow.trained(made, "offer", flow.Asked()).picked
    assert picked is not None and found is not None
    assert (found.score, found.estimate) == (picked.score, picked.values[0])


def test_settings_that_learn_nothing_lose(shop):
    """A rate of 3e-5 leaves the net where it began; the best of six has a far larger one."""
    best = tuning.tune(shop, "offer", 6, seed=1).best
    assert best.settings["learning_rate"] > 3e-4
    assert best.score is not None and best.score > 0.45  # uniform has 0.31; the best there is, 0.61


def test_it_says_the_best_with_its_interval_and_that_this_is_too_good(shop, capsys):
    where = ["--project", str(shop.root), "--device", "cpu"]
    assert cli.main(["tune", "offer", "--trials", "6", "--seed", "1", *where]) == 0
    said = capsys.readouterr().out
    best = tuning.tune(shop, "offer", 6, seed=1).best
    assert best.estimate is not None
    assert f"learning_rate = {best.settings['learning_rate']:.4g}" in said
    assert f"{best.estimate.value:.4g} [{best.estimate.low:.4g}, {best.estimate.high:.4g}] (95%, dr on" in said
    assert "beware  the best of 6 on the same units is too good" in said
    assert cli.main(["tune", "offer", "--trials", "6", "--seed", "1", "--json", *where]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=tuning.Tuned).best == best


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate = { low = 3e-5", "learning_rat = { low = 3e-5", "settings.learning_rat is no setting of dqn"),
        ("validation = 0.2", "validation = 0.0", "there are none"),
        (SPACE, "", "nothing is to be tuned"),
        ("low = 3e-5", "low = 0.5", "low must be below high"),
        ("low = 3e-5", "low = 0.0", "low is 0, must be above 0 where log = true"),
        ("{ low = 1, high = 8 }", "{ low = 1, high = 8, choices = [1] }", "not both"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(shop, old, new, said):
    text = (shop.root / config.FILE).read_text()
    assert old in text
    with pytest.raises(ConfigError, match=said):
        tuning.tune(config.parse(tomllib.loads(text.replace(old, new)), shop.root), "offer", 1)


def test_trials_that_fail_are_told_and_if_all_do_it_is_an_error(shop):
    """A final rate above every first one is refused by the learner, whatever is tried."""
    text = (shop.root / config.FILE).read_text().replace("steps = 100", "steps = 100, final_learning_rate = 0.02")
    text = text.replace("learning_rate = 0.01", "learning_rate = 0.03").replace("high = 0.03", "high = 0.01")
    with pytest.raises(TrainingError, match=r"none of 3 trials has a score: .*final_learning_rate is 0.02"):
        tuning.tune(config.parse(tomllib.loads(text), shop.root), "offer", 3)


def test_without_the_extra_it_says_what_to_install(shop, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra) as error:
        tuning.tune(shop, "offer", 3, seed=77)
    assert 'pip install "steersman[tune]"' in error.value.hint
