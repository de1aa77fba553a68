"""Seeing the data: one self-contained HTML page and a PNG of every plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.survey import Count, Survey, survey

if TYPE_CHECKING:
    from gonggam.page import Page


@dataclass(frozen=True, slots=True)
class Chart:
    """A bar chart, lying if the labels are long."""

    name: str
    title: str
    labels: Sequence[str]
    values: Sequence[float]
    x: str = ""
    lying: bool = False


def explore(
    path: str | Path,
    out: str | Path,
    *,
    tokenizers: Mapping[str, Count] | None = None,
    max_length: int = 1024,
    seed: int = 0,
) -> Path:
    """Write ``report.html`` and the plots as PNG into ``out``.

    Args:
        path: a prepared folder, or any file a reader recognises.
        out: folder to write into.
        tokenizers: name → a function that counts the tokens of a list of messages.
        max_length: tokens above which a conversation is cut; the share that is cut is told.
        seed: which twenty conversations are shown.

    Returns:
        The path of the page.

    Raises:
        UserError: there is no conversation at ``path``, or ``out`` cannot be written.
    """
    found = survey(path, tokenizers, seed=seed)
    charts = _charts(found)
    out = Path(out)
    _page(found, charts, str(Path(path).name), max_length).write(out / "report.html")
    for chart in charts:
        _png(chart, out / f"{chart.name}.png")
    return out / "report.html"


def _charts(found: Survey) -> list[Chart]:
    charts = [
        _top("sources", "Conversations by source", found.sources),
        _top("origins", "Conversations by origin, the data's own source column", found.labels["origin"]),
        _top("types", "Conversations by type", found.labels["type"]),
        _top("splits", "Conversations by split", found.splits),
        Chart(
            "exchanges",
            "Exchanges per conversation",
            *_columns({str(n): count for n, count in sorted(found.exchanges.items())}),
            x="exchanges",
        ),
        _histogram("user_characters", "Length of user turns", found.user, "characters"),
        _histogram("reply_characters", "Length of replies", found.reply, "characters"),
        *(
            _histogram(f"tokens_{i}", f"Length of conversations, {name}", lengths, "tokens")
            for i, (name, lengths) in enumerate(found.tokens.items(), 1)
        ),
        _top("emotions", "Emotions", found.labels["emotion"]),
        _top("categories", "Categories (the 30 most common)", found.labels["category"], 30),
        _top("openings", "How replies begin", found.openings),
        _top("endings", "How replies end", found.endings),
        _top("repeated", "Replies that stand more than once", _shortened(found.repeated)),
    ]
    alike = ("sources", "origins", "types", "splits")  # say nothing where all conversations share one
    return [chart for chart in charts if len(chart.values) > (1 if chart.name in alike else 0)]


def _shortened(counts: Mapping[str, int], width: int = 24) -> Counter[str]:
    """Labels that leave room for the bars on a phone."""
    shorter: Counter[str] = Counter()
    for text, count in counts.items():
        line = " ".join(text.split())
        shorter[line if len(line) <= width else line[: width - 1] + "…"] += count
    return shorter


def _columns(counts: Mapping[str, float]) -> tuple[list[str], list[float]]:
    return list(counts), list(counts.values())


def _top(name: str, title: str, counts: Counter[str], n: int = 20) -> Chart:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]
    return Chart(name, title, *_columns({k: v for k, v in ordered if v}), x="count", lying=True)


def _histogram(name: str, title: str, lengths: Sequence[int], unit: str) -> Chart:
    """At most 40 bins of a round width; the last one takes all above the 99.5th percentile."""
    import numpy as np

    values = np.asarray(lengths or [0])
    top = int(np.percentile(values, 99.5)) + 1
    width = next(w for w in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**6) if top / w <= 40)
    bins = np.bincount(np.minimum(values, top) // width)
    labels = [str(i * width) if width == 1 else f"{i * width}–{(i + 1) * width - 1}" for i in range(len(bins))]
    labels[-1] = f"{(len(bins) - 1) * width}+"
    return Chart(name, title, labels, bins.tolist(), x=unit)


def _page(found: Survey, charts: list[Chart], name: str, max_length: int) -> Page:
    from gonggam.page import Page

    page = Page("Data report", f"{name}: {found.conversations:,} conversations")
    one, two = found.distinct()
    again, begun = found.stored_again()
    summary = page.section("At a glance").facts(
        {
            "conversations": found.conversations,
            "stored before": again,
            "beginnings of another": begun,
            "replies": len(found.reply),
            "median reply, characters": _median(found.reply),
            "replies that repeat": f"{found.repeated_share():.1%}",
        }
    )
    summary.table([{"distinct-1": one, "distinct-2": two}], caption="Variety of the replies' words (1 = all differ)")
    if found.tokens:
        summary.table([_cut(name, lengths, max_length) for name, lengths in found.tokens.items()])
    _steps(page, found.report)
    titles = {
        "Counts": ("sources", "origins", "types", "splits", "exchanges"),
        "Lengths": ("user_characters", "reply_characters", "tokens_"),
        "Emotions and categories": ("emotions", "categories"),
        "How replies sound": ("openings", "endings", "repeated"),
    }
    for title, names in titles.items():
        chosen = [chart for chart in charts if chart.name.startswith(names)]
        if chosen:
            section = page.section(title)
            for chart in chosen:
                section.figure(_plotly(chart), chart.title)
    talks = page.section(f"{len(found.chosen)} conversations picked at random")
    for conversation in found.chosen:
        about = [conversation.id, conversation.meta.get("category", ""), conversation.meta.get("emotion", "")]
        talks.chat(conversation.messages(), title=" · ".join(filter(None, about)))
    _quarantine(page, found.quarantine)
    return page


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2] if values else 0


def _cut(name: str, lengths: Sequence[int], max_length: int) -> dict[str, Any]:
    cut = sum(n > max_length for n in lengths) / max(1, len(lengths))
    return {
        "tokenizer": name,
        "tokens": sum(lengths),
        "median": _median(lengths),
        "longest": max(lengths, default=0),
        f"cut at {max_length:,}": f"{cut:.2%}",
    }


def _steps(page: Page, report: Mapping[str, Any]) -> None:
    """What preparation did with the rows, if this is a prepared folder."""
    if not report:
        return
    section = page.section("What each step did")
    books = {**report["sources"], "total": report["rows"]}
    section.table([{"source": name, **book} for name, book in books.items()], caption="Where the rows went")
    changed = [{"step": f"cleaning: {rule}", "count": n} for rule, n in report["cleaned"].items()]
    changed += [{"step": f"personal data: {kind}", "count": n} for kind, n in report["personal_data"].items()]
    if changed:
        section.table(changed, caption="What was changed (distinct texts)")
    if report["reasons"]:
        reasons = [{"reason": reason, "rows": n} for reason, n in list(report["reasons"].items())[:20]]
        section.table(reasons, caption="Why rows were left out")


def _quarantine(page: Page, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        shown = [
            {
                "where": f"{row['file']}:{row['row']}",
                "why": row["reason"],
                "what stood there": json.dumps(row["values"], ensure_ascii=False)[:120],
            }
            for row in rows
        ]
        page.section("Quarantine").table(shown, caption="The first rows for each reason; all are in quarantine.jsonl")


def _plotly(chart: Chart) -> Any:
    import plotly.graph_objects as go

    if chart.lying:
        labels, values = list(chart.labels)[::-1], list(chart.values)[::-1]
        figure = go.Figure(go.Bar(x=values, y=labels, orientation="h"))
        figure.update_layout(height=max(220, 90 + 24 * len(labels)), xaxis_title=chart.x, yaxis_automargin=True)
        figure.update_yaxes(type="category", tickmode="linear")
    else:
        figure = go.Figure(go.Bar(x=list(chart.labels), y=list(chart.values)))
        figure.update_layout(height=340, xaxis_title=chart.x, yaxis_title="count", bargap=0.05)
        figure.update_xaxes(type="category")
    return figure


def _png(chart: Chart, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    from gonggam.files import writing
    from gonggam.fonts import font_file

    font = FontProperties(fname=str(font_file()))
    height = max(2.5, 1 + 0.28 * len(chart.labels)) if chart.lying else 4
    figure = Figure(figsize=(8, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(chart.labels))
    if chart.lying:
        axes.barh(places, chart.values, color="#4c78a8")
        axes.set_yticks(places, chart.labels)
        axes.invert_yaxis()
        axes.set_xlabel(chart.x)
    else:
        axes.bar(places, chart.values, width=0.95, color="#4c78a8")
        step = max(1, len(chart.labels) // 10)
        axes.set_xticks(places[::step], chart.labels[::step], rotation=0 if step == 1 else 30)
        axes.set_xlabel(chart.x)
        axes.set_ylabel("count")
    axes.set_title(chart.title, fontproperties=font)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label):
        label.set_fontproperties(font)
    axes.spines[["top", "right"]].set_visible(False)
    with writing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
