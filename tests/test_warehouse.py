"""The warehouse: a version is whole or not there, its number is its own, an alias never dangles."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from steersman.core.errors import ConfigError, ConflictError, DataError, NotFoundError
from steersman.core.features import Category, Continuous, Encoder
from steersman.core.policy import EpsilonGreedy, Softmax, Uniform
from steersman.core.report import Estimate, Report, Verdict
from steersman.core.version import Parents
from steersman.engine import disk as engine_disk
from steersman.models import stores, warehouse
from steersman.models.stores import Disk, Objects
from steersman.models.warehouse import Draft, Move, Warehouse, digest

GRAPH = bytes(range(256)) * 20
ENCODER = Encoder(
    context=(Category("device", ("é", "日本")), Continuous("speed", 0.1, 1 / 3)), actions=("left", "right")
)
ESTIMATE = Estimate(estimator="dr", value=0.3, low=0.1, high=0.7, level=0.95, n=100, ess=41.5)
REPORT = Report(
    problem="ctr",
    policy="p",
    baseline=ESTIMATE,
    headline=ESTIMATE,
    lift=ESTIMATE,
    estimates=(ESTIMATE,),
    verdicts=(Verdict(gate="lower bound", status="fail", reason="0.1 is not above 0.3", value=0.1, limit=0.3),),
    data="d",
    since=1,
    until=2,
    decisions=100,
    seed=7,
)
counter = itertools.count()


def draft(name: str = "ctr", **changes) -> Draft:
    fields = {
        "name": name,
        "encoder": ENCODER,
        "explorer": EpsilonGreedy(0.1),
        "seed": "s",
        "parents": Parents("data", "config", "code"),
        "made_at": 1_700_000_000_000_000,
    }
    return Draft(**(fields | changes))


@pytest.fixture(params=["disk", "memory"])
def house(request, tmp_path) -> Warehouse:
    if request.param == "disk":
        return Warehouse(str(tmp_path / "warehouse"))
    return Warehouse(f"memory://{tmp_path.name}-{next(counter)}/warehouse")


@pytest.fixture
def disk(tmp_path) -> Warehouse:
    return Warehouse(str(tmp_path / "warehouse"))


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# ---- publish and read


def test_what_is_published_is_read_back(house):
    published = house.publish(draft(report=REPORT, forced=True), GRAPH)
    assert published.number == 1
    assert house.read("ctr", 1) == (published, GRAPH)
    version, _ = house.read("ctr", 1)
    assert version.report == REPORT and version.forced and version.encoder.digest == ENCODER.digest


def test_numbers_go_up_by_one_for_each_policy_on_its_own(house):
    numbers = [house.publish(draft(name), GRAPH).number for name in ("ctr", "ctr", "cart", "ctr", "cart")]
    assert numbers == [1, 2, 1, 3, 2]
    assert house.numbers("ctr") == (1, 2, 3) and house.numbers("cart") == (1, 2) and house.numbers("none") == ()
    assert house.names() == ("cart", "ctr")


def test_the_layout_is_the_one_that_model_servers_poll(disk):
    disk.publish(draft(report=REPORT), GRAPH)
    disk.publish(draft(), GRAPH)
    disk.set_alias("ctr", "champion", 2, at=5)
    root = Path(disk.url)
    files = ["ctr/1", "ctr/1/model.onnx", "ctr/1/report.json", "ctr/1/version.json"]
    files += ["ctr/2", "ctr/2/model.onnx", "ctr/2/version.json", "ctr/aliases.json"]
    assert [path for path in tree(root) if "/." not in path] == ["ctr", *files]
    assert all(path.name.isdigit() for path in (root / "ctr").iterdir() if path.is_dir())
    assert (root / "ctr/1/model.onnx").read_bytes() == GRAPH
    assert msgspec.json.decode((root / "ctr/1/report.json").read_bytes(), type=Report) == REPORT
    assert json.loads((root / "ctr/aliases.json").read_text())["aliases"] == {"champion": 2}


def test_a_version_can_be_read_by_whom_the_umask_lets(disk):
    before = os.umask(0o022)
    try:
        disk.publish(draft(), GRAPH)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((Path(disk.url) / path).stat().st_mode) for path in ("ctr/1", "ctr/1/model.onnx")]
    assert modes == [0o755, 0o644]


def test_an_int_where_a_float_belongs_does_not_damage_the_version(house):
    encoder = Encoder(context=(Continuous("speed", 0, 1),))
    house.publish(draft(encoder=encoder, explorer=EpsilonGreedy(0)), GRAPH)
    assert house.read("ctr", 1)[0].explorer == EpsilonGreedy(0.0)


@pytest.mark.parametrize(
    "changes", [{"seed": 7}, {"seed": "\ud800"}, {"made_at": 1.5}, {"explorer": "uniform"}, {"encoder": None}]
)
def test_a_draft_that_could_not_be_read_back_is_refused(house, changes):
    with pytest.raises(DataError, match="draft of ctr"):
        house.publish(draft(**changes), GRAPH)
    assert house.numbers("ctr") == ()


def test_the_digest_is_of_everything_that_decides_and_of_nothing_else(house):
    same = {house.publish(draft(made_at=at, report=report), GRAPH).digest for at in (1, 2) for report in (None, REPORT)}
    assert len(same) == 1
    other = Encoder(context=(Continuous("speed", 0.1, 1 / 3),))
    different = {
        digest(GRAPH, ENCODER, EpsilonGreedy(0.1), "s"),
        digest(GRAPH + b"\0", ENCODER, EpsilonGreedy(0.1), "s"),
        digest(GRAPH, other, EpsilonGreedy(0.1), "s"),
        digest(GRAPH, ENCODER, EpsilonGreedy(0.2), "s"),
        digest(GRAPH, ENCODER, Softmax(0.1), "s"),
        digest(GRAPH, ENCODER, Uniform(), "s"),
        digest(GRAPH, ENCODER, EpsilonGreedy(0.1), "t"),
    }
    assert len(different) == 7 and same < different


# ---- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace(old: str, new: str):
    return lambda path: path.write_text(path.read_text().replace(old, new))


DAMAGE = {
    "a flipped bit": ("model.onnx", flip),
    "a cut graph": ("model.onnx", lambda path: path.write_bytes(GRAPH[:-1])),
    "an empty graph": ("model.onnx", lambda path: path.write_bytes(b"")),
    "no graph": ("model.onnx", Path.unlink),
    "a cut version": ("version.json", lambda path: path.write_bytes(path.read_bytes()[:-20])),
    "an empty version": ("version.json", lambda path: path.write_bytes(b"")),
    "no UTF-8": ("version.json", lambda path: path.write_bytes(b'"\xff"')),
    "a law broken": ("version.json", replace('"epsilon": 0.1', '"epsilon": 1.5')),
    "another number": ("version.json", replace('"number": 1', '"number": 2')),
    "another name": ("version.json", replace('"name": "ctr"', '"name": "cart"')),
    "another graph": ("version.json", replace('"model.onnx"', '"../../secret"')),
    "another seed": ("version.json", replace('"seed": "s"', '"seed": "t"')),
    "another epsilon": ("version.json", replace('"epsilon": 0.1', '"epsilon": 0.2')),
    "another mean": ("version.json", replace('"mean": 0.1', '"mean": 0.2')),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_version_is_refused_by_the_name_of_its_file(disk, name):
    disk.publish(draft(), GRAPH)
    file, damage = DAMAGE[name]
    damage(Path(disk.url) / "ctr/1" / file)
    with pytest.raises(DataError, match=rf"ctr/1/({file}|model\.onnx)"):
        disk.read("ctr", 1)


def test_a_version_copied_to_another_number_is_refused(disk):
    disk.publish(draft(), GRAPH)
    shutil.copytree(Path(disk.url) / "ctr/1", Path(disk.url) / "ctr/2")
    with pytest.raises(DataError, match=r"ctr/2/version.json is of ctr/1"):
        disk.read("ctr", 2)


# ---- whole or not at all

FILES = (stores.__file__, warehouse.__file__, engine_disk.__file__)


class Crash(BaseException):
    """What no cleaning up may mistake for an error of its own."""


def publish_until(house: Warehouse, name: str, step: int, crash) -> None:
    """Publish, and crash before line number `step` of those that run in the warehouse."""
    lines = itertools.count(1)

    def line(frame, event, arg):
        if event == "line" and next(lines) == step:
            crash()
        return line

    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename in FILES else None)
    try:
        house.publish(draft(name, report=REPORT), GRAPH)
    finally:
        sys.settrace(None)


def assert_whole(house: Warehouse, name: str, before: tuple[int, ...]) -> None:
    """The version whose publisher crashed is whole or not there, and the next one works."""
    numbers = house.numbers(name)
    assert numbers in (before, (*before, len(before) + 1))
    for number in numbers:
        assert house.read(name, number)[1] == GRAPH
    published = house.publish(draft(name), GRAPH).number
    assert published > max(numbers, default=0)
    assert house.numbers(name) == (*numbers, published)


def parts(house: Warehouse) -> list[Path]:
    """What was written aside and is still there."""
    return [path for path in Path(house.url).rglob("*") if path.name.endswith(".part")]


def test_an_error_at_any_step_of_publish_leaves_no_half_version(house):
    def crash():
        raise Crash

    for step in itertools.count(1):
        name = f"policy{step}"
        house.publish(draft(name), GRAPH)
        try:
            publish_until(house, name, step, crash)
        except Crash:
            assert_whole(house, name, before=(1,))
        else:
            break
    assert step > 30
    if not house.url.startswith("memory"):
        assert len(parts(house)) <= 3  # a crash in the cleaning up itself: this process lives on, and holds the lock


def test_a_kill_at_any_step_of_publish_leaves_no_half_version(disk):
    for step in itertools.count(1):
        name = f"policy{step}"
        child = os.fork()
        if child == 0:
            try:
                publish_until(disk, name, step, lambda: os._exit(9))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert_whole(disk, name, before=())
        assert parts(disk) == []  # whoever publishes next removes what the killed one left
    assert step > 60


def test_what_is_no_version_is_never_listed_and_never_in_the_way(disk):
    disk.publish(draft(), GRAPH)
    base = Path(disk.url) / "ctr"
    for name in ("007", "01", "1a", "-3", "+4", "1.0", "latest", "²", "٣", "1e3", ".publish-1"):
        shutil.copytree(base / "1", base / name)
    (base / "5").mkdir()
    (base / "6").mkdir()
    (base / "6" / "model.onnx").write_bytes(GRAPH)
    (base / "7").write_bytes(b"a file")
    (Path(disk.url) / "stray.txt").write_bytes(b"")
    assert disk.numbers("ctr") == (1,) and disk.resolve("ctr", "latest") == 1 and disk.names() == ("ctr",)
    for number in (5, 6, 7):
        with pytest.raises(NotFoundError, match=rf"no version {number}"):
            disk.read("ctr", number)
    assert disk.publish(draft(), GRAPH).number == 8
    assert (base / "7").read_bytes() == b"a file"


# ---- two at once


def test_a_directory_that_is_there_is_never_written_over(tmp_path):
    roots = [tmp_path / "disk", tmp_path / "objects"]
    for store in (Disk(roots[0]), Objects(LocalFileSystem(auto_mkdir=True), str(roots[1]))):
        assert store.place("ctr/1", {"a": b"first", "b": b"x"})
        assert not store.place("ctr/1", {"a": b"second", "c": b"y"})
        assert store.read("ctr/1/a") == b"first" and sorted(store.entries("ctr/1")) == ["a", "b"]
        assert store.entries("ctr") == ["1"]


def publish_some(url: str, who: int, count: int) -> list[tuple[int, bytes]]:
    graphs = [f"graph {who} {i}".encode() for i in range(count)]
    return [(Warehouse(url).publish(draft(seed=str(who)), graph).number, graph) for graph in graphs]


def assert_own_numbers(house: Warehouse, published: list[tuple[int, bytes]]) -> None:
    assert sorted(number for number, _ in published) == list(range(1, len(published) + 1))
    assert house.numbers("ctr") == tuple(range(1, len(published) + 1))
    for number, graph in published:
        assert house.read("ctr", number)[1] == graph


def test_publishers_in_many_threads_each_get_numbers_of_their_own(disk):
    with ThreadPoolExecutor(6) as pool:
        parts = pool.map(lambda who: publish_some(disk.url, who, 5), range(6))
        assert_own_numbers(disk, [pair for part in parts for pair in part])


def test_publishers_in_many_processes_each_get_numbers_of_their_own(disk):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        parts = pool.starmap(publish_some, [(disk.url, who, 6) for who in range(4)], chunksize=1)
    assert_own_numbers(disk, [pair for part in parts for pair in part])


def test_who_reads_while_others_write_sees_only_whole_things(disk):
    disk.publish(draft(), GRAPH)
    disk.set_alias("ctr", "champion", 1, at=0)
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            for reference in ("latest", "champion"):
                number = disk.resolve("ctr", reference)
                seen.append(number)
                assert disk.read("ctr", number)[1] == GRAPH

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for at in range(30):
            disk.set_alias("ctr", "champion", disk.publish(draft(), GRAPH).number, at)
        stop.set()
        for reader in readers:
            reader.result()
    assert seen


def test_aliases_set_at_once_are_all_kept(disk):
    disk.publish(draft(), GRAPH)

    def promote(who):
        for i in range(5):
            Warehouse(disk.url).set_alias("ctr", f"a{who}-{i}", 1, at=i)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(promote, range(6)))
    assert len(disk.aliases("ctr")) == len(disk.history("ctr")) == 30


# ---- aliases


@pytest.fixture
def three(house) -> Warehouse:
    for _ in range(3):
        house.publish(draft(), GRAPH)
    return house


def test_an_alias_moves_and_every_move_is_kept(three):
    three.set_alias("ctr", "champion", 1, at=10)
    three.set_alias("ctr", "challenger", 3, at=20)
    three.set_alias("ctr", "champion", 2, at=30)
    assert three.aliases("ctr") == {"champion": 2, "challenger": 3}
    assert three.history("ctr") == (
        Move(alias="champion", number=1, at=10),
        Move(alias="challenger", number=3, at=20),
        Move(alias="champion", number=2, at=30, previous=1),
    )


def test_rollback_goes_back_one_promotion_each_time_and_never_forward(three):
    for at, number in enumerate([1, 2, 3]):
        three.set_alias("ctr", "champion", number, at)
    three.set_alias("ctr", "challenger", 1, at=3)
    assert [three.rollback("ctr", "champion", at=4), three.rollback("ctr", "champion", at=5)] == [2, 1]
    with pytest.raises(ConflictError, match="version 1 only"):
        three.rollback("ctr", "champion", at=6)
    three.set_alias("ctr", "champion", 3, at=7)
    assert three.rollback("ctr", "champion", at=8) == 1 == three.resolve("ctr", "champion")
    assert three.history("ctr")[-1] == Move(alias="champion", number=1, at=8, previous=3, rollback=True)


def test_setting_an_alias_where_it_points_is_no_move(three):
    for number in (1, 2, 2):
        three.set_alias("ctr", "champion", number, at=number)
    assert len(three.history("ctr")) == 2
    assert three.rollback("ctr", "champion", at=9) == 1


def test_an_alias_written_by_hand_can_be_rolled_back_to(tmp_path, disk):
    disk.publish(draft(), GRAPH)
    disk.publish(draft(), GRAPH)
    (Path(disk.url) / "ctr/aliases.json").write_text('{"aliases": {"champion": 1}}')
    disk.set_alias("ctr", "champion", 2, at=1)
    assert disk.rollback("ctr", "champion", at=2) == 1


def test_an_alias_never_dangles(three):
    for number in (0, -1, 4, 10**30):
        with pytest.raises(NotFoundError, match=r"3 versions, 1 to 3"):
            three.set_alias("ctr", "champion", number, at=0)
    with pytest.raises(NotFoundError, match="did you mean ctr"):
        three.set_alias("ctrr", "champion", 1, at=0)
    assert three.aliases("ctr") == {} and three.names() == ("ctr",)


def test_a_rollback_to_a_version_that_was_deleted_is_refused(disk):
    for number in (1, 2):
        disk.publish(draft(), GRAPH)
        disk.set_alias("ctr", "champion", number, at=number)
    shutil.rmtree(Path(disk.url) / "ctr/1")
    with pytest.raises(NotFoundError, match="no version 1"):
        disk.rollback("ctr", "champion", at=3)
    assert disk.resolve("ctr", "champion") == 2


def test_a_reference_is_a_number_an_alias_or_latest(three):
    three.set_alias("ctr", "challenger", 2, at=0)
    assert [three.resolve("ctr", reference) for reference in ("challenger", 1, "3", "latest")] == [2, 1, 3, 3]


@pytest.mark.parametrize(
    ("name", "reference", "hint"),
    [
        ("ctr", "chalenger", "did you mean challenger"),
        ("ctr", 9, "3 versions, 1 to 3"),
        ("ctr", "007", "3 versions, 1 to 3"),
        ("ctr", "-1", "3 versions"),
        ("ctr", "9" * 60, "3 versions"),
        ("ctx", "latest", "did you mean ctr"),
        ("other", "latest", "known: ctr|did you mean"),
    ],
)
def test_what_is_not_there_is_not_found_with_what_is(three, name, reference, hint):
    three.set_alias("ctr", "challenger", 2, at=0)
    with pytest.raises(NotFoundError, match=hint):
        three.resolve(name, reference)


def test_damaged_aliases_are_refused_by_the_name_of_their_file(disk):
    disk.publish(draft(), GRAPH)
    (Path(disk.url) / "ctr/aliases.json").write_text('{"aliases": {"champion": "one"}}')
    with pytest.raises(DataError, match=r"ctr/aliases.json"):
        disk.resolve("ctr", "champion")


# ---- names stay inside

ESCAPES = [
    "../x",
    "a/b",
    "/etc",
    "",
    "..",
    ".",
    "a\0b",
    "a" * 65,
    "a" * 5000,
    "a\n",
    "~",
    "1",
    "a\\b",
    "..\\x",
    "é",
    "a b",
]


@pytest.mark.parametrize("bad", ESCAPES)
def test_no_name_leads_out_of_the_warehouse(tmp_path, disk, bad):
    disk.publish(draft(), GRAPH)
    disk.set_alias("ctr", "champion", 1, at=0)
    before = tree(tmp_path)
    tries = [
        lambda: disk.publish(draft(bad), GRAPH),
        lambda: disk.read(bad, 1),
        lambda: disk.numbers(bad),
        lambda: disk.resolve(bad, "latest"),
        lambda: disk.aliases(bad),
        lambda: disk.history(bad),
        lambda: disk.set_alias(bad, "champion", 1, at=1),
        lambda: disk.set_alias("ctr", bad, 1, at=1),
        lambda: disk.rollback(bad, "champion", at=1),
        lambda: disk.rollback("ctr", bad, at=1),
    ]
    for attempt in tries:
        with pytest.raises(DataError, match="must match"):
            attempt()
    if bad != "1":  # as a reference it is a number
        with pytest.raises(DataError, match="must match"):
            disk.resolve("ctr", bad)
    assert tree(tmp_path) == before


def test_latest_is_no_alias_because_it_moves_by_itself(house):
    house.publish(draft(), GRAPH)
    with pytest.raises(DataError, match="latest"):
        house.set_alias("ctr", "latest", 1, at=0)


def test_a_warehouse_of_an_unknown_kind_is_a_mistake_in_the_configuration():
    with pytest.raises(ConfigError, match="nosuch"):
        Warehouse("nosuch://bucket/warehouse")


def test_a_warehouse_that_is_not_there_yet_is_empty(house):
    assert house.names() == () and house.numbers("ctr") == ()
    with pytest.raises(NotFoundError, match="no policy 'ctr'"):
        house.read("ctr", 1)
