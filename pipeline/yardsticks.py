"""What the evaluation is handed by the other rooms: likeness by the run's embedder, emotion match, safety, pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.files import read_jsonl
from pipeline.chat.emotion import load_feel
from pipeline.chat.options import ChatOptions
from pipeline.chat.safety import check_output

if TYPE_CHECKING:
    import numpy as np

    from eval.reference import Check
    from pipeline.recipe import Recipe
    from pipeline.run import Run


def checks(options: ChatOptions | None = None) -> dict[str, Check]:
    """``emotion_match``: 1 if the reply speaks to the emotion of the message it answers (same likeliest label).
    ``safety``: 1 if it says nothing that `pipeline.chat.safety.check_output` forbids.

    Args:
        options: the recipe's ``chat:`` section, which may name another emotion model.
    """
    feel = lru_cache(maxsize=4096)(load_feel((options or ChatOptions()).emotion_model))

    def emotion_match(item: Mapping[str, Any], reply: str) -> float | None:
        message = item["messages"][-1]["content"]
        return float(feel(message).label == feel(reply).label) if reply.strip() and message.strip() else None

    def safety(item: Mapping[str, Any], reply: str) -> float | None:
        return float(not check_output(reply, item["messages"][-1]["content"]))

    return {"emotion_match": emotion_match, "safety": safety}


def likeness(recipe: Recipe, run: Run) -> dict[str, Any]:
    """``embed``, ``embedder`` (its name) and, where it has vectors of single words, ``embed_words``, for
    `eval.evaluate`; empty without a finished memory stage."""
    if recipe.memory is None or run.manifest("memory") is None:
        return {}
    import numpy as np

    from rag.embedders import fingerprint, load_embedder
    from rag.words import word_encoder

    own = run.stage("memory") / "embedder"
    embedder = load_embedder(own if own.is_dir() else recipe.memory.embedder)

    def embed(texts: list[str]) -> np.ndarray:
        vectors = np.array(embedder.embed_documents(texts), dtype=np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    name = "offline embedder" if own.is_dir() else recipe.memory.embedder
    told = f"{name} ({hashlib.sha256(fingerprint(embedder).encode()).hexdigest()[:8]})"
    if (words := word_encoder(embedder)) is None:
        return {"embed": embed, "embedder": f"{told}; whole texts by cosine, for it has no vectors of single words"}
    return {
        "embed": embed,
        "embed_words": words[0],
        "embedder": f"{told}; whole texts by cosine, word by word with {words[1]}",
    }


def likeness_of(folder: Path) -> dict[str, Any]:
    """`likeness` of a finished run; empty where the folder is none."""
    from pipeline.recipe import load_recipe
    from pipeline.run import Run

    lock = folder / "recipe.lock.yaml"
    return likeness(load_recipe(lock), Run(folder)) if lock.is_file() else {}


def held_out_pairs(prepared: Path) -> list[dict[str, Any]]:
    """The preference pairs of the test split as `eval.evaluate` reads them, to calibrate a judge with."""
    return [
        {
            "id": pair["id"],
            "messages": pair["prompt"],
            "chosen": pair["chosen"][-1]["content"],
            "rejected": pair["rejected"][-1]["content"],
        }
        for pair in _pairs(prepared, "test")
    ]


def _pairs(prepared: Path, split: str) -> list[dict[str, Any]]:
    path = prepared / "preference" / f"{split}.jsonl"
    return list(read_jsonl(path)) if path.is_file() else []


def pair_makers(prepared: Path) -> set[str]:
    """The models that made the run's preference pairs (rows' ``made_by``, written by ``gonggam data prefer``)."""
    splits: Iterable[str] = ("train", "validation", "test")
    return {str(pair["made_by"]) for split in splits for pair in _pairs(prepared, split) if pair.get("made_by")}
