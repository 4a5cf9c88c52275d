"""Problem: what is decided, from what, and what is good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

from msgspec import Struct

from steersman.core import reward
from steersman.core.decision.names import FIELD, NAME, check_id
from steersman.core.errors import DataError, did_you_mean

FieldType = Literal["auto", "number", "text", "list"]
Rule = Literal["first", "last", "sum", "mean", "median", "min", "max"]
"""How several outcomes of a decision become one value of a metric."""


class One(Struct, frozen=True, forbid_unknown_fields=True, tag="one", tag_field="kind"):
    """One action out of the candidates.

    Attributes:
        names: the ids of all actions there are, or empty if each request brings candidates of its own.
    """

    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise DataError(f"actions.names repeats a name: {', '.join(self.names)}", field="actions.names")
        if len(self.names) == 1:
            raise DataError("actions.names has one name: there is nothing to decide", field="actions.names")
        for i, name in enumerate(self.names):
            check_id(f"actions.names[{i}]", name)


class Ranked(Struct, frozen=True, forbid_unknown_fields=True, tag="ranked", tag_field="kind"):
    """A ranked list of different candidates, filled from the first slot on.

    Attributes:
        slots: of a list; shorter only where there are fewer candidates.
        names: as in One.
        weights: what the reward of the item in each slot counts, at least 0, one a slot; empty: 1 everywhere;
            `dcg`: 1 / log2(1 + slot), slots counted from 1.
    """

    slots: int
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] | Literal["dcg"] = ()

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise DataError(f"actions.slots is {self.slots}, must be at least 1", field="actions.slots")
        if self.weights and self.weights != "dcg" and len(self.weights) != self.slots:
            raise DataError(
                f"actions.weights has {len(self.weights)} weights for {self.slots} slots", field="actions.weights"
            )
        for i, weight in enumerate(self.slot_weights):
            if not 0 <= weight < math.inf:
                raise DataError(
                    f"actions.weights[{i}] is {weight:g}, must be at least 0", field=f"actions.weights[{i}]"
                )
        if len(set(self.names)) != len(self.names):
            raise DataError(f"actions.names repeats a name: {', '.join(self.names)}", field="actions.names")
        if self.names and self.slots > len(self.names):
            raise DataError(
                f"actions.slots is {self.slots}, more than the {len(self.names)} names", field="actions.slots"
            )
        for i, name in enumerate(self.names):
            check_id(f"actions.names[{i}]", name)

    @property
    def slot_weights(self) -> tuple[float, ...]:
        """One a slot.

        >>> Ranked(3, weights="dcg").slot_weights[::2]
        (1.0, 0.5)
        """
        if self.weights == "dcg":
            return tuple(1.0 / math.log2(2 + slot) for slot in range(self.slots))
        return tuple(self.weights) or (1.0,) * self.slots


class Numbers(Struct, frozen=True, forbid_unknown_fields=True, tag="numbers", tag_field="kind"):
    """A vector of numbers, each within its bounds."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            raise DataError(
                f"actions.low has {len(self.low)} bounds and actions.high {len(self.high)}",
                hint="give one low and one high bound for every number",
                field="actions",
            )
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise DataError(
                    f"bounds {i} are {low:g} and {high:g}: both finite, low below high", field=f"actions.low[{i}]"
                )


Actions = One | Ranked | Numbers


class Problem(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is decided, from what, and what is good: the single source of truth.

    Attributes:
        name: of the problem and of its policies, e.g. `cartpole`.
        actions: what an action is.
        reward: expression over metrics, e.g. `clicks - 0.1 * complaints`. There is no default.
        wait_s: seconds after a decision in which an outcome still counts.
        context: field name -> type (`auto` is identified from data). Empty: whatever the log brings.
        candidate: the same for the features of a candidate.
        discount: value of a reward one step (or `discount_unit_s` seconds) later, in (0, 1].
        discount_unit_s: None: the discount is per step; else per this many seconds.
        horizon: steps after which an episode is over by the rules of the product; None: no limit.
        horizon_s: seconds after the first decision of an episode from which the next decision begins another one;
            None: no limit.
        default_outcome: metrics of a decision for which none arrived within `wait_s`.
        combine: metric -> how its values combine if several outcomes within `wait_s` have it; not named: `sum`.
            `first` and `last` go by `at` of the outcome, then by its id; the `median` of an even number of values
            is the mean of the middle two. A default is never combined with what came.
        shaping: id of an action -> what is added to the reward of a decision that took it.
    """

    name: str
    actions: Actions
    reward: str
    wait_s: float
    context: dict[str, FieldType] = {}
    candidate: dict[str, FieldType] = {}
    discount: float = 1.0
    discount_unit_s: float | None = None
    horizon: int | None = None
    horizon_s: float | None = None
    default_outcome: dict[str, float] = {}
    combine: dict[str, Rule] = {}
    shaping: dict[str, float] = {}

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise DataError(
                f"problem name {self.name!r} must match {NAME.pattern}",
                hint="letters, digits, - and _; it becomes a folder and a part of the URL",
                field="name",
            )
        reward.metrics_of(self.reward)
        if not (self.wait_s >= 0 and math.isfinite(self.wait_s)):
            raise DataError(f"wait_s is {self.wait_s:g}, must be 0 or more seconds", field="wait_s")
        if not 0 < self.discount <= 1:
            raise DataError(f"discount is {self.discount:g}, must be in (0, 1]", field="discount")
        if self.discount_unit_s is not None and not self.discount_unit_s > 0:
            raise DataError(f"discount_unit_s is {self.discount_unit_s:g}, must be above 0", field="discount_unit_s")
        if self.horizon is not None and self.horizon < 1:
            raise DataError(f"horizon is {self.horizon}, must be at least 1 step", field="horizon")
        if self.horizon_s is not None and not (self.horizon_s > 0 and math.isfinite(self.horizon_s)):
            raise DataError(f"horizon_s is {self.horizon_s:g}, must be above 0 seconds", field="horizon_s")
        _check_field_names("context", self.context)
        _check_field_names("candidate", self.candidate)
        check_rules(self.combine, "combine")
        self._check_shaping()

    def _check_shaping(self) -> None:
        names = getattr(self.actions, "names", ())
        if self.shaping and isinstance(self.actions, Numbers):
            raise DataError("shaping is for actions that have ids, and these are numbers", field="shaping")
        for action, bonus in self.shaping.items():
            if not math.isfinite(bonus):
                raise DataError(f"shaping of {action!r} is {bonus}, must be finite", field=f"shaping.{action}")
            if names and action not in names:
                raise DataError(
                    f"shaping of {action!r}: there is no such action",
                    hint=did_you_mean(action, names),
                    field=f"shaping.{action}",
                )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that the reward needs, sorted."""
        return reward.metrics_of(self.reward)


def _check_field_names(group: str, names: Mapping[str, FieldType]) -> None:
    folded: dict[str, str] = {}
    for name in names:
        if not FIELD.fullmatch(name):
            raise DataError(f"field name {name!r} must match {FIELD.pattern}", field=f"{group}.{name}")
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"{group} fields {other!r} and {name!r} differ only in case", field=f"{group}.{name}")
    if group == "candidate" and "id" in folded:
        raise DataError("a candidate's id is no feature of it", hint="it stands beside the features", field=group)


def check_rules(rules: Mapping[str, object], where: str) -> None:
    """Raise DataError unless every metric may be called so and every rule is a `Rule`.

    Args:
        rules: metric -> rule.
        where: prefix of the field in the error, e.g. `combine`.
    """
    for name, rule in rules.items():
        if not FIELD.fullmatch(name):
            raise DataError(f"metric {name!r} must match {FIELD.pattern}", field=f"{where}.{name}")
        if rule not in get_args(Rule):
            raise DataError(
                f"{where}.{name} is {rule!r}, which is no rule",
                hint=did_you_mean(str(rule), get_args(Rule)),
                field=f"{where}.{name}",
            )
