"""Fits the classifiers the package ships: `python -m pipeline.chat.fit`. Measuring them: `pipeline.chat.measure`.

The rows of ``crisis.tsv`` serve the safety layer only; nothing here trains a generator.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
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


def crisis_rows() -> list[Row]:
    """What the risk classifier learns from: the sample corpus's table and the phrases shipped beside the rules."""
    return [*read_tsv(SAMPLES / "crisis.tsv"), *read_tsv(DATA / "crisis_phrases.tsv")]


def dialogues() -> list[dict[str, Any]]:
    """The sample dialogues."""
    with (SAMPLES / "dialogues.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def emotion_rows() -> list[Row]:
    """What the emotion classifier learns from: the sample corpus's table, then the dialogues' first messages.

    The table says its feelings outright; the dialogues tell what happened, as people do in counselling.
    """
    told = [(dialogue["turns"][0]["content"], dialogue["emotion"]) for dialogue in dialogues()]
    return [*read_tsv(SAMPLES / "emotion.tsv"), *told]


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
