"""A report as one HTML page, drawn from the report alone, for a reader who sees one for the first time."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from steersman import charts
from steersman.core.report import Report
from steersman.flow.page import day, figure, frame, interval, status, table

CURVES = ("loss", "q")
"""Figures of the learner that are drawn."""


def page(report: Report, which: str) -> str:
    """The whole page.

    Args:
        which: what the policy is called, e.g. `cartpole, the last candidate`.
    """
    unit = "decision" if report.horizon == 1 else f"episode of up to {report.horizon:,} steps"
    window = f"{day(report.since)} to {day(report.until)}" if report.since > 0 else f"up to {day(report.until)}"
    facts = [
        ("log", f"{report.decisions:,} decisions of {report.headline.n:,} units, {window}; data {report.data[:12]}"),
        ("values", f"reward per {unit}"),
        ("policy", f"{report.policy[:12]}, judged with seed {report.seed}"),
    ]
    if report.estimated:
        facts.append(("estimated", f"{report.estimated:,} propensities were not logged: no interval knows their error"))
    told = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return frame(
        f"Report on {which}",
        f'<p class="answer">{_answer(report)}</p><dl>{told}</dl>{gates(report)}'
        f"{''.join(_pictures(report))}{_numbers(report)}{_refused(report)}",
    )


def _answer(report: Report) -> str:
    """The answer first, in one sentence each."""
    failed = [verdict for verdict in report.verdicts if verdict.status != "pass"]
    if report.passed:
        answer = '<span class="pass">Every gate passed.</span>'
    elif any(verdict.status == "not identified" for verdict in failed):
        answer = f'<span class="unknown">The log can not tell</span> ({len(failed)} of {len(report.verdicts)} gates).'
    else:
        answer = f'<span class="fail">{len(failed)} of {len(report.verdicts)} gates failed.</span>'
    ratio = next((one for one in report.ratios if one.estimator == f"{report.headline.estimator} / logged"), None)
    parity = f", or {interval(ratio)} relative to the log, where 1 is parity" if ratio is not None else ""
    unit = "decision" if report.horizon == 1 else "episode"
    return (
        f"{answer} A reward of {interval(report.headline)} a {unit} is expected, {interval(report.baseline)} was "
        f"logged: a difference of {interval(report.lift)}{parity}."
    )


def gates(report: Report) -> str:
    """The gates as a table."""
    if not report.verdicts:
        return "<h2>Gates</h2><p>None was asked.</p>"
    rows = [
        (
            status(one),
            escape(one.gate),
            _limit(one.value),
            _limit(one.limit),
            escape(one.reason),
            escape(one.next),
        )
        for one in report.verdicts
    ]
    head = ("", "gate", "number", "limit", "why", "what to do next")
    return (
        f"<h2>Gates</h2>{table(head, rows, 'wrap')}<p class=quiet>Each is a question that the policy must pass before "
        "it may decide. &ldquo;Not identified&rdquo; is not &ldquo;bad&rdquo;: this log can not answer.</p>"
    )


def _pictures(report: Report) -> Iterator[str]:
    yield "<h2>Is it better than what was logged?</h2>"
    ratios = [one for one in report.ratios if one.metric == "reward"]
    rewards = [one for one in report.estimates if one.metric == "reward"]
    drawn = charts.estimates(ratios or rewards, report.headline.estimator, None if ratios else report.baseline)
    yield figure(
        charts.svg(drawn),
        "Look at the blue line, the estimate that the gates judge: if all of it is to the right of the dashed line, "
        "the policy is better than what was logged. The others, with other assumptions, should lie near it.",
    )
    yield from _metrics(report)
    if report.weights is not None:
        yield "<h2>Does the log say enough about it?</h2>"
        yield figure(
            charts.svg(charts.weights(report.weights, report.headline.ess)),
            "Where a decision weighs 1, log and policy agree. Look for diamonds far right that stand high above their "
            "bars: there few decisions carry much of the estimate, and it stands on little.",
        )
    if report.calibration:
        yield figure(
            charts.svg(charts.calibration(report.calibration)),
            "Points should touch the dashed line: what the log says it does with probability 0.2 must happen one time "
            "in five. Above it, propensities are wrong; below it, they are wrong or some candidates were never tried.",
        )
    if report.shares:
        yield "<h2>What would it do?</h2>"
        yield figure(
            charts.svg(charts.shares(report.shares, report.previous)),
            "Look for an action that jumps: the bars are what each action got in the log, and what it would get from "
            "this policy in the same situations. A policy that drops an action also stops learning about it.",
        )
    yield from _training(report)


def _metrics(report: Report) -> Iterator[str]:
    if not report.lifts:
        return
    headline = report.headline.estimator
    ratios = [(one.metric, one) for one in report.ratios if one.estimator == f"{headline} / logged"]
    if ratios:
        yield figure(
            charts.svg(charts.intervals(ratios, 1.0, "Each metric", "relative to the logged policy: 1 is parity")),
            "One line a metric: right of the dashed line there is more of it than was logged (for numbers below 0: "
            "less loss), left of it less. Whether more is good depends on the metric.",
        )
    values = {one.metric: one for one in report.estimates if one.estimator == headline}
    rows = [
        (escape(one.metric), interval(logged), interval(values[one.metric]), interval(one))
        for logged, one in zip((report.baseline, *report.baselines), (report.lift, *report.lifts), strict=True)
    ]
    yield table(("metric", "logged", "this policy", "difference, paired"), rows)


def _training(report: Report) -> Iterator[str]:
    if not report.learning:
        return
    some = [charts.curve(report.learning, name) for name in CURVES if name in report.learning[0].figures]
    if any(one.values for one in report.learning):
        some.append(charts.validation(report.learning))
    yield "<section><h2>How was it trained?</h2><div>"
    yield from (f"<figure>{charts.svg(one)}</figure>" for one in some)
    yield (
        "</div><p class=quiet>The loss should fall and then stay; q, the mean value that the net believes in, should "
        f"settle and not run away; the estimate on validation units should rise. {_kept(report)}Training never saw the "
        "units that this report is about, nor did they choose a step.</p></section>"
    )


def _kept(report: Report) -> str:
    """Which step was kept, and why."""
    for one in report.learning:
        if one.picked:
            return (
                f"This policy is that of step {one.step:,}, the best by {one.values[0].estimator} on the validation "
                f"units, with the worst where the log tells nothing ({one.score:.4g}); of the best of several tries "
                "its own estimate there is too good. "
            )
    return "This policy is that of the last step. "


def _numbers(report: Report) -> str:
    ratios = {(one.estimator, one.metric): one for one in report.ratios}
    rows = []
    for one in report.estimates:
        ratio = ratios.get((f"{one.estimator} / logged", one.metric))
        cells = (escape(one.estimator), escape(one.metric), interval(one), interval(ratio) if ratio else "")
        rows.append((*cells, f"{one.ess:,.0f}", f"{one.n:,}"))
    rows.append(
        ("logged", "reward", interval(report.baseline), "", f"{report.baseline.ess:,.0f}", f"{report.baseline.n:,}")
    )
    head = ("estimator", "metric", "value", "relative to logged", "ess", "units")
    return (
        f"<h2>All numbers</h2>{table(head, rows)}<p class=quiet>In brackets the {report.headline.level:.0%} interval "
        "(at least: a bound, which covers more often than it says); "
        "ess: how many units, weighed evenly, would say as much.</p>"
    )


def _refused(report: Report) -> str:
    if not report.refused:
        return ""
    rows = [(escape(one.gate), escape(one.reason), escape(one.next)) for one in report.refused]
    return f"<h2>What could not be estimated</h2>{table(('what', 'why', 'what to do next'), rows, 'wrap')}"


def _limit(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}"
