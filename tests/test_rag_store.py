"""FaissStore: LangChain's own tests, exactness, files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

from gonggam.errors import UserError
from rag.kinds import choose
from rag.store import FaissStore


class Numbers(DeterministicFakeEmbedding):
    """Vectors that do not depend on a model."""

    fingerprint: str = "numbers"


@pytest.fixture
def embedding():
    return Numbers(size=8)


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:.*is marked with '@pytest.mark.asyncio'")
class TestFlat(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return FaissStore(self.get_embeddings())


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:.*is marked with '@pytest.mark.asyncio'")
class TestHnsw(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return FaissStore(self.get_embeddings(), kind="hnsw")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=30))
def test_after_any_additions_and_deletions_search_is_exact(steps):
    store, kept = FaissStore(Numbers(size=8)), {}
    for add, number in steps:
        if add:
            store.add_texts([f"text {number}"], ids=[str(number)])
            kept[str(number)] = f"text {number}"
        else:
            store.delete([str(number)])
            kept.pop(str(number), None)
    query = np.array(store.embeddings.embed_query("text 3"))
    vectors = {i: np.array(store.embeddings.embed_query(text)) for i, text in kept.items()}
    best = sorted(vectors, key=lambda i: -(vectors[i] @ query) / np.linalg.norm(vectors[i]))
    assert [d.id for d in store.similarity_search_by_vector(query.tolist(), k=20)] == best


def test_saved_and_loaded_store_answers_alike_without_pickle(embedding, tmp_path):
    store = FaissStore.from_texts(["가", "나", "다"], embedding, [{"n": i} for i in range(3)])
    store.save(tmp_path / "store")
    again = FaissStore.load(tmp_path / "store", embedding)
    assert again.similarity_search_with_score("가", k=3) == store.similarity_search_with_score("가", k=3)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["documents.jsonl", "index.faiss", "store.json"]


def test_a_filter_sees_all_documents(embedding):
    store = FaissStore.from_texts([f"t{i}" for i in range(200)], embedding, [{"user": i} for i in range(200)])
    found = store.similarity_search("t5", k=1, filter=lambda document: document.metadata["user"] == 137)
    assert [d.page_content for d in found] == ["t137"]


def test_it_serves_as_a_retriever(embedding):
    retriever = FaissStore.from_texts(["가", "나"], embedding).as_retriever(search_kwargs={"k": 1})
    assert retriever.invoke("나")[0].page_content == "나"


@pytest.mark.parametrize("name", ["index.faiss", "documents.jsonl", "store.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_damage_is_a_user_error(embedding, tmp_path, name, damage):
    FaissStore.from_texts(["가", "나"], embedding).save(tmp_path / "store")
    path = tmp_path / "store" / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"[" + data[1:])
    with pytest.raises(UserError):
        FaissStore.load(tmp_path / "store", embedding)


def test_another_embedder_is_refused(embedding, tmp_path):
    FaissStore.from_texts(["가"], embedding).save(tmp_path / "store")
    about = json.loads((tmp_path / "store" / "store.json").read_text())
    assert about["embedder"] == "numbers"
    with pytest.raises(UserError, match="another embedder"):
        FaissStore.load(tmp_path / "store", Numbers(size=8, fingerprint="others"))


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_approximate_indexes_find_nearly_all(embedding, kind):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 32))
    vectors = (centres[rng.integers(50, size=3000)] + 0.5 * rng.standard_normal((3000, 32))).astype(np.float32)
    exact, store = FaissStore(embedding, "flat"), FaissStore(embedding, kind)
    for index in (exact, store):
        index.add_vectors(vectors[:2000], [str(i) for i in range(2000)])
        index.add_vectors(vectors[2000:], [str(i) for i in range(2000, 3000)])
    hits = [len(set(store.nearest(v, 10)[0]) & set(exact.nearest(v, 10)[0])) for v in vectors[:100]]
    assert sum(hits) >= 950
    store.delete([store.document(0).id])
    assert len(store) == 2999
    assert len(store.vectors()) == 2999


def test_an_empty_store_finds_nothing_and_is_saved_as_such(embedding, tmp_path):
    store = FaissStore(embedding)
    assert store.add_texts([]) == []
    assert store.similarity_search("가") == []
    assert store.vectors().shape == (0, 0)
    assert store.cosines(np.ones(8), np.array([0, 1])).tolist() == [0, 0]
    store.save(tmp_path / "store")
    assert len(FaissStore.load(tmp_path / "store", embedding)) == 0
    store.add_texts(["가"])
    assert store.delete()
    assert len(store) == 0


def test_cosines_and_relevance_are_those_of_the_vectors(embedding):
    store = FaissStore.from_texts(["가", "나"], embedding)
    query = np.array(embedding.embed_query("가"))
    assert store.cosines(query, np.array([1, 0]))[1] == pytest.approx(1, abs=1e-5)
    (_, best), (_, other) = store.similarity_search_with_relevance_scores("가", k=2)
    assert best == pytest.approx(1, abs=1e-5)
    assert 0 <= other < best


@pytest.mark.parametrize("about", ["[]", '{"format": 2}'])
def test_a_description_of_another_make_is_damage(embedding, tmp_path, about):
    FaissStore(embedding).save(tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text(about)
    with pytest.raises(UserError, match="damaged"):
        FaissStore.load(tmp_path / "store", embedding)


def test_kind_follows_size():
    assert [choose(n) for n in (10, 100_000, 10_000_000)] == ["flat", "hnsw", "ivf"]


def test_unequal_lengths_are_refused(embedding):
    with pytest.raises(ValueError, match="2 texts"):
        FaissStore(embedding).add_texts(["a", "b"], [{}])


def test_a_large_store_is_searched_on_the_gpu_and_copied_anew_after_a_change(embedding, monkeypatch):
    import faiss

    copies = []

    def copy(index):
        copies.append(index.ntotal)
        return faiss.clone_index(index)

    monkeypatch.setattr("rag.store.FLAT_UP_TO", 10)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", copy, raising=False)
    store = FaissStore(embedding, "flat")
    store.add_texts([str(i) for i in range(10)])
    store.similarity_search("3", k=1)
    assert copies == []
    store.add_texts(["10", "11"])
    assert [store.similarity_search(text, k=1)[0].page_content for text in ("3", "11")] == ["3", "11"]
    assert copies == [12]
    store.add_texts(["12"])
    assert store.similarity_search("12", k=1)[0].page_content == "12"
    assert copies == [12, 13]
