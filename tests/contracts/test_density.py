"""What every explorer of numbers must do. A new one gets its tests by a row in EXPLORERS."""

import math
import typing
from collections.abc import Callable
from statistics import NormalDist

import msgspec
import numpy as np
import pytest

from steersman.core.decision import Numbers, uniform_draws
from steersman.core.density import REACH, Gaussian, NumbersExplorer, Point, Squashed, UniformBox, _quantile, within
from steersman.core.errors import DataError, SupportError
from steersman.core.policy import CandidatesExplorer, Explorer

EXPLORERS = [
    UniformBox(),
    Gaussian(0.2),
    Gaussian(0.01, floor=0.05),
    Gaussian(50.0),
    Gaussian(0.1, floor=1.0),
    Squashed(),
    Squashed(floor=0.1),
    Point(),
]
DENSE = [explorer for explorer in EXPLORERS if not isinstance(explorer, Point)]
every_explorer = pytest.mark.parametrize("explorer", EXPLORERS, ids=str)
every_explorer_that_reads_scores = pytest.mark.parametrize("explorer", EXPLORERS[1:], ids=str)
every_dense = pytest.mark.parametrize("explorer", DENSE, ids=str)
ONE, TWO = Numbers(low=(-2.0,), high=(3.0,)), Numbers(low=(-1.0, 10.0), high=(1.0, 14.0))
CENTRES = [-2.0, -1.9, 0.3, 2.95, 3.0, 40.0]


def scores_of(explorer: NumbersExplorer, box: Numbers, centres: np.ndarray) -> np.ndarray:
    """[N, S] f32 for centres [N, D]; a Squashed one reads them as numbers before squashing, with scales of 0.3 to 1."""
    if not isinstance(explorer, Squashed):
        return centres.astype(np.float32)
    scales = np.broadcast_to(np.log(np.linspace(0.3, 1.0, centres.shape[1])), centres.shape)
    return np.concatenate([centres, scales], axis=1).astype(np.float32)


def edges(explorer: NumbersExplorer, low: float, high: float, centre: float) -> list[float]:
    """Where a density of one number may be steep."""
    if isinstance(explorer, Squashed):
        return [low + (high - low) * (1 + math.tanh(z)) / 2 for z in np.linspace(-REACH, REACH, 33)]
    centre = min(max(centre, low), high)
    return [min(max(centre + k * 0.05 * (high - low), low), high) for k in range(-2, 3)]


def integral(f: Callable[[np.ndarray], np.ndarray], cuts: list[float]) -> float:
    """Gauss-Legendre with 60 nodes between one cut and the next."""
    node, weight = np.polynomial.legendre.leggauss(60)
    places = np.array(sorted({-2.0, *cuts, 3.0}))
    middle, half = (places[1:] + places[:-1]) / 2, np.diff(places) / 2
    at = middle[:, None] + half[:, None] * node
    return float((half[:, None] * weight * f(at.ravel()).reshape(at.shape)).sum())


def kolmogorov_smirnov(drawn: np.ndarray, below: Callable[[np.ndarray], np.ndarray]) -> float:
    """Root of n times the largest distance; above 1.95 in one of a thousand samples."""
    mass, n = below(np.sort(drawn)), len(drawn)
    place = np.arange(n) / n
    return math.sqrt(n) * max(float((mass - place).max()), float((place + 1 / n - mass).max()))


def test_every_explorer_of_numbers_has_a_row():
    assert {type(explorer) for explorer in EXPLORERS} == set(typing.get_args(NumbersExplorer))
    kinds = set(typing.get_args(CandidatesExplorer)) | set(typing.get_args(NumbersExplorer))
    assert kinds == set(typing.get_args(Explorer))


@every_dense
@pytest.mark.parametrize("centre", CENTRES)
def test_the_density_integrates_to_one_over_the_bounds(explorer, centre):
    scores = scores_of(explorer, ONE, np.array([[centre]]))

    def density(a: np.ndarray) -> np.ndarray:
        return explorer.density(np.repeat(scores, len(a), axis=0), a[:, None], ONE)

    assert integral(density, edges(explorer, -2.0, 3.0, centre)) == pytest.approx(1.0, abs=1e-9)


@every_dense
def test_the_density_of_two_numbers_integrates_to_one_over_their_volume(explorer):
    n = 400
    node, weight = np.polynomial.legendre.leggauss(n)
    a, b = np.meshgrid(node, 12 + 2 * node, indexing="ij")
    centre = np.tile([[0.2, 11.0]] if not isinstance(explorer, Squashed) else [[0.2, -0.7]], (n * n, 1))
    scores = scores_of(explorer, TWO, centre)
    density = explorer.density(scores, np.stack([a.ravel(), b.ravel()], axis=1), TWO)
    assert (np.outer(weight, 2 * weight).ravel() * density).sum() == pytest.approx(1.0, abs=2e-3)


@every_dense
@pytest.mark.parametrize("centre", [-2.0, 0.3, 2.95])
def test_draws_follow_the_density(explorer, centre):
    n = 4000
    rng = np.random.default_rng(7)
    scores = scores_of(explorer, ONE, np.array([[centre]]))
    drawn = explorer.draw(scores, rng.random((1, n, 2)), ONE)[0, :, 0]
    grid = np.unique(np.concatenate([np.linspace(-2, 3, 4001), edges(explorer, -2.0, 3.0, centre)]))
    middle = (grid[1:] + grid[:-1]) / 2
    steps = explorer.density(np.repeat(scores, len(middle), axis=0), middle[:, None], ONE) * np.diff(grid)
    below = np.append(0.0, np.cumsum(steps)) / steps.sum()
    assert kolmogorov_smirnov(drawn, lambda a: np.interp(a, grid, below)) < 1.95
    assert drawn.min() >= -2.0
    assert drawn.max() <= 3.0
    assert np.isin(drawn, [-2.0, 3.0]).mean() < 1e-3  # no lump on a bound


@every_dense
def test_two_numbers_are_drawn_with_their_own_centres(explorer):
    rng = np.random.default_rng(8)
    centre = np.array([[0.2, 11.0]] if not isinstance(explorer, Squashed) else [[0.2, -0.7]])
    scores = scores_of(explorer, TWO, centre)
    drawn = explorer.draw(scores, rng.random((1, 40_000, 3)), TWO)[0]
    error = drawn.std(axis=0) / math.sqrt(len(drawn))
    assert np.abs(drawn.mean(axis=0) - explorer.mean(scores, TWO)[0]) == pytest.approx(0, abs=float((4 * error).max()))


@every_dense
@pytest.mark.parametrize("centre", CENTRES)
def test_the_mean_is_that_of_the_density(explorer, centre):
    scores = scores_of(explorer, ONE, np.array([[centre]]))

    def moment(a: np.ndarray) -> np.ndarray:
        return a * explorer.density(np.repeat(scores, len(a), axis=0), a[:, None], ONE)

    total = integral(moment, edges(explorer, -2.0, 3.0, centre))
    assert explorer.mean(scores, ONE)[0, 0] == pytest.approx(total, abs=1e-9)


@every_explorer
@pytest.mark.parametrize("draw", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("centre", [-1e30, *CENTRES, 1e30])
def test_the_smallest_and_the_largest_uniform_stay_within_the_bounds(explorer, centre, draw):
    scores = scores_of(explorer, ONE, np.array([[centre]]))
    for first in (0.0, 0.5, 1.0 - 2.0**-53):
        drawn = explorer.draw(scores, np.array([[[first, draw]]]), ONE)[0]
        assert within(drawn, ONE).all()
        if not isinstance(explorer, Point):
            assert explorer.density(scores, drawn, ONE)[0] >= 0
            assert np.isfinite(explorer.density(scores, drawn, ONE)).all()


@every_explorer
@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_a_row_does_not_depend_on_its_neighbours(explorer, n):
    rng = np.random.default_rng(n)
    box = Numbers(low=(-1.0,) * 5, high=(1.0, 2.0, 3.0, 4.0, 5.0))
    scores = scores_of(explorer, box, rng.normal(size=(n, 5)))
    uniforms = rng.random((n, 3, 6))
    together = explorer.draw(scores, uniforms, box)
    alone = [explorer.draw(scores[i : i + 1], uniforms[i : i + 1], box)[0] for i in range(n)]
    assert np.array_equal(together, np.array(alone))
    if not isinstance(explorer, Point):
        density = explorer.density(scores, together[:, 0], box)
        each = [explorer.density(scores[i : i + 1], together[i : i + 1, 0], box)[0] for i in range(n)]
        assert np.array_equal(density, np.array(each))


@every_explorer
def test_an_action_outside_the_bounds_has_no_density(explorer):
    scores = scores_of(explorer, ONE, np.zeros((2, 1)))
    refusal = SupportError if isinstance(explorer, Point) else DataError
    with pytest.raises(refusal, match="no density" if refusal is SupportError else "row 1: .*outside its bounds"):
        explorer.density(scores, np.array([[0.0], [3.1]]), ONE)


@every_explorer_that_reads_scores
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_by_its_row(explorer, broken):
    scores = scores_of(explorer, ONE, np.zeros((2, 1)))
    scores[1, 0] = broken
    with pytest.raises(DataError, match=r"row 1: .*not finite"):
        explorer.mean(scores, ONE)
    with pytest.raises(DataError, match=r"scores are \[2, 3\]"):
        explorer.draw(np.zeros((2, 3), dtype=np.float32), np.zeros((2, 1, 2)), ONE)


@every_explorer
def test_it_survives_the_wire_and_an_unknown_setting_is_refused(explorer):
    assert msgspec.json.decode(msgspec.json.encode(explorer), type=Explorer) == explorer
    with pytest.raises(msgspec.ValidationError, match="scael"):
        msgspec.convert({**msgspec.to_builtins(explorer), "scael": 2}, Explorer)


# ---- by their numbers


@pytest.mark.parametrize("centre", [-2.0, 0.3, 2.9])
def test_a_gaussian_is_the_truncated_normal(centre):
    explorer = Gaussian(0.2)  # of the width 5
    law = NormalDist(float(np.float32(centre)), 1.0)
    outside, mass = law.cdf(-2.0), law.cdf(3.0) - law.cdf(-2.0)
    action = np.linspace(-2, 3, 41)
    scores = np.full((41, 1), centre, dtype=np.float32)
    want = [law.pdf(a) / mass for a in action.tolist()]
    assert explorer.density(scores, action[:, None], ONE) == pytest.approx(want, rel=1e-12)
    p = np.linspace(0.001, 0.999, 41)
    uniforms = np.stack([np.zeros(41), p], axis=1)[:, None]
    want = [law.inv_cdf(outside + mass * u) for u in p.tolist()]
    assert explorer.draw(scores, uniforms, ONE)[:, 0, 0] == pytest.approx(want, abs=1e-12)


def test_the_inverse_of_the_normal_law_is_that_of_the_standard_library():
    p = np.geomspace(1e-300, 0.5, 5000)
    want = np.array([NormalDist().inv_cdf(one) for one in p.tolist()])
    assert _quantile(p) == pytest.approx(want, rel=1e-14, abs=1e-15)


def test_the_floor_is_the_share_of_the_even_density():
    scores = np.zeros((1, 2), dtype=np.float32) + np.float32([0.0, 12.0])
    action = np.array([[0.4, 13.0]])
    plain, mixed = (Gaussian(0.1, floor).density(scores, action, TWO)[0] for floor in (0.0, 0.2))
    assert mixed == pytest.approx(0.8 * plain + 0.2 / 8.0, rel=1e-14)


def test_the_first_uniform_says_whether_to_explore_evenly():
    scores = np.zeros((1, 1), dtype=np.float32)
    uniforms = np.array([[[0.19, 0.75], [0.2, 0.75]]])
    even, pulled = Gaussian(0.05, 0.2).draw(scores, uniforms, ONE)[0, :, 0]
    assert even == pytest.approx(-2.0 + 5.0 * 0.75)
    assert pulled == pytest.approx(0.25 * NormalDist().inv_cdf(0.75), abs=1e-9)


def test_bounds_that_float32_rounds_do_not_put_an_action_outside():
    box = Numbers(low=(0.0,), high=(0.1,))
    action = np.array([[0.1]], dtype=np.float32)  # 0.10000000149
    assert UniformBox().density(np.zeros((1, 0)), action, box)[0] == pytest.approx(10.0)


@pytest.mark.parametrize("field", [{"scale": 0.0}, {"scale": math.nan}, {"scale": 1e4}, {"scale": 0.1, "floor": 1.1}])
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(DataError, match="must be in"):
        Gaussian(**field)


def test_draws_of_a_decision_are_even_and_differ_by_place_id_and_seed():
    many = np.array([uniform_draws("seed", f"d{i}", 11) for i in range(3000)])
    for column in many.T:
        assert kolmogorov_smirnov(column, lambda u: u) < 1.95
    assert np.abs(np.corrcoef(many.T) - np.eye(11)).max() < 0.08
    assert len({*many.ravel().tolist()}) == many.size
    assert uniform_draws("other", "d0", 3) != uniform_draws("seed", "d0", 3)


def test_draws_of_a_decision_are_these_for_ever():
    assert uniform_draws("s", "d1", 2) == PINNED


PINNED = (0.5568041989118463, 0.675990602694108)
