"""Commands of evolution strategies: `steersman es`."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from steersman.core.errors import ConfigError
from steersman.flow import evolving
from steersman.learn import evolution as es
from steersman.worlds import poles

Show = Callable[..., None]
"""(options, noun, *lines): prints the noun as JSON, or the lines."""

SOLVERS: dict[str, type[es.Solver]] = {
    "snes": es.SNES, "pgpe": es.PGPE, "openai": es.OpenES, "sep-cma": es.SepCMA, "cma": es.CMA, "ars": es.ARS
}  # fmt: skip
STEPS: dict[str, type[es.SGD] | type[es.Adam] | type[es.ClipUp]] = {"sgd": es.SGD, "adam": es.Adam, "clipup": es.ClipUp}


def options(command: argparse.ArgumentParser, shared: argparse.ArgumentParser, show: Show) -> None:
    """The actions of `steersman es` and their options."""
    actions = command.add_subparsers(required=True, metavar="ACTION")
    text = "Evolve a policy in a world, without a server."
    run = actions.add_parser("run", help=text, description=text, parents=[shared])
    run.add_argument("--world", choices=["cartpole"], default="cartpole")
    run.add_argument("--solver", choices=[*SOLVERS], default="snes")
    run.add_argument("--step", choices=[*STEPS], help="of pgpe and openai: what makes a step of a gradient")
    run.add_argument("--rate", type=float, help="of the step, or of the solver that has one")
    run.add_argument("--noise", choices=["normals", "signs", "rank1"], help="default: the solver's own")
    run.add_argument("--sigma", type=float, default=0.3, help="of the noise at first")
    run.add_argument("--population", type=int, default=evolving.POPULATION, help="perturbed policies in a batch")
    run.add_argument("--rounds", type=int, default=200, help="batches, unless the world is solved before")
    run.add_argument("--seed", type=int, help="to see the same run again (default: all is drawn afresh)")
    run.add_argument("--search", type=Path, metavar="FILE", help="goes on from there; written after every batch")
    run.set_defaults(action=functools.partial(_run, show=show))


def _run(options: argparse.Namespace, show: Show) -> None:
    def tell(made: evolving.Generation) -> None:
        if not options.json:
            counts = f"{made.generation:>10}  {made.evaluations:>11,}"
            sys.stdout.write(f"{counts}  {made.mean:>11.1f}  {made.best:>6.0f}  {made.clean:>13.1f}\n")

    if not options.json:
        sys.stdout.write("generation  evaluations  mean return    best  without noise\n")
    settings = es.Settings(_solver(options), noise=options.noise, sigma=options.sigma, shapes=evolving.NET.shapes)
    found = evolving.evolve_cartpole(
        settings,
        population=options.population,
        batches=options.rounds,
        seed=options.seed,
        path=options.search,
        tell=tell,
    )
    won = f"solved after {found.evaluations:,} evaluations" if found.solved else "not solved"
    show(
        options,
        found,
        f"{won}: without noise {found.clean:.1f} of {poles.STEPS}, the mean of {evolving.EPISODES} episodes",
        *([f"search  {options.search}"] if options.search else []),
    )


def _solver(options: argparse.Namespace) -> Any:
    """The solver with the settings that were given.

    Raises:
        ConfigError: it has no such setting, or a number is out of range.
    """
    kind = SOLVERS[options.solver]
    given: dict[str, Any] = {}
    if options.step or (options.rate is not None and "step" in kind.__struct_fields__):
        if "step" not in kind.__struct_fields__:
            raise ConfigError(f"{options.solver} has no step", hint="only pgpe and openai have", field="step")
        step = STEPS[options.step]() if options.step else kind().step  # type: ignore[attr-defined]
        given["step"] = step if options.rate is None else msgspec.structs.replace(step, rate=options.rate)
    elif options.rate is not None:
        if "rate" not in kind.__struct_fields__:
            raise ConfigError(f"{options.solver} has no rate", hint="it adapts by itself", field="rate")
        given["rate"] = options.rate
    if kind is es.PGPE and options.noise in ("signs", "rank1"):
        given["sigma_rate"] = 0.0  # such noise can not tell how large sigma should be
    return kind(**given)
