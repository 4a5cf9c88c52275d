"""What the outputs of actors of numbers stand for, points or densities, and gradients by these outputs, written out.

A density is that of `core.density.Squashed`: a normal law z within REACH, squashed by tanh. Outputs are cut to their
limits, not squashed: beyond a limit the gradient of what is learned is 0, and one of how far they are beyond it,
squared, leads back to where it is not.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import nn

from steersman.core.density import LOG_SCALES, REACH
from steersman.learn.nets.modules import Tensor

LEAST = 1e-6
"""Of the mass at either end of a density no draw comes from, and so none that float32 could not tell from the end."""


def point(raw: Tensor) -> Tensor:
    """The action [B, D] that outputs mean."""
    return raw.clamp(-1.0, 1.0)


def led_back(raw: Tensor, cut: Tensor, gradient: Tensor) -> Tensor:
    """[B, S] gradient by outputs, from that by what was cut from them.

    Beyond its limit an output has that of the squared distance to it instead: mean over rows of the sum.
    """
    beyond = raw - cut
    return torch.where(beyond == 0, gradient, beyond * (2.0 / len(raw)))


class Density:
    """The densities that outputs [B, 2 D] stand for: D centres of z, then D logarithms of scales."""

    def __init__(self, raw: Tensor) -> None:
        centre, log_scale = raw.chunk(2, dim=1)
        self._raw = raw
        self.centre, self.log_scale = centre.clamp(-REACH, REACH), log_scale.clamp(*LOG_SCALES)
        self.scale = self.log_scale.exp()
        self.ends = (_reach(raw.device) - self.centre) / self.scale  # [2, B, D], in scales
        self.below, top = torch.special.ndtr(self.ends)  # mass of the normal law below -REACH, and below REACH
        self.mass = top - self.below

    def draw(self, uniforms: Tensor) -> Drawn:
        """An action a row, by uniforms [B, D] in [0, 1)."""
        return Drawn(self, uniforms)

    def at(self, action: Tensor) -> Taken:
        """Actions [B, D] in [-1, 1]. One nearer to its bound than REACH allows counts as one there."""
        return Taken(self, action)

    def log(self, z: Tensor, standard: Tensor) -> Tensor:
        """[B] logarithms, per unit of volume of [-1, 1]^D, at z [B, D], which is `standard` scales off its centre."""
        squash = 2.0 * (math.log(2.0) - z - nn.functional.softplus(-2.0 * z))  # log(1 - tanh(z)^2)
        each = -0.5 * standard.square() - self.log_scale - self.mass.log() - squash
        return each.sum(dim=1) - 0.5 * math.log(2.0 * math.pi) * z.shape[1]

    def outputs(self, by_centre: Tensor, by_log_scale: Tensor, by_masses: Tensor) -> Tensor:
        """[B, 2 D] gradient by the outputs.

        Args:
            by_centre, by_log_scale: [B, D], with the masses below the ends as they are.
            by_masses: [2, B, D], by these.
        """
        by_ends = by_masses * _height(self.ends)
        by_centre = by_centre - by_ends.sum(dim=0) / self.scale
        by_log_scale = by_log_scale - (by_ends * self.ends).sum(dim=0)
        cut = torch.cat((self.centre, self.log_scale), dim=1)
        return led_back(self._raw, cut, torch.cat((by_centre, by_log_scale), dim=1))


class Drawn:
    """Actions that were drawn: each moves with its density so that as large a share of the mass stays below it.

    Attributes:
        action: [B, D] in [-1, 1].
        log: [B] logarithm of the density there.
    """

    def __init__(self, density: Density, uniforms: Tensor) -> None:
        self._density, self._uniforms = density, uniforms
        below = (density.below + uniforms * density.mass).clamp(LEAST, 1.0 - LEAST)
        self._standard = torch.special.ndtri(below)
        z = (density.centre + density.scale * self._standard).clamp(-REACH, REACH)
        self.action, self.log = z.tanh(), density.log(z, self._standard)

    def outputs(self, by_action: Tensor, by_log: Tensor) -> Tensor:
        """[B, 2 D] gradient by the outputs, from those by actions [B, D] and by logarithms [B].

        The few draws that LEAST keeps from an end move as if it did not.
        """
        density, by_log = self._density, by_log[:, None]
        by_z = by_action * (1.0 - self.action.square()) + by_log * (2.0 * self.action)
        moved = by_z * density.scale
        by_below = (moved - by_log * self._standard) / _height(self._standard)
        by_top, by_mass = by_below * self._uniforms, by_log / density.mass
        by_masses = torch.stack((by_below - by_top + by_mass, by_top - by_mass))
        return density.outputs(by_z, moved * self._standard - by_log, by_masses)


class Taken:
    """Actions that were taken.

    Attributes:
        log: [B] logarithm of the density there.
    """

    def __init__(self, density: Density, action: Tensor) -> None:
        reach = math.tanh(REACH)
        z = action.clamp(-reach, reach).atanh()
        self._density, self._standard = density, (z - density.centre) / density.scale
        self.log = density.log(z, self._standard)

    def outputs(self, by_log: Tensor) -> Tensor:
        """[B, 2 D] gradient by the outputs, from that by logarithms [B]."""
        density, by_log = self._density, by_log[:, None]
        by_standard, by_mass = by_log * self._standard, by_log / density.mass
        by_log_scale = by_standard * self._standard - by_log
        return density.outputs(by_standard / density.scale, by_log_scale, torch.stack((by_mass, -by_mass)))


@functools.cache
def _reach(device: torch.device) -> Tensor:
    """[2, 1, 1] the ends of z."""
    return torch.tensor([[[-REACH]], [[REACH]]], device=device)


def _height(standard: Tensor) -> Tensor:
    """Of the normal law."""
    return (standard.square() * -0.5).exp() * (1.0 / math.sqrt(2.0 * math.pi))
