"""What changes from step to step of a training: Students, nets that learn by Adam; their state, as arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from steersman.core.errors import DataError
from steersman.learn.nets import processes
from steersman.learn.nets.modules import Tensor
from steersman.learn.nets.random import Noise, Part, seed_of

Array = np.ndarray
M = TypeVar("M", bound=nn.Module)
no_grad = torch.no_grad


class Student(Generic[M]):
    """A net that learns by Adam, and its slow copy.

    All weights lie in one vector, which the layers see parts of: a step is then a handful of operations, however
    many layers there are.

    Attributes:
        net: learns with every step.
        slow: its exponential average, for targets that must not run away with what is learned.
        share: of a minibatch, that this process computes the gradient of; `train` says it.
    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """

    MEAN, SQUARE, TINY = 0.9, 0.999, 1e-8

    def __init__(self, net: M, rate: Callable[[int], float], polyak: float) -> None:
        """Flatten the net, and copy it.

        Args:
            rate: learning rate, a function of the steps done.
            polyak: share of the net that its slow copy takes over at every step, in (0, 1].
        """
        self.net = net
        self.slow = copy.deepcopy(net)
        self.share = 1.0
        self._rate = rate
        self._polyak = polyak
        self._done = 0
        self._weights, self._gradient = _flatten(self.net)
        self._parameters = list(self.net.parameters())
        self._slow, _ = _flatten(self.slow)
        self.slow.requires_grad_(False)
        self._mean = torch.zeros_like(self._weights)
        self._square = torch.zeros_like(self._weights)
        self._step = torch.zeros((), device=self._weights.device)

    @property
    def done(self) -> int:
        """Steps."""
        return self._done

    def step(self, loss: Tensor) -> None:
        """The one training step: against the gradient of the loss, then the slow copy follows.

        Other nets that the loss went through stay as they are.
        """
        self._gradient.zero_()
        loss.backward(inputs=self._parameters)
        self.descend()

    @no_grad()
    def descend(self) -> None:
        """The same, against the gradient that its weights have been given."""
        if processes.together():
            processes.added(self._gradient.mul_(self.share))
        self._step.add_(1)
        torch._fused_adam_(
            [self._weights], [self._gradient], [self._mean], [self._square], [], [self._step],
            lr=self._rate(self._done), beta1=self.MEAN, beta2=self.SQUARE, eps=self.TINY,
            weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip
        self._done += 1
        self._slow.lerp_(self._weights, self._polyak)

    def arrays(self) -> dict[str, Array]:
        """All that steps change, as copies."""
        vectors = {name: tensor.cpu().numpy().copy() for name, tensor in self._vectors().items()}
        return vectors | {"done": np.array(self._done)}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Go on from there.

        Raises:
            DataError: they are not of such a net.
        """
        for name, tensor in self._vectors().items():
            have = arrays.get(name)
            if have is None or have.dtype != np.float32 or have.shape != tuple(tensor.shape):
                raise DataError(f"{name} is {have if have is None else have.shape}, the net has {tuple(tensor.shape)}")
            tensor.copy_(torch.from_numpy(have))
        self._done = int(arrays["done"])
        self._step.fill_(self._done)

    def _vectors(self) -> dict[str, Tensor]:
        return {"weights": self._weights, "slow": self._slow, "mean": self._mean, "square": self._square}


def _flatten(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Move the weights of a net into one vector and their gradients into another; its layers keep views of both."""
    parameters = list(net.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    weights = torch.cat([parameter.detach().flatten() for parameter in parameters])
    gradient = torch.zeros_like(weights)
    for parameter, weight, slope in zip(parameters, weights.split(sizes), gradient.split(sizes), strict=True):
        parameter.data, parameter.grad = weight.view_as(parameter), slope.view_as(parameter)
    return weights, gradient


class State:
    """All of a training that changes from step to step: its students.

    The random numbers are no part of it: the source begins anew every REPORT steps, by the seed and the steps done. So
    a learner may draw from `noise` as it likes in its steps, and nothing else may outlive one.
    """

    def __init__(self, source: torch.Generator, **students: Student[Any]) -> None:
        """Of a training's generator and, by name, everything that learns."""
        self.noise = Noise(source)
        self.students = students
        self.seed = source.initial_seed()

    def arrays(self, done: int) -> dict[str, Array]:
        """Name -> array, what a training of `done` steps goes on from."""
        found = {"done": np.array(done)}
        for who, student in self.students.items():
            found |= {f"{who}.{name}": array for name, array in student.arrays().items()}
        return found

    def load(self, arrays: Mapping[str, Array]) -> int:
        """Go on from there: the steps done.

        Raises:
            DataError: they are not of such a training.
        """
        for who, student in self.students.items():
            own = {name.removeprefix(f"{who}."): array for name, array in arrays.items() if name.startswith(f"{who}.")}
            student.load(own)
        return int(arrays["done"])

    def begin(self, done: int) -> None:
        """The random numbers of the next steps."""
        self.noise.source.manual_seed(seed_of(self.seed, done, "process 0"))  # the same numbers in every process

    def split(self, part: Part) -> None:
        """Of the next minibatch this process has such a part."""
        self.noise.part = part
        for student in self.students.values():
            student.share = part.share
