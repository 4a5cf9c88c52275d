"""Training as a product: it survives kill -9, runs on several processes, keeps the net that validation finds best."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from bandit_project import DAY, TOML, S, offers, write
from steersman import cli, config, flow, learn, timeline
from steersman.core.errors import ConfigError, ConflictError, DataError
from steersman.core.policy import EpsilonGreedy, Policy
from steersman.flow import watching
from steersman.flow.checkpoint import BEST, CHECKPOINT

LONG = TOML.replace("validation = 0.2", "validation = 0.2\ncheckpoint_steps = 100").replace("= 400", "= 1200")
"""Long enough to be killed twice on a busy machine."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> config.Project:
    """With its build, and the candidate of a training that nobody interrupted."""
    made = offers(tmp_path_factory.mktemp("unbroken"), LONG)
    flow.train(made, "offer")
    return made


def copied(made: config.Project, into: Path, *, old: str = "", new: str = "") -> config.Project:
    """The same project and build elsewhere, with another text in its settings and nothing trained."""
    shutil.copytree(made.root, into, ignore=shutil.ignore_patterns("candidates"))
    return changed(config.load(into), old, new)


def changed(made: config.Project, old: str, new: str) -> config.Project:
    path = made.root / config.FILE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return config.load(made.root)


def command(made: config.Project, *more: str) -> list[str]:
    return ["-m", "steersman", "train", "offer", "--project", str(made.root), "--device", "cpu", *more]


def steps_kept(made: config.Project) -> int:
    """Steps of the only checkpoint of a project; 0: there is none."""
    for path in made.root.glob(f"candidates/offer/*/{CHECKPOINT}"):
        with np.load(path, allow_pickle=False) as archive:
            return int(archive["done"])
    return 0


def killed(made: config.Project, *more: str) -> int:
    """Start to train, kill -9 once a further checkpoint is there; its steps."""
    before = steps_kept(made)
    with subprocess.Popen([sys.executable, *command(made, *more)]) as process:
        while steps_kept(made) == before:
            assert process.poll() is None, "it ended before a checkpoint was seen"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return steps_kept(made)


def seen(candidate: flow.Candidate) -> list[tuple[int, object, object, bool]]:
    """What is the same in every run: all but the clock."""
    return [(one.step, one.figures["loss"], one.values, one.picked) for one in watching.read(Path(candidate.directory))]


def test_a_training_killed_at_any_step_and_resumed_comes_to_the_same_bits(unbroken, tmp_path):
    whole = flow.latest_candidate(unbroken, "offer")
    made = copied(unbroken, tmp_path / "killed")
    first = killed(made)
    second = killed(made, "--resume")
    assert 0 < first < second
    asked = flow.Asked(resume=True)
    found = flow.trained(made, "offer", asked)
    assert found.resumed == second
    assert found.candidate.policy == whole.policy
    assert seen(found.candidate) == seen(whole)
    place = Path(found.candidate.directory)
    assert not (place / CHECKPOINT).exists() and not (place / BEST).exists()
    at = (place / "policy" / "weights.npz").stat().st_mtime_ns
    again = flow.trained(made, "offer", asked)  # a finished one is not redone
    assert (again.candidate, again.picked) == (found.candidate, found.picked)
    assert (place / "policy" / "weights.npz").stat().st_mtime_ns == at


class Interrupted(Exception):
    """What a test raises where a process would die."""


def interrupted(made: config.Project, after: int = 250) -> Path:
    """Train as far as a checkpoint, in this process; its file."""

    def progress(done: int, steps: int, figures: dict[str, float]) -> None:
        if done > after:
            raise Interrupted

    with pytest.raises(Interrupted):
        flow.train(made, "offer", progress=progress)
    [path] = made.root.glob(f"candidates/offer/*/{CHECKPOINT}")
    return path


def test_a_checkpoint_of_other_data_or_another_config_is_refused_by_name(unbroken, tmp_path):
    made = copied(unbroken, tmp_path / "other", old="1200", new="400")
    path = interrupted(made)
    other = changed(made, "hidden = [16]", "hidden = [17]")
    with pytest.raises(ConflictError, match=rf"in {path.parent}, is another one: config: \w+ there, \w+ now"):
        flow.train(other, "offer", resume=True)
    changed(made, "hidden = [17]", "hidden = [16]")
    write(made, 1, 50)
    flow.build(made, "offer", as_of=1000 * DAY * S)
    with pytest.raises(ConflictError, match=r"is another one: data: \w+ there, \w+ now"):
        flow.train(made, "offer", resume=True)
    assert flow.trained(made, "offer", flow.Asked(seed=1, resume=True)).resumed == 0  # another seed is another training
    assert path.exists()
    flow.train(made, "offer")
    assert not path.exists()


def test_a_damaged_checkpoint_is_an_error_and_no_new_beginning(unbroken, tmp_path):
    made = copied(unbroken, tmp_path / "damaged", old="1200", new="400")
    path = interrupted(made)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"training\.npz is damaged"):
        flow.train(made, "offer", resume=True)


# what is kept


def test_the_best_of_the_looks_is_kept_and_of_equal_ones_the_earlier(unbroken):
    """Policies of known worth, in an order in which neither the first nor the last is the best."""
    built = timeline.load(Path(flow.latest_candidate(unbroken, "offer").build))
    batch = built.batch
    early, late = (batch.encoder.actions.index(name) for name in ("early", "late"))
    morning = batch.context[:, 0] < np.median(batch.context[:, 0])

    def choosing(before_noon: int, after: int) -> Policy:
        def scores(context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            place = np.where(context[:, 0] < 0, before_noon, after)
            return np.eye(3, dtype=np.float32)[place]

        return Policy(batch.encoder, scores, EpsilonGreedy(0.0))

    assert morning.any()
    wrong, half, right = choosing(late, early), choosing(early, early), choosing(early, late)
    kept: list[Policy] = []
    look = watching.Watching(batch, unbroken.policy("offer"), seed=0, keep=kept.append)
    for step, policy in enumerate([half, wrong, right, half, right, wrong], start=1):
        look(step * 100, 600, {"loss": 1.0}, lambda policy=policy: policy)
    assert kept == [half, right]
    best = watching.picked(look.learned)
    assert best is not None and best.step == 300
    assert [one.picked for one in look.learned] == [False, False, True, False, False, False]
    assert best.score == best.values[0].value == max(one.score for one in look.learned if one.score is not None)


def test_what_was_kept_is_what_is_stored_and_the_report_says_which(unbroken, tmp_path, capsys):
    made = copied(unbroken, tmp_path / "shop", old="1200", new="400")
    assert cli.main(["train", "offer", "--project", str(made.root), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    candidate = flow.latest_candidate(made, "offer")
    learned = watching.read(Path(candidate.directory))
    best = watching.picked(learned)
    assert best is not None
    assert best.score == max(one.score for one in learned if one.score is not None)
    assert f"kept    step {best.step:,} of 400: dr {best.values[0].value:.4g} [" in said
    built = timeline.load(Path(candidate.build))
    rows, held, test = timeline.parts(built.unit, built.draws, 0.2, 0.3)
    policies = {}
    learn.fit(
        built.batch, learn.configure("dqn", made.policy("offer").learn.settings), 0,
        look=lambda step, steps, figures, now: policies.update({step: now()}), run=learn.Run(rows=rows),
    )  # fmt: skip
    stored = learn.load(Path(candidate.directory) / "policy")
    for name, weights in stored.scorer.weights().items():
        assert np.array_equal(weights, policies[best.step].scorer.weights()[name])
    report = flow.judge(made, "offer")
    assert [one.step for one in report.learning if one.picked] == [best.step]
    assert report.decisions == len(test)
    assert not (set(rows) & set(held) or set(held) & set(test) or set(rows) & set(test))


def test_last_keeps_the_last(unbroken, tmp_path):
    made = copied(unbroken, tmp_path / "last", old="0.2", new='0.2\nkeep = "last"')
    found = flow.trained(changed(made, "1200", "400"), "offer", flow.Asked())
    assert found.picked is None
    assert found.steps == 400
    assert any(one.values for one in watching.read(Path(found.candidate.directory)))


# where it runs


def test_bf16_learns_and_gives_other_bits(unbroken, tmp_path):
    made = copied(unbroken, tmp_path / "bf16", old="1200", new="400")
    exact = flow.train(made, "offer")
    candidate = flow.train(changed(made, "0.2", '0.2\nprecision = "bf16"'), "offer")
    assert candidate.policy != exact.policy
    best = watching.picked(watching.read(Path(candidate.directory)))
    assert best is not None
    # 0.9 of the decisions take what is right, the rest any of three: 0.2 + 0.5 * (0.9 + 0.1 / 3) - 0.06
    assert best.values[0].value == pytest.approx(0.2 + 0.5 * (0.9 + 0.1 / 3) - 0.06, abs=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_the_cpu(unbroken, tmp_path):
    made = copied(unbroken, tmp_path / "gpu", old="1200", new="100")
    with pytest.raises(ConfigError, match="this is process 0 of its machine, which has 0 CUDA devices"):
        flow.train(made, "offer", device="cuda")
    assert flow.train(made, "offer", device="auto").policy == flow.train(made, "offer", device="cpu").policy


def test_two_processes_learn_what_one_learns_and_the_first_alone_writes(unbroken, tmp_path):
    made = copied(unbroken, tmp_path / "two", old="1200", new="200")
    alone = flow.train(copied(made, tmp_path / "one"), "offer")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *command(made, "--json")], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    both = flow.latest_candidate(made, "offer")
    assert msgspec.convert(json.loads(line), flow.Candidate).policy == both.policy
    ours, theirs = (learn.load(Path(one.directory) / "policy").scorer.weights() for one in (both, alone))
    for name, weights in ours.items():
        assert weights == pytest.approx(theirs[name], abs=1e-5)
    assert any(not np.array_equal(ours[name], theirs[name]) for name in ours)  # sums in another order: two did it
    for one, other in zip(watching.read(Path(both.directory)), watching.read(Path(alone.directory)), strict=True):
        assert one.figures["loss"] == pytest.approx(other.figures["loss"], rel=1e-4)
        assert one.figures["q_largest"] == pytest.approx(other.figures["q_largest"], rel=1e-4)
        assert one.picked == other.picked


LARGE = """
import sys, threading, numpy as np
from steersman import learn
from steersman.core.batch import Batch
from steersman.core.features import Continuous, Encoder
from steersman.learn.dqn import DQN

rows, fields, path = 150_000, 125, sys.argv[1]
rng = np.random.default_rng(0)
context = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 2 * fields))
for start in range(0, rows, 10_000):
    context[start : start + 10_000] = rng.random((10_000, 2 * fields), dtype=np.float32)
context.flush()
context = np.load(path, mmap_mode="r")
row, last = np.arange(rows), np.arange(rows) % 5 == 4
batch = Batch(
    encoder=Encoder(context=tuple(Continuous(f"x{i:03d}", 0.0, 1.0) for i in range(fields)), actions=("a", "b")),
    context=context, candidates=np.broadcast_to(np.eye(2, dtype=np.float32), (rows, 2, 2)),
    mask=np.ones((rows, 2), dtype=bool), action=rng.integers(2, size=rows), propensity=np.full(rows, 0.5),
    reward=rng.random(rows), metrics=np.empty((rows, 0)), discount=np.where(last, 0.0, 1.0),
    next=np.where(last, -1, row + 1), unit=row // 5,
)

def own():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

def learned(steps, run):
    learn.fit(batch, DQN(hidden=(16,), steps=steps, batch_size=64), 0, run=run)

training = np.flatnonzero(batch.unit % 10 > 2)
learned(1, learn.Run(rows=training[:5000]))  # what torch takes for itself
before, peak, over = own(), [0.0], threading.Event()

def watch():
    while not over.wait(0.001):
        peak[0] = max(peak[0], own())

thread = threading.Thread(target=watch)
thread.start()
learned(200, learn.Run(rows=training))
over.set()
thread.join()
print(peak[0] - before, context.nbytes / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory is a process's own")
def test_rows_that_lie_on_a_disk_are_learned_from_where_they_lie(tmp_path):
    """Of 143 MiB of contexts, 70% of them to learn from, none is copied but minibatches; the rest is 100 B a row."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "context.npy")], capture_output=True, text=True, check=True
    )
    grown, whole = map(float, done.stdout.split())
    assert whole > 143
    assert grown < 30
