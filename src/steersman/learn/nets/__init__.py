"""Nets, the one training step, and the scorer that exports itself. Torch enters the building here, nowhere else."""

from steersman.learn.nets.actors import Actor, Critics, Scalar, beside, stacked
from steersman.learn.nets.draws import drawn_head, last_hidden
from steersman.learn.nets.filtered import NEVER, Filtered, likely
from steersman.learn.nets.kinds import NETS
from steersman.learn.nets.modules import Net, Tensor, pick
from steersman.learn.nets.numbers import (
    NumberRows,
    drawn,
    jitter,
    log_density,
    number_gatherer,
    overshoot,
    point,
    scaling,
)
from steersman.learn.nets.processes import device_of, joined, wait
from steersman.learn.nets.scorer import PAIRS, TorchScorer, scorer_of
from steersman.learn.nets.shape import WIDEST, Shape, actor_shape, shape_for
from steersman.learn.nets.student import Draws, Generator, State, Student, generator, rand, shuffled
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
    "Draws",
    "Filtered",
    "Generator",
    "Minibatch",
    "Net",
    "NumberRows",
    "Scalar",
    "Shape",
    "State",
    "Student",
    "Tensor",
    "TorchScorer",
    "Twins",
    "Watch",
    "actor_shape",
    "beside",
    "cosine",
    "cross_entropy",
    "device_of",
    "drawn",
    "drawn_head",
    "from_numpy",
    "gatherer",
    "generator",
    "jitter",
    "joined",
    "last_hidden",
    "likely",
    "linspace",
    "log_density",
    "looking",
    "new_net",
    "no_grad",
    "number_gatherer",
    "one_thread",
    "overshoot",
    "pick",
    "point",
    "rand",
    "scaling",
    "scorer_of",
    "shape_for",
    "shuffled",
    "squared",
    "stacked",
    "train",
    "wait",
]
