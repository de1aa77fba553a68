"""Direct preference optimisation from the SFT adapter, with the SFT policy as its reference, through TRL's DPOTrainer.

The policy starts as the SFT adapter; TRL keeps a frozen copy of that adapter, named ``ref``, on the same base, so no
second model is held. The first margin between policy and reference must therefore be 0, and the run stops if it is not
(Rafailov et al. 2023, https://arxiv.org/abs/2305.18290).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig

from gonggam.errors import UserError
from gonggam.progress import Progress
from pipeline.identity import check_identity, identity
from pipeline.train.attend import use_segments
from pipeline.train.data import dpo_rows, sft_rows
from pipeline.train.health import Watch, chosen_change
from pipeline.train.loop import arguments, forget_checkpoints, train
from pipeline.train.mask import Row
from pipeline.train.measure import percentile_per_token, reply_logprobs
from pipeline.train.prefix import PairTrainer, grouped
from pipeline.train.reference import reference_logprobs
from pipeline.train.sft import lora, lora_targets, save_policy

_MARGIN_TOLERANCE = 1e-4


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
        metrics: pairs, how batches are made, tokens read (all epochs), steps, history, the first margin,
        ``reply_logprob_p01`` as `run_sft` gives it, and on the held-out pairs reward accuracy, margin, the change of
        the chosen replies (nats a token), the length of answers, and warnings (see `pipeline.train.health`).
        Reference log-probabilities are kept in ``cache`` beside ``folder``.

    Raises:
        UserError: no preference pairs; the first margin is not 0; the chosen replies collapse and the recipe wants to
            stop then; and what `pair_trainer` and `pipeline.train.loop.train` raise.
    """
    given = arguments(section.arguments, folder, seed)
    max_length, base = DPOConfig(**given).max_length, identity(model)
    rows = dpo_rows(tokenizer, prepared, "train", system=system, max_length=max_length)
    held_out = dpo_rows(tokenizer, prepared, "test", system=system, max_length=max_length)
    if not rows or not held_out:
        raise UserError("no preference pairs to train and test on", "add a source with pairs to prepare", file=prepared)
    trainer, way = pair_trainer(model, tokenizer, rows, given, lora(section.lora), sft_adapter)
    first = _first_margin(trainer, rows[: trainer.args.per_device_train_batch_size])
    cache = folder.parent / "cache"
    if given.get("precompute_ref_log_probs", True):
        trainer.attach_reference(reference_logprobs(trainer, trainer.training_pairs(), cache))
    reference = reference_logprobs(trainer, held_out, cache)
    watch = Watch(trainer, held_out, prompts=section.length_prompts, stop=section.stop_on_collapse)
    result = train(trainer, progress)
    policy = trainer.logprobs(held_out)
    human = reply_logprobs(trainer.model, _whole_replies(tokenizer, prepared, system, max_length))
    save_policy(trainer, tokenizer, folder, base)
    forget_checkpoints(trainer, section.arguments)
    return {
        "pairs": len(rows),
        "batches": way,
        "tokens": int(_read(trainer) * result["epochs"]),
        "first_margin": first,
        "held_out": {
            "pairs": len(held_out),
            **preference(reference, policy, beta=trainer.beta),
            **watch.figures(chosen_change(reference, policy, held_out)),
        },
        **({"reply_logprob_p01": percentile_per_token(human, 0.01)} if human else {}),
        **result,
    }


def pair_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    given: Mapping[str, Any],
    peft: Any,
    adapter: Path | None,
) -> tuple[PairTrainer, str]:
    """The trainer of a recipe's ``dpo:`` keys, every prompt computed once where the model can.

    Returns:
        the trainer, and in words how its batches are made.

    Raises:
        UserError: LoRA targets that match nothing; the adapter belongs to another base model.
    """
    config = DPOConfig(**{**given, "precompute_ref_log_probs": False})  # we keep them by content, TRL by position
    against = _against_sharing(model, config)
    if against:
        logging.getLogger(__name__).warning("every prompt is computed twice, as TRL does it: %s", against)
    policy = load_adapter(model, adapter) if adapter else model
    with lora_targets(model):
        trainer = PairTrainer(
            shared=against is None,
            model=policy,
            args=config,
            train_dataset=Dataset.from_list(grouped(rows) if against is None else grouped(rows, alone=True)),
            processing_class=tokenizer,
            peft_config=None if adapter else peft,
        )
    if against:
        return trainer, f"TRL's: {against}"
    most = max(len(example["pairs"]) for example in trainer.train_dataset)
    return trainer, "prompts computed once" + (f", with up to {most} rejected replies" if most > 1 else "")


def _against_sharing(model: PreTrainedModel, config: DPOConfig) -> str | None:
    text = model.config.get_text_config()
    if not config.disable_dropout:
        return "dropout is active, and a shared prompt would share its dropout too"
    coefficient = config.router_aux_loss_coef
    if hasattr(text, "output_router_logits") and coefficient != 0.0:
        return "its routing loss is taken over whole rows"
    return use_segments(model, config.max_length)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the LoRA adapter of ``folder``, to be trained on.

    Raises:
        UserError: the adapter was made for another base model.
    """
    check_identity(model, folder)
    config = PeftConfig.from_pretrained(str(folder))
    made_for = f"the adapter was made for another base model ({config.base_model_name_or_path})"
    hint = "name the base that it was trained on, or train sft on this one"
    config.inference_mode = False
    try:
        policy = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(made_for, hint, file=folder) from error
    found = load_peft_weights(str(folder), device=str(model.device))
    wanted = {name: weight.shape for name, weight in get_peft_model_state_dict(policy).items()}
    if wanted != {name: weight.shape for name, weight in found.items()}:
        raise UserError(made_for, hint, file=folder)
    set_peft_model_state_dict(policy, found)
    return policy


def _whole_replies(
    tokenizer: PreTrainedTokenizerBase, prepared: Path, system: str | None, max_length: int | None
) -> list[Row]:
    """The validation conversations that fit, to measure on; those that do not are no reason to stop DPO."""
    rows = sft_rows(tokenizer, prepared, "validation", system=system, max_length=None)
    return [row for row in rows if max_length is None or len(row.input_ids) <= max_length]


def _read(trainer: PairTrainer) -> int:
    """Tokens of an epoch: every prompt and chosen reply once and all rejected ones; TRL's way reads prompts twice."""
    total = 0
    for first, *more in trainer.train_dataset["pairs"]:
        total += (1 if trainer.shared else 2) * len(first["prompt_ids"]) + len(first["chosen_ids"])
        total += sum(len(pair["rejected_ids"]) for pair in (first, *more))
    return total


def _first_margin(trainer: PairTrainer, rows: Sequence[dict]) -> float:
    """The mean reward margin before the first step, in nats; 0 where the policy is its own reference."""
    margin = preference(trainer.logprobs(rows, reference=True), trainer.logprobs(rows), beta=trainer.beta)["margin"]
    if abs(margin) > _MARGIN_TOLERANCE:
        raise UserError(
            f"the first reward margin is {margin:.2e}, not 0: policy and reference differ before training",
            "check that the adapter belongs to this base model and recipe",
        )
    return margin


def preference(
    reference: Sequence[tuple[float, float]], policy: Sequence[tuple[float, float]], *, beta: float
) -> dict[str, float]:
    """Implicit rewards: share of pairs whose chosen reply gained more than the rejected one, and the mean margin."""
    margins = [
        beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
        for (ref_chosen, ref_rejected), (policy_chosen, policy_rejected) in zip(reference, policy, strict=True)
    ]
    return {"accuracy": sum(m > 0 for m in margins) / len(margins), "margin": sum(margins) / len(margins)}
