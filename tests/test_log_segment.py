"""Segments: a record is wholly there or not, whatever happened to the bytes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman import log
from steersman.log.segment import HEADER, MAGIC, MARK, frame, read_segment, scan, segments, segments_directory

records = st.lists(st.tuples(st.sampled_from([b"D", b"O"]), st.binary(max_size=60)), max_size=8)


def segment_of(bodies: list[bytes]) -> bytes:
    return MAGIC + b"".join(frame(b"D", body) for body in bodies)


def bodies_of(data: bytes, sealed: bool = True) -> list[bytes]:
    return scan(data, "s", 0, sealed).bodies


@given(records, st.integers(0, 50))
def test_what_was_framed_is_read_back(written: list[tuple[bytes, bytes]], zeros: int) -> None:
    data = MAGIC + b"".join(frame(kind, body) for kind, body in written) + bytes(zeros)
    found = scan(data, "s", 0, sealed=True)
    assert list(zip(found.kinds, found.bodies, strict=True)) == written
    assert (found.torn, found.damage) == (False, [])
    assert all(data[offset:].startswith(MARK) for offset in found.offsets)


BODIES = [b'{"id":"a"}', b'{"id":"bb"}', b'{"id":"last"}']
WHOLE = segment_of(BODIES)
LAST = len(segment_of(BODIES[:2]))


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("cut", range(LAST, len(WHOLE)))
def test_a_record_cut_at_any_byte_costs_only_itself(cut: int, sealed: bool) -> None:
    for data in (WHOLE[:cut], WHOLE[:cut] + bytes(100)):
        found = scan(data, "s", 0, sealed)
        assert found.bodies == BODIES[:2]
        assert found.torn == (sealed and cut > LAST)
        assert found.damage == []
        assert found.end == (len(data) if sealed else LAST)


@pytest.mark.parametrize("at", range(LAST, len(WHOLE)))
@pytest.mark.parametrize("bit", [0, 7])
def test_a_bit_flipped_anywhere_in_the_last_record_costs_only_that_record(at: int, bit: int) -> None:
    data = bytearray(WHOLE)
    data[at] ^= 1 << bit
    found = scan(bytes(data), "s", 0, sealed=True)
    assert found.bodies == BODIES[:2]
    assert found.torn


@settings(max_examples=200)
@given(st.data())
def test_garbage_in_the_middle_hides_nothing_but_what_it_overwrote(data: st.DataObject) -> None:
    start = data.draw(st.integers(len(MAGIC), len(WHOLE) - 1))
    garbage = data.draw(st.binary(min_size=1, max_size=len(WHOLE) - start))
    broken = WHOLE[:start] + garbage + WHOLE[start + len(garbage) :]
    found = scan(broken, "s", 0, sealed=True)
    places = [len(segment_of(BODIES[:i])) for i in range(4)]
    untouched = [
        body
        for body, first, end in zip(BODIES, places, places[1:], strict=False)
        if broken[first:end] == WHOLE[first:end]
    ]
    assert found.bodies == untouched
    if broken != WHOLE and untouched and untouched[-1] == BODIES[-1]:
        assert len(found.damage) == 1
        damage = found.damage[0]
        assert places[0] <= damage.offset <= start
        assert broken[damage.offset + damage.length_bytes :].startswith(frame(b"D", untouched[-1])) or (
            damage.offset + damage.length_bytes in places
        )


def test_a_header_cannot_be_forged_inside_a_body() -> None:
    forged = frame(b"D", b'{"id":"forged"}')
    with pytest.raises(UnicodeDecodeError):
        forged.decode()  # so it can not stand in JSON, and a torn record can not set one free


@pytest.mark.parametrize("sealed", [True, False])
def test_zeros_alone_are_no_record_and_no_damage(sealed: bool) -> None:
    for data in (b"", MAGIC, MAGIC + bytes(5000)):
        found = scan(data, "s", 0, sealed)
        assert (found.bodies, found.torn, found.damage) == ([], False, [])


def test_a_live_segment_ends_at_the_first_thing_that_is_no_record() -> None:
    # A page of a running write may be seen before the page in front of it.
    hole = bytearray(WHOLE)
    hole[len(MAGIC) : LAST] = bytes(LAST - len(MAGIC))
    found = scan(bytes(hole), "s", 0, sealed=False)
    assert (found.bodies, found.damage, found.end) == ([], [], len(MAGIC))
    assert bodies_of(bytes(hole), sealed=True) == BODIES[2:]


def test_reading_goes_on_where_the_last_scan_ended() -> None:
    first = scan(WHOLE[:LAST] + bytes(50), "s", 0, sealed=False)
    assert scan(WHOLE + bytes(50), "s", first.end, sealed=False).bodies == BODIES[2:]


def test_an_empty_record_and_a_length_beyond_the_end() -> None:
    assert bodies_of(MAGIC + frame(b"D", b"") + frame(b"O", b"x")) == [b"", b"x"]
    huge = MAGIC + HEADER.pack(MARK, b"D", 2**32 - 1, 0) + frame(b"D", b"after")
    found = scan(huge, "s", 0, sealed=True)
    assert found.bodies == [b"after"]
    assert [(one.offset, one.length_bytes) for one in found.damage] == [(len(MAGIC), HEADER.size)]


def write(directory: Path, name: str, data: bytes) -> Path:
    folder = segments_directory(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Path]:
    one, two, three = (frame(b"D", body) for body in BODIES)
    write(tmp_path, "1.seg", MAGIC + one + two + three[:-1] + b"?" + two)
    write(tmp_path, "2.seg", MAGIC + one + two[:-3] + bytes(4096))
    write(tmp_path, "3.seg", b"not ours at all, but what follows is whole: " + three)
    write(tmp_path, "4.seg", MAGIC + three)
    write(tmp_path, ".5.new", MAGIC + one)
    yield tmp_path


def test_a_damaged_segment_is_reported_and_hides_no_other(damaged: Path) -> None:
    reading = log.read(damaged)
    found = [(record.segment, record.body) for record in reading]
    a, b, c = BODIES
    assert found == [("1.seg", a), ("1.seg", b), ("1.seg", b), ("2.seg", a), ("3.seg", c), ("4.seg", c)]
    assert reading.torn == 1
    assert [(one.segment, one.offset) for one in reading.damage] == [("1.seg", LAST), ("3.seg", 0)]
    assert [one.length_bytes for one in reading.damage] == [len(frame(b"D", c)), 44]


def test_a_log_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert list(log.read(tmp_path / "nothing")) == []
    assert segments(tmp_path) == []


def test_a_segment_is_live_as_long_as_its_writer_holds_the_lock(tmp_path: Path) -> None:
    path = write(tmp_path, "1.seg", WHOLE)
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not read_segment(path).sealed
    os.close(fd)
    assert read_segment(path).sealed
    assert read_segment(path).sealed  # readers do not keep one another out
