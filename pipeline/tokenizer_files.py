"""Tokenizers of Korean models that transformers would misread.

KoGPT2 and KoBART bring a whole ``tokenizer.json`` but do not say which class it is for: transformers 5 then takes the
class of the model's type and rebuilds it byte by byte, with which Korean text becomes no tokens at all. skt's KoBERT is
a BERT whose SentencePiece model is declared XLNet's, which would put [CLS] last and padding first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

_UNIGRAM = 1
_NAMES = ("bos", "eos", "pad")


def read_tokenizer(base: str, **source: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of ``base``, as its files mean it; ``source`` goes to ``from_pretrained``.

    Raises:
        OSError, ValueError: it cannot be found or read.
        UserError: a SentencePiece model of another kind than KoBERT's.
    """
    from transformers import AutoTokenizer

    told = _json(base, "tokenizer_config.json", source)
    if told.get("tokenizer_class") == "XLNetTokenizer" and _config(base, source).model_type == "bert":
        return _kobert(base, source)
    unnamed = "tokenizer_class" not in told and "auto_map" not in told
    if unnamed and _file(base, "tokenizer.json", source):
        return _as_it_stands(base, source)
    return AutoTokenizer.from_pretrained(base, **source)


def _as_it_stands(base: str, source: dict[str, Any]) -> PreTrainedTokenizerFast:
    """tokenizer.json itself; special tokens that nothing names are those of the model's configuration."""
    from transformers import PreTrainedTokenizerFast

    tokenizer, config = PreTrainedTokenizerFast.from_pretrained(base, **source), _config(base, source)
    for name in _NAMES:
        number = getattr(config, f"{name}_token_id", None)
        if getattr(tokenizer, f"{name}_token") is None and isinstance(number, int):
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(number))
    if tokenizer.unk_token is None and "<unk>" in tokenizer.get_vocab():
        tokenizer.unk_token = "<unk>"
    return tokenizer


def _kobert(base: str, source: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The SentencePiece model as BERT reads it: [CLS] text [SEP], padding at the end."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import sentencepiece_model_pb2_new as proto

    file = _file(base, "spiece.model", source)
    if file is None:
        raise UserError("it brings no spiece.model", "take another copy of the model", file=base)
    model = proto.ModelProto()
    model.ParseFromString(file.read_bytes())
    if model.trainer_spec.model_type != _UNIGRAM:
        raise UserError("its spiece.model is no unigram model", "name another encoder", file=file)
    pieces = [(one.piece, one.score) for one in model.pieces]
    numbers = {piece: number for number, (piece, _) in enumerate(pieces)}
    unigram = Tokenizer(models.Unigram(pieces, model.trainer_spec.unk_id))
    charsmap = model.normalizer_spec.precompiled_charsmap
    unigram.normalizer = normalizers.Sequence(
        [*([normalizers.Precompiled(charsmap)] if charsmap else []), normalizers.Strip(), _one_space()]
    )
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    ends = [(name, numbers[name]) for name in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    unigram.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    longest = _config(base, source).max_position_embeddings
    return PreTrainedTokenizerFast(tokenizer_object=unigram, **named, model_max_length=longest)


def _one_space() -> Any:
    from tokenizers import Regex, normalizers

    return normalizers.Replace(Regex(" {2,}"), " ")


def _config(base: str, source: dict[str, Any]) -> PretrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(base, **source)


def _json(base: str, name: str, source: dict[str, Any]) -> dict[str, Any]:
    file = _file(base, name, source)
    return json.loads(file.read_text("utf-8")) if file else {}


def _file(base: str, name: str, source: dict[str, Any]) -> Path | None:
    """A file of a model folder or hub repository, or None where it has none."""
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(base, name, revision=source.get("revision"), _raise_exceptions_for_gated_repo=False, **quiet)
    return Path(found) if found else None
