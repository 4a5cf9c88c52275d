"""Counts and times of requests, in Prometheus' text format, by the names that TensorFlow Serving gave them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from msgspec import Struct

PATHS = ("/metrics", "/monitoring/prometheus/metrics")
KIND = b"text/plain; version=0.0.4; charset=utf-8"
BUCKETS = tuple(10 * 1.8**i for i in range(33))
"""Upper bounds in microseconds."""

_CODES = {
    200: "OK",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    422: "FAILED_PRECONDITION",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    507: "RESOURCE_EXHAUSTED",
}
REST, GRPC = "REST", "GRPC"
_SERVED = {"rows": ":tensorflow:serving:request_example_count_total", "runs": "steersman_model_runs_total"}
Which = tuple[str, int, str, str]
"""Model, version, what was asked (`Predict`, `Classify`, `Regress`, `ModelInfer`, `Invoke`), and over what."""


class State(Struct, array_like=True, frozen=True):
    """All counts of a worker, or of several together.

    Attributes:
        requests: which request and its status, how many.
        times: which request; how many in each bucket, and microseconds together.
        served: name and number of a version and `rows` or `runs`, how many.
        totals: counts of the plane by their names.
        gauges: what goes up and down, by its name.
    """

    requests: list[tuple[tuple[Which, int], int]] = []
    times: list[tuple[Which, list[float]]] = []
    served: list[tuple[tuple[str, int, str], int]] = []
    totals: dict[str, float] = {}
    gauges: dict[str, float] = {}


class Metrics:
    """Of one worker, since it began."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[Which, int], int] = defaultdict(int)
        self._buckets: dict[Which, list[int]] = {}
        self._sums: defaultdict[Which, float] = defaultdict(float)
        self._served: Counter[tuple[str, int, str]] = Counter()
        self._told: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()

    def seen(self, which: Which, status: int, took_us: float) -> None:
        """A request was answered."""
        self._counts[which, status] += 1
        buckets = self._buckets.get(which)
        if buckets is None:
            self._buckets[which] = buckets = [0] * (len(BUCKETS) + 1)
        buckets[bisect_left(BUCKETS, took_us)] += 1
        self._sums[which] += took_us

    def state(self, totals: Mapping[str, float], gauges: Mapping[str, float], served: Iterable[Any]) -> State:
        """All of it now.

        Args:
            totals: of the plane.
            gauges: of the server.
            served: versions with name, number, rows and runs; what one has counted stays when it goes.
        """
        for one in served:
            rows, runs = self._told.get(one, (0, 0))
            self._served[one.name, one.number, "rows"] += one.rows - rows
            self._served[one.name, one.number, "runs"] += one.runs - runs
            self._told[one] = one.rows, one.runs
        times = {which: [*buckets, self._sums[which]] for which, buckets in self._buckets.items()}
        return State(
            list(self._counts.items()), list(times.items()), list(self._served.items()), dict(totals), dict(gauges)
        )


def summed(states: Iterable[State]) -> State:
    """The counts of several workers together."""
    requests: Counter[tuple[Which, int]] = Counter()
    times: dict[Which, list[float]] = {}
    served: Counter[tuple[str, int, str]] = Counter()
    totals: Counter[str] = Counter()
    gauges: Counter[str] = Counter()
    for state in states:
        requests.update(dict(state.requests))
        served.update(dict(state.served))
        totals.update(state.totals)
        gauges.update(state.gauges)
        for which, more in state.times:
            before = times.get(which, [0] * len(more))
            times[which] = [one + other for one, other in zip(before, more, strict=True)]
    return State(list(requests.items()), list(times.items()), list(served.items()), dict(totals), dict(gauges))


def text(state: State) -> bytes:
    """Counts in Prometheus' format."""
    return "".join(f"{line}\n" for line in _lines(state)).encode()


def _lines(state: State) -> Iterator[str]:
    yield from _requests(state)
    yield from _latencies(state)
    for unit, name in _SERVED.items():
        yield f"# TYPE {name} counter"
        for (model, number, counted), count in sorted(state.served):
            if counted == unit:
                yield f"{name}{_labels(model=model, version=number)} {count}"
    for name, value in state.totals.items():
        yield f"# TYPE steersman_{name}_total counter"
        yield f"steersman_{name}_total {value}"
    for name, value in state.gauges.items():
        yield f"# TYPE steersman_{name} gauge"
        yield f"steersman_{name} {value}"


def _requests(state: State) -> Iterator[str]:
    yield "# TYPE :tensorflow:serving:request_count counter"
    by_code: Counter[tuple[Which, str]] = Counter()
    for (which, status), count in state.requests:
        by_code[which, code_of(status)] += count
    for ((name, number, api, over), code), count in sorted(by_code.items()):
        labels = _labels(model_name=name, version=number, API=api, entrypoint=over, status=code)
        yield f":tensorflow:serving:request_count{labels} {count}"


def _latencies(state: State) -> Iterator[str]:
    yield "# TYPE :tensorflow:serving:request_latency histogram"
    for which, (*buckets, sum_us) in sorted(state.times):
        name, number, api, over = which
        labels: dict[str, str | int] = {"model_name": name, "version": number, "API": api, "entrypoint": over}
        total = 0
        for bound, count in zip((*BUCKETS, None), map(int, buckets), strict=True):
            total += count
            upper = "+Inf" if bound is None else f"{bound:g}"
            yield f":tensorflow:serving:request_latency_bucket{_labels(**labels, le=upper)} {total}"
        yield f":tensorflow:serving:request_latency_sum{_labels(**labels)} {sum_us}"
        yield f":tensorflow:serving:request_latency_count{_labels(**labels)} {total}"


def code_of(status: int) -> str:
    """What gRPC calls an HTTP status of ours."""
    return _CODES.get(status, "INVALID_ARGUMENT" if 400 <= status < 500 else "INTERNAL")


def _labels(**labels: str | int) -> str:
    return "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
