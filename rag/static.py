"""The offline embedder at work: a table of morpheme vectors and their mean. Needs numpy and Kiwi only."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from langchain_core.embeddings import Embeddings

from gonggam.errors import UserError
from gonggam.files import read_json
from rag.korean import KiwiSpace, content

if TYPE_CHECKING:
    from kiwipiepy import Token

MARK = "gonggam_embedder.json"


class StaticEmbedder(Embeddings):
    """Opens a folder that `rag.embedders.fit_static` wrote.

    Words of the training data have their trained vector; other words of the language the one of Kiwi's own model,
    moved in the same way; names and inventions that no one knows a random one of their own, the same each time.

    Raises:
        UserError: the folder is incomplete or damaged.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        self.folder = folder
        try:
            self.fingerprint = f"gonggam-static:{read_json(folder / MARK)['sha256']}"
            self._vocabulary: dict[str, int] = read_json(folder / "tokenizer.json")["model"]["vocab"]
            self._weights = load_file(folder / "model.safetensors")["embedding.weight"]
            space = load_file(folder / "kiwi.safetensors")
            kiwi_space = KiwiSpace(space["landmarks"], space["projection"], space["mean"])
            self._outside = Outside(kiwi_space, space["common"], float(space["rare"][0]))
        except (KeyError, TypeError, OSError, SafetensorError) as error:
            raise UserError("this embedder is damaged", "fit it again (stage `memory`)", file=folder) from error
        self._look_up = lru_cache(maxsize=20_000)(self._outside.vector)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._weights.shape[1])

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of unit length, shape ``(texts, dim)``, float32; a text without a word has the zero vector."""
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, words in zip(out, self.encode_words(texts), strict=True):
            for vector in words:
                row += vector
            row /= max(float(np.linalg.norm(row)), 1e-12)
        return out

    def encode_words(self, texts: list[str]) -> list[np.ndarray]:
        """For each text the vectors of its content morphemes, shape ``(words, dim)``; length is weight."""
        return [np.array([*map(self._word, content(text))], dtype=np.float32).reshape(-1, self.dim) for text in texts]

    def _word(self, token: Token) -> np.ndarray:
        at = self._vocabulary.get(key(token))
        return self._outside.rare * self._look_up(known_id(token), token.form) if at is None else self._weights[at]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of ``texts``."""
        return self.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Vector of one text."""
        return self.encode([text])[0].tolist()


UNKNOWN = "[UNK]"


def known_id(token: Token) -> int | None:
    """Kiwi's id of a morpheme; None for an invention of the user's, which Kiwi files under one id for all."""
    return None if token.oov else token.id


def key(token: Token) -> str:
    """How a morpheme is written in the vocabulary."""
    return f"{token.form}/{token.tag}"


@dataclass(frozen=True)
class Outside:
    """Vectors of words before any training: Kiwi's, less their mean and the direction that all texts share.

    Attributes:
        common: shape ``(directions, dim)``; orthonormal rows, perhaps none.
        rare: weight of a word that the training data lack.
    """

    space: KiwiSpace
    common: np.ndarray
    rare: float

    def vector(self, morpheme: int | None, form: str) -> np.ndarray:
        """Shape ``(dim,)``; of a word that Kiwi's model lacks a random one, drawn from its spelling."""
        found = None if morpheme is None else self.space.vector(morpheme)
        if found is None:
            found = np.random.default_rng(zlib.crc32(form.encode())).standard_normal(self.space.dim, dtype=np.float32)
            return found / np.linalg.norm(found)
        centred = found - self.space.mean
        return centred - centred @ self.common.T @ self.common
