"""A progress bar on long work; none when nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column


@contextmanager
def bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """A function (done, total, figures) that draws a bar on stderr, and draws nothing if stderr is no terminal.

    It says how much is done, how long the rest will take, and the figures; of 80 columns they fill the last one.
    A total of 0 is one that nobody knows.

    Args:
        title: what is being done.
        quiet: draw nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, figures: None
        return
    fields = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*fields, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(title, total=None, figures="")

        def advance(done: int, total: int, figures: dict[str, float]) -> None:
            text = " ".join(f"{name} {value:,.4g}" for name, value in figures.items())
            drawn.update(task, completed=done, total=total or None, figures=text)

        yield advance
