"""Pictures of a report: estimates, lifts, weights, calibration, shares of actions, and how the policy was trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steersman.charts.style import (
    BEFORE,
    HEIGHT,
    NOW,
    QUIET,
    THIRD,
    WIDTH,
    Chart,
    alt,
    heading,
    legend,
    plain,
    printed,
)
from steersman.core.report import OTHERS, ActionShare, Calibration, Estimate, Learned, Weights

WIDE = 2 * WIDTH
"""Of a picture that stands alone on its line."""

FAR = 4.0
"""Where an interval is cut: so many times the median width of all away from the middle ones."""

LOGGED = 24
"""Actions in the picture of shares; the rest are one bar."""

TICKS = alt.Axis(tickCount=8, labelOverlap=True)

SMALL = 0.02
"""Propensities below this are on a logarithmic axis."""


def estimates(rows: Sequence[Estimate], headline: str, parity: Estimate | None) -> Chart:
    """Estimates of one policy with their intervals, one a line, around what was logged.

    Args:
        rows: relative to what was logged (1 is parity) if `parity` is None, else in units of reward.
        headline: name of the estimator that the gates judge: it is marked.
        parity: the logged value with its interval.
    """
    at = 1.0 if parity is None else parity.value
    low, high = _window([*rows, *([] if parity is None else [parity])], at)
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    values: list[dict[str, Any]] = [
        {
            "estimator": printed(one.estimator.removesuffix(" / logged")),
            "kind": "judged by the gates" if one.estimator.removesuffix(" / logged") == headline else "beside it",
            "value": one.value,
            "low": max(one.low, low),
            "high": min(one.high, high),
            "cut": one.low < low or one.high > high,
        }
        for one in rows
    ]
    unit = "relative to the logged policy: 1 is parity, to the right is better" if parity is None else "reward"
    kinds = ["judged by the gates", "beside it"]
    base = alt.Chart(alt.Data(values=plain(values))).encode(
        y=alt.Y("estimator:N", sort=None, title=None, axis=alt.Axis(ticks=False)),
        color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[NOW, QUIET]), legend=legend()),
    )
    inside = [row for row in values if low <= row["value"] <= high]
    points = alt.Chart(alt.Data(values=plain(inside))).encode(
        y=alt.Y("estimator:N", sort=None), color=alt.Color("kind:N", legend=None)
    )
    layers: list[Any] = [_rule(at)]
    if parity is not None:
        band = alt.Chart(alt.Data(values=[{"low": max(parity.low, low), "high": min(parity.high, high)}]))
        layers.insert(0, band.mark_rect(color=BEFORE, opacity=0.15).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"))
    layers.append(
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale, title=unit, axis=TICKS), x2="high:Q")
    )
    layers.append(points.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("value:Q", scale=scale)))
    cut = sum(row["cut"] for row in values)
    said = f"{rows[0].level:.0%} intervals, by unit" + (f"; {_cut(cut)}" if cut else "")
    return alt.layer(*layers, width=WIDE, height=alt.Step(22), title=heading("What the policy is worth", said))


def intervals(rows: Sequence[tuple[str, Estimate]], at: float, title: str, unit: str) -> Chart:
    """Numbers of one unit with their intervals, one a line, around a dashed line.

    Args:
        rows: name and number.
        at: where the dashed line is: parity, or no difference.
    """
    low, high = _window([one for _, one in rows], at)
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    values: list[dict[str, Any]] = [
        {"name": printed(name), "value": one.value, "low": max(one.low, low), "high": min(one.high, high)}
        for name, one in rows
    ]
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(ticks=False, labelLimit=260))
    base = alt.Chart(alt.Data(values=plain(values))).encode(y=y)
    x = alt.X("low:Q", scale=scale, title=unit, axis=TICKS)
    bars = base.mark_rule(strokeWidth=2, color=NOW).encode(x=x, x2="high:Q")
    inside = alt.Chart(alt.Data(values=plain([row for row in values if low <= row["value"] <= high])))
    points = inside.mark_point(filled=True, size=70, opacity=1, color=NOW).encode(x="value:Q", y=y)
    said = heading(title, f"{rows[0][1].level:.0%} intervals, paired, by unit")
    return alt.layer(_rule(at), bars, points, width=WIDE, height=alt.Step(24), title=said)


def weights(found: Weights, ess: float) -> Chart:
    """How many decisions have which weight, and how much of all weight they hold, on a logarithmic axis.

    Args:
        ess: effective number of units of the headline.
    """
    total = sum(found.counts) + found.zeros
    kinds = ["share of decisions", "share of all weight"]
    rows = []
    for low, high, count, mass in zip(found.edges[:-1], found.edges[1:], found.counts, found.masses, strict=True):
        middle = float(np.sqrt(low * high))
        rows.append({"low": low, "high": high, "at": middle, "share": count / total, "mass": mass})
    color = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[NOW, BEFORE]), legend=legend())
    x = alt.X(
        "low:Q",
        scale=alt.Scale(type="log", nice=False),
        title="weight of a decision: target / propensity (logarithmic axis)",
        axis=alt.Axis(tickCount=7, labelOverlap=True, grid=False, format="~g"),
    )
    y = alt.Y("share:Q", title="share", axis=alt.Axis(format="~%", tickCount=5))
    bars = alt.Chart(alt.Data(values=plain(rows))).mark_rect(stroke="white", strokeWidth=0.5, opacity=0.75)
    held = [row for row in rows if row["mass"] > 0]
    dots = alt.Chart(alt.Data(values=plain(held))).mark_point(shape="diamond", filled=True, size=45, opacity=1)
    layers: list[Any] = [
        bars.transform_calculate(kind=f"'{kinds[0]}'").encode(x=x, x2="high:Q", y=y, y2=alt.datum(0), color=color),
        dots.transform_calculate(kind=f"'{kinds[1]}'").encode(x="at:Q", y="mass:Q", color=color),
    ]
    if found.edges[0] < 1 < found.edges[-1]:
        layers.append(_rule(1.0))
    mean = found.mean
    said = (
        f"ess {ess:,.0f} of {mean.n:,} units; largest weight {found.largest:,.3g}; mean {mean.value:.3g} "
        f"[{mean.low:.3g}, {mean.high:.3g}]; {found.zeros / total:.1%} of decisions have weight 0"
    )
    return alt.layer(*layers, width=WIDE, height=HEIGHT, title=heading("How decisions are weighed", said))


def calibration(rows: Sequence[Calibration]) -> Chart:
    """How often candidates were taken against the propensities that the log states, a point a group."""
    kinds = ["by action", "by the target's probability"]
    values: list[dict[str, Any]] = [
        {
            "kind": kinds[0] if one.by == "action" else kinds[1],
            "stated": one.stated,
            "seen": one.seen,
            "low": one.stated * max(one.ratio.low, 0.0),
            "high": one.stated * one.ratio.high,
        }
        for one in rows
    ]
    least = min(min(row["stated"], row["seen"]) for row in values)
    most = max(max(row["stated"], row["high"]) for row in values) * 1.05
    small = least < SMALL
    low = least / 2 if small else 0.0
    scale = alt.Scale(type="log" if small else "linear", domain=[low, most], nice=False, clamp=True)
    for row in values:
        row["low"], row["high"] = max(row["low"], low), min(row["high"], most)
    axis = alt.Axis(format="~g", tickCount=6, labelOverlap=True)
    x = alt.X("stated:Q", scale=scale, axis=axis, title="propensity, as the log states it" + " (log)" * small)
    taken = "share of times it was taken" + " (log)" * small
    y = alt.Y("seen:Q", scale=scale, axis=axis, title=taken)
    ends = alt.Data(values=[{"stated": low, "seen": low}, {"stated": most, "seen": most}])
    line = alt.Chart(ends).mark_line(color=QUIET, strokeDash=[4, 3], strokeWidth=1.5).encode(x=x, y=y)
    base = alt.Chart(alt.Data(values=plain(values)))
    color = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[NOW, BEFORE]), legend=legend())
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=["circle", "diamond"]), legend=legend())
    bars = base.mark_rule(strokeWidth=1.5).encode(
        x=x, y=alt.Y("low:Q", scale=scale, axis=axis, title=taken), y2="high:Q", color=color
    )
    points = base.mark_point(filled=True, size=55, opacity=1).encode(x=x, y=y, color=color, shape=shape)
    off = sum(not one.ratio.low <= 1 <= one.ratio.high for one in rows)
    said = f"{len(rows)} groups, {off} of them off the line by more than their {rows[0].ratio.level:.0%} interval"
    title = heading("Whether the propensities are right", said)
    return alt.layer(line, bars, points, width=WIDTH, height=WIDTH, title=title)


def shares(rows: Sequence[ActionShare], previous: str) -> Chart:
    """What share of the decisions each action got in the log, and would get from the version before and the target."""
    kinds = ["logged", *([previous] if previous else []), "this policy"]
    shown = list(rows[:LOGGED])
    values = []
    for one in shown:
        both = zip(kinds, (one.logged, *((one.previous,) if previous else ()), one.target), strict=True)
        name = printed(one.action) if one.action != OTHERS else "all others"
        values += [
            {"action": name, "kind": kind, "share": share.value, "low": share.low, "high": share.high}
            for kind, share in both
            if share is not None
        ]
    colors = [BEFORE, *([THIRD] if previous else []), NOW]
    base = alt.Chart(alt.Data(values=plain(values))).encode(
        y=alt.Y("action:N", sort=None, title=None, axis=alt.Axis(labelLimit=180, ticks=False)),
        yOffset=alt.YOffset("kind:N", sort=kinds),
    )
    color = alt.Color("kind:N", sort=kinds, scale=alt.Scale(domain=kinds, range=colors), legend=legend())
    title = "share of decisions"
    x = alt.X("share:Q", title=title, axis=alt.Axis(format="~%", tickCount=6))
    bars = base.mark_bar(opacity=0.75).encode(x=x, color=color)
    whiskers = base.mark_rule(color="#333333").encode(x=alt.X("low:Q", title=title), x2="high:Q")
    left = len(rows) - len(shown)
    said = "in the contexts of the log" + (f"; {left} more actions get less" if left > 0 else "")
    step = alt.Step(10) if previous else alt.Step(12)
    return alt.layer(bars, whiskers, width=WIDE, height=step, title=heading("Who gets which action", said))


def curve(points: Sequence[Learned], figure: str) -> Chart:
    """One figure of the learner over the steps of the training, e.g. `loss`."""
    rows = [{"step": one.step, "value": one.figures[figure]} for one in points if figure in one.figures]
    x = alt.X("step:Q", title="training steps", axis=alt.Axis(tickCount=5, grid=False))
    y = alt.Y("value:Q", title=figure, scale=alt.Scale(zero=False))
    line = alt.Chart(alt.Data(values=plain(rows))).mark_line(color=NOW, strokeWidth=1.5).encode(x=x, y=y)
    last = rows[-1]["value"]
    title = heading(f"{figure} while training", f"{rows[0]['value']:.4g} at first, {last:.4g} at the end")
    return alt.layer(line, width=WIDTH, height=HEIGHT, title=title)


def validation(points: Sequence[Learned]) -> Chart:
    """The estimate of the policy on units that training only looks at, over the steps, with its interval; the step that
    was kept stands out."""
    rows = [
        {"step": one.step, "value": first.value, "low": first.low, "high": first.high, "kept": one.picked}
        for one in points
        for first in one.values[:1]
    ]
    name = next(one.values[0] for one in points if one.values)
    x = alt.X("step:Q", title="training steps", axis=alt.Axis(tickCount=5, grid=False))
    base = alt.Chart(alt.Data(values=plain(rows)))
    y = alt.Y("low:Q", title=f"{name.metric} by {name.estimator}", scale=alt.Scale(zero=False))
    band = base.mark_area(color=NOW, opacity=0.18).encode(x=x, y=y, y2="high:Q")
    line = base.mark_line(color=NOW, strokeWidth=1.5, point=True).encode(x=x, y="value:Q")
    mark = base.mark_point(color=BEFORE, size=160, strokeWidth=2.5, filled=False).encode(x=x, y="value:Q")
    kept = next((f"; kept at step {one.step:,}" for one in points if one.picked), "")
    title = heading("The policy while training", f"{name.level:.0%} interval on {name.n:,} validation units{kept}")
    return alt.layer(band, line, mark.transform_filter("datum.kept"), width=WIDTH, height=HEIGHT, title=title)


def _window(rows: Sequence[Estimate], at: float) -> tuple[float, float]:
    """What a picture of intervals shows: all of them, but of those far wider than most only a part."""
    wide = float(np.median([one.high - one.low for one in rows]))
    middle = [one.value for one in rows if one.high - one.low <= max(wide, 1e-12) * FAR] + [at]
    room = FAR * wide
    low = max(min([one.low for one in rows] + [at]), min(middle) - room)
    high = min(max([one.high for one in rows] + [at]), max(middle) + room)
    edge = 0.05 * (high - low) or max(abs(at), 1e-9) * 0.05
    return low - edge, high + edge


def _rule(at: float) -> Any:
    drawn = alt.Chart(alt.Data(values=[{"at": at}])).mark_rule(color=BEFORE, strokeDash=[4, 3], strokeWidth=1.5)
    return drawn.encode(x="at:Q")


def _cut(count: int) -> str:
    return "1 interval reaches beyond the picture" if count == 1 else f"{count} intervals reach beyond the picture"
