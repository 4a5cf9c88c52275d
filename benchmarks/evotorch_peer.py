"""EvoTorch, pycma and cmaes as peers: golden steps, ask and tell, CartPole. Commands and answers are lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch

told, sys.stdout = sys.stdout, sys.stderr  # what the libraries print must not be taken for an answer

import evotorch  # noqa: E402
import gymnasium as gym  # noqa: E402
from evotorch.algorithms import PGPE  # noqa: E402
from evotorch.distributions import (  # noqa: E402
    ExpSeparableGaussian,
    SymmetricSeparableGaussian,
)
from evotorch.optimizers import ClipUp  # noqa: E402


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def clipup(gradients: list[list[float]], rate: float) -> list[list[float]]:
    """The steps of ClipUp for one gradient after the other."""
    rule = ClipUp(solution_length=len(gradients[0]), dtype=torch.float64, stepsize=rate)
    return [rule.ascent(tensor(gradient)).tolist() for gradient in gradients]


def distribution(kind: str, asked: dict[str, Any]) -> dict[str, list[float]]:
    """Mean and sigma after one batch of SNES, or the gradients of PGPE."""
    make, ranking = {"snes": (ExpSeparableGaussian, "nes"), "pgpe": (SymmetricSeparableGaussian, "centered")}[kind]
    search = make({"mu": tensor(asked["mean"]), "sigma": tensor(asked["sigma"])}, dtype=torch.float64)
    gradients = search.compute_gradients(
        tensor(asked["samples"]), tensor(asked["reward"]), objective_sense="max", ranking_method=ranking
    )
    if kind == "pgpe":
        return {"mean": gradients["mu"].tolist(), "sigma": gradients["sigma"].tolist()}
    rates = {"mu": 1.0, "sigma": asked["sigma_rate"]}
    found = search.update_parameters(gradients, learning_rates=rates)
    return {"mean": found.mu.tolist(), "sigma": found.sigma.tolist()}


def cma(kind: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Mean, scale and covariance of cmaes after each batch."""
    import cmaes

    make = cmaes.CMA if kind == "cma" else cmaes.SepCMA
    search = make(np.array(asked["mean"]), asked["sigma"], population_size=len(asked["batches"][0]["reward"]))
    found = []
    for batch in asked["batches"]:
        rewards = batch["reward"]
        search.tell([(np.array(x), -reward) for x, reward in zip(batch["samples"], rewards, strict=True)])
        found.append(
            {"mean": search._mean.tolist(), "scale": float(search._sigma), "covariance": np.asarray(search._C).tolist()}
        )
    return {"batches": found}


class Sphere(evotorch.Problem):
    """Rewards that cost nothing, so that the time is that of ask and tell."""

    def __init__(self, size: int) -> None:
        super().__init__("max", solution_length=size, initial_bounds=(-0.1, 0.1), dtype=torch.float32)

    def _evaluate_batch(self, solutions: Any) -> None:
        solutions.set_evals(solutions.values[:, 0].clone())


def ask_tell(asked: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of telling one batch, what asking costs, and of both."""
    problem = Sphere(asked["size"])
    search = PGPE(
        problem, popsize=asked["population"], center_learning_rate=0.05, stdev_learning_rate=0.0, stdev_init=0.02,
        optimizer="adam",
    )  # fmt: skip
    search.step()
    tells, both = [], []
    for _ in range(asked["times"]):
        begun = time.process_time()
        search.step()  # tells the batch before, and asks for the next one
        both.append(time.process_time() - begun)
        samples = search.population.access_values(keep_evals=True)
        rewards = torch.as_tensor(search.population.evals[:, 0]).clone().as_subclass(torch.Tensor)
        begun = time.process_time()
        search._distribution.compute_gradients(samples, rewards, objective_sense="max", ranking_method="centered")
        tells.append(time.process_time() - begun)
    return {"tell_s": min(tells), "step_s": min(both)}


def pycma(asked: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of asking and of telling a batch with a diagonal covariance."""
    import cma as library

    options = {"popsize": asked["population"], "CMA_diagonal": True, "verbose": -9, "seed": 1}
    search = library.CMAEvolutionStrategy(np.zeros(asked["size"]), 0.1, options)
    asks, tells = [], []
    for _ in range(asked["times"]):
        begun = time.process_time()
        samples = search.ask()
        asks.append(time.process_time() - begun)
        values = [float(sample[0]) for sample in samples]
        begun = time.process_time()
        search.tell(samples, values)
        tells.append(time.process_time() - begun)
    return {"ask_s": min(asks), "tell_s": min(tells)}


class CartPole(evotorch.Problem):
    """A lane of Gymnasium's vector environment for each member, a net 4-20-2 with tanh, episodes of up to 500 steps."""

    SIZE = 4 * 20 + 20 + 20 * 2 + 2

    def __init__(self, lanes: int) -> None:
        super().__init__("max", solution_length=self.SIZE, initial_bounds=(0.0, 0.0), dtype=torch.float32)
        self.env = gym.make_vec("CartPole-v1", num_envs=lanes, vectorization_mode="vector_entry_point")
        self.steps = 0

    @torch.no_grad()
    def _evaluate_batch(self, solutions: Any) -> None:
        x = solutions.values
        n = len(x)
        first, bias = x[:, :80].reshape(n, 20, 4), x[:, 80:100].reshape(n, 20, 1)
        second, last = x[:, 100:140].reshape(n, 2, 20), x[:, 140:].reshape(n, 2, 1)
        seen, _ = self.env.reset(seed=0)
        alive, score = np.ones(n, dtype=bool), np.zeros(n)
        while alive.any():
            hidden = torch.tanh(torch.baddbmm(bias, first, torch.from_numpy(seen).reshape(n, 4, 1)))
            action = torch.baddbmm(last, second, hidden).argmax(dim=1)[:, 0].numpy()
            seen, _, terminated, truncated, _ = self.env.step(action)
            score += alive
            alive &= ~(terminated | truncated)
        self.steps += int(score.sum())
        solutions.set_evals(torch.from_numpy(score).to(torch.float32))


def cartpole(asked: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of an episode of CartPole for each row of a file, in populations as they were; and steps in all."""
    rows = torch.from_numpy(np.load(asked["path"]))
    problem = CartPole(asked["population"])
    begun = time.process_time()
    for start in range(0, len(rows), asked["population"]):
        batch = evotorch.SolutionBatch(problem, popsize=asked["population"], empty=True)
        batch.set_values(rows[start : start + asked["population"]])
        problem.evaluate(batch)
    return {"cpu_s": time.process_time() - begun, "steps": problem.steps}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to one line."""
    match asked["do"]:
        case "clipup":
            return {"steps": clipup(asked["gradients"], asked["rate"])}
        case "snes" | "pgpe":
            return distribution(asked["do"], asked)
        case "cma" | "sep-cma":
            return cma(asked["do"], asked)
        case "ask-tell":
            return ask_tell(asked)
        case "pycma":
            return pycma(asked)
        case "cartpole":
            return cartpole(asked)
    raise SystemExit(f"no such command: {asked['do']}")


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=told, flush=True)


if __name__ == "__main__":
    main()
