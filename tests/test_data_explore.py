"""The data report is one file, draws Hangul, and tells what a tokenizer's limit would cut."""

from __future__ import annotations

from data_prep import prepare
from data_prep.explore import explore
from data_prep.survey import survey
from gonggam.files import write_jsonl


def test_report_of_a_prepared_folder(tmp_path):
    write_jsonl(tmp_path / "bad.jsonl", [{"q": "", "a": "<script>alert(1)</script>"}])
    sources = [{"reader": "counsel_ko", "rows": 60}, {"reader": "chatbot_ko", "path": str(tmp_path / "bad.jsonl")}]
    prepare(sources, tmp_path / "data")
    count = {"letters": lambda messages: sum(len(message["content"]) for message in messages)}
    page = explore(tmp_path / "data", tmp_path / "out", tokenizers=count, max_length=200)
    html = page.read_text("utf-8")
    assert "<script>alert" not in html
    assert all(word in html for word in ("How replies begin", "Quarantine", "empty q", "letters", "cut at 200"))
    pictures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {"exchanges", "reply_characters", "tokens_1", "emotions", "categories", "openings"} <= pictures


def test_survey_counts_what_is_there(tmp_path):
    row = {"instruction": "안녕하세요", "output": "네 반가워요", "type": "single", "source": "x"}
    write_jsonl(tmp_path / "a.jsonl", [row, row, {**row, "output": "아 그래요"}])
    found = survey(tmp_path / "a.jsonl", show=2)
    assert (found.conversations, found.exchanges, len(found.chosen)) == (3, {1: 3}, 2)
    assert found.repeated_share() == 2 / 3
    assert found.repeated == {"네 반가워요": 2}
    assert found.distinct() == (4 / 6, 2 / 3)
    assert survey(tmp_path / "a.jsonl", show=2).chosen == found.chosen
