"""What steersman.toml says of plain models while a server runs, and what it says when it can not be kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import plain_models as plain
from product import TOML, Client, project, serving, start
from steersman import config, flow
from steersman.core.errors import DiskError
from steersman.models.shelf import Shelf


def until(holds: Callable[[], object]) -> None:
    """Wait until it does."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_labels_and_latest_are_followed_and_a_broken_file_keeps_the_old_ones(tmp_path: Path) -> None:
    made = project(tmp_path, TOML + "\n[model.half]\nlabels = { stable = 3 }\n")
    for plus in (1.0, 2.0, 3.0):
        (tmp_path / "half.onnx").write_bytes(plain.half(plus))
        flow.publish_model(made, "half", tmp_path / "half.onnx")
    with serving(made) as url:
        client = Client(url)

        def versions() -> list[str]:
            return [one["version"] for one in client.get("/v1/models/half").get("model_version_status", [])]

        def labelled(label: str) -> object:
            return client.post(f"/v1/models/half/labels/{label}:predict", {"instances": [0]})[1].get("predictions")

        def write(model: str) -> None:
            aside = tmp_path / "aside.toml"  # whole or not at all: the server may look at any time
            aside.write_text(TOML + model)
            aside.replace(tmp_path / config.FILE)

        assert (versions(), labelled("stable"), labelled("old")) == (["3"], [3.0], None)
        write("\n[model.half]\nlatest = 2\nlabels = { stable = 2, old = 2 }\n")
        until(lambda: labelled("old") == [2.0])
        assert (versions(), labelled("stable")) == (["3", "2"], [2.0])
        write("\n[model.half]\nlatst = 3\n")
        until(lambda: client.get("/v1/status")["error"])
        error = client.get("/v1/status")["error"]
        assert "model.half.latst" in error["error"] + error["field"] and "did you mean latest" in error["hint"]
        assert (versions(), labelled("old")) == (["3", "2"], [2.0])
        (tmp_path / "half.onnx").write_bytes(plain.half(4.0))
        flow.publish_model(made, "half", tmp_path / "half.onnx")
        until(lambda: versions() == ["4", "3"])  # the shelf is followed by what was declared before
        (tmp_path / config.FILE).unlink()
        until(lambda: "not there" in (client.get("/v1/status")["error"] or {}).get("error", ""))
        assert versions() == ["4", "3"]
        write("\n[model.half]\nlatest = 0\n")
        until(lambda: versions() == ["4", "3", "2", "1"])
        assert (client.get("/v1/status")["error"], labelled("old")) == (None, None)


def test_a_directory_of_models_is_served_whatever_else_lies_in_it(tmp_path: Path) -> None:
    Shelf(str(tmp_path)).publish("half", plain.half())
    (tmp_path / config.FILE).write_text(TOML + "\n[model.half]\nnumbers = [9]\n")
    made = config.only_models(tmp_path)
    declared = flow.serving._Declared(made)
    assert (declared.models(), declared.error) == ({}, None)
    (tmp_path / config.FILE).write_text("nonsense")
    assert (declared.models(), declared.error) == ({}, None)


def test_a_shelf_that_can_not_be_written_switches_nothing_and_says_why(tmp_path: Path) -> None:
    Shelf(str(tmp_path)).publish("half", plain.half())
    (tmp_path / "switched.json").mkdir()
    (tmp_path / "switched.json" / "in the way").touch()
    with pytest.raises(DiskError, match=r"switched\.json: Is a directory"):
        Shelf(str(tmp_path)).switch("half", on=False)
    made = project(tmp_path / "project", f"[models]\nurl = '{tmp_path}'\n" + TOML)
    process, url = start(made, "--explicit")
    try:
        client = Client(url)
        for path, body in (("/v2/repository/models/half/load", {}), ("/models", {"model_name": "half"})):
            status, answer = client.post(path, body)
            assert (status, "switched.json: Is a directory" in answer["error"]) == (507, True)
        assert client.post("/v1/models/half:predict", {"instances": [0]})[0] == 404
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
