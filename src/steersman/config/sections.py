"""The tables of steersman.toml, each with its defaults and what its values may be."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
from msgspec import Struct

from steersman import evaluate as evaluation
from steersman import timeline
from steersman.core.decision import Problem
from steersman.core.errors import ConfigError, DataError
from steersman.core.policy import EpsilonGreedy, Explorer


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """[log]

    Attributes:
        directory: relative to the file.
        durability: `commit`: an answer waits until its record is on the disk; `buffered`: until the kernel has it.
        segment_mb: size of a segment file, MiB.
    """

    directory: str = "log"
    durability: Literal["commit", "buffered"] = "commit"
    segment_mb: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.segment_mb <= 256:
            raise DataError(f"segment_mb is {self.segment_mb}, must be 1 to 256", field="segment_mb")


class WarehouseConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """[warehouse]

    Attributes:
        url: an fsspec URL, or a path relative to the file.
    """

    url: str = "warehouse"


class ModelsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """[models]

    Attributes:
        url: where plain ONNX models lie, as the warehouse.
    """

    url: str = "models"


class EngineConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """[engine]

    Attributes:
        url: `duckdb`, or the master of a Spark: `local[4]`, `spark://host:7077`.
        memory_limit: e.g. "4GB"; beyond it the engine spills to disk.
        threads: 0: one a core.
        temp_directory: where it spills to, relative to the file; of a Spark cluster a folder that all machines share.
            Empty: the engine's own choice.
    """

    url: str = "duckdb"
    memory_limit: str = ""
    threads: int = 0
    temp_directory: str = ""


class LearnConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """[problem.NAME.learn]

    Attributes:
        learner: a name of the table of learners.
        explorer: how the policy that comes out explores when it is served. Left out, training finds the learner's own:
            a policy that was learned as probabilities is served as it is, and else see `serves`.
        holdout: share of the units that training never sees and evaluation judges on, in (0, 1): the test.
        validation: share of the units that training only looks at to choose between its own nets, in [0, 1); the
            rest, at least something, is learned from. A unit stays in its part in every later build.
        keep: `best`: of the nets that were looked at, that whose estimate on the validation units is best, with the
            worst where the log tells nothing; `last`: the last one, and so it is without validation units.
        checkpoint_steps: training steps between two checkpoints, at least 1.
        precision: of the products inside nets while they learn: `f32`, or `bf16`, which some hardware is faster with.
        settings: of the learner: the rest of the table, checked by the learner.
    """

    learner: str = "dqn"
    explorer: Explorer | None = None
    holdout: float = 0.3
    validation: float = 0.0
    keep: Literal["best", "last"] = "best"
    checkpoint_steps: int = 1000
    precision: Literal["f32", "bf16"] = "f32"
    settings: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise DataError(f"holdout is {self.holdout:g}, must be in (0, 1)", field="holdout")
        if not (self.validation >= 0 and self.validation + self.holdout < 1):
            raise DataError(
                f"validation is {self.validation:g} and holdout {self.holdout:g}: together they must be below 1",
                field="validation",
            )
        if self.checkpoint_steps < 1:
            raise DataError(
                f"checkpoint_steps is {self.checkpoint_steps}, must be at least 1", field="checkpoint_steps"
            )

    @property
    def serves(self) -> Explorer:
        """The explorer, and where there is none the best candidate, but for one decision in ten."""
        return EpsilonGreedy(0.1) if self.explorer is None else self.explorer


class Range(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a setting of the learner may lie: between two numbers, or one of some choices.

    Attributes:
        low, high: both in it; whole numbers if both are written so.
        log: tried evenly in the logarithm.
        choices: of anything that the setting may be.
    """

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise DataError("a range has choices, or low and high, not both", field="choices")
        elif self.low is None or self.high is None or not -math.inf < self.low < self.high < math.inf:
            raise DataError(f"a range is from {self.low} to {self.high}; low must be below high", field="low")
        elif self.log and self.low <= 0:
            raise DataError(f"low is {self.low:g}, must be above 0 where log = true", field="low")

    def holds(self, value: Any) -> bool:
        """Whether a value lies there."""
        if self.choices:
            return msgspec.json.encode(value) in map(msgspec.json.encode, self.choices)  # a tuple is a list there
        assert self.low is not None and self.high is not None
        return isinstance(value, int | float) and self.low <= value <= self.high


class TuneConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """[problem.NAME.tune]

    Attributes:
        settings: of the learner, where `steersman tune` looks for better ones.
    """

    settings: dict[str, Range] = {}


class SimulateConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """[problem.NAME.simulate]

    Attributes:
        world: that `steersman simulate` plays; empty: the command says which.
        episodes: that run side by side while it learns, at least 1.
        judged: episodes that are played to judge, at least 2: so many by the policy as it is served, and so many at
            random.
        settings: how playing and learning take turns, checked by the learner's loop.
    """

    world: str = ""
    episodes: int = 4
    judged: int = 100
    settings: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("judged", 2)):
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}, must be at least {least}", field=name)


class PolicyConfig(Struct, frozen=True):
    """Everything about one problem.

    Attributes:
        problem: the noun.
        build: what must hold of its data, what is left out, which fields have a type of their own.
        learn, evaluate, gates: how its policies are made and judged.
        tune: where better settings of the learner are looked for.
        simulate: the world that its policies may learn in, instead of from a log.
        guardrails: metric -> what it may be where perturbed copies decide.
    """

    problem: Problem
    build: timeline.Settings
    learn: LearnConfig
    evaluate: evaluation.Settings
    gates: evaluation.Gates
    tune: TuneConfig = TuneConfig()
    simulate: SimulateConfig = SimulateConfig()
    guardrails: dict[str, evaluation.Guardrail] = {}


class ModelConfig(Struct, frozen=True):
    """Which versions of a plain model are served.

    Attributes:
        latest: so many of the highest versions; 0: all there are.
        numbers: these and no others, if it is not empty.
        labels: other names of versions, for TensorFlow Serving's `/labels/`.
    """

    latest: int = 1
    numbers: tuple[int, ...] = ()
    labels: dict[str, int] = {}

    def __post_init__(self) -> None:
        if self.latest < 0:
            raise ConfigError(f"latest is {self.latest}, must be 0 (all) or more", field="latest")

    def chosen(self, there: tuple[int, ...]) -> tuple[int, ...]:
        """Of the versions that are there, those to serve; and all of `numbers`, there or not."""
        return self.numbers or there[-self.latest :]
