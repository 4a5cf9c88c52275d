"""Personalizer's calls for several slots: an event is a decision a slot, written down together, joined one by one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from product import project, serving
from served import logged
from steersman import flow, log, timeline
from steersman.core.decision import One, Problem
from steersman.serve import multislot, personalizer
from test_personalizer import ACTIONS, CONTEXT, running

API = "/personalizer/v1.1-preview.3/multislot"
SLOTS: list[dict[str, Any]] = [
    {"id": "hero", "baselineAction": "pasta", "excludedActions": ["soup"]},
    {"id": "side/bar", "baselineAction": "soup", "features": []},
    {"id": "foot", "baselineAction": "juice", "excludedActions": ["pasta"]},
]
EVENT = {"contextFeatures": CONTEXT, "actions": ACTIONS, "slots": SLOTS}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def http(directory: Path) -> Iterator[httpx.Client]:
    with running(directory) as (_, client):
        yield client


def decisions_of(directory: Path, event: str) -> list[Any]:
    return [one for one in logged(directory)[0] if one.unit == event]


def test_every_slot_is_a_decision_over_what_is_left_with_its_propensity(http: httpx.Client, directory: Path) -> None:
    for i in range(20):
        answer = http.post(f"{API}/rank", json=EVENT | {"eventId": f"e{i}"})
        assert answer.status_code == 201
        body = answer.json()
        assert (body["eventId"], [slot["id"] for slot in body["slots"]]) == (f"e{i}", ["hero", "side/bar", "foot"])
        taken = [slot["rewardActionId"] for slot in body["slots"]]
        decisions = decisions_of(directory, f"e{i}")
        assert [one.id for one in decisions] == [f"e{i}/hero", f"e{i}/side%2Fbar", f"e{i}/foot"]
        assert [one.action for one in decisions] == taken
        assert [one.step for one in decisions] == [0, 1, 2]
        for slot, one, before in zip(SLOTS, decisions, itertools.accumulate([[], *([a] for a in taken)]), strict=False):
            ids = {candidate.id for candidate in one.candidates}
            left = {"pasta", "soup", "juice", "salad"} - {*before, *slot.get("excludedActions", [])}
            assert ids == left  # four actions for three slots: nothing has to be kept back
            assert any(one.propensity == pytest.approx(p) for p in (0.8 + 0.2 / len(ids), 0.2 / len(ids)))  # epsilon
            assert one.context == {"age": 30.0, "country": "de"}


def test_the_draws_of_a_slot_follow_its_propensities(http: httpx.Client, directory: Path) -> None:
    for i in range(150):
        http.post(f"{API}/rank", json=EVENT | {"eventId": f"draw{i}"})
    seconds = [one for one in logged(directory)[0] if one.id.startswith("draw") and one.step == 1]
    assert len(seconds) == 150
    hits = np.mean([one.propensity > 0.5 for one in seconds])
    assert abs(hits - (0.8 + 0.2 / 3)) < 4 * np.sqrt(0.87 * 0.13 / 150)


def test_an_event_again_is_the_same_answer_another_one_of_its_id_is_a_conflict(
    http: httpx.Client, directory: Path
) -> None:
    first, again = (http.post(f"{API}/rank", json=EVENT | {"eventId": "twice"}) for _ in range(2))
    assert (first.json(), first.status_code) == (again.json(), again.status_code)
    assert len(decisions_of(directory, "twice")) == 3
    other = EVENT | {"eventId": "twice", "slots": [*SLOTS[:2], SLOTS[2] | {"excludedActions": []}]}
    for path, body in ((f"{API}/rank", other), ("/personalizer/v1.0/rank", {"actions": ACTIONS, "eventId": "twice"})):
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "Conflict")
    assert len(decisions_of(directory, "twice")) == 3


def test_events_without_id_get_one_and_the_preview_speaks_single_slots_too(http: httpx.Client) -> None:
    assert len({http.post(f"{API}/rank", json=EVENT).json()["eventId"] for _ in range(3)}) == 3
    one = http.post("/personalizer/v1.1-preview.1/rank", json={"contextFeatures": CONTEXT, "actions": ACTIONS})
    assert (one.status_code, len(one.json()["ranking"])) == (201, 4)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no slots": ({"slots": []}, "0 slots"),
    "a slot twice": ({"slots": [SLOTS[0], SLOTS[0] | {"baselineAction": "soup"}]}, "different ids"),
    "too many slots": (
        {
            "actions": [{"id": f"a{i}"} for i in range(60)],
            "slots": [{"id": f"{i}", "baselineAction": f"a{i}"} for i in range(51)],
        },
        "51 slots",
    ),
    "no baseline": ({"slots": [{"id": "hero"}]}, "baselineAction"),
    "a baseline that is no action": ({"slots": [{"id": "hero", "baselineAction": "pie"}]}, "no action"),
    "an empty baseline": ({"slots": [{"id": "hero", "baselineAction": ""}]}, "no action"),
    "a baseline twice": ({"slots": [SLOTS[0], SLOTS[1] | {"baselineAction": "pasta"}]}, "same baselineAction"),
    "an excluded baseline": ({"slots": [SLOTS[0] | {"excludedActions": ["pasta"]}]}, "is excluded"),
    "an unknown one excluded": ({"slots": [SLOTS[0] | {"excludedActions": ["pie"]}]}, "no action"),
    "an action twice": ({"actions": [*ACTIONS, ACTIONS[0]]}, "different ids"),
    "too many actions": ({"actions": [{"id": f"a{i}"} for i in range(1001)]}, "1001 actions"),
    "a field that the policy does not know": ({"slots": [SLOTS[0] | {"features": [{"size": 1}]}]}, "slot.size"),
    "one in a later slot": ({"slots": [SLOTS[0], SLOTS[1] | {"features": [{"size": 1}]}]}, "slot.size"),
    "an id that is too long": ({"eventId": "e" * 197}, "id has"),
    "features in all slots that are large together": (
        {
            "actions": [{"id": f"a{i}", "features": [{"_" + "x" * 900: 1}]} for i in range(800)],
            "slots": [{"id": f"{i}", "baselineAction": f"a{i}"} for i in range(50)],
        },
        "50 slots",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_no_slot_of_it_is_logged(http: httpx.Client, directory: Path, case: str) -> None:
    changes, told = BAD[case]
    before = len(list(log.read(directory)))
    answer = http.post(f"{API}/rank", json=EVENT | changes)
    assert answer.status_code == (413 if "large together" in case else 400)
    assert told in answer.json()["error"]["message"]
    assert len(list(log.read(directory))) == before


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"reward": []},
        {"reward": [{"slotId": "hero"}]},
        {"reward": [{"slotId": "hero", "value": "1"}]},
        {"reward": [{"slotId": "hero", "value": 1}, {"slotId": "hero", "value": 2}]},
        {"reward": [{"slotId": "hero", "value": 1}, {"slotId": "", "value": 1e999}]},
    ],
)
def test_bad_rewards_are_refused_as_a_whole(http: httpx.Client, directory: Path, body: dict[str, Any]) -> None:
    before = len(list(log.read(directory)))
    answer = http.post(f"{API}/events/e0/reward", content=json.dumps(body).replace("Infinity", "1e999"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BadArgument")
    assert len(list(log.read(directory))) == before


def test_apprentice_fills_every_slot_with_its_baseline_and_counts_agreement(tmp_path: Path) -> None:
    with running(tmp_path, apprentice=True) as (_, http):
        for i in range(5):
            body = http.post(f"{API}/rank", json=EVENT | {"eventId": f"a{i}"}).json()
            assert [slot["rewardActionId"] for slot in body["slots"]] == ["pasta", "soup", "juice"]
        found = logged(tmp_path)[0]
        assert {(one.propensity, one.version) for one in found} == {(1.0, 0)}
        counts = http.get("/v1/status").json()["counts"]
        assert (counts["apprentice"], counts["decisions"]) == (15, 15)
        assert 15 * 0.05 < counts["agreement"] < 15 * 0.95


ACTION_IDS = "abcdef"


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    baselines = draw(st.lists(st.sampled_from(ACTION_IDS), min_size=1, max_size=6, unique=True))
    excluded = [sorted(draw(st.sets(st.sampled_from(ACTION_IDS))) - {baseline}) for baseline in baselines]
    slots = [
        {"id": f"s{i}", "baselineAction": baseline, "excludedActions": excluded[i]}
        for i, baseline in enumerate(baselines)
    ]
    return {"actions": [{"id": id} for id in ACTION_IDS], "slots": slots, "eventId": "e"}


PLAIN = Problem(name="plain", actions=One(), reward="reward", wait_s=0.0)


@given(events(), st.data())
def test_whatever_is_taken_no_slot_stays_empty_and_none_takes_what_it_may_not(
    event: dict[str, Any], data: st.DataObject
) -> None:
    filling: multislot.Filling | None = multislot.read_rank(json.dumps(event).encode(), "", PLAIN, 10)
    taken: list[str] = []
    for slot in event["slots"]:
        assert filling is not None
        offered = [one["id"] for one in json.loads(filling.body())["candidates"]]
        assert offered and len(set(offered)) == len(offered)
        assert not {*offered} & {*taken, *slot["excludedActions"]}
        if not any(one["excludedActions"] for one in event["slots"]):
            left = len(ACTION_IDS) - len(taken)
            assert len(offered) == left  # without exclusions nothing is kept back
        taken.append(data.draw(st.sampled_from(offered)))
        last, filling = filling, filling.after(taken[-1])
    assert filling is None
    assert [one["rewardActionId"] for one in json.loads(last.answer(taken[-1]))["slots"]] == taken


def test_an_action_that_a_later_slot_can_not_do_without_is_not_offered_before_it() -> None:
    slots = [
        {"id": "first", "baselineAction": "a"},
        {"id": "last", "baselineAction": "b", "excludedActions": ["a", "c"]},
    ]
    body = {"actions": [{"id": id} for id in "abc"], "slots": slots}
    filling = multislot.read_rank(json.dumps(body).encode(), "e", PLAIN, 10)
    assert [one["id"] for one in json.loads(filling.body())["candidates"]] == ["a", "c"]


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("v1.0/rank", personalizer.Call("rank")),
        ("v1.1-preview.3/rank", personalizer.Call("rank")),
        ("v1.1-preview.3/multislot/rank", personalizer.Call("rank", slots=True)),
        ("v1.1-preview.2/multislot/events/a%2Fb/reward", personalizer.Call("reward", "a/b", True)),
        ("v1.1-preview.1/multislot/events/a/activate/", personalizer.Call("activate", "a", True)),
        ("v1.0/events/a/activate", personalizer.Call("activate", "a")),
        ("v1.0/multislot/rank", None),
        ("v1.1-preview.4/multislot/rank", None),
        ("v1.1-preview.3/multislot", None),
        ("v1.1-preview.3/multislot/events/a/b/reward", None),
    ],
)
def test_paths(path: str, call: personalizer.Call | None) -> None:
    assert personalizer.route("POST", f"/personalizer/{path}") == call
    assert personalizer.route("GET", f"/personalizer/{path}") is None


TOML = """\
[serve]
poll_s = 0.02

[problem.page]
reward = "reward"
wait_s = 60
actions = { kind = "one" }

[problem.page.context]
hour = "number"
slot = "text"
"slot.size" = "text"

[problem.page.candidate]
price = "number"
"""


@pytest.mark.parametrize("shards", [1, 2])
def test_from_rank_over_http_to_the_rows_of_a_build(tmp_path: Path, shards: int) -> None:
    made = project(tmp_path, TOML + f"\n[problem.page.build]\nshards = {shards}\n")
    actions = [{"id": f"a{i}", "features": [{"price": i}]} for i in range(4)]
    sizes = {"hero": "large", "foot": "small"}
    slots = [
        {"id": id, "baselineAction": f"a{i}", "features": [{"size": size}], "excludedActions": []}
        for i, (id, size) in enumerate(sizes.items())
    ]
    event = {"contextFeatures": [{"hour": 3}], "actions": actions, "slots": slots}
    answers = {}
    with serving(made) as url, httpx.Client(base_url=url, timeout=20) as http:
        for i in range(30):
            asked = event | {"eventId": f"e{i}", "deferActivation": i % 3 == 0}
            answers[f"e{i}"] = http.post(f"{API}/rank", json=asked).json()["slots"]
            reward = {"reward": [{"slotId": "foot", "value": i}, {"slotId": "hero", "value": -i}]}
            assert http.post(f"{API}/events/e{i}/reward", json=reward).status_code == 204
            if i % 6 == 0:
                assert http.post(f"{API}/events/e{i}/activate").status_code == 204
    built = flow.build(made, "page", as_of=flow.now_us() + 61_000_000)
    counts = built.counts
    assert (built.decisions, counts.deferred, counts.duplicates, counts.dangling) == (50, 10, 0, 0)
    whole = timeline.load(Path(built.directory))
    batch = whole.batch
    seen = dict(zip(whole.decision_ids.tolist(), range(len(batch)), strict=True))
    for i in range(30):
        for place, (slot, sign) in enumerate((("hero", -1), ("foot", 1))):
            row = seen.get(f"e{i}/{slot}")
            assert (row is None) == (i % 6 == 3)
            if row is not None:
                assert batch.reward[row] == sign * i
                assert batch.propensity[row] == pytest.approx(1 / (4 - place))
                assert batch.mask[row].sum() == 4 - place
                assert answers[f"e{i}"][place]["rewardActionId"] not in [
                    one["rewardActionId"] for one in answers[f"e{i}"][:place]
                ]
