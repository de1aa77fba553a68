"""Kinds of FAISS index: which for how many vectors, made, written and read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from rag.seal import MARK, Seal, opened, sealed

if TYPE_CHECKING:
    import faiss

# Up to here exact search takes a few milliseconds; above, HNSW; above that its graph takes too long to build, so IVF.
FLAT_UP_TO, HNSW_UP_TO = 50_000, 200_000


def choose(count: int) -> Literal["flat", "hnsw", "ivf"]:
    """The kind of index for ``count`` vectors."""
    return "flat" if count <= FLAT_UP_TO else "hnsw" if count <= HNSW_UP_TO else "ivf"


def build(vectors: np.ndarray, kind: str) -> faiss.Index:
    """An index of ``vectors``, float32 of shape ``(count, dim)``, by inner product."""
    import faiss

    dim = vectors.shape[1]
    if kind == "flat":
        index: faiss.Index = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
    else:
        lists = max(1, min(int(2 * math.sqrt(len(vectors))), len(vectors) // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64
        index.train(vectors)
        index.nprobe = max(8, lists // 32)
        index.make_direct_map()
    index.add(vectors)
    return index


def write_index(index: faiss.Index, file: Path, seal: Seal | None) -> None:
    """Write an index to a file of its own, sealed if so."""
    import faiss

    if seal is None:
        faiss.write_index(index, str(file))
    else:
        file.write_bytes(sealed(faiss.serialize_index(index).tobytes(), seal))


def read_index(file: Path, seal: Seal | None) -> faiss.Index:
    """Open what `write_index` wrote.

    Raises:
        UserError: it was sealed with a key that is not known.
    """
    import faiss

    with file.open("rb") as begun:
        if begun.read(len(MARK)) != MARK:  # faiss reads a large one with less memory than we would
            return faiss.read_index(str(file))
    return faiss.deserialize_index(np.frombuffer(opened(file.read_bytes(), seal), dtype=np.uint8))
