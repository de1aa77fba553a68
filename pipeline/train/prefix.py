"""DPO with the prompt computed once: one row [prompt; chosen; rejected] a pair, many pairs side by side.

The rejected reply goes on from the prompt and does not see the chosen one (`pipeline.train.attend`). The head works at
the positions that predict a reply, and what it gives is laid out as TRL expects it, so that TRL's own code computes
every loss type and option.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import ModelOutput
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput

from pipeline.train.attend import positions
from pipeline.train.loop import Named
from pipeline.train.mask import IGNORE
from pipeline.train.measure import CHUNK

Pair = dict[str, Any]


class SharedPromptCollator:
    """Pairs in one row, beside what TRL reads of a batch: its tensors, with every prompt cut to its last token."""

    def __init__(self, pad_token_id: int) -> None:
        self.layout = DataCollatorForPreference(pad_token_id=pad_token_id)

    def __call__(self, examples: Sequence[Pair]) -> dict[str, Any]:
        """TRL's batch, and under ``row`` what the model is called with."""
        ids: list[int] = []
        segments: list[tuple[int, int]] = []
        chosen_at: list[int] = []
        rejected_at: list[int] = []
        for example in examples:
            prompt, chosen, rejected = (example[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids"))
            last = len(ids) + len(prompt) - 1
            branch = len(ids) + len(prompt) + len(chosen)
            chosen_at += range(last, last + len(chosen))
            rejected_at += [last, *range(branch, branch + len(rejected) - 1)]
            segments += [(len(prompt) + len(chosen), 0), (len(rejected), len(prompt))]
            ids += [*prompt, *chosen, *rejected]
        row = {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.tensor([positions(segments)]),
            "segments": segments,
            "logits_to_keep": torch.tensor(chosen_at + rejected_at),
        }
        return {**self.layout([{**e, "prompt_ids": e["prompt_ids"][-1:]} for e in examples]), "row": row}


class PairTrainer(Named, DPOTrainer):
    """A DPOTrainer for rows ``prompt_ids, chosen_ids, rejected_ids`` (and ``names``) that are tokenised already.

    Args:
        shared: compute every prompt once; the model must use segments. False is TRL's way, two padded rows a pair.
        kwargs: as for DPOTrainer.
    """

    def __init__(self, *, shared: bool, **kwargs: Any) -> None:
        if shared:
            kwargs["data_collator"] = SharedPromptCollator(kwargs["processing_class"].pad_token_id)
        super().__init__(**kwargs)
        self.shared = shared
        # TRL then takes the reference from the batch, into which `_compute_loss` puts it where it is not there yet.
        self.precompute_ref_logps = True

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _way(self, model: Any) -> Any:
        return partial(_replies, model) if self.shared else model

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (nats, summed over a reply) under the reference, of chosen and rejected replies."""
        return super().compute_ref_log_probs(self._way(model), inputs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if "ref_chosen_logps" not in inputs:
            chosen, rejected = self.compute_ref_log_probs(model, inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return super()._compute_loss(self._way(model), inputs, return_outputs)

    def attach_reference(self, logprobs: Sequence[tuple[float, float]]) -> None:
        """Give every training pair its reference log-probabilities, which are then not computed again."""
        for column, values in zip(("ref_chosen_logps", "ref_rejected_logps"), zip(*logprobs, strict=True), strict=True):
            self.train_dataset = self.train_dataset.add_column(column, list(values))

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Pair], *, reference: bool = False) -> list[tuple[float, float]]:
        """For each pair the log-probability (nats, summed) of the chosen and the rejected reply, dropout off."""
        model, size = self.model, self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size
        training = model.training
        model.eval()
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt_ids"]))
        found: list[tuple[float, float]] = [(0.0, 0.0)] * len(rows)
        for at in range(0, len(order), size):
            some = order[at : at + size]
            batch = self.data_collator([rows[i] for i in some])
            inputs = self._prepare_inputs({key: value for key, value in batch.items() if key != "names"})
            sums = self.compute_ref_log_probs(model, inputs) if reference else self._policy(model, inputs)
            for i, chosen, rejected in zip(some, *(side.tolist() for side in sums), strict=True):
                found[i] = (chosen, rejected)
        model.train(training)
        return found

    def _policy(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORE)
        given = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "row")}
        with self.accelerator.autocast():
            outputs = self._way(model)(**given, labels=labels, use_cache=False, fused_lm_head=True)
        chosen, rejected = outputs.log_probs.sum(dim=1).chunk(2, dim=0)
        return chosen, rejected


def _replies(model: Any, *, row: dict[str, Any], labels: torch.Tensor, **_: Any) -> ModelOutput:
    """What TRL's fused head gives for the padded pairs (2 x pairs, longest reply), from one row."""
    logits = model(**row, use_cache=False).logits[0]
    mask = labels[:, 1:] != IGNORE
    target = labels[:, 1:][mask]
    parts = [
        checkpoint(_statistics, some, ids, use_reentrant=False) if len(target) > CHUNK else _statistics(some, ids)
        for some, ids in zip(logits.split(CHUNK), target.split(CHUNK), strict=True)
    ]
    names = ("log_probs", "entropy", "mean_logits", "log_sum_sq_probs", "is_top1")
    fields = {name: torch.cat(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}
    laid_out = {name: value.new_zeros(mask.shape).masked_scatter(mask, value) for name, value in fields.items()}
    return FusedCausalLMOutput(**laid_out, label_mask=mask)


def _statistics(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Per token: log-probability (with gradient), entropy, mean logit, log of the summed squares, and if it is top."""
    logits = logits.float()
    every = logits.log_softmax(dim=-1)
    chosen = every.gather(-1, target[:, None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(dim=-1)
        return chosen, entropy, logits.mean(-1), (2 * every).logsumexp(-1), every.argmax(-1) == target
