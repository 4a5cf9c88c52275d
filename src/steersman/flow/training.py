"""The verb train: learn on the training units of a build, keep what the validation units find best, and go on where an
interrupted training stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct, structs

from steersman import learn, timeline
from steersman.config import PolicyConfig, Project
from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.errors import ConfigError
from steersman.core.policy import Policy, Thompson
from steersman.core.report import Learned
from steersman.flow import keeping, places, watching
from steersman.flow.checkpoint import BEST, CHECKPOINT, Checkpoint, Found, Identity
from steersman.flow.judging import encoded_by
from steersman.flow.places import Candidate, latest_candidate

Progress = Callable[[int, int, dict[str, float]], None]
Device = Literal["auto", "cpu", "cuda"]


class Trained(Struct, frozen=True):
    """What `train` came to.

    Attributes:
        candidate: the noun that was written.
        picked: where the training stood when the policy was as it was kept; None: the last one was kept.
        resumed: steps done when it went on; 0: it began at the beginning.
        steps: done in all.
        refused: why no look had an estimate, if all were refused.
    """

    candidate: Candidate
    picked: Learned | None
    resumed: int
    steps: int
    refused: str = ""


@dataclass(frozen=True)
class Asked:
    """How `trained` shall go about it.

    Attributes:
        seed: of every random number.
        progress: told (steps done, steps in all, figures) every hundred steps or so.
        tensorboard: a directory for TensorBoard's event files, one folder a candidate; None: none.
        add: to what the last candidate has learned, a closed form whose sums were kept: the policy is that of one fit
            on the rows of all builds that were added so. The encoder is that of the first of them.
        resume: go on from the last checkpoint of this very training, if it was interrupted; one that is finished is
            not done again. False: begin anew.
        device: `auto`: a CUDA device if there is one.
    """

    seed: int = 0
    progress: Progress | None = None
    tensorboard: Path | None = None
    add: bool = False
    resume: bool = False
    device: Device = "cpu"


def train(  # noqa: PLR0913  (all but two by keyword)
    project: Project,
    name: str,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    tensorboard: Path | None = None,
    add: bool = False,
    resume: bool = False,
    device: Device = "cpu",
) -> Candidate:
    """As `trained`, see `Asked`; gives the candidate alone."""
    return trained(project, name, Asked(seed, progress, tensorboard, add, resume, device)).candidate


def trained(project: Project, name: str, asked: Asked) -> Trained:
    """Fit the configured learner on the training units of the last build; learning.json says how it went.

    Of a learner that goes step by step the policy is kept that the validation units find best, see
    `watching.Watching`: they are neither learned from nor part of the report, which is on the test units. A closed form
    keeps its last, which rests on the most rows.

    Several processes, started by torchrun on one directory, learn together, each from units of its own; the first
    writes, and all return the same.

    Raises:
        MissingExtra: event files are asked for, and the `tensorboard` extra is not installed.
        ConfigError: the explorer samples a posterior that the learner does not have.
        NotFoundError, ConflictError: there is nothing to add to, it was made with other settings, or it saw decisions
            of this build already.
        ConflictError: the checkpoint to resume is of other data, another config or another version.
    """
    with learn.together(learn.Run(device=asked.device)) as group:
        work = _Work.of(project, name, asked, group)
        if asked.resume and (done := _finished(work.place)):
            return done
        if not group.first:
            return work.follow(group)
        done = work.lead()
        group.wait()
        return done


@dataclass(frozen=True)
class _Work:
    """A training that is about to begin, or to go on."""

    policy: PolicyConfig
    asked: Asked
    directory: Path
    batch: Batch
    rows: np.ndarray
    held: np.ndarray
    settings: Struct
    windows: tuple[keeping.Window, ...]
    before: learn.Sums | None
    checkpoint: Checkpoint
    start: Found | None

    @classmethod
    def of(cls, project: Project, name: str, asked: Asked, group: learn.Group) -> _Work:
        """All that is needed, read and checked."""
        given = project.policy(name).learn
        settings = learn.configure(given.learner, given.settings)
        policy = with_explorer(project.policy(name), settings)
        directory = places.latest(project, "builds", name, hint=f"steersman build {name}")
        if isinstance(policy.learn.explorer, Thompson) and not learn.gives_draws(settings):
            raise ConfigError(
                f"the explorer thompson has nothing to sample: {policy.learn.learner} learns no posterior",
                hint="use the learner thompson, neural-thompson or beta-thompson, or another explorer",
                field="explorer",
            )
        built = timeline.load(directory)
        learn.check_explorer(settings, built.encoder, policy.learn.serves)
        if group.first:
            _ = built.batch  # encodes the rows, once, before the others map them
        group.wait()
        rows, held, _ = timeline.parts(built.unit, built.draws, policy.learn.validation, policy.learn.holdout)
        config = places.digest_of(policy.problem, policy.learn, settings)
        last = latest_candidate(project, name) if asked.add else None
        kept, before = keeping.read(last, config, built) if last is not None else (None, None)
        batch = built.batch if kept is None else encoded_by(kept.encoder, built)[0]
        windows = (*(() if kept is None else kept.windows), keeping.window(built, batch.digest, len(rows)))
        data = batch.digest if kept is None else places.digest_of([window.data for window in windows])
        identity = Identity(data, config, asked.seed, places.code_version())
        place = places.place(project, "candidates", name, places.digest_of(data, config, asked.seed, identity.code))
        checkpoint = Checkpoint(place, identity)
        start = checkpoint.found(name) if asked.resume else None
        group.wait()  # until all have read it
        if group.first and not asked.resume:
            checkpoint.forget_all()
        return cls(policy, asked, directory, batch, rows, held, settings, windows, before, checkpoint, start)

    @property
    def place(self) -> Path:
        """Of the candidate."""
        return self.checkpoint.place

    def run(self, keep: learn.Keep | None) -> learn.Run:
        """How it runs."""
        return learn.Run(
            rows=self.rows,
            device=self.asked.device,
            precision=self.policy.learn.precision,
            start=None if self.start is None else self.start.arrays,
            keep=keep,
            every=self.policy.learn.checkpoint_steps,
        )

    def lead(self) -> Trained:
        """As the first of the processes, or the only one: look, learn, write."""
        look = watching.Watching(watching.validation(self.batch, self.held), self.policy, self.asked.seed)
        if self.policy.learn.keep == "best" and "steps" in self.settings.__struct_fields__:
            look.keep = lambda best: learn.save(best, self.place / BEST)
        if self.start is not None:
            look.learned.extend(self.start.learned)
        run = self.run(lambda done, state: self.checkpoint.keep(state, look.learned))
        with watching.tensorboard(self.asked.tensorboard, f"{self.policy.problem.name}-{self.place.name}") as scalars:
            look.scalars = scalars
            learned, sums = learn.extend(
                self.batch, self.settings, self.asked.seed, self.before, self.asked.progress, look, run
            )
        if sums is not None:
            identity = self.checkpoint.identity
            keeping.write(self.place, keeping.Kept(self.windows, identity.config, self.batch.encoder), sums)
        candidate = self._write(learned, look.learned)
        self.checkpoint.forget()
        return _summed_up(candidate, look.learned, 0 if self.start is None else self.start.done)

    def follow(self, group: learn.Group) -> Trained:
        """As another of the processes: learn, and return what the first has written."""
        learn.fit(self.batch, self.settings, self.asked.seed, run=self.run(None))
        group.wait()  # until it is written
        done = _finished(self.place)
        assert done is not None
        return done

    def _write(self, learned: Policy, seen: list[Learned]) -> Candidate:
        place, config, identity = self.place, self.policy, self.checkpoint.identity
        best = learn.load(place / BEST) if watching.picked(seen) else learned
        learn.save(Policy(best.encoder, best.scorer, config.learn.serves), place / "policy")
        places.write_bytes(place / watching.LEARNING, msgspec.json.format(msgspec.json.encode(seen)))
        return write_candidate(place, config, str(self.directory), identity.data, identity.config, identity.seed)


def write_candidate(place: Path, config: PolicyConfig, build: str, data: str, digest: str, seed: int) -> Candidate:
    """The noun of the policy that was saved in a directory, which becomes the latest candidate.

    Args:
        build, data: it was made on: directory and digest.
        digest: of the problem and the settings.
    """
    candidate = Candidate(
        problem=config.problem.name,
        directory=str(place),
        build=build,
        data=data,
        config=digest,
        policy=places.digest_of_files(place / "policy"),
        learner=config.learn.learner,
        seed=seed,
    )
    places.write(place / "candidate.json", candidate)
    places.point(place)
    return candidate


def _summed_up(candidate: Candidate, learned: Sequence[Learned], resumed: int) -> Trained:
    refused = [one.refused for one in learned if one.refused]
    return Trained(
        candidate=candidate,
        picked=watching.picked(learned),
        resumed=resumed,
        steps=learned[-1].step if learned else 0,
        refused=refused[-1] if refused and not any(one.values for one in learned) else "",
    )


def _finished(place: Path) -> Trained | None:
    """What a training of this place came to, if it is finished."""
    path = place / "candidate.json"
    if not path.exists() or (place / CHECKPOINT).exists():
        return None
    candidate = places.read_candidate(place)
    places.point(place)
    learned = watching.read(place)
    return _summed_up(candidate, learned, learned[-1].step if learned else 0)


def with_explorer(policy: PolicyConfig, settings: Struct) -> PolicyConfig:
    """The same with the explorer that serves what its learner scores, unless the project names one."""
    own = learn.explorer_of(policy.learn.learner, settings, isinstance(policy.problem.actions, Numbers))
    explorer = policy.learn.explorer or own or policy.learn.serves
    return structs.replace(policy, learn=structs.replace(policy.learn, explorer=explorer))
