"""Batch: valid or not alive; its episodes against brute force."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.batch import Batch, array_fields
from steersman.core.decision import Numbers
from steersman.core.errors import DataError
from steersman.core.features import Category, Continuous, Encoder
from steersman.core.slots import Slots

ENCODER = Encoder(context=(Category("state", ("a", "b")), Continuous("x", 0.0, 1.0)), actions=("left", "right"))


def make(next_row: list[int], unit: list[int] | None = None, **changed: object) -> Batch:
    """A valid batch with these episodes; rows without a next one are truncated."""
    n = len(next_row)
    random = np.random.default_rng(n)
    arrays = {
        "context": random.normal(size=(n, ENCODER.context_width)).astype(np.float32),
        "candidates": np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2)),
        "mask": np.ones((n, 2), dtype=bool),
        "action": random.integers(0, 2, n),
        "propensity": random.uniform(0.1, 1, n),
        "reward": random.normal(size=n),
        "metrics": random.normal(size=(n, 1)),
        "discount": np.full(n, 0.9),
        "next": np.array(next_row),
        "unit": np.array(unit if unit is not None else [0] * n),
        "metric_names": ("clicks",),
    }
    return Batch(**{"encoder": ENCODER, **arrays, **changed})


def numbers(**changed: object) -> Batch:
    """A valid batch of three decisions whose action is a vector of two numbers."""
    arrays = {
        "action": np.array([[0.5, 1], [2, 3], [4, 5]], dtype=np.float32),
        "propensity": np.array([0.5, 7.5, 1]),
        "candidates": np.zeros((3, 0, 0), dtype=np.float32),
        "mask": np.zeros((3, 0), dtype=bool),
        "encoder": replace_actions(ENCODER),
    }
    return make([1, 2, -1], **{**arrays, **changed})


def replace_actions(encoder: Encoder) -> Encoder:
    return Encoder(encoder.context, encoder.candidate, numbers=Numbers(low=(0.0, -1.0), high=(4.0, 5.0)))


def broken(field: str, row: int, value: object) -> np.ndarray:
    array = np.array(getattr(make([1, 2, -1, 4, -1], [0, 0, 0, 1, 1]), field))
    array[row] = value
    return array


@st.composite
def episodes(draw) -> tuple[list[int], list[int]]:
    """next and unit of rows in which the episodes of some units are interleaved."""
    unit = draw(st.lists(st.integers(0, 3), min_size=1, max_size=20))
    next_row = [-1] * len(unit)
    for row, whose in enumerate(unit):
        later = [other for other in range(row + 1, len(unit)) if unit[other] == whose]
        if later and draw(st.booleans()):
            next_row[row] = later[0]
    return next_row, unit


def walk(next_row: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Starts, episode and step of every row, by following the pointers."""
    starts = [row for row in range(len(next_row)) if row not in next_row]
    episode, step = [-1] * len(next_row), [-1] * len(next_row)
    for number, row in enumerate(starts):
        place = 0
        while row >= 0:
            episode[row], step[row] = number, place
            row, place = next_row[row], place + 1
    return starts, episode, step


@settings(max_examples=200)
@given(rows=episodes())
def test_starts_episodes_and_steps_are_those_of_a_walk(rows):
    next_row, unit = rows
    batch = make(next_row, unit)
    starts, episode, step = walk(next_row)
    assert batch.starts.tolist() == starts
    assert batch.episode.tolist() == episode
    assert batch.step.tolist() == step
    assert batch.starts.dtype == batch.episode.dtype == batch.step.dtype == np.int64


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 1000])
def test_a_long_episode_counts_to_its_end(length):
    batch = make([*range(1, length), -1])
    assert batch.step.tolist() == list(range(length))
    assert batch.episode.tolist() == [0] * length


@settings(max_examples=200)
@given(rows=episodes(), data=st.data())
def test_take_keeps_rows_and_the_links_between_them(rows, data):
    next_row, unit = rows
    batch = make(next_row, unit)
    kept = sorted(data.draw(st.sets(st.integers(0, len(unit) - 1), min_size=1)))
    taken = batch.take(np.array(kept))
    for field in array_fields():
        if field != "next":
            assert np.array_equal(getattr(taken, field), getattr(batch, field)[kept])
    want = [kept.index(next_row[row]) if next_row[row] in kept else -1 for row in kept]
    assert taken.next.tolist() == want
    assert taken.metric_names == batch.metric_names


def test_taking_everything_changes_nothing():
    batch = make([1, 2, -1, 4, -1], [0, 0, 0, 1, 1])
    assert batch.take(np.arange(5)).digest == batch.digest


def test_take_does_not_copy_shared_candidates():
    taken = make([1, 2, -1]).take(np.array([0, 2]))
    assert taken.candidates.strides[0] == 0
    assert taken.candidates.shape == (2, 2, 2)


@pytest.mark.parametrize("rows", [[1, 0], [0, 0], [-1, 0], [-2, -1], [-1], [2, 3]])
def test_take_refuses_rows_that_are_not_ascending_rows_of_the_batch(rows):
    with pytest.raises(DataError, match="rows must be"):
        make([1, 2, -1]).take(np.array(rows))


def test_taking_nothing_is_refused():
    with pytest.raises(DataError, match="no rows"):
        make([1, 2, -1]).take(np.array([], dtype=np.int64))


def test_terminated_is_a_discount_of_0_and_truncated_is_not():
    batch = make([1, -1, -1], [0, 0, 1], discount=np.array([0.9, 0.0, 0.9]))
    assert batch.terminated.tolist() == [False, True, False]
    assert len(batch) == 3
    assert not batch.numbers


@pytest.mark.parametrize(
    ("field", "row", "value", "message"),
    [
        ("context", 2, np.nan, "row 2: context is not finite"),
        ("context", 2, np.inf, "row 2: context is not finite"),
        ("candidates", 1, np.nan, "row 1: candidates are not finite"),
        ("action", 3, 2, "row 3: action is 2"),
        ("action", 3, -1, "row 3: action is -1"),
        ("mask", 4, False, r"row 4: action \d is padding"),
        ("propensity", 0, 0.0, r"row 0: propensity is 0, must be in \(0, 1\]"),
        ("propensity", 1, 1.5, "row 1: propensity is 1.5"),
        ("propensity", 1, -0.5, "row 1: propensity is -0.5"),
        ("propensity", 1, np.nan, "row 1: propensity is nan"),
        ("propensity", 1, np.inf, "row 1: propensity is inf"),
        ("reward", 4, np.nan, "row 4: reward is nan"),
        ("reward", 4, -np.inf, "row 4: reward is -inf"),
        ("metrics", 3, np.inf, "row 3: a metric is infinite"),
        ("discount", 2, -0.1, "row 2: discount is -0.1"),
        ("discount", 2, 1.1, "row 2: discount is 1.1"),
        ("discount", 2, np.nan, "row 2: discount is nan"),
        ("discount", 0, 0.0, "row 0: a terminated row has the next row 1"),
        ("next", 0, -2, "row 0: next is -2"),
        ("next", 3, 3, "row 3: next is 3"),
        ("next", 4, 0, "row 4: next is 0"),
        ("next", 4, 5, "row 4: next is 5"),
        ("next", 0, 2, "row 1: next is row 2, which follows an earlier row"),
        ("next", 2, 3, "row 2: next is row 3 of another unit"),
        ("unit", 4, 0, "row 3: next is row 4 of another unit"),
        ("limited", 1, True, "row 1: a row after which its episode is over has the next row 2"),
        ("begun", 2, True, "row 1: next is row 2, and only one of the two is of an episode that began before"),
    ],
)
def test_a_row_that_breaks_a_law_is_refused_with_its_number(field, row, value, message):
    batch = make([1, 2, -1, 4, -1], [0, 0, 0, 1, 1])
    with pytest.raises(DataError, match=message):
        replace(batch, **{field: broken(field, row, value)})


def test_an_episode_is_over_where_it_terminated_or_a_limit_ended_it():
    batch = make([1, -1, -1, -1], [0, 0, 1, 2])
    assert not batch.over.any() and not batch.begun.any()
    ended = replace(batch, discount=np.array([0.9, 0.0, 0.9, 0.9]), limited=np.array([False, False, True, False]))
    assert ended.over.tolist() == [False, True, True, False]
    assert ended.take(np.array([0, 2])).over.tolist() == [False, True]


def test_the_refusal_counts_the_rows():
    with pytest.raises(DataError, match=r"row 1: .*\(2 such rows of 3\)"):
        make([1, 2, -1], reward=np.array([0.0, np.nan, np.nan]))


def test_a_metric_may_be_unknown():
    assert np.isnan(make([1, 2, -1], metrics=np.full((3, 1), np.nan)).metrics).all()


@pytest.mark.parametrize("field", array_fields())
def test_an_array_of_another_type_is_refused_by_name(field):
    wrong = {"mask": np.int64, "action": np.int32, "next": np.int32, "unit": np.float64}.get(field, np.float16)
    array = np.array(getattr(make([1, 2, -1]), field)).astype(wrong)
    with pytest.raises(DataError, match=rf"{field} is {np.dtype(wrong)}\[3"):
        make([1, 2, -1], **{field: array})


@pytest.mark.parametrize("field", array_fields())
def test_an_array_of_another_length_is_refused(field):
    array = np.array(getattr(make([1, 2, -1]), field))[:2]
    with pytest.raises(DataError):
        make([1, 2, -1], **{field: array})


@pytest.mark.parametrize(
    "changed",
    [
        {"context": np.zeros((3, 5), dtype=np.float32)},
        {"candidates": np.zeros((3, 2, 3), dtype=np.float32)},
        {"context": np.zeros(3, dtype=np.float32)},
        {"candidates": np.zeros((3, 4), dtype=np.float32)},
        {"encoder": Encoder()},
    ],
)
def test_columns_that_the_encoder_does_not_make_are_refused(changed):
    with pytest.raises(DataError, match="the encoder makes"):
        make([1, 2, -1], **changed)


def test_metrics_without_names_are_refused():
    with pytest.raises(DataError, match="metrics is"):
        make([1, 2, -1], metric_names=())


def test_no_rows_are_refused_with_a_hint():
    empty = {field: np.array(getattr(make([-1]), field))[:0] for field in array_fields()}
    with pytest.raises(DataError, match="no rows") as refused:
        make([-1], **empty)
    assert "wait_s" in refused.value.hint


def test_numbers_as_actions_may_have_densities_above_1_and_need_no_candidates():
    batch = numbers()
    assert batch.numbers
    assert batch.take(np.array([1, 2])).action.tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"action": np.array([[0.5, 1], [np.nan, 3], [4, 5]], dtype=np.float32)}, "row 1: action is not finite"),
        ({"propensity": np.array([0.5, np.inf, 1])}, "row 1: propensity is inf"),
        ({"propensity": np.array([0.5, 0, 1])}, "row 1: propensity is 0"),
    ],
)
def test_numbers_as_actions_are_checked_too(changed, message):
    with pytest.raises(DataError, match=message):
        numbers(**changed)


@pytest.mark.parametrize("field", array_fields())
def test_the_digest_changes_with_every_array(field):
    batch = make([1, -1, -1, -1], [0, 0, 1, 2])
    array = np.array(getattr(batch, field))
    change = {
        "mask": lambda: array.__setitem__((3, 1 - batch.action[3]), False),
        "action": lambda: array.__setitem__(3, 1 - array[3]),
        "next": lambda: array.__setitem__(0, -1),
        "unit": lambda: array.__setitem__(3, 7),
        "propensity": lambda: array.__setitem__(3, 0.05),
    }
    change.get(field, lambda: array.__setitem__(3, 0.25))()
    assert replace(batch, **{field: array}).digest != batch.digest


def test_the_digest_changes_with_the_encoder_and_the_names_of_the_metrics():
    batch = make([1, 2, -1])
    other = Encoder(context=(Category("state", ("a", "c")), Continuous("x", 0.0, 1.0)), actions=("left", "right"))
    assert replace(batch, encoder=other).digest != batch.digest
    assert replace(batch, metric_names=("sales",)).digest != batch.digest


def test_the_digest_sees_every_row_of_a_view():
    """A column spread over two metrics is a view too, but its first row is not all there is."""
    metrics = [np.broadcast_to(np.array([[1.0], [2.0], [last]]), (3, 2)) for last in (3.0, 4.0)]
    digests = [make([1, 2, -1], metrics=array, metric_names=("a", "b")).digest for array in metrics]
    assert digests[0] != digests[1]


def test_the_same_data_have_the_same_digest_however_they_lie_in_memory():
    batch = make([1, 2, -1])
    assert make([1, 2, -1]).digest == batch.digest
    assert replace(batch, candidates=np.array(batch.candidates)).digest == batch.digest
    assert replace(batch, context=np.asfortranarray(batch.context)).digest == batch.digest


def test_a_batch_can_not_be_changed():
    with pytest.raises(AttributeError):
        make([1, 2, -1]).reward = np.zeros(3)


def ranked(**changed: object) -> Batch:
    """A valid batch of three ranked lists of up to two of three candidates; the last one has one item."""
    chances = np.array([[0.5, 0.25], [0.25, 1.0], [0.5, 1.0]])
    reward = np.array([[1.0, 0.5], [0.0, 0.0], [2.0, 0.0]])
    slots = {
        "propensity": chances,
        "reward": reward,
        "metrics": np.stack([reward, [[np.nan, 1], [0, 0], [1, 0]]], axis=2)[:, :, :1],
        "first": np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.5, 0.0]]),
    }
    slots |= {name: changed.pop(name) for name in list(changed) if name in slots}
    arrays = {
        "action": np.array([[0, 1], [1, 2], [0, -1]]),
        "propensity": chances.prod(axis=1),
        "reward": reward.sum(axis=1),
        "candidates": np.broadcast_to(np.eye(3, dtype=np.float32), (3, 3, 3)),
        "mask": np.array([[True, True, True], [True, True, True], [True, True, False]]),
        "encoder": Encoder(ENCODER.context, actions=("a", "b", "c")),
        "slots": Slots(**slots),
    }
    return make([-1, -1, -1], [0, 1, 2], **{**arrays, **changed})


def test_ranked_lists_numbers_and_single_actions_are_told_apart():
    assert [(batch.ranked, batch.numbers) for batch in (make([-1]), ranked(), numbers())] == [
        (False, False), (True, False), (False, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"action": np.array([[0, 1], [1, 3], [0, -1]])}, "row 1: the place 3"),
        ({"action": np.array([[0, 1], [1, 2], [-1, 0]])}, "row 2: the list is empty"),
        ({"action": np.array([[0, 0], [1, 2], [0, -1]])}, "row 0: an item stands twice"),
        ({"action": np.array([[0, 1], [1, 2], [2, -1]])}, "row 2: item .* padding"),
        ({"propensity": np.array([0.125, 0.3, 0.5])}, "row 1: the propensities of the items multiply to 0.25"),
        ({"reward": np.array([1.5, 0.0, 2.1])}, "row 2: the reward is 2.1, which is not the sum"),
        ({"first": np.array([[0.4, 0.3, 0.3], [0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])}, "row 0: the first item has"),
        ({"first": np.array([[0.5, 0.3, 0.3], [0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])}, "row 0: .* sum to 1.1"),
        ({"action": np.array([0, 1, 0])}, "action is int64"),
        ({"slots": None}, "action is int64"),
    ],
)
def test_a_list_that_breaks_a_law_is_refused_by_its_row(changed, message):
    values = dict(changed)
    if "propensity" in values or "reward" in values:
        with pytest.raises(DataError, match=message):
            replace(ranked(), **values)
        return
    with pytest.raises(DataError, match=message):
        ranked(**values)


@pytest.mark.parametrize("name", ["propensity", "reward", "metrics", "first"])
def test_the_digest_and_take_see_every_array_of_the_slots(name):
    batch = ranked()
    assert batch.take(np.arange(3)).digest == batch.digest
    taken = batch.take(np.array([0, 2]))
    assert np.array_equal(taken.slots.arrays[name], batch.slots.arrays[name][[0, 2]])
    assert replace(batch, slots=replace(batch.slots, first=None)).digest != batch.digest


def test_what_stands_behind_the_end_of_a_list_is_nothing():
    batch = ranked()
    for name, value in (("propensity", 0.5), ("reward", 1.0), ("metrics", 1.0)):
        array = batch.slots.arrays[name].copy()
        array[2, 1] = value
        with pytest.raises(DataError, match="row 2: something is known of a slot behind"):
            replace(batch, slots=replace(batch.slots, **{name: array}))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"action": np.array([[0.5, 1], [4.1, 3], [4, 5]], dtype=np.float32)}, r"row 1: action .* outside its bounds"),
        ({"action": np.array([[0.5, 1], [2, 3], [4, -2]], dtype=np.float32)}, r"row 2: action .* outside its bounds"),
        ({"action": np.zeros((3, 1), dtype=np.float32)}, "an action is 1 numbers, the encoder has other bounds"),
        ({"encoder": Encoder(ENCODER.context)}, "the encoder has bounds None"),
        ({"action": np.zeros(3, dtype=np.int64)}, r"action is \[3\], the encoder has bounds Numbers"),
        ({"mask": np.ones((3, 2), dtype=bool)}, r"mask is bool\[3, 2\], must be bool\[3, 0\]"),
        ({"propensity": np.array([0.5, 0.0, 1.0])}, "row 1: propensity is 0, must be a density above 0"),
    ],
)
def test_numbers_that_are_not_within_the_bounds_of_the_encoder_are_refused(changed, says):
    numbers()
    with pytest.raises(DataError, match=says):
        numbers(**changed)


def test_bounds_are_rounded_as_the_actions_are():
    box = Numbers(low=(-0.1,), high=(0.1,))
    found = numbers(
        action=np.array([[0.1], [-0.1], [0]], dtype=np.float32), encoder=Encoder(ENCODER.context, numbers=box)
    )
    assert found.numbers


def test_an_encoder_for_numbers_has_no_candidates_and_another_digest():
    box = Numbers(low=(0.0,), high=(1.0,))
    with pytest.raises(DataError, match="no candidates"):
        Encoder(actions=("left", "right"), numbers=box)
    assert len({Encoder().digest, Encoder(numbers=box).digest, Encoder(numbers=Numbers((0.0,), (2.0,))).digest}) == 3
