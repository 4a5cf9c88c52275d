"""d3rlpy as a peer: gradient steps and sampling on the same transitions. Commands and answers are lines of JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch

os.environ["D3RLPY_LOG_LEVEL"] = "ERROR"
told, sys.stdout = sys.stdout, sys.stderr  # what the library prints must not be taken for an answer

import d3rlpy  # noqa: E402

HIDDEN = [256, 256]
DISCRETE = {"dqn": "DQNConfig", "double-dqn": "DoubleDQNConfig", "cql": "DiscreteCQLConfig"}
NUMBERS = {"ddpg": "DDPGConfig", "td3-bc": "TD3PlusBCConfig", "sac": "SACConfig", "iql": "IQLConfig"}


def dataset(path: str, *, discrete: bool) -> Any:
    """The transitions of a file: arrays context, action or numbers, reward, terminal."""
    with np.load(path) as found:
        return d3rlpy.dataset.MDPDataset(
            found["context"],
            found["action"][:, None] if discrete else found["numbers"],
            found["reward"][:, None],
            found["terminal"],
            action_space=d3rlpy.ActionSpace.DISCRETE if discrete else d3rlpy.ActionSpace.CONTINUOUS,
        )


def learner(name: str, batch_size: int) -> Any:
    """The algorithm with the nets of this comparison, not yet built."""
    encoder = d3rlpy.models.VectorEncoderFactory(HIDDEN)
    settings: dict[str, Any] = {"batch_size": batch_size}
    if name in DISCRETE:
        settings["encoder_factory"] = encoder
    else:
        settings |= {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder}
        if name == "iql":
            settings["value_encoder_factory"] = encoder
    return getattr(d3rlpy.algos, (DISCRETE | NUMBERS)[name])(**settings).create(device=False)


def main() -> None:
    torch.set_num_threads(1)
    data: dict[bool, Any] = {}
    built: dict[str, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        discrete = asked.get("learner", "dqn") in DISCRETE
        if discrete not in data:
            data[discrete] = dataset(asked["path"], discrete=discrete)
        size = asked["batch_size"]
        if asked["do"] == "steps":
            name = asked["learner"]
            if name not in built:
                built[name] = learner(name, size)
                built[name].build_with_dataset(data[discrete])
                built[name].update(data[discrete].sample_transition_batch(size))
        begun, begun_wall = time.process_time(), time.perf_counter()
        for _ in range(asked["times"]):
            minibatch = data[discrete].sample_transition_batch(size)
            if asked["do"] == "steps":
                built[name].update(minibatch)
        answer = {
            "cpu_s": (time.process_time() - begun) / asked["times"],
            "wall_s": (time.perf_counter() - begun_wall) / asked["times"],
        }
        print(json.dumps(answer), file=told, flush=True)


if __name__ == "__main__":
    main()
