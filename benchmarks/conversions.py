"""Classification data as bandits: an action a class, reward 1 for the right one; learned from the log of a weak policy.

The log: half of its decisions uniform, half those of the nearest class mean on every third column. The error is the
share of held-out rows whose greedy action is not their class, over the same splits for everybody. Numbers are
standardised, skewed ones after the Box-Cox transform that a build would give them; Vowpal Wabbit is given the same
columns and, once more, the numbers standardised only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import vw_peer
from steersman import learn
from steersman.core.batch import Batch
from steersman.core.features import BoxCox, Continuous, Encoder
from steersman.core.profile import LEVELS, Profile
from steersman.timeline.identify import identified, transform

Array = np.ndarray

ROWS = 4_000
"""Most rows of a data set."""

LOSSES = ("mtr", "ips", "dr")
PASSES = (1, 20)

NEURAL = {"hidden": [64], "steps": 500, "draws": 2}


@dataclass(frozen=True, eq=False)
class Classes:
    """Rows with one right action each: numbers [N, F], standardised; the same after transforms; label [N] in [0, K)."""

    plain: Array
    numbers: Array
    label: Array

    @property
    def actions(self) -> int:
        """K."""
        return int(self.label.max()) + 1


def _sklearn(name: str) -> Callable[[], tuple[Array, Array]]:
    def load() -> tuple[Array, Array]:
        from sklearn import datasets

        return getattr(datasets, f"load_{name}")(return_X_y=True)

    return load


def _river(name: str) -> Callable[[], tuple[Array, Array]]:
    def load() -> tuple[Array, Array]:
        from river import datasets

        rows = list(getattr(datasets, name)())
        return np.array([list(row.values()) for row, _ in rows], dtype=float), np.array(
            [str(label) for _, label in rows]
        )

    return load


DATA: dict[str, Callable[[], tuple[Array, Array]]] = {
    "digits": _sklearn("digits"),
    "wine": _sklearn("wine"),
    "iris": _sklearn("iris"),
    "breast_cancer": _sklearn("breast_cancer"),
    "ImageSegments": _river("ImageSegments"),
    "Phishing": _river("Phishing"),
    "Shuttle": _river("Shuttle"),
}


def classes(name: str) -> Classes:
    """A data set; of a large one some rows."""
    numbers, label = DATA[name]()
    numbers, label = np.asarray(numbers, dtype=float), np.unique(label, return_inverse=True)[1]
    some = np.random.default_rng(0).permutation(len(label))[:ROWS]
    numbers, label = numbers[some], np.unique(label[some], return_inverse=True)[1]
    numbers = numbers[:, numbers.std(axis=0) > 0]
    bent = np.stack([_bent(column) for column in numbers.T], axis=1)
    plain, bent = ((each - each.mean(axis=0)) / each.std(axis=0) for each in (numbers, bent))
    return Classes(plain, bent, label)


def _bent(column: Array) -> Array:
    """The column by the transform that the platform finds for it, if that is a Box-Cox transform."""
    levels = np.quantile(column, np.arange(LEVELS + 1) / LEVELS, method="inverted_cdf")
    profile = Profile(
        group="context", name="x", kind="number", rows=len(column), present=len(column), finite=len(column),
        sampled=len(column), distinct=len(np.unique(column)), whole=bool((column == np.floor(column)).all()),
        low=float(column.min()), high=float(column.max()), mean=float(column.mean()), std=float(column.std()),
        quantiles=tuple(levels.tolist()), type="continuous", reason="",
    )  # fmt: skip
    made = transform(identified(profile))
    if not isinstance(made, BoxCox):
        return column
    encoder = Encoder(context=(made,), actions=("a",))
    return encoder.encode_context(encoder.raw_context([{"x": value} for value in column.tolist()]))[:, 0].astype(float)


def log(data: Classes, rows: Array, seed: int) -> Batch:
    """A decision a row."""
    random = np.random.default_rng(seed)
    numbers, label, k = data.numbers[rows], data.label[rows], data.actions
    seen = numbers[:, ::3]
    means = np.array([seen[label == one].mean(axis=0) if (label == one).any() else np.inf for one in range(k)])
    weak = ((seen[:, None] - np.where(np.isfinite(means), means, 1e9)) ** 2).sum(axis=2).argmin(axis=1)
    action = np.where(random.random(len(rows)) < 0.5, random.integers(k, size=len(rows)), weak)
    n, row = len(rows), np.arange(len(rows))
    encoder = Encoder(
        context=tuple(Continuous(f"n{i:03d}", 0.0, 1.0) for i in range(numbers.shape[1])),
        actions=tuple(f"class{i:02d}" for i in range(k)),
    )
    return Batch(
        encoder=encoder, context=columns(numbers),
        candidates=np.broadcast_to(np.eye(k, dtype=np.float32), (n, k, k)),
        mask=np.broadcast_to(np.bool_(True), (n, k)), action=action,
        propensity=0.5 / k + 0.5 * (action == weak), reward=(action == label).astype(float),
        metrics=np.empty((n, 0)), discount=np.zeros(n), next=np.full(n, -1), unit=row,
    )  # fmt: skip


def columns(numbers: Array) -> Array:
    """[N, 2 F] f32, as the encoder gives them: each with a missing indicator that is 0."""
    found = np.zeros((len(numbers), 2 * numbers.shape[1]), dtype=np.float32)
    found[:, ::2] = numbers
    return found


def errors(name: str, python: Path | None, seeds: int) -> dict[str, float]:
    """`ours/<learner or loss>` and `vw/[plain/]<loss>/<passes>` -> mean error over splits of two thirds to learn from.

    Args:
        python: that has Vowpal Wabbit; None: without it.
    """
    data, found = classes(name), dict[str, list[float]]()
    with TemporaryDirectory(prefix="conversions-") as folder:
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(data.label))
            rows, held = np.split(order, [2 * len(order) // 3])
            batch = log(data, rows, seed)
            theirs = {} if python is None else _theirs(batch, data, rows, held, python, Path(folder))
            for who, action in {**_ours(batch, data, held), **theirs}.items():
                found.setdefault(who, []).append(float(np.mean(action != data.label[held])))
    return {who: round(float(np.mean(each)), 4) for who, each in found.items()}


def _ours(batch: Batch, data: Classes, held: Array) -> dict[str, Array]:
    asked = columns(data.numbers[held])
    candidates = np.broadcast_to(batch.candidates[:1], (len(held), data.actions, data.actions))
    found = {}
    for loss in ("direct", *LOSSES):
        config = learn.configure("linear", {"loss": loss, "ridge": "auto", "coefficients": "joint"})
        found[f"ours/{loss}"] = learn.fit(batch, config, 0).scorer(asked, candidates).argmax(axis=1)
    scores = learn.fit(batch, learn.configure("neural-thompson", NEURAL), 0).scorer(asked, candidates)
    found["ours/neural"] = scores.mean(axis=2).argmax(axis=1)  # the mean of the draws is the posterior's
    return found


def _theirs(batch: Batch, data: Classes, rows: Array, held: Array, python: Path, folder: Path) -> dict[str, Array]:
    text, asked, model, cache = (folder / name for name in ("log.txt", "asked.txt", "model", "cache"))
    found = {}
    for kind, numbers in {"": data.numbers, "plain/": data.plain}.items():
        vw_peer.write(text, numbers[rows], data.actions, batch.action, -batch.reward, batch.propensity)
        vw_peer.write(asked, numbers[held], data.actions)
        for loss in LOSSES:
            for passes in PASSES:
                cache.unlink(missing_ok=True)
                more = ("--passes", str(passes), "--cache_file", str(cache), "--holdout_off") if passes > 1 else ()
                vw_peer.run(python, (*vw_peer.ADF, "--cb_type", loss, "-d", str(text), "-f", str(model), *more))
                found[f"vw/{kind}{loss}/{passes}"] = vw_peer.greedy(python, model, asked)
    return found
