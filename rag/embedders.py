"""Embedders: the offline one, trained on a run's own exchanges in seconds, and those of the model hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gonggam.errors import UserError
from gonggam.files import publishing, read_json, sha256_file, write_json
from rag.features import BUCKETS, features, known

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

Progress = Callable[[int, int], None]
_MARK = "gonggam_embedder.json"


def fit_static(
    exchanges: Sequence[tuple[str, str]],
    out: Path,
    progress: Progress | None = None,
    *,
    dim: int = 256,
    epochs: int = 12,
    seed: int = 0,
) -> Embeddings:
    """Train the offline embedder on (user utterance, reply) pairs and save it to the folder ``out``.

    A bag of stems and character n-grams whose vectors start as random projections scaled by inverse document
    frequency (so that untrained it is already a lexical matcher), trained with in-batch negatives (InfoNCE, van den
    Oord et al. 2018). The folder has the layout of sentence-transformers' ``StaticEmbedding``; it holds no pickle.

    Args:
        exchanges: pairs of utterance and reply; at least 2.
        out: folder to write; replaced if it exists.
        progress: called as ``progress(done, total)`` after each step.

    Raises:
        UserError: fewer than two exchanges, or the folder cannot be written.
    """
    if len(exchanges) < 2:
        raise UserError("the offline embedder needs at least 2 exchanges", "add conversations to the prepared data")
    sides = [[features(text) for text in pair] for pair in exchanges]
    vocabulary, weights = _start(sides, dim, seed)
    ids = [[_ids(side, vocabulary) for side in pair] for pair in sides]
    weights = _train(weights, ids, epochs=epochs, seed=seed, progress=progress)
    _save(Path(out), vocabulary, weights)
    return load_embedder(out)


def load_embedder(name_or_path: str | Path, **options: Any) -> Embeddings:
    """Open an embedder: a folder that `fit_static` wrote, a model folder, or a hub id.

    Args:
        name_or_path: what to open.
        options: handed to ``langchain_huggingface.HuggingFaceEmbeddings`` (not for our own folders).

    Raises:
        UserError: it is no embedder, or the hub cannot be reached.
    """
    folder = Path(name_or_path)
    if (folder / _MARK).is_file():
        from rag.static import StaticEmbedder

        return StaticEmbedder(folder)
    if isinstance(name_or_path, Path) and not folder.is_dir():
        raise UserError("no embedder here", "fit one first (stage `memory`) or name another folder", file=folder)
    from langchain_huggingface import HuggingFaceEmbeddings

    options = {"encode_kwargs": {"normalize_embeddings": True}, **options}
    try:
        return HuggingFaceEmbeddings(model_name=str(name_or_path), **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the embedder {name_or_path!s} could not be loaded ({type(error).__name__})",
            "check the name and the network, give the path of a local folder, or use `embedder: offline`",
        ) from error


def fingerprint(embedder: Embeddings) -> str:
    """A name that changes when the vectors would: stored beside every index, so that stale ones are rebuilt."""
    own = getattr(embedder, "fingerprint", None)
    if isinstance(own, str):
        return own
    name = getattr(embedder, "model_name", None) or getattr(embedder, "model", "")
    return f"{type(embedder).__module__}.{type(embedder).__qualname__}:{name}"


def _start(sides: list[list[list[str]]], dim: int, seed: int) -> tuple[dict[str, int], np.ndarray]:
    """Vocabulary (features seen twice, then hash buckets) and its random idf-scaled vectors."""
    texts = [set(side) for pair in sides for side in pair]
    counts = Counter(feature for text in texts for feature in text)
    kept = sorted(feature for feature, count in counts.items() if count > 1)
    vocabulary = {feature: i for i, feature in enumerate([*kept, *(f"#{i}" for i in range(BUCKETS))])}
    idf = np.full(len(vocabulary), np.log(len(texts)), dtype=np.float32)
    idf[: len(kept)] = [np.log(len(texts) / counts[feature]) for feature in kept]
    vectors = np.random.default_rng(seed).standard_normal((len(vocabulary), dim), dtype=np.float32)
    return vocabulary, vectors * idf[:, None] / np.sqrt(dim)


def _ids(side: list[str], vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary[feature] for feature in known(side, vocabulary)] or [len(vocabulary) - 1]


def _train(
    weights: np.ndarray,
    ids: list[list[list[int]]],
    *,
    epochs: int,
    seed: int,
    progress: Progress | None,
    batch: int = 256,
    rate: float = 0.01,
    temperature: float = 0.1,
) -> np.ndarray:
    """InfoNCE over (utterance, reply) with in-batch negatives, on one thread so that the sums come out the same."""
    import torch
    from torch.nn import functional as F

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bag = torch.nn.EmbeddingBag.from_pretrained(torch.from_numpy(weights), freeze=False)
        optimizer = torch.optim.Adam(bag.parameters(), lr=rate)
        order = np.random.default_rng(seed)
        steps = [part for _ in range(epochs) for part in _batches(order.permutation(len(ids)), batch)]
        for done, part in enumerate(steps, 1):
            users, replies = (_encode(bag, [ids[i][side] for i in part]) for side in (0, 1))
            logits = users @ replies.T / temperature
            target = torch.arange(len(part))
            loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress:
                progress(done, len(steps))
        return bag.weight.detach().numpy()
    finally:
        torch.set_num_threads(threads)


def _batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [part for start in range(0, len(order), size) if len(part := order[start : start + size]) > 1]


def _encode(bag: Any, rows: list[list[int]]) -> Any:
    import torch
    from torch.nn import functional as F

    offsets = torch.tensor(np.cumsum([0, *(len(row) for row in rows[:-1])]))
    return F.normalize(bag(torch.tensor([i for row in rows for i in row]), offsets), dim=1)


def _save(out: Path, vocabulary: dict[str, int], weights: np.ndarray) -> None:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=f"#{BUCKETS - 1}"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    with publishing(out) as folder:
        save_file({"embedding.weight": np.ascontiguousarray(weights)}, folder / "model.safetensors")
        tokenizer.save(str(folder / "tokenizer.json"))
        kinds = ("sentence_transformer.modules.StaticEmbedding", "sentence_transformer.modules.Normalize")
        write_json(
            folder / "modules.json",
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": "" if not i else f"{i}_Normalize",
                    "type": f"sentence_transformers.{k}",
                }
                for i, k in enumerate(kinds)
            ],
        )
        (folder / "1_Normalize").mkdir()
        digest = sha256_file(folder / "model.safetensors")
        write_json(folder / _MARK, {"format": 1, "dim": int(weights.shape[1]), "sha256": digest})


def read_mark(folder: Path) -> dict[str, Any]:
    """What `fit_static` noted about its folder: format, dim, sha256 of the vectors."""
    return read_json(folder / _MARK)
