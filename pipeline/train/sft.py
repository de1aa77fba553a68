"""Supervised fine-tuning: LoRA on the replies of whole conversations, through TRL's SFTTrainer.

The rows come tokenised and labelled from `pipeline.train.mask`; TRL takes ``input_ids`` and ``labels`` as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from gonggam.files import publishing
from pipeline.chat.parity import write_parity
from pipeline.train.data import first_prompt, sft_rows
from pipeline.train.loop import arguments, forget_checkpoints, train
from pipeline.train.mask import IGNORE, Row
from pipeline.train.measure import percentile_per_token, perplexity, reply_logprobs

Progress = Callable[[int, int], None]


class ReplyTrainer(SFTTrainer):
    """An SFTTrainer whose output head works on supervised positions only.

    The loss is TRL's: cross-entropy summed over supervised tokens, divided by their number in the whole optimiser step.
    What it leaves out is the head at positions without a label, and the entropy and accuracy that TRL logs.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy (nats) at the positions whose next token is supervised in some row of the batch."""
        inputs = dict(inputs)
        target = inputs.pop("labels")[:, 1:]
        positions = (target != IGNORE).any(dim=0).nonzero().squeeze(1)
        outputs = model(**inputs, use_cache=False, logits_to_keep=positions)
        target = target[:, positions]
        loss = torch.nn.functional.cross_entropy(
            outputs.logits.flatten(0, 1).float(), target.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        count = (target != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(count, device=loss.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def run_sft(
    section: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Path,
    folder: Path,
    *,
    system: str | None,
    seed: int,
    progress: Progress | None = None,
) -> dict:
    """Train a LoRA adapter on the training split; leaves ``folder/adapter``, and a prompt for the parity check.

    Returns:
        metrics: rows, tokens and supervised tokens read (all epochs), steps, loss history, validation perplexity
        before and after, and ``reply_logprob_p01``: the 1st percentile over validation rows of the mean
        log-probability (nats) of a token of a human reply, by which the counsellor tells broken replies.

    Raises:
        UserError: rows that fail the mask's proof or cannot fit; LoRA targets that match nothing; and what
            `pipeline.train.loop.train` raises.
    """
    given = section.arguments
    config = SFTConfig(**arguments(given, folder, seed))
    rows = sft_rows(tokenizer, prepared, "train", system=system, max_length=config.max_length)
    held_out = sft_rows(tokenizer, prepared, "validation", system=system, max_length=config.max_length)
    trainer = ReplyTrainer(
        model=model,
        args=config,
        train_dataset=dataset(rows),
        processing_class=tokenizer,
        peft_config=lora(section.lora),
    )
    before = perplexity(reply_logprobs(trainer.model, held_out))
    result = train(trainer, progress)
    after = reply_logprobs(trainer.model, held_out)
    if trainer.accelerator.is_main_process:
        write_parity(folder, *first_prompt(prepared, rows[0], system))
    save_adapter(trainer, tokenizer, folder)
    forget_checkpoints(trainer, given)
    epochs = result["epochs"]
    return {
        "rows": len(rows),
        "tokens": int(sum(len(row.input_ids) for row in rows) * epochs),
        "supervised_tokens": int(sum(row.supervised for row in rows) * epochs),
        "validation_perplexity": {"before": before, "after": perplexity(after)},
        "reply_logprob_p01": percentile_per_token(after, 0.01),
        **result,
    }


def dataset(rows: list[Row]) -> Dataset:
    """Rows as the columns ``input_ids`` and ``labels`` that SFTTrainer takes without touching."""
    return Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})


def lora(section: dict[str, Any]) -> LoraConfig:
    """The peft configuration of a recipe's ``lora:`` section."""
    return LoraConfig(task_type="CAUSAL_LM", **section)


def save_adapter(trainer: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the trained adapter (only the one named ``default``) and its tokenizer to ``folder/adapter``."""
    if trainer.accelerator.is_main_process:
        with publishing(folder / "adapter") as aside:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(aside, selected_adapters=["default"])
            tokenizer.save_pretrained(aside)
    trainer.accelerator.wait_for_everyone()
