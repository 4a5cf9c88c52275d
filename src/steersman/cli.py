"""Commands over flow: the answer first, numbers with intervals and units, what to do next, a meaningful exit code."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from steersman import cli_evolution, cli_simulation, config, demo, flow
from steersman.core.decision import Numbers, One, json_schemas
from steersman.core.errors import ConfigError, DiskError, Error, GateError, NotFoundError, SupportError
from steersman.core.report import Distribution, Estimate, Report
from steersman.flow import comparing, features, tuning
from steersman.progress import bar

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except Error as error:
        return _refused(options, error)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _refused(options, DiskError(f"{where}{error.strerror or error}", hint="is the disk full, or not ours?"))
    except KeyboardInterrupt:
        err.print("interrupted; what was acknowledged is on the disk")
        return 128 + signal.SIGINT


def _refused(options: argparse.Namespace, error: Error) -> int:
    if options.json:
        print_json({"error": error.message, "hint": error.hint, "field": error.field})
    else:
        err.print(f"[bold red]error[/]  {_plain(error.message)}")
        if error.hint:
            err.print(f"[bold]hint[/]   {_plain(error.hint)}")
    return error.exit_code


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    shared = _shared_options(Path(), False)
    root = argparse.ArgumentParser(prog="steersman", description="A product learns to decide better from its own log.")
    root.set_defaults(json=False)
    root.add_argument("--version", action="version", version=f"steersman {flow.code_version()}")
    verbs = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def verb(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text, description=text, parents=[shared])
        command.set_defaults(run=run)
        return command

    init = verb("init", _init, "Write a commented steersman.toml that runs, and version 1: the uniform policy.")
    init.add_argument("directory", type=Path, nargs="?", default=Path())
    init.add_argument("--name", default="timing", help="of the first problem")
    init.add_argument(
        "--low", type=float, nargs="+", metavar="X", help="its actions are numbers: the low bound of each"
    )
    init.add_argument("--high", type=float, nargs="+", metavar="X", help="the high bounds of the same")
    _demo_options(verb("demo", _demo, "Run a closed loop on a world whose truth is known."))
    _serve_options(
        verb("serve", _serve, "Serve decisions over HTTP, each logged before it is answered, and predictions.")
    )
    _key_options(verb("key", _key, "Make an API key, and the lines of steersman.toml that let it in."))
    _log_options(verb("log", _log, "Look at the log, compact it, or import another one."))
    build = verb("build", _build, "Join and order the log into a Batch.")
    build.add_argument("name")
    build.add_argument("--since", type=_instant, default=0, help="e.g. 2026-11-01 or 2026-11-01T12:00:00Z")
    build.add_argument("--until", type=_instant, help="first instant that is not in the window")
    _features_options(verb("features", _features, "Show what every field of the last build became, and how it moved."))
    _train_options(verb("train", _train, "Fit a policy on the last build."))
    cli_simulation.options(verb("simulate", _action, "Fit a policy on its own decisions in a world."), _show)
    _tune_options(verb("tune", _tune, "Try settings of the learner, and say which do best on the validation units."))
    _evaluate_options(verb("evaluate", _evaluate, "Estimate a policy from the log alone, and ask the gates."))
    both = verb("compare", _compare, "Put versions side by side, judged on the same decisions.")
    both.add_argument("names", nargs="+", metavar="NAME[@VERSION]", help="two or more; alone: the last candidate")
    both.add_argument("--seed", type=int, default=0)
    _report_option(both, "also as an HTML page with pictures (default: compare-NAME.html here)")
    verb("export", _export, "Write the last candidate as ONNX, if it gives the same numbers.").add_argument("name")
    publish = verb("publish", _publish, "Store the last candidate as the next version, if its gates passed.")
    publish.add_argument("name")
    publish.add_argument("--force", action="store_true", help="even if a gate failed; the version says so for ever")
    publish.add_argument("--onnx", type=Path, metavar="FILE", help="a model that was not made here, to predict with")
    verb("promote", _promote, "Make a version the champion; running servers swap to it.").add_argument(
        "name", metavar="NAME[@VERSION]", help="alone: the challenger"
    )
    _rollout_options(verb("rollout", _rollout, "Let a version decide a share of the units beside the champion."))
    verb("rollback", _rollback, "Move the champion back to where it was before.").add_argument("name")
    verb("replay", _replay, "Make a logged decision again and compare.").add_argument("decision")
    verb("status", _status, "Where each problem stands.")
    evolution = verb("es", _action, "Evolution strategies: learn from the rewards of perturbed policies.")
    cli_evolution.options(evolution, _shared_options(argparse.SUPPRESS, argparse.SUPPRESS), _show)
    return root


def _shared_options(project: object, json: object) -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--project", type=Path, default=project, metavar="DIR", help="directory of steersman.toml")
    shared.add_argument("--json", action="store_true", default=json, help="print the result as one JSON object")
    return shared


def _demo_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("world", choices=["cartpole", "open-bandit"])
    command.add_argument("--directory", type=Path, help="where log, reports and warehouse go (default: demo/WORLD)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--rounds", type=int, default=2, help="cartpole: how often the loop goes round")
    command.add_argument("--decisions", type=int, default=30_000, help="cartpole: of the uniform policy at first")
    command.add_argument("--episodes", type=int, default=100, help="cartpole: live episodes of each new version")
    command.add_argument("--campaign", choices=["all", "men", "women"], default="all", help="open-bandit")


def _train_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("name")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--add", action="store_true", help="to what the last candidate learned: bandits in closed form"
    )
    command.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write what is seen as TensorBoard's event files"
    )
    command.add_argument("--resume", action="store_true", help="go on where this training was interrupted")
    _device_option(command)


def _evaluate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "name", metavar="NAME[@VERSION]", help="alone: the last candidate; @7, @champion: a stored one"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--distribution",
        action="store_true",
        help="also how returns of episodes are spread: shares, quantiles, the worst part",
    )
    _report_option(command, "also as an HTML page with pictures (default: beside report.json)")


def _tune_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("name")
    command.add_argument("--trials", type=int, required=True, help="of the study in all; it goes on where it was")
    command.add_argument("--seed", type=int, default=0)
    _device_option(command)


def _device_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")


def _serve_options(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--port", type=int, help="instead of the port in steersman.toml; 0 takes a free one")
    serve.add_argument("--host", help="instead of the host in steersman.toml; 0.0.0.0: all that this machine has")
    serve.add_argument("--explicit", action="store_true", help="plain models are served only after a call to load them")
    serve.add_argument("--grpc-port", type=int, metavar="PORT", help="speak gRPC there, too; 0 takes a free one")
    serve.add_argument("--models", type=Path, metavar="DIR", help="without a project: the models DIR/NAME/1/model.onnx")


def _key_options(key: argparse.ArgumentParser) -> None:
    key.add_argument("name", help="of the client")
    key.add_argument("--role", nargs="+", choices=["predict", "decide", "admin"], default=["predict", "decide"])


def _features_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("name")
    _report_option(
        command, "with importance for the logged reward, and as an HTML page with pictures (default: beside the build)"
    )


def _report_option(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--report", nargs="?", type=Path, const=Path(), metavar="FILE.html", help=text)


def _log_options(command: argparse.ArgumentParser) -> None:
    # An option before the action must not be undone by the default of the same option after it.
    shared = [_shared_options(argparse.SUPPRESS, argparse.SUPPRESS)]
    actions = command.add_subparsers(required=True, metavar="ACTION")
    _import_options(actions.add_parser("import", parents=shared, help="read another log", **_IMPORT_HELP))
    actions.add_parser("compact", parents=shared, help="segments to Parquet").set_defaults(action=_log_compact)
    actions.add_parser("schema", parents=shared, help="JSON Schema of every noun").set_defaults(action=_log_schema)


def _import_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path, nargs="?", help="a file, or the directory of a Minari dataset")
    command.add_argument("--name", required=True, help="of the problem")
    command.add_argument("--mapping", type=Path, help="TOML: our field = their column or SQL expression")
    command.add_argument("--format", default="", help="horizon, dsjson or minari: it needs no mapping")
    command.add_argument("--sql", default="", help="read the rows of this query; SOURCE, if given, is the table source")
    command.add_argument(
        "--propensity",
        choices=["logged", "estimate", "uniform"],
        default="logged",
        help="where missing propensities come from: nowhere (an error); a model of the behavior policy, and every "
        "report says so; your word that each candidate was as likely as the others, which the log must not refute",
    )
    command.add_argument("--max-reject-share", type=float, default=0.01, help="more refused rows fail the import")
    command.set_defaults(action=_log_import)


_IMPORT_HELP: dict[str, Any] = {
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "description": """\
Append another system's log to ours. A row that can not be read is set aside in rejects/ with its line and reason.

  .csv .jsonl .ndjson (also .gz) .parquet   with --mapping
  the rows of a query                       with --sql and --mapping, or --sql and --format horizon
  Horizon's table, JSON lines or .parquet   --format horizon
  Vowpal Wabbit's dsjson (Personalizer)     --format dsjson
  a directory with a Minari dataset         --format minari --propensity estimate (or uniform)
  our own log as JSON lines                 without any of these""",
}


def _instant(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date; for example 2026-11-01T12:00:00Z") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def _rollout_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "name", metavar="NAME[@VERSION]", help="alone: the rollout's, or the challenger; no option: show"
    )
    how = command.add_mutually_exclusive_group()
    how.add_argument("--share", type=float, help="of the units, above 0 and below 1; each unit stays where it is")
    how.add_argument("--shadow", action="store_true", help="it scores what the champion decides, and never answers")
    how.add_argument("--end", action="store_true", help="the champion decides everything again")


def _split(name: str) -> tuple[str, str | None]:
    problem, _, version = name.partition("@")
    return problem, version or None


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _show(options: argparse.Namespace, value: Any, *lines: str) -> None:
    if options.json:
        print_json(value)
    else:
        for line in lines:
            out.print(line)


def _init(options: argparse.Namespace) -> None:
    bounds = options.low, options.high
    box = Numbers(*(tuple(bound or ()) for bound in bounds)) if any(bounds) else None
    project = flow.init(options.directory, options.name, box)
    path = project.root / config.FILE
    _show(
        options,
        {"config": str(path), "warehouse": project.warehouse_url, "policy": options.name, "version": 1},
        f"wrote  {path}",
        f"stored {options.name}@1, the uniform-random policy, in {project.warehouse_url}",
        f"next   steersman serve --project {options.directory}",
    )


def _serve(options: argparse.Namespace) -> int:
    project = config.only_models(options.models) if options.models else config.load(options.project)
    names = ("port", "grpc_port", "host")
    changes = {**{name: getattr(options, name) for name in names}, "explicit": options.explicit or None}
    changed = {name: value for name, value in changes.items() if value is not None}
    return flow.serve(project, on_ready=lambda url, grpc: _show_ready(options, project, url, grpc), **changed)


def _key(options: argparse.Namespace) -> None:
    key = secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    roles = ", ".join(f'"{role}"' for role in options.role)
    _show(
        options,
        {"key": key, "sha256": digest, "roles": options.role},
        f"key    {key}   (it is shown once: the digest below is all that is kept)",
        _plain(f"[serve.keys.{options.name}]"),
        f'sha256 = "{digest}"',
        _plain(f"roles = [{roles}]"),
    )


def _show_ready(options: argparse.Namespace, project: config.Project, url: str, grpc: str) -> None:
    _show(
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


def _log_import(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    source = flow.read_source(
        options.source, options.mapping, form=options.format, sql=options.sql, propensities=options.propensity
    )
    with bar(f"import {source.name}", quiet=options.json) as progress:
        found = flow.import_log(project, options.name, source, options.max_reject_share, progress)
    _show(
        options,
        found,
        f"imported   {found.decisions:,} decisions, {found.outcomes:,} outcomes; {found.rejected:,} of {found.rows:,} "
        f"rows refused (limit {options.max_reject_share:.3g} of them)",
        *([f"set aside  {project.root / 'rejects'}: each with its line and reason"] if found.rejected else []),
        *(_behavior_lines(found.behavior) if found.behavior else []),
        f"next       steersman build {options.name}",
    )


def _behavior_lines(found: flow.Behavior) -> list[str]:
    """Where the missing propensities came from, with what it was decided by."""
    what = {
        "logistic": "estimated by a logistic model of the context",
        "frequencies": "estimated by the frequencies of the actions: the context told no more",
        "uniform": "declared uniform, which the log does not refute",
    }
    losses = f"{found.loss_logistic:.4f} by the model, {found.loss_frequencies:.4f} by the frequencies"
    return [
        f"propensity {found.decisions:,} were missing: {what[found.method]}; the smallest is {found.smallest:.3g}",
        f"           log loss {losses}, {found.loss_uniform:.4f} if uniform (nats/decision on unseen units)",
        f"           the model is better by {found.gain:.4f} [{found.low:.4f}, {found.high:.4f}]",
    ]


def _log_compact(options: argparse.Namespace) -> None:
    found = flow.compact(config.load(options.project))
    aside = [f"set aside   {found.aside:,} records: {_plain(found.reasons[0])}"] if found.aside else []
    damaged = [f"damaged     {one.segment} at byte {one.offset:,}: kept, and read around" for one in found.damage]
    _show(
        options,
        found,
        f"compacted   {found.decisions:,} decisions and {found.outcomes:,} outcomes into {found.files:,} files"
        + (f"; {found.merged:,} small ones merged" if found.merged else ""),
        f"segments    {found.segments:,} read to their end and removed; {found.torn:,} ended in half a record",
        *aside,
        *damaged,
    )


def _log_schema(options: argparse.Namespace) -> None:
    print_json(json_schemas())


def _log(options: argparse.Namespace) -> None:
    options.action(options)


def _build(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    built = flow.build(project, options.name, since=options.since, until=options.until)
    counts = built.counts
    learns = isinstance(project.policy(options.name).problem.actions, One)  # no learner knows other actions
    _show(
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
        *([f"guessed {counts.estimated:,} propensities are estimates, not logged"] if counts.estimated else []),
        f"next    steersman train {options.name}" if learns else f"next    steersman evaluate {options.name}@champion",
    )


def _features(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    if options.report is None:
        found = features.features(project, options.name)
        _show(options, found, *map(_plain, features.lines(found)))
        return
    with bar(f"features {options.name}", quiet=options.json):
        found, path = features.report(project, options.name, None if options.report == Path() else options.report)
    _show(options, found, f"wrote  {_plain(str(path))}", *map(_plain, features.lines(found)))


def _train(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    others = flow.rank() > 0
    with bar(f"train {options.name}", quiet=options.json or others) as progress:
        asked = flow.Asked(options.seed, progress, options.tensorboard, options.add, options.resume, options.device)
        found = flow.trained(project, options.name, asked)
    if others:  # the first of several processes has the word
        return
    candidate = found.candidate
    _show(
        options,
        candidate,
        f"trained {candidate.learner}, seed {candidate.seed}, on {Path(candidate.build).name}: {candidate.directory}",
        *([f"resumed after {found.resumed:,} of {found.steps:,} steps"] if found.resumed else []),
        *_picked_lines(found, project.policy(options.name).learn),
        *([f"events  {_plain(str(options.tensorboard))}"] if options.tensorboard is not None else []),
        f"next    steersman evaluate {options.name}",
    )


def _picked_lines(found: flow.Trained, settings: config.LearnConfig) -> list[str]:
    """Which of the nets was kept, and why."""
    if found.picked is not None:
        best = found.picked.values[0]
        shown = f"{best.value:.4g} \\[{best.low:.4g}, {best.high:.4g}]"
        return [f"kept    step {found.picked.step:,} of {found.steps:,}: {best.estimator} {shown} on {best.n:,} units"]
    if not settings.validation:
        where = f"\\[problem.{found.candidate.problem}.learn] validation = 0.1"
        return [f"no CPE  it needs validation units, and so does keeping the best net: {where}"]
    return [f"kept    the last step: no look had an estimate: {_plain(found.refused)}"] if found.refused else []


def _tune(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    with bar(f"tune {options.name}", quiet=options.json) as progress:
        found = tuning.tune(
            project, options.name, options.trials, seed=options.seed, progress=progress, device=options.device
        )
    best, tried = found.best, found.trials + found.failed
    if best.estimate is None:
        raise ConfigError("the best trial has no estimate")
    level = f"{best.estimate.level:.0%}"
    _show(
        options,
        found,
        f"tried   {tried:,} settings, {found.failed:,} of them without a score: {found.study}",
        f"best    {_tried_line(best)} ({level}, {best.estimate.estimator} on {best.estimate.n:,} validation units)",
        *([f"now     {_tried_line(found.present)}"] if found.present is not None else []),
        f"beware  the best of {tried:,} on the same units is too good, and its interval does not know that",
        f"next    write them in \\[problem.{options.name}.learn] settings, then steersman train {options.name} and "
        f"steersman evaluate {options.name}, on units that had no part in this",
    )


def _tried_line(tried: tuning.Tried) -> str:
    settings = ", ".join(f"{name} = {_toml(value)}" for name, value in tried.settings.items())
    if tried.estimate is None:
        return f"{_plain(settings)}   no score: {_plain(tried.failed)}"
    one = tried.estimate
    return f"{_plain(settings)}   {one.value:.4g} \\[{one.low:.4g}, {one.high:.4g}]"


def _toml(value: Any) -> str:
    """A setting as it stands in steersman.toml."""
    return f"{value:.4g}" if isinstance(value, float) else msgspec.json.encode(value).decode()


def _evaluate(options: argparse.Namespace) -> int:
    name, version = _split(options.name)
    project = config.load(options.project)
    with bar(f"evaluate {options.name}", quiet=options.json):
        report = flow.judge(project, name, version, seed=options.seed)
        wrote = []
        if options.report is not None:
            into = None if options.report == Path() else options.report
            wrote = [f"wrote           {_plain(str(flow.draw(project, name, version, report, into)))}"]
    spread = distribution_lines(report.distribution) if options.distribution and report.distribution else []
    _show(options, report, *report_lines(report), *spread, *wrote)
    if report.passed:
        return 0
    unknown = any(verdict.status == "not identified" for verdict in report.verdicts)
    return SupportError.exit_code if unknown else GateError.exit_code


def _compare(options: argparse.Namespace) -> None:
    asked = [_split(name) for name in options.names]
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
    table = Table(*map(_plain, head), box=None)
    for row in rows:
        table.add_row(*map(_plain, row))
    out.print(table)
    out.print("judged on the same decisions" if found.same_rows else "judged apart: no build is at hand")
    for verdict in found.refused:
        out.print(f"not told  {_plain(verdict.gate)}: {_plain(verdict.reason)}")
        out.print(f"next      {_plain(verdict.next)}")
    if options.report is not None:
        out.print(f"wrote     {_plain(str(into))}")


def report_lines(report: Report) -> list[str]:
    """A report for people: the headline first, then the other estimates, then one line a gate."""
    rest = [estimate for estimate in report.estimates if estimate != report.headline]
    lines = [
        f"[bold]{estimate_line(report.headline)}[/]   baseline {report.baseline.value:.4g} "
        f"\\[{report.baseline.low:.4g}, {report.baseline.high:.4g}]   {report.decisions:,} decisions",
        estimate_line(report.lift),
        *map(estimate_line, rest),
    ]
    colors = {"pass": "green", "fail": "red", "not identified": "yellow"}
    for verdict in report.verdicts:
        color = colors[verdict.status]
        lines.append(f"[{color}]{verdict.status:<14}[/]  {verdict.gate:<14}  {_plain(verdict.reason)}")
    if report.estimated:
        lines.append(
            f"[yellow]estimated[/]       {report.estimated:,} propensities of the build were not logged but estimated: "
            "no interval knows of their error"
        )
    lines += [f"not estimated   {verdict.gate:<14}  {_plain(verdict.reason)}" for verdict in report.refused]
    lines += [f"next            {_plain(verdict.next)}" for verdict in report.verdicts if verdict.next]
    return lines


def distribution_lines(found: Distribution) -> list[str]:
    """How the returns of episodes are spread, under the policy and in the log."""
    lines = list(map(estimate_line, found.estimates))
    return lines + [f"not estimated   {verdict.gate:<14}  {_plain(verdict.reason)}" for verdict in found.refused]


def estimate_line(estimate: Estimate) -> str:
    """One estimate on one line.

    >>> estimate_line(Estimate(estimator="dr", value=0.142, low=0.131, high=0.153, level=0.95, n=40, ess=9.8))
    'dr              0.142 \\\\[0.131, 0.153] reward   n 40   ess 10'
    """
    return (
        f"{estimate.estimator:<14}  {estimate.value:.4g} \\[{estimate.low:.4g}, {estimate.high:.4g}] "
        f"{estimate.metric}   n {estimate.n:,}   ess {estimate.ess:,.0f}"
    )


def _export(options: argparse.Namespace) -> None:
    path, difference = flow.export(config.load(options.project), options.name)
    _show(
        options,
        {"graph": str(path), "max_abs_difference": difference},
        f"wrote   {path}   largest difference to the trained policy {difference:.1e} (limit 1e-05)",
        f"next    steersman publish {options.name}",
    )


def _publish(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    if options.onnx:
        number = flow.publish_model(project, options.name, options.onnx)
        place = f"{project.models_url}/{options.name}/{number}"
        _show(options, {"name": options.name, "number": number, "place": place}, f"stored  {place}; servers follow")
        return
    version = flow.publish(project, options.name, force=options.force)
    forced = "   [yellow]forced: a gate had failed[/]" if version.forced else ""
    _show(
        options,
        version,
        f"stored  {version.name}@{version.number}   digest {version.digest[:12]}{forced}",
        *([] if flow.drawable() else ['page    none is stored with it: pip install "steersman[console]"']),
        f"next    steersman promote {version.name}",
    )


def _promote(options: argparse.Namespace) -> None:
    name, version = _split(options.name)
    number = flow.promote(config.load(options.project), name, version or flow.CHALLENGER)
    _show(
        options,
        {"policy": name, "champion": number},
        f"champion  {name}@{number}; running servers swap to it within their poll_s",
        f"back      steersman rollback {name}",
    )


def _rollout(options: argparse.Namespace) -> None:
    name, version = _split(options.name)
    project = config.load(options.project)
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
    _show(
        options,
        now,
        f"{now.state}  {name}@{now.candidate} gets {now.share:.3g} of the units, {name}@{now.baseline} the others",
        *([f"next    steersman promote {name}@{now.candidate}   or   steersman rollout {name} --end"] * now.running),
    )


def _rollback(options: argparse.Namespace) -> None:
    number = flow.rollback(config.load(options.project), options.name)
    _show(options, {"policy": options.name, "champion": number}, f"champion  {options.name}@{number} again")


def _replay(options: argparse.Namespace) -> int:
    found = flow.replay(config.load(options.project), options.decision)
    verdict = "[green]identical[/]" if found.identical else "[red]different[/]"
    _show(
        options,
        found,
        f"logged  {_plain(found.logged_action)}   propensity {found.logged_propensity!r}   version {found.version}",
        f"again   {_plain(found.action)}   propensity {found.propensity!r}   {verdict}",
    )
    return 0 if found.identical else 1


def _status(options: argparse.Namespace) -> None:
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


def _action(options: argparse.Namespace) -> None:
    options.action(options)


def _demo(options: argparse.Namespace) -> None:
    directory = options.directory or demo.free_directory(Path("demo") / options.world)
    if options.world == "cartpole":
        _demo_cartpole(options, directory)
    else:
        _demo_open_bandit(options, directory)


def _demo_cartpole(options: argparse.Namespace, directory: Path) -> None:
    def tell(made: demo.Round) -> None:
        if not options.json:
            estimate = f"{made.estimate.value:.1f} \\[{made.estimate.low:.1f}, {made.estimate.high:.1f}]"
            live = f"{made.live_return.mean:.1f} of 200 ({made.live_return.n} episodes)"
            row = (str(made.round), str(made.version), f"{made.decisions:,}", estimate, f"{made.baseline:.1f}")
            out.print(_cells(*row, made.gate, live))

    if not options.json:
        out.print(f"CartPole: {options.decisions:,} decisions at random, then {options.rounds} rounds of the loop")
        names = ("round", "version", "decisions", "estimate from the log", "baseline", "gate", "true mean return, live")
        out.print(f"[bold]{_cells(*names)}[/]")
    run = demo.cartpole(
        directory,
        rounds=options.rounds,
        decisions=options.decisions,
        episodes=options.episodes,
        seed=options.seed,
        tell=tell,
        quiet=options.json,
    )
    _show(
        options,
        run,
        "",
        f"log        {directory}/log",
        f"reports    {directory}/candidates/cartpole/*/report.json",
        f"warehouse  {directory}/warehouse",
        f"next       steersman status --project {directory}",
        f"           steersman serve --project {directory}",
        "           steersman init my-product, and your own log: see README.md",
    )


def _cells(*texts: str) -> str:
    widths = (5, 7, 9, 24, 8, 14, 0)
    # a backslash only keeps rich from reading [ as markup: it takes no room
    return "  ".join(text.ljust(width + text.count("\\")) for text, width in zip(texts, widths, strict=True))


def _demo_open_bandit(options: argparse.Namespace, directory: Path) -> None:
    with bar(f"open bandit, campaign {options.campaign}", quiet=options.json):
        run = demo.open_bandit(directory, campaign=options.campaign, cache=Path(".cache"), seed=options.seed)
    truth, baseline = run.truth_interval, run.baseline_interval
    _show(
        options,
        run,
        f"Open Bandit Dataset, campaign {run.campaign}: what Bernoulli Thompson sampling would have got,",
        "estimated from the log of the uniform-random policy alone (clicks per recommendation)",
        *map(estimate_line, run.estimates),
        f"truth           {truth.value:.4g} \\[{truth.low:.4g}, {truth.high:.4g}]   its own log",
        f"baseline        {baseline.value:.4g} \\[{baseline.low:.4g}, {baseline.high:.4g}]   the log's own",
        *([f"page            {_plain(run.page)}"] if run.page else []),
        f"next            steersman status --project {directory}",
    )
