"""Training curves: loss, learning rate, gradient norm, rewards; as a page that needs no network and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

History = Sequence[Mapping[str, float]]

# What a trainer logs, in the order it is shown; names in one group share a plot.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "eval_loss")),
    ("learning rate", ("learning_rate",)),
    ("gradient norm", ("grad_norm",)),
    ("rewards", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    ("share of pairs preferred rightly", ("rewards/accuracies", "eval_rewards/accuracies")),
    ("log-probability of replies", ("logps/chosen", "logps/rejected")),
    ("tokens of an answer", ("reply_tokens",)),
)


def series(history: History) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """What there is to draw: group → name → (steps, values); groups without values are left out."""
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for title, names in GROUPS:
        for name in names:
            rows = [row for row in history if name in row and "step" in row]
            if rows:
                points = [int(row["step"]) for row in rows], [float(row[name]) for row in rows]
                found.setdefault(title, {})[name] = points
    return found


def figure(
    title: str, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, across: str = "step"
) -> go.Figure:
    """One plot of named lines (steps, or what ``across`` names, and values)."""
    import plotly.graph_objects as go

    plot = go.Figure(
        [go.Scatter(x=list(x), y=list(y), mode="lines+markers", name=name) for name, (x, y) in lines.items()]
    )
    plot.update_traces(marker_size=4)
    below = {"orientation": "h", "y": -0.32, "yanchor": "top"}  # above, many names would run into the title
    plot.update_layout(title=title, xaxis_title=across, height=340, showlegend=len(lines) > 1, legend=below)
    return plot


def write_curves(folder: str | Path, history: History, *, title: str = "") -> list[Path]:
    """Write ``curves.html`` and ``curves.png`` into a stage's folder.

    Args:
        folder: where they go.
        history: what the trainer logged (``metrics.history`` of the stage's manifest).
        title: of the page; by default the folder's name.

    Returns:
        the files written; none if nothing was logged.
    """
    from gonggam.page import Page

    folder, drawn = Path(folder), series(history)
    if not drawn:
        return []
    page = Page(f"Training: {title or folder.name}")
    section = page.section("Curves")
    for name, lines in drawn.items():
        section.figure(figure(name, lines))
    page.write(folder / "curves.html")
    _png(drawn, title or folder.name, folder / "curves.png")
    return [folder / "curves.html", folder / "curves.png"]


def _png(drawn: Mapping[str, Mapping[str, tuple[list[int], list[float]]]], title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    from gonggam.files import writing
    from gonggam.fonts import font_file

    font = FontProperties(fname=str(font_file()))
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    plot = Figure(figsize=(4.5 * columns, 3.2 * lines), layout="tight")
    FigureCanvasAgg(plot)
    plot.suptitle(title, fontproperties=font)
    for place, (name, curves) in enumerate(drawn.items(), 1):
        axes = plot.add_subplot(lines, columns, place)
        for label, (x, y) in curves.items():
            axes.plot(x, y, marker=".", markersize=3, linewidth=1, label=label)
        axes.set_title(name, fontproperties=font)
        axes.set_xlabel("step", fontproperties=font)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axes.legend(prop=font, fontsize="small")
    with writing(path, "wb") as file:
        plot.savefig(file, format="png", dpi=110)
