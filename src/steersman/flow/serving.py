"""The server of a project: warehouse, shelf and pen behind one plane, in one process or several."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from socket import socket
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from steersman import config, log
from steersman.config import ModelConfig, Project
from steersman.core.errors import ConflictError, Error
from steersman.core.version import Rollout, Version
from steersman.flow import perturbing
from steersman.flow.places import now_us, shadow_log
from steersman.flow.recorded import Recorded
from steersman.models.external import locations
from steersman.models.graph import Graph
from steersman.models.plain import Plain
from steersman.models.shelf import Shelf
from steersman.models.warehouse import CHAMPION, Warehouse
from steersman.serve import plane, predicting, tfserving, workers
from steersman.serve.board import Seat
from steersman.serve.settings import Settings
from steersman.serve.shadow import Shadow

LOOK_ENDS_S = 10.0
"""How long a look at the guardrails is waited for when the server ends."""


def serve(project: Project, *, on_ready: Callable[[str, str], None] | None = None, **changed: Any) -> int:
    """Serve the champions until SIGTERM, drain, and return the exit code.

    Args:
        on_ready: takes the URL and the address of gRPC, empty if it is not spoken, when connections are accepted.
        changed: settings that are not as in the project, e.g. port=0.
    """
    with workers.holding_grpc(msgspec.structs.replace(project.serve, **changed)) as settings, _watched(project):
        return _serve(project, settings, on_ready)


@contextlib.contextmanager
def _watched(project: Project) -> Iterator[None]:
    """Meanwhile a process of its own looks at the guardrails of the project; with none there is no such process.

    It ends with this one, however this one ends: its standard input does. Should it end before, perturbed copies decide
    no more, see `sampling.why_not`.
    """
    if not any(policy.guardrails for policy in project.policies.values()):
        yield
        return
    command = [sys.executable, "-m", "steersman", "es", "watch", "--until-stdin-ends", "--project", str(project.root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        try:
            process.communicate(timeout=LOOK_ENDS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _serve(project: Project, settings: Settings, on_ready: Callable[[str, str], None] | None) -> int:
    def work(seat: Seat | None, sock: socket | None, ready: Callable[[int], None]) -> int:
        graphs = _Graphs(project)
        segment_bytes = project.log.segment_mb << 20
        with contextlib.ExitStack() as stack:
            record: plane.Record = _no_log
            flush: Callable[[], None] | None = None
            if project.policies:
                pen = log.Pen(project.log_directory, durability=project.log.durability, segment_bytes=segment_bytes)
                record, flush = stack.enter_context(pen).append, pen.flush
            shadow = stack.enter_context(_shadow(project))
            made, models = _plane(project, graphs, record, shadow, settings), _models(project, graphs, settings)
            recorded = Recorded(project, made, models) if settings.keep_requests else None
            if recorded:
                recorded.recall()

            def drained() -> None:
                if flush:
                    flush()
                if recorded:
                    recorded.keep()

            return workers.run(
                made,
                settings,
                wanted=lambda: _deployed(project),
                models=models,
                on_ready=ready,
                on_drained=drained,
                sock=sock,
                seat=seat,
            )

    def ready(taken: int) -> None:
        if on_ready is not None:
            grpc = "" if settings.grpc_port is None else f"{settings.host}:{settings.grpc_port}"
            on_ready(f"{'https' if settings.tls_certificate else 'http'}://{settings.host}:{taken}", grpc)

    if settings.workers == 1:
        return work(None, None, ready)
    return workers.supervise(settings, work, ready)


class _Graphs:
    """Graphs of the warehouse, each loaded once however many rooms of the server want it."""

    def __init__(self, project: Project) -> None:
        self.warehouse = Warehouse(project.warehouse_url)
        self._loaded: WeakValueDictionary[tuple[str, int], Graph] = WeakValueDictionary()

    def read(self, name: str, number: int) -> tuple[Version, Graph]:
        version, data = self.warehouse.read(name, number)
        graph = self._loaded.get((name, number))
        if graph is None:
            self._loaded[name, number] = graph = Graph(data)
        return version, graph


@contextlib.contextmanager
def _shadow(project: Project) -> Iterator[Shadow]:
    """The shadow, and its pen: that begins with the first record, most servers never have one, and ends after it."""
    with contextlib.ExitStack() as pens:

        @functools.cache
        def pen() -> log.Pen:
            return pens.enter_context(log.Pen(shadow_log(project), durability="buffered"))

        with contextlib.closing(Shadow(lambda records, done: pen().append(records, done))) as shadow:
            yield shadow


def _plane(project: Project, graphs: _Graphs, record: plane.Record, shadow: Shadow, settings: Settings) -> plane.Plane:
    def load(name: str, number: int) -> plane.Live:
        version, graph = graphs.read(name, number)
        copies = perturbing.of(project, name, number, graph)
        warm_up = graphs.warehouse.warm_up(name)
        return plane.Live(version, project.policy(name).problem, graph.scores, graph.rowwise, copies, warm_up)

    def new_id() -> str:
        return plane.time_ordered_id(now_us(), os.urandom(8))

    limits = plane.Limits(candidates=settings.max_candidates, outcomes=settings.max_outcomes)
    durability = project.log.durability
    return plane.Plane(load, record, now=now_us, new_id=new_id, durability=durability, limits=limits, shadow=shadow)


def _no_log(records: Sequence[tuple[bytes, bytes]], done: Callable[[Error | None], None]) -> None:
    raise ConflictError("this server has models and no problem: it has no log", hint="steersman init makes a project")


def _models(project: Project, graphs: _Graphs, settings: Settings) -> predicting.Models:
    """Versions of policies that an alias points at, the champion by default; and the plain models on the shelf."""
    shelf = Shelf(project.models_url)

    def load(name: str, number: int) -> predicting.Model:
        if name in project.policies:
            plain = Plain(graphs.read(name, number)[1])
            return predicting.Model(plain.signature, plain.run)
        plain = shelf.load(name, number)
        warm_up = [tfserving.read_predict(body, plain.signature).feeds for body in shelf.warm_up(name)]
        return predicting.Model(plain.signature, plain.run, tuple(warm_up))

    declared = _Declared(project)

    def wanted() -> dict[str, predicting.Wanted]:
        found = {}
        switched, there, models = shelf.switched(), shelf.there(), declared.models()
        for name in sorted({*there, *models}):
            if not switched.get(name, not settings.explicit):
                continue
            chosen = models.get(name, ModelConfig())
            if numbers := chosen.chosen(there.get(name, ())):
                found[name] = predicting.Wanted(numbers, labels=chosen.labels)
        for name in project.policies:
            aliases = graphs.warehouse.aliases(name)
            if aliases:
                numbers = tuple(sorted(set(aliases.values())))
                found[name] = predicting.Wanted(numbers, aliases.get(CHAMPION), aliases)
        return found

    limits = predicting.Limits(rows=settings.batch_rows, waiting=settings.model_waiting)

    def place(name: str) -> str:
        return f"{project.warehouse_url if name in project.policies else project.models_url}/{name}"

    trouble = lambda: declared.error  # noqa: E731
    return predicting.Models(load, wanted, turn_on=shelf.switch, place=place, trouble=trouble, limits=limits)


class _Declared:
    """What steersman.toml says of plain models, read again when the file changes.

    Attributes:
        error: why the file as it is now does not count; what it said before goes on.
    """

    def __init__(self, project: Project) -> None:
        self.error: Error | None = None
        self._models = project.model
        self._file = project.root / config.FILE
        self._seen = self._stamp()
        self._has_file = bool(self._seen)  # a directory of models has none
        if self._has_file:
            try:
                found = config.load(project.root)
            except Error:
                self._seen = ()  # it changed since it was read: say so at the first look
            else:
                self._has_file = found.models_url == project.models_url
                self._models = found.model if self._has_file else project.model

    def models(self) -> dict[str, ModelConfig]:
        """Model -> which of its versions are served."""
        stamp = self._stamp()
        if self._has_file and stamp != self._seen:
            self._seen = stamp
            try:
                self._models, self.error = config.load(self._file.parent).model, None
            except Error as error:
                self.error = error
        return self._models

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self._file.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino


def publish_model(project: Project, name: str, file: Path) -> int:
    """Store an ONNX model that was not made here under its next number, which is returned; servers follow.

    Weights that it has in files beside it are stored with it.

    Raises:
        ConflictError: a policy has this name.
        DataError: it can not be served.
    """
    if name in project.policies:
        raise ConflictError(f"{name} is a policy of this project", hint="give the model another name")
    model = file.read_bytes()
    beside = {place: file.parent / place for place in locations(model)}
    weights = {place: path.read_bytes() for place, path in beside.items() if path.is_file()}
    return Shelf(project.models_url).publish(name, model, weights)


def _deployed(project: Project) -> dict[str, int | Rollout]:
    """Problem -> the version or the rollout that should decide; what servers follow."""
    warehouse = Warehouse(project.warehouse_url)
    found = {name: warehouse.deployed(name) for name in project.policies}
    return {name: one for name, one in found.items() if one is not None}
