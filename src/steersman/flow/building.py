"""The verb build: join and order a window of the log into a Batch on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from steersman import log, timeline
from steersman.config import Project
from steersman.flow import places
from steersman.flow.logs import compact, opened

LATE_S = 86_400.0
"""Seconds after its wait in which a build still looks for outcomes of its decisions, to say that they came late."""

FOREVER = 2**62
"""Microseconds UTC, later than any."""


class Built(Struct, frozen=True):
    """What `build` made.

    Attributes:
        ahead: decisions that the log has and whose time has not come yet, by the clock here; none of them entered.
    """

    problem: str
    directory: str
    digest: str
    decisions: int
    since: int
    until: int
    counts: timeline.Counts
    ahead: int = 0


def build(project: Project, name: str, *, since: int = 0, until: int | None = None, as_of: int | None = None) -> Built:
    """Join and order the log of [since, until) into a Batch on disk.

    Args:
        name: of the problem.
        since, until: window of decisions, microseconds UTC; until defaults to as_of.
        as_of: the instant up to which outcomes have come in; a decision enters once its wait is over by then.
    """
    as_of = places.now_us() if as_of is None else as_of
    until = as_of if until is None else until
    with joined(project, name, since=since, until=until, as_of=as_of) as parts:
        digest = timeline.digest_of(parts)
        directory = places.place(project, "builds", name, digest)
        if not directory.exists():  # the same data has the same digest: it is there already, whole
            timeline.save(parts, directory)
    places.point(directory)
    return Built(
        problem=name,
        directory=str(directory),
        digest=digest,
        decisions=sum(map(len, parts)),
        since=since,
        until=until,
        counts=timeline.add_up([part.counts for part in parts]),
        ahead=logged(project, name, max(until, places.now_us()), FOREVER),
    )


def logged(project: Project, name: str, since: int, until: int) -> int:
    """How many decisions of [since, until) the log has in Parquet files, microseconds UTC."""
    files = log.files(project.log_directory, name, since, until).decisions
    if not files:
        return 0
    with opened(project) as tables:
        tables.view("logged", files)
        at = 'CAST("at" AS BIGINT)'
        found = tables.query(f"SELECT count(*) AS n FROM logged WHERE {at} >= {since} AND {at} < {until}")
    return int(found["n"][0])


@contextmanager
def joined(project: Project, name: str, *, since: int, until: int, as_of: int) -> Iterator[list[timeline.Built]]:
    """The parts of what `build` makes, stored nowhere: they can be read as long as the context is open.

    Args:
        since, until, as_of: see `build`.
    """
    policy = project.policy(name)
    compact(project)
    with opened(project) as tables, places.scratch(project, "builds", name) as into:
        late_s = policy.problem.wait_s + LATE_S
        lead_s = policy.build.lead(policy.problem)
        files = log.files(project.log_directory, name, since, until, wait_s=late_s, lead_s=lead_s)
        make = timeline.build_shards if tables.distributed or policy.build.shards > 1 else timeline.build
        made = make(
            tables,
            policy.problem,
            files,
            since=since,
            until=until,
            as_of=as_of,
            settings=policy.build,
            into=into,
            before=files.before,
        )
        yield [made] if isinstance(made, timeline.Built) else made
