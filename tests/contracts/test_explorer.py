"""What every explorer must do. A new explorer gets its tests by a row in EXPLORERS."""

import typing

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.core.errors import DataError
from steersman.core.policy import CandidatesExplorer, EpsilonGreedy, Explorer, Softmax, SquareCB, Thompson, Uniform

EXPLORERS = [
    Uniform(),
    EpsilonGreedy(0.0),
    EpsilonGreedy(0.1),
    EpsilonGreedy(1.0),
    Softmax(1.0),
    Softmax(0.01),
    Softmax(1e6),
    Softmax(1.0, floor=0.1),
    Softmax(0.5, floor=1.0),
    SquareCB(0.0),
    SquareCB(2.0),
    SquareCB(1e6),
    Thompson(),
    Thompson(floor=0.2),
]
every_explorer = pytest.mark.parametrize("explorer", EXPLORERS, ids=str)
every_explorer_that_reads_scores = pytest.mark.parametrize(
    "explorer", [explorer for explorer in EXPLORERS if not isinstance(explorer, Uniform)], ids=str
)

scores_of_a_row = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=6)


def arrays(rows: list[list[float]], *, padding: float = np.nan, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    scores = np.full((len(rows), width), padding, dtype=np.float32)
    mask = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        scores[i, : len(row)] = row
        mask[i, : len(row)] = True
    return scores, mask


def test_every_explorer_has_a_row():
    assert {type(explorer) for explorer in EXPLORERS} == set(typing.get_args(CandidatesExplorer))


@every_explorer
@settings(max_examples=50)
@given(rows=st.lists(scores_of_a_row, min_size=1, max_size=5))
def test_rows_are_distributions_over_the_candidates(explorer, rows):
    scores, mask = arrays(rows)
    found = explorer.probabilities(scores, mask)
    assert found.shape == mask.shape
    assert found.dtype == np.float64
    assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    assert (found[~mask] == 0).all()
    assert (found >= 0).all()


@every_explorer
@settings(max_examples=50)
@given(row=scores_of_a_row, padding=st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 0.0]))
def test_what_lies_in_the_padding_does_not_matter(explorer, row, padding):
    clean = explorer.probabilities(*arrays([row], padding=0.0))
    assert np.array_equal(explorer.probabilities(*arrays([row], padding=padding)), clean)


@every_explorer
@settings(max_examples=50)
@given(rows=st.lists(scores_of_a_row, min_size=2, max_size=5))
def test_a_row_does_not_depend_on_its_neighbours(explorer, rows):
    scores, mask = arrays(rows)
    together = explorer.probabilities(scores, mask)
    alone = [explorer.probabilities(scores[i : i + 1], mask[i : i + 1])[0] for i in range(len(rows))]
    assert np.array_equal(together, np.array(alone))


@every_explorer
@settings(max_examples=50)
@given(row=scores_of_a_row, data=st.data())
def test_the_order_of_the_candidates_does_not_matter(explorer, row, data):
    order = data.draw(st.permutations(range(len(row))))
    found = explorer.probabilities(*arrays([row]))[0]
    shuffled = explorer.probabilities(*arrays([[row[i] for i in order]]))[0]
    assert shuffled[: len(row)] == pytest.approx(found[list(order)], abs=1e-15)


@every_explorer
@settings(max_examples=50)
@given(row=scores_of_a_row)
def test_a_higher_score_is_never_less_likely_and_equal_scores_are_equally_likely(explorer, row):
    found = explorer.probabilities(*arrays([row]))[0, : len(row)]
    order = np.argsort(np.float32(row), kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    for score in set(np.float32(row)):
        assert len(set(found[np.float32(row) == score])) == 1


@every_explorer
def test_a_single_candidate_is_certain(explorer):
    assert explorer.probabilities(*arrays([[3.0]]))[0, 0] == pytest.approx(1.0, abs=1e-15)


@every_explorer
def test_a_constant_added_to_all_scores_changes_nothing(explorer):
    row = [1.0, 2.0, 2.0, 5.0]  # sums with 64 are exact in float32
    found = explorer.probabilities(*arrays([row, [score + 64 for score in row]]))
    assert np.array_equal(found[0], found[1])


@every_explorer
@pytest.mark.parametrize("large", [1e30, 3e38, -1e30])
def test_scores_as_large_as_float32_holds_give_distributions(explorer, large):
    scores, mask = arrays([[large, large, 0.0], [large, -large, 0.0], [large, large / 2, large / 4]])
    found = explorer.probabilities(scores, mask)
    assert np.isfinite(found).all()
    assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    assert found[0, 0] == found[0, 1]


@every_explorer
def test_a_row_without_candidates_is_refused_by_its_number(explorer):
    scores, mask = arrays([[1.0], [2.0]])
    mask[1] = False
    with pytest.raises(DataError, match="row 1: no candidates") as refused:
        explorer.probabilities(scores, mask)
    assert refused.value.field == "candidates"


@every_explorer_that_reads_scores
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_score_of_a_candidate_that_is_not_finite_is_refused_by_its_row(explorer, broken):
    scores, mask = arrays([[1.0, 2.0], [1.0, broken]])
    with pytest.raises(DataError, match=r"row 1: .*not finite"):
        explorer.probabilities(scores, mask)


@every_explorer_that_reads_scores
def test_scores_of_another_shape_are_refused(explorer):
    scores, mask = arrays([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(DataError, match=r"\[2, 1\].*\[2, 6\]"):
        explorer.probabilities(scores[:, :1], mask)


@every_explorer
def test_draws_that_are_all_alike_are_the_scores(explorer):
    scores, mask = arrays([[1.0, 2.0, 2.0, 5.0], [0.5, -3.0]])
    draws = np.repeat(scores[:, :, None], 4, axis=2)
    assert explorer.probabilities(draws, mask) == pytest.approx(explorer.probabilities(scores, mask), abs=1e-15)


@every_explorer_that_reads_scores
def test_a_draw_that_is_not_finite_is_refused_by_its_row(explorer):
    draws, mask = np.ones((3, 2, 4)), np.ones((3, 2), dtype=bool)
    draws[1, 1, 3] = np.nan
    with pytest.raises(DataError, match=r"row 1: .*not finite"):
        explorer.probabilities(draws, mask)
    mask[1, 1] = False
    assert explorer.probabilities(draws, mask)[1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("explorer", [EpsilonGreedy(0.1), Softmax(0.5), SquareCB(2.0)], ids=str)
def test_an_explorer_that_does_not_sample_reads_the_mean_of_the_draws(explorer):
    draws = np.random.default_rng(0).normal(size=(5, 4, 8)).astype(np.float32)
    mask = np.ones((5, 4), dtype=bool)
    mean = draws.mean(axis=2, dtype=np.float64)
    assert np.array_equal(explorer.probabilities(draws, mask), explorer.probabilities(mean, mask))


@settings(max_examples=50)
@given(data=st.data())
def test_thompson_is_the_mean_of_the_greedy_policies_of_its_draws(data):
    """Whatever candidates there are: by a loop over rows and draws, ties included."""
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)))
    values = data.draw(st.lists(st.integers(-2, 2), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    draws = np.array(values, dtype=np.float32).reshape(shape)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])))
    mask = mask.reshape(shape[:2])
    mask[:, 0] |= ~mask.any(axis=1)
    greedy = [EpsilonGreedy(0.0).probabilities(draws[:, :, m], mask) for m in range(shape[2])]
    assert Thompson().probabilities(draws, mask) == pytest.approx(np.mean(greedy, axis=0), abs=1e-12)
    spread = 0.3 * Uniform().probabilities(draws, mask)
    assert Thompson(0.3).probabilities(draws, mask) == pytest.approx(0.7 * np.mean(greedy, axis=0) + spread, abs=1e-12)


@every_explorer
def test_it_survives_the_wire(explorer):
    assert msgspec.json.decode(msgspec.json.encode(explorer), type=Explorer) == explorer


@every_explorer
def test_an_unknown_setting_is_refused(explorer):
    table = {**msgspec.to_builtins(explorer), "temprature": 2}
    with pytest.raises(msgspec.ValidationError, match="temprature"):
        msgspec.convert(table, Explorer)
