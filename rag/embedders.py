"""Embedders: the offline one, trained on a run's own exchanges in seconds, and those of the model hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gonggam.errors import UserError
from gonggam.files import publishing, sha256_tree, write_json
from gonggam.progress import Progress
from rag.korean import KiwiSpace, content

if TYPE_CHECKING:
    from kiwipiepy import Token
    from langchain_core.embeddings import Embeddings

    from rag.static import Outside

# Fewer texts than this do not tell which direction they all share.
_ENOUGH_TEXTS = 100


def fit_static(
    exchanges: Sequence[tuple[str, str]],
    out: str | Path,
    progress: Progress | None = None,
    *,
    epochs: int = 10,
    seed: int = 0,
) -> Embeddings:
    """Train the offline embedder on (user utterance, reply) pairs and save it to the folder ``out``.

    A text is the sum of its content morphemes' vectors. These start from the vectors of Kiwi's own language model, less
    their mean and first common direction and weighted by inverse document frequency (after Arora, Liang and Ma, ICLR
    2017), and are trained with in-batch negatives (InfoNCE, van den Oord et al. 2018) to bring an utterance near its
    reply and near itself with words left out (SimCSE, Gao et al. 2021). The folder has the layout of sentence-
    transformers' ``StaticEmbedding`` and holds no pickle.

    Args:
        exchanges: pairs of utterance and reply; at least 2.
        out: folder to write; replaced if it exists.
        progress: called as ``progress(done, total)``.

    Raises:
        UserError: fewer than two exchanges, or the folder cannot be written.
    """
    if len(exchanges) < 2:
        raise UserError("the offline embedder needs at least 2 exchanges", "add conversations to the prepared data")
    from threadpoolctl import threadpool_limits

    sides = [[content(text) for text in pair] for pair in exchanges]
    with threadpool_limits(limits=1):  # so that sums come out the same on any machine
        vocabulary, weights, outside = _start([side for pair in sides for side in pair], seed)
        ids = [[_ids(side, vocabulary) for side in pair] for pair in sides]
        weights = _train(weights, ids, epochs=epochs, seed=seed, progress=progress)
    _save(Path(out), vocabulary, weights, outside)
    return load_embedder(out)


def load_embedder(name_or_path: str | Path, **options: Any) -> Embeddings:
    """Open an embedder: a folder that `fit_static` wrote, a model folder, or a hub id.

    Args:
        name_or_path: what to open.
        options: handed to ``langchain_huggingface.HuggingFaceEmbeddings`` (not for our own folders).

    Raises:
        UserError: it is no embedder, or the hub cannot be reached.
    """
    from rag.static import MARK, StaticEmbedder

    folder = Path(name_or_path)
    if (folder / MARK).is_file():
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


def _start(texts: list[list[Token]], seed: int) -> tuple[dict[str, int], np.ndarray, Outside]:
    """Vocabulary (words seen twice), its starting vectors, and how other words are placed."""
    from rag.static import UNKNOWN, Outside, key, known_id

    counts = Counter(key(token) for text in texts for token in text)
    words = {key(token): token for text in texts for token in text if counts[key(token)] > 1}
    spread = Counter(word for text in texts for word in {key(token) for token in text})
    vocabulary = {word: i for i, word in enumerate([UNKNOWN, *sorted(words)])}
    space = KiwiSpace.measure(seed)
    if len(texts) >= _ENOUGH_TEXTS:
        found = {word: space.vector(token.id) for word, token in words.items() if not token.oov}
        means = np.array([(counts[word], *vector) for word, vector in found.items() if vector is not None], np.float32)
        space = replace(space, mean=np.average(means[:, 1:], axis=0, weights=means[:, 0]))
    plain = Outside(space, np.zeros((0, space.dim), np.float32), float(np.log1p(len(texts))))
    weights = np.zeros((len(vocabulary), space.dim), dtype=np.float32)
    for word, token in words.items():
        idf = np.log1p(len(texts) / (spread[word] + 1))
        weights[vocabulary[word]] = idf * plain.vector(known_id(token), token.form)
    if len(texts) < _ENOUGH_TEXTS:
        return vocabulary, weights, plain
    sums = np.stack([weights[_ids(text, vocabulary)].sum(axis=0) for text in texts])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    common = np.linalg.svd(sums, full_matrices=False)[2][:1]
    return vocabulary, weights - weights @ common.T @ common, replace(plain, common=common)


def _ids(text: list[Token], vocabulary: dict[str, int]) -> list[int]:
    from rag.static import key

    return [at for token in text if (at := vocabulary.get(key(token)))] or [0]


def _train(
    weights: np.ndarray,
    ids: list[list[list[int]]],
    *,
    epochs: int,
    seed: int,
    progress: Progress | None,
    batch: int = 256,
    rate: float = 0.01,
    temperature: float = 0.05,
    dropout: float = 0.3,
) -> np.ndarray:
    """InfoNCE with in-batch negatives, on one thread."""
    import torch
    from torch.nn import functional as F

    threads, order = torch.get_num_threads(), np.random.default_rng(seed)
    torch.set_num_threads(1)
    try:
        bag = torch.nn.EmbeddingBag.from_pretrained(torch.from_numpy(weights), freeze=False, sparse=True, mode="mean")
        optimizer = torch.optim.SparseAdam(list(bag.parameters()), lr=rate)
        steps = [part for _ in range(epochs) for part in _batches(order.permutation(len(ids)), batch)]
        for done, part in enumerate(steps, 1):
            sides = ([_thin(ids[i][side], dropout, order) for i in part] for side in (0, 1, 0))
            user, reply, again = (_encode(bag, side) for side in sides)
            target = torch.arange(len(part))
            near, same = user @ reply.T / temperature, user @ again.T / temperature
            loss = F.cross_entropy(near, target) + F.cross_entropy(near.T, target) + F.cross_entropy(same, target)
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


def _thin(row: list[int], dropout: float, order: np.random.Generator) -> list[int]:
    return [i for i, kept in zip(row, order.random(len(row)) >= dropout, strict=True) if kept] or row


def _encode(bag: Any, rows: list[list[int]]) -> Any:
    import torch
    from torch.nn import functional as F

    offsets = torch.tensor(np.cumsum([0, *(len(row) for row in rows[:-1])]))
    return F.normalize(bag(torch.tensor([i for row in rows for i in row]), offsets), dim=1)


def _save(out: Path, vocabulary: dict[str, int], weights: np.ndarray, outside: Outside) -> None:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    from rag.static import MARK, UNKNOWN

    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    space = {
        "landmarks": outside.space.landmarks,
        "projection": outside.space.projection,
        "mean": outside.space.mean,
        "common": outside.common,
        "rare": np.array([outside.rare], dtype=np.float32),
    }
    kind = "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"
    with publishing(out) as folder:
        save_file({"embedding.weight": np.ascontiguousarray(weights)}, folder / "model.safetensors")
        save_file({name: np.ascontiguousarray(array) for name, array in space.items()}, folder / "kiwi.safetensors")
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
        write_json(folder / MARK, {"format": 1, "dim": int(weights.shape[1]), "sha256": sha256_tree(folder)})
