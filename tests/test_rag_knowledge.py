"""The offline embedder, the knowledge base, fusion, and the measures of both."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gonggam.errors import UserError
from rag.bench import memory_bench, read_users
from rag.calibrate import settled, unrelated_level, write_threshold
from rag.embedders import fingerprint, fit_static, load_embedder
from rag.fusion import reciprocal_rank
from rag.knowledge import KnowledgeBase
from rag.korean import KiwiSpace, kiwi, morphemes
from rag.lexical import Bm25, ranking
from rag.metrics import chance_at_k, compare, hit_at_k
from rag.options import MemoryOptions
from rag.rerank import load_reranker

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "data_prep" / "samples"
TOPICS = {
    "개": ["강아지가 아파요", "우리 개가 밥을 안 먹어요", "푸들 산책을 시켰어요", "반려견이 떠났어요"],
    "일": ["면접에서 떨어졌어요", "회사에서 혼났어요", "출근하기 싫어요", "취업이 안 돼요"],
    "잠": ["잠이 안 와요", "새벽에 자꾸 깨요", "밤마다 뒤척여요", "불면증이 심해요"],
}
TALKS = [[(text, f"{text} 라고 하셨군요")] for texts in TOPICS.values() for text in texts]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return fit_static([pair for talk in TALKS for pair in talk], tmp_path_factory.mktemp("e") / "offline", epochs=2)


@pytest.fixture(scope="module")
def base(embedder, tmp_path_factory):
    rows = [
        {"question": text, "answer": f"{topic} 답", "meta": {"category": topic}}
        for topic, texts in TOPICS.items()
        for text in texts
    ]
    folder = tmp_path_factory.mktemp("k") / "knowledge"
    KnowledgeBase.build(rows, embedder, folder)
    return KnowledgeBase.load(folder, embedder)


def test_importing_the_room_loads_nothing_heavy():
    heavy = ["torch", "transformers", "faiss", "pandas", "kiwipiepy", "sentence_transformers", "langchain_core"]
    modules = "rag, rag.memory, rag.knowledge, rag.embedders, rag.options, rag.bench, rag.metrics, rag.calibrate"
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"


def test_like_meanings_are_near_without_a_shared_word(embedder):
    dog, puppy, job = embedder.encode(["강아지", "푸들", "취업"])
    assert dog @ puppy > dog @ job


def test_a_name_never_seen_matches_itself_only(embedder):
    name, again, other = embedder.encode(["쿠앙이", "쿠앙이가", "뚜벨리가"])
    assert name @ again > 0.7
    assert name @ other < 0.5


def test_vectors_are_of_unit_length_and_empty_texts_are_zero(embedder):
    vectors = embedder.encode(["강아지", "", "!!", "ㅠㅠ", "hello 3"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 0, 0, 1], abs=1e-5)


def test_the_same_seed_gives_the_same_embedder(embedder, tmp_path):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = fit_static([pair for talk in TALKS for pair in talk], tmp_path / "again", epochs=2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert again.fingerprint == embedder.fingerprint
    other = fit_static([pair for talk in TALKS for pair in talk], tmp_path / "other", epochs=2, seed=1)
    assert other.fingerprint != embedder.fingerprint


def test_a_saved_embedder_holds_no_pickle_and_opens_again(embedder):
    assert not [p for p in embedder.folder.rglob("*") if p.suffix in {".pkl", ".pt", ".bin"}]
    again = load_embedder(embedder.folder)
    assert again.embed_query("강아지") == embedder.embed_query("강아지")
    assert again.embed_documents(["강아지", "취업"]) == [embedder.embed_query(text) for text in ("강아지", "취업")]


def test_progress_is_reported_to_the_end(tmp_path):
    seen = []
    fit_static(
        [("가방", "나무"), ("강", "산")], tmp_path / "e", lambda done, total: seen.append((done, total)), epochs=3
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_with_enough_texts_what_all_have_in_common_says_nothing(tmp_path):
    polite = [
        (f"{thing}가 있어요", f"{thing}가 있군요")
        for thing in ["나무", "바다", "구름", "의자", "사과", "연필", "시계", "가방"]
    ]
    few = fit_static(polite, tmp_path / "few", epochs=0)
    many = fit_static(polite * 10, tmp_path / "many", epochs=0)
    texts = [one for one, _ in polite]
    alike = [float((one.encode(texts) @ one.encode(texts).T).mean()) for one in (few, many)]
    assert alike[1] < alike[0]


def test_too_few_exchanges_and_missing_folders_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        fit_static([("가", "나")], tmp_path / "e")
    assert not (tmp_path / "e").exists()
    with pytest.raises(UserError, match="no embedder"):
        load_embedder(tmp_path / "none")


@pytest.mark.parametrize("name", ["model.safetensors", "kiwi.safetensors", "tokenizer.json"])
def test_a_damaged_embedder_is_a_user_error(tmp_path, name):
    fit_static([("강아지", "고양이"), ("회사", "학교")], tmp_path / "e", epochs=1)
    (tmp_path / "e" / name).write_bytes(b"{}")
    with pytest.raises(UserError):
        load_embedder(tmp_path / "e")


def test_an_unreachable_hub_says_which_model_was_wanted(monkeypatch):
    def unreachable(**options):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setitem(sys.modules, "langchain_huggingface", SimpleNamespace(HuggingFaceEmbeddings=unreachable))
    with pytest.raises(UserError, match=r"nobody/no-such-embedder.*local folder"):
        load_embedder("nobody/no-such-embedder")


def test_an_unreachable_reranker_says_which_model_was_wanted(monkeypatch):
    def unreachable(name):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(CrossEncoder=unreachable))
    with pytest.raises(UserError, match=r"nobody/no-such-reranker.*local folder"):
        load_reranker("nobody/no-such-reranker")


def test_a_cross_encoder_of_a_folder_scores_every_text(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "가", "나", "다"])}
    BertTokenizerFast(vocab=words, model_max_length=32).save_pretrained(tmp_path)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=8, max_position_embeddings=32, num_labels=1, **shape)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    rerank = load_reranker(str(tmp_path))
    one, other = rerank("가", ["나", "다 다"])
    assert one != other
    assert rerank("가", ["다 다", "나"]) == pytest.approx([other, one])


def test_embedders_of_other_makers_are_told_apart_by_their_model():
    class Named:
        def __init__(self, **names):
            vars(self).update(names)

    found = [Named(model_name="a"), Named(model_name="b"), Named(model="a"), Named(), Named(fingerprint="a")]
    names = [fingerprint(one) for one in found]
    assert names[4] == "a"
    assert names[0] == names[2] != names[1]
    assert names[3].endswith("Named:")


def test_kiwi_space_keeps_the_cosines_of_kiwi():
    space = KiwiSpace.measure()
    pairs = [("강아지", "고양이"), ("면접", "합격"), ("사랑", "애정")]
    ids = {t.form: t.id for pair in pairs for word in pair for t in kiwi().tokenize(word)}
    for one, other in pairs:
        cosine = float(space.vector(ids[one]) @ space.vector(ids[other]))
        assert cosine == pytest.approx(kiwi().morpheme_similarity(ids[one], ids[other]), abs=0.01)
    assert space.vector(10**9) is None
    assert space.vector(-1) is None


def test_morphemes_are_stems_without_particles():
    assert morphemes("강아지가 밥을 먹었어요!!") == ["강아지", "밥", "먹"]


@given(
    st.lists(st.lists(st.sampled_from("abcde"), max_size=6), min_size=1, max_size=8), st.lists(st.sampled_from("abcx"))
)
def test_bm25_stays_below_its_bound_and_ignores_what_does_not_match(documents, query):
    index = Bm25()
    for document in documents:
        index.add_weighted(Counter(document))
    scores = index.scores(query)
    assert (scores <= index.most(query) + 1e-5).all()
    assert [s > 0 for s in scores] == [bool(set(d) & set(query)) for d in documents]
    assert ranking(scores, 100) == sorted(np.flatnonzero(scores > 0), key=lambda i: (-scores[i], i))


def test_no_documents_and_no_wish_give_nothing():
    assert Bm25().scores(["가"]).tolist() == []
    assert ranking(np.ones(3), 0) == ranking(np.zeros(0), 5) == []


def test_reciprocal_rank_of_one_ranking_keeps_it_and_agreement_wins():
    assert list(reciprocal_rank([([3, 1, 2], 1.0)])) == [3, 1, 2]
    fused = reciprocal_rank([([1, 2, 3], 1.0), ([2, 3, 1], 1.0)])
    assert next(iter(fused)) == 2
    assert all(0 < score <= 1 for score in fused.values())


def test_the_knowledge_base_answers_with_what_people_wrote(base):
    hit = base.search("강아지가 아파요", 1)[0]
    assert (hit.answer, hit.meta) == ("개 답", {"category": "개"})
    assert [h.answer for h in base.search("", 2)]
    assert len(base.search("면접", 100)) == 12


def test_hits_are_counted_against_chance(base):
    questions = [
        {"question": "고양이가 아파요", "category": "개"},
        {"question": "회사 그만두고 싶어요", "category": "일"},
    ]
    assert hit_at_k(base, questions, 12) == 1.0
    assert chance_at_k(base, questions, 12) == 1.0
    assert chance_at_k(base, questions, 1) == pytest.approx(1 / 3)
    table = compare(base, questions, (1, 3))
    assert set(table) == {"dense", "bm25", "hybrid", "chance", "questions"}
    assert table["hybrid"]["hit@3"] >= table["chance"]["hit@3"]


def test_no_answers_is_a_user_error(embedder, tmp_path):
    with pytest.raises(UserError):
        KnowledgeBase.build([], embedder, tmp_path / "k")


def test_the_threshold_is_measured_kept_and_overruled_by_the_recipe(embedder, tmp_path):
    level = unrelated_level(TALKS, embedder, memories=5)
    assert 0 <= level < 1
    assert level == unrelated_level(TALKS, embedder, memories=5)
    assert unrelated_level(TALKS[:3], embedder) == 0
    write_threshold(tmp_path, level)
    assert settled(MemoryOptions(), tmp_path).threshold == level
    assert settled(MemoryOptions(threshold=0.9), tmp_path).threshold == 0.9
    assert settled(MemoryOptions(), tmp_path / "none").threshold is None


def test_the_memory_benchmark_scores_what_it_should(embedder, tmp_path):
    turns = [
        ["user", "강아지 이름은 보리야"],
        ["assistant", "예쁘네요"],
        ["user", "회사에서 혼났어"],
        ["assistant", "저런"],
    ]
    questions = [
        {"query": "강아지 이름", "gold": [[0, 0]], "kind": "direct"},
        {"query": "세탁기 소리", "gold": [], "kind": "none"},
    ]
    row = {"user": "u", "sessions": [{"date": "2026-01-01", "turns": turns}], "questions": questions}
    (tmp_path / "users.jsonl").write_text(json.dumps(row), "utf-8")
    users, steps = read_users(tmp_path / "users.jsonl"), []

    def shortest_first(query, texts):
        return [-len(text) for text in texts]

    rows = memory_bench(users, {"e": embedder}, reranker=shortest_first, progress=lambda *step: steps.append(step))
    assert steps == [(done, len(rows)) for done in range(1, len(rows) + 1)]
    table = {r["method"]: r for r in rows}
    assert table["hybrid, sum + reranker"]["recall@1"] == 0  # the other exchange is shorter
    assert table["no memory"]["recall@5"] == 0
    assert table["no memory"]["false_recall"] == 0
    assert [table["recent window"][f"recall@{k}"] for k in (1, 2)] == [0, 1]
    assert table["hybrid, sum"]["recall@1"] == table["BM25"]["mrr"] == 1
    assert table["dense"]["auc"] == 1
    assert set(table["dense"]["by_kind"]) == {"direct"}


@pytest.mark.parametrize(
    "row",
    [
        '{"user": "u"}',
        '{"user": "u", "sessions": [], "questions": [{"query": "q", "gold": [[0, 0]], "kind": "x"}]}',
        "[]",
    ],
)
def test_a_malformed_benchmark_file_names_the_line(tmp_path, row):
    (tmp_path / "users.jsonl").write_text(row, "utf-8")
    with pytest.raises(UserError, match=r"users\.jsonl:1"):
        read_users(tmp_path / "users.jsonl")


def test_the_sample_users_are_read_whole():
    users = read_users(SAMPLES / "memory_bench" / "users.jsonl")
    assert len(users) == 24
    assert sum(bool(q.gold) for user in users for q in user.questions) == 168


def test_the_bench_command_compares_and_writes_its_rows(embedder, tmp_path):
    from typer.testing import CliRunner

    from pipeline.cli_memory import app

    turns = [["user", "강아지 이름은 보리야"], ["assistant", "예쁘네요"]]
    questions = [{"query": "강아지 이름", "gold": [[0, 0]], "kind": "direct"}]
    row = {"user": "u", "sessions": [{"date": "2026-01-01", "turns": turns}], "questions": questions}
    (tmp_path / "users.jsonl").write_text(json.dumps(row), "utf-8")
    options = ["--embedder", str(embedder.folder), "--out", str(tmp_path / "rows.json")]
    result = CliRunner().invoke(app, ["memory", str(tmp_path / "users.jsonl"), *options])
    assert result.exit_code == 0, result.output
    assert "hybrid" in result.output
    rows = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert {r["method"] for r in rows} >= {"no memory", "recent window", "BM25", "dense", "hybrid, sum"}
