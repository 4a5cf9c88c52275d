"""What a command prints: one JSON object, or lines for people."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Protocol

import msgspec
from rich.console import Console
from rich.text import Text

from steersman.core.report import Distribution, Estimate, Report

Line = str | Text
"""A text is printed as it is, whatever brackets are in it; what has colors is a Text of rich."""


class _Lines(Console):
    """Lines for people; names and paths in them are no markup and no pictures."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, emoji=False, markup=False)

    def on_broken_pipe(self) -> None:
        """Nobody reads on: as for JSON, `main` knows the exit code. Rich would end the process with 1."""
        raise BrokenPipeError


out = _Lines()
err = _Lines(stderr=True)


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    if sys.stdout is not None:  # it is None where the caller has closed it
        sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
        sys.stdout.flush()


def show(options: argparse.Namespace, value: Any, *lines: Line) -> None:
    if options.json:
        print_json(value)
    else:
        for line in lines:
            out.print(line)


def split(name: str) -> tuple[str, str | None]:
    problem, _, version = name.partition("@")
    return problem, version or None


def report_lines(report: Report) -> list[Line]:
    """A report for people: the headline first, then the other estimates, then one line a gate."""
    rest = [estimate for estimate in report.estimates if estimate != report.headline]
    lines: list[Line] = [
        Text.assemble(
            (estimate_line(report.headline), "bold"),
            f"   baseline {valued(report.baseline)}   {report.decisions:,} decisions",
        ),
        estimate_line(report.lift),
        *map(estimate_line, rest),
    ]
    colors = {"pass": "green", "fail": "red", "not identified": "yellow"}
    for verdict in report.verdicts:
        status = f"{verdict.status:<14}", colors[verdict.status]
        lines.append(Text.assemble(status, f"  {verdict.gate:<14}  {verdict.reason}"))
    if report.estimated:
        said = f"{report.estimated:,} propensities of the build were not logged but estimated: "
        lines.append(Text.assemble(("estimated", "yellow"), f"       {said}no interval knows of their error"))
    lines += [f"not estimated   {verdict.gate:<14}  {verdict.reason}" for verdict in report.refused]
    lines += [f"next            {verdict.next}" for verdict in report.verdicts if verdict.next]
    return lines


def distribution_lines(found: Distribution) -> list[str]:
    """How the returns of episodes are spread, under the policy and in the log."""
    lines = list(map(estimate_line, found.estimates))
    return lines + [f"not estimated   {verdict.gate:<14}  {verdict.reason}" for verdict in found.refused]


def estimate_line(estimate: Estimate) -> str:
    """One estimate on one line.

    >>> estimate_line(Estimate(estimator="dr", value=0.142, low=0.131, high=0.153, level=0.95, n=40, ess=9.8))
    'dr              0.142 [0.131, 0.153] reward   n 40   ess 10'
    """
    return (
        f"{estimate.estimator:<14}  {valued(estimate)} {estimate.metric}   n {estimate.n:,}   ess {estimate.ess:,.0f}"
        f"{f'   at least {estimate.level:.4g}' if estimate.at_least else ''}"
    )


class Interval(Protocol):
    """A number between two others."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def valued(one: Interval, form: str = ".4g") -> str:
    """A number with its interval, each in this format."""
    return f"{one.value:{form}} [{one.low:{form}}, {one.high:{form}}]"
