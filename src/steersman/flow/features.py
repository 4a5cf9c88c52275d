"""The verb `features`: what every field of the last build became, how far it has moved, what it says of the reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from steersman import timeline
from steersman.config import Project
from steersman.core import profile as profiles
from steersman.core.errors import DataError
from steersman.core.features import (
    Binary,
    BoxCox,
    Category,
    Constant,
    Continuous,
    Encoder,
    Enumerated,
    Ids,
    Probability,
    Quantile,
    Transform,
    placed,
)
from steersman.core.features.transforms import EDGE, LIMIT
from steersman.core.profile import Profile
from steersman.core.report import Estimate
from steersman.evaluate.importance import MAX_ROWS, Block, Importance, Importances, importance, sample
from steersman.flow import places

MODERATE, STRONG = 0.1, 0.25
"""Population stability index above which a shift is worth a look, and above which it is a large one. By custom, not
by theory: Siddiqi 2006, Credit Risk Scorecards, ch. 8."""

Reading = Literal["none", "moderate", "strong", "could be chance", "can not be told"]


class Drift(Struct, frozen=True, kw_only=True):
    """How far the values of a field have moved since the build before.

    Attributes:
        psi: population stability index, 0: not at all; None: too many texts to be counted.
        psi_chance: 95% of the fields that did not change have a smaller one, were their rows independent.
        ks: largest difference of the two distribution functions, in [0, 1]; None: texts, or no value.
        ks_chance: as for psi; it has the rounding of the quantiles in it.
        reading: of psi, by custom: above 0.1 moderate, above 0.25 strong, if that is more than chance.
    """

    psi: float | None
    psi_chance: float | None
    ks: float | None
    ks_chance: float | None
    reading: Reading


class Feature(Struct, frozen=True, kw_only=True):
    """One field of a build.

    Attributes:
        profile: its statistics, and its type with the why.
        transform: what makes columns of it.
        columns: how many.
        missing_share: share of the rows without a value, in [0, 1].
        drift: None: there is nothing to compare with; the field may be new.
    """

    profile: Profile
    transform: Transform
    columns: int
    missing_share: float
    drift: Drift | None

    @property
    def key(self) -> tuple[str, str]:
        """(group, name)."""
        return self.profile.group, self.profile.name


class Features(Struct, frozen=True, kw_only=True):
    """All fields of a build.

    Attributes:
        build: its directory.
        rows: decisions in it.
        previous: directory of the build that drift is measured against; empty: there is none.
        left_out: builds that could not be compared with, because another version of Steersman wrote them.
        new, gone: fields that only this build, or only the one before, has; as `group.name`.
        fields: the context first, each group by name.
        importances: what the fields say about the logged reward; None: nobody asked, or it can not be told.
        unknown: why it can not be told.
    """

    problem: str
    build: str
    rows: int
    previous: str
    left_out: int
    new: tuple[str, ...]
    gone: tuple[str, ...]
    fields: tuple[Feature, ...]
    importances: Importances | None = None
    unknown: str = ""

    @property
    def shifted(self) -> tuple[Feature, ...]:
        """Fields with a strong or moderate shift, the strongest first."""
        found = [field for field in self.fields if field.drift and field.drift.reading in ("strong", "moderate")]
        return tuple(sorted(found, key=lambda field: -(field.drift.psi or 0.0) if field.drift else 0.0))

    @property
    def told(self) -> dict[tuple[str, str], Importance]:
        """(group, name) -> what the field says about the logged reward."""
        every = self.importances.fields if self.importances else ()
        return {(one.group, one.name): one for one in every}


def features(project: Project, name: str) -> Features:
    """Every field of the last build: type and why, transform, missing share, drift. Reads no rows.

    Raises:
        NotFoundError: there is no build.
        DataError: the build has no profiles, because its encoder was given.
    """
    directory = places.latest(project, "builds", name, hint=f"steersman build {name}")
    found = timeline.profiles_of(directory)
    encoder = timeline.encoder_of(directory)
    transforms = {"context": encoder.context, "candidate": encoder.candidate}
    if not found and any(transforms.values()):
        raise DataError(f"{directory} has no profiles: its encoder was given", hint=f"steersman build {name}")
    previous, left_out = _previous(directory)
    then = {} if previous is None else {key(one): one for one in timeline.profiles_of(previous)}
    of = {(group, one.name): one for group, several in transforms.items() for one in several}
    fields = tuple(
        Feature(
            profile=one,
            transform=of[one.group, one.name],
            columns=of[one.group, one.name].width,
            missing_share=one.missing_share,
            drift=drift(then[key(one)], one) if key(one) in then else None,
        )
        for one in found
    )
    now = {key(one) for one in found}
    return Features(
        problem=name,
        build=str(directory),
        rows=timeline.summary_of(directory).decisions,
        previous="" if previous is None else str(previous),
        left_out=left_out,
        new=tuple(sorted(now - set(then))) if previous else (),
        gone=tuple(sorted(set(then) - now)) if previous else (),
        fields=fields,
    )


def report(project: Project, name: str, path: Path | None = None, *, seed: int = 0) -> tuple[Features, Path]:
    """The same with the importance of every field for the logged reward, as an HTML page that needs no network.

    Args:
        path: of the page; None: beside the build.
        seed: of the rows that are drawn from a large build, and of the folds.
    Raises:
        MissingExtra: altair or vl-convert is not installed.
    """
    from steersman.flow import features_page  # it needs the extra `console`

    found = features(project, name)
    found = with_importance(found, level=project.policy(name).evaluate.level, seed=seed)
    path = path or Path(found.build).with_name(f"features-{Path(found.build).name}.html")
    then = {key(one): one for one in timeline.profiles_of(Path(found.previous))} if found.previous else {}
    places.write_bytes(path, features_page.page(found, then).encode())
    return found, path


def with_importance(found: Features, *, level: float, seed: int) -> Features:
    """What the fields say about the logged reward, from at most 100,000 rows of whole units.

    Of a build in parts the units are drawn from all of them.
    """
    parts = [timeline.load(part) for part in timeline.parts_of(Path(found.build))]
    before = np.cumsum([0, *(len(part.draws) for part in parts)])
    unit = np.concatenate([part.unit + first for part, first in zip(parts, before, strict=False)])
    rows = sample(unit, MAX_ROWS, seed)
    try:
        told = importance(
            columns_of(parts, rows),
            blocks(parts[0].encoder),
            np.concatenate([part.reward for part in parts])[rows],
            unit[rows],
            level=level,
            seed=seed,
        )
    except DataError as error:
        return msgspec.structs.replace(found, unknown=error.message)
    return msgspec.structs.replace(found, importances=told)


def columns_of(parts: Sequence[timeline.Built], rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function of places in `rows` that gives the columns of the context and of the action taken, [B, F + A] f32;
    of a ranked list the mean over its items.

    Args:
        parts: of a build, all with one encoder.
        rows: of the parts one after the other.
    """
    ends = np.cumsum([len(part) for part in parts])
    encoder = parts[0].encoder

    def of_part(built: timeline.Built, at: np.ndarray) -> np.ndarray:
        context = encoder.encode_context(built.raw.context.take(at))
        if encoder.numbers is not None:
            return np.concatenate([context, np.asarray(built.action[at])], axis=1)
        items = np.asarray(built.action[at]).reshape(len(at), -1)  # of a single action one
        taken = at[:, None], np.maximum(items, 0)
        columns = encoder.encode_candidates(built.raw.candidates.take(taken), built.raw.ids[taken])
        there = (items >= 0)[:, :, None]
        action = np.where(there, columns, 0.0).sum(axis=1) / there.sum(axis=1)
        return np.concatenate([context, action], axis=1)

    def columns(some: np.ndarray) -> np.ndarray:
        at = rows[some]
        whose = np.searchsorted(ends, at, side="right")
        width = encoder.context_width + encoder.candidate_width
        width += 0 if encoder.numbers is None else len(encoder.numbers.low)
        out = np.empty((len(at), width), dtype=np.float32)
        for k in np.unique(whose).tolist():
            mine = np.flatnonzero(whose == k)
            out[mine] = of_part(parts[k], at[mine] - (ends[k] - len(parts[k])))
        return out

    return columns


def blocks(encoder: Encoder) -> list[Block]:
    """Which of these columns belong to which field; the named actions are one."""
    start = encoder.context_width
    several = [Block("context", one.transform.name, one.at, one.missing_at + 1) for one in placed(encoder.context)]
    if encoder.actions:
        several.append(Block("action", "action", start, start + len(encoder.actions)))
    if encoder.numbers is not None:
        several.append(Block("action", "action", start, start + len(encoder.numbers.low)))
    candidate = placed(encoder.candidate, start + len(encoder.actions))
    return [*several, *(Block("candidate", one.transform.name, one.at, one.missing_at + 1) for one in candidate)]


# ---- the build before


def _previous(directory: Path) -> tuple[Path | None, int]:
    """The build before this one: of those whose window does not end later the last; and how many could not be read."""
    until, left_out = timeline.summary_of(directory).until, 0
    candidates: list[tuple[int, int, str]] = []
    for index in directory.parent.glob("[!.]*/build.json"):
        if index.parent.name == directory.name:
            continue
        try:
            ended = timeline.summary_of(index.parent).until
        except DataError:  # of another version
            left_out += 1
            continue
        if ended <= until:
            candidates.append((ended, index.stat().st_mtime_ns, index.parent.name))
    return (directory.with_name(max(candidates)[2]) if candidates else None), left_out


def key(profile: Profile) -> str:
    """`group.name` of a field."""
    return f"{profile.group}.{profile.name}"


# ---- drift


def drift(before: Profile, after: Profile) -> Drift:
    """How far a field has moved from one profile to another."""
    if before.kind != after.kind:
        return Drift(psi=None, psi_chance=None, ks=None, ks_chance=None, reading="can not be told")
    psi, ks = profiles.psi(before, after), profiles.ks(before, after)
    by_chance = None if psi is None else psi_by_chance(before, after)
    of_ks = None if ks is None else ks_by_chance(before, after)
    return Drift(psi=psi, psi_chance=by_chance, ks=ks, ks_chance=of_ks, reading=reading(psi, by_chance))


def reading(psi: float | None, by_chance: float | None) -> Reading:
    """What a population stability index is taken to mean.

    >>> reading(0.3, 0.01), reading(0.3, 0.5), reading(0.2, 0.01), reading(0.05, 0.01)
    ('strong', 'could be chance', 'moderate', 'none')
    """
    if psi is None or by_chance is None:
        return "can not be told"
    if psi <= MODERATE:
        return "none"
    if psi <= by_chance:
        return "could be chance"
    return "strong" if psi > STRONG else "moderate"


def psi_by_chance(before: Profile, after: Profile) -> float:
    """What 95% of the indices of an unchanged field are below: (1/n + 1/m) times a quantile of chi-square.

    Source: Yurdakul 2018, Statistical properties of population stability index, Western Michigan University.
    """
    if before.counts and after.counts:
        freedom = len({value for one in (before, after) for value, _ in one.counts})
    else:  # between the deciles, which may be equal, and the missing ones
        freedom = len({before.quantiles[round(profiles.LEVELS * part / 10)] for part in range(1, 10)}) + 1
    return (1 / _rows(before) + 1 / _rows(after)) * _chi_square(freedom)


def ks_by_chance(before: Profile, after: Profile) -> float:
    """What 95% of the distances of an unchanged field are below, and what the quantiles may be off.

    Source: Smirnov 1948, Table for estimating the goodness of fit of empirical distributions.
    """
    rounding = 0.0 if before.counts and after.counts and before.kind == "number" else 2 / profiles.LEVELS
    return min(1.358 * math.sqrt(1 / _values(before) + 1 / _values(after)) + rounding, 1.0)


def _rows(profile: Profile) -> int:
    """Values that the shares of a profile rest on, the missing ones too."""
    if profile.kind == "list" and profile.counts:
        return max(sum(rows for _, rows in profile.counts), 1)
    return max(profile.rows if profile.counts else min(profile.rows, _values(profile)), 1)


def _values(profile: Profile) -> int:
    if profile.kind == "list":
        return max(profile.present, 1)
    return max(min(profile.finite, profile.sampled or profile.finite), 1)


def _chi_square(freedom: int) -> float:
    """The 95% quantile; Wilson and Hilferty 1931, off by less than 4%."""
    part = 2 / (9 * freedom)
    return float(freedom * (1 - part + 1.6449 * math.sqrt(part)) ** 3)


# ---- in words


def described(transform: Transform) -> str:
    """What a transform does, shortly."""
    match transform:
        case Binary():
            return "1 if not 0"
        case Probability():
            return f"log odds, clamped to [{EDGE:g}, 1 - {EDGE:g}]"
        case Continuous(mean=mean, std=std):
            return f"(x - {mean:.4g}) / {std:.4g}, within +-{LIMIT:g}"
        case BoxCox(shift=shift, power=power, mean=mean, std=std):
            inner = f"(x + {shift:.4g})" if shift else "x"
            raised = f"log {inner}" if transform.logarithmic else f"({inner}^{power:g} - 1) / {power:g}"
            return f"y = {raised}; (y - {mean:.4g}) / {std:.4g}, within +-{LIMIT:g}"
        case Quantile(boundaries=boundaries):
            return f"place among {len(boundaries)} boundaries from {boundaries[0]:.4g} to {boundaries[-1]:.4g}"
        case Enumerated(values=numbers):
            return f"a column for each of {_several(len(numbers), 'number')}, for unseen and for missing"
        case Category(values=texts):
            return f"a column for each of {_several(len(texts), 'text')}, for unseen and for missing"
        case Ids(buckets=buckets):
            return f"share of the ids in each of {buckets:,} buckets"
        case Constant():
            return "only whether it is missing"


def lines(found: Features) -> list[str]:
    """All fields for people: what moved, three or four lines a field, and what to do next."""
    width = max((len(one.profile.name) for one in found.fields), default=0)
    shifted = f"{len(found.shifted):,} moved   " if found.previous else ""
    out = [
        f"{found.problem}   {_several(len(found.fields), 'field')}   {shifted}{_several(found.rows, 'decision')}   "
        f"build {Path(found.build).name}"
    ]
    told = found.told
    for group in ("context", "candidate"):
        several = [one for one in found.fields if one.profile.group == group]
        out += [group] if several else []
        for one in several:
            out += _field_lines(one, told.get(one.key), width)
    together = found.importances and found.importances.together
    if found.importances and together:
        units = f"{found.importances.rows:,} decisions of {found.importances.units:,} units"
        out.append(f"reward   all together explain {explained(together)} of its variance   {units}")
    out += [f"reward   importance can not be told: {found.unknown}"] if found.unknown else []
    return [*out, *comparison(found), *advice(found)]


def _field_lines(one: Feature, importance: Importance | None, width: int) -> list[str]:
    declared = " (declared)" if one.profile.declared else ""
    head = f"  {one.profile.name:<{width}}  {one.profile.type + declared:<11}  {share(one.missing_share):>5} missing"
    told = [one.profile.reason, f"{described(one.transform)}   {_several(one.columns, 'column')}"]
    if importance is not None:
        on_top = f"   {explained(importance.on_top)} on top of the others" if importance.on_top else ""
        told.append(f"explains {explained(importance.alone)} of the reward's variance alone{on_top}")
    return [f"{head}   {moved(one.drift)}".rstrip(), *(f"  {'':<{width}}  {text}" for text in told)]


def explained(estimate: Estimate) -> str:
    """A share of variance with its interval."""
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def comparison(found: Features) -> list[str]:
    """What drift was measured against."""
    left_out = f" ({_several(found.left_out, 'build')} of another version left out)" if found.left_out else ""
    if not found.previous:
        return [f"drift    no earlier build to compare with{left_out}"]
    custom = f"PSI above {MODERATE:g} is worth a look, above {STRONG:g} is strong"
    changed = [f"new      {', '.join(found.new)}"] if found.new else []
    changed += [f"gone     {', '.join(found.gone)}"] if found.gone else []
    return [f"drift    against build {Path(found.previous).name}{left_out}; by custom {custom}", *changed]


def advice(found: Features) -> list[str]:
    """What to do next."""
    shifted = [one.profile.name for one in found.shifted]
    empty = [one.profile.name for one in found.fields if one.missing_share == 1]
    out = [f"next     look where {_listed(shifted)} comes from: it has moved; then train again"] if shifted else []
    out += [f"next     leave {_listed(empty)} out: it never has a value"] if empty else []
    if found.importances is None and not found.unknown:
        out.append(f"next     steersman features {found.problem} --report")
    return [*out, f'         another type: [problem.{found.problem}.build] context = {{ FIELD = "quantile" }}']


def moved(drift: Drift | None) -> str:
    """Drift in words.

    >>> moved(Drift(psi=0.3, psi_chance=0.01, ks=0.12, ks_chance=0.03, reading="strong"))
    'PSI 0.300 strong (chance 0.010)   KS 0.120 (chance 0.030)'
    """
    if drift is None:
        return ""
    if drift.psi is None:
        return "drift can not be told"
    told = f"PSI {drift.psi:.3f} {drift.reading} (chance {drift.psi_chance:.3f})".replace(" none ", " ")
    return told if drift.ks is None else f"{told}   KS {drift.ks:.3f} (chance {drift.ks_chance:.3f})"


def share(value: float) -> str:
    """A share for people.

    >>> share(0.0), share(0.00012), share(0.034), share(1.0)
    ('0%', '0.01%', '3.4%', '100%')
    """
    if value in (0, 1):
        return f"{value:.0%}"
    return f"{value:.1%}" if value >= 0.001 else f"{value:.2%}"


def _several(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
