"""The verb simulate: learn in a simulator, then play what was learned into a build, to be judged and served.

The decisions are no part of the project's log.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from msgspec import Struct, structs

from steersman import learn, log
from steersman.config import Project
from steersman.core.batch import Batch
from steersman.core.decision import Candidate as Offered
from steersman.core.decision import Decision, Ends, One, Outcome, Problem
from steersman.core.density import UniformBox
from steersman.core.errors import ConfigError, did_you_mean
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import Policy, Uniform, constant_scorer
from steersman.core.report import Estimate
from steersman.evaluate.intervals import Terms, estimate, ratio
from steersman.flow import places
from steersman.flow.building import Built, build
from steersman.flow.logs import opened, read_source
from steersman.flow.places import Candidate
from steersman.flow.training import Progress, with_explorer, write_candidate
from steersman.learn.play import play, returns_of_episodes
from steersman.worlds.simulators import WORLDS

METRIC = "reward"
"""What the reward of a problem is called that a simulator plays."""

_SECOND = 1_000_000


class Simulated(Struct, frozen=True):
    """What `simulate` came to.

    Attributes:
        candidate: the noun that was written.
        value: return of an episode of the policy as it is served, by playing: mean and interval of 95%.
        random: the same of decisions evenly at random.
    """

    candidate: Candidate
    world: str
    value: Estimate
    random: Estimate


def simulate(
    project: Project,
    name: str,
    world: str = "",
    *,
    seed: int = 0,
    progress: Progress = lambda done, total, figures: None,
) -> Simulated:
    """Learn by the configured learner from its own decisions in a world, and write the candidate.

    New episodes become the last build: `judged` by the policy as it is served, `judged` at random. None was learned
    from, all are judged on like a log.

    Args:
        world: a name in WORLDS; empty: the project says which.
        seed: of every random number.
        progress: told (done, in all, figures) now and then.
    Raises:
        ConfigError: no such world, the problem is another one, the learner can not play, a setting is wrong.
        MissingExtra: the world needs a package that is not installed.
    """
    asked, given = project.policy(name), project.policy(name).simulate
    title = world or given.world
    if title not in WORLDS:
        hint = did_you_mean(title, WORLDS) if title else f"--world, one of {', '.join(WORLDS)}"
        raise ConfigError(f"unknown world {title!r}", hint=hint, field="world")
    settings = learn.configure(asked.learn.learner, asked.learn.settings, simulator=True)
    asked = with_explorer(asked, settings)
    encoder = WORLDS[title].make(1).encoder
    _check_fits(asked.problem, title, encoder)
    learn.check_explorer(settings, encoder, asked.learn.serves)
    learned = learn.improve(WORLDS[title].make(given.episodes), settings, given.settings, seed, progress)
    policy = Policy(learned.encoder, learned.scorer, asked.learn.serves)
    chance = Policy(encoder, constant_scorer, UniformBox() if encoder.numbers else Uniform())
    judging = WORLDS[title].make(given.judged)
    starts = np.random.SeedSequence([seed, 1]).generate_state(2).tolist()
    played = [play(judging, one, start) for one, start in zip((policy, chance), starts, strict=True)]
    built = _logged(project, asked.problem, played)
    digest = places.digest_of(asked.problem, asked.learn, settings, title, given)
    place = places.place(
        project, "candidates", name, places.digest_of(built.digest, digest, seed, places.code_version())
    )
    learn.save(policy, place / "policy")
    candidate = write_candidate(place, asked, built.directory, built.digest, digest, seed)
    return Simulated(candidate, title, *(_mean(returns_of_episodes(batch)) for batch in played))


def _mean(returns: np.ndarray) -> Estimate:
    one = np.ones(len(returns))
    value, pull = ratio(returns, one)
    return estimate(Terms.of(value, pull, one), estimator="played", metric="return", level=0.95)


def _logged(project: Project, problem: Problem, played: list[Batch]) -> Built:
    """A build of the played episodes, by way of a log of their own that nobody keeps."""
    with places.scratch(project, "builds", problem.name) as aside:
        apart = structs.replace(project, log=structs.replace(project.log, directory=str(aside / "log")))
        lines, end = aside / "simulated.jsonl", _SECOND
        with lines.open("wb") as file:
            for line in _lines(problem.name, played):
                file.write(msgspec.json.encode(line) + b"\n")
                end = max(end, line.at + _SECOND)
        with opened(apart, "duckdb") as tables, log.Pen(apart.log_directory, durability="buffered") as pen:
            rejects = aside / "rejects.jsonl"
            log.import_log(pen, tables, read_source(lines), problem, rejects=rejects, max_reject_share=0.0)
        return build(apart, problem.name, as_of=end + round(problem.wait_s * _SECOND))


def _lines(name: str, played: list[Batch]) -> Iterator[Decision | Outcome]:
    """The episodes as they would stand in a log, those of the batches by turns, one begun after the other.

    A decision a second, an outcome with it; so no half of the window has more of one policy than the other has.
    """
    for which, batch in enumerate(played):
        encoder = batch.encoder
        scale = [(one.name, one.mean, one.std) for one in encoder.context if isinstance(one, Continuous)]
        first = np.flatnonzero(np.diff(batch.unit, prepend=-1))
        step = np.arange(len(batch)) - first[batch.unit]
        begun = (batch.unit * len(played) + which) * int(max(step) + 1)
        for row in range(len(batch)):
            unit = f"{which}-{batch.unit[row]}"
            decision, at = f"{unit}-{step[row]}", int(begun[row] + step[row]) * _SECOND
            values = batch.context[row, ::2].astype(float).tolist()
            offered = np.flatnonzero(batch.mask[row]).tolist()
            yield Decision(
                id=decision,
                problem=name,
                unit=unit,
                at=at,
                context={field: value * std + mean for (field, mean, std), value in zip(scale, values, strict=True)},
                candidates=tuple(Offered(id=encoder.actions[place]) for place in offered),
                action=tuple(batch.action[row].tolist()) if batch.numbers else encoder.actions[batch.action[row]],
                propensity=float(batch.propensity[row]),
            )
            ends: Ends | None = None if batch.next[row] >= 0 else "terminated" if batch.terminated[row] else "truncated"
            metrics = {METRIC: float(batch.reward[row])}
            yield Outcome(id=f"{decision}-o", decision=decision, at=at, metrics=metrics, ends=ends)


def _check_fits(problem: Problem, title: str, encoder: Encoder) -> None:
    """Raise ConfigError unless the problem is what the world asks, with the lines that make it so."""
    box, steps = encoder.numbers, WORLDS[title].steps
    if box is None:
        names = ", ".join(f'"{action}"' for action in encoder.actions)
        actions, fits = f'actions = {{ kind = "one", names = [{names}] }}', False
        if isinstance(problem.actions, One):
            fits = sorted(problem.actions.names) == sorted(encoder.actions)
    else:
        bounds = f"low = {list(box.low)}, high = {list(box.high)}"
        actions, fits = f'actions = {{ kind = "numbers", {bounds} }}', problem.actions == box
    context = {one.name: "number" for one in encoder.context}
    fields = ", ".join(f'{field} = "number"' for field in context)
    plain: dict[str, object] = {
        "discount": 1.0,
        "discount_unit_s": None,
        "horizon_s": None,
        "shaping": {},
        "default_outcome": {},
    }
    laws = [
        ("actions", fits, actions),
        ("reward", problem.reward == METRIC, f'reward = "{METRIC}"'),
        ("horizon", problem.horizon == steps, f"horizon = {steps}"),
        ("context", problem.context == context, f"context = {{ {fields} }}"),
        *((key, getattr(problem, key) == value, f"nothing for {key}") for key, value in plain.items()),
    ]
    for key, holds, law in laws:
        if not holds:
            raise ConfigError(
                f"problem {problem.name} is not what the world {title} asks: {key} is another one",
                hint=f"in [problem.{problem.name}] write {law}",
                field=f"problem.{problem.name}.{key}",
            )
