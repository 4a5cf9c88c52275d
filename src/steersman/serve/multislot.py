"""Azure Personalizer's calls for several slots, v1.1-preview: an event is one decision a slot, in their order. Pure.

The decision of a slot is about the actions that the slots before it left; its id is `EVENT/SLOT`, the slot quoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from steersman.core.decision import MAX_ID, Problem, check_id
from steersman.core.errors import DataError, Error, TooLargeError
from steersman.serve.personalizer import Action, decoded, finite, merged, metric_of

MAX_SLOTS = 50
MAX_BYTES = 16 << 20
SLOT = "slot"
"""Field of the context that tells which slot it is, and prefix of those with its features."""

_to_json = msgspec.json.Encoder().encode


class _Slot(Struct, rename="camel"):
    id: str
    baseline_action: str
    features: list[dict[str, Any]] = []
    excluded_actions: list[str] = []


class _Rank(Struct, rename="camel"):
    actions: list[Action]
    slots: list[_Slot]
    context_features: list[dict[str, Any]] = []
    event_id: str | None = None
    defer_activation: bool = False


class _SlotReward(Struct, rename="camel"):
    slot_id: str
    value: float


class _Reward(Struct):
    reward: list[_SlotReward]


class Slot(Struct, frozen=True):
    """A slot to be filled.

    Attributes:
        excluded: ids of actions that may not be taken here.
        context: that of the event, and what is known of the slot.
    """

    id: str
    excluded: frozenset[str]
    context: dict[str, Any]


class Filling(Struct, frozen=True):
    """An event whose first slots are filled.

    Attributes:
        actions: id -> features, in the order of the request.
        taken: the action of each slot that is filled.
        kept: for each slot that is not, an action that it may take; all different and none of them taken, so whatever
            comes, no slot stays empty. At first the product's own, the baseline.
    """

    event: str
    actions: dict[str, dict[str, Any]]
    slots: tuple[Slot, ...]
    deferred: bool
    kept: tuple[str, ...]
    taken: tuple[str, ...] = ()

    def body(self) -> bytes:
        """The next slot as one of our decide requests; the action that was kept for it stands first."""
        slot = self.slots[len(self.taken)]
        ours = {
            "id": decision_id(self.event, slot.id),
            "unit": self.event,
            "step": len(self.taken),
            "context": slot.context,
            "candidates": [{"id": id, "features": self.actions[id]} for id in self._open()],
            "deferred": self.deferred,
        }
        return _to_json(ours)

    def after(self, action: str) -> Filling | None:
        """The event when its next slot has this action; None: all its slots are filled."""
        later = self.kept[1:]
        if action in later:
            place = later.index(action)
            other = self._instead(place + 1)
            if other is None:
                raise Error(f"{action!r} was kept for another slot", hint="this is a defect of the server")
            later = (*later[:place], other, *later[place + 1 :])
        return msgspec.structs.replace(self, taken=(*self.taken, action), kept=later) if later else None

    def answer(self, last: str) -> bytes:
        """What the client is told when the last slot gets this action."""
        taken = zip(self.slots, (*self.taken, last), strict=True)
        slots = [{"id": slot.id, "rewardActionId": action} for slot, action in taken]
        return _to_json({"slots": slots, "eventId": self.event})

    def _open(self) -> list[str]:
        """Actions that the next slot may take: one that is kept for a later slot only if that may take another."""
        slot = self.slots[len(self.taken)]
        place = {id: i for i, id in enumerate(self.kept)}
        gone = {*self.taken, *slot.excluded, self.kept[0]}
        others = [
            id for id in self.actions if id not in gone and (id not in place or self._instead(place[id]) is not None)
        ]
        return [self.kept[0], *others]

    def _instead(self, place: int) -> str | None:
        """An action that the slot after `place` others could take instead of the one kept for it."""
        gone = {*self.taken, *self.kept[1:]}
        excluded = self.slots[len(self.taken) + place].excluded
        return next((id for id in self.actions if id not in gone and id not in excluded), None)


def read_rank(body: bytes, new_id: str, problem: Problem, limit: int) -> Filling:
    """A rank request for several slots; the features of a slot are fields of its context that begin with `slot.`.

    Where the problem declares the field `slot`, or no fields, it is the id of the slot.

    Args:
        new_id: of the event, if the client brought none.
        limit: of actions.
    Raises:
        DataError: the body is no such request.
        TooLargeError: its decisions would be too large together.
    """
    wire = decoded(_decode_rank, body)
    if len(wire.actions) > limit:
        raise DataError(f"{len(wire.actions)} actions, must be at most {limit}", field="actions")
    if len(body) * len(wire.slots) > MAX_BYTES:  # each decision holds the actions
        raise TooLargeError(f"{len(body)} bytes for each of {len(wire.slots)} slots are over {MAX_BYTES}")
    actions = {one.id: merged(one.features, f"actions[{i}].features") for i, one in enumerate(wire.actions)}
    if len(actions) != len(wire.actions):
        raise DataError(f"{len(wire.actions)} actions, must have different ids", field="actions")
    if not 0 < len({slot.id for slot in wire.slots}) == len(wire.slots) <= MAX_SLOTS:
        raise DataError(f"{len(wire.slots)} slots, must be 1 to {MAX_SLOTS} with different ids", field="slots")
    event = wire.event_id or new_id
    check_id("eventId", f"{event}/*")
    context = merged(wire.context_features, "contextFeatures")
    if not problem.context or SLOT in problem.context:
        context = {SLOT: "", **context}
    baselines = tuple(slot.baseline_action for slot in wire.slots)
    slots = tuple(_slot(slot, event, context, actions, f"slots[{i}]") for i, slot in enumerate(wire.slots))
    if len(set(baselines)) != len(baselines):
        raise DataError("two slots have the same baselineAction", hint="each slot has its own", field="slots")
    return Filling(event, actions, slots, wire.defer_activation, baselines)


def _slot(wire: _Slot, event: str, context: dict[str, Any], actions: dict[str, Any], where: str) -> Slot:
    check_id(f"{where}.id", decision_id(event, wire.id))
    for field, ids in (("excludedActions", wire.excluded_actions), ("baselineAction", [wire.baseline_action])):
        for id in ids:
            if id not in actions:
                raise DataError(f"{where}.{field} has {id[:MAX_ID]!r}, which is no action", field=f"{where}.{field}")
    if wire.baseline_action in wire.excluded_actions:
        raise DataError(f"{where}: its baselineAction is excluded", field=f"{where}.excludedActions")
    features = merged(wire.features, f"{where}.features")
    own = {f"{SLOT}.{name}": value for name, value in features.items()}
    if twice := own.keys() & context.keys():
        raise DataError(f"{where}: contextFeatures has {min(twice)[:MAX_ID]}, too", field=f"{where}.features")
    if context.get(SLOT) == "":
        own[SLOT] = wire.id
    return Slot(wire.id, frozenset(wire.excluded_actions), {**context, **own})


def read_reward(event: str, body: bytes, problem: Problem) -> bytes:
    """Rewards of slots as our outcomes.

    Raises:
        DataError: the body has no finite value for one or more different slots.
        ConfigError: see `personalizer.metric_of`.
    """
    rewards: Sequence[_SlotReward] = decoded(_decode_reward, body).reward
    if not 0 < len({one.slot_id for one in rewards}) == len(rewards) <= MAX_SLOTS:
        raise DataError(f"{len(rewards)} rewards, must be 1 to {MAX_SLOTS} of different slots", field="reward")
    metric = metric_of(problem)
    outcomes = [
        {"decision": decision_id(event, one.slot_id), "metrics": {metric: finite(one.value, f"reward[{i}].value")}}
        for i, one in enumerate(rewards)
    ]
    return _to_json(outcomes)


def activation(event: str) -> bytes:
    """An activation of all slots as one of our outcomes."""
    return _to_json({"decision": f"{event}/*", "activates": True})


def decision_id(event: str, slot: str) -> str:
    """Id of the decision of a slot.

    >>> decision_id("e1", "top/left")
    'e1/top%2Fleft'
    """
    return f"{event}/{quote(slot, safe=' ')}"


_decode_rank = msgspec.json.Decoder(_Rank).decode
_decode_reward = msgspec.json.Decoder(_Reward).decode
