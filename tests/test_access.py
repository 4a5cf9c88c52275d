"""Keys and roles, metrics, the access log, TLS and the OpenAPI document, over real sockets."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import ssl
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import jsonschema
import pytest

import plain_models as plain
from served import Running, plane_of
from steersman import cli, config, log
from steersman.core.errors import ConfigError
from steersman.serve import tfserving_grpc, workers
from steersman.serve.access import Key, role_of
from steersman.serve.metrics import Metrics, text
from steersman.serve.settings import Settings

KEYS = {
    name: Key(hashlib.sha256(name.encode()).hexdigest(), roles)
    for name, roles in {"reader": ("predict",), "decider": ("decide",), "boss": ("predict", "decide", "admin")}.items()
}
SHOP = {"unit": "u", "candidates": [{"id": "a"}, {"id": "b"}]}


@contextmanager
def running(directory: Path, verify: Any = True, **settings: Any) -> Iterator[tuple[Running, httpx.Client]]:
    with log.Pen(directory) as pen:
        plane = plane_of(pen)
        plane.swap("shop", 1)
        models = plain.models_of({"half": {1: plain.half(), 2: plain.half()}, "table": {1: plain.gather()}})
        made = Running(plane, Settings(port=0, quiet_s=0.02, **settings), models=models)
        scheme = "https" if "tls_key" in settings else "http"
        with httpx.Client(base_url=f"{scheme}://localhost:{made.port}", timeout=20, verify=verify) as http:
            yield made, http
        made.stop()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("log"), keys=KEYS) as (_, http):
        yield http


CALLS: list[tuple[str, str, Any, str]] = [
    ("POST", "/v1/models/half:predict", {"instances": [1]}, "predict"),
    ("POST", "/V1/Models/half:predict", {"instances": [1]}, "predict"),
    ("GET", "/v1/models/half/metadata", None, "predict"),
    ("GET", "/v2/models/half", None, "predict"),
    ("POST", "/models/half/invoke", [1], "predict"),
    ("POST", "/v1/decide/shop", SHOP, "decide"),
    ("POST", "/v1/outcome", {"decision": "d"}, "decide"),
    ("POST", "/personalizer/v1.0/rank", {"actions": [{"id": "a"}]}, "decide"),
    ("POST", "/v2/repository/models/half/unload", {}, "admin"),
    ("POST", "/v2/repository/models/half/unload/", {}, "admin"),
    ("POST", "/v2/repository/models/half/load//", {}, "admin"),
    ("POST", "/models", {"model_name": "half"}, "admin"),
    ("DELETE", "/models/half", None, "admin"),
    ("GET", "/v1/status", None, "any"),
    ("GET", "/metrics", None, "any"),
]


@pytest.mark.parametrize(("method", "path", "body", "role"), CALLS)
def test_a_key_opens_what_its_roles_say_and_nothing_else(
    guarded: httpx.Client, method: str, path: str, body: Any, role: str
) -> None:
    for key in (None, "wrong", "", "reader" * 1000):
        headers = {} if key is None else {"x-api-key": key}
        assert guarded.request(method, path, json=body, headers=headers).status_code == 401
    for name, key in KEYS.items():
        status = guarded.request(method, path, json=body, headers={"x-api-key": name}).status_code
        allowed = role == "any" or role in key.roles
        assert (status != 403) == allowed and status != 401, (name, status)


def test_a_key_may_come_in_any_of_three_headers(guarded: httpx.Client) -> None:
    for headers in (
        {"authorization": "Bearer boss"},
        {"authorization": "bearer boss"},
        {"x-api-key": "boss"},
        {"ocp-apim-subscription-key": "boss"},
    ):
        assert guarded.get("/v1/status", headers=headers).status_code == 200
    assert guarded.get("/v1/status", headers={"authorization": "Basic boss"}).status_code == 401


def test_health_needs_no_key(guarded: httpx.Client) -> None:
    for path in ("/v1/live", "/v1/ready", "/ping", "/v2/health/live", "/v2/health/ready"):
        assert guarded.get(path).status_code == 200


def test_quoting_the_path_is_no_way_round_a_role(guarded: httpx.Client) -> None:
    for path in ("/v1/decide%2Fshop", "/v1/%64ecide/shop", "/%761/decide/shop", "/v1//decide/shop"):
        status = guarded.post(path, json=SHOP, headers={"x-api-key": "reader"}).status_code
        assert status in (403, 404), path
    assert role_of("POST", "/v1/decide/shop") == "decide"


def test_the_command_makes_a_key_that_the_project_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["key", "web", "--role", "predict", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert hashlib.sha256(made["key"].encode()).hexdigest() == made["sha256"]
    toml = f'[serve.keys.web]\nsha256 = "{made["sha256"]}"\nroles = ["predict"]\n'
    toml += '[problem.p]\nreward = "r"\nwait_s = 1\nactions = { kind = "one" }\n'
    (tmp_path / "steersman.toml").write_text(toml)
    assert config.load(tmp_path).serve.keys == {"web": Key(made["sha256"], ("predict",))}
    (tmp_path / "steersman.toml").write_text(toml.replace(made["sha256"], "secret"))
    with pytest.raises(ConfigError, match="64 hex digits"):
        config.load(tmp_path)


PREDICT = "/tensorflow.serving.PredictionService/Predict"
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"


def called(channel: grpc.Channel, path: str, body: bytes, key: str = "") -> grpc.StatusCode:
    try:
        channel.unary_unary(path)(body, metadata=(("x-api-key", key),) if key else (), timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_keys_tls_and_metrics_are_the_same_over_grpc(tmp_path: Path) -> None:
    settings = certified(tmp_path)
    request = tfserving_grpc.PredictRequest()
    request.model_spec.name = "half"
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(1.0)
    request.inputs["x"].tensor_shape.dim.add(size=1)
    body = request.SerializeToString()
    code = grpc.StatusCode
    with workers.holding_grpc(Settings(grpc_port=0)) as held:
        port = held.grpc_port
        trusted = ssl.create_default_context(cafile=settings["tls_certificate"])
        with running(tmp_path / "log", trusted, grpc_port=port, keys=KEYS, **settings) as (_, http):
            root = grpc.ssl_channel_credentials(Path(settings["tls_certificate"]).read_bytes())
            with grpc.secure_channel(f"localhost:{port}", root) as channel:
                found = [called(channel, PREDICT, body, key) for key in ("", "wrong", "decider", "reader", "boss")]
                assert found == [code.UNAUTHENTICATED, code.UNAUTHENTICATED, code.PERMISSION_DENIED, code.OK, code.OK]
                assert called(channel, LOAD, b"", "reader") == code.PERMISSION_DENIED
                assert called(channel, LOAD, b"", "boss") == code.NOT_FOUND
                assert called(channel, "/grpc.health.v1.Health/Check", b"") == code.OK
            text = http.get("/metrics", headers={"x-api-key": "reader"}).text
            labels = 'model_name="half",version="2",API="Predict",entrypoint="GRPC",status="OK"'
            assert read_metrics(text)[f":tensorflow:serving:request_count{{{labels}}}"] == 2


# -- metrics ------------------------------------------------------------------------------------------------------


def read_metrics(text: str) -> dict[str, float]:
    """Name with labels -> value; every line must be of the format."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# TYPE [a-zA-Z_:][a-zA-Z0-9_:]* (counter|gauge|histogram)", line)
            continue
        match = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^{}]*\})?) (\S+)", line)
        assert match, line
        found[match[1]] = float(match[2])
    return found


def test_large_counts_and_sums_keep_every_digit() -> None:
    metrics = Metrics()
    which = ("half", 1, "Predict", "REST")
    for took_us in (1e9, 0.25):
        metrics.seen(which, 200, took_us)
    state = metrics.state({"decisions": 123_456_789}, {"waiting": 1_234_567}, [])
    found = read_metrics(text(state).decode())
    assert (found["steersman_decisions_total"], found["steersman_waiting"]) == (123_456_789, 1_234_567)
    [total] = [value for name, value in found.items() if "latency_sum" in name]
    assert total == 1e9 + 0.25


def test_metrics_have_the_names_of_tensorflow_serving_with_a_version(tmp_path: Path) -> None:
    with running(tmp_path) as (_, http):
        for _ in range(3):
            http.post("/v1/models/half/versions/1:predict", json={"instances": [1, 2]})
        http.post("/v1/models/half:predict", json={"instances": ["x"]})
        http.post("/v1/models/table:predict", json={"instances": [99]})
        http.post("/v1/models/nothing:predict", json={"instances": [99]})
        http.post("/v2/models/half/infer", json={})
        http.post("/v1/decide/shop", json=SHOP)
        answer = http.get("/monitoring/prometheus/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = read_metrics(answer.text)
        assert read_metrics(http.get("/metrics").text).keys() == found.keys()
    counts = {name: value for name, value in found.items() if "request_count" in name}

    def count(model: str, version: int, api: str, status: str) -> float:
        labels = f'model_name="{model}",version="{version}",API="{api}",entrypoint="REST",status="{status}"'
        return counts.pop(f":tensorflow:serving:request_count{{{labels}}}")

    assert count("half", 1, "Predict", "OK") == 3
    assert count("half", 2, "Predict", "INVALID_ARGUMENT") == 1
    assert count("table", 1, "Predict", "INVALID_ARGUMENT") == 1
    assert count("half", 2, "ModelInfer", "INVALID_ARGUMENT") == 1
    assert not counts
    assert not [name for name in found if "nothing" in name]
    labels = 'model_name="half",version="1",API="Predict",entrypoint="REST"'
    buckets = [value for name, value in found.items() if "_bucket" in name and labels in name]
    assert buckets == sorted(buckets) and buckets[-1] == 3 and len(buckets) == 34
    latency = ":tensorflow:serving:request_latency"
    assert found[f"{latency}_count{{{labels}}}"] == 3
    assert 3 * 5 < found[f"{latency}_sum{{{labels}}}"] < 3e6
    assert found[':tensorflow:serving:request_example_count_total{model="half",version="1"}'] == 6
    assert (found["steersman_decisions_total"], found["steersman_connections"]) == (1, 1)


def test_the_access_log_has_a_line_of_json_for_every_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, access_log=True) as (_, http):
        http.get("/v1/live")
        http.post('/v1/models/half:predict?a="b', json={"instances": [1]})
        http.get("/v1/nothing")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["method"], line["status"]) for line in lines] == [("GET", 200), ("POST", 200), ("GET", 404)]
    assert lines[1]["target"].startswith("/v1/models/half:predict?a=")
    assert all(line["us"] >= 0 and line["bytes"] > 0 for line in lines)


class Nobody(io.StringIO):
    """A pipe whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "nobody reads")


def test_answers_go_on_when_nobody_reads_the_access_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, access_log=True) as (_, http), monkeypatch.context() as patched:
        patched.setattr("sys.stderr", Nobody())
        assert http.get("/v1/live").status_code == 200
        assert http.post("/v1/models/half:predict", json={"instances": [1]}).status_code == 200


# -- TLS ----------------------------------------------------------------------------------------------------------


def certified(directory: Path) -> dict[str, str]:
    """Settings with a certificate of localhost, made here."""
    certificate, key = directory / "c.pem", directory / "k.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed here")
    return {"tls_certificate": str(certificate), "tls_key": str(key)}


def test_tls_by_option(tmp_path: Path) -> None:
    settings = certified(tmp_path)
    trusted = ssl.create_default_context(cafile=settings["tls_certificate"])
    with running(tmp_path / "log", trusted, **settings) as (_, http):
        assert http.post("/v1/models/half:predict", json={"instances": [1]}).json() == {"predictions": [2.5]}
    with pytest.raises(ConfigError, match="belong together"):
        Settings(tls_key="x")


# -- OpenAPI ------------------------------------------------------------------------------------------------------

EXAMPLES: dict[str, Any] = {
    "/v1/decide/{policy}": SHOP,
    "/v1/outcome": {"decision": "d", "metrics": {"clicks": 1}},
    "/v1/models/{model}:predict": {"instances": [1]},
    "/v1/models/{model}:classify": {"examples": [{"x": 1}]},
    "/v1/models/{model}:regress": {"examples": [{"x": 1}]},
    "/v2/models/{model}/infer": {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]},
    "/v2/repository/index": {},
    "/invocations": [1],
    "/models/{model}/invoke": [1],
    "/personalizer/v1.0/rank": {"actions": [{"id": "a"}]},
    "/personalizer/v1.0/events/{event}/reward": {"value": 1},
    "/personalizer/v1.1-preview.3/multislot/rank": {
        "actions": [{"id": "a"}],
        "slots": [{"id": "top", "baselineAction": "a"}],
    },
    "/personalizer/v1.1-preview.3/multislot/events/{event}/reward": {"reward": [{"slotId": "top", "value": 1}]},
}


SWITCHES = (("post", "/models"), ("delete", "/models/{model}"))
"""Refused here, and the calls of Triton's that do the same: these models lie on no shelf."""


def test_every_documented_path_answers_as_documented(tmp_path: Path) -> None:
    with running(tmp_path, model="half") as (_, http):
        document = http.get("/openapi.json").json()
        assert document["openapi"] == "3.1.0"
        schemas = {"components": document["components"]}
        calls = [(path, verb, one) for path, verbs in document["paths"].items() for verb, one in verbs.items()]
        for path, verb, operation in calls:
            assert ("{" in path) == ("parameters" in operation)
            target = re.sub(r"\{(\w+)\}", lambda found: {"policy": "shop", "model": "half"}.get(found[1], "e1"), path)
            body = EXAMPLES.get(path)
            if body is not None:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                jsonschema.validate(body, {**schema, **schemas})
            answer = http.request(verb.upper(), target, json=body)
            switches = "/repository/models/" in path or (verb, path) in SWITCHES
            assert answer.is_success != switches, (verb, path, answer)
            response = operation["responses"][str(answer.status_code)]
            if "content" in response:
                schema = response["content"]["application/json"]["schema"]
                jsonschema.validate(answer.json(), {**schema, **schemas})


@pytest.mark.parametrize("name", ["web", "a b", "a.b", 'the "shop"', "caf\u00e9"])
def test_the_lines_of_a_key_are_toml_whatever_the_client_is_called(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["key", name]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert list(tomllib.loads("\n".join(lines))["serve"]["keys"]) == [name]
