"""The OpenAPI document against a real server, by schemathesis: every status, content type and schema is as it says.

Random bodies hardly ever fit a model, so what the document leaves open is told as it is for the models of this server.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

import plain_models as plain
from served import Running, plane_of
from steersman import log
from steersman.models.shelf import Shelf
from steersman.serve.openapi import document
from steersman.serve.settings import Settings

PRICE = {"type": ["number", "boolean", "object", "array", "null"]}  # objects may be empty
PRICES = {"type": "object", "properties": {"price": PRICE}, "additionalProperties": False}
OF_SHOP = {"type": "object", "properties": {"age": {"type": "number"}, "country": {"type": "string"}}}
ACTION = {
    "type": "object",
    "properties": {"id": {"type": "string", "minLength": 1}, "features": {"type": "array", "items": PRICES}},
    "required": ["id"],
}
X = {"type": "number"}
FEATURE = {"type": ["number", "boolean"]}
EXAMPLE = {"type": "object", "properties": {"x": FEATURE}, "required": ["x"], "additionalProperties": False}
TENSOR = {
    "type": "object",
    "properties": {
        "name": {"const": "x"},
        "datatype": {"const": "FP32"},
        "shape": {"const": [2]},
        "data": {"type": "array", "items": X, "minItems": 2, "maxItems": 2},
    },
    "required": ["name", "datatype", "shape", "data"],
}
SIGNATURE = {"enum": ["serving_default", ""]}
CLOSED = {"additionalProperties": False}
HERE: dict[str, dict[str, Any]] = {
    "/v1/decide/{policy}": {"context": {**OF_SHOP, **CLOSED}},
    "/v1/models/{model}:predict": {"signature_name": SIGNATURE, "instances": {"items": X}},
    "/v1/models/{model}:classify": {"signature_name": SIGNATURE, "examples": {"items": EXAMPLE}},
    "/v1/models/{model}:regress": {"signature_name": SIGNATURE, "examples": {"items": EXAMPLE}},
    "/v2/models/{model}/infer": {"inputs": {"items": TENSOR, "minItems": 1, "maxItems": 1}},
    "/personalizer/v1.0/rank": {"actions": {"items": ACTION}},
}
"""Path -> property of its body -> what else holds of it here."""


def told_closer() -> dict[str, Any]:
    """The document, closer to what the models of this server take."""
    told = json.loads(document())
    for path, more in HERE.items():
        body = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for name, closer in more.items():
            body["properties"][name] |= closer
    predict = told["paths"]["/v1/models/{model}:predict"]["post"]["requestBody"]["content"]["application/json"]
    del predict["schema"]["properties"]["inputs"]
    predict["schema"]["required"] = ["instances"]
    return told


SETTINGS = """
[checks]
positive_data_acceptance.enabled = false  # that candidates differ, and shapes fit, no schema says

[parameters]
"path.model" = "half"
"path.policy" = "shop"

[[operations]]
include-path-regex = "^/v1/models"
checks.unsupported_method.enabled = false  # TensorFlow Serving says 400
"""


def conforms(directory: Path, examples: int) -> None:
    """Fail unless schemathesis finds nothing, and got through to every model."""
    with log.Pen(directory / "log") as pen:
        plane = plane_of(pen)
        plane.swap("shop", 1)
        shelf = Shelf(str(directory / "shelf"))
        shelf.publish("half", plain.half())
        models = plain.following(shelf)
        made = Running(plane, Settings(port=0, quiet_s=0.02, model="half"), models=models)
        try:
            url = f"http://127.0.0.1:{made.port}"
            (directory / "openapi.json").write_text(json.dumps(told_closer()))
            (directory / "schemathesis.toml").write_text(SETTINGS)
            command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"]
            command += ["openapi.json", "--url", url, "--max-examples", str(examples), "--seed", "1", "--no-color"]
            ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
            calls = sum(map(len, json.loads(document())["paths"].values()))
            assert re.search(rf"Tested: {calls}\b", ran.stdout), ran.stdout[-3000:]
            metrics = httpx.get(f"{url}/metrics").text
        finally:
            made.stop()
    for api in ("Predict", "Classify", "Regress", "ModelInfer", "Invoke"):
        assert re.search(rf'request_count{{model_name="half".*API="{api}".*status="OK"}} [1-9]', metrics), metrics[
            :3000
        ]
    assert made.plane.counts.decisions > 0 and made.plane.counts.outcomes > 0


def test_the_server_is_as_its_document_says(tmp_path: Path) -> None:
    conforms(tmp_path, 3)


@pytest.mark.slow
def test_the_server_is_as_its_document_says_in_depth(tmp_path: Path) -> None:
    conforms(tmp_path, 60)
