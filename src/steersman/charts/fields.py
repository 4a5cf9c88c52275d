"""Pictures of fields: what their values are, and what the transform makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steersman.charts.style import BEFORE, HEIGHT, NOW, QUIET, WIDTH, Chart, alt, heading, legend, plain, printed
from steersman.core.features import (
    NO_TEXT,
    Constant,
    Encoder,
    Ids,
    Raw,
    Transform,
    list_keys,
    reads,
    stack_lists,
)
from steersman.core.features.transforms import decimal
from steersman.core.profile import LEVELS, Profile
from steersman.core.report import Estimate

Array = np.ndarray

_BINS = 32
_BARS = 12
_FEW = 24
"""Different numbers up to which each has a bar of its own."""

_DRAWN = 1e300
"""What lies farther out is outside every picture: differences of larger numbers are infinite."""

_LARGEST_WHOLE = 2.0**50
"""Beyond it there is hardly a half between two whole numbers."""

_NOW, _BEFORE = "this build", "build before"


def before(profile: Profile, previous: Profile | None = None) -> Chart | None:
    """How the values of a field are distributed, as logged.

    Numbers come from their quantiles, on a logarithmic axis where they are positive and far to one side; without the
    outermost 1/128 on each side where these would squeeze all others, which the subtitle says. Texts and few different
    numbers have a bar each, the most frequent ones.

    Args:
        previous: profile of the same field in the build before: drawn over it.
    Returns:
        None: there is nothing to draw: no value, or texts too many to be counted.
    """
    if _by_value(profile):
        return _bars(profile, previous if previous is not None and _by_value(previous) else None)
    if not profile.quantiles:
        return None
    numbers = previous if previous is not None and previous.quantiles else None
    unit = "ids in a list" if profile.kind == "list" else f"{profile.name}, as logged"
    then = None if numbers is None else numbers.quantiles
    return _histogram(_axis_of(profile, numbers), profile.quantiles, then, unit)


def after(profile: Profile, transform: Transform) -> Chart | None:
    """What the transform makes of the values of a field: the distribution of its column, or the means of its columns.

    Returns:
        None: there is nothing to draw: no value, or too many to be counted.
    """
    if isinstance(transform, Ids):
        return _buckets(profile, transform) if profile.counts else None
    if isinstance(transform, Constant):
        return None
    if profile.type in _SCALES and profile.counts:
        return _lines(profile, transform)
    if profile.type in _SCALES and profile.quantiles:
        values = np.sort(_encoded(transform, list(profile.quantiles))[:, 0].astype(np.float64))
        return _histogram(_plain_axis(values, f"{profile.type} transform"), values, None, _SCALES[profile.type])
    if not profile.counts:
        return None
    return _means(profile, transform)


def importance(rows: Sequence[tuple[str, Estimate, Estimate | None]]) -> Chart:
    """Share of the variance of the logged reward that each field explains, with its interval: alone, and on top.

    Args:
        rows: name of the field, alone, and on top of all others; in the order to draw.
    """
    kinds = "alone", "on top of all others"
    values = [
        {"field": name, "kind": kind, "value": one.value, "low": one.low, "high": one.high}
        for name, *both in rows
        for kind, one in zip(kinds, both, strict=True)
        if one is not None
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("field:N", sort=None, title=None),
        yOffset=alt.YOffset("kind:N", sort=list(kinds)),
        color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[NOW, BEFORE]), legend=legend()),
    )
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="share of the variance of the logged reward", axis=alt.Axis(format="~%")), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        x="value:Q",
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=["circle", "diamond"]), legend=legend()),
    )
    level = rows[0][1].level if rows else 0.95
    return alt.layer(bars, points).properties(
        width=2 * WIDTH,
        height=alt.Step(14),
        title=heading("What each field explains", f"with {level:.0%} intervals, by unit"),
    )


# ---- numbers, from their quantiles


@dataclass(frozen=True)
class _Axis:
    """Bins of a picture.

    Attributes:
        edges: [B + 1], ascending.
        logarithmic: they are even in the logarithm.
        said: the subtitle.
    """

    edges: Array
    logarithmic: bool
    title: str
    said: str


def _axis_of(profile: Profile, previous: Profile | None) -> _Axis:
    """Bins for both builds."""
    every = [np.clip(one.quantiles, -_DRAWN, _DRAWN) for one in (profile, previous) if one is not None]
    low, high = min(one[0] for one in every), max(one[-1] for one in every)
    inner_low, inner_high = min(one[1] for one in every), max(one[-2] for one in every)
    above, below = inner_high - every[0][LEVELS // 2], every[0][LEVELS // 2] - inner_low
    logarithmic = bool(low > 0 and inner_high / 30 >= inner_low and above > 3 * below)
    if logarithmic:
        far = (np.log(inner_high) - np.log(inner_low)) / 10
        ends = max(np.log(low), np.log(inner_low) - far), min(np.log(high), np.log(inner_high) + far)
        edges = np.clip(np.exp(np.linspace(*ends, _BINS + 1)), low, high)
    else:
        room = (inner_high - inner_low) / 10 or high - low
        low, high = max(low, inner_low - room), min(high, inner_high + room)
        whole = (profile.whole or profile.kind == "list") and max(abs(low), abs(high)) < _LARGEST_WHOLE
        edges = _whole_edges(low, high) if whole else _even_edges(low, high)
    outside = 1.0 - float(shares_of(profile.quantiles, edges).sum())
    values = f"{profile.finite or profile.present:,} {'lists' if profile.kind == 'list' else 'values'}"
    said = f"{values}, {_missing(profile)}"
    if outside > 5e-4:
        said += f"; {outside:.1%} lie outside the picture; all reach from {profile.low:.4g} to {profile.high:.4g}"
    return _Axis(edges, logarithmic, f"{profile.name}: before the transform", said)


def _plain_axis(values: Array, title: str) -> _Axis:
    low, high = float(values[0]), float(values[-1])
    return _Axis(_even_edges(low, high), False, f"after the {title}", f"from {low:.3g} to {high:.3g}")


def _even_edges(low: float, high: float) -> Array:
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return np.linspace(low, high, _BINS + 1)
    room = max(abs(low) / 2, 0.5)  # all but one value, or too near for f64
    return np.linspace(low - room, high + room, _BINS + 2)  # an even number of bins would have an edge at the value


def _whole_edges(low: float, high: float) -> Array:
    """Between whole numbers, so that every bin holds as many of them."""
    low, high = np.floor(low), np.ceil(high)
    step = max(np.ceil((high - low + 1) / _BINS), 1.0)
    return np.arange(low - 0.5, high + 0.5 + step, step)


def shares_of(quantiles: Sequence[float] | Array, edges: Array) -> Array:
    """[B] share of the values in every bin, of quantiles at equal steps: even between two of them, all where two are
    equal; a value at an edge is in the bin above, one at the last edge in the last bin.

    >>> shares_of([0.0, 1.0, 1.0, 3.0], np.array([0.0, 1.0, 2.0, 3.0])).round(4).tolist()
    [0.3333, 0.5, 0.1667]
    """
    found = np.asarray(quantiles, dtype=np.float64)
    low, high = found[:-1, None], found[1:, None]
    gap = high / 2 - low / 2
    reached = np.clip(edges[None], low, high) / 2 - low / 2  # [Q, B + 1], halves: a range may be too wide for f64
    spread = np.diff(np.divide(reached, gap, out=np.zeros_like(reached), where=gap > 0), axis=1).sum(axis=0)
    atoms = found[:-1][gap[:, 0] == 0]
    place = np.searchsorted(edges, atoms, side="right") - 1
    place[atoms == edges[-1]] = len(edges) - 2
    inside = (place >= 0) & (place < len(edges) - 1)
    return (spread + np.bincount(place[inside], minlength=len(edges) - 1)) / (len(found) - 1)


def _histogram(axis: _Axis, now: Sequence[float] | Array, then: Sequence[float] | Array | None, unit: str) -> Chart:
    edges = axis.edges
    rows = [
        {"low": low, "high": high, "share": share, "build": _NOW}
        for low, high, share in zip(edges[:-1], edges[1:], shares_of(now, edges), strict=True)
    ]
    scale = alt.Scale(type="log" if axis.logarithmic else "linear", zero=False, nice=False)
    x = alt.X(
        "low:Q",
        scale=scale,
        title=f"{unit} (logarithmic axis)" if axis.logarithmic else unit,
        axis=alt.Axis(tickCount=6, labelOverlap=True, grid=False, format="~g" if axis.logarithmic else alt.Undefined),
    )
    y = alt.Y("share:Q", title="share of values", axis=alt.Axis(format="~%", tickCount=5))
    bars = alt.Chart(alt.Data(values=plain(rows))).mark_rect(stroke="white", strokeWidth=0.5)
    layers: list[Any] = [
        bars.encode(
            x=x, x2="high:Q", y=y, y2=alt.datum(0), color=_builds(then is not None), fillOpacity=alt.value(0.75)
        )
    ]
    if then is not None:
        steps = [*shares_of(then, edges), 0.0]
        line = [{"low": at, "share": share, "build": _BEFORE} for at, share in zip(edges, steps, strict=True)]
        drawn = alt.Chart(alt.Data(values=plain(line))).mark_line(interpolate="step-after", strokeWidth=2)
        layers.append(drawn.encode(x=x, y=y, color=_builds(True)))
    return alt.layer(*layers, width=WIDTH, height=HEIGHT, title=heading(axis.title, axis.said))


# ---- values one by one


def _lines(profile: Profile, transform: Transform) -> Chart:
    """One bar a value where the transform puts it."""
    at = _encoded(transform, [value for value, _ in profile.counts])[:, 0]
    total = sum(rows for _, rows in profile.counts)
    rows = [{"at": x, "share": rows / total} for x, (_, rows) in zip(at, profile.counts, strict=True)]
    gaps = np.diff(np.unique(at)) / max(float(np.ptp(at)), 1e-300)
    size = min(max(0.8 * WIDTH * float(gaps.min(initial=1.0)), 2.0), 20.0)
    x = alt.X(
        "at:Q",
        title=_SCALES[profile.type],
        scale=alt.Scale(zero=False, nice=False, padding=size),
        axis=alt.Axis(tickCount=6, labelOverlap=True, grid=False),
    )
    y = alt.Y("share:Q", title="share of values", axis=alt.Axis(format="~%", tickCount=5))
    bars = alt.Chart(alt.Data(values=plain(rows))).mark_bar(size=size, color=NOW, opacity=0.75).encode(x=x, y=y)
    said = f"{len(rows):,} different values from {at.min():.3g} to {at.max():.3g}"
    return alt.layer(bars, width=WIDTH, height=HEIGHT, title=heading(f"after the {profile.type} transform", said))


def _by_value(profile: Profile) -> bool:
    """Whether every value was counted, and a bar each makes a picture."""
    return bool(profile.counts) and (profile.kind != "number" or len(profile.counts) <= _FEW)


def _bars(profile: Profile, previous: Profile | None) -> Chart:
    """The most frequent values of either build; the rest as one bar."""
    now = {_said(value): rows for value, rows in profile.counts}
    then = {_said(value): rows for value, rows in previous.counts} if previous else {}
    total, total_then = max(sum(now.values()), 1), max(sum(then.values()), 1)
    order = sorted(
        now | then, key=lambda value: (-max(now.get(value, 0) / total, then.get(value, 0) / total_then), value)
    )
    shown = order[:_BARS] if len(order) > _BARS + 1 else order
    if profile.kind == "number":
        every = sorted(float(value) for value, _ in (*profile.counts, *(previous.counts if previous else ())))
        shown = [value for value in dict.fromkeys(map(decimal, every)) if value in set(order[:_FEW])]
    rest = [value for value in order if value not in set(shown)]
    what = "ids" if profile.kind == "list" else "values"
    labels = [*shown, f"{len(rest):,} other {what}"] if rest else shown

    def rows(counts: Mapping[str, int], of: int, build: str) -> list[dict[str, Any]]:
        shares = [counts.get(value, 0) / of for value in shown]
        shares += [sum(counts.get(value, 0) for value in rest) / of] if rest else []
        pairs = zip(map(printed, labels), shares, strict=True)
        return [{"value": label, "share": share, "build": build} for label, share in pairs]

    said = f"{total:,} {what}, {profile.distinct:,} different, {_missing(profile)}"
    title = heading(f"{profile.name}: before the transform", said)
    both = rows(now, total, _NOW), rows(then, total_then, _BEFORE) if previous else []
    if profile.kind == "number":
        return _standing(*both, f"{profile.name}, as logged", title)
    return _ranked(*both, f"share of {what}", title)


def _means(profile: Profile, transform: Transform) -> Chart:
    """Mean of every column over all rows, the largest first."""
    values: list[Any] = [value for value, _ in profile.counts]
    weights = [rows for _, rows in profile.counts]
    counted = sum(weights)
    weights += [profile.rows - profile.present, profile.present - counted if profile.kind == "number" else 0]
    values += [None, np.inf] if profile.kind == "number" else [None, None]
    means = np.array(weights) @ _encoded(transform, values).astype(np.float64) / max(profile.rows, 1)
    names = [label.removeprefix(transform.name).strip() or "value" for label in transform.labels]
    order = np.argsort(-means, kind="stable")
    shown = order[:_BARS] if len(order) > _BARS + 1 else order
    rows = [{"value": printed(names[i]), "share": float(means[i]), "build": _NOW} for i in shown]
    if len(shown) < len(order):
        rest = float(means[order[len(shown) :]].sum())
        rows.append({"value": f"{len(order) - len(shown):,} other columns", "share": rest, "build": _NOW})
    said = f"{transform.width:,} columns, {profile.rows:,} rows"
    return _ranked(rows, [], "mean of the column", heading(f"after the {profile.type} transform", said))


def _ranked(now: list[dict[str, Any]], then: list[dict[str, Any]], what: str, title: alt.TitleParams) -> Chart:
    """Horizontal bars in the order given; the build before as a tick on each."""
    y = alt.Y("value:N", sort=None, title=None, axis=alt.Axis(labelLimit=150, ticks=False))
    x = alt.X("share:Q", title=what, axis=alt.Axis(format="~%", tickCount=5), scale=alt.Scale(zero=True))
    bars = alt.Chart(alt.Data(values=plain(now))).mark_bar(opacity=0.75)
    layers: list[Any] = [bars.encode(x=x, y=y, color=_builds(bool(then)))]
    if then:
        ticks = alt.Chart(alt.Data(values=plain(then))).mark_tick(thickness=3, size=12, opacity=1)
        layers.append(ticks.encode(x=x, y=y, color=_builds(True)))
    height = HEIGHT if len(now) > 7 else alt.Step(26)
    return alt.layer(*layers, width=WIDTH, height=height, title=title)


def _standing(now: list[dict[str, Any]], then: list[dict[str, Any]], what: str, title: alt.TitleParams) -> Chart:
    """Vertical bars in the order given, for numbers; the build before as a tick on each."""
    x = alt.X("value:N", sort=None, title=what, axis=alt.Axis(labelAngle=0, labelOverlap=True, ticks=False))
    y = alt.Y("share:Q", title="share of values", axis=alt.Axis(format="~%", tickCount=5))
    bars = alt.Chart(alt.Data(values=plain(now))).mark_bar(opacity=0.75)
    layers: list[Any] = [bars.encode(x=x, y=y, color=_builds(bool(then)))]
    if then:
        ticks = alt.Chart(alt.Data(values=plain(then))).mark_tick(thickness=3, opacity=1, orient="horizontal")
        layers.append(ticks.encode(x=x, y=y, color=_builds(True)))
    return alt.layer(*layers, width=WIDTH if len(now) > 7 else alt.Step(44), height=HEIGHT, title=title)


def _buckets(profile: Profile, transform: Ids) -> Chart:
    """Share of all ids that fall into each bucket."""
    ids = [value for value, _ in profile.counts]
    weights = np.array([rows for _, rows in profile.counts], dtype=np.float64)
    shares = weights @ _encoded(transform, [[one] for one in ids])[:, : transform.buckets] / weights.sum()
    rows = [{"low": bucket, "high": bucket + 1, "share": share} for bucket, share in enumerate(shares)]
    used = int(np.count_nonzero(shares))
    said = f"{len(ids):,} different ids in {used:,} of {transform.buckets:,} buckets; the rule is an even share"
    x = alt.X(
        "low:Q",
        title="bucket",
        scale=alt.Scale(domain=[0, transform.buckets], nice=False),
        axis=alt.Axis(tickCount=6, format="d", grid=False),
    )
    y = alt.Y("share:Q", title="share of ids", axis=alt.Axis(format="~%", tickCount=5))
    bars = alt.Chart(alt.Data(values=plain(rows))).mark_rect(color=NOW)
    even = alt.Chart(alt.Data(values=[{"share": 1 / transform.buckets}])).mark_rule(color=QUIET, strokeDash=[4, 3])
    layers = bars.encode(x=x, x2="high:Q", y=y, y2=alt.datum(0)), even.encode(y="share:Q")
    return alt.layer(*layers, width=WIDTH, height=HEIGHT, title=heading("after hashing into buckets", said))


def _encoded(transform: Transform, values: Sequence[Any]) -> Array:
    """[N, W] f32: what the encoder makes of single values; None is missing."""
    n = len(values)
    numbers, texts = np.empty((n, 0)), np.empty((n, 0), dtype=object)
    match reads(transform):
        case "number":
            raw = Raw(np.array([[np.nan if value is None else value] for value in values], dtype=np.float64), texts)
        case "text":
            known = [NO_TEXT if value is None else value for value in values]
            raw = Raw(numbers, np.array(known, dtype=object)[:, None])
        case _:
            raw = Raw(numbers, texts, stack_lists([list_keys(transform.name, values)]))
    return Encoder(context=(transform,)).encode_context(raw)


_SCALES = {
    "continuous": "standard deviations from the mean",
    "boxcox": "standard deviations from the mean, after the power",
    "probability": "log odds",
    "quantile": "place among the boundaries, 0 to 1",
}


def _builds(both: bool) -> Any:
    """One colour a build; a legend if there are two."""
    scale = alt.Scale(domain=[_NOW, _BEFORE], range=[NOW, BEFORE])
    return alt.Color("build:N", scale=scale, legend=legend() if both else None)


def _missing(profile: Profile) -> str:
    share = profile.missing_share
    return "none missing" if share == 0 else f"{share:.2g} of rows missing" if share < 0.001 else f"{share:.1%} missing"


def _said(value: str | float) -> str:
    return value if isinstance(value, str) else decimal(value)
