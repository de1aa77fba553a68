"""DPO with the prompt computed once: one row [prompt; chosen; rejected; rejected ...], many of these side by side.

Every rejected reply goes on from the prompt and sees no other reply (`pipeline.train.attend`). The head works at
the positions that predict a reply, and what it gives is laid out as TRL expects it, so that TRL's own code computes
every loss type and option.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from datasets import Dataset
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import ModelOutput
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput

from pipeline.train.attend import NO_MASK, positions
from pipeline.train.loop import Named
from pipeline.train.mask import IGNORE
from pipeline.train.measure import CHUNK

Pair = dict[str, Any]


def grouped(pairs: Sequence[Pair], *, alone: bool = False) -> list[dict[str, Any]]:
    """Training examples ``{pairs, names}``: all pairs of the same prompt and chosen reply, or each alone.

    The order is that of each example's first pair.
    """
    examples: dict[Any, list[Pair]] = {}
    for number, pair in enumerate(pairs):
        key = number if alone else (tuple(pair["prompt_ids"]), tuple(pair["chosen_ids"]))
        examples.setdefault(key, []).append(pair)
    return [{"pairs": some, "names": [pair["id"] for pair in some]} for some in examples.values()]


class SharedPromptCollator:
    """Pairs in one row, beside what TRL reads of a batch: its tensors, with every prompt cut to its last token.

    Neighbouring pairs with the same prompt and chosen reply share these.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.layout = DataCollatorForPreference(pad_token_id=pad_token_id)

    def __call__(self, examples: Sequence[Pair]) -> dict[str, Any]:
        """TRL's batch, and under ``row`` what the model is called with."""
        ids: list[int] = []
        segments: list[tuple[int, int]] = []
        chosen_at: list[int] = []
        rejected_at: list[int] = []
        for (prompt, chosen), some in groupby(examples, lambda pair: (pair["prompt_ids"], pair["chosen_ids"])):
            last = len(ids) + len(prompt) - 1
            ids += [*prompt, *chosen]
            segments.append((len(prompt) + len(chosen), 0))
            for rejected in (pair["rejected_ids"] for pair in some):
                chosen_at += range(last, last + len(chosen))
                rejected_at += [last, *range(len(ids), len(ids) + len(rejected) - 1)]
                segments.append((len(rejected), len(prompt)))
                ids += rejected
        row = {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.tensor([positions(segments)]),
            "segments": segments,
            "attention_mask": NO_MASK,
            "logits_to_keep": torch.tensor(chosen_at + rejected_at),
        }
        return {**self.layout([{**e, "prompt_ids": e["prompt_ids"][-1:]} for e in examples]), "row": row}


class PairTrainer(Named, DPOTrainer):
    """A DPOTrainer for examples of tokenised pairs, as `grouped` makes them; the loss is the mean over a batch's pairs.

    Args:
        shared: compute every prompt once; the model must use segments. False is TRL's way, two padded rows a pair.
        kwargs: as for DPOTrainer.
    """

    def __init__(self, *, shared: bool, **kwargs: Any) -> None:
        if shared:
            collator: Any = SharedPromptCollator(kwargs["processing_class"].pad_token_id)
        else:
            collator = DataCollatorForPreference(pad_token_id=kwargs["processing_class"].pad_token_id)
        super().__init__(data_collator=_Pairs(collator), **kwargs)
        self.shared = shared
        # TRL then takes the reference from the batch, into which `_compute_loss` puts it where it is not there yet.
        self.precompute_ref_logps = True

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _way(self, model: Any, wanted: Sequence[str] = ()) -> Any:
        return partial(_replies, model, wanted) if self.shared else model

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (nats, summed over a reply) under the reference, of chosen and rejected replies."""
        return super().compute_ref_log_probs(self._way(model), inputs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        if "ref_chosen_logps" not in inputs:
            chosen, rejected = self.compute_ref_log_probs(model, inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        wanted = ("entropy", "mean_logits", "is_top1", *(["log_sum_sq_probs"] if self.args.use_weighting else []))
        return super()._compute_loss(self._way(model, wanted), inputs, *rest)

    def training_pairs(self) -> list[Pair]:
        """The pairs in the order of the training examples."""
        return [pair for example in self.train_dataset for pair in example["pairs"]]

    def attach_reference(self, logprobs: Sequence[tuple[float, float]]) -> None:
        """Give the `training_pairs` their reference log-probabilities, which are then not computed again."""
        found = iter(logprobs)

        def with_reference(pair: Pair) -> Pair:
            chosen, rejected = next(found)
            return {**pair, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

        examples = [{**e, "pairs": [with_reference(pair) for pair in e["pairs"]]} for e in self.train_dataset]
        self.train_dataset = Dataset.from_list(examples)

    def note(self, name: str, value: float) -> None:
        """Have a figure told with the next log, beside TRL's own."""
        self._metrics["train"][name].append(value)

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
        given = {name: inputs[name] for name in ("input_ids", "row") if name in inputs}  # padded behind, so unmasked
        with self.accelerator.autocast():
            outputs = self._way(model)(**given, labels=labels, use_cache=False, fused_lm_head=True)
        logps = outputs.log_probs
        if self.ld_alpha is not None:  # as TRL weighs the reference: less from where the shorter reply ends
            place = (labels[:, 1:] != IGNORE).cumsum(dim=1)
            shorter = torch.minimum(*place[:, -1].chunk(2)).repeat(2)
            logps = torch.where(place > shorter[:, None], self.ld_alpha * logps, logps)
        chosen, rejected = logps.sum(dim=1).chunk(2)
        return chosen, rejected


class _Pairs:
    """Hands a collator the pairs of all examples."""

    def __init__(self, collator: Callable[[list[Pair]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.collator([pair for example in examples for pair in example.get("pairs", [example])])


def _replies(model: Any, wanted: Sequence[str], *, row: dict[str, Any], labels: torch.Tensor, **_: Any) -> ModelOutput:
    """What TRL's fused head gives for the padded pairs (2 x pairs, longest reply), from one row.

    Args:
        wanted: fields of `FusedCausalLMOutput` beside the log-probabilities.
    """
    logits = model(**row, use_cache=False).logits[0]
    mask = labels[:, 1:] != IGNORE
    target = labels[:, 1:][mask]
    parts = [
        checkpoint(_statistics, some, ids, wanted, use_reentrant=False)
        if len(target) > CHUNK
        else _statistics(some, ids, wanted)
        for some, ids in zip(logits.split(CHUNK), target.split(CHUNK), strict=True)
    ]
    fields = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    laid_out = {name: value.new_zeros(mask.shape).masked_scatter(mask, value) for name, value in fields.items()}
    return FusedCausalLMOutput(**laid_out)


def _statistics(logits: torch.Tensor, target: torch.Tensor, wanted: Sequence[str]) -> dict[str, torch.Tensor]:
    """Per token: log-probability (with gradient), and of entropy, mean logit and so on what is ``wanted``."""
    logits = logits.float()
    every = logits.log_softmax(1)
    found = {"log_probs": every.gather(1, target[:, None]).squeeze(1)}
    if not wanted:
        return found
    with torch.no_grad():
        probabilities = every.exp()
        kinds = {
            "entropy": lambda: -torch.linalg.vecdot(probabilities, every),
            "mean_logits": lambda: logits.mean(1),
            "log_sum_sq_probs": lambda: torch.linalg.vecdot(probabilities, probabilities).log(),
            "is_top1": lambda: every.max(1).indices == target,  # argmax is three times slower on a processor
        }
        return found | {name: kinds[name]() for name in wanted}
