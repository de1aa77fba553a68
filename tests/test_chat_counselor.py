"""The inference function: multi-turn, remembering, safe, and leaving no trace where it fails."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest
from chat_standin import ScriptedBackend, bigram_memory, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from gonggam.errors import UserError
from pipeline.chat.backends import BackendError
from pipeline.chat.context import build
from pipeline.chat.counselor import Ask, Counselor
from pipeline.chat.options import ChatOptions, GateOptions
from pipeline.chat.reply import Note, Reply
from pipeline.chat.resources import data
from pipeline.chat.turn import clean

GOOD = "많이 속상하셨겠어요. 애써 준비하신 시간이 있어서 더 그러실 거예요. 지금 가장 마음에 남는 건 무엇인가요?"


@pytest.fixture
def memory(tmp_path):
    return bigram_memory(tmp_path, threshold=0.0)


class Knowledge:
    """Stands in for `rag.knowledge.KnowledgeBase`."""

    def __init__(self, *answers, cosine=0.9, emotion=None):
        self.answers, self.cosine, self.emotion = answers, cosine, emotion

    def search(self, question, k=3):
        from rag.knowledge import Hit

        return [Hit("질문", answer, 1.0, self.cosine, {"emotion": self.emotion}) for answer in self.answers[:k]]


def bot(*texts, **parts):
    return Counselor(ScriptedBackend(*(texts or (GOOD,))), system="s", **parts)


def test_a_reply_is_typed_and_goes_into_json():
    reply = bot().reply("면접 떨어졌어 ㅠㅠ", user="minji", session="a")
    assert (reply.text, reply.source, reply.risk, reply.session) == (GOOD, "model", "none", "a")
    assert reply.emotion.label
    assert reply.introduction
    assert "AI" in reply.introduction
    assert Reply.model_validate(json.loads(reply.model_dump_json())) == reply


@given(st.text(st.sampled_from("가각a \u200b\u202e\x00\ud800\n")))
def test_a_message_is_cleaned_once_and_for_all(text):
    """What is hidden between the letters of a syllable keeps them apart no longer."""
    said = Ask(text).text
    assert Ask(said).text == said == clean(said)
    assert not set(said) & set("\u200b\u202e\x00\ud800")
    assert Ask("ᄀ\u200bᅡ").text == "가"


def test_the_session_goes_into_the_prompt_and_users_and_sessions_stay_apart():
    counselor = bot()
    counselor.reply("면접 떨어졌어", user="minji", session="a")
    second = counselor.reply("또 봐야 할까", user="minji", session="a")
    counselor.reply("안녕하세요 오늘 좀 지쳐요", user="minji", session="b")
    counselor.reply("저는 다른 사람이에요 반가워요", user="dana", session="a")
    asked = [[m["content"] for m in request.messages] for request in counselor.backend.asked]
    assert asked[1] == ["s", "면접 떨어졌어", GOOD, "또 봐야 할까"]
    assert [len(contents) for contents in asked] == [2, 4, 2, 2]
    assert second.introduction is None


def test_with_neither_user_nor_session_nothing_is_kept():
    counselor = bot()
    counselor.reply("첫 번째 이야기예요")
    counselor.reply("두 번째 이야기예요")
    assert len(counselor.backend.asked[1].messages) == 2


def test_exchanges_are_remembered_recalled_and_forgotten(memory):
    counselor = bot(memory=memory)
    first = counselor.reply("우리 강아지 초코가 아파서 병원에 갔어", user="minji", session="1")
    later = counselor.reply("초코가 아파서 걱정이야", user="minji", session="2")
    assert [note.id for note in later.recalled] == [first.exchange]
    assert "초코가 아파서 병원에" in counselor.backend.asked[1].messages[-1]["content"]
    assert counselor.reply("초코가 아파서 걱정이야", user="dana").recalled == ()
    # what is remembered is what was said, not the notes that stood beside it
    assert counselor.export("minji")["exchanges"][-1]["user"] == "초코가 아파서 걱정이야"
    assert counselor.forget("minji", first.exchange)
    assert not counselor.forget("minji", first.exchange)
    counselor.forget("minji")
    assert counselor.export("minji")["exchanges"] == []


def test_what_was_told_is_remembered_whoever_answered(memory):
    counselor = bot("하하하하하하하하하하하하.", memory=memory)
    assert counselor.reply("우리 강아지 초코가 아파", user="a").exchange
    assert counselor.reply("너 사람이야?", user="a").exchange is None


def test_a_session_goes_on_in_a_new_process(memory):
    bot(memory=memory).reply("면접 떨어졌어", user="minji", session="1")
    again = bot(memory=memory)
    again.reply("그래서 속상해", user="minji", session="1")
    contents = [m["content"] for m in again.backend.asked[0].messages]
    assert contents == ["s", "면접 떨어졌어", GOOD, "그래서 속상해"]


def test_high_risk_is_answered_by_people_not_remembered_and_the_talk_goes_on(memory):
    counselor = bot(memory=memory)
    first = counselor.reply("죽고 싶어", user="minji", session="1")
    second = counselor.reply("진짜 죽고 싶어요", user="minji", session="1")
    assert (first.source, first.risk) == ("safety", "high")
    assert "109" in first.text
    assert second.text != first.text
    assert counselor.backend.asked == []
    assert counselor.export("minji")["exchanges"] == []
    third = counselor.reply("들어줘서 조금 나아졌어", user="minji", session="1")
    assert (third.source, third.risk) == ("model", "low")
    remembering = bot(memory=memory, options=ChatOptions(safety={"remember": True}))
    assert remembering.reply("죽고 싶어", user="dana").exchange


def test_a_danger_that_was_told_is_asked_on_and_then_the_talk_moves_on():
    counselor, standing = bot(), data("crisis")["standing"]
    said = ["죽고 싶어", "네", "아니 그냥요", "괜찮아요", "몰라요", "괜찮다니까요", "오늘 저녁은 카레를 먹었어요", "네"]
    replies = [counselor.reply(text, user="a") for text in said]
    asked = [standing["affirmed"][0], standing["denied"][0], standing["denied"][1], standing["withdrawn"][0]]
    assert [reply.text for reply in replies[1:5]] == [text.strip() for text in asked]
    assert [reply.risk for reply in replies] == ["high"] * 5 + ["low"] * 3
    check_in = data("crisis")["check_in"].strip()
    assert [check_in in reply.text for reply in replies] == [False] * 5 + [True] + [False] * 2


def test_a_danger_is_seen_in_a_conversation_held_elsewhere_too():
    """Whoever answered there may not have noticed it."""
    told = [{"role": "user", "content": "죽고 싶어"}, {"role": "assistant", "content": "오늘은 뭐 드셨어요?"}]
    counselor = bot()
    asked = counselor.stream(Ask("네", session="a", history=told))
    assert "".join(asked) == data("crisis")["standing"]["affirmed"][0].strip()
    counselor.take_up(told, session="b")
    assert counselor.reply("네", session="b").reasons == ("standing_affirmed",)


def test_the_concern_and_the_feelings_outlive_a_restart_without_a_word_of_the_crisis(memory):
    marking = ChatOptions(safety={"remember_mark": True})
    first = bot(memory=memory, options=marking)
    emotion = first.reply("면접 떨어졌어 ㅠㅠ", user="a", session="1").emotion
    first.reply("수박처럼 부서지고 싶어 그냥 죽고 싶어", user="a", session="1")
    memory.close()
    again = bot(memory=memory, options=marking)
    assert again.history("a", "1")[0].emotion == emotion
    reply = again.reply("괜찮아요", user="a", session="1")
    assert (reply.source, reply.kind, reply.reasons) == ("safety", "suicide", ("standing_denied",))
    assert again.reply("진짜 죽고 싶어", user="a", session="1").text == data("crisis")["suicide"]["again"][0].strip()
    stored = b"".join(path.read_bytes() for path in memory.root.rglob("*") if path.is_file()).decode("utf-8", "ignore")
    assert "수박" not in stored
    assert len(again.export("a")["marks"]) == 3
    assert again.forget("a")
    assert "marks" not in again.export("a")


def test_nothing_of_a_crisis_is_kept_unless_the_recipe_says_so(memory):
    bot(memory=memory).reply("죽고 싶어", user="a", session="1")
    assert bot(memory=memory).export("a") == {"format": 1, "user": "a", "exchanges": []}


def test_a_reply_without_an_emotion_is_remembered_without_one(memory):
    said = Reply(text=GOOD, source="model", risk="none", memorable=True)
    bot(memory=memory).remember("면접을 봤어", said, user="a", session="1")
    again = bot(memory=memory)
    assert "meta" not in again.export("a")["exchanges"][0]
    assert [(turn.user, turn.emotion) for turn in again.history("a", "1")] == [("면접을 봤어", None)]


def test_without_a_memory_there_is_nothing_to_take_along_and_nothing_left_to_erase():
    counselor = bot()
    counselor.reply("면접을 봤어", user="a", session="1")
    assert counselor.export("a") == {"format": 1, "user": "a", "exchanges": []}
    assert not counselor.forget("a", "some exchange")
    assert counselor.forget("a")
    assert counselor.history("a", "1") == []


def test_one_session_in_two_processes_is_one_conversation(memory):
    from rag.memory import MemoryStore

    other = MemoryStore(memory.root, memory.embedder, memory.settings)
    one, two = bot(memory=memory), bot(memory=other)
    one.reply("면접 떨어졌어", user="a", session="1")
    two.reply("그래서 속상해", user="a", session="1")
    one.reply("또 볼 거야", user="a", session="1")
    said = ["면접 떨어졌어", "그래서 속상해", "또 볼 거야"]
    assert [turn.user for turn in two.history("a", "1")] == [turn.user for turn in one.history("a", "1")] == said
    assert [m["content"] for m in one.backend.asked[1].messages if m["role"] == "user"] == said
    two.reset("a", "1")
    assert bot(memory=memory).history("a", "1") == []
    assert len(one.export("a")["exchanges"]) == 3


def test_worry_for_someone_else_gets_numbers_once():
    counselor = bot()
    first = counselor.reply("친구가 죽고 싶다고 해요 어떡하죠", user="a")
    second = counselor.reply("친구가 자꾸 죽고 싶다고 해요", user="a")
    assert first.text.startswith(GOOD)
    assert "109" in first.text
    assert "109" not in second.text


def test_it_says_what_it_is_and_closes_with_a_summary():
    counselor = bot()
    assert "AI" in counselor.reply("너 사람이야?", user="a").text
    counselor.reply("팀장님이 제 기획안을 다 뒤집었어요. 너무 허탈해요", user="a")
    bye = counselor.reply("고마워, 이만 종료할게", user="a")
    assert bye.ended
    assert "팀장님이 제 기획안을" in bye.text
    assert counselor.history("a") == []
    assert counselor.reply("다시 왔어요 또 이야기해요", user="a").introduction


@pytest.mark.parametrize("text", ["", "  \n", "\u200b\x00\x07"])
def test_nothing_to_read_is_said_kindly(text):
    reply = bot().reply(text, user="a")
    assert (reply.source, reply.text) == ("notice", data("texts")["empty"])


def test_odd_messages_have_defined_answers():
    counselor = bot("하하하하하하하하하하하하.")
    assert counselor.reply("가" * 100_000, user="a").text == data("texts")["too_long"].format(limit=4000)
    assert counselor.reply("😀😭💔", user="a").text == data("texts")["no_words"]
    assert counselor.reply("I feel so tired these days", user="a").text == data("texts")["not_korean"]
    assert counselor.reply("죽고 싶어 " * 20_000, user="b").risk == "high"
    broken = bot().reply("힘들\ud800었어\x00요\u202e", user="c")
    assert broken.text == GOOD


def test_a_withdrawn_reply_is_answered_by_people_and_never_twice_the_same():
    counselor = bot("하하하하하하하하하하하하.", knowledge=Knowledge("첫째 답이에요.", "둘째 답이에요."))
    found = [counselor.reply(text, user="a") for text in ("힘들어요 정말", "너무 힘들어요", "계속 힘들어요")]
    assert [reply.source for reply in found] == ["knowledge", "knowledge", "notice"]
    assert [reply.text for reply in found[:2]] == ["첫째 답이에요.", "둘째 답이에요."]
    assert "repetition" in found[0].reasons
    far = bot("하하하하하하하하하하하하.", knowledge=Knowledge("딴 얘기예요.", cosine=0.0))
    assert far.reply("힘들어요 정말", user="a").source == "notice"


def test_an_answer_to_the_opposite_feeling_is_not_given():
    glad = Knowledge("정말 신나시겠어요! 내일이 기다려지죠?", emotion="설레는(기대하는)")
    counselor = bot("하하하하하하하하하하하하.", knowledge=glad)
    assert counselor.reply("내일 학교 가기 싫어").source == "notice"
    assert counselor.reply("내일 드디어 여행이다").source == "knowledge"
    counselor.reply("죽고 싶어", user="a")
    assert counselor.reply("내일 드디어 여행이다", user="a").source == "notice"


def test_a_stream_gives_the_reply_and_cancelling_leaves_no_trace(memory):
    counselor = bot(memory=memory)
    stream = counselor.stream("면접 떨어졌어", user="a")
    assert "".join(stream) == stream.reply.text == GOOD
    cut = counselor.stream("이건 취소할 말이야", user="a")
    next(cut)
    cut.close()
    with pytest.raises(UserError, match="cancelled"):
        cut.reply  # noqa: B018
    assert len(counselor.history("a")) == len(counselor.export("a")["exchanges"]) == 1
    assert counselor.reply("다음 말이야", user="a").source == "model"  # the session is free again


def test_a_backend_that_fails_halfway_leaves_no_trace(memory):
    counselor = Counselor(ScriptedBackend(GOOD, fail=BackendError("gone")), memory=memory)
    with pytest.raises(BackendError, match="gone"):
        counselor.reply("면접 떨어졌어", user="a")
    assert counselor.history("a") == counselor.export("a")["exchanges"] == []


def test_async_twins_and_cancelled_tasks():
    counselor = bot()

    async def talk():
        reply = await counselor.areply("면접 떨어졌어", user="a")
        stream = counselor.astream("또 떨어졌어", user="a")
        pieces = [piece async for piece in stream]
        return reply, pieces, stream.reply

    reply, pieces, last = asyncio.run(talk())
    assert reply.text == GOOD == "".join(pieces) == last.text
    assert len(pieces) > 1


def test_many_replies_keep_order_and_sessions():
    counselor = bot()
    asks = [
        Ask("안녕 나 힘들어", "a"),
        Ask("나도 힘들어요", "b"),
        Ask("그래서 말인데요", "a"),
        "이름 없이 말해요",
        Ask("죽고 싶어", "c"),
    ]
    replies = counselor.reply_many(asks)
    assert [reply.source for reply in replies] == ["model"] * 4 + ["safety"]
    assert [turn.user for turn in counselor.history("a")] == ["안녕 나 힘들어", "그래서 말인데요"]
    assert counselor.reply_many([]) == []


def test_two_threads_of_one_user_take_turns(memory):
    counselor = bot(memory=memory)
    threads = [
        threading.Thread(target=counselor.reply, args=(f"{i}번째 이야기예요",), kwargs={"user": "a"}) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turns = counselor.history("a")
    assert len(turns) == len(counselor.export("a")["exchanges"]) == 8
    lengths = sorted(len(request.messages) for request in counselor.backend.asked)
    assert lengths[0] == 2
    assert all(length % 2 == 0 for length in lengths)


def test_personas_change_the_system_text_and_unknown_ones_are_told():
    counselor = bot()
    assert counselor.personas[0] == "기본"
    assert len(counselor.personas) == 10
    counselor.reply("면접 떨어졌어", user="a", persona="할아버지")
    system = counselor.backend.asked[0].messages[0]["content"]
    assert system.startswith("s\n\n")
    assert "할아버지" in system
    with pytest.raises(UserError, match="no persona '해적'"):
        counselor.reply("안녕", user="a", persona="해적")


def test_a_converter_speaks_the_persona_and_memory_keeps_what_was_seen(memory):
    counselor = bot(memory=memory, convert=lambda text, persona: f"허허, {text}")
    reply = counselor.reply("면접 떨어졌어", user="a", persona="할아버지")
    assert reply.text == f"허허, {GOOD}"
    assert counselor.backend.asked[0].messages[0]["content"] == "s"
    assert counselor.export("a")["exchanges"][0]["reply"] == reply.text
    assert counselor.reply("또 떨어졌어", user="a").text == GOOD
    circling = bot(convert=lambda text, persona: "허허 그래 그래요 " * 12)
    assert circling.reply("면접 떨어졌어", persona="할아버지").text == GOOD


def test_no_log_line_holds_what_was_said(caplog):
    caplog.set_level(logging.DEBUG)
    counselor = bot("하하하하하하하하하하하하.")
    counselor.reply("비밀스러운 면접 이야기", user="minji-secret")
    assert "비밀스러운" not in caplog.text
    assert "하하하" not in caplog.text
    assert "minji-secret" not in caplog.text


NOTE = Note(id="n", session="s", when="2026-01-01T00:00:00+00:00", user="지난 말", reply="답", score=1.0)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30)), max_size=8),
    st.text(min_size=1, max_size=40),
    st.integers(1, 300),
)
def test_whole_exchanges_are_dropped_oldest_first(exchanges, text, room):
    def count(messages):
        return sum(len(m["content"]) for m in messages)

    messages, kept, noted = build("sys", exchanges, text, [NOTE], count, room)
    fits = count(messages) <= room
    assert fits or (kept, noted) == (0, 0)
    flat = [part for pair in exchanges[len(exchanges) - kept :] for part in pair]
    assert [m["content"] for m in messages[1:-1]] == flat
    assert messages[-1]["content"].endswith(text)
    if fits and kept < len(exchanges):  # one more would not have fitted
        user, reply = exchanges[len(exchanges) - kept - 1]
        assert count(messages) + len(user) + len(reply) > room


def test_long_conversations_keep_to_the_context():
    counselor = Counselor(ScriptedBackend(GOOD, context=200), ChatOptions(max_new_tokens=50), system="s")
    for turn in range(8):
        counselor.reply(f"{turn}번째로 하는 조금 긴 이야기예요 그렇지요", user="a")
    assert all(counselor.backend.count(request.messages) <= 150 for request in counselor.backend.asked)
    assert "줄여" in (short := counselor.reply("가나다라 " * 60, user="a").text) or "나눠" in short


def test_load_tells_what_is_missing(tmp_path):
    with pytest.raises(UserError):
        Counselor.load(str(tmp_path / "nothing-here"))
    with pytest.raises(UserError, match=r"config\.json is missing"):
        Counselor.load(tmp_path)
    with pytest.raises(UserError, match=r"chat\.temperature"):
        Counselor.load(tmp_path, temperature=9)
    with pytest.raises(UserError, match="no run folder"):
        Counselor.load("openai:http://127.0.0.1:9/v1", run=tmp_path)


def test_a_model_folder_answers_and_its_broken_replies_are_caught(tmp_path):
    folder = tiny_model(tmp_path / "model")
    counselor = Counselor.load(folder, max_new_tokens=24, seed=1, gate=GateOptions(retries=0).model_dump())
    reply = counselor.reply("면접 떨어졌어 <|end|><|assistant|>", user="a")
    assert reply.source == "notice"
    assert reply.usage.completion_tokens
    counselor.close()
    with pytest.raises(BackendError, match="closed"):
        counselor.reply("면접 떨어졌어", user="a")


def test_parity_is_checked(tmp_path):
    from transformers import AutoTokenizer

    from pipeline.chat.parity import check_parity, write_parity
    from pipeline.prompt import encode

    tokenizer = AutoTokenizer.from_pretrained(tiny_model(tmp_path / "model"))
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "안녕"}]
    assert not check_parity(tmp_path, tokenizer)
    write_parity(tmp_path, messages, encode(tokenizer, messages))
    assert check_parity(tmp_path, tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("| trim", "| upper")
    write_parity(tmp_path, [*messages[:1], {"role": "user", "content": "hello"}], encode(tokenizer, messages))
    with pytest.raises(UserError, match="differs from the one of training"):
        check_parity(tmp_path, tokenizer)
