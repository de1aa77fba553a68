"""What preparation promises: nothing taught is lost or doubled, books balance, no leaks, same input same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_reassemble import trees

from data_prep import Conversation, Turn, prepare
from data_prep.audit import audit
from data_prep.clean import Cleaner, in_order
from data_prep.near import jaccard, near_duplicates, shingles
from data_prep.options import CleanOptions
from data_prep.split import ENOUGH, Roots, guaranteed, split_of
from gonggam.errors import UserError
from gonggam.files import read_jsonl, sha256_tree, write_jsonl


def talk(*texts: str, **rest) -> Conversation:
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Conversation(rest.pop("id", ""), turns, "s", **rest)


def cleaned(text: str, **rules) -> str:
    result = Cleaner(CleanOptions(**rules))(talk(text, "네"))
    return result if isinstance(result, str) else result.turns[0].content


# --- cleaning


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ㅋㅋㅋㅋㅋㅋㅋ 웃겨!!!!!!", "ㅋㅋㅋ 웃겨!!!"),
        ("ㅠㅠ 그래?!", "ㅠㅠ 그래?!"),
        ("<p>안녕<br>하세요</p> &amp; 반가워요", "안녕\n하세요\n& 반가워요"),
        ("한 줄\\n두 줄", "한 줄\n두 줄"),
        ("가​나\x00다", "가나다"),
        ("각", "각"),
        ("힘들면 1393에 전화하세요", "힘들면 109에 전화하세요"),
        ("1393원 냈고 1393-12도 있고 21393도", "1393원 냈고 1393-12도 있고 21393도"),
        ("3 < 5 이고 a>b", "3 < 5 이고 a>b"),
    ],
)
def test_cleaning_rules(raw, clean):
    assert cleaned(raw) == clean


def test_every_rule_can_be_switched_off_and_is_counted():
    raw = "<b>힘들면</b> 1393​에\\nㅋㅋㅋㅋㅋ"
    off = dict.fromkeys(("unicode", "control", "markup", "repeats", "helplines"), False)
    assert cleaned(raw, **off) == raw
    cleaner = Cleaner(CleanOptions())
    cleaner(talk(raw, "네"))
    assert {"control", "markup", "repeats", "helplines"} <= set(+cleaner.counts)


def test_roles_are_put_in_order():
    a, u = (lambda t: Turn("assistant", t)), (lambda t: Turn("user", t))
    turns = (a("둘"), u("셋"), u("넷"), a("다섯"), Turn("system", "규칙"), u("여섯"))
    assert in_order(turns) == (Turn("system", "규칙"), u("셋\n넷"), a("다섯"))


def test_reply_without_hangul_is_reported_or_dropped():
    cleaner = Cleaner(CleanOptions(hangul="drop"))
    assert cleaner(talk("안녕", "hello")) == "a reply without Hangul"
    cleaner = Cleaner(CleanOptions())
    assert isinstance(cleaner(talk("안녕", "hello")), Conversation)
    assert cleaner.counts["hangul"] == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=40)), max_size=6))
def test_cleaning_is_stable_and_leaves_an_ordered_conversation(turns):
    once = Cleaner(CleanOptions())(Conversation("", tuple(Turn(*turn) for turn in turns), "s"))
    if isinstance(once, Conversation):
        assert in_order(once.turns, keep_single=True) == once.turns
        assert all(turn.content.strip() for turn in once.turns)


# --- near duplicates


def test_near_duplicates_keep_the_longest():
    base = "오늘 면접에서 또 떨어졌어요. 벌써 일곱 번째라 이제는 제가 문제인 것 같아요. 어떻게 해야 할까요?"
    texts = [base, base + " 네?", "전혀 다른 이야기를 하고 있는 대화입니다 고양이가 귀여워요", base.replace(" ", "  ")]
    assert near_duplicates(texts, texts.__getitem__, 0.85) == {0: 1, 3: 1}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("가나다라 ", min_size=1, max_size=30), max_size=15))
def test_near_duplicates_agree_with_exact_jaccard(texts):
    for gone, kept in near_duplicates(texts, texts.__getitem__, 0.9).items():
        assert jaccard(shingles(texts[gone]), shingles(texts[kept])) >= 0.9
        assert len(shingles(texts[kept])) >= len(shingles(texts[gone]))


# --- split


def test_split_is_stable_under_added_data_and_keeps_roots_together():
    old = [talk(f"처음 하는 긴 이야기 {i} 번째입니다 정말로", "네, 말씀해 주세요") for i in range(300)]
    new = [talk(f"나중에 온 긴 이야기 {i} 번째입니다 정말로", "아, 그랬군요") for i in range(300)]
    shares = {"validation": 0.1, "test": 0.1}

    def places(conversations):
        roots = Roots()
        numbers = [roots.add(conversation) for conversation in conversations]
        return [split_of(roots.group(number), **shares) for number in numbers]

    assert places([*new, *old])[300:] == places(old)
    counts = Counter(places([*old, *new]))
    assert 35 <= counts["validation"] <= 90
    assert 35 <= counts["test"] <= 90


def some_roots(start: int, count: int) -> set[int]:
    return {talk(f"{i}번째로 말을 건 사람의 긴 이야기").root() for i in range(start, start + count)}


spans = st.builds(some_roots, st.integers(0, 2000), st.integers(0, 60))


@settings(max_examples=60, deadline=None)
@given(st.lists(spans, min_size=1, max_size=4), st.lists(spans, min_size=4, max_size=4))
def test_every_source_has_its_share_and_added_data_moves_stand_ins_only(old, added):
    shares = {"validation": 0.05, "test": 0.05}

    def places(sources):
        moved = guaranteed(sources, **shares)
        return moved, {root: moved.get(root) or split_of(root, **shares) for roots in sources for root in roots}

    moved, before = places(old)
    for roots in old:
        if len(roots) >= ENOUGH:
            assert {before[root] for root in roots} == {"train", "validation", "test"}
    moved_later, after = places([one | two for one, two in zip(old, added, strict=False)])
    changed = {root for root in before if before[root] != after[root]}
    assert changed <= set(moved) | set(moved_later)
    assert len(moved) <= 2 * len(old)


def test_a_small_source_is_in_every_split(tmp_path):
    sources = []
    for name in ("one", "two", "three"):
        said = [{"q": f"{name}에서 온 {i}번째 이야기를 길게 합니다", "a": f"{name} {i} 네"} for i in range(20)]
        write_jsonl(tmp_path / f"{name}.jsonl", said)
        sources.append({"path": str(tmp_path / f"{name}.jsonl"), "name": name})
    prepare(sources, tmp_path / "out", deduplicate={"near": None})
    for split in ("train", "validation", "test"):
        assert {row["source"] for row in read_jsonl(tmp_path / f"out/messages/{split}.jsonl")} == {
            "one",
            "two",
            "three",
        }
    assert audit([tmp_path / "out"]).ok


def test_rows_from_the_middle_share_the_split_of_their_conversation():
    whole = [
        "첫 번째로 하는 아주 긴 말입니다",
        "첫 번째로 드리는 아주 긴 답입니다",
        "두 번째로 하는 아주 긴 말",
        "두 번째 긴 답입니다",
    ]
    roots = Roots()
    one, middle = roots.add(talk(*whole)), roots.add(talk(*whole[2:]))
    assert one != middle
    assert roots.group(one) == roots.group(middle)


# --- the whole way


def exploded(n: int) -> list[dict]:
    """Rows in the shape of the real multi-turn set: each conversation stored as one row per exchange."""
    rows = []
    for i in range(n):
        turns = [f"{i}번 사람의 {k}번째 이야기인데 조금 길게 해 볼게요" for k in range(6)]
        for exchanges in range(1, 1 + i % 3 + 1):
            said = turns[: 2 * exchanges]
            marks = "\n".join(f"{'답변' if k % 2 else '질문'}: {text}" for k, text in enumerate(said[:-1]))
            kind = "single" if exchanges == 1 else f"multi_{exchanges}"
            rows.append(
                {"instruction": marks if exchanges > 1 else said[0], "output": said[-1], "source": "x", "type": kind}
            )
    return rows


@pytest.fixture
def messy(tmp_path) -> Path:
    rows = exploded(60)
    rows += [rows[0], {"instruction": "", "output": "답", "source": "x", "type": "single"}]
    rows += [
        {"instruction": "제 번호는 010-1234-5678이에요 꼭 연락 주세요", "output": "네", "source": "x", "type": "single"}
    ]
    write_jsonl(tmp_path / "messy.jsonl", rows)
    with (tmp_path / "messy.jsonl").open("a") as file:
        file.write("{broken\n")
    return tmp_path / "messy.jsonl"


def test_books_balance_and_forms_agree(messy, tmp_path):
    seen = []
    options = {"formats": ["messages", "alpaca", "sharegpt", "parquet"], "deduplicate": {"near": None}}
    report = prepare([{"path": str(messy)}], tmp_path / "out", progress=lambda *x: seen.append(x), **options)
    book = report["rows"]
    assert book["rows"] == 124
    assert book["rows"] == sum(count for fate, count in book.items() if fate != "rows")
    assert (book["kept"], book["merged"], book["duplicate"], book["quarantined"]) == (61, 60, 1, 2)
    assert report["supervised_replies"] == 121
    quarantine = list(read_jsonl(tmp_path / "out" / "quarantine.jsonl"))
    assert {(entry["row"], entry["fate"]) for entry in quarantine} == {(122, "quarantined"), (124, "quarantined")}
    assert report["files"]["messages"] == report["files"]["alpaca"] == report["files"]["sharegpt"]
    rows = [
        row for split in ("train", "validation", "test") for row in read_jsonl(tmp_path / f"out/messages/{split}.jsonl")
    ]
    assert len({row["id"] for row in rows}) == len(rows) == 61
    assert not any("010-1234" in json.dumps(row) for row in rows)
    assert report["personal_data"] == {"phone": 1}
    assert audit([tmp_path / "out"]).ok
    alpaca = next(row for row in read_jsonl(tmp_path / "out/alpaca/train.jsonl") if len(row["history"]) == 2)
    assert set(alpaca) == {"instruction", "input", "output", "system", "history"}
    assert (
        json.loads((tmp_path / "out/alpaca/dataset_info.json").read_text())["gonggam_train"]["file_name"]
        == "train.jsonl"
    )


def test_same_input_same_bytes_even_in_another_process(messy, few, tmp_path):
    sources = [{"path": str(messy)}, {**few, "rows": 50}]
    prepare(sources, tmp_path / "one")
    code = f"import sys, data_prep; data_prep.prepare({sources!r}, sys.argv[1])"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "two")], check=True, cwd=root)
    assert sha256_tree(tmp_path / "one") == sha256_tree(tmp_path / "two")


def test_branches_of_a_long_conversation_are_no_near_duplicates(tmp_path):
    common = [f"함께 시작하는 아주 긴 이야기의 {k}번째 대목입니다. 오늘은 정말 많은 일이 있었어요" for k in range(8)]
    ends = [["그래서 화가 나요", "속상하셨겠어요"], ["그래도 기뻐요", "다행이에요"]]
    talks = [[*common, *end] for end in ends] + [[*common, "그래서 화가 나요.", "속상하셨겠어요"]]
    rows = [
        {"messages": [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)]}
        for turns in talks
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    report = prepare([{"path": str(tmp_path / "a.jsonl")}], tmp_path / "out", split={"validation": 0, "test": 0})
    assert (report["rows"]["kept"], report["rows"]["near_duplicate"]) == (2, 1)
    assert report["supervised_replies"] == 6
    assert sorted(row["given"] for row in read_jsonl(tmp_path / "out/messages/train.jsonl")) == [0, 8]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees.filter(any))
def test_written_forms_teach_every_reply_once(tmp_path, rows):
    """TRL with ``given`` as context, and LLaMA-Factory with ``mask_history``; without it shared replies come again."""
    talks = [[{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(row)] for row in rows]
    write_jsonl(tmp_path / "a.jsonl", [{"messages": messages} for messages in talks])
    formats = ["messages", "alpaca", "alpaca_replies"]
    options = {"formats": formats, "deduplicate": {"near": None}, "split": {"validation": 0, "test": 0}}
    report = prepare([{"path": str(tmp_path / "a.jsonl")}], tmp_path / "out", **options)
    written = {form: list(read_jsonl(tmp_path / f"out/{form}/train.jsonl")) for form in formats}

    def said(row):
        return tuple(text for pair in [*row["history"], (row["instruction"], row["output"])] for text in pair)

    whole = [([m["content"] for m in row["messages"]], row["given"]) for row in written["messages"]]
    once = Counter(tuple(t[:n]) for t, given in whole for n in range(given + 2, len(t) + 1, 2))
    assert set(once) == {tuple(row[:n]) for row in rows for n in range(2, len(row) + 1, 2)}
    assert set(once.values()) == {1}
    assert Counter(map(said, written["alpaca_replies"])) == once
    unmasked = Counter(said(row)[:n] for row in written["alpaca"] for n in range(2, len(said(row)) + 1, 2))
    assert set(unmasked) == set(once)
    assert unmasked.total() - once.total() == report["shared_replies"]


def test_single_turns_only(messy, tmp_path):
    report = prepare([{"path": str(messy)}], tmp_path / "out", turns="single", deduplicate={"near": None})
    assert report["conversations"] == report["supervised_replies"] == 61
    assert report["rows"]["filtered"] == 60


def test_sources_mix_by_rows_and_weight(messy, few, tmp_path):
    report = prepare(
        [{"path": str(messy), "name": "mine", "weight": 2}, {**few, "weight": 1}],
        tmp_path / "out",
        deduplicate={"near": None},
    )
    assert report["sources"]["mine"]["kept"] == 61
    assert report["sources"]["counsel_ko"]["kept"] == 30
    assert report["files"]["preference"]["train"] <= 30
    sources = Counter(row["source"] for row in read_jsonl(tmp_path / "out/messages/train.jsonl"))
    assert set(sources) == {"mine", "counsel_ko"}


def test_pairs_lie_in_the_split_of_their_conversation(tmp_path, few):
    report = prepare([few], tmp_path / "out")
    assert report["files"]["preference"] == report["files"]["messages"]
    for split in ("train", "validation", "test"):
        ids = {row["id"] for row in read_jsonl(tmp_path / f"out/messages/{split}.jsonl")}
        pairs = list(read_jsonl(tmp_path / f"out/preference/{split}.jsonl"))
        assert {pair["id"] for pair in pairs} == ids
        assert all(pair["chosen"][0]["content"] != pair["rejected"][0]["content"] for pair in pairs)


def test_labelled_utterances_are_written_apart(tmp_path):
    write_jsonl(
        tmp_path / "e.jsonl", [{"text": "무서워요 정말로", "label": "걱정"}, {"text": "좋아요 아주", "label": "기쁨"}]
    )
    report = prepare([{"path": str(tmp_path / "e.jsonl")}], tmp_path / "out", split={"validation": 0, "test": 0})
    assert list(report["files"]) == ["labelled"]
    rows = list(read_jsonl(tmp_path / "out/labelled/train.jsonl"))
    assert {(row["text"], row["label"]) for row in rows} == {("무서워요 정말로", "걱정"), ("좋아요 아주", "기쁨")}


def test_what_a_user_can_get_wrong(messy, tmp_path):
    with pytest.raises(UserError, match="did you mean"):
        prepare([{"reader": "councel_ko"}], tmp_path / "out")
    with pytest.raises(UserError, match=r"clean\.unicod: there is no such option"):
        prepare([{"path": str(tmp_path)}], tmp_path / "out", clean={"unicod": False})
    with pytest.raises(UserError, match=r"no reader 'mesages'\. did you mean 'messages'"):
        prepare([{"reader": "mesages", "path": str(tmp_path)}], tmp_path / "out")
    with pytest.raises(UserError, match="privacy"):
        prepare([{"reader": "counsel_ko"}], tmp_path / "out", privacy="masked")
    with pytest.raises(UserError, match="two sources are called"):
        prepare([{"path": str(messy), "rows": 3}, {"path": str(messy)}], tmp_path / "out")
    messy.write_text('{"instruction": "", "output": "x", "type": "single"}\n')
    with pytest.raises(UserError, match="no conversation is left"):
        prepare([{"path": str(messy)}], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("precious")
    with pytest.raises(UserError, match="did not write"):
        prepare([{"reader": "counsel_ko"}], tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "precious"


def test_other_files_in_the_folder_survive_and_results_are_replaced(tmp_path, few):
    out = tmp_path / "stage"
    out.mkdir()
    (out / "started.json").write_text("{}")
    prepare([{**few, "rows": 20}], out, formats=["messages", "sharegpt"])
    prepare([{**few, "rows": 30}], out, formats=["messages"])
    assert (out / "started.json").read_text() == "{}"
    assert not (out / "sharegpt").exists()
    assert (
        sum(1 for split in ("train", "validation", "test") for _ in read_jsonl(out / f"messages/{split}.jsonl")) == 30
    )
    assert not list(out.glob(".preparing*"))


hostile = (
    st.none()
    | st.floats()
    | st.sampled_from(
        ["nan", "\0", "😢", "한 줄\\n두 줄", "질문: 가\n답변 : 나\n질문:", "\ud800", "ㅋ" * 50, "가" * 20_000]
    )
    | st.text(max_size=40)
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.dictionaries(st.sampled_from(["instruction", "output", "type"]), hostile), max_size=8))
def test_any_rows_end_as_kept_merged_or_quarantined(tmp_path, rows):
    good = {"instruction": "안녕하세요", "output": "반가워요", "type": "single"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, good]), "utf-8")
    report = prepare([{"reader": "empathetic_dialogues_ko", "path": str(tmp_path / "a.jsonl")}], tmp_path / "out")
    book = report["rows"]
    assert book["rows"] == len(rows) + 1 == sum(n for fate, n in book.items() if fate != "rows")
    for line in (tmp_path / "out/quarantine.jsonl").read_text("utf-8").split("\n")[:-1]:
        entry = json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON for other programs
        assert entry["reason"]


# --- peers


def test_written_files_load_through_datasets(tmp_path, few):
    datasets = pytest.importorskip("datasets")
    prepare([few], tmp_path / "out", formats=["messages", "alpaca", "sharegpt", "parquet"])
    for form, column in (("messages", "messages"), ("alpaca", "history"), ("sharegpt", "conversations")):
        files = {s: str(tmp_path / f"out/{form}/{s}.jsonl") for s in ("train", "validation", "test")}
        loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
        assert sum(map(len, loaded.values())) == 60
        assert column in loaded["train"].column_names
    loaded = datasets.load_dataset(str(tmp_path / "out"), "preference", cache_dir=str(tmp_path / "cache"))
    assert loaded["train"][0]["chosen"][0]["role"] == "assistant"
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "out/parquet/*.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded["train"]) == 60


def test_data_sets_of_the_hub_are_streamed_with_all_their_splits(tmp_path):
    pytest.importorskip("datasets")
    from data_prep.rows import _read_hub

    for split in ("train", "test"):  # load_dataset takes a folder as it takes a name, so no network is needed
        write_jsonl(tmp_path / f"{split}.jsonl", [{"Q": f"{split} 질문", "A": "답"}])
    rows = {(row.file.rpartition("@")[2], row.number, row.values["q"]) for row in _read_hub(str(tmp_path))}
    assert rows == {("train", 1, "train 질문"), ("test", 1, "test 질문")}


def test_import_is_light():
    heavy = "{'torch', 'pandas', 'datasets', 'numpy', 'datasketch', 'plotly'}"
    code = f"import sys, data_prep, data_prep.options; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == "set()"
