"""The memory stage: fit the embedder on the training exchanges, index the human-written answers, measure retrieval."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gonggam.files import read_jsonl
from gonggam.progress import Progress
from rag.calibrate import unrelated_level, write_threshold
from rag.embedders import fit_static, load_embedder
from rag.knowledge import KnowledgeBase
from rag.metrics import compare
from rag.options import MemoryOptions


def run_memory(
    options: MemoryOptions, prepared: Path, folder: Path, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Leave ``folder/embedder`` (if it is our own) and ``folder/knowledge``, the index of human-written answers.

    Returns:
        metrics: number of answers, the relevance below which nothing is recalled (see `rag.calibrate`), and hit@k of
        held-out first messages against the answers (see `rag.metrics.compare`).

    Raises:
        UserError: too few exchanges, or the embedder named in the recipe cannot be loaded.
    """
    exchanges = list(_exchanges(prepared, "train"))
    if options.embedder == "offline":
        pairs = [(e["question"], e["answer"]) for e in exchanges]
        embedder = fit_static(pairs, folder / "embedder", progress, epochs=options.epochs, seed=options.seed)
    else:
        embedder = load_embedder(options.embedder)
    talks: dict[str, list[tuple[str, str]]] = {}
    for exchange in exchanges:
        talks.setdefault(exchange["meta"]["id"], []).append((exchange["question"], exchange["answer"]))
    threshold = unrelated_level(list(talks.values()), embedder, options)
    write_threshold(folder, threshold)
    base = KnowledgeBase.build(exchanges, embedder, folder / "knowledge")
    held_out = [
        {"question": e["question"], "category": e["meta"]["category"]}
        for split in ("validation", "test")
        for e in _exchanges(prepared, split)
        if e["meta"]["category"] and e["meta"]["turn"] == 0
    ]
    return {"answers": len(base), "threshold": threshold, "retrieval": compare(base, held_out) if held_out else None}


def _exchanges(prepared: Path, split: str) -> Iterator[dict[str, Any]]:
    """Every user turn of a split with the reply a person wrote to it."""
    for row in read_jsonl(prepared / "messages" / f"{split}.jsonl"):
        turns = [m for m in row["messages"] if m["role"] != "system"]
        for number, (user, reply) in enumerate(zip(turns[::2], turns[1::2], strict=False)):
            meta = {"id": row["id"], "turn": number, "category": row.get("category"), "emotion": row.get("emotion")}
            yield {"question": user["content"], "answer": reply["content"], "meta": meta}
