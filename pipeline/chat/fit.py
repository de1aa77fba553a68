"""Fits the shipped classifiers on the sample corpus and measures them: `python -m pipeline.chat.fit`.

The rows of ``crisis.tsv`` serve the safety layer only; nothing here trains a generator.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import data_prep
from pipeline.chat.classifier import NgramClassifier, fit
from pipeline.chat.resources import DATA

SAMPLES = Path(data_prep.__file__).parent / "samples" / "counsel_ko"
FOLDS = 10
Row = tuple[str, str]


def read_tsv(path: Path) -> list[Row]:
    """(text, label) of a two-column table with a heading."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(text, label) for text, label in list(csv.reader(file, delimiter="\t"))[1:]]


def calm_texts() -> list[str]:
    """User utterances of the sample dialogues: troubles and joys of every kind, none of high risk."""
    with (SAMPLES / "dialogues.jsonl").open(encoding="utf-8") as file:
        return [turn["content"] for line in file for turn in json.loads(line)["turns"] if turn["role"] == "user"]


def fit_safety(rows: Sequence[Row], calm: Sequence[str]) -> NgramClassifier:
    """The risk classifier: ``crisis.tsv`` with the dialogues' utterances beside it as ``calm``."""
    texts = [text for text, _ in rows] + list(calm)
    return fit(texts, [label for _, label in rows] + ["calm"] * len(calm))


@dataclass(frozen=True)
class Rates:
    """Counts of one way of telling high risk; ``missed`` and ``alarms`` are indices of rows."""

    high: int
    none: int
    missed: tuple[int, ...]
    alarms: tuple[int, ...]

    @property
    def recall(self) -> float:
        """Share of the high rows that were called high."""
        return 1 - len(self.missed) / self.high

    @property
    def false_alarms(self) -> float:
        """Share of the none rows that were called high."""
        return len(self.alarms) / self.none


def rates(rows: Sequence[Row], is_high: Callable[[int], bool]) -> Rates:
    """Rates of a judgement over rows."""
    called = [is_high(index) for index in range(len(rows))]
    return Rates(
        sum(label == "high" for _, label in rows),
        sum(label == "none" for _, label in rows),
        tuple(i for i, (_, label) in enumerate(rows) if label == "high" and not called[i]),
        tuple(i for i, (_, label) in enumerate(rows) if label == "none" and called[i]),
    )


def out_of_fold(rows: Sequence[Row], calm: Sequence[str], seed: int = 0) -> tuple[list[float], list[float]]:
    """Probability of ``high`` for every row and every calm text, by classifiers that did not see it."""
    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(rows, [label for _, label in rows])
    order = np.random.default_rng(seed).permutation(len(calm))
    odds, calm_odds = [0.0] * len(rows), [0.0] * len(calm)
    for number, (train, test) in enumerate(folds):
        held = set(order[number::FOLDS].tolist())
        model = fit_safety([rows[i] for i in train], [text for i, text in enumerate(calm) if i not in held])
        for i in test:
            odds[i] = model.probabilities(rows[i][0])["high"]
        for i in held:
            calm_odds[i] = model.probabilities(calm[i])["high"]
    return odds, calm_odds


def write() -> None:
    """Fit on everything and write the files the package ships."""
    emotions = read_tsv(SAMPLES / "emotion.tsv")
    fit_safety(read_tsv(SAMPLES / "crisis.tsv"), calm_texts()).save(DATA / "safety.npz")
    fit([text for text, _ in emotions], [label for _, label in emotions]).save(DATA / "emotion.npz")


if __name__ == "__main__":
    write()
