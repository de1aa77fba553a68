"""What margins and accuracy do not show of DPO: good replies that sink with the bad ones, and replies that grow longer.

Sinking: Pal et al. 2024, https://arxiv.org/abs/2402.13228. Growing: Park et al. 2024, https://arxiv.org/abs/2403.19159.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import DistributedType
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gonggam.errors import UserError
from pipeline.train.prefix import Pair, PairTrainer

COLLAPSE = math.log(2)  # nats a token: the chosen replies have become half as likely, token by token
GROWTH = 1.5  # times as long as before the first step
LONGEST = 128  # tokens of an answer that is only counted
_CURE = "lower dpo.learning_rate or raise dpo.beta, or add the sft loss (loss_type: [sigmoid, sft])"
_WHOLE = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


class Watch(TrainerCallback):
    """Looks at the policy while it trains: likelihood of the chosen replies at every log, length of answers at times.

    Args:
        trainer: whose callback it becomes; it has not taken a step.
        held_out: pairs whose first few distinct prompts are answered.
        prompts: how many of them; 0 for none. Answers are greedy, so that they take nothing from the random numbers
            of training.
        stop: end training when the chosen replies collapse.
    """

    def __init__(self, trainer: PairTrainer, held_out: Sequence[Pair], *, prompts: int, stop: bool) -> None:
        self.trainer, self.stop = trainer, stop
        whole = trainer.accelerator.distributed_type in _WHOLE  # a sharded model does not generate
        distinct = {tuple(pair["prompt_ids"]): pair for pair in held_out}
        self.pairs = list(distinct.values())[: prompts if whole else 0]
        pairs = trainer.training_pairs()
        self.tokens = sum(len(pair["chosen_ids"]) for pair in pairs) / len(pairs)
        self.warned = False
        self.before = self.reply_tokens()
        trainer.add_callback(self)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Three looks at the length of answers, a quarter of the way apart."""
        if state.max_steps >= 4 and state.global_step in (state.max_steps * k // 4 for k in (1, 2, 3)):
            length = self.reply_tokens()
            if length is not None:
                self.trainer.note("reply_tokens", length)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Warn once, or stop, when the chosen replies of recent batches have collapsed.

        Raises:
            UserError: they have, and the recipe wants to stop then. The figure is a mean over all processes.
        """
        reward = (logs or {}).get("rewards/chosen")
        if reward is None or not self.trainer.beta or self.warned:
            return
        change = reward / self.trainer.beta / self.tokens
        if change > -COLLAPSE:
            return
        self.warned = True
        what = f"by step {state.global_step} {_sunk(change)}"
        if self.stop:
            raise UserError(what, _CURE)
        if state.is_world_process_zero:
            logging.getLogger(__name__).warning("%s: %s", what, _CURE)

    def figures(self, change: float) -> dict[str, Any]:
        """What a finished stage tells: the change of the chosen replies, the length of answers, and warnings.

        Args:
            change: see `chosen_change`.
        """
        lengths: dict[str, Any] = {}
        if (after := self.reply_tokens()) is not None:
            chosen = sum(len(pair["chosen_ids"]) for pair in self.pairs) / len(self.pairs)
            lengths = {"prompts": len(self.pairs), "before": self.before, "after": after, "chosen": chosen}
        return {"chosen_change": change, "reply_tokens": lengths, "warnings": warnings(change, lengths)}

    @torch.no_grad()
    def reply_tokens(self) -> float | None:
        """Mean tokens of the policy's greedy answers, EOS included, none counted beyond `LONGEST`."""
        if not self.pairs:
            return None
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        tokenizer, training = self.trainer.processing_class, model.training
        longest = max(len(pair["prompt_ids"]) for pair in self.pairs)
        gaps = [longest - len(pair["prompt_ids"]) for pair in self.pairs]
        rows = [[tokenizer.pad_token_id] * gap + pair["prompt_ids"] for gap, pair in zip(gaps, self.pairs, strict=True)]
        ids = torch.tensor(rows, device=model.device)
        mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=model.device)
        how = GenerationConfig(
            do_sample=False,
            max_new_tokens=LONGEST,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.eval()
        with self.trainer.accelerator.autocast():
            said = model.generate(input_ids=ids, attention_mask=mask, generation_config=how)[:, longest:]
        model.train(training)
        return float((said != tokenizer.pad_token_id).sum(dim=1).float().mean())


def chosen_change(
    reference: Sequence[tuple[float, float]], policy: Sequence[tuple[float, float]], rows: Sequence[Mapping[str, Any]]
) -> float:
    """How much likelier the chosen replies became, in nats a token."""
    tokens = sum(len(row["chosen_ids"]) for row in rows)
    return sum(after - before for (before, _), (after, _) in zip(reference, policy, strict=True)) / tokens


def warnings(change: float, lengths: Mapping[str, Any]) -> list[str]:
    """What is to be told of a finished stage, a sentence each; said in the log too.

    Args:
        change: of the chosen held-out replies, in nats a token.
        lengths: mean tokens of an answer ``before`` and ``after`` training, and of the ``chosen`` replies; or empty.
    """
    found = [f"{_sunk(change)}: {_CURE}"] if change <= -COLLAPSE else []
    if lengths and lengths["after"] > GROWTH * lengths["before"]:
        found.append(
            f"answers grew from {lengths['before']:.0f} to {lengths['after']:.0f} tokens (chosen replies have "
            f"{lengths['chosen']:.0f}): look whether chosen replies are longer than rejected ones, or set dpo.ld_alpha"
        )
    for warning in found:
        logging.getLogger(__name__).warning(warning)
    return found


def _sunk(change: float) -> str:
    return f"the chosen replies became {math.exp(-change):.1f} times less likely a token"
