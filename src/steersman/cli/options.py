"""Options of commands."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steersman.cli import numbers
from steersman.cli.logs import log_compact, log_import, log_schema


def shared_options(project: object, json: object) -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--project", type=Path, default=project, metavar="DIR", help="directory of steersman.toml")
    shared.add_argument("--json", action="store_true", default=json, help="print the result as one JSON object")
    return shared


def demo_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("world", choices=["cartpole", "open-bandit"])
    command.add_argument("--directory", type=Path, help="where log, reports and warehouse go (default: demo/WORLD)")
    command.add_argument("--seed", type=numbers.seed, default=0)
    command.add_argument("--rounds", type=numbers.count, default=2, help="cartpole: how often the loop goes round")
    command.add_argument(
        "--decisions", type=numbers.count, default=30_000, help="cartpole: of the uniform policy at first"
    )
    command.add_argument(
        "--episodes", type=numbers.count, default=100, help="cartpole: live episodes of each new version"
    )
    command.add_argument("--campaign", choices=["all", "men", "women"], default="all", help="open-bandit")
    command.set_defaults(kept="a demo begins anew each time, in a directory of its own")


def train_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("name")
    command.add_argument("--seed", type=numbers.seed, default=0)
    command.add_argument(
        "--add", action="store_true", help="to what the last candidate learned: bandits in closed form"
    )
    command.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write what is seen as TensorBoard's event files"
    )
    command.add_argument("--resume", action="store_true", help="go on where this training was interrupted")
    _device_option(command)
    command.set_defaults(kept="from its last checkpoint, if there is one, the same command with --resume goes on")


def evaluate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "name", metavar="NAME[@VERSION]", help="alone: the last candidate; @7, @champion: a stored one"
    )
    command.add_argument("--seed", type=numbers.seed, default=0)
    command.add_argument(
        "--distribution",
        action="store_true",
        help="also how returns of episodes are spread: shares, quantiles, the worst part",
    )
    report_option(command, "also as an HTML page with pictures (default: beside report.json)")


def tune_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("name")
    command.add_argument(
        "--trials", type=numbers.count, required=True, help="of the study in all; it goes on where it was"
    )
    command.add_argument("--seed", type=numbers.seed, default=0)
    _device_option(command)
    command.set_defaults(kept="trials that ended are kept: the same command goes on")


def _device_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")


def serve_options(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--port", type=numbers.port, help="instead of the port in steersman.toml; 0 takes a free one")
    serve.add_argument("--host", help="instead of the host in steersman.toml; 0.0.0.0: all that this machine has")
    serve.add_argument("--explicit", action="store_true", help="plain models are served only after a call to load them")
    serve.add_argument(
        "--grpc-port", type=numbers.port, metavar="PORT", help="speak gRPC there, too; 0 takes a free one"
    )
    serve.add_argument("--models", type=Path, metavar="DIR", help="without a project: the models DIR/NAME/1/model.onnx")


def key_options(key: argparse.ArgumentParser) -> None:
    key.add_argument("name", help="of the client")
    key.add_argument("--role", nargs="+", choices=["predict", "decide", "admin"], default=["predict", "decide"])


def features_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("name")
    report_option(
        command, "with importance for the logged reward, and as an HTML page with pictures (default: beside the build)"
    )


def report_option(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--report", nargs="?", type=Path, const=Path(), metavar="FILE.html", help=text)


def log_options(command: argparse.ArgumentParser) -> None:
    # An option before the action must not be undone by the default of the same option after it.
    shared = [shared_options(argparse.SUPPRESS, argparse.SUPPRESS)]
    actions = command.add_subparsers(required=True, metavar="ACTION")
    _import_options(actions.add_parser("import", parents=shared, help="read another log", **_IMPORT_HELP))
    actions.add_parser("compact", parents=shared, help="segments to Parquet").set_defaults(action=log_compact)
    actions.add_parser("schema", parents=shared, help="JSON Schema of every noun").set_defaults(action=log_schema)


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
    command.add_argument(
        "--max-reject-share", type=numbers.share, default=0.01, help="more refused rows fail the import"
    )
    command.set_defaults(action=log_import, kept="run it again: it is imported whole or not at all, and counts once")


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


def instant(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date; for example 2026-11-01T12:00:00Z") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def rollout_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "name", metavar="NAME[@VERSION]", help="alone: the rollout's, or the challenger; no option: show"
    )
    how = command.add_mutually_exclusive_group()
    how.add_argument(
        "--share", type=numbers.share, help="of the units, above 0 and below 1; each unit stays where it is"
    )
    how.add_argument("--shadow", action="store_true", help="it scores what the champion decides, and never answers")
    how.add_argument("--end", action="store_true", help="the champion decides everything again")
    how.add_argument("--report", action="store_true", help="what the last version in the shadow did, from its log")
