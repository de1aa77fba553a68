"""A tiny base model made from the training split, for machines without a pretrained one.

It shows that every later step works, on any laptop; it is no counsellor. It reads single turns in the chat format,
never a turn beside its answer: the language comes from here, the dialogue from SFT.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from gonggam.errors import UserError
from gonggam.files import publishing
from pipeline.prompt import inert, template
from pipeline.train.data import conversations
from pipeline.train.loop import arguments, forget_checkpoints, train

Progress = Callable[[int, int], None]
PAD, END, ROLES = "<|pad|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")
# The keys of a recipe's ``tiny:`` section that are TrainingArguments; the others give the model's shape.
TRAINING_KEYS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
)


def run_tiny(section: Any, prepared: Path, folder: Path, *, seed: int, progress: Progress | None = None) -> dict:
    """Train tokenizer and model on the training split; leaves an ordinary Hugging Face folder ``folder/model``.

    Returns:
        metrics: parameters, tokens read (all epochs), steps, final loss (nats per token), loss history.

    Raises:
        UserError: the training split is empty; and what `pipeline.train.loop.train` raises.
    """
    turns = [turn for row in conversations(prepared, "train") for turn in row["messages"]]
    if not turns:
        raise UserError("no conversations in the train split", "prepare more data", file=prepared)
    tokenizer = build_tokenizer(
        (turn["content"] for turn in turns), section.vocab_size, section.max_position_embeddings
    )
    set_seed(seed)
    model = build_model(tokenizer, section)
    ids = list(_blocks(tokenizer, turns, section.max_position_embeddings, seed))
    blocks = Dataset.from_dict({"input_ids": ids, "labels": ids})
    given = {name: getattr(section, name) for name in TRAINING_KEYS}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments({"lr_scheduler_type": "cosine", "adam_beta2": 0.95, **given}, folder, seed)),
        train_dataset=blocks,
        data_collator=default_data_collator,
    )
    result = train(trainer, progress)
    if trainer.accelerator.is_main_process:
        with publishing(folder / "model") as aside:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(aside)
            tokenizer.save_pretrained(aside)
    trainer.accelerator.wait_for_everyone()
    forget_checkpoints(trainer, given)
    return {
        "parameters": model.num_parameters(),
        "tokens": int(len(blocks) * section.max_position_embeddings * result["epochs"]),
        **result,
    }


def build_tokenizer(texts: Iterator[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over ``texts`` with role tokens, a chat template, and a pad token that is not EOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, END, *ROLES],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=template("gonggam"),
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, section: Any) -> LlamaForCausalLM:
    """A randomly initialised Llama of the section's shape (fp32, tied embeddings)."""
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


def _blocks(
    tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]], size: int, seed: int
) -> Iterator[list[int]]:
    """Single turns in shuffled order, end to end, cut into blocks of ``size`` tokens (a rest is left out)."""
    texts = [f"<|{turn['role']}|>{inert(tokenizer, turn['content'].strip())}{END}" for turn in turns]
    random.Random(seed).shuffle(texts)
    ids = [i for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in row]
    size = min(size, len(ids))
    for start in range(0, len(ids) - size + 1, size):
        yield ids[start : start + size]
