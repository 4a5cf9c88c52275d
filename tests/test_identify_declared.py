"""A field whose type is declared: what its values can not be is refused."""

from __future__ import annotations

import numpy as np
import pytest

from steersman.core.errors import ConfigError, DataError
from steersman.core.features import Ids, Quantile
from steersman.timeline.statistics import Source
from test_identify import fit, rows, source


def number_field(tables, tmp_path) -> Source:
    values = np.random.default_rng(0).lognormal(0, 1, 5000)
    texts = np.array(["a", "b"] * 2500, dtype=object)
    return source(tables, rows(tmp_path / "1.parquet", {"context.price": values, "context.kind": texts}))


@pytest.mark.parametrize(
    ("field", "type", "what"),
    [
        ("price", "probability", r"context\.price is declared probability, but its values go from 0\.0\d+ to \d+"),
        ("price", "enumerated", r"context\.price is declared enumerated, but it has 5,000 different values"),
        ("price", "binary", r"context\.price is declared binary, but its values go from"),
        ("price", "constant", r"context\.price is declared constant, but .* 5,000 different ones"),
        ("price", "category", r"context\.price is declared category, but it holds numbers"),
        ("price", "ids", r"context\.price is declared ids, but it holds numbers"),
        ("kind", "boxcox", r"context\.kind is declared boxcox, but it holds texts"),
        ("kind", "constant", r"context\.kind is declared constant, but it holds texts"),
    ],
)
def test_a_type_that_the_values_can_not_have_is_refused(tables, tmp_path, field, type, what):
    with pytest.raises(DataError, match=what) as error:
        fit(number_field(tables, tmp_path), **{field: type})
    assert error.value.field == f"context.{field}"
    assert "would be identified as" in error.value.hint


def test_a_type_can_be_declared(tables, tmp_path):
    fitted = fit(number_field(tables, tmp_path), price="quantile", kind="ids")
    one, profile = fitted["price"]
    assert isinstance(one, Quantile)
    assert (profile.type, profile.declared) == ("quantile", True)
    assert profile.reason.startswith("declared; the values say boxcox: 5,000 different values")
    assert fitted["kind"][0] == Ids("kind", 16)
    for type in ("continuous", "boxcox"):
        assert fit(number_field(tables, tmp_path), price=type)["price"][1].type == type


def test_a_type_for_a_field_that_is_not_there_is_refused(tables, tmp_path):
    with pytest.raises(ConfigError, match=r"build\.context names 'prise'.*did you mean price\?") as error:
        fit(number_field(tables, tmp_path), prise="boxcox")
    assert error.value.field == "build.context.prise"
