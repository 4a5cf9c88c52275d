"""A comparison of versions as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from steersman import charts
from steersman.core.report import OTHERS, ActionShare
from steersman.flow.comparing import Compared, Comparison, lines, ratio_of
from steersman.flow.page import figure, frame, status, table


def page(found: Comparison) -> str:
    """The whole page."""
    names = ", ".join(one.name for one in found.versions)
    rows = "judged on the same decisions" if found.same_rows else "each with the report it was published with"
    return frame(
        f"Versions of {found.problem} side by side",
        f"<p>{escape(names)}: {rows}.</p>{_table(found)}{''.join(_pictures(found))}{_shares(found)}{_refused(found)}",
    )


def _table(found: Comparison) -> str:
    head, rows = lines(found)
    return table([escape(name) for name in head], [[escape(cell) for cell in row] for row in rows], "wrap")


def _pictures(found: Comparison) -> Iterator[str]:
    ratios = [(one.name, ratio) for one in found.versions if (ratio := ratio_of(one.report)) is not None]
    if ratios:
        drawn = charts.intervals(ratios, 1.0, "Each version", "relative to the logged policy: 1 is parity")
        yield figure(
            charts.svg(drawn),
            "Right of the dashed line a version is better than what was logged. Intervals that overlap do not say that "
            "two versions are alike: they were judged on the same decisions, and only their difference tells.",
        )
    some = [(one.name, one.difference) for one in found.versions if one.difference is not None]
    if some:
        first = found.versions[0].name
        drawn = charts.intervals(some, 0.0, f"Difference to {first}", "reward more than it")
        yield figure(
            charts.svg(drawn),
            "If all of a line is to the right of the dashed one, that version is better than the first; if it crosses, "
            "this log can not tell them apart.",
        )


def _shares(found: Comparison) -> str:
    known = [one for one in found.versions if one.report is not None and one.report.shares]
    if not known:
        return ""
    names = list(dict.fromkeys(share.action for one in known for share in _of(one)))
    rows = []
    for name in names:
        cells = [next((f"{s.target.value:.1%}" for s in _of(one) if s.action == name), "") for one in known]
        logged = next((f"{s.logged.value:.1%}" for one in known for s in _of(one) if s.action == name), "")
        rows.append((escape(name if name != OTHERS else "all others"), logged, *cells))
    head = ("action", "logged", *(escape(one.name) for one in known))
    return f"<h2>Who gets which action</h2>{table(head, rows)}"


def _of(one: Compared) -> tuple[ActionShare, ...]:
    return () if one.report is None else one.report.shares


def _refused(found: Comparison) -> str:
    if not found.refused:
        return ""
    rows = [
        (
            status(one),
            escape(one.gate),
            escape(one.reason),
            escape(one.next),
        )
        for one in found.refused
    ]
    return f"<h2>What could not be told</h2>{table(('', 'what', 'why', 'what to do next'), rows, 'wrap')}"
