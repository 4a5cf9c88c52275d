"""torchrl as a peer: steps of its losses and sampling on the same transitions. Commands and answers are JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

told, sys.stdout = sys.stdout, sys.stderr  # what the library prints must not be taken for an answer

from tensordict import TensorDict  # noqa: E402
from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule  # noqa: E402
from torchrl.data import Bounded, LazyTensorStorage, OneHot, TensorDictReplayBuffer  # noqa: E402
from torchrl.modules import MLP, ProbabilisticActor, QValueActor, TanhNormal, ValueOperator  # noqa: E402
from torchrl.objectives import (  # noqa: E402
    DDPGLoss,
    DiscreteCQLLoss,
    DQNLoss,
    IQLLoss,
    SACLoss,
    SoftUpdate,
    TD3BCLoss,
)

HIDDEN = [256, 256]
DISCRETE = ("dqn", "double-dqn", "cql")


def buffer(path: str, batch_size: int, *, discrete: bool) -> Any:
    """The transitions of a file: arrays context, action or numbers, reward, terminal."""
    with np.load(path) as found:
        context = torch.from_numpy(found["context"]).float()
        terminal = torch.from_numpy(found["terminal"]).bool()[:, None]
        action = torch.from_numpy(found["action"] if discrete else found["numbers"])
        if discrete:
            action = torch.nn.functional.one_hot(action.long(), 4)
        rows = TensorDict(
            {
                "observation": context,
                "action": action if discrete else action.float(),
                "next": {
                    "observation": context.roll(-1, 0),
                    "reward": torch.from_numpy(found["reward"]).float()[:, None],
                    "done": terminal,
                    "terminated": terminal,
                },
            },
            batch_size=[len(context)],
        )
    made = TensorDictReplayBuffer(storage=LazyTensorStorage(len(rows)), batch_size=batch_size)
    made.extend(rows)
    return made


def mlp(columns: int, out: int) -> Any:
    return MLP(in_features=columns, out_features=out, num_cells=HIDDEN, activation_class=torch.nn.ReLU)


def loss_of(name: str, columns: int, size: int) -> Any:
    """The loss with the nets of this comparison; size: actions, or numbers."""
    if name in DISCRETE:
        actor = QValueActor(mlp(columns, size), in_keys=["observation"], spec=OneHot(size))
        if name == "cql":
            return DiscreteCQLLoss(actor)
        return DQNLoss(actor, double_dqn=name == "double-dqn", delay_value=True)
    spec = Bounded(-torch.ones(size), torch.ones(size))
    value = ValueOperator(mlp(columns + size, 1), in_keys=["observation", "action"])
    if name in ("ddpg", "td3-bc"):
        net = torch.nn.Sequential(mlp(columns, size), torch.nn.Tanh())
        actor = TensorDictModule(net, in_keys=["observation"], out_keys=["action"])
        if name == "ddpg":
            return DDPGLoss(actor, value, delay_actor=True, delay_value=True)
        return TD3BCLoss(actor, value, action_spec=spec)
    net = torch.nn.Sequential(mlp(columns, 2 * size), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=spec,
        distribution_class=TanhNormal,
        default_interaction_type=InteractionType.RANDOM,
        return_log_prob=False,
    )
    if name == "sac":
        return SACLoss(actor, value, num_qvalue_nets=2)
    states = ValueOperator(mlp(columns, 1), in_keys=["observation"])
    return IQLLoss(actor, value, value_network=states, num_qvalue_nets=2)


def step_of(name: str, rows: Any) -> Callable[[], None]:
    """One step: a minibatch, all losses, their gradients in one pass, Adam, and the slow copies."""
    sample = rows.sample()
    loss: Any = loss_of(name, sample["observation"].shape[1], sample["action"].shape[1])
    loss(sample)
    slow = SoftUpdate(loss, tau=0.005)
    adam = torch.optim.Adam(list(loss.parameters()), lr=3e-4, fused=True)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        sample = rows.sample()
        if name == "td3-bc":  # its actor learns every other time, as in the others
            losses = [loss.qvalue_loss(sample)[0]] + ([loss.actor_loss(sample)[0]] if count % 2 == 0 else [])
        else:
            losses = [value for key, value in loss(sample).items() if key.startswith("loss")]
        adam.zero_grad()
        sum(losses).backward()
        adam.step()
        slow.step()

    return step


def main() -> None:
    torch.set_num_threads(1)
    data: dict[bool, Any] = {}
    built: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked.get("learner", "dqn")
        discrete = name in DISCRETE
        if discrete not in data:
            data[discrete] = buffer(asked["path"], asked["batch_size"], discrete=discrete)
        if name not in built:
            built[name] = step_of(name, data[discrete])
            built[name]()
        work = built[name] if asked["do"] == "steps" else data[discrete].sample
        begun = time.process_time()
        for _ in range(asked["times"]):
            work()
        answer = {"cpu_s": (time.process_time() - begun) / asked["times"]}
        print(json.dumps(answer), file=told, flush=True)


if __name__ == "__main__":
    main()
