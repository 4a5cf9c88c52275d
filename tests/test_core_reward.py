"""The reward expression: arithmetic of Python, on arrays, and nothing but arithmetic."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core import reward
from steersman.core.errors import DataError

METRICS = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array([3.0, 0.25, -4.0])}


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("a", [1.0, -2.0, 0.5]),
        ("  a + b ", [4.0, -1.75, -3.5]),
        ("a - 0.1 * b", [0.7, -2.025, 0.9]),
        ("-a ** 2", [-1.0, -4.0, -0.25]),
        ("2 ** a", [2.0, 0.25, math.sqrt(2)]),
        ("a / b", [1 / 3, -8.0, -0.125]),
        ("+a - -b", [4.0, -1.75, -3.5]),
        ("a > 0", [1.0, 0.0, 1.0]),
        ("(a >= 1) + (b < 0) + (a == 0.5) + (a != 0.5) + (b <= 3) + (a > b)", [3.0, 2.0, 4.0]),
        ("min(a, b)", [1.0, -2.0, -4.0]),
        ("max(a, 0)", [1.0, 0.0, 0.5]),
        ("abs(a)", [1.0, 2.0, 0.5]),
        ("log(abs(a))", [0.0, math.log(2), math.log(0.5)]),
        ("exp(a)", [math.e, math.exp(-2), math.exp(0.5)]),
        ("sqrt(b + 4)", [math.sqrt(7), math.sqrt(4.25), 0.0]),
        ("where(a > 0, a, b)", [1.0, 0.25, 0.5]),
        ("where(a + 2, 10, a)", [10.0, -2.0, 10.0]),
        ("min(max(a, 0), 1) * 100", [100.0, 0.0, 50.0]),
        ("1 + 0 * a", [1.0, 1.0, 1.0]),
    ],
)
def test_known_values(expression, want):
    found = reward.compute(expression, METRICS)
    assert found.dtype == np.float64
    assert found == pytest.approx(want, rel=1e-15)


@pytest.mark.parametrize(
    ("expression", "names"),
    [("clicks", ("clicks",)), ("b*a+b", ("a", "b")), ("min + max(min, 1)", ("min",)), ("log(x)", ("x",))],
)
def test_metrics_are_the_names_that_are_not_called(expression, names):
    assert reward.metrics_of(expression) == names


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "a.__class__",
        "a.real",
        "a[0]",
        "[a]",
        "{a}",
        "(a, b)",
        "lambda: a",
        "a if b else 1",
        "a and b",
        "not a",
        "~a",
        "a // b",
        "a % b",
        "a @ b",
        "a << 2",
        "a & b",
        "a is b",
        "a in b",
        "0 < a < 1",
        "print(a)",
        "eval('a')",
        "min(a)",
        "min(a, b, a)",
        "min(*a)",
        "log(a, base=2)",
        "abs(abs)(a)",
        "(min)(a, b)(a)",
        "[x for x in a]",
        "(a := 2)",
        "f'{a}'",
        "'a'",
        "b'a'",
        "1j * a",
        "True * a",
        "None",
        "...",
        "a; b",
        "a = 1",
        "a\n+ b",
        "await a",
        "yield a",
        "a +",
        "",
        "   ",
        "a\x00",
        "a" * 100 + "(",
    ],
)
def test_what_is_not_arithmetic_is_refused(expression):
    with pytest.raises(DataError) as refused:
        reward.metrics_of(expression)
    assert refused.value.field == "reward"
    assert refused.value.hint


def test_a_reward_that_names_no_metric_is_refused():
    with pytest.raises(DataError, match="names no metric"):
        reward.metrics_of("1 + 1")


@pytest.mark.parametrize("constant", ["9" * 400, "1e400", "-1e999"])
def test_a_constant_that_float64_can_not_hold_is_refused(constant):
    with pytest.raises(DataError) as refused:
        reward.metrics_of(f"a * {constant}")
    assert refused.value.field == "reward"


@pytest.mark.parametrize("depth", [150, 400, 900, 3_000, 30_000])
@pytest.mark.parametrize(
    "shape", [lambda n: "+".join(["a"] * n), lambda n: "-" * n + "a", lambda n: "abs(" * n + "a" + ")" * n]
)
def test_a_deep_expression_is_a_number_or_a_data_error(shape, depth):
    try:
        found = reward.compute(shape(depth), METRICS)
    except DataError as error:
        assert len(str(error)) < 2_000  # a message is for reading
    else:
        assert np.isfinite(found).all()


@pytest.mark.parametrize("expression", ["a * 9**9**9", "a + 1/0", "a + (-1)**0.5", "a**1e6 + 2**b**1e9", "log(a - 1)"])
def test_a_reward_that_is_not_finite_is_refused_without_a_warning(expression):
    metrics = {"a": np.array([1.0, 2.0]), "b": np.array([1.0, 3.0])}
    with warnings.catch_warnings(), pytest.raises(DataError, match=r"row \d: reward") as refused:
        warnings.simplefilter("error")
        reward.compute(expression, metrics)
    assert refused.value.field == "reward"


def test_the_first_bad_row_is_named_with_its_metrics():
    with pytest.raises(DataError, match=r"row 1: .*'a': 0\.0.*2 such rows of 3"):
        reward.compute("1 / a", {"a": np.array([1.0, 0.0, 0.0])})


def test_an_absent_metric_is_named():
    with pytest.raises(DataError, match="'clicks'") as refused:
        reward.compute("clicks", {"click": np.array([1.0])})
    assert refused.value.hint == "did you mean click?"


@pytest.mark.parametrize(
    "expression", ["a", "a > 0", "0 * a", "min(a, 1)", "max(1, a)", "where(a, 1, 2)", "where(a > 0, 1, 2)", "a == a"]
)
def test_an_unknown_metric_makes_an_unknown_reward_and_never_a_zero(expression):
    with pytest.raises(DataError, match="row 1"):
        reward.compute(expression, {"a": np.array([1.0, np.nan])})


def test_a_metric_that_is_not_looked_at_may_be_unknown():
    metrics = {"bought": np.array([1.0, 0.0]), "price": np.array([12.5, np.nan])}
    assert reward.compute("where(bought > 0, price, 0)", metrics).tolist() == [12.5, 0.0]


def test_minus_zero_is_zero():
    assert reward.compute("where(-a == 0, 1, 2)", {"a": np.array([0.0])}).tolist() == [1.0]


def test_no_rows_give_no_rewards():
    assert reward.compute("a * 2", {"a": np.array([])}).shape == (0,)


numbers = st.floats(-100, 100).map(lambda number: round(number, 3))
leaves = st.one_of(st.sampled_from(["u", "v", "w"]), numbers.map(lambda number: f"({number!r})"))
expressions = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.tuples(parts, st.sampled_from(["+", "-", "*", "/", "<", "<=", ">", ">=", "==", "!="]), parts).map(
            lambda triple: f"({' '.join(triple)})"
        ),
        parts.map(lambda part: f"(-{part})"),
        parts.map(lambda part: f"abs({part})"),
        st.tuples(st.sampled_from(["min", "max"]), parts, parts).map(lambda call: f"{call[0]}({call[1]}, {call[2]})"),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(expression=expressions, u=numbers, v=numbers, w=numbers)
def test_it_computes_what_python_computes(expression, u, v, w):
    metrics = {name: np.array([value, value]) for name, value in (("u", u), ("v", v), ("w", w))}
    try:
        want = float(eval(expression, {"u": u, "v": v, "w": w, "min": min, "max": max, "abs": abs}))  # noqa: S307
    except ZeroDivisionError:
        want = math.nan
    if not math.isfinite(want) or not any(name in expression for name in "uvw"):
        return
    assert reward.compute(expression, metrics).tolist() == [want, want]
