"""Settings of a server: where to listen, and what a client may ask for."""

from __future__ import annotations

import math

from msgspec import Struct

from steersman.core.errors import ConfigError
from steersman.serve.access import Key


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to listen, and what a client may ask for.

    Attributes:
        host, port: port 0 takes a free one.
        grpc_port: where gRPC is spoken, too; 0 takes a free one, None: nowhere.
        workers: processes that share the port; 1 serves in this process.
        max_body_bytes, max_head_bytes: of one request, the head with its request line; a compressed body is also
            held to it as what it holds.
        gzip_bytes: an answer of so many bytes or more is compressed for who accepts gzip.
        max_connections: open at once, in one worker.
        max_waiting: requests without an answer yet, in one worker; more are refused with 503.
        stale_s: a request that waited so long for those before it, with others behind it on its connection, is refused
            with 503.
        idle_s: a connection without a request is closed after this.
        request_s: a request must be complete, and an answer be read, within this.
        drain_s: after SIGTERM, until what is not answered is dropped.
        quiet_s: after SIGTERM, how long an idle connection stays open for a request that is on its way.
        poll_s: between two looks at which versions are wanted.
        watch_s: between two looks at the guardrails of perturbed copies, in a process of their own.
        tf_serving, open_inference, sagemaker: whether TensorFlow Serving's REST API, the Open Inference Protocol and
            SageMaker's container contract are spoken.
        model: the one that answers SageMaker's /invocations; empty: the only one there is.
        personalizer: whether Azure Personalizer's calls are spoken.
        personalizer_policy: the policy that they are about; empty: the only one there is.
        apprentice: they are answered with the product's own action, the first, and the policy only learns from it.
        keys: name -> key of a client; without any, everybody may ask for everything.
        tls_certificate, tls_key: PEM files; both or none.
        access_log: a JSON line on stderr for every answer.
        max_candidates, max_outcomes: of one decide request, and in one body.
        batch_rows: rows of several predict requests that are put together into one run.
        model_waiting: predict requests that wait for one heavy model; more are refused with 503.
        keep_requests: the requests that are recorded for warm-ups are kept over a restart, in the project.
        explicit: plain models are served only after a call to load them, not because they are there.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    workers: int = 1
    max_body_bytes: int = 1 << 20
    max_head_bytes: int = 16 << 10
    gzip_bytes: int = 8192
    max_connections: int = 4096
    max_waiting: int = 4096
    stale_s: float = 0.25
    idle_s: float = 75.0
    request_s: float = 30.0
    drain_s: float = 20.0
    quiet_s: float = 0.2
    poll_s: float = 0.25
    watch_s: float = 10.0
    tf_serving: bool = True
    open_inference: bool = True
    sagemaker: bool = True
    model: str = ""
    personalizer: bool = True
    personalizer_policy: str = ""
    apprentice: bool = False
    explicit: bool = False
    keep_requests: bool = False
    keys: dict[str, Key] = {}
    tls_certificate: str = ""
    tls_key: str = ""
    access_log: bool = False
    max_candidates: int = 1000
    max_outcomes: int = 1000
    batch_rows: int = 256
    model_waiting: int = 512

    def __post_init__(self) -> None:
        for name, port in (("port", self.port), ("grpc_port", self.grpc_port or 0)):
            if not 0 <= port < 65536:
                raise ConfigError(f"{name} is {port}, must be 0 to 65535", field=name)
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigError("tls_certificate and tls_key belong together", field="tls_key")
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not name.endswith("port") and type(value) in (int, float) and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value:g}, must be above 0", field=name)
