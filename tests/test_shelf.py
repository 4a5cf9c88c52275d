"""The shelf of plain models, and servers over it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import plain_models as plain
from product import TOML, Client, project, serving, start
from served import Client as Raw
from served import Running, plane_of
from steersman import cli, config, flow, log
from steersman.core.errors import ConflictError, DataError, NotFoundError
from steersman.models.shelf import Shelf
from steersman.serve.settings import Settings


def test_a_shelf_is_the_layout_that_others_poll(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path))
    assert [shelf.publish("half", plain.half()), shelf.publish("half", plain.half(3.0))] == [1, 2]
    (tmp_path / "half" / "7").mkdir()  # a copy that has not come to its file yet
    (tmp_path / "half" / "notes").mkdir()
    (tmp_path / "half" / "007").mkdir()
    assert (shelf.names(), shelf.numbers("half")) == (("half",), (1, 2))
    assert (tmp_path / "half" / "2" / "model.onnx").read_bytes() == plain.half(3.0) == shelf.read("half", 2)
    with pytest.raises(NotFoundError):
        shelf.read("half", 7)
    with pytest.raises(DataError, match="can run"):
        shelf.publish("half", b"x")
    for name in ("..", "a/b", "", ".hidden", "a\0b", "/etc"):
        with pytest.raises(DataError, match="must match"):
            shelf.publish(name, plain.half())
        with pytest.raises(DataError, match="must match"):
            shelf.read(name, 1)
    shelf.switch("half", on=False)
    assert shelf.switched() == {"half": False}
    shelf.switch("half", on=True)
    assert shelf.switched() == {"half": True}
    with pytest.raises(NotFoundError, match="did you mean half"):
        shelf.switch("hlaf", on=True)


MODELS = """
[model.fixed]
numbers = [1, 2]
labels = { first = 1 }
"""


def test_a_project_serves_policies_and_plain_models_and_follows_both(tmp_path: Path) -> None:
    made = project(tmp_path, TOML + MODELS)
    file = tmp_path / "half.onnx"
    file.write_bytes(plain.half(1.0))
    assert cli.main(["publish", "half", "--onnx", str(file), "--project", str(tmp_path)]) == 0
    for _ in range(3):
        flow.publish_model(made, "fixed", file)
    with pytest.raises(ConflictError):
        flow.publish_model(made, "greeting", file)
    with serving(made) as url:
        client = Client(url)
        assert client.post("/v1/models/half:predict", {"instances": [1]}) == (200, {"predictions": [1.5]})
        assert client.post("/v1/models/fixed/labels/first:predict", {"instances": [1]})[0] == 200
        states = client.get("/v1/models/fixed")["model_version_status"]
        assert [one["version"] for one in states] == ["2", "1"]
        status, _ = client.post("/v1/decide/greeting", {"unit": "u"})
        assert status == 200
        body = {"inputs": {"candidate_ids": [["hello", "hi", "welcome"]]}}
        assert client.post("/v1/models/greeting/labels/champion:predict", body) == (200, {"outputs": [[0.0, 0.0, 0.0]]})
        file.write_bytes(plain.half(5.0))
        flow.publish_model(made, "half", file)
        deadline = time.monotonic() + 20
        while client.post("/v1/models/half:predict", {"instances": [1]})[1] != {"predictions": [5.5]}:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        states = client.get("/v1/models/half")["model_version_status"]
        assert [(one["version"], one["state"]) for one in states] == [("2", "AVAILABLE")]


def test_a_directory_of_models_is_served_without_a_project(tmp_path: Path) -> None:
    Shelf(str(tmp_path)).publish("half", plain.half())
    made = config.only_models(tmp_path)
    process, url = start(made, "--models", str(tmp_path))
    try:
        client = Client(url)
        assert client.get("/v1/ready") == {"ready": True}
        assert client.post("/v1/models/half:predict", {"instances": [1]}) == (200, {"predictions": [2.5]})
        status, body = client.post("/v1/outcome", {"decision": "d"})
        assert (status, "no log" in body["error"]) == (503, True)
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half"]


@contextmanager
def served(versions: Mapping[str, Mapping[int, bytes]], directory: Path, **settings: Any) -> Iterator[Running]:
    with log.Pen(directory) as pen:
        server = Running(plane_of(pen), Settings(port=0, quiet_s=0.02, **settings), models=plain.models_of(versions))
        yield server
        server.stop()


def test_pipelined_predictions_are_one_run_and_one_bad_row_fails_alone(tmp_path: Path) -> None:
    with served({"table": {1: plain.gather()}}, tmp_path) as server, Raw(server.port) as client:
        bodies = [json.dumps({"instances": [i]}).encode() for i in (0, 1, 99, 3)]
        head = "POST /v1/models/table:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n"
        client.sock.sendall(b"".join(head.format(len(body)).encode() + body for body in bodies))
        found = [client.receive() for _ in bodies]
        assert [status for status, _, _ in found] == [200, 200, 400, 200]
        assert [body.get("predictions") for _, _, body in found] == [[0.0], [1.0], None, [3.0]]
        assert server.models is not None
        table = server.models.find("table")
        assert (table.rows, table.runs) == (3, 2)  # those beside the bad one were run again


def test_a_protocol_that_is_switched_off_is_not_there(tmp_path: Path) -> None:
    with served({"half": {1: plain.half()}}, tmp_path, tf_serving=False) as server, Raw(server.port) as client:
        assert client.ask("POST", "/v1/models/half:predict", {"instances": [1]})[0] == 404
