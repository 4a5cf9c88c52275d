"""CartPole-v1 in NumPy, any number of carts at a time: the equations of Gymnasium's, without a server.

Source: Barto, Sutton and Anderson 1983; the numbers and the order of the steps are those of gymnasium 1.4.
"""

from __future__ import annotations

import math

import numpy as np

from steersman.worlds.episodes import Members

Array = np.ndarray

STEPS = 500
"""Whoever is upright after so many steps has won."""

SOLVED = 475.0
"""The mean return that counts as solved."""

FORCE, GRAVITY, TAU_S = 10.0, 9.8, 0.02
CART_KG, POLE_KG, HALF_POLE_M = 1.0, 0.1, 0.5
LIMIT_M, LIMIT_RAD = 2.4, 12 * 2 * math.pi / 360
_TOTAL_KG, _POLE_KGM = CART_KG + POLE_KG, POLE_KG * HALF_POLE_M


def starts(count: int, rng: np.random.Generator) -> Array:
    """[count, 4] f64: cart position and velocity, pole angle and velocity, each uniform within 0.05 of 0."""
    return rng.uniform(-0.05, 0.05, size=(count, 4))


def step(state: Array, right: Array) -> tuple[Array, Array]:
    """The state a fiftieth of a second later, and who has fallen or left the track.

    Args:
        state: [4, N] f64, a row for each of the four numbers.
        right: [N] bool, pushed to the right; or else to the left.
    Returns:
        [4, N] f64 and [N] bool.
    """
    x, x_speed, angle, speed = state
    sin, cos = np.sin(angle), np.cos(angle)
    force = np.where(right, FORCE, -FORCE)
    push = (force + _POLE_KGM * np.square(speed) * sin) / _TOTAL_KG
    turn = (GRAVITY * sin - cos * push) / (HALF_POLE_M * (4.0 / 3.0 - POLE_KG * np.square(cos) / _TOTAL_KG))
    pull = push - _POLE_KGM * turn * cos / _TOTAL_KG
    after = np.stack([x + TAU_S * x_speed, x_speed + TAU_S * pull, angle + TAU_S * speed, speed + TAU_S * turn])
    return after, (np.abs(after[0]) > LIMIT_M) | (np.abs(after[2]) > LIMIT_RAD)


class Poles:
    """CartPole, a World."""

    inputs, outputs, solved = 4, 2, SOLVED

    def starts(self, count: int, rng: np.random.Generator) -> Array:
        """See `starts`."""
        return starts(count, rng)

    def play(self, members: Members, starts: Array) -> Array:
        """See `World`; who scores left and right alike goes left."""
        rows = np.arange(len(starts))
        returns, state = np.full(len(starts), float(STEPS)), starts.T
        for done in range(1, STEPS):
            scores = members(state.T.astype(np.float32)[:, None, :])[:, 0]
            state, fell = step(state, scores[:, 1] > scores[:, 0])
            if fell.any():  # what fell is asked no more
                returns[rows[fell]] = done
                rows, state, members = rows[~fell], state[:, ~fell], members.only(~fell)
                if not len(rows):
                    break
        return returns
