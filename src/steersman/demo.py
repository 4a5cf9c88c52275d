"""Closed loops on worlds whose truth is known, through the verbs and a real server."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
from msgspec import Struct

from steersman import config, flow
from steersman.config import Project
from steersman.core.decision import Problem
from steersman.core.errors import ConfigError, ConflictError, Error, GateError
from steersman.core.report import Estimate
from steersman.flow import online, perturbing, sampling
from steersman.progress import bar
from steersman.worlds import cartpole as world
from steersman.worlds import open_bandit as fashion

CARTPOLE = "cartpole"
CARTPOLE_TOML = """\
# CartPole: push a cart left or right so that the pole on it stays up. 200 steps are the most there are.

[problem.cartpole]
reward = "upright"           # each step that began upright is worth 1, the last one too
wait_s = 1
horizon = 200
actions = { kind = "one", names = ["left", "right"] }

[problem.cartpole.context]
cart_position = "number"
cart_velocity = "number"
pole_angle = "number"
pole_velocity = "number"

[problem.cartpole.learn]
learner = "dqn"
explorer = { kind = "epsilon", epsilon = 0.1 }
"""

DRAINED_S = 60.0
"""How long the end of a server is waited for."""


class Interval(Struct, frozen=True):
    """An estimate without its diagnostics."""

    value: float
    low: float
    high: float


class LiveReturn(Struct, frozen=True):
    """Mean return of n episodes that a version really served."""

    mean: float
    n: int


class Round(Struct, frozen=True):
    """One round of the loop: what the log promised of a version, and what the version then did.

    Attributes:
        round: from 1.
        version: that served the live episodes.
        decisions: in the log when the version was trained and judged.
        estimate: of its value, from the log alone, before anyone saw it.
        baseline: value of the policies that made the log.
        gate: pass, fail or not identified.
        live_return: of the version's first live episodes.
    """

    round: int
    version: int
    decisions: int
    estimate: Interval
    baseline: float
    gate: str
    live_return: LiveReturn


class CartPoleRun(Struct, frozen=True):
    """All rounds, and where everything is."""

    rounds: tuple[Round, ...]
    directory: str


Tell = Callable[[Round], None]


def cartpole(directory: Path, *, rounds: int, decisions: int, episodes: int, seed: int,
             tell: Tell = lambda _: None, quiet: bool = True) -> CartPoleRun:  # fmt: skip
    """The closed loop on CartPole-v1 cut at 200 steps, over real HTTP.

    Args:
        directory: of the project; must be empty or absent.
        rounds: how often to train, judge, publish and serve.
        decisions: of the uniform-random policy, before the first round.
        episodes: live episodes of each new version; they join the log of the next round.
        seed: of the world and of training.
        tell: called after each round.
        quiet: no progress bars.
    """
    project = fresh(directory, CARTPOLE_TOML)
    flow.publish_uniform(project, CARTPOLE)
    done: list[Round] = []
    with server(project) as url:
        with bar("v1 decides at random", quiet=quiet) as progress:
            world.play(url, CARTPOLE, decisions=decisions, seed=seed, prefix="r0", progress=progress)
        for number in range(1, rounds + 1):
            done.append(_round(project, url, number, episodes, seed, quiet))
            tell(done[-1])
    return CartPoleRun(tuple(done), str(directory))


def _round(project: Project, url: str, number: int, episodes: int, seed: int, quiet: bool) -> Round:
    wait_over = project.policy(CARTPOLE).problem.wait_s
    time.sleep(wait_over)  # the last decisions enter the batch once their outcomes can not come any more
    built = flow.build(project, CARTPOLE)
    with bar(f"round {number}: train", quiet=quiet) as progress:
        flow.train(project, CARTPOLE, seed=seed, progress=progress)
    report = flow.judge(project, CARTPOLE, seed=seed)
    flow.export(project, CARTPOLE)
    try:
        version = flow.publish(project, CARTPOLE).number
        flow.promote(project, CARTPOLE, str(version))
    except GateError:  # nothing is released: the version that serves goes on
        version = flow.champion(project, CARTPOLE)
    wait_for_version(url, CARTPOLE, version)
    with bar(f"round {number}: v{version} decides", quiet=quiet) as progress:
        played = world.play(
            url, CARTPOLE, episodes=episodes, seed=seed + 1000 * number, prefix=f"r{number}", progress=progress
        )
    headline = report.headline
    return Round(
        round=number,
        version=version,
        decisions=built.decisions,
        estimate=Interval(headline.value, headline.low, headline.high),
        baseline=report.baseline.value,
        gate="pass" if report.passed else next(v.status for v in report.verdicts if v.status != "pass"),
        live_return=LiveReturn(float(np.mean(played.returns)), len(played.returns)),
    )


class Evolving(Struct, frozen=True):
    """One round of a live policy that evolves in a world.

    Attributes:
        round: from 1.
        version: that decided, itself or its perturbed copies.
        mean: return of the round's episodes; episodes: how many.
        failures: requests that were not answered.
        updated: the version that the log of the round became; None: nothing was learned, refused says why.
    """

    round: int
    version: int
    mean: float
    episodes: int
    failures: int
    updated: int | None
    refused: str = ""


def evolve(project: Project, name: str, *, rounds: int, episodes: int, seed: int,
           tell: Callable[[Evolving], None] = lambda _: None) -> tuple[Evolving, ...]:  # fmt: skip
    """CartPole against a real server: perturbed copies of the champion play, the log moves it, and so on.

    Args:
        name: of a problem of CartPole whose champion has a search beside it.
        rounds: how often to play and to update.
        episodes: of a round.
        seed: of the world.
        tell: called after each round.
    Raises:
        ConfigError: the problem is another one, or the server asks for a key or speaks TLS.
        NotFoundError: its champion has no search.
        GateError: the copies were stopped in the last round that was told.
    """
    problem = project.policy(name).problem
    _check_cartpole(problem)
    if project.serve.keys or project.serve.tls_certificate:
        raise ConfigError(
            "carts play without a key and without TLS",
            hint="leave keys and tls_certificate out of [serve]",
            field="serve",
        )
    perturbing.served_of(project, name, flow.champion(project, name))
    done: list[Evolving] = []
    with server(project) as url:
        for number in range(1, rounds + 1):
            version = flow.champion(project, name)
            wait_for_version(url, name, version)
            played = world.play(
                url, name, episodes=episodes, seed=seed + 1000 * number, prefix=f"{seed}-v{version}-{number}"
            )
            time.sleep(problem.wait_s)  # the last decisions enter the batch once their outcomes can not come any more
            updated, refused, failed = None, "", None
            try:
                made = online.update(project, name)
                if isinstance(made, online.Updated):
                    updated = made.version
                else:
                    refused = f"{made.verdict}: {made.reason}"
            except (ConflictError, GateError) as error:
                refused, failed = error.message, error
            mean = float(np.mean(played.returns))
            done.append(Evolving(number, version, mean, len(played.returns), played.failures, updated, refused))
            tell(done[-1])
            if failed and sampling.stopped(project, name):  # no round after it would have copies
                raise failed
    return tuple(done)


def _check_cartpole(problem: Problem) -> None:
    """Raise ConfigError if a problem is not the one that the world's requests are for."""
    fields, names = set(problem.context), set(getattr(problem.actions, "names", ()))
    if problem.candidate or fields != set(world.FIELDS) or names != set(world.ACTIONS):
        raise ConfigError(
            f"{problem.name} is no problem of CartPole: its context is {', '.join(sorted(fields)) or 'empty'}",
            hint=f"context: {', '.join(world.FIELDS)}; names of the actions: {', '.join(world.ACTIONS)}",
            field=f"problem.{problem.name}",
        )


class OpenBanditRun(Struct, frozen=True):
    """Estimates of a policy that never decided in the log, beside what it got when it did.

    Attributes:
        estimates: of the Bernoulli Thompson sampling policy, from the uniform-random log.
        truth: its click rate in its own log; truth_interval: of that rate, at 95%.
        baseline: click rate of the uniform-random log; baseline_interval: of that rate, at 95%.
        page: the report with pictures; empty: the `console` extra is not installed.
    """

    campaign: fashion.Name
    estimates: tuple[Estimate, ...]
    truth: float
    truth_interval: Interval
    baseline: float
    baseline_interval: Interval
    directory: str
    page: str


def open_bandit(directory: Path, *, campaign: fashion.Name, cache: Path, seed: int) -> OpenBanditRun:
    """Judge a production policy on a log of real decisions that another policy made.

    Args:
        directory: of the project; must be empty or absent.
        campaign: all, men or women.
        cache: where the data set's archive lies, or is fetched to.
        seed: of the evaluation.
    """
    archive = fashion.fetch(cache)
    project = fresh(directory, fashion.toml(campaign))
    source = fashion.write_csv(archive, "random", campaign, project.root / "random.csv")
    mapping = fashion.mapping(project.root / "mapping.toml")
    flow.import_log(project, fashion.NAME, flow.read_source(source, mapping))
    built = flow.build(project, fashion.NAME)
    policy = fashion.bernoulli_ts(archive, campaign)
    report = flow.judge_policy(project, fashion.NAME, policy, f"bernoulli-ts {campaign}", seed=seed)
    page = ""
    if flow.drawable():
        page = str(flow.draw(project, fashion.NAME, "bernoulli-ts", report, project.root / "report.html"))
    truth = fashion.click_rate(archive, "bts", campaign)
    return OpenBanditRun(
        campaign=campaign,
        estimates=report.estimates,
        truth=truth.value,
        truth_interval=Interval(truth.value, truth.low, truth.high),
        baseline=report.baseline.value,
        baseline_interval=Interval(report.baseline.value, report.baseline.low, report.baseline.high),
        directory=built.directory,
        page=page,
    )


def fresh(directory: Path, toml: str) -> Project:
    """A new project with this steersman.toml.

    Raises:
        ConflictError: the directory has something in it; it is left alone.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConflictError(f"{directory} is not empty", hint="name another one with --directory")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / config.FILE).write_text(toml, encoding="utf-8")
    return config.load(directory)


def free_directory(parent: Path) -> Path:
    """The first of parent/1, parent/2, ... that is not there."""
    number = 1
    while (parent / str(number)).exists():
        number += 1
    return parent / str(number)


@contextlib.contextmanager
def server(project: Project) -> Iterator[str]:
    """`steersman serve` as its own process on a free port; gives its URL, drains it at the end.

    Raises:
        Error: it did not start, or did not drain.
    """
    command = [sys.executable, "-m", "steersman", "serve", "--project", str(project.root), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise Error("the server ended before it was ready", hint=f"see: {' '.join(command)}")
        told = msgspec.json.decode(line)
        if "url" not in told:  # it refuses as every command does
            raise Error(f"the server did not start: {told['error']}", hint=told["hint"], field=told["field"])
        yield told["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        code = _ended(process)
    if code != 0:
        raise Error(f"the server ended with exit code {code}")


def _ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(DRAINED_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Error(f"the server did not drain within {DRAINED_S:g} s", hint="lower drain_s of [serve]") from None


def wait_for_version(url: str, policy: str, version: int, timeout_s: float = 30.0) -> None:
    """Return once the server answers with this version.

    Raises:
        Error: it does not within timeout_s.
    """
    place = urlsplit(url)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):  # not now, then
            connection.request("GET", "/v1/status")
            status = msgspec.json.decode(connection.getresponse().read())
            if status["policies"][policy]["version"] == version:
                return
        time.sleep(0.05)
    raise Error(f"the server did not swap to {policy}@{version} within {timeout_s:g} s", hint=f"see {url}/v1/status")
