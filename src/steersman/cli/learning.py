"""Commands from the log to a judged candidate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from steersman import config, flow
from steersman.cli.show import distribution_lines, out, print_json, report_lines, show, split, valued
from steersman.core.errors import ConfigError, GateError, SupportError
from steersman.flow import comparing, features, tuning
from steersman.progress import bar


def build(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    built = flow.build(project, options.name, since=options.since, until=options.until)
    counts = built.counts
    show(
        options,
        built,
        f"batch   {built.decisions:,} decisions   {counts.episodes:,} episodes of {counts.units:,} units   "
        f"digest {built.digest[:12]}",
        f"ends    {counts.terminated:,} terminated   {counts.truncated:,} truncated   {counts.open:,} still open   "
        f"{counts.begun:,} began before the window",
        f"left    {counts.waiting:,} decisions still wait   {counts.duplicates:,} duplicates   "
        f"{counts.deferred:,} never activated   {counts.too_long + counts.too_late:,} left out on demand",
        f"joined  {counts.outcomes:,} outcomes   {counts.late:,} late   "
        f"{counts.dangling:,} of no decision of this problem   {counts.without_outcome:,} decisions without outcome",
        *(
            [f"unused  {counts.off_list:,} outcomes about items that their list did not have"]
            if counts.off_list
            else []
        ),
        *([f"ahead   {built.ahead:,} decisions are stamped later than now: is a clock wrong?"] if built.ahead else []),
        *([f"guessed {counts.estimated:,} propensities are estimates, not logged"] if counts.estimated else []),
        f"next    steersman train {options.name}",
    )


def show_features(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    if options.report is None:
        found = features.features(project, options.name)
        show(options, found, *features.lines(found))
        return
    with bar(f"features {options.name}", quiet=options.json):
        found, path = features.report(project, options.name, None if options.report == Path() else options.report)
    show(options, found, f"wrote  {path}", *features.lines(found))


def train(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    others = flow.rank() > 0
    with bar(f"train {options.name}", quiet=options.json or others) as progress:
        asked = flow.Asked(options.seed, progress, options.tensorboard, options.add, options.resume, options.device)
        found = flow.trained(project, options.name, asked)
    if others:  # the first of several processes has the word
        return
    candidate = found.candidate
    show(
        options,
        candidate,
        f"trained {candidate.learner}, seed {candidate.seed}, on {Path(candidate.build).name}: {candidate.directory}",
        *([f"resumed after {found.resumed:,} of {found.steps:,} steps"] if found.resumed else []),
        *_picked_lines(found, project.policy(options.name).learn),
        *([f"events  {options.tensorboard}"] if options.tensorboard is not None else []),
        f"next    steersman evaluate {options.name}",
    )


def _picked_lines(found: flow.Trained, settings: config.LearnConfig) -> list[str]:
    """Which of the nets was kept, and why."""
    if found.picked is not None:
        best = found.picked.values[0]
        step = f"{found.picked.step:,} of {found.steps:,}"
        return [f"kept    step {step}: {best.estimator} {valued(best)} on {best.n:,} units"]
    if not settings.validation:
        where = f"[problem.{found.candidate.problem}.learn] validation = 0.1"
        return [f"no CPE  it needs validation units, and so does keeping the best net: {where}"]
    return [f"kept    the last step: no look had an estimate: {found.refused}"] if found.refused else []


def tune(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    with bar(f"tune {options.name}", quiet=options.json) as progress:
        found = tuning.tune(
            project, options.name, options.trials, seed=options.seed, progress=progress, device=options.device
        )
    best, tried = found.best, found.trials + found.failed
    if best.estimate is None:
        raise ConfigError("the best trial has no estimate")
    level = f"{best.estimate.level:.0%}"
    show(
        options,
        found,
        f"tried   {tried:,} settings, {found.failed:,} of them without a score: {found.study}",
        f"best    {_tried_line(best)} ({level}, {best.estimate.estimator} on {best.estimate.n:,} validation units)",
        *([f"now     {_tried_line(found.present)}"] if found.present is not None else []),
        f"beware  the best of {tried:,} on the same units is too good, and its interval does not know that",
        f"next    write them in [problem.{options.name}.learn] settings, then steersman train {options.name} and "
        f"steersman evaluate {options.name}, on units that had no part in this",
    )


def _tried_line(tried: tuning.Tried) -> str:
    settings = ", ".join(f"{name} = {_toml(value)}" for name, value in tried.settings.items())
    if tried.estimate is None:
        return f"{settings}   no score: {tried.failed}"
    return f"{settings}   {valued(tried.estimate)}"


def _toml(value: Any) -> str:
    """A setting as it stands in steersman.toml."""
    return f"{value:.4g}" if isinstance(value, float) else msgspec.json.encode(value).decode()


def evaluate(options: argparse.Namespace) -> int:
    name, version = split(options.name)
    project = config.load(options.project)
    with bar(f"evaluate {options.name}", quiet=options.json):
        report = flow.judge(project, name, version, seed=options.seed)
        wrote = []
        if options.report is not None:
            into = None if options.report == Path() else options.report
            wrote = [f"wrote           {flow.draw(project, name, version, report, into)}"]
    spread = distribution_lines(report.distribution) if options.distribution and report.distribution else []
    show(options, report, *report_lines(report), *spread, *wrote)
    if report.passed:
        return 0
    unknown = any(verdict.status == "not identified" for verdict in report.verdicts)
    return SupportError.exit_code if unknown else GateError.exit_code


def compare(options: argparse.Namespace) -> None:
    asked = [split(name) for name in options.names]
    problems = sorted({name for name, _ in asked})
    if len(problems) > 1:
        raise ConfigError(f"{' and '.join(problems)} are different problems", hint="compare versions of one problem")
    project = config.load(options.project)
    with bar(f"compare {problems[0]}", quiet=options.json):
        found = comparing.compare(project, problems[0], [version for _, version in asked], seed=options.seed)
        if options.report is not None:
            into = Path(f"compare-{problems[0]}.html") if options.report == Path() else options.report
            comparing.draw(found, into)
    if options.json:
        print_json(found)
        return
    head, rows = comparing.lines(found)
    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    out.print("judged on the same decisions" if found.same_rows else "judged apart: no build is at hand")
    for verdict in found.refused:
        out.print(f"not told  {verdict.gate}: {verdict.reason}")
        out.print(f"next      {verdict.next}")
    if options.report is not None:
        out.print(f"wrote     {into}")


def export(options: argparse.Namespace) -> None:
    path, difference = flow.export(config.load(options.project), options.name)
    show(
        options,
        {"graph": str(path), "max_abs_difference": difference},
        f"wrote   {path}   largest difference to the trained policy {difference:.1e} (limit 1e-05)",
        f"next    steersman publish {options.name}",
    )
