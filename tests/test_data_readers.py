"""Every reader on its own fixture, in every encoding and file type, and on files that are broken on purpose."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data_prep
from data_prep.conversation import Conversation
from data_prep.csv_rows import records
from data_prep.json_text import objects
from data_prep.sources import READERS, read, reader, recognise
from gonggam.errors import UserError

CHATBOT = Path(__file__).parent.parent.parent / "shared" / "data" / "chatbot_ko" / "ChatbotData.csv"


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def said(outcome: Conversation | str) -> list[str]:
    assert isinstance(outcome, Conversation), outcome
    return [turn.content for turn in outcome.turns]


def only(name: str | None, path: str) -> Conversation | str:
    ((_, _, outcome),) = list(read(name, path))
    return outcome


EMPATHETIC = [
    ({"instruction": "힘들어", "output": "그랬군요", "source": "a", "type": "single"}, ["힘들어", "그랬군요"]),
    (
        {"instruction": "질문: 하나\n답변: 둘\n질문: 셋", "output": "넷", "source": "a", "type": "multi_2"},
        ["하나", "둘", "셋", "넷"],
    ),
    (
        {"instruction": "질문 : 하나\\n답변 : 둘\\n질문 : 셋", "output": "넷", "source": "a", "type": "multi-2"},
        ["하나", "둘", "셋", "넷"],
    ),
    (
        {
            "instruction": "질문: 하나\n답변: 둘\n그리고 둘 반\n질문: 셋",
            "output": "넷",
            "source": "a",
            "type": "multi_2",
        },
        ["하나", "둘\n그리고 둘 반", "셋", "넷"],
    ),
    (
        {
            "instruction": "질문: 1\n답변: 2\n질문: 3\n답변: 4\n질문: 5\n답변: 6\n질문: 7",
            "output": "8",
            "source": "a",
            "type": "multi_3",
        },
        list("12345678"),
    ),
    ({"instruction": "답변: 둘\n질문: 셋", "output": "넷", "source": "a", "type": "multi_3"}, ["둘", "셋", "넷"]),
    (
        {"instruction": "시험 질문: 이 어려웠어 😢", "output": "네", "type": "single"},
        ["시험 질문: 이 어려웠어 😢", "네"],
    ),
]


@pytest.mark.parametrize(("row", "turns"), EMPATHETIC)
def test_empathetic_dialogues_ko_as_the_real_files_hold_it(tmp_path, row, turns):
    outcome = only(None, jsonl(tmp_path / "a.jsonl", [row]))
    assert said(outcome) == turns
    assert outcome.source == "empathetic_dialogues_ko"
    assert outcome.turns[-1].role == "assistant"


def test_empty_and_nan_cells_are_quarantined_with_a_reason(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("instruction,output,source,type\n,답,a,single\n질문,nan,a,single\n질문,답,a,single\n", "utf-8")
    outcomes = [outcome for *_, outcome in read("empathetic_dialogues_ko", str(path))]
    assert outcomes[:2] == ["empty instruction", "empty output"]
    assert said(outcomes[2]) == ["질문", "답"]


FORMS = {
    "alpaca": {"instruction": "셋", "input": "", "output": "넷", "history": [["하나", "둘"]]},
    "messages": {
        "messages": [
            {"role": r, "content": c}
            for r, c in zip(["user", "assistant"] * 2, ["하나", "둘", "셋", "넷"], strict=True)
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": r, "value": c} for r, c in zip(["human", "gpt"] * 2, ["하나", "둘", "셋", "넷"], strict=True)
        ]
    },
    "pairs": {
        "prompt": [
            {"role": "user", "content": "하나"},
            {"role": "assistant", "content": "둘"},
            {"role": "user", "content": "셋"},
        ],
        "chosen": "넷",
        "rejected": "다섯",
    },
    "kor_empathetic_dialogues": {
        "dialogue_id": 7,
        "dialogue": [
            {"utter_idx": i, "utter": u, "user_id": i % 2} for i, u in [(1, "둘"), (0, "하나"), (2, "셋"), (3, "넷")]
        ],
        "situation": "상황",
        "emotion": "슬픔",
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_multi_turn_forms_are_recognised_and_read_alike(tmp_path, name):
    outcome = only(None, jsonl(tmp_path / "a.jsonl", [FORMS[name]]))
    assert said(outcome) == ["하나", "둘", "셋", "넷"]
    assert outcome.source == name
    assert [turn.role for turn in outcome.turns] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    "wrap", [str, lambda text: [{"role": "assistant", "content": text}]], ids=["texts", "messages"]
)
def test_several_rejected_replies_stand_beside_one_chosen(tmp_path, wrap):
    row = {"prompt": "힘들어", "chosen": wrap("많이 지치셨군요."), "rejected": [wrap("힘내."), wrap("그래서?")]}
    found = only("pairs", jsonl(tmp_path / "pairs.jsonl", [row]))
    assert found.rejected == ("힘내.", "그래서?")
    assert [turn.content for turn in found.turns] == ["힘들어", "많이 지치셨군요."]


def test_single_practice(tmp_path):
    row = {"text": "### Instruction: 답하라 ### Input: 힘들어 ### Answer: 그랬군요"}
    assert said(only(None, jsonl(tmp_path / "a.jsonl", [row]))) == ["답하라\n힘들어", "그랬군요"]


def test_emotion_rows_keep_their_label(tmp_path):
    outcome = only(None, jsonl(tmp_path / "a.jsonl", [{"sentence": "무서워", "label": 3}]))
    assert said(outcome) == ["무서워"]
    assert outcome.meta["emotion"] == "3"


def test_wellness_workbook_answers_by_category(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [
        ("구분", "유저", "챗봇"),
        ("감정/우울", "우울해", "그렇군요"),
        (None, "울적해", None),
        ("감정/분노", "화나", None),
    ]:
        book.active.append(row)
    book.save(tmp_path / "w.xlsx")
    outcomes = [outcome for *_, outcome in read(None, str(tmp_path / "w.xlsx"))]
    assert [said(o) for o in outcomes[:2]] == [["우울해", "그렇군요"], ["울적해", "그렇군요"]]
    assert outcomes[1].meta["category"] == "감정/우울"
    assert isinstance(outcomes[2], str)


def test_emotion_files_without_a_header(tmp_path):
    (tmp_path / "e.txt").write_text("무서워\t불안\n좋아    기쁨\n이름표가 없음\n", "utf-8")
    outcomes = [outcome for *_, outcome in read("emotion", str(tmp_path / "e.txt"))]
    assert [(said(outcome), outcome.meta["emotion"]) for outcome in outcomes[:2]] == [
        (["무서워"], "불안"),
        (["좋아"], "기쁨"),
    ]
    assert "label" in outcomes[2]


def test_every_file_of_a_folder_is_recognised_by_itself(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"q": "안녕", "a": "네"}])
    jsonl(tmp_path / "b.jsonl", [FORMS["messages"]])
    jsonl(tmp_path / "c.jsonl", [{"foo": 1}, {"foo": 2}])
    (tmp_path / "d.csv").write_text("", "utf-8")
    found = [(name, outcome) for name, _, outcome in read(None, str(tmp_path))]
    assert [name for name, _ in found] == ["chatbot_ko", "messages", "unrecognised", "unrecognised"]
    assert found[2][1] == "its columns (foo) are those of no reader"
    with pytest.raises(UserError, match="holds no rows"):
        list(read(None, str(tmp_path / "d.csv")))
    with pytest.raises(UserError, match=r"text, risk\) are those of no reader"):
        list(read(None, jsonl(tmp_path / "c.jsonl", [{"text": "안녕", "risk": "none"}])))


def test_wellness_text_files(tmp_path):
    path = tmp_path / "w.txt"
    path.write_text("우울해    많이 힘드시죠\n화나\t무슨 일이에요?\n불안해    감정/불안\n한 칸뿐\n", "utf-8")
    outcomes = [outcome for *_, outcome in read(None, str(path))]
    assert said(outcomes[0]) == ["우울해", "많이 힘드시죠"]
    assert said(outcomes[1]) == ["화나", "무슨 일이에요?"]
    assert outcomes[2].meta["emotion"] == "감정/불안"
    assert isinstance(outcomes[3], str)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
def test_encodings_are_recognised(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes("Q,A,label\n이별했어,많이 아프시겠어요,1\n".encode(encoding))
    outcome = only(None, str(path))
    assert said(outcome) == ["이별했어", "많이 아프시겠어요"]
    assert outcome.meta["category"] == "이별"


def test_one_broken_byte_does_not_spoil_a_file(tmp_path):
    path = tmp_path / "a.csv"
    good = "Q,A,label\n이별했어,많이 아프시겠어요,1\n"
    path.write_bytes(good.encode() + b"\xff\xfe," + "괜찮아요,0\n".encode() + good.encode().split(b"\n")[1])
    outcomes = [outcome for *_, outcome in read(None, str(path))]
    assert said(outcomes[0]) == said(outcomes[2]) == ["이별했어", "많이 아프시겠어요"]


def test_every_file_type_gives_the_same_conversations(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"q": "안녕하세요\n저예요", "a": "네, 반가워요", "label": 0}]
    (tmp_path / "a.csv").write_text('q,a,label\n"안녕하세요\n저예요","네, 반가워요",0\n', "utf-8")
    (tmp_path / "a.tsv").write_text('q\ta\tlabel\n"안녕하세요\n저예요"\t네, 반가워요\t0\n', "utf-8")
    (tmp_path / "a.json").write_text(json.dumps({"data": rows}), "utf-8")
    jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [said(outcome) for *_, outcome in read(None, str(tmp_path))]
    assert found == [["안녕하세요\n저예요", "네, 반가워요"]] * 5
    assert len(list(read(None, str(tmp_path / "*.json*")))) == 2


def test_packaged_sample_needs_no_path():
    outcomes = [outcome for *_, outcome in read("counsel_ko", None)]
    assert len(outcomes) == 904
    assert all(outcome.rejected for outcome in outcomes)
    assert (data_prep.samples() / "counsel_ko" / "dialogues.jsonl").is_file()


@pytest.mark.skipif(not CHATBOT.is_file(), reason="the real file is not at hand")
def test_real_chatbot_file():
    outcomes = [outcome for *_, outcome in read(None, str(CHATBOT))]
    assert len(outcomes) == 11823
    assert Counter(type(outcome) for outcome in outcomes) == {Conversation: 11823}


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="did you mean 'counsel_ko'"):
        reader("cuonsel_ko")
    with pytest.raises(UserError, match="no data found"):
        list(read("alpaca", str(tmp_path / "missing.jsonl")))
    with pytest.raises(UserError, match="are those of no reader"):
        list(read(None, jsonl(tmp_path / "a.jsonl", [{"foo": 1}])))
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cannot read \.docx"):
        list(read("alpaca", str(tmp_path / "a.docx")))


def test_every_reader_is_recognised_by_its_own_columns():
    for name in READERS:
        for columns in reader(name).COLUMNS:
            found = recognise(columns)
            assert set(reader(found).COLUMNS) & {c for c in reader(found).COLUMNS if c <= columns}


cell = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.binary(max_size=5)
deep = st.recursive(
    cell,
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), c),
    max_leaves=6,
)
NAMES = sorted(
    {column for name in READERS for columns in reader(name).COLUMNS for column in columns} | {"history", "input"}
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=st.dictionaries(st.sampled_from(NAMES), deep), name=st.sampled_from(READERS))
def test_no_row_crashes_a_reader(values, name):
    from data_prep.rows import Row
    from data_prep.sources import _outcomes

    outcomes = list(_outcomes(reader(name), [Row("f", 1, values)]))
    # An answer on its own waits for the questions of its category, which may stand in any row.
    assert len(outcomes) == 1 or (name == "wellness_pairs" and not outcomes)
    for _, found in outcomes:
        assert isinstance(found, str) or any(turn.content for turn in found.turns)


#: Lines that are good, odd, of another encoding, or cut off.
LINES = st.sampled_from(
    [b"q,a", b'{"q": "\xea\xb0\x80", "a": "b"}', b"[", b"]", b'{"data": [', b'"', b"\0", b"\xff\xfe", b"\\n", b"NaN"]
)
LINES |= st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace"))
LINES |= st.text('가나다, \t"', max_size=30).map(lambda text: text.encode("cp949", "replace"))
MIXED = st.lists(LINES, max_size=8).map(b"\n".join)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300) | MIXED)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "txt", "parquet", "xlsx"])
def test_no_file_crashes_a_reader(tmp_path, data, suffix):
    path = tmp_path / f"hostile.{suffix}"
    path.write_bytes(data)
    for _, row, outcome in read("chatbot_ko", str(path)):
        assert row.file
        assert outcome


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> dict[str, bytes]:
    import openpyxl
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("whole")
    book = openpyxl.Workbook()
    for row in [("q", "a"), *((f"질문 {i}", f"답 {i}") for i in range(20))]:
        book.active.append(row)
    book.save(folder / "a.xlsx")
    pq.write_table(pa.Table.from_pylist([{"q": f"질문 {i}", "a": f"답 {i}"} for i in range(20)]), folder / "a.parquet")
    return {suffix: (folder / f"a.{suffix}").read_bytes() for suffix in ("xlsx", "parquet")}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=st.floats(0, 0.999), new=st.binary(min_size=1, max_size=6), cut=st.booleans())
@pytest.mark.parametrize("suffix", ["xlsx", "parquet"])
def test_damaged_workbooks_and_parquet_files_do_not_crash(tmp_path, whole_files, suffix, where, new, cut):
    data = whole_files[suffix]
    place = int(where * len(data))
    (tmp_path / f"a.{suffix}").write_bytes(data[:place] + new + (b"" if cut else data[place + len(new) :]))
    for _, row, outcome in read("chatbot_ko", str(tmp_path / f"a.{suffix}")):
        assert row.number
        assert outcome


# --- csv with quotes that are not closed


def csv_said(path: Path, text: str) -> tuple[list[list[str]], list[int]]:
    """What good rows say, and the line numbers of the quarantined ones."""
    path.write_text(text, "utf-8")
    rows = list(read("chatbot_ko", str(path)))
    good = [said(outcome) for *_, outcome in rows if isinstance(outcome, Conversation)]
    return good, [row.number for _, row, outcome in rows if isinstance(outcome, str)]


@pytest.mark.parametrize(
    "after",
    [
        "질문 3,답 3,0\n질문 4,답 4,0\n",  # nothing closes it
        '질문 3,"답 3",0\n질문 4,답 4,0\n',  # the next quote opens a cell
        '질문 3,답 3,0\n질문 4,답 4,"0"\n',
        '질문 3,답 3,0\n질문 4,답 4,0\n"',  # a lone quote closes it: rows inside tell
    ],
)
def test_an_open_quote_costs_its_own_line(tmp_path, after):
    good, bad = csv_said(tmp_path / "a.csv", f'Q,A,label\n질문 1,답 1,0\n질문 2,"답 2,0\n{after}')
    assert good == [[f"질문 {i}", f"답 {i}"] for i in (1, 3, 4)]
    assert bad[0] == 3


def test_quotes_that_are_in_order_are_left_alone(tmp_path):
    text = 'Q,A,label\n"여러 줄\n둘째, 줄\n\n넷째 ""줄""",답,0\n그는 5" 화면을,"네" 라고,0\n'
    good, bad = csv_said(tmp_path / "a.csv", text)
    assert good == [['여러 줄\n둘째, 줄\n\n넷째 "줄"', "답"], ['그는 5" 화면을', "네 라고"]]
    assert not bad


def test_a_closing_quote_is_looked_for_only_so_far():
    taken = []
    lines = (taken.append(i) or f"질문 {i},답 {i}\n" for i in range(1000))
    found = records(itertools.chain(["q,a\n", '질문,"답\n'], lines), look_ahead=100)
    assert [fault for *_, fault in itertools.islice(found, 3)] == ["", "a quote that is not closed", ""]
    assert len(taken) < 20


CELLS = st.text('가나 ,"', max_size=12) | st.text('가나 "\n', max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6), broken=st.integers(0, 6))
def test_csv_rows_are_read_as_the_csv_module_writes_them(rows, broken):
    def text(rows: list) -> str:
        out = io.StringIO(newline="")
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows(rows)
        return out.getvalue()

    whole = [("q", "a", "n"), *rows]
    assert [tuple(cells) for _, cells, _ in records(io.StringIO(text(whole), newline=""))] == whole
    before, after = whole[: broken + 1], [(f"질문 {i}", "답", str(i)) for i in range(4)]
    torn = text(before) + '열린,"따옴표,0\r\n' + "".join(",".join(row) + "\r\n" for row in after)
    found = list(records(io.StringIO(torn, newline="")))
    assert [tuple(cells) for _, cells, fault in found if not fault] == [*before, *after]
    assert sum(bool(fault) for *_, fault in found) == 1


# --- .json of any size


LISTS = st.lists(st.fixed_dictionaries({"q": st.text(max_size=20), "n": st.floats(allow_nan=False) | st.integers()}))


@settings(max_examples=60, deadline=None)
@given(rows=LISTS, wrapped=st.booleans(), indent=st.sampled_from([None, 2]), piece=st.integers(1, 7))
def test_json_is_read_piece_by_piece_as_it_is_read_whole(rows, wrapped, indent, piece):
    value = {"version": [1, 2], "data": rows, "more": {"a": []}} if wrapped and rows else rows
    assert list(objects(io.StringIO(json.dumps(value, indent=indent, ensure_ascii=False)), piece)) == rows


def test_a_json_list_of_any_length_needs_little_memory(tmp_path):
    row = json.dumps({"q": "안녕하세요 " * 20, "a": "네, 반가워요"}, ensure_ascii=False)
    (tmp_path / "long.json").write_text("[" + ",\n".join([row] * 8_000) + "]", "utf-8")  # 14 MB when read whole
    tracemalloc.start()
    count = sum(isinstance(outcome, Conversation) for *_, outcome in read("chatbot_ko", str(tmp_path / "long.json")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, peak < 6e6) == (8_000, True)


def test_a_line_of_ten_million_letters_is_read(tmp_path):
    rows = [{"q": "가" * 10_000_000, "a": "네"}, {"q": "나", "a": "네"}]
    lengths = [len(outcome.turns[0].content) for *_, outcome in read(None, jsonl(tmp_path / "a.jsonl", rows))]
    assert lengths == [10_000_000, 1]


def test_broken_lines_are_kept_as_they_stand(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "안녕", "a": "네"}\n{"q": "안녕", "a": \n[1]\n', "utf-8")
    rows = [row for _, row, outcome in read(None, str(tmp_path)) if isinstance(outcome, str)]
    assert [row.values for row in rows] == [{"line": '{"q": "안녕", "a":'}, {"value": [1]}]
    (tmp_path / "a.csv").write_text("q,a\n안녕,네,뭐\n가,나\n", "utf-8")
    (row, *_) = [row for _, row, _ in read(None, str(tmp_path / "a.csv"))]
    assert (row.values, row.error) == ({"cells": ["안녕", "네", "뭐"]}, "3 fields where the header names 2")


def test_what_json_files_hold(tmp_path):
    def outcomes(text: str) -> list:
        (tmp_path / "a.json").write_text(text, "utf-8")
        return [
            outcome if isinstance(outcome, str) else said(outcome) for *_, outcome in read("chatbot_ko", str(tmp_path))
        ]

    good, pair = '{"Q": "안녕", "A": "네"}', ["안녕", "네"]
    assert outcomes(f'{{"train": [{good}], "test": [{good}], "n": 2}}') == [pair, pair]
    assert outcomes(f"{good}\n{{broken\n\n{good}\n")[::2] == [pair, pair]
    assert outcomes(f"{{broken\n{good}\n")[1] == pair
    assert outcomes(json.dumps(json.loads(good), indent=1)) == [pair]
    assert outcomes(f"[{good}, 7, {good}, {{")[:3] == [pair, "a JSON value, but no object", pair]
    assert "from here on" in outcomes(f"[{good}, {{")[-1]
    assert outcomes("") == []
