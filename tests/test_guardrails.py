"""Guardrails of perturbed traffic: what surely breaks them breaks them, and what keeps them hardly ever does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from steersman.core.errors import DataError
from steersman.evaluate.guardrails import FEW, Guardrail, broken, costly

NONE = np.empty(0)
LOOKS = 8


def stopped(rail: Guardrail, copies: np.ndarray, clean: np.ndarray) -> int | None:
    """After how many units one stops who looks ever again."""
    for n in np.unique(np.geomspace(5, len(copies), LOOKS).astype(int)).tolist():
        if broken(rail, copies[:n], clean[:n], rail.level):
            return n
    return None


@pytest.mark.parametrize(
    ("limits", "clean", "kept", "harmful"),
    [
        ({"highest": 0.1}, 0.1, 0.1, 0.3),
        ({"lowest": 0.9}, 0.9, 0.9, 0.7),
        ({"rise": 0.05}, 0.1, 0.15, 0.5),
        ({"fall": 0.05}, 0.5, 0.45, 0.1),
    ],
)
def test_at_its_limit_traffic_goes_on_and_beyond_it_soon_not(
    limits: Any, clean: float, kept: float, harmful: float
) -> None:
    """Means right at the limit: at most 1 in 20 runs may ever stop, in all looks together."""
    rail = Guardrail(range=(0.0, 1.0), **limits)
    rng = np.random.default_rng(len(str(limits)))

    def ever(mean: float) -> bool:
        return stopped(rail, 1.0 * (rng.random(500) < mean), 1.0 * (rng.random(500) < clean)) is not None

    assert sum(ever(kept) for _ in range(60)) <= 6  # 3 of 60 at the most, and two standard errors
    assert all(ever(harmful) for _ in range(10))


def test_the_scale_of_a_metric_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    copies, clean = rng.beta(2, 3, 80), rng.beta(2, 6, 90)
    for limits in ({"highest": 0.3}, {"rise": 0.05}):
        plain = Guardrail(range=(0.0, 1.0), **limits)
        large = Guardrail(range=(-50.0, 150.0), **{k: 200 * v - 50 * (k == "highest") for k, v in limits.items()})
        mirror = Guardrail(range=(-1.0, 0.0), **{{"highest": "lowest", "rise": "fall"}[k]: (-v if k == "highest" else v)
                                                 for k, v in limits.items()})  # fmt: skip
        for n in range(5, 80, 5):
            said = bool(broken(plain, copies[:n], clean[:n], 0.95))
            assert bool(broken(large, 200 * copies[:n] - 50, 200 * clean[:n] - 50, 0.95)) == said
            assert bool(broken(mirror, -copies[:n], -clean[:n], 0.95)) == said


def test_a_value_outside_the_declared_range_breaks_it() -> None:
    rail = Guardrail(range=(0.0, 1.0), highest=0.9)
    assert "1.5 is outside the declared range [0, 1]" in broken(rail, np.array([0.1, 1.5]), NONE, 0.95)
    assert "outside" in broken(rail, np.array([0.1]), np.array([-1.0]), 0.95)
    assert broken(rail, NONE, NONE, 0.95) == "" and broken(rail, np.ones(2), NONE, 0.95) == ""


@pytest.mark.parametrize(
    "wrong",
    [{}, {"highest": 2.0}, {"rise": 1.0}, {"fall": -0.1}, {"highest": 0.5, "level": 0.4}, {"range": (1.0, 1.0)}],
)
def test_a_guardrail_that_can_not_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Guardrail(**{"range": (0.0, 1.0), **wrong})


def test_what_copies_may_cost_is_a_bound_for_all_looks() -> None:
    rng = np.random.default_rng(3)

    def ever(loss: float) -> bool:
        copies, clean = rng.normal(10 - loss, 3, 1000), rng.normal(10, 3, 1000)
        return any(costly(copies[:n], clean[:n], 0.2, 0.95) for n in np.geomspace(FEW, 1000, 25).astype(int))

    assert sum(ever(2.0) for _ in range(200)) <= 16  # 5%, and two standard errors
    assert all(ever(4.0) for _ in range(20))
    assert costly(np.zeros(FEW - 1), np.ones(100), 0.2, 0.95) is None
