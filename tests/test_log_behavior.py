"""Estimated propensities: close to the true ones, of models that have not seen the unit, marked, and never 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from product import project as made_project
from steersman import cli, flow, log
from steersman.cli import show
from steersman.core.decision import Decision, One, Outcome, Problem
from steersman.core.errors import DataError
from steersman.engine import Engine
from steersman.log import choice
from steersman.log.choice import Row
from steersman.log.lbfgs import minimise

NAMES = ("a", "b", "c")
SHOPS = ("north", "south")
WEIGHTS = np.array([[0.3, 1.0, -0.5, 0.8], [0.0, -0.7, 0.6, -0.4], [-0.2, 0.0, 0.0, 0.0]])
"""[actions, (1, x, y, north)] of the policy that decides below."""


def softmax(utility: np.ndarray) -> np.ndarray:
    chances = np.exp(utility - utility.max(axis=1, keepdims=True))
    return chances / chances.sum(axis=1, keepdims=True)


def play(n: int, seed: int, weights: np.ndarray = WEIGHTS) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """Rows of a softmax policy, five a unit; [n, 3] its probabilities and [n] what it took."""
    draw = np.random.default_rng(seed)
    x, y, shop = draw.normal(size=n), 100 + 20 * draw.normal(size=n), draw.integers(2, size=n)
    chances = softmax(np.stack([np.ones(n), x, (y - 100) / 20, shop == 0], axis=1) @ weights.T)
    taken = (chances.cumsum(axis=1) > draw.random((n, 1))).argmax(axis=1)
    gain = (draw.random(n) < 0.2 + 0.3 * (taken == 1) + 0.2 * (x > 0)).astype(float)
    rows = [
        {
            "key": f"k{i}", "user": f"u{i // 5}", "t": i, "x": x[i], "y": y[i], "shop": SHOPS[shop[i]],
            "arm": NAMES[taken[i]], "gain": gain[i],
        }
        for i in range(n)
    ]  # fmt: skip
    return rows, chances, taken


HOW = {
    "id": "key", "at": "t", "unit": "user", "action": "arm", "context": {"x": "x", "y": "y", "shop": "shop"},
    "metrics": {"gain": "gain"},
}  # fmt: skip


def problem(**changes: Any) -> Problem:
    return Problem(**{"name": "shop", "actions": One(names=NAMES), "reward": "gain", "wait_s": 0} | changes)


def run(
    place: Path, engine: Engine, rows: list[dict[str, Any]], how: dict[str, Any] = HOW, **changes: Any
) -> tuple[log.Behavior | None, list[Decision]]:
    """What an import with --propensity estimate did, and the decisions in their order."""
    place.mkdir(exist_ok=True)
    path = place / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = log.Source(
        path=path, mapping=msgspec.convert(how, log.Mapping), propensities=changes.pop("propensities", "estimate")
    )
    with log.Pen(place / "log", durability="buffered") as pen:
        done = log.import_log(pen, engine, source, problem(**changes), rejects=place / "rejects.jsonl")
    bodies = [record.body for record in log.read(place / "log") if record.kind == log.DECISION]
    return done.behavior, [msgspec.json.decode(body, type=Decision) for body in bodies]


def test_the_propensities_of_a_softmax_policy_are_found(tmp_path: Path, engine: Engine) -> None:
    n = 10_000
    rows, chances, taken = play(n, 1)
    behavior, decisions = run(tmp_path / "p", engine, rows)
    assert behavior is not None
    assert (behavior.method, behavior.decisions, behavior.fitted_on, behavior.units) == ("logistic", n, n, n // 5)
    assert all(one.estimated for one in decisions)
    truth = chances[np.arange(n), taken]
    found = np.array([one.propensity for one in decisions])
    # Two of three rows of weights are free: 8 parameters, so a probability has a standard error of about
    # sqrt(8 / n) * sqrt(p (1 - p)) <= 0.016 from four fifths of n.
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.016
    assert np.abs(found - truth).max() < 5 * 0.016
    assert behavior.smallest == found.min()
    entropy = -np.log(truth).mean()  # no model is better than the truth but by luck
    assert behavior.loss_logistic == pytest.approx(entropy, abs=0.002)
    frequencies = np.bincount(taken) / n
    assert behavior.loss_frequencies == pytest.approx(-np.log(frequencies[taken]).mean(), abs=0.001)
    assert behavior.loss_uniform == pytest.approx(np.log(3))
    assert behavior.low < behavior.loss_frequencies - behavior.loss_logistic < behavior.high
    assert behavior.gain == pytest.approx(behavior.loss_frequencies - behavior.loss_logistic, abs=1e-12)


def test_ips_with_them_is_close_to_ips_with_the_true_ones(tmp_path: Path, engine: Engine) -> None:
    n = 10_000
    rows, chances, taken = play(n, 2)
    _, decisions = run(tmp_path / "p", engine, rows)
    gain = np.array([row["gain"] for row in rows])
    found = np.array([one.propensity for one in decisions])
    truth = chances[np.arange(n), taken]
    for action in range(3):
        target = (taken == action).astype(float)
        error = np.std(target / truth * gain) / np.sqrt(n)
        assert abs(np.mean(target / found * gain) - np.mean(target / truth * gain)) < error


def test_a_conditional_logit_over_candidates_is_found(tmp_path: Path, engine: Engine) -> None:
    """Each request brings three of many items: the policy likes cheap ones, the more so the poorer the user."""
    n, draw = 6_000, np.random.default_rng(3)
    poor, price = draw.normal(size=n), draw.normal(size=(n, 3))
    chances = softmax(-(0.5 + 0.8 * poor[:, None]) * price)
    taken = (chances.cumsum(axis=1) > draw.random((n, 1))).argmax(axis=1)
    rows = [
        {
            "key": f"k{i}", "user": f"u{i}", "t": i, "poor": poor[i], "arm": f"i{i}-{taken[i]}",
            "arms": [{"id": f"i{i}-{k}", "price": price[i, k]} for k in range(3)],
        }
        for i in range(n)
    ]  # fmt: skip
    how = {"id": "key", "at": "t", "unit": "user", "action": "arm", "candidates": "arms", "context": {"poor": "poor"}}
    behavior, decisions = run(tmp_path / "p", engine, rows, how, actions=One())
    assert behavior is not None
    assert behavior.method == "logistic"
    found = np.array([one.propensity for one in decisions])
    # 2 parameters: sqrt(2 / n) * sqrt(p (1 - p)) is about 0.01
    assert np.sqrt(np.mean((found - chances[np.arange(n), taken]) ** 2)) < 0.02


def test_a_policy_that_ignores_the_context_has_its_frequencies(tmp_path: Path, engine: Engine) -> None:
    plain = np.array([[0.5, 0, 0, 0], [0.0, 0, 0, 0], [-0.5, 0, 0, 0]])
    rows, chances, taken = play(3_000, 4, plain)
    behavior, decisions = run(tmp_path / "p", engine, rows)
    assert behavior is not None
    assert behavior.method == "frequencies"
    assert behavior.low <= 0
    assert abs(behavior.gain) < 0.005
    found = np.array([one.propensity for one in decisions])
    assert np.abs(found - chances[np.arange(3_000), taken]).max() < 4 * np.sqrt(0.25 / 2_400)


def test_noise_in_many_fields_is_not_taken_for_a_policy(tmp_path: Path, engine: Engine) -> None:
    draw = np.random.default_rng(5)
    fields = {f"f{j}": f"f{j}" for j in range(80)}
    rows = [
        {"key": f"k{i}", "user": f"u{i}", "t": i, "arm": NAMES[draw.integers(3)], "gain": 0.0}
        | {name: draw.normal() for name in fields}
        for i in range(150)
    ]
    behavior, decisions = run(tmp_path / "p", engine, rows, HOW | {"context": fields})
    assert behavior is not None
    assert (behavior.method, behavior.ridge) == ("frequencies", 1000.0)
    assert behavior.loss_logistic == pytest.approx(behavior.loss_frequencies, abs=0.02)
    assert max(abs(one.propensity - 1 / 3) for one in decisions) < 4 * np.sqrt(2 / 9 / 120)


def test_a_unit_is_never_judged_by_its_own_actions(tmp_path: Path, engine: Engine) -> None:
    rows, _, _ = play(400, 6)
    for row in rows:
        row["arm"] = "a" if row["arm"] == "c" else row["arm"]
    changed = [dict(row) for row in rows]
    own = range(10, 15)
    for i in own:
        changed[i]["arm"] = "a" if rows[i]["arm"] == "b" else "b"
    named = {"actions": One(names=("a", "b"))}
    before, after = (run(tmp_path / place, engine, some, **named) for place, some in (("x", rows), ("y", changed)))
    for i in own:  # what the models say of `a` and of `b` is one and the same
        assert before[1][i].propensity + after[1][i].propensity == pytest.approx(1, abs=1e-9)


def test_the_order_of_the_rows_says_nothing(tmp_path: Path, engine: Engine) -> None:
    rows, _, _ = play(500, 7)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    found = [
        {one.id: one.propensity for one in run(tmp_path / place, engine, some)[1]}
        for place, some in (("x", rows), ("y", shuffled))
    ]
    assert found[0].keys() == found[1].keys()
    assert max(abs(found[0][key] - found[1][key]) for key in found[0]) < 1e-4  # sums in another order


def test_a_policy_without_chance_has_no_propensity_of_0(tmp_path: Path, engine: Engine) -> None:
    rows, _, _ = play(1_000, 8)
    for i, row in enumerate(rows):
        row["arm"] = ("a" if row["x"] > 0 else "b") if i else "c"  # and once something that it never does
    behavior, decisions = run(tmp_path / "p", engine, rows)
    assert behavior is not None
    assert behavior.method == "logistic"
    assert 1e-7 < decisions[0].propensity == behavior.smallest < 0.01
    assert np.median([one.propensity for one in decisions]) > 0.9


def test_what_was_logged_stays_and_what_was_not_is_estimated(tmp_path: Path, engine: Engine) -> None:
    rows, _, _ = play(500, 9)
    for i, row in enumerate(rows):
        row["p"] = 0.125 if i % 2 else None
    behavior, decisions = run(tmp_path / "p", engine, rows, HOW | {"propensity": "p"})
    assert behavior is not None
    assert (behavior.decisions, behavior.fitted_on) == (250, 250)
    assert [(one.propensity, one.estimated) for one in decisions[1::2]] == [(0.125, False)] * 250
    assert all(one.estimated and one.propensity != 0.125 for one in decisions[::2])


def test_nothing_is_fitted_if_nothing_is_missing(tmp_path: Path, engine: Engine) -> None:
    rows, _, _ = play(10, 10)
    behavior, decisions = run(tmp_path / "p", engine, rows, HOW | {"propensity": "0.25"})
    assert behavior is None
    assert {(one.propensity, one.estimated) for one in decisions} == {(0.25, False)}


def test_too_few_units_are_no_ground_for_an_estimate(tmp_path: Path, engine: Engine) -> None:
    rows, _, _ = play(95, 11)
    with pytest.raises(DataError, match="can not be learned from 19 units, at least 20 are needed"):
        run(tmp_path / "p", engine, rows)
    assert list(log.read(tmp_path / "p" / "log")) == []


def test_a_unit_that_is_a_whole_log_leaves_nothing_to_learn_from(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log.behavior, "MAX_ROWS", 50)
    rows = [row | {"user": "one"} for row in play(100, 20)[0]]
    for propensities in ("estimate", "uniform"):
        with pytest.raises(DataError, match=r"can not be learned from [01] units"):
            run(tmp_path / "p", engine, rows, propensities=propensities)
        assert list(log.read(tmp_path / "p" / "log")) == []


def test_uniform_is_taken_at_its_word_unless_the_log_refutes_it(tmp_path: Path, engine: Engine) -> None:
    fair, _, _ = play(1_500, 12, np.zeros((3, 4)))
    behavior, decisions = run(tmp_path / "fair", engine, fair, propensities="uniform")
    assert behavior is not None
    assert behavior.method == "uniform"
    assert {(one.propensity, one.estimated) for one in decisions} == {(1 / 3, False)}
    for place, weights in (("by action", np.array([[0.5, 0, 0, 0]] + [[0] * 4] * 2)), ("by context", WEIGHTS)):
        with pytest.raises(DataError, match="not taken uniformly"):
            run(tmp_path / place, engine, play(1_500, 13, weights)[0], propensities="uniform")
        assert list(log.read(tmp_path / place / "log")) == []


def test_a_log_larger_than_what_is_fitted_on_gets_all_its_propensities(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log.behavior, "MAX_ROWS", 1_000)
    monkeypatch.setattr(log.behavior, "CHUNK", 700)
    monkeypatch.setattr(choice, "MAX_WORK", 700 * 20)
    rows, chances, taken = play(4_000, 14)
    behavior, decisions = run(tmp_path / "p", engine, rows)
    assert behavior is not None
    assert behavior.decisions == 4_000
    assert 300 < behavior.fitted_on <= 1_000
    error = np.array([one.propensity for one in decisions]) - chances[np.arange(4_000), taken]
    assert np.sqrt(np.mean(error**2)) < 0.5 * np.sqrt(8 / (0.8 * behavior.fitted_on))


def test_the_mark_survives_compaction(tmp_path: Path, engine: Engine) -> None:
    rows, _, _ = play(200, 15)
    _, decisions = run(tmp_path, engine, rows)
    log.compact(tmp_path / "log", {"shop": problem()}, engine)
    assert log.find(tmp_path / "log", "k7", engine) == decisions[7]
    assert decisions[7].estimated


def test_missing_values_lists_and_rare_texts_are_no_obstacle(tmp_path: Path, engine: Engine) -> None:
    rows, _, _ = play(300, 16)
    draw = np.random.default_rng(16)
    for i, row in enumerate(rows):
        row["x"] = row["x"] if draw.random() < 0.7 else None
        row["shop"] = f"rare {i}" if i % 3 == 0 else row["shop"]
        row["tags"] = ["x", "y"][: draw.integers(3)]
    behavior, decisions = run(tmp_path / "p", engine, rows, HOW | {"context": HOW["context"] | {"tags": "tags"}})
    assert behavior is not None
    assert all(0 < one.propensity <= 1 for one in decisions)


def test_the_fit_is_the_smallest_penalised_loss() -> None:
    draw = np.random.default_rng(17)
    rows = [
        Row(f"u{i}", i, {"x": float(draw.normal()), "s": str(draw.integers(2))}, ("a", "b"), (), int(draw.integers(2)))
        for i in range(200)
    ]
    coder = choice.Coder(rows)
    coded = coder.code(rows)
    theta = choice.fit(coded, coder.ids, 10.0)
    weight = np.full(theta.shape, 10.0)
    weight[:, 0] = choice.INTERCEPT_RIDGE

    def loss(theta: np.ndarray) -> float:
        chances = choice.probabilities(theta, coded)[np.arange(200), coded.taken]
        return float(-np.log(chances).sum() + 0.5 * (weight * theta**2).sum())

    best = loss(theta)
    for _ in range(50):
        assert loss(theta + 0.01 * draw.normal(size=theta.shape)) > best


def test_lbfgs_finds_the_minimum_of_a_badly_scaled_function() -> None:
    scale = np.logspace(0, 2, 20)
    found = minimise(lambda x: (float((scale * (x - 1) ** 2).sum()), 2 * scale * (x - 1)), np.zeros(20), tolerance=1e-8)
    assert np.abs(found - 1).max() < 1e-7


TOML = """\
[problem.shop]
reward = "gain"
wait_s = 0
actions = { kind = "one", names = ["a", "b", "c"] }
"""


def test_the_command_says_where_the_propensities_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_project(tmp_path / "product", TOML)
    rows, _, _ = play(1_000, 18)
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(
        'id = "key"\nat = "t"\nunit = "user"\naction = "arm"\n'
        '[context]\nx = "x"\nshop = "shop"\n[metrics]\ngain = "gain"\n'
    )
    place = ["log", "--project", str(made.root)]
    command = ["import", str(source), "--name", "shop", "--mapping", str(mapping)]
    assert cli.main([*place, *command]) == DataError.exit_code
    assert "--propensity estimate" in capsys.readouterr().err
    assert cli.main([*place, *command, "--propensity", "uniform"]) == DataError.exit_code
    assert "not taken uniformly" in capsys.readouterr().err
    assert cli.main([*place, *command, "--propensity", "estimate"]) == 0
    said = capsys.readouterr().out
    assert "propensity 1,000 were missing: estimated by a logistic model of the context" in said
    query = ["import", "--sql", f"SELECT * FROM '{source}' WHERE t < 500", *command[2:], "--propensity", "estimate"]
    assert cli.main([*place, "--json", *query]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["behavior"]["decisions"]) == (500, 500)
    assert isinstance(msgspec.convert(found, log.Imported).behavior, log.Behavior)


def test_outcomes_keep_their_place_behind_their_decisions(tmp_path: Path, engine: Engine) -> None:
    run(tmp_path, engine, play(200, 19)[0])
    records = list(log.read(tmp_path / "log"))
    for one, other in zip(records[::2], records[1::2], strict=True):
        decision = msgspec.json.decode(one.body, type=Decision)
        assert msgspec.json.decode(other.body, type=Outcome).decision == decision.id


def test_a_report_on_estimated_propensities_says_so(tmp_path: Path) -> None:
    """From the import to what a person reads: nobody may take an estimate for a record."""
    rng = np.random.default_rng(0)
    row = {"hour": 9.5, "device": "desk"}
    rows = [
        row | {"id": f"d{i}", "unit": f"u{i % 40}", "at": i * 1_000_000}
        | {"action": str(rng.choice(["hello", "hi", "welcome"])), "clicks": float(rng.random() < 0.3)}
        for i in range(400)
    ]  # fmt: skip
    source, mapping = tmp_path / "log.jsonl", tmp_path / "mapping.toml"
    source.write_text("\n".join(map(json.dumps, rows)))
    mapping.write_text(
        'id = "id"\nunit = "unit"\nat = "at"\naction = "action"\nends = "\'terminated\'"\n'
        'context = { hour = "hour", device = "device" }\nmetrics = { clicks = "clicks" }\n'
    )
    made = made_project(tmp_path / "shop")
    given = flow.read_source(source, mapping, form="", sql="", propensities="estimate")
    assert flow.import_log(made, "greeting", given).decisions == 400
    built = flow.build(made, "greeting", as_of=10**15)
    assert built.counts.estimated == 400
    report = flow.judge(made, "greeting", "1")
    assert report.estimated == 400
    assert any("400 propensities" in line for line in show.report_lines(report))
