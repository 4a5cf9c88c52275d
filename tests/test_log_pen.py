"""The pen: acknowledged is durable, together or not at all, through kills, full disks and crowds."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steersman import log
from steersman.core.errors import (
    ConfigError,
    ConflictError,
    DataError,
    DiskError,
    Error,
    OverloadedError,
    TooLargeError,
)
from steersman.log import growing
from steersman.log import pen as pens
from steersman.log.growing import BLOCK_BYTES, BUFFER_BYTES, EXTENT_BYTES
from steersman.log.pen import fresh_name
from steersman.log.segment import HEADER, MAGIC, frame, read_segment, segments

Durabilities = pytest.mark.parametrize("durability", ["commit", "buffered"])


class Acks:
    """What `done` was called with, by key; `wait` until there are so many."""

    def __init__(self) -> None:
        self.errors: dict[object, list[Error | None]] = {}
        self._changed = threading.Condition()

    def of(self, key: object) -> Callable[[Error | None], None]:
        def done(error: Error | None) -> None:
            with self._changed:
                self.errors.setdefault(key, []).append(error)
                self._changed.notify_all()

        return done

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.errors) >= count, timeout=60)


def bodies(directory: Path) -> list[bytes]:
    return [record.body for record in log.read(directory)]


@Durabilities
def test_what_was_appended_is_read_back_in_order(tmp_path: Path, durability: log.Durability) -> None:
    with log.Pen(tmp_path, durability=durability) as pen:
        for i in range(100):
            pen.append([(b"D", b"d%d" % i), (b"O", b"o%d" % i)])
    found = [(record.kind, record.body) for record in log.read(tmp_path)]
    assert found == [(kind, b"%s%d" % (kind.lower(), i)) for i in range(100) for kind in (b"D", b"O")]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.binary(max_size=3000), max_size=3), max_size=10))
def test_any_bytes_in_any_grouping_come_back(tmp_path: Path, groups: list[list[bytes]]) -> None:
    directory = tmp_path / fresh_name()
    with log.Pen(directory, durability="buffered", segment_bytes=1 << 14) as pen:
        for group in groups:
            pen.append([(b"D", body) for body in group])
    assert bodies(directory) == [body for group in groups for body in group]


@Durabilities
def test_done_is_called_once_and_by_then_the_record_can_be_read(tmp_path: Path, durability: log.Durability) -> None:
    acks = Acks()
    seen: list[list[bytes]] = []
    with log.Pen(tmp_path, durability=durability) as pen:
        ack = acks.of("a")

        def done(error: Error | None) -> None:
            seen.append(bodies(tmp_path))
            ack(error)

        pen.append([(b"D", b"one")], done)
        acks.wait(1)
        assert seen == [[b"one"]]
    assert acks.errors == {"a": [None]}


def test_commit_waits_for_the_disk_and_what_comes_in_meanwhile_shares_the_next_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    entered, go = threading.Event(), threading.Event()

    def sync(fd: int) -> None:
        entered.set()
        assert go.wait(60)
        os.fdatasync(fd)
        synced.append(fd)

    monkeypatch.setattr(growing, "_fdatasync", sync)
    acks = Acks()
    with log.Pen(tmp_path) as pen:
        pen.append([(b"D", b"0")], acks.of(0))
        assert entered.wait(60)
        assert bodies(tmp_path) == [b"0"]  # written, but not acknowledged yet
        for i in range(1, 50):
            pen.append([(b"D", b"%d" % i)], acks.of(i))
        assert (acks.errors, synced) == ({}, [])
        go.set()
        acks.wait(50)
        assert len(synced) == 2


def test_buffered_does_not_wait_for_the_disk_but_flush_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(growing, "_fdatasync", synced.append)
    acks = Acks()
    with log.Pen(tmp_path, durability="buffered") as pen:
        pen.append([(b"D", b"1")], acks.of(1))
        acks.wait(1)
        assert synced == []
        pen.flush()
        assert len(synced) == 1


def test_what_a_failed_sync_may_have_lost_is_told_and_never_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acks = Acks()
    with log.Pen(tmp_path) as pen:
        pen.append([(b"D", b"before")], acks.of("before"))
        acks.wait(1)
        with monkeypatch.context() as patch:
            patch.setattr(growing, "_fdatasync", failing)
            pen.append([(b"D", b"lost")], acks.of("lost"))
            acks.wait(2)
        pen.append([(b"D", b"after")], acks.of("after"))
        acks.wait(3)
    assert [errors[0] is None for errors in acks.errors.values()] == [True, False, True]
    assert "Input/output error" in str(acks.errors["lost"][0])
    reading = log.read(tmp_path)
    assert [record.body for record in reading] == [b"before", b"after"]
    assert len({record.segment for record in reading}) == 2  # nothing more goes to a segment that failed once
    assert (reading.torn, reading.damage) == (0, [])


def failing(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_crowd_of_writers_loses_and_doubles_nothing(tmp_path: Path) -> None:
    acks = Acks()
    with log.Pen(tmp_path, segment_bytes=1 << 14) as pen:

        def write(writer: int) -> None:
            for i in range(50):
                key = b"%d-%d" % (writer, i)
                pen.append([(b"D", key)], acks.of(key))

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        acks.wait(400)
    assert set(map(tuple, acks.errors.values())) == {(None,)}
    assert Counter(bodies(tmp_path)) == Counter(list(acks.errors))
    for writer in range(8):
        mine = [int(body.split(b"-")[1]) for body in bodies(tmp_path) if body.startswith(b"%d-" % writer)]
        assert mine == list(range(50))


def test_records_appended_together_stay_in_one_segment(tmp_path: Path) -> None:
    with log.Pen(tmp_path, segment_bytes=4096) as pen:
        for i in range(20):
            pen.append([(b"D", b"%d" % i + b"x" * 500), (b"O", b"%d" % i + b"y" * 500)])
    where = {}
    for record in log.read(tmp_path):
        where.setdefault(record.body.rstrip(b"xy"), set()).add(record.segment)
    assert len(where) == 20
    assert all(len(names) == 1 for names in where.values())
    assert len(segments(tmp_path)) > 1


def test_a_closed_segment_holds_its_records_and_not_a_byte_more(tmp_path: Path) -> None:
    with log.Pen(tmp_path) as pen:
        pen.append([(b"D", b"{}")])
        pen.flush()
        (path,) = segments(tmp_path)
        assert path.stat().st_size == EXTENT_BYTES  # zeros lie ahead of the head
    assert path.read_bytes() == MAGIC + frame(b"D", b"{}")


def test_a_segment_grows_by_extents_up_to_its_size(tmp_path: Path) -> None:
    with log.Pen(tmp_path, durability="buffered", segment_bytes=EXTENT_BYTES + 1000) as pen:
        for i in range(3):
            pen.append([(b"D", b"%d" % i + bytes(EXTENT_BYTES // 2))])
        pen.flush()
        sizes = [path.stat().st_size for path in segments(tmp_path)]
    assert sizes == [len(MAGIC) + 2 * len(frame(b"D", b"0" + bytes(EXTENT_BYTES // 2))), EXTENT_BYTES]
    assert [body[:1] for body in bodies(tmp_path)] == [b"0", b"1", b"2"]


def test_a_pen_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    log.Pen(tmp_path).close()
    assert segments(tmp_path) == []


def test_pens_share_a_directory(tmp_path: Path) -> None:
    with log.Pen(tmp_path) as one, log.Pen(tmp_path) as two:
        one.append([(b"D", b"1")])
        two.append([(b"D", b"2")])
    assert sorted(bodies(tmp_path)) == [b"1", b"2"]
    assert len(segments(tmp_path)) == 2


def sizes_at_every_edge() -> list[int]:
    edges = [BLOCK_BYTES, 2 * BLOCK_BYTES, BUFFER_BYTES, BUFFER_BYTES + BLOCK_BYTES, 2 * BUFFER_BYTES, EXTENT_BYTES]
    return [0, 1, *(edge - HEADER.size + more for edge in edges for more in (-1, 0, 1))]


@Durabilities
def test_records_of_any_length_come_back_whatever_block_they_end_in(tmp_path: Path, durability: log.Durability) -> None:
    draw = random.Random(5)
    sizes = sizes_at_every_edge() * 2
    draw.shuffle(sizes)
    written = [draw.randbytes(size) for size in sizes]
    with log.Pen(tmp_path, durability=durability, segment_bytes=1 << 26) as pen:
        for at, body in enumerate(written):
            pen.append([(b"D", body)])
            if at % 3 == 0:
                pen.flush()
    (path,) = segments(tmp_path)
    assert path.read_bytes() == MAGIC + b"".join(frame(b"D", body) for body in written)


def test_what_was_acknowledged_is_read_also_by_who_read_the_same_block_before(tmp_path: Path) -> None:
    """The reader's pages are in the cache, and the pen writes past it."""
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            bodies(tmp_path)

    readers = [threading.Thread(target=read) for _ in range(2)]
    with log.Pen(tmp_path) as pen:
        for reader in readers:
            reader.start()
        try:
            for i in range(150):
                acks = Acks()
                pen.append([(b"D", b"%d" % i + b"x" * (i * 37 % 500))], acks.of(i))
                acks.wait(1)
                assert len(bodies(tmp_path)) == i + 1
        finally:
            over.set()
            for reader in readers:
                reader.join()


@Durabilities
def test_only_what_is_committed_goes_past_the_page_cache(tmp_path: Path, durability: log.Durability) -> None:
    with log.Pen(tmp_path, durability=durability) as pen:
        pen.append([(b"D", b"1")])
        pen.flush()
        direct = is_direct(segment_fd(tmp_path))
    if durability == "commit" and not direct:
        pytest.skip(f"the disk of {tmp_path} refuses O_DIRECT: run with --basetemp on another, ext4 or xfs for one")
    assert direct == (durability == "commit")


def test_a_disk_that_wants_other_blocks_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "BLOCK_BYTES", 100)
    written = [b"%d" % i + bytes(i * 50) for i in range(40)]
    with log.Pen(tmp_path, segment_bytes=1 << 14) as pen:
        for body in written:
            pen.append([(b"D", body)])
            pen.flush()
        assert not is_direct(segment_fd(tmp_path))
    assert bodies(tmp_path) == written


def test_names_of_segments_are_never_the_same() -> None:
    assert len({fresh_name() for _ in range(1000)}) == 1000


def test_flush_waits_for_all_that_was_appended(tmp_path: Path) -> None:
    with log.Pen(tmp_path, durability="buffered") as pen:
        for i in range(1000):
            pen.append([(b"D", b"%d" % i)])
        pen.flush()
        assert len(bodies(tmp_path)) == 1000


def test_an_append_of_nothing_is_done(tmp_path: Path) -> None:
    acks = Acks()
    with log.Pen(tmp_path) as pen:
        pen.append([], acks.of("nothing"))
        acks.wait(1)
    assert acks.errors == {"nothing": [None]}


def test_a_record_larger_than_a_segment_is_refused_and_the_largest_one_is_not(tmp_path: Path) -> None:
    with log.Pen(tmp_path, segment_bytes=4096) as pen:
        pen.append([(b"D", b"x" * pen.max_body_bytes)])
        with pytest.raises(TooLargeError, match="4096"):
            pen.append([(b"D", b"x" * (pen.max_body_bytes + 1))])
        pen.append([(b"D", b"after")])
    assert [len(body) for body in bodies(tmp_path)] == [4096 - 16 - 12, 5]


def test_a_disk_that_is_stuck_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pens, "MAX_PENDING_BYTES", 1000)
    stuck, free = threading.Event(), threading.Event()

    def done(error: Error | None) -> None:
        stuck.set()
        assert free.wait(60)

    with log.Pen(tmp_path) as pen:
        pen.append([(b"D", b"first")], done)
        assert stuck.wait(60)
        pen.append([(b"D", b"x" * 2000)])
        with pytest.raises(OverloadedError, match="wait for the disk"):
            pen.append([(b"D", b"one too many")])
        free.set()
        pen.flush()
        pen.append([(b"D", b"last")])
    assert [body[:5] for body in bodies(tmp_path)] == [b"first", b"xxxxx", b"last"]


def test_a_pen_needs_no_engine_and_no_torch() -> None:
    code = (
        "import sys; import steersman.log; print([m for m in ('duckdb', 'torch', 'onnxruntime') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with log.Pen(tmp_path) as pen, pytest.raises(DataError, match="kind"):
        pen.append([(b"X", b"{}")])


def test_a_closed_pen_writes_no_more_and_may_be_closed_again(tmp_path: Path) -> None:
    pen = log.Pen(tmp_path)
    pen.close()
    pen.close()
    with pytest.raises(ConflictError):
        pen.append([(b"D", b"{}")])
    with pytest.raises(ConflictError):
        pen.flush()


@pytest.mark.parametrize("wrong", [{"durability": "sometimes"}, {"segment_bytes": 10}, {"segment_bytes": 1 << 40}])
def test_settings_are_checked(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        log.Pen(tmp_path, **wrong)


def test_a_directory_that_can_not_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="file"):
        log.Pen(tmp_path / "file" / "log")


def test_a_callback_that_raises_silences_no_other(tmp_path: Path) -> None:
    acks = Acks()

    def bad(error: Error | None) -> None:
        raise ValueError("the loop is closed")

    pen = log.Pen(tmp_path)
    pen.append([(b"D", b"1")], bad)
    pen.append([(b"D", b"2")], acks.of(2))
    acks.wait(1)
    with pytest.raises(Error, match="the loop is closed"):
        pen.close()
    assert bodies(tmp_path) == [b"1", b"2"]


def test_a_live_segment_is_read_up_to_its_head_while_it_is_written(tmp_path: Path) -> None:
    reached = threading.Event()
    acks = Acks()
    counts: list[int] = []

    def read() -> None:
        while not reached.is_set():
            found = bodies(tmp_path)
            assert found == [b"%d" % i for i in range(len(found))]
            counts.append(len(found))

    reader = threading.Thread(target=read)
    with log.Pen(tmp_path) as pen:
        reader.start()
        for i in range(300):
            pen.append([(b"D", b"%d" % i)], acks.of(i))
            if i % 10 == 0:
                acks.wait(i + 1)
        acks.wait(300)
        reached.set()
        reader.join()
    assert counts == sorted(counts)
    assert len(bodies(tmp_path)) == 300


def test_another_process_reads_a_live_segment(tmp_path: Path) -> None:
    with log.Pen(tmp_path) as pen:
        pen.append([(b"D", b"seen")])
        pen.flush()
        imports = "import sys; from pathlib import Path; from steersman import log"
        code = f"{imports}; print(*(r.body for r in log.read(Path(sys.argv[1]))))"
        out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "b'seen'"


KILLED = """
import os, pathlib, sys, threading
from steersman import log
def write(start, durability):
    pen = log.Pen(pathlib.Path(sys.argv[1]), durability=durability, segment_bytes=1 << 16)
    slots = threading.Semaphore(16)
    def done(key):
        def call(error):
            if error is None:
                os.write(1, key + b"\\n")
            slots.release()
        return call
    for i in range(1_000_000):
        key = b"%s-%d" % (start.encode(), i)
        slots.acquire()
        pen.append([(b"D", key + b" " + b"x" * (i * 37 % 400)), (b"O", key)], done(key))
for line in sys.stdin:
    if not (child := os.fork()):
        write(*line.split())
    os.write(1, b"%d\\n" % child)
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


def test_every_acknowledged_record_outlives_twenty_kills_exactly_once(tmp_path: Path) -> None:
    moments = random.Random(7)
    acknowledged: list[bytes] = []
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        for start in range(20):
            launcher.stdin.write(b"%d %s\n" % (start, b"buffered" if start % 4 == 3 else b"commit"))
            launcher.stdin.flush()
            lines = [launcher.stdout.readline().strip() for _ in range(moments.randrange(300))]
            while not (child := [line for line in lines if b"-" not in line]):
                lines.append(launcher.stdout.readline().strip())
            os.kill(int(child[0]), signal.SIGKILL)
            while (line := launcher.stdout.readline().strip()) != b"dead":
                lines.append(line)
            acknowledged += [line for line in lines if line not in child]
        launcher.stdin.close()
    reading = log.read(tmp_path)
    found = Counter((record.kind, record.body.split(b" ")[0]) for record in reading)
    assert len(acknowledged) > 500
    assert [key for key in acknowledged if found[b"D", key] != 1 or found[b"O", key] != 1] == []
    assert max(found.values()) == 1
    assert reading.damage == []


FULL = """
import json, pathlib, resource, sys, threading
from steersman import log
directory, limit = pathlib.Path(sys.argv[1]), int(sys.argv[2])
pen = log.Pen(directory, segment_bytes=1 << 16)
answers = {}
gate = threading.Semaphore(0)
def append(key):
    def done(error):
        answers.setdefault(key, []).append(error if error is None else [type(error).__name__, str(error)])
        gate.release()
    pen.append([(b"D", key.encode() * 100)], done)
    gate.acquire()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for i in range(5): append(f"before{i}-")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
for i in range(100): append(f"during{i}-")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for i in range(5): append(f"after{i}-")
pen.close()
print(json.dumps(answers))
"""


@pytest.mark.parametrize("limit", [10, 1000, 20_000])
def test_when_the_disk_is_full_the_failed_records_are_told_and_the_others_survive(tmp_path: Path, limit: int) -> None:
    out = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(limit)], capture_output=True, text=True, check=True
    )
    answers = json.loads(out.stdout)
    assert all(len(calls) == 1 for calls in answers.values())
    acknowledged = [key for key, (error,) in answers.items() if error is None]
    failed = {key: error for key, (error,) in answers.items() if error is not None}
    reading = log.read(tmp_path)
    assert [record.body.decode() for record in reading] == [key * 100 for key in acknowledged]
    assert reading.damage == []
    assert reading.torn == 0
    assert failed
    assert all(name == "DiskError" and "free space" in text for name, text in failed.values())
    assert {f"after{i}-" for i in range(5)} <= set(acknowledged)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_failed_write_without_a_callback_is_raised_by_flush(tmp_path: Path) -> None:
    pen = log.Pen(tmp_path)
    pen.append([(b"D", b"kept")])
    pen.flush()
    os.dup2(full := os.open("/dev/full", os.O_RDWR), segment_fd(tmp_path))
    os.close(full)
    pen.append([(b"D", b"lost")])
    with pytest.raises(DiskError, match="No space left"):
        pen.flush()
    pen.append([(b"D", b"next")])
    pen.close()
    assert bodies(tmp_path) == [b"kept", b"next"]


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def segment_fd(directory: Path) -> int:
    """The descriptor by which this process holds the newest segment open."""
    path = segments(directory)[-1]
    for link in Path("/proc/self/fd").iterdir():
        if link.resolve() == path.resolve():
            return int(link.name)
    raise LookupError(path)


def test_the_lock_tells_a_dead_writer_from_a_live_one(tmp_path: Path) -> None:
    pen = log.Pen(tmp_path)
    pen.append([(b"D", b"1")])
    pen.flush()
    (path,) = segments(tmp_path)
    assert not read_segment(path).sealed
    with path.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    pen.close()
    assert read_segment(path).sealed
