"""Checkpoints in the file formats of the hub's Korean models, with random weights: what cannot be downloaded in a test.

Which files a model brings, and what its tokenizer_config.json says, is taken from the models' pages.
"""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = ["오늘은 정말 힘든 하루였어요.", "친구와 다퉈서 마음이 무거워요.", "요즘 잠이 안 와서 걱정이에요."]
TEXTS += ["0123456789번째로 힘들어요", "그래도 응원해요"]
WORDPIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FREE = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>", "<mask>", "<d>", "</d>", "<unused0>", "<unused1>"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def koelectra(folder: Path, class_name: str | None = None) -> Path:
    """monologg/koelectra-base-v3-discriminator and beomi/KcELECTRA-base-v2022: an ELECTRA with a vocab.txt."""
    wordpiece(
        folder,
        {"do_lower_case": False, "model_max_length": 512} | ({"tokenizer_class": class_name} if class_name else {}),
    )
    config = transformers.ElectraConfig(vocab_size=words(folder), embedding_size=16, **SMALL)
    return _saved(transformers.ElectraForPreTraining(config), folder)


def klue_roberta(folder: Path) -> Path:
    """klue/roberta-base: a RoBERTa with BERT's tokenizer and a single type of token."""
    wordpiece(folder, {"do_lower_case": False, "tokenizer_class": "BertTokenizer", "model_max_length": 512})
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.RobertaConfig(
        vocab_size=words(folder), max_position_embeddings=514, type_vocab_size=1, **ids, **SMALL
    )
    return _saved(transformers.RobertaForMaskedLM(config), folder)


def kobert(folder: Path) -> Path:
    """skt/kobert-base-v1: a BERT whose SentencePiece model is declared XLNet's."""
    pieces = [
        "[UNK]",
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "▁",
        *sorted({c for text in TEXTS for c in text if c != " "}),
    ]
    _write(folder / "spiece.model", _sentencepiece(pieces))
    named = {name: f"[{name.split('_')[0].upper()}]" for name in ("unk_token", "sep_token", "pad_token", "cls_token")}
    mask = {
        "content": "[MASK]",
        "single_word": False,
        "lstrip": True,
        "rstrip": False,
        "normalized": True,
        "__type": "AddedToken",
    }
    told = {
        "do_lower_case": False,
        "remove_space": True,
        "keep_accents": False,
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
    }
    told |= {**named, "mask_token": mask, "additional_special_tokens": None, "sp_model_kwargs": {}}
    _json(folder / "tokenizer_config.json", told | {"tokenizer_class": "XLNetTokenizer"})
    config = transformers.BertConfig(vocab_size=len(pieces), pad_token_id=1, type_vocab_size=2, **SMALL)
    return _saved(transformers.BertForMaskedLM(config), folder)


def kogpt2(folder: Path) -> Path:
    """skt/kogpt2-base-v2: a GPT-2 with a tokenizer.json and no word about what class of tokenizer it is."""
    size = metaspace(folder)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3}
    config = transformers.GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=128, **ids)
    return _saved(transformers.GPT2LMHeadModel(config), folder)


def kobart(folder: Path) -> Path:
    """gogamza/kobart-base-v2: a BART with the tokenizer.json of KoGPT2's kind, which writes no end token."""
    size = metaspace(folder)
    named = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    _json(folder / "special_tokens_map.json", {f"{name}_token": token for name, token in named.items()})
    sides = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    ids = {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 3,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": 1,
    }
    config = transformers.BartConfig(vocab_size=size, d_model=32, max_position_embeddings=1026, **both, **ids)
    return _saved(transformers.BartForConditionalGeneration(config), folder)


def wordpiece(folder: Path, told: dict) -> None:
    """vocab.txt and tokenizer_config.json of a BERT-like tokenizer."""
    _write(folder / "vocab.txt", "\n".join([*WORDPIECES, *signs(), *(f"##{c}" for c in signs())]).encode())
    _json(folder / "tokenizer_config.json", told)


def signs() -> list[str]:
    """The characters of `TEXTS`."""
    return sorted({c for text in TEXTS for c in text if c != " "})


def words(folder: Path) -> int:
    """Words of a vocab.txt."""
    return len((folder / "vocab.txt").read_text("utf-8").splitlines())


def metaspace(folder: Path) -> int:
    """tokenizer.json as KoGPT2 and KoBART bring it, its special tokens at their places; returns its size."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=FREE, show_progress=False)
    bpe.train_from_iterator(TEXTS, trainer)
    _write(folder / "tokenizer.json", bpe.to_str().encode())
    return bpe.get_vocab_size()


def _sentencepiece(pieces: list[str]) -> bytes:
    from transformers.utils import sentencepiece_model_pb2_new as proto

    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    model.trainer_spec.unk_id = 0
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = True
    for place, piece in enumerate(pieces):
        kinds = proto.ModelProto.SentencePiece
        kind = kinds.UNKNOWN if place == 0 else kinds.CONTROL if piece.startswith("[") else kinds.NORMAL
        model.pieces.add(piece=piece, score=-float(place), type=kind)
    return model.SerializeToString()


def _saved(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def _json(path: Path, value: dict) -> None:
    _write(path, json.dumps(value, ensure_ascii=False).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
