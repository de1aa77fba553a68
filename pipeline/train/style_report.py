"""How well a style converter does on bases it never saw, and the page that tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sacrebleu.metrics import CHRF

from gonggam.page import Page
from pipeline.chat.classifier import NgramClassifier, fit
from pipeline.train.style_rows import Styled


def measures(learnt: Sequence[Styled], rows: Sequence[Styled], made: Sequence[str]) -> list[dict[str, Any]]:
    """chrF (0-100, sacrebleu) and style accuracy of converted texts, beside plain ones and what people wrote.

    Styles are told by a classifier fitted on the rows that were ``learnt``; where these have but one, there is nothing
    to tell.
    """
    wanted, styles = [row.styled for row in rows], [row.style for row in learnt]
    teller = fit([row.styled for row in learnt], styles, c=10.0) if len(set(styles)) > 1 else None

    ways = {"converted": list(made), "left as it is": [row.base for row in rows], "written by people": wanted}
    return [
        {
            "text": way,
            "chrf": _chrf(texts, wanted),
            **({"style accuracy": _told(teller, texts, rows)} if teller else {}),
        }
        for way, texts in ways.items()
    ]


def by_style(rows: Sequence[Styled], made: Sequence[str]) -> list[dict[str, Any]]:
    """chrF of converted and of plain texts, style by style."""
    table = []
    for style in sorted({row.style for row in rows}):
        of_it = [(row, text) for row, text in zip(rows, made, strict=True) if row.style == style]
        wanted = [row.styled for row, _ in of_it]
        plain, converted = [row.base for row, _ in of_it], [text for _, text in of_it]
        table.append({"style": style, "converted": _chrf(converted, wanted), "left as it is": _chrf(plain, wanted)})
    return table


def write_report(folder: Path, metrics: Mapping[str, Any], rows: Sequence[Styled], made: Sequence[str]) -> None:
    """Write ``report.html`` and ``report.md`` into a stage's folder."""
    page = Page("Style conversion", f"{len(metrics['styles'])} styles, {metrics['held_out']} held-out rows")
    section = page.section("Held-out bases")
    section.text(
        "chrF: closeness to what people wrote (0-100). Style accuracy: share that a classifier of character n-grams, "
        "fitted on the training rows, takes for the wanted style; people's own texts show what can be had."
    )
    section.table(metrics["measures"])
    section.table(by_style(rows, made), caption="chrF by style")
    shown = [
        {"style": row.style, "plain": row.base, "converted": text, "written by people": row.styled}
        for row, text in list(zip(rows, made, strict=True))[:8]
    ]
    page.section("Examples").table(shown)
    page.write(folder / "report.html")
    page.write_markdown(folder / "report.md")


def _told(teller: NgramClassifier, texts: Sequence[str], rows: Sequence[Styled]) -> float:
    """Share of the texts whose likeliest style is the wanted one."""
    found = [teller.probabilities(text) for text in texts]
    return sum(max(one, key=one.__getitem__) == row.style for one, row in zip(found, rows, strict=True)) / len(rows)


def _chrf(texts: Sequence[str], wanted: Sequence[str]) -> float:
    return round(CHRF().corpus_score(list(texts), [list(wanted)]).score, 2)
