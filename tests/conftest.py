"""Settings for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import spark_here
from steersman import engine as engines
from steersman import log
from steersman.engine import Engine

# A shared machine stalls: how long one example takes says nothing about the code.
settings.register_profile("steersman", deadline=None)
settings.load_profile("steersman")


collect_ignore = ["serving_client.py"]
"""What another environment's Python runs."""

SLOW_S = 1800
"""A slow test may take so long: statistics and learning bars on a machine that does something else too."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests have time. Those on Spark come first: of the processes that share the tests one starts a Spark."""
    items.sort(key=lambda item: spark_here.needed.mark not in item.iter_markers("skipif"))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_S))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """DuckDB on one thread."""
    opened = engines.open("duckdb", threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def tables(engine: Engine) -> Engine:
    """The same, where `engine` is the room."""
    return engine


@pytest.fixture
def pen(tmp_path: Path) -> Iterator[log.Pen]:
    """Of an empty log."""
    with log.Pen(tmp_path / "log", durability="buffered") as opened:
        yield opened
