"""Answers from a reviewed list: chosen by category or by likeness, with the safety layer in front."""

import csv
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import openpyxl
import pytest
from chat_standin import ScriptedBackend
from conftest import ROOT

from gonggam.errors import UserError
from pipeline.chat.categories import Labels
from pipeline.chat.counselor import Counselor
from pipeline.chat.options import ChatOptions
from pipeline.chat.resources import data
from pipeline.chat.reviewed import CategoryAnswers, NearestAnswer
from pipeline.chat.turn import Ask

TOPICS = ("수면", "직장", "가족")
ANSWERS = {label: [f"{label} 이야기군요. {n}" for n in range(3)] for label in TOPICS}
GOOD = "많이 속상하셨겠어요. 지금 가장 마음에 남는 건 무엇인가요?"


class Telling:
    """A classifier that tells the label whose name stands in the text, as sure as it is told to be."""

    def __init__(self, score=0.9, answers=ANSWERS):
        self.labels, self.score = Labels(TOPICS, answers, confidence=0.5), score

    def ask(self, texts):
        rows = np.full((len(texts), len(TOPICS)), (1 - self.score) / (len(TOPICS) - 1), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[next((i for i, name in enumerate(TOPICS) if name in text), 0)] = self.score
        return list(rows)


def test_the_safety_layer_stands_in_front_of_everything():
    bot = Counselor(CategoryAnswers(Telling()))
    reply = bot.reply("죽고 싶어요")
    assert (reply.source, reply.risk, reply.category) == ("safety", "high", None)
    assert bot.reply("  ").source == "notice"
    assert bot.backend.alive()


def test_no_answer_is_given_twice_in_a_row_in_a_session_or_to_anyone():
    bot = Counselor(CategoryAnswers(Telling()))
    for session in ("one", None):
        said = [bot.reply("수면 문제예요", session=session).text for _ in range(12)]
        assert all(a != b for a, b in pairwise(said))
        assert set(said) == set(ANSWERS["수면"])
    one = Counselor(CategoryAnswers(Telling(answers={"수면": ["한 가지 답이에요."]})))
    assert [one.reply("수면", session="s").text for _ in range(2)] == ["한 가지 답이에요."] * 2


def test_the_second_of_two_answers_is_another_whatever_others_are_given_meanwhile():
    bot = Counselor(CategoryAnswers(Telling(answers={"수면": ["가요.", "나요."]})))
    for _ in range(20):
        first = bot.reply("수면").text
        bot.reply("수면")  # somebody else's
        second = bot.reply_many([Ask("수면", avoid=(first,))])[0].text
        assert second != first


def test_unsure_it_says_so_and_asks_back_in_other_words_each_time():
    bot = Counselor(CategoryAnswers(Telling(score=0.4)))
    replies = [bot.reply("오늘은 비가 왔어요", session="s") for _ in range(2)]
    assert all(reply.text in data("texts")["unsure"] for reply in replies)
    assert replies[0].text != replies[1].text
    assert (replies[0].source, replies[0].reasons, replies[0].score) == ("notice", ("unsure",), 0.4)


def test_unsure_it_hands_over_to_the_fallback_behind_the_gate():
    backend = ScriptedBackend("진짜 진짜 진짜 진짜 진짜 진짜", GOOD)
    bot = Counselor(CategoryAnswers(Telling(score=0.4), fallback=backend))
    reply = bot.reply("오늘은 비가 왔어요")
    assert (reply.text, reply.source, reply.category) == (GOOD, "model", None)
    sure = Counselor(CategoryAnswers(Telling(), fallback=backend))
    asked = len(backend.asked)
    mixed = sure.reply_many(["수면", "직장"])
    assert [reply.category for reply in mixed] == ["수면", "직장"]
    assert len(backend.asked) == asked


def test_a_seed_makes_the_choice_repeatable():
    first, second = (
        [Counselor(CategoryAnswers(Telling()), options).reply(f"수면 {n}").text for n in range(6)]
        for options in [Counselor(ScriptedBackend()).options.model_copy(update={"seed": 3})] * 2
    )
    assert first == second
    assert len(set(first)) > 1


def test_a_reviewed_answer_that_must_not_be_said_is_not():
    bad = "제가 반드시 낫게 해 드릴게요."
    bot = Counselor(CategoryAnswers(Telling(answers={"수면": [bad]})))
    from pipeline.chat.safety import check_output

    assert check_output(bad, "수면")
    assert bot.reply("수면").text != bad


def test_retrieval_alone_gives_the_answer_to_the_nearest_question():
    from rag.knowledge import Hit

    class Base:
        def search(self, question, k=3):
            return [
                Hit("q", "둘째 답이에요.", 1, 0.8, {"turn": 1}),
                Hit("q", "첫 답이에요.", 0.9, 0.7, {"turn": 0, "category": "감정/우울"}),
                Hit("q", "다음 답이에요.", 0.8, 0.3, {"turn": 0}),
            ]

    bot = Counselor(NearestAnswer(Base(), min_cosine=0.4))
    first, second = (bot.reply("오늘은 비가 왔어요", session="s") for _ in range(2))
    assert (first.text, first.source, first.category, first.score) == ("첫 답이에요.", "knowledge", "감정/우울", 0.7)
    assert (second.source, second.reasons) == ("notice", ("unsure",))


def test_a_classifier_of_emotions_is_no_counsellor():
    with pytest.raises(UserError, match="holds no answers"):
        CategoryAnswers(Telling(answers={}))


def test_a_table_of_questions_is_answered_resumed_and_safe_to_open(tmp_path):
    from pipeline.answer import answer_all

    class Counting(Telling):
        asked = 0

        def ask(self, texts):
            Counting.asked += len(texts)
            if Counting.asked > 40:
                raise UserError("stopped")
            return super().ask(texts)

    questions = tmp_path / "questions.txt"
    questions.write_text("\n".join(["=1+1 수면", "@직장", *(f"가족\u2028{n}" for n in range(48))]), encoding="utf-8")
    bots = [("a/b", Counselor(CategoryAnswers(Counting()))), ("둘", Counselor(ScriptedBackend(GOOD)))]
    out = tmp_path / "answers.csv"
    with pytest.raises(UserError, match="stopped"):
        answer_all(questions, bots, out, states={"a/b": "trained on Monday"})
    assert not out.exists()
    partial = tmp_path / "answers.csv.partial"
    partial.write_bytes(partial.read_bytes() + '{"question": "가'.encode()[:-1])  # killed within a character
    Counting.asked = -1000
    kept = partial.read_bytes()
    assert answer_all(questions, bots, out, states={"a/b": "trained on Monday"}) == 50
    assert Counting.asked == -1000 + 50 - 32  # two batches of 16 were kept
    partial.write_bytes(kept)
    assert answer_all(questions, bots, out, states={"a/b": "trained anew"}) == 50
    assert Counting.asked == -1000 + 50 - 32 + 50
    assert not list(tmp_path.glob("*.partial"))
    with out.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["question"] for row in rows[:3]] == ["'=1+1 수면", "'@직장", "가족\u20280"]
    assert rows[0]["a/b category"] == "수면"
    assert float(rows[0]["a/b score"]) == 0.9
    assert rows[0]["둘 answer"] == GOOD
    assert rows[0]["emotion"]
    book = tmp_path / "answers.xlsx"
    assert answer_all(out, bots, book) == 50
    cell = openpyxl.load_workbook(book).active["A2"]
    assert (cell.value, cell.data_type) == ("'=1+1 수면", "s")


KILLED = """
import os, sys
from pathlib import Path

from chat_standin import ScriptedBackend
from pipeline.answer import answer_all
from pipeline.chat.counselor import Counselor

questions, out, place = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
sync, synced = os.fsync, []


def mortal(file):
    synced.append(file)
    if len(synced) == place:
        os.truncate(file, os.fstat(file).st_size // 2)
        os.kill(os.getpid(), 9)
    sync(file)


os.fsync = mortal
bot = Counselor(ScriptedBackend("그러셨군요. 더 들려주시겠어요?"))
one = bot.reply_many
bot.reply_many = lambda batch: print(len(batch), flush=True) or one(batch)
answer_all(questions, [("one", bot)], out)
"""


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_killed_while_the_table_is_written_no_half_of_it_stays(kind, tmp_path):
    questions, out = tmp_path / "q.txt", tmp_path / f"a.{kind}"
    questions.write_text("\n".join(f"수면 {n}" for n in range(20)), encoding="utf-8")
    out.write_text("old", encoding="utf-8")
    seen = []
    for place in (1, 2, 0):  # while the rows begin, while the table is written, never
        command = [sys.executable, "-c", KILLED, questions, out, str(place)]
        where = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **where})
        seen.append((done.returncode, done.stdout.split()))
        if place:
            assert out.read_text("utf-8") == "old"
    assert seen == [(-9, []), (-9, ["16", "4"]), (0, [])], done.stderr  # nothing is asked twice
    assert {file.name for file in tmp_path.iterdir()} == {"q.txt", out.name}
    if kind == "csv":
        assert len(out.read_text("utf-8-sig").splitlines()) == 21
    else:
        assert openpyxl.load_workbook(out).active.max_row == 21


def test_answers_of_other_settings_are_not_gone_on_with(tmp_path):
    from pipeline.answer import answer_all

    def bots(sure, **settings):
        options = ChatOptions(**settings)
        return [("one", Counselor(CategoryAnswers(Telling(), confidence=sure), options))]

    class Stop(Exception):
        pass

    def stop(done):
        raise Stop

    questions, out = tmp_path / "questions.txt", tmp_path / "answers.csv"
    questions.write_text("\n".join(f"수면 {n}" for n in range(20)), encoding="utf-8")
    for settings, sources in (({}, {"notice", "reviewed"}), ({"seed": 2}, {"reviewed"})):
        with pytest.raises(Stop):
            answer_all(questions, bots(1.0), out, stop)  # 16 rows are kept, all unsure
        answer_all(questions, bots(0.0, **settings), out)
        with out.open(encoding="utf-8-sig", newline="") as file:
            assert {row["one source"] for row in csv.DictReader(file)} == sources


def test_a_workbook_holds_a_formula_as_text_and_bad_files_are_told(tmp_path):
    from pipeline.answer import answer_all

    bots = [("one", Counselor(CategoryAnswers(Telling())))]
    questions = tmp_path / "q.csv"
    questions.write_text("질문\n=HYPERLINK(1) 수면\n", encoding="utf-8")
    answer_all(questions, bots, tmp_path / "a.xlsx")
    cell = openpyxl.load_workbook(tmp_path / "a.xlsx").active["A2"]
    assert (cell.value, cell.data_type) == ("=HYPERLINK(1) 수면", "s")
    for text, out, says in (
        ("질문\n", "a.csv", "no question"),
        ("색\n붉은\n", "a.csv", "no question"),
        ("", "a.pdf", ".pdf"),
    ):
        questions.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=says):
            answer_all(questions, bots, tmp_path / out)


def test_every_question_of_a_category_meets_every_answer_of_it(tmp_path):
    from data_prep.sources import read

    table = tmp_path / "wellness.csv"
    table.write_text("구분,유저,챗봇\n수면,못 자요,푹 쉬세요\n,깨요,\n,,우유요\n직장,야근요,\n", encoding="utf-8")
    found = [result for _, _, result in read("wellness_pairs", str(table))]
    talks = [one.exchanges()[0] for one in found if not isinstance(one, str)]
    assert talks == [(q, a) for q in ("못 자요", "깨요") for a in ("푹 쉬세요", "우유요")]
    assert [one for one in found if isinstance(one, str)] == ["a question without an answer, and its category has none"]
