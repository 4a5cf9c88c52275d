"""Azure Personalizer's Rank, Reward and Activate calls: bodies to ours and answers back. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from steersman.core.decision import MAX_ID, Decision, Problem
from steersman.core.errors import ConfigError, DataError, Error
from steersman.core.reward import metrics_of

PREFIX = "/personalizer/"
REWARD = "reward"
MAX_DEPTH = 16
_PATH = re.compile(
    r"/personalizer/(?:v1\.0|v1\.1-preview\.[123](?P<slots>/multislot)?)"
    r"/(?:(?P<rank>rank)|events/(?P<event>[^/]+)/(?P<verb>reward|activate))"
)
_CODES = {
    400: "BadArgument",
    401: "Unauthorized",
    403: "Forbidden",
    404: "ResourceNotFound",
    409: "Conflict",
    413: "BadArgument",
    503: "ServiceUnavailable",
}
_to_json = msgspec.json.Encoder().encode


class Call(Struct, frozen=True):
    """What a path asks for: `rank`, `reward` or `activate`, of which event, and whether of several slots."""

    verb: str
    event: str = ""
    slots: bool = False


class Action(Struct):
    """An action on the wire."""

    id: str
    features: list[dict[str, Any]] = []


class _Rank(Struct, rename="camel"):
    actions: list[Action]
    context_features: list[dict[str, Any]] = []
    excluded_actions: list[str] = []
    event_id: str | None = None
    defer_activation: bool = False


class _Reward(Struct):
    value: float


class Question(Struct, frozen=True):
    """A rank request, read.

    Attributes:
        event: its id.
        body: the same as one of our decide requests: the actions that are not excluded.
        ids: of all actions, in the order of the request.
        excluded: ids of those that may not be taken.
    """

    event: str
    body: bytes
    ids: tuple[str, ...]
    excluded: frozenset[str]


def route(method: str, path: str) -> Call | None:
    """What a request line asks for; the path is still quoted. None: nothing that there is."""
    found = _PATH.fullmatch(path.rstrip("/"))
    if method != "POST" or not found:
        return None
    return Call(found["rank"] or found["verb"], unquote(found["event"] or ""), bool(found["slots"]))


def error_body(error: Error) -> bytes:
    """An error as its clients expect it."""
    code = _CODES.get(error.http_status, "InternalServerError")
    return _to_json({"error": {"code": code, "message": str(error)[:2000]}})


def read_rank(body: bytes, new_id: str) -> Question:
    """A rank request.

    Args:
        new_id: of the event, if the client brought none.
    Raises:
        DataError: the body is no rank request.
    """
    wire = decoded(_decode_rank, body)
    ids = tuple(action.id for action in wire.actions)
    if not 0 < len(set(ids)) == len(ids):
        raise DataError(f"{len(ids)} actions, must be one or more with different ids", field="actions")
    excluded = frozenset(wire.excluded_actions)
    if unknown := sorted(excluded - set(ids)):
        raise DataError(f"excludedActions has {unknown[0][:MAX_ID]!r}, which is no action", field="excludedActions")
    if len(excluded) == len(ids):
        raise DataError("all actions are excluded", hint="leave one to take", field="excludedActions")
    event = wire.event_id or new_id
    candidates = [
        {"id": action.id, "features": merged(action.features, f"actions[{i}].features")}
        for i, action in enumerate(wire.actions)
        if action.id not in excluded
    ]
    ours = {
        "id": event,
        "unit": event,
        "context": merged(wire.context_features, "contextFeatures"),
        "candidates": candidates,
        "deferred": wire.defer_activation,
    }
    return Question(event, _to_json(ours), ids, excluded)


def write_rank(question: Question, decision: Decision, probabilities: Sequence[float]) -> bytes:
    """The answer: the action taken first, then the others by their probability; those excluded stay where they were."""
    chance = dict(zip((candidate.id for candidate in decision.candidates), probabilities, strict=True))
    allowed = [id for id in question.ids if id not in question.excluded]
    allowed.sort(key=lambda id: (id != decision.action, -chance[id]))
    order = iter(allowed)
    ranking = [id if id in question.excluded else next(order) for id in question.ids]
    return _to_json(
        {
            "ranking": [{"id": id, "probability": chance.get(id, 0.0)} for id in ranking],
            "eventId": question.event,
            "rewardActionId": decision.action,
        }
    )


def read_reward(event: str, body: bytes, problem: Problem) -> bytes:
    """A reward as one of our outcomes.

    Raises:
        DataError: the body has no finite value.
        ConfigError: the problem's reward is made of several metrics, none of them `reward`.
    """
    value = finite(decoded(_decode_reward, body).value, "value")
    return _to_json({"decision": event, "metrics": {metric_of(problem): value}})


def metric_of(problem: Problem) -> str:
    """The metric that a reward is.

    Raises:
        ConfigError: the problem's reward is made of several metrics, none of them `reward`.
    """
    metrics = metrics_of(problem.reward)
    if REWARD not in metrics and len(metrics) != 1:
        raise ConfigError(
            f"the reward of {problem.name} is made of {', '.join(metrics) or 'nothing'}: one value does not tell it",
            hint=f'declare reward = "{REWARD}", or send outcomes',
        )
    return REWARD if REWARD in metrics else metrics[0]


def finite(value: float, field: str) -> float:
    """The value of a reward; DataError unless it is finite."""
    if not math.isfinite(value):
        raise DataError(f"{field} is {value}, must be finite", field=field)
    return value


def activation(event: str) -> bytes:
    """An activation as one of our outcomes."""
    return _to_json({"decision": event, "activates": True})


_decode_rank = msgspec.json.Decoder(_Rank).decode
_decode_reward = msgspec.json.Decoder(_Reward).decode


def decoded(decode: Any, body: bytes) -> Any:
    """A body as what `decode` makes of it; DataError if it can not."""
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"the body is not as it must be: {error}") from None


def merged(objects: Sequence[dict[str, Any]], where: str) -> dict[str, Any]:
    """All features of a list of objects, each named by its path: `namespace.feature`, as in an imported dsjson."""
    row: dict[str, Any] = {}
    for one in objects:
        _flatten(row, "", one, where, 0)
    return row


def _flatten(row: dict[str, Any], path: str, given: dict[str, Any], where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise DataError(f"{where} is nested over {MAX_DEPTH} deep", field=where)
    for key, value in given.items():
        if key.startswith("_") and key != "_text":
            continue
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            _flatten(row, name, value, where, depth + 1)
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            for one in value:
                _flatten(row, name, one, where, depth + 1)
        elif name in row:
            raise DataError(f"{where} has {name[:MAX_ID]} twice", field=where)
        else:
            row[name] = float(value) if isinstance(value, bool) else value
