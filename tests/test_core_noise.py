"""Noise is what its key says: the same in NumPy and in torch, from any place, in any process."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from served import LIGHT_ENCODER
from steersman.core.decision import Candidate
from steersman.core.errors import DataError
from steersman.core.noise import Noise, pairs, quantiles
from steersman.flow import perturbing
from steersman.learn import evolution as es
from steersman.models import parameters
from steersman.models.graph import Graph
from steersman.models.onnx import compose

GOLDEN = [
    ("00000000000000000000000000000000", 0, 1),
    ("00000000000000000000000000000000", 1, 1000),
    ("000102030405060708090a0b0c0d0e0f", 2**64 - 1, 142),
    ("ffffffffffffffffffffffffffffffff", 0x243F6A8885A308D2, 65),
    ("8d3f1c77e2a94b06a5c07f1e93b264d8", 1234567890123456789, 100_001),
]
HASHES: dict[str, list[str]] = {
    "signs": ["e00e5eb9444182f3", "95e7a585d1f6cb7f", "02a6fca37fd8d3d8", "4eb29dfbffcb9458", "bce81055638349c0"],
    "normals": ["a3a35865926b50f4", "ab35f270da9e3510", "365b3b40bc942e25", "e3429e3af03288b3", "78de1980aea76b38"],
}
"""First 16 digits of the SHA-256 of the float32, little-endian. A log that was written lives by them: never change."""

MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
MASK = 2**32 - 1


def signed(number: int) -> int:
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


def shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & (2 ** (64 - bits) - 1)  # torch shifts with the sign


def product(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 64 bits of an unsigned product, in halves of 32 bits."""
    a1, a0, b1, b0 = shifted(a, 32), a & MASK, b >> 32, b & MASK
    low, mid1, mid2 = a0 * b0, a1 * b0, a0 * b1
    carry = shifted(low, 32) + (mid1 & MASK) + (mid2 & MASK)
    return a1 * b1 + shifted(mid1, 32) + shifted(mid2, 32) + shifted(carry, 32), a * signed(b)


def philox(counter: list[torch.Tensor], key: tuple[int, int]) -> torch.Tensor:
    """Philox4x64-10 by its paper, in torch: [B, 4]."""
    x = counter
    for _ in range(10):
        high0, low0 = product(x[0], MULTIPLIERS[0])
        high1, low1 = product(x[2], MULTIPLIERS[1])
        x = [high1 ^ x[1] ^ signed(key[0]), low1, high0 ^ x[3] ^ signed(key[1]), low0]
        key = ((key[0] + WEYL[0]) % 2**64, (key[1] + WEYL[1]) % 2**64)
    return torch.stack(x, dim=1)


def in_torch(kind: str, run: str, key: int, size: int) -> torch.Tensor:
    """The definition again, without NumPy's generator."""
    per_word = 64 if kind == "signs" else 4
    blocks = torch.arange(1, 2 + size // (4 * per_word))
    of_run = bytes.fromhex(run)
    words = philox(
        [blocks, torch.full_like(blocks, signed(key & ~1)), torch.zeros_like(blocks), torch.zeros_like(blocks)],
        (int.from_bytes(of_run[:8], "little"), int.from_bytes(of_run[8:], "little")),
    ).reshape(-1, 1)
    if kind == "signs":
        found = ((shifted_all(words, torch.arange(64)) & 1) * 2 - 1).to(torch.float32)
    else:
        found = torch.tensor(quantiles())[shifted_all(words, torch.arange(0, 64, 16)) & 0xFFFF]
    return found.reshape(-1)[:size] * (-1 if key & 1 else 1)


def shifted_all(words: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    return words >> bits  # what comes in with the sign is masked away by who asks


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()[:16]


def test_the_words_are_those_of_the_paper() -> None:
    # Random123, kat_vectors: philox 4x64 10, counter 0, key 0
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    zero = torch.zeros(1, dtype=torch.int64)
    assert philox([zero] * 4, (0, 0))[0].tolist() == [signed(word) for word in known]


@pytest.mark.parametrize("kind", ["signs", "normals"])
def test_noise_has_its_golden_hashes_in_numpy_and_in_torch(kind: str) -> None:
    for (run, key, size), golden in zip(GOLDEN, HASHES[kind], strict=True):
        assert digest(getattr(Noise(bytes.fromhex(run)), kind)(key, size)) == golden
        assert digest(in_torch(kind, run, key, size).numpy()) == golden


def of_size(size: int) -> Graph:
    """A graph to serve with so many parameters, which all count."""
    constants = [numpy_helper.from_array(np.zeros(size, dtype=np.float32), "all")]
    constants += [numpy_helper.from_array(np.array([axis]), f"axis {axis}") for axis in (0, 2)]
    nodes = [
        helper.make_node("ReduceSum", ["all", "axis 0"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["candidates", "axis 2"], ["each"], keepdims=0),
        helper.make_node("Mul", ["each", "total"], ["scores"]),
    ]
    inputs, output = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("candidates", ["N", "K", 2]), ("scores", ["N", "K"]))
    )
    scorer = helper.make_graph(nodes, "sum", [inputs], [output], initializer=constants)
    opset = helper.make_opsetid("", 20)
    data = helper.make_model(scorer, opset_imports=[opset], ir_version=10).SerializeToString()
    return Graph(parameters.opened(compose(LIGHT_ENCODER, data), np.zeros(size)))


@pytest.mark.parametrize("kind", ["signs", "normals"])
def test_a_served_copy_has_the_golden_noise(kind: Any) -> None:
    for (run, key, size), golden in zip(GOLDEN, HASHES[kind], strict=True):
        nothing = np.full(size, -0.0)  # what is added to it keeps the sign of a 0, too
        search = es.begin(es.Settings(es.OpenES(), noise=kind, sigma=1.0), nothing, bytes.fromhex(run))
        copy = perturbing.copy_of(search, of_size(size), key)
        assert digest(copy.row) == golden
        candidates, ids = LIGHT_ENCODER.raw_candidates([(Candidate("off"), Candidate("on"))], 2)
        scores = copy(LIGHT_ENCODER.raw_context([{"lux": 1.0}]), candidates, ids)
        assert scores[0] == pytest.approx(in_torch(kind, run, key, size).sum().item(), rel=1e-4, abs=0.1)


@given(st.integers(0, 2**64 - 1), st.integers(0, 5000), st.integers(0, 600), st.sampled_from(["signs", "normals"]))
def test_noise_is_read_from_any_place(key: int, offset: int, size: int, kind: str) -> None:
    read = getattr(Noise(b"sixteen bytes ok"), kind)
    assert np.array_equal(read(key, size, offset), read(key, offset + size)[offset:])
    assert np.array_equal(read(key ^ 1, size, offset), -read(key, size, offset))


def test_normals_are_normal() -> None:
    table = quantiles().astype(np.float64)
    assert table.mean() == 0.0
    assert abs(np.mean(table**2) - 1) < 1e-4
    assert abs(np.mean(table**4) - 3) < 5e-3
    assert np.abs(table).max() < 4.5
    assert np.all(np.diff(table) >= 0)
    found = Noise(bytes(16)).normals(2, 400_000).astype(np.float64)
    # five standard errors, and neighbors know nothing of each other
    assert abs(found.mean()) < 5 / np.sqrt(len(found))
    assert abs(found.var() - 1) < 5 * np.sqrt(2 / len(found))
    assert abs(np.mean(found[1:] * found[:-1])) < 5 / np.sqrt(len(found))


def test_keys_and_runs_do_not_share_noise() -> None:
    read = {(run, key): Noise(bytes([run] * 16)).signs(key, 4096) for run in range(4) for key in range(0, 64, 2)}
    rows = np.array(list(read.values()), dtype=np.float64)
    cosines = (rows @ rows.T) / 4096
    assert np.abs(cosines - np.eye(len(rows))).max() < 6 / np.sqrt(4096)


def test_factors_are_signs_and_mirrored() -> None:
    shapes = [(5, 7), (5,), (3, 5), (3,)]
    noise = Noise(bytes(16))
    flat = noise.signs(8, 5 + 7 + 5 + 3 + 5 + 3)
    even, odd = list(noise.factors(8, shapes)), list(noise.factors(9, shapes))
    assert np.array_equal(np.concatenate([part for parts in even for part in parts]), flat)
    for one, other in zip(even, odd, strict=True):
        assert np.array_equal(one[0], -other[0])
        assert all(np.array_equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))
    with pytest.raises(DataError, match="matrices and vectors"):
        list(noise.factors(8, [(2, 3, 4)]))


def test_two_processes_never_draw_a_key_twice() -> None:
    script = "import os; from steersman.core.noise import pairs; print(*pairs(os.urandom(8 * 10_000)))"
    drawn: list[str] = []
    for _ in range(2):
        drawn += subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.split()
    assert len(drawn) == len(set(drawn)) == 40_000


def test_what_is_no_key_or_run_is_refused() -> None:
    with pytest.raises(DataError, match="15 bytes"):
        Noise(bytes(15))
    with pytest.raises(DataError, match="not in"):
        Noise(bytes(16)).signs(2**64, 3)
    with pytest.raises(DataError, match="8 for each pair"):
        pairs(bytes(7))
