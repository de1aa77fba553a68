"""BM25 over terms; with `rag.korean.morphemes` over Kiwi's morphemes."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

import numpy as np


class Bm25:
    """Okapi BM25 (Robertson and Zaragoza 2009) over documents that may be added at any time.

    Args:
        k1, b: the usual saturation and length constants.
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        self.k1, self.b = k1, b
        self._lengths = array("f")
        self._postings: dict[str, tuple[array[int], array[float]]] = {}

    def add_weighted(self, frequencies: dict[str, float]) -> int:
        """Add one document given by (possibly fractional) term frequencies; returns its number."""
        number = len(self._lengths)
        self._lengths.append(sum(frequencies.values()))
        for term, frequency in frequencies.items():
            documents, counts = self._postings.setdefault(term, (array("i"), array("f")))
            documents.append(number)
            counts.append(frequency)
        return number

    def idf(self, term: str) -> float:
        """Inverse document frequency of ``term``, above 0."""
        count = len(self._postings[term][0]) if term in self._postings else 0
        return math.log(1 + (len(self._lengths) - count + 0.5) / (count + 0.5))

    def most(self, terms: Iterable[str]) -> float:
        """The score that no document exceeds for these terms."""
        return sum(self.idf(term) for term in set(terms)) * (self.k1 + 1)

    def scores(self, terms: Sequence[str]) -> np.ndarray:
        """BM25 score of every document, shape ``(documents,)``."""
        total = np.zeros(len(self._lengths), dtype=np.float32)
        if not len(total):
            return total
        lengths = np.array(self._lengths, dtype=np.float32)
        norms = self.k1 * (1 - self.b + self.b * lengths / max(float(lengths.mean()), 1e-9))
        for term in set(terms):
            if term in self._postings:
                documents = np.array(self._postings[term][0])
                counts = np.array(self._postings[term][1])
                total[documents] += self.idf(term) * counts * (self.k1 + 1) / (counts + norms[documents])
        return total


def ranking(scores: np.ndarray, k: int) -> list[int]:
    """Numbers of the ``k`` best positive scores, best first; ties in order of age."""
    k = min(k, len(scores))
    if k <= 0:
        return []
    best = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
    best = best[np.lexsort((best, -scores[best]))]
    return [int(i) for i in best if scores[i] > 0]
