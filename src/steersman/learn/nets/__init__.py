"""Nets, the one training step, and the scorer that exports itself. Torch enters the building here, nowhere else."""

from steersman.learn.nets.filtered import NEVER, Filtered, likely
from steersman.learn.nets.kinds import NETS
from steersman.learn.nets.modules import Net, Tensor
from steersman.learn.nets.processes import device_of, joined, wait
from steersman.learn.nets.scorer import PAIRS, TorchScorer, scorer_of
from steersman.learn.nets.shape import WIDEST, Shape, shape_for
from steersman.learn.nets.student import Draws, State, Student, generator
from steersman.learn.nets.training import (
    REPORT,
    Array,
    Minibatch,
    Watch,
    cosine,
    gatherer,
    linspace,
    looking,
    new_net,
    no_grad,
    one_thread,
    pick,
    squared,
    train,
)

__all__ = [
    "NETS",
    "NEVER",
    "PAIRS",
    "REPORT",
    "WIDEST",
    "Array",
    "Draws",
    "Filtered",
    "Minibatch",
    "Net",
    "Shape",
    "State",
    "Student",
    "Tensor",
    "TorchScorer",
    "Watch",
    "cosine",
    "device_of",
    "gatherer",
    "generator",
    "joined",
    "likely",
    "linspace",
    "looking",
    "new_net",
    "no_grad",
    "one_thread",
    "pick",
    "scorer_of",
    "shape_for",
    "squared",
    "train",
    "wait",
]
