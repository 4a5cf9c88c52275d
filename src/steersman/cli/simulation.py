"""The command `steersman simulate`."""

from __future__ import annotations

import argparse

from steersman import config, flow
from steersman.cli import numbers
from steersman.cli.show import show, valued
from steersman.progress import bar
from steersman.worlds.simulators import WORLDS


def options(command: argparse.ArgumentParser) -> None:
    """Its options, and what it does."""
    command.add_argument("name")
    command.add_argument("--world", choices=[*WORLDS], default="", help="default: of [problem.NAME.simulate]")
    command.add_argument("--seed", type=numbers.seed, default=0)
    command.set_defaults(action=_simulate)


def _simulate(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    with bar(f"simulate {options.name}", quiet=options.json) as progress:
        found = flow.simulate(project, options.name, options.world, seed=options.seed, progress=progress)
    candidate = found.candidate
    values = f"{valued(found.value)} return/episode   at random {valued(found.random)}"
    show(
        options,
        found,
        f"played  {values}   {found.value.n} new episodes each",
        f"learned {candidate.learner}, seed {candidate.seed}, in {found.world}: {candidate.directory}",
        f"next    steersman evaluate {options.name}",
    )
