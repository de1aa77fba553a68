"""What the data commands print with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
