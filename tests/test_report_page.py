"""The page of a report: it stands alone, it is drawn from report.json alone, and it says what the report holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import msgspec
import pytest

from reports import world_report
from steersman import charts
from steersman.core.report import Report, Verdict
from steersman.flow.report_page import interval, page


class Page(HTMLParser):
    """Tags, and the text outside of pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._drawn = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self._drawn += tag == "svg"

    def handle_endtag(self, tag: str) -> None:
        self._drawn -= tag == "svg"

    def handle_data(self, data: str) -> None:
        self.text += "" if self._drawn else data


def rows(chart: charts.Chart, mark: str) -> list[dict]:
    """The data of the layers with a mark."""
    spec = chart.to_dict()
    layers = [one for one in spec["layer"] if one["mark"]["type"] == mark]
    return [row for one in layers for row in one.get("data", spec.get("data"))["values"]]


@pytest.fixture(scope="module")
def report() -> Report:
    return world_report()


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    again = msgspec.json.decode(msgspec.json.encode(report), type=Report)
    assert again == report  # all that is drawn comes from report.json
    return page(again, "shop <1>")


def test_the_page_needs_nothing_from_elsewhere(text: str) -> None:
    found = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "image", "foreignobject"} & set(found.tags)
    assert re.findall(r"url\(|@import|href=|src=", text) == []
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert len(text) < 300_000


def test_every_picture_is_an_svg_with_a_sentence_that_says_what_to_look_for(text: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 8  # estimates, metrics, weights, calibration, shares; loss, q, validation
    for one in pictures:
        assert ElementTree.fromstring(one).tag.endswith("svg")
    assert Page(text).tags.count("figcaption") == 5
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", text):
        assert 40 < len(caption) < 300


def test_every_number_of_the_report_is_in_words_with_its_interval(report: Report, text: str) -> None:
    said = Page(text).text
    some = (report.headline, report.baseline, report.lift, *report.estimates, *report.ratios, *report.lifts)
    for one in some:
        assert interval(one) in said, one
    for verdict in report.verdicts:
        assert verdict.reason in said
        assert verdict.gate in said
    assert "Every gate passed." in said
    assert "shop <1>" in said  # and no markup came from a name
    assert "<b>size</b>" in said


def test_a_gate_that_did_not_pass_says_what_to_do_and_the_answer_says_which_kind_it_is(report: Report) -> None:
    fail = Verdict(gate="ess", status="fail", reason="3 is under 200", value=3.0, limit=200.0, next="log more <often>")
    unknown = msgspec.structs.replace(fail, status="not identified")
    said = Page(page(msgspec.structs.replace(report, verdicts=(fail,)), "shop")).text
    assert "1 of 1 gates failed." in said
    assert "log more <often>" in said
    assert "200" in said
    said = Page(page(msgspec.structs.replace(report, verdicts=(fail, unknown)), "shop")).text
    assert "The log can not tell" in said


def test_a_report_with_the_fewest_fields_still_has_a_page(report: Report) -> None:
    few = {"ratios": (), "baselines": (), "lifts": (), "weights": None, "calibration": (), "shares": ()}
    bare = msgspec.structs.replace(report, previous="", learning=(), verdicts=(), **few)
    text = page(bare, "shop")
    assert text.count("<svg") == 1
    assert "None was asked." in text


def test_a_reward_around_0_is_drawn_in_its_own_units_around_what_was_logged() -> None:
    report = world_report(by=-0.6)
    assert any(one.gate == "ratio of reward" for one in report.refused) == (not report.ratios)
    rewards = [one for one in report.estimates if one.metric == "reward"]
    drawn = charts.estimates(rewards, report.headline.estimator, report.baseline)
    [band] = rows(drawn, "rect")
    assert (band["low"], band["high"]) == (report.baseline.low, report.baseline.high)
    assert rows(drawn, "point")[0]["value"] == rewards[0].value


def test_costs_are_drawn_around_parity_with_what_is_better_to_the_right() -> None:
    report = world_report(by=-5.0)
    assert report.headline.value > report.baseline.value
    ratios = [one for one in report.ratios if one.metric == "reward"]
    drawn = charts.estimates(ratios, "dr", None)
    [judged] = [row for row in rows(drawn, "point") if row["kind"] == "judged by the gates"]
    assert judged["value"] > 1
    assert {row["at"] for row in drawn.to_dict()["layer"][0]["data"]["values"]} == {1.0}


def test_an_interval_far_wider_than_the_others_is_cut_and_said_to_be(report: Report) -> None:
    ratios = [one for one in report.ratios if one.metric == "reward"]
    wild = msgspec.structs.replace(ratios[0], estimator="pdis / logged", low=-1e6, high=1e6)
    drawn = charts.estimates([*ratios, wild], "dr", None)
    ends = [row for row in rows(drawn, "rule") if "low" in row]
    assert max(row["high"] for row in ends) < 3
    assert "1 interval reaches beyond the picture" in " ".join(drawn.to_dict()["title"]["subtitle"])


def test_weights_and_shares_and_calibration_are_those_of_the_report(report: Report) -> None:
    assert report.weights is not None
    drawn = rows(charts.weights(report.weights, report.headline.ess), "rect")
    assert sum(row["share"] for row in drawn) == pytest.approx(1 - report.weights.zeros / report.decisions)
    assert sum(row["mass"] for row in drawn) == pytest.approx(1.0)
    bars = rows(charts.shares(report.shares, report.previous), "bar")
    assert {row["kind"] for row in bars} == {"logged", "shop@3", "this policy"}
    for kind in ("logged", "shop@3", "this policy"):
        assert sum(row["share"] for row in bars if row["kind"] == kind) == pytest.approx(1.0)
    points = rows(charts.calibration(report.calibration), "point")
    assert [(row["stated"], row["seen"]) for row in points] == [(one.stated, one.seen) for one in report.calibration]


def test_small_propensities_are_on_logarithmic_axes_and_stay_inside() -> None:
    report = world_report(n=4000, actions=80)
    drawn = charts.calibration(report.calibration)
    scale = drawn.to_dict()["layer"][1]["encoding"]["x"]["scale"]
    assert scale["type"] == "log"
    for row in rows(drawn, "rule"):
        assert scale["domain"][0] <= row["low"] <= row["high"] <= scale["domain"][1]
    assert len(rows(charts.shares(report.shares, ""), "bar")) == 2 * 24
    assert "<svg" in charts.svg(drawn)
