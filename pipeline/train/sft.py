"""Supervised fine-tuning on the replies of whole conversations, an adapter or all weights, through TRL's SFTTrainer.

The rows come tokenised and labelled from `pipeline.train.mask`; TRL takes ``input_ids`` and ``labels`` as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from trl import SFTConfig, SFTTrainer

from gonggam.errors import UserError
from gonggam.files import publishing
from gonggam.progress import Progress
from pipeline.chat.parity import write_parity
from pipeline.identity import identity, write_identity
from pipeline.train.attend import use_segments
from pipeline.train.data import first_prompt, sft_rows
from pipeline.train.loop import Named, arguments, disk_full, forget_checkpoints, train
from pipeline.train.mask import IGNORE, Row
from pipeline.train.measure import percentile_per_token, perplexity, reply_logprobs, summed_loss
from pipeline.train.pack import FlatCollator, best_fit, columns

if TYPE_CHECKING:
    from pipeline.recipe.sections import ModelOptions


class ReplyTrainer(Named, SFTTrainer):
    """An SFTTrainer whose output head works on supervised positions only.

    The loss is TRL's: cross-entropy summed over supervised tokens, divided by their number in the whole optimiser step.
    What it leaves out is the head at positions without a label, and the entropy and accuracy that TRL logs.
    """

    model_accepts_loss_kwargs: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Whatever the model's own loss takes, ours divides by the supervised tokens of the whole optimiser step.
        self.model_accepts_loss_kwargs = True

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy (nats) at the positions whose next token is supervised in some row of the batch."""
        inputs = dict(inputs)
        target = inputs.pop("labels")[:, 1:]
        positions = (target != IGNORE).any(dim=0).nonzero().squeeze(1)
        outputs = model(**inputs, use_cache=False, logits_to_keep=positions)
        target = target[:, positions].flatten()
        loss = summed_loss(
            outputs.logits.flatten(0, 1),
            target,
            label_smoothing=self.args.label_smoothing_factor if self.args.loss_type == "nll" else 0.0,
            dft=self.args.loss_type == "dft",
        )
        count = (target != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(count, device=loss.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def reply_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], given: Mapping[str, Any], peft: Any
) -> tuple[ReplyTrainer, str]:
    """The trainer of a recipe's ``sft:`` keys, batched without padding where the model keeps texts apart.

    TRL's key ``packing`` is taken over by our own: whole rows, best fit, up to ``max_length`` tokens, so that
    ``per_device_train_batch_size`` counts packed rows.

    Returns:
        the trainer, and in words how its batches are made.

    Raises:
        UserError: LoRA targets that match nothing.
    """
    wanted = {key: given[key] for key in ("packing", "padding_free") if key in given}
    config = SFTConfig(**{key: value for key, value in given.items() if key not in wanted})
    flash = "flash" in str(model.config.get_text_config()._attn_implementation)
    against = None if flash else use_segments(model, config.max_length)
    if against:
        bins, way = [[i] for i in range(len(rows))], f"padded: {against}"
    elif wanted.get("packing"):
        size = config.max_length or max(len(row.input_ids) for row in rows)
        bins = best_fit([len(row.input_ids) for row in rows], size)
        way = "packed"
    else:
        bins, way = [[i] for i in range(len(rows))], "without padding"
    with lora_targets(model):
        trainer = ReplyTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict(columns(rows, bins)),
            processing_class=tokenizer,
            peft_config=peft,
            data_collator=None if against else FlatCollator(segments=not flash),
        )
    return trainer, way


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
    """Train on the training split; leaves ``folder/adapter`` or, without LoRA, whole weights in ``folder/model``.

    A prompt for the parity check is left beside them.

    Returns:
        metrics: rows, how batches are made, tokens and supervised tokens read (all epochs), steps, loss history,
        validation perplexity before and after, and ``reply_logprob_p01``: the 1st percentile over validation rows of
        the mean log-probability (nats) of a token of a human reply, by which the counsellor tells broken replies.

    Raises:
        UserError: rows that fail the mask's proof or cannot fit; LoRA targets that match nothing; and what
            `pipeline.train.loop.train` raises.
    """
    given = arguments(section.arguments, folder, seed)
    max_length, base = SFTConfig(**given).max_length, identity(model)
    rows = sft_rows(tokenizer, prepared, "train", system=system, max_length=max_length)
    held_out = sft_rows(tokenizer, prepared, "validation", system=system, max_length=max_length)
    trainer, way = reply_trainer(model, tokenizer, rows, given, None if section.lora is None else lora(section.lora))
    before = perplexity(reply_logprobs(trainer.model, held_out))
    result = train(trainer, progress)
    after = reply_logprobs(trainer.model, held_out)
    if trainer.accelerator.is_main_process:
        write_parity(folder, *first_prompt(prepared, rows[0], system))
    save_policy(trainer, tokenizer, folder, base)
    forget_checkpoints(trainer, section.arguments)
    epochs = result["epochs"]
    return {
        "rows": len(rows),
        "batches": way,
        "tokens": int(sum(len(row.input_ids) for row in rows) * epochs),
        "supervised_tokens": int(sum(row.supervised for row in rows) * epochs),
        "validation_perplexity": {"before": before, "after": perplexity(after)},
        "reply_logprob_p01": percentile_per_token(after, 0.01),
        **result,
    }


def weights_to_train(section: Any, settings: ModelOptions) -> ModelOptions:
    """How the model is loaded for training: all weights in float32 if all are trained and no dtype is named.

    Steps of a usual learning rate are smaller than what bfloat16 can tell apart; the arithmetic is mixed all the same.
    """
    whole = section.lora is None and settings.dtype == "auto"
    return settings.model_copy(update={"dtype": "float32"}) if whole else settings


def lora(section: dict[str, Any]) -> LoraConfig:
    """The peft configuration of a recipe's ``lora:`` section."""
    return LoraConfig(task_type="CAUSAL_LM", **section)


@contextmanager
def lora_targets(model: PreTrainedModel) -> Iterator[None]:
    """Turn peft's complaint about targets that match nothing into one that lists what there is."""
    try:
        yield
    except ValueError as error:
        if "target modules" not in str(error).lower():
            raise
        linear = {name.rsplit(".")[-1] for name, module in model.named_modules() if _takes_lora(module)}
        raise UserError(
            "lora.target_modules matches nothing in this model",
            f"it has {', '.join(sorted(linear))}; or write all-linear",
        ) from error


def _takes_lora(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | torch.nn.Embedding | Conv1D)


def save_policy(trainer: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, base: dict[str, Any]) -> None:
    """Write what was trained, with its tokenizer: all weights to ``folder/model``, or an adapter to ``folder/adapter``.

    An adapter takes along the identity of its base.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapter = isinstance(model, PeftModel)
    if trainer.accelerator.is_main_process:
        out = folder / ("adapter" if adapter else "model")
        with disk_full(Path(trainer.args.output_dir)), publishing(out) as aside:
            model.config.use_cache = True  # training switched it off
            model.save_pretrained(aside, **({"selected_adapters": ["default"]} if adapter else {}))
            tokenizer.save_pretrained(aside)
            if adapter:
                write_identity(aside, base)
    trainer.accelerator.wait_for_everyone()
