"""A Minari dataset (what Gymnasium environments are logged as): a directory with metadata.json and main_data.hdf5.

    episode, step                    the unit `<dataset>/<episode>`, and the step in it
    observation                      the context: `obs`, and below it a `.` and the place or the key in a Box, Dict or
                                     Tuple; at the top of a Dict its keys alone. Discrete values and texts are texts
                                     (numbers, if the problem declares the field so), all others numbers; NaN is missing
    action (Discrete)                its number as text: a problem with named actions has the names "0", "1", ...
    action (Box)                     its numbers, in the order of the array
    reward                           metric `reward` of the outcome
    terminated, truncated            how the outcome ends the episode; both: it terminated

A dataset has no propensities and no clock. The propensities are estimated, or declared to be uniform, or the rows are
refused. `at` is the number of the row in seconds after 1970: it orders, and says nothing of when it happened.

Other actions than Discrete, and a Box where the problem's actions are numbers within the same bounds, are refused as a
whole. The density of numbers is declared, not estimated: what `action_space.sample()` did is uniform.

The files are read as data with h5py alone. The `minari` package would make the environment that the metadata names
when they lack a space, which runs code that a dataset chose.

Source: https://minari.farama.org/content/dataset_standards/
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.decision import Candidate, Decision, Ends, Numbers, Problem, Value
from steersman.core.errors import DataError, MissingExtra
from steersman.log import vectors
from steersman.log.fields import MAX_FIELDS
from steersman.log.foreign import ESTIMATE, Job, Judged, settle
from steersman.log.lines import Records, add_field, check_noun, digest, named_actions, outcome_of, records_of

METADATA = "metadata.json"
DATA = "main_data.hdf5"
SECOND = 1_000_000
PROPENSITY_HINT = "a Minari dataset has none; of a random policy: --propensity uniform"

T = TypeVar("T")

_PLAIN = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Text")


class _Space(Struct, frozen=True):
    """A space of Gymnasium, as Minari writes it; what is not named here is not read."""

    type: str
    shape: tuple[int, ...] = ()
    low: Any = ()
    high: Any = ()
    n: int | tuple[int, ...] = 0
    start: int | tuple[int, ...] = 0
    nvec: tuple[int, ...] = ()
    subspaces: dict[str, _Space] | tuple[_Space, ...] = ()


class _Metadata(Struct, frozen=True):
    """Of a dataset; the spaces are JSON in JSON."""

    dataset_id: str
    total_episodes: int
    data_format: str
    observation_space: str
    action_space: str


class _Column(NamedTuple):
    """A field of the context.

    Attributes:
        name: of the field.
        path: to the array in the group of the observations.
        place: in a value of the array.
        named: the values name things and do not measure: they are texts.
    """

    name: str
    path: str
    place: tuple[int, ...]
    named: bool


def minari_rows(job: Job) -> Iterator[Judged]:
    """Judge every step of a dataset; its line is its number, from 1, through all episodes.

    Args:
        job: its path is the directory of the dataset, or the `data` in it.
    Raises:
        MissingExtra: h5py is not installed.
        DataError: it is no dataset of Minari 0.5 or newer, or its spaces are none that a log can hold; said at the
            first row.
    """
    directory = job.path if (job.path / METADATA).exists() else job.path / "data"
    metadata = _metadata(directory)
    box = vectors.box_of(job.problem, job.source.propensities)
    space = _space(metadata.action_space)
    actions = _actions(space) if box is None else _check_box(space, box, job.problem.name)
    columns = list(_columns(_space(metadata.observation_space), "", "observations"))
    if len(columns) > MAX_FIELDS:
        raise DataError(
            f"an observation has {len(columns)} numbers, a log holds at most {MAX_FIELDS} fields",
            hint="images are not read: log what was seen in them",
            field="observation_space",
        )
    steps = _Steps(job, metadata.dataset_id, columns, actions)
    with _open(directory / DATA) as file:
        line = 0
        for episode in range(metadata.total_episodes):
            for row in _episode(file, episode, columns):
                line += 1
                try:
                    yield Judged(line, steps(line, episode, row))
                except DataError as error:
                    yield Judged(line, (), f"{error.field}: {error}" if error.field else str(error), row)


def _metadata(directory: Path) -> _Metadata:
    path = directory / METADATA
    try:
        found = _read(path.read_text(encoding="utf-8"), _Metadata)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{directory} has no {METADATA}: no Minari dataset",
            hint="name the directory of a dataset, e.g. ~/.minari/datasets/cartpole/random-v0",
            field="source",
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: {error}", hint="written by Minari 0.5 or newer?", field="source") from None
    if found.data_format != "hdf5":
        raise DataError(f"{path}: data_format is {found.data_format!r}, only hdf5 is read", field="data_format")
    return found


def _space(text: str) -> _Space:
    try:
        return _read(text, _Space)
    except ValueError as error:
        raise DataError(f"{METADATA}: a space can not be read: {error}", field="source") from None


def _read(text: str, kind: type[T]) -> T:
    """JSON as Python writes it: with the infinity of a bound."""
    return msgspec.convert(json.loads(text), kind)


def _actions(space: _Space) -> tuple[str, ...]:
    if space.type != "Discrete" or not isinstance(space.n, int) or not isinstance(space.start, int):
        raise DataError(
            f"the actions are {space.type}, the problem chooses one of its candidates: these must be Discrete",
            hint='of a Box with bounds: actions = { kind = "numbers", low = [...], high = [...] } in the problem',
            field="action_space",
        )
    return tuple(str(space.start + i) for i in range(space.n))


def _check_box(space: _Space, box: Numbers, name: str) -> tuple[str, ...]:
    """No names; raises DataError unless the actions are a Box with the bounds of the problem, in 32 bits."""
    if space.type != "Box":
        raise DataError(
            f"the actions are {space.type}, those of problem {name} are numbers: they must be a Box",
            hint='of Discrete ones: actions = { kind = "one" } in the problem',
            field="action_space",
        )
    given = [np.ravel(np.array(bound, dtype=np.float32)) for bound in (space.low, space.high)]
    wanted = [np.array(bound, dtype=np.float32) for bound in (box.low, box.high)]
    if not all(map(np.array_equal, given, wanted)):
        low, high = (bound.tolist()[:9] for bound in given)
        raise DataError(
            f"problem {name} has the bounds {list(box.low)} to {list(box.high)}, the dataset has {low} to {high}",
            hint="declare the dataset's bounds in the problem; a Box without bounds can not be imported",
            field="actions",
        )
    return ()


def _columns(space: _Space, name: str, path: str) -> Iterator[_Column]:
    """Fields of an observation.

    Args:
        name: of the space; empty at the top.
        path: to its group or array in that of an episode.
    """
    if space.type == "Dict" and isinstance(space.subspaces, dict):
        for key, part in sorted(space.subspaces.items()):
            yield from _columns(part, f"{name}.{key}" if name else key, f"{path}/{key}")
    elif space.type == "Tuple" and isinstance(space.subspaces, tuple):
        for i, part in enumerate(space.subspaces):
            yield from _columns(part, f"{name or 'obs'}.{i}", f"{path}/_index_{i}")
    elif space.type in _PLAIN:
        shape = {"MultiDiscrete": (len(space.nvec),), "MultiBinary": _shape(space.n)}.get(space.type, space.shape)
        named = space.type in ("Discrete", "MultiDiscrete", "Text")
        for place in np.ndindex(*shape):
            yield _Column(".".join([name or "obs", *map(str, place)]), path, place, named)
    else:
        raise DataError(f"observation {name or 'obs'} is a {space.type}, which no fields can hold", field="source")


def _shape(n: int | tuple[int, ...]) -> tuple[int, ...]:
    return (n,) if isinstance(n, int) else n


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise MissingExtra("h5py", "import") from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} can not be read: {error}", field="source") from None
    with file:
        yield file


def _episode(file: Any, number: int, columns: list[_Column]) -> Iterator[dict[str, Any]]:
    """The steps of an episode; the observation behind the last action is left out."""
    try:
        group = file[f"episode_{number}"]
        parts = {name: group[name][()] for name in ("actions", "rewards", "terminations", "truncations")}
        arrays = {path: group[path][()] for path in {column.path for column in columns}}
        fields = {column.name: arrays[column.path][(slice(None), *column.place)] for column in columns}
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise DataError(f"episode {number}: {error}", hint="is the dataset complete?", field="source") from None
    steps = len(parts["rewards"])
    shortest = min(map(len, (*parts.values(), *fields.values())), default=0)
    if shortest < steps:
        raise DataError(f"episode {number} has {steps} rewards and {shortest} of something else", field="source")
    lists = {name: values.tolist() for name, values in fields.items()}
    action, reward, terminated, truncated = (values.tolist() for values in parts.values())
    for step in range(steps):
        yield {
            "step": step,
            "observation": {name: values[step] for name, values in lists.items()},
            "action": action[step],
            "reward": reward[step],
            "terminated": bool(terminated[step]),
            "truncated": bool(truncated[step]),
        }


def _numbers(action: Any, box: Numbers) -> tuple[float, ...]:
    numbers = vectors.read(np.ravel(action))
    vectors.check(numbers, box)
    return numbers


class _Steps:
    """The records of a step."""

    def __init__(self, job: Job, dataset: str, columns: list[_Column], actions: tuple[str, ...]) -> None:
        self._problem: Problem = job.problem
        self._propensities = job.source.propensities
        self._dataset = dataset
        declared = job.problem.context
        self._texts = {one.name for one in columns if one.named and declared.get(one.name) != "number"}
        self._box = job.problem.actions if isinstance(job.problem.actions, Numbers) else None
        self._names = () if self._box else named_actions(job.problem, "a Minari dataset")
        if self._names and set(self._names) != set(actions):
            raise DataError(
                f"problem {job.problem.name} has the actions {', '.join(self._names[:9])}, the dataset has "
                f"{', '.join(actions[:9])}",
                hint="name the actions in the problem as the dataset does, or leave actions.names out",
                field="actions.names",
            )
        self._candidates = tuple(map(Candidate, self._names or actions))

    def __call__(self, line: int, episode: int, row: dict[str, Any]) -> Records:
        """Raises DataError if the step breaks a law."""
        propensity, estimated = settle(
            None,
            self._propensities,
            "propensity",
            f"{PROPENSITY_HINT}; {ESTIMATE}" if self._box is None else PROPENSITY_HINT,
        )
        action = str(row["action"]) if self._box is None else _numbers(row["action"], self._box)
        decision = Decision(
            id=digest("minari", self._problem.name, self._dataset, episode, row),
            problem=self._problem.name,
            unit=f"{self._dataset}/{episode}",
            at=line * SECOND,
            context=self._context(row["observation"]),
            candidates=self._candidates,
            action=action,
            propensity=propensity,
            step=row["step"],
            estimated=estimated,
        )
        check_noun(decision, self._problem, self._names)
        ends: Ends | None = "terminated" if row["terminated"] else "truncated" if row["truncated"] else None
        return records_of(decision, outcome_of(decision, {"reward": float(row["reward"])}, ends=ends))

    def _context(self, observation: dict[str, Any]) -> dict[str, Value]:
        context: dict[str, Value] = {}
        for name, value in observation.items():
            if name in self._texts:
                add_field(context, name, value.decode() if isinstance(value, bytes) else str(value))
            elif not math.isnan(value):
                add_field(context, name, float(value))
        return context
