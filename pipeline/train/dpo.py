"""Direct preference optimisation from the SFT adapter, with the SFT policy as its reference, through TRL's DPOTrainer.

The policy starts as the SFT adapter; TRL keeps a frozen copy of that adapter, named ``ref``, on the same base, so no
second model is held. The first margin between policy and reference must therefore be 0, and the run stops if it is not
(Rafailov et al. 2023, https://arxiv.org/abs/2305.18290).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from gonggam.errors import UserError
from pipeline.train.data import dpo_rows
from pipeline.train.loop import arguments, forget_checkpoints, train
from pipeline.train.mask import IGNORE, Row
from pipeline.train.measure import reply_logprobs
from pipeline.train.sft import lora, save_adapter

Progress = Callable[[int, int], None]
_MARGIN_TOLERANCE = 1e-4


class PairTrainer(DPOTrainer):
    """A DPOTrainer for rows that are tokenised already (``prompt_ids, chosen_ids, rejected_ids``)."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def run_dpo(
    section: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sft_adapter: Path | None,
    prepared: Path,
    folder: Path,
    *,
    system: str | None,
    seed: int,
    progress: Progress | None = None,
) -> dict:
    """Train on the preference pairs of the training split; leaves ``folder/adapter``, a complete policy.

    Args:
        sft_adapter: the adapter to start from and to take as the reference; None starts a new adapter on the base,
            whose reference is the base itself.

    Returns:
        metrics: pairs, tokens read (all epochs), steps, history, the first margin, and reward accuracy and margin
        on the held-out pairs.

    Raises:
        UserError: no preference pairs; the first margin is not 0; and what `pipeline.train.loop.train` raises.
    """
    given = section.arguments
    config = DPOConfig(**arguments(given, folder, seed))
    rows = dpo_rows(tokenizer, prepared, "train", system=system, max_length=config.max_length)
    held_out = dpo_rows(tokenizer, prepared, "test", system=system, max_length=config.max_length)
    if not rows or not held_out:
        raise UserError("no preference pairs to train and test on", "add a source with pairs to prepare", file=prepared)
    policy = PeftModel.from_pretrained(model, sft_adapter, is_trainable=True) if sft_adapter else model
    trainer = PairTrainer(
        model=policy,
        args=config,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=tokenizer,
        peft_config=None if sft_adapter else lora(section.lora),
    )
    reference = pair_logprobs(trainer.model, held_out)
    first = _first_margin(trainer, rows[: config.per_device_train_batch_size])
    result = train(trainer, progress)
    rewards = preference(reference, pair_logprobs(trainer.model, held_out), beta=config.beta)
    save_adapter(trainer, tokenizer, folder)
    forget_checkpoints(trainer, given)
    tokens = sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
    return {
        "pairs": len(rows),
        "tokens": int(tokens * result["epochs"]),
        "first_margin": first,
        "held_out": {"pairs": len(held_out), **rewards},
        **result,
    }


def _first_margin(trainer: PairTrainer, rows: Sequence[dict]) -> float:
    """The reward margin before the first step, in nats; 0 where the policy is its own reference."""
    trainer.evaluate(Dataset.from_list(list(rows)))
    margin = float(trainer.state.log_history.pop()["eval_rewards/margins"])
    if abs(margin) > _MARGIN_TOLERANCE:
        raise UserError(
            f"the first reward margin is {margin:.2e}, not 0: policy and reference differ before training",
            "check that the adapter belongs to this base model and recipe",
        )
    return margin


def pair_logprobs(model: PreTrainedModel, rows: Sequence[dict]) -> list[tuple[float, float]]:
    """For each pair the log-probabilities (nats, summed) of the chosen and the rejected reply."""
    sides = []
    for side in ("chosen_ids", "rejected_ids"):
        whole = [Row(r["prompt_ids"] + r[side], [IGNORE] * len(r["prompt_ids"]) + r[side]) for r in rows]
        sides.append([logprob for logprob, _ in reply_logprobs(model, whole)])
    return list(zip(*sides, strict=True))


def preference(
    reference: Sequence[tuple[float, float]], policy: Sequence[tuple[float, float]], *, beta: float
) -> dict[str, float]:
    """Implicit rewards: share of pairs whose chosen reply gained more than the rejected one, and the mean margin."""
    margins = [
        beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
        for (ref_chosen, ref_rejected), (policy_chosen, policy_rejected) in zip(reference, policy, strict=True)
    ]
    return {"accuracy": sum(m > 0 for m in margins) / len(margins), "margin": sum(margins) / len(margins)}
