"""Verdicts on how far data and policy have moved from the version that decides now. Asked only where limits are set.

They are off by default: a product that learns changes what its policy does and, with sequences, the contexts in which
it decides. A limit says how much of that nobody needs to look at.
"""

from __future__ import annotations

from msgspec import Struct

from steersman.core.report import Verdict
from steersman.evaluate.alarms import limited


class Moved(Struct, frozen=True, kw_only=True):
    """How far the values of a field have moved since the data of the version before.

    Attributes:
        field: as `group.name`.
        psi, ks: see `core.profile`; None: it can not be told.
        psi_chance, ks_chance: 95% of the fields that did not change have a smaller one.
    """

    field: str
    psi: float | None
    psi_chance: float | None
    ks: float | None
    ks_chance: float | None


class Previous(Struct, frozen=True, kw_only=True):
    """The version that decides now, beside the policy that is judged.

    Attributes:
        version: its name.
        moved: share of the decisions that would go to another action: half the sum over actions of the differences of
            their shares, in [0, 1] (the total variation distance); None: it can not be told.
        fields: of the data; None: they can not be told.
        gone: fields that the data of the version before had, and that of the policy has not.
        unknown: why something can not be told.
    """

    version: str
    moved: float | None
    fields: tuple[Moved, ...] | None
    gone: tuple[str, ...] = ()
    unknown: str = ""


def action_drift(found: Previous, limit: float) -> Verdict:
    """Whether the policy gives other actions than the version before."""
    if found.moved is None:
        return _unknown("action drift", found, limit)
    return limited(
        "action drift",
        found.moved <= limit,
        "fail",
        f"a share of {found.moved:.3g} of the decisions would go to other actions than with {found.version}; "
        f"at most {limit:g} is allowed",
        (found.moved, limit),
        "look at the shares of the actions in the report, then raise the limit or train closer to that version",
    )


def feature_drift(found: Previous, max_psi: float | None, max_ks: float | None) -> list[Verdict]:
    """Whether the fields of the data are still those of the version before: one verdict a kind of limit."""
    verdicts = []
    for measure, limit in (("psi", max_psi), ("ks", max_ks)):
        if limit is None:
            continue
        if found.fields is None:
            verdicts.append(_unknown(f"feature drift, {measure}", found, limit))
        else:
            verdicts.append(_fields(found, measure, limit))
    return verdicts


def _fields(found: Previous, measure: str, limit: float) -> Verdict:
    """The field that moved most, of those that moved more than chance would, decides."""
    told = [
        (value, chance, one.field)
        for one in found.fields or ()
        if (value := getattr(one, measure)) is not None and (chance := getattr(one, f"{measure}_chance")) is not None
    ]
    value, chance, field = max([one for one in told if one[0] > one[1]] or told or [(0.0, 0.0, "no field")])
    beyond = value > limit and value > chance
    gone = f"; gone: {', '.join(found.gone)}" if found.gone else ""
    return limited(
        f"feature drift, {measure}",
        not beyond and not found.gone,
        "fail",
        f"of {len(told)} fields that the data of {found.version} had too, {field} moved most: {measure.upper()} "
        f"{value:.3g}, chance alone {chance:.2g}; at most {limit:g} is allowed{gone}",
        (value, limit),
        "steersman features shows every field: see what changed in the product or in what logs it",
    )


def _unknown(gate: str, found: Previous, limit: float) -> Verdict:
    return Verdict(
        gate=gate,
        status="not identified",
        reason=f"{found.version} can not be compared with: {found.unknown}",
        limit=limit,
        next="build and train again on a disk that keeps both, or drop the limit",
    )
