"""A version to begin with that nobody trained: a net with random weights over the declared fields."""

from __future__ import annotations

import secrets

from steersman import learn, timeline
from steersman.config import Project
from steersman.core.decision import One
from steersman.core.errors import ConfigError
from steersman.core.features import Continuous, Encoder
from steersman.core.version import Parents
from steersman.flow import places
from steersman.models import onnx
from steersman.models.warehouse import Draft


def untrained(project: Project, name: str, hidden: tuple[int, ...]) -> tuple[Draft, bytes]:
    """A net of so many hidden units a layer, as a version that is not stored yet, and its graph.

    Its encoder is that of the last build. Without a build declared numbers are taken as they come, within 10 of 0.

    Raises:
        ConfigError: there is no build, and a field that is not declared as a number; or the actions are others than
            `one`.
        DataError: the candidates have no columns, or a width is out of range.
    """
    policy = project.policy(name)
    if not isinstance(policy.problem.actions, One):
        raise ConfigError(f"{name}: its actions are not of the kind one", hint="start from a version: --from")
    encoder = _encoder(project, name)
    made = learn.untrained(encoder, hidden, policy.learn.serves, secrets.randbits(32))
    config = places.digest_of(policy.problem, hidden)
    draft = Draft(
        name=name,
        encoder=encoder,
        explorer=made.explorer,
        seed="",
        parents=Parents(data="", config=config, code=places.code_version()),
        made_at=places.now_us(),
    )
    return draft, onnx.compose(encoder, learn.to_onnx(made))


def _encoder(project: Project, name: str) -> Encoder:
    if built := places.pointed(project, "builds", name):
        return timeline.encoder_of(places.place(project, "builds", name, built))
    problem = project.policy(name).problem
    for field, kind in {**problem.context, **problem.candidate}.items():
        if kind != "number":
            raise ConfigError(
                f"{name}: what values the field {field} ({kind}) has is not known before there is a log",
                hint=f"serve the uniform policy, then steersman build {name}",
                field=field,
            )
    names = getattr(problem.actions, "names", ())
    return Encoder(
        context=tuple(Continuous(field, 0.0, 1.0) for field in sorted(problem.context)),
        candidate=tuple(Continuous(field, 0.0, 1.0) for field in sorted(problem.candidate)),
        actions=tuple(sorted(names)),
    )
