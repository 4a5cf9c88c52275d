"""Estimate, Verdict, Report, Version, Rollout: claims that can be repeated, and who gets which version."""

import math
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steersman.core.errors import DataError
from steersman.core.features import Category, Continuous, Encoder
from steersman.core.policy import EpsilonGreedy, Softmax, Uniform
from steersman.core.report import Estimate, Report, Verdict
from steersman.core.version import Parents, Rollout, Version

ESTIMATE = {"estimator": "dr", "value": 0.5, "low": 0.4, "high": 0.7, "level": 0.95, "n": 100, "ess": 37.5}
PASS = Verdict(gate="lower bound", status="pass", reason="0.4 is above 0.3", value=0.4, limit=0.3)
FAIL = Verdict(gate="support", status="fail", reason="2% was never logged", next="log with more exploration")
UNKNOWN = Verdict(gate="support", status="not identified", reason="ess 2 of 10,000")


def estimate(**changed: object) -> Estimate:
    return Estimate(**{**ESTIMATE, **changed})


def report(**changed: object) -> Report:
    headline = estimate()
    return Report(
        **{
            "problem": "shop",
            "policy": "ab12",
            "baseline": estimate(estimator="logged mean", value=0.45),
            "headline": headline,
            "lift": estimate(estimator="dr - logged", value=0.05, low=-0.1),
            "estimates": (headline, estimate(estimator="ips")),
            "verdicts": (PASS,),
            "data": "cd34",
            "since": 0,
            "until": 1000,
            "decisions": 100,
            "seed": 7,
            **changed,
        }
    )


@dataclass(frozen=True)
class V:
    """A valid version."""

    explorer: object = EpsilonGreedy(0.1)
    report: Report | None = None
    number: int = 1
    seed: str = "00ff"
    name: str = "shop"

    def make(self) -> Version:
        return Version(
            name=self.name,
            number=self.number,
            digest="ef56",
            graph="model.onnx",
            encoder=Encoder(context=(Category("device", ("pc",)), Continuous("hour", 12.0, 6.0)), actions=("a", "b")),
            explorer=self.explorer,
            seed=self.seed,
            parents=Parents(data="d", config="c", code="0.1"),
            report=self.report,
            made_at=1,
        )


def rollout(**changed: object) -> Rollout:
    return Rollout(
        **{"problem": "shop", "baseline": 1, "candidate": 2, "share": 0.1, "state": "canary", "since": 0, **changed}
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"value": math.nan},
        {"value": math.inf},
        {"low": -math.inf},
        {"high": math.inf},
        {"ess": math.nan},
        {"value": 0.39},
        {"value": 0.71},
        {"low": 0.8},
        {"level": 0},
        {"level": 1},
        {"level": math.nan},
        {"n": 0},
        {"ess": -1},
        {"ess": 100.1},
    ],
)
def test_an_estimate_that_breaks_a_law_is_refused_by_name(changed):
    with pytest.raises(DataError, match="estimate dr of reward"):
        estimate(**changed)


def test_an_estimate_may_be_certain_and_its_ess_may_round():
    assert estimate(low=0.5, high=0.5).low == 0.5
    assert estimate(ess=100 * (1 + 1e-12)).n == 100


@pytest.mark.parametrize(
    ("verdicts", "passed"),
    [((), False), ((PASS,), True), ((PASS, PASS), True), ((PASS, FAIL), False), ((PASS, UNKNOWN), False)],
)
def test_a_report_passes_if_every_gate_did_and_there_was_one(verdicts, passed):
    assert report(verdicts=verdicts).passed is passed


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"headline": estimate(estimator="wdr")}, "headline"),
        ({"since": 1000}, "until"),
        ({"since": 1001}, "until"),
        ({"decisions": 0}, "decisions"),
    ],
)
def test_a_report_that_can_not_be_repeated_is_refused(changed, field):
    with pytest.raises(DataError, match="report of shop") as refused:
        report(**changed)
    assert refused.value.field == field


@pytest.mark.parametrize("number", [0, -1])
def test_versions_count_from_1(number):
    with pytest.raises(DataError, match=f"shop/{number}") as refused:
        V(number=number).make()
    assert refused.value.field == "number"


@pytest.mark.parametrize("name", ["", "../other", "a/b"])
def test_the_name_of_a_version_is_that_of_a_problem(name):
    with pytest.raises(DataError) as refused:
        V(name=name).make()
    assert refused.value.field == "name"


def test_a_version_whose_seed_the_draw_would_refuse_is_refused():
    with pytest.raises(DataError, match="64 bytes") as refused:
        V(seed="x" * 65).make()
    assert refused.value.field == "seed"


@pytest.mark.parametrize("explorer", [Uniform(), EpsilonGreedy(0.1), Softmax(2.0, floor=0.1)])
@pytest.mark.parametrize("claimed", [None, report()])
def test_a_version_is_read_as_it_was_written(explorer, claimed):
    version = V(explorer, claimed).make()
    again = msgspec.json.decode(msgspec.json.encode(version), type=Version)
    assert again == version
    assert again.encoder.digest == version.encoder.digest


@given(value=st.floats(-1e300, 1e300), width=st.floats(0, 1e300), n=st.integers(1, 10**12))
def test_a_report_is_read_as_it_was_written(value, width, n):
    one = estimate(value=value, low=value - width, high=value + width, n=n, ess=n / 3)
    written = report(headline=one, estimates=(one,), baseline=one, verdicts=(PASS, FAIL, UNKNOWN))
    assert msgspec.json.decode(msgspec.json.encode(written), type=Report) == written


@pytest.mark.parametrize("state", ["shadow", "backed out"])
def test_nobody_gets_a_candidate_in_the_shadow_or_backed_out(state):
    assert rollout(state=state, share=0).share == 0
    with pytest.raises(DataError, match="must be 0") as refused:
        rollout(state=state, share=0.01)
    assert refused.value.field == "share"


@pytest.mark.parametrize("state", ["shadow", "canary", "ramp", "backed out"])
def test_the_baseline_keeps_traffic_until_the_rollout_is_done(state):
    with pytest.raises(DataError) as refused:
        rollout(state=state, share=1)
    assert refused.value.field == "share"


def test_done_means_everybody():
    assert rollout(state="done", share=1).share == 1
    with pytest.raises(DataError, match="done") as refused:
        rollout(state="done", share=0.5)
    assert refused.value.field == "share"


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan])
def test_a_share_is_in_0_1(share):
    with pytest.raises(DataError) as refused:
        rollout(share=share)
    assert refused.value.field == "share"


@pytest.mark.parametrize(("changed", "field"), [({"candidate": 1}, "candidate"), ({"baseline": 0}, "baseline")])
def test_a_rollout_is_between_two_versions(changed, field):
    with pytest.raises(DataError) as refused:
        rollout(**changed)
    assert refused.value.field == field


def test_a_rollout_is_read_as_it_was_written_and_a_state_is_one_of_five():
    one = rollout()
    assert msgspec.json.decode(msgspec.json.encode(one), type=Rollout) == one
    with pytest.raises(msgspec.ValidationError, match="state"):
        msgspec.convert({**msgspec.to_builtins(one), "state": "half"}, Rollout)
