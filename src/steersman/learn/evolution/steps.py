"""Rules that turn a gradient into a step upwards: momentum, Adam, ClipUp. What they remember is arrays with names."""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from steersman.core.errors import ConfigError

Array = np.ndarray
Memory = dict[str, Array]


class SGD(Struct, frozen=True, forbid_unknown_fields=True, tag="sgd", tag_field="kind"):
    """Steps of rate times a velocity, which keeps `momentum` of itself and adds the gradient.

    Attributes:
        rate: above 0.
        momentum: in [0, 1).
    """

    rate: float = 0.01
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_above_0("rate", self.rate)
        _check_share("momentum", self.momentum)

    def begin(self, size: int) -> Memory:
        """What it remembers before the first step."""
        return {"velocity": np.zeros(size)}

    def step(self, memory: Memory, gradient: Array) -> tuple[Memory, Array]:
        """What it remembers afterwards, and the step [d] to add to the parameters."""
        velocity = self.momentum * memory["velocity"] + gradient
        return {"velocity": velocity}, self.rate * velocity


class Adam(Struct, frozen=True, forbid_unknown_fields=True, tag="adam", tag_field="kind"):
    """Kingma and Ba 2015, arXiv:1412.6980, algorithm 1, uphill.

    Attributes:
        rate, epsilon: above 0.
        beta1, beta2: in [0, 1).
    """

    rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _check_above_0("rate", self.rate)
        _check_above_0("epsilon", self.epsilon)
        _check_share("beta1", self.beta1)
        _check_share("beta2", self.beta2)

    def begin(self, size: int) -> Memory:
        """What it remembers before the first step."""
        return {"first": np.zeros(size), "second": np.zeros(size), "steps": np.zeros(1)}

    def step(self, memory: Memory, gradient: Array) -> tuple[Memory, Array]:
        """What it remembers afterwards, and the step [d] to add to the parameters."""
        steps = memory["steps"] + 1
        first = self.beta1 * memory["first"] + (1 - self.beta1) * gradient
        second = self.beta2 * memory["second"] + (1 - self.beta2) * gradient**2
        scale = np.sqrt(second / (1 - self.beta2**steps)) + self.epsilon
        after = {"first": first, "second": second, "steps": steps}
        return after, self.rate * (first / (1 - self.beta1**steps)) / scale


class ClipUp(Struct, frozen=True, forbid_unknown_fields=True, tag="clipup", tag_field="kind"):
    """Toklu et al. 2020, arXiv:2008.02387, algorithm 1: gradients of one length, and a velocity with a limit.

    So the rate is a length in the space of parameters, and no batch can move them further than `max_speed`.

    Attributes:
        rate: above 0.
        momentum: in [0, 1).
        max_speed: above 0; None: twice the rate.
    """

    rate: float = 0.1
    momentum: float = 0.9
    max_speed: float | None = None

    def __post_init__(self) -> None:
        _check_above_0("rate", self.rate)
        _check_share("momentum", self.momentum)
        if self.max_speed is not None:
            _check_above_0("max_speed", self.max_speed)

    def begin(self, size: int) -> Memory:
        """What it remembers before the first step."""
        return {"velocity": np.zeros(size)}

    def step(self, memory: Memory, gradient: Array) -> tuple[Memory, Array]:
        """What it remembers afterwards, and the step [d] to add to the parameters. No gradient adds no speed."""
        length = _norm(gradient)
        velocity = self.momentum * memory["velocity"]
        if length > 0:
            velocity = velocity + gradient * (self.rate / length)
        limit = 2 * self.rate if self.max_speed is None else self.max_speed
        speed = _norm(velocity)
        if speed > limit:
            velocity = velocity * (limit / speed)
        return {"velocity": velocity}, velocity


Rule = SGD | Adam | ClipUp


def _norm(x: Array) -> float:
    """Its length, added up in one order on every machine, as a dot product is not."""
    largest = float(np.max(np.abs(x), initial=0.0))
    return largest * math.sqrt(float(np.sum((x / largest) ** 2))) if 0 < largest < math.inf else largest


def _check_above_0(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value:g}, must be above 0", field=name)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value:g}, must be in [0, 1)", field=name)
