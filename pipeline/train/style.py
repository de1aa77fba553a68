"""The style stage: a seq2seq model such as KoBART that turns a plain reply into another manner of speech.

What it is measured on are bases it never saw, in no style: their rows are held out together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from gonggam.errors import UserError
from gonggam.files import publishing, write_json
from gonggam.progress import Progress
from pipeline.chat.personas import STYLES, style_prompt
from pipeline.model import hub_errors, source_of
from pipeline.train.loop import arguments, forget_checkpoints, train
from pipeline.train.sft import lora_targets
from pipeline.train.style_report import measures, write_report
from pipeline.train.style_rows import SAMPLE, Styled, read_styles, split_by_base, with_swaps

if TYPE_CHECKING:
    from pipeline.recipe.sections import ModelOptions
    from pipeline.recipe.training import KeyedSection

_BATCH = 16


def run_style(
    section: KeyedSection,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelOptions | None,
    folder: Path,
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict:
    """Train, convert the held-out bases, and measure; leaves ``folder/model`` (named as ``chat.style_model``).

    Returns:
        metrics: rows, styles, steps, loss history, and for held-out rows chrF against what people wrote and the share
        that a classifier of styles takes for the wanted one: of the converted texts, of the plain ones, of people's.

    Raises:
        UserError: no usable rows, LoRA targets that match nothing; and what `pipeline.train.loop.train` raises.
    """
    keys = section.keys
    rows = read_styles(keys.files or [str(SAMPLE)])
    learn, held_out = split_by_base(rows, keys.held_out)
    set_seed(seed)
    model = _load(base, section, settings)
    trainer = style_trainer(model, tokenizer, with_swaps(learn, keys.swaps, seed), section, folder, seed)
    result = train(trainer, progress)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if section.lora is not None:
        model = model.merge_and_unload()
    made = convert(model, tokenizer, held_out, keys.max_length, keys.num_beams)
    metrics = {"rows": len(learn), "held_out": len(held_out), "styles": sorted({row.style for row in rows})}
    metrics |= {"measures": measures(learn, held_out, made), **result}
    if trainer.accelerator.is_main_process:
        with publishing(folder / "model") as aside:
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
            write_json(aside / STYLES, metrics["styles"])
        write_report(folder, metrics, held_out, made)
    trainer.accelerator.wait_for_everyone()
    forget_checkpoints(trainer, section.arguments)
    return metrics


def _load(base: str, section: KeyedSection, settings: ModelOptions | None) -> PreTrainedModel:
    with hub_errors(base):
        model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32, **source_of(settings))
    if section.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    with lora_targets(model):
        return get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", **section.lora))


def style_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Styled],
    section: KeyedSection,
    folder: Path,
    seed: int,
) -> Trainer:
    """The Trainer of a recipe's ``style:`` keys.

    Raises:
        UserError: every row is longer than ``max_length``.
    """
    asked = tokenizer([style_prompt(row.base, row.style) for row in rows])["input_ids"]
    wanted = tokenizer([row.styled for row in rows])["input_ids"]
    pairs = [
        {"input_ids": one, "labels": _ended(two, tokenizer.eos_token_id)}
        for one, two in zip(asked, wanted, strict=True)
        if max(len(one), len(two) + 1) <= section.keys.max_length
    ]
    if not pairs:
        raise UserError(f"every row is longer than max_length={section.keys.max_length} tokens", "raise it")
    settings = arguments(section.arguments, folder, seed) | {"gradient_checkpointing": False}
    if torch.cuda.is_available() and "bf16" not in section.arguments:
        settings["bf16"] = False
    return Trainer(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=Dataset.from_list(pairs),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )


def _ended(ids: list[int], eos: int) -> list[int]:
    """The ids with EOS at their end, which not every tokenizer of a seq2seq model writes (KoBART's does not)."""
    return ids if ids and ids[-1] == eos else [*ids, eos]


def convert(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Styled], max_length: int, beams: int
) -> list[str]:
    """The bases of ``rows`` in the style of each, decoded without chance."""
    made: list[str] = []
    model.eval()
    for start in range(0, len(rows), _BATCH):
        asked = [style_prompt(row.base, row.style) for row in rows[start : start + _BATCH]]
        inputs = tokenizer(asked, return_tensors="pt", padding=True, truncation=True, max_length=max_length)
        ids = model.generate(
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            max_new_tokens=max_length,
            num_beams=beams,
            do_sample=False,
        )
        made += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return made
