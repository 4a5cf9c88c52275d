"""`steersman features`: what is shown of every field is what its build says, and the page needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from product import project
from steersman import cli, config, flow, timeline
from steersman.core.decision import Candidate, Decision, Outcome
from steersman.core.errors import NotFoundError
from steersman.core.profile import Profile, psi
from steersman.flow import features
from steersman.log import Pen

S = 1_000_000
TOML = """\
[problem.offer]
reward = "clicks"
wait_s = 0
actions = { kind = "one" }
"""
HOSTILE = '<script>alert("x")</script> & co'


def write_log(made: config.Project, days: tuple[int, ...], seed: int, shift: float = 0.0, n: int = 300) -> None:
    """n units a day, two decisions each; the reward is price / 10 + hour / 20 + noise."""
    random = np.random.default_rng(seed)
    with Pen(made.log_directory) as pen:
        for day in days:
            for unit in range(n):
                for step in range(2):
                    id, at = f"d{seed}-{day}-{unit}-{step}", (day * 86_400 + unit * 60 + step) * S
                    hour = float(random.integers(0, 24))
                    prices = random.exponential(10.0, 2).round(2) + 0.01
                    action = int(random.integers(0, 2))
                    context = {
                        "hour": hour,
                        "noise": float(random.normal()) + shift,
                        "device": ("phone", "tablet", HOSTILE, None)[random.integers(0, 4)],
                        "seen": tuple(f"i{i}" for i in random.integers(0, 30, random.integers(0, 4))),
                        HOSTILE: 1.0,
                    }
                    some = tuple(Candidate(id=f"c{i}", features={"price": float(prices[i])}) for i in range(2))
                    decision = Decision(
                        id=id, problem="offer", unit=f"u{seed}-{day}-{unit}", at=at, context=context, candidates=some,
                        action=some[action].id, propensity=0.5, version=1, step=step,
                    )  # fmt: skip
                    clicks = float(prices[action]) / 10 + hour / 20 + float(random.normal()) * 0.5
                    outcome = Outcome(id=f"o{id}", decision=id, at=at, metrics={"clicks": clicks})
                    records = [(b"D", msgspec.json.encode(decision)), (b"O", msgspec.json.encode(outcome))]
                    pen.append(records)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> config.Project:
    """Two builds: the noise moved by a deviation between them."""
    made = project(tmp_path_factory.mktemp("shop"), TOML)
    write_log(made, (100,), seed=1)
    write_log(made, (101,), seed=2, shift=1.0)
    flow.build(made, "offer", since=100 * 86_400 * S, until=101 * 86_400 * S, as_of=200 * 86_400 * S)
    flow.build(made, "offer", since=101 * 86_400 * S, until=102 * 86_400 * S, as_of=200 * 86_400 * S)
    return made


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def drifts(found: features.Features) -> dict[str, str]:
    return {one.profile.name: one.drift.reading for one in found.fields if one.drift}


def test_every_field_is_shown_with_its_type_and_what_moved(shop: config.Project) -> None:
    found = features.features(shop, "offer")
    types = {one.profile.name: one.profile.type for one in found.fields}
    assert types == {
        "hour": "continuous", "noise": "continuous", "device": "category", "seen": "ids", HOSTILE: "constant",
        "price": types["price"],
    }  # fmt: skip
    assert drifts(found) | {"noise": "strong"} == drifts(found)
    assert {reading for name, reading in drifts(found).items() if name != "noise"} <= {"none", "could be chance"}
    assert [one.profile.name for one in found.shifted] == ["noise"]
    by_name = {one.profile.name: one for one in found.fields}
    assert by_name["device"].missing_share == pytest.approx(0.25, abs=0.06)
    assert by_name["noise"].drift is not None
    ks = by_name["noise"].drift.ks
    assert ks == pytest.approx(0.383, abs=0.08)  # of normals a deviation apart: 2 Phi(1/2) - 1


def test_the_build_before_is_the_last_that_ends_no_later(shop: config.Project) -> None:
    builds = shop.root / "builds" / "offer"
    newest = builds / (builds / "LATEST").read_text()
    [older] = [one.parent for one in builds.glob("*/build.json") if one.parent != newest]
    assert features.features(shop, "offer").previous == str(older)
    (builds / "LATEST").write_text(older.name)
    try:
        found = features.features(shop, "offer")
    finally:
        (builds / "LATEST").write_text(newest.name)
    assert (found.previous, drifts(found), found.new, found.gone) == ("", {}, (), ())
    assert "no earlier build to compare with" in "\n".join(features.lines(found))


def test_fields_that_come_and_go_are_named_and_builds_of_another_version_counted(tmp_path: Path) -> None:
    made = project(tmp_path, TOML)
    write_log(made, (100,), seed=1, n=20)
    flow.build(made, "offer", until=101 * 86_400 * S, as_of=200 * 86_400 * S)
    fields = '[problem.offer.context]\nhour = "number"\ncity = "text"\n'
    (tmp_path / config.FILE).write_text(TOML + fields)
    again = config.load(tmp_path)
    flow.build(again, "offer", until=102 * 86_400 * S, as_of=200 * 86_400 * S)
    old = tmp_path / "builds" / "offer" / "0123456789ab"
    old.mkdir()
    (old / "build.json").write_text('{"format": 1}')
    found = features.features(again, "offer")
    assert found.new == ("context.city",)
    assert set(found.gone) == {"context.noise", "context.device", "context.seen", f"context.{HOSTILE}"}
    assert found.left_out == 1
    text = "\n".join(features.lines(found))
    assert "(1 build of another version left out)" in text
    assert "leave city out: it never has a value" in text


def test_importance_finds_the_fields_that_made_the_reward(shop: config.Project) -> None:
    found = features.with_importance(features.features(shop, "offer"), level=0.95, seed=0)
    assert found.importances is not None
    told = {one.name: one for one in found.importances.fields}
    assert (found.importances.rows, found.importances.units) == (600, 300)
    # Variances: price 100 / 100, hour (24^2 - 1) / 12 / 400, noise 0.25; some is lost where the transform bends price.
    whole = 1.0 + 575 / 12 / 400 + 0.25
    assert told["price"].alone.low > 0.4
    assert told["price"].alone.value < 1.0 / whole + 0.1
    hour = 575 / 12 / 400 / whole
    assert told["hour"].alone.low <= hour <= told["hour"].alone.high
    assert told["hour"].on_top is not None
    assert told["hour"].on_top.low > 0
    for name in ("noise", "device", "seen", HOSTILE):
        assert told[name].alone.low == 0, name


def test_the_columns_of_the_action_taken_are_those_of_the_batch(shop: config.Project) -> None:
    built = timeline.load(Path(features.features(shop, "offer").build))
    rows = np.array([3, 5, 100, 599])
    columns = features.columns_of([built], rows)(np.array([1, 3]))
    batch = built.batch
    want = np.concatenate([batch.context[[5, 599]], batch.candidates[[5, 599], batch.action[[5, 599]]]], axis=1)
    np.testing.assert_array_equal(columns, want)
    blocks = features.blocks(built.encoder)
    assert [(one.group, one.name) for one in blocks][-1] == ("candidate", "price")
    assert [one.start for one in blocks][1:] == [one.stop for one in blocks][:-1]
    assert (blocks[0].start, blocks[-1].stop) == (0, columns.shape[1])


def test_the_page_stands_alone_and_takes_no_field_for_markup(shop: config.Project, tmp_path: Path) -> None:
    found, path = features.report(shop, "offer", tmp_path / "page.html")
    text = path.read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object"} == set()
    addresses = [
        value for _, attributes in page.tags for name, value in attributes.items() if name.endswith(("href", "src"))
    ]
    assert all(value and value.startswith("#") for value in addresses)
    assert re.findall(r"url\(|@import", text) == []
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {(value or "").removeprefix("#") for value in addresses} <= targets
    assert HOSTILE in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 2 * len(found.fields) - 1 + 1  # a constant has one; importance
    for one in found.fields:
        assert one.profile.reason in page.text
    assert len(text) < 500_000


def test_the_command_prints_the_answer_the_noun_and_the_page(shop: config.Project, capsys) -> None:
    where = ["--project", str(shop.root)]
    assert cli.main(["features", "offer", *where]) == 0
    out = capsys.readouterr().out
    assert "noise" in out
    assert "strong" in out
    assert "next     look where noise comes from" in out
    assert cli.main(["features", "offer", "--json", *where]) == 0
    noun = msgspec.convert(json.loads(capsys.readouterr().out), features.Features)
    assert noun == features.features(shop, "offer")
    assert cli.main(["features", "offer", "--report", *where]) == 0
    out = capsys.readouterr().out
    path = Path(out.split()[1])
    assert path.parent == shop.root / "builds" / "offer"
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert features.features(shop, "offer").previous  # a page among the builds is no build


def test_without_a_build_it_says_how_to_make_one(tmp_path: Path) -> None:
    made = project(tmp_path, TOML)
    with pytest.raises(NotFoundError, match="nothing in builds/"):
        features.features(made, "offer")


def sampled(values: np.ndarray, counted: bool = True) -> Profile:
    """As a build would describe them."""
    levels = np.ceil(np.arange(129) / 128 * len(values)).astype(int).clip(1) - 1
    different, rows = np.unique(values, return_counts=True)
    counts = tuple(zip(different.tolist(), rows.tolist(), strict=True)) if counted and len(different) <= 100 else ()
    n = len(values)
    return Profile(
        group="context", name="x", kind="number", rows=n, present=n, finite=n, sampled=n, distinct=len(different),
        quantiles=tuple(np.sort(values)[levels].tolist()), counts=counts, type="continuous", reason="",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["deciles", "values"])
def test_a_field_that_did_not_change_is_below_chance_19_times_of_20(kind: str) -> None:
    random = np.random.default_rng(5)
    below = []
    for _ in range(300):
        before, after = (
            random.normal(size=n) if kind == "deciles" else random.integers(0, 12, n).astype(float) for n in (400, 700)
        )
        one, other = sampled(before), sampled(after)
        found = psi(one, other)
        assert found is not None
        below.append(found <= features.psi_by_chance(one, other))
    assert 0.91 <= np.mean(below) <= 1.0


def test_a_build_in_parts_is_told_from_its_profiles_and_from_all_parts(tmp_path: Path) -> None:
    made = project(tmp_path, TOML + "[problem.offer.build]\nshards = 2\n")
    write_log(made, (100,), seed=1, n=60)
    flow.build(made, "offer", until=101 * 86_400 * S, as_of=200 * 86_400 * S)
    found = features.features(made, "offer")
    assert (found.rows, found.previous) == (120, "")
    told = features.with_importance(found, level=0.95, seed=0).importances
    assert told is not None
    assert (told.rows, told.units) == (120, 60)
    directory = Path(found.build)
    parts = [timeline.load(part) for part in timeline.parts_of(directory)]
    rows, batch = np.array([119, 3, 60, 0]), timeline.load(directory).batch
    assert len(parts) == 2
    want = np.concatenate([batch.context[rows], batch.candidates[rows, batch.action[rows]]], axis=1)
    np.testing.assert_array_equal(features.columns_of(parts, rows)(np.arange(4)), want)


def test_a_reward_that_never_differs_has_no_importance_and_a_page_that_says_so(tmp_path: Path) -> None:
    made = project(tmp_path, TOML.replace('"clicks"', '"clicks * 0"'))
    write_log(made, (100,), seed=1, n=30)
    flow.build(made, "offer", until=101 * 86_400 * S, as_of=200 * 86_400 * S)
    found, path = features.report(made, "offer")
    assert found.importances is None
    assert "the reward is 0 in all 60 rows" in found.unknown
    assert found.unknown in Page(path.read_text()).text
    assert found.unknown in "\n".join(features.lines(found))


def test_named_actions_are_one_block(tmp_path: Path) -> None:
    named = TOML.replace('{ kind = "one" }', '{ kind = "one", names = ["c0", "c1"] }')
    made = project(tmp_path, named)
    write_log(made, (100,), seed=1, n=40)
    flow.build(made, "offer", until=101 * 86_400 * S, as_of=200 * 86_400 * S)
    told = features.with_importance(features.features(made, "offer"), level=0.9, seed=0).importances
    assert told is not None
    [action] = [one for one in told.fields if one.group == "action"]
    assert action.alone.low == 0.0  # which of the two it was says nothing
    assert action.alone.level == 0.9
