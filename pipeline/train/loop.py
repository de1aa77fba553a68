"""What every training stage shares: arguments that fit the machine, checkpoints that can be trusted, graceful stops.

A checkpoint counts only once its ``complete`` file is written, after everything else: a process killed while saving
leaves the one before it to resume from.
"""

from __future__ import annotations

import gc
import math
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from gonggam.errors import Interrupted, UserError
from gonggam.files import write_json
from gonggam.progress import Progress
from pipeline.train.shortage import out_of_memory
from pipeline.train.trackers import checked, refusals, tensorboard


class Named(Trainer):
    """A trainer that knows the rows each recent loss came from: its data has a column ``names``, for DPO ``pairs``."""

    data_collator: Any
    _signature_columns: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = _WithNames(self.data_collator)
        self.recent: list[tuple[list[str], torch.Tensor]] = []

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*{*(self._signature_columns or ()), "names", "pairs"}]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass."""
        names = inputs.pop("names")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.recent.append((names, loss))
        return loss


class _WithNames:
    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        names = [name for example in examples for name in example.get("names", ())]
        bare = [{key: value for key, value in example.items() if key != "names"} for example in examples]
        return {**self.collator(bare), "names": names}


def arguments(given: Mapping[str, Any], folder: Path, seed: int) -> dict[str, Any]:
    """Keyword arguments for SFTConfig or DPOConfig: the recipe's own, over defaults that fit this machine.

    TRL's configurations ask for bf16 and gradient checkpointing, with which a machine without a GPU cannot even start.

    Raises:
        UserError: ``report_to`` names a tracker that is not installed.
    """
    settings: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "seed": seed,
        "disable_tqdm": True,
        "report_to": "tensorboard",
        "run_name": f"{folder.parent.name}-{folder.name}",
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 2,
    }
    if not torch.cuda.is_available():
        settings |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    elif not torch.cuda.is_bf16_supported():
        settings |= {"bf16": False, "fp16": True}
    settings |= given
    return {**settings, "report_to": checked(settings["report_to"])}


def train(trainer: Trainer, progress: Progress | None = None) -> dict[str, Any]:
    """Train from the newest complete checkpoint, or from the start; returns steps, epochs and the logged history.

    Raises:
        UserError: the loss became NaN or infinite, memory ran out, the disk is full (the last complete checkpoint
            stays intact), or a tracker refused.
        Interrupted: a signal asked to stop; a full checkpoint was written first.
    """
    folder = Path(trainer.args.output_dir)
    if trainer.accelerator.is_main_process:
        _drop_broken_checkpoints(folder)
    trainer.accelerator.wait_for_everyone()
    checkpoint = newest_checkpoint(folder)
    stop = _GracefulStop()
    disable_progress_bar()  # the libraries' bars and prints would tear our own bar apart
    trainer.remove_callback(PrinterCallback)
    for callback in (_ReportProgress(progress), stop, _StayFinite(trainer), _MarkComplete()):
        trainer.add_callback(callback)
    told = tensorboard(trainer, folder.parent / "tensorboard", step=_step(checkpoint))
    refused = refusals(trainer.args.report_to)
    with stop.listening(), disk_full(folder), out_of_memory(trainer), refused, told, _old_objects_at_rest():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.received:
        raise Interrupted(128 + stop.received)
    state = trainer.state
    return {"steps": state.global_step, "epochs": state.epoch, "history": state.log_history}


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint under ``folder`` that was written to its end."""
    complete = [path.parent for path in folder.glob("checkpoint-*/complete")]
    return max(complete, key=_step, default=None)


def _step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def _drop_broken_checkpoints(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        if not (path / "complete").is_file():
            shutil.rmtree(path)


class _ReportProgress(TrainerCallback):
    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._report(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._report(state)

    def _report(self, state: TrainerState) -> None:
        if self.progress and state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps)


class _MarkComplete(TrainerCallback):
    """Comes after everything else of a checkpoint is on disk, on every rank."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            write_json(
                Path(args.output_dir) / f"checkpoint-{state.global_step}" / "complete", {"step": state.global_step}
            )


class _StayFinite(TrainerCallback):
    """Looks before every log and every checkpoint, not at every step: a look makes a GPU wait."""

    def __init__(self, trainer: Trainer) -> None:
        self.recent: list[tuple[list[str], torch.Tensor]] = trainer.recent if isinstance(trainer, Named) else []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if control.should_log or control.should_save:
            at_fault = next((names for names, loss in self.recent if not math.isfinite(loss)), None)
            self.recent.clear()
            self._refuse("the loss", at_fault is not None, args, state, at_fault)
        if control.should_save:
            weights = (w for w in model.parameters() if w.requires_grad)
            self._refuse("a weight", not all(bool(w.isfinite().all()) for w in weights), args, state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            self._refuse(f"{name}", value is not None and not math.isfinite(value), args, state)

    def _refuse(
        self, what: str, bad: bool, args: TrainingArguments, state: TrainerState, rows: list[str] | None = None
    ) -> None:
        """Stop if ``bad`` on any rank, on all of them together, so that none waits for another."""
        if args.world_size > 1:
            anywhere = torch.tensor(bad, dtype=torch.int, device=args.device)
            torch.distributed.all_reduce(anywhere, op=torch.distributed.ReduceOp.MAX)
            bad = bool(anywhere)
        if bad:
            where = f" in the batch of {', '.join(rows[:8])}{' ...' if len(rows) > 8 else ''}" if rows else ""
            raise UserError(
                f"{what} became NaN or infinite by step {state.global_step}{where}",
                "lower learning_rate or max_grad_norm, or look at these rows, and run again: "
                "it goes on from the last good checkpoint",
            )


class _GracefulStop(TrainerCallback):
    """SIGINT, SIGTERM and SIGUSR1 end training after the running step, with a checkpoint; all ranks stop together."""

    def __init__(self) -> None:
        self.received = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        def receive(number: int, _: FrameType | None) -> None:
            self.received = number

        previous = {s: signal.signal(s, receive) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:
            received = torch.tensor(self.received, device=args.device)
            torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
            self.received = int(received)
        if self.received:
            control.should_save = control.should_training_stop = True


@contextmanager
def _old_objects_at_rest() -> Iterator[None]:
    """Spare garbage collections, one of which the trainer forces, the million objects of imported libraries."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def disk_full(folder: Path) -> Iterator[None]:
    """Writers of tensors report a full disk each in their own way; what they share is that no room is left."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if "No space left" not in str(error) and shutil.disk_usage(folder).free >= 1 << 20:
            raise
        kept = newest_checkpoint(folder)
        intact = f"the last complete checkpoint ({kept.name}) is intact" if kept else "no checkpoint was complete yet"
        hint = "free some space and run the same command again"
        raise UserError(f"the disk is full; {intact}", hint, file=folder) from error


def forget_checkpoints(trainer: Trainer, given: Mapping[str, Any]) -> None:
    """Remove the checkpoints of a finished stage, unless the recipe says how many to keep."""
    if "save_total_limit" not in given and trainer.accelerator.is_main_process:
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
