from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.engine.stream import Texts
from steersman.timeline import keys
from steersman.timeline.texts import Pen, alike, picked

ANY = st.integers(0, 2**64 - 1)
NEAR = st.integers(2**63 - 2, 2**63 + 2) | st.sampled_from([0, 2**64 - 1])  # the upper bits do not tell these apart
MANY = st.lists(ANY, max_size=60) | st.lists(NEAR, max_size=60) | st.lists(st.integers(0, 3), max_size=60)


def u64(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@settings(max_examples=300, deadline=None)
@given(MANY)
def test_rows_are_in_the_order_of_a_stable_sort(values):
    assert keys.ordered(u64(values)).tolist() == sorted(range(len(values)), key=lambda i: values[i])


def test_many_rows_of_which_some_differ_in_their_lower_bits_only():
    rng = np.random.default_rng(0)
    some = rng.integers(0, 2**64, 30_000, dtype=np.uint64)
    some[rng.integers(0, 30_000, 5000)] = some[rng.integers(0, 30_000, 5000)] ^ rng.integers(0, 4, 5000, np.uint64)
    assert np.array_equal(keys.ordered(some), np.argsort(some, kind="stable"))


@settings(max_examples=200, deadline=None)
@given(MANY)
def test_repeats_are_the_rows_whose_key_stands_more_than_once(values):
    rows, key = keys.Index(u64(values)).repeats()
    want = sorted((i for i, value in enumerate(values) if values.count(value) > 1), key=lambda i: (values[i], i))
    assert rows.tolist() == want
    names = sorted({values[i] for i in want})
    assert key.tolist() == [names.index(values[i]) for i in want]


@settings(max_examples=200, deadline=None)
@given(MANY.filter(len), st.randoms())
def test_every_key_finds_its_place_among_the_different_ones(values, random):
    of = sorted(set(values))
    random.shuffle(of)
    assert keys.Index(u64(of)).rows(u64(values)).tolist() == [of.index(value) for value in values]


@settings(max_examples=200, deadline=None)
@given(MANY.filter(len), MANY)
def test_an_index_finds_the_row_of_a_key_and_nothing_else(values, asked):
    index = keys.Index(u64(values))
    assert index.unique == (len(set(values)) == len(values))
    found = index.rows(u64([*asked, *values])).tolist()
    for key, row in zip([*asked, *values], found, strict=True):
        assert (row >= 0) == (key in values)
        assert row < 0 or values[row] == key


SPREAD = {
    "hashes": lambda some: some,
    "one upper half": lambda some: some & np.uint64(2**32 - 1),
    "one lower half": lambda some: some & np.uint64(2**64 - 2**32),
    "few upper halves": lambda some: some & np.uint64(2**35 - 1),
    "small numbers": lambda some: some % np.uint64(20_000),
}


@pytest.mark.parametrize("spread", SPREAD)
def test_an_index_of_many_keys_knows_their_rows_however_they_are_spread(spread):
    rng = np.random.default_rng(0)
    different = SPREAD[spread](rng.integers(0, 2**64, 40_000, dtype=np.uint64))
    some = np.append(different, different[rng.integers(0, 40_000, 500)])  # 500 or more stand twice, some three times
    strangers = SPREAD[spread](rng.integers(0, 2**64, 20_000, dtype=np.uint64)) ^ np.uint64(1)
    index, row_of = keys.Index(some), {}
    for row, key in enumerate(some.tolist()):
        row_of.setdefault(key, []).append(row)
    asked = np.concatenate([some, strangers])
    found = index.rows(asked)
    assert np.array_equal(found >= 0, np.array([key in row_of for key in asked.tolist()]))
    assert np.array_equal(some[found[found >= 0]], asked[found >= 0])
    twice = {key: rows for key, rows in sorted(row_of.items()) if len(rows) > 1}
    rows, number = index.repeats()
    assert rows.tolist() == [row for rows in twice.values() for row in rows]
    assert number.tolist() == [i for i, rows in enumerate(twice.values()) for _ in rows]
    assert not index.unique
    once = keys.Index(np.unique(some))
    assert once.unique
    assert np.array_equal(once.rows(np.unique(some)), np.arange(len(np.unique(some))))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-40, 40), max_size=40, unique=True), st.integers(-(2**40), 2**40))
def test_dense_keys_are_in_the_order_of_a_stable_sort(values, low):
    some = np.array(values, dtype=np.int64) + max(low, 40)
    assert keys.ordered(some).tolist() == np.argsort(some, kind="stable").tolist()


def texts_of(words: list[str]) -> Texts:
    body = [word.encode() for word in words]
    return Texts(np.cumsum([0, *map(len, body)], dtype=np.int32), np.frombuffer(b"".join(body), np.uint8))


@pytest.mark.parametrize("on_disk", [False, True])
@settings(max_examples=50, deadline=None)
@given(some=st.lists(st.text(max_size=12), max_size=12), more=st.lists(st.text(max_size=12), min_size=1, max_size=12))
def test_what_a_pen_wrote_is_read_again(tmp_path_factory, on_disk, some, more):
    path: Path | None = tmp_path_factory.mktemp("texts") / "texts.npy" if on_disk else None
    pen = Pen(path)
    pen.write(texts_of(some))
    pen.write(texts_of(more))
    written = pen.texts()
    assert picked(written, np.arange(len(some) + len(more))) == [*some, *more]
    if path is not None and written.utf8.size:
        assert np.load(path, allow_pickle=False).tobytes() == "".join([*some, *more]).encode()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.text("ab", max_size=11), st.text("ab", max_size=11)), max_size=12), st.booleans())
def test_texts_are_alike_only_if_every_byte_is(pairs, same):
    others = texts_of(["zz", *(two for _, two in pairs)])
    mine = texts_of([two if same else one for one, two in pairs])
    rows = np.arange(1, len(pairs) + 1)
    assert alike(mine, others, rows) == (same or all(one == two for one, two in pairs))
    assert alike(mine, others, np.full(len(pairs), -1))


@pytest.mark.parametrize("shorter", [0, 1])
def test_of_many_texts_one_other_byte_is_seen(shorter):
    words = [f"{i:06d}"[: 6 - i % 2 * shorter] for i in range(50_000)]
    others, rows = texts_of(words), np.roll(np.arange(50_000), 7)
    mine = texts_of([words[row] for row in rows])
    assert alike(mine, others, rows)
    for place in (0, 20_001, 49_999):
        other = Texts(mine.bounds, mine.utf8.copy())
        other.utf8[mine.bounds[place + 1] - 1] ^= 1
        assert not alike(other, others, rows)
        assert alike(other, others, np.where(np.arange(50_000) == place, -1, rows))
