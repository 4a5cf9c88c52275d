"""Drift against the version that decides now: of the data's fields, and of what the policy does; through the verbs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from product import project
from steersman import config, flow, timeline
from steersman.core.errors import DataError
from steersman.core.policy import EpsilonGreedy, Policy, Uniform, constant_scorer
from steersman.core.report import Report, Verdict
from steersman.core.version import Parents
from steersman.evaluate import Gates, Moved, Previous
from steersman.evaluate.previous import action_drift, feature_drift
from steersman.flow import places
from steersman.flow.places import Candidate
from steersman.models import onnx
from steersman.models.warehouse import Draft, Warehouse
from test_features_report import TOML, S, write_log

LIMITS = """
[problem.offer.gates]
max_psi = 0.25
max_ks = 0.2
max_action_drift = 0.1
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> config.Project:
    """A champion that was made on the build of day 100; on day 101, the last build, `noise` moved by a deviation."""
    made = project(tmp_path_factory.mktemp("drift"), TOML.replace("wait_s = 0", "wait_s = 0\nhorizon = 1") + LIMITS)
    write_log(made, (100,), seed=1)
    write_log(made, (101,), seed=2, shift=1.0)
    days = [100 * 86_400 * S, 101 * 86_400 * S, 102 * 86_400 * S]
    first = flow.build(made, "offer", since=days[0], until=days[1], as_of=200 * 86_400 * S)
    built = timeline.load(Path(first.directory))
    place = places.place(made, "candidates", "offer", "0123456789ab")
    candidate = Candidate(
        problem="offer", directory=str(place), build=first.directory, data=built.batch.digest, config="c", policy="p",
        learner="dqn", seed=0,
    )  # fmt: skip
    place.mkdir(parents=True)
    places.write(place / "candidate.json", candidate)
    champion = Draft(
        name="offer", encoder=built.encoder, explorer=Uniform(), seed="0" * 32, made_at=1,
        parents=Parents(data=built.batch.digest, config="c", code="1"),
    )  # fmt: skip
    warehouse = Warehouse(made.warehouse_url)
    number = warehouse.publish(champion, onnx.compose(built.encoder, None)).number
    warehouse.set_alias("offer", "champion", number, 2)
    flow.build(made, "offer", since=days[1], until=days[2], as_of=200 * 86_400 * S)
    return made


def verdicts(report: Report) -> dict[str, Verdict]:
    return {v.gate: v for v in report.verdicts}


def judged(shop: config.Project, policy: Policy) -> dict[str, Verdict]:
    return verdicts(flow.judge_policy(shop, "offer", policy, "0" * 64))


def last(shop: config.Project) -> timeline.Built:
    return timeline.load(places.latest(shop, "builds", "offer", hint=""))


def test_a_field_that_moved_since_the_champion_s_data_fails_with_its_name(shop):
    found = judged(shop, Policy(last(shop).encoder, constant_scorer, Uniform()))
    psi, ks = found["feature drift, psi"], found["feature drift, ks"]
    assert (psi.status, ks.status) == ("fail", "fail")
    assert "context.noise moved most" in psi.reason
    assert psi.value > 0.8  # of two normals a deviation apart it is 1 in theory
    assert ks.value == pytest.approx(0.383, abs=0.06)  # 2 Phi(1/2) - 1
    assert "steersman features" in psi.next


def test_a_policy_that_does_other_things_than_the_champion_fails_with_their_share(shop):
    """The champion gives both candidates half; the first gets 0.9 here."""
    encoder = last(shop).encoder
    first = Policy(encoder, lambda context, some: np.tile([1.0, 0.0], (len(context), 1)), EpsilonGreedy(0.2))
    answer = judged(shop, first)["action drift"]
    assert answer.status == "fail"
    assert answer.value == pytest.approx(0.4)
    assert "offer@2" in answer.reason
    same = judged(shop, Policy(encoder, constant_scorer, Uniform()))["action drift"]
    assert (same.status, same.value) == ("pass", pytest.approx(0.0))


def test_without_limits_drift_is_not_asked(shop, monkeypatch):
    free = msgspec.structs.replace(shop.policies["offer"], gates=Gates())
    quiet = msgspec.structs.replace(shop, policies={"offer": free})
    found = judged(quiet, Policy(last(shop).encoder, constant_scorer, Uniform()))
    assert not [gate for gate in found if gate in ("action drift", "feature drift, psi", "feature drift, ks")]


def test_a_champion_that_learned_nothing_has_no_data_to_drift_from(shop):
    warehouse = Warehouse(shop.warehouse_url)
    warehouse.set_alias("offer", "champion", 1, 3)
    try:
        found = judged(shop, Policy(last(shop).encoder, constant_scorer, Uniform()))
        assert found["feature drift, psi"].status == "pass"
        assert "of 0 fields" in found["feature drift, psi"].reason
    finally:
        warehouse.rollback("offer", "champion", 4)


def test_a_champion_whose_data_are_gone_is_not_identified(shop):
    candidate = places.place(shop, "candidates", "offer", "0123456789ab") / "candidate.json"
    text = candidate.read_bytes()
    candidate.unlink()
    try:
        found = judged(shop, Policy(last(shop).encoder, constant_scorer, Uniform()))
        assert found["feature drift, psi"].status == "not identified"
        assert "not here" in found["feature drift, psi"].reason
        assert found["action drift"].status == "pass"
    finally:
        candidate.write_bytes(text)


def test_what_chance_explains_does_not_fail_and_a_field_that_is_gone_does():
    few = Moved(field="context.hour", psi=0.4, psi_chance=0.5, ks=0.1, ks_chance=0.3)
    sure = Moved(field="context.age", psi=0.2, psi_chance=0.01, ks=None, ks_chance=None)
    found = Previous(version="p@3", moved=None, fields=(few, sure), unknown="why")
    (psi,) = feature_drift(found, 0.25, None)
    assert (psi.status, psi.value) == ("pass", 0.2)
    assert "context.age" in psi.reason
    (ks,) = feature_drift(found, None, 0.05)
    assert (ks.status, ks.value) == ("pass", 0.1)
    (gone,) = feature_drift(msgspec.structs.replace(found, gone=("context.os",)), 0.25, None)
    assert gone.status == "fail"
    assert "gone: context.os" in gone.reason
    assert action_drift(found, 0.1).status == "not identified"
    with pytest.raises(DataError, match="max_psi"):
        Gates(max_psi=-1.0)
