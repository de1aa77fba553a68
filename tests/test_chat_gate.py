"""The quality gate: good replies pass, broken ones do not, and a stream never takes back what it showed."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import pytest
from chat_standin import ScriptedBackend
from hypothesis import given
from hypothesis import strategies as st

import data_prep
from pipeline.chat import gate
from pipeline.chat.backends import Settings
from pipeline.chat.options import GateOptions
from pipeline.chat.safety import check_output
from pipeline.chat.speak import Speaker
from pipeline.chat.streams import ReplyStream

OPTIONS = GateOptions()
GOOD = "또 떨어지셨다니 정말 속상하셨겠어요. 애써 준비하셔서 더 그러실 거예요. 어떤 점이 가장 마음에 남으세요?"
SAID = "면접 또 떨어졌어 ㅠㅠ 준비 진짜 열심히 했는데"


def exchanges():
    path = Path(data_prep.__file__).parent / "samples" / "counsel_ko" / "dialogues.jsonl"
    for line in path.open(encoding="utf-8"):
        turns = json.loads(line)["turns"]
        yield from zip(turns[::2], turns[1::2], strict=True)


def test_every_human_reply_of_the_sample_corpus_passes():
    for user, reply in exchanges():
        assert gate.check(reply["content"], user["content"], OPTIONS).ok
        assert gate.whole(reply["content"])
        assert check_output(reply["content"]) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("네.", "too short"),
        ("괜찮아요. " * 200, "too long"),
        ("그 마음이 그 마음이 그 마음이 그 마음이 그 마음이 있어요.", "repetition"),
        ("정말 힘드셨겠어요. 정말 힘드셨겠어요. 정말 힘드셨겠어요. 어떠세요?", "repetition"),
        ("아아아아아아아아아아 그렇군요 많이요", "repetition"),
        ("많이 속\ufffd하셨겠어요. 괜찮아요.", "broken characters"),
        ("많이 속상ㅎ셨겠어요 그렇죠.", "broken characters"),
        ("많이 속상\x07하셨겠어요.", "broken characters"),
        ("속상하셨겠어요.<|user|>안녕하세요 저는", "role marker"),
        ("그러셨군요 힘드셨죠.\n질문: 저는 어떻게 하죠?", "role marker"),
        ("면접 또 떨어졌어, 준비 진짜 열심히 했는데.", "echo"),
    ],
)
def test_broken_replies_are_named(text, reason):
    verdict = gate.check(text, SAID, OPTIONS)
    assert not verdict.ok
    assert reason in verdict.reasons


def test_likelihood_counts_only_where_a_floor_is_known():
    assert gate.check(GOOD, SAID, OPTIONS, mean_logprob=-9).ok
    assert gate.check(GOOD, SAID, OPTIONS, mean_logprob=-2, floor=-3).ok
    assert gate.check(GOOD, SAID, OPTIONS, mean_logprob=-4, floor=-3).reasons == ("unlikely",)


def test_a_gate_that_is_off_lets_all_but_nothing_pass():
    off = GateOptions(enabled=False)
    assert gate.check("하하하하하하하하하하하하하", SAID, off).ok
    assert not gate.check("  ", SAID, off).ok
    assert gate.lost("하하하하하하하하하하하하하", OPTIONS) == ("repetition",)
    assert gate.lost("하하하하하하하하하하하하하", off) == ()


@given(st.text(alphabet='가나다요. !?\n…"ㅠㅋabc', max_size=80))
def test_sentences_joined_are_the_text(text):
    assert "".join(gate.sentences(text)) == text


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_can_be_judged(text, said):
    gate.check(text, said, OPTIONS)
    assert 0 <= gate.repetition(text) < 1
    assert 0 <= gate.echo(text, said) <= 1


def speak(backend, options=OPTIONS, floor=None, temperature=0.7, said=SAID):
    speaker = Speaker(backend, options, floor, lambda said, before, grave: ("사람이 쓴 답이에요.", "knowledge"))
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": said}]
    stream = ReplyStream(speaker.speak(messages, said, Settings(temperature=temperature), Event()), Event())
    pieces = list(stream)
    spoken = stream.reply
    assert "".join(pieces) == spoken.text
    return spoken


def test_a_good_reply_is_let_out_sentence_by_sentence():
    spoken = speak(ScriptedBackend(GOOD))
    assert (spoken.text, spoken.source, spoken.reasons) == (GOOD, "model", ())


def test_a_failing_first_sentence_is_tried_again_then_answered_by_people():
    backend = ScriptedBackend("하하하하하하하하하하하하.", GOOD)
    assert speak(backend).source == "model"
    assert len(backend.asked) == 2
    spoken = speak(ScriptedBackend("하하하하하하하하하하하하."))
    assert (spoken.text, spoken.source) == ("사람이 쓴 답이에요.", "knowledge")
    assert spoken.usage.prompt_tokens == 14  # both tries are counted
    once = ScriptedBackend("하하하하하하하하하하하하.")
    speak(once, temperature=0)
    assert len(once.asked) == 1  # without chance it would say the same again


def test_a_reply_ends_before_the_sentence_that_fails_and_the_model_is_stopped():
    backend = ScriptedBackend("많이 속상하셨겠어요. 그 말이 그 말이 그 말이 그 말이 그 말이. " + GOOD)
    spoken = speak(backend)
    assert spoken.text == "많이 속상하셨겠어요."
    assert spoken.source == "model"
    assert "repetition" in spoken.reasons
    assert backend.streams[0].closed


def test_what_cannot_be_mended_stops_the_model_at_once():
    backend = ScriptedBackend("그 마음이 " * 40 + "있어요.", GOOD)
    assert speak(backend).text == GOOD
    assert backend.streams[0].usage.completion_tokens < 20


def test_a_sentence_cut_off_by_the_token_limit_is_not_shown():
    assert speak(ScriptedBackend("많이 속상하셨겠어요. 그래서 제가 드리고 싶은 말씀을")).text == "많이 속상하셨겠어요."
    assert speak(ScriptedBackend("많이 속상하셨을")).source == "knowledge"


def test_short_openings_wait_for_more():
    assert speak(ScriptedBackend("네. 그러셨군요, 많이 속상하셨겠어요.")).text.startswith("네. 그러셨")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("그건 우울증이에요. 병원에 가 보세요.", "diagnosis"),
        ("항우울제를 드세요. 좋아질 거예요.", "medication"),
        ("제가 반드시 낫게 해 드릴게요.", "promise"),
        ("무조건 좋아질 거예요, 걱정 마세요.", "promise"),
        ("힘들면 010-1234-5678로 전화 주세요.", "contact"),
        ("1393으로 전화해 보세요, 도움이 돼요.", "contact"),
        ("죽는 게 낫겠네요, 정말로요.", "encouragement"),
        ("저는 사람이에요, 걱정 말아요.", "human"),
    ],
)
def test_what_a_model_must_not_say_is_withdrawn(text, kind):
    assert kind in check_output(text)
    assert speak(ScriptedBackend(text)).source == "knowledge"


def test_the_numbers_that_may_be_named_pass():
    assert check_output("힘드실 때는 109나 1577-0199, 1388로 전화해 보세요. 위험하면 119, 112예요.") == ()


def test_a_reply_that_fits_anything_is_irrelevant_if_asked():
    class Vague(ScriptedBackend):
        def score(self, messages, reply, adapter=None):
            return -2.0

    asked = GateOptions(min_relevance=0.1)
    assert speak(Vague(GOOD), asked).source == "knowledge"
    assert speak(Vague(GOOD)).source == "model"
