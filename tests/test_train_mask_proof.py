"""What a tokenizer or a chat template does to a reply: read back as it was written, or refused with its row."""

from copy import deepcopy

import pytest
from mask_standin import CHATML, KULLM3, PLAIN, small_tokenizer, spoken, talk, words_tokenizer

from gonggam.errors import UserError
from gonggam.files import write_jsonl
from pipeline.prompt import template
from pipeline.train.mask import IGNORE, supervise
from pipeline.train.shapes import MARKUP

END = MARKUP["llama"].end
QWEN3 = CHATML.replace(
    "m['content']", "('<think>\n\n</think>\n\n' if loop.last and m['role'] == 'assistant' else '') + m['content']"
)


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def test_a_tokenizer_that_puts_a_token_in_front_puts_none_into_training(tokenizer):
    """Llama's adds its begin token to any text; templates that want one write it."""
    from tokenizers.processors import TemplateProcessing

    other = deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(single="<|pad|> $A", special_tokens=[("<|pad|>", 0)])
    assert other("네")["input_ids"][0] == 0
    messages = talk("힘들어", "많이 지치셨군요.", "응", "무슨 일이 있었나요?")
    assert supervise(other, messages) == supervise(tokenizer, messages)


def test_a_template_that_rewrites_the_past_is_refused(tokenizer):
    other = deepcopy(tokenizer)
    other.chat_template = "{{ messages | length }}" + CHATML.replace("<|im_end|>", END)
    with pytest.raises(
        UserError,
        match=r"^row-7: .* does not keep prefixes \(what .* made\. set model\.chat_template to one that keeps",
    ):
        supervise(other, talk("안녕", "네", "음", "네"), name="row-7")


def test_a_template_that_puts_thoughts_before_the_last_reply_is_refused(tokenizer):
    other = deepcopy(tokenizer)
    other.chat_template = QWEN3.replace("<|im_end|>", END)
    with pytest.raises(UserError, match="model"):
        supervise(other, talk("안녕", "네"))


def test_a_template_without_eos_is_refused(tokenizer):
    other = deepcopy(tokenizer)
    other.chat_template = KULLM3.replace("+ eos_token", "")
    with pytest.raises(
        UserError, match=r"^row-7: .* end-of-sequence token '<\|end\|>'\. set model\.chat_template to one that does"
    ):
        supervise(other, talk("안녕", "네"), name="row-7")


def test_a_reply_the_tokenizer_cannot_write_stops_the_run(tokenizer):
    poor = words_tokenizer(["<unk>", "</s>", "안녕"], PLAIN)
    for unknown in ("모르는말", "모" * 30):
        with pytest.raises(
            UserError, match=rf"^row-7: the vocabulary of words lacks '{unknown[:20]}' of a reply\. clean"
        ):
            supervise(poor, talk("안녕", f"안녕 {unknown}"), name="row-7")


def test_a_reply_that_melts_into_the_prompt_is_refused():
    template = (
        "{% for m in messages %}{{ ('답' if m['role'] == 'assistant' else '') + m['content'] + ' </s> ' }}{% endfor %}"
        "{% if add_generation_prompt %}답{% endif %}"
    )
    melting = words_tokenizer(["<unk>", "</s>", "안녕", "답", "답네"], template)
    with pytest.raises(
        UserError, match=r"^row-7: the tokens before reply 1 .* follows\. the chat template must end its"
    ):
        supervise(melting, talk("안녕", "네"), name="row-7")


def test_replies_are_read_back_as_they_were_written():
    tidy = words_tokenizer(["<unk>", "</s>", "안녕", "네▁네", ".", "정말", "?"], PLAIN)
    tidy.clean_up_tokenization_spaces = True  # as BERT's does: it would take the blank before a full stop away
    said = "네▁네 . 정말 ?"
    assert spoken(tidy, supervise(tidy, talk("안녕", said))) == [said + " </s>"]


def test_a_reply_that_is_read_back_otherwise_is_refused():
    from tokenizers import decoders

    odd = words_tokenizer(["<unk>", "</s>", "안녕", "네" * 90], PLAIN)
    odd.backend_tokenizer.decoder = decoders.Replace("네", "내")
    with pytest.raises(
        UserError,
        match=r"^row-7: the supervised tokens spell '내{80}', not the reply\. the tokenizer cannot write this",
    ):
        supervise(odd, talk("안녕", "네" * 90), name="row-7")


def test_what_the_tokenizer_normalizes_is_still_the_reply():
    from tokenizers import normalizers

    lower = words_tokenizer(["<unk>", "</s>", "안녕", "hello"], PLAIN, normalizers.Lowercase())
    assert supervise(lower, talk("안녕", "Hello")).labels == [IGNORE, IGNORE, 3, 1]


@pytest.mark.parametrize("prepend", [True, False], ids=["prepend", "as-is"])
@pytest.mark.parametrize("name", ["eeve", "kullm3", "kullm-polyglot"])
def test_tokenizers_that_write_blanks_as_marks_are_proven_too(name, prepend):
    """Llama 2, and so EEVE and KULLM3: BPE with SentencePiece's ▁, bytes for what is in no piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    marks = normalizers.Replace(" ", "▁")
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marks]) if prepend else marks
    pieces.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces.train_from_iterator(
        ["오늘은 정말 힘든 하루였어요."],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>", eos_token="</s>")
    tokenizer.chat_template = template(name)
    said = ["정말 힘든 하루였어요.", "힘든▁정말 😀\n오늘은"]
    row = supervise(tokenizer, talk("오늘은", said[0], "응", said[1]))
    assert spoken(tokenizer, row) == [reply.replace("▁", " ") + "</s>" for reply in said]


def test_rows_whose_replies_the_vocabulary_cannot_write_are_left_out_and_counted(tmp_path, caplog):
    from pipeline.train.data import dpo_rows, sft_rows

    known = "힘드셨겠어요"
    words = words_tokenizer(["<unk>", "</s>", "안녕", known], PLAIN)
    talks = [{"id": f"c{n}", "messages": talk("안녕", known)} for n in range(10)]
    talks.insert(0, {"id": "odd", "messages": talk("안녕", known + " 똠")})
    pairs = [
        {"id": t["id"], "prompt": t["messages"][:1], "chosen": t["messages"][1:], "rejected": talk("", known)[1:]}
        for t in talks
    ]
    write_jsonl(tmp_path / "messages/train.jsonl", talks)
    write_jsonl(tmp_path / "preference/train.jsonl", pairs)
    rows = sft_rows(words, tmp_path, "train", system=None, max_length=None)
    assert [row.name for row in rows] == [f"c{n}" for n in range(10)]
    assert len(dpo_rows(words, tmp_path, "train", system=None, max_length=None)) == 10
    assert "1 of 11 conversations of the train split are left out" in caplog.text
    assert "'똠'" in caplog.text
    assert "1 of 11 pairs" in caplog.text
    assert known not in caplog.text
    write_jsonl(tmp_path / "messages/train.jsonl", talks[:5])
    with pytest.raises(UserError, match=r"odd: the vocabulary of .* lacks '똠'"):
        sft_rows(words, tmp_path, "train", system=None, max_length=None)
