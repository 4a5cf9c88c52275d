"""steersman.toml -> Project. An unknown key is an error with a "did you mean"."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from steersman import evaluate as evaluation
from steersman import timeline
from steersman.core.decision import Actions, Numbers, One, Problem, Ranked, check_rules
from steersman.core.errors import ConfigError, DataError, NotFoundError, did_you_mean
from steersman.core.policy import EpsilonGreedy, Explorer
from steersman.serve.settings import Settings

FILE = "steersman.toml"
_SECTIONS = ("build", "learn", "tune", "simulate", "evaluate", "gates")
T = TypeVar("T", bound=Struct)


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
    """

    problem: Problem
    build: timeline.Settings
    learn: LearnConfig
    evaluate: evaluation.Settings
    gates: evaluation.Gates
    tune: TuneConfig = TuneConfig()
    simulate: SimulateConfig = SimulateConfig()


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


class Project(Struct, frozen=True):
    """A directory with a steersman.toml.

    Attributes:
        root: of everything that is relative.
        warehouse: fsspec URL, or a path relative to the root.
        policies: problem name -> its settings.
        models: where plain ONNX models lie, as the warehouse.
        model: name of a plain model -> its settings; those that are not named have the default ones.
    """

    root: Path
    log: LogConfig
    serve: Settings
    engine: EngineConfig
    warehouse: str
    policies: dict[str, PolicyConfig]
    models: str = "models"
    model: dict[str, ModelConfig] = {}

    def policy(self, name: str) -> PolicyConfig:
        """The settings of a problem.

        Raises:
            NotFoundError: the project has no such problem.
        """
        if name not in self.policies:
            raise NotFoundError(
                f"{self.root / FILE} has no problem {name!r}", hint=did_you_mean(name, self.policies), field=name
            )
        return self.policies[name]

    @property
    def problems(self) -> dict[str, Problem]:
        """Problem name -> problem."""
        return {name: policy.problem for name, policy in self.policies.items()}

    @property
    def log_directory(self) -> Path:
        """Where the segments and the Parquet files are."""
        return self.root / self.log.directory

    @property
    def warehouse_url(self) -> str:
        """An fsspec URL or an absolute path."""
        return self._url(self.warehouse)

    @property
    def models_url(self) -> str:
        """An fsspec URL or an absolute path."""
        return self._url(self.models)

    def _url(self, place: str) -> str:
        return place if "://" in place else str(self.root / place)


def load(directory: Path) -> Project:
    """Read the project of a directory.

    Raises:
        ConfigError: the file is absent, is no TOML, or has a key or a value we do not understand; the message
            says which one, in dotted form.
    """
    path = directory / FILE
    if not path.exists():
        raise ConfigError(f"{path} is not there", hint="steersman init writes one")
    return parse(_table(path), directory.resolve())


def only_models(directory: Path) -> Project:
    """A project without problems, for a directory of plain models that has no steersman.toml."""
    root = directory.resolve()
    return Project(root, LogConfig(), Settings(), EngineConfig(), "warehouse", {}, models=str(root))


def read(kind: type[T], path: Path) -> T:
    """A Struct from a TOML file of its own.

    Raises:
        ConfigError: see `load`.
    """
    return section(kind, _table(path), path.name)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}", hint="see https://toml.io") from None


def parse(table: Mapping[str, Any], root: Path) -> Project:
    """A project from the table of a TOML file; see `load`."""
    _known(table, ("log", "serve", "engine", "warehouse", "models", "model", "problem"), "")
    problems = table.get("problem", {})
    if not isinstance(problems, dict) or not problems:
        raise ConfigError(
            f"{root / FILE} declares no problem", hint="add a table [problem.NAME] with reward, wait_s and actions"
        )
    model = table.get("model", {})
    _known(model, model, "model")
    return Project(
        root=root,
        log=section(LogConfig, table.get("log", {}), "log"),
        serve=section(Settings, table.get("serve", {}), "serve"),
        engine=section(EngineConfig, table.get("engine", {}), "engine"),
        warehouse=section(WarehouseConfig, table.get("warehouse", {}), "warehouse").url,
        policies={name: _policy(name, problem) for name, problem in problems.items()},
        models=section(ModelsConfig, table.get("models", {}), "models").url,
        model={name: section(ModelConfig, one, f"model.{name}") for name, one in model.items()},
    )


def _policy(name: str, table: Mapping[str, Any]) -> PolicyConfig:
    where = f"problem.{name}"
    _known(table, set(Problem.__struct_fields__) - {"name"} | set(_SECTIONS), where)
    own = {key: value for key, value in table.items() if key not in _SECTIONS}
    if isinstance(own.get("actions"), dict):
        _known_actions(own["actions"], f"{where}.actions")
    if isinstance(own.get("combine"), dict):
        _known_rules(own["combine"], f"{where}.combine")
    return PolicyConfig(
        problem=section(Problem, {"name": name, **own}, where),
        build=section(timeline.Settings, table.get("build", {}), f"{where}.build"),
        learn=section(LearnConfig, table.get("learn", {}), f"{where}.learn"),
        evaluate=section(evaluation.Settings, table.get("evaluate", {}), f"{where}.evaluate"),
        gates=section(evaluation.Gates, table.get("gates", {}), f"{where}.gates"),
        tune=section(TuneConfig, table.get("tune", {}), f"{where}.tune"),
        simulate=section(SimulateConfig, table.get("simulate", {}), f"{where}.simulate"),
    )


def _known_actions(table: Mapping[str, Any], where: str) -> None:
    kinds: dict[str, type[Actions]] = {"one": One, "ranked": Ranked, "numbers": Numbers}
    kind = table.get("kind", "")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{where}.kind is {kind!r}", hint=did_you_mean(str(kind), kinds), field=f"{where}.kind")
    _known(table, {"kind", *kinds[kind].__struct_fields__}, where)


def _known_rules(table: Mapping[str, Any], where: str) -> None:
    """Names the metric, which the path of a msgspec error does not."""
    try:
        check_rules(table, where)
    except DataError as error:
        raise ConfigError(error.message, hint=error.hint, field=error.field) from None


def section(kind: type[T], table: Any, where: str) -> T:
    """A table of the file as its Struct.

    Args:
        table: what TOML gave.
        where: dotted name of the table, for errors.
    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range.
    """
    _known(table, kind.__struct_fields__, where)
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        missing = re.search(r"missing required field `(\w+)`", message)
        field = ".".join(filter(None, [where, path.strip("`").removeprefix("$").strip("."), missing and missing[1]]))
        raise ConfigError(f"{field}: {message}", field=field) from None
    except (DataError, ConfigError) as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint, field=f"{where}.{error.field}") from None


def _known(table: Any, known: Any, where: str) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r}, must be a table", field=where)
    for key in table:
        if key not in known:
            dotted = f"{where}.{key}" if where else key
            raise ConfigError(f"unknown key {dotted}", hint=did_you_mean(key, known), field=dotted)


def template(name: str, box: Numbers | None = None) -> str:
    """The text of a commented steersman.toml that runs: one problem, with two named actions or with numbers."""
    text = _TEMPLATE
    if box is not None:
        bounds = f"low = {list(box.low)}, high = {list(box.high)}"
        numbers = {"actions": f'actions = {{ kind = "numbers", {bounds} }}   # one low and one high bound a number'}
        numbers |= {"learner": 'learner = "sac"', "explorer": 'explorer = { kind = "squashed", floor = 0.1 }'}
        for line in text.splitlines():
            key = line.removeprefix("# ").partition(" = ")[0]
            if key in ("actions", "learner", "explorer", "shaping"):
                text = text.replace(line + "\n", f"{numbers[key]}\n" if key in numbers else "")
    return text.replace("NAME", name)


_TEMPLATE = """\
# Steersman project. Every key below with a value is in force; a line that starts with "# key" shows a default.

[log]
# directory = "log"
# durability = "commit"      # an answer waits until its decision is on the disk; "buffered": until the kernel has it
# segment_mb = 64

[warehouse]
# url = "warehouse"          # a path, or an object storage URL that fsspec knows (s3://..., gs://...)

[serve]
# host = "127.0.0.1"
# port = 8080                # 0 takes a free port and prints it
# grpc_port = 8500           # speak gRPC there, too: pip install "steersman[grpc]"
# workers = 1                # processes that share the port
# max_body_bytes = 1048576
# poll_s = 1.0               # how often a server looks whether an alias moved
# access_log = false         # a JSON line on stderr for every answer
# "steersman key NAME" makes an API key, and the table that lets it in

[models]
# url = "models"             # plain ONNX models, as models/NAME/1/model.onnx: served beside the policies
# [model.NAME]               # a TOML table of its own for one that is not served by its highest version:
# latest = 1                 # so many of its highest versions; 0: all
# labels = { stable = 3 }

[engine]
# url = "duckdb"
# memory_limit = "4GB"       # beyond it, it spills to disk
# url = "spark://host:7077"  # the same on a Spark: pip install "steersman[spark]"

[problem.NAME]
reward = "clicks"            # an expression over the metrics of the outcomes; there is no default
wait_s = 600                 # an outcome counts if it comes within this many seconds of its decision
default_outcome = { clicks = 0.0 }   # what a decision without any outcome is worth
# combine = { clicks = "max" }   # of several outcomes: first, last, sum (if not named), mean, median, min, max
# discount = 1.0             # of the reward one step later, in (0, 1]
# horizon = 200              # an episode is over after this many steps
# horizon_s = 3600.0         # and after this many seconds
# shaping = { now = -0.01 }  # what is added to the reward for the action itself
actions = { kind = "one", names = ["now", "tonight"] }   # leave names out if each request brings its candidates

[problem.NAME.context]       # field = type; a field not listed here is refused. No fields: anything goes
hour = "number"
device = "text"

[problem.NAME.build]
# assertions = ["propensity >= 0.01"]    # SQL that must hold of every decision, or a build stops and shows which
# max_length_quantile = 0.99 # longer episodes are left out
# within_s = 86400           # decisions later than this after the start of their episode are left out
# lead_s = 86400             # how long before a window one looks for where its episodes began
# shards = 1                 # parts of whole units, one per training process
# context = { hour = "enumerated" }      # instead of the type that is identified from the data

[problem.NAME.learn]
learner = "dqn"
explorer = { kind = "epsilon", epsilon = 0.1 }   # or { kind = "softmax", temperature = 1.0, floor = 0.02 }
# settings = { n_step = 5, discount = 0.99 }   # of the learner
# holdout = 0.3              # share of the units that training never sees and evaluation judges on
validation = 0.1             # share of the units by which training chooses between its nets; 0 if left out
# keep = "best"              # the net that does best on these; "last": the last one
# checkpoint_steps = 1000    # between two checkpoints, from which steersman train --resume goes on
# precision = "f32"          # "bf16": faster on some hardware

[problem.NAME.tune]          # what steersman tune tries
# settings = { learning_rate = { low = 1e-4, high = 1e-2, log = true }, n_step = { low = 1, high = 10 } }

[problem.NAME.simulate]      # instead of a log: what steersman simulate learns in
# world = "cartpole"         # or acrobot, pendulum, offers
# episodes = 4               # side by side while it learns
# judged = 100               # new ones of the policy, and as many at random: the build that it is judged on
# settings = { random = 10000, rounds = 15 }   # how playing and learning take turns

[problem.NAME.evaluate]
# level = 0.95
# interval = "delta"         # of the printed estimates; "t", "bootstrap"; "bernstein": at every number of decisions;
#                            # "sequence": however often one looks
# reward_range = [0.0, 1.0]  # lowest and highest reward of a decision, for bound = "hard" and interval = "bernstein"
# max_weight = 20.0          # 1 / the smallest propensity that can be, for interval = "bernstein"

[problem.NAME.gates]
# margin = 0.0               # the lower bound of the lift over the baseline must be above this
# bound = "anytime"          # holds however often one looks; "fixed": one planned look; "hard": whatever the weights
# tuned = 4000               # units at which that bound is tightest
# max_fall = { revenue = 0.01 }        # how much lower a metric may be
# max_rise = { complaints = 0.002 }    # how much higher
# min_ess = 200              # effective units that the estimate must rest on
# max_unlogged = 0.05        # share of the target's decisions on actions never logged in comparable contexts
# max_reward_drift = 0.5     # of what no model foresaw, between the halves of the window, in its standard deviations
# max_context_drift = 2.0    # of any column of the contexts; 2 asks nothing
# max_policy_drift = 1.0     # of propensities and shares of actions; 1 asks nothing
# max_action_drift = 0.3     # share of the decisions with other actions than the champion's; not asked by default
# max_psi = 0.25             # of every field, against the data of the champion; not asked by default
# max_ks = 0.2               # the same by the largest difference of the distribution functions
"""
