"""Every type of transform: its columns by hand, and the same whatever stands beside it."""

import dataclasses
import math
import warnings
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.decision import Candidate
from steersman.core.errors import DataError
from steersman.core.features import (
    LIMIT,
    NO_ID,
    NO_LIST,
    Binary,
    BoxCox,
    Category,
    Constant,
    Continuous,
    Encoder,
    Enumerated,
    Ids,
    Probability,
    Quantile,
    Raw,
    Transform,
    boxcox,
    boxcox_of,
    columns,
    enumerated,
    id_keys,
    list_keys,
    pack_lists,
    placed,
    quantile,
    random_raw,
    reads,
    stack_lists,
)
from steersman.core.features.raw import LONGEST
from steersman.core.profile import FeatureType
from test_core_features import context

EVERY = Encoder(
    context=(
        BoxCox("a", shift=1.0, power=0.5, mean=2.0, std=0.5, low=0.25),
        Category("b", ("pc", "phone")),
        Binary("c"),
        Ids("d", 3),
        Quantile("e", (0.0, 80.0, 100.0)),
        Constant("f"),
        Probability("g"),
        Enumerated("h", (1.0, 2.5)),
        Continuous("i", 40.0, 10.0),
        Ids("j", 2),
    )
)
"""No two fields of a type beside each other, and no type in the order of their names."""

LOGIT = 11.512915464920228  # log((1 - 1e-5) / 1e-5)


def number(transform: Transform, *values: float | None) -> list[list[float]]:
    rows = [{transform.name: value} for value in values]
    return [[round(float(value), 5) for value in row] for row in context(Encoder(context=(transform,)), *rows)]


def test_there_is_one_transform_for_every_type_of_field():
    assert {transform.__struct_config__.tag for transform in get_args(Transform)} == set(get_args(FeatureType))


def test_binary_is_whether_a_number_is_not_zero():
    values = (0, -0.0, 1, -3.5, 5e-324, math.inf, math.nan, None)
    assert number(Binary("x"), *values) == [[0, 0], [0, 0], [1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1]]


def test_a_probability_becomes_its_logit_and_the_ends_are_not_infinite():
    found = number(Probability("p"), 0.5, 0.75, 0.0, 1.0, -3.0, 7.0, math.inf, -math.inf, None)
    low, high = round(-LOGIT, 5), round(LOGIT, 5)
    assert high == 11.51292
    want = [[0, 0], [1.09861, 0], [low, 0], [high, 0], [low, 0], [high, 0], [high, 0], [low, 0], [0, 1]]
    assert found == want  # 1.09861 = log 3


def test_a_quantile_is_linear_between_its_boundaries():
    found = number(Quantile("q", (0.0, 80.0, 100.0)), 80, 40, 90, 0, 100, -5, 1e308, math.inf, -math.inf, None)
    assert [row[0] for row in found] == [0.5, 0.25, 0.75, 0, 1, 0, 1, 1, 0, 0]
    assert [row[1] for row in found] == [0] * 9 + [1]


def test_a_value_that_covers_several_quantiles_is_one_boundary():
    """Half of the rows are 0: it becomes 0, and the other values keep equal shares."""
    fitted = quantile("q", [0, 0, -0.0, 0, 0, 1, 2, 3, 4])
    assert fitted == Quantile("q", (0.0, 1.0, 2.0, 3.0, 4.0))
    assert [row[0] for row in number(fitted, 0, 0.5, 1, 3)] == [0, 0.125, 0.25, 0.75]


def test_a_quantile_of_a_huge_range_does_not_overflow():
    found = number(Quantile("q", (-1e308, 0.0, 5e-324, 7e307)), -5e307, 0.0, 3.5e307, math.inf, -math.inf)
    assert [row[0] for row in found] == [0.16667, 0.33333, 0.83333, 1, 0]


@pytest.mark.parametrize(
    ("power", "transformed"),
    [
        (2.0, lambda y: (y * y - 1) / 2),
        (1.0, lambda y: y - 1),
        (0.5, lambda y: 2 * (math.sqrt(y) - 1)),
        (0.0, math.log),
        (9e-7, math.log),
        (-1.0, lambda y: 1 - 1 / y),
    ],
)
def test_box_cox_is_its_closed_form(power, transformed):
    values = np.array([-0.5, 0.0, 1.0, 2.5, 30.0])
    want = np.array([transformed(value + 1.5) for value in values])
    np.testing.assert_allclose(boxcox_of(values, 1.5, power), want, rtol=1e-12)
    mean, std = want.mean(), want.std()
    fitted = boxcox("x", values, 1.5, power)
    assert (fitted.mean, fitted.std, fitted.low) == pytest.approx((mean, std, 1.0))
    found = [row[0] for row in context(Encoder(context=(fitted,)), *({"x": value} for value in values))]
    np.testing.assert_allclose(found, (want - mean) / std, atol=1e-6)


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.3])
def test_box_cox_of_a_value_below_all_that_were_seen_is_that_of_the_smallest(power):
    """D9, second half: another floor at run time made of a value just below the minimum one of -11.4."""
    fitted = boxcox("x", np.array([1e-4, 0.01, 1.0, 2.0, 5.0]), 0.0, power)
    at, below, far, infinite = (row[0] for row in number(fitted, 1e-4, 0.99e-4, -1e9, -math.inf))
    assert at == below == far == infinite > -LIMIT


def test_box_cox_keeps_its_digits_where_a_power_is_tiny_beside_one():
    seen = np.random.default_rng(0).lognormal(12.0, 0.3, 10_000)
    found = Encoder(context=(boxcox("x", seen, 0.0, -2.0),)).encode_context(Raw(seen[:, None], np.empty((10_000, 0))))
    moved = seen**-2.0
    want = np.clip((moved.mean() - moved) / moved.std(), -LIMIT, LIMIT)
    np.testing.assert_allclose(found[:, 0], want, atol=1e-2)
    assert np.unique(found[:, 0]).size > 9_000


def test_box_cox_of_what_is_far_out_is_clipped_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for power, end in ((3.0, LIMIT), (0.0, LIMIT), (-0.5, 2.0)):  # (0 - 1) / -0.5
            transform = BoxCox("x", 1e308, power, mean=0.0, std=1.0, low=1.0)
            assert number(transform, 1e308, math.inf) == [[end, 0], [end, 0]]


def test_an_enumerated_number_is_a_one_hot_with_unseen_and_missing():
    transform = enumerated("n", [3, 1, -0.0, 0.0, 1, math.nan, math.inf])
    assert transform == Enumerated("n", (0.0, 1.0, 3.0))
    assert Encoder(context=(transform,)).context_columns() == ("n=0", "n=1", "n=3", "n unseen", "n missing")
    rows = number(transform, 0, -0.0, 1, 3, 2, 3.0000000001, math.inf, -1e308, None)
    assert [row.index(1) for row in rows] == [0, 0, 1, 2, 3, 3, 3, 3, 4]
    assert all(sum(row) == 1 for row in rows)
    with pytest.raises(DataError, match="more than 2"):
        enumerated("n", [1, 2, 3], limit=2)


def test_a_number_without_values_knows_unseen_and_missing():
    assert number(Enumerated("n", ()), 1, None) == [[1, 0], [0, 1]]


def test_a_constant_has_only_its_missing_indicator():
    assert number(Constant("k"), 5, None, math.inf) == [[0], [1], [0]]
    assert Encoder(context=(Constant("k"),)).context_columns() == ("k missing",)


def test_the_key_of_an_id_is_the_first_63_bits_of_blake2b():
    """`printf kettle | b2sum -l 64`: the buckets of a stored version depend on it for ever."""
    wanted = [int(digest, 16) >> 1 for digest in ("9e251905a6d98e01", "18f05a35c1fd03a9")]
    assert id_keys("f", ["3", "kettle"]).tolist() == wanted


def test_a_number_is_its_decimal_text():
    same = [3, 3.0, "3", np.float64(3), np.int64(3), np.float32(3)]
    assert len(set(id_keys("f", same).tolist())) == 1
    assert len(set(id_keys("f", [0.0, -0.0, "0"]).tolist())) == 1
    assert len(set(id_keys("f", [2.5, "2.5", np.array([2.5])[0]]).tolist())) == 1
    assert id_keys("f", np.array([3.0, 2.5])).tolist() == id_keys("f", ["3", "2.5"]).tolist()
    assert id_keys("f", [2.0**53]).tolist() == id_keys("f", ["9007199254740992"]).tolist()
    assert len(set(id_keys("f", ["3", "3.0", "03", ""]).tolist())) == 4


@pytest.mark.parametrize("broken", [None, math.nan, math.inf, ["a"], b"a", "\ud800"])
def test_what_is_no_id_is_refused_with_its_field(broken):
    with pytest.raises(DataError, match="field f") as refused:
        list_keys("f", [["a"], [broken]])
    assert refused.value.field == "f"


def test_ids_are_shares_of_buckets():
    encoder = Encoder(context=(Ids("seen", 4),))
    place = {name: int(key) % 4 for name, key in zip("abcdefgh", id_keys("seen", "abcdefgh"), strict=True)}
    [one, four, empty, missing] = context(
        encoder, {"seen": ("a",)}, {"seen": ("a", "b", "c", "a")}, {"seen": ()}, {"seen": None}
    )
    assert one == [float(b == place["a"]) for b in range(4)] + [0]
    assert four == [sum(place[name] == b for name in "abca") / 4 for b in range(4)] + [0]
    assert empty == [0, 0, 0, 0, 0]
    assert missing == [0, 0, 0, 0, 1] == context(encoder, {})[0]
    assert context(encoder, {"seen": "a"}) == [one]
    assert len(set(place.values())) > 1


def test_a_linear_layer_over_ids_is_the_mean_of_their_embeddings():
    table = np.random.default_rng(0).normal(size=(16, 3))
    encoder = Encoder(context=(Ids("seen", 16),))
    ids = ["a", "b", "c", 7.0, "b"]
    [row] = context(encoder, {"seen": tuple(ids)})
    np.testing.assert_allclose(row[:16] @ table, table[id_keys("seen", ids) % 16].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("value", [3.0, {"a": 1}, b"ab"])
def test_a_field_of_ids_that_is_no_list_is_refused(value):
    with pytest.raises(DataError, match="must be a list") as refused:
        Encoder(context=(Ids("seen", 4),)).raw_context([{"seen": ("a",)}, {"seen": value}])
    assert refused.value.field == "seen"


def test_lists_travel_as_keys_padded_and_marked_where_missing():
    rows = [("a", "b"), None, (), ("c",)]
    keys = list_keys("f", rows)
    a, b, c = id_keys("f", "abc").tolist()
    assert keys.tolist() == [[a, b], [NO_LIST, NO_ID], [NO_ID, NO_ID], [c, NO_ID]]
    assert pack_lists(np.array([a, b, c]), np.array([2, -1, 0, 1])).tolist() == keys.tolist()
    assert list_keys("f", [None, ()]).tolist() == [[NO_LIST], [NO_ID]]
    assert list_keys("f", []).shape == (0, 1)
    assert list_keys("f", [np.array(["a", "b"], dtype=object), None, np.array([]), ["c"]]).tolist() == keys.tolist()
    assert stack_lists([keys[:, :1], keys]).tolist()[3] == [[c, NO_ID], [c, NO_ID]]


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=3 * LONGEST), min_size=1, max_size=4), st.randoms())
def test_a_very_long_list_is_a_sample_of_its_ids_in_any_order_and_leaves_others_alone(lists, random):
    ids = [[str(id) for id in some] for some in lists]
    keys = list_keys("f", ids)
    assert keys.shape[1] <= LONGEST
    for row, some in zip(keys, ids, strict=True):
        every = list_keys("f", [some[start : start + LONGEST] for start in range(0, max(len(some), 1), LONGEST)])
        assert sorted(row[row >= 0].tolist()) == sorted(every[every >= 0].tolist())[:LONGEST]
    shuffled = [random.sample(some, len(some)) for some in ids]
    encoder = Encoder(context=(Ids("f", 8),))
    one, other = (
        encoder.encode_context(encoder.raw_context([{"f": some} for some in rows])) for rows in (ids, shuffled)
    )
    np.testing.assert_array_equal(one, other)


def test_the_shares_of_a_very_long_list_are_near_those_of_all_its_ids():
    encoder = Encoder(context=(Ids("f", 4),))
    ids = [f"item{i}" for i in range(20_000)]
    (shares,) = encoder.encode_context(encoder.raw_context([{"f": ids}]))
    assert shares[:4].sum() == 1.0
    assert np.abs(shares[:4] - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / LONGEST)


def test_what_a_transform_reads_decides_the_array_of_its_field():
    assert [reads(transform) for transform in EVERY.context] == [
        "number", "text", "number", "list", "number", "number", "number", "number", "number", "list",
    ]  # fmt: skip
    assert [field.column for field in placed(EVERY.context)] == [0, 0, 1, 0, 2, 3, 4, 5, 6, 1]
    raw = EVERY.raw_context([{}, {"d": ("x", "y", "z"), "j": ("u",)}])
    assert (raw.numbers.shape, raw.texts.shape, raw.lists.shape) == ((2, 7), (2, 1), (2, 2, 3))


def test_rows_without_lists_need_not_say_so():
    raw = Raw(np.zeros((2, 3, 4)), np.empty((2, 3, 0), dtype=object))
    assert raw.lists.shape == (2, 3, 0, 1)


def test_d8_fields_of_mixed_types_land_in_their_own_columns():
    """[continuous 7, binary 1, probability .5] came out as [1, 11.51, .5]: types had another order than names."""
    encoder = Encoder(context=(Continuous("a", 0.0, 1.0), Binary("b"), Probability("c")))
    assert context(encoder, {"a": 7, "b": 1, "c": 0.5}) == [[7, 0, 1, 0, 0, 0]]
    encoder = Encoder(context=(Probability("a"), Continuous("b", 0.0, 1.0), Binary("c")))
    assert context(encoder, {"c": 1, "a": 0.5, "b": 7}) == [[0, 0, 7, 0, 1, 0]]


def one_of(name: str, places: int) -> st.SearchStrategy[Transform]:
    """A transform of any type."""
    numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=places, unique=True).map(sorted).map(tuple)
    return st.one_of(
        st.just(Binary(name)),
        st.just(Probability(name)),
        st.just(Constant(name)),
        st.builds(Continuous, st.just(name), st.floats(-10, 10), st.floats(0.1, 10)),
        st.builds(BoxCox, *map(st.just, (name, 1.0)), st.floats(-2, 2), *map(st.just, (0.5, 2.0, 0.1))),
        st.builds(Quantile, st.just(name), numbers),
        st.builds(Enumerated, st.just(name), numbers),
        st.builds(Ids, st.just(name), st.integers(1, places)),
        st.just(Category(name, ("a", "b"))),
    )


encoders = st.integers(0, 6).flatmap(lambda n: st.tuples(*(one_of(f"f{i}", 6) for i in range(n)))).map(Encoder)


@settings(max_examples=25, deadline=None)
@given(encoder=encoders, seed=st.integers(0, 1000))
def test_a_field_has_the_same_columns_whatever_fields_stand_beside_it(encoder, seed):
    raw = random_raw(encoder.context, (7,), np.random.default_rng(seed))
    whole = encoder.encode_context(raw)
    assert whole.shape == (7, encoder.context_width) == (7, len(encoder.context_columns()))
    for field in placed(encoder.context):
        alone = Encoder(context=(field.transform,))
        own = alone.encode_context(columns(raw, encoder.context, alone.context))
        np.testing.assert_array_equal(whole[:, field.at : field.at + field.transform.width], own)
        assert alone.context_columns() == encoder.context_columns()[field.at : field.missing_at + 1]


def test_column_names_say_what_each_column_is():
    assert EVERY.context_columns() == (
        "a", "a missing", "b=pc", "b=phone", "b unseen", "b missing", "c", "c missing",
        "d bucket 0", "d bucket 1", "d bucket 2", "d missing", "e", "e missing", "f missing", "g", "g missing",
        "h=1", "h=2.5", "h unseen", "h missing", "i", "i missing", "j bucket 0", "j bucket 1", "j missing",
    )  # fmt: skip


def test_a_row_of_every_type_worked_out_by_hand():
    d = [key % 3 for key in id_keys("d", ["x", "y"]).tolist()]
    row = {"a": 3.0, "b": "tv", "c": 2, "d": ("x", "y"), "e": 90, "f": 1, "g": 1.0, "h": 2.5, "i": 45}
    want = [0.0, 0, 0, 0, 1, 0, 1, 0, *((d.count(b)) / 2 for b in range(3)), 0, 0.75, 0, 0, LOGIT, 0]
    want += [0, 1, 0, 0, 0.5, 0, 0, 0, 1]
    assert context(EVERY, row) == [pytest.approx(want, abs=1e-6)]  # a: (2 (sqrt(4) - 1) - 2) / 0.5
    nothing = dict(zip(EVERY.context_columns(), context(EVERY, {})[0], strict=True))
    assert {name for name, value in nothing.items() if value} == {name for name in nothing if "missing" in name}


def test_every_kind_of_column_can_be_picked_for_another_encoder():
    raw = EVERY.raw_context([{"a": 1.0, "b": "pc", "d": ("x",), "e": 7.0, "j": ("y", "z")}])
    wanted = Encoder(context=(Continuous("a", 0, 1), Category("b", ("pc",)), Continuous("e", 0, 10), Ids("j", 5)))
    picked = columns(raw, EVERY.context, wanted.context)
    assert picked.numbers.tolist() == [[1.0, 7.0]] and picked.texts.tolist() == [["pc"]]
    assert picked.lists.tolist() == [[id_keys("j", "yz").tolist()]]
    reversed_fields = tuple(reversed(EVERY.context))
    turned = columns(raw, EVERY.context, reversed_fields)
    again = columns(turned, reversed_fields, EVERY.context)
    for name in ("numbers", "texts", "lists"):
        np.testing.assert_array_equal(getattr(again, name), getattr(raw, name))


def test_rows_are_taken_from_all_arrays_alike():
    raw = random_raw(EVERY.context, (6, 4), np.random.default_rng(0))
    for rows in (slice(1, 3), np.array([5, 0, 0]), np.arange(6) % 2 == 0, (slice(1, 2), slice(3))):
        taken = raw.take(rows)
        for name in ("numbers", "texts", "lists"):
            np.testing.assert_array_equal(getattr(taken, name), getattr(raw, name)[rows])
    one = raw.take(slice(2, 3)).broadcast(5)
    assert one.lists.shape == (5, *raw.lists.shape[1:]) and one.lists.strides[0] == 0
    np.testing.assert_array_equal(one.texts[4], raw.texts[2])


def test_candidates_of_every_type_are_padded_with_what_is_missing():
    encoder = Encoder(candidate=EVERY.context)
    row = {"a": 3.0, "d": ("x",)}
    raw, ids = encoder.raw_candidates([[Candidate("p", row)], [Candidate("q"), Candidate("r", row)]], 2)
    found = encoder.encode_candidates(raw, ids)
    missing, known = context(EVERY, {}, row)
    assert found.tolist() == [[known, missing], [missing, known]]


def test_columns_can_be_written_into_a_part_of_a_mapped_array(tmp_path):
    raw = random_raw(EVERY.context, (20_000,), np.random.default_rng(0))
    whole = np.lib.format.open_memmap(
        tmp_path / "context.npy", mode="w+", dtype=np.float32, shape=(20_000, EVERY.context_width)
    )
    for group in (EVERY.context[:4], EVERY.context[4:]):
        at = 0 if group[0].name == "a" else sum(transform.width for transform in EVERY.context[:4])
        part = Encoder(context=group)
        part.encode_context(columns(raw, EVERY.context, group), out=whole[:, at : at + part.context_width])
    np.testing.assert_array_equal(np.load(tmp_path / "context.npy"), EVERY.encode_context(raw))


def test_rows_of_many_blocks_are_those_of_each_row_alone():
    encoder = Encoder(context=EVERY.context, candidate=EVERY.context, actions=("l", "r"))
    random = np.random.default_rng(0)
    n = 10_000
    raw = random_raw(encoder.context, (n,), random)
    some = np.array([0, 1, 4095, 4096, 4681, 4682, n - 1])
    np.testing.assert_array_equal(encoder.encode_context(raw)[some], encoder.encode_context(raw.take(some)))
    candidates = random_raw(encoder.candidate, (n, 3), random)
    ids = np.array(["l", "r", "other"], dtype=object)[random.integers(0, 3, size=(n, 3))]
    found = encoder.encode_candidates(candidates, ids)
    np.testing.assert_array_equal(found[some], encoder.encode_candidates(candidates.take(some), ids[some]))
    np.testing.assert_array_equal(found[..., :2], np.stack([ids == "l", ids == "r"], axis=-1))
    columns_first = dataclasses.replace(raw, numbers=np.asfortranarray(raw.numbers))
    np.testing.assert_array_equal(encoder.encode_context(columns_first), encoder.encode_context(raw))


REFUSED = {
    "low above 0": lambda: BoxCox("x", 0.0, 1.0, 0.0, 1.0, 0.0),
    "std and low": lambda: BoxCox("x", 0.0, 1.0, 0.0, 0.0, 1.0),
    "all must be finite": lambda: BoxCox("x", math.inf, 1.0, 0.0, 1.0, 1.0),
    "power nan": lambda: BoxCox("x", 0.0, math.nan, 0.0, 1.0, 1.0),
    "rounding would show": lambda: BoxCox("x", 0.0, 0.0, 20.0, 1e-9, 1.0),
    "0 boundaries": lambda: Quantile("x", ()),
    "1 boundaries": lambda: Quantile("x", (1.0,)),
    "no repeats": lambda: Quantile("x", (1.0, 1.0, 2.0)),
    "at least two, ascending": lambda: Quantile("x", (2.0, 1.0)),
    "2 boundaries, must": lambda: Quantile("x", (0.0, math.inf)),
    "so must be their range": lambda: Quantile("x", (-1e308, 1e308)),
    "finite, sorted": lambda: Enumerated("x", (2.0, 1.0)),
    "sorted and different": lambda: Enumerated("x", (0.0, -0.0)),
    "values must be finite": lambda: Enumerated("x", (0.0, math.nan)),
    "0 buckets": lambda: Ids("x", 0),
    "65537 buckets": lambda: Ids("x", 65_537),
    "smallest value plus shift is 0,": lambda: boxcox("x", np.array([1.0, 2.0]), -1.0, 0.5),
    "no finite value": lambda: boxcox("x", np.array([math.nan]), 0.0, 0.5),
    "std 0": lambda: boxcox("x", np.array([2.0, 2.0]), 0.0, 0.5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_parameters_that_give_no_numbers_are_refused(message):
    with pytest.raises(DataError, match=message):
        REFUSED[message]()


def test_the_digest_changes_with_every_parameter_of_every_type():
    changed = {
        BoxCox: [{"shift": 2.0}, {"power": 0.25}, {"mean": 2.5}, {"std": 0.25}, {"low": 0.5}],
        Category: [{"values": ("pc",)}],
        Ids: [{"buckets": 4}],
        Quantile: [{"boundaries": (0.0, 80.0, 101.0)}],
        Enumerated: [{"values": (1.0,)}],
        Continuous: [{"mean": 41.0}, {"std": 11.0}],
    }
    digests = {EVERY.digest}
    made = 1
    for i, transform in enumerate(EVERY.context):
        for change in ({"name": transform.name + "z"}, *changed.get(type(transform), [])):
            other = msgspec.structs.replace(transform, **change)
            digests.add(Encoder((*EVERY.context[:i], other, *EVERY.context[i + 1 :])).digest)
            made += 1
    digests |= {Encoder((kind("c"),)).digest for kind in (Binary, Probability, Constant)}
    assert len(digests) == made + 3
    assert msgspec.json.decode(msgspec.json.encode(EVERY), type=Encoder).digest == EVERY.digest
    assert Encoder((Enumerated("n", (1, 2)),)).digest == Encoder((Enumerated("n", (1.0, 2.0)),)).digest
