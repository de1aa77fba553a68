"""The index over one user's exchanges: vectors and morphemes, fused; a cache of the log, never the only copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gonggam.errors import UserError
from rag.fusion import reciprocal_rank
from rag.korean import morphemes
from rag.lexical import Bm25, ranking
from rag.log import Exchange

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from rag.options import MemoryOptions
    from rag.rerank import Reranker
    from rag.seal import Seal

POOL = 50  # candidates each ranking brings to the fusion
_SECONDS_A_DAY = 86_400.0


class ExchangeIndex:
    """Hybrid search over exchanges, which keep the order of the log."""

    def __init__(self, embedder: Embeddings, settings: MemoryOptions, reranker: Reranker | None = None) -> None:
        from rag.store import FaissStore

        self.settings, self.reranker = settings, reranker
        self.exchanges: list[Exchange] = []
        self._label = f"reply {settings.reply_context:g}" + (" words" if settings.lexical else "")
        self.store = FaissStore(embedder, label=self._label)
        self._bm25 = Bm25()
        self._asked: tuple[str, list[str]] = ("", [])  # a message is recalled by and then remembered: analysed once

    def add(self, exchanges: Sequence[Exchange], vectors: np.ndarray | None = None) -> None:
        """Index exchanges; ``vectors`` are those of `embed`, if it was called before."""
        if not exchanges:
            return
        vectors = self.embed(exchanges) if vectors is None else vectors
        share = self.settings.reply_context
        found = [terms(self._morphemes(e.user), e.reply, share) if self.settings.lexical else {} for e in exchanges]
        metas = [{"terms": frequencies} for frequencies in found]
        texts, ids = [exchange.user for exchange in exchanges], [exchange.id for exchange in exchanges]
        self.store.add_vectors(vectors, texts, metas, ids=ids)
        self._note(exchanges, found)

    def embed(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """One vector an exchange: the user's words, and the reply's at ``settings.reply_context``."""
        from rag.store import embed, unit

        embedder, share = self.store.embeddings, self.settings.reply_context
        vectors = unit(embed(embedder, [exchange.user for exchange in exchanges]))
        if share and exchanges:
            vectors = vectors + share * unit(embed(embedder, [exchange.reply for exchange in exchanges]))
        return vectors

    def keep(self, ids: Collection[str]) -> None:
        """Drop all exchanges but these."""
        self.store.delete([exchange.id for exchange in self.exchanges if exchange.id not in ids])
        kept = [exchange for exchange in self.exchanges if exchange.id in ids]
        self.exchanges, self._bm25, self._asked = [], Bm25(), ("", [])
        self._note(kept, [self.store.document(row).metadata["terms"] for row in range(len(kept))])

    def search(
        self, query: str, k: int, *, now: datetime, exclude: Collection[str] = (), threshold: float = 0.0
    ) -> list[tuple[Exchange, float]]:
        """The ``k`` exchanges that ``query`` calls to mind, best first, each with its relevance from 0 to 1.

        None at all if not one of them is as relevant as ``threshold``: the message is about something new.
        """
        if not self.exchanges or k < 1:
            return []
        pool = POOL + k + len(exclude)
        vector = np.asarray(self.store.embeddings.embed_query(query), dtype=np.float32)
        near, words = self.store.nearest(vector, pool)[0].tolist(), self._words(query)
        by_words = ranking(words, pool)
        rows = np.array(list(dict.fromkeys([*near, *by_words])), dtype=np.int64)
        share = self.settings.lexical
        relevance = (np.clip(self.store.cosines(vector, rows), 0, 1) + share * words[rows]) / (1 + share)
        level = dict(zip(rows.tolist(), relevance.tolist(), strict=True))
        fused = level if self.settings.fusion == "sum" else reciprocal_rank([(near, 1.0), (by_words, share)])
        scored = [
            (row, score * self._freshness(row, now))
            for row, score in fused.items()
            if self.exchanges[row].id not in exclude and not self.exchanges[row].mark
        ]
        if max((level[row] for row, _ in scored), default=0.0) < threshold:
            return []
        ordered = self._rerank(query, sorted(scored, key=lambda pair: -pair[1])[: max(k, POOL)])
        return [(self.exchanges[row], level[row]) for row, _ in ordered[:k]]

    def save(self, folder: Path, seal: Seal | None = None) -> None:
        """Write the index to ``folder``, whole or not at all."""
        self.store.save(folder, seal)

    def load(self, folder: Path, exchanges: Sequence[Exchange], seal: Seal | None = None) -> bool:
        """Take over the saved index of (the first of) ``exchanges``; False if it is missing, stale or damaged."""
        from rag.store import FaissStore

        try:
            store = FaissStore.load(folder, self.store.embeddings, self._label, seal=seal)
        except UserError:
            return False
        covered = exchanges[: len(store)]
        if [store.document(row).id for row in range(len(store))] != [exchange.id for exchange in covered]:
            return False
        self.store = store
        self._note(covered, [store.document(row).metadata["terms"] for row in range(len(store))])
        return True

    def _note(self, exchanges: Sequence[Exchange], found: Sequence[dict[str, float]]) -> None:
        self.exchanges.extend(exchanges)
        for frequencies in found:
            self._bm25.add_weighted(frequencies)

    def _words(self, query: str) -> np.ndarray:
        """BM25 of every exchange as a share of what an exchange full of the query's words could reach."""
        found = self._morphemes(query) if self.settings.lexical else []
        return self._bm25.scores(found) / max(self._bm25.most(found), 1e-9)

    def _morphemes(self, text: str) -> list[str]:
        if text != self._asked[0]:
            self._asked = text, morphemes(text)
        return self._asked[1]

    def _freshness(self, row: int, now: datetime) -> float:
        if self.settings.half_life_days is None:
            return 1.0
        age = max((now - self.exchanges[row].when).total_seconds(), 0.0) / _SECONDS_A_DAY
        return float(0.5 ** (age / self.settings.half_life_days))

    def _rerank(self, query: str, scored: list[tuple[int, float]]) -> list[tuple[int, float]]:
        if self.reranker is None or not scored:
            return scored
        texts = [f"{self.exchanges[row].user}\n{self.exchanges[row].reply}" for row, _ in scored]
        judged = zip(scored, self.reranker(query, texts), strict=True)
        return [(row, score) for (row, _), score in sorted(judged, key=lambda pair: -pair[1])]


def terms(said: Sequence[str], reply: str, reply_context: float) -> dict[str, float]:
    """Frequencies of the morphemes that a user said, and of those of the reply at ``reply_context`` each."""
    frequencies: dict[str, float] = dict(Counter(said))
    if reply_context:
        for term, count in Counter(morphemes(reply)).items():
            frequencies[term] = frequencies.get(term, 0.0) + reply_context * count
    return frequencies
