"""A small linear classifier over character n-grams: fitted with scikit-learn, stored and read as plain arrays."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gonggam.files import writing

if TYPE_CHECKING:
    import numpy as np

_N_GRAMS = range(1, 4)


def features(text: str) -> Counter[str]:
    """Character n-grams (1-3) of the text between its edges; runs of one sign count as two."""
    text = re.sub(r"(.)\1{2,}", r"\1\1", re.sub(r"\s+", " ", unicodedata.normalize("NFC", text.lower())).strip())
    plain = f"^{text}$"
    return Counter(plain[i : i + n] for n in _N_GRAMS for i in range(len(plain) - n + 1))


@dataclass(frozen=True)
class NgramClassifier:
    """Multinomial logistic regression; ``weights`` has shape (n-grams, labels), ``bias`` (labels,)."""

    labels: tuple[str, ...]
    vocabulary: dict[str, int]
    idf: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def probabilities(self, text: str) -> dict[str, float]:
        """Probability of every label; they add up to 1."""
        import numpy as np

        found = [
            (self.vocabulary[gram], 1 + math.log(n)) for gram, n in features(text).items() if gram in self.vocabulary
        ]
        index = np.array([place for place, _ in found], dtype=int)
        values = np.array([value for _, value in found], dtype=float) * self.idf[index]
        norm = float(np.linalg.norm(values)) or 1.0
        scores = self.bias + (values / norm) @ self.weights[index] if len(index) else self.bias.astype(float)
        odds = np.exp(scores - scores.max())
        return dict(zip(self.labels, (odds / odds.sum()).tolist(), strict=True))

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file of plain arrays."""
        import numpy as np

        grams = sorted(self.vocabulary, key=self.vocabulary.__getitem__)
        with writing(path, "wb") as file:
            np.savez_compressed(
                file, labels=np.array(self.labels), grams=np.array("\n".join(grams)), idf=self.idf.astype("f2"),
                weights=self.weights.astype("f2"), bias=self.bias.astype("f4"),
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> NgramClassifier:
        """Read what `save` wrote; nothing is unpickled."""
        import numpy as np

        with np.load(path, allow_pickle=False) as file:
            grams = str(file["grams"]).split("\n")
            idf, weights, bias = (file[name].astype("f4") for name in ("idf", "weights", "bias"))
            labels = tuple(file["labels"].tolist())
        return cls(labels, {gram: place for place, gram in enumerate(grams)}, idf, weights, bias)


def fit(
    texts: Sequence[str], labels: Sequence[str], *, c: float = 30.0, min_df: int = 2, balanced: bool = True
) -> NgramClassifier:
    """Fit on labelled texts; seconds for a few thousand. ``c`` is the inverse strength of the L2 penalty."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer=features, min_df=min_df, sublinear_tf=True)
    matrix = vectorizer.fit_transform(texts)
    # lbfgs starts from zero: the same rows give the same weights.
    model = LogisticRegression(C=c, class_weight="balanced" if balanced else None, max_iter=1000)
    model.fit(matrix, list(labels))
    weights, bias = model.coef_.T, model.intercept_
    if weights.shape[1] == 1:  # two labels: one column of weights stands for the second
        weights, bias = np.hstack([0 * weights, weights]), np.array([0.0, bias[0]])
    vocabulary = {str(gram): int(place) for gram, place in vectorizer.vocabulary_.items()}
    return NgramClassifier(tuple(map(str, model.classes_)), vocabulary, vectorizer.idf_, weights, bias)
