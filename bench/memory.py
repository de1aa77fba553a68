"""Speed of the memory: recall over one user's 10,000 exchanges, 10,000 users on disk, a million answers.

Run from the repository root: ``python bench/memory.py [recall] [users] [million]``; writes bench/results/memory.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from langchain_core.embeddings import Embeddings
from record import Row, publish

from rag.kinds import choose
from rag.memory import MemoryStore
from rag.options import MemoryOptions
from rag.store import FaissStore, unit

WORDS = ("강아지 산책 면접 회사 언니 결혼식 여행 병원 친구 엄마 아빠 시험 커피 바다 겨울 여름 이사 월급").split()  # noqa: SIM905


class Topics(Embeddings):
    """Vectors around 500 centres, made in no time, so that what is timed is the search."""

    fingerprint = "bench"

    def __init__(self, dim: int = 256) -> None:
        self.rng = np.random.default_rng(0)
        self.centres = self.rng.standard_normal((500, dim)).astype(np.float32)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Random vectors, shape ``(texts, dim)``."""
        at = self.rng.integers(len(self.centres), size=len(texts))
        return unit(self.centres[at] + 0.6 * self.rng.standard_normal((len(texts), self.centres.shape[1]), np.float32))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The same as lists."""
        return self.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """One random vector."""
        return self.encode([text])[0].tolist()


def percentiles(seconds: list[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    return f"p50 {1000 * np.percentile(seconds, 50):.2f} ms, p95 {p95_ms(seconds):.2f} ms"


def p95_ms(seconds: list[float]) -> float:
    """95th percentile in milliseconds."""
    return 1000 * float(np.percentile(seconds, 95))


def timed(call: Callable[[int], object], times: int) -> list[float]:
    """Seconds of each of ``times`` calls ``call(i)``."""
    taken = []
    for i in range(times):
        start = time.perf_counter()
        call(i)
        taken.append(time.perf_counter() - start)
    return taken


def sentence(i: int) -> str:
    """The ``i``-th made-up message."""
    rng = np.random.default_rng(i)
    return " ".join(rng.choice(WORDS, 6)) + f" 이야기 {i}"


def recall(folder: Path) -> list[Row]:
    """Recall over 10,000 memories of one user, hybrid, through the lock and the log's check."""
    users = MemoryStore(folder, Topics(), MemoryOptions(half_life_days=90))
    memory = users.for_user("u")
    start = time.perf_counter()
    memory.add_many([(sentence(i), "그랬군요") for i in range(10_000)])
    added = time.perf_counter() - start
    memory.recall("처음", 2)
    taken = timed(lambda i: memory.recall(sentence(20_000 + i), 2), 300)
    adds = timed(lambda i: memory.add(sentence(30_000 + i), "네"), 100)
    users.close()
    again = MemoryStore(folder, Topics(), users.settings)
    loading = timed(lambda i: again.for_user("u").recall("처음", 2), 1)[0]
    return [
        ("recall over 10,000 memories of one user", percentiles(taken), {"recall_ms": p95_ms(taken)}),
        ("add one exchange to them, on disk when it returns", percentiles(adds)),
        ("index 10,000 exchanges", f"{added:.1f} s"),
        ("load them from disk and recall", f"{loading * 1000:.0f} ms"),
    ]


def many_users(folder: Path, count: int = 10_000, limit: int = 64) -> list[Row]:
    """Users far beyond what is held in RAM, visited at random."""
    import psutil

    users = MemoryStore(folder, Topics(), MemoryOptions(max_loaded_users=limit))
    timed(lambda i: users.for_user(f"user {i}").add(sentence(i), "네"), count)
    users.close()
    process, rng = psutil.Process(), np.random.default_rng(0)
    before = process.memory_info().rss
    at = rng.integers(count, size=1000)
    taken = timed(lambda i: users.for_user(f"user {at[i]}").recall("면접", 2), len(at))
    grown = (process.memory_info().rss - before) / 2**20
    after = f"{users.loaded}, {grown:.0f} MB over 1,000 visits"
    return [
        (f"visit one of {count:,} users, {limit} in RAM", percentiles(taken)),
        ("users in RAM afterwards, growth of resident memory", after, {"users_loaded": users.loaded}),
    ]


def million(count: int = 1_000_000, dim: int = 128) -> list[Row]:
    """A million answers: HNSW against exact search."""
    import faiss

    source = Topics(dim)
    queries = source.encode([""] * 200)
    store, exact = FaissStore(source), faiss.IndexFlatIP(dim)
    vectors = source.encode([""] * count)
    exact.add(vectors)
    truth = exact.search(queries, 10)[1]
    start = time.perf_counter()
    store.add_vectors(vectors, [""] * count)
    built = time.perf_counter() - start
    found = []
    taken = timed(lambda i: found.append(store.nearest(queries[i], 10)[0]), len(queries))
    hits = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)]))
    what = f"{count:,} vectors of {dim}, {choose(count)}, {faiss.omp_get_max_threads()} thread(s)"
    return [
        (f"search {what}", percentiles(taken), {"million_ms": p95_ms(taken)}),
        ("recall@10 against exact search", f"{hits:.3f}", {"million_recall": hits}),
        ("build", f"{built:.0f} s"),
    ]


def main(wanted: list[str]) -> None:
    """Measure what is wanted, all if nothing is named; only then the result file is written."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if not wanted or "recall" in wanted:
            rows += recall(Path(folder) / "one")
        if not wanted or "users" in wanted:
            rows += many_users(Path(folder) / "many")
    if not wanted or "million" in wanted:
        rows += million()
    for what, figure, *_ in rows:
        print(f"| {what} | {figure} |")
    if not wanted:
        about = "Embedding is not counted: vectors are drawn at random around 500 centres."
        publish("memory", "Memory: speed", rows, ["faiss-cpu", "numpy", "kiwipiepy"], about=about)


if __name__ == "__main__":
    main(sys.argv[1:])
