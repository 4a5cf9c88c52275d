"""The table of nets: kind of a Shape -> its net."""

from __future__ import annotations

from collections.abc import Callable

from steersman.learn.nets.actors import Actor
from steersman.learn.nets.draws import ActionDraws, Arms, Draws, FeatureDraws
from steersman.learn.nets.filtered import Filtered
from steersman.learn.nets.modules import ActionNet, Bilinear, FeatureNet, Net, Optimist
from steersman.learn.nets.shape import Shape
from steersman.learn.nets.slates import Slate

NETS: dict[str, Callable[[Shape], Net]] = {
    "actions": ActionNet,
    "features": FeatureNet,
    "bilinear": Bilinear,
    "optimist": Optimist,
    "own-optimist": Optimist,
    "filtered-actions": Filtered,
    "filtered-features": Filtered,
    "slate-actions": Slate,
    "slate-features": Slate,
    "arms": Arms,
    "arm-draws": Arms,
    "draws": Draws,
    "action-draws": ActionDraws,
    "feature-draws": FeatureDraws,
    "point": Actor,
    "squashed": Actor,
}
"""Kind of a Shape -> its net, without weights."""
