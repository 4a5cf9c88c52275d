"""Horizon's table: every step becomes what it says, no propensity is made up, no ending is guessed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from product import project as made_project
from steersman import cli, flow, log
from steersman import engine as engines
from steersman.core.decision import Candidate, Decision, Numbers, One, Outcome, Problem
from steersman.core.errors import ConfigError, DataError
from steersman.log.foreign import Job

ENGINE = engines.open("duckdb", threads=1)

MIDNIGHT = 1_546_300_800_000_000  # 2019-01-01 00:00:00 UTC
DAY = 86_400_000_000


def problem(**changes: Any) -> Problem:
    values: dict[str, Any] = {"name": "pole", "actions": One(names=("left", "right")), "reward": "reward", "wait_s": 0}
    return Problem(**values | changes)


def step(**changes: Any) -> dict[str, Any]:
    """A line; a change to None drops the column."""
    values: dict[str, Any] = {
        "ds": "2019-01-01", "mdp_id": "e1", "sequence_number": 3, "state_features": {"0": 0.5, "12": -2.0},
        "action": "left", "action_probability": 0.25, "reward": 1.5, "possible_actions": ["left", "right"],
        "metrics": {"speed": 4.0},
    }  # fmt: skip
    return {name: value for name, value in (values | changes).items() if value is not None}


def put(directory: Path, *steps: dict[str, Any] | str, name: str = "steps.json") -> Path:
    path = directory / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in steps))
    return path


def run(pen: log.Pen, source: Path, what: Problem | None = None, **changes: Any) -> log.Imported:
    rejects = source.with_name("rejects.jsonl")
    given = log.Source(path=source, form="horizon")
    return log.import_log(pen, ENGINE, given, what or problem(), rejects=rejects, **changes)


def nouns(directory: Path) -> list[Any]:
    return [
        msgspec.json.decode(record.body, type=Decision if record.kind == log.DECISION else Outcome)
        for record in log.read(directory)
    ]


def reason(pen: log.Pen, line: dict[str, Any] | str, what: Problem | None = None) -> str:
    """Why the only line is refused."""
    source = put(pen.directory, line)
    with pytest.raises(DataError, match="1 of 1 rows refused"):
        run(pen, source, what)
    assert nouns(pen.directory) == []
    (rejected,) = [json.loads(row) for row in source.with_name("rejects.jsonl").read_text().splitlines()]
    assert rejected["line"] == 1
    return rejected["reason"]


def test_a_step_becomes_a_decision_and_its_outcome(tmp_path: Path, pen: log.Pen) -> None:
    assert run(pen, put(tmp_path, step())) == log.Imported(rows=1, decisions=1, outcomes=1)
    decision, outcome = nouns(pen.directory)
    at = MIDNIGHT + 3_000_000
    assert decision == Decision(
        id=decision.id, problem="pole", unit="e1", at=at, context={"f0": 0.5, "f12": -2.0},
        candidates=(Candidate("left"), Candidate("right")), action="left", propensity=0.25, step=3,
    )  # fmt: skip
    assert outcome == Outcome(id=outcome.id, decision=decision.id, at=at, metrics={"reward": 1.5, "speed": 4.0})


@pytest.mark.parametrize("name", ["propensity", "sequence_number_ordinal"])
def test_a_propensity_under_another_name_is_refused_never_taken_for_1(pen: log.Pen, name: str) -> None:
    said = reason(pen, step(action_probability=None) | {name: 0.5})
    assert "action_probability is missing" in said


@pytest.mark.parametrize("probability", [0.0, -0.5, 1.5])
def test_a_probability_outside_0_to_1_is_refused(pen: log.Pen, probability: float) -> None:
    assert f"propensity is {probability:g}, must be in (0, 1]" in reason(pen, step(action_probability=probability))


def test_an_episode_ends_at_the_line_that_says_so_and_at_no_other(tmp_path: Path, pen: log.Pen) -> None:
    lines = [
        step(sequence_number=0),
        step(sequence_number=1, possible_actions=[], reward=7.0),
        step(mdp_id="e2", sequence_number=0),
        step(mdp_id="e2", sequence_number=1) | {"possible_actions": None},
    ]
    run(pen, put(tmp_path, *lines))
    found = nouns(pen.directory)
    assert [noun.ends for noun in found[1::2]] == [None, "terminated", None, None]
    assert found[3].metrics["reward"] == 7.0  # the last action keeps its reward
    assert found[2].candidates == (Candidate("left"), Candidate("right"))


def test_a_line_that_was_sampled_twice_is_one_decision(tmp_path: Path, pen: log.Pen) -> None:
    again = dict(reversed(step().items())) | {"state_features": {"12": -2, "0": 0.5}}
    run(pen, put(tmp_path, step(), again, step(ds="2019-01-02")))
    one, _, same, _, next_day, _ = nouns(pen.directory)
    assert one.id == same.id != next_day.id


def test_two_lines_of_one_step_that_disagree_are_both_kept(tmp_path: Path, pen: log.Pen) -> None:
    run(pen, put(tmp_path, step(), step(action="right")))
    one, of_one, two, of_two = nouns(pen.directory)
    assert (one.action, two.action) == ("left", "right")
    assert one.id == of_one.decision != two.id == of_two.decision


def test_the_same_file_twice_gives_the_same_ids_and_another_problem_others(tmp_path: Path) -> None:
    source = put(tmp_path, step(), step(sequence_number=4))
    found = []
    for place, what in (("a", problem()), ("b", problem()), ("c", problem(name="other"))):
        with log.Pen(tmp_path / place) as pen:
            run(pen, source, what)
        found.append({noun.id for noun in nouns(tmp_path / place)})
    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert not found[0] & found[2]


@pytest.mark.parametrize(
    ("number", "at"),
    [
        (0, MIDNIGHT),
        (100_000, MIDNIGHT + 100_000_000_000),  # longer than a day: a count all the same
        (1_546_300_801, MIDNIGHT + 1_000_000),
        (1_546_300_801_500, MIDNIGHT + 1_500_000),
        (1_546_300_800_000_007, MIDNIGHT + 7),
    ],
)
def test_a_sequence_number_is_a_count_of_seconds_or_a_clock_on_its_day(
    tmp_path: Path, pen: log.Pen, number: int, at: int
) -> None:
    run(pen, put(tmp_path, step(sequence_number=number)))
    decision, outcome = nouns(pen.directory)
    assert (decision.at, decision.step, outcome.at) == (at, number, at)


@pytest.mark.parametrize("number", [1_546_300_799, 1_546_387_200, 10**18])
def test_a_clock_on_another_day_is_refused(pen: log.Pen, number: int) -> None:
    assert "is not on the day 2019-01-01" in reason(pen, step(sequence_number=number))


def test_actions_with_features_are_named_by_them(tmp_path: Path, pen: log.Pen) -> None:
    small, large = {"1": 1.0, "2": 0.5}, {"1": 9.0}
    line = step(action={"2": 0.5, "1": 1}, possible_actions=[large, small])
    run(pen, put(tmp_path, line), problem(actions=One()))
    decision, _ = nouns(pen.directory)
    assert [candidate.features for candidate in decision.candidates] == [{"f1": 9.0}, {"f1": 1.0, "f2": 0.5}]
    assert decision.action == decision.candidates[1].id != decision.candidates[0].id


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"action": ""}, "no action was taken"),
        ({"action": None}, "no action was taken"),
        ({"action": "up"}, "'up' is not among its 2 candidates"),
        ({"possible_actions": ["left", "up"]}, "'up' is none of the 2 named actions"),
        ({"action": {"1": 1.0}}, "2 named actions"),
        ({"possible_actions": [{"1": 1.0}]}, "mix names and maps"),
        ({"ds": "today"}, "ds is 'today', no date"),
        ({"ds": None}, "ds"),
        ({"sequence_number": -1}, "step is -1"),
        ({"sequence_number": 1.5}, "sequence_number"),
        ({"reward": None, "metrics": None}, "neither reward nor metrics"),
        ({"metrics": {"reward": 2.0}}, "reward is 1.5 and metrics.reward is 2"),
        ({"metrics": {"1": 2.0}}, "metric '1' must match"),
        ({"state_features": {"a/b": 1.0}}, "can name no field"),
        ({"state_features": {"1": 1.0, "f1": 2.0}}, "'f1' stands twice"),
        ({"state_features": {"Age": 1.0, "age": 2.0}}, "differ only in case"),
        ({"state_features": {"1": "x"}}, "state_features"),
        ({"state_id_score_list_features": {"1": {"2": 0.5}}}, "no field can hold"),
    ],
)
def test_a_line_that_breaks_a_law_is_refused_with_its_reason(pen: log.Pen, changes: dict[str, Any], said: str) -> None:
    assert said in reason(pen, step(**changes))


def test_lines_that_are_no_steps_are_refused(pen: log.Pen) -> None:
    assert "not valid JSON" in reason(pen, "{")
    assert "expected" in reason(pen, "[1]").lower()


def test_without_possible_actions_and_names_nothing_is_known_of_the_alternatives(pen: log.Pen) -> None:
    for given_actions in (None, []):
        line = step() | {"possible_actions": given_actions}
        assert "what else could have been done is not known" in reason(pen, line, problem(actions=One()))


def test_declared_fields_are_kept_to(pen: log.Pen) -> None:
    assert "no field 'f12'" in reason(pen, step(), problem(context={"f0": "number"}))


def test_a_null_is_a_missing_value_and_id_lists_are_lists_of_texts(tmp_path: Path, pen: log.Pen) -> None:
    line = step(state_features={"0": None, "age": 3}, metrics={"speed": 1}, state_id_list_features={"7": [4, 5]})
    run(pen, put(tmp_path, line | {"metrics": {"speed": None}}))
    decision, outcome = nouns(pen.directory)
    assert decision.context == {"age": 3.0, "f7": ("4", "5")}
    assert outcome.metrics == {"reward": 1.5}


def test_metrics_alone_are_an_outcome(tmp_path: Path, pen: log.Pen) -> None:
    run(pen, put(tmp_path, step(reward=None)))
    assert nouns(pen.directory)[1].metrics == {"speed": 4.0}


def test_more_refused_than_the_share_and_nothing_is_imported(tmp_path: Path, pen: log.Pen) -> None:
    source = put(tmp_path, *[step(sequence_number=number) for number in range(3)], "", step(action_probability=0.0))
    with pytest.raises(DataError, match=r"1 of 4 rows refused, over the share 0\.2; line 5"):
        run(pen, source, max_reject_share=0.2)
    assert nouns(pen.directory) == []
    assert run(pen, source, max_reject_share=0.25) == log.Imported(rows=4, decisions=3, outcomes=3, rejected=1)


def test_numbers_and_unknown_formats_are_refused_before_any_line(tmp_path: Path, pen: log.Pen) -> None:
    source = put(tmp_path, step())
    with pytest.raises(DataError, match="does not choose one action"):
        run(pen, source, problem(actions=Numbers(low=(0.0,), high=(1.0,))))
    with pytest.raises(ConfigError, match="no format 'horizn'") as error:
        given = log.Source(path=source, form="horizn")
        log.import_log(pen, ENGINE, given, problem(), rejects=tmp_path / "rejects")
    assert "horizon" in error.value.hint
    with pytest.raises(DataError, match="is not a file"):
        run(pen, tmp_path / "none.json")


def test_a_compressed_file_reads_the_same_and_a_torn_one_changes_nothing(tmp_path: Path, pen: log.Pen) -> None:
    packed = gzip.compress(put(tmp_path, *[step(sequence_number=number) for number in range(500)]).read_bytes())
    torn, whole = tmp_path / "torn.json.gz", tmp_path / "whole.json.gz"
    torn.write_bytes(packed[: len(packed) // 2])
    whole.write_bytes(packed)
    with pytest.raises(DataError, match="can not be decompressed"):
        run(pen, torn)
    assert nouns(pen.directory) == []
    assert run(pen, whole).decisions == 500


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(list(step())),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({}),
    )
)
def test_any_line_is_imported_or_refused_never_lost(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = put(tmp_path, step() | changes)
    job = Job(ENGINE, log.Source(path=source, form="horizon"), problem(), tmp_path)
    judged = list(log.importing.FORMS["horizon"](job))
    assert len(judged) == 1
    assert bool(judged[0].records) != bool(judged[0].reason)


def test_the_command_imports_a_log_that_then_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = '[problem.pole]\nreward = "reward"\nwait_s = 0\nactions = { kind = "one", names = ["left", "right"] }\n'
    root = tmp_path / "product"
    made = made_project(root, toml)
    lines = [
        step(mdp_id=f"e{unit}", sequence_number=number, state_features={"0": unit + number / 10}, reward=float(number))
        | ({"possible_actions": []} if number == 3 and unit % 2 else {})
        for unit in range(20)
        for number in range(4)
    ]
    source = put(tmp_path, *reversed(lines))
    command = ["log", "--project", str(root), "--json", "import", str(source), "--name", "pole", "--format", "horizon"]
    for _ in range(2):  # twice counts once
        assert cli.main(command) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {"rows": 80, "decisions": 80, "outcomes": 80, "rejected": 0, "behavior": None}
    built = flow.build(made, "pole")
    assert (built.decisions, built.counts.episodes, built.counts.terminated) == (80, 20, 10)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('at = "ds"\naction = "action"\n')
    assert cli.main([*command, "--mapping", str(mapping)]) == ConfigError.exit_code
    assert "takes no mapping" in capsys.readouterr().out
