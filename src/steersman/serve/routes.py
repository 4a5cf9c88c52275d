"""Which path is whose: a request to the plane or the models, in the words of the protocol that it came in."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec

from steersman.core.decision import Decision, One, Problem
from steersman.core.errors import ConfigError, NotFoundError, OverloadedError, did_you_mean
from steersman.serve import access, kserve, multislot, personalizer, sagemaker, tfserving
from steersman.serve.board import Seat
from steersman.serve.connection import Owner
from steersman.serve.exchange import Asked, HttpError, Slot
from steersman.serve.fronts import Errors, Fronts, Path, called, count, refuse, split
from steersman.serve.live import error_parts
from steersman.serve.metrics import KIND, PATHS
from steersman.serve.openapi import document
from steersman.serve.plane import Form, Next, Plane
from steersman.serve.predicting import Models
from steersman.serve.settings import Settings
from steersman.serve.tally import Tally

DECIDE = "/v1/decide/"
OUTCOME = "/v1/outcome"
_PLAIN_GET = ("/v1/live", "/v1/ready", "/v1/status", "/openapi.json", *PATHS)
_to_json = msgspec.json.Encoder().encode


class Routes:
    """Routes of one server; what is switched off in the settings is not there.

    Args:
        server: whose connections they are; for the status.
        seat: where this worker leaves its counts; None: it is the only one.
    """

    def __init__(
        self, plane: Plane, models: Models, settings: Settings, server: Owner, seat: Seat | None = None
    ) -> None:
        self._plane = plane
        self._models = models
        self._settings = settings
        self._server = server
        self._metrics = server.metrics
        self.tally = Tally(plane, models, server, seat)
        self.fronts = Fronts(models, settings, server, lambda: self.ready)
        self._known = (f"{DECIDE}{{policy}}", OUTCOME, *_PLAIN_GET)

    def handle(self, asked: Asked, slot: Slot) -> None:
        """Answer a request, now or later.

        Raises:
            Error: of the protocol of decide, or nobody's.
        """
        path = split(asked.target)
        text = path.text
        if self._settings.keys and text not in access.OPEN:
            for form in {text, unquote(text)}:  # some routes unquote before they look
                role = access.role_of(asked.method.decode(), form)
                access.check(self._settings.keys, access.key_in(asked.headers), role)
        if self._settings.tf_serving and text[:10].lower() == tfserving.PREFIX:
            self._guarded(self.fronts.tf_serving, asked, path, slot, tfserving.error_body)
        elif self._settings.open_inference and (text == kserve.PREFIX or text.startswith("/v2/")):
            self._guarded(self.fronts.open_inference, asked, path, slot, kserve.error_body)
        elif self._settings.sagemaker and sagemaker.is_mine(text):
            self._guarded(self.fronts.sagemaker, asked, path, slot, tfserving.error_body)
        elif self._settings.personalizer and text.startswith(personalizer.PREFIX):
            self._guarded(self._personalizer, asked, path, slot, personalizer.error_body)
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
            answer(asked, path, slot)
        except Exception as error:
            count(self._metrics, slot, getattr(error, "http_status", 500))
            refuse(self._server, slot, error, errors)

    # -- decide ------------------------------------------------------------------------------------------------

    def _own(self, asked: Asked, path: str, slot: Slot) -> None:
        if path.startswith(DECIDE) or path == OUTCOME:
            if asked.method == b"POST":
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
        elif path == "/openapi.json":
            slot.answer(200, document())
        elif path in PATHS:
            slot.kind = KIND
            slot.answer(200, self.tally.text())
        else:
            connections, waiting = len(self._server.connections), self._server.waiting - 1
            own = {"pid": os.getpid(), "connections": connections, "waiting": waiting}
            about = {**own, "draining": self._server.draining}
            status = self._plane.status()
            if self._models.error and not status["error"]:
                status["error"] = error_parts(self._models.error)
            slot.answer(200, _to_json({**status, "ready": self.ready, "models": self._model_status(), "server": about}))

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

    # -- Personalizer ------------------------------------------------------------------------------------------

    def _personalizer(self, asked: Asked, path: Path, slot: Slot) -> None:
        call = called(personalizer.route, asked, path, slot)

        def answer(status: int, body: bytes) -> None:
            if status >= 400:
                parts = msgspec.json.decode(body)
                error = HttpError(status, parts["error"], hint=parts["hint"])
                slot.answer(status, personalizer.error_body(error))
            elif call.verb == "rank":
                slot.answer(201, body)
            else:
                slot.answer(204, b"")

        said = multislot if call.slots else personalizer
        if call.verb == "activate":
            self._plane.outcome(said.activation(call.event), answer)
            return
        problem = self._personal_problem()
        if call.verb == "reward":
            self._plane.outcome(said.read_reward(call.event, asked.body, problem), answer)
            return
        new_id, apprentice = self._plane.new_id(), self._settings.apprentice
        if call.slots:
            filling = multislot.read_rank(asked.body, new_id, problem, self._settings.max_candidates)
            body, form = _fill(filling)
            event = filling.event, asked.body
            self._plane.decide(problem.name, body, answer, form=form, apprentice=apprentice, event=event)
            return
        question = personalizer.read_rank(asked.body, new_id)

        def ranked(decision: Decision, probabilities: list[float]) -> bytes:
            return personalizer.write_rank(question, decision, probabilities)

        self._plane.decide(problem.name, question.body, answer, form=ranked, apprentice=apprentice)

    def _personal_problem(self) -> Problem:
        problems = self._plane.problems
        name = self._settings.personalizer_policy
        if not name and len(problems) == 1:
            [name] = problems
        if name not in problems:
            hint = "name one as personalizer_policy under [serve]"
            raise OverloadedError(f"{len(problems)} policies decide, and {name or 'none'} was named", hint=hint)
        if not isinstance(problems[name].actions, One):
            raise ConfigError(f"{name} does not take one action out of candidates", hint="name another policy")
        return problems[name]


def _fill(filling: multislot.Filling) -> tuple[bytes, Form]:
    """The next slot as one of our requests, and how it goes on."""

    def form(decision: Decision, _: list[float]) -> bytes | Next:
        action = str(decision.action)
        further = filling.after(action)
        return filling.answer(action) if further is None else Next(*_fill(further))

    return filling.body(), form
