"""Which path is whose: a request to the plane or the models, in the words of the protocol that it came in."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary

import msgspec
import numpy as np

from steersman.core.errors import DataError, Error, NotFoundError, OverloadedError, did_you_mean
from steersman.serve import kserve, tfserving
from steersman.serve.connection import Asked, HttpError, Owner, Slot
from steersman.serve.plane import Plane
from steersman.serve.predicting import Models, Serving
from steersman.serve.settings import Settings

DECIDE = "/v1/decide/"
OUTCOME = "/v1/outcome"
_PLAIN_GET = ("/v1/live", "/v1/ready", "/v1/status")
Array = np.ndarray
_to_json = msgspec.json.Encoder().encode
Errors = Callable[[Error], bytes]


class Path(NamedTuple):
    """A request target: the path still quoted, and the query."""

    text: str
    query: str


def split(target: bytes) -> Path:
    """Path and query of a request target, which may be a whole URL."""
    text = target.decode("latin-1")
    if not text.startswith("/"):
        try:
            parts = urlsplit(text)
            return Path(parts.path, parts.query)
        except ValueError:  # what is no URL is no path that we know
            return Path(text, "")
    path, _, query = text.partition("?")
    return Path(path, query)


class Routes:
    """Routes of one server; what is switched off in the settings is not there.

    Args:
        server: whose connections they are; for the status.
    """

    def __init__(self, plane: Plane, models: Models, settings: Settings, server: Owner) -> None:
        self._plane = plane
        self._models = models
        self._settings = settings
        self._server = server
        self._readers: WeakKeyDictionary[Serving, tfserving.Reader] = WeakKeyDictionary()
        self._version = importlib.metadata.version("steersman")
        self._known = (f"{DECIDE}{{policy}}", OUTCOME, *_PLAIN_GET)

    def handle(self, asked: Asked, slot: Slot) -> None:
        """Answer a request, now or later.

        Raises:
            Error: of the protocol of decide, or nobody's.
        """
        path = split(asked.target)
        if self._settings.tf_serving and path.text[:10].lower() == tfserving.PREFIX:
            self._guarded(self._tf_serving, asked, path, slot, tfserving.error_body)
        elif self._settings.open_inference and (path.text == kserve.PREFIX or path.text.startswith("/v2/")):
            self._guarded(self._open_inference, asked, path, slot, kserve.error_body)
        else:
            self._own(asked, unquote(path.text), slot)

    def _guarded(
        self,
        answer: Callable[[Asked, Path, Slot], None],
        asked: Asked,
        path: Path,
        slot: Slot,
        errors: Errors,
    ) -> None:
        """Errors in the words of a protocol."""
        try:
            if asked.method == b"POST":
                self._admit()
            answer(asked, path, slot)
        except Exception as error:
            self._refuse(slot, error, errors)

    def _refuse(self, slot: Slot, error: Exception, errors: Errors) -> None:
        if not isinstance(error, Error):
            error = Error(f"{type(error).__name__}: {error}", hint="this is a defect of the server")
        self._server.count(error)
        slot.answer(error.http_status, errors(error))

    def _admit(self) -> None:
        most = self._settings.max_waiting
        if self._server.waiting > most:
            raise OverloadedError(f"{most} requests wait already", hint="try again in a while")

    # -- decide ------------------------------------------------------------------------------------------------

    def _own(self, asked: Asked, path: str, slot: Slot) -> None:
        if path.startswith(DECIDE) or path == OUTCOME:
            if asked.method == b"POST":
                self._admit()
                if path == OUTCOME:
                    self._plane.outcome(asked.body, slot.answer)
                else:
                    self._plane.decide(path[len(DECIDE) :], asked.body, slot.answer)
                return
            slot.allow = "POST"
        elif path in _PLAIN_GET:
            if asked.method == b"GET":
                self._look(path, slot)
                return
            slot.allow = "GET"
        if slot.allow:
            raise HttpError(405, f"{asked.method.decode()} {path[:200]}", hint=f"use {slot.allow}")
        raise NotFoundError(f"no such path: {path[:200]}", hint=did_you_mean(path[:200], self._known))

    def _look(self, path: str, slot: Slot) -> None:
        if path == "/v1/live":
            slot.answer(200, b'{"live":true}')
        elif path == "/v1/ready":
            slot.answer(200 if self.ready else 503, b'{"ready":true}' if self.ready else b'{"ready":false}')
        else:
            connections, waiting = len(self._server.connections), self._server.waiting - 1
            own = {"pid": os.getpid(), "connections": connections, "waiting": waiting}
            server = {**own, "draining": self._server.draining}
            status = self._plane.status() | {"ready": self.ready, "models": self._model_status(), "server": server}
            slot.answer(200, _to_json(status))

    @property
    def ready(self) -> bool:
        """Whether all that is wanted is there, and requests are welcome."""
        decides = self._plane.ready or (self._plane.unused and bool(self._models.names))
        return decides and self._models.ready and not self._server.draining

    def _model_status(self) -> dict[str, Any]:
        return {
            name: {
                str(state.number): {"state": state.state, "error": str(state.error)[:500] if state.error else None}
                for state in self._models.states(name)
            }
            for name in self._models.names
        }

    # -- TensorFlow Serving ------------------------------------------------------------------------------------

    def _tf_serving(self, asked: Asked, path: Path, slot: Slot) -> None:
        call = tfserving.route(asked.method.decode(), path.text)
        if call.verb == "status":
            slot.answer(200, tfserving.write_status(call.name, self._models.states(call.name), call.number))
            return
        serving = self._find(call)
        signature = serving.model.signature
        if call.verb == "metadata":
            slot.answer(200, tfserving.write_metadata(serving.name, serving.number, signature))
            return
        if call.verb == "predict":
            question = self._reader(serving)(asked.body)
        else:
            question = tfserving.read_examples(asked.body, signature)

        def write(outputs: list[Array]) -> bytes:
            return tfserving.write(call.verb, question, outputs, signature)

        self._predict(serving, question.feeds, slot, write, tfserving.error_body)

    def _predict(
        self,
        serving: Serving,
        feeds: dict[str, Array],
        slot: Slot,
        write: Callable[[list[Array]], bytes],
        errors: Errors,
    ) -> None:
        def answer(outputs: list[Array] | Error) -> None:
            try:
                if isinstance(outputs, Error):
                    raise outputs
                body = write(outputs)
            except Exception as error:
                self._refuse(slot, error, errors)
            else:
                slot.answer(200, body)

        self._models.predict(serving, feeds, answer)

    def _find(self, call: tfserving.Call) -> Serving:
        try:
            return self._models.find(call.name, call.number, call.label)
        except NotFoundError as error:
            raise tfserving.not_served(call, error.field != "label") from None

    def _reader(self, serving: Serving) -> tfserving.Reader:
        reader = self._readers.get(serving)
        if reader is None:
            self._readers[serving] = reader = tfserving.reader(serving.model.signature)
        return reader

    # -- Open Inference Protocol -------------------------------------------------------------------------------

    def _open_inference(self, asked: Asked, path: Path, slot: Slot) -> None:
        call = kserve.route(asked.method.decode(), path.text)
        if call is None:
            raise NotFoundError(f"no such call: {asked.method.decode()} {path.text[:200]}")
        if call.verb == "infer":
            self._infer(call, asked, slot)
        elif call.verb in ("load", "unload"):
            self._switch(call, slot)
        else:
            status, answer = self._about(call, asked.body)
            slot.answer(status, _to_json(answer))

    def _about(self, call: kserve.Call, body: bytes) -> tuple[int, Any]:
        """Whatever is known without running a model."""
        match call.verb:
            case "server":
                return 200, {"name": "steersman", "version": self._version, "extensions": kserve.EXTENSIONS}
            case "live":
                return 200, {"live": True}
            case "server ready":
                return 200 if self.ready else 400, {"ready": self.ready}
            case "index":
                states = {name: self._models.states(name) for name in self._models.names}
                return 200, kserve.index(states, kserve.wants_ready(body))
            case "all stats":
                return 200, kserve.stats(list(self._models.served()))
        if call.verb == "ready":
            with contextlib.suppress(NotFoundError):
                self._models.find(call.name, call.number)
                return 200, {"name": call.name, "ready": True}
            return 400, {"name": call.name, "ready": False}
        serving = self._models.find(call.name, call.number)
        signature = serving.model.signature
        if call.verb == "stats":
            return 200, kserve.stats([serving])
        if call.verb == "config":
            return 200, kserve.config(serving.name, signature)
        known = self._models.states(serving.name)
        numbers = sorted(state.number for state in known if state.state == "available")
        return 200, kserve.metadata(serving.name, numbers, signature)

    def _infer(self, call: kserve.Call, asked: Asked, slot: Slot) -> None:
        serving = self._models.find(call.name, call.number)
        length = asked.headers.get(b"inference-header-content-length")
        if length is not None and not length.isdigit():
            raise DataError(f"Inference-Header-Content-Length is {length[:40]!r}, must be a number of bytes")
        signature = serving.model.signature
        question = kserve.read_infer(asked.body, None if length is None else int(length), signature)

        def write(outputs: list[Array]) -> bytes:
            body, json_bytes = kserve.write_infer(serving.name, serving.number, question, outputs, signature)
            if json_bytes is not None:
                slot.kind = kserve.BINARY
                slot.more = b"inference-header-content-length: %d\r\n" % json_bytes
            return body

        self._predict(serving, question.feeds, slot, write, kserve.error_body)

    def _switch(self, call: kserve.Call, slot: Slot) -> None:
        def done(error: Exception | None) -> None:
            if error is None:
                slot.answer(200, b"{}")
            else:
                self._refuse(slot, error, kserve.error_body)

        self._server.aside(lambda: self._models.switch(call.name, call.verb == "load"), done)
