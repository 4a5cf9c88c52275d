"""Policies on disk: a directory with policy.json and weights.npz. Data, never code."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.errors import DataError, NotFoundError
from steersman.core.features import Encoder
from steersman.core.policy import Explorer, Policy
from steersman.engine.disk import replacing
from steersman.learn.nets import Shape, TorchScorer, scorer_of
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
    weights = _packed(scorer.weights())
    stored = Stored(
        encoder=policy.encoder,
        explorer=policy.explorer,
        net=scorer.shape,
        unit=scorer.unit,
        weights=hashlib.sha256(weights).hexdigest(),
    )
    aside = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # of a process with our id that died here
    aside.mkdir(parents=True)
    _write(aside / WEIGHTS, weights)
    _write(aside / POLICY, msgspec.json.format(msgspec.json.encode(stored)))
    _replace(directory, aside)


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
    weights = _unpacked(body, directory / WEIGHTS)
    columns = (stored.encoder.context_width, stored.encoder.candidate_width)
    if columns != (stored.net.context, stored.net.candidate):
        raise DataError(
            f"{directory / POLICY}: the encoder makes {columns[0]} context and {columns[1]} candidate columns, "
            f"the net takes {stored.net.context} and {stored.net.candidate}"
        )
    return Policy(stored.encoder, TorchScorer(stored.net, weights, stored.unit), stored.explorer)


def save_sums(sums: Sums, path: Path) -> None:
    """Write sums to a file, see `steersman.learn.save_sums`: their SHA-256 stands in front."""
    body = _packed(sums)
    with replacing(path) as aside:
        _write(aside, hashlib.sha256(body).digest() + body)


def load_sums(path: Path) -> Sums:
    """Read sums from a file, see `steersman.learn.load_sums`."""
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there: no sums were kept") from None
    digest, body = written[:32], written[32:]
    if hashlib.sha256(body).digest() != digest:
        raise DataError(f"{path} is not the file that was written: its SHA-256 differs", hint="train anew")
    return _unpacked(body, path)


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # names of arrays are no options of savez
    return buffer.getvalue()


def _unpacked(body: bytes, path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no arrays: {error}") from None


def _write(path: Path, body: bytes) -> None:
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _replace(directory: Path, aside: Path) -> None:
    """Put `aside` in the place of the directory; whatever was there before goes away whole."""
    if directory.exists():
        old = aside.with_name(f"{aside.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        aside.rename(directory)
        shutil.rmtree(old)
    else:
        aside.rename(directory)
    parent = os.open(directory.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
