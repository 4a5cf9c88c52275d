"""Version (immutable) and Rollout (who gets which version)."""

from __future__ import annotations

import hashlib
from typing import Literal

from msgspec import Struct

from steersman.core.decision import NAME, check_seed
from steersman.core.errors import DataError
from steersman.core.features import Encoder
from steersman.core.policy import Explorer
from steersman.core.report import Report


class Parents(Struct, frozen=True):
    """Digests of what a version was made from.

    Attributes:
        data: of the Batch; empty for a policy that learned nothing.
        config: of the problem and the learner's settings.
        code: version of Steersman.
    """

    data: str
    config: str
    code: str


class Version(Struct, frozen=True, kw_only=True):
    """A policy as it is stored and served. Written once.

    Attributes:
        name: of the problem.
        number: 1, 2, 3, ...
        digest: SHA-256 of the graph, the encoder, the explorer and the seed: same digest, same decisions.
        graph: file name of the ONNX graph beside version.json; preprocessing inside.
        encoder, explorer: the rest of the policy.
        seed: of the draws; with a decision's id it gives the draw again.
        parents: what it was made from.
        report: what was claimed when it was published; None for a policy that learned nothing.
        forced: it was published although a gate failed.
        made_at: microseconds UTC.
    """

    name: str
    number: int
    digest: str
    graph: str
    encoder: Encoder
    explorer: Explorer
    seed: str
    parents: Parents
    report: Report | None = None
    forced: bool = False
    made_at: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise DataError(f"version {self.name}/{self.number}: numbers start at 1", field="number")
        if not NAME.fullmatch(self.name):
            raise DataError(f"version {self.name!r}: the name must match {NAME.pattern}", field="name")
        check_seed(self.seed)


class Rollout(Struct, frozen=True, kw_only=True):
    """Who gets which version. The baseline always keeps traffic.

    Attributes:
        problem: name.
        baseline, candidate: version numbers.
        share: of the units that get the candidate, in [0, 1]; 1 only when the rollout is over.
        state: where it stands.
        since: microseconds UTC at which the state began.
    """

    problem: str
    baseline: int
    candidate: int
    share: float
    state: Literal["shadow", "canary", "ramp", "done", "backed out"]
    since: int

    def __post_init__(self) -> None:
        if self.baseline < 1:
            raise DataError(
                f"rollout {self.problem}: baseline is {self.baseline}, numbers start at 1", field="baseline"
            )
        if self.candidate < 1 or self.candidate == self.baseline:
            raise DataError(
                f"rollout {self.problem}: candidate is {self.candidate}, must be another version than the baseline",
                field="candidate",
            )
        if not 0 <= self.share <= 1:
            raise DataError(f"rollout {self.problem}: share is {self.share:g}, must be in [0, 1]", field="share")
        if self.state == "done" and self.share != 1:
            raise DataError(
                f"rollout {self.problem}: share is {self.share:g}, must be 1 once it is done", field="share"
            )
        if self.share == 1 and self.state != "done":
            raise DataError(f"rollout {self.problem}: the baseline must keep traffic until it is done", field="share")
        if self.state in ("shadow", "backed out") and self.share != 0:
            raise DataError(
                f"rollout {self.problem}: share is {self.share:g}, must be 0 in {self.state}", field="share"
            )

    @property
    def running(self) -> bool:
        """Whether the candidate has to be loaded: it answers some, or is in the shadow."""
        return self.state in ("shadow", "canary", "ramp")

    def takes(self, unit: str) -> bool:
        """Whether a unit gets the candidate: drawn once for each unit and pair of versions, the same on every machine.

        A share that grows keeps the units it has; the draw has nothing to do with those of decisions.

        >>> two = Rollout(problem="p", baseline=1, candidate=2, share=0.5, state="canary", since=0)
        >>> [two.takes(unit) for unit in ("u1", "u2", "u3", "u4")] == [two.takes(f"u{i}") for i in (1, 2, 3, 4)]
        True
        """
        if self.share in (0, 1):
            return self.share == 1
        salt = hashlib.blake2b(f"{self.problem}/{self.baseline}/{self.candidate}".encode(), digest_size=32).digest()
        digest = hashlib.blake2b(unit.encode(), key=salt, digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53 < self.share
