"""Many perturbed copies in one run of their graph: each answers its row with the bits that it gives alone."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from served import LIGHT, LIGHT_ENCODER
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import EpsilonGreedy
from steersman.core.version import Parents, Version
from steersman.learn.nets.kinds import NETS
from steersman.learn.nets.scorer import TorchScorer
from steersman.learn.nets.shape import Shape
from steersman.models import parameters
from steersman.models.graph import Crowd, Graph
from steersman.models.onnx import compose
from steersman.serve.asking import Request, reader
from steersman.serve.decide import same_bits
from steersman.serve.perturbed import Perturbing, checked, decide_by_copies

NAMED = Encoder(context=(Continuous("x", 0.0, 1.0), Continuous("y", 0.0, 1.0)), actions=("a", "b", "c"))
OFFERED = Encoder(
    context=(Continuous("x", 0.0, 1.0),), candidate=(Continuous("p", 0.0, 1.0), Continuous("q", 1.0, 2.0))
)
SHAPES: list[tuple[Encoder, Any]] = [
    (NAMED, {"kind": "actions", "hidden": (8,)}),
    (NAMED, {"kind": "actions", "hidden": (8, 6), "dueling": True}),
    (NAMED, {"kind": "actions", "hidden": (8,), "atoms": 5, "support": (-1.0, 2.0)}),
    (OFFERED, {"kind": "features", "hidden": (8, 6)}),
    (OFFERED, {"kind": "features", "hidden": (8,), "dueling": True}),
    (OFFERED, {"kind": "bilinear", "hidden": ()}),
    (NAMED, {"kind": "arms", "hidden": ()}),
    (OFFERED, {"kind": "feature-draws", "hidden": (8,), "draws": 4}),
]


def opened(encoder: Encoder, shape: Any) -> tuple[bytes, np.ndarray]:
    """A graph with drawn weights, and they."""
    made = Shape(context=encoder.context_width, candidate=encoder.candidate_width, **shape)
    drawn, of = torch.Generator().manual_seed(0), NETS[made.kind](made).double()
    for tensor in of.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=drawn, dtype=torch.float64))
    data = compose(encoder, TorchScorer.of(made, of, 1.0).to_onnx())
    flat = parameters.parameters_of(data).flat
    return parameters.opened(data, flat), flat


@pytest.mark.parametrize(("encoder", "shape"), SHAPES, ids=[f"{shape['kind']}-{len(shape)}" for _, shape in SHAPES])
def test_a_crowd_of_copies_scores_as_each_alone(encoder: Encoder, shape: Any) -> None:
    data, flat = opened(encoder, shape)
    graph, crowd, rng = Graph(data), Crowd(parameters.crowd_of(data)), np.random.default_rng(0)
    copies = [graph.perturbed(flat + rng.normal(size=len(flat))) for _ in range(64)]
    rows = np.stack([copy.row for copy in copies])
    assert same_bits(encoder, encoder.actions or (), copies, lambda some: functools.partial(crowd.scores, rows[some]))
    turned = rows[::-1]  # or the parameters would not matter
    assert not same_bits(
        encoder, encoder.actions or (), copies, lambda some: functools.partial(crowd.scores, turned[some])
    )


def test_a_net_that_uses_its_parameters_otherwise_has_no_crowd() -> None:
    data, _ = opened(NAMED, {"kind": "own-optimist", "hidden": ()})
    assert parameters.crowd_of(data) == b""


def crowded(data: bytes, flat: np.ndarray) -> Perturbing:
    """Half of the units meet one of two copies."""
    graph, crowd = Graph(data), Crowd(parameters.crowd_of(data))

    @functools.cache
    def run(key: int) -> Any:
        return graph.perturbed(flat + np.random.default_rng(key).normal(size=len(flat)))

    def scores(keys: Any, *rows: Any) -> np.ndarray:
        return crowd.scores(np.stack([run(key).row for key in keys]), *rows)

    return Perturbing("seed", 0.5, tuple(range(16)), run, crowd=scores)


def test_decisions_of_a_micro_batch_are_those_of_each_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data, flat = opened(LIGHT_ENCODER, {"kind": "actions", "hidden": (8,)})
    perturbing, graph, calls = crowded(data, flat), Graph(data), []
    assert perturbing.crowd is not None
    real = perturbing.crowd
    counted = replace(perturbing, crowd=lambda keys, *rows: calls.append(len(keys)) or real(keys, *rows))
    version = Version(
        name="light", number=1, digest="", graph="", encoder=LIGHT_ENCODER, explorer=EpsilonGreedy(0.5), seed="s",
        parents=Parents("", "", ""), made_at=0,
    )  # fmt: skip
    read = reader(LIGHT, 10)
    requests: list[Request] = [
        read(f'{{"unit": "u{i}", "context": {{"lux": {i}}}}}'.encode(), lambda i=i: f"d{i}") for i in range(60)
    ]

    def decided(perturbing: Perturbing, requests: list[Request], together: bool) -> Any:
        found, scores = decide_by_copies(perturbing, graph.scores, LIGHT, version, requests, 5, together=together)
        return [(one, score.tobytes()) for one, score in zip(found, scores, strict=True)]

    whole = decided(counted, requests, True)
    assert calls == [sum(one.noise is not None for one, _ in whole)] and 15 < calls[0] < 45
    alone = [one for request in requests for one in decided(perturbing, [request], False)]
    assert whole == alone == decided(replace(perturbing, crowd=None), requests, True)
    assert decided(perturbing, requests, False) == whole and len(calls) == 1  # where rows may not be run together


def test_a_crowd_that_gives_other_bits_is_not_asked() -> None:
    perturbing = crowded(*opened(LIGHT_ENCODER, {"kind": "actions", "hidden": (8,)}))
    crowd = perturbing.crowd
    assert crowd is not None and checked(perturbing, LIGHT_ENCODER, ("off", "on"), True).crowd is crowd
    assert checked(perturbing, LIGHT_ENCODER, ("off", "on"), False).crowd is None
    off = replace(perturbing, crowd=lambda keys, *rows: np.float32(1 + 1e-7) * crowd(keys, *rows))
    assert checked(off, LIGHT_ENCODER, ("off", "on"), True).crowd is None
    assert checked(replace(perturbing, crowd=None), LIGHT_ENCODER, (), True).crowd is None
