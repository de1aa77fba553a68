"""The gradient of one optimiser step of SFT and DPO on fixed rows, however many processes share it.

Imported, it is the step of one process. Under ``accelerate launch one_step.py RECIPE OUT`` it is that of all of them,
after they have run the recipe together; the main process leaves the gradients in OUT.
"""

import contextlib
import sys
from pathlib import Path

import torch
from test_train_pack import gradient, model_of
from test_train_prefix import pairs
from transformers import TrainerCallback

EXCHANGES = [1, 2, 3, 1, 2, 3]


class Keep(TrainerCallback):
    """Takes the gradient of a step before the optimiser does."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.found = gradient(model)


def rows(tokenizer, exploded):
    """Conversations of one to three exchanges, whole or stored again at every exchange."""
    from pipeline.train.mask import supervise

    found = []
    for number, count in enumerate(EXCHANGES):
        texts = [f"{'힘들어요 ' * ((number + i) % 3 + 1)}{i}" for i in range(2 * count)]
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        ends = range(2, len(turns) + 1, 2) if exploded else [len(turns)]
        found += [supervise(tokenizer, turns[:end], first=end // 2 - 1 if exploded else 0) for end in ends]
    return found


def step(form, tokenizer, folder, processes=1):
    """The gradient of one step over all rows, in three passes a process."""
    from pipeline.train.dpo import pair_trainer
    from pipeline.train.loop import arguments, train
    from pipeline.train.sft import lora, reply_trainer

    model = model_of("llama")
    model.resize_token_embeddings(len(tokenizer))
    data = pairs(6) if form == "dpo" else rows(tokenizer, exploded=form == "exploded")
    given = {"max_steps": 1, "gradient_accumulation_steps": 3, "max_grad_norm": 0.0, "max_length": 512}
    given |= {"per_device_train_batch_size": len(data) // 3 // processes, "save_strategy": "no"}
    torch.manual_seed(1)
    section = lora({"r": 2, "target_modules": "all-linear", "init_lora_weights": False})
    shared = model, tokenizer, data, arguments(given, Path(folder), 1), section
    trainer, _ = pair_trainer(*shared, None) if form == "dpo" else reply_trainer(*shared)
    keep = Keep()
    trainer.add_callback(keep)
    train(trainer)
    return keep.found


def tokenizer():
    from pipeline.train.tiny import build_tokenizer

    return build_tokenizer(iter(["힘들어요"]), 300, 512)


def main(recipe, out):
    from pipeline.cli import main as gonggam

    with contextlib.suppress(SystemExit):
        gonggam(["run", recipe])
    found = {form: step(form, tokenizer(), out + ".d", processes=2) for form in ("whole", "exploded", "dpo")}
    if torch.distributed.get_rank() == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
