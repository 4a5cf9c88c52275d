"""A policy that nobody trained: a net with random weights, for searches that need no example to begin with."""

from __future__ import annotations

from steersman.core.errors import DataError
from steersman.core.features import Encoder
from steersman.core.policy import Explorer, Policy
from steersman.learn import nets


def policy(encoder: Encoder, hidden: tuple[int, ...], explorer: Explorer, seed: int) -> Policy:
    """See `learn.untrained`."""
    if encoder.numbers is not None:
        raise DataError("a net that nobody trained is for candidates, not for numbers", field="actions")
    shape = nets.shape_for(encoder, hidden)
    net = nets.new_net(shape, nets.generator(seed))
    return Policy(encoder, nets.TorchScorer.of(shape, net, 1.0), explorer)
