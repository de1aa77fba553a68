"""A tiny base model made from the training split, for machines without a pretrained one.

It shows that every later step works, on any laptop; it is no counsellor. It reads single turns in the chat format,
never a turn beside its answer: the language comes from here, the dialogue from SFT.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from gonggam.errors import UserError
from gonggam.files import publishing, read_jsonl
from gonggam.progress import Progress
from pipeline.prompt import inert
from pipeline.train.data import conversations
from pipeline.train.denoise import Denoising
from pipeline.train.loop import arguments, forget_checkpoints, train
from pipeline.train.shapes import MARKUP, Markup, build_model, build_tokenizer

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
    turns = _turns(prepared)
    if not turns:
        raise UserError("no conversations in the train split", "prepare more data", file=prepared)
    tokenizer = build_tokenizer(
        (turn["content"] for turn in turns), section.vocab_size, section.max_position_embeddings, section.architecture
    )
    set_seed(seed)
    model = build_model(tokenizer, section)
    rows, collator = _lesson(tokenizer, model, turns, section, seed)
    given = {name: getattr(section, name) for name in TRAINING_KEYS}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments({"lr_scheduler_type": "cosine", "adam_beta2": 0.95, **given}, folder, seed)),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        data_collator=collator,
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
        "tokens": int(sum(map(len, rows)) * result["epochs"]),
        **result,
    }


def _turns(prepared: Path) -> list[dict[str, str]]:
    """Every turn of the training split, and the texts that have a label in place of a reply."""
    talked = conversations(prepared, "train") if (prepared / "messages").is_dir() else []
    labelled = prepared / "labelled" / "train.jsonl"
    texts = [row["text"] for row in read_jsonl(labelled)] if labelled.is_file() else []
    return [turn for row in talked for turn in row["messages"]] + [{"role": "user", "content": t} for t in texts]


def _lesson(
    tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, turns: list[dict[str, str]], section: Any, seed: int
) -> tuple[list[list[int]], Any]:
    """Rows and collator: shapes with a mask token fill in what is hidden, a seq2seq one by saying it all again."""
    markup, size = MARKUP[section.architecture], section.max_position_embeddings
    if model.config.is_encoder_decoder:
        texts = [inert(tokenizer, turn["content"].strip()) for turn in turns]
        return tokenizer(texts, truncation=True, max_length=size)["input_ids"], Denoising(tokenizer, model)
    filling = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15) if markup.mask else default_data_collator
    return list(_blocks(tokenizer, turns, markup, size, seed)), filling


def _blocks(
    tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]], markup: Markup, size: int, seed: int
) -> Iterator[list[int]]:
    """Single turns in shuffled order, end to end, cut into blocks of ``size`` tokens (a rest is left out)."""
    texts = [markup.roles[turn["role"]] + inert(tokenizer, turn["content"].strip()) + markup.end for turn in turns]
    random.Random(seed).shuffle(texts)
    ids = [i for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in row]
    size = min(size, len(ids))
    for start in range(0, len(ids) - size + 1, size):
        yield ids[start : start + size]
