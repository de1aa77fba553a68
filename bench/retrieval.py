"""How well human-written answers are found, by three-fold cross-validation: ``python bench/retrieval.py``.

A hit: one of the k answers comes from a conversation of the same category as the question, the first message of a
conversation that neither the embedder nor the index has seen. Writes bench/results/retrieval.md.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from record import RESULTS, ROOT, record, table, told

FOLDS = 3
COLUMNS = ("hit@1", "hit@3", "hit@5")
Talk = dict[str, Any]


def talks() -> list[Talk]:
    """The sample corpus."""
    path = ROOT / "data_prep/samples/counsel_ko/dialogues.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def exchanges(rows: list[Talk]) -> list[dict[str, Any]]:
    """Every user turn with the reply a person wrote to it, as the memory stage takes them."""
    said = [(row, [turn["content"] for turn in row["turns"]]) for row in rows]
    return [
        {"question": user, "answer": reply, "meta": {"category": row["category"]}}
        for row, texts in said
        for user, reply in zip(texts[::2], texts[1::2], strict=False)
    ]


def fold(number: int, rows: list[Talk], folder: Path) -> dict[str, Any]:
    """What `rag.metrics.compare` finds for the conversations of one fold among those of the others."""
    from rag.embedders import fit_static
    from rag.knowledge import KnowledgeBase
    from rag.metrics import compare

    known = exchanges([row for place, row in enumerate(rows) if place % FOLDS != number])
    held = [row for place, row in enumerate(rows) if place % FOLDS == number]
    embedder = fit_static([(e["question"], e["answer"]) for e in known], folder / f"embedder-{number}")
    base = KnowledgeBase.build(known, embedder, folder / f"knowledge-{number}")
    return compare(base, [{"question": row["turns"][0]["content"], "category": row["category"]} for row in held])


def main() -> None:
    """Measure and write the table."""
    rows = talks()
    with tempfile.TemporaryDirectory() as folder:
        found = [fold(number, rows, Path(folder)) for number in range(FOLDS)]
    asked = sum(one["questions"] for one in found)
    means = {
        way: {k: sum(one[way][k] * one["questions"] for one in found) / asked for k in COLUMNS}
        for way in ("dense", "bm25", "hybrid", "chance")
    }
    cells = [(way, *(f"{value:.3f}" for value in by_k.values())) for way, by_k in means.items()]
    lines = [
        "# Finding human-written answers",
        "",
        f"{told()} {asked} questions.",
        "",
        *table(("way", *COLUMNS), cells),
    ]
    (RESULTS / "retrieval.md").write_text("\n".join(lines) + "\n", "utf-8")
    record("retrieval", {"hit_at_5": means["dense"]["hit@5"], "chance_at_5": means["chance"]["hit@5"]}, ["kiwipiepy"])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
