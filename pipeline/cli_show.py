"""What the data commands print with: tables, and a bar that moves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(soft_wrap=True, highlight=False)


def show_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table; numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(name, justify="right" if isinstance(rows[0][name], int | float) else "left")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v).replace("[", "\\[") for v in row.values()))
    console.print(table)


def show_pairs(title: str, figures: Mapping[str, Any], names: tuple[str, str] = ("what", "value")) -> None:
    """A table of two columns."""
    show_table(title, [dict(zip(names, pair, strict=True)) for pair in figures.items()])


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)
