"""How well the knowledge base finds answers to questions it never saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rag.knowledge import KnowledgeBase

WAYS = {"dense": (1.0, 0.0), "bm25": (0.0, 1.0), "hybrid": (1.0, 1.0)}


def hit_at_k(
    base: KnowledgeBase, questions: Sequence[dict[str, Any]], k: int = 5, *, dense: float = 1.0, lexical: float = 0.0
) -> float:
    """Share of held-out questions for which one of the ``k`` answers comes from a conversation of the same category.

    Args:
        base: knowledge base whose ``meta`` holds ``category``.
        questions: held-out ``question`` and ``category``.
    """
    hits = [
        any(
            hit.meta.get("category") == q["category"]
            for hit in base.search(q["question"], k, dense=dense, lexical=lexical)
        )
        for q in questions
    ]
    return sum(hits) / len(hits) if hits else 0.0


def chance_at_k(base: KnowledgeBase, questions: Sequence[dict[str, Any]], k: int = 5) -> float:
    """What `hit_at_k` would be, in expectation, for ``k`` answers drawn at random without replacement."""
    counts = Counter(base.store.document(row).metadata["meta"].get("category") for row in range(len(base)))

    def hit(category: str) -> float:
        miss = 1.0
        for drawn in range(min(k, len(base))):
            miss *= max(len(base) - counts[category] - drawn, 0) / (len(base) - drawn)
        return 1 - miss

    return sum(hit(q["category"]) for q in questions) / len(questions) if questions else 0.0


def compare(base: KnowledgeBase, questions: Sequence[dict[str, Any]], ks: Sequence[int] = (1, 3, 5)) -> dict[str, Any]:
    """`hit_at_k` of vectors alone, BM25 over Kiwi morphemes alone and both fused, beside chance.

    Returns:
        ``{"dense": {"hit@1": …}, "bm25": …, "hybrid": …, "chance": …, "questions": n}``
    """
    table: dict[str, Any] = {
        name: {f"hit@{k}": round(hit_at_k(base, questions, k, dense=d, lexical=lex), 4) for k in ks}
        for name, (d, lex) in WAYS.items()
    }
    table["chance"] = {f"hit@{k}": round(chance_at_k(base, questions, k), 4) for k in ks}
    return {**table, "questions": len(questions)}
