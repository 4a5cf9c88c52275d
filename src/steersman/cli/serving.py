"""Commands from a candidate to decisions: projects, versions, servers, replays."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys

from rich.table import Table
from rich.text import Text

from steersman import config, flow
from steersman.cli.show import estimate_line, out, print_json, show, split
from steersman.core.decision import Numbers
from steersman.core.errors import ConfigError, NotFoundError


def init(options: argparse.Namespace) -> None:
    bounds = options.low, options.high
    box = Numbers(*(tuple(bound or ()) for bound in bounds)) if any(bounds) else None
    project = flow.init(options.directory, options.name, box)
    path = project.root / config.FILE
    show(
        options,
        {"config": str(path), "warehouse": project.warehouse_url, "policy": options.name, "version": 1},
        f"wrote  {path}",
        f"stored {options.name}@1, the uniform-random policy, in {project.warehouse_url}",
        f"next   steersman serve --project {options.directory}",
    )


def serve(options: argparse.Namespace) -> int:
    project = config.only_models(options.models) if options.models else config.load(options.project)
    names = ("port", "grpc_port", "host")
    changes = {**{name: getattr(options, name) for name in names}, "explicit": options.explicit or None}
    changed = {name: value for name, value in changes.items() if value is not None}
    return flow.serve(project, on_ready=lambda url, grpc: _show_ready(options, project, url, grpc), **changed)


def key(options: argparse.Namespace) -> None:
    key = secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    roles = ", ".join(f'"{role}"' for role in options.role)
    name = json.dumps(options.name, ensure_ascii=False)  # TOML quotes as JSON does
    show(
        options,
        {"key": key, "sha256": digest, "roles": options.role},
        f"key    {key}   (it is shown once: the digest below is all that is kept)",
        f"[serve.keys.{name}]",
        f'sha256 = "{digest}"',
        f"roles = [{roles}]",
    )


def _show_ready(options: argparse.Namespace, project: config.Project, url: str, grpc: str) -> None:
    show(
        options,
        {"url": url, "grpc": grpc or None, "policies": sorted(project.policies)},
        f"serving {', '.join(sorted(project.policies)) or project.models} on {url}   (stop with Ctrl-C: it drains)",
        *([f"grpc    {grpc}"] if grpc else []),
        *(
            f"try     curl -d '{flow.example_request(project, name)}' {url}/v1/decide/{name}"
            for name in project.policies
        ),
    )
    sys.stdout.flush()


def publish(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    if options.onnx:
        number = flow.publish_model(project, options.name, options.onnx)
        place = f"{project.models_url}/{options.name}/{number}"
        show(options, {"name": options.name, "number": number, "place": place}, f"stored  {place}; servers follow")
        return
    version = flow.publish(project, options.name, force=options.force)
    forced = "   forced: a gate had failed" if version.forced else ""
    show(
        options,
        version,
        Text.assemble(f"stored  {version.name}@{version.number}   digest {version.digest[:12]}", (forced, "yellow")),
        *([] if flow.drawable() else ['page    none is stored with it: pip install "steersman[console]"']),
        f"next    steersman promote {version.name}",
    )


def promote(options: argparse.Namespace) -> None:
    name, version = split(options.name)
    number = flow.promote(config.load(options.project), name, version or flow.CHALLENGER)
    show(
        options,
        {"policy": name, "champion": number},
        f"champion  {name}@{number}; running servers swap to it within their poll_s",
        f"back      steersman rollback {name}",
    )


def rollout(options: argparse.Namespace) -> None:
    name, version = split(options.name)
    project = config.load(options.project)
    if options.report:
        report = flow.shadow_report(project, name)
        show(options, report, *_shadow_lines(report))
        return
    if options.end:
        now = flow.back_out(project, name)
    elif options.shadow or options.share is not None:
        if options.share == 0:
            raise ConfigError("a share of 0 is no rollout", hint="--shadow scores without answering, --end ends it")
        now = flow.roll_out(project, name, version or "", options.share or 0.0)
    else:
        past = flow.rollouts(project, name)
        if not past:
            raise NotFoundError(f"{name} never had a rollout", hint=f"steersman rollout {name}@VERSION --share 0.1")
        now = past[-1]
    show(
        options,
        now,
        f"{now.state}  {name}@{now.candidate} gets {now.share:.3g} of the units, {name}@{now.baseline} the others",
        *([f"next    steersman promote {name}@{now.candidate}   or   steersman rollout {name} --end"] * now.running),
    )


def _shadow_lines(report: flow.ShadowReport) -> list[str]:
    """What a version did in the shadow, for people."""
    means = (report.same, report.agreement, report.propensity, report.difference)
    return [
        f"shadow  {report.problem}@{report.candidate} beside {report.problem}@{report.baseline}: "
        f"{report.decisions:,} decisions of {report.units:,} units",
        *(estimate_line(one) for one in means if one),
        *([f"not estimated   {report.refused}"] if report.refused else []),
    ]


def _rollout_words(row: flow.PolicyStatus) -> str:
    """Who gets which version, in a few words."""
    if row.rollout is None:
        return ""
    name = f"rollout {row.problem}@{row.rollout.candidate} beside {row.rollout.baseline}   {row.rollout.state}: "
    if row.shadow is None:
        return f"{name}it gets {row.rollout.share:.3g} of the units"
    agreement = f", agreement {row.shadow.agreement.value:.3g}" if row.shadow.agreement else ""
    return f"{name}it decided {row.shadow.decisions:,} too{agreement}"


def rollback(options: argparse.Namespace) -> None:
    number = flow.rollback(config.load(options.project), options.name)
    show(options, {"policy": options.name, "champion": number}, f"champion  {options.name}@{number} again")


def replay(options: argparse.Namespace) -> int:
    found = flow.replay(config.load(options.project), options.decision)
    verdict = ("identical", "green") if found.identical else ("different", "red")
    show(
        options,
        found,
        f"logged  {found.logged_action}   propensity {found.logged_propensity!r}   version {found.version}",
        Text.assemble(f"again   {found.action}   propensity {found.propensity!r}   ", verdict),
    )
    return 0 if found.identical else 1


def status(options: argparse.Namespace) -> None:
    rows = flow.status(config.load(options.project))
    if options.json:
        print_json({"policies": rows})
        return
    table = Table("problem", "versions", "aliases", "last build", "last candidate", box=None)
    for row in rows:
        aliases = "  ".join(f"{alias} {number}" for alias, number in sorted(row.aliases.items()))
        versions = ", ".join(map(str, row.versions)) or "none yet"
        table.add_row(row.problem, versions, aliases, row.build or "none yet", row.candidate or "none yet")
    out.print(table)
    for words in filter(None, map(_rollout_words, rows)):
        out.print(words)
    for row in rows:
        if row.sampling:
            out.print(f"{row.problem}: perturbed copies {row.sampling}")
            if row.sampling.startswith("stopped"):
                out.print(f"next  steersman es resume {row.problem}   or   steersman rollback {row.problem}")
