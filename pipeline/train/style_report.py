"""How well a style converter does on bases it never saw, and the page that tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sacrebleu.metrics import CHRF

from gonggam.page import Page
from pipeline.chat.classifier import NgramClassifier
from pipeline.train.style_rows import Styled


def measures(teller: NgramClassifier, rows: Sequence[Styled], made: Sequence[str]) -> list[dict[str, Any]]:
    """chrF (0-100, sacrebleu) and style accuracy of converted texts, beside plain ones and what people wrote."""
    wanted = [row.styled for row in rows]

    def told(texts: Sequence[str]) -> float:
        right = 0
        for text, row in zip(texts, rows, strict=True):
            found = teller.probabilities(text)
            right += max(found, key=found.__getitem__) == row.style
        return right / len(rows)

    ways = {"converted": list(made), "left as it is": [row.base for row in rows], "written by people": wanted}
    return [{"text": way, "chrf": _chrf(texts, wanted), "style accuracy": told(texts)} for way, texts in ways.items()]


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


def _chrf(texts: Sequence[str], wanted: Sequence[str]) -> float:
    return round(CHRF().corpus_score(list(texts), [list(wanted)]).score, 2)
