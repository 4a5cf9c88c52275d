"""Commands over the log."""

from __future__ import annotations

import argparse

from steersman import config, flow
from steersman.cli.show import print_json, show
from steersman.core.decision import json_schemas
from steersman.progress import bar


def log_import(options: argparse.Namespace) -> None:
    project = config.load(options.project)
    source = flow.read_source(
        options.source, options.mapping, form=options.format, sql=options.sql, propensities=options.propensity
    )
    with bar(f"import {source.name}", quiet=options.json) as progress:
        found = flow.import_log(project, options.name, source, options.max_reject_share, progress)
    show(
        options,
        found,
        f"imported   {found.decisions:,} decisions, {found.outcomes:,} outcomes; {found.rejected:,} of {found.rows:,} "
        f"rows refused (limit {options.max_reject_share:.3g} of them)",
        *([f"set aside  {project.root / 'rejects'}: each with its line and reason"] if found.rejected else []),
        *(_behavior_lines(found.behavior) if found.behavior else []),
        f"next       steersman build {options.name}",
    )


def _behavior_lines(found: flow.Behavior) -> list[str]:
    """Where the missing propensities came from, with what it was decided by."""
    what = {
        "logistic": "estimated by a logistic model of the context",
        "frequencies": "estimated by the frequencies of the actions: the context told no more",
        "uniform": "declared uniform, which the log does not refute",
    }
    losses = f"{found.loss_logistic:.4f} by the model, {found.loss_frequencies:.4f} by the frequencies"
    return [
        f"propensity {found.decisions:,} were missing: {what[found.method]}; the smallest is {found.smallest:.3g}",
        f"           log loss {losses}, {found.loss_uniform:.4f} if uniform (nats/decision on unseen units)",
        f"           the model is better by {found.gain:.4f} [{found.low:.4f}, {found.high:.4f}]",
    ]


def log_compact(options: argparse.Namespace) -> None:
    found = flow.compact(config.load(options.project))
    aside = [f"set aside   {found.aside:,} records: {found.reasons[0]}"] if found.aside else []
    damaged = [f"damaged     {one.segment} at byte {one.offset:,}: kept, and read around" for one in found.damage]
    show(
        options,
        found,
        f"compacted   {found.decisions:,} decisions and {found.outcomes:,} outcomes into {found.files:,} files"
        + (f"; {found.merged:,} small ones merged" if found.merged else ""),
        f"segments    {found.segments:,} read to their end and removed; {found.torn:,} ended in half a record",
        *aside,
        *damaged,
    )


def log_schema(options: argparse.Namespace) -> None:
    print_json(json_schemas())
