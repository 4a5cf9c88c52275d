"""Fields and candidates: which columns enter, what is fitted on them, and where the action is."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from steersman import timeline
from steersman.core.decision import NO_TEXT, Candidate, One, Problem
from steersman.core.errors import ConfigError, DataError
from steersman.core.features import Category, Continuous, Encoder, Ids, list_keys
from steersman.timeline import Built
from steersman.timeline.settings import Settings
from timeline_log import FAR, Files, decision, log, outcome, parquet, problem, shuffled_log, types

FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FREE = One()
"""Candidates that come and go."""


def build(
    tables, files: Files, at: Problem | None = None, encoder: Encoder | None = None, given: Settings | None = None
) -> Built:
    return timeline.build(
        tables, at or problem(), files, since=0, until=FAR, as_of=FAR, encoder=encoder, settings=given or Settings()
    )


# --- statistics


@FEW
@given(st.lists(st.one_of(st.none(), st.floats(width=64)), min_size=1, max_size=30))
@example([1e308, -1e308, 1e308])
@example([5e-324, 0.0])
@example([-0.0, 0.0, None])
@example([math.nan, math.inf, -math.inf, 3.0])
@example([math.nan, math.inf, -math.inf, 3.0, 5.0])
@example([1e9] + [0.0] * 29)
def test_mean_and_deviation_are_those_of_the_finite_values(tables, tmp_path, values):
    rows = [decision(f"d{i}", at_s=i, x=value) for i, value in enumerate(values)]
    built = build(
        tables, log(tmp_path, rows), problem(context={"x": "number"}), given=Settings(context={"x": "continuous"})
    )
    (field,) = built.encoder.context
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        assert field == Continuous("x", 0.0, 1.0)
        return
    mean, std = statistics.mean(finite), statistics.pstdev(finite)  # exact: they calculate with fractions
    scale = max(finite) / 2 - min(finite) / 2
    assert field.mean == pytest.approx(mean, abs=1e-15 * scale, rel=1e-15)
    if scale == 0:
        assert field.std == 1.0
    elif std > 2e-12 * abs(mean) and std > 1e-300:
        assert field.std == pytest.approx(std, rel=1e-7)


def test_a_field_of_small_numbers_is_standardised_all_the_same(tables, tmp_path):
    """Horizon floors the deviation at 1, so a field like this one stays invisible to the net."""
    values = np.random.default_rng(0).normal(5, 0.01, 300)
    built = build(tables, log(tmp_path, [decision(f"d{i}", at_s=i, x=float(x)) for i, x in enumerate(values)]))
    assert built.batch.context[:, 0].std() == pytest.approx(1, abs=1e-5)
    assert built.batch.context[:, 0].mean() == pytest.approx(0, abs=1e-5)


def test_only_the_decisions_that_enter_are_measured(tables, tmp_path):
    rows = [decision("d1", at_s=1, x=1.0), decision("d2", at_s=2, x=3.0), decision("d2", at_s=3, x=1e9)]
    rows.append(decision("d3", at_s=99, x=1e9))
    built = timeline.build(tables, problem(), log(tmp_path, rows), since=0, until=FAR, as_of=50 * 10**6)
    assert built.batch.encoder.context == (Continuous("x", 2.0, 1.0),)


# --- which fields


def test_fields_are_found_by_name_whatever_their_column(tables, tmp_path):
    """ReAgent wrote columns by id and read them by type: mixed types were permuted, silently."""
    rows = [
        decision(f"d{i}", at_s=i, zebra=7.0 + i, ant=float(i % 2), m=f"t{i % 3}", prob=0.5 + i / 100) for i in range(9)
    ]
    one = build(tables, log(tmp_path / "one", rows))
    assert one.batch.encoder.context_columns() == (
        *("ant", "ant missing", "m=t0", "m=t1", "m=t2", "m unseen", "m missing"),
        *("prob", "prob missing", "zebra", "zebra missing"),
    )
    np.testing.assert_array_equal(one.raw.context.numbers, [[i % 2, 0.5 + i / 100, 7.0 + i] for i in range(9)])
    assert one.raw.context.texts[:, 0].tolist() == [f"t{i % 3}" for i in range(9)]
    for seed in range(3):
        other = build(tables, shuffled_log(tmp_path / str(seed), rows, [], seed))
        assert other.batch.digest == one.batch.digest


def test_the_arrays_are_what_the_encoder_makes_of_the_rows_of_the_log(tables, tmp_path):
    rows = [
        decision("d1", at_s=1, x=1.0, t="a"),
        decision("d2", at_s=2, x=None, t="b"),
        decision("d3", at_s=3, x=4.0, t=None),
    ]
    built = build(tables, log(tmp_path, rows))
    encoder = built.batch.encoder
    raw = encoder.raw_context([{"x": 1.0, "t": "a"}, {"t": "b"}, {"x": 4.0}])
    np.testing.assert_array_equal(built.raw.context.numbers, raw.numbers)
    assert built.raw.context.texts.tolist() == raw.texts.tolist()
    np.testing.assert_array_equal(built.batch.context, encoder.encode_context(raw))
    candidates, ids = encoder.raw_candidates([[Candidate("a"), Candidate("b")]] * 3, 2)
    assert built.raw.ids.tolist() == ids.tolist()
    np.testing.assert_array_equal(built.batch.candidates, encoder.encode_candidates(candidates, ids))


def test_only_declared_fields_enter(tables, tmp_path):
    rows = [decision("d1", x=1.0, leak=5.0, tags=["a"])]
    built = build(tables, log(tmp_path, rows), problem(context={"x": "auto", "never": "number", "no_text": "text"}))
    assert built.batch.encoder.context == (
        Continuous("never", 0.0, 1.0),
        Category("no_text", ()),
        Continuous("x", 1.0, 1.0),
    )
    np.testing.assert_array_equal(built.batch.context, [[0, 1, 0, 1, 0, 0]])


def test_a_field_that_no_row_has_is_no_field(tables, tmp_path):
    rows = [decision("d1", x=1.0), decision("d2", at_s=10**9, x=1.0, y=2.0)]
    built = timeline.build(tables, problem(), log(tmp_path, rows), since=0, until=FAR, as_of=10**9)
    assert [field.name for field in built.batch.encoder.context] == ["x"]


def test_files_need_not_have_the_same_columns(tables, tmp_path):
    one = parquet(tmp_path / "1.parquet", [decision("d1", at_s=1, x=1.0)])
    two = parquet(tmp_path / "2.parquet", [decision("d2", at_s=2, y="z")])
    built = build(tables, Files([one, two], []))
    np.testing.assert_array_equal(built.raw.context.numbers, [[1.0], [np.nan]])
    assert built.raw.context.texts.tolist() == [[NO_TEXT], ["z"]]


@pytest.mark.parametrize("declared", [{}, {"tags": "auto", "n": "auto"}, {"tags": "list", "n": "list"}])
def test_lists_become_columns_as_the_encoder_makes_them(tables, tmp_path, declared):
    logged = [{"tags": ["a", "b"], "n": [1.0]}, {"tags": [], "n": [2.0, 2.5]}, {"tags": None, "n": None}]
    rows = [decision(f"d{i}", at_s=i, **values) for i, values in enumerate(logged)]
    built = build(tables, log(tmp_path, rows), problem(context=declared))
    assert built.encoder.context == (Ids("n", 16), Ids("tags", 16))
    raw = built.encoder.raw_context(logged)
    np.testing.assert_array_equal(built.raw.context.lists, raw.lists)
    np.testing.assert_array_equal(built.batch.context, built.encoder.encode_context(raw))


def test_a_list_of_lists_is_refused_by_name(tables, tmp_path):
    row = decision("d1", x=1.0) | {"context.tags": [["a"]]}
    path = parquet(tmp_path / "1.parquet", [row], types([row]) | {"context.tags": "VARCHAR[][]"})
    with pytest.raises(DataError, match=r"context\.tags is a list of lists") as error:
        build(tables, Files([path], []))
    assert error.value.field == "context.tags"


@pytest.mark.parametrize(("declared", "held"), [("number", "text"), ("text", "number")])
def test_a_field_that_holds_something_else_is_refused(tables, tmp_path, declared, held):
    value = {"text": "1.0", "number": 1.0}[held]
    with pytest.raises(DataError, match=rf"context\.x is declared {declared}, but the log holds a {held}"):
        build(tables, log(tmp_path, [decision("d1", x=value)]), problem(context={"x": declared}))


def test_an_auto_field_without_a_value_is_refused(tables, tmp_path):
    with pytest.raises(DataError, match=r"context\.y is declared auto") as error:
        build(tables, log(tmp_path, [decision("d1", x=1.0)]), problem(context={"x": "auto", "y": "auto"}))
    assert error.value.hint == "declare it as number, text or list"


def test_the_text_that_stands_for_missing_is_refused(tables, tmp_path):
    files = log(tmp_path, [decision("d1", t="a"), decision("d2", at_s=1, t=NO_TEXT)])
    for encoder in (None, Encoder(context=(Category("t", ("a",)),), actions=("a", "b"))):
        with pytest.raises(DataError, match=r"field t.* U\+FDD0"):
            build(tables, files, encoder=encoder)


def test_a_field_may_have_any_name(tables, tmp_path):
    built = build(tables, log(tmp_path, [decision("d1", **{'context.we"ird; drop': 2.0, "context.id": 3.0})]))
    assert [field.name for field in built.batch.encoder.context] == ["id", 'we"ird; drop']


def test_too_many_texts_are_hashed(tables, tmp_path):
    rows = [decision(f"d{i}", at_s=i, t=f"t{i}") for i in range(1001)]
    rows[3]["context.t"] = None
    files = log(tmp_path, [*rows, decision("d1001", at_s=1001, t="t1001")])
    built = build(tables, files)
    assert built.encoder.context == (Ids("t", 1024),)
    lists = [[row["context.t"]] if row["context.t"] else None for row in rows] + [["t1001"]]
    np.testing.assert_array_equal(built.raw.context.lists[:, 0], list_keys("t", lists))
    assert built.batch.context.sum(axis=1).tolist() == [1.0] * 1002
    again = build(tables, files, encoder=built.encoder)
    np.testing.assert_array_equal(again.batch.context, built.batch.context)


def test_types_are_identified_and_the_profiles_say_why(tables, tmp_path):
    r = np.random.default_rng(0)
    skewed = r.lognormal(0, 1, 300)
    rows = [decision(f"d{i}", at_s=i, x=float(x), on=float(i % 2), one=4.0) for i, x in enumerate(skewed)]
    built = build(tables, log(tmp_path, rows), given=Settings(context={"on": "continuous"}))
    assert [(p.name, p.type, p.declared) for p in built.profiles] == [
        ("on", "continuous", True),
        ("one", "constant", False),
        ("x", "boxcox", False),
    ]
    assert built.batch.context.shape == (300, 5)
    with pytest.raises(ConfigError, match="did you mean one"):
        build(tables, log(tmp_path, rows), given=Settings(context={"ones": "constant"}))


def test_an_encoder_that_is_given_is_used_as_it_is(tables, tmp_path):
    encoder = Encoder(
        context=(Category("t", ("a", "b")), Continuous("x", 10.0, 2.0), Continuous("y", 1.0, 1.0)),
        candidate=(Continuous("price", 0.0, 1.0),),
        actions=("a", "b", "c"),
    )
    rows = [decision("d1", x=14.0, t="c", new=1.0)]
    built = build(tables, log(tmp_path, rows), encoder=encoder)
    assert built.batch.encoder is encoder
    np.testing.assert_array_equal(built.batch.context, [[0, 0, 1, 0, 2, 0, 0, 1]])
    np.testing.assert_array_equal(built.batch.candidates, [[[1, 0, 0, 0, 1], [0, 1, 0, 0, 1]]])
    with pytest.raises(DataError, match=r"context\.x is declared number"):
        build(tables, log(tmp_path, [decision("d1", x="far")]), encoder=encoder)


# --- candidates


def test_candidates_that_all_share_are_one_row_in_memory(tables, tmp_path):
    names = tuple(f"a{i:02d}" for i in range(80))
    rows = []
    for i in range(40):
        row = decision(f"d{i:02d}", at_s=i, action=names[i], propensity=1 / 80)
        row["candidates.id"] = list(np.roll(names, i))  # another order in every row
        rows.append(row)
    built = build(tables, log(tmp_path, rows), problem(actions=One(names=names[::-1])))
    batch = built.batch
    assert batch.encoder.actions == names
    assert batch.candidates.shape == (40, 80, 80)
    assert batch.candidates.strides[0] == batch.mask.strides[0] == built.raw.ids.strides[0] == 0
    np.testing.assert_array_equal(batch.candidates[0], np.eye(80))
    assert batch.mask.all()
    assert batch.action.tolist() == list(range(40))
    assert built.raw.ids[7].tolist() == list(names)


def test_the_order_of_candidates_does_not_matter(tables, tmp_path):
    def rows(turn: int) -> list:
        offers = [{"a": {"p": 1.0}, "b": {"p": 2.0, "q": "x"}, "c": {}}, {"b": {"p": 5.0}, "d": {"q": "y"}}]
        turned = [dict(list(offer.items())[turn:] + list(offer.items())[:turn]) for offer in offers]
        return [decision(f"d{i}", at_s=i, action="b", features=offer) for i, offer in enumerate(turned)]

    built = build(tables, log(tmp_path / "0", rows(0)), problem(actions=FREE))
    batch = built.batch
    assert built.raw.ids.tolist() == [["a", "b", "c"], ["b", "d", NO_TEXT]]
    assert batch.mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.action.tolist() == [1, 0]
    assert batch.encoder.actions == ()
    assert batch.encoder.candidate[1] == Category("q", ("x", "y"))
    assert batch.encoder.candidate[0].mean == pytest.approx(8 / 3)
    np.testing.assert_array_equal(built.raw.candidates.numbers[..., 0], [[1, 2, np.nan], [5, np.nan, np.nan]])
    assert not batch.candidates[1, 2].any()  # padding, not a candidate whose features are missing
    assert {build(tables, log(tmp_path / f"{i}", rows(i)), problem(actions=FREE)).batch.digest for i in (1, 2)} == {
        batch.digest
    }


def test_shared_candidates_with_features_are_measured_once_and_the_same(tables, tmp_path):
    offer = {"a": {"p": 1.0}, "b": {"p": 2.0}, "c": {"p": 6.0}}
    built = build(
        tables, log(tmp_path, [decision(f"d{i}", at_s=i, features=offer) for i in range(5)]), problem(actions=FREE)
    )
    (field,) = built.batch.encoder.candidate
    assert (field.mean, field.std) == pytest.approx((3.0, math.sqrt(14 / 3)), rel=1e-8)
    assert built.batch.candidates.strides[0] == 0


def test_named_actions_may_be_unavailable_at_times(tables, tmp_path):
    rows = [decision("d1", at_s=1, action="c"), decision("d2", at_s=2, action="b")]
    rows[0]["candidates.id"], rows[1]["candidates.id"] = ["c", "a"], ["c", "b", "a"]
    built = build(tables, log(tmp_path, rows), problem(actions=One(names=("a", "b", "c"))))
    assert built.raw.ids.tolist() == [["a", "c", NO_TEXT], ["a", "b", "c"]]
    np.testing.assert_array_equal(built.batch.candidates[0], [[1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert built.batch.action.tolist() == [1, 1]


@pytest.mark.parametrize("ids", [["b", "c"], [], None])
def test_an_action_that_is_no_candidate_is_refused(tables, tmp_path, ids):
    rows = [decision(f"d{i}", at_s=i) for i in range(3)]
    rows[1]["candidates.id"] = rows[2]["candidates.id"] = ids
    names = One(names=("a", "b", "c"))
    with pytest.raises(DataError, match=r"decision d1: action 'a' is not among its candidates \(2 such rows of 3\)"):
        build(tables, log(tmp_path, rows), problem(actions=names))


def test_an_action_that_is_none_of_the_shared_candidates_is_refused(tables, tmp_path):
    rows = [decision("d1"), decision("d2", at_s=1, action="z"), decision("d3", at_s=2, action=None)]
    with pytest.raises(DataError, match=r"decision d2: action 'z' .* 2 such rows of 3|decision d2: action 'z'.*2 such"):
        build(tables, log(tmp_path, rows))


def test_a_candidate_that_stands_twice_is_refused(tables, tmp_path):
    rows = [decision("d1"), decision("d2", at_s=1)]
    rows[1]["candidates.id"] = ["a", "b", "a"]
    with pytest.raises(DataError, match="decision d2: candidate 'a' stands twice"):
        build(tables, log(tmp_path, rows))


def test_features_without_a_candidate_are_refused(tables, tmp_path):
    row = decision("d1", features={"a": {"p": 1.0}, "b": {"p": 2.0}})
    row["candidates.p"] = [1.0, 2.0, 3.0]
    with pytest.raises(DataError, match=r"decision d1: .* more values than candidates"):
        build(tables, log(tmp_path, [row]))


def test_a_candidate_that_is_no_named_action_is_refused(tables, tmp_path):
    rows = [decision("d1"), decision("d2", at_s=1)]
    rows[1]["candidates.id"] = ["a", "b", "new"]
    with pytest.raises(DataError, match="decision d2: candidate 'new' is none of the problem's 2 named actions"):
        build(tables, log(tmp_path, rows))


def test_candidates_that_nothing_tells_apart_are_refused(tables, tmp_path):
    with pytest.raises(DataError, match="neither names nor features"):
        build(tables, log(tmp_path, [decision("d1")]), problem(actions=FREE))


OFFERS = [
    {"b": {"tags": ["x", "y"], "n": [1.0]}, "a": {"tags": [], "n": [2.0, 2.5]}},
    {"a": {"tags": ["x"], "n": None}, "c": {"tags": None, "n": [3.0]}, "b": {"tags": ["z", "z", "x"], "n": []}},
]


@pytest.mark.parametrize("declared", [{}, {"tags": "auto", "n": "auto"}, {"tags": "list", "n": "list"}])
@pytest.mark.parametrize("offers", [OFFERS, OFFERS[:1] * 3])
def test_lists_of_candidates_become_columns_as_the_encoder_makes_them(tables, tmp_path, declared, offers):
    rows = [decision(f"d{i}", at_s=i, features=offer) for i, offer in enumerate(offers)]
    built = build(tables, log(tmp_path, rows), problem(actions=FREE, candidate=declared))
    assert built.encoder.candidate == (Ids("n", 16), Ids("tags", 16))
    sent = [tuple(Candidate(id, offer[id]) for id in sorted(offer)) for offer in offers]
    raw, ids = built.encoder.raw_candidates(sent, built.batch.mask.shape[1])
    np.testing.assert_array_equal(built.raw.candidates.lists, raw.lists)
    np.testing.assert_array_equal(built.raw.ids, ids)
    encoded = built.encoder.encode_candidates(raw, ids)
    np.testing.assert_array_equal(built.batch.candidates, np.where(built.batch.mask[..., None], encoded, 0.0))
    tags = next(profile for profile in built.profiles if profile.name == "tags")
    offered = [feature["tags"] for offer in (offers if offers is OFFERS else offers[:1]) for feature in offer.values()]
    assert (tags.kind, tags.type, tags.present) == ("list", "ids", sum(tags is not None for tags in offered))
    assert dict(tags.counts) == Counter(itertools.chain.from_iterable(tags or () for tags in offered))
    again = build(tables, log(tmp_path / "again", rows), problem(actions=FREE), encoder=built.encoder)
    assert again.batch.digest == built.batch.digest


def test_a_list_of_lists_of_a_candidate_is_refused_by_name(tables, tmp_path):
    row = decision("d1") | {"candidates.tags": None}
    columns = types([row]) | {"candidates.tags": "VARCHAR[][][]"}
    build(tables, Files([parquet(tmp_path / "1.parquet", [row], columns)], []))  # no value, no field
    path = parquet(tmp_path / "2.parquet", [row | {"candidates.tags": [[["x"]], [["y"], ["z"]]]}], columns)
    with pytest.raises(DataError, match=r"candidate\.tags is a list of lists"):
        build(tables, Files([path], []))


def test_outcomes_of_other_problems_leave_no_metric(tables, tmp_path):
    outcomes = [outcome("o1", "d1", 1, r=1.0), outcome("o2", "other", 1, theirs=1.0)]
    built = build(tables, log(tmp_path, [decision("d1")], outcomes))
    assert built.batch.metric_names == ("r",)
