"""The verbs, in the order of the loop: serve, build, train, evaluate, export, publish, promote, rollback, replay.

Each verb works alone on what is on the disk, so that any scheduler can call it.
"""

from __future__ import annotations

import importlib
import secrets
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from steersman import config, learn, timeline
from steersman.config import Project
from steersman.core.decision import NAME, Numbers
from steersman.core.density import UniformBox
from steersman.core.errors import ConfigError, ConflictError, GateError, MissingExtra, NotFoundError
from steersman.core.features import Encoder
from steersman.core.policy import Uniform
from steersman.core.report import Report
from steersman.core.version import Parents, Rollout, Version
from steersman.engine.disk import replacing
from steersman.flow import perturbing, places, sampling
from steersman.flow.building import Built, build
from steersman.flow.judging import draw, encoded_by, judge, judge_policy
from steersman.flow.logs import Replayed, compact, import_log, read_source, replay, replay_all
from steersman.flow.places import Candidate, code_version, latest_candidate, now_us
from steersman.flow.serving import publish_model, serve
from steersman.flow.shadowing import ShadowReport, report_on, shadow_report
from steersman.flow.simulating import Simulated, simulate
from steersman.flow.training import Asked, Trained, train, trained
from steersman.learn.run import rank
from steersman.log import Behavior
from steersman.models import onnx
from steersman.models.graph import Graph
from steersman.models.warehouse import CHAMPION, Draft, Warehouse

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "Asked",
    "Behavior",
    "Built",
    "Candidate",
    "PolicyStatus",
    "Progress",
    "Replayed",
    "ShadowReport",
    "Simulated",
    "Trained",
    "back_out",
    "build",
    "champion",
    "code_version",
    "compact",
    "draw",
    "drawable",
    "example_request",
    "export",
    "import_log",
    "init",
    "judge",
    "judge_policy",
    "latest_candidate",
    "now_us",
    "promote",
    "publish",
    "publish_model",
    "publish_uniform",
    "rank",
    "read_source",
    "replay",
    "replay_all",
    "roll_out",
    "rollback",
    "rollouts",
    "serve",
    "shadow_report",
    "simulate",
    "status",
    "train",
    "trained",
]

Progress = Callable[[int, int, dict[str, float]], None]

CHALLENGER = "challenger"


class PolicyStatus(Struct, frozen=True):
    """One row of `status`.

    Attributes:
        sampling: why the perturbed copies of the champion may not decide; empty: they may, or it has none.
        rollout: of another version beside the champion; None: the champion decides everything.
        shadow: what the version in the shadow did so far, if there is one.
    """

    problem: str
    versions: tuple[int, ...]
    aliases: dict[str, int]
    build: str
    candidate: str
    sampling: str = ""
    rollout: Rollout | None = None
    shadow: ShadowReport | None = None


# graph and version


def export(project: Project, name: str) -> tuple[Path, float]:
    """Write the last candidate as ONNX with the preprocessing inside, if it gives the policy's own numbers.

    Returns:
        the file, and the largest |difference| between graph and policy over the whole batch.
    Raises:
        ParityError: they differ by more than 1e-5 somewhere; nothing is written.
    """
    candidate = latest_candidate(project, name)
    place = Path(candidate.directory)
    policy = learn.load(place / "policy")
    built = timeline.load(Path(candidate.build))
    graph = onnx.compose(policy.encoder, learn.to_onnx(policy))
    batch, rows = encoded_by(policy.encoder, built)
    difference = onnx.check_parity(Graph(graph), policy.scorer, rows, batch)
    path = place / "model.onnx"
    places.write_bytes(path, graph)
    return path, difference


def publish(project: Project, name: str, *, force: bool = False) -> Version:
    """Store the last candidate as the next version and call it the challenger.

    Raises:
        GateError: a gate failed, or nobody judged it, and `force` is not set. A forced version says so for ever.
        NotFoundError: it was not exported.
    """
    candidate = latest_candidate(project, name)
    place = Path(candidate.directory)
    if not (place / "model.onnx").exists():
        raise NotFoundError(f"{name}: the last candidate has no graph yet", hint=f"steersman export {name}")
    report = _read_report(place)
    failed = "nobody judged it" if report is None else _failures(report)
    if failed and not force:
        raise GateError(f"{name}: not published: {failed}", hint=f"steersman evaluate {name}, or publish --force")
    warehouse = Warehouse(project.warehouse_url)
    made = learn.load(place / "policy")
    draft = Draft(
        name=name,
        encoder=made.encoder,
        explorer=made.explorer,
        parents=Parents(data=candidate.data, config=candidate.config, code=code_version()),
        report=report,
        forced=bool(failed),
        seed=secrets.token_hex(16),
        made_at=now_us(),
    )
    page = "" if report is None or not drawable() else _page(report, name)
    version = warehouse.publish(draft, (place / "model.onnx").read_bytes(), page)
    warehouse.set_alias(name, CHALLENGER, version.number, now_us())
    return version


def drawable() -> bool:
    """Whether pictures can be drawn here, and so a page be stored with a version: the `console` extra is installed."""
    try:
        importlib.import_module("steersman.charts")
    except MissingExtra:
        return False
    return True


def _page(report: Report, name: str) -> str:
    from steersman.flow.report_page import page

    return page(report, name)


def publish_uniform(project: Project, name: str) -> Version:
    """Store the uniform-random policy: what a product without a version begins with, and explores most."""
    policy = project.policy(name)
    actions = policy.problem.actions
    box = actions if isinstance(actions, Numbers) else None
    encoder = Encoder(actions=tuple(sorted(getattr(actions, "names", ()))), numbers=box)
    warehouse = Warehouse(project.warehouse_url)
    draft = Draft(
        name=name,
        encoder=encoder,
        explorer=UniformBox() if box else Uniform(),
        parents=Parents(data="", config=places.digest_of(policy.problem), code=code_version()),
        seed=secrets.token_hex(16),
        made_at=now_us(),
    )
    version = warehouse.publish(draft, onnx.compose(encoder, None))
    warehouse.set_alias(name, CHAMPION, version.number, now_us())
    return version


def champion(project: Project, name: str) -> int:
    """Number of the version that decides now."""
    return Warehouse(project.warehouse_url).resolve(name, CHAMPION)


def promote(project: Project, name: str, version: str = CHALLENGER, alias: str = CHAMPION) -> int:
    """Move an alias to a version; running servers swap to the champion by themselves."""
    project.policy(name)
    warehouse = Warehouse(project.warehouse_url)
    number = _resolved(warehouse, name, version)
    warehouse.set_alias(name, alias, number, now_us())
    return number


def _resolved(warehouse: Warehouse, name: str, version: str) -> int:
    if version == CHALLENGER and CHALLENGER not in warehouse.aliases(name) and warehouse.numbers(name):
        hint = f"steersman publish {name} stores one; or name a version, as {name}@1"
        raise NotFoundError(f"{name} has no challenger", hint=hint)
    return warehouse.resolve(name, version)


def rollback(project: Project, name: str, alias: str = CHAMPION) -> int:
    """Move an alias back to where it was before its last move."""
    project.policy(name)
    return Warehouse(project.warehouse_url).rollback(name, alias, now_us())


def roll_out(project: Project, name: str, version: str = "", share: float = 0.0) -> Rollout:
    """Let a version decide a share of the units beside the champion, or none of them: it is in the shadow.

    Running servers follow. `promote` ends a rollout, and so does `back_out`.

    Args:
        version: number or alias; empty: that of the rollout that goes on, else the challenger.
        share: in [0, 1); 0: it scores what the champion decides, and nobody is told.
    """
    project.policy(name)
    warehouse = Warehouse(project.warehouse_url)
    now = warehouse.deployed(name)
    if not version and isinstance(now, Rollout):
        return warehouse.roll_out(name, now.candidate, share, now_us())
    return warehouse.roll_out(name, _resolved(warehouse, name, version or CHALLENGER), share, now_us())


def back_out(project: Project, name: str) -> Rollout:
    """End the rollout: the champion decides everything again."""
    project.policy(name)
    return Warehouse(project.warehouse_url).back_out(name, now_us())


def rollouts(project: Project, name: str) -> tuple[Rollout, ...]:
    """Every state of every rollout of a policy, oldest first."""
    project.policy(name)
    return Warehouse(project.warehouse_url).rollouts(name)


# the project, and looking back


def init(directory: Path, name: str, box: Numbers | None = None) -> Project:
    """Write a commented steersman.toml that runs, and store version 1 of its policy: uniform-random.

    Args:
        name: of the first problem.
        box: bounds of its actions, if these are numbers.
    Raises:
        ConfigError: the name is none for a problem; nothing is written.
        ConflictError: there is a steersman.toml already; it is left alone.
    """
    path = directory / config.FILE
    if path.exists():
        raise ConflictError(f"{path} is there already", hint="edit it, or name another directory")
    if not NAME.fullmatch(name):  # it stands in the text as it is
        hint = "letters, digits, - and _; it becomes a folder and a part of the URL"
        raise ConfigError(f"problem name {name!r} must match {NAME.pattern}", hint=hint, field="name")
    text = config.template(name, box)
    project = config.parse(tomllib.loads(text), directory.resolve())
    with replacing(path) as aside:  # with a file and no version init could not be run again
        aside.write_bytes(text.encode())
        publish_uniform(project, name)
    return project


def example_request(project: Project, name: str) -> str:
    """A decide request for the problem, as JSON: what a newcomer types first."""
    problem = project.policy(name).problem
    values: dict[str, float | str | list[str]] = {"number": 1, "auto": 1, "text": "a", "list": ["a"]}
    request: dict[str, Any] = {
        "unit": "u1",
        "context": {field: values[kind] for field, kind in problem.context.items()},
    }
    if not isinstance(problem.actions, Numbers) and not problem.actions.names:
        request["candidates"] = [{"id": "a"}, {"id": "b"}]
    return msgspec.json.encode(request).decode()


def status(project: Project) -> tuple[PolicyStatus, ...]:
    """Where each problem of the project stands."""
    return tuple(_status(project, name) for name in project.policies)


def _status(project: Project, name: str) -> PolicyStatus:
    warehouse = Warehouse(project.warehouse_url)
    now = warehouse.deployed(name)
    rollout = now if isinstance(now, Rollout) and now.running else None
    return PolicyStatus(
        problem=name,
        versions=tuple(warehouse.numbers(name)),
        aliases=warehouse.aliases(name),
        build=places.pointed(project, "builds", name),
        candidate=places.pointed(project, "candidates", name),
        sampling=_why_not(project, name, warehouse.aliases(name).get(CHAMPION)),
        rollout=rollout,
        shadow=report_on(project, rollout) if rollout and rollout.state == "shadow" else None,
    )


def _why_not(project: Project, name: str, champion: int | None) -> str:
    perturbed = champion is not None and perturbing.place(project, name, champion).exists()
    return sampling.why_not(project, name) if perturbed else ""


def _failures(report: Report) -> str:
    return "; ".join(f"{verdict.gate}: {verdict.reason}" for verdict in report.verdicts if verdict.status != "pass")


def _read_report(place: Path) -> Report | None:
    return places.read(place / "report.json", Report)
