"""The knowledge base: answers that people wrote, found by question; the counsellor falls back on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gonggam.errors import UserError
from rag.fusion import reciprocal_rank
from rag.korean import morphemes
from rag.lexical import Bm25, ranking

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from rag.store import FaissStore

POOL = 50  # candidates each ranking brings to the fusion


@dataclass(frozen=True)
class Hit:
    """One human-written answer: the question it was given to, fused score, cosine, and what was stored with it."""

    question: str
    answer: str
    score: float
    cosine: float
    meta: dict[str, Any] = field(default_factory=dict)


class KnowledgeBase:
    """Human-written answers with hybrid search: vectors and BM25 over Kiwi morphemes, fused by reciprocal rank."""

    def __init__(self, store: FaissStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    @classmethod
    def build(cls, exchanges: Sequence[dict[str, Any]], embedder: Embeddings, out: str | Path) -> KnowledgeBase:
        """Index ``exchanges`` (``question``, ``answer``, optional ``meta``) and save them to the folder ``out``.

        Raises:
            UserError: no exchanges, or the folder cannot be written.
        """
        from rag.store import FaissStore

        if not exchanges:
            raise UserError("there are no human-written answers to index", "add conversations to the prepared data")
        metas = [
            {"answer": e["answer"], "meta": e.get("meta", {}), "terms": dict(Counter(morphemes(e["question"])))}
            for e in exchanges
        ]
        store = FaissStore(embedder)
        store.add_texts([e["question"] for e in exchanges], metas)
        store.save(out)
        return cls(store)

    @classmethod
    def load(cls, path: str | Path, embedder: Embeddings) -> KnowledgeBase:
        """Open what `build` saved.

        Raises:
            UserError: missing, damaged, or built with another embedder.
        """
        from rag.store import FaissStore

        return cls(FaissStore.load(path, embedder))

    @cached_property
    def _bm25(self) -> Bm25:
        index = Bm25()
        for row in range(len(self.store)):
            index.add_weighted(self.store.document(row).metadata["terms"])
        return index

    def search(self, question: str, k: int = 3, *, dense: float = 1.0, lexical: float = 0.0) -> list[Hit]:
        """The ``k`` answers whose questions are most like ``question``, best first.

        Args:
            dense, lexical: weights of the two rankings; 0 leaves one out. Vectors alone were the best of the three
                on the sample corpus (docs/memory.md), so they are the default.
        """
        vector = np.asarray(self.store.embeddings.embed_query(question), dtype=np.float32)
        rows, cosines = self.store.nearest(vector, max(POOL, k))
        near = dict(zip(rows.tolist(), cosines.tolist(), strict=True))
        words = ranking(self._bm25.scores(morphemes(question)), max(POOL, k)) if lexical else []
        fused = reciprocal_rank([(list(near) if dense else [], dense), (words, lexical)])
        return [self._hit(row, score, near) for row, score in list(fused.items())[:k]]

    def _hit(self, row: int, score: float, near: dict[int, float]) -> Hit:
        document = self.store.document(row)
        found = document.metadata
        return Hit(document.page_content, found["answer"], score, near.get(row, 0.0), found["meta"])
