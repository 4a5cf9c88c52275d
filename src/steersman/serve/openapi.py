"""The OpenAPI document of the server: every path, what it takes and what it answers. Pure."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number"}
WHOLE: dict[str, Any] = {"type": "integer"}
ANY: dict[str, Any] = {}
FEATURES = {"type": "object", "additionalProperties": {"type": ["number", "string", "array", "null"]}}


def _object(required: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required.split()}


def _array(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


_ERROR = _object("error", error=TEXT)
_OUTCOME = _object(
    "decision",
    decision=TEXT,
    metrics={"type": "object", "additionalProperties": NUMBER},
    ends={"enum": ["terminated", "truncated", None]},
    id=TEXT,
    at=WHOLE,
    activates={"type": "boolean"},
)
_DECIDE = _object(
    "unit",
    unit=TEXT,
    context=FEATURES,
    candidates=_array(_object("id", id=TEXT, features=FEATURES)),
    id=TEXT,
    step=WHOLE,
    deferred={"type": "boolean"},
)
_ANSWER = _object(
    "id action propensity version policy", id=TEXT, action=ANY, propensity=NUMBER, version=WHOLE, policy=TEXT
)
_TENSOR = _object("name shape datatype", name=TEXT, shape=_array(WHOLE), datatype=TEXT, parameters=ANY, data=ANY)
_INFER = _object("inputs", inputs=_array(_TENSOR), outputs=_array(_object("name", name=TEXT)), id=TEXT)
_INFERRED = _object("model_name model_version outputs", model_name=TEXT, model_version=TEXT, outputs=_array(_TENSOR))
_PREDICT = _object(signature_name=TEXT, instances=_array(ANY), inputs=ANY)
_PREDICTED = _object(predictions=_array(ANY), outputs=ANY)
_EXAMPLES = _object("examples", signature_name=TEXT, context=FEATURES, examples=_array(FEATURES))
_RESULTS = _object("results", results=_array(ANY))
_RANK = _object(
    "actions",
    contextFeatures=_array({"type": "object"}),
    actions=_array(_object("id", id=TEXT, features=_array({"type": "object"}))),
    excludedActions=_array(TEXT),
    eventId=TEXT,
    deferActivation={"type": "boolean"},
)
_RANKED = _object(
    "ranking eventId rewardActionId",
    ranking=_array(_object("id probability", id=TEXT, probability=NUMBER)),
    eventId=TEXT,
    rewardActionId=TEXT,
)
_SLOT = _object(
    "id baselineAction",
    id=TEXT,
    features=_array({"type": "object"}),
    excludedActions=_array(TEXT),
    baselineAction=TEXT,
)
_RANK_SLOTS = _object(
    "actions slots",
    contextFeatures=_array({"type": "object"}),
    actions=_array(_object("id", id=TEXT, features=_array({"type": "object"}))),
    slots=_array(_SLOT),
    eventId=TEXT,
    deferActivation={"type": "boolean"},
)
_RANKED_SLOTS = _object(
    "slots eventId", slots=_array(_object("id rewardActionId", id=TEXT, rewardActionId=TEXT)), eventId=TEXT
)
_REWARDS = _object("reward", reward=_array(_object("slotId value", slotId=TEXT, value=NUMBER)))
_MULTISLOT = "/personalizer/v1.1-preview.3/multislot"

_PATHS: dict[str, tuple[str, str, Any, int, Any]] = {
    "/v1/decide/{policy}": ("post", "Decide; the decision is durable before its answer leaves", _DECIDE, 200, _ANSWER),
    "/v1/outcome": (
        "post",
        "Tell what came of decisions",
        {"oneOf": [_OUTCOME, _array(_OUTCOME)]},
        200,
        _object("accepted ids", accepted=WHOLE, ids=_array(TEXT)),
    ),
    "/v1/status": ("get", "What serves, and how much", None, 200, _object("ready policies models counts")),
    "/v1/live": ("get", "The process answers", None, 200, _object("live", live={"type": "boolean"})),
    "/v1/ready": ("get", "All that is wanted is there", None, 200, _object("ready", ready={"type": "boolean"})),
    "/v1/models/{model}:predict": ("post", "TensorFlow Serving: predict", _PREDICT, 200, _PREDICTED),
    "/v1/models/{model}:classify": ("post", "TensorFlow Serving: classify", _EXAMPLES, 200, _RESULTS),
    "/v1/models/{model}:regress": ("post", "TensorFlow Serving: regress", _EXAMPLES, 200, _RESULTS),
    "/v1/models/{model}": ("get", "TensorFlow Serving: status", None, 200, _object("model_version_status")),
    "/v1/models/{model}/metadata": ("get", "TensorFlow Serving: signature", None, 200, _object("model_spec metadata")),
    "/v2": ("get", "Open Inference: the server", None, 200, _object("name version extensions")),
    "/v2/health/live": ("get", "Open Inference: live", None, 200, _object("live")),
    "/v2/health/ready": ("get", "Open Inference: ready", None, 200, _object("ready")),
    "/v2/models/{model}": ("get", "Open Inference: a model", None, 200, _object("name platform inputs outputs")),
    "/v2/models/{model}/ready": ("get", "Open Inference: a model is ready", None, 200, _object("name ready")),
    "/v2/models/{model}/config": ("get", "Triton: config of a model", None, 200, _object("name input output")),
    "/v2/models/{model}/stats": ("get", "Triton: counts of a model", None, 200, _object("model_stats")),
    "/v2/models/{model}/infer": ("post", "Open Inference: infer", _INFER, 200, _INFERRED),
    "/v2/repository/index": ("post", "Triton: all models", _object(ready={"type": "boolean"}), 200, _array(_object())),
    "/v2/repository/models/{model}/load": ("post", "Triton: serve a model", _object(), 200, _object()),
    "/v2/repository/models/{model}/unload": ("post", "Triton: serve it no more", _object(), 200, _object()),
    "/ping": ("get", "SageMaker: all that is wanted is there", None, 200, None),
    "/invocations": ("post", "SageMaker: predict", {"oneOf": [_PREDICT, _array(ANY)]}, 200, _PREDICTED),
    "/execution-parameters": ("get", "SageMaker: batch transform", None, 200, _object("MaxPayloadInMB")),
    "/models": ("get", "SageMaker: loaded models", None, 200, _object("models")),
    "/personalizer/v1.0/rank": ("post", "Personalizer: rank", _RANK, 201, _RANKED),
    "/personalizer/v1.0/events/{event}/reward": (
        "post",
        "Personalizer: reward",
        _object("value", value=NUMBER),
        204,
        None,
    ),
    "/personalizer/v1.0/events/{event}/activate": ("post", "Personalizer: activate", None, 204, None),
    f"{_MULTISLOT}/rank": ("post", "Personalizer: fill several slots", _RANK_SLOTS, 201, _RANKED_SLOTS),
    f"{_MULTISLOT}/events/{{event}}/reward": ("post", "Personalizer: rewards of slots", _REWARDS, 204, None),
    f"{_MULTISLOT}/events/{{event}}/activate": ("post", "Personalizer: activate all slots", None, 204, None),
}


def _operation(path: str, verb: str, summary: str, body: Any, status: int, answer: Any) -> dict[str, Any]:
    def content(schema: Any) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    error = {"description": "refused", **content({"$ref": "#/components/schemas/Error"})}
    done = {"description": "done", **(content(answer) if answer is not None else {})}
    operation: dict[str, Any] = {"summary": summary, "responses": {str(status): done, "default": error}}
    if body is not None:
        operation["requestBody"] = {"required": True, **content(body)}
    if "{" in path:
        name = path.partition("{")[2].partition("}")[0]
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": TEXT}]
    return {verb: operation}


@functools.cache
def document() -> bytes:
    """The document, as JSON."""
    key = {"type": "apiKey", "in": "header", "name": "X-Api-Key"}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Steersman", "version": "1"},
            "paths": {path: _operation(path, *told) for path, told in _PATHS.items()},
            "components": {"schemas": {"Error": _ERROR}, "securitySchemes": {"key": key, "bearer": _BEARER}},
        }
    )


_BEARER = {"type": "http", "scheme": "bearer"}
