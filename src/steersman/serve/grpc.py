"""gRPC over the same models: TensorFlow Serving, Open Inference and health on a port of their own, by grpcio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import grpc
import numpy as np

from steersman.core.errors import ConflictError, Error, NotFoundError, OverloadedError
from steersman.serve import access, kserve, kserve_grpc, tfserving, tfserving_grpc
from steersman.serve.fronts import Fronts
from steersman.serve.gathering import Gathering
from steersman.serve.messages import message, parse
from steersman.serve.metrics import GRPC, Metrics
from steersman.serve.predicting import Serving
from steersman.serve.settings import Settings
from steersman.serve.templates import Templates

Array = np.ndarray
HEALTH = "grpc.health.v1.Health"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
MAX_DETAILS = 2000
_Check, _Checked = message("grpc.health.v1.HealthCheckRequest"), message("grpc.health.v1.HealthCheckResponse")
Answer = Callable[[bytes], Awaitable[bytes]]
ADMIN = ("HandleReloadConfigRequest", "RepositoryModelLoad", "RepositoryModelUnload")
OPEN = (f"/{HEALTH}/Check", f"/{kserve_grpc.SERVICE}/ServerLive", f"/{kserve_grpc.SERVICE}/ServerReady")
"""What a load balancer asks, without a key."""


class GrpcServer(grpc.GenericRpcHandler):
    """The gRPC services of one worker; to be made, and used, on the event loop of its models.

    Messages are read and written here and not by grpcio, so that bytes which are none get the answer
    INVALID_ARGUMENT, and every answer is made once.

    Args:
        count: takes every error that a client is told.
        metrics: of the worker.
    """

    def __init__(self, fronts: Fronts, settings: Settings, count: Callable[[Error], None], metrics: Metrics) -> None:
        self._metrics = metrics
        self._fronts = fronts
        self._models = fronts.models
        self._settings = settings
        self._count = count
        self._draining = False
        self._waiting = self._watching = self._cut = 0
        self._templates = Templates()
        self._gathering = Gathering(fronts.models)
        tf, oip, services = tfserving_grpc, kserve_grpc, [HEALTH]
        self._answers: dict[str, Answer] = {f"/{HEALTH}/Check": self._check}
        if settings.tf_serving:
            services += [tf.PREDICTION, tf.MODEL]
            self._answers |= {
                f"/{tf.PREDICTION}/Predict": self._predict,
                f"/{tf.PREDICTION}/Classify": self._judge(
                    "classify", tf.ClassificationRequest, tf.ClassificationResponse
                ),
                f"/{tf.PREDICTION}/Regress": self._judge("regress", tf.RegressionRequest, tf.RegressionResponse),
                f"/{tf.PREDICTION}/MultiInference": self._multi_inference,
                f"/{tf.PREDICTION}/GetModelMetadata": self._metadata,
                f"/{tf.MODEL}/GetModelStatus": self._status,
                f"/{tf.MODEL}/HandleReloadConfigRequest": self._reload,
            }
        if settings.open_inference:
            services.append(oip.SERVICE)
            self._answers |= {
                f"/{oip.SERVICE}/ModelInfer": self._infer,
                **{f"/{oip.SERVICE}/{method}": self._about(method) for method in oip.ABOUT},
                **{f"/{oip.SERVICE}/RepositoryModel{verb}": self._switch(verb) for verb in ("Load", "Unload")},
            }
        self._services = frozenset(("", *services))
        self._handlers = {path: self._unary(path, answer) for path, answer in self._answers.items()}
        self._handlers[f"/{HEALTH}/Watch"] = grpc.unary_stream_rpc_method_handler(self._watch)

    async def listen(self) -> None:
        """Accept connections on the port of the settings.

        Raises:
            ConflictError: it is taken.
        """
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", self._settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", self._settings.max_head_bytes),
                ("grpc.so_reuseport", 1),
                # A window that takes any body at once: so no probe, a ping for every read, has to find one.
                ("grpc.http2.lookahead_bytes", self._settings.max_body_bytes),
                ("grpc.http2.bdp_probe", 0),
            ),
        )
        self._server.add_generic_rpc_handlers((self,))
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        address, certificate = f"{host}:{self._settings.grpc_port}", self._settings.tls_certificate
        try:
            if certificate:
                pair = Path(self._settings.tls_key).read_bytes(), Path(certificate).read_bytes()
                self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
            else:
                self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConflictError(f"gRPC on {host} port {self._settings.grpc_port}: {error}", field="grpc_port") from None
        await self._server.start()

    async def drain(self) -> bool:
        """Stop accepting and answer whatever was asked; whether all of it was within `drain_s`."""
        self._draining = True
        await self._server.stop(self._settings.drain_s)
        return self._cut == 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method; None: there is no such."""
        return self._handlers.get(details.method)

    def _unary(self, path: str, answer: Answer) -> grpc.RpcMethodHandler:
        role: access.Role = "admin" if path.rpartition("/")[2] in ADMIN else "predict"

        async def handle(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self._waiting += 1
            try:
                if self._waiting > self._settings.max_waiting:
                    raise OverloadedError(
                        f"{self._settings.max_waiting} calls wait already", hint="try again in a while"
                    )
                if self._settings.keys and path not in OPEN:
                    access.check(self._settings.keys, access.key_in(_headers(context)), role)
                return await answer(body)
            except asyncio.CancelledError:
                self._cut += self._draining
                raise
            except Exception as error:
                cause = error
            finally:
                self._waiting -= 1
            return await self._refuse(context, cause)

        return grpc.unary_unary_rpc_method_handler(handle)

    async def _refuse(self, context: grpc.aio.ServicerContext, cause: Exception) -> NoReturn:
        """Tell a client why; always raises, as grpcio wants it."""
        if not isinstance(cause, Error):
            cause = Error(f"{type(cause).__name__}: {cause}", hint="this is a defect of the server")
        self._count(cause)
        await context.abort(grpc.StatusCode[tfserving.code(cause)], str(cause)[:MAX_DETAILS])
        raise AssertionError("abort raises")

    async def _run(self, serving: Serving, feeds: dict[str, Array], api: str) -> list[Array]:
        """The outputs.

        Raises:
            Error: why there are none.
        """
        began = time.perf_counter()
        status = 499  # whoever asked is gone, unless we know better
        try:
            outputs = None if self._gathering.worth() else self._models.at_once(serving, feeds)
            if outputs is None:
                outputs = await self._gathering.outputs(serving, feeds)
            status = 200
        except Error as error:
            status = error.http_status
            raise
        finally:
            which = serving.name, serving.number, api, GRPC
            self._metrics.seen(which, status, (time.perf_counter() - began) * 1e6)
        return outputs

    # -- TensorFlow Serving ------------------------------------------------------------------------------------

    async def _predict(self, body: bytes) -> bytes:
        known = self._templates.find(body)
        if known is not None:
            serving = self._fronts.find(known.call)
            signature = serving.model.signature
            if signature is known.signature:
                outputs = await self._run(serving, known.feeds(body), "Predict")
                return tfserving_grpc.write_predict(known.wanted, serving.name, serving.number, outputs, signature)
        request = parse(tfserving_grpc.PredictRequest, body)
        serving = self._fronts.find(tfserving_grpc.call_of("predict", request.model_spec))
        signature = serving.model.signature
        feeds = tfserving_grpc.read_predict(request, signature, self._settings.max_body_bytes)
        outputs = await self._run(serving, feeds, "Predict")
        answer = tfserving_grpc.write_predict(request.output_filter, serving.name, serving.number, outputs, signature)
        self._templates.learn(body, request, signature, feeds)
        return answer

    def _judge(self, verb: str, request_kind: Any, response_kind: Any) -> Answer:
        async def answer(body: bytes) -> bytes:
            request = parse(request_kind, body)
            call = tfserving_grpc.call_of(verb, request.model_spec)
            return (await self._judged(call, request.input, response_kind())).SerializeToString()

        return answer

    async def _judged(self, call: tfserving.Call, input_: Any, response: Any) -> Any:
        serving = self._fronts.find(call)
        signature = serving.model.signature
        outputs = await self._run(serving, tfserving_grpc.read_input(input_, signature), call.verb.title())
        served = serving.name, serving.number
        return tfserving_grpc.fill_result(call.verb, response, served, outputs, signature)

    async def _multi_inference(self, body: bytes) -> bytes:
        request = parse(tfserving_grpc.MultiInferenceRequest, body)
        response = tfserving_grpc.MultiInferenceResponse()
        for call in tfserving_grpc.calls_of(request):
            await self._judged(call, request.input, response.results.add())
        return response.SerializeToString()

    async def _metadata(self, body: bytes) -> bytes:
        call = tfserving_grpc.metadata_call(parse(tfserving_grpc.GetModelMetadataRequest, body))
        serving = self._fronts.find(call)
        return tfserving_grpc.write_metadata(serving.name, serving.number, serving.model.signature)

    async def _status(self, body: bytes) -> bytes:
        call = tfserving_grpc.call_of("status", parse(tfserving_grpc.GetModelStatusRequest, body).model_spec)
        return tfserving_grpc.write_status(call.name, self._models.states(call.name), call.number)

    async def _reload(self, body: bytes) -> bytes:
        names = tfserving_grpc.names_of(parse(tfserving_grpc.ReloadConfigRequest, body))
        await asyncio.to_thread(self._models.only, names)
        return tfserving_grpc.ReloadConfigResponse(status={}).SerializeToString()

    # -- Open Inference Protocol -------------------------------------------------------------------------------

    async def _infer(self, body: bytes) -> bytes:
        request = parse(kserve_grpc.ModelInferRequest, body)
        serving = self._models.find(request.model_name, kserve.number_of(request.model_version))
        signature = serving.model.signature
        question = kserve_grpc.read_infer(request, signature)
        outputs = await self._run(serving, question.feeds, "ModelInfer")
        return kserve_grpc.write_infer(serving.name, serving.number, question, outputs, signature)

    def _about(self, method: str) -> Answer:
        kind = kserve_grpc.kind(f"{method}Request")

        async def answer(body: bytes) -> bytes:
            request = parse(kind, body)
            _, told = self._fronts.about(kserve_grpc.call_of(method, request), getattr(request, "ready", False))
            return kserve_grpc.write_about(method, told)

        return answer

    def _switch(self, verb: str) -> Answer:
        kind, answered = (kserve_grpc.kind(f"RepositoryModel{verb}{end}") for end in ("Request", "Response"))

        async def answer(body: bytes) -> bytes:
            await asyncio.to_thread(self._models.switch, parse(kind, body).model_name, verb == "Load")
            return answered().SerializeToString()

        return answer

    # -- health ------------------------------------------------------------------------------------------------

    def _health(self, service: str) -> int:
        if service not in self._services:
            return SERVICE_UNKNOWN
        return SERVING if self._fronts.ready() and not self._draining else NOT_SERVING

    async def _check(self, body: bytes) -> bytes:
        service = parse(_Check, body).service
        health = self._health(service)
        if health == SERVICE_UNKNOWN:
            raise NotFoundError(f"no service {service[:128]!r}")
        return _Checked(status=health).SerializeToString()

    async def _watch(self, body: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """The health now, and whenever it changes, as far as a look every `poll_s` can tell."""
        self._watching += 1
        try:
            try:
                service = parse(_Check, body).service
                if self._watching > self._settings.max_connections:  # nobody needs a key to watch
                    raise OverloadedError(f"{self._settings.max_connections} clients watch already")
            except Error as error:
                await self._refuse(context, error)
            told = None
            while not self._draining:
                health = self._health(service)
                if health != told:
                    told = health
                    yield _Checked(status=health).SerializeToString()
                await asyncio.sleep(min(self._settings.poll_s, self._settings.quiet_s))
            yield _Checked(status=NOT_SERVING).SerializeToString()
        finally:
            self._watching -= 1


def _headers(context: grpc.aio.ServicerContext) -> dict[bytes, bytes]:
    return {
        name.encode(): value.encode() if isinstance(value, str) else value
        for name, value in context.invocation_metadata() or ()
    }
