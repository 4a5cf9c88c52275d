"""dsjson: every event becomes what it says, costs change their sign once, what was never shown is left out."""

from __future__ import annotations

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
from steersman.core.decision import Candidate, Decision, One, Outcome, Problem, Ranked
from steersman.core.errors import DataError
from steersman.log.foreign import Job

ENGINE = engines.open("duckdb", threads=1)

AT = 1_627_552_800_999_000  # 2021-07-29 10:00:00.999 UTC


def problem(**changes: Any) -> Problem:
    return Problem(**{"name": "cafe", "actions": One(), "reward": "reward", "wait_s": 0} | changes)


def drink(name: str, **features: Any) -> dict[str, Any]:
    return {"_tag": name, "i": {"constant": 1, "id": name}, "j": [features]}


def event(**changes: Any) -> dict[str, Any]:
    """A line as Personalizer writes it; a change to None drops the key."""
    values: dict[str, Any] = {
        "_label_cost": -0.5, "_label_probability": 0.85000002384185791, "_label_Action": 2, "_labelIndex": 1,
        "o": [{"v": 0.5, "EventId": "ev1", "ActionTaken": False}],
        "Timestamp": "2021-07-29T10:00:00.9990000Z", "Version": "1", "EventId": "ev1", "a": [2, 1],
        "c": {
            "FromUrl": [{"weather": "Sunny", "hour": 9, "member": True}, {"tags": ["a", "b"]}],
            "_synthetic": False, "User": {"_age": 3, "visits": 2.5, "sizes": [1, 2]},
            "_multi": [drink("mocha", type="hot"), drink("latte", type="cold", price=3)],
        },
        "p": [0.85, 0.15], "VWState": {"m": "x/y"},
    }  # fmt: skip
    return {name: value for name, value in (values | changes).items() if value is not None}


def with_context(**changes: Any) -> dict[str, Any]:
    return event(c=event()["c"] | changes)


def put(directory: Path, *events: dict[str, Any] | str, name: str = "log.json") -> Path:
    path = directory / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in events))
    return path


def run(pen: log.Pen, source: Path, what: Problem | None = None, **changes: Any) -> log.Imported:
    rejects = source.with_name("rejects.jsonl")
    given = log.Source(path=source, form="dsjson")
    return log.import_log(pen, ENGINE, given, what or problem(), rejects=rejects, **changes)


def nouns(directory: Path) -> list[Any]:
    return [
        msgspec.json.decode(record.body, type=Decision if record.kind == log.DECISION else Outcome)
        for record in log.read(directory)
    ]


def rejected(source: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in source.with_name("rejects.jsonl").read_text().splitlines()]


def reason(pen: log.Pen, line: dict[str, Any] | str, what: Problem | None = None) -> str:
    """Why the only line is refused."""
    source = put(pen.directory, line)
    with pytest.raises(DataError, match="1 of 1 rows refused"):
        run(pen, source, what)
    assert nouns(pen.directory) == []
    return rejected(source)[0]["reason"]


def test_an_event_becomes_a_decision_and_its_outcome(tmp_path: Path, pen: log.Pen) -> None:
    assert run(pen, put(tmp_path, event())) == log.Imported(rows=1, decisions=1, outcomes=1)
    decision, outcome = nouns(pen.directory)
    assert decision == Decision(
        id="ev1", problem="cafe", unit="ev1", at=AT,
        context={
            "FromUrl.weather": "Sunny", "FromUrl.hour": 9.0, "FromUrl.member": 1.0, "FromUrl.tags": ("a", "b"),
            "User.visits": 2.5, "User.sizes": (1.0, 2.0),
        },
        candidates=(
            Candidate("mocha", {"i.constant": 1.0, "j.type": "hot"}),
            Candidate("latte", {"i.constant": 1.0, "j.type": "cold", "j.price": 3.0}),
        ),
        action="latte", propensity=0.85,
    )  # fmt: skip
    assert outcome == Outcome(id=outcome.id, decision="ev1", at=AT, metrics={"reward": 0.5})


@pytest.mark.parametrize("cost", [0, -0.0, 0.0])
def test_no_cost_is_a_reward_of_plain_zero(tmp_path: Path, pen: log.Pen, cost: float) -> None:
    run(pen, put(tmp_path, event(_label_cost=cost)))
    assert str(nouns(pen.directory)[1].metrics["reward"]) == "0.0"


@pytest.mark.parametrize(
    "candidate",
    [{"id": "tea"}, {"Id": "tea"}, {"i": {"id": "tea"}}, {"_tag": "tea"}, {"_tag": "tea", "id": "tea"}],
)
def test_the_id_of_a_candidate_is_taken_where_it_stands_and_is_no_feature(
    tmp_path: Path, pen: log.Pen, candidate: dict[str, Any]
) -> None:
    run(pen, put(tmp_path, with_context(_multi=[drink("mocha"), candidate | {"T": {"hot": 1}}])))
    assert nouns(pen.directory)[0].candidates[1] == Candidate("tea", {"T.hot": 1.0})


def test_candidates_without_an_id_are_named_by_their_features(tmp_path: Path, pen: log.Pen) -> None:
    first, second = {"T": {"a": 1, "b": "x"}}, {"T": {"a": 2}}
    lines = [
        with_context(_multi=[first, second]),
        with_context(_multi=[{"T": {"b": "x", "a": 1.0}}, second]) | {"EventId": "ev2"},
    ]
    run(pen, put(tmp_path, *lines))
    one, _, two, _ = nouns(pen.directory)
    assert [candidate.id for candidate in one.candidates] == [candidate.id for candidate in two.candidates]
    assert one.action == one.candidates[1].id != one.candidates[0].id


DANGLING = {
    "RewardValue": 846.7, "ActionTaken": False, "EnqueuedTimeUtc": "2021-07-29T12:00:00.999Z", "EventId": "ev1",
    "DanglingReward": True,
}  # fmt: skip
TWO_HOURS = 7_200_000_000


def test_a_dangling_reward_is_an_outcome_of_its_decision_at_its_time(tmp_path: Path, pen: log.Pen) -> None:
    elsewhere = {"RewardValue": 0.0, "EnqueuedTimeUtc": "2021-07-29T12:00:00.999Z", "EventId": "gone"}
    source = put(tmp_path, event(), DANGLING, DANGLING, elsewhere)
    assert run(pen, source, max_reject_share=0.0) == log.Imported(rows=4, decisions=1, outcomes=4)
    _, joined, late, again, other = nouns(pen.directory)
    assert late == Outcome(id=late.id, decision="ev1", at=AT + TWO_HOURS, metrics={"reward": 846.7})
    assert again == late  # the same line twice counts once
    assert (other.decision, other.metrics) == ("gone", {"reward": 0.0})
    assert len({joined.id, late.id, other.id}) == 3


def test_a_dangling_activation_activates_and_has_no_reward_of_its_own(tmp_path: Path, pen: log.Pen) -> None:
    taken = DANGLING | {"ActionTaken": True}
    lines = [taken | {"RewardValue": 0.0}, taken | {"RewardValue": None}, taken]
    run(pen, put(tmp_path, *lines))
    found = [(noun.activates, noun.metrics) for noun in nouns(pen.directory)]
    assert found == [(True, {}), (True, {}), (True, {"reward": 846.7})]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RewardValue": None}, "a reward without a value"),
        ({"RewardValue": "many"}, "RewardValue"),
        ({"EnqueuedTimeUtc": "late"}, "EnqueuedTimeUtc is 'late', no time"),
        ({"EventId": ""}, "decision has 0 characters"),
    ],
)
def test_a_dangling_line_that_breaks_a_law_is_refused(pen: log.Pen, changes: dict[str, Any], said: str) -> None:
    assert said in reason(pen, DANGLING | changes)


DEFERRED = [({"DeferredAction": True}), ({"_deferred": True}), ({"_skipLearn": True})]
ACTIVE = [{"EventId": "ev1", "ActionTaken": True}, {"EventId": "ev1", "DeferredAction": False}]


@pytest.mark.parametrize("deferred", DEFERRED)
def test_what_was_deferred_says_so_until_an_observation_activates_it(
    tmp_path: Path, pen: log.Pen, deferred: dict[str, Any]
) -> None:
    reward_alone = event()["o"]
    seen = [None, [], reward_alone, *([*reward_alone, one] for one in ACTIVE)]
    lines = [event(EventId=f"e{i}", **deferred, o=found) for i, found in enumerate(seen)]
    run(pen, put(tmp_path, *lines), max_reject_share=0.0)
    found = nouns(pen.directory)
    assert all(decision.deferred for decision in found[::2])
    assert [outcome.activates for outcome in found[1::2]] == [False, False, False, True, True]
    assert [outcome.metrics for outcome in found[1::2]] == [{"reward": 0.5}] * 5


def test_what_was_never_deferred_is_plain(tmp_path: Path, pen: log.Pen) -> None:
    run(pen, put(tmp_path, event(o=ACTIVE), event(DeferredAction=False, _skipLearn=False, EventId="b")))
    found = nouns(pen.directory)
    assert not any(decision.deferred for decision in found[::2])
    assert not any(outcome.activates for outcome in found[1::2])


@pytest.mark.parametrize(("label", "fits"), [(0.8500009, True), (0.850002, False), (0.15, False)])
def test_the_two_probabilities_must_agree_within_1e_6(tmp_path: Path, pen: log.Pen, label: float, fits: bool) -> None:
    line = event(_label_probability=label)
    if fits:
        run(pen, put(tmp_path, line))
        assert nouns(pen.directory)[0].propensity == 0.85
    else:
        assert "p of the candidate taken is 0.85" in reason(pen, line)


def test_the_label_may_hold_the_probability_of_not_being_dropped(tmp_path: Path, pen: log.Pen) -> None:
    run(pen, put(tmp_path, event(pdrop=0.2, _label_probability=0.68)))
    assert nouns(pen.directory)[0].propensity == 0.85  # of the policy, not of the logging


def test_events_that_stand_for_different_numbers_of_events_do_not_mix(tmp_path: Path, pen: log.Pen) -> None:
    source = put(tmp_path, event(pdrop=0.2), event(pdrop=0.2, EventId="b"), event(EventId="c"))
    assert run(pen, source, max_reject_share=0.5).decisions == 2
    assert "pdrop is 0, that of the first event is 0.2" in rejected(source)[0]["reason"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"p": None}, "p is missing"),
        ({"p": [0.85]}, "p has 1 probabilities and a 2"),
        ({"p": [0.0, 1.0], "_label_probability": 0.0}, "propensity is 0, must be in (0, 1]"),
        ({"p": [1.5, 0.1], "_label_probability": 1.5}, "propensity is 1.5, must be in (0, 1]"),
        ({"_label_probability": None}, "_label_probability is missing"),
        ({"_label_cost": None}, "_label_cost is missing"),
        ({"_label_cost": "NaN"}, "_label_cost"),
        ({"_label_Action": 1}, "_label_Action is 1, but a says that 2 was taken"),
        ({"_labelIndex": 2}, "_labelIndex is 2, but a says that 1 was taken"),
        ({"a": [2, 2]}, "must hold 1 to 2 once each"),
        ({"a": [1, 0]}, "must hold 1 to 2 once each"),
        ({"a": []}, "a is []"),
        ({"a": [2, 1, 3], "p": [0.85, 0.1, 0.05]}, "c._multi has 2 candidates and a 3"),
        ({"EventId": None}, "EventId is missing"),
        ({"Timestamp": None}, "Timestamp is missing"),
        ({"Timestamp": "now"}, "Timestamp is 'now', no time"),
        ({"c": None}, "c is missing"),
        ({"c": {}}, "c._multi must be a list"),
        ({"pdrop": 1.0}, "pdrop is 1"),
        ({"_outcomes": []}, "several slots"),
    ],
)
def test_a_line_that_breaks_a_law_is_refused_with_its_reason(pen: log.Pen, changes: dict[str, Any], said: str) -> None:
    assert said in reason(pen, event(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_multi": [drink("mocha"), drink("mocha")]}, "stands twice"),
        ({"_multi": [{"T": {"a": 1}}, {"T": {"a": 1}}]}, "stands twice"),
        ({"_multi": [drink("mocha"), {"_tag": "x", "id": "y"}]}, "a feature named id"),
        ({"_slots": [{}]}, "several slots"),
        ({"User": {"a": [1, "b"]}}, "a list of texts or of numbers"),
        ({"User": {"a": [[1]]}}, "a list of texts or of numbers"),
        ({"User": {"a": 10**400}}, "beyond the range of a float"),
        ({"User": {"A": 1, "a": 2}}, "differ only in case"),
        ({"User": [{"a": 1}, {"a": 2}]}, "'User.a' stands twice"),
        ({"User": {"a" * 300: 1}}, "must be 1 to 200"),
    ],
)
def test_a_context_that_the_log_could_not_hold_is_refused(pen: log.Pen, changes: dict[str, Any], said: str) -> None:
    assert said in reason(pen, with_context(**changes))


def test_named_actions_and_declared_fields_are_kept_to(pen: log.Pen) -> None:
    said = reason(pen, event(), problem(actions=One(names=("mocha", "lattee"))))
    assert "'latte' is none of the 2 named actions" in said
    assert "no field 'FromUrl.hour'" in reason(pen, event(), problem(context={"FromUrl.weather": "text"}))
    assert "no field 'j.type'" in reason(pen, event(), problem(candidate={"i.constant": "number"}))


def test_other_lines_and_other_problems_are_refused(tmp_path: Path, pen: log.Pen) -> None:
    assert "not valid JSON" in reason(pen, "{")
    assert "expected `object`" in reason(pen, '["checkpoint", 1]').lower()
    with pytest.raises(DataError, match="does not choose one action"):
        run(pen, put(tmp_path, event()), problem(actions=Ranked(slots=2)))


def test_an_object_nested_without_end_is_refused(pen: log.Pen) -> None:
    deep = json.dumps(event()).replace('"_synthetic"', '"x": ' + '{"": ' * 400 + "1" + "}" * 400 + ', "_synthetic"')
    assert "nested too deeply" in reason(pen, deep)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from([*event(), "pdrop", "_skipLearn"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({}),
    )
)
def test_any_line_is_imported_or_set_aside_never_lost(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = log.Source(path=put(tmp_path, event() | changes), form="dsjson")
    judged = list(log.importing.FORMS["dsjson"](Job(ENGINE, source, problem(), tmp_path)))
    assert len(judged) == 1
    assert bool(judged[0].records) != bool(judged[0].reason)


def test_the_command_imports_a_log_that_then_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "product"
    made = made_project(root, '[problem.cafe]\nreward = "reward"\nwait_s = 0\nactions = { kind = "one" }\n')
    context = event()["c"] | {"FromUrl": {"weather": "Sunny"}, "User": {"visits": 2}}
    lines = [
        event(EventId=f"ev{number}", _label_cost=-(number % 2), DeferredAction=number >= 20 or None, c=context)
        for number in range(40)
    ]
    activations = [
        {"RewardValue": 0, "ActionTaken": True, "EventId": f"ev{number}", "EnqueuedTimeUtc": lines[0]["Timestamp"]}
        for number in range(30)
    ]
    source = put(tmp_path, *lines, *activations)
    place = ["log", "--project", str(root)]
    command = ["import", str(source), "--name", "cafe", "--format", "dsjson"]
    for _ in range(2):  # twice counts once
        assert cli.main([*place, "--json", *command]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {"rows": 70, "decisions": 40, "outcomes": 70, "rejected": 0, "behavior": None}
    assert cli.main([*place, *command]) == 0
    assert "imported   40 decisions, 70 outcomes" in capsys.readouterr().out
    flow.compact(made)
    deferred = log.find(made.log_directory, "ev35", ENGINE)
    assert deferred.deferred
    built = flow.build(made, "cafe")
    assert (built.decisions, built.counts.units, built.counts.without_outcome) == (30, 30, 0)
