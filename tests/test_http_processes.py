"""A server as a process of its own: what it was asked before a signal is answered, swaps fail nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from served import Client, Clients, logged, process, want
from test_http import DECIDE, SHOP


def question(thread: int, count: int) -> bytes:
    return json.dumps({**SHOP, "id": f"{thread}-{count}", "unit": f"u{thread}"}).encode()


def test_sigterm_under_load_answers_and_logs_every_request_it_accepted_and_exits_with_0(tmp_path: Path) -> None:
    """A request that crosses the end of an idle connection is not accepted: no answer, and no line either."""
    want(tmp_path, shop=1, light=1)
    with process(tmp_path, quiet_s=1) as (server, port):
        clients = Clients(port, 16, question, DECIDE)
        clients.wait_for(500)
        server.send_signal(signal.SIGTERM)
        clients.join()
        assert server.wait(20) == 0
    assert all(isinstance(failure, OSError) for failure in clients.failures)
    answered = {answer["id"]: (answer["action"], answer["propensity"]) for answer, _, _ in clients.answers}
    assert len(answered) == sum(clients.sent) - len(clients.failures) >= 500
    decisions, _ = logged(tmp_path / "log")
    assert {decision.id: (decision.action, decision.propensity) for decision in decisions} == answered
    assert len(decisions) == len(answered)


LOADS_FOR_EVER = """
import threading
from steersman.serve import workers
from steersman.serve.plane import Plane
from steersman.serve.settings import Settings
def wanted():
    print("asked", flush=True)
    threading.Event().wait()
plane = Plane(None, None, now=lambda: 0, new_id=str)
raise SystemExit(workers.run(plane, Settings(port=0), wanted=wanted))
"""


def test_sigterm_while_the_first_load_hangs_ends_the_process_with_0() -> None:
    with subprocess.Popen([sys.executable, "-c", LOADS_FOR_EVER], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"asked\n"
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 0
        finally:
            server.kill()


LOADS_LONG = """
import time
from steersman.serve import workers
from steersman.serve.plane import Plane
from steersman.serve.settings import Settings
looks = []
def wanted():
    looks.append(0)
    if len(looks) == 2:
        print("asked", flush=True)
        time.sleep(0.5)
        print("told", flush=True)
    return {}
plane = Plane(None, None, now=lambda: 0, new_id=str)
raise SystemExit(workers.run(plane, Settings(port=0, poll_s=0.01), wanted=wanted))
"""


def test_a_load_that_goes_on_ends_before_the_process_does() -> None:
    """A graph library that comes back into an interpreter that is no more would abort the process."""
    with subprocess.Popen([sys.executable, "-c", LOADS_LONG], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"asked\n"
            server.send_signal(signal.SIGTERM)
            assert server.stdout.read() == b"told\n"
            assert server.wait(10) == 0
        finally:
            server.kill()


def test_ten_swaps_under_load_fail_nothing_and_each_answer_names_the_version_that_made_it(tmp_path: Path) -> None:
    """Version v explores with epsilon v/100 over 2 candidates: its propensities are 1 - v/200 and v/200."""
    want(tmp_path, shop=1)
    with process(tmp_path, poll_s=30) as (server, port):
        clients = Clients(port, 8, question, DECIDE)
        floors = []
        for number in range(2, 12):
            clients.wait_for(len(clients.answers) + 50)
            want(tmp_path, shop=number)
            server.send_signal(signal.SIGHUP)
            with Client(port) as client:
                while client.ask("GET", "/v1/status")[2]["policies"]["shop"]["version"] != number:
                    pass
            floors.append((time.monotonic_ns(), number))
        clients.wait_for(len(clients.answers) + 50)
        clients.stop()
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    assert clients.failures == []
    for answer, began, _ in clients.answers:
        number = answer["version"]
        assert min(answer["propensity"], 1 - answer["propensity"]) == pytest.approx(number / 200, abs=1e-12)
        assert number >= max((n for at, n in floors if at < began), default=1)
    assert {answer["version"] for answer, _, _ in clients.answers} == set(range(1, 12))
    lines = {decision.id: decision.version for decision in logged(tmp_path / "log")[0]}
    assert lines == {answer["id"]: answer["version"] for answer, _, _ in clients.answers}


def test_a_version_that_does_not_load_leaves_the_server_serving_and_is_polled_again(tmp_path: Path) -> None:
    want(tmp_path, shop=91)
    with process(tmp_path) as (server, port), Client(port) as client:
        assert client.ask("GET", "/v1/ready")[0] == 503
        assert client.ask("POST", DECIDE, SHOP)[0] == 503
        want(tmp_path, shop=5)
        while client.ask("GET", "/v1/ready")[0] != 200:
            pass
        assert client.ask("POST", DECIDE, SHOP)[2]["version"] == 5
        want(tmp_path, shop=92)
        while not client.ask("GET", "/v1/status")[2]["policies"]["shop"]["error"]:
            pass
        assert client.ask("POST", DECIDE, SHOP)[2]["version"] == 5
        server.terminate()
        assert server.wait(20) == 0


def test_workers_share_a_port_are_replaced_when_they_die_and_drain_together(tmp_path: Path) -> None:
    want(tmp_path, shop=1)
    with process(tmp_path, workers=2) as (server, port):

        def pid() -> int:
            with Client(port) as client:
                return client.ask("GET", "/v1/status")[2]["server"]["pid"]

        pids = set()
        while len(pids) < 2:
            pids.add(pid())
        assert server.pid not in pids
        victim = pids.pop()
        os.kill(victim, signal.SIGKILL)
        fresh = None
        while fresh is None:
            try:
                found = pid()
            except OSError:
                continue  # it was on the dead one's list
            fresh = found if found not in {victim, *pids} else None
        clients = Clients(port, 8, question, DECIDE)
        clients.wait_for(200)
        server.send_signal(signal.SIGTERM)
        clients.join()
        assert server.wait(20) == 0
    answered = {answer["id"] for answer, _, _ in clients.answers}
    assert answered <= {decision.id for decision in logged(tmp_path / "log")[0]}
    assert len(answered) >= 200


def test_workers_that_die_at_once_end_the_supervisor(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the log should be")
    want(tmp_path, shop=1)
    # It ends without a port.
    with pytest.raises(ValueError, match="invalid literal"), process(tmp_path, workers=2):
        pass
