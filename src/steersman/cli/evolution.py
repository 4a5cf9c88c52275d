"""Commands of evolution strategies: `steersman es`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from steersman import config, demo
from steersman.cli import numbers
from steersman.cli.show import show, valued
from steersman.core.errors import ConfigError, GateError
from steersman.flow import canary, distributed, evolving, guarding, online, sampling
from steersman.learn import evolution as es

SOLVERS: dict[str, type[es.Solver]] = {
    "snes": es.SNES, "pgpe": es.PGPE, "openai": es.OpenES, "sep-cma": es.SepCMA, "cma": es.CMA, "ars": es.ARS
}  # fmt: skip
STEPS: dict[str, type[es.SGD] | type[es.Adam] | type[es.ClipUp]] = {"sgd": es.SGD, "adam": es.Adam, "clipup": es.ClipUp}

EPISODES = 64
ALONE = ("world", "hidden", "solver", "step", "rate", "noise", "sigma", "population", "common", "search", "ray")
"""Options of a run without a server: a version has a search that `es init` made."""


def options(command: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """The actions of `steersman es` and their options."""
    actions = command.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Callable[..., int | None], text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text, parents=[shared])
        made.set_defaults(action=run)
        return made

    init = action("init", _init, "Store a version that can be perturbed, with its search beside it.")
    init.add_argument("name")
    init.add_argument(
        "--from", dest="reference", default="champion", metavar="VERSION", help="whose net it starts from"
    )
    init.add_argument(
        "--hidden", type=numbers.count, nargs="*", metavar="UNITS", help="instead: a net that nobody trained"
    )
    init.add_argument(
        "--keep", type=numbers.whole(0), default=0, help="so many of the last versions of updates; 0: all are kept"
    )
    init.add_argument(
        "--share", type=numbers.share, default=0.2, help="of the units that meet a perturbed copy, in (0, 1]"
    )
    init.add_argument("--copies", type=numbers.count, default=32, help="perturbations with an episode before an update")
    init.add_argument("--pool", action="store_true", help="so many copies at a time, not one for each episode")
    init.add_argument(
        "--block-s", type=numbers.real(0), default=3600.0, help="episodes of so many seconds are compared; 0: all"
    )
    init.add_argument(
        "--max-loss", type=numbers.share, default=0.2, help="copies stop that surely cost more of the return"
    )
    init.add_argument(
        "--canary", type=numbers.share, default=0.0, help="share that an update decides for before it is the champion"
    )
    init.add_argument(
        "--tolerance", type=numbers.share, default=0.05, help="of the champion's return that a canary may earn less"
    )
    init.add_argument("--max-age", type=numbers.whole(0), default=0, help="versions that a sample may be old")
    _solver_options(init, sigma=0.05)
    update = action("update", _update, "Move the parameters by what the log says, store and promote the next version.")
    update.add_argument("name")
    watch = action("watch", _watch, "Look at the guardrails of perturbed copies again and again; serve does so, too.")
    watch.add_argument("names", nargs="*", metavar="NAME", help="default: every problem that declares some")
    watch.add_argument("--every", type=numbers.real(0.01), metavar="S", help="seconds; default: watch_s of [serve]")
    watch.add_argument("--once", action="store_true", help="look once; exit code 5 if copies may not decide")
    watch.add_argument("--until-stdin-ends", action="store_true", help=argparse.SUPPRESS)
    resume = action("resume", _resume, "Let the copies decide again that a guardrail had stopped.")
    resume.add_argument("name")
    again = action("replay", _replay, "Make an update again from its log and its parent, and compare.")
    again.add_argument("name", metavar="NAME@NUMBER")
    run = action("run", _run, "Evolve a policy in a world: without a server, or NAME through a real one.")
    run.add_argument("name", nargs="?", help="a problem of the world, with a champion that es init made")
    run.add_argument(
        "--world", metavar="ID", default="cartpole",
        help="cartpole, or an environment of Gymnasium, e.g. Pendulum-v1; PACKAGE:ID of one that a package registers",
    )  # fmt: skip
    run.add_argument(
        "--hidden", type=numbers.count, nargs="*", default=[*evolving.HIDDEN], metavar="UNITS", help="of the net"
    )
    run.add_argument("--episodes", type=numbers.count, help=f"with NAME: played in each round (default: {EPISODES})")
    run.add_argument(
        "--population", type=numbers.count, default=evolving.POPULATION, help="perturbed policies in a batch"
    )
    run.add_argument("--common", choices=["none", "pair", "generation"], default="none",
                     help="whose episodes begin alike: common random numbers")  # fmt: skip
    run.add_argument("--rounds", type=numbers.count, default=200, help="batches, unless the world is solved before")
    run.add_argument("--seed", type=numbers.seed, help="to see the same run again (default: all is drawn afresh)")
    run.add_argument("--search", type=Path, metavar="FILE", help="goes on from there; written after every batch")
    _solver_options(run, sigma=0.3)
    run.add_argument(
        "--ray", metavar="ADDRESS", help="evaluate on the Ray cluster with the head HOST:PORT, or on a new one: local"
    )
    run.set_defaults(
        alone={name: run.get_default(name) for name in ALONE},
        kept="with --search FILE the same command goes on; of NAME all rounds that ended are kept",
    )


def _solver_options(command: argparse.ArgumentParser, sigma: float) -> None:
    command.add_argument("--solver", choices=[*SOLVERS], default="snes")
    command.add_argument("--step", choices=[*STEPS], help="of pgpe and openai: what makes a step of a gradient")
    command.add_argument("--rate", type=numbers.real(0), help="of the step, or of the solver that has one")
    command.add_argument("--noise", choices=["normals", "signs", "rank1"], help="default: the solver's own")
    command.add_argument("--sigma", type=numbers.real(0), default=sigma, help="of the noise at first")


def _init(options: argparse.Namespace) -> None:
    settings = es.Settings(_solver(options), noise=options.noise, sigma=options.sigma, max_age=options.max_age)
    made = online.init(
        config.load(options.project),
        options.name,
        options.reference,
        settings,
        share=options.share,
        copies=options.copies,
        pool=options.pool,
        block_s=options.block_s,
        max_loss=options.max_loss,
        hidden=None if options.hidden is None else tuple(options.hidden),
        keep=options.keep,
        canary=options.canary,
        tolerance=options.tolerance,
    )
    show(
        options,
        made,
        f"stored  {made.name}@{made.number}, of which {options.share:.0%} of the units meet "
        + (f"{options.copies} copies" if options.pool else "a copy of their own in each episode"),
        f"next    steersman promote {made.name}@{made.number}",
    )


def _update(options: argparse.Namespace) -> int:
    found = online.update(config.load(options.project), options.name)
    if isinstance(found, canary.Judged):
        return _show_judged(options, found)
    account = found.account
    became = f"canary    {found.canary:.0%} of the units meet" if found.canary else "champion "
    again = [f"next      steersman es update {found.problem} asks the log about it"] if found.canary else []
    show(
        options,
        found,
        f"{became} {found.problem}@{found.version}, from {account.used} copies and {found.episodes:,} episodes of "
        f"{found.problem}@{found.parent}",
        *([_gain_line(found.gain)] if found.gain else []),
        f"left out  {found.open:,} episodes not over or of two copies, {account.old} copies too old",
        *(again or [f"back      steersman rollback {found.problem}"]),
    )
    return 0


def _show_judged(options: argparse.Namespace, found: canary.Judged) -> int:
    sizes = f"{found.candidate_units:,} units of it and {found.baseline_units:,} of {found.problem}@{found.baseline}"
    bounds = "" if found.difference is None else f"{found.difference:+.3g} [{found.low:+.3g}, {found.high:+.3g}]  "
    show(
        options,
        found,
        f"{found.verdict}  {found.problem}@{found.candidate}: {found.reason}",
        f"earns     {bounds}a unit, by {sizes}",
    )
    return GateError.exit_code if found.verdict == "backed out" else 0


def _watch(options: argparse.Namespace) -> int:
    project = config.load(options.project)
    names = options.names or [name for name, policy in project.policies.items() if policy.guardrails]
    for name in names:
        project.policy(name)
    ended, why = threading.Event(), dict[str, str]()
    if options.until_stdin_ends:
        threading.Thread(target=_end_with_stdin, args=(ended,), daemon=True).start()
    if options.once:
        ended.set()

    def tell(name: str, found: sampling.Watched) -> None:
        now = sampling.why_not(project, name)
        if why.get(name) != now or options.once:
            seen = f"{found.copies:,} units of copies, {found.clean:,} of the version itself"
            show(options, found, f"{name}@{found.version}  {seen}  {now or 'copies may decide'}")
            sys.stdout.flush()
        why[name] = now

    every = project.serve.watch_s if options.every is None else options.every
    guarding.watch(project, names, every, ended.wait, tell, lambda name: canary.ask(project, name))
    return GateError.exit_code if options.once and any(why.values()) else 0


def _end_with_stdin(ended: threading.Event) -> None:
    sys.stdin.buffer.read()
    ended.set()


def _resume(options: argparse.Namespace) -> None:
    was = sampling.resume(config.load(options.project), options.name)
    show(
        options,
        was,
        f"begun   copies of {options.name} decide again; what was logged until now stops them no more",
        f"before  {was.reason}",
    )


def _gain_line(gain: es.Gain) -> str:
    return f"expected  {valued(gain, '+.3g')} reward by {gain.pairs} pairs, flattered"


def _replay(options: argparse.Namespace) -> int:
    name, _, number = options.name.partition("@")
    if not number.isdecimal():
        raise ConfigError(f"{options.name} names no version", hint="for example timing@7")
    same = online.replay(config.load(options.project), name, int(number))
    show(options, {"identical": same}, f"again   {'identical' if same else 'different'}")
    return 0 if same else 1


def _run_live(options: argparse.Namespace) -> None:
    for name, usual in options.alone.items():
        if getattr(options, name) != usual:
            raise ConfigError(
                f"--{name} is of a run without a server", hint=f"{options.name} has the search that es init made",
                field=name,
            )  # fmt: skip

    def tell(made: demo.Evolving) -> None:
        if not options.json:
            then = f"{made.updated}" if made.updated else made.refused
            sys.stdout.write(f"{made.round:>5}  {made.version:>7}  {made.mean:>11.1f}  {then}\n")

    if not options.json:
        sys.stdout.write("round  version  mean return  became\n")
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    made = demo.evolve(
        config.load(options.project),
        options.name,
        rounds=options.rounds,
        episodes=options.episodes or EPISODES,
        seed=seed,
        tell=tell,
    )
    show(options, made, f"next    steersman es replay {options.name}@{made[-1].updated or made[-1].version}")


def _run(options: argparse.Namespace) -> None:
    if options.name is not None:
        _run_live(options)
        return
    if options.episodes is not None:
        raise ConfigError("--episodes is of a run through a server", hint="name its problem", field="episodes")

    def tell(made: evolving.Generation) -> None:
        if not options.json:
            counts = f"{made.generation:>10}  {made.evaluations:>11,}"
            sys.stdout.write(f"{counts}  {made.mean:>11.1f}  {made.best:>6.0f}  {made.clean:>13.1f}\n")

    world, hidden = evolving.find(options.world), tuple(options.hidden)
    shapes = evolving.net(world, hidden).shapes
    settings = es.Settings(_solver(options), noise=options.noise, sigma=options.sigma, shapes=shapes)
    if not options.json:
        sys.stdout.write("generation  evaluations  mean return    best  without noise\n")
    with contextlib.nullcontext(None) if options.ray is None else distributed.cluster(options.ray) as ray:
        found = evolving.evolve(
            world,
            settings,
            hidden=hidden,
            population=options.population,
            batches=options.rounds,
            common=options.common,
            seed=options.seed,
            path=options.search,
            tell=tell,
            by=evolving.evaluate if ray is None else ray,
        )
    won = f"solved after {found.evaluations:,} evaluations" if found.solved else "not solved"
    goal = "no return counts as solved here" if world.solved is None else f"solved is {world.solved:g}"
    show(
        options,
        found,
        f"{won}: without noise {found.clean:.1f}, the mean of {evolving.EPISODES} episodes; {goal}",
        *([f"search  {options.search}"] if options.search else []),
        *([f"ray     {ray.cores} cores, evaluated on {len(ray.machines)} machines"] if ray else []),
    )


def _solver(options: argparse.Namespace) -> Any:
    """The solver with the settings that were given.

    Raises:
        ConfigError: it has no such setting, or a number is out of range.
    """
    kind, given = SOLVERS[options.solver], dict[str, Any]()
    defaults = {field.name: field.default for field in msgspec.structs.fields(kind)}
    if options.step or (options.rate is not None and "step" in defaults):
        if "step" not in defaults:
            raise ConfigError(f"{options.solver} has no step", hint="only pgpe and openai have", field="step")
        step = STEPS[options.step]() if options.step else defaults["step"]
        given["step"] = step if options.rate is None else msgspec.structs.replace(step, rate=options.rate)
    elif options.rate is not None:
        if "rate" not in defaults:
            raise ConfigError(f"{options.solver} has no rate", hint="it adapts by itself", field="rate")
        given["rate"] = options.rate
    if kind is es.PGPE and options.noise in ("signs", "rank1"):
        given["sigma_rate"] = 0.0  # such noise can not tell how large sigma should be
    return kind(**given)
