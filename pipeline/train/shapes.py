"""The shapes a tiny base may have: which special tokens, which chat template, which configuration.

``llama`` and ``gpt2`` go on with a text, ``modernbert`` reads one, ``bart`` turns one into another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pipeline.prompt import template

if TYPE_CHECKING:
    from pipeline.recipe.sections import TinyOptions


@dataclass(frozen=True)
class Markup:
    """The special tokens of a shape.

    Attributes:
        pad, end: padding and end of sequence, never the same token.
        roles: what stands before a turn of each role.
        more: further tokens of the vocabulary.
        chat_template: name under ``pipeline/templates``; None for shapes that hold no conversation.
        mask: the token that hides another, where the shape learns by filling in.
    """

    pad: str
    end: str
    roles: Mapping[str, str]
    more: tuple[str, ...] = ()
    chat_template: str | None = None
    mask: str | None = None


_NONE = {"system": "", "user": "", "assistant": ""}
MARKUP: dict[str, Markup] = {
    "llama": Markup("<|pad|>", "<|end|>", {r: f"<|{r}|>" for r in _NONE}, chat_template="gonggam"),
    # Those of skt/kogpt2-base-v2; <unused1> stands before a sentiment there (see docs/classic.md).
    "gpt2": Markup("<pad>", "</s>", {**_NONE, "user": "<usr>", "assistant": "<sys>"}, ("<unused1>",), "kogpt2"),
    "modernbert": Markup("[PAD]", "[SEP]", _NONE, ("[CLS]", "[UNK]"), mask="[MASK]"),
    "bart": Markup("<pad>", "</s>", _NONE, ("<s>", "<unk>"), mask="<mask>"),
}

MODELS: dict[str, type[PreTrainedModel]] = {
    "llama": LlamaForCausalLM,
    "gpt2": GPT2LMHeadModel,
    "modernbert": ModernBertForMaskedLM,
    "bart": BartForConditionalGeneration,
}


def build_tokenizer(
    texts: Iterator[str], vocab_size: int, max_length: int, architecture: str = "llama"
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over ``texts`` with the shape's special tokens, and a pad token that is not EOS."""
    markup = MARKUP[architecture]
    special = [markup.pad, markup.end, *filter(None, markup.roles.values()), *markup.more]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[*special, *filter(None, [markup.mask])],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    named: dict[str, Any] = {"additional_special_tokens": [t for t in markup.roles.values() if t] + [*markup.more]}
    if markup.mask:
        first = markup.more[0]
        named = {"cls_token": first, "bos_token": first, "unk_token": markup.more[1], "mask_token": markup.mask}
        named["sep_token"] = markup.end
        ends = [(first, bpe.token_to_id(first)), (markup.end, bpe.token_to_id(markup.end))]
        bpe.post_processor = processors.TemplateProcessing(single=f"{first} $A {markup.end}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=markup.pad,
        eos_token=markup.end,
        **named,
        chat_template=template(markup.chat_template) if markup.chat_template else None,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, section: TinyOptions) -> PreTrainedModel:
    """A randomly initialised model of the section's shape (fp32, tied embeddings)."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return MODELS[section.architecture](tiny_config(section, len(tokenizer), **ids))


def tiny_config(section: TinyOptions, vocab_size: int, **ids: int | None) -> PretrainedConfig:
    """The configuration of the section's shape; ``ids`` are those of the special tokens."""
    width, layers, heads = section.hidden_size, section.num_hidden_layers, section.num_attention_heads
    inner, longest = section.intermediate_size, section.max_position_embeddings
    common = {"vocab_size": vocab_size, "max_position_embeddings": longest, **ids, "tie_word_embeddings": True}
    plain = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    match section.architecture:
        case "llama":
            shared = section.num_key_value_heads or heads
            return LlamaConfig(**common, **plain, intermediate_size=inner, num_key_value_heads=shared)
        case "gpt2":
            return GPT2Config(**{**common, "bos_token_id": ids.get("eos_token_id")}, **plain, n_inner=inner)
        case "modernbert":
            # Normalised before each layer and pooled by the mean: of the encoders the one that learns from little text.
            ends = {"cls_token_id": ids.get("bos_token_id"), "sep_token_id": ids.get("eos_token_id")}
            whole = {"global_attn_every_n_layers": 1, "classifier_pooling": "mean"}
            return ModernBertConfig(**common, **plain, intermediate_size=inner, **ends, **whole)
        case "bart":
            sides = {"ffn_dim": inner, "layers": layers, "attention_heads": heads}
            both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
            start = {"decoder_start_token_id": ids.get("eos_token_id"), "forced_eos_token_id": None}
            return BartConfig(**common, **both, **start, d_model=width)
    raise ValueError(section.architecture)
