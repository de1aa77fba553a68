"""Emotion of a message: one of the 11 labels of nlp04/korean_sentiment_analysis_kcelectra."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from pipeline.chat.categories import LABELS, CategoryClassifier
from pipeline.chat.classifier import NgramClassifier
from pipeline.chat.reply import Emotion
from pipeline.chat.resources import DATA

Feel = Callable[[str], Emotion]


@cache
def classifier() -> NgramClassifier:
    """The shipped classifier, fitted on the sample corpus (`python -m pipeline.chat.fit`)."""
    return NgramClassifier.load(DATA / "emotion.npz")


def feel(text: str) -> Emotion:
    """The likeliest emotion of ``text`` by the shipped classifier."""
    label, score = max(classifier().probabilities(text[:1000]).items(), key=lambda pair: pair[1])
    return Emotion(label=label, score=round(score, 4))


def load_feel(model: str | None) -> Feel:
    """The emotion function: ours, a classifier of a classify stage, or one of transformers by folder or hub id.

    Raises:
        UserError: the model cannot be loaded.
    """
    if model is None:
        return feel
    if (Path(model) / LABELS).is_file():
        return _own(model)
    from transformers import pipeline as transformers_pipeline

    from pipeline.model import hub_errors

    with hub_errors(model):
        classify = transformers_pipeline("text-classification", model=model)

    def felt(text: str) -> Emotion:
        best = classify(text, truncation=True)[0]
        return Emotion(label=best["label"], score=round(float(best["score"]), 4))

    return felt


def _own(folder: str) -> Feel:
    classifier = CategoryClassifier.load(folder)

    def felt(text: str) -> Emotion:
        number, score = classifier.best(text)
        return Emotion(label=classifier.labels.names[number], score=round(score, 4))

    return felt
