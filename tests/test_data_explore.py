"""The data report is one file, draws Hangul, and tells what a tokenizer's limit would cut."""

from __future__ import annotations

import json

import pytest

from data_prep import prepare
from data_prep.explore import explore
from data_prep.survey import survey
from gonggam.files import write_jsonl


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared folder of dialogues of two types, labelled utterances, and a row in quarantine."""
    folder = tmp_path_factory.mktemp("explore")
    rows = [
        {"instruction": f"{i}번 이야기예요", "output": "그랬군요", "type": kind, "source": "자료"}
        for i, kind in enumerate(["single", "single", "multi_2"])
    ]
    write_jsonl(folder / "a.jsonl", [*rows, {**rows[0], "output": "", "note": "<script>alert(1)</script>"}])
    write_jsonl(folder / "b.jsonl", [{"text": f"기뻐요 {i}", "label": "기쁨"} for i in range(2)])
    split = {"validation": 0, "test": 0}
    prepare([{"path": str(folder / "*.jsonl")}], folder / "data", split=split, deduplicate={"near": None})
    return folder / "data"


def test_report_of_a_prepared_folder(prepared, tmp_path):
    count = {"letters": lambda messages: sum(len(message["content"]) for message in messages)}
    html = explore(prepared, tmp_path, tokenizers=count, max_length=4).read_text("utf-8")
    assert "<script>alert" not in html
    shown = ("How replies begin", "Quarantine", "empty output", "letters", "cut at 4", "multi_2", "자료", "기쁨")
    assert [word for word in shown if word not in html] == []
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert {"sources", "types", "exchanges", "reply_characters", "tokens_1", "emotions", "openings"} <= pictures
    assert "origins" not in pictures  # one only


def test_survey_counts_what_is_there(tmp_path):
    row = {"instruction": "안녕하세요", "output": "네 반가워요", "type": "single", "source": "x"}
    write_jsonl(tmp_path / "a.jsonl", [row, row, {**row, "output": "아 그래요"}])
    found = survey(tmp_path / "a.jsonl", show=2)
    assert (found.conversations, found.exchanges, len(found.chosen)) == (3, {1: 3}, 2)
    assert found.repeated_share() == 2 / 3
    assert found.repeated == {"네 반가워요": 2}
    assert found.distinct() == (4 / 6, 2 / 3)
    assert (found.labels["type"], found.labels["origin"]) == ({"single": 3}, {"x": 3})
    assert survey(tmp_path / "a.jsonl", show=2).chosen == found.chosen


def test_conversations_stored_again_are_told_from_replies_that_repeat(tmp_path):
    one = {"instruction": "안녕하세요", "output": "네"}
    two = {"instruction": "질문: 안녕하세요\n답변: 네\n질문: 힘들어요", "output": "네"}
    rows = [{**row, "type": "t"} for row in (one, two, two, {"instruction": "다른 말", "output": "네"})]
    (tmp_path / "a.json").write_text(json.dumps(rows), "utf-8")
    found = survey(tmp_path / "a.json")
    assert found.stored_again() == (1, 1)
    assert found.repeated_share() == 1


def test_labelled_sets_are_counted_by_source_and_split(prepared):
    found = survey(prepared)
    assert found.sources == {"empathetic_dialogues_ko": 3, "emotion": 2}
    assert found.splits == {"train": 5}
