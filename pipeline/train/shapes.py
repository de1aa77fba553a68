"""The shapes a tiny base may have: which special tokens, which chat template, which configuration.

``llama`` and ``gpt2`` go on with a text, ``modernbert`` reads one, ``bart`` turns one into another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pipeline.prompt import template


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


def build_model(tokenizer: PreTrainedTokenizerFast, section: Any) -> PreTrainedModel:
    """A randomly initialised model of the section's shape (fp32, tied embeddings)."""
    return _BUILDERS[section.architecture](tokenizer, section)


def _llama(tokenizer: PreTrainedTokenizerFast, section: Any) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.hidden_size,
            intermediate_size=section.intermediate_size,
            num_hidden_layers=section.num_hidden_layers,
            num_attention_heads=section.num_attention_heads,
            num_key_value_heads=section.num_key_value_heads,
            max_position_embeddings=section.max_position_embeddings,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _gpt2(tokenizer: PreTrainedTokenizerFast, section: Any) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=section.hidden_size,
            n_inner=section.intermediate_size,
            n_layer=section.num_hidden_layers,
            n_head=section.num_attention_heads,
            n_positions=section.max_position_embeddings,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _modernbert(tokenizer: PreTrainedTokenizerFast, section: Any) -> PreTrainedModel:
    """Normalised before each layer and pooled by the mean: of the encoders the one that learns from little text."""
    return ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.hidden_size,
            intermediate_size=section.intermediate_size,
            num_hidden_layers=section.num_hidden_layers,
            num_attention_heads=section.num_attention_heads,
            max_position_embeddings=section.max_position_embeddings,
            global_attn_every_n_layers=1,
            classifier_pooling="mean",
            pad_token_id=tokenizer.pad_token_id,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _bart(tokenizer: PreTrainedTokenizerFast, section: Any) -> PreTrainedModel:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer),
            d_model=section.hidden_size,
            encoder_ffn_dim=section.intermediate_size,
            decoder_ffn_dim=section.intermediate_size,
            encoder_layers=section.num_hidden_layers,
            decoder_layers=section.num_hidden_layers,
            encoder_attention_heads=section.num_attention_heads,
            decoder_attention_heads=section.num_attention_heads,
            max_position_embeddings=section.max_position_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=None,
        )
    )


_BUILDERS = {"llama": _llama, "gpt2": _gpt2, "modernbert": _modernbert, "bart": _bart}
