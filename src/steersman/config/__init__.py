"""steersman.toml -> Project. An unknown key is an error with a "did you mean"."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from steersman import evaluate as evaluation
from steersman import timeline
from steersman.config.hints import hint
from steersman.config.sections import (
    EngineConfig,
    LearnConfig,
    LogConfig,
    ModelConfig,
    ModelsConfig,
    PolicyConfig,
    Range,
    SimulateConfig,
    TuneConfig,
    WarehouseConfig,
)
from steersman.config.template import template
from steersman.core.decision import Actions, Numbers, One, Problem, Ranked, check_rules
from steersman.core.errors import ConfigError, DataError, DiskError, NotFoundError, did_you_mean
from steersman.serve.settings import Settings

__all__ = [
    "FILE",
    "EngineConfig",
    "LearnConfig",
    "LogConfig",
    "ModelConfig",
    "ModelsConfig",
    "PolicyConfig",
    "Project",
    "Range",
    "SimulateConfig",
    "TuneConfig",
    "WarehouseConfig",
    "load",
    "only_models",
    "parse",
    "read",
    "section",
    "template",
]

FILE = "steersman.toml"
_SECTIONS = ("build", "learn", "tune", "simulate", "evaluate", "gates", "guardrails")
T = TypeVar("T", bound=Struct)


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
        DiskError: the file can not be read.
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
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin every file with a mark
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there", hint="is the name right?") from None
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}", hint="it must be a file that we may read") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8", hint="save it as UTF-8, as TOML asks") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
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
    rails = table.get("guardrails", {})
    _known(rails, rails, f"{where}.guardrails")
    return PolicyConfig(
        problem=section(Problem, {"name": name, **own}, where),
        build=section(timeline.Settings, table.get("build", {}), f"{where}.build"),
        learn=section(LearnConfig, table.get("learn", {}), f"{where}.learn"),
        evaluate=section(evaluation.Settings, table.get("evaluate", {}), f"{where}.evaluate"),
        gates=section(evaluation.Gates, table.get("gates", {}), f"{where}.gates"),
        tune=section(TuneConfig, table.get("tune", {}), f"{where}.tune"),
        simulate=section(SimulateConfig, table.get("simulate", {}), f"{where}.simulate"),
        guardrails={
            metric: section(evaluation.Guardrail, rail, f"{where}.guardrails.{metric}")
            for metric, rail in rails.items()
        },
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
        raise ConfigError(f"{field}: {message}", hint=hint(kind, message, path.strip("`")), field=field) from None
    except (DataError, ConfigError) as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint, field=f"{where}.{error.field}") from None


def _known(table: Any, known: Any, where: str) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r}, must be a table", field=where)
    for key in table:
        if key not in known:
            dotted = f"{where}.{key}" if where else key
            raise ConfigError(f"unknown key {dotted}", hint=did_you_mean(key, known), field=dotted)
