"""A build in parts of whole units: for an engine of many machines, for training in many processes, for large logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from steersman import engine as engines
from steersman.core.decision import NO_TEXT, Problem
from steersman.core.features import NO_ID, Encoder, Raw
from steersman.core.slots import Slots
from steersman.engine import Engine
from steersman.timeline import assertions, sql
from steersman.timeline.before import led
from steersman.timeline.build import build, census_of, lengths, plan_of, window_of
from steersman.timeline.built import Built, Counts, Files, Ids, RawRows
from steersman.timeline.filters import longest
from steersman.timeline.settings import Settings
from steersman.timeline.sql import Tables

T = TypeVar("T")


@dataclass(frozen=True)
class _Files:
    decisions: Sequence[str]
    outcomes: Sequence[str]
    before: Sequence[str]


def build_shards(  # noqa: PLR0913 - a window is three numbers
    engine: Engine,
    problem: Problem,
    files: Files,
    *,
    since: int,
    until: int,
    as_of: int,
    encoder: Encoder | None = None,
    settings: Settings,
    into: Path,
    before: Sequence[str] = (),
) -> list[Built]:
    """The same as `build`, in `settings.shards` parts: a unit is in the part of its draw.

    The engine decides who enters, joins outcomes with decisions, fits the encoder and writes the shards; each is then
    ordered and cut like a log of its own, by the same code. Parts without a decision are left out.

    Args:
        into: an empty directory for the shards and for what is too large to hold.
        before: further files of decisions, all before the window, for where its episodes began.
    Raises:
        DataError: see `build`.
    """
    tables = sql.tables(engine, files, window_of(problem, since, until, as_of, settings), before=before)
    census = census_of(tables)
    assertions.check(tables, settings.assertions)
    assertions.check_actions(tables, settings.actions)
    plan = plan_of(tables, problem, encoder, settings)
    shards = _shards(tables, settings.shards, into)
    plain = msgspec.structs.replace(settings, assertions=(), actions=())
    window = {"since": since, "until": until, "as_of": as_of}
    # A quantile is of the lengths of all episodes: they are cut once for these alone.
    told = [] if plain.max_length_quantile is None else [_alone(lengths, problem, one, window, plain) for one in shards]
    all_lengths = [one.episodes for one in told]
    max_length = longest(np.concatenate(all_lengths), plain.max_length_quantile or 0.0) if told else None
    parts, too_long = [], []
    for k, shard in enumerate(shards):
        if max_length is not None and told[k].episodes.min() > max_length:
            too_long.append(told[k])
            continue
        scratch = into / f"part-{k}"
        scratch.mkdir()
        made = partial(build, encoder=plan.encoder, into=scratch, max_length=max_length)
        parts.append(_alone(made, problem, shard, window, plain))
    counts = [msgspec.structs.replace(part.counts, dangling=0) for part in parts]
    # What never reached a shard, and shards of which nothing is left, are counted once, with the first.
    counts[0] = msgspec.structs.replace(
        counts[0],
        waiting=census.waiting,
        deferred=census.deferred,
        duplicates=census.logged - census.waiting - census.deferred - census.entering,
        dangling=tables.dangling(),
        duplicate_outcomes=tables.duplicate_outcomes(),
        too_long=counts[0].too_long + sum(one.decisions for one in too_long),
        long_episodes=counts[0].long_episodes + sum(len(one.episodes) for one in too_long),
        outcomes=counts[0].outcomes + sum(one.outcomes for one in too_long),
        late=counts[0].late + sum(one.late for one in too_long),
    )
    return [replace(part, profiles=plan.profiles, counts=one) for part, one in zip(parts, counts, strict=True)]


def _shards(tables: Tables, n: int, into: Path) -> list[_Files]:
    """The shards that have a decision, written by the engine."""
    places: dict[str, list[Path]] = {}
    for name, select in zip(("decisions", "outcomes", "before"), tables.parted(n, led(tables)), strict=True):
        places[name] = tables.engine.shards(select, into / name, n, "shard") if select else []
    own = [_Files(*([str(paths[k])] if paths else [] for paths in places.values())) for k in range(n)]
    local = engines.open("duckdb")
    try:
        return [one for one in own if not _is_empty(local, one.decisions)]
    finally:
        local.close()


def _alone(verb: Callable[..., T], problem: Problem, shard: _Files, window: Mapping[str, int], settings: Settings) -> T:
    """What a verb of the build makes of a shard, as a log of its own."""
    local = engines.open("duckdb")
    try:
        return verb(local, problem, shard, **window, settings=settings, before=shard.before)
    finally:
        local.close()


def _is_empty(engine: Engine, paths: Sequence[str]) -> bool:
    engine.view("shard", paths)
    return int(engine.query("SELECT COUNT(*) AS n FROM shard")["n"][0]) == 0


def add_up(counts: Sequence[Counts]) -> Counts:
    """The counts of all parts together."""
    names = [name for name in Counts.__struct_fields__ if name != "max_length"]
    return Counts(
        **{name: sum(getattr(count, name) for count in counts) for name in names}, max_length=counts[0].max_length
    )


def joined(parts: Sequence[Built]) -> Built:
    """The parts one after the other, in memory, as one build."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    names = tuple(sorted({name for part in parts for name in part.metric_names}))
    rows = np.cumsum([0, *(len(part) for part in parts)])
    units = np.cumsum([0, *(len(part.draws) for part in parts)])
    width = max(part.mask.shape[1] for part in parts)
    following = [np.where(part.next < 0, -1, part.next + at) for part, at in zip(parts, rows, strict=False)]
    return Built(
        encoder=first.encoder,
        raw=RawRows(
            _stacked([part.raw.context for part in parts]),
            _stacked([_wider_raw(part, width) for part in parts]),
            np.concatenate([_wider(part.raw.ids, width, NO_TEXT) for part in parts]),
        ),
        mask=np.concatenate([_wider(part.mask, width, False) for part in parts]),
        action=np.concatenate([part.action for part in parts]),
        propensity=np.concatenate([part.propensity for part in parts]),
        reward=np.concatenate([part.reward for part in parts]),
        metrics=np.concatenate([_metrics(part, names) for part in parts]),
        discount=np.concatenate([part.discount for part in parts]),
        next=np.concatenate(following),
        unit=np.concatenate([part.unit + at for part, at in zip(parts, units, strict=False)]),
        limited=np.concatenate([part.limited for part in parts]),
        begun=np.concatenate([part.begun for part in parts]),
        metric_names=names,
        slots=_slots(parts, names, width),
        at=np.concatenate([part.at for part in parts]),
        ids=_ids([part.ids for part in parts]),
        draws=np.concatenate([part.draws for part in parts]),
        counts=add_up([part.counts for part in parts]),
        since=first.since,
        until=first.until,
        profiles=first.profiles,
    )


def _ids(parts: Sequence[Ids]) -> Ids:
    texts = np.cumsum([0, *(len(ids.ends) for ids in parts)])
    size = np.cumsum([0, *(len(ids.utf8) for ids in parts)])
    return Ids(
        np.concatenate([ids.codes + before for ids, before in zip(parts, texts, strict=False)]),
        np.concatenate([ids.ends + before for ids, before in zip(parts, size, strict=False)]),
        np.concatenate([ids.utf8 for ids in parts]),
    )


def _slots(parts: Sequence[Built], names: Sequence[str], width: int) -> Slots | None:
    every = [part.slots for part in parts if part.slots is not None]
    if not every:
        return None
    metrics = []
    for part, slots in zip(parts, every, strict=True):
        wide = np.where((part.action >= 0)[:, :, None], np.full((*part.action.shape, len(names)), np.nan), 0.0)
        for j, name in enumerate(part.metric_names):
            wide[:, :, names.index(name)] = slots.metrics[:, :, j]
        metrics.append(wide)
    first = [slots.first for slots in every if slots.first is not None]
    return Slots(
        np.concatenate([slots.propensity for slots in every]),
        np.concatenate([slots.reward for slots in every]),
        np.concatenate(metrics),
        np.concatenate([_wider(one, width, 0.0) for one in first]) if len(first) == len(every) else None,
    )


def _metrics(part: Built, names: Sequence[str]) -> np.ndarray:
    """[N, M], NaN for a metric that did not come in this part."""
    out = np.full((len(part), len(names)), np.nan)
    for j, name in enumerate(part.metric_names):
        out[:, names.index(name)] = part.metrics[:, j]
    return out


def _stacked(raws: Sequence[Raw]) -> Raw:
    longest = max(raw.lists.shape[-1] for raw in raws)
    return Raw(
        np.concatenate([raw.numbers for raw in raws]),
        np.concatenate([raw.texts for raw in raws]),
        np.concatenate([_longer(raw.lists, longest) for raw in raws]),
    )


def _wider_raw(part: Built, width: int) -> Raw:
    there = np.zeros((len(part), width), dtype=bool)
    there[:, : part.mask.shape[1]] = part.mask
    return part.raw.candidates.take(part.mask).spread(there)


def _wider(array: np.ndarray, width: int, padding: object) -> np.ndarray:
    """[N, K, ...] to [N, width, ...]."""
    more = np.full((len(array), width - array.shape[1], *array.shape[2:]), padding, dtype=array.dtype)
    return np.concatenate([array, more], axis=1)


def _longer(lists: np.ndarray, longest: int) -> np.ndarray:
    """[..., L] to [..., longest]."""
    more = np.full((*lists.shape[:-1], longest - lists.shape[-1]), NO_ID, dtype=lists.dtype)
    return np.concatenate([lists, more], axis=-1)
