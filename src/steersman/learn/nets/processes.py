"""Several processes that train one net: each on whole units of its own, their gradients added up.

All gradients of a Student lie in one vector, so one all_reduce a step does what DistributedDataParallel does with
buckets and hooks, without its copies and without a wrapper around the net.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from steersman.core.errors import ConfigError
from steersman.learn.run import Run

Tensor = torch.Tensor


def device_of(run: Run) -> torch.device:
    """Where a training computes; of several processes on one machine each has a GPU of its own.

    Raises:
        ConfigError: cuda is asked for and not there, or has fewer devices than there are processes.
    """
    found = torch.cuda.device_count()
    if run.device == "cpu" or (run.device == "auto" and not found):
        return torch.device("cpu")
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place >= found:
        raise ConfigError(f"this is process {place} of its machine, which has {found} CUDA devices",
                          hint="device = auto or cpu, or fewer processes", field="device")  # fmt: skip
    return torch.device("cuda", place)


@contextmanager
def joined(run: Run) -> Iterator[None]:
    """Meanwhile this process and the others that torchrun started are a group: nccl on GPUs, gloo on CPUs."""
    device = device_of(run)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def together() -> bool:
    """Whether this process is in a group."""
    return distributed.is_initialized()


def wait() -> None:
    """Until every process of the group is here."""
    if together():
        distributed.barrier()


def added(tensor: Tensor) -> Tensor:
    """The sum over the group, in place."""
    if together():
        distributed.all_reduce(tensor)
    return tensor


def mean(values: Tensor, share: float) -> Tensor:
    """Of a minibatch, over all rows that the group has of it.

    Args:
        values: [B] of the rows of this process.
        share: of the minibatch, that they are.
    """
    own = values.mean()
    return added(own * share) if together() else own


def spread(values: Tensor, share: float) -> Tensor:
    """Their standard deviation, from the mean of all of them; arguments as of `mean`."""
    if not together():
        return values.std(correction=0)
    return mean((values - mean(values, share)).square(), share).sqrt()


def largest(tensor: Tensor) -> Tensor:
    """The largest over the group, in place."""
    if together():
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return tensor
