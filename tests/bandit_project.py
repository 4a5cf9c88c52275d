"""A project with a log of single decisions for tests: what is better depends on the hour."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from product import project
from steersman import config, flow
from steersman.core.decision import Candidate, Decision, Outcome
from steersman.log import Pen

S = 1_000_000
DAY = 86_400
ACTIONS = ("early", "late", "never")
TOML = """\
[problem.offer]
reward = "clicks - 3 * complaints"
wait_s = 0
actions = { kind = "one", names = ["early", "late", "never"] }

[problem.offer.context]
hour = "number"

[problem.offer.learn]
validation = 0.2
settings = { steps = 400, hidden = [16], learning_rate = 0.01, batch_size = 128 }

[problem.offer.gates]
min_ess = 50
"""


def offers(directory: Path, toml: str = TOML, n: int = 1500) -> config.Project:
    """A project with version 1, the uniform policy, and a build of n of its decisions, each of a unit of its own."""
    made = project(directory, toml)
    write(made, 0, n)
    flow.build(made, "offer", as_of=1000 * DAY * S)
    return made


def write(made: config.Project, day: int, n: int) -> None:
    """n decisions of the uniform policy on a day; `early` is right before noon, `late` after."""
    random = np.random.default_rng(day)
    with Pen(made.log_directory) as pen:
        for unit in range(n):
            id, at = f"d{day}-{unit}", (day * DAY + unit) * S
            hour, action = float(random.integers(24)), ACTIONS[random.integers(3)]
            right = action == ("early" if hour < 12 else "late")
            metrics = {"clicks": float(random.random() < (0.7 if right else 0.2)), "complaints": 0.02}
            decision = Decision(
                id=id, problem="offer", unit=f"u{day}-{unit}", at=at, context={"hour": hour},
                candidates=tuple(Candidate(id=name) for name in ACTIONS), action=action, propensity=1 / 3, version=1,
            )  # fmt: skip
            outcome = Outcome(id=f"o{id}", decision=id, at=at, metrics=metrics, ends="terminated")
            pen.append([(b"D", msgspec.json.encode(decision)), (b"O", msgspec.json.encode(outcome))])
