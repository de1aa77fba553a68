"""Fits the classifiers the package ships: `python -m pipeline.chat.fit`. Measuring them: `pipeline.chat.measure`.

The rows of ``crisis.tsv`` serve the safety layer only; nothing here trains a generator.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data_prep
from pipeline.chat.classifier import NgramClassifier, fit
from pipeline.chat.resources import DATA, data

SAMPLES = Path(data_prep.__file__).parent / "samples" / "counsel_ko"
Row = tuple[str, str]


def read_tsv(path: Path) -> list[Row]:
    """(text, label) of a two-column table with a heading."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(text, label) for text, label in list(csv.reader(file, delimiter="\t"))[1:]]


@dataclass(frozen=True)
class Line:
    """A message with the user's messages before it, oldest first, and what is due: high, none, ask, or go on."""

    kind: str
    before: tuple[str, ...]
    text: str
    due: str


def read_lines(path: Path) -> list[Line]:
    """A table of messages with what was said before them (``kind, before, text, risk``; messages parted by |)."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [Line(r["kind"], tuple(filter(None, r["before"].split(" | "))), r["text"], r["risk"]) for r in rows]


def crisis_rows() -> list[Row]:
    """What the risk classifier learns from: the sample corpus's table, the phrases shipped beside the rules, and the
    lines of the first fresh set, which were measured before they were learned from (docs/safety.md)."""
    fresh = [(line.text, line.due) for line in read_lines(DATA / "crisis_fresh.tsv") if not line.before]
    return [*read_tsv(SAMPLES / "crisis.tsv"), *read_tsv(DATA / "crisis_phrases.tsv"), *fresh]


def dialogues() -> list[dict[str, Any]]:
    """The sample dialogues."""
    with (SAMPLES / "dialogues.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def emotion_rows() -> list[Row]:
    """What the emotion classifier learns from: the sample corpus's table, the dialogues' first messages, short talk.

    The table says its feelings outright; the dialogues tell what happened, as people do in counselling; the phrases are
    the few words of a chat ("출근하기 싫다").
    """
    told = [(dialogue["turns"][0]["content"], dialogue["emotion"]) for dialogue in dialogues()]
    return [*read_tsv(SAMPLES / "emotion.tsv"), *told, *read_tsv(DATA / "emotion_phrases.tsv")]


def calm_texts() -> list[str]:
    """Texts without high risk: what users of the sample dialogues say, the emotion table, wishes, short talk."""
    said = [turn["content"] for dialogue in dialogues() for turn in dialogue["turns"] if turn["role"] == "user"]
    felt = [text for text, _ in read_tsv(SAMPLES / "emotion.tsv")]
    made = data("calm_wishes")
    wishes = [stem + end for kind, ends in made["endings"].items() for stem in made[kind] for end in ends]
    return [*said, *felt, *wishes, *(DATA / "calm_phrases.txt").read_text("utf-8").splitlines()]


def fit_safety(rows: Sequence[Row], calm: Sequence[str]) -> NgramClassifier:
    """The risk classifier: labelled rows, with the dialogues' utterances beside them as ``calm``."""
    texts = [text for text, _ in rows] + list(calm)
    return fit(texts, [label for _, label in rows] + ["calm"] * len(calm), c=10.0)


def fit_emotion(rows: Sequence[Row]) -> NgramClassifier:
    """The emotion classifier."""
    return fit([text for text, _ in rows], [label for _, label in rows], c=10.0)


def write() -> None:
    """Fit on everything and write the files the package ships."""
    fit_safety(crisis_rows(), calm_texts()).save(DATA / "safety.npz")
    fit_emotion(emotion_rows()).save(DATA / "emotion.npz")


if __name__ == "__main__":
    write()
