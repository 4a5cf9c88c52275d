"""Profiles of fields by the engine, the type that is told from them, and the transform that is fitted on them."""

from __future__ import annotations

import collections
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist

import duckdb
import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import spark_here
from steersman import engine
from steersman.core.features import BoxCox, Category, Constant, Encoder, Enumerated, Ids, Quantile, Raw, boxcox_of
from steersman.core.profile import LEVELS, Profile
from steersman.timeline import fields, sql, statistics
from steersman.timeline.identify import declare, identified, identify, misfit, transform
from steersman.timeline.sql import Window
from steersman.timeline.statistics import Source
from timeline_log import Files

ENDLESS = Window(0, 10**15, 10**15, 0)
FEW = settings(max_examples=25)


def rows(path: Path, columns: Mapping[str, np.ndarray], seed: int | None = None) -> Files:
    """A Parquet log with these columns, a row a decision; with a seed in another order."""
    n = len(next(iter(columns.values())))
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    table = {name: values[order] for name, values in columns.items()} | {"number": order}
    connection = duckdb.connect(config={"threads": 1})
    connection.register("given", table)
    plain = "'u' AS unit, number AS \"at\", 'a' AS action, 0.5 AS propensity, ['a', 'b'] AS \"candidates.id\""
    connection.execute(
        f"COPY (SELECT 'd' || number AS id, {plain}, * EXCLUDE (number) FROM given) TO '{path}' (FORMAT parquet)"
    )
    return Files([str(path)], [])


def source(tables: engine.Engine, files: Files, relation: statistics.Relation = "kept") -> Source:
    return Source(sql.tables(tables, files, ENDLESS), relation)


def fit(at: Source, **overrides: str) -> dict[str, tuple]:
    """Field -> its transform and profile."""
    transforms, profiles = fields.fit(at, fields.pick(at, {}), overrides)
    return {profile.name: pair for pair in zip(transforms, profiles, strict=True) for profile in pair[1:]}


def profile_of(values: Sequence[float] | np.ndarray) -> Profile:
    """What the engine would say about finite numbers, by numpy."""
    x = np.asarray(values, dtype=np.float64)
    counts = collections.Counter(x.tolist())
    levels = np.quantile(x, np.arange(LEVELS + 1) / LEVELS, method="inverted_cdf")
    return Profile(
        group="context",
        name="x",
        kind="number",
        rows=len(x),
        present=len(x),
        finite=len(x),
        sampled=len(x),
        distinct=len(counts),
        whole=bool((x == np.floor(x)).all()),
        low=float(x.min()),
        high=float(x.max()),
        mean=float(x.mean()),
        std=float(x.std()),
        quantiles=tuple(levels.tolist()),
        counts=tuple(counts.most_common()) if len(counts) <= statistics.MAX_NUMBERS else (),
        type="continuous",
        reason="",
    )


# --- types

Draw = Callable[[np.random.Generator, int], np.ndarray]

DRAWS: dict[str, tuple[str, Draw]] = {
    "one": ("constant", lambda r, n: np.full(n, 7.5)),
    "zero or one": ("binary", lambda r, n: r.integers(0, 2, n)),
    "seldom one": ("binary", lambda r, n: np.arange(n) % 500 == 3),
    "beta": ("probability", lambda r, n: r.beta(2, 5, n)),
    "uniform share": ("probability", lambda r, n: r.uniform(0, 1, n)),
    "codes": ("enumerated", lambda r, n: r.choice([-1, 3, 7, 22], n)),
    "counts to 8": ("enumerated", lambda r, n: r.binomial(8, 0.4, n)),
    "far off normal": ("continuous", lambda r, n: r.normal(1e6, 0.01, n)),
    "uniform": ("continuous", lambda r, n: r.uniform(-2.4, 2.4, n)),
    "sine": ("continuous", lambda r, n: np.sin(r.uniform(0, 2 * math.pi, n))),
    "laplace": ("continuous", lambda r, n: r.laplace(0, 1, n)),
    "student 5": ("continuous", lambda r, n: r.standard_t(5, n)),
    "gamma 4": ("continuous", lambda r, n: r.gamma(4, 1, n)),
    "log-normal 0.25": ("continuous", lambda r, n: r.lognormal(0, 0.25, n)),
    "two humps": ("continuous", lambda r, n: r.normal(0, 1, n) + r.choice([-2, 2], n)),
    "numbers of users": ("continuous", lambda r, n: r.integers(1, 5001, n)),
    "log-normal": ("boxcox", lambda r, n: r.lognormal(3, 1, n)),
    "wide log-normal": ("boxcox", lambda r, n: r.lognormal(0, 2, n)),
    "log-normal from 1000": ("boxcox", lambda r, n: 1000 + r.lognormal(0, 1, n)),
    "exponential": ("boxcox", lambda r, n: r.exponential(40, n)),
    "pareto": ("boxcox", lambda r, n: 1 + r.pareto(1.5, n)),
    "waits in whole seconds": ("boxcox", lambda r, n: r.geometric(0.01, n) - 1),
    "cauchy": ("quantile", lambda r, n: r.standard_cauchy(n)),
    "two humps and far ones": (
        "quantile",
        lambda r, n: np.where(r.random(n) < 0.03, r.normal(0, 500, n), r.normal(0, 1, n) + r.choice([-10, 10], n)),
    ),
    "a broken sensor": ("quantile", lambda r, n: np.where(np.arange(n) % 250 == 9, 1e9, r.normal(0, 1, n))),
    "mostly nothing": ("quantile", lambda r, n: np.where(r.random(n) < 0.9, 0, r.normal(50, 10, n))),
    "falling off below": ("quantile", lambda r, n: -r.lognormal(1, 1.5, n)),
}


@pytest.fixture(scope="module", params=[1_000, 100_000])
def drawn(request, tables, tmp_path_factory) -> tuple[dict[str, np.ndarray], dict[str, tuple]]:
    n = request.param
    columns = {
        name: draw(np.random.default_rng(i), n).astype(np.float64) for i, (name, (_, draw)) in enumerate(DRAWS.items())
    }
    logged = {f"context.{name}": values for name, values in columns.items()}
    return columns, fit(source(tables, rows(tmp_path_factory.mktemp("drawn") / "1.parquet", logged)))


@pytest.mark.parametrize("name", DRAWS)
def test_a_distribution_has_its_type_however_many_rows(drawn, name):
    """Horizon's thresholds grow with the rows, so a field changes its type as the log grows."""
    profile = drawn[1][name][1]
    assert profile.type == DRAWS[name][0], profile.reason
    assert profile.reason
    assert not profile.declared


def test_what_the_transform_gives_for_the_values_that_it_was_fitted_on_is_standardised(drawn):
    columns, fitted = drawn
    for name, (one, profile) in fitted.items():
        if profile.type not in ("continuous", "boxcox"):
            continue
        encoded = Encoder(context=(one,)).encode_context(Raw(columns[name][:, None], np.empty((len(columns[name]), 0))))
        assert encoded[:, 0].mean() == pytest.approx(0, abs=0.05), name
        assert encoded[:, 0].std() == pytest.approx(1, abs=0.05), name


def test_a_quantile_transform_spreads_what_the_deviation_would_squeeze(drawn):
    columns, fitted = drawn
    for name in ("cauchy", "two humps and far ones", "a broken sensor", "falling off below"):
        values = columns[name]
        encoder = Encoder(context=(fitted[name][0],))
        encoded = encoder.encode_context(Raw(values[:, None], np.empty((len(values), 0))))
        assert np.quantile(encoded[:, 0], [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.02)


def test_statistics_are_those_of_numpy(drawn):
    columns, fitted = drawn
    for name, values in columns.items():
        profile = fitted[name][1]
        n = len(values)
        assert (profile.rows, profile.present, profile.finite) == (n, n, n)
        assert (profile.low, profile.high) == (values.min(), values.max())
        assert profile.mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-12 * np.abs(values).max())
        assert profile.std == pytest.approx(values.std(), rel=1e-6)
        assert profile.whole == (values == np.floor(values)).all()
        different = len(np.unique(values))
        if different <= statistics.MAX_NUMBERS:
            assert dict(profile.counts) == collections.Counter(values.tolist())
        if profile.sampled == n:
            levels = np.quantile(values, np.arange(LEVELS + 1) / LEVELS, method="inverted_cdf")
            assert profile.quantiles == tuple(levels)
            assert profile.distinct == different
        else:
            assert n / 2 / 2 < profile.sampled < statistics.SAMPLE * 1.1
            share = np.searchsorted(np.sort(values), profile.quantiles, side="right") / n
            short = share - np.arange(LEVELS + 1) / LEVELS
            assert short.min() > -0.015  # 3 standard errors of a share among 25,000
            assert profile.distinct <= different


@FEW
@given(
    st.sampled_from([name for name, (kind, _) in DRAWS.items() if kind in ("continuous", "boxcox", "quantile")]),
    st.integers(-6, 6),
)
def test_a_unit_of_measurement_does_not_change_the_type(name, power):
    values = DRAWS[name][1](np.random.default_rng(1), 1000).astype(np.float64)
    plain, scaled = identify(profile_of(values)), identify(profile_of(values * 10.0**power))
    assume(scaled.type != "probability")  # then they could be shares: all in [0, 1], and not only near one end
    assert scaled.type == plain.type
    assert scaled.evidence["misfit"] == pytest.approx(plain.evidence["misfit"], abs=1e-6)
    assert scaled.evidence.get("power", 1.0) == pytest.approx(plain.evidence.get("power", 1.0), abs=0.02)


def test_the_misfit_is_what_is_known_of_it():
    """r is sqrt(3 / pi) of a uniform distribution and 0.9032 of an exponential one; less far out, r is larger."""
    levels = np.arange(1, LEVELS) / LEVELS
    assert misfit([NormalDist(7, 3).inv_cdf(level) for level in levels]) == pytest.approx(0, abs=1e-12)
    assert misfit(levels) == pytest.approx(1 - math.sqrt(3 / math.pi), abs=0.007)
    assert misfit(-np.log(1 - levels)) == pytest.approx(1 - 0.9032, abs=0.02)
    assert misfit(np.full(LEVELS - 1, 3.0)) == 1.0


@FEW
@given(st.floats(-1.5, 1.5), st.floats(0.05, 0.8))
def test_the_power_that_made_the_values_is_found(power, spread):
    """y = 1 + spread * normal, x = (1 + power * y) ** (1 / power): Box-Cox with this power gives the normal back."""
    normal = np.random.default_rng(0).normal(0, 1, 20_000).clip(-3.5, 3.5)
    y = spread * normal
    x = np.exp(y) if abs(power) < 1e-3 else np.maximum(1 + power * y / 2, 1e-3) ** (1 / power)
    profile = profile_of(x * 40)
    found = identify(profile)
    if found.type == "boxcox":
        one = transform(identified(profile))
        z = boxcox_of(x * 40, one.shift, one.power)
        assert abs(np.mean((z - z.mean()) ** 3)) / z.std() ** 3 < 0.25
        assert (z.mean() - one.mean) / one.std == pytest.approx(0, abs=0.05)


# --- few values, none, odd ones


@pytest.mark.parametrize("n", [1, 2, 19])
def test_too_few_numbers_to_tell_are_continuous(n):
    for values in (np.ones(n), np.arange(n) % 2, np.exp(np.arange(n))):
        found = identify(profile_of(values))
        assert found.type == "continuous"
        assert found.reason == f"too few values to tell ({n})"


def test_a_field_that_the_log_does_not_have_is_missing_everywhere(tables, tmp_path):
    at = source(tables, rows(tmp_path / "1.parquet", {"context.x": np.arange(50.0)}))
    wanted = {"x": "number", "never": "number", "no_text": "text", "no_list": "list"}
    transforms, profiles = fields.fit(at, fields.pick(at, wanted), {})
    assert [(p.name, p.rows, p.present, p.type) for p in profiles] == [
        ("never", 50, 0, "continuous"),
        ("no_list", 50, 0, "ids"),
        ("no_text", 50, 0, "category"),
        ("x", 50, 50, "continuous"),
    ]
    assert (transforms[1], transforms[2]) == (Ids("no_list", 16), Category("no_text", ()))
    assert profiles[0].missing_share == 1.0


def test_null_nan_and_infinity_are_told_apart(tables, tmp_path):
    values = np.array([1.0, 2.0, math.nan, math.inf, -math.inf, None, -0.0, 0.0] * 10, dtype=object)
    known = np.array([0.0 if value is None else value for value in values], dtype=np.float64)
    path = tmp_path / "1.parquet"
    rows(path, {"context.x": known, "gone": np.array([value is None for value in values])})
    other = tmp_path / "2.parquet"
    duckdb.execute(
        f'COPY (SELECT * EXCLUDE (gone) REPLACE (CASE WHEN gone THEN NULL ELSE "context.x" END AS "context.x") '
        f"FROM '{path}') TO '{other}' (FORMAT parquet)"
    )
    ((_, profile),) = fit(source(tables, Files([str(other)], []))).values()
    assert (profile.rows, profile.present, profile.finite) == (80, 60, 40)
    assert dict(profile.counts) == {0.0: 20, 1.0: 10, 2.0: 10}
    assert math.copysign(1, profile.low) == 1
    assert (profile.low, profile.high, profile.mean) == (0, 2, 0.75)


# --- texts and lists


@pytest.mark.parametrize(("different", "type"), [(1, "category"), (1000, "category"), (1001, "ids")])
def test_texts_that_are_too_many_for_columns_are_hashed(tables, tmp_path, different, type):
    texts = np.array([f"t{i % different}" for i in range(3003)], dtype=object)
    at = source(tables, rows(tmp_path / "1.parquet", {"context.t": texts}))
    ((one, profile),) = fit(at).values()
    assert (profile.type, profile.distinct, profile.kind) == (type, different, "text")
    assert f"{different:,} different texts" in profile.reason
    if type == "category":
        assert one == Category("t", tuple(sorted({f"t{i}" for i in range(different)})))
        assert dict(profile.counts) == collections.Counter(texts.tolist())
        return
    assert one == Ids("t", 1024)
    (field,) = fields.read_as(fields.pick(at, {}), [one])
    assert (field.hashed, fields.pick_for(at, [one])) == (True, (field,))
    texts[7] = None
    raw = fields.raw([field], {"context.t": texts}, len(texts))
    assert raw.lists.shape == (3003, 1, 1)
    np.testing.assert_array_equal(raw.lists[:7, 0], fields.list_keys("t", [[f"t{i}"] for i in range(7)]))
    np.testing.assert_array_equal(raw.lists[7, 0], fields.list_keys("t", [None])[0])


@pytest.mark.parametrize(("different", "buckets"), [(1, 16), (16, 16), (17, 32), (64, 64), (1500, 1024)])
def test_ids_get_the_power_of_two_buckets_that_holds_them(tables, tmp_path, different, buckets):
    path = tmp_path / "1.parquet"
    rows(path, {"i": np.arange(3000)})
    other = tmp_path / "2.parquet"
    lists = f'[i % {different}, i % 7 % {different}] AS "context.numbers", [\'x\', NULL] AS "context.texts"'
    duckdb.execute(f"COPY (SELECT * EXCLUDE (i), {lists} FROM '{path}') TO '{other}' (FORMAT parquet)")
    fitted = fit(source(tables, Files([str(other)], [])))
    one, profile = fitted["numbers"]
    assert one == Ids("numbers", buckets)
    assert (profile.kind, profile.distinct, profile.low, profile.high, profile.mean) == ("list", different, 2, 2, 2)
    assert sum(count for _, count in profile.counts) == (6000 if different <= 100 else 0)
    assert fitted["texts"][1].counts == (("x", 3000),)


def test_lists_become_keys_and_a_missing_one_differs_from_an_empty_one(tables, tmp_path):
    path = tmp_path / "1.parquet"
    values = "CASE number WHEN 0 THEN ['a', 'b'] WHEN 1 THEN [] WHEN 2 THEN NULL ELSE ['b'] END"
    rows(tmp_path / "0.parquet", {"number_": np.arange(4)})
    duckdb.execute(
        f'COPY (SELECT * EXCLUDE (number_), {values.replace("number", "number_")} AS "context.tags", '
        f"[number_, 2.5] AS \"context.n\" FROM '{tmp_path / '0.parquet'}') TO '{path}' (FORMAT parquet)"
    )
    at = source(tables, Files([str(path)], []))
    found = fields.pick(at, {"tags": "list", "n": "auto"})
    assert [field.kind for field in found] == ["list of number", "list of text"]
    columns = at.tables.ask('SELECT "context.tags", "context.n" FROM kept ORDER BY id')
    raw = fields.raw(found, columns, 4)
    encoder = Encoder(context=(Ids("n", 16), Ids("tags", 16)))
    logged = [{"tags": ["a", "b"], "n": [0, 2.5]}, {"tags": [], "n": [1, 2.5]}, {"n": [2, 2.5]}, {"tags": ["b"]}]
    logged[3]["n"] = [3, 2.5]
    np.testing.assert_array_equal(raw.lists, encoder.raw_context(logged).lists)


@pytest.mark.slow
def test_a_million_lists_of_five_become_keys_in_seconds():
    drawn = np.random.default_rng(0).integers(0, 50_000, (1_000_000, 5)).astype(np.float64)
    column = np.empty(len(drawn), dtype=object)
    column[:] = list(drawn)
    field = fields.Field("ids", "list of number", "context.ids")
    begun = time.process_time()
    raw = fields.raw([field], {"context.ids": column}, len(column))
    took = time.process_time() - begun
    print(f"1,000,000 lists of 5 ids: {took:.1f} s")  # noqa: T201 - a figure
    assert raw.lists.shape == (1_000_000, 1, 5)
    assert took < 10


# --- the same whatever the order


def mixed(n: int) -> dict[str, np.ndarray]:
    r = np.random.default_rng(5)
    logged = {
        "context.skewed": r.lognormal(0, 2, n),
        "context.heavy": r.standard_cauchy(n),
        "context.normal": r.normal(1e5, 1e-3, n),
        "context.code": r.integers(0, 5, n).astype(np.float64),
        "context.text": np.array([f"t{i}" for i in r.integers(0, 30, n)], dtype=object),
        "context.many": np.array([f"t{i}" for i in r.integers(0, 5000, n)], dtype=object),
    }
    logged["context.skewed"][::3] = math.nan
    return logged


@pytest.mark.parametrize("n", [500, 60_000])
def test_shuffled_rows_and_columns_give_the_same_bits(tables, tmp_path, n):
    logged = mixed(n)
    plain = fit(source(tables, rows(tmp_path / "0.parquet", logged)))
    again = {name: logged[name] for name in np.random.default_rng(1).permutation(list(logged)).tolist()}
    assert fit(source(tables, rows(tmp_path / "1.parquet", again, seed=1))) == plain
    alone = {"context.heavy": logged["context.heavy"]}
    assert fit(source(tables, rows(tmp_path / "2.parquet", alone, seed=2)))["heavy"] == plain["heavy"]


def test_features_of_candidates_are_profiled_one_row_a_candidate(tables, tmp_path):
    rows(tmp_path / "0.parquet", {"i": np.arange(60_000)})
    path = tmp_path / "1.parquet"
    lists = "[i, i + 0.5, NULL] AS \"candidates.price\", ['x', 'y', 'x'] AS \"candidates.brand\""
    lists = f"['a', 'b', 'c'] AS \"candidates.id\", {lists}"
    some = f"SELECT * EXCLUDE (i, \"candidates.id\"), {lists} FROM '{tmp_path / '0.parquet'}'"
    duckdb.execute(f"COPY ({some}) TO '{path}' (FORMAT parquet)")
    fitted = fit(source(tables, Files([str(path)], []), "offered"))
    price, brand = fitted["price"][1], fitted["brand"][1]
    assert (price.group, price.rows, price.present) == ("candidate", 180_000, 120_000)
    assert price.mean == pytest.approx((59_999 + 0.5) / 2)
    assert 20_000 < price.sampled < 40_000
    assert price.quantiles[LEVELS // 2] == pytest.approx(30_000, rel=0.03)
    assert brand.counts == (("x", 120_000), ("y", 60_000))


@spark_here.needed
@pytest.mark.slow
def test_spark_says_the_same_to_the_last_bit(tables, tmp_path):
    files = rows(tmp_path / "0.parquet", mixed(120_000))
    plain = fit(source(tables, files))
    spark = spark_here.opened(tmp_path)  # that of other tests, if there is one
    try:
        assert fit(source(spark, files)) == plain
    finally:
        spark.close()


def test_a_declared_type_that_is_the_identified_one_fits_the_same_transform(drawn):
    for one, profile in drawn[1].values():
        again = declare(profile, profile.type)
        assert again.declared
        assert transform(again) == one


# --- transforms


def test_transforms_take_their_parameters_from_the_profile():
    code = identified(profile_of(np.array([3.0, -1.0, 22.0] * 100)))
    assert transform(code) == Enumerated("x", (-1.0, 3.0, 22.0))
    assert transform(identified(profile_of(np.full(50, 2.0)))) == Constant("x")
    heavy = transform(identified(profile_of(np.random.default_rng(0).standard_cauchy(1000))))
    assert len(heavy.boundaries) == 17
    seldom = transform(identified(profile_of(np.where(np.arange(1000) % 20, 0, np.arange(1000)))))
    assert isinstance(seldom, Quantile)
    assert len(seldom.boundaries) == 8  # 0 and the seven levels above it
    skewed = transform(identified(profile_of(np.random.default_rng(0).lognormal(0, 1, 1000) - 5)))
    assert isinstance(skewed, BoxCox)
    assert skewed.low > 0


@pytest.mark.parametrize("values", [[1e308, -1e308, 3.0], [5e-324, 1e-323, 2e-323], [1e300, 1e-300, 1.0]])
def test_extreme_numbers_have_a_type(tables, tmp_path, values):
    many = np.random.default_rng(0).choice(values, 500) * np.random.default_rng(1).uniform(0.5, 1, 500)
    ((one, profile),) = fit(source(tables, rows(tmp_path / "1.parquet", {"context.x": many}))).values()
    encoded = Encoder(context=(one,)).encode_context(Raw(many[:, None], np.empty((500, 0))))
    assert np.isfinite(encoded).all(), profile.reason


def test_a_profile_survives_a_file(drawn):
    for _, profile in drawn[1].values():
        assert msgspec.json.decode(msgspec.json.encode(profile), type=Profile) == profile


# --- a real control problem


def test_the_state_of_cartpole_is_continuous():
    """Positions and velocities under a bad and a good policy: roughly symmetric, with light tails."""
    gymnasium = pytest.importorskip("gymnasium")
    world = gymnasium.make("CartPole-v1").unwrapped
    r = np.random.default_rng(0)
    for good in (False, True):
        states = []
        for episode in range(200 if not good else 20):
            state, _ = world.reset(seed=episode)
            for _ in range(200):
                states.append(state)
                push = int(state[2] + 0.5 * state[3] > 0) if good and r.random() < 0.8 else int(r.integers(2))
                state, _, ended, *_ = world.step(push)
                if ended:
                    break
        for column in np.array(states, dtype=np.float64).T:
            assert identify(profile_of(column)).type == "continuous"


# --- thousands of sparse fields


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_sparse_fields_over_a_million_rows_are_fitted_within_the_memory(tmp_path):
    fields_, n = 1000, 1_000_000
    path = tmp_path / "sparse.parquet"
    columns = ", ".join(
        f'CASE WHEN i % 20 = {i % 20} THEN -ln(1 - random()) END AS "context.f{i:03d}"' for i in range(fields_)
    )
    plain = (
        "'d' || i AS id, 'u' AS unit, i AS \"at\", 'a' AS action, 0.5 AS propensity, ['a', 'b'] AS \"candidates.id\""
    )
    copy = f"COPY (SELECT {plain}, {columns} FROM range({n}) t(i)) TO '{path}' (FORMAT parquet)"
    write = "import duckdb, sys; duckdb.connect(config={'threads': 2}).execute(sys.stdin.read())"
    subprocess.run(
        [sys.executable, "-c", write], input=copy, text=True, check=True, capture_output=True
    )  # its memory is not ours
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tables = engine.open("duckdb", threads=2, memory_limit="2GB", temp_directory=tmp_path / "spill")
    begun, cpu = time.perf_counter(), time.process_time()
    fitted = fit(source(tables, Files([str(path)], [])))
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tables.close()
    figures = f"{took:.1f} s, {cpu:.1f} s of processors, peak {peak:.0f} MB (was {before:.0f})"
    print(f"{fields_} fields, {n:,} rows: {figures}")  # noqa: T201 - a figure
    assert len(fitted) == fields_
    assert {profile.type for _, profile in fitted.values()} == {"boxcox"}
    assert all(profile.present == n / 20 for _, profile in fitted.values())
    assert peak - before < 1500
    assert cpu < 240
