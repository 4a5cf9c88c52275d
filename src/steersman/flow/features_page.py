"""The report on features as one HTML page: nothing in it comes from elsewhere, so that it opens without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from steersman import charts
from steersman.core.profile import Profile
from steersman.core.report import Estimate
from steersman.evaluate.importance import Importance
from steersman.flow.features import Feature, Features, advice, comparison, described, explained, moved, share
from steersman.flow.page import frame, table

Told = Mapping[tuple[str, str], Importance]
"""(group, name) -> what the field says about the logged reward."""

PICTURES = 100
"""Fields that have pictures: the ones that moved most, then the ones that say most about the reward."""

RANKED = 30
"""Fields in the picture of importance."""


def page(found: Features, then: Mapping[str, Profile]) -> str:
    """The whole page.

    Args:
        found: with importances, or with the reason why there are none.
        then: `group.name` -> profile of the field in the build before.
    """
    told = found.told
    drawn = {one.key for one in _most_telling(found.fields, told)[:PICTURES]}
    fields = "".join(
        _field(
            one,
            told.get(one.key),
            found.previous,
            _pictures(one, then.get(".".join(one.key))) if one.key in drawn else "",
        )
        for one in found.fields
    )
    left_out = len(found.fields) - len(drawn)
    note = [f"{left_out:,} fields have no picture here: those that moved least and say least"] if left_out > 0 else []
    said = "\n".join([*comparison(found), *advice(found), *note])
    title = f"Features of {found.problem}"
    return frame(
        title,
        f"<p>{len(found.fields):,} fields of {found.rows:,} decisions, build "
        f"{escape(Path(found.build).name)}</p><pre>{escape(said)}</pre>"
        f"{_table(found.fields, told)}{_importances(found)}{fields}",
    )


def _most_telling(fields: Sequence[Feature], told: Told) -> list[Feature]:
    def telling(one: Feature) -> tuple[float, float]:
        importance = told.get(one.key)
        strong = one.drift is not None and one.drift.reading in ("moderate", "strong")
        psi = (one.drift.psi or 0.0) if one.drift and strong else 0.0
        return (-psi, -importance.alone.value if importance else 0.0)

    return sorted(fields, key=telling)


def _table(fields: Sequence[Feature], told: Told) -> str:
    head = ("field", "type", "missing", "PSI", "shift", "KS", "alone", "on top of the others")
    rows = []
    for one in fields:
        importance, drift = told.get(one.key), one.drift
        cells = (
            f'<a href="#{_anchor(one)}">{escape(one.profile.name)}</a>',
            escape(one.profile.type),
            share(one.missing_share),
            _number(drift.psi if drift else None),
            f'<span class="{drift.reading}">{drift.reading}</span>' if drift else "",
            _number(drift.ks if drift else None),
            _interval(importance.alone if importance else None),
            _interval(importance.on_top if importance else None),
        )
        rows.append(cells)
    return table(head, rows)


def _importances(found: Features) -> str:
    if found.importances is None:
        return f"<h2>Importance for the logged reward</h2><p>It can not be told: {escape(found.unknown)}</p>"
    every = found.importances
    names = {f"{one.group}.{one.name}" if one.group != "action" else "the action itself": one for one in every.fields}
    ranked = sorted(names.items(), key=lambda pair: -pair[1].alone.value)[:RANKED]
    picture = charts.svg(charts.importance([(name, one.alone, one.on_top) for name, one in ranked])) if ranked else ""
    together = f"All together explain {_interval(every.together)}. " if every.together else ""
    few = f"The {RANKED} that say most of {len(names):,}. " if len(names) > RANKED else ""
    action = names.get("the action itself")
    taken = f"Which action was taken explains {_interval(action.alone)} alone. " if action else ""
    none = "" if every.together else f"There is no model of all {every.columns:,} columns together: they are too many. "
    return (
        f"<h2>Importance for the logged reward</h2><p>Share of the variance of the reward of a decision that the "
        f"columns of a field explain, on units that the model never saw: alone, and what is lost if only this field is "
        f"left out. From {every.rows:,} decisions of {every.units:,} units. {together}{none}{taken}{few}</p>"
        f"<figure>{picture}</figure><p class=quiet>It is linear, and it is what goes together in the log, not what "
        f"causes what. A field that says nothing here may still tell which action is better for whom.</p>"
    )


def _field(one: Feature, importance: Importance | None, previous: str, pictures: str) -> str:
    profile = one.profile
    facts = [
        ("type", f"{profile.type}: {profile.reason}"),
        ("evidence", ", ".join(f"{name} {value:.4g}" for name, value in sorted(profile.evidence.items()))),
        ("becomes", f"{described(one.transform)}; {one.columns:,} columns"),
        ("missing", f"{share(one.missing_share)} of {profile.rows:,} rows"),
        ("drift", moved(one.drift) or ("new in this build" if previous else "no earlier build to compare with")),
    ]
    if profile.kind == "number" and profile.finite:
        numbers = f"{profile.low:.4g} to {profile.high:.4g}, mean {profile.mean:.4g}, deviation {profile.std:.4g}"
        facts.append(("values", numbers))
    if importance:
        on_top = f"; {_interval(importance.on_top)} on top of the others" if importance.on_top else ""
        facts.append(("reward", f"{_interval(importance.alone)} of its variance alone{on_top}"))
    told = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts if text)
    heading = f"<h2>{escape(profile.name)} <small>{profile.group}</small></h2>"
    return f'<section id="{_anchor(one)}">{heading}<dl>{told}</dl>{pictures}</section>'


def _pictures(one: Feature, then: Profile | None) -> str:
    same = then if then is not None and then.kind == one.profile.kind else None
    both = charts.before(one.profile, same), charts.after(one.profile, one.transform)
    some = [charts.svg(chart) for chart in both if chart is not None]
    if not some:
        return "<p class=quiet>There is nothing to draw: no value, or texts too many to be counted.</p>"
    return f"<div>{''.join(f'<figure>{one}</figure>' for one in some)}</div>"


def _anchor(one: Feature) -> str:
    return quote(".".join(one.key), safe="")


def _interval(estimate: Estimate | None) -> str:
    return "" if estimate is None else explained(estimate)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
