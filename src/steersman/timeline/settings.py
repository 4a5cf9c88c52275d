"""Settings of a build: what must hold, what is left out, how fields become columns."""

from __future__ import annotations

from msgspec import Struct

from steersman.core.decision import Problem
from steersman.core.errors import DataError
from steersman.core.profile import FeatureType


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """[problem.NAME.build]

    Attributes:
        context, candidate: field -> its type, instead of the one identified from data.
        max_length_quantile: episodes longer than this quantile of their lengths are left out, in (0, 1); None: none.
        within_s: decisions later than this many seconds after the first of their episode are left out; None: none.
        actions: ids of the actions that may occur; another one stops the build. Empty: any.
        assertions: SQL that must hold. A condition is asked of every decision that enters; a statement that begins
            with SELECT or WITH must give no row. What does not hold stops the build and is shown.
        lead_s: seconds before the window in which the beginnings of its episodes are looked for (as many as `horizon_s`
            of the problem, if that is more): limits count from there, and an episode that began there is no whole one.
            0: nobody looks.
        shards: parts of whole units that a build is written in, one per training process.
    """

    context: dict[str, FeatureType] = {}
    candidate: dict[str, FeatureType] = {}
    max_length_quantile: float | None = None
    within_s: float | None = None
    actions: tuple[str, ...] = ()
    assertions: tuple[str, ...] = ()
    lead_s: float = 86_400.0
    shards: int = 1

    def __post_init__(self) -> None:
        if self.max_length_quantile is not None and not 0 < self.max_length_quantile < 1:
            raise DataError(
                f"max_length_quantile is {self.max_length_quantile:g}, must be in (0, 1)", field="max_length_quantile"
            )
        if self.within_s is not None and not self.within_s >= 0:
            raise DataError(f"within_s is {self.within_s:g}, must be 0 or more seconds", field="within_s")
        if not self.lead_s >= 0:
            raise DataError(f"lead_s is {self.lead_s:g}, must be 0 or more seconds", field="lead_s")
        if not 1 <= self.shards <= 4096:
            raise DataError(f"shards is {self.shards}, must be 1 to 4096", field="shards")

    def lead(self, problem: Problem) -> float:
        """Seconds before a window in which the beginnings of its episodes are looked for."""
        return max(self.lead_s, problem.horizon_s or 0.0) if self.lead_s else 0.0
