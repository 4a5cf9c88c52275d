"""Keys of running episodes: those of the timeline's episodes, in every process of a server, and after its restart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steersman.core.errors import DataError
from steersman.serve.asking import Request
from steersman.serve.episodes import Episodes
from steersman.timeline.episodes import BY_TIME, BY_TIME_AND_STEP, NO_END, TERMINATED, Rows, cut

HORIZON, HORIZON_S = 7, 30.0
SECOND = 1_000_000


def asked(unit: str, decision: str, step: int | None = None) -> Request:
    return Request(decision, unit, {}, (), step)


def open_table(path: Path, **changed: Any) -> Episodes:
    return Episodes(path, **({"mirrored": True} | changed))


@pytest.mark.parametrize("counts", [False, True], ids=["time", "steps"])
@pytest.mark.parametrize(("horizon", "horizon_s"), [(None, None), (HORIZON, None), (None, HORIZON_S)])
def test_a_key_is_of_one_episode_of_the_timeline_and_an_episode_of_one_key(
    tmp_path: Path, counts: bool, horizon: int | None, horizon_s: float | None
) -> None:
    """Units that come in any order, in two processes that open the table anew, against where the timeline cuts."""
    rng = np.random.default_rng(0)
    limit = None if horizon_s is None else round(horizon_s * SECOND)
    made = [open_table(tmp_path / "t", horizon=horizon, horizon_us=limit) for _ in range(2)]
    rows: dict[int, list[list[int]]] = {unit: [] for unit in range(40)}
    step, now = dict.fromkeys(rows, 0), 0
    for number in range(3000):
        unit, now = int(rng.integers(40)), now + int(rng.integers(1, SECOND // 4))
        if rng.random() < 0.01:
            made[int(rng.integers(2))] = open_table(tmp_path / "t", horizon=horizon, horizon_us=limit)
        [key] = made[int(rng.integers(2))].keys([asked(f"u{unit}", f"d{number}", step[unit] if counts else None)], now)
        ends = TERMINATED if rng.random() < 0.15 else NO_END
        rows[unit].append([now, step[unit] if counts else -1, ends, key])
        step[unit] += 1
        if ends:
            made[int(rng.integers(2))].ended([f"d{number}"])
            step[unit] = 0
        elif counts and rng.random() < 0.05:  # the product begins anew and says nothing
            step[unit] = 0
    of_unit = np.repeat(list(rows), [len(found) for found in rows.values()])
    at, steps, ends_, keys = np.array([row for found in rows.values() for row in found], dtype=object).T
    order = np.full(len(at), BY_TIME_AND_STEP if counts else BY_TIME, dtype=np.int8)
    late = np.zeros(len(at), dtype=bool)
    columns = [column.astype(kind) for column, kind in ((at, np.int64), (steps, np.int64), (ends_, np.int8))]
    episodes = cut(Rows(of_unit, columns[0], columns[1], order, columns[2], late), horizon, horizon_s)
    episode = np.cumsum(np.append(0, episodes.next[:-1] < 0))
    pairs = {(number, key) for number, key in zip(episode.tolist(), keys.tolist(), strict=True)}
    assert episode[-1] > 300
    assert len(pairs) == episode[-1] + 1 == len(set(keys.tolist()))


def test_an_end_counts_where_its_decision_was_the_last(tmp_path: Path) -> None:
    table = open_table(tmp_path / "t")
    [key] = table.keys([asked("u", "d1")], 1)
    assert table.keys([asked("u", "d2")], 2) == [key]
    table.ended(["d1", "nobody's"])  # late: d2 is of the next episode already, and keeps its key
    assert table.keys([asked("u", "d3")], 3) == [key]
    table.ended(["d3"])
    [other] = table.keys([asked("u", "d4")], 4)
    assert other == key ^ 1  # the mirror of the one before
    assert table.keys([asked("u", "d4")], 4) == [other]  # asked again
    assert table.keys([asked("v", "d5"), asked("u", "d6", 3), asked("u", "d7", 0)], 5)[1] == other
    assert open_table(tmp_path / "t").keys([asked("u", "d8", 1)], 6) not in ([key], [other])


def test_two_processes_with_one_config_draw_ten_thousand_keys_and_none_twice(tmp_path: Path) -> None:
    """They share a table, as workers do, and begin episodes as fast as they can; each unit is of both."""
    script = """
import sys
from pathlib import Path
from steersman.serve.asking import Request
from steersman.serve.episodes import Episodes
table = Episodes(Path(sys.argv[1]), mirrored=True)
sys.stdin.read(1)
units = range(10_000) if sys.argv[2] == "up" else range(9_999, -1, -1)
for unit in units:
    print(unit, *table.keys([Request(f"{sys.argv[2]}{unit}", f"u{unit}", {}, ())], 1 + unit))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "t")]
    running = [
        subprocess.Popen([*command, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for way in ("up", "down")
    ]
    for one in running:
        assert one.stdin is not None
        one.stdin.write("+")
        one.stdin.flush()
    found = [dict(line.split() for line in one.communicate()[0].splitlines()) for one in running]
    assert found[0] == found[1] and len(found[0]) == 10_000
    keys = {int(key) for key in found[0].values()}
    assert len(keys) == 10_000 and all(key ^ 1 in keys for key in keys)


def test_a_process_that_is_killed_takes_no_key_with_it_and_no_lock(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from steersman.serve.asking import Request
from steersman.serve.episodes import Episodes
table = Episodes(Path(sys.argv[1]), mirrored=True)
for unit in range(10**9):
    print(unit, *table.keys([Request(f"d{unit}", f"u{unit}", {}, ())], 1 + unit), flush=True)
"""
    for turn in range(3):
        table = tmp_path / f"{turn}"
        with subprocess.Popen([sys.executable, "-c", script, str(table)], stdout=subprocess.PIPE, text=True) as one:
            assert one.stdout is not None
            lines = [one.stdout.readline() for _ in range(500 + 77 * turn)]
            one.kill()
            lines += one.stdout.read().splitlines()[:-1]  # the last one may be cut
        again = open_table(table)
        told = dict(line.split() for line in lines)
        found = again.keys([asked(f"u{unit}", f"later{unit}") for unit in told], 10**9)
        assert [str(key) for key in found] == list(told.values())
        assert not {str(key) for key in again.keys([asked("new", "d"), asked("newer", "e")], 10**9)} & set(
            told.values()
        )


def test_the_table_stays_small_and_the_longest_idle_make_room(tmp_path: Path) -> None:
    table = open_table(tmp_path / "t", capacity=64)
    first = table.keys([asked(f"u{i}", f"d{i}") for i in range(64)], 1)
    size = (tmp_path / "t").stat().st_size
    assert size < 64 * 4 * 48 + 512
    for i in range(3000):
        table.keys([asked(f"new{i}", f"n{i}")], 2 + i)
        assert len(set(table.keys([asked("u0", f"again{i}")], 2 + i))) == 1
    assert table.keys([asked("u0", "last")], 9000) == first[:1]  # who comes often keeps its key
    assert not set(table.keys([asked(f"u{i}", f"l{i}") for i in range(1, 64)], 9001)) & set(first)
    assert (tmp_path / "t").stat().st_size == size


def test_a_table_that_is_damaged_is_refused_and_keys_that_are_not_mirrored_are_fresh(tmp_path: Path) -> None:
    drawn = iter(range(2, 100))
    table = open_table(tmp_path / "t", mirrored=False, entropy=lambda n: next(drawn).to_bytes(n, "little"))
    assert table.keys([asked("u", "d1"), asked("v", "d2"), asked("w", "d3")], 1) == [2, 3, 4]
    whole = (tmp_path / "t").read_bytes()
    for body in (whole[:-8], b"other bytes" + whole[11:], whole + b"x", b"few"):
        (tmp_path / "bad").write_bytes(body)
        with pytest.raises(DataError, match="is damaged"):
            open_table(tmp_path / "bad")
    for begun in (b"", bytes(1000)):  # by a process that was killed
        (tmp_path / "bad").write_bytes(begun)
        assert len(set(open_table(tmp_path / "bad").keys([asked("u", "d1"), asked("v", "d2")], 1))) == 2
        assert len((tmp_path / "bad").read_bytes()) == len(whole)


def test_a_disk_that_is_full_says_so_when_the_table_is_made(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
from steersman.serve.episodes import Episodes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    Episodes(Path(sys.argv[1]), mirrored=True)
except OSError as error:
    print(error.strerror)
"""
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "t")], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    assert said == "File too large\n"
    open_table(tmp_path / "t")
