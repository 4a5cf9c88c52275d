"""Encoder: the same numbers from the same rows, whatever order, type or gap they come with."""

import math
import warnings

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.decision import Candidate
from steersman.core.errors import DataError
from steersman.core.features import (
    LIMIT,
    NO_TEXT,
    Binary,
    Category,
    Constant,
    Continuous,
    Encoder,
    Ids,
    Raw,
    category,
    columns,
    continuous,
)

ENCODER = Encoder(
    context=(Continuous("age", 40.0, 10.0), Category("device", ("pc", "phone")), Continuous("hour", 12.0, 6.0)),
    candidate=(Category("colour", ("blue", "red")), Continuous("price", 5.0, 2.0)),
    actions=("later", "now"),
)


def context(encoder: Encoder, *rows: dict) -> list[list[float]]:
    return encoder.encode_context(encoder.raw_context(rows)).tolist()


def candidates(encoder: Encoder, rows: list[list[Candidate]], width: int) -> np.ndarray:
    return encoder.encode_candidates(*encoder.raw_candidates(rows, width))


def test_known_values():
    assert ENCODER.context_columns() == (
        "age", "age missing", "device=pc", "device=phone", "device unseen", "device missing", "hour", "hour missing",
    )  # fmt: skip
    assert context(ENCODER, {"age": 60, "device": "phone", "hour": 9}) == [[2, 0, 0, 1, 0, 0, -0.5, 0]]
    assert ENCODER.candidate_columns() == (
        "action=later", "action=now", "colour=blue", "colour=red", "colour unseen", "colour missing",
        "price", "price missing",
    )  # fmt: skip
    rows = [[Candidate("now", {"colour": "red", "price": 9}), Candidate("never", {"colour": "pink"})]]
    found = candidates(ENCODER, rows, 3)
    assert found.dtype == np.float32
    assert found[0, :2].tolist() == [[0, 1, 0, 1, 0, 0, 2, 0], [0, 0, 0, 0, 1, 0, 0, 1]]


def test_widths_are_those_of_the_arrays():
    found = ENCODER.encode_context(ENCODER.raw_context([{}]))
    assert found.shape == (1, ENCODER.context_width) == (1, len(ENCODER.context_columns()))
    found = candidates(ENCODER, [[Candidate("now")]], 4)
    assert found.shape == (1, 4, ENCODER.candidate_width) == (1, 4, len(ENCODER.candidate_columns()))


@pytest.mark.parametrize("fields", [1, 2])
def test_rows_of_whole_numbers_are_arrays_of_float64(fields):
    names = ("a", "b")[:fields]
    encoder = Encoder(
        context=tuple(Continuous(name, 0.0, 1.0) for name in names),
        candidate=tuple(Continuous(name, 0.0, 1.0) for name in names),
    )
    row = dict.fromkeys(names, 3)
    assert encoder.raw_context([row]).numbers.dtype == np.float64
    raw, _ = encoder.raw_candidates([[Candidate("x", row)]], 2)
    assert raw.numbers[0, 0].tolist() == [3.0] * fields
    assert np.isnan(raw.numbers[0, 1]).all()


values = st.none() | st.floats(-100, 100) | st.integers(-100, 100)
texts = st.none() | st.sampled_from(["pc", "phone", "watch", "", "PC"])
rows = st.fixed_dictionaries({}, optional={"age": values, "hour": values, "device": texts, "other": values | texts})


@given(row=rows, data=st.data())
def test_the_order_of_the_fields_in_a_row_does_not_matter(row, data):
    shuffled = dict(data.draw(st.permutations(list(row.items()))))
    assert context(ENCODER, shuffled) == context(ENCODER, row)


@given(some=st.lists(rows, max_size=5))
def test_a_row_does_not_depend_on_its_neighbours(some):
    assert context(ENCODER, *some) == [context(ENCODER, row)[0] for row in some]


@settings(max_examples=50)
@given(row=rows)
def test_mixed_types_never_change_places(row):
    """Numbers and texts alternate by name; each must land in its own columns."""
    found = dict(zip(ENCODER.context_columns(), context(ENCODER, row)[0], strict=True))
    for name, mean, std in (("age", 40, 10), ("hour", 12, 6)):
        value = row.get(name)
        want = 0.0 if value is None else max(-LIMIT, min(LIMIT, (value - mean) / std))
        assert found[name] == pytest.approx(want, rel=1e-6, abs=1e-6)
        assert found[f"{name} missing"] == (value is None)
    device = row.get("device")
    assert found["device=pc"] == (device == "pc")
    assert found["device=phone"] == (device == "phone")
    assert found["device unseen"] == (device not in ("pc", "phone", None))
    assert found["device missing"] == (device is None)


@pytest.mark.parametrize("missing", [{}, {"age": None}, {"age": math.nan}])
def test_a_missing_number_is_the_mean_with_its_indicator(missing):
    encoder = Encoder(context=(Continuous("age", 40.0, 10.0),))
    assert context(encoder, missing) == [[0, 1]]
    assert context(encoder, {"age": 40}) == [[0, 0]]


@pytest.mark.parametrize("sentinel", [-1, 0, -999, 1e30])
def test_no_number_is_taken_for_missing(sentinel):
    assert context(Encoder(context=(Continuous("age", 40.0, 10.0),)), {"age": sentinel})[0][1] == 0


def test_what_is_far_out_is_clipped_infinity_too_without_a_warning():
    encoder = Encoder(context=(Continuous("x", 0.0, 1e-300),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = context(encoder, {"x": 1e300}, {"x": -1e300}, {"x": math.inf}, {"x": -math.inf})
    assert found == [[LIMIT, 0], [-LIMIT, 0], [LIMIT, 0], [-LIMIT, 0]]


@settings(max_examples=50)
@given(
    mean=st.floats(-1e6, 1e6),
    std=st.floats(1e-3, 1e3),
    value=st.floats(allow_nan=False, allow_infinity=False) | st.none(),
)
def test_whatever_comes_in_is_finite_and_within_the_limit(mean, std, value):
    found = np.array(context(Encoder(context=(Continuous("x", mean, std),)), {"x": value}))
    assert np.isfinite(found).all()
    assert (abs(found) <= LIMIT).all()


@pytest.mark.parametrize(
    ("mean", "std"),
    [(5.0, 0.01), (0.0, 1e-8), (1e6, 1.0), (1.7e9, 0.5), (1.7e15, 1e6), (-3e-5, 1e-9)],
    ids=["D9", "tiny", "salary", "seconds since 1970", "microseconds since 1970", "tiny and off zero"],
)
def test_there_is_no_floor_under_the_standard_deviation(mean, std):
    """N(5, 0.01) must become N(0, 1), and so must a minute of timestamps."""
    seen = np.random.default_rng(0).normal(mean, std, 10_000)
    transform = continuous("x", len(seen), float(seen.mean()), float(seen.std()))
    found = Encoder(context=(transform,)).encode_context(Raw(seen[:, None], np.empty((len(seen), 0), dtype=object)))
    assert found[:, 0].mean() == pytest.approx(0, abs=1e-3)
    assert found[:, 0].std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("constant", [0.0, 5.0, 0.1, -1e9, 1.7e15])
def test_a_constant_becomes_zero_and_a_new_value_is_seen(constant):
    noise = abs(constant) * 1e-16  # what a sum of squares may leave
    encoder = Encoder(context=(continuous("x", 100, constant, noise),))
    assert context(encoder, {"x": constant}, {"x": constant + 1}) == [[0, 0], [1, 0]]


def test_a_field_that_was_never_seen_stays_missing():
    assert context(Encoder(context=(continuous("x", 0, math.nan, math.nan),)), {}, {"x": 3}) == [[0, 1], [3, 0]]


@pytest.mark.parametrize(("mean", "std"), [(math.nan, 1), (math.inf, 1), (0, 0), (0, -1), (0, math.nan), (0, math.inf)])
def test_statistics_that_give_no_numbers_are_refused(mean, std):
    with pytest.raises(DataError, match="field x"):
        Continuous("x", mean, std)


def test_statistics_that_are_not_known_are_refused_not_replaced():
    with pytest.raises(DataError, match="field x"):
        continuous("x", 10, 5.0, math.nan)


def test_a_category_knows_the_values_seen_sorted():
    assert category("c", ["b", "a", "b", ""]) == Category("c", ("", "a", "b"))
    with pytest.raises(DataError, match="more than 3") as refused:
        category("c", "abcd", limit=3)
    assert refused.value.field == "c"
    for values in (("b", "a"), ("a", "a")):
        with pytest.raises(DataError, match="sorted and different"):
            Category("c", values)


def test_the_mark_of_a_missing_text_is_no_value():
    with pytest.raises(DataError, match=r"U\+FDD0"):
        Category("c", ("a", NO_TEXT))


def test_numpy_keeps_the_mark_of_a_missing_text():
    """It takes a NUL at the end of a text for padding, and drops it without a word."""
    texts = np.array(["a", "b"], dtype=object)
    assert np.full(1, NO_TEXT, dtype=object).tolist() == [NO_TEXT]
    assert np.where([True, False], texts, NO_TEXT).tolist() == ["a", NO_TEXT]
    assert (np.full(2, NO_TEXT) == NO_TEXT).all()
    assert not NO_TEXT.isprintable()  # so no id is taken for it


def test_a_category_without_values_knows_unseen_and_missing():
    assert context(Encoder(context=(Category("c", ()),)), {"c": "x"}, {}) == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"age": "40"}, "must be a number"),
        ({"age": (1.0,)}, "must be a number"),
        ({"device": 1.0}, "must be a text"),
        ({"device": ("pc",)}, "must be a text"),
        ({"device": NO_TEXT}, r"U\+FDD0"),
        ({"device": f"p{NO_TEXT}c"}, r"U\+FDD0"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_field(row, message):
    with pytest.raises(DataError, match=message) as refused:
        ENCODER.raw_context([{}, row])
    assert refused.value.field == next(iter(row))


def test_candidates_are_padded_with_what_is_missing_and_no_action():
    raw, ids = ENCODER.raw_candidates([[Candidate("now", {"price": 1})], []], 2)
    assert ids.tolist() == [["now", NO_TEXT], [NO_TEXT, NO_TEXT]]
    assert np.isnan(raw.numbers[1]).all()
    assert (raw.texts[1] == NO_TEXT).all()
    assert not ENCODER.encode_candidates(raw, ids)[1, :, :2].any()


def test_more_candidates_than_places_are_refused():
    with pytest.raises(DataError, match=r"row 1: 2 candidates.*1"):
        ENCODER.raw_candidates([[Candidate("a")], [Candidate("a"), Candidate("b")]], 1)


def test_an_encoder_of_nothing_gives_no_columns():
    empty = Encoder()
    assert empty.encode_context(empty.raw_context([{"a": 1.0}, {}])).shape == (2, 0)
    assert candidates(empty, [[Candidate("a", {"x": 1.0})]], 3).shape == (1, 3, 0)


@pytest.mark.parametrize(
    "broken",
    [
        {"context": (Continuous("b", 0, 1), Continuous("a", 0, 1))},
        {"context": (Continuous("a", 0, 1), Category("a", ()))},
        {"candidate": (Continuous("b", 0, 1), Continuous("a", 0, 1))},
        {"actions": ("b", "a")},
        {"actions": ("a", "a")},
    ],
)
def test_fields_and_actions_are_sorted_and_different(broken):
    with pytest.raises(DataError, match="sorted and different"):
        Encoder(**broken)


def test_the_digest_changes_with_all_that_changes_numbers():
    others = [
        Encoder(ENCODER.context[1:], ENCODER.candidate, ENCODER.actions),
        Encoder(ENCODER.context, (), ENCODER.actions),
        Encoder(ENCODER.context, ENCODER.candidate, ("later",)),
        Encoder(ENCODER.context, ENCODER.candidate, ("later", "now", "tomorrow")),
        Encoder((Continuous("age", math.nextafter(40, 41), 10.0), *ENCODER.context[1:]), ENCODER.candidate),
        Encoder((Continuous("age", 40, math.nextafter(10, 11)), *ENCODER.context[1:]), ENCODER.candidate),
        Encoder((Continuous("aged", 40, 10), *ENCODER.context[1:]), ENCODER.candidate),
        Encoder(candidate=(Continuous("age", 40, 10),)),
        Encoder(context=(Continuous("age", 40, 10),)),
        Encoder(context=(Category("age", ("a", "b")),)),
        Encoder(context=(Category("age", ("a,b",)),)),
        Encoder(),
    ]
    digests = [encoder.digest for encoder in (ENCODER, *others)]
    assert len(set(digests)) == len(digests)


def test_the_digest_is_the_same_for_the_same_encoder_and_after_the_wire():
    again = msgspec.json.decode(msgspec.json.encode(ENCODER), type=Encoder)
    assert again == ENCODER
    assert again.digest == ENCODER.digest
    assert Encoder(context=(Continuous("a", 1, 2),)).digest == Encoder(context=(Continuous("a", 1.0, 2.0),)).digest


def test_an_encoder_from_a_file_is_checked_like_any_other():
    with pytest.raises(DataError):
        msgspec.json.decode(b'{"actions": ["b", "a"]}', type=Encoder)
    with pytest.raises(msgspec.ValidationError, match="contxt"):
        msgspec.json.decode(b'{"contxt": []}', type=Encoder)


def test_columns_picks_the_fields_of_another_encoder_in_its_order():
    raw = ENCODER.raw_context([{"age": 60, "device": "phone", "hour": 9}])
    wanted = Encoder(context=(Category("device", ("phone",)), Continuous("hour", 0.0, 1.0)))
    picked = columns(raw, ENCODER.context, wanted.context)
    assert wanted.encode_context(picked).tolist() == [[1, 0, 0, 9, 0]]


@pytest.mark.parametrize(
    "wanted", [Continuous("income", 0, 1), Binary("device"), Category("age", ()), Ids("device", 2), Constant("device")]
)
def test_columns_refuses_a_field_that_is_absent_or_of_another_type(wanted):
    raw = ENCODER.raw_context([{}])
    with pytest.raises(DataError, match=wanted.name) as refused:
        columns(raw, ENCODER.context, (wanted,))
    assert refused.value.field == wanted.name
