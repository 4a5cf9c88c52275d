"""Imports: every row becomes what it says or is refused with its reason, and a bad file changes nothing."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steersman import engine as engines
from steersman import log
from steersman.core.decision import Candidate, Decision, One, Outcome, Problem, Ranked
from steersman.core.errors import DataError, DiskError, Error
from steersman.engine import Engine
from steersman.log import mapped
from steersman.log.pen import fresh_name
from steersman.log.segment import segments

T0 = 1_574_553_609_123_456  # 2019-11-24 00:00:09.123456 UTC


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    opened = engines.open("duckdb", threads=2)
    yield opened
    opened.close()


def problem(**changes: Any) -> Problem:
    values: dict[str, Any] = {"name": "ctr", "actions": One(names=("0", "1", "2")), "reward": "click", "wait_s": 0.0}
    return Problem(**values | changes)


def mapping(**changes: Any) -> log.Mapping:
    values: dict[str, Any] = {
        "at": "timestamp", "action": "item_id", "propensity": "propensity_score", "context": {"where": "position"},
        "metrics": {"click": "click"},
    }  # fmt: skip
    return msgspec.convert(values | changes, log.Mapping)


CSV = """timestamp,item_id,position,click,propensity_score,user-item_affinity_0
2019-11-24 00:00:09.123456+00:00,2,left,1,0.25,0.5
2019-11-24 00:00:10+00:00,0,right,0,0.5,
"""


def nouns(directory: Path) -> list[Decision | Outcome]:
    return [
        msgspec.json.decode(record.body, type=Decision if record.kind == log.DECISION else Outcome)
        for record in log.read(directory)
    ]


def run(pen: log.Pen, engine: Engine, source: Path, how: log.Mapping | None, **changes: Any) -> log.Imported:
    what = changes.pop("problem", problem())
    given = log.Source(path=source, mapping=how)
    return log.import_log(pen, engine, given, what, rejects=source.with_name("rejects.jsonl"), **changes)


def rejected(source: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in source.with_name("rejects.jsonl").read_text().splitlines()]


def put(directory: Path, text: str, name: str = "rows.csv") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_a_csv_becomes_decisions_and_outcomes(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    how = mapping(context={"where": "position", "affinity": "user-item_affinity_0"})
    counts = run(pen, engine, put(tmp_path, CSV), how)
    assert counts == log.Imported(rows=2, decisions=2, outcomes=2, rejected=0)
    one, click, two, nothing = nouns(pen.directory)
    names = tuple(map(Candidate, ("0", "1", "2")))
    assert one == Decision(
        id=one.id, problem="ctr", unit=one.id, at=T0, context={"where": "left", "affinity": 0.5}, candidates=names,
        action="2", propensity=0.25,
    )  # fmt: skip
    assert click == Outcome(id=click.id, decision=one.id, at=T0, metrics={"click": 1.0})
    assert isinstance(two, Decision)
    assert two.context == {"where": "right"}  # an empty cell is missing, not a zero
    assert nothing == Outcome(id=nothing.id, decision=two.id, at=two.at, metrics={"click": 0.0})
    assert rejected(tmp_path / "rows.csv") == []


def test_the_same_file_imported_twice_gives_the_same_ids(tmp_path: Path, engine: Engine) -> None:
    source = put(tmp_path, CSV)
    found = []
    for place in ("a", "b"):
        with log.Pen(tmp_path / place) as pen:
            run(pen, engine, source, mapping())
        found.append(nouns(tmp_path / place))
    assert found[0] == found[1]
    assert len({noun.id for noun in found[0]}) == 4


def test_a_refused_row_does_not_change_the_ids_of_the_others(tmp_path: Path, engine: Engine) -> None:
    found = []
    for place, text in (("a", CSV), ("b", CSV.replace("left,1,0.25,0.5", "left,1"))):
        (tmp_path / place).mkdir()
        with log.Pen(tmp_path / place / "log") as pen:
            run(pen, engine, put(tmp_path / place, text), mapping(), max_reject_share=0.5)
        found.append(nouns(tmp_path / place / "log"))
    assert found[1] == found[0][2:]


def test_every_mapped_place_is_filled_from_an_expression(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    source = put(
        tmp_path,
        "key,user,t,n,arm,p,v,done,reward,tags\nk1,007,1000000,3,b,0.5,9,terminated,2.5,x|y\nk2,007,2000000,4,a,1,9,,,\n",
    )
    how = msgspec.convert(
        {
            "id": "'id-' || key", "unit": "user", "at": "t * 2", "outcome_at": "t + 7", "step": "n", "action": "arm",
            "propensity": "p / 2", "version": "v + 1", "candidates": "['a', 'b']", "ends": "done",
            "context": {"n2": "n * n", "tags": "string_split(tags, '|')"}, "metrics": {"m": "reward"},
        },
        log.Mapping,
    )  # fmt: skip
    run(pen, engine, source, how, problem=problem(actions=One()))
    one, end, two = nouns(pen.directory)
    assert one == Decision(
        id="id-k1", problem="ctr", unit="007", at=2_000_000, step=3, action="b", propensity=0.25, version=10,
        candidates=(Candidate("a"), Candidate("b")), context={"n2": 9.0, "tags": ("x", "y")},
    )  # fmt: skip
    assert end == Outcome(id=end.id, decision="id-k1", at=1_000_007, metrics={"m": 2.5}, ends="terminated")
    assert two.id == "id-k2"  # neither a metric nor an end: no outcome


def test_candidates_with_features(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    source = tmp_path / "rows.parquet"
    engine.copy(
        "SELECT 5 AS t, 'b' AS a, 0.5 AS p, [{'id': 'a', 'price': 1.5::DOUBLE, 'tags': ['x']}, "
        "{'id': 'b', 'price': NULL, 'tags': NULL}] AS arms",
        source,
    )
    how = msgspec.convert({"at": "t", "action": "a", "propensity": "p", "candidates": "arms"}, log.Mapping)
    run(pen, engine, source, how, problem=problem(actions=One()))
    (one,) = nouns(pen.directory)
    assert isinstance(one, Decision)
    assert one.candidates == (Candidate("a", {"price": 1.5, "tags": ("x",)}), Candidate("b"))


ROWS = [
    {"timestamp": "2019-11-24T00:00:09.123456Z", "item_id": 2, "position": "x", "click": 1, "propensity_score": 0.25},
    {"timestamp": "2019-11-24T01:00:10+01:00", "item_id": 0, "position": None, "click": None, "propensity_score": 1},
]


def test_csv_json_lines_parquet_and_gzip_say_the_same(tmp_path: Path, engine: Engine) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    cells = "\n".join(";".join("" if cell is None else str(cell) for cell in row.values()) for row in ROWS)
    semicolons = ";".join(ROWS[0]) + "\n" + cells + "\n"
    sources = [
        put(tmp_path, lines, "a.jsonl"), put(tmp_path, lines, "b.ndjson"), put(tmp_path, semicolons, "c.csv"),
        tmp_path / "d.csv.gz", tmp_path / "e.jsonl.gz", tmp_path / "f.parquet",
    ]  # fmt: skip
    sources[3].write_bytes(gzip.compress(semicolons.encode()))
    sources[4].write_bytes(gzip.compress(lines.encode()))
    engine.copy(f"SELECT * FROM read_json('{sources[0]}')", sources[5])
    found = []
    for source in sources:
        with log.Pen(tmp_path / f"log-{source.name}") as pen:
            run(pen, engine, source, mapping(id="item_id"))
        found.append(nouns(tmp_path / f"log-{source.name}"))
    assert [noun.at for noun in found[0]] == [T0, T0, T0 + 876_544]
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_an_id_keeps_its_leading_zeros_and_all_its_digits(
    tmp_path: Path, pen: log.Pen, engine: Engine, name: str
) -> None:
    odd = ["007", "12345678901234567890123", "1e5", "2020-01-01", "2020-01-01T00:00:00Z", "TRUE", "1.50"]
    rows = [{"unit": unit, "t": 1, "a": "0", "p": 0.5} for unit in odd]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if name == "rows.csv":
        text = "unit,t,a,p\n" + "".join(f"{unit},1,0,0.5\n" for unit in odd)
    how = msgspec.convert({"at": "t", "unit": "unit", "action": "a", "propensity": "p"}, log.Mapping)
    run(pen, engine, put(tmp_path, text, name), how)
    assert [one.unit for one in nouns(pen.directory) if isinstance(one, Decision)] == odd


def test_a_log_without_propensities_is_refused_with_the_reason(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    source = put(tmp_path, CSV)
    with pytest.raises(DataError, match="no propensity"):
        run(pen, engine, source, mapping(propensity=""))
    with pytest.raises(DataError, match="mapping of propensity") as caught:
        run(pen, engine, source, mapping(propensity="propensity_scores"))
    assert "did you mean propensity_score" in str(caught.value)
    assert caught.value.field == "propensity"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"at": "propensity_score"}, "is DOUBLE, must be a time"),
        ({"action": "['a']"}, "must be a text"),
        ({"context": {"when": "timestamp"}}, "must be a number, a text or a list"),
        ({"context": {"x": "position +"}}, "mapping of context.x"),
        ({"context": {"x": "1; DROP TABLE y"}}, "mapping of context.x"),
        ({"metrics": {"click": "[1]"}}, "must be a number"),
        ({"step": "propensity_score"}, "must be an integer"),
        ({"context": {"a": "click", "A": "click"}}, "differ only in case"),
    ],
)
def test_a_mapping_that_does_not_fit_names_its_field(
    tmp_path: Path, pen: log.Pen, engine: Engine, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words.replace("[", r"\[").replace("+", r"\+")):
        run(pen, engine, put(tmp_path, CSV), mapping(**changes))
    assert nouns(pen.directory) == []


def test_a_mapping_must_fit_the_problem(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    source = put(tmp_path, CSV)
    with pytest.raises(DataError, match="did you mean where"):
        run(pen, engine, source, mapping(context={"wher": "position"}), problem=problem(context={"where": "text"}))
    with pytest.raises(DataError, match="no candidates"):
        run(pen, engine, source, mapping(), problem=problem(actions=One()))


def test_an_unknown_key_of_a_mapping_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="probability"):
        mapping(probability="p")


BAD_ROWS = {
    "0": "propensity is 0", "1.5": "propensity is 1.5", "-0.1": "propensity is -0.1", "": "propensity is missing",
    "x": "propensity is 'x', must be a number", "nan": "not a number", "inf": "propensity is inf",
}  # fmt: skip


def test_each_bad_row_is_refused_with_its_line_and_reason(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    header, *good = CSV.splitlines()
    bad = [f"2019-11-24,0,left,0,{propensity}," for propensity in BAD_ROWS]
    more = {
        "not time,0,left,0,0.5,": "at is missing", ",0,left,0,0.5,": "at is missing", "2019-11-24,,l,0,0.5,": "action",
        "2019-11-24,9,left,0,0.5,": "not among its 3 candid", "2019-11-24,0,left,yes,0.5,": "metrics.click is 'yes'",
        "2019-11-24,0": "2 cells, the header has 6", '2019-11-24,0,"left"x,0,0.5,': "expected after",
    }  # fmt: skip
    text = "\n".join([header, good[0], *bad, "", *more, good[1]]) + "\n"
    counts = run(pen, engine, put(tmp_path, text), mapping(), max_reject_share=0.9)
    assert (counts.rows, counts.decisions, counts.rejected) == (16, 2, 14)
    found = {row["line"]: row["reason"] for row in rejected(tmp_path / "rows.csv")}
    wanted = dict(enumerate(BAD_ROWS.values(), 3)) | dict(enumerate(more.values(), 4 + len(BAD_ROWS)))
    assert sorted(found) == sorted(wanted)
    for line, word in wanted.items():
        assert word in found[line]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    source = tmp_path / "rows.csv"
    source.write_bytes(b"\xef\xbb\xbf" + CSV.encode() + b"2019-11-24,0,\xff\xfe,0,0.5,\n")
    assert run(pen, engine, source, mapping(), max_reject_share=0.5).rejected == 1
    assert rejected(source)[0]["line"] == 4


def test_lines_that_are_no_json_objects_are_refused(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    good = json.dumps(ROWS[0])
    source = put(tmp_path, f"{good}\n[1]\n{{broken\n\n7\n{good}\n", "rows.jsonl")
    counts = run(pen, engine, source, mapping(), max_reject_share=0.9)
    assert (counts.rows, counts.decisions, counts.rejected) == (5, 2, 3)
    assert [row["line"] for row in rejected(source)] == [2, 3, 5]
    assert [one.at for one in nouns(pen.directory)] == [T0] * 4


def test_a_table_may_say_what_was_deferred_and_what_activates_it(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    cells = ("1,0", "true,true", ",", "0,False", "maybe,", "0,2")
    rows = [f"2019-11-24,{i % 3},left,,0.5,,{cell}" for i, cell in enumerate(cells)]
    source = put(tmp_path, "\n".join([CSV.splitlines()[0] + ",shown_later,was_shown", *rows]))
    how = mapping(deferred="shown_later", activates="was_shown")
    counts = run(pen, engine, source, how, max_reject_share=0.5)
    assert (counts.decisions, counts.outcomes, counts.rejected) == (4, 1, 2)
    reasons = [row["reason"].split(",")[0] for row in rejected(source)]
    assert reasons == ["deferred: deferred is 'maybe'", "activates: activates is '2'"]
    found = nouns(pen.directory)
    assert [one.deferred for one in found if isinstance(one, Decision)] == [True, True, False, False]
    (shown,) = (one for one in found if isinstance(one, Outcome))
    assert (shown.activates, shown.decision, shown.metrics) == (True, found[1].id, {})


@pytest.mark.parametrize("kind", ["BOOLEAN", "INTEGER"])
def test_a_column_of_truths_or_of_ones_is_a_flag(tmp_path: Path, pen: log.Pen, engine: Engine, kind: str) -> None:
    shown = f"CAST(i = 1 AS {kind})"
    sql = f"SELECT i AS id, i AS at, '0' AS action, 0.5 AS p, {shown} AS later FROM range(3) AS t(i)"
    how = log.Mapping(id="id", at="at", action="action", propensity="p", deferred="later")
    log.import_log(pen, engine, log.Source(sql=sql, mapping=how), problem(), rejects=tmp_path / "rejects.jsonl")
    assert sorted((one.id, one.deferred) for one in nouns(pen.directory)) == [("0", False), ("1", True), ("2", False)]


def test_an_import_tells_how_far_it_is(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    rows = [f"2019-11-24,0,left,0,{0.5 if i % 500 else 0}," for i in range(2500)]
    told: list[tuple[int, int, dict[str, float]]] = []
    source = put(tmp_path, "\n".join([CSV.splitlines()[0], *rows]))
    run(pen, engine, source, mapping(), progress=lambda *all: told.append(all))
    assert told == [(1000, 0, {"refused": 2.0}), (2000, 0, {"refused": 4.0})]


def test_too_many_bad_rows_and_nothing_is_imported(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    rows = [f"2019-11-24,0,left,0,{0.5 if i else 0}," for i in range(100)]
    source = put(tmp_path, "\n".join([CSV.splitlines()[0], *rows]))
    with pytest.raises(DataError, match=r"1 of 100 rows refused, over the share 0.005; line 2: .*propensity is 0"):
        run(pen, engine, source, mapping(), max_reject_share=0.005)
    assert nouns(pen.directory) == []
    assert len(rejected(source)) == 1
    assert run(pen, engine, source, mapping(), max_reject_share=0.01).decisions == 99


@pytest.mark.parametrize(
    ("name", "text"), [("rows.csv", ""), ("rows.csv", "a,b\n"), ("rows.csv", "a,A\n1,2\n"), ("rows.parquet", "text")]
)
def test_what_is_no_table_is_refused(tmp_path: Path, pen: log.Pen, engine: Engine, name: str, text: str) -> None:
    with pytest.raises(DataError):
        run(pen, engine, put(tmp_path, text, name), mapping())


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.jsonl.gz"])
@pytest.mark.parametrize("cut", [0.5, 0])
def test_a_broken_archive_is_refused(tmp_path: Path, pen: log.Pen, engine: Engine, name: str, cut: float) -> None:
    packed = gzip.compress(CSV.encode())
    source = tmp_path / name
    source.write_bytes(packed[: int(len(packed) * cut)] or b"not packed")
    with pytest.raises(DataError, match="can not be decompressed"):
        run(pen, engine, source, mapping())


def test_an_unknown_kind_of_file_and_no_file(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    with pytest.raises(DataError, match=r"did you mean \.parquet"):
        run(pen, engine, put(tmp_path, "", "rows.parket"), mapping())
    with pytest.raises(DataError, match="not a file"):
        run(pen, engine, tmp_path / "nothing.csv", mapping())
    with pytest.raises(DataError, match="needs a mapping"):
        run(pen, engine, put(tmp_path, CSV), None)


OURS = [
    Decision(
        id="d1", problem="ctr", unit="u", at=5, context={"x": 1.0, "none": None}, candidates=(Candidate("0"),),
        action="0", propensity=1.0, step=2, noise=7,
    ),
    Outcome(id="o1", decision="d1", at=6, metrics={"click": 1.0}, ends="truncated"),
]  # fmt: skip


def test_our_own_log_comes_back_as_it_was(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    source = tmp_path / "own.jsonl"
    source.write_bytes(msgspec.json.Encoder().encode_lines(OURS))
    assert run(pen, engine, source, None) == log.Imported(rows=2, decisions=1, outcomes=1, rejected=0)
    assert nouns(pen.directory) == OURS


def test_lines_of_our_own_log_are_held_to_the_laws(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    decision = msgspec.to_builtins(OURS[0])
    outcome = msgspec.to_builtins(OURS[1])
    bad = {
        "propensity is 0": decision | {"propensity": 0},
        "missing required field `propensity`": {key: decision[key] for key in decision if key != "propensity"},
        "of problem 'other'": decision | {"problem": "other"},
        "must be a text": decision | {"context": {"x": 1.0}},
        "neither": {"id": "x"},
        "Invalid enum value": outcome | {"ends": "somehow"},
    }
    source = put(tmp_path, "".join(json.dumps(row) + "\n" for row in bad.values()) + "nonsense\n", "own.jsonl")
    with pytest.raises(DataError, match="7 of 7"):
        run(pen, engine, source, None, problem=problem(context={"x": "text", "none": "text"}))
    for reason, row in zip(bad, rejected(source), strict=False):
        assert reason in row["reason"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6),
            st.floats(allow_nan=False, allow_infinity=False),
            st.floats(0, 1, exclude_min=True),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_and_any_number_survive_a_csv(
    tmp_path: Path, engine: Engine, rows: list[tuple[str, float, float]]
) -> None:
    place = tmp_path / fresh_name()
    place.mkdir()
    quoted = ['"' + text.replace('"', '""') + '"' for text, _, _ in rows]
    cells = [f"1,0,{p!r},{text},{number!r}\n" for text, (_, number, p) in zip(quoted, rows, strict=True)]
    source = place / "rows.csv"
    source.write_text("t,a,p,text,number\n" + "".join(cells), encoding="utf-8", newline="")
    how = msgspec.convert(
        {"at": "t", "action": "a", "propensity": "p", "context": {"text": "text", "number": "number"}}, log.Mapping
    )
    declared = problem(context={"text": "text", "number": "number"})
    with log.Pen(place / "log", durability="buffered") as pen:
        run(pen, engine, source, how, problem=declared)
    found = [(one.context.get("text", ""), one.context["number"], one.propensity) for one in nouns(place / "log")]
    assert found == rows


def test_rows_keep_their_lines_through_more_than_one_chunk(
    tmp_path: Path, pen: log.Pen, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "CHUNK", 100)
    total = 450
    cells = (f"{i},0,{0 if i == 300 else 0.5}\n" for i in range(total))
    source = put(tmp_path, "t,a,p\n" + "".join(cells))
    how = msgspec.convert({"at": "t", "action": "a", "propensity": "p"}, log.Mapping)
    assert run(pen, engine, source, how).decisions == total - 1
    assert [row["line"] for row in rejected(source)] == [302]
    assert [one.at for one in nouns(pen.directory)] == [i for i in range(total) if i != 300]


def test_a_record_longer_than_a_segment_is_refused_before_anything_is_written(tmp_path: Path, engine: Engine) -> None:
    source = put(tmp_path, f"t,a,p,x\n1,0,0.5,{'y' * 5000}\n2,0,0.5,short\n")
    how = msgspec.convert({"at": "t", "action": "a", "propensity": "p", "context": {"x": "x"}}, log.Mapping)
    with log.Pen(tmp_path / "log", segment_bytes=4096) as pen:
        with pytest.raises(DataError, match="longer than"):
            run(pen, engine, source, how)
        assert nouns(pen.directory) == []


def test_a_log_that_can_not_be_written_fails_the_import(tmp_path: Path, engine: Engine) -> None:
    pen = log.Pen(tmp_path / "log")
    pen.close()
    with pytest.raises(Error, match="closed"):
        run(pen, engine, put(tmp_path, CSV), mapping())
    assert segments(tmp_path / "log") == []


def test_an_import_is_in_the_log_from_one_instant_on(tmp_path: Path) -> None:
    bodies = [b"%d" % i + b"x" * 2000 for i in range(20)]
    with log.at_once(tmp_path, segment_bytes=4096) as pen:
        for body in bodies:
            pen.append([(b"D", body)])
        pen.flush()
        assert len(segments(pen.directory)) > 9
        assert list(log.read(tmp_path)) == []
    assert [record.body for record in log.read(tmp_path)] == bodies


def test_an_import_that_fails_after_the_first_rows_were_appended_leaves_nothing(tmp_path: Path, engine: Engine) -> None:
    with log.Pen(tmp_path / "log") as pen:
        pen.append([(b"D", b"before")])
    source = put(tmp_path, CSV)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(DiskError, match="could not be written"), log.at_once(tmp_path / "log", 1 << 14) as pen:
        pen.append([(b"D", b"x" * 10_000)])
        pen.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limit[1]))
        try:
            pen.append([(b"D", b"x" * 10_000)])
            run(pen, engine, source, mapping())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [record.body for record in log.read(tmp_path / "log")] == [b"before"]
    assert list((tmp_path / "log" / "imported").iterdir()) == []


KILLED = """
import pathlib, sys, time
from steersman import log
with log.at_once(pathlib.Path(sys.argv[1]), segment_bytes=4096) as pen:
    for i in range(20):
        pen.append([(b"D", b"x" * 2000)])
    pen.flush()
    print("appended", flush=True)
    time.sleep(60)
"""


def test_of_an_import_that_is_killed_nothing_is_read_and_the_next_one_removes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as importing:
        assert importing.stdout is not None
        assert importing.stdout.readline() == b"appended\n"
        assert len(list(tmp_path.rglob("*.seg"))) > 9
        with log.at_once(tmp_path) as pen:  # one beside it that lives
            pen.append([(b"D", b"other")])
        assert len(list(tmp_path.rglob("*.seg"))) > 10
        importing.kill()
    assert [record.body for record in log.read(tmp_path)] == [b"other"]
    with log.at_once(tmp_path) as pen:
        pen.append([(b"D", b"next")])
    assert [record.body for record in log.read(tmp_path)] == [b"other", b"next"]
    assert sorted(tmp_path.rglob("*.seg")) == sorted(segments(tmp_path))
    assert len(list((tmp_path / "imported").iterdir())) == 2


PAGE = problem(actions=Ranked(2, names=("a", "b", "c")))
OF_LISTS = {
    "id": "id", "at": "t", "action": "items", "propensity": "", "propensities": "chances", "context": {},
    "metrics": {"click": "clicks", "order": "bought"},
}  # fmt: skip


def test_a_ranked_list_is_mapped_from_lists_one_element_an_item(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    rows = [
        {"id": "d1", "t": 7, "items": ["b", "a"], "chances": [0.5, 0.25], "clicks": [1, None], "bought": 2.5},
        {"id": "d2", "t": 8, "items": ["c"], "chances": [0.5], "clicks": None, "bought": None},
    ]
    source = put(tmp_path, "\n".join(map(json.dumps, rows)), "lists.jsonl")
    done = run(pen, engine, source, mapping(**OF_LISTS), problem=PAGE)
    assert (done.rows, done.decisions, done.outcomes, done.rejected) == (2, 2, 2, 0)
    one, of_list, of_item, two = nouns(pen.directory)
    assert (one.action, one.propensities, one.propensity) == (("b", "a"), (0.5, 0.25), 0.125)
    assert [candidate.id for candidate in one.candidates] == ["a", "b", "c"]
    assert (of_list.decision, of_list.item, of_list.metrics, of_list.at) == ("d1", None, {"order": 2.5}, 7)
    assert (of_item.decision, of_item.item, of_item.metrics, of_item.at) == ("d1", "b", {"click": 1.0}, 7)
    assert of_item.id != of_list.id
    assert (two.action, two.propensities, two.propensity) == (("c",), (0.5,), 0.5)


def test_a_table_of_texts_is_split_into_lists_by_the_mapping(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    source = put(tmp_path, "id,t,items,p,first\nd1,7,b|a,0.5|0.25,0.25|0.5|0.25\n")
    how = OF_LISTS | {
        "action": "string_split(items, '|')", "propensities": "CAST(string_split(p, '|') AS DOUBLE[])",
        "first_propensities": "CAST(string_split(first, '|') AS DOUBLE[])", "metrics": {},
    }  # fmt: skip
    assert run(pen, engine, source, mapping(**how), problem=PAGE).decisions == 1
    [decision] = nouns(pen.directory)
    assert (decision.action, decision.first_propensities) == (("b", "a"), (0.25, 0.5, 0.25))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"chances": [0.5]}, "1 propensities for a list of 2 items"),
        ({"chances": None}, "propensities are missing"),
        ({"chances": [0.5, 1.5]}, "must be in (0, 1]"),
        ({"chances": [0.5, None]}, "propensities are missing"),
        ({"items": ["b", "d"]}, "is not among its 3 candidates"),
        ({"items": ["b", "b"]}, "stands twice"),
        ({"items": ["b", None]}, "an id is missing"),
        ({"items": []}, "an empty list"),
        ({"clicks": [1.0]}, "metrics.click has 1 numbers for 2 items"),
    ],
)
def test_a_list_that_is_none_is_refused_with_its_reason(tmp_path: Path, pen: log.Pen, engine: Engine, changed, reason):
    good = {"id": "d1", "t": 7, "items": ["b", "a"], "chances": [0.5, 0.25], "clicks": [1, 0], "bought": 2.5}
    rows = [good, good | {"id": "d2"} | changed]
    source = put(tmp_path, "\n".join(map(json.dumps, rows)), "lists.jsonl")
    done = run(pen, engine, source, mapping(**OF_LISTS), problem=PAGE, max_reject_share=0.5)
    assert (done.decisions, done.rejected) == (1, 1)
    assert reason in rejected(source)[0]["reason"]


def test_a_mapping_of_lists_must_have_their_propensities(tmp_path: Path, pen: log.Pen, engine: Engine) -> None:
    source = put(tmp_path, CSV)
    with pytest.raises(DataError, match="the mapping has no propensities"):
        run(pen, engine, source, mapping(), problem=PAGE)
    with pytest.raises(DataError, match="must be a list of ids"):
        run(pen, engine, source, mapping(propensities="[0.5, 0.5]"), problem=PAGE)
    with pytest.raises(DataError, match="has no ranked lists"):
        run(pen, engine, source, mapping(propensities="[0.5, 0.5]"))
    given = log.Source(path=source, mapping=mapping(propensities="[0.5]"), propensities="uniform")
    with pytest.raises(DataError, match="can not be estimated, nor declared"):
        log.import_log(pen, engine, given, PAGE, rejects=tmp_path / "no.jsonl")
