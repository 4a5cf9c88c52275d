"""Nets, the one training step, and the scorer that exports itself. Torch enters the building here, nowhere else."""

from steersman.learn.nets.actors import Actor, Critics, Scalar, beside, stacked
from steersman.learn.nets.densities import Density, Drawn, Taken, led_back, point
from steersman.learn.nets.draws import drawn_head, last_hidden
from steersman.learn.nets.filtered import NEVER, Filtered, likely
from steersman.learn.nets.kinds import NETS
from steersman.learn.nets.lists import ListRows, list_gatherer, list_log_chances
from steersman.learn.nets.modules import Net, Returns, Tensor, kept, of_items, pick
from steersman.learn.nets.numbers import (
    NumberRows,
    jitter,
    number_gatherer,
    number_rows,
    scaling,
)
from steersman.learn.nets.processes import device_of, joined, mean, spread, wait
from steersman.learn.nets.random import Draws, Generator, Noise, generator, places, rand, shuffled
from steersman.learn.nets.scorer import PAIRS, TorchScorer, scorer_of
from steersman.learn.nets.shape import WIDEST, Shape, actor_shape, shape_for
from steersman.learn.nets.slates import Slate, Worth, and_none, best_slate, slate_of, slate_shape, slate_value
from steersman.learn.nets.student import State, Student
from steersman.learn.nets.training import (
    REPORT,
    Array,
    Minibatch,
    Watch,
    cosine,
    cross_entropy,
    from_numpy,
    gatherer,
    linspace,
    looking,
    new_net,
    no_grad,
    one_thread,
    squared,
    train,
)
from steersman.learn.nets.twins import Twins

__all__ = [
    "NETS",
    "NEVER",
    "PAIRS",
    "REPORT",
    "WIDEST",
    "Actor",
    "Array",
    "Critics",
    "Density",
    "Drawn",
    "Draws",
    "Filtered",
    "Generator",
    "ListRows",
    "Minibatch",
    "Net",
    "Noise",
    "NumberRows",
    "Returns",
    "Scalar",
    "Shape",
    "Slate",
    "State",
    "Student",
    "Taken",
    "Tensor",
    "TorchScorer",
    "Twins",
    "Watch",
    "Worth",
    "actor_shape",
    "and_none",
    "beside",
    "best_slate",
    "cosine",
    "cross_entropy",
    "device_of",
    "drawn_head",
    "from_numpy",
    "gatherer",
    "generator",
    "jitter",
    "joined",
    "kept",
    "last_hidden",
    "led_back",
    "likely",
    "linspace",
    "list_gatherer",
    "list_log_chances",
    "looking",
    "mean",
    "new_net",
    "no_grad",
    "number_gatherer",
    "number_rows",
    "of_items",
    "one_thread",
    "pick",
    "places",
    "point",
    "rand",
    "scaling",
    "scorer_of",
    "shape_for",
    "shuffled",
    "slate_of",
    "slate_shape",
    "slate_value",
    "spread",
    "squared",
    "stacked",
    "train",
    "wait",
]
