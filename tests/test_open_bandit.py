"""The Open Bandit Dataset's small release: the numbers that its own pipeline prints, from our reader and policy.

The values to meet are those of obp 0.5.7 on the same files: IPW 0.00455288 is the line of its quick start.
"""

import functools
import math
import re
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from steersman import cli, demo, engine, flow, log, timeline
from steersman.core.decision import Problem
from steersman.core.errors import DataError, NotFoundError
from steersman.core.features import Category, Encoder
from steersman.core.policy import Softmax
from steersman.worlds import open_bandit

ITEMS = {"all": 80, "men": 34, "women": 46}
CLICKS = {("random", "all"): 38, ("random", "men"): 46, ("random", "women"): 46,
          ("bts", "all"): 42, ("bts", "men"): 69, ("bts", "women"): 46}  # fmt: skip

# From the uniform-random log: IPW, self-normalised IPW, effective sample size; as printed by obp.
PRINTED = {"all": (0.00455, 0.00478, 1640), "men": (0.00453, 0.00460, 2467), "women": (0.00681, 0.00681, 1954)}


@pytest.fixture(scope="module")
def archive() -> Path:
    try:
        return open_bandit.fetch(Path(__file__).parents[1] / ".cache")
    except NotFoundError as error:
        pytest.skip(f"make data: {error}")


@functools.cache
def table(archive: Path, name: str) -> np.ndarray:
    return open_bandit.action_probabilities(*open_bandit.prior(archive, name))


@functools.cache
def weights(archive: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights and clicks of the uniform-random log, with nothing but the file and the table."""
    logged = open_bandit.campaign(archive, "random", name)
    position = logged.context["position"].astype(int) - 1
    return table(archive, name)[position, logged.item.astype(int)] / logged.propensity, logged.click


def test_inverse_propensity_weighting_gives_the_published_digits(archive):
    weight, click = weights(archive, "all")
    assert np.mean(weight * click) == pytest.approx(0.00455288, abs=5e-9)


@pytest.mark.parametrize("name", ITEMS)
def test_the_estimates_of_all_campaigns_are_those_of_the_peer(archive, name):
    weight, click = weights(archive, name)
    ipw, snipw, ess = PRINTED[name]
    assert np.mean(weight * click) == pytest.approx(ipw, abs=5.1e-6)
    assert np.sum(weight * click) / np.sum(weight) == pytest.approx(snipw, abs=5.1e-6)
    assert np.sum(weight) ** 2 / np.sum(weight**2) == pytest.approx(ess, abs=0.5)


@pytest.mark.parametrize(("behavior", "name"), CLICKS)
def test_a_log_is_read_whole(archive, behavior, name):
    logged = open_bandit.campaign(archive, behavior, name)
    assert len(logged.at) == len(logged.item) == len(logged.click) == len(logged.propensity) == 10_000
    assert logged.click.sum() == CLICKS[behavior, name]
    assert set(logged.click) == {0.0, 1.0}
    assert set(logged.context["position"]) == set(open_bandit.POSITIONS)
    assert set(logged.item) == set(logged.items) == {str(item) for item in range(ITEMS[name])}
    assert ((logged.propensity > 0) & (logged.propensity <= 1)).all()
    assert (np.diff(logged.at) >= 0).all()
    assert logged.at[0] // 86_400_000_000 == 18_224  # 2019-11-24
    if behavior == "random":
        assert logged.propensity == pytest.approx(1 / ITEMS[name], rel=1e-12)


def test_a_timestamp_is_read_to_the_microsecond(archive):
    """The first row of random/all is stamped 2019-11-24 00:00:34.762830 UTC."""
    assert open_bandit.campaign(archive, "random", "all").at[0] == 18_224 * 86_400_000_000 + 34_762_830


def test_the_first_row_is_the_first_line_of_the_file(archive, tmp_path):
    logged = open_bandit.campaign(archive, "bts", "men")
    path = open_bandit.write_csv(archive, "bts", "men", tmp_path / "men.csv")
    header, first = (line.split(",") for line in path.read_text().splitlines()[:2])
    row = dict(zip(header, first, strict=True))
    assert (logged.item[0], str(int(logged.click[0]))) == (row["item_id"], row["click"])
    assert logged.propensity[0] == float(row["propensity_score"])
    assert {field: values[0] for field, values in logged.context.items()} == {
        field: row[field] for field in open_bandit.CONTEXT
    }


@pytest.mark.parametrize("name", ITEMS)
def test_action_probabilities_are_distributions_for_each_position(archive, name):
    found = table(archive, name)
    assert found.shape == (3, ITEMS[name])
    assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    assert (found >= 0).all()


def test_the_probabilities_are_those_of_drawing_one_by_one():
    alpha, beta = np.array([2.0, 5.0, 1.0, 3.0, 4.0]), np.array([3.0, 8.0, 1.0, 9.0, 2.0])
    random = np.random.RandomState(7)
    counts = np.zeros((3, 5))
    for _ in range(12_345):
        best = np.argsort(-random.beta(alpha, beta))[:3]
        counts[np.arange(3), best] += 1
    assert np.array_equal(open_bandit.action_probabilities(alpha, beta, draws=12_345, seed=7), counts / 12_345)


def test_of_three_items_with_equal_chances_each_has_a_third_of_every_position():
    """100,000 draws have a standard error of 0.0015."""
    found = open_bandit.action_probabilities(np.ones(3), np.ones(3))
    assert found.ravel() == pytest.approx(np.full(9, 1 / 3), abs=0.006)


@pytest.mark.parametrize("name", ["men", pytest.param("all", marks=pytest.mark.slow)])
def test_the_policy_has_exactly_the_propensities_of_the_table(archive, name, tmp_path):
    """Through import, compaction and timeline, to the batch on which the policy is judged."""
    built = build(archive, name, tmp_path)
    policy = open_bandit.bernoulli_ts(archive, name)
    assert policy.encoder == built.encoder
    found = policy.propensities(built)
    assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    logged = open_bandit.campaign(archive, "random", name)
    position = logged.context["position"].astype(int) - 1
    order = [int(item) for item in logged.items]
    of_row = table(archive, name)[:, order]
    columns = built.encoder.context_columns()
    placed = built.context[:, [columns.index(f"position={place}") for place in open_bandit.POSITIONS]].argmax(axis=1)
    assert np.array_equal(np.bincount(placed), np.bincount(position))
    assert np.abs(found - of_row[placed]).max() < 1e-15
    weight = found[np.arange(len(built)), built.action] / built.propensity
    assert np.mean(weight * built.reward) == pytest.approx(np.mean(np.prod(weights(archive, name), axis=0)), abs=1e-15)


def build(archive: Path, name: str, directory: Path):
    declared = tomllib.loads(open_bandit.toml(name))["problem"][open_bandit.NAME]
    problem = msgspec.convert({"name": open_bandit.NAME, **declared}, Problem)
    mapping = tomllib.loads(open_bandit.mapping(directory / "mapping.toml").read_text())
    source = open_bandit.write_csv(archive, "random", name, directory / "random.csv")
    tables = engine.open(threads=1)
    try:
        with log.Pen(directory / "log", durability="buffered") as pen:
            given = log.Source(path=source, mapping=msgspec.convert(mapping, log.Mapping))
            imported = log.import_log(pen, tables, given, problem, rejects=directory / "rejects.jsonl")
        assert (imported.decisions, imported.outcomes, imported.rejected) == (10_000, 10_000, 0)
        log.compact(directory / "log", {problem.name: problem}, tables)
        files = log.files(directory / "log", problem.name, 0, 2**60)
        built = timeline.build(tables, problem, files, since=0, until=2**60, as_of=2**60)
    finally:
        tables.close()
    assert built.batch.terminated.all()
    assert built.batch.reward.sum() == CLICKS["random", name]
    return built.batch


def scorer(chances: list[list[float]]) -> tuple[open_bandit.TableScorer, Encoder]:
    encoder = Encoder(context=(Category("position", open_bandit.POSITIONS),), actions=("0", "1", "2"))
    with np.errstate(divide="ignore"):
        scores = np.maximum(np.log(np.array(chances)), open_bandit.NEVER)
    return open_bandit.TableScorer(np.arange(3), scores), encoder


def test_an_item_that_is_never_shown_has_probability_exactly_0_and_so_has_an_unknown_one():
    score, encoder = scorer([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    context = encoder.encode_context(encoder.raw_context([{"position": "1"}, {"position": "2"}]))
    candidates = np.zeros((2, 4, 3), dtype=np.float32)
    candidates[:, :3] = np.eye(3)  # the fourth is an item that the encoder does not know
    found = Softmax(1.0).probabilities(score(context, candidates), np.ones((2, 4), dtype=bool))
    assert found[0] == pytest.approx([0.25, 0.75, 0, 0], abs=1e-15)
    assert found[1].tolist() == [1, 0, 0, 0]
    assert (found[:, 2:] == 0).all()


def test_shared_candidates_give_the_scores_of_copies():
    score, encoder = scorer([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    context = encoder.encode_context(encoder.raw_context([{"position": "3"}, {"position": "1"}]))
    shared = np.broadcast_to(np.eye(3, dtype=np.float32)[[2, 0]], (2, 2, 3))
    assert np.array_equal(score(context, shared), score(context, np.array(shared)))
    assert score(context, shared)[0] == pytest.approx(np.log([0.5, 0.2]), abs=1e-15)


@pytest.mark.parametrize("position", ["4", None])
def test_a_row_without_a_known_position_is_refused(position):
    score, encoder = scorer([[0.2, 0.3, 0.5]] * 3)
    context = encoder.encode_context(encoder.raw_context([{"position": "1"}, {"position": position}]))
    with pytest.raises(DataError, match="row 1: no known position") as refused:
        score(context, np.zeros((2, 3, 3), dtype=np.float32))
    assert refused.value.field == "position"


@pytest.mark.parametrize(
    ("name", "rate", "low", "high"),
    [
        ("all", 0.0042, 0.0031089, 0.0056719),
        ("men", 0.0069, 0.0054562, 0.0087225),
        ("women", 0.0046, 0.0034507, 0.0061297),
    ],
)
def test_the_truth_is_the_click_rate_of_the_policy_s_own_log(archive, name, rate, low, high):
    """Wilson's interval from its own equation: the rates p at which |rate - p| is 1.96 standard errors of p."""
    truth = open_bandit.click_rate(archive, "bts", name)
    assert (truth.value, truth.n, truth.ess) == (rate, 10_000, 10_000)
    assert (truth.low, truth.high) == pytest.approx((low, high), abs=2e-7)
    for bound in (truth.low, truth.high):
        assert abs(rate - bound) == pytest.approx(1.959963985 * math.sqrt(bound * (1 - bound) / 10_000), rel=1e-8)


@pytest.mark.parametrize(("behavior", "name"), [("bts", "kids"), ("greedy", "all"), ("../..", "all")])
def test_a_log_that_is_not_there_is_refused(archive, behavior, name):
    with pytest.raises(DataError, match="there is no log") as refused:
        open_bandit.campaign(archive, behavior, name)
    assert "bts" in refused.value.hint


def test_the_archive_is_taken_from_where_the_environment_says(archive, tmp_path):
    assert open_bandit.fetch(tmp_path, {open_bandit.VARIABLE: str(archive)}) == archive
    with pytest.raises(NotFoundError, match="no such file"):
        open_bandit.fetch(tmp_path, {open_bandit.VARIABLE: str(tmp_path / "nowhere")})


def test_the_archive_is_taken_from_the_cache_without_a_network(archive, tmp_path):
    (tmp_path / open_bandit.ARCHIVE).write_bytes(archive.read_bytes())
    assert open_bandit.fetch(tmp_path, {}) == tmp_path / open_bandit.ARCHIVE


def test_another_file_is_not_taken_for_the_archive(tmp_path):
    (tmp_path / open_bandit.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(DataError, match="SHA-256") as refused:
        open_bandit.fetch(tmp_path, {})
    assert "delete" in refused.value.hint


def test_a_failed_download_says_what_to_do_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NotFoundError, match="pip download") as refused:
        open_bandit.fetch(tmp_path / "cache", {})
    assert open_bandit.ARCHIVE in refused.value.hint
    assert list((tmp_path / "cache").iterdir()) == []


def test_uniform_choice_can_not_be_told_from_the_women_s_log_of_the_other_policy(archive, tmp_path, capsys):
    """The peer gives a click rate of -0.0070. An effective 2 of 10,000 rows speak, one with a weight of 21,739."""
    project = demo.fresh(tmp_path, open_bandit.toml("women"))
    source = open_bandit.write_csv(archive, "bts", "women", tmp_path / "bts.csv")
    mapping = open_bandit.mapping(tmp_path / "mapping.toml")
    flow.import_log(project, open_bandit.NAME, flow.read_source(source, mapping))
    flow.build(project, open_bandit.NAME)
    flow.publish_uniform(project, open_bandit.NAME)
    command = ["evaluate", f"{open_bandit.NAME}@1", "--project", str(tmp_path)]
    for options in ([], ["--json"]):
        assert cli.main([*command, *options]) == 4
        told = "".join(capsys.readouterr())
        assert "not identified" in told
        assert re.search(r"an effective 2\.\d of 10,000 units", told)
        assert "21,739" in told
        assert "exploration" in told
        assert not re.search(r"-0\.\d", told)
    assert not list(tmp_path.rglob("report*.json"))
    for headline in ("ips", "snips", "sndr"):
        text = open_bandit.toml("women") + f'\n[problem.{open_bandit.NAME}.evaluate]\nheadline = "{headline}"\n'
        (tmp_path / "steersman.toml").write_text(text)
        assert cli.main(command) == 4
