"""A trained classifier's temperature and confidence, from the validation split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.categories import CategoryClassifier, Labels
from pipeline.train.judged import Judged, confidence_for
from pipeline.train.labelled import Labelled

_TEMPERATURES = np.exp(np.linspace(np.log(0.25), np.log(8), 36))  # a tenth apart
_BATCH = 64


def calibrated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Labelled,
    answers: Mapping[str, Sequence[str]],
    *,
    precision: float,
    max_length: int,
) -> tuple[Labels, Judged, float]:
    """Labels with temperature and confidence from the validation split, the test split as judged, and the coverage.

    The temperature makes the right labels likeliest (Guo et al. 2017); the coverage is the share of validation texts
    that reach the confidence (see `pipeline.train.judged.confidence_for`).
    """
    raw = CategoryClassifier(model, tokenizer, Labels(data.labels, max_length=max_length))
    temperature = _temperature(_batches(raw, data, "validation"), data.numbers("validation"))
    warm = Labels(data.labels, answers, temperature, max_length=max_length)
    warmed = CategoryClassifier(model, tokenizer, warm)
    confidence, coverage = confidence_for(judged(warmed, data, "validation"), precision)
    labels = Labels(data.labels, answers, temperature, confidence, max_length)
    return labels, judged(warmed, data, "test"), coverage


def judged(classifier: CategoryClassifier, data: Labelled, split: str) -> Judged:
    """A split as the classifier judges it."""
    return Judged.of(data.numbers(split), _batches(classifier, data, split))


def _batches(classifier: CategoryClassifier, data: Labelled, split: str) -> Iterator[np.ndarray]:
    texts = [example.text for example in data.splits[split]]
    for start in range(0, len(texts), _BATCH):
        yield classifier.probabilities(texts[start : start + _BATCH])


def _temperature(batches: Iterator[np.ndarray], true: Sequence[int]) -> float:
    """The temperature at which the right labels are likeliest, of 36 between 1/4 and 8."""
    losses, done = np.zeros(len(_TEMPERATURES)), 0
    for rows in batches:
        right = np.asarray(true[done : done + len(rows)])
        logits = np.log(np.maximum(rows, 1e-30)).astype(float)
        for place, temperature in enumerate(_TEMPERATURES):
            scaled = logits / temperature
            top = scaled.max(axis=1)
            norm = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
            losses[place] += (norm - scaled[np.arange(len(rows)), right]).sum()
        done += len(rows)
    return float(_TEMPERATURES[losses.argmin()])
