"""The OpenAPI document of the server: every path, what it takes and what it answers. Pure."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import msgspec

from steersman.core.decision import MAX_ID

TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number"}
WHOLE: dict[str, Any] = {"type": "integer"}
YES_OR_NO: dict[str, Any] = {"type": "boolean"}
ANY: dict[str, Any] = {}
ID = {"type": "string", "minLength": 1, "maxLength": MAX_ID, "description": "printable characters"}
VALUE = {
    "type": ["number", "string", "array", "null"],
    "items": {"type": ["number", "string"]},
    "description": "a number, a text, a list of these, or null for what is not known",
}
FEATURES = {"type": "object", "additionalProperties": VALUE}
INSTANT = {"type": "integer", "minimum": 0, "description": "microseconds since 1970, UTC"}


def _object(required: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required.split()}


def _closed(required: str = "", **fields: Any) -> dict[str, Any]:
    return {**_object(required, **fields), "additionalProperties": False}


def _array(of: dict[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": of, **({"minItems": least} if least else {})}


def _maybe(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], **more}


_MAYBE_ID = _maybe("string", minLength=1, maxLength=MAX_ID)
_ERROR = _object("error", error=TEXT)
_OUR_ERROR = _object("error hint field", error=TEXT, hint=TEXT, field=TEXT)
_PERSONALIZER_ERROR = _object("error", error=_object("code message", code=TEXT, message=TEXT))
_OUTCOME = _closed(
    "decision",
    decision=ID,
    metrics={"type": "object", "additionalProperties": NUMBER},
    ends={"enum": ["terminated", "truncated", None]},
    id=_MAYBE_ID,
    at={**INSTANT, "type": ["integer", "null"]},
    activates=YES_OR_NO,
)
_DECIDE = _closed(
    "unit",
    unit=ID,
    context=FEATURES,
    candidates=_maybe("array", items=_closed("id", id=ID, features=FEATURES)),
    id=_MAYBE_ID,
    step=_maybe("integer", minimum=0),
    deferred=YES_OR_NO,
)
_ANSWER = _object(
    "id action propensity version policy", id=ID, action=ANY, propensity=NUMBER, version=WHOLE, policy=TEXT
)
_TENSOR = _object("name shape datatype", name=TEXT, shape=_array(WHOLE), datatype=TEXT, parameters=ANY, data=ANY)
_INFER = _object("inputs", inputs=_array(_TENSOR), outputs=_array(_object("name", name=TEXT)), id=TEXT)
_INFERRED = _object("model_name model_version outputs", model_name=TEXT, model_version=TEXT, outputs=_array(_TENSOR))
_PREDICT = _object(signature_name=TEXT, instances=_array(ANY), inputs=ANY)
_PREDICTED = _object(predictions=_array(ANY), outputs=ANY)
_EXAMPLES = _object("examples", signature_name=TEXT, context={"type": "object"}, examples=_array({"type": "object"}, 1))
_RESULTS = _object("results", results=_array(ANY))
_RANK = _object(
    "actions",
    contextFeatures=_array({"type": "object"}),
    actions=_array(_object("id", id=ID, features=_array({"type": "object"})), 1),
    excludedActions=_array(TEXT),
    eventId=_maybe("string", maxLength=MAX_ID),
    deferActivation=YES_OR_NO,
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
    actions=_array(_object("id", id=ID, features=_array({"type": "object"})), 1),
    slots=_array(_SLOT, 1),
    eventId=_maybe("string", maxLength=MAX_ID),
    deferActivation=YES_OR_NO,
)
_RANKED_SLOTS = _object(
    "slots eventId", slots=_array(_object("id rewardActionId", id=TEXT, rewardActionId=TEXT)), eventId=TEXT
)
_REWARDS = _object("reward", reward=_array(_object("slotId value", slotId=TEXT, value=NUMBER), 1))
_MULTISLOT = "/personalizer/v1.1-preview.3/multislot"

_INVOKE = {"anyOf": [_PREDICT, _array(ANY)]}
_PLACE = _object("modelName modelUrl", modelName=TEXT, modelUrl=TEXT)
_CALLS: tuple[tuple[str, str, str, Any, int, Any], ...] = (
    # path, verb, summary, body, status, answer
    ("/v1/decide/{policy}", "post", "Decide; the decision is durable before its answer leaves", _DECIDE, 200, _ANSWER),
    (
        "/v1/outcome",
        "post",
        "Tell what came of decisions",
        {"anyOf": [_OUTCOME, _array(_OUTCOME, 1)]},
        200,
        _object("accepted ids", accepted=WHOLE, ids=_array(TEXT)),
    ),
    ("/v1/status", "get", "What serves, and how much", None, 200, _object("ready policies models counts")),
    ("/v1/live", "get", "The process answers", None, 200, _object("live", live=YES_OR_NO)),
    ("/v1/ready", "get", "All that is wanted is there", None, 200, _object("ready", ready=YES_OR_NO)),
    ("/v1/models/{model}:predict", "post", "TensorFlow Serving: predict", _PREDICT, 200, _PREDICTED),
    ("/v1/models/{model}:classify", "post", "TensorFlow Serving: classify", _EXAMPLES, 200, _RESULTS),
    ("/v1/models/{model}:regress", "post", "TensorFlow Serving: regress", _EXAMPLES, 200, _RESULTS),
    ("/v1/models/{model}", "get", "TensorFlow Serving: status", None, 200, _object("model_version_status")),
    ("/v1/models/{model}/metadata", "get", "TensorFlow Serving: signature", None, 200, _object("model_spec metadata")),
    ("/v2", "get", "Open Inference: the server", None, 200, _object("name version extensions")),
    ("/v2/health/live", "get", "Open Inference: live", None, 200, _object("live")),
    ("/v2/health/ready", "get", "Open Inference: ready", None, 200, _object("ready")),
    ("/v2/models/{model}", "get", "Open Inference: a model", None, 200, _object("name platform inputs outputs")),
    ("/v2/models/{model}/ready", "get", "Open Inference: a model is ready", None, 200, _object("name ready")),
    ("/v2/models/{model}/config", "get", "Triton: config of a model", None, 200, _object("name input output")),
    ("/v2/models/{model}/stats", "get", "Triton: counts of a model", None, 200, _object("model_stats")),
    ("/v2/models/{model}/infer", "post", "Open Inference: infer", _INFER, 200, _INFERRED),
    ("/v2/repository/index", "post", "Triton: all models", _object(ready=YES_OR_NO), 200, _array(_object())),
    ("/v2/repository/models/{model}/load", "post", "Triton: serve a model", None, 200, _object()),
    ("/v2/repository/models/{model}/unload", "post", "Triton: serve it no more", None, 200, _object()),
    ("/ping", "get", "SageMaker: all that is wanted is there", None, 200, None),
    ("/invocations", "post", "SageMaker: predict", _INVOKE, 200, _PREDICTED),
    ("/execution-parameters", "get", "SageMaker: batch transform", None, 200, _object("MaxPayloadInMB")),
    ("/models", "get", "SageMaker: loaded models", None, 200, _object("models", models=_array(_PLACE))),
    ("/models", "post", "SageMaker: load a model", _object("model_name", model_name=TEXT, url=TEXT), 200, _object()),
    ("/models/{model}", "get", "SageMaker: a loaded model", None, 200, _PLACE),
    ("/models/{model}", "delete", "SageMaker: unload a model", None, 200, _object()),
    ("/models/{model}/invoke", "post", "SageMaker: predict", _INVOKE, 200, _PREDICTED),
    ("/personalizer/v1.0/rank", "post", "Personalizer: rank", _RANK, 201, _RANKED),
    (
        "/personalizer/v1.0/events/{event}/reward",
        "post",
        "Personalizer: reward",
        _object("value", value=NUMBER),
        204,
        None,
    ),
    ("/personalizer/v1.0/events/{event}/activate", "post", "Personalizer: activate", None, 204, None),
    (f"{_MULTISLOT}/rank", "post", "Personalizer: fill several slots", _RANK_SLOTS, 201, _RANKED_SLOTS),
    (f"{_MULTISLOT}/events/{{event}}/reward", "post", "Personalizer: rewards of slots", _REWARDS, 204, None),
    (f"{_MULTISLOT}/events/{{event}}/activate", "post", "Personalizer: activate all slots", None, 204, None),
)

_REFUSED = {
    400: "the request is not as it must be",
    401: "no key that is known",
    403: "the key is not for this",
    404: "not here",
    408: "the request took too long",
    409: "it contradicts what is here",
    413: "too large",
    431: "the head is too large",
    503: "not ready, or too many ask; try again",
}
_KINDS = {406: "no such kind of answer", 415: "no such kind of body", 501: "half floats in JSON"}
_NOT_KEPT = {507: "the directory of the models can not be written"}
_FURTHER = {
    "/v1/ready": {503: "not yet"},
    "/ping": {503: "not yet"},
    "/v1/models": {501: "half floats in JSON"},
    "/invocations": _KINDS,
    "/models/{model}/invoke": _KINDS,
    "/models": _NOT_KEPT,
    "/v2/repository/models": _NOT_KEPT,
}
"""By the beginning of the path: statuses that others have not."""

_BODY_OR_NOT = ("/v2/repository/index",)
_NOT_READY = {
    "/v1/ready": (503, _object("ready", ready=YES_OR_NO)),
    "/v2/health/ready": (400, _object("ready", ready=YES_OR_NO)),
    "/v2/models/{model}/ready": (400, _object("name ready", name=TEXT, ready=YES_OR_NO)),
}
"""What is no error, with an answer of its own."""


def _operation(path: str, summary: str, body: Any, status: int, answer: Any) -> dict[str, Any]:
    """What is told of one call."""

    def content(schema: Any) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    error = "PersonalizerError" if "personalizer" in path else "OurError" if path in _OURS else "Error"
    refused = dict(_REFUSED)
    for start, more in _FURTHER.items():
        if path.startswith(start):
            refused |= more
    responses = {
        str(code): {"description": text, **content({"$ref": f"#/components/schemas/{error}"})}
        for code, text in sorted(refused.items())
    }
    if path in _NOT_READY:
        code, told = _NOT_READY[path]
        both = {"anyOf": [told, {"$ref": f"#/components/schemas/{error}"}]}
        responses[str(code)] = {"description": "not ready, or refused", **content(both)}
    if path == "/ping":
        responses["503"] = {"description": "not ready"}
    responses[str(status)] = {"description": "done", **(content(answer) if answer is not None else {})}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": path not in _BODY_OR_NOT, **content(body)}
    if "{" in path:
        name = path.partition("{")[2].partition("}")[0]
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": ID}]
    return operation


_OURS = ("/v1/decide/{policy}", "/v1/outcome", "/v1/status", "/v1/live", "/v1/ready")


@functools.cache
def document() -> bytes:
    """The document, as JSON."""
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for path, verb, *told in _CALLS:
        paths[path][verb] = _operation(path, *told)
    schemas = {"Error": _ERROR, "OurError": _OUR_ERROR, "PersonalizerError": _PERSONALIZER_ERROR}
    key = {"type": "apiKey", "in": "header", "name": "X-Api-Key"}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Steersman", "version": "1"},
            "paths": paths,
            "components": {"schemas": schemas, "securitySchemes": {"key": key, "bearer": _BEARER}},
        }
    )


_BEARER = {"type": "http", "scheme": "bearer"}
