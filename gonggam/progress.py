"""How work that takes a while says how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Called as work goes on with what is done and what there is in all; 0: that is not known."""


@contextmanager
def progress_bar(label: str, *, show: bool = True) -> Iterator[Progress]:
    """A bar with the time spent and left, on standard error where that is a terminal and it is to be shown."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    left = TextColumn("left"), TimeRemainingColumn()
    columns = TextColumn(f"{label:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *left
    hidden = not show or not sys.stderr.isatty()
    with Bar(*columns, console=Console(stderr=True), disable=hidden, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
