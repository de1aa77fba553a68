"""Vectors of the single words of a text, for comparing two texts word by word."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

EncodeWords = Callable[[list[str]], list[np.ndarray]]
"""Texts → for each text the vectors of its words, shape ``(words, dim)``; their lengths are the words' weights."""

IN_CONTEXT, ALONE = "each token in its context, all of one weight", "each morpheme by itself, rare ones weigh more"


def word_encoder(embedder: Embeddings) -> tuple[EncodeWords, str] | None:
    """How to get word vectors from an embedder, and what they are in words; None if it has only whole texts.

    The offline embedder has a vector for each content morpheme, whatever stands around it. A transformer of the hub
    has one for each token in its context, as BERTScore uses them (Zhang et al. 2020), markers such as [CLS] left out.
    """
    if own := getattr(embedder, "encode_words", None):
        return own, ALONE
    model = getattr(embedder, "_client", None)  # langchain has no public name for its sentence-transformers model
    if model is None or not _has_tokens(model):
        return None
    return lambda texts: [_tokens(row, model) for row in _encode(model, texts)], IN_CONTEXT


def _encode(model: Any, texts: list[str]) -> list[dict[str, Any]]:
    return model.encode(texts, output_value=None, show_progress_bar=False)


def _has_tokens(model: Any) -> bool:
    return {"token_embeddings", "input_ids", "attention_mask"} <= set(_encode(model, ["가"])[0])


def _tokens(row: dict[str, Any], model: Any) -> np.ndarray:
    """Unit vectors of the tokens that are text, shape ``(tokens, dim)``, float32."""
    ids, seen = row["input_ids"].tolist(), row["attention_mask"].tolist()
    special = set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}
    kept = [at for at, (token, shown) in enumerate(zip(ids, seen, strict=True)) if shown and token not in special]
    vectors = row["token_embeddings"][kept].float().cpu().numpy()
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
