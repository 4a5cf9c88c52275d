"""Commands over flow: the answer first, numbers with intervals and units, what to do next, a meaningful exit code."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.text import Text

from steersman import flow
from steersman.cli import demos, evolution, learning, numbers, serving, simulation
from steersman.cli import options as of
from steersman.cli.show import err, print_json
from steersman.cli.stopping import Stop, Stopped, stoppable
from steersman.core.errors import ConfigError, DiskError, Error

KEPT = "nothing is left half-written: run it again"
"""How to go on after a signal, unless a command has its own word."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    options = argparse.Namespace(json="--json" in given, kept=KEPT)
    try:
        with stoppable():
            options = parser().parse_args(given)
            return int(options.run(options) or 0)
    except Error as error:
        return _refused(options, error)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _refused(options, DiskError(f"{where}{error.strerror or error}", hint="is the disk full, or not ours?"))
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stop) else signal.SIGINT
        return _refused(options, Stopped(number, options.kept))


def _refused(options: argparse.Namespace, error: Error) -> int:
    with contextlib.suppress(OSError):  # where nothing can be written the exit code still tells
        if options.json and _as_json(error):
            return error.exit_code
        err.print(Text.assemble(("error", "bold red"), f"  {error.message}"))
        if error.hint:
            err.print(Text.assemble(("hint", "bold"), f"   {error.hint}"))
    return error.exit_code


def _as_json(error: Error) -> bool:
    """Whether it could be written."""
    try:
        print_json({"error": error.message, "hint": error.hint, "field": error.field})
    except OSError:
        return False
    return True


class _Parser(argparse.ArgumentParser):
    """A command line that we do not understand is an error like any other; -1e3 is a number, and not an option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # argparse's own knows no exponents

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=f"{self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    shared = of.shared_options(Path(), False)
    root: argparse.ArgumentParser = _Parser(
        prog="steersman", description="A product learns to decide better from its own log."
    )
    root.set_defaults(json=False, kept=KEPT)
    root.add_argument("--version", action="version", version=f"steersman {flow.code_version()}")
    verbs = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def verb(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text, description=text, parents=[shared])
        command.set_defaults(run=run)
        return command

    init = verb("init", serving.init, "Write a commented steersman.toml that runs, and version 1: the uniform policy.")
    init.add_argument("directory", type=Path, nargs="?", default=Path())
    init.add_argument("--name", default="timing", help="of the first problem")
    init.add_argument(
        "--low", type=numbers.finite, nargs="+", metavar="X", help="its actions are numbers: the low bound of each"
    )
    init.add_argument("--high", type=numbers.finite, nargs="+", metavar="X", help="the high bounds of the same")
    of.demo_options(verb("demo", demos.run, "Run a closed loop on a world whose truth is known."))
    of.serve_options(
        verb("serve", serving.serve, "Serve decisions over HTTP, each logged before it is answered, and predictions.")
    )
    of.key_options(verb("key", serving.key, "Make an API key, and the lines of steersman.toml that let it in."))
    of.log_options(verb("log", _action, "Look at the log, compact it, or import another one."))
    build = verb("build", learning.build, "Join and order the log into a Batch.")
    build.add_argument("name")
    build.add_argument("--since", type=of.instant, default=0, help="e.g. 2026-11-01 or 2026-11-01T12:00:00Z")
    build.add_argument("--until", type=of.instant, help="first instant that is not in the window")
    of.features_options(
        verb("features", learning.show_features, "Show what every field of the last build became, and how it moved.")
    )
    of.train_options(verb("train", learning.train, "Fit a policy on the last build."))
    simulation.options(verb("simulate", _action, "Fit a policy on its own decisions in a world."))
    of.tune_options(
        verb("tune", learning.tune, "Try settings of the learner, and say which do best on the validation units.")
    )
    of.evaluate_options(verb("evaluate", learning.evaluate, "Estimate a policy from the log alone, and ask the gates."))
    both = verb("compare", learning.compare, "Put versions side by side, judged on the same decisions.")
    both.add_argument("names", nargs="+", metavar="NAME[@VERSION]", help="two or more; alone: the last candidate")
    both.add_argument("--seed", type=numbers.seed, default=0)
    of.report_option(both, "also as an HTML page with pictures (default: compare-NAME.html here)")
    verb("export", learning.export, "Write the last candidate as ONNX, if it gives the same numbers.").add_argument(
        "name"
    )
    publish = verb("publish", serving.publish, "Store the last candidate as the next version, if its gates passed.")
    publish.add_argument("name")
    publish.add_argument("--force", action="store_true", help="even if a gate failed; the version says so for ever")
    publish.add_argument("--onnx", type=Path, metavar="FILE", help="a model that was not made here, to predict with")
    verb("promote", serving.promote, "Make a version the champion; running servers swap to it.").add_argument(
        "name", metavar="NAME[@VERSION]", help="alone: the challenger"
    )
    of.rollout_options(verb("rollout", serving.rollout, "Let a version decide for a share of the units."))
    verb("rollback", serving.rollback, "Move the champion back to where it was before.").add_argument("name")
    verb("replay", serving.replay, "Make a logged decision again and compare.").add_argument("decision")
    verb("status", serving.status, "Where each problem stands.")
    es = verb("es", _action, "Evolution strategies: learn from the rewards of perturbed policies.")
    evolution.options(es, of.shared_options(argparse.SUPPRESS, argparse.SUPPRESS))
    return root


def _action(options: argparse.Namespace) -> int | None:
    return options.action(options)
