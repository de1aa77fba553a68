"""The offline embedder at work: looks feature vectors up and takes their mean; needs numpy only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from langchain_core.embeddings import Embeddings

from gonggam.errors import UserError
from gonggam.files import read_json
from rag.features import features, known


class StaticEmbedder(Embeddings):
    """Opens a folder that `rag.embedders.fit_static` wrote.

    Raises:
        UserError: the folder is incomplete or damaged.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        from rag.embedders import read_mark

        self.folder = folder
        try:
            self.fingerprint = f"gonggam-static:{read_mark(folder)['sha256']}"
            self._vocabulary: dict[str, int] = read_json(folder / "tokenizer.json")["model"]["vocab"]
            self._weights = load_file(folder / "model.safetensors")["embedding.weight"]
        except (KeyError, TypeError, OSError, SafetensorError) as error:
            raise UserError("this embedder is damaged", "fit it again (stage `memory`)", file=folder) from error

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._weights.shape[1])

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of unit length, shape ``(texts, dim)``, float32; a text without letters has the zero vector."""
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            ids = [self._vocabulary[feature] for feature in known(features(text), self._vocabulary)]
            if ids:
                row[:] = self._weights[ids].mean(axis=0)
                row /= max(float(np.linalg.norm(row)), 1e-12)
        return out

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of ``texts``."""
        return self.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Vector of one text."""
        return self.encode([text])[0].tolist()
