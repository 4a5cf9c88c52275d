"""Problem, Candidate, Decision, Outcome: the wire and the log; every other schema derives from them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Struct

from steersman.core import reward
from steersman.core.errors import DataError, did_you_mean

Value = float | str | tuple[float | str, ...] | None
"""What a field may hold: a number, a text, a list of these, or null for "not known"."""

FieldType = Literal["auto", "number", "text", "list"]
Ends = Literal["terminated", "truncated"]
Rule = Literal["first", "last", "sum", "mean", "median", "min", "max"]
"""How several outcomes of a decision become one value of a metric."""

MAX_ID = 200
END_OF_TIME = 253_402_300_800_000_000  # microseconds to the year 10000: dates have four digits

ROUNDING = 1e-6
"""Of a probability that was written twice: it may have been a 32-bit float in between."""

NO_TEXT = "\ufdd0"
"""How a missing text travels in an array of strings: a character that Unicode keeps for such use, refused in texts.

Not NUL: numpy takes a trailing NUL for the end of a text, so `np.full(2, "\\0", dtype=object)` holds empty texts.
"""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\- ]{0,127}")


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
                raise DataError(f"bounds {i}: {low:g} is not below {high:g}", field=f"actions.low[{i}]")


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


class Candidate(Struct, frozen=True, omit_defaults=True):
    """Something that could be done: named by its id, never by its position."""

    id: str
    features: dict[str, Value] = {}


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was decided, out of what, knowing what, and with which probability. One log line.

    Attributes:
        id: unique for ever; the draw that chose the action is a function of it.
        problem: name of the Problem. One log serves many problems, so each line says which.
        unit: whose episode this is a step of: a user, a session, a game.
        at: microseconds since 1970, UTC.
        context: what was known when deciding.
        candidates: what could have been done, the action among them.
        action: id of the candidate taken; a tuple of ids for a ranked list, of numbers for numbers.
        propensity: probability (density for numbers) with which the deciding policy takes this action.
            Above 0; at most 1 unless the action is numbers.
        version: number of the version that decided; 0: a policy that Steersman did not serve.
        step: place in the unit's episode, if the product counts; else `at` orders.
        noise: key of the perturbation (evolution strategies).
        propensities: of a ranked list: probability of each slot's item given the items above it. Their product is
            the propensity. Empty: not told.
        first_propensities: of a ranked list: probability of each candidate, in their order, to stand in the first slot;
            they sum to 1. Empty: not told.
        deferred: it may never have been carried out: it counts only if an outcome says `activates`.
        estimated: nobody logged the propensity; it is an estimate, and every report on it says so.
    """

    id: str
    problem: str
    unit: str
    at: int
    context: dict[str, Value] = {}
    candidates: tuple[Candidate, ...] = ()
    action: str | tuple[str | float, ...]
    propensity: float
    version: int = 0
    step: int | None = None
    noise: int | None = None
    propensities: tuple[float, ...] = ()
    first_propensities: tuple[float, ...] = ()
    deferred: bool = False
    estimated: bool = False

    def __post_init__(self) -> None:
        check_id("id", self.id)
        check_id("unit", self.unit)
        if not NAME.fullmatch(self.problem):
            raise DataError(f"decision {self.id}: problem {self.problem!r} must match {NAME.pattern}", field="problem")
        if not 0 <= self.at < END_OF_TIME:
            raise DataError(f"decision {self.id}: at is {self.at}", hint="microseconds since 1970, UTC", field="at")
        if not self.propensity > 0 or not math.isfinite(self.propensity):
            raise DataError(
                f"decision {self.id}: propensity is {self.propensity:g}, must be in (0, 1]",
                hint="log the probability with which the action was taken, not its logarithm",
                field="propensity",
            )
        if self.step is not None and not 0 <= self.step < 2**63:
            raise DataError(f"decision {self.id}: step is {self.step}, must be in [0, 2^63)", field="step")
        if not 0 <= self.version < 2**63:
            raise DataError(f"decision {self.id}: version is {self.version}, must be in [0, 2^63)", field="version")
        if self.noise is not None and not 0 <= self.noise < 2**64:
            raise DataError(f"decision {self.id}: noise is {self.noise}, must be in [0, 2^64)", field="noise")
        self._check_action()
        if self.propensities or self.first_propensities:
            self._check_slots()
        _check_row(self.context, "context")
        for i, candidate in enumerate(self.candidates):
            if candidate.features:
                _check_row(candidate.features, f"candidates[{i}].features")

    def _check_action(self) -> None:
        taken: tuple[Any, ...] = (self.action,) if isinstance(self.action, str) else self.action
        if not taken:
            raise DataError(f"decision {self.id}: action is empty", field="action")
        if all(isinstance(number, float) for number in taken):  # a density may be above 1, there are no candidates
            if not all(map(math.isfinite, taken)):
                raise DataError(f"decision {self.id}: action is {taken}, must be finite", field="action")
            return
        if self.propensity > 1:
            raise DataError(
                f"decision {self.id}: propensity is {self.propensity:g}, must be in (0, 1]",
                hint="a probability is at most 1; only numbers as actions have densities",
                field="propensity",
            )
        if len(set(taken)) != len(taken):
            raise DataError(f"decision {self.id}: an action stands twice in {taken}", field="action")
        ids = candidate_ids(self.candidates)
        for action in taken:
            if action not in ids:
                raise DataError(
                    f"decision {self.id}: action {action!r} is not among its {len(ids)} candidates",
                    hint="log every candidate that could have been taken, the action included",
                    field="action",
                )

    def _check_slots(self) -> None:
        where, action, slots = f"decision {self.id}", self.action, self.propensities
        if not isinstance(action, tuple) or not isinstance(action[0], str):
            raise DataError(f"{where}: its action is no ranked list: it has no slots", field="propensities")
        if slots:
            if len(slots) != len(action):
                raise DataError(
                    f"{where}: {len(slots)} propensities for a list of {len(action)} items", field="propensities"
                )
            for i, propensity in enumerate(slots):
                if not 0 < propensity <= 1:
                    raise DataError(
                        f"{where}: propensities[{i}] is {propensity:g}, must be in (0, 1]", field=f"propensities[{i}]"
                    )
            if abs(math.prod(slots) / self.propensity - 1.0) > len(slots) * ROUNDING:
                raise DataError(
                    f"{where}: the product of its propensities is {math.prod(slots):g}, its propensity "
                    f"{self.propensity:g}",
                    hint="propensities: of each item given those above; propensity: of the whole list, their product",
                    field="propensities",
                )
        first = self.first_propensities
        if not first:
            return
        if len(first) != len(self.candidates) or not all(0 <= chance <= 1 for chance in first):
            raise DataError(
                f"{where}: first_propensities must be {len(self.candidates)} numbers in [0, 1], one a candidate",
                field="first_propensities",
            )
        taken = first[next(i for i, one in enumerate(self.candidates) if one.id == action[0])]
        if abs(sum(first) - 1.0) > len(first) * ROUNDING or (
            slots and abs(taken / slots[0] - 1.0) > len(first) * ROUNDING
        ):
            raise DataError(
                f"{where}: first_propensities sum to {sum(first):g} and give {taken:g} to its first item",
                hint="they sum to 1, and that of the first item is propensities[0]",
                field="first_propensities",
            )


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a decision: facts, not rewards. It may come before its decision, late, twice, or never.

    Attributes:
        id: unique for ever; the same id twice counts once.
        decision: id of the decision.
        at: microseconds since 1970, UTC: when it happened.
        metrics: name -> finite number.
        item: id of the item of a ranked list that the metrics are about; None: about the list as a whole. Read for
            ranked lists only.
        ends: the decision was the last of its episode, because the world ended it (`terminated`)
            or because somebody stopped looking (`truncated`).
        activates: the decision was deferred, and has been carried out.
    """

    id: str
    decision: str
    at: int
    metrics: dict[str, float] = {}
    item: str | None = None
    ends: Ends | None = None
    activates: bool = False

    def __post_init__(self) -> None:
        check_id("id", self.id)
        check_id("decision", self.decision)
        if self.item is not None:
            check_id("item", self.item)
        if not 0 <= self.at < END_OF_TIME:
            raise DataError(f"outcome {self.id}: at is {self.at}", hint="microseconds since 1970, UTC", field="at")
        for name, number in self.metrics.items():
            if not FIELD.fullmatch(name):
                raise DataError(
                    f"outcome {self.id}: metric {name!r} must match {FIELD.pattern}", field=f"metrics.{name}"
                )
            if not math.isfinite(number):
                raise DataError(f"outcome {self.id}: metric {name} is {number}", field=f"metrics.{name}")


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


def check_id(field: str, value: str) -> None:
    """Raise DataError unless the id has 1 to 200 characters, all of them printable."""
    if 0 < len(value) <= MAX_ID and value.isprintable():
        return
    if value.isprintable():
        raise DataError(f"{field} has {len(value)} characters, must be 1 to {MAX_ID}", field=field)
    raise DataError(f"{field} {value[:MAX_ID]!r} has a character that is not printable", field=field)


def candidate_ids(candidates: tuple[Candidate, ...]) -> set[str]:
    """The ids of the candidates.

    Raises:
        DataError: two candidates share an id, or an id is not valid.
    """
    listed = [candidate.id for candidate in candidates]
    ids = set(listed)
    longest = max(map(len, listed), default=0)
    if len(ids) == len(listed) and all(listed) and longest <= MAX_ID and "".join(listed).isprintable():
        return ids
    if len(ids) != len(candidates):
        seen: set[str] = set()
        for i, candidate in enumerate(candidates):
            if candidate.id in seen:
                raise DataError(
                    f"candidates[{i}].id {candidate.id!r} stands twice",
                    hint="a candidate is named by its id: give each its own",
                    field=f"candidates[{i}].id",
                )
            seen.add(candidate.id)
    for i, candidate in enumerate(candidates):
        check_id(f"candidates[{i}].id", candidate.id)
    return ids


def _check_row(row: Mapping[str, Value], where: str) -> None:
    """Raise DataError if a value would not come back from the log as it went in."""
    for name, value in row.items():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str):
                if NO_TEXT in part:
                    raise DataError(
                        f"{where}.{name} has U+FDD0, which stands for a missing text", field=f"{where}.{name}"
                    )
            elif part is not None and not math.isfinite(part):
                raise DataError(
                    f"{where}.{name} is {part}, must be finite",
                    hint="send null for a number that is not known",
                    field=f"{where}.{name}",
                )


def check_fields(row: Mapping[str, Value], fields: Mapping[str, FieldType], where: str) -> None:
    """Raise DataError unless the row fits the declared fields. No fields declared: anything fits.

    Args:
        row: name -> value; a declared field may be absent or null (missing).
        fields: name -> type.
        where: prefix of the field in the error, e.g. `context`.
    """
    if not fields:
        return
    for name, value in row.items():
        kind = fields.get(name)
        if kind is None:
            raise DataError(f"{where} has no field {name!r}", hint=did_you_mean(name, fields), field=f"{where}.{name}")
        if value is None or kind == "auto":
            continue
        if not isinstance(value, _PYTHON[kind]):
            raise DataError(
                f"{where}.{name} is {value!r}, must be a {kind}",
                hint=f"the problem declares {name} as {kind}",
                field=f"{where}.{name}",
            )


_PYTHON: dict[str, tuple[type, ...]] = {"number": (float, int), "text": (str,), "list": (tuple, list)}


def check_seed(seed: str) -> None:
    """Raise DataError unless the seed fits into the key of the hash: a longer one would be cut."""
    length = len(seed.encode())
    if length > hashlib.blake2b.MAX_KEY_SIZE:
        raise DataError(f"the seed has {length} bytes, must be at most 64 bytes", field="seed")


def uniform_draw(seed: str, decision_id: str) -> float:
    """The random number in [0, 1) that belongs to a decision: the same on every machine, for ever.

    53 bits of BLAKE2b keyed with the seed of the version: a counter-based generator whose counter is the
    decision's id, so that a replay needs no generator state.

    >>> uniform_draw("s", "d1") == uniform_draw("s", "d1") != uniform_draw("s", "d2")
    True
    """
    check_seed(seed)
    digest = hashlib.blake2b(decision_id.encode(), key=seed.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def uniform_draws(seed: str, decision_id: str, count: int) -> tuple[float, ...]:
    """`count` random numbers in [0, 1) that belong to a decision, for actions that take several.

    Eight a block of BLAKE2b, which is salted with its number: the first ones are the same whatever the count.

    >>> uniform_draws("s", "d1", 9)[:3] == uniform_draws("s", "d1", 3)
    True
    """
    check_seed(seed)
    draws: list[float] = []
    for block in range(-(-count // 8)):
        salt = block.to_bytes(8, "little")
        digest = hashlib.blake2b(decision_id.encode(), key=seed.encode(), salt=salt, digest_size=64).digest()
        draws += [(int.from_bytes(digest[i : i + 8], "little") >> 11) * 2.0**-53 for i in range(0, 64, 8)]
    return tuple(draws[:count])


T = TypeVar("T")


def decoder(kind: type[T]) -> Callable[[bytes | bytearray | memoryview], T]:
    """A function from JSON bytes to the noun, every violation raised as DataError with the field's path."""
    decode = msgspec.json.Decoder(kind).decode

    def decode_noun(body: bytes | bytearray | memoryview) -> T:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            raise _refusal(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"not valid JSON: {error}", hint="send one JSON object, encoded as UTF-8") from None

    return decode_noun


_PLACED = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)
_NAMED = re.compile(r"(?:missing required|unknown) field `(.*)`", re.DOTALL)


def _refusal(text: str) -> DataError:
    """The error with the path of its field; a field that is missing or unknown is the last part of the path."""
    placed = _PLACED.fullmatch(text)
    message, path = placed.groups() if placed else (text, "")
    named = _NAMED.search(message)
    field = f"{path}.{named[1]}" if named else path
    return DataError(message, field=field.removeprefix("."))


def json_schemas() -> dict[str, Any]:
    """JSON Schema (2020-12) of every noun that crosses the wire or the log, by name."""
    _, components = msgspec.json.schema_components([Problem, Decision, Outcome], ref_template="#/$defs/{name}")
    return {
        name: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$ref": f"#/$defs/{name}",
            "$defs": components,
        }
        for name in ("Problem", "Decision", "Outcome")
    }
