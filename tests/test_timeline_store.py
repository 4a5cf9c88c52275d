"""A build on disk: the same when read again, there whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from steersman import engine, timeline
from steersman.core.batch import array_fields
from steersman.core.decision import One
from steersman.core.errors import ConflictError, DataError, NotFoundError
from steersman.timeline import Built
from timeline_log import FAR, decision, log, outcome, problem


@pytest.fixture(params=["plain", "shared", "varying", "nothing"])
def built(request, tmp_path_factory) -> Built:
    opened = engine.open("duckdb", threads=1)
    offers = {
        "shared": [{"a": {"p": 1.0, "q": "é"}, "b": {"p": 2.0}}] * 3,
        "varying": [{"a": {"p": 1.0}, "b": {"q": "ü"}}, {"a": {}, "b": {}, "c": {"p": 3.0}}, {"a": {}}],
    }.get(request.param, [None] * 3)
    fields = [{"x": 1.0, "t": "日本"}, {"x": None, "t": None}, {"x": 3.0, "t": ""}]
    if request.param == "nothing":
        fields = [{}] * 3
    decisions = [decision(f"d{i}", f"u{i // 2}", i, features=offer, **fields[i]) for i, offer in enumerate(offers)]
    outcomes = [outcome("o1", "d0", 1, r=2.0), outcome("o2", "d1", 1, "terminated", c=1.0)]
    at = problem(actions=One() if request.param == "varying" else One(names=("a", "b")))
    files = log(tmp_path_factory.mktemp("log"), decisions, outcomes)
    result = timeline.build(opened, at, files, since=0, until=FAR, as_of=FAR)
    opened.close()
    return result


def test_what_is_read_is_what_was_written(built, tmp_path):
    timeline.save(built, tmp_path / "build")
    read = timeline.load(tmp_path / "build")
    assert read.batch.digest == built.batch.digest
    assert np.array_equal(read.at, built.at)
    assert (np.diff(read.at)[read.next[:-1] >= 0] >= 0).all()
    assert read.batch.encoder == built.batch.encoder
    for name in array_fields():
        np.testing.assert_array_equal(getattr(read.batch, name), getattr(built.batch, name))
    for one, other in ((read.raw.context, built.raw.context), (read.raw.candidates, built.raw.candidates)):
        np.testing.assert_array_equal(one.numbers, other.numbers)
        assert one.texts.shape == other.texts.shape
        assert one.texts.tolist() == other.texts.tolist()
    assert read.raw.ids.tolist() == built.raw.ids.tolist()
    assert read.decision_ids.tolist() == built.decision_ids.tolist()
    assert (read.counts, read.since, read.until) == (built.counts, built.since, built.until)


def test_numbers_stay_on_disk_and_shared_candidates_stay_one_row(built, tmp_path):
    timeline.save(built, tmp_path / "build")
    read = timeline.load(tmp_path / "build")
    assert isinstance(read.batch.reward, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        read.batch.reward[0] = 1.0
    shared = built.batch.candidates.strides[0] == 0
    assert (read.batch.candidates.strides[0] == 0) == shared
    stored = np.load(tmp_path / "build" / "candidate_numbers.npy", allow_pickle=False)
    assert len(stored) == (1 if shared else len(built.batch))
    assert isinstance(read.batch.context, np.memmap)
    assert isinstance(timeline.load(tmp_path / "build").batch.context, np.memmap)  # encoded once, then only mapped


def test_nothing_on_disk_is_a_pickle(built, tmp_path):
    timeline.save(built, tmp_path / "build")
    paths = sorted((tmp_path / "build").iterdir())
    assert {path.suffix for path in paths} == {".npy", ".json"}
    for path in paths:
        if path.suffix == ".npy":
            assert np.load(path, allow_pickle=False).dtype.kind in "fiub"


def test_a_build_is_written_once(built, tmp_path):
    timeline.save(built, tmp_path / "build")
    with pytest.raises(ConflictError, match="there already"):
        timeline.save(built, tmp_path / "build")


def test_a_build_that_can_not_be_written_whole_is_not_there(built, tmp_path):
    raw = replace(built.raw, ids=np.full(built.raw.ids.shape, "\ud800", dtype=object))
    broken = replace(built, raw=raw)
    with pytest.raises(UnicodeEncodeError):
        timeline.save(broken, tmp_path / "build")
    assert list(tmp_path.iterdir()) == []


def test_the_remains_of_a_process_that_died_are_in_nobodys_way_and_removed(built, tmp_path):
    timeline.save(built, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / ".build.0123456789abcdef.part")
    timeline.save(built, tmp_path / "build")
    assert [path.name for path in tmp_path.iterdir()] == ["build"]
    assert timeline.load(tmp_path / "build").batch.digest == built.batch.digest


def damage(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 0x01
    path.write_bytes(body)


def test_damage_is_noticed(built, tmp_path):
    timeline.save(built, tmp_path / "build")
    damage(tmp_path / "build" / "reward.npy")
    with pytest.raises(DataError, match="damaged"):
        timeline.load(tmp_path / "build")


def test_a_missing_or_cut_array_is_noticed(built, tmp_path):
    timeline.save(built, tmp_path / "build")
    path = tmp_path / "build" / "discount.npy"
    path.write_bytes(path.read_bytes()[:140])
    with pytest.raises(DataError, match=r"discount\.npy is damaged"):
        timeline.load(tmp_path / "build")
    path.unlink()
    with pytest.raises(DataError, match=r"discount\.npy is missing"):
        timeline.load(tmp_path / "build")


def test_a_build_of_another_format_is_refused(built, tmp_path):
    timeline.save(built, tmp_path / "build")
    path = tmp_path / "build" / "build.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        timeline.load(tmp_path / "build")


def test_no_build_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="is not a build"):
        timeline.load(tmp_path / "build")
