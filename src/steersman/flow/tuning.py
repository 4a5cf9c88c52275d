"""The verb tune: settings of the learner that do best on the validation units, tried one after the other by Optuna.

A study is a file of JSON lines beside the builds. What is tried next depends on the seed, on what was tried and on how
it did, and on nothing else: a study that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
from msgspec import Struct

from steersman import learn, timeline
from steersman.config import PolicyConfig, Project, Range
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, MissingExtra, TrainingError, did_you_mean
from steersman.core.report import Estimate, Learned
from steersman.engine.disk import make_directory
from steersman.flow import places, watching
from steersman.flow.training import Device, Progress, with_explorer

if TYPE_CHECKING:
    import optuna

STUDY = "study.jsonl"

RANDOM_TRIALS = 8
"""Trials at random, before what did well is looked at."""


class Tried(Struct, frozen=True):
    """A setting of the learner, and how it did.

    Attributes:
        settings: those that were tried.
        score: what nets are picked by, see `Learned`; None: it has none.
        estimate: of the net that `train` would keep, on the validation units.
        step: at which that net was.
        failed: why there is no score.
    """

    settings: dict[str, Any]
    score: float | None = None
    estimate: Estimate | None = None
    step: int = 0
    failed: str = ""


class Tuned(Struct, frozen=True):
    """What `tune` came to.

    Attributes:
        study: the file.
        best: of all trials of the study.
        present: the settings of steersman.toml, which are tried first; None: they are outside the ranges.
        trials: that have a score, and others.
        failed: trials without one.
    """

    problem: str
    study: str
    best: Tried
    present: Tried | None
    trials: int
    failed: int


@dataclass(frozen=True)
class _Space:
    """What every trial of a study has in common."""

    policy: PolicyConfig
    batch: Batch
    rows: np.ndarray
    held: Batch
    seed: int
    device: Device

    def attempt(self, settings: Mapping[str, Any]) -> Tried:
        """Train with some settings, and look at the net that would be kept. What fails is told, not raised."""
        learner = self.policy.learn
        try:
            config = learn.configure(learner.learner, {**learner.settings, **settings})
            served = with_explorer(self.policy, config)
            look = watching.Watching(self.held, served, self.seed, keep=lambda best: None)
            run = learn.Run(rows=self.rows, device=self.device, precision=learner.precision)
            learn.fit(self.batch, config, self.seed, look=look, run=run)
        except (ConfigError, TrainingError) as error:
            return Tried(dict(settings), failed=error.message)
        stepwise = learner.keep == "best" and "steps" in config.__struct_fields__
        kept: Learned = (watching.picked(look.learned) if stepwise else None) or look.learned[-1]
        if kept.score is None:
            return Tried(dict(settings), failed=kept.refused)
        return Tried(dict(settings), kept.score, kept.values[0], kept.step)


def tune(
    project: Project, name: str, trials: int, *, seed: int = 0, progress: Progress | None = None, device: Device = "cpu"
) -> Tuned:
    """Try settings until a study has so many trials; one that has them is not done again.

    Every trial learns from the training units and is judged on the validation units, as `train` would judge the net
    that it keeps; the holdout has no part in it. The first trial is the settings as they are.

    Args:
        trials: of the study in all, those of earlier calls included, at least 1.
        seed: of the trainings and of what is tried.
        progress: told (trials done, in all, best score).
    Raises:
        ConfigError: nothing is to be tuned, a range is of no setting, or there are no validation units.
        MissingExtra: the `tune` extra is not installed.
        TrainingError: no trial has a score.
    Source: Bergstra, Bardenet, Bengio and Kegl 2011, Algorithms for hyper-parameter optimization (TPE).
    """
    if trials < 1:
        raise ConfigError(f"trials is {trials}, must be at least 1", field="trials")
    policy = project.policy(name)
    ranges = policy.tune.settings
    present = learn.configure(policy.learn.learner, policy.learn.settings)
    _check(name, policy, present)
    built = timeline.load(places.latest(project, "builds", name, hint=f"steersman build {name}"))
    rows, held, _ = timeline.parts(built.unit, built.draws, policy.learn.validation, policy.learn.holdout)
    looked = watching.validation(built.batch, held)
    assert looked is not None
    space = _Space(policy, built.batch, rows, looked, seed, device)
    digest = places.digest_of(
        built.batch.digest, policy.problem, policy.learn, policy.tune, policy.evaluate, seed, places.code_version()
    )
    path = places.place(project, "studies", name, digest) / STUDY
    study = _Study(path, seed, ranges)
    first = {setting: getattr(present, setting) for setting in ranges}
    while len(study.tried) < trials:
        settings = first if not study.tried and study.holds(first) else study.next()
        study.note(space.attempt(settings))
        if progress is not None:
            scores = [one.score for one in study.tried if one.score is not None]
            progress(len(study.tried), trials, {"best": max(scores)} if scores else {})
    good = [one for one in study.tried if one.score is not None]
    if not good:
        raise TrainingError(f"{name}: none of {len(study.tried)} trials has a score: {study.tried[-1].failed}")
    best = max(good, key=lambda one: cast(float, one.score))  # of equal ones the earlier
    return Tuned(
        problem=name,
        study=str(path),
        best=best,
        present=next((one for one in study.tried[:1] if _text(one.settings) == _text(first)), None),
        trials=len(good),
        failed=len(study.tried) - len(good),
    )


def _check(name: str, policy: PolicyConfig, present: Struct) -> None:
    where = f"problem.{name}.tune.settings"
    if not policy.tune.settings:
        raise ConfigError(
            f"{name}: nothing is to be tuned",
            hint=f"[problem.{name}.tune] settings = {{ learning_rate = {{ low = 1e-4, high = 1e-2, log = true }} }}",
            field=where,
        )
    for setting in policy.tune.settings:
        if setting not in present.__struct_fields__:
            hint = did_you_mean(setting, present.__struct_fields__)
            raise ConfigError(f"{where}.{setting} is no setting of {policy.learn.learner}", hint=hint, field=where)
    if not policy.learn.validation:
        raise ConfigError(
            f"{name}: trials are judged on validation units, and there are none",
            hint=f"[problem.{name}.learn] validation = 0.2",
            field=f"problem.{name}.learn.validation",
        )


class _Study:
    """Trials in a file, a line each, and Optuna's word for what to try next."""

    def __init__(self, path: Path, seed: int, ranges: Mapping[str, Range]) -> None:
        try:
            import optuna
        except ImportError:
            raise MissingExtra("optuna", "tune") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._path, self._seed, self._ranges = optuna, path, seed, ranges
        self._spaces = {name: _distribution(one) for name, one in ranges.items()}
        self.tried = self._read()

    def _read(self) -> list[Tried]:
        """All trials; half a line, of a process that was killed while it wrote, is taken away."""
        if not self._path.exists():
            make_directory(self._path.parent)
            return []
        body = self._path.read_bytes()
        whole = body[: body.rfind(b"\n") + 1]
        if whole != body:
            places.write_bytes(self._path, whole)
        return [msgspec.json.decode(line, type=Tried) for line in whole.splitlines()]

    def note(self, tried: Tried) -> None:
        """Add a trial, durably."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(tried) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.tried.append(msgspec.json.decode(msgspec.json.encode(tried), type=Tried))

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether settings are within the ranges."""
        return all(one.holds(settings[name]) for name, one in self._ranges.items())

    def next(self) -> dict[str, Any]:
        """Settings to try next: by the seed and the trials so far alone."""
        optuna, count = self._optuna, len(self.tried)
        seed = int(np.random.SeedSequence([self._seed, count]).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for one in self.tried:
            if one.score is not None:
                shown = {name: self._shown(name, one.settings[name]) for name in self._spaces}
                study.add_trial(
                    optuna.trial.create_trial(params=shown, distributions=self._spaces, value=float(one.score))
                )
        asked = study.ask(self._spaces).params
        return {name: self._meant(name, value) for name, value in asked.items()}

    def _shown(self, name: str, value: Any) -> Any:
        """As Optuna has it: choices are texts, for it knows no lists."""
        return _text(value) if hasattr(self._spaces[name], "choices") else value

    def _meant(self, name: str, value: Any) -> Any:
        return json.loads(value) if hasattr(self._spaces[name], "choices") else value


def _distribution(one: Range) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.choices:
        return CategoricalDistribution([_text(choice) for choice in one.choices])
    if isinstance(one.low, int) and isinstance(one.high, int):
        return IntDistribution(one.low, one.high, log=one.log)
    assert one.low is not None and one.high is not None
    return FloatDistribution(float(one.low), float(one.high), log=one.log)


def _text(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
