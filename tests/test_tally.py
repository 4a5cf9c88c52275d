"""One scrape tells of all workers: sums of what each counted, which go on where a worker was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

import plain_models as plain
from product import TOML, project, serving
from served import Running, plane_of
from steersman import flow, log
from steersman.serve.board import HALF, Board
from steersman.serve.metrics import Metrics, State, summed, text
from steersman.serve.settings import Settings
from test_access import read_metrics

PREDICT = 'model_name="half",version="1",API="Predict",entrypoint="REST"'
OK = f':tensorflow:serving:request_count{{{PREDICT},status="OK"}}'
TIMED = f":tensorflow:serving:request_latency_count{{{PREDICT}}}"
BUCKET = f':tensorflow:serving:request_latency_bucket{{{PREDICT},le="+Inf"}}'
ROWS = ':tensorflow:serving:request_example_count_total{model="half",version="1"}'


def scraped(url: str) -> tuple[int, dict[str, float]]:
    """Of a new connection, which any worker may get: its process, and what it tells."""
    with httpx.Client(base_url=url, timeout=20) as http:
        found = read_metrics(http.get("/metrics").text)
        return http.get("/v1/status").json()["server"]["pid"], found


def by_worker(url: str, others: frozenset[int] = frozenset()) -> dict[int, dict[str, float]]:
    """What each of two workers tells, asked after all was asked; others: who is not waited for."""
    found: dict[int, dict[str, float]] = {}
    until = time.monotonic() + 30
    while len(found) < 2 or found.keys() & others:
        assert time.monotonic() < until, "one of two workers gets no connection"
        found = {pid: one for pid, one in found.items() if pid not in others}
        try:
            pid, told = scraped(url)
        except httpx.TransportError:  # of the worker that was killed
            continue
        found[pid] = told
    return found


def ask(url: str, times: int) -> set[int]:
    """Decide and predict two rows, each time on a new connection; the processes that answered."""
    pids = set()
    for i in range(times):
        with httpx.Client(base_url=url, timeout=20) as http:
            assert http.post("/v1/decide/greeting", json={"unit": f"u{i}"}).status_code == 200
            assert http.post("/v1/models/half:predict", json={"instances": [1, 2]}).status_code == 200
            pids.add(http.get("/v1/status").json()["server"]["pid"])
    return pids


def test_any_worker_tells_of_all_and_nothing_is_counted_anew_when_one_is_killed(tmp_path: Path) -> None:
    made = project(tmp_path, TOML.replace("poll_s = 0.02", "poll_s = 0.02\nworkers = 2"))
    (tmp_path / "half.onnx").write_bytes(plain.half())
    flow.publish_model(made, "half", tmp_path / "half.onnx")
    with serving(made) as url:
        asked = 0
        pids: set[int] = set()
        while len(pids) < 2:
            pids |= ask(url, 10)
            asked += 10
            assert asked < 300
        time.sleep(1.3)  # each has left its counts
        for told in by_worker(url).values():
            assert [told[name] for name in (OK, TIMED, BUCKET)] == [asked] * 3
            assert told[ROWS] == 2 * asked
            assert told["steersman_decisions_total"] == asked
            assert told["steersman_workers"] == 2
        killed = min(pids)
        os.kill(killed, signal.SIGKILL)
        later = by_worker(url, frozenset([killed]))
        assert later.keys() != pids
        for told in later.values():
            assert [told[name] for name in (OK, TIMED, BUCKET, "steersman_decisions_total")] == [asked] * 4
            assert told["steersman_workers"] == 2
        ask(url, 10)
        time.sleep(1.3)
        for told in by_worker(url).values():
            assert (told[OK], told[ROWS], told["steersman_decisions_total"]) == (asked + 10, 2 * asked + 20, asked + 10)


def test_a_state_that_was_not_written_to_its_end_leaves_the_one_before() -> None:
    board = Board(2)
    first, second = board.seat(0), board.seat(1)
    assert (first.before, first.others()) == (b"", [])
    for body in (b"one", b"two" * 1000, b"three"):
        first.leave(body)
        assert second.others() == [body]
    first.leave(b"x" * HALF)  # too large: the last one stays
    assert second.others() == [b"three"] and first.others() == []
    start = board._start(0, 3 % 2)
    board._memory[start + 20] ^= 1  # killed while it wrote
    assert second.others() == [b"two" * 1000]
    again = board.seat(0)
    assert again.before == b"two" * 1000
    again.leave(b"four")
    assert second.others() == [b"four"]


class Served:
    name, number, rows, runs = "half", 1, 0, 0


def test_what_a_version_counted_stays_when_it_goes_and_goes_on_when_it_comes_again() -> None:
    metrics = Metrics()
    first, again = Served(), Served()
    first.rows, first.runs = 5, 2
    assert dict(metrics.state({}, {}, [first]).served) == {("half", 1, "rows"): 5, ("half", 1, "runs"): 2}
    assert dict(metrics.state({}, {}, []).served)["half", 1, "rows"] == 5
    again.rows = 1
    assert dict(metrics.state({}, {}, [again]).served)["half", 1, "rows"] == 6
    assert dict(metrics.state({}, {}, [again]).served)["half", 1, "rows"] == 6


def test_one_worker_tells_of_a_version_that_went_before_anybody_asked(tmp_path: Path) -> None:
    versions = {"half": {1: plain.half()}}
    models = plain.models_of(versions)
    with log.Pen(tmp_path) as pen:
        server = Running(plane_of(pen), Settings(port=0, quiet_s=0.02), models=models)
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as http:
            assert http.post("/v1/models/half:predict", json={"instances": [1, 2]}).status_code == 200
            time.sleep(2.2)
            versions["half"] = {2: plain.half(2.0)}
            models.follow()
            assert read_metrics(http.get("/metrics").text)[ROWS] == 2
        server.stop()


def test_sums_of_states_and_statuses_of_one_code_are_one_line() -> None:
    which = ("half", 1, "Invoke", "REST")
    metrics = Metrics()
    for status, took_us in ((400, 1.0), (415, 1e12), (200, 100.0)):
        metrics.seen(which, status, took_us)
    one = metrics.state({"decisions": 3, "agreement": 0.5}, {"waiting": 1}, [])
    lines = text(summed([one, one, State()])).decode()
    found = read_metrics(lines)
    labels = 'model_name="half",version="1",API="Invoke",entrypoint="REST"'
    assert found[f':tensorflow:serving:request_count{{{labels},status="INVALID_ARGUMENT"}}'] == 4
    assert found[f':tensorflow:serving:request_latency_bucket{{{labels},le="+Inf"}}'] == 6
    assert found[f':tensorflow:serving:request_latency_bucket{{{labels},le="10"}}'] == 2
    assert found[f":tensorflow:serving:request_latency_sum{{{labels}}}"] == pytest.approx(2 * (1e12 + 101))
    assert (found["steersman_decisions_total"], found["steersman_agreement_total"]) == (6, 1.0)
    names = [line.rpartition(" ")[0] for line in lines.splitlines() if not line.startswith("#")]
    assert len(set(names)) == len(names)
