"""How well a classifier does: from its probabilities to figures, without a table of all labels by all labels.

Everything is reckoned from the five likeliest labels of each text, so that 100,000 labels cost no more than ten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOP = 5
BINS = 10
_NORMAL_95 = 1.645  # quantile of the standard normal distribution


@dataclass(frozen=True)
class Judged:
    """Held-out texts as a classifier judged them.

    Attributes:
        true: (texts,) numbers of the right labels.
        top: (texts, at most 5) numbers of the likeliest labels, best first.
        confidence: (texts,) probability of the likeliest one.
    """

    true: np.ndarray
    top: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, true: Sequence[int], batches: Iterable[np.ndarray]) -> Judged:
        """From probabilities that come in batches of shape (some texts, labels)."""
        tops, confidences = [], []
        for rows in batches:
            count = min(TOP, rows.shape[1])
            few = np.argpartition(-rows, count - 1, axis=1)[:, :count]
            order = np.argsort(-np.take_along_axis(rows, few, 1), axis=1, kind="stable")
            tops.append(np.take_along_axis(few, order, 1))
            confidences.append(rows.max(axis=1))
        return cls(np.asarray(true), np.concatenate(tops), np.concatenate(confidences).astype(float))

    @property
    def right(self) -> np.ndarray:
        """(texts,) whether the likeliest label is the right one."""
        return self.top[:, 0] == self.true


def figures(judged: Judged) -> dict[str, float]:
    """Accuracy, macro-F1, top-3, top-5 and the expected calibration error."""
    hits = judged.top == judged.true[:, None]
    return {
        "accuracy": float(hits[:, 0].mean()),
        "macro_f1": macro_f1(judged.true, judged.top[:, 0]),
        "top_3": float(hits[:, :3].any(axis=1).mean()),
        "top_5": float(hits.any(axis=1).mean()),
        "ece": calibration_error(judged),
    }


def macro_f1(true: np.ndarray, told: np.ndarray) -> float:
    """Mean F1 over the labels that occur among the right or the told ones."""
    size = int(max(true.max(), told.max())) + 1
    hits = np.bincount(true[true == told], minlength=size)
    both = np.bincount(true, minlength=size) + np.bincount(told, minlength=size)
    return float((2 * hits[both > 0] / both[both > 0]).mean())


def reliability(judged: Judged) -> list[dict[str, Any]]:
    """Texts by confidence, in bins of a tenth: how sure the classifier was and how often it was right."""
    place = np.clip((judged.confidence * BINS).astype(int), 0, BINS - 1)
    return [
        {
            "confidence": float(judged.confidence[place == one].mean()),
            "accuracy": float(judged.right[place == one].mean()),
            "texts": int((place == one).sum()),
        }
        for one in range(BINS)
        if (place == one).any()
    ]


def surest(judged: Judged) -> list[dict[str, Any]]:
    """The surest 5, 10, 20, 50 and 100% of the texts: the least confidence among them, how many are told rightly."""
    order, texts = np.argsort(-judged.confidence, kind="stable"), len(judged.true)
    counts = dict.fromkeys(max(1, round(share * texts)) for share in (0.05, 0.1, 0.2, 0.5, 1.0))
    return [
        {
            "surest texts": f"{count / texts:.0%}",
            "confidence from": f"{judged.confidence[order[count - 1]]:.3f}",
            "told rightly": f"{judged.right[order[:count]].sum()} of {count}",
        }
        for count in counts
    ]


def calibration_error(judged: Judged) -> float:
    """Expected calibration error over ten bins of equal width (Guo et al. 2017)."""
    total = len(judged.true)
    return sum(bin["texts"] * abs(bin["confidence"] - bin["accuracy"]) for bin in reliability(judged)) / total


def mixed_up(judged: Judged, labels: Sequence[str], most: int = 15) -> list[dict[str, Any]]:
    """The pairs of labels that are taken for one another most often, either way round."""
    wrong = judged.true != judged.top[:, 0]
    pairs = Counter(tuple(sorted(pair)) for pair in zip(judged.true[wrong], judged.top[wrong, 0], strict=True))
    return [{"label": labels[a], "taken for": labels[b], "texts": count} for (a, b), count in pairs.most_common(most)]


def worst_labels(judged: Judged, labels: Sequence[str], most: int = 8) -> list[int]:
    """Numbers of the labels that take part in most mistakes, for a confusion matrix that can be read."""
    wrong = judged.true != judged.top[:, 0]
    counts = Counter([*judged.true[wrong].tolist(), *judged.top[wrong, 0].tolist()])
    return sorted(number for number, _ in counts.most_common(most))


def confidence_for(judged: Judged, precision: float) -> tuple[float, float]:
    """The lowest confidence from which texts are told rightly with at least ``precision``, as far as so few can show.

    That a handful was right may be luck: what counts is Wilson's lower bound (1927, one-sided, 95%) of the share that
    is right among the texts that reach a confidence. Five texts in a row show 0.6, eleven 0.8.

    Returns:
        the confidence, and the share of texts that reach it. Where no confidence will do, it lies above all that were
        seen, and the share is 0.
    """
    order = np.argsort(-judged.confidence, kind="stable")
    confidence, right = judged.confidence[order], judged.right[order]
    texts = np.arange(1, len(right) + 1)
    last_of_value = np.append(confidence[:-1] != confidence[1:], True)
    good = np.flatnonzero((_at_least(np.cumsum(right), texts) >= precision) & last_of_value)
    if not len(good):
        return float(np.nextafter(confidence[0], 2)), 0.0
    return float(confidence[good[-1]]), float((good[-1] + 1) / len(right))


def _at_least(hits: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Wilson's lower bounds of the shares ``hits / texts``."""
    share, square = hits / texts, _NORMAL_95**2
    spread = np.sqrt(share * (1 - share) / texts + square / (4 * texts**2))
    return (share + square / (2 * texts) - _NORMAL_95 * spread) / (1 + square / texts)
