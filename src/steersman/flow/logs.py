"""The log of a project: what comes in from elsewhere, its compaction, and decisions made again from their lines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from steersman import config, engine, log
from steersman.config import Project
from steersman.core.decision import Decision
from steersman.core.errors import DataError, DiskError
from steersman.core.version import Version
from steersman.flow import perturbing
from steersman.models.graph import Graph
from steersman.models.warehouse import Warehouse
from steersman.serve import decide
from steersman.serve.decide import Score

Progress = Callable[[int, int, dict[str, float]], None]


class Replayed(Struct, frozen=True):
    """A decision made again from its id, its log line and its version."""

    decision: str
    version: int
    logged_action: str
    logged_propensity: float
    action: str
    propensity: float
    identical: bool


def import_log(
    project: Project,
    name: str,
    source: log.Source,
    max_reject_share: float = 0.01,
    progress: Progress = lambda done, total, figures: None,
) -> log.Imported:
    """Append another system's log to ours, whole or not at all; rows that break a law lie in rejects/ with the reason.

    Args:
        source: what is read, and how.
        max_reject_share: share of the rows in [0, 1] that may be refused.
        progress: told the rows so far and how many of them were refused.
    """
    rejects = project.root / "rejects" / f"{source.name}.jsonl"
    rejects.parent.mkdir(parents=True, exist_ok=True)
    problem = project.policy(name).problem
    try:
        with opened(project, "duckdb") as tables, log.at_once(project.log_directory) as pen:
            return log.import_log(
                pen, tables, source, problem, rejects=rejects, max_reject_share=max_reject_share, progress=progress
            )
    except DiskError as error:
        again = "then run it again: it is imported whole or not at all, and counts once"
        raise DiskError(error.message, hint=f"{error.hint}, {again}", field=error.field) from error


def read_source(
    path: Path | None, mapping: Path | None = None, *, form: str = "", sql: str = "", propensities: str = "logged"
) -> log.Source:
    """What `import_log` takes, from what a command line says: the mapping of columns is a TOML file."""
    table = None if mapping is None else config.read(log.Mapping, mapping)
    return msgspec.convert(
        {"path": path, "form": form, "mapping": table, "sql": sql, "propensities": propensities}, log.Source
    )


def compact(project: Project) -> log.Compacted:
    """Move what is new in the segments to Parquet."""
    with opened(project, "duckdb") as tables:
        return log.compact(project.log_directory, project.problems, tables)


def replay(project: Project, decision_id: str) -> Replayed:
    """Make a logged decision again, bit for bit, from its log line and the version that made it.

    Raises:
        NotFoundError: the log has no such decision, or the warehouse no such version.
        DataError: another system decided, so there is no version to ask.
    """
    return replay_all(project, [decision_id])[0]


def replay_all(project: Project, decision_ids: Sequence[str]) -> list[Replayed]:
    """The same for many decisions; a version and its search are read once."""
    warehouse = Warehouse(project.warehouse_url)

    @functools.cache
    def version_of(name: str, number: int) -> tuple[Version, Graph]:
        version, graph = warehouse.read(name, number)
        return version, Graph(graph)

    @functools.cache
    def copies_of(name: str, number: int) -> Callable[[int], Score]:
        return perturbing.copies(project, name, number, version_of(name, number)[1])

    replayed = []
    with opened(project, "duckdb") as tables:
        for decision_id in decision_ids:
            decision = log.find(project.log_directory, decision_id, tables)
            if decision.version == 0:
                raise DataError(f"decision {decision.id} was imported: no version of ours made it", field="version")
            made_by = decision.problem, decision.version
            version, graph = version_of(*made_by)
            problem = project.policy(decision.problem).problem
            run = graph.scores if decision.noise is None else copies_of(*made_by)(decision.noise)
            action, propensity = decide.replay(decision, problem, version, run)
            replayed.append(_replayed(decision, action, propensity))
    return replayed


def _replayed(decision: Decision, action: str | tuple[str | float, ...], propensity: float) -> Replayed:
    return Replayed(
        decision=decision.id,
        version=decision.version,
        logged_action=str(decision.action),
        logged_propensity=decision.propensity,
        action=str(action),
        propensity=propensity,
        identical=action == decision.action and propensity == decision.propensity,
    )


@contextmanager
def opened(project: Project, url: str = "") -> Iterator[engine.Engine]:
    """The engine of the project, or the one of this URL; the log on this disk is read by the one on this machine."""
    settings = project.engine
    tables = engine.open(
        url or settings.url,
        memory_limit=settings.memory_limit,
        threads=settings.threads,
        temp_directory=project.root / settings.temp_directory if settings.temp_directory else None,
    )
    try:
        yield tables
    finally:
        tables.close()
