"""Counts and times of requests, in Prometheus' text format, by the names that TensorFlow Serving gave them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

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
Which = tuple[str, int, str, str]
"""Model, version, what was asked (`Predict`, `Classify`, `Regress`, `ModelInfer`, `Invoke`), and over what."""


class Metrics:
    """Of one worker, since it began."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[Which, int], int] = defaultdict(int)
        self._buckets: dict[Which, list[int]] = {}
        self._sums: defaultdict[Which, float] = defaultdict(float)

    def seen(self, which: Which, status: int, took_us: float) -> None:
        """A request was answered."""
        self._counts[which, status] += 1
        buckets = self._buckets.get(which)
        if buckets is None:
            self._buckets[which] = buckets = [0] * (len(BUCKETS) + 1)
        buckets[bisect_left(BUCKETS, took_us)] += 1
        self._sums[which] += took_us

    def text(self, counts: Mapping[str, float], gauges: Mapping[str, float], served: Any) -> bytes:
        """All of it.

        Args:
            counts: of the plane.
            gauges: of the server.
            served: versions with name, number, rows and runs.
        """
        lines = [*self._requests(), *self._latencies()]
        lines.append("# TYPE :tensorflow:serving:request_example_count_total counter")
        rows = [(_labels(model=one.name, version=one.number), one) for one in served]
        lines += [f":tensorflow:serving:request_example_count_total{labels} {one.rows}" for labels, one in rows]
        lines.append("# TYPE steersman_model_runs_total counter")
        lines += [f"steersman_model_runs_total{labels} {one.runs}" for labels, one in rows]
        for name, value in counts.items():
            lines += [f"# TYPE steersman_{name}_total counter", f"steersman_{name}_total {value}"]
        for name, value in gauges.items():
            lines += [f"# TYPE steersman_{name} gauge", f"steersman_{name} {value}"]
        return ("\n".join(lines) + "\n").encode()

    def _requests(self) -> Iterator[str]:
        yield "# TYPE :tensorflow:serving:request_count counter"
        for ((name, number, api, over), status), count in sorted(self._counts.items()):
            code = code_of(status)
            labels = _labels(model_name=name, version=number, API=api, entrypoint=over, status=code)
            yield f":tensorflow:serving:request_count{labels} {count}"

    def _latencies(self) -> Iterator[str]:
        yield "# TYPE :tensorflow:serving:request_latency histogram"
        for which, buckets in sorted(self._buckets.items()):
            name, number, api, over = which
            labels: dict[str, str | int] = {"model_name": name, "version": number, "API": api, "entrypoint": over}
            total = 0
            for bound, count in zip((*BUCKETS, None), buckets, strict=True):
                total += count
                upper = "+Inf" if bound is None else f"{bound:g}"
                yield f":tensorflow:serving:request_latency_bucket{_labels(**labels, le=upper)} {total}"
            yield f":tensorflow:serving:request_latency_sum{_labels(**labels)} {self._sums[which]}"
            yield f":tensorflow:serving:request_latency_count{_labels(**labels)} {total}"


def code_of(status: int) -> str:
    """What gRPC calls an HTTP status of ours."""
    return _CODES.get(status, "INVALID_ARGUMENT" if 400 <= status < 500 else "INTERNAL")


def _labels(**labels: str | int) -> str:
    return "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
