"""What the tests of the loss mask share: chat templates, a small tokenizer, one of whole words, and a row read back."""

from pipeline.train.mask import IGNORE
from pipeline.train.shapes import build_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KULLM3 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['content'] + ' </s> ' }}{% endfor %}"


def small_tokenizer():
    """Byte-level BPE, as the `tiny` stage builds it."""
    return build_tokenizer(iter(["오늘은 정말 힘든 하루였어요. 어떤 일이 있었나요?", "Human: hello 안녕"]), 400, 512)


def words_tokenizer(vocabulary, chat_template, normalizer=None):
    """A tokenizer of whole words, split at white space."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.normalizer = normalizer
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", name_or_path="words")
    made.chat_template = chat_template
    return made


def talk(*turns):
    """Messages of a conversation, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def spoken(tokenizer, row):
    """The supervised spans as text."""
    spans, open_span = [], False
    for label in row.labels:
        if label != IGNORE:
            spans = spans if open_span else [*spans, []]
            spans[-1].append(label)
        open_span = label != IGNORE
    return [tokenizer.decode(span, clean_up_tokenization_spaces=False) for span in spans]
