"""The command `steersman demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.text import Text

from steersman import demo
from steersman.cli.show import estimate_line, out, show, valued
from steersman.progress import bar


def run(options: argparse.Namespace) -> None:
    directory = options.directory or demo.free_directory(Path("demo") / options.world)
    if options.world == "cartpole":
        _demo_cartpole(options, directory)
    else:
        _demo_open_bandit(options, directory)


def _demo_cartpole(options: argparse.Namespace, directory: Path) -> None:
    def tell(made: demo.Round) -> None:
        if not options.json:
            live = f"{made.live_return.mean:.1f} of 200 ({made.live_return.n} episodes)"
            count, estimate = f"{made.decisions:,}", valued(made.estimate, ".1f")
            row = (str(made.round), str(made.version), count, estimate, f"{made.baseline:.1f}")
            out.print(_cells(*row, made.gate, live))

    if not options.json:
        out.print(f"CartPole: {options.decisions:,} decisions at random, then {options.rounds} rounds of the loop")
        names = ("round", "version", "decisions", "estimate from the log", "baseline", "gate", "true mean return, live")
        out.print(Text(_cells(*names), "bold"))
    run = demo.cartpole(
        directory,
        rounds=options.rounds,
        decisions=options.decisions,
        episodes=options.episodes,
        seed=options.seed,
        tell=tell,
        quiet=options.json,
    )
    show(
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
    return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))


def _demo_open_bandit(options: argparse.Namespace, directory: Path) -> None:
    with bar(f"open bandit, campaign {options.campaign}", quiet=options.json):
        run = demo.open_bandit(directory, campaign=options.campaign, cache=Path(".cache"), seed=options.seed)
    show(
        options,
        run,
        f"Open Bandit Dataset, campaign {run.campaign}: what Bernoulli Thompson sampling would have got,",
        "estimated from the log of the uniform-random policy alone (clicks per recommendation)",
        *map(estimate_line, run.estimates),
        f"truth           {valued(run.truth_interval)}   its own log",
        f"baseline        {valued(run.baseline_interval)}   the log's own",
        *([f"page            {run.page}"] if run.page else []),
        f"next            steersman status --project {directory}",
    )
