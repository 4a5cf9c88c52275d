"""Evaluations of perturbed policies on a Ray cluster: keys go out, returns come back, and the bits stay the same.

A worker gets the world, the search and some keys, and makes the perturbed parameters itself. Ray ships our function by
its name, world and search pickled, between processes that one user started; nothing that was read from a file or from a
client is unpickled. Whoever may write to a Ray cluster may run code on it: keep its ports closed to others.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from steersman.core.errors import ConflictError, MissingExtra, NotFoundError
from steersman.flow import evolving
from steersman.learn import evolution as es

Array = np.ndarray

LOCAL = "local"
"""Instead of an address: a Ray of this machine's cores, which ends with the run."""


REACH_S = 5.0
"""How long the head of a cluster is waited for."""


class Cluster:
    """A Ray cluster that evaluates.

    Attributes:
        cores: that it had when it was joined: into so many parts a batch is cut.
        machines: of them that have evaluated something.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._returns = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_returns)
        self.cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.machines: set[str] = set()

    def __call__(self, game: evolving.Game, search: es.Search, keys: Array, begun: Array) -> Array:
        """See `evolving.Evaluate`.

        Raises:
            ConflictError: a worker failed more often than Ray tries again, or the cluster is gone.
        """
        there = self._ray.put((game, search))
        parts = np.array_split(np.arange(len(begun)), min(self.cores, len(begun)))
        asked = [self._returns.remote(there, keys[part[part < len(keys)]], begun[part]) for part in parts]
        try:
            found = self._ray.get(asked)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()
            raise ConflictError(f"the Ray cluster did not evaluate: {reason[-1] if reason else error!r}") from None
        self.machines |= {machine for machine, _ in found}
        return np.concatenate([returns for _, returns in found])


@contextmanager
def cluster(address: str) -> Iterator[Cluster]:
    """A Ray cluster to evaluate on; what was started for it is ended at the end.

    Args:
        address: HOST:PORT of the head of a running cluster, whose machines have the same Steersman; or `local`.
    Raises:
        MissingExtra: Ray is not installed.
        NotFoundError: no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of every run
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise MissingExtra("ray", "ray") from None
    if address != LOCAL:
        _check_answers(address)
    try:
        if address == LOCAL:
            ray.init(address=LOCAL, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise NotFoundError(f"no Ray cluster at {address}: {error}") from None
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself would ask for some minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, ValueError, OverflowError) as error:
        hint = "ray start --head says its address; or --ray local"
        raise NotFoundError(f"no Ray cluster at {address}: {error}", hint=hint) from None


def _returns(there: tuple[evolving.Game, es.Search], keys: Array, begun: Array) -> tuple[str, Array]:
    """On a worker: the machine, and the returns."""
    ray = importlib.import_module("ray")
    return ray.get_runtime_context().get_node_id(), evolving.evaluate(*there, keys, begun)
