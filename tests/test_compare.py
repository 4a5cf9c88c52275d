"""`steersman compare`: versions on the same rows, and their difference with an interval of its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bandit_project import offers
from steersman import cli, config, flow, timeline
from steersman.core.errors import DataError, NotFoundError
from steersman.evaluate import Settings, difference, evaluated
from steersman.evaluate.intervals import Halves, Influence, Terms
from steersman.flow import comparing
from steersman.flow.judging import stored_policy
from steersman.worlds import tabular

WORLD = tabular.world_a(0)
SNIPS = Settings(estimators=("snips",), headline="snips")


def terms(batch, table, settings=SNIPS):
    return evaluated(batch, tabular.rows(batch, table), settings, 0)[1]


@pytest.mark.slow
def test_the_difference_covers_the_truth_and_is_far_narrower_than_two_intervals() -> None:
    """200 logs of 1,000 decisions; two targets that differ a little, so that most of their errors are the same."""
    other = 0.8 * WORLD.target + 0.2 * WORLD.behavior
    truth = WORLD.value(WORLD.target) - WORLD.value(other)
    inside, narrower = 0, []
    for seed in range(200):
        batch = WORLD.sample(1000, seed)
        one, two = terms(batch, WORLD.target), terms(batch, other)
        found = difference(one, two, estimator="one - two", level=0.95)
        inside += found.low <= truth <= found.high
        apart = np.hypot(one.low.error, two.low.error)
        narrower.append((found.high - found.low) / (2 * 1.96 * apart))
    assert 0.92 <= inside / 200 <= 0.985
    assert np.median(narrower) < 0.3


def test_a_policy_does_not_differ_from_itself() -> None:
    batch = WORLD.sample(500, 0)
    one = terms(batch, WORLD.target, Settings(estimators=("dr",)))
    found = difference(one, one, estimator="same", level=0.95)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def still(center: float) -> Halves:
    """A side that no half moves."""
    return Halves(center, np.zeros((8, 2)), np.zeros(8), 10.0)


def test_a_part_that_the_log_leaves_open_counts_against_both() -> None:
    """One may be worth 1 to 3, the other 0 to 2, for sure: the difference is between -1 and 3."""
    one, two = (Terms(mid, still(mid - 1), still(mid + 1), 50, 10.0, None) for mid in (2.0, 1.0))
    found = difference(one, two, estimator="d", level=0.95)
    assert (found.value, found.low, found.high) == (1.0, -1.0, 3.0)


def test_terms_of_different_units_are_not_set_against_each_other() -> None:
    one, two = (terms(WORLD.sample(n, 0), WORLD.target) for n in (500, 400))
    with pytest.raises(DataError, match="same rows"):
        difference(one, two, estimator="d", level=0.95)
    other = replace(one, low=still(0.0))
    assert isinstance(one.low, Influence)
    with pytest.raises(DataError, match="same estimator"):
        difference(other, one, estimator="d", level=0.95)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> config.Project:
    """Version 1 is uniform, version 2 was learned, and so was the candidate, from another seed."""
    made = offers(tmp_path_factory.mktemp("shop"), n=1200)
    flow.train(made, "offer", seed=0)
    flow.judge(made, "offer")
    flow.export(made, "offer")
    flow.publish(made, "offer", force=True)
    flow.train(made, "offer", seed=1)
    return made


def test_a_stored_version_that_learned_is_judged_on_units_that_no_training_saw(shop: config.Project) -> None:
    built = timeline.load(Path(flow.latest_candidate(shop, "offer").build))
    _, _, rows = timeline.parts(built.unit, built.draws, 0.2, 0.3)
    assert flow.judge(shop, "offer", "2").decisions == len(rows) < len(built.batch)
    assert flow.judge(shop, "offer", "champion").decisions == len(built.batch)  # uniform: it learned nothing


def test_versions_are_judged_on_the_test_units_of_the_last_build(shop: config.Project) -> None:
    found = comparing.compare(shop, "offer", ["champion", "2", None])
    assert [one.name for one in found.versions] == ["offer@1 (champion)", "offer@2", "offer (candidate)"]
    assert found.same_rows
    built = timeline.load(Path(flow.latest_candidate(shop, "offer").build))
    _, _, rows = timeline.parts(built.unit, built.draws, 0.2, 0.3)
    reports = [one.report for one in found.versions]
    assert {report.decisions for report in reports} == {len(rows)}
    assert len({report.baseline for report in reports}) == 1
    assert found.versions[0].difference is None
    two, three = (one.difference for one in found.versions[1:])
    assert two.value == pytest.approx(reports[1].headline.value - reports[0].headline.value)
    assert two.low > 0  # what was learned is better than uniform
    policy = stored_policy(shop, "offer", "2")[1]
    hour = built.raw.context.numbers[:, 0]
    _, every = np.unique(hour, return_index=True)  # a row of each hour: they come equally often
    right = policy.propensities(built.batch)[every, np.where(hour[every] < 12, 0, 1)]
    assert len(every) == 24
    assert two.low < 0.5 * (right.mean() - 1 / 3) < two.high
    assert three.estimator == "offer (candidate) - offer@1 (champion)"
    assert found.versions[1].published is not None
    assert found.versions[0].published is None  # nobody judged the uniform policy
    assert found.refused == ()


def test_the_command_prints_a_table_the_noun_and_the_page(shop: config.Project, capsys) -> None:
    where = ["--project", str(shop.root)]
    page = shop.root / "compare.html"
    assert cli.main(["compare", "offer@1", "offer@challenger", "--report", str(page), *where]) == 0
    out = capsys.readouterr().out
    for text in (
        "offer@1",
        "offer@2 (challenger)",
        "difference to the first",
        "judged on the same decisions",
        str(page),
    ):
        assert text in out
    text = page.read_text()
    assert text.count("<svg") == 2
    assert re.findall(r"url\(|@import|href=|src=|<script", text) == []
    assert "early" in text
    assert cli.main(["compare", "offer@1", "offer@challenger", "--json", *where]) == 0
    noun = msgspec.convert(json.loads(capsys.readouterr().out), comparing.Comparison)
    difference = noun.versions[1].difference
    assert difference is not None
    assert f"{difference.low:.4g}, {difference.high:.4g}" in text


def test_what_can_not_be_compared_says_why(shop: config.Project, capsys) -> None:
    where = ["--project", str(shop.root)]
    assert cli.main(["compare", "offer@1", *where]) == 3
    assert "steersman compare offer@champion offer" in capsys.readouterr().err
    assert cli.main(["compare", "offer@1", "other@1", *where]) == 2
    assert "different problems" in capsys.readouterr().err
    with pytest.raises(NotFoundError):
        comparing.compare(shop, "offer", ["1", "9"])


def test_without_a_build_each_has_the_report_it_was_published_with(
    shop: config.Project, tmp_path: Path, capsys
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / config.FILE).write_text(
        f'[warehouse]\nurl = "{shop.warehouse_url}"\n' + (shop.root / config.FILE).read_text()
    )
    found = comparing.compare(config.load(alone), "offer", ["1", "2"])
    assert not found.same_rows
    assert [one.report is None for one in found.versions] == [True, False]
    assert [one.difference for one in found.versions] == [None, None]
    assert "no build is at hand" in found.refused[0].reason
    assert cli.main(["compare", "offer@1", "offer@2", "--report", str(alone / "p.html"), "--project", str(alone)]) == 0
    assert "judged apart" in capsys.readouterr().out
    assert "when published" in (alone / "p.html").read_text()
