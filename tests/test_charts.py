"""Pictures: what is drawn are the numbers of the profile, and every kind of field can be drawn."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman import charts
from steersman.charts import fields
from steersman.core.features import (
    Binary,
    BoxCox,
    Category,
    Constant,
    Continuous,
    Enumerated,
    Ids,
    Probability,
    Quantile,
)
from steersman.core.profile import LEVELS, FeatureType, Profile
from steersman.core.report import Estimate

LEVEL = np.arange(LEVELS + 1) / LEVELS


def numbers(quantiles: np.ndarray, type: FeatureType = "continuous", **more: Any) -> Profile:
    plain = {
        "group": "context", "name": "x", "kind": "number", "rows": 1000, "present": 900, "finite": 900, "sampled": 900,
        "distinct": 900, "low": float(quantiles[0]), "high": float(quantiles[-1]), "reason": "", "type": type,
    }  # fmt: skip
    return Profile(**{**plain, "quantiles": tuple(map(float, quantiles)), **more})


def texts(counts: dict[str, int], **more: Any) -> Profile:
    ranked = tuple(sorted(counts.items(), key=lambda pair: -pair[1]))
    total = sum(counts.values())
    plain = {"group": "context", "name": "t", "kind": "text", "rows": total, "present": total, "distinct": len(counts)}
    return Profile(**{**plain, "counts": ranked, "type": "category", "reason": "", **more})


def drawn(chart: charts.Chart | None, layer: int = 0) -> list[dict[str, Any]]:
    """The rows of data of a layer."""
    assert chart is not None
    spec = chart.to_dict()
    return spec["layer"][layer].get("data", spec.get("data"))["values"]


def one_of_each() -> dict[FeatureType, tuple[Profile, Any]]:
    normal = 20 + 5 * np.tan(np.pi * (0.98 * LEVEL + 0.01 - 0.5))
    counted = {"counts": ((0.0, 600), (1.0, 300)), "distinct": 2, "whole": True}
    steps = np.where(LEVEL < 2 / 3, 0.0, 1.0)
    ids = Profile(
        group="context", name="l", kind="list", rows=100, present=90, distinct=2, sampled=120, low=0.0, high=4.0,
        quantiles=tuple(np.floor(LEVEL * 4.0).tolist()), counts=(("a", 80), ("b", 40)), type="ids", reason="",
    )  # fmt: skip
    return {
        "binary": (numbers(steps, "binary", **counted), Binary("x")),
        "probability": (numbers(LEVEL, "probability"), Probability("x")),
        "continuous": (numbers(normal), Continuous("x", 20.0, 5.0)),
        "boxcox": (numbers(np.exp(5 * LEVEL), "boxcox"), BoxCox("x", 0.0, 0.0, 2.5, 1.4, 1.0)),
        "quantile": (numbers(normal, "quantile"), Quantile("x", tuple(normal[::8].tolist()))),
        "enumerated": (numbers(steps, "enumerated", **counted), Enumerated("x", (0.0, 1.0))),
        "category": (texts({"phone": 3, "tv": 1}), Category("t", ("phone", "tv"))),
        "ids": (ids, Ids("l", 16)),
        "constant": (numbers(np.full(LEVELS + 1, 7.0), "constant", counts=((7.0, 900),), distinct=1), Constant("x")),
    }


@pytest.mark.parametrize("type", get_args(FeatureType))
def test_every_type_of_field_has_pictures_that_render(type: FeatureType) -> None:
    profile, transform = one_of_each()[type]
    some = [charts.before(profile), charts.before(profile, profile), charts.after(profile, transform)]
    assert [chart is None for chart in some] == [False, False, type == "constant"]
    for chart in some:
        if chart is not None:
            root = ElementTree.fromstring(charts.svg(chart))
            assert root.tag.endswith("svg")
            assert float(root.attrib["height"].removesuffix("px")) < 320
            assert not [one for one in root.iter() if one.tag.endswith(("script", "image", "foreignObject"))]


VALUES = st.lists(st.floats(-1.7e308, 1.7e308) | st.integers(-3, 3).map(float), min_size=2, max_size=20)


@settings(max_examples=60)
@given(VALUES, st.integers(1, 40))
def test_the_bins_over_the_whole_range_hold_all_values(values: list[float], bins: int) -> None:
    quantiles = np.sort(np.array(values)) / 4
    low, high = quantiles[0], quantiles[-1]
    edges = np.linspace(low - max(abs(low), 1.0), high + max(abs(high), 1.0), bins + 1)
    shares = charts.shares_of(quantiles, edges)
    assert shares.min() >= 0
    assert shares.sum() == pytest.approx(1.0, abs=1e-6)


@settings(max_examples=60)
@given(VALUES, VALUES, st.booleans())
def test_whatever_the_numbers_the_bins_are_finite_and_ascend(now: list[float], then: list[float], whole: bool) -> None:
    both = [np.sort(np.resize(np.trunc(one) if whole else np.array(one), LEVELS + 1)) for one in (now, then)]
    axis = fields._axis_of(*(numbers(quantiles, whole=whole) for quantiles in both))
    assert np.isfinite(axis.edges).all()
    assert (np.diff(axis.edges) > 0).all()
    assert 2 <= len(axis.edges) <= 60
    for quantiles in both:
        shares = charts.shares_of(quantiles, axis.edges)
        assert shares.min() >= 0
        assert shares.sum() <= 1 + 1e-6


def test_bins_are_the_true_probabilities_of_a_uniform_and_of_atoms() -> None:
    even = charts.shares_of(LEVEL, np.array([0.0, 0.1, 0.35, 1.0]))
    np.testing.assert_allclose(even, [0.1, 0.25, 0.65], atol=1e-9)
    half = np.where(LEVEL <= 0.5, 0.0, 10 * (LEVEL - 0.5) * 2)  # half of the values are 0
    shares = charts.shares_of(half, np.array([-1.0, 1.0, 10.0]))
    np.testing.assert_allclose(shares, [0.55, 0.45], atol=0.01)


def test_the_axis_is_logarithmic_only_for_positive_values_far_to_one_side() -> None:
    def scale(quantiles: np.ndarray) -> str:
        chart = charts.before(numbers(quantiles))
        assert chart is not None
        return chart.to_dict()["layer"][0]["encoding"]["x"]["scale"]["type"]

    assert scale(np.exp(10 * LEVEL)) == "log"
    assert scale(np.exp(10 * LEVEL) - 2) == "linear"
    assert scale(1e6 + LEVEL) == "linear"
    assert scale(1000.0 - np.exp(6.9 * (1 - LEVEL)) + 1) == "linear"


def test_a_wild_value_does_not_squeeze_the_picture_and_is_told() -> None:
    quantiles = np.concatenate([[-1e12], LEVEL[1:-1], [1e15]])
    chart = charts.before(numbers(quantiles))
    rows = drawn(chart)
    assert min(row["low"] for row in rows) > -0.5
    assert max(row["high"] for row in rows) < 1.5
    assert sum(row["share"] for row in rows) == pytest.approx(126 / 128, abs=1e-6)
    said = " ".join(chart.to_dict()["title"]["subtitle"])  # type: ignore[union-attr]
    assert "1.6% lie outside the picture; all reach from -1e+12 to 1e+15" in said


def test_texts_are_drawn_by_frequency_and_the_rest_is_one_bar() -> None:
    rows = drawn(charts.before(texts({f"t{i:02d}": 100 - i for i in range(50)})))
    assert [row["value"] for row in rows][:2] == ["t00", "t01"]
    assert rows[-1]["value"] == "38 other values"
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)


def test_a_value_that_only_the_build_before_had_is_shown() -> None:
    chart = charts.before(texts({"a": 90, "b": 10}), texts({"a": 10, "gone": 90}))
    now = {row["value"]: row["share"] for row in drawn(chart, 0)}
    then = {row["value"]: row["share"] for row in drawn(chart, 1)}
    assert now == {"a": 0.9, "gone": 0.0, "b": 0.1}
    assert then == {"a": 0.1, "gone": 0.9, "b": 0.0}


def test_means_of_columns_are_the_shares_of_rows() -> None:
    profile = texts({"phone": 30, "missing": 10}, rows=100, present=40)
    rows = {row["value"]: row["share"] for row in drawn(charts.after(profile, Category("t", ("missing", "phone"))))}
    # The text "missing" and the indicator of a missing text are two columns.
    assert rows == pytest.approx({"=phone": 0.3, "=missing": 0.1, "missing": 0.6, "unseen": 0.0})


def test_encoded_quantiles_are_drawn_where_the_encoder_puts_them() -> None:
    profile = numbers(np.exp(5 * LEVEL), "boxcox")
    rows = drawn(charts.after(profile, BoxCox("x", 0.0, 0.0, 2.5, 1.25, 1.0)))  # (log x - 2.5) / 1.25: even in +-2
    assert rows[0]["low"] == pytest.approx(-2.0, abs=1e-6)
    assert rows[-1]["high"] == pytest.approx(2.0, abs=1e-6)
    np.testing.assert_allclose([row["share"] for row in rows], 1 / len(rows), atol=1e-4)


def test_buckets_hold_all_ids() -> None:
    profile, transform = one_of_each()["ids"]
    rows = drawn(charts.after(profile, transform))
    assert len(rows) == 16
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert sorted(row["share"] for row in rows)[-2:] == pytest.approx([1 / 3, 2 / 3])


def test_nothing_is_drawn_of_nothing() -> None:
    absent = Profile(
        group="context", name="x", kind="number", rows=10, present=0, type="continuous", reason=""
    )  # fmt: skip
    assert charts.before(absent) is None
    assert charts.after(absent, Continuous("x", 0.0, 1.0)) is None
    many = Profile(
        group="context", name="u", kind="text", rows=10_000, present=10_000, distinct=9_000, type="ids", reason=""
    )
    assert charts.before(many) is None
    assert charts.after(many, Ids("u", 1024)) is None


def test_importance_draws_every_interval() -> None:
    def share(name: str, value: float) -> Estimate:
        return Estimate(estimator=name, value=value, low=value / 2, high=value * 2, level=0.9, n=10, ess=10.0)

    chart = charts.importance([("a <b>", share("alone", 0.2), share("on top", 0.1)), ("c", share("alone", 0.1), None)])
    rows = drawn(chart)
    assert [(row["field"], row["kind"], row["low"], row["high"]) for row in rows] == [
        ("a <b>", "alone", 0.1, 0.4), ("a <b>", "on top of all others", 0.05, 0.2), ("c", "alone", 0.05, 0.2),
    ]  # fmt: skip
    text = charts.svg(chart)
    assert "with 90% intervals" in text
    assert "<b>" not in text


def test_without_the_extra_the_error_names_the_install() -> None:
    script = (
        "import sys; sys.modules['altair'] = None\n"
        "from steersman.core.errors import MissingExtra\n"
        "try:\n    import steersman.charts\nexcept MissingExtra as error:\n    sys.exit(error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert 'pip install "steersman[console]"' in done.stderr
