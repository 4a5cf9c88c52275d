"""The server of a project: the warehouse and the pen behind one plane, in one process or several."""

from __future__ import annotations

import os
from collections.abc import Callable
from socket import socket

import msgspec

from steersman import log
from steersman.config import Project
from steersman.flow.places import CHAMPION, now_us
from steersman.models.graph import Graph
from steersman.models.warehouse import Warehouse
from steersman.serve import plane, workers


def serve(project: Project, *, port: int | None = None, on_ready: Callable[[str], None] | None = None) -> int:
    """Serve the champions until SIGTERM, drain, and return the exit code.

    Args:
        port: instead of the project's; 0 takes a free one.
        on_ready: takes the URL, when connections are accepted.
    """
    settings = project.serve if port is None else msgspec.structs.replace(project.serve, port=port)

    def work(_: int, sock: socket | None, ready: Callable[[int], None]) -> int:
        segment_bytes = project.log.segment_mb << 20
        with log.Pen(project.log_directory, durability=project.log.durability, segment_bytes=segment_bytes) as pen:
            served = _plane(project, pen)
            return workers.run(
                served, settings, wanted=lambda: _champions(project), on_ready=ready, on_drained=pen.flush, sock=sock
            )

    def ready(taken: int) -> None:
        if on_ready is not None:
            on_ready(f"http://{settings.host}:{taken}")

    if settings.workers == 1:
        return work(0, None, ready)
    return workers.supervise(settings, work, ready)


def _plane(project: Project, pen: log.Pen) -> plane.Plane:
    warehouse = Warehouse(project.warehouse_url)

    def load(name: str, number: int) -> plane.Live:
        version, data = warehouse.read(name, number)
        graph = Graph(data)
        return plane.Live(version, project.policy(name).problem, graph.scores, rowwise=graph.rowwise)

    def new_id() -> str:
        return plane.time_ordered_id(now_us(), os.urandom(8))

    return plane.Plane(load, pen.append, now=now_us, new_id=new_id, durability=project.log.durability)


def _champions(project: Project) -> dict[str, int]:
    """Problem -> number of the version that should decide; what servers follow."""
    warehouse = Warehouse(project.warehouse_url)
    aliases = {name: warehouse.aliases(name) for name in project.policies}
    return {name: found[CHAMPION] for name, found in aliases.items() if CHAMPION in found}
