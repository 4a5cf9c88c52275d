"""Versions side by side: judged on the same rows where a build is at hand, with the paired difference between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from steersman import evaluate, learn, timeline
from steersman.config import Project
from steersman.core.errors import DataError, Error
from steersman.core.policy import Policy
from steersman.core.report import Estimate, Report, Verdict
from steersman.flow import places
from steersman.flow.judging import report_on, stored_policy, test_rows
from steersman.flow.page import day, interval


class Compared(Struct, frozen=True, kw_only=True):
    """One version of a comparison.

    Attributes:
        name: as it was asked for, with its number; a candidate has none.
        report: on the rows that all were judged on; where no build is at hand the one it was published with.
        published: the headline that it was published with; None: it has no report, or is a candidate.
        difference: of its headline to that of the first version, paired; None for the first, or see `refused`.
    """

    name: str
    report: Report | None
    published: Estimate | None = None
    difference: Estimate | None = None


class Comparison(Struct, frozen=True, kw_only=True):
    """Versions side by side.

    Attributes:
        problem: name.
        same_rows: whether all reports are on the same rows: the test units of the last build, which no training of this
            project learned from.
        versions: in the order in which they were asked for, at least two.
        refused: what could not be told, and why.
    """

    problem: str
    same_rows: bool
    versions: tuple[Compared, ...]
    refused: tuple[Verdict, ...] = ()


def compare(project: Project, name: str, versions: Sequence[str | None], *, seed: int = 0) -> Comparison:
    """Put versions side by side.

    Args:
        versions: numbers or aliases; None: the last candidate.
        seed: of the evaluation.
    Raises:
        DataError: fewer than two versions.
        NotFoundError: there is no such version, or no candidate yet.
    """
    if len(versions) < 2:
        raise DataError("one version alone is no comparison", hint=f"steersman compare {name}@champion {name}")
    asked = [_found(project, name, version) for version in versions]
    if not places.pointed(project, "builds", name):
        reason = "no build is at hand: each has the report that it was published with, on rows of its own"
        why = Verdict(gate="differences", status="not identified", reason=reason, next=f"steersman build {name}")
        stored = tuple(Compared(name=one, report=report, published=_headline(report)) for one, _, _, report in asked)
        return Comparison(problem=name, same_rows=False, versions=stored, refused=(why,))
    built = timeline.load(places.latest(project, "builds", name, hint=f"steersman build {name}"))
    rows, level = test_rows(project, name, built), project.policy(name).evaluate.level
    sides: list[Compared] = []
    refused: list[Verdict] = []
    first: tuple[str, evaluate.Terms] | None = None
    for which, policy, digest, published in asked:
        try:
            report, terms = report_on(project, name, policy, digest, built, rows, seed)
        except Error as error:  # one that this log can not judge must not hide the others
            refused.append(_refusal(which, error.message, error.hint))
            sides.append(Compared(name=which, report=None, published=_headline(published)))
            continue
        side = Compared(name=which, report=report, published=_headline(published))
        kind = report.headline.estimator
        if first is None:
            first = kind, terms
        elif kind != first[0]:
            reason = f"its headline is {kind}, that of the first is {first[0]}: their errors can not be paired"
            refused.append(_refusal(which, reason, f'name one in [problem.{name}.evaluate] headline = "..."'))
        else:
            said = f"{which} - {sides[0].name}"
            found = evaluate.difference(terms, first[1], estimator=said, level=level)
            side = msgspec.structs.replace(side, difference=found)
        sides.append(side)
    return Comparison(problem=name, same_rows=True, versions=tuple(sides), refused=tuple(refused))


def _found(project: Project, name: str, version: str | None) -> tuple[str, Policy, str, Report | None]:
    """What it is called, the policy, its digest and the report it was published with."""
    if version is None:
        candidate = places.latest_candidate(project, name)
        policy = learn.load(Path(candidate.directory) / "policy")
        return f"{name} (candidate)", policy, candidate.policy, None
    stored, policy = stored_policy(project, name, version)
    number = str(stored.number)
    called = f"{name}@{number}" if version == number else f"{name}@{number} ({version})"
    return called, policy, stored.digest, stored.report


def _headline(report: Report | None) -> Estimate | None:
    return None if report is None else report.headline


def _refusal(which: str, reason: str, then: str) -> Verdict:
    return Verdict(gate=which, status="not identified", reason=reason, next=then)


def lines(found: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table as texts: its head, and a row a number, a column a version."""
    head = ("", *(one.name for one in found.versions))
    reports = [one.report for one in found.versions]
    rows = [
        ("value", *(_told(report, "headline") for report in reports)),
        ("logged", *(_told(report, "baseline") for report in reports)),
        ("lift, paired", *(_told(report, "lift") for report in reports)),
        ("relative to logged", *(_ratio(report) for report in reports)),
        ("difference to the first", *(_maybe(one.difference) for one in found.versions)),
        ("gates", *(_gates(report) for report in reports)),
        ("when published", *(_maybe(one.published) for one in found.versions)),
        ("decisions", *("" if report is None else f"{report.decisions:,}" for report in reports)),
        ("until", *("" if report is None else day(report.until) for report in reports)),
        ("data", *("" if report is None else report.data[:12] for report in reports)),
    ]
    return head, [row for row in rows if any(row[1:])]


def _told(report: Report | None, field: str) -> str:
    return "" if report is None else f"{interval(getattr(report, field))}"


def _maybe(one: Estimate | None) -> str:
    return "" if one is None else interval(one)


def _ratio(report: Report | None) -> str:
    one = ratio_of(report)
    return "" if one is None else interval(one)


def ratio_of(report: Report | None) -> Estimate | None:
    """The headline relative to what was logged; None: it has no such ratio."""
    if report is None:
        return None
    wanted = (f"{report.headline.estimator} / logged", "reward")
    return next((one for one in report.ratios if (one.estimator, one.metric) == wanted), None)


def _gates(report: Report | None) -> str:
    if report is None or not report.verdicts:
        return ""
    failed = [verdict for verdict in report.verdicts if verdict.status != "pass"]
    return "; ".join(f"{one.gate}: {one.status}" for one in failed) if failed else "pass"


def draw(found: Comparison, into: Path) -> Path:
    """Write a comparison as one HTML page with pictures.

    Raises:
        MissingExtra: the `console` extra is not installed.
    """
    from steersman.flow.compare_page import page

    places.write_bytes(into, page(found).encode())
    return into
