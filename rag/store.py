"""A LangChain vector store on FAISS that keeps to files without pickle."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from gonggam.errors import UserError
from gonggam.files import publishing, read_json, sha256_file, write_json
from rag.embedders import fingerprint
from rag.kinds import FLAT_UP_TO, build, choose, read_index, write_index
from rag.seal import Seal, opened, sealed

if TYPE_CHECKING:
    import faiss

Kind = Literal["auto", "flat", "hnsw", "ivf"]
INDEX, DOCUMENTS = "index.faiss", "documents.jsonl"


class FaissStore(VectorStore):
    """Documents with unit vectors, searched by inner product (cosine); scores run from -1 to 1.

    Args:
        embedding: any LangChain embedder.
        kind: flat (exact), hnsw or ivf (approximate); auto chooses by the number of vectors.
        label: what else the vectors depend on; saved, and checked when the store is loaded.
    """

    def __init__(self, embedding: Embeddings, kind: Kind = "auto", label: str = "") -> None:
        self._embedding, self._kind, self._label = embedding, kind, label
        self._documents: list[Document] = []
        self._rows: dict[str, int] = {}
        self._index: faiss.Index | None = None
        self._on_gpu: faiss.Index | None = None

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def embeddings(self) -> Embeddings:
        """The embedder."""
        return self._embedding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> FaissStore:
        """Build a store of ``texts``; ``kwargs`` go to the constructor."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and add ``texts``; a known id is replaced. Returns the ids.

        Raises:
            ValueError: texts, metadatas and ids differ in number.
        """
        texts = list(texts)
        return self.add_vectors(embed(self._embedding, texts), texts, metadatas, ids=ids)

    def add_vectors(
        self,
        vectors: np.ndarray,
        texts: Sequence[str],
        metadatas: Sequence[dict] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Like `add_texts` with vectors already there, shape ``(texts, dim)``."""
        metadatas = list(metadatas) if metadatas is not None else [{} for _ in texts]
        names = [name or uuid.uuid4().hex for name in (ids or [None] * len(texts))]
        if not len(vectors) == len(texts) == len(metadatas) == len(names):
            raise ValueError(
                f"{len(texts)} texts, {len(vectors)} vectors, {len(metadatas)} metadatas, {len(names)} ids"
            )
        last = {name: i for i, name in enumerate(names)}
        self.delete([name for name in last if name in self._rows])
        keep = sorted(last.values())
        for i in keep:
            self._rows[names[i]] = len(self._documents)
            self._documents.append(Document(id=names[i], page_content=texts[i], metadata=dict(metadatas[i])))
        if keep:
            self._grow(unit(np.asarray(vectors, dtype=np.float32)[keep]))
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove documents and their vectors; all of them if ``ids`` is None. Unknown ids are passed over."""
        gone = set(self._rows) if ids is None else {name for name in ids if name in self._rows}
        if gone:
            keep = [i for i, document in enumerate(self._documents) if document.id not in gone]
            vectors = self.vectors()[keep]
            self._documents = [self._documents[i] for i in keep]
            self._rows = {str(document.id): i for i, document in enumerate(self._documents)}
            self._index = self._on_gpu = None
            if keep:
                self._grow(vectors)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Copies of the documents with these ids, in this order; unknown ids are passed over."""
        return [self._documents[self._rows[name]].model_copy(deep=True) for name in ids if name in self._rows]

    def vectors(self) -> np.ndarray:
        """All unit vectors in order of addition, shape ``(documents, dim)``."""
        if self._index is None:
            return np.zeros((0, 0), dtype=np.float32)
        return self._index.reconstruct_n(0, self._index.ntotal)

    def nearest(self, vector: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers and cosines of the ``k`` nearest documents, best first."""
        if self._index is None or k < 1:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        query = unit(np.asarray(vector, dtype=np.float32)[None])
        scores, rows = self._searcher(self._index).search(query, min(k, len(self._documents)))
        found = rows[0] >= 0
        return rows[0][found], scores[0][found]

    def cosines(self, vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Cosines of ``vector`` with the documents in ``rows``."""
        if self._index is None or not len(rows):
            return np.zeros(len(rows), dtype=np.float32)
        found = self._index.reconstruct_batch(np.asarray(rows, dtype=np.int64))
        return found @ unit(np.asarray(vector, dtype=np.float32)[None])[0]

    def document(self, row: int) -> Document:
        """The document in ``row``; not a copy."""
        return self._documents[row]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Callable[[Document], bool] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The ``k`` nearest documents that pass ``filter``, with their cosine, best first."""
        rows, scores = self.nearest(np.asarray(embedding), len(self) if filter else k)
        pairs = ((self._documents[row], float(score)) for row, score in zip(rows, scores, strict=True))
        passed = (pair for pair in pairs if filter is None or filter(pair[0]))
        return [(document.model_copy(deep=True), score) for document, score in passed][:k]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """The ``k`` documents nearest to the text ``query``, with their cosine."""
        return self.similarity_search_with_score_by_vector(self._embedding.embed_query(query), k, **kwargs)

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The ``k`` documents nearest to a vector."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, **kwargs)]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The ``k`` documents nearest to the text ``query``."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: min(max((cosine + 1) / 2, 0.0), 1.0)

    def save(self, folder: str | Path, seal: Seal | None = None) -> None:
        """Write index, documents and a description to ``folder``, whole or not at all; the first two sealed, if so."""
        with publishing(folder) as aside:
            if self._index is not None:
                write_index(self._index, aside / INDEX, seal)
            rows = ({"id": d.id, "text": d.page_content, "meta": d.metadata} for d in self._documents)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (aside / DOCUMENTS).write_bytes(sealed(lines.encode(), seal))
            about = {"format": 1, "kind": self._kind, "count": len(self), "embedder": self._origin}
            _describe(aside, about)

    @classmethod
    def load(
        cls, folder: str | Path, embedding: Embeddings, label: str = "", *, seal: Seal | None = None
    ) -> FaissStore:
        """Open what `save` wrote.

        Raises:
            UserError: missing, damaged, sealed with another key, or made with another embedder.
        """
        folder = Path(folder)
        about = read_json(folder / "store.json")
        if not isinstance(about, dict) or about.get("format") != 1:
            raise UserError("this index is damaged", "build it again", file=folder)
        store = cls(embedding, about["kind"], label)
        if about["embedder"] != store._origin:
            raise UserError("this index was made with another embedder", "build it again", file=folder)
        for name, digest in about["sha256"].items():
            if not (folder / name).is_file() or sha256_file(folder / name) != digest:
                raise UserError("this index is damaged", "build it again", file=folder / name)
        for line in opened((folder / DOCUMENTS).read_bytes(), seal).splitlines():
            row = json.loads(line)
            store._rows[row["id"]] = len(store._documents)
            store._documents.append(Document(id=row["id"], page_content=row["text"], metadata=row["meta"]))
        if store._documents:
            store._index = read_index(folder / INDEX, seal)
        return store

    def _searcher(self, index: faiss.Index) -> faiss.Index:
        """A copy on the GPU where faiss was built for one, finds one and the store is large; else the index itself."""
        import faiss

        movable = not isinstance(index, faiss.IndexHNSW)
        if len(self) <= FLAT_UP_TO or not movable or not hasattr(faiss, "StandardGpuResources"):
            return index
        if self._on_gpu is None and faiss.get_num_gpus():
            self._on_gpu = faiss.index_cpu_to_all_gpus(index)
        return self._on_gpu or index

    @property
    def _origin(self) -> str:
        return f"{fingerprint(self._embedding)} {self._label}".strip()

    def _grow(self, vectors: np.ndarray) -> None:
        self._on_gpu = None
        wanted = choose(len(self._documents)) if self._kind == "auto" else self._kind
        if self._index is None:
            self._index = build(vectors, wanted)
        elif self._kind == "auto" and wanted != choose(len(self._documents) - len(vectors)):
            self._index = build(np.vstack([self.vectors(), vectors]), wanted)
        else:
            self._index.add(vectors)


def reseal(folder: str | Path, seal: Seal) -> None:
    """Seal what `FaissStore.save` wrote anew, whatever it was sealed with.

    Raises:
        UserError: it was sealed with a key that is not known, or is damaged.
    """
    folder = Path(folder)
    about = read_json(folder / "store.json")
    with publishing(folder) as aside:
        for name in about["sha256"]:
            (aside / name).write_bytes(sealed(opened((folder / name).read_bytes(), seal), seal))
        _describe(aside, about)


def _describe(folder: Path, about: dict[str, Any]) -> None:
    """Write down what lies in a folder, so that damage is noticed."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    write_json(folder / "store.json", {**about, "sha256": {path.name: sha256_file(path) for path in files}})


def embed(embedding: Embeddings, texts: Sequence[str]) -> np.ndarray:
    """Vectors of ``texts`` as float32, shape ``(texts, dim)``."""
    encode = getattr(embedding, "encode", None)
    vectors = encode(list(texts)) if encode else embedding.embed_documents(list(texts))
    return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1 if texts else 0)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
