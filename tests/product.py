"""A small product for tests: a project on disk, its server as a process, and clients that remember what was acked."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from steersman import config, flow
from steersman.config import Project

TOML = """\
[serve]
poll_s = 0.02

[problem.greeting]
reward = "clicks"
wait_s = 0
actions = { kind = "one", names = ["hello", "hi", "welcome"] }

[problem.greeting.context]
hour = "number"
device = "text"
"""


def project(directory: Path, toml: str = TOML) -> Project:
    """A project with version 1, the uniform policy, of every problem."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / config.FILE).write_text(toml)
    made = config.load(directory)
    for name in made.policies:
        flow.publish_uniform(made, name)
    return made


def start(made: Project, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """`steersman serve` on a free port: the process and its URL, once it is ready."""
    command = [sys.executable, "-m", "steersman", "serve", "--project", str(made.root), "--port", "0", "--json"]
    command += options
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the server ended before it was ready"
    return process, json.loads(line)["url"]


@contextmanager
def serving(made: Project) -> Iterator[str]:
    """The URL of a server that is drained at the end, and must then exit with 0."""
    process, url = start(made)
    try:
        yield url
    finally:
        process.terminate()
        code = process.wait(timeout=30)
    assert code == 0


class Client:
    """One keep-alive connection."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self.connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=20)

    def post(self, path: str, body: object) -> tuple[int, dict]:
        """Status and JSON of the answer."""
        self.connection.request("POST", path, json.dumps(body))
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())

    def get(self, path: str) -> dict:
        """JSON of the answer."""
        self.connection.request("GET", path)
        return json.loads(self.connection.getresponse().read())


class Load:
    """Threads that decide and send outcomes as fast as they can until they are stopped or the server is gone.

    Attributes:
        decisions: id -> answer, of every decision that was acknowledged.
        outcomes: ids of every outcome that was acknowledged.
        refused: answers that were not 200.
    """

    def __init__(self, url: str, prefix: str, threads: int = 8) -> None:
        self.decisions: dict[str, dict] = {}
        self.outcomes: list[str] = []
        self.refused: list[tuple[int, dict]] = []
        self.lost = 0
        self._enough = threading.Event()
        self._busy = threading.Semaphore(0)
        names = [f"{prefix}-{i}" for i in range(threads)]
        # Daemons: a test that fails in between must not keep its process from its end.
        self._threads = [threading.Thread(target=self._run, args=(url, name), daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def wait(self, requests: int) -> None:
        """Return once so many more requests were acknowledged."""
        for _ in range(requests):
            assert self._busy.acquire(timeout=30), "the server acknowledges nothing"

    def stop(self) -> None:
        """Let every thread finish its request."""
        self._enough.set()
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive()

    def _run(self, url: str, prefix: str) -> None:
        client = Client(url)
        number = 0
        try:
            while not self._enough.is_set():
                unit = f"{prefix}-{number}"
                body = {"unit": unit, "context": {"hour": number % 24, "device": "phone"}}
                if number % 2:  # every other decision brings an id of its own
                    body["id"] = f"own-{unit}"
                status, answer = client.post("/v1/decide/greeting", body)
                if status != 200:
                    self.refused.append((status, answer))
                    return
                self.decisions[answer["id"]] = answer
                self._busy.release()
                outcome = {
                    "id": f"o-{unit}",
                    "decision": answer["id"],
                    "metrics": {"clicks": 1.0},
                    "ends": "terminated",
                }
                status, answer = client.post("/v1/outcome", outcome)
                if status != 200:
                    self.refused.append((status, answer))
                    return
                self.outcomes.append(outcome["id"])
                self._busy.release()
                number += 1
        except (OSError, http.client.HTTPException):
            self.lost += 1  # the server was killed, or drained: this request was not acknowledged
