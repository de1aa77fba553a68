"""Out of memory: which settings to lower, and what `gonggam plan` predicts with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gonggam.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from pipeline.recipe import Recipe
    from pipeline.train.plan_machine import Gpu


class OutOfMemory(UserError):
    """Training needs more memory than there is."""


@contextmanager
def out_of_memory(trainer: Trainer) -> Iterator[None]:
    """Turn the ways in which memory runs out into one line that names the settings to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        batch = trainer.args.per_device_train_batch_size
        lower = [f"per_device_train_batch_size (now {batch}; raise gradient_accumulation_steps in turn)"] * (batch > 1)
        lower += [f"max_length (now {getattr(trainer.args, 'max_length', None)})"]
        more = [] if trainer.args.gradient_checkpointing else ["gradient_checkpointing: true"]
        more += [] if getattr(trainer.model, "is_quantized", False) else ["model.quantization: nf4"]
        raise OutOfMemory(
            f"out of memory by step {trainer.state.global_step}",
            "; ".join([f"lower {' or '.join(lower)}", *(f"set {key}" for key in more)]),
        ) from error


@contextmanager
def with_plan(
    recipe: Recipe, name: str, prepared: Path, *, tokenizer: PreTrainedTokenizerBase, system: str | None
) -> Iterator[None]:
    """Tell of memory that ran out, in training or around it, with what the plan says of the stage ``name`` here.

    Raises:
        OutOfMemory: it did.
    """
    try:
        yield
    except (OutOfMemory, torch.OutOfMemoryError) as error:
        from pipeline.train.plan import Planner
        from pipeline.train.plan_machine import GIB

        planner = Planner(recipe, prepared, tokenizer=tokenizer, system=system)
        found = planner.stage(name, this_machine())
        told = f"plan predicts {found.peak / GIB:.2f} GiB of {found.gpu.usable / GIB:.1f} usable"
        if found.fits:
            told += ", so something else may hold memory too"
        elif better := planner.advice(found):
            told += f", {better[1].peak / GIB:.2f} GiB with {' '.join(better[0])}"
        else:
            told += ", and no setting helps: take a smaller base model"
        if isinstance(error, OutOfMemory):
            raise OutOfMemory(error.what, f"{error.hint}. P{told[1:]}") from error
        raise OutOfMemory(f"out of memory in {name}, before or after training", told) from error


def this_machine() -> Gpu:
    """The GPU (or processor) that training runs on, as the plan knows machines; of its rate nothing is said."""
    from pipeline.train.plan_machine import GIB, Gpu, gpu_named

    if not torch.cuda.is_available():
        return gpu_named("cpu")
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpu(device.name, device.total_memory / GIB, 1.0, bf16=torch.cuda.is_bf16_supported())
