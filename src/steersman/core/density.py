"""Explorers of numbers: from the scores of a row to a density on the bounds, and to a draw from it.

All but `Point` have a density: every action within the bounds has one, it integrates to 1 over them, and nothing lies
outside or in a lump on a bound. A draw is a function of D + 1 uniform random numbers: the first one says whether to
explore evenly, the others are one a number of the action. A row never depends on the rows beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct

from steersman.core.decision import Numbers
from steersman.core.errors import DataError, SupportError

Array = np.ndarray

SCALES = (1e-3, 100.0)
"""Below, float32 can not tell the density of an action to four digits; above, the density is even to as many."""

REACH = 4.0
"""Before squashing, numbers lie in [-REACH, REACH]: 0.03% of the bounds' width is left out at each end, where float32
can not tell how far from the bound an action is, and with it not its density."""

LOG_SCALES = (-5.0, 2.0)
"""Logarithms of a learned scale are cut to this range."""

NODES = 64
"""Of the Gauss-Legendre rule for the mean of a squashed number: exact to 1e-9 for every scale that is allowed."""


class UniformBox(Struct, frozen=True, forbid_unknown_fields=True, tag="box", tag_field="kind"):
    """Every action within the bounds with the same density, whatever the scores."""

    def density(self, scores: Array, action: Array, box: Numbers) -> Array:
        """[N] f64."""
        return _even(_shares(action, box), box)

    def draw(self, scores: Array, uniforms: Array, box: Numbers) -> Array:
        """[N, M, D] f64."""
        return _action(uniforms[..., 1:], box)

    def mean(self, scores: Array, box: Numbers) -> Array:
        """[N, D] f64."""
        return _action(np.full((len(scores), len(box.low)), 0.5), box)


class Gaussian(Struct, frozen=True, forbid_unknown_fields=True, tag="gaussian", tag_field="kind"):
    """A normal density around the score, cut off at the bounds and normalised, each number by itself.

    The score is the centre [N, D] in units of the action; one outside the bounds counts as the bound.

    Attributes:
        scale: standard deviation before the cut, in shares of the width of the bounds, in SCALES.
        floor: share of decisions spread evenly over the bounds, in [0, 1], so that every action stays logged.
    """

    scale: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        low, high = SCALES
        if not low <= self.scale <= high:
            raise DataError(
                f"scale is {self.scale:g}, must be in [{low:g}, {high:g}] widths of the bounds",
                hint='for the same density everywhere use kind = "box"',
                field="scale",
            )
        _check_floor(self.floor)

    def density(self, scores: Array, action: Array, box: Numbers) -> Array:
        """[N] f64."""
        centre, share = self._centre(scores, box), _shares(action, box)
        exploit = _product(_cut_density(share, centre, self.scale, 0.0, 1.0)) * _even(share, box)
        return (1.0 - self.floor) * exploit + self.floor * _even(share, box)

    def draw(self, scores: Array, uniforms: Array, box: Numbers) -> Array:
        """[N, M, D] f64."""
        centre = self._centre(scores, box)[:, None]
        exploit = _cut_quantile(uniforms[..., 1:], centre, self.scale, 0.0, 1.0)
        return _action(np.where(uniforms[..., :1] < self.floor, uniforms[..., 1:], exploit), box)

    def mean(self, scores: Array, box: Numbers) -> Array:
        """[N, D] f64."""
        centre = self._centre(scores, box)
        low, high = -centre / self.scale, (1.0 - centre) / self.scale
        pull = (_bell(low) - _bell(high)) / (_below(high) - _below(low))
        return _action((1.0 - self.floor) * (centre + self.scale * pull) + self.floor * 0.5, box)

    def _centre(self, scores: Array, box: Numbers) -> Array:
        _check_scores(scores, len(box.low))
        return np.clip(_linear(scores, box), 0.0, 1.0)


class Squashed(Struct, frozen=True, forbid_unknown_fields=True, tag="squashed", tag_field="kind"):
    """A normal density squashed into the bounds by tanh, with centre and scale from the scorer: what soft actor-critics
    learn.

    action = low + (high - low) (1 + tanh z) / 2 with z normal, cut off at REACH. The scores [N, 2 D] are the centres of
    z and then the logarithms of its scales, cut to REACH and LOG_SCALES.
    Source: Haarnoja et al. 2018, arXiv:1801.01290, appendix C.

    Attributes:
        floor: share of decisions spread evenly over the bounds, in [0, 1].
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def density(self, scores: Array, action: Array, box: Numbers) -> Array:
        """[N] f64."""
        (centre, scale), share = self._parts(scores, box), _shares(action, box)
        inside = (share > 0) & (share < 1)
        within = np.where(inside, share, 0.5)
        z = 0.5 * (np.log(within) - np.log1p(-within))
        inside &= np.abs(z) <= REACH
        each = _cut_density(z, centre, scale, -REACH, REACH) / (2.0 * within * (1.0 - within))
        exploit = _product(np.where(inside, each, 0.0)) * _even(share, box)
        return (1.0 - self.floor) * exploit + self.floor * _even(share, box)

    def draw(self, scores: Array, uniforms: Array, box: Numbers) -> Array:
        """[N, M, D] f64."""
        centre, scale = self._parts(scores, box)
        z = _cut_quantile(uniforms[..., 1:], centre[:, None], scale[:, None], -REACH, REACH)
        exploit = 0.5 * (1.0 + np.tanh(z))
        return _action(np.where(uniforms[..., :1] < self.floor, uniforms[..., 1:], exploit), box)

    def mean(self, scores: Array, box: Numbers) -> Array:
        """[N, D] f64."""
        centre, scale = self._parts(scores, box)
        low = np.maximum(-REACH, centre - 9.0 * scale)
        high = np.minimum(REACH, centre + 9.0 * scale)
        node, weight = np.polynomial.legendre.leggauss(NODES)
        half = (high - low) / 2.0
        total = np.zeros_like(centre)
        for x, w in zip(node.tolist(), weight.tolist(), strict=True):
            z = low + half * (1.0 + x)
            total += w * half * _cut_density(z, centre, scale, -REACH, REACH) * 0.5 * (1.0 + np.tanh(z))
        return _action((1.0 - self.floor) * total + self.floor * 0.5, box)

    def _parts(self, scores: Array, box: Numbers) -> tuple[Array, Array]:
        d = len(box.low)
        _check_scores(scores, 2 * d)
        exact = scores.astype(np.float64)
        return np.clip(exact[:, :d], -REACH, REACH), np.exp(np.clip(exact[:, d:], *LOG_SCALES))


class Point(Struct, frozen=True, forbid_unknown_fields=True, tag="point", tag_field="kind"):
    """The score itself, cut to the bounds, without chance. It has no density: it can be judged by kernel estimators,
    and what it decides can not be logged."""

    def density(self, scores: Array, action: Array, box: Numbers) -> Array:
        """Raises SupportError."""
        raise SupportError(
            "a policy without chance has no density",
            hint='give it an explorer of kind "gaussian", or judge it by kernel estimators',
        )

    def draw(self, scores: Array, uniforms: Array, box: Numbers) -> Array:
        """[N, M, D] f64, the same M times."""
        return np.repeat(self.mean(scores, box)[:, None], uniforms.shape[1], axis=1)

    def mean(self, scores: Array, box: Numbers) -> Array:
        """[N, D] f64."""
        _check_scores(scores, len(box.low))
        return _action(np.clip(_linear(scores, box), 0.0, 1.0), box)


NumbersExplorer = UniformBox | Gaussian | Squashed | Point
"""`density(scores, action, box)`: [N, S] f32 scores, [N, D] actions within the bounds -> [N] f64, per unit of the
action's volume. `draw(scores, uniforms, box)`: [N, M, D + 1] uniforms in [0, 1) -> [N, M, D] f64, M draws a row.
`mean(scores, box)`: [N, D] f64. All raise DataError for scores of another width or that are not finite."""


@dataclass(frozen=True, eq=False)
class Aims:
    """What a policy over numbers would do on N rows: a density a row, or a point.

    Attributes:
        explorer: makes densities of the scores.
        scores: [N, S] f32.
        box: bounds of the actions.
    """

    explorer: NumbersExplorer
    scores: Array
    box: Numbers

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def dense(self) -> bool:
        """Whether the actions have densities."""
        return not isinstance(self.explorer, Point)

    def take(self, rows: Any) -> Aims:
        """Of some rows, as an index of numpy picks them."""
        return Aims(self.explorer, self.scores[rows], self.box)

    def density(self, action: Array) -> Array:
        """[N] f64, of one action a row, [N, D].

        Raises:
            DataError: an action is outside the bounds, or a score is not finite.
            SupportError: the policy is a `Point`.
        """
        return self.explorer.density(self.scores, action, self.box)

    def draws(self, uniforms: Array) -> Array:
        """[N, M, D] f64: M actions a row, a function of uniforms [N, M, D + 1] in [0, 1)."""
        return self.explorer.draw(self.scores, uniforms, self.box)

    def mean(self) -> Array:
        """[N, D] f64."""
        return self.explorer.mean(self.scores, self.box)


def shares(action: Array, box: Numbers) -> Array:
    """[..., D] where in the bounds actions are, in [0, 1]."""
    return np.clip(_linear(action, box), 0.0, 1.0)  # a bound may have been rounded to float32


def volume(box: Numbers) -> float:
    """Of the bounds: the product of their widths."""
    return math.prod(high - low for low, high in zip(box.low, box.high, strict=True))


def within(action: Array, box: Numbers) -> Array:
    """[N] bool, whether all numbers of an action [N, D] lie in the bounds, these rounded to float32 as actions are."""
    low, high = np.array(box.low, dtype=np.float32), np.array(box.high, dtype=np.float32)
    return np.asarray(np.all((action >= low) & (action <= high), axis=1))


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise DataError(f"floor is {floor:g}, must be in [0, 1]", field="floor")


def _check_scores(scores: Array, width: int) -> None:
    if scores.ndim != 2 or scores.shape[1] != width:
        raise DataError(f"scores are {list(scores.shape)}, must be [{len(scores)}, {width}]")
    rows = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if rows.size:
        raise DataError(f"row {rows[0]}: a score is not finite ({rows.size} such rows of {len(scores)})")


def _linear(action: Array, box: Numbers) -> Array:
    low, high = np.array(box.low), np.array(box.high)
    return (action.astype(np.float64) - low) / (high - low)


def _shares(action: Array, box: Numbers) -> Array:
    """[N, D] where in the bounds the actions are, 0 to 1. Raises DataError if one is outside."""
    bad = np.flatnonzero(~within(action, box))
    if bad.size:
        raise DataError(f"row {bad[0]}: action {action[bad[0]].tolist()} is outside its bounds", field="action")
    return shares(action, box)


def _action(share: Array, box: Numbers) -> Array:
    low, high = np.array(box.low), np.array(box.high)
    return np.clip(low + (high - low) * share, low, high)  # the product may round beyond the bound


def _even(share: Array, box: Numbers) -> Array:
    """[N] the even density: one over the volume of the bounds."""
    return np.full(len(share), 1.0 / volume(box))


def _product(each: Array) -> Array:
    """[N, D] -> [N], one factor after the other: the same bits for a row whatever stands beside it."""
    product = each[:, 0].copy()
    for d in range(1, each.shape[1]):
        product *= each[:, d]
    return product


# ---- the normal law, cut off


def _cut_density(x: Array, centre: Array, scale: Array | float, low: float, high: float) -> Array:
    """Density at x in [low, high] of a normal law cut off there; the centre is within."""
    mass = _below((high - centre) / scale) - _below((low - centre) / scale)
    return _bell((x - centre) / scale) / (scale * mass)


def _cut_quantile(p: Array, centre: Array, scale: Array | float, low: float, high: float) -> Array:
    """Where the mass below is p, in [0, 1): from whichever tail is nearer, which is where digits are."""
    below, above = _below((low - centre) / scale), _below((centre - high) / scale)
    mass = 1.0 - below - above
    lower, upper = below + p * mass, above + (1.0 - p) * mass
    least = np.finfo(np.float64).tiny
    z = _quantile(np.maximum(np.minimum(lower, upper), least))
    return np.clip(centre + scale * np.where(lower <= upper, z, -z), low, high)


def _bell(z: Array) -> Array:
    return np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


_erfc = np.frompyfunc(math.erfc, 1, 1)


def _below(z: Array) -> Array:
    """Mass of the standard normal law below z. The C library's, one by one: numpy has no erf."""
    return 0.5 * np.asarray(_erfc(-np.asarray(z) / math.sqrt(2.0)), dtype=np.float64)


def _quantile(p: Array) -> Array:
    """Inverse of `_below` for p in (0, 0.5], to 1e-15 of its size.

    Source: Wichura 1988, algorithm AS 241, PPND16: a ratio of polynomials in each of three ranges.
    """
    q = p - 0.5
    z = q * _ratio(0.180625 - q * q, _MIDDLE)
    far = np.flatnonzero(q.ravel() < -0.425)
    if far.size:
        r = np.sqrt(-np.log(p.ravel()[far]))
        tail = np.where(r <= 5.0, _ratio(r - 1.6, _TAIL), _ratio(r - 5.0, _FAR_TAIL))
        flat = z.ravel()
        flat[far] = -tail
        z = flat.reshape(p.shape)
    return z


def _ratio(x: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    top, bottom = (np.full_like(x, part[0]) for part in coefficients)
    for a, b in zip(coefficients[0][1:], coefficients[1][1:], strict=True):
        top, bottom = top * x + a, bottom * x + b
    return top / bottom


_MIDDLE = (
    (2509.0809287301227, 33430.575583588128, 67265.770927008701, 45921.953931549871,
     13731.693765509461, 1971.5909503065514, 133.14166789178438, 3.3871328727963666),
    (5226.4952788528546, 28729.085735721943, 39307.895800092711, 21213.794301586596,
     5394.1960214247511, 687.18700749205791, 42.313330701600911, 1.0),
)  # fmt: skip
_TAIL = (
    (7.7454501427834141e-4, 2.2723844989269185e-2, 2.4178072517745061e-1, 1.2704582524523684,
     3.6478483247632046, 5.7694972214606914, 4.6303378461565453, 1.4234371107496836),
    (1.0507500716444168e-9, 5.4759380849953449e-4, 1.5198666563616457e-2, 1.4810397642748007e-1,
     6.8976733498510000e-1, 1.6763848301838038, 2.0531916266377588, 1.0),
)  # fmt: skip
_FAR_TAIL = (
    (2.0103343992922881e-7, 2.7115555687434876e-5, 1.2426609473880784e-3, 2.6532189526576123e-2,
     2.9656057182850489e-1, 1.7848265399172913, 5.4637849111641144, 6.6579046435011038),
    (2.0442631033899398e-15, 1.4215117583164459e-7, 1.8463183175100547e-5, 7.8686913114561326e-4,
     1.4875361290850615e-2, 1.3692988092273581e-1, 5.9983220655588794e-1, 1.0),
)  # fmt: skip
