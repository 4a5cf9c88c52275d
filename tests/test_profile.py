"""Profiles compared: PSI and KS against closed forms."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steersman.core.errors import DataError
from steersman.core.profile import LEVELS, SMALLEST, Profile, ks, psi


def numbers(quantiles, rows: int = 1000, present: int | None = None) -> Profile:
    present = rows if present is None else present
    values = tuple(float(value) for value in quantiles)
    plain = {"group": "context", "name": "x", "type": "continuous", "reason": ""}
    return Profile(kind="number", rows=rows, present=present, finite=present, quantiles=values, distinct=500, **plain)


def counted(counts: dict, kind: str = "text", rows: int | None = None) -> Profile:
    n = sum(counts.values())
    plain = {"group": "context", "name": "x", "type": "category", "reason": ""}
    values = sorted(value for value, count in counts.items() for _ in range(count)) if kind == "number" else []
    levels = [values[max(-(-level * n // LEVELS) - 1, 0)] for level in range(LEVELS + 1)] if values else []
    return Profile(
        kind=kind,
        rows=rows or n,
        present=n,
        distinct=len(counts),
        counts=tuple(sorted(counts.items(), key=lambda pair: -pair[1])),
        quantiles=tuple(map(float, levels)),
        **plain,
    )


UNIFORM = np.arange(LEVELS + 1) / LEVELS


@given(st.floats(0.0, 3.0))
def test_the_distance_of_two_uniforms_is_their_shift(shift):
    assert ks(numbers(UNIFORM), numbers(UNIFORM + shift)) == pytest.approx(min(shift, 1.0), abs=2 / LEVELS)


@given(st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_the_distance_of_two_normals_is_that_of_their_middles(std, shift):
    """The largest difference of two normal distributions with one deviation is where they cross: 2 F(d / 2) - 1."""
    normal = np.array([NormalDist().inv_cdf(min(max(level, 1e-4), 1 - 1e-4)) for level in UNIFORM]) * std
    exact = 2 * NormalDist().cdf(abs(shift) / 2) - 1
    assert ks(numbers(normal), numbers(normal + shift * std)) == pytest.approx(exact, abs=2 / LEVELS)


def test_counted_numbers_have_an_exact_distance():
    before, after = counted({0.0: 900, 1.0: 100}, "number"), counted({0.0: 650, 1.0: 350}, "number")
    assert ks(before, after) == pytest.approx(0.25, abs=1e-15)
    assert ks(before, before) == 0.0
    assert ks(counted({1.0: 5}, "number"), counted({2.0: 7}, "number")) == 1.0


def test_two_categories_have_the_index_of_the_formula():
    before, after = counted({"a": 500, "b": 500}), counted({"a": 2, "b": 6})
    exact = (0.25 - 0.5) * math.log(0.25 / 0.5) + (0.75 - 0.5) * math.log(0.75 / 0.5)
    assert psi(before, after) == pytest.approx(exact, rel=1e-12)
    assert psi(after, before) == pytest.approx(exact, rel=1e-12)  # it is symmetric


def test_two_shifted_uniforms_have_the_index_of_their_deciles():
    """Moved by 0.3: the lowest three deciles lose all, the highest has 0.4, the other six keep their 0.1."""
    exact = 3 * (0.1 - SMALLEST) * math.log(0.1 / SMALLEST) + (0.4 - 0.1) * math.log(0.4 / 0.1)
    assert psi(numbers(UNIFORM), numbers(UNIFORM + 0.3)) == pytest.approx(exact, rel=0.08)


def test_the_same_values_have_moved_not_at_all():
    for profile in (numbers(UNIFORM), numbers(UNIFORM, present=7), counted({"a": 1}), counted({}, rows=5)):
        assert psi(profile, profile) == 0.0
    assert ks(numbers(UNIFORM), numbers(UNIFORM)) == 0.0


def test_how_many_rows_there_are_does_not_matter():
    before = numbers(UNIFORM, rows=10_000)
    assert psi(before, numbers(UNIFORM + 0.1, rows=50)) == psi(before, numbers(UNIFORM + 0.1, rows=10**9))
    assert psi(counted({"a": 1, "b": 3}), counted({"a": 3, "b": 1})) == psi(
        counted({"a": 100, "b": 300}), counted({"a": 3000, "b": 1000})
    )


def test_a_field_that_goes_missing_has_moved():
    exact = (0.5 - SMALLEST) * math.log(0.5 / SMALLEST) + 0.5 * math.log(2)
    assert psi(numbers(UNIFORM), numbers(UNIFORM, present=500)) == pytest.approx(exact, rel=0.01)
    assert psi(counted({"a": 10}), counted({"a": 5}, rows=10)) == pytest.approx(exact, rel=1e-9)
    assert psi(numbers(UNIFORM), numbers((), present=0)) > 5
    assert ks(numbers(UNIFORM), numbers((), present=0)) is None


def test_a_value_that_was_never_seen_is_no_infinity():
    moved = psi(counted({"a": 10}), counted({"b": 10}))
    assert moved == pytest.approx(2 * (1 - SMALLEST) * math.log(1 / SMALLEST))


def test_an_atom_of_half_the_rows_does_not_break_the_deciles():
    before = numbers(np.where(UNIFORM < 0.5, 0.0, UNIFORM))
    assert psi(before, before) == 0.0
    assert 0.1 < psi(before, numbers(np.where(UNIFORM < 0.6, 0.0, UNIFORM))) < 1.0


def test_texts_that_are_too_many_to_count_can_not_be_compared():
    many = Profile(group="context", name="x", kind="text", rows=9, present=9, distinct=2000, type="ids", reason="")
    assert psi(many, counted({"a": 1})) is None
    assert ks(many, many) is None


def test_a_text_and_a_number_are_not_compared():
    with pytest.raises(DataError, match="field x was a number, field x is a text"):
        psi(numbers(UNIFORM), counted({"a": 1}))
    with pytest.raises(DataError, match="can not be compared"):
        ks(counted({"a": 1}), numbers(UNIFORM))


def test_a_profile_has_all_quantiles_or_none():
    with pytest.raises(DataError, match="field x: 3 quantiles, must be 129 or none"):
        numbers([1.0, 2.0, 3.0])
    assert numbers((), rows=0).missing_share == 1.0
    assert numbers(UNIFORM, rows=4, present=1).missing_share == 0.75
