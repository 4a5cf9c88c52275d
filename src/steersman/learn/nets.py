"""Nets, the one training step, and the scorer that exports itself. Torch enters the building here, nowhere else."""

from __future__ import annotations

import copy
import importlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from msgspec import Struct
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from steersman.core.batch import Batch
from steersman.core.errors import DataError, TrainingError
from steersman.core.features import Encoder
from steersman.core.policy import Policy
from steersman.learn import Look, Progress
from steersman.learn.returns import Returns

Array = np.ndarray
Tensor = torch.Tensor
no_grad = torch.no_grad
linspace = torch.linspace

REPORT = 100
"""Steps from one report of progress, and one look at whether training diverges, to the next."""

WIDEST = 2**16
"""Width of the widest layer: a damaged file must not ask for more memory than there is."""

PAIRS = 2**16
"""Pairs of row and candidate that are scored at once: bounds the memory of scoring."""


class Shape(Struct, frozen=True, forbid_unknown_fields=True):
    """What a net looks like, as data: enough to build it again.

    Attributes:
        kind: `actions`: one output a named action; `features`: context and candidate go in together; the others are
            linear, see `linear.py`: `bilinear`, and with a bonus `optimist`, or `own-optimist` for named actions.
        context: F, number of context columns.
        candidate: A, number of candidate columns, at least 1.
        hidden: width of each hidden layer, in [1, WIDEST]; empty: a linear net.
        dueling: the value of the context and the advantages of the candidates have outputs of their own, added up.
        atoms: numbers that a candidate's distribution of returns is made of, in [1, WIDEST]; 1: its mean alone.
        support: lowest and highest return: atoms are then logits of returns evenly spaced between them. None: atoms
            are quantiles.
    """

    kind: Literal["actions", "features", "bilinear", "optimist", "own-optimist"]
    context: int
    candidate: int
    hidden: tuple[int, ...]
    dueling: bool = False
    atoms: int = 1
    support: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.context < 0 or self.candidate < 1:
            raise DataError(
                f"the net has {self.context} context and {self.candidate} candidate columns; without a candidate's "
                f"column it can not tell one candidate from another",
                hint="name the actions of the problem, or give the candidates features",
            )
        for width in self.hidden:
            if not 1 <= width <= WIDEST:
                raise DataError(f"a hidden layer has the width {width}, must be in [1, {WIDEST}]", field="hidden")
        if not 1 <= self.atoms <= WIDEST:
            raise DataError(f"atoms is {self.atoms}, must be in [1, {WIDEST}]", field="atoms")
        if self.support is not None and not (-math.inf < self.support[0] < self.support[1] < math.inf):
            raise DataError(f"the support is {self.support}, must be [lowest, highest]", field="support")


class Linear(nn.Linear):
    """A layer that is born without weights: torch would draw them from the generator that everybody shares."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are; `start` draws them."""


class Net(nn.Module):
    """Scores of candidates. Born without weights: `start` draws them, `load_state_dict` brings them."""

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        """[B, F], [B, K, A] -> [B, K]. Candidates that all rows share come once, as [1, K, A]."""
        raise NotImplementedError

    def atoms(self, context: Tensor, candidates: Tensor) -> Tensor:
        """The same, -> [B, K, Z]: what the distribution of each candidate's return is made of; see Shape."""
        raise NotImplementedError

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        """Add the nodes of `forward` to a graph, on the tensors of those names; the name of the [N, K] result."""
        raise NotImplementedError

    def start(self, generator: torch.Generator) -> None:
        """Draw every weight uniformly within 1 / sqrt(inputs of its layer)."""
        for layer in self.modules():
            if isinstance(layer, Linear):
                bound = 1.0 / math.sqrt(max(layer.in_features, 1))
                for weight in layer.parameters(recurse=False):
                    nn.init.uniform_(weight, -bound, bound, generator=generator)


class ActionNet(Net):
    """One output for each named action; a candidate's one-hot picks its own, so actions are known by name."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        outputs = (shape.candidate + shape.dueling) * shape.atoms
        self.layers = _layers((shape.context, *shape.hidden, outputs))

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        if self.shape.atoms > 1:
            return mean_of_atoms(self.shape, self.atoms(context, candidates))
        value = self._duel(self.layers(context)[:, :, None])[:, :, 0]  # [B, A]
        if len(candidates) == 1:
            return nn.functional.linear(value, candidates[0])
        return (value[:, None, :] * candidates).sum(dim=2)

    def atoms(self, context: Tensor, candidates: Tensor) -> Tensor:
        return candidates @ self._duel(self.layers(context).unflatten(1, (-1, self.shape.atoms)))

    def _duel(self, outputs: Tensor) -> Tensor:
        """[B, A + 1, Z] advantages and, last, the value -> [B, A, Z] values of actions."""
        if not self.shape.dueling:
            return outputs
        advantage = outputs[:, :-1]
        return outputs[:, -1:] + advantage - advantage.mean(dim=1, keepdim=True)

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        shape = self.shape
        size = graph.constant([0, shape.candidate + shape.dueling, shape.atoms])
        value = graph.op("Reshape", graph.layers(context, self.layers), size)  # [N, A, Z]
        if shape.dueling:
            advantage, mean = graph.part(value, 1, 0, shape.candidate), graph.constant([1])
            centered = graph.op("Sub", advantage, graph.op("ReduceMean", advantage, mean, keepdims=1))
            value = graph.op("Add", centered, graph.part(value, 1, shape.candidate, shape.candidate + 1))
        return graph.mean_of_atoms(shape, graph.op("MatMul", candidates, value))


class FeatureNet(Net):
    """One net over context and candidate together; its first layer is split, so that a context is multiplied once."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        widths = (*shape.hidden, shape.atoms)
        self.context = Linear(shape.context, widths[0])
        self.candidate = Linear(shape.candidate, widths[0], bias=False)
        self.layers = nn.Sequential(nn.ReLU(), *_layers(widths)) if shape.hidden else nn.Sequential()
        self.value = _layers((shape.context, *widths)) if shape.dueling else None

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        return mean_of_atoms(self.shape, self.atoms(context, candidates))

    def atoms(self, context: Tensor, candidates: Tensor) -> Tensor:
        first = self.context(context)[:, None, :] + self.candidate(candidates)  # [B, K, H]
        own = self.layers(first)
        return own if self.value is None else own + self.value(context)[:, None, :]

    def export(self, graph: Graph, context: str, candidates: str) -> str:
        row = graph.op("Unsqueeze", graph.linear(context, self.context), graph.constant([1]))  # [N, 1, H]
        own = graph.layers(graph.op("Add", row, graph.linear(candidates, self.candidate)), self.layers)
        if self.value is not None:
            own = graph.op("Add", own, graph.op("Unsqueeze", graph.layers(context, self.value), graph.constant([1])))
        return graph.mean_of_atoms(self.shape, own)


def mean_of_atoms(shape: Shape, atoms: Tensor) -> Tensor:
    """[B, K, Z] -> [B, K], the mean returns."""
    if shape.atoms == 1:
        return atoms[:, :, 0]
    if shape.support is None:
        return atoms.mean(dim=2)
    returns = torch.linspace(*shape.support, shape.atoms, dtype=atoms.dtype)
    return (atoms.softmax(dim=2) * returns).sum(dim=2)


NETS = {
    "actions": "steersman.learn.nets:ActionNet",
    "features": "steersman.learn.nets:FeatureNet",
    "bilinear": "steersman.learn.linear:Bilinear",
    "optimist": "steersman.learn.linear:Optimist",
    "own-optimist": "steersman.learn.linear:Optimist",
}
"""Kind of a Shape -> "module:Net"."""


def bare_net(shape: Shape) -> Net:
    """The net of a shape, without weights."""
    module, _, name = NETS[shape.kind].partition(":")
    net: Net = getattr(importlib.import_module(module), name)(shape)
    return net


def _layers(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of those widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def shape_for(
    encoder: Encoder,
    hidden: tuple[int, ...],
    *,
    dueling: bool = False,
    atoms: int = 1,
    support: tuple[float, float] | None = None,
) -> Shape:
    """The net for candidates that are named actions and nothing else, or that have features; see Shape.

    Raises:
        DataError: the candidates have no columns, or a width is out of range.
    """
    kind: Literal["actions", "features"] = "features" if encoder.candidate else "actions"
    return Shape(kind, encoder.context_width, encoder.candidate_width, hidden, dueling, atoms, support)


# rows to tensors


class Minibatch(NamedTuple):
    """B rows as tensors; `next` is the row at which the return stops.

    Attributes:
        context: [B, F] f32.
        taken: [B, 1, A] f32, the candidate that was taken.
        reward: [B] f32, the return, in the units of the training.
        discount: [B] f32, of the value at the next row; 0: the episode is over before it.
        next_context: [B, F] f32.
        next_candidates: [B, K, A] f32, or [1, K, A] if all rows share them.
        next_mask: [B, K] bool.
        next_taken: [B] i64, place of the candidate that was taken at the next row.
        candidates: [B, K, A] f32, or [1, K, A], of the row itself.
        mask: [B, K] bool, of the row itself.
    """

    context: Tensor
    taken: Tensor
    reward: Tensor
    discount: Tensor
    next_context: Tensor
    next_candidates: Tensor
    next_mask: Tensor
    next_taken: Tensor
    candidates: Tensor
    mask: Tensor


def gatherer(batch: Batch, returns: Returns, unit: float) -> Callable[[Array], Minibatch]:
    """A function from places in `returns` [B] to their Minibatch. It copies those rows and no others.

    Args:
        unit: rewards are divided by it.
    """
    reward = (returns.reward / unit).astype(np.float32)
    discount = returns.discount.astype(np.float32)
    shared = batch.candidates[:1].copy() if _shared(batch.candidates) else None

    def gather(places: Array) -> Minibatch:
        row, until = returns.row.take(places), returns.until.take(places)
        action = _rows(batch.action, row)
        taken = batch.candidates[row, action] if shared is None else shared[0].take(action, axis=0)
        arrays = (
            _rows(batch.context, row),
            taken[:, None],
            reward.take(places),
            discount.take(places),
            _rows(batch.context, until),
            _rows(batch.candidates, until) if shared is None else shared,
            _rows(batch.mask, until),
            _rows(batch.action, until),
            _rows(batch.candidates, row) if shared is None else shared,
            _rows(batch.mask, row),
        )
        return Minibatch(*map(torch.from_numpy, arrays))

    return gather


def _rows(array: Array, rows: Array) -> Array:
    """Copies of some rows: `take` is five times as fast as indexing, but copies the whole of a view before."""
    return array.take(rows, axis=0) if array.flags.c_contiguous else array[rows]


def _shared(candidates: Array) -> bool:
    """Whether all rows are one row in memory."""
    return candidates.strides[0] == 0


def pick(candidates: Tensor, place: Tensor) -> Tensor:
    """One candidate a row.

    Args:
        candidates: [B, K, A], or [1, K, A] that all rows share.
        place: [B] i64.
    Returns:
        [B, 1, A].
    """
    if len(candidates) == 1:
        return candidates[0, place][:, None]
    return candidates[torch.arange(len(place)), place][:, None]


# training


def generator(seed: int) -> torch.Generator:
    """The source of every random number of one training: nobody else draws from it, so the seed decides."""
    return torch.Generator().manual_seed(seed)


def new_net(shape: Shape, source: torch.Generator) -> Net:
    """A net with freshly drawn weights, f32."""
    net = bare_net(shape)
    net.start(source)
    return net


def cosine(first: float, last: float, steps: int) -> Callable[[int], float]:
    """A learning rate that falls from `first` to `last` along half a cosine: a function of the steps done.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """
    return lambda done: last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * done / steps))


def squared(value: Tensor, target: Tensor) -> Tensor:
    """Mean squared error: the only one of the usual losses whose best answer is the mean.

    Huber's loss answers a value between mean and median: where one session in ten ends at random, it learns a
    value ten times too high.
    """
    return nn.functional.mse_loss(value, target)


class Student:
    """A net that learns by Adam, and its slow copy.

    All weights lie in one vector, which the layers see parts of: a step is then a handful of operations, however
    many layers there are.

    Attributes:
        net: learns with every step.
        slow: its exponential average, for targets that must not run away with what is learned.
    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """

    MEAN, SQUARE, TINY = 0.9, 0.999, 1e-8

    def __init__(self, net: Net, rate: Callable[[int], float], polyak: float) -> None:
        """Flatten the net, and copy it.

        Args:
            rate: learning rate, a function of the steps done.
            polyak: share of the net that its slow copy takes over at every step, in (0, 1].
        """
        self.net = net
        self.slow = copy.deepcopy(net)
        self._rate = rate
        self._polyak = polyak
        self._done = 0
        self._weights, self._gradient = _flatten(self.net)
        self._slow, _ = _flatten(self.slow)
        self.slow.requires_grad_(False)
        self._mean = torch.zeros_like(self._weights)
        self._square = torch.zeros_like(self._weights)

    def step(self, loss: Tensor) -> None:
        """The one training step: against the gradient of the loss, then the slow copy follows."""
        self._gradient.zero_()
        loss.backward()
        rate = self._rate(self._done)
        self._done += 1
        with no_grad():
            self._mean.lerp_(self._gradient, 1.0 - self.MEAN)
            self._square.mul_(self.SQUARE).addcmul_(self._gradient, self._gradient, value=1.0 - self.SQUARE)
            spread = (self._square / (1.0 - self.SQUARE**self._done)).sqrt_().add_(self.TINY)
            self._weights.addcdiv_(self._mean, spread, value=-rate / (1.0 - self.MEAN**self._done))
            self._slow.lerp_(self._weights, self._polyak)


def _flatten(net: Net) -> tuple[Tensor, Tensor]:
    """Move the weights of a net into one vector and their gradients into another; its layers keep views of both."""
    parameters = list(net.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    weights = torch.cat([parameter.detach().flatten() for parameter in parameters])
    gradient = torch.zeros_like(weights)
    for parameter, weight, slope in zip(parameters, weights.split(sizes), gradient.split(sizes), strict=True):
        parameter.data, parameter.grad = weight.view_as(parameter), slope.view_as(parameter)
    return weights, gradient


def minibatches(rows: int, size: int, steps: int, source: torch.Generator) -> Iterator[Array]:
    """`steps` times `size` places in [0, rows), drawn with replacement."""
    for start in range(0, steps, REPORT):
        yield from torch.randint(rows, (min(REPORT, steps - start), size), generator=source).numpy()


@dataclass(frozen=True)
class Watch:
    """Looks at values while they are learned.

    Attributes:
        unit: of reward, that a learned value of 1 stands for.
        limit: largest |value| that is not a divergence, in units of reward.
        reason: what the limit comes from, for the error.
    """

    unit: float
    limit: float
    reason: str

    def __call__(self, done: int, loss: Tensor, value: Tensor) -> dict[str, float]:
        """Figures of a step: `loss`; `q` and `q_largest`, mean and largest |value| of the rows, in units of reward.

        Raises:
            TrainingError: the loss is not finite, or a value is beyond the limit.
        """
        found, largest = float(loss) * self.unit**2, float(value.abs().max()) * self.unit
        if not math.isfinite(found) or not largest <= self.limit:
            raise TrainingError(
                f"step {done}: the loss is {found:.4g} and the largest |value| {largest:.4g}; "
                f"the limit is {self.limit:.4g}, {self.reason}",
                hint="training diverges: lower learning_rate, polyak or discount",
            )
        return {"loss": found, "q": float(value.mean()) * self.unit, "q_largest": largest}


def train(
    update: Callable[[Array], tuple[Tensor, Tensor]],
    draws: Iterator[Array],
    steps: int,
    watch: Watch,
    progress: Progress | None,
) -> None:
    """The loop around the steps: draws, updates, looks, reports.

    Args:
        update: places of a minibatch [B] -> its loss and its values [B]; it makes the step.
        draws: places of one minibatch after the other, `steps` of them.
        progress: told every REPORT steps and at the end: loss, q, steps/s.
    Raises:
        TrainingError: the training diverges.
    """
    begun = time.perf_counter()
    with one_thread():
        for done, places in enumerate(draws, start=1):
            loss, value = update(places)
            if done % REPORT == 0 or done == steps:
                figures = watch(done, loss.detach(), value.detach())
                if progress is not None:
                    progress(done, steps, figures | {"steps/s": done / (time.perf_counter() - begun)})


def looking(progress: Progress | None, look: Look | None, now: Callable[[], Policy]) -> Progress | None:
    """Both as one.

    Args:
        now: gives the policy as it is.
    """
    if look is None:
        return progress

    def both(done: int, steps: int, figures: dict[str, float]) -> None:
        if progress is not None:
            progress(done, steps, figures)
        look(done, steps, figures, now)

    return both


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread meanwhile: nets this small lose more by waiting for a second one than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# the scorer


class TorchScorer:
    """A net as the scorer of a policy. It computes in float64, and so does the graph that it exports.

    Two float32 matrix products that add in a different order differ by 2e-5 on scores around 100, more than a
    graph may differ from its policy; in float64 scores come out the same whoever adds, and in batches of any size.
    For nets of this size it costs next to nothing.
    """

    def __init__(self, shape: Shape, weights: Mapping[str, Array], unit: float) -> None:
        """Build the net and give it its weights.

        Args:
            weights: name -> array, as `weights()` gives them.
            unit: of reward: scores are the net's outputs times this.
        Raises:
            DataError: the weights are not those of such a net, or the unit is not above 0.
        """
        if not 0 < unit < math.inf:
            raise DataError(f"the unit of the scores is {unit:g}, must be above 0", field="unit")
        self.shape = shape
        self.unit = unit
        with torch.device("meta"):  # no memory yet: a damaged shape must not ask for all of it
            self._net = bare_net(shape)
        _check_weights(weights, {name: tuple(want.shape) for name, want in self._net.state_dict().items()})
        state = {name: torch.from_numpy(array.astype(np.float64)) for name, array in weights.items()}
        self._net.load_state_dict(state, assign=True)
        self._net.requires_grad_(False)

    @classmethod
    def of(cls, shape: Shape, net: Net, unit: float) -> TorchScorer:
        """The scorer of a net that has learned."""
        return cls(shape, {name: tensor.numpy() for name, tensor in net.state_dict().items()}, unit)

    def weights(self) -> dict[str, Array]:
        """Name -> array f64."""
        return {name: tensor.numpy() for name, tensor in self._net.state_dict().items()}

    def __call__(self, context: Array, candidates: Array) -> Array:
        """[N, F] f32, [N, K, A] f32 -> [N, K] f32, in units of reward; in parts, so that N may be large."""
        n, k = candidates.shape[:2]
        scores = np.empty((n, k), dtype=np.float32)
        shared = _float64(candidates[:1]) if n and _shared(candidates) else None
        rows = max(1, PAIRS // max(k, 1))
        with no_grad(), one_thread():
            for start in range(0, n, rows):
                part = slice(start, start + rows)
                given = _float64(candidates[part]) if shared is None else shared
                scores[part] = self._net(_float64(context[part]), given).numpy() * self.unit
        return scores

    def atoms(self, context: Array, candidates: Array) -> Array:
        """[N, F] f32, [N, K, A] f32 -> [N, K, Z] f32: the distribution of each candidate's return; see Shape.

        Quantiles in units of reward, in no order; or probabilities of returns evenly spaced over the support.
        """
        with no_grad(), one_thread():
            found = self._net.atoms(_float64(context), _float64(candidates))
        return (found * self.unit if self.shape.support is None else found.softmax(dim=2)).numpy().astype(np.float32)

    def to_onnx(self) -> bytes:
        """ONNX with the inputs `context` [N, F] f32 and `candidates` [N, K, A] f32 and the output `scores` [N, K] f32.

        The same weights give the same bytes.
        """
        graph = Graph()
        context, candidates = (graph.op("Cast", name, to=TensorProto.DOUBLE) for name in ("context", "candidates"))
        value = self._net.export(graph, context, candidates)
        scaled = graph.op("Mul", value, graph.constant(self.unit))
        graph.nodes.append(helper.make_node("Cast", [scaled], ["scores"], to=TensorProto.FLOAT))
        sizes: dict[str, list[Any]] = {
            "context": ["N", self.shape.context],
            "candidates": ["N", "K", self.shape.candidate],
            "scores": ["N", "K"],
        }
        *inputs, output = (helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items())
        made = helper.make_graph(graph.nodes, "scorer", inputs, [output], initializer=graph.constants)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return model.SerializeToString(deterministic=True)


def scorer_of(policy: Policy) -> TorchScorer:
    """The scorer of a policy that a learner made.

    Raises:
        DataError: no learner made it.
    """
    if not isinstance(policy.scorer, TorchScorer):
        kind = getattr(policy.scorer, "__name__", type(policy.scorer).__name__)
        raise DataError(f"no learner made the scorer of this policy: it is {kind}, not a net of ours")
    return policy.scorer


class Graph:
    """Nodes and constants of an ONNX graph, named by their count."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Add a constant: i64 from whole numbers, f64 from others; its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value), name))
        return name

    def part(self, tensor: str, axis: int, start: int, end: int) -> str:
        """Add a slice [start, end) of an axis; the name of its output."""
        return self.op("Slice", tensor, *map(self.constant, ([start], [end], [axis])))

    def mean_of_atoms(self, shape: Shape, atoms: str) -> str:
        """Add the nodes of `mean_of_atoms`; the name of the [N, K] result."""
        last = self.constant([2])
        if shape.atoms == 1:
            return self.op("Squeeze", atoms, last)
        if shape.support is None:
            return self.op("ReduceMean", atoms, last, keepdims=0)
        returns = self.constant(np.linspace(*shape.support, shape.atoms))
        return self.op("ReduceSum", self.op("Mul", self.op("Softmax", atoms, axis=2), returns), last, keepdims=0)

    def linear(self, tensor: str, layer: nn.Linear) -> str:
        """Add a linear layer over the last axis; the name of its output."""
        product = self.op("MatMul", tensor, self.constant(layer.weight.numpy().T))
        return product if layer.bias is None else self.op("Add", product, self.constant(layer.bias.numpy()))

    def layers(self, tensor: str, layers: nn.Sequential) -> str:
        """Add linear layers and ReLUs; the name of the last output."""
        for layer in layers:
            tensor = self.linear(tensor, layer) if isinstance(layer, nn.Linear) else self.op("Relu", tensor)
        return tensor


def _float64(array: Array) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))


def _check_weights(weights: Mapping[str, Array], want: dict[str, tuple[int, ...]]) -> None:
    have = {name: array.shape for name, array in weights.items()}
    if have != want:
        raise DataError(f"the weights are {have}, the net needs {want}")
    for name, array in weights.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise DataError(f"the weights {name} are {array.dtype}, must be finite floats")
