"""How far data and policy have moved from the version that decides now."""

from __future__ import annotations

from pathlib import Path

from steersman import timeline
from steersman.config import Project
from steersman.core.errors import DataError, NotFoundError
from steersman.core.profile import Profile
from steersman.core.report import ActionShare
from steersman.core.version import Version
from steersman.evaluate import Moved, Previous
from steersman.flow import features, places


def since_version(
    project: Project, stored: Version, profiles: tuple[Profile, ...], shares: tuple[ActionShare, ...] | None
) -> Previous:
    """Of the fields' profiles, and of the actions' shares, both of the policy that is judged.

    Args:
        stored: the version that decides now.
        shares: with those of that version, where it could be asked; None: the actions are not one candidate each.
    """
    version = f"{stored.name}@{stored.number}"
    unknown, moved, fields = "", None, None
    gone: tuple[str, ...] = ()
    if shares is None:
        unknown = "its actions are not one candidate each, so that they have no shares of the decisions"
    elif shares and all(one.previous is not None for one in shares):
        moved = 0.5 * sum(abs(one.target.value - one.previous.value) for one in shares if one.previous is not None)
    else:
        unknown = "it can not be asked about these decisions"
    try:
        fields, gone = _moved(_profiles(project, stored), profiles)
    except (DataError, NotFoundError) as error:
        unknown = error.message
    return Previous(version=version, moved=moved, fields=fields, gone=gone, unknown=unknown)


def _moved(before: tuple[Profile, ...], after: tuple[Profile, ...]) -> tuple[tuple[Moved, ...], tuple[str, ...]]:
    """How far every field that both have has moved, and the fields that are gone."""
    then, now = ({features.key(one): one for one in profiles} for profiles in (before, after))
    found = [(name, features.drift(then[name], one)) for name, one in now.items() if name in then]
    fields = tuple(
        Moved(field=name, psi=one.psi, psi_chance=one.psi_chance, ks=one.ks, ks_chance=one.ks_chance)
        for name, one in found
    )
    return fields, tuple(sorted(set(then) - set(now)))


def _profiles(project: Project, stored: Version) -> tuple[Profile, ...]:
    """Of the build that a version was trained on; none of a version that learned nothing.

    Raises:
        NotFoundError: it is not here any more.
    """
    if not stored.parents.data:
        return ()
    for path in (project.root / "candidates" / stored.name).glob("*/candidate.json"):
        candidate = places.read_candidate(path.parent)
        if candidate.data == stored.parents.data:
            return timeline.profiles_of(places.place(project, "builds", stored.name, Path(candidate.build).name))
    raise NotFoundError("the build that it was trained on is not here")
