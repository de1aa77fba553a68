"""Korean morphemes and what Kiwi's own language model knows of their meaning (kiwipiepy 0.21 or newer)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kiwipiepy import Kiwi, Token

# Words that carry meaning: nouns, numerals, verbs and adjectives, adverbs, roots, foreign words and numbers. Particles,
# endings, pronouns, auxiliaries and punctuation are left out.
CONTENT_TAGS = ("NNG", "NNP", "NNB", "NR", "VV", "VA", "MAG", "XR", "SL", "SN", "SH")
# Analysis takes time in proportion to the length; of a longer text the beginning is searched by.
MAX_CHARS = 4000
_LANDMARKS = 320


@lru_cache(maxsize=1)
def kiwi() -> Kiwi:
    """The analyser: made once (a second or two), never changed, safe to share between threads."""
    from kiwipiepy import Kiwi

    return Kiwi(num_workers=1)


def content(text: str) -> list[Token]:
    """The tokens of ``text`` that carry meaning, in order; long runs of one character are shortened first."""
    text = re.sub(r"(.)\1{2,}", r"\1\1", text[:MAX_CHARS].lower())
    return [token for token in kiwi().tokenize(text) if token.tag.startswith(CONTENT_TAGS)]


def morphemes(text: str) -> list[str]:
    """The stems of ``text`` that carry meaning, in order."""
    return [token.form for token in content(text)]


@dataclass(frozen=True)
class KiwiSpace:
    """Vectors of morphemes, read off the cosines that Kiwi's CoNgram model gives for pairs of them.

    A morpheme is placed by its cosines to fixed landmarks (Nystroem's method; Williams and Seeger, NIPS 2000). With
    more landmarks than the model has dimensions that is exact up to a rotation.

    Attributes:
        landmarks: ids of morphemes, shape ``(landmarks,)``.
        projection: shape ``(landmarks, dim)``.
        mean: of all words, shape ``(dim,)``: the landmarks' until a corpus tells better.
    """

    landmarks: np.ndarray
    projection: np.ndarray
    mean: np.ndarray

    @classmethod
    def measure(cls, seed: int = 0) -> KiwiSpace:
        """Choose landmarks among frequent morphemes and find the projection."""
        ids = np.sort(np.random.default_rng(seed).choice(np.arange(100, 4000), _LANDMARKS, replace=False))
        cosines = np.array([_cosines(int(i), ids) for i in ids])
        good = np.isfinite(cosines).all(axis=1)
        ids, cosines = ids[good], cosines[np.ix_(good, good)]
        values, vectors = np.linalg.eigh((cosines + cosines.T) / 2)
        kept = values > values.max() * 1e-5
        projection = (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
        return cls(ids, projection, (cosines @ projection).mean(axis=0))

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.projection.shape[1])

    def vector(self, morpheme: int) -> np.ndarray | None:
        """Unit vector of a morpheme given by Kiwi's id; None if the model does not know it."""
        try:
            cosines = _cosines(morpheme, self.landmarks)
        except (ValueError, IndexError):
            return None
        found = cosines @ self.projection
        return found if np.isfinite(found).all() and 0.5 < float(np.linalg.norm(found)) < 1.5 else None


def _cosines(morpheme: int, others: np.ndarray) -> np.ndarray:
    found = map(kiwi().morpheme_similarity, repeat(morpheme), others.tolist())
    return np.fromiter(found, dtype=np.float32, count=len(others))
