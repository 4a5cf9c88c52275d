"""Policies on disk: a directory with policy.json and weights.npz. Data, never code."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from steersman.core.errors import DataError, NotFoundError
from steersman.core.features import Encoder
from steersman.core.policy import Explorer, Policy
from steersman.engine.disk import appearing, beside, fsync_directory
from steersman.learn.nets import Shape, TorchScorer, scorer_of
from steersman.learn.packed import packed, read_sealed, unpacked, write_sealed
from steersman.learn.sums import Sums

POLICY, WEIGHTS = "policy.json", "weights.npz"


class Stored(Struct, frozen=True, forbid_unknown_fields=True):
    """What policy.json holds.

    Attributes:
        encoder, explorer: of the policy.
        net: of its scorer.
        unit: of reward: scores are the net's outputs times this.
        weights: SHA-256 of weights.npz.
    """

    encoder: Encoder
    explorer: Explorer
    net: Shape
    unit: float
    weights: str


def save(policy: Policy, directory: Path) -> None:
    """Write a policy to a directory, see `steersman.learn.save`."""
    scorer = scorer_of(policy)
    weights = packed(scorer.weights())
    stored = Stored(
        encoder=policy.encoder,
        explorer=policy.explorer,
        net=scorer.shape,
        unit=scorer.unit,
        weights=hashlib.sha256(weights).hexdigest(),
    )
    with beside(directory) as aside:
        whole = aside / "whole"
        with appearing(whole) as files:
            (files / WEIGHTS).write_bytes(weights)
            (files / POLICY).write_bytes(msgspec.json.format(msgspec.json.encode(stored)))
        if directory.exists():
            directory.rename(aside / "before")
        whole.rename(directory)
        fsync_directory(directory.parent)


def load(directory: Path) -> Policy:
    """Read a policy from a directory, see `steersman.learn.load`."""
    try:
        stored = msgspec.json.decode((directory / POLICY).read_bytes(), type=Stored)
        body = (directory / WEIGHTS).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{directory} holds no policy: {error.filename} is not there") from None
    except msgspec.DecodeError as error:
        raise DataError(f"{directory / POLICY} is damaged: {error}") from None
    if hashlib.sha256(body).hexdigest() != stored.weights:
        raise DataError(f"{directory / WEIGHTS} is not the file that was written: its SHA-256 differs")
    weights = unpacked(body, directory / WEIGHTS)
    columns = (stored.encoder.context_width, stored.encoder.candidate_width)
    if columns != (stored.net.context, stored.net.candidate):
        raise DataError(
            f"{directory / POLICY}: the encoder makes {columns[0]} context and {columns[1]} candidate columns, "
            f"the net takes {stored.net.context} and {stored.net.candidate}"
        )
    return Policy(stored.encoder, TorchScorer(stored.net, weights, stored.unit), stored.explorer)


def save_sums(sums: Sums, path: Path) -> None:
    """Write sums to a file, see `steersman.learn.save_sums`."""
    write_sealed(sums, path)


def load_sums(path: Path) -> Sums:
    """Read sums from a file, see `steersman.learn.load_sums`."""
    try:
        return read_sealed(path, hint="train anew")
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there: no sums were kept") from None
